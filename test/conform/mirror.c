/* SPDX-License-Identifier: MIT */
/* READ, WRITE and SNAPSHOT: the device looks at memory that is the CPU's. */
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/shm.h>
#include <sys/syscall.h>

#include "conform.h"
#include "../hugetlb.h"
#include "../zeropage.h"

/* Outputs are written on success only. */
static void refused_with(int fd, unsigned n, const void *addr, void *ptr, uint64_t npages, int rc)
{
	struct command c;

	CHECK_EQ(dev_cmd(fd, n, addr, ptr, npages, &c), rc);
	CHECK_EQ(c.cpages, 999);
	CHECK_EQ(c.faults, 999);
}

static void arguments(const struct variant *v)
{
	static const unsigned with_ptr[] = {READ, WRITE, MIGRATE_TO_DEV, SNAPSHOT, EXCLUSIVE, READ_UNLOCKED};
	int fd = dev_open(v->dev);
	char *p = anon(), *buf = anon(), *none = map(PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS);
	struct command c;

	number(p, SIZE, 1);
	for (unsigned n = READ; n <= READ_UNLOCKED; n++) {
		refused_with(fd, n, p + 1, buf, 1, -EINVAL);
		refused_with(fd, n, p, buf, 0, -EINVAL);
		refused_with(fd, n, p, buf, UINT64_MAX / PAGE, -EINVAL);
		refused_with(fd, n, p, buf, UINT64_MAX, -EINVAL);
	}
	refused_with(fd, READ_UNLOCKED + 1, p, buf, 1, -EINVAL);
	refused_with(fd, 255, p, buf, 1, -EINVAL);
	/* Where somebody has cleared the pointer, meanwhile. */
	refused_with(fd, READ, NULL, buf, 1, -EFAULT);
	for (unsigned i = 0; i < sizeof(with_ptr) / sizeof(with_ptr[0]); i++) {
		refused_with(fd, with_ptr[i], p, NULL, 1, -EFAULT);
		refused_with(fd, with_ptr[i], p, none, 1, -EFAULT);
	}
	CHECK_NUMBERED(p, SIZE, 1);
	CHECK_EQ(ioctl(fd, REQUEST(READ), NULL), -1);
	CHECK_EQ(errno, EFAULT);
	munmap(p + PAGE, PAGE);
	refused_with(fd, READ, p, buf, 3, -EFAULT);
	refused_with(fd, READ_UNLOCKED, p, buf, 3, -EFAULT);
	refused_with(fd, WRITE, p, buf, 3, -EFAULT);
	CHECK_EQ(mprotect(p, PAGE, PROT_READ), 0);
	refused_with(fd, WRITE, p, buf, 1, -EPERM);
	close(fd);
	CHECK_EQ(dev_cmd(fd, READ, p, buf, 1, &c), -EBADF);
}

static void read_untouched_and_written(const struct variant *v)
{
	int fd = dev_open(v->dev);
	char *p = anon(), *buf = anon();
	struct command c;

	/* The first page stays untouched, the others are read-only when they are read. */
	number(p, SIZE, 0);
	CHECK_EQ(madvise(p, PAGE, MADV_DONTNEED), 0);
	CHECK_EQ(mprotect(p, SIZE, PROT_READ), 0);
	memset(buf, 0xff, SIZE);
	CHECK_EQ(dev_cmd(fd, READ, p, buf, NPAGES, &c), 0);
	CHECK_EQ(c.cpages, NPAGES);
	CHECK_EQ(c.faults, 1);
	CHECK(all_zero(buf, PAGE));
	CHECK(!memcmp(p, buf, SIZE));
	CHECK_EQ(dev_cmd(fd, READ, p, buf, NPAGES, &c), 0);
	CHECK_EQ(c.faults, 0);
	/* The same where the program could serve the pages itself. */
	p = anon();
	number(p, SIZE, 3);
	CHECK_EQ(dev_cmd(fd, READ_UNLOCKED, p, buf, NPAGES, &c), 0);
	CHECK_EQ(c.faults, 1);
	CHECK_NUMBERED(buf, SIZE, 3);
}

