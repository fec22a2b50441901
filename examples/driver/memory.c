/* SPDX-License-Identifier: MIT */
/*
 * A device with memory of its own: pages of the process move there, and come
 * back when somebody touches them.
 */
#include <errno.h>
#include <pthread.h>
#include <string.h>

#include "example.h"
#include "hmm.h"

#define NR 64u
#define POOL 48u /* fewer than there are */

struct pool {
	struct hmm_device dev; /* first */
	pthread_mutex_t lock;
	uint32_t refs[POOL]; /* 0: free */
	char *page;          /* contents: of who has a reference */
};

static int pool_copy_in(struct hmm_device *dev, const void *const src[], hmm_handle_t handle[], unsigned n)
{
	struct pool *p = (struct pool *)dev;
	unsigned taken = 0;

	pthread_mutex_lock(&p->lock);
	for (unsigned i = 0, at = 0; i < n; i++) {
		while (at < POOL && p->refs[at])
			at++;
		handle[i] = at < POOL ? at : HMM_HANDLE_NONE;
		if (at == POOL)
			continue; /* full: this page goes back where it was */
		p->refs[at] = 1;
		taken++;
	}
	pthread_mutex_unlock(&p->lock);
	for (unsigned i = 0; i < n; i++)
		if (handle[i] != HMM_HANDLE_NONE)
			memcpy(p->page + handle[i] * PAGE, src[i], PAGE);
	return (int)taken;
}

static int pool_copy_out(struct hmm_device *dev, const hmm_handle_t handle[], void *const dst[], int status[],
			 unsigned n)
{
	struct pool *p = (struct pool *)dev;

	for (unsigned i = 0; i < n; i++) {
		memcpy(dst[i], p->page + handle[i] * PAGE, PAGE);
		status[i] = 0;
	}
	return 0;
}

static void pool_get(struct hmm_device *dev, const hmm_handle_t handle[], unsigned n)
{
	struct pool *p = (struct pool *)dev;

	pthread_mutex_lock(&p->lock);
	for (unsigned i = 0; i < n; i++)
		p->refs[handle[i]]++;
	pthread_mutex_unlock(&p->lock);
}

static void pool_put(struct hmm_device *dev, const hmm_handle_t handle[], unsigned n)
{
	struct pool *p = (struct pool *)dev;

	pthread_mutex_lock(&p->lock);
	for (unsigned i = 0; i < n; i++)
		p->refs[handle[i]]--;
	pthread_mutex_unlock(&p->lock);
}

static const struct hmm_device_ops pool_ops = {
	.name = "pool",
	.caps = HMM_DEV_MEMORY,
	.copy_in = pool_copy_in,
	.copy_out = pool_copy_out,
	.get = pool_get,
	.put = pool_put,
};

static struct pool *pool_new(struct umm_space *space)
{
	struct pool *p = umm_alloc(space, sizeof(*p));

	CHECK(p);
	p->page = umm_alloc(space, POOL * PAGE);
	CHECK(p->page);
	p->dev.ops = &pool_ops;
	pthread_mutex_init(&p->lock, NULL);
	return p;
}

/* Somebody who mirrors the same memory and causes migrations of it. */
struct watcher {
	struct umm_notifier notifier; /* first */
	const void *me;
	_Atomic unsigned of_others;
};

static bool watcher_invalidate(struct umm_notifier *n, const struct umm_change *change, uint64_t seq)
{
	struct watcher *w = (struct watcher *)n;

	umm_notifier_set_seq(n, seq);
	/* Our own: what we have mapped of the pages we are about to map anew anyway. */
	if (change->event == UMM_EVENT_MIGRATE && change->owner == w->me)
		return true;
	w->of_others++;
	return true;
}

static const struct umm_notifier_ops watcher_ops = {.invalidate = watcher_invalidate};

static unsigned held(struct hmm_mm *mm, struct hmm_device *dev, char *mem)
{
	struct hmm_device *where[NR];
	unsigned n = 0;

	CHECK(!hmm_where(mm, (uintptr_t)mem, (uintptr_t)mem + NR * PAGE, where, NULL));
	for (unsigned i = 0; i < NR; i++)
		n += where[i] == dev;
	return n;
}

