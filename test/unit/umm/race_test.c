/* SPDX-License-Identifier: MIT */
/*
 * umm under threads, with events that nobody's memory sends: a pipe stands for
 * the userfaultfd, so that a monitor can be told anything at any moment.
 *
 * The memory is a model: each page has a version, which a change moves on.  A
 * device has a table of versions and the loop of umm.h; whatever it has in its
 * table, under its lock, must be the page's version now.  Events change the
 * model under the event lock held exclusively, and those that hold it shared read
 * it as it is.  What is read and written here without atomics is ordered by the
 * locks of umm alone: "make tsan" builds this with ThreadSanitizer.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "umm/internal.h"

#define PAGES 64u
#define BASE 0x10000000ull
#define DEVICES 3u
#define CHANGERS 2u
#define ROUNDS 2000u

#define CHECK(cond)                                                               \
	do {                                                                      \
		if (!(cond)) {                                                    \
			printf("%s:%d: not so: %s\n", __FILE__, __LINE__, #cond); \
			fflush(stdout);                                           \
			_exit(1);                                                 \
		}                                                                 \
	} while (0)

static struct {
	struct umm_space *space;
	struct umm_ctl *ctl;
	int events; /* our end of the pipe */
	_Atomic unsigned version[PAGES];
	unsigned applied[PAGES]; /* events that concerned the page: written under the event lock, exclusively */
	atomic_uint sent, served;
	atomic_bool stop;
} W;

struct device {
	struct umm_notifier n;
	pthread_mutex_t lock;
	unsigned entry[PAGES]; /* 0: none */
	unsigned told;
	uint64_t seed;
};

static unsigned dice(uint64_t *seed, unsigned n)
{
	*seed = *seed * 6364136223846793005ull + 1442695040888963407ull;
	return (unsigned)(*seed >> 33) % n;
}

static uint64_t addr_of(unsigned page)
{
	return BASE + page * UMM_PAGE;
}

static unsigned clamp(uint64_t addr)
{
	return addr < BASE ? 0 : addr > addr_of(PAGES) ? PAGES : (unsigned)((addr - BASE) / UMM_PAGE);
}

static bool invalidate(struct umm_notifier *n, const struct umm_change *c, uint64_t seq)
{
	struct device *d = (struct device *)n;

	if (c->blockable)
		pthread_mutex_lock(&d->lock);
	else if (pthread_mutex_trylock(&d->lock))
		return false;
	umm_notifier_set_seq(n, seq);
	for (unsigned i = clamp(c->start); i < clamp(c->end); i++)
		d->entry[i] = 0;
	d->told++;
	pthread_mutex_unlock(&d->lock);
	return true;
}

static const struct umm_notifier_ops ops = {.invalidate = invalidate};

static void bump(uint64_t start, uint64_t end)
{
	sched_yield(); /* who begins in between must not get what is about to change */
	for (unsigned i = clamp(start); i < clamp(end); i++)
		atomic_fetch_add(&W.version[i], 1);
}

static void change(void *priv, const struct umm_change *c)
{
	bump(c->start, c->end);
	for (unsigned i = clamp(c->start); i < clamp(c->end); i++)
		W.applied[i]++;
}

/* Every third is met by a change that is under way. */
static int fault(void *priv, const struct umm_fault *f)
{
	unsigned page = clamp(f->addr);

	umm_evlock_shared(&W.ctl->evlock);
	CHECK(page < PAGES && W.applied[page] < ~0u);
	umm_evlock_unshared(&W.ctl->evlock);
	if (!f->again && page % 3 == 0)
		return -EAGAIN;
	if (page % 5 == 0)
		umm_monitor_yield();
	atomic_fetch_add(&W.served, 1);
	return 0;
}

static const struct umm_space_ops space_ops = {.fault = fault, .change = change};

static void send_event(uint64_t *seed)
{
	unsigned first = dice(seed, PAGES), n = 1 + dice(seed, PAGES - first);
	struct uffd_msg m = {0};

	switch (dice(seed, 4)) {
	case 0:
		m.event = UFFD_EVENT_UNMAP;
		m.arg.remove.start = addr_of(first);
		m.arg.remove.end = addr_of(first + n);
		break;
	case 1:
		m.event = UFFD_EVENT_REMOVE;
		m.arg.remove.start = addr_of(first);
		m.arg.remove.end = addr_of(first + n);
		break;
	case 2:
		m.event = UFFD_EVENT_REMAP;
		m.arg.remap.from = addr_of(first);
		m.arg.remap.to = addr_of(0);
		m.arg.remap.len = n * UMM_PAGE;
		break;
	default:
		m.event = UFFD_EVENT_PAGEFAULT;
		m.arg.pagefault.address = addr_of(first);
		atomic_fetch_add(&W.sent, 1);
	}
	CHECK(write(W.events, &m, sizeof(m)) == sizeof(m));
}

/* Hooked calls, refused ones, and events. */
static void *changer(void *arg)
{
	uint64_t seed = (uintptr_t)arg;

	for (unsigned r = 0; r < ROUNDS; r++) {
		unsigned first = dice(&seed, PAGES), n = 1 + dice(&seed, PAGES - first);
		struct umm_change c = {.event = UMM_EVENT_UNMAP,
				       .start = addr_of(first),
				       .end = addr_of(first + n),
				       .blockable = dice(&seed, 4) != 0};

		if (dice(&seed, 2)) {
			send_event(&seed);
		} else if (!umm_invalidate_begin(W.space, &c)) {
			bump(c.start, c.end);
			umm_invalidate_end(W.space, &c);
		} else {
			CHECK(!c.blockable);
		}
	}
	return NULL;
}

