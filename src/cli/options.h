/* SPDX-License-Identifier: MIT */
/* What getopt_long() has just refused, for a line about it. */
#ifndef HMM_CLI_OPTIONS_H
#define HMM_CLI_OPTIONS_H

#include <getopt.h>
#include <stdbool.h>
#include <string.h>

static inline bool options_short(const char *arg)
{
	return arg && arg[0] == '-' && arg[1] != '-' && strchr(arg + 1, optopt);
}

/*
 * The option, as it was given; @name is room for it.  Of several in one argument ("-vq") it is the one: the argument
 * that holds it is behind getopt's mark or, if there are more of them, not yet.
 */
static inline const char *options_refused(char **argv, char name[3])
{
	if (!optopt || !(options_short(argv[optind - 1]) || options_short(argv[optind])))
		return argv[optind - 1];
	name[0] = '-';
	name[1] = (char)optopt;
	name[2] = 0;
	return name;
}

#endif
