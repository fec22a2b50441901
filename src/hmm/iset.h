/* SPDX-License-Identifier: MIT */
/* A set of disjoint address intervals, sorted, merged where they touch. */
#ifndef HMM_ISET_H
#define HMM_ISET_H

#include <stdbool.h>
#include <stdint.h>

#include "umm.h"

struct hmm_interval {
	uint64_t start, end;
};

struct hmm_iset {
	struct hmm_interval *v;
	unsigned n, room;
	struct umm_space *space; /* whose memory v is of; NULL: malloc's */
};

/** 0 or -ENOMEM; then the set is as before. */
int hmm_iset_add(struct hmm_iset *s, uint64_t start, uint64_t end);
/** Removing may split an interval and so needs room: 0 or -ENOMEM; then more than asked is removed. */
int hmm_iset_del(struct hmm_iset *s, uint64_t start, uint64_t end);
bool hmm_iset_covers(const struct hmm_iset *s, uint64_t start, uint64_t end);
bool hmm_iset_meets(const struct hmm_iset *s, uint64_t start, uint64_t end);
/** The first interval that ends above @addr, or NULL. */
const struct hmm_interval *hmm_iset_next(const struct hmm_iset *s, uint64_t addr);
void hmm_iset_clear(struct hmm_iset *s);

#endif
