/* SPDX-License-Identifier: MIT */
/*
 * Forked children whose records cannot be made.  Such a child goes on by
 * itself: what was away is lost to it and says so by SIGBUS, all else it has,
 * and whatever it does to its mappings meanwhile it does not hang.
 */
#include <sys/prctl.h>

#include "world.h"

#define N 24u

static bool no_records;

int __real_hmm_residency_clone(struct hmm_mm *mm, struct hmm_mm *child);
int __wrap_hmm_residency_clone(struct hmm_mm *mm, struct hmm_mm *child);
int __wrap_hmm_residency_clone(struct hmm_mm *mm, struct hmm_mm *child)
{
	return no_records ? -ENOMEM : __real_hmm_residency_clone(mm, child);
}

struct scene {
	struct world *w;
	char *away, *here, *untouched;
	char *unknown; /* registered, and not in the records yet, as in the middle of a walk */
	char *elsewhere;
	pid_t child;
	void (*first)(struct scene *s); /* what the child does before the engine has seen it */
};

static void begin(struct scene *s, bool anything_away)
{
	const char *why;

	*s = (struct scene){.w = world_create("lz4", 1, &why)};
	assert_non_null(s->w);
	s->away = managed(s->w, N, 1);
	s->here = managed(s->w, N, 2);
	s->untouched = managed(s->w, N, 0);
	s->elsewhere = mmap(NULL, N * UMM_PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	s->unknown = mmap(NULL, N * UMM_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_int_equal(umm_uffd_register(s->w->mm->space->uffd, (uintptr_t)s->unknown, N * UMM_PAGE,
					   UFFDIO_REGISTER_MODE_MISSING),
			 0);
	if (anything_away)
		assert_int_equal(out(s->w, s->away, N), N);
	no_records = true;
	alarm(60); /* who hangs fails */
}

/* All pages of @p give @sig, or 0 and what they hold. */
static bool all_give(const char *p, unsigned from, unsigned to, int sig, unsigned seed)
{
	char byte;

	for (unsigned i = from; i < to; i++)
		if (touch(p + i * UMM_PAGE, &byte) != sig || (!sig && !page_is(p + i * UMM_PAGE, seed, i)))
			return false;
	return true;
}

static int child_main(struct scene *s, int sig)
{
	if (!all_give(s->away, N / 2, N, sig, 1))
		return 1;
	if (!all_give(s->here, 0, N, 0, 2))
		return 2;
	if (!all_give(s->untouched, 0, N, 0, 0))
		return 3;
	if (!all_give(s->unknown, 0, N, 0, 0))
		return 6;
	/* Nobody is told of anything any more. */
	if (munmap(s->here, N * UMM_PAGE) || munmap(s->unknown, N * UMM_PAGE) ||
	    madvise(s->away + N / 2 * UMM_PAGE, N / 2 * UMM_PAGE, MADV_DONTNEED))
		return 4;
	return all_give(s->away, N / 2, N, 0, 0) ? 0 : 5;
}

static void fork_it(struct scene *s, int sig)
{
	s->w->await_child = s->first != NULL;
	s->child = raw_fork();
	assert_true(s->child >= 0);
	if (s->child)
		return;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (s->first)
		s->first(s);
	_exit(child_main(s, sig));
}

static void end(struct scene *s)
{
	int status = 0;

	if (s->child)
		assert_int_equal(waitpid(s->child, &status, 0), s->child);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
	settled(s->w);
	assert_true(said_word(s->w, "cannot be served"));
	no_records = false;
	/* The parent is none the worse for it. */
	all_are(s->away, N, 1);
	all_are(s->here, N, 2);
	assert_int_equal(munmap(s->untouched, N * UMM_PAGE), 0);
	assert_int_equal(munmap(s->unknown, N * UMM_PAGE), 0);
	alarm(0);
	world_destroy(s->w);
}

static void a_child_without_records(void **state)
{
	struct scene s;

	begin(&s, true);
	fork_it(&s, SIGBUS);
	end(&s);
}

static void a_child_without_records_of_nothing(void **state)
{
	struct scene s;

	begin(&s, false);
	fork_it(&s, 0);
	end(&s);
}

static void unmaps(struct scene *s)
{
	syscall(SYS_munmap, s->away, N / 2 * UMM_PAGE);
}

static void drops(struct scene *s)
{
	syscall(SYS_madvise, s->away, N / 2 * UMM_PAGE, MADV_DONTNEED);
}

static void forks(struct scene *s)
{
	int status = 0, sig = s->w->mm->radix.away ? SIGBUS : 0;
	pid_t pid = raw_fork();

	if (!pid)
		_exit(child_main(s, sig));
	if (waitpid(pid, &status, 0) != pid || status)
		_exit(100);
}

static void at_once(void (*first)(struct scene *s), bool anything_away)
{
	struct scene s;

	begin(&s, anything_away);
	s.first = first;
	fork_it(&s, anything_away ? SIGBUS : 0);
	end(&s);
}

static void it_unmaps_at_once(void **state)
{
	at_once(unmaps, true);
}

static void it_unmaps_at_once_and_nothing_is_away(void **state)
{
	at_once(unmaps, false);
}

static void it_drops_at_once(void **state)
{
	at_once(drops, true);
}

static void it_drops_at_once_and_nothing_is_away(void **state)
{
	at_once(drops, false);
}

static void it_forks_at_once(void **state)
{
	at_once(forks, true);
}

static void it_forks_at_once_and_nothing_is_away(void **state)
{
	at_once(forks, false);
}

static void moves(struct scene *s)
{
	syscall(SYS_mremap, s->away, N * UMM_PAGE, N * UMM_PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, s->elsewhere);
	s->away = s->elsewhere;
}

static void moves_and_stays(struct scene *s)
{
	moves(s);
	pause(); /* it has no right place to look at any more */
}

/* Where its pages are is not known: it must be ended. */
static void it_moves_pages_at_once(void **state)
{
	struct scene s;
	int status;

	begin(&s, true);
	s.first = moves_and_stays;
	fork_it(&s, SIGBUS);
	while (!atomic_load(&s.w->fatals))
		sched_yield();
	assert_int_equal(atomic_exchange(&s.w->fatals, 0), 1);
	assert_int_equal(kill(s.child, SIGKILL), 0);
	assert_int_equal(waitpid(s.child, &status, 0), s.child);
	s.child = 0;
	end(&s);
}

/* It has all that it had. */
static void it_moves_pages_at_once_and_nothing_is_away(void **state)
{
	at_once(moves, false);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_child_without_records), cmocka_unit_test(a_child_without_records_of_nothing),
		cmocka_unit_test(it_unmaps_at_once),       cmocka_unit_test(it_unmaps_at_once_and_nothing_is_away),
		cmocka_unit_test(it_drops_at_once),        cmocka_unit_test(it_drops_at_once_and_nothing_is_away),
		cmocka_unit_test(it_forks_at_once),        cmocka_unit_test(it_forks_at_once_and_nothing_is_away),
		cmocka_unit_test(it_moves_pages_at_once),  cmocka_unit_test(it_moves_pages_at_once_and_nothing_is_away),
	};
	const char *why = NULL;
	struct world *w = world_create("lz4", 1, &why);

	if (!w)
		return skip_all(why);
	world_destroy(w);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
