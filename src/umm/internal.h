/* SPDX-License-Identifier: MIT */
/*
 * What umm's own files and its user hmm share.
 *
 * DOC: lock order
 *
 *   layout -> monitor's leader -> event lock of a space (evlock.h) -> what callbacks
 *   of notifiers take -> what keeps records (hmm) -> all others of umm's
 *
 * The notifiers' lock is one of those others: it is held while the tree is
 * searched, and across no callback.  Nothing that can fault in a managed space
 * runs under the event lock.  The whole house is in doc/locking.md.
 */
#ifndef UMM_INTERNAL_H
#define UMM_INTERNAL_H

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

#include "hmm_uapi.h"
#include "umm.h"
#include "umm/ctl.h"
#include "umm/inside.h"
#include "umm/notifier_internal.h"
#include "umm/signals.h"
#include "umm/sys.h"

#define UMM_YIELDS 16u

/**
 * Who waits for a change to be over, for the @tries-th time: who changes must run
 * before the kernel says so.  The CPU is given away at first, and slept later: where
 * there is much to do, and to who has real-time priority, giving it away is not
 * enough, and tries are over before who changes, bound to this CPU maybe, has run.
 * Not libc's nanosleep(), in which a thread can be cancelled.
 */
static inline void umm_yield(unsigned tries)
{
	if (tries < UMM_YIELDS)
		sched_yield();
	else
		sys2(SYS_nanosleep, &(struct timespec){.tv_nsec = 50000}, NULL);
}

/** A page fault as it came from the userfaultfd. */
struct umm_fault {
	uint64_t addr;  /* of the page */
	uint32_t flags; /* UFFD_PAGEFAULT_FLAG_* */
	uint32_t tid;   /* 0: unknown */
	bool again;     /* served before, without success: a change was under way */
};

/** Who keeps records of a space's pages (hmm) hangs on here. */
struct umm_space_ops {
	/**
	 * A fault on a registered page.  No lock held.  Returns 0 when whoever
	 * waits for the page has been or will be woken, -EAGAIN to be called
	 * again after pending events have been read.
	 */
	int (*fault)(void *priv, const struct umm_fault *f);
	/** A change was reported.  Event lock held exclusively. */
	void (*change)(void *priv, const struct umm_change *change);
	/** By what has been told is something there in [@start, @end) that is registered?  Event lock held exclusively.
	 */
	bool (*mapped)(void *priv, uint64_t start, uint64_t end);
	/** Are pages of [@start, @end) away, or may they come to be?  Then it stays registered for faults. */
	bool (*holds)(void *priv, uint64_t start, uint64_t end);
	/** Before mremap() of [@start, @end): what is managed in part becomes managed as a whole. */
	int (*uniform)(void *priv, uint64_t start, uint64_t end);
	/**
	 * Before a call that drops contents of [@start, @end), of which no event tells: what is away comes back, as far
	 * as that can be done, and is in quarantine from then on.  Signals blocked, no lock held.
	 */
	void (*bring_back)(void *priv, uint64_t start, uint64_t end);
	/** What is away can be found no more: whoever runs there would go on with wrong bytes.  Event lock held
	 * exclusively.
	 */
	void (*lost)(void *priv, const char *why);
	/** Before a fork by libc: private pages are about to be shared. */
	void (*forking)(void *priv);
	/** The program has called MADV_DOFORK on [@start, @end).  Signals blocked, maybe locks held. */
	void (*inherited)(void *priv, uint64_t start, uint64_t end);
	/** In a forked child: close what it has inherited, raw; nothing else is to be touched, no lock taken. */
	void (*abandon)(void *priv);
	/** The space was forked; @uffd is the child's, the callee's to close.  Event lock held exclusively. */
	void (*forked)(void *priv, int uffd);
};

struct umm_monitor;
struct umm_arena;

#define UMM_QUARANTINES 64u
#define UMM_DROPS 64u
#define UMM_QUARANTINES_LATE 8u

struct umm_quarantine_range {
	uint64_t start, end, until_ns;
	uint64_t sign; /* page whose absence ends it; 0: none does */
	bool touched;  /* it was absent, and has been filled since */
	bool mixed;    /* of more than one call */
	bool seen;     /* by who asked, while it was not over */
	bool held;     /* by a hooked call, until that has ended */
};

