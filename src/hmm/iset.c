/* SPDX-License-Identifier: MIT */
/* A set of disjoint address intervals in a sorted array. */
#include "hmm/iset.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Index of the first interval that ends above @addr. */
static unsigned find(const struct hmm_iset *s, uint64_t addr)
{
	unsigned lo = 0, hi = s->n;

	while (lo < hi) {
		unsigned mid = lo + (hi - lo) / 2;

		if (s->v[mid].end <= addr)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo;
}

static void give_back(struct hmm_iset *s)
{
	if (s->space)
		umm_free(s->space, s->v, s->room * sizeof(*s->v));
	else
		free(s->v);
}

static int make_room(struct hmm_iset *s)
{
	if (s->n < s->room)
		return 0;
	unsigned room = s->room ? 2 * s->room : 16;
	struct hmm_interval *v = s->space ? umm_alloc(s->space, room * sizeof(*v)) : malloc(room * sizeof(*v));
	if (!v)
		return -ENOMEM;
	if (s->n)
		memcpy(v, s->v, s->n * sizeof(*v));
	give_back(s);
	s->v = v;
	s->room = room;
	return 0;
}

int hmm_iset_add(struct hmm_iset *s, uint64_t start, uint64_t end)
{
	if (start >= end)
		return 0;
	/* All that overlap or touch become one. */
	unsigned i = find(s, start ? start - 1 : 0), j = i;

	for (; j < s->n && s->v[j].start <= end; j++) {
		if (s->v[j].start < start)
			start = s->v[j].start;
		if (s->v[j].end > end)
			end = s->v[j].end;
	}
	if (i == j) {
		if (make_room(s))
			return -ENOMEM;
		memmove(&s->v[i + 1], &s->v[i], (s->n - i) * sizeof(s->v[0]));
		s->n++;
	} else if (j > i + 1) {
		memmove(&s->v[i + 1], &s->v[j], (s->n - j) * sizeof(s->v[0]));
		s->n -= j - i - 1;
	}
	s->v[i] = (struct hmm_interval){start, end};
	return 0;
}

int hmm_iset_del(struct hmm_iset *s, uint64_t start, uint64_t end)
{
	int rc = 0;
	unsigned i = find(s, start);

	if (start >= end)
		return 0;
	if (i < s->n && s->v[i].start < start && s->v[i].end > end) {
		uint64_t tail = s->v[i].end;

		if (make_room(s))
			return -ENOMEM; /* as it was */
		s->v[i].end = start;
		memmove(&s->v[i + 2], &s->v[i + 1], (s->n - i - 1) * sizeof(s->v[0]));
		s->v[i + 1] = (struct hmm_interval){end, tail};
		s->n++;
		return 0;
	}
	if (i < s->n && s->v[i].start < start)
		s->v[i++].end = start;
	unsigned j = i;
	while (j < s->n && s->v[j].end <= end)
		j++;
	if (j < s->n && s->v[j].start < end)
		s->v[j].start = end;
	if (j != i)
		memmove(&s->v[i], &s->v[j], (s->n - j) * sizeof(s->v[0]));
	s->n -= j - i;
	return rc;
}

bool hmm_iset_covers(const struct hmm_iset *s, uint64_t start, uint64_t end)
{
	unsigned i = find(s, start);

	return i < s->n && s->v[i].start <= start && s->v[i].end >= end;
}

bool hmm_iset_meets(const struct hmm_iset *s, uint64_t start, uint64_t end)
{
	unsigned i = find(s, start);

	return i < s->n && s->v[i].start < end;
}

const struct hmm_interval *hmm_iset_next(const struct hmm_iset *s, uint64_t addr)
{
	unsigned i = find(s, addr);

	return i < s->n ? &s->v[i] : NULL;
}

void hmm_iset_clear(struct hmm_iset *s)
{
	give_back(s);
	*s = (struct hmm_iset){.space = s->space};
}
