/* SPDX-License-Identifier: MIT */
/*
 * Devices at the pages that they hold.
 *
 * DOC: reading and writing where a page is
 *
 * A device that looks at a page in its own memory need not have it brought
 * back.  Reading takes references, as a fault does, copies, and looks again: a
 * device may have lent the memory itself for the way home (hmm_device_ops.lend), and
 * of what has left meanwhile nothing that was read counts.  Writing
 * gives the device the new contents first and then, under the locks that
 * change a record, puts the new handle in the old one's place; where the page
 * has left meanwhile the new contents are let go, and the caller learns that
 * the page is elsewhere now.
 */
#include <errno.h>

#include "hmm/internal.h"

static bool on_tier(hmm_entry_t e, unsigned tier)
{
	return hmm_entry_state(e) == HMM_DEVICE && hmm_entry_tier(e) == tier;
}

/* How many of the first @n pages from @addr are on @tier as @handle says. */
static unsigned still_there(struct hmm_mm *mm, unsigned tier, uint64_t addr, const hmm_handle_t *handle, unsigned n)
{
	unsigned i = hmm_leaf_index(addr), k = 0;
	struct hmm_leaf *leaf;

	umm_evlock_shared(&mm->space->ctl->evlock);
	leaf = hmm_leaf_find(mm, addr);
	if (leaf) {
		pthread_mutex_lock(&leaf->lock);
		while (k < n && on_tier(leaf->e[i + k], tier) && hmm_entry_payload(leaf->e[i + k]) == handle[k])
			k++;
		pthread_mutex_unlock(&leaf->lock);
	}
	umm_evlock_unshared(&mm->space->ctl->evlock);
	return k;
}

int hmm_peek(struct hmm_mm *mm, unsigned tier, uint64_t addr, char *buf, unsigned n)
{
	struct hmm_device *d = mm->h->chain.dev[tier];
	hmm_handle_t handle[HMM_PLACE_MAX];
	int status[HMM_PLACE_MAX];
	void *dst[HMM_PLACE_MAX];
	unsigned i = hmm_leaf_index(addr), got = 0, good = 0, there;
	struct hmm_leaf *leaf;
	int rc;

	umm_evlock_shared(&mm->space->ctl->evlock);
	leaf = hmm_leaf_find(mm, addr);
	if (leaf) {
		pthread_mutex_lock(&leaf->lock);
		for (; got < n && got < HMM_PLACE_MAX && i + got < HMM_LEAF_PAGES && on_tier(leaf->e[i + got], tier);
		     got++) {
			handle[got] = hmm_entry_payload(leaf->e[i + got]);
			dst[got] = buf + got * UMM_PAGE;
		}
		if (got)
			d->ops->get(d, handle, got);
		pthread_mutex_unlock(&leaf->lock);
	}
	umm_evlock_unshared(&mm->space->ctl->evlock);
	if (!got)
		return 0;
	rc = d->ops->copy_out(d, handle, dst, status, got);
	/* What cannot be read ends it, and is the caller's to learn when it is the first. */
	while (good < got && (!rc || !status[good]))
		good++;
	there = still_there(mm, tier, addr, handle, good);
	d->ops->put(d, handle, got);
	return good ? (int)there : status[0];
}

int hmm_poke(struct hmm_mm *mm, unsigned tier, uint64_t addr, const char *buf, unsigned n)
{
	struct hmm_device *d = mm->h->chain.dev[tier];
	hmm_handle_t handle[HMM_PLACE_MAX], old[HMM_PLACE_MAX];
	const void *src[HMM_PLACE_MAX];
	unsigned i = hmm_leaf_index(addr), most, done = 0, nold = 0;
	struct hmm_leaf *leaf;
	bool refused;
	int rc;

	most = n < HMM_PLACE_MAX ? n : HMM_PLACE_MAX;
	if (most > HMM_LEAF_PAGES - i)
		most = HMM_LEAF_PAGES - i;
	/* Only a hint, so that nothing is copied for nothing; the look that counts is below. */
	leaf = hmm_leaf_find(mm, addr);
	for (unsigned k = 0; k < most; k++) {
		if (!leaf || !on_tier(leaf->e[i + k], tier))
			most = k;
		handle[k] = HMM_HANDLE_NONE;
		src[k] = buf + k * UMM_PAGE;
	}
	if (!most)
		return 0;
	rc = d->ops->copy_in(d, src, handle, most);
	if (rc < 0)
		return rc;
	refused = handle[0] == HMM_HANDLE_NONE;
	umm_evlock_shared(&mm->space->ctl->evlock);
	leaf = hmm_leaf_find(mm, addr);
	if (leaf) {
		pthread_mutex_lock(&leaf->lock);
		for (; done < most && handle[done] != HMM_HANDLE_NONE && on_tier(leaf->e[i + done], tier); done++) {
			hmm_entry_t e = leaf->e[i + done];

			old[nold++] = hmm_entry_payload(e);
			hmm_entry_set(mm, leaf, i + done, (e & ~HMM_ENTRY_PAYLOAD) | handle[done]);
		}
		pthread_mutex_unlock(&leaf->lock);
	}
	umm_evlock_unshared(&mm->space->ctl->evlock);
	if (nold)
		d->ops->put(d, old, nold);
	for (unsigned k = done; k < most; k++)
		if (handle[k] != HMM_HANDLE_NONE)
			d->ops->put(d, &handle[k], 1);
	return done ? (int)done : refused ? -ENOMEM : 0;
}
