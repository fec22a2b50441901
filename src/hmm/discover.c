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
 * Event lock shared.  A mapping that was not registered goes and comes without
 * a word: between the look at it and its registration a part may have been
 * unmapped, and mapped again right after, not registered.  What is moved out of
 * such memory comes back as zeros.  So look again: only one mapping from @start
 * to @end can be registered all over, as a registered and another one do not
 * merge; and what changes from now on sends an event.
 */
static int register_piece(struct hmm_mm *mm, uint64_t start, uint64_t end)
{
	int uffd = mm->space->uffd;
	struct umm_vma now;
	uint64_t limit;
	int rc = 0;

	/* Handed over since the walk looked: hmm_hands_off() says so under the lock that we hold shared. */
	pthread_mutex_lock(&mm->lock);
	limit = foreign_from(mm, start);
	pthread_mutex_unlock(&mm->lock);
	if (limit < end)
		return -EAGAIN;

	/*
	 * It may grow in the meantime, and registered in part it could not be
	 * moved by mremap(): up to the next mapping all that there is is meant,
	 * or to what is somebody else's, which may be mapped by now.
	 */
	if (!umm_vma_next(mm->space, end, &now) && now.start < limit)
		limit = now.start;
	rc = limit > end && limit != UINT64_MAX
		     ? umm_uffd_register(uffd, start, limit - start, UFFDIO_REGISTER_MODE_MISSING)
		     : -EINVAL;
	if (rc) /* something else has been mapped there */
		rc = umm_uffd_register(uffd, start, end - start, UFFDIO_REGISTER_MODE_MISSING);
	if (!rc && (umm_vma_next(mm->space, start, &now) || now.start != start || now.end < end))
		rc = -EAGAIN; /* the next walk finds it as it is */
	/*
	 * A fork whose event nobody has read: the child was made before this was
	 * registered, and does not have it so.  It gets its records from ours when
	 * the event is read, which our lock puts off; ours must not say otherwise.
	 */
	if (!rc && umm_inside_registered(uffd, start))
		rc = -EAGAIN;
	if (!rc) {
		hmm_overtaken_over(mm);
		end = now.end;
	}
	pthread_mutex_lock(&mm->lock);
	if (!rc) {
		rc = hmm_iset_add(&mm->registered, start, end);
		atomic_fetch_add(&mm->h->registrations, 1);
		atomic_fetch_add(&mm->registrations, 1);
	} else if (rc == -EBUSY) {
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
	uint64_t now = hmm_now_ns();

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

/*
 * Without FORK events a child would find zeros where pages are away: better it
 * finds no mapping.  So that comes first, and what it cannot be had for is not
 * managed; nor is anything that is new in the middle of a fork that has been
 * allowed (rest; the lock is held while that is arranged).
 */
static int manage(struct hmm_mm *mm, const struct umm_vma *v)
{
	bool unforked = atomic_load(&mm->space->ctl->no_fork_events) && mm->inside;
	int rc = 0;

	if (unforked) {
		pthread_mutex_lock(&mm->out_lock);
		rc = atomic_load(&mm->rest)
			     ? -EAGAIN
			     : hmm_unforked_add(mm, v->start, v->end);
	}
	if (!rc) {
		umm_evlock_shared(&mm->space->ctl->evlock);
		rc = register_piece(mm, v->start, v->end);
		umm_evlock_unshared(&mm->space->ctl->evlock);
	}
	if (unforked)
		pthread_mutex_unlock(&mm->out_lock);
	return rc;
}

int hmm_discover(struct hmm_mm *mm, uint64_t least)
{
	struct umm_vma v;
	uint64_t at = 0;
	bool more = false;

	if (!atomic_load(&mm->armed))
		return 0; /* asked for by a hook, while a fork still runs that asked nobody */
	foreign_age(mm);
	while (!umm_vma_next(mm->space, at, &v)) {
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
		int rc = manage(mm, &v);
		if (rc == -ESRCH)
			return rc;
		more |= !rc;
	}
	/* Marks of what was there before, not registered, went without an event. */
	if (more && atomic_load(&mm->space->ctl->marked) && !atomic_load(&mm->space->ctl->no_fork_events))
		hmm_marks_read(mm);
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
	 * (register_piece()).
	 */
	rc = theirs ? 0 : umm_uffd_unregister(mm->space->uffd, start, end - start);
	if (rc)
		goto unlock; /* part of it is unmapped, or somebody else's: it is what it was */
	/* What could not be brought back keeps its poison; to us it is no more than any other page. */
	hmm_residency_drop(mm, start, end);
	/* Under the event lock: a walk that found it before must not take it back (register_piece()). */
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
