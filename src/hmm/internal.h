/* SPDX-License-Identifier: MIT */
/*
 * The engine's own structures.
 *
 * DOC: states of a page
 *
 *   SYSTEM   where the kernel has it: present, or never populated
 *   PARKING  the inside has been asked to move it to staging; it may have happened
 *   PARKED   in a slot of the window; a device may be copying it from there
 *   DEVICE   in a device's memory, by handle; absent from the CPU's page table
 *   CLEAN    back where it was, and the device still has what it gave (clean.c)
 *   POISONED lost: the page table has a poison marker, an access gets SIGBUS
 *
 *   SYSTEM -> PARKING -> PARKED -> DEVICE -> SYSTEM
 *             PARKING -> SYSTEM    (it was not there, or would not go)
 *                        PARKED -> SYSTEM    (touched, or no device takes it)
 *                                  DEVICE -> POISONED (the device cannot give it back)
 *                                  DEVICE -> CLEAN -> PARKING, SYSTEM
 *             PARKING, PARKED -> CLEAN    (where they would be SYSTEM, if they came from it)
 *   anything -> SYSTEM when its mapping is unmapped or its contents dropped
 *   SYSTEM -> PARKED, DEVICE, POISONED in the records of a child after fork()
 *
 * hmm_entry_set() refuses every other step in debug builds.
 *
 * DOC: locking
 *
 * The event lock of the space (umm/evlock.h) is the outer one: events are
 * applied under it exclusively; PARKING is entered, pages are placed, results
 * committed with it shared.  An entry changes under its leaf's lock, which is
 * held across the system call that places the page, so that record and page
 * table change together.  Devices copy with no lock held: who reads a page from
 * a device holds a reference to its handle, and looks again whether the entry
 * is still the same before it places anything.
 *
 *   out_lock (one migration out of a space at a time) -> the space's layout, marks_lock -> event lock -> mm lock
 *   -> leaf lock -> device locks
 *
 * With what is not the engine's: doc/locking.md.
 */
#ifndef HMM_INTERNAL_H
#define HMM_INTERNAL_H

#include <assert.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>

#include "hmm.h"
#include "umm/clock.h"
#include "umm/internal.h"
#include "hmm/iset.h"

#define HMM_LEAF_SHIFT 21
#define HMM_LEAF_PAGES 512u
#define HMM_TIERS_MAX 8u
#define HMM_PLACE_MAX 64u /* most pages that one fault brings back */
#define HMM_STREAMS 8u
#define HMM_FOREIGN_NS 1000000000ull /* a range is taken to be somebody else's for one to two of these */

enum hmm_page_state {
	HMM_SYSTEM = 0,
	HMM_PARKING,
	HMM_PARKED,
	HMM_DEVICE,
	HMM_POISONED,
	HMM_CLEAN,
};

/*
 * An entry: payload 48 bits (handle, or batch and slot), tier 4, state 4, and 8 that
 * say something else of a page that is here than of one that is away.  Here: its heat,
 * how many more laps of the clock it is passed over.  Away: the tick at which it went;
 * how soon it comes back sets its heat.
 */
typedef uint64_t hmm_entry_t;
#define HMM_ENTRY_PAYLOAD 0xffffffffffffull
#define HMM_HEAT_MAX 7u
#define HMM_TICKS 256u    /* after so many it is not known any more when a page went */
#define HMM_LAP_TICKS 64u /* in which as many pages go as are there */
#define HMM_SEQ_STEP 16u  /* by that part mm->seq_score changes; where no fault is part of a walk it stays below */

static inline hmm_entry_t hmm_entry(enum hmm_page_state st, unsigned tier, uint64_t payload, unsigned heat)
{
	return (payload & HMM_ENTRY_PAYLOAD) | (uint64_t)tier << 48 | (uint64_t)st << 52 | (uint64_t)heat << 56;
}

static inline enum hmm_page_state hmm_entry_state(hmm_entry_t e)
{
	return (enum hmm_page_state)(e >> 52 & 0xf);
}

static inline unsigned hmm_entry_tier(hmm_entry_t e)
{
	return e >> 48 & 0xf;
}

static inline unsigned hmm_entry_heat(hmm_entry_t e)
{
	return e >> 56;
}

static inline hmm_entry_t hmm_entry_with_heat(hmm_entry_t e, unsigned heat)
{
	return (e & ~(0xffull << 56)) | (uint64_t)heat << 56;
}

/** Is the page in the CPU's page table, or nowhere? */
static inline bool hmm_entry_here(hmm_entry_t e)
{
	return hmm_entry_state(e) == HMM_SYSTEM || hmm_entry_state(e) == HMM_CLEAN;
}

static inline unsigned hmm_entry_tick(hmm_entry_t e)
{
	return e >> 56;
}

static inline hmm_entry_t hmm_entry_with_tick(hmm_entry_t e, unsigned tick)
{
	return (e & ~(0xffull << 56)) | (uint64_t)(tick & (HMM_TICKS - 1)) << 56;
}

static inline uint64_t hmm_entry_payload(hmm_entry_t e)
{
	return e & HMM_ENTRY_PAYLOAD;
}

