/* SPDX-License-Identifier: MIT */
/*
 * The control block of a space: what the engine and the inside of the space
 * both see.  For hmm run it lies in shared memory; in the linked library it is
 * ordinary memory.  No libc.
 *
 * DOC: moving out, seen from the control block
 *
 * The engine marks pages PARKING in its records, writes up to UMM_BATCH_RUNS
 * runs into a batch, notes the epoch and tells the inside to go.  For each run
 * the inside takes the event lock shared, compares the epoch (an event that
 * touched a PARKING page since has bumped it: the run is then stale), moves
 * the pages to staging, publishes which ones went (MOVED), drops the lock,
 * copies them to the window and publishes that (FILLED).  So whoever holds the
 * event lock exclusively sees of every run whether it happened, and a run that
 * it has made stale never happens.
 *
 * DOC: pins
 *
 * Pages that the kernel writes behind the program's back while a thread ends
 * (thread control blocks with their robust lists, rseq areas and tid words)
 * must not be away.  A thread enters the pages of its own block into the pin
 * table before it runs anything of the program's; the inside looks a page up
 * and moves it under the same lock, so a page is either moved before it is
 * entered (then the thread's first touch brings it back for good), or never.
 * Nobody takes a page out: when the table gets full, those of threads that have
 * ended are left behind, by entering all that live into an empty one.
 *
 * A look-up may go anywhere in the table, and each page of it that is looked at is
 * RAM, of every process.  So there are several, each twice as large as the one
 * before, and who enters a page when the one in use is half full goes to the next.
 * The smaller ones are left where they are: together they are smaller than the one in
 * use.  So are the larger ones when all begins anew: a program that has made that many
 * threads once, eleven thousand and more, makes as many again, and fills them then.  With
 * all of them a process never costs more than 1 MiB.
 */
#ifndef UMM_CTL_H
#define UMM_CTL_H

#include "umm/evlock.h"

#define UMM_CTL_MAGIC 0x314c5443u /* "CTL1" */
#define UMM_PAGE 4096ul
#define UMM_PAGE_SHIFT 12

#define UMM_RUN_PAGES 64u    /* most pages in a run */
#define UMM_BATCH_RUNS 128u  /* most runs in a batch */
#define UMM_BATCH_PAGES 512u /* most pages in a batch */
#define UMM_BATCHES 2u       /* one is filled while the other is stored */
#define UMM_PIN_BITS_MIN 9u
#define UMM_PIN_BITS_MAX 16u
#define UMM_PIN_SLOTS (1u << UMM_PIN_BITS_MAX) /* of the largest table */
#define UMM_CALL_SLOTS 32u

enum umm_run_state {
	UMM_RUN_PENDING = 0,
	UMM_RUN_MOVED,  /* mask says which pages are in staging */
	UMM_RUN_FILLED, /* and they have been copied to the window */
};

struct umm_move_run {
	uint64_t addr;
	uint64_t mask; /* out: bit i: page i was moved */
	uint32_t npages;
	uint32_t slot; /* first page of the run in the batch's part of staging and window */
	_Atomic uint32_t state;
	int32_t err;     /* out: the last error met, 0 if none */
	uint32_t unsaid; /* out: pages that the kernel moved and did not tell of (inside.c) */
};

#define UMM_BATCH_UNSHARE 1u /* pages that are shared after fork are to be copied first */

struct umm_batch {
	uint32_t nr;
	uint32_t epoch;
	uint32_t flags;
	_Atomic uint32_t done; /* the inside has let go of the batch */
	struct umm_move_run run[UMM_BATCH_RUNS];
};

/* A request from a hook in the program to the engine; see src/run/hooks.c. */
enum umm_call_state {
	UMM_CALL_IDLE = 0,
	UMM_CALL_BUSY, /* a hook is writing it */
	UMM_CALL_ASKED,
	UMM_CALL_TAKEN, /* it is being answered */
	UMM_CALL_DONE,
};

enum umm_call_op {
	UMM_CALL_UNIFORM = 1, /* arg: start, len: register what is not; before mremap */
	UMM_CALL_HANDS_OFF,   /* arg: start, len: bring back, and let go for good */
	UMM_CALL_BRING_BACK,  /* arg: start, len */
	UMM_CALL_FORK_BEGIN,  /* bring everything back, and move nothing until ... */
	UMM_CALL_FORK_END,
	UMM_CALL_MARKS,   /* what a child will inherit has changed */
	UMM_CALL_APPLIED, /* before it does: what has been forked by now has its records */
};

struct umm_call {
	_Atomic uint32_t state;
	uint32_t op;
	uint64_t arg[3];
	int64_t ret;
};

struct umm_ctl {
	uint32_t magic;
	uint32_t space_id;               /* the engine's name for the space */
	_Atomic uint32_t armed;          /* the engine moves pages of this space */
	_Atomic uint32_t no_fork_events; /* the kernel withholds them: pages come back before fork */
	_Atomic uint32_t forking;        /* forks under way that found the space unarmed, where events are withheld */
	_Atomic uint32_t has_forked;     /* by a hook, whether there was an event or not: it shares pages with others */
	_Atomic uint32_t marked;         /* there is something that a child will not inherit as it is */
	_Atomic int32_t advised;         /* what the last madvise() that was ordered returned */
	_Atomic uint32_t acked;          /* orders other than batches that the inside has carried out */
	_Atomic uint32_t epoch;
	_Atomic uint32_t populating; /* the inside's thread id while it asks for pages of its own; else 0 */
	struct umm_evlock evlock;
	_Atomic uint32_t pin_lock;
	_Atomic uint32_t pin_used;
	_Atomic uint32_t pin_bits; /* of the table in use; 0: of the smallest */
	struct umm_call call[UMM_CALL_SLOTS];
	struct umm_batch batch[UMM_BATCHES];
	_Atomic uint64_t pin[2 * UMM_PIN_SLOTS - (1u << UMM_PIN_BITS_MIN)]; /* all tables; page number, 0: free */
};