/* At the first page that it has no entry for, the device has the whole rest faulted, with what it has already. */
static void one_fault_for_all_that_is_missing(const struct variant *v)
{
	int fd = dev_open(v->dev);
	char *buf = anon();
	struct command c;

	for (unsigned write = 0; write < 2; write++) {
		char *p = anon();

		number(p, SIZE, 1);
		number(buf, SIZE, 1);
		CHECK_EQ(dev_cmd(fd, READ, p, buf, 4, &c), 0);
		CHECK_EQ(c.faults, 1);
		for (unsigned i = 8; i < NPAGES; i += 8) {
			CHECK_EQ(dev_cmd(fd, READ, p + i * PAGE, buf + i * PAGE, 1, &c), 0);
			CHECK_EQ(c.faults, 1);
		}
		CHECK_EQ(dev_cmd(fd, write ? WRITE : READ, p, buf, NPAGES, &c), 0);
		CHECK_EQ(c.faults, 1);
		CHECK_EQ(c.cpages, NPAGES);
		CHECK_NUMBERED(buf, SIZE, 1);
		CHECK_NUMBERED(p, SIZE, 1);
		CHECK_EQ(dev_cmd(fd, WRITE, p, buf, NPAGES, &c), 0);
		CHECK_EQ(c.faults, 0);
	}
}

static void read_ten_buffers(const struct variant *v)
{
	int fd = dev_open(v->dev);
	char *buf = anon();
	struct command c;

	for (unsigned i = 0; i < 10; i++) {
		char *p = anon();

		number(p, SIZE, i);
		CHECK_EQ(dev_cmd(fd, READ, p, buf, NPAGES, &c), 0);
		CHECK_EQ(c.faults, 1);
		CHECK_NUMBERED(buf, SIZE, i);
		munmap(p, SIZE);
	}
}

/* A device reads zeros that nobody may write; when they may be, they are. */
static void the_zero_page_is_replaced(const struct variant *v)
{
	int fd = dev_open(v->dev);
	char *p = map(SIZE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS), *buf = anon();
	struct command c;

	CHECK_EQ(dev_cmd(fd, READ, p, buf, 1, &c), 0);
	CHECK_EQ(c.faults, 1);
	number(buf, SIZE, 1);
	CHECK_EQ(dev_cmd(fd, WRITE, p, buf, NPAGES, &c), -EPERM);
	CHECK(all_zero(p, SIZE));
	CHECK_EQ(mprotect(p, SIZE, PROT_READ | PROT_WRITE), 0);
	CHECK_EQ(dev_cmd(fd, WRITE, p, buf, NPAGES, &c), 0);
	CHECK_EQ(c.faults, 1);
	CHECK_NUMBERED(p, SIZE, 1);
	CHECK(all_zero(map(PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS), PAGE));
}

struct server {
	int uffd;
	char *base;
	atomic_uint served; /* pages */
	bool had[NPAGES];   /* of the thread that serves */
};

/* The program's own: page i is numbered from i on. */
static void *serve(void *arg)
{
	struct server *s = arg;
	char page[PAGE] __attribute__((aligned(PAGE)));
	struct uffd_msg m;

	while (read(s->uffd, &m, sizeof(m)) == sizeof(m)) {
		uint64_t at = m.arg.pagefault.address & ~(PAGE - 1);
		struct uffdio_copy copy = {.dst = at, .src = (uintptr_t)page, .len = PAGE};
		unsigned i = (unsigned)((at - (uintptr_t)s->base) / PAGE);
		bool again = s->had[i];

		s->had[i] = true;
		number(page, PAGE, i);
		if (!again)
			atomic_fetch_add(&s->served, 1); /* before who waits goes on */
		/*
		 * Who waits may be woken for nothing, by a signal or by a futex of before, faults again, and is read
		 * of a second time as the page comes.
		 */
		CHECK_EQ(ioctl(s->uffd, UFFDIO_COPY, &copy) ? -errno : 0, again ? -EEXIST : 0);
		if (again)
			CHECK_EQ(ioctl(s->uffd, UFFDIO_WAKE, &(struct uffdio_range){at, PAGE}), 0);
	}
	return NULL;
}

static int server_register(const struct server *s, char *p, size_t len)
{
	struct uffdio_register reg = {.range = {(uintptr_t)p, len}, .mode = UFFDIO_REGISTER_MODE_MISSING};

	return ioctl(s->uffd, UFFDIO_REGISTER, &reg) ? -errno : 0;
}

static void server_begin(struct server *s, char *base)
{
	struct uffdio_api api = {.api = UFFD_API};
	pthread_t t;

	*s = (struct server){.uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC), .base = base};
	CHECK(s->uffd >= 0 && !ioctl(s->uffd, UFFDIO_API, &api));
	CHECK_EQ(pthread_create(&t, NULL, serve, s), 0);
}

