/* SPDX-License-Identifier: MIT */
/*
 * The one record of where each page of a space is.
 *
 * A radix tree by address; look-ups take no lock.  Leaves are added when a
 * page first leaves its mapping and freed only with the event lock held
 * exclusively (nobody else is in the tree then) or with the space.
 *
 * There are none from HMM_ADDR_END on, where a program may map with five levels of
 * page tables: nothing there is managed, and it is none of the addresses below it.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "hmm/internal.h"

int hmm_radix_init(struct hmm_radix *r)
{
	memset(r, 0, sizeof(*r));
	return -pthread_mutex_init(&r->lock, NULL);
}

static struct hmm_mid *mid_find(struct hmm_radix *r, uint64_t addr)
{
	struct hmm_top *top = NULL;

	if (addr < HMM_ADDR_END)
		top = atomic_load_explicit(&r->top[addr >> 39 & 255], memory_order_acquire);
	return top ? atomic_load_explicit(&top->mid[addr >> 30 & 511], memory_order_acquire) : NULL;
}

struct hmm_leaf *hmm_leaf_find(struct hmm_mm *mm, uint64_t addr)
{
	struct hmm_mid *mid = mid_find(&mm->radix, addr);

	return mid ? atomic_load_explicit(&mid->leaf[addr >> HMM_LEAF_SHIFT & 511], memory_order_acquire) : NULL;
}

struct hmm_leaf *hmm_leaf_get(struct hmm_mm *mm, uint64_t addr)
{
	struct hmm_radix *r = &mm->radix;
	struct hmm_leaf *leaf = hmm_leaf_find(mm, addr);
	struct hmm_top *top;
	struct hmm_mid *mid;

	if (leaf || addr >= HMM_ADDR_END)
		return leaf;
	pthread_mutex_lock(&r->lock);
	top = atomic_load(&r->top[addr >> 39 & 255]);
	if (!top) {
		top = umm_alloc(mm->space, sizeof(*top));
		if (!top)
			goto out;
		atomic_store_explicit(&r->top[addr >> 39 & 255], top, memory_order_release);
	}
	mid = atomic_load(&top->mid[addr >> 30 & 511]);
	if (!mid) {
		mid = umm_alloc(mm->space, sizeof(*mid));
		if (!mid)
			goto out;
		atomic_store_explicit(&top->mid[addr >> 30 & 511], mid, memory_order_release);
	}
	leaf = atomic_load(&mid->leaf[addr >> HMM_LEAF_SHIFT & 511]);
	if (!leaf) {
		leaf = umm_alloc(mm->space, sizeof(*leaf));
		if (!leaf)
			goto out;
		leaf->base = addr & ~((1ull << HMM_LEAF_SHIFT) - 1);
		pthread_mutex_init(&leaf->lock, NULL);
		atomic_store_explicit(&mid->leaf[addr >> HMM_LEAF_SHIFT & 511], leaf, memory_order_release);
		atomic_fetch_add(&r->leaves, 1);
	}
out:
	pthread_mutex_unlock(&r->lock);
	return leaf;
}

struct hmm_leaf *hmm_leaf_next(struct hmm_mm *mm, uint64_t addr, uint64_t end)
{
	struct hmm_radix *r = &mm->radix;

	if (end > 1ull << 47)
		end = 1ull << 47;
	while (addr < end) {
		struct hmm_top *top = atomic_load_explicit(&r->top[addr >> 39 & 255], memory_order_acquire);
		struct hmm_mid *mid;
		struct hmm_leaf *leaf;

		if (!top) {
			addr = ((addr >> 39) + 1) << 39;
			continue;
		}
		mid = atomic_load_explicit(&top->mid[addr >> 30 & 511], memory_order_acquire);
		if (!mid) {
			addr = ((addr >> 30) + 1) << 30;
			continue;
		}
		leaf = atomic_load_explicit(&mid->leaf[addr >> HMM_LEAF_SHIFT & 511], memory_order_acquire);
		if (leaf)
			return leaf;
		addr = ((addr >> HMM_LEAF_SHIFT) + 1) << HMM_LEAF_SHIFT;
	}
	return NULL;
}

#ifndef NDEBUG
static bool step_is_legal(enum hmm_page_state from, enum hmm_page_state to)
{
	static const uint8_t next[] = {
		/* All but the first: fork. */
		[HMM_SYSTEM] = 1 << HMM_PARKING | 1 << HMM_PARKED | 1 << HMM_DEVICE | 1 << HMM_POISONED,
		[HMM_PARKING] = 1 << HMM_PARKED | 1 << HMM_CLEAN,
		[HMM_PARKED] = 1 << HMM_DEVICE | 1 << HMM_CLEAN,
		[HMM_DEVICE] = 1 << HMM_POISONED | 1 << HMM_CLEAN,
		[HMM_POISONED] = 0,
		[HMM_CLEAN] = 1 << HMM_PARKING,
	};

	return to == HMM_SYSTEM || from == to || (next[from] & 1 << to);
}
#endif

