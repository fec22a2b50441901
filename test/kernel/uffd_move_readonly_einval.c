/* SPDX-License-Identifier: MIT */
/*
 * Fact: UFFDIO_MOVE refuses (EINVAL) what is not writable, on either side.
 */
#include "probe.h"

int main(void)
{
	static const int prots[] = {PROT_READ, PROT_NONE};
	char *src, *staging;
	int uffd, rc;

	probe_start();
	uffd = uffd_open(UFFD_FEATURE_MOVE);
	src = map_filled(PAGE, 's');
	staging = map_registered(uffd, PAGE);
	for (int i = 0; i < 2; i++) {
		CHECK(!mprotect(src, PAGE, prots[i]), "mprotect works");
		rc = uffd_move(uffd, staging, src, PAGE);
		CHECK(rc == -EINVAL, "MOVE of a page with protection %d is EINVAL (%d)", prots[i], rc);
		CHECK(!mprotect(staging, PAGE, prots[i]), "mprotect works");
		rc = uffd_move(uffd, staging, src, PAGE);
		CHECK(rc == -EINVAL, "also when both sides have it (%d)", rc);
		CHECK(!mprotect(src, PAGE, PROT_READ | PROT_WRITE), "mprotect works");
		rc = uffd_move(uffd, staging, src, PAGE);
		CHECK(rc == -EINVAL, "MOVE onto protection %d is EINVAL (%d)", prots[i], rc);
		CHECK(!mprotect(staging, PAGE, PROT_READ | PROT_WRITE), "mprotect works");
	}
	CHECK(!uffd_move(uffd, staging, src, PAGE), "MOVE of the same page works once it is writable");
	CHECK(all_bytes(staging, PAGE, 's'), "the page has moved");
	return 0;
}
