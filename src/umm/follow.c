/* SPDX-License-Identifier: MIT */
/*
 * Where a fault is served.
 *
 * DOC: on the CPU that faults
 *
 * Waking a thread that sleeps on another CPU costs several times what the fault
 * itself does.  The faulting thread is about to sleep: the best place is its own
 * CPU.  The scheduler does not know that, so a thread that has served one and the
 * same faulting thread for a while asks now and then where that one runs, and
 * binds itself there; when faults come from several, it lets the scheduler choose
 * again.
 *
 * DOC: humble
 *
 * That is half of it.  When the page is placed whoever waits for it is woken, and
 * its CPU is the one that we run on: the scheduler looks for an idle one, and
 * moves it there, away from us.  It does not if all that its CPU runs are threads
 * of SCHED_IDLE, for these count as nobody.  So who follows is one.  It then runs
 * at once when the other one sleeps, and makes room when that goes on.  So when it
 * has placed a page, and looks again, the next fault is there.  If it is not, some
 * times in a row, the other one runs elsewhere: it is asked where.  For the former
 * it is humble where there is one CPU only, too.
 *
 * It also runs not at all where somebody else wants the CPU, and has the lead, and
 * maybe locks.  So there is a guard.  It looks every GUARD_NS while there is a
 * humble thread: has it taken a turn since?  If not it is made as good as others
 * again, and, unless it had nothing to do, may not be humble for a while, each
 * time for longer.
 *
 * Without CAP_SYS_NICE or RLIMIT_NICE there is no way back from SCHED_IDLE; then
 * nobody is humble.
 */
#include "umm/follow.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "umm/clock.h"
#include "umm/internal.h"

#define EVERY_MIN 64u
#define EVERY_KNOWN 4u /* of who was followed last, whoever did */
#define EVERY_MAX 256u
#define ALONE 3u
#define GUARD_NS 3000000l
#define PROUD_NS_MIN 5000000ull
#define PROUD_NS_MAX 1000000000ull
#define CONTENT 50u /* looks without a complaint after which it is forgotten that there were any */

struct umm_guard {
	_Atomic uint32_t humble; /* thread number; 0: none */
	_Atomic uint32_t known;  /* whom it follows, or did */
	_Atomic int cpu;         /* where it is */
	_Atomic uint32_t turns;  /* its; odd: it has something to do */
	_Atomic uint64_t proud_until_ns;
	_Atomic bool stop;
	uint64_t proud_ns; /* how long the next time */
	pthread_mutex_t raising;
	pthread_t thread;
	int epfd;
};

static int set_policy(uint32_t tid, int policy)
{
	return sched_setscheduler((pid_t)tid, policy, &(struct sched_param){0});
}

