/* SPDX-License-Identifier: MIT */
/*
 * What the inside does with pages that fork() has left shared: they must be
 * made the space's own before they can go, and meanwhile things happen.
 */
#include <limits.h>
#include <liburing.h>
#include <sys/ioctl.h>

#include "world.h"

#define N 16u
#define SHARED_FROM 5u
#define HOLE 9u

struct stage {
	struct world *w;
	char *p;
	pthread_mutex_t lock;
	pthread_cond_t moved;
	bool hold; /* a fault of the inside waits for the test */
	bool faulted, done;
	int rc;
};

static struct stage *the_stage; /* of the space operations below, which have no other way to it */

static int watched_fault(void *priv, const struct umm_fault *f)
{
	struct stage *st = the_stage;

	if (f->addr == (uintptr_t)st->p + HOLE * UMM_PAGE) {
		umm_monitor_yield();
		pthread_mutex_lock(&st->lock);
		st->faulted = true;
		pthread_cond_broadcast(&st->moved);
		while (st->hold)
			pthread_cond_wait(&st->moved, &st->lock);
		pthread_mutex_unlock(&st->lock);
	}
	return hmm_fault(priv, f);
}

static void *out_main(void *arg)
{
	struct stage *st = arg;

	st->rc = out(st->w, st->p, N);
	pthread_mutex_lock(&st->lock);
	st->done = true;
	pthread_cond_broadcast(&st->moved);
	pthread_mutex_unlock(&st->lock);
	return NULL;
}

/* Pages from @from on are shared with a child that is no more, and one of them is not there at all. */
static void stage_create(struct stage *st, struct umm_space_ops *ops, unsigned from)
{
	const char *why;
	int status;

	*st = (struct stage){.w = world_create("lz4", 1, &why)};
	assert_non_null(st->w);
	pthread_mutex_init(&st->lock, NULL);
	pthread_cond_init(&st->moved, NULL);
	/* Within one leaf, so that it is one run. */
	st->p = managed(st->w, 2 * N, 1);
	pid_t pid = raw_fork();
	assert_true(pid >= 0);
	if (!pid)
		_exit(0);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	for (unsigned i = 0; i < from; i++)
		page_fill(st->p + i * UMM_PAGE, 1, i);
	assert_int_equal(madvise(st->p + HOLE * UMM_PAGE, UMM_PAGE, MADV_DONTNEED), 0);
	quarantine_over(st->w);
	the_stage = st;
	*ops = *st->w->space->ops;
	ops->fault = watched_fault;
	st->w->space->ops = ops;
}

static void stage_check(struct stage *st)
{
	for (unsigned i = 0; i < 2 * N; i++)
		assert_true(page_is(st->p + i * UMM_PAGE, i == HOLE ? 0 : 1, i));
}

static void stage_destroy(struct stage *st)
{
	world_destroy(st->w);
	pthread_cond_destroy(&st->moved);
	pthread_mutex_destroy(&st->lock);
}

/*
 * The inside asks the kernel for pages of its own and meets one that is not
 * there.  Its fault is for a page on the way out, for which others wait until
 * the inside is through.
 */
static void the_inside_does_not_wait_for_itself(void **state)
{
	struct umm_space_ops ops;
	struct stage st;

	stage_create(&st, &ops, 0);
	assert_true(out(st.w, st.p, N) >= (int)N - 1);
	assert_true(st.faulted);
	stage_check(&st);
	stage_destroy(&st);
}

/* And with a fork in the middle of a run of which some pages have gone already. */
static void fork_in_the_middle_of_a_run(void **state)
{
	struct umm_space_ops ops;
	struct stage st;
	pthread_t thread;
	int status;

	stage_create(&st, &ops, SHARED_FROM);
	st.hold = true;
	assert_int_equal(pthread_create(&thread, NULL, out_main, &st), 0);
	pthread_mutex_lock(&st.lock);
	while (!st.faulted && !st.done)
		pthread_cond_wait(&st.moved, &st.lock);
	pthread_mutex_unlock(&st.lock);
	pid_t pid = raw_fork();
	assert_true(pid >= 0);
	if (!pid) {
		for (unsigned i = 0; i < N; i++)
			if (!page_is(st.p + i * UMM_PAGE, i == HOLE ? 0 : 1, i))
				_exit((int)i + 1);
		_exit(0);
	}
	pthread_mutex_lock(&st.lock);
	st.hold = false;
	pthread_cond_broadcast(&st.moved);
	pthread_mutex_unlock(&st.lock);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	if (WEXITSTATUS(status))
		fail_msg("the child found page %d wrong", WEXITSTATUS(status) - 1);
	pthread_join(thread, NULL);
	assert_true(st.rc >= 0);
	stage_check(&st);
	/* What stayed goes the next time, or the one after. */
	quarantine_over(st.w);
	for (unsigned i = 0; i < 4; i++)
		out(st.w, st.p, N);
	assert_int_equal(count_present(st.w, st.p, N), 0);
	stage_check(&st);
	stage_destroy(&st);
}

