/* SPDX-License-Identifier: MIT */
/*
 * Pages that one 64-bit word, repeated, gives: most often zeros, but also small
 * integers, floating-point constants, memset() patterns.  Where the word fits,
 * the handle itself says it all and the page needs no store, no table entry and
 * no reference count.
 *
 * Such a handle has bit 47 set; bits 46-45 say how the word is made of the low
 * 45 bits.  The fourth value of these two bits is left unused, which keeps
 * HMM_HANDLE_NONE (all ones) out of the encoding.
 */
#ifndef HMM_DRV_SAME_H
#define HMM_DRV_SAME_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "hmm.h"

#define DRV_SAME ((uint64_t)1 << 47)
#define DRV_SAME_KIND_SHIFT 45
#define DRV_SAME_VALUE (((uint64_t)1 << DRV_SAME_KIND_SHIFT) - 1)

enum drv_same_kind {
	DRV_SAME_32,   /* two equal halves */
	DRV_SAME_LOW,  /* sign-extended */
	DRV_SAME_HIGH, /* low bits are zero */
};

static inline uint64_t drv_word(const void *page, unsigned i)
{
	uint64_t word;

	memcpy(&word, (const char *)page + i * 8, 8);
	return word;
}

/** drv_same_page() - does one word give the whole page? */
static inline bool drv_same_page(const void *page, uint64_t *word)
{
	const unsigned n = HMM_PAGE_SIZE / 8;
	uint64_t first = drv_word(page, 0);

	/* A page that is not of one word mostly shows it here, before its cache lines are all read. */
	if (drv_word(page, n - 1) != first || drv_word(page, n / 2) != first)
		return false;
	for (unsigned i = 0; i < n; i += 8) {
		uint64_t diff = 0;

		for (unsigned j = 0; j < 8; j++)
			diff |= drv_word(page, i + j) ^ first;
		if (diff)
			return false;
	}
	*word = first;
	return true;
}

/** drv_same_encode() - the handle that means @word, repeated; HMM_HANDLE_NONE when none can. */
static inline hmm_handle_t drv_same_encode(uint64_t word)
{
	const unsigned spare = 64 - DRV_SAME_KIND_SHIFT;
	uint64_t value;
	enum drv_same_kind kind;

	if (word >> 32 == (word & UINT32_MAX)) {
		kind = DRV_SAME_32;
		value = word & UINT32_MAX;
	} else if ((uint64_t)((int64_t)(word << spare) >> spare) == word) {
		kind = DRV_SAME_LOW;
		value = word & DRV_SAME_VALUE;
	} else if (!(word << DRV_SAME_KIND_SHIFT)) {
		kind = DRV_SAME_HIGH;
		value = word >> spare;
	} else {
		return HMM_HANDLE_NONE;
	}
	return DRV_SAME | (uint64_t)kind << DRV_SAME_KIND_SHIFT | value;
}

/** drv_same_split() - handles of what needs no more than that; numbers of the other pages, and how many these are. */
static inline unsigned drv_same_split(const void *const src[], hmm_handle_t handle[], uint16_t index[], unsigned n)
{
	unsigned m = 0;

	for (unsigned i = 0; i < n; i++) {
		uint64_t word;

		handle[i] = drv_same_page(src[i], &word) ? drv_same_encode(word) : HMM_HANDLE_NONE;
		if (handle[i] == HMM_HANDLE_NONE)
			index[m++] = (uint16_t)i;
	}
	return m;
}

static inline bool drv_same_handle(hmm_handle_t handle)
{
	return handle & DRV_SAME;
}

static inline void drv_same_fill(void *page, uint64_t word)
{
	for (unsigned i = 0; i < HMM_PAGE_SIZE; i += 8)
		memcpy((char *)page + i, &word, 8);
}

/** drv_same_decode() - write the page that @handle means; false when it means none. */
static inline bool drv_same_decode(hmm_handle_t handle, void *page)
{
	const unsigned spare = 64 - DRV_SAME_KIND_SHIFT;
	uint64_t value = handle & DRV_SAME_VALUE;

	switch ((handle & ~DRV_SAME) >> DRV_SAME_KIND_SHIFT) {
	case DRV_SAME_32:
		if (value > UINT32_MAX)
			return false;
		value |= value << 32;
		break;
	case DRV_SAME_LOW:
		value = (uint64_t)((int64_t)(value << spare) >> spare);
		break;
	case DRV_SAME_HIGH:
		value <<= spare;
		break;
	default:
		return false;
	}
	if (!value)
		memset(page, 0, HMM_PAGE_SIZE);
	else
		drv_same_fill(page, value);
	return true;
}

#endif
