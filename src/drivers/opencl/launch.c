/* SPDX-License-Identifier: MIT */
/*
 * Kernels and their launches.
 *
 * DOC: one launch
 *
 *	gate
 *	again:	regions for all arguments
 *		what is written moves there (bring_move)
 *		seq = umm_read_begin()
 *		the rest is copied there (bring_copy)
 *		lock
 *		umm_read_retry(seq), or a page has left its slot again: unlock, again
 *		the launch is active: who wants one of its pages waits from here on
 *		unlock
 *	the kernel is put into the queue
 *
 * The runtime is not called under "lock", which callbacks take; so a launch is
 * active a moment before its kernel is.  One thread, the waiter, waits for kernels;
 * when one has ended its launch has "run", and pages may go.  Another, the worker,
 * copies back what did not move; then the launch is "done", and what changes the
 * memory by a hooked call goes on.  They are two because the copying back may
 * have to wait for a page, and a page for the next kernel.
 *
 * DOC: the same once more
 *
 * Most kernels are launched again and again on the same memory.  "moves" counts,
 * under "lock", whatever puts a page into a slot or may take one out; a kernel
 * that finds it as it left it has all its pages where they were, and looks at none
 * of them.  That leaves what the CPU has written to of what the kernel reads: the
 * page table says it, nobody else.  Where something is copied back after each
 * launch, a part of what is read is on the device, or a page is on its way home,
 * all is looked at.
 *
 * DOC: a page that is on its way home
 *
 * The engine takes a reference, has the page copied out, puts it into place and
 * drops references, with no lock over all of that.  A kernel that began between
 * the copying and the putting would write to a page that is about to be gone; and
 * when the page has been put, and written to, its references are there for a
 * moment longer.  So of a slot that has been copied nothing is believed until the
 * engine has been asked (bring.c); who has not copied yet will wait for the kernel.
 */
#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "drivers/opencl/opencl.h"

#define TRIES 1000u
#define NAP_NS 20000l

/* --------------------------------------------------------------- who uses what */

bool launch_uses(struct hmm_cl *cl, const struct region *r, uint64_t first, uint64_t npages, bool writes)
{
	for (struct launch *l = cl->active; l; l = l->next) {
		if (l->ran && (writes || l->done || !l->npieces))
			continue;
		for (unsigned i = 0; i < l->nuses; i++) {
			const struct use *u = &l->use[i];

			if (u->region == r && u->first < first + npages && first < u->first + u->npages &&
			    (u->write || !writes))
				return true;
		}
	}
	return false;
}

bool launch_meets(struct hmm_cl *cl, uint64_t start, uint64_t end, bool writes)
{
	for (struct launch *l = cl->active; l; l = l->next)
		for (unsigned i = 0; i < l->nuses; i++)
			if (l->use[i].start < end && l->use[i].end > start && (l->use[i].write || !writes))
				return true;
	return false;
}

void launch_wait(struct hmm_cl *cl, uint64_t start, uint64_t end)
{
	sigset_t old;

	cl_lock(cl, &old);
	while (launch_meets(cl, start, end, false))
		pthread_cond_wait(&cl->changed, &cl->lock);
	cl_unlock(cl, &old);
}

static bool owes(struct hmm_cl *cl, uint64_t start, uint64_t end)
{
	for (struct launch *l = cl->active; l; l = l->next)
		for (unsigned i = 0; i < l->npieces; i++)
			if (page_down(l->piece[i].addr) < end && page_up(l->piece[i].addr + l->piece[i].len) > start)
				return true;
	return false;
}

void launch_wait_back(struct hmm_cl *cl, uint64_t start, uint64_t end)
{
	sigset_t old;

	cl_lock(cl, &old);
	while (owes(cl, start, end))
		pthread_cond_wait(&cl->changed, &cl->lock);
	cl_unlock(cl, &old);
}

int hmm_cl_wait(struct hmm_cl *cl)
{
	bool failed;
	sigset_t old;

	cl_lock(cl, &old);
	while (cl->active)
		pthread_cond_wait(&cl->changed, &cl->lock);
	failed = cl->failed;
	cl->failed = false;
	cl_unlock(cl, &old);
	return failed ? -EIO : 0;
}

