/* SPDX-License-Identifier: MIT */
/*
 * hmm bench work [-c FILE] [-t THREADS] [-s GIB | -m MAPPINGS] MIB RATIO OPS WORKLOAD...
 * (and build/bench/run/work, the same by itself)
 *
 * Memory that is partly away, used as programs use it.  Prints one line of
 * JSON, an object for each workload:
 *
 *   ops, seconds   pages touched, and how long all that took
 *   cpu            CPU seconds meanwhile by FILE (a cgroup's account): of the program and of who pages for it
 *   faults         of the program, by the kernel: touches that did not find their page
 *   p50 .. max     us an access, and hist, how many took how long; where each is timed
 *
 * Workloads, always after "fill", first touch of all in order, every byte:
 *
 *   read write     in order, every byte read; a word of each 64 bytes of each page written
 *   stride         every fifth page, then those behind them
 *   uniform zipf   any page, half of the accesses write; zipf: 0.99, hot pages are spread
 *   chase          each page says which is next
 *   threads        uniform, by THREADS threads
 *   burst          a quarter of it mapped anew, filled and unmapped
 *   idle           nothing at all, for seconds: what is it that whoever pages for it does?
 *
 * Each is done once before it is measured, so that what the one before left is
 * not what it finds.  -s: the memory is spread over so much address space, 2 MiB at a place.  -m: it is as many
 * mappings, with a page between them that nobody may use.  RATIO: how far LZ4
 * compresses the data, 1, 2 or 4.  Every access checks a word that tells which page it is.
 */
#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "cli/bench/bench.h"
#include "cli/bench/data.h"
#include "cli/bench/measure.h"

#define STRIDE 5u
#define PIECE 512u
#define THREADS_MAX 512u
#define BUCKETS 256u /* eight an octave */
#define ZIPF 0.99
#define BURST_PART 4u
#define IDLE_SECONDS 5

enum { COUNT, TAG, NEXT }; /* words of a page that mean something */

struct hist {
	uint64_t n[BUCKETS];
	uint64_t max;
};

static uint64_t *pages;
static size_t npages, ops, piece = PIECE, apart = PIECE; /* pages of address space for each piece that is used */
static int cpu_fd = -1;
static double zeta, zeta2;

static uint64_t *page_at(size_t i)
{
	return pages + (i / piece * apart + i % piece) * DATA_WORDS;
}

static void wrong(size_t page, uint64_t got)
{
	fprintf(stderr, "page %zu has %#llx in place of its tag\n", page, (unsigned long long)got);
	_exit(1);
}

static inline void check(size_t page)
{
	uint64_t got = __atomic_load_n(page_at(page) + TAG, __ATOMIC_RELAXED);

	if (got != data_mix(page + 1))
		wrong(page, got);
}

/* ----------------------------------------------------------------- latencies */

static unsigned bucket(uint64_t ns)
{
	unsigned top, b;

	if (ns < 16)
		return (unsigned)ns;
	top = 63 - (unsigned)__builtin_clzll(ns);
	b = (top - 2) * 8 + (unsigned)(ns >> (top - 3) & 7);
	return b < BUCKETS ? b : BUCKETS - 1;
}

/* The middle of it, in us. */
static double bucket_us(unsigned b)
{
	if (b < 16)
		return b / 1e3;
	return (double)((8ull + b % 8) * 2 + 1) * (double)(1ull << (b / 8 + 2 - 3)) / 2 / 1e3;
}

static void hist_add(struct hist *h, uint64_t ns)
{
	h->n[bucket(ns)]++;
	if (ns > h->max)
		h->max = ns;
}

static double hist_at(const struct hist *h, uint64_t total, double part)
{
	uint64_t want = (uint64_t)((double)total * part), seen = 0;

	for (unsigned b = 0; b < BUCKETS; b++) {
		seen += h->n[b];
		if (seen > want)
			return bucket_us(b);
	}
	return (double)h->max / 1e3;
}

static void hist_print(const struct hist *h)
{
	uint64_t total = 0;
	bool first = true;

	for (unsigned b = 0; b < BUCKETS; b++)
		total += h->n[b];
	if (!total)
		return;
	printf(", \"p50\": %.3f, \"p90\": %.3f, \"p99\": %.3f, \"p999\": %.3f, \"max\": %.1f, \"hist\": [",
	       hist_at(h, total, .5), hist_at(h, total, .9), hist_at(h, total, .99), hist_at(h, total, .999),
	       (double)h->max / 1e3);
	for (unsigned b = 0; b < BUCKETS; b++) {
		if (!h->n[b])
			continue;
		printf("%s[%.3f, %llu]", first ? "" : ", ", bucket_us(b), (unsigned long long)h->n[b]);
		first = false;
	}
	printf("]");
}

/* ----------------------------------------------------------------- workloads */