static void served_by_the_program(const struct variant *v)
{
	int fd = dev_open(v->dev);
	char *p = anon(), *buf = anon();
	struct server s;
	struct command c;

	server_begin(&s, p);
	CHECK_EQ(server_register(&s, p, SIZE), 0);
	CHECK_EQ(dev_cmd(fd, READ_UNLOCKED, p, buf, NPAGES / 2, &c), 0);
	CHECK_EQ(c.faults, 1);
	CHECK_EQ(atomic_load(&s.served), NPAGES / 2);
	for (unsigned i = 0; i < NPAGES / 2; i++)
		CHECK_NUMBERED(buf + i * PAGE, PAGE, i);
	/* It is the program's: it does not go, and is served as before. */
	CHECK_EQ(dev_cmd(fd, MIGRATE_TO_DEV, p, buf, NPAGES, &c), -EBUSY);
	CHECK_EQ(c.cpages, 999);
	CHECK_EQ(dev_cmd(fd, EXCLUSIVE, p, buf, NPAGES / 2, &c), -EBUSY);
	CHECK_EQ(c.cpages, 999);
	for (unsigned i = 0; i < NPAGES; i++)
		CHECK_NUMBERED(p + i * PAGE, PAGE, i);
	CHECK_EQ(atomic_load(&s.served), NPAGES);
	/* Given up, it goes. */
	CHECK_EQ(ioctl(s.uffd, UFFDIO_UNREGISTER, &(struct uffdio_range){(uintptr_t)p, SIZE}), 0);
	CHECK_EQ(dev_cmd(fd, MIGRATE_TO_DEV, p, buf, NPAGES, &c), 0);
	for (unsigned i = 0; i < NPAGES; i++)
		CHECK_NUMBERED(p + i * PAGE, PAGE, i);
}

/* What the device has, or has read, may become the program's own. */
static void registered_by_the_program_later(const struct variant *v)
{
	int fd = dev_open(v->dev);
	char *p = anon(), *buf = anon();
	struct server s, late;
	struct command c;

	server_begin(&s, p);
	server_begin(&late, p);
	for (unsigned i = 0; i < NPAGES; i++)
		number(p + i * PAGE, PAGE, i + 7);
	CHECK_EQ(dev_cmd(fd, MIGRATE_TO_DEV, p, buf, NPAGES, &c), 0);
	CHECK_EQ(server_register(&s, p, SIZE / 2), 0);
	/* The rest is on the device still. */
	CHECK_EQ(dev_cmd(fd, SNAPSHOT, p, buf, NPAGES, &c), 0);
	for (unsigned i = 0; i < NPAGES; i++)
		CHECK_EQ(buf[i],
			 i < NPAGES / 2 ? P_WRITE : (v->coherent ? P_COHERENT_LOCAL : P_PRIVATE_LOCAL) | P_WRITE);
	for (unsigned i = 0; i < NPAGES; i++)
		CHECK_NUMBERED(p + i * PAGE, PAGE, i + 7);
	CHECK_EQ(atomic_load(&s.served), 0);
	CHECK_EQ(dev_cmd(fd, MIGRATE_TO_DEV, p, buf, NPAGES, &c), -EBUSY);
	/* What one of the program's has, another one cannot have, and does not take away. */
	CHECK_EQ(server_register(&late, p, SIZE), -EBUSY);
	CHECK_EQ(madvise(p, SIZE / 2, MADV_DONTNEED), 0);
	for (unsigned i = 0; i < NPAGES / 2; i++)
		CHECK_NUMBERED(p + i * PAGE, PAGE, i);
	CHECK_EQ(atomic_load(&s.served), NPAGES / 2);
	CHECK_EQ(atomic_load(&late.served), 0);
	CHECK_NUMBERED(p + SIZE / 2, PAGE, NPAGES / 2 + 7);
}

static void write_ten_buffers(const struct variant *v)
{
	int fd = dev_open(v->dev);
	char *buf = anon();
	struct command c;

	number(buf, SIZE, 0);
	for (unsigned i = 0; i < 10; i++) {
		char *p = anon();

		CHECK_EQ(dev_cmd(fd, WRITE, p, buf, NPAGES, &c), 0);
		CHECK_EQ(c.cpages, NPAGES);
		CHECK_EQ(c.faults, 1);
		CHECK_NUMBERED(p, SIZE, 0);
	}
}

static void read_then_write(const struct variant *v)
{
	int fd = dev_open(v->dev);
	char *p = anon(), *buf = anon();
	struct command c;

	number(p, SIZE, 1);
	CHECK_EQ(dev_cmd(fd, READ, p, buf, NPAGES, &c), 0);
	CHECK_EQ(c.faults, 1);
	number(buf, SIZE, 2);
	CHECK_EQ(dev_cmd(fd, WRITE, p, buf, NPAGES, &c), 0);
	CHECK_EQ(c.faults, 0);
	CHECK_NUMBERED(p, SIZE, 2);
}

