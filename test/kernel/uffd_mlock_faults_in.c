/* SPDX-License-Identifier: MIT */
/*
 * Fact: mlock over a registered range faults every page in through the reader.
 */
#include "probe.h"

static void lock(void *p)
{
	CHECK(!mlock(p, 3 * PAGE), "mlock works");
}

int main(void)
{
	struct actor a;
	char *p;
	int uffd;

	probe_start();
	uffd = uffd_open(0);
	p = map_registered(uffd, 3 * PAGE);
	actor_start(&a, lock, p);
	for (int i = 0; i < 3; i++) {
		uffd_read_fault(uffd, p + i * PAGE);
		CHECK(!uffd_fill(uffd, p + i * PAGE, 'l'), "COPY works");
	}
	actor_join(&a);
	CHECK(all_bytes(p, 3 * PAGE, 'l'), "each page came from the reader");
	return 0;
}
