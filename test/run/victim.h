/* SPDX-License-Identifier: MIT */
/*
 * For programs that check their own memory: what stands in a page follows from
 * its index, a seed and a generation, so that nothing need be remembered to
 * tell whether it is right.
 */
#ifndef TEST_RUN_VICTIM_H
#define TEST_RUN_VICTIM_H

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

#define V_PAGE 4096ul
#define V_WORDS (V_PAGE / sizeof(uint64_t))
#define V_MIB (1ul << 20)
#define V_SKIP 77

/* How many of a page's words differ from their neighbour: what a compressor makes of it. */
enum v_kind { V_RANDOM = 1, V_HALF = 2, V_QUARTER = 4 };

/* More memory, and more rounds, than where many tests have to be through soon. */
static inline bool v_long(void)
{
	return getenv("HMM_TEST_LONG") != NULL;
}

static inline uint64_t v_mix(uint64_t x)
{
	x ^= x >> 30;
	x *= 0xbf58476d1ce4e5b9ull;
	x ^= x >> 27;
	x *= 0x94d049bb133111ebull;
	return x ^ x >> 31;
}

static inline uint64_t v_word(uint64_t index, uint64_t seed, uint64_t gen, unsigned w, enum v_kind kind)
{
	uint64_t base = v_mix(index * 0x9e3779b97f4a7c15ull + v_mix(seed ^ v_mix(gen + 1)));

	return w % kind ? base : v_mix(base + w); /* never two pages alike, never zero throughout */
}

static inline void v_fill(void *page, uint64_t index, uint64_t seed, uint64_t gen, enum v_kind kind)
{
	volatile uint64_t *p = page;

	for (unsigned w = 0; w < V_WORDS; w++)
		p[w] = v_word(index, seed, gen, w, kind);
}

/* What the kernel says of where the page at @p is; 0: nothing. */
static inline uint64_t v_pagemap(const void *p)
{
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	uint64_t e = 0;

	if (pread(fd, &e, sizeof(e), (off_t)((uintptr_t)p / V_PAGE * sizeof(e))) != sizeof(e))
		e = 0;
	close(fd);
	return e;
}

/*
 * 0, or -1 after one line that says what was found, and what is found there a while
 * later: what is lost stays so, and what only this CPU still saw as it was does not.
 */
static inline int v_check(const void *page, uint64_t index, uint64_t seed, uint64_t gen, enum v_kind kind)
{
	const volatile uint64_t *p = page;

	for (unsigned w = 0; w < V_WORDS; w++) {
		uint64_t got = p[w], want = v_word(index, seed, gen, w, kind), map;

		if (got == want)
			continue;
		map = v_pagemap(page);
		usleep(100000);
		fprintf(stderr,
			"%d: page %" PRIu64 " (%p) word %u is %#" PRIx64 ", not %#" PRIx64 " (generation %" PRIu64
			")%s; in the page map %#" PRIx64 ", later %#" PRIx64 " and %#" PRIx64 "\n",
			(int)getpid(), index, page, w, got, want, gen, got ? "" : ": zero", map, p[w], v_pagemap(page));
		return -1;
	}
	return 0;
}

static inline bool v_is_zero(const void *page)
{
	const volatile uint64_t *p = page;

	for (unsigned w = 0; w < V_WORDS; w++)
		if (p[w])
			return false;
	return true;
}

static inline void *v_map(size_t len)
{
	void *p = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED) {
		perror("mmap");
		_exit(1);
	}
	return p;
}

static inline void v_fill_all(char *p, size_t npages, uint64_t seed, uint64_t gen, enum v_kind kind)
{
	for (size_t i = 0; i < npages; i++)
		v_fill(p + i * V_PAGE, i, seed, gen, kind);
}

static inline int v_check_all(const char *p, size_t npages, uint64_t seed, uint64_t gen, enum v_kind kind)
{
	for (size_t i = 0; i < npages; i++)
		if (v_check(p + i * V_PAGE, i, seed, gen, kind))
			return -1;
	return 0;
}

/* Pages of [p, p + npages) that are not in the page table now. */
static inline size_t v_absent(const char *p, size_t npages)
{
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	uint64_t e[64];
	size_t absent = 0;

	for (size_t i = 0, n; i < npages && fd >= 0; i += n) {
		ssize_t got;

		n = npages - i < 64 ? npages - i : 64;
		got = pread(fd, e, n * sizeof(e[0]), (off_t)(((uintptr_t)p / V_PAGE + i) * sizeof(e[0])));
		for (size_t k = 0; got > 0 && k < (size_t)got / sizeof(e[0]); k++)
			absent += !(e[k] >> 63);
	}
	close(fd);
	return absent;
}

/* Is this program one of those that hmm run knows?  What it starts must be, too, in whatever environment. */
static inline bool v_is_entered(void)
{
	FILE *f = fopen("/proc/self/maps", "r");
	char line[600];
	bool found = false;

	while (f && !found && fgets(line, sizeof(line), f))
		found = strstr(line, "/libhmm-preload.so");
	if (f)
		fclose(f);
	if (!found)
		fprintf(stderr, "%d: this program was not entered\n", (int)getpid());
	return found;
}

#endif
