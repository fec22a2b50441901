/* SPDX-License-Identifier: MIT */
/* hmm stat: ask the supervisor of a running tree. */
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "cli/cli.h"
#include "run/wire.h"

/* The abstract socket "hmm/PID/..." of a front; 0 or -ENOENT. */
static int socket_of(int pid, char *name, size_t len)
{
	FILE *f = fopen("/proc/net/unix", "r");
	char line[512], want[32];
	int rc = -ENOENT;

	snprintf(want, sizeof(want), "@hmm/%d/", pid);
	while (f && rc && fgets(line, sizeof(line), f)) {
		char *at = strstr(line, want);

		if (!at)
			continue;
		at[strcspn(at, "\n")] = 0;
		if (strlen(at + 1) >= len)
			continue; /* not one of ours */
		strcpy(name, at + 1);
		rc = 0;
	}
	if (f)
		fclose(f);
	return rc;
}

static int parent_of(int pid)
{
	char path[64], buf[512];
	int ppid = 0;

	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	FILE *f = fopen(path, "r");
	if (!f)
		return 0;
	size_t n = fread(buf, 1, sizeof(buf) - 1, f);
	fclose(f);
	buf[n] = 0;
	char *at = strrchr(buf, ')'); /* the name may hold anything */
	if (!at || sscanf(at + 1, " %*c %d", &ppid) != 1)
		return 0;
	return ppid;
}

static int ask(int pid, uint32_t what, char **answer)
{
	struct sockaddr_un sa = {.sun_family = AF_UNIX};
	struct wire_stat q = {.magic = WIRE_STAT_MAGIC, .what = what};
	char name[WIRE_NAME_MAX];
	size_t room = 1 << 16, used = 0;
	int rc;

	/* The front, the program, or any descendant of it. */
	while ((rc = socket_of(pid, name, sizeof(name))) && pid > 1)
		pid = parent_of(pid);
	if (rc)
		return rc;
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	memcpy(sa.sun_path + 1, name, strlen(name));
	if (connect(fd, (struct sockaddr *)&sa, (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + strlen(name))) ||
	    send(fd, &q, sizeof(q), MSG_NOSIGNAL) < 0) {
		rc = -errno;
		close(fd);
		return rc;
	}
	*answer = calloc(1, room + 1);
	while (*answer) {
		ssize_t n = recv(fd, *answer + used, room - used, 0);

		if (n <= 0)
			break;
		used += (size_t)n;
	}
	close(fd);
	return used ? 0 : -EPERM;
}

/* The number of a field of ours: we wrote the text, its form is known. */
static double field(const char *json, const char *name)
{
	char want[64];

	snprintf(want, sizeof(want), "\"%s\": ", name);
	const char *at = strstr(json, want);
	return at ? atof(at + strlen(want)) : 0;
}

static void table(const char *json)
{
	double mib = 1 << 20;

	printf("budget    %10.1f MiB\n", field(json, "budget_bytes") / mib);
	printf("total     %10.1f MiB  (peak %.1f)\n", field(json, "total_bytes") / mib, field(json, "peak_bytes") / mib);
	printf("resident  %10.1f MiB\n", field(json, "resident_bytes") / mib);
	printf("store     %10.1f MiB  of RAM\n", field(json, "store_ram_bytes") / mib);
	printf("away      %10.1f MiB  (%.0f pages, ratio %.2f)\n", field(json, "away_bytes") / mib,
	       field(json, "away_pages"), field(json, "ratio"));
	printf("moved     %10.0f pages out, %.0f in, %.0f faults\n", field(json, "pages_out"), field(json, "pages_in"),
	       field(json, "faults"));
}

int hmm_stat_main(int argc, char **argv)
{
	static const struct option longs[] = {
		{"json", no_argument, NULL, 'j'}, {"restore", no_argument, NULL, 'r'}, {"help", no_argument, NULL, 'h'}, {0}};
	static const char usage[] = "usage: hmm stat PID [--json] [--restore]\n";
	bool json = false;
	uint32_t what = WIRE_STAT_JSON;
	char *answer = NULL, *end;
	int c, rc;

	optind = 0;
	while ((c = getopt_long(argc, argv, "h", longs, NULL)) != -1) {
		if (c == 'j') {
			json = true;
		} else if (c == 'r') {
			what = WIRE_STAT_RESTORE;
		} else {
			fputs(usage, c == 'h' ? stdout : stderr);
			return c == 'h' ? 0 : 125;
		}
	}
	long pid = optind + 1 == argc ? strtol(argv[optind], &end, 10) : 0;
	if (pid <= 0 || *end) {
		fputs(usage, stderr);
		return 125;
	}
	rc = ask((int)pid, what, &answer);
	if (rc) {
		fprintf(stderr, "hmm stat: %ld: %s\n", pid,
			rc == -ENOENT ? "not a process of hmm run" : rc == -EPERM ? "not yours to ask" : strerror(-rc));
		free(answer);
		return 1;
	}
	if (json)
		fputs(answer, stdout);
	else
		table(answer);
	free(answer);
	return 0;
}
