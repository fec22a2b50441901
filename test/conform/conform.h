/* SPDX-License-Identifier: MIT */
/*
 * What a program for the kernel's dmirror has: the interface, and memory to try
 * it on.  Nothing here knows of hmm.
 *
 * Each test runs in a process of its own, forked before anything is opened, and
 * ends it with _exit().
 */
#ifndef CONFORM_H
#define CONFORM_H

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096ul
#define NPAGES 1024ul
#define SIZE (NPAGES * PAGE)
#define HUGE_SIZE (2ul << 20)

struct command {
	uint64_t addr, ptr, npages;
	uint64_t cpages, faults; /* out */
};

enum {
	READ,
	WRITE,
	MIGRATE_TO_DEV,
	MIGRATE_TO_SYS,
	SNAPSHOT,
	EXCLUSIVE,
	CHECK_EXCLUSIVE,
	RELEASE,
	FLAGS,
	READ_UNLOCKED
};

#define REQUEST(n) _IOWR('H', n, struct command)

/* Bytes of a snapshot. */
#define P_ERROR 0xff
#define P_NONE 0x00
#define P_READ 0x01
#define P_WRITE 0x02
#define P_PMD 0x04
#define P_PUD 0x08
#define P_ZERO 0x10
#define P_PRIVATE_LOCAL 0x20
#define P_COHERENT_LOCAL 0x40
#define P_COHERENT_REMOTE 0x50

