/* SPDX-License-Identifier: MIT */
/* hmm stat: ask the supervisor of a running tree. */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "cli/cli.h"
#include "cli/options.h"
#include "run/wire.h"

#define BUSY_TRIES 500u
#define BUSY_NS 2000000l

#define ACCEPTS 0x10000u /* in the flags of /proc/net/unix: somebody listens */
#define PACKET 65536u    /* more than an answer is sent in at a time */

/*
 * The next abstract socket "hmm/PID/..." that somebody listens on, of front
 * @pid, or of any (0).  Connections to it have the same name.  0 or -ENOENT.
 */
static int socket_next(FILE *f, int pid, char *name, size_t len)
{
	char line[512], want[32] = "@hmm/";

	if (pid)
		snprintf(want, sizeof(want), "@hmm/%d/", pid);
	while (fgets(line, sizeof(line), f)) {
		unsigned flags;
		char *at = strchr(line, '@');

		if (!at || strncmp(at, want, strlen(want)) || sscanf(line, "%*s %*s %*s %x", &flags) != 1 ||
		    !(flags & ACCEPTS))
			continue;
		at[strcspn(at, "\n")] = 0;
		if (strlen(at + 1) >= len)
			continue; /* not one of ours */
		strcpy(name, at + 1);
		return 0;
	}
	return -ENOENT;
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

static int connect_to(const char *name)
{
	struct sockaddr_un sa = {.sun_family = AF_UNIX};
	socklen_t len = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + strlen(name));
	int rc, fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (fd < 0)
		return -errno;
	memcpy(sa.sun_path + 1, name, strlen(name));
	/* Who listens and never accepts must not keep us waiting. */
	rc = connect(fd, (struct sockaddr *)&sa, len);
	if (!rc && !fcntl(fd, F_SETFL, 0))
		return fd;
	rc = -errno;
	close(fd);
	return rc;
}

/*
 * All that comes until the other side hangs up, with a terminating zero.  0, -ENOMEM, -EIO: not a whole answer, or
 * -ECONNRESET: none at all.
 */
static int receive(int fd, char **answer)
{
	size_t room = 0, used = 0;
	char *text = NULL;
	ssize_t n;

	do {
		if (room - used < PACKET + 1) {
			char *more = realloc(text, room + 8 * PACKET);

			if (!more) {
				free(text);
				return -ENOMEM;
			}
			text = more;
			room += 8 * PACKET;
		}
		n = recv(fd, text + used, PACKET, 0);
		if (n > 0)
			used += (size_t)n;
	} while (n > 0 || (n < 0 && errno == EINTR));
	text[used] = 0;
	if (used && text[used - 1] == '\n') {
		*answer = text;
		return 0;
	}
	free(text);
	return used ? -EIO : -ECONNRESET;
}

static int ask_socket(const char *name, uint32_t what, char **answer)
{
	struct wire_stat q = {.magic = WIRE_STAT_MAGIC, .what = what};
	int rc, fd = connect_to(name);

	if (fd < 0)
		return fd;
	rc = send(fd, &q, sizeof(q), MSG_NOSIGNAL) < 0 ? -errno : receive(fd, answer);
	close(fd);
	return rc == -EPIPE ? -ECONNRESET : rc; /* it has hung up before it was asked, or after */
}

/*
 * Anybody may call a socket as we do.  Who would not answer us is not asked, nor
 * believed: to root what another user says of a process is worth nothing but for
 * processes of that user's.
 */
/* 1 or 0; -EAGAIN: too many are connecting there at this moment to tell. */
static int ours(const char *name, int pid)
{
	struct ucred cred;
	socklen_t len = sizeof(cred);
	int fd = connect_to(name);
	char path[32];
	struct stat st;
	bool is;

	if (fd < 0)
		return fd == -EAGAIN ? fd : 0;
	is = !getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len);
	close(fd);
	if (!is || geteuid())
		return is && cred.uid == geteuid();
	snprintf(path, sizeof(path), "/proc/%d", pid);
	return !cred.uid || (!stat(path, &st) && st.st_uid == cred.uid);
}

static bool has_space_of(const char *json, int pid)
{
	char want[32];

	snprintf(want, sizeof(want), "{\"pid\": %d,", pid);
	return strstr(json, want) != NULL;
}

/* Does whoever listens there have the space of @pid, or of an ancestor? */
static bool serves(const char *name, int pid)
{
	bool found = false;
	char *json;

	if (ours(name, pid) <= 0 || ask_socket(name, WIRE_STAT_JSON, &json))
		return false;
	for (int p = pid; p > 1 && !found; p = parent_of(p))
		found = has_space_of(json, p);
	free(json);
	return found;
}

/*
 * The sockets of front @pid, or of any (0).  The list first, then the questions:
 * each makes sockets, which would shift what is read.
 */
static int list(int pid, char (**allp)[WIRE_NAME_MAX], size_t *np)
{
	FILE *f = fopen("/proc/net/unix", "r");
	char(*all)[WIRE_NAME_MAX] = NULL;
	size_t n = 0;
	int rc = 0;

	if (!f)
		return -errno;
	while (!rc) {
		char(*more)[WIRE_NAME_MAX] = realloc(all, (n + 1) * sizeof(*all));

		if (!more)
			break;
		all = more;
		rc = socket_next(f, pid, all[n], sizeof(all[n]));
		n += !rc;
	}
	fclose(f);
	*allp = all;
	*np = n;
	return 0;
}

