/* SPDX-License-Identifier: MIT */
/*
 * Changes of the address space, by raw system calls, at every stage of a page's
 * way out and back: whatever happens, each page reads as it would without us.
 */
#include <malloc.h>
#include <sys/prctl.h>
#include <sys/resource.h>

#include "world.h"

#include <sched.h>

#define N 32u
#define MID 8u /* pages MID .. MID_END are those that most changes are about */
#define MID_END 20u

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#define MADV_GUARD_REMOVE 103
#endif
#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif

/* What must be where in the end. */
struct want {
	const char *at;
	unsigned seed, i; /* seed 0: zeros */
	bool unmapped;
};

struct scene {
	struct world *w;
	char *p;
	struct want want[4 * N];
	unsigned nwant;
	struct want child_want[N];
	void (*child_first)(struct scene *s);
	char *child_to;
	bool needs_device;
	pid_t child;
};

static void expect(struct scene *s, const char *at, unsigned first, unsigned n, unsigned seed)
{
	for (unsigned k = 0; k < n; k++)
		s->want[s->nwant++] = (struct want){at + k * UMM_PAGE, seed, first + k, false};
}

static void expect_unmapped(struct scene *s, const char *at, unsigned n)
{
	for (unsigned k = 0; k < n; k++)
		s->want[s->nwant++] = (struct want){at + k * UMM_PAGE, 0, 0, true};
}

static bool want_holds(const struct want *want)
{
	char byte;

	if (want->unmapped)
		return touch(want->at, &byte) == SIGSEGV;
	return page_is(want->at, want->seed, want->i);
}

static char *page(struct scene *s, unsigned i)
{
	return s->p + i * UMM_PAGE;
}