/**
 * False when somebody holds it for longer than anybody should: who was killed, a
 * process that shares the memory and is no thread of the program's, holds it for
 * ever.  The engine, which looks at all threads anyway, may go on then as if it had
 * it; nobody else may.
 */
static inline bool umm_pin_lock_soon(struct umm_ctl *c)
{
	uint32_t zero = 0;

	for (unsigned tries = 0; !atomic_compare_exchange_strong(&c->pin_lock, &zero, 1); zero = 0) {
		struct timespec ts = {.tv_nsec = 1000000};

		if (tries++ < 100) {
			sys_relax();
			continue;
		}
		if (tries > 300)
			return false;
		sys_futex_wait((atomic_uint *)&c->pin_lock, 1, &ts);
	}
	return true;
}

static inline void umm_pin_unlock(struct umm_ctl *c)
{
	atomic_store(&c->pin_lock, 0);
}

/* Whatever the program has written there, it is a table that there is. */
static inline unsigned umm_pin_bits(struct umm_ctl *c)
{
	uint32_t bits = atomic_load_explicit(&c->pin_bits, memory_order_relaxed);

	return bits < UMM_PIN_BITS_MIN ? UMM_PIN_BITS_MIN : bits > UMM_PIN_BITS_MAX ? UMM_PIN_BITS_MAX : bits;
}

static inline _Atomic uint64_t *umm_pin_table(struct umm_ctl *c, unsigned bits)
{
	return &c->pin[(1u << bits) - (1u << UMM_PIN_BITS_MIN)];
}

/* Where @pfn is, or would be entered; NULL: neither, it is full. */
static inline _Atomic uint64_t *umm_pin_find(struct umm_ctl *c, unsigned bits, uint64_t pfn)
{
	_Atomic uint64_t *table = umm_pin_table(c, bits);
	uint32_t mask = (1u << bits) - 1, i = (uint32_t)(pfn * 0x9e3779b97f4a7c15ull >> (64 - bits));

	for (uint32_t n = 0; n <= mask; n++, i = (i + 1) & mask) {
		uint64_t p = atomic_load_explicit(&table[i], memory_order_relaxed);

		if (p == pfn || !p)
			return &table[i];
	}
	return NULL;
}

/* Under the pin lock, as are those that follow. */
static inline bool umm_pin_has(struct umm_ctl *c, uint64_t pfn)
{
	_Atomic uint64_t *at = umm_pin_find(c, umm_pin_bits(c), pfn);

	/* A full table pins everything: slow, never wrong. */
	return !at || atomic_load_explicit(at, memory_order_relaxed) == pfn;
}

static inline void umm_pin_wipe(struct umm_ctl *c, unsigned bits)
{
	_Atomic uint64_t *table = umm_pin_table(c, bits);

	for (uint32_t i = 0; i < 1u << bits; i++)
		atomic_store_explicit(&table[i], 0, memory_order_relaxed);
}

static inline void umm_pin_clear(struct umm_ctl *c)
{
	umm_pin_wipe(c, UMM_PIN_BITS_MIN);
	atomic_store(&c->pin_bits, 0);
	atomic_store(&c->pin_used, 0);
}

/* The larger table may have been in use before, or whoever was filling it was killed. */
static inline unsigned umm_pin_grow(struct umm_ctl *c, unsigned bits)
{
	_Atomic uint64_t *from = umm_pin_table(c, bits), *at;

	umm_pin_wipe(c, bits + 1);
	for (uint32_t i = 0; i < 1u << bits; i++) {
		uint64_t p = atomic_load_explicit(&from[i], memory_order_relaxed);

		at = p ? umm_pin_find(c, bits + 1, p) : NULL;
		if (at)
			atomic_store_explicit(at, p, memory_order_relaxed);
	}
	atomic_store(&c->pin_bits, bits + 1);
	return bits + 1;
}

static inline void umm_pin_add(struct umm_ctl *c, uint64_t pfn)
{
	unsigned bits = umm_pin_bits(c);
	_Atomic uint64_t *at;

	if (bits < UMM_PIN_BITS_MAX && atomic_load(&c->pin_used) >= 1u << (bits - 1))
		bits = umm_pin_grow(c, bits);
	at = umm_pin_find(c, bits, pfn);
	if (!at || atomic_load_explicit(at, memory_order_relaxed) == pfn)
		return;
	atomic_store_explicit(at, pfn, memory_order_relaxed);
	atomic_fetch_add(&c->pin_used, 1);
}

/** The thread control block in which a robust list lies: it begins some hundred bytes before, and is smaller than a
 * page. */
static inline void umm_pin_block(struct umm_ctl *c, uint64_t list)
{
	umm_pin_add(c, (list - UMM_PAGE / 4) >> UMM_PAGE_SHIFT);
	umm_pin_add(c, list >> UMM_PAGE_SHIFT);
	umm_pin_add(c, (list + UMM_PAGE - 1) >> UMM_PAGE_SHIFT);
}

#endif
