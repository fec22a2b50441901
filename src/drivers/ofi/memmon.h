/* SPDX-License-Identifier: MIT */
/* umm as libfabric's memory monitor. */
#ifndef HMM_OFI_MEMMON_H
#define HMM_OFI_MEMMON_H

#include "umm.h"

struct fid;

/**
 * Make umm the monitor that libfabric's registration caches ask, in place of its
 * own.  Nothing is started before the first cache is.  @started is called then
 * with the space that is told, which is never closed; or NULL, if it came to nothing.
 *
 * Returns 0, or -errno as libfabric gives it: -EBUSY when a cache is in use.
 */
int memmon_import(int (*started)(struct umm_space *space));

#endif