struct umm_quarantine {
	pthread_mutex_t lock;
	_Atomic unsigned n;
	_Atomic unsigned populating; /* calls to umm_space_populate() under way */
	struct umm_quarantine_range range[UMM_QUARANTINES];
	_Atomic uint64_t ndrops; /* told of, ever */
	struct {
		uint64_t start, end;
	} drop[UMM_DROPS]; /* the last of them */
	_Atomic unsigned nlate;
	struct umm_quarantine_late {
		uint64_t start, end, sign;
		unsigned told;
	} late[UMM_QUARANTINES_LATE]; /* over by grace, and not by what is to be seen */
};

struct umm_space {
	_Atomic unsigned refs;
	bool self;
	struct umm_arena *arena; /* of a linked space; else memory is malloc's */
	_Atomic pid_t pid;       /* a task that lives in it, for messages */
	_Atomic int uffd;        /* -1: none; as the two below set once, and replaced by umm_fd_replace() only */
	_Atomic int pagemap_fd;
	_Atomic int maps_fd;
	bool maps_text; /* the kernel has no PROCMAP_QUERY */
	uint64_t features;
	struct umm_ctl *ctl;
	struct umm_notifiers notifiers;
	struct umm_quarantine quarantine;
	/*
	 * Shared by hooks while their call changes mappings, or forks; exclusively by
	 * the engine while it registers whole mappings, and while it moves some (take.c).  Who serves faults and events
	 * never takes it.
	 */
	pthread_rwlock_t layout;
	_Atomic unsigned forks, queued; /* who forks, and who wants it exclusively; see umm_layout_excl() */
	struct umm_monitor *monitor;
	struct umm_monitor *spares; /* whose spare descriptors are its own before it has a monitor; NULL: nobody's */
	uint64_t monitor_key;
	bool own_monitor;
	struct umm_messages
		*reading; /* what is being applied, and how far; who holds the event lock exclusively has it */
	const struct umm_space_ops *ops;
	void *priv;
	void (*destroy)(void *priv); /* when the last reference goes */
	bool (*_Atomic gone)(
		void *priv); /* has whoever stands in the space died, maybe with a lock held?  NULL: nobody does */
	pthread_mutex_t lock;
};

static inline bool umm_space_is_gone(struct umm_space *s)
{
	bool (*gone)(void *priv) = atomic_load(&s->gone); /* once: it may be taken away */

	return gone && gone(s->priv);
}

/* space.c */
/**
 * @fd, ours to give, in the place of what *@to has been; nothing happens when it
 * is -1.  Others may use *@to meanwhile: the number stays and its file changes, so
 * that nobody finds a closed one, or under its number what was opened next.  0 or -errno: it is what it was.
 */
int umm_fd_replace(_Atomic int *to, int fd);
/**
 * umm_space_adopt() - a space whose descriptors somebody else has opened.
 * @uffd, @pagemap_fd, @maps_fd: the space's from now on, also on error; @pagemap_fd and @maps_fd may be -1.
 * @ctl: the caller's, to outlive the space.
 */
int umm_space_adopt(pid_t pid, int uffd, int pagemap_fd, int maps_fd, struct umm_ctl *ctl, struct umm_space **spacep);
/**
 * As if the userfaultfd of a space that no monitor reads had been closed: nothing is registered any more, and who waits
 * to be told of goes on.  What is asked of it from now on is -ENOTTY.  0 or -errno.
 */
int umm_space_let_go(struct umm_space *space);
void umm_space_get(struct umm_space *space);
/** In a forked child: close what it has inherited of @space, and nothing else; @space is of no more use. */
void umm_space_abandon(struct umm_space *space);
void umm_space_put(struct umm_space *space);
/** Does @pid, as a fault names it, mean the same process to us?  (A fault gives it as its own pid namespace sees it.)
 */
bool umm_same_pidns(pid_t pid);
/** A self space gets its userfaultfd, control block and monitor, unless it has them. */
int umm_space_serve(struct umm_space *space);
struct umm_notifiers *umm_space_notifiers(struct umm_space *space);
int umm_space_pagemap_fd(struct umm_space *space);
int umm_space_populate(struct umm_space *space, uint64_t start, uint64_t len, bool write);

