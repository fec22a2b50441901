/* SPDX-License-Identifier: MIT */
/*
 * Threads that allocate, fill, check, resize and free through whatever malloc
 * is loaded, several times what fits.  argv[1]: a name that must be found in
 * the maps, so that the allocator meant is the one tested.
 */
#include "calls.h"

#include <malloc.h>

#define SLOTS (long_run() ? 1500u : 750u)

struct slot {
	uint64_t *p;
	size_t words;
	uint64_t tag;
};

struct worker {
	unsigned id, rounds;
	pthread_t thread;
};

static void put(struct slot *s, size_t from)
{
	for (size_t k = from; k < s->words; k++)
		s->p[k] = k % 4 ? s->tag : v_mix(s->tag + k);
}

static void look(const struct slot *s, size_t words)
{
	for (size_t k = 0; k < words; k++) {
		uint64_t want = k % 4 ? s->tag : v_mix(s->tag + k);

		CHECK(s->p[k] == want, "block %p of %zu words, word %zu: %#lx, expected %#lx", (void *)s->p, s->words,
		      k, (unsigned long)s->p[k], (unsigned long)want);
	}
}

static size_t some_words(uint64_t *state)
{
	uint64_t x = rnd(state);

	switch (x % 16) {
	case 0:
		return 1 + x / 16 % 65536; /* big: mappings of their own */
	case 1:
	case 2:
	case 3:
		return 1 + x / 16 % 8192;
	default:
		return 1 + x / 16 % 512;
	}
}

static void *worker_main(void *arg)
{
	struct worker *w = arg;
	struct slot *slot = calloc(SLOTS, sizeof(*slot));
	uint64_t state = w->id + 1;

	for (unsigned r = 0; r < w->rounds; r++) {
		struct slot *s = &slot[rnd(&state) % SLOTS];
		size_t n = some_words(&state);

		if (!s->p) {
			bool zeroed = rnd(&state) % 4 == 0;

			s->p = zeroed ? calloc(n, 8) : malloc(n * 8);
			CHECK(s->p, "no memory");
			for (size_t k = 0; zeroed && k < n; k++)
				CHECK(!s->p[k], "calloc(): word %zu of %zu is %#lx", k, n, (unsigned long)s->p[k]);
			s->words = n;
			s->tag = v_mix(rnd(&state));
			put(s, 0);
		} else if (rnd(&state) % 3 == 0) {
			size_t keep = s->words < n ? s->words : n;

			s->p = realloc(s->p, n * 8);
			CHECK(s->p, "no memory");
			look(s, keep);
			s->words = n;
			put(s, keep);
		} else {
			look(s, s->words);
			free(s->p);
			s->p = NULL;
		}
	}
	for (unsigned i = 0; i < SLOTS; i++) {
		if (slot[i].p)
			look(&slot[i], slot[i].words);
		free(slot[i].p);
	}
	free(slot);
	return NULL;
}

int main(int argc, char **argv)
{
	struct worker w[4];

	if (argc > 1) {
		char line[512];
		bool found = false;
		FILE *f = fopen("/proc/self/maps", "r");

		while (f && fgets(line, sizeof(line), f))
			found |= strstr(line, argv[1]) != NULL;
		CHECK(found, "%s is not loaded", argv[1]);
		fclose(f);
	}
	for (unsigned i = 0; i < 4; i++) {
		w[i].id = i;
		w[i].rounds = long_run() ? 60000 : 3000;
		CHECK(!pthread_create(&w[i].thread, NULL, worker_main, &w[i]), "pthread_create");
	}
	for (unsigned i = 0; i < 4; i++)
		pthread_join(w[i].thread, NULL);
	return 0;
}
