/* SPDX-License-Identifier: MIT */
/*
 * Fact: UFFD_FEATURE_THREAD_ID gives the id of the faulting thread, as the
 * faulting thread's own pid namespace has it: not as the reader's.
 */
#include "probe.h"

static int faulter(int sock)
{
	int uffd = uffd_open(UFFD_FEATURE_THREAD_ID);
	char *p = map_registered(uffd, 2 * PAGE);
	struct actor a;

	send_fd(sock, uffd);
	say(sock, (uintptr_t)p);
	actor_start(&a, touch_read, p);
	say(sock, (uint64_t)a.tid);
	actor_join(&a);
	return 0;
}

static int in_namespace(int sock)
{
	pid_t pid;

	if (unshare(CLONE_NEWPID)) {
		say(sock, 0);
		return 0;
	}
	say(sock, 1);
	pid = fork();
	CHECK(pid >= 0, "fork works");
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		_exit(faulter(sock));
	}
	return reap(pid);
}

static uint32_t serve(struct peer *prog, uint32_t *tid)
{
	int uffd = recv_fd(prog->sock);
	char *p = (char *)(uintptr_t)hear(prog->sock);
	struct uffd_msg m;

	*tid = (uint32_t)hear(prog->sock);
	m = uffd_read(uffd);
	CHECK(m.event == UFFD_EVENT_PAGEFAULT, "a fault is delivered");
	CHECK(!uffd_fill(uffd, p, 'x'), "COPY works");
	CHECK(!reap(prog->pid), "the program's side of this probe agrees");
	return m.arg.pagefault.feat.ptid;
}

int main(void)
{
	struct peer prog;
	uint32_t tid, got;

	probe_start();
	close(uffd_open(UFFD_FEATURE_THREAD_ID)); /* skips here, not in the child */
	prog = peer_start(faulter);
	got = serve(&prog, &tid);
	CHECK(got == tid && got != (uint32_t)prog.pid, "the message has the thread's id (%u, %u)", got, tid);

	prog = peer_start(in_namespace);
	if (!hear(prog.sock))
		SKIP("no right to make a pid namespace; what is in one namespace is so");
	got = serve(&prog, &tid);
	CHECK(got == tid && tid < 10, "across namespaces it is the faulting side's number (%u, %u)", got, tid);
	return 0;
}
