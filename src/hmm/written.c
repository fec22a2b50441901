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
 * What is dropped is noted when its event is read, and goes later, unseen where a
 * page table goes with it.  Who is given a number in between would copy what is about
 * to go, and never hear of it again: so nobody is, as long as that may be, nor for
 * half a second.  What is in doubt still then the next call tells of, whatever it sees.
 *
 * DOC: what is written to all the time
 *
 * That a page is watched costs the CPU a fault when it writes to it next: more than
 * it costs to copy the page.  So where the whole of a leaf was written to between
 * calls, and again, it is not watched for some calls, each of which takes it for
 * granted that all has been written to: what is not sure counts as written.  Then
 * it is watched once more, and if that finds the same, longer.  Whoever writes once
 * and launches often is not taken for one of these: two calls in a row must find
 * all of it written to.
 *
 * Devices that are coherent keep account of writes by the same bit, from a fork
 * on (linked.c): what it says is noted for them before it is taken.
 */
#include <errno.h>
#include <string.h>

#include "hmm/internal.h"
#include "umm/sys.h"

#define FULL_ENOUGH 2u /* calls in a row that found all of a leaf written to: it will be so again */
#define SPELL_FIRST 4u /* calls that take it for granted */
#define SPELL_MOST 16u
#define DROP_NS 1000000l

/* mm->lock held.  NULL: no memory. */
static uint64_t *stamps_of(struct hmm_mm *mm, uint64_t addr)
{
	struct hmm_leaf *leaf = hmm_leaf_get(mm, addr);

	if (leaf && !leaf->stamp)
		leaf->stamp = umm_alloc(mm->space, HMM_LEAF_PAGES * sizeof(*leaf->stamp));
	return leaf ? leaf->stamp : NULL;
}

static uint64_t leaf_end(uint64_t addr)
{
	return (addr | ((1ull << HMM_LEAF_SHIFT) - 1)) + 1;
}

/* Those of [start, end) were written to, as call @now says. */
static int stamp_set(struct hmm_mm *mm, uint64_t start, uint64_t end, uint64_t now)
{
	for (uint64_t at = start; at < end;) {
		uint64_t *s = stamps_of(mm, at), z = leaf_end(at);
		struct hmm_leaf *leaf = hmm_leaf_find(mm, at);

		if (!s)
			return -ENOMEM;
		if (leaf->asked != now)
			leaf->found = 0;
		leaf->asked = now;
		for (; at < end && at < z; at += UMM_PAGE) {
			s[hmm_leaf_index(at)] = now;
			leaf->found++;
		}
		__atomic_store_n(&leaf->latest, now, __ATOMIC_RELEASE);
	}
	return 0;
}

