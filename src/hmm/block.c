/* SPDX-License-Identifier: MIT */
/*
 * A huge page that went to a device as one comes back as one.
 *
 * DOC: how
 *
 * It left an empty place in the page table, and as long as nothing else has come
 * to it (leaf->whole) UFFDIO_MOVE can put a huge page there.  The device copies
 * into a block of memory of ours, which is a huge page if the kernel has one, and
 * that is moved: at once, so nobody sees half of it.  One that touches a page of it
 * meanwhile gets that page in the usual way (fault.c), and so do all when the block
 * is refused: a mapping that has become read-only, say.
 *
 * A device with HMM_DEV_MARKED has no such place: the markers are small ones.  One with
 * HMM_DEV_KEEPS wants to be told what the CPU has written to, and what was moved counts
 * as that: its pages come as one where touches walk through them (fault.c), which is
 * worth more than the copies, and one by one when they are asked for.
 *
 * What nobody has touched yet goes as a huge page, too, of zeros, which is put there
 * first: else the kernel would ask us for its pages one by one.
 *
 * Where a device's memory is this process's, nothing need be copied: the page that
 * left is moved on to the device's memory (hmm_block_give()), and from there back (the
 * device's lend()).  Each is one step under the leaf's lock, so whoever copies a page
 * of it meanwhile finds the entry changed, and comes again.
 */
#include "hmm/internal.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "umm/sys.h"

#define BLOCK_BYTES (HMM_LEAF_PAGES * UMM_PAGE)

/* Are all pages of the leaf in one device's memory?  Lock held. */
static bool all_on(const struct hmm_leaf *leaf, unsigned tier)
{
	for (unsigned i = 0; i < HMM_LEAF_PAGES; i++)
		if (hmm_entry_state(leaf->e[i]) != HMM_DEVICE || hmm_entry_tier(leaf->e[i]) != tier)
			return false;
	return true;
}

void hmm_block_went(struct hmm_mm *mm, uint64_t base, unsigned tier, const void *staged)
{
	struct umm_page_run run;
	struct hmm_leaf *leaf;
	uint64_t walked, at = (uintptr_t)staged;

	if (mm->h->chain.dev[tier]->ops->caps & HMM_DEV_MARKED)
		return;
	if (umm_page_scan(mm->space, at, at + BLOCK_BYTES, &run, 1, &walked) != 1 || run.start != at ||
	    run.end != at + BLOCK_BYTES || !(run.flags & UMM_PAGE_HUGE))
		return;
	umm_evlock_shared(&mm->space->ctl->evlock);
	leaf = hmm_leaf_find(mm, base);
	if (leaf) {
		pthread_mutex_lock(&leaf->lock);
		leaf->whole = all_on(leaf, tier);
		pthread_mutex_unlock(&leaf->lock);
	}
	umm_evlock_unshared(&mm->space->ctl->evlock);
}

/* The leaf of @base, locked, event lock shared, if it is still whole and of one of @tiers; else NULL, and neither. */
static struct hmm_leaf *whole_leaf(struct hmm_mm *mm, uint64_t base, unsigned tiers)
{
	struct hmm_leaf *leaf;

	umm_evlock_shared(&mm->space->ctl->evlock);
	leaf = hmm_leaf_find(mm, base);
	if (leaf) {
		pthread_mutex_lock(&leaf->lock);
		if (leaf->whole && (tiers & 1u << hmm_entry_tier(leaf->e[0])))
			return leaf;
		pthread_mutex_unlock(&leaf->lock);
	}
	umm_evlock_unshared(&mm->space->ctl->evlock);
	return NULL;
}

static void unlock(struct hmm_mm *mm, struct hmm_leaf *leaf)
{
	pthread_mutex_unlock(&leaf->lock);
	umm_evlock_unshared(&mm->space->ctl->evlock);
}

