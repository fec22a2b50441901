/* SPDX-License-Identifier: MIT */
/* hmm run: what its front and its supervisor share. */
#ifndef RUN_RUN_H
#define RUN_RUN_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "run/wire.h"

struct run_options {
	uint64_t budget; /* bytes */
	const char *chain;
	const char *stats_path; /* NULL: none */
	int stats_fd;           /* what it is; -1: to be opened by its name */
	bool verbose;
	bool lend; /* userfaultfds to programs whose user may make none */
};

/* The front's words. */
#define RUN_PROGRAM_ENDED 'x'
#define RUN_PROGRAM_FAILED 'f'  /* it could not even be started */
#define RUN_PROGRAM_STOPPED 's' /* and so the front stops */
#define RUN_PROGRAM_GOES_ON 'c'

struct run_word {
	char what;
	pid_t program;
};

/* The answer. */
#define RUN_ALL_GONE 'g'    /* nothing is left to serve: the supervisor ends */
#define RUN_OTHERS_LIVE 'l' /* descendants live: it stays for them */

/* What the supervisor tells the front over their socket. */
struct run_ready {
	int rc; /* 0, or -errno; then the line has been said */
	char name[WIRE_NAME_MAX];
	char token[WIRE_TOKEN + 1];
};

/** run_keep_fds() - close all but the standard streams, @a and @b, which are none of those.  @b: -1 is none */
void run_keep_fds(int a, int b);

/**
 * supervisor_main() - the engine's process; does not return.
 * @front_fd: socket to the front: run_ready goes out; a word in says that the program has stopped, goes on,
 *            or has ended, the byte back after that that figures are written.
 */
void supervisor_main(const struct run_options *opt, int front_fd, pid_t front) __attribute__((noreturn));

#endif
