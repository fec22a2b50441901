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
 * So for a while changes of mappings in which something was away are noted, and
 * what an unmapping drops is kept, with a reference to what a device has of it.  At
 * a fork the child's records, a copy of the parent's, are led back: the latest
 * change first, what was moved goes back to where the child has its mapping; then
 * what is kept is entered where the child has, registered, what the parent has no
 * more.  The kernel is asked what the child has.  While the child changes its
 * mappings, be it others, the kernel does not say, and what is entered then is
 * looked at again when it does: the child's own events move and drop it in the
 * meantime.  What was moved is entered at both places then.
 *
 * What it has then is not what it was forked with: what its own events change until it
 * has been asked is noted, and a place that was unmapped, cleared or moved by one of
 * them was its own before.  By that what was entered at the wrong place is found again,
 * and what is entered only then goes where it is now.  An unmapping tells of all that
 * was asked for, holes as well: where nothing but a wider one says that there was
 * something, the child gets poison.
 *
 * Whether a fork came before a move is told by what the child has.  If it has
 * nothing where what is away is now, it came before: so what was moved twice goes
 * back twice.  If it has something at both places it came before as well, unless
 * the parent has something, registered, where it was: that may have been inherited.
 *
 * DOC: for how long
 *
 * A fork counts as a change that is under way from when it copies the mappings until
 * its event was read (evlock.h).  So once there has been a moment without one, the
 * event lock held, no fork is left that anything kept could be for, and all is let
 * go.  Until then little can be done to the space: nothing leaves and nothing comes
 * back.  Where threads change mappings all the time, such that there never is a
 * moment without, it goes after a second.
 *
 * Of more than KEPT_MAX pages only that they were there is kept: the child gets
 * poison for them.  So it does where it cannot be told what it has, because the
 * same place was mapped and unmapped again meanwhile.
 *
 * What the parent has mapped there again is left alone if it is registered: it may be
 * what the child has inherited.
 *
 * In a linked engine the child has no records: it is given its pages, by the same
 * rules, and poison for all that is kept, which is only that it was there.
 *
 * All of it under the parent's event lock: held exclusively, or, to let go, shared
 * and with the lock of the mm.
 */
#include <errno.h>
#include <sched.h>
#include <string.h>
#include <sys/mman.h>

#include "hmm/internal.h"
#include "umm/inside.h"

#define KEPT_MAX 65536u    /* pages */
#define AGAIN_TRIES 500u   /* of 200 us: who forked needs to run once */
#define CHILD_TRIES 10000u /* a child that changes its mappings without end */

#define WAS_LOST 1u /* payload of a POISONED one: to the parent, too, which has heard of it */

/* What one unmapping has dropped of one leaf. */
struct hmm_kept {
	struct hmm_kept *next; /* an older one */
	uint64_t base, at_ns;
	unsigned nr; /* the change after which it was dropped */
	/* DEVICE, with a reference; PARKED, the payload is a copy of the page; POISONED, lost; SYSTEM: nothing. */
	hmm_entry_t e[HMM_LEAF_PAGES];
};

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

/* ------------------------------------------------------------------ keeping */

static void *kept_page(hmm_entry_t e)
{
	return (void *)(uintptr_t)hmm_entry_payload(e);
}

/* What stands for @e is let go; @to is what stands there from now on. */
static void kept_set(struct hmm_mm *mm, struct hmm_kept *k, unsigned i, hmm_entry_t to)
{
	hmm_entry_t e = k->e[i];
	hmm_handle_t handle = hmm_entry_payload(e);

	if (hmm_entry_state(e) == HMM_DEVICE) {
		struct hmm_device *d = mm->h->chain.dev[hmm_entry_tier(e)];

		d->ops->put(d, &handle, 1);
	} else if (hmm_entry_state(e) == HMM_PARKED) {
		explicit_bzero(kept_page(e), UMM_PAGE);
		umm_free(mm->space, kept_page(e), UMM_PAGE);
	}
	if (hmm_entry_state(e) == HMM_DEVICE || hmm_entry_state(e) == HMM_PARKED)
		atomic_fetch_sub(&mm->nkept, 1);
	k->e[i] = to;
}

static void kept_free(struct hmm_mm *mm, struct hmm_kept *k)
{
	while (k) {
		struct hmm_kept *next = k->next;

		for (unsigned i = 0; i < HMM_LEAF_PAGES; i++)
			kept_set(mm, k, i, 0);
		umm_free(mm->space, k, sizeof(*k));
		atomic_fetch_sub(&mm->h->kept, 1);
		k = next;
	}
}

int hmm_overtaken_each(struct hmm_mm *mm, void *arg,
		       int (*fn)(struct hmm_mm *mm, void *arg, uint64_t addr, unsigned nr))
{
	int rc = 0;

	for (struct hmm_kept *k = mm->kept; k && !rc; k = k->next)
		for (unsigned i = 0; i < HMM_LEAF_PAGES && !rc; i++)
			if (k->e[i])
				rc = fn(mm, arg, k->base + i * UMM_PAGE, k->nr);
	return rc;
}

