/* SPDX-License-Identifier: MIT */
/*
 * Included first in each file of a build that counts lines: who ends by _exit(), as all forked processes of the tests,
 * the supervisor and the cases of fault injection do, has its counts written too.  No header is included: some files
 * must say first which variants of calls they want.
 */
#ifndef HMM_TEST_COVERAGE_H
#define HMM_TEST_COVERAGE_H

void __gcov_dump(void);
void _Exit(int status) __attribute__((noreturn));

/* <unistd.h> declares it once more. */
static inline __attribute__((noreturn)) void hmm_counted_exit(int status)
{
	__gcov_dump();
	_Exit(status);
}

#define _exit hmm_counted_exit

#endif
