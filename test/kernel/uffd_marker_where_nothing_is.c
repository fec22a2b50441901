/* SPDX-License-Identifier: MIT */
/*
 * Fact: write-protecting where nothing is leaves a marker: the page counts as
 * swapped and not present, a touch is a fault on a missing page as before,
 * UFFDIO_COPY works onto it, UFFDIO_ZEROPAGE does not, MADV_DONTNEED takes it away.
 */
#include "probe.h"

int main(void)
{
	struct actor a;
	char *p;
	int uffd, rc;

	probe_start();
	uffd = uffd_open(UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED);
	p = map_anon(4 * PAGE);
	CHECK(!uffd_register(uffd, p, 4 * PAGE, MISSING | WP), "REGISTER works");
	CHECK(!uffd_wp(uffd, p, 4 * PAGE, true), "WRITEPROTECT of a hole works");
	CHECK((scan_page(p) & (PAGE_IS_PRESENT | PAGE_IS_SWAPPED)) == PAGE_IS_SWAPPED, "the page counts as swapped");
	actor_start(&a, touch_read, p);
	uffd_read_fault(uffd, p);
	CHECK(!uffd_fill(uffd, p, 'x'), "COPY onto the marker works");
	actor_join(&a);
	CHECK(all_bytes(p, PAGE, 'x'), "and gives its contents");
	rc = uffd_zeropage(uffd, p + PAGE, PAGE);
	CHECK(rc == -EEXIST, "ZEROPAGE onto a marker is EEXIST (%d)", rc);
	CHECK(!madvise(p + 2 * PAGE, PAGE, MADV_DONTNEED), "DONTNEED works");
	CHECK(!(scan_page(p + 2 * PAGE) & PAGE_IS_SWAPPED), "and takes the marker away");
	return 0;
}
