/* SPDX-License-Identifier: MIT */
/* Pieces of the device's memory: see opencl.h. */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "drivers/opencl/opencl.h"

#define NAP_NS 50000l
#define COLOUR 1280u
#define HEAP_MOST ((size_t)32 << 20) /* malloc maps what is larger by itself, always */
#define NAPS 200000u                 /* ten seconds: somebody who reads a page takes no longer */

static void nap(void)
{
	struct timespec ts = {.tv_nsec = NAP_NS};

	nanosleep(&ts, NULL);
}

static uint64_t end_of(const struct region *r)
{
	return r->addr + r->npages * PAGE;
}

static void piece_free(struct hmm_cl *cl, struct region *r)
{
	if (r->svm)
		clSVMFree(cl->context, r->svm);
	if (r->mem)
		clReleaseMemObject(r->mem);
}

static void record_free(struct hmm_cl *cl, struct region *r)
{
	umm_free(cl->space, r->since, r->nblocks * sizeof(*r->since));
	umm_free(cl->space, r->empty, r->nblocks * sizeof(*r->empty));
	umm_free(cl->space, r->slot, r->npages * sizeof(*r->slot));
	umm_free(cl->space, r, sizeof(*r));
}

/* Nobody uses it any more, and it has no page. */
static void region_free(struct hmm_cl *cl, struct region *r)
{
	sigset_t old;

	cl_lock(cl, &old);
	cl->region[r->id] = NULL;
	cl->moves++;
	cl->st.bytes_held -= r->bytes;
	cl_unlock(cl, &old);
	piece_free(cl, r);
	record_free(cl, r);
}

static bool is_idle(struct hmm_cl *cl, struct region *r)
{
	bool idle;
	sigset_t old;

	cl_lock(cl, &old);
	idle = !r->live;
	for (struct launch *l = cl->active; l && idle; l = l->next)
		for (unsigned i = 0; i < l->nuses; i++)
			idle &= l->use[i].region != r;
	cl_unlock(cl, &old);
	return idle;
}

void region_reap(struct hmm_cl *cl)
{
	for (unsigned id = 0; id < cl->nregions; id++) {
		struct region *r = cl->region[id];

		if (r && (r->dead || r->stray) && !r->wanted && is_idle(cl, r))
			region_free(cl, r);
	}
}

/* Its pages, not those of others that it overlaps with. */
static int bring_home(struct hmm_cl *cl, struct region *r)
{
	int rc = 0;

	for (uint64_t i = 0, z; !rc && i < r->npages; i = z) {
		sigset_t old;

		cl_lock(cl, &old);
		while (i < r->npages && !r->slot[i].refs)
			i++;
		for (z = i; z < r->npages && r->slot[z].refs;)
			z++;
		cl_unlock(cl, &old);
		if (i < z)
			rc = hmm_migrate_to_system(cl->mm, &cl->dev, r->addr + i * PAGE, r->addr + z * PAGE, NULL);
	}
	return rc;
}

/* Its pages come home, and it ends.  0 or -ENOMEM. */
static int region_end(struct hmm_cl *cl, struct region *r)
{
	sigset_t old;
	int rc;

	cl_lock(cl, &old);
	r->dead = true;
	cl->moves++;
	cl_unlock(cl, &old);
	launch_wait(cl, r->addr, end_of(r));
	rc = bring_home(cl, r);
	/* Pages that mremap() has taken to where we do not know. */
	if (!rc && !is_idle(cl, r) && r->stray)
		rc = hmm_migrate_to_system(cl->mm, &cl->dev, 0, HMM_ADDR_END, NULL);
	/* Somebody may be about to put one into place. */
	for (unsigned i = 0; !rc && !is_idle(cl, r); i++) {
		if (i == NAPS)
			return -ENOMEM;
		nap();
	}
	if (!rc)
		region_free(cl, r);
	return rc;
}

int region_release(struct hmm_cl *cl, uint64_t start, uint64_t end)
{
	int rc = 0;

	for (unsigned id = 0; id < cl->nregions && !rc; id++) {
		struct region *r = cl->region[id];

		if (r && ((r->addr < end && end_of(r) > start) || r->stray))
			rc = region_end(cl, r);
	}
	return rc;
}

