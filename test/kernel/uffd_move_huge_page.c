/* SPDX-License-Identifier: MIT */
/*
 * Fact: UFFDIO_MOVE moves a whole huge page as one when both sides are aligned,
 * and the first 64 KiB of one by splitting it; the zero page moves, too.
 */
#include "probe.h"

static char *map_huge_area(void)
{
	char *p = map_flags(2 * HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);

	return (char *)(((uintptr_t)p + HUGE - 1) & -HUGE);
}

int main(void)
{
	char *src, *staging, *zero;
	int uffd;

	probe_start();
	uffd = uffd_open(UFFD_FEATURE_MOVE);
	src = map_huge_area();
	staging = map_huge_area();
	CHECK(!uffd_register(uffd, staging, HUGE, MISSING), "REGISTER works");

	zero = map_anon(PAGE);
	(void)*(volatile char *)zero;
	/* Some kernels give a page of its own at once. */
	if (!(scan_page(zero) & PAGE_IS_PFNZERO))
		printf("SKIP: a page that was only read is not the zero page\n");
	CHECK(!uffd_move(uffd, staging, zero, PAGE), "MOVE of the zero page works");
	CHECK(!present(zero) && all_bytes(staging, PAGE, 0), "the zero page has moved");
	CHECK(!uffd_unregister(uffd, staging, HUGE) && !madvise(staging, HUGE, MADV_DONTNEED) &&
		      !uffd_register(uffd, staging, HUGE, MISSING),
	      "staging can be emptied");

	if (madvise(src, HUGE, MADV_HUGEPAGE))
		SKIP("no transparent huge pages in this kernel");
	memset(src, 's', HUGE);
	if (!(scan_page(src) & PAGE_IS_HUGE))
		SKIP("no transparent huge page is given (/sys/kernel/mm/transparent_hugepage/enabled: madvise)");
	CHECK(!uffd_move(uffd, staging, src, HUGE), "MOVE of a huge page works");
	CHECK(!present(src), "nothing is left");
	CHECK(scan_page(staging) & PAGE_IS_HUGE, "it is a huge page where it has come to");
	CHECK(all_bytes(staging, HUGE, 's'), "the bytes have moved");

	CHECK(!uffd_register(uffd, src, HUGE, MISSING), "REGISTER works");
	CHECK(!uffd_move(uffd, src, staging, 16 * PAGE), "MOVE of a part of a huge page works");
	CHECK(!(scan_page(staging + 16 * PAGE) & PAGE_IS_HUGE), "the huge page is split");
	CHECK(all_bytes(src, 16 * PAGE, 's') && all_bytes(staging + 16 * PAGE, HUGE - 16 * PAGE, 's'),
	      "the bytes are right");
	return 0;
}
