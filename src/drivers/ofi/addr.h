/* SPDX-License-Identifier: MIT */
/* How a server of the remote tier is named: "//HOST:PORT[,key=FILE][,timeout=SECONDS][,provider=NAME]". */
#ifndef HMM_OFI_ADDR_H
#define HMM_OFI_ADDR_H

#include <stddef.h>
#include <stdint.h>

struct tier_addr {
	char host[80];
	char port[8];
	char key[120]; /* path; "" when none is given */
	char provider[16];
	uint64_t timeout_ns;
};

/** tier_addr_parse() - @arg is what follows "ofi:".  Returns 0, or -EINVAL with a line in @err. */
int tier_addr_parse(const char *arg, struct tier_addr *addr, char *err, size_t errlen);

#endif
