/* SPDX-License-Identifier: MIT */
/*
 * hmm_rdma.h, the side of who wants memory of another.
 *
 * DOC: whose memory
 *
 * A provider that needs buffers registered gets one of ours, and data are copied
 * out of it and into it.  Others receive into the caller's memory and send from
 * it.  It is asked for first (MADV_POPULATE_...), so that a pointer which is not
 * the caller's is an error and no crash; who unmaps it during the call has the
 * same coming as with memcpy().
 *
 * What is under way when the deadline passes goes on writing to the caller's
 * memory, unless the connection ends: so it does.
 *
 * "lock" is held across a call, and taken by nobody else's.
 */
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "drivers/driver.h"
#include "drivers/ofi/ep.h"
#include "drivers/ofi/rdma.h"

struct buffers {
	char chunk[RDMA_WINDOW][RDMA_CHUNK];
	struct rdma_request request;
	struct rdma_reply reply;
};

struct hmm_rdma_peer {
	pthread_mutex_t lock;
	bool ended;
	struct ofi_net net;
	struct ofi_ep ep;
	struct ofi_buf mem;
	struct buffers *buf; /* in it */
	struct ofi_op op[RDMA_WINDOW], reply;
};

static void *desc(const struct hmm_rdma_peer *p)
{
	return ofi_mr_desc(p->mem.mr);
}

/* One transfer: chunk after chunk, RDMA_WINDOW of them under way.  Without a place of its own it goes to ours. */
struct transfer {
	struct hmm_rdma_peer *p;
	char *local;
	uint64_t len, deadline_ns;
	unsigned begun; /* chunks */
};

static uint64_t nchunks(uint64_t len)
{
	return (len + RDMA_CHUNK - 1) / RDMA_CHUNK;
}

/* Where chunk @i goes, or comes from. */
static char *place(const struct transfer *t, uint64_t i)
{
	return t->p->mem.mr || !t->local ? t->p->buf->chunk[i % RDMA_WINDOW] : t->local + i * RDMA_CHUNK;
}

static size_t size(const struct transfer *t, uint64_t i)
{
	return rdma_chunk(t->len - i * RDMA_CHUNK);
}

static int begin_request(struct hmm_rdma_peer *p, uint32_t op, const struct hmm_rdma_token *token, uint64_t remote,
			 uint64_t len, unsigned access, uint64_t deadline_ns)
{
	uint64_t now = ofi_now_ns(), left = deadline_ns > now ? deadline_ns - now : 0;
	p->ep.polls = len <= RDMA_POLLS_MOST;
	/* The owner's answer that it took too long has to be here in time. */
	p->buf->request = (struct rdma_request){.magic = RDMA_MAGIC,
						.op = op,
						.token = *token,
						.addr = remote,
						.len = len,
						.patience_ns = left - left / 8,
						.access = access};
	return ofi_inject(&p->ep, &p->buf->request, sizeof(p->buf->request), desc(p), deadline_ns);
}

static int begin_reply(struct hmm_rdma_peer *p, uint64_t deadline_ns)
{
	return ofi_post_recv(&p->ep, &p->buf->reply, sizeof(p->buf->reply), desc(p), &p->reply, deadline_ns);
}

/* What the owner says, in *@result. */
static int end_reply(struct hmm_rdma_peer *p, int *result, uint64_t deadline_ns)
{
	int rc = ofi_wait(&p->ep, &p->reply, deadline_ns);

	if (rc)
		return rc;
	if (p->reply.len != sizeof(p->buf->reply) || p->buf->reply.magic != RDMA_MAGIC || p->buf->reply.rc > 0 ||
	    p->buf->reply.rc < -4095)
		return -EPROTO;
	*result = p->buf->reply.rc;
	return 0;
}

static int receive_more(struct transfer *t)
{
	uint64_t i = t->begun;
	int rc = ofi_post_recv(&t->p->ep, place(t, i), size(t, i), desc(t->p), &t->p->op[i % RDMA_WINDOW],
			       t->deadline_ns);

	t->begun += !rc;
	return rc;
}

static int populate(uint64_t start, uint64_t stop, bool write)
{
	while (madvise((void *)(uintptr_t)start, stop - start, write ? MADV_POPULATE_WRITE : MADV_POPULATE_READ))
		if (errno != EAGAIN && errno != EINTR)
			return -errno;
	return 0;
}

