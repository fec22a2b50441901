/* SPDX-License-Identifier: MIT */
/* The signals by which a command is told to end. */
#ifndef HMM_CLI_ENDS_H
#define HMM_CLI_ENDS_H

#include <signal.h>

/*
 * Of @sigs, up to a 0, those that are not ignored.  For whoever blocks signals and waits for them: blocked they are
 * queued also where who started us has them ignored (nohup).
 */
static inline void ends_not_ignored(sigset_t *set, const int *sigs)
{
	struct sigaction is;

	sigemptyset(set);
	for (; *sigs; sigs++)
		if (!sigaction(*sigs, NULL, &is) && is.sa_handler != SIG_IGN)
			sigaddset(set, *sigs);
}

#endif
