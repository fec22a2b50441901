/* SPDX-License-Identifier: MIT */
/*
 * Fact: UFFDIO_COPY silently replaces poison: who copies must know.  ZEROPAGE
 * does not: EEXIST.
 */
#include "probe.h"

int main(void)
{
	int uffd, fds[2];
	char *p;

	probe_start();
	uffd = uffd_open(UFFD_FEATURE_POISON);
	p = map_registered(uffd, 2 * PAGE);
	CHECK(!pipe(fds), "pipe works");
	CHECK(!uffd_poison(uffd, p, 2 * PAGE), "POISON works");
	for (int i = 0; i < 2; i++)
		CHECK(write(fds[1], p + i * PAGE, 1) < 0 && errno == EFAULT, "the page is poisoned");
	CHECK(!uffd_fill(uffd, p, 'c'), "COPY onto poison succeeds");
	CHECK(all_bytes(p, PAGE, 'c'), "the poison is gone");
	CHECK(uffd_zeropage(uffd, p + PAGE, PAGE) == -EEXIST, "ZEROPAGE onto poison is EEXIST");
	CHECK(write(fds[1], p + PAGE, 1) < 0 && errno == EFAULT, "the poison stays");
	CHECK(uffd_poison(uffd, p, PAGE) == -EEXIST, "POISON onto a page is EEXIST");
	return 0;
}
