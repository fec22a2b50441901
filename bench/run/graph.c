/* SPDX-License-Identifier: MIT */
/*
 * graph [-c FILE] MIB: breadth-first search in a graph with MIB of edges, each with
 * a kind and a weight, whose degrees, in and out, follow a power law; LZ4 makes half
 * of them.  One line of JSON, as work.c has it;
 * "result" is the same for the same graph, however memory is had.
 *
 *   build   edges are drawn and written, one vertex after the other
 *   bfs     from one vertex; another search before it is not counted
 */
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <sys/mman.h>

#include "cli/bench/data.h"
#include "cli/bench/measure.h"

#define DEGREE 64u /* of the average vertex */
#define ALPHA 1.5  /* of the vertices one in d^ALPHA has more than d edges */
#define UNSEEN 255u

struct edge {
	uint32_t to, kind;
	double weight;
};

static uint32_t nvertices;
static uint64_t *first; /* of a vertex's edges; one more than there are vertices */
static struct edge *edge;
static uint8_t *level;
static uint32_t *queue;

static void *map(size_t bytes)
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED) {
		perror("mmap");
		exit(1);
	}
	madvise(p, bytes, MADV_NOHUGEPAGE); /* as work.c */
	return p;
}

static double part(uint64_t r)
{
	return (double)(r >> 11) * 0x1p-53;
}

static uint64_t degree(uint32_t v)
{
	double d = DEGREE * (ALPHA - 1) / ALPHA * pow(1 - part(data_mix(v + 1)), -1 / ALPHA);

	return d < nvertices / 4 ? (uint64_t)d : nvertices / 4;
}

/* Few vertices are the end of many edges, and lie anywhere. */
static uint32_t drawn(uint64_t r)
{
	double u = part(r);

	return (uint32_t)(u * u * u * nvertices) * 2654435761u & (nvertices - 1);
}

static uint64_t build(uint64_t *ops)
{
	uint64_t n = 0, state = 1;

	for (uint32_t v = 0; v < nvertices; v++) {
		first[v] = n;
		for (uint64_t d = degree(v); d; d--)
			edge[n++] = (struct edge){.to = drawn(data_mix(state += 0x9e3779b97f4a7c15ull)),
						  .kind = (uint32_t)(n % 4),
						  .weight = 1};
	}
	first[nvertices] = n;
	*ops = n;
	return n;
}

static uint64_t search(uint32_t root, uint64_t *ops)
{
	uint32_t head = 0, tail = 0;
	uint64_t sum = 0;

	memset(level, UNSEEN, nvertices);
	level[root] = 0;
	queue[tail++] = root;
	*ops = 0;
	while (head < tail) {
		uint32_t v = queue[head++];

		sum += (uint64_t)level[v] * (v + 1);
		*ops += first[v + 1] - first[v];
		for (uint64_t e = first[v]; e < first[v + 1]; e++) {
			uint32_t to = edge[e].to;

			if (level[to] != UNSEEN)
				continue;
			level[to] = level[v] + 1;
			queue[tail++] = to;
		}
	}
	return sum;
}

static void print(const char *name, int cpu_fd, uint64_t t, uint64_t cpu, uint64_t f, uint64_t ops, uint64_t result)
{
	printf("\"%s\": {\"ops\": 1, \"edges\": %llu, \"seconds\": %.6f, \"faults\": %llu, \"result\": %llu", name,
	       (unsigned long long)ops, (double)(umm_now_ns() - t) / 1e9, (unsigned long long)(faults() - f),
	       (unsigned long long)result);
	if (cpu_fd >= 0)
		printf(", \"cpu\": %.6f", (double)(cpu_used(cpu_fd) - cpu) / 1e9);
	printf("}");
}

int main(int argc, char **argv)
{
	int opt, cpu_fd = -1;
	uint64_t total = 0, t, cpu, f, ops, result;
	size_t bytes;

	while ((opt = getopt(argc, argv, "c:")) != -1) {
		if (opt != 'c')
			return 2;
		cpu_fd = open(optarg, O_RDONLY | O_CLOEXEC);
	}
	bytes = argc - optind == 1 ? (size_t)atol(argv[optind]) << 20 : 0;
	for (nvertices = 1; nvertices * 2ull * DEGREE * sizeof(*edge) <= bytes;)
		nvertices *= 2;
	if (!bytes || nvertices < 1024) {
		fprintf(stderr, "usage: graph [-c FILE] MIB\n");
		return 2;
	}
	for (uint32_t v = 0; v < nvertices; v++)
		total += degree(v);
	first = map((nvertices + 1) * sizeof(*first));
	edge = map(total * sizeof(*edge));
	level = map(nvertices);
	queue = map(nvertices * sizeof(*queue));

	t = umm_now_ns();
	cpu = cpu_used(cpu_fd);
	f = faults();
	result = build(&ops);
	printf("{");
	print("build", cpu_fd, t, cpu, f, ops, result);
	search(1, &ops);
	t = umm_now_ns();
	cpu = cpu_used(cpu_fd);
	f = faults();
	result = search(2, &ops);
	printf(", ");
	print("bfs", cpu_fd, t, cpu, f, ops, result);
	printf("}\n");
	return 0;
}
