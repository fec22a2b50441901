/* SPDX-License-Identifier: MIT */
/*
 * Objects of varying length with handles that survive compaction.
 *
 * DOC: entries
 *
 * A handle is an index into a table of 64-bit entries:
 *
 *	bits  0-34	where the object is (slab and slot)
 *	bits 35-42	how many threads are reading it
 *	bits 43-62	references; at the maximum they stick, and the object is never freed
 *	bit  63		locked: it is being made, moved or freed
 *
 * Readers pin an entry, which nothing but an atomic operation does, and read
 * with no lock held.  Who locks an entry (compaction, the last put) does so only
 * when no reader is in, and readers wait for it to finish.
 *
 * Locks: entry's lock bit, then the class's lock, then the pool's.  Compaction,
 * which comes from the other side with the class's lock held, only tries the
 * entry's bit and leaves what it does not get.  The lock of the table's free
 * list nests inside none and holds none.
 */
#ifndef HMM_LZ4_STORE_H
#define HMM_LZ4_STORE_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "drivers/area.h"
#include "drivers/lz4/slab.h"

/** What a slot holds.  The data follow without a gap. */
struct lz4_object {
	uint32_t sum;
	uint32_t index; /* its entry: how compaction gets from the slot to the handle */
	uint16_t len;
	uint8_t data[];
};

#define LZ4_OBJECT_HEAD offsetof(struct lz4_object, data)

struct lz4_store {
	struct drv_ram *ram;
	struct lz4_slabs slabs;
	struct drv_area table;

	pthread_mutex_t lock;    /* the table's free entries */
	_Atomic uint64_t next;   /* entries ever used */
	uint64_t free;           /* first of those that are free again; their entries link them */
	pthread_mutex_t compact; /* one at a time */
	unsigned cursor;         /* class to go on with */
};

/** lz4_store_init() - room for about @bytes of objects.  Returns 0 or -ENOMEM. */
int lz4_store_init(struct lz4_store *st, struct drv_ram *ram, uint64_t bytes);
void lz4_store_exit(struct lz4_store *st);

/** lz4_store_add() - a copy of @data, with one reference.  Returns false when there is no room. */
bool lz4_store_add(struct lz4_store *st, const void *data, uint16_t len, uint32_t sum, uint64_t *index);

/**
 * lz4_store_pin() - the object stays where it is until lz4_store_unpin().
 * @len: out; never more than the slot has, whatever the object says.
 *
 * Returns NULL when there is none.
 */
struct lz4_object *lz4_store_pin(struct lz4_store *st, uint64_t index, uint16_t *len);
void lz4_store_unpin(struct lz4_store *st, uint64_t index);

void lz4_store_get(struct lz4_store *st, uint64_t index);

/** lz4_store_put() - drop a reference.  Returns true when it was the last; @len: out, of what was freed. */
bool lz4_store_put(struct lz4_store *st, uint64_t index, uint16_t *len);

bool lz4_store_shared(struct lz4_store *st, uint64_t index);

/** lz4_store_records() - bytes of entries, and of the heads of slabs; those of objects come to that. */
uint64_t lz4_store_records(struct lz4_store *st);

/** lz4_store_compact() - empty sparse slabs, at most about @bytes of work.  Returns bytes given back. */
uint64_t lz4_store_compact(struct lz4_store *st, uint64_t bytes);

#endif
