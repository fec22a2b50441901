/* SPDX-License-Identifier: MIT */
/* The figures of a run, as text. */
#ifndef RUN_STATS_H
#define RUN_STATS_H

#include <stdio.h>

struct hmm;

/** One JSON object with a newline; field names are documented in doc/stats.md and stay. */
void stats_json(struct hmm *h, FILE *f);
/** The line of -v, without newline. */
void stats_line(struct hmm *h, char *buf, size_t len);

#endif