/* The one that has not been used for longest goes.  -ENOSPC: there is none. */
static int evict(struct hmm_cl *cl)
{
	struct region *worst = NULL;
	sigset_t old;
	int rc;

	for (unsigned id = 0; id < cl->nregions; id++) {
		struct region *r = cl->region[id];

		if (r && !r->wanted && (!worst || (r->kept == worst->kept ? r->used < worst->used : worst->kept)))
			worst = r;
	}
	if (!worst)
		return -ENOSPC;
	rc = region_end(cl, worst);
	cl_lock(cl, &old);
	cl->st.evictions += !rc;
	cl_unlock(cl, &old);
	return rc;
}

static bool is_aligned(const struct hmm_cl *cl, const struct region *r, uint64_t at)
{
	return r->base || (r->pad + (at - r->addr)) % cl->align == 0;
}

/*
 * Regions begin at different places of a page.  A kernel that walks through two of
 * them at once, as most do, would on a CPU have each read wait for the write
 * before it, whose address differs in the higher bits only (1.5 times as long).
 */
static size_t colour(const struct hmm_cl *cl, unsigned id)
{
	return COLOUR % cl->align ? 0 : (size_t)id * COLOUR % PAGE;
}

/*
 * Memory of this machine is used by the kernel and by who copies through huge pages
 * where there are any: a walk through it is faster by a tenth and more.  Not where
 * it may be part of malloc's heap, which would keep them when we are gone.
 */
static void want_huge(char *start, size_t bytes)
{
	uintptr_t a = ((uintptr_t)start + HUGE_BYTES - 1) & ~(HUGE_BYTES - 1);
	uintptr_t z = ((uintptr_t)start + bytes) & ~(HUGE_BYTES - 1);

	if (bytes > HEAP_MOST && z > a)
		madvise((void *)a, z - a, MADV_HUGEPAGE);
}

static cl_int piece_alloc(struct hmm_cl *cl, struct region *r)
{
	cl_int rc = CL_SUCCESS;

	if (cl->reach) {
		size_t room = r->gives ? HUGE_BYTES : r->pad;

		r->svm = clSVMAlloc(cl->context, CL_MEM_READ_WRITE | CL_MEM_SVM_FINE_GRAIN_BUFFER, room + r->bytes,
				    (cl_uint)cl->align);
		if (r->gives)
			r->pad = (r->addr - (uintptr_t)r->svm) % HUGE_BYTES;
		r->base = r->svm ? (char *)r->svm + r->pad : NULL;
		if (r->svm)
			want_huge(r->svm, r->pad + r->bytes);
		else
			rc = CL_MEM_OBJECT_ALLOCATION_FAILURE;
	} else {
		r->mem = clCreateBuffer(cl->context, CL_MEM_READ_WRITE, r->pad + r->bytes, NULL, &rc);
		if (rc)
			r->mem = NULL;
	}
	return rc;
}

/*
 * Memory of this machine is the device's for good before a kernel runs.  It may be
 * part of a mapping that is managed, and a kernel must not wait for a page there:
 * all who could serve it may be waiting for the kernel.
 */
static int piece_touch(struct hmm_cl *cl, struct region *r)
{
	int rc;

	if (!cl->unified)
		return 0;
	rc = region_zero(cl, r, 0, r->npages * PAGE);
	return rc || r->base ? rc : cl_errno(clFinish(cl->copies));
}