static void protection(const struct variant *v)
{
	int fd = dev_open(v->dev);
	char *p = anon(), *buf = anon();
	struct command c;

	number(p, SIZE, 5);
	number(buf, SIZE, 6);
	CHECK_EQ(mprotect(p, SIZE, PROT_NONE), 0);
	CHECK_EQ(dev_cmd(fd, READ, p, buf, NPAGES, &c), -EFAULT);
	CHECK_NUMBERED(buf, SIZE, 6);
	CHECK_EQ(dev_cmd(fd, WRITE, p, buf, NPAGES, &c), -EFAULT);
	CHECK_EQ(mprotect(p, SIZE, PROT_READ), 0);
	CHECK_EQ(dev_cmd(fd, WRITE, p, buf, NPAGES, &c), -EPERM);
	CHECK_NUMBERED(p, SIZE, 5);
	CHECK_EQ(dev_cmd(fd, READ, p, buf, NPAGES, &c), 0);
	CHECK_NUMBERED(buf, SIZE, 5);
	CHECK_EQ(mprotect(p, SIZE, PROT_READ | PROT_WRITE), 0);
	number(buf, SIZE, 7);
	CHECK_EQ(dev_cmd(fd, WRITE, p, buf, NPAGES, &c), 0);
	CHECK_NUMBERED(p, SIZE, 7);
}

/* A child writes through its own descriptor. */
static void child_writes(const struct variant *v, int flags)
{
	bool shared = flags & MAP_SHARED;
	char *p = map(SIZE, PROT_READ | PROT_WRITE, flags | MAP_ANONYMOUS), *buf = anon();
	struct command c;
	int fd = dev_open(v->dev), status;
	pid_t pid;

	number(p, SIZE, 0);
	number(buf, SIZE, 100);
	pid = fork();
	if (!pid) {
		int mine;

		/* What was inherited is the parent's. */
		CHECK(dev_cmd(fd, WRITE, p, buf, NPAGES, &c) != 0);
		mine = dev_open(0);
		CHECK_EQ(dev_cmd(mine, WRITE, p, buf, NPAGES, &c), 0);
		CHECK_EQ(c.faults, 1);
		CHECK_NUMBERED(p, SIZE, 100);
		close(mine);
		_exit(0);
	}
	CHECK_EQ(waitpid(pid, &status, 0), pid);
	CHECK_EQ(status, 0);
	CHECK_NUMBERED(p, SIZE, shared ? 100 : 0);
	CHECK_EQ(dev_cmd(fd, READ, p, buf, NPAGES, &c), 0);
	CHECK_NUMBERED(buf, SIZE, shared ? 100 : 0);
}

static void fork_private(const struct variant *v)
{
	child_writes(v, MAP_PRIVATE);
}

static void fork_shared(const struct variant *v)
{
	child_writes(v, MAP_SHARED);
}

/* What a child has inherited is its parent's: no command works, and closing it takes nothing away. */
static void inherited_descriptors_are_refused(const struct variant *v)
{
	char *p = anon(), *buf = anon();
	int fd = dev_open(v->dev), status;
	pid_t pid;

	number(p, SIZE, 1);
	migrate_all(fd, p, buf, NPAGES);
	pid = fork();
	if (!pid) {
		struct command c;
		int mine;

		for (unsigned n = READ; n <= READ_UNLOCKED; n++)
			CHECK(dev_cmd(fd, n, p, buf, 1, &c) != 0);
		mine = dev_open(v->dev);
		for (unsigned n = READ; n <= READ_UNLOCKED; n++)
			CHECK(dev_cmd(fd, n, p, buf, 1, &c) != 0);
		CHECK_EQ(dev_cmd(mine, READ, p, buf, NPAGES, &c), 0);
		CHECK_NUMBERED(buf, SIZE, 1);
		close(fd);
		CHECK_EQ(dev_cmd(mine, RELEASE, p, buf, NPAGES, &c), 0);
		_exit(0);
	}
	CHECK_EQ(waitpid(pid, &status, 0), pid);
	CHECK_EQ(status, 0);
	check_snapshot(fd, p, NPAGES, local(v));
	CHECK_NUMBERED(p, SIZE, 1);
}

static void transparent_huge_pages(const struct variant *v)
{
	int fd = dev_open(v->dev);
	char *p = huge(2 * HUGE_SIZE), *buf = anon();
	struct command c;

	number(buf, SIZE, 1);
	CHECK_EQ(dev_cmd(fd, WRITE, p, buf, HUGE_SIZE / PAGE, &c), 0);
	CHECK_EQ(c.faults, 1);
	CHECK_NUMBERED(p, HUGE_SIZE, 1);
	CHECK_EQ(dev_cmd(fd, READ, p, buf, HUGE_SIZE / PAGE, &c), 0);
	CHECK_EQ(c.faults, 0);
}

