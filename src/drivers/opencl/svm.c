/* SPDX-License-Identifier: MIT */
/*
 * Memory with one address on both sides.
 *
 * What moves has another address on the device, so pointers inside it mean
 * nothing there.  Shared virtual memory of OpenCL 2.0 has the same on both.  Where
 * it is fine-grained both sides see it at any time.  Where it is coarse-grained it
 * is the CPU's but while a kernel runs: each launch unmaps all of it before the
 * kernel and maps it after, and has ended when it is mapped.
 */
#include <errno.h>
#include <stdlib.h>

#include "drivers/opencl/opencl.h"

bool svm_has(struct hmm_cl *cl, const void *p)
{
	for (struct svm *s = cl->svm; s; s = s->next)
		if ((const char *)p >= s->base && (const char *)p < s->base + s->size)
			return true;
	return false;
}

cl_int svm_before(struct hmm_cl *cl, cl_kernel kernel)
{
	const void *all[SVM_MAX];
	size_t n = 0;
	cl_int rc = CL_SUCCESS;

	for (struct svm *s = cl->svm; s && !rc; s = s->next) {
		all[n++] = s->base;
		if (!s->fine)
			rc = clEnqueueSVMUnmap(cl->queue, s->base, 0, NULL, NULL);
	}
	if (!rc && n)
		rc = clSetKernelExecInfo(kernel, CL_KERNEL_EXEC_INFO_SVM_PTRS, n * sizeof(all[0]), all);
	return rc;
}

/* The queue is in order: the last of these events is complete when all is. */
cl_int svm_after(struct hmm_cl *cl, cl_event *event)
{
	cl_int rc = CL_SUCCESS;

	for (struct svm *s = cl->svm; s; s = s->next) {
		cl_event mapped;
		cl_int err;

		if (s->fine)
			continue;
		err = clEnqueueSVMMap(cl->queue, CL_FALSE, CL_MAP_READ | CL_MAP_WRITE, s->base, s->size, 0, NULL,
				      &mapped);
		rc = rc ? rc : err;
		if (err)
			continue;
		if (*event)
			clReleaseEvent(*event);
		*event = mapped;
	}
	return rc;
}

int hmm_cl_svm_alloc(struct hmm_cl *cl, size_t size, void **pp)
{
	cl_device_svm_capabilities can = 0;
	struct svm *s;
	unsigned n = 0;
	int rc;

	if (clGetDeviceInfo(cl->device, CL_DEVICE_SVM_CAPABILITIES, sizeof(can), &can, NULL) ||
	    !(can & (CL_DEVICE_SVM_COARSE_GRAIN_BUFFER | CL_DEVICE_SVM_FINE_GRAIN_BUFFER)))
		return -EOPNOTSUPP;
	if (!size)
		return -EINVAL;
	s = calloc(1, sizeof(*s));
	if (!s)
		return -ENOMEM;
	s->size = size;
	s->fine = (can & CL_DEVICE_SVM_FINE_GRAIN_BUFFER) && !cl->copying;
	pthread_mutex_lock(&cl->gate);
	for (struct svm *o = cl->svm; o; o = o->next)
		n++;
	if (n < SVM_MAX)
		s->base = clSVMAlloc(cl->context, CL_MEM_READ_WRITE | (s->fine ? CL_MEM_SVM_FINE_GRAIN_BUFFER : 0),
				     size, 0);
	rc = s->base ? 0
		     : cl_fail(cl, -ENOMEM,
			       n < SVM_MAX ? "the device has no %zu bytes of shared virtual memory"
					   : "too many pieces of shared virtual memory, of %zu bytes",
			       size);
	if (!rc && !s->fine) {
		rc = cl_errno(
			clEnqueueSVMMap(cl->queue, CL_TRUE, CL_MAP_READ | CL_MAP_WRITE, s->base, size, 0, NULL, NULL));
		if (rc)
			clSVMFree(cl->context, s->base);
	}
	if (!rc) {
		s->next = cl->svm;
		cl->svm = s;
		*pp = s->base;
	}
	pthread_mutex_unlock(&cl->gate);
	if (rc)
		free(s);
	return rc;
}

void hmm_cl_svm_free(struct hmm_cl *cl, void *p)
{
	struct svm **at, *s = NULL;

	pthread_mutex_lock(&cl->gate);
	for (at = &cl->svm; *at && (*at)->base != p; at = &(*at)->next)
		;
	if (*at) {
		s = *at;
		*at = s->next;
	}
	/* A kernel may be at work on it. */
	if (s) {
		clFinish(cl->queue);
		if (!s->fine) {
			clEnqueueSVMUnmap(cl->queue, s->base, 0, NULL, NULL);
			clFinish(cl->queue);
		}
		clSVMFree(cl->context, s->base);
	}
	pthread_mutex_unlock(&cl->gate);
	free(s);
}