/* A page that mremap() has taken somewhere keeps its bit; to who asks about that place it is a new one. */
void hmm_written_moved(struct hmm_mm *mm, uint64_t start, uint64_t end)
{
	uint64_t now = ++mm->written;
	struct hmm_leaf *leaf;

	for (uint64_t at = start, z; (leaf = hmm_leaf_next(mm, at, end)); at = z) {
		z = leaf_end(leaf->base);
		if (!leaf->stamp)
			continue;
		for (at = at > leaf->base ? at : leaf->base; at < z && at < end; at += UMM_PAGE)
			leaf->stamp[hmm_leaf_index(at)] = now;
		__atomic_store_n(&leaf->latest, now, __ATOMIC_RELEASE);
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

/* Is every page of the leaf that begins at @base there, and written to? */
static bool all_written(struct hmm_mm *mm, uint64_t base)
{
	uint64_t end = leaf_end(base), at = base, walked;
	struct umm_page_run runs[8];
	int n = umm_page_scan_written(mm->space, base, end, runs, 8, &walked);

	for (int i = 0; i < n && runs[i].start == at; i++)
		at = runs[i].end;
	return at == end;
}

/* Is there anything to ask goes_unwatched() about? */
static bool may_go_unwatched(struct hmm_mm *mm, uint64_t at)
{
	const struct hmm_leaf *leaf = hmm_leaf_find(mm, at);

	return leaf && leaf->stamp && (leaf->taken || (leaf->watched && leaf->full >= FULL_ENOUGH - 1));
}

/* Is the leaf that begins at @at written to as a whole, without a look at each page; or all the time, as it seems? */
static bool goes_unwatched(struct hmm_mm *mm, uint64_t at, uint64_t end)
{
	struct hmm_leaf *leaf =
		leaf_end(at) - at == 1ull << HMM_LEAF_SHIFT && leaf_end(at) <= end ? hmm_leaf_find(mm, at) : NULL;

	if (!leaf || !leaf->stamp)
		return false;
	if (leaf->taken) {
		leaf->taken--;
		return true;
	}
	if (!leaf->watched || leaf->full < FULL_ENOUGH - 1 || !all_written(mm, at))
		return false;
	leaf->watched = false;
	leaf->spell = leaf->spell ? (leaf->spell * 2 < SPELL_MOST ? leaf->spell * 2 : SPELL_MOST) : SPELL_FIRST;
	leaf->taken = leaf->spell;
	return true;
}

/* All of the leaves of [start, end) has just been asked about. */
static void look_back(struct hmm_mm *mm, uint64_t start, uint64_t end, uint64_t now)
{
	for (uint64_t at = start; at < end; at = leaf_end(at)) {
		struct hmm_leaf *leaf = hmm_leaf_find(mm, at);
		bool whole = leaf_end(at) - at == 1ull << HMM_LEAF_SHIFT && leaf_end(at) <= end;

		if (!leaf)
			continue;
		if (!whole || !leaf->watched) {
			leaf->watched = whole;
			continue;
		}
		if (leaf->asked == now && leaf->found == HMM_LEAF_PAGES) {
			leaf->full = leaf->full < FULL_ENOUGH ? leaf->full + 1 : leaf->full;
		} else {
			leaf->full = leaf->spell = 0;
		}
	}
}

/* Of one mapping, or a part of it.  -EPERM: it is not watched. */
static int take_watched(struct hmm_mm *mm, uint64_t start, uint64_t end, uint64_t now)
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
	if (!rc)
		look_back(mm, start, end, now);
	return rc;
}

static int take_mapping(struct hmm_mm *mm, uint64_t start, uint64_t end, uint64_t now)
{
	int rc = 0;

	for (uint64_t at = start, z; at < end && !rc; at = z) {
		uint64_t free = at;

		while (free < end && goes_unwatched(mm, free, end))
			free = leaf_end(free);
		if (free > at) {
			z = free;
			rc = stamp_set(mm, at, z, now);
			continue;
		}
		/* This one is to be looked at, and what follows up to where the next is not. */
		for (z = leaf_end(at); z < end && !may_go_unwatched(mm, z);)
			z = leaf_end(z);
		z = z < end ? z : end;
		rc = take_watched(mm, at, z, now);
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

/*
 * With no lock: nobody waits for whoever @stamp is away from, and what is written
 * meanwhile are higher numbers.
 */
static int give_stamps(struct hmm_mm *mm, uint64_t start, uint64_t end, uint64_t since[], uint64_t stamp[])
{
	for (uint64_t at = start, z; at < end; at = z) {
		struct hmm_leaf *leaf = hmm_leaf_find(mm, at);
		const uint64_t *s = leaf ? leaf->stamp : NULL;
		uint64_t latest;

		z = leaf_end(at);
		z = z < end ? z : end;
		if (!s)
			return -ENOMEM;
		latest = __atomic_load_n(&leaf->latest, __ATOMIC_ACQUIRE);
		if (!since || !*since || latest > *since)
			memcpy(stamp + (at - start) / UMM_PAGE, s + hmm_leaf_index(at),
			       (z - at) / UMM_PAGE * sizeof(*s));
		if (since)
			*since++ = latest;
	}
	return 0;
}

/* What was being dropped yet may have gone since, unseen: the next call says that all was written to. */
static void doubt(struct hmm_mm *mm, uint64_t start, uint64_t end)
{
	umm_evlock_shared(&mm->space->ctl->evlock);
	pthread_mutex_lock(&mm->lock);
	stamp_set(mm, start, end, ++mm->written); /* there is room, or this call had failed */
	pthread_mutex_unlock(&mm->lock);
	umm_evlock_unshared(&mm->space->ctl->evlock);
}

int hmm_written_since(struct hmm_mm *mm, uint64_t start, uint64_t end, uint64_t since[], uint64_t stamp[],
		      uint64_t *now)
{
	uint64_t deadline = umm_now_ns() + HMM_DROP_MAX_NS;
	bool watched = false, dropping = false;
	sigset_t old;
	int rc;

	if (start > end || (start | end) % UMM_PAGE || end > HMM_ADDR_END)
		return -EINVAL;
	signals_block(&old);
	for (;;) {
		umm_evlock_shared(&mm->space->ctl->evlock);
		dropping = umm_quarantined(mm->space, start, end);
		if (dropping && umm_now_ns() < deadline) {
			umm_evlock_unshared(&mm->space->ctl->evlock);
			/* Not libc's: a thread can be cancelled in it. */
			sys2(SYS_nanosleep, &(struct timespec){.tv_nsec = DROP_NS}, NULL);
			continue;
		}
		/* Its quarantine may have ended before it has gone: by then, or before this call. */
		dropping |= umm_quarantined_before(mm->space, start, end);
		pthread_mutex_lock(&mm->lock);
		hmm_coherent_settle(mm, start, end);
		*now = ++mm->written;
		/* There is room before anything is taken: what could not be noted would never be told again. */
		rc = 0;
		for (uint64_t at = start; at < end && !rc; at = leaf_end(at))
			rc = stamps_of(mm, at) ? 0 : -ENOMEM;
		if (!rc)
			rc = take_written(mm, start, end, watched, *now);
		pthread_mutex_unlock(&mm->lock);
		umm_evlock_unshared(&mm->space->ctl->evlock);
		if (rc != -EPERM)
			break;
		watch(mm, start, end);
		watched = true;
	}
	if (!rc)
		rc = give_stamps(mm, start, end, since, stamp);
	if (!rc && dropping)
		doubt(mm, start, end);
	signals_restore(&old);
	return rc;
}

int hmm_written(struct hmm_mm *mm, uint64_t start, uint64_t end, uint64_t stamp[], uint64_t *now)
{
	return hmm_written_since(mm, start, end, NULL, stamp, now);
}
