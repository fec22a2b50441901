/* SPDX-License-Identifier: MIT */
/*
 * umm: the generic layer.  An address space, the state of its pages, who wants
 * to be told before they change, and ranges of it as a device sees them.
 * Nothing here knows of devices; see hmm.h for those.
 *
 * Names follow the kernel's: umm_notifier is mmu_interval_notifier, umm_range
 * is hmm_range, umm_range_fault() is hmm_range_fault() (doc/kernel-names.md has
 * the table).
 *
 * DOC: using a mirror
 *
 *	again:	range.notifier_seq = umm_read_begin(&n);
 *		rc = umm_range_fault(&range);
 *		if (rc == -EBUSY)
 *			goto again;		(until the caller's deadline)
 *		lock(driver);			(the lock that the callback takes, too)
 *		if (umm_read_retry(&n, range.notifier_seq)) {
 *			unlock(driver);
 *			goto again;
 *		}
 *		program the device's page table from range.entries
 *		unlock(driver);
 *
 * Errors are returned as negative errno values.
 *
 * DOC: who may
 *
 * Queries, notifiers and ranges need no right.  Watching (umm_space_watch()), and
 * the engine of hmm(7), need a userfaultfd: CAP_SYS_PTRACE, or the right to open
 * /dev/userfaultfd, or the setting vm.unprivileged_userfaultfd=1.  "hmm doctor"
 * says which of these there are, and what is missing.
 *
 * DOC: callbacks
 *
 * A callback runs in whatever thread changes the space, or in one that serves
 * faults, all signals blocked.  It calls nothing of umm(7) but umm_alloc(), umm_free(),
 * umm_notifier_insert(), umm_notifier_remove() of its own notifier, umm_read_retry()
 * and umm_notifier_set_seq(), nothing of hmm(7), and not malloc.  It touches no memory
 * of the space but what umm_alloc() gave.  The same holds for who has a lock that a
 * callback takes; such a lock is taken with all signals blocked.
 */
