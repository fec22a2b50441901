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

/* While set nothing can be placed where it belongs, and whoever naps does not for long. */
static _Atomic bool stays, hurry;

int __real_umm_uffd_copy_unwritten(int uffd, uint64_t dst, const void *src, uint64_t len, uint64_t *copied);
int __wrap_umm_uffd_copy_unwritten(int uffd, uint64_t dst, const void *src, uint64_t len, uint64_t *copied);
int __wrap_umm_uffd_copy_unwritten(int uffd, uint64_t dst, const void *src, uint64_t len, uint64_t *copied)
{
	*copied = 0;
	return stays ? -ENOENT : __real_umm_uffd_copy_unwritten(uffd, dst, src, len, copied);
}

int __real_nanosleep(const struct timespec *ts, struct timespec *left);
int __wrap_nanosleep(const struct timespec *ts, struct timespec *left);
int __wrap_nanosleep(const struct timespec *ts, struct timespec *left)
{
	return __real_nanosleep(hurry ? &(struct timespec){.tv_nsec = 1000} : ts, left);
}

struct stopped {
	int uffd;
	struct uffdio_range range;
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

/* A thread holds all locks of malloc's when this returns. */
static void stop_in_fork(struct stopped *s)
{
	struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_EVENT_FORK};
	struct uffdio_register reg = {.mode = UFFDIO_REGISTER_MODE_MISSING};
	struct pollfd p;

	s->forked = false;
	s->uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	assert_true(s->uffd >= 0);
	if (ioctl(s->uffd, UFFDIO_API, &api))
		world_skip("no fork events", -errno);
	reg.range.start = (uintptr_t)pages(1);
	reg.range.len = PAGE;
	s->range = reg.range;
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
	uint32_t *a = pages(64), by = 1, got[4];
	struct other o = {0};
	struct stopped s;

	for (unsigned i = 0; i < N; i++)
		a[i] = i;
	assert_int_equal(hmm_cl_arg(k, 0, a, N * 4, HMM_CL_READ_WRITE), 0);
	assert_int_equal(hmm_cl_value(k, 1, &by, sizeof(by)), 0);
	assert_int_equal(launch(k, N, NULL), 0);
	assert_int_equal(hmm_cl_wait(w->cl), 0);
	assert_int_equal(pthread_create(&o.thread, NULL, mallocs, &o), 0);
	stop_in_fork(&s);
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
	pages_free(a, 64);
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

static void is_lost(int sig)
{
	_exit(42);
}

/*
 * The page had to stay on the device, and its locks are held for as long as this test
 * wants: a child that another thread makes meanwhile cannot have it.  It is told so; it
 * does not wait for ever, nor do we for it.
 */
static void what_a_fork_had_to_leave_there(void **state)
{
	struct hmm_cl_params p = {.flags = HMM_CL_COPIES};
	uint32_t *a = pages(64), by = 1;
	struct hmm_cl_kernel *k;
	int status, err = dup(STDERR_FILENO), said = memfd_create("said", MFD_CLOEXEC);
	char line[1024] = {0};
	struct stopped s;
	struct world w;
	pid_t pid;

	assert_int_equal(world_open(&w, &p), 0);
	k = kernel(&w, "inc");
	assert_int_equal(hmm_cl_arg(k, 0, a, N * 4, HMM_CL_READ_WRITE), 0);
	assert_int_equal(hmm_cl_value(k, 1, &by, sizeof(by)), 0);
	assert_int_equal(launch(k, N, NULL), 0);
	assert_int_equal(hmm_cl_wait(w.cl), 0);
	stays = true;
	stop_in_fork(&s);
	stays = false;
	assert_int_equal(on_device(&w, a, 64), 64);
	/* The other one's is reported to the engine alone. */
	assert_int_equal(ioctl(s.uffd, UFFDIO_UNREGISTER, &s.range), 0);
	dup2(said, STDERR_FILENO);
	hurry = true;
	pid = (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
	if (!pid) {
		signal(SIGBUS, is_lost);
		_exit(a[3] == 1 ? 0 : 1);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	hurry = false;
	dup2(err, STDERR_FILENO);
	assert_true(pread(said, line, sizeof(line) - 1, 0) > 0);
	assert_non_null(strstr(line, "pages of a forked child of process"));
	/* Once for all of them. */
	assert_ptr_equal(strchr(line, '\n'), line + strlen(line) - 1);
	close(said);
	close(err);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 42);
	let_go(&s);
	for (unsigned i = 0; i < N; i++)
		assert_int_equal(a[i], 1);
	hmm_cl_kernel_close(k);
	pages_free(a, 64);
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
		cmocka_unit_test(what_a_fork_had_to_leave_there),
	};

	if (argc > 1)
		cmocka_set_test_filter(argv[1]);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
