/* SPDX-License-Identifier: MIT */
/* Device memory: pages that go there, come back, and are what they were. */
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdatomic.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#include "conform.h"
#include "../hugetlb.h"

static void migrate(const struct variant *v)
{
	int fd = dev_open(v->dev);
	char *p = anon(), *buf = anon();

	number(p, SIZE, 1);
	migrate_all(fd, p, buf, NPAGES);
	CHECK_NUMBERED(buf, SIZE, 1);
	check_snapshot(fd, p, NPAGES, local(v));
	CHECK_NUMBERED(p, SIZE, 1);
}

static void touch_brings_back_ten_rounds(const struct variant *v)
{
	int fd = dev_open(v->dev);
	char *p = anon(), *buf = anon();

	for (unsigned round = 0; round < 10; round++) {
		number(p, SIZE, round);
		migrate_all(fd, p, buf, NPAGES);
		CHECK_NUMBERED(buf, SIZE, round);
		CHECK_NUMBERED(p, SIZE, round);
		if (!v->coherent)
			check_snapshot(fd, p, NPAGES, P_WRITE);
	}
}

/* Half of them touched, and all of them asked for again. */
static void a_mix_of_both(const struct variant *v)
{
	int fd = dev_open(v->dev);
	char *p = anon(), *buf = anon();

	number(p, SIZE, 1);
	migrate_all(fd, p, buf, NPAGES);
	CHECK_NUMBERED(p, SIZE / 2, 1);
	check_snapshot(fd, p, NPAGES / 2, v->coherent ? local(v) : P_WRITE);
	check_snapshot(fd, p + SIZE / 2, NPAGES / 2, local(v));
	memset(buf, 0, SIZE);
	migrate_all(fd, p, buf, NPAGES);
	CHECK_NUMBERED(buf, SIZE, 1);
	check_snapshot(fd, p, NPAGES, local(v));
	CHECK_NUMBERED(p, SIZE, 1);
}

static void back_by_command(const struct variant *v)
{
	int fd = dev_open(v->dev);
	char *p = anon(), *buf = anon();
	struct command c;

	for (unsigned round = 0; round < 10; round++) {
		number(p, SIZE, round);
		migrate_all(fd, p, buf, NPAGES);
		CHECK_EQ(dev_cmd(fd, MIGRATE_TO_SYS, p, buf, NPAGES, &c), 0);
		CHECK_EQ(c.cpages, NPAGES);
		check_snapshot(fd, p, NPAGES, P_WRITE);
		CHECK_NUMBERED(p, SIZE, round);
	}
	CHECK_EQ(dev_cmd(fd, MIGRATE_TO_SYS, p, buf, NPAGES, &c), 0);
	CHECK_EQ(c.cpages, 0);
	CHECK_EQ(munmap(p + 4 * PAGE, PAGE), 0);
	CHECK_EQ(dev_cmd(fd, MIGRATE_TO_SYS, p, buf, NPAGES, &c), -EINVAL);
	CHECK_EQ(mprotect(p, PAGE, PROT_NONE), 0);
	CHECK_EQ(dev_cmd(fd, MIGRATE_TO_SYS, p, buf, 1, &c), -EINVAL);
}

static void release_and_close_keep_data(const struct variant *v)
{
	int fd = dev_open(v->dev);
	char *p = anon(), *buf = anon();
	struct command c;

	number(p, SIZE, 1);
	migrate_all(fd, p, buf, NPAGES);
	CHECK_EQ(dev_cmd(fd, RELEASE, p, buf, NPAGES, &c), 0);
	check_snapshot(fd, p, NPAGES, P_WRITE);
	CHECK_NUMBERED(p, SIZE, 1);
	migrate_all(fd, p, buf, NPAGES);
	CHECK_EQ(close(fd), 0);
	fd = dev_open(v->dev);
	check_snapshot(fd, p, NPAGES, P_WRITE);
	CHECK_NUMBERED(p, SIZE, 1);
}

/* All of the device's, whoever had them taken there, and nothing of another's. */
static void release_and_close_are_of_one_device(const struct variant *v)
{
	int one = dev_open(v->dev), again = dev_open(v->dev), two = dev_open(v->other);
	char *p = anon(), *q = anon(), *buf = anon();
	struct command c;

	number(p, SIZE, 1);
	number(q, SIZE, 2);
	for (unsigned closing = 0; closing < 2; closing++) {
		migrate_all(one, p, buf, NPAGES);
		migrate_all(two, q, buf, NPAGES);
		if (closing)
			CHECK_EQ(close(again), 0);
		else
			CHECK_EQ(dev_cmd(again, RELEASE, p, buf, NPAGES, &c), 0);
		check_snapshot(one, p, NPAGES, P_WRITE);
		check_snapshot(two, q, NPAGES, local(v));
		CHECK_NUMBERED(p, SIZE, 1);
	}
	CHECK_NUMBERED(q, SIZE, 2);
}

/* Mappings before the one that cannot go have gone. */
static void what_comes_before_has_gone(const struct variant *v)
{
	int fd = dev_open(v->dev);
	char *buf = anon();

	for (unsigned how = 0; how < 3; how++) {
		char *p = map(4 * HUGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS), *bad;
		int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_HUGETLB;
		struct command c;

		CHECK_EQ(madvise(p, 4 * HUGE_SIZE, MADV_NOHUGEPAGE), 0);
		bad = (char *)(((uintptr_t)p + HUGE_SIZE) & ~(HUGE_SIZE - 1));
		p = bad - 16 * PAGE;
		number(p, 16 * PAGE, 1);
		if (how == 0)
			CHECK_EQ(munmap(bad, PAGE), 0);
		else if (how == 1)
			CHECK_EQ(mprotect(bad, PAGE, PROT_NONE), 0);
		else if (mmap(bad, HUGE_SIZE, PROT_READ | PROT_WRITE, flags, -1, 0) != bad)
			SKIP("no hugetlb pages are set aside");
		CHECK_EQ(dev_cmd(fd, MIGRATE_TO_DEV, p, buf, 32, &c), -EINVAL);
		CHECK_EQ(c.cpages, 999);
		check_snapshot(fd, p, 16, local(v));
		CHECK_NUMBERED(p, 16 * PAGE, 1);
		if (how == 2)
			munmap(bad, HUGE_SIZE);
	}
}

