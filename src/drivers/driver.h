/* SPDX-License-Identifier: MIT */
/* What the drivers of this tree share with the registry that opens them. */
#ifndef HMM_DRIVER_H
#define HMM_DRIVER_H

#include <stddef.h>

#include "hmm.h"

struct hmm_driver {
	const char *name;
	const char *usage; /* of its specification, for messages */
	/** open: @arg is what follows "NAME:", "" when nothing does; the rest as hmm_device_open(). */
	int (*open)(const char *arg, struct hmm_device **devp, char *err, size_t errlen);
};

extern const struct hmm_driver hmm_driver_lz4;
extern const struct hmm_driver hmm_driver_file;
extern const struct hmm_driver hmm_driver_faulty;

/**
 * hmm_chain_next() - the next device specification of a chain "lz4:1G,raw,file:/var/tmp".
 * @chain: in and out; set behind what was read.
 * @spec, @len: room for the specification.
 *
 * Arguments may hold commas, so one ends a specification only where a known
 * driver's name follows.  Returns 1, 0 at the end, -EINVAL for an empty or too
 * long one.
 */
int hmm_chain_next(const char **chain, char *spec, size_t len);

/** drv_fail() - put a line into @err (which may be NULL); returns @rc, so that it can be returned. */
__attribute__((format(printf, 4, 5))) int drv_fail(int rc, char *err, size_t errlen, const char *fmt, ...);

#endif
