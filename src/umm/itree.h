/* SPDX-License-Identifier: MIT */
/*
 * Intervals in a balanced tree: who is interested in an address.
 *
 * Ordered by start, then by the address of the node, so that a search can go
 * on after a node that no longer exists.  The caller locks.
 */
#ifndef UMM_ITREE_H
#define UMM_ITREE_H

#include "umm.h"

void umm_itree_insert(struct umm_notifier **root, struct umm_notifier *n);
void umm_itree_remove(struct umm_notifier **root, struct umm_notifier *n);

/** umm_itree_first() - the first in order that overlaps [@start, @end), or NULL. */
struct umm_notifier *umm_itree_first(struct umm_notifier *root, uint64_t start, uint64_t end);

/** umm_itree_after() - the next one after @n, which is in the tree. */
struct umm_notifier *umm_itree_after(struct umm_notifier *n, uint64_t start, uint64_t end);

/**
 * umm_itree_next() - the first that overlaps [@start, @end) and comes after a node
 * with start @key_start that is, or was, at @key.  @key is not looked into.
 */
struct umm_notifier *umm_itree_next(struct umm_notifier *root, uint64_t start, uint64_t end, uint64_t key_start,
				    const struct umm_notifier *key);

#endif