struct hmm_leaf {
	pthread_mutex_t lock;
	uint64_t base; /* address of its first page */
	uint32_t held; /* entries that are not SYSTEM */
	bool whole;    /* all on one device, where they went as a huge page; nothing came to their place since */
	/* Of hmm_written(); mm->lock. */
	uint64_t *stamp;      /* a page each; NULL: not asked for yet */
	uint64_t latest;      /* no stamp is higher */
	uint64_t asked;       /* the call that "found" is of */
	uint16_t found;       /* pages that it found written to */
	bool watched;         /* all pages have been protected since they were written to last */
	uint8_t full;         /* calls in a row that found all of them written to, though they were watched */
	uint8_t taken, spell; /* calls to come that take it for granted; how many the next time */
	hmm_entry_t e[HMM_LEAF_PAGES];
};

_Static_assert(sizeof(struct hmm_leaf) <= HMM_LEAF_PAGES * sizeof(hmm_entry_t) + 96, "a page costs hardly more than 8");

/* Three levels: 512 GiB, 1 GiB and 2 MiB of address space an entry. */
struct hmm_mid {
	_Atomic(struct hmm_leaf *) leaf[512];
};

struct hmm_top {
	_Atomic(struct hmm_mid *) mid[512];
};

struct hmm_radix {
	_Atomic(struct hmm_top *) top[256];
	pthread_mutex_t lock;  /* adding */
	_Atomic uint64_t away; /* pages that are neither SYSTEM nor CLEAN */
	_Atomic uint64_t leaves;
};

/* Pages that are to go; a run in one leaf. */
struct hmm_victim {
	uint64_t addr;
	uint32_t npages;
};

/* Where a page of a batch is now; mm->slot[batch][i]. */
struct hmm_slot {
	_Atomic uint64_t addr;     /* 0: cancelled, the result is not wanted */
	_Atomic hmm_entry_t clean; /* what a CLEAN page was before it became PARKING; 0: it was not.  Leaf lock */
	bool wake;                 /* somebody faulted on it while it was PARKING */
	bool staged;               /* it is in staging, not in the window.  Leaf lock */
};

/* What the engine asks of whoever stands in the space. */
struct hmm_inside_ops {
	/** go: have batch @b carried out (umm_inside_move()).  Does not wait.  0 or -errno. */
	int (*go)(void *priv, unsigned b);
	/** wait: until batch @b is done.  0, or -ESRCH: the inside is gone. */
	int (*wait)(void *priv, unsigned b);
	/** arm: get ready to move; called once, before the first go.  0 or -errno. */
	int (*arm)(void *priv);
	/**
	 * able: can it do now what it is told, or is it held up by somebody else?  Asked before a round of batches.
	 * May be NULL.
	 */
	bool (*able)(void *priv);
	/** pins: enter in the pin table what must stay; called before a round of batches.  May be NULL. */
	void (*pins)(void *priv);
	/** advise: madvise() from inside, and wait for it.  0 or -errno. */
	int (*advise)(void *priv, uint64_t start, uint64_t len, int advice);
};

struct hmm_stream {
	uint64_t next;    /* page number that the stream is expected to ask for, if it goes on page by page */
	uint64_t last;    /* the page farthest ahead that it asked for, or was given */
	int32_t delta;    /* how far that was from the one before, in pages; 0: far */
	int32_t step;     /* the same when it was so twice: what it is expected to go on by */
	uint64_t fetched; /* pages before this one have been asked for ahead of it (ahead.c) */
	uint32_t size;    /* pages brought in last time */
	uint32_t used;
	uint32_t ahead;  /* pages that are being brought in: who asks for the next one may be faster than who brings */
	uint64_t walked; /* pages in a row that it was given */
};

#define HMM_OVERTAKEN 256u
#define HMM_LATE_NS 1000000000ull /* no event waits for longer in a queue that is read */

/* A mapping in which something was away was moved, and a fork may have come before. */
struct hmm_overtaken {
	uint64_t start, end, to; /* to: where it was moved */
	uint64_t at_ns;
	uint32_t by; /* the child for which it was last undone */
	bool unsure; /* for which it may have been: the records are at both places until it says what it has */
	bool again;  /* then, if it has both: it is where it was moved, not where it was */
};

struct hmm_mm {
	struct hmm *h;
	struct umm_space *space;
	uint32_t id;
	struct hmm_radix radix;
	char *window;
	char *staging; /* what the inside has moved stays there until it is committed (linked.c); NULL: it is copied */
	const struct hmm_inside_ops *_Atomic inside; /* NULL: nothing can be moved out */
	void *inside_priv;
	_Atomic bool armed;
	_Atomic bool looking; /* the walk that arms it has not got to the end: nothing is moved out before */
	_Atomic bool dead;
	_Atomic bool ready;       /* a forked child: its records are complete */
	_Atomic bool doomed;      /* its records are not right: who faults in it is killed, and never served */
	_Atomic unsigned asked;   /* how often it was tried to find out which process it is */
	_Atomic bool pid_learned; /* by a fault: it has no agent */
	_Atomic bool pid_ended;   /* that one has, and somebody else may live there still */
	_Atomic unsigned rest;    /* > 0: nothing is moved out for now */
	_Atomic bool giving;      /* a child is given its records, however long: nobody gets the event lock meanwhile */