/* One way of the two; 0: nothing has come. */
static unsigned block_back(struct hmm_mm *mm, uint64_t base, unsigned tiers, char *block, bool lend)
{
	hmm_handle_t handle[HMM_LEAF_PAGES];
	int status[HMM_LEAF_PAGES];
	void *dst[HMM_LEAF_PAGES];
	struct hmm_leaf *leaf = whole_leaf(mm, base, tiers);
	struct hmm_device *d;
	char *from = block;
	uint64_t bytes = 0;
	unsigned n = 0;
	bool same;
	int rc;

	if (!leaf)
		return 0;
	for (unsigned i = 0; i < HMM_LEAF_PAGES; i++) {
		handle[i] = hmm_entry_payload(leaf->e[i]);
		dst[i] = block + i * UMM_PAGE;
	}
	d = mm->h->chain.dev[hmm_entry_tier(leaf->e[0])];
	if (lend && !d->ops->lend) {
		unlock(mm, leaf);
		return 0;
	}
	d->ops->get(d, handle, HMM_LEAF_PAGES);
	unlock(mm, leaf);

	if (d->ops->caps & HMM_DEV_MAYBLOCK)
		umm_monitor_yield();
	if (lend) {
		from = d->ops->lend(d, handle, HMM_LEAF_PAGES);
		rc = from ? 0 : -EBUSY;
	} else {
		rc = d->ops->copy_out(d, handle, dst, status, HMM_LEAF_PAGES);
	}
	leaf = rc ? NULL : whole_leaf(mm, base, ~0u);
	if (leaf) {
		same = true;
		for (unsigned i = 0; i < HMM_LEAF_PAGES; i++)
			same &= hmm_entry_payload(leaf->e[i]) == handle[i] &&
				mm->h->chain.dev[hmm_entry_tier(leaf->e[i])] == d;
		if (same)
			umm_uffd_move(mm->space->uffd, base, from, BLOCK_BYTES, &bytes);
		n = (unsigned)(bytes / UMM_PAGE);
		for (unsigned i = 0; i < n; i++)
			hmm_entry_set(mm, leaf, i, hmm_entry(HMM_SYSTEM, 0, 0, 0));
		unlock(mm, leaf);
	}
	if (lend && from)
		d->ops->lent(d, handle, HMM_LEAF_PAGES, n);
	if (n) {
		d->ops->put(d, handle, n);
		hmm_account_in(mm, n);
	}
	d->ops->put(d, handle, HMM_LEAF_PAGES); /* the references taken for the copy */
	/* Empty it is taken for zeros (hmm_block_zero()).  What mlockall() has put there stays. */
	if (n < HMM_LEAF_PAGES && !lend && sys3(SYS_madvise, block, BLOCK_BYTES, MADV_DONTNEED))
		memset(block, 0, BLOCK_BYTES);
	return n;
}

unsigned hmm_block_back(struct hmm_mm *mm, uint64_t base, unsigned tiers, char *block)
{
	unsigned n = block_back(mm, base, tiers, block, true);

	return n ? n : block_back(mm, base, tiers, block, false);
}

unsigned hmm_block_give(struct hmm_mm *mm, uint64_t base, const void *window, const hmm_handle_t handle[],
			unsigned tier, void *to)
{
	struct hmm_leaf *leaf;
	uint64_t bytes = 0;
	bool all = true;
	unsigned n = 0;

	umm_evlock_shared(&mm->space->ctl->evlock);
	leaf = hmm_leaf_find(mm, base);
	if (leaf) {
		pthread_mutex_lock(&leaf->lock);
		for (unsigned i = 0; i < HMM_LEAF_PAGES; i++)
			all &= mm->slot[0][i].addr == base + i * UMM_PAGE;
		if (all)
			umm_uffd_move(mm->space->uffd, (uintptr_t)to, window, BLOCK_BYTES, &bytes);
		n = (unsigned)(bytes / UMM_PAGE);
		for (unsigned i = 0; i < n; i++) {
			struct hmm_slot *slot = &mm->slot[0][i];

			hmm_entry_set(mm, leaf, i,
				      hmm_entry_with_tick(hmm_entry(HMM_DEVICE, tier, handle[i], 0),
							  hmm_entry_tick(leaf->e[i])));
			hmm_clean_put(mm->h, slot->clean);
			slot->clean = 0;
			slot->addr = 0;
		}
		pthread_mutex_unlock(&leaf->lock);
	}
	umm_evlock_unshared(&mm->space->ctl->evlock);
	atomic_fetch_add(&mm->pages_out, n);
	atomic_fetch_add(&mm->h->pages_out, n);
	return n;
}

void hmm_block_zero(struct hmm_mm *mm, uint64_t base, char *block)
{
	struct hmm_leaf *leaf;
	uint64_t bytes = 0;
	bool here;

	if (sys3(SYS_madvise, block, BLOCK_BYTES, MADV_POPULATE_WRITE))
		return;
	umm_evlock_shared(&mm->space->ctl->evlock);
	here = !mm->h->opt.not_zeros || !mm->h->opt.not_zeros(mm, base, base + BLOCK_BYTES);
	leaf = hmm_leaf_get(mm, base);
	if (leaf) {
		pthread_mutex_lock(&leaf->lock);
		for (unsigned i = 0; i < HMM_LEAF_PAGES; i++)
			here &= hmm_entry_state(leaf->e[i]) == HMM_SYSTEM;
		if (here)
			umm_uffd_move(mm->space->uffd, base, block, BLOCK_BYTES, &bytes);
		if (bytes)
			umm_quarantine_filled(mm->space, base, base + bytes);
		pthread_mutex_unlock(&leaf->lock);
	}
	umm_evlock_unshared(&mm->space->ctl->evlock);
	if (bytes < BLOCK_BYTES)
		sys3(SYS_madvise, block, BLOCK_BYTES, MADV_DONTNEED);
}
