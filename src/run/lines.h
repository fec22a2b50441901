/* SPDX-License-Identifier: MIT */
/*
 * What the supervisor has to say to the user, said by a thread of its own: who
 * speaks may hold locks that the reader of its standard error waits for.
 */
#ifndef RUN_LINES_H
#define RUN_LINES_H

#include <pthread.h>
#include <stdbool.h>

struct line;

struct lines {
	pthread_mutex_t lock;
	pthread_cond_t moved; /* something has come, or everything has gone */
	struct line *first, **last;
	unsigned n;
	bool busy; /* one is being written */
};

/** lines_start() - 0 or -errno. */
int lines_start(struct lines *l);
/** lines_say() - have "hmm run: " and the line, without newline, written to standard error.  Waits for no reader. */
void lines_say(struct lines *l, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/** lines_flush() - wait until all that was said has been written. */
void lines_flush(struct lines *l);

#endif