static void hugetlb(const struct variant *v)
{
	char *p = mmap(NULL, HUGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0), *buf;
	unsigned char snap[4];
	struct command c;
	int fd;

	if (p == MAP_FAILED)
		SKIP("no hugetlb pages are set aside");
	fd = dev_open(v->dev);
	buf = anon();
	number(buf, SIZE, 1);
	CHECK_EQ(dev_cmd(fd, WRITE, p, buf, HUGE_SIZE / PAGE, &c), 0);
	CHECK_EQ(c.faults, 1);
	CHECK_NUMBERED(p, HUGE_SIZE, 1);
	CHECK_EQ(dev_cmd(fd, SNAPSHOT, p, snap, 4, &c), 0);
	CHECK_EQ(snap[3], P_WRITE | P_PMD);
	CHECK_EQ(mprotect(p, HUGE_SIZE, PROT_READ), 0);
	CHECK_EQ(dev_cmd(fd, SNAPSHOT, p, snap, 4, &c), 0);
	CHECK_EQ(snap[0], P_READ | P_PMD);
	CHECK_EQ(dev_cmd(fd, MIGRATE_TO_DEV, p, buf, HUGE_SIZE / PAGE, &c), -EINVAL);
	munmap(p, HUGE_SIZE);
}

static void shared_file(const struct variant *v)
{
	int fd = dev_open(v->dev), file = memfd_create("file", 0);
	char *p, *buf = anon();
	struct command c;

	CHECK_EQ(ftruncate(file, SIZE), 0);
	number(buf, SIZE, 1);
	CHECK_EQ(pwrite(file, buf, SIZE, 0), (long)SIZE);
	p = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	CHECK(p != MAP_FAILED);
	memset(buf, 0, SIZE);
	CHECK_EQ(dev_cmd(fd, READ, p, buf, NPAGES, &c), 0);
	CHECK_EQ(c.faults, 1);
	CHECK_NUMBERED(buf, SIZE, 1);
	number(buf, SIZE, 2);
	CHECK_EQ(dev_cmd(fd, WRITE, p, buf, NPAGES, &c), 0);
	memset(buf, 0, SIZE);
	CHECK_EQ(pread(file, buf, SIZE, 0), (long)SIZE);
	CHECK_NUMBERED(buf, SIZE, 2);
}

static void snapshot(const struct variant *v)
{
	int fd = dev_open(v->dev);
	volatile char *p = anon();
	unsigned char snap[8];
	char *own, buf[PAGE];
	struct command c;

	p[1 * PAGE] = 1;
	(void)p[2 * PAGE];
	p[3 * PAGE] = 1;
	CHECK_EQ(mprotect((char *)p + 3 * PAGE, PAGE, PROT_READ), 0);
	CHECK_EQ(mprotect((char *)p + 4 * PAGE, PAGE, PROT_NONE), 0);
	CHECK_EQ(munmap((char *)p + 5 * PAGE, PAGE), 0);
	p[6 * PAGE] = 1;
	for (unsigned i = 0; i < 3; i++) /* it brings nothing in */
		CHECK_EQ(dev_cmd(fd, SNAPSHOT, (char *)p, snap, 8, &c), 0);
	CHECK_EQ(snap[0], P_NONE);
	CHECK_EQ(snap[1], P_WRITE);
	CHECK_EQ(snap[2], reads_share_a_page() ? P_READ | P_ZERO : P_WRITE);
	CHECK_EQ(snap[3], P_READ);
	CHECK_EQ(snap[4], P_ERROR);
	CHECK_EQ(snap[5], P_ERROR);
	CHECK_EQ(snap[6], P_WRITE);
	CHECK_EQ(snap[7], P_NONE);
	/* The device's own mapping. */
	own = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	CHECK(own != MAP_FAILED);
	CHECK_EQ(dev_cmd(fd, SNAPSHOT, own, snap, 1, &c), 0);
	CHECK_EQ(snap[0], P_READ);
	CHECK_EQ(own[0], 0);
	/* The device reads it as any other. */
	memset(buf, 0xff, PAGE);
	CHECK_EQ(dev_cmd(fd, READ, own, buf, 1, &c), 0);
	CHECK_EQ(c.faults, 1);
	CHECK(all_zero(buf, PAGE));
}