/* -------------------------------------------------------------------- the end */

/* That of a kernel that is not in the queue is not one that has failed. */
static void kernel_ended(struct launch *l, cl_int status)
{
	struct hmm_cl *cl = l->cl;
	sigset_t old;

	cl_lock(cl, &old);
	l->ran = true;
	l->status = status;
	if (status < 0 && l->queued)
		cl->failed = true;
	pthread_cond_broadcast(&cl->changed);
	cl_unlock(cl, &old);
}

static void launch_free(struct launch *l)
{
	struct hmm_cl *cl = l->cl;

	umm_free(cl->space, l->piece, l->room * sizeof(*l->piece));
	umm_free(cl->space, l, sizeof(*l));
}

/* As far as is known, the page at @addr is there, and may be written to. */
static bool is_writable(struct hmm_cl *cl, uint64_t addr)
{
	struct umm_vma v;
	int rc = umm_vma_next(cl->space, addr, &v);

	return rc ? rc != -ENOENT : v.start <= addr && v.flags & UMM_VMA_WRITE;
}

static bool is_lost(const struct piece *p, uint64_t addr)
{
	return p->region->slot[(addr - p->region->addr) / PAGE].flags & SLOT_LOST;
}

/* The first bytes of a piece from @at on, below @end, of pages that have not gone; their end in @z.  False: none. */
static bool next_kept(struct hmm_cl *cl, const struct piece *p, uint64_t *at, uint64_t *z, uint64_t end)
{
	sigset_t old;

	cl_lock(cl, &old);
	while (*at < end && is_lost(p, *at))
		*at = page_down(*at) + PAGE;
	for (*z = *at; *z < end && !is_lost(p, *z);)
		*z = page_down(*z) + PAGE;
	cl_unlock(cl, &old);
	*z = *z < end ? *z : end;
	return *at < end;
}

/*
 * The bytes of one piece go back; what is gone or read-only by now is no longer theirs to
 * have.  False: others cannot be written either (a full file system), or not be read.
 */
static bool copy_back(struct hmm_cl *cl, struct piece *p, char *buf)
{
	uint64_t sent = 0, end = p->addr + p->len, z, to;
	bool lost = false;
	sigset_t old;

	for (uint64_t start = p->addr; start < end; start = z) {
		uint64_t offset = start - p->region->addr, at = start;
		char *src = p->region->base ? p->region->base + offset : buf;

		z = end - start < BACK_BYTES ? end : start + BACK_BYTES;
		if (!p->region->base && region_read(cl, p->region, offset, buf, z - start)) {
			lost |= next_kept(cl, p, &at, &to, end);
			break;
		}
		while (at < z && next_kept(cl, p, &at, &to, z)) {
			struct iovec from = {src + (at - start), to - at}, into = {(void *)(uintptr_t)at, to - at};
			ssize_t got = process_vm_writev(getpid(), &from, 1, &into, 1, 0);

			if (got > 0) {
				at += (uint64_t)got;
				sent += (uint64_t)got;
				continue;
			}
			/* This page, and not its neighbours. */
			to = page_down(at) + PAGE < z ? page_down(at) + PAGE : z;
			lost |= is_writable(cl, at) && next_kept(cl, p, &at, &(uint64_t){0}, to);
			at = to;
		}
	}
	cl_lock(cl, &old);
	cl->st.bytes_out += sent;
	cl_unlock(cl, &old);
	if (lost)
		cl_fail(cl, 0,
			"not all that a kernel wrote to %#llx can be copied back: no memory, a full file "
			"system, or a device that is lost",
			(unsigned long long)p->addr);
	return !lost;
}

