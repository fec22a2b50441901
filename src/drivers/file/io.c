/* SPDX-License-Identifier: MIT */
#include "drivers/file/io.h"

#include <errno.h>
#include <sched.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE HMM_PAGE_SIZE
#define BOUNCE ((size_t)HMM_BATCH_MAX * PAGE)

/* What the kernel keeps for a ring of ours: entries of 64 and 2 x 16 bytes, and heads. */
#define RING_BYTES (FILE_RING_ENTRIES * 96u + 4096u)

static size_t xfer_bytes(void)
{
	return (sizeof(struct file_xfer) + 4095) & ~(size_t)4095;
}

void file_io_init(struct file_io *io, struct drv_ram *ram, int fd)
{
	long cpus = sysconf(_SC_NPROCESSORS_ONLN);

	*io = (struct file_io){.ram = ram, .fd = fd};
	/* Those that serve faults, those that read ahead of a walk, and who writes: a disk does many things at a time.
	 */
	io->max = cpus < FILE_XFERS ? FILE_XFERS : FILE_XFERS_MAX;
	pthread_mutex_init(&io->lock, NULL);
	pthread_cond_init(&io->freed, NULL);
}

static void xfer_free(struct file_io *io, struct file_xfer *x)
{
	if (x->have_ring)
		io_uring_queue_exit(&x->ring);
	drv_ram_uncharge(io->ram, x->ring_bytes);
	munmap(x->bounce, BOUNCE);
	drv_ram_uncharge(io->ram, xfer_bytes() + (uint64_t)x->bounced * PAGE);
	munmap(x, xfer_bytes());
}

void file_io_exit(struct file_io *io)
{
	while (io->idle) {
		struct file_xfer *x = io->idle;

		io->idle = x->next;
		xfer_free(io, x);
	}
	pthread_cond_destroy(&io->freed);
	pthread_mutex_destroy(&io->lock);
}

static struct file_xfer *xfer_new(struct file_io *io, bool ring)
{
	struct file_xfer *x = drv_map(xfer_bytes());

	if (!x)
		return NULL;
	x->bounce = drv_map(BOUNCE);
	if (!x->bounce) {
		munmap(x, xfer_bytes());
		return NULL;
	}
	x->fd = io->fd;
	drv_ram_charge(io->ram, xfer_bytes());
	if (ring && !io_uring_queue_init(FILE_RING_ENTRIES, &x->ring, 0)) {
		x->have_ring = true;
		x->ring_bytes = RING_BYTES;
		drv_ram_charge(io->ram, x->ring_bytes);
	}
	return x;
}

struct file_xfer *file_io_get(struct file_io *io)
{
	struct file_xfer *x = NULL;
	bool ring;

	pthread_mutex_lock(&io->lock);
	while (!io->idle && io->nr >= io->max)
		pthread_cond_wait(&io->freed, &io->lock);
	if (io->idle)
		goto take;
	io->nr++;
	ring = !io->no_ring;
	pthread_mutex_unlock(&io->lock);

	x = xfer_new(io, ring);
	pthread_mutex_lock(&io->lock);
	if (x) {
		io->no_ring |= ring && !x->have_ring;
		goto out;
	}
	io->nr--;
	pthread_cond_broadcast(&io->freed);
	/* No memory for one more: what can be read will be, as soon as somebody is through. */
	while (!io->idle && io->nr)
		pthread_cond_wait(&io->freed, &io->lock);
take:
	x = io->idle;
	if (x)
		io->idle = x->next;
out:
	pthread_mutex_unlock(&io->lock);
	return x;
}

void file_io_put(struct file_io *io, struct file_xfer *x)
{
	pthread_mutex_lock(&io->lock);
	x->next = io->idle;
	io->idle = x;
	pthread_cond_signal(&io->freed);
	pthread_mutex_unlock(&io->lock);
}

size_t file_io_trim(struct file_io *io)
{
	size_t given = 0;

	pthread_mutex_lock(&io->lock);
	for (struct file_xfer *x = io->idle; x; x = x->next) {
		if (!x->bounced)
			continue;
		madvise(x->bounce, BOUNCE, MADV_DONTNEED);
		drv_ram_uncharge(io->ram, (uint64_t)x->bounced * PAGE);
		given += (size_t)x->bounced * PAGE;
		x->bounced = 0;
	}
	pthread_mutex_unlock(&io->lock);
	return given;
}

void *file_xfer_bounce(struct file_io *io, struct file_xfer *x, unsigned i)
{
	if (i >= x->bounced) {
		drv_ram_charge(io->ram, (uint64_t)(i + 1 - x->bounced) * PAGE);
		x->bounced = i + 1;
	}
	return x->bounce + (size_t)i * PAGE;
}

