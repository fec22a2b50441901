/* SPDX-License-Identifier: MIT */
/*
 * Keeping to a budget, with the engine linked in: what is above it goes, and
 * when all devices are full the program goes on, and hears of it once.
 *
 * The list of mappings that the engine looks through is a file with one line:
 * it must not find its own memory.
 */
#include "world.h"

#include <sched.h>
#include <sys/stat.h>

#define N 2048u

/* As if /proc/PID/maps showed nothing but @p. */
static int maps_with(const char *p)
{
	char line[128];
	int fd = memfd_create("maps", MFD_CLOEXEC);
	int n = snprintf(line, sizeof(line), "%lx-%lx rw-p 00000000 00:00 0 \n", (unsigned long)p,
			 (unsigned long)p + N * UMM_PAGE);

	assert_true(fd >= 0);
	assert_int_equal(write(fd, line, (size_t)n), n);
	return fd;
}

static struct world *begin(char **p, unsigned fakes)
{
	const char *why;
	struct world *w = world_create("lz4,lz4", fakes, &why);

	assert_non_null(w);
	*p = managed(w, N, 1);
	w->space->maps_fd = maps_with(*p);
	/* The engine finds and registers by itself what was not. */
	hmm_forget(w->mm, (uintptr_t)*p, (uintptr_t)*p + N * UMM_PAGE);
	return w;
}

static void what_is_above_it_goes(void **state)
{
	char *p;
	struct world *w = begin(&p, 1);

	w->h->opt.budget = UMM_PAGE; /* nothing may stay */
	assert_int_equal(hmm_budget_start(w->h), 0);
	while (count_present(w, p, N))
		sched_yield();
	atomic_store(&w->h->resting, true);
	all_are(p, N, 1);
	assert_int_equal(atomic_load(&w->said), 0);
	assert_true(atomic_load(&w->h->registrations) > 0);
	hmm_budget_stop(w->h);
	world_destroy(w);
}

static void who_is_being_armed_is_not_asked(void **state)
{
	char *p;
	struct world *w = begin(&p, 1);

	atomic_store(&w->mm->armed, true);
	assert_int_equal(hmm_discover(w->mm, 0, NULL, NULL), 0);
	atomic_store(&w->mm->looking, true);
	assert_int_equal(hmm_reclaim(w->h, N), 0);
	assert_int_equal(count_present(w, p, N), N);
	atomic_store(&w->mm->looking, false);
	assert_true(hmm_reclaim(w->h, N) > 0);
	all_are(p, N, 1);
	world_destroy(w);
}

/* Nor does it mean that nothing goes any more. */
static void while_one_is_being_armed_faults_wait(void **state)
{
	char *p;
	struct world *w = begin(&p, 1);

	w->h->opt.budget = UMM_PAGE;
	atomic_store(&w->mm->rest, 1);
	atomic_store(&w->h->looking, 1);
	assert_int_equal(hmm_budget_start(w->h), 0);
	while (atomic_load(&w->h->looks) < 40) {
		assert_false(atomic_load(&w->h->full));
		assert_false(atomic_load(&w->h->tight));
		sched_yield();
	}
	atomic_store(&w->h->looking, 0);
	while (!atomic_load(&w->h->full))
		sched_yield();
	hmm_budget_stop(w->h);
	atomic_store(&w->mm->rest, 0);
	all_are(p, N, 1);
	world_destroy(w);
}

static void full_devices_are_told_of_once(void **state)
{
	char *p;
	struct world *w = begin(&p, 2);

	w->h->opt.budget = UMM_PAGE;
	fake_set(w->fake[0], &w->fake[0]->take_every, 0);
	fake_set(w->fake[1], &w->fake[1]->take_every, 0);
	assert_int_equal(hmm_budget_start(w->h), 0);
	while (!atomic_load(&w->said))
		sched_yield();
	/* It tries again from time to time, and says nothing more. */
	unsigned before = fake_get_count(w->fake[1], &w->fake[1]->in_calls);
	while (fake_get_count(w->fake[1], &w->fake[1]->in_calls) < before + 30)
		sched_yield();
	all_are(p, N, 1);
	assert_int_equal(atomic_load(&w->said), 1);
	assert_true(said_word(w, "full"));
	assert_int_equal(atomic_load(&w->h->pages_out), 0);
	/* Faults do not wait for room that nobody can make. */
	char *fresh = managed(w, 64, 0);
	for (unsigned i = 0; i < 64; i++)
		page_fill(fresh + i * UMM_PAGE, 2, i);
	all_are(fresh, 64, 2);
	hmm_budget_stop(w->h);
	assert_int_equal(count_present(w, p, N), N);
	all_are(p, N, 1);
	world_destroy(w);
}

