/* SPDX-License-Identifier: MIT */
/*
 * Pages come back while all of malloc's locks are held.
 *
 * A thread is stopped in the middle of fork(), where libc holds them all: its fork
 * is reported to a userfaultfd of this test, which reads the report late.  The
 * device must not be waited for by who holds them, so what comes back does so
 * without the runtime; or, where it must be the runtime, has come before.
 */
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>

#include "world.h"

#define N (64 * PAGE / 4)

struct stopped {
	int uffd;
	pthread_t thread;
	_Atomic bool forked;
};

static void *forker(void *arg)
{
	struct stopped *s = arg;
	pid_t pid = fork();

	if (!pid)
		_exit(0);
	s->forked = true;
	waitpid(pid, NULL, 0);
	return NULL;
}

/*
 * A thread holds all locks of malloc's when this returns.  @page lies above memory
 * that the engine watches: the kernel reports a fork to one userfaultfd after the
 * other, by the addresses of what they watch, and refuses to each of them all placing
 * until its report was read.  Were the engine's the later one, its pages could not
 * come back whatever it does.
 */
static void stop_in_fork(struct stopped *s, const void *page)
{
	struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_EVENT_FORK};
	struct uffdio_register reg = {.mode = UFFDIO_REGISTER_MODE_MISSING};
	struct pollfd p;

	s->forked = false;
	s->uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	assert_true(s->uffd >= 0);
	if (ioctl(s->uffd, UFFDIO_API, &api))
		world_skip("no fork events", -errno);
	reg.range.start = (uintptr_t)page;
	reg.range.len = PAGE;
	assert_int_equal(ioctl(s->uffd, UFFDIO_REGISTER, &reg), 0);
	assert_int_equal(pthread_create(&s->thread, NULL, forker, s), 0);
	p = (struct pollfd){.fd = s->uffd, .events = POLLIN};
	assert_int_equal(poll(&p, 1, -1), 1);
	assert_false(s->forked);
}

static void let_go(struct stopped *s)
{
	struct uffd_msg msg;

	assert_false(s->forked);
	assert_int_equal(read(s->uffd, &msg, sizeof(msg)), sizeof(msg));
	close((int)msg.arg.fork.ufd);
	pthread_join(s->thread, NULL);
	close(s->uffd);
}

struct other {
	pthread_t thread;
	_Atomic bool go, done;
};

/* Made before the locks are held: making a thread wants them, too. */
static void *mallocs(void *arg)
{
	struct other *o = arg;
	void *volatile p;

	while (!o->go)
		usleep(100);
	/* Not of the sizes that a thread has put aside for itself. */
	p = malloc(50000);
	free(p);
	o->done = true;
	return NULL;
}

static void pages_come_back(struct world *w, bool reach)
{
	struct hmm_cl_kernel *k = kernel(w, "inc");
	uint32_t *a = pages(66), by = 1, got[4]; /* 64, one that keeps mappings apart, and one of the test's */
	struct other o = {0};
	struct stopped s;

	assert_int_equal(mprotect((char *)a + 64 * PAGE, PAGE, PROT_NONE), 0);
	for (unsigned i = 0; i < N; i++)
		a[i] = i;
	assert_int_equal(hmm_cl_arg(k, 0, a, N * 4, HMM_CL_READ_WRITE), 0);
	assert_int_equal(hmm_cl_value(k, 1, &by, sizeof(by)), 0);
	assert_int_equal(launch(k, N, NULL), 0);
	assert_int_equal(hmm_cl_wait(w->cl), 0);
	assert_int_equal(pthread_create(&o.thread, NULL, mallocs, &o), 0);
	stop_in_fork(&s, (char *)a + 65 * PAGE);
	assert_int_equal(on_device(w, a, 64), reach ? 64 : 0);
	o.go = true;
	got[0] = a[3];
	got[1] = a[PAGE / 4 * 40];
	a[PAGE / 4 * 50]++;
	got[2] = a[PAGE / 4 * 50];
	usleep(20000); /* time for it to go wrong */
	got[3] = o.done;
	let_go(&s);
	pthread_join(o.thread, NULL);
	assert_int_equal(got[0], 3 + 1);
	assert_int_equal(got[1], PAGE / 4 * 40 + 1);
	assert_int_equal(got[2], PAGE / 4 * 50 + 2);
	assert_int_equal(got[3], false); /* so it was as it is meant to be */
	for (unsigned i = 0; i < N; i++)
		assert_int_equal(a[i], i + 1 + (i == PAGE / 4 * 50));
	hmm_cl_kernel_close(k);
	pages_free(a, 66);
}

static void where_the_cpu_reaches_the_device(void **state)
{
	struct world w;

	assert_int_equal(world_open(&w, NULL), 0);
	pages_come_back(&w, true);
	assert_int_equal(world_close(&w), 0);
}

static void where_the_runtime_copies(void **state)
{
	struct hmm_cl_params p = {.flags = HMM_CL_COPIES};
	struct world w;

	assert_int_equal(world_open(&w, &p), 0);
	pages_come_back(&w, false);
	assert_int_equal(world_close(&w), 0);
}

int main(int argc, char **argv)
{
#ifdef __SANITIZE_ADDRESS__
	puts("SKIP: a sanitizer's malloc is not locked by fork");
	return 77;
#endif
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(where_the_cpu_reaches_the_device),
		cmocka_unit_test(where_the_runtime_copies),
	};

	if (argc > 1)
		cmocka_set_test_filter(argv[1]);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