/* A rank by a Zipf distribution, as Gray et al. draw it ("Quickly generating billion-record synthetic databases"). */
static size_t zipf_rank(uint64_t r)
{
	double n = (double)npages, alpha = 1 / (1 - ZIPF), u = (double)(r >> 11) * 0x1p-53, uz = u * zeta;
	double eta = (1 - pow(2 / n, 1 - ZIPF)) / (1 - zeta2 / zeta);

	if (uz < 1)
		return 0;
	if (uz < zeta2)
		return 1;
	return (size_t)(n * pow(eta * u - eta + 1, alpha)) % npages;
}

static void zipf_init(void)
{
	zeta2 = 1 + pow(.5, ZIPF);
	for (size_t i = 1; i <= npages; i++)
		zeta += 1 / pow((double)i, ZIPF);
}

/* @zipf: hot pages; @state: who draws. */
static void any_page(bool zipf, size_t n, uint64_t *state, struct hist *h)
{
	for (size_t i = 0; i < n; i++) {
		uint64_t r = data_mix(*state += 0x9e3779b97f4a7c15ull), t;
		size_t page = zipf ? data_mix(zipf_rank(r)) % npages : r % npages;

		t = umm_now_ns();
		check(page);
		if (i & 1)
			__atomic_fetch_add(page_at(page) + COUNT, 1, __ATOMIC_RELAXED);
		hist_add(h, umm_now_ns() - t);
	}
}

static uint64_t fill_ratio = 2;

static size_t do_fill(struct hist *h)
{
	for (size_t i = 0; i < npages; i++) {
		uint64_t *p = page_at(i);

		data_fill(p, i, (unsigned)fill_ratio);
		p[COUNT] = 0;
		p[TAG] = data_mix(i + 1);
	}
	(void)h;
	return npages;
}

/* One cycle through all pages. */
static void chase_init(void)
{
	uint32_t *order = malloc(npages * sizeof(*order));
	uint64_t state = 7;

	if (!order)
		exit(1);
	for (size_t i = 0; i < npages; i++)
		order[i] = (uint32_t)i;
	for (size_t i = npages; --i > 0;) {
		size_t j = data_mix(state += 0x9e3779b97f4a7c15ull) % i;
		uint32_t was = order[i];

		order[i] = order[j];
		order[j] = was;
	}
	for (size_t i = 0; i < npages; i++)
		page_at(i)[NEXT] = order[i];
	free(order);
}

static size_t do_chase(struct hist *h)
{
	static size_t page;

	for (size_t i = 0; i < ops; i++) {
		uint64_t t = umm_now_ns();

		check(page);
		page = page_at(page)[NEXT];
		hist_add(h, umm_now_ns() - t);
	}
	return ops;
}

static size_t do_read(struct hist *h)
{
	uint64_t sum = 0;

	for (size_t i = 0; i < npages; i++) {
		const uint64_t *p = page_at(i);

		check(i);
		for (unsigned w = 0; w < DATA_WORDS; w++)
			sum += p[w];
	}
	__asm__ volatile("" : : "r"(sum));
	(void)h;
	return npages;
}

static size_t do_write(struct hist *h)
{
	for (size_t i = 0; i < npages; i++) {
		uint64_t *p = page_at(i);

		check(i);
		p[COUNT]++;
		for (unsigned w = 8 + 3; w < DATA_WORDS; w += 8)
			p[w]++; /* not where a word means something */
	}
	(void)h;
	return npages;
}

static size_t do_stride(struct hist *h)
{
	for (size_t from = 0; from < STRIDE; from++)
		for (size_t i = from; i < npages; i += STRIDE)
			check(i);
	(void)h;
	return npages;
}

static size_t do_uniform(struct hist *h)
{
	static uint64_t state = 1;

	any_page(false, ops, &state, h);
	return ops;
}

static size_t do_zipf(struct hist *h)
{
	static uint64_t state = 2;

	any_page(true, ops, &state, h);
	return ops;
}

