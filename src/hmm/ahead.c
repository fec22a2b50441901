/* SPDX-License-Identifier: MIT */
/*
 * Fetching what a walk is about to ask for.
 *
 * DOC: ahead of a walk
 *
 * Who walks through memory that is on a disk faults once a cluster, and waits for
 * all of it: the disk has nothing to do while the program runs, nor the program
 * while the disk does.  So where a device may sleep (HMM_DEV_MAYBLOCK) and faults
 * walk on, the clusters behind the one that is asked for are fetched by threads
 * that do nothing else, some at a time.
 *
 *	a fault of a walk	queues what lies up to AHEAD_PAGES before it
 *	a thread		takes a piece, of at most a cluster; waits for room;
 *				"under way"; brings it back as a fault would; "under
 *				way" no more; wakes those who were found waiting for it
 *	a fault in a piece	that is under way is left to it: what is placed there
 *				wakes whoever waits, and what is not is woken in the end,
 *				and is served when it comes again.  One that is not is
 *				served at once: the room is waited for by a piece, and
 *				may come to a fault sooner
 *
 * All of it is a favour: whatever is in the way (no room, a change of the space, an
 * error of the device) ends a piece, and a fault finds out what it was.  A space that is
 * doomed has no piece: it is before its first fault is served.
 *
 * Locking: the lock here is the innermost, and nothing is called under it.  A piece
 * has a reference to its space.
 */
#include <errno.h>
#include <stdlib.h>

#include "hmm/internal.h"

#define THREADS 2u
#define PIECES 32u
#define AHEAD_PAGES 256u
#define AHEAD_PART 64u /* of the budget, at most */

struct piece {
	struct hmm_mm *mm; /* NULL: none; else with a reference to its space */
	uint64_t start;
	uint64_t npages;
	bool taken;
	bool under_way;
	bool wanted; /* somebody waits for a page of it */
};

struct hmm_ahead {
	pthread_mutex_t lock;
	pthread_cond_t work;
	struct piece piece[PIECES];
	unsigned next; /* the one whose turn it is */
	unsigned most; /* pages before a fault */
	bool stop;
	pthread_t thread[THREADS];
	unsigned nthreads;
};

static struct piece *piece_next(struct hmm_ahead *a)
{
	for (unsigned i = 0; i < PIECES; i++) {
		struct piece *p = &a->piece[(a->next + i) % PIECES];

		if (!p->mm || p->taken)
			continue;
		a->next = (unsigned)(p - a->piece) + 1;
		return p;
	}
	return NULL;
}

/* Is the page at @addr on a device that takes its time? */
static bool is_slow(struct hmm_mm *mm, uint64_t addr)
{
	struct umm_evlock *evlock = &mm->space->ctl->evlock;
	bool slow = false;

	umm_evlock_shared(evlock);
	struct hmm_leaf *leaf = hmm_leaf_find(mm, addr);
	if (leaf) {
		pthread_mutex_lock(&leaf->lock);
		hmm_entry_t e = leaf->e[hmm_leaf_index(addr)];

		slow = hmm_entry_state(e) == HMM_DEVICE &&
		       mm->h->chain.dev[hmm_entry_tier(e)]->ops->caps & HMM_DEV_MAYBLOCK;
		pthread_mutex_unlock(&leaf->lock);
	}
	umm_evlock_unshared(evlock);
	return slow;
}

/* Room for what is away of a piece, which may have to be waited for. */
static void piece_charge(struct hmm_mm *mm, uint64_t start, uint64_t npages)
{
	uint64_t there = 0;

	while (there < npages && !is_slow(mm, start + there * UMM_PAGE))
		there++;
	if (there < npages)
		hmm_budget_charge(mm, npages - there);
}

static void piece_fetch(struct hmm_mm *mm, uint64_t start, uint64_t npages)
{
	for (uint64_t done = 0; done < npages && !atomic_load(&mm->dead);) {
		uint64_t addr = start + done * UMM_PAGE;
		int rc = is_slow(mm, addr) ? hmm_bring_ahead(mm, addr, (unsigned)(npages - done)) : 0;

		if (rc < 0)
			return;
		/* What is there, or is to be asked for by a touch, is passed over. */
		done += rc ? (uint64_t)rc : 1;
		atomic_fetch_add(&mm->h->pages_ahead, (uint64_t)rc);
	}
}

