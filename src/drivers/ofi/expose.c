/* SPDX-License-Identifier: MIT */
/*
 * Ranges that peers may reach.
 *
 * DOC: a device in software
 *
 * Providers whose data are moved by the CPU (tcp, shm) cannot be given memory of
 * the program: they touch it as any code does, and a raw munmap() in that moment
 * is a SIGSEGV.  So data go through a buffer of the serving thread, and between
 * that and the program's memory the kernel copies, which checks each access
 * (process_vm_readv() and _writev() on ourselves).
 *
 * What it may copy hmm_range_map() has brought in and noted, page by page: a
 * range that is exposed is a hmm_range, and these notes are the page table.
 *
 *	again:	enter the copy in the list
 *		all mapped?  copy
 *		take it off the list; was it stale?  again
 *		nothing copied: what is there is of no use: unmap that page
 *		hmm_range_map(), until the deadline
 *		again
 *
 * settle() waits for the copies that overlap what was unmapped, so that a call
 * which the hooks see goes on when nothing runs in what it changes.  A change that
 * the kernel tells of is told by a thread that such a copy may wait for: there it
 * marks them stale.  Memory that changed and nobody told of (a raw mprotect, or
 * what is not watched) is found out by the copy, which fails.
 *
 * DOC: locking
 *
 *	table (what is exposed, and who uses it)
 *	lock (copies)
 *
 * neither within the other, nor across a call of hmm.  Callbacks take "lock", and
 * else only threads that have all signals blocked.
 */
#include "drivers/ofi/expose.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define PAGE ((uint64_t)HMM_PAGE_SIZE)
#define ADDR_MOST ((uint64_t)1 << 56)

/* A copy that runs, of pages [start, end). */
struct copy {
	struct copy *next;
	struct hmm_range *range;
	uint64_t start, end;
	bool stale;
};

struct exposure {
	struct exposure *next;
	struct hmm_rdma_token token;
	uint64_t addr, len;
	unsigned access;
	unsigned users;
	struct hmm_range *range;
};

struct exposed {
	struct hmm_device dev;
	struct umm_space *space;
	struct hmm_mm *mm;
	pid_t pid;
	_Atomic uint64_t mapped;
	pthread_mutex_t table;
	pthread_cond_t unused;
	struct exposure *first;
	uint64_t next_id;
	pthread_mutex_t lock;
	pthread_cond_t copied;
	struct copy *copies;
};

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static uint64_t page_down(uint64_t addr)
{
	return addr & ~(PAGE - 1);
}

static uint64_t page_up(uint64_t addr)
{
	return page_down(addr + PAGE - 1);
}

/* --------------------------------------------------------------- the device */

/* Its page table are the notes of hmm_range, in which it looks while a copy of it is in the list. */
static int soft_map(struct hmm_device *dev, struct hmm_range *range, const struct hmm_map_run *run)
{
	return 0;
}

static void soft_unmap(struct hmm_device *dev, struct hmm_range *range, const struct hmm_map_run *run,
		       const struct umm_change *why, uint64_t *dirty)
{
}

static bool soft_settle(struct hmm_device *dev, struct hmm_range *range, uint64_t start, uint64_t end,
			const struct umm_change *why)
{
	struct exposed *x = (struct exposed *)dev;
	bool late = why && why->late, sleeps = !late && (!why || why->blockable), found;

	pthread_mutex_lock(&x->lock);
	do {
		found = false;
		for (struct copy *c = x->copies; c; c = c->next) {
			if (c->range != range || c->start >= end || c->end <= start)
				continue;
			c->stale |= late;
			found |= !late;
		}
		if (found && sleeps)
			pthread_cond_wait(&x->copied, &x->lock);
	} while (found && sleeps);
	pthread_mutex_unlock(&x->lock);
	return !found;
}

static const struct hmm_device_ops soft_ops = {
	.name = "rdma",
	.caps = HMM_DEV_MAP | HMM_DEV_FAULT,
	.map = soft_map,
	.unmap = soft_unmap,
	.settle = soft_settle,
};

/* ------------------------------------------------------------------- copies */

