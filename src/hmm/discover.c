/* SPDX-License-Identifier: MIT */
/*
 * Which memory is managed: found by looking, whatever made it.
 *
 * Every private anonymous mapping is registered as a whole, also those that
 * are not moved from (read-only, executable), because a mapping of which only a
 * part is registered breaks mremap().
 *
 * DOC: a walk that comes to very many
 *
 * What is not registered grows unseen, and as fast as memory can be touched; what
 * is registered faults, and waits for room.  To look at a mapping and to register it
 * takes less than a microsecond, where a call registers many; to make sure that it was
 * (register_run()) takes three.  So from some number of new mappings on a walk
 * registers those that follow as it comes to them, and makes sure of all of them when
 * it has got to the end.  The first is no more than that: it enters nothing, and
 * what has become of a mapping meanwhile is for the second to find, which asks for
 * everything anew.  That a mapping is registered and in no record is nothing new: so
 * it is until the next walk, whenever something could not be made sure of.
 *
 * What is registered all over, by the records, is not looked at: whatever of it goes
 * sends an event, and is none of the records' from then on.
 */
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "hmm/internal.h"
#include "umm/inside.h"

static bool manageable(const struct umm_vma *v)
{
	return !(v->flags & (UMM_VMA_SHARED | UMM_VMA_FILE | UMM_VMA_SPECIAL | UMM_VMA_STACK | UMM_VMA_HUGETLB)) &&
	       v->end <= HMM_ADDR_END;
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
#define MANY_MAPPINGS RUN_MAPPINGS
#define REGISTER_TRIES 3u
#define GROWN_MAX 64u

struct run {
	uint64_t start, end;
	unsigned n;
};

/* What a walk has come to, and has done. */
struct walk {
	struct run run;        /* mappings side by side, not registered as far as is known */
	uint64_t row;          /* where those begin that lie side by side with it, in runs before it, too */
	struct run *early;     /* runs that were registered, to be made sure of */
	unsigned nearly, room; /* of those */
	unsigned found;        /* mappings in runs that are through */
	unsigned aside;        /* in those that were left for another walk, being small */
	bool more;             /* something has become managed */
	bool left;             /* something that should be has not */
};

/* Both ends: whatever has been registered and then went sends an event. */
static int is_registered(int uffd, const struct umm_vma *v)
{
	int rc = umm_inside_registered(uffd, v->start);

	return rc ? rc : umm_inside_registered(uffd, v->end - UMM_PAGE);
}

/* What was mapped there just now, was registered with what is before it, and is none of ours to serve. */
static void let_go_behind(struct hmm_mm *mm, uint64_t at, uint64_t limit)
{
	struct umm_vma v;

	for (; at < limit && !umm_vma_next(mm->space, at, &v) && v.start < limit; at = v.end)
		if (!manageable(&v))
			umm_uffd_unregister(mm->space->uffd, v.start, v.end - v.start);
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

	/* Another one may lie there by now, of which this is a part. */
	rc = umm_vma_next(mm->space, start, &next);
	if (rc || next.start < start)
		return rc && rc != -ENOENT ? rc : -EAGAIN;
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
		if (!rc)
			let_go_behind(mm, *end, limit);
		/* If not for the mappings themselves, it is for what has been mapped behind them just now: look again.
		 */
		if (!rc || limit == *end || ++tries == REGISTER_TRIES)
			break;
	}
	return rc ? umm_uffd_register(uffd, start, *end - start, UFFDIO_REGISTER_MODE_MISSING) : 0;
}

/* The same, unless it was handed over since the walk looked: hmm_hands_off() says so under the lock that we hold
 * shared.
 */
static int register_ours(struct hmm_mm *mm, uint64_t start, uint64_t *end)
{
	uint64_t foreign;

	pthread_mutex_lock(&mm->lock);
	foreign = foreign_from(mm, start);
	pthread_mutex_unlock(&mm->lock);
	return foreign < *end ? -EAGAIN : register_whole(mm, start, end, foreign);
}

