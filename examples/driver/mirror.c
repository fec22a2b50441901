/* SPDX-License-Identifier: MIT */
/*
 * A mirror by hand: a notifier, a table of what may be used, and the loop that
 * keeps it right.  Whoever uses hmm_range_map() (map.c) has all this done.
 */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <string.h>

#include "example.h"
#include "umm.h"

#define NR 64u

struct mirror {
	struct umm_notifier notifier; /* first */
	struct umm_space *space;
	uint64_t start, end;
	pthread_mutex_t lock; /* the driver's: table */
	uint8_t table[NR];    /* the device's page table: 0, or what it may do */
};

#define MAY_READ 1u
#define MAY_WRITE 2u

/* With signals blocked: a handler that touched memory might wait for a callback that waits for this lock. */
static void lock(struct mirror *m, sigset_t *old)
{
	sigset_t all;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, old);
	pthread_mutex_lock(&m->lock);
}

static void unlock(struct mirror *m, const sigset_t *old)
{
	pthread_mutex_unlock(&m->lock);
	pthread_sigmask(SIG_SETMASK, old, NULL);
}

static bool mirror_invalidate(struct umm_notifier *n, const struct umm_change *change, uint64_t seq)
{
	struct mirror *m = (struct mirror *)n;
	uint64_t start = change->start > m->start ? change->start : m->start;
	uint64_t end = change->end < m->end ? change->end : m->end;

	if (change->blockable)
		pthread_mutex_lock(&m->lock);
	else if (pthread_mutex_trylock(&m->lock))
		return false;
	umm_notifier_set_seq(n, seq);
	if (start < end)
		memset(&m->table[(start - m->start) / PAGE], 0, (end - start) / PAGE);
	pthread_mutex_unlock(&m->lock);
	return true;
}

static const struct umm_notifier_ops mirror_ops = {.invalidate = mirror_invalidate};

static int mirror_fault(struct mirror *m, bool write, uint64_t deadline_ns)
{
	uint64_t entries[NR];
	struct umm_range range = {
		.space = m->space,
		.notifier = &m->notifier,
		.start = m->start,
		.end = m->end,
		.entries = entries,
		.default_flags = UMM_PFN_REQ_FAULT | (write ? UMM_PFN_REQ_WRITE : 0),
		.deadline_ns = deadline_ns,
	};
	sigset_t old;
	int rc;

again:
	rc = umm_read_begin_until(&m->notifier, deadline_ns, &range.notifier_seq);
	if (rc)
		return rc;
	rc = umm_range_fault(&range);
	if (rc == -EBUSY) {
		sched_yield();
		goto again; /* until the deadline: that is -ETIME */
	}
	if (rc)
		return rc;
	lock(m, &old);
	if (umm_read_retry(&m->notifier, range.notifier_seq)) {
		unlock(m, &old);
		goto again;
	}
	for (unsigned i = 0; i < NR; i++)
		m->table[i] = MAY_READ | (entries[i] & UMM_PFN_WRITE ? MAY_WRITE : 0);
	unlock(m, &old);
	return 0;
}

static unsigned mirror_may(struct mirror *m, unsigned i)
{
	sigset_t old;
	unsigned may;

	lock(m, &old);
	may = m->table[i];
	unlock(m, &old);
	return may;
}

int main(void)
{
	struct umm_space *space;
	struct mirror *m;
	char *mem = example_memory(NR);
	int rc;

	CHECK(!umm_space_open_self(&space));
	/* Callbacks look into it: not malloc's. */
	m = umm_alloc(space, sizeof(*m));
	CHECK(m);
	m->space = space;
	m->start = (uintptr_t)mem;
	m->end = m->start + NR * PAGE;
	pthread_mutex_init(&m->lock, NULL);
	CHECK(!umm_notifier_insert(&m->notifier, space, m->start, m->end - m->start, &mirror_ops));

	/* Without hooks it is the kernel that tells: of what is watched. */
	rc = umm_space_watch(space, m->start, m->end - m->start);
	if (rc == -EPERM || rc == -ENOSYS) {
		printf("SKIP: no userfaultfd: error %d\n", -rc);
		return SKIP;
	}
	CHECK(!rc);

	CHECK(!mirror_fault(m, true, in_seconds(60)));
	CHECK(mirror_may(m, 0) == (MAY_READ | MAY_WRITE) && mirror_may(m, NR - 1) == (MAY_READ | MAY_WRITE));

	/* The contents of one page are dropped: the device has it no more, and gets it again. */
	CHECK(!madvise(mem + 5 * PAGE, PAGE, MADV_DONTNEED));
	while (mirror_may(m, 5))
		sched_yield();
	CHECK(mirror_may(m, 4) && mirror_may(m, 6));
	CHECK(!mirror_fault(m, true, in_seconds(60)));
	CHECK(mirror_may(m, 5) == (MAY_READ | MAY_WRITE));

	/* Nobody tells of a raw mprotect(); who faults finds out. */
	CHECK(!mprotect(mem, PAGE, PROT_READ));
	CHECK(mirror_fault(m, true, in_seconds(60)) == -EPERM);
	CHECK(!munmap(mem, PAGE));
	CHECK(mirror_fault(m, false, in_seconds(60)) == -EFAULT);

	umm_notifier_remove(&m->notifier);
	umm_space_close(space);
	return 0;
}
