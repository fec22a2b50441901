/* SPDX-License-Identifier: MIT */
/* The mirror, through its reference driver: READ, WRITE and SNAPSHOT on memory of the test's own. */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#include "../../skip.h"
#include "../../zeropage.h"
#include "drivers/dmirror/dmirror.h"
#include "drivers/dmirror/memory.h"

#define PAGE 4096ul
#define NR 1024u
#define SIZE (NR * PAGE)

#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000
#endif

struct fixture {
	struct umm_space *space;
	struct dmirror *dm;
	char *mem;     /* SIZE, untouched; nobody's page on either side */
	char *buf;     /* SIZE, every int its index */
	uint64_t addr; /* of mem */
};

/* A list of nodes cannot be read. */
static const char *unreadable;

FILE *__real_fopen(const char *name, const char *mode);
FILE *__wrap_fopen(const char *name, const char *mode);
FILE *__wrap_fopen(const char *name, const char *mode)
{
	if (unreadable && strstr(name, unreadable)) {
		errno = EMFILE;
		return NULL;
	}
	return __real_fopen(name, mode);
}

static char *map(size_t size, int prot)
{
	char *p = mmap(NULL, size, prot, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	assert_true(p != MAP_FAILED);
	assert_int_equal(madvise(p, size, MADV_NOHUGEPAGE), 0);
	return p;
}

static void number(char *p, int plus)
{
	for (unsigned i = 0; i < SIZE / sizeof(int); i++)
		((int *)p)[i] = (int)i + plus;
}

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	if (umm_space_open_self(&f->space) || dmirror_open(f->space, &f->dm))
		return -1;
	f->mem = map(SIZE + 2 * PAGE, PROT_READ | PROT_WRITE) + PAGE;
	mprotect(f->mem - PAGE, PAGE, PROT_NONE);
	mprotect(f->mem + SIZE, PAGE, PROT_NONE);
	f->addr = (uintptr_t)f->mem;
	f->buf = map(SIZE, PROT_READ | PROT_WRITE);
	number(f->buf, 0);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	dmirror_close(f->dm);
	umm_space_close(f->space);
	munmap(f->mem - PAGE, SIZE + 2 * PAGE);
	munmap(f->buf, SIZE);
	free(f);
	return 0;
}

static void assert_all(const char *p, size_t size, char value)
{
	for (size_t i = 0; i < size; i++)
		assert_int_equal(p[i], value);
}

static void read_untouched(void **state)
{
	struct fixture *f = *state;
	uint64_t faults = 99;

	assert_int_equal(dmirror_read(f->dm, f->addr, f->buf, NR, &faults), 0);
	assert_int_equal(faults, 1);
	assert_all(f->buf, SIZE, 0);
	/* The table has it now. */
	assert_int_equal(dmirror_read(f->dm, f->addr, f->buf, NR, &faults), 0);
	assert_int_equal(faults, 0);
}

static void read_written_and_protected(void **state)
{
	struct fixture *f = *state;
	uint64_t faults = 99;

	number(f->mem, 5);
	assert_int_equal(mprotect(f->mem, SIZE, PROT_READ), 0);
	assert_int_equal(dmirror_read(f->dm, f->addr, f->buf, NR, &faults), 0);
	assert_int_equal(faults, 1);
	assert_memory_equal(f->buf, f->mem, SIZE);
}

static void write_ten_buffers(void **state)
{
	struct fixture *f = *state;

	for (unsigned i = 0; i < 10; i++) {
		char *mem = map(SIZE, PROT_READ | PROT_WRITE);
		uint64_t faults = 99;

		assert_int_equal(dmirror_write(f->dm, (uintptr_t)mem, f->buf, NR, &faults), 0);
		assert_int_equal(faults, 1);
		assert_memory_equal(f->buf, mem, SIZE);
		/* Kept, so that the next one lies elsewhere; the process ends soon. */
	}
}

static void read_records_what_may_be_written(void **state)
{
	struct fixture *f = *state;
	uint64_t faults = 99;

	number(f->mem, 5);
	assert_int_equal(dmirror_read(f->dm, f->addr, f->buf, NR, &faults), 0);
	assert_int_equal(faults, 1);
	number(f->buf, 6);
	assert_int_equal(dmirror_write(f->dm, f->addr, f->buf, NR, &faults), 0);
	assert_int_equal(faults, 0);
	assert_memory_equal(f->buf, f->mem, SIZE);
}

