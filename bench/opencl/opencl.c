/* SPDX-License-Identifier: MIT */
/*
 * Kernels on plain memory against the same with hand-written buffers: medians, the
 * two in turn.
 *
 *	launches	a streaming kernel, 256 MiB in and out, no CPU touch between
 *	cycle		the CPU writes all, the kernel runs, the CPU reads all
 *	one in 100	the CPU reads 1 % of the result: bytes that come back
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "hmm_cl.h"

#define BYTES (256ul << 20)
#define N (BYTES / sizeof(float))
#define PAGE_WORDS (4096 / sizeof(float))
#define ROUNDS 31

static const char source[] = "kernel void scale(global const float *a, global float *b, float k)"
			     "{ size_t i = get_global_id(0); b[i] = a[i] * k; }";

static double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static void check(int rc, const char *what)
{
	if (!rc)
		return;
	if (rc == -ENODEV || rc == -EPERM || rc == -EOPNOTSUPP) {
		printf("SKIP: %s: error %d\n", what, -rc);
		exit(77);
	}
	fprintf(stderr, "%s: error %d\n", what, rc);
	exit(1);
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static double median(double v[ROUNDS])
{
	qsort(v, ROUNDS, sizeof(v[0]), by_value);
	return v[ROUNDS / 2];
}

struct bench {
	struct hmm_cl *cl;
	struct hmm_cl_kernel *k;
	float *a, *b; /* ours */
	cl_kernel plain;
	cl_command_queue queue;
	cl_mem ma, mb;
	float *ha, *hb; /* for hand-written copies */
};

static void run_ours(struct bench *b)
{
	size_t n = N;

	check(hmm_cl_launch(b->k, 1, NULL, &n, NULL, 0, NULL, NULL), "launch");
}

static void run_hand(struct bench *b)
{
	size_t n = N;

	check(clEnqueueNDRangeKernel(b->queue, b->plain, 1, NULL, &n, NULL, 0, NULL, NULL), "kernel");
}

static void fill(float *p, unsigned seed)
{
	for (size_t i = 0; i < N; i++)
		p[i] = (float)(i + seed);
}

static double sum(const float *p)
{
	double s = 0;

	for (size_t i = 0; i < N; i++)
		s += p[i];
	return s;
}

static void launches(struct bench *b)
{
	enum { EACH = 5 };
	double ours[ROUNDS], hand[ROUNDS], t;

	/* What nobody has written to is one page of zeros, for whom reads it: fast. */
	fill(b->a, 1);
	fill(b->ha, 1);
	check(clEnqueueWriteBuffer(b->queue, b->ma, CL_TRUE, 0, BYTES, b->ha, 0, NULL, NULL), "write");
	run_ours(b);
	check(hmm_cl_wait(b->cl), "wait");
	run_hand(b);
	check(clFinish(b->queue), "finish");
	for (unsigned r = 0; r < ROUNDS; r++) {
		t = now();
		for (unsigned i = 0; i < EACH; i++)
			run_ours(b);
		check(hmm_cl_wait(b->cl), "wait");
		ours[r] = now() - t;
		t = now();
		for (unsigned i = 0; i < EACH; i++)
			run_hand(b);
		check(clFinish(b->queue), "finish");
		hand[r] = now() - t;
	}
	double o = median(ours) / EACH, h = median(hand) / EACH;
	printf("launches:   ours %.2f ms, by hand %.2f ms: %.3f times as long (goal: at most 1.03)\n", o * 1e3, h * 1e3,
	       o / h);
}

static void cycle(struct bench *b)
{
	double ours[ROUNDS], hand[ROUNDS], t, s1 = 0, s2 = 0;

	for (unsigned r = 0; r < ROUNDS; r++) {
		t = now();
		fill(b->a, r);
		run_ours(b);
		s1 += sum(b->b);
		ours[r] = now() - t;
		t = now();
		fill(b->ha, r);
		check(clEnqueueWriteBuffer(b->queue, b->ma, CL_FALSE, 0, BYTES, b->ha, 0, NULL, NULL), "write");
		run_hand(b);
		check(clEnqueueReadBuffer(b->queue, b->mb, CL_TRUE, 0, BYTES, b->hb, 0, NULL, NULL), "read");
		s2 += sum(b->hb);
		hand[r] = now() - t;
	}
	check(s1 != s2, "the results are not the same");
	double o = median(ours), h = median(hand);
	printf("cycle:      ours %.1f ms, by hand %.1f ms: %.0f %% of its speed (goal: at least 80)\n", o * 1e3,
	       h * 1e3, h / o * 100);
}

