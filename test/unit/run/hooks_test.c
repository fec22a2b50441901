/* SPDX-License-Identifier: MIT */
/*
 * What the hooks of the preloaded library ask for, and when.  The test stands in for
 * the library's other part: each call begins and ends with its blocking of signals.
 */
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#include "run/preload.h"

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#endif

static struct umm_ctl *ctl;
static struct agent agent;
static char *page;

static struct {
	uint32_t op;
	uint64_t start;
	bool marked;
} calls[8];
static unsigned ncalls;

struct umm_ctl *preload_ctl(void)
{
	return ctl;
}

struct agent *preload_agent(void)
{
	return &agent;
}

/* A child would not have the page. */
static bool is_marked(void)
{
	char line[512];
	unsigned long a, z;
	bool here = false, yes = false;
	FILE *f = fopen("/proc/self/smaps", "r");

	assert_non_null(f);
	while (fgets(line, sizeof(line), f)) {
		if (sscanf(line, "%lx-%lx ", &a, &z) == 2)
			here = a <= (uintptr_t)page && z > (uintptr_t)page;
		if (here && !strncmp(line, "VmFlags:", 8))
			yes = strstr(line, " dc") != NULL;
	}
	fclose(f);
	return yes;
}

void preload_signals_block(sigset_t *old)
{
}

void preload_signals_restore(const sigset_t *old)
{
	if (ncalls == 8)
		return;
	calls[ncalls].op = ctl->call[0].op;
	calls[ncalls].start = ctl->call[0].arg[0];
	calls[ncalls++].marked = is_marked();
}

static int setup(void **state)
{
	ctl = mmap(NULL, sizeof(*ctl), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	page = mmap(NULL, 2 * UMM_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	agent.arena.bells =
		mmap(NULL, UMM_CALL_SLOTS * UMM_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (ctl == MAP_FAILED || page == MAP_FAILED || agent.arena.bells == MAP_FAILED)
		return -1;
	atomic_store(&ctl->armed, 1);
	ncalls = 0;
	return 0;
}

static int teardown(void **state)
{
	munmap(ctl, sizeof(*ctl));
	munmap(page, 2 * UMM_PAGE);
	munmap(agent.arena.bells, UMM_CALL_SLOTS * UMM_PAGE);
	return 0;
}

/* Before it is there what has been forked is waited for; afterwards it is read. */
static void a_mark_is_told_of_before_and_after(void **state)
{
	assert_int_equal(madvise(page, UMM_PAGE, MADV_DONTFORK), 0);
	assert_int_equal(ncalls, 2);
	assert_int_equal(calls[0].op, UMM_CALL_APPLIED);
	assert_false(calls[0].marked);
	assert_int_equal(calls[1].op, UMM_CALL_MARKS);
	assert_true(calls[1].marked);
	assert_int_equal(madvise(page, UMM_PAGE, MADV_DOFORK), 0);
	assert_int_equal(ncalls, 4);
	assert_int_equal(calls[2].op, UMM_CALL_APPLIED);
	assert_true(calls[2].marked);
	assert_int_equal(calls[3].op, UMM_CALL_MARKS);
	assert_false(calls[3].marked);
	assert_int_equal(madvise(page, UMM_PAGE, MADV_NORMAL), 0);
	assert_int_equal(ncalls, 4);
}

/* What the kernel refuses is refused; it is asked in either way. */
static void so_it_is_by_process_madvise(void **state)
{
	struct iovec iov[2] = {{page, UMM_PAGE}, {page + UMM_PAGE, UMM_PAGE}};
	int self = (int)syscall(SYS_pidfd_open, getpid(), 0);

	errno = 0;
	ssize_t got = process_madvise(self, iov, 1, MADV_DONTFORK, 0);
	assert_int_equal(ncalls, 2);
	assert_int_equal(calls[0].op, UMM_CALL_APPLIED);
	assert_false(calls[0].marked);
	assert_int_equal(calls[1].op, UMM_CALL_MARKS);
	assert_int_equal(calls[1].marked, got == (ssize_t)UMM_PAGE);
	process_madvise(self, iov, 2, MADV_GUARD_INSTALL, 0);
	assert_int_equal(ncalls, 4);
	for (unsigned i = 0; i < 2; i++) {
		assert_int_equal(calls[2 + i].op, UMM_CALL_BRING_BACK);
		assert_int_equal(calls[2 + i].start, (uintptr_t)page + i * UMM_PAGE);
	}
	assert_int_equal(process_madvise(self, (struct iovec *)1, 1, MADV_GUARD_INSTALL, 0), -1);
	assert_int_equal(ncalls, 4);
	close(self);
}

/* The call by which it is read may be kept from us: the kernel, which is asked for something else, reads it. */
static void what_a_filter_keeps_us_from_reading_is_read(void **state)
{
	struct sock_filter filter[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_process_vm_readv, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog prog = {sizeof(filter) / sizeof(filter[0]), filter};
	struct iovec iov = {page, UMM_PAGE};
	int status;
	pid_t pid = fork();

	if (!pid) {
		int self = (int)syscall(SYS_pidfd_open, getpid(), 0);

		if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog))
			_exit(77);
		process_madvise(self, &iov, 1, MADV_GUARD_INSTALL, 0);
		_exit(ncalls != 1 || calls[0].op != UMM_CALL_BRING_BACK || calls[0].start != (uintptr_t)page);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	if (WIFEXITED(status) && WEXITSTATUS(status) == 77)
		skip();
	assert_int_equal(status, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(a_mark_is_told_of_before_and_after, setup, teardown),
		cmocka_unit_test_setup_teardown(so_it_is_by_process_madvise, setup, teardown),
		cmocka_unit_test_setup_teardown(what_a_filter_keeps_us_from_reading_is_read, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
