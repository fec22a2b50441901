/* SPDX-License-Identifier: MIT */
/*
 * The event lock of a space.
 *
 * DOC: why it exists
 *
 * A change of an address space that userfaultfd reports (munmap, mremap,
 * MADV_DONTNEED, fork) is "under way" from before its event is queued until
 * the changer runs again, after somebody has read the event.  While it is, the
 * kernel refuses MOVE and COPY with EAGAIN (or ENOENT, where they have waited for
 * mremap()'s lock: uffd.c makes EAGAIN of it).  Once it has been read, nothing is
 * refused any more, though our records still tell the old story.  So:
 *
 *  - who reads events takes the lock exclusively before the read and holds it
 *    until every event read is reflected in the records;
 *  - who moves or places pages holds it shared, across the system call and the
 *    change of the record that goes with it.
 *
 * It lives in memory shared between the engine and the inside of the space
 * (struct umm_ctl), needs no libc, and prefers the exclusive side.
 *
 * Order: doc/locking.md.  Who holds it, even shared, touches no memory that may be
 * away: who serves that fault needs it, too.
 */
#ifndef UMM_EVLOCK_H
#define UMM_EVLOCK_H

#include <stdatomic.h>
#include <stdbool.h>

#include "umm/sys.h"

struct umm_evlock {
	_Atomic uint32_t word; /* EXCL | WANT | number of shared holders */
};

#define UMM_EVLOCK_EXCL 0x80000000u  /* held exclusively */
#define UMM_EVLOCK_WANT 0x40000000u  /* somebody waits for it exclusively: no new shared holder */
#define UMM_EVLOCK_SLEEP 0x20000000u /* somebody sleeps on the word */
#define UMM_EVLOCK_COUNT 0x0fffffffu
#define UMM_EVLOCK_SPINS 200

static inline void umm_evlock_sleep(struct umm_evlock *l, uint32_t seen)
{
	if (!(seen & UMM_EVLOCK_SLEEP)) {
		if (!atomic_compare_exchange_strong(&l->word, &seen, seen | UMM_EVLOCK_SLEEP))
			return;
		seen |= UMM_EVLOCK_SLEEP;
	}
	/* The time-out is a belt: a lost wake-up must never hang a program. */
	struct timespec ts = {.tv_nsec = 20000000};
	sys_futex_wait(&l->word, seen, &ts);
}

static inline bool umm_evlock_try_shared(struct umm_evlock *l)
{
	uint32_t w = atomic_load_explicit(&l->word, memory_order_relaxed);

	return !(w & (UMM_EVLOCK_EXCL | UMM_EVLOCK_WANT)) &&
	       atomic_compare_exchange_strong_explicit(&l->word, &w, w + 1, memory_order_acquire, memory_order_relaxed);
}

/** @gone is asked now and then while it waits (the holder may have died); true gives up.  Returns whether it has the
 * lock. */
static inline bool umm_evlock_shared_unless(struct umm_evlock *l, bool (*gone)(void *arg), void *arg)
{
	for (unsigned spin = 0;; spin++) {
		uint32_t w = atomic_load_explicit(&l->word, memory_order_relaxed);

		if (!(w & (UMM_EVLOCK_EXCL | UMM_EVLOCK_WANT))) {
			if (atomic_compare_exchange_weak_explicit(&l->word, &w, w + 1, memory_order_acquire,
								  memory_order_relaxed))
				return true;
		} else if (spin > UMM_EVLOCK_SPINS) {
			umm_evlock_sleep(l, w);
			if (gone && gone(arg))
				return false;
		} else {
			sys_relax();
		}
	}
}

static inline void umm_evlock_shared(struct umm_evlock *l)
{
	umm_evlock_shared_unless(l, NULL, NULL);
}

static inline void umm_evlock_unshared(struct umm_evlock *l)
{
	uint32_t w = atomic_fetch_sub_explicit(&l->word, 1, memory_order_release) - 1;

	if ((w & UMM_EVLOCK_COUNT) || !(w & UMM_EVLOCK_SLEEP))
		return;
	atomic_fetch_and(&l->word, ~UMM_EVLOCK_SLEEP);
	sys_futex_wake(&l->word, INT32_MAX);
}

/** @gone as above: who shares the lock may have died with it.  Returns whether it is held. */
static inline bool umm_evlock_excl_unless(struct umm_evlock *l, bool (*gone)(void *arg), void *arg)
{
	for (unsigned spin = 0;; spin++) {
		uint32_t w = atomic_load_explicit(&l->word, memory_order_relaxed);

		if (!(w & (UMM_EVLOCK_EXCL | UMM_EVLOCK_COUNT))) {
			uint32_t next = (w & UMM_EVLOCK_SLEEP) | UMM_EVLOCK_EXCL;

			if (atomic_compare_exchange_weak_explicit(&l->word, &w, next, memory_order_acquire,
								  memory_order_relaxed))
				return true;
		} else if (!(w & UMM_EVLOCK_WANT)) {
			atomic_fetch_or(&l->word, UMM_EVLOCK_WANT);
		} else if (spin > UMM_EVLOCK_SPINS) {
			umm_evlock_sleep(l, w);
			if (gone && gone(arg)) {
				/* Others that want it exclusively say so again. */
				atomic_fetch_and(&l->word, ~(UMM_EVLOCK_WANT | UMM_EVLOCK_SLEEP));
				sys_futex_wake(&l->word, INT32_MAX);
				return false;
			}
		} else {
			sys_relax();
		}
	}
}

static inline void umm_evlock_excl(struct umm_evlock *l)
{
	umm_evlock_excl_unless(l, NULL, NULL);
}

/** Until nobody holds it exclusively who does now: what had been read by then has been applied. */
static inline void umm_evlock_applied(struct umm_evlock *l)
{
	uint32_t w;

	for (unsigned spin = 0; (w = atomic_load(&l->word)) & UMM_EVLOCK_EXCL; spin++) {
		if (spin > UMM_EVLOCK_SPINS)
			umm_evlock_sleep(l, w);
		else
			sys_relax();
	}
}

static inline void umm_evlock_unexcl(struct umm_evlock *l)
{
	uint32_t w = atomic_fetch_and_explicit(&l->word, ~(UMM_EVLOCK_EXCL | UMM_EVLOCK_WANT | UMM_EVLOCK_SLEEP),
					       memory_order_release);

	if (w & UMM_EVLOCK_SLEEP)
		sys_futex_wake(&l->word, INT32_MAX);
}

#endif
