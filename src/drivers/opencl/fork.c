/* SPDX-License-Identifier: MIT */
/*
 * What is on a device before a fork.
 *
 * DOC: fork
 *
 * A child gets copies of the pages that are on a device while its parent waits in
 * fork(), with all of malloc's locks held.  Where copies go through the runtime
 * it would wait for those.  So before libc takes any lock, kernels that write are
 * waited for, and what cannot be had without the runtime comes home, however long
 * it takes until there is memory for it; until the fork is over nothing is launched.  libc calls us by
 * pthread_atfork(), which knows no argument: hence the list.  A raw clone() has none of malloc's locks.
 *
 * There is no bound, because nobody could go on after it: the child's pages would wait for
 * malloc's locks, and whoever waits for the fork to be over may be whom the fork waits for.
 */
#include <errno.h>
#include <time.h>

#include "drivers/opencl/opencl.h"

#define NAP_NS 1000000l

static struct {
	pthread_mutex_t list;
	pthread_once_t once;
	struct hmm_cl *first;
} open_devices = {.list = PTHREAD_MUTEX_INITIALIZER, .once = PTHREAD_ONCE_INIT};

static void fork_prepare(void)
{
	pthread_mutex_lock(&open_devices.list);
	for (struct hmm_cl *cl = open_devices.first; cl; cl = cl->next) {
		pthread_mutex_lock(&cl->gate);
		launch_wait(cl, 0, HMM_ADDR_END);
		while (!cl->reach && hmm_migrate_to_system(cl->mm, &cl->dev, 0, HMM_ADDR_END, NULL) == -ENOMEM)
			nanosleep(&(struct timespec){.tv_nsec = NAP_NS}, NULL);
	}
}

static void fork_parent(void)
{
	for (struct hmm_cl *cl = open_devices.first; cl; cl = cl->next)
		pthread_mutex_unlock(&cl->gate);
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