/* The same place is unmapped, or moved away, once more: by what is kept it cannot be told what a child has there. */
static void kept_doubt(struct hmm_mm *mm, uint64_t start, uint64_t end)
{
	for (struct hmm_kept *k = mm->kept; k; k = k->next) {
		uint64_t a = k->base > start ? k->base : start, z = k->base + (1ull << HMM_LEAF_SHIFT);

		for (z = z < end ? z : end; a < z; a += UMM_PAGE)
			if (k->e[hmm_leaf_index(a)] && hmm_entry_state(k->e[hmm_leaf_index(a)]) != HMM_POISONED)
				kept_set(mm, k, hmm_leaf_index(a), hmm_entry(HMM_POISONED, 0, 0, 0));
	}
}

static hmm_entry_t keep_one(struct hmm_mm *mm, hmm_entry_t e)
{
	unsigned b = hmm_entry_payload(e) >> 16 & (UMM_BATCHES - 1), s = hmm_entry_payload(e) & 0xffff;
	struct hmm_device *d;
	hmm_handle_t handle;
	void *copy;

	/* A driver's device is not to hold pages for longer than they are mapped: only that there was one is kept. */
	if (mm->h->opt.linked && !hmm_entry_here(e))
		return hmm_entry(HMM_POISONED, 0, hmm_entry_state(e) == HMM_POISONED ? WAS_LOST : 0, 0);
	switch (hmm_entry_state(e)) {
	case HMM_DEVICE:
		if (atomic_load(&mm->nkept) >= KEPT_MAX)
			break;
		d = mm->h->chain.dev[hmm_entry_tier(e)];
		handle = hmm_entry_payload(e);
		d->ops->get(d, &handle, 1);
		atomic_fetch_add(&mm->nkept, 1);
		return hmm_entry(HMM_DEVICE, hmm_entry_tier(e), handle, 0);
	case HMM_PARKED:
		copy = umm_alloc(mm->space, UMM_PAGE);
		if (!copy)
			break;
		memcpy(copy, hmm_slot_page(mm, b, s), UMM_PAGE);
		atomic_fetch_add(&mm->nkept, 1);
		return hmm_entry(HMM_PARKED, 0, (uintptr_t)copy, 0);
	case HMM_POISONED:
		return hmm_entry(HMM_POISONED, 0, WAS_LOST, 0);
	default:
		return 0; /* the child has it by itself */
	}
	return hmm_entry(HMM_POISONED, 0, 0, 0);
}

static bool any_in(const struct hmm_leaf *leaf, uint64_t a, uint64_t z, bool parking)
{
	for (; a < z; a += UMM_PAGE) {
		hmm_entry_t e = leaf->e[hmm_leaf_index(a)];

		if (parking ? hmm_entry_state(e) == HMM_PARKING : !hmm_entry_here(e))
			return true;
	}
	return false;
}

static bool is_empty_in_child(struct hmm_mm *mm, uint64_t start, uint64_t end)
{
	bool is;

	pthread_mutex_lock(&mm->lock);
	is = hmm_iset_meets(&mm->wipeonfork, start, end);
	pthread_mutex_unlock(&mm->lock);
	return is;
}

/* What is away in [a, z) of one leaf. */
static void keep_leaf(struct hmm_mm *mm, const struct hmm_leaf *leaf, uint64_t a, uint64_t z)
{
	struct hmm_kept *k = umm_alloc(mm->space, sizeof(*k));
	bool marked = is_empty_in_child(mm, a, z);

	if (!k) {
		mm->blind_ns = umm_now_ns();
		return;
	}
	k->base = leaf->base;
	k->at_ns = umm_now_ns();
	k->nr = mm->novertaken;
	for (; a < z; a += UMM_PAGE)
		if (!marked || !is_empty_in_child(mm, a, a + UMM_PAGE))
			k->e[hmm_leaf_index(a)] = keep_one(mm, leaf->e[hmm_leaf_index(a)]);
	atomic_fetch_add(&mm->h->kept, 1);
	k->next = mm->kept;
	__atomic_store_n(&mm->kept, k, __ATOMIC_RELAXED);
}

void hmm_overtaken_expire(struct hmm_mm *mm)
{
	struct hmm_kept **from = &mm->kept, *old;
	uint64_t now = umm_now_ns();

	pthread_mutex_lock(&mm->lock);
	while (*from && now - (*from)->at_ns <= HMM_LATE_NS)
		from = &(*from)->next;
	old = *from;
	__atomic_store_n(from, NULL, __ATOMIC_RELAXED);
	pthread_mutex_unlock(&mm->lock);
	kept_free(mm, old);
}

