/* SPDX-License-Identifier: MIT */
/*
 * Fact: in one read page faults come before events, whatever came first.
 */
#include "probe.h"

static void unmap(void *p)
{
	CHECK(!munmap(p, PAGE), "munmap works");
}

int main(void)
{
	struct actor changer, toucher;
	struct uffd_msg m[4];
	char *victim, *p;
	int uffd;

	probe_start();
	uffd = uffd_open(UFFD_FEATURE_EVENT_UNMAP);
	victim = map_registered(uffd, PAGE);
	p = map_registered(uffd, PAGE);
	actor_start(&changer, unmap, victim);
	uffd_wait(uffd);
	actor_start(&toucher, touch_read, p);
	actor_wait_asleep(&toucher);
	CHECK(read(uffd, m, sizeof(m)) == 2 * sizeof(m[0]), "two messages are there");
	CHECK(m[0].event == UFFD_EVENT_PAGEFAULT && m[1].event == UFFD_EVENT_UNMAP,
	      "the fault comes first though the event is older (%#x, %#x)", m[0].event, m[1].event);
	actor_join(&changer);
	CHECK(!uffd_fill(uffd, p, 'x'), "COPY works");
	actor_join(&toucher);
	return 0;
}
