/* SPDX-License-Identifier: MIT */
/*
 * A range of an address space as a device wants to see it.
 *
 * DOC: what an entry says, and where from
 *
 * Mappings give holes, what may be read and what may be written; PAGEMAP_SCAN
 * gives what is present, zero or huge; /proc/PID/pagemap says of private
 * anonymous pages whether they are mapped here alone.  These are three looks
 * at three moments.  Who needs them to be one moment has a notifier: whatever
 * changes in between makes umm_read_retry() true.
 *
 * WRITE on a private page means that the page is ours alone.  A page that a
 * fork left shared, a page of a file, and the zero page would each be replaced
 * by a copy at the first write, and a device that wrote to what it saw would
 * write to the wrong one.  In a shared mapping there is no such copy.
 *
 * DOC: faulting
 *
 *	look; populate the runs that lack what is asked of them; look again
 *
 * Where a page is taken away again in between (reclaim, fork, MADV_DONTNEED)
 * that is repeated a few times; then the caller is told -EBUSY and decides.
 * What is asked of each page comes in through entries[] and is needed until the
 * end, so it is kept in bits of the entries that no result uses.  On error
 * they are put back as they came, and the caller can just begin again.
 */
#include <errno.h>
#include <time.h>
#include <unistd.h>

#include "umm/clock.h"
#include "umm/internal.h"

#define KEPT_FAULT ((uint64_t)1 << 58)
#define KEPT_WRITE ((uint64_t)1 << 57)
#define KEPT_DONE ((uint64_t)1 << 59) /* was asked for, and populated, for writing */
#define KEPT (KEPT_FAULT | KEPT_WRITE | KEPT_DONE)
#define HUGE_ORDER 9u

#define PAGEMAP_EXCLUSIVE ((uint64_t)1 << 56)
#define PAGEMAP_FILE ((uint64_t)1 << 61)
#define PAGEMAP_PRESENT ((uint64_t)1 << 63)

#define USER_END ((uint64_t)1 << 56)
#define LOOKS_MAX 4u
#define POPULATE_TRIES 3u
/* Between two looks at the clock: populating this much takes milliseconds. */
#define POPULATE_MAX ((uint64_t)16 << 20)

static bool range_is_good(const struct umm_range *r)
{
	return r->space && r->entries && r->start < r->end && !((r->start | r->end) % UMM_PAGE) && r->end <= USER_END;
}

static uint64_t *entry_at(const struct umm_range *r, uint64_t addr)
{
	return &r->entries[(addr - r->start) / UMM_PAGE];
}

/* @kept: bits of what stands there that stay. */
static void set_entries(const struct umm_range *r, uint64_t start, uint64_t end, uint64_t value, uint64_t kept)
{
	uint64_t *e = entry_at(r, start), *stop = e + (end - start) / UMM_PAGE;

	if (kept)
		for (; e < stop; e++)
			*e = (*e & kept) | value;
	else
		for (; e < stop; e++)
			*e = value;
}

static uint64_t order_bits(uint64_t bytes)
{
	return (uint64_t)__builtin_ctzll(bytes / UMM_PAGE) << UMM_PFN_ORDER_SHIFT;
}

/* Pages of a private mapping, each of which may be written if it is no file's, and mapped here and nowhere else. */
static int set_private(const struct umm_range *r, uint64_t start, uint64_t end, uint64_t value, uint64_t kept)
{
	/*
	 * Of a page of 1 GiB the kernel may say "shared" for as long as it is there, whoever has it.  After it was
	 * populated for writing it is ours, unless there was a fork, which notifiers are told of.
	 */
	bool giant = (value & UMM_PFN_ORDER_MASK) >> UMM_PFN_ORDER_SHIFT > HUGE_ORDER;
	uint64_t pm[1024];

	while (start < end) {
		uint64_t n = (end - start) / UMM_PAGE, *e = entry_at(r, start);
		ssize_t got;

		if (n > sizeof(pm) / sizeof(pm[0]))
			n = sizeof(pm) / sizeof(pm[0]);
		got = pread(umm_space_pagemap_fd(r->space), pm, n * sizeof(pm[0]),
			    (off_t)(start / UMM_PAGE * sizeof(pm[0])));
		if (got < 0)
			return -errno;
		n = (uint64_t)got / sizeof(pm[0]);
		if (!n)
			return -ESRCH;
		for (uint64_t i = 0; i < n; i++) {
			bool alone = (pm[i] & PAGEMAP_EXCLUSIVE) || (giant && (e[i] & kept & KEPT_DONE));
			bool ours = alone && (pm[i] & (PAGEMAP_PRESENT | PAGEMAP_FILE)) == PAGEMAP_PRESENT;

			e[i] = (e[i] & kept) | value | (ours ? UMM_PFN_WRITE : 0);
		}
		start += n * UMM_PAGE;
	}
	return 0;
}

