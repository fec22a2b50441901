/* SPDX-License-Identifier: MIT */
/* Ranges of the caller's own space: what a snapshot says, what a fault brings in and what it refuses. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>

#include "../../skip.h"
#include "../../zeropage.h"
#include "hmm_uapi.h"
#include "umm.h"
#include "umm/internal.h"
#include "umm/sys.h"

#define PAGE 4096ul
#define NR 16u
#define MONITOR_STACK (2ul << 20) /* of src/umm/monitor.c */

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#endif

static bool drop(struct umm_notifier *n, const struct umm_change *change, uint64_t seq)
{
	umm_notifier_set_seq(n, seq);
	return true;
}

static const struct umm_notifier_ops ops = {.invalidate = drop};

struct fixture {
	struct umm_space *space;
	struct umm_notifier n;
	char *mem; /* NR pages, read and write, untouched */
	uint64_t entries[NR];
	struct umm_range range;
};

static char *map(unsigned npages, int prot)
{
	char *p = mmap(NULL, npages * PAGE, prot, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	assert_true(p != MAP_FAILED);
	assert_int_equal(madvise(p, npages * PAGE, MADV_NOHUGEPAGE), 0);
	return p;
}

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	if (umm_space_open_self(&f->space))
		return -1;
	/* A page on either side that is nobody's, so that mappings do not merge. */
	f->mem = map(NR + 2, PROT_READ | PROT_WRITE) + PAGE;
	munmap(f->mem - PAGE, PAGE);
	munmap(f->mem + NR * PAGE, PAGE);
	if (umm_notifier_insert(&f->n, f->space, (uintptr_t)f->mem, NR * PAGE, &ops))
		return -1;
	f->range = (struct umm_range){
		.space = f->space,
		.notifier = &f->n,
		.start = (uintptr_t)f->mem,
		.end = (uintptr_t)f->mem + NR * PAGE,
		.entries = f->entries,
	};
	f->range.notifier_seq = umm_read_begin(&f->n);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	umm_notifier_remove(&f->n);
	umm_space_close(f->space);
	munmap(f->mem, NR * PAGE);
	free(f);
	return 0;
}

static bool present(const void *p)
{
	uint64_t e;
	int fd = open("/proc/self/pagemap", O_RDONLY);

	assert_int_equal(pread(fd, &e, 8, (off_t)((uintptr_t)p / PAGE * 8)), 8);
	close(fd);
	return e >> 63;
}

static void assert_entries(const struct fixture *f, unsigned from, unsigned to, uint64_t value)
{
	for (unsigned i = from; i < to; i++)
		assert_int_equal(f->entries[i], value);
}

/* What a snapshot says of pages that were only read. */
static uint64_t what_was_read(bool writable)
{
	if (reads_share_a_page())
		return UMM_PFN_VALID | UMM_PFN_ZERO;
	return UMM_PFN_VALID | (writable ? UMM_PFN_WRITE : 0);
}

static void bad_ranges(void **state)
{
	struct fixture *f = *state;
	struct umm_range r = f->range;

	r.end = r.start;
	assert_int_equal(umm_range_snapshot(&r), -EINVAL);
	assert_int_equal(umm_range_fault(&r), -EINVAL);
	r = f->range;
	r.start += 8;
	assert_int_equal(umm_range_snapshot(&r), -EINVAL);
	r = f->range;
	r.start = 1ull << 63;
	r.end = r.start + PAGE;
	assert_int_equal(umm_range_snapshot(&r), -EINVAL);
	r = f->range;
	r.notifier = NULL;
	assert_int_equal(umm_range_snapshot(&r), 0);
	assert_int_equal(umm_range_fault(&r), -EINVAL);
}

