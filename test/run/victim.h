/* SPDX-License-Identifier: MIT */
/*
 * For programs that verify every byte they own and know nothing of hmm.
 *
 * What a page holds follows from its number, a seed and a generation (how
 * often it was written), so that an old version, another page, and zeros are
 * each told from the right one.
 */
#ifndef VICTIM_H
#define VICTIM_H

#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define V_PAGE 4096ul
#define V_WORDS (V_PAGE / 8)
#define V_MIB (1ul << 20)

/* How well a page compresses: v_fill_page() takes one of these as @kind. */
enum v_kind {
	V_RANDOM,  /* not at all */
	V_HALF,    /* about 2x */
	V_QUARTER, /* about 4x */
};

static inline void v_die(const char *fmt, ...) __attribute__((format(printf, 1, 2), noreturn));

static inline void v_die(const char *fmt, ...)
{
	char line[512];
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vsnprintf(line, sizeof(line) - 1, fmt, ap);
	va_end(ap);
	if (n > (int)sizeof(line) - 2)
		n = sizeof(line) - 2;
	line[n++] = '\n';
	if (write(2, line, (size_t)n) < 0)
		_exit(99);
	_exit(1);
}

#define V_CHECK(cond, ...)                  \
	do {                                \
		if (!(cond))                \
			v_die(__VA_ARGS__); \
	} while (0)

static inline void v_skip(const char *why)
{
	printf("SKIP: %s\n", why);
	exit(77);
}

static inline uint64_t v_mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15ull;
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
	x = (x ^ x >> 27) * 0x94d049bb133111ebull;
	return x ^ x >> 31;
}

static inline uint64_t v_rand(uint64_t *state)
{
	*state += 0x9e3779b97f4a7c15ull;
	return v_mix(*state);
}

/* Word @w of page @index. The first word is never 0, so that zeros never pass. */
static inline uint64_t v_word(uint64_t index, uint64_t seed, uint64_t gen, unsigned w, enum v_kind kind)
{
	uint64_t key = v_mix(index ^ seed << 40 ^ gen << 20);

	if (!w)
		return key | 1;
	if ((kind == V_HALF && w & 1) || (kind == V_QUARTER && w & 3))
		return key >> 8;
	return v_mix(key + w);
}

static inline void v_fill_page(void *page, uint64_t index, uint64_t seed, uint64_t gen, enum v_kind kind)
{
	volatile uint64_t *p = page;

	for (unsigned w = 0; w < V_WORDS; w++)
		p[w] = v_word(index, seed, gen, w, kind);
}

/* The first word that is not right; V_WORDS: none. */
static inline unsigned v_compare(const void *page, uint64_t index, uint64_t seed, uint64_t gen, enum v_kind kind)
{
	const volatile uint64_t *p = page;
	unsigned w = 0;

	while (w < V_WORDS && p[w] == v_word(index, seed, gen, w, kind))
		w++;
	return w;
}

static inline void v_check_page(const void *page, uint64_t index, uint64_t seed, uint64_t gen, enum v_kind kind,
				const char *what)
{
	unsigned w = v_compare(page, index, seed, gen, kind);
	const volatile uint64_t *p = page;

	if (w != V_WORDS)
		v_die("%s: page %lu (at %p) word %u: %#lx, expected %#lx (generation %lu)", what, (unsigned long)index,
		      page, w, (unsigned long)p[w], (unsigned long)v_word(index, seed, gen, w, kind),
		      (unsigned long)gen);
}

static inline void v_fill(void *base, size_t npages, uint64_t seed, uint64_t gen, enum v_kind kind)
{
	for (size_t i = 0; i < npages; i++)
		v_fill_page((char *)base + i * V_PAGE, i, seed, gen, kind);
}

static inline void v_check(const void *base, size_t npages, uint64_t seed, uint64_t gen, enum v_kind kind,
			   const char *what)
{
	for (size_t i = 0; i < npages; i++)
		v_check_page((const char *)base + i * V_PAGE, i, seed, gen, kind, what);
}

static inline void v_check_zero(const void *base, size_t npages, const char *what)
{
	const volatile uint64_t *p = base;

	for (size_t w = 0; w < npages * V_WORDS; w++)
		if (p[w])
			v_die("%s: page %zu (at %p) word %zu: %#lx, expected zeros", what, w / V_WORDS,
			      (const void *)(p + w / V_WORDS * V_WORDS), w % V_WORDS, (unsigned long)p[w]);
}

/* Private anonymous memory that no allocator knows of. */
static inline void *v_map(size_t bytes)
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	V_CHECK(p != MAP_FAILED, "mmap of %zu bytes: %s", bytes, strerror(errno));
	return p;
}

/* The page maps of the calling process tell which pages of [base, base + npages) are absent. */
static inline size_t v_absent(const void *base, size_t npages)
{
	size_t absent = 0;

	for (size_t i = 0; i < npages; i += 512) {
		unsigned char vec[512];
		size_t n = npages - i < 512 ? npages - i : 512;

		V_CHECK(!syscall(SYS_mincore, (char *)base + i * V_PAGE, n * V_PAGE, vec), "mincore: %s",
			strerror(errno));
		for (size_t k = 0; k < n; k++)
			absent += !(vec[k] & 1);
	}
	return absent;
}

static inline void v_sleep_ms(long ms)
{
	struct timespec ts = {ms / 1000, ms % 1000 * 1000000};

	nanosleep(&ts, NULL);
}

/*
 * Push [base, base + npages) out by touching @other (npages_other pages, more
 * than fits beside it) until at least @want of its pages are absent.  Without
 * hmm nothing leaves: gives up after some rounds.  Returns how many are absent.
 */
static inline size_t v_push_out(const void *base, size_t npages, void *other, size_t npages_other, size_t want)
{
	size_t absent = 0;

	for (unsigned round = 0; round < 20; round++) {
		for (size_t i = 0; i < npages_other; i++)
			++*(volatile char *)((char *)other + i * V_PAGE);
		absent = v_absent(base, npages);
		if (absent >= want)
			break;
		if (!getenv("HMM_TEST_UNDER"))
			break;
		v_sleep_ms(20);
	}
	return absent;
}

#endif
