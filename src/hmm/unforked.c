/* SPDX-License-Identifier: MIT */
/*
 * What a child does not get, where the kernel tells nobody of forks.
 *
 * DOC: marked, and unmarked for a fork
 *
 * A child that nobody hears of would find zeros where pages are away.  So what is
 * managed is MADV_DONTFORK, from before it is registered; for a fork that asks,
 * everything comes back, the marks are taken off, and put on again afterwards.
 * A mark that is left on is a mapping that the child lacks: it dies of it.
 *
 * The records of what is registered do not say what is marked: a mapping may have
 * been marked and then not been registered; it may have been let go; mremap() and
 * a stack that grows make a marked mapping larger, and no event says so.  Hence a
 * set of its own, which is added to before anything is marked, follows mremap(),
 * and is never taken from by munmap(), whose event can come after somebody has
 * mapped there anew.  A mapping is marked as a whole or not at all (the kernel
 * does not merge what differs in that), so each one that meets the set is meant
 * from its start to its end, and on to the next one, should it be growing just now.
 *
 *	again:	event lock shared: how many mremap() were seen?  the first interval
 *		the mapping there is looked up, and advised: no lock but out_lock
 *		event lock shared: no mremap() since, and no change under way whose
 *		event nobody has read?  The interval is done with.  Else again
 *
 * out_lock is held, and mm->rest says that nothing is managed meanwhile (manage()).
 */
#include <errno.h>
#include <sys/mman.h>

#include "hmm/internal.h"

static int note(struct hmm_mm *mm, uint64_t start, uint64_t end)
{
	int rc;

	pthread_mutex_lock(&mm->lock);
	rc = hmm_iset_add(&mm->unforked, start, end);
	pthread_mutex_unlock(&mm->lock);
	return rc;
}

int hmm_unforked_add(struct hmm_mm *mm, uint64_t start, uint64_t end)
{
	int rc = note(mm, start, end);

	return rc ? rc : mm->inside->advise(mm->inside_priv, start, end - start, MADV_DONTFORK);
}

static void follow(struct hmm_iset *set, const struct umm_change *c)
{
	if (!hmm_iset_meets(set, c->start, c->end))
		return;
	/* What is too much only costs time; and one that holds everything needs no more room. */
	if (hmm_iset_add(set, c->new_start, c->new_start + (c->end - c->start)))
		hmm_iset_add(set, 0, HMM_ADDR_END);
}

void hmm_unforked_follow(struct hmm_mm *mm, const struct umm_change *c)
{
	if (!atomic_load(&mm->space->ctl->no_fork_events))
		return;
	pthread_mutex_lock(&mm->lock);
	if (hmm_iset_meets(&mm->unforked, c->start, c->end) || hmm_iset_meets(&mm->unforked_todo, c->start, c->end))
		mm->moves++;
	follow(&mm->unforked, c);
	follow(&mm->unforked_todo, c);
	pthread_mutex_unlock(&mm->lock);
}

/* The mappings that meet [in->start, in->end), whole: from @a to @z; @a == @z: there are none. */
static int widen(struct hmm_mm *mm, const struct hmm_interval *in, int advice, uint64_t *a, uint64_t *z)
{
	struct umm_vma v;
	int rc = umm_vma_next(mm->space, in->start, &v);

	*a = *z = in->end;
	if (rc || v.start >= in->end)
		return rc == -ENOENT ? 0 : rc;
	*a = v.start;
	rc = umm_vma_next(mm->space, in->end - 1, &v);
	if (!rc && v.start < in->end)
		*z = v.end;
	if (!rc && advice == MADV_DOFORK)
		rc = umm_vma_next(mm->space, *z, &v);
	if (!rc && advice == MADV_DOFORK)
		*z = v.start;
	return rc == -ENOENT ? 0 : rc;
}

/* 1: all is done; 0: one more is; -EAGAIN: a change is under way; or -errno. */
static int step(struct hmm_mm *mm, struct hmm_iset *set, int advice)
{
	uint64_t moves = hmm_moves_now(mm), a, z;
	const struct hmm_interval *first;
	struct hmm_interval in = {0};
	int rc;

	pthread_mutex_lock(&mm->lock);
	first = hmm_iset_next(set, 0);
	if (first)
		in = *first;
	pthread_mutex_unlock(&mm->lock);
	if (!first)
		return 1;
	rc = widen(mm, &in, advice, &a, &z);
	if (!rc && advice == MADV_DONTFORK)
		rc = note(mm, a, z);
	if (rc)
		return rc;
	if (a < z)
		rc = mm->inside->advise(mm->inside_priv, a, z - a, advice);
	if (rc && rc != -ENOMEM) /* what is not mapped is none to inherit */
		return rc;
	umm_evlock_shared(&mm->space->ctl->evlock);
	rc = hmm_moves_settled(mm, moves) ? 0 : -EAGAIN;
	pthread_mutex_lock(&mm->lock);
	if (!rc)
		hmm_iset_del(set, in.start, in.end); /* splits nothing: it is the first */
	pthread_mutex_unlock(&mm->lock);
	umm_evlock_unshared(&mm->space->ctl->evlock);
	return rc;
}

static int advise_all(struct hmm_mm *mm, struct hmm_iset *set, int advice)
{
	unsigned tries = 0;
	int rc;

	while ((rc = step(mm, set, advice)) <= 0) {
		if (rc != -EAGAIN && rc)
			return rc;
		if (!rc)
			continue;
		if (++tries == HMM_MOVES_MAX)
			return rc;
		umm_space_drain(mm->space);
		umm_yield(tries);
	}
	return 0;
}

int hmm_unforked_lift(struct hmm_mm *mm)
{
	int rc = hmm_restore_all(mm);

	return rc ? rc : advise_all(mm, &mm->unforked, MADV_DOFORK);
}

int hmm_unforked_back(struct hmm_mm *mm)
{
	int rc = 0;

	pthread_mutex_lock(&mm->lock);
	hmm_iset_clear(&mm->unforked_todo);
	for (unsigned i = 0; i < mm->registered.n && !rc; i++)
		rc = hmm_iset_add(&mm->unforked_todo, mm->registered.v[i].start, mm->registered.v[i].end);
	pthread_mutex_unlock(&mm->lock);
	return rc ? rc : advise_all(mm, &mm->unforked_todo, MADV_DONTFORK);
}
