/* SPDX-License-Identifier: MIT */
/*
 * Moving pages out of a space, in batches.
 *
 * DOC: one batch
 *
 *	begin	event lock shared: victims that are still SYSTEM, in mappings that
 *		are registered and not in quarantine, become PARKING; the runs and
 *		the epoch go into the control block; the inside is told to go
 *	finish	wait for the inside; event lock shared: what it moved becomes
 *		PARKED, the rest SYSTEM again; faults that came meanwhile are woken
 *	store	the devices copy from the window, no lock held; event lock shared:
 *		pages still PARKED become DEVICE; of those that were touched or
 *		dropped meanwhile the device's copy is let go; what no device
 *		takes is put back
 *
 * While one batch is stored, the inside can work on the other.  out_lock lets
 * one thread at a time do this to a space.
 *
 * An event that meets a PARKING page bumps the epoch: a run that the inside has
 * not reached yet is then refused by it (umm/ctl.h).
 */
#include <errno.h>
#include <sched.h>
#include <string.h>
#include <time.h>

#include "hmm/internal.h"

static hmm_entry_t parking(unsigned b, unsigned slot)
{
	return hmm_entry(HMM_PARKING, 0, (uint64_t)b << 16 | slot, 0);
}

static void change_of(struct umm_change *c, struct hmm_mm *mm, uint64_t start, uint64_t len)
{
	*c = (struct umm_change){.event = mm->out_exclusive ? UMM_EVENT_EXCLUSIVE : UMM_EVENT_MIGRATE,
				 .start = start,
				 .end = start + len,
				 .owner = mm->out_owner ? mm->out_owner : mm->h,
				 .blockable = true};
}

/*
 * Who mirrors the pages lets go of them before they are asked for, and may look
 * at them again when the records say where they are.
 */
static void tell_begin(struct hmm_mm *mm, unsigned b, const struct hmm_victim *v, unsigned n)
{
	struct umm_change c;

	mm->ntold[b] = 0;
	for (unsigned i = 0; i < n && i < UMM_BATCH_RUNS; i++) {
		change_of(&c, mm, v[i].addr, v[i].npages * UMM_PAGE);
		umm_invalidate_begin(mm->space, &c);
		mm->told[b][mm->ntold[b]++] = v[i];
	}
}

static void tell_end(struct hmm_mm *mm, unsigned b)
{
	struct umm_change c;

	for (unsigned i = 0; i < mm->ntold[b]; i++) {
		change_of(&c, mm, mm->told[b][i].addr, mm->told[b][i].npages * UMM_PAGE);
		umm_invalidate_end(mm->space, &c);
	}
	mm->ntold[b] = 0;
}

/* Make the pages of @v that may go PARKING, as runs of the batch.  Event lock shared. */
static void take_victim(struct hmm_mm *mm, unsigned b, const struct hmm_victim *v, unsigned *slot)
{
	struct umm_batch *batch = &mm->space->ctl->batch[b];
	uint64_t end = v->addr + v->npages * UMM_PAGE;
	struct hmm_leaf *leaf;
	bool fit;

	pthread_mutex_lock(&mm->lock);
	fit = hmm_iset_covers(&mm->registered, v->addr, end) && !umm_quarantined(mm->space, v->addr, end);
	pthread_mutex_unlock(&mm->lock);
	leaf = fit ? hmm_leaf_get(mm, v->addr) : NULL;
	if (!leaf)
		return;
	pthread_mutex_lock(&leaf->lock);
	for (unsigned i = 0; i < v->npages && mm->nruns[b] < UMM_BATCH_RUNS;) {
		struct umm_move_run *run = &batch->run[mm->nruns[b]];
		unsigned at = hmm_leaf_index(v->addr) + i, n = 0;

		while (i + n < v->npages && n < UMM_RUN_PAGES && *slot + n < UMM_BATCH_PAGES &&
		       hmm_entry_here(leaf->e[at + n]))
			n++;
		if (!n) {
			if (*slot == UMM_BATCH_PAGES)
				break;
			i++;
			continue;
		}
		for (unsigned k = 0; k < n; k++) {
			hmm_entry_t e = leaf->e[at + k];

			mm->slot[b][*slot + k] = (struct hmm_slot){.addr = v->addr + (i + k) * UMM_PAGE,
								   .clean = hmm_entry_state(e) == HMM_CLEAN ? e : 0};
			hmm_entry_set(mm, leaf, at + k, parking(b, *slot + k));
		}
		*run = (struct umm_move_run){.addr = v->addr + i * UMM_PAGE, .npages = n, .slot = *slot};
		mm->run[b][mm->nruns[b]++] =
			(struct hmm_run){.addr = v->addr + i * UMM_PAGE, .npages = n, .slot = *slot};
		*slot += n;
		i += n;
	}
	pthread_mutex_unlock(&leaf->lock);
}