/* Whose CPUs are not known is no device: ordinary memory would be moved about. */
static void a_node_is_a_device_only_if_that_is_known(void **state)
{
	unreadable = "has_cpu";
	int by_cpu = dmirror_memory_node(0);
	unreadable = "has_memory";
	int by_memory = dmirror_memory_node(0);
	unreadable = NULL;
	assert_int_equal(by_cpu, -1);
	assert_int_equal(by_memory, -1);
}

static void a_write_needs_a_writable_entry(void **state)
{
	struct fixture *f = *state;
	uint64_t faults = 99;

	if (!reads_share_a_page())
		skip_because("the kernel gives no zero page");
	/* What READ finds is the zero page: nothing to write to. */
	assert_int_equal(dmirror_read(f->dm, f->addr, f->mem + SIZE / 2, NR / 2, &faults), 0);
	assert_int_equal(dmirror_write(f->dm, f->addr, f->buf, NR / 2, &faults), 0);
	assert_int_equal(faults, 1);
	assert_memory_equal(f->buf, f->mem, SIZE / 2);
}

static void no_access_is_efault(void **state)
{
	struct fixture *f = *state;
	uint64_t faults = 99;

	memset(f->mem, 1, SIZE);
	assert_int_equal(mprotect(f->mem, SIZE, PROT_NONE), 0);
	assert_int_equal(dmirror_read(f->dm, f->addr, f->buf, NR, &faults), -EFAULT);
	assert_int_equal(dmirror_write(f->dm, f->addr, f->buf, NR, &faults), -EFAULT);
	/* Outputs are written on success only. */
	assert_int_equal(faults, 99);
	assert_int_equal(((int *)f->buf)[1], 1);
	assert_int_equal(mprotect(f->mem, SIZE, PROT_READ), 0);
	assert_all(f->mem, SIZE, 1);
	/* A hole in the middle: nothing is given out either. */
	assert_int_equal(munmap(f->mem + SIZE / 2, PAGE), 0);
	assert_int_equal(dmirror_read(f->dm, f->addr, f->buf, NR, &faults), -EFAULT);
	assert_int_equal(((int *)f->buf)[1], 1);
	assert_int_equal(dmirror_read(f->dm, f->addr, f->buf, NR / 2, &faults), 0);
}

static void read_only_is_eperm(void **state)
{
	struct fixture *f = *state;
	uint64_t faults = 99;

	memset(f->mem, 1, SIZE);
	assert_int_equal(mprotect(f->mem, SIZE, PROT_READ), 0);
	assert_int_equal(dmirror_write(f->dm, f->addr, f->buf, NR, &faults), -EPERM);
	assert_all(f->mem, SIZE, 1);
	assert_int_equal(mprotect(f->mem, SIZE, PROT_READ | PROT_WRITE), 0);
	assert_int_equal(dmirror_write(f->dm, f->addr, f->buf, NR, &faults), 0);
	assert_int_equal(faults, 1);
	assert_memory_equal(f->buf, f->mem, SIZE);
	/* Taken back behind the device's back: its entries still say that it may write. */
	assert_int_equal(mprotect(f->mem, SIZE, PROT_READ), 0);
	number(f->buf, 3);
	assert_int_equal(dmirror_write(f->dm, f->addr, f->buf, NR, &faults), -EPERM);
	assert_int_equal(((int *)f->mem)[1], 1);
	assert_int_equal(mprotect(f->mem, SIZE, PROT_NONE), 0);
	assert_int_equal(dmirror_read(f->dm, f->addr, f->buf, NR, &faults), -EFAULT);
}

