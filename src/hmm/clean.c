/* SPDX-License-Identifier: MIT */
/*
 * Pages that are back, and of which a device still has a copy.
 *
 * DOC: clean drop
 *
 * A page that was only read since it came back need not be stored again when it
 * goes: the device has it.  Whether it was only read nobody tells: UFFDIO_MOVE
 * clears what a scan for written pages could see.  So the page is moved out as
 * any other and then, when nobody can write to it any more, compared with what
 * the device holds; that takes a fifth of the time of storing.
 *
 * Copies take room that other pages could have.  Who walks through more than
 * there is room for meets nothing of what it left behind anyway, and gains by
 * it; who goes about at random finds less there, and loses.  So only pages that
 * came as a part of a walk are kept.  There is a limit to them, a high one where
 * hardly a fault is anything else, and none are left where no fault is part of a walk
 * any more; they go first where a device is full; and where they hardly ever prove to
 * be clean only one cluster in SAMPLE is kept, to see when that changes.
 *
 * On a disk a copy costs no RAM: there all are kept, until it is nearly full or has
 * refused pages.
 *
 * An entry that is CLEAN has one reference to its handle.  When it becomes
 * PARKING its slot has it, and who empties the slot lets go of it, under the
 * leaf's lock.  Comparing holds no lock, and so has a reference of its own.
 */
#include "hmm/internal.h"

#define SCORE_MAX 256u
#define SCORE_KEEPS 96u
#define SAMPLE 16u
#define SCAN 16u      /* pages at a time that make a walk; walks by steps come back, and are none */
#define SHARE 8u      /* part of the budget that copies may take */
#define WALK_SHARE 2u /* the same of who only walks, by mm->seq_score */
#define WALKS 224u
#define ROOM_OF_32 26u /* parts of a device's capacity up to which copies are kept */
#define FULL_OF_32 28u /* and from which they go */
/* The last one gives nothing to a next when it is nearly full; if a thirty-second of it has room for a batch or two: */
#define LARGE (64ull << 20)
#define LAST_ROOM_OF_32 30u
#define LAST_FULL_OF_32 31u
#define LOOSE_PART 24u /* of what is stored, and that many bytes, may be holes */
#define LOOSE_BYTES (1ull << 20)
#define TIGHTEN_BYTES (4ull << 20)
#define TRIM_REST 64u
#define SHED_PAGES 512u
#define SHED_LEAVES 64u /* most to look at in one go */

/* A copy takes RAM that pages could have; on a disk it takes room only that nobody else wants. */
static bool costs_ram(const struct hmm *h, unsigned tier)
{
	return h->chain.dev[tier]->ops->caps & HMM_DEV_RAM;
}

static uint64_t kept_at_most(struct hmm_mm *mm, unsigned tier)
{
	uint32_t score = atomic_load(&mm->seq_score);

	if (score >= WALKS || !costs_ram(mm->h, tier))
		return atomic_load(&mm->h->clean_walk[tier]);
	return atomic_load(&mm->h->clean_max[tier]) * (score / HMM_SEQ_STEP) / (WALKS / HMM_SEQ_STEP);
}

bool hmm_clean_keeps(struct hmm_mm *mm, unsigned tier, unsigned cluster)
{
	struct hmm *h = mm->h;

	if (h->opt.linked || !h->chain.dev[tier]->ops->same || atomic_load(&h->clean[tier]) >= kept_at_most(mm, tier))
		return false;
	if (!costs_ram(h, tier))
		return true;
	/* Where nothing can go any more, what comes back makes room. */
	if (cluster < SCAN || atomic_load(&h->full))
		return false;
	return atomic_load(&mm->clean_score) >= SCORE_KEEPS || !(atomic_fetch_add(&mm->clean_turn, 1) % SAMPLE);
}

void hmm_clean_put(struct hmm *h, hmm_entry_t e)
{
	hmm_handle_t handle = hmm_entry_payload(e);

	if (e)
		h->chain.dev[hmm_entry_tier(e)]->ops->put(h->chain.dev[hmm_entry_tier(e)], &handle, 1);
}