/* @run: pages in a row that are read, then as many left out that it is one in 100. */
static void one_in_100(struct bench *b, size_t run)
{
	struct hmm_cl_stats before, after;
	size_t read = 0;
	volatile float x;

	check(hmm_cl_prefetch(b->cl, b->b, BYTES, HMM_CL_WRITE), "prefetch");
	run_ours(b);
	check(hmm_cl_wait(b->cl), "wait");
	hmm_cl_stats(b->cl, &before);
	for (size_t p = 0; p < BYTES / 4096; p += run * 100)
		for (size_t i = 0; i < run && p + i < BYTES / 4096; i++, read++)
			x = b->b[(p + i) * PAGE_WORDS];
	(void)x;
	hmm_cl_stats(b->cl, &after);
	printf("one in 100: %4zu pages in a row: %.2f %% read, %.2f %% came back (goal: at most 2)\n", run,
	       (double)read * 4096 / BYTES * 100, (double)(after.bytes_out - before.bytes_out) / BYTES * 100);
}

int main(void)
{
	struct umm_space *space;
	struct hmm_mm *mm;
	struct bench b = {0};
	cl_program program;
	float by = 3;
	void *p, *q;
	cl_int err;

	check(umm_space_open_self(&space), "space");
	check(hmm_mm_open(space, &mm), "engine");
	check(hmm_cl_open(space, mm, NULL, &b.cl), "no OpenCL device");
	check(hmm_cl_build(b.cl, source, NULL, NULL, 0, &program), "build");
	check(hmm_cl_kernel_open(b.cl, program, "scale", &b.k), "kernel");
	check(hmm_cl_alloc(b.cl, BYTES, &p), "memory");
	check(hmm_cl_alloc(b.cl, BYTES, &q), "memory");
	b.a = p;
	b.b = q;
	check(hmm_cl_arg(b.k, 0, b.a, BYTES, HMM_CL_READ), "argument");
	check(hmm_cl_arg(b.k, 1, b.b, BYTES, HMM_CL_WRITE_ALL), "argument");
	check(hmm_cl_value(b.k, 2, &by, sizeof(by)), "argument");
	b.ha = malloc(BYTES);
	b.hb = malloc(BYTES);
	check(!b.ha || !b.hb ? -ENOMEM : 0, "memory");
	b.queue = hmm_cl_queue(b.cl);
	b.plain = clCreateKernel(program, "scale", &err);
	b.ma = clCreateBuffer(hmm_cl_context(b.cl), CL_MEM_READ_WRITE, BYTES, NULL, &err);
	check(err, "buffer");
	b.mb = clCreateBuffer(hmm_cl_context(b.cl), CL_MEM_READ_WRITE, BYTES, NULL, &err);
	check(err, "buffer");
	check(clSetKernelArg(b.plain, 0, sizeof(b.ma), &b.ma), "argument");
	check(clSetKernelArg(b.plain, 1, sizeof(b.mb), &b.mb), "argument");
	check(clSetKernelArg(b.plain, 2, sizeof(by), &by), "argument");
	launches(&b);
	cycle(&b);
	one_in_100(&b, 1);
	one_in_100(&b, 50);
	one_in_100(&b, 655);
	clReleaseKernel(b.plain);
	clReleaseMemObject(b.ma);
	clReleaseMemObject(b.mb);
	hmm_cl_kernel_close(b.k);
	clReleaseProgram(program);
	check(hmm_cl_close(b.cl), "close");
	check(hmm_mm_close(mm), "close");
	umm_space_close(space);
	return 0;
}
