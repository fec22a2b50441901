/* SPDX-License-Identifier: MIT */
/*
 * The OpenCL device: opening it, and what the engine asks of it.
 *
 * DOC: who waits for what
 *
 * copy_out is what a thread waits for that touches a page.  It waits for kernels
 * that write to the page, not for the queue they are in, and learns that they
 * have ended without asking the runtime (launch.c).  Where the CPU reaches the
 * device's memory it then copies without the runtime, too: whatever lock the one
 * who touches the page holds, malloc's included, the page comes.  Elsewhere the
 * runtime copies, and hmm_cl.h says what must not be held.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "drivers/opencl/opencl.h"

#define PLATFORMS 16u

int cl_errno(cl_int rc)
{
	switch (rc) {
	case CL_SUCCESS:
		return 0;
	case CL_OUT_OF_HOST_MEMORY:
	case CL_MEM_OBJECT_ALLOCATION_FAILURE:
	case CL_OUT_OF_RESOURCES:
		return -ENOMEM;
	case CL_COMPILER_NOT_AVAILABLE:
		return -EOPNOTSUPP;
	case CL_INVALID_KERNEL_NAME:
		return -ENOENT;
	case CL_INVALID_ARG_INDEX:
	case CL_INVALID_ARG_VALUE:
	case CL_INVALID_ARG_SIZE:
	case CL_INVALID_KERNEL_ARGS:
	case CL_INVALID_WORK_DIMENSION:
	case CL_INVALID_WORK_GROUP_SIZE:
	case CL_INVALID_WORK_ITEM_SIZE:
	case CL_INVALID_GLOBAL_OFFSET:
	case CL_INVALID_GLOBAL_WORK_SIZE:
	case CL_INVALID_EVENT_WAIT_LIST:
	case CL_INVALID_PROGRAM:
	case CL_INVALID_PROGRAM_EXECUTABLE:
	case CL_INVALID_BUILD_OPTIONS:
	case CL_BUILD_PROGRAM_FAILURE:
	case CL_INVALID_CONTEXT:
	case CL_INVALID_DEVICE:
		return -EINVAL;
	default:
		return -EIO;
	}
}

int cl_fail(struct hmm_cl *cl, int rc, const char *fmt, ...)
{
	char line[sizeof(cl->line)];
	sigset_t old;
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(line, sizeof(line), fmt, ap);
	va_end(ap);
	cl_lock(cl, &old);
	memcpy(cl->line, line, sizeof(line));
	cl_unlock(cl, &old);
	return rc;
}

int cl_failed(struct hmm_cl *cl, cl_int rc, const char *what)
{
	return cl_fail(cl, cl_errno(rc), "%s: OpenCL error %d%s", what, (int)rc,
		       cl_errno(rc) == -ENOMEM ? " (no memory: use less of it, or fewer bytes at a time)" : "");
}

void hmm_cl_message(struct hmm_cl *cl, char *line, size_t len)
{
	char copy[sizeof(cl->line)];
	sigset_t old;

	cl_lock(cl, &old);
	memcpy(copy, cl->line, sizeof(copy));
	cl_unlock(cl, &old);
	if (len)
		snprintf(line, len, "%s", copy);
}

/* ---------------------------------------------------------------- operations */

/* Whoever migrates by other means than ours has no place for a page: which slot it goes to is by address. */
static int device_copy_in(struct hmm_device *dev, const void *const src[], hmm_handle_t handle[], unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		handle[i] = HMM_HANDLE_NONE;
	return 0;
}

static struct region *region_of(struct hmm_cl *cl, hmm_handle_t handle)
{
	return cl->region[handle >> INDEX_BITS];
}

static bool is_being_written(struct hmm_cl *cl, const hmm_handle_t handle[], unsigned n)
{
	for (unsigned i = 0; i < n && cl->active; i++)
		if (launch_uses(cl, region_of(cl, handle[i]), handle[i] & INDEX_MASK, 1, true))
			return true;
	return false;
}

