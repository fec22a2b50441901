/* SPDX-License-Identifier: MIT */
/*
 * Fact: PAGEMAP_SCAN reports pages that are not there as written, in registered
 * memory and elsewhere: who asks for WRITTEN asks for PRESENT, too.
 */
#include "probe.h"

int main(void)
{
	char *p, *plain;
	int uffd;

	probe_start();
	uffd = uffd_open(UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED);
	p = map_anon(2 * PAGE);
	plain = map_anon(2 * PAGE);
	CHECK(!uffd_register(uffd, p, 2 * PAGE, WP), "REGISTER works");
	p[0] = plain[0] = 'x';
	CHECK((scan_page(p) & (PAGE_IS_PRESENT | PAGE_IS_WRITTEN)) == (PAGE_IS_PRESENT | PAGE_IS_WRITTEN),
	      "a written page is there and written");
	CHECK((scan_page(p + PAGE) & (PAGE_IS_PRESENT | PAGE_IS_WRITTEN)) == PAGE_IS_WRITTEN,
	      "a page that is not there is written");
	CHECK((scan_page(plain + PAGE) & (PAGE_IS_PRESENT | PAGE_IS_WRITTEN)) == PAGE_IS_WRITTEN,
	      "also where nothing is registered");
	CHECK(!uffd_wp(uffd, p, 2 * PAGE, true), "WRITEPROTECT works");
	CHECK(!(scan_page(p) & PAGE_IS_WRITTEN), "a protected page is not written");
	return 0;
}
