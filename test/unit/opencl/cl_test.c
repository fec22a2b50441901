/* SPDX-License-Identifier: MIT */
/* Kernels on plain memory: what moves, what is copied, what comes back. */
#include <fcntl.h>

#include "world.h"

#define N (64 * PAGE / 4) /* of uint32_t */

/* Where the CPU reaches the device's memory, and where all goes through the runtime. */
static int setup_flags(void **state, unsigned flags)
{
	struct world *w = calloc(1, sizeof(*w));
	struct hmm_cl_params p = {.memory = 64 << 20, .flags = flags};

	*state = w;
	return world_open(w, &p);
}

static int setup_reach(void **state)
{
	return setup_flags(state, 0);
}

static int setup_copies(void **state)
{
	return setup_flags(state, HMM_CL_COPIES);
}

static void a_kernel_works_on_mapped_memory(void **state)
{
	struct world *w = *state;
	struct hmm_cl_kernel *k = kernel(w, "add");
	uint32_t *a = pages(64), *b = pages(64), by = 7;
	cl_event event;

	for (unsigned i = 0; i < N; i++)
		a[i] = i;
	assert_int_equal(hmm_cl_arg(k, 0, a, N * 4, HMM_CL_READ), 0);
	assert_int_equal(hmm_cl_arg(k, 1, b, N * 4, HMM_CL_WRITE), 0);
	assert_int_equal(hmm_cl_value(k, 2, &by, sizeof(by)), 0);
	assert_int_equal(launch(k, N, &event), 0);
	assert_int_equal(on_device(w, b, 64), 64);
	/* What is only read is the CPU's, too. */
	assert_int_equal(on_device(w, a, 64), 0);
	assert_int_equal(stats(w).bytes_in, N * 4);
	assert_int_equal(clWaitForEvents(1, &event), 0);
	clReleaseEvent(event);
	assert_int_equal(b[5], 12);
	/* With what follows it, where touches walk forward. */
	assert_in_range(on_device(w, b, 64), 64 - 8, 63);
	for (unsigned i = 0; i < N; i++)
		assert_int_equal(b[i], i + 7);
	assert_int_equal(on_device(w, b, 64), 0);
	hmm_cl_kernel_close(k);
	pages_free(a, 64);
	pages_free(b, 64);
}

static void malloced_memory_keeps_its_neighbours(void **state)
{
	struct world *w = *state;
	struct hmm_cl_kernel *k = kernel(w, "inc");
	unsigned n = 3 * PAGE / 4 + 123;
	uint32_t *m = malloc((n + 64) * 4), *a = m + 32, by = 3;

	for (unsigned i = 0; i < n + 64; i++)
		m[i] = i;
	assert_int_equal(hmm_cl_arg(k, 0, a, n * 4, HMM_CL_READ_WRITE), 0);
	assert_int_equal(hmm_cl_value(k, 1, &by, sizeof(by)), 0);
	assert_int_equal(launch(k, n, NULL), 0);
	/* The bytes beside the argument are the CPU's all the time. */
	for (unsigned i = 0; i < 32; i++) {
		m[i] += 1000;
		m[32 + n + i] += 1000;
	}
	assert_int_equal(hmm_cl_wait(w->cl), 0);
	for (unsigned i = 0; i < n + 64; i++)
		assert_int_equal(m[i], i < 32 || i >= 32 + n ? i + 1000 : i + 3);
	assert_int_equal(hmm_cl_release(w->cl, a, n * 4), 0);
	assert_int_equal(stats(w).bytes_held, 0);
	hmm_cl_kernel_close(k);
	free(m);
}

static void what_is_there_is_not_moved_again(void **state)
{
	struct world *w = *state;
	struct hmm_cl_kernel *k = kernel(w, "inc");
	uint32_t *a = pages(64), by = 1;
	struct hmm_cl_stats st;

	for (unsigned i = 0; i < N; i++)
		a[i] = i;
	assert_int_equal(hmm_cl_arg(k, 0, a, N * 4, HMM_CL_READ_WRITE), 0);
	assert_int_equal(hmm_cl_value(k, 1, &by, sizeof(by)), 0);
	for (unsigned i = 0; i < 10; i++)
		assert_int_equal(launch(k, N, NULL), 0);
	assert_int_equal(stats(w).bytes_in, N * 4);
	assert_int_equal(hmm_cl_wait(w->cl), 0);
	assert_int_equal(stats(w).bytes_out, 0);
	/* One page comes back, changed, and goes again: one page is copied. */
	a[PAGE / 4 * 9] += 100;
	assert_int_equal(launch(k, N, NULL), 0);
	st = stats(w);
	assert_int_equal(st.bytes_in, N * 4 + PAGE);
	assert_int_equal(st.bytes_out, PAGE);
	for (unsigned i = 0; i < N; i++)
		assert_int_equal(a[i], i + 11 + (i == PAGE / 4 * 9 ? 100 : 0));
	hmm_cl_kernel_close(k);
	pages_free(a, 64);
}

static void what_is_read_is_copied_when_it_was_written(void **state)
{
	struct world *w = *state;
	struct hmm_cl_kernel *k = kernel(w, "add");
	uint32_t *a = pages(64), *b = pages(64), by = 1;

	for (unsigned i = 0; i < N; i++)
		a[i] = i;
	assert_int_equal(hmm_cl_arg(k, 0, a, N * 4, HMM_CL_READ), 0);
	assert_int_equal(hmm_cl_arg(k, 1, b, N * 4, HMM_CL_WRITE), 0);
	assert_int_equal(hmm_cl_value(k, 2, &by, sizeof(by)), 0);
	for (unsigned i = 0; i < 5; i++)
		assert_int_equal(launch(k, N, NULL), 0);
	assert_int_equal(stats(w).bytes_in, N * 4);
	assert_int_equal(hmm_cl_wait(w->cl), 0);
	a[PAGE / 4 * 7] = 1000;
	assert_int_equal(launch(k, N, NULL), 0);
	assert_int_equal(stats(w).bytes_in, N * 4 + PAGE);
	assert_int_equal(b[PAGE / 4 * 7], 1001);
	/* The result of one is read by the next, and only looked at by the CPU: it stays good on the device. */
	assert_int_equal(hmm_cl_arg(k, 0, b, N * 4, HMM_CL_READ), 0);
	assert_int_equal(hmm_cl_arg(k, 1, a, N * 4, HMM_CL_WRITE), 0);
	for (unsigned i = 0; i < N; i++)
		assert_int_equal(b[i], i == PAGE / 4 * 7 ? 1001 : i + 1);
	assert_int_equal(hmm_cl_prefetch(w->cl, a, N * 4, HMM_CL_WRITE), 0);
	uint64_t before = stats(w).bytes_in;
	assert_int_equal(launch(k, N, NULL), 0);
	assert_int_equal(stats(w).bytes_in - before, 0);
	for (unsigned i = 0; i < N; i++)
		assert_int_equal(a[i], i == PAGE / 4 * 7 ? 1002 : i + 2);
	hmm_cl_kernel_close(k);
	pages_free(a, 64);
	pages_free(b, 64);
}

/* A kernel that is in the queue and waits for the test. */
struct running {
	struct world *w;
	struct hmm_cl_kernel *k;
	cl_event brake;
	uint32_t *a;
	_Atomic bool released, went_early;
	void (*change)(struct running *r);
	pthread_t thread;
	uint32_t *now; /* where the memory is afterwards; NULL: nowhere */
};

static void *changer(void *arg)
{
	struct running *r = arg;

	r->change(r);
	r->went_early = !r->released;
	return NULL;
}

/* Of who changes the memory that a kernel uses. */
enum waits { WAITS, MAY_WAIT, DOES_NOT_WAIT };

static void while_a_kernel_runs(struct world *w, unsigned access, void (*change)(struct running *r), enum waits waits)
{
	struct running r = {.w = w, .k = kernel(w, access == HMM_CL_READ ? "add" : "inc"), .change = change};
	uint32_t by = 5, *out = pages(64);
	size_t n = N;
	cl_int err;

	r.a = r.now = pages(64);
	for (unsigned i = 0; i < N; i++)
		r.a[i] = i;
	assert_int_equal(hmm_cl_arg(r.k, 0, r.a, N * 4, access), 0);
	if (access == HMM_CL_READ) {
		assert_int_equal(hmm_cl_arg(r.k, 1, out, N * 4, HMM_CL_WRITE), 0);
		assert_int_equal(hmm_cl_value(r.k, 2, &by, sizeof(by)), 0);
	} else {
		assert_int_equal(hmm_cl_value(r.k, 1, &by, sizeof(by)), 0);
	}
	r.brake = clCreateUserEvent(hmm_cl_context(w->cl), &err);
	assert_int_equal(err, 0);
	assert_int_equal(hmm_cl_launch(r.k, 1, NULL, &n, NULL, 1, &r.brake, NULL), 0);
	assert_int_equal(pthread_create(&r.thread, NULL, changer, &r), 0);
	if (waits == DOES_NOT_WAIT)
		pthread_join(r.thread, NULL); /* the kernel has not begun: who waits for it does so for ever */
	else
		usleep(50000); /* time to go wrong */
	r.released = true;
	assert_int_equal(clSetUserEventStatus(r.brake, CL_COMPLETE), 0);
	if (waits != DOES_NOT_WAIT)
		pthread_join(r.thread, NULL);
	if (waits == WAITS)
		assert_false(r.went_early);
	assert_int_equal(hmm_cl_wait(w->cl), 0);
	for (unsigned i = 0; r.now && i < N; i++)
		assert_int_equal(r.now[i], access == HMM_CL_READ ? i : i + by);
	clReleaseEvent(r.brake);
	hmm_cl_kernel_close(r.k);
	if (r.now)
		munmap(r.now, 64 * PAGE);
	pages_free(out, 64);
}

static void touches(struct running *r)
{
	assert_int_equal(r->a[17], 17 + 5);
}

static void a_touch_waits_for_the_kernel(void **state)
{
	while_a_kernel_runs(*state, HMM_CL_READ_WRITE, touches, WAITS);
}

static uint32_t *elsewhere;

static void touches_elsewhere(struct running *r)
{
	assert_int_equal(elsewhere[17], 17);
	assert_int_equal(elsewhere[N - 1], N - 1);
}

