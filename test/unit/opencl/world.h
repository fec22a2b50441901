/* SPDX-License-Identifier: MIT */
/* What the tests of the OpenCL driver have in common: a space, its engine, and a device with a few kernels. */
#ifndef CL_WORLD_H
#define CL_WORLD_H

#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>

#include "hmm_cl.h"
#include "umm/hooks.h"
#include "umm/sys.h"

#define PAGE 4096ul

/* The library that the hooks come from leaves this one to who includes them. */
void *mmap(void *addr, size_t len, int prot, int flags, int fd, off_t offset)
{
	return umm_hooked_mmap(addr, len, prot, flags, fd, offset);
}

static const char world_source[] = "kernel void add(global const uint *a, global uint *b, uint k)\n"
				   "{ size_t i = get_global_id(0); b[i] = a[i] + k; }\n"
				   "kernel void from(global uint *b, global const uint *a, uint k)\n"
				   "{ size_t i = get_global_id(0); b[i] = a[i] + k; }\n"
				   "kernel void inc(global uint *a, uint k)\n"
				   "{ size_t i = get_global_id(0); a[i] += k; }\n"
				   "kernel void fill(global uint *a, uint k)\n"
				   "{ size_t i = get_global_id(0); a[i] = k + (uint)i; }\n"
				   "kernel void sum(global const uint *a, global const uint *b, global uint *c)\n"
				   "{ size_t i = get_global_id(0); c[i] = a[i] + b[i]; }\n"
				   /* A list: of each but the last the values, to where the last points. */
				   "struct node { global struct node *next; ulong value; };\n"
				   "kernel void follow(global struct node *n)\n"
				   "{ ulong sum = 0; for (; n->value < 98; n = n->next) sum += n->value;\n"
				   "  *(global ulong *)n->next += sum + n->value; }\n";

struct world {
	struct umm_space *space;
	struct hmm_mm *mm;
	struct hmm_cl *cl;
	cl_program program;
};

static void world_skip(const char *why, int rc)
{
	printf("SKIP: %s: error %d\n", why, -rc);
	fflush(stdout);
	exit(77);
}

static int world_open(struct world *w, const struct hmm_cl_params *p)
{
	char log[4096];
	int rc;

	if (umm_space_open_self(&w->space))
		return -1;
	umm_hooks_set(w->space);
	rc = hmm_mm_open(w->space, &w->mm);
	if (rc == -EPERM || rc == -EOPNOTSUPP || rc == -ENOSYS)
		world_skip("no userfaultfd that moves pages", rc);
	if (rc)
		return -1;
	rc = hmm_cl_open(w->space, w->mm, p, &w->cl);
	if (rc == -ENODEV)
		world_skip("no OpenCL device", rc);
	if (rc)
		return -1;
	rc = hmm_cl_build(w->cl, world_source, NULL, log, sizeof(log), &w->program);
	if (rc)
		fprintf(stderr, "%s\n", log);
	return rc;
}

static int world_close(struct world *w)
{
	int rc;

	clReleaseProgram(w->program);
	rc = hmm_cl_close(w->cl);
	if (!rc)
		rc = hmm_mm_close(w->mm);
	umm_hooks_set(NULL);
	umm_space_close(w->space);
	return rc;
}

/* Of a world that a test's setup has made with calloc(). */
static inline int world_teardown(void **state)
{
	struct world *w = *state;
	int rc = world_close(w);

	free(w);
	return rc;
}

static inline struct hmm_cl_kernel *kernel(struct world *w, const char *name)
{
	struct hmm_cl_kernel *k;

	assert_int_equal(hmm_cl_kernel_open(w->cl, w->program, name, &k), 0);
	return k;
}

/* Pages with nobody's on either side. */
static inline uint32_t *pages(size_t n)
{
	char *p = mmap(NULL, (n + 2) * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	assert_ptr_not_equal(p, MAP_FAILED);
	assert_int_equal(mprotect(p, PAGE, PROT_NONE), 0);
	assert_int_equal(mprotect(p + (n + 1) * PAGE, PAGE, PROT_NONE), 0);
	return (uint32_t *)(p + PAGE);
}

static inline void pages_free(uint32_t *p, size_t n)
{
	munmap((char *)p - PAGE, (n + 2) * PAGE);
}

/* How many of @n pages are on the device. */
static inline unsigned on_device(struct world *w, const void *p, size_t n)
{
	struct hmm_device *where[n];
	uint64_t at = (uintptr_t)p & -PAGE;
	unsigned count = 0;

	assert_int_equal(hmm_where(w->mm, at, at + n * PAGE, where, NULL), 0);
	for (size_t i = 0; i < n; i++)
		count += where[i] == (struct hmm_device *)w->cl;
	return count;
}

static inline struct hmm_cl_stats stats(struct world *w)
{
	struct hmm_cl_stats st;

	hmm_cl_stats(w->cl, &st);
	return st;
}

static inline int launch(struct hmm_cl_kernel *k, size_t n, cl_event *event)
{
	return hmm_cl_launch(k, 1, NULL, &n, NULL, 0, NULL, event);
}

#endif