void hmm_overtaken_unmapped(struct hmm_mm *mm, uint64_t start, uint64_t end)
{
	struct hmm_leaf *leaf;

	if (mm->h->opt.linked)
		hmm_overtaken_expire(mm); /* nobody else does it for a program that migrates nothing any more */
	kept_doubt(mm, start, end);
	for (uint64_t at = start; (leaf = hmm_leaf_next(mm, at, end)); at = leaf->base + (1ull << HMM_LEAF_SHIFT)) {
		uint64_t a = leaf->base > start ? leaf->base : start, z = leaf->base + (1ull << HMM_LEAF_SHIFT);

		if (z > end)
			z = end;
		if (!leaf->held || !any_in(leaf, a, z, false))
			continue;
		/* If the inside has died half-way whoever is forked must, too: mm_forked(). */
		if (!mm->h->opt.linked && any_in(leaf, a, z, true))
			hmm_out_sync(mm);
		keep_leaf(mm, leaf, a, z);
	}
}

void hmm_overtaken_moved(struct hmm_mm *mm, const struct umm_change *c)
{
	kept_doubt(mm, c->start, c->end);
	if (!anything_away(mm, c->start, c->end))
		return;
	mm->moves++;
	*nth(mm, mm->novertaken++) =
		(struct hmm_overtaken){.start = c->start, .end = c->end, .to = c->new_start, .at_ns = umm_now_ns()};
}

void hmm_overtaken_over(struct hmm_mm *mm)
{
	struct hmm_kept *old;

	pthread_mutex_lock(&mm->lock);
	old = mm->kept;
	__atomic_store_n(&mm->kept, NULL, __ATOMIC_RELAXED);
	mm->novertaken = 0;
	mm->blind_ns = 0;
	pthread_mutex_unlock(&mm->lock);
	kept_free(mm, old);
}

void hmm_overtaken_age(struct hmm_mm *mm)
{
	if ((!__atomic_load_n(&mm->kept, __ATOMIC_RELAXED) && !atomic_load(&mm->novertaken)) ||
	    !umm_evlock_try_shared(&mm->space->ctl->evlock))
		return;
	if (umm_uffd_is_changing(mm->space->uffd))
		hmm_overtaken_expire(mm);
	else
		hmm_overtaken_over(mm);
	umm_evlock_unshared(&mm->space->ctl->evlock);
}

void hmm_overtaken_free(struct hmm_mm *mm)
{
	kept_free(mm, mm->kept);
	mm->kept = NULL;
}

bool hmm_overtaken_lately(struct hmm_mm *mm)
{
	return mm->kept || mm->blind_ns ||
	       (mm->novertaken && umm_now_ns() - nth(mm, mm->novertaken - 1)->at_ns <= HMM_LATE_NS);
}

bool hmm_overtaken_blind(const struct hmm_mm *mm)
{
	return mm->blind_ns && umm_now_ns() - mm->blind_ns <= HMM_LATE_NS;
}

/* ------------------------------------------------------------ leading back */

/* What the parent has there now, from @start to @end. */
struct again {
	uint64_t start, end;
	bool registered;
	bool asked; /* the kernel, in vain */
};

/* By the kernel's word, which it does not give while anything changes. */
static bool is_registered(struct hmm_mm *mm, uint64_t addr, struct again *g)
{
	int rc;

	for (unsigned i = 0; (rc = umm_inside_registered(mm->space->uffd, addr)) == -EAGAIN; i++) {
		g->asked |= i == AGAIN_TRIES;
		if (g->asked)
			return false;
		nanosleep(&(struct timespec){.tv_nsec = 200000}, NULL);
	}
	return !rc;
}

/* Where @child has what was at @addr of @mm when @nr changes had been noted. */
static uint64_t where(struct hmm_mm *mm, const struct hmm_mm *child, uint64_t addr, unsigned nr)
{
	for (unsigned n = mm->novertaken, k = 0; n && k < HMM_OVERTAKEN; n--, k++) {
		const struct hmm_overtaken *o = nth(mm, n - 1);

		if (n <= nr && o->by == child->id && addr >= o->to && addr - o->to < o->end - o->start)
			addr = addr - o->to + o->start;
	}
	return addr;
}

uint64_t hmm_overtaken_where(struct hmm_mm *mm, const struct hmm_mm *child, uint64_t addr)
{
	return where(mm, child, addr, mm->novertaken);
}

static bool mapped_again(struct hmm_mm *mm, uint64_t addr, struct again *g)
{
	const struct hmm_interval *in;
	struct umm_vma v;
	int rc;

	if (addr >= g->start && addr < g->end)
		return g->registered;
	rc = umm_vma_next(mm->space, addr, &v);
	g->start = addr;
	g->end = rc == -ENOENT ? UINT64_MAX : rc ? addr + UMM_PAGE : v.start > addr ? v.start : v.end;
	g->registered = rc && rc != -ENOENT && is_registered(mm, addr, g);
	if (rc || v.start > addr)
		return g->registered;
	/* What is registered in part, by our records, changes in the middle. */
	pthread_mutex_lock(&mm->lock);
	in = hmm_iset_next(&mm->registered, addr);
	g->registered = in && in->start <= addr;
	if (g->registered && in->end < g->end)
		g->end = in->end;
	if (!g->registered && in && in->start < g->end)
		g->end = in->start;
	pthread_mutex_unlock(&mm->lock);
	if (!g->registered)
		g->registered = is_registered(mm, addr, g);
	return g->registered;
}

