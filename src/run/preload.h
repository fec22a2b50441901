/* SPDX-License-Identifier: MIT */
/* What the parts of the preload library share. */
#ifndef RUN_PRELOAD_H
#define RUN_PRELOAD_H

#include "run/agent.h"

/** This process's agent; NULL when it has none. */
struct agent *preload_agent(void);

#endif
