/* SPDX-License-Identifier: MIT */
/*
 * Which pages the CPU has written to, for all who have copies of them.
 *
 * DOC: one bit, many askers
 *
 * The kernel keeps one bit a page, whether it was written to since it was last
 * write-protected; who asks and protects anew takes it from all others.  So what
 * is found is kept, as the number of the call that found it: each asker compares
 * with the number of the call before which it copied.  Protecting comes first and
 * copying later, so a write in between is found by the next call.
 *
 * Devices that are coherent keep account of writes by the same bit, from a fork
 * on (linked.c): what it says is noted for them before it is taken.
 */
#include <errno.h>
#include <string.h>

#include "hmm/internal.h"

/* mm->lock held.  NULL: no memory. */
static uint64_t *stamps_of(struct hmm_mm *mm, uint64_t addr)
{
	struct hmm_leaf *leaf = hmm_leaf_get(mm, addr);

	if (leaf && !leaf->stamp)
		leaf->stamp = umm_alloc(mm->space, HMM_LEAF_PAGES * sizeof(*leaf->stamp));
	return leaf ? leaf->stamp : NULL;
}

static int stamp_set(struct hmm_mm *mm, uint64_t start, uint64_t end, uint64_t now)
{
	for (uint64_t at = start; at < end;) {
		uint64_t *s = stamps_of(mm, at), z = (at | ((1ull << HMM_LEAF_SHIFT) - 1)) + 1;

		if (!s)
			return -ENOMEM;
		for (; at < end && at < z; at += UMM_PAGE)
			s[hmm_leaf_index(at)] = now;
	}
	return 0;
}

/* A page that mremap() has taken somewhere keeps its bit; to who asks about that place it is a new one. */
void hmm_written_moved(struct hmm_mm *mm, uint64_t start, uint64_t end)
{
	uint64_t now = ++mm->written;

	for (uint64_t at = start; at < end;) {
		struct hmm_leaf *leaf = hmm_leaf_find(mm, at);
		uint64_t z = (at | ((1ull << HMM_LEAF_SHIFT) - 1)) + 1;

		for (z = z < end ? z : end; at < z && leaf && leaf->stamp; at += UMM_PAGE)
			leaf->stamp[hmm_leaf_index(at)] = now;
		at = z;
	}
}

/* Only its own page table says who writes to it; memory of others' is written to by them, too. */
static bool can_tell(const struct umm_vma *v)
{
	return !(v->flags & (UMM_VMA_SHARED | UMM_VMA_FILE | UMM_VMA_SPECIAL | UMM_VMA_HUGETLB));
}

static void watch(struct hmm_mm *mm, uint64_t start, uint64_t end)
{
	struct umm_vma v;

	for (uint64_t at = start; at < end && !umm_vma_next(mm->space, at, &v) && v.start < end; at = v.end)
		if (can_tell(&v))
			umm_space_watch(mm->space, v.start, v.end - v.start);
}

/* Of one mapping.  -EPERM: it is not watched. */
static int take_mapping(struct hmm_mm *mm, uint64_t start, uint64_t end, uint64_t now)
{
	uint64_t walked = start;
	int rc = 0;

	for (uint64_t at = start; at < end && !rc; at = walked) {
		struct umm_page_run runs[64];
		int n = umm_page_take_written(mm->space, at, end, runs, 64, &walked);

		if (n < 0 || walked <= at)
			return n < 0 ? n : -EPERM;
		for (int i = 0; i < n && !rc; i++)
			rc = stamp_set(mm, runs[i].start, runs[i].end, now);
	}
	return rc;
}

/* Where nobody knows it may have been: holes, and what cannot be watched.  @watched: what can be is. */
static int take_written(struct hmm_mm *mm, uint64_t start, uint64_t end, bool watched, uint64_t now)
{
	int rc = 0;

	for (uint64_t at = start, z; at < end && !rc; at = z) {
		struct umm_vma v;

		z = end;
		rc = -ENOENT;
		if (!umm_vma_next(mm->space, at, &v)) {
			z = v.start > at ? v.start : v.end;
			z = z < end ? z : end;
			if (v.start <= at && can_tell(&v))
				rc = take_mapping(mm, at, z, now);
		}
		if (rc == -EPERM && !watched)
			return rc;
		if (rc)
			rc = stamp_set(mm, at, z, now);
	}
	return rc;
}

/* With no lock: nobody waits for whoever @stamp is away from, and what is written meanwhile are higher numbers. */
static int give_stamps(struct hmm_mm *mm, uint64_t start, uint64_t end, uint64_t stamp[])
{
	for (uint64_t at = start, z; at < end; at = z) {
		struct hmm_leaf *leaf = hmm_leaf_find(mm, at);
		const uint64_t *s = leaf ? leaf->stamp : NULL;

		z = (at | ((1ull << HMM_LEAF_SHIFT) - 1)) + 1;
		z = z < end ? z : end;
		if (!s)
			return -ENOMEM;
		memcpy(stamp + (at - start) / UMM_PAGE, s + hmm_leaf_index(at), (z - at) / UMM_PAGE * sizeof(*s));
	}
	return 0;
}

int hmm_written(struct hmm_mm *mm, uint64_t start, uint64_t end, uint64_t stamp[], uint64_t *now)
{
	bool watched = false;
	sigset_t old;
	int rc;

	if (start > end || (start | end) % UMM_PAGE || end > HMM_ADDR_END)
		return -EINVAL;
	signals_block(&old);
	for (;;) {
		umm_evlock_shared(&mm->space->ctl->evlock);
		pthread_mutex_lock(&mm->lock);
		hmm_coherent_settle(mm, start, end);
		*now = ++mm->written;
		rc = take_written(mm, start, end, watched, *now);
		for (uint64_t at = start; at < end && !rc; at = (at | ((1ull << HMM_LEAF_SHIFT) - 1)) + 1)
			rc = stamps_of(mm, at) ? 0 : -ENOMEM;
		pthread_mutex_unlock(&mm->lock);
		umm_evlock_unshared(&mm->space->ctl->evlock);
		if (rc != -EPERM)
			break;
		watch(mm, start, end);
		watched = true;
	}
	if (!rc)
		rc = give_stamps(mm, start, end, stamp);
	signals_restore(&old);
	return rc;
}
