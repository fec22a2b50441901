/* SPDX-License-Identifier: MIT */
/* An address space: its descriptors and its life. */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "umm/clock.h"
#include "umm/internal.h"
#include "umm/sys.h"

#define UNWATCH_TRIES 1000u
#define SPARE_MAPS 9u

static int proc_open(pid_t pid, const char *what)
{
	char path[64];

	if (pid)
		snprintf(path, sizeof(path), "/proc/%d/%s", (int)pid, what);
	else
		snprintf(path, sizeof(path), "/proc/self/%s", what);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd >= 0)
		return fd;
	return errno == ENOENT && pid ? -ESRCH : -errno;
}

static struct umm_space *space_alloc(void)
{
	struct umm_space *s = calloc(1, sizeof(*s));

	if (!s)
		return NULL;
	s->refs = 1;
	s->uffd = -1;
	s->pagemap_fd = -1; /* apart: clang takes no chain of atomics */
	s->maps_fd = -1;
	pthread_mutex_init(&s->lock, NULL);
	umm_notifiers_init(&s->notifiers);
	/* Hooked calls may follow one another without end: the engine must get its turn. */
	pthread_rwlockattr_t attr;
	pthread_rwlockattr_init(&attr);
	pthread_rwlockattr_setkind_np(&attr, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
	pthread_rwlock_init(&s->layout, &attr);
	pthread_rwlockattr_destroy(&attr);
	pthread_mutex_init(&s->quarantine.lock, NULL);
	return s;
}

static int space_open(pid_t pid, struct umm_space **spacep)
{
	struct umm_space *s = space_alloc();
	int rc;

	if (!s)
		return -ENOMEM;
	s->pid = pid ? pid : getpid();
	s->self = !pid;
	rc = -ENOMEM;
	if (s->self && !(s->arena = umm_arena_new()))
		goto fail;
	s->pagemap_fd = rc = proc_open(pid, "pagemap");
	if (rc < 0)
		goto fail;
	s->maps_fd = rc = proc_open(pid, "maps");
	if (rc < 0)
		goto fail;
	*spacep = s;
	return 0;
fail:
	umm_space_put(s);
	return rc;
}

int umm_space_open_self(struct umm_space **spacep)
{
	return space_open(0, spacep);
}

int umm_space_open_pid(pid_t pid, struct umm_space **spacep)
{
	if (pid <= 0)
		return -ESRCH;
	return space_open(pid, spacep);
}

int umm_fd_replace(_Atomic int *to, int fd)
{
	int old = -1, rc = 0;

	if (fd < 0 || atomic_compare_exchange_strong(to, &old, fd))
		return 0;
	while (!rc && dup3(fd, old, O_CLOEXEC) < 0)
		if (errno != EINTR && errno != EBUSY) /* EBUSY: somebody opens something at this moment */
			rc = -errno;
	close(fd);
	return rc;
}

int umm_space_adopt(pid_t pid, int uffd, int pagemap_fd, int maps_fd, struct umm_ctl *ctl, struct umm_space **spacep)
{
	struct umm_space *s = space_alloc();

	if (!s) {
		close(uffd);
		if (pagemap_fd >= 0)
			close(pagemap_fd);
		if (maps_fd >= 0)
			close(maps_fd);
		return -ENOMEM;
	}
	s->pid = pid;
	s->uffd = uffd;
	s->pagemap_fd = pagemap_fd;
	s->maps_fd = maps_fd;
	s->ctl = ctl;
	*spacep = s;
	return 0;
}

int umm_space_let_go(struct umm_space *space)
{
	int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);

	return fd < 0 ? -errno : umm_fd_replace(&space->uffd, fd);
}

bool umm_same_pidns(pid_t pid)
{
	char path[64], theirs[64] = "", ours[64] = "";

	snprintf(path, sizeof(path), "/proc/%d/ns/pid", (int)pid);
	return readlink(path, theirs, sizeof(theirs) - 1) > 0 &&
	       readlink("/proc/self/ns/pid", ours, sizeof(ours) - 1) > 0 && !strcmp(ours, theirs);
}

void umm_space_get(struct umm_space *space)
{
	atomic_fetch_add(&space->refs, 1);
}

