/* SPDX-License-Identifier: MIT */
/*
 * Fact: MADV_FREE of a registered range sends REMOVE and waits, like
 * MADV_DONTNEED; mprotect sends nothing.
 */
#include "probe.h"

static void do_free(void *p)
{
	CHECK(!madvise(p, PAGE, MADV_FREE), "MADV_FREE works");
}

int main(void)
{
	struct uffd_msg m;
	struct actor a;
	char *p;
	int uffd;

	probe_start();
	uffd = uffd_open(UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP | UFFD_FEATURE_EVENT_REMAP);
	p = map_filled(PAGE, 'p');
	CHECK(!uffd_register(uffd, p, PAGE, MISSING), "REGISTER works");
	actor_start(&a, do_free, p);
	m = uffd_read(uffd);
	CHECK(m.event == UFFD_EVENT_REMOVE && m.arg.remove.start == (uintptr_t)p, "MADV_FREE sends REMOVE");
	actor_join(&a);

	/* Nobody reads: a call that told anybody would wait. */
	CHECK(!mprotect(p, PAGE, PROT_READ), "mprotect works");
	CHECK(!mprotect(p, PAGE, PROT_NONE), "mprotect works");
	CHECK(!mprotect(p, PAGE, PROT_READ | PROT_WRITE), "mprotect works");
	CHECK(uffd_quiet(uffd), "mprotect sends nothing");
	return 0;
}
