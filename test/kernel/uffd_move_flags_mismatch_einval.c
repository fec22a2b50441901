/* SPDX-License-Identifier: MIT */
/*
 * Fact: UFFDIO_MOVE wants both sides locked or none, and the same protections
 * (a page that may be executed moves only where pages may be); else EINVAL.
 * Marks of madvise do not matter.
 */
#include "probe.h"

int main(void)
{
	char *src, *staging;
	int uffd, rc;

	probe_start();
	uffd = uffd_open(UFFD_FEATURE_MOVE);
	src = map_filled(2 * PAGE, 's');
	staging = map_registered(uffd, 2 * PAGE);

	CHECK(!mlock(src, 2 * PAGE), "two pages can be locked");
	rc = uffd_move(uffd, staging, src, PAGE);
	CHECK(rc == -EINVAL, "MOVE of a locked page where pages are not locked is EINVAL (%d)", rc);
	CHECK(!mlock2(staging, 2 * PAGE, MLOCK_ONFAULT), "staging can be locked on fault");
	CHECK(!uffd_move(uffd, staging, src, PAGE), "MOVE works when both sides are locked");
	CHECK(!munlock(src, 2 * PAGE), "munlock works");
	rc = uffd_move(uffd, staging + PAGE, src + PAGE, PAGE);
	CHECK(rc == -EINVAL, "MOVE of an unlocked page where pages are locked is EINVAL (%d)", rc);
	CHECK(!munlock(staging, 2 * PAGE), "munlock works");

	if (mprotect(src, 2 * PAGE, PROT_READ | PROT_WRITE | PROT_EXEC)) {
		printf("SKIP: no right to map memory writable and executable\n");
	} else {
		rc = uffd_move(uffd, staging + PAGE, src + PAGE, PAGE);
		CHECK(rc == -EINVAL, "MOVE of an executable page where none is executable is EINVAL (%d)", rc);
		CHECK(!mprotect(src, 2 * PAGE, PROT_READ | PROT_WRITE), "mprotect works");
	}

	madvise(src, 2 * PAGE, MADV_DONTFORK);
	madvise(src, 2 * PAGE, MADV_DONTDUMP);
	madvise(src, 2 * PAGE, MADV_MERGEABLE);
	madvise(src, 2 * PAGE, MADV_HUGEPAGE);
	rc = uffd_move(uffd, staging + PAGE, src + PAGE, PAGE);
	CHECK(!rc, "MOVE works with other marks on one side (%d)", rc);
	CHECK(all_bytes(staging, 2 * PAGE, 's'), "both pages have moved");
	return 0;
}