/* pagemap.c */
/** As umm_page_scan(), but does not say FILE, for which the kernel looks at a record of each page. */
int umm_page_scan_states(struct umm_space *space, uint64_t start, uint64_t end, struct umm_page_run *runs, unsigned nr,
			 uint64_t *walk_end);
/** As umm_page_scan(): present pages that were written since umm_uffd_writeprotect(); all of them where it never was.
 */
int umm_page_scan_written(struct umm_space *space, uint64_t start, uint64_t end, struct umm_page_run *runs, unsigned nr,
			  uint64_t *walk_end);
/**
 * Pages that were written to since they were last found so, or are not there, or for whom nobody can tell; from
 * here on they count as not written to.  -EPERM: the range, or the mapping at @walk_end, is not watched.
 */
int umm_page_take_written(struct umm_space *space, uint64_t start, uint64_t end, struct umm_page_run *runs, unsigned nr,
			  uint64_t *walk_end);

/* hook.c */
/** Takes the layout lock exclusively; signals blocked. */
void umm_layout_excl(struct umm_space *space);

/* maps.c */
/**
 * Each line of a file, of 255 characters at most, without malloc and stdio, until @each returns false; @buf: a page.
 * 0, or -errno of read(2).
 */
int umm_lines(int fd, char *buf, bool (*each)(void *priv, const char *line), void *priv);

/* arena.c */
struct umm_arena *umm_arena_new(void);
void umm_arena_free(struct umm_arena *arena);
/** What somebody has mapped over a piece of the arena, whole pages, is the arena's again, and empty. */
void umm_arena_reset(void *p, uint64_t size);
/** umm_arena_torn() - something of the program has come to lie in it: no part of it is ever unmapped. */
void umm_arena_torn(struct umm_arena *arena);
bool umm_arena_meets(const struct umm_arena *arena, uint64_t start, uint64_t end);

/* quarantine.c */
/** For a grace period, whatever happens. */
void umm_quarantine_add(struct umm_space *space, uint64_t start, uint64_t end);
/** Its pages are about to be dropped: an event says so.  Event lock held exclusively. */
void umm_quarantine_dropping(struct umm_space *space, uint64_t start, uint64_t end);
/** An event that was read says that it is mapped there no more.  Before events of the same read are applied. */
void umm_quarantine_unmapping(struct umm_space *space, uint64_t start, uint64_t end);
/** Where nothing was, a page has been placed.  Event lock held. */
void umm_quarantine_filled(struct umm_space *space, uint64_t start, uint64_t end);
bool umm_quarantined(struct umm_space *space, uint64_t start, uint64_t end);
/**
 * May something in [@start, @end) be dropped yet, though no quarantine says so any more?  Said a few times of each, for
 * what is never dropped.  Event lock shared.
 */
bool umm_quarantined_before(struct umm_space *space, uint64_t start, uint64_t end);
/** Around asking for pages: what came in while a drop was told of goes with it, or it is not known whether it does. */
void umm_quarantine_populate_begin(struct umm_space *space);
void umm_quarantine_populate_end(struct umm_space *space, uint64_t start, uint64_t end);
/** Before a call that drops something: to be given to umm_quarantine_lift() when it has returned. */
uint64_t umm_quarantine_mark(struct umm_space *space);
/** A call that has dropped [@start, @end), and of which the kernel tells, has returned: its hook says so. */
void umm_quarantine_lift(struct umm_space *space, uint64_t start, uint64_t end, uint64_t mark);
/**
 * As umm_quarantine_add(), until umm_quarantine_let_go() of the same range, which ends one, and unless there are more
 * than can be told apart.  Signals blocked.
 */
void umm_quarantine_hold(struct umm_space *space, uint64_t start, uint64_t end);
void umm_quarantine_let_go(struct umm_space *space, uint64_t start, uint64_t end);
/** What umm_quarantine_add() has begun is over, unless something else has met it.  Signals blocked. */
void umm_quarantine_end(struct umm_space *space, uint64_t start, uint64_t end);

/* uffd.c: 0 or -errno throughout */
#define UMM_UFFD_BASE                                                                                               \
	(UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP | UFFD_FEATURE_THREAD_ID | \
	 UFFD_FEATURE_MOVE | UFFD_FEATURE_POISON)