/* What the inside did to run @r shows in the records.  Event lock held, shared or exclusively. */
static unsigned commit_run(struct hmm_mm *mm, unsigned b, unsigned r)
{
	struct hmm_run *run = &mm->run[b][r];
	uint64_t mask = mm->space->ctl->batch[b].run[r].mask;
	unsigned parked = 0;

	run->committed = true;
	for (unsigned k = 0; k < run->npages; k++) {
		struct hmm_slot *slot = &mm->slot[b][run->slot + k];
		bool moved = mask >> k & 1;
		struct hmm_leaf *leaf;

		if (!slot->addr)
			continue; /* its mapping or its contents went: so does this copy */
		leaf = hmm_leaf_find(mm, slot->addr);
		pthread_mutex_lock(&leaf->lock);
		slot->staged = mm->staging && !run->copied;
		if (leaf->e[hmm_leaf_index(slot->addr)] == parking(b, run->slot + k)) {
			unsigned i = hmm_leaf_index(slot->addr);
			hmm_entry_t parked_e = hmm_entry(HMM_PARKED, 0, (uint64_t)b << 16 | (run->slot + k), 0);

			hmm_entry_set(mm, leaf, i,
				      moved ? hmm_entry_with_tick(parked_e, atomic_load(&mm->tick)) : slot->clean);
			if (!moved)
				slot->clean = 0; /* the entry has it again */
			parked += moved;
			if (slot->wake)
				umm_uffd_wake(mm->space->uffd, slot->addr, UMM_PAGE);
		}
		pthread_mutex_unlock(&leaf->lock);
		if (!moved)
			slot->addr = 0;
	}
	return parked;
}

int hmm_out_begin(struct hmm_mm *mm, unsigned b, const struct hmm_victim *v, unsigned n)
{
	struct umm_batch *batch = &mm->space->ctl->batch[b];
	unsigned slot = 0;
	int rc;

	hmm_overtaken_age(mm);
	tell_begin(mm, b, v, n);
	umm_evlock_shared(&mm->space->ctl->evlock);
	mm->nruns[b] = 0;
	batch->flags = mm->forked ? UMM_BATCH_UNSHARE : 0;
	batch->epoch = atomic_load(&mm->space->ctl->epoch);
	atomic_store(&batch->done, 0);
	for (unsigned i = 0; i < mm->ntold[b]; i++)
		take_victim(mm, b, &v[i], &slot);
	batch->nr = mm->nruns[b];
	mm->batch_pages[b] = slot;
	mm->batch_live[b] = true;
	umm_evlock_unshared(&mm->space->ctl->evlock);
	rc = slot ? mm->inside->go(mm->inside_priv, b) : 0;
	if (rc) {
		/* Nobody went: none of the runs has a page in its mask. */
		umm_evlock_shared(&mm->space->ctl->evlock);
		for (unsigned r = 0; r < mm->nruns[b]; r++)
			commit_run(mm, b, r);
		mm->batch_live[b] = false;
		mm->batch_pages[b] = 0;
		umm_evlock_unshared(&mm->space->ctl->evlock);
	}
	if (rc)
		tell_end(mm, b);
	return rc;
}

#define SYNC_YIELDS 10000u
#define SYNC_NS 1000000l
#define SYNC_LOOK 50u
#define SYNC_HELD_MOST 200u

/*
 * Who waits here is who reads the events of all, so not for ever: what is stopped or frozen in the middle of a copy
 * dies after a while.  @held: how often it was seen so.
 */
static bool sync_waits(struct hmm_mm *mm, unsigned spin, unsigned *held)
{
	if (mm->inside->able && spin % SYNC_LOOK == 0) {
		*held = mm->inside->able(mm->inside_priv) ? 0 : *held + 1;
		if (*held == SYNC_HELD_MOST) {
			mm->h->opt.fatal(mm->h->opt.priv, mm,
					 "its agent is stopped or frozen with pages in its hands, while others wait");
			return false;
		}
	}
	nanosleep(&(struct timespec){.tv_nsec = SYNC_NS}, NULL);
	return true;
}

