/* SPDX-License-Identifier: MIT */
/* What hmm bench and all programs of the benchmark measure alike. */
#ifndef CLI_BENCH_MEASURE_H
#define CLI_BENCH_MEASURE_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/types.h>
#include <unistd.h>

#include "umm/clock.h" /* umm_now_ns() */

/* CPU time by @fd, a cgroup's account; 0 where there is none. */
static inline uint64_t cpu_used(int fd)
{
	char buf[256];
	ssize_t n = fd >= 0 ? pread(fd, buf, sizeof(buf) - 1, 0) : -1;

	if (n <= 0)
		return 0;
	buf[n] = 0;
	/* cgroup v2 has "usage_usec 123", v1 nanoseconds and nothing else. */
	if (!strncmp(buf, "usage_usec ", 11))
		return strtoull(buf + 11, NULL, 10) * 1000;
	return strtoull(buf, NULL, 10);
}

static inline uint64_t faults(void)
{
	struct rusage u;

	getrusage(RUSAGE_SELF, &u);
	return (uint64_t)u.ru_minflt + (uint64_t)u.ru_majflt;
}

/* Private memory in small pages.  Ends the program where there is none. */
static inline void *map_small(size_t bytes)
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED) {
		perror("mmap");
		exit(1);
	}
	madvise(p, bytes, MADV_NOHUGEPAGE);
	return p;
}

#endif