/* The records are wrong about a mapping: nothing leaves it, for whoever touches it would find zeros. */
static void what_is_not_registered_stays(void **state)
{
	const char *why;
	struct world *w = world_create("lz4", 1, &why);

	assert_non_null(w);
	char *p = managed(w, 2 * N, 1);
	uint64_t start = (uintptr_t)p, end = start + 2 * N * UMM_PAGE;

	assert_int_equal(umm_uffd_unregister(w->space->uffd, start + N * UMM_PAGE, N * UMM_PAGE), 0);
	assert_int_equal(out(w, p, 2 * N), N);
	assert_int_equal(count_present(w, p, N), 0);
	assert_int_equal(count_present(w, p + N * UMM_PAGE, N), N);
	assert_int_equal(atomic_load(&w->h->unregistered), 1);
	assert_false(hmm_iset_meets(&w->mm->registered, start + N * UMM_PAGE, end));
	for (unsigned i = 0; i < 2 * N; i++)
		assert_true(page_is(p + i * UMM_PAGE, 1, i));
	world_destroy(w);
}

/* Staging could not be registered again after the last batch: that is made good before the next. */
static void staging_left_unregistered(void **state)
{
	const char *why;
	struct world *w = world_create("lz4", 1, &why);

	assert_non_null(w);
	char *p = managed(w, 2 * N, 1);

	assert_int_equal(umm_uffd_unregister(w->space->uffd, (uintptr_t)w->in.staging, STAGING), 0);
	assert_int_equal(out(w, p, 2 * N), 2 * N);
	assert_int_equal(count_present(w, p, 2 * N), 0);
	for (unsigned i = 0; i < 2 * N; i++)
		assert_true(page_is(p + i * UMM_PAGE, 1, i));
	world_destroy(w);
}

static int move(struct world *w, char *dst, const char *src, unsigned n)
{
	struct uffdio_move mv = {.dst = (uintptr_t)dst, .src = (uintptr_t)src, .len = n * UMM_PAGE};

	return ioctl(w->space->uffd, UFFDIO_MOVE, &mv) ? -errno : 0;
}

/*
 * As the kernel leaves it now and then: pages have gone to staging, and whoever
 * moves them is told that something is there (test/kernel/uffd_move_goes_unsaid.c).
 */
static void what_went_unsaid_is_not_lost(void **state)
{
	const char *why;
	struct world *w = world_create("lz4", 1, &why);
	const unsigned first = 5, n = 3;

	assert_non_null(w);
	char *p = managed(w, N, 1);

	assert_int_equal(move(w, w->in.staging + first * UMM_PAGE, p + first * UMM_PAGE, n), 0);
	assert_int_equal(count_present(w, p, N), N - n);
	assert_int_equal(out(w, p, N), N);
	assert_int_equal(count_present(w, p, N), 0);
	assert_int_equal(atomic_load(&w->h->unsaid), n);
	for (unsigned i = 0; i < N; i++)
		assert_true(page_is(p + i * UMM_PAGE, 1, i));
	world_destroy(w);
}