/*
 * EINVAL, at some page: memory of a special kind, of which nothing else is said, or what may not be used so.  Which
 * it is its mapping tells; and what is behind it is looked at, too.
 */
static int check_each(uint64_t at, uint64_t stop, bool write)
{
	FILE *maps = fopen("/proc/self/maps", "re");
	char *line = NULL, perms[5];
	uint64_t start, end;
	size_t room = 0;
	int rc = 0;

	while (maps && !rc && at < stop && getline(&line, &room, maps) > 0) {
		if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %4s", &start, &end, perms) != 3 || end <= at)
			continue;
		if (start > at || (perms[1] != 'w' && (write || perms[0] != 'r')))
			break;
		if (end > stop)
			end = stop;
		rc = populate(at, end, write);
		if (rc == -EINVAL)
			rc = 0;
		at = end;
	}
	free(line);
	if (maps)
		fclose(maps);
	return rc || at < stop ? -EFAULT : 0;
}

/* Is it the caller's, and there? */
static int local_check(const void *local, size_t len, bool write)
{
	uint64_t start = (uintptr_t)local & ~(uint64_t)(HMM_PAGE_SIZE - 1);
	uint64_t stop = ((uintptr_t)local + len + HMM_PAGE_SIZE - 1) & ~(uint64_t)(HMM_PAGE_SIZE - 1);

	int rc;

	if (stop <= start)
		return -EFAULT;
	rc = populate(start, stop, write);
	if (rc == -EINVAL)
		return check_each(start, stop, write);
	return rc ? -EFAULT : 0;
}

static int do_read(struct transfer *t, const struct hmm_rdma_token *token, uint64_t remote, int *result)
{
	struct hmm_rdma_peer *p = t->p;
	uint64_t n = nchunks(t->len);
	bool failed = false;
	int rc = begin_request(p, RDMA_OP_READ, token, remote, t->len, HMM_RDMA_READ, t->deadline_ns);

	/* While the owner is at work.  What comes all the same has to be taken. */
	if (local_check(t->local, t->len, true))
		t->local = NULL;
	while (!rc && t->begun < n && t->begun < RDMA_WINDOW)
		rc = receive_more(t);
	for (uint64_t i = 0; !rc && i < n; i++) {
		struct ofi_op *op = &p->op[i % RDMA_WINDOW];

		rc = ofi_wait(&p->ep, op, t->deadline_ns);
		if (rc)
			break;
		failed |= !op->len;
		if (op->len != (failed ? 0 : size(t, i)))
			return -EPROTO;
		if (p->mem.mr && t->local && !failed)
			memcpy(t->local + i * RDMA_CHUNK, place(t, i), op->len);
		if (t->begun < n)
			rc = receive_more(t);
	}
	*result = t->local ? 0 : -EFAULT;
	if (rc || !failed)
		return rc;
	rc = begin_reply(p, t->deadline_ns);
	if (!rc)
		rc = end_reply(p, result, t->deadline_ns);
	return rc || *result ? rc : -EPROTO;
}

static int do_write(struct transfer *t, const struct hmm_rdma_token *token, uint64_t remote, int *result)
{
	struct hmm_rdma_peer *p = t->p;
	uint64_t n = nchunks(t->len);
	int rc = begin_reply(p, t->deadline_ns);

	if (!rc)
		rc = begin_request(p, RDMA_OP_WRITE, token, remote, t->len, HMM_RDMA_WRITE, t->deadline_ns);
	for (uint64_t i = 0; !rc && i < n + RDMA_WINDOW; i++) {
		struct ofi_op *op = &p->op[i % RDMA_WINDOW];

		if (i >= RDMA_WINDOW && i - RDMA_WINDOW < n)
			rc = ofi_wait(&p->ep, op, t->deadline_ns);
		if (rc || i >= n)
			continue;
		if (p->mem.mr)
			memcpy(place(t, i), t->local + i * RDMA_CHUNK, size(t, i));
		rc = ofi_post_send(&p->ep, place(t, i), size(t, i), desc(p), op, t->deadline_ns);
	}
	return rc ? rc : end_reply(p, result, t->deadline_ns);
}

/* ---------------------------------------------------------------- interface */

