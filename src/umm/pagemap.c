/* SPDX-License-Identifier: MIT */
/* The state of a space's pages, from PAGEMAP_SCAN. */
#include <errno.h>
#include <sys/ioctl.h>

#include "umm/internal.h"

#define SCAN_CHUNK 64u

static uint32_t flags_of(uint64_t categories)
{
	return (categories & PAGE_IS_PRESENT ? UMM_PAGE_PRESENT : 0) |
	       (categories & PAGE_IS_PFNZERO ? UMM_PAGE_ZERO : 0) | (categories & PAGE_IS_HUGE ? UMM_PAGE_HUGE : 0) |
	       (categories & PAGE_IS_FILE ? UMM_PAGE_FILE : 0) | (categories & PAGE_IS_SWAPPED ? UMM_PAGE_SWAPPED : 0);
}

#define STATES (PAGE_IS_PRESENT | PAGE_IS_PFNZERO | PAGE_IS_HUGE | PAGE_IS_SWAPPED)

/* Runs of pages in all categories of @all and at least one of @any; @say: those that count as different. */
static int scan(struct umm_space *space, uint64_t start, uint64_t end, uint64_t all, uint64_t any, uint64_t say,
		struct umm_page_run *runs, unsigned nr, uint64_t *walk_end)
{
	struct page_region vec[SCAN_CHUNK];
	unsigned out = 0;

	if (start % UMM_PAGE || end % UMM_PAGE || start > end)
		return -EINVAL;
	*walk_end = start;
	while (out < nr && *walk_end < end) {
		unsigned room = nr - out < SCAN_CHUNK ? nr - out : SCAN_CHUNK;
		struct pm_scan_arg a = {
			.size = sizeof(a),
			.start = *walk_end,
			.end = end,
			.vec = (uintptr_t)vec,
			.vec_len = room,
			.category_mask = all,
			.category_anyof_mask = any,
			.return_mask = say,
		};
		int n = ioctl(space->pagemap_fd, PAGEMAP_SCAN, &a);

		if (n < 0)
			return -errno;
		for (int i = 0; i < n; i++)
			runs[out++] = (struct umm_page_run){vec[i].start, vec[i].end, flags_of(vec[i].categories)};
		if (a.walk_end <= *walk_end)
			break;
		*walk_end = a.walk_end;
	}
	return (int)out;
}

int umm_page_scan(struct umm_space *space, uint64_t start, uint64_t end, struct umm_page_run *runs, unsigned nr,
		  uint64_t *walk_end)
{
	return scan(space, start, end, 0, PAGE_IS_PRESENT | PAGE_IS_SWAPPED, STATES | PAGE_IS_FILE, runs, nr, walk_end);
}

int umm_page_scan_states(struct umm_space *space, uint64_t start, uint64_t end, struct umm_page_run *runs, unsigned nr,
			 uint64_t *walk_end)
{
	return scan(space, start, end, 0, PAGE_IS_PRESENT | PAGE_IS_SWAPPED, STATES, runs, nr, walk_end);
}

int umm_page_scan_written(struct umm_space *space, uint64_t start, uint64_t end, struct umm_page_run *runs, unsigned nr,
			  uint64_t *walk_end)
{
	/* What is absent is reported as written, too; not by every kernel where there is not even a page table. */
	return scan(space, start, end, PAGE_IS_PRESENT | PAGE_IS_WRITTEN, 0, STATES | PAGE_IS_FILE, runs, nr, walk_end);
}

int umm_page_take_written(struct umm_space *space, uint64_t start, uint64_t end, struct umm_page_run *runs, unsigned nr,
			  uint64_t *walk_end)
{
	struct page_region vec[SCAN_CHUNK];
	struct pm_scan_arg a = {
		.size = sizeof(a),
		/* Without the check what is not watched would be passed over, as if nothing were written to. */
		.flags = PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC,
		.start = start,
		.end = end,
		.vec = (uintptr_t)vec,
		.vec_len = nr < SCAN_CHUNK ? nr : SCAN_CHUNK,
		/* Just these: the kernel has a short way for them. */
		.category_mask = PAGE_IS_WRITTEN,
		.return_mask = PAGE_IS_WRITTEN,
	};
	int n = ioctl(space->pagemap_fd, PAGEMAP_SCAN, &a);

	if (n < 0)
		return -errno;
	for (int i = 0; i < n; i++)
		runs[i] = (struct umm_page_run){vec[i].start, vec[i].end, 0};
	*walk_end = a.walk_end;
	return n;
}