static int look_at_run(const struct umm_range *r, const struct umm_vma *vma, const struct umm_page_run *run,
		       uint64_t kept)
{
	uint64_t value = UMM_PFN_VALID;

	if (!(run->flags & UMM_PAGE_PRESENT)) {
		set_entries(r, run->start, run->end, 0, kept);
		return 0;
	}
	if (vma->flags & UMM_VMA_HUGETLB)
		value |= order_bits(vma->page_size);
	else if (run->flags & UMM_PAGE_HUGE)
		value |= order_bits(UMM_PAGE * (UMM_PAGE / sizeof(uint64_t)));
	if (run->flags & UMM_PAGE_ZERO)
		value |= UMM_PFN_ZERO;
	if ((vma->flags & UMM_VMA_WRITE) && (vma->flags & UMM_VMA_SHARED))
		value |= UMM_PFN_WRITE;
	else if ((vma->flags & UMM_VMA_WRITE) && !(run->flags & UMM_PAGE_ZERO))
		return set_private(r, run->start, run->end, value, kept);
	set_entries(r, run->start, run->end, value, kept);
	return 0;
}

static int look_at_mapping(const struct umm_range *r, const struct umm_vma *vma, uint64_t start, uint64_t end,
			   uint64_t kept)
{
	struct umm_page_run runs[64];

	while (start < end) {
		uint64_t walk_end = start;
		int n = umm_page_scan_states(r->space, start, end, runs, sizeof(runs) / sizeof(runs[0]), &walk_end);

		if (n < 0)
			return n;
		for (int i = 0; i < n; i++) {
			int rc;

			set_entries(r, start, runs[i].start, 0, kept);
			rc = look_at_run(r, vma, &runs[i], kept);
			if (rc)
				return rc;
			start = runs[i].end;
		}
		if (walk_end < start || (walk_end == start && !n))
			return -EIO;
		set_entries(r, start, walk_end, 0, kept);
		start = walk_end;
	}
	return 0;
}

/* Fill the entries with what is there now, but for the bits of @kept. */
static int look(const struct umm_range *r, uint64_t kept)
{
	for (uint64_t addr = r->start; addr < r->end;) {
		struct umm_vma vma;
		uint64_t end;
		int rc = umm_vma_next(r->space, addr, &vma);

		if (rc == -ENOENT)
			vma.start = r->end;
		else if (rc)
			return rc;
		if (vma.start > addr) {
			end = vma.start < r->end ? vma.start : r->end;
			set_entries(r, addr, end, UMM_PFN_ERROR, kept);
			addr = end;
			continue;
		}
		end = vma.end < r->end ? vma.end : r->end;
		if ((vma.flags & UMM_VMA_READ) && !(vma.flags & UMM_VMA_SPECIAL)) {
			rc = look_at_mapping(r, &vma, addr, end, kept);
			if (rc)
				return rc;
		} else {
			set_entries(r, addr, end, UMM_PFN_ERROR, kept);
		}
		addr = end;
	}
	return 0;
}

int umm_range_snapshot(struct umm_range *range)
{
	if (!range_is_good(range))
		return -EINVAL;
	return look(range, 0);
}

static void keep_requests(const struct umm_range *r)
{
	for (uint64_t addr = r->start; addr < r->end; addr += UMM_PAGE) {
		uint64_t *e = entry_at(r, addr);

		*e = (*e & UMM_PFN_REQ_FAULT ? KEPT_FAULT : 0) | (*e & UMM_PFN_REQ_WRITE ? KEPT_WRITE : 0);
	}
}

static uint64_t kept_request(uint64_t e)
{
	return (e & KEPT_FAULT ? UMM_PFN_REQ_FAULT : 0) | (e & KEPT_WRITE ? UMM_PFN_REQ_WRITE : 0);
}

static void forget_requests(const struct umm_range *r, bool restore)
{
	for (uint64_t addr = r->start; addr < r->end; addr += UMM_PAGE) {
		uint64_t *e = entry_at(r, addr);

		*e = restore ? kept_request(*e) : *e & ~KEPT;
	}
}

enum lack { LACKS_NOTHING, LACKS_PAGE, LACKS_WRITE };

static enum lack lacks(const struct umm_range *r, uint64_t e)
{
	uint64_t req = (kept_request(e) & r->flags_mask) | r->default_flags;