static void bad_arguments(void **state)
{
	struct fixture *f = *state;
	uint64_t faults = 99;
	uint8_t codes[4];

	assert_int_equal(dmirror_read(f->dm, f->addr + 1, f->buf, 1, &faults), -EINVAL);
	assert_int_equal(dmirror_write(f->dm, f->addr + 8, f->buf, 1, &faults), -EINVAL);
	assert_int_equal(dmirror_read(f->dm, f->addr, f->buf, 0, &faults), -EINVAL);
	assert_int_equal(dmirror_read(f->dm, f->addr, f->buf, UINT64_MAX, &faults), -EINVAL);
	assert_int_equal(dmirror_read(f->dm, f->addr, f->buf, UINT64_MAX / PAGE, &faults), -EINVAL);
	assert_int_equal(dmirror_write(f->dm, -PAGE, f->buf, 2, &faults), -EINVAL);
	assert_int_equal(dmirror_snapshot(f->dm, f->addr + 1, codes, 1), -EINVAL);
	assert_int_equal(dmirror_snapshot(f->dm, f->addr, codes, 0), -EINVAL);
	/* The caller's own buffer is bad. */
	assert_int_equal(dmirror_read(f->dm, f->addr, NULL, 1, &faults), -EFAULT);
	assert_int_equal(dmirror_write(f->dm, f->addr, f->mem - PAGE, 1, &faults), -EFAULT);
	assert_int_equal(dmirror_snapshot(f->dm, f->addr, NULL, 1), -EFAULT);
	assert_int_equal(faults, 99);
	dmirror_close(NULL);
}

static void the_buffer_may_be_mirrored_itself(void **state)
{
	struct fixture *f = *state;
	uint64_t faults;

	number(f->mem, 5);
	assert_int_equal(dmirror_read(f->dm, f->addr, f->mem, NR, &faults), 0);
	assert_int_equal(dmirror_write(f->dm, f->addr, f->mem + PAGE, NR / 2, &faults), 0);
	assert_int_equal(((int *)f->mem)[0], (int)(PAGE / sizeof(int)) + 5);
	assert_int_equal(dmirror_read(f->dm, f->addr, f->mem + SIZE / 2, NR / 2, &faults), 0);
	assert_memory_equal(f->mem, f->mem + SIZE / 2, SIZE / 2);
}

static void mappings_are_spanned(void **state)
{
	struct fixture *f = *state;
	uint64_t faults = 99;

	number(f->mem, 7);
	assert_int_equal(mprotect(f->mem + 10 * PAGE, 10 * PAGE, PROT_READ), 0);
	assert_int_equal(mprotect(f->mem + 40 * PAGE, 10 * PAGE, PROT_READ | PROT_EXEC), 0);
	assert_int_equal(dmirror_read(f->dm, f->addr, f->buf, NR, &faults), 0);
	assert_int_equal(faults, 1);
	assert_memory_equal(f->buf, f->mem, SIZE);
}

static void snapshot(void **state)
{
	struct fixture *f = *state;
	volatile char *mem = f->mem;
	uint8_t c[12];
	int pipefd[2];
	pid_t pid;

	mem[1 * PAGE] = 1;
	(void)mem[2 * PAGE];
	mem[3 * PAGE] = 1;
	assert_int_equal(mprotect(f->mem + 3 * PAGE, PAGE, PROT_READ), 0);
	mem[4 * PAGE] = 1;
	assert_int_equal(mprotect(f->mem + 4 * PAGE, PAGE, PROT_NONE), 0);
	assert_int_equal(munmap(f->mem + 5 * PAGE, PAGE), 0);
	mem[6 * PAGE] = 1;
	assert_int_equal(dmirror_snapshot(f->dm, f->addr, c, 8), 0);
	assert_int_equal(c[0], DMIRROR_NONE);
	assert_int_equal(c[1], DMIRROR_WRITE);
	assert_int_equal(c[2], reads_share_a_page() ? DMIRROR_READ | DMIRROR_ZERO : DMIRROR_WRITE);
	assert_int_equal(c[3], DMIRROR_READ);
	assert_int_equal(c[4], DMIRROR_ERROR);
	assert_int_equal(c[5], DMIRROR_ERROR);
	assert_int_equal(c[6], DMIRROR_WRITE);
	assert_int_equal(c[7], DMIRROR_NONE);

	assert_int_equal(pipe(pipefd), 0);
	pid = fork();
	if (!pid) {
		char byte;

		close(pipefd[1]);
		_exit(read(pipefd[0], &byte, 1) != 0);
	}
	close(pipefd[0]);
	assert_int_equal(dmirror_snapshot(f->dm, f->addr, c, 8), 0);
	assert_int_equal(c[1], DMIRROR_READ);
	mem[1 * PAGE] = 2;
	assert_int_equal(dmirror_snapshot(f->dm, f->addr, c, 8), 0);
	assert_int_equal(c[1], DMIRROR_WRITE);
	close(pipefd[1]);
	waitpid(pid, NULL, 0);
}

