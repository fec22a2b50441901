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
 * All operations are thread-safe: the engine calls them from several threads
 * and holds none of its locks across copy_in and copy_out.
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
 * The last six operations are those of devices that map (HMM_DEV_MAP).  They
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
	 *          not match.  A page with an error must not be given to anybody.
	 *
	 * Returns 0, or the first error in @status.
	 */
	int (*copy_out)(struct hmm_device *dev, const hmm_handle_t handle[], void *const dst[], int status[],
			unsigned n);

	/** get: one more reference to each of @n handles (fork).  Never fails. */
	void (*get)(struct hmm_device *dev, const hmm_handle_t handle[], unsigned n);

	/** put: drop a reference of each; the last one frees the page.  Never fails, never sleeps. */
	void (*put)(struct hmm_device *dev, const hmm_handle_t handle[], unsigned n);

	/**
	 * same: is what the device holds, byte for byte, @page?  May be NULL: a page
	 * that comes back is then never kept, and stored anew when it goes again.
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
	 * wait, after a change of the space, until hmm_range_map() has succeeded.
	 */
	void (*start)(struct hmm_device *dev, struct hmm_range *range);

	/** forget: @range ends, with nothing mapped; what @dev keeps for it goes (range->cookie).  May be NULL. */
	void (*forget)(struct hmm_device *dev, struct hmm_range *range);
};

/** The head of every device: a driver embeds it as its first member. */
struct hmm_device {
	const struct hmm_device_ops *ops;
	char spec[120]; /* what it was opened with, for messages */
};

/**
 * hmm_device_open() - open a device from its specification.
 * @spec: "NAME" or "NAME:ARGUMENT", e.g. "lz4", "lz4:512M", "file:/var/tmp".
 * @devp: out; the caller owns it and ends it with hmm_device_close().
 * @err: out, one line without newline that says what is wrong and what to do;
 *       may be NULL.
 * @errlen: bytes at @err.
 *
 * Returns 0, -ENODEV (no such driver), -EINVAL (bad argument), or what opening
 * the backing store gave (-EACCES, -ENOSPC, -ENOENT ...).  Thread-safe.
 */
int hmm_device_open(const char *spec, struct hmm_device **devp, char *err, size_t errlen);

/**
 * hmm_chain_next() - the next device specification of a chain "lz4:1G,raw,file:/var/tmp".
 * @chain: in and out; set behind what was read.
 * @spec, @len: room for the specification.
 *
 * Arguments may hold commas, so one ends a specification only where a known
 * driver's name follows.  Returns 1, 0 at the end, -EINVAL for an empty or too
 * long one.
 */
int hmm_chain_next(const char **chain, char *spec, size_t len);

/** hmm_device_close() - end a device; NULL is fine. */
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
 * hmm_mm_open() - start the engine on @space.
 * @space: the caller's own, from umm_space_open_self(); open until hmm_mm_close().
 * @mmp: out; ended with hmm_mm_close().
 *
 * Returns 0; -EOPNOTSUPP another process's space, or a kernel without
 * UFFDIO_MOVE; -EBUSY the space has or had an engine; -EPERM no right to a
 * userfaultfd; -ENOMEM.  Not thread-safe against itself for one space.
 */
int hmm_mm_open(struct umm_space *space, struct hmm_mm **mmp);

/**
 * hmm_mm_close() - bring everything back and end the engine; NULL is fine.
 *
 * Devices may be closed afterwards, not before.  Returns when no call of a
 * device runs.  0, or -ENOMEM: not all could be brought back, and nothing has
 * ended.
 */
int hmm_mm_close(struct hmm_mm *mm);

/**
 * hmm_mm_add_device() - let @dev hold pages of @mm.
 * @dev: the caller's, until hmm_mm_close() has returned; its ops and spec are set.
 *
 * Its close operation is not called.  Returns 0; -ENOSPC eight are there already;
 * -EEXIST; -EINVAL no memory operations.  Thread-safe.
 */
int hmm_mm_add_device(struct hmm_mm *mm, struct hmm_device *dev);