/* The same of a block that goes at once, to where it may stay one, and stops in the middle of a run. */
static void of_a_block_some_went_unsaid(void **state)
{
	const char *why;
	struct world *w = world_create("lz4", 1, &why);
	const unsigned pages = UMM_BATCH_PAGES, first = 70, n = 100, runs = pages / UMM_RUN_PAGES;
	const uint64_t size = pages * UMM_PAGE;
	struct umm_batch *batch;

	assert_non_null(w);
	char *p = managed(w, 2 * pages, 1), *block = p + (-(uintptr_t)p & (size - 1));
	char *room = mmap(NULL, 3 * size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_true(room != MAP_FAILED);
	struct umm_inside in = {
		.uffd = w->in.uffd, .ctl = w->in.ctl, .staging = room + (-(uintptr_t)room & (size - 1))};
	unsigned from = (unsigned)((block - p) / UMM_PAGE);

	assert_int_equal(umm_uffd_register(in.uffd, (uintptr_t)in.staging, size, UFFDIO_REGISTER_MODE_MISSING), 0);
	assert_int_equal(move(w, in.staging + first * UMM_PAGE, block + first * UMM_PAGE, n), 0);
	batch = &in.ctl->batch[0];
	batch->nr = runs;
	batch->flags = 0;
	batch->epoch = atomic_load(&in.ctl->epoch);
	for (unsigned r = 0; r < runs; r++)
		batch->run[r] = (struct umm_move_run){.addr = (uintptr_t)block + r * UMM_RUN_PAGES * UMM_PAGE,
						      .npages = UMM_RUN_PAGES,
						      .slot = r * UMM_RUN_PAGES};
	umm_inside_move(&in, 0);
	for (unsigned r = 0; r < runs; r++)
		assert_true(batch->run[r].mask == ~0ull);
	assert_int_equal(batch->run[0].unsaid,
			 n); /* as a block: of runs it would be the second one's, and the third's */
	assert_int_equal(count_present(w, block, pages), 0);
	for (unsigned i = 0; i < pages; i++)
		assert_true(page_is(in.staging + i * UMM_PAGE, 1, from + i));
	munmap(room, 3 * size);
	world_destroy(w);
}

/* Staging could not be emptied: nothing moves, or what is left there would be taken for what should have gone there. */
static void staging_that_cannot_be_emptied(void **state)
{
	const char *why;
	struct world *w = world_create("lz4", 1, &why);
	int uffd;

	assert_non_null(w);
	char *p = managed(w, N, 1);

	assert_int_equal(out(w, p, N / 2), N / 2);
	w->in.kept[0] = true;
	uffd = w->in.uffd;
	w->in.uffd = -1;
	umm_inside_release(&w->in, 0);
	assert_true(w->in.kept[0]);
	assert_int_equal(out(w, p + N / 2 * UMM_PAGE, N / 2), 0);
	w->in.uffd = uffd;
	assert_int_equal(out(w, p + N / 2 * UMM_PAGE, N / 2), N / 2);
	for (unsigned i = 0; i < N; i++)
		assert_true(page_is(p + i * UMM_PAGE, 1, i));
	world_destroy(w);
}

/* What is there and pinned by somebody has gone, too. */
static void what_went_unsaid_is_pinned(void **state)
{
	const char *why;
	struct world *w = world_create("lz4", 1, &why);
	struct io_uring ring;
	struct iovec iov;
	const unsigned at = 5;

	assert_non_null(w);
	char *p = managed(w, N, 1);

	if (io_uring_queue_init(4, &ring, 0)) {
		world_destroy(w);
		skip();
	}
	assert_int_equal(move(w, w->in.staging + at * UMM_PAGE, p + at * UMM_PAGE, 1), 0);
	iov = (struct iovec){w->in.staging + at * UMM_PAGE, UMM_PAGE};
	assert_int_equal(io_uring_register_buffers(&ring, &iov, 1), 0);
	assert_int_equal(out(w, p, N), N);
	assert_int_equal(count_present(w, p, N), 0);
	io_uring_queue_exit(&ring);
	for (unsigned i = 0; i < N; i++)
		assert_true(page_is(p + i * UMM_PAGE, 1, i));
	world_destroy(w);
}

/* What is in staging because the program locks all of its memory has not gone anywhere. */
static void staging_is_populated(void **state)
{
	const char *why;
	struct world *w = world_create("lz4", 1, &why);

	assert_non_null(w);
	char *p = managed(w, N, 1);

	/* More may be there than was asked for: it is registered, and filled ahead. */
	memset(w->in.staging, 0, 4 * UMM_PAGE);
	int gone = out(w, p, N);
	assert_in_range(gone, 1, N - 4);
	assert_int_equal(count_present(w, p, 4), 4);
	assert_int_equal(atomic_load(&w->h->unsaid), 0);
	assert_int_equal(count_present(w, p, N), (int)N - gone);
	for (unsigned i = 0; i < N; i++)
		assert_true(page_is(p + i * UMM_PAGE, 1, i));
	world_destroy(w);
}

#define LONG_LEN (32ul << 20)

struct journey {
	char *from, *to;
};

static void *travels(void *arg)
{
	struct journey *j = arg;

	return mremap(j->from, LONG_LEN, LONG_LEN, MREMAP_MAYMOVE | MREMAP_FIXED, j->to);
}

/* That a mapping is not registered must not be said of one that mremap() has just taken away. */
static void what_is_on_its_way_is_not_unregistered(void **state)
{
	int uffd = umm_inside_uffd();
	size_t huge = 2ul << 20;
	uint64_t got;
	char *room = mmap(NULL, 2 * LONG_LEN + 2 * huge, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct journey j = {.from = (char *)(((uintptr_t)room + huge - 1) & -huge)};

	j.to = j.from + LONG_LEN + huge / 2; /* page by page: it takes a while */
	assert_true(uffd >= 0);
	assert_int_equal(umm_uffd_api(uffd, UMM_UFFD_BASE, 0, &got), 0);
	assert_int_equal(mprotect(j.from, LONG_LEN, PROT_READ | PROT_WRITE), 0);
	madvise(j.from, LONG_LEN, MADV_NOHUGEPAGE);
	for (size_t i = 0; i < LONG_LEN; i += UMM_PAGE)
		j.from[i] = 1;
	assert_int_equal(umm_uffd_register(uffd, (uintptr_t)j.from, LONG_LEN, UFFDIO_REGISTER_MODE_MISSING), 0);
	for (unsigned round = 0; round < 8; round++) {
		struct uffd_msg msg;
		char *was = j.from;
		void *came_to;
		pthread_t t;
		int rc;

		assert_int_equal(pthread_create(&t, NULL, travels, &j), 0);
		while (!(rc = umm_inside_registered(uffd, (uintptr_t)j.from)))
			;
		assert_int_equal(rc, -EAGAIN);
		for (unsigned n = 0; n < 2;) /* REMAP, UNMAP */
			if (read(uffd, &msg, sizeof(msg)) == sizeof(msg))
				n++;
			else
				assert_true(errno == EAGAIN || errno == EINTR);
		pthread_join(t, &came_to);
		assert_ptr_equal(came_to, j.to);
		assert_int_equal(umm_inside_registered(uffd, (uintptr_t)was), -ENOENT);
		j.from = j.to;
		j.to = was;
	}
	close(uffd);
	munmap(room, 2 * LONG_LEN + 2 * huge);
}

static struct {
	struct umm_move_run *run;
	unsigned looks, until; /* it can go on at that many, and is through soon after */
} held;

static bool held_able(void *priv)
{
	if (++held.looks == held.until)
		atomic_store(&held.run->state, UMM_RUN_FILLED);
	return held.looks >= held.until;
}

/* Who waits for half a run is who reads all events: whoever is stopped there is waited for, but not for ever. */
static void who_is_stopped_in_the_middle_is_given_up(void **state)
{
	static const unsigned until[] = {5, UINT_MAX};
	const struct hmm_inside_ops ops = {.able = held_able};
	const char *why;

	for (unsigned i = 0; i < 2; i++) {
		struct world *w = world_create("lz4", 0, &why);
		const struct hmm_inside_ops *inside = w->mm->inside;

		held.run = &w->ctl->batch[0].run[0];
		held.looks = 0;
		held.until = until[i];
		pthread_mutex_lock(&w->mm->out_lock);
		umm_evlock_excl(&w->ctl->evlock);
		w->mm->inside = &ops;
		w->mm->batch_live[0] = true;
		w->mm->nruns[0] = 1;
		w->mm->run[0][0].committed = true;
		atomic_store(&held.run->state, UMM_RUN_MOVED);
		assert_int_equal(hmm_out_sync(w->mm), !i);
		assert_int_equal(atomic_exchange(&w->fatals, 0), i);
		w->mm->batch_live[0] = false;
		w->mm->nruns[0] = 0;
		w->mm->inside = inside;
		umm_evlock_unexcl(&w->ctl->evlock);
		pthread_mutex_unlock(&w->mm->out_lock);
		world_destroy(w);
	}
}

int main(void)
{
	const char *why;
	struct world *w = world_create("lz4", 0, &why);
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_inside_does_not_wait_for_itself),
		cmocka_unit_test(fork_in_the_middle_of_a_run),
		cmocka_unit_test(what_is_not_registered_stays),
		cmocka_unit_test(staging_left_unregistered),
		cmocka_unit_test(what_went_unsaid_is_not_lost),
		cmocka_unit_test(what_went_unsaid_is_pinned),
		cmocka_unit_test(of_a_block_some_went_unsaid),
		cmocka_unit_test(staging_that_cannot_be_emptied),
		cmocka_unit_test(staging_is_populated),
		cmocka_unit_test(what_is_on_its_way_is_not_unregistered),
		cmocka_unit_test(who_is_stopped_in_the_middle_is_given_up),
	};

	if (!w)
		return skip_all(why);
	world_destroy(w);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
