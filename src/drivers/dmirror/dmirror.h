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

#include "umm.h"

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
#define DMIRROR_ZERO 0x10u  /* and is the zero page */
#define DMIRROR_ERROR 0xffu /* a hole, or not readable */

/**
 * dmirror_open() - a device that mirrors @space.
 * @space: the caller's own, open until dmirror_close().
 *
 * Returns 0, -ENOMEM.
 */
int dmirror_open(struct umm_space *space, struct dmirror **dmp);

/** dmirror_close() - NULL is fine. */
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

#ifdef __cplusplus
}
#endif
#endif
