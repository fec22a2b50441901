/* SPDX-License-Identifier: MIT */
/* What a space keeps of its notifiers; see notifier.c. */
#ifndef UMM_NOTIFIER_INTERNAL_H
#define UMM_NOTIFIER_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>

#include "umm.h"
#include "umm/itree.h"

struct umm_notifier_call;

struct umm_notifiers {
	pthread_mutex_t lock;   /* all below; taken last, with signals blocked, never held across a callback */
	pthread_cond_t changed; /* a callback that is being waited for has returned */
	struct umm_itree tree;
	uint64_t changes; /* of the tree, ever */
	/* Odd while an invalidation that found somebody runs; changed under the lock, read also without it. */
	_Atomic uint64_t seq;
	_Atomic uint32_t sleepers;       /* on seq's lower half */
	uint64_t active;                 /* invalidations begun and not ended */
	struct umm_notifier_call *calls; /* callbacks that run now */
	unsigned removing;               /* threads that wait for a callback to return */
};

void umm_notifiers_init(struct umm_notifiers *nots);

/** umm_notifiers_release() - @space ends: RELEASE to all, then each gets its release(), and none is left. */
void umm_notifiers_release(struct umm_space *space);

/** umm_notifiers_destroy() - the same, unless it was done, and what they were kept in goes. */
void umm_notifiers_destroy(struct umm_space *space);

/** umm_space_notifiers() - those of @space. */
struct umm_notifiers *umm_space_notifiers(struct umm_space *space);

#endif
