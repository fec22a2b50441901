/* SPDX-License-Identifier: MIT */
/* What must be done from inside an address space.  No libc: the agent links this. */
#ifndef UMM_INSIDE_H
#define UMM_INSIDE_H

#include "umm/ctl.h"

/** Where the inside puts what it takes. */
struct umm_inside {
	int uffd;
	struct umm_ctl *ctl;
	char *staging; /* UMM_BATCHES * UMM_BATCH_PAGES pages, registered with uffd, empty */
	char *window;  /* as many pages that the engine reads; NULL: it reads staging, see umm_inside_release() */
	bool kept[UMM_BATCHES];  /* staging of that batch is not empty */
	bool no_pins;            /* the pin lock is not to be had: what is left of the batch stays */
	bool (*gone)(void *arg); /* is whoever may hold the event lock dead?  NULL: never */
	void *arg;
};

/**
 * umm_inside_move() - carry out batch @b of the control block.
 *
 * Publishes the result of each run as it goes; when it returns, staging is
 * empty again, if there is a window, and the batch is done.
 */
void umm_inside_move(struct umm_inside *in, unsigned b);

/** umm_inside_release() - where there is no window: nobody reads batch @b's staging any more. */
void umm_inside_release(struct umm_inside *in, unsigned b);

/**
 * umm_inside_registered() - is the mapping at @addr, private and anonymous, registered, with @uffd or another?
 *
 * Changes nothing: the kernel looks for a registered mapping before it finds that
 * UFFDIO_CONTINUE is not for such memory.  Returns 0; -ENOENT when it is not;
 * -EAGAIN while an event is pending: then it may be either.
 */
int umm_inside_registered(int uffd, uint64_t addr);

/** umm_inside_uffd() - a userfaultfd of the caller's address space, features not yet agreed; or -errno. */
int umm_inside_uffd(void);
/** umm_inside_uffd_by() - the same by /dev/userfaultfd, opened by whoever may (test/kernel/uffd_device_is_lent.c). */
int umm_inside_uffd_by(int dev);
/**
 * umm_inside_gone() - pages of @npages from @src on that are at @dst instead, after a MOVE that says it stopped there
 * @rc: what it says of the first of them, -EEXIST for one; 0: nothing
 *
 * In one's own address space; nothing was at @dst before.
 */
unsigned umm_inside_gone(uint64_t dst, uint64_t src, unsigned npages, int rc);

#endif