/* Was what @mm has had at @addr after change @nr moved over what the child still has there? */
static bool moved_over(struct hmm_mm *mm, const struct hmm_mm *child, uint64_t addr, unsigned nr)
{
	for (unsigned n = mm->novertaken, k = 0; n > nr && k < HMM_OVERTAKEN; n--, k++) {
		const struct hmm_overtaken *o = nth(mm, n - 1);

		if (o->by == child->id && !o->unsure && addr >= o->to && addr - o->to < o->end - o->start)
			return true;
	}
	return false;
}

/* A copy of @e that is the child's. */
static hmm_entry_t entry_for_child(struct hmm_mm *mm, hmm_entry_t e)
{
	hmm_handle_t handle = hmm_entry_payload(e);
	const void *src = kept_page(e);
	struct hmm_device *d;
	uint8_t tier = 0;

	switch (hmm_entry_state(e)) {
	case HMM_DEVICE:
		d = mm->h->chain.dev[hmm_entry_tier(e)];
		d->ops->get(d, &handle, 1);
		return e;
	case HMM_PARKED:
		/* Under the lock, which devices otherwise are not asked under: this is a moment in a moment. */
		handle = HMM_HANDLE_NONE;
		if (hmm_chain_in(mm->h, 0, &src, &handle, &tier, 1) == 1)
			return hmm_entry(HMM_DEVICE, tier, handle, 0);
		break;
	default:
		break;
	}
	return hmm_entry(HMM_POISONED, 0, 0, 0);
}

void hmm_overtaken_lost(struct hmm_mm *mm)
{
	/* Once: mostly nobody will ever touch it, and who forks while it unmaps does so again. */
	if (mm->overtaken_said)
		return;
	mm->overtaken_said = true;
	hmm_say(mm->h,
		"other threads of process %d unmapped memory while it forked: of what was away of it a part is lost to "
		"the child, an access gets SIGBUS",
		(int)mm->space->pid);
}

/*
 * Enter at @addr of the child what is kept, parked, or at another place of the child's.  -EAGAIN: it may not have
 * anything there, which is to be asked again.
 */
static int give(struct hmm_mm *mm, struct hmm_mm *child, uint64_t addr, hmm_entry_t e)
{
	int rc = umm_inside_registered(child->space->uffd, addr);
	struct hmm_leaf *leaf;

	if (rc == -ENOENT)
		return 0;
	leaf = hmm_leaf_get(child, addr);
	if (!leaf)
		return -ENOMEM;
	pthread_mutex_lock(&leaf->lock);
	if (!leaf->e[hmm_leaf_index(addr)]) {
		hmm_entry_t mine = entry_for_child(mm, e);

		hmm_entry_set(child, leaf, hmm_leaf_index(addr), mine);
		if (hmm_entry_state(mine) == HMM_POISONED &&
		    (hmm_entry_state(e) != HMM_POISONED || hmm_entry_payload(e) != WAS_LOST))
			hmm_overtaken_lost(mm);
	}
	pthread_mutex_unlock(&leaf->lock);
	return rc;
}

static int give_or_ask(struct hmm_mm *mm, struct hmm_mm *child, uint64_t addr, hmm_entry_t e)
{
	int rc = give(mm, child, addr, e);

	return rc == -EAGAIN ? hmm_iset_add(&child->unsure, addr, addr + UMM_PAGE) : rc;
}

/* What is kept of what was at @addr after change @nr: wherever the child may have it. */
static int give_kept(struct hmm_mm *mm, struct hmm_mm *child, uint64_t addr, unsigned nr, hmm_entry_t e)
{
	int rc = 0;

	for (unsigned n = mm->novertaken, k = 0; n && k < HMM_OVERTAKEN && !rc; n--, k++) {
		const struct hmm_overtaken *o = nth(mm, n - 1);

		if (n > nr || o->by != child->id || addr < o->to || addr - o->to >= o->end - o->start)
			continue;
		if (o->unsure)
			rc = give_or_ask(mm, child, addr, e);
		addr = addr - o->to + o->start;
	}
	return rc ? rc : give_or_ask(mm, child, addr, e);
}

static hmm_entry_t entry_at(struct hmm_mm *mm, uint64_t addr)
{
	struct hmm_leaf *leaf = hmm_leaf_find(mm, addr);

	return leaf ? leaf->e[hmm_leaf_index(addr)] : 0;
}

/* By what was found at the fork; what @mm knows of its marks may be nothing. */
static bool is_marked(struct hmm_mm *mm, const struct hmm_mm *child, uint64_t start, uint64_t end)
{
	bool is;

	pthread_mutex_lock(&mm->lock);
	is = hmm_iset_meets(&mm->wipeonfork, start, end) || hmm_iset_meets(&mm->dontfork, start, end);
	pthread_mutex_unlock(&mm->lock);
	return is || hmm_iset_meets(child->empty, start, end) || hmm_iset_meets(child->absent, start, end);
}

typedef int (*away_fn)(struct hmm_mm *mm, struct hmm_mm *child, uint64_t addr, hmm_entry_t e, void *arg);