/* Not for the queue that it is in. */
static void a_touch_waits_for_no_other_kernel(void **state)
{
	struct world *w = *state;

	elsewhere = pages(64);
	for (unsigned i = 0; i < N; i++)
		elsewhere[i] = i;
	assert_int_equal(hmm_cl_prefetch(w->cl, elsewhere, N * 4, HMM_CL_READ_WRITE), 0);
	assert_int_equal(on_device(w, elsewhere, 64), 64);
	while_a_kernel_runs(w, HMM_CL_READ_WRITE, touches_elsewhere, DOES_NOT_WAIT);
	pages_free(elsewhere, 64);
}

static void unmaps(struct running *r)
{
	r->now = NULL;
	munmap(r->a, 64 * PAGE);
}

static void unmaps_raw(struct running *r)
{
	r->now = NULL;
	sys2(SYS_munmap, r->a, 64 * PAGE);
}

static void munmap_waits_for_the_kernel(void **state)
{
	while_a_kernel_runs(*state, HMM_CL_READ_WRITE, unmaps, WAITS);
	while_a_kernel_runs(*state, HMM_CL_READ, unmaps, WAITS);
	/* Of a raw one we learn too late; the kernel has the device's memory still. */
	while_a_kernel_runs(*state, HMM_CL_READ_WRITE, unmaps_raw, MAY_WAIT);
}

static void protects(struct running *r)
{
	mprotect(r->a, 64 * PAGE, PROT_READ);
}

static void mprotect_waits_for_the_kernel(void **state)
{
	while_a_kernel_runs(*state, HMM_CL_READ_WRITE, protects, WAITS);
}

static void drops(struct running *r)
{
	madvise(r->a, 64 * PAGE, MADV_DONTNEED);
	for (unsigned i = 0; i < N; i++)
		if (r->a[i])
			abort();
	r->now = NULL;
}

static void madvise_waits_for_the_kernel(void **state)
{
	while_a_kernel_runs(*state, HMM_CL_READ_WRITE, drops, WAITS);
}