/* Shared with a child, a page would be copied by who writes it; then it is the parent's alone again. */
static void snapshot_of_what_a_fork_left_shared(const struct variant *v)
{
	int fd = dev_open(v->dev), go[2], status;
	char *p = anon(), *buf = anon(), byte;
	struct command c;
	pid_t pid;

	number(p, SIZE, 1);
	CHECK_EQ(dev_cmd(fd, READ, p, buf, NPAGES, &c), 0);
	CHECK_EQ(pipe(go), 0);
	pid = fork();
	if (!pid) {
		close(go[1]);
		CHECK_EQ(read(go[0], &byte, 1), 0);
		CHECK_NUMBERED(p, SIZE, 1);
		_exit(0);
	}
	check_snapshot(fd, p, NPAGES, P_READ);
	number(p, SIZE / 2, 2);
	check_snapshot(fd, p, NPAGES / 2, P_WRITE);
	check_snapshot(fd, p + SIZE / 2, NPAGES / 2, P_READ);
	/* What the device writes goes to a copy, too. */
	number(buf, SIZE, 3);
	CHECK_EQ(dev_cmd(fd, WRITE, p, buf, NPAGES, &c), 0);
	check_snapshot(fd, p, NPAGES, P_WRITE);
	close(go[1]);
	CHECK_EQ(waitpid(pid, &status, 0), pid);
	CHECK_EQ(status, 0);
	CHECK_NUMBERED(p, SIZE, 3);
}

static void snapshot_of_huge_pages(const struct variant *v)
{
	int fd = dev_open(v->dev);
	char *p = huge_page(fd, 1), *zero = huge(HUGE_SIZE), byte;
	FILE *f = fopen("/sys/kernel/mm/transparent_hugepage/use_zero_page", "r");

	check_snapshot(fd, p, HUGE_SIZE / PAGE, P_WRITE | P_PMD);
	CHECK_EQ(mprotect(p, HUGE_SIZE, PROT_READ), 0);
	check_snapshot(fd, p, HUGE_SIZE / PAGE, P_READ | P_PMD);
	/* A part of it with other rights: two mappings, and no huge page any more. */
	CHECK_EQ(mprotect(p, HUGE_SIZE / 2, PROT_READ | PROT_WRITE), 0);
	check_snapshot(fd, p, HUGE_SIZE / PAGE / 2, P_WRITE);
	check_snapshot(fd, p + HUGE_SIZE / 2, HUGE_SIZE / PAGE / 2, P_READ);
	check_snapshot(fd, zero, HUGE_SIZE / PAGE, P_NONE);
	(void)*(volatile char *)zero;
	CHECK(f && fread(&byte, 1, 1, f) == 1);
	fclose(f);
	if (byte != '1' || !reads_share_a_page())
		SKIP("the kernel gives no huge zero page");
	check_snapshot(fd, zero, HUGE_SIZE / PAGE, P_READ | P_PMD);
}

#define GIANT_SIZE (1ul << 30)
#define GIANT_POOL "/sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages"

/* How many hugetlb pages of 1 GiB there are to be, if @want is not negative; how many there were, or -1. */
static int giant_pages(int want)
{
	FILE *f = fopen(GIANT_POOL, want < 0 ? "r" : "r+");
	int had = -1;

	if (f && fscanf(f, "%d", &had) != 1)
		had = -1;
	if (f && want >= 0) {
		rewind(f);
		fprintf(f, "%d", want);
	}
	if (f)
		fclose(f);
	return had;
}

static void snapshot_of_a_giant_page(const struct variant *v)
{
	int fd = dev_open(v->dev), had = giant_pages(-1);
	struct command c;
	unsigned char snap[8];
	char *p, buf[PAGE];

	if (had == 0)
		giant_pages(1);
	p = mmap(NULL, GIANT_SIZE, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | (30 << MAP_HUGE_SHIFT), -1, 0);
	if (p != MAP_FAILED)
		number(p, PAGE, 1);
	if (had == 0)
		giant_pages(0); /* it goes when it is unmapped */
	if (p == MAP_FAILED)
		SKIP("no page of 1 GiB is to be had");
	CHECK_EQ(dev_cmd(fd, SNAPSHOT, p + GIANT_SIZE - 8 * PAGE, snap, 8, &c), 0);
	/* Of some such pages the kernel says that they are shared, whoever has them; they may be written all the same.
	 */
	for (unsigned i = 0; i < 8; i++)
		CHECK(snap[i] == (P_WRITE | P_PUD) || snap[i] == (P_READ | P_PUD));
	CHECK_EQ(dev_cmd(fd, READ, p, buf, 1, &c), 0);
	CHECK_NUMBERED(buf, PAGE, 1);
	number(buf, PAGE, 2);
	CHECK_EQ(dev_cmd(fd, WRITE, p + GIANT_SIZE - PAGE, buf, 1, &c), 0);
	CHECK_NUMBERED(p + GIANT_SIZE - PAGE, PAGE, 2);
	CHECK_EQ(mprotect(p, GIANT_SIZE, PROT_READ), 0);
	check_snapshot(fd, p, 8, P_READ | P_PUD);
	munmap(p, GIANT_SIZE);
}