static int cpu_of(uint32_t tid)
{
	char path[64], buf[512], *at;
	int fd, cpu = -1;
	ssize_t n;

	if (!umm_same_pidns((pid_t)tid))
		return -1;
	/* The thread's own: that of the process adds up all its threads. */
	snprintf(path, sizeof(path), "/proc/%u/task/%u/stat", tid, tid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -1;
	n = read(fd, buf, sizeof(buf) - 1);
	close(fd);
	if (n <= 0)
		return -1;
	buf[n] = 0;
	/* Field 39; the second, the name, may hold anything but ends with the last parenthesis. */
	at = strrchr(buf, ')');
	for (unsigned field = 2; at && field < 39; field++)
		at = strchr(at + 1, ' ');
	if (at)
		cpu = atoi(at + 1);
	return cpu;
}

static void bind_to(struct umm_follow *f, int cpu)
{
	cpu_set_t one;

	if (cpu == f->cpu)
		return;
	f->cpu = cpu;
	CPU_ZERO(&one);
	if (cpu >= 0)
		CPU_SET((unsigned)cpu, &one);
	sched_setaffinity(0, sizeof(cpu_set_t), cpu >= 0 ? &one : &f->all);
}

static void become_humble(struct umm_follow *f)
{
	struct umm_guard *g = f->guard;
	uint32_t none = 0, me = f->self;

	if (!g || f->humble)
		return;
	atomic_store(&g->known, f->tid);
	if (umm_now_ns() < atomic_load(&g->proud_until_ns) || atomic_load(&g->humble))
		return;
	atomic_fetch_or(&g->turns, 1);
	atomic_store(&g->cpu, f->cpu);
	/* The guard knows first: where others want the CPU it is from the next line on that nothing else happens. */
	if (!atomic_compare_exchange_strong(&g->humble, &none, f->self))
		return;
	sys_futex_wake(&g->humble, 1);
	f->humble = !set_policy(0, SCHED_IDLE);
	if (!f->humble) {
		atomic_compare_exchange_strong(&g->humble, &me, 0);
		return;
	}
	/* Raised before it was humble, when it did not get so far for a while. */
	if (atomic_load(&g->humble) != f->self) {
		f->humble = false;
		set_policy(0, SCHED_OTHER);
	}
}

static void become_proud(struct umm_follow *f)
{
	uint32_t me = f->self;

	if (!f->humble)
		return;
	f->humble = false;
	if (atomic_compare_exchange_strong(&f->guard->humble, &me, 0))
		set_policy(0, SCHED_OTHER);
}

void umm_follow(struct umm_follow *f, uint32_t tid)
{
	int cpu;

	if (tid != f->tid || !tid) {
		f->tid = tid;
		umm_follow_leave(f);
		f->every = tid && f->guard && atomic_load(&f->guard->known) == tid ? EVERY_KNOWN : EVERY_MIN;
		return;
	}
	if (++f->count < f->every)
		return;
	f->count = 0;
	f->alone = 0;
	cpu = cpu_of(tid);
	if (cpu != f->cpu || f->every < EVERY_MIN)
		f->every = EVERY_MIN;
	else if (f->every < EVERY_MAX)
		f->every *= 2;
	bind_to(f, cpu);
	if (f->humble)
		atomic_store(&f->guard->cpu, cpu);
	if (cpu >= 0)
		become_humble(f);
	else
		become_proud(f);
}

void umm_follow_leave(struct umm_follow *f)
{
	become_proud(f);
	bind_to(f, -1);
	f->count = 0;
	if (f->every > EVERY_MIN)
		f->every = EVERY_MIN;
}

void umm_follow_woken(struct umm_follow *f)
{
	if (!f->humble)
		return;
	if (atomic_load_explicit(&f->guard->humble, memory_order_relaxed) == f->self) {
		atomic_fetch_add(&f->guard->turns, 1);
		return;
	}
	/* The guard has seen to that.  If there was just nothing to do it is not for long. */
	f->humble = false;
	f->count = 0;
	f->every = EVERY_KNOWN;
}

void umm_follow_sleeps(struct umm_follow *f)
{
	umm_follow_woken(f); /* from odd to even */
}

void umm_follow_found(struct umm_follow *f, unsigned faults)
{
	if (faults)
		f->alone = 0;
	else if (f->humble && ++f->alone == ALONE)
		f->count = f->every; /* ask where it runs, the next time */
}

void umm_follow_turn(struct umm_follow *f)
{
	umm_follow_sleeps(f);
	umm_follow_woken(f);
}

void umm_follow_init(struct umm_follow *f, struct umm_guard *g)
{
	*f = (struct umm_follow){.cpu = -1, .every = EVERY_MIN, .self = (uint32_t)syscall(SYS_gettid), .guard = g};
	sched_getaffinity(0, sizeof(f->all), &f->all);
}

void umm_follow_end(struct umm_follow *f)
{
	become_proud(f);
	if (!f->guard)
		return;
	/* It may be about to raise us, by a number that is soon another's. */
	pthread_mutex_lock(&f->guard->raising);
	pthread_mutex_unlock(&f->guard->raising);
}

int umm_guard_cpu(struct umm_guard *g)
{
	return atomic_load(&g->humble) ? atomic_load(&g->cpu) : -1;
}

/* -------------------------------------------------------------------- guard */

static void raise_it(struct umm_guard *g, bool starved)
{
	uint32_t tid;

	pthread_mutex_lock(&g->raising);
	/* It is about to be humble and has not got there: raised now it would be so afterwards, and nobody look. */
	tid = atomic_load(&g->humble);
	if (tid && sched_getscheduler((pid_t)tid) != SCHED_IDLE) {
		pthread_mutex_unlock(&g->raising);
		return;
	}
	if (starved) {
		atomic_store(&g->proud_until_ns, umm_now_ns() + g->proud_ns);
		if (g->proud_ns < PROUD_NS_MAX)
			g->proud_ns *= 2;
	}
	tid = atomic_exchange(&g->humble, 0);
	if (tid)
		set_policy(tid, SCHED_OTHER);
	pthread_mutex_unlock(&g->raising);
}

static void *guard_main(void *arg)
{
	struct umm_guard *g = arg;
	unsigned content = 0;
	sigset_t all;

	sigfillset(&all);
	pthread_sigmask(SIG_BLOCK, &all, NULL);
	while (!atomic_load(&g->stop)) {
		struct pollfd p = {.fd = g->epfd, .events = POLLIN};
		uint32_t seen = atomic_load(&g->turns);

		if (!atomic_load(&g->humble)) {
			sys_futex_wait(&g->humble, 0, NULL);
			continue;
		}
		nanosleep(&(struct timespec){.tv_nsec = GUARD_NS}, NULL);
		if (atomic_load(&g->stop))
			break;
		if (atomic_load(&g->turns) != seen) {
			if (++content == CONTENT)
				g->proud_ns = PROUD_NS_MIN;
			continue;
		}
		content = 0;
		/* Also when nobody faults: who knows who wants that CPU when somebody does. */
		raise_it(g, (seen & 1) || poll(&p, 1, 0) == 1);
	}
	return NULL;
}

/* Tried by a thread that ends with it: it may not come back. */
static void *try_policy(void *arg)
{
	*(bool *)arg =
		sched_getscheduler(0) == SCHED_OTHER && !set_policy(0, SCHED_IDLE) && !set_policy(0, SCHED_OTHER);
	return NULL;
}

struct umm_guard *umm_guard_start(int epfd)
{
	struct umm_guard *g;
	pthread_attr_t attr;
	pthread_t trial;
	bool may = false;
	int rc;

	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, UMM_THREAD_STACK);
	rc = pthread_create(&trial, &attr, try_policy, &may);
	if (!rc)
		pthread_join(trial, NULL);
	g = may ? calloc(1, sizeof(*g)) : NULL;
	if (g) {
		g->epfd = epfd;
		g->proud_ns = PROUD_NS_MIN;
		pthread_mutex_init(&g->raising, NULL);
		rc = pthread_create(&g->thread, &attr, guard_main, g);
		if (rc) {
			pthread_mutex_destroy(&g->raising);
			free(g);
			g = NULL;
		}
	}
	pthread_attr_destroy(&attr);
	return g;
}

void umm_guard_stop(struct umm_guard *g)
{
	atomic_store(&g->stop, true);
	atomic_store(&g->humble, UINT32_MAX); /* nobody: for who sleeps on it */
	sys_futex_wake(&g->humble, 1);
	pthread_join(g->thread, NULL);
	pthread_mutex_destroy(&g->raising);
	free(g);
}
