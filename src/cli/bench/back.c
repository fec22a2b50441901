/* SPDX-License-Identifier: MIT */
/*
 * hmm bench back MIB OPS: how long a touch takes of a page that is away, whoever has
 * it, while there is room for what comes.  One line of JSON, in us.
 *
 * All is filled, with data of 2x, and then what is still there is given up, so that
 * nothing has to go when something comes: else what goes meanwhile is measured, too.
 */
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "cli/bench/bench.h"
#include "cli/bench/data.h"
#include "cli/bench/measure.h"

#define RATIO 2u

/* Is page @i at @p there, or away? */
static bool present(int fd, const volatile char *p, size_t i)
{
	uint64_t e;

	if (pread(fd, &e, sizeof(e), (off_t)(((uintptr_t)p / DATA_PAGE + i) * sizeof(e))) != sizeof(e)) {
		perror("pagemap");
		exit(1);
	}
	return e >> 63;
}

/* Up to @ops accesses to pages that are away, each timed.  Returns how many. */
static size_t touch_away(volatile char *p, int fd, size_t npages, size_t ops, uint64_t *ns)
{
	uint64_t state = 1;
	size_t n = 0;

	for (size_t i = 0; i < 20 * ops && n < ops; i++) {
		size_t page = data_mix(state += 0x9e3779b97f4a7c15ull) % npages;
		uint64_t t;

		if (present(fd, p, page))
			continue;
		t = umm_now_ns();
		(void)p[page * DATA_PAGE];
		ns[n++] = umm_now_ns() - t;
	}
	return n;
}

int bench_back_main(int argc, char **argv)
{
	size_t npages = argc == 3 ? (size_t)atol(argv[1]) * (1 << 20) / DATA_PAGE : 0, n;
	size_t ops = argc == 3 ? (size_t)atol(argv[2]) : 0;
	struct bench_sample s = {0};
	int fd;

	if (!npages || !ops) {
		fprintf(stderr, "usage: hmm bench back MIB OPS\n");
		return 2;
	}
	fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	uint64_t *ns = calloc(ops, sizeof(*ns));
	char *p = map_small(npages * DATA_PAGE), *dropped = calloc(npages, 1);
	if (!ns || !dropped)
		return 1;
	for (size_t i = 0; i < npages; i++)
		data_fill(p + i * DATA_PAGE, i, RATIO);
	sleep(1); /* what is on its way arrives */
	for (size_t i = 0; i < npages; i++) {
		dropped[i] = present(fd, p, i);
		if (dropped[i])
			madvise(p + i * DATA_PAGE, DATA_PAGE, MADV_DONTNEED);
	}
	sleep(1);
	/* Dropped pages are absent, too: they must not be taken for some that are away. */
	for (size_t i = 0; i < npages; i++)
		if (dropped[i])
			(void)*(volatile char *)(p + i * DATA_PAGE);
	n = touch_away(p, fd, npages, ops, ns);
	for (size_t i = 0; i < npages; i++) {
		if (!dropped[i] && present(fd, p, i) && !bench_right(p + i * DATA_PAGE, i, RATIO)) {
			fprintf(stderr, "page %zu is wrong\n", i);
			return 1;
		}
	}
	bench_times(ns, n, &s);
	printf("{\"back_mean\": %.3f, \"back_median\": %.3f, \"back_p99\": %.3f, \"n\": %zu}\n", s.mean / 1e3,
	       s.value / 1e3, s.p99 / 1e3, n);
	return 0;
}