/* Of front @pid: one that is ours; -EPERM: there are others'; -ENOENT: there is none. */
static int socket_of(int pid, char *name, size_t len)
{
	char(*all)[WIRE_NAME_MAX];
	size_t n;
	int rc = list(pid, &all, &n);

	if (rc)
		return rc;
	rc = n ? -EPERM : -ENOENT;
	for (size_t i = 0; i < n && rc; i++) {
		int is = ours(all[i], pid);

		if (is == -EAGAIN)
			rc = is;
		if (is <= 0)
			continue;
		snprintf(name, len, "%s", all[i]);
		rc = 0;
	}
	free(all);
	return rc;
}

/* For those whose front is no ancestor of theirs: daemons. */
static int search(int pid, char *name, size_t len)
{
	char(*all)[WIRE_NAME_MAX];
	size_t n;
	int rc = list(0, &all, &n);

	if (rc)
		return rc;
	rc = -ENOENT;
	for (size_t i = 0; i < n && rc; i++) {
		if (!serves(all[i], pid))
			continue;
		snprintf(name, len, "%s", all[i]);
		rc = 0;
	}
	free(all);
	return rc;
}

static int ask_once(int pid, uint32_t what, char **answer)
{
	char name[WIRE_NAME_MAX];
	bool others = false;
	int rc = -ENOENT;

	/* The front, the program, or any descendant of it. */
	for (int p = pid; (rc == -ENOENT || rc == -EPERM) && p > 0; p = parent_of(p)) {
		rc = socket_of(p, name, sizeof(name));
		others |= rc == -EPERM;
	}
	if (rc == -ENOENT || rc == -EPERM)
		rc = search(pid, name, sizeof(name));
	if (rc == -ENOENT && others)
		rc = -EPERM;
	return rc ? rc : ask_socket(name, what, answer);
}

/* Hundreds may be signing on at this moment.  But who is never accepted from must not keep us for long. */
static int ask(int pid, uint32_t what, char **answer)
{
	int rc;

	for (unsigned tries = 0; (rc = ask_once(pid, what, answer)) == -EAGAIN && tries < BUSY_TRIES; tries++)
		nanosleep(&(struct timespec){.tv_nsec = BUSY_NS}, NULL);
	return rc;
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
	printf("total     %10.1f MiB  (peak %.1f)\n", field(json, "total_bytes") / mib,
	       field(json, "peak_bytes") / mib);
	printf("resident  %10.1f MiB\n", field(json, "resident_bytes") / mib);
	printf("store     %10.1f MiB  of RAM\n", field(json, "store_ram_bytes") / mib);
	printf("away      %10.1f MiB  (%.0f pages, ratio %.2f)\n", field(json, "away_bytes") / mib,
	       field(json, "away_pages"), field(json, "ratio"));
	printf("moved     %10.0f pages out, %.0f in, %.0f faults\n", field(json, "pages_out"), field(json, "pages_in"),
	       field(json, "faults"));
}

int hmm_stat_main(int argc, char **argv)
{
	static const struct option longs[] = {{"json", no_argument, NULL, 'j'},
					      {"restore", no_argument, NULL, 'r'},
					      {"help", no_argument, NULL, 'h'},
					      {0}};
	static const char usage[] = "usage: hmm stat PID [--json] [--restore]\n";
	bool json = false;
	uint32_t what = WIRE_STAT_JSON;
	char *answer = NULL, *end, name[3];
	int c, rc;

	optind = 0;
	opterr = 0; /* one line for each error, and it is ours */
	while ((c = getopt_long(argc, argv, "h", longs, NULL)) != -1) {
		if (c == 'j') {
			json = true;
		} else if (c == 'r') {
			what = WIRE_STAT_RESTORE;
		} else if (c == 'h') {
			fputs(usage, stdout);
			return 0;
		} else {
			fprintf(stderr, "hmm stat: %s: no such option (see hmm stat --help)\n",
				options_refused(argv, name));
			return 125;
		}
	}
	long pid = optind + 1 == argc ? strtol(argv[optind], &end, 10) : 0;
	if (pid <= 0 || pid > INT_MAX || *end) {
		fputs(usage, stderr);
		return 125;
	}
	rc = ask((int)pid, what, &answer);
	if (rc) {
		fprintf(stderr, "hmm stat: %ld: %s\n", pid,
			rc == -ENOENT   ? "not a process of hmm run"
			: rc == -EPERM  ? "not yours to ask"
			: rc == -EAGAIN ? "too many ask it at this moment; try again"
			: rc == -ECONNRESET
				? "it has not answered: it is about to end, or has no descriptor or memory left"
				: strerror(-rc));
		free(answer);
		return 1;
	}
	if (answer[0] == WIRE_STAT_FAILED) {
		fprintf(stderr, "hmm stat: %ld: %s", pid, answer + 1);
		free(answer);
		return 1;
	}
	if (json)
		fputs(answer, stdout);
	else
		table(answer);
	free(answer);
	if (fflush(stdout) || ferror(stdout)) {
		fprintf(stderr, "hmm stat: writing: %s\n", strerror(errno));
		return 125;
	}
	return 0;
}
