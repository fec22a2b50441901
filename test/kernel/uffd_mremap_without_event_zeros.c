/* SPDX-License-Identifier: MIT */
/*
 * Fact: without EVENT_REMAP mremap leaves what it moved unregistered: pages that
 * are away read as zeros there.
 */
#include "probe.h"

int main(void)
{
	char *p, *q;
	int uffd;

	probe_start();
	uffd = uffd_open(0);
	p = map_registered(uffd, PAGE);
	q = mremap(p, PAGE, 2 * PAGE, MREMAP_MAYMOVE);
	CHECK(q != MAP_FAILED, "mremap works and waits for nobody");
	CHECK(q[0] == 0, "a page that is away reads as zeros");
	CHECK(uffd_fill(uffd, q + PAGE, 'x') == -ENOENT, "it is not registered");
	return 0;
}
