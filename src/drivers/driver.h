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
extern const struct hmm_driver hmm_driver_ofi;
extern const struct hmm_driver hmm_driver_faulty;

/** drv_fail() - put a line into @err (which may be NULL); returns @rc, so that it can be returned. */
__attribute__((format(printf, 4, 5))) int drv_fail(int rc, char *err, size_t errlen, const char *fmt, ...);

#endif
