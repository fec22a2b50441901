/* SPDX-License-Identifier: MIT */
/* hmm serve: lend memory to programs under hmm run on other machines. */
#include <errno.h>
#include <getopt.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>

#include "cli/cli.h"
#include "cli/ends.h"
#include "cli/options.h"
#include "drivers/ofi/server.h"
#include "hmm/size.h"
#include "run/lines.h"

#define EXIT_OURS 125 /* as hmm run */

static const char usage[] = "usage: hmm serve --listen ofi://HOST:PORT --memory SIZE [--key FILE]\n";

static int fail(const char *what, const char *why)
{
	fprintf(stderr, "hmm serve: %s%s%s\n", what, why ? ": " : "", why ? why : "");
	return EXIT_OURS;
}

/* The listener and all connections say something now and then, and standard error may be a pipe that nobody reads. */
static void say(void *priv, const char *line)
{
	lines_say(priv, "%s", line);
}

int hmm_serve_main(int argc, char **argv)
{
	static const struct option longs[] = {
		{"listen", required_argument, NULL, 'l'},
		{"memory", required_argument, NULL, 'm'},
		{"key", required_argument, NULL, 'k'},
		{"help", no_argument, NULL, 'h'},
		{0},
	};
	struct tier_server_options opt = {.say = say};
	struct tier_server *srv;
	struct lines *lines; /* its thread's, which does not end */
	struct rlimit nofile;
	char err[400];
	static const int sigs[] = {SIGINT, SIGTERM, SIGHUP, 0};
	sigset_t ends, blocked;
	int c, sig, rc;
	char name[3];

	optind = 0;
	opterr = 0;
	while ((c = getopt_long(argc, argv, "+h", longs, NULL)) != -1) {
		switch (c) {
		case 'l':
			opt.listen = optarg;
			break;
		case 'm':
			if (hmm_size_parse(optarg, &opt.memory))
				return fail(optarg, "not a size; --memory takes bytes, K, M, G or T");
			break;
		case 'k':
			opt.key_file = optarg;
			break;
		case 'h':
			fputs(usage, stdout);
			return 0;
		default:
			return fail(options_refused(argv, name),
				    "no such option, or its value is missing (see hmm serve --help)");
		}
	}
	if (optind < argc || !opt.listen || !opt.memory) {
		fputs(usage, stderr);
		return EXIT_OURS;
	}
	/* A few descriptors a connection: as many as we may have. */
	if (!getrlimit(RLIMIT_NOFILE, &nofile)) {
		nofile.rlim_cur = nofile.rlim_max;
		setrlimit(RLIMIT_NOFILE, &nofile);
	}
	/* The keys are in our memory. */
	prctl(PR_SET_DUMPABLE, 0);
	signal(SIGPIPE, SIG_IGN);
	ends_not_ignored(&ends, sigs);
	/* What is ignored, too: providers of libfabric set handlers of their own, by which they end the process. */
	sigemptyset(&blocked);
	for (const int *s = sigs; *s; s++)
		sigaddset(&blocked, *s);
	pthread_sigmask(SIG_BLOCK, &blocked, NULL);
	lines = calloc(1, sizeof(*lines));
	rc = lines ? lines_start(lines, "hmm serve") : -ENOMEM;
	if (rc)
		return fail("cannot start a thread", strerror(-rc));
	opt.priv = lines;
	if (tier_server_start(&opt, &srv, err, sizeof(err)))
		return fail(err, NULL);
	/* It serves all the same: who knows the address need not read it. */
	if (printf("hmm serve: listening on ofi://%s\n", tier_server_addr(srv)) < 0 || fflush(stdout))
		lines_say(lines, "writing: %s; listening on ofi://%s", strerror(errno), tier_server_addr(srv));
	sigwait(&ends, &sig);
	tier_server_stop(srv);
	lines_end(lines);
	return 0;
}
