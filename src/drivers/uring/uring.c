/* SPDX-License-Identifier: MIT */
/*
 * The driver for io_uring's fixed buffers: a device that pins.
 *
 * DOC: a slot
 *
 * The kernel's table of buffers is sparse.  A range gets a slot (range->cookie,
 * one more than its number) when it is mapped first, and keeps it until it ends;
 * mapping fills the slot and unmapping empties it, in place.  So while a
 * transfer holds its registration its slot is that range's, or empty, and never
 * another's.  Transfers that the kernel has begun keep the pages until they end.
 *
 * A slot that was emptied before the kernel came to a transfer makes it fail with
 * EFAULT.  Memory may be perfectly good again by then, so it is begun once more
 * without a registration, and what the kernel says to that is the answer.
 *
 * What another thread has freed the program may be given at once, and read into,
 * before anybody was told that it was unmapped.  So before transfers are handed
 * over the kernel is asked, once for all of them, and which of them have lost their
 * registration go without.
 *
 * At fork the kernel gives the child copies of pinned pages: slots stay filled
 * (test/kernel/uring_fixed_keeps_over_fork).
 *
 * DOC: locking
 *
 * slots.lock is taken in map and forget alone, which are calls of ours, never
 * callbacks.  unmap is one system call, and may come from any thread.
 */
#include <errno.h>
#include <liburing.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "hmm_uring.h"

#define DEPTH 64u
#define DEPTH_MOST 4096u
#define BUFFERS 1024u
#define BUFFERS_LEAST 4u
#define BUFFERS_MOST 16384u
#define SYNC_NS 1000000ull           /* a hand-over waits for what changes */
#define GET_NS 10000000ull           /* a range that does not hold still goes without */
#define LEN_MOST ((uint64_t)1 << 30) /* the kernel's, of one buffer */

/* A transfer. */
struct job {
	struct job *next;   /* of those that are free */
	struct job *queued; /* of those that are registered and not handed over */
	struct io_uring_sqe *sqe;
	struct hmm_reg *reg;
	void *user;
	char *buf;
	size_t len;
	int64_t offset;
	int fd;
	bool write;
};

struct slots {
	pthread_mutex_t lock;
	unsigned nfree;
	uint16_t free[BUFFERS_MOST];
};

struct hmm_uring {
	struct hmm_device dev;
	struct umm_space *space;
	struct io_uring ring;
	struct hmm_reg_cache *cache; /* NULL: nothing is registered */
	struct slots slots;
	unsigned depth, under_way;
	struct job *jobs, *free, *queued;
	struct hmm_uring_stats stats;
};

static struct hmm_uring *uring_of(struct hmm_device *dev)
{
	return (struct hmm_uring *)dev;
}

/* --------------------------------------------------------------- the device */

static int slot_fill(struct hmm_uring *u, uint64_t slot, uint64_t addr, uint64_t len)
{
	struct iovec v = {(void *)(uintptr_t)addr, len};
	__u64 tag = 0;
	int rc = io_uring_register_buffers_update_tag(&u->ring, (unsigned)slot, &v, &tag, 1);

	return rc == 1 ? 0 : rc ? rc : -EIO;
}

static int uring_map(struct hmm_device *dev, struct hmm_range *r, const struct hmm_map_run *run)
{
	struct hmm_uring *u = uring_of(dev);

	if (run->npages * HMM_PAGE_SIZE > LEN_MOST)
		return -E2BIG;
	if (!r->cookie) {
		pthread_mutex_lock(&u->slots.lock);
		if (u->slots.nfree)
			r->cookie = u->slots.free[--u->slots.nfree] + 1u;
		pthread_mutex_unlock(&u->slots.lock);
	}
	return r->cookie ? slot_fill(u, r->cookie - 1, run->addr, run->npages * HMM_PAGE_SIZE) : -ENOSPC;
}

static void uring_unmap(struct hmm_device *dev, struct hmm_range *r, const struct hmm_map_run *run,
			const struct umm_change *why, uint64_t *dirty)
{
	slot_fill(uring_of(dev), r->cookie - 1, 0, 0);
}

static void uring_forget(struct hmm_device *dev, struct hmm_range *r)
{
	struct slots *s = &uring_of(dev)->slots;

	if (!r->cookie)
		return;
	pthread_mutex_lock(&s->lock);
	s->free[s->nfree++] = (uint16_t)(r->cookie - 1);
	pthread_mutex_unlock(&s->lock);
}

