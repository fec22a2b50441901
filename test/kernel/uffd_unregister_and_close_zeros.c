/* SPDX-License-Identifier: MIT */
/*
 * Fact: after UNREGISTER, and after the last descriptor is closed, a page that is
 * away reads as zeros, for a thread that already waits, too.  While another
 * process holds the descriptor a close changes nothing.
 */
#include "probe.h"

static int holder(int sock)
{
	int uffd = recv_fd(sock);
	char *p;

	say(sock, 1);
	p = (char *)(uintptr_t)hear(sock);
	uffd_read_fault(uffd, p);
	CHECK(!uffd_fill(uffd, p, 'h'), "COPY works");
	hear(sock);
	close(uffd);
	say(sock, 1);
	hear(sock);
	return 0;
}

int main(void)
{
	struct actor a;
	struct peer h;
	char *p, *q;
	int uffd;

	probe_start();
	h = peer_start(holder);
	uffd = uffd_open(0);
	p = map_registered(uffd, PAGE);
	actor_start(&a, touch_read, p);
	uffd_read_fault(uffd, p);
	CHECK(!actor_done(&a), "a page that is away is waited for");
	CHECK(!uffd_unregister(uffd, p, PAGE), "UNREGISTER works");
	actor_join(&a);
	CHECK(p[0] == 0, "after UNREGISTER it is zeros");

	q = map_registered(uffd, 2 * PAGE);
	send_fd(h.sock, uffd);
	hear(h.sock);
	close(uffd);
	say(h.sock, (uintptr_t)q);
	CHECK(q[0] == 'h', "while another process holds the descriptor faults are delivered");
	actor_start(&a, touch_read, q + PAGE);
	actor_wait_asleep(&a);
	say(h.sock, 1);
	hear(h.sock);
	actor_join(&a);
	CHECK(q[PAGE] == 0, "after the last close it is zeros");
	say(h.sock, 1);
	CHECK(!reap(h.pid), "the other side of this probe agrees");
	return 0;
}
