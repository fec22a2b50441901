/* SPDX-License-Identifier: MIT */
/*
 * Intervals in a balanced tree: who is interested in an address.
 *
 * Ordered by start, then by the address of who is interested, so that a search
 * can go on after one that no longer exists.  Nothing but start and end of a
 * notifier is looked at, and only while it goes in or out.  The caller locks.
 */
#ifndef UMM_ITREE_H
#define UMM_ITREE_H

#include <pthread.h>

#include "umm.h"

#define UMM_ITREE_ROOM 15u
/* Two nodes side by side have 8 entries or more, so a level has about a quarter of what is below it at most. */
#define UMM_ITREE_LEVELS 24u

/* Of the leaves each entry is one notifier; above them, one child, and what is known of all that is below it. */
struct umm_itree_node {
	uint32_t n;
	uint32_t level;                             /* 0: a leaf */
	uint64_t end[UMM_ITREE_ROOM];               /* the greatest below */
	uint64_t start[UMM_ITREE_ROOM];             /* of the first below */
	struct umm_notifier *key[UMM_ITREE_ROOM];   /* the first below */
	struct umm_itree_node *kid[UMM_ITREE_ROOM]; /* not of leaves; the first: the next one that is free */
} __attribute__((aligned(64)));

/* Memory for nodes, behind this head. */
struct umm_itree_chunk {
	struct umm_itree_chunk *next;
	uint64_t size;
};

struct umm_itree {
	struct umm_itree_node *root;
	struct umm_itree_node *spare;
	uint32_t nspare;
	uint32_t levels;
	uint64_t bytes;                 /* of all chunks */
	struct umm_itree_chunk *chunks; /* the nodes' memory */
};

/**
 * umm_itree_lock_for_one() - take @lock, with room for one insertion as long as it is held
 * Also without it, as far as nobody else inserts.  Memory comes from umm_alloc(), without the lock.
 * Return: 0, or -ENOMEM, and @lock is not held.
 */
int umm_itree_lock_for_one(struct umm_itree *t, struct umm_space *space, pthread_mutex_t *lock);

/**
 * umm_itree_unused() - the memory of an empty tree, if it is much, or @all of it; else NULL
 * For umm_itree_free(), without the lock.
 */
struct umm_itree_chunk *umm_itree_unused(struct umm_itree *t, bool all);
void umm_itree_free(struct umm_space *space, struct umm_itree_chunk *unused);

/** umm_itree_insert() - there is room. */
void umm_itree_insert(struct umm_itree *t, struct umm_notifier *n);
/** umm_itree_remove() - @n is in the tree. */
void umm_itree_remove(struct umm_itree *t, struct umm_notifier *n);

/** From the root down to an entry of a leaf, by level.  Good until the tree changes. */
struct umm_itree_way {
	struct umm_itree_node *node[UMM_ITREE_LEVELS];
	unsigned i[UMM_ITREE_LEVELS];
};

/** umm_itree_first() - the first in order that overlaps [@start, @end), and the @way to it; or NULL. */
struct umm_notifier *umm_itree_first(const struct umm_itree *t, uint64_t start, uint64_t end,
				     struct umm_itree_way *way);

/** umm_itree_after() - the next one after that to which @way leads, and the way to it. */
struct umm_notifier *umm_itree_after(const struct umm_itree *t, uint64_t start, uint64_t end,
				     struct umm_itree_way *way);

/**
 * umm_itree_next() - the first that overlaps [@start, @end) and comes after a notifier
 * with start @key_start that is, or was, at @key.  @key is not looked into.
 */
struct umm_notifier *umm_itree_next(const struct umm_itree *t, uint64_t start, uint64_t end, uint64_t key_start,
				    const struct umm_notifier *key, struct umm_itree_way *way);

#endif