static void a_snapshot_of_huge_pages(void **state)
{
	enum { HUGE = 512 };
	struct fixture *f = *state;
	size_t size = HUGE * PAGE;
	char *raw = map(3 * size, PROT_READ | PROT_WRITE);
	volatile char *p = (char *)(((uintptr_t)raw + size - 1) & -size);
	uint8_t c[HUGE];

	madvise((char *)p, size, MADV_HUGEPAGE);
	(void)p[0];
	assert_int_equal(dmirror_snapshot(f->dm, (uintptr_t)p, c, HUGE), 0);
	if (c[HUGE - 1] == DMIRROR_NONE)
		skip_because("no huge page to be had");
	for (unsigned i = 0; i < HUGE; i++)
		assert_int_equal(c[i], (reads_share_a_page() ? DMIRROR_READ : DMIRROR_WRITE) | DMIRROR_PMD);
	p[0] = 1;
	assert_int_equal(dmirror_snapshot(f->dm, (uintptr_t)p, c, HUGE), 0);
	/* The kernel may have broken the huge zero page up. */
	assert_int_equal(c[0] & DMIRROR_WRITE, DMIRROR_WRITE);
	munmap(raw, 3 * size);
}

static void an_invalidation_empties_the_table(void **state)
{
	struct fixture *f = *state;
	struct umm_change c = {.event = UMM_EVENT_CLEAR,
			       .start = f->addr + 600 * PAGE,
			       .end = f->addr + 601 * PAGE,
			       .blockable = true};
	uint64_t faults = 99;

	number(f->mem, 0);
	assert_int_equal(dmirror_read(f->dm, f->addr, f->buf, NR, &faults), 0);
	assert_int_equal(umm_invalidate_begin(f->space, &c), 0);
	/* Its neighbours stay. */
	assert_int_equal(dmirror_read(f->dm, f->addr, f->buf, 600, &faults), 0);
	assert_int_equal(faults, 0);
	umm_invalidate_end(f->space, &c);
	assert_int_equal(dmirror_read(f->dm, f->addr + 601 * PAGE, f->buf, NR - 601, &faults), 0);
	assert_int_equal(faults, 0);
	assert_int_equal(dmirror_read(f->dm, f->addr, f->buf, NR, &faults), 0);
	assert_int_equal(faults, 1);
	assert_int_equal(dmirror_read(f->dm, f->addr, f->buf, NR, &faults), 0);
	assert_int_equal(faults, 0);
	/* All there is. */
	c.start = 0;
	c.end = 1ull << 48;
	assert_int_equal(umm_invalidate_begin(f->space, &c), 0);
	umm_invalidate_end(f->space, &c);
	assert_int_equal(dmirror_read(f->dm, f->addr, f->buf, NR, &faults), 0);
	assert_int_equal(faults, 1);
	/* A refusal is undone, and one who can wait is not refused. */
	c.blockable = false;
	assert_int_equal(umm_invalidate_begin(f->space, &c), 0);
	umm_invalidate_end(f->space, &c);
}

/* What lies between the driver's look at a range and its lock: a change, where a test asks for one. */
static struct {
	struct umm_space *space;
	unsigned calls, changes;
} between;

int __real_umm_range_fault(struct umm_range *range);
int __wrap_umm_range_fault(struct umm_range *range);

int __wrap_umm_range_fault(struct umm_range *range)
{
	int rc = __real_umm_range_fault(range);
	struct umm_change c = {.event = UMM_EVENT_CLEAR, .start = range->start, .end = range->end, .blockable = true};

	if (!between.space)
		return rc;
	between.calls++;
	if (between.changes) {
		between.changes--;
		umm_invalidate_begin(between.space, &c);
		umm_invalidate_end(between.space, &c);
	}
	return rc;
}

static void a_change_after_the_look_is_noticed(void **state)
{
	struct fixture *f = *state;
	uint64_t faults = 99;

	between.space = f->space;
	between.changes = 3;
	between.calls = 0;
	assert_int_equal(dmirror_read(f->dm, f->addr, f->buf, 1, &faults), 0);
	between.space = NULL;
	assert_int_equal(between.calls, 4);
	assert_int_equal(faults, 1);
}

/* ----------------------------------------------------------------- threads */

/*
 * Where memory comes and goes must be no place that the kernel gives to others:
 * far below everything that it chooses by itself (and that sanitizers use).
 */