static void two_devices_read_one_page(const struct variant *v)
{
	int one = dev_open(v->dev), two = dev_open(v->other);
	char *p = anon(), buf[PAGE];
	struct command c;

	number(p, PAGE, 1);
	CHECK_EQ(mprotect(p, PAGE, PROT_READ), 0);
	CHECK_EQ(dev_cmd(one, READ, p, buf, 1, &c), 0);
	CHECK_EQ(c.faults, 1);
	CHECK_NUMBERED(buf, PAGE, 1);
	CHECK_EQ(dev_cmd(two, READ, p, buf, 1, &c), 0);
	CHECK_EQ(c.faults, 1);
	CHECK_NUMBERED(buf, PAGE, 1);
	/* Where one has it in its memory, the other reads it all the same. */
	memset(buf, 0, PAGE);
	CHECK_EQ(dev_cmd(one, MIGRATE_TO_DEV, p, buf, 1, &c), 0);
	CHECK_EQ(c.cpages, 1);
	CHECK_NUMBERED(buf, PAGE, 1);
	memset(buf, 0, PAGE);
	CHECK_EQ(dev_cmd(two, READ, p, buf, 1, &c), 0);
	CHECK_EQ(c.faults, 1);
	CHECK_NUMBERED(buf, PAGE, 1);
}

/* What one writes the other reads, and the CPU, without either asking for the page again. */
static void two_devices_write_one_page(const struct variant *v)
{
	int fd[2] = {dev_open(v->dev), dev_open(v->other)};
	char *p = anon(), *buf = anon();
	struct command c;

	number(p, SIZE, 0);
	for (unsigned i = 0; i < 2; i++) {
		CHECK_EQ(dev_cmd(fd[i], READ, p, buf, NPAGES, &c), 0);
		CHECK_EQ(c.faults, 1);
	}
	for (unsigned round = 1; round < 10; round++) {
		number(buf, SIZE, round);
		CHECK_EQ(dev_cmd(fd[round & 1], WRITE, p, buf, NPAGES, &c), 0);
		CHECK_EQ(c.faults, 0);
		memset(buf, 0, SIZE);
		CHECK_EQ(dev_cmd(fd[~round & 1], READ, p, buf, NPAGES, &c), 0);
		CHECK_EQ(c.faults, 0);
		CHECK_NUMBERED(buf, SIZE, round);
		CHECK_NUMBERED(p, SIZE, round);
	}
	/* Both lose it when the CPU may no longer. */
	CHECK_EQ(mprotect(p, SIZE, PROT_NONE), 0);
	for (unsigned i = 0; i < 2; i++)
		CHECK_EQ(dev_cmd(fd[i], READ, p, buf, NPAGES, &c), -EFAULT);
}

/* Raw calls of which the kernel tells nobody: what they forbid is an error, and nothing else happens. */
static void what_nobody_tells(const struct variant *v)
{
	int fd = dev_open(v->dev), id;
	char *buf = anon(), *p;
	struct command c;

	for (unsigned how = 0; how < 4; how++) {
		bool on_device = how & 1;
		long call = how & 2 ? SYS_pkey_mprotect : SYS_mprotect;

		p = anon();
		number(p, SIZE, 1);
		CHECK_EQ(dev_cmd(fd, READ, p, buf, NPAGES, &c), 0);
		if (on_device)
			CHECK_EQ(dev_cmd(fd, MIGRATE_TO_DEV, p, buf, NPAGES, &c), 0);
		CHECK_EQ(syscall(call, p, SIZE, PROT_READ, -1), 0);
		number(buf, SIZE, 2);
		CHECK_EQ(dev_cmd(fd, WRITE, p, buf, NPAGES, &c), -EPERM);
		CHECK_EQ(dev_cmd(fd, READ, p, buf, NPAGES, &c), 0);
		CHECK_NUMBERED(buf, SIZE, 1);
		CHECK_EQ(syscall(call, p, SIZE, PROT_NONE, -1), 0);
		number(buf, SIZE, 2);
		CHECK_EQ(dev_cmd(fd, READ, p, buf, NPAGES, &c), -EFAULT);
		CHECK_EQ(dev_cmd(fd, WRITE, p, buf, NPAGES, &c), -EFAULT);
		CHECK_NUMBERED(buf, SIZE, 2);
		CHECK_EQ(syscall(call, p, SIZE, PROT_READ | PROT_WRITE, -1), 0);
		CHECK_NUMBERED(p, SIZE, 1);
		munmap(p, SIZE);
	}
	id = shmget(IPC_PRIVATE, SIZE, IPC_CREAT | 0600);
	CHECK(id >= 0);
	p = shmat(id, NULL, 0);
	shmctl(id, IPC_RMID, NULL);
	CHECK(p != (char *)-1);
	number(p, SIZE, 1);
	CHECK_EQ(dev_cmd(fd, READ, p, buf, NPAGES, &c), 0);
	CHECK_EQ(syscall(SYS_shmdt, p), 0);
	number(buf, SIZE, 2);
	CHECK_EQ(dev_cmd(fd, READ, p, buf, NPAGES, &c), -EFAULT);
	CHECK_EQ(dev_cmd(fd, WRITE, p, buf, NPAGES, &c), -EFAULT);
	CHECK_NUMBERED(buf, SIZE, 2);
}

