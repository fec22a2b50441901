/* SPDX-License-Identifier: MIT */
/*
 * Fact: MADV_GUARD_INSTALL drops the pages of a registered range and sends no
 * event; MADV_GUARD_REMOVE sends none either.  ZEROPAGE onto a guard is EEXIST,
 * but COPY silently replaces it.  PAGEMAP_SCAN has a guard as swapped, not as absent.
 */
#include "probe.h"

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#define MADV_GUARD_REMOVE 103
#endif

int main(void)
{
	char *p;
	int uffd;

	probe_start();
	p = map_filled(PAGE, 'p');
	if (madvise(p, PAGE, MADV_GUARD_INSTALL))
		SKIP("this kernel has no guard regions");
	CHECK(!madvise(p, PAGE, MADV_GUARD_REMOVE), "MADV_GUARD_REMOVE works");
	CHECK(all_bytes(p, PAGE, 0), "a guard region drops what was there");

	uffd = uffd_open(UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP | UFFD_FEATURE_EVENT_REMAP);
	p = map_filled(PAGE, 'p');
	CHECK(!uffd_register(uffd, p, PAGE, MISSING), "REGISTER works");
	/* Nobody reads: a call that told anybody would wait. */
	CHECK(!madvise(p, PAGE, MADV_GUARD_INSTALL), "MADV_GUARD_INSTALL works on a registered range");
	CHECK(uffd_quiet(uffd), "MADV_GUARD_INSTALL sends nothing");
	CHECK(!madvise(p, PAGE, MADV_GUARD_REMOVE), "MADV_GUARD_REMOVE works on a registered range");
	CHECK(uffd_quiet(uffd), "MADV_GUARD_REMOVE sends nothing");
	CHECK(!present(p), "the page has gone");
	CHECK(!(scan_page(p) & PAGE_IS_SWAPPED), "and counts as absent");
	CHECK(!madvise(p, PAGE, MADV_GUARD_INSTALL), "MADV_GUARD_INSTALL works again");
	CHECK((scan_page(p) & (PAGE_IS_PRESENT | PAGE_IS_SWAPPED)) == PAGE_IS_SWAPPED, "a guard counts as swapped");
	CHECK(uffd_zeropage(uffd, p, PAGE) == -EEXIST, "ZEROPAGE onto a guard is EEXIST");
	CHECK(!uffd_fill(uffd, p, 'n') && all_bytes(p, PAGE, 'n'), "COPY replaces a guard");
	return 0;
}
