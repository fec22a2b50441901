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
 * umm_space_open_self() - the caller's own address space.
 * @spacep: out; ended with umm_space_close().
 *
 * Opens a userfaultfd for it and starts its monitor when the first range is
 * watched, not before.  Returns 0, -ENOMEM, or what opening /proc/self gave.
 */
int umm_space_open_self(struct umm_space **spacep);

/**
 * umm_space_open_pid() - the address space of process @pid, for queries.
 * @pid: a process that the caller may trace (same user and dumpable, or CAP_SYS_PTRACE).
 * @spacep: out; ended with umm_space_close().
 *
 * The space stays that of the program running now, also after @pid calls
 * execve().  What must be done from inside (watch, populate) gives -EOPNOTSUPP.
 * Returns 0, -ESRCH, -EACCES, -ENOMEM.
 */
int umm_space_open_pid(pid_t pid, struct umm_space **spacep);

/** umm_space_close() - end a space; notifiers still on it get their release() first.  NULL is fine. */
void umm_space_close(struct umm_space *space);

/**
 * umm_space_watch() - have raw system calls that change [@start, @start + @len) reported.
 * @start, @len: whole mappings; a partly watched mapping breaks mremap().
 *
 * Registers the range with the space's userfaultfd (write-protect mode,
 * asynchronous), which works on anonymous, shared, file and hugetlb mappings.
 * From then on munmap, mremap, MADV_DONTNEED and their like reach the notifiers,
 * whoever called them and how: the caller goes on once its event has been read,
 * callbacks run at once then.  (Only the hooks can promise more: that callbacks
 * have returned before the call begins.)  mprotect sends nothing: see
 * umm_range_fault().
 *
 * Returns 0; -EBUSY another userfaultfd has the range; -EINVAL; -ENOMEM;
 * -EPERM no right to a userfaultfd; -EOPNOTSUPP not the caller's own space.
 */
int umm_space_watch(struct umm_space *space, uint64_t start, uint64_t len);

/** umm_space_unwatch() - undo umm_space_watch().  Returns 0 or -EINVAL. */
int umm_space_unwatch(struct umm_space *space, uint64_t start, uint64_t len);

/* ------------------------------------------------------------------ memory */

/**
 * umm_alloc() - @size bytes of zeros for who is called while @space changes.
 *
 * Memory that is never part of what is managed, from a piece that was reserved
 * when the space was opened: callbacks, and who holds a lock that they take,
 * touch no other and call no malloc.  A multiple of a page is aligned to a page,
 * less to 64 bytes.  Ends with the space; a forked child does not have it.
 * Thread-safe.  Returns NULL when there is no more.
 */
void *umm_alloc(struct umm_space *space, size_t size);

/** umm_free() - give back what umm_alloc(@space, @size) gave; NULL is fine. */
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
 * umm_vma_next() - the mapping that covers @addr, else the next one above it.
 *
 * Returns 0, -ENOENT when there is none, -ESRCH when the space is gone.
 * Thread-safe; what it says may have changed when it returns.
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
 * umm_page_scan() - runs of pages in [@start, @end) that are PRESENT or SWAPPED.
 * @runs, @nr: room for them.
 * @walk_end: out; where the scan stopped (== @end when done).
 *
 * Faults nothing.  Returns the number of runs, -ESRCH, or -EINVAL for a bad range.
 */
int umm_page_scan(struct umm_space *space, uint64_t start, uint64_t end, struct umm_page_run *runs, unsigned nr,
		  uint64_t *walk_end);

/* --------------------------------------------------------------- notifiers */

enum umm_event {
	UMM_EVENT_UNMAP,     /* the mapping goes away */
	UMM_EVENT_REMAP,     /* it moves to another address: start -> new_start */
	UMM_EVENT_CLEAR,     /* contents are dropped (MADV_DONTNEED, MADV_FREE, MADV_REMOVE ...) */
	UMM_EVENT_PROTECT,   /* protection changes */
	UMM_EVENT_MIGRATE,   /* pages move to or from a device; contents stay */
	UMM_EVENT_EXCLUSIVE, /* a device wants them for itself alone */
	UMM_EVENT_FORK,      /* private pages become copy-on-write */
	UMM_EVENT_RELEASE,   /* the address space ends */
};

