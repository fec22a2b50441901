/* SPDX-License-Identifier: MIT */
/*
 * Making room in a tier: what went out longest ago moves on to the next one.
 *
 * Without it a full first tier keeps what is coldest, and everything that goes
 * out from then on, hot or not, lands in the slow one.
 *
 * The record is the only place that knows a page's address, so the walk goes
 * over the records: a hand of its own for each space, passing over pages that
 * went out less than COLD_LAPS of the clock ago (a scan in a circle brings each
 * page back within one: moving it on would only cost), and pages that another
 * space shares (the copy would stay for the other).
 *
 * Copying holds no lock.  A page is replaced only if its entry is still the
 * same afterwards; the reference taken for the copy keeps its handle from being
 * used for another page meanwhile.
 */
#include <stdlib.h>

#include <string.h>

#include "hmm/internal.h"

#define DEMOTE_PAGES 64u
#define DEMOTE_LEAVES 64u /* most to look at in one go */
#define COLD_LAPS 2u
#define FULL_OF_16 15u /* sixteenths of its capacity from which a tier is relieved */
#define GOAL_OF_16 14u

struct lot {
	struct hmm_leaf *leaf[DEMOTE_PAGES];
	uint16_t index[DEMOTE_PAGES];
	hmm_entry_t e[DEMOTE_PAGES];
	hmm_handle_t handle[DEMOTE_PAGES];
	unsigned n;
};

static uint64_t over(struct hmm_device *d, unsigned sixteenths)
{
	struct hmm_device_stats st = {0};
	uint64_t most;

	d->ops->stats(d, &st);
	if (st.bytes_capacity == UINT64_MAX)
		return 0;
	most = st.bytes_capacity / 16 * sixteenths;
	return st.bytes_ram > most ? st.bytes_ram - most : 0;
}

/* The next cold pages of @tier from the hand on.  False: none in what may be looked at. */
static bool lot_gather(struct hmm_mm *mm, unsigned tier, struct lot *l, unsigned *leaves)
{
	struct hmm_device *d = mm->h->chain.dev[tier];
	unsigned tick = atomic_load(&mm->tick);

	l->n = 0;
	while (l->n < DEMOTE_PAGES) {
		struct hmm_leaf *leaf = hmm_leaf_next(mm, mm->demote_hand, 1ull << 47);
		unsigned i;

		if (!leaf) {
			mm->demote_hand = 0;
			*leaves += DEMOTE_LEAVES / 2; /* two rounds of few leaves are enough, too */
			if (*leaves >= DEMOTE_LEAVES)
				break;
			continue;
		}
		if (++*leaves > DEMOTE_LEAVES)
			break;
		i = mm->demote_hand > leaf->base ? hmm_leaf_index(mm->demote_hand) : 0;
		unsigned first = l->n; /* of this leaf; one of few leaves may come again in the same lot */
		pthread_mutex_lock(&leaf->lock);
		for (; leaf->held && i < HMM_LEAF_PAGES && l->n < DEMOTE_PAGES; i++) {
			hmm_entry_t e = leaf->e[i];

			if (hmm_entry_state(e) != HMM_DEVICE || hmm_entry_tier(e) != tier)
				continue;
			if (((tick - hmm_entry_tick(e)) & (HMM_TICKS - 1)) < COLD_LAPS * HMM_LAP_TICKS)
				continue;
			if (d->ops->shared && d->ops->shared(d, hmm_entry_payload(e)))
				continue;
			l->leaf[l->n] = leaf;
			l->index[l->n] = (uint16_t)i;
			l->e[l->n] = e;
			l->handle[l->n++] = hmm_entry_payload(e);
		}
		/* Under the leaf lock: afterwards the page could be brought back and its handle be another's. */
		if (l->n > first)
			d->ops->get(d, l->handle + first, l->n - first);
		if (!leaf->held)
			i = HMM_LEAF_PAGES;
		pthread_mutex_unlock(&leaf->lock);
		mm->demote_hand = leaf->base + (uint64_t)i * UMM_PAGE;
		if (mm->demote_hand < leaf->base + (1ull << HMM_LEAF_SHIFT) && l->n < DEMOTE_PAGES)
			mm->demote_hand = leaf->base + (1ull << HMM_LEAF_SHIFT);
	}
	return l->n > 0;
}

/* Returns pages that moved on. */
static unsigned lot_move(struct hmm_mm *mm, unsigned tier, struct lot *l, char *buf)
{
	struct hmm_chain *c = &mm->h->chain;
	struct hmm_device *d = c->dev[tier];
	void *dst[DEMOTE_PAGES];
	const void *src[DEMOTE_PAGES];
	int status[DEMOTE_PAGES];
	hmm_handle_t to[DEMOTE_PAGES];
	uint8_t to_tier[DEMOTE_PAGES];
	unsigned moved = 0;

	for (unsigned i = 0; i < l->n; i++)
		src[i] = dst[i] = buf + i * UMM_PAGE;
	d->ops->copy_out(d, l->handle, dst, status, l->n);
	hmm_chain_in(mm->h, tier + 1, src, to, to_tier, l->n);
	explicit_bzero(buf, l->n * UMM_PAGE);
	umm_evlock_shared(&mm->space->ctl->evlock);
	for (unsigned i = 0; i < l->n; i++) {
		struct hmm_leaf *leaf = l->leaf[i];

		if (to[i] == HMM_HANDLE_NONE)
			continue;
		pthread_mutex_lock(&leaf->lock);
		/* A page that could not be read stays where it is: whoever touches it shall learn. */
		if (!status[i] && leaf->e[l->index[i]] == l->e[i]) {
			hmm_entry_t e = hmm_entry(HMM_DEVICE, to_tier[i], to[i], 0);

			hmm_entry_set(mm, leaf, l->index[i], hmm_entry_with_tick(e, hmm_entry_tick(l->e[i])));
			d->ops->put(d, &l->handle[i], 1);
			moved++;
		} else {
			struct hmm_device *t = c->dev[to_tier[i]];

			t->ops->put(t, &to[i], 1);
		}
		pthread_mutex_unlock(&leaf->lock);
	}
	umm_evlock_unshared(&mm->space->ctl->evlock);
	d->ops->put(d, l->handle, l->n);
	return moved;
}

void hmm_demote(struct hmm_mm *mm)
{
	struct hmm *h = mm->h;
	struct hmm_chain *c = &h->chain;
	struct lot l;

	for (unsigned t = 0; t + 1 < c->n; t++) {
		unsigned leaves = 0;

		if (!over(c->dev[t], FULL_OF_16))
			continue;
		if (!h->demote_buf && posix_memalign((void **)&h->demote_buf, UMM_PAGE, DEMOTE_PAGES * UMM_PAGE))
			return;
		while (over(c->dev[t], GOAL_OF_16) && !atomic_load(&mm->dead) && lot_gather(mm, t, &l, &leaves))
			if (!lot_move(mm, t, &l, h->demote_buf))
				break; /* the next tier is full, too */
	}
}
