/* SPDX-License-Identifier: MIT */
#ifndef RUN_COMING_H
#define RUN_COMING_H

#include <stdbool.h>

/**
 * coming_any() - is there a program of the tree that is no agent?
 * @name:  of the supervisor's socket
 * @token: that goes with it
 *
 * Of a tree of which nobody is known any more: somebody who has been forked or
 * started, and has not signed on yet.  Or never will: who was not entered.
 * Takes a walk over all processes.
 */
bool coming_any(const char *name, const char *token);
/**
 * coming_kill() - kill the programs of a tree that nobody else can kill
 *
 * Parameters as above.  By the front, when the supervisor has died: who has an agent
 * is killed by it, but a child by a raw clone has none, and its userfaultfd went with
 * the supervisor: what was away it now finds empty.  By the supervisor, when the front
 * has died: who was not entered.
 *
 * Not found, here as above: who has written over its environment, who may not be
 * looked at, and whose first thread has ended.
 */
void coming_kill(const char *name, const char *token);

#endif
