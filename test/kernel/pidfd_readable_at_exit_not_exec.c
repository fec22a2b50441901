/* SPDX-License-Identifier: MIT */
/*
 * Fact: the pidfd of a program's leader polls readable when all its threads are
 * gone: not at execve, not when only the leader has ended; also while a
 * CLONE_VM task of it lives on.
 */
#include "probe.h"

static int agent_main(void *p)
{
	alarm(PROBE_SECONDS);
	flag_set(p, 1);
	while (true)
		pause();
	return 0;
}

static void *last_thread(void *p)
{
	int sock = *(int *)p;

	while (task_state(getpid()) != 'Z')
		sched_yield();
	say(sock, 2);
	hear(sock);
	syscall(SYS_exit_group, 5);
	return NULL;
}

static int program(int sock)
{
	static int up;
	char num[16];

	say(sock, (uint64_t)agent_clone(agent_main, &up));
	flag_wait(&up, 1);
	hear(sock);
	fcntl(sock, F_SETFD, 0);
	snprintf(num, sizeof(num), "%d", sock);
	execl("/proc/self/exe", "second", num, NULL);
	return 1;
}

int main(int argc, char **argv)
{
	struct pollfd p = {.events = POLLIN};
	struct peer prog;
	pid_t agent;

	probe_start();
	if (argc == 2) {
		static int sock;
		pthread_t t;

		sock = atoi(argv[1]);
		say(sock, 1);
		hear(sock);
		CHECK(!pthread_create(&t, NULL, last_thread, &sock), "a thread can be started");
		pthread_exit(NULL);
	}
	prog = peer_start(program);
	agent = (pid_t)hear(prog.sock);
	p.fd = pidfd_open_(prog.pid);
	CHECK(poll(&p, 1, 0) == 0, "not readable while it runs");
	say(prog.sock, 1);
	CHECK(hear(prog.sock) == 1, "the program has called execve");
	CHECK(poll(&p, 1, 0) == 0, "not readable at execve");
	say(prog.sock, 1);
	CHECK(hear(prog.sock) == 2, "its leader has ended");
	CHECK(poll(&p, 1, 0) == 0, "not readable while a thread runs");
	say(prog.sock, 1);
	CHECK(poll(&p, 1, -1) == 1 && (p.revents & POLLIN), "readable when all threads are gone");
	CHECK(!kill(agent, 0), "the task in the old address space is no part of that");
	kill(agent, SIGKILL);
	CHECK(reap(prog.pid) == 5, "its status is there");
	return 0;
}