static size_t do_burst(struct hist *h)
{
	size_t n = npages / BURST_PART;
	char *p = mmap(NULL, n * DATA_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		exit(1);
	madvise(p, n * DATA_PAGE, MADV_NOHUGEPAGE);
	for (size_t i = 0; i < n; i++)
		data_fill(p + i * DATA_PAGE, i, (unsigned)fill_ratio);
	munmap(p, n * DATA_PAGE);
	(void)h;
	return n;
}

static size_t do_idle(struct hist *h)
{
	nanosleep(&(struct timespec){.tv_sec = IDLE_SECONDS}, NULL);
	(void)h;
	return 1;
}

static unsigned nthreads = 8;

struct user {
	pthread_t t;
	uint64_t state;
	struct hist h;
};

static void *user_main(void *arg)
{
	struct user *u = arg;

	any_page(false, ops / nthreads, &u->state, &u->h);
	return NULL;
}

static size_t do_threads(struct hist *h)
{
	static uint64_t turn;
	struct user *u = calloc(nthreads, sizeof(*u));

	turn++;
	for (unsigned i = 0; u && i < nthreads; i++) {
		u[i].state = data_mix(turn * THREADS_MAX + i);
		if (pthread_create(&u[i].t, NULL, user_main, &u[i]))
			exit(1);
	}
	for (unsigned i = 0; u && i < nthreads; i++) {
		pthread_join(u[i].t, NULL);
		for (unsigned b = 0; b < BUCKETS; b++)
			h->n[b] += u[i].h.n[b];
		h->max = u[i].h.max > h->max ? u[i].h.max : h->max;
	}
	free(u);
	return ops / nthreads * nthreads;
}

/* --------------------------------------------------------------- measurement */

static const struct workload {
	const char *name;
	size_t (*run)(struct hist *h);
} workloads[] = {
	{"read", do_read},   {"write", do_write},     {"stride", do_stride}, {"uniform", do_uniform}, {"zipf", do_zipf},
	{"chase", do_chase}, {"threads", do_threads}, {"burst", do_burst},   {"idle", do_idle},
};

static void measure(const char *name, size_t (*run)(struct hist *h), bool warm)
{
	static struct hist h;
	uint64_t t, cpu, f;
	size_t n;

	if (warm)
		run(&h);
	memset(&h, 0, sizeof(h));
	f = faults();
	cpu = cpu_used(cpu_fd);
	t = umm_now_ns();
	n = run(&h);
	t = umm_now_ns() - t;
	cpu = cpu_used(cpu_fd) - cpu;
	f = faults() - f;
	printf("%s\"%s\": {\"ops\": %zu, \"seconds\": %.6f, \"faults\": %llu", warm ? ", " : "{", name, n,
	       (double)t / 1e9, (unsigned long long)f);
	if (cpu_fd >= 0)
		printf(", \"cpu\": %.6f", (double)cpu / 1e9);
	hist_print(&h);
	printf("}");
	fflush(stdout);
}

/* Where all of it is to be: in one piece, or spread over @gib, or in so many mappings. */
static void map_pages(size_t gib, size_t mappings)
{
	size_t bytes = npages * DATA_PAGE;

	if (mappings) {
		piece = npages > mappings ? npages / mappings : 1;
		apart = piece + 1;
		bytes = (npages / piece + 1) * apart * DATA_PAGE;
	} else if (gib << 30 > bytes) {
		bytes = gib << 30;
		apart = bytes / DATA_PAGE / ((npages + PIECE - 1) / PIECE);
	}
	pages = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (pages == MAP_FAILED) {
		perror("mmap");
		exit(1);
	}
	/* What is measured is paging, not how huge pages are had and split. */
	madvise(pages, bytes, MADV_NOHUGEPAGE);
	for (size_t i = 0; mappings && i < npages; i += piece) {
		if (!munmap(page_at(i) + piece * DATA_WORDS, DATA_PAGE))
			continue;
		perror("munmap");
		exit(1);
	}
}

/* How many mappings the program has. */
static size_t count_mappings(void)
{
	FILE *f = fopen("/proc/self/maps", "re");
	size_t n = 0;
	int c;

	if (!f) {
		perror("/proc/self/maps");
		exit(1);
	}
	while ((c = getc(f)) != EOF)
		n += c == '\n';
	fclose(f);
	return n;
}

int bench_work_main(int argc, char **argv)
{
	size_t gib = 0, mappings = 0;
	int opt;

	while ((opt = getopt(argc, argv, "c:t:s:m:")) != -1) {
		if (opt == 'c')
			cpu_fd = open(optarg, O_RDONLY | O_CLOEXEC);
		else if (opt == 't')
			nthreads = (unsigned)atoi(optarg);
		else if (opt == 's')
			gib = (size_t)atol(optarg);
		else if (opt == 'm')
			mappings = (size_t)atol(optarg);
		else
			return 2;
	}
	if (argc - optind < 3 || nthreads < 1 || nthreads > THREADS_MAX) {
		fprintf(stderr,
			"usage: work [-c FILE] [-t THREADS] [-s GIB | -m MAPPINGS] MIB RATIO OPS WORKLOAD...\n");
		return 2;
	}
	npages = (size_t)atol(argv[optind]) * (1 << 20) / DATA_PAGE;
	fill_ratio = (uint64_t)atol(argv[optind + 1]);
	ops = (size_t)atol(argv[optind + 2]);
	map_pages(gib, mappings);
	zipf_init();
	measure("fill", do_fill, false);
	for (int i = optind + 3; i < argc; i++) {
		const struct workload *w = NULL;

		for (unsigned k = 0; k < sizeof(workloads) / sizeof(workloads[0]); k++)
			if (!strcmp(argv[i], workloads[k].name))
				w = &workloads[k];
		if (!w) {
			fprintf(stderr, "work: no workload \"%s\"\n", argv[i]);
			return 2;
		}
		if (w->run == do_chase)
			chase_init();
		measure(w->name, w->run, true);
	}
	for (size_t i = 0; i < npages; i++)
		check(i);
	if (mappings)
		printf(", \"mappings\": %zu", count_mappings());
	printf("}\n");
	return 0;
}