static void snapshot_faults_nothing(void **state)
{
	struct fixture *f = *state;
	volatile char *mem = f->mem;

	memset(f->entries, 0xff, sizeof(f->entries));
	mem[2 * PAGE] = 1;   /* written */
	(void)mem[4 * PAGE]; /* read: the zero page, where the kernel has one */
	mem[6 * PAGE] = 1;
	assert_int_equal(mprotect(f->mem + 6 * PAGE, PAGE, PROT_READ), 0);
	mem[8 * PAGE] = 1;
	assert_int_equal(mprotect(f->mem + 8 * PAGE, PAGE, PROT_NONE), 0);
	assert_int_equal(munmap(f->mem + 10 * PAGE, PAGE), 0);
	assert_int_equal(umm_range_snapshot(&f->range), 0);
	assert_entries(f, 0, 2, 0);
	assert_entries(f, 2, 3, UMM_PFN_VALID | UMM_PFN_WRITE);
	assert_entries(f, 3, 4, 0);
	assert_entries(f, 4, 5, what_was_read(true));
	assert_entries(f, 5, 6, 0);
	assert_entries(f, 6, 7, UMM_PFN_VALID);
	assert_entries(f, 7, 8, 0);
	assert_entries(f, 8, 9, UMM_PFN_ERROR);
	assert_entries(f, 9, 10, 0);
	assert_entries(f, 10, 11, UMM_PFN_ERROR);
	assert_entries(f, 11, NR, 0);
	assert_false(present(f->mem));
}

static void a_hole_at_the_end(void **state)
{
	struct fixture *f = *state;

	/* From the last mapping below the user half's end into nothing. */
	f->range.start = (1ull << 47) - PAGE;
	f->range.end = f->range.start + 3 * PAGE;
	assert_int_equal(umm_range_snapshot(&f->range), 0);
	assert_entries(f, 0, 3, UMM_PFN_ERROR);
}

static void after_fork_pages_are_shared(void **state)
{
	struct fixture *f = *state;
	int pipefd[2];
	pid_t pid;
	char c;

	memset(f->mem, 1, NR * PAGE);
	assert_int_equal(pipe(pipefd), 0);
	pid = fork();
	if (!pid) {
		close(pipefd[1]);
		_exit(read(pipefd[0], &c, 1) != 0);
	}
	close(pipefd[0]);
	assert_int_equal(umm_range_snapshot(&f->range), 0);
	assert_entries(f, 0, NR, UMM_PFN_VALID);
	/* Asking for write makes them ours. */
	f->range.default_flags = UMM_PFN_REQ_WRITE;
	assert_int_equal(umm_range_fault(&f->range), 0);
	assert_entries(f, 0, NR, UMM_PFN_VALID | UMM_PFN_WRITE);
	close(pipefd[1]);
	waitpid(pid, NULL, 0);
}

