/* SPDX-License-Identifier: MIT */
/* A device without memory, and one that is lost: an error that says so, and the CPU's data as they were. */
#include <sys/uio.h>

#include "world.h"

#define N (64 * PAGE / 4)

/* How often each call is still to succeed before it fails; as often as @fails says. */
static struct fault {
	int after, fails;
	cl_int with;
} alloc_f, map_f, place_f, ndrange_f, write_f, read_f, wait_f, finish_f, fill_f;

static bool fails(struct fault *f)
{
	if (f->fails <= 0)
		return false;
	if (f->after > 0) {
		f->after--;
		return false;
	}
	f->fails--;
	return true;
}

cl_mem __real_clCreateBuffer(cl_context c, cl_mem_flags flags, size_t size, void *host, cl_int *err);
cl_mem __wrap_clCreateBuffer(cl_context c, cl_mem_flags flags, size_t size, void *host, cl_int *err);
cl_mem __wrap_clCreateBuffer(cl_context c, cl_mem_flags flags, size_t size, void *host, cl_int *err)
{
	if (!fails(&alloc_f))
		return __real_clCreateBuffer(c, flags, size, host, err);
	*err = alloc_f.with;
	return NULL;
}

void *__real_clSVMAlloc(cl_context c, cl_svm_mem_flags flags, size_t size, cl_uint align);
void *__wrap_clSVMAlloc(cl_context c, cl_svm_mem_flags flags, size_t size, cl_uint align);
void *__wrap_clSVMAlloc(cl_context c, cl_svm_mem_flags flags, size_t size, cl_uint align)
{
	return fails(&alloc_f) ? NULL : __real_clSVMAlloc(c, flags, size, align);
}

cl_int __real_clEnqueueNDRangeKernel(cl_command_queue q, cl_kernel k, cl_uint d, const size_t *o, const size_t *g,
				     const size_t *l, cl_uint n, const cl_event *w, cl_event *e);
cl_int __wrap_clEnqueueNDRangeKernel(cl_command_queue q, cl_kernel k, cl_uint d, const size_t *o, const size_t *g,
				     const size_t *l, cl_uint n, const cl_event *w, cl_event *e);
cl_int __wrap_clEnqueueNDRangeKernel(cl_command_queue q, cl_kernel k, cl_uint d, const size_t *o, const size_t *g,
				     const size_t *l, cl_uint n, const cl_event *w, cl_event *e)
{
	return fails(&ndrange_f) ? ndrange_f.with : __real_clEnqueueNDRangeKernel(q, k, d, o, g, l, n, w, e);
}

cl_int __real_clEnqueueWriteBuffer(cl_command_queue q, cl_mem m, cl_bool b, size_t o, size_t s, const void *p,
				   cl_uint n, const cl_event *w, cl_event *e);
cl_int __wrap_clEnqueueWriteBuffer(cl_command_queue q, cl_mem m, cl_bool b, size_t o, size_t s, const void *p,
				   cl_uint n, const cl_event *w, cl_event *e);
cl_int __wrap_clEnqueueWriteBuffer(cl_command_queue q, cl_mem m, cl_bool b, size_t o, size_t s, const void *p,
				   cl_uint n, const cl_event *w, cl_event *e)
{
	return fails(&write_f) ? write_f.with : __real_clEnqueueWriteBuffer(q, m, b, o, s, p, n, w, e);
}

cl_int __real_clEnqueueReadBuffer(cl_command_queue q, cl_mem m, cl_bool b, size_t o, size_t s, void *p, cl_uint n,
				  const cl_event *w, cl_event *e);
cl_int __wrap_clEnqueueReadBuffer(cl_command_queue q, cl_mem m, cl_bool b, size_t o, size_t s, void *p, cl_uint n,
				  const cl_event *w, cl_event *e);
