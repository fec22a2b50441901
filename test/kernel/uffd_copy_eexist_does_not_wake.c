/* SPDX-License-Identifier: MIT */
/*
 * Fact: UFFDIO_COPY that finds the page there (EEXIST) wakes nobody: a thread
 * that waits for that page sleeps on until UFFDIO_WAKE.
 */
#include "probe.h"

int main(void)
{
	char page[PAGE] = "p", *p;
	struct actor a;
	int64_t field;
	int uffd, rc;

	probe_start();
	uffd = uffd_open(0);
	p = map_registered(uffd, PAGE);
	actor_start(&a, touch_read, p);
	uffd_read_fault(uffd, p);
	actor_wait_asleep(&a);
	CHECK(!uffd_copy_mode(uffd, p, page, PAGE, UFFDIO_COPY_MODE_DONTWAKE, NULL), "COPY with DONTWAKE works");
	CHECK(actor_asleep(&a), "with DONTWAKE the thread sleeps on");
	rc = uffd_copy_mode(uffd, p, page, PAGE, 0, &field);
	CHECK(rc == -EEXIST && field == -EEXIST, "COPY onto a page is EEXIST (%d)", rc);
	CHECK(actor_asleep(&a), "COPY with EEXIST wakes nobody");
	CHECK(!uffd_wake(uffd, p, PAGE), "WAKE works");
	actor_join(&a);
	return 0;
}