void umm_space_put(struct umm_space *s)
{
	if (atomic_fetch_sub(&s->refs, 1) != 1)
		return;
	if (s->destroy)
		s->destroy(s->priv);
	umm_notifiers_destroy(s);
	pthread_rwlock_destroy(&s->layout);
	pthread_mutex_destroy(&s->quarantine.lock);
	pthread_mutex_destroy(&s->lock);
	if (s->uffd >= 0)
		close(s->uffd);
	if (s->pagemap_fd >= 0)
		close(s->pagemap_fd);
	if (s->maps_fd >= 0)
		close(s->maps_fd);
	if (s->self)
		umm_free(s, s->ctl, sizeof(*s->ctl));
	umm_arena_free(s->arena);
	free(s);
}

void umm_space_abandon(struct umm_space *s)
{
	/* A userfaultfd that a child has inherited acts on its parent's memory. */
	if (s->uffd >= 0)
		sys_close(s->uffd);
	if (s->pagemap_fd >= 0)
		sys_close(s->pagemap_fd);
	if (s->maps_fd >= 0)
		sys_close(s->maps_fd);
	if (s->monitor)
		umm_monitor_abandon(s->monitor);
	if (s->ops && s->ops->abandon)
		s->ops->abandon(s->priv);
}

/*
 * Whoever unmaps what is watched, release() or free() of ours, sleeps until that has been read: by the monitor, and
 * before that goes nothing may be watched any more.
 */
static void let_go_first(struct umm_space *space)
{
	if (space->ops && space->ops->holds && space->ops->holds(space->priv, 0, UINT64_MAX))
		return; /* an engine that was not closed: unregistered, what is away would read as zeros */
	umm_notifiers_release(space);
	if (!umm_space_let_go(space))
		return;
	umm_monitor_stop(space->monitor);
	close(atomic_exchange(&space->uffd, -1));
}

void umm_space_close(struct umm_space *space)
{
	struct umm_monitor *own;

	if (!space)
		return;
	own = space->own_monitor ? space->monitor : NULL;
	if (own) {
		let_go_first(space);
		umm_monitor_destroy(own); /* it has no other */
	} else if (space->monitor) {
		umm_monitor_del(space);
	}
	umm_space_put(space);
}

struct umm_notifiers *umm_space_notifiers(struct umm_space *space)
{
	return &space->notifiers;
}

int umm_space_pagemap_fd(struct umm_space *space)
{
	return space->pagemap_fd;
}

int umm_space_populate(struct umm_space *space, uint64_t start, uint64_t len, bool write)
{
	int rc = 0;

	if (!space->self)
		return -EOPNOTSUPP;
	/* Twice, for no quarantine ends while somebody populates. */
	if (umm_quarantined(space, start, start + len))
		return -EBUSY;
	umm_quarantine_populate_begin(space);
	if (umm_quarantined(space, start, start + len))
		rc = -EBUSY;
	else if (madvise((void *)(uintptr_t)start, len, write ? MADV_POPULATE_WRITE : MADV_POPULATE_READ))
		rc = -errno;
	umm_quarantine_populate_end(space, start, start + len);
	return rc;
}

/* The descriptor and the monitor of a linked space come with the first range that somebody wants watched. */
int umm_space_serve(struct umm_space *s)
{
	sigset_t old;
	int rc = 0;

	if (!s->self)
		return -EOPNOTSUPP;
	signals_block(&old); /* a hook in a handler may look at mappings (umm_vma_next()) */
	pthread_mutex_lock(&s->lock);
	if (s->own_monitor)
		goto out;
	if (!s->ctl) {
		s->ctl = umm_alloc(s, sizeof(*s->ctl));
		if (!s->ctl) {
			rc = -ENOMEM;
			goto out;
		}
	}
	if (s->uffd < 0) {
		rc = umm_inside_uffd();
		if (rc < 0)
			goto out;
		s->uffd = rc;
		rc = umm_uffd_api(s->uffd, UMM_UFFD_BASE | UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED,
				  UFFD_FEATURE_EVENT_FORK, &s->features);
		if (rc) {
			close(s->uffd);
			s->uffd = -1;
			goto out;
		}
		atomic_store(&s->ctl->no_fork_events, !(s->features & UFFD_FEATURE_EVENT_FORK));
	}
	if (!s->monitor) {
		struct umm_monitor *m;

		rc = umm_monitor_create(2, false, &m);
		if (rc)
			goto out;
		rc = umm_monitor_add(m, s);
		if (rc) {
			umm_monitor_destroy(m);
			goto out;
		}
	}
	s->own_monitor = true;
out:
	pthread_mutex_unlock(&s->lock);
	signals_restore(&old);
	return rc;
}