/* An area that is nobody's, to move to. */
static char *elsewhere(unsigned npages)
{
	char *p = mmap(NULL, (npages + 2) * UMM_PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	assert_true(p != MAP_FAILED);
	return p + UMM_PAGE;
}

/* ----------------------------------------------------------------- changes */

static void do_nothing(struct scene *s)
{
	expect(s, s->p, 0, N, 1);
}

static void do_munmap_and_map_anew(struct scene *s)
{
	size_t len = (MID_END - MID) * UMM_PAGE;

	assert_int_equal(syscall(SYS_munmap, page(s, MID), len), 0);
	assert_int_equal(syscall(SYS_mmap, page(s, MID), len, PROT_READ | PROT_WRITE,
				 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0),
			 page(s, MID));
	for (unsigned i = MID; i < MID_END; i += 2)
		page_fill(page(s, i), 2, i);
	expect(s, s->p, 0, MID, 1);
	for (unsigned i = MID; i < MID_END; i++)
		expect(s, page(s, i), i, 1, i % 2 ? 0 : 2);
	expect(s, page(s, MID_END), MID_END, N - MID_END, 1);
}

static void do_map_fixed_over(struct scene *s)
{
	assert_int_equal(syscall(SYS_mmap, page(s, MID), (MID_END - MID) * UMM_PAGE, PROT_READ | PROT_WRITE,
				 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0),
			 page(s, MID));
	expect(s, s->p, 0, MID, 1);
	expect(s, page(s, MID), MID, MID_END - MID, 0);
	expect(s, page(s, MID_END), MID_END, N - MID_END, 1);
}

static void do_munmap_all(struct scene *s)
{
	assert_int_equal(syscall(SYS_munmap, s->p, N * UMM_PAGE), 0);
	expect_unmapped(s, s->p, N);
}

static void do_dontneed(struct scene *s)
{
	assert_int_equal(syscall(SYS_madvise, page(s, MID), (MID_END - MID) * UMM_PAGE, MADV_DONTNEED), 0);
	expect(s, s->p, 0, MID, 1);
	expect(s, page(s, MID), MID, MID_END - MID, 0);
	expect(s, page(s, MID_END), MID_END, N - MID_END, 1);
}

static void do_dontneed_and_write(struct scene *s)
{
	assert_int_equal(syscall(SYS_madvise, page(s, MID), (MID_END - MID) * UMM_PAGE, MADV_DONTNEED), 0);
	for (unsigned i = MID; i < MID_END; i++)
		page_fill(page(s, i), 2, i);
	expect(s, s->p, 0, MID, 1);
	expect(s, page(s, MID), MID, MID_END - MID, 2);
	expect(s, page(s, MID_END), MID_END, N - MID_END, 1);
}

static void do_write_some(struct scene *s)
{
	for (unsigned i = 0; i < N; i++)
		if (i >= MID && i < MID_END)
			page_fill(page(s, i), 2, i);
	expect(s, s->p, 0, MID, 1);
	expect(s, page(s, MID), MID, MID_END - MID, 2);
	expect(s, page(s, MID_END), MID_END, N - MID_END, 1);
}

static void do_mremap_all(struct scene *s)
{
	char *to = elsewhere(N);

	assert_int_equal(syscall(SYS_mremap, s->p, N * UMM_PAGE, N * UMM_PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to), to);
	expect(s, to, 0, N, 1);
	expect_unmapped(s, s->p, N);
}

static void do_mremap_part(struct scene *s)
{
	size_t len = (MID_END - MID) * UMM_PAGE;
	char *to = elsewhere(MID_END - MID);

	assert_int_equal(syscall(SYS_mremap, page(s, MID), len, len, MREMAP_MAYMOVE | MREMAP_FIXED, to), to);
	expect(s, s->p, 0, MID, 1);
	expect(s, to, MID, MID_END - MID, 1);
	expect_unmapped(s, page(s, MID), MID_END - MID);
	expect(s, page(s, MID_END), MID_END, N - MID_END, 1);
}

/* Onto pages of the same area, which are managed and may be away as well. */
static void do_mremap_onto_managed(struct scene *s)
{
	size_t len = 8 * UMM_PAGE;

	assert_int_equal(syscall(SYS_mremap, page(s, 0), len, len, MREMAP_MAYMOVE | MREMAP_FIXED, page(s, 20)),
			 page(s, 20));
	expect_unmapped(s, page(s, 0), 8);
	expect(s, page(s, 8), 8, 12, 1);
	expect(s, page(s, 20), 0, 8, 1);
	expect(s, page(s, 28), 28, 4, 1);
}

static void do_mremap_grow_and_move(struct scene *s)
{
	char *to = elsewhere(2 * N);

	assert_int_equal(syscall(SYS_mremap, s->p, N * UMM_PAGE, 2 * N * UMM_PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to),
			 to);
	expect(s, to, 0, N, 1);
	expect(s, to + N * UMM_PAGE, 0, N, 0);
	expect_unmapped(s, s->p, N);
}

static void do_mremap_grow_in_place(struct scene *s)
{
	assert_int_equal(syscall(SYS_munmap, page(s, N), N * UMM_PAGE), 0);
	assert_int_equal(syscall(SYS_mremap, s->p, N * UMM_PAGE, 2 * N * UMM_PAGE, 0, 0), s->p);
	expect(s, s->p, 0, N, 1);
	expect(s, page(s, N), 0, N, 0);
}

static void do_mremap_shrink(struct scene *s)
{
	assert_int_equal(syscall(SYS_mremap, s->p, N * UMM_PAGE, MID * UMM_PAGE, 0, 0), s->p);
	expect(s, s->p, 0, MID, 1);
	expect_unmapped(s, page(s, MID), N - MID);
}

static void do_mremap_shrink_and_move(struct scene *s)
{
	char *to = elsewhere(N);

	assert_int_equal(syscall(SYS_mremap, s->p, N * UMM_PAGE, MID * UMM_PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to),
			 to);
	expect(s, to, 0, MID, 1);
	expect_unmapped(s, s->p, N);
}

static void do_mremap_dontunmap(struct scene *s)
{
	char *to = elsewhere(N);

	assert_int_equal(syscall(SYS_mremap, s->p, N * UMM_PAGE, N * UMM_PAGE,
				 MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, to),
			 to);
	expect(s, to, 0, N, 1);
	expect(s, s->p, 0, N, 0);
}

/* There and back again: the second move meets what the first one left. */
static void do_mremap_twice(struct scene *s)
{
	char *to = elsewhere(N);

	assert_int_equal(syscall(SYS_mremap, s->p, N * UMM_PAGE, N * UMM_PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to), to);
	assert_int_equal(syscall(SYS_mremap, to, N * UMM_PAGE, N * UMM_PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, s->p),
			 s->p);
	expect(s, s->p, 0, N, 1);
	expect_unmapped(s, to, N);
}

static void do_mprotect(struct scene *s)
{
	assert_int_equal(syscall(SYS_mprotect, page(s, MID), (MID_END - MID) * UMM_PAGE, PROT_READ), 0);
	expect(s, s->p, 0, N, 1);
}

/* The child finds what the parent had, and what it writes is its own. */
static int child_main(struct scene *s)
{
	if (s->child_first)
		s->child_first(s);
	for (unsigned i = 0; i < N; i++)
		if (!want_holds(&s->child_want[i]))
			return (int)i + 1;
	if (s->child_first)
		return 0;
	for (unsigned i = 0; i < N; i += 3)
		if (!s->child_want[i].unmapped)
			page_fill(page(s, i), 7, i);
	for (unsigned i = 0; i < N; i++)
		if (i % 3 || s->child_want[i].unmapped ? !want_holds(&s->child_want[i]) : !page_is(page(s, i), 7, i))
			return (int)(N + i) + 1;
	return 0;
}

static void fork_child(struct scene *s)
{
	s->child = raw_fork();
	assert_true(s->child >= 0);
	if (!s->child)
		_exit(child_main(s));
	expect(s, s->p, 0, N, 1);
}

static void child_inherits(struct scene *s)
{
	for (unsigned i = 0; i < N; i++)
		s->child_want[i] = (struct want){page(s, i), 1, i, false};
}

static void do_fork(struct scene *s)
{
	child_inherits(s);
	fork_child(s);
}

static void child_reap(struct scene *s)
{
	int status;

	if (s->child <= 0)
		return;
	assert_int_equal(waitpid(s->child, &status, 0), s->child);
	assert_true(WIFEXITED(status));
	if (WEXITSTATUS(status))
		fail_msg("the child found page %d wrong", WEXITSTATUS(status) - 1);
	s->child = 0;
}

/* The child is through before anything else happens here. */
static void do_fork_and_wait(struct scene *s)
{
	do_fork(s);
	child_reap(s);
}

static void do_fork_then_write(struct scene *s)
{
	do_fork(s);
	s->nwant = 0;
	do_write_some(s);
}

static void do_fork_without_some(struct scene *s)
{
	assert_int_equal(syscall(SYS_madvise, page(s, MID), (MID_END - MID) * UMM_PAGE, MADV_DONTFORK), 0);
	child_inherits(s);
	for (unsigned i = MID; i < MID_END; i++)
		s->child_want[i].unmapped = true;
	fork_child(s);
}

static void do_fork_wiped(struct scene *s)
{
	assert_int_equal(syscall(SYS_madvise, page(s, MID), (MID_END - MID) * UMM_PAGE, MADV_WIPEONFORK), 0);
	child_inherits(s);
	for (unsigned i = MID; i < MID_END; i++)
		s->child_want[i].seed = 0;
	fork_child(s);
}

/* The child changes its mappings before the engine has given it what is parked. */
static void fork_busy_child(struct scene *s, void (*first)(struct scene *s))
{
	s->child_first = first;
	s->w->await_child = true;
	fork_child(s);
	child_reap(s);
}

static void child_mremaps(struct scene *s)
{
	syscall(SYS_mremap, page(s, MID), (MID_END - MID) * UMM_PAGE, (MID_END - MID) * UMM_PAGE,
		MREMAP_MAYMOVE | MREMAP_FIXED, s->child_to);
}

static void do_fork_child_mremaps(struct scene *s)
{
	s->child_to = elsewhere(MID_END - MID);
	child_inherits(s);
	for (unsigned i = MID; i < MID_END; i++)
		s->child_want[i].at = s->child_to + (i - MID) * UMM_PAGE;
	fork_busy_child(s, child_mremaps);
}

static void child_drops(struct scene *s)
{
	syscall(SYS_madvise, page(s, MID), (MID_END - MID) * UMM_PAGE, MADV_DONTNEED);
}

static void do_fork_child_drops(struct scene *s)
{
	child_inherits(s);
	for (unsigned i = MID; i < MID_END; i++)
		s->child_want[i].seed = 0;
	fork_busy_child(s, child_drops);
}

static void child_munmaps(struct scene *s)
{
	syscall(SYS_munmap, page(s, MID), (MID_END - MID) * UMM_PAGE);
}

static void do_fork_child_munmaps(struct scene *s)
{
	child_inherits(s);
	for (unsigned i = MID; i < MID_END; i++)
		s->child_want[i].unmapped = true;
	fork_busy_child(s, child_munmaps);
}

static const struct {
	const char *name;
	void (*run)(struct scene *s);
	bool needs_device; /* touches pages before it is through */
} changes[] = {
	{"nothing", do_nothing},
	{"munmap, and a new mapping there", do_munmap_and_map_anew},
	{"MAP_FIXED", do_map_fixed_over},
	{"munmap of all", do_munmap_all},
	{"MADV_DONTNEED", do_dontneed},
	{"MADV_DONTNEED, and written again", do_dontneed_and_write},
	{"written", do_write_some, true},
	{"mremap", do_mremap_all},
	{"mremap of a part", do_mremap_part},
	{"mremap onto managed pages", do_mremap_onto_managed},
	{"mremap, grown and moved", do_mremap_grow_and_move},
	{"mremap, grown in place", do_mremap_grow_in_place},
	{"mremap, shrunk", do_mremap_shrink},
	{"mremap, shrunk and moved", do_mremap_shrink_and_move},
	{"MREMAP_DONTUNMAP", do_mremap_dontunmap},
	{"mremap there and back", do_mremap_twice},
	{"mprotect", do_mprotect},
	{"fork", do_fork},
	{"fork, and the child first", do_fork_and_wait, true},
	{"fork, and written", do_fork_then_write, true},
	{"fork with MADV_DONTFORK", do_fork_without_some},
	{"fork with MADV_WIPEONFORK", do_fork_wiped},
	{"fork, and the child moves pages at once", do_fork_child_mremaps, true},
	{"fork, and the child drops pages at once", do_fork_child_drops, true},
	{"fork, and the child unmaps pages at once", do_fork_child_munmaps, true},
};

#define NR_CHANGES (sizeof(changes) / sizeof(changes[0]))

/* ------------------------------------------------------------------ stages */

typedef void (*change_fn)(struct scene *s);

/* Asked for, but the inside has not begun. */
static void while_parking(struct scene *s, change_fn change)
{
	struct world *w = s->w;
	struct hmm_victim v[4];

	w->defer = true;
	assert_int_equal(hmm_out_begin(w->mm, 0, v, victims(s->p, N, v)), 0);
	assert_int_equal(state_of(w, s->p), HMM_PARKING);
	change(s);
	settled(w);
	w->defer = false;
	assert_true(hmm_out_finish(w->mm, 0) >= 0);
	assert_true(hmm_out_store(w->mm, 0) >= 0);
}

/* The inside has moved the pages; the engine has not looked yet. */
static void while_moved(struct scene *s, change_fn change)
{
	struct world *w = s->w;
	struct hmm_victim v[4];

	assert_int_equal(hmm_out_begin(w->mm, 1, v, victims(s->p, N, v)), 0);
	assert_int_equal(state_of(w, s->p), HMM_PARKING);
	assert_int_equal(count_present(w, s->p, N), 0);
	/* Who touches such a page sleeps until the engine has looked; only changes that do not touch come now. */
	if (change != do_write_some && change != do_fork_then_write)
		change(s);
	else
		do_nothing(s);
	assert_true(hmm_out_finish(w->mm, 1) >= 0);
	assert_true(hmm_out_store(w->mm, 1) >= 0);
}

static void while_parked(struct scene *s, change_fn change)
{
	struct world *w = s->w;
	struct hmm_victim v[4];

	assert_int_equal(hmm_out_begin(w->mm, 0, v, victims(s->p, N, v)), 0);
	assert_int_equal(hmm_out_finish(w->mm, 0), N);
	assert_int_equal(state_of(w, s->p), HMM_PARKED);
	change(s);
	assert_true(hmm_out_store(w->mm, 0) >= 0);
}

struct job {
	struct world *w;
	const char *p;
	int rc;
};

static void *out_main(void *arg)
{
	struct job *j = arg;

	j->rc = out(j->w, j->p, N);
	return NULL;
}

static void while_the_device_copies(struct scene *s, change_fn change)
{
	struct world *w = s->w;
	struct job j = {w, s->p, 0};
	struct fake *f = w->fake[0];
	pthread_t thread;

	fake_tell(f, &f->block_in, true);
	assert_int_equal(pthread_create(&thread, NULL, out_main, &j), 0);
	fake_await(f, &f->in_blocked);
	change(s);
	fake_tell(f, &f->block_in, false);
	pthread_join(thread, NULL);
	assert_true(j.rc >= 0);
}

/* The same, and the device fails in the end: what is still there goes back, and nothing else. */
static void while_a_failing_device_copies(struct scene *s, change_fn change)
{
	fake_fail_in(s->w->fake[0], -EIO);
	while_the_device_copies(s, change);
	fake_fail_in(s->w->fake[0], 0);
}

static void while_away(struct scene *s, change_fn change)
{
	assert_int_equal(out(s->w, s->p, N), N);
	change(s);
}

/* Somebody is bringing a page back, and the device is not ready yet. */
static void *read_main(void *arg)
{
	char byte;

	touch(arg, &byte);
	return NULL;
}

static void while_coming_back(struct scene *s, change_fn change)
{
	struct fake *f = s->w->fake[0];
	pthread_t thread;

	assert_int_equal(out(s->w, s->p, N), N);
	fake_tell(f, &f->block_out, true);
	assert_int_equal(pthread_create(&thread, NULL, read_main, page(s, MID + 2)), 0);
	fake_await(f, &f->out_blocked);
	/* Changes that touch pages need the device themselves. */
	if (s->needs_device)
		fake_tell(f, &f->block_out, false);
	change(s);
	fake_tell(f, &f->block_out, false);
	pthread_join(thread, NULL);
}

/* Every other fault or so is part of a walk, and there is room for copies. */
static void some_walk(struct world *w)
{
	atomic_store(&w->h->clean_max[0], 2 * FAKE_PAGES);
	if (!atomic_load(&w->mm->seq_score))
		atomic_store(&w->mm->seq_score, 128);
}

/* All pages have been away and are back, and the device still has them. */
static void become_clean(struct scene *s)
{
	struct world *w = s->w;

	some_walk(w);
	assert_int_equal(out(w, s->p, N), N);
	assert_int_equal(hmm_restore(w->mm, (uintptr_t)s->p, (uintptr_t)s->p + N * UMM_PAGE), 0);
	assert_int_equal(state_of(w, s->p), HMM_CLEAN);
	assert_int_equal(w->fake[0]->pages, N);
	assert_int_equal(atomic_load(&w->mm->radix.away), 0);
}

static void while_here(struct scene *s, change_fn change)
{
	change(s);
}

/* The device is asked whether it still has them. */
static void while_the_device_compares(struct scene *s, change_fn change)
{
	struct world *w = s->w;
	struct job j = {w, s->p, 0};
	struct fake *f = w->fake[0];
	pthread_t thread;

	fake_tell(f, &f->block_same, true);
	assert_int_equal(pthread_create(&thread, NULL, out_main, &j), 0);
	fake_await(f, &f->same_blocked);
	/* Changes that touch pages find them parked: they need no device, but their references are let go in there. */
	if (s->needs_device)
		fake_tell(f, &f->block_same, false);
	change(s);
	fake_tell(f, &f->block_same, false);
	pthread_join(thread, NULL);
	assert_true(j.rc >= 0);
}

/* What they were before, for stage(). */
static bool start_clean, device_forgets;

static void stage(void (*when)(struct scene *s, change_fn change))
{
	for (unsigned c = 0; c < NR_CHANGES; c++) {
		const char *why;
		struct scene s = {.w = world_create("lz4", 1, &why)};

		assert_non_null(s.w);
		s.p = managed(s.w, N, 1);
		s.needs_device = changes[c].needs_device;
		if (start_clean)
			become_clean(&s);
		s.w->fake[0]->forgets = device_forgets;
		when(&s, changes[c].run);
		child_reap(&s);
		/* Twice: what goes out again after a change is what came of it. */
		for (unsigned round = 0; round < 2; round++) {
			for (unsigned k = 0; k < s.nwant; k++)
				if (!want_holds(&s.want[k]))
					fail_msg("%s: page %u does not hold what it should, round %u", changes[c].name,
						 k, round);
			quarantine_over(s.w);
			for (unsigned k = 0; k < s.nwant && !round; k++)
				if (!s.want[k].unmapped)
					out(s.w, s.want[k].at, 1);
		}
		if (atomic_load(&s.w->fatals))
			fail_msg("%s: the engine gave a space up", changes[c].name);
		world_destroy(s.w);
	}
}

static void changes_while_parking(void **state)
{
	stage(while_parking);
}

static void changes_while_moved(void **state)
{
	stage(while_moved);
}

static void changes_while_parked(void **state)
{
	stage(while_parked);
}

static void changes_while_the_device_copies(void **state)
{
	stage(while_the_device_copies);
}

static void changes_while_a_failing_device_copies(void **state)
{
	stage(while_a_failing_device_copies);
}

static void changes_while_away(void **state)
{
	stage(while_away);
}

static void changes_while_coming_back(void **state)
{
	stage(while_coming_back);
}

static int clean_setup(void **state)
{
	start_clean = true;
	return 0;
}

static int forgets_setup(void **state)
{
	start_clean = device_forgets = true;
	return 0;
}

static int clean_teardown(void **state)
{
	start_clean = device_forgets = false;
	return 0;
}

static void changes_while_clean(void **state)
{
	stage(while_here);
}

static void changes_while_the_device_compares(void **state)
{
	stage(while_the_device_compares);
}

/* Only what was written is stored again. */
static void what_the_device_has_is_not_stored_again(void **state)
{
	const char *why;
	struct scene s = {.w = world_create("lz4", 1, &why)};
	struct fake *f;

	assert_non_null(s.w);
	f = s.w->fake[0];
	s.p = managed(s.w, N, 1);
	become_clean(&s);
	uint64_t stored = f->copied_in;

	page_fill(s.p + 3 * UMM_PAGE, 2, 3);
	s.p[7 * UMM_PAGE + 4095] ^= 1;
	assert_int_equal(out(s.w, s.p, N), N);
	assert_int_equal(f->copied_in - stored, 2);
	assert_int_equal(atomic_load(&s.w->h->dropped_clean), N - 2);
	assert_int_equal(f->pages, N);
	assert_int_equal(f->refs_total, N);
	s.p[7 * UMM_PAGE + 4095] ^= 1;
	for (unsigned i = 0; i < N; i++)
		assert_true(page_is(s.p + i * UMM_PAGE, i == 3 ? 2 : 1, i));
	world_destroy(s.w);
}

/* Copies go where they are in the way, and nothing of the pages changes. */
static void copies_are_let_go(void **state)
{
	const char *why;
	struct scene s = {.w = world_create("lz4", 1, &why)};

	assert_non_null(s.w);
	s.p = managed(s.w, N, 1);
	become_clean(&s);
	/* A budget of one page, of which an eighth may be copies: from now on none is kept, and those there are go. */
	s.w->h->opt.budget = UMM_PAGE;
	s.w->fake[0]->full = true;
	hmm_clean_shed(s.w->mm, false);
	assert_int_equal(s.w->fake[0]->pages, 0);
	assert_int_equal(atomic_load(&s.w->h->clean[0]), 0);
	assert_int_equal(count_present(s.w, s.p, N), N);
	s.w->fake[0]->full = false;
	assert_int_equal(out(s.w, s.p, N), N);
	assert_int_equal(hmm_restore(s.w->mm, (uintptr_t)s.p, (uintptr_t)s.p + N * UMM_PAGE), 0);
	assert_int_equal(s.w->fake[0]->pages, 0);
	for (unsigned i = 0; i < N; i++)
		assert_true(page_is(s.p + i * UMM_PAGE, 1, i));
	world_destroy(s.w);
}

/* Who does nothing but walk has more of them; when it does something else, too, these go, and the others with the last
 * walk. */
static void more_copies_are_kept_of_who_walks(void **state)
{
	const char *why;
	struct scene s = {.w = world_create("lz4", 1, &why)};
	struct hmm_mm *mm;
	struct hmm *h;

	assert_non_null(s.w);
	mm = s.w->mm;
	h = s.w->h;
	s.p = managed(s.w, N, 1);
	become_clean(&s);
	h->opt.budget = 0;
	hmm_clean_shed(mm, false);
	assert_int_equal(s.w->fake[0]->pages, 0);
	atomic_store(&h->clean_walk[0], N);
	assert_false(hmm_clean_keeps(mm, 0, HMM_PLACE_MAX));
	atomic_store(&mm->seq_score, 256);
	assert_true(hmm_clean_keeps(mm, 0, HMM_PLACE_MAX));
	assert_false(hmm_clean_keeps(mm, 0, 1));
	become_clean(&s);
	/* Half of the budget is enough for all, an eighth is not. */
	h->opt.budget = 4 * N * UMM_PAGE;
	hmm_clean_shed(mm, false);
	assert_int_equal(atomic_load(&h->clean[0]), N);
	atomic_store(&mm->seq_score, 128);
	hmm_clean_shed(mm, false);
	assert_true(atomic_load(&h->clean[0]) < N);
	assert_int_equal(s.w->fake[0]->pages, atomic_load(&h->clean[0]));
	become_clean(&s);
	h->opt.budget = 1024 * N * UMM_PAGE;
	hmm_clean_shed(mm, false);
	assert_int_equal(atomic_load(&h->clean[0]), N);
	assert_true(hmm_clean_keeps(mm, 0, HMM_PLACE_MAX));
	atomic_store(&mm->seq_score, HMM_SEQ_STEP - 1);
	assert_false(hmm_clean_keeps(mm, 0, HMM_PLACE_MAX));
	hmm_clean_shed(mm, false);
	assert_int_equal(s.w->fake[0]->pages, 0);
	for (unsigned i = 0; i < N; i++)
		assert_true(page_is(s.p + i * UMM_PAGE, 1, i));
	world_destroy(s.w);
}

/* Where a copy takes no RAM all are kept, whoever they are of, as long as the device has room. */
static void copies_on_a_disk_cost_nothing(void **state)
{
	const char *why;
	struct scene s = {.w = world_create("lz4", 1, &why)};
	struct hmm_mm *mm;
	struct hmm *h;

	assert_non_null(s.w);
	mm = s.w->mm;
	h = s.w->h;
	s.w->fake[0]->ops.caps &= ~(uint32_t)HMM_DEV_RAM;
	s.p = managed(s.w, N, 1);
	h->opt.budget = UMM_PAGE;
	hmm_clean_shed(mm, false);
	atomic_store(&mm->seq_score, 0);
	atomic_store(&mm->clean_score, 0);
	for (unsigned i = 0; i < 64; i++)
		assert_true(hmm_clean_keeps(mm, 0, 1));
	assert_int_equal(out(s.w, s.p, N), N);
	all_are(s.p, N, 1);
	/* Who waits for a page may run before it is entered. */
	assert_int_equal(state_of(s.w, s.p), HMM_CLEAN);
	assert_int_equal(state_of(s.w, s.p + (N - 1) * UMM_PAGE), HMM_CLEAN);
	assert_int_equal(atomic_load(&h->clean[0]), N);
	hmm_clean_shed(mm, false);
	assert_int_equal(atomic_load(&h->clean[0]), N);
	/* What was read only is not written again. */
	s.p[0] ^= 1;
	assert_int_equal(out(s.w, s.p, N), N);
	assert_int_equal(atomic_load(&h->dropped_clean), N - 1);
	assert_int_equal(s.w->fake[0]->copied_in, N + 1);
	s.p[0] ^= 1;
	all_are(s.p, N, 1);
	assert_int_equal(state_of(s.w, s.p), HMM_CLEAN);
	assert_int_equal(state_of(s.w, s.p + (N - 1) * UMM_PAGE), HMM_CLEAN);
	s.w->fake[0]->full = true;
	hmm_clean_shed(mm, false);
	assert_int_equal(atomic_load(&h->clean[0]), 0);
	hmm_clean_shed(mm, false); /* it has room for none of what there is now */
	assert_false(hmm_clean_keeps(mm, 0, HMM_PLACE_MAX));
	all_are(s.p, N, 1);
	fake_comes_to_hold(s.w->fake[0], 0);
	world_destroy(s.w);
}

/* Copies may take all there is of a disk: pages go nevertheless. */
static void copies_on_a_full_disk_make_room(void **state)
{
	const char *why;
	struct scene s = {.w = world_create("lz4", 1, &why)};
	struct hmm_mm *mm;
	struct fake *f;
	char *rest;

	assert_non_null(s.w);
	mm = s.w->mm;
	f = s.w->fake[0];
	f->ops.caps &= ~(uint32_t)HMM_DEV_RAM;
	s.p = managed(s.w, N, 1);
	rest = managed(s.w, N, 2);
	hmm_clean_shed(mm, false);
	assert_int_equal(out(s.w, s.p, N), N);
	all_are(s.p, N, 1);
	assert_int_equal(state_of(s.w, s.p), HMM_CLEAN);
	assert_int_equal(state_of(s.w, s.p + (N - 1) * UMM_PAGE), HMM_CLEAN);
	fake_comes_to_hold(f, N);
	/* Each has been written to: its own copy is in the way. */
	fake_set(f, &f->capacity, N);
	for (unsigned i = 0; i < N; i++)
		page_fill(s.p + i * UMM_PAGE, 3, i);
	assert_int_equal(out(s.w, s.p, N), N);
	all_are(s.p, N, 3);
	assert_int_equal(state_of(s.w, s.p), HMM_CLEAN);
	assert_int_equal(state_of(s.w, s.p + (N - 1) * UMM_PAGE), HMM_CLEAN);
	fake_comes_to_hold(f, N);
	/* Those of others are: which of them go is told when a page was refused, and the next try finds room. */
	s.w->space->maps_fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
	atomic_store(&mm->armed, true);
	mm->anon_pages = 2 * N;
	for (unsigned tries = 0; tries < 2; tries++) {
		mm->hand = (uintptr_t)rest;
		hmm_reclaim(s.w->h, N);
	}
	assert_int_equal(state_of(s.w, rest), HMM_DEVICE);
	all_are(s.p, N, 3);
	all_are(rest, N, 2);
	world_destroy(s.w);
}

static struct scene *walked;

static void walk_brings_back(struct hmm_mm *mm)
{
	assert_int_equal(hmm_restore(mm, (uintptr_t)walked->p, (uintptr_t)walked->p + N * UMM_PAGE), 0);
}

/* Who reads the events of a space may have to apply a fork, for which pages come back on its own stack. */
static void a_walker_may_bring_back(void **state)
{
	const char *why;
	struct scene s = {.w = world_create("lz4", 1, &why)};

	assert_non_null(s.w);
	s.p = managed(s.w, N, 1);
	walked = &s;
	assert_int_equal(out(s.w, s.p, N), N);
	hmm_walkers_each(s.w->h, &s.w->mm, 1, walk_brings_back, UINT64_MAX / 2);
	hmm_walkers_stop(s.w->h);
	assert_int_equal(count_present(s.w, s.p, N), N);
	for (unsigned i = 0; i < N; i++)
		assert_true(page_is(s.p + i * UMM_PAGE, 1, i));
	world_destroy(s.w);
}

/* Where what comes back is always written, only a sample is kept; who goes about at random keeps nothing. */
static void copies_are_kept_where_it_pays(void **state)
{
	const char *why;
	struct world *w = world_create("lz4", 1, &why);

	assert_non_null(w);
	some_walk(w);
	assert_false(hmm_clean_keeps(w->mm, 0, 1));
	assert_true(hmm_clean_keeps(w->mm, 0, HMM_PLACE_MAX));
	char *p = managed(w, N, 1);
	for (unsigned round = 0; round < 8; round++) {
		assert_int_equal(out(w, p, N), N);
		assert_int_equal(hmm_restore(w->mm, (uintptr_t)p, (uintptr_t)p + N * UMM_PAGE), 0);
		for (unsigned i = 0; i < N; i++)
			page_fill(p + i * UMM_PAGE, round + 2, i);
	}
	unsigned kept = 0;
	for (unsigned i = 0; i < 160; i++)
		kept += hmm_clean_keeps(w->mm, 0, HMM_PLACE_MAX);
	assert_int_equal(kept, 10);
	atomic_store(&w->h->clean_max[0], 0);
	for (unsigned i = 0; i < 160; i++)
		assert_false(hmm_clean_keeps(w->mm, 0, HMM_PLACE_MAX));
	world_destroy(w);
}

/* ------------------------------------------------------- what a child inherits */

#define MARKED 8u

static void *move_marked(void *arg)
{
	char **p = arg;

	assert_true(mremap(p[0], MARKED * UMM_PAGE, MARKED * UMM_PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, p[1]) == p[1]);
	p[2] = p[1];
	return NULL;
}

/* Read while events wait: what they tell of is in it already, and must not be done to it again. */
static void marks_are_read_while_a_mapping_moves(void **state)
{
	const char *why;
	struct world *w = world_create("lz4", 0, &why);
	char *at[3] = {managed(w, MARKED, 1), managed(w, MARKED, 2), NULL};
	bool known, there, here;
	pthread_t t;

	assert_int_equal(madvise(at[0], MARKED * UMM_PAGE, MADV_WIPEONFORK), 0);
	assert_int_equal(hmm_marks_read(w->mm), 0);
	umm_monitor_del(w->space);
	assert_int_equal(pthread_create(&t, NULL, move_marked, at), 0);
	assert_int_equal(poll(&(struct pollfd){.fd = w->space->uffd, .events = POLLIN}, 1, -1), 1);
	assert_int_equal(hmm_marks_read(w->mm), 0);
	while (!*(char *volatile *)&at[2])
		umm_space_drain(w->space);
	pthread_join(t, NULL);
	umm_space_drain(w->space);
	known = w->mm->marks_known;
	there = hmm_iset_covers(&w->mm->wipeonfork, (uintptr_t)at[1], (uintptr_t)at[1] + MARKED * UMM_PAGE);
	here = hmm_iset_meets(&w->mm->wipeonfork, (uintptr_t)at[0], (uintptr_t)at[0] + MARKED * UMM_PAGE);
	world_destroy(w);
	assert_true(known);
	assert_true(there);
	assert_false(here);
}

/* The task by whose name it was opened has ended: that there is nothing to read does not say that nothing is marked. */
static void marks_of_whom_has_ended(void **state)
{
	const char *why;
	struct world *w = world_create("lz4", 0, &why);
	struct hmm_iset absent = {0}, empty = {0};
	char path[64];
	bool known;
	int rc, ended;
	pid_t pid = raw_fork();

	if (!pid) {
		pause();
		_exit(0);
	}
	snprintf(path, sizeof(path), "/proc/%d/smaps", (int)pid);
	close(w->mm->smaps_fd);
	w->mm->smaps_fd = open(path, O_RDONLY | O_CLOEXEC);
	assert_int_equal(hmm_find_unforked(w->mm, &absent, &empty), 0);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	ended = hmm_find_unforked(w->mm, &absent, &empty);
	w->mm->marks_known = true;
	rc = hmm_marks_read(w->mm);
	known = w->mm->marks_known;
	hmm_iset_clear(&absent);
	hmm_iset_clear(&empty);
	world_destroy(w);
	assert_int_equal(ended, -ESRCH);
	assert_int_equal(rc, -ESRCH);
	assert_false(known);
}

static bool has_died(void *priv)
{
	return true;
}

/* Pages of the area that it returns are on their way from staging to the window, and who carries them has died. */
static char *died_half_way(struct world *w)
{
	struct hmm_victim v[4];
	char *p = managed(w, N, 1);

	assert_int_equal(hmm_out_begin(w->mm, 0, v, victims(p, N, v)), 0);
	for (unsigned r = 0; r < w->ctl->batch[0].nr; r++)
		atomic_store(&w->ctl->batch[0].run[r].state, UMM_RUN_MOVED);
	memset(w->window, 0, STAGING);
	w->space->gone = has_died;
	return p;
}

/*
 * What was on its way from staging to the window when the inside died is nowhere
 * any more: a child that is forked before its parent is dead must die, too, and
 * must not find zeros.
 */
static void fork_after_death(unsigned generations)
{
	const char *why;
	struct world *w = world_create("lz4", 1, &why);
	int status = 0;
	bool ended;
	pid_t pid;

	assert_non_null(w);
	char *p = died_half_way(w);
	pid = raw_fork();
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (unsigned g = 1; g < generations; g++) {
			pid_t next = raw_fork();

			if (next) {
				waitpid(next, &status, 0);
				_exit(WIFEXITED(status) ? WEXITSTATUS(status) : 2);
			}
			prctl(PR_SET_PDEATHSIG, SIGKILL);
		}
		for (unsigned i = 0; i < N; i++)
			if (!page_is(p + i * UMM_PAGE, 1, i))
				_exit(1);
		_exit(0);
	}
	while (!(ended = waitpid(pid, &status, WNOHANG) == pid) && atomic_load(&w->fatals) < generations)
		usleep(1000);
	if (!ended) {
		kill(pid, SIGKILL);
		waitpid(pid, &status, 0);
	}
	/* Who gave them up is in the middle of their forks, with the lock of a child's space, and may be asking who is
	 * gone. */
	umm_monitor_settle(w->h->monitor);
	w->space->gone = NULL;
	unsigned fatals = atomic_exchange(&w->fatals, 0);
	world_destroy(w);
	assert_false(WIFEXITED(status));
	assert_int_equal(fatals, generations);
}

