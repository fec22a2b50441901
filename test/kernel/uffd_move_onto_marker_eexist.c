/* SPDX-License-Identifier: MIT */
/*
 * Fact: UFFDIO_MOVE onto something is EEXIST and moves nothing: onto a page, a
 * poison marker, a write-protect marker.
 */
#include "probe.h"

int main(void)
{
	char *src, *staging;
	int uffd, rc;

	probe_start();
	uffd = uffd_open(UFFD_FEATURE_MOVE | UFFD_FEATURE_POISON | UFFD_FEATURE_PAGEFAULT_FLAG_WP |
			 UFFD_FEATURE_WP_UNPOPULATED);
	src = map_filled(PAGE, 's');
	staging = map_anon(4 * PAGE);
	CHECK(!uffd_register(uffd, staging, 4 * PAGE, MISSING | WP), "REGISTER works");
	CHECK(!uffd_fill(uffd, staging, 'x'), "COPY works");
	CHECK(!uffd_poison(uffd, staging + PAGE, PAGE), "POISON works");
	CHECK(!uffd_wp(uffd, staging + 2 * PAGE, PAGE, true), "WRITEPROTECT of a hole works");
	for (int i = 0; i < 3; i++) {
		rc = uffd_move(uffd, staging + i * PAGE, src, PAGE);
		CHECK(rc == -EEXIST, "MOVE onto a page, poison, write-protect marker [%d] is EEXIST (%d)", i, rc);
		CHECK(present(src), "the page stays");
	}
	CHECK(!uffd_move(uffd, staging + 3 * PAGE, src, PAGE), "MOVE onto a hole works");
	return 0;
}
