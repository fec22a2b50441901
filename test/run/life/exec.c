/* SPDX-License-Identifier: MIT */
/*
 * Programs that become other programs, most of their memory cold when they do:
 * again and again under one pid, without an environment, as a static program,
 * from a thread; and many small ones beside a large one.
 */
#include <pthread.h>
#include <spawn.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "../victim.h"

#define PAGES (36 * V_MIB / V_PAGE)
#define KIND V_QUARTER

extern char **environ;
static char self[512];

static char *fill(uint64_t seed)
{
	char *p = v_map(PAGES * V_PAGE);

	v_fill_all(p, PAGES, seed, 0, KIND);
	return p;
}

/* It is on less memory than it needs, as what has become it was; but for a static program, which nobody enters. */
static bool is_managed(const char *p)
{
#ifdef STATIC
	return true;
#else
	size_t away = v_absent(p, PAGES);

	/* Who has only just filled its memory is ahead of what moves it; nobody moves what is not managed, however
	 * long. */
	for (unsigned tries = 0; away < PAGES / 10 && tries < 3000; tries++) {
		usleep(10000);
		away = v_absent(p, PAGES);
	}
	if (away < PAGES / 10)
		fprintf(stderr, "%d: only %zu of %zu pages are away\n", (int)getpid(), away, (size_t)PAGES);
	return away >= PAGES / 10 && v_is_entered();
#endif
}

/* Link @n of a chain: what it holds is its own, and right; then it becomes link n - 1. */
static int chain(unsigned n)
{
	char number[16];
	char *argv[] = {self, "chain", number, NULL}, *none[] = {NULL};
	char *p = fill(n);

	if (v_check_all(p, PAGES, n, 0, KIND) || !is_managed(p))
		return 1;
	if (!n)
		return 0;
	snprintf(number, sizeof(number), "%u", n - 1);
	execve(self, argv, n & 1 ? none : environ);
	perror("execve");
	return 1;
}

static void *exec_here(void *arg)
{
	char *argv[] = {self, "chain", "2", NULL};

	execv(self, argv);
	return NULL;
}

/* The thread that calls exec is not the first one. */
static int from_thread(void)
{
	pthread_t t;
	char *p = fill(50);

	if (v_check_all(p, PAGES, 50, 0, KIND) || pthread_create(&t, NULL, exec_here, NULL))
		return 1;
	pthread_join(t, NULL);
	return 1;
}

static int become(char **argv)
{
	char *p = fill(60);

	if (v_check_all(p, PAGES, 60, 0, KIND))
		return 1;
	execvp(argv[0], argv);
	perror(argv[0]);
	return 1;
}

/* By a raw call, once there is a byte to read: nothing of its memory is asked for any more. */
static int become_when_told(char **argv)
{
	char *p = fill(60), c;

	if (v_check_all(p, PAGES, 60, 0, KIND) || write(1, "told\n", 5) != 5 || read(0, &c, 1) != 1)
		return 1;
	syscall(SYS_execve, argv[0], argv, environ);
	return 1;
}

static void *spawner(void *arg)
{
	char *argv[] = {self, "small", NULL};
	uintptr_t bad = 0;

	for (unsigned i = 0; i < 25 && !bad; i++) {
		pid_t pid;
		int status;

		bad = posix_spawn(&pid, self, NULL, NULL, argv, environ) || waitpid(pid, &status, 0) != pid || status;
	}
	if (bad)
		fprintf(stderr, "a small one did not end well\n");
	return (void *)bad;
}

/* Many small ones at a time, beside a large one. */
static int storm(void)
{
	char *p = fill(70);
	pthread_t t[4];
	void *ret;
	int bad = 0;

	for (unsigned i = 0; i < 4; i++)
		bad |= pthread_create(&t[i], NULL, spawner, NULL);
	for (unsigned round = 0; round < 3; round++)
		bad |= v_check_all(p, PAGES, 70, 0, KIND) != 0;
	for (unsigned i = 0; i < 4; i++)
		bad |= pthread_join(t[i], &ret) || ret;
	return bad || v_check_all(p, PAGES, 70, 0, KIND);
}

static int small(void)
{
	char *p = v_map(64 * V_PAGE);

	v_fill_all(p, 64, 3, 0, KIND);
	return v_check_all(p, 64, 3, 0, KIND) || !v_is_entered();
}

/* Nothing, until nobody can say anything any more. */
static int waits(void)
{
	char c;

	return read(0, &c, 1) != 0;
}

int main(int argc, char **argv)
{
	ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);

	if (n <= 0 || argc < 2)
		return 2;
	if (!strcmp(argv[1], "chain"))
		return chain(argc > 2 ? (unsigned)atoi(argv[2]) : 4);
	if (!strcmp(argv[1], "from-thread"))
		return from_thread();
	if (!strcmp(argv[1], "become") && argc > 2)
		return become(argv + 2);
	if (!strcmp(argv[1], "become-when-told") && argc > 2)
		return become_when_told(argv + 2);
	if (!strcmp(argv[1], "storm"))
		return storm();
	if (!strcmp(argv[1], "small"))
		return small();
	if (!strcmp(argv[1], "waits"))
		return waits();
	return 2;
}
