/* SPDX-License-Identifier: MIT */
/*
 * dmirror: the reference driver.  A device, in software, with a page table of
 * its own that mirrors the caller's address space, and copies through it.
 *
 * It has the meaning of the device of that name with which the kernel tests
 * its HMM, and is the example of how a driver uses umm.h.  Nothing here needs
 * more than the public headers.
 *
 * All calls are thread-safe but dmirror_close().
 */
#ifndef DMIRROR_H
#define DMIRROR_H

#include "hmm.h"

#ifdef __cplusplus
extern "C" {
#endif

struct dmirror;

/* What dmirror_snapshot() says of a page. */
#define DMIRROR_NONE 0x00u  /* nothing there: never touched */
#define DMIRROR_READ 0x01u  /* may be read: read-only, or a write would replace the page */
#define DMIRROR_WRITE 0x02u /* may be written */
#define DMIRROR_PMD 0x04u   /* and is part of a huge page */
#define DMIRROR_PUD 0x08u
#define DMIRROR_ZERO 0x10u            /* and is the zero page */
#define DMIRROR_PRIVATE_LOCAL 0x20u   /* and is in this device's own memory, not the CPU's */
#define DMIRROR_COHERENT_LOCAL 0x40u  /* and is in this device's memory, which the CPU reaches */
#define DMIRROR_COHERENT_REMOTE 0x50u /* and is in such memory of another device */
#define DMIRROR_ERROR 0xffu           /* a hole, or not readable */

/* What dmirror_flags() takes. */
#define DMIRROR_FLAG_FAIL_ALLOC 1u /* the next large allocation fails, once; the device makes do with small ones */

/** All devices of one address space: they share its engine. */
struct dmirror_host;

#define DMIRROR_PRIVATE 2u /* devices 0, 1: memory of their own, out of the CPU's reach */
#define DMIRROR_DEVICES 4u /* 2, 3: memory that the CPU reaches as its own */

/**
 * dmirror_host_open() - the four devices of @space.
 * @space: the caller's own, open until dmirror_host_close().
 *
 * Returns 0, or as hmm_mm_open().
 */
int dmirror_host_open(struct umm_space *space, struct dmirror_host **hostp);

/** dmirror_host_close() - its devices are closed before; NULL is fine.  Returns 0, or -ENOMEM or -EAGAIN
 * (hmm_mm_close()): it lives on. */
int dmirror_host_close(struct dmirror_host *host);

/** dmirror_host_mm() - the engine that they share. */
struct hmm_mm *dmirror_host_mm(struct dmirror_host *host);

/** dmirror_open_nr() - device @nr of @host; ended with dmirror_close().  Returns 0, -ENODEV, -ENOMEM. */
int dmirror_open_nr(struct dmirror_host *host, unsigned nr, struct dmirror **dmp);

/**
 * dmirror_open() - a device without memory that mirrors @space.
 * @space: the caller's own, open until dmirror_close().
 *
 * Returns 0, -ENOMEM.
 */
int dmirror_open(struct umm_space *space, struct dmirror **dmp);

/** dmirror_close() - what the device of that number holds comes back.  NULL is fine. */
void dmirror_close(struct dmirror *dm);

/**
 * dmirror_read() - the device copies @npages pages from @addr to @ptr.
 * @faults: out, on success only: how often it met a page that its table lacked,
 *          and faulted in the whole rest of the range.  May be NULL.
 *
 * Returns 0; -EINVAL @addr unaligned, no pages, or beyond the user half; -EFAULT
 * a hole, unreadable memory, or @ptr is bad; -EBUSY the range did not hold still
 * for seconds; -ENOMEM.  @ptr is written on success only.
 */
int dmirror_read(struct dmirror *dm, uint64_t addr, void *ptr, uint64_t npages, uint64_t *faults);

/**
 * dmirror_write() - the device copies @npages pages from @ptr to @addr.
 *
 * As dmirror_read(), and -EPERM where @addr may be read but not written; pages
 * before that one may have been written.
 */
int dmirror_write(struct dmirror *dm, uint64_t addr, const void *ptr, uint64_t npages, uint64_t *faults);

/** dmirror_snapshot() - one byte DMIRROR_* a page to @ptr; faults nothing.  Returns as dmirror_read(). */
int dmirror_snapshot(struct dmirror *dm, uint64_t addr, uint8_t *ptr, uint64_t npages);

/**
 * dmirror_migrate_to_dev() - take pages into device memory, and copy their contents to @ptr.
 * @cpages: out, on success only: pages that the device has now, in its memory or in its table: all.
 *
 * Returns 0; -EINVAL a hole, unreadable memory, or a mapping that has no pages
 * to migrate (hugetlb; mappings before it stay migrated); -ENOENT a page neither
 * went (it is shared, or on another device) nor is in the device's table; -EFAULT @ptr is bad; -EBUSY, -ENOMEM;
 * -EOPNOTSUPP a device without memory.
 */
int dmirror_migrate_to_dev(struct dmirror *dm, uint64_t addr, void *ptr, uint64_t npages, uint64_t *cpages);

/** dmirror_migrate_to_sys() - give pages back; @cpages: how many came.  Returns as dmirror_migrate_to_dev(). */
int dmirror_migrate_to_sys(struct dmirror *dm, uint64_t addr, uint64_t npages, uint64_t *cpages);

/** dmirror_release() - give back all that this device holds.  Returns 0, -ENOMEM. */
int dmirror_release(struct dmirror *dm);

/**
 * dmirror_exclusive() - map pages for atomic operations of the device, and copy their contents to @ptr.
 * @cpages: out, on success only: pages that the device has for itself.
 *
 * A touch by the CPU, or a write by a device, ends it.  Returns 0; -EFAULT a hole
 * or memory that must not be written, or @ptr is bad; -EOPNOTSUPP memory that is
 * not anonymous and private; -EBUSY a page would not come free; -ENOMEM.
 */
int dmirror_exclusive(struct dmirror *dm, uint64_t addr, void *ptr, uint64_t npages, uint64_t *cpages);

/** dmirror_check_exclusive() - 0, or -EPERM while any page of the range is still exclusive. */
int dmirror_check_exclusive(struct dmirror *dm, uint64_t addr, uint64_t npages);

/** dmirror_flags() - DMIRROR_FLAG_*. */
int dmirror_flags(struct dmirror *dm, uint64_t flags);

#ifdef __cplusplus
}
#endif
#endif
