/* SPDX-License-Identifier: MIT */
/*
 * Fact: poison (UFFDIO_POISON) is SIGBUS with the address to who touches it,
 * EFAULT to a system call, EHWPOISON to MADV_POPULATE_READ; it survives fork,
 * UNREGISTER and mremap, and MADV_DONTNEED undoes it.  Onto the marker that
 * write-protecting leaves where nothing is it is EEXIST, until that is undone.  The code of the SIGBUS is
 * BUS_ADRERR, or BUS_MCEERR_AR where the kernel handles memory failures.
 */
#include "probe.h"

#include <setjmp.h>

static sigjmp_buf jump;
static volatile siginfo_t seen;

static void on_bus(int sig, siginfo_t *si, void *ctx)
{
	*(siginfo_t *)(uintptr_t)&seen = *si;
	siglongjmp(jump, 1);
}

static bool bus(char *p)
{
	if (sigsetjmp(jump, 1))
		return seen.si_addr == p && (seen.si_code == BUS_ADRERR || seen.si_code == BUS_MCEERR_AR);
	touch_read(p);
	return false;
}

static bool efault(char *p)
{
	int fds[2], rc;

	CHECK(!pipe(fds), "pipe works");
	rc = write(fds[1], p, 1) < 0 && errno == EFAULT;
	close(fds[0]);
	close(fds[1]);
	return rc;
}

int main(void)
{
	struct sigaction sa = {.sa_sigaction = on_bus, .sa_flags = SA_SIGINFO};
	char *p, *q;
	pid_t child;
	int uffd;

	probe_start();
	sigaction(SIGBUS, &sa, NULL);
	uffd = uffd_open(UFFD_FEATURE_POISON | UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_ASYNC |
			 UFFD_FEATURE_WP_UNPOPULATED);
	p = map_anon(PAGE);
	CHECK(!uffd_register(uffd, p, PAGE, MISSING | WP), "REGISTER works");
	CHECK(!uffd_wp(uffd, p, PAGE, true), "WRITEPROTECT of a hole works");
	CHECK(uffd_poison(uffd, p, PAGE) == -EEXIST, "POISON onto a marker is EEXIST");
	CHECK(!uffd_wp(uffd, p, PAGE, false), "the marker can be taken away");
	CHECK(!uffd_poison(uffd, p, PAGE) && bus(p), "then POISON works");
	p = map_registered(uffd, 2 * PAGE);
	CHECK(!uffd_fill(uffd, p + PAGE, 'x'), "COPY works");
	CHECK(!bus(p + PAGE) && !efault(p + PAGE), "a good page raises nothing");
	CHECK(!uffd_poison(uffd, p, PAGE), "POISON works");
	CHECK(bus(p), "touching poison is SIGBUS with its address");
	printf("si_code is %s\n", seen.si_code == BUS_ADRERR ? "BUS_ADRERR" : "BUS_MCEERR_AR");
	CHECK(efault(p), "a system call gets EFAULT");
	CHECK(madvise(p, PAGE, MADV_POPULATE_READ) && errno == EHWPOISON, "MADV_POPULATE_READ gets EHWPOISON");
	CHECK(uffd_quiet(uffd), "nothing is delivered");

	child = fork();
	CHECK(child >= 0, "fork works");
	if (!child)
		_exit(!bus(p));
	CHECK(!reap(child), "the child meets poison, too");
	CHECK(!uffd_unregister(uffd, p, 2 * PAGE), "UNREGISTER works");
	CHECK(bus(p), "poison survives UNREGISTER");
	q = mremap(p, 2 * PAGE, 3 * PAGE, MREMAP_MAYMOVE);
	CHECK(q != MAP_FAILED && q != p, "mremap moves it (a guard page follows)");
	CHECK(bus(q) && q[PAGE] == 'x', "poison survives mremap");
	CHECK(!madvise(q, PAGE, MADV_DONTNEED), "MADV_DONTNEED works");
	CHECK(q[0] == 0, "MADV_DONTNEED undoes it");
	return 0;
}