/**
 * hmm_mm_manage() - get the mappings of [@start, @end) ready to move.
 *
 * Migration does it by itself; a mapping is always taken as a whole, also beyond
 * the range.  From here on a first touch of a page in it is served by the engine.
 * Returns 0; -EINVAL unaligned or backward, a hole, or memory that cannot be
 * managed (shared, of a file, huge pages by hugetlb, the stack); -EBUSY another
 * userfaultfd has it; -ENOMEM.  Thread-safe.
 */
int hmm_mm_manage(struct hmm_mm *mm, uint64_t start, uint64_t end);

/** hmm_mm_unmanage() - bring [@start, @end) back and let go of it.  Returns 0, -EINVAL, -ENOMEM.  Thread-safe. */
int hmm_mm_unmanage(struct hmm_mm *mm, uint64_t start, uint64_t end);

/**
 * hmm_mm_uniform() - before mremap(): manage the whole of what is managed in part.
 *
 * mremap() fails half-way on a mapping of which only a part is managed.
 * Returns 0 or -errno as hmm_mm_manage(); nothing is done where nothing is managed.
 */
int hmm_mm_uniform(struct hmm_mm *mm, uint64_t start, uint64_t end);

/**
 * A migration of at most HMM_BATCH_MAX pages to device memory, in three phases:
 * collect, copy, commit.  The caller fills the first block and hands the
 * structure to each in turn, in one thread.  Between collect and commit no other
 * migration of @mm runs, all signals are blocked, and a thread that touches a
 * page that was collected gets it back: the device's copy is then let go.
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
 * hmm_migrate_collect() - take the pages of [@m->start, @m->end) out of the page table.
 *
 * Lowers @m->end where the range has more mappings than one batch can hold.
 * Pages that are elsewhere already, pinned, or in mappings that cannot be moved
 * from are left out.  Never-touched pages are collected as pages of zeros.
 * Returns 0, also with no page collected: then commit must follow all the same;
 * -EINVAL bad range, a hole or unreadable memory in it, or @m->to is not one of
 * @m->mm's or is coherent; -EBUSY, -ENOMEM as hmm_mm_manage().
 */
int hmm_migrate_collect(struct hmm_migrate *m);

/** hmm_migrate_copy() - have the device's copy_in() take them; a driver may fill @m->handle itself.  Returns pages
 * taken. */
int hmm_migrate_copy(struct hmm_migrate *m);

/** hmm_migrate_commit() - enter what was taken, put back what was not.  Returns pages that are on the device now. */
int hmm_migrate_commit(struct hmm_migrate *m);

/**
 * hmm_migrate_to_device() - all three phases, for a range of any length.
 * @dev: one of @mm's.  Pages on another of its devices come from there.
 * @moved: out, also on error; pages of the range that are on @dev now.  May be NULL.
 *
 * To a coherent device pages stay mapped: the engine keeps the record that they
 * are the device's.  (No memory of such a device is known to this machine: the
 * page's own stands in for it.)
 * Partial success is success: see @moved.  Returns 0 or as hmm_migrate_collect().
 */
int hmm_migrate_to_device(struct hmm_mm *mm, struct hmm_device *dev, uint64_t start, uint64_t end, const void *owner,
			  uint64_t *moved);

/**
 * hmm_migrate_to_system() - bring back what @dev (NULL: any) holds of [@start, @end).
 * @moved: out, pages that came; may be NULL.
 *
 * Returns 0, -EINVAL, -ENOMEM.  A device evicts all that it holds with a range
 * of 0 to HMM_ADDR_END.  Thread-safe.
 */
int hmm_migrate_to_system(struct hmm_mm *mm, struct hmm_device *dev, uint64_t start, uint64_t end, uint64_t *moved);

#define HMM_ADDR_END ((uint64_t)1 << 47)

/**
 * hmm_where() - which device holds each page of [@start, @end).
 * @where: out, one per page; NULL: none, the page is the system's.
 * @handle: out, one per page: its handle, or HMM_HANDLE_NONE; may be NULL.
 *
 * True when it is written.  Who needs it to stay true asks under a sequence of a
 * notifier.  Returns 0 or -EINVAL.  Thread-safe.
 */
