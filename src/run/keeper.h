/* SPDX-License-Identifier: MIT */
#ifndef RUN_KEEPER_H
#define RUN_KEEPER_H

#include <stdbool.h>
#include <sys/types.h>

/**
 * keeper_start() - have the caller's userfaultfds kept when it is killed
 * @name:  of the supervisor's socket
 * @token: that goes with it
 *
 * By a process that has one thread, which may have more afterwards.  All signals
 * are blocked.
 *
 * Returns the keeper's pid, a child's, or -errno.
 */
pid_t keeper_start(const char *name, const char *token);
/** keeper_end() - before an orderly end: nothing of the caller's is open any longer than the caller itself. */
void keeper_end(pid_t keeper);
/** keeper_is_userfaultfd() - is @fd one, and not something else that can be read and answers an ioctl? */
bool keeper_is_userfaultfd(int fd);

#endif