	if ((req & UMM_PFN_REQ_WRITE) && !(e & UMM_PFN_WRITE))
		return LACKS_WRITE;
	if ((req & UMM_PFN_REQ_FAULT) && !(e & UMM_PFN_VALID))
		return LACKS_PAGE;
	return LACKS_NOTHING;
}

/* What the mappings say to @what in [start, end): 0, -EFAULT or -EPERM; *@endp: how far that holds. */
static int permitted(const struct umm_range *r, uint64_t start, uint64_t end, enum lack what, uint64_t *endp)
{
	struct umm_vma vma;
	int rc = umm_vma_next(r->space, start, &vma);

	if (rc)
		return rc == -ENOENT ? -EFAULT : rc;
	if (vma.start > start || !(vma.flags & UMM_VMA_READ) || (vma.flags & UMM_VMA_SPECIAL))
		return -EFAULT;
	if (what == LACKS_WRITE && !(vma.flags & UMM_VMA_WRITE))
		return -EPERM;
	*endp = vma.end < end ? vma.end : end;
	return 0;
}

static int time_is_up(const struct umm_range *r)
{
	return r->deadline_ns && umm_now_ns() >= r->deadline_ns ? -ETIME : 0;
}

/* The kernel's answer does not tell what was refused from what has changed since we looked. */
static int populate_error(const struct umm_range *r, uint64_t start, uint64_t end, enum lack what, int rc)
{
	switch (rc) {
	case -EAGAIN:
		return -EBUSY;
	case -ENOMEM:
	case -EFAULT:
	case -EINVAL:
	case -EHWPOISON:
		while (start < end) {
			int now = permitted(r, start, end, what, &start);

			if (now)
				return now == -EFAULT || now == -EPERM ? -EBUSY : now;
		}
		return rc == -ENOMEM ? rc : -EFAULT;
	default:
		return rc;
	}
}

/* Bring in what is lacking in [start, end), all of it in the same way. */
static int populate(const struct umm_range *r, uint64_t start, uint64_t end, enum lack what)
{
	while (start < end) {
		uint64_t stop;
		int rc = permitted(r, start, end, what, &stop);

		if (rc)
			return rc;
		if (stop - start > POPULATE_MAX)
			stop = start + POPULATE_MAX;
		/* A hole that was there for a moment looks like want of memory. */
		for (unsigned tries = 0; tries < POPULATE_TRIES; tries++) {
			rc = umm_space_populate(r->space, start, stop - start, what == LACKS_WRITE);
			if (rc)
				rc = populate_error(r, start, stop, what, rc);
			if (rc != -ENOMEM && rc != -EFAULT)
				break;
		}
		if (rc)
			return rc;
		rc = time_is_up(r);
		if (rc)
			return rc;
		if (umm_read_retry(r->notifier, r->notifier_seq))
			return -EBUSY;
		for (; what == LACKS_WRITE && start < stop; start += UMM_PAGE)
			*entry_at(r, start) |= KEPT_DONE;
		start = stop;
	}
	return 0;
}

/* 0: nothing was lacking; 1: something was, and has been brought in. */
static int bring_in(const struct umm_range *r)
{
	int found = 0;

	for (uint64_t addr = r->start; addr < r->end;) {
		enum lack what = lacks(r, *entry_at(r, addr));
		uint64_t start = addr;
		int rc;

		do
			addr += UMM_PAGE;
		while (addr < r->end && lacks(r, *entry_at(r, addr)) == what);
		if (what == LACKS_NOTHING)
			continue;
		rc = populate(r, start, addr, what);
		if (rc)
			return rc;
		found = 1;
	}
	return found;
}

int umm_range_fault(struct umm_range *range)
{
	int rc;

	if (!range_is_good(range) || !range->notifier)
		return -EINVAL;
	rc = time_is_up(range);
	if (rc)
		return rc;
	keep_requests(range);
	for (unsigned looks = 0; looks < LOOKS_MAX; looks++) {
		/*
		 * Before the look, for what is seen must be what stays once all that was to go has gone.  A drop that
		 * is told of later makes us begin again.
		 */
		if (umm_quarantined(range->space, range->start, range->end) ||
		    umm_read_retry(range->notifier, range->notifier_seq))
			break;
		rc = look(range, KEPT);
		if (!rc)
			rc = bring_in(range);
		if (rc <= 0)
			goto out;
	}
	rc = -EBUSY;
out:
	/* What was found, or refused, may have been so for a moment only. */
	if ((!rc || rc == -ENOMEM || rc == -EFAULT || rc == -EPERM) &&
	    umm_read_retry(range->notifier, range->notifier_seq))
		rc = -EBUSY;
	forget_requests(range, rc != 0);
	return rc;
}
