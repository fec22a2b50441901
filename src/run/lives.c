/* SPDX-License-Identifier: MIT */
/*
 * DOC: who lives in an address space
 *
 * The kernel says of two tasks whether they share one (kcmp); who else there is,
 * /proc does.  Both can refuse an answer, and both are asked while tasks end and
 * others begin: what is found is what was there at some moment of the look.  A look
 * that could not be had is never taken for "nobody": who let go of a space for want
 * of a descriptor would leave whoever lives there with zeros.
 *
 * DOC: memory that we may not look at
 *
 * Of a program that has made itself undumpable the kernel compares nothing for who has
 * no CAP_SYS_PTRACE.  What it counts of a memory (statm) everybody may read, and it is
 * the same for all who live there: whose counts are the agent's, again and again, is
 * taken to live there.  That may be wrong of a process that is its like, as idle as the
 * agent's memory is: it is waited for, then, or killed where all that live there are.  Who
 * a guest says to be goes by what the kernel says alone.
 */
#include "run/supervisor.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/kcmp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define LOOKS 16u /* at threads that end while they are looked at */
#define COUNTS_ROOM 128
#define COUNTS_LOOKS 32u /* at counts that may change meanwhile */
#define COUNTS_ALIKE 4u

bool lives_ended(int pidfd)
{
	struct pollfd p = {.fd = pidfd, .events = POLLIN};

	return pidfd >= 0 && poll(&p, 1, 0) == 1;
}

/*
 * What a look at /proc that has failed says: 0, there is nobody, or nobody whom we may
 * look at; -errno, we could not look, for want of descriptors or memory.  Who then
 * takes it for nobody lets go of what somebody has away.
 */
int lives_nobody(void)
{
	return errno == ENOENT || errno == ESRCH || errno == EACCES || errno == EPERM ? 0 : -errno;
}

/*
 * A task that has ended has none, nor has a kernel thread: to KCMP_VM all of these are in
 * the same space.  1, 0, or -errno, as all that look into /proc here.
 */
int lives_memory(pid_t tid)
{
	char path[64], first = '0';
	int fd, rc = 0;

	snprintf(path, sizeof(path), "/proc/%d/statm", (int)tid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return lives_nobody();
	if (read(fd, &first, 1) < 0)
		rc = lives_nobody();
	close(fd);
	return rc ? rc : first != '0';
}

/* Its first thread may have ended, and others be stopped. */
int lives_stopped(pid_t pid)
{
	char path[64], buf[128], *at;
	struct dirent *e;
	int stopped = 0;
	DIR *d;

	snprintf(path, sizeof(path), "/proc/%d/task", (int)pid);
	d = opendir(path);
	if (!d)
		return kill(pid, 0) && errno == ESRCH ? 0 : -EAGAIN; /* it may be hidden */
	while (!stopped && (errno = 0, e = readdir(d))) {
		ssize_t n;
		int fd;

		if (e->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "%.16s/stat", e->d_name);
		fd = openat(dirfd(d), path, O_RDONLY | O_CLOEXEC);
		n = fd < 0 ? -1 : read(fd, buf, sizeof(buf) - 1);
		if (n < 0)
			stopped = lives_nobody();
		if (fd >= 0)
			close(fd);
		buf[n < 0 ? 0 : n] = 0;
		at = strrchr(buf, ')');
		if (at && (at[2] == 'T' || at[2] == 't'))
			stopped = 1;
	}
	if (!stopped && errno)
		stopped = lives_nobody();
	closedir(d);
	return stopped;
}

/* What of a file fits in @buf, as a string.  How many bytes, or as lives_nobody(). */
static int read_file(const char *path, char *buf, size_t room)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC), rc;
	ssize_t n;

	buf[0] = 0;
	if (fd < 0)
		return lives_nobody();
	n = read(fd, buf, room - 1);
	rc = n < 0 ? lives_nobody() : (int)n;
	buf[n < 0 ? 0 : n] = 0;
	close(fd);
	return rc;
}

/*
 * /proc says "sleeping" of who is in one of version 2, and "disk sleep" of the other.  What is asked for counts, at any
 * level: a group is said to be frozen only when all of its tasks are, and one that waits for us is not.
 */
int lives_frozen(pid_t tid)
{
	static const struct {
		const char *line, *mount, *file, *word;
	} freezers[] = {
		{"\n0::", "/sys/fs/cgroup", "cgroup.freeze", "1"},
		{"\n0::", "/sys/fs/cgroup/unified", "cgroup.freeze", "1"},
		{":freezer:", "/sys/fs/cgroup/freezer", "freezer.state", "FR"}, /* FREEZING, FROZEN */
	};
	char groups[PATH_MAX + 256], path[PATH_MAX + 64], says[256];
	int rc;

	snprintf(path, sizeof(path), "/proc/%d/cgroup", (int)tid);
	groups[0] = '\n';
	rc = read_file(path, groups + 1, sizeof(groups) - 1);
	for (unsigned i = 0; rc >= 0 && i < sizeof(freezers) / sizeof(freezers[0]); i++) {
		const char *at = strstr(groups, freezers[i].line);

		if (!at)
			continue;
		at += strlen(freezers[i].line);
		for (int len = (int)strcspn(at, "\n"); rc >= 0 && len >= 0;) {
			if (snprintf(path, sizeof(path), "%s%.*s/%s", freezers[i].mount, len, at, freezers[i].file) >=
			    (int)sizeof(path))
				break;
			rc = read_file(path, says, sizeof(says));
			if (rc > 0 && strstr(says, freezers[i].word))
				return 1;
			while (--len > 0 && at[len] != '/')
				;
		}
	}
	return rc < 0 ? rc : 0;
}

