/* SPDX-License-Identifier: MIT */
/*
 * Who is told before an address space changes.
 *
 * DOC: the sequence
 *
 * A space has one sequence number.  It is odd while at least one invalidation
 * runs that found somebody, else even; it moves on when the last one ends.
 * Each notifier carries the number of the invalidation that it saw last, put
 * there by its callback under the driver's lock.  So
 *
 *	n->seq == space's	n is being invalidated: umm_read_begin() sleeps
 *	n->seq != what umm_read_begin() gave
 *				n was invalidated since: umm_read_retry()
 *
 * umm_read_begin() may run between the moment in which the number becomes odd
 * and the callback, and then does not sleep.  That is fine: the driver's lock
 * decides.  If the callback got it first, umm_read_retry() sees the new number;
 * if the reader did, the callback drops what the reader has just put in.
 *
 * A number, once odd, stays while any invalidation runs, so a reader of n may
 * sleep a little longer than the invalidation of n lasts, until none runs.
 *
 * DOC: insertion and removal while an invalidation runs
 *
 * Callbacks run without the lock, and begin finds its way by the key (start,
 * address) of the notifier that it told last, and through it only where nothing
 * was inserted or removed meanwhile.  So the tree may change at any time, also
 * from inside a callback.  One that is inserted
 * meanwhile carries the odd number: its readers sleep until no invalidation
 * runs, whether or not it was told.  One that is removed is told no more, and
 * removal waits only for callbacks of that same notifier in other threads: the
 * list of running callbacks, which lives on the stacks of those that run them,
 * says whether there are any.
 *
 * Memory is allocated for insertions only, without the lock (itree.c).
 */
#include <assert.h>
#include <errno.h>
#include <time.h>
#include <unistd.h>

#include "umm/clock.h"
#include "umm/itree.h"
#include "umm/notifier_internal.h"
#include "umm/signals.h"
#include "umm/sys.h"

/* Above every user address on the machines there are (five-level page tables). */
#define USER_END ((uint64_t)1 << 56)

struct umm_notifier_call {
	const struct umm_notifier *n;
	pthread_t thread;
	struct umm_notifier_call *next;
};

void umm_notifiers_init(struct umm_notifiers *nots)
{
	*nots = (struct umm_notifiers){0};
	atomic_init(&nots->seq, 2);
	/* With default attributes neither can fail. */
	pthread_mutex_init(&nots->lock, NULL);
	pthread_cond_init(&nots->changed, NULL);
}

/* Little-endian, as the machines are on which this is built. */
static _Atomic uint32_t *seq_word(struct umm_notifiers *nots)
{
	return (_Atomic uint32_t *)&nots->seq;
}

static void end_locked(struct umm_notifiers *nots)
{
	assert(nots->active);
	if (--nots->active || !(nots->seq & 1))
		return;
	nots->seq++;
	if (atomic_load(&nots->sleepers))
		sys_futex_wake(seq_word(nots), INT32_MAX);
}

static int begin(struct umm_notifiers *nots, const struct umm_change *change)
{
	struct umm_notifier_call call, **link;
	struct umm_itree_way way;
	struct umm_notifier *n;
	int rc = 0;

	pthread_mutex_lock(&nots->lock);
	nots->active++;
	n = umm_itree_first(&nots->tree, change->start, change->end, &way);
	if (!n)
		goto out;

	nots->seq |= 1;
	call.thread = pthread_self();
	call.next = nots->calls;
	nots->calls = &call;
	while (n && !rc) {
		const struct umm_notifier *key = n;
		uint64_t key_start = n->start, seq = nots->seq, changes = nots->changes;
		bool done;

		call.n = n;
		pthread_mutex_unlock(&nots->lock);
		done = n->ops->invalidate(n, change, seq);
		/* From here on n may be gone, unless the tree is what it was. */
		pthread_mutex_lock(&nots->lock);
		call.n = NULL;
		if (nots->removing)
			pthread_cond_broadcast(&nots->changed);
		/* Only a change that is not blockable may be refused; else it goes on all the same. */
		if (!done && !change->blockable)
			rc = -EAGAIN;
		n = changes == nots->changes
			    ? umm_itree_after(&nots->tree, change->start, change->end, &way)
			    : umm_itree_next(&nots->tree, change->start, change->end, key_start, key, &way);
	}
	for (link = &nots->calls; *link != &call;)
		link = &(*link)->next;
	*link = call.next;
	if (rc)
		end_locked(nots);
out:
	pthread_mutex_unlock(&nots->lock);
	return rc;
}

static void end(struct umm_notifiers *nots)
{
	pthread_mutex_lock(&nots->lock);
	end_locked(nots);
	pthread_mutex_unlock(&nots->lock);
}

int umm_invalidate_begin(struct umm_space *space, const struct umm_change *change)
{
	return begin(umm_space_notifiers(space), change);
}

void umm_invalidate_end(struct umm_space *space, const struct umm_change *change)
{
	end(umm_space_notifiers(space));
}

static bool called_elsewhere(const struct umm_notifiers *nots, const struct umm_notifier *n)
{
	for (const struct umm_notifier_call *c = nots->calls; c; c = c->next)
		if (c->n == n && !pthread_equal(c->thread, pthread_self()))
			return true;
	return false;
}