/* @fn of all that would be away of the child's in [start, end), as far as it was led back; until it says other than 0.
 */
static int each_away(struct hmm_mm *mm, struct hmm_mm *child, uint64_t start, uint64_t end, away_fn fn, void *arg)
{
	struct hmm_leaf *leaf;
	int rc = 0;

	for (uint64_t at = start; !rc && (leaf = hmm_leaf_next(child, at, end));
	     at = leaf->base + (1ull << HMM_LEAF_SHIFT)) {
		uint64_t a = leaf->base > start ? leaf->base : start, z = leaf->base + (1ull << HMM_LEAF_SHIFT);

		for (z = z < end ? z : end; leaf->held && a < z && !rc; a += UMM_PAGE)
			if (!hmm_entry_here(leaf->e[hmm_leaf_index(a)]))
				rc = fn(mm, child, a, leaf->e[hmm_leaf_index(a)], arg);
	}
	/* What is parked for the parent is not in the child's records yet. */
	for (unsigned b = 0; b < UMM_BATCHES; b++)
		for (unsigned s = 0; s < mm->batch_pages[b] && !rc; s++) {
			uint64_t addr = mm->slot[b][s].addr, at;

			if (!addr)
				continue;
			at = where(mm, child, addr, mm->novertaken);
			if (at >= start && at < end && hmm_entry_state(entry_at(mm, addr)) == HMM_PARKED &&
			    !is_marked(mm, child, addr, addr + UMM_PAGE))
				rc = fn(mm, child, at, hmm_entry(HMM_PARKED, 0, (uintptr_t)hmm_slot_page(mm, b, s), 0),
					arg);
		}
	return rc;
}

/* 1: the child has that page; 0: it has not, and @arg says that there is one; -EAGAIN: it does not say. */
static int has_page(struct hmm_mm *mm, struct hmm_mm *child, uint64_t addr, hmm_entry_t e, void *arg)
{
	int rc = umm_inside_registered(child->space->uffd, addr);

	if (rc == -ENOENT) {
		*(bool *)arg = true;
		return 0;
	}
	return rc ? rc : 1;
}

/*
 * The mappings of who came by a raw fork, and has no agent, are not known: then it
 * is the kernel's word on whether it is registered there, or, without that, as if
 * nothing had been overtaken.
 */
static bool may_be_again(struct hmm_mm *mm, uint64_t addr, struct again *g)
{
	struct umm_vma v;
	int rc = umm_vma_next(mm->space, addr, &v);

	return mapped_again(mm, addr, g) || (rc && rc != -ENOENT && g->asked);
}

/*
 * Was @child forked before the move that was noted as number @n?  It was if it has nothing where all that is away is
 * now.  Where it has something at both places it has inherited what the parent has again, or else it was.
 * 1, 0, or -EAGAIN: it does not say.
 */
static int came_before(struct hmm_mm *mm, struct hmm_mm *child, unsigned n, struct again *g)
{
	struct hmm_overtaken *o = nth(mm, n - 1);
	bool lacks = false;
	int from = umm_inside_registered(child->space->uffd, o->start), rc = from;

	if (rc != -EAGAIN)
		rc = each_away(mm, child, o->to, o->to + (o->end - o->start), has_page, &lacks);
	o->again = !moved_over(mm, child, o->start, n) && may_be_again(mm, o->start, g);
	/* It may have begun to change while it was asked. */
	if (rc == -EAGAIN || umm_inside_registered(child->space->uffd, o->start) == -EAGAIN)
		return -EAGAIN;
	return (!rc && lacks) || (!from && !o->again);
}

/* @addr is where @arg, a move, has brought it: also where it was before. */
static int enter_both(struct hmm_mm *mm, struct hmm_mm *child, uint64_t addr, hmm_entry_t e, void *arg)
{
	const struct hmm_overtaken *o = arg;
	int rc = 0;

	/* What is parked is copied to a device once, and each place has a reference. */
	if (hmm_entry_state(e) == HMM_PARKED) {
		rc = give(mm, child, addr, e);
		/* Where it has nothing nothing was entered, and the page itself is given to the other place. */
		if (entry_at(child, addr))
			e = entry_at(child, addr);
	}
	if (hmm_entry_state(e) == HMM_POISONED)
		e = hmm_entry(HMM_POISONED, 0, WAS_LOST, 0); /* said when it was lost */
	if (!rc || rc == -EAGAIN)
		rc = hmm_iset_add(&child->unsure, addr, addr + UMM_PAGE);
	return rc ? rc : give_or_ask(mm, child, addr - o->to + o->start, e);
}