/* Pages of a private anonymous mapping may be away, or come to be: faults on it go on being told. */
static uint64_t watch_mode(const struct umm_space *space, const struct umm_vma *v, bool missing)
{
	bool anon = !(v->flags & (UMM_VMA_SHARED | UMM_VMA_FILE | UMM_VMA_SPECIAL | UMM_VMA_HUGETLB));

	return UFFDIO_REGISTER_MODE_WP |
	       (anon && space->ops &&
				(missing || (space->ops->holds && space->ops->holds(space->priv, v->start, v->end)))
			? UFFDIO_REGISTER_MODE_MISSING
			: 0);
}

static bool range_is_good(uint64_t start, uint64_t len)
{
	return len && !((start | len) % UMM_PAGE) && start + len > start;
}

/*
 * What is mapped there by now: of a mapping that was looked at a part may have gone.  @missing: also what is not on
 * record as held may be, so as far as it can be.
 */
static int register_mapped(struct umm_space *space, uint64_t start, uint64_t len, bool missing)
{
	int rc = 0, failed = 0;

	if (!space->ops)
		return umm_uffd_register(space->uffd, start, len, UFFDIO_REGISTER_MODE_WP);
	for (uint64_t at = start, end = start + len; at < end && !rc;) {
		struct umm_vma v;
		uint64_t z;

		rc = umm_vma_next(space, at, &v);
		if (missing && (rc == -ENOENT || (!rc && v.start >= end)))
			return failed;
		if (rc || v.start >= end)
			return rc == -ENOENT || !rc ? -EINVAL : rc;
		at = v.start > at ? v.start : at;
		z = v.end < end ? v.end : end;
		rc = umm_uffd_register(space->uffd, at, z - at, watch_mode(space, &v, missing));
		at = z;
		/* What refuses it is nothing that could be away. */
		if (missing) {
			failed = rc == -ENOMEM ? rc : failed;
			rc = 0;
		}
	}
	return rc ? rc : failed;
}

/* Never of the arena: who reads events empties what is freed there, and would wait until that has been read. */
static int watch(struct umm_space *space, uint64_t start, uint64_t len)
{
	int rc = umm_space_serve(space);

	if (!rc && umm_arena_meets(space->arena, start, start + len))
		rc = -EINVAL;
	return rc ? rc : register_mapped(space, start, len, false);
}

/* 0, or -EINVAL: something of it is not mapped. */
static int has_no_hole(struct umm_space *space, uint64_t start, uint64_t end)
{
	while (start < end) {
		struct umm_vma v;
		int rc = umm_vma_next(space, start, &v);

		if (rc)
			return rc == -ENOENT ? -EINVAL : rc;
		if (v.start > start)
			return -EINVAL;
		start = v.end;
	}
	return 0;
}

int umm_space_watch(struct umm_space *space, uint64_t start, uint64_t len)
{
	int rc;

	if (!range_is_good(start, len))
		return -EINVAL;
	/* The kernel registers what there is; of what comes to a hole later nobody would hear. */
	rc = has_no_hole(space, start, start + len);
	return rc ? rc : watch(space, start, len);
}

static void spare_maps_put(char **spare)
{
	if (*spare)
		sys2(SYS_munmap, *spare, SPARE_MAPS * UMM_PAGE);
	*spare = NULL;
}

/*
 * Mappings that are given up where registering again meets -ENOMEM: what was let go of may have become one with its
 * neighbours, and the kernel allows so many mappings and no more.  No two of them become one.
 */
