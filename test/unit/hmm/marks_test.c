/* SPDX-License-Identifier: MIT */
/*
 * What a child does not inherit (MADV_DONTFORK, MADV_WIPEONFORK), of who has no agent:
 * there smaps alone tells, after the fork, and whoever forked goes on meanwhile.
 *
 * fdopen() and fclose(), between which smaps is read, wait until that has changed its mappings; not in the children,
 * where a build that counts lines writes its counts by them.
 */
#include "world.h"

#include <sched.h>

#define N 64u

FILE *__real_fdopen(int fd, const char *mode);
FILE *__wrap_fdopen(int fd, const char *mode);
int __real_fclose(FILE *f);
int __wrap_fclose(FILE *f);

static _Atomic(char *) going;       /* is unmapped, or moved away, right after the fork */
static _Atomic(char *) going_later; /* the same, when smaps was read */
static _Atomic unsigned reads;      /* of smaps */
static pid_t me;                    /* who forks, and has an engine */

static void wait_until_gone(char *p)
{
	unsigned char there;

	while (p && getpid() == me && !mincore(p, UMM_PAGE, &there))
		sched_yield();
}

FILE *__wrap_fdopen(int fd, const char *mode)
{
	wait_until_gone(atomic_exchange(&going, NULL));
	return __real_fdopen(fd, mode);
}

int __wrap_fclose(FILE *f)
{
	int rc = __real_fclose(f);

	atomic_fetch_add(&reads, 1);
	wait_until_gone(atomic_exchange(&going_later, NULL));
	return rc;
}

static struct world *begin(void)
{
	const char *why;
	struct world *w = world_create("lz4:16M,raw", 0, &why);

	assert_non_null(w);
	assert_false(atomic_load(&w->ctl->armed));
	me = getpid();
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

/* What was marked at the fork, and is unmapped when smaps has been read, was marked. */
static void unmapped_after(int mark)
{
	struct world *w = begin();
	char *marked = managed(w, N, 1), *kept = managed(w, N, 2), byte;
	struct hmm_mm *child = NULL;
	int fd[2];

	assert_int_equal(pipe(fd), 0);
	assert_int_equal(out(w, marked, N), N);
	assert_int_equal(madvise(marked, N * UMM_PAGE, mark), 0);
	atomic_store(&reads, 0);
	atomic_store(&going_later, marked);
	pid_t pid = raw_fork();
	if (!pid)
		_exit(read(fd[0], &byte, 1) != 1 || !holds(kept, 2) || (mark == MADV_WIPEONFORK && !holds(marked, 0)));
	while (!atomic_load(&reads))
		sched_yield();
	assert_int_equal(munmap(marked, N * UMM_PAGE), 0);
	while (!child || !atomic_load(&child->ready)) {
		pthread_mutex_lock(&w->h->lock);
		for (struct hmm_mm *mm = w->h->mms; mm; mm = mm->next)
			child = mm == w->mm ? child : mm;
		pthread_mutex_unlock(&w->h->lock);
		sched_yield();
	}
	/* Nothing of it is the child's, neither what it held nor, without a mapping, its place. */
	assert_int_equal(atomic_load(&child->radix.away), 0);
	assert_int_equal(hmm_iset_meets(&child->registered, (uintptr_t)marked, (uintptr_t)marked + N * UMM_PAGE),
			 mark == MADV_WIPEONFORK);
	assert_int_equal(write(fd[1], "", 1), 1);
	ends_well(pid);
	close(fd[0]);
	close(fd[1]);
	world_destroy(w);
}

static void unmapped_as_soon_as_it_was_read(void **state)
{
	unmapped_after(MADV_WIPEONFORK);
	unmapped_after(MADV_DONTFORK);
}

static void *unmap_main(void *p)
{
	munmap(p, N * UMM_PAGE);
	return NULL;
}

/* Marks that cannot be read, since a change is under way all the time, are not read again and again before pages go. */
static void read_once_before_pages_go(void **state)
{
	struct world *w = begin();
	char *p = managed(w, N, 1), *other = managed(w, N, 2);
	pthread_t t;

	/* While nobody reads events nothing may fail: whoever changes a mapping would wait for ever. */
	umm_space_get(w->space);
	umm_monitor_del(w->space);
	int rc = pthread_create(&t, NULL, unmap_main, other);
	if (!rc)
		poll(&(struct pollfd){.fd = w->space->uffd, .events = POLLIN}, 1, -1);
	w->mm->anon_pages = N;
	atomic_store(&w->mm->armed, true);
	atomic_store(&reads, 0);
	hmm_reclaim(w->h, N);
	hmm_reclaim(w->h, N);
	unsigned was_read = atomic_load(&reads);
	bool known = w->mm->marks_known;
	assert_int_equal(umm_monitor_add(w->h->monitor, w->space), 0);
	umm_space_put(w->space);
	assert_int_equal(rc, 0);
	pthread_join(t, NULL);
	assert_int_equal(was_read, 1);
	assert_false(known);
	all_are(p, N, 1);
	world_destroy(w);
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
		cmocka_unit_test(over_what_is_away),         cmocka_unit_test(unmapped_as_soon_as_it_was_read),
		cmocka_unit_test(read_once_before_pages_go), cmocka_unit_test(marked_and_another_goes),
		cmocka_unit_test(marked_and_nothing_goes),
	};
	const char *why;
	struct world *w = world_create("lz4:16M,raw", 0, &why);

	if (!w)
		return skip_all(why);
	world_destroy(w);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