static void zero_readonly_and_written(const struct variant *v)
{
	int fd = dev_open(v->dev);
	char *p = anon(), *buf = anon();
	struct command c;

	/* Never touched, read only once, written, written and read-only now; then a hole, and no access. */
	(void)*(volatile char *)(p + PAGE);
	number(p + 2 * PAGE, PAGE, 2);
	number(p + 3 * PAGE, PAGE, 3);
	CHECK_EQ(mprotect(p + 3 * PAGE, PAGE, PROT_READ), 0);
	CHECK_EQ(munmap(p + 4 * PAGE, PAGE), 0);
	CHECK_EQ(mprotect(p + 6 * PAGE, PAGE, PROT_NONE), 0);
	migrate_all(fd, p, buf, 4);
	CHECK(all_zero(buf, 2 * PAGE));
	CHECK_NUMBERED(buf + 2 * PAGE, PAGE, 2);
	CHECK_NUMBERED(buf + 3 * PAGE, PAGE, 3);
	/* What may be written follows the mapping. */
	check_snapshot(fd, p, 3, local(v));
	check_snapshot(fd, p + 3 * PAGE, 1, (local(v) & ~P_WRITE) | P_READ);
	CHECK_EQ(dev_cmd(fd, WRITE, p + 3 * PAGE, buf, 1, &c), -EPERM);
	CHECK_EQ(dev_cmd(fd, MIGRATE_TO_DEV, p, buf, 6, &c), -EINVAL);
	CHECK_EQ(dev_cmd(fd, MIGRATE_TO_DEV, p + 5 * PAGE, buf, 2, &c), -EINVAL);
	CHECK(all_zero(p, 2 * PAGE));
	CHECK_NUMBERED(p + 2 * PAGE, PAGE, 2);
	CHECK_NUMBERED(p + 3 * PAGE, PAGE, 3);
}

static void shared_memory_does_not_go(const struct variant *v)
{
	int fd = dev_open(v->dev);
	char *p = map(SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS), *buf = anon();
	struct command c;

	number(p, SIZE, 1);
	CHECK_EQ(dev_cmd(fd, MIGRATE_TO_DEV, p, buf, NPAGES, &c), -ENOENT);
	/* But where the device has read it before, it has an entry. */
	CHECK_EQ(dev_cmd(fd, READ, p, buf, NPAGES, &c), 0);
	memset(buf, 0, SIZE);
	CHECK_EQ(dev_cmd(fd, MIGRATE_TO_DEV, p, buf, NPAGES, &c), 0);
	CHECK_EQ(c.cpages, NPAGES);
	CHECK_NUMBERED(buf, SIZE, 1);
}

/* SIZE bytes of a file that is numbered from 7 on; @what: a memory file, or one that is deleted. */
static int numbered_file(unsigned what)
{
	int file = what ? open("/var/tmp", O_TMPFILE | O_RDWR, 0600) : memfd_create("file", 0);
	char *buf = anon();

	if (file < 0)
		file = memfd_create("file", 0);
	number(buf, SIZE, 7);
	CHECK_EQ(pwrite(file, buf, SIZE, 0), (long)SIZE);
	munmap(buf, SIZE);
	return file;
}

static void copies_of_file_pages(const struct variant *v)
{
	int fd = dev_open(v->dev);
	char *buf = anon();
	struct command c;

	for (unsigned what = 0; what < 4; what++) {
		int file = numbered_file(what & 1);
		char *p = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0);
		bool readonly = what & 2;

		CHECK(p != MAP_FAILED);
		if (!geteuid()) /* others get at the file only while it is open */
			close(file);
		number(p, SIZE, 1);
		if (readonly)
			CHECK_EQ(mprotect(p, SIZE, PROT_READ), 0);
		migrate_all(fd, p, buf, NPAGES);
		CHECK_NUMBERED(buf, SIZE, 1);
		check_snapshot(fd, p, NPAGES, readonly ? (local(v) & ~P_WRITE) | P_READ : local(v));
		CHECK_EQ(dev_cmd(fd, WRITE, p, buf, 1, &c), readonly ? -EPERM : 0);
		CHECK_NUMBERED(p, SIZE, 1);
		/* The second time it is as any other memory. */
		migrate_all(fd, p, buf, NPAGES);
		CHECK_NUMBERED(buf, SIZE, 1);
		/* Dropped, on the device and not, it is the file's. */
		(void)*(volatile char *)(p + 2 * PAGE);
		CHECK_EQ(madvise(p + PAGE, 2 * PAGE, MADV_DONTNEED), 0);
		CHECK_NUMBERED(p + PAGE, 2 * PAGE, 7 + PAGE / 4);
		CHECK_NUMBERED(p, PAGE, 1);
		CHECK_NUMBERED(p + 3 * PAGE, SIZE - 3 * PAGE, 1 + 3 * PAGE / 4);
		CHECK_EQ(munmap(p, SIZE), 0);
	}
}

/* They are forked, moved and unmapped in part as ever; what is dropped is the file's at that place. */
static void copies_of_file_pages_move(const struct variant *v)
{
	size_t len = 32 * PAGE;
	int fd = dev_open(v->dev), file = numbered_file(1), status;
	char *buf = anon();

	for (unsigned how = 0; how < 4; how++) {
		bool dontunmap = how & 1, away = how & 2;
		int flags = MREMAP_MAYMOVE | MREMAP_FIXED | (dontunmap ? MREMAP_DONTUNMAP : 0);
		char *to = map(len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS), *p;
		pid_t pid;

		p = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, PAGE);
		CHECK(p != MAP_FAILED);
		number(p, len, 1);
		migrate_all(fd, p, buf, 32);
		pid = fork();
		if (!pid) {
			CHECK_NUMBERED(p, len, 1);
			number(p, len, 2);
			_exit(0);
		}
		CHECK_EQ(waitpid(pid, &status, 0), pid);
		CHECK_EQ(status, 0);
		CHECK_NUMBERED(p, PAGE, 1);
		if (away)
			migrate_all(fd, p, buf, 32);
		CHECK(mremap(p, len, len, flags, to) == to);
		/* Pages 1 and 8 of it, which are 2 and 9 of the file. */
		CHECK_EQ(madvise(to + PAGE, PAGE, MADV_DONTNEED), 0);
		CHECK_EQ(munmap(to + 4 * PAGE, 2 * PAGE), 0);
		CHECK_EQ(madvise(to + 8 * PAGE, PAGE, MADV_DONTNEED), 0);
		CHECK_NUMBERED(to, PAGE, 1);
		CHECK_NUMBERED(to + PAGE, PAGE, 7 + 2 * PAGE / 4);
		CHECK_NUMBERED(to + 2 * PAGE, 2 * PAGE, 1 + 2 * PAGE / 4);
		CHECK_NUMBERED(to + 6 * PAGE, 2 * PAGE, 1 + 6 * PAGE / 4);
		CHECK_NUMBERED(to + 8 * PAGE, PAGE, 7 + 9 * PAGE / 4);
		CHECK_NUMBERED(to + 9 * PAGE, len - 9 * PAGE, 1 + 9 * PAGE / 4);
		/* Nothing of it is left where other memory is now. */
		CHECK(mmap(to, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == to);
		number(to, len, 3);
		migrate_all(fd, to, buf, 32);
		CHECK_EQ(madvise(to, len, MADV_DONTNEED), 0);
		CHECK(all_zero(to, len));
		if (dontunmap)
			CHECK_NUMBERED(p, len, 7 + PAGE / 4);
		munmap(to, len);
		munmap(p, len);
	}
}