static void launch_finish(struct hmm_cl *cl, struct launch *l, char *buf)
{
	struct launch **p;
	bool lost = false;
	sigset_t old;

	for (unsigned i = 0; l->status == CL_COMPLETE && i < l->npieces; i++)
		lost |= !copy_back(cl, &l->piece[i], buf);
	cl_lock(cl, &old);
	if (lost) {
		l->status = CL_OUT_OF_RESOURCES;
		cl->failed = true;
	}
	for (p = &cl->active; *p != l; p = &(*p)->next)
		;
	*p = l->next;
	l->done = true;
	pthread_cond_broadcast(&cl->changed);
	cl_unlock(cl, &old);
	for (unsigned i = 0; i < l->nuses; i++)
		if (l->use[i].home)
			hmm_migrate_to_system(cl->mm, &cl->dev, l->use[i].start, l->use[i].end, NULL);
	if (l->user_event) {
		clSetUserEventStatus(l->user_event, l->status);
		clReleaseEvent(l->user_event);
	}
	if (l->kernel_event)
		clReleaseEvent(l->kernel_event);
	launch_free(l);
}

/* Lock held.  The oldest launch that has run, or that is in the queue and has not. */
static struct launch *oldest(struct hmm_cl *cl, bool ran)
{
	struct launch *found = NULL;

	for (struct launch *l = cl->active; l; l = l->next)
		if (ran ? l->ran : l->queued && !l->ran)
			found = l;
	return found;
}

static struct launch *await(struct hmm_cl *cl, bool ran)
{
	struct launch *l;
	sigset_t old;

	cl_lock(cl, &old);
	while (!(l = oldest(cl, ran)) && !cl->stop)
		pthread_cond_wait(&cl->changed, &cl->lock);
	cl_unlock(cl, &old);
	return l;
}

void *launch_worker(void *arg)
{
	struct hmm_cl *cl = arg;
	struct launch *l;
	sigset_t all;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, NULL);
	while ((l = await(cl, true)))
		launch_finish(cl, l, cl->back);
	return NULL;
}

void *launch_waiter(void *arg)
{
	struct hmm_cl *cl = arg;
	struct launch *l;
	sigset_t all;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, NULL);
	while ((l = await(cl, false))) {
		cl_int status = CL_COMPLETE, rc = clWaitForEvents(1, &l->kernel_event);

		clGetEventInfo(l->kernel_event, CL_EVENT_COMMAND_EXECUTION_STATUS, sizeof(status), &status, NULL);
		kernel_ended(l, status < 0 ? status : rc);
	}
	return NULL;
}

/* -------------------------------------------------------------------- kernels */

int hmm_cl_kernel_open(struct hmm_cl *cl, cl_program program, const char *name, struct hmm_cl_kernel **kernelp)
{
	struct hmm_cl_kernel *k = calloc(1, sizeof(*k));
	cl_uint nargs = 0;
	cl_int rc;

	if (!k)
		return -ENOMEM;
	k->cl = cl;
	k->kernel = clCreateKernel(program, name, &rc);
	if (rc) {
		free(k);
		return cl_failed(cl, rc, "clCreateKernel");
	}
	clGetKernelInfo(k->kernel, CL_KERNEL_NUM_ARGS, sizeof(nargs), &nargs, NULL);
	k->nargs = nargs < ARGS ? nargs : ARGS;
	*kernelp = k;
	return 0;
}

void hmm_cl_kernel_close(struct hmm_cl_kernel *k)
{
	if (!k)
		return;
	clReleaseKernel(k->kernel);
	free(k);
}

int hmm_cl_arg(struct hmm_cl_kernel *k, unsigned index, const void *pointer, size_t length, unsigned access)
{
	uint64_t start = (uintptr_t)pointer;

	if (index >= k->nargs || !access_is_good(access) || (pointer && !length))
		return -EINVAL;
	if (pointer && (start + length < start || page_up(start + length) > HMM_ADDR_END))
		return -EOVERFLOW;
	pthread_mutex_lock(&k->cl->gate);
	k->arg[index] = (struct arg){.set = true,
				     .svm = pointer && svm_has(k->cl, pointer),
				     .pointer = pointer,
				     .length = length,
				     .access = access};
	k->ready = false;
	pthread_mutex_unlock(&k->cl->gate);
	return 0;
}