static int lead_back(struct hmm_mm *mm, struct hmm_mm *child, struct again *g)
{
	uint64_t now = umm_now_ns();
	int rc = 0;

	for (unsigned n = mm->novertaken, k = 0; n && k < HMM_OVERTAKEN && !rc; n--, k++) {
		struct hmm_overtaken *o = nth(mm, n - 1);
		uint64_t to_end = o->to + (o->end - o->start);
		int before;

		if (now - o->at_ns > HMM_LATE_NS)
			break;
		o->by = 0;
		before = came_before(mm, child, n, g);
		o->unsure = before == -EAGAIN;
		if (!before)
			continue;
		if (o->unsure) {
			rc = each_away(mm, child, o->to, to_end, enter_both, o);
			o->by = child->id;
			continue;
		}
		o->by = child->id;
		rc = hmm_residency_remap(child, o->to, o->start, o->end - o->start);
		hmm_forget(child, o->to, to_end);
		pthread_mutex_lock(&child->lock);
		if (!rc && umm_inside_registered(child->space->uffd, o->start) != -ENOENT)
			rc = hmm_iset_add(&child->registered, o->start, o->end);
		pthread_mutex_unlock(&child->lock);
	}
	return rc;
}

/* Has it anything there?  0, -ENOENT, or -EBUSY: it changes its mappings without end. */
static int has_settled(struct hmm_mm *child, uint64_t addr)
{
	int rc;

	for (unsigned tries = 0; (rc = umm_inside_registered(child->space->uffd, addr)) == -EAGAIN; tries++) {
		if (tries == CHILD_TRIES)
			return -EBUSY;
		umm_space_drain(child->space);
		umm_yield(tries);
	}
	return rc;
}

#define GONE UINT64_MAX
#define OWN_MAX 4096u /* each page is looked for in all of them */

/* A change that a child's own event told of. */
struct own_change {
	struct own_change *next;
	struct umm_change c;
};

/* Those since it was forked, in their order. */
struct hmm_own {
	struct own_change *first;
	struct own_change **last;
	unsigned n;
	bool failed; /* one was not noted */
};

void hmm_overtaken_own(struct hmm_mm *child, const struct umm_change *c)
{
	struct own_change *new = NULL;

	/* Who goes on for longer than that is given up: its parent waits. */
	if (child->own->n++ < OWN_MAX)
		new = umm_alloc(child->space, sizeof(*new));
	if (!new) {
		child->own->failed = true;
		return;
	}
	*new = (struct own_change){.c = *c};
	*child->own->last = new;
	child->own->last = &new->next;
}

static void own_free(struct hmm_mm *child, struct hmm_own *own)
{
	for (struct own_change *next, *at = own->first; at; at = next) {
		next = at->next;
		umm_free(child->space, at, sizeof(*at));
	}
}

static bool has_come_to(const struct umm_change *c, uint64_t addr)
{
	return c->event == UMM_EVENT_REMAP && addr >= c->new_start && addr - c->new_start < c->end - c->start;
}

/* Where the child has now what it was forked with at @addr, or GONE. */
static uint64_t where_now(const struct hmm_mm *child, uint64_t addr)
{
	for (const struct own_change *own = child->own->first; own; own = own->next) {
		const struct umm_change *c = &own->c;

		if (has_come_to(c, addr))
			return GONE;
		if (addr < c->start || addr >= c->end)
			continue;
		if (c->event != UMM_EVENT_REMAP)
			return GONE;
		addr = addr - c->start + c->new_start;
	}
	return addr;
}

/*
 * Had it anything at @addr, in [@start, @end), when it was forked?  0, -ENOENT, -EBUSY as above, or 1: it does not say,
 * having unmapped more than that range.
 */
static int had_at(struct hmm_mm *child, uint64_t addr, uint64_t start, uint64_t end)
{
	int rc = has_settled(child, addr);

	if (child->own->failed)
		return -EBUSY;
	for (const struct own_change *own = child->own->first; own && rc != -EBUSY; own = own->next) {
		const struct umm_change *c = &own->c;

		if (has_come_to(c, addr)) /* what was unmapped there had its event before */
			return -ENOENT;
		if (addr >= c->start && addr < c->end)
			return c->event == UMM_EVENT_UNMAP && (c->start < start || c->end > end);
	}
	return rc;
}

/*
 * Had it anything at @addr, where the move @o went?  As above, but an unmapping may go on behind what was moved: it may
 * have grown as it was, which the event of it does not tell.
 */
static int had_to(struct hmm_mm *child, const struct hmm_overtaken *o, uint64_t addr)
{
	return had_at(child, addr, o->to, UINT64_MAX);
}

/* The child has had [start, end): what is left of it after @own is registered.  0 or -errno. */
static int register_what_is_left(struct hmm_mm *child, uint64_t start, uint64_t end, const struct own_change *own)
{
	int rc;

	for (; own && start < end; own = own->next) {
		const struct umm_change *c = &own->c;
		uint64_t a = c->start > start ? c->start : start, z = c->end < end ? c->end : end;

		if (c->event == UMM_EVENT_CLEAR || a >= z)
			continue;
		rc = register_what_is_left(child, start, a, own->next);
		if (!rc)
			rc = register_what_is_left(child, z, end, own->next);
		if (rc || c->event == UMM_EVENT_UNMAP)
			return rc;
		start = a - c->start + c->new_start;
		end = z - c->start + c->new_start;
	}
	pthread_mutex_lock(&child->lock);
	rc = hmm_iset_add(&child->registered, start, end);
	pthread_mutex_unlock(&child->lock);
	return rc;
}