/* The three phases, for a driver that has something to do in between. */
static int by_hand(struct umm_space *space, struct hmm_mm *mm, struct hmm_device *dev, uint64_t start, uint64_t end)
{
	struct hmm_migrate *m = umm_alloc(space, sizeof(*m));
	int rc = -ENOMEM;

	if (!m)
		return rc;
	*m = (struct hmm_migrate){.mm = mm, .to = dev, .start = start, .end = end, .owner = dev};
	rc = hmm_migrate_collect(m);
	if (!rc) {
		/* m->src[0 .. m->npages) are the contents; m->handle[] says which the device has taken. */
		hmm_migrate_copy(m);
		rc = hmm_migrate_commit(m);
	}
	umm_free(space, m, sizeof(*m));
	return rc; /* pages that are there now: fewer than were asked for is no error */
}

/* Nobody but this device can get at @addr until the CPU touches it: then it is over, and the caller begins again. */
static bool add_atomically(struct hmm_mm *mm, struct hmm_device *alone, uint64_t addr, char *buf)
{
	if (hmm_migrate_to_device(mm, alone, addr, addr + PAGE, alone, NULL))
		return false;
	if (hmm_device_read(mm, alone, addr, buf, 1) != 1)
		return false;
	buf[0]++;
	return hmm_device_write(mm, alone, addr, buf, 1) == 1;
}

int main(void)
{
	char *mem = example_memory(NR), *buf;
	uint64_t start = (uintptr_t)mem, end = start + NR * PAGE, moved;
	struct umm_space *space;
	struct watcher *w;
	struct hmm_mm *mm;
	struct pool *p, *alone;
	int rc;

	CHECK(!umm_space_open_self(&space));
	rc = hmm_mm_open(space, &mm);
	if (rc == -EPERM || rc == -EOPNOTSUPP || rc == -ENOSYS) {
		printf("SKIP: no userfaultfd that moves pages: error %d\n", -rc);
		return SKIP;
	}
	CHECK(!rc);
	p = pool_new(space);
	alone = pool_new(space);
	buf = umm_alloc(space, PAGE);
	w = umm_alloc(space, sizeof(*w));
	CHECK(buf && w);
	CHECK(!hmm_mm_add_device(mm, &p->dev) && !hmm_mm_add_device(mm, &alone->dev));
	w->me = w;
	CHECK(!umm_notifier_insert(&w->notifier, space, start, end - start, &watcher_ops));

	/* Partial success is success: the device has not room for all. */
	for (unsigned i = 0; i < NR; i++)
		mem[i * PAGE] = (char)i;
	CHECK(!hmm_migrate_to_device(mm, &p->dev, start, end, w, &moved));
	CHECK(moved == POOL && held(mm, &p->dev, mem) == POOL);
	CHECK(w->of_others == 0);

	/* The device looks at its own; a touch brings a page back, to the one who touches it. */
	CHECK(hmm_device_read(mm, &p->dev, start + 3 * PAGE, buf, 1) == 1 && buf[0] == 3);
	CHECK(mem[3 * PAGE] == 3);
	CHECK(hmm_device_read(mm, &p->dev, start + 3 * PAGE, buf, 1) == 0);

	/* The device wants its memory for something else. */
	CHECK(!hmm_migrate_to_system(mm, &p->dev, 0, HMM_ADDR_END, &moved));
	CHECK(moved == POOL - 1 && held(mm, &p->dev, mem) == 0);

	CHECK(by_hand(space, mm, &p->dev, start, start + 8 * PAGE) == 8);
	CHECK(w->of_others > 0); /* that had another owner */

	CHECK(add_atomically(mm, &alone->dev, start + 9 * PAGE, buf));
	CHECK(held(mm, &alone->dev, mem) == 1);
	mem[9 * PAGE]++;
	CHECK(mem[9 * PAGE] == 9 + 2 && held(mm, &alone->dev, mem) == 0);

	for (unsigned i = 0; i < NR; i++)
		CHECK(mem[i * PAGE] == (i == 9 ? 11 : (char)i));
	umm_notifier_remove(&w->notifier);
	CHECK(!hmm_mm_close(mm));
	umm_space_close(space);
	return 0;
}
