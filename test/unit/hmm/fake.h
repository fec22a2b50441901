/* SPDX-License-Identifier: MIT */
/*
 * A device that does what a test tells it, and counts.
 *
 * Every reference to a handle is counted; to let go of one that nobody holds
 * ends the program, and a test asks in the end whether any is left.
 */
#ifndef HMM_TEST_FAKE_H
#define HMM_TEST_FAKE_H

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "hmm.h"

#define FAKE_PAGES 8192u

struct fake {
	struct hmm_device dev;
	struct hmm_device_ops ops;
	pthread_mutex_t lock;
	pthread_cond_t moved;
	unsigned refs[FAKE_PAGES];
	char (*page)[HMM_PAGE_SIZE]; /* NULL: contents are not kept */
	uint64_t pages, refs_total;
	unsigned next;

	/* What it is told. */
	unsigned take_every; /* 1: every page, 2: every second one ...; 0: none */
	int fail_in;         /* copy_in gives this */
	int fail_out;        /* copy_out gives this for the pages of fail_from and after, with rubbish in them */
	unsigned fail_from;
	bool block_in, block_out, block_same; /* stop in there until it is cleared */
	bool forgets;                         /* same() is never so */
	bool full;                            /* it says so */
	unsigned capacity;                    /* it is; 0: never */

	/* What it has seen. */
	unsigned in_calls, out_calls, in_blocked, out_blocked, same_blocked;
	uint64_t copied_in, copied_out;
};

static inline struct fake *to_fake(struct hmm_device *dev)
{
	return (struct fake *)dev;
}

/* Lock held. */
static inline void fake_stop_here(struct fake *f, const bool *while_set, unsigned *blocked)
{
	++*blocked;
	pthread_cond_broadcast(&f->moved);
	while (*while_set)
		pthread_cond_wait(&f->moved, &f->lock);
	--*blocked;
}

static inline hmm_handle_t fake_new(struct fake *f)
{
	for (unsigned i = 0; i < FAKE_PAGES && (!f->capacity || f->pages < f->capacity); i++) {
		unsigned h = (f->next + i) % FAKE_PAGES;

		if (f->refs[h])
			continue;
		f->next = h + 1;
		f->refs[h] = 1;
		f->refs_total++;
		f->pages++;
		return h;
	}
	return HMM_HANDLE_NONE;
}

static inline int fake_copy_in(struct hmm_device *dev, const void *const src[], hmm_handle_t handle[], unsigned n)
{
	struct fake *f = to_fake(dev);
	int taken = 0;

	pthread_mutex_lock(&f->lock);
	f->in_calls++;
	if (f->block_in)
		fake_stop_here(f, &f->block_in, &f->in_blocked);
	for (unsigned i = 0; i < n; i++) {
		handle[i] = HMM_HANDLE_NONE;
		if (f->fail_in || !f->take_every || i % f->take_every)
			continue;
		handle[i] = fake_new(f);
		if (handle[i] == HMM_HANDLE_NONE)
			continue;
		if (f->page)
			memcpy(f->page[handle[i]], src[i], HMM_PAGE_SIZE);
		f->copied_in++;
		taken++;
	}
	if (f->fail_in)
		taken = f->fail_in;
	pthread_mutex_unlock(&f->lock);
	return taken;
}

static inline int fake_copy_out(struct hmm_device *dev, const hmm_handle_t handle[], void *const dst[], int status[],
				unsigned n)
{
	struct fake *f = to_fake(dev);
	int rc = 0;

	pthread_mutex_lock(&f->lock);
	f->out_calls++;
	if (f->block_out && (f->ops.caps & HMM_DEV_TELLS))
		hmm_device_sleeps();
	if (f->block_out)
		fake_stop_here(f, &f->block_out, &f->out_blocked);
	for (unsigned i = 0; i < n; i++) {
		if (!f->refs[handle[i]]) {
			fprintf(stderr, "a page is read that nobody holds\n");
			abort();
		}
		status[i] = 0;
		if (f->fail_out && f->copied_out >= f->fail_from) {
			memset(dst[i], 0xdb, HMM_PAGE_SIZE);
			status[i] = f->fail_out;
			rc = rc ? rc : f->fail_out;
		} else if (f->page) {
			memcpy(dst[i], f->page[handle[i]], HMM_PAGE_SIZE);
		}
		f->copied_out++;
	}
	pthread_mutex_unlock(&f->lock);
	return rc;
}

/* Memory that is kept by the page only: with contents. */
static inline bool fake_same(struct hmm_device *dev, hmm_handle_t handle, const void *page)
{
	struct fake *f = to_fake(dev);

	pthread_mutex_lock(&f->lock);
	if (f->block_same)
		fake_stop_here(f, &f->block_same, &f->same_blocked);
	if (!f->refs[handle]) {
		fprintf(stderr, "a page is compared that nobody holds\n");
		abort();
	}
	bool same = !f->forgets && f->page && !memcmp(f->page[handle], page, HMM_PAGE_SIZE);
	pthread_mutex_unlock(&f->lock);
	return same;
}