/* Under the lock, which is dropped while waiting. */
static void detach(struct umm_notifiers *nots, struct umm_notifier *n)
{
	umm_itree_remove(&nots->tree, n);
	nots->changes++;
	nots->removing++;
	while (called_elsewhere(nots, n))
		pthread_cond_wait(&nots->changed, &nots->lock);
	nots->removing--;
	n->space = NULL;
}

int umm_notifier_insert(struct umm_notifier *n, struct umm_space *space, uint64_t start, uint64_t len,
			const struct umm_notifier_ops *ops)
{
	uint64_t unaligned = (uint64_t)sysconf(_SC_PAGESIZE) - 1;
	struct umm_notifiers *nots;
	sigset_t old;
	int rc;

	if (!n || !space || !ops || !ops->invalidate)
		return -EINVAL;
	if (!len || ((start | len) & unaligned) || start > USER_END || len > USER_END - start)
		return -EINVAL;

	nots = umm_space_notifiers(space);
	*n = (struct umm_notifier){.start = start, .end = start + len, .ops = ops};
	signals_block(&old);
	rc = umm_itree_lock_for_one(&nots->tree, space, &nots->lock);
	if (rc)
		goto out;
	n->space = space;
	if (nots->active) {
		/* What runs may concern n and will not tell it. */
		nots->seq |= 1;
		n->seq = nots->seq;
	} else {
		n->seq = nots->seq - 1;
	}
	umm_itree_insert(&nots->tree, n);
	nots->changes++;
	pthread_mutex_unlock(&nots->lock);
out:
	signals_restore(&old);
	return rc;
}

void umm_notifier_remove(struct umm_notifier *n)
{
	struct umm_space *space = n->space;
	struct umm_itree_chunk *unused;
	struct umm_notifiers *nots;
	sigset_t old;

	if (!space)
		return;
	nots = umm_space_notifiers(space);
	signals_block(&old);
	pthread_mutex_lock(&nots->lock);
	detach(nots, n);
	unused = umm_itree_unused(&nots->tree, false);
	pthread_mutex_unlock(&nots->lock);
	umm_itree_free(space, unused);
	signals_restore(&old);
}

/* How long it is until @ns of CLOCK_MONOTONIC; false: no time. */
static bool time_until(uint64_t ns, struct timespec *left)
{
	uint64_t now = umm_now_ns();

	if (now >= ns)
		return false;
	*left = (struct timespec){(time_t)((ns - now) / 1000000000u), (long)((ns - now) % 1000000000u)};
	return true;
}

int umm_read_begin_until(struct umm_notifier *n, uint64_t deadline_ns, uint64_t *seqp)
{
	/* What n carries was the space's before: who sees the one sees no older one of the other. */
	uint64_t seq = *seqp = __atomic_load_n(&n->seq, __ATOMIC_ACQUIRE);
	struct umm_notifiers *nots;
	int rc = 0;

	if (!n->space)
		return 0;
	nots = umm_space_notifiers(n->space);
	if (seq != atomic_load(&nots->seq))
		return 0;
	atomic_fetch_add(&nots->sleepers, 1);
	while (!rc && seq == atomic_load(&nots->seq)) {
		struct timespec left;

		if (deadline_ns && !time_until(deadline_ns, &left))
			rc = -ETIME;
		else
			sys_futex_wait(seq_word(nots), (uint32_t)seq, deadline_ns ? &left : NULL);
	}
	atomic_fetch_sub(&nots->sleepers, 1);
	return rc;
}

uint64_t umm_read_begin(struct umm_notifier *n)
{
	uint64_t seq;

	umm_read_begin_until(n, 0, &seq);
	return seq;
}

bool umm_read_retry(const struct umm_notifier *n, uint64_t seq)
{
	return __atomic_load_n(&n->seq, __ATOMIC_RELAXED) != seq;
}

void umm_notifier_set_seq(struct umm_notifier *n, uint64_t seq)
{
	__atomic_store_n(&n->seq, seq, __ATOMIC_RELEASE);
}

void umm_notifiers_release(struct umm_space *space)
{
	struct umm_notifiers *nots = umm_space_notifiers(space);
	const struct umm_change all = {.event = UMM_EVENT_RELEASE, .end = USER_END, .blockable = true};
	struct umm_itree_way way;
	struct umm_notifier *n;
	sigset_t old;

	signals_block(&old);
	begin(nots, &all);
	pthread_mutex_lock(&nots->lock);
	while ((n = umm_itree_first(&nots->tree, all.start, all.end, &way))) {
		const struct umm_notifier_ops *ops = n->ops;

		detach(nots, n);
		pthread_mutex_unlock(&nots->lock);
		if (ops->release)
			ops->release(n);
		pthread_mutex_lock(&nots->lock);
	}
	end_locked(nots);
	pthread_mutex_unlock(&nots->lock);
	signals_restore(&old);
}

void umm_notifiers_destroy(struct umm_space *space)
{
	struct umm_notifiers *nots = umm_space_notifiers(space);

	umm_notifiers_release(space);
	umm_itree_free(space, umm_itree_unused(&nots->tree, true));
	pthread_cond_destroy(&nots->changed);
	pthread_mutex_destroy(&nots->lock);
}
