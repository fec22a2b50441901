/* SPDX-License-Identifier: MIT */
/*
 * Fact: get_robust_list(tid) asked from another process of the same user gives
 * each thread's list head, and with glibc that lies in the thread's control
 * block, which the kernel writes while the thread ends.  A CLONE_VM task
 * without one gives NULL.
 */
#include "probe.h"

#include <dirent.h>

#define THREADS 3
#define TCB 4096 /* glibc's struct pthread is below that */

static int sock_;

static void *thread_main(void *arg)
{
	*(uintptr_t *)arg = (uintptr_t)pthread_self();
	pause();
	return NULL;
}

static int program(int sock)
{
	static uintptr_t self[THREADS];
	pthread_t t;

	sock_ = sock;
	say(sock, (uintptr_t)pthread_self());
	for (int i = 0; i < THREADS; i++) {
		CHECK(!pthread_create(&t, NULL, thread_main, &self[i]), "a thread can be started");
		while (!__atomic_load_n(&self[i], __ATOMIC_ACQUIRE))
			sched_yield();
		say(sock, self[i]);
	}
	pause();
	return 0;
}

int main(void)
{
	uintptr_t self[THREADS + 1];
	struct dirent *d;
	struct peer prog;
	char path[64];
	int seen = 0;
	DIR *dir;

	probe_start();
	prog = peer_start(program);
	for (int i = 0; i <= THREADS; i++)
		self[i] = hear(prog.sock);
	snprintf(path, sizeof(path), "/proc/%d/task", prog.pid);
	dir = opendir(path);
	CHECK(dir, "the tasks of a process can be listed");
	while ((d = readdir(dir))) {
		void *head = NULL;
		size_t len = 0;
		bool found = false;

		if (d->d_name[0] == '.')
			continue;
		CHECK(!syscall(SYS_get_robust_list, atoi(d->d_name), &head, &len), "get_robust_list works");
		CHECK(len == 3 * sizeof(long), "the head has its size");
		for (int i = 0; i <= THREADS; i++)
			if ((uintptr_t)head >= self[i] && (uintptr_t)head < self[i] + TCB)
				found = true;
		CHECK(found, "the head of task %s (%p) is in a thread control block", d->d_name, head);
		seen++;
	}
	closedir(dir);
	CHECK(seen == THREADS + 1, "each thread is listed");
	kill(prog.pid, SIGKILL);
	reap(prog.pid);
	return 0;
}