/* What was never written stays the file's, and where it is. */
static void pages_of_a_file_stay(const struct variant *v)
{
	int fd = dev_open(v->dev), file = numbered_file(1);
	char *p = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0), *buf = anon();
	struct command c;

	CHECK(p != MAP_FAILED);
	for (size_t at = 0; at < SIZE; at += 4 * PAGE)
		number(p + at, 2 * PAGE, 1);
	CHECK_EQ(dev_cmd(fd, MIGRATE_TO_DEV, p, buf, NPAGES, &c), -ENOENT);
	for (size_t at = 0; at < SIZE; at += 4 * PAGE) {
		check_snapshot(fd, p + at, 2, local(v));
		CHECK_NUMBERED(p + at, 2 * PAGE, 1);
		CHECK_NUMBERED(p + at + 2 * PAGE, 2 * PAGE, 7 + (at + 2 * PAGE) / 4);
	}
	CHECK_EQ(pread(file, buf, SIZE, 0), (long)SIZE);
	CHECK_NUMBERED(buf, SIZE, 7);
}

/* Of the program's own image: initialised data, which is a file's, and memory that begins as zeros, which is not. */
static unsigned data_of_image[16 * PAGE / 4] __attribute__((aligned(PAGE))) = {1, 2, 3};
static unsigned bss_of_image[16 * PAGE / 4] __attribute__((aligned(PAGE)));

static void variables(const struct variant *v)
{
	unsigned *const var[] = {data_of_image, bss_of_image};
	int fd = dev_open(v->dev);
	char *buf = anon();

	for (unsigned i = 0; i < 2; i++) {
		char *p = (char *)var[i];

		for (unsigned round = 0; round < 3; round++) {
			number(p, 16 * PAGE, round);
			migrate_all(fd, p, buf, 16);
			CHECK_NUMBERED(buf, 16 * PAGE, round);
			check_snapshot(fd, p, 16, local(v));
			var[i][PAGE]++;
			CHECK_EQ(var[i][PAGE], PAGE + round + 1);
			var[i][PAGE]--;
			CHECK_NUMBERED(p, 16 * PAGE, round);
		}
	}
}

struct user {
	volatile uint64_t *word; /* one a page */
	atomic_bool stop;
	atomic_ulong rounds;
};

#define USED_PAGES 64u

/* Counts in each page of the mapping, and finds its own count there, always. */
static void *counts(void *arg)
{
	struct user *u = arg;

	for (uint64_t n = 1000; !atomic_load(&u->stop); n++) {
		for (unsigned i = 0; i < USED_PAGES; i++) {
			uint64_t *word = (uint64_t *)((char *)u->word + i * PAGE);
			uint64_t was = __atomic_load_n(word, __ATOMIC_RELAXED);

			if (was != n - 1) {
				printf("    page %u: %llu, not %llu\n", i, (unsigned long long)was,
				       (unsigned long long)n - 1);
				fflush(stdout);
				_exit(1);
			}
			__atomic_store_n(word, n, __ATOMIC_RELAXED);
		}
		atomic_fetch_add(&u->rounds, 1);
	}
	return NULL;
}

/* No write is lost, and none is seen late, while pages go and come. */
static void file_pages_in_use(const struct variant *v)
{
	int fd = dev_open(v->dev);
	char *buf = anon();

	for (unsigned round = 0; round < 30; round++) {
		int file = numbered_file(1);
		char *p = mmap(NULL, USED_PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0);
		struct user u = {.word = (uint64_t *)p};
		struct command c;
		pthread_t t;

		CHECK(p != MAP_FAILED);
		for (unsigned i = 0; i < USED_PAGES; i++)
			*(uint64_t *)(p + i * PAGE) = 999;
		CHECK_EQ(pthread_create(&t, NULL, counts, &u), 0);
		while (atomic_load(&u.rounds) < 10)
			sched_yield();
		for (unsigned i = 0; i < 3; i++) {
			/* Not all need be there at the end: somebody uses them. */
			int rc = dev_cmd(fd, MIGRATE_TO_DEV, p, buf, USED_PAGES, &c);

			CHECK(!rc || rc == -ENOENT || rc == -EBUSY);
		}
		atomic_store(&u.stop, true);
		pthread_join(t, NULL);
		munmap(p, USED_PAGES * PAGE);
		close(file);
	}
}

static sigjmp_buf refused;

static void on_segv(int sig)
{
	siglongjmp(refused, 1);
}

/* Who may only read finds what is there, and cannot write, at any moment. */
static void *reads_and_tries(void *arg)
{
	struct user *u = arg;

	while (!atomic_load(&u->stop)) {
		for (unsigned i = 0; i < USED_PAGES; i++) {
			volatile uint64_t *word = (uint64_t *)((char *)u->word + i * PAGE);

			if (*word != i + 1) {
				printf("    page %u: %llu\n", i, (unsigned long long)*word);
				fflush(stdout);
				_exit(1);
			}
			if (!sigsetjmp(refused, 1)) {
				*word = 0;
				printf("    read-only memory was written\n");
				fflush(stdout);
				_exit(1);
			}
		}
		atomic_fetch_add(&u->rounds, 1);
	}
	return NULL;
}

