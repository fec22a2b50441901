/* SPDX-License-Identifier: MIT */
/*
 * A mirror beside a raw MADV_DONTNEED that takes long: the model drop.pml on the kernel.
 *
 * The range has one page at its start, which is the sign, and then page tables
 * that are empty, through which the call walks for a while.  When it is told of, a
 * page at the end is touched; when the sign has gone, that page is asked for.
 * What is mapped then, and is not taken back, is there when the call has returned.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#include "umm/internal.h"

#define TABLE (2ul << 20)
#define TABLES 400ul
#define SPAN (TABLES * TABLE)
#define ROUNDS 60u

struct mirror {
	struct umm_notifier n;
	struct umm_space *space;
	pthread_mutex_t lock;
	char *mem, *last;
	bool mapped; /* lock */
	_Atomic bool told, go;
};

static bool invalidate(struct umm_notifier *n, const struct umm_change *c, uint64_t seq)
{
	struct mirror *m = (struct mirror *)n;

	pthread_mutex_lock(&m->lock);
	umm_notifier_set_seq(n, seq);
	m->mapped = false;
	pthread_mutex_unlock(&m->lock);
	if (c->event == UMM_EVENT_CLEAR) {
		*(volatile char *)m->last = 1;
		atomic_store(&m->told, true);
	}
	return true;
}

static void *drops(void *arg)
{
	struct mirror *m = arg;

	while (!atomic_load(&m->go))
		sched_yield();
	sys3(SYS_madvise, m->mem, SPAN, MADV_DONTNEED);
	return NULL;
}

/* Map the last page, as a driver does. */
static int map_last(struct mirror *m)
{
	uint64_t entry, start = (uintptr_t)m->last;
	struct umm_range r = {.space = m->space,
			      .notifier = &m->n,
			      .start = start,
			      .end = start + UMM_PAGE,
			      .entries = &entry,
			      .default_flags = UMM_PFN_REQ_FAULT};
	int rc;

	do {
		entry = 0;
		r.notifier_seq = umm_read_begin(&m->n);
		rc = umm_range_fault(&r);
		pthread_mutex_lock(&m->lock);
		if (!rc && umm_read_retry(&m->n, r.notifier_seq))
			rc = -EBUSY;
		m->mapped |= !rc;
		pthread_mutex_unlock(&m->lock);
	} while (rc == -EBUSY);
	return rc;
}

static bool present(const void *p)
{
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	uint64_t e = 0;

	if (pread(fd, &e, sizeof(e), (off_t)((uintptr_t)p / UMM_PAGE * sizeof(e))) != sizeof(e))
		e = 0;
	close(fd);
	return e >> 63;
}

/* 0; 1: it has mapped what is not there; -errno. */
static int one_round(struct mirror *m)
{
	static const struct umm_notifier_ops ops = {.invalidate = invalidate};
	char *all =
		mmap(NULL, SPAN + TABLE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	pthread_t t;
	int rc;

	if (all == MAP_FAILED)
		return -ENOMEM;
	m->mem = (char *)(((uintptr_t)all + TABLE - 1) & ~(TABLE - 1));
	m->last = m->mem + SPAN - UMM_PAGE;
	m->mapped = false;
	atomic_store(&m->told, false);
	atomic_store(&m->go, false);
	madvise(m->mem, SPAN, MADV_NOHUGEPAGE);
	for (unsigned long i = 1; i < TABLES; i++) {
		m->mem[i * TABLE] = 1;
		madvise(m->mem + i * TABLE, UMM_PAGE, MADV_DONTNEED);
	}
	m->mem[0] = 1;
	rc = umm_space_watch(m->space, (uintptr_t)m->mem, SPAN);
	if (!rc)
		rc = umm_notifier_insert(&m->n, m->space, (uintptr_t)m->mem, SPAN, &ops);
	if (!rc)
		rc = -pthread_create(&t, NULL, drops, m);
	if (rc)
		return rc;
	atomic_store(&m->go, true);
	while (!atomic_load(&m->told))
		sched_yield();
	rc = map_last(m);
	pthread_join(t, NULL);
	umm_evlock_applied(&m->space->ctl->evlock);
	if (!rc)
		rc = m->mapped && !present(m->last);
	umm_notifier_remove(&m->n);
	umm_space_unwatch(m->space, (uintptr_t)m->mem, SPAN);
	munmap(all, SPAN + TABLE);
	return rc;
}

int main(void)
{
	static struct mirror m = {.lock = PTHREAD_MUTEX_INITIALIZER};
	unsigned stale = 0;
	int rc = umm_space_open_self(&m.space);

	for (unsigned i = 0; i < ROUNDS && rc >= 0; i++) {
		rc = one_round(&m);
		stale += rc > 0;
	}
	if (rc == -EPERM || rc == -EACCES || rc == -ENOENT) {
		printf("SKIP: no userfaultfd\n");
		return 77;
	}
	printf("%u of %u rounds: what was mapped is not there\n", stale, ROUNDS);
	umm_space_close(m.space);
	return rc < 0 || stale;
}
