/* SPDX-License-Identifier: MIT */
/*
 * Which memory is managed: found by looking, whatever made it.
 *
 * Every private anonymous mapping is registered as a whole, also those that
 * are not moved from (read-only, executable), because a mapping of which only a
 * part is registered breaks mremap().
 */
#include <errno.h>
#include <sys/mman.h>

#include "hmm/internal.h"
#include "umm/inside.h"

static bool manageable(const struct umm_vma *v)
{
	return !(v->flags & (UMM_VMA_SHARED | UMM_VMA_FILE | UMM_VMA_SPECIAL | UMM_VMA_STACK | UMM_VMA_HUGETLB));
}

/* mm->lock held.  Where, from @start on, the next memory begins that somebody else serves; UINT64_MAX: nowhere. */
static uint64_t foreign_from(const struct hmm_mm *mm, uint64_t start)
{
	const struct hmm_interval *f = hmm_iset_next(&mm->foreign, start), *o = hmm_iset_next(&mm->foreign_old, start);
	uint64_t a = f ? f->start : UINT64_MAX, b = o ? o->start : UINT64_MAX;

	return a < b ? a : b;
}

/*
 * Mappings side by side are registered by one call: each takes the lock that
 * faults of the program wait for.  But not too many.
 */
#define RUN_MAPPINGS 128u
#define REGISTER_TRIES 3u
#define GROWN_MAX 64u

struct run {
	uint64_t start, end;
	unsigned n;
};

/* Both ends: whatever has been registered and then went sends an event. */
static int is_registered(int uffd, const struct umm_vma *v)
{
	int rc = umm_inside_registered(uffd, v->start);

	return rc ? rc : umm_inside_registered(uffd, v->end - UMM_PAGE);
}

/*
 * Event lock shared.  Registers from @start to *@end, and on: what is registered
 * in part only cannot be moved by mremap(), and the last mapping may have grown
 * since the walk looked, or grow now.  Up to the next mapping all that there is is
 * meant, or to @foreign, which is somebody else's and may be mapped by now.  What
 * it has grown by is added to *@end.
 */
static int register_whole(struct hmm_mm *mm, uint64_t start, uint64_t *end, uint64_t foreign)
{
	int uffd = mm->space->uffd, rc;
	struct umm_vma next;
	unsigned tries = 0, grown = 0;

	for (;;) {
		uint64_t limit = foreign;

		rc = umm_vma_next(mm->space, *end, &next);
		if (!rc && next.start < *end) { /* has grown */
			if (!manageable(&next) || next.start < start || next.end > foreign || ++grown == GROWN_MAX)
				return -EAGAIN;
			*end = next.end;
			continue;
		}
		if (!rc && next.start < limit)
			limit = next.start;
		if (limit == UINT64_MAX)
			limit = *end;
		rc = umm_uffd_register(uffd, start, limit - start, UFFDIO_REGISTER_MODE_MISSING);
		/* If not for the mappings themselves, it is for what has been mapped behind them just now: look again.
		 */
		if (!rc || limit == *end || ++tries == REGISTER_TRIES)
			break;
	}
	return rc ? umm_uffd_register(uffd, start, *end - start, UFFDIO_REGISTER_MODE_MISSING) : 0;
}

/*
 * Event lock shared.  A mapping that was not registered goes and comes without
 * a word: between the look at it and its registration it may have been unmapped,
 * and another one mapped there right after, not registered.  What is moved out of
 * such memory comes back as zeros.  So look again: a registered and another
 * mapping do not merge, so each is registered all over or not at all (it may have
 * become one with others that are); and what changes from now on sends an event.  @done: how many of them are.
 */