static void remaps(struct running *r)
{
	char *to = mmap(NULL, 66 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	r->now = mremap(r->a, 64 * PAGE, 64 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to + PAGE);
}

static void remaps_raw(struct running *r)
{
	char *to = mmap(NULL, 66 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	r->now = (void *)sys5(SYS_mremap, r->a, 64 * PAGE, 64 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to + PAGE);
}

static void mremap_waits_for_the_kernel(void **state)
{
	while_a_kernel_runs(*state, HMM_CL_READ_WRITE, remaps, WAITS);
	while_a_kernel_runs(*state, HMM_CL_READ_WRITE, remaps_raw, MAY_WAIT);
}

static void forks(struct running *r)
{
	pid_t pid = fork();
	int status;

	if (!pid) {
		for (unsigned i = 0; i < N; i++)
			if (r->a[i] != i + 5)
				_exit(1);
		_exit(0);
	}
	waitpid(pid, &status, 0);
	if (status)
		abort();
}

static void fork_waits_for_the_kernel(void **state)
{
	while_a_kernel_runs(*state, HMM_CL_READ_WRITE, forks, WAITS);
}

static void reads(struct running *r)
{
	for (unsigned i = 0; i < N; i++)
		if (r->a[i] != i)
			abort();
}

static void what_is_only_read_is_nobodys_to_wait_for(void **state)
{
	while_a_kernel_runs(*state, HMM_CL_READ, reads, DOES_NOT_WAIT);
}

/* Addresses that pages have left are used for others, which have nothing of theirs. */
static void after_mremap_addresses_are_used_again(void **state)
{
	struct world *w = *state;
	struct hmm_cl_kernel *k = kernel(w, "inc");
	uint32_t *a = pages(64), *b = pages(64), by = 1;

	assert_int_equal(hmm_cl_value(k, 1, &by, sizeof(by)), 0);
	for (unsigned round = 0; round < 2; round++) {
		for (unsigned i = 0; i < N; i++)
			a[i] = i;
		assert_int_equal(hmm_cl_arg(k, 0, a, N * 4, HMM_CL_READ_WRITE), 0);
		assert_int_equal(launch(k, N, NULL), 0);
		assert_int_equal(hmm_cl_wait(w->cl), 0);
		if (round)
			assert_int_equal(sys5(SYS_mremap, a, 64 * PAGE, 64 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, b),
					 (long)b);
		else
			assert_ptr_equal(mremap(a, 64 * PAGE, 64 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, b), b);
		assert_int_equal(on_device(w, b, 64), 64);
		/* A raw one, where nothing is: nobody tells of it. */
		if (round)
			assert_int_equal(sys6(SYS_mmap, a, 64 * PAGE, PROT_READ | PROT_WRITE,
					      MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0),
					 (long)a);
		else
			assert_ptr_equal(mmap(a, 64 * PAGE, PROT_READ | PROT_WRITE,
					      MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0),
					 a);
		assert_int_equal(launch(k, N, NULL), 0);
		for (unsigned i = 0; i < N; i++)
			assert_int_equal(a[i], 1);
		/* Half of what moved is still on the device, where it was. */
		for (unsigned i = 0; i < N / 2; i++)
			assert_int_equal(b[i], i + 1);
		assert_int_equal(hmm_cl_arg(k, 0, b, N * 4, HMM_CL_READ_WRITE), 0);
		assert_int_equal(launch(k, N, NULL), 0);
		for (unsigned i = 0; i < N; i++)
			assert_int_equal(b[i], i + 2);
	}
	hmm_cl_kernel_close(k);
	pages_free(a, 64);
	pages_free(b, 64);
}

static void memory_that_cannot_move_is_copied(void **state)
{
	struct world *w = *state;
	struct hmm_cl_kernel *k = kernel(w, "inc"), *k2 = kernel(w, "add");
	uint32_t *a = pages(64), by = 2;
	cl_event event;
	uint32_t *s = mmap(NULL, 64 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	for (unsigned i = 0; i < N; i++)
		s[i] = i;
	assert_int_equal(hmm_cl_value(k, 1, &by, sizeof(by)), 0);
	assert_int_equal(hmm_cl_arg(k, 0, s, N * 4, HMM_CL_READ_WRITE), 0);
	for (unsigned round = 0; round < 3; round++) {
		assert_int_equal(launch(k, N, &event), 0);
		assert_int_equal(clWaitForEvents(1, &event), 0);
		clReleaseEvent(event);
		for (unsigned i = 0; i < N; i++)
			assert_int_equal(s[i], i + (round + 1) * 2 + round);
		for (unsigned i = 0; i < N; i++)
			s[i]++;
	}
	munmap(s, 64 * PAGE);
	/* Read-only memory is read; to write to it is refused, and moves nothing. */
	for (unsigned i = 0; i < N; i++)
		a[i] = i;
	mprotect(a, 64 * PAGE, PROT_READ);
	assert_int_equal(hmm_cl_arg(k, 0, a, N * 4, HMM_CL_READ_WRITE), 0);
	assert_int_equal(launch(k, N, NULL), -EPERM);
	assert_int_equal(on_device(w, a, 64), 0);
	s = pages(64);
	assert_int_equal(hmm_cl_arg(k2, 0, a, N * 4, HMM_CL_READ), 0);
	assert_int_equal(hmm_cl_arg(k2, 1, s, N * 4, HMM_CL_WRITE), 0);
	assert_int_equal(hmm_cl_value(k2, 2, &by, sizeof(by)), 0);
	assert_int_equal(launch(k2, N, NULL), 0);
	for (unsigned i = 0; i < N; i++)
		assert_int_equal(s[i], i + 2);
	/* A hole. */
	munmap((char *)a + 5 * PAGE, PAGE);
	assert_int_equal(launch(k2, N, NULL), -EFAULT);
	hmm_cl_kernel_close(k);
	hmm_cl_kernel_close(k2);
	pages_free(a, 64);
	pages_free(s, 64);
}

/* A page that a raw call has made read-only, or taken away, is not written to, but all around it is; nobody is told. */
static void what_is_copied_back_leaves_out_what_may_not_be_written(void **state)
{
	struct world *w = *state;
	struct hmm_cl_kernel *k = kernel(w, "inc");
	uint32_t *s = mmap(NULL, 64 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0), by = 2;
	cl_event brake, event;
	size_t n = N;
	cl_int err;

	for (unsigned i = 0; i < N; i++)
		s[i] = i;
	assert_int_equal(hmm_cl_arg(k, 0, s, N * 4, HMM_CL_READ_WRITE), 0);
	assert_int_equal(hmm_cl_value(k, 1, &by, sizeof(by)), 0);
	brake = clCreateUserEvent(hmm_cl_context(w->cl), &err);
	assert_int_equal(err, 0);
	assert_int_equal(hmm_cl_launch(k, 1, NULL, &n, NULL, 1, &brake, &event), 0);
	assert_int_equal(sys3(SYS_mprotect, s + PAGE / 4 * 9, PAGE, PROT_READ), 0);
	assert_int_equal(sys2(SYS_munmap, s + PAGE / 4 * 20, PAGE), 0);
	assert_int_equal(clSetUserEventStatus(brake, CL_COMPLETE), 0);
	assert_int_equal(clWaitForEvents(1, &event), 0);
	assert_int_equal(hmm_cl_wait(w->cl), 0);
	for (unsigned i = 0; i < N; i++)
		if (i / (PAGE / 4) != 20)
			assert_int_equal(s[i], i + (i / (PAGE / 4) == 9 ? 0 : by));
	clReleaseEvent(brake);
	clReleaseEvent(event);
	hmm_cl_kernel_close(k);
	munmap(s, 64 * PAGE);
}

/* Where memory is watched the device is told what raw calls take away: no more than that is left out. */
static void what_is_copied_back_leaves_out_what_has_gone(void **state)
{
	struct world *w = *state;
	struct hmm_cl_kernel *k = kernel(w, "inc");
	uint32_t *a = pages(64), by = 2;
	size_t n = N - 20; /* neither the first bytes nor the last ones */
	cl_event brake, event;
	cl_int err;

	for (unsigned i = 0; i < N; i++)
		a[i] = i;
	assert_int_equal(hmm_cl_advise(w->cl, a, 64 * PAGE, HMM_CL_STAY), 0);
	assert_int_equal(hmm_cl_arg(k, 0, a + 10, n * 4, HMM_CL_READ_WRITE), 0);
	assert_int_equal(hmm_cl_value(k, 1, &by, sizeof(by)), 0);
	brake = clCreateUserEvent(hmm_cl_context(w->cl), &err);
	assert_int_equal(err, 0);
	assert_int_equal(hmm_cl_launch(k, 1, NULL, &n, NULL, 1, &brake, &event), 0);
	assert_int_equal(sys2(SYS_munmap, a + PAGE / 4 * 20, PAGE), 0);
	assert_int_equal(sys3(SYS_madvise, a + PAGE / 4 * 25, PAGE, MADV_DONTNEED), 0);
	umm_space_sync(w->space);
	assert_int_equal(clSetUserEventStatus(brake, CL_COMPLETE), 0);
	assert_int_equal(clWaitForEvents(1, &event), 0);
	assert_int_equal(hmm_cl_wait(w->cl), 0);
	assert_int_equal(stats(w).bytes_out, n * 4 - 2 * PAGE);
	for (unsigned i = 0; i < N; i++)
		if (i / (PAGE / 4) == 25)
			assert_int_equal(a[i], 0);
		else if (i / (PAGE / 4) != 20)
			assert_int_equal(a[i], i + (i >= 10 && i < N - 10 ? by : 0));
	/* The next launch has nothing to do with that. */
	assert_int_equal(sys6(SYS_mmap, a + PAGE / 4 * 20, PAGE, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0),
			 (long)(a + PAGE / 4 * 20));
	assert_int_equal(launch(k, n, NULL), 0);
	assert_int_equal(hmm_cl_wait(w->cl), 0);
	for (unsigned i = 0; i < N; i++)
		if (i / (PAGE / 4) == 20 || i / (PAGE / 4) == 25)
			assert_int_equal(a[i], by);
		else
			assert_int_equal(a[i], i + (i >= 10 && i < N - 10 ? 2 * by : 0));
	clReleaseEvent(brake);
	clReleaseEvent(event);
	hmm_cl_kernel_close(k);
	pages_free(a, 64);
}

/* Sixteen times what the device may have. */
static void the_least_used_leaves_when_there_is_no_room(void **state)
{
	struct world *w = *state;
	struct hmm_cl_kernel *k = kernel(w, "inc");
	enum { EACH = 4096, NR = 256 };
	uint32_t *a[NR], by = 1, *big;
	size_t n = EACH * PAGE / 4;
	char line[200];

	assert_int_equal(hmm_cl_value(k, 1, &by, sizeof(by)), 0);
	for (unsigned i = 0; i < 8; i++) {
		a[i] = pages(EACH);
		for (size_t j = 0; j < n; j += 512)
			a[i][j] = i;
	}
	for (unsigned round = 0; round < 2; round++) {
		for (unsigned i = 0; i < 8; i++) {
			assert_int_equal(hmm_cl_arg(k, 0, a[i], EACH * PAGE, HMM_CL_READ_WRITE), 0);
			assert_int_equal(launch(k, n, NULL), 0);
			assert_true(stats(w).bytes_held <= 64 << 20);
		}
	}
	assert_int_equal(stats(w).evictions, 16 - 4 + 0);
	for (unsigned i = 0; i < 8; i++) {
		for (size_t j = 0; j < n; j += 512)
			assert_int_equal(a[i][j], i + 2);
		assert_int_equal(a[i][1], 2);
		pages_free(a[i], EACH);
	}
	big = pages(EACH * 5);
	big[77] = 77;
	assert_int_equal(hmm_cl_arg(k, 0, big, EACH * 5 * PAGE, HMM_CL_READ_WRITE), 0);
	assert_int_equal(launch(k, n * 5, NULL), -ENOSPC);
	hmm_cl_message(w->cl, line, sizeof(line));
	assert_non_null(strstr(line, "80 MiB do not fit into the 64 MiB"));
	assert_int_equal(on_device(w, big, 16), 0);
	assert_int_equal(big[77], 77);
	hmm_cl_kernel_close(k);
	pages_free(big, EACH * 5);
}

/* A range that is used in part and as a whole has two pieces of the device's memory; the pages are in one of them. */
static void what_leaves_takes_no_others_with_it(void **state)
{
	struct world *w = *state;
	struct hmm_cl_kernel *k = kernel(w, "inc");
	size_t rest = (64ul << 20) / PAGE - 64;
	uint32_t *a = pages(64), *other = pages(rest), by = 1;

	assert_int_equal(hmm_cl_value(k, 1, &by, sizeof(by)), 0);
	assert_int_equal(hmm_cl_arg(k, 0, a, N * 2, HMM_CL_READ_WRITE), 0);
	assert_int_equal(launch(k, N / 2, NULL), 0);
	assert_int_equal(hmm_cl_arg(k, 0, a, N * 4, HMM_CL_READ_WRITE), 0);
	assert_int_equal(launch(k, N, NULL), 0);
	assert_int_equal(stats(w).bytes_held, 96 * PAGE);
	/* There is room for this if the smaller one goes. */
	assert_int_equal(hmm_cl_prefetch(w->cl, other, rest * PAGE, HMM_CL_READ), 0);
	assert_int_equal(stats(w).evictions, 1);
	assert_int_equal(on_device(w, a, 64), 64);
	for (unsigned i = 0; i < N; i++)
		assert_int_equal(a[i], i < N / 2 ? 2 : 1);
	hmm_cl_kernel_close(k);
	pages_free(a, 64);
	pages_free(other, rest);
}

static void what_is_wanted_here_leaves_last(void **state)
{
	struct world *w = *state;
	size_t half = (32ul << 20) / PAGE;
	uint32_t *a = pages(64), *x = pages(half), *y = pages(half);

	assert_int_equal(hmm_cl_advise(w->cl, a, 64 * PAGE, HMM_CL_HERE), 0);
	assert_int_equal(hmm_cl_prefetch(w->cl, a, 64 * PAGE, HMM_CL_WRITE), 0);
	assert_int_equal(hmm_cl_prefetch(w->cl, x, half * PAGE, HMM_CL_READ), 0);
	/* One of them has to go: of the three the first was used least. */
	assert_int_equal(hmm_cl_prefetch(w->cl, y, half * PAGE, HMM_CL_READ), 0);
	assert_int_equal(stats(w).evictions, 1);
	assert_int_equal(on_device(w, a, 64), 64);
	assert_int_equal(hmm_cl_advise(w->cl, a, 64 * PAGE, HMM_CL_NORMAL), 0);
	assert_int_equal(hmm_cl_prefetch(w->cl, a, 64 * PAGE, HMM_CL_WRITE), 0);
	assert_int_equal(hmm_cl_prefetch(w->cl, y, half * PAGE, HMM_CL_READ), 0);
	assert_int_equal(hmm_cl_prefetch(w->cl, x, half * PAGE, HMM_CL_READ), 0);
	assert_int_equal(on_device(w, a, 64), 0);
	pages_free(a, 64);
	pages_free(x, half);
	pages_free(y, half);
}

static void two_devices_pass_pages_to_each_other(void **state)
{
	struct world *w = *state;
	struct hmm_cl_params p = {.device = hmm_cl_device(w->cl), .memory = 16 << 20};
	struct hmm_cl_kernel *k = kernel(w, "inc"), *k2, *r1 = kernel(w, "add"), *r2;
	uint32_t *a = pages(64), *o1 = pages(64), *o2 = pages(64), by = 1;
	struct hmm_cl *other;
	cl_program program;

	assert_int_equal(hmm_cl_open(w->space, w->mm, &p, &other), 0);
	assert_int_equal(hmm_cl_build(other, world_source, NULL, NULL, 0, &program), 0);
	assert_int_equal(hmm_cl_kernel_open(other, program, "inc", &k2), 0);
	assert_int_equal(hmm_cl_kernel_open(other, program, "add", &r2), 0);
	for (unsigned i = 0; i < N; i++)
		a[i] = i;
	assert_int_equal(hmm_cl_arg(k, 0, a, N * 4, HMM_CL_READ_WRITE), 0);
	assert_int_equal(hmm_cl_arg(k2, 0, a, N * 4, HMM_CL_READ_WRITE), 0);
	assert_int_equal(hmm_cl_value(k, 1, &by, sizeof(by)), 0);
	assert_int_equal(hmm_cl_value(k2, 1, &by, sizeof(by)), 0);
	for (unsigned i = 0; i < 10; i++) {
		assert_int_equal(launch(k, N, NULL), 0);
		assert_int_equal(launch(k2, N, NULL), 0);
	}
	/* Both have a copy of what both read. */
	assert_int_equal(hmm_cl_arg(r1, 0, a, N * 4, HMM_CL_READ), 0);
	assert_int_equal(hmm_cl_arg(r2, 0, a, N * 4, HMM_CL_READ), 0);
	assert_int_equal(hmm_cl_arg(r1, 1, o1, N * 4, HMM_CL_WRITE), 0);
	assert_int_equal(hmm_cl_arg(r2, 1, o2, N * 4, HMM_CL_WRITE), 0);
	assert_int_equal(hmm_cl_value(r1, 2, &by, sizeof(by)), 0);
	assert_int_equal(hmm_cl_value(r2, 2, &by, sizeof(by)), 0);
	for (unsigned i = 0; i < 3; i++) {
		assert_int_equal(launch(r1, N, NULL), 0);
		assert_int_equal(launch(r2, N, NULL), 0);
	}
	a[9] += 100;
	assert_int_equal(launch(r2, N, NULL), 0);
	assert_int_equal(launch(r1, N, NULL), 0);
	for (unsigned i = 0; i < N; i++) {
		assert_int_equal(o1[i], i + 21 + (i == 9 ? 100 : 0));
		assert_int_equal(o2[i], i + 21 + (i == 9 ? 100 : 0));
	}
	hmm_cl_kernel_close(k2);
	hmm_cl_kernel_close(r2);
	clReleaseProgram(program);
	assert_int_equal(launch(k, N, NULL), 0);
	assert_int_equal(hmm_cl_close(other), 0);
	for (unsigned i = 0; i < N; i++)
		assert_int_equal(a[i], i + 21 + (i == 9 ? 100 : 0));
	hmm_cl_kernel_close(k);
	hmm_cl_kernel_close(r1);
	pages_free(a, 64);
	pages_free(o1, 64);
	pages_free(o2, 64);
}

static void a_child_has_what_was_on_the_device(void **state)
{
	struct world *w = *state;
	struct hmm_cl_kernel *k = kernel(w, "inc");
	uint32_t *a = pages(64), by = 4;
	int status;

	for (unsigned i = 0; i < N; i++)
		a[i] = i;
	assert_int_equal(hmm_cl_arg(k, 0, a, N * 4, HMM_CL_READ_WRITE), 0);
	assert_int_equal(hmm_cl_value(k, 1, &by, sizeof(by)), 0);
	for (unsigned round = 0; round < 2; round++) {
		pid_t pid;

		assert_int_equal(launch(k, N, NULL), 0);
		assert_int_equal(hmm_cl_wait(w->cl), 0);
		assert_int_equal(on_device(w, a, 64), 64);
		pid = round ? (pid_t)sys5(SYS_clone, SIGCHLD, 0, 0, 0, 0) : fork();
		if (!pid) {
			for (unsigned i = 0; i < N; i++)
				if (a[i] != i + 4 * (round + 1))
					_exit(1);
			_exit(0);
		}
		assert_int_equal(waitpid(pid, &status, 0), pid);
		assert_int_equal(status, 0);
	}
	for (unsigned i = 0; i < N; i++)
		assert_int_equal(a[i], i + 8);
	hmm_cl_kernel_close(k);
	pages_free(a, 64);
}

static void advice_is_followed(void **state)
{
	struct world *w = *state;
	struct hmm_cl_kernel *k = kernel(w, "inc"), *r = kernel(w, "add");
	uint32_t *a = pages(64), *b = pages(64), by = 1;
	cl_event event;

	for (unsigned i = 0; i < N; i++)
		a[i] = i;
	assert_int_equal(hmm_cl_arg(k, 0, a, N * 4, HMM_CL_READ_WRITE), 0);
	assert_int_equal(hmm_cl_value(k, 1, &by, sizeof(by)), 0);
	assert_int_equal(hmm_cl_advise(w->cl, a, 16 * PAGE, HMM_CL_STAY), 0);
	assert_int_equal(launch(k, N, NULL), 0);
	assert_int_equal(on_device(w, a, 64), 48);
	assert_int_equal(on_device(w, a, 16), 0);
	assert_int_equal(hmm_cl_wait(w->cl), 0);
	assert_int_equal(hmm_cl_advise(w->cl, a, 64 * PAGE, HMM_CL_HOME), 0);
	assert_int_equal(launch(k, N, &event), 0);
	assert_int_equal(clWaitForEvents(1, &event), 0);
	clReleaseEvent(event);
	/* Unasked, but not at once. */
	while (on_device(w, a, 64))
		usleep(1000);
	for (unsigned i = 0; i < N; i++)
		assert_int_equal(a[i], i + 2);
	assert_int_equal(hmm_cl_advise(w->cl, a, 64 * PAGE, HMM_CL_READ_MOSTLY), 0);
	assert_int_equal(launch(k, N, NULL), 0);
	assert_int_equal(on_device(w, a, 64), 64);
	assert_int_equal(hmm_cl_arg(r, 0, a, N * 4, HMM_CL_READ), 0);
	assert_int_equal(hmm_cl_arg(r, 1, b, N * 4, HMM_CL_WRITE), 0);
	assert_int_equal(hmm_cl_value(r, 2, &by, sizeof(by)), 0);
	uint64_t in = stats(w).bytes_in;
	for (unsigned i = 0; i < 3; i++)
		assert_int_equal(launch(r, N, NULL), 0);
	assert_int_equal(on_device(w, a, 64), 0);
	assert_int_equal(stats(w).bytes_in, in);
	assert_int_equal(b[8], 8 + 3 + 1);
	/* Back and forth ahead of need. */
	assert_int_equal(hmm_cl_advise(w->cl, a, 64 * PAGE, HMM_CL_NORMAL), 0);
	assert_int_equal(hmm_cl_prefetch(w->cl, a, N * 4, HMM_CL_READ_WRITE), 0);
	assert_int_equal(on_device(w, a, 64), 64);
	assert_int_equal(hmm_cl_prefetch(w->cl, a, N * 4, 0), 0);
	assert_int_equal(on_device(w, a, 64), 0);
	assert_int_equal(a[5], 8);
	assert_int_equal(hmm_cl_advise(w->cl, a, 0, HMM_CL_STAY), -EINVAL);
	assert_int_equal(hmm_cl_advise(w->cl, a, 1, 99), -EINVAL);
	hmm_cl_kernel_close(k);
	hmm_cl_kernel_close(r);
	pages_free(a, 64);
	pages_free(b, 64);
}

struct node {
	struct node *next;
	uint64_t value;
};

static void pointers_mean_the_same_on_both_sides(void **state)
{
	struct world *w = *state;
	struct hmm_cl_kernel *k;
	struct node *node;
	uint64_t *sum;
	void *p, *q;
	size_t one = 1;
	cl_event event;
	int rc = hmm_cl_svm_alloc(w->cl, 100 * sizeof(*node), &p);

	if (rc == -EOPNOTSUPP)
		skip();
	assert_int_equal(rc, 0);
	/* The result lies in a piece that no argument names. */
	assert_int_equal(hmm_cl_svm_alloc(w->cl, sizeof(*sum), &q), 0);
	node = p;
	sum = q;
	*sum = 0;
	for (unsigned i = 0; i < 100; i++)
		node[i] = (struct node){i < 98 ? &node[i + 1] : i == 98 ? (struct node *)sum : NULL, i};
	assert_int_equal(hmm_cl_kernel_open(w->cl, w->program, "follow", &k), 0);
	assert_int_equal(hmm_cl_arg(k, 0, node, 100 * sizeof(*node), HMM_CL_READ_WRITE), 0);
	for (unsigned round = 1; round < 4; round++) {
		assert_int_equal(hmm_cl_launch(k, 1, NULL, &one, NULL, 0, NULL, &event), 0);
		assert_int_equal(clWaitForEvents(1, &event), 0);
		clReleaseEvent(event);
		assert_int_equal(*sum, 98 * 99 / 2 * round);
	}
	hmm_cl_kernel_close(k);
	hmm_cl_svm_free(w->cl, q);
}

/* What was last said of an argument holds. */
static void a_value_takes_the_place_of_shared_memory(void **state)
{
	struct world *w = *state;
	struct hmm_cl_kernel *k;
	uint32_t by = 3, *a, b = 0;
	size_t one = 1;
	cl_int err;
	cl_mem buffer;
	void *p;
	int rc = hmm_cl_svm_alloc(w->cl, PAGE, &p);

	if (rc == -EOPNOTSUPP)
		skip();
	assert_int_equal(rc, 0);
	a = p;
	*a = 0;
	k = kernel(w, "inc");
	assert_int_equal(hmm_cl_value(k, 1, &by, sizeof(by)), 0);
	assert_int_equal(hmm_cl_arg(k, 0, a, PAGE, HMM_CL_READ_WRITE), 0);
	assert_int_equal(hmm_cl_launch(k, 1, NULL, &one, NULL, 0, NULL, NULL), 0);
	assert_int_equal(hmm_cl_wait(w->cl), 0);
	assert_int_equal(*a, 3);
	buffer = clCreateBuffer(hmm_cl_context(w->cl), CL_MEM_READ_WRITE | CL_MEM_COPY_HOST_PTR, sizeof(b), &b, &err);
	assert_int_equal(err, 0);
	assert_int_equal(hmm_cl_value(k, 0, &buffer, sizeof(buffer)), 0);
	assert_int_equal(hmm_cl_launch(k, 1, NULL, &one, NULL, 0, NULL, NULL), 0);
	assert_int_equal(hmm_cl_wait(w->cl), 0);
	assert_int_equal(*a, 3);
	assert_int_equal(clEnqueueReadBuffer(hmm_cl_queue(w->cl), buffer, CL_TRUE, 0, sizeof(b), &b, 0, NULL, NULL), 0);
	assert_int_equal(b, 3);
	clReleaseMemObject(buffer);
	hmm_cl_kernel_close(k);
	hmm_cl_svm_free(w->cl, p);
}

/* Address space in use, of the first word of statm. */
static long mapped_pages(void)
{
	char buf[64] = "";
	int fd = open("/proc/self/statm", O_RDONLY);

	assert_true(read(fd, buf, sizeof(buf) - 1) > 0);
	close(fd);
	return atol(buf);
}

static void memory_made_to_move(void **state)
{
	struct world *w = *state;
	struct hmm_cl_kernel *k = kernel(w, "inc");
	uint32_t by = 3, *a;
	char line[160];
	long before;
	void *p;

	assert_int_equal(hmm_cl_alloc(w->cl, 5 * PAGE - 8, &p), 0);
	a = p;
	assert_int_equal(hmm_cl_arg(k, 0, a, 5 * PAGE, HMM_CL_READ_WRITE), 0);
	assert_int_equal(hmm_cl_value(k, 1, &by, sizeof(by)), 0);
	assert_int_equal(launch(k, 5 * PAGE / 4, NULL), 0);
	assert_int_equal(on_device(w, a, 5), 5);
	assert_int_equal(a[5 * PAGE / 4 - 1], 3);
	hmm_cl_free(w->cl, p, 5 * PAGE - 8);
	assert_int_equal(hmm_cl_alloc(w->cl, 0, &p), -EINVAL);
	/* What went well has no line. */
	hmm_cl_message(w->cl, line, sizeof(line));
	assert_string_equal(line, "");
	/* What is large is where it can be in huge pages, and leaves nothing behind. */
	before = mapped_pages();
	assert_int_equal(hmm_cl_alloc(w->cl, (5 << 20) + 1, &p), 0);
	assert_int_equal((uintptr_t)p % (2 << 20), 0);
	assert_int_equal(mapped_pages(), before + (5 << 20) / PAGE + 3);
	memset(p, 1, (5 << 20) + 1);
	hmm_cl_free(w->cl, p, (5 << 20) + 1);
	assert_int_equal(mapped_pages(), before);
	hmm_cl_kernel_close(k);
}

static void what_is_overwritten_is_not_brought_along(void **state)
{
	struct world *w = *state;
	struct hmm_cl_kernel *k = kernel(w, "fill"), *add = kernel(w, "add");
	uint32_t *a = pages(64), from = 3;

	for (unsigned i = 0; i < N; i++)
		a[i] = ~i;
	/* All but the first and the last bytes of what is not whole pages. */
	assert_int_equal(hmm_cl_arg(k, 0, a + 1, (N - 2) * 4, HMM_CL_WRITE_ALL), 0);
	assert_int_equal(hmm_cl_value(k, 1, &from, sizeof(from)), 0);
	assert_int_equal(launch(k, N - 2, NULL), 0);
	assert_int_equal(hmm_cl_wait(w->cl), 0);
	assert_int_equal(stats(w).bytes_in, 2 * PAGE);
	assert_int_equal(on_device(w, a, 64), 62);
	for (unsigned i = 0; i < N; i++)
		assert_int_equal(a[i], i && i < N - 1 ? i - 1 + from : ~i);
	/* Of what another argument reads it is. */
	for (unsigned i = 0; i < N; i++)
		a[i] = i;
	assert_int_equal(hmm_cl_arg(add, 0, a, N * 4, HMM_CL_READ), 0);
	assert_int_equal(hmm_cl_arg(add, 1, a, N * 4, HMM_CL_WRITE_ALL), 0);
	assert_int_equal(hmm_cl_value(add, 2, &from, sizeof(from)), 0);
	assert_int_equal(launch(add, N, NULL), 0);
	for (unsigned i = 0; i < N; i++)
		assert_int_equal(a[i], i + from);
	hmm_cl_kernel_close(k);
	hmm_cl_kernel_close(add);
	pages_free(a, 64);
}

/* Where the kernel has no page table it tells of no change either. */
static void what_was_never_touched_is_zeros(void **state)
{
	struct world *w = *state;
	struct hmm_cl_kernel *k = kernel(w, "fill"), *add = kernel(w, "add");
	size_t bytes = 4 << 20, n = bytes / 4;
	uint32_t from = 7, none = 0, *a, *b;
	void *p, *q;

	assert_int_equal(hmm_cl_alloc(w->cl, bytes, &p), 0);
	assert_int_equal(hmm_cl_alloc(w->cl, bytes, &q), 0);
	a = p;
	b = q;
	assert_int_equal(hmm_cl_arg(k, 0, a, bytes, HMM_CL_WRITE_ALL), 0);
	assert_int_equal(hmm_cl_value(k, 1, &from, sizeof(from)), 0);
	assert_int_equal(launch(k, n, NULL), 0);
	assert_int_equal(hmm_cl_wait(w->cl), 0);
	assert_int_equal(madvise(a, bytes, MADV_DONTNEED), 0);
	assert_int_equal(hmm_cl_arg(add, 0, a, bytes, HMM_CL_READ), 0);
	assert_int_equal(hmm_cl_arg(add, 1, b, bytes, HMM_CL_WRITE_ALL), 0);
	assert_int_equal(hmm_cl_value(add, 2, &none, sizeof(none)), 0);
	assert_int_equal(launch(add, n, NULL), 0);
	for (size_t i = 0; i < n; i++)
		assert_int_equal(b[i], 0);
	hmm_cl_free(w->cl, p, bytes);
	hmm_cl_free(w->cl, q, bytes);
	hmm_cl_kernel_close(k);
	hmm_cl_kernel_close(add);
}

/* Of what is resident, in MiB. */
static long resident(void)
{
	char buf[64] = "";
	int fd = open("/proc/self/statm", O_RDONLY);

	assert_true(read(fd, buf, sizeof(buf) - 1) > 0);
	close(fd);
	return atol(strchr(buf, ' ')) * (long)PAGE >> 20;
}

/* Which of the machine's pages it is; 0: not to be known without privilege. */
static uint64_t frame_of(const void *p)
{
	uint64_t word;
	int fd = open("/proc/self/pagemap", O_RDONLY);

	assert_int_equal(pread(fd, &word, sizeof(word), (off_t)((uintptr_t)p / PAGE * sizeof(word))), sizeof(word));
	close(fd);
	return word & (((uint64_t)1 << 55) - 1);
}

enum { HUGE_MIB = 40 };

/* What is large enough to have its memory on the device where huge pages are; NULL: no huge pages, or no such device.
 */
static uint32_t *huge_memory(struct world *w)
{
	cl_device_type type = 0;
	long before;
	void *p;

	assert_int_equal(clGetDeviceInfo(hmm_cl_device(w->cl), CL_DEVICE_TYPE, sizeof(type), &type, NULL), 0);
	assert_int_equal(hmm_cl_alloc(w->cl, (size_t)HUGE_MIB << 20, &p), 0);
	before = resident();
	*(volatile char *)p = 1;
	if (type == CL_DEVICE_TYPE_CPU && resident() > before)
		return p;
	puts("no huge pages here, or the device's memory is its own");
	hmm_cl_free(w->cl, p, (size_t)HUGE_MIB << 20);
	return NULL;
}

/* They are the program's or the device's, and never both. */
static void huge_pages_go_and_come_without_a_copy(void **state)
{
	struct world *w = *state;
	struct hmm_cl_kernel *inc = kernel(w, "inc"), *fill = kernel(w, "fill"), *add = kernel(w, "add");
	size_t bytes = (size_t)HUGE_MIB << 20, n = bytes / 4;
	uint32_t *a = huge_memory(w), by = 3;
	long at;

	if (!a)
		skip();
	for (size_t i = 0; i < n; i++)
		a[i] = (uint32_t)i;
	assert_int_equal(hmm_cl_arg(inc, 0, a, bytes, HMM_CL_READ_WRITE), 0);
	assert_int_equal(hmm_cl_value(inc, 1, &by, sizeof(by)), 0);
	assert_int_equal(hmm_cl_arg(fill, 0, a, bytes, HMM_CL_WRITE_ALL), 0);
	assert_int_equal(hmm_cl_value(fill, 1, &by, sizeof(by)), 0);
	assert_int_equal(launch(inc, n, NULL), 0);
	assert_int_equal(hmm_cl_wait(w->cl), 0);
	at = resident();
	for (unsigned round = 0; round < 3; round++) {
		uint64_t frame = frame_of(a + n / 2);

		/* Contents that go along, and such that do not. */
		assert_int_equal(launch(round == 1 ? fill : inc, n, NULL), 0);
		assert_int_equal(hmm_cl_wait(w->cl), 0);
		assert_in_range(on_device(w, a, bytes / PAGE), bytes / PAGE, bytes / PAGE);
		assert_in_range(resident() + 100, at + 100 - 8, at + 100 + 8);
		for (size_t i = 0; i < n; i++)
			assert_int_equal(a[i], i + by * (round == 0 ? 2 : round));
		assert_int_equal(on_device(w, a, bytes / PAGE), 0);
		if (round)
			assert_int_equal(frame_of(a + n / 2), frame);
		/* Of the first 2 MiB, which come page by page, there are two. */
		assert_in_range(resident() + 100, at + 100 - 8, at + 100 + 8);
	}
	/* The memory that a kernel reads is there again. */
	assert_int_equal(hmm_cl_arg(add, 0, a, bytes / 2, HMM_CL_READ), 0);
	assert_int_equal(hmm_cl_arg(add, 1, a + n / 2, bytes / 2, HMM_CL_WRITE), 0);
	assert_int_equal(hmm_cl_value(add, 2, &by, sizeof(by)), 0);
	assert_int_equal(launch(add, n / 2, NULL), 0);
	for (size_t i = 0; i < n / 2; i++) {
		assert_int_equal(a[i], i + by * 2);
		assert_int_equal(a[n / 2 + i], i + by * 3);
	}
	hmm_cl_free(w->cl, a, bytes);
	hmm_cl_kernel_close(inc);
	hmm_cl_kernel_close(fill);
	hmm_cl_kernel_close(add);
}

/* Between the moment at which a block may go and that at which it has gone there is time for a kernel to begin. */
static _Atomic bool slow_moves;

int __real_umm_uffd_move(int uffd, uint64_t dst, const void *src, uint64_t len, uint64_t *moved);
int __wrap_umm_uffd_move(int uffd, uint64_t dst, const void *src, uint64_t len, uint64_t *moved);
int __wrap_umm_uffd_move(int uffd, uint64_t dst, const void *src, uint64_t len, uint64_t *moved)
{
	if (slow_moves)
		usleep(500);
	return __real_umm_uffd_move(uffd, dst, src, len, moved);
}

/* Who has brought a page home for this thread drops its references to the device's late, or when it is asked for. */
static _Atomic bool slow_puts;
static _Atomic(void *) put_when_asked;
static pthread_t served;

void __real_explicit_bzero(void *p, size_t n);
void __wrap_explicit_bzero(void *p, size_t n);
void __wrap_explicit_bzero(void *p, size_t n)
{
	if (slow_puts && !pthread_equal(pthread_self(), served))
		usleep(200000);
	while (put_when_asked && !pthread_equal(pthread_self(), served))
		usleep(100);
	__real_explicit_bzero(p, n);
}

/* Done once in the midst of a launch: when it asks what was written to from @at on, or where that is. */
static struct {
	const void *at, *looks;
	void (*what)(struct world *w, uint32_t *x);
	struct world *w;
	uint32_t *x;
} meanwhile;

int __real_hmm_where(struct hmm_mm *mm, uint64_t start, uint64_t end, struct hmm_device *where[],
		     hmm_handle_t handle[]);
int __wrap_hmm_where(struct hmm_mm *mm, uint64_t start, uint64_t end, struct hmm_device *where[],
		     hmm_handle_t handle[]);
int __wrap_hmm_where(struct hmm_mm *mm, uint64_t start, uint64_t end, struct hmm_device *where[], hmm_handle_t handle[])
{
	if (start == (uintptr_t)put_when_asked)
		put_when_asked = NULL;
	if (start == (uintptr_t)meanwhile.looks) {
		meanwhile.looks = NULL;
		meanwhile.what(meanwhile.w, meanwhile.x);
	}
	return __real_hmm_where(mm, start, end, where, handle);
}

static void an_older_copy_is_not_used(void **state)
{
	struct world *w = *state;
	struct hmm_cl_kernel *inc = kernel(w, "inc"), *add = kernel(w, "add");
	uint32_t *a = pages(64), *b = pages(32), by = 1;

	for (unsigned i = 0; i < N; i++)
		a[i] = i;
	assert_int_equal(hmm_cl_value(inc, 1, &by, sizeof(by)), 0);
	assert_int_equal(hmm_cl_value(add, 2, &by, sizeof(by)), 0);
	assert_int_equal(hmm_cl_arg(add, 0, a, N * 2, HMM_CL_READ), 0);
	assert_int_equal(hmm_cl_arg(add, 1, b, N * 2, HMM_CL_WRITE), 0);
	assert_int_equal(launch(add, N / 2, NULL), 0);
	/* In a piece of the device's memory that is half as large, and from there to one that has all. */
	assert_int_equal(hmm_cl_arg(inc, 0, a, N * 2, HMM_CL_READ_WRITE), 0);
	assert_int_equal(launch(inc, N / 2, NULL), 0);
	assert_int_equal(hmm_cl_wait(w->cl), 0);
	served = pthread_self();
	slow_puts = true;
	assert_int_equal(a[PAGE / 4 * 3], PAGE / 4 * 3 + 1);
	assert_int_equal(hmm_cl_arg(inc, 0, a, N * 4, HMM_CL_READ_WRITE), 0);
	assert_int_equal(launch(inc, N, NULL), 0);
	slow_puts = false;
	assert_int_equal(hmm_cl_wait(w->cl), 0);
	usleep(300000);
	for (unsigned i = 0; i < N; i++)
		assert_int_equal(a[i], i + 1 + (i < N / 2));
	/* The larger one goes; the smaller one has what was there before. */
	assert_int_equal(hmm_cl_release(w->cl, a + N / 4 * 3, PAGE), 0);
	assert_int_equal(launch(add, N / 2, NULL), 0);
	for (unsigned i = 0; i < N / 2; i++)
		assert_int_equal(b[i], i + 3);
	hmm_cl_kernel_close(inc);
	hmm_cl_kernel_close(add);
	pages_free(a, 64);
	pages_free(b, 32);
}

/* The same where another device has changed it meanwhile. */
static void an_older_copy_than_another_devices_is_not_used(void **state)
{
	struct world *w = *state;
	struct hmm_cl_params p = {.device = hmm_cl_device(w->cl), .memory = 16 << 20};
	struct hmm_cl_kernel *inc = kernel(w, "inc"), *add = kernel(w, "add"), *inc2;
	uint32_t *a = pages(64), *b = pages(64), by = 1;
	struct hmm_cl *other;
	cl_program program;

	assert_int_equal(hmm_cl_open(w->space, w->mm, &p, &other), 0);
	assert_int_equal(hmm_cl_build(other, world_source, NULL, NULL, 0, &program), 0);
	assert_int_equal(hmm_cl_kernel_open(other, program, "inc", &inc2), 0);
	for (unsigned i = 0; i < N; i++)
		a[i] = i;
	assert_int_equal(hmm_cl_value(inc, 1, &by, sizeof(by)), 0);
	assert_int_equal(hmm_cl_value(inc2, 1, &by, sizeof(by)), 0);
	assert_int_equal(hmm_cl_value(add, 2, &by, sizeof(by)), 0);
	assert_int_equal(hmm_cl_arg(add, 0, a, N * 4, HMM_CL_READ), 0);
	assert_int_equal(hmm_cl_arg(add, 1, b, N * 4, HMM_CL_WRITE), 0);
	assert_int_equal(launch(add, N, NULL), 0);
	assert_int_equal(hmm_cl_arg(inc, 0, a, N * 4, HMM_CL_READ_WRITE), 0);
	assert_int_equal(launch(inc, N, NULL), 0);
	assert_int_equal(hmm_cl_wait(w->cl), 0);
	served = pthread_self();
	slow_puts = true;
	assert_int_equal(a[PAGE / 4 * 3], PAGE / 4 * 3 + 1);
	assert_int_equal(hmm_cl_arg(inc2, 0, a, N * 4, HMM_CL_READ_WRITE), 0);
	assert_int_equal(launch(inc2, N, NULL), 0);
	slow_puts = false;
	assert_int_equal(hmm_cl_wait(other), 0);
	usleep(300000);
	for (unsigned i = 0; i < N; i++)
		assert_int_equal(a[i], i + 2);
	assert_int_equal(launch(add, N, NULL), 0);
	for (unsigned i = 0; i < N; i++)
		assert_int_equal(b[i], i + 3);
	hmm_cl_kernel_close(inc2);
	clReleaseProgram(program);
	assert_int_equal(hmm_cl_close(other), 0);
	hmm_cl_kernel_close(inc);
	hmm_cl_kernel_close(add);
	pages_free(a, 64);
	pages_free(b, 64);
}

struct beside {
	uint32_t *a;
	size_t n;
	_Atomic bool stop;
	_Atomic unsigned wrong;
	unsigned rounds;
};

/* What it reads has been there at some time, and nothing older comes after it. */
static void *walks(void *arg)
{
	struct beside *s = arg;
	uint32_t *last = calloc(s->n * 4 / PAGE, sizeof(*last));

	while (!s->stop)
		for (size_t p = 0; p < s->n * 4 / PAGE && !s->stop; p++) {
			size_t i = p * PAGE / 4 + 7;
			uint32_t v = *(volatile uint32_t *)&s->a[i] - (uint32_t)i;

			s->wrong += v < last[p];
			last[p] = v;
		}
	free(last);
	return NULL;
}

/* One page here, one there: of blocks that are just to come as a whole, too. */
static void *picks(void *arg)
{
	struct beside *s = arg;
	uint64_t rng = 1;

	while (!s->stop) {
		size_t i;

		rng = rng * 6364136223846793005u + 1442695040888963407u;
		i = (rng >> 33) % s->n & ~15ull;
		s->wrong += *(volatile uint32_t *)&s->a[i] - (uint32_t)i > s->rounds;
		usleep(20000);
	}
	return NULL;
}

/* Blocks of it come home and go again all the time; nothing that either side has written is lost. */
static void who_walks_beside_kernels(void **state)
{
	struct world *w = *state;
	struct hmm_cl_kernel *inc = kernel(w, "inc"), *add = kernel(w, "add");
	size_t bytes = (size_t)HUGE_MIB << 20, n = bytes / 4;
	uint32_t *a = huge_memory(w), *out = pages(512), by = 1, none = 0;
	const unsigned rounds = getenv("HMM_TEST_LONG") ? 400 : 12;
	struct beside s = {.a = a, .n = n, .rounds = rounds};
	pthread_t t[2];

	if (!a)
		skip();
	for (size_t i = 0; i < n; i++)
		a[i] = (uint32_t)i;
	assert_int_equal(hmm_cl_arg(inc, 0, a, bytes, HMM_CL_READ_WRITE), 0);
	assert_int_equal(hmm_cl_value(inc, 1, &by, sizeof(by)), 0);
	assert_int_equal(hmm_cl_arg(add, 1, out, 512 * PAGE, HMM_CL_WRITE), 0);
	assert_int_equal(hmm_cl_value(add, 2, &none, sizeof(none)), 0);
	slow_moves = true;
	assert_int_equal(pthread_create(&t[0], NULL, walks, &s), 0);
	assert_int_equal(pthread_create(&t[1], NULL, picks, &s), 0);
	for (unsigned round = 0; round < rounds; round++) {
		size_t from = round % (HUGE_MIB / 2 - 1) * (n / (HUGE_MIB / 2));

		assert_int_equal(launch(inc, n, NULL), 0);
		/* Who only reads a block that is about to go home. */
		assert_int_equal(hmm_cl_arg(add, 0, a + from, 512 * PAGE, HMM_CL_READ), 0);
		assert_int_equal(launch(add, 512 * PAGE / 4, NULL), 0);
		for (unsigned i = 0; i < 512 * PAGE / 4; i += 8)
			assert_int_equal(out[i], from + i + round + 1);
		/* The CPU's turn. */
		assert_int_equal(hmm_cl_wait(w->cl), 0);
		a[9] += 1u << 16;
	}
	s.stop = true;
	pthread_join(t[0], NULL);
	pthread_join(t[1], NULL);
	slow_moves = false;
	assert_int_equal(s.wrong, 0);
	for (size_t i = 0; i < n; i++)
		assert_int_equal(a[i], (uint32_t)(i + rounds + (i == 9 ? rounds << 16 : 0)));
	hmm_cl_free(w->cl, a, bytes);
	pages_free(out, 512);
	hmm_cl_kernel_close(inc);
	hmm_cl_kernel_close(add);
}

int __real_hmm_written_since(struct hmm_mm *mm, uint64_t start, uint64_t end, uint64_t since[], uint64_t stamp[],
			     uint64_t *now);
int __wrap_hmm_written_since(struct hmm_mm *mm, uint64_t start, uint64_t end, uint64_t since[], uint64_t stamp[],
			     uint64_t *now);
int __wrap_hmm_written_since(struct hmm_mm *mm, uint64_t start, uint64_t end, uint64_t since[], uint64_t stamp[],
			     uint64_t *now)
{
	if (start == (uintptr_t)meanwhile.at) {
		meanwhile.at = NULL;
		meanwhile.what(meanwhile.w, meanwhile.x);
	}
	return __real_hmm_written_since(mm, start, end, since, stamp, now);
}

/* A walk has come to the block at @x; until it is home, and who has brought it has dropped all references. */
static void walks_on(struct world *w, uint32_t *x)
{
	uint64_t here = stats(w).pages_here;

	(void)*(volatile uint32_t *)x;
	while (!on_device(w, x, 512) && stats(w).pages_here > here - 512)
		usleep(100);
}

/* It was there when the launch looked, and has left when the launch has brought the rest. */
static void a_block_that_leaves_meanwhile_is_not_read(void **state)
{
	struct world *w = *state;
	struct hmm_cl_kernel *inc = kernel(w, "inc"), *sum = kernel(w, "sum");
	const size_t bytes = (size_t)HUGE_MIB << 20, n = bytes / 4, block = 512 * PAGE / 4;
	uint32_t *a = huge_memory(w), *y = pages(512), *out = pages(512), by = 1;
	uint64_t retries;

	if (!a)
		skip();
	for (size_t i = 0; i < n; i++)
		a[i] = (uint32_t)i;
	assert_int_equal(hmm_cl_arg(inc, 0, a, bytes, HMM_CL_READ_WRITE), 0);
	assert_int_equal(hmm_cl_value(inc, 1, &by, sizeof(by)), 0);
	assert_int_equal(launch(inc, n, NULL), 0);
	assert_int_equal(hmm_cl_wait(w->cl), 0);
	retries = stats(w).retries;
	for (size_t i = 0; i < 4 * block; i += PAGE / 4)
		assert_int_equal(a[i], i + 1);
	for (size_t b = 4; b < 8; b++) {
		uint32_t *x = a + b * block;

		for (size_t i = 0; i < block; i++)
			y[i] = (uint32_t)(b << 24);
		assert_int_equal(hmm_cl_arg(sum, 0, x, block * 4, HMM_CL_READ), 0);
		assert_int_equal(hmm_cl_arg(sum, 1, y, block * 4, HMM_CL_READ), 0);
		assert_int_equal(hmm_cl_arg(sum, 2, out, block * 4, HMM_CL_WRITE), 0);
		meanwhile.what = walks_on;
		meanwhile.w = w;
		meanwhile.x = x;
		meanwhile.at = y;
		assert_int_equal(launch(sum, block, NULL), 0);
		assert_null(meanwhile.at);
		for (size_t i = 0; i < block; i += 8)
			assert_int_equal(out[i], b * block + i + 1 + (b << 24));
	}
	assert_true(stats(w).retries > retries); /* so it was as it is meant to be */
	hmm_cl_free(w->cl, a, bytes);
	pages_free(y, 512);
	pages_free(out, 512);
	hmm_cl_kernel_close(inc);
	hmm_cl_kernel_close(sum);
}

static void comes_home(struct world *w, uint32_t *x)
{
	put_when_asked = x;
	(void)*(volatile uint32_t *)x;
}

/* It is read and written to when it is home, and before its references are dropped. */
static void a_page_that_is_just_home_is_looked_at(void **state)
{
	struct world *w = *state;
	struct hmm_cl_kernel *inc = kernel(w, "inc"), *sum = kernel(w, "sum");
	uint32_t *x = pages(64), *y = pages(64), *out = pages(64), *at = x + PAGE / 4 * 3, by = 1;

	for (unsigned i = 0; i < N; i++) {
		x[i] = i;
		y[i] = 1u << 30;
	}
	assert_int_equal(hmm_cl_arg(inc, 0, x, N * 4, HMM_CL_READ_WRITE), 0);
	assert_int_equal(hmm_cl_value(inc, 1, &by, sizeof(by)), 0);
	assert_int_equal(launch(inc, N, NULL), 0);
	assert_int_equal(hmm_cl_wait(w->cl), 0);
	assert_int_equal(hmm_cl_arg(sum, 0, x, N * 4, HMM_CL_READ), 0);
	assert_int_equal(hmm_cl_arg(sum, 1, y, N * 4, HMM_CL_READ), 0);
	assert_int_equal(hmm_cl_arg(sum, 2, out, N * 4, HMM_CL_WRITE), 0);
	served = pthread_self();
	meanwhile.what = comes_home;
	meanwhile.w = w;
	meanwhile.x = at;
	meanwhile.at = y;
	assert_int_equal(launch(sum, N, NULL), 0);
	assert_null(meanwhile.at);
	assert_ptr_equal(put_when_asked, at);
	assert_int_equal(on_device(w, x, 3), 3);
	assert_int_equal(on_device(w, out, 64), 64);
	assert_int_equal(stats(w).pages_here, 2 * 64); /* so it was as it is meant to be */
	assert_int_equal(hmm_cl_wait(w->cl), 0);
	at[5] = 1000;
	assert_int_equal(launch(sum, N, NULL), 0);
	put_when_asked = NULL;
	for (unsigned i = 0; i < N; i++)
		assert_int_equal(out[i], (x + i == at + 5 ? 1000 : i + 1) + (1u << 30));
	hmm_cl_kernel_close(inc);
	hmm_cl_kernel_close(sum);
	pages_free(x, 64);
	pages_free(y, 64);
	pages_free(out, 64);
}

/* Who takes pages to another device stops when all have been told, and the pages are still at home. */
static struct {
	_Atomic bool wanted, stopped, goes_on;
	struct hmm_cl *to;
	struct hmm_cl_kernel *k;
	uint32_t *a;
	pthread_t thread;
} mover;

static bool stops_mover(struct umm_notifier *n, const struct umm_change *why, uint64_t seq)
{
	umm_notifier_set_seq(n, seq);
	if (why->event != UMM_EVENT_MIGRATE || !mover.wanted)
		return true;
	mover.wanted = false;
	mover.stopped = true;
	while (!mover.goes_on)
		usleep(100);
	return true;
}

static void *moves(void *arg)
{
	if (launch(mover.k, N, NULL))
		abort();
	return NULL;
}

static void starts_to_move(struct world *w, uint32_t *x)
{
	mover.goes_on = false;
	mover.wanted = true;
	assert_int_equal(pthread_create(&mover.thread, NULL, moves, NULL), 0);
	while (!mover.stopped)
		usleep(100);
}

/* The pages go, are written to by the other device, and come home. */
static void ends_moving(void)
{
	mover.stopped = false;
	mover.goes_on = true;
	pthread_join(mover.thread, NULL);
	assert_int_equal(hmm_cl_wait(mover.to), 0);
	for (unsigned i = 0; i < N; i++)
		assert_int_equal(mover.a[i], i + 1);
}

uint64_t __real_umm_read_begin(struct umm_notifier *n);
uint64_t __wrap_umm_read_begin(struct umm_notifier *n);
uint64_t __wrap_umm_read_begin(struct umm_notifier *n)
{
	/* Somebody else, who would wait for the mover here. */
	if (mover.stopped && !mover.goes_on)
		ends_moving();
	return __real_umm_read_begin(n);
}

/* It was at home when it was copied, and another device was about to have it and to write to it. */
static void a_copy_of_what_is_about_to_move_is_not_kept(void **state)
{
	static const struct umm_notifier_ops ops = {.invalidate = stops_mover};
	struct world *w = *state;
	struct hmm_cl_params p = {.device = hmm_cl_device(w->cl), .memory = 16 << 20};
	struct hmm_cl_kernel *add = kernel(w, "add");
	uint32_t by = 1;
	cl_program program;

	assert_int_equal(hmm_cl_open(w->space, w->mm, &p, &mover.to), 0);
	assert_int_equal(hmm_cl_build(mover.to, world_source, NULL, NULL, 0, &program), 0);
	assert_int_equal(hmm_cl_kernel_open(mover.to, program, "inc", &mover.k), 0);
	assert_int_equal(hmm_cl_value(mover.k, 1, &by, sizeof(by)), 0);
	assert_int_equal(hmm_cl_value(add, 2, &by, sizeof(by)), 0);
	for (unsigned launches = 0; launches < 2; launches++) {
		static struct umm_notifier last;
		uint32_t *a = mover.a = pages(64), *b = pages(64);

		for (unsigned i = 0; i < N; i++)
			a[i] = i;
		assert_int_equal(hmm_cl_arg(mover.k, 0, a, N * 4, HMM_CL_READ_WRITE), 0);
		assert_int_equal(hmm_cl_arg(add, 0, a, N * 4, HMM_CL_READ), 0);
		assert_int_equal(hmm_cl_arg(add, 1, b, N * 4, HMM_CL_WRITE), 0);
		/* Told after the devices, which are told of all addresses. */
		assert_int_equal(umm_notifier_insert(&last, w->space, (uintptr_t)a, 64 * PAGE, &ops), 0);
		meanwhile.what = starts_to_move;
		meanwhile.at = a;
		if (launches)
			assert_int_equal(launch(add, N, NULL), 0);
		else
			assert_int_equal(hmm_cl_prefetch(w->cl, a, N * 4, HMM_CL_READ), 0);
		assert_null(meanwhile.at);
		if (mover.stopped)
			ends_moving();
		for (unsigned i = 0; launches && i < N; i++)
			assert_int_equal(b[i], i + 2 * by);
		assert_int_equal(launch(add, N, NULL), 0);
		for (unsigned i = 0; i < N; i++)
			assert_int_equal(b[i], i + 2 * by);
		umm_notifier_remove(&last);
		pages_free(a, 64);
		pages_free(b, 64);
	}
	hmm_cl_kernel_close(mover.k);
	clReleaseProgram(program);
	assert_int_equal(hmm_cl_close(mover.to), 0);
	hmm_cl_kernel_close(add);
}

static const struct hmm_device_ops *true_ops;
static _Atomic bool asked_for;

static int says_that_it_is_asked(struct hmm_device *dev, const hmm_handle_t handle[], void *const dst[], int status[],
				 unsigned n)
{
	asked_for = true;
	return true_ops->copy_out(dev, handle, dst, status, n);
}

static void *touches_one(void *arg)
{
	(void)*(volatile uint32_t *)arg;
	return NULL;
}

static cl_event brake_of_first;

static void lets_first_run(struct world *w, uint32_t *x)
{
	assert_int_equal(clSetUserEventStatus(brake_of_first, CL_COMPLETE), 0);
}

/* Who has touched it, and waits for a kernel, has a reference to what was there until the kernel has ended. */
static void a_page_that_went_while_it_was_touched_is_brought(void **state)
{
	struct world *w = *state;
	struct hmm_device *dev = (struct hmm_device *)w->cl;
	static struct hmm_device_ops ops;
	struct hmm_cl_kernel *inc = kernel(w, "inc"), *add = kernel(w, "add");
	uint32_t by = 1;
	size_t n = N;
	cl_int err;

	true_ops = dev->ops;
	ops = *true_ops;
	ops.copy_out = says_that_it_is_asked;
	dev->ops = &ops;
	assert_int_equal(hmm_cl_value(inc, 1, &by, sizeof(by)), 0);
	assert_int_equal(hmm_cl_value(add, 2, &by, sizeof(by)), 0);
	for (unsigned dropped = 0; dropped < 2; dropped++) {
		uint32_t *x = pages(64), *out = pages(64), *at = x + PAGE / 4 * 30;
		pthread_t t;
		int rc;

		for (unsigned i = 0; i < N; i++)
			x[i] = i;
		assert_int_equal(hmm_cl_arg(inc, 0, x, N * 4, HMM_CL_READ_WRITE), 0);
		assert_int_equal(hmm_cl_arg(add, 0, x, N * 4, HMM_CL_READ), 0);
		assert_int_equal(hmm_cl_arg(add, 1, out, N * 4, HMM_CL_WRITE), 0);
		brake_of_first = clCreateUserEvent(hmm_cl_context(w->cl), &err);
		assert_int_equal(err, 0);
		assert_int_equal(hmm_cl_launch(inc, 1, NULL, &n, NULL, 1, &brake_of_first, NULL), 0);
		asked_for = false;
		assert_int_equal(pthread_create(&t, NULL, touches_one, at), 0);
		while (!asked_for)
			usleep(100);
		if (dropped)
			assert_int_equal(sys3(SYS_madvise, at, PAGE, MADV_DONTNEED), 0);
		else /* at once: there is always something for who has touched it */
			assert_int_equal(sys6(SYS_mmap, at, PAGE, PROT_READ | PROT_WRITE,
					      MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0),
					 (long)at);
		umm_space_sync(w->space);
		at[5] = 1000;
		/* It has to be found out whether the page is there: then the kernel may run. */
		meanwhile.what = lets_first_run;
		meanwhile.looks = at;
		rc = launch(dropped ? add : inc, N, NULL);
		if (meanwhile.looks)
			lets_first_run(w, NULL);
		meanwhile.looks = NULL;
		assert_int_equal(rc, 0);
		pthread_join(t, NULL);
		assert_int_equal(hmm_cl_wait(w->cl), 0);
		for (unsigned i = 0; i < N; i++) {
			uint32_t was = x + i == at + 5 ? 1000 : i / (PAGE / 4) == 30 ? 0 : i + by;

			assert_int_equal(x[i], was + (dropped ? 0 : by));
			if (dropped)
				assert_int_equal(out[i], was + by);
		}
		clReleaseEvent(brake_of_first);
		pages_free(x, 64);
		pages_free(out, 64);
	}
	dev->ops = true_ops;
	hmm_cl_kernel_close(inc);
	hmm_cl_kernel_close(add);
}

/* Another device asked for them, and they are where they were: on this one. */
static void pages_that_were_asked_for_and_stayed_are_there(void **state)
{
	struct world *w = *state;
	struct hmm_cl_params p = {.device = hmm_cl_device(w->cl), .memory = 16 << 20};
	struct hmm_cl_kernel *inc = kernel(w, "inc");
	struct hmm_migrate *m = calloc(1, sizeof(*m));
	uint32_t *x = pages(64), by = 1;
	struct hmm_cl *other;
	uint64_t in;

	assert_int_equal(hmm_cl_open(w->space, w->mm, &p, &other), 0);
	for (unsigned i = 0; i < N; i++)
		x[i] = i;
	assert_int_equal(hmm_cl_arg(inc, 0, x, N * 4, HMM_CL_READ_WRITE), 0);
	assert_int_equal(hmm_cl_value(inc, 1, &by, sizeof(by)), 0);
	assert_int_equal(launch(inc, N, NULL), 0);
	in = stats(w).bytes_in;
	*m = (struct hmm_migrate){.mm = w->mm,
				  .to = (struct hmm_device *)other,
				  .start = (uintptr_t)x,
				  .end = (uintptr_t)x + 64 * PAGE,
				  .owner = other};
	assert_int_equal(hmm_migrate_collect(m), 0);
	assert_int_equal(m->npages, 0);
	assert_int_equal(hmm_migrate_commit(m), 0);
	assert_int_equal(on_device(w, x, 64), 64);
	assert_int_equal(launch(inc, N, NULL), 0);
	assert_int_equal(stats(w).bytes_in, in);
	for (unsigned i = 0; i < N; i++)
		assert_int_equal(x[i], i + 2 * by);
	assert_int_equal(hmm_cl_close(other), 0);
	hmm_cl_kernel_close(inc);
	pages_free(x, 64);
	free(m);
}

static uint32_t *moved_to;

static void moves_away(struct world *w, uint32_t *x)
{
	assert_int_equal(sys5(SYS_mremap, x, 64 * PAGE, 64 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, moved_to),
			 (long)moved_to);
	assert_int_equal(
		sys6(SYS_mmap, x, 64 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0),
		(long)x);
	umm_space_sync(w->space);
	for (unsigned i = 0; i < N; i++)
		x[i] = 1u << 20;
}

/* Its pages stay where they are, and are no longer those of its addresses: nobody waits for that to change. */
static void what_moves_away_meanwhile_is_used_no_more(void **state)
{
	struct world *w = *state;
	struct hmm_cl_kernel *inc = kernel(w, "inc"), *sum = kernel(w, "sum"), *add = kernel(w, "add");
	uint32_t by = 1;

	assert_int_equal(hmm_cl_value(inc, 1, &by, sizeof(by)), 0);
	assert_int_equal(hmm_cl_value(add, 2, &by, sizeof(by)), 0);
	for (unsigned early = 0; early < 2; early++) {
		uint32_t *x = pages(64), *y = pages(64), *out = pages(64);

		moved_to = pages(64);
		for (unsigned i = 0; i < N; i++) {
			x[i] = i;
			y[i] = 1u << 30;
		}
		assert_int_equal(hmm_cl_arg(inc, 0, x, N * 4, HMM_CL_READ_WRITE), 0);
		assert_int_equal(launch(inc, N, NULL), 0);
		assert_int_equal(hmm_cl_wait(w->cl), 0);
		meanwhile.what = moves_away;
		meanwhile.w = w;
		meanwhile.x = x;
		if (early) {
			/* While what is written to is moved, after @x has been looked at. */
			assert_int_equal(hmm_cl_arg(add, 0, x, N * 4, HMM_CL_READ_WRITE), 0);
			assert_int_equal(hmm_cl_arg(add, 1, out, N * 4, HMM_CL_WRITE), 0);
			meanwhile.looks = out;
		} else {
			/* While another is copied, before. */
			assert_int_equal(hmm_cl_arg(sum, 0, y, N * 4, HMM_CL_READ), 0);
			assert_int_equal(hmm_cl_arg(sum, 1, x, N * 4, HMM_CL_READ), 0);
			assert_int_equal(hmm_cl_arg(sum, 2, out, N * 4, HMM_CL_WRITE), 0);
			meanwhile.at = y;
		}
		assert_int_equal(launch(early ? add : sum, N, NULL), 0);
		assert_null(early ? meanwhile.looks : meanwhile.at);
		for (unsigned i = 0; i < N; i++) {
			assert_int_equal(out[i], (1u << 20) + (early ? by : 1u << 30));
			assert_int_equal(moved_to[i], i + by);
		}
		pages_free(x, 64);
		pages_free(y, 64);
		pages_free(out, 64);
		pages_free(moved_to, 64);
	}
	hmm_cl_kernel_close(inc);
	hmm_cl_kernel_close(sum);
	hmm_cl_kernel_close(add);
}

static void bad_arguments(void **state)
{
	struct world *w = *state;
	struct hmm_cl_kernel *k = kernel(w, "inc"), *none;
	uint32_t *a = pages(64), by = 1;
	char log[2000];
	cl_program program;
	size_t bad[3] = {(size_t)1 << 40, 1, 1}, n = N;

	a[3] = 4;
	assert_int_equal(hmm_cl_arg(k, 2, a, 4, HMM_CL_READ), -EINVAL);
	assert_int_equal(hmm_cl_arg(k, 0, a, 4, 0), -EINVAL);
	assert_int_equal(hmm_cl_arg(k, 0, a, 4, 4), -EINVAL);
	assert_int_equal(hmm_cl_arg(k, 0, a, 4, 7), -EINVAL);
	assert_int_equal(hmm_cl_arg(k, 0, a, 0, HMM_CL_READ), -EINVAL);
	assert_int_equal(hmm_cl_arg(k, 0, a, SIZE_MAX, HMM_CL_READ), -EOVERFLOW);
	assert_int_equal(hmm_cl_value(k, 7, &by, sizeof(by)), -EINVAL);
	assert_int_equal(hmm_cl_value(k, 1, &by, sizeof(by)), 0);
	assert_int_equal(hmm_cl_arg(k, 0, a, N * 4, HMM_CL_READ_WRITE), 0);
	/* OpenCL refuses the work size: nothing has run, and the next one does. */
	assert_int_equal(hmm_cl_launch(k, 1, NULL, &n, bad, 0, NULL, NULL), -EINVAL);
	assert_int_equal(hmm_cl_launch(k, 4, NULL, &n, NULL, 0, NULL, NULL), -EINVAL);
	assert_int_equal(hmm_cl_wait(w->cl), 0);
	assert_int_equal(a[3], 4);
	assert_int_equal(launch(k, N, NULL), 0);
	assert_int_equal(a[3], 5);
	assert_int_equal(hmm_cl_kernel_open(w->cl, w->program, "nothing", &none), -ENOENT);
	assert_int_equal(hmm_cl_build(w->cl, "kernel void bad(", NULL, log, sizeof(log), &program), -EINVAL);
	assert_true(strlen(log) > 0);
	hmm_cl_kernel_close(k);
	pages_free(a, 64);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
#define T(f) {#f "_reach", f, setup_reach, world_teardown, NULL}, {#f "_copies", f, setup_copies, world_teardown, NULL}
		T(a_kernel_works_on_mapped_memory),
		T(malloced_memory_keeps_its_neighbours),
		T(what_is_there_is_not_moved_again),
		T(what_is_read_is_copied_when_it_was_written),
		T(a_touch_waits_for_the_kernel),
		T(a_touch_waits_for_no_other_kernel),
		T(munmap_waits_for_the_kernel),
		T(mprotect_waits_for_the_kernel),
		T(madvise_waits_for_the_kernel),
		T(mremap_waits_for_the_kernel),
		T(fork_waits_for_the_kernel),
		T(what_is_only_read_is_nobodys_to_wait_for),
		T(after_mremap_addresses_are_used_again),
		T(memory_that_cannot_move_is_copied),
		T(what_is_copied_back_leaves_out_what_may_not_be_written),
		T(what_is_copied_back_leaves_out_what_has_gone),
		T(the_least_used_leaves_when_there_is_no_room),
		T(what_leaves_takes_no_others_with_it),
		T(what_is_wanted_here_leaves_last),
		T(two_devices_pass_pages_to_each_other),
		T(a_child_has_what_was_on_the_device),
		T(advice_is_followed),
		T(pointers_mean_the_same_on_both_sides),
		T(a_value_takes_the_place_of_shared_memory),
		T(memory_made_to_move),
		T(what_is_overwritten_is_not_brought_along),
		T(what_was_never_touched_is_zeros),
		{"huge_pages_go_and_come_without_a_copy", huge_pages_go_and_come_without_a_copy, setup_reach,
		 world_teardown, NULL},
		{"who_walks_beside_kernels", who_walks_beside_kernels, setup_reach, world_teardown, NULL},
		{"a_block_that_leaves_meanwhile_is_not_read", a_block_that_leaves_meanwhile_is_not_read, setup_reach,
		 world_teardown, NULL},
		T(a_page_that_is_just_home_is_looked_at),
		T(a_page_that_went_while_it_was_touched_is_brought),
		T(pages_that_were_asked_for_and_stayed_are_there),
		T(what_moves_away_meanwhile_is_used_no_more),
		T(an_older_copy_is_not_used),
		T(an_older_copy_than_another_devices_is_not_used),
		T(a_copy_of_what_is_about_to_move_is_not_kept),
		T(bad_arguments),
	};

	if (argc > 1)
		cmocka_set_test_filter(argv[1]);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