static void files_and_shared_memory(void **state)
{
	struct fixture *f = *state;
	int fd = memfd_create("range", MFD_CLOEXEC);
	volatile char *p;

	assert_int_equal(ftruncate(fd, 8 * PAGE), 0);
	/* A private mapping of a file: what is read is not ours, what was written is. */
	p = mmap(f->mem, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, fd, 0);
	(void)p[0];
	p[PAGE] = 1;
	assert_int_equal(umm_range_snapshot(&f->range), 0);
	assert_entries(f, 0, 1, UMM_PFN_VALID);
	assert_entries(f, 1, 2, UMM_PFN_VALID | UMM_PFN_WRITE);
	/* A shared one is written in place. */
	p = mmap(f->mem, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
	f->range.end = f->range.start + 8 * PAGE;
	f->range.default_flags = UMM_PFN_REQ_WRITE;
	assert_int_equal(umm_range_fault(&f->range), 0);
	assert_entries(f, 0, 8, UMM_PFN_VALID | UMM_PFN_WRITE);
	/* Beyond the file's end there is nothing to bring in. */
	assert_int_equal(ftruncate(fd, 4 * PAGE), 0);
	assert_int_equal(umm_range_fault(&f->range), -EFAULT);
	close(fd);
}

static void fault_brings_in(void **state)
{
	struct fixture *f = *state;

	f->range.default_flags = UMM_PFN_REQ_FAULT;
	assert_int_equal(umm_range_fault(&f->range), 0);
	assert_entries(f, 0, NR, what_was_read(true));
	f->range.default_flags = UMM_PFN_REQ_FAULT | UMM_PFN_REQ_WRITE;
	assert_int_equal(umm_range_fault(&f->range), 0);
	assert_entries(f, 0, NR, UMM_PFN_VALID | UMM_PFN_WRITE);
	/* Contents stay. */
	memset(f->mem, 7, NR * PAGE);
	assert_int_equal(umm_range_fault(&f->range), 0);
	for (unsigned i = 0; i < NR * PAGE; i++)
		assert_int_equal(f->mem[i], 7);
}

static void what_is_asked_of_each_page(void **state)
{
	struct fixture *f = *state;

	f->entries[1] = UMM_PFN_REQ_FAULT;
	f->entries[3] = UMM_PFN_REQ_WRITE;
	f->entries[4] = UMM_PFN_REQ_WRITE | UMM_PFN_REQ_FAULT;
	f->range.flags_mask = UMM_PFN_REQ_FAULT | UMM_PFN_REQ_WRITE;
	assert_int_equal(umm_range_fault(&f->range), 0);
	assert_entries(f, 0, 1, 0);
	assert_entries(f, 1, 2, what_was_read(true));
	assert_entries(f, 2, 3, 0);
	assert_entries(f, 3, 5, UMM_PFN_VALID | UMM_PFN_WRITE);
	assert_entries(f, 5, NR, 0);
	/* The mask hides what entries ask for. */
	f->entries[7] = UMM_PFN_REQ_FAULT;
	f->range.flags_mask = 0;
	assert_int_equal(umm_range_fault(&f->range), 0);
	assert_entries(f, 5, NR, 0);
	assert_false(present(f->mem + 7 * PAGE));
}

static void fault_refuses(void **state)
{
	struct fixture *f = *state;

	f->range.flags_mask = UMM_PFN_REQ_FAULT | UMM_PFN_REQ_WRITE;
	assert_int_equal(mprotect(f->mem + 4 * PAGE, PAGE, PROT_READ), 0);
	assert_int_equal(mprotect(f->mem + 6 * PAGE, PAGE, PROT_NONE), 0);
	assert_int_equal(munmap(f->mem + 8 * PAGE, PAGE), 0);
	f->entries[4] = UMM_PFN_REQ_WRITE;
	f->entries[12] = UMM_PFN_REQ_FAULT;
	assert_int_equal(umm_range_fault(&f->range), -EPERM);
	/* Requests are as they were: with one of them gone, the rest is done. */
	assert_int_equal(f->entries[4], UMM_PFN_REQ_WRITE);
	assert_int_equal(f->entries[12], UMM_PFN_REQ_FAULT);
	f->entries[4] = UMM_PFN_REQ_FAULT;
	assert_int_equal(umm_range_fault(&f->range), 0);
	assert_entries(f, 4, 5, what_was_read(false));
	assert_entries(f, 5, 6, 0);
	assert_entries(f, 6, 7, UMM_PFN_ERROR);
	assert_entries(f, 8, 9, UMM_PFN_ERROR);
	assert_entries(f, 12, 13, what_was_read(true));

	memset(f->entries, 0, sizeof(f->entries));
	f->entries[6] = UMM_PFN_REQ_FAULT;
	assert_int_equal(umm_range_fault(&f->range), -EFAULT);
	f->entries[6] = 0;
	f->entries[8] = UMM_PFN_REQ_WRITE;
	assert_int_equal(umm_range_fault(&f->range), -EFAULT);
	/* Not readable at all is a worse fault than not writable. */
	f->entries[8] = 0;
	f->entries[6] = UMM_PFN_REQ_WRITE;
	assert_int_equal(umm_range_fault(&f->range), -EFAULT);
}

static void mappings_are_spanned(void **state)
{
	struct fixture *f = *state;
	int fd = memfd_create("range", MFD_CLOEXEC);

	assert_int_equal(ftruncate(fd, 4 * PAGE), 0);
	assert_true(mmap(f->mem + 4 * PAGE, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) !=
		    MAP_FAILED);
	assert_int_equal(mprotect(f->mem + 10 * PAGE, 2 * PAGE, PROT_READ), 0);
	f->range.default_flags = UMM_PFN_REQ_FAULT;
	assert_int_equal(umm_range_fault(&f->range), 0);
	assert_entries(f, 0, 4, what_was_read(true));
	for (unsigned i = 4; i < 8; i++)
		assert_int_equal(f->entries[i] & ~UMM_PFN_ORDER_MASK, UMM_PFN_VALID | UMM_PFN_WRITE);
	assert_entries(f, 8, 10, what_was_read(true));
	assert_entries(f, 10, 12, what_was_read(false));
	assert_entries(f, 12, NR, what_was_read(true));
	close(fd);
}

static void a_change_makes_it_busy(void **state)
{
	struct fixture *f = *state;
	struct umm_change c = {
		.event = UMM_EVENT_CLEAR, .start = f->range.start, .end = f->range.end, .blockable = true};

	f->range.flags_mask = UMM_PFN_REQ_FAULT;
	f->entries[3] = UMM_PFN_REQ_FAULT;
	umm_invalidate_begin(f->space, &c);
	umm_invalidate_end(f->space, &c);
	assert_int_equal(umm_range_fault(&f->range), -EBUSY);
	assert_int_equal(f->entries[3], UMM_PFN_REQ_FAULT);
	f->range.notifier_seq = umm_read_begin(&f->n);
	assert_int_equal(umm_range_fault(&f->range), 0);
	assert_entries(f, 3, 4, what_was_read(true));
	/* Also when nothing is lacking. */
	umm_invalidate_begin(f->space, &c);
	umm_invalidate_end(f->space, &c);
	assert_int_equal(umm_range_fault(&f->range), -EBUSY);
}

/* Such a page has an entry in the page table, but no memory. */
static void guard_pages(void **state)
{
	struct fixture *f = *state;

	if (madvise(f->mem + 2 * PAGE, PAGE, MADV_GUARD_INSTALL)) {
		skip_because("no guard pages before Linux 6.13");
	}
	assert_int_equal(umm_range_snapshot(&f->range), 0);
	assert_entries(f, 0, NR, 0);
	f->range.default_flags = UMM_PFN_REQ_FAULT;
	assert_int_equal(umm_range_fault(&f->range), -EFAULT);
}

static void the_deadline_is_kept(void **state)
{
	struct fixture *f = *state;
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	f->range.default_flags = UMM_PFN_REQ_FAULT;
	f->range.deadline_ns = (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
	assert_int_equal(umm_range_fault(&f->range), -ETIME);
	assert_false(present(f->mem));
	f->range.deadline_ns += 3600ull * 1000000000u;
	assert_int_equal(umm_range_fault(&f->range), 0);
}

static void huge_pages(void **state)
{
	enum { HUGE = 512 };
	struct fixture *f = *state;
	size_t size = HUGE * PAGE;
	char *raw = map(3 * HUGE, PROT_READ | PROT_WRITE);
	char *p = (char *)(((uintptr_t)raw + size - 1) & -size);
	uint64_t *entries = calloc(HUGE, sizeof(*entries));
	struct umm_range r = {.space = f->space, .start = (uintptr_t)p, .end = (uintptr_t)p + size, .entries = entries};

	madvise(p, size, MADV_HUGEPAGE);
	p[0] = 1;
	if (!present(p + size - PAGE)) {
		munmap(raw, 3 * size);
		free(entries);
		skip_because("no huge page to be had");
	}
	assert_int_equal(umm_range_snapshot(&r), 0);
	for (unsigned i = 0; i < HUGE; i++)
		assert_int_equal(entries[i], UMM_PFN_VALID | UMM_PFN_WRITE | (uint64_t)9 << UMM_PFN_ORDER_SHIFT);
	/* A part of one. */
	r.start += 3 * PAGE;
	r.end -= 5 * PAGE;
	memset(entries, 0, HUGE * sizeof(*entries));
	assert_int_equal(umm_range_snapshot(&r), 0);
	assert_int_equal(entries[HUGE - 9], UMM_PFN_VALID | UMM_PFN_WRITE | (uint64_t)9 << UMM_PFN_ORDER_SHIFT);
	assert_int_equal(entries[HUGE - 8], 0);
	munmap(raw, 3 * size);
	free(entries);
}

static void another_process(void **state)
{
	struct fixture *f = *state;
	struct umm_space *other;
	int pipefd[2];
	pid_t pid;
	char c;

	memset(f->mem, 1, 2 * PAGE);
	assert_int_equal(pipe(pipefd), 0);
	pid = fork();
	if (!pid) {
		close(pipefd[1]);
		_exit(read(pipefd[0], &c, 1) != 0);
	}
	close(pipefd[0]);
	assert_int_equal(umm_space_open_pid(pid, &other), 0);
	f->range.space = other;
	assert_int_equal(umm_range_snapshot(&f->range), 0);
	assert_entries(f, 0, 2, UMM_PFN_VALID);
	assert_entries(f, 2, NR, 0);
	f->range.default_flags = UMM_PFN_REQ_FAULT;
	assert_int_equal(umm_range_fault(&f->range), -EOPNOTSUPP);
	close(pipefd[1]);
	waitpid(pid, NULL, 0);
	assert_int_equal(umm_range_snapshot(&f->range), -ESRCH);
	umm_space_close(other);
}

/*
 * When MADV_DONTNEED is told of there is nothing there, and the caller has not
 * looked yet: what is brought in now may be dropped a moment later, untold.
 */
static void what_is_about_to_be_dropped_is_busy(void **state)
{
	struct fixture *f = *state;
	bool busy = false;
	int rc = umm_space_watch(f->space, (uintptr_t)f->mem, NR * PAGE);

	if (rc == -EPERM || rc == -EACCES || rc == -ENOENT) {
		skip_because("no right to a userfaultfd");
	}
	assert_int_equal(rc, 0);
	f->range.default_flags = UMM_PFN_REQ_FAULT;
	/* More than once: who was away from the CPU for long finds it over. */
	for (unsigned i = 0; i < NR && !busy; i++) {
		/* Each time where nothing has ever been. */
		f->range.start = (uintptr_t)f->mem + i * PAGE;
		f->range.end = f->range.start + PAGE;
		assert_int_equal(madvise(f->mem + i * PAGE, PAGE, MADV_DONTNEED), 0);
		/* Its event was read, and may not have been applied: who comes before that finds what stays. */
		umm_space_sync(f->space);
		f->range.notifier_seq = umm_read_begin(&f->n);
		rc = umm_range_fault(&f->range);
		busy = rc == -EBUSY;
	}
	assert_true(busy);
	/* Not for ever. */
	while ((f->range.notifier_seq = umm_read_begin(&f->n), rc = umm_range_fault(&f->range)) == -EBUSY)
		usleep(10000);
	assert_int_equal(rc, 0);
	assert_entries(f, 0, 1, what_was_read(true));
}

bool __real_umm_quarantined(struct umm_space *space, uint64_t start, uint64_t end);
bool __wrap_umm_quarantined(struct umm_space *space, uint64_t start, uint64_t end);
int __real_madvise(void *addr, size_t len, int advice);
int __wrap_madvise(void *addr, size_t len, int advice);

static struct fixture *dropped_when_asked, *told_of_when_populated;
static unsigned asks_until_drop;

static void drop_untold(struct fixture *f, unsigned npages)
{
	assert_int_equal(sys3(SYS_madvise, f->mem, npages * PAGE, MADV_DONTNEED), 0);
}

bool __wrap_umm_quarantined(struct umm_space *space, uint64_t start, uint64_t end)
{
	struct fixture *f = dropped_when_asked;

	if (f && !--asks_until_drop) {
		dropped_when_asked = NULL;
		drop_untold(f, NR);
	}
	return __real_umm_quarantined(space, start, end);
}

int __wrap_madvise(void *addr, size_t len, int advice)
{
	struct fixture *f = told_of_when_populated;

	if (f && advice == MADV_POPULATE_READ) {
		told_of_when_populated = NULL;
		umm_quarantine_dropping(f->space, (uintptr_t)f->mem, (uintptr_t)f->mem + NR * PAGE);
	}
	return __real_madvise(addr, len, advice);
}

/* Whenever what was told of happens: what a fault says is there is there. */
static void what_has_been_dropped_was_not_seen(void **state)
{
	struct fixture *f = *state;

	f->range.default_flags = UMM_PFN_REQ_FAULT;
	for (unsigned asks = 1; asks <= 3; asks++) {
		uint64_t now[NR], mark;
		int rc;

		memset(f->mem, 1, NR * PAGE);
		mark = umm_quarantine_mark(f->space);
		umm_quarantine_dropping(f->space, f->range.start, f->range.end);
		asks_until_drop = asks;
		dropped_when_asked = f;
		f->range.notifier_seq = umm_read_begin(&f->n);
		rc = umm_range_fault(&f->range);
		if (dropped_when_asked)
			drop_untold(f, NR);
		dropped_when_asked = NULL;
		assert_true(rc == 0 || rc == -EBUSY);
		memcpy(now, f->entries, sizeof(now));
		assert_int_equal(umm_range_snapshot(&f->range), 0);
		for (unsigned i = 0; i < NR && !rc; i++)
			assert_int_equal(now[i] & UMM_PFN_VALID, f->entries[i] & UMM_PFN_VALID);
		umm_quarantine_lift(f->space, f->range.start, f->range.end, mark);
		while (umm_quarantined(f->space, f->range.start, f->range.end))
			usleep(10000);
	}
}

/* A drop is told of between the question whether there is one and the asking for pages. */
static void what_comes_in_late_is_waited_for(void **state)
{
	struct fixture *f = *state;

	f->mem[0] = 1; /* the only page that is there then */
	told_of_when_populated = f;
	assert_int_equal(umm_space_populate(f->space, f->range.start, NR * PAGE, false), 0);
	assert_null(told_of_when_populated);
	drop_untold(f, 1);
	assert_true(umm_quarantined(f->space, f->range.start, f->range.end));
	drop_untold(f, NR);
	assert_false(umm_quarantined(f->space, f->range.start, f->range.end));
}

/* The sign is unmapped, and nothing is below it: what is touched there now goes still. */
static void what_comes_in_below_an_unmapped_sign_is_waited_for(void **state)
{
	struct fixture *f = *state;
	uint64_t sign = f->range.start + 2 * PAGE;

	f->mem[2 * PAGE] = 1;
	umm_quarantine_dropping(f->space, f->range.start, f->range.end);
	assert_int_equal(sys2(SYS_munmap, sign, PAGE), 0);
	umm_quarantine_unmapping(f->space, sign, sign + PAGE);
	assert_true(umm_quarantined(f->space, f->range.start, sign));
	assert_false(umm_quarantined(f->space, sign + PAGE, f->range.end));
}

/* Of shared memory no lock keeps others away while it is dropped: all of it must have been seen to be absent. */
static void what_is_above_the_sign_of_shared_memory_counts(void **state)
{
	struct fixture *f = *state;
	char *p = mmap(f->mem, NR * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0);

	assert_ptr_equal(p, f->mem);
	p[0] = 1;
	umm_quarantine_dropping(f->space, f->range.start, f->range.end);
	p[2 * PAGE] = 1;
	assert_int_equal(sys3(SYS_madvise, p, PAGE, MADV_REMOVE), 0);
	assert_true(umm_quarantined(f->space, f->range.start, f->range.end));
	assert_int_equal(sys3(SYS_madvise, p, NR * PAGE, MADV_REMOVE), 0);
	assert_false(umm_quarantined(f->space, f->range.start, f->range.end));
}

/* As where the kernel has merged them with a neighbour that is watched; they end when the space is closed. */
static void stacks_of_the_monitor_are_watched(void **state)
{
	struct fixture *f = *state;
	unsigned watched = 0;
	unsigned long a, z;
	char line[512];

	assert_int_equal(umm_space_serve(f->space), 0);
	FILE *maps = fopen("/proc/self/maps", "r");
	assert_non_null(maps);
	while (fgets(line, sizeof(line), maps))
		if (sscanf(line, "%lx-%lx rw-p 00000000 00:00 0", &a, &z) == 2 && z - a >= MONITOR_STACK &&
		    z - a < 2 * MONITOR_STACK + 64 * PAGE)
			watched += !umm_space_watch(f->space, a, z - a);
	fclose(maps);
	assert_true(watched >= 1);
	alarm(20); /* the end of this test is what it tests */
}

/* Who reads events frees such memory, which would wait for itself; the whole of it is one mapping. */
static void memory_of_the_library_is_not_watched(void **state)
{
	struct fixture *f = *state;
	char *p = umm_alloc(f->space, 3 * PAGE);
	uint64_t start = (uintptr_t)p & ~(PAGE - 1), mem = (uintptr_t)f->mem;

	assert_non_null(p);
	assert_int_equal(umm_space_watch(f->space, start, 3 * PAGE), -EINVAL);
	assert_int_equal(umm_space_watch_around(f->space, start, start + PAGE), -EINVAL);
	alarm(60);
	umm_free(f->space, p, 3 * PAGE);
	alarm(0);
	/* What lies beside it is. */
	if (f->space->uffd >= 0 || !umm_space_watch(f->space, mem, NR * PAGE))
		assert_int_equal(umm_space_watch_around(f->space, mem, mem + PAGE), 0);
}

static void *freed; /* a page that is watched */

static void free_watched(struct umm_notifier *n)
{
	assert_int_equal(munmap(freed, PAGE), 0);
	freed = NULL;
}

static void destroy_watched(void *priv)
{
	free_watched(NULL);
}

/* As a cache frees buffers, and malloc gives back what was at the top of a heap that is watched. */
static void what_is_watched_is_freed(struct fixture *f)
{
	freed = map(1, PROT_READ | PROT_WRITE);
	assert_int_equal(umm_space_watch(f->space, (uintptr_t)freed, PAGE), 0);
	alarm(20); /* the end of this test is what it tests */
}

static void a_notifier_frees_what_is_watched(void **state)
{
	static const struct umm_notifier_ops frees = {.invalidate = drop, .release = free_watched};
	static struct umm_notifier n;
	struct fixture *f = *state;

	assert_int_equal(umm_notifier_insert(&n, f->space, (uintptr_t)f->mem, PAGE, &frees), 0);
	what_is_watched_is_freed(f);
}

static void what_hangs_on_a_space_frees_what_is_watched(void **state)
{
	struct fixture *f = *state;

	f->space->destroy = destroy_watched;
	what_is_watched_is_freed(f);
}

static int teardown_with_what_was_freed(void **state)
{
	int rc = teardown(state);

	alarm(0);
	return rc || freed ? -1 : 0;
}

static int teardown_in_time(void **state)
{
	int rc = teardown(state);

	alarm(0);
	return rc;
}

/* As on kernels before 6.11.  All that there is, but for the size of huge pages, is said the same way. */
static void mappings_by_text(void **state)
{
	struct fixture *f = *state;
	unsigned n = 0;

	for (uint64_t at = 0;; n++) {
		struct umm_vma q = {0}, t = {0};
		int rc, want;

		f->space->maps_text = false;
		want = umm_vma_next(f->space, at, &q);
		if (f->space->maps_text)
			skip();
		f->space->maps_text = true;
		rc = umm_vma_next(f->space, at, &t);
		if (want == -ENOENT && !rc)
			assert_true(t.flags & UMM_VMA_SPECIAL &&
				    t.start >> 63); /* the text has vsyscall, which is none */
		else
			assert_int_equal(rc, want);
		if (want)
			break;
		assert_int_equal(t.start, q.start);
		assert_int_equal(t.end, q.end);
		assert_int_equal(t.flags, q.flags);
		assert_int_equal(t.offset, q.offset);
		assert_int_equal(t.inode, q.inode);
		assert_int_equal(t.dev_major, q.dev_major);
		assert_int_equal(t.dev_minor, q.dev_minor);
		at = t.end;
	}
	assert_true(n > 10);
}

/* glibc's, which who calls fork() holds, with those of malloc, until its event has been read. */
void _IO_list_lock(void) __attribute__((weak));
void _IO_list_unlock(void) __attribute__((weak));

static void *look(void *arg)
{
	struct fixture *f = arg;
	struct umm_vma v;

	return umm_vma_next(f->space, f->range.start, &v) ? f : NULL;
}

/* Who reads events looks at mappings as well (quarantine.c). */
static void mappings_by_text_while_somebody_forks(void **state)
{
	struct fixture *f = *state;
	pthread_t thread;
	void *failed;

	if (!_IO_list_lock)
		skip();
	f->space->maps_text = true;
	alarm(20);
	_IO_list_lock();
	int rc = pthread_create(&thread, NULL, look, f);
	if (!rc)
		pthread_join(thread, &failed);
	_IO_list_unlock();
	alarm(0);
	assert_int_equal(rc, 0);
	assert_null(failed);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(stacks_of_the_monitor_are_watched, setup, teardown_in_time),
		cmocka_unit_test_setup_teardown(a_notifier_frees_what_is_watched, setup, teardown_with_what_was_freed),
		cmocka_unit_test_setup_teardown(what_hangs_on_a_space_frees_what_is_watched, setup,
						teardown_with_what_was_freed),
		TEST(memory_of_the_library_is_not_watched),
		TEST(bad_ranges),
		TEST(snapshot_faults_nothing),
		TEST(a_hole_at_the_end),
		TEST(after_fork_pages_are_shared),
		TEST(files_and_shared_memory),
		TEST(fault_brings_in),
		TEST(what_is_asked_of_each_page),
		TEST(fault_refuses),
		TEST(mappings_are_spanned),
		TEST(a_change_makes_it_busy),
		TEST(guard_pages),
		TEST(the_deadline_is_kept),
		TEST(huge_pages),
		TEST(another_process),
		TEST(what_is_about_to_be_dropped_is_busy),
		TEST(what_has_been_dropped_was_not_seen),
		TEST(what_comes_in_late_is_waited_for),
		TEST(what_comes_in_below_an_unmapped_sign_is_waited_for),
		TEST(what_is_above_the_sign_of_shared_memory_counts),
		TEST(mappings_by_text),
		TEST(mappings_by_text_while_somebody_forks),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
