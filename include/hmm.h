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
	int (*copy_out)(struct hmm_device *dev, const hmm_handle_t handle[], void *const dst[], int status[], unsigned n);

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

#pragma GCC visibility pop

#ifdef __cplusplus
}
#endif
#endif
