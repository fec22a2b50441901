/* SPDX-License-Identifier: MIT */
/*
 * Reading and writing slots: a few rings, each used by one thread at a time.
 *
 * DOC: one transfer
 *
 *	x = file_io_get(io)
 *	file_xfer_begin(x, write), file_xfer_page(x, slot, buffer) ...
 *	file_xfer_submit(x)	starts what fits into the ring: the caller may
 *				compute something meanwhile
 *	file_xfer_wait(x)	all is done, and nothing touches a buffer any more
 *	look at x->req[]
 *	file_io_put(io, x)
 *
 * Neighbouring slots that follow each other become one request.  Where
 * io_uring is refused (containers do), the same is done by preadv and pwritev.
 */
#ifndef HMM_FILE_IO_H
#define HMM_FILE_IO_H

#include <liburing.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "drivers/area.h"
#include "hmm.h"

#define FILE_XFERS 8      /* at a time, */
#define FILE_XFERS_MAX 16 /* with many CPUs */
#define FILE_RING_ENTRIES 128u

struct file_req {
	uint64_t slot;
	uint16_t page; /* first in the batch */
	uint16_t pages;
	uint16_t iov;
	uint16_t iovs;
	int res; /* bytes or -errno */
};

struct file_xfer {
	struct file_xfer *next;
	struct io_uring ring;
	bool have_ring;
	uint32_t ring_bytes; /* charged for it */
	bool write;
	int fd;
	unsigned nr_req, nr_iov, nr_page;
	unsigned queued, submitted, reaped; /* requests */
	uint8_t *bounce;                    /* HMM_BATCH_MAX pages of addresses */
	unsigned bounced;                   /* of these: pages that were ever used */
	struct file_req req[HMM_BATCH_MAX];
	struct iovec iov[HMM_BATCH_MAX];
};

struct file_io {
	struct drv_ram *ram;
	int fd;
	pthread_mutex_t lock;
	pthread_cond_t freed;
	struct file_xfer *idle;
	unsigned nr, max;
	bool no_ring; /* refused once: not asked for again */
};

void file_io_init(struct file_io *io, struct drv_ram *ram, int fd);
void file_io_exit(struct file_io *io);

/**
 * file_io_get() - one for this thread alone; waits while all are in use
 *
 * NULL: out of memory, and there is none at all, so that nothing has ever been written.
 */
struct file_xfer *file_io_get(struct file_io *io);
void file_io_put(struct file_io *io, struct file_xfer *x);

/** file_io_trim() - release the memory of idle bounce buffers.  Returns bytes. */
size_t file_io_trim(struct file_io *io);

/** file_xfer_bounce() - an aligned page for the @i-th of a batch. */
void *file_xfer_bounce(struct file_io *io, struct file_xfer *x, unsigned i);

void file_xfer_begin(struct file_xfer *x, bool write);
void file_xfer_page(struct file_xfer *x, uint64_t slot, void *buffer);
void file_xfer_submit(struct file_xfer *x);
void file_xfer_wait(struct file_xfer *x);

/** file_xfer_sync() - part of a request again, without the ring: @n pages from its @first.  Bytes or -errno. */
int file_xfer_sync(struct file_xfer *x, const struct file_req *req, void *buffer, unsigned first);

#endif