static int begin(struct hmm_rdma_peer *p, uint64_t *deadline_ns)
{
	struct timespec until;

	if (!*deadline_ns)
		*deadline_ns = UINT64_MAX;
	until = (struct timespec){(time_t)(*deadline_ns / 1000000000u), (long)(*deadline_ns % 1000000000u)};
	if (pthread_mutex_clocklock(&p->lock, CLOCK_MONOTONIC, &until))
		return -ETIME;
	if (!p->ended)
		return 0;
	pthread_mutex_unlock(&p->lock);
	return -ENOTCONN;
}

/* @rc: of the connection.  @result: of what was asked for. */
static int end(struct hmm_rdma_peer *p, int rc, int result)
{
	if (rc) {
		p->ended = true;
		ofi_ep_close(&p->ep);
	}
	pthread_mutex_unlock(&p->lock);
	return rc ? rc : result;
}

int hmm_rdma_read(struct hmm_rdma_peer *p, const struct hmm_rdma_token *token, uint64_t remote, void *local, size_t len,
		  uint64_t deadline_ns)
{
	struct transfer t = {.p = p, .local = local, .len = len};
	int result = 0, rc;

	if (!len || len > HMM_RDMA_LEN_MAX)
		return -EINVAL;
	rc = begin(p, &deadline_ns);
	if (rc)
		return rc;
	t.deadline_ns = deadline_ns;
	rc = do_read(&t, token, remote, &result);
	return end(p, rc, result);
}

int hmm_rdma_write(struct hmm_rdma_peer *p, const struct hmm_rdma_token *token, uint64_t remote, const void *local,
		   size_t len, uint64_t deadline_ns)
{
	struct transfer t = {.p = p, .local = (char *)(uintptr_t)local, .len = len};
	int result = 0, rc;

	if (!len || len > HMM_RDMA_LEN_MAX)
		return -EINVAL;
	rc = local_check(local, len, false);
	if (!rc)
		rc = begin(p, &deadline_ns);
	if (rc)
		return rc;
	t.deadline_ns = deadline_ns;
	rc = do_write(&t, token, remote, &result);
	return end(p, rc, result);
}

int hmm_rdma_prefetch(struct hmm_rdma_peer *p, const struct hmm_rdma_token *token, uint64_t remote, size_t len,
		      unsigned access, uint64_t deadline_ns)
{
	int result = 0, rc;

	if (!len || len > HMM_RDMA_LEN_MAX)
		return -EINVAL;
	rc = begin(p, &deadline_ns);
	if (rc)
		return rc;
	rc = begin_reply(p, deadline_ns);
	if (!rc)
		rc = begin_request(p, RDMA_OP_PREFETCH, token, remote, len, access, deadline_ns);
	if (!rc)
		rc = end_reply(p, &result, deadline_ns);
	return end(p, rc, result);
}

int hmm_rdma_connect(const char *provider, const char *host, const char *port, uint64_t deadline_ns,
		     struct hmm_rdma_peer **peerp, char *err, size_t errlen)
{
	struct hmm_rdma_peer *p = calloc(1, sizeof(*p));
	int rc = -ENOMEM;

	if (!p)
		return drv_fail(rc, err, errlen, "rdma: no memory");
	rc = ofi_net_open(&p->net, provider ? provider : "tcp", host, port, 0, err, errlen);
	if (rc)
		goto fail;
	rc = ofi_connect(&p->net, &p->ep, deadline_ns ? deadline_ns : UINT64_MAX);
	if (!rc)
		rc = ofi_buf_get(&p->net, sizeof(*p->buf), &p->mem);
	p->buf = p->mem.p;
	if (rc) {
		drv_fail(rc, err, errlen, "rdma: %s:%s: %s", host, port, strerror(-rc));
		goto fail_net;
	}
	pthread_mutex_init(&p->lock, NULL);
	*peerp = p;
	return 0;
fail_net:
	ofi_ep_close(&p->ep);
	ofi_net_close(&p->net);
fail:
	free(p);
	return rc;
}

void hmm_rdma_disconnect(struct hmm_rdma_peer *p)
{
	if (!p)
		return;
	ofi_ep_close(&p->ep);
	ofi_buf_put(&p->mem);
	ofi_net_close(&p->net);
	pthread_mutex_destroy(&p->lock);
	free(p);
}
