/* SPDX-License-Identifier: MIT */
/*
 * Huge pages: all that small ones go through, where a mapping is one huge page,
 * or was, or would be.
 */
#include <sched.h>
#include <sys/uio.h>

#include "conform.h"

#define HUGE_PAGES (HUGE_SIZE / PAGE)

static char *buffer(void)
{
	return map(HUGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
}

/* A child writes through a device of its own, where the pages are the system's and where they are the device's. */
static void a_child_has_its_own(const struct variant *v)
{
	for (unsigned on_device = 0; on_device < 2; on_device++) {
		int fd = dev_open(v->dev), status;
		char *p = huge_page(fd, 1), *buf = buffer();
		struct command c;
		pid_t pid;

		if (on_device)
			migrate_all(fd, p, buf, HUGE_PAGES);
		number(buf, HUGE_SIZE, 50);
		pid = fork();
		if (!pid) {
			int mine = dev_open(0);

			CHECK_NUMBERED(p, HUGE_SIZE, 1);
			CHECK_EQ(dev_cmd(mine, WRITE, p, buf, HUGE_PAGES, &c), 0);
			CHECK_EQ(c.faults, 1);
			CHECK_NUMBERED(p, HUGE_SIZE, 50);
			migrate_all(mine, p, buf, HUGE_PAGES);
			CHECK_NUMBERED(buf, HUGE_SIZE, 50);
			CHECK_NUMBERED(p, HUGE_SIZE, 50);
			_exit(0);
		}
		CHECK_EQ(waitpid(pid, &status, 0), pid);
		CHECK_EQ(status, 0);
		CHECK_NUMBERED(p, HUGE_SIZE, 1);
		/* Alone again, it goes as ever. */
		migrate_all(fd, p, buf, HUGE_PAGES);
		CHECK_NUMBERED(buf, HUGE_SIZE, 1);
		CHECK_NUMBERED(p, HUGE_SIZE, 1);
		close(fd);
	}
}

static void the_parent_writes_after_fork(const struct variant *v)
{
	int fd = dev_open(v->dev), go[2], status;
	char *p = huge_page(fd, 1), *buf = buffer(), byte;
	pid_t pid;

	migrate_all(fd, p, buf, HUGE_PAGES);
	CHECK_EQ(pipe(go), 0);
	pid = fork();
	if (!pid) {
		close(go[1]);
		CHECK_EQ(read(go[0], &byte, 1), 0);
		CHECK_NUMBERED(p, HUGE_SIZE, 1);
		_exit(0);
	}
	number(p, HUGE_SIZE, 2);
	for (size_t i = 0; i < HUGE_PAGES; i += 64)
		check_snapshot(fd, p + i * PAGE, 1, P_WRITE);
	close(go[1]);
	CHECK_EQ(waitpid(pid, &status, 0), pid);
	CHECK_EQ(status, 0);
	CHECK_NUMBERED(p, HUGE_SIZE, 2);
}

/* Never touched, or read: huge pages of zeros, written by nobody; with a large allocation that fails, and without. */
static void nothing_but_zeros(const struct variant *v)
{
	int fd = dev_open(v->dev);
	char *buf = buffer();

	for (unsigned how = 0; how < 8; how++) {
		bool readonly = how & 1, touched = how & 2, fails = how & 4;
		char *p = huge(HUGE_SIZE);
		struct command c;

		if (readonly)
			CHECK_EQ(mprotect(p, HUGE_SIZE, PROT_READ), 0);
		if (touched)
			(void)*(volatile char *)p;
		if (fails)
			CHECK_EQ(dev_cmd(fd, FLAGS, NULL, NULL, 1, &c), 0);
		memset(buf, 0xff, HUGE_SIZE);
		migrate_all(fd, p, buf, HUGE_PAGES);
		CHECK(all_zero(buf, HUGE_SIZE));
		CHECK_EQ(dev_cmd(fd, WRITE, p, buf, 1, &c), readonly ? -EPERM : 0);
		CHECK_EQ(p[2048 * sizeof(int)], 0);
		CHECK(all_zero(p, HUGE_SIZE));
		CHECK_EQ(munmap(p, HUGE_SIZE), 0);
		CHECK_EQ(dev_cmd(fd, FLAGS, NULL, NULL, 2, &c), 0); /* not 1; 0 is refused */
	}
}

/* MADV_FREE while the device has it: then each page is what it was, or zeros. */
static void freed_on_the_device(const struct variant *v)
{
	int fd = dev_open(v->dev);
	char *p = huge_page(fd, 1), *buf = buffer();

	migrate_all(fd, p, buf, HUGE_PAGES);
	CHECK_NUMBERED(buf, HUGE_SIZE, 1);
	CHECK_EQ(madvise(p, HUGE_SIZE, MADV_FREE), 0);
	for (size_t at = 0; at < HUGE_SIZE; at += PAGE)
		CHECK(misnumbered(p + at, PAGE, 1 + at / 4) < 0 || all_zero(p + at, PAGE));
	number(p, HUGE_SIZE, 2);
	migrate_all(fd, p, buf, HUGE_PAGES);
	CHECK_NUMBERED(buf, HUGE_SIZE, 2);
	CHECK_NUMBERED(p, HUGE_SIZE, 2);
}

static const size_t quarter[] = {0, HUGE_SIZE / 4, HUGE_SIZE / 2};

/* A part of it goes: at the start, in the middle, at the end. */
static void partial_munmap(const struct variant *v)
{
	for (unsigned i = 0; i < 3; i++) {
		int fd = dev_open(v->dev);
		char *p = huge_page(fd, 1), *buf = buffer();
		size_t first = quarter[i], end = first + HUGE_SIZE / 2;

		migrate_all(fd, p, buf, HUGE_PAGES);
		CHECK_NUMBERED(buf, HUGE_SIZE, 1);
		CHECK_EQ(munmap(p + first, HUGE_SIZE / 2), 0);
		check_snapshot(fd, p + first, HUGE_PAGES / 2, P_ERROR);
		/* What is left is no huge page any more. */
		if (first && !v->coherent)
			check_snapshot(fd, p, first / PAGE, local(v));
		CHECK_NUMBERED(p, first, 1);
		CHECK_NUMBERED(p + end, HUGE_SIZE - end, 1 + end / 4);
		close(fd);
	}
}

/* Before and after migration, to places that are aligned to it and not, and with the old place kept. */
static void moved_mappings(const struct variant *v)
{
	for (unsigned how = 0; how < 12; how++) {
		bool before = how & 1, dontunmap = how & 2;
		int fd = dev_open(v->dev), flags = MREMAP_MAYMOVE | MREMAP_FIXED | (dontunmap ? MREMAP_DONTUNMAP : 0);
		char *room = map(4 * HUGE_SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS), *buf = buffer(), *p, *to;

		to = (char *)(((uintptr_t)room + HUGE_SIZE) & ~(HUGE_SIZE - 1)) + quarter[how / 4];
		p = huge_page(fd, 1);
		if (!before)
			migrate_all(fd, p, buf, HUGE_PAGES);
		CHECK(mremap(p, HUGE_SIZE, HUGE_SIZE, flags, to) == to);
		if (before) {
			migrate_all(fd, to, buf, HUGE_PAGES);
			CHECK_NUMBERED(buf, HUGE_SIZE, 1);
		} else if (!v->coherent) {
			check_snapshot(fd, to + HUGE_SIZE - PAGE, 1, local(v) | (quarter[how / 4] ? 0 : P_PMD));
		}
		if (dontunmap)
			CHECK(all_zero(p, HUGE_SIZE));
		CHECK_NUMBERED(to, HUGE_SIZE, 1);
		close(fd);
	}
}

/* The same within one mapping: moved right behind itself, where a piece of it was. */
static void moved_beside_itself(const struct variant *v)
{
	for (unsigned how = 0; how < 24; how++) {
		bool before = how & 1, dontunmap = how & 2, small = how & 4;
		int fd = dev_open(v->dev), flags = MREMAP_MAYMOVE | MREMAP_FIXED | (dontunmap ? MREMAP_DONTUNMAP : 0);
		char *all = map(8 * HUGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS), *buf = buffer();
		char *p = (char *)(((uintptr_t)all + HUGE_SIZE) & ~(HUGE_SIZE - 1));
		char *to = p + HUGE_SIZE + quarter[how / 8];

		CHECK_EQ(madvise(p, HUGE_SIZE, small ? MADV_NOHUGEPAGE : MADV_HUGEPAGE), 0);
		CHECK_EQ(munmap(p + HUGE_SIZE, 2 * HUGE_SIZE), 0);
		number(p, HUGE_SIZE, 1);
		if (before)
			CHECK(mremap(p, HUGE_SIZE, HUGE_SIZE, flags, to) == to);
		migrate_all(fd, before ? to : p, buf, HUGE_PAGES);
		CHECK_NUMBERED(buf, HUGE_SIZE, 1);
		if (!before)
			CHECK(mremap(p, HUGE_SIZE, HUGE_SIZE, flags, to) == to);
		CHECK_NUMBERED(to, HUGE_SIZE, 1);
		if (dontunmap)
			CHECK(all_zero(p, HUGE_SIZE));
		/* What lies around is what it was. */
		CHECK(all_zero(p + 3 * HUGE_SIZE, HUGE_SIZE));
		munmap(to, HUGE_SIZE);
		munmap(all, 8 * HUGE_SIZE);
		close(fd);
	}
}

static double seconds(const struct timespec *from, const struct timespec *to)
{
	return (double)(to->tv_sec - from->tv_sec) + (double)(to->tv_nsec - from->tv_nsec) / 1e9;
}

/* There and back, once to warm up; what counts is that all pages go and come. */
static void throughput(const struct variant *v)
{
	int fd = dev_open(v->dev);
	size_t most = getenv("HMM_TEST_LONG") ? 256ul << 20 : 16ul << 20;

	for (size_t size = 512ul << 10; size <= most; size *= 2) {
		char *buf = map(size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);

		memset(buf, 1, size);
		for (unsigned large = 0; large < 2; large++) {
			char *p = huge(size);
			struct timespec t[3];
			struct command c;

			if (!large)
				CHECK_EQ(madvise(p, size, MADV_NOHUGEPAGE), 0);
			number(p, size, 1);
			for (unsigned round = 0; round < 2; round++) {
				clock_gettime(CLOCK_MONOTONIC, &t[0]);
				migrate_all(fd, p, buf, size / PAGE);
				clock_gettime(CLOCK_MONOTONIC, &t[1]);
				CHECK_EQ(dev_cmd(fd, MIGRATE_TO_SYS, p, buf, size / PAGE, &c), 0);
				clock_gettime(CLOCK_MONOTONIC, &t[2]);
				CHECK_EQ(c.cpages, size / PAGE);
				CHECK_NUMBERED(p, size, 1);
			}
			printf("    %6zu KiB, %s pages: %.2f GB/s there, %.2f GB/s back\n", size >> 10,
			       large ? "huge" : "small", (double)size / seconds(&t[0], &t[1]) / 1e9,
			       (double)size / seconds(&t[1], &t[2]) / 1e9);
			munmap(p, size);
		}
		munmap(buf, size);
	}
}

static const struct test tests[] = {
#define T(name)             \
	{                   \
#name, name \
	}
	T(a_child_has_its_own),
	T(the_parent_writes_after_fork),
	T(nothing_but_zeros),
	T(freed_on_the_device),
	T(partial_munmap),
	T(moved_mappings),
	T(moved_beside_itself),
	T(throughput),
	{0},
};

int main(int argc, char **argv)
{
	return run_all(tests, variants, argc, argv);
}