/*
 * Who applies a fork goes on with the child's records after it has said that the child must die; the engine that ends
 * meanwhile waits for it.
 */
static void an_engine_ends_while_a_fork_is_applied(void **state)
{
	const char *why;
	struct world *w = world_create("lz4", 1, &why);
	pid_t pid;

	assert_non_null(w);
	died_half_way(w);
	w->slow_fatal = true;
	mallopt(M_PERTURB, 0xa5); /* what is used after it was freed shows */
	pid = raw_fork();
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		pause();
		_exit(0);
	}
	while (!atomic_load(&w->fatals))
		usleep(1000);
	atomic_store(&w->fatals, 0);
	kill(pid, SIGKILL); /* it has the descriptor, too */
	assert_int_equal(waitpid(pid, NULL, 0), pid);
	world_destroy(w); /* what is seen is that it gets through, and what it finds in the end */
	mallopt(M_PERTURB, 0);
}

static void a_fork_after_the_inside_has_died(void **state)
{
	fork_after_death(1);
}

static void a_fork_of_who_must_die(void **state)
{
	fork_after_death(2);
}

/* ------------------------------------------------------------ overtaken forks */

/*
 * Two threads: one forks, the other changes what the child has inherited.  The
 * kernel tells of the change first, though it came after the fork; here the test
 * does, and lets the events be read in the other order.
 */