static int device_copy_out(struct hmm_device *dev, const hmm_handle_t handle[], void *const dst[], int status[],
			   unsigned n)
{
	struct hmm_cl *cl = cl_of(dev);
	unsigned run;
	sigset_t old;
	int rc = 0;

	cl_lock(cl, &old);
	while (is_being_written(cl, handle, n))
		pthread_cond_wait(&cl->changed, &cl->lock);
	for (unsigned i = 0; i < n; i++) {
		struct slot *s = &region_of(cl, handle[i])->slot[handle[i] & INDEX_MASK];

		/* Now, and not when the last reference goes: by then it may have been written to where it went. */
		if (!s->copied)
			s->at = atomic_load(&cl->now);
		if (s->copied < UINT8_MAX)
			s->copied++;
	}
	cl->st.bytes_out += n * PAGE;
	cl->moves++;
	cl_unlock(cl, &old);
	for (unsigned i = 0; i < n; i += run) {
		struct region *r = region_of(cl, handle[i]);
		int err;

		for (run = 1; i + run < n && handle[i + run] == handle[i] + run &&
			      (char *)dst[i + run] == (char *)dst[i] + run * PAGE;)
			run++;
		err = region_read(cl, r, (handle[i] & INDEX_MASK) * PAGE, dst[i], run * PAGE);
		for (unsigned k = 0; k < run; k++)
			status[i + k] = err ? -EIO : 0;
		if (err)
			rc = -EIO;
	}
	return rc;
}

/* Lock held.  Is each of these a page that is here, for the engine alone, and @refs its references? */
static bool are_alone(const struct region *r, uint64_t first, unsigned n, uint16_t refs)
{
	for (const struct slot *s = r->slot + first; n--; s++)
		if (s->refs != refs || s->copied || s->flags & SLOT_LENT)
			return false;
	return true;
}

/*
 * A block of which the memory itself may go, while no kernel uses it; that comes
 * back with the page that takes its place, or is filled anew (region_fill()).
 */
static void *device_lend(struct hmm_device *dev, const hmm_handle_t handle[], unsigned n)
{
	struct hmm_cl *cl = cl_of(dev);
	struct region *r;
	uint64_t first = handle[0] & INDEX_MASK;
	char *at = NULL;
	sigset_t old;

	for (unsigned i = 1; i < n; i++)
		if (handle[i] != handle[0] + i)
			return NULL;
	cl_lock(cl, &old);
	r = region_of(cl, handle[0]);
	while (r->gives && launch_uses(cl, r, first, n, true))
		pthread_cond_wait(&cl->changed, &cl->lock);
	if (r->gives && (uintptr_t)(r->base + first * PAGE) % HUGE_BYTES == 0 && !launch_uses(cl, r, first, n, false) &&
	    are_alone(r, first, n, 2)) {
		for (unsigned i = 0; i < n; i++)
			r->slot[first + i].flags |= SLOT_LENT;
		cl->moves++;
		at = r->base + first * PAGE;
	}
	cl_unlock(cl, &old);
	return at;
}

static void device_lent(struct hmm_device *dev, const hmm_handle_t handle[], unsigned n, unsigned moved)
{
	struct hmm_cl *cl = cl_of(dev);
	struct region *r = region_of(cl, handle[0]);
	uint64_t first = handle[0] & INDEX_MASK;
	sigset_t old;

	cl_lock(cl, &old);
	cl->st.bytes_out += moved * PAGE;
	if (moved)
		r->empty[block_of(r, first)] = true;
	for (unsigned i = moved; i < n; i++)
		r->slot[first + i].flags &= (uint8_t)~SLOT_LENT;
	cl_unlock(cl, &old);
}

static void device_get(struct hmm_device *dev, const hmm_handle_t handle[], unsigned n)
{
	struct hmm_cl *cl = cl_of(dev);
	sigset_t old;

	cl_lock(cl, &old);
	for (unsigned i = 0; i < n; i++) {
		struct slot *s = &region_of(cl, handle[i])->slot[handle[i] & INDEX_MASK];

		s->refs++;
		s->gets++;
	}
	cl_unlock(cl, &old);
}

static void device_put(struct hmm_device *dev, const hmm_handle_t handle[], unsigned n)
{
	struct hmm_cl *cl = cl_of(dev);
	sigset_t old;

	cl_lock(cl, &old);
	for (unsigned i = 0; i < n; i++) {
		struct region *r = region_of(cl, handle[i]);
		struct slot *s = &r->slot[handle[i] & INDEX_MASK];

		if (--s->refs)
			continue;
		/* It went home as it is here; if it went elsewhere, what is there now counts as written to. */
		slot_has(r, handle[i] & INDEX_MASK, s->copied && !(s->flags & (SLOT_GONE | SLOT_LENT)) ? s->at : 0);
		s->flags &= (uint8_t)~SLOT_LENT;
		s->copied = 0;
		r->live--;
		cl->moves++;
		cl->st.pages_here--;
	}
	cl_unlock(cl, &old);
}

