/* SPDX-License-Identifier: MIT */
/*
 * umm as libfabric's memory monitor.
 *
 * libfabric keeps what it has registered in a cache, and has "monitors" tell it
 * what of that has changed.  Its own ones patch libc's functions, or read a
 * userfaultfd; it lets another one be imported (fi_ext.h).
 *
 * DOC: what is told, and when
 *
 * Each range that libfabric subscribes is a watch: a notifier, and the mappings
 * around it watched (umm_space_watch_around()).  A callback does no more than to
 * mark the watch LOST.  It must not call notify(): that takes libfabric's lock,
 * which is held by who may be waiting for us, and frees memory.
 *
 * libfabric asks valid() before each use of what it has cached: a LOST watch is
 * not.  So who changes memory and then sends it is right however late the rest is.
 * The rest: a thread calls notify() for what is LOST, so that caches let go of
 * entries that nobody looks for again.
 *
 * Several caches may subscribe the same range and share its watch; valid() does
 * not say which of them asks.  So a watch that is LOST stays so until the last of
 * them has let go.
 *
 * A change between the registration and its subscription, which follows at once,
 * is a race that the program has with itself.
 *
 * At fork the kernel gives the child copies of what is pinned, so that the parent
 * need not let go.  The child has no monitor: nothing is valid there, and nothing
 * is cached.
 *
 * DOC: locking
 *
 *	libfabric's -> lock (table, LOST)
 *	notifying (a call of notify(), or a fork) -> libfabric's
 *
 * "lock" is taken by callbacks: signals are blocked under it, and nothing is
 * called but umm_alloc() and umm_free().
 */
#include <errno.h>
#include <pthread.h>
#include <rdma/fi_ext.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "drivers/ofi/memmon.h"

#define PAGE 4096ul
#define BUCKETS 1024u
#define VERSION FI_VERSION(1, 13) /* the first that can import a monitor */

struct watch {
	struct umm_notifier notifier;
	uintptr_t addr; /* as libfabric has it, of any alignment */
	size_t len;
	unsigned users; /* entries of caches; 0: it is no longer in the table */
	bool lost;
	bool queued;
	struct watch *next;      /* in the table */
	struct watch *next_lost; /* in the queue, or of those that are about to end */
};

/* Monitor and hooks are of the process. */
static struct {
	struct fid_mem_monitor fid;
	int (*started)(struct umm_space *space);
	struct umm_space *space;
	pid_t pid;
	pthread_mutex_t notifying;
	pthread_mutex_t lock;
	struct watch *table[BUCKETS];
	struct watch *lost;
	sem_t work;
} M = {.notifying = PTHREAD_MUTEX_INITIALIZER, .lock = PTHREAD_MUTEX_INITIALIZER};

static void lock(sigset_t *old)
{
	sigset_t all;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, old);
	pthread_mutex_lock(&M.lock);
}

static void unlock(const sigset_t *old)
{
	pthread_mutex_unlock(&M.lock);
	pthread_sigmask(SIG_SETMASK, old, NULL);
}

static bool is_ours(void)
{
	return M.space && M.pid == getpid();
}

/* -------------------------------------------------------------------- table */

static struct watch **bucket(uintptr_t addr)
{
	return &M.table[(addr >> 12 ^ addr >> 22) % BUCKETS];
}

/* Lock held. */
static struct watch *find(uintptr_t addr, size_t len)
{
	struct watch *w = *bucket(addr);

	while (w && (w->addr != addr || w->len != len))
		w = w->next;
	return w;
}

/* Lock held. */
static void table_del(struct watch *w)
{
	struct watch **at = bucket(w->addr);

	while (*at != w)
		at = &(*at)->next;
	*at = w->next;
}

/* Nobody has it any more. */
static void watch_end(struct watch *w)
{
	umm_notifier_remove(&w->notifier);
	umm_free(M.space, w, sizeof(*w));
}

/* ------------------------------------------------------------------ changes */

static bool watch_invalidate(struct umm_notifier *n, const struct umm_change *change, uint64_t seq)
{
	struct watch *w = (struct watch *)n;

	if (change->event == UMM_EVENT_FORK)
		return true;
	if (change->blockable)
		pthread_mutex_lock(&M.lock);
	else if (pthread_mutex_trylock(&M.lock))
		return false;
	umm_notifier_set_seq(n, seq);
	w->lost = true;
	if (w->users && !w->queued) {
		w->queued = true;
		w->next_lost = M.lost;
		M.lost = w;
		sem_post(&M.work);
	}
	pthread_mutex_unlock(&M.lock);
	return true;
}

static const struct umm_notifier_ops watch_ops = {.invalidate = watch_invalidate};

static void *tell(void *arg)
{
	for (;;) {
		struct watch *w, *dead = NULL;
		uintptr_t addr = 0;
		size_t len = 0;
		sigset_t old;

		while (sem_wait(&M.work))
			;
		/* While it is in the table its place is known, and while it is not we are the ones to end it. */
		lock(&old);
		w = M.lost;
		if (w) {
			M.lost = w->next_lost;
			w->queued = false;
			addr = w->addr;
			len = w->len;
			if (!w->users)
				dead = w;
		}
		unlock(&old);
		if (dead) {
			watch_end(dead);
		} else if (w) {
			pthread_mutex_lock(&M.notifying);
			M.fid.import_ops->notify(&M.fid, (void *)addr, len);
			pthread_mutex_unlock(&M.notifying);
		}
	}
	return NULL;
}

