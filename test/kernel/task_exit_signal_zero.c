/* SPDX-License-Identifier: MIT */
/*
 * Fact: a CLONE_VM task with exit signal 0 is not seen by waitpid(-1), neither
 * alive nor dead, and outlives the program's exit_group, its fatal signal and
 * its execve.
 */
#include "probe.h"

struct agent {
	int sock, step;
};

static int agent_main(void *p)
{
	struct agent *a = p;

	say(a->sock, (uint64_t)getpid());
	flag_set(&a->step, 1);
	hear(a->sock);
	say(a->sock, 0xa11fe);
	hear(a->sock);
	_exit(0);
}

static pid_t start(struct agent *a, int sock)
{
	pid_t pid;

	*a = (struct agent){.sock = sock};
	pid = agent_clone(agent_main, a);
	flag_wait(&a->step, 1);
	return pid;
}

static int exits(int sock)
{
	static struct agent a;
	int st;

	start(&a, sock);
	CHECK(waitpid(-1, &st, WNOHANG) < 0 && errno == ECHILD, "waitpid(-1, WNOHANG) sees no child");
	CHECK(waitpid(-1, &st, 0) < 0 && errno == ECHILD, "waitpid(-1) sees no child");
	CHECK(waitpid(-1, &st, __WALL | WNOHANG) == 0, "waitpid(-1, __WALL) does see it");
	return 7;
}

static int killed(int sock)
{
	static struct agent a;

	start(&a, sock);
	kill(getpid(), SIGTERM);
	return 0;
}

/* A dead agent is not seen either, and its death sends no signal. */
static int dead(int sock)
{
	static struct agent a;
	struct pollfd p = {.events = POLLIN};
	sigset_t chld, pending;
	pid_t pid;
	int st;

	sigemptyset(&chld);
	sigaddset(&chld, SIGCHLD);
	sigprocmask(SIG_BLOCK, &chld, NULL);
	pid = start(&a, sock);
	p.fd = pidfd_open_(pid);
	kill(pid, SIGKILL);
	CHECK(poll(&p, 1, -1) == 1, "the task ends");
	CHECK(waitpid(-1, &st, 0) < 0 && errno == ECHILD, "waitpid(-1) does not see the dead task");
	sigpending(&pending);
	CHECK(!sigismember(&pending, SIGCHLD), "its end sends no SIGCHLD");
	CHECK(waitpid(pid, &st, __WALL) == pid, "with __WALL it can be reaped");
	return 0;
}

static int execs(int sock)
{
	static struct agent a;

	start(&a, sock);
	execl("/proc/self/exe", "second", "second", NULL);
	return 1;
}

static void outlives(int (*fn)(int), int want, const char *what)
{
	struct peer prog = peer_start(fn);
	struct pollfd p = {.events = POLLIN};
	pid_t agent = (pid_t)hear(prog.sock);
	int st;

	p.fd = pidfd_open_(agent);
	st = reap(prog.pid);
	CHECK(st == want, "the program ends by %s (%d)", what, st);
	CHECK(poll(&p, 1, 0) == 0, "the task outlives %s", what);
	say(prog.sock, 1);
	CHECK(hear(prog.sock) == 0xa11fe, "the task runs on after %s", what);
	say(prog.sock, 1);
	CHECK(poll(&p, 1, -1) == 1, "the task ends when told");
	close(p.fd);
	close(prog.sock);
}

int main(int argc, char **argv)
{
	struct peer prog;

	probe_start();
	if (argc == 2)
		return 9;
	outlives(exits, 7, "exit_group");
	outlives(killed, 128 + SIGTERM, "a fatal signal");
	outlives(execs, 9, "execve and exit");
	prog = peer_start(dead);
	hear(prog.sock);
	CHECK(!reap(prog.pid), "the program's side of this probe agrees");
	return 0;
}