const struct hmm_device_ops cl_ops = {
	.name = "opencl",
	.caps = HMM_DEV_MEMORY | HMM_DEV_MAYBLOCK | HMM_DEV_AHEAD | HMM_DEV_KEEPS,
	.copy_in = device_copy_in,
	.copy_out = device_copy_out,
	.lend = device_lend,
	.lent = device_lent,
	.get = device_get,
	.put = device_put,
};

/* ------------------------------------------------------------------ notifier */

static bool is_own(const struct hmm_cl *cl, const struct umm_change *why)
{
	return why->event == UMM_EVENT_MIGRATE && why->owner == cl;
}

static void pieces_lost(struct hmm_cl *cl, uint64_t start, uint64_t end)
{
	for (struct launch *l = cl->active; l; l = l->next)
		for (unsigned i = 0; i < l->npieces; i++) {
			const struct piece *p = &l->piece[i];
			uint64_t at = page_down(p->addr), z = p->addr + p->len < end ? p->addr + p->len : end;

			for (at = at > start ? at : start; at < z; at += PAGE)
				p->region->slot[(at - p->region->addr) / PAGE].flags |= SLOT_LOST;
		}
}

static void regions_changed(struct hmm_cl *cl, const struct umm_change *why)
{
	for (unsigned id = 0; id < cl->nregions; id++) {
		struct region *r = cl->region[id];
		uint64_t a, z;

		if (!r || r->addr >= why->end || r->addr + r->npages * PAGE <= why->start)
			continue;
		cl->moves++;
		a = why->start > r->addr ? (why->start - r->addr) / PAGE : 0;
		z = (why->end < r->addr + r->npages * PAGE ? why->end - r->addr : r->npages * PAGE) / PAGE;
		for (; a < z; a++) {
			slot_has(r, a, 0);
			/* Who takes it to another device may change it there: what is still on its way is none. */
			if (r->slot[a].refs)
				r->slot[a].flags |= SLOT_GONE;
		}
		if (why->event == UMM_EVENT_REMAP)
			r->stray = true;
		if (why->event == UMM_EVENT_UNMAP && why->start <= r->addr && why->end >= r->addr + r->npages * PAGE)
			r->dead = true;
	}
}

static bool device_invalidate(struct umm_notifier *n, const struct umm_change *why, uint64_t seq)
{
	struct hmm_cl *cl = (struct hmm_cl *)((char *)n - offsetof(struct hmm_cl, notifier));
	bool contents = why->event == UMM_EVENT_UNMAP || why->event == UMM_EVENT_REMAP || why->event == UMM_EVENT_CLEAR;
	bool waits = !why->late && why->event != UMM_EVENT_MIGRATE && why->event != UMM_EVENT_EXCLUSIVE;
	bool ok = true;

	if (why->blockable)
		pthread_mutex_lock(&cl->lock);
	else if (pthread_mutex_trylock(&cl->lock))
		return false;
	umm_notifier_set_seq(n, seq);
	if (is_own(cl, why))
		goto out;
	while (ok && waits && launch_meets(cl, why->start, why->end, why->event == UMM_EVENT_FORK)) {
		if (why->blockable)
			pthread_cond_wait(&cl->changed, &cl->lock);
		else
			ok = false;
	}
	if (ok && contents)
		pieces_lost(cl, why->start, why->end);
	if (ok && why->event != UMM_EVENT_FORK && why->event != UMM_EVENT_PROTECT)
		regions_changed(cl, why);
out:
	pthread_mutex_unlock(&cl->lock);
	return ok;
}

static const struct umm_notifier_ops notifier_ops = {.invalidate = device_invalidate};

/* ---------------------------------------------------------------------- life */

static int first_device(cl_device_id *device)
{
	cl_platform_id platform[PLATFORMS];
	cl_uint n = 0;

	if (clGetPlatformIDs(PLATFORMS, platform, &n))
		return -ENODEV;
	for (cl_uint i = 0; i < n && i < PLATFORMS; i++)
		if (!clGetDeviceIDs(platform[i], CL_DEVICE_TYPE_ALL, 1, device, NULL))
			return 0;
	return -ENODEV;
}

