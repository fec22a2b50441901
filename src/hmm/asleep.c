/* SPDX-License-Identifier: MIT */
/*
 * Being told that a tree of processes which sleeps has woken up.
 *
 * DOC: who tells
 *
 * Each thread of the tree, and of whoever else shares memory with it, has a clock of its CPU time (a performance event
 * of the kernel's own, no hardware's) that sends SIGIO to the watcher when it has run for AWAKE_NS, wherever it is: a
 * read into fresh memory is one call, from which it may come back too late.  What the threads start meanwhile inherits
 * the clock.
 *
 * The watcher arms the clocks when nothing has run for a while, looks once more, and
 * then sleeps for as long as nobody runs: what has run before its clock was armed
 * shows at that look, as CPU time, and so does a thread that was not found because it
 * was just being made, for who made it has run.  A space that joins wakes it, too.
 * The first that wakes up ends it for all.
 *
 * SIGIO is blocked in the watcher, and sent to it alone; it is no more than a hint to
 * look.  Where there may be no such event (kernel.perf_event_paranoid, without
 * CAP_PERFMON), or where there are very many threads, the watcher looks by its clock
 * as before.
 *
 * All of it is the watcher's own, but for hmm_asleep_wake().
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/perf_event.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "hmm/internal.h"

#define AWAKE_NS 250000ull /* in which HMM_ASLEEP_THREADS can touch half of what a burst may be */

/* Returns a descriptor or -errno. */
static int clock_open(pid_t tid)
{
	struct perf_event_attr attr = {
		.type = PERF_TYPE_SOFTWARE,
		.size = sizeof(attr),
		.config = PERF_COUNT_SW_TASK_CLOCK,
		.sample_period = AWAKE_NS,
		.inherit = 1,
	};
	struct f_owner_ex owner = {.type = F_OWNER_TID, .pid = gettid()};
	int fd = (int)syscall(SYS_perf_event_open, &attr, tid, -1, -1, PERF_FLAG_FD_CLOEXEC), rc;

	if (fd < 0)
		return -errno;
	if (!fcntl(fd, F_SETOWN_EX, &owner) && !fcntl(fd, F_SETFL, O_ASYNC))
		return fd;
	rc = -errno;
	close(fd);
	return rc;
}

/* What all threads of all processes are armed by. */
struct arming {
	struct hmm_asleep *a;
	int rc;
};

/* All threads of process @pid. */
static void arm_process(pid_t pid, void *arg)
{
	struct arming *to = arg;
	struct hmm_asleep *a = to->a;
	struct dirent *e;
	char path[48];
	DIR *dir;

	if (to->rc)
		return;
	snprintf(path, sizeof(path), "/proc/%d/task", (int)pid);
	dir = pid > 0 ? opendir(path) : NULL;
	if (!dir) {
		to->rc = -ESRCH;
		return;
	}
	while (!to->rc && (e = readdir(dir))) {
		pid_t tid = (pid_t)atol(e->d_name);
		int fd = tid <= 0 ? -ESRCH : a->n == HMM_ASLEEP_THREADS ? -EMFILE : clock_open(tid);

		if (fd >= 0)
			a->fd[a->n++] = fd;
		else if (fd != -ESRCH) /* ended meanwhile, or no thread's name */
			to->rc = fd;
	}
	closedir(dir);
}

static void drain(const sigset_t *set)
{
	while (sigtimedwait(set, NULL, &(struct timespec){0}) > 0)
		;
}

void hmm_asleep_begin(struct hmm *h)
{
	struct hmm_asleep *a = &h->asleep;
	struct arming to = {.a = a};
	struct hmm_mm **list;
	sigset_t set;
	int n;

	if (a->refused)
		return;
	sigemptyset(&set);
	sigaddset(&set, SIGIO);
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	drain(&set);
	/* Before the list: who joins after it wakes us. */
	atomic_store(&a->armed, true);
	n = hmm_mms_get(h, &list);
	to.rc = n < 0 ? n : 0;
	for (int i = 0; i < n && !to.rc; i++) {
		if (h->opt.processes)
			h->opt.processes(h->opt.priv, list[i], arm_process, &to);
		else
			arm_process(list[i]->space->pid, &to);
	}
	if (n >= 0)
		hmm_mms_put(list, (unsigned)n);
	if (!to.rc)
		return;
	hmm_asleep_end(h);
	a->refused = to.rc == -EACCES || to.rc == -EPERM || to.rc == -ENOSYS;
}

void hmm_asleep_end(struct hmm *h)
{
	struct hmm_asleep *a = &h->asleep;

	/* Who wakes us knows by it that there is a thread to be woken. */
	pthread_mutex_lock(&h->wait_lock);
	atomic_store(&a->armed, false);
	pthread_mutex_unlock(&h->wait_lock);
	while (a->n)
		close(a->fd[--a->n]);
}

void hmm_asleep_wake(struct hmm *h)
{
	if (!atomic_load(&h->asleep.armed))
		return;
	pthread_mutex_lock(&h->wait_lock);
	if (atomic_load(&h->asleep.armed))
		pthread_kill(h->watch_thread, SIGIO);
	pthread_mutex_unlock(&h->wait_lock);
}

bool hmm_asleep_wait(struct hmm *h, uint64_t ns)
{
	struct timespec ts = {.tv_sec = (time_t)(ns / 1000000000), .tv_nsec = (long)(ns % 1000000000)};
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGIO);
	return sigtimedwait(&set, NULL, &ts) < 0;
}
