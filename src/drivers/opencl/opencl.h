/* SPDX-License-Identifier: MIT */
/*
 * What the files of the OpenCL driver share.
 *
 * DOC: regions
 *
 * A kernel sees a range as one piece, so the device's memory is given out in
 * regions: a contiguous piece for a range of addresses, with a slot for each
 * page.  A page that is on the device is in the slot of its address, nowhere
 * else; its handle names region and slot.  A slot without the page may have a
 * copy of it, good for kernels that only read as long as nobody has written to
 * the page.  Regions may overlap; then the page is in one of them.  After mremap()
 * addresses and slots no longer fit: the region is stray then, is used for no
 * kernel any more, and ends when all its pages have come home.
 *
 * DOC: locking
 *
 *	gate (launch, prefetch, eviction, release: one at a time) -> lock
 *
 * "gate" is held across faults, migrations and the runtime's calls, so it is one
 * of the outer locks of the house.  "lock" is what the engine's operations and
 * callbacks take: under it nothing is called but umm_alloc() and its like, and
 * signals are blocked.  Only who has the gate puts anything into slots.
 */
#ifndef HMM_OPENCL_H
#define HMM_OPENCL_H

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>

#include "hmm_cl.h"

#define PAGE ((uint64_t)HMM_PAGE_SIZE)
#define HUGE_BYTES ((uint64_t)2 << 20)
#define REGIONS 4096u
#define INDEX_BITS 26
#define INDEX_MASK (((uint64_t)1 << INDEX_BITS) - 1)
#define ARGS 64u
#define ACCESS_ALL 4u /* the bit of HMM_CL_WRITE_ALL */
#define STAGE_PAGES HMM_BATCH_MAX
#define BACK_BYTES ((size_t)256 << 10)

#define SLOT_PIECE 0x01u /* filled for the launch that is being prepared, and to be copied back */
#define SLOT_GONE 0x02u  /* the page it has may not be that of its address any more: find_out() */
#define SLOT_LENT 0x04u  /* it may be gone at any moment, its memory with it: no kernel may begin */
#define SLOT_LOST 0x08u  /* of a piece: what was there has gone meanwhile, and nothing is copied back to it */

struct slot {
	uint16_t refs;  /* of the page; 0: it is not here */
	uint8_t copied; /* not 0: somebody has read it who may put it into place, or has: see launch.c */
	uint8_t flags;  /* SLOT_* */
	uint32_t gets;  /* references ever taken */
	uint64_t copy;  /* not 0: it has what the page had at that stamp */
	uint64_t at;    /* the stamp that is given to what was read first, since "copied" was 0 */
};

struct region {
	unsigned id;
	uint64_t addr;
	uint64_t npages;
	size_t pad; /* bytes of the piece before the first slot */
	cl_mem mem; /* or */
	char *base; /* of the first slot, where the CPU reaches it; else NULL */
	void *svm;
	uint64_t bytes; /* of the device's memory */
	bool kept;      /* goes after all others */
	uint64_t used;  /* the launch that used it last */
	uint64_t live;  /* slots with references */
	bool wanted;    /* by the launch that is being prepared; gate */
	bool stray, dead;
	struct slot *slot;
	/* Of each HMM_WRITTEN_BLOCK that it meets; lock */
	uint64_t *since; /* no slot's copy is of an earlier stamp */
	bool *empty;     /* the memory of its slots has left with the pages, see device_lend() */
	bool gives;      /* those blocks are where huge pages are, as their addresses */
	unsigned nblocks;
};

struct use {
	struct region *region;
	uint64_t first, npages; /* slots */
	uint64_t start, end;    /* addresses, whole pages */
	bool write;
	bool home; /* is to go home when the kernel has ended */
};

/* Bytes that a kernel writes in a slot whose page has not moved: they are copied back when it has ended. */
struct piece {
	uint64_t addr, len;
	struct region *region;
};

struct launch {
	struct launch *next;
	struct hmm_cl *cl;
	unsigned nuses;
	struct use use[ARGS];
	struct piece *piece;
	unsigned npieces, room;
	/* lock */
	bool begun; /* the kernel is in the queue; gate */
	bool queued;
	bool ran;  /* the kernel has ended */
	bool done; /* and what is to be copied back has been */
	cl_int status;
	cl_event kernel_event, user_event;
};

