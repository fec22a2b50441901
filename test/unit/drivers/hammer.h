/* SPDX-License-Identifier: MIT */
/* Several threads use one device at random and look at every byte that they get back. */
#ifndef TEST_HAMMER_H
#define TEST_HAMMER_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "pages.h"

#define HAMMER_SLOTS 512
#define HAMMER_BATCH 32

struct hammer {
	struct hmm_device *dev;
	uint64_t seed;
	unsigned rounds;
	unsigned kinds; /* of the enum, from the first */
	_Atomic unsigned *wrong;
	_Atomic int *stop_trim;
	hmm_handle_t shared; /* read and referenced by all */
};

struct hammer_slot {
	hmm_handle_t handle;
	enum kind kind;
	uint64_t number;
	unsigned refs;
};

static inline void hammer_out(struct hammer *h, struct hammer_slot *slot, unsigned first, char *pages)
{
	hmm_handle_t handle[HAMMER_BATCH];
	void *dst[HAMMER_BATCH];
	int status[HAMMER_BATCH];
	unsigned index[HAMMER_BATCH];
	unsigned n = 0;

	for (unsigned i = 0; i < HAMMER_BATCH; i++) {
		if (!slot[first + i].refs)
			continue;
		index[n] = first + i;
		handle[n] = slot[first + i].handle;
		dst[n] = pages + i * HMM_PAGE_SIZE;
		n++;
	}
	if (n && h->dev->ops->copy_out(h->dev, handle, dst, status, n))
		atomic_fetch_add(h->wrong, 1);
	for (unsigned i = 0; i < n; i++)
		if (status[i] || !page_is(dst[i], slot[index[i]].kind, slot[index[i]].number))
			atomic_fetch_add(h->wrong, 1);
}

static inline void *hammer_thread(void *arg)
{
	struct hammer *h = arg;
	struct hammer_slot *slot = calloc(HAMMER_SLOTS, sizeof(*slot));
	char *pages = aligned_alloc(HMM_PAGE_SIZE, (HAMMER_BATCH + 1) * HMM_PAGE_SIZE);
	uint64_t rnd = h->seed;

	for (unsigned round = 0; round < h->rounds; round++) {
		unsigned first;
		/* Odd addresses, too: the pages of a program are aligned, a copy of them may not be. */
		char *at;

		rnd = mix(rnd);
		first = (unsigned)(rnd % (HAMMER_SLOTS / HAMMER_BATCH)) * HAMMER_BATCH;
		at = pages + (rnd >> 20) % 2 * 16;
		switch (rnd >> 32 & 3) {
		case 0: {
			const void *src[HAMMER_BATCH];
			hmm_handle_t handle[HAMMER_BATCH];
			unsigned index[HAMMER_BATCH], n = 0;

			for (unsigned i = 0; i < HAMMER_BATCH; i++) {
				struct hammer_slot *s = &slot[first + i];

				if (s->refs)
					continue;
				rnd = mix(rnd);
				s->kind = (enum kind)(rnd % h->kinds);
				s->number = rnd >> 8 & 0xfffff;
				make_page(at + i * HMM_PAGE_SIZE, s->kind, s->number);
				src[n] = at + i * HMM_PAGE_SIZE;
				index[n++] = first + i;
			}
			if (!n)
				break;
			if (h->dev->ops->copy_in(h->dev, src, handle, n) < 0)
				atomic_fetch_add(h->wrong, 1);
			for (unsigned i = 0; i < n; i++) {
				slot[index[i]].handle = handle[i];
				slot[index[i]].refs = handle[i] != HMM_HANDLE_NONE;
			}
			break;
		}
		case 1:
			hammer_out(h, slot, first, at);
			if (!reads_as(h->dev, h->shared, TEXT, 7))
				atomic_fetch_add(h->wrong, 1);
			break;
		case 2:
			for (unsigned i = 0; i < HAMMER_BATCH; i += 3) {
				if (!slot[first + i].refs)
					continue;
				h->dev->ops->get(h->dev, &slot[first + i].handle, 1);
				slot[first + i].refs++;
			}
			h->dev->ops->get(h->dev, &h->shared, 1);
			h->dev->ops->put(h->dev, &h->shared, 1);
			break;
		case 3:
			for (unsigned i = rnd & 1; i < HAMMER_BATCH; i += 2) {
				if (!slot[first + i].refs)
					continue;
				h->dev->ops->put(h->dev, &slot[first + i].handle, 1);
				slot[first + i].refs--;
			}
			break;
		}
	}
	for (unsigned i = 0; i < HAMMER_SLOTS; i += HAMMER_BATCH)
		hammer_out(h, slot, i, pages);
	for (unsigned i = 0; i < HAMMER_SLOTS; i++)
		for (; slot[i].refs; slot[i].refs--)
			h->dev->ops->put(h->dev, &slot[i].handle, 1);
	free(pages);
	free(slot);
	return NULL;
}

static inline void *hammer_trim(void *arg)
{
	struct hammer *h = arg;

	while (!atomic_load(h->stop_trim)) {
		struct hmm_device_stats st = stats_of(h->dev);

		if (st.bytes_capacity != UINT64_MAX && st.bytes_ram > st.bytes_capacity)
			atomic_fetch_add(h->wrong, 1);
		if (h->dev->ops->trim)
			h->dev->ops->trim(h->dev, 1 << 20);
	}
	return NULL;
}

/* Returns how much was wrong. */
static inline unsigned hammer(struct hmm_device *dev, unsigned threads, unsigned rounds, unsigned kinds)
{
	_Atomic unsigned wrong = 0;
	_Atomic int stop_trim = 0;
	struct hammer h[16];
	pthread_t id[16], trim;
	hmm_handle_t shared;

	if (put_in(dev, TEXT, 7, &shared) != 1)
		return 1;
	for (unsigned i = 0; i < threads; i++) {
		h[i] = (struct hammer){.dev = dev,
				       .seed = mix(i),
				       .rounds = rounds,
				       .kinds = kinds,
				       .wrong = &wrong,
				       .stop_trim = &stop_trim,
				       .shared = shared};
		pthread_create(&id[i], NULL, hammer_thread, &h[i]);
	}
	pthread_create(&trim, NULL, hammer_trim, &h[0]);
	for (unsigned i = 0; i < threads; i++)
		pthread_join(id[i], NULL);
	atomic_store(&stop_trim, 1);
	pthread_join(trim, NULL);
	dev->ops->put(dev, &shared, 1);
	if (stats_of(dev).pages)
		atomic_fetch_add(&wrong, 1);
	return wrong;
}

#endif
