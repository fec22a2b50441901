/* SPDX-License-Identifier: MIT */
/*
 * Signals, blocked for a while.
 *
 * Whoever holds what a thread that serves faults may wait for blocks them: a handler
 * that touched a page would wait for the thread that it has interrupted.  So does who
 * holds what a hook takes: a handler may unmap memory.
 */
#ifndef UMM_SIGNALS_H
#define UMM_SIGNALS_H

#include <pthread.h>
#include <signal.h>

static inline void signals_block(sigset_t *old)
{
	sigset_t all;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, old);
}

static inline void signals_restore(const sigset_t *old)
{
	pthread_sigmask(SIG_SETMASK, old, NULL);
}

#endif
