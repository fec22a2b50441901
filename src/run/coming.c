/* SPDX-License-Identifier: MIT */
/*
 * Programs of the tree that nobody knows of: on their way, or left.
 *
 * DOC: who has not signed on yet
 *
 * A parent may end right after it has forked or started somebody (daemon(), "&" in
 * a script).  Until the child's agent signs on nobody has heard of it: there was no
 * FORK event, as nothing was registered yet, or it is a new image, of which there
 * never is one.  What tells it is what it will find us by, which is in its
 * environment from the first moment on.
 *
 * From before an image is loaded until its stack has been made it has none that
 * could be read: who has memory and nothing there is looked at again.
 */
#include "run/coming.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "run/wire.h"

#define NEEDLE (sizeof(WIRE_ENV) + WIRE_NAME_MAX + WIRE_TOKEN + 3)
#define LOOKS 20u  /* at who is being loaded, a millisecond from one to the next */
#define KILLS 100u /* new ones may be made meanwhile */

enum what { OTHER, OURS, BEING_LOADED };

static ssize_t read_of(int dir, const char *pid, const char *what, off_t at, char *buf, size_t len)
{
	char path[64];
	ssize_t n;
	int fd;

	snprintf(path, sizeof(path), "%.16s/%s", pid, what);
	fd = openat(dir, path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -1;
	n = pread(fd, buf, len, at);
	close(fd);
	return n;
}

static enum what look_at(int dir, const char *pid, const char *needle)
{
	char buf[8192], small[32] = "";
	size_t keep = 0, all = 0, len = strlen(needle);
	enum what found = OTHER;
	ssize_t n;

	while ((n = read_of(dir, pid, "environ", (off_t)all, buf + keep, sizeof(buf) - keep)) > 0) {
		all += (size_t)n;
		n += (ssize_t)keep;
		if (memmem(buf, (size_t)n, needle, len)) {
			found = OURS;
			break;
		}
		keep = (size_t)n < len ? (size_t)n : len;
		memmove(buf, buf + n - keep, keep);
	}
	if (found == OURS) {
		/* An agent has its program's memory. */
		if (read_of(dir, pid, "comm", 0, small, sizeof(small) - 1) > 0 && !strcmp(small, "hmm-agent\n"))
			found = OTHER;
		return found;
	}
	/* Kernel threads, and who has ended, have no memory; who was given no environment has arguments. */
	if (!all && !n && read_of(dir, pid, "statm", 0, small, sizeof(small) - 1) > 0 && small[0] != '0' &&
	    !read_of(dir, pid, "cmdline", 0, small, sizeof(small)))
		return BEING_LOADED;
	return OTHER;
}

static enum what walk(const char *needle, bool kill_them)
{
	enum what found = OTHER;
	DIR *d = opendir("/proc");
	struct dirent *e;

	while (d && (kill_them || found != OURS) && (e = readdir(d))) {
		enum what is;
		int pidfd;

		if (e->d_name[0] < '1' || e->d_name[0] > '9')
			continue;
		/* Opened first: the number may become another's. */
		pidfd = kill_them ? (int)syscall(SYS_pidfd_open, atoi(e->d_name), 0) : -1;
		is = look_at(dirfd(d), e->d_name, needle);
		if (is == OURS && kill_them && syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0))
			is = OTHER;
		if (pidfd >= 0)
			close(pidfd);
		if (is == OURS || (is == BEING_LOADED && found == OTHER))
			found = is;
	}
	if (d)
		closedir(d);
	return found;
}

static void needle_make(char needle[NEEDLE], const char *name, const char *token)
{
	snprintf(needle, NEEDLE, "%s=%s %.*s ", WIRE_ENV, name, WIRE_TOKEN, token);
}

bool coming_any(const char *name, const char *token)
{
	enum what found = BEING_LOADED;
	char needle[NEEDLE];

	needle_make(needle, name, token);
	for (unsigned i = 0; i < LOOKS && found == BEING_LOADED; i++) {
		if (i)
			nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
		found = walk(needle, false);
	}
	return found == OURS;
}

void coming_kill(const char *name, const char *token)
{
	enum what found = BEING_LOADED;
	char needle[NEEDLE];

	needle_make(needle, name, token);
	for (unsigned i = 0; i < KILLS && found != OTHER; i++) {
		if (i)
			nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
		found = walk(needle, true);
	}
}