/* When there is room again nothing that was said while there was none holds any more. */
static void what_was_said_of_full_devices_ends(void **state)
{
	char *p;
	struct world *w = begin(&p, 2);

	w->h->opt.budget = UMM_PAGE;
	fake_set(w->fake[0], &w->fake[0]->take_every, 0);
	fake_set(w->fake[1], &w->fake[1]->take_every, 0);
	assert_int_equal(hmm_budget_start(w->h), 0);
	while (!atomic_load(&w->h->full) || !atomic_load(&w->h->tight))
		sched_yield();
	w->h->opt.budget = 1ull << 40;
	while (atomic_load(&w->h->full))
		sched_yield();
	assert_false(atomic_load(&w->h->tight));
	hmm_budget_stop(w->h);
	all_are(p, N, 1);
	world_destroy(w);
}

#define MANY 300u

struct crowd {
	_Atomic unsigned arms[MANY], asked[MANY];
	struct hmm_mm *mm[MANY];
};

/* They cannot be armed, and are asked every time. */
static int crowd_arm(void *priv)
{
	atomic_fetch_add((_Atomic unsigned *)priv, 1);
	return -EAGAIN;
}

static void crowd_pins(void *priv)
{
	atomic_fetch_add((_Atomic unsigned *)priv + MANY, 1);
}

static const struct hmm_inside_ops crowd_inside = {.arm = crowd_arm, .pins = crowd_pins};

static struct crowd *crowd_create(struct world *w)
{
	struct crowd *c = calloc(1, sizeof(*c));

	for (unsigned i = 0; i < MANY; i++) {
		struct umm_space *space;

		assert_int_equal(umm_space_adopt(0, -1, -1, -1, w->ctl, &space), 0);
		assert_int_equal(world_manage(w->h, space, NULL, &crowd_inside, &c->arms[i], &c->mm[i]), 0);
	}
	return c;
}

static void of_many_spaces_none_is_left_out(void **state)
{
	char *p;
	struct world *w = begin(&p, 1);
	struct crowd *c = crowd_create(w);

	w->h->opt.budget = UMM_PAGE;
	assert_int_equal(hmm_budget_start(w->h), 0);
	/* The last that was added is asked first, and the world's own space last. */
	while (atomic_load(&c->arms[MANY - 1]) < 3)
		sched_yield();
	hmm_budget_stop(w->h);
	for (unsigned i = 0; i < MANY; i++)
		assert_true(atomic_load(&c->arms[i]) >= 2);
	assert_true(atomic_load(&w->mm->armed));
	world_destroy(w);
	free(c);
}

static void each_of_many_gives_its_part(void **state)
{
	char *p;
	struct world *w = begin(&p, 1);
	struct crowd *c = crowd_create(w);

	for (unsigned i = 0; i < MANY; i++) {
		c->mm[i]->anon_pages = 1000;
		atomic_store(&c->mm[i]->armed, true);
	}
	/* None of them is large beside all; none has anything, so that all are asked. */
	assert_int_equal(hmm_reclaim(w->h, 1), 0);
	for (unsigned i = 0; i < MANY; i++)
		assert_int_equal(atomic_load(&c->asked[i]), 1);
	/* Small ones are asked, too, when a large one gives nothing, after it. */
	c->mm[0]->anon_pages = 1000000;
	assert_int_equal(hmm_reclaim(w->h, 1), 0);
	for (unsigned i = 0; i < MANY; i++)
		assert_int_equal(atomic_load(&c->asked[i]), 2);
	/* And not when there is one that gives: that one is the world's own, the last in the list. */
	c->mm[0]->anon_pages = 0;
	w->mm->anon_pages = 1000000;
	atomic_store(&w->mm->armed, true);
	assert_int_equal(hmm_discover(w->mm, 0, NULL, NULL), 0);
	assert_true(hmm_reclaim(w->h, 1) > 0);
	for (unsigned i = 0; i < MANY; i++)
		assert_int_equal(atomic_load(&c->asked[i]), 2);
	/* Of equals it is not always the same that have to give: after the world's it is the turn of the next. */
	w->mm->anon_pages = 1000;
	assert_true(hmm_reclaim(w->h, 1) > 0);
	for (unsigned i = 1; i < MANY; i++)
		assert_int_equal(atomic_load(&c->asked[i]), 3);
	world_destroy(w);
	free(c);
}