struct overtaken {
	struct world *w;
	char *p, *to;         /* to: where it is moved first; NULL: it is not */
	bool unmapped, again; /* then it is unmapped; and mapped anew */
	bool lost;            /* the child gets SIGBUS for what was away */
	bool or_not;          /* or it has it: as it happens; never zeros */
	void (*child_first)(struct overtaken *o);
	char *child_at;                    /* where the child has it then */
	unsigned child_lacks;              /* of the first pages; they are unmapped */
	_Atomic unsigned done;             /* changes */
	void (*more)(struct overtaken *o); /* told before the fork is */
	char *q, *r;                       /* of who tells more */
	bool starved;                      /* there are no descriptors but those that are kept for this */
	bool stays;                        /* what is moved leaves a mapping behind */
	char *on;                          /* a third thread moves it on to there; NULL: none does */
	bool over;                         /* what was at that place before is told of first */
	char *into;                        /* a third thread moves that into the hole; NULL: none does */
};

static bool was_touched(unsigned i)
{
	return i % 4 != 3;
}

static void *change_mapping(void *arg)
{
	struct overtaken *o = arg;
	char *at = o->p;

	if (o->to) {
		mremap(at, N * UMM_PAGE, N * UMM_PAGE,
		       MREMAP_MAYMOVE | MREMAP_FIXED | (o->stays ? MREMAP_DONTUNMAP : 0), o->to);
		at = o->to;
		atomic_fetch_add(&o->done, 1);
	}
	if (o->unmapped) {
		munmap(at, N * UMM_PAGE);
		atomic_fetch_add(&o->done, 1);
	}
	return NULL;
}

static void *move_on(void *arg)
{
	struct overtaken *o = arg;

	mremap(o->to, N * UMM_PAGE, N * UMM_PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, o->on);
	atomic_fetch_add(&o->done, 1);
	return NULL;
}

static void *move_into(void *arg)
{
	struct overtaken *o = arg;

	mremap(o->into, N * UMM_PAGE, N * UMM_PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, o->p);
	atomic_fetch_add(&o->done, 1);
	return NULL;
}

static int look_at(struct overtaken *o)
{
	for (unsigned i = 0; i < N; i++) {
		const char *page = o->child_at + i * UMM_PAGE;
		char byte;

		if (o->or_not && was_touched(i) && touch(page, &byte) == SIGBUS)
			continue;
		if (i < o->child_lacks          ? touch(page, &byte) != SIGSEGV
		    : was_touched(i) && o->lost ? touch(page, &byte) != SIGBUS
						: !!peek(page) || !page_is(page, was_touched(i) ? 1 : 0, i))
			return (int)i + 1;
	}
	return 0;
}

static void *fork_and_look(void *arg)
{
	struct overtaken *o = arg;
	int status = -1;
	pid_t pid = raw_fork();

	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (o->child_first)
			o->child_first(o);
		_exit(look_at(o));
	}
	/* Here: for the child its parent is this thread, and has died when that ends. */
	waitpid(pid, &status, 0);
	return (void *)(intptr_t)status;
}

/* The changer sleeps until its event has been read; until then its change must have been made. */
static void await_unmapped(const char *p)
{
	unsigned char in;

	while (!mincore((void *)(uintptr_t)p, UMM_PAGE, &in) || errno != ENOMEM)
		sched_yield();
}

static void await_mapped(const char *p)
{
	unsigned char in;

	while (mincore((void *)(uintptr_t)p, UMM_PAGE, &in))
		sched_yield();
}

static void tell(struct world *w, enum umm_event event, const char *at, const char *to)
{
	struct umm_change c = {.event = event,
			       .start = (uintptr_t)at,
			       .end = (uintptr_t)at + N * UMM_PAGE,
			       .new_start = (uintptr_t)to};

	umm_evlock_excl(&w->ctl->evlock);
	w->space->ops->change(w->space->priv, &c);
	umm_evlock_unexcl(&w->ctl->evlock);
}

enum { AWAY, PARKED };

static struct overtaken *overtaken_new(int how)
{
	const char *why;
	struct overtaken *o = calloc(1, sizeof(*o));
	struct hmm_victim v[4];
	struct world *w = world_create("lz4", 1, &why);

	assert_non_null(w);
	o->w = w;
	o->p = o->child_at = managed(w, N, 1);
	for (unsigned i = 0; i < N; i++)
		if (!was_touched(i))
			assert_int_equal(madvise(o->p + i * UMM_PAGE, UMM_PAGE, MADV_DONTNEED), 0);
	quarantine_over(w);
	if (how == PARKED) {
		assert_int_equal(hmm_out_begin(w->mm, 0, v, victims(o->p, N, v)), 0);
		assert_int_equal(hmm_out_finish(w->mm, 0), N - N / 4);
	} else {
		out(w, o->p, N);
		assert_int_equal(state_of(w, o->p), HMM_DEVICE);
	}
	w->space->maps_fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
	return o;
}

#define DESCRIPTORS 256

/* Nothing can be opened but in place of what is closed.  @held: -1 where there was something. */
static void starve(struct rlimit *old, int held[DESCRIPTORS])
{
	int fd;

	assert_int_equal(getrlimit(RLIMIT_NOFILE, old), 0);
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &(struct rlimit){DESCRIPTORS, old->rlim_max}), 0);
	memset(held, -1, DESCRIPTORS * sizeof(*held));
	while ((fd = open("/dev/null", O_RDONLY | O_CLOEXEC)) >= 0)
		held[fd] = fd;
	assert_int_equal(errno, EMFILE);
}

static void starved(const struct rlimit *old, const int held[DESCRIPTORS])
{
	for (unsigned i = 0; i < DESCRIPTORS; i++)
		if (held[i] >= 0)
			close(held[i]);
	assert_int_equal(setrlimit(RLIMIT_NOFILE, old), 0);
}

/* Its stack may have become one mapping with what is managed: then it sends events as it ends, and nobody else reads.
 */
static void *end_of_thread(struct world *w, pthread_t t)
{
	void *status;

	while (pthread_tryjoin_np(t, &status)) {
		umm_space_drain(w->space);
		sched_yield();
	}
	return status;
}

static void overtaken_run(struct overtaken *o)
{
	struct world *w = o->w;
	pthread_t forker, changer, mover;
	char *at = o->p;
	void *status;

	umm_monitor_del(w->space);
	assert_int_equal(pthread_create(&forker, NULL, fork_and_look, o), 0);
	poll(&(struct pollfd){.fd = w->space->uffd, .events = POLLIN}, 1, -1);
	assert_int_equal(pthread_create(&changer, NULL, change_mapping, o), 0);
	if (o->stays)
		await_mapped(o->to);
	else
		await_unmapped(at);
	if (o->over)
		tell(w, UMM_EVENT_UNMAP, o->to, NULL);
	if (o->to) {
		tell(w, UMM_EVENT_REMAP, at, o->to);
		if (!o->stays)
			tell(w, UMM_EVENT_UNMAP, at, NULL);
		at = o->to;
	}
	if (o->on) {
		assert_int_equal(pthread_create(&mover, NULL, move_on, o), 0);
		await_unmapped(at);
		tell(w, UMM_EVENT_REMAP, at, o->on);
		tell(w, UMM_EVENT_UNMAP, at, NULL);
		at = o->on;
	}
	if (o->into) {
		assert_int_equal(pthread_create(&mover, NULL, move_into, o), 0);
		await_unmapped(o->into);
		tell(w, UMM_EVENT_REMAP, o->into, o->p);
		tell(w, UMM_EVENT_UNMAP, o->into, NULL);
	}
	/* The second change is made once the event of the first has been read, and with it that of the fork: not yet.
	 */
	if (o->unmapped)
		tell(w, UMM_EVENT_UNMAP, at, NULL);
	if (o->again)
		assert_ptr_equal(mmap(o->p, N * UMM_PAGE, PROT_READ | PROT_WRITE,
				      MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0),
				 o->p);
	if (o->more)
		o->more(o);
	/* As long as the fork has not been told of nothing is let go. */
	hmm_overtaken_age(w->mm);
	struct rlimit old;
	int held[DESCRIPTORS];
	if (o->starved)
		starve(&old, held);
	while (atomic_load(&o->done) < (o->to ? 1u : 0u) + o->unmapped + (o->on || o->into ? 1u : 0u))
		umm_space_drain(w->space);
	if (o->starved)
		starved(&old, held);
	end_of_thread(w, changer);
	if (o->on || o->into)
		end_of_thread(w, mover);
	status = end_of_thread(w, forker);
	hmm_overtaken_age(w->mm);
	assert_true(o->or_not || said_word(w, "is lost to the child") == o->lost);
	assert_null(w->mm->kept);
	assert_int_equal(atomic_load(&w->mm->nkept), 0);
	world_destroy(w);
	free(o);
	assert_null(status);
}

