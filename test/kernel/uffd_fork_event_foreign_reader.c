/* SPDX-License-Identifier: MIT */
/*
 * Fact: fork() waits until its event is read; the child's descriptor comes to
 * the reader, in another process, too; COPY through it fills the child only and
 * through the parent's the parent only; the child cannot register what it
 * inherited with a descriptor of its own (EBUSY).
 */
#include "probe.h"

static int program(int sock)
{
	int uffd = uffd_open(UFFD_FEATURE_EVENT_FORK);
	char *p = map_registered(uffd, 2 * PAGE);
	pid_t child;

	send_fd(sock, uffd);
	say(sock, (uintptr_t)p);
	hear(sock);
	child = fork();
	CHECK(child >= 0, "fork works");
	if (!child) {
		int own = uffd_open(0);

		CHECK(uffd_register(own, p, 2 * PAGE, MISSING) == -EBUSY,
		      "registering what was inherited with another descriptor is EBUSY");
		CHECK(all_bytes(p, PAGE, 'c'), "the child reads what was copied through its descriptor");
		_exit(0);
	}
	CHECK(!reap(child), "the child's side of this probe agrees");
	CHECK(!present(p), "the parent's page is still away");
	CHECK(all_bytes(p, PAGE, 'p'), "the parent reads what was copied through its descriptor");
	return 0;
}

int main(void)
{
	struct peer prog;
	struct uffd_msg m;
	char *p;
	int uffd, child;

	probe_start();
	close(uffd_open(UFFD_FEATURE_EVENT_FORK)); /* skips here, not in the child */
	prog = peer_start(program);
	uffd = recv_fd(prog.sock);
	p = (char *)(uintptr_t)hear(prog.sock);
	say(prog.sock, 1);
	m = uffd_read(uffd);
	CHECK(m.event == UFFD_EVENT_FORK, "fork is told");
	child = (int)m.arg.fork.ufd;
	CHECK(fcntl(child, F_GETFD) >= 0, "the reader has the child's descriptor");
	uffd_read_fault(child, p);
	CHECK(!uffd_fill(child, p, 'c'), "COPY into the child works");
	uffd_read_fault(uffd, p);
	CHECK(!uffd_fill(uffd, p, 'p'), "COPY into the parent works");
	CHECK(!reap(prog.pid), "the program's side of this probe agrees");
	return 0;
}