/* ------------------------------------------------------- what libfabric calls */

static int mon_subscribe(struct fid_mem_monitor *fid, const void *at, size_t len)
{
	uintptr_t addr = (uintptr_t)at;
	uint64_t start = addr & ~(PAGE - 1), end = (addr + len + PAGE - 1) & ~(PAGE - 1), seq;
	struct watch *w;
	sigset_t old;
	bool lost;
	int rc;

	if (!is_ours())
		return -FI_ENOSYS;
	lock(&old);
	w = find(addr, len);
	if (w)
		w->users++;
	unlock(&old);
	if (w)
		return 0;
	w = umm_alloc(M.space, sizeof(*w));
	if (!w)
		return -FI_ENOMEM;
	w->addr = addr;
	w->len = len;
	rc = umm_notifier_insert(&w->notifier, M.space, start, end - start, &watch_ops);
	if (rc)
		goto fail;
	/* A change that runs now has not told us, and whoever makes it may wait for libfabric's lock: no waiting. */
	rc = umm_read_begin_until(&w->notifier, 1, &seq);
	if (!rc)
		rc = umm_space_watch_around(M.space, start, end);
	if (rc)
		goto fail_insert;
	lock(&old);
	lost = w->lost;
	if (!lost) {
		w->users = 1;
		w->next = *bucket(addr);
		*bucket(addr) = w;
	}
	unlock(&old);
	rc = -FI_EAGAIN;
	if (lost)
		goto fail_insert;
	return 0;
fail_insert:
	umm_notifier_remove(&w->notifier);
fail:
	umm_free(M.space, w, sizeof(*w));
	return rc;
}

static void mon_unsubscribe(struct fid_mem_monitor *fid, const void *addr, size_t len)
{
	struct watch *w;
	bool last = false;
	sigset_t old;

	if (!is_ours())
		return;
	lock(&old);
	w = find((uintptr_t)addr, len);
	if (w && !--w->users) {
		table_del(w);
		last = !w->queued;
	}
	unlock(&old);
	if (last)
		watch_end(w);
}

static bool mon_valid(struct fid_mem_monitor *fid, const void *addr, size_t len)
{
	struct watch *w;
	sigset_t old;
	bool valid;

	if (!is_ours())
		return false;
	umm_space_sync(M.space);
	lock(&old);
	w = find((uintptr_t)addr, len);
	valid = w && !w->lost;
	unlock(&old);
	return valid;
}

/* A page of our own is watched, so that all that takes memory is there before libfabric holds a lock. */
static int serve(struct umm_space *space)
{
	void *page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int rc;

	if (page == MAP_FAILED)
		return -errno;
	rc = umm_space_watch(space, (uintptr_t)page, PAGE);
	munmap(page, PAGE);
	return rc;
}

static int mon_start(struct fid_mem_monitor *fid)
{
	struct umm_space *space;
	sigset_t all, old;
	pthread_t thread;
	int rc;

	if (M.space)
		return is_ours() ? 0 : -FI_ENOSYS;
	rc = umm_space_open_self(&space);
	if (rc)
		goto fail;
	rc = serve(space);
	if (rc)
		goto fail_space;
	rc = M.started(space);
	if (rc)
		goto fail_space;
	sem_init(&M.work, 0, 0);
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	rc = -pthread_create(&thread, NULL, tell, NULL);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (rc) {
		M.started(NULL);
		goto fail_space;
	}
	pthread_detach(thread);
	M.pid = getpid();
	M.space = space;
	return 0;
fail_space:
	umm_space_close(space);
fail:
	fprintf(stderr, "hmm: memory cannot be watched (%s): libfabric registers without a cache; see hmm doctor\n",
		strerror(-rc));
	return rc;
}

/* What has been watched has been unsubscribed; hooks and threads stay, as other calls may be in them. */
static void mon_stop(struct fid_mem_monitor *fid)
{
}

/* ------------------------------------------------------------------- import */

static void fork_prepare(void)
{
	pthread_mutex_lock(&M.notifying);
}

static void fork_done(void)
{
	pthread_mutex_unlock(&M.notifying);
}

int memmon_import(int (*started)(struct umm_space *space))
{
	static struct fi_ops_mem_monitor ops = {
		.size = sizeof(ops),
		.start = mon_start,
		.stop = mon_stop,
		.subscribe = mon_subscribe,
		.unsubscribe = mon_unsubscribe,
		.valid = mon_valid,
	};
	int rc;

	M.started = started;
	M.fid.fid.fclass = FI_CLASS_MEM_MONITOR;
	M.fid.export_ops = &ops;
	rc = fi_import(VERSION, "mr_cache", NULL, 0, 0, &M.fid.fid, NULL);
	if (!rc)
		pthread_atfork(fork_prepare, fork_done, fork_done);
	return rc;
}