void __real_umm_free(struct umm_space *space, void *p, size_t len);
void __wrap_umm_free(struct umm_space *space, void *p, size_t len);
static _Atomic unsigned freed, readable; /* pages, of which a word of the program's could still be read */

void __wrap_umm_free(struct umm_space *space, void *p, size_t len)
{
	if (p && len == UMM_PAGE) {
		atomic_fetch_add(&freed, 1);
		for (unsigned i = 0; i < N; i++)
			atomic_fetch_add(&readable, page_is(p, 1, i));
	}
	__real_umm_free(space, p, len);
}

static void a_fork_that_munmap_has_overtaken(void **state)
{
	struct overtaken *o = overtaken_new(AWAY);

	o->unmapped = true;
	overtaken_run(o);
}

static void a_fork_that_munmap_has_overtaken_while_parked(void **state)
{
	struct overtaken *o = overtaken_new(PARKED);

	freed = readable = 0;
	o->unmapped = true;
	overtaken_run(o);
	/* What was kept of it is let go of, and is nowhere any more. */
	assert_true(atomic_load(&freed) >= N - N / 4);
	assert_int_equal(atomic_load(&readable), 0);
}

static void a_fork_that_mremap_has_overtaken(void **state)
{
	struct overtaken *o = overtaken_new(AWAY);

	o->to = managed(o->w, N, 2);
	overtaken_run(o);
}

static void a_fork_that_mremap_has_overtaken_while_parked(void **state)
{
	struct overtaken *o = overtaken_new(PARKED);

	o->to = managed(o->w, N, 2);
	overtaken_run(o);
}

static void a_fork_that_mremap_and_munmap_have_overtaken(void **state)
{
	struct overtaken *o = overtaken_new(AWAY);

	o->to = managed(o->w, N, 2);
	o->unmapped = true;
	overtaken_run(o);
}

/* The parent's new mapping is not the child's. */
static void a_fork_that_munmap_and_mmap_have_overtaken(void **state)
{
	struct overtaken *o = overtaken_new(AWAY);

	o->unmapped = o->again = true;
	overtaken_run(o);
}

/* More than can be kept: SIGBUS, but not for what was never there. */
static void too_much_for_a_fork_that_munmap_has_overtaken(void **state)
{
	struct overtaken *o = overtaken_new(AWAY);
	struct world *w = o->w;

	o->unmapped = o->lost = true;
	atomic_store(&w->mm->nkept, 1u << 20);
	umm_monitor_del(w->space);
	tell(w, UMM_EVENT_UNMAP, o->p, NULL);
	atomic_store(&w->mm->nkept, 0);
	overtaken_run(o);
}

static void child_moves_and_unmaps(struct overtaken *o)
{
	char *to = mmap(NULL, N * UMM_PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	o->child_at = mremap(o->p, N * UMM_PAGE, N * UMM_PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to);
	munmap(o->child_at, MID * UMM_PAGE);
}

/* While the child changes its mappings the kernel does not say what it has. */
static void a_child_that_changes_what_it_should_get(void **state)
{
	struct overtaken *o = overtaken_new(AWAY);

	o->unmapped = o->w->await_child = true;
	o->child_first = child_moves_and_unmaps;
	o->child_lacks = MID;
	overtaken_run(o);
}

/* By what was kept it cannot be told what the child has: never what was there first. */
static void a_fork_that_the_second_munmap_has_overtaken(void **state)
{
	struct overtaken *o = overtaken_new(AWAY);
	char *untouched = managed(o->w, N, 0);

	assert_int_equal(munmap(o->p, N * UMM_PAGE), 0);
	assert_ptr_equal(mremap(untouched, N * UMM_PAGE, N * UMM_PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, o->p), o->p);
	settled(o->w);
	assert_non_null(o->w->mm->kept);
	o->unmapped = o->lost = true;
	overtaken_run(o);
}

/* In the hole is mapped at once what comes next: that is not the child's. */
static void a_fork_that_mremap_and_mmap_have_overtaken(void **state)
{
	struct overtaken *o = overtaken_new(AWAY);

	o->to = elsewhere(N);
	o->again = true;
	overtaken_run(o);
}

/* Nor is it where the child has something at the other place, too. */
static void a_fork_that_mremap_onto_a_mapping_and_mmap_have_overtaken(void **state)
{
	struct overtaken *o = overtaken_new(AWAY);

	o->to = managed(o->w, N, 2);
	o->again = true;
	overtaken_run(o);
}

static void overtaken_by_two_mremaps(int how)
{
	struct overtaken *o = overtaken_new(how);

	o->to = elsewhere(N);
	o->on = elsewhere(N);
	overtaken_run(o);
}

static void a_fork_that_two_mremaps_have_overtaken(void **state)
{
	overtaken_by_two_mremaps(AWAY);
}

static void a_fork_that_two_mremaps_have_overtaken_while_parked(void **state)
{
	overtaken_by_two_mremaps(PARKED);
}

/* What the parent has there again is registered, and nevertheless not what the child has. */
static void a_fork_that_mremap_has_overtaken_which_leaves_a_mapping(void **state)
{
	struct overtaken *o = overtaken_new(AWAY);

	o->to = elsewhere(N);
	o->stays = true;
	assert_int_equal(munmap(o->to, N * UMM_PAGE), 0);
	overtaken_run(o);
}

static void child_unmaps_another(struct overtaken *o)
{
	munmap(o->q, N * UMM_PAGE);
}

static struct overtaken *with_child_that_changes(int how)
{
	struct overtaken *o = overtaken_new(how);

	o->q = managed(o->w, N, 3);
	o->w->await_child = true;
	o->child_first = child_unmaps_another;
	return o;
}

/* While a child changes anything at all the kernel does not say what it has. */
static void a_child_that_changes_something_after_mremap(void **state)
{
	struct overtaken *o = with_child_that_changes(AWAY);

	o->to = elsewhere(N);
	overtaken_run(o);
}

static void a_child_that_changes_something_after_mremap_while_parked(void **state)
{
	struct overtaken *o = with_child_that_changes(PARKED);

	o->to = elsewhere(N);
	overtaken_run(o);
}

static void a_child_that_changes_something_after_two_mremaps(void **state)
{
	struct overtaken *o = with_child_that_changes(AWAY);

	o->to = elsewhere(N);
	o->on = elsewhere(N);
	overtaken_run(o);
}

static void child_unmaps_another_and_looks_at_what_filled_the_hole(struct overtaken *o)
{
	munmap(o->q, N * UMM_PAGE);
	for (unsigned i = 0; i < N; i++)
		if (!page_is(o->into + i * UMM_PAGE, 2, i) ||
		    (o->r && !page_is(o->r + i * UMM_PAGE, o->over ? 4 : 0, i)))
			_exit(202);
}

static struct overtaken *with_child_after_mremap_into_the_hole(int how)
{
	struct overtaken *o = with_child_that_changes(how);
	struct hmm_victim v[4];

	o->into = managed(o->w, N, 2);
	/* What is parked by the other batch stays so. */
	assert_int_equal(hmm_out_begin(o->w->mm, 1, v, victims(o->into, N, v)), 0);
	assert_int_equal(hmm_out_finish(o->w->mm, 1), N);
	assert_int_equal(hmm_out_store(o->w->mm, 1), N);
	o->child_first = child_unmaps_another_and_looks_at_what_filled_the_hole;
	return o;
}

/* The child has neither change: each of them counts for what the other left. */
static void a_child_that_changes_something_after_mremap_and_one_into_the_hole(void **state)
{
	for (int how = AWAY; how <= PARKED; how++) {
		struct overtaken *o = with_child_after_mremap_into_the_hole(how);

		o->to = elsewhere(N);
		overtaken_run(o);
	}
}

static void a_child_that_changes_something_after_mremap_onto_a_mapping_and_one_into_the_hole(void **state)
{
	struct overtaken *o = with_child_after_mremap_into_the_hole(AWAY);

	o->to = o->r = managed(o->w, N, 4);
	out(o->w, o->to, N);
	o->over = true;
	overtaken_run(o);
}

static void a_child_that_changes_something_after_mremap_and_munmap(void **state)
{
	struct overtaken *o = with_child_that_changes(AWAY);

	o->to = elsewhere(N);
	o->unmapped = true;
	overtaken_run(o);
}

static void a_child_that_moves_it_after_mremap(void **state)
{
	struct overtaken *o = with_child_that_changes(AWAY);

	o->to = elsewhere(N);
	o->child_first = child_moves_and_unmaps;
	o->child_lacks = MID;
	overtaken_run(o);
}

/* It has both: at the other one what was away there, or zeros where it was never touched. */
static void child_unmaps_another_and_looks(struct overtaken *o)
{
	munmap(o->q, N * UMM_PAGE);
	for (unsigned i = 0; i < N; i++)
		if (!page_is(o->r + i * UMM_PAGE, o->over ? 2 : 0, i))
			_exit(202);
}

static void a_child_that_changes_something_after_mremap_onto_a_mapping(void **state)
{
	struct overtaken *o = with_child_that_changes(AWAY);

	o->to = o->r = managed(o->w, N, 0);
	o->child_first = child_unmaps_another_and_looks;
	overtaken_run(o);
}

static struct overtaken *with_child_after_mremap_onto_what_was_away(void (*child_first)(struct overtaken *o))
{
	struct overtaken *o = with_child_that_changes(AWAY);

	o->to = o->r = managed(o->w, N, 2);
	out(o->w, o->to, N);
	o->over = true;
	o->child_first = child_first;
	return o;
}

static void a_child_that_changes_something_after_mremap_onto_what_was_away(void **state)
{
	overtaken_run(with_child_after_mremap_onto_what_was_away(child_unmaps_another_and_looks));
}

/* What the child itself does there is done to what it gets. */
static void child_clears_what_was_replaced(struct overtaken *o)
{
	madvise(o->r, N * UMM_PAGE, MADV_DONTNEED);
	for (unsigned i = 0; i < N; i++)
		if (!page_is(o->r + i * UMM_PAGE, 0, i))
			_exit(202);
}

static void child_moves_what_was_replaced(struct overtaken *o)
{
	char *to = mmap(NULL, N * UMM_PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	mremap(o->r, N * UMM_PAGE, N * UMM_PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to);
	for (unsigned i = 0; i < N; i++)
		if (!page_is(to + i * UMM_PAGE, o->over ? 2 : 0, i))
			_exit(202);
}

static void child_unmaps_a_page_of_what_was_moved(struct overtaken *o)
{
	munmap(o->p, UMM_PAGE);
	for (unsigned i = 0; i < N; i++)
		if (!page_is(o->r + i * UMM_PAGE, 2, i))
			_exit(202);
}

static void child_moves_what_was_moved(struct overtaken *o)
{
	o->child_at = mmap(NULL, N * UMM_PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	mremap(o->p, N * UMM_PAGE, N * UMM_PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, o->child_at);
	for (unsigned i = 0; i < N; i++)
		if (!page_is(o->r + i * UMM_PAGE, 2, i))
			_exit(202);
}

/* The holes at both sides, too: of that event it cannot be told what was there. */
static void child_unmaps_more_than_what_was_moved(struct overtaken *o)
{
	char byte;

	munmap(o->p - UMM_PAGE, (N + 2) * UMM_PAGE);
	for (unsigned i = 0; i < N; i++)
		if (touch(o->r + i * UMM_PAGE, &byte) != SIGBUS)
			_exit(202);
}

static void child_unmaps_a_page_and_what_is_below(struct overtaken *o)
{
	munmap(o->p - UMM_PAGE, 2 * UMM_PAGE);
	for (unsigned i = 0; i < N; i++)
		if (!page_is(o->r + i * UMM_PAGE, 2, i))
			_exit(202);
}

static void a_child_that_clears_what_mremap_has_replaced(void **state)
{
	overtaken_run(with_child_after_mremap_onto_what_was_away(child_clears_what_was_replaced));
}

static void a_child_that_moves_what_mremap_has_replaced(void **state)
{
	overtaken_run(with_child_after_mremap_onto_what_was_away(child_moves_what_was_replaced));
}

/* Where nothing was away it takes nothing along either. */
static void a_child_that_moves_what_mremap_has_replaced_and_was_not_away(void **state)
{
	struct overtaken *o = with_child_that_changes(AWAY);

	o->to = o->r = managed(o->w, N, 0);
	o->child_first = child_moves_what_was_replaced;
	overtaken_run(o);
}

static void a_child_that_unmaps_a_page_of_what_mremap_has_moved(void **state)
{
	struct overtaken *o = with_child_after_mremap_onto_what_was_away(child_unmaps_a_page_of_what_was_moved);

	o->child_lacks = 1;
	overtaken_run(o);
}

static void a_child_that_moves_what_mremap_has_moved(void **state)
{
	overtaken_run(with_child_after_mremap_onto_what_was_away(child_moves_what_was_moved));
}

static void a_child_that_unmaps_more_than_what_mremap_has_moved(void **state)
{
	struct overtaken *o = with_child_after_mremap_onto_what_was_away(child_unmaps_more_than_what_was_moved);

	o->child_lacks = N;
	o->lost = true;
	overtaken_run(o);
}

/* The other pages do say that something was there. */
static void a_child_that_unmaps_a_page_of_what_mremap_has_moved_and_what_is_below(void **state)
{
	struct overtaken *o = with_child_after_mremap_onto_what_was_away(child_unmaps_a_page_and_what_is_below);

	o->child_lacks = 1;
	overtaken_run(o);
}

/* The fork came after the move, and may have come before for all that the engine knows. */
static void comes_after_mremap(int how, int flags, bool onto)
{
	struct overtaken *o = with_child_that_changes(how);
	struct world *w = o->w;
	int status;
	pid_t pid;

	o->child_at = onto ? managed(w, N, 0) : elsewhere(N);
	assert_ptr_equal(mremap(o->p, N * UMM_PAGE, N * UMM_PAGE, MREMAP_MAYMOVE | MREMAP_FIXED | flags, o->child_at),
			 o->child_at);
	settled(w);
	assert_int_not_equal(atomic_load(&w->mm->novertaken), 0);
	pid = raw_fork();
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		munmap(o->q, N * UMM_PAGE);
		for (unsigned i = 0; flags && i < N; i++)
			if (!page_is(o->p + i * UMM_PAGE, 0, i))
				_exit(202);
		_exit(look_at(o));
	}
	waitpid(pid, &status, 0);
	world_destroy(w);
	free(o);
	assert_int_equal(status, 0);
}

static void a_child_that_changes_something_and_comes_after_mremap(void **state)
{
	comes_after_mremap(AWAY, 0, false);
	comes_after_mremap(AWAY, 0, true);
}

/* The last page says that nothing was there. */
static void a_child_that_unmaps_where_something_was_moved_from_and_what_is_below(void **state)
{
	struct overtaken *o = overtaken_new(AWAY);
	char *below = o->p - UMM_PAGE;
	struct world *w = o->w;
	int status;
	pid_t pid;

	w->await_child = true;
	o->child_at = elsewhere(N);
	assert_ptr_equal(mmap(below, UMM_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0),
			 below);
	assert_int_equal(umm_uffd_register(w->space->uffd, (uintptr_t)below, UMM_PAGE, UFFDIO_REGISTER_MODE_MISSING),
			 0);
	assert_ptr_equal(mremap(o->p, N * UMM_PAGE, N * UMM_PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, o->child_at),
			 o->child_at);
	settled(w);
	assert_int_not_equal(atomic_load(&w->mm->novertaken), 0);
	pid = raw_fork();
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		munmap(below, 2 * UMM_PAGE);
		_exit(look_at(o));
	}
	waitpid(pid, &status, 0);
	world_destroy(w);
	free(o);
	assert_int_equal(status, 0);
}

static void a_child_that_changes_something_and_comes_after_mremap_while_parked(void **state)
{
	comes_after_mremap(PARKED, 0, false);
}

static void a_child_that_changes_something_and_comes_after_mremap_that_leaves_a_mapping(void **state)
{
	comes_after_mremap(AWAY, MREMAP_DONTUNMAP, false);
}

/*
 * The hole has become smaller: what was moved into its end has pages that were never touched.  @below: the child unmaps
 * what was mapped there as well, together with the first page of the hole, and by that it is not told what is the
 * child's.
 */
static void comes_after_mremap_into_a_part_of_the_hole(bool away, bool below)
{
	struct overtaken *o = with_child_that_changes(AWAY);
	char *c = managed(o->w, N / 2, 0), *end = o->p + N / 2 * UMM_PAGE, byte;
	struct world *w = o->w;
	int status;
	pid_t pid;

	if (below) {
		assert_ptr_equal(mmap(o->p - UMM_PAGE, UMM_PAGE, PROT_READ | PROT_WRITE,
				      MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0),
				 o->p - UMM_PAGE);
		assert_int_equal(umm_uffd_register(w->space->uffd, (uintptr_t)o->p - UMM_PAGE, UMM_PAGE,
						   UFFDIO_REGISTER_MODE_MISSING),
				 0);
	}
	page_fill(c, 5, 0);
	quarantine_over(w);
	if (away)
		out(w, c, 1);
	o->child_at = elsewhere(N);
	assert_ptr_equal(mremap(o->p, N * UMM_PAGE, N * UMM_PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, o->child_at),
			 o->child_at);
	assert_ptr_equal(mremap(c, N / 2 * UMM_PAGE, N / 2 * UMM_PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, end), end);
	settled(w);
	assert_int_equal(state_of(w, end), away ? HMM_DEVICE : HMM_SYSTEM);
	assert_int_equal(atomic_load(&w->mm->novertaken), away ? 2 : 1);
	pid = raw_fork();
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (below)
			munmap(o->p - UMM_PAGE, 2 * UMM_PAGE);
		else
			munmap(o->q, N * UMM_PAGE);
		for (unsigned i = 0; i < N / 2; i++)
			if (!(below && touch(end + i * UMM_PAGE, &byte) == SIGBUS) &&
			    !page_is(end + i * UMM_PAGE, i ? 0 : 5, i))
				_exit(100 + i);
		o->or_not = below;
		_exit(look_at(o));
	}
	waitpid(pid, &status, 0);
	world_destroy(w);
	free(o);
	assert_int_equal(status, 0);
}

