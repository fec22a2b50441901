/* SPDX-License-Identifier: MIT */
/*
 * Slots of some hundred sizes in slabs of 64 KiB.
 *
 * DOC: slabs
 *
 * A slab serves one size class; the sizes are 64 KiB divided by whole numbers,
 * so that nothing is left at a slab's end, and at most about 6 % apart.  Slots
 * are given lowest first, and only the pages of a slab up to the highest slot
 * ever given count as occupied, because only these were ever touched.  An empty
 * slab goes back to the kernel, but for a few that are kept warm.
 *
 * Locks: a class's lock covers its slabs; the lock of the pool nests inside it.
 * Giving a slab back sleeps in the kernel for a while: with no lock held.
 */
#ifndef HMM_LZ4_SLAB_H
#define HMM_LZ4_SLAB_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "drivers/area.h"

#define LZ4_SLAB_SHIFT 16
#define LZ4_SLAB_SIZE (1u << LZ4_SLAB_SHIFT)
#define LZ4_SLOT_MIN 64u
#define LZ4_SLOT_BITS 10 /* log2 of the most slots in a slab */
#define LZ4_SLOT_MAX (LZ4_SLAB_SIZE / 15)
#define LZ4_CLASSES 96
#define LZ4_WARM 8
#define LZ4_NO_SLAB UINT32_MAX

/* Partly used slabs are listed by how full they are, so that the fullest are filled first. */
#define LZ4_GROUPS 4
#define LZ4_GROUP_FULL LZ4_GROUPS
#define LZ4_GROUP_ISOLATED (LZ4_GROUPS + 1) /* being emptied by compaction */

struct lz4_slab {
	uint64_t used[(1u << LZ4_SLOT_BITS) / 64];
	uint32_t prev, next;
	uint16_t nused;
	uint8_t class;
	uint8_t group;
	uint8_t touched; /* pages that count as occupied */
};

struct lz4_class {
	pthread_mutex_t lock;
	uint32_t size;  /* bytes of a slot */
	uint32_t slots; /* in a slab */
	uint64_t nfree; /* slots free in all its slabs */
	uint32_t list[LZ4_GROUPS];
} __attribute__((aligned(64)));

struct lz4_slabs {
	struct drv_ram *ram;
	struct drv_area mem;   /* the slabs */
	struct drv_area heads; /* a struct lz4_slab for each */
	struct drv_area spare; /* numbers of slabs given back: a stack of uint32_t */
	unsigned nr_classes;
	uint8_t class_of[LZ4_SLOT_MAX / 16 + 2]; /* by size in units of 16, rounded up */
	struct lz4_class class[LZ4_CLASSES];

	pthread_mutex_t lock; /* what follows */
	uint32_t next;        /* slabs ever used */
	uint32_t limit;
	uint32_t nr_spare;
	uint32_t nr_warm;
	uint32_t warm[LZ4_WARM];
};

/** lz4_slabs_init() - room for @bytes of slabs.  Returns 0 or -ENOMEM. */
int lz4_slabs_init(struct lz4_slabs *s, struct drv_ram *ram, uint64_t bytes);
void lz4_slabs_exit(struct lz4_slabs *s);

static inline struct lz4_slab *lz4_slab_head(const struct lz4_slabs *s, uint32_t slab)
{
	return (struct lz4_slab *)s->heads.base + slab;
}

/** lz4_slab_class() - the class whose slots hold @bytes (at most LZ4_SLOT_MAX). */
static inline struct lz4_class *lz4_slab_class(struct lz4_slabs *s, uint32_t bytes)
{
	return &s->class[s->class_of[(bytes + 15) / 16]];
}

/* A location: number of the slab, then of the slot in it. */
static inline struct lz4_slab *lz4_loc_head(const struct lz4_slabs *s, uint64_t loc)
{
	return lz4_slab_head(s, (uint32_t)(loc >> LZ4_SLOT_BITS));
}

static inline struct lz4_class *lz4_loc_class(struct lz4_slabs *s, uint64_t loc)
{
	return &s->class[lz4_loc_head(s, loc)->class];
}

static inline void *lz4_loc_mem(const struct lz4_slabs *s, uint64_t loc)
{
	uint32_t slot = (uint32_t)(loc & ((1u << LZ4_SLOT_BITS) - 1));

	return s->mem.base + (loc >> LZ4_SLOT_BITS << LZ4_SLAB_SHIFT) +
	       (size_t)slot * s->class[lz4_loc_head(s, loc)->class].size;
}

/* The following with the class's lock held. */

/**
 * lz4_slot_alloc() - a slot of class @c.
 * @grow: may a slab be added to the class for it?
 * @charged: out; bytes that are occupied in addition.
 *
 * Returns false when there is none or the account is full.
 */
bool lz4_slot_alloc(struct lz4_slabs *s, struct lz4_class *c, bool grow, uint64_t *loc, uint32_t *charged);

/**
 * lz4_slot_free() - free a slot.
 *
 * Returns the slab if it is empty now (and off the class): the caller passes it
 * to lz4_slab_give() once it holds no lock; else LZ4_NO_SLAB.
 */
uint32_t lz4_slot_free(struct lz4_slabs *s, struct lz4_class *c, uint64_t loc);

/** lz4_slab_isolate() - take the sparsest slab off the lists, if the others can hold what is in it. */
uint32_t lz4_slab_isolate(struct lz4_slabs *s, struct lz4_class *c);

/** lz4_slab_restore() - end isolation.  Returns as lz4_slot_free(). */
uint32_t lz4_slab_restore(struct lz4_slabs *s, struct lz4_class *c, uint32_t slab);

/* The following with no lock held. */

/** lz4_slab_give() - an empty slab is no longer needed.  Returns bytes that are occupied no more. */
uint32_t lz4_slab_give(struct lz4_slabs *s, uint32_t slab);

/** lz4_slabs_cool() - give warm slabs back to the kernel.  Returns bytes. */
uint64_t lz4_slabs_cool(struct lz4_slabs *s);

#endif