static const struct hmm_device_ops uring_ops = {
	.name = "uring",
	.caps = HMM_DEV_MAP | HMM_DEV_PINNED | HMM_DEV_FORK_KEEPS,
	.map = uring_map,
	.unmap = uring_unmap,
	.forget = uring_forget,
};

/* ---------------------------------------------------------------- transfers */

static void prepare(struct hmm_uring *u, struct job *j)
{
	struct io_uring_sqe *sqe = j->sqe;

	if (j->reg && j->write)
		io_uring_prep_write_fixed(sqe, j->fd, j->buf, (unsigned)j->len, (__u64)j->offset,
					  (int)j->reg->range->cookie - 1);
	else if (j->reg)
		io_uring_prep_read_fixed(sqe, j->fd, j->buf, (unsigned)j->len, (__u64)j->offset,
					 (int)j->reg->range->cookie - 1);
	else if (j->write)
		io_uring_prep_write(sqe, j->fd, j->buf, (unsigned)j->len, (__u64)j->offset);
	else
		io_uring_prep_read(sqe, j->fd, j->buf, (unsigned)j->len, (__u64)j->offset);
	io_uring_sqe_set_data(sqe, j);
	if (j->reg)
		u->stats.fixed++;
	else
		u->stats.plain++;
}

static uint64_t in_ns(uint64_t ns)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec + ns;
}

/*
 * Once is enough: what a buffer was before it was the caller's has happened by now.
 * Where changes do not end all goes without a registration, which is always right.
 */
static void before_handing_over(struct hmm_uring *u)
{
	bool unknown;

	if (!u->queued)
		return;
	unknown = umm_space_sync_until(u->space, in_ns(SYNC_NS)) != 0;
	for (; u->queued; u->queued = u->queued->queued) {
		struct job *j = u->queued;

		if (!hmm_reg_lost(j->reg) && !unknown)
			continue;
		hmm_reg_put(u->cache, j->reg);
		j->reg = NULL;
		u->stats.fixed--;
		u->stats.again++;
		prepare(u, j);
	}
}

static int begin(struct hmm_uring *u, struct job *j)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&u->ring);

	if (!sqe) /* the ring has room for as many as there are jobs */
		return -EAGAIN;
	j->sqe = sqe;
	prepare(u, j);
	if (j->reg) {
		j->queued = u->queued;
		u->queued = j;
	}
	return 0;
}

static int transfer(struct hmm_uring *u, int fd, char *buf, size_t len, int64_t offset, void *user, bool write)
{
	struct job *j = u->free;
	int rc;

	if (!len || len > LEN_MOST || offset < -1)
		return -EINVAL;
	if (!j)
		return -EAGAIN;
	*j = (struct job){
		.next = j->next, .user = user, .buf = buf, .len = len, .offset = offset, .fd = fd, .write = write};
	/* A read writes to memory.  What cannot be registered is left to the kernel, which knows what is wrong. */
	if (u->cache && hmm_reg_get(u->cache, buf, len, write ? 0 : HMM_MAP_WRITE, in_ns(GET_NS), &j->reg))
		j->reg = NULL;
	rc = begin(u, j);
	if (rc) {
		if (j->reg)
			hmm_reg_put(u->cache, j->reg);
		j->reg = NULL;
		return rc;
	}
	u->free = j->next;
	u->under_way++;
	return 0;
}

int hmm_uring_read(struct hmm_uring *u, int fd, void *buf, size_t len, int64_t offset, void *user)
{
	return transfer(u, fd, buf, len, offset, user, false);
}

int hmm_uring_write(struct hmm_uring *u, int fd, const void *buf, size_t len, int64_t offset, void *user)
{
	return transfer(u, fd, (char *)(uintptr_t)buf, len, offset, user, true);
}

