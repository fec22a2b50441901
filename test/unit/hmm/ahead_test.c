/* SPDX-License-Identifier: MIT */
/* What a walk is about to ask for is fetched from a device that takes its time. */
#include "world.h"

#define N 1024u
#define HALF (N / 2)
#define FETCHERS 2u /* threads that fetch ahead */

/* What the test stops others at, each until it is let go. */
static struct {
	pthread_t fetcher[FETCHERS];
	unsigned fetchers;
	bool making, no_threads;
	_Atomic bool no_room, nobody_asks;
	_Atomic unsigned without_room, asking, left;
	_Atomic bool freed_early;
} stop;

int __real_pthread_create(pthread_t *t, const pthread_attr_t *attr, void *(*main)(void *), void *arg);
int __wrap_pthread_create(pthread_t *t, const pthread_attr_t *attr, void *(*main)(void *), void *arg);
int __wrap_pthread_create(pthread_t *t, const pthread_attr_t *attr, void *(*main)(void *), void *arg)
{
	int rc = stop.no_threads ? EAGAIN : __real_pthread_create(t, attr, main, arg);

	if (stop.making && !rc && stop.fetchers < FETCHERS)
		stop.fetcher[stop.fetchers++] = *t;
	return rc;
}

void __real_hmm_budget_charge(struct hmm_mm *mm, uint64_t pages);
void __wrap_hmm_budget_charge(struct hmm_mm *mm, uint64_t pages);
void __wrap_hmm_budget_charge(struct hmm_mm *mm, uint64_t pages)
{
	bool fetches = false;

	for (unsigned i = 0; i < stop.fetchers; i++)
		fetches |= pthread_equal(stop.fetcher[i], pthread_self()) != 0;
	atomic_fetch_add(&stop.without_room, fetches);
	while (fetches && atomic_load(&stop.no_room))
		sched_yield();
	__real_hmm_budget_charge(mm, pages);
}

bool __real_hmm_ahead_comes(struct hmm_mm *mm, uint64_t addr);
bool __wrap_hmm_ahead_comes(struct hmm_mm *mm, uint64_t addr);
bool __wrap_hmm_ahead_comes(struct hmm_mm *mm, uint64_t addr)
{
	bool comes = __real_hmm_ahead_comes(mm, addr);

	atomic_fetch_add(&stop.left, comes);
	return comes;
}

uint64_t __real_hmm_ahead_ask(struct hmm_mm *mm, uint64_t from, uint64_t page);
uint64_t __wrap_hmm_ahead_ask(struct hmm_mm *mm, uint64_t from, uint64_t page);
uint64_t __wrap_hmm_ahead_ask(struct hmm_mm *mm, uint64_t from, uint64_t page)
{
	atomic_fetch_add(&stop.asking, 1);
	while (atomic_load(&stop.nobody_asks))
		sched_yield();
	from = __real_hmm_ahead_ask(mm, from, page);
	atomic_fetch_sub(&stop.asking, 1);
	return from;
}

int __real_pthread_join(pthread_t t, void **ret);
int __wrap_pthread_join(pthread_t t, void **ret);
static unsigned joined; /* of those that fetch */
int __wrap_pthread_join(pthread_t t, void **ret)
{
	for (unsigned i = 0; i < stop.fetchers; i++)
		joined += pthread_equal(stop.fetcher[i], t) != 0;
	return __real_pthread_join(t, ret);
}

void __real_umm_monitor_stop(struct umm_monitor *m);
void __wrap_umm_monitor_stop(struct umm_monitor *m);
void __wrap_umm_monitor_stop(struct umm_monitor *m)
{
	atomic_store(&stop.nobody_asks, false);
	__real_umm_monitor_stop(m);
}

void __real_hmm_ahead_free(struct hmm *h);
void __wrap_hmm_ahead_free(struct hmm *h);
void __wrap_hmm_ahead_free(struct hmm *h)
{
	atomic_store(&stop.freed_early, atomic_load(&stop.asking) != 0);
	__real_hmm_ahead_free(h);
}

struct scene {
	struct world *w;
	struct fake *f;
	char *p;
};

static int setup(void **state)
{
	struct scene *s = calloc(1, sizeof(*s));
	const char *why;

	s->w = world_create("lz4", 1, &why);
	if (!s->w) {
		exit(skip_all(why));
	}
	s->f = s->w->fake[0];
	memset(&stop, 0, sizeof(stop));
	stop.making = true;
	hmm_ahead_start(s->w->h); /* there was no such device when the engine began */
	stop.making = false;
	assert_non_null(s->w->h->ahead);
	assert_int_equal(stop.fetchers, FETCHERS);
	s->p = managed(s->w, N, 1);
	for (unsigned i = 0; i < N; i += HALF)
		assert_int_equal(out(s->w, s->p + i * UMM_PAGE, HALF), HALF);
	*state = s;
	return 0;
}

static int teardown(void **state)
{
	struct scene *s = *state;

	world_destroy(s->w);
	free(s);
	return 0;
}