/* How far from @start on the table has it mapped; at most to @end. */
static uint64_t mapped_to(struct hmm_range *range, uint64_t start, uint64_t end, bool write)
{
	uint64_t at = page_down(start);

	if (hmm_range_mapped(range, at, page_up(end), write))
		return end;
	while (at < end && hmm_range_mapped(range, at, at + PAGE, write))
		at += PAGE;
	if (at > end) /* the last page is not asked for as a whole */
		at = end;
	return at > start ? at : start;
}

static uint64_t copy_checked(struct exposed *x, char *buf, uint64_t addr, uint64_t len, bool write)
{
	uint64_t done = 0;

	while (done < len) {
		struct iovec mine = {buf + done, len - done};
		struct iovec theirs = {(void *)(uintptr_t)(addr + done), len - done};
		ssize_t n = write ? process_vm_writev(x->pid, &mine, 1, &theirs, 1, 0)
				  : process_vm_readv(x->pid, &mine, 1, &theirs, 1, 0);

		if (n <= 0)
			break;
		done += (uint64_t)n;
	}
	return done;
}

/* Returns the bytes copied, from the first on. */
static uint64_t copy_mapped(struct exposed *x, struct hmm_range *range, uint64_t addr, char *buf, uint64_t len,
			    bool write)
{
	struct copy me = {.range = range, .start = page_down(addr), .end = page_up(addr + len)};
	struct copy **at;
	uint64_t n;

	pthread_mutex_lock(&x->lock);
	me.next = x->copies;
	x->copies = &me;
	pthread_mutex_unlock(&x->lock);
	n = mapped_to(range, addr, addr + len, write) - addr;
	if (n)
		n = copy_checked(x, buf, addr, n, write);
	pthread_mutex_lock(&x->lock);
	for (at = &x->copies; *at != &me;)
		at = &(*at)->next;
	*at = me.next;
	pthread_cond_broadcast(&x->copied);
	pthread_mutex_unlock(&x->lock);
	return me.stale ? 0 : n;
}

static int copy(struct exposed *x, struct hmm_range *range, uint64_t addr, char *buf, uint64_t len, bool write,
		uint64_t deadline_ns)
{
	uint64_t end = addr + len;

	while (addr < end) {
		uint64_t n = copy_mapped(x, range, addr, buf, end - addr, write), page;
		int rc;

		addr += n;
		buf += n;
		if (n)
			continue;
		page = page_down(addr);
		/* An entry that is there, and yet of no use: nobody has told of what happened. */
		if (hmm_range_mapped(range, page, page + PAGE, write))
			hmm_range_unmap(range, page, page + PAGE, NULL);
		rc = now_ns() < deadline_ns
			     ? hmm_range_map(range, page, page_up(end), write ? HMM_MAP_WRITE : 0, deadline_ns)
			     : -ETIME;
		if (rc)
			return rc;
		x->mapped++;
	}
	return 0;
}

/* -------------------------------------------------------------------- table */

/* Takes the same time wherever they differ. */
static bool same(const struct hmm_rdma_token *a, const struct hmm_rdma_token *b)
{
	volatile uint8_t diff = 0;

	for (size_t i = 0; i < sizeof(a->secret); i++)
		diff = (uint8_t)(diff | (a->secret[i] ^ b->secret[i]));
	return !diff;
}

/* "table" held. */
static struct exposure **find(struct exposed *x, const struct hmm_rdma_token *token)
{
	struct exposure **at = &x->first;

	while (*at && (*at)->token.id != token->id)
		at = &(*at)->next;
	return *at && same(&(*at)->token, token) ? at : NULL;
}

static int use(struct exposed *x, const struct hmm_rdma_token *token, uint64_t addr, uint64_t len, unsigned access,
	       struct exposure **ep)
{
	struct exposure **at, *e = NULL;
	int rc = -EACCES;

	pthread_mutex_lock(&x->table);
	at = find(x, token);
	if (at && !(access & ~(*at)->access)) {
		e = *at;
		rc = addr < e->addr || len > e->len || addr - e->addr > e->len - len ? -EINVAL : 0;
		if (!rc)
			e->users++;
	}
	pthread_mutex_unlock(&x->table);
	*ep = e;
	return rc;
}

static void unuse(struct exposed *x, struct exposure *e)
{
	pthread_mutex_lock(&x->table);
	if (!--e->users)
		pthread_cond_broadcast(&x->unused);
	pthread_mutex_unlock(&x->table);
}

