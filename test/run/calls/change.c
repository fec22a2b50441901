/* SPDX-License-Identifier: MIT */
/*
 * What else changes a mapping a part of which is away: mprotect(), munmap() of
 * a part, MAP_FIXED over it, huge pages, brk(), mlockall(), guard regions.
 */
#include "calls.h"

#include <setjmp.h>
#include <signal.h>

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#define MADV_GUARD_REMOVE 103
#endif

static bool raw;

static char *filled(size_t npages, unsigned seed)
{
	char *p = v_map(npages * V_PAGE);

	v_fill_all(p, npages, seed, 0, V_QUARTER);
	wait_away(p, npages, npages / 2, "a mapping to be changed");
	return p;
}

static void is_zero(const char *p, size_t npages, const char *what)
{
	for (size_t i = 0; i < npages * V_WORDS; i++)
		CHECK(!((const volatile uint64_t *)p)[i], "%s: page %zu word %zu is %#lx", what, i / V_WORDS,
		      i % V_WORDS, (unsigned long)((const volatile uint64_t *)p)[i]);
}

static int protect(void *p, size_t len, int prot)
{
	return raw ? (int)syscall(SYS_mprotect, p, len, prot) : mprotect(p, len, prot);
}

static int unmap(void *p, size_t len)
{
	return raw ? (int)syscall(SYS_munmap, p, len) : munmap(p, len);
}

static sigjmp_buf jump;

static void on_segv(int sig)
{
	siglongjmp(jump, sig);
}

/* Does an access get a signal? */
static bool refused(volatile char *p, bool write)
{
	struct sigaction sa = {.sa_handler = on_segv, .sa_flags = SA_NODEFER}, old;
	bool no = true;

	sigaction(SIGSEGV, &sa, &old);
	if (!sigsetjmp(jump, 1)) {
		if (write)
			*p = 1;
		else
			(void)*p;
		no = false;
	}
	sigaction(SIGSEGV, &old, NULL);
	return no;
}

static void read_only_and_back(void)
{
	char *p = filled(1024, 1);

	CHECK(!protect(p, 1024 * V_PAGE, PROT_READ), "mprotect");
	for (unsigned i = 0; i < 1024; i += 97)
		CHECK(refused(p + i * V_PAGE, true), "page %u of read-only memory was written", i);
	CHECK_ALL(p, 1024, 1, 0, "read-only");
	CHECK(!protect(p, 1024 * V_PAGE, PROT_READ | PROT_WRITE), "mprotect");
	v_fill_all(p, 1024, 1, 1, V_QUARTER);
	wait_away(p, 1024, 900, "writable again");
	CHECK_ALL(p, 1024, 1, 1, "writable again");
	unmap(p, 1024 * V_PAGE);
}

static void none_and_back(void)
{
	char *p = filled(1024, 2);

	CHECK(!protect(p + 200 * V_PAGE, 500 * V_PAGE, PROT_NONE), "mprotect");
	for (unsigned i = 200; i < 700; i += 41)
		CHECK(refused(p + i * V_PAGE, false), "page %u of PROT_NONE was read", i);
	CHECK_ALL(p, 200, 2, 0, "beside PROT_NONE");
	CHECK(!protect(p + 200 * V_PAGE, 500 * V_PAGE, PROT_READ | PROT_WRITE), "mprotect");
	CHECK_ALL(p, 1024, 2, 0, "accessible again");
	unmap(p, 1024 * V_PAGE);
}

/* Every second page, so that there are many mappings; back and forth while pushed out. */
static void protections_in_a_loop(void)
{
	char *p = filled(512, 3);
	uint64_t s = 3;

	for (unsigned r = 0; r < 300; r++) {
		size_t from = rnd(&s) % 500, n = 1 + rnd(&s) % 12, i = rnd(&s) % 512;
		static const int prots[] = {PROT_READ, PROT_NONE, PROT_READ | PROT_WRITE};

		CHECK(!protect(p + from * V_PAGE, n * V_PAGE, prots[rnd(&s) % 3]), "mprotect");
		CHECK(!protect(p + i * V_PAGE, V_PAGE, PROT_READ | PROT_WRITE), "mprotect");
		CHECK(!v_check(p + i * V_PAGE, i, 3, 0, V_QUARTER), "round %u", r);
		if (r % 64 == 0)
			sleep_ms(20);
	}
	CHECK(!protect(p, 512 * V_PAGE, PROT_READ | PROT_WRITE), "mprotect");
	CHECK_ALL(p, 512, 3, 0, "after many mprotect()");
	unmap(p, 512 * V_PAGE);
}