/** One change of an address space. */
struct umm_change {
	enum umm_event event;
	uint64_t start, end; /* bytes, page-aligned, end exclusive */
	uint64_t new_start;  /* REMAP only */
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
	/* interval tree: what a search reads comes first, within one cache line */
	uint64_t start, end;
	uint64_t subtree_end; /* the greatest end in the subtree */
	struct umm_notifier *left, *right, *parent;
	uint32_t height; /* of the subtree; 0: not in the tree */
	uint64_t seq;
	struct umm_space *space; /* NULL: on none */
	const struct umm_notifier_ops *ops;
};

/**
 * umm_notifier_insert() - be told of changes in [@start, @start + @len).
 * @n: the caller's, until umm_notifier_remove() has returned or release() ran.
 *
 * Returns 0, or -EINVAL (unaligned, empty, wrapping or above the user half).
 * May be called while an invalidation runs, also from a callback: then @n
 * counts as invalidated until that has ended.
 */
int umm_notifier_insert(struct umm_notifier *n, struct umm_space *space, uint64_t start, uint64_t len,
			const struct umm_notifier_ops *ops);

/**
 * umm_notifier_remove() - no more callbacks for @n once it has returned.
 *
 * Waits for one that runs now, except when called from inside @n's own callback;
 * so no lock that the callback takes may be held.  Does not wait for the end of
 * the invalidation.  Once it has returned @n may be freed, also in its callback.
 * Nothing happens when @n is on no space (zeroed, removed, or released).
 */
void umm_notifier_remove(struct umm_notifier *n);

/** umm_read_begin() - sleep while an invalidation of @n runs; the sequence to check with umm_read_retry(). */
uint64_t umm_read_begin(struct umm_notifier *n);

/**
 * umm_read_begin_until() - the same, no longer than until @deadline_ns (CLOCK_MONOTONIC; 0: for ever).
 * @seq: out.
 *
 * Returns 0 or -ETIME.
 */
int umm_read_begin_until(struct umm_notifier *n, uint64_t deadline_ns, uint64_t *seq);

/** umm_read_retry() - true when @n was invalidated since.  Called under the driver's lock. */
bool umm_read_retry(const struct umm_notifier *n, uint64_t seq);

/** umm_notifier_set_seq() - called by invalidate() under the driver's lock. */
void umm_notifier_set_seq(struct umm_notifier *n, uint64_t seq);

/**
 * umm_invalidate_begin() - tell every notifier that @change's range is about to change.
 *
 * Returns 0; -EAGAIN when @change is not blockable and a callback would have
 * slept (then nothing has begun).  Each success is ended by umm_invalidate_end().
 */
int umm_invalidate_begin(struct umm_space *space, const struct umm_change *change);
void umm_invalidate_end(struct umm_space *space, const struct umm_change *change);

/* ------------------------------------------------------------------ ranges */

/* Entries of a range, one per page. */
#define UMM_PFN_VALID ((uint64_t)1 << 63)
#define UMM_PFN_WRITE ((uint64_t)1 << 62)  /* the mapping allows it and the page is exclusively ours */
#define UMM_PFN_ERROR ((uint64_t)1 << 61)  /* hole, or not readable */
#define UMM_PFN_ZERO ((uint64_t)1 << 60)   /* the shared zero page */
#define UMM_PFN_DEVICE ((uint64_t)1 << 59) /* the page is in a device's memory */
#define UMM_PFN_ORDER_SHIFT 48             /* log2 of the pages that one entry of the CPU's page table maps, 5 bits */
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
	const void *owner;      /* pages on this owner's device are reported as they are */
};

/**
 * umm_range_snapshot() - fill entries with what is there now; faults nothing.
 *
 * Returns 0; -EINVAL bad range; -ESRCH the space is gone.  A hole is an entry
 * with UMM_PFN_ERROR, not an error.
 */
int umm_range_snapshot(struct umm_range *range);

/**
 * umm_range_fault() - bring in what is asked for, then fill entries.
 *
 * Returns 0; -EINVAL bad range; -EFAULT a hole or unreadable page is asked for;
 * -EPERM write is asked for where the mapping does not allow it; -EBUSY the
 * range changed meanwhile: begin again; -ENOMEM; -EINTR; -ETIME the deadline
 * passed; -EOPNOTSUPP another process's space without an agent; -ESRCH.
 * On error the requests stand in entries again, as they came.
 */
int umm_range_fault(struct umm_range *range);

#pragma GCC visibility pop

#ifdef __cplusplus
}
#endif
#endif