#define CHECK(cond)                                                                   \
	do {                                                                          \
		if (!(cond)) {                                                        \
			printf("    %s:%d: not so: %s\n", __FILE__, __LINE__, #cond); \
			fflush(stdout);                                               \
			_exit(1);                                                     \
		}                                                                     \
	} while (0)

#define CHECK_EQ(a, b)                                                                               \
	do {                                                                                         \
		long long a_ = (long long)(a), b_ = (long long)(b);                                  \
		if (a_ != b_) {                                                                      \
			printf("    %s:%d: %s is %lld, not %lld\n", __FILE__, __LINE__, #a, a_, b_); \
			fflush(stdout);                                                              \
			_exit(1);                                                                    \
		}                                                                                    \
	} while (0)

/* This cannot run here: the group may pass without it, and "make test" counts the line. */
#define SKIP(why)                                        \
	do {                                             \
		printf("SKIP: %s: %s\n", __func__, why); \
		fflush(stdout);                          \
		_exit(77);                               \
	} while (0)

struct variant {
	const char *name;
	int dev, other; /* the number of each; both of one kind */
	bool coherent;
};

struct test {
	const char *name;
	void (*run)(const struct variant *v);
};

static inline int dev_open(int nr)
{
	char path[32];
	int fd;

	snprintf(path, sizeof(path), "/dev/hmm_dmirror%d", nr);
	fd = open(path, O_RDWR, 0);
	if (fd < 0) {
		if (errno == EPERM || errno == EOPNOTSUPP || errno == ENOENT)
			SKIP(strerror(errno));
		printf("    %s: %s\n", path, strerror(errno));
		fflush(stdout);
		_exit(1);
	}
	return fd;
}

/* 0 or -errno; *cmd: what came out. */
static inline int dev_cmd(int fd, unsigned n, const void *addr, void *ptr, uint64_t npages, struct command *cmd)
{
	*cmd = (struct command){
		.addr = (uintptr_t)addr, .ptr = (uintptr_t)ptr, .npages = npages, .cpages = 999, .faults = 999};
	for (;;) {
		if (!ioctl(fd, REQUEST(n), cmd))
			return 0;
		if (errno != EINTR)
			return -errno;
	}
}

static inline char *map(size_t size, int prot, int flags)
{
	char *p = mmap(NULL, size, prot, flags, -1, 0);

	CHECK(p != MAP_FAILED);
	return p;
}

/* SIZE bytes in small pages. */
static inline char *anon(void)
{
	char *p = map(SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);

	CHECK_EQ(madvise(p, SIZE, MADV_NOHUGEPAGE), 0);
	return p;
}

/* @size bytes of which huge pages may be made, aligned to one. */
static inline char *huge(size_t size)
{
	char *p = map(size + HUGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);

	p = (char *)(((uintptr_t)p + HUGE_SIZE - 1) & ~(HUGE_SIZE - 1));
	CHECK_EQ(madvise(p, size, MADV_HUGEPAGE), 0);
	return p;
}

static inline void number(void *p, size_t size, unsigned plus)
{
	unsigned *v = p;

	for (size_t i = 0; i < size / sizeof(*v); i++)
		v[i] = (unsigned)i + plus;
}

/* The number of the first word that is wrong, or -1. */
static inline long misnumbered(const void *p, size_t size, unsigned plus)
{
	const unsigned *v = p;

	for (size_t i = 0; i < size / sizeof(*v); i++)
		if (v[i] != (unsigned)i + plus)
			return (long)i;
	return -1;
}

#define CHECK_NUMBERED(p, size, plus) CHECK_EQ(misnumbered(p, size, plus), -1)

static inline bool all_zero(const char *p, size_t size)
{
	for (size_t i = 0; i < size; i++)
		if (p[i])
			return false;
	return true;
}

/* What a written page of this kind of device looks like to the device itself. */
static inline int local(const struct variant *v)
{
	return (v->coherent ? P_COHERENT_LOCAL : P_PRIVATE_LOCAL) | P_WRITE;
}

static inline void check_snapshot(int fd, const char *p, size_t npages, int what)
{
	unsigned char snap[NPAGES];
	struct command c;

	CHECK(npages <= NPAGES);
	CHECK_EQ(dev_cmd(fd, SNAPSHOT, p, snap, npages, &c), 0);
	for (size_t i = 0; i < npages; i++)
		CHECK_EQ(snap[i], what);
}

static inline void migrate_all(int fd, char *p, char *buf, size_t npages)
{
	struct command c;

	CHECK_EQ(dev_cmd(fd, MIGRATE_TO_DEV, p, buf, npages, &c), 0);
	CHECK_EQ(c.cpages, npages);
}

/* One huge page that is written from @plus on; skipped where there is none to be had. */
static inline char *huge_page(int fd, unsigned plus)
{
	char *p = huge(HUGE_SIZE);
	unsigned char snap;
	struct command c;

	number(p, HUGE_SIZE, plus);
	CHECK_EQ(dev_cmd(fd, SNAPSHOT, p, &snap, 1, &c), 0);
	if (snap != (P_WRITE | P_PMD))
		SKIP("no huge page to be had");
	return p;
}

/* Ends a test that stands still: generous, and never what decides. */
#define WATCHDOG_S 120

/* Run @t in a child.  0, 77 skipped, else failed. */
static inline int run_one(const struct test *t, const struct variant *v)
{
	sigset_t chld, old;
	struct timespec patience = {.tv_sec = WATCHDOG_S};
	int status = -1;
	pid_t pid;

	sigemptyset(&chld);
	sigaddset(&chld, SIGCHLD);
	sigprocmask(SIG_BLOCK, &chld, &old);
	fflush(stdout);
	pid = fork();
	if (!pid) {
		sigprocmask(SIG_SETMASK, &old, NULL);
		t->run(v);
		fflush(stdout);
		_exit(0);
	}
	int sig;
	while ((sig = sigtimedwait(&chld, NULL, &patience)) < 0 && errno == EINTR)
		;
	if (sig < 0) {
		printf("    it stands still\n");
		kill(pid, SIGKILL);
	}
	if (waitpid(pid, &status, 0) != pid)
		status = -1;
	sigprocmask(SIG_SETMASK, &old, NULL);
	if (WIFEXITED(status))
		return WEXITSTATUS(status);
	printf("    ended by signal %d\n", WTERMSIG(status));
	return 1;
}

/* All of @tests on each of @variants, or those whose name begins with argv[1]. */
static inline int run_all(const struct test *tests, const struct variant *variants, int argc, char **argv)
{
	unsigned passed = 0, failed = 0, skipped = 0;

	for (const struct variant *v = variants; v->name; v++) {
		for (const struct test *t = tests; t->name; t++) {
			int rc;

			if (argc > 1 && strncmp(t->name, argv[1], strlen(argv[1])))
				continue;
			rc = run_one(t, v);
			printf("%s %s %s\n", rc == 0 ? "ok  " : rc == 77 ? "skip" : "FAIL", v->name, t->name);
			fflush(stdout);
			if (rc == 77)
				skipped++;
			else if (rc)
				failed++;
			else
				passed++;
		}
	}
	printf("%u passed, %u failed, %u skipped\n", passed, failed, skipped);
	return failed ? 1 : passed ? 0 : 77;
}

static const struct variant variants[] __attribute__((unused)) = {
	{"private", 0, 1, false},
	{"coherent", 2, 3, true},
	{0},
};

#endif
