/* SPDX-License-Identifier: MIT */
/*
 * A handler does not know what it has interrupted, and may unmap memory or drop
 * contents: both are told of, by hooks.  So whatever a hook takes is held by nobody who
 * can be interrupted by a handler: else this does not end.
 *
 * The signal comes at the worst moments: when this thread has got the first mutex of the
 * library's in a call, or is in a callback.  What the handler does may end in a callback,
 * where memory can be had.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "umm.h"
#include "umm/hooks.h"
#include "umm/internal.h"

#define PAGE 4096ul
#define NR 16u
#define ROUNDS 150u

#define CHECK(cond)                                                        \
	do {                                                               \
		if (!(cond)) {                                             \
			fprintf(stderr, "line %d: %s\n", __LINE__, #cond); \
			_exit(1);                                          \
		}                                                          \
	} while (0)

static struct {
	struct umm_space *space;
	char *range, *dropped, *other;
	pthread_t self;
	atomic_ulong handled, told;
	unsigned long raised[2]; /* with the notifiers' lock, and that of the quarantine */
	atomic_bool stop;
	bool armed;
} W;

int __real_pthread_mutex_lock(pthread_mutex_t *m);
int __wrap_pthread_mutex_lock(pthread_mutex_t *m);

static void strike(void)
{
	/* Not again in the handler, nor before the one that is due has come. */
	if (!W.armed || !pthread_equal(pthread_self(), W.self))
		return;
	W.armed = false;
	raise(SIGUSR1);
}

int __wrap_pthread_mutex_lock(pthread_mutex_t *m)
{
	int rc = __real_pthread_mutex_lock(m);

	if (W.armed && pthread_equal(pthread_self(), W.self)) {
		W.raised[0] += m == &W.space->notifiers.lock;
		W.raised[1] += m == &W.space->quarantine.lock;
		strike();
	}
	return rc;
}

static char *map(size_t npages)
{
	char *p = (char *)syscall(SYS_mmap, NULL, npages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
				  -1, 0);

	CHECK(p != MAP_FAILED);
	return p;
}

static void handler(int sig)
{
	int err = errno;
	char *p = map(1);

	CHECK(!munmap(p, PAGE));
	CHECK(!madvise(W.dropped, NR * PAGE, MADV_DONTNEED));
	p = umm_alloc(W.space, PAGE);
	CHECK(p);
	umm_free(W.space, p, PAGE);
	atomic_fetch_add(&W.handled, 1);
	errno = err;
}

static bool tell(struct umm_notifier *n, const struct umm_change *change, uint64_t seq)
{
	umm_notifier_set_seq(n, seq);
	atomic_fetch_add(&W.told, 1);
	strike();
	return true;
}

static const struct umm_notifier_ops ops = {.invalidate = tell};

static void notifiers(void)
{
	struct umm_notifier n;

	CHECK(!umm_notifier_insert(&n, W.space, (uintptr_t)W.range, NR * PAGE, &ops));
	W.armed = true;
	umm_notifier_remove(&n);
}

static struct umm_notifier everywhere;

static void reading(void)
{
	uint64_t entries[NR] = {0};
	struct umm_range r = {.space = W.space,
			      .notifier = &everywhere,
			      .start = (uintptr_t)W.range,
			      .end = (uintptr_t)W.range + NR * PAGE,
			      .entries = entries,
			      .default_flags = UMM_PFN_REQ_FAULT | UMM_PFN_REQ_WRITE};
	int rc;

	r.notifier_seq = umm_read_begin(&everywhere);
	rc = umm_range_fault(&r);
	CHECK(!rc || rc == -EBUSY);
}

static void changing(void)
{
	char *p = map(2);

	CHECK(!munmap(p, 2 * PAGE));
	CHECK(!madvise(W.other, NR * PAGE, MADV_DONTNEED));
}

static char *watched(void)
{
	char *p = map(NR);

	CHECK(!umm_space_watch(W.space, (uintptr_t)p, NR * PAGE));
	return p;
}

static void allocating(void)
{
	char *p = umm_alloc(W.space, PAGE);

	CHECK(p);
	W.armed = true;
	umm_free(W.space, p, PAGE);
}

static void watching(void)
{
	char *p = watched();

	CHECK(!munmap(p, NR * PAGE));
}

static void draining(void)
{
	umm_space_sync(W.space);
}

/* Drops it raw, so that there is always something to read and to wait for. */
static void *dropper(void *arg)
{
	while (!atomic_load(&W.stop))
		syscall(SYS_madvise, W.range, PAGE, MADV_DONTNEED);
	return NULL;
}

int main(void)
{
	static void (*const kind[])(void) = {notifiers, reading, changing, draining, allocating, watching};
	struct sigaction act = {.sa_handler = handler, .sa_flags = SA_RESTART};
	pthread_t t;
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);

	if (fd < 0) {
		printf("SKIP: no right to a userfaultfd\n");
		return 77;
	}
	close(fd);
	CHECK(!umm_space_open_self(&W.space));
	W.range = watched();
	W.dropped = watched();
	W.other = watched();
	CHECK(!umm_notifier_insert(&everywhere, W.space, 0, 1ull << 47, &ops));
	umm_hooks_set(W.space);
	CHECK(!sigaction(SIGUSR1, &act, NULL));
	W.self = pthread_self();
	CHECK(!pthread_create(&t, NULL, dropper, NULL));
	for (unsigned i = 0; i < ROUNDS; i++) {
		for (unsigned k = 0; k < sizeof(kind) / sizeof(kind[0]); k++) {
			W.armed = true;
			kind[k]();
			W.armed = false;
		}
	}
	atomic_store(&W.stop, true);
	pthread_join(t, NULL);
	CHECK(atomic_load(&W.told) > 0 && W.raised[0] >= ROUNDS && W.raised[1] > 0);
	printf("%lu handled, %lu with the notifiers' lock, %lu with the quarantine's\n", atomic_load(&W.handled),
	       W.raised[0], W.raised[1]);
	umm_hooks_set(NULL);
	umm_notifier_remove(&everywhere);
	umm_space_close(W.space);
	return 0;
}