static inline void fake_get(struct hmm_device *dev, const hmm_handle_t handle[], unsigned n)
{
	struct fake *f = to_fake(dev);

	pthread_mutex_lock(&f->lock);
	for (unsigned i = 0; i < n; i++) {
		if (!f->refs[handle[i]]) {
			fprintf(stderr, "a reference is taken to a page that nobody holds\n");
			abort();
		}
		f->refs[handle[i]]++;
		f->refs_total++;
	}
	pthread_mutex_unlock(&f->lock);
}

static inline void fake_put(struct hmm_device *dev, const hmm_handle_t handle[], unsigned n)
{
	struct fake *f = to_fake(dev);

	pthread_mutex_lock(&f->lock);
	for (unsigned i = 0; i < n; i++) {
		if (handle[i] >= FAKE_PAGES || !f->refs[handle[i]]) {
			fprintf(stderr, "a page is let go that nobody holds\n");
			abort();
		}
		f->refs_total--;
		if (--f->refs[handle[i]])
			continue;
		f->pages--;
		if (f->page) /* whoever uses it nevertheless shall be seen to */
			memset(f->page[handle[i]], 0xdd, HMM_PAGE_SIZE);
	}
	pthread_cond_broadcast(&f->moved);
	pthread_mutex_unlock(&f->lock);
}

static inline void fake_stats(struct hmm_device *dev, struct hmm_device_stats *st)
{
	struct fake *f = to_fake(dev);

	*st = (struct hmm_device_stats){.pages = f->pages,
					.bytes_stored = f->pages * HMM_PAGE_SIZE,
					.bytes_ram = f->pages * HMM_PAGE_SIZE,
					.bytes_capacity = f->full ? f->pages * HMM_PAGE_SIZE : UINT64_MAX};
}

/* The test frees it: it asks first what is left. */
static inline void fake_close(struct hmm_device *dev)
{
}

static inline struct fake *fake_create(bool contents)
{
	struct fake *f = calloc(1, sizeof(*f));

	if (!f)
		abort();
	pthread_mutex_init(&f->lock, NULL);
	pthread_cond_init(&f->moved, NULL);
	f->ops = (struct hmm_device_ops){
		.name = "fake",
		.caps = HMM_DEV_MEMORY | HMM_DEV_RAM | HMM_DEV_MAYBLOCK,
		.copy_in = fake_copy_in,
		.copy_out = fake_copy_out,
		.same = fake_same,
		.get = fake_get,
		.put = fake_put,
		.stats = fake_stats,
		.close = fake_close,
	};
	f->dev.ops = &f->ops;
	snprintf(f->dev.spec, sizeof(f->dev.spec), "fake");
	f->take_every = 1;
	f->page = contents ? calloc(FAKE_PAGES, HMM_PAGE_SIZE) : NULL;
	return f;
}

static inline void fake_free(struct fake *f)
{
	pthread_cond_destroy(&f->moved);
	pthread_mutex_destroy(&f->lock);
	free(f->page);
	free(f);
}

/* Sleep until somebody is stopped in copy_in (copy_out). */
static inline void fake_await(struct fake *f, const unsigned *blocked)
{
	pthread_mutex_lock(&f->lock);
	while (!*blocked)
		pthread_cond_wait(&f->moved, &f->lock);
	pthread_mutex_unlock(&f->lock);
}

static inline unsigned fake_get_count(struct fake *f, const unsigned *count)
{
	pthread_mutex_lock(&f->lock);
	unsigned n = *count;
	pthread_mutex_unlock(&f->lock);
	return n;
}

/* Who brought a page back lets its references go a moment after the page can be seen. */
static inline void fake_comes_to_hold(struct fake *f, uint64_t pages)
{
	pthread_mutex_lock(&f->lock);
	while (f->pages != pages || f->refs_total != pages)
		pthread_cond_wait(&f->moved, &f->lock);
	pthread_mutex_unlock(&f->lock);
}

static inline void fake_set(struct fake *f, unsigned *knob, unsigned value)
{
	pthread_mutex_lock(&f->lock);
	*knob = value;
	pthread_mutex_unlock(&f->lock);
}

static inline void fake_fail_in(struct fake *f, int rc)
{
	pthread_mutex_lock(&f->lock);
	f->fail_in = rc;
	pthread_mutex_unlock(&f->lock);
}

static inline void fake_fail_out(struct fake *f, int rc)
{
	pthread_mutex_lock(&f->lock);
	f->fail_out = rc;
	pthread_mutex_unlock(&f->lock);
}

static inline void fake_tell(struct fake *f, bool *flag, bool value)
{
	pthread_mutex_lock(&f->lock);
	*flag = value;
	pthread_cond_broadcast(&f->moved);
	pthread_mutex_unlock(&f->lock);
}

#endif