cl_int __wrap_clEnqueueReadBuffer(cl_command_queue q, cl_mem m, cl_bool b, size_t o, size_t s, void *p, cl_uint n,
				  const cl_event *w, cl_event *e)
{
	return fails(&read_f) ? read_f.with : __real_clEnqueueReadBuffer(q, m, b, o, s, p, n, w, e);
}

cl_int __real_clWaitForEvents(cl_uint n, const cl_event *e);
cl_int __wrap_clWaitForEvents(cl_uint n, const cl_event *e);
cl_int __wrap_clWaitForEvents(cl_uint n, const cl_event *e)
{
	cl_int rc = __real_clWaitForEvents(n, e);

	return fails(&wait_f) ? wait_f.with : rc;
}

cl_int __real_clFinish(cl_command_queue q);
cl_int __wrap_clFinish(cl_command_queue q);
cl_int __wrap_clFinish(cl_command_queue q)
{
	cl_int rc = __real_clFinish(q);

	return fails(&finish_f) ? finish_f.with : rc;
}

cl_int __real_clEnqueueFillBuffer(cl_command_queue q, cl_mem m, const void *p, size_t ps, size_t o, size_t s, cl_uint n,
				  const cl_event *w, cl_event *e);
cl_int __wrap_clEnqueueFillBuffer(cl_command_queue q, cl_mem m, const void *p, size_t ps, size_t o, size_t s, cl_uint n,
				  const cl_event *w, cl_event *e);
cl_int __wrap_clEnqueueFillBuffer(cl_command_queue q, cl_mem m, const void *p, size_t ps, size_t o, size_t s, cl_uint n,
				  const cl_event *w, cl_event *e)
{
	return fails(&fill_f) ? fill_f.with : __real_clEnqueueFillBuffer(q, m, p, ps, o, s, n, w, e);
}

/* The machine has no memory for what comes back. */
int __real_umm_uffd_copy_unwritten(int uffd, uint64_t dst, const void *src, uint64_t len, uint64_t *copied);
int __wrap_umm_uffd_copy_unwritten(int uffd, uint64_t dst, const void *src, uint64_t len, uint64_t *copied);
int __wrap_umm_uffd_copy_unwritten(int uffd, uint64_t dst, const void *src, uint64_t len, uint64_t *copied)
{
	if (!fails(&place_f))
		return __real_umm_uffd_copy_unwritten(uffd, dst, src, len, copied);
	*copied = 0;
	return place_f.with;
}

/* A page that the kernel cannot make writable: it writes what lies before it, and then says so. */
static uintptr_t unwritable;

ssize_t __real_process_vm_writev(pid_t pid, const struct iovec *from, unsigned long nfrom, const struct iovec *to,
				 unsigned long nto, unsigned long flags);
ssize_t __wrap_process_vm_writev(pid_t pid, const struct iovec *from, unsigned long nfrom, const struct iovec *to,
				 unsigned long nto, unsigned long flags);
ssize_t __wrap_process_vm_writev(pid_t pid, const struct iovec *from, unsigned long nfrom, const struct iovec *to,
				 unsigned long nto, unsigned long flags)
{
	uintptr_t at = (uintptr_t)to->iov_base;
	struct iovec before = {to->iov_base, unwritable - at};

	if (at / PAGE * PAGE == unwritable) {
		errno = EFAULT;
		return -1;
	}
	if (at < unwritable && at + to->iov_len > unwritable)
		to = &before;
	return __real_process_vm_writev(pid, from, nfrom, to, nto, flags);
}

/* What the runtime is told of shared virtual memory. */
static unsigned named, mapped, unmapped;

cl_int __real_clSetKernelExecInfo(cl_kernel k, cl_kernel_exec_info what, size_t size, const void *p);
cl_int __wrap_clSetKernelExecInfo(cl_kernel k, cl_kernel_exec_info what, size_t size, const void *p);
cl_int __wrap_clSetKernelExecInfo(cl_kernel k, cl_kernel_exec_info what, size_t size, const void *p)
{
	named += what == CL_KERNEL_EXEC_INFO_SVM_PTRS ? (unsigned)(size / sizeof(void *)) : 0;
	return __real_clSetKernelExecInfo(k, what, size, p);
}