/* Raw calls that replace what was there: the device sees what is there now. */
static void what_is_there_now(const struct variant *v)
{
	int fd = dev_open(v->dev);
	char *buf = anon();

	for (unsigned how = 0; how < 6; how++) {
		char *p = anon(), *away = anon();
		struct command c;

		number(p, SIZE, 1);
		CHECK_EQ(dev_cmd(fd, READ, p, buf, NPAGES, &c), 0);
		if (how & 1)
			CHECK_EQ(dev_cmd(fd, MIGRATE_TO_DEV, p, buf, NPAGES, &c), 0);
		if (how < 2) {
			CHECK_EQ(syscall(SYS_mmap, p, SIZE, PROT_READ | PROT_WRITE,
					 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0),
				 (long)p);
		} else if (how < 4) {
			CHECK_EQ(syscall(SYS_madvise, p, SIZE, MADV_DONTNEED), 0);
		} else {
			CHECK_EQ(syscall(SYS_mremap, p, SIZE, SIZE, MREMAP_MAYMOVE | MREMAP_FIXED, away), (long)away);
			CHECK_EQ(dev_cmd(fd, READ, p, buf, NPAGES, &c), -EFAULT);
			CHECK_EQ(dev_cmd(fd, READ, away, buf, NPAGES, &c), 0);
			CHECK_NUMBERED(buf, SIZE, 1);
			continue;
		}
		CHECK_EQ(dev_cmd(fd, READ, p, buf, NPAGES, &c), 0);
		CHECK(all_zero(buf, SIZE));
		munmap(p, SIZE);
	}
}

struct unmapper {
	char *p;
	unsigned spin;
};

static void *unmap_later(void *arg)
{
	struct unmapper *u = arg;

	for (volatile unsigned i = 0; i < u->spin; i++)
		;
	CHECK_EQ(munmap(u->p, SIZE), 0);
	return NULL;
}

/* The reader gets what was there, or is refused. */
static void munmap_while_the_device_reads(const struct variant *v)
{
	int fd = dev_open(v->dev);
	char *buf = anon();

	for (unsigned round = 0; round < 30; round++) {
		struct unmapper u = {.p = anon(), .spin = round * 20000};
		struct command c;
		pthread_t t;
		int rc;

		number(u.p, SIZE, round);
		memset(buf, 0, SIZE);
		CHECK_EQ(pthread_create(&t, NULL, unmap_later, &u), 0);
		rc = dev_cmd(fd, READ, u.p, buf, NPAGES, &c);
		if (rc)
			CHECK_EQ(rc, -EFAULT);
		else
			CHECK_NUMBERED(buf, SIZE, round);
		pthread_join(t, NULL);
		CHECK_EQ(dev_cmd(fd, READ, u.p, buf, 1, &c), -EFAULT);
	}
}

static const struct test tests[] = {
#define T(name)             \
	{                   \
#name, name \
	}
	T(arguments),
	T(read_untouched_and_written),
	T(one_fault_for_all_that_is_missing),
	T(read_ten_buffers),
	T(write_ten_buffers),
	T(the_zero_page_is_replaced),
	T(served_by_the_program),
	T(registered_by_the_program_later),
	T(read_then_write),
	T(protection),
	T(fork_private),
	T(fork_shared),
	T(inherited_descriptors_are_refused),
	T(transparent_huge_pages),
	T(hugetlb),
	T(shared_file),
	T(snapshot),
	T(snapshot_of_what_a_fork_left_shared),
	T(snapshot_of_huge_pages),
	T(snapshot_of_a_giant_page),
	T(two_devices_read_one_page),
	T(two_devices_write_one_page),
	T(what_nobody_tells),
	T(what_is_there_now),
	T(munmap_while_the_device_reads),
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
