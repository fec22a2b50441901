/* SPDX-License-Identifier: MIT */
/*
 * A device with a page table of its own, in software: it copies pages, and
 * faults at what it has not mapped.
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include "example.h"
#include "hmm.h"

#define NR 64u

struct job {
	uint64_t addr;
	bool stale;
	struct job *next;
};

struct toy {
	struct hmm_device dev; /* first */
	struct hmm_range *range;
	pid_t self;
	uint64_t start;
	pthread_mutex_t lock; /* the driver's: table, jobs */
	pthread_cond_t done;  /* a job */
	uint8_t table[NR];
	struct job *jobs;
};

#define MAY_READ 1u
#define MAY_WRITE 2u

static int toy_map(struct hmm_device *dev, struct hmm_range *range, const struct hmm_map_run *run)
{
	struct toy *t = (struct toy *)dev;

	pthread_mutex_lock(&t->lock);
	memset(&t->table[(run->addr - t->start) / PAGE], MAY_READ | (run->write ? MAY_WRITE : 0), run->npages);
	pthread_mutex_unlock(&t->lock);
	return 0;
}

static void toy_unmap(struct hmm_device *dev, struct hmm_range *range, const struct hmm_map_run *run,
		      const struct umm_change *why, uint64_t *dirty)
{
	struct toy *t = (struct toy *)dev;

	/* It writes through the kernel, which marks pages by itself; else bits of @dirty would be set here. */
	pthread_mutex_lock(&t->lock);
	memset(&t->table[(run->addr - t->start) / PAGE], 0, run->npages);
	pthread_mutex_unlock(&t->lock);
}

static bool toy_settle(struct hmm_device *dev, struct hmm_range *range, uint64_t start, uint64_t end,
		       const struct umm_change *why)
{
	struct toy *t = (struct toy *)dev;
	bool late = why && why->late, may_sleep = !why || why->blockable, busy;

	pthread_mutex_lock(&t->lock);
	for (;;) {
		busy = false;
		for (struct job *j = t->jobs; j; j = j->next) {
			if (j->addr < start || j->addr >= end)
				continue;
			if (late)
				j->stale = true; /* its result will not count */
			else
				busy = true;
		}
		if (!busy || !may_sleep)
			break;
		pthread_cond_wait(&t->done, &t->lock);
	}
	pthread_mutex_unlock(&t->lock);
	return !busy;
}

static const struct hmm_device_ops toy_ops = {
	.name = "toy",
	.caps = HMM_DEV_MAP | HMM_DEV_FAULT,
	.map = toy_map,
	.unmap = toy_unmap,
	.settle = toy_settle,
};

/* The device at work on a page.  False: it has no entry for it, or has lost it, or met something else there. */
static bool toy_run(struct toy *t, uint64_t addr, char *buf, bool write)
{
	struct iovec local = {buf, PAGE}, remote = {(void *)(uintptr_t)addr, PAGE};
	struct job job = {.addr = addr}, **link;
	unsigned need = write ? MAY_READ | MAY_WRITE : MAY_READ;
	sigset_t all, old;
	ssize_t n;
	bool ok;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	pthread_mutex_lock(&t->lock);
	ok = (t->table[(addr - t->start) / PAGE] & need) == need;
	if (ok) {
		job.next = t->jobs;
		t->jobs = &job;
		/* The page may be away, and the copy wait for it: not under the lock. */
		pthread_mutex_unlock(&t->lock);
		n = write ? process_vm_writev(t->self, &local, 1, &remote, 1, 0)
			  : process_vm_readv(t->self, &local, 1, &remote, 1, 0);
		pthread_mutex_lock(&t->lock);
		for (link = &t->jobs; *link != &job;)
			link = &(*link)->next;
		*link = job.next;
		ok = n == (ssize_t)PAGE && !job.stale;
		pthread_cond_broadcast(&t->done);
	}
	pthread_mutex_unlock(&t->lock);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	return ok;
}

static int toy_copy(struct toy *t, uint64_t addr, char *buf, bool write, uint64_t deadline_ns)
{
	while (!toy_run(t, addr, buf, write)) {
		int rc;

		/* An entry that is there, and yet of no use: nobody has told us of what happened. */
		if (hmm_range_mapped(t->range, addr, addr + PAGE, write))
			hmm_range_unmap(t->range, addr, addr + PAGE, NULL);
		rc = hmm_range_map(t->range, addr, addr + PAGE, write ? HMM_MAP_WRITE : 0, deadline_ns);
		if (rc)
			return rc;
	}
	return 0;
}

int main(void)
{
	struct umm_space *space;
	struct toy *t;
	char *mem = example_memory(NR), *buf;
	int rc;

	CHECK(!umm_space_open_self(&space));
	t = umm_alloc(space, sizeof(*t));
	buf = umm_alloc(space, PAGE);
	CHECK(t && buf);
	t->dev.ops = &toy_ops;
	t->self = getpid();
	t->start = (uintptr_t)mem;
	pthread_mutex_init(&t->lock, NULL);
	pthread_cond_init(&t->done, NULL);
	CHECK(!hmm_range_open(space, NULL, &t->dev, t->start, t->start + NR * PAGE, t, &t->range));
	rc = umm_space_watch(space, t->start, NR * PAGE);
	if (rc == -EPERM || rc == -ENOSYS) {
		printf("SKIP: no userfaultfd: error %d\n", -rc);
		return SKIP;
	}
	CHECK(!rc);

	/* Both see what the other one writes. */
	memset(buf, 1, PAGE);
	CHECK(!toy_copy(t, t->start, buf, true, in_seconds(60)));
	CHECK(mem[0] == 1 && mem[PAGE - 1] == 1);
	memset(mem, 2, NR * PAGE);
	CHECK(!hmm_range_map(t->range, t->start, t->start + NR * PAGE, 0, in_seconds(60)));
	for (unsigned i = 0; i < NR; i++) {
		CHECK(!toy_copy(t, t->start + i * PAGE, buf, false, in_seconds(60)));
		CHECK(buf[0] == 2 && buf[PAGE - 1] == 2);
	}

	/* What changes is taken from it, and what is not allowed is an error. */
	CHECK(!madvise(mem, PAGE, MADV_DONTNEED));
	while (hmm_range_mapped(t->range, t->start, t->start + PAGE, false))
		usleep(100);
	CHECK(!toy_copy(t, t->start, buf, false, in_seconds(60)));
	CHECK(buf[0] == 0);
	CHECK(!mprotect(mem + PAGE, PAGE, PROT_READ));
	CHECK(toy_copy(t, t->start + PAGE, buf, true, in_seconds(60)) == -EPERM);
	CHECK(!munmap(mem + 2 * PAGE, PAGE));
	CHECK(toy_copy(t, t->start + 2 * PAGE, buf, false, in_seconds(60)) == -EFAULT);

	hmm_range_close(t->range);
	umm_space_close(space);
	return 0;
}