cl_int __real_clEnqueueSVMMap(cl_command_queue q, cl_bool b, cl_map_flags f, void *p, size_t s, cl_uint n,
			      const cl_event *w, cl_event *e);
cl_int __wrap_clEnqueueSVMMap(cl_command_queue q, cl_bool b, cl_map_flags f, void *p, size_t s, cl_uint n,
			      const cl_event *w, cl_event *e);
cl_int __wrap_clEnqueueSVMMap(cl_command_queue q, cl_bool b, cl_map_flags f, void *p, size_t s, cl_uint n,
			      const cl_event *w, cl_event *e)
{
	if (fails(&map_f))
		return map_f.with;
	mapped++;
	return __real_clEnqueueSVMMap(q, b, f, p, s, n, w, e);
}

cl_int __real_clEnqueueSVMUnmap(cl_command_queue q, void *p, cl_uint n, const cl_event *w, cl_event *e);
cl_int __wrap_clEnqueueSVMUnmap(cl_command_queue q, void *p, cl_uint n, const cl_event *w, cl_event *e);
cl_int __wrap_clEnqueueSVMUnmap(cl_command_queue q, void *p, cl_uint n, const cl_event *w, cl_event *e)
{
	unmapped++;
	return __real_clEnqueueSVMUnmap(q, p, n, w, e);
}