	pthread_mutex_t out_lock;
	const void *out_owner; /* who causes a migration, for notifiers; NULL: the engine */
	bool out_exclusive;    /* to have the pages alone */
	struct hmm_slot slot[UMM_BATCHES][UMM_BATCH_PAGES];
	uint32_t batch_pages[UMM_BATCHES]; /* slots in use */
	/*
	 * The batches as they were asked for.  The control block has the same for
	 * the inside to read, but under hmm run the program can write there: of
	 * what it says only state, mask and error are looked at.
	 */
	struct hmm_run {
		uint64_t addr;
		uint32_t npages, slot;
		bool committed;
		bool copied; /* to the window, though there is staging */
	} run[UMM_BATCHES][UMM_BATCH_RUNS];
	uint32_t nruns[UMM_BATCHES];
	struct hmm_victim told[UMM_BATCHES][UMM_BATCH_RUNS]; /* ranges whose notifiers wait for the end */
	uint32_t ntold[UMM_BATCHES];
	bool batch_live[UMM_BATCHES]; /* asked for and not yet committed; changed with the event lock held shared */

	pthread_mutex_t lock; /* what follows */
	struct hmm_iset registered;
	struct hmm_iset early;       /* a walk has registered that, or is about to, and makes sure of it later */
	struct hmm_iset foreign;     /* somebody else's userfaultfd: hands off */
	struct hmm_iset foreign_old; /* the same, of a while ago: about to be asked for again */
	uint64_t foreign_aged_ns;
	/*
	 * What a child will not have, or have empty (marks_read() in engine.c); as
	 * sure as they are while every madvise() that changes it is told of.
	 */
	struct hmm_iset dontfork, wipeonfork;
	_Atomic bool marks_known;
	uint64_t marks_tried_ns; /* out_lock */
	/* What a child will not have of ours, and what of that is still to be seen to for a fork (unforked.c). */
	struct hmm_iset unforked, unforked_todo;
	uint64_t moves; /* mremap() of what may be away, or concerns forks; written under the event lock, exclusively */
	uint64_t written;                              /* calls of hmm_written() */
	struct hmm_overtaken overtaken[HMM_OVERTAKEN]; /* overtaken.c; event lock exclusively, as is their number */
	_Atomic unsigned novertaken;                   /* since there was a moment without a change under way */
	bool overtaken_said;
	struct hmm_iset unsure;        /* what was entered by hmm_overtaken_mend(), and the mm may not have */
	const struct hmm_iset *absent; /* while it is led back: what of its parent's it has not, by its marks */
	const struct hmm_iset *empty;  /* and what is empty in it */
	struct hmm_own *own;           /* while it is asked: what its own events have changed; event lock exclusively */
	struct hmm_kept *kept;         /* what was unmapped a moment ago, the latest first */
	_Atomic uint64_t nkept;        /* pages of it that cost something */
	uint64_t blind_ns;             /* when something could not be kept, for want of memory; 0: never */
	pthread_mutex_t marks_lock;    /* around the event lock: of two who read marks the later one counts */
	struct hmm_iset stuck;         /* cannot be moved; looked at again when emptied from time to time */
	uint64_t keep_start, keep_end; /* the engine's own arena in there */
	struct hmm_mm *walk_next;      /* walkers.c */
	bool walking;                  /* walkers.c */
	uint64_t walk_ns;        /* CPU time that the last walk took to look at its mappings; its walker's, as is: */
	uint64_t sure_ns;        /* that it took for what it had found; */
	uint64_t walk_cpu_ns;    /* the walker's when it began; */
	bool in_turn;            /* the walker has given up its priority; */
	uint64_t discover_at_ns; /* not again before */
	uint64_t arming_ns;      /* its hooks were told to ask; the watcher's */
	_Atomic bool settled;    /* a walk has left nothing; what follows is as it was before that one began */
	_Atomic uint64_t seen_cpu_ns, seen_size, seen_resident;
	_Atomic uint64_t walked_ns;                  /* when it began */
	_Atomic uint64_t statm_size, statm_resident; /* pages, as measured last */

	uint64_t hand;                /* the clock's; out_lock */
	uint32_t lap;                 /* out_lock */
	uint32_t window_used;         /* pages of each batch's part, at most; out_lock */
	uint64_t since_tick;          /* pages that went; out_lock */
	_Atomic uint32_t tick;        /* the time of entries */
	_Atomic uint32_t clean_score; /* 0..256: how often a CLEAN page proved to be clean, of late */
	_Atomic uint32_t clean_turn;
	uint64_t clean_hand;  /* out_lock */
	uint64_t demote_hand; /* out_lock */
	pthread_mutex_t stream_lock;
	struct hmm_stream stream[HMM_STREAMS];
	uint32_t stream_clock;
	_Atomic uint32_t seq_score; /* 0..256: how sequential faults were of late */

	/* -1: none; once others see the space changed by umm_fd_replace() only */
	_Atomic int stat_fd, statm_fd, rollup_fd, smaps_fd;
	_Atomic int window_fd; /* its memory counts too; -1: none */