#ifndef UMM_H
#define UMM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#ifdef __cplusplus
extern "C" {
#endif

#pragma GCC visibility push(default)

/* ------------------------------------------------------------------ spaces */

/** An address space: that of the caller, or of another process. */
struct umm_space;

/**
 * umm_space_open_self() - the caller's own address space
 * @spacep: out; ended with umm_space_close().
 *
 * Opens a userfaultfd for it and starts its monitor when the first range is
 * watched, not before.  A forked child must not use the space of its parent,
 * nor close it, and may open its own.
 *
 * Context: Thread-safe.  Not in callbacks.
 * Return: 0, or
 *	-ENOMEM	no memory, or no address space for what umm_alloc() gives
 *	-EACCES	the process may not look at itself: it has changed its user, or made itself not dumpable
 *	-EMFILE	it has no descriptor left; two are needed
 *	-ENFILE	the system has none left
 *	-ENOENT	/proc is not mounted
 */
int umm_space_open_self(struct umm_space **spacep);

/**
 * umm_space_open_pid() - the address space of another process, for queries
 * @pid: a process that the caller may trace (same user and dumpable, or CAP_SYS_PTRACE).
 * @spacep: out; ended with umm_space_close().
 *
 * The space stays that of the program running now, also after @pid calls
 * execve().  What must be done from inside (watch, populate) gives -EOPNOTSUPP.
 *
 * Context: Thread-safe.  Not in callbacks.
 * Return: 0, or
 *	-ESRCH	there is no such process, or it has no memory (any more)
 *	-EACCES	it is not the caller's to look at
 *	-ENOMEM	no memory
 *	-EMFILE	the caller has no descriptor left; two are needed
 *	-ENFILE	the system has none left
 */
int umm_space_open_pid(pid_t pid, struct umm_space **spacep);

/**
 * umm_space_close() - end a space
 * @space: NULL is fine.
 *
 * Notifiers still on it are told RELEASE, and get their release() then.  Ranges,
 * caches and engines on it are closed before.  Memory of umm_alloc() goes with it.
 *
 * Context: No other call on @space may run.  Not in callbacks.
 */
void umm_space_close(struct umm_space *space);

/**
 * umm_space_watch() - have raw system calls that change a range reported
 * @space: the caller's own.
 * @start, @len: bytes, page-aligned; whole mappings, as a partly watched one breaks mremap().
 *
 * Registers the range with the space's userfaultfd (write-protect mode,
 * asynchronous), which works on anonymous, shared, file and hugetlb mappings.
 * From then on munmap, mremap, MADV_DONTNEED and their like reach the notifiers,
 * whoever called them and how: the caller goes on once its event has been read,
 * callbacks run at once then.  (Only the hooks can promise more: that callbacks
 * have returned before the call begins.)  mprotect sends nothing: see
 * umm_range_fault().
 *
 * Context: Thread-safe.  May sleep.  Not in callbacks.
 * Return: 0, or
 *	-EINVAL	empty, unaligned or wrapping; a hole in it, or memory that cannot be watched (a
 *		device's, [vvar], of umm_alloc()); or the kernel's userfaultfd lacks what it takes (before Linux 6.8)
 *	-EBUSY	another userfaultfd has part of it
 *	-EPERM	no right to a userfaultfd (umm(7)); or a shared mapping of a file opened for
 *		reading only
 *	-ENOMEM	no memory, or too many registrations
 *	-ENOSYS	the kernel is built without userfaultfd
 *	-EMFILE	no descriptor left; five are needed for the first range
 *	-EAGAIN	no thread could be made for the monitor
 *	-EOPNOTSUPP	not the caller's own space
 */
int umm_space_watch(struct umm_space *space, uint64_t start, uint64_t len);

/**
 * umm_space_unwatch() - undo umm_space_watch()
 * @space: the caller's own.
 * @start, @len: bytes, page-aligned.
 *
 * What an engine holds pages of (hmm_mm_manage()) stays watched.
 *
 * Context: Thread-safe.  May sleep.  Not in callbacks, nor under a lock that they take.
 * Return: 0, or
 *	-EINVAL	empty, unaligned or wrapping; nothing is mapped there; or nothing of @space was
 *		ever watched
 *	-ENOMEM	no memory, or too many mappings
 */
int umm_space_unwatch(struct umm_space *space, uint64_t start, uint64_t len);

/**
 * umm_space_watch_around() - umm_space_watch() for all mappings that a range meets, whole
 * @space: the caller's own.
 * @start, @end: bytes, page-aligned.
 *
 * What can be watched is, also where something else of the range cannot.  What is
 * mapped anew afterwards is not: who needs it to hold looks under a sequence of a
 * notifier whether anything has changed.
 *
 * Context: Thread-safe.  May sleep.  Not in callbacks.
 * Return: 0, or the first of
 *	-EFAULT	a hole
 *	-EINVAL	unaligned or wrapping; memory that cannot be watched (a device's, [vvar], of
 *		umm_alloc()); or the kernel's userfaultfd lacks what it takes (before Linux 6.8)
 *	-EBUSY	another userfaultfd has part of it
 *	-EPERM	no right to a userfaultfd (umm(7)); or a shared mapping of a file opened for
 *		reading only
 *	-ENOMEM	no memory, or too many registrations
 *	-ENOSYS	the kernel is built without userfaultfd
 *	-EMFILE	no descriptor left; five are needed for the first range
 *	-EAGAIN	no thread could be made for the monitor
 *	-EOPNOTSUPP	not the caller's own space
 */
int umm_space_watch_around(struct umm_space *space, uint64_t start, uint64_t end);

/**
 * umm_space_sync() - wait until notifiers know of what the caller has done
 * @space: the caller's own.
 *
 * A raw call that changes a watched mapping returns when its event has been read,
 * which is before notifiers have been told; and what it unmaps another thread may have
 * mapped again before its event was read.  Who remembers something until its
 * callback runs calls this before it trusts what it remembers.  Where nothing is
 * on its way it costs a system call; where threads change watched memory without
 * end it may take as long (umm_space_sync_until()).
 *
 * Context: Thread-safe.  Not in callbacks, nor under a lock that they take.
 */
void umm_space_sync(struct umm_space *space);

/**
 * umm_space_sync_until() - the same, within bounds
 * @space: the caller's own.
 * @deadline_ns: CLOCK_MONOTONIC; 0: none.
 *
 * Threads that change watched memory without end can keep one waiting as long.
 *
 * Context: Thread-safe.  Not in callbacks, nor under a lock that they take.
 * Return: 0, or
 *	-ETIME	it passed: something may be on its way that notifiers have not been told of
 */
int umm_space_sync_until(struct umm_space *space, uint64_t deadline_ns);

/* ------------------------------------------------------------------ memory */

/**
 * umm_alloc() - zeros for who is called while the space changes
 * @space: whose memory it is to be.
 * @size: bytes; remembered by the caller, for umm_free().
 *
 * Memory that is never part of what is managed, from a piece that was reserved
 * when the space was opened: callbacks, and who holds a lock that they take,
 * touch no other and call no malloc.  A multiple of a page is aligned to a page,
 * less to 64 bytes.  The caller's until umm_free(), or until the space ends; a
 * forked child does not have it.  It cannot be watched (umm_space_watch()), nor
 * registered (hmm_reg_get()).  (For another process's space it is malloc's.)
 *
 * Context: Thread-safe.  In callbacks, too.  Never sleeps for a fault.
 * Return: the memory; NULL when there is no more.
 */
void *umm_alloc(struct umm_space *space, size_t size);

/**
 * umm_free() - give back what umm_alloc() gave
 * @space: as it was then.
 * @p: NULL is fine.
 * @size: bytes, as it was then.
 *
 * Context: Thread-safe.  In callbacks, too.
 */
void umm_free(struct umm_space *space, void *p, size_t size);

/* ----------------------------------------------------------------- queries */

#define UMM_VMA_READ 0x01u
#define UMM_VMA_WRITE 0x02u
#define UMM_VMA_EXEC 0x04u
#define UMM_VMA_SHARED 0x08u
#define UMM_VMA_FILE 0x20u    /* a file is behind it */
#define UMM_VMA_SPECIAL 0x40u /* [vdso], [vvar], [vsyscall]: not memory of the program's */
#define UMM_VMA_STACK 0x80u   /* the main thread's stack */
#define UMM_VMA_HUGETLB 0x100u

/** One mapping. */
struct umm_vma {
	uint64_t start, end; /* bytes, end exclusive */
	uint64_t offset;     /* in the file, bytes */
	uint64_t inode;
	uint64_t page_size; /* bytes */
	uint32_t dev_major, dev_minor;
	uint32_t flags; /* UMM_VMA_* */
};

/**
 * umm_vma_next() - the mapping that covers an address, else the next one above it
 * @space: own or other.
 * @addr: bytes; need not be aligned.
 * @vma: out, on success.
 *
 * What it says may have changed when it returns: who needs it to hold asks under
 * a sequence of a notifier.
 *
 * Context: Thread-safe.  In callbacks not: before Linux 6.11 it calls malloc.
 * Return: 0, or
 *	-ENOENT	there is none
 *	-ESRCH	the space is gone (before Linux 6.11 that is -ENOENT)
 *	-ENOMEM	no memory
 */
int umm_vma_next(struct umm_space *space, uint64_t addr, struct umm_vma *vma);

#define UMM_PAGE_PRESENT 0x01u
#define UMM_PAGE_ZERO 0x02u /* the shared zero page */
#define UMM_PAGE_HUGE 0x04u /* mapped by a huge page table entry */
#define UMM_PAGE_FILE 0x08u /* page cache or shared memory, not a private copy */
#define UMM_PAGE_SWAPPED 0x10u

/** A run of pages of the same state. */
struct umm_page_run {
	uint64_t start, end; /* bytes */
	uint32_t flags;      /* UMM_PAGE_* */
};

/**
 * umm_page_scan() - runs of pages that are PRESENT or SWAPPED
 * @space: own or other.
 * @start, @end: bytes, page-aligned.
 * @runs: out; the caller's.
 * @nr: room at @runs.
 * @walk_end: out; where the scan stopped: @end when it is done, below it when @runs is full.
 *
 * Faults nothing.  What is in no run is neither present nor swapped.
 *
 * Context: Thread-safe.
 * Return: the number of runs, or
 *	-EINVAL	unaligned, or @end below @start
 *	-EFAULT	it reaches above user addresses
 *	-ESRCH	the space is gone; there are kernels that find no page there instead
 *	-ENOMEM	no memory
 *	-ENOTTY	the kernel has no PAGEMAP_SCAN (before Linux 6.7)
 */
int umm_page_scan(struct umm_space *space, uint64_t start, uint64_t end, struct umm_page_run *runs, unsigned nr,
		  uint64_t *walk_end);

/* --------------------------------------------------------------- notifiers */

enum umm_event {
	UMM_EVENT_UNMAP,     /* the mapping goes away */
	UMM_EVENT_REMAP,     /* it moves to another address, or is to change its size: start -> new_start */
	UMM_EVENT_CLEAR,     /* contents are dropped (MADV_DONTNEED, MADV_FREE, MADV_REMOVE ...) */
	UMM_EVENT_PROTECT,   /* protection changes */
	UMM_EVENT_MIGRATE,   /* pages move to or from a device; contents stay */
	UMM_EVENT_EXCLUSIVE, /* a device wants them for itself alone (HMM_DEV_EXCLUSIVE); contents stay */
	UMM_EVENT_FORK,      /* private pages become copy-on-write */
	UMM_EVENT_RELEASE,   /* the address space ends */
};

/** One change of an address space. */
struct umm_change {
	enum umm_event event;
	uint64_t start, end; /* bytes, page-aligned, end exclusive */
	uint64_t new_start;  /* REMAP, where it is known: not of a hooked call that leaves it to the kernel; else 0 */
	const void *owner;   /* who causes it (MIGRATE, EXCLUSIVE): a driver skips its own; else NULL */
	bool blockable;      /* false: a callback that would have to sleep returns false */
	/*
	 * Told by the kernel of a raw call, by a thread that serves faults: the
	 * callback must wait for nothing that may itself wait for a fault (a copy
	 * from or to the space).  False: it shall wait until the device has let go.
	 */
	bool late;
};

struct umm_notifier;

struct umm_notifier_ops {
	/**
	 * invalidate: forget what you know of @change's range before it changes.
	 * Must take the driver's lock, call umm_notifier_set_seq(n, seq) under it
	 * and drop the device's mappings.  Runs in any thread; must not call malloc,
	 * nor touch memory of the space but what umm_alloc() gave.  May remove @n.
	 * Returns true, or false when @change is not blockable and it would sleep.
	 */
	bool (*invalidate)(struct umm_notifier *n, const struct umm_change *change, uint64_t seq);
	/** release: the space is closed; the notifier is no longer on it.  May be NULL. */
	void (*release)(struct umm_notifier *n);
};

/** Interest in [start, end) of a space.  The driver embeds it; fields are umm's. */
struct umm_notifier {
	uint64_t start, end;
	uint64_t seq;
	struct umm_space *space; /* NULL: on none */
	const struct umm_notifier_ops *ops;
};

/**
 * umm_notifier_insert() - be told of changes in a range
 * @n: the caller's, until umm_notifier_remove() has returned or release() ran; need not be initialized.
 * @space: own, or another's of which somebody calls umm_invalidate_begin().
 * @start, @len: bytes, page-aligned.
 * @ops: the caller's, as long as @n; release may be NULL.
 *
 * May be called while an invalidation runs, also from a callback: then @n
 * counts as invalidated until that has ended.
 *
 * Context: Thread-safe.  In callbacks, too.
 * Return: 0, or
 *	-EINVAL	unaligned, empty, wrapping or above the user half; or @n, @space, @ops or
 *		invalidate is NULL
 *	-ENOMEM	umm_alloc() has nothing left for the index
 */
int umm_notifier_insert(struct umm_notifier *n, struct umm_space *space, uint64_t start, uint64_t len,
			const struct umm_notifier_ops *ops);

/**
 * umm_notifier_remove() - no more callbacks for a notifier once it has returned
 * @n: the caller's again; nothing happens when it is on no space (zeroed, removed, or released).
 *
 * Waits for a callback that runs now, except when called from inside @n's own;
 * so no lock that the callback takes may be held.  Does not wait for the end of
 * the invalidation.  Once it has returned @n may be freed, also in its callback.
 *
 * Context: Thread-safe, but not twice at once for one @n.  In @n's own callback, too.  May sleep.
 */
void umm_notifier_remove(struct umm_notifier *n);

/**
 * umm_read_begin() - the sequence to check with umm_read_retry()
 * @n: on a space.
 *
 * Sleeps while an invalidation of @n runs.
 *
 * Context: Thread-safe.  Not in callbacks, nor under a lock that they take.  May sleep.
 * Return: the sequence.
 */
uint64_t umm_read_begin(struct umm_notifier *n);

/**
 * umm_read_begin_until() - as umm_read_begin(), until a deadline at most
 * @n: on a space.
 * @deadline_ns: of CLOCK_MONOTONIC, in nanoseconds; 0: none.
 * @seq: out.
 *
 * Context: Thread-safe.  Not in callbacks, nor under a lock that they take.  May sleep.
 * Return: 0, or
 *	-ETIME	the deadline passed while an invalidation ran
 */
int umm_read_begin_until(struct umm_notifier *n, uint64_t deadline_ns, uint64_t *seq);

/**
 * umm_read_retry() - has a notifier been invalidated since?
 * @n: on a space.
 * @seq: what umm_read_begin() gave.
 *
 * Under the driver's lock (that in which invalidate() calls umm_notifier_set_seq())
 * the answer holds until that lock is dropped; without it, it is a hint.
 *
 * Context: Thread-safe.  In callbacks, too.  Never sleeps.
 * Return: true: begin again.
 */
bool umm_read_retry(const struct umm_notifier *n, uint64_t seq);

/**
 * umm_notifier_set_seq() - note that a notifier has been invalidated
 * @n: the one that invalidate() was called for.
 * @seq: what it was called with.
 *
 * Context: Called by invalidate() under the driver's lock.  Never sleeps.
 */
void umm_notifier_set_seq(struct umm_notifier *n, uint64_t seq);

/**
 * umm_invalidate_begin(), umm_invalidate_end() - tell notifiers of a change, before and after
 * @space: own or other.
 * @change: the caller's; the same for both calls.
 *
 * For who changes an address space by means that neither hooks nor the kernel
 * tell of.  When begin has returned 0, every notifier that meets the range has
 * been called; readers of those sleep until end.  Each success is ended by
 * umm_invalidate_end().  Invalidations may overlap, and nest.  All signals are to be
 * blocked from begin to end: a handler that read a range would wait for its end.
 *
 * Context: Thread-safe.  No lock that a callback takes may be held.  Sleeps as its callbacks do.
 * Return: begin: 0, or
 *	-EAGAIN	@change is not blockable and a callback would have slept; then nothing has begun
 */
int umm_invalidate_begin(struct umm_space *space, const struct umm_change *change);
void umm_invalidate_end(struct umm_space *space, const struct umm_change *change);

/** A call that changes a space, for who hooks it. */
struct umm_hook {
	struct umm_space *space;     /* the caller's own; NULL: nobody is told */
	struct umm_change change[2]; /* what it does, blockable: a call may end one mapping and move another */
	unsigned n;                  /* of change; 0: nothing */
	/*
	 * Set before end: the call has dropped contents, and where the range is watched
	 * the kernel has told of it (of MADV_DONTNEED, _FREE and _REMOVE it does).
	 */
	bool dropped;
	/*
	 * Set before begin: the call drops contents, and the kernel tells nobody (MADV_GUARD_INSTALL).  What an engine
	 * has on devices comes back before the call, and none of it goes there until end.
	 */
	bool untold;
	uint64_t mark; /* the library's, as what follows */
	unsigned long reserved[16];
};

/**
 * umm_hook_begin(), umm_hook_end() - around a call that changes the space
 * @h: the caller's, zeroed but for space, change, n and untold before begin, and as it was at end.
 *
 * For who has hooks of his own around munmap() and its like; libhmm-hooks has them
 * around libc's (umm_hooks(7)).  Notifiers have been told when begin returns.  All
 * signals are blocked until end, and an engine moves no mapping of the space; the
 * call between the two is made in the same thread, and may sleep.
 *
 * Context: Thread-safe, for hooks of their own.  No lock that a callback takes may be held.  Not in callbacks, nor
 * between another begin and its end in the same thread, which may wait for ever: around a call that libhmm-hooks
 * stands in for there is one of both only.  Sleeps as callbacks do.
 */
void umm_hook_begin(struct umm_hook *h);
void umm_hook_end(struct umm_hook *h);

/**
 * umm_hook_fork(), umm_hook_forked() - around a fork
 * @h: the caller's; space is set before the first.
 * @child: is this the child?  There the space is of no more use, and its descriptors are closed, with
 *	those of an engine on it.  Closed by execve() only are files of which the engine has taken private
 *	pages (hmm_migrate_collect()), what a thread of its had open at that moment, a device's own, and all
 *	of them in a child of which no hook was told.
 *
 * All signals are blocked between the two.  In the parent the second returns when the fork that has been read is
 * applied: until then an engine reads off the parent's mappings what the child has.
 *
 * Context: As umm_hook_begin(); one fork has one of the first, and one of the second in parent and child each.
 */
void umm_hook_fork(struct umm_hook *h);
void umm_hook_forked(struct umm_hook *h, bool child);

/* ------------------------------------------------------------------ ranges */

/* Entries of a range, one per page. */
#define UMM_PFN_VALID ((uint64_t)1 << 63)
#define UMM_PFN_WRITE ((uint64_t)1 << 62) /* the mapping allows it and the page is exclusively ours */
#define UMM_PFN_ERROR ((uint64_t)1 << 61) /* hole, or not readable */
#define UMM_PFN_ZERO ((uint64_t)1 << 60)  /* the shared zero page */
#define UMM_PFN_ORDER_SHIFT 48            /* log2 of the pages that one entry of the CPU's page table maps, 5 bits */
#define UMM_PFN_ORDER_MASK ((uint64_t)0x1f << UMM_PFN_ORDER_SHIFT)

/* What a caller asks for, in default_flags or in entries[]. */
#define UMM_PFN_REQ_FAULT UMM_PFN_VALID
#define UMM_PFN_REQ_WRITE UMM_PFN_WRITE

/** A range of an address space, as a device wants to see it. */
struct umm_range {
	struct umm_space *space;
	struct umm_notifier *notifier; /* may be NULL for a snapshot */
	uint64_t notifier_seq;
	uint64_t start, end;    /* bytes, page-aligned */
	uint64_t *entries;      /* (end - start) / page size of them */
	uint64_t default_flags; /* asked of every page */
	uint64_t flags_mask;    /* request of page i: (entries[i] & flags_mask) | default_flags */
	uint64_t deadline_ns;   /* CLOCK_MONOTONIC; 0: none */
};

/**
 * umm_range_snapshot() - fill entries with what is there now
 * @range: the caller's; space, start, end (bytes, page-aligned) and entries are set.
 *
 * Faults nothing.  A hole is an entry with UMM_PFN_ERROR, not an error; 0 is a
 * page that is not there.  What is written are three looks at three moments: who
 * needs them to be one begins again while umm_read_retry() says so.
 *
 * Context: Thread-safe, for ranges of their own.  Not in callbacks.
 * Return: 0, or
 *	-EINVAL	bad range: unaligned, empty, above the user half, or without space or entries
 *	-ESRCH	the space is gone
 *	-ENOMEM	no memory
 *	-ENOTTY	the kernel has no PAGEMAP_SCAN (before Linux 6.7)
 */
int umm_range_snapshot(struct umm_range *range);

/**
 * umm_range_fault() - bring in what is asked for, then fill entries
 * @range: the caller's, with all fields set; notifier_seq is what umm_read_begin() gave.
 *
 * On error the requests stand in entries again, as they came, and the caller can
 * just begin again.  The kernel checks each access: memory that has gone, or lost
 * a protection, without anybody having been told is an error here.
 *
 * Context: Thread-safe, for ranges of their own.  May sleep, and fault; so not in callbacks,
 * nor under a lock that they take.
 * Return: 0, or
 *	-EBUSY	the range changed meanwhile, or is about to: begin again, after a moment
 *	-EINVAL	bad range, as for umm_range_snapshot(), or no notifier
 *	-EFAULT	a hole, an unreadable page, or one that is lost is asked for
 *	-EPERM	write is asked for where the mapping does not allow it
 *	-ENOMEM	no memory
 *	-EINTR	a signal ends the process
 *	-ETIME	the deadline passed
 *	-EOPNOTSUPP	something must be brought in, and it is another process's space
 *	-ESRCH	the space is gone
 *	-ENOTTY	the kernel has no PAGEMAP_SCAN (before Linux 6.7)
 */
int umm_range_fault(struct umm_range *range);

#pragma GCC visibility pop

#ifdef __cplusplus
}
#endif
#endif