#define PLACE 0x40000000ul
enum { AREA = 64, CHUNK = 8 };

static struct {
	struct umm_space *space;
	struct dmirror *dm;
	bool watched;
	atomic_bool stop;
	atomic_ulong reads, wrong, refused;
} churn;

static void area_map(unsigned page, unsigned npages, bool fixed)
{
	char *at = (char *)PLACE + page * PAGE;

	if (mmap(at, npages * PAGE, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | (fixed ? MAP_FIXED : MAP_FIXED_NOREPLACE), -1, 0) != at)
		abort();
	if (churn.watched && umm_space_watch(churn.space, (uintptr_t)at, npages * PAGE))
		abort();
}

static void area_stamp(unsigned page, unsigned npages)
{
	for (unsigned i = page; i < page + npages; i++)
		for (unsigned j = 0; j < PAGE / sizeof(int); j += 128)
			((volatile int *)(PLACE + i * PAGE))[j] = (int)i + 1;
}

static void *churn_reader(void *arg)
{
	uint64_t seed = 88172645463325252ull + (uintptr_t)arg;
	int *buf = (int *)map(AREA * PAGE, PROT_READ | PROT_WRITE);

	while (!atomic_load(&churn.stop)) {
		seed = seed * 6364136223846793005ull + 1442695040888963407ull;
		unsigned page = (seed >> 33) % AREA, n = 1 + (seed >> 45) % (AREA - page);

		if (dmirror_read(churn.dm, PLACE + page * PAGE, buf, n, NULL)) {
			atomic_fetch_add(&churn.refused, 1);
			continue;
		}
		atomic_fetch_add(&churn.reads, 1);
		for (unsigned i = 0; i < n * PAGE / sizeof(int); i += 128) {
			int want = (int)(page + i / (PAGE / sizeof(int))) + 1;

			/* Fresh memory reads as zeros. */
			if (buf[i] && buf[i] != want)
				atomic_fetch_add(&churn.wrong, 1);
		}
	}
	munmap(buf, AREA * PAGE);
	return NULL;
}

static void memory_comes_and_goes(struct fixture *f, bool watched)
{
	enum { ROUNDS = 1500, READERS = 2 };
	pthread_t t[READERS];
	uint64_t seed = 1;

	memset(&churn, 0, sizeof(churn));
	churn.space = f->space;
	churn.dm = f->dm;
	churn.watched = watched;
	area_map(0, AREA, false);
	area_stamp(0, AREA);
	for (uintptr_t i = 0; i < READERS; i++)
		assert_int_equal(pthread_create(&t[i], NULL, churn_reader, (void *)i), 0);
	for (unsigned round = 0; round < ROUNDS || !atomic_load(&churn.reads) || !atomic_load(&churn.refused);
	     round++) {
		seed = seed * 6364136223846793005ull + 1442695040888963407ull;
		unsigned page = (seed >> 33) % (AREA / CHUNK) * CHUNK, what = (seed >> 50) % 4;
		char *at = (char *)PLACE + page * PAGE;

		switch (what) {
		case 0:
			munmap(at, CHUNK * PAGE);
			for (unsigned i = 0; i < (seed >> 55) % 4; i++)
				sched_yield();
			area_map(page, CHUNK, false);
			break;
		case 1:
			area_map(page, CHUNK, true);
			break;
		case 2:
			madvise(at, CHUNK * PAGE, MADV_DONTNEED);
			break;
		case 3:
			mprotect(at, CHUNK * PAGE, PROT_NONE);
			sched_yield();
			mprotect(at, CHUNK * PAGE, PROT_READ | PROT_WRITE);
			break;
		}
		area_stamp(page, CHUNK);
		/* Who drops by raw calls all the time keeps a mirror out: a quarantine lasts half a second here. */
		if (round >= ROUNDS)
			usleep(700000);
	}
	atomic_store(&churn.stop, true);
	for (unsigned i = 0; i < READERS; i++)
		pthread_join(t[i], NULL);
	print_message("%lu reads, %lu refused\n", atomic_load(&churn.reads), atomic_load(&churn.refused));
	munmap((char *)PLACE, AREA * PAGE);
	assert_int_equal(atomic_load(&churn.wrong), 0);
}

static void raw_changes_under_reads(void **state)
{
	memory_comes_and_goes(*state, false);
}