static void readonly_pages_in_use(const struct variant *v)
{
	int fd = dev_open(v->dev);
	char *buf = anon(), *p = anon();
	struct user u = {.word = (uint64_t *)p};
	struct command c;
	pthread_t t;

	signal(SIGSEGV, on_segv);
	for (unsigned i = 0; i < USED_PAGES; i++)
		*(uint64_t *)(p + i * PAGE) = i + 1;
	CHECK_EQ(mprotect(p, SIZE, PROT_READ), 0);
	CHECK_EQ(pthread_create(&t, NULL, reads_and_tries, &u), 0);
	for (unsigned round = 0; round < 100; round++) {
		int rc = dev_cmd(fd, MIGRATE_TO_DEV, p, buf, USED_PAGES, &c);

		CHECK(!rc || rc == -ENOENT || rc == -EBUSY);
	}
	atomic_store(&u.stop, true);
	pthread_join(t, NULL);
	/* It is still one mapping, and can be moved as such. */
	char *to = map(SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS);

	CHECK(mremap(p, SIZE, SIZE, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to);
	for (unsigned i = 0; i < USED_PAGES; i++)
		CHECK_EQ(*(uint64_t *)(to + i * PAGE), i + 1);
}

/* Private devices do not get it, and it stays locked: MADV_COLD is refused on such memory alone. */
static void locked_memory_stays(const struct variant *v)
{
	int fd = dev_open(v->dev), file = numbered_file(0);
	char *buf = anon();

	for (unsigned how = 0; how < 4; how++) {
		char *p = how & 1 ? mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0) : anon();
		struct command c;
		int rc;

		CHECK(p != MAP_FAILED);
		number(p, SIZE, 1);
		if (how & 2)
			CHECK_EQ(mprotect(p, SIZE, PROT_READ), 0);
		if (mlock(p, 8 * PAGE))
			SKIP("nothing can be locked");
		rc = dev_cmd(fd, MIGRATE_TO_DEV, p, buf, 16, &c);
		CHECK_EQ(rc, v->coherent ? 0 : -ENOENT);
		for (unsigned i = 0; i < 8; i++)
			CHECK(madvise(p + i * PAGE, PAGE, MADV_COLD) == -1 && errno == EINVAL);
		CHECK_EQ(madvise(p + 8 * PAGE, PAGE, MADV_COLD), 0);
		check_snapshot(fd, p + 8 * PAGE, 8, how & 2 ? (local(v) & ~P_WRITE) | P_READ : local(v));
		CHECK_NUMBERED(p, SIZE, 1);
		munmap(p, SIZE);
	}
}

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#endif

static void readonly_guards_stay(const struct variant *v)
{
	int fd = dev_open(v->dev);
	char *buf = anon(), *p = anon();
	struct command c;

	signal(SIGSEGV, on_segv);
	number(p, SIZE, 1);
	CHECK_EQ(mprotect(p, SIZE, PROT_READ), 0);
	if (madvise(p + 5 * PAGE, PAGE, MADV_GUARD_INSTALL))
		SKIP("the kernel has no guard regions");
	for (unsigned round = 0; round < 3; round++) {
		/* It is no page that could go; what lies beside it may go, or stay. */
		CHECK_EQ(dev_cmd(fd, MIGRATE_TO_DEV, p, buf, NPAGES, &c), -ENOENT);
		CHECK_NUMBERED(p, 5 * PAGE, 1);
		CHECK_NUMBERED(p + 6 * PAGE, SIZE - 6 * PAGE, 1 + 6 * PAGE / 4);
		if (!sigsetjmp(refused, 1)) {
			(void)*(volatile char *)(p + 5 * PAGE);
			printf("    the guard has gone\n");
			fflush(stdout);
			_exit(1);
		}
	}
}

static void *pages_out(void *arg)
{
	struct user *u = arg;

	/* Not seen by hooks, as when the kernel does it. */
	while (!atomic_load(&u->stop))
		syscall(SYS_madvise, u->word, USED_PAGES * PAGE, MADV_PAGEOUT);
	return NULL;
}

static bool is_swapped(const void *p)
{
	int fd = open("/proc/self/pagemap", O_RDONLY);
	uint64_t e = 0;

	CHECK_EQ(pread(fd, &e, sizeof(e), (off_t)((uintptr_t)p / PAGE * sizeof(e))), sizeof(e));
	close(fd);
	return e >> 62 & 1;
}

/* Pages that the kernel swaps out while they are on their way. */
static void readonly_pages_swapped_out(const struct variant *v)
{
	int fd = dev_open(v->dev);
	char *buf = anon(), *p = anon();
	struct user u = {.word = (uint64_t *)p};
	struct command c;
	pthread_t t;

	number(p, USED_PAGES * PAGE, 1);
	CHECK_EQ(mprotect(p, SIZE, PROT_READ), 0);
	for (unsigned i = 0; i < 100 && !is_swapped(p); i++)
		madvise(p, USED_PAGES * PAGE, MADV_PAGEOUT);
	if (!is_swapped(p))
		SKIP("there is no swap");
	CHECK_EQ(pthread_create(&t, NULL, pages_out, &u), 0);
	for (unsigned round = 0; round < 50; round++) {
		int rc = dev_cmd(fd, MIGRATE_TO_DEV, p, buf, USED_PAGES, &c);

		CHECK(!rc || rc == -ENOENT || rc == -EBUSY);
		CHECK_NUMBERED(p, USED_PAGES * PAGE, 1);
	}
	atomic_store(&u.stop, true);
	pthread_join(t, NULL);
}

struct forker {
	const uint64_t *word;
	atomic_bool stop;
	bool may_refuse;
	unsigned forks, refused;
};

/* Children of whom no hook knows: each finds what was there. */
static void *forks(void *arg)
{
	struct forker *f = arg;

	while (!atomic_load(&f->stop)) {
		pid_t pid = (pid_t)syscall(SYS_fork);
		int status;

		if (!pid) {
			for (unsigned i = 0; i < USED_PAGES; i++)
				if (__atomic_load_n(f->word + i * PAGE / 8, __ATOMIC_RELAXED) != i + 1)
					_exit(1);
			_exit(0);
		}
		CHECK_EQ(waitpid(pid, &status, 0), pid);
		/* Only pages that may be written can be refused it, while they go for the first time. */
		CHECK(status == 0 || (f->may_refuse && WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS));
		f->forks++;
		f->refused += status != 0;
	}
	return NULL;
}