int hmm_cl_value(struct hmm_cl_kernel *k, unsigned index, const void *value, size_t size)
{
	int rc = 0;
	cl_int err;

	if (index >= k->nargs)
		return -EINVAL;
	pthread_mutex_lock(&k->cl->gate);
	err = clSetKernelArg(k->kernel, index, size, value);
	if (err)
		rc = cl_failed(k->cl, err, "clSetKernelArg");
	else if (k->arg[index].set) {
		k->arg[index] = (struct arg){0};
		k->ready = false;
	}
	pthread_mutex_unlock(&k->cl->gate);
	return rc;
}

/* -------------------------------------------------------------------- launches */

/* Arguments that have a page in common are in one region. */
struct group {
	uint64_t start, end, at;
	unsigned nargs;
	struct region *region;
};

struct plan {
	struct hmm_cl_kernel *k;
	struct group group[ARGS];
	unsigned ngroups;
};

static uint64_t arg_start(const struct arg *a)
{
	return (uintptr_t)a->pointer;
}

static uint64_t arg_end(const struct arg *a)
{
	return (uintptr_t)a->pointer + a->length;
}

static bool is_memory(const struct arg *a)
{
	return a->set && a->pointer && !a->svm;
}

static struct group *group_of(struct plan *p, const struct arg *a)
{
	for (unsigned g = 0; g < p->ngroups; g++)
		if (p->group[g].start <= arg_start(a) && arg_end(a) <= p->group[g].end)
			return &p->group[g];
	return NULL;
}

static void plan_add(struct plan *p, const struct arg *a)
{
	struct group new = {
		.start = page_down(arg_start(a)), .end = page_up(arg_end(a)), .at = arg_start(a), .nargs = 1};

	for (unsigned g = 0; g < p->ngroups;) {
		struct group *o = &p->group[g];

		if (o->start >= new.end || o->end <= new.start) {
			g++;
			continue;
		}
		new.start = o->start < new.start ? o->start : new.start;
		new.end = o->end > new.end ? o->end : new.end;
		new.nargs += o->nargs;
		*o = p->group[--p->ngroups];
		g = 0; /* what has grown may meet what it did not before */
	}
	p->group[p->ngroups++] = new;
}

int check_mapped(struct hmm_cl *cl, uint64_t start, uint64_t end, bool write)
{
	for (uint64_t at = start; at < end;) {
		struct umm_vma v;
		int rc = umm_vma_next(cl->space, at, &v);

		if (rc == -ENOENT || (!rc && (v.start > at || !(v.flags & UMM_VMA_READ))))
			return cl_fail(cl, -EFAULT, "memory at %#llx is not there, or not readable",
				       (unsigned long long)at);
		if (rc)
			return rc;
		if (write && !(v.flags & UMM_VMA_WRITE))
			return cl_fail(cl, -EPERM, "memory at %#llx may not be written to", (unsigned long long)at);
		at = v.end;
	}
	return 0;
}

static int plan_make(struct hmm_cl *cl, struct hmm_cl_kernel *k, struct plan *p)
{
	p->k = k;
	p->ngroups = 0;
	for (unsigned i = 0; i < k->nargs; i++) {
		const struct arg *a = &k->arg[i];
		int rc;

		if (!is_memory(a))
			continue;
		rc = check_mapped(cl, arg_start(a), arg_end(a), a->access & HMM_CL_WRITE);
		if (rc)
			return rc;
		plan_add(p, a);
	}
	for (unsigned i = 0; i < k->nargs && !cl->reach; i++) {
		const struct arg *a = &k->arg[i];

		if (is_memory(a) && (arg_start(a) - group_of(p, a)->at) % cl->align)
			return cl_fail(cl, -EINVAL,
				       "argument %u is in one piece of memory with another, %llu bytes apart: not a "
				       "multiple of the %zu that the device asks for",
				       i, (unsigned long long)(arg_start(a) - group_of(p, a)->at), cl->align);
	}
	return 0;
}

static int plan_regions(struct hmm_cl *cl, struct plan *p)
{
	int rc = 0;

	region_turn(cl);
	for (unsigned g = 0; g < p->ngroups && !rc; g++)
		rc = region_get(cl, p->group[g].start, p->group[g].end, p->group[g].at, &p->group[g].region);
	return rc;
}

