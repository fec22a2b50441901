/* SPDX-License-Identifier: MIT */
/*
 * Fact: mapping over a registered range with MAP_FIXED sends UNMAP after the new
 * mapping is there; what is mapped is not registered.
 */
#include "probe.h"

static void map_over(void *p)
{
	CHECK(mmap(p, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == p, "mmap works");
}

int main(void)
{
	struct uffd_msg m;
	struct actor a;
	char *p;
	int uffd;

	probe_start();
	uffd = uffd_open(UFFD_FEATURE_EVENT_UNMAP);
	p = map_filled(3 * PAGE, 'o');
	CHECK(!uffd_register(uffd, p, 3 * PAGE, MISSING), "REGISTER works");
	actor_start(&a, map_over, p + PAGE);
	uffd_wait(uffd);
	CHECK(p[PAGE] == 0, "the new mapping is there while the event is unread");
	p[PAGE] = 'n';
	m = uffd_read(uffd);
	CHECK(m.event == UFFD_EVENT_UNMAP && m.arg.remove.start == (uintptr_t)p + PAGE &&
		      m.arg.remove.end == (uintptr_t)p + 2 * PAGE,
	      "MAP_FIXED sends UNMAP of what it replaces");
	actor_join(&a);
	CHECK(p[0] == 'o' && p[PAGE] == 'n' && p[2 * PAGE] == 'o', "what was written in between stays");
	CHECK(uffd_fill(uffd, p + PAGE, 'x') == -ENOENT, "the new mapping is not registered");
	return 0;
}