	/* accounting, under h->lock */
	_Atomic uint64_t anon_pages; /* as measured; read without the lock */
	uint64_t shared_credit;      /* of these: counted in another space already */
	uint64_t minor_faults;       /* the program's, of its own kernel; read while pages are shared */
	uint64_t credit_faults;      /* what they were when the credit was measured */
	_Atomic bool forked;         /* shares pages with another space */
	_Atomic uint64_t registrations;
	struct hmm_mm *next;      /* h->mms */
	void (*gone)(void *priv); /* the last reference has been dropped */
	void *gone_priv;
	_Atomic uint64_t faults, pages_in, pages_out, zero_filled;
	_Atomic uint64_t lost_said;  /* address of the page that was last said to be lost */
	_Atomic unsigned lost_peers; /* a bit for each tier of which it was said that its peer is lost */
};

struct hmm_chain {
	unsigned n;
	struct hmm_device *dev[HMM_TIERS_MAX];
};

#define HMM_ASLEEP_THREADS 64u /* a tree of more is looked at by the clock */
#define HMM_ASLEEP_LOOKS 64u   /* in a row at which nothing had run, until clocks are asked for */

/* asleep.c */
enum { HMM_ASLEEP_IDLE, HMM_ASLEEP_ASKED, HMM_ASLEEP_ARMING, HMM_ASLEEP_ARMED };

struct hmm_asleep {
	_Atomic int state;
	pid_t watcher;
	bool watched;         /* there is a watcher; wait_lock */
	bool looked;          /* it has seen that all are armed; the watcher's */
	_Atomic bool refused; /* no such clocks for us */
	_Atomic unsigned rest;
	unsigned n; /* with fd: the reclaimer's until they are armed, then the watcher's */
	int fd[HMM_ASLEEP_THREADS];
};

struct hmm_options {
	uint64_t budget;                                               /* bytes; 0: none */
	const char *chain;                                             /* device specifications, comma-separated */
	void (*say)(void *priv, const char *line);                     /* one line for the user, without newline */
	void (*fatal)(void *priv, struct hmm_mm *mm, const char *why); /* the space must die: its records are lost */
	/**
	 * A managed space was forked.  Make a space for the child, whose
	 * userfaultfd is @uffd (the callee's from now on), and hmm_mm_publish() it.
	 * Runs under the parent's event lock.  0 or -errno: the child must die.
	 */
	int (*forked)(void *priv, struct hmm_mm *parent, int uffd, struct hmm_mm **child);
	/** Does task @tid, as we see its number, live in @mm?  Asked of spaces that nobody signed on for.  1, 0, or
	 * -errno; -EAGAIN: ask again. */
	int (*lives_in)(void *priv, struct hmm_mm *mm, pid_t tid);
	/** @each for each process that lives in @mm, or shares it, until it returns false; NULL: only the one that is
	 * known.  0, or -errno: some may have been missed. */
	int (*processes)(void *priv, struct hmm_mm *mm, bool (*each)(pid_t pid, void *arg), void *arg);
	/** A fault in the engine's own arena (mm->keep_start ..): somebody calls.  0, or -EAGAIN as a fault. */
	int (*called)(void *priv, struct hmm_mm *mm, uint64_t addr);
	void *priv;
	unsigned threads; /* that serve faults; 0: two a CPU, and two */
	bool linked;      /* spaces bring their own monitor; no chain, no budget (linked.c) */
	/** Bring back the block of @addr at once; linked only.  Pages that came, or 0. */
	unsigned (*block)(struct hmm_mm *mm, uint64_t addr);
	/** Is a page that is not there in [@start, @end) none of zeros, but a file's?  Linked only. */
	bool (*not_zeros)(struct hmm_mm *mm, uint64_t start, uint64_t end);
};

struct hmm {
	struct hmm_options opt;
	struct hmm_chain chain;
	struct umm_monitor *monitor;
	pthread_mutex_t lock; /* mms */
	struct hmm_mm *mms;
	uint32_t next_id;

	_Atomic uint64_t estimate; /* bytes that the tree costs, between measurements too */
	_Atomic uint64_t peak;
	_Atomic uint64_t away_peak;      /* pages */
	_Atomic uint64_t stored_at_peak; /* bytes that devices needed for them then */
	_Atomic bool armed;              /* some space was armed */
	_Atomic bool full_said;
	_Atomic bool full;
	_Atomic bool tight; /* above the budget, and there is little left that could go */
	_Atomic bool stop;
	_Atomic bool resting; /* everything was asked back */
	pthread_t watch_thread, reclaim_thread;
	struct hmm_walkers *walkers; /* the watcher's; NULL: none yet */
	struct hmm_ahead *ahead;     /* NULL: no device is worth it */
	_Atomic bool budget_started;
	pthread_mutex_t wait_lock; /* with the three conditions */
	pthread_cond_t want;       /* the reclaimer has work */
	pthread_cond_t room;       /* it has made room */
	pthread_cond_t ended;      /* stop */
	_Atomic bool want_set;
	_Atomic uint32_t newly_armed; /* spaces, since the watcher measured */
	_Atomic uint32_t looking;     /* spaces that are being armed */
	uint64_t looked_at;           /* bytes, when they last changed much; the watcher's, as is calm */
	uint32_t calm;                /* looks since */
	uint32_t still;               /* looks in a row at which no program had run; the watcher's, too */
	struct hmm_asleep asleep;
	_Atomic bool credit_due, crediting; /* shares are to be measured anew; somebody does */
	_Atomic uint64_t shared; /* bytes that spaces have in common, as of the last measurement: not in the estimate */
	_Atomic unsigned spaces; /* as of the last measurement */
	_Atomic bool walks;      /* does any of them walk through its memory? */
	uint64_t growth;         /* bytes a second that all CPUs can touch */
	unsigned cluster_max;    /* most pages that a walk is given at a time */
	uint64_t futile_ns;      /* how long to leave it when nothing would go; the reclaimer's */
	unsigned reclaim_turn;   /* whose turn it is to give; the reclaimer's */
	char *demote_buf;        /* pages on their way to the next tier; the reclaimer's */
	int self_statm_fd;
	uint64_t credit_at_ns; /* shares were measured, of all spaces; lock */
	uint64_t credit_cost_ns;

