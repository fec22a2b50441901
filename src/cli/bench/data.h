/* SPDX-License-Identifier: MIT */
/*
 * Pages that LZ4 makes 1/RATIO of: each 64 bytes begin with some that nothing
 * resembles, and are zero from there on, so that a page is many short matches,
 * as real data are, and not one long one.
 */
#ifndef CLI_BENCH_DATA_H
#define CLI_BENCH_DATA_H

#include <stdint.h>
#include <string.h>

#define DATA_PAGE 4096u
#define DATA_WORDS (DATA_PAGE / 8)

static inline uint64_t data_mix(uint64_t x)
{
	x ^= x >> 30;
	x *= 0xbf58476d1ce4e5b9ull;
	x ^= x >> 27;
	x *= 0x94d049bb133111ebull;
	return x ^ x >> 31;
}

/* @ratio: 1, 2 or 4; token, lengths and offset of each match are counted in. */
static inline void data_fill(void *page, uint64_t index, unsigned ratio)
{
	unsigned literal = ratio >= 4 ? 12 : ratio >= 2 ? 27 : 64;
	uint64_t base = data_mix(index * 0x9e3779b97f4a7c15ull + 11);
	char *p = page;

	for (unsigned at = 0; at < DATA_PAGE; at += 64) {
		uint64_t word[8];

		for (unsigned w = 0; w * 8 < literal; w++)
			word[w] = data_mix(base += 0x9e3779b97f4a7c15ull);
		memcpy(p + at, word, literal);
		memset(p + at + literal, 0, 64 - literal);
	}
}

#endif