void hmm_clean_forget(struct hmm_mm *mm, struct hmm_leaf *leaf, unsigned i)
{
	hmm_clean_put(mm->h, leaf->e[i]);
	hmm_entry_set(mm, leaf, i, 0);
}

/* What slot @s of batch @b kept, with a reference; 0: nothing. */
static hmm_entry_t clean_get(struct hmm_mm *mm, unsigned b, unsigned s)
{
	struct hmm_slot *slot = &mm->slot[b][s];
	hmm_entry_t e = 0;

	umm_evlock_shared(&mm->space->ctl->evlock); /* an event may move what is in the slot to another leaf */
	uint64_t addr = slot->addr;
	struct hmm_leaf *leaf = addr ? hmm_leaf_find(mm, addr) : NULL;
	if (leaf) {
		pthread_mutex_lock(&leaf->lock);
		if (slot->addr)
			e = slot->clean;
		if (e) {
			struct hmm_device *d = mm->h->chain.dev[hmm_entry_tier(e)];
			hmm_handle_t handle = hmm_entry_payload(e);

			d->ops->get(d, &handle, 1);
		}
		pthread_mutex_unlock(&leaf->lock);
	}
	umm_evlock_unshared(&mm->space->ctl->evlock);
	return e;
}

/* What slot @s of batch @b kept, @e, is old: what it takes is room for the page as it is now. */
static void clean_drop(struct hmm_mm *mm, unsigned b, unsigned s, hmm_entry_t e)
{
	struct hmm_slot *slot = &mm->slot[b][s];

	umm_evlock_shared(&mm->space->ctl->evlock);
	uint64_t addr = slot->addr;
	struct hmm_leaf *leaf = addr ? hmm_leaf_find(mm, addr) : NULL;
	if (leaf) {
		pthread_mutex_lock(&leaf->lock);
		if (slot->addr && slot->clean == e) {
			slot->clean = 0;
			hmm_clean_put(mm->h, e);
		}
		pthread_mutex_unlock(&leaf->lock);
	}
	umm_evlock_unshared(&mm->space->ctl->evlock);
}

unsigned hmm_clean_match(struct hmm_mm *mm, unsigned b, const void *const src[], const uint16_t index[],
			 hmm_handle_t handle[], uint8_t tier[], unsigned n)
{
	uint32_t score = atomic_load(&mm->clean_score);
	unsigned same = 0;

	for (unsigned i = 0; i < n; i++) {
		hmm_entry_t e = mm->slot[b][index[i]].clean ? clean_get(mm, b, index[i]) : 0;

		handle[i] = HMM_HANDLE_NONE;
		if (!e)
			continue;
		struct hmm_device *d = mm->h->chain.dev[hmm_entry_tier(e)];
		if (d->ops->same(d, hmm_entry_payload(e), src[i])) {
			handle[i] = hmm_entry_payload(e);
			tier[i] = (uint8_t)hmm_entry_tier(e);
			score += (SCORE_MAX - score + 15) / 16;
			same++;
		} else {
			clean_drop(mm, b, index[i], e);
			hmm_clean_put(mm->h, e);
			score -= (score + 15) / 16;
		}
	}
	atomic_store(&mm->clean_score, score);
	atomic_fetch_add(&mm->h->dropped_clean, same);
	return same;
}

