/* SPDX-License-Identifier: MIT */
/*
 * Forks that were overtaken.
 *
 * DOC: why
 *
 * fork() copies the mappings first, and its event is queued later.  Another thread
 * can unmap or move something in between, and queue its event before: then the
 * records follow it, and the child gets them so, which has the mapping where it
 * was.  What was away would be zeros there.
 *
 * So changes of mappings in which something was away are noted, for a while.  At a
 * fork the kernel is asked whether the child has, registered, what the parent has
 * no more.  Then, the latest change first,
 *
 *	moved		the child's records go back to where its mapping is
 *	unmapped	the contents are gone: the child gets poison where there is
 *			no page, SIGBUS and a line rather than zeros
 *
 * Where the parent has mapped something there again nothing can be told, and
 * nothing is done.
 *
 * All of it under the parent's event lock, held exclusively.
 */
#include <errno.h>

#include "hmm/internal.h"
#include "umm/inside.h"

#define LATE_NS 1000000000ull /* no event waits for longer in a queue that is read */

static bool anything_away(struct hmm_mm *mm, uint64_t start, uint64_t end)
{
	struct hmm_leaf *leaf;

	for (uint64_t at = start; (leaf = hmm_leaf_next(mm, at, end)); at = leaf->base + (1ull << HMM_LEAF_SHIFT))
		if (leaf->held)
			return true;
	return false;
}

static struct hmm_overtaken *nth(struct hmm_mm *mm, unsigned n)
{
	return &mm->overtaken[n % HMM_OVERTAKEN];
}

void hmm_overtaken_note(struct hmm_mm *mm, const struct umm_change *c)
{
	struct hmm_overtaken new = {.start = c->start, .end = c->end, .at_ns = hmm_now_ns()};
	const struct hmm_overtaken *last = nth(mm, mm->novertaken - 1);

	if (c->event == UMM_EVENT_REMAP)
		new.to = c->new_start;
	/* The second event of mremap(): where it was nothing is any more. */
	else if (mm->novertaken && last->to && last->start == c->start && last->end == c->end)
		return;
	if (anything_away(mm, c->start, c->end))
		*nth(mm, mm->novertaken++) = new;
}

bool hmm_overtaken_lately(struct hmm_mm *mm)
{
	return mm->novertaken && hmm_now_ns() - nth(mm, mm->novertaken - 1)->at_ns <= LATE_NS;
}

static bool has_again(struct hmm_mm *mm, const struct hmm_overtaken *o)
{
	struct umm_vma v;

	return !umm_vma_next(mm->space, o->start, &v) && v.start < o->end;
}

static int poison(struct hmm_mm *mm, struct hmm_mm *child, const struct hmm_overtaken *o)
{
	for (uint64_t at = o->start; at < o->end; at += UMM_PAGE) {
		int rc = umm_uffd_poison(child->space->uffd, at, UMM_PAGE);

		if (rc && rc != -EEXIST && rc != -ENOENT)
			return rc == -ESRCH ? 0 : rc;
	}
	/* Once: mostly nobody will ever touch it, and who forks while it unmaps does so again. */
	if (mm->overtaken_said)
		return 0;
	mm->overtaken_said = true;
	hmm_say(mm->h,
		"another thread of process %d unmapped memory while it forked: what was away of it is lost to the "
		"child,"
		" an access gets SIGBUS",
		(int)mm->space->pid);
	return 0;
}

int hmm_overtaken_mend(struct hmm_mm *mm, struct hmm_mm *child)
{
	uint64_t now = hmm_now_ns();
	int rc = 0;

	for (unsigned n = mm->novertaken, k = 0; n && k < HMM_OVERTAKEN && !rc; n--, k++) {
		struct hmm_overtaken *o = nth(mm, n - 1);

		if (now - o->at_ns > LATE_NS)
			break;
		o->by = 0;
		if (has_again(mm, o) || umm_inside_registered(child->space->uffd, o->start))
			continue;
		if (!o->to) {
			rc = poison(mm, child, o);
			continue;
		}
		o->by = child->id;
		rc = hmm_residency_remap(child, o->to, o->start, o->end - o->start);
		hmm_forget(child, o->to, o->to + (o->end - o->start));
		pthread_mutex_lock(&child->lock);
		if (!rc)
			rc = hmm_iset_add(&child->registered, o->start, o->end);
		pthread_mutex_unlock(&child->lock);
	}
	return rc;
}

uint64_t hmm_overtaken_where(struct hmm_mm *mm, const struct hmm_mm *child, uint64_t addr)
{
	for (unsigned n = mm->novertaken, k = 0; n && k < HMM_OVERTAKEN; n--, k++) {
		const struct hmm_overtaken *o = nth(mm, n - 1);

		if (o->to && o->by == child->id && addr >= o->to && addr - o->to < o->end - o->start)
			addr = addr - o->to + o->start;
	}
	return addr;
}