static void unmap_parts(void)
{
	char *p = filled(1024, 4);

	CHECK(!unmap(p + 100 * V_PAGE, 300 * V_PAGE), "munmap");
	CHECK_ALL(p, 100, 4, 0, "before the hole");
	for (unsigned i = 400; i < 1024; i++)
		CHECK(!v_check(p + i * V_PAGE, i, 4, 0, V_QUARTER), "behind the hole");
	CHECK(refused(p + 150 * V_PAGE, false), "the hole can be read");
	char *q = mmap(p + 100 * V_PAGE, 300 * V_PAGE, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	if (q == p + 100 * V_PAGE) {
		is_zero(q, 300, "mapped into the hole");
		v_fill_all(q, 300, 5, 0, V_QUARTER);
		wait_away(q, 300, 200, "mapped into the hole");
		CHECK_ALL(q, 300, 5, 0, "mapped into the hole");
	}
	unmap(p, 1024 * V_PAGE);
}

static void map_over(void)
{
	char *p = filled(1024, 6), name[] = "/tmp/hmm-change-XXXXXX";
	int fd = mkstemp(name);

	for (unsigned r = 0; r < (long_run() ? 8 : 3); r++) {
		char *q = (char *)syscall(SYS_mmap, p + 64 * V_PAGE, 512 * V_PAGE, PROT_READ | PROT_WRITE,
					  MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);

		CHECK(q == p + 64 * V_PAGE, "MAP_FIXED");
		is_zero(q, 512, "mapped over");
		v_fill_all(q, 512, 7, r, V_QUARTER);
		wait_away(q, 512, 256, "mapped over");
		CHECK_ALL(q, 512, 7, r, "mapped over");
	}
	/* A file over it, then anonymous memory over the file. */
	unlink(name);
	CHECK(fd >= 0 && !ftruncate(fd, 512 * V_PAGE) && pwrite(fd, "file", 4, 0) == 4, "file");
	char *f = mmap(p + 64 * V_PAGE, 512 * V_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
	CHECK(f == p + 64 * V_PAGE && !memcmp(f, "file", 4), "a file over it: %.4s", f);
	is_zero(f + V_PAGE, 511, "a file over it");
	f = mmap(f, 512 * V_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, fd, 0);
	CHECK(!memcmp(f, "file", 4), "a private file over it");
	v_fill_all(f, 512, 8, 0, V_QUARTER);
	CHECK_ALL(p, 64, 6, 0, "before what was mapped over");
	sleep_ms(100);
	CHECK_ALL(f, 512, 8, 0, "a private file over it");
	for (unsigned i = 576; i < 1024; i++)
		CHECK(!v_check(p + i * V_PAGE, i, 6, 0, V_QUARTER), "behind what was mapped over");
	unmap(p, 1024 * V_PAGE);
	close(fd);
}

static void huge_pages(void)
{
	size_t npages = (long_run() ? 8 : 4) * 512;
	char *m = v_map((npages + 512) * V_PAGE), *p = (char *)(((uintptr_t)m + (2 * V_MIB - 1)) & ~(2 * V_MIB - 1));

	madvise(p, npages * V_PAGE, MADV_HUGEPAGE);
	v_fill_all(p, npages, 9, 0, V_QUARTER);
	wait_away(p, npages, npages / 2, "huge pages");
	CHECK_ALL(p, npages, 9, 0, "huge pages");
	wait_away(p, npages, npages * 9 / 10, "huge pages");
	/* Drop a part of a huge page, write a part of another, then all of it again. */
	CHECK(!madvise(p + 10 * V_PAGE, 100 * V_PAGE, MADV_DONTNEED), "MADV_DONTNEED");
	is_zero(p + 10 * V_PAGE, 100, "dropped out of a huge page");
	for (size_t i = 600; i < 700; i++)
		v_fill(p + i * V_PAGE, i, 9, 1, V_QUARTER);
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif
	madvise(p, npages * V_PAGE, MADV_COLLAPSE); /* may be refused */
	wait_away(p, npages, npages / 2, "huge pages");
	is_zero(p + 10 * V_PAGE, 100, "dropped out of a huge page, later");
	for (size_t i = 0; i < npages; i++)
		if (i < 10 || i >= 110)
			CHECK(!v_check(p + i * V_PAGE, i, 9, i >= 600 && i < 700, V_QUARTER), "huge pages");
	unmap(m, (npages + 512) * V_PAGE);
}

static void heap(void)
{
	char *p = (char *)(((uintptr_t)sbrk(0) + V_PAGE - 1) & ~(V_PAGE - 1));

	CHECK(!brk(p + 1024 * V_PAGE), "brk");
	is_zero(p, 1024, "grown heap");
	v_fill_all(p, 1024, 10, 0, V_QUARTER);
	wait_away(p, 1024, 800, "heap");
	CHECK(!brk(p + 2048 * V_PAGE), "brk");
	is_zero(p + 1024 * V_PAGE, 1024, "heap grown again");
	for (unsigned i = 1024; i < 2048; i++)
		v_fill(p + i * V_PAGE, i, 10, 0, V_QUARTER);
	CHECK_ALL(p, 2048, 10, 0, "heap");
	wait_away(p, 2048, 1500, "heap");
	CHECK(!brk(p + 500 * V_PAGE), "brk");
	CHECK(refused(p + 501 * V_PAGE, false), "heap that was given back can be read");
	CHECK(!brk(p + 2048 * V_PAGE), "brk");
	is_zero(p + 500 * V_PAGE, 1548, "given back and grown again");
	CHECK_ALL(p, 500, 10, 0, "heap");
	CHECK(!brk(p), "brk");
}

static void lock_all(void)
{
	char *p = filled(1024, 11);

	/* Only what fits: without the hog. */
	if (mlockall(MCL_CURRENT)) {
		puts("SKIP: no right to lock all memory: mlockall()");
		unmap(p, 1024 * V_PAGE);
		return;
	}
	CHECK(!under_hmm() || !v_absent(p, 1024), "mlockall() left pages away");
	sleep_ms(100);
	CHECK(!under_hmm() || !v_absent(p, 1024), "a locked page left");
	CHECK_ALL(p, 1024, 11, 0, "locked");
	CHECK(!munlockall(), "munlockall");
	wait_away(p, 1024, 500, "unlocked");
	CHECK(!mlockall(MCL_FUTURE), "MCL_FUTURE");
	char *q = v_map(512 * V_PAGE);
	CHECK(!v_absent(q, 512), "MCL_FUTURE: not there");
	v_fill_all(q, 512, 12, 0, V_QUARTER);
	sleep_ms(100);
	CHECK(!v_absent(q, 512), "MCL_FUTURE: left");
	CHECK(!munlockall(), "munlockall");
	CHECK_ALL(q, 512, 12, 0, "MCL_FUTURE");
	CHECK_ALL(p, 1024, 11, 0, "unlocked");
	unmap(q, 512 * V_PAGE);
	unmap(p, 1024 * V_PAGE);
}

/* False: this kernel has none, or not by that call. */
static bool guard_install(char *p, size_t len, bool process)
{
	struct iovec iov = {p, len};
	bool done;
	int self;

	if (!process)
		return !madvise(p, len, MADV_GUARD_INSTALL);
	self = (int)syscall(SYS_pidfd_open, getpid(), 0);
	done = process_madvise(self, &iov, 1, MADV_GUARD_INSTALL, 0) == (ssize_t)len;
	close(self);
	return done;
}

static void guards_by(bool process)
{
	char *p;

	if (raw)
		return; /* doc/differences.md */
	p = filled(512, 13);
	if (!guard_install(p + 100 * V_PAGE, 100 * V_PAGE, process)) {
		printf("SKIP: this kernel has no guard regions%s\n", process ? " by process_madvise()" : "");
		unmap(p, 512 * V_PAGE);
		return;
	}
	for (unsigned i = 100; i < 200; i += 9)
		CHECK(refused(p + i * V_PAGE, false), "guard page %u was read", i);
	CHECK_ALL(p, 100, 13, 0, "before the guard");
	sleep_ms(50);
	CHECK(refused(p + 150 * V_PAGE, true), "a guard page was written");
	CHECK(!madvise(p + 100 * V_PAGE, 100 * V_PAGE, MADV_GUARD_REMOVE), "MADV_GUARD_REMOVE");
	is_zero(p + 100 * V_PAGE, 100, "where a guard was");
	for (unsigned i = 200; i < 512; i++)
		CHECK(!v_check(p + i * V_PAGE, i, 13, 0, V_QUARTER), "behind the guard");
	unmap(p, 512 * V_PAGE);
}

static void guards(void)
{
	guards_by(false);
}

static void guards_of_a_process(void)
{
	guards_by(true);
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		void (*fn)(void);
	} cases[] = {
		{"read-only and back", read_only_and_back},
		{"PROT_NONE and back", none_and_back},
		{"mprotect in a loop", protections_in_a_loop},
		{"munmap of parts", unmap_parts},
		{"MAP_FIXED over it", map_over},
		{"huge pages", huge_pages},
		{"brk", heap},
		{"mlockall", lock_all},
		{"guard regions", guards},
		{"guard regions, process_madvise()", guards_of_a_process},
	};
	struct hog hog;

	raw = argc > 1 && !strcmp(argv[1], "raw");
	for (unsigned r = 0; r < (long_run() ? 8 : 1); r++)
		for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
			hog_start(&hog, cases[i].fn == lock_all ? hog_mib() * 5 / 8 : hog_mib());
			cases[i].fn();
			hog_stop(&hog);
			printf("ok %s\n", cases[i].name);
			fflush(stdout);
		}
	return 0;
}
