/* SPDX-License-Identifier: MIT */
/* Pages to store: what is in one follows from its kind and a number. */
#ifndef TEST_PAGES_H
#define TEST_PAGES_H

#include <stdint.h>
#include <string.h>

#include "hmm.h"

enum kind {
	ZERO,
	SAME,     /* one word, which a handle can say */
	SAME_ODD, /* one word, which none can */
	TEXT,     /* compresses well */
	MEDIUM,   /* to about a half */
	INCOMPRESSIBLE,
	NR_KINDS,
};

static inline uint64_t mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15ull;
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
	x = (x ^ x >> 27) * 0x94d049bb133111ebull;
	return x ^ x >> 31;
}

static inline void make_page(void *page, enum kind kind, uint64_t number)
{
	uint64_t words[HMM_PAGE_SIZE / 8];
	char *text = (char *)words;

	for (unsigned i = 0; i < HMM_PAGE_SIZE / 8; i++) {
		switch (kind) {
		case ZERO:
			words[i] = 0;
			break;
		case SAME:
			words[i] = number << 24;
			break;
		case SAME_ODD:
			words[i] = mix(number) | 1;
			break;
		case MEDIUM:
			words[i] = i % 2 ? mix(number * 4096 + i) : number;
			break;
		default:
			words[i] = mix(number * 4096 + i);
			break;
		}
	}
	if (kind == TEXT)
		for (unsigned i = 0; i < HMM_PAGE_SIZE; i++)
			text[i] = "the quick brown fox jumps"[(i + number) % (17 + number % 8)];
	if (kind == TEXT)
		memcpy(text, &number, sizeof(number));
	memcpy(page, words, HMM_PAGE_SIZE);
}

static inline int page_is(const void *page, enum kind kind, uint64_t number)
{
	char want[HMM_PAGE_SIZE];

	make_page(want, kind, number);
	return !memcmp(page, want, HMM_PAGE_SIZE);
}

static inline int put_in(struct hmm_device *dev, enum kind kind, uint64_t number, hmm_handle_t *handle)
{
	char page[HMM_PAGE_SIZE] __attribute__((aligned(16)));
	const void *src[1] = {page};

	make_page(page, kind, number);
	return dev->ops->copy_in(dev, src, handle, 1);
}

static inline int get_out(struct hmm_device *dev, hmm_handle_t handle, void *page)
{
	void *dst[1] = {page};
	int status[1] = {12345};
	int rc = dev->ops->copy_out(dev, &handle, dst, status, 1);

	return status[0] == rc ? rc : -12345;
}

static inline int reads_as(struct hmm_device *dev, hmm_handle_t handle, enum kind kind, uint64_t number)
{
	char page[HMM_PAGE_SIZE] __attribute__((aligned(16)));

	memset(page, 0x55, sizeof(page));
	return !get_out(dev, handle, page) && page_is(page, kind, number);
}

static inline struct hmm_device_stats stats_of(struct hmm_device *dev)
{
	struct hmm_device_stats st;

	dev->ops->stats(dev, &st);
	return st;
}

/* For figures that are printed, never judged. */
#include <time.h>
static inline double now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec * 1e9 + (double)ts.tv_nsec;
}

#endif
