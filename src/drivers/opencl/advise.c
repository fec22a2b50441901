/* SPDX-License-Identifier: MIT */
/* What a program knows better: where memory is wanted, and when; and memory that is made for it. */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "drivers/opencl/opencl.h"

static struct advice *room(struct hmm_cl *cl)
{
	unsigned more = cl->advices_room ? 2 * cl->advices_room : 16;
	struct advice *p;

	if (cl->nadvices + 2 <= cl->advices_room)
		return cl->advice;
	p = umm_alloc(cl->space, more * sizeof(*p));
	if (!p)
		return NULL;
	if (cl->nadvices)
		memcpy(p, cl->advice, cl->nadvices * sizeof(*p));
	umm_free(cl->space, cl->advice, cl->advices_room * sizeof(*p));
	cl->advice = p;
	cl->advices_room = more;
	return p;
}

/* What there is of [start, end) goes, for something else to come. */
static int cut(struct hmm_cl *cl, uint64_t start, uint64_t end)
{
	for (unsigned i = 0; i < cl->nadvices; i++) {
		struct advice *a = &cl->advice[i], rest = *a;

		if (a->start >= end || a->end <= start)
			continue;
		rest.start = end;
		if (a->start < start && a->end > end) {
			a->end = start;
			if (!room(cl))
				return -ENOMEM;
			cl->advice[cl->nadvices++] = rest;
		} else if (a->start < start) {
			a->end = start;
		} else if (a->end > end) {
			a->start = end;
		} else {
			*a = cl->advice[--cl->nadvices];
			i--;
		}
	}
	return 0;
}

unsigned advice_at(struct hmm_cl *cl, uint64_t addr, uint64_t *end)
{
	unsigned found = HMM_CL_NORMAL;

	for (unsigned i = 0; i < cl->nadvices; i++) {
		const struct advice *a = &cl->advice[i];

		if (a->start > addr && a->start < *end)
			*end = a->start;
		if (a->start > addr || a->end <= addr)
			continue;
		found = a->advice;
		*end = a->end < *end ? a->end : *end;
	}
	return found;
}

int hmm_cl_advise(struct hmm_cl *cl, const void *pointer, size_t length, unsigned advice)
{
	uint64_t start = page_down((uintptr_t)pointer), end = (uintptr_t)pointer + length;
	sigset_t old;
	int rc;

	if (advice > HMM_CL_READ_MOSTLY || !length)
		return -EINVAL;
	if (end < start || page_up(end) > HMM_ADDR_END)
		return -EOVERFLOW;
	end = page_up(end);
	pthread_mutex_lock(&cl->gate);
	cl_lock(cl, &old);
	cl->moves++; /* what is there may not be where it is wanted */
	cl_unlock(cl, &old);
	rc = room(cl) ? cut(cl, start, end) : -ENOMEM;
	if (!rc && advice != HMM_CL_NORMAL) {
		if (room(cl))
			cl->advice[cl->nadvices++] = (struct advice){start, end, advice};
		else
			rc = -ENOMEM;
	}
	pthread_mutex_unlock(&cl->gate);
	return rc;
}

int hmm_cl_prefetch(struct hmm_cl *cl, const void *pointer, size_t length, unsigned access)
{
	uint64_t start = (uintptr_t)pointer, end = start + length;
	struct region *r;
	int rc;

	if (!length || (access && !access_is_good(access)))
		return -EINVAL;
	if (end < start || page_up(end) > HMM_ADDR_END)
		return -EOVERFLOW;
	if (!access)
		return hmm_migrate_to_system(cl->mm, &cl->dev, page_down(start), page_up(end), NULL);
	pthread_mutex_lock(&cl->gate);
	rc = check_mapped(cl, start, end, access & HMM_CL_WRITE);
	region_turn(cl);
	if (!rc)
		rc = region_get(cl, page_down(start), page_up(end), start, &r);
	if (!rc && (access & HMM_CL_WRITE))
		rc = bring_move(cl, r, page_up(start), page_down(end), access & ACCESS_ALL);
	if (!rc)
		rc = bring_copy(cl, r, start, end, NULL);
	pthread_mutex_unlock(&cl->gate);
	return rc;
}

/* Pages before the memory, so that it can be in huge pages; one is nobody's in any case. */
static size_t room_before(size_t len)
{
	return len >= HUGE_BYTES ? HUGE_BYTES : PAGE;
}

int hmm_cl_alloc(struct hmm_cl *cl, size_t size, void **pp)
{
	size_t len = page_up(size), before = room_before(len), all = len + before + PAGE;
	char *p, *at;

	if (!size)
		return -EINVAL;
	if (len < size || all < len)
		return -ENOMEM;
	/* A page on either side that nobody can use: the kernel would make one mapping of neighbours. */
	p = mmap(NULL, all, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (p == MAP_FAILED)
		return -ENOMEM;
	at = p + PAGE;
	if (before == HUGE_BYTES)
		at = (char *)(((uintptr_t)at + HUGE_BYTES - 1) & ~(HUGE_BYTES - 1));
	if (mprotect(at, len, PROT_READ | PROT_WRITE)) {
		munmap(p, all);
		return -ENOMEM;
	}
	/* What is too much goes: hmm_cl_free() is not told how much it is. */
	if (at - PAGE > p)
		munmap(p, (size_t)(at - PAGE - p));
	if (at + len + PAGE < p + all)
		munmap(at + len + PAGE, (size_t)(p + all - (at + len + PAGE)));
	if (before == HUGE_BYTES)
		madvise(at, len, MADV_HUGEPAGE);
	*pp = at;
	return 0;
}

void hmm_cl_free(struct hmm_cl *cl, void *p, size_t size)
{
	if (!p)
		return;
	launch_wait(cl, (uintptr_t)p, page_up((uintptr_t)p + size));
	munmap((char *)p - PAGE, page_up(size) + 2 * PAGE);
}
