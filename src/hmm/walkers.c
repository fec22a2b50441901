/* SPDX-License-Identifier: MIT */
/*
 * Spaces looked at side by side.
 *
 * DOC: why
 *
 * To register a mapping the kernel waits until nobody is in the middle of a
 * fault there.  Where more processes run than there are CPUs, that is one which
 * was preempted, and it goes on when its turn comes.  Who waits for it must not
 * keep the others from being registered: those that run are those that grow.
 *
 * So each space has a walker while there are fewer spaces than WALKERS_MAX, and
 * who asks (one thread, the watcher) does not wait for all of them.  A space
 * that is still walked is not asked for again.  Threads are made when there is
 * work for them, and stay.  They have the watcher's priority, which who walks gives
 * up for what may take long (budget.c).
 */
#include <errno.h>
#include <stdlib.h>

#include "hmm/internal.h"

#define WALKERS_MAX 16u

struct hmm_walkers {
	pthread_mutex_t lock; /* all of it, and walking and walk_next of each space */
	pthread_cond_t work, idle;
	pthread_t thread[WALKERS_MAX];
	unsigned nthreads;
	bool stop;

	void (*fn)(struct hmm_mm *mm);
	struct hmm_mm *first, **last; /* to be walked; each with a reference */
	unsigned left;                /* not done */
};

static void *walker_main(void *arg)
{
	struct hmm_walkers *w = arg;

	pthread_mutex_lock(&w->lock);
	for (;;) {
		struct hmm_mm *mm = w->first;

		if (!mm && w->stop)
			break;
		if (!mm) {
			pthread_cond_wait(&w->work, &w->lock);
			continue;
		}
		w->first = mm->walk_next;
		if (!w->first)
			w->last = &w->first;
		bool stop = w->stop;
		pthread_mutex_unlock(&w->lock);
		if (!stop)
			w->fn(mm);
		pthread_mutex_lock(&w->lock);
		mm->walking = false;
		if (!--w->left)
			pthread_cond_signal(&w->idle);
		pthread_mutex_unlock(&w->lock);
		umm_space_put(mm->space); /* it may be the last one */
		pthread_mutex_lock(&w->lock);
	}
	pthread_mutex_unlock(&w->lock);
	return NULL;
}

static void threads_add(struct hmm_walkers *w, unsigned want)
{
	pthread_attr_t attr;

	if (want > WALKERS_MAX)
		want = WALKERS_MAX;
	if (w->nthreads >= want)
		return;
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, UMM_THREAD_STACK);
	/* Those that cannot be had are done without. */
	while (w->nthreads < want && !pthread_create(&w->thread[w->nthreads], &attr, walker_main, w))
		w->nthreads++;
	pthread_attr_destroy(&attr);
}

static struct hmm_walkers *walkers_get(struct hmm *h, void (*fn)(struct hmm_mm *mm))
{
	struct hmm_walkers *w = h->walkers ? h->walkers : calloc(1, sizeof(*w));
	pthread_condattr_t attr;

	if (!w || h->walkers)
		return w;
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_mutex_init(&w->lock, NULL);
	pthread_cond_init(&w->work, NULL);
	pthread_cond_init(&w->idle, &attr);
	pthread_condattr_destroy(&attr);
	w->fn = fn;
	w->last = &w->first;
	h->walkers = w;
	return w;
}

void hmm_walkers_each(struct hmm *h, struct hmm_mm **list, unsigned n, void (*fn)(struct hmm_mm *mm), uint64_t wait_ns)
{
	struct hmm_walkers *w = walkers_get(h, fn);
	struct timespec ts;

	if (w)
		threads_add(w, n);
	if (!w || !w->nthreads) {
		for (unsigned i = 0; i < n; i++)
			fn(list[i]);
		return;
	}
	pthread_mutex_lock(&w->lock);
	for (unsigned i = 0; i < n; i++) {
		struct hmm_mm *mm = list[i];

		if (mm->walking)
			continue;
		mm->walking = true;
		umm_space_get(mm->space);
		mm->walk_next = NULL;
		*w->last = mm;
		w->last = &mm->walk_next;
		w->left++;
	}
	pthread_cond_broadcast(&w->work);
	hmm_deadline(&ts, wait_ns);
	while (w->left && !pthread_cond_timedwait(&w->idle, &w->lock, &ts))
		;
	pthread_mutex_unlock(&w->lock);
}

void hmm_walkers_stop(struct hmm *h)
{
	struct hmm_walkers *w = h->walkers;

	if (!w)
		return;
	pthread_mutex_lock(&w->lock);
	w->stop = true;
	pthread_cond_broadcast(&w->work);
	pthread_mutex_unlock(&w->lock);
	for (unsigned i = 0; i < w->nthreads; i++)
		pthread_join(w->thread[i], NULL);
	pthread_cond_destroy(&w->idle);
	pthread_cond_destroy(&w->work);
	pthread_mutex_destroy(&w->lock);
	free(w);
	h->walkers = NULL;
}