/*
 * Event lock shared.  Refused though it is there: what nobody may watch, as MAP_DROPPABLE memory.  One that was just
 * gone, and has been mapped anew since, is refused as well, so each refusal comes between two looks.
 */
static bool nobody_may_watch(struct hmm_mm *mm, uint64_t start, uint64_t end)
{
	for (unsigned i = 0; i < REGISTER_TRIES; i++) {
		struct umm_vma v;

		if (umm_vma_next(mm->space, start, &v) || v.start != start || v.end != end || !manageable(&v))
			return false;
		if (umm_uffd_register(mm->space->uffd, start, end - start, UFFDIO_REGISTER_MODE_MISSING) != -EINVAL)
			return false;
	}
	return true;
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
	uint64_t start = run->start, end = run->end, at = start;
	int uffd = mm->space->uffd;
	struct umm_vma now;
	bool foreign;
	int rc = 0;

	*done = 0;
	rc = register_ours(mm, start, &end);
	foreign = run->n == 1 && (rc == -EBUSY || (rc == -EINVAL && nobody_may_watch(mm, start, end)));
	/*
	 * -EAGAIN is also a fork whose event nobody has read: the child was made before
	 * this was registered, and does not have it so.  It gets its records from ours when
	 * the event is read, which our lock puts off; ours must not say otherwise.
	 */
	while (!rc && at < end) {
		bool there = !umm_vma_next(mm->space, at, &now) && now.start <= at;

		rc = there && manageable(&now) ? is_registered(uffd, &now)
					       : -EAGAIN; /* the next walk finds it as it is */
		/* What has come to be there since the walk looked, and is none of ours to register. */
		if (there && !manageable(&now))
			umm_uffd_unregister(uffd, now.start, now.end - now.start);
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
	} else if (foreign) {
		/* Nothing is left to be done about it, or a program that sleeps would be looked at each time it ages.
		 */
		rc = hmm_iset_add(&mm->foreign, start, end);
	}
	pthread_mutex_unlock(&mm->lock);
	return rc;
}

/*
 * Nobody tells us when somebody else's userfaultfd lets go of a range, or its
 * mapping goes: what was found or made foreign, or is refused to everybody, is asked
 * for again after a while.  Not at once: a range that was handed over is registered by its new
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

/* One mapping is in the way of all: each by itself.  Returns -ESRCH, or 0. */
static int manage_each(struct hmm_mm *mm, const struct run *run, struct walk *w)
{
	struct umm_vma v;
	unsigned done;
	int rc;

	for (uint64_t at = run->start; at < run->end; at = v.end) {
		if (umm_vma_next(mm->space, at, &v) || v.end > run->end) {
			w->left = true;
			return 0;
		}
		if (!manageable(&v))
			continue;
		rc = manage(mm, &(struct run){v.start, v.end, 1}, &done);
		if (rc == -ESRCH)
			return -ESRCH;
		w->more |= done > 0;
		w->left |= rc != 0;
	}
	return 0;
}

/* Returns -ESRCH, or 0. */
static int manage_all(struct hmm_mm *mm, const struct run *run, struct walk *w)
{
	unsigned done;
	int rc;

	rc = manage(mm, run, &done);
	w->more |= done > 0;
	if (rc && rc != -EAGAIN && rc != -ESRCH && run->n > 1)
		rc = manage_each(mm, run, w);
	w->left |= rc != 0;
	return rc == -ESRCH ? rc : 0;
}

/*
 * A run of a while ago: of what it was, some may have gone, or have become another's, and the rest is there.
 * Returns -ESRCH, or 0.
 */