void hmm_entry_set(struct hmm_mm *mm, struct hmm_leaf *leaf, unsigned i, hmm_entry_t e)
{
	hmm_entry_t old = leaf->e[i];
	enum hmm_page_state from = hmm_entry_state(old), to = hmm_entry_state(e);

	assert(step_is_legal(from, to));
	if ((from == HMM_SYSTEM) != (to == HMM_SYSTEM))
		leaf->held += to == HMM_SYSTEM ? -1u : 1u;
	if (hmm_entry_here(old) != hmm_entry_here(e))
		atomic_fetch_add(&mm->radix.away, hmm_entry_here(e) ? -1ull : 1ull);
	if (from == HMM_CLEAN)
		atomic_fetch_sub(&mm->h->clean[hmm_entry_tier(old)], 1);
	if (to == HMM_CLEAN)
		atomic_fetch_add(&mm->h->clean[hmm_entry_tier(e)], 1);
	leaf->whole = false;
	leaf->e[i] = e;
}

/* Handles to let go, gathered so that a device takes its lock once for many. */
struct putter {
	struct hmm *h;
	unsigned n[HMM_TIERS_MAX];
	hmm_handle_t v[HMM_TIERS_MAX][64];
};

static void putter_flush(struct putter *p, unsigned tier)
{
	struct hmm_device *d = p->h->chain.dev[tier];

	if (p->n[tier])
		d->ops->put(d, p->v[tier], p->n[tier]);
	p->n[tier] = 0;
}

static void putter_add(struct putter *p, unsigned tier, hmm_handle_t handle)
{
	p->v[tier][p->n[tier]++] = handle;
	if (p->n[tier] == 64)
		putter_flush(p, tier);
}

static void putter_end(struct putter *p)
{
	for (unsigned t = 0; t < p->h->chain.n; t++)
		putter_flush(p, t);
}

static struct hmm_slot *slot_of(struct hmm_mm *mm, hmm_entry_t e)
{
	uint64_t payload = hmm_entry_payload(e);

	return &mm->slot[payload >> 16 & (UMM_BATCHES - 1)][payload & 0xffff];
}

/* An entry that is not SYSTEM loses its page.  Leaf lock held. */
static void entry_drop(struct hmm_mm *mm, struct hmm_leaf *leaf, unsigned i, struct putter *p)
{
	hmm_entry_t e = leaf->e[i];

	switch (hmm_entry_state(e)) {
	case HMM_PARKING:
		/* It may not have been moved yet: then it must not be, what is there next is another page. */
		atomic_fetch_add(&mm->space->ctl->epoch, 1);
		/* fallthrough */
	case HMM_PARKED: {
		struct hmm_slot *slot = slot_of(mm, e);

		if (slot->clean)
			putter_add(p, hmm_entry_tier(slot->clean), hmm_entry_payload(slot->clean));
		slot->clean = 0;
		slot->addr = 0;
		break;
	}
	case HMM_CLEAN:
	case HMM_DEVICE:
		putter_add(p, hmm_entry_tier(e), hmm_entry_payload(e));
		break;
	default:
		break;
	}
	hmm_entry_set(mm, leaf, i, 0);
}

void hmm_residency_drop(struct hmm_mm *mm, uint64_t start, uint64_t end)
{
	struct putter p = {.h = mm->h};
	struct hmm_leaf *leaf;

	for (uint64_t at = start; (leaf = hmm_leaf_next(mm, at, end)); at = leaf->base + (1ull << HMM_LEAF_SHIFT)) {
		uint64_t a = leaf->base > start ? leaf->base : start;
		uint64_t z = leaf->base + (1ull << HMM_LEAF_SHIFT);

		if (z > end)
			z = end;
		pthread_mutex_lock(&leaf->lock);
		for (; leaf->held && a < z; a += UMM_PAGE)
			if (hmm_entry_state(leaf->e[hmm_leaf_index(a)]) != HMM_SYSTEM)
				entry_drop(mm, leaf, hmm_leaf_index(a), &p);
		pthread_mutex_unlock(&leaf->lock);
	}
	putter_end(&p);
}

