/* SPDX-License-Identifier: MIT */
/*
 * hmm: devices, device memory and migration, on top of umm (never the reverse).
 *
 * DOC: the device
 *
 * A device is a table of operations and a set of capabilities.  The engine
 * keeps the only record of where a page is (the residency table); a device
 * knows handles, not addresses.  A handle names one page in device memory; it
 * carries a reference count, because after fork() two address spaces hold the
 * same page until one of them brings it back.
 *
 * All operations are thread-safe: the engine calls them from several threads.
 * copy_in may take its time: nobody who faults waits for it.  copy_out is what who
 * faults waits for, and at fork all wait for it.  Neither they nor the others wait
 * for a fault of the space themselves; get, put, same and shared do not sleep.
 */
#ifndef HMM_H
#define HMM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "umm.h"

#ifdef __cplusplus
extern "C" {
#endif

#pragma GCC visibility push(default)

struct hmm_device;

/** A page in device memory: 48 bits, chosen by the device. */
typedef uint64_t hmm_handle_t;

/** No page: what copy_in leaves for a page that it did not take. */
#define HMM_HANDLE_NONE ((hmm_handle_t)0xffffffffffff)
#define HMM_HANDLE_MAX ((hmm_handle_t)0xfffffffffffe)

/** Bytes of a page as devices see it: always 4096, whatever the mapping uses. */
#define HMM_PAGE_SIZE 4096u

/** Most pages in one copy_in or copy_out. */
#define HMM_BATCH_MAX 512u

/* What a device can do. */
#define HMM_DEV_MEMORY (1u << 0)   /* has memory of its own: copy_in, copy_out */
#define HMM_DEV_RAM (1u << 1)      /* that memory is RAM of this machine: it counts against a budget */
#define HMM_DEV_MAYBLOCK (1u << 2) /* copy_in and copy_out may sleep for I/O */
#define HMM_DEV_COHERENT \
	(1u << 3) /* the CPU reaches its memory as its own: pages stay mapped; see hmm_migrate_to_device() */
#define HMM_DEV_MAP (1u << 4)    /* has a page table of its own: map, unmap; see hmm_range_map() */
#define HMM_DEV_HUGE (1u << 5)   /* one entry of that table can map a whole huge page */
#define HMM_DEV_FAULT (1u << 6)  /* stops by itself at what it has not mapped; else it must be stopped */
#define HMM_DEV_QUEUE (1u << 7)  /* must not run while entries are taken from it: stop, start */
#define HMM_DEV_PINNED (1u << 8) /* holds on to what it has mapped: a range is registered as a whole, or not at all */
#define HMM_DEV_FORK_KEEPS                                                                                           \
	(1u << 9) /* pins as RDMA and io_uring do: at fork the kernel gives the child copies, and it need not let go \
		   */
#define HMM_DEV_EXCLUSIVE                                                                                        \
	(1u << 10)               /* its memory is for pages that a device has alone: told as UMM_EVENT_EXCLUSIVE \
				  */
#define HMM_DEV_AHEAD (1u << 11) /* neighbours of a page that is touched come along, while touches walk forward */
#define HMM_DEV_KEEPS                                                                                          \
	(1u << 12) /* what it gave back it may have still: pages that are touched for reading come back as not \
		    * written to (hmm_written()), unless a whole block of 2 MiB comes at once */

#define HMM_DEV_MARKED                                                                                              \
	(1u << 13) /* what it has of private memory is marked so that /proc/PID/pagemap says "swapped"; a huge page \
		    * comes back in small ones then */

#define HMM_DEV_TELLS (1u << 14) /* with MAYBLOCK: copy_out calls hmm_device_sleeps() before it sleeps */

struct hmm_device_stats {
	uint64_t pages;          /* distinct pages held */
	uint64_t bytes_stored;   /* payload bytes that they need */
	uint64_t bytes_ram;      /* RAM that the device occupies for them now, bookkeeping included */
	uint64_t bytes_capacity; /* most payload it may hold; UINT64_MAX: no limit of its own */
	uint64_t pages_same;     /* of pages: all bytes given by one repeated word, stored for (almost) nothing */
	uint64_t pages_raw;      /* of pages: stored as they are */
	uint64_t copied_in;      /* pages ever taken */
	uint64_t copied_out;     /* pages ever read */
	uint64_t errors;         /* failed operations and bad checksums */
	uint64_t bytes_records;  /* of bytes_ram: kept about pages; 0: not told */
};

/** Most pages in one run that a device maps, but for one that pins. */
#define HMM_MAP_RUN_MAX 512u

/** Pages to map for a device, or to take from it: whole entries of its table. */
struct hmm_map_run {
	uint64_t addr;   /* bytes, page-aligned */
	uint64_t npages; /* 1..HMM_MAP_RUN_MAX; of a device that pins: the whole range */
	bool write;      /* the device may write to them */
	bool huge;       /* one huge page, aligned to itself: one entry (HMM_DEV_HUGE) */
};

struct hmm_range;

/*
 * The six operations from map to forget are those of devices that map.  They
 * may run in any thread that changes the space, and as the callbacks of umm.h
 * they call no malloc and touch no memory of the space but what umm_alloc()
 * gave.  A driver's lock that they take is an inner one: it is not held when
 * hmm_range_...() is called.  @why is the change for which entries go; NULL: an
 * hmm_range_...() call.  With @why->late nothing may be waited for that may
 * itself wait for a fault.
 */
struct hmm_device_ops {
	const char *name; /* "lz4", "file" ... */
	uint32_t caps;    /* HMM_DEV_* */

	/**
	 * copy_in: take @n pages (1..HMM_BATCH_MAX) from host memory.
	 * @src: n page-sized buffers, not aligned to more than 16 bytes.
	 * @handle: out, one per page: its handle with one reference, or HMM_HANDLE_NONE
	 *          when the device does not want it (full, or it would save nothing).
	 *
	 * Returns the number of pages taken (0 when full), or -EIO when the device
	 * failed; then it has taken none.  May leave any subset.
	 */
	int (*copy_in)(struct hmm_device *dev, const void *const src[], hmm_handle_t handle[], unsigned n);

	/**
	 * copy_out: write @n pages to host memory.  References stay as they are.
	 * @status: out, one per page: 0; -EIO unreadable; -EBADMSG the checksum does
	 *          not match; -ENOTCONN the peer that has it is lost, and with it all
	 *          pages there.  A page with an error must not be given to anybody.
	 *
	 * Returns 0, or the first error in @status.
	 */
	int (*copy_out)(struct hmm_device *dev, const hmm_handle_t handle[], void *const dst[], int status[],
			unsigned n);

	/**
	 * lend: where the @n pages (HMM_BATCH_MAX) lie, one behind the other as their
	 * addresses do, in private memory of the caller's process: the engine may move
	 * the pages themselves from there to where they are wanted (UFFDIO_MOVE).
	 * May be NULL.
	 *
	 * Returns the place of the first, aligned as a huge page, of the protection that they
	 * are wanted with; lent() follows.  Or NULL: copy_out is to be called, as must be where others
	 * have references, but for one to each that the record has and one of the caller's.
	 * Until lent() the device does nothing with these pages by itself; get() and copy_out may
	 * come for them, and what copy_out finds is not believed then.  By a thread that serves a
	 * fault, without locks, or by one that brings back by command (hmm_migrate_to_system(),
	 * hmm_mm_unmanage(), hmm_mm_remove_device(), hmm_mm_close(), a hooked MADV_GUARD_INSTALL),
	 * with the lock of migrations: it calls none of these.  May sleep.
	 */
	void *(*lend)(struct hmm_device *dev, const hmm_handle_t handle[], unsigned n);

	/** lent: the first @moved pages (0: none) are not there any more; the references to all are dropped later. */
	void (*lent)(struct hmm_device *dev, const hmm_handle_t handle[], unsigned n, unsigned moved);

	/** get: one more reference to each of @n handles (fork).  Never fails. */
	void (*get)(struct hmm_device *dev, const hmm_handle_t handle[], unsigned n);

	/** put: drop a reference of each; the last one frees the page.  Never fails, never sleeps. */
	void (*put)(struct hmm_device *dev, const hmm_handle_t handle[], unsigned n);

	/**
	 * same: is what the device holds, byte for byte, @page?  A device that would
	 * have to fetch it for that may go by 64 bits of a hash with a secret key; a checksum
	 * is none, be it seeded.
	 * Never sleeps.  May be NULL: a page that comes back is then never kept, and stored
	 * anew when it goes again.
	 */
	bool (*same)(struct hmm_device *dev, hmm_handle_t handle, const void *page);

	/** shared: more than one reference?  A hint.  May be NULL: no. */
	bool (*shared)(struct hmm_device *dev, hmm_handle_t handle);

	/**
	 * trim: give RAM back that is held for nothing (compaction, empty slabs), at
	 * most about @bytes of work.  May be NULL.  Returns bytes given back.
	 */
	size_t (*trim)(struct hmm_device *dev, size_t bytes);

	void (*stats)(struct hmm_device *dev, struct hmm_device_stats *st);

	/** close: free everything; no handle is used afterwards. */
	void (*close)(struct hmm_device *dev);

	/**
	 * leave: the process is about to end, without close: what would outlive it goes.  No handle is used
	 * afterwards; stats may be called still.  May be NULL: nothing would.
	 */
	void (*leave)(struct hmm_device *dev);

	/**
	 * map: enter @run, in place of what there was of it.
	 *
	 * Never sleeps for a fault of the space, except that of a device that pins:
	 * there it is the call that pins, made with no lock held; if the range has
	 * changed meanwhile, unmap follows at once.  Returns 0, or -errno with
	 * nothing of @run entered.
	 */
	int (*map)(struct hmm_device *dev, struct hmm_range *range, const struct hmm_map_run *run);

	/**
	 * unmap: take @run out; nothing starts through its entries once it returned.
	 * @dirty: a bit per page of @run, all clear; those are set that the device has
	 *         written to without the CPU's page table knowing.  Bit 0 is that of a
	 *         whole huge page.  NULL for a device that pins: the kernel marks what
	 *         was pinned.
	 *
	 * Never fails.  Never sleeps for a fault of the space; but that of a device
	 * that pins may sleep, and is not called in a late change.
	 */
	void (*unmap)(struct hmm_device *dev, struct hmm_range *range, const struct hmm_map_run *run,
		      const struct umm_change *why, uint64_t *dirty);

	/**
	 * settle: wait until nothing that was started through entries of [@start, @end)
	 * still runs.  No lock is held.  When @why is late: see to it that what runs
	 * does no harm, and wait for nothing.  Returns true, or false when @why is not
	 * blockable and it would sleep.  NULL: unmap has done it all.
	 */
	bool (*settle)(struct hmm_device *dev, struct hmm_range *range, uint64_t start, uint64_t end,
		       const struct umm_change *why);

	/** stop: the device runs nothing on @range once it has returned (HMM_DEV_QUEUE).  Stops nest. */
	void (*stop)(struct hmm_device *dev, struct hmm_range *range, const struct umm_change *why);

	/**
	 * start: it may again, once for each stop.  Called when entries are out of the
	 * device; but one that does not fault on what is missing (HMM_DEV_FAULT) has to
	 * wait, after a change of the space, until hmm_range_map() has mapped again all
	 * that it has lost, or hmm_range_unmap() has given that up.
	 */
	void (*start)(struct hmm_device *dev, struct hmm_range *range);

	/** forget: @range ends, with nothing mapped; what @dev keeps for it goes (range->cookie).  May be NULL. */
	void (*forget)(struct hmm_device *dev, struct hmm_range *range);

	/**
	 * node: of a coherent device (HMM_DEV_COHERENT): the number of the node of the
	 * machine's memory that is its own, or -1.  NULL, -1: pages stay where they are,
	 * and a record says that they are the device's.
	 */
	int (*node)(struct hmm_device *dev);
};

/** The head of every device: a driver embeds it as its first member. */
struct hmm_device {
	const struct hmm_device_ops *ops;
	char spec[120]; /* what it was opened with, for messages */
};

/**
 * hmm_device_open() - open a device of the library from its specification
 * @spec: "NAME" or "NAME:ARGUMENT", e.g. "lz4", "lz4:512M", "file:/var/tmp".
 * @devp: out; the caller owns it and ends it with hmm_device_close().  NULL on error.
 * @err: out, one line without newline that says what is wrong and what to do;
 *	may be NULL.
 * @errlen: bytes at @err.
 *
 * What else the backing store has to say (-ENOTBLK, -EROFS ...) comes through as it is.
 *
 * Context: Thread-safe.  Not in callbacks.
 * Return: 0, or
 *	-ENODEV	no such driver
 *	-EINVAL	a bad argument, or none where one is needed
 *	-ENOMEM	no memory
 *	-EACCES	no right to the backing store
 *	-ENOENT	it does not exist
 *	-ENOSPC	it has no room
 */
int hmm_device_open(const char *spec, struct hmm_device **devp, char *err, size_t errlen);

/**
 * hmm_chain_next() - the next device specification of a chain "lz4:1G,raw,file:/var/tmp"
 * @chain: in and out; set behind what was read.
 * @spec: out; room for the specification.
 * @len: bytes at @spec.
 *
 * Arguments may hold commas, so one ends a specification only where a known
 * driver's name follows.
 *
 * Context: Thread-safe.
 * Return: 1: a specification was read; 0 at the end; or
 *	-EINVAL	an empty one
 *	-ENAMETOOLONG	one too long for @spec
 */
int hmm_chain_next(const char **chain, char *spec, size_t len);

/**
 * hmm_device_close() - end a device
 * @dev: of hmm_device_open(), or any that has a close operation; NULL is fine.
 *
 * Context: No other call on @dev may run, and no engine may have it any more (hmm_mm_close()).
 */
void hmm_device_close(struct hmm_device *dev);

/* --------------------------------------------------------- the linked engine */

/**
 * DOC: the engine in one's own process
 *
 * A driver or runtime that holds pages of its own process in device memory opens
 * the process's space, starts the engine on it and tells it its devices:
 *
 *	umm_space_open_self(&space);
 *	hmm_mm_open(space, &mm);
 *	hmm_mm_add_device(mm, &my_device);
 *	hmm_migrate_to_device(mm, &my_device, start, end, me, &moved);
 *	... whoever touches a page gets it back, and waits as long ...
 *	hmm_migrate_to_system(mm, &my_device, start, end, &moved);
 *	hmm_mm_close(mm);
 *	umm_space_close(space);
 *
 * Threads of the engine serve faults of the process itself.  So a device's
 * operations, and whoever holds a lock that they take, must not touch memory
 * that may be away and must not call malloc, whose lock may be held by who waits
 * for the engine: umm_alloc() gives memory that is safe.  Memory in which a
 * thread has its stack is not to be moved.  Calls below block all signals while
 * they run; each wants 512 KiB of stack; none may be made in a callback of a
 * notifier or of a device.
 *
 * A forked child has its own copies of all pages, and neither space nor engine:
 * it must not use them, nor close them, and may open its own.
 */

/** An address space with the engine at work on it. */
struct hmm_mm;

/**
 * hmm_mm_open() - start the engine on a space
 * @space: the caller's own, from umm_space_open_self(); open until hmm_mm_close().
 * @mmp: out; ended with hmm_mm_close().
 *
 * One engine a space, once.
 *
 * Context: Not thread-safe against itself for one space.  Not in callbacks.
 * Return: 0, or
 *	-EOPNOTSUPP	another process's space, or a kernel without UFFDIO_MOVE (before Linux 6.8)
 *	-EBUSY	the space has or had an engine
 *	-EPERM	no right to a userfaultfd (umm(7))
 *	-ENOMEM	no memory, or no address space for staging
 *	-ENOSYS	the kernel is built without userfaultfd
 *	-EMFILE	no descriptor left
 *	-EAGAIN	no thread could be made for the monitor
 */
int hmm_mm_open(struct umm_space *space, struct hmm_mm **mmp);

/**
 * hmm_mm_close() - bring everything back and end the engine
 * @mm: NULL is fine.
 *
 * Devices may be closed afterwards, not before.  Returns when no call of a
 * device runs.
 *
 * Context: No other call on @mm may run, and no range or cache may use it.  Not in callbacks.
 * Return: 0, or
 *	-ENOMEM	not all could be brought back, and nothing has ended
 *	-EAGAIN	other threads move what comes back by mremap(), without end; nothing has ended
 */
int hmm_mm_close(struct hmm_mm *mm);

/**
 * hmm_mm_add_device() - let a device hold pages
 * @mm: an engine.
 * @dev: the caller's, until hmm_mm_close() or hmm_mm_remove_device() has returned; its ops and spec are set.
 *	Of its operations same, shared, trim, stats and close are not called, and may be NULL.
 *
 * Context: Thread-safe.  Not in callbacks.
 * Return: 0, or
 *	-ENOSPC	eight are there already
 *	-EEXIST	this one is
 *	-EINVAL	it is not coherent and lacks one of copy_in, copy_out, get, put; or is NULL
 */
int hmm_mm_add_device(struct hmm_mm *mm, struct hmm_device *dev);

/**
 * hmm_mm_remove_device() - bring back what a device holds, and have nothing more to do with it
 * @mm: an engine.
 * @dev: one of @mm's; the caller's alone once 0 was returned.  No range uses it any more.
 *
 * A page that the device cannot give back is lost: whoever touches it gets SIGBUS.
 *
 * Context: Thread-safe; no call that names @dev may run.  Not in callbacks.  May sleep.
 * Return: 0, or
 *	-EINVAL	@dev is not one of @mm's
 *	-ENOMEM	not all could be brought back, and nothing has ended
 *	-EAGAIN	other threads move what comes back by mremap(), without end; nothing has ended
 */
int hmm_mm_remove_device(struct hmm_mm *mm, struct hmm_device *dev);

/**
 * hmm_device_sleeps() - a device's copy_out is about to sleep
 *
 * For devices with HMM_DEV_TELLS, whose answer is often there before another thread
 * could be woken: until this is called, two milliseconds at most, other
 * faults and changes of the same engine may have to wait.  It may be called more
 * than once, and does nothing where nobody waits for the caller.
 *
 * Context: In copy_out, and wherever else such a device sleeps; not under a lock that callbacks take.
 */
void hmm_device_sleeps(void);

/**
 * hmm_mm_manage() - get mappings ready to move
 * @mm: an engine.
 * @start, @end: bytes, page-aligned.
 *
 * Migration does it by itself; a mapping is always taken as a whole, also beyond
 * the range.  From here on a first touch of a page in it is served by the engine.
 * On error what comes before the mapping concerned is managed.
 *
 * Where the kernel reports no forks (without CAP_SYS_PTRACE) what is managed is marked
 * MADV_DONTFORK, at each fork by libc with umm_hooks(7) anew.  What the program had
 * marked before stays so when it is managed no more, unless it has called madvise(MADV_DOFORK)
 * with umm_hooks(7) since; the rest is inherited then, also what was marked meanwhile.
 *
 * Context: Thread-safe.  Not in callbacks.
 * Return: 0, or
 *	-EINVAL	unaligned or backward, a hole, or memory that cannot be managed (shared, of a
 *		file, huge pages by hugetlb, the stack, of umm_alloc())
 *	-EBUSY	another userfaultfd has it
 *	-ENOMEM	no memory, or too many registrations
 */
int hmm_mm_manage(struct hmm_mm *mm, uint64_t start, uint64_t end);

/**
 * hmm_mm_unmanage() - bring a range back and let go of it
 * @mm: an engine.
 * @start, @end: bytes, page-aligned.
 *
 * What the engine does not manage there is left alone.  A page that its device
 * cannot give back is lost: whoever touches it gets SIGBUS.
 *
 * Context: Thread-safe.  Not in callbacks.
 * Return: 0, or
 *	-EINVAL	unaligned or backward
 *	-ENOMEM	no memory: part of it may be managed still; what is on devices is
 *		brought back by the next call
 *	-EAGAIN	other threads change their mappings without end; as for -ENOMEM
 */
int hmm_mm_unmanage(struct hmm_mm *mm, uint64_t start, uint64_t end);

/**
 * hmm_mm_uniform() - before mremap(): manage the whole of what is managed in part
 * @mm: an engine.
 * @start, @end: bytes; what is about to move, to whole pages.
 *
 * mremap() fails half-way on a mapping of which only a part is managed.  The hooks
 * call this by themselves.  Nothing is done where nothing is managed.
 *
 * Context: Thread-safe.  Not in callbacks.
 * Return: 0, or
 *	-EINVAL	backward, beyond HMM_ADDR_END, or a hole
 *	-EBUSY	another userfaultfd has part of it
 *	-ENOMEM	no memory, or too many registrations
 */
int hmm_mm_uniform(struct hmm_mm *mm, uint64_t start, uint64_t end);

/**
 * A migration of at most HMM_BATCH_MAX pages to device memory, in three phases:
 * collect, copy, commit.  The caller fills the first block and hands the
 * structure to each in turn, in one thread.  Between collect and commit no other
 * migration of @mm runs, all signals are blocked, and a thread that touches a
 * page that was collected gets it back: the device's copy is then let go.  That
 * thread migrates nothing else of @mm in between, nor does it make a hooked
 * madvise(MADV_GUARD_INSTALL) of what is managed, which brings it back.
 */
struct hmm_migrate {
	struct hmm_mm *mm;
	struct hmm_device *to;
	uint64_t start, end; /* bytes, page-aligned */
	const void *owner;   /* of the change that notifiers are told; NULL: the engine */

	/* Out of collect: one per page that has left the CPU's page table, in order of address. */
	unsigned npages;
	uint64_t addr[HMM_BATCH_MAX];
	const void *src[HMM_BATCH_MAX];     /* contents, until commit */
	hmm_handle_t handle[HMM_BATCH_MAX]; /* out of copy, into commit; HMM_HANDLE_NONE: goes back */

	unsigned long reserved[16];
	uint16_t slot[HMM_BATCH_MAX]; /* the engine's */
};

/**
 * hmm_migrate_collect() - take the pages of a range out of the page table
 * @m: the caller's, not on a small stack (14 KiB); mm, to, start, end and owner are set, start and
 *	end in bytes, page-aligned, at most HMM_BATCH_MAX pages.
 *
 * Lowers @m->end where the range has more mappings than one batch can hold.
 * Pages that are elsewhere already, pinned, or in mappings that cannot be moved
 * from (shared, executable, locked) are left out.  Never-touched pages are
 * collected as pages of zeros; of a private mapping of a file only the copies
 * that it has of its own, in place of which memory stands afterwards that is not
 * the file's mapping any more (doc/conformance.md says what differs).
 * With 0 pages collected, too, hmm_migrate_commit() must follow; after an error not.
 * Waits for what is being dropped to be gone, for half a second at most, and not at all
 * where the calling thread has just waited so long; what is being dropped still then is left out.
 *
 * Context: Thread-safe, for structures of their own; other migrations of @m->mm wait until commit.  Not in
 * callbacks.  May sleep.
 * Return: 0, or
 *	-EINVAL	bad range, a hole or unreadable memory in it, or @m->to is not one of @m->mm's or is coherent
 *	-EBUSY	another userfaultfd has part of it
 *	-ENOMEM	no memory, or too many registrations
 */
int hmm_migrate_collect(struct hmm_migrate *m);

/**
 * hmm_migrate_copy() - have the device's copy_in() take what was collected
 * @m: after hmm_migrate_collect().
 *
 * A driver may fill @m->handle itself instead: HMM_HANDLE_NONE stands there for all.
 *
 * Context: In the thread that collected.
 * Return: the number of pages taken, or
 *	-EIO	the device failed (or what else copy_in gave); commit puts all of them back
 */
int hmm_migrate_copy(struct hmm_migrate *m);

/**
 * hmm_migrate_give() - move collected pages themselves into the device's memory
 * @m: after hmm_migrate_collect(), with a handle for each page.
 * @to: a huge page's place in private memory of the caller's process, in one mapping, of
 *	which no part is managed; what is there is lost.
 *
 * For devices whose memory is that of the process: the other way is lend().  What
 * has gone is entered, and is no part of @m any more; commit does the rest.
 *
 * Context: In the thread that collected.
 * Return: the number of pages that are on the device now, the first of @m's, behind which there is
 *	nothing at @to; 0, too, where the kernel would not move them: what was at @to is lost then; or
 *	-EINVAL	@m is not one whole aligned huge page of addresses with a handle each, @to is not aligned, not in
 *		one mapping, or locked, or the device is HMM_DEV_MARKED: nothing is lost
 *	-EBUSY	@to is managed, watched by another userfaultfd at either end, or being changed: nothing is lost
 */
int hmm_migrate_give(struct hmm_migrate *m, void *to);

/**
 * hmm_migrate_commit() - enter what was taken, put back what was not
 * @m: after hmm_migrate_collect(); may be used for another one then.
 *
 * Of a page that was touched, unmapped or dropped meanwhile the device's copy is
 * let go.
 *
 * Context: In the thread that collected.
 * Return: the number of pages that are on the device now.
 */
int hmm_migrate_commit(struct hmm_migrate *m);

/**
 * hmm_migrate_to_device() - all three phases, for a range of any length
 * @mm: an engine.
 * @dev: one of @mm's.  Pages on another of its devices come from there.
 * @start, @end: bytes, page-aligned.
 * @owner: of the changes that notifiers are told; NULL: the engine.
 * @moved: out, also on error; pages of the range that are on @dev now.  May be NULL.
 *
 * To a coherent device pages stay mapped: the engine keeps the record that they
 * are the device's.  If the device names a node of the machine's memory, the kernel
 * moves them there, those that it can; else the page's own memory stands for it.
 *
 * Partial success is success, also where the device has failed or is full: see
 * @moved.
 *
 * Context: Thread-safe; migrations of one @mm take turns.  Not in callbacks.  May sleep.
 * Return: 0, or
 *	-EINVAL	unaligned or backward, a hole or unreadable memory, or @dev is not one of @mm's
 *	-EBUSY	another userfaultfd has part of it
 *	-ENOMEM	no memory, or too many registrations
 *	-ENODEV	the device names a node that is not there, or has no memory
 *	-EACCES	it names one that this process may not use (cpuset)
 */
int hmm_migrate_to_device(struct hmm_mm *mm, struct hmm_device *dev, uint64_t start, uint64_t end, const void *owner,
			  uint64_t *moved);

/**
 * hmm_migrate_to_system() - bring back what a device holds
 * @mm: an engine.
 * @dev: one of @mm's; NULL: any.
 * @start, @end: bytes, page-aligned; 0 to HMM_ADDR_END: all that the device holds.
 * @moved: out, pages that came; may be NULL.
 *
 * A page that its device cannot give back is lost: whoever touches it gets SIGBUS.
 *
 * Context: Thread-safe; migrations of one @mm take turns.  Not in callbacks.  May sleep.
 * Return: 0, or
 *	-EINVAL	unaligned or backward, or @dev is not one of @mm's
 *	-ENOMEM	no memory; then something is still away
 */
int hmm_migrate_to_system(struct hmm_mm *mm, struct hmm_device *dev, uint64_t start, uint64_t end, uint64_t *moved);

#define HMM_ADDR_END ((uint64_t)1 << 47)

/**
 * hmm_where() - which device holds each page of a range
 * @mm: an engine.
 * @start, @end: bytes, page-aligned.
 * @where: out, one per page; NULL: none, the page is the system's.
 * @handle: out, one per page: its handle, or HMM_HANDLE_NONE; may be NULL.
 *
 * True when it is written.  Who needs it to stay true asks under a sequence of a
 * notifier.
 *
 * Context: Thread-safe.  Not in callbacks, nor under a lock that they take.
 * Return: 0, or
 *	-EINVAL	unaligned, backward, or beyond HMM_ADDR_END
 */
int hmm_where(struct hmm_mm *mm, uint64_t start, uint64_t end, struct hmm_device *where[], hmm_handle_t handle[]);

/**
 * hmm_device_read() - the contents of pages that are in a device's own memory
 * @mm: an engine.
 * @dev: one of @mm's, not a coherent one: that gives 0.
 * @addr: of the first page, bytes, page-aligned.
 * @buf: out; @npages pages of memory that cannot be away (umm_alloc()).
 * @npages: how many there are from @addr on.
 *
 * Nothing is brought back.
 *
 * Context: Thread-safe.  Not in callbacks, nor under a lock that they take.
 * Return: the number of pages read, 0 when the first one is not there (any more), or
 *	-EINVAL	@addr unaligned, the range beyond HMM_ADDR_END, or @dev is not one of @mm's
 *	-EIO	the device cannot read the first one (or what else copy_out gave)
 *	-EBADMSG	its checksum does not match
 */
int hmm_device_read(struct hmm_mm *mm, struct hmm_device *dev, uint64_t addr, void *buf, unsigned npages);

/**
 * hmm_device_write() - replace the contents of pages that are in a device's own memory
 * @mm: an engine.
 * @dev: one of @mm's, not a coherent one: that gives 0.
 * @addr: of the first page, bytes, page-aligned.
 * @buf: @npages pages of memory that cannot be away (umm_alloc()).
 * @npages: how many there are from @addr on.
 *
 * Pages have new handles then.  What mappings allow is the caller's to look at.
 *
 * Context: Thread-safe.  Not in callbacks, nor under a lock that they take.
 * Return: the number of pages written, 0 when the first one is not there (any more), or
 *	-EINVAL	@addr unaligned, the range beyond HMM_ADDR_END, or @dev is not one of @mm's
 *	-EIO	the device failed (or what else copy_in gave)
 *	-ENOMEM	the device took nothing
 */
int hmm_device_write(struct hmm_mm *mm, struct hmm_device *dev, uint64_t addr, const void *buf, unsigned npages);

/**
 * hmm_written() - which pages the CPU has written to
 * @mm: an engine.
 * @start, @end: bytes, page-aligned.
 * @stamp: out, one per page: the number of the call of this, anybody's, that last found it written to.
 * @now: out: the number of this call.
 *
 * For devices that have copies of pages which the CPU keeps.  Before it copies a
 * page a driver makes this call, and notes the number: the copy is good as long as
 * later calls give no higher one for that page.  Pages that are dropped, replaced
 * or cannot be told about (shared memory, files, hugetlb) count as written to; so do
 * those that the engine or a device has put there, but for what HMM_DEV_KEEPS
 * says.  What is written to pinned pages by DMA is not seen.  That a page goes to a device is told to notifiers.
 *
 * Memory is watched from here on, whole mappings of it, where it can be.  The
 * CPU's next write to each page is slower, by a fault that nobody serves but the kernel.
 * So what is written to as a whole, again and again, is not watched for a while, and
 * counts as written to.  Waits for what is being dropped at this moment to be gone, for
 * half a second at most; after that the next call says that all was written to, and so
 * does each after one that meets it while it has not gone, for eight of them.  Who drops
 * by a raw call, more than half a second after it was told of, is not seen where no call
 * met it in that time, nor later than those eight, nor before the last eight such drops.
 *
 * Context: Thread-safe.  Not in callbacks, nor under a lock that they take.  May sleep.
 * Return: 0, or
 *	-EINVAL	unaligned, backward, or beyond HMM_ADDR_END
 *	-ENOMEM	no memory
 */
int hmm_written(struct hmm_mm *mm, uint64_t start, uint64_t end, uint64_t stamp[], uint64_t *now);

/** Address space of one number of hmm_written_since(), bytes; a multiple of it is where the next begins. */
#define HMM_WRITTEN_BLOCK ((uint64_t)2 << 20)

/**
 * hmm_written_since() - hmm_written() where little is expected
 * @mm: an engine.
 * @start, @end: bytes, page-aligned.
 * @since: one per HMM_WRITTEN_BLOCK that [start, end) meets.  In: a number that an earlier call had for its own, below
 *	which no copy is that the caller has of pages there; 0: all stamps of the block are wanted; out: the highest
 *	number of any page of the block, to compare with, and not to be given back.  NULL: all stamps are wanted.
 * @stamp: out, one per page, as of hmm_written(); only of the blocks whose number is higher than what was given, or
 *that were given 0.
 * @now: out: the number of this call.
 *
 * Most of the time nothing was written to.  Then no page is looked at, and @stamp is left as it was.
 *
 * Context: Thread-safe.  Not in callbacks, nor under a lock that they take.  May sleep.
 * Return: 0, or
 *	-EINVAL	unaligned, backward, or beyond HMM_ADDR_END
 *	-ENOMEM	no memory
 */
int hmm_written_since(struct hmm_mm *mm, uint64_t start, uint64_t end, uint64_t since[], uint64_t stamp[],
		      uint64_t *now);

/* ------------------------------------------------------- mapping for devices */

/**
 * DOC: a range that a device maps
 *
 * One call for every kind of device.  hmm_range_map() brings pages in, has the
 * device map them, and from then on takes them from it before they change:
 *
 *	hmm_range_open(space, mm, dev, start, end, me, &range);
 *	again:	hmm_range_map(range, addr, addr + len, HMM_MAP_WRITE, deadline);
 *		... the device works; what it meets unmapped it reports: again ...
 *	hmm_range_unmap(range, addr, addr + len, NULL);
 *	hmm_range_close(range);
 *
 * What is mapped stays so over a second hmm_range_map(): after an invalidation
 * that one maps what was lost, and nothing else.  A range may be as large as the
 * address space; what is not mapped costs nothing.
 *
 *	the device		when the space changes
 *	has a page table	the pages concerned are unmapped, then settled
 *	has a queue		it is stopped before that, and started after
 *	pins			the registration is dropped before a call that the
 *				hooks see goes on.  Where the kernel tells of a raw
 *				one it is invalid at once, and dropped by the next
 *				call made for the range
 *
 * None of these calls may be made in a callback of a notifier or of a device.
 */
struct hmm_range_hooks {
	/**
	 * lost: the device has lost entries, or one that pins its registration.
	 * @why: not NULL.  With @why->late a device that pins still holds the old pages,
	 *       until hmm_range_map(), hmm_range_unmap() or hmm_range_close().
	 *
	 * In the thread that changes the space, under no lock, before it goes on; the
	 * same rules as for the operations of a device.
	 */
	void (*lost)(struct hmm_range *range, const struct umm_change *why);
};

/** A range of a space as one device maps it; the rest of it is the engine's. */
struct hmm_range {
	struct umm_space *space;
	struct hmm_mm *mm; /* NULL: no pages are in device memory */
	struct hmm_device *dev;
	uint64_t start, end;                 /* bytes, page-aligned */
	void *priv;                          /* the caller's */
	const struct hmm_range_hooks *hooks; /* the caller's; may be NULL; set before the first hmm_range_map() */
	uint64_t cookie;                     /* the device's: a key, a slot ... */
};

/**
 * hmm_range_open() - begin to map a range for a device
 * @space: the caller's own.
 * @mm: its engine, or NULL where no device has memory.
 * @dev: with HMM_DEV_MAP; open until hmm_range_close().
 * @start, @end: bytes, page-aligned; up to the whole address space.
 * @priv: for range->priv.
 * @rangep: out; ended with hmm_range_close(), before @space is closed.
 *
 * Nothing is mapped yet.
 *
 * Context: Thread-safe.  Not in callbacks.
 * Return: 0, or
 *	-EINVAL	a bad range, or the device lacks operations that its capabilities ask for, or has
 *		HMM_DEV_PINNED together with HMM_DEV_HUGE or HMM_DEV_QUEUE
 *	-ENOMEM	no memory
 */
int hmm_range_open(struct umm_space *space, struct hmm_mm *mm, struct hmm_device *dev, uint64_t start, uint64_t end,
		   void *priv, struct hmm_range **rangep);

/**
 * hmm_range_close() - unmap what is mapped, and end a range
 * @range: NULL is fine.
 *
 * Context: No other call on @range may run.  Not in callbacks.  Sleeps until the device has settled.
 */
void hmm_range_close(struct hmm_range *range);

#define HMM_MAP_WRITE (1u << 0)  /* the device is to write; without it pages are mapped writable where they are */
#define HMM_MAP_SYSTEM (1u << 1) /* pages in @dev's own memory, too, are to come and be mapped */

/**
 * hmm_range_map() - see to it that the device has a part of a range mapped
 * @range: of hmm_range_open().
 * @start, @end: bytes, page-aligned, within the range; the whole of it for a device that pins.
 * @flags: HMM_MAP_*.
 * @deadline_ns: of CLOCK_MONOTONIC, in nanoseconds; 0: none.
 *
 * Pages on other devices are brought back.  Those in @range->dev's own memory, which it
 * reaches without a map, stay there (unless the CPU reaches it, too: then they
 * are mapped as any).  On success each page was mapped at a moment during the
 * call; it may have been invalidated since, and the device has been told.
 *
 * On error nothing is mapped that was not mapped before: what this call had
 * mapped is taken back.  (A page that it had made writable for the device is lost,
 * as by an invalidation.)  What the device's map gave comes through as it is.
 *
 * Context: Thread-safe; calls for one range take turns.  Not in callbacks, nor under a lock that they
 * take.  May sleep, and fault.
 * Return: 0, or
 *	-EINVAL	a bad range, or unknown flags
 *	-EFAULT	a hole, an unreadable page, or one that is lost
 *	-EPERM	HMM_MAP_WRITE where the mapping does not allow it
 *	-ETIME	the deadline passed before the range held still
 *	-EINTR	a signal ends the process
 *	-ENOMEM	no memory
 *	-ESRCH	the space is gone
 *	-EOPNOTSUPP	another process's space
 *	-ENOTTY	the kernel has no PAGEMAP_SCAN (before Linux 6.7)
 */
int hmm_range_map(struct hmm_range *range, uint64_t start, uint64_t end, unsigned flags, uint64_t deadline_ns);

/**
 * hmm_range_unmap() - take a part of a range from the device
 * @range: of hmm_range_open().
 * @start, @end: bytes, page-aligned, within the range.
 * @dirty: out, pages that the device says it has written to; may be NULL.
 *
 * A huge page that is mapped by one entry goes as a whole, also where it reaches
 * beyond; so does the registration of a device that pins.  Pages that were
 * written to are marked written in the CPU's page table.  Returns when the device
 * has settled.
 *
 * Context: Thread-safe; calls for one range take turns.  Not in callbacks, nor under a lock that they
 * take.  May sleep, and fault.
 * Return: 0, or
 *	-EINVAL	a bad range
 */
int hmm_range_unmap(struct hmm_range *range, uint64_t start, uint64_t end, uint64_t *dirty);

/**
 * hmm_range_mapped() - has the device all of a part of a range?
 * @range: of hmm_range_open().
 * @start, @end: bytes, page-aligned, within the range.
 * @write: for writing?
 *
 * Context: Thread-safe.  Not in callbacks, nor under a lock that they take.
 * Return: true or false; true when it is said.  A bad range is not mapped.
 */
bool hmm_range_mapped(struct hmm_range *range, uint64_t start, uint64_t end, bool write);

/**
 * hmm_range_notifier() - what a range is told by
 * @range: of hmm_range_open().
 *
 * For umm_range_snapshot() and its like: umm_read_begin() and umm_read_retry() on it.
 *
 * Context: Thread-safe.
 * Return: the range's, until hmm_range_close(); not to be removed.
 */
struct umm_notifier *hmm_range_notifier(struct hmm_range *range);

#pragma GCC visibility pop

#ifdef __cplusplus
}
#endif
#endif
