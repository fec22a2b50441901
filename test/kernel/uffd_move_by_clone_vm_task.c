/* SPDX-License-Identifier: MIT */
/*
 * Fact: a CLONE_VM task outside the thread group, with descriptors of its own,
 * may create the userfaultfd of the address space, pass it to another process,
 * and MOVE pages with it; the other process serves the faults.
 */
#include "probe.h"

struct agent {
	int sock, uffd, step;
	char *page, *staging;
	int move_rc;
};

static int agent_main(void *p)
{
	struct agent *a = p;

	a->uffd = uffd_open(UFFD_FEATURE_MOVE);
	send_fd(a->sock, a->uffd);
	say(a->sock, (uintptr_t)a->page);
	say(a->sock, (uintptr_t)a->staging);
	hear(a->sock); /* both registered */
	a->move_rc = uffd_move(a->uffd, a->staging, a->page, PAGE);
	say(a->sock, 1);
	flag_set(&a->step, 1);
	flag_wait(&a->step, 2);
	_exit(0);
}

static int program(int sock)
{
	struct agent a = {.sock = sock, .page = map_filled(PAGE, 'p'), .staging = map_anon(PAGE)};
	pid_t pid = agent_clone(agent_main, &a);
	int st;

	flag_wait(&a.step, 1);
	CHECK(!a.move_rc, "MOVE by a CLONE_VM task works (%d)", a.move_rc);
	CHECK(fcntl(a.uffd, F_GETFD) < 0, "the task's descriptors are its own");
	CHECK(all_bytes(a.staging, PAGE, 'p'), "the page is in staging");
	CHECK(all_bytes(a.page, PAGE, 'q'), "the other process serves the page that was moved away");
	flag_set(&a.step, 2);
	CHECK(waitpid(pid, &st, __WALL) == pid && !st, "the task ends");
	return 0;
}

int main(void)
{
	struct peer prog;
	char *page, *staging;
	int uffd;

	probe_start();
	close(uffd_open(UFFD_FEATURE_MOVE)); /* skips here, not in the child */
	prog = peer_start(program);
	uffd = recv_fd(prog.sock);
	page = (char *)(uintptr_t)hear(prog.sock);
	staging = (char *)(uintptr_t)hear(prog.sock);
	CHECK(!uffd_register(uffd, page, PAGE, MISSING), "REGISTER from another process works");
	CHECK(!uffd_register(uffd, staging, PAGE, MISSING), "REGISTER from another process works");
	say(prog.sock, 1);
	hear(prog.sock);
	uffd_read_fault(uffd, page);
	CHECK(!uffd_fill(uffd, page, 'q'), "COPY works");
	CHECK(!reap(prog.pid), "the program's side of this probe agrees");
	return 0;
}