static void *page(const struct scene *s, unsigned i)
{
	return s->p + i * UMM_PAGE;
}

/* Until who walks is given whole clusters.  Returns the first page that is not there. */
static unsigned walk_to_clusters(struct scene *s)
{
	unsigned i = 0, before;

	do {
		before = i;
		assert_true(page_is(page(s, i), 1, i));
		while (i < N && present(s->w, page(s, i)))
			i++;
	} while (i - before < HMM_PLACE_MAX && i < HALF / 2);
	assert_true(i - before >= HMM_PLACE_MAX);
	return i;
}

static void all_come_back(struct scene *s)
{
	all_are(s->p, N, 1);
	fake_comes_to_hold(s->f, 0);
	assert_int_equal(count_present(s->w, s->p, N), N);
}

static void a_walk_is_fetched_ahead(void **state)
{
	struct scene *s = *state;
	unsigned at;

	at = walk_to_clusters(s);
	assert_true(page_is(page(s, at), 1, at));
	/* Without a further touch. */
	while (!atomic_load(&s->w->h->pages_ahead))
		sched_yield();
	all_come_back(s);
	assert_true(atomic_load(&s->w->h->pages_ahead) <= N);
}

static void who_goes_about_is_given_nothing_else(void **state)
{
	struct scene *s = *state;

	for (unsigned i = 0; i < 200; i++) {
		unsigned at = i * 409 % N;

		assert_true(page_is(page(s, at), 1, at));
	}
	assert_int_equal(atomic_load(&s->w->h->pages_ahead), 0);
}

struct toucher {
	pthread_t thread;
	struct scene *s;
	unsigned page;
	int sig;
	bool right;
};

static void *toucher_main(void *arg)
{
	struct toucher *t = arg;
	char byte;

	t->sig = touch(page(t->s, t->page), &byte);
	t->right = !t->sig && page_is(page(t->s, t->page), 1, t->page);
	return NULL;
}

static void touch_begin(struct scene *s, struct toucher *t, unsigned at)
{
	*t = (struct toucher){.s = s, .page = at};
	assert_int_equal(pthread_create(&t->thread, NULL, toucher_main, t), 0);
}

/* The first page of the piece that a fault at page @at asks for. */
static unsigned piece_after(const struct scene *s, unsigned at)
{
	uint64_t in_leaf = (uintptr_t)page(s, at) & (LEAF - 1);

	/* The cluster of the fault ends with its leaf. */
	return in_leaf + HMM_PLACE_MAX * UMM_PAGE > LEAF ? at + (unsigned)((LEAF - in_leaf) / UMM_PAGE)
							 : at + HMM_PLACE_MAX;
}

/* A walk to where what was asked for ahead of it so far is there, so that all of them begin anew. */
static unsigned walk_to_new_pieces(struct scene *s)
{
	unsigned at = walk_to_clusters(s);

	for (unsigned i = 0; i < HMM_STREAMS; i++)
		while (s->w->mm->stream[i].fetched > (uintptr_t)page(s, at) / UMM_PAGE)
			at += present(s->w, page(s, at));
	return at;
}

/*
 * A walk waits for its page, all that fetch ahead for theirs, and one more touches
 * a page that one of them is fetching.
 */
static void wait_in_a_piece(struct scene *s, struct toucher t[2])
{
	unsigned at = walk_to_new_pieces(s), piece = piece_after(s, at);
	uint64_t faults;

	fake_tell(s->f, &s->f->block_out, true);
	touch_begin(s, &t[0], at);
	pthread_mutex_lock(&s->f->lock);
	while (s->f->out_blocked < 1 + FETCHERS)
		pthread_cond_wait(&s->f->moved, &s->f->lock);
	pthread_mutex_unlock(&s->f->lock);
	faults = atomic_load(&s->w->mm->faults);
	assert_true(piece + 3 < N);
	touch_begin(s, &t[1], piece + 3);
	while (atomic_load(&s->w->mm->faults) == faults)
		sched_yield();
}

static void who_faults_there_waits_for_it(void **state)
{
	struct scene *s = *state;
	struct toucher t[2];

	wait_in_a_piece(s, t);
	fake_tell(s->f, &s->f->block_out, false);
	for (unsigned i = 0; i < 2; i++) {
		pthread_join(t[i].thread, NULL);
		assert_int_equal(t[i].sig, 0);
		assert_true(t[i].right);
	}
	all_come_back(s);
	/* None was fetched twice. */
	assert_int_equal(s->f->copied_out, N);
}

static void what_cannot_be_fetched_is_for_who_touches_it(void **state)
{
	struct scene *s = *state;
	struct toucher t[2];
	unsigned lost = 0;

	wait_in_a_piece(s, t);
	fake_fail_out(s->f, -EIO);
	fake_tell(s->f, &s->f->block_out, false);
	/* Who waits for what others fetch is woken, and finds out for itself. */
	for (unsigned i = 0; i < 2; i++) {
		pthread_join(t[i].thread, NULL);
		assert_int_equal(t[i].sig, SIGBUS);
	}
	fake_fail_out(s->f, 0);
	for (unsigned i = 0; i < N; i++) {
		char byte;

		if (touch(page(s, i), &byte))
			lost++;
		else
			assert_true(page_is(page(s, i), 1, i));
	}
	assert_int_equal(lost, 2);
	assert_int_equal(atomic_load(&s->w->h->poisoned), 2);
	fake_comes_to_hold(s->f, 0);
}