int hmm_uring_wait(struct hmm_uring *u, struct hmm_uring_done *done)
{
	struct io_uring_cqe *cqe;
	struct job *j;
	int rc;

	if (!u->under_way)
		return -ENOENT;
	for (;;) {
		bool registered;
		int res;

		rc = io_uring_peek_cqe(&u->ring, &cqe);
		if (rc) {
			before_handing_over(u);
			rc = io_uring_submit_and_wait(&u->ring, 1);
			if (rc < 0)
				return rc; /* EAGAIN, too: there is no memory, maybe for long */
			rc = io_uring_peek_cqe(&u->ring, &cqe);
			/* What was submitted is what is returned, also where a signal has ended the wait; or not all
			 * was. */
			if (rc == -EAGAIN && io_uring_sq_ready(&u->ring))
				continue;
			if (rc == -EAGAIN)
				rc = -EINTR;
		}
		if (rc)
			return rc;
		j = io_uring_cqe_get_data(cqe);
		res = cqe->res;
		io_uring_cqe_seen(&u->ring, cqe);
		registered = j->reg;
		if (registered)
			hmm_reg_put(u->cache, j->reg);
		j->reg = NULL;
		if (registered && res == -EFAULT && !begin(u, j)) {
			u->stats.again++;
			continue;
		}
		*done = (struct hmm_uring_done){j->user, res};
		break;
	}
	j->next = u->free;
	u->free = j;
	u->under_way--;
	return 0;
}

void hmm_uring_stats(struct hmm_uring *u, struct hmm_uring_stats *st)
{
	*st = u->stats;
	if (u->cache)
		hmm_reg_stats(u->cache, &st->reg);
}

/* --------------------------------------------------------------------- life */

int hmm_uring_open(struct umm_space *space, const struct hmm_uring_params *params, struct hmm_uring **up)
{
	const struct hmm_uring_params p = params ? *params : (struct hmm_uring_params){0};
	unsigned buffers = p.buffers ? p.buffers : BUFFERS;
	/* What is in use and has been replaced holds a slot, too. */
	struct hmm_reg_params reg = {.max_bytes = p.max_bytes,
				     .max_entries = buffers - buffers / 4,
				     .flags = p.flags & HMM_URING_HOOKED ? HMM_REG_HOOKED : 0};
	struct hmm_uring *u;
	int rc;

	if (p.depth > DEPTH_MOST || buffers < BUFFERS_LEAST || buffers > BUFFERS_MOST ||
	    (p.flags & ~(HMM_URING_PLAIN | HMM_URING_HOOKED)))
		return -EINVAL;
	u = umm_alloc(space, sizeof(*u)); /* callbacks look into it */
	if (!u)
		return -ENOMEM;
	u->space = space;
	u->dev.ops = &uring_ops;
	u->depth = p.depth ? p.depth : DEPTH;
	u->jobs = calloc(u->depth, sizeof(*u->jobs));
	rc = -ENOMEM;
	if (!u->jobs)
		goto fail;
	for (unsigned i = 0; i < u->depth; i++) {
		u->jobs[i].next = u->free;
		u->free = &u->jobs[i];
	}
	rc = io_uring_queue_init(u->depth, &u->ring, 0);
	if (rc)
		goto fail_jobs;
	pthread_mutex_init(&u->slots.lock, NULL);
	for (unsigned i = buffers; i--;)
		u->slots.free[u->slots.nfree++] = (uint16_t)i;
	if (!(p.flags & HMM_URING_PLAIN)) {
		rc = io_uring_register_buffers_sparse(&u->ring, buffers);
		if (rc == -EINVAL)
			rc = -EOPNOTSUPP;
		if (!rc)
			rc = hmm_reg_cache_open(space, NULL, &u->dev, &reg, &u->cache);
		if (rc)
			goto fail_ring;
	}
	*up = u;
	return 0;
fail_ring:
	pthread_mutex_destroy(&u->slots.lock);
	io_uring_queue_exit(&u->ring);
fail_jobs:
	free(u->jobs);
fail:
	umm_free(space, u, sizeof(*u));
	return rc;
}

void hmm_uring_close(struct hmm_uring *u)
{
	struct hmm_uring_done done;
	struct umm_space *space;

	if (!u)
		return;
	space = u->space;
	while (u->under_way) {
		int rc = hmm_uring_wait(u, &done);

		if (rc && rc != -EINTR && rc != -EAGAIN)
			break; /* the ring ends with all that is under way */
	}
	for (unsigned i = 0; i < u->depth; i++)
		if (u->jobs[i].reg)
			hmm_reg_put(u->cache, u->jobs[i].reg);
	hmm_reg_cache_close(u->cache);
	io_uring_queue_exit(&u->ring);
	pthread_mutex_destroy(&u->slots.lock);
	free(u->jobs);
	umm_free(space, u, sizeof(*u));
}
