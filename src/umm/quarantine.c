/* SPDX-License-Identifier: MIT */
/*
 * Ranges whose contents are about to be dropped.
 *
 * DOC: quarantine
 *
 * The event of MADV_DONTNEED, MADV_FREE and MADV_REMOVE is read *before* the
 * caller drops the pages.  Moved out in between, they would come back later
 * with the old contents; mapped for a device, they would be stale a moment
 * after.  So for a grace period nothing in the range is parked and a range
 * fault says -EBUSY.  A fault of the program itself is served as ever: what it
 * finds is absent already, or will be.
 */
#include "umm/internal.h"

#include <time.h>

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000ull + (uint64_t)ts.tv_nsec;
}

void umm_quarantine_add(struct umm_space *s, uint64_t start, uint64_t end)
{
	struct umm_quarantine *q = &s->quarantine;
	uint64_t now = now_ns();
	unsigned n = 0;

	pthread_mutex_lock(&q->lock);
	for (unsigned i = 0; i < q->n; i++) {
		if (q->range[i].until_ns <= now)
			continue;
		if (start <= q->range[i].end && end >= q->range[i].start) {
			/* One that touches the new one becomes part of it. */
			if (q->range[i].start < start)
				start = q->range[i].start;
			if (q->range[i].end > end)
				end = q->range[i].end;
			continue;
		}
		q->range[n++] = q->range[i];
	}
	if (n == UMM_QUARANTINES) {
		/* Too many to tell apart: one that spans the last. */
		n--;
		if (q->range[n].start < start)
			start = q->range[n].start;
		if (q->range[n].end > end)
			end = q->range[n].end;
	}
	q->range[n].start = start;
	q->range[n].end = end;
	q->range[n].until_ns = now + UMM_QUARANTINE_NS;
	atomic_store(&q->n, n + 1);
	pthread_mutex_unlock(&q->lock);
}

bool umm_quarantined(struct umm_space *s, uint64_t start, uint64_t end)
{
	struct umm_quarantine *q = &s->quarantine;
	bool found = false;

	if (!atomic_load(&q->n))
		return false;
	pthread_mutex_lock(&q->lock);
	uint64_t now = now_ns();
	for (unsigned i = 0; i < q->n && !found; i++)
		found = q->range[i].until_ns > now && start < q->range[i].end && end > q->range[i].start;
	pthread_mutex_unlock(&q->lock);
	return found;
}