static void add_use(struct hmm_cl *cl, struct launch *l, const struct arg *a, struct region *r)
{
	l->use[l->nuses++] = (struct use){
		.region = r,
		.first = (page_down(arg_start(a)) - r->addr) / PAGE,
		.npages = (page_up(arg_end(a)) - page_down(arg_start(a))) / PAGE,
		.start = page_down(arg_start(a)),
		.end = page_up(arg_end(a)),
		.write = a->access & HMM_CL_WRITE,
		.home = advice_at(cl, arg_start(a), &(uint64_t){HMM_ADDR_END}) == HMM_CL_HOME,
	};
}

/* As it was launched before. */
static int plan_again(struct hmm_cl *cl, struct plan *p, struct launch *l, uint64_t *seq)
{
	struct hmm_cl_kernel *k = p->k;
	int rc = 0;

	region_turn(cl);
	for (unsigned g = 0; g < p->ngroups; g++) {
		p->group[g].region = k->region[g];
		k->region[g]->used = cl->clock;
	}
	*seq = umm_read_begin(&cl->notifier);
	for (unsigned i = 0; i < k->nargs && !rc; i++) {
		const struct arg *a = &k->arg[i];

		if (!is_memory(a))
			continue;
		if (k->absent[i])
			rc = bring_again(cl, group_of(p, a)->region, arg_start(a), arg_end(a));
		add_use(cl, l, a, group_of(p, a)->region);
	}
	return rc;
}

static int plan_bring(struct hmm_cl *cl, struct plan *p, struct launch *l, uint64_t *seq)
{
	struct hmm_cl_kernel *k = p->k;
	int rc = 0;

	for (unsigned i = 0; i < k->nargs && !rc; i++) {
		const struct arg *a = &k->arg[i];

		if (is_memory(a) && (a->access & HMM_CL_WRITE))
			rc = bring_move(cl, group_of(p, a)->region, page_up(arg_start(a)), page_down(arg_end(a)),
					(a->access & ACCESS_ALL) && group_of(p, a)->nargs == 1);
	}
	if (rc)
		return rc;
	for (unsigned i = 0; i < k->nargs && !rc; i++)
		if (is_memory(&k->arg[i]) && k->arg[i].access == HMM_CL_READ)
			rc = bring_shared(cl, arg_start(&k->arg[i]), arg_end(&k->arg[i]));
	if (rc)
		return rc;
	*seq = umm_read_begin(&cl->notifier);
	for (unsigned i = 0; i < k->nargs && !rc; i++) {
		const struct arg *a = &k->arg[i];
		struct group *g;

		if (!is_memory(a))
			continue;
		g = group_of(p, a);
		rc = bring_copy(cl, g->region, arg_start(a), arg_end(a), a->access & HMM_CL_WRITE ? l : NULL);
		add_use(cl, l, a, g->region);
	}
	return rc;
}

/*
 * Lock held.  Is all that is to be written there, and not on its way home?  And is what
 * is only read still there, or a copy of it?  A block that has gone home meanwhile, of
 * which nobody tells, has taken the memory of its slots along.
 */
static bool is_there(const struct launch *l)
{
	for (unsigned i = 0; i < l->nuses; i++) {
		const struct use *u = &l->use[i];

		/* What it has it may have got after it was moved: it is not this argument any more. */
		if (u->region->stray)
			return false;
		for (uint64_t k = u->first; k < u->first + u->npages; k++) {
			const struct slot *s = &u->region->slot[k];

			if (s->flags & SLOT_LENT || (s->refs && s->flags & SLOT_GONE))
				return false;
			if (s->refs ? u->write && s->copied : !(s->flags & SLOT_PIECE) && (u->write || !s->copy))
				return false;
		}
	}
	return true;
}

