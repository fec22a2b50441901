/* SPDX-License-Identifier: MIT */
/*
 * Who holds the userfaultfds of the tree when the supervisor has been killed.
 *
 * DOC: the keeper
 *
 * A userfaultfd that nobody has open any more lets go of its mappings: what was away
 * reads as zeros from then on.  Each agent has its program's open, too.  But a child
 * by a raw clone has no agent, and supervisor and agent may be killed together.
 *
 * The keeper is a child of the supervisor's, with memory of its own and the
 * supervisor's table of descriptors (CLONE_FILES).  So there is no moment in which
 * something would be the supervisor's alone: the descriptor that read(2) makes of a
 * FORK event is the keeper's at once, and the child goes on after that only.
 *
 * It sleeps until the supervisor's end, and then
 *
 *   1. closes all but the userfaultfds: agents and front see that the supervisor has
 *      gone by its sockets, which would have stayed open, and kill their programs;
 *   2. kills who is found by its environment, as the front does, which may be gone, too;
 *   3. waits until all address spaces have gone.  Who lives for longer than a second is
 *      somebody whom nobody could find or kill: what it touches and has no page for
 *      has been lost, and is answered by SIGBUS.
 *
 * Not by the number of the thread that a fault tells: that is one of its own pid
 * namespace.
 *
 * It is made before the supervisor has threads, locks or data, and takes the few
 * pages that either writes to.
 */
#include "run/keeper.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "hmm_uapi.h"
#include "run/coming.h"
#include "umm/clock.h"
#include "umm/internal.h"

#define GRACE_NS 1000000000ull
#define ROUND_NS 5000000l
#define BOTTOM (1ull << 16)               /* mmap_min_addr is no more */
#define TOP ((1ull << 47) - 2 * UMM_PAGE) /* an address at which nothing is ever registered */

bool keeper_is_userfaultfd(int fd)
{
	static const char want[] = "anon_inode:[userfaultfd]";
	char path[64], link[sizeof(want)];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	/* A file's begins with a slash. */
	return readlink(path, link, sizeof(link)) == (ssize_t)sizeof(want) - 1 && !memcmp(link, want, sizeof(want) - 1);
}

/* Nobody waits any longer: for a page that is lost, or for an event to be read. */
static void refuse_all(int uffd)
{
	struct uffd_msg msg;

	fcntl(uffd, F_SETFL, O_NONBLOCK); /* one that a guest sent may be otherwise */
	while (read(uffd, &msg, sizeof(msg)) == sizeof(msg)) {
		uint64_t at = msg.arg.pagefault.address & ~(UMM_PAGE - 1);

		/* Who is woken without an answer asks again. */
		if (msg.event == UFFD_EVENT_PAGEFAULT && umm_uffd_poison(uffd, at, UMM_PAGE))
			umm_uffd_wake(uffd, at, UMM_PAGE);
	}
	/* What the supervisor had read and not answered nobody can read again, until it is asked anew. */
	umm_uffd_wake(uffd, BOTTOM, TOP - BOTTOM);
}

/* EINVAL: nobody has asked it yet what it can do, and nobody will: nothing can be registered with it. */
static bool is_dead(int uffd)
{
	int rc = umm_uffd_poison(uffd, TOP, UMM_PAGE);

	return rc == -ESRCH || rc == -EINVAL;
}

/* Returns whether somebody still lives.  A FORK event that is read makes another descriptor, for the next round. */
static bool round_over_all(bool refuse)
{
	DIR *d = opendir("/proc/self/fd");
	struct dirent *e;
	bool any = !d;

	while (d && (e = readdir(d))) {
		int fd = atoi(e->d_name);

		if (e->d_name[0] == '.' || fd == dirfd(d))
			continue;
		if (!keeper_is_userfaultfd(fd) || is_dead(fd)) {
			close(fd);
			continue;
		}
		any = true;
		if (refuse)
			refuse_all(fd);
	}
	if (d)
		closedir(d);
	return any;
}

static void keep(int supervisor, const char *name, const char *token)
{
	struct pollfd p = {.fd = supervisor, .events = POLLIN};
	uint64_t since;

	while (poll(&p, 1, -1) != 1)
		;
	since = umm_now_ns();
	for (int fd = 0; fd <= 2; fd++)
		close(fd); /* there must be one to look at the others with */
	if (!round_over_all(false))
		return;
	coming_kill(name, token);
	while (round_over_all(umm_now_ns() - since > GRACE_NS))
		nanosleep(&(struct timespec){.tv_nsec = ROUND_NS}, NULL);
}

pid_t keeper_start(const char *name, const char *token)
{
	int self = (int)syscall(SYS_pidfd_open, getpid(), 0);
	pid_t pid;

	if (self < 0)
		return -errno;
	pid = (pid_t)syscall(SYS_clone, CLONE_FILES | SIGCHLD, 0, NULL, NULL, 0);
	if (pid < 0) {
		pid = -errno;
		close(self);
	}
	if (pid)
		return pid;
	prctl(PR_SET_NAME, "hmm-keeper");
	/* That a directory is in use for as long is less than what it is here for. */
	(void)!chdir("/");
	keep(self, name, token);
	_exit(0);
}

void keeper_end(pid_t keeper)
{
	kill(keeper, SIGKILL);
	while (waitpid(keeper, NULL, 0) < 0 && errno == EINTR)
		;
}
