/* SPDX-License-Identifier: MIT */
/*
 * Being told that a tree of processes which sleeps has woken up.
 *
 * DOC: who tells
 *
 * Each thread of the tree, and of whoever else shares its memory, has a clock of its
 * CPU time (a performance event of the kernel's own, no hardware's) that sends SIGIO to
 * the watcher when it has run for AWAKE_NS, wherever it is: a read into fresh memory
 * is one call, from which it may come back too late.  What the threads start meanwhile
 * inherits the clock.
 *
 *   IDLE	the watcher asks for clocks when nothing has run for a while: ASKED
 *   ASKED	the reclaimer, which has nothing to do then, begins: ARMING.  It may take
 *		a while, with many processes about, so the watcher goes on looking
 *   ARMING	all have theirs: ARMED.  Or not: IDLE, and it is asked for less often.
 *		Work that comes meanwhile ends it
 *   ARMED	the watcher looks once more, and then sleeps for as long as nobody runs:
 *		what ran before its clock was armed shows at that look, as CPU time, and so
 *		does a thread that was not found because it was just being made, for who
 *		made it has run.  The first that wakes up ends it for all: IDLE
 *
 * A space that joins wakes the watcher, too: the signal stays pending until it would
 * sleep.  SIGIO is blocked in the watcher, and sent to it alone; it is no more than a
 * hint to look.  Where there may be no such event (kernel.perf_event_paranoid, without
 * CAP_PERFMON), or where there are very many threads, the watcher looks by its clock as
 * before.  Who writes to the tree's memory from outside (ptrace, process_vm_writev)
 * wakes nobody: that shows at the watcher's next look, after a second at most.
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

#define AWAKE_NS 250000ull /* in which HMM_ASLEEP_THREADS touch half of what a burst may be, in small pages */
#define REST_MAX 6u

static sigset_t sigio(void)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGIO);
	return set;
}

/* What all threads of all processes are armed by. */
struct arming {
	struct hmm *h;
	int rc;
};

/* Returns a descriptor or -errno. */
static int clock_open(const struct hmm *h, pid_t tid)
{
	struct perf_event_attr attr = {
		.type = PERF_TYPE_SOFTWARE,
		.size = sizeof(attr),
		.config = PERF_COUNT_SW_TASK_CLOCK,
		.sample_period = AWAKE_NS,
		.inherit = 1,
	};
	struct f_owner_ex owner = {.type = F_OWNER_TID, .pid = h->asleep.watcher};
	int fd = (int)syscall(SYS_perf_event_open, &attr, tid, -1, -1, PERF_FLAG_FD_CLOEXEC), rc;

	if (fd < 0)
		return -errno;
	if (!fcntl(fd, F_SETOWN_EX, &owner) && !fcntl(fd, F_SETFL, O_ASYNC))
		return fd;
	rc = -errno;
	close(fd);
	return rc;
}

/* All threads of process @pid.  Returns whether to go on with others. */
static bool arm_process(pid_t pid, void *arg)
{
	struct arming *to = arg;
	struct hmm_asleep *a = &to->h->asleep;
	struct dirent *e;
	char path[48];
	DIR *dir;

	if (!to->rc && (atomic_load(&to->h->want_set) || atomic_load(&to->h->stop)))
		to->rc = -EINTR;
	if (to->rc)
		return false;
	snprintf(path, sizeof(path), "/proc/%d/task", (int)pid);
	dir = pid > 0 ? opendir(path) : NULL;
	if (!dir) {
		to->rc = -ESRCH;
		return false;
	}
	while (!to->rc && (e = readdir(dir))) {
		pid_t tid = (pid_t)atol(e->d_name);
		int fd = tid <= 0 ? -ESRCH : a->n == HMM_ASLEEP_THREADS ? -EMFILE : clock_open(to->h, tid);

		if (fd >= 0)
			a->fd[a->n++] = fd;
		else if (fd != -ESRCH) /* ended meanwhile, or no thread's name */
			to->rc = fd;
	}
	closedir(dir);
	return !to->rc;
}