/* Event lock held exclusively.  False: the inside died half-way, and so does the space. */
static bool sync_all(struct hmm_mm *mm)
{
	unsigned held = 0;

	for (unsigned b = 0; b < UMM_BATCHES; b++) {
		struct umm_batch *batch = &mm->space->ctl->batch[b];

		for (unsigned r = 0; mm->batch_live[b] && r < mm->nruns[b]; r++) {
			struct umm_move_run *run = &batch->run[r];

			if (atomic_load_explicit(&run->state, memory_order_acquire) == UMM_RUN_PENDING)
				continue; /* none goes while we hold the lock */
			/* Moved: the copy to the window follows without any lock. */
			for (unsigned spin = 0;
			     atomic_load_explicit(&run->state, memory_order_acquire) != UMM_RUN_FILLED; spin++) {
				if (atomic_load(&mm->dead) || umm_space_is_gone(mm->space))
					return false;
				if (spin > SYNC_YIELDS && !sync_waits(mm, spin, &held))
					return false;
				if (spin > 1000)
					sched_yield();
			}
			if (!mm->run[b][r].committed)
				commit_run(mm, b, r);
		}
	}
	return true;
}

bool hmm_out_sync(struct hmm_mm *mm)
{
	/* It is the inside that is waited for, whoever is given what then. */
	bool giving = atomic_exchange(&mm->giving, false), all = sync_all(mm);

	atomic_store(&mm->giving, giving);
	return all;
}

int hmm_out_finish(struct hmm_mm *mm, unsigned b)
{
	struct umm_batch *batch = &mm->space->ctl->batch[b];
	unsigned parked = 0;
	int rc = 0;

	if (mm->batch_pages[b])
		rc = mm->inside->wait(mm->inside_priv, b);
	umm_evlock_shared(&mm->space->ctl->evlock);
	mm->batch_live[b] = false;
	for (unsigned r = 0; r < mm->nruns[b] && !rc; r++) {
		struct umm_move_run *run = &batch->run[r];

		if (!mm->run[b][r].committed)
			parked += commit_run(mm, b, r);
		/* A block's are the first run's; the inside may say anything. */
		atomic_fetch_add(&mm->h->unsaid, run->unsaid < UMM_BATCH_PAGES ? run->unsaid : UMM_BATCH_PAGES);
		if (run->err == -EINVAL && !run->mask) {
			pthread_mutex_lock(&mm->lock);
			hmm_iset_add(&mm->stuck, mm->run[b][r].addr,
				     mm->run[b][r].addr + mm->run[b][r].npages * UMM_PAGE);
			pthread_mutex_unlock(&mm->lock);
		}
		if (run->err == -ENXIO) {
			/* Against our records: the next walk registers it, until then it stays. */
			hmm_forget(mm, mm->run[b][r].addr, mm->run[b][r].addr + mm->run[b][r].npages * UMM_PAGE);
			atomic_fetch_add(&mm->h->unregistered, 1);
		}
	}
	umm_evlock_unshared(&mm->space->ctl->evlock);
	tell_end(mm, b);
	return rc ? rc : (int)parked;
}

/* A page that no device took goes back where it was.  Event lock shared, leaf lock held. */
static int put_back(struct hmm_mm *mm, struct hmm_leaf *leaf, uint64_t addr, const void *page)
{
	uint64_t bytes;
	int rc = umm_uffd_copy(mm->space->uffd, addr, page, UMM_PAGE, &bytes);

	if (rc == -EEXIST)
		rc = hmm_taken_or_changing(mm, addr);
	if (rc == -EAGAIN)
		return rc;
	if (rc && rc != -ESRCH) {
		/* Not there any more, with no event unread that tells where, or present: who waits looks again. */
		umm_uffd_wake(mm->space->uffd, addr, UMM_PAGE);
		if (rc == -ENOMEM)
			return -EAGAIN;
	}
	hmm_entry_set(mm, leaf, hmm_leaf_index(addr), 0);
	return 0;
}