static void what_is_unmapped_meanwhile_does_not_come(void **state)
{
	struct scene *s = *state;
	struct toucher t[2];

	wait_in_a_piece(s, t);
	/* All behind the first page of the first piece: what is being fetched is nobody's. */
	assert_int_equal(madvise(page(s, t[1].page + 1), (N - t[1].page - 1) * UMM_PAGE, MADV_DONTNEED), 0);
	fake_tell(s->f, &s->f->block_out, false);
	for (unsigned i = 0; i < 2; i++) {
		pthread_join(t[i].thread, NULL);
		assert_int_equal(t[i].sig, 0);
		assert_true(t[i].right);
	}
	all_are(page(s, t[1].page + 1), N - t[1].page - 1, 0);
	all_are(s->p, t[1].page, 1);
	fake_comes_to_hold(s->f, 0);
}

/* Who waits for a page that is dropped meanwhile is told, too, when the piece is over. */
static void what_is_dropped_under_who_waits(void **state)
{
	struct scene *s = *state;
	struct toucher t[2];

	wait_in_a_piece(s, t);
	while (!atomic_load(&stop.left))
		sched_yield();
	assert_int_equal(madvise(page(s, t[1].page), UMM_PAGE, MADV_DONTNEED), 0);
	fake_tell(s->f, &s->f->block_out, false);
	for (unsigned i = 0; i < 2; i++) {
		pthread_join(t[i].thread, NULL);
		assert_int_equal(t[i].sig, 0);
	}
	assert_true(t[0].right);
	assert_true(page_is(page(s, t[1].page), 0, t[1].page));
	for (unsigned i = t[1].page + 1; i < N; i++)
		assert_true(page_is(page(s, i), 1, i));
}

/* A piece that has not begun to come because there is no room for it is nothing to wait for. */
static void who_faults_where_there_is_no_room_yet(void **state)
{
	struct scene *s = *state;
	unsigned at = walk_to_new_pieces(s), begun;
	struct toucher t;

	begun = atomic_load(&stop.without_room);
	atomic_store(&stop.left, 0);
	atomic_store(&stop.no_room, true);
	assert_true(page_is(page(s, at), 1, at));
	while (atomic_load(&stop.without_room) < begun + FETCHERS)
		sched_yield();
	at = piece_after(s, at) + 3;
	assert_false(present(s->w, page(s, at)));
	touch_begin(s, &t, at);
	while (!present(s->w, page(s, at)) && !atomic_load(&stop.left))
		sched_yield();
	atomic_store(&stop.no_room, false);
	pthread_join(t.thread, NULL);
	assert_true(t.right);
	assert_int_equal(atomic_load(&stop.left), 0);
	all_come_back(s);
}

/* A fault that is served while all ends may still ask. */
static void who_asks_at_the_end(void **state)
{
	struct scene *s = *state;
	unsigned at = walk_to_new_pieces(s);
	struct toucher t;

	atomic_store(&stop.nobody_asks, true);
	touch_begin(s, &t, at);
	while (!atomic_load(&stop.asking))
		sched_yield();
	world_destroy(s->w);
	pthread_join(t.thread, NULL);
	assert_false(atomic_load(&stop.freed_early));
	assert_int_equal(atomic_load(&stop.asking), 0);
	free(s);
}

/* Nobody would take what is asked for: it is not asked for, and holds no space. */
static void without_threads(void **state)
{
	struct scene *s = *state;
	struct hmm *h = s->w->h;

	hmm_ahead_stop(h);
	hmm_ahead_free(h);
	stop.no_threads = true;
	hmm_ahead_start(h);
	stop.no_threads = false;
	assert_null(h->ahead);
	walk_to_clusters(s);
	all_come_back(s);
}

/* As where all is stopped before it is ended: who has ended is waited for once. */
static void stopped_twice(void **state)
{
	struct scene *s = *state;

	joined = 0;
	hmm_ahead_stop(s->w->h);
	assert_int_equal(joined, FETCHERS);
	hmm_ahead_stop(s->w->h);
	assert_int_equal(joined, FETCHERS);
	all_come_back(s);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
		T(stopped_twice),
		T(a_walk_is_fetched_ahead),
		T(who_goes_about_is_given_nothing_else),
		T(who_faults_there_waits_for_it),
		T(what_cannot_be_fetched_is_for_who_touches_it),
		T(what_is_unmapped_meanwhile_does_not_come),
		T(what_is_dropped_under_who_waits),
		T(who_faults_where_there_is_no_room_yet),
		T(without_threads),
		cmocka_unit_test_setup(who_asks_at_the_end, setup),
	};

	if (argc > 1)
		cmocka_set_test_filter(argv[1]);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
