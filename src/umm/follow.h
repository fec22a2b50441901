/* SPDX-License-Identifier: MIT */
/* Where a fault is served: follow.c. */
#ifndef UMM_FOLLOW_H
#define UMM_FOLLOW_H

#include <sched.h>
#include <stdbool.h>
#include <stdint.h>

struct umm_guard;

/* Of a thread that serves faults. */
struct umm_follow {
	uint32_t tid;   /* who faulted last */
	uint32_t count; /* its faults in a row, since it was asked where it runs */
	uint32_t every; /* how many make it worth asking */
	uint32_t alone; /* how often in a row it looked again and found none */
	int cpu;        /* bound to; -1: free */
	bool humble;    /* runs only where nobody else wants to */
	uint32_t self;
	struct umm_guard *guard; /* NULL: never humble */
	cpu_set_t all;
};

/**
 * umm_guard_start() - see to it that humble threads get to run.
 * @epfd: what they sleep on.
 *
 * Returns NULL where threads cannot be humble: without the right to be anything else again; without
 * memory.
 */
struct umm_guard *umm_guard_start(int epfd);
/** umm_guard_stop() - all that followed have called umm_follow_end(). */
void umm_guard_stop(struct umm_guard *g);
/** umm_guard_cpu() - the CPU that others had better leave to a humble thread; -1: there is none. */
int umm_guard_cpu(struct umm_guard *g);

void umm_follow_init(struct umm_follow *f, struct umm_guard *g);
void umm_follow_end(struct umm_follow *f);
/** umm_follow_woken(), umm_follow_sleeps() - it has something to do; it is about to wait for something. */
void umm_follow_woken(struct umm_follow *f);
void umm_follow_sleeps(struct umm_follow *f);
/** umm_follow_turn() - both: there was something to do all along. */
void umm_follow_turn(struct umm_follow *f);
/** umm_follow_found() - how many faults there were when it looked again, without having slept. */
void umm_follow_found(struct umm_follow *f, unsigned faults);
/** umm_follow() - a fault of @tid has been served; 0: there are several. */
void umm_follow(struct umm_follow *f, uint32_t tid);
/** umm_follow_leave() - it no longer serves who it followed, or may have to wait. */
void umm_follow_leave(struct umm_follow *f);

#endif