static void *ahead_main(void *arg)
{
	struct hmm *h = arg;
	struct hmm_ahead *a = h->ahead;

	pthread_mutex_lock(&a->lock);
	while (!a->stop) {
		struct piece *p = piece_next(a);

		if (!p) {
			pthread_cond_wait(&a->work, &a->lock);
			continue;
		}
		p->taken = true;
		struct piece mine = *p;
		pthread_mutex_unlock(&a->lock);
		piece_charge(mine.mm, mine.start, mine.npages);
		pthread_mutex_lock(&a->lock);
		p->under_way = true;
		pthread_mutex_unlock(&a->lock);
		piece_fetch(mine.mm, mine.start, mine.npages);
		pthread_mutex_lock(&a->lock);
		mine.wanted = p->wanted;
		*p = (struct piece){0};
		pthread_mutex_unlock(&a->lock);
		if (mine.wanted)
			umm_uffd_wake(mine.mm->space->uffd, mine.start, mine.npages * UMM_PAGE);
		umm_space_put(mine.mm->space);
		pthread_mutex_lock(&a->lock);
	}
	pthread_mutex_unlock(&a->lock);
	return NULL;
}

bool hmm_ahead_comes(struct hmm_mm *mm, uint64_t addr)
{
	struct hmm_ahead *a = mm->h->ahead;
	bool comes = false;

	if (!a)
		return false;
	pthread_mutex_lock(&a->lock);
	for (unsigned i = 0; i < PIECES && !comes; i++) {
		struct piece *p = &a->piece[i];

		comes = p->mm == mm && p->under_way && addr - p->start < p->npages * UMM_PAGE;
		p->wanted |= comes;
	}
	pthread_mutex_unlock(&a->lock);
	return comes;
}

uint64_t hmm_ahead_ask(struct hmm_mm *mm, uint64_t from, uint64_t page)
{
	struct hmm_ahead *a = mm->h->ahead;
	uint64_t end = a ? page + a->most : 0;

	if (from >= end || !is_slow(mm, from * UMM_PAGE))
		return from;
	pthread_mutex_lock(&a->lock);
	for (unsigned i = 0; i < PIECES && from < end && !a->stop; i++) {
		uint64_t left = HMM_LEAF_PAGES - from % HMM_LEAF_PAGES;
		uint64_t n = left < mm->h->cluster_max ? left : mm->h->cluster_max;
		struct piece *p = &a->piece[(a->next + i) % PIECES];

		if (p->mm)
			continue;
		if (end - from < n)
			break; /* the next time, as a whole */
		umm_space_get(mm->space);
		*p = (struct piece){.mm = mm, .start = from * UMM_PAGE, .npages = n};
		from += n;
		pthread_cond_signal(&a->work);
	}
	pthread_mutex_unlock(&a->lock);
	return from;
}

void hmm_ahead_start(struct hmm *h)
{
	struct hmm_ahead *a;
	pthread_attr_t attr;
	uint32_t caps = 0;

	for (unsigned t = 0; t < h->chain.n; t++)
		caps |= h->chain.dev[t]->ops->caps;
	a = caps & HMM_DEV_MAYBLOCK && !h->opt.linked ? calloc(1, sizeof(*a)) : NULL;
	if (!a)
		return;
	pthread_mutex_init(&a->lock, NULL);
	pthread_cond_init(&a->work, NULL);
	a->most = AHEAD_PAGES;
	if (h->opt.budget && h->opt.budget / UMM_PAGE / AHEAD_PART < a->most)
		a->most = (unsigned)(h->opt.budget / UMM_PAGE / AHEAD_PART);
	h->ahead = a;
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, UMM_THREAD_STACK);
	/* Those that cannot be had are done without. */
	while (a->nthreads < THREADS && !pthread_create(&a->thread[a->nthreads], &attr, ahead_main, h))
		a->nthreads++;
	pthread_attr_destroy(&attr);
	if (!a->nthreads)
		hmm_ahead_free(h); /* nobody would take what is asked for, and its space would stay for ever */
}

void hmm_ahead_stop(struct hmm *h)
{
	struct hmm_ahead *a = h->ahead;

	if (!a)
		return;
	pthread_mutex_lock(&a->lock);
	a->stop = true;
	pthread_cond_broadcast(&a->work);
	pthread_mutex_unlock(&a->lock);
	for (unsigned i = 0; i < a->nthreads; i++)
		pthread_join(a->thread[i], NULL);
	a->nthreads = 0; /* it may have been stopped before it is ended */
	for (unsigned i = 0; i < PIECES; i++) {
		struct hmm_mm *mm = a->piece[i].mm;

		a->piece[i] = (struct piece){0};
		if (mm)
			umm_space_put(mm->space);
	}
}

void hmm_ahead_free(struct hmm *h)
{
	struct hmm_ahead *a = h->ahead;

	if (!a)
		return;
	pthread_cond_destroy(&a->work);
	pthread_mutex_destroy(&a->lock);
	free(a);
	h->ahead = NULL;
}
