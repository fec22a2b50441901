/* SPDX-License-Identifier: MIT */
/* Device memory in software: pages of the arena of a space, by handle. */
#ifndef DMIRROR_MEMORY_H
#define DMIRROR_MEMORY_H

#include <pthread.h>

#include "hmm.h"

#define DMIRROR_CHUNK_PAGES 512u
#define DMIRROR_CHUNKS 16384u /* 32 GiB */

struct dmirror_chunk {
	char *page;                         /* DMIRROR_CHUNK_PAGES of them */
	uint32_t refs[DMIRROR_CHUNK_PAGES]; /* 0: free, and then next is the handle of another free one */
	hmm_handle_t next[DMIRROR_CHUNK_PAGES];
	unsigned used;
	bool large;              /* given out as one piece: its pages are free when all are */
	_Atomic uint64_t *flags; /* of a large one: those of whoever it was given to; NULL: nobody any more */
	unsigned next_chunk;     /* of those that are all free */
};

struct dmirror_memory {
	struct hmm_device dev;
	struct umm_space *space;
	pthread_mutex_t lock;         /* what follows; contents belong to who holds a reference */
	struct dmirror_chunk **chunk; /* DMIRROR_CHUNKS of them */
	unsigned nchunks;
	hmm_handle_t free;
	unsigned free_chunk; /* DMIRROR_CHUNKS: none */
	int node;            /* of a coherent one: whose memory it is, or -1: none is, and pages stay where they are */
	uint64_t pages;
};

/**
 * @caps: 0; HMM_DEV_MARKED; HMM_DEV_COHERENT: the CPU reaches it as its own memory, so it holds nothing itself;
 * HMM_DEV_EXCLUSIVE. 0 or -ENOMEM.
 */
int dmirror_memory_init(struct dmirror_memory *m, struct umm_space *space, const char *name, uint32_t caps);
/** The @nth node of the machine that has memory and no CPU, or -1. */
int dmirror_memory_node(unsigned nth);
/**
 * Take DMIRROR_CHUNK_PAGES pages as one large one: handles in a row, the first a multiple of their number.
 * @flags: DMIRROR_FLAG_FAIL_ALLOC in them is spent by the first page of it that somebody touches.
 *
 * 0 or -ENOMEM.
 */
int dmirror_memory_take_large(struct dmirror_memory *m, const void *const src[], hmm_handle_t handle[],
			      _Atomic uint64_t *flags);
/** Whoever has @flags ends. */
void dmirror_memory_disown(struct dmirror_memory *m, const _Atomic uint64_t *flags);
/** From here on, until it is false again, it is the device that reads what it holds, in this thread, and no touch. */
void dmirror_memory_by_device(bool yes);
/** Does @handle lie in what dmirror_memory_take_large() gave? */
bool dmirror_memory_is_large(struct dmirror_memory *m, hmm_handle_t handle);
void dmirror_memory_fini(struct dmirror_memory *m);

/* dmirror.c: its table, whatever memory it has. */
int dmirror_map(struct hmm_device *dev, struct hmm_range *range, const struct hmm_map_run *run);
void dmirror_unmap(struct hmm_device *dev, struct hmm_range *range, const struct hmm_map_run *run,
		   const struct umm_change *why, uint64_t *dirty);
bool dmirror_settle(struct hmm_device *dev, struct hmm_range *range, uint64_t start, uint64_t end,
		    const struct umm_change *why);

#endif