static int arm_space(struct arming *to, struct hmm_mm *mm)
{
	unsigned before = to->h->asleep.n;
	int rc = 0;

	if (to->h->opt.processes)
		rc = to->h->opt.processes(to->h->opt.priv, mm, arm_process, to);
	else
		arm_process(atomic_load(&mm->space->pid), to);
	if (to->rc || rc)
		return to->rc ? to->rc : rc;
	return to->h->asleep.n > before ? 0 : -ESRCH; /* somebody lives there, whom we did not find */
}

static void disarm(struct hmm_asleep *a)
{
	while (a->n)
		close(a->fd[--a->n]);
	atomic_store(&a->state, HMM_ASLEEP_IDLE);
}

void hmm_asleep_arm(struct hmm *h)
{
	struct hmm_asleep *a = &h->asleep;
	struct arming to = {.h = h};
	struct hmm_mm **list;
	int n;

	/* Before the list: who joins after it wakes the watcher. */
	atomic_store(&a->state, HMM_ASLEEP_ARMING);
	n = hmm_mms_get(h, &list);
	to.rc = n < 0 ? n : 0;
	for (int i = 0; i < n && !to.rc; i++)
		to.rc = arm_space(&to, list[i]);
	if (n >= 0)
		hmm_mms_put(list, (unsigned)n);
	if (!to.rc) {
		a->rest = 0;
		atomic_store(&a->state, HMM_ASLEEP_ARMED);
		return;
	}
	a->refused = to.rc == -EACCES || to.rc == -EPERM || to.rc == -ENOSYS;
	if (to.rc != -EINTR && a->rest < REST_MAX)
		a->rest++;
	disarm(a);
}

void hmm_asleep_begin(struct hmm *h)
{
	sigset_t set = sigio();

	pthread_sigmask(SIG_BLOCK, &set, NULL);
	h->asleep.watcher = gettid();
	pthread_mutex_lock(&h->wait_lock);
	h->asleep.watched = true;
	pthread_mutex_unlock(&h->wait_lock);
}

void hmm_asleep_end(struct hmm *h)
{
	pthread_mutex_lock(&h->wait_lock);
	h->asleep.watched = false;
	pthread_mutex_unlock(&h->wait_lock);
}

bool hmm_asleep_ask(struct hmm *h, uint32_t still)
{
	struct hmm_asleep *a = &h->asleep;
	sigset_t set = sigio();

	if (!still || atomic_load(&a->state) != HMM_ASLEEP_IDLE || a->refused || still % (HMM_ASLEEP_LOOKS << a->rest))
		return false;
	while (sigtimedwait(&set, NULL, &(struct timespec){0}) > 0)
		; /* of the last time */
	a->looked = false;
	atomic_store(&a->state, HMM_ASLEEP_ASKED);
	return true;
}

bool hmm_asleep_armed(struct hmm *h)
{
	struct hmm_asleep *a = &h->asleep;
	bool before = a->looked;

	if (atomic_load(&a->state) != HMM_ASLEEP_ARMED)
		return false;
	a->looked = true;
	return before;
}

void hmm_asleep_disarm(struct hmm *h)
{
	if (atomic_load(&h->asleep.state) == HMM_ASLEEP_ARMED)
		disarm(&h->asleep);
}

bool hmm_asleep_wait(struct hmm *h, uint64_t ns)
{
	struct timespec ts = {.tv_sec = (time_t)(ns / 1000000000), .tv_nsec = (long)(ns % 1000000000)};
	sigset_t set = sigio();

	return sigtimedwait(&set, NULL, &ts) < 0;
}

void hmm_asleep_wake(struct hmm *h)
{
	if (atomic_load(&h->asleep.state) == HMM_ASLEEP_IDLE)
		return;
	pthread_mutex_lock(&h->wait_lock);
	if (h->asleep.watched)
		pthread_kill(h->watch_thread, SIGIO);
	pthread_mutex_unlock(&h->wait_lock);
}