/** Agree on features; EVENT_FORK is asked for and done without when the kernel withholds it. */
int umm_uffd_api(int uffd, uint64_t want, uint64_t optional, uint64_t *got);
int umm_uffd_register(int uffd, uint64_t start, uint64_t len, uint64_t mode);
int umm_uffd_unregister(int uffd, uint64_t start, uint64_t len);
/**
 * Within the caller's own space.  @moved: bytes, also on error, and also those that the kernel does not tell of
 * (umm/inside.c).
 */
int umm_uffd_move(int uffd, uint64_t dst, const void *src, uint64_t len, uint64_t *moved);
/** @copied: bytes that went in before an error; never NULL.  Wakes who waits for them. */
int umm_uffd_copy(int uffd, uint64_t dst, const void *src, uint64_t len, uint64_t *copied);
/** The same; what is placed counts as not written to. */
int umm_uffd_copy_unwritten(int uffd, uint64_t dst, const void *src, uint64_t len, uint64_t *copied);
int umm_uffd_zeropage(int uffd, uint64_t dst, uint64_t len, uint64_t *zeroed);
int umm_uffd_poison(int uffd, uint64_t dst, uint64_t len);
/** Nobody waits for it (WP_ASYNC): a write undoes it, which shows.  Where nothing is it leaves a marker. */
int umm_uffd_writeprotect(int uffd, uint64_t start, uint64_t len);
int umm_uffd_writeunprotect(int uffd, uint64_t start, uint64_t len);
int umm_uffd_wake(int uffd, uint64_t start, uint64_t len);
/** Is a change of the space under way, from before its event is queued until it was read and its caller runs again? */
bool umm_uffd_is_changing(int uffd);

/* monitor.c */
/** @alone: in a process of ours, where threads may have the scheduling that suits them. */
int umm_monitor_create(unsigned nthreads, bool alone, struct umm_monitor **mp);
/** Its threads have ended, and what they were applying has been applied; its spaces are still its. */
void umm_monitor_stop(struct umm_monitor *m);
void umm_monitor_destroy(struct umm_monitor *m);
/** The CPU that others of ours had better leave to who serves faults; -1: any will do. */
int umm_monitor_cpu(struct umm_monitor *m);
/** In a forked child, as umm_space_abandon(). */
void umm_monitor_abandon(struct umm_monitor *m);
int umm_monitor_add(struct umm_monitor *m, struct umm_space *space);
/** No thread of the monitor starts on @space any more once it has returned; one may still be busy with it. */
void umm_monitor_del(struct umm_space *space);
/**
 * Of every thread of ours, whatever RLIMIT_STACK says: whoever reads events may have to apply a fork,
 * and who brings pages back for it has a cluster of them on the stack.
 */
#define UMM_THREAD_STACK (2ul << 20)
/** Read what is pending without blocking: events are applied, faults go to the monitor's threads. */
void umm_space_drain(struct umm_space *space);
/**
 * What anybody had read when this was called has been applied when it returns; of spaces that have ended as well.
 * Sleeps; not from within an event.
 */
void umm_monitor_settle(struct umm_monitor *m);
/**
 * As read(2) of a userfaultfd.  A FORK event comes with a descriptor, and who forks waits
 * for it to be read: @m (NULL: none) has one to give up when there is no other.
 */
ssize_t umm_monitor_read(struct umm_monitor *m, int uffd, struct uffd_msg *msg, size_t len);
/**
 * In ops->forked(): the @nth event, from 0 on, that came behind the fork, and will be applied after it.
 * Reads what there is if it must, and then whoever waits for that goes on; counts @nth up; NULL: there is none yet.
 */
const struct uffd_msg *umm_space_event_behind(struct umm_space *s, unsigned *nth);
/** Called by who serves a fault, before it sleeps: another thread takes over the waiting. */
void umm_monitor_yield(void);
/** Called by who may be serving a fault, before it makes a thread: that has its scheduling (follow.c) for ever. */
void umm_monitor_rise(void);

/** Is nothing that was read on its way to notifiers?  Who reads events holds the event lock until they are applied. */
static inline bool umm_space_in_sync(struct umm_space *space)
{
	struct umm_ctl *ctl = __atomic_load_n(&space->ctl, __ATOMIC_ACQUIRE);

	return !ctl || !(atomic_load(&ctl->evlock.word) & UMM_EVLOCK_EXCL);
}

#endif
