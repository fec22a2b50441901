/* SPDX-License-Identifier: MIT */
/*
 * What is left to the agent once it has signed on.
 *
 * It keeps the rights that the program had at its start, and its stack lies in
 * memory that the program can write: a program that gives up its rights must
 * not get them back by writing there.  So the agent gives up all that its work
 * does not need: system calls by a filter of its own (which the program, being
 * another thread group, does not share), capabilities but those to end the
 * program, and the way to new ones.  No libc.
 */
#ifndef RUN_CONFINE_H
#define RUN_CONFINE_H

/**
 * confine_try() - whether the agent would be let do its work, and confine itself
 * @page: memory of its own, aligned
 *
 * By calls that change nothing, but that there is no way to new privileges any more.  A filter that the program has put on itself, or was
 * started with, is the agent's, too; who is refused something must know before anybody
 * counts on it.
 *
 * 0 or -errno; then the agent must not sign on.
 */
int confine_try(void *page);
/** 0 or -errno; then the agent must not go on. */
int confine(void);

#endif