static void raw_forks_meanwhile(const struct variant *v)
{
	int fd = dev_open(v->dev);
	char *buf = anon();
	unsigned n = 0, refusals = 0;

	for (unsigned round = 0; round < 40; round++) {
		int file = round & 1 ? numbered_file(0) : -1;
		bool writable = round & 2;
		char *p = mmap(NULL, USED_PAGES * PAGE, PROT_READ | PROT_WRITE,
			       MAP_PRIVATE | (file < 0 ? MAP_ANONYMOUS : 0), file, 0);
		struct forker f = {.word = (uint64_t *)p, .may_refuse = file >= 0 && writable};
		struct command c;
		pthread_t t;

		CHECK(p != MAP_FAILED);
		for (unsigned i = 0; i < USED_PAGES; i++)
			*(uint64_t *)(p + i * PAGE) = i + 1;
		if (!writable)
			CHECK_EQ(mprotect(p, USED_PAGES * PAGE, PROT_READ), 0);
		CHECK_EQ(pthread_create(&t, NULL, forks, &f), 0);
		for (unsigned i = 0; i < 5; i++) {
			int rc = dev_cmd(fd, MIGRATE_TO_DEV, p, buf, USED_PAGES, &c);

			CHECK(!rc || rc == -ENOENT || rc == -EBUSY);
			for (unsigned k = 0; k < USED_PAGES; k++)
				CHECK_EQ(*(uint64_t *)(p + k * PAGE), k + 1);
		}
		atomic_store(&f.stop, true);
		pthread_join(t, NULL);
		n += f.forks;
		refusals += f.refused;
		munmap(p, USED_PAGES * PAGE);
		if (file >= 0)
			close(file);
	}
	printf("    %u forks, %u children refused a page\n", n, refusals);
}

static void a_device_mapping_does_not_go(const struct variant *v)
{
	int fd = dev_open(v->dev);
	char *p = anon(), *buf = anon(), *own;
	struct command c;

	number(p, SIZE, 1);
	own = mmap(p + 8 * PAGE, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, fd, 0);
	CHECK(own == p + 8 * PAGE);
	CHECK_EQ(dev_cmd(fd, MIGRATE_TO_DEV, p, buf, NPAGES, &c), -EINVAL);
	check_snapshot(fd, p, 8, local(v));
	CHECK_NUMBERED(p, 8 * PAGE, 1);
}

static void the_device_uses_its_own_pages(const struct variant *v)
{
	int fd = dev_open(v->dev);
	char *p = anon(), *buf = anon();
	struct command c;

	number(p, SIZE, 1);
	migrate_all(fd, p, buf, NPAGES);
	memset(buf, 0, SIZE);
	CHECK_EQ(dev_cmd(fd, READ, p, buf, NPAGES, &c), 0);
	CHECK_NUMBERED(buf, SIZE, 1);
	check_snapshot(fd, p, NPAGES, local(v));
	number(buf, SIZE, 2);
	CHECK_EQ(dev_cmd(fd, WRITE, p, buf, NPAGES, &c), 0);
	check_snapshot(fd, p, NPAGES, local(v));
	CHECK_NUMBERED(p, SIZE, 2);
}

static void two_devices(const struct variant *v)
{
	int one = dev_open(v->dev), two = dev_open(v->other);
	char *p = anon(), *buf = anon();
	struct command c;

	number(p, SIZE, 1);
	migrate_all(one, p, buf, NPAGES / 2);
	migrate_all(two, p + SIZE / 2, buf + SIZE / 2, NPAGES / 2);
	CHECK_NUMBERED(buf, SIZE, 1);
	check_snapshot(one, p, NPAGES / 2, local(v));
	check_snapshot(two, p + SIZE / 2, NPAGES / 2, local(v));
	/* The other sees that it is not the CPU's, or that it is neither's. */
	check_snapshot(two, p, NPAGES / 2, v->coherent ? P_COHERENT_REMOTE | P_WRITE : P_NONE);
	/* What one has, the other does not get; the CPU's in between it does. */
	CHECK_EQ(dev_cmd(two, MIGRATE_TO_DEV, p, buf, NPAGES / 2, &c), -ENOENT);
	check_snapshot(one, p, NPAGES / 2, local(v));
	CHECK_EQ(dev_cmd(one, MIGRATE_TO_SYS, p, buf, NPAGES / 2, &c), 0);
	migrate_all(two, p, buf, NPAGES / 2);
	check_snapshot(two, p, NPAGES, local(v));
	number(buf, SIZE, 2);
	CHECK_EQ(dev_cmd(one, WRITE, p, buf, NPAGES, &c), 0);
	memset(buf, 0, SIZE);
	CHECK_EQ(dev_cmd(two, READ, p, buf, NPAGES, &c), 0);
	CHECK_NUMBERED(buf, SIZE, 2);
	CHECK_NUMBERED(p, SIZE, 2);
}

/* A private and a coherent device. */
static void two_kinds(const struct variant *v)
{
	int one = dev_open(v->dev), two = dev_open((v->dev + 2) % 4);
	char *p = anon(), *buf = anon();
	struct command c;

	number(p, SIZE, 1);
	migrate_all(one, p, buf, NPAGES / 2);
	migrate_all(two, p + SIZE / 2, buf + SIZE / 2, NPAGES / 2);
	CHECK_NUMBERED(buf, SIZE, 1);
	check_snapshot(one, p, NPAGES / 2, local(v));
	check_snapshot(one, p + SIZE / 2, NPAGES / 2, v->coherent ? P_NONE : P_COHERENT_REMOTE | P_WRITE);
	memset(buf, 0, SIZE);
	CHECK_EQ(dev_cmd(two, READ, p, buf, NPAGES, &c), 0);
	CHECK_NUMBERED(buf, SIZE, 1);
	CHECK_NUMBERED(p, SIZE, 1);
}

static void a_child_has_its_own(const struct variant *v)
{
	int fd = dev_open(v->dev), status;
	char *p = anon(), *buf = anon();
	pid_t pid;

	number(p, SIZE, 1);
	migrate_all(fd, p, buf, NPAGES);
	pid = fork();
	if (!pid) {
		struct command c;
		int mine;

		CHECK_NUMBERED(p, SIZE, 1);
		mine = dev_open(0);
		number(buf, SIZE, 2);
		CHECK_EQ(dev_cmd(mine, WRITE, p, buf, NPAGES, &c), 0);
		CHECK_NUMBERED(p, SIZE, 2);
		migrate_all(mine, p, buf, NPAGES);
		CHECK_NUMBERED(p, SIZE, 2);
		_exit(0);
	}
	CHECK_EQ(waitpid(pid, &status, 0), pid);
	CHECK_EQ(status, 0);
	CHECK_NUMBERED(p, SIZE, 1);
}

