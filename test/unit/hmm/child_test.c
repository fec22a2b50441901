/* SPDX-License-Identifier: MIT */
/*
 * A linked engine, and forked children that change their mappings before they
 * have been given what was away.  The wrapped call waits for such a change
 * before it places anything in the child, so that each is in its way.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#include "hmm.h"
#include "umm/internal.h"

#define PAGE 4096ul
#define N 64u
#define MANY 1000u /* moves of a child: the list of them has grown more than once */

/* Shared with the child: it is about to change something yet, which is to be in the way of a page. */
static _Atomic bool *busy;
static unsigned met;
static int own_uffd;
static int child_uffd; /* what is filled first; 0: nothing yet */
static bool no_memory_for_grandchildren;
static bool no_descriptors; /* from when a change waits to be read */

static void use_up_descriptors(void)
{
	struct rlimit r;
	int fd = dup(0);

	close(fd);
	assert_int_equal(getrlimit(RLIMIT_NOFILE, &r), 0);
	r.rlim_cur = (rlim_t)fd;
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &r), 0);
}

int __real_umm_uffd_copy(int uffd, uint64_t dst, const void *src, uint64_t len, uint64_t *copied);
int __wrap_umm_uffd_copy(int uffd, uint64_t dst, const void *src, uint64_t len, uint64_t *copied);
int __wrap_umm_uffd_copy(int uffd, uint64_t dst, const void *src, uint64_t len, uint64_t *copied)
{
	if (uffd == own_uffd)
		return __real_umm_uffd_copy(uffd, dst, src, len, copied);
	if (!child_uffd)
		child_uffd = uffd;
	if (no_memory_for_grandchildren && uffd != child_uffd)
		return -ENOMEM;
	while (atomic_load(busy))
		if (poll(&(struct pollfd){.fd = uffd, .events = POLLIN}, 1, 1) == 1) {
			met++;
			if (no_descriptors && met == 1)
				use_up_descriptors();
			break;
		}
	return __real_umm_uffd_copy(uffd, dst, src, len, copied);
}

struct scene {
	struct umm_space *space;
	struct hmm_mm *mm;
	struct hmm_device *dev;
	char *p;         /* N pages that are away */
	char *elsewhere; /* and room for as many */
};

static bool right(const char *p, unsigned from, unsigned to)
{
	for (unsigned i = from; i < to; i++)
		for (unsigned k = 0; k < PAGE / 8; k++)
			if (((const volatile uint64_t *)(p + i * PAGE))[k] != (i + 1) * 0x9e3779b97f4a7c15ull + k)
				return false;
	return true;
}

