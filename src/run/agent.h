/* SPDX-License-Identifier: MIT */
/* The agent: our task in the program's address space.  No libc. */
#ifndef RUN_AGENT_H
#define RUN_AGENT_H

#include <stdbool.h>

#include "run/wire.h"

enum agent_state {
	AGENT_STARTING = 0,
	AGENT_READY,
	AGENT_REFUSED, /* no supervisor, or it would not have us: the program runs without */
};

/* Filled by who starts it; lives as long as the address space. */
struct agent {
	struct arena arena;
	char name[WIRE_NAME_MAX]; /* of the supervisor's socket, abstract */
	char token[WIRE_TOKEN];
	int32_t pid;
	uint32_t parent; /* space that was forked, or 0 */
	_Atomic uint32_t state;
	_Atomic int32_t tid;   /* of the agent; -errno when it could not be made */
	_Atomic int32_t alive; /* the kernel clears it when the agent ends, however */
	int err;               /* why it was refused */
};

/** agent_start() - start it and wait until it is ready or refused.  All signals blocked by the caller.  0 or -errno. */
int agent_start(struct agent *a);

#endif