/* Pages that were on the device when the process forked, and that the parent writes then. */
static void the_parent_writes_after_fork(const struct variant *v)
{
	int fd = dev_open(v->dev), go[2], status;
	char *p = anon(), *buf = anon(), byte;
	pid_t pid;

	number(p, SIZE, 1);
	migrate_all(fd, p, buf, NPAGES);
	CHECK_EQ(pipe(go), 0);
	pid = fork();
	if (!pid) {
		close(go[1]);
		CHECK_EQ(read(go[0], &byte, 1), 0);
		CHECK_NUMBERED(p, SIZE, 1);
		_exit(0);
	}
	/* Of each that is written the system has a copy; the others are where they were. */
	number(p, SIZE / 2, 2);
	check_snapshot(fd, p, NPAGES / 2, P_WRITE);
	if (v->coherent)
		check_snapshot(fd, p + SIZE / 2, NPAGES / 2, P_COHERENT_LOCAL | P_READ);
	number(p + SIZE / 2, SIZE / 2, 2 + SIZE / 8);
	check_snapshot(fd, p, NPAGES, P_WRITE);
	close(go[1]);
	CHECK_EQ(waitpid(pid, &status, 0), pid);
	CHECK_EQ(status, 0);
	CHECK_NUMBERED(p, SIZE, 2);
	/* And go again. */
	migrate_all(fd, p, buf, NPAGES);
	CHECK_NUMBERED(buf, SIZE, 2);
	check_snapshot(fd, p, NPAGES, local(v));
}

/* What a handler of fork does that was registered before any library's: it runs after all of theirs. */
static struct at_fork {
	char *p; /* NULL: nothing */
	pid_t child;
} at_fork;

static void fork_and_wait_for_the_engine(void)
{
	char *p = at_fork.p;

	if (!p)
		return;
	at_fork.p = NULL;
	at_fork.child = (pid_t)syscall(SYS_fork);
	if (!at_fork.child) {
		CHECK_NUMBERED(p, SIZE, 1);
		_exit(0);
	}
	/* Both need who has just read of that fork. */
	CHECK_NUMBERED(p, PAGE, 1);
	CHECK_EQ(syscall(SYS_madvise, p, PAGE, MADV_DONTNEED), 0);
}

static void register_first(void)
{
	pthread_atfork(fork_and_wait_for_the_engine, NULL, NULL);
}

__attribute__((section(".preinit_array"), used)) static void (*before_all_libraries)(void) = register_first;

/*
 * What the engine closes after a fork has a number that the program has given up: a device's, or that of standard
 * input.  It must not wait for who forks, who may be waiting for it.
 */
static void fork_with_the_number_of(const struct variant *v, bool device)
{
	int first = dev_open(v->other), fd = dev_open(v->dev), status;
	char *p = anon(), *buf = anon();
	pid_t pid;

	number(p, SIZE, 1);
	migrate_all(fd, p, buf, NPAGES);
	CHECK_EQ(close(device ? first : STDIN_FILENO), 0);
	at_fork.p = p;
	pid = fork();
	if (!pid) {
		CHECK(all_zero(p, PAGE));
		CHECK_NUMBERED(p + PAGE, SIZE - PAGE, 1 + PAGE / 4);
		_exit(0);
	}
	CHECK_EQ(waitpid(pid, &status, 0), pid);
	CHECK_EQ(status, 0);
	CHECK_EQ(waitpid(at_fork.child, &status, 0), at_fork.child);
	CHECK_EQ(status, 0);
}

static void a_fork_beside_a_closed_device(const struct variant *v)
{
	fork_with_the_number_of(v, true);
}

static void a_fork_without_standard_input(const struct variant *v)
{
	fork_with_the_number_of(v, false);
}

/* By dup2() and close_range() a device's number is closed, and another file's. */
static void a_number_that_is_another_files(const struct variant *v)
{
	int file = memfd_create("file", 0), fd;
	char *p = anon(), *buf = anon();
	struct command c;
	struct stat st;

	CHECK_EQ(ftruncate(file, PAGE), 0);
	number(p, SIZE, 1);
	/* As many as there may be, and more. */
	for (unsigned i = 0; i < 100; i++) {
		fd = dev_open(v->dev);
		if (i < 2)
			migrate_all(fd, p, buf, NPAGES);
		if (i % 2)
			CHECK_EQ(syscall(SYS_close_range, fd, fd, 0), 0);
		CHECK_EQ(dup2(file, fd), fd);
		CHECK(mmap(NULL, 2 * PAGE, PROT_READ, MAP_SHARED, fd, 0) != MAP_FAILED);
		CHECK_EQ(fstat(file, &st), 0);
		CHECK_EQ(st.st_size, PAGE);
		CHECK_EQ(dev_cmd(fd, READ, p, buf, 1, &c), -ENOTTY);
		if (i % 4 < 2)
			CHECK_EQ(close(fd), 0);
	}
	fd = dev_open(v->dev);
	check_snapshot(fd, p, NPAGES, P_WRITE);
	CHECK_NUMBERED(p, SIZE, 1);
}

/* It has the parent's memory neither to read nor to write. */
static void a_raw_child_has_no_device(const struct variant *v)
{
	int fd = dev_open(v->dev), status;
	char *p = anon(), *buf = anon();
	struct command c;
	pid_t pid;

	number(p, SIZE, 1);
	migrate_all(fd, p, buf, NPAGES);
	CHECK_NUMBERED(p, SIZE, 1);
	pid = (pid_t)syscall(SYS_fork);
	if (!pid) {
		number(p, PAGE, 2);
		number(buf, PAGE, 3);
		if (!dev_cmd(fd, WRITE, p, buf, 1, &c) || !dev_cmd(fd, READ, p, buf, 1, &c))
			_exit(1);
		if (misnumbered(buf, PAGE, 3) >= 0 || misnumbered(p, PAGE, 2) >= 0)
			_exit(2);
		_exit(open("/dev/hmm_dmirror0", O_RDWR) >= 0 || close(fd) ? 3 : 0);
	}
	CHECK_EQ(waitpid(pid, &status, 0), pid);
	CHECK_EQ(status, 0);
	CHECK_NUMBERED(p, SIZE, 1);
	migrate_all(fd, p, buf, NPAGES);
	CHECK_NUMBERED(buf, SIZE, 1);
	CHECK_EQ(close(fd), 0);
}