static void a_child_that_comes_after_mremap_and_one_into_a_part_of_the_hole(void **state)
{
	comes_after_mremap_into_a_part_of_the_hole(false, false);
	comes_after_mremap_into_a_part_of_the_hole(true, false);
}

static void a_child_that_unmaps_the_rest_of_a_hole_and_what_is_below(void **state)
{
	comes_after_mremap_into_a_part_of_the_hole(false, true);
	comes_after_mremap_into_a_part_of_the_hole(true, true);
}

/* What has been mapped in the hole is parked already, and the move not yet forgotten. */
static void a_child_that_comes_after_mremap_and_mmap_of_what_is_parked(void **state)
{
	struct overtaken *o = with_child_that_changes(AWAY);
	struct hmm_victim v[4];
	struct world *w = o->w;
	int status;
	pid_t pid;

	o->child_at = elsewhere(N);
	assert_ptr_equal(mremap(o->p, N * UMM_PAGE, N * UMM_PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, o->child_at),
			 o->child_at);
	settled(w);
	assert_ptr_equal(mmap(o->p, N * UMM_PAGE, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0),
			 o->p);
	for (unsigned i = 0; i < N; i++)
		page_fill(o->p + i * UMM_PAGE, 5, i);
	assert_int_equal(umm_uffd_register(w->space->uffd, (uintptr_t)o->p, N * UMM_PAGE, UFFDIO_REGISTER_MODE_MISSING),
			 0);
	pthread_mutex_lock(&w->mm->lock);
	assert_int_equal(hmm_iset_add(&w->mm->registered, (uintptr_t)o->p, (uintptr_t)o->p + N * UMM_PAGE), 0);
	pthread_mutex_unlock(&w->mm->lock);
	assert_int_equal(hmm_out_begin(w->mm, 0, v, victims(o->p, N, v)), 0);
	assert_int_equal(hmm_out_finish(w->mm, 0), N);
	/* As if something had been under way when that began. */
	atomic_store(&w->mm->novertaken, 1);
	pid = raw_fork();
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		munmap(o->q, N * UMM_PAGE);
		for (unsigned i = 0; i < N; i++)
			if (!page_is(o->p + i * UMM_PAGE, 5, i))
				_exit(100 + i);
		_exit(look_at(o));
	}
	waitpid(pid, &status, 0);
	world_destroy(w);
	free(o);
	assert_int_equal(status, 0);
}

/* realloc(), something else in the hole, fork, free(): that is longer than what was moved. */
static void a_child_that_unmaps_what_has_grown_as_it_moved(void **state)
{
	struct overtaken *o = with_child_that_changes(AWAY);
	struct world *w = o->w;
	int status;
	pid_t pid;
	char byte;

	o->child_at = elsewhere(2 * N);
	assert_ptr_equal(mremap(o->p, N * UMM_PAGE, 2 * N * UMM_PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, o->child_at),
			 o->child_at);
	settled(w);
	assert_ptr_equal(mmap(o->p, N * UMM_PAGE, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0),
			 o->p);
	assert_int_equal(umm_uffd_register(w->space->uffd, (uintptr_t)o->p, N * UMM_PAGE, UFFDIO_REGISTER_MODE_MISSING),
			 0);
	pthread_mutex_lock(&w->mm->lock);
	assert_int_equal(hmm_iset_add(&w->mm->registered, (uintptr_t)o->p, (uintptr_t)o->p + N * UMM_PAGE), 0);
	pthread_mutex_unlock(&w->mm->lock);
	assert_int_equal(atomic_load(&w->mm->novertaken), 1);
	pid = raw_fork();
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		munmap(o->child_at, 2 * N * UMM_PAGE);
		for (unsigned i = 0; i < N; i++)
			if (touch(o->p + i * UMM_PAGE, &byte) || !page_is(o->p + i * UMM_PAGE, 0, i))
				_exit(100 + i);
		o->child_lacks = N;
		_exit(look_at(o));
	}
	waitpid(pid, &status, 0);
	world_destroy(w);
	free(o);
	assert_int_equal(status, 0);
}

static bool is_word(const char *page, char byte)
{
	for (unsigned i = 0; i < UMM_PAGE; i++)
		if (page[i] != byte)
			return false;
	return true;
}

/* Pages that look the same are not the same: what it has where the first one was it has inherited. */
static void comes_after_mremap_of_alike(int how, bool marked)
{
	struct hmm_victim v[8];
	const char *why;
	struct world *w = world_create("lz4", 0, &why);
	char *a = managed(w, N, 1), *c = managed(w, N, 1), *q = managed(w, N, 3), *to = elsewhere(N);
	unsigned n = victims(a, N, v);
	int status;
	pid_t pid;

	w->await_child = true;
	w->space->maps_fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
	memset(a, 0x5a, N * UMM_PAGE);
	memset(c, marked ? 0x3c : 0x5a, N * UMM_PAGE);
	if (marked)
		assert_int_equal(madvise(c, N * UMM_PAGE, MADV_WIPEONFORK), 0);
	quarantine_over(w);
	n += victims(c, N, v + n);
	assert_int_equal(hmm_out_begin(w->mm, 0, v, n), 0);
	assert_int_equal(hmm_out_finish(w->mm, 0), 2 * N);
	if (how == AWAY)
		hmm_out_store(w->mm, 0);
	assert_ptr_equal(mremap(a, N * UMM_PAGE, N * UMM_PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to), to);
	assert_ptr_equal(mremap(c, N * UMM_PAGE, N * UMM_PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, a), a);
	settled(w);
	assert_int_equal(state_of(w, a), how == AWAY ? HMM_DEVICE : HMM_PARKED);
	assert_int_equal(atomic_load(&w->mm->novertaken), 2);
	pid = raw_fork();
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		munmap(q, N * UMM_PAGE);
		for (unsigned i = 0; i < N; i++)
			if (!is_word(to + i * UMM_PAGE, 0x5a) || !is_word(a + i * UMM_PAGE, marked ? 0 : 0x5a))
				_exit(i + 1);
		_exit(0);
	}
	waitpid(pid, &status, 0);
	world_destroy(w);
	assert_int_equal(status, 0);
}

