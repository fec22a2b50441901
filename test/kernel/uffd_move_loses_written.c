/* SPDX-License-Identifier: MIT */
/*
 * Fact: UFFDIO_MOVE carries neither "clean" nor "written" along: a page that was
 * clean under WP_ASYNC is reported written after it, also in staging that is
 * itself registered for write protection; so is the hole that it left.
 */
#include "probe.h"

static void make_clean(char *p)
{
	struct page_region r[4];
	struct pm_scan_arg a = {
		.size = sizeof(a),
		.flags = PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC,
		.start = (uintptr_t)p,
		.end = (uintptr_t)p + 2 * PAGE,
		.vec = (uintptr_t)r,
		.vec_len = 4,
		.category_mask = PAGE_IS_WRITTEN,
		.return_mask = PAGE_IS_WRITTEN,
	};
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);

	if (fd >= 0 && ioctl(fd, PAGEMAP_SCAN, &a) < 0 && errno == ENOTTY)
		SKIP("no PAGEMAP_SCAN (Linux 6.7)");
	CHECK(fd >= 0 && a.walk_end == a.end, "PAGEMAP_SCAN with WP_MATCHING works");
	close(fd);
}

int main(void)
{
	char *src, *staging;
	int uffd;

	probe_start();
	uffd = uffd_open(UFFD_FEATURE_MOVE | UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED);
	src = map_filled(2 * PAGE, 's');
	staging = map_anon(2 * PAGE);
	CHECK(!uffd_register(uffd, src, 2 * PAGE, WP), "REGISTER works");
	CHECK(!uffd_register(uffd, staging, 2 * PAGE, MISSING | WP), "REGISTER works");
	make_clean(src);
	CHECK(!(scan_page(src) & PAGE_IS_WRITTEN), "the page is clean");
	src[PAGE] = 'w';
	CHECK(scan_page(src + PAGE) & PAGE_IS_WRITTEN, "a write is seen");
	CHECK(!(scan_page(src) & PAGE_IS_WRITTEN), "only where it was");

	CHECK(!uffd_move(uffd, staging, src, 2 * PAGE), "MOVE works");
	CHECK(scan_page(staging) & PAGE_IS_WRITTEN, "the clean page is no longer clean where it came to");
	CHECK(scan_page(staging + PAGE) & PAGE_IS_WRITTEN, "nor is the written one");
	return 0;
}