int hmm_residency_remap(struct hmm_mm *mm, uint64_t from, uint64_t to, uint64_t len)
{
	struct hmm_leaf *leaf;
	int rc = 0;

	/* What was known of the target went with its mapping. */
	hmm_residency_drop(mm, to, to + len);
	for (uint64_t at = from; (leaf = hmm_leaf_next(mm, at, from + len));
	     at = leaf->base + (1ull << HMM_LEAF_SHIFT)) {
		uint64_t a = leaf->base > from ? leaf->base : from;
		uint64_t z = leaf->base + (1ull << HMM_LEAF_SHIFT);

		if (z > from + len)
			z = from + len;
		/* Exclusive event lock: the leaf locks are for show, but the rule is simple. */
		for (; a < z; a += UMM_PAGE) {
			unsigned i = hmm_leaf_index(a);
			hmm_entry_t e = leaf->e[i];

			if (hmm_entry_state(e) == HMM_CLEAN)
				hmm_clean_forget(mm, leaf, i);
			if (hmm_entry_here(e))
				continue;
			struct hmm_leaf *dst = hmm_leaf_get(mm, to + (a - from));
			if (!dst) {
				rc = -ENOMEM;
				continue;
			}
			if (hmm_entry_state(e) == HMM_PARKING || hmm_entry_state(e) == HMM_PARKED)
				slot_of(mm, e)->addr = to + (a - from);
			if (hmm_entry_state(e) == HMM_PARKING)
				atomic_fetch_add(&mm->space->ctl->epoch, 1);
			pthread_mutex_lock(&leaf->lock);
			hmm_entry_set(mm, leaf, i, 0);
			pthread_mutex_unlock(&leaf->lock);
			pthread_mutex_lock(&dst->lock);
			unsigned j = hmm_leaf_index(to + (a - from));
			dst->e[j] = e;
			dst->held++;
			atomic_fetch_add(&mm->radix.away, 1);
			pthread_mutex_unlock(&dst->lock);
		}
	}
	return rc;
}

int hmm_residency_clone(struct hmm_mm *mm, struct hmm_mm *child)
{
	struct hmm_leaf *leaf;

	for (uint64_t at = 0; (leaf = hmm_leaf_next(mm, at, 1ull << 47)); at = leaf->base + (1ull << HMM_LEAF_SHIFT)) {
		struct hmm_leaf *to;
		hmm_handle_t get[HMM_LEAF_PAGES];

		if (!leaf->held)
			continue;
		to = hmm_leaf_get(child, leaf->base);
		if (!to)
			return -ENOMEM;
		pthread_mutex_lock(&leaf->lock);
		for (unsigned t = 0; t < mm->h->chain.n; t++) {
			struct hmm_device *d = mm->h->chain.dev[t];
			unsigned n = 0;

			for (unsigned i = 0; i < HMM_LEAF_PAGES; i++)
				if (hmm_entry_state(leaf->e[i]) == HMM_DEVICE && hmm_entry_tier(leaf->e[i]) == t)
					get[n++] = hmm_entry_payload(leaf->e[i]);
			if (n)
				d->ops->get(d, get, n);
		}
		for (unsigned i = 0; i < HMM_LEAF_PAGES; i++) {
			hmm_entry_t e = leaf->e[i];

			if (hmm_entry_state(e) == HMM_DEVICE || hmm_entry_state(e) == HMM_POISONED)
				hmm_entry_set(child, to, i, e);
		}
		pthread_mutex_unlock(&leaf->lock);
	}
	return 0;
}

void hmm_radix_destroy(struct hmm_mm *mm)
{
	struct hmm_radix *r = &mm->radix;

	hmm_residency_drop(mm, 0, 1ull << 47);
	for (unsigned t = 0; t < 256; t++) {
		struct hmm_top *top = atomic_load(&r->top[t]);

		for (unsigned m = 0; top && m < 512; m++) {
			struct hmm_mid *mid = atomic_load(&top->mid[m]);

			for (unsigned l = 0; mid && l < 512; l++) {
				struct hmm_leaf *leaf = atomic_load(&mid->leaf[l]);

				if (leaf)
					umm_free(mm->space, leaf->stamp, HMM_LEAF_PAGES * sizeof(*leaf->stamp));
				umm_free(mm->space, leaf, sizeof(*leaf));
			}
			umm_free(mm->space, mid, sizeof(*mid));
		}
		umm_free(mm->space, top, sizeof(*top));
	}
	pthread_mutex_destroy(&r->lock);
}