static void a_child_that_comes_after_mremap_and_one_into_the_hole_of_pages_that_look_the_same(void **state)
{
	comes_after_mremap_of_alike(AWAY, false);
	comes_after_mremap_of_alike(PARKED, false);
}

static void a_child_that_comes_after_mremap_and_one_into_the_hole_of_what_is_empty_in_it(void **state)
{
	comes_after_mremap_of_alike(AWAY, true);
	comes_after_mremap_of_alike(PARKED, true);
}

/* It was forked after the one, and before the other. */
static void a_child_that_changes_something_between_mremap_and_munmap(void **state)
{
	struct overtaken *o = with_child_that_changes(AWAY);
	char *to = elsewhere(N);

	assert_ptr_equal(mremap(o->p, N * UMM_PAGE, N * UMM_PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to), to);
	settled(o->w);
	assert_int_not_equal(atomic_load(&o->w->mm->novertaken), 0);
	o->p = o->child_at = to;
	o->unmapped = true;
	overtaken_run(o);
}

/* That it has nothing where a part was says nothing: nor has its parent. */
static void a_fork_that_comes_after_mremap_and_munmap_of_a_part(void **state)
{
	struct overtaken *o = overtaken_new(AWAY);
	struct world *w = o->w;
	int status;
	pid_t pid;

	o->child_at = elsewhere(N);
	o->child_lacks = MID;
	assert_ptr_equal(mremap(o->p, N * UMM_PAGE, N * UMM_PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, o->child_at),
			 o->child_at);
	assert_int_equal(munmap(o->child_at, MID * UMM_PAGE), 0);
	settled(w);
	assert_int_not_equal(atomic_load(&w->mm->novertaken), 0);
	pid = raw_fork();
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		_exit(look_at(o));
	}
	waitpid(pid, &status, 0);
	world_destroy(w);
	free(o);
	assert_int_equal(status, 0);
}

static _Atomic unsigned evasive;  /* times that of a page a child does not say whether it has it */
static _Atomic unsigned restless; /* times that it has changed something again when it is asked */
static int restless_not = -1;     /* the descriptor of who is not */
int __real_umm_inside_registered(int uffd, uint64_t addr);
int __wrap_umm_inside_registered(int uffd, uint64_t addr);

int __wrap_umm_inside_registered(int uffd, uint64_t addr)
{
	static _Atomic unsigned asked;

	if (atomic_load(&evasive) && atomic_fetch_add(&asked, 1) % (atomic_load(&evasive) + 1) != atomic_load(&evasive))
		return -EAGAIN;
	if (uffd != restless_not && atomic_load(&restless)) {
		poll(&(struct pollfd){.fd = uffd, .events = POLLIN}, 1, -1);
		atomic_fetch_sub(&restless, 1);
		return -EAGAIN;
	}
	return __real_umm_inside_registered(uffd, addr);
}

/* It takes its time, page by page: more than one may take, in all. */
static void a_child_that_goes_on_changing_something(void **state)
{
	struct overtaken *o = with_child_that_changes(AWAY);

	atomic_store(&evasive, 800);
	o->unmapped = true;
	overtaken_run(o);
	atomic_store(&evasive, 0);
}

/* What it changes is noted while its parent waits, and looked through for each page: not without end. */
static void a_child_that_changes_something_too_often(void **state)
{
	struct overtaken *o = with_child_that_changes(AWAY);
	struct world *w = o->w;
	pid_t pid;

	o->child_at = elsewhere(N);
	assert_ptr_equal(mremap(o->p, N * UMM_PAGE, N * UMM_PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, o->child_at),
			 o->child_at);
	settled(w);
	assert_int_not_equal(atomic_load(&w->mm->novertaken), 0);
	restless_not = w->space->uffd;
	atomic_store(&restless, 6000);
	pid = raw_fork();
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (;;)
			madvise(o->q, UMM_PAGE, MADV_DONTNEED);
	}
	/* The fork has been read, under the lock, and until it is applied the lock is kept. */
	umm_evlock_excl(&w->ctl->evlock);
	umm_evlock_unexcl(&w->ctl->evlock);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	atomic_store(&restless, 0);
	restless_not = -1;
	assert_int_equal(atomic_exchange(&w->fatals, 0), 1);
	world_destroy(w);
	free(o);
}

static struct hmm_mm *child_of(struct world *w)
{
	struct hmm_mm *child = NULL;

	while (!child || !atomic_load(&child->ready)) {
		pthread_mutex_lock(&w->h->lock);
		child = w->h->mms != w->mm ? w->h->mms : NULL;
		pthread_mutex_unlock(&w->h->lock);
	}
	return child;
}

/* Forked after all had been read, a child has none of it; where the parent has something again, it has that. */
static void comes_after_munmap(bool again)
{
	struct overtaken *o = overtaken_new(AWAY);
	struct world *w = o->w;
	char *other = managed(w, N, 0);
	unsigned held;
	int status;
	pid_t pid;

	assert_int_equal(munmap(o->p, N * UMM_PAGE), 0);
	if (again)
		assert_ptr_equal(mremap(other, N * UMM_PAGE, N * UMM_PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, o->p), o->p);
	settled(w);
	assert_non_null(w->mm->kept);
	w->await_child = !again;
	pid = raw_fork();
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (unsigned i = 0; again && i < N; i++)
			if (!page_is(o->p + i * UMM_PAGE, 0, i))
				_exit(1);
		if (!again)
			munmap(other, N * UMM_PAGE); /* so that it is found changing */
		kill(getpid(), SIGSTOP);
		_exit(0);
	}
	waitpid(pid, &status, WUNTRACED);
	held = (unsigned)atomic_load(&child_of(w)->radix.away);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	world_destroy(w);
	free(o);
	assert_true(WIFSTOPPED(status));
	assert_int_equal(held, 0);
}

static void a_fork_that_comes_after_munmap(void **state)
{
	comes_after_munmap(false);
}

static void a_fork_that_comes_after_munmap_and_mremap(void **state)
{
	comes_after_munmap(true);
}

/* Of a process whose mappings are not known it is not to be believed that they have gone. */
static void a_fork_of_who_has_left_a_mapping(void **state)
{
	struct overtaken *o = overtaken_new(AWAY);
	struct world *w = o->w;
	int status;
	pid_t pid;

	close(w->space->maps_fd);
	w->space->maps_fd = -1;
	o->child_at = elsewhere(N);
	assert_ptr_equal(
		mremap(o->p, N * UMM_PAGE, N * UMM_PAGE, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, o->child_at),
		o->child_at);
	pid = raw_fork();
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		_exit(look_at(o));
	}
	waitpid(pid, &status, 0);
	world_destroy(w);
	free(o);
	assert_int_equal(status, 0);
}

/* -------------------------------------------------------- what is in the way */

/* A guard region drops what was there without a word, and must stay, whatever comes back around it. */
static void guards_among_what_is_away(void **state)
{
	const char *why;
	struct world *w = world_create("lz4", 1, &why);
	const unsigned a = N / 2 + 2, z = a + 4;
	char *p = managed(w, N, 1), byte;

	assert_non_null(w);
	assert_int_equal(out(w, p, N), N);
	if (syscall(SYS_madvise, p + a * UMM_PAGE, (z - a) * UMM_PAGE, MADV_GUARD_INSTALL)) {
		world_destroy(w);
		skip();
	}
	for (unsigned i = 0; i < N; i++)
		if (i < a || i >= z)
			assert_true(page_is(p + i * UMM_PAGE, 1, i));
	for (unsigned i = a; i < z; i++)
		assert_int_equal(touch(p + i * UMM_PAGE, &byte), SIGSEGV);
	assert_int_equal(hmm_restore(w->mm, (uintptr_t)p, (uintptr_t)p + N * UMM_PAGE), 0);
	for (unsigned i = a; i < z; i++)
		assert_int_equal(touch(p + i * UMM_PAGE, &byte), SIGSEGV);
	assert_int_equal(syscall(SYS_madvise, p + a * UMM_PAGE, (z - a) * UMM_PAGE, MADV_GUARD_REMOVE), 0);
	for (unsigned i = a; i < z; i++)
		assert_true(page_is(p + i * UMM_PAGE, 0, i));
	fake_comes_to_hold(w->fake[0], 0);
	world_destroy(w);
}

/* What cannot come back because its mapping is no longer ours to fill is told of; where nothing is mapped nothing is.
 */
static void what_cannot_come_back_is_told(void **state)
{
	const char *why;
	struct world *w = world_create("lz4", 1, &why);
	char *p = managed(w, N, 1);
	int rc, gone;

	assert_non_null(w);
	w->space->maps_fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
	assert_int_equal(out(w, p, N), N);
	assert_int_equal(umm_uffd_unregister(w->space->uffd, (uintptr_t)p, N * UMM_PAGE), 0);
	rc = hmm_restore(w->mm, (uintptr_t)p, (uintptr_t)p + N * UMM_PAGE);
	assert_int_equal(munmap(p, N * UMM_PAGE), 0);
	gone = hmm_restore(w->mm, (uintptr_t)p, (uintptr_t)p + N * UMM_PAGE);
	world_destroy(w);
	assert_int_equal(rc, -EFAULT);
	assert_int_equal(gone, 0);
}

static _Atomic unsigned yields;
int __real_sched_yield(void);
int __wrap_sched_yield(void);

int __wrap_sched_yield(void)
{
	atomic_fetch_add(&yields, 1);
	return __real_sched_yield();
}

static void *unmap_main(void *arg)
{
	munmap(arg, N * UMM_PAGE);
	return NULL;
}

/* While a page that no device took is put back somebody changes mappings: who does must run, maybe on this CPU. */
static void putting_back_lets_others_run(void **state)
{
	const char *why;
	struct world *w = world_create("lz4", 1, &why);
	char *p = managed(w, N, 1), *other = managed(w, N, 1);
	struct hmm_victim v[4];
	pthread_t t;

	assert_non_null(w);
	w->fake[0]->take_every = 0;
	assert_int_equal(hmm_out_begin(w->mm, 0, v, victims(p, N, v)), 0);
	assert_int_equal(hmm_out_finish(w->mm, 0), N);
	umm_monitor_del(w->space);
	assert_int_equal(pthread_create(&t, NULL, unmap_main, other), 0);
	assert_int_equal(poll(&(struct pollfd){.fd = w->space->uffd, .events = POLLIN}, 1, -1), 1);
	atomic_store(&yields, 0);
	assert_int_equal(hmm_out_store(w->mm, 0), 0);
	unsigned n = atomic_load(&yields);
	pthread_join(t, NULL);
	world_destroy(w);
	assert_int_not_equal(n, 0);
}

/* The child's child changes something at once, and what was parked for all of them is not to be missed. */
static void child_forks(struct overtaken *o)
{
	int status = -1;
	pid_t pid = raw_fork();

	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		munmap(o->r, N * UMM_PAGE);
		for (unsigned i = 0; i < N; i++)
			if (!page_is(o->q + i * UMM_PAGE, 5, i))
				_exit(1);
		_exit(look_at(o));
	}
	waitpid(pid, &status, 0);
	for (unsigned i = 0; i < N; i++)
		if (!page_is(o->q + i * UMM_PAGE, 5, i))
			_exit(200);
	if (status)
		_exit(201);
}