static uint64_t bytes_of(int fd)
{
	struct stat st;

	assert_int_equal(fstat(fd, &st), 0);
	return (uint64_t)st.st_blocks * 512;
}

static unsigned hot_among(struct world *w, const char *p)
{
	unsigned n = 0;

	for (unsigned i = 0; i < N; i++) {
		uint64_t addr = (uintptr_t)p + i * UMM_PAGE;

		n += hmm_entry_heat(hmm_leaf_find(w->mm, addr)->e[hmm_leaf_index(addr)]) == HMM_HEAT_MAX;
	}
	return n;
}

static void *reclaim_main(void *arg)
{
	struct world *w = arg;

	hmm_reclaim(w->h, 1);
	return NULL;
}

/*
 * Who has the event lock to himself reads entries and forgets copies: an entry that
 * cools down at that moment must not be written back as it was.
 */
static void nothing_cools_down_under_an_event(void **state)
{
	char *p;
	struct world *w = begin(&p, 1);
	pthread_t thread;

	w->mm->anon_pages = N;
	atomic_store(&w->mm->armed, true);
	assert_int_equal(hmm_discover(w->mm, 0, NULL, NULL), 0);
	for (unsigned i = 0; i < N; i++) {
		struct hmm_leaf *leaf = hmm_leaf_get(w->mm, (uintptr_t)p + i * UMM_PAGE);

		hmm_entry_set(w->mm, leaf, hmm_leaf_index((uintptr_t)p + i * UMM_PAGE),
			      hmm_entry(HMM_SYSTEM, 0, 0, HMM_HEAT_MAX));
	}
	w->mm->marks_known = true; /* or it would wait for that */
	umm_evlock_excl(&w->ctl->evlock);
	assert_int_equal(pthread_create(&thread, NULL, reclaim_main, w), 0);
	usleep(100000);
	unsigned hot = hot_among(w, p);
	umm_evlock_unexcl(&w->ctl->evlock);
	pthread_join(thread, NULL);
	assert_int_equal(hot, N);
	assert_int_equal(hot_among(w, p), 0);
	world_destroy(w);
}

