/* SPDX-License-Identifier: MIT */
/*
 * umm_hooks: hooks around the calls of libc that change an address space.
 *
 * DOC: what they add
 *
 * The kernel tells of a change when it has been made, or is being made, and of
 * mprotect() not at all.  Hooks tell before: callbacks of notifiers have returned
 * when the call begins, whether the range is watched or not.  doc/coverage.md has
 * the table, call by call.
 *
 * They are a library of its own, libhmm-hooks, since they stand in for libc's
 * names: munmap, mmap, mremap, remap_file_pages, mprotect, pkey_mprotect, madvise,
 * process_madvise, brk, sbrk, shmat, shmdt, and fork by pthread_atfork().  A program
 * links it before libc, or has it preloaded:
 *
 *	cc program.c $(pkg-config --cflags --libs libhmm-hooks libhmm)
 *	LD_PRELOAD=libhmm-hooks.so program
 *
 * Either way it says once whose notifiers are told, umm_hooks_set().  What is to run
 * with and without refers to that weakly, and looks whether it is there:
 *
 *	#pragma weak umm_hooks_set
 *	if (umm_hooks_set)
 *		umm_hooks_set(space);
 *
 * No code is patched: what libc calls inside itself (malloc's munmap) is not seen,
 * nor are raw system calls.  Who has hooks of his own calls umm_hook_begin() and
 * umm_hook_end() of umm(7) around them instead.
 */
#ifndef UMM_HOOKS_H
#define UMM_HOOKS_H

#include "umm.h"

#ifdef __cplusplus
extern "C" {
#endif

#pragma GCC visibility push(default)

/**
 * umm_hooks_set() - from here on the hooks tell the notifiers of a space
 * @space: the caller's own, from umm_space_open_self(); NULL, before it is closed: nobody's.
 *
 * A forked child's hooks tell nobody until it sets a space of its own.
 *
 * Context: No hooked call may run in another thread.  Not in callbacks.
 * Return: 0, or
 *	-ENOMEM	no memory
 */
int umm_hooks_set(struct umm_space *space);

#pragma GCC visibility pop

#ifdef __cplusplus
}
#endif
#endif
