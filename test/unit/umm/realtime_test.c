/* SPDX-License-Identifier: MIT */
/*
 * A thread of real-time priority waits for a change of the address space, and who makes that change would run
 * on its CPU, and nowhere else.  Giving the CPU up is nothing there: it goes to nobody of less priority.
 */
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "umm/internal.h"

#define LEN (16 * UMM_PAGE)
#define VERY_OFTEN 1000u

static unsigned yields; /* of who waits, in a row */

int __real_sched_yield(void);
int __wrap_sched_yield(void);
int __wrap_sched_yield(void)
{
	/* It would go on until the kernel takes the CPU from it. */
	if (++yields == VERY_OFTEN)
		sched_setscheduler(0, SCHED_OTHER, &(struct sched_param){0});
	return __real_sched_yield();
}

static void bind_to(int cpu)
{
	cpu_set_t one;

	CPU_ZERO(&one);
	CPU_SET((unsigned)cpu, &one);
	assert_int_equal(sched_setaffinity(0, sizeof(one), &one), 0);
}

struct changer {
	int cpu;
	char *p;
};

static void *change_main(void *arg)
{
	const struct changer *c = arg;

	bind_to(c->cpu);
	munmap(c->p, LEN);
	return NULL;
}

static void a_real_time_thread_lets_others_run(void **state)
{
	struct umm_ctl *ctl = calloc(1, sizeof(*ctl));
	struct umm_space *space;
	struct changer c;
	cpu_set_t before;
	pthread_t t;
	uint64_t got;
	int uffd = umm_inside_uffd(), rc;

	assert_non_null(ctl);
	assert_int_equal(umm_uffd_api(uffd, UFFD_FEATURE_EVENT_UNMAP, 0, &got), 0);
	assert_int_equal(umm_space_adopt(getpid(), uffd, -1, -1, ctl, &space), 0);
	c.p = mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_true(c.p != MAP_FAILED);
	assert_int_equal(umm_uffd_register(uffd, (uintptr_t)c.p, LEN, UFFDIO_REGISTER_MODE_MISSING), 0);
	assert_int_equal(sched_getaffinity(0, sizeof(before), &before), 0);
	c.cpu = sched_getcpu();
	assert_int_equal(pthread_create(&t, NULL, change_main, &c), 0);
	poll(&(struct pollfd){.fd = uffd, .events = POLLIN}, 1, -1);
	bind_to(c.cpu);
	if (sched_setscheduler(0, SCHED_FIFO, &(struct sched_param){.sched_priority = 1}))
		fail_msg("no real-time priority");
	yields = 0;
	rc = umm_space_sync_until(space, 0);
	sched_setscheduler(0, SCHED_OTHER, &(struct sched_param){0});
	sched_setaffinity(0, sizeof(before), &before);
	pthread_join(t, NULL);
	assert_int_equal(rc, 0);
	assert_true(yields < VERY_OFTEN);
	umm_space_close(space);
	free(ctl);
}

int main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(a_real_time_thread_lets_others_run)};
	int uffd = umm_inside_uffd();

	if (uffd < 0) {
		printf("SKIP: no right to a userfaultfd\n");
		return 77;
	}
	close(uffd);
	if (sched_setscheduler(0, SCHED_FIFO, &(struct sched_param){.sched_priority = 1})) {
		printf("SKIP: no right to real-time priority\n");
		return 77;
	}
	sched_setscheduler(0, SCHED_OTHER, &(struct sched_param){0});
	return cmocka_run_group_tests(tests, NULL, NULL);
}
