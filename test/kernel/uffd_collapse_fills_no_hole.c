/* SPDX-License-Identifier: MIT */
/*
 * Fact: the kernel makes no huge page of registered memory in which a page is
 * missing (MADV_COLLAPSE, which is what khugepaged does, fails there): it would
 * be zeros where something is away.  Of memory that is not registered it does.
 */
#include "probe.h"

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

static char *with_a_hole(void)
{
	char *p = map_flags(2 * HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);

	p = (char *)(((uintptr_t)p + HUGE - 1) & ~(HUGE - 1));
	madvise(p, HUGE, MADV_NOHUGEPAGE);
	memset(p, 'h', HUGE);
	CHECK(!madvise(p + 7 * PAGE, PAGE, MADV_DONTNEED), "MADV_DONTNEED works");
	madvise(p, HUGE, MADV_HUGEPAGE);
	return p;
}

int main(void)
{
	char *plain, *p;
	int uffd;

	probe_start();
	plain = with_a_hole();
	if (madvise(plain, HUGE, MADV_COLLAPSE))
		SKIP("no MADV_COLLAPSE of huge pages here (%s)", strerror(errno));
	CHECK(present(plain + 7 * PAGE), "where nothing is registered the hole is filled");

	uffd = uffd_open(0);
	p = with_a_hole();
	CHECK(!uffd_register(uffd, p, HUGE, MISSING), "REGISTER works");
	CHECK(madvise(p, HUGE, MADV_COLLAPSE), "MADV_COLLAPSE of registered memory with a hole is refused");
	CHECK(!present(p + 7 * PAGE), "the hole stays");
	CHECK(!uffd_fill(uffd, p + 7 * PAGE, 'h'), "COPY works");
	CHECK(!madvise(p, HUGE, MADV_COLLAPSE), "once the page is there it is not refused (%d)", errno);
	CHECK(all_bytes(p, HUGE, 'h'), "the contents are what they were");
	return 0;
}
