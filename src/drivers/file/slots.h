/* SPDX-License-Identifier: MIT */
/*
 * Which slots of the file are in use, by how many, and what checksum they have.
 *
 * DOC: choosing slots
 *
 * Pages that leave together come back together, so a batch gets neighbouring
 * slots where possible.  The search goes on from where the last one ended and
 * passes over full chunks by their counter; after a while it takes what it
 * finds, in pieces.
 */
#ifndef HMM_FILE_SLOTS_H
#define HMM_FILE_SLOTS_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "drivers/area.h"

struct file_slot {
	_Atomic uint32_t refs; /* at the maximum they stick */
	uint32_t sum;
	uint64_t hash; /* hash.h */
};

#define FILE_CHUNK 512u /* slots that share a counter */

struct file_slots {
	struct drv_ram *ram;
	struct drv_area table; /* struct file_slot */
	struct drv_area bits;  /* uint64_t; a set bit is a slot in use */
	struct drv_area chunk; /* uint16_t; free slots of each chunk */
	uint64_t max;
	_Atomic uint64_t nr;

	pthread_mutex_t lock; /* what follows, bits and chunk */
	uint64_t nfree;
	uint64_t cursor;
};

/** file_slots_init() - for at most @max slots, none there yet. */
int file_slots_init(struct file_slots *s, struct drv_ram *ram, uint64_t max);
void file_slots_exit(struct file_slots *s);

/** file_slots_extend() - now there are @nr.  Returns 0 or -ENOMEM.  Callers serialize. */
int file_slots_extend(struct file_slots *s, uint64_t nr);

/** file_slots_take() - up to @n slots, in ascending runs.  Returns how many. */
unsigned file_slots_take(struct file_slots *s, uint64_t slot[], unsigned n);

/** file_slots_free() - slots of no references are free again. */
void file_slots_free(struct file_slots *s, const uint64_t slot[], unsigned n);

static inline struct file_slot *file_slot(const struct file_slots *s, uint64_t slot)
{
	return (struct file_slot *)s->table.base + slot;
}

#endif