static int region_new(struct hmm_cl *cl, uint64_t start, uint64_t end, uint64_t at, struct region **rp)
{
	struct region *r;
	unsigned id = 0;
	sigset_t old;
	cl_int err;
	int rc;

	while (id < cl->nregions && cl->region[id])
		id++;
	if (id == REGIONS)
		return cl_fail(cl, -ENOSPC, "too many ranges on the device: use fewer and larger ones");
	r = umm_alloc(cl->space, sizeof(*r));
	if (!r)
		return -ENOMEM;
	r->id = id;
	r->addr = start;
	r->npages = (end - start) / PAGE;
	r->pad = colour(cl, id) + (cl->reach ? 0 : (size_t)(-(at - start) % cl->align));
	r->bytes = r->npages * PAGE;
	r->gives = cl->plain && r->bytes > HEAP_MOST && r->bytes + HUGE_BYTES <= cl->most;
	r->slot = umm_alloc(cl->space, r->npages * sizeof(*r->slot));
	r->nblocks = block_of(r, r->npages - 1) + 1;
	r->since = umm_alloc(cl->space, r->nblocks * sizeof(*r->since));
	r->empty = umm_alloc(cl->space, r->nblocks * sizeof(*r->empty));
	rc = -ENOMEM;
	if (!r->slot || !r->since || !r->empty)
		goto fail;
	rc = -ENOSPC;
	if (r->bytes > cl->limit || r->bytes > cl->most || r->npages > INDEX_MASK)
		goto no_room;
	while (cl->st.bytes_held + r->bytes > cl->limit) {
		rc = evict(cl);
		if (rc == -ENOSPC)
			goto no_room;
		if (rc)
			goto fail;
	}
	while ((err = piece_alloc(cl, r))) {
		rc = cl_failed(cl, err, "memory of the device");
		if (rc != -ENOMEM || evict(cl))
			goto fail;
	}
	rc = piece_touch(cl, r);
	if (rc) {
		rc = cl_fail(cl, rc, "memory of the device cannot be filled (error %d)", -rc);
		goto fail_piece;
	}
	cl_lock(cl, &old);
	cl->region[id] = r;
	if (id == cl->nregions)
		cl->nregions++;
	cl->st.bytes_held += r->bytes;
	cl_unlock(cl, &old);
	*rp = r;
	return 0;
no_room:
	cl_fail(cl, rc, "%llu MiB do not fit into the %llu MiB of the device: use less at a time",
		(unsigned long long)(r->bytes >> 20),
		(unsigned long long)((cl->limit < cl->most ? cl->limit : cl->most) >> 20));
	goto fail;
fail_piece:
	piece_free(cl, r);
fail:
	record_free(cl, r);
	return rc;
}

void region_turn(struct hmm_cl *cl)
{
	cl->clock++;
	for (unsigned id = 0; id < cl->nregions; id++)
		if (cl->region[id])
			cl->region[id]->wanted = false;
}

int region_get(struct hmm_cl *cl, uint64_t start, uint64_t end, uint64_t at, struct region **rp)
{
	struct region *best = NULL;
	int rc = 0;

	region_reap(cl);
	for (unsigned id = 0; id < cl->nregions; id++) {
		struct region *r = cl->region[id];

		if (r && r->addr <= start && end_of(r) >= end && !r->dead && !r->stray && is_aligned(cl, r, at) &&
		    (!best || r->used > best->used))
			best = r;
	}
	if (!best)
		rc = region_new(cl, start, end, at, &best);
	if (rc)
		return rc;
	best->used = cl->clock;
	best->kept = advice_at(cl, start, &end) == HMM_CL_HERE;
	best->wanted = true;
	*rp = best;
	return 0;
}

int region_fill(struct hmm_cl *cl, struct region *r, uint64_t first, uint64_t npages)
{
	for (uint64_t i = first; r->gives && i < first + npages; i++) {
		unsigned b = block_of(r, i);
		uint64_t start = (r->addr / HMM_WRITTEN_BLOCK + b) * HMM_WRITTEN_BLOCK;
		bool empty;
		sigset_t old;

		cl_lock(cl, &old);
		empty = r->empty[b];
		r->empty[b] = false;
		cl_unlock(cl, &old);
		/* Blocks that go are whole. */
		if (empty && madvise(r->base + (start - r->addr), HMM_WRITTEN_BLOCK, MADV_POPULATE_WRITE)) {
			cl_lock(cl, &old);
			r->empty[b] = true;
			cl_unlock(cl, &old);
			return -ENOMEM;
		}
		i = (start + HMM_WRITTEN_BLOCK - r->addr) / PAGE - 1;
	}
	return 0;
}

int region_write(struct hmm_cl *cl, struct region *r, uint64_t offset, const void *src, size_t n)
{
	if (r->base) {
		memcpy(r->base + offset, src, n);
		return 0;
	}
	return cl_errno(clEnqueueWriteBuffer(cl->copies, r->mem, CL_FALSE, r->pad + offset, n, src, 0, NULL, NULL));
}

int region_read(struct hmm_cl *cl, struct region *r, uint64_t offset, void *dst, size_t n)
{
	if (r->base) {
		memcpy(dst, r->base + offset, n);
		return 0;
	}
	return cl_errno(clEnqueueReadBuffer(cl->copies, r->mem, CL_TRUE, r->pad + offset, n, dst, 0, NULL, NULL));
}

int region_zero(struct hmm_cl *cl, struct region *r, uint64_t offset, size_t n)
{
	const cl_uchar zero = 0;

	if (r->base) {
		memset(r->base + offset, 0, n);
		return 0;
	}
	return cl_errno(clEnqueueFillBuffer(cl->copies, r->mem, &zero, 1, r->pad + offset, n, 0, NULL, NULL));
}