static bool has_device(cl_context context, cl_device_id device)
{
	cl_device_id all[64];
	size_t size;

	if (clGetContextInfo(context, CL_CONTEXT_DEVICES, sizeof(all), all, &size))
		return false;
	for (size_t i = 0; i < size / sizeof(all[0]); i++)
		if (all[i] == device)
			return true;
	return false;
}

/* As the device says; of what it does not know, the least. */
static int look_at(struct hmm_cl *cl, const struct hmm_cl_params *p)
{
	cl_device_svm_capabilities svm = 0;
	cl_ulong memory, most;
	cl_uint align;
	cl_device_type type = 0;
	cl_bool unified = CL_FALSE;

	if (clGetDeviceInfo(cl->device, CL_DEVICE_GLOBAL_MEM_SIZE, sizeof(memory), &memory, NULL) ||
	    clGetDeviceInfo(cl->device, CL_DEVICE_MAX_MEM_ALLOC_SIZE, sizeof(most), &most, NULL) ||
	    clGetDeviceInfo(cl->device, CL_DEVICE_MEM_BASE_ADDR_ALIGN, sizeof(align), &align, NULL))
		return -EIO;
	if (clGetDeviceInfo(cl->device, CL_DEVICE_HOST_UNIFIED_MEMORY, sizeof(unified), &unified, NULL))
		unified = CL_FALSE;
	if (clGetDeviceInfo(cl->device, CL_DEVICE_SVM_CAPABILITIES, sizeof(svm), &svm, NULL))
		svm = 0;
	if (clGetDeviceInfo(cl->device, CL_DEVICE_TYPE, sizeof(type), &type, NULL))
		type = 0;
	cl->limit = p->memory ? p->memory : memory / 4 * 3;
	cl->most = most;
	cl->align = align / 8 ? align / 8 : 1;
	cl->copying = p->flags & HMM_CL_COPIES;
	cl->unified = unified;
	cl->reach = unified && (svm & CL_DEVICE_SVM_FINE_GRAIN_BUFFER) && !cl->copying;
	cl->plain = cl->reach && type == CL_DEVICE_TYPE_CPU;
	if (clGetDeviceInfo(cl->device, CL_DEVICE_NAME, sizeof(cl->dev.spec) - 8, cl->dev.spec, NULL))
		snprintf(cl->dev.spec, sizeof(cl->dev.spec), "opencl");
	return 0;
}

static cl_command_queue queue_new(struct hmm_cl *cl, cl_int *rc)
{
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations" /* the other is not in OpenCL 1.2 */
	return clCreateCommandQueue(cl->context, cl->device, 0, rc);
#pragma GCC diagnostic pop
}

static void device_free(struct hmm_cl *cl)
{
	while (cl->svm)
		hmm_cl_svm_free(cl, cl->svm->base);
	umm_free(cl->space, cl->advice, cl->advices_room * sizeof(*cl->advice));
	if (cl->copies)
		clReleaseCommandQueue(cl->copies);
	if (cl->queue)
		clReleaseCommandQueue(cl->queue);
	if (cl->context)
		clReleaseContext(cl->context);
	pthread_cond_destroy(&cl->changed);
	pthread_mutex_destroy(&cl->lock);
	pthread_mutex_destroy(&cl->gate);
	umm_free(cl->space, cl->stage, STAGE_PAGES * PAGE);
	umm_free(cl->space, cl->back, BACK_BYTES);
	umm_free(cl->space, cl->m, sizeof(*cl->m));
	umm_free(cl->space, cl->stamp, cl->nstamps * sizeof(*cl->stamp));
	umm_free(cl->space, cl, sizeof(*cl));
}

static void worker_end(struct hmm_cl *cl)
{
	sigset_t old;

	cl_lock(cl, &old);
	cl->stop = true;
	pthread_cond_broadcast(&cl->changed);
	cl_unlock(cl, &old);
	pthread_join(cl->worker, NULL);
	if (cl->waiter)
		pthread_join(cl->waiter, NULL);
}

