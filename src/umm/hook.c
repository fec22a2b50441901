/* SPDX-License-Identifier: MIT */
/*
 * Around a call that changes an address space.
 *
 * DOC: begin, end
 *
 * umm_invalidate_begin() and _end() stand around it: callbacks have returned when
 * the call begins, and who reads the range sleeps until it has ended.  All signals
 * are blocked meanwhile: a handler that used a mirror would wait for the thread
 * that it has interrupted.
 *
 * What the kernel drops without a word must not be away, or it would come back
 * later: it is brought back first, and in quarantine from then on until the call
 * has ended, so that nobody moves it out in between.
 *
 * The one lock that is held across the call, shared, keeps the engine from
 * moving mappings of its own accord at that moment (take.c).  The call may wait
 * for the monitor to read its event; the monitor takes no such lock, nor waits for
 * who does.
 *
 * Whoever waits for that lock exclusively keeps new calls out, or might wait for ever.
 * But a fork holds it while handlers of others run, an allocator's for one, which may make
 * such a call or wait for a lock whose owner makes one: so nobody waits in its queue while
 * somebody forks, and nobody begins to fork while somebody is in the queue.
 *
 * fork() has returned when its event has been read.  What the child inherits is read off this
 * process's mappings after that, so whoever has forked goes on when the event has been applied.
 */
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <time.h>

#include "umm/internal.h"
#include "umm/sys.h"

_Static_assert(sizeof(sigset_t) <= sizeof(((struct umm_hook *)0)->reserved), "room for the signal mask");

static const struct umm_change fork_change = {.event = UMM_EVENT_FORK, .end = 1ull << 56, .blockable = true};

static void block(struct umm_hook *h)
{
	sigset_t old;

	signals_block(&old);
	memcpy(h->reserved, &old, sizeof(old));
}

static void unblock(const struct umm_hook *h)
{
	sigset_t old;

	memcpy(&old, h->reserved, sizeof(old));
	signals_restore(&old);
}

/* Not libc's: a thread can be cancelled in it. */
static void nap(void)
{
	sys2(SYS_nanosleep, &(struct timespec){.tv_nsec = 50000}, NULL);
}

void umm_layout_excl(struct umm_space *space)
{
	for (;;) {
		atomic_fetch_add(&space->queued, 1);
		if (!atomic_load(&space->forks))
			break;
		atomic_fetch_sub(&space->queued, 1);
		nap();
	}
	pthread_rwlock_wrlock(&space->layout);
	atomic_fetch_sub(&space->queued, 1);
}

/* Before any callback runs: who moves pages holds a lock that comes before theirs. */
static void bring_back(struct umm_space *space, const struct umm_space_ops *ops, const struct umm_change *c)
{
	if (!ops || !ops->bring_back || !ops->holds)
		return;
	/* Also where nothing is held: somebody may be about to. */
	umm_quarantine_hold(space, c->start, c->end);
	if (!ops->holds(space->priv, c->start, c->end))
		return;
	ops->bring_back(space->priv, c->start, c->end);
}

void umm_hook_begin(struct umm_hook *h)
{
	const struct umm_space_ops *ops;
	int cancel;

	if (!h->space || !h->n)
		return;
	ops = h->space->ops;
	/* A mapping of which a part is managed moves half-way and fails: make it uniform first. */
	for (unsigned i = 0; ops && ops->uniform && i < h->n; i++)
		if (h->change[i].event == UMM_EVENT_REMAP)
			ops->uniform(h->space->priv, h->change[i].start, h->change[i].end);
	block(h);
	/* Who was cancelled in a callback would hold it for ever. */
	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel);
	for (unsigned i = 0; h->untold && i < h->n; i++)
		bring_back(h->space, ops, &h->change[i]);
	for (unsigned i = 0; i < h->n; i++)
		umm_invalidate_begin(h->space, &h->change[i]);
	pthread_setcancelstate(cancel, NULL);
	pthread_rwlock_rdlock(&h->space->layout);
	h->mark = umm_quarantine_mark(h->space);
}

void umm_hook_end(struct umm_hook *h)
{
	if (!h->space || !h->n)
		return;
	pthread_rwlock_unlock(&h->space->layout);
	for (unsigned i = h->n; i--;) {
		if (h->dropped)
			umm_quarantine_lift(h->space, h->change[i].start, h->change[i].end, h->mark);
		/* Also where the engine was closed meanwhile. */
		if (h->untold) {
			umm_quarantine_let_go(h->space, h->change[i].start, h->change[i].end);
			umm_quarantine_end(h->space, h->change[i].start, h->change[i].end);
		}
		umm_invalidate_end(h->space, &h->change[i]);
	}
	unblock(h);
}

void umm_hook_fork(struct umm_hook *h)
{
	struct umm_ctl *ctl;

	block(h);
	if (!h->space)
		return;
	umm_invalidate_begin(h->space, &fork_change);
	atomic_fetch_add(&h->space->forks, 1);
	while (atomic_load(&h->space->queued))
		nap();
	pthread_rwlock_rdlock(&h->space->layout);
	/* What has been unmapped by then is to be off the records: something else may be there. */
	ctl = __atomic_load_n(&h->space->ctl, __ATOMIC_ACQUIRE);
	if (ctl)
		umm_evlock_applied(&ctl->evlock);
	if (h->space->ops && h->space->ops->forking)
		h->space->ops->forking(h->space->priv);
}

void umm_hook_forked(struct umm_hook *h, bool child)
{
	if (h->space && child) {
		umm_space_abandon(h->space);
	} else if (h->space) {
		struct umm_ctl *ctl = __atomic_load_n(&h->space->ctl, __ATOMIC_ACQUIRE);

		umm_invalidate_end(h->space, &fork_change);
		/* Under the lock: the engine moves no mappings meanwhile. */
		if (ctl)
			umm_evlock_applied(&ctl->evlock);
		pthread_rwlock_unlock(&h->space->layout);
		atomic_fetch_sub(&h->space->forks, 1);
	}
	h->space = NULL;
	unblock(h);
}