static int spare_maps_get(char **spare)
{
	long at = sys6(SYS_mmap, 0, SPARE_MAPS * UMM_PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (at < 0 && at > -4096)
		return -ENOMEM;
	*spare = (char *)at;
	for (unsigned i = 1; i < SPARE_MAPS; i += 2) {
		if (!sys3(SYS_mprotect, *spare + i * UMM_PAGE, UMM_PAGE, PROT_READ))
			continue;
		spare_maps_put(spare);
		return -ENOMEM;
	}
	return 0;
}

/* Event lock held exclusively. */
static int watch_again(struct umm_space *space, uint64_t start, uint64_t len, char **spare)
{
	int rc = register_mapped(space, start, len, true);

	if (rc == -ENOMEM) {
		spare_maps_put(spare);
		rc = register_mapped(space, start, len, true);
	}
	/* Another thread has taken what was given up: whatever is away there would read as zeros. */
	if (rc && space->ops->lost)
		space->ops->lost(space->priv, "no memory to watch again what was just let go of");
	return rc;
}

int umm_space_unwatch(struct umm_space *space, uint64_t start, uint64_t len)
{
	char *spare = NULL;
	bool again = true;
	sigset_t old;
	int rc = 0;

	if (space->uffd < 0 || !range_is_good(start, len))
		return -EINVAL;
	/* Before anything is changed. */
	if (space->ops && spare_maps_get(&spare))
		return -ENOMEM;
	signals_block(&old);
	/* What changes without end stays watched, which does no harm. */
	for (unsigned tries = 0; again && !rc && tries < UNWATCH_TRIES; tries++) {
		if (space->ops)
			umm_space_drain(space);
		/* Nobody begins to hold any of it in between: whoever does registers it with the lock shared. */
		umm_evlock_excl(&space->ctl->evlock);
		again = false;
		/* Unregistered, what is away would read as zeros. */
		if (!space->ops || !space->ops->holds || !space->ops->holds(space->priv, start, start + len)) {
			rc = umm_uffd_unregister(space->uffd, start, len);
			/* Also after an error, which may have come half-way. */
			again = space->ops && umm_uffd_is_changing(space->uffd);
		}
		/* And so would what mremap() has brought there just now: nobody knows of it before its event is read.
		 */
		if (again) {
			int back = watch_again(space, start, len, &spare);

			rc = rc ? rc : back;
		}
		umm_evlock_unexcl(&space->ctl->evlock);
	}
	signals_restore(&old);
	spare_maps_put(&spare);
	return rc;
}

int umm_space_watch_around(struct umm_space *space, uint64_t start, uint64_t end)
{
	int first = 0;

	if (!range_is_good(start, end - start))
		return -EINVAL;
	for (uint64_t at = start; at < end;) {
		struct umm_vma v;
		int rc = umm_vma_next(space, at, &v);

		if (rc == -ENOENT || (!rc && v.start > at))
			return -EFAULT;
		if (!rc)
			rc = watch(space, v.start, v.end - v.start);
		if (!first)
			first = rc;
		if (rc == -ENOMEM || rc == -ESRCH)
			break;
		at = v.end;
	}
	return first;
}

/* Who reads events holds the event lock until they are applied. */
static void wait_applied(struct umm_space *space)
{
	sigset_t old;

	if (umm_space_in_sync(space))
		return;
	signals_block(&old);
	umm_evlock_shared(&space->ctl->evlock);
	umm_evlock_unshared(&space->ctl->evlock);
	signals_restore(&old);
}

/*
 * An unmap's event comes after the change: another thread may have mapped the same
 * addresses, and use them, before it is read, and even before it can be read.  But
 * the kernel says that something is changing from before the change until its
 * event was read.
 */
int umm_space_sync_until(struct umm_space *space, uint64_t deadline_ns)
{
	unsigned tries = 0;
	sigset_t old;

	wait_applied(space);
	while (space->uffd >= 0 && umm_uffd_is_changing(space->uffd)) {
		if (deadline_ns && umm_now_ns() >= deadline_ns)
			return -ETIME;
		signals_block(&old);
		umm_space_drain(space);
		signals_restore(&old);
		umm_yield(tries++);
	}
	wait_applied(space);
	return 0;
}

void umm_space_sync(struct umm_space *space)
{
	umm_space_sync_until(space, 0);
}
