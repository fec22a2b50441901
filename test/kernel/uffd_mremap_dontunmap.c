/* SPDX-License-Identifier: MIT */
/*
 * Fact: mremap(MREMAP_DONTUNMAP) sends REMAP; the old range stays registered and
 * is empty, the new one is registered, too.
 */
#include "probe.h"

#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif

static void remap(void *p)
{
	char **pp = p;

	*pp = mremap(*pp, 2 * PAGE, 2 * PAGE, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, NULL);
}

int main(void)
{
	char *old, *new;
	struct uffd_msg m;
	struct actor a;
	int uffd;

	probe_start();
	uffd = uffd_open(UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_EVENT_UNMAP | UFFD_FEATURE_EVENT_REMOVE);
	old = new = map_registered(uffd, 2 * PAGE);
	CHECK(!uffd_fill(uffd, old, 'o'), "COPY works"); /* the second page is away */
	actor_start(&a, remap, &new);
	m = uffd_read(uffd);
	CHECK(m.event == UFFD_EVENT_REMAP && m.arg.remap.from == (uintptr_t)old && m.arg.remap.len == 2 * PAGE,
	      "it sends REMAP");
	actor_join(&a);
	CHECK(uffd_quiet(uffd), "it sends no more than that");
	CHECK(new != MAP_FAILED &&new != old &&m.arg.remap.to == (uintptr_t) new, "the page has a new address");
	CHECK(new[0] == 'o' && !present(old), "the page has moved");
	actor_start(&a, touch_read, old);
	uffd_read_fault(uffd, old);
	CHECK(!uffd_fill(uffd, old, 'z'), "COPY works");
	actor_join(&a);
	actor_start(&a, touch_read, new + PAGE);
	uffd_read_fault(uffd, new + PAGE);
	CHECK(!uffd_fill(uffd, new + PAGE, 'n'), "COPY works");
	actor_join(&a);
	return 0;
}