/* Let @pages copies of @tier go, from the hand on, or what there is in what is looked at. */
static void shed(struct hmm_mm *mm, unsigned tier, uint64_t pages)
{
	struct hmm *h = mm->h;
	struct hmm_device *d = h->chain.dev[tier];
	uint64_t gone = 0;

	for (unsigned leaves = 0; atomic_load(&h->clean[tier]) && gone < pages && leaves < SHED_LEAVES; leaves++) {
		hmm_handle_t handle[HMM_LEAF_PAGES];
		unsigned n = 0;

		umm_evlock_shared(&mm->space->ctl->evlock);
		struct hmm_leaf *leaf = hmm_leaf_next(mm, mm->clean_hand, 1ull << 47);
		mm->clean_hand = leaf ? leaf->base + (1ull << HMM_LEAF_SHIFT) : 0;
		if (leaf) {
			pthread_mutex_lock(&leaf->lock);
			for (unsigned i = 0; leaf->held && i < HMM_LEAF_PAGES; i++) {
				hmm_entry_t e = leaf->e[i];

				if (hmm_entry_state(e) != HMM_CLEAN || hmm_entry_tier(e) != tier)
					continue;
				handle[n++] = hmm_entry_payload(e);
				hmm_entry_set(mm, leaf, i, hmm_entry(HMM_SYSTEM, 0, 0, hmm_entry_heat(e)));
			}
			pthread_mutex_unlock(&leaf->lock);
		}
		umm_evlock_unshared(&mm->space->ctl->evlock);
		if (n)
			d->ops->put(d, handle, n);
		gone += n;
	}
}

/*
 * What goes leaves holes, which only what comes fills again: when it has become
 * less for good, they take room that pages could have.  A little at a time, and
 * for a while not where nothing came of it.
 */
static void tighten(struct hmm *h, unsigned tier, const struct hmm_device_stats *st, uint64_t bytes)
{
	struct hmm_device *d = h->chain.dev[tier];
	uint64_t fit = st->bytes_stored + st->bytes_stored / LOOSE_PART + LOOSE_BYTES;

	if (!d->ops->trim)
		return;
	if (!bytes && st->bytes_ram > fit) {
		bytes = st->bytes_ram - fit < TIGHTEN_BYTES ? st->bytes_ram - fit : TIGHTEN_BYTES;
		if (atomic_load(&h->trim_rest[tier]) && atomic_fetch_sub(&h->trim_rest[tier], 1))
			return;
	}
	if (bytes && !d->ops->trim(d, bytes))
		atomic_store(&h->trim_rest[tier], TRIM_REST);
}

uint64_t hmm_clean_in_ram(struct hmm *h)
{
	uint64_t n = 0;

	for (unsigned t = 0; t < h->chain.n; t++)
		if (costs_ram(h, t))
			n += atomic_load(&h->clean[t]);
	return n;
}

void hmm_clean_shed(struct hmm_mm *mm, bool full)
{
	struct hmm *h = mm->h;

	for (unsigned t = 0; t < h->chain.n; t++) {
		struct hmm_device *d = h->chain.dev[t];
		struct hmm_device_stats st = {0};
		uint64_t room = UINT64_MAX, limit_taken = UINT64_MAX, most, taken, over;

		if (!d->ops->same)
			continue;
		d->ops->stats(d, &st);
		taken = costs_ram(h, t) ? st.bytes_ram : st.bytes_stored;
		uint64_t each = st.pages ? st.bytes_stored / st.pages : HMM_PAGE_SIZE;
		if (each < 64)
			each = 64;
		if (!costs_ram(h, t))
			each = HMM_PAGE_SIZE;
		if (st.bytes_capacity != UINT64_MAX) {
			bool last = t + 1 == h->chain.n && st.bytes_capacity >= LARGE;

			room = st.bytes_capacity / 32 * (last ? LAST_ROOM_OF_32 : ROOM_OF_32);
			room = (room > taken ? (room - taken) / each : 0) + atomic_load(&h->clean[t]);
			limit_taken = st.bytes_capacity / 32 * (last ? LAST_FULL_OF_32 : FULL_OF_32);
		}
		most = h->opt.budget / SHARE / each;
		atomic_store(&h->clean_max[t], most < room ? most : room);
		most = costs_ram(h, t) ? h->opt.budget / WALK_SHARE / each : room;
		atomic_store(&h->clean_walk[t], most < room ? most : room);
		uint64_t kept = atomic_load(&h->clean[t]), limit = kept_at_most(mm, t);

		over = kept && taken > limit_taken ? taken - limit_taken : 0;
		if (over || (kept && full))
			shed(mm, t, over / each + SHED_PAGES);
		else if (kept > limit)
			shed(mm, t, kept - limit); /* it walks no more */
		tighten(h, t, &st, over);
	}
}