static int register_run(struct hmm_mm *mm, const struct run *run, unsigned *done)
{
	uint64_t start = run->start, end = run->end, limit, at = start;
	int uffd = mm->space->uffd;
	struct umm_vma now;
	int rc = 0;

	*done = 0;
	/* Handed over since the walk looked: hmm_hands_off() says so under the lock that we hold shared. */
	pthread_mutex_lock(&mm->lock);
	limit = foreign_from(mm, start);
	pthread_mutex_unlock(&mm->lock);
	if (limit < end)
		return -EAGAIN;

	rc = register_whole(mm, start, &end, limit);
	/*
	 * -EAGAIN is also a fork whose event nobody has read: the child was made before
	 * this was registered, and does not have it so.  It gets its records from ours when
	 * the event is read, which our lock puts off; ours must not say otherwise.
	 */
	while (!rc && at < end) {
		rc = umm_vma_next(mm->space, at, &now) || now.start > at || !manageable(&now)
			     ? -EAGAIN /* the next walk finds it as it is */
			     : is_registered(uffd, &now);
		if (!rc) {
			at = now.end;
			++*done;
		} else if (rc == -ENOENT) {
			rc = -EAGAIN;
		}
	}
	if (*done)
		hmm_overtaken_over(mm);
	pthread_mutex_lock(&mm->lock);
	if (*done) {
		int full = hmm_iset_add(&mm->registered, start, at);

		rc = full ? full : rc;
		atomic_fetch_add(&mm->h->registrations, *done);
		atomic_fetch_add(&mm->registrations, *done);
	} else if (rc == -EBUSY && run->n == 1) {
		hmm_iset_add(&mm->foreign, start, end);
	}
	pthread_mutex_unlock(&mm->lock);
	return rc;
}

/*
 * Nobody tells us when somebody else's userfaultfd lets go of a range, or its
 * mapping goes: what was found or made foreign is asked for again after a
 * while.  Not at once: a range that was handed over is registered by its new
 * owner only some time later.
 */
static void foreign_age(struct hmm_mm *mm)
{
	uint64_t now = umm_now_ns();

	pthread_mutex_lock(&mm->lock);
	if (now - mm->foreign_aged_ns > HMM_FOREIGN_NS) {
		struct hmm_iset next = {.space = mm->foreign.space};

		hmm_iset_clear(&mm->foreign_old);
		mm->foreign_old = mm->foreign;
		mm->foreign = next;
		mm->foreign_aged_ns = now;
	}
	pthread_mutex_unlock(&mm->lock);
}

static bool is_unforked(const struct hmm_mm *mm)
{
	return atomic_load(&mm->space->ctl->no_fork_events) && mm->inside;
}

/*
 * Without FORK events a child would find zeros where pages are away: better it
 * finds no mapping.  So that comes first, and what it cannot be had for is not
 * managed; nor is anything that is new in the middle of a fork that has been
 * allowed (rest; the lock is held while that is arranged).
 */
static int manage(struct hmm_mm *mm, const struct run *run, unsigned *done)
{
	bool unforked = is_unforked(mm);
	int rc = 0;

	*done = 0;
	if (unforked) {
		pthread_mutex_lock(&mm->out_lock);
		rc = atomic_load(&mm->rest) ? -EAGAIN : hmm_unforked_add(mm, run->start, run->end);
	}
	if (!rc) {
		umm_evlock_shared(&mm->space->ctl->evlock);
		rc = register_run(mm, run, done);
		umm_evlock_unshared(&mm->space->ctl->evlock);
	}
	if (unforked)
		pthread_mutex_unlock(&mm->out_lock);
	return rc;
}

/* What a walk has done: something has become managed; something that should be has not. */
struct outcome {
	bool more, left;
};

/* One mapping is in the way of all: each by itself.  Returns -ESRCH, or 0. */
static int manage_each(struct hmm_mm *mm, const struct run *run, struct outcome *o)
{
	struct umm_vma v;
	unsigned done;
	int rc;

	for (uint64_t at = run->start; at < run->end; at = v.end) {
		if (umm_vma_next(mm->space, at, &v) || v.end > run->end) {
			o->left = true;
			return 0;
		}
		if (!manageable(&v))
			continue;
		rc = manage(mm, &(struct run){v.start, v.end, 1}, &done);
		if (rc == -ESRCH)
			return -ESRCH;
		o->more |= done > 0;
		o->left |= rc != 0;
	}
	return 0;
}

/* Returns -ESRCH, or 0.  @run is empty then. */
static int manage_all(struct hmm_mm *mm, struct run *run, struct outcome *o)
{
	unsigned done;
	int rc;

	if (!run->n)
		return 0;
	rc = manage(mm, run, &done);
	o->more |= done > 0;
	if (rc && rc != -EAGAIN && rc != -ESRCH && run->n > 1)
		rc = manage_each(mm, run, o);
	o->left |= rc != 0;
	*run = (struct run){0};
	return rc == -ESRCH ? rc : 0;
}

