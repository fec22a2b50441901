/* SPDX-License-Identifier: MIT */
/* The clock by which waits and deadlines go. */
#ifndef UMM_CLOCK_H
#define UMM_CLOCK_H

#include <stdint.h>
#include <time.h>

/** umm_now_ns() - CLOCK_MONOTONIC, in nanoseconds. */
static inline uint64_t umm_now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

#endif
