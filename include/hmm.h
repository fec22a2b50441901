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

#pragma GCC visibility pop

#ifdef __cplusplus
}
#endif
#endif
