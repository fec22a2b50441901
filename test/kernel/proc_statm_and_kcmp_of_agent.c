/* SPDX-License-Identifier: MIT */
/*
 * Fact: /proc/AGENT/statm is the RSS of the address space that a CLONE_VM task
 * stands in, also when the program has called execve; kcmp(KCMP_VM) tells
 * whether both still share one.  A task that has ended and not been waited for has
 * none: its statm is zeros, and two of them are the same to KCMP_VM.
 */
#include "probe.h"

#include <linux/kcmp.h>

#define PAGES 4096

struct agent {
	int sock, step;
};

static int agent_main(void *p)
{
	struct agent *a = p;

	say(a->sock, (uint64_t)getpid());
	flag_set(&a->step, 1);
	hear(a->sock);
	_exit(0);
}

static int program(int sock)
{
	struct agent a = {.sock = side_channel(sock)};
	char num[16];

	map_filled(PAGES * PAGE, 1);
	agent_clone(agent_main, &a);
	flag_wait(&a.step, 1);
	hear(sock);
	fcntl(sock, F_SETFD, 0);
	snprintf(num, sizeof(num), "%d", sock);
	execl("/proc/self/exe", "second", num, NULL);
	return 1;
}

static long rss(pid_t pid)
{
	char path[64];
	long size, n;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/statm", pid);
	f = fopen(path, "r");
	CHECK(f && fscanf(f, "%ld %ld", &size, &n) == 2, "statm can be read");
	fclose(f);
	return n;
}

int main(int argc, char **argv)
{
	struct peer prog;
	pid_t agent, ended[2];
	int side;
	long rc;

	probe_start();
	if (argc == 2) {
		say(atoi(argv[1]), 1);
		pause();
		return 0;
	}
	prog = peer_start(program);
	side = recv_fd(prog.sock);
	agent = (pid_t)hear(side);

	rc = syscall(SYS_kcmp, agent, prog.pid, KCMP_VM, 0ul, 0ul);
	if (rc < 0 && (errno == ENOSYS || errno == EPERM))
		SKIP("no kcmp here (%s)", strerror(errno));
	CHECK(rc == 0, "kcmp says that agent and program share an address space (%ld)", rc);
	CHECK(rss(agent) >= PAGES, "statm of the agent is that of the address space");
	say(prog.sock, 1);
	CHECK(hear(prog.sock) == 1, "the program has called execve");
	CHECK(syscall(SYS_kcmp, agent, prog.pid, KCMP_VM, 0ul, 0ul) > 0,
	      "kcmp says that they share no address space after execve");
	CHECK(rss(agent) >= PAGES, "statm of the agent is that of the old address space");
	CHECK(rss(prog.pid) < PAGES, "statm of the program is that of the new image");
	kill(agent, SIGKILL);
	kill(prog.pid, SIGKILL);
	reap(prog.pid);

	for (int i = 0; i < 2; i++) {
		siginfo_t si;

		ended[i] = fork();
		if (!ended[i])
			_exit(0);
		CHECK(!waitid(P_PID, (id_t)ended[i], &si, WEXITED | WNOWAIT), "a child ends");
	}
	CHECK(!syscall(SYS_kcmp, ended[0], ended[1], KCMP_VM, 0ul, 0ul), "two that have ended are the same to kcmp");
	CHECK(syscall(SYS_kcmp, ended[0], getpid(), KCMP_VM, 0ul, 0ul) > 0, "but not the same as one that lives");
	CHECK(rss(ended[0]) == 0 && rss(getpid()) > 0, "statm of one that has ended is zeros");
	reap(ended[0]);
	reap(ended[1]);
	return 0;
}
