/* SPDX-License-Identifier: MIT */
/* What only smaps says of this process's mappings, read without malloc. */
#ifndef HMM_SMAPS_H
#define HMM_SMAPS_H

#include <stdbool.h>
#include <stdint.h>

struct umm_space;

/** One mapping. */
struct hmm_smap {
	uint64_t start, end; /* bytes, end exclusive */
	uint64_t key;        /* of protection; 0: the ordinary one */
	const char *flags;   /* of two letters each, with a space before it; @each's */
};

/**
 * hmm_smaps_each() - ask of all mappings, in order, until @each returns false
 * @space: own; what is read goes through its arena.
 *
 * May be called with libc's locks held by somebody who waits for the caller.  0, -ENOMEM, or what
 * open(2) or read(2) says; @each may have been called then.
 */
int hmm_smaps_each(struct umm_space *space, bool (*each)(void *priv, const struct hmm_smap *map), void *priv);

#endif