static bool same_entry(hmm_entry_t a, hmm_entry_t b)
{
	return hmm_entry_with_heat(a, 0) == hmm_entry_with_heat(b, 0); /* by heat they may differ */
}

static bool has_registered(struct hmm_mm *mm, uint64_t addr)
{
	bool is;

	pthread_mutex_lock(&mm->lock);
	is = hmm_iset_meets(&mm->registered, addr, addr + UMM_PAGE);
	pthread_mutex_unlock(&mm->lock);
	return is;
}

/* @e is parked for the parent: to be given. */
static hmm_entry_t parked_copy(struct hmm_mm *mm, hmm_entry_t e)
{
	unsigned b = hmm_entry_payload(e) >> 16 & (UMM_BATCHES - 1), s = hmm_entry_payload(e) & 0xffff;

	return hmm_entry(HMM_PARKED, 0, (uintptr_t)hmm_slot_page(mm, b, s), 0);
}

/* What was entered at @a, where the move @o has brought it, and where it was before.  @from: had it anything there? */
static int choose_page(struct hmm_mm *mm, struct hmm_mm *child, const struct hmm_overtaken *o, int from, uint64_t a)
{
	uint64_t before = a - o->to + o->start, wrong, right;
	bool sure = from == -ENOENT || (!from && !o->again), after = from == -ENOENT || o->again;
	int to = sure ? 0 : had_to(child, o, a), rc;
	hmm_entry_t e, own = entry_at(mm, before);

	if (to < 0)
		return to == -ENOENT ? 0 : to; /* look_again() */
	wrong = where_now(child, after ? before : a);
	right = where_now(child, after ? a : before);
	if (wrong == GONE || !entry_at(child, wrong))
		return 0;
	e = entry_at(child, wrong);
	/*
	 * It may have been there before, and nothing was entered: what the parent has there was inherited.  That what
	 * is there is equal does not say that it was entered: pages of one repeated word have the same handle.
	 * What is PARKING is not cloned.
	 */
	if (after && !hmm_entry_here(own) && hmm_entry_state(own) != HMM_PARKING &&
	    !hmm_iset_meets(child->empty, before, before + UMM_PAGE)) {
		if (hmm_entry_state(own) != HMM_PARKED || hmm_entry_state(e) == HMM_PARKED)
			return 0;
		/* That was not in the child's records yet: what the move took from there may have been entered. */
		hmm_residency_drop(child, wrong, wrong + UMM_PAGE);
		return give_or_ask(mm, child, wrong, parked_copy(mm, own));
	}
	/* In its way was what a later move had brought there, which was not the child's and has gone again. */
	if (!after && right != GONE && !entry_at(child, right) && hmm_entry_state(e) != HMM_PARKED) {
		if (hmm_entry_state(e) == HMM_POISONED)
			e = hmm_entry(HMM_POISONED, 0, WAS_LOST, 0);
		rc = give_or_ask(mm, child, right, e);
		if (rc)
			return rc;
	}
	if (right != GONE && !same_entry(entry_at(child, wrong), entry_at(child, right)))
		return 0;
	/* It does not say, and what the parent has there may be inherited: neither is known to be the child's. */
	if (!after && from && right != GONE && has_registered(mm, before)) {
		hmm_residency_drop(child, right, right + UMM_PAGE);
		rc = give_or_ask(mm, child, right, hmm_entry(HMM_POISONED, 0, 0, 0));
		if (rc)
			return rc;
	}
	hmm_residency_drop(child, wrong, wrong + UMM_PAGE);
	return (after ? to : from) ? give_or_ask(mm, child, wrong, hmm_entry(HMM_POISONED, 0, 0, 0)) : 0;
}

/* Had it anything where move @n came from?  As above. */
static int had_from(struct hmm_mm *mm, struct hmm_mm *child, unsigned n)
{
	const struct hmm_overtaken *o = nth(mm, n - 1);
	uint64_t last = o->end - UMM_PAGE;
	int rc = had_at(child, o->start, o->start, o->end);

	if (rc != 1)
		return rc;
	/*
	 * An unmapping that began below says nothing of the first page; the last one it may have left.  What is there
	 * may be of something smaller in the hole, and inherited: @o->again is of the first page.
	 */
	rc = had_at(child, last, o->start, o->end);
	return !rc && has_registered(mm, last) && !moved_over(mm, child, last, n) ? 1 : rc;
}

