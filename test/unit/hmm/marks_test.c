/* SPDX-License-Identifier: MIT */
/*
 * What a child does not inherit (MADV_DONTFORK, MADV_WIPEONFORK), of who has no agent:
 * there smaps alone tells, after the fork, and whoever forked goes on meanwhile.
 *
 * fdopen(), by which smaps is read, waits until that has changed its mappings.
 */
#include "world.h"

#include <sched.h>

#define N 64u

FILE *__real_fdopen(int fd, const char *mode);
FILE *__wrap_fdopen(int fd, const char *mode);

static _Atomic(char *) going; /* is unmapped, or moved away, right after the fork */

FILE *__wrap_fdopen(int fd, const char *mode)
{
	char *p = atomic_exchange(&going, NULL);
	unsigned char there;

	while (p && !mincore(p, UMM_PAGE, &there))
		sched_yield();
	return __real_fdopen(fd, mode);
}

static struct world *begin(void)
{
	const char *why;
	struct world *w = world_create("lz4:16M,raw", 0, &why);

	assert_non_null(w);
	assert_false(atomic_load(&w->ctl->armed));
	return w;
}

static bool holds(const char *p, unsigned seed)
{
	for (unsigned i = 0; i < N; i++)
		if (!page_is(p + i * UMM_PAGE, seed, i))
			return false;
	return true;
}

static void ends_well(pid_t pid)
{
	int status = -1;

	assert_true(pid > 0);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
}

/* What was at a place to which the parent moves marked memory as soon as it has forked is the child's. */
static void moved_over(int mark)
{
	struct world *w = begin();
	char *marked = managed(w, N, 1), *over = managed(w, N, 2);

	assert_int_equal(out(w, over, N), N);
	assert_int_equal(madvise(marked, N * UMM_PAGE, mark), 0);
	atomic_store(&going, marked);
	pid_t pid = raw_fork();
	if (!pid)
		_exit(!holds(over, 2));
	assert_ptr_equal(mremap(marked, N * UMM_PAGE, N * UMM_PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, over), over);
	ends_well(pid);
	all_are(over, N, 1);
	assert_null(atomic_load(&going));
	world_destroy(w);
}

static void over_what_is_away(void **state)
{
	moved_over(MADV_WIPEONFORK);
	moved_over(MADV_DONTFORK);
}

/* What is marked stays so, whatever else changes: something is unmapped, or mapped over. */
static void beside_a_change(bool fixed)
{
	struct world *w = begin();
	char *marked = managed(w, N, 1), *kept = managed(w, N, 2), *other = managed(w, N, 3);

	assert_int_equal(out(w, marked, N), N);
	assert_int_equal(out(w, kept, N), N);
	assert_int_equal(madvise(marked, N * UMM_PAGE, MADV_WIPEONFORK), 0);
	atomic_store(&going, other);
	pid_t pid = raw_fork();
	if (!pid)
		_exit(!holds(marked, 0) || !holds(kept, 2) || !holds(other, 3));
	if (fixed) /* away from where it was, to a place where nothing is */
		assert_ptr_equal(mremap(other, N * UMM_PAGE, N * UMM_PAGE, MREMAP_MAYMOVE | MREMAP_FIXED,
					other + 2 * N * UMM_PAGE),
				 other + 2 * N * UMM_PAGE);
	else
		assert_int_equal(munmap(other, N * UMM_PAGE), 0);
	ends_well(pid);
	all_are(marked, N, 1);
	all_are(kept, N, 2);
	world_destroy(w);
}

static void marked_and_another_goes(void **state)
{
	beside_a_change(false);
	beside_a_change(true);
}

/* Nobody changes anything: that the fork itself is not over does not make it doubtful. */
static void marked_and_nothing_goes(void **state)
{
	struct world *w = begin();
	char *marked = managed(w, N, 1), *kept = managed(w, N, 2);

	assert_int_equal(out(w, marked, N), N);
	assert_int_equal(out(w, kept, N), N);
	assert_int_equal(madvise(marked, N * UMM_PAGE, MADV_WIPEONFORK), 0);
	pid_t pid = raw_fork();
	if (!pid)
		_exit(!holds(marked, 0) || !holds(kept, 2));
	ends_well(pid);
	all_are(marked, N, 1);
	world_destroy(w);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(over_what_is_away),
		cmocka_unit_test(marked_and_another_goes),
		cmocka_unit_test(marked_and_nothing_goes),
	};
	const char *why;
	struct world *w = world_create("lz4:16M,raw", 0, &why);

	if (!w)
		return skip_all(why);
	world_destroy(w);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