static void watched_changes_under_reads(void **state)
{
	struct fixture *f = *state;
	int rc = umm_space_watch(f->space, f->addr, SIZE);

	if (rc == -EPERM)
		skip_because("no right to a userfaultfd");
	assert_int_equal(rc, 0);
	memory_comes_and_goes(f, true);
}

static void what_the_monitor_sees_leaves_the_table(void **state)
{
	struct fixture *f = *state;
	uint64_t faults = 99;
	int rc = umm_space_watch(f->space, f->addr, SIZE);

	if (rc == -EPERM)
		skip_because("no right to a userfaultfd");
	assert_int_equal(rc, 0);
	number(f->mem, 1);
	assert_int_equal(dmirror_read(f->dm, f->addr, f->buf, NR, &faults), 0);
	assert_int_equal(dmirror_read(f->dm, f->addr, f->buf, NR, &faults), 0);
	assert_int_equal(faults, 0);
	assert_int_equal(madvise(f->mem + 3 * PAGE, PAGE, MADV_DONTNEED), 0);
	/* The call goes on when the monitor has read of it, which is a little before the notifiers are told. */
	do {
		assert_int_equal(dmirror_read(f->dm, f->addr, f->buf, NR, &faults), 0);
		assert_all(f->buf + 3 * PAGE, PAGE, 0);
	} while (!faults);
	assert_int_equal(faults, 1);
	assert_memory_equal(f->buf + 4 * PAGE, f->mem + 4 * PAGE, PAGE);
}

static void *churn_writer(void *arg)
{
	char *buf = map(AREA * PAGE, PROT_READ | PROT_WRITE);

	memset(buf, 0x77, AREA * PAGE);
	while (!atomic_load(&churn.stop))
		if (!dmirror_write(churn.dm, PLACE, buf, AREA, NULL))
			atomic_fetch_add(&churn.reads, 1);
	munmap(buf, AREA * PAGE);
	return NULL;
}

/* Between begin and end the device must keep its hands off, also off what comes there instead. */
static void no_write_lands_inside_an_invalidation(void **state)
{
	enum { ROUNDS = 1000 };
	struct fixture *f = *state;
	pthread_t t;

	memset(&churn, 0, sizeof(churn));
	churn.space = f->space;
	churn.dm = f->dm;
	area_map(0, AREA, false);
	assert_int_equal(pthread_create(&t, NULL, churn_writer, NULL), 0);
	for (unsigned round = 0; round < ROUNDS || !atomic_load(&churn.reads); round++) {
		unsigned page = round * 7 % AREA;
		char *at = (char *)PLACE + page * PAGE;
		struct umm_change c = {.event = UMM_EVENT_UNMAP,
				       .start = (uintptr_t)at,
				       .end = (uintptr_t)at + PAGE,
				       .blockable = true};

		assert_int_equal(umm_invalidate_begin(f->space, &c), 0);
		area_map(page, 1, true);
		/* Now and then as long as a device that does not wait needs to come by. */
		if (round % 16 == 0)
			usleep(1000);
		for (unsigned i = 0; i < PAGE; i += 64)
			if (at[i])
				atomic_fetch_add(&churn.wrong, 1);
		umm_invalidate_end(f->space, &c);
		if (round % 2)
			sched_yield();
	}
	atomic_store(&churn.stop, true);
	pthread_join(t, NULL);
	munmap((char *)PLACE, AREA * PAGE);
	assert_int_equal(atomic_load(&churn.wrong), 0);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(read_untouched),
		TEST(read_written_and_protected),
		TEST(write_ten_buffers),
		TEST(a_node_is_a_device_only_if_that_is_known),
		TEST(read_records_what_may_be_written),
		TEST(a_write_needs_a_writable_entry),
		TEST(no_access_is_efault),
		TEST(read_only_is_eperm),
		TEST(bad_arguments),
		TEST(the_buffer_may_be_mirrored_itself),
		TEST(mappings_are_spanned),
		TEST(snapshot),
		TEST(a_snapshot_of_huge_pages),
		TEST(an_invalidation_empties_the_table),
		TEST(a_change_after_the_look_is_noticed),
		TEST(raw_changes_under_reads),
		TEST(what_the_monitor_sees_leaves_the_table),
		TEST(watched_changes_under_reads),
		TEST(no_write_lands_inside_an_invalidation),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
