/* SPDX-License-Identifier: MIT */
/*
 * What is on a device before a fork.
 *
 * DOC: fork
 *
 * A child gets copies of the pages that are on a device while its parent waits in
 * fork(), with all of malloc's locks held.  Where copies go through the runtime
 * it would wait for those.  So before libc takes any lock, kernels that write are
 * waited for, and what cannot be had without the runtime comes home; until the fork
 * is over nothing is launched.  libc calls us by pthread_atfork(), which knows no
 * argument: hence the list.  A raw clone() has none of malloc's locks.
 *
 * There may be no memory for what comes home, for longer than anybody should wait, or
 * a page that cannot be placed where it belongs.  Then the fork goes on, and who wants a
 * page of the device waits until it is over (fork_is_over()): the one that fills the
 * child, too, since the one who forks runs on as soon as its event has been read.  But
 * it may be stopped by somebody else, who waits for us: that is waited for within
 * bounds, and the page is then one that the device cannot give.
 */
#include <errno.h>
#include <time.h>

#include "drivers/opencl/opencl.h"

#define NAP_NS 1000000l
#define HOME_TRIES 60u   /* each of a thousand that the engine makes: seconds */
#define OVER_NAPS 10000u /* ten seconds: nobody is stopped for longer in the middle of a fork */

static struct {
	pthread_mutex_t list;
	pthread_once_t once;
	struct hmm_cl *first;
} open_devices = {.list = PTHREAD_MUTEX_INITIALIZER, .once = PTHREAD_ONCE_INIT};

static void nap(void)
{
	nanosleep(&(struct timespec){.tv_nsec = NAP_NS}, NULL);
}

static int come_home(struct hmm_cl *cl)
{
	unsigned tries = 0;
	int rc;

	while ((rc = hmm_migrate_to_system(cl->mm, &cl->dev, 0, HMM_ADDR_END, NULL)) == -ENOMEM && ++tries < HOME_TRIES)
		nap();
	return rc;
}

bool fork_is_over(struct hmm_cl *cl)
{
	sigset_t old;
	bool over, vain;

	for (unsigned naps = 0;; naps++) {
		cl_lock(cl, &old);
		over = !cl->left;
		/* Once a fork for each who waits: there may be many pages. */
		vain = !over && (naps == OVER_NAPS || (cl->in_vain && pthread_equal(cl->who_in_vain, pthread_self())));
		if (vain) {
			cl->in_vain = true;
			cl->who_in_vain = pthread_self();
		}
		cl_unlock(cl, &old);
		if (over || vain)
			return over;
		nap();
	}
}

static void set_left(struct hmm_cl *cl, bool left)
{
	sigset_t old;

	cl_lock(cl, &old);
	cl->left = left;
	cl->in_vain = false;
	cl_unlock(cl, &old);
}

static void fork_prepare(void)
{
	pthread_mutex_lock(&open_devices.list);
	for (struct hmm_cl *cl = open_devices.first; cl; cl = cl->next) {
		pthread_mutex_lock(&cl->gate);
		launch_wait(cl, 0, HMM_ADDR_END);
		if (!cl->reach && come_home(cl))
			set_left(cl, true);
	}
}

static void fork_parent(void)
{
	for (struct hmm_cl *cl = open_devices.first; cl; cl = cl->next) {
		set_left(cl, false);
		pthread_mutex_unlock(&cl->gate);
	}
	pthread_mutex_unlock(&open_devices.list);
}

/* The devices are not here; nor is their memory (umm_alloc()). */
static void fork_child(void)
{
	open_devices.first = NULL;
	pthread_mutex_init(&open_devices.list, NULL);
}

static void fork_begin(void)
{
	pthread_atfork(fork_prepare, fork_parent, fork_child);
}

void fork_add(struct hmm_cl *cl)
{
	pthread_once(&open_devices.once, fork_begin);
	pthread_mutex_lock(&open_devices.list);
	cl->next = open_devices.first;
	open_devices.first = cl;
	pthread_mutex_unlock(&open_devices.list);
}

void fork_del(struct hmm_cl *cl)
{
	struct hmm_cl **p;

	pthread_mutex_lock(&open_devices.list);
	for (p = &open_devices.first; *p && *p != cl; p = &(*p)->next)
		;
	if (*p)
		*p = cl->next;
	pthread_mutex_unlock(&open_devices.list);
}