/* Those that end where memory does, or lie nowhere. */
static void paths_at_the_edge(const struct variant *v)
{
	static const char path[] = "/dev/hmm_dmirror0", other[] = "/dev/null";
	char *p = map(2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS), *end = p + PAGE;
	int fd = dev_open(v->dev);
	char *volatile nowhere = (char *)8;
	struct command c;

	CHECK_EQ(mprotect(end, PAGE, PROT_NONE), 0);
	CHECK(open(nowhere, O_RDWR) < 0 && errno == EFAULT);
	CHECK(open(end, O_RDWR) < 0 && errno == EFAULT);
	/* All but the end of it. */
	memcpy(end - sizeof(path) + 1, path, sizeof(path) - 1);
	CHECK(open(end - sizeof(path) + 1, O_RDWR) < 0 && errno == EFAULT);
	CHECK_EQ(close(fd), 0);
	memcpy(end - sizeof(path), path, sizeof(path));
	fd = open(end - sizeof(path), O_RDWR);
	CHECK(fd >= 0);
	CHECK_EQ(dev_cmd(fd, RELEASE, p, p, 1, &c), 0);
	CHECK_EQ(close(fd), 0);
	memcpy(end - sizeof(other), other, sizeof(other));
	fd = open(end - sizeof(other), O_RDWR);
	CHECK(fd >= 0);
	CHECK_EQ(close(fd), 0);
}

static void system_calls(const struct variant *v)
{
	int fd = dev_open(v->dev), file = memfd_create("file", 0), tube[2];
	char *p = anon(), *buf = anon();
	struct iovec iov = {p, 16 * PAGE};

	number(p, SIZE, 1);
	migrate_all(fd, p, buf, NPAGES);
	CHECK_EQ(write(file, p, SIZE), (long)SIZE);
	CHECK_EQ(pread(file, buf, SIZE, 0), (long)SIZE);
	CHECK_NUMBERED(buf, SIZE, 1);
	check_snapshot(fd, p, NPAGES, v->coherent ? local(v) : P_WRITE);
	migrate_all(fd, p, buf, NPAGES);
	number(buf, SIZE, 2);
	CHECK_EQ(pwrite(file, buf, SIZE, 0), (long)SIZE);
	CHECK_EQ(pread(file, p, SIZE, 0), (long)SIZE);
	CHECK_NUMBERED(p, SIZE, 2);
	check_snapshot(fd, p, NPAGES, v->coherent ? local(v) : P_WRITE);
	/* Pages that a pipe holds. */
	migrate_all(fd, p, buf, NPAGES);
	CHECK_EQ(pipe(tube), 0);
	CHECK_EQ(vmsplice(tube[1], &iov, 1, 0), 16 * (long)PAGE);
	check_snapshot(fd, p, 16, v->coherent ? local(v) : P_WRITE);
	CHECK_EQ(read(tube[0], buf, 16 * PAGE), 16 * (long)PAGE);
	CHECK_NUMBERED(buf, 16 * PAGE, 2);
}

static void partial_munmap(const struct variant *v)
{
	static const struct {
		unsigned first, n;
	} cut[] = {{0, 256}, {384, 256}, {768, 256}};

	for (unsigned i = 0; i < 3; i++) {
		int fd = dev_open(v->dev);
		char *p = anon(), *buf = anon(), *at = p + cut[i].first * PAGE;
		size_t first = cut[i].first * PAGE, end = first + cut[i].n * PAGE;

		number(p, SIZE, 1);
		migrate_all(fd, p, buf, NPAGES);
		CHECK_EQ(munmap(at, cut[i].n * PAGE), 0);
		check_snapshot(fd, at, cut[i].n, P_ERROR);
		if (first)
			check_snapshot(fd, p, cut[i].first, local(v));
		CHECK_NUMBERED(p, first, 1);
		CHECK_NUMBERED(p + end, SIZE - end, 1 + end / 4);
		close(fd);
	}
}

static void moved_mappings(const struct variant *v)
{
	static const unsigned offset[] = {0, 128, 512};

	for (unsigned i = 0; i < 12; i++) {
		bool before = i & 1, dontunmap = i & 2;
		size_t off = offset[i / 4] * PAGE, len = SIZE - off;
		int fd = dev_open(v->dev);
		char *p = anon(), *buf = anon(), *to = map(SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS), *q;

		number(p, SIZE, 1);
		if (!before)
			migrate_all(fd, p, buf, NPAGES);
		q = mremap(p + off, len, len, MREMAP_MAYMOVE | MREMAP_FIXED | (dontunmap ? MREMAP_DONTUNMAP : 0), to);
		CHECK(q == to);
		if (before)
			migrate_all(fd, q, buf, len / PAGE);
		else
			check_snapshot(fd, q, len / PAGE, local(v));
		if (dontunmap)
			CHECK(all_zero(p + off, len));
		CHECK_NUMBERED(q, len, 1 + off / 4);
		CHECK_NUMBERED(p, off, 1);
		munmap(p, SIZE);
		munmap(to, SIZE);
		close(fd);
	}
}

/* Huge pages never touched, read only (the zero page), written, and given back. */
static void huge_pages(const struct variant *v)
{
	int fd = dev_open(v->dev);
	char *buf = map(HUGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);

	for (unsigned what = 0; what < 4; what++) {
		char *p = huge(HUGE_SIZE);

		if (what == 1)
			(void)*(volatile char *)p;
		if (what >= 2)
			number(p, HUGE_SIZE, 1);
		if (what == 3)
			CHECK_EQ(madvise(p, HUGE_SIZE, MADV_FREE), 0);
		memset(buf, 0xff, HUGE_SIZE);
		migrate_all(fd, p, buf, HUGE_SIZE / PAGE);
		if (what < 2) {
			CHECK(all_zero(buf, HUGE_SIZE));
			CHECK(all_zero(p, HUGE_SIZE));
		} else if (what == 2) {
			CHECK_NUMBERED(buf, HUGE_SIZE, 1);
			CHECK_NUMBERED(p, HUGE_SIZE, 1);
		}
		/* MADV_FREE: each page is what it was, or zeros. */
		for (size_t at = 0; what == 3 && at < HUGE_SIZE; at += PAGE)
			CHECK(misnumbered(p + at, PAGE, 1 + at / 4) < 0 || all_zero(p + at, PAGE));
		munmap(p, HUGE_SIZE);
	}
}