/* A window is kept from one round to the next only while all of them are a small part of the budget. */
static void windows_do_not_eat_the_budget(void **state)
{
	int fd = memfd_create("window", MFD_CLOEXEC);
	char *p;
	struct world *w = begin(&p, 1);

	free(w->window);
	assert_int_equal(ftruncate(fd, STAGING), 0);
	w->window = mmap(NULL, STAGING, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	assert_true(w->window != MAP_FAILED);
	w->mm->window = w->in.window = w->window;
	w->mm->window_fd = fd;
	w->mm->anon_pages = N;
	atomic_store(&w->mm->armed, true);
	assert_int_equal(hmm_discover(w->mm, 0, NULL, NULL), 0);

	w->h->opt.budget = 16 * STAGING;
	atomic_store(&w->h->walks, true);
	assert_true(hmm_reclaim(w->h, 600) >= 600);
	assert_true(bytes_of(fd) >= 600 * UMM_PAGE);
	/* Nor where nobody walks: what is used of them goes by that. */
	all_are(p, N, 1);
	atomic_store(&w->h->walks, false);
	assert_true(hmm_reclaim(w->h, 600) >= 600);
	assert_true(bytes_of(fd) > 0);
	assert_true(bytes_of(fd) <= STAGING / 4);
	all_are(p, N, 1);
	atomic_store(&w->h->walks, true);
	w->h->opt.budget = 16 * STAGING - UMM_PAGE;
	assert_true(hmm_reclaim(w->h, 600) >= 600);
	assert_int_equal(bytes_of(fd), 0);
	all_are(p, N, 1);
	munmap(w->window, STAGING);
	w->window = NULL;
	close(fd);
	w->mm->window_fd = -1;
	world_destroy(w);
}

/* The sooner it comes back the longer a page stays; after an eighth of a lap it is as any other. */
static void what_comes_back_soon_is_hot(void **state)
{
	static const struct {
		unsigned ticks, heat;
	} want[] = {{0, HMM_HEAT_MAX}, {1, 5}, {2, 3}, {4, 1}, {HMM_LAP_TICKS / 8, 0}, {HMM_LAP_TICKS, 0}};
	char *p;
	struct world *w = begin(&p, 1);

	w->mm->anon_pages = N;
	atomic_store(&w->mm->armed, true);
	assert_int_equal(hmm_discover(w->mm, 0, NULL, NULL), 0);
	uint32_t tick = atomic_load(&w->mm->tick);
	assert_true(hmm_reclaim(w->h, N) >= N);
	assert_true(atomic_load(&w->mm->tick) !=
		    tick); /* by what the process has besides, too: how many is not known */
	struct hmm_leaf *leaf = hmm_leaf_find(w->mm, (uintptr_t)p);
	hmm_entry_t *e = &leaf->e[hmm_leaf_index((uintptr_t)p)];
	for (unsigned i = 0; i < sizeof(want) / sizeof(want[0]); i++) {
		page_fill(p, 1, 0);
		/* First to go, also of what was brought back with it.  Who waits for a page runs before it is entered.
		 */
		pthread_mutex_lock(&leaf->lock);
		*e = hmm_entry_with_heat(*e, 0);
		pthread_mutex_unlock(&leaf->lock);
		w->mm->hand = 0;
		assert_true(hmm_reclaim(w->h, 1) > 0);
		assert_int_equal(hmm_entry_state(*e), HMM_DEVICE);
		atomic_store(&w->mm->tick, hmm_entry_tick(*e) + want[i].ticks);
		assert_true(page_is(p, 1, 0));
		pthread_mutex_lock(&leaf->lock);
		hmm_entry_t back = *e;
		pthread_mutex_unlock(&leaf->lock);
		assert_int_equal(hmm_entry_state(back), HMM_SYSTEM);
		assert_int_equal(hmm_entry_heat(back), want[i].heat);
	}
	all_are(p, N, 1);
	world_destroy(w);
}

/* Instead of libc's: nobody is killed here. */
static _Atomic unsigned killed, killed_us;

int kill(pid_t pid, int sig)
{
	if (pid > 0)
		atomic_fetch_add(&killed, sig == SIGKILL);
	else
		atomic_store(&killed_us, 1);
	return 0;
}

static _Atomic bool ending;

/* As who measures finds it, and a fault tells of the next. */
static void *end_main(void *arg)
{
	struct hmm_mm *mm = arg;

	while (atomic_load(&ending)) {
		atomic_store(&mm->pid_ended, false);
		hmm_mm_pid_ended(mm);
		mm->space->pid = 1000;
	}
	return NULL;
}

/* kill(0) would be all of the supervisor's process group. */
static void who_has_just_ended_is_not_killed_as_all(void **state)
{
	const char *why;
	struct world *w = world_create("lz4", 0, &why);
	pthread_t thread;

	assert_non_null(w);
	atomic_store(&killed, 0);
	atomic_store(&killed_us, 0);
	atomic_store(&ending, true);
	assert_int_equal(pthread_create(&thread, NULL, end_main, w->mm), 0);
	while (atomic_load(&killed) < 10000000 && !atomic_load(&killed_us))
		hmm_mm_kill(w->mm);
	atomic_store(&ending, false);
	pthread_join(thread, NULL);
	assert_int_equal(atomic_load(&killed_us), 0);
	world_destroy(w);
}

int main(void)
{
	const char *why;
	struct world *w = world_create("lz4", 0, &why);
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_is_above_it_goes),
		cmocka_unit_test(who_is_being_armed_is_not_asked),
		cmocka_unit_test(while_one_is_being_armed_faults_wait),
		cmocka_unit_test(full_devices_are_told_of_once),
		cmocka_unit_test(what_was_said_of_full_devices_ends),
		cmocka_unit_test(of_many_spaces_none_is_left_out),
		cmocka_unit_test(each_of_many_gives_its_part),
		cmocka_unit_test(nothing_cools_down_under_an_event),
		cmocka_unit_test(windows_do_not_eat_the_budget),
		cmocka_unit_test(what_comes_back_soon_is_hot),
		cmocka_unit_test(who_has_just_ended_is_not_killed_as_all),
	};

	if (!w)
		return skip_all(why);
	world_destroy(w);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