/* What the kernel counts of the memory of @tid.  1, 0: it has none, or -errno. */
static int counts_of(pid_t tid, char counts[COUNTS_ROOM])
{
	char path[64];
	ssize_t n;
	int fd, rc;

	snprintf(path, sizeof(path), "/proc/%d/statm", (int)tid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return lives_nobody();
	n = read(fd, counts, COUNTS_ROOM - 1);
	rc = n < 0 ? lives_nobody() : n > 0 && counts[0] != '0';
	counts[n > 0 ? n : 0] = 0;
	close(fd);
	return rc;
}

/* The fourth of them, how long its code is, is the same as long as there is the memory. */
static bool same_code(const char *one, const char *other)
{
	unsigned long a, b;

	return sscanf(one, "%*u %*u %*u %lu", &a) == 1 && sscanf(other, "%*u %*u %*u %lu", &b) == 1 && a == b;
}

/* 1, 0, or -errno; -EAGAIN: they never hold still. */
static int counts_agree(pid_t agent, pid_t tid)
{
	char before[COUNTS_ROOM], theirs[COUNTS_ROOM], after[COUNTS_ROOM];
	unsigned alike = 0, unlike = 0;
	int rc = counts_of(agent, before);

	for (unsigned i = 0; rc > 0 && i < COUNTS_LOOKS; i++, memcpy(before, after, sizeof(before))) {
		rc = counts_of(tid, theirs);
		if (rc > 0 && !same_code(before, theirs))
			return 0;
		if (rc > 0)
			rc = counts_of(agent, after);
		if (rc <= 0 || strcmp(before, after))
			continue;
		if (strcmp(before, theirs)) {
			/* Once, it may have changed and changed back in between. */
			alike = 0;
			if (++unlike == COUNTS_ALIKE)
				return 0;
			continue;
		}
		unlike = 0;
		if (++alike == COUNTS_ALIKE)
			return 1;
		nanosleep(&(struct timespec){.tv_nsec = 500000}, NULL);
	}
	return rc > 0 ? -EAGAIN : rc;
}

/* @guess: where the kernel does not say it, go by what it counts. */
static int same_memory(pid_t agent, pid_t tid, bool guess)
{
	long rc = syscall(SYS_kcmp, agent, tid, KCMP_VM, 0, 0);

	if (!rc)
		return lives_memory(tid);
	if (rc > 0 || errno != EPERM || !guess)
		return 0;
	/* Who may look at the agent's may look at that of whoever lives there, and the other way round. */
	rc = syscall(SYS_kcmp, agent, agent, KCMP_VM, 0, 0);
	if (rc >= 0 || errno != EPERM)
		return 0;
	rc = syscall(SYS_kcmp, tid, tid, KCMP_VM, 0, 0);
	return rc < 0 && errno == EPERM ? counts_agree(agent, tid) : 0;
}

/* @ended: one that was met had no memory any more; it may have made another first. */
static int thread_lives_in(pid_t agent, pid_t pid, const char *tasks, bool guess, bool *ended)
{
	DIR *d = opendir(tasks);
	struct dirent *e;
	int found = 0;

	*ended = false;
	if (!d)
		return lives_nobody();
	while (!found && (errno = 0, e = readdir(d))) {
		pid_t tid = (pid_t)atoi(e->d_name);

		if (tid <= 0 || tid == pid)
			continue;
		found = same_memory(agent, tid, guess);
		*ended |= !found && !lives_memory(tid);
	}
	if (!found && errno)
		found = lives_nobody(); /* not all of them were seen */
	closedir(d);
	return found;
}

/*
 * A process lives in the agent's address space if any thread of it does: the
 * first one may have ended (pthread_exit in main), and has no memory any more.
 */
int lives_in(pid_t agent, pid_t pid, bool guess)
{
	char path[64];
	struct stat st;
	bool ended = true;
	int rc = same_memory(agent, pid, guess);

	if (rc)
		return rc;
	rc = lives_memory(pid);
	if (rc)
		return rc < 0 ? rc : 0; /* all of its threads have the same */
	snprintf(path, sizeof(path), "/proc/%d/task", (int)pid);
	if (stat(path, &st))
		return lives_nobody();
	if (st.st_nlink <= 3) /* a thread is a directory: ".", "..", and one */
		return 0;
	for (unsigned i = 0; i < LOOKS && ended && !rc; i++)
		rc = thread_lives_in(agent, pid, path, guess, &ended);
	return rc;
}

/*
 * Every process that lives in the agent's address space, but the agent: @each, until it
 * returns false.  Returns how many, or -errno when there may be more of them.
 */
int lives_sharers(pid_t agent, bool (*each)(pid_t pid, void *arg), void *arg)
{
	DIR *d = opendir("/proc");
	struct dirent *e;
	int n = 0, rc = 0;

	if (!d)
		return lives_nobody();
	while ((errno = 0, e = readdir(d))) {
		pid_t pid = (pid_t)atoi(e->d_name);

		if (pid <= 0 || pid == agent || pid == getpid())
			continue;
		int lives = lives_in(agent, pid, true);
		if (lives < 0)
			rc = lives;
		if (lives <= 0)
			continue;
		n++;
		if (each && !each(pid, arg))
			break;
	}
	if (!e && errno)
		rc = lives_nobody();
	closedir(d);
	return rc ? rc : n;
}
