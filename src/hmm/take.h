/* SPDX-License-Identifier: MIT */
/* Taking pages out of mappings that UFFDIO_MOVE refuses.  The linked engine's. */
#ifndef HMM_TAKE_H
#define HMM_TAKE_H

#include "hmm/internal.h"

/* Memory of our own that stands where private pages of a file were; see take.c. */
struct hmm_stand_in {
	uint64_t start, end, offset; /* in the file, of start */
	uint64_t dev, inode;
	int fd;
};

struct hmm_take {
	struct hmm_mm *mm;
	char *away;            /* where read-only pages go: address space of the arena, a run long */
	char *held;            /* and from there, so that nobody can have them pinned any more */
	char *empty;           /* what is put in place of a file's: registered, and never touched */
	int prot;              /* of that; 0: it is not there yet */
	int pipe[2];           /* -1: none yet */
	uint64_t pipe_dev, pipe_inode;
	struct hmm_iset plain; /* out_lock: mappings that a stand-in can stand for, as of the batch */
	/* Under the event lock: the run that is being taken. */
	bool active, returns;
	uint64_t start, end;
	const char *contents; /* of that run, for a forked child; NULL: they are not to be had */
	/* mm->lock */
	struct hmm_stand_in *file;
	unsigned nfiles, room;
};

/** 0 or -ENOMEM. */
int hmm_take_init(struct hmm_take *t, struct hmm_mm *mm);
void hmm_take_fini(struct hmm_take *t);
/** In a forked child: the pipe is closed.  The list of stand-ins is not here, and their files stay open. */
void hmm_take_abandon(struct hmm_take *t);

/** Is it of those that UFFDIO_MOVE refuses and hmm_take_run() may not? */
bool hmm_take_readonly(const struct umm_vma *v);
bool hmm_take_file(const struct umm_vma *v);

/**
 * hmm_take_offer() - the private pages of files in [@start, @end) count as registered from here on.
 *
 * Under out_lock; hmm_take_run() of the same batch makes it so.  0, -ENOMEM, or -EBUSY: another userfaultfd has some.
 */
int hmm_take_offer(struct hmm_take *t, uint64_t start, uint64_t end);

/** hmm_take_withdraw() - after the batch: what is still a file's is not. */
void hmm_take_withdraw(struct hmm_take *t, uint64_t start, uint64_t end);

/**
 * hmm_take_run() - carry out run @r of batch @b, which lies in @v, as umm_inside_move() would.
 * @window: of the run.
 *
 * Under out_lock and the layout lock exclusively; may sleep until an event is read.
 */
void hmm_take_run(struct hmm_take *t, unsigned b, unsigned r, const struct umm_vma *v, char *window);

/** Event lock held exclusively.  True: the change is our own, and is not to be followed. */
bool hmm_take_change(struct hmm_take *t, const struct umm_change *c);

/**
 * hmm_take_child() - may a child that was forked at this moment lack the page at @addr?
 * @page: out, its contents; NULL: nobody can say.
 *
 * Event lock held exclusively.
 */
bool hmm_take_child(const struct hmm_take *t, uint64_t addr, const void **page);

/**
 * hmm_take_fault() - a page of a stand-in that was dropped is the file's again.
 *
 * Returns 0: placed; -EAGAIN as a fault; -ENOENT: it is none of those.
 */
int hmm_take_fault(struct hmm_take *t, const struct umm_fault *f);

/** hmm_take_stands_in() - is something that is not there in [@start, @end) a file's?  mm->lock not held. */
bool hmm_take_stands_in(struct hmm_take *t, uint64_t start, uint64_t end);

#endif