	_Atomic uint64_t clean[HMM_TIERS_MAX];      /* CLEAN pages of each tier */
	_Atomic uint64_t clean_max[HMM_TIERS_MAX];  /* no more are kept, */
	_Atomic uint64_t clean_walk[HMM_TIERS_MAX]; /* where nothing but walks is seen */
	_Atomic uint32_t trim_rest[HMM_TIERS_MAX];  /* how often a tier with holes is still left as it is */

	_Atomic uint64_t faults, pages_in, pages_out, zero_filled, poisoned, out_failed, dropped_clean, pages_ahead;
	_Atomic uint64_t registrations;
	_Atomic uint64_t unsaid;        /* pages that the kernel moved and did not tell of (umm/inside.c) */
	_Atomic uint64_t unregistered;  /* runs that were not moved, because their mapping was not registered */
	_Atomic uint64_t held;          /* times that a fault waited for room */
	_Atomic uint64_t held_in_vain;  /* faults that waited as long as one may, and went on without */
	_Atomic uint64_t looks, walked; /* times that the watcher measured; that it had mappings walked through */
	_Atomic uint64_t kept;          /* pieces that are kept for forks which may have been overtaken */
	uint64_t start_ns;
};

/** Where the contents of slot @s of batch @b are, once it has been moved. */
static inline char *hmm_slot_page(const struct hmm_mm *mm, unsigned b, unsigned s)
{
	return (mm->slot[b][s].staged ? mm->staging : mm->window) + ((size_t)b * UMM_BATCH_PAGES + s) * UMM_PAGE;
}

/* engine.c */
int hmm_create(const struct hmm_options *opt, struct hmm **hp, char *err, size_t errlen);
void hmm_destroy(struct hmm *h);
/**
 * To manage a space takes two steps: hmm_mm_new() makes its records, the caller fills in what is its own, and from
 * hmm_mm_publish() on whoever goes through all spaces finds them.  The first one allocates, which must not be done
 * under the event lock: malloc's lock may be held by who waits for an event to be read.  The second one may,
 * exclusively; the mm has the reference that the caller has taken from there on.  Before that free() ends it.
 * @space: its uffd has agreed on features.
 * @window: UMM_BATCHES * UMM_BATCH_PAGES pages that the inside fills; the caller's.
 */
struct hmm_mm *hmm_mm_new(struct hmm *h, struct umm_space *space, char *window, const struct hmm_inside_ops *inside,
			  void *priv);
