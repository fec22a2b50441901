/* SPDX-License-Identifier: MIT */
/*
 * wide mappings N MIB: as many mappings, none of which can merge with another;
 * wide threads N MIB: as many threads, all at work at a time;
 * wide sparse GIB MIB: so much address space, in which pieces of 2 MiB are used.
 *
 * MIB of memory are written, and read twice, every page checked; the second time
 * half of them are written again.  How many mappings there are is printed in between.
 */
#include <pthread.h>

#include "../victim.h"

#define SEED 11
#define PIECE (2 * V_MIB)

/* Where page @i is: runs of @run pages, @stride bytes from one to the next. */
static struct {
	char *mem;
	size_t npages, run, stride;
	pthread_barrier_t all;
	size_t threads;
} W;

static char *page(size_t i)
{
	return W.mem + i / W.run * W.stride + i % W.run * V_PAGE;
}

static void visit(size_t i, unsigned gen, bool write)
{
	if (v_check(page(i), i, SEED, gen, V_QUARTER))
		_exit(1);
	if (write)
		v_fill(page(i), i, SEED, gen + 1, V_QUARTER);
}

static unsigned long count_maps(void)
{
	FILE *f = fopen("/proc/self/maps", "re");
	unsigned long n = 0;
	int c;

	while (f && (c = fgetc(f)) != EOF)
		n += c == '\n';
	if (f)
		fclose(f);
	return n;
}

static void range(size_t from, size_t to)
{
	for (size_t i = from; i < to; i++)
		v_fill(page(i), i, SEED, 1, V_QUARTER);
	for (size_t i = from; i < to; i++)
		visit(i, 1, i % 2);
	for (size_t i = from; i < to; i++)
		visit(i, i % 2 ? 2 : 1, false);
}

static void *work(void *arg)
{
	size_t t = (size_t)arg, mine = W.npages / W.threads;

	pthread_barrier_wait(&W.all);
	range(t * mine, (t + 1) * mine);
	pthread_barrier_wait(&W.all); /* they live until all are through */
	return NULL;
}

static int threads(size_t n)
{
	pthread_t *thread = calloc(n, sizeof(*thread));
	pthread_attr_t attr;

	W.threads = n;
	pthread_barrier_init(&W.all, NULL, (unsigned)n);
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, 64 << 10);
	for (size_t t = 0; t < n; t++) {
		if (pthread_create(&thread[t], &attr, work, (void *)t)) {
			perror("pthread_create");
			return 1;
		}
	}
	for (size_t t = 0; t < n; t++)
		pthread_join(thread[t], NULL);
	free(thread);
	return 0;
}

int main(int argc, char **argv)
{
	size_t n = argc == 4 ? strtoul(argv[2], NULL, 10) : 0, pages;

	if (!n) {
		fprintf(stderr, "usage: wide mappings|threads|sparse N MIB\n");
		return 2;
	}
	pages = strtoul(argv[3], NULL, 10) * V_MIB / V_PAGE;
	if (!strcmp(argv[1], "mappings")) {
		W.run = pages / n;
		W.stride = (W.run + 1) * V_PAGE;
	} else if (!strcmp(argv[1], "sparse")) {
		W.run = PIECE / V_PAGE;
		W.stride = (n << 30) / (pages / W.run) / PIECE * PIECE;
		n = pages / W.run;
	} else {
		W.run = pages / n;
		W.stride = W.run * V_PAGE;
	}
	W.npages = W.run * n;
	W.mem = mmap(NULL, n * W.stride, argv[1][0] == 'm' ? PROT_NONE : PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (W.mem == MAP_FAILED) {
		perror("mmap");
		return 1;
	}
	for (size_t i = 0; argv[1][0] == 'm' && i < n; i++) {
		if (mprotect(W.mem + i * W.stride, W.run * V_PAGE, PROT_READ | PROT_WRITE)) {
			perror("mprotect");
			return 1;
		}
	}
	unsigned long before = count_maps();
	if (argv[1][0] == 't') {
		if (threads(n))
			return 1;
	} else {
		range(0, W.npages);
	}
	printf("%lu mappings, at the end %lu\n", before, count_maps());
	return 0;
}