/* What was entered at both places: one of them is not the child's, even if it has something there. */
static int choose(struct hmm_mm *mm, struct hmm_mm *child, unsigned n)
{
	struct hmm_overtaken *o = nth(mm, n - 1);
	uint64_t to_end = o->to + (o->end - o->start);
	int from = had_from(mm, child, n), to = had_to(child, o, o->to), rc = 0;
	const struct hmm_interval *in;

	if (from == -EBUSY || to == -EBUSY)
		return -EBUSY;
	if (to == -ENOENT && has_settled(child, o->to) == -ENOENT)
		hmm_forget(child, o->to, to_end);
	/* What the parent has there again came by a later move, and that the child has not. */
	o->again &= !moved_over(mm, child, o->start, n);
	if (!from)
		rc = register_what_is_left(child, o->start, o->end, child->own->first);
	/* Where it had nothing it may nevertheless have something in a part: what was mapped in the hole again. */
	for (uint64_t a = o->to; !rc && (in = hmm_iset_next(&child->unsure, a)); a += UMM_PAGE) {
		a = in->start > a ? in->start : a;
		if (a >= to_end)
			break;
		rc = choose_page(mm, child, o, from, a);
	}
	/* Forked before the move, it has at that place what the move has replaced. */
	for (const struct hmm_kept *k = mm->kept; k && !rc && from != -ENOENT && !o->again; k = k->next)
		for (unsigned i = 0; i < HMM_LEAF_PAGES && !rc && k->nr == n - 1; i++) {
			uint64_t a = k->base + i * UMM_PAGE, at;

			if (!k->e[i] || a < o->to || a >= to_end)
				continue;
			at = where_now(child, a);
			if (at != GONE)
				rc = give_or_ask(mm, child, at, from ? hmm_entry(HMM_POISONED, 0, 0, 0) : k->e[i]);
		}
	/* Known now, for the earlier ones that are chosen next. */
	o->unsure = false;
	if (from == -ENOENT || o->again)
		o->by = 0;
	return rc;
}

static int look_again(struct hmm_mm *child, const struct hmm_iset *unsure)
{
	for (unsigned i = 0; i < unsure->n; i++)
		for (uint64_t at = unsure->v[i].start; at < unsure->v[i].end; at += UMM_PAGE) {
			int rc = has_settled(child, at);

			if (rc == -EBUSY)
				return rc;
			if (rc == -ENOENT)
				hmm_residency_drop(child, at, at + UMM_PAGE);
		}
	return 0;
}

/*
 * A child of the child's that it has at this moment gets its records as they are
 * now, and with them what is unsure: of it, too, it is asked.
 */
int hmm_overtaken_settle(struct hmm_mm *mm, struct hmm_mm *child)
{
	struct hmm_own own = {.last = &own.first};
	int rc = 0;

	child->own = &own;
	for (unsigned n = mm->novertaken, k = 0; n && k < HMM_OVERTAKEN && !rc; n--, k++)
		if (nth(mm, n - 1)->by == child->id && nth(mm, n - 1)->unsure)
			rc = choose(mm, child, n);
	if (!rc && own.failed)
		rc = -ENOMEM;
	child->own = NULL;
	own_free(child, &own);
	if (!rc)
		rc = look_again(child, &child->unsure);
	hmm_iset_clear(&child->unsure);
	return rc ? rc : look_again(child, &mm->unsure);
}

int hmm_overtaken_mend(struct hmm_mm *mm, struct hmm_mm *child)
{
	struct again again = {0};
	int rc = lead_back(mm, child, &again);

	if (!rc && hmm_overtaken_blind(mm))
		rc = -ENOMEM;
	for (struct hmm_kept *k = mm->kept; k && !rc; k = k->next)
		for (unsigned i = 0; i < HMM_LEAF_PAGES && !rc; i++) {
			uint64_t addr = k->base + i * UMM_PAGE, to = where(mm, child, addr, k->nr);

			if (!k->e[i] ||
			    (to == addr && !moved_over(mm, child, addr, k->nr) && mapped_again(mm, addr, &again)))
				continue;
			rc = give_kept(mm, child, addr, k->nr, k->e[i]);
		}
	return rc;
}

/* ------------------------------------------------------- of a linked engine */

bool hmm_overtaken_again(struct hmm_mm *mm, uint64_t addr, bool *asked)
{
	struct again g = {.asked = *asked};
	unsigned char in;
	bool is;

	/*
	 * By our records alone it would be until they have been told of that it was unmapped.  Without malloc: another
	 * thread may be in fork(), see linked.c.
	 */
	if (mincore((void *)(uintptr_t)addr, UMM_PAGE, &in) && errno == ENOMEM)
		return false;
	is = has_registered(mm, addr);
	/* What a mapping has grown by is registered, and so is what is only watched; no record has it. */
	if (!is)
		is = is_registered(mm, addr, &g);
	*asked = g.asked;
	return is;
}

uint64_t hmm_overtaken_place(struct hmm_mm *mm, uint64_t addr, unsigned nr, bool (*had)(void *arg, uint64_t addr),
			     void *arg, bool *asked)
{
	uint64_t now = umm_now_ns(), place = addr;

	for (unsigned n = mm->novertaken, k = 0; n && k < HMM_OVERTAKEN; n--, k++) {
		const struct hmm_overtaken *o = nth(mm, n - 1);
		uint64_t from = addr - o->to + o->start;

		if (now - o->at_ns > HMM_LATE_NS)
			break;
		if (n > nr || addr < o->to || addr - o->to >= o->end - o->start)
			continue;
		/* Not where it was in between: that may be empty because all had left it before the fork. */
		if (had(arg, from) && (!had(arg, place) || !hmm_overtaken_again(mm, from, asked)))
			place = from;
		addr = from;
	}
	return place;
}
