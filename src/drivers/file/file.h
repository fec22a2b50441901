/* SPDX-License-Identifier: MIT */
/* The file device from inside, for its tests. */
#ifndef HMM_FILE_H
#define HMM_FILE_H

#include "drivers/area.h"
#include "drivers/file/backing.h"
#include "drivers/file/hash.h"
#include "drivers/file/io.h"
#include "drivers/file/slots.h"
#include "hmm.h"

struct hmm_file {
	struct hmm_device dev;
	struct file_backing backing;
	struct file_slots slots;
	struct file_io io;
	struct drv_ram ram;

	pthread_mutex_t grow;
	struct file_hash hash;
	unsigned no_room; /* calls that need not try to grow it again */

	_Atomic int64_t same_refs; /* references to pages that are nothing but a handle */
	_Atomic int64_t pages;     /* in slots */
	_Atomic uint64_t copied_in, copied_out, errors;
};

#endif