static int setup_flags(void **state, unsigned flags)
{
	struct world *w = calloc(1, sizeof(*w));
	struct hmm_cl_params p = {.memory = 1 << 20, .flags = flags};

	alloc_f = map_f = place_f = ndrange_f = write_f = read_f = wait_f = finish_f = fill_f = (struct fault){0};
	named = mapped = unmapped = 0;
	unwritable = 0;
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

struct job {
	struct hmm_cl_kernel *k;
	uint32_t *a, *b;
};

static struct job job(struct world *w)
{
	struct job j = {kernel(w, "add"), pages(64), pages(64)};
	uint32_t by = 1;

	for (unsigned i = 0; i < N; i++) {
		j.a[i] = i;
		j.b[i] = i + 7;
	}
	assert_int_equal(hmm_cl_arg(j.k, 0, j.a, N * 4, HMM_CL_READ), 0);
	assert_int_equal(hmm_cl_arg(j.k, 1, j.b, N * 4, HMM_CL_WRITE), 0);
	assert_int_equal(hmm_cl_value(j.k, 2, &by, sizeof(by)), 0);
	return j;
}

static void job_end(struct job *j)
{
	hmm_cl_kernel_close(j->k);
	pages_free(j->a, 64);
	pages_free(j->b, 64);
}

/* As it was before anything was launched; then all is well again. */
static void intact(struct world *w, struct job *j)
{
	for (unsigned i = 0; i < N; i++) {
		assert_int_equal(j->a[i], i);
		assert_int_equal(j->b[i], i + 7);
	}
	assert_int_equal(launch(j->k, N, NULL), 0);
	for (unsigned i = 0; i < N; i++)
		assert_int_equal(j->b[i], i + 1);
	assert_int_equal(hmm_cl_wait(w->cl), 0);
}

static void no_memory_on_the_device(void **state)
{
	struct world *w = *state;
	struct job j = job(w), other = job(w);
	char line[200];

	/* What another range has is given up for it. */
	assert_int_equal(launch(other.k, N, NULL), 0);
	assert_int_equal(hmm_cl_wait(w->cl), 0);
	alloc_f = (struct fault){0, 1, CL_MEM_OBJECT_ALLOCATION_FAILURE};
	assert_int_equal(launch(j.k, N, NULL), 0);
	assert_int_equal(stats(w).evictions > 0, true);
	assert_int_equal(hmm_cl_release(w->cl, j.a, N * 4), 0);
	assert_int_equal(hmm_cl_release(w->cl, j.b, N * 4), 0);
	for (unsigned i = 0; i < N; i++) {
		assert_int_equal(j.b[i], i + 1);
		j.b[i] = i + 7;
	}
	/* There is none, for the first range and for the second. */
	for (int after = 0; after < 2; after++) {
		assert_int_equal(hmm_cl_release(w->cl, NULL, HMM_ADDR_END), 0);
		alloc_f = (struct fault){after, 1000, CL_MEM_OBJECT_ALLOCATION_FAILURE};
		assert_int_equal(launch(j.k, N, NULL), -ENOMEM);
		hmm_cl_message(w->cl, line, sizeof(line));
		assert_non_null(strstr(line, "memory of the device"));
		assert_int_equal(on_device(w, j.b, 64), 0);
		alloc_f.fails = 0;
	}
	intact(w, &j);
	job_end(&j);
	job_end(&other);
}

static void a_kernel_that_cannot_be_launched(void **state)
{
	struct world *w = *state;
	struct job j = job(w);
	char line[200];

	ndrange_f = (struct fault){0, 1, CL_DEVICE_NOT_AVAILABLE};
	assert_int_equal(launch(j.k, N, NULL), -EIO);
	hmm_cl_message(w->cl, line, sizeof(line));
	assert_non_null(strstr(line, "cannot be launched"));
	intact(w, &j);
	job_end(&j);
}

static void a_kernel_that_fails(void **state)
{
	struct world *w = *state;
	struct job j = job(w);

	wait_f = (struct fault){0, 1, CL_EXEC_STATUS_ERROR_FOR_EVENTS_IN_WAIT_LIST};
	assert_int_equal(launch(j.k, N, NULL), 0);
	assert_int_equal(hmm_cl_wait(w->cl), -EIO);
	assert_int_equal(hmm_cl_wait(w->cl), 0);
	for (unsigned i = 0; i < N; i++)
		assert_int_equal(j.a[i], i);
	assert_int_equal(launch(j.k, N, NULL), 0);
	for (unsigned i = 0; i < N; i++)
		assert_int_equal(j.b[i], i + 1);
	job_end(&j);
}

static void a_device_that_takes_nothing(void **state)
{
	struct world *w = *state;
	struct job j = job(w);

	/* The first 64 copies are of pages that move, one each; then comes what stays, in one. */
	for (unsigned i = 0; i < 4; i++) {
		static const int after[] = {0, 1, 63, 64};

		write_f = (struct fault){after[i], 1000, CL_OUT_OF_RESOURCES};
		assert_int_equal(launch(j.k, N, NULL), -ENOMEM);
		assert_int_equal(write_f.fails < 1000, true);
		write_f.fails = 0;
	}
	intact(w, &j);
	job_end(&j);
}

/* A launch of which not all can be copied back to @s; what is told of it. */
static void is_told(struct world *w, struct hmm_cl_kernel *k)
{
	char line[200];
	cl_event event;
	cl_int status;

	assert_int_equal(launch(k, N, &event), 0);
	assert_int_equal(hmm_cl_wait(w->cl), -EIO);
	assert_int_equal(hmm_cl_wait(w->cl), 0);
	hmm_cl_message(w->cl, line, sizeof(line));
	assert_non_null(strstr(line, "copied back"));
	assert_int_not_equal(clWaitForEvents(1, &event), CL_SUCCESS);
	assert_int_equal(clGetEventInfo(event, CL_EVENT_COMMAND_EXECUTION_STATUS, sizeof(status), &status, NULL), 0);
	assert_int_equal(status, CL_OUT_OF_RESOURCES);
	clReleaseEvent(event);
}

/* And what lies around it goes back. */
static void what_cannot_be_copied_back_is_told(void **state)
{
	struct world *w = *state;
	struct hmm_cl_kernel *k = kernel(w, "inc");
	uint32_t *s = mmap(NULL, 64 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0), by = 1;

	for (unsigned i = 0; i < N; i++)
		s[i] = i;
	assert_int_equal(hmm_cl_arg(k, 0, s, N * 4, HMM_CL_READ_WRITE), 0);
	assert_int_equal(hmm_cl_value(k, 1, &by, sizeof(by)), 0);
	unwritable = (uintptr_t)s + 9 * PAGE;
	is_told(w, k);
	for (unsigned i = 0; i < N; i++)
		assert_int_equal(s[i], i + (i / (PAGE / 4) != 9));
	assert_int_equal(stats(w).bytes_out, 63 * PAGE);
	/* What did not go back is no copy of what is there. */
	unwritable = 0;
	assert_int_equal(launch(k, N, NULL), 0);
	assert_int_equal(hmm_cl_wait(w->cl), 0);
	for (unsigned i = 0; i < N; i++)
		assert_int_equal(s[i], i + 1 + (i / (PAGE / 4) != 9));
	hmm_cl_kernel_close(k);
	munmap(s, 64 * PAGE);
}

static void what_the_device_does_not_give_for_copying_back_is_told(void **state)
{
	struct world *w = *state;
	struct hmm_cl_kernel *k = kernel(w, "inc");
	uint32_t *s = mmap(NULL, 64 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0), by = 1;

	for (unsigned i = 0; i < N; i++)
		s[i] = i;
	assert_int_equal(hmm_cl_arg(k, 0, s, N * 4, HMM_CL_READ_WRITE), 0);
	assert_int_equal(hmm_cl_value(k, 1, &by, sizeof(by)), 0);
	read_f = (struct fault){0, 1, CL_OUT_OF_RESOURCES};
	is_told(w, k);
	for (unsigned i = 0; i < N; i++)
		assert_int_equal(s[i], i);
	hmm_cl_kernel_close(k);
	munmap(s, 64 * PAGE);
}

/* While a kernel waits that writes @a, watched memory, raw munmap() takes @n of its pages from @first on. */
static void pages_go_under_a_kernel(struct world *w, uint32_t *a, unsigned first, unsigned n)
{
	struct hmm_cl_kernel *k = kernel(w, "inc");
	size_t global = N;
	uint32_t by = 1;
	cl_event brake;
	cl_int err;

	for (unsigned i = 0; i < N; i++)
		a[i] = i;
	assert_int_equal(hmm_cl_advise(w->cl, a, 64 * PAGE, HMM_CL_STAY), 0);
	assert_int_equal(hmm_cl_arg(k, 0, a, N * 4, HMM_CL_READ_WRITE), 0);
	assert_int_equal(hmm_cl_value(k, 1, &by, sizeof(by)), 0);
	brake = clCreateUserEvent(hmm_cl_context(w->cl), &err);
	assert_int_equal(err, 0);
	assert_int_equal(hmm_cl_launch(k, 1, NULL, &global, NULL, 1, &brake, NULL), 0);
	assert_int_equal(sys2(SYS_munmap, a + PAGE / 4 * first, n * PAGE), 0);
	umm_space_sync(w->space);
	assert_int_equal(clSetUserEventStatus(brake, CL_COMPLETE), 0);
	clReleaseEvent(brake);
	hmm_cl_kernel_close(k);
}

static void what_cannot_be_copied_back_is_told_beside_what_has_gone(void **state)
{
	struct world *w = *state;
	uint32_t *a = pages(64);

	unwritable = (uintptr_t)a + 9 * PAGE;
	pages_go_under_a_kernel(w, a, 20, 1);
	assert_int_equal(hmm_cl_wait(w->cl), -EIO);
	for (unsigned i = 0; i < N; i++)
		if (i / (PAGE / 4) != 20)
			assert_int_equal(a[i], i + (i / (PAGE / 4) != 9));
	pages_free(a, 64);
}

/* Of what has gone nobody misses what the device did not give. */
static void what_has_gone_is_not_missed(void **state)
{
	struct world *w = *state;
	uint32_t *a = pages(64);

	read_f = (struct fault){0, 1, CL_OUT_OF_RESOURCES};
	pages_go_under_a_kernel(w, a, 0, 64);
	assert_int_equal(hmm_cl_wait(w->cl), 0);
	assert_int_equal(read_f.fails, 0);
	pages_free(a, 64);
}

/* Where it ends, in the midst of a page, another argument begins, which is only read: that was no copy of the page. */
static void what_did_not_go_back_is_no_copy(void **state)
{
	enum { HALF = 3 * PAGE / 4 / 2 };
	struct world *w = *state;
	uint32_t by = 1;

	for (unsigned fails = 0; fails < 2; fails++) {
		struct hmm_cl_kernel *k = kernel(w, "from");
		uint32_t *s = pages(3), *b = pages(3);

		for (unsigned i = 0; i < 2 * HALF; i++)
			s[i] = i;
		assert_int_equal(hmm_cl_arg(k, 0, s, HALF * 4, HMM_CL_WRITE), 0);
		assert_int_equal(hmm_cl_arg(k, 1, s + HALF, HALF * 4, HMM_CL_READ), 0);
		assert_int_equal(hmm_cl_value(k, 2, &by, sizeof(by)), 0);
		if (fails)
			wait_f = (struct fault){0, 1, CL_EXEC_STATUS_ERROR_FOR_EVENTS_IN_WAIT_LIST};
		else
			unwritable = (uintptr_t)s + PAGE;
		assert_int_equal(launch(k, HALF, NULL), 0);
		assert_int_equal(hmm_cl_wait(w->cl), -EIO);
		unwritable = 0;
		assert_int_equal(hmm_cl_arg(k, 0, b, 2 * HALF * 4, HMM_CL_WRITE), 0);
		assert_int_equal(hmm_cl_arg(k, 1, s, 2 * HALF * 4, HMM_CL_READ), 0);
		assert_int_equal(launch(k, 2 * HALF, NULL), 0);
		assert_int_equal(hmm_cl_wait(w->cl), 0);
		for (unsigned i = PAGE / 4; i < 2 * HALF; i++) {
			assert_int_equal(b[i], i + by);
			assert_int_equal(s[i], i);
		}
		hmm_cl_kernel_close(k);
		pages_free(s, 3);
		pages_free(b, 3);
	}
}

static sigjmp_buf on_sigbus;

static void sigbus(int sig)
{
	siglongjmp(on_sigbus, 1);
}

static bool is_lost(const volatile uint32_t *p)
{
	struct sigaction sa = {.sa_handler = sigbus}, old;
	bool lost = false;

	sigaction(SIGBUS, &sa, &old);
	if (sigsetjmp(on_sigbus, 1))
		lost = true;
	else
		(void)*p;
	sigaction(SIGBUS, &old, NULL);
	return lost;
}

static void a_device_that_gives_nothing_back(void **state)
{
	struct world *w = *state;
	struct job j = job(w);

	assert_int_equal(launch(j.k, N, NULL), 0);
	assert_int_equal(hmm_cl_wait(w->cl), 0);
	assert_int_equal(j.b[PAGE / 4 * 60], PAGE / 4 * 60 + 1);
	read_f = (struct fault){0, 1, CL_OUT_OF_RESOURCES};
	/* Only the device had it: never anything else, but SIGBUS. */
	assert_true(is_lost(&j.b[PAGE / 4 * 3]));
	read_f.fails = 0;
	assert_true(is_lost(&j.b[PAGE / 4 * 3]));
	/* It is not launched on, and said to be so. */
	assert_int_equal(launch(j.k, N, NULL), -EFAULT);
	for (unsigned i = 0; i < N; i++) {
		assert_int_equal(j.a[i], i);
		if (i / (PAGE / 4) != 3 && i / (PAGE / 4) < 8)
			assert_int_equal(j.b[i], i + 1);
	}
	job_end(&j);
}

/* From here on the device does nothing that it is asked. */
static void lose(void)
{
	const struct fault lost = {0, 1 << 30, CL_DEVICE_NOT_AVAILABLE};

	alloc_f = map_f = ndrange_f = write_f = read_f = wait_f = finish_f = fill_f = lost;
}

static void a_device_that_is_lost(void **state)
{
	struct world *w = *state;
	struct job j = job(w), other = job(w);
	char line[200];
	cl_event event;

	assert_int_equal(launch(j.k, N, NULL), 0);
	assert_int_equal(hmm_cl_wait(w->cl), 0);
	assert_int_equal(j.b[0], 1);
	/* The second kernel is in the queue when it goes. */
	assert_int_equal(hmm_cl_prefetch(w->cl, other.a, N * 4, HMM_CL_READ), 0);
	assert_int_equal(hmm_cl_prefetch(w->cl, other.b, N * 4, HMM_CL_READ), 0);
	assert_int_equal(launch(j.k, N, &event), 0);
	lose();
	assert_int_equal(launch(other.k, N, NULL), -EIO);
	hmm_cl_message(w->cl, line, sizeof(line));
	assert_true(strlen(line) > 0);
	assert_true(hmm_cl_prefetch(w->cl, other.b, N * 4, HMM_CL_WRITE) < 0);
	hmm_cl_wait(w->cl);
	clReleaseEvent(event);
	/* What the CPU has is as it was, also what was just to go; what only the device had is SIGBUS. */
	for (unsigned i = 0; i < N; i++) {
		assert_int_equal(j.a[i], i);
		assert_int_equal(other.a[i], i);
		assert_int_equal(other.b[i], i + 7);
	}
	assert_true(is_lost(&j.b[PAGE / 4 * 33]));
	/* It can be closed, and then there is nothing that waits for it. */
	assert_int_equal(hmm_cl_release(w->cl, NULL, HMM_ADDR_END), 0);
	assert_int_equal(stats(w).pages_here, 0);
	assert_true(is_lost(&j.b[PAGE / 4 * 60]));
	job_end(&j);
	job_end(&other);
}

/* It waits for memory: the child is filled while all of malloc's locks are held. */
static void a_fork_without_memory_for_what_comes_home(void **state)
{
	struct world *w = *state;
	struct job j = job(w);
	int status;
	pid_t pid;

	assert_int_equal(launch(j.k, N, NULL), 0);
	assert_int_equal(hmm_cl_wait(w->cl), 0);
	assert_int_equal(on_device(w, j.b, 64), 64);
	place_f = (struct fault){0, 2500, -ENOMEM}; /* more than the engine tries by itself */
	pid = fork();
	if (!pid) {
		for (unsigned i = 0; i < N; i++)
			if (j.b[i] != i + 1)
				_exit(1);
		_exit(0);
	}
	assert_int_equal(place_f.fails, 0);
	assert_int_equal(on_device(w, j.b, 64), 0);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	job_end(&j);
}

/* Pointers that no argument names are the runtime's business, too. */
static void shared_virtual_memory_is_named(struct world *w, bool coarse)
{
	struct job j = job(w);
	void *p, *q;

	if (hmm_cl_svm_alloc(w->cl, PAGE, &p) == -EOPNOTSUPP)
		skip();
	assert_int_equal(hmm_cl_svm_alloc(w->cl, PAGE, &q), 0);
	assert_int_equal(mapped, coarse ? 2 : 0);
	assert_int_equal(launch(j.k, N, NULL), 0);
	assert_int_equal(launch(j.k, N, NULL), 0);
	assert_int_equal(hmm_cl_wait(w->cl), 0);
	assert_int_equal(named, 4);
	/* The CPU has it but while a kernel runs. */
	assert_int_equal(unmapped, coarse ? 4 : 0);
	assert_int_equal(mapped, coarse ? 6 : 0);
	/* Also when there was nothing to run. */
	ndrange_f = (struct fault){0, 1, CL_OUT_OF_RESOURCES};
	assert_int_equal(launch(j.k, N, NULL), -ENOMEM);
	assert_int_equal(mapped, coarse ? unmapped + 2 : 0);
	hmm_cl_svm_free(w->cl, q);
	hmm_cl_svm_free(w->cl, p);
	job_end(&j);
}

static void *completes(void *arg)
{
	struct timespec ts = {.tv_nsec = 50000000};

	nanosleep(&ts, NULL);
	clSetUserEventStatus(arg, CL_COMPLETE);
	return NULL;
}

/* A launch that failed when its kernel was in the queue already: the kernel has its pages until it has ended. */
static void a_kernel_without_what_follows_it(void **state)
{
	struct world *w = *state;
	struct job j = job(w);
	size_t n = N;
	cl_event gate;
	pthread_t t;
	cl_int err;
	void *p;

	if (hmm_cl_svm_alloc(w->cl, PAGE, &p) == -EOPNOTSUPP)
		skip();
	gate = clCreateUserEvent(hmm_cl_context(w->cl), &err);
	assert_int_equal(err, 0);
	map_f = (struct fault){0, 1, CL_OUT_OF_RESOURCES};
	assert_int_equal(hmm_cl_launch(j.k, 1, NULL, &n, NULL, 1, &gate, NULL), -ENOMEM);
	assert_int_equal(pthread_create(&t, NULL, completes, gate), 0);
	for (unsigned i = 0; i < N; i++)
		assert_int_equal(j.b[i], i + 1);
	pthread_join(t, NULL);
	assert_int_equal(hmm_cl_wait(w->cl), 0);
	clReleaseEvent(gate);
	hmm_cl_svm_free(w->cl, p);
	job_end(&j);
}

static void fine_grained_memory_is_named(void **state)
{
	shared_virtual_memory_is_named(*state, false);
}

static void coarse_grained_memory_is_handed_over(void **state)
{
	shared_virtual_memory_is_named(*state, true);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
#define T(f) {#f "_reach", f, setup_reach, world_teardown, NULL}, {#f "_copies", f, setup_copies, world_teardown, NULL}
		T(no_memory_on_the_device),
		T(a_kernel_that_cannot_be_launched),
		T(a_kernel_that_fails),
		T(what_cannot_be_copied_back_is_told),
		T(what_cannot_be_copied_back_is_told_beside_what_has_gone),
		T(what_did_not_go_back_is_no_copy),
		{"what_has_gone_is_not_missed", what_has_gone_is_not_missed, setup_copies, world_teardown, NULL},
		{"what_the_device_does_not_give_for_copying_back_is_told",
		 what_the_device_does_not_give_for_copying_back_is_told, setup_copies, world_teardown, NULL},
		{"a_device_that_takes_nothing", a_device_that_takes_nothing, setup_copies, world_teardown, NULL},
		{"a_device_that_is_lost", a_device_that_is_lost, setup_copies, world_teardown, NULL},
		{"a_fork_without_memory_for_what_comes_home", a_fork_without_memory_for_what_comes_home, setup_copies,
		 world_teardown, NULL},
		{"fine_grained_memory_is_named", fine_grained_memory_is_named, setup_reach, world_teardown, NULL},
		{"a_kernel_without_what_follows_it", a_kernel_without_what_follows_it, setup_copies, world_teardown,
		 NULL},
		{"coarse_grained_memory_is_handed_over", coarse_grained_memory_is_handed_over, setup_copies,
		 world_teardown, NULL},
		{"a_device_that_gives_nothing_back", a_device_that_gives_nothing_back, setup_copies, world_teardown,
		 NULL},
	};

	if (argc > 1)
		cmocka_set_test_filter(argv[1]);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
