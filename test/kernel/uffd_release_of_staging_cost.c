/* SPDX-License-Identifier: MIT */
/*
 * No fact, numbers: what it takes to give 2 MiB of staging (512 pages) back,
 * (a) MADV_DONTNEED while registered, its event read by another process;
 * (b) UNREGISTER, MADV_DONTNEED, REGISTER;
 * with the rest of the process idle, with a thread in the kernel's own faults,
 * and with a thread in faults that the other process serves.
 */
#include "probe.h"

#include <time.h>

#define REPS 60
#define BURST (256 * PAGE)

static int server(int sock)
{
	int uffd = recv_fd(sock);
	char page[PAGE];

	memset(page, 'p', PAGE);
	say(sock, 1);
	while (true) {
		struct uffd_msg m = uffd_read(uffd);
		char *p = (char *)(uintptr_t)(m.arg.pagefault.address & -PAGE);

		if (m.event != UFFD_EVENT_PAGEFAULT)
			continue;
		/* A change that is under way (EAGAIN) ends when its event was read: by us, the only reader. */
		while (uffd_copy(uffd, p, page, PAGE) == -EAGAIN) {
			if (uffd_quiet(uffd))
				continue;
			if (read(uffd, &m, sizeof(m)) == sizeof(m) && m.event == UFFD_EVENT_PAGEFAULT)
				uffd_wake(uffd, (char *)(uintptr_t)(m.arg.pagefault.address & -PAGE), PAGE);
		}
	}
	return 0;
}

struct load {
	int uffd, stop;
	bool served;
	char *p;
	unsigned long faults;
};

static void load_main(void *arg)
{
	struct load *l = arg;

	while (!__atomic_load_n(&l->stop, __ATOMIC_ACQUIRE)) {
		for (size_t i = 0; i < BURST && !__atomic_load_n(&l->stop, __ATOMIC_ACQUIRE); i += PAGE) {
			touch_write(l->p + i);
			l->faults++;
		}
		if (l->served)
			uffd_unregister(l->uffd, l->p, BURST);
		madvise(l->p, BURST, MADV_DONTNEED);
		if (l->served)
			uffd_register(l->uffd, l->p, BURST, MISSING);
	}
}

static double now_us(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec * 1e6 + (double)ts.tv_nsec / 1e3;
}

static int cmp(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return x < y ? -1 : x > y;
}

static void measure(int uffd, char *staging, const char *what, bool unregister)
{
	double t[REPS];

	for (int r = 0; r < REPS; r++) {
		double t0;

		uffd_unregister(uffd, staging, HUGE);
		memset(staging, r, HUGE);
		CHECK(!uffd_register(uffd, staging, HUGE, MISSING), "REGISTER works");
		t0 = now_us();
		if (unregister)
			CHECK(!uffd_unregister(uffd, staging, HUGE), "UNREGISTER works");
		CHECK(!madvise(staging, HUGE, MADV_DONTNEED), "MADV_DONTNEED works");
		if (unregister)
			CHECK(!uffd_register(uffd, staging, HUGE, MISSING), "REGISTER works");
		t[r] = now_us() - t0;
	}
	qsort(t, REPS, sizeof(t[0]), cmp);
	printf("%-16s %-34s median %7.0f us, p90 %7.0f us, best %6.0f us\n", what,
	       unregister ? "(b) unregister, dontneed, register" : "(a) dontneed, event read outside", t[REPS / 2],
	       t[REPS * 9 / 10], t[0]);
}

int main(void)
{
	static const char *const names[] = {"idle", "kernel faults", "served faults"};
	struct peer srv;
	char *staging;
	int uffd;

	probe_start();
	srv = peer_start(server); /* before the descriptor: it has none but the one that it is passed */
	uffd = uffd_open(UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP);
	send_fd(srv.sock, uffd);
	hear(srv.sock);
	staging = map_anon(HUGE);
	for (int k = 0; k < 3; k++) {
		struct load l = {.uffd = uffd, .served = k == 2, .p = map_anon(BURST)};
		struct actor a;

		if (l.served)
			CHECK(!uffd_register(uffd, l.p, BURST, MISSING), "REGISTER works");
		if (k)
			actor_start(&a, load_main, &l);
		measure(uffd, staging, names[k], false);
		measure(uffd, staging, names[k], true);
		if (k) {
			flag_set(&l.stop, 1);
			actor_join(&a);
		}
	}
	kill(srv.pid, SIGKILL);
	reap(srv.pid);
	return 0;
}