#define SVM_MAX 256u

struct svm {
	struct svm *next;
	char *base;
	size_t size;
	bool fine;
};

struct advice {
	uint64_t start, end;
	unsigned advice;
};

struct hmm_cl {
	struct hmm_device dev; /* first */
	struct umm_space *space;
	struct hmm_mm *mm;
	struct umm_notifier notifier;
	cl_device_id device;
	cl_context context;
	cl_command_queue queue, copies;
	bool copying; /* HMM_CL_COPIES */
	bool unified; /* its memory is this machine's */
	bool reach;   /* the CPU reads and writes the device's memory as its own */
	bool plain;   /* and it is memory like any other of this process, that comes and goes in pages */
	size_t align;
	uint64_t limit, most; /* bytes, in all and in one piece */

	pthread_mutex_t gate;
	uint64_t clock;
	struct hmm_migrate *m;
	uint64_t *stamp; /* of hmm_written_since(), and two more for each block; nstamps in all */
	uint64_t nstamps;
	_Atomic uint64_t now; /* of the last hmm_written_since() */
	char *stage;          /* STAGE_PAGES pages that cannot be away, for copies through the runtime */
	char *back;           /* BACK_BYTES, likewise; the worker's */
	char line[160];
	struct svm *svm;
	struct advice *advice;
	unsigned nadvices, advices_room;

	pthread_mutex_t lock; /* what follows */
	pthread_cond_t changed;
	struct region *region[REGIONS];
	unsigned nregions;     /* none is at this number or above */
	struct launch *active; /* the latest first */
	uint64_t moves;        /* changes of what is in which slot: see launch.c */
	bool failed;
	bool stop;
	struct hmm_cl_stats st;

	pthread_t worker, waiter;
	struct hmm_cl *next; /* all that are open; fork.c */
};

struct arg {
	bool set, svm;
	const char *pointer;
	size_t length;
	unsigned access;
};

struct hmm_cl_kernel {
	struct hmm_cl *cl;
	cl_kernel kernel;
	unsigned nargs, nsubs;
	struct arg arg[ARGS];
	cl_mem sub[ARGS]; /* while it is launched; gate */
	/* gate: how it was launched last, good as long as nothing has moved */
	bool ready;
	uint64_t moves;
	struct region *region[ARGS]; /* of each group */
	bool absent[ARGS];           /* of each argument: none of its pages is on the device */
};

static inline bool access_is_good(unsigned access)
{
	return (access && !(access & ~HMM_CL_READ_WRITE)) || access == HMM_CL_WRITE_ALL;
}

static inline struct hmm_cl *cl_of(struct hmm_device *dev)
{
	return (struct hmm_cl *)dev;
}

static inline hmm_handle_t handle_of(const struct region *r, uint64_t index)
{
	return (hmm_handle_t)r->id << INDEX_BITS | index;
}

static inline uint64_t page_down(uint64_t addr)
{
	return addr & ~(PAGE - 1);
}

static inline uint64_t page_up(uint64_t addr)
{
	return page_down(addr + PAGE - 1);
}

/* Which of the region's blocks slot @i is in. */
static inline unsigned block_of(const struct region *r, uint64_t i)
{
	return (unsigned)((r->addr + i * PAGE) / HMM_WRITTEN_BLOCK - r->addr / HMM_WRITTEN_BLOCK);
}

/* Lock held.  Slot @i has what its page had at stamp @copy; 0: it has not. */
static inline void slot_has(struct region *r, uint64_t i, uint64_t copy)
{
	uint64_t *since = &r->since[block_of(r, i)];

	r->slot[i].copy = copy;
	*since = copy < *since ? copy : *since;
}

/* A handler that touched a page would wait for the thread that it has interrupted. */
static inline void cl_lock(struct hmm_cl *cl, sigset_t *old)
{
	sigset_t all;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, old);
	pthread_mutex_lock(&cl->lock);
}

static inline void cl_unlock(struct hmm_cl *cl, const sigset_t *old)
{
	pthread_mutex_unlock(&cl->lock);
	pthread_sigmask(SIG_SETMASK, old, NULL);
}