int hmm_cl_open(struct umm_space *space, struct hmm_mm *mm, const struct hmm_cl_params *params, struct hmm_cl **clp)
{
	struct hmm_cl_params p = {0};
	struct hmm_cl *cl;
	cl_int err = 0;
	int rc;

	if (params)
		p = *params;
	if (p.flags & ~HMM_CL_COPIES)
		return -EINVAL;
	if (!p.device) {
		rc = first_device(&p.device);
		if (rc)
			return rc;
	}
	if (p.context && !has_device(p.context, p.device))
		return -EINVAL;
	cl = umm_alloc(space, sizeof(*cl));
	if (!cl)
		return -ENOMEM;
	cl->space = space;
	cl->mm = mm;
	cl->dev.ops = &cl_ops;
	cl->device = p.device;
	pthread_mutex_init(&cl->gate, NULL);
	pthread_mutex_init(&cl->lock, NULL);
	pthread_cond_init(&cl->changed, NULL);
	cl->m = umm_alloc(space, sizeof(*cl->m));
	cl->stage = umm_alloc(space, STAGE_PAGES * PAGE);
	cl->back = umm_alloc(space, BACK_BYTES);
	rc = -ENOMEM;
	if (!cl->m || !cl->stage || !cl->back)
		goto fail;
	rc = look_at(cl, &p);
	if (rc)
		goto fail;
	if (p.context)
		err = clRetainContext(p.context);
	cl->context = p.context ? p.context : clCreateContext(NULL, 1, &cl->device, NULL, NULL, &err);
	if (!err)
		cl->queue = queue_new(cl, &err);
	if (!err)
		cl->copies = queue_new(cl, &err);
	rc = cl_errno(err);
	if (rc) {
		rc = rc == -EINVAL ? -ENODEV : rc;
		goto fail;
	}
	rc = -pthread_create(&cl->worker, NULL, launch_worker, cl);
	if (rc)
		goto fail;
	rc = -pthread_create(&cl->waiter, NULL, launch_waiter, cl);
	if (rc) {
		cl->waiter = 0;
		goto fail_worker;
	}
	rc = umm_notifier_insert(&cl->notifier, space, 0, HMM_ADDR_END, &notifier_ops);
	if (rc)
		goto fail_worker;
	rc = hmm_mm_add_device(mm, &cl->dev);
	if (rc)
		goto fail_notifier;
	fork_add(cl);
	*clp = cl;
	return 0;
fail_notifier:
	umm_notifier_remove(&cl->notifier);
fail_worker:
	worker_end(cl);
fail:
	device_free(cl);
	return rc;
}

int hmm_cl_close(struct hmm_cl *cl)
{
	int rc;

	if (!cl)
		return 0;
	launch_wait(cl, 0, HMM_ADDR_END);
	pthread_mutex_lock(&cl->gate);
	rc = region_release(cl, 0, HMM_ADDR_END);
	pthread_mutex_unlock(&cl->gate);
	if (!rc)
		rc = hmm_mm_remove_device(cl->mm, &cl->dev);
	if (rc)
		return rc;
	fork_del(cl);
	umm_notifier_remove(&cl->notifier);
	worker_end(cl);
	device_free(cl);
	return 0;
}

cl_context hmm_cl_context(struct hmm_cl *cl)
{
	return cl->context;
}

cl_device_id hmm_cl_device(struct hmm_cl *cl)
{
	return cl->device;
}

cl_command_queue hmm_cl_queue(struct hmm_cl *cl)
{
	return cl->queue;
}

void hmm_cl_stats(struct hmm_cl *cl, struct hmm_cl_stats *st)
{
	sigset_t old;

	cl_lock(cl, &old);
	*st = cl->st;
	cl_unlock(cl, &old);
}

int hmm_cl_build(struct hmm_cl *cl, const char *source, const char *options, char *log, size_t len,
		 cl_program *programp)
{
	cl_program program;
	cl_int rc;

	if (log && len)
		log[0] = 0;
	program = clCreateProgramWithSource(cl->context, 1, &source, NULL, &rc);
	if (rc)
		return cl_failed(cl, rc, "clCreateProgramWithSource");
	rc = clBuildProgram(program, 1, &cl->device, options, NULL, NULL);
	if (log && len) {
		if (clGetProgramBuildInfo(program, cl->device, CL_PROGRAM_BUILD_LOG, len, log, NULL))
			snprintf(log, len, "OpenCL error %d, and a log that does not fit", (int)rc);
		log[len - 1] = 0;
	}
	if (rc) {
		clReleaseProgram(program);
		return cl_failed(cl, rc, "clBuildProgram");
	}
	*programp = program;
	return 0;
}