/* Lock held, as above.  Is it enough to look at "moves" the next time? */
static bool note_ready(struct hmm_cl *cl, const struct plan *p, const struct launch *l)
{
	struct hmm_cl_kernel *k = p->k;
	unsigned n = 0;

	k->moves = cl->moves;
	for (unsigned g = 0; g < p->ngroups; g++)
		k->region[g] = p->group[g].region;
	for (unsigned i = 0; i < k->nargs; i++) {
		const struct use *u;
		uint64_t here = 0;

		k->absent[i] = false;
		if (!is_memory(&k->arg[i]))
			continue;
		u = &l->use[n++];
		if (u->write)
			continue;
		for (uint64_t s = u->first; s < u->first + u->npages; s++) {
			/* It may be home, and written to, before "moves" says so again. */
			if (u->region->slot[s].refs && u->region->slot[s].copied)
				return false;
			here += u->region->slot[s].refs != 0;
		}
		k->absent[i] = !here;
		if (here && here < u->npages)
			return false;
	}
	return !l->npieces;
}

/*
 * Of what goes back nothing is a copy until it is copied again, also where an argument
 * that is only read has a part of the page: it may not get there.
 */
static void unmark(struct launch *l)
{
	sigset_t old;

	if (!l->npieces)
		return;
	cl_lock(l->cl, &old);
	for (unsigned i = 0; i < l->npieces; i++) {
		struct piece *p = &l->piece[i];

		for (uint64_t at = page_down(p->addr); at < p->addr + p->len; at += PAGE) {
			uint64_t k = (at - p->region->addr) / PAGE;

			p->region->slot[k].flags &= (uint8_t)~SLOT_PIECE;
			slot_has(p->region, k, 0);
		}
	}
	cl_unlock(l->cl, &old);
}

static cl_int set_arg(struct hmm_cl_kernel *k, unsigned index, const struct region *r, const struct arg *a)
{
	size_t offset = r->pad + (arg_start(a) - r->addr);
	cl_buffer_region piece = {offset, a->length};
	cl_mem sub;
	cl_int rc;

	if (r->base)
		return clSetKernelArgSVMPointer(k->kernel, index, r->base + (arg_start(a) - r->addr));
	sub = clCreateSubBuffer(r->mem, CL_MEM_READ_WRITE, CL_BUFFER_CREATE_TYPE_REGION, &piece, &rc);
	if (rc)
		return rc;
	rc = clSetKernelArg(k->kernel, index, sizeof(sub), &sub);
	k->sub[k->nsubs++] = sub; /* the kernel's until it is in the queue */
	return rc;
}

/* What hmm_cl_launch() was given. */
struct work {
	unsigned dims;
	const size_t *offset, *global, *local;
	unsigned nwait;
	const cl_event *wait;
	cl_event *event;
};

static int enqueue(struct hmm_cl *cl, struct plan *p, struct launch *l, const struct work *w)
{
	struct hmm_cl_kernel *k = p->k;
	cl_int rc = CL_SUCCESS, svm_err;

	k->nsubs = 0;
	for (unsigned i = 0; i < k->nargs && !rc; i++) {
		const struct arg *a = &k->arg[i];

		if (is_memory(a))
			rc = set_arg(k, i, group_of(p, a)->region, a);
		else if (a->svm)
			rc = clSetKernelArgSVMPointer(k->kernel, i, a->pointer);
		else if (a->set)
			rc = clSetKernelArg(k->kernel, i, sizeof(cl_mem), NULL);
	}
	if (!rc)
		rc = svm_before(cl, k->kernel);
	if (!rc && w->event && l->npieces)
		l->user_event = clCreateUserEvent(cl->context, &rc);
	if (!rc)
		rc = clEnqueueNDRangeKernel(cl->queue, k->kernel, w->dims, w->offset, w->global, w->local, w->nwait,
					    w->nwait ? w->wait : NULL, &l->kernel_event);
	l->begun = !rc;
	svm_err = svm_after(cl, &l->kernel_event);
	rc = rc ? rc : svm_err;
	while (k->nsubs)
		clReleaseMemObject(k->sub[--k->nsubs]);
	if (rc)
		return cl_failed(cl, rc, "the kernel cannot be launched");
	if (w->event) {
		*w->event = l->npieces ? l->user_event : l->kernel_event;
		clRetainEvent(*w->event);
	}
	clFlush(cl->queue);
	return 0;
}

