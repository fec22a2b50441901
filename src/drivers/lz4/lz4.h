/* SPDX-License-Identifier: MIT */
/* The lz4 device from inside, for its tests. */
#ifndef HMM_LZ4_H
#define HMM_LZ4_H

#include "drivers/area.h"
#include "drivers/lz4/store.h"
#include "hmm.h"

struct lz4_work;

struct hmm_lz4 {
	struct hmm_device dev;
	struct lz4_store store;
	struct drv_ram ram;
	uint64_t capacity;
	bool raw; /* keep what does not compress */

	pthread_mutex_t lock; /* idle work areas */
	struct lz4_work *idle;
	unsigned nr_idle;

	_Atomic int64_t same_refs;    /* references to pages that are nothing but a handle */
	_Atomic int64_t objects;      /* pages in the store */
	_Atomic int64_t objects_same; /* of these */
	_Atomic int64_t objects_raw;
	_Atomic int64_t bytes_stored;
	_Atomic uint64_t copied_in, copied_out, errors;
};

#endif