int hmm_where(struct hmm_mm *mm, uint64_t start, uint64_t end, struct hmm_device *where[], hmm_handle_t handle[]);

/**
 * hmm_device_read() - the contents of pages from @addr on, as long as they are in @dev's own memory.
 * @buf: @npages pages of memory that cannot be away (umm_alloc()).
 *
 * Returns pages read, 0 when the first one is not there (any more), or what
 * copy_out gave.  Not for coherent devices.  Thread-safe.
 */
int hmm_device_read(struct hmm_mm *mm, struct hmm_device *dev, uint64_t addr, void *buf, unsigned npages);

/** hmm_device_write() - the same the other way; @dev gets new handles.  -ENOMEM: it took nothing. */
int hmm_device_write(struct hmm_mm *mm, struct hmm_device *dev, uint64_t addr, const void *buf, unsigned npages);

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
 * hmm_range_open() - begin to map [@start, @end) for @dev.  Nothing is mapped yet.
 * @space: the caller's own; @mm: its engine, or NULL where no device has memory.
 * @dev: with HMM_DEV_MAP; open until hmm_range_close().
 * @priv: for range->priv.
 * @rangep: out; ended with hmm_range_close(), before @space is closed.
 *
 * Returns 0; -EINVAL a bad range, or the device lacks operations that its
 * capabilities ask for; -ENOMEM.  Thread-safe.
 */
int hmm_range_open(struct umm_space *space, struct hmm_mm *mm, struct hmm_device *dev, uint64_t start, uint64_t end,
		   void *priv, struct hmm_range **rangep);

/** hmm_range_close() - unmap what is mapped, and end @range.  NULL is fine.  No other call on it may run. */
void hmm_range_close(struct hmm_range *range);

#define HMM_MAP_WRITE (1u << 0)  /* the device is to write; without it pages are mapped writable where they are */
#define HMM_MAP_SYSTEM (1u << 1) /* pages in @dev's own memory, too, are to come and be mapped */

/**
 * hmm_range_map() - see to it that the device has [@start, @end) mapped.
 * @start, @end: within the range, page-aligned; the whole of it for a device that pins.
 * @flags: HMM_MAP_*.
 * @deadline_ns: CLOCK_MONOTONIC; 0: none.
 *
 * Pages on other devices are brought back.  Those in @dev's own memory, which it
 * reaches without a map, stay there (unless the CPU reaches it, too: then they
 * are mapped as any).  On success each page was mapped at a moment during the
 * call; it may have been invalidated since, and the device has been told.
 *
 * On error nothing is mapped that was not mapped before: what this call had
 * mapped is taken back.  (A page that it had made writable for the device is lost,
 * as by an invalidation.)
 *
 * Returns 0; -EINVAL; -EFAULT a hole or unreadable page; -EPERM HMM_MAP_WRITE
 * where the mapping does not allow it; -ETIME the deadline passed before the
 * range held still; -EINTR; -ENOMEM; -ESRCH; -EOPNOTSUPP another process's
 * space; or what the device's map gave.  Thread-safe; calls for one range take
 * turns.
 */
int hmm_range_map(struct hmm_range *range, uint64_t start, uint64_t end, unsigned flags, uint64_t deadline_ns);

/**
 * hmm_range_unmap() - take [@start, @end) from the device.
 * @dirty: out, pages that the device says it has written to; may be NULL.
 *
 * A huge page that is mapped by one entry goes as a whole, also where it reaches
 * beyond; so does the registration of a device that pins.  Pages that were
 * written to are marked written in the CPU's page table.  Returns when the device
 * has settled: 0, or -EINVAL.  Thread-safe.
 */
int hmm_range_unmap(struct hmm_range *range, uint64_t start, uint64_t end, uint64_t *dirty);

/** hmm_range_mapped() - has the device all of [@start, @end), and for writing if @write?  True when it is said. */
bool hmm_range_mapped(struct hmm_range *range, uint64_t start, uint64_t end, bool write);

/** hmm_range_notifier() - what @range is told by, for umm_range_snapshot() and its like. */
struct umm_notifier *hmm_range_notifier(struct hmm_range *range);

#pragma GCC visibility pop

#ifdef __cplusplus
}
#endif
#endif