static pid_t raw_fork(void)
{
	return (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
}

static void begin(struct scene *s)
{
	char err[160];
	uint64_t moved;

	assert_int_equal(umm_space_open_self(&s->space), 0);
	assert_int_equal(hmm_mm_open(s->space, &s->mm), 0);
	assert_int_equal(hmm_device_open("lz4:4M,raw", &s->dev, err, sizeof(err)), 0);
	assert_int_equal(hmm_mm_add_device(s->mm, s->dev), 0);
	s->elsewhere = mmap(NULL, N * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	s->p = mmap(NULL, N * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_true(s->p != MAP_FAILED && s->elsewhere != MAP_FAILED);
	madvise(s->p, N * PAGE, MADV_NOHUGEPAGE);
	for (unsigned i = 0; i < N; i++)
		for (unsigned k = 0; k < PAGE / 8; k++)
			((uint64_t *)(s->p + i * PAGE))[k] = (i + 1) * 0x9e3779b97f4a7c15ull + k;
	assert_int_equal(
		hmm_migrate_to_device(s->mm, s->dev, (uintptr_t)s->p, (uintptr_t)s->p + N * PAGE, NULL, &moved), 0);
	assert_int_equal(moved, N);
}

/* Runs @child; its status. */
static int run(struct scene *s, int (*child)(struct scene *s))
{
	int status = -1;

	met = 0;
	own_uffd = s->space->uffd;
	child_uffd = 0;
	atomic_store(busy, true);
	pid_t pid = raw_fork();
	assert_true(pid >= 0);
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		_exit(child(s));
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(met > 0);
	return status;
}

static void end(struct scene *s)
{
	assert_true(right(s->p, 0, N));
	assert_int_equal(hmm_mm_close(s->mm), 0);
	hmm_device_close(s->dev);
	umm_space_close(s->space);
	munmap(s->p, N * PAGE);
	munmap(s->elsewhere, N * PAGE);
}

static void with(int (*child)(struct scene *s))
{
	struct scene s;

	begin(&s);
	assert_int_equal(run(&s, child), 0);
	end(&s);
}

static int move(char *from, char *to, unsigned npages)
{
	return syscall(SYS_mremap, from, npages * PAGE, npages * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to) < 0;
}

static int moves(struct scene *s)
{
	if (move(s->p + N / 4 * PAGE, s->elsewhere, N / 4))
		return 1;
	atomic_store(busy, false);
	if (!right(s->p, 0, N / 4) || !right(s->p, N / 2, N))
		return 2;
	return right(s->elsewhere - N / 4 * PAGE, N / 4, N / 2) ? 0 : 3;
}

static void a_child_that_moves_pages(void **state)
{
	with(moves);
}

static int moves_on(struct scene *s)
{
	if (move(s->p, s->elsewhere, N / 2) || move(s->elsewhere, s->elsewhere + N / 2 * PAGE, N / 2))
		return 1;
	atomic_store(busy, false);
	return right(s->elsewhere + N / 2 * PAGE, 0, N / 2) && right(s->p, N / 2, N) ? 0 : 2;
}

static void a_child_that_moves_pages_twice(void **state)
{
	with(moves_on);
}

static int unmaps(struct scene *s)
{
	if (syscall(SYS_munmap, s->p, N / 2 * PAGE))
		return 1;
	atomic_store(busy, false);
	return right(s->p, N / 2, N) ? 0 : 2;
}

static void a_child_that_unmaps_pages(void **state)
{
	with(unmaps);
}

static int drops(struct scene *s)
{
	if (syscall(SYS_madvise, s->p, N / 2 * PAGE, MADV_DONTNEED))
		return 1;
	atomic_store(busy, false);
	return right(s->p, N / 2, N) ? 0 : 2;
}

static void a_child_that_drops_pages(void **state)
{
	with(drops);
}

/* What is dropped comes back as zeros, also where the child had not been given it yet. */
static int drops_and_looks(struct scene *s)
{
	if (syscall(SYS_madvise, s->p, N / 2 * PAGE, MADV_DONTNEED))
		return 1;
	atomic_store(busy, false);
	for (unsigned i = 0; i < N / 2 * PAGE / 8; i++)
		if (((const volatile uint64_t *)s->p)[i])
			return 2;
	return right(s->p, N / 2, N) ? 0 : 3;
}

static void what_a_child_drops_is_gone(void **state)
{
	with(drops_and_looks);
}

/* Onto what is away, too. */
static int moves_over(struct scene *s)
{
	if (move(s->p + N / 2 * PAGE, s->p, N / 2))
		return 1;
	atomic_store(busy, false);
	return right(s->p - N / 2 * PAGE, N / 2, N) ? 0 : 2;
}

static void a_child_that_moves_pages_over_others(void **state)
{
	with(moves_over);
}

/* It gets SIGBUS: zeros it must not find. */
static int forks_without_memory(struct scene *s)
{
	int status = -1;
	pid_t pid = raw_fork();

	atomic_store(busy, false);
	if (!pid) {
		signal(SIGBUS, SIG_DFL);
		setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0});
		_exit(right(s->p, 0, N) ? 1 : 2);
	}
	if (waitpid(pid, &status, 0) != pid || !WIFSIGNALED(status) || WTERMSIG(status) != SIGBUS)
		return 3;
	return !right(s->p, 0, N);
}

static void a_grandchild_that_cannot_be_filled(void **state)
{
	no_memory_for_grandchildren = true;
	with(forks_without_memory);
	no_memory_for_grandchildren = false;
}

static int forks(struct scene *s)
{
	int status = -1;
	pid_t pid = raw_fork();

	atomic_store(busy, false);
	if (!pid)
		_exit(right(s->p, 0, N) ? 0 : 1);
	if (waitpid(pid, &status, 0) != pid)
		return 2;
	return right(s->p, 0, N) ? status != 0 : 3;
}

static void a_child_that_forks(void **state)
{
	with(forks);
}

static void a_child_that_forks_without_descriptors(void **state)
{
	struct rlimit r;

	assert_int_equal(getrlimit(RLIMIT_NOFILE, &r), 0);
	no_descriptors = true;
	with(forks);
	no_descriptors = false;
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &r), 0);
}