static void fork_in_a_child(bool starved)
{
	struct overtaken *o = overtaken_new(AWAY);
	struct hmm_victim v[4];

	/* What is marked is known: with no descriptor smaps cannot be read. */
	o->starved = o->w->mm->marks_known = starved;
	atomic_store(&o->w->ctl->armed, starved);
	o->q = managed(o->w, N, 5);
	o->r = managed(o->w, N, 6);
	quarantine_over(o->w);
	assert_int_equal(hmm_out_begin(o->w->mm, 0, v, victims(o->q, N, v)), 0);
	assert_int_equal(hmm_out_finish(o->w->mm, 0), N);
	/*
	 * A fork that cannot be read at once is read after the munmap() that waits, if that waits already, of which we
	 * have told before: twice.
	 */
	o->or_not = starved;
	o->unmapped = o->w->await_child = true;
	o->child_first = child_forks;
	overtaken_run(o);
}

static void a_fork_in_a_child_that_munmap_has_overtaken(void **state)
{
	fork_in_a_child(false);
}

static void a_fork_in_a_child_without_descriptors(void **state)
{
	fork_in_a_child(true);
}

static void tell_many(struct overtaken *o)
{
	for (unsigned i = 0; i < 50; i++) {
		tell(o->w, UMM_EVENT_REMAP, o->q, o->r);
		tell(o->w, UMM_EVENT_REMAP, o->r, o->q);
	}
}

static void a_fork_that_many_mremaps_have_overtaken(void **state)
{
	struct overtaken *o = overtaken_new(AWAY);

	o->to = managed(o->w, N, 2);
	o->q = managed(o->w, N, 3);
	o->r = managed(o->w, N, 4);
	out(o->w, o->q, N);
	o->more = tell_many;
	overtaken_run(o);
}

/* As the supervisor's out of descriptors: the child goes on by itself, without what was away. */
static void a_fork_that_mremap_has_overtaken_fails(void **state)
{
	struct overtaken *o = overtaken_new(AWAY);

	o->to = elsewhere(N);
	o->lost = o->w->fork_fails = true;
	overtaken_run(o);
}

static void a_fork_that_mremap_and_munmap_have_overtaken_fails(void **state)
{
	struct overtaken *o = overtaken_new(AWAY);

	o->to = elsewhere(N);
	o->unmapped = true;
	o->lost = o->w->fork_fails = true;
	overtaken_run(o);
}

static void tell_one_more(struct overtaken *o)
{
	tell(o->w, UMM_EVENT_REMAP, o->to, o->q);
}

/* The latest change is the first to be gone back by. */
static void a_fork_that_two_mremaps_have_overtaken_fails(void **state)
{
	struct overtaken *o = overtaken_new(AWAY);

	o->to = elsewhere(N);
	o->q = elsewhere(N);
	o->more = tell_one_more;
	o->lost = o->w->fork_fails = true;
	overtaken_run(o);
}

static void tell_of_another(struct overtaken *o)
{
	tell(o->w, UMM_EVENT_REMAP, o->q, o->to);
}

/* What has come to where it was unmapped is not what it is gone back by. */
static void a_fork_that_another_mremap_to_there_has_overtaken_fails(void **state)
{
	struct overtaken *o = overtaken_new(AWAY);

	o->to = elsewhere(N);
	o->unmapped = true;
	o->q = managed(o->w, N, 2);
	assert_int_equal(out(o->w, o->q, N), N);
	o->more = tell_of_another;
	o->lost = o->w->fork_fails = true;
	overtaken_run(o);
}

static void *move(void *arg)
{
	struct overtaken *o = arg;

	mremap(o->p, N * UMM_PAGE, N * UMM_PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, o->to);
	return NULL;
}

/* What is mapped where something was moved from is not what was away, though nobody has been told yet. */
static void all_back_while_it_moves(void **state)
{
	const char *why;
	struct world *w = world_create("lz4", 1, &why);
	struct overtaken o = {.p = managed(w, N, 1), .to = elsewhere(N)};
	pthread_t t;

	assert_int_equal(out(w, o.p, N), N);
	umm_monitor_del(w->space);
	assert_int_equal(pthread_create(&t, NULL, move, &o), 0);
	assert_int_equal(poll(&(struct pollfd){.fd = w->space->uffd, .events = POLLIN}, 1, -1), 1);
	await_unmapped(o.p);
	assert_ptr_equal(mmap(o.p, N * UMM_PAGE, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0),
			 o.p);
	for (unsigned i = 0; i < N; i++)
		page_fill(o.p + i * UMM_PAGE, 2, i);
	assert_int_equal(hmm_restore(w->mm, (uintptr_t)o.p, (uintptr_t)o.p + N * UMM_PAGE), 0);
	assert_int_equal(umm_monitor_add(w->h->monitor, w->space), 0);
	pthread_join(t, NULL);
	for (unsigned i = 0; i < N; i++)
		assert_true(page_is(o.to + i * UMM_PAGE, 1, i) && page_is(o.p + i * UMM_PAGE, 2, i));
	world_destroy(w);
}

#define CLEAN(test)                                                      \
	{                                                                \
#test ", clean", test, clean_setup, clean_teardown, NULL \
	}
#define FORGOTTEN(test)                                                                  \
	{                                                                                \
#test ", clean and forgotten", test, forgets_setup, clean_teardown, NULL \
	}

int main(int argc, char **argv)
{
	const char *why;
	struct world *w = world_create("lz4", 0, &why);
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(changes_while_parking),
		cmocka_unit_test(changes_while_moved),
		cmocka_unit_test(changes_while_parked),
		cmocka_unit_test(changes_while_the_device_copies),
		cmocka_unit_test(changes_while_a_failing_device_copies),
		cmocka_unit_test(changes_while_away),
		cmocka_unit_test(changes_while_coming_back),
		cmocka_unit_test(what_the_device_has_is_not_stored_again),
		cmocka_unit_test(marks_are_read_while_a_mapping_moves),
		cmocka_unit_test(marks_of_whom_has_ended),
		cmocka_unit_test(a_fork_after_the_inside_has_died),
		cmocka_unit_test(a_fork_of_who_must_die),
		cmocka_unit_test(an_engine_ends_while_a_fork_is_applied),
		cmocka_unit_test(a_fork_that_munmap_has_overtaken),
		cmocka_unit_test(a_fork_that_munmap_has_overtaken_while_parked),
		cmocka_unit_test(a_fork_that_mremap_and_munmap_have_overtaken),
		cmocka_unit_test(a_fork_that_munmap_and_mmap_have_overtaken),
		cmocka_unit_test(too_much_for_a_fork_that_munmap_has_overtaken),
		cmocka_unit_test(a_child_that_changes_what_it_should_get),
		cmocka_unit_test(a_fork_that_comes_after_munmap),
		cmocka_unit_test(a_fork_that_comes_after_munmap_and_mremap),
		cmocka_unit_test(a_fork_that_the_second_munmap_has_overtaken),
		cmocka_unit_test(a_fork_of_who_has_left_a_mapping),
		cmocka_unit_test(a_fork_that_mremap_has_overtaken),
		cmocka_unit_test(a_fork_that_mremap_has_overtaken_while_parked),
		cmocka_unit_test(a_fork_that_mremap_and_mmap_have_overtaken),
		cmocka_unit_test(a_fork_that_mremap_onto_a_mapping_and_mmap_have_overtaken),
		cmocka_unit_test(a_fork_that_two_mremaps_have_overtaken),
		cmocka_unit_test(a_fork_that_two_mremaps_have_overtaken_while_parked),
		cmocka_unit_test(a_fork_that_mremap_has_overtaken_which_leaves_a_mapping),
		cmocka_unit_test(a_child_that_changes_something_after_mremap),
		cmocka_unit_test(a_child_that_changes_something_after_mremap_while_parked),
		cmocka_unit_test(a_child_that_changes_something_after_two_mremaps),
		cmocka_unit_test(a_child_that_changes_something_after_mremap_and_one_into_the_hole),
		cmocka_unit_test(a_child_that_changes_something_after_mremap_onto_a_mapping_and_one_into_the_hole),
		cmocka_unit_test(a_child_that_changes_something_after_mremap_and_munmap),
		cmocka_unit_test(a_child_that_moves_it_after_mremap),
		cmocka_unit_test(a_child_that_changes_something_after_mremap_onto_a_mapping),
		cmocka_unit_test(a_child_that_changes_something_after_mremap_onto_what_was_away),
		cmocka_unit_test(a_child_that_clears_what_mremap_has_replaced),
		cmocka_unit_test(a_child_that_moves_what_mremap_has_replaced),
		cmocka_unit_test(a_child_that_moves_what_mremap_has_replaced_and_was_not_away),
		cmocka_unit_test(a_child_that_unmaps_a_page_of_what_mremap_has_moved),
		cmocka_unit_test(a_child_that_moves_what_mremap_has_moved),
		cmocka_unit_test(a_child_that_unmaps_more_than_what_mremap_has_moved),
		cmocka_unit_test(a_child_that_unmaps_a_page_of_what_mremap_has_moved_and_what_is_below),
		cmocka_unit_test(a_child_that_unmaps_where_something_was_moved_from_and_what_is_below),
		cmocka_unit_test(a_child_that_changes_something_and_comes_after_mremap),
		cmocka_unit_test(a_child_that_changes_something_and_comes_after_mremap_while_parked),
		cmocka_unit_test(a_child_that_changes_something_and_comes_after_mremap_that_leaves_a_mapping),
		cmocka_unit_test(a_child_that_comes_after_mremap_and_one_into_a_part_of_the_hole),
		cmocka_unit_test(a_child_that_unmaps_the_rest_of_a_hole_and_what_is_below),
		cmocka_unit_test(a_child_that_comes_after_mremap_and_mmap_of_what_is_parked),
		cmocka_unit_test(a_child_that_unmaps_what_has_grown_as_it_moved),
		cmocka_unit_test(a_child_that_comes_after_mremap_and_one_into_the_hole_of_pages_that_look_the_same),
		cmocka_unit_test(a_child_that_comes_after_mremap_and_one_into_the_hole_of_what_is_empty_in_it),
		cmocka_unit_test(a_child_that_changes_something_between_mremap_and_munmap),
		cmocka_unit_test(a_fork_that_comes_after_mremap_and_munmap_of_a_part),
		cmocka_unit_test(a_child_that_goes_on_changing_something),
		cmocka_unit_test(a_child_that_changes_something_too_often),
		cmocka_unit_test(a_fork_that_mremap_has_overtaken_fails),
		cmocka_unit_test(a_fork_that_mremap_and_munmap_have_overtaken_fails),
		cmocka_unit_test(a_fork_that_two_mremaps_have_overtaken_fails),
		cmocka_unit_test(a_fork_that_another_mremap_to_there_has_overtaken_fails),
		cmocka_unit_test(guards_among_what_is_away),
		cmocka_unit_test(what_cannot_come_back_is_told),
		cmocka_unit_test(putting_back_lets_others_run),
		cmocka_unit_test(a_fork_in_a_child_that_munmap_has_overtaken),
		cmocka_unit_test(a_fork_in_a_child_without_descriptors),
		cmocka_unit_test(a_fork_that_many_mremaps_have_overtaken),
		cmocka_unit_test(all_back_while_it_moves),
		cmocka_unit_test(copies_are_let_go),
		cmocka_unit_test(a_walker_may_bring_back),
		cmocka_unit_test(copies_are_kept_where_it_pays),
		cmocka_unit_test(more_copies_are_kept_of_who_walks),
		cmocka_unit_test(copies_on_a_disk_cost_nothing),
		cmocka_unit_test(copies_on_a_full_disk_make_room),
		CLEAN(changes_while_clean),
		CLEAN(changes_while_parking),
		CLEAN(changes_while_moved),
		CLEAN(changes_while_parked),
		CLEAN(changes_while_the_device_compares),
		FORGOTTEN(changes_while_parked),
		FORGOTTEN(changes_while_the_device_copies),
		FORGOTTEN(changes_while_a_failing_device_copies),
	};

	if (argc > 1)
		cmocka_set_test_filter(argv[1]);
	if (!w)
		return skip_all(why);
	world_destroy(w);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