int hmm_discover(struct hmm_mm *mm, uint64_t least, bool *left)
{
	struct outcome o = {.left = least > 0};
	struct run run = {0};
	bool unforked = is_unforked(mm);
	struct umm_vma v;
	uint64_t at = 0;
	int rc;

	if (left)
		*left = true;
	if (!atomic_load(&mm->armed))
		return 0; /* asked for by a hook, while a fork still runs that asked nobody */
	foreign_age(mm);
	while (!(rc = umm_vma_next(mm->space, at, &v))) {
		unsigned most;
		bool known;

		at = v.end;
		if (v.end - v.start < least || !manageable(&v) || (v.start < mm->keep_end && v.end > mm->keep_start))
			continue;
		pthread_mutex_lock(&mm->lock);
		known = hmm_iset_covers(&mm->registered, v.start, v.end) ||
			hmm_iset_meets(&mm->foreign, v.start, v.end) ||
			hmm_iset_meets(&mm->foreign_old, v.start, v.end);
		pthread_mutex_unlock(&mm->lock);
		if (known)
			continue;
		/* What is marked must be what was looked at; and by text each look takes a while, under the event lock.
		 */
		most = unforked || mm->space->maps_text ? 1 : RUN_MAPPINGS;
		if ((run.end != v.start || run.n >= most) && manage_all(mm, &run, &o))
			return -ESRCH;
		if (!run.n)
			run.start = v.start;
		run.end = v.end;
		run.n++;
	}
	if (manage_all(mm, &run, &o))
		return -ESRCH;
	o.left |= rc != -ENOENT; /* the walk did not get to the end */
	/* Marks of what was there before, not registered, went without an event. */
	if (o.more && atomic_load(&mm->space->ctl->marked) && !atomic_load(&mm->space->ctl->no_fork_events))
		o.left |= hmm_marks_read(mm) != 0;
	if (left)
		*left = o.left;
	return 0;
}

void hmm_forget(struct hmm_mm *mm, uint64_t start, uint64_t end)
{
	pthread_mutex_lock(&mm->lock);
	hmm_iset_del(&mm->registered, start, end);
	hmm_iset_del(&mm->foreign, start, end);
	hmm_iset_del(&mm->foreign_old, start, end);
	hmm_iset_del(&mm->stuck, start, end);
	pthread_mutex_unlock(&mm->lock);
}

int hmm_hands_off(struct hmm_mm *mm, uint64_t start, uint64_t end)
{
	struct umm_evlock *evlock = &mm->space->ctl->evlock;
	bool theirs;
	int rc;

	pthread_mutex_lock(&mm->out_lock); /* nothing goes out meanwhile */
	rc = hmm_restore(mm, start, end);
	if (rc)
		goto out;
	/* Nobody would take that mark off again. */
	if (atomic_load(&mm->space->ctl->no_fork_events) && !mm->h->opt.linked && mm->inside)
		rc = mm->inside->advise(mm->inside_priv, start, end - start, MADV_DOFORK);
	if (rc && rc != -ENOMEM) /* a hole is refused below */
		goto out;
	/* An agent that died inside the lock never lets go of it. */
	if (!umm_evlock_excl_unless(evlock, mm->space->gone, mm->space->priv)) {
		rc = -ESRCH;
		goto out;
	}
	pthread_mutex_lock(&mm->lock);
	theirs = !hmm_iset_meets(&mm->registered, start, end) &&
		 (hmm_iset_meets(&mm->foreign, start, end) || hmm_iset_meets(&mm->foreign_old, start, end));
	pthread_mutex_unlock(&mm->lock);
	/*
	 * The kernel lets go of whatever is registered there, be it by another
	 * descriptor; and we may have registered what is not in the records yet
	 * (register_run()).
	 */
	rc = theirs ? 0 : umm_uffd_unregister(mm->space->uffd, start, end - start);
	if (rc)
		goto unlock; /* part of it is unmapped, or somebody else's: it is what it was */
	/* What could not be brought back keeps its poison; to us it is no more than any other page. */
	hmm_residency_drop(mm, start, end);
	/* Under the event lock: a walk that found it before must not take it back (register_run()). */
	pthread_mutex_lock(&mm->lock);
	rc = hmm_iset_del(&mm->registered, start, end);
	if (!rc)
		rc = hmm_iset_add(&mm->foreign, start, end);
	pthread_mutex_unlock(&mm->lock);
unlock:
	umm_evlock_unexcl(evlock);
out:
	pthread_mutex_unlock(&mm->out_lock);
	return rc;
}