static int manage_late(struct hmm_mm *mm, const struct run *run, struct walk *w)
{
	unsigned done;
	int rc = manage(mm, run, &done);

	w->more |= done > 0;
	if (rc && rc != -ESRCH)
		rc = manage_each(mm, run, w);
	pthread_mutex_lock(&mm->lock);
	hmm_iset_del(&mm->early, run->start, run->end); /* the records have it, or it is none of ours */
	pthread_mutex_unlock(&mm->lock);
	return rc;
}

/* Registers the run, if it can be, and keeps it in mind.  False: there is no memory for that. */
static bool register_early(struct hmm_mm *mm, struct walk *w)
{
	uint64_t end = w->run.end;
	int rc;

	if (w->nearly == w->room) {
		unsigned room = w->room ? 2 * w->room : 64;
		struct run *more = realloc(w->early, room * sizeof(*more));

		if (!more)
			return false;
		w->early = more;
		w->room = room;
	}
	pthread_mutex_lock(&mm->lock);
	rc = hmm_iset_add(&mm->early, w->run.start, w->run.end);
	pthread_mutex_unlock(&mm->lock);
	if (rc)
		return false;
	w->early[w->nearly++] = w->run;
	umm_evlock_shared(&mm->space->ctl->evlock);
	register_ours(mm, w->run.start, &end); /* why not, if not, is seen when it is asked for again */
	umm_evlock_unshared(&mm->space->ctl->evlock);
	return true;
}

/*
 * The run of a walk is at its end.  Of less than @least it is left where it is, unless that have been very many.
 * Returns -ESRCH, or 0.
 */
static int run_end(struct hmm_mm *mm, struct walk *w, uint64_t least, bool singly)
{
	struct run run = w->run;

	if (!run.n)
		return 0;
	if (run.n == RUN_MAPPINGS || run.end - (singly ? run.start : w->row) >= least ||
	    (!singly && w->aside > MANY_MAPPINGS)) {
		w->found += run.n;
		if (singly || w->found <= MANY_MAPPINGS || !register_early(mm, w)) {
			w->run.n = 0;
			return manage_all(mm, &run, w);
		}
	} else {
		w->aside += run.n;
	}
	w->run.n = 0;
	return 0;
}

/* The first mapping that ends above @addr and of which there is no record that says that it is registered. */
static int next_unregistered(struct hmm_mm *mm, uint64_t addr, struct umm_vma *v)
{
	const struct hmm_interval *in;

	pthread_mutex_lock(&mm->lock);
	in = hmm_iset_next(&mm->registered, addr);
	if (in && in->start <= addr)
		addr = in->end;
	pthread_mutex_unlock(&mm->lock);
	return umm_vma_next(mm->space, addr, v);
}

