/* SPDX-License-Identifier: MIT */
/*
 * Fact: UFFDIO_MOVE stops at a hole: ENOENT when it is the first page, else
 * EAGAIN with the bytes before it; with ALLOW_SRC_HOLES holes count as moved and
 * leave holes.
 */
#include "probe.h"

int main(void)
{
	char *src, *staging;
	int64_t moved;
	int uffd, rc;

	probe_start();
	uffd = uffd_open(UFFD_FEATURE_MOVE);
	src = map_anon(4 * PAGE);
	staging = map_registered(uffd, 8 * PAGE);
	src[0] = src[2 * PAGE] = src[3 * PAGE] = 's'; /* page 1 is a hole */

	rc = uffd_move_mode(uffd, staging, src + PAGE, 2 * PAGE, 0, &moved);
	CHECK(rc == -ENOENT && moved == -ENOENT, "a hole first: ENOENT (%d, %lld)", rc, (long long)moved);
	rc = uffd_move_mode(uffd, staging, src, 4 * PAGE, 0, &moved);
	CHECK(rc == -EAGAIN && moved == (int64_t)PAGE, "a hole later: EAGAIN, what was before it is moved (%d, %lld)",
	      rc, (long long)moved);
	CHECK(!present(src) && present(staging), "the page before the hole has moved");

	rc = uffd_move_mode(uffd, staging + 4 * PAGE, src, 4 * PAGE, UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES, &moved);
	CHECK(!rc && moved == (int64_t)(4 * PAGE), "with ALLOW_SRC_HOLES all count as moved (%d, %lld)", rc,
	      (long long)moved);
	CHECK(!present(staging + 4 * PAGE) && !present(staging + 5 * PAGE), "holes stay holes");
	CHECK(staging[6 * PAGE] == 's' && staging[7 * PAGE] == 's', "pages have moved");
	return 0;
}