void hmm_mm_publish(struct hmm_mm *mm);
/** The process that a fault told of has ended: the next one says who lives there. */
void hmm_mm_pid_ended(struct hmm_mm *mm);
/** Kills the process that is known to live in the space, if one is. */
void hmm_mm_kill(struct hmm_mm *mm);
/** The space has ended: its pages are let go.  The mm is freed with the space's last reference. */
void hmm_mm_del(struct hmm_mm *mm);
void hmm_say(struct hmm *h, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/** @ts: the moment @ns from now, as a condition's timed wait wants it (CLOCK_MONOTONIC). */
void hmm_deadline(struct timespec *ts, uint64_t ns);
/** All spaces, as they are now, with a reference each.  Returns how many, or -ENOMEM; hmm_mms_put() ends it. */
int hmm_mms_get(struct hmm *h, struct hmm_mm ***list);
void hmm_mms_put(struct hmm_mm **list, unsigned n);

/* residency.c */
int hmm_radix_init(struct hmm_radix *r);
void hmm_radix_destroy(struct hmm_mm *mm);
struct hmm_leaf *hmm_leaf_find(struct hmm_mm *mm, uint64_t addr);
struct hmm_leaf *hmm_leaf_get(struct hmm_mm *mm, uint64_t addr); /* adds it; NULL: no memory, or beyond HMM_ADDR_END */
/**
 * hmm_block_went() - all pages of the leaf of @base have just been stored from @staged
 *
 * If they are one huge page there, and nothing has come to their place, they can
 * come back as one.  Under out_lock.
 */
void hmm_block_went(struct hmm_mm *mm, uint64_t base, unsigned tier, const void *staged);

/**
 * hmm_block_back() - bring back the pages of the leaf of @base at once, if they can be
 * @block: room for a huge page, aligned to it, empty and the caller's own.
 *
 * Returns how many came: others are still where they were.
 */
unsigned hmm_block_back(struct hmm_mm *mm, uint64_t base, unsigned tiers, char *block);

/**
 * hmm_block_give() - move the pages of the leaf of @base, all of a batch, from @window to a device's memory
 * @to: registered, empty; pages of @handle.
 *
 * Returns how many have gone, and are entered.  Under out_lock.
 */
unsigned hmm_block_give(struct hmm_mm *mm, uint64_t base, const void *window, const hmm_handle_t handle[],
			unsigned tier, void *to);

/** hmm_block_zero() - put a huge page of zeros where nothing is, if it goes; @block as above, filled with zeros */
void hmm_block_zero(struct hmm_mm *mm, uint64_t base, char *block);

void hmm_account_in(struct hmm_mm *mm, uint64_t n);

/** The first leaf that ends above @addr and begins below @end; NULL: none. */
struct hmm_leaf *hmm_leaf_next(struct hmm_mm *mm, uint64_t addr, uint64_t end);
void hmm_entry_set(struct hmm_mm *mm, struct hmm_leaf *leaf, unsigned i, hmm_entry_t e); /* leaf lock held */
/* The three below: event lock held exclusively. */
void hmm_residency_drop(struct hmm_mm *mm, uint64_t start, uint64_t end);
int hmm_residency_remap(struct hmm_mm *mm, uint64_t from, uint64_t to, uint64_t len);
int hmm_residency_clone(struct hmm_mm *mm, struct hmm_mm *child);

static inline unsigned hmm_leaf_index(uint64_t addr)
{
	return addr >> UMM_PAGE_SHIFT & (HMM_LEAF_PAGES - 1);
}

/** Mappings that a child of fork() has not (@absent) or has empty (@empty), by what smaps says of @mm.  0 or -errno. */
int hmm_find_unforked(struct hmm_mm *mm, struct hmm_iset *absent, struct hmm_iset *empty);
typedef int (*hmm_marks_fn)(struct hmm_mm *mm, struct hmm_iset *absent, struct hmm_iset *empty);
/**
 * Of @absent and @empty, which @find has read while a fork is being applied, goes what came there marked since the
 * fork.  Event lock held exclusively.  0 or -errno.
 */
int hmm_marks_before(struct hmm_mm *mm, struct hmm_iset *absent, struct hmm_iset *empty, hmm_marks_fn find);

/**
 * Poison for a forked child that nobody will serve, by its @uffd, wherever something is away.  0, or -errno: not
 * everywhere.  Event lock of @mm held exclusively.
 */
int hmm_lost_to_child(struct hmm_mm *mm, int uffd);

/** A mapping goes; before its records do.  Event lock held exclusively, as for what follows. */
void hmm_overtaken_unmapped(struct hmm_mm *mm, uint64_t start, uint64_t end);
/** A mapping moves; before the records follow. */
void hmm_overtaken_moved(struct hmm_mm *mm, const struct umm_change *c);
/** Has there been such a change that a fork may still have come before? */
bool hmm_overtaken_lately(struct hmm_mm *mm);
/** What was kept for more than a second goes. */
void hmm_overtaken_expire(struct hmm_mm *mm);
/** Something could not be kept, for want of memory: a child that is told of now may lack it. */
bool hmm_overtaken_blind(const struct hmm_mm *mm);
/** A forked child's records, which are a copy of @mm's, become those of what it has inherited.  0 or -errno. */
int hmm_overtaken_mend(struct hmm_mm *mm, struct hmm_mm *child);
/** What was entered while @child did not let the kernel say what it has: what it has not goes again.  0 or -errno. */
int hmm_overtaken_settle(struct hmm_mm *mm, struct hmm_mm *child);
/** @child's own event, where @child->own is not NULL. */
void hmm_overtaken_own(struct hmm_mm *child, const struct umm_change *c);
/** Where @child has what @mm has at @addr. */
uint64_t hmm_overtaken_where(struct hmm_mm *mm, const struct hmm_mm *child, uint64_t addr);
/** Let go of what no fork can be for any more; to be called now and then, without a lock.  Costs nothing if it is
 * nothing. */
void hmm_overtaken_age(struct hmm_mm *mm);
/** The same by who knows, the event lock held shared, that no change is under way at this moment. */
void hmm_overtaken_over(struct hmm_mm *mm);
/** @fn of each page that is kept, until it says other than 0, which is returned.  @nr: of the last move before. */
int hmm_overtaken_each(struct hmm_mm *mm, void *arg,
		       int (*fn)(struct hmm_mm *mm, void *arg, uint64_t addr, unsigned nr));
/**
 * Does @mm have something registered at @addr now, which a child may have inherited?  @asked: false at a fork's first
 * call; while a change stays unread the kernel does not say, and is asked for long but once.
 */
bool hmm_overtaken_again(struct hmm_mm *mm, uint64_t addr, bool *asked);
/**
 * Where a child has what @mm had at @addr after move @nr (now: mm->novertaken).  @had: did it have anything there?
 * @asked as above.
 */
uint64_t hmm_overtaken_place(struct hmm_mm *mm, uint64_t addr, unsigned nr, bool (*had)(void *arg, uint64_t addr),
			     void *arg, bool *asked);
/** Say once that a child has lost something of what was kept. */
void hmm_overtaken_lost(struct hmm_mm *mm);
/** The mm ends. */
void hmm_overtaken_free(struct hmm_mm *mm);

/** Look up in smaps what of @mm a child will not inherit as it is.  The event lock is not held.  0 or -errno. */
int hmm_marks_read(struct hmm_mm *mm);
/** The same, by one look: -EAGAIN where a change is under way. */
int hmm_marks_try(struct hmm_mm *mm);

/* access.c: devices at the pages that they hold */
/** Copy the pages from @addr on that are on @tier.  Returns how many (0: the first is not), or -errno of the device. */
int hmm_peek(struct hmm_mm *mm, unsigned tier, uint64_t addr, char *buf, unsigned n);
/** Replace the contents of pages from @addr on that are on @tier.  Returns as hmm_peek(). */
int hmm_poke(struct hmm_mm *mm, unsigned tier, uint64_t addr, const char *buf, unsigned n);

/* linked.c */
/** mm->lock held: of what coherent devices share with others since a fork, what was written to is noted. */
void hmm_coherent_settle(struct hmm_mm *mm, uint64_t start, uint64_t end);

/* written.c */
#define HMM_DROP_MAX_NS 500000000ull /* for so long what is being dropped is waited for */
/** mm->lock held: other pages are there now than those that were asked about, or what a device wrote to them. */
void hmm_written_moved(struct hmm_mm *mm, uint64_t start, uint64_t end);

/* clean.c: pages that are back while a device still has them */
/** Are pages that come back from @tier to be kept there, too?  @cluster: as many were asked for at a time. */
bool hmm_clean_keeps(struct hmm_mm *mm, unsigned tier, unsigned cluster);
/** Let go of what a slot or an entry kept.  @e: 0, or CLEAN. */
void hmm_clean_put(struct hmm *h, hmm_entry_t e);
/** A CLEAN entry becomes SYSTEM, and its copy goes.  Leaf lock held. */
void hmm_clean_forget(struct hmm_mm *mm, struct hmm_leaf *leaf, unsigned i);
/**
 * Of @n pages of batch @b, find those that a device still has as they are:
 * @handle then has a reference, else it is HMM_HANDLE_NONE.  Returns how many.
 */
unsigned hmm_clean_match(struct hmm_mm *mm, unsigned b, const void *const src[], const uint16_t index[],
			 hmm_handle_t handle[], uint8_t tier[], unsigned n);
/** Adapt to what there is room for, and make room where a device is full; @full: one has just refused pages.  out_lock
 * held. */
void hmm_clean_shed(struct hmm_mm *mm, bool full);
/** Copies that take RAM: what could be let go where nothing else goes. */
uint64_t hmm_clean_in_ram(struct hmm *h);

/* chain.c */
int hmm_chain_open(const char *spec, uint64_t budget, struct hmm_chain *c, char *err, size_t errlen);
void hmm_chain_close(struct hmm_chain *c);
/** Offer pages to tier @from and those behind it; what none took keeps HMM_HANDLE_NONE.  Returns how many were taken.
 */
unsigned hmm_chain_in(struct hmm *h, unsigned from, const void *const src[], hmm_handle_t handle[], uint8_t tier[],
		      unsigned n);

/* fault.c */
int hmm_fault(void *priv, const struct umm_fault *f);
/** Event lock shared, leaf lock held: nothing could be placed at @addr.  -EEXIST: something is there; -EAGAIN. */
int hmm_taken_or_changing(struct hmm_mm *mm, uint64_t addr);
/**
 * Bring back up to @max pages from @addr on, which nobody has touched and which are on one device.  Pages
 * that came; 0: none is away there; or an error, which whoever touches them will meet.
 */
int hmm_bring_ahead(struct hmm_mm *mm, uint64_t addr, unsigned max);
/** Bring back what is away in [start, end).  0, -ESRCH, or -ENOMEM or -EFAULT: then something is still away. */
int hmm_restore(struct hmm_mm *mm, uint64_t start, uint64_t end);
/** The same of what is in the memory of @tiers (a bit each); adds to @placed the pages that came, unless NULL. */
int hmm_restore_from(struct hmm_mm *mm, uint64_t start, uint64_t end, unsigned tiers, uint64_t *placed);
/**
 * By @restore, for who is about to drop contents of [start, end) without an event: quarantined when it is done, of
 * which nothing can go out in between.  Signals blocked.
 */
int hmm_bring_back(struct hmm_mm *mm, uint64_t start, uint64_t end,
		   int (*restore)(struct hmm_mm *mm, uint64_t start, uint64_t end));
/** hmm_restore() of all there is, also of what mremap() takes behind the hand meanwhile; -EAGAIN: it goes on without end.
 * Under out_lock. */
int hmm_restore_all(struct hmm_mm *mm);
#define HMM_MOVES_MAX 10000u /* how often one looks again */
/** How many mremap() were seen of what may be away. */
uint64_t hmm_moves_now(struct hmm_mm *mm);
/** Event lock held.  Has everything been heard of that was moved since there were @moves? */
bool hmm_moves_settled(struct hmm_mm *mm, uint64_t moves);

/* migrate.c */
/** Move out; runs of at most UMM_RUN_PAGES in one leaf each, UMM_BATCH_PAGES in all.  Returns pages that are away now,
 * or -errno. */
int hmm_migrate_out(struct hmm_mm *mm, const struct hmm_victim *v, unsigned n);
/** Pipelined form: each call stores the batch before. */
int hmm_out_begin(struct hmm_mm *mm, unsigned b, const struct hmm_victim *v, unsigned n);
int hmm_out_finish(struct hmm_mm *mm, unsigned b); /* wait and commit; pages parked */
int hmm_out_store(struct hmm_mm *mm, unsigned b);  /* pages stored */
/** The two halves of storing: what there is to store, and where it has gone.  Arrays of UMM_BATCH_PAGES. */
unsigned hmm_out_gather(struct hmm_mm *mm, unsigned b, const void *src[], uint16_t index[]);
unsigned hmm_out_commit(struct hmm_mm *mm, unsigned b, const void *const src[], const uint16_t index[],
			hmm_handle_t handle[], const uint8_t tier[], unsigned n);
/** Event lock held exclusively: what the inside has done shows in the records.  False: it died, and it does not. */
bool hmm_out_sync(struct hmm_mm *mm);

/* discover.c */
/** Bring [start, end) back and have nothing more to do with it: somebody else's userfaultfd will.  0 or -errno. */
int hmm_hands_off(struct hmm_mm *mm, uint64_t start, uint64_t end);

/*
 * Where the kernel tells nobody of forks (unforked.c).  Those that say 0 or -errno: out_lock held, and mm->rest is not
 * 0 but for the first.
 */
/** Children to come shall not have [start, end).  0 or -errno. */
int hmm_unforked_add(struct hmm_mm *mm, uint64_t start, uint64_t end);
/** Everything comes back, and a child gets all of it.  0, or -errno: a child would lack something. */
int hmm_unforked_lift(struct hmm_mm *mm);
/** The opposite: of what is registered a child gets nothing.  0, or -errno: nothing may be moved out. */
int hmm_unforked_back(struct hmm_mm *mm);
/** mremap() was seen; event lock held exclusively. */
void hmm_unforked_follow(struct hmm_mm *mm, const struct umm_change *c);
/**
 * Register what is not yet, of mappings that are @least bytes or more, or are so with those beside them, or very many.
 * @looked, unless NULL: is called when the walk has got to the end, with whether what it has found is still to be made
 * sure of.  @left, unless NULL: out, whether there is something that could not be registered, or was not looked at.
 * 0 or -errno.
 */
int hmm_discover(struct hmm_mm *mm, uint64_t least, void (*looked)(struct hmm_mm *mm, bool unsure), bool *left);
void hmm_forget(struct hmm_mm *mm, uint64_t start, uint64_t end); /* unmapped */

/* reclaim.c */
/** Move about @pages out of the tree's spaces.  Returns pages that went, 0 when nothing would go. */
uint64_t hmm_reclaim(struct hmm *h, uint64_t pages);

/* demote.c */
/** Relieve tiers that are nearly full by moving what @mm has in them longest to the next.  out_lock held. */
void hmm_demote(struct hmm_mm *mm);

/* ahead.c */
/** Threads for it, where there is a device that takes its time.  What cannot be had is done without. */
void hmm_ahead_start(struct hmm *h);
/** Nothing is fetched any more; faults may still ask, until hmm_ahead_free(). */
void hmm_ahead_stop(struct hmm *h);
void hmm_ahead_free(struct hmm *h);
/** A walk is at @page, and what lies before page @from has been asked for.  Returns what that is now. */
uint64_t hmm_ahead_ask(struct hmm_mm *mm, uint64_t from, uint64_t page);
/** True: @addr is being fetched, and who waits for it will be woken. */
bool hmm_ahead_comes(struct hmm_mm *mm, uint64_t addr);

/* budget.c */
int hmm_budget_start(struct hmm *h);
void hmm_budget_stop(struct hmm *h);

/* asleep.c */
/** The watcher's: begin and end of its life. */
void hmm_asleep_begin(struct hmm *h);
void hmm_asleep_end(struct hmm *h);
/** The watcher's, @still looks after anything has run.  True: hmm_asleep_arm() is to be called, by the reclaimer. */
bool hmm_asleep_ask(struct hmm *h, uint32_t still);
void hmm_asleep_arm(struct hmm *h);
/** The watcher's: it may sleep, if the look that it has just had says so. */
bool hmm_asleep_armed(struct hmm *h);
/** The watcher's, or of whoever has joined it and the reclaimer. */
void hmm_asleep_disarm(struct hmm *h);
/** The watcher's: sleeps for @ns, or until one of them has run: then it returns false. */
bool hmm_asleep_wait(struct hmm *h, uint64_t ns);
/** From anywhere: a space has joined, or the watcher is to stop. */
void hmm_asleep_wake(struct hmm *h);

/* walkers.c */
/**
 * @fn, always the same, for each of the @n spaces of @list that is not in the
 * middle of it, side by side.  Returns when all have done, or after @wait_ns.
 * The watcher's; until hmm_walkers_stop() has returned, which it calls itself or
 * who has joined it.
 */
void hmm_walkers_each(struct hmm *h, struct hmm_mm **list, unsigned n, void (*fn)(struct hmm_mm *mm), uint64_t wait_ns);
void hmm_walkers_stop(struct hmm *h);

/** A fault in @mm is about to place @pages: wait for room, within reason.  No lock held. */
void hmm_budget_charge(struct hmm_mm *mm, uint64_t pages);
/** Measure now.  Returns bytes that the tree costs. */
uint64_t hmm_budget_measure(struct hmm *h);

#endif
