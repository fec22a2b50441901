/* SPDX-License-Identifier: MIT */
/*
 * MADV_DONTNEED and MADV_FREE in a loop, against memory that is pushed out all
 * the time: never old data after a drop, never a lost write after one.
 *
 * Each thread owns an area: it fills some pages, lets them be pushed out or
 * not, drops a range, and knows from then on that these pages are zero (or,
 * with MADV_FREE, zero or what they were) until it writes them again, from
 * when on they must hold what it wrote.
 */
#include "calls.h"

#define AREA 1024u /* pages a thread */

static bool raw, use_free;

static int advise(void *p, size_t len, int advice)
{
	return raw ? (int)syscall(SYS_madvise, p, len, advice) : madvise(p, len, advice);
}

struct worker {
	unsigned id, rounds;
	pthread_t thread;
	char *p;
	uint32_t gen[AREA]; /* generation last written; 0: zero */
	bool freed[AREA];   /* MADV_FREE since: zero is right too */
};

static void look(struct worker *w, size_t i, unsigned round)
{
	const volatile uint64_t *p = (const volatile uint64_t *)(w->p + i * V_PAGE);
	uint64_t want0 = w->gen[i] ? v_word(i, w->id, w->gen[i], 0, V_QUARTER) : 0;
	uint64_t want1 = w->gen[i] ? v_word(i, w->id, w->gen[i], 511, V_QUARTER) : 0;
	uint64_t a = p[0], b = p[511];

	if (a == want0 && b == want1)
		return;
	if (w->freed[i] && (!a || a == want0) && (!b || b == want1))
		return;
	uint32_t g = 0;
	while (g <= w->gen[i] + 1 && v_word(i, w->id, g, 0, V_QUARTER) != a)
		g++;
	DIE("thread %u round %u page %zu (%p): %#lx %#lx, expected %#lx %#lx of generation %u%s%s", w->id, round, i,
	    (const void *)p, (unsigned long)a, (unsigned long)b, (unsigned long)want0, (unsigned long)want1, w->gen[i],
	    w->freed[i] ? " (freed)" : "",
	    !a                   ? ": zeros"
	    : g <= w->gen[i] + 1 ? ": an older one"
				 : "");
}

static void put(struct worker *w, size_t i, uint32_t gen)
{
	volatile uint64_t *p = (volatile uint64_t *)(w->p + i * V_PAGE);

	for (unsigned k = 0; k < 512; k += 73)
		p[k] = v_word(i, w->id, gen, k, V_QUARTER);
	w->gen[i] = gen;
	w->freed[i] = false;
}

static void *worker_main(void *arg)
{
	struct worker *w = arg;
	uint64_t s = w->id * 1000003ull;
	uint32_t gen = 0;

	for (unsigned r = 0; r < w->rounds; r++) {
		size_t from = rnd(&s) % AREA, n = 1 + rnd(&s) % 128;
		if (from + n > AREA)
			n = AREA - from;

		switch (rnd(&s) % 6) {
		case 0:
		case 1:
			gen++;
			for (size_t i = from; i < from + n; i++)
				put(w, i, gen);
			break;
		case 2:
			CHECK(!advise(w->p + from * V_PAGE, n * V_PAGE, MADV_DONTNEED), "MADV_DONTNEED");
			for (size_t i = from; i < from + n; i++)
				w->gen[i] = 0, w->freed[i] = false;
			/* At once: what is written now must not go with what was dropped. */
			gen++;
			for (size_t i = from; i < from + n; i += 1 + rnd(&s) % 4)
				put(w, i, gen);
			break;
		case 3:
			CHECK(!advise(w->p + from * V_PAGE, n * V_PAGE, use_free ? MADV_FREE : MADV_DONTNEED),
			      "madvise");
			for (size_t i = from; i < from + n; i++) {
				if (use_free)
					w->freed[i] = true;
				else
					w->gen[i] = 0;
			}
			break;
		case 4:
			for (size_t i = from; i < from + n; i++)
				look(w, i, r);
			break;
		case 5:
			if (r % 32 == 5)
				sleep_ms(30);
			break;
		}
		/* FREE leaves the choice open until the page is looked at or written: settle it now and then. */
		if (use_free && r % 64 == 63)
			for (size_t i = 0; i < AREA; i++)
				look(w, i, r);
	}
	for (size_t i = 0; i < AREA; i++)
		look(w, i, w->rounds);
	return NULL;
}

int main(int argc, char **argv)
{
	static struct worker w[6];
	struct hog hog;

	for (int i = 1; i < argc; i++) {
		raw |= !strcmp(argv[i], "raw");
		use_free |= !strcmp(argv[i], "free");
	}
	hog_start(&hog, hog_mib());
	/* One mapping for all: their quarantines and runs meet. */
	char *p = v_map(6 * AREA * V_PAGE);
	for (unsigned i = 0; i < 6; i++) {
		w[i].id = i;
		w[i].rounds = long_run() ? 30000 : 1000;
		w[i].p = p + i * AREA * V_PAGE;
		CHECK(!pthread_create(&w[i].thread, NULL, worker_main, &w[i]), "pthread_create");
	}
	for (unsigned i = 0; i < 6; i++)
		pthread_join(w[i].thread, NULL);
	hog_stop(&hog);
	return 0;
}