/* Slot @s has been stored, or not.  Returns -EAGAIN when events must be drained first. */
static int settle(struct hmm_mm *mm, unsigned b, unsigned s, const void *page, hmm_handle_t *handle, unsigned tier,
		  bool *stored)
{
	struct hmm_slot *slot = &mm->slot[b][s];
	struct hmm_leaf *leaf;
	int rc = 0;

	umm_evlock_shared(&mm->space->ctl->evlock);
	leaf = slot->addr ? hmm_leaf_find(mm, slot->addr) : NULL;
	if (leaf)
		pthread_mutex_lock(&leaf->lock);
	/* slot->addr is cleared under the leaf lock by who brings the page back: look again. */
	if (leaf && slot->addr) {
		unsigned i = hmm_leaf_index(slot->addr);

		if (*handle == HMM_HANDLE_NONE) {
			rc = put_back(mm, leaf, slot->addr, page);
		} else {
			hmm_entry_t e = hmm_entry(HMM_DEVICE, tier, *handle, 0);

			hmm_entry_set(mm, leaf, i, hmm_entry_with_tick(e, hmm_entry_tick(leaf->e[i])));
			*handle = HMM_HANDLE_NONE;
			*stored = true;
		}
		if (!rc) {
			hmm_clean_put(mm->h, slot->clean);
			slot->clean = 0;
			slot->addr = 0;
		}
	}
	if (leaf)
		pthread_mutex_unlock(&leaf->lock);
	umm_evlock_unshared(&mm->space->ctl->evlock);
	return rc;
}

unsigned hmm_out_gather(struct hmm_mm *mm, unsigned b, const void *src[], uint16_t index[])
{
	unsigned n = 0;

	for (unsigned s = 0; s < mm->batch_pages[b]; s++) {
		if (!mm->slot[b][s].addr)
			continue;
		src[n] = hmm_slot_page(mm, b, s);
		index[n++] = (uint16_t)s;
	}
	return n;
}

unsigned hmm_out_commit(struct hmm_mm *mm, unsigned b, const void *const src[], const uint16_t index[],
			hmm_handle_t handle[], const uint8_t tier[], unsigned n)
{
	unsigned stored = 0;

	for (unsigned k = 0; k < n; k++) {
		hmm_handle_t got = handle[k];
		bool ok = false;

		while (settle(mm, b, index[k], src[k], &handle[k], tier[k], &ok) == -EAGAIN) {
			umm_space_drain(mm->space);
			sched_yield(); /* the changer must run before the kernel lets us */
		}
		stored += ok;
		if (handle[k] != HMM_HANDLE_NONE) {
			struct hmm_device *d = mm->h->chain.dev[tier[k]];

			d->ops->put(d, &handle[k], 1); /* touched or dropped meanwhile */
		} else if (got == HMM_HANDLE_NONE) {
			atomic_fetch_add(&mm->h->out_failed, 1);
		}
	}
	atomic_fetch_add(&mm->pages_out, stored);
	atomic_fetch_add(&mm->h->pages_out, stored);
	return stored;
}

/* To the front go the pages that no device has. */
static unsigned unmatched_first(const void *src[], uint16_t index[], hmm_handle_t handle[], uint8_t tier[], unsigned n)
{
	unsigned rest = 0;

	for (unsigned i = 0; i < n; i++) {
		if (handle[i] != HMM_HANDLE_NONE)
			continue;
		const void *s = src[rest];
		uint16_t x = index[rest];

		src[rest] = src[i];
		index[rest] = index[i];
		src[i] = s;
		index[i] = x;
		handle[i] = handle[rest];
		tier[i] = tier[rest];
		handle[rest++] = HMM_HANDLE_NONE;
	}
	return rest;
}

int hmm_out_store(struct hmm_mm *mm, unsigned b)
{
	const void *src[UMM_BATCH_PAGES];
	hmm_handle_t handle[UMM_BATCH_PAGES];
	uint16_t index[UMM_BATCH_PAGES];
	uint8_t tier[UMM_BATCH_PAGES];
	unsigned n = hmm_out_gather(mm, b, src, index), rest = n;

	if (!n)
		return 0;
	if (hmm_clean_match(mm, b, src, index, handle, tier, n))
		rest = unmatched_first(src, index, handle, tier, n);
	if (rest)
		hmm_chain_in(mm->h, 0, src, handle, tier, rest);
	return (int)hmm_out_commit(mm, b, src, index, handle, tier, n);
}

int hmm_migrate_out(struct hmm_mm *mm, const struct hmm_victim *v, unsigned n)
{
	int rc;

	if (!mm->inside)
		return -EOPNOTSUPP;
	pthread_mutex_lock(&mm->out_lock);
	rc = hmm_out_begin(mm, 0, v, n);
	if (!rc) {
		rc = hmm_out_finish(mm, 0);
		if (rc >= 0)
			rc = hmm_out_store(mm, 0);
	}
	pthread_mutex_unlock(&mm->out_lock);
	return rc;
}