/* A huge page is one on the device, too; what is away is neither present nor lost, but swapped. */
static void huge_pages_seen(const struct variant *v)
{
	int fd = dev_open(v->dev), pagemap = open("/proc/self/pagemap", O_RDONLY);
	char *buf = map(HUGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
	uint64_t pm[HUGE_SIZE / PAGE];

	for (unsigned what = 0; what < 2; what++) {
		/* Written, or never touched. */
		char *p = what ? huge(HUGE_SIZE) : huge_page(fd, 1);

		migrate_all(fd, p, buf, HUGE_SIZE / PAGE);
		check_snapshot(fd, p, HUGE_SIZE / PAGE, local(v) | (!v->coherent || !what ? P_PMD : 0));
		if (v->coherent)
			continue;
		CHECK_EQ(pread(pagemap, pm, sizeof(pm), (off_t)((uintptr_t)p / PAGE * 8)), (long)sizeof(pm));
		for (unsigned i = 0; i < HUGE_SIZE / PAGE; i++)
			CHECK_EQ(pm[i] >> 62, 1);
		/* Dropped, it is a page of zeros, whether it is read or written first; and goes again. */
		CHECK_EQ(madvise(p, 8 * PAGE, MADV_DONTNEED), 0);
		check_snapshot(fd, p, 8, P_NONE);
		check_snapshot(fd, p + 8 * PAGE, 8, local(v));
		CHECK(all_zero(p, 4 * PAGE));
		p[5 * PAGE] = 1;
		CHECK(all_zero(p + 5 * PAGE + 1, PAGE - 1));
		migrate_all(fd, p, buf, 8);
		CHECK(all_zero(buf, 5 * PAGE));
		CHECK_EQ(buf[5 * PAGE], 1);
		if (!what)
			CHECK_NUMBERED(p + 8 * PAGE, HUGE_SIZE - 8 * PAGE, 1 + 8 * PAGE / 4);
	}
}

static void a_failing_large_allocation(const struct variant *v)
{
	int fd = dev_open(v->dev);
	char *p = huge(HUGE_SIZE), *buf = map(HUGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
	struct command c;

	number(p, HUGE_SIZE, 1);
	CHECK_EQ(dev_cmd(fd, FLAGS, NULL, NULL, 1, &c), 0);
	migrate_all(fd, p, buf, HUGE_SIZE / PAGE);
	CHECK_NUMBERED(buf, HUGE_SIZE, 1);
	CHECK_EQ(dev_cmd(fd, FLAGS, NULL, NULL, 1, &c), 0);
	CHECK_EQ(dev_cmd(fd, MIGRATE_TO_SYS, p, buf, HUGE_SIZE / PAGE, &c), 0);
	CHECK_EQ(c.cpages, HUGE_SIZE / PAGE);
	CHECK_NUMBERED(p, HUGE_SIZE, 1);
	migrate_all(fd, p, buf, HUGE_SIZE / PAGE);
	CHECK_EQ(dev_cmd(fd, FLAGS, NULL, NULL, 1, &c), 0);
	CHECK_NUMBERED(p, HUGE_SIZE, 1);
}

/* Once, also by a touch: what goes after it goes as a whole. */
static void a_failing_large_allocation_once(const struct variant *v)
{
	const size_t pages = HUGE_SIZE / PAGE;
	int fd = dev_open(v->dev), other = dev_open(v->dev);
	char *p = huge_page(fd, 1), *q = huge_page(fd, 2), *buf = huge(HUGE_SIZE);
	struct command c;

	migrate_all(fd, p, buf, pages);
	check_snapshot(fd, p, pages, local(v) | P_PMD);
	/* The device itself may look. */
	CHECK_EQ(dev_cmd(fd, FLAGS, NULL, NULL, 1, &c), 0);
	CHECK_EQ(dev_cmd(fd, READ, p, buf, pages, &c), 0);
	CHECK_NUMBERED(buf, HUGE_SIZE, 1);
	migrate_all(fd, q, buf, pages);
	check_snapshot(fd, q, pages, local(v) | (v->coherent ? P_PMD : 0));
	CHECK_NUMBERED(q, HUGE_SIZE, 2);
	/* Each descriptor has its own; what it has taken as a whole spends it. */
	CHECK_EQ(dev_cmd(other, FLAGS, NULL, NULL, 1, &c), 0);
	CHECK_EQ(dev_cmd(fd, FLAGS, NULL, NULL, 1, &c), 0);
	CHECK_NUMBERED(p, HUGE_SIZE, 1);
	q = huge_page(fd, 3);
	migrate_all(fd, q, buf, pages);
	check_snapshot(fd, q, pages, local(v) | P_PMD);
	p = huge_page(fd, 4);
	migrate_all(other, p, buf, pages);
	check_snapshot(other, p, pages, local(v) | (v->coherent ? P_PMD : 0));
	CHECK_NUMBERED(p, HUGE_SIZE, 4);
	CHECK_NUMBERED(q, HUGE_SIZE, 3);
}

static const struct test tests[] = {
#define T(name)             \
	{                   \
#name, name \
	}
	T(migrate),
	T(touch_brings_back_ten_rounds),
	T(a_mix_of_both),
	T(back_by_command),
	T(release_and_close_keep_data),
	T(release_and_close_are_of_one_device),
	T(what_comes_before_has_gone),
	T(zero_readonly_and_written),
	T(shared_memory_does_not_go),
	T(copies_of_file_pages),
	T(copies_of_file_pages_move),
	T(pages_of_a_file_stay),
	T(variables),
	T(file_pages_in_use),
	T(readonly_pages_in_use),
	T(readonly_guards_stay),
	T(readonly_pages_swapped_out),
	T(raw_forks_meanwhile),
	T(locked_memory_stays),
	T(a_device_mapping_does_not_go),
	T(the_device_uses_its_own_pages),
	T(two_devices),
	T(two_kinds),
	T(a_child_has_its_own),
	T(the_parent_writes_after_fork),
	T(a_fork_beside_a_closed_device),
	T(a_fork_without_standard_input),
	T(a_number_that_is_another_files),
	T(a_raw_child_has_no_device),
	T(paths_at_the_edge),
	T(system_calls),
	T(partial_munmap),
	T(moved_mappings),
	T(huge_pages),
	T(huge_pages_seen),
	T(a_failing_large_allocation),
	T(a_failing_large_allocation_once),
	{0},
};

int main(int argc, char **argv)
{
	int had = hugetlb_pages(-1), rc;

	if (had == 0)
		hugetlb_pages(2);
	rc = run_all(tests, variants, argc, argv);
	if (had == 0)
		hugetlb_pages(0);
	return rc;
}