static void check_table(struct device *d)
{
	for (unsigned i = 0; i < PAGES; i++)
		CHECK(!d->entry[i] || d->entry[i] == atomic_load(&W.version[i]));
}

static void *device(void *arg)
{
	struct device *d = arg;

	while (!atomic_load(&W.stop)) {
		unsigned first = dice(&d->seed, PAGES), n = 1 + dice(&d->seed, PAGES - first), got[PAGES];
		uint64_t seq = umm_read_begin(&d->n);

		for (unsigned i = first; i < first + n; i++)
			got[i] = atomic_load(&W.version[i]);
		pthread_mutex_lock(&d->lock);
		if (!umm_read_retry(&d->n, seq))
			memcpy(&d->entry[first], &got[first], n * sizeof(got[0]));
		check_table(d);
		pthread_mutex_unlock(&d->lock);
	}
	return NULL;
}

/* Comes and goes; in between it is a device, too. */
static void *guest(void *arg)
{
	struct device *d = arg;

	while (!atomic_load(&W.stop)) {
		unsigned first = dice(&d->seed, PAGES), n = 1 + dice(&d->seed, PAGES - first);
		uint64_t seq;

		memset(d->entry, 0, sizeof(d->entry));
		CHECK(!umm_notifier_insert(&d->n, W.space, addr_of(first), n * UMM_PAGE, &ops));
		seq = umm_read_begin(&d->n);
		for (unsigned i = 0; i < 3; i++) {
			unsigned got = atomic_load(&W.version[first]);

			pthread_mutex_lock(&d->lock);
			if (!umm_read_retry(&d->n, seq))
				d->entry[first] = got;
			else
				i = 3;
			CHECK(!d->entry[first] || d->entry[first] == atomic_load(&W.version[first]));
			pthread_mutex_unlock(&d->lock);
		}
		umm_notifier_remove(&d->n);
	}
	return NULL;
}

/* Reads what events write, and what they leave behind. */
static void *sharer(void *arg)
{
	uint64_t seed = (uintptr_t)arg;

	while (!atomic_load(&W.stop)) {
		unsigned first = dice(&seed, PAGES), was;

		umm_evlock_shared(&W.ctl->evlock);
		was = W.applied[first];
		if (first % 2)
			umm_quarantined(W.space, addr_of(first), addr_of(first + 1));
		CHECK(W.applied[first] == was);
		umm_evlock_unshared(&W.ctl->evlock);
		sched_yield();
		if (!dice(&seed, 16))
			umm_space_drain(W.space);
	}
	return NULL;
}

int main(void)
{
	struct device dev[DEVICES + 1] = {0};
	pthread_t t[DEVICES + CHANGERS + 2];
	struct umm_monitor *m;
	unsigned n = 0;
	int fd[2];

	W.ctl = calloc(1, sizeof(*W.ctl));
	CHECK(W.ctl && !pipe2(fd, O_CLOEXEC | O_NONBLOCK));
	W.events = fd[1];
	fcntl(fd[1], F_SETFL, 0); /* who sends waits for room */
	for (unsigned i = 0; i < PAGES; i++)
		atomic_store(&W.version[i], 1);
	CHECK(!umm_space_adopt(getpid(), fd[0], -1, -1, W.ctl, &W.space));
	W.space->ops = &space_ops;
	CHECK(!umm_monitor_create(3, false, &m) && !umm_monitor_add(m, W.space));
	for (unsigned i = 0; i <= DEVICES; i++) {
		pthread_mutex_init(&dev[i].lock, NULL);
		dev[i].seed = i + 1;
		if (i < DEVICES)
			CHECK(!umm_notifier_insert(&dev[i].n, W.space, BASE, PAGES * UMM_PAGE, &ops));
		CHECK(!pthread_create(&t[n++], NULL, i < DEVICES ? device : guest, &dev[i]));
	}
	CHECK(!pthread_create(&t[n++], NULL, sharer, (void *)7ul));
	for (unsigned i = 0; i < CHANGERS; i++)
		CHECK(!pthread_create(&t[n++], NULL, changer, (void *)(i + 11ul)));
	for (unsigned i = n - CHANGERS; i < n; i++)
		pthread_join(t[i], NULL);
	while (atomic_load(&W.served) < atomic_load(&W.sent))
		sched_yield(); /* or for ever */
	atomic_store(&W.stop, true);
	for (unsigned i = 0; i < n - CHANGERS; i++)
		pthread_join(t[i], NULL);
	for (unsigned i = 0; i < DEVICES; i++) {
		CHECK(dev[i].told > 0);
		check_table(&dev[i]);
		umm_notifier_remove(&dev[i].n);
	}
	umm_space_close(W.space);
	umm_monitor_destroy(m);
	close(fd[1]);
	free(W.ctl);
	printf("%u faults served, each once\n", atomic_load(&W.served));
	CHECK(atomic_load(&W.served) == atomic_load(&W.sent));
	return 0;
}