/* device.c */
/** Note an error for hmm_cl_message(), under the gate, before anybody has @cl, or as the worker; returns @rc. */
__attribute__((format(printf, 3, 4))) int cl_fail(struct hmm_cl *cl, int rc, const char *fmt, ...);
/** The same for an error of OpenCL; returns -errno. */
int cl_failed(struct hmm_cl *cl, cl_int rc, const char *what);
int cl_errno(cl_int rc);
extern const struct hmm_device_ops cl_ops;

/* advise.c; gate held */
/** What was said of @addr; lowers @end to where that ends. */
unsigned advice_at(struct hmm_cl *cl, uint64_t addr, uint64_t *end);

/* svm.c; gate held */
bool svm_has(struct hmm_cl *cl, const void *p);
/** Around a kernel in the queue; @event becomes that of the last that must be over. */
cl_int svm_before(struct hmm_cl *cl, cl_kernel kernel);
cl_int svm_after(struct hmm_cl *cl, cl_event *event);

/* region.c; gate held */
/** A new launch, or what else wants regions: those that it gets from here on will not be evicted for others. */
void region_turn(struct hmm_cl *cl);
/** A region for the pages of [@start, @end), the pointer @at of which is to be aligned.  0 or -errno. */
int region_get(struct hmm_cl *cl, uint64_t start, uint64_t end, uint64_t at, struct region **rp);
/** All that meets [@start, @end) comes home and ends.  0 or -ENOMEM. */
int region_release(struct hmm_cl *cl, uint64_t start, uint64_t end);
void region_reap(struct hmm_cl *cl);
/** There is memory behind slots [@first, @first + @npages).  0 or -ENOMEM. */
int region_fill(struct hmm_cl *cl, struct region *r, uint64_t first, uint64_t npages);
/** Write the @n bytes at @src, which cannot be away, to @offset of the region; or the other way. */
int region_write(struct hmm_cl *cl, struct region *r, uint64_t offset, const void *src, size_t n);
/** Zeros, likewise. */
int region_zero(struct hmm_cl *cl, struct region *r, uint64_t offset, size_t n);
int region_read(struct hmm_cl *cl, struct region *r, uint64_t offset, void *dst, size_t n);

/* bring.c; gate held */
/** The pages of [@start, @end) move to the region; @bare: without what is in them. */
int bring_move(struct hmm_cl *cl, struct region *r, uint64_t start, uint64_t end, bool bare);
/** What of [@start, @end) is mostly read and on the device goes home, and stays here as a copy. */
int bring_shared(struct hmm_cl *cl, uint64_t start, uint64_t end);
/** What of [@start, @end), bytes, none of which has moved, the CPU has written to is copied. */
int bring_again(struct hmm_cl *cl, struct region *r, uint64_t start, uint64_t end);
/** What of [@start, @end), bytes, has not moved is copied; where @l, it is entered as pieces. */
int bring_copy(struct hmm_cl *cl, struct region *r, uint64_t start, uint64_t end, struct launch *l);

/* launch.c */
/** Is all of [@start, @end), bytes, readable, and writable where @write?  0, -EFAULT, -EPERM. */
int check_mapped(struct hmm_cl *cl, uint64_t start, uint64_t end, bool write);
/** Lock held: is a kernel at work, or about to be, that uses (or @writes to) slots of @r? */
bool launch_uses(struct hmm_cl *cl, const struct region *r, uint64_t first, uint64_t npages, bool writes);
/** Wait until nothing runs that uses [@start, @end). */
void launch_wait(struct hmm_cl *cl, uint64_t start, uint64_t end);
/** Wait until nothing is still to be copied back to pages of [@start, @end). */
void launch_wait_back(struct hmm_cl *cl, uint64_t start, uint64_t end);
/** Lock held: is anything under way, its copying back included, that uses (or @writes to) [@start, @end)? */
bool launch_meets(struct hmm_cl *cl, uint64_t start, uint64_t end, bool writes);
/** Two threads of a device: one copies back what has run, one waits for what is in the queue. */
void *launch_worker(void *arg);
void *launch_waiter(void *arg);

/* fork.c */
void fork_add(struct hmm_cl *cl);
void fork_del(struct hmm_cl *cl);

#endif
