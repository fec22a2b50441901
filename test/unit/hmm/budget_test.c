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

int main(void)
{
	const char *why;
	struct world *w = world_create("lz4", 0, &why);
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_is_above_it_goes),
		cmocka_unit_test(full_devices_are_told_of_once),
	};

	if (!w)
		return skip_all(why);
	world_destroy(w);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
