/* SPDX-License-Identifier: MIT */
/*
 * Fact: MADV_DONTNEED of a registered range waits for a reader of its REMOVE
 * event; UNREGISTER, MADV_DONTNEED, REGISTER drops the pages without one.
 */
#include "probe.h"

static void dontneed(void *p)
{
	CHECK(!madvise(p, 4 * PAGE, MADV_DONTNEED), "MADV_DONTNEED works");
}

int main(void)
{
	struct uffd_msg m;
	struct actor a;
	char *p;
	int uffd;

	probe_start();
	uffd = uffd_open(UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP);
	p = map_filled(4 * PAGE, 's');
	CHECK(!uffd_register(uffd, p, 4 * PAGE, MISSING), "REGISTER works");

	actor_start(&a, dontneed, p);
	uffd_wait(uffd);
	CHECK(!actor_done(&a), "MADV_DONTNEED waits");
	m = uffd_read(uffd);
	CHECK(m.event == UFFD_EVENT_REMOVE && m.arg.remove.end - m.arg.remove.start == 4 * PAGE, "it sends REMOVE");
	actor_join(&a);

	for (int i = 0; i < 4; i++)
		CHECK(!uffd_fill(uffd, p + i * PAGE, 't'), "COPY works");
	CHECK(!uffd_unregister(uffd, p, 4 * PAGE), "UNREGISTER works");
	dontneed(p); /* would wait for ever: nobody reads */
	CHECK(!uffd_register(uffd, p, 4 * PAGE, MISSING), "REGISTER works again");
	CHECK(uffd_quiet(uffd), "nothing was sent");
	CHECK(!present(p), "the pages are gone");
	actor_start(&a, touch_read, p);
	uffd_read_fault(uffd, p);
	CHECK(!uffd_fill(uffd, p, 'u'), "COPY works");
	actor_join(&a);
	return 0;
}
