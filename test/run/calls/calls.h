/* SPDX-License-Identifier: MIT */
/*
 * Memory pressure from within the program under test: a thread that goes round
 * and round a hog, and checks it.  Whatever else is not touched leaves.
 */
#ifndef TEST_RUN_CALLS_H
#define TEST_RUN_CALLS_H

#include "../victim.h"

#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

#define DIE(...)                                                \
	do {                                                    \
		fprintf(stderr, "%s:%d: ", __FILE__, __LINE__); \
		fprintf(stderr, __VA_ARGS__);                   \
		fprintf(stderr, " (errno %d)\n", errno);        \
		_exit(1);                                       \
	} while (0)

#define CHECK(cond, ...)                  \
	do {                              \
		if (!(cond))              \
			DIE(__VA_ARGS__); \
	} while (0)

#define CHECK_ALL(p, n, seed, gen, what)                                     \
	do {                                                                 \
		if (v_check_all((const char *)(p), n, seed, gen, V_QUARTER)) \
			DIE("%s", what);                                     \
	} while (0)

struct hog {
	char *base;
	size_t npages;
	_Atomic int stop;
	_Atomic unsigned long laps;
	pthread_t thread;
};

static inline void *hog_main(void *arg)
{
	struct hog *h = arg;

	for (uint64_t lap = 0; !atomic_load(&h->stop); lap++) {
		for (size_t i = 0; i < h->npages && !atomic_load(&h->stop); i++) {
			volatile uint64_t *p = (volatile uint64_t *)(h->base + i * V_PAGE);

			if (p[0] != (lap ? v_word(i, 77, lap - 1, 1, V_RANDOM) : 0) || p[511] != p[0])
				DIE("hog: page %zu holds %#lx and %#lx in lap %lu", i, (unsigned long)p[0],
				    (unsigned long)p[511], (unsigned long)lap);
			p[0] = p[511] = v_word(i, 77, lap, 1, V_RANDOM);
		}
		atomic_fetch_add(&h->laps, 1);
	}
	return NULL;
}

static inline bool long_run(void)
{
	return v_long();
}

/* On a budget of 16 MiB, or 32: one lap is enough to have everything else go. */
static inline size_t hog_mib(void)
{
	return long_run() ? 64 : 24;
}

static inline void hog_start(struct hog *h, size_t mib)
{
	*h = (struct hog){.base = v_map(mib * V_MIB), .npages = mib * V_MIB / V_PAGE};
	CHECK(!pthread_create(&h->thread, NULL, hog_main, h), "pthread_create");
}

static inline void hog_stop(struct hog *h)
{
	atomic_store(&h->stop, 1);
	pthread_join(h->thread, NULL);
	munmap(h->base, h->npages * V_PAGE);
}

static inline bool under_hmm(void)
{
	return getenv("HMM_TEST_UNDER") != NULL;
}

static inline void sleep_ms(long ms)
{
	struct timespec ts = {ms / 1000, ms % 1000 * 1000000};

	nanosleep(&ts, NULL);
}

/* While a hog runs: until @want of the pages are away.  The bound is a watchdog. */
static inline void wait_away(const void *p, size_t npages, size_t want, const char *what)
{
	size_t away = 0;

	for (unsigned i = 0; under_hmm() && i < 6000; i++) {
		away = v_absent(p, npages);
		if (away >= want)
			return;
		sleep_ms(10);
	}
	CHECK(!under_hmm(), "%s: only %zu of %zu pages leave", what, away, npages);
}

static inline uint64_t rnd(uint64_t *state)
{
	*state += 0x9e3779b97f4a7c15ull;
	return v_mix(*state);
}

#endif
