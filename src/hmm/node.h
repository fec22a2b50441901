/* SPDX-License-Identifier: MIT */
/* Pages of this process on nodes of the machine's memory. */
#ifndef HMM_NODE_H
#define HMM_NODE_H

#include <stdint.h>

/* 0 or -errno, which ends the walk. */
typedef int (*hmm_node_there)(void *priv, uint64_t start, uint64_t end);

/**
 * hmm_node_move() - have pages on a node
 * @there: told of those that are there afterwards, run by run, in order.
 *
 * Only what is there and may be moved is: others are left, and no error.  May
 * sleep; waits for no fault.
 *
 * Return: 0, what @there said, -ENODEV: no such node, -EACCES: not for this process, -ENOMEM.
 */
int hmm_node_move(uint64_t start, uint64_t end, int node, hmm_node_there there, void *priv);

/** hmm_node_here() - that of the CPU which the caller runs on. */
int hmm_node_here(void);

#endif
