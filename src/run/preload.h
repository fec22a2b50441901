/* SPDX-License-Identifier: MIT */
/* What the parts of the preload library share. */
#ifndef RUN_PRELOAD_H
#define RUN_PRELOAD_H

#include <signal.h>
#include <sys/uio.h>

#include "run/agent.h"

/**
 * The control block of this address space's own agent; NULL when it has none.  A
 * raw child has its parent's, and must leave it alone: what it held when it is
 * killed would be held for ever.
 */
struct umm_ctl *preload_ctl(void);
struct agent *preload_agent(void);

void preload_signals_block(sigset_t *old);
void preload_signals_restore(const sigset_t *old);

/** Ask the engine; -ENOSYS when there is nothing to ask. */
int64_t preload_call(enum umm_call_op op, uint64_t a, uint64_t b, uint64_t c);

/**
 * In a forked child: it can have no agent, for @err (-errno).  Told by a bell, which says that much by which it is: the
 * control block is its parent's.  Nobody hears it where nothing was ever managed.
 */
void preload_no_agent(int err);

#endif