/* The grandchild looks where its parent has moved things. */
static int moves_and_forks(struct scene *s)
{
	int status = -1;

	if (move(s->p, s->elsewhere, N))
		return 1;
	pid_t pid = raw_fork();
	atomic_store(busy, false);
	if (!pid)
		_exit(right(s->elsewhere, 0, N) ? 0 : 1);
	if (waitpid(pid, &status, 0) != pid)
		return 2;
	return right(s->elsewhere, 0, N) ? status != 0 : 3;
}

static void a_child_that_moves_pages_and_forks(void **state)
{
	with(moves_and_forks);
}

static int forks_on(struct scene *s, unsigned depth)
{
	int status = -1;
	pid_t pid;

	if (!depth) {
		atomic_store(busy, false);
		return !right(s->p, 0, N);
	}
	pid = raw_fork();
	if (!pid)
		_exit(forks_on(s, depth - 1));
	return waitpid(pid, &status, 0) != pid || status;
}

static int descends(struct scene *s)
{
	return forks_on(s, 12) || !right(s->p, 0, N);
}

static void a_child_of_generations(void **state)
{
	with(descends);
}

static int moves_often(struct scene *s, unsigned times)
{
	for (unsigned i = 0; i < times; i++)
		if (move(i % 2 ? s->elsewhere : s->p, i % 2 ? s->p : s->elsewhere, 1))
			return 1;
	return 0;
}

static int moves_for_ever(struct scene *s)
{
	if (moves_often(s, MANY))
		return 1;
	atomic_store(busy, false);
	return !right(s->p, 0, N);
}

static void a_child_that_moves_on_and_on(void **state)
{
	with(moves_for_ever);
}

/* The list of moves is the grandchild's, too, and each goes on with its own. */
static int moves_forks_moves(struct scene *s)
{
	int status = -1;

	if (moves_often(s, MANY / 4))
		return 1;
	pid_t pid = raw_fork();
	char *to = s->elsewhere + (pid ? PAGE : 2 * PAGE);
	int failed = (!pid && moves_often(s, MANY)) || move(s->p + PAGE, to, 1);
	atomic_store(busy, false);
	failed |= !right(s->p, 0, 1) || !right(to - PAGE, 1, 2) || !right(s->p, 2, N);
	if (!pid)
		_exit(failed);
	return failed || waitpid(pid, &status, 0) != pid || status;
}

static void a_child_that_moves_on_and_on_and_forks(void **state)
{
	with(moves_forks_moves);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_child_that_moves_pages),
		cmocka_unit_test(a_child_that_moves_pages_twice),
		cmocka_unit_test(a_child_that_unmaps_pages),
		cmocka_unit_test(a_child_that_drops_pages),
		cmocka_unit_test(what_a_child_drops_is_gone),
		cmocka_unit_test(a_child_that_moves_pages_over_others),
		cmocka_unit_test(a_grandchild_that_cannot_be_filled),
		cmocka_unit_test(a_child_that_forks_without_descriptors),
		cmocka_unit_test(a_child_that_forks),
		cmocka_unit_test(a_child_that_moves_pages_and_forks),
		cmocka_unit_test(a_child_of_generations),
		cmocka_unit_test(a_child_that_moves_on_and_on),
		cmocka_unit_test(a_child_that_moves_on_and_on_and_forks),
	};
	int uffd = umm_inside_uffd();

	if (uffd < 0) {
		printf("SKIP: no right to a userfaultfd\n");
		return 77;
	}
	close(uffd);
	busy = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	alarm(100); /* who hangs fails */
	return cmocka_run_group_tests(tests, NULL, NULL);
}