int hmm_discover(struct hmm_mm *mm, uint64_t least, void (*looked)(struct hmm_mm *mm, bool unsure), bool *left)
{
	struct walk w = {.left = least > 0};
	bool unforked = is_unforked(mm), singly;
	struct umm_vma v;
	uint64_t at = 0;
	int rc, walked;

	if (left)
		*left = true;
	if (!atomic_load(&mm->armed))
		return 0; /* asked for by a hook, while a fork still runs that asked nobody */
	foreign_age(mm);
	while (!(walked = next_unregistered(mm, at, &v))) {
		bool known;

		at = v.end;
		if (!manageable(&v) || (v.start < mm->keep_end && v.end > mm->keep_start))
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
		singly = unforked || mm->space->maps_text;
		if (w.run.end != v.start || w.run.n >= (singly ? 1 : RUN_MAPPINGS)) {
			rc = run_end(mm, &w, least, singly);
			if (rc)
				goto out;
		}
		if (w.run.end != v.start)
			w.row = v.start;
		if (!w.run.n)
			w.run.start = v.start;
		w.run.end = v.end;
		w.run.n++;
	}
	rc = run_end(mm, &w, least, unforked || mm->space->maps_text);
	if (looked)
		looked(mm, w.nearly > 0);
	for (unsigned i = 0; !rc && walked != -ESRCH && i < w.nearly; i++)
		rc = manage_late(mm, &w.early[i], &w);
	if (rc)
		goto out;
	w.left |= walked != -ENOENT; /* the walk did not get to the end */
	/* Marks of what was there before, not registered, went without an event. */
	if (w.more && atomic_load(&mm->space->ctl->marked) && !atomic_load(&mm->space->ctl->no_fork_events))
		w.left |= hmm_marks_read(mm) != 0;
	if (left)
		*left = w.left;
out:
	free(w.early);
	return rc;
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

/* mm->lock held.  Is @at in @set?  Where that changes next is noted if it is before *@until. */
static bool is_in(const struct hmm_iset *set, uint64_t at, uint64_t *until)
{
	const struct hmm_interval *in = hmm_iset_next(set, at);
	bool is = in && in->start <= at;
	uint64_t edge = !in ? UINT64_MAX : is ? in->end : in->start;

	if (edge < *until)
		*until = edge;
	return is;
}

/*
 * The next piece of [*@at, @end) that may be ours: what we have registered, maybe early, and what no record has
 * (register_run()), but not what somebody else serves.
 */
static bool next_ours(struct hmm_mm *mm, uint64_t *at, uint64_t end, uint64_t *z)
{
	uint64_t from = *at, next;
	bool any = false;

	pthread_mutex_lock(&mm->lock);
	for (uint64_t to = from; to < end; to = next) {
		next = end;
		bool ours = is_in(&mm->registered, to, &next) | is_in(&mm->early, to, &next);
		bool theirs = is_in(&mm->foreign, to, &next) | is_in(&mm->foreign_old, to, &next);

		if (ours || !theirs) {
			from = any ? from : to;
			any = true;
			*z = next;
		} else if (any) {
			break;
		}
	}
	pthread_mutex_unlock(&mm->lock);
	*at = from;
	return any;
}

/*
 * Event lock exclusively.  Only of what is ours: before Linux 6.17 the kernel lets go of whatever is registered, be
 * it by another descriptor, and since then refuses a range in which there is something of the kind.
 * *@done: up to where that was done.  0 or -errno.
 */
static int let_go(struct hmm_mm *mm, uint64_t start, uint64_t end, uint64_t *done)
{
	struct umm_vma v;
	uint64_t z;

	*done = start;
	for (uint64_t at = start; next_ours(mm, &at, end, &z); at = z) {
		int rc = umm_uffd_unregister(mm->space->uffd, at, z - at);

		/* Between what is theirs there may be nothing. */
		if (rc == -EINVAL && z - at < end - start && (umm_vma_next(mm->space, at, &v) || v.start >= z))
			rc = 0;
		if (rc)
			return rc;
		*done = z;
	}
	return 0;
}

/* out_lock held.  What could not be let go of after all must be none that a child inherits. */
static void mark_again(struct hmm_mm *mm, uint64_t start, uint64_t end)
{
	const struct hmm_interval *in;

	for (uint64_t at = start, z; at < end; at = z) {
		pthread_mutex_lock(&mm->lock);
		in = hmm_iset_next(&mm->registered, at);
		at = !in || in->start >= end ? end : in->start > at ? in->start : at;
		z = in && in->end < end ? in->end : end;
		pthread_mutex_unlock(&mm->lock);
		/* Where that is refused nothing goes any more, as where it is refused after a fork. */
		if (at < end && hmm_unforked_add(mm, at, z))
			atomic_fetch_add(&mm->rest, 1);
	}
}

/*
 * mremap() counts as a change only when its pages have moved: between the look whether one is under way and the call
 * that lets go of a range one may have brought something there of which the records say that it is away elsewhere.
 * Its caller knows that place when we have read the event, and hardly anybody before (MREMAP_FIXED, and another thread
 * that touches the place already).  So what was let go of is registered as before, and all begins again.  What is
 * somebody else's is not: nothing would take that off again.  Event lock held exclusively.
 */
static int take_back(struct hmm_mm *mm, uint64_t start, uint64_t end)
{
	uint64_t mode = UFFDIO_REGISTER_MODE_MISSING | (mm->h->opt.linked ? UFFDIO_REGISTER_MODE_WP : 0);
	struct umm_vma v;
	bool lost = false;

	/* What refuses it is somebody else's, or nothing that could be away. */
	for (uint64_t from = start, to; next_ours(mm, &from, end, &to); from = to)
		for (uint64_t at = from; at < to && !umm_vma_next(mm->space, at, &v) && v.start < to; at = v.end) {
			uint64_t a = v.start > from ? v.start : from, z = v.end < to ? v.end : to;

			lost |= manageable(&v) && umm_uffd_register(mm->space->uffd, a, z - a, mode) == -ENOMEM;
		}
	if (lost)
		mm->h->opt.fatal(mm->h->opt.priv, mm, "no memory to register again what was just let go of");
	return -EAGAIN;
}

int hmm_hands_off(struct hmm_mm *mm, uint64_t start, uint64_t end)
{
	const struct umm_change c = {.event = UMM_EVENT_MIGRATE, .start = start, .end = end, .blockable = true};
	struct umm_evlock *evlock = &mm->space->ctl->evlock;
	bool unmarked = false;
	uint64_t moves, done;
	unsigned tries = 0;
	int rc, off;

	pthread_mutex_lock(&mm->out_lock); /* nothing goes out meanwhile */
again:
	moves = hmm_moves_now(mm);
	rc = hmm_restore(mm, start, end);
	if (rc)
		goto out;
	/* Nobody would take that mark off again. */
	unmarked = atomic_load(&mm->space->ctl->no_fork_events) && !mm->h->opt.linked && mm->inside;
	if (unmarked)
		rc = mm->inside->advise(mm->inside_priv, start, end - start, MADV_DOFORK);
	if (rc && rc != -ENOMEM) /* a hole is refused below */
		goto out;
	/* Who mirrors it has found it watched, and would be told of no change any more: it watches it anew. */
	umm_invalidate_begin(mm->space, &c);
	/* An agent that died inside the lock never lets go of it. */
	if (!umm_evlock_excl_unless(evlock, mm->space->gone, mm->space->priv)) {
		rc = -ESRCH;
		goto told;
	}
	/* What mremap() has brought there behind the hand, or is about to, may be away. */
	if (!hmm_moves_settled(mm, moves)) {
		rc = -EAGAIN;
		goto unlock;
	}
	rc = let_go(mm, start, end, &done);
	if (rc == -ENOMEM)
		take_back(mm, start, end); /* it may have come half-way through a piece */
	else if (rc && done > start)
		take_back(mm, start, done);
	else if (!rc && umm_uffd_is_changing(mm->space->uffd))
		rc = take_back(mm, start, end);
	if (rc)
		goto unlock; /* part of it is unmapped, or somebody else's: it is what it was */
	/* What could not be brought back keeps its poison; to us it is no more than any other page. */
	hmm_residency_drop(mm, start, end);
	/* Under the event lock: a walk that found it before must not take it back (register_run()). */
	pthread_mutex_lock(&mm->lock);
	off = rc = hmm_iset_del(&mm->registered, start, end);
	if (!rc)
		rc = hmm_iset_add(&mm->foreign, start, end);
	pthread_mutex_unlock(&mm->lock);
	if (off)
		take_back(mm, start, end); /* on record as registered, it is */
unlock:
	umm_evlock_unexcl(evlock);
told:
	umm_invalidate_end(mm->space, &c);
	if (rc == -EAGAIN && ++tries < HMM_MOVES_MAX) {
		umm_space_drain(mm->space);
		umm_yield(tries);
		goto again;
	}
out:
	if (rc && unmarked)
		mark_again(mm, start, end);
	pthread_mutex_unlock(&mm->out_lock);
	return rc;
}
