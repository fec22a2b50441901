/* SPDX-License-Identifier: MIT */
/*
 * What the supervisor has to say to the user, and hmm serve, said by a thread of its
 * own: who speaks may hold locks that the reader of its standard error waits for, or
 * be what others wait for, and nobody may be reading at all.
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
	unsigned n, dropped;
	bool busy; /* one is being written */
	const char *who;
};

/** lines_start() - for @who, "hmm run".  0 or -errno. */
int lines_start(struct lines *l, const char *who);
/** lines_say() - have "@who: " and the line, without newline, written to standard error.  Waits for no reader. */
void lines_say(struct lines *l, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/** lines_flush() - wait until all that was said has been written. */
void lines_flush(struct lines *l);
/** lines_end() - the same, but gives up when standard error takes nothing for a second. */
void lines_end(struct lines *l);

#endif
