/* SPDX-License-Identifier: MIT */
/* The hmm command: which subcommand. */
#include <stdio.h>
#include <string.h>

#include "cli/cli.h"

static const struct {
	const char *name;
	int (*main)(int argc, char **argv);
	const char *does;
} commands[] = {
	{"run", hmm_run_main, "run a program on more memory than it may keep in RAM"},
	{"stat", hmm_stat_main, "ask a running one what is where"},
	{"serve", hmm_serve_main, "lend memory to programs that run elsewhere"},
	{"doctor", hmm_doctor_main, "what this machine lacks, and how to mend it"},
	{"bench", hmm_bench_main, "what it costs and gains on this machine"},
};

#define NR_COMMANDS (sizeof(commands) / sizeof(commands[0]))

static void usage(FILE *f)
{
	fputs("usage: hmm COMMAND [...]\n\n", f);
	for (unsigned i = 0; i < NR_COMMANDS; i++)
		fprintf(f, "  %-8s %s\n", commands[i].name, commands[i].does);
	fputs("\nhmm COMMAND --help tells more; man hmm, too.\n", f);
}

int main(int argc, char **argv)
{
	if (argc > 1) {
		for (unsigned i = 0; i < NR_COMMANDS; i++)
			if (!strcmp(argv[1], commands[i].name))
				return commands[i].main(argc - 1, argv + 1);
		if (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h")) {
			usage(stdout);
			return 0;
		}
		if (!strcmp(argv[1], "--version")) {
			puts("hmm " HMM_VERSION);
			return 0;
		}
		fprintf(stderr, "hmm: unknown command \"%s\"\n", argv[1]);
	}
	usage(stderr);
	return 125;
}