/* ---------------------------------------------------------------- transfer */

void file_xfer_begin(struct file_xfer *x, bool write)
{
	x->write = write;
	x->nr_req = x->nr_iov = x->nr_page = 0;
	x->queued = x->submitted = x->reaped = 0;
}

void file_xfer_page(struct file_xfer *x, uint64_t slot, void *buffer)
{
	struct file_req *req = x->nr_req ? &x->req[x->nr_req - 1] : NULL;
	struct iovec *iov;

	if (!req || slot != req->slot + req->pages) {
		req = &x->req[x->nr_req++];
		*req = (struct file_req){.slot = slot, .page = (uint16_t)x->nr_page, .iov = (uint16_t)x->nr_iov};
	}
	iov = req->iovs ? &x->iov[x->nr_iov - 1] : NULL;
	if (iov && (char *)iov->iov_base + iov->iov_len == buffer) {
		iov->iov_len += PAGE;
	} else {
		x->iov[x->nr_iov++] = (struct iovec){.iov_base = buffer, .iov_len = PAGE};
		req->iovs++;
	}
	req->pages++;
	x->nr_page++;
}

static int sync_iov(struct file_xfer *x, const struct iovec *iov, unsigned n, uint64_t slot)
{
	ssize_t rc;

	do {
		if (x->write)
			rc = pwritev(x->fd, iov, (int)n, (off_t)(slot * PAGE));
		else
			rc = preadv(x->fd, iov, (int)n, (off_t)(slot * PAGE));
	} while (rc < 0 && errno == EINTR);
	return rc < 0 ? -errno : (int)rc;
}

int file_xfer_sync(struct file_xfer *x, const struct file_req *req, void *buffer, unsigned first)
{
	struct iovec iov = {.iov_base = buffer, .iov_len = PAGE};

	return sync_iov(x, &iov, 1, req->slot + first);
}

static void queue(struct file_xfer *x)
{
	while (x->queued < x->nr_req && x->queued - x->reaped < FILE_RING_ENTRIES) {
		struct io_uring_sqe *sqe = io_uring_get_sqe(&x->ring);
		struct file_req *req = &x->req[x->queued];

		if (!sqe)
			break;
		if (x->write)
			io_uring_prep_writev(sqe, x->fd, &x->iov[req->iov], req->iovs, req->slot * PAGE);
		else
			io_uring_prep_readv(sqe, x->fd, &x->iov[req->iov], req->iovs, req->slot * PAGE);
		sqe->user_data = x->queued++;
	}
}

static void reap(struct file_xfer *x)
{
	struct io_uring_cqe *cqe;

	while (!io_uring_peek_cqe(&x->ring, &cqe)) {
		x->req[cqe->user_data].res = cqe->res;
		io_uring_cqe_seen(&x->ring, cqe);
		x->reaped++;
	}
}

/* Requests go to the kernel in order, so what it has not taken is a tail. */
static bool enter(struct file_xfer *x, unsigned wait)
{
	int rc = io_uring_submit_and_wait(&x->ring, wait);

	if (rc >= 0)
		x->submitted += (unsigned)rc;
	reap(x);
	if (rc >= 0 || rc == -EINTR)
		return true;
	/* Short of memory for requests: while some are under way, their end makes room. */
	return (rc == -EAGAIN || rc == -EBUSY) && x->reaped < x->submitted;
}

/* What somebody waits for and is one request is sooner there by a call that sleeps until then. */
static bool through_ring(const struct file_xfer *x)
{
	return x->have_ring && (x->write || x->nr_req > 1);
}

void file_xfer_submit(struct file_xfer *x)
{
	if (!through_ring(x))
		return;
	queue(x);
	/* A failure shows again, and is dealt with, in file_xfer_wait(). */
	enter(x, 0);
}

void file_xfer_wait(struct file_xfer *x)
{
	unsigned done = 0;

	if (through_ring(x)) {
		while (x->reaped < x->nr_req) {
			queue(x);
			if (!enter(x, 1)) {
				/* The buffers are the kernel's until all that it took is done. */
				while (x->reaped < x->submitted) {
					sched_yield();
					reap(x);
				}
				io_uring_queue_exit(&x->ring);
				x->have_ring = false;
				break;
			}
		}
		done = x->have_ring ? x->nr_req : x->submitted;
	}
	for (unsigned i = 0; i < x->nr_req; i++) {
		struct file_req *req = &x->req[i];

		if (i >= done || req->res == -EAGAIN || req->res == -EINTR)
			req->res = sync_iov(x, &x->iov[req->iov], req->iovs, req->slot);
	}
}