static bool hold(struct hmm_cl *cl, const struct plan *p, struct launch *l, uint64_t seq)
{
	struct hmm_cl_kernel *k = p->k;
	bool held;
	sigset_t old;

	cl_lock(cl, &old);
	held = !umm_read_retry(&cl->notifier, seq) && (k->ready ? k->moves == cl->moves : is_there(l));
	k->ready = held && (k->ready || note_ready(cl, p, l));
	if (held) {
		l->next = cl->active;
		cl->active = l;
	} else {
		cl->st.retries++;
	}
	cl_unlock(cl, &old);
	return held;
}

/*
 * A raw call of this thread may have returned when its event had been read, and it
 * is being applied: a child is being given the pages that a kernel is about to
 * write to, or addresses mean something else now.  The engine answers when that is
 * over, whatever it is asked.
 */
static int wait_for_events(struct hmm_cl *cl)
{
	struct hmm_device *where;

	return hmm_where(cl->mm, PAGE, 2 * PAGE, &where, NULL);
}

/* One attempt.  0, -EAGAIN: begin anew, or what is wrong; @held: @l is the worker's from here on, whatever it is. */
static int attempt(struct hmm_cl *cl, struct hmm_cl_kernel *k, struct launch *l, const struct work *w, bool *held)
{
	struct plan p;
	uint64_t seq = 0;
	sigset_t old;
	int rc;

	l->nuses = l->npieces = 0;
	rc = wait_for_events(cl);
	if (!rc)
		rc = plan_make(cl, k, &p);
	/* Only who has the gate brings in, and ends regions: if it is as it was there is nothing to do. */
	cl_lock(cl, &old);
	k->ready = k->ready && k->moves == cl->moves;
	cl_unlock(cl, &old);
	if (!rc && k->ready) {
		rc = plan_again(cl, &p, l, &seq);
	} else if (!rc) {
		rc = plan_regions(cl, &p);
		if (!rc)
			rc = plan_bring(cl, &p, l, &seq);
	}
	*held = !rc && hold(cl, &p, l, seq);
	unmark(l);
	if (!*held)
		return rc ? rc : -EAGAIN;
	rc = enqueue(cl, &p, l, w);
	if (!l->begun) {
		kernel_ended(l, CL_INVALID_OPERATION);
		return rc;
	}
	/* Also where what was to follow it could not be put there: it uses its pages until it has ended. */
	cl_lock(cl, &old);
	l->queued = true;
	cl->st.launches += !rc;
	pthread_cond_broadcast(&cl->changed);
	cl_unlock(cl, &old);
	return rc;
}

int hmm_cl_launch(struct hmm_cl_kernel *k, unsigned dims, const size_t *offset, const size_t *global,
		  const size_t *local, unsigned nwait, const cl_event *wait, cl_event *event)
{
	const struct work w = {dims, offset, global, local, nwait, wait, event};
	struct timespec ts = {.tv_nsec = NAP_NS};
	struct hmm_cl *cl = k->cl;
	struct launch *l = umm_alloc(cl->space, sizeof(*l));
	unsigned tries = 0;
	bool held;
	int rc;

	if (!l)
		return -ENOMEM;
	l->cl = cl;
	pthread_mutex_lock(&cl->gate);
	while ((rc = attempt(cl, k, l, &w, &held)) == -EAGAIN && ++tries < TRIES)
		nanosleep(&ts, NULL);
	if (!held)
		launch_free(l);
	if (rc == -EAGAIN)
		rc = cl_fail(cl, -EBUSY, "the memory of the kernel is changed faster than it can be launched");
	pthread_mutex_unlock(&cl->gate);
	return rc;
}

int hmm_cl_release(struct hmm_cl *cl, const void *pointer, size_t length)
{
	uint64_t start = (uintptr_t)pointer;
	int rc;

	if (start + length < start || start + length > HMM_ADDR_END)
		return -EOVERFLOW;
	pthread_mutex_lock(&cl->gate);
	rc = region_release(cl, start, start + length);
	pthread_mutex_unlock(&cl->gate);
	return rc;
}