static void exposure_end(struct exposure *e)
{
	hmm_range_close(e->range);
	explicit_bzero(e, sizeof(*e));
	free(e);
}

int exposed_check(struct exposed *x, const struct hmm_rdma_token *token, uint64_t addr, uint64_t len, unsigned access)
{
	struct exposure *e;
	int rc = use(x, token, addr, len, access, &e);

	if (!rc)
		unuse(x, e);
	return rc;
}

int exposed_copy(struct exposed *x, const struct hmm_rdma_token *token, uint64_t addr, void *buf, size_t len,
		 bool write, uint64_t deadline_ns)
{
	struct exposure *e;
	int rc = use(x, token, addr, len, write ? HMM_RDMA_WRITE : HMM_RDMA_READ, &e);

	if (rc)
		return rc;
	rc = copy(x, e->range, addr, buf, len, write, deadline_ns);
	unuse(x, e);
	return rc;
}

int exposed_map(struct exposed *x, const struct hmm_rdma_token *token, uint64_t addr, uint64_t len, unsigned access,
		uint64_t deadline_ns)
{
	struct exposure *e;
	bool write = access & HMM_RDMA_WRITE, there;
	int rc = use(x, token, addr, len, access, &e);

	if (rc)
		return rc;
	there = hmm_range_mapped(e->range, page_down(addr), page_up(addr + len), write);
	rc = hmm_range_map(e->range, page_down(addr), page_up(addr + len), write ? HMM_MAP_WRITE : 0, deadline_ns);
	x->mapped += !rc && !there;
	unuse(x, e);
	return rc;
}

uint64_t exposed_mapped(struct exposed *x)
{
	return x->mapped;
}

int exposed_add(struct exposed *x, uint64_t addr, uint64_t len, unsigned access, struct hmm_rdma_token *token)
{
	struct exposure *e;
	int rc;

	if (!len || addr > ADDR_MOST || len > ADDR_MOST - addr || !access ||
	    (access & ~(HMM_RDMA_READ | HMM_RDMA_WRITE)))
		return -EINVAL;
	e = calloc(1, sizeof(*e));
	if (!e)
		return -ENOMEM;
	*e = (struct exposure){.addr = addr, .len = len, .access = access};
	rc = -EIO;
	if (getrandom(e->token.secret, sizeof(e->token.secret), 0) != sizeof(e->token.secret))
		goto fail;
	rc = hmm_range_open(x->space, x->mm, &x->dev, page_down(addr), page_up(addr + len), NULL, &e->range);
	if (rc)
		goto fail;
	pthread_mutex_lock(&x->table);
	e->token.id = ++x->next_id;
	e->next = x->first;
	x->first = e;
	pthread_mutex_unlock(&x->table);
	*token = e->token;
	return 0;
fail:
	free(e);
	return rc;
}

int exposed_remove(struct exposed *x, const struct hmm_rdma_token *token)
{
	struct exposure **at, *e = NULL;

	pthread_mutex_lock(&x->table);
	at = find(x, token);
	if (at) {
		e = *at;
		*at = e->next;
		while (e->users)
			pthread_cond_wait(&x->unused, &x->table);
	}
	pthread_mutex_unlock(&x->table);
	if (!e)
		return -ENOENT;
	exposure_end(e);
	return 0;
}

int exposed_open(struct umm_space *space, struct hmm_mm *mm, struct exposed **xp)
{
	struct exposed *x = umm_alloc(space, sizeof(*x)); /* callbacks look into it */

	if (!x)
		return -ENOMEM;
	x->dev.ops = &soft_ops;
	x->space = space;
	x->mm = mm;
	x->pid = getpid();
	pthread_mutex_init(&x->table, NULL);
	pthread_cond_init(&x->unused, NULL);
	pthread_mutex_init(&x->lock, NULL);
	pthread_cond_init(&x->copied, NULL);
	*xp = x;
	return 0;
}

void exposed_close(struct exposed *x)
{
	struct umm_space *space = x->space;

	while (x->first) {
		struct exposure *e = x->first;

		x->first = e->next;
		exposure_end(e);
	}
	pthread_cond_destroy(&x->copied);
	pthread_mutex_destroy(&x->lock);
	pthread_cond_destroy(&x->unused);
	pthread_mutex_destroy(&x->table);
	umm_free(space, x, sizeof(*x));
}
