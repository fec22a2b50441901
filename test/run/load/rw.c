/* SPDX-License-Identifier: MIT */
/*
 * rw PATTERN THREADS MIB KIND ROUNDS: threads read and write memory, each page
 * by page of its own, neighbours belonging to different threads; every page is
 * checked in full before it is written, and all at the end.
 *
 * seq: ROUNDS passes, each page read, every second of them rewritten.
 * step: the same, but by every fifth page, then those behind them.
 * scan: ROUNDS passes, each page read, none rewritten.
 * rand: ROUNDS times as many accesses as there are pages, half of them writes.
 */
#include <pthread.h>

#include "../victim.h"

#define SEED 7
#define STEP 5u

static struct {
	char *mem;
	uint8_t *gen; /* a generation a page */
	size_t npages;
	unsigned threads, rounds;
	enum v_kind kind;
	bool random, step, scan;
} W;

/* The @i-th of @n things, when every STEPth of them comes first. */
static size_t by_step(size_t i, size_t n)
{
	size_t from = 0, part;

	for (; i >= (part = (n - from + STEP - 1) / STEP); from++)
		i -= part;
	return from + i * STEP;
}

static void visit(size_t page, bool write)
{
	char *at = W.mem + page * V_PAGE;

	if (v_check(at, page, SEED, W.gen[page], W.kind))
		_exit(1);
	if (write)
		v_fill(at, page, SEED, ++W.gen[page], W.kind);
}

static void *work(void *arg)
{
	size_t t = (size_t)arg, mine = W.npages / W.threads;
	uint64_t rnd = t + 1;

	for (size_t i = 0; i < mine; i++) {
		W.gen[i * W.threads + t] = 1;
		v_fill(W.mem + (i * W.threads + t) * V_PAGE, i * W.threads + t, SEED, 1, W.kind);
	}
	for (unsigned r = 0; r < W.rounds; r++) {
		for (size_t i = 0; i < mine; i++) {
			rnd = v_mix(rnd + 0x9e3779b97f4a7c15ull);
			size_t n = W.random ? rnd % mine : W.step ? by_step(i, mine) : i;
			visit(n * W.threads + t, !W.scan && (W.random ? rnd >> 63 : (n + r) % 2));
		}
	}
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_t thread[64];

	if (argc != 6) {
		fprintf(stderr, "usage: rw seq|step|scan|rand THREADS MIB KIND ROUNDS\n");
		return 2;
	}
	W.random = !strcmp(argv[1], "rand");
	W.step = !strcmp(argv[1], "step");
	W.scan = !strcmp(argv[1], "scan");
	W.threads = (unsigned)atoi(argv[2]);
	W.npages = (size_t)atoi(argv[3]) * V_MIB / V_PAGE / W.threads * W.threads;
	W.kind = (enum v_kind)atoi(argv[4]);
	W.rounds = (unsigned)atoi(argv[5]);
	W.mem = v_map(W.npages * V_PAGE);
	W.gen = v_map(W.npages);
	for (size_t t = 0; t < W.threads; t++) {
		if (pthread_create(&thread[t], NULL, work, (void *)t)) {
			perror("pthread_create");
			return 1;
		}
	}
	for (unsigned t = 0; t < W.threads; t++)
		pthread_join(thread[t], NULL);
	for (size_t p = 0; p < W.npages; p++)
		visit(p, false);
	return 0;
}
