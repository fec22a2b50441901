/* SPDX-License-Identifier: MIT */
/*
 * Peers that read and write what is exposed: hmm_rdma.h, the owner's side.
 *
 * DOC: threads
 *
 * One waits for peers, and one serves each of them.  They are the program's, not
 * the engine's: they may wait for memory that is away, and nobody who serves
 * faults waits for them, but for the moment that expose.c describes.
 *
 * A request that makes no sense ends the connection; one that has no right, or
 * meets memory that is not there, is answered.  A peer that takes no data for
 * RDMA_PATIENCE_NS has gone.  Who closes waits for no more than a chunk: a peer
 * that takes one now and then would keep it up for as long as it likes.
 *
 * While chunks are on their way the next one is copied: there are several buffers.
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "drivers/driver.h"
#include "drivers/ofi/ep.h"
#include "drivers/ofi/expose.h"
#include "drivers/ofi/rdma.h"

#define PEERS_MOST 64u
#define ACCEPT_NS 5000000000ull
#define SLICE_NS 100000000ull /* how long close waits for who waits */

/* What the provider reads from and writes to. */
struct buffers {
	char chunk[RDMA_WINDOW][RDMA_CHUNK];
	struct rdma_request request;
	struct rdma_reply reply;
};

struct peer {
	struct hmm_rdma *r;
	struct peer *next;
	struct fi_info *request;
	pthread_t thread;
	atomic_bool done;
	struct ofi_net net;
	struct ofi_ep ep;
	struct ofi_buf mem;
	struct buffers *buf; /* in it */
	struct ofi_op next_request;
	struct ofi_op
		chunk[RDMA_WINDOW]; /* what was last begun with each buffer: the next who needs it waits for that */
};

struct hmm_rdma {
	struct exposed *exposed;
	struct ofi_net net;
	struct ofi_listener listener;
	pthread_t thread;
	atomic_bool stop;
	pthread_mutex_t lock; /* peers */
	struct peer *peers;
	unsigned npeers;
	_Atomic uint64_t read, written, refused, failed;
};

static void *desc(const struct peer *p)
{
	return ofi_mr_desc(p->mem.mr);
}

/* ----------------------------------------------------------------- requests */

/* For one message of a request, or one chunk of it: a long one may take its time. */
static uint64_t patience(void)
{
	return ofi_now_ns() + RDMA_PATIENCE_NS;
}

static uint64_t earlier(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

static void count(struct peer *p, int rc, _Atomic uint64_t *bytes, uint64_t n)
{
	if (rc == -EACCES || rc == -EINVAL)
		p->r->refused++;
	else if (rc)
		p->r->failed++;
	else
		*bytes += n;
}

/* Until @op has ended, with patience; -ESHUTDOWN when all is to be closed. */
static int await(struct peer *p, struct ofi_op *op)
{
	const uint64_t until = patience();
	int rc;

	do {
		if (p->r->stop)
			return -ESHUTDOWN;
		rc = ofi_wait(&p->ep, op, earlier(until, ofi_now_ns() + SLICE_NS));
	} while (rc == -ETIME && !op->done && ofi_now_ns() < until);
	return rc;
}

static int await_request(struct peer *p)
{
	return ofi_post_recv(&p->ep, &p->buf->request, sizeof(p->buf->request), desc(p), &p->next_request, patience());
}

static int reply(struct peer *p, int result)
{
	int rc = await_request(p);

	p->buf->reply = (struct rdma_reply){.magic = RDMA_MAGIC, .rc = result};
	return rc ? rc : ofi_inject(&p->ep, &p->buf->reply, sizeof(p->buf->reply), desc(p), patience());
}

static int serve_read(struct peer *p, const struct rdma_request *q, uint64_t try_until)
{
	uint64_t at = 0;
	int result = 0, rc = 0;

	for (unsigned i = 0; at < q->len && !rc; i = (i + 1) % RDMA_WINDOW) {
		size_t n = rdma_chunk(q->len - at);

		rc = await(p, &p->chunk[i]);
		if (!rc && !result)
			result = exposed_copy(p->r->exposed, &q->token, q->addr + at, p->buf->chunk[i], n, false,
					      earlier(try_until, patience()));
		at += n;
		/* The answer may be at its end, and the next request here, before we look again. */
		if (!rc && at == q->len && !result)
			rc = await_request(p);
		if (!rc)
			rc = ofi_post_send(&p->ep, p->buf->chunk[i], result ? 0 : n, desc(p), &p->chunk[i], patience());
	}
	if (!rc || result) /* else it was cut short */
		count(p, result, &p->r->read, q->len);
	return rc || !result ? rc : reply(p, result);
}

static int post_chunk(struct peer *p, unsigned i, uint64_t left)
{
	int rc = await(p, &p->chunk[i]);

	return rc ? rc : ofi_post_recv(&p->ep, p->buf->chunk[i], rdma_chunk(left), desc(p), &p->chunk[i], patience());
}

static int serve_write(struct peer *p, const struct rdma_request *q, uint64_t try_until)
{
	int result = 0, rc = post_chunk(p, 0, q->len);
	uint64_t at = 0;

	for (unsigned i = 0; at < q->len && !rc; i = (i + 1) % RDMA_WINDOW) {
		size_t n = rdma_chunk(q->len - at);

		if (at + n < q->len)
			rc = post_chunk(p, (i + 1) % RDMA_WINDOW, q->len - at - n);
		if (!rc)
			rc = await(p, &p->chunk[i]);
		if (!rc && p->chunk[i].len != n)
			rc = -EPROTO;
		/* What follows an error has to be taken, too. */
		if (!rc && !result)
			result = exposed_copy(p->r->exposed, &q->token, q->addr + at, p->buf->chunk[i], n, true,
					      earlier(try_until, patience()));
		at += n;
	}
	if (rc)
		return rc;
	count(p, result, &p->r->written, q->len);
	return reply(p, result);
}

static int serve_prefetch(struct peer *p, const struct rdma_request *q, uint64_t try_until)
{
	int result = -EINVAL, rc;

	if (q->access && !(q->access & ~(HMM_RDMA_READ | HMM_RDMA_WRITE)))
		result = exposed_check(p->r->exposed, &q->token, q->addr, q->len, q->access);
	p->r->refused += result != 0;
	rc = reply(p, result);
	/* It is advice: what comes of it is nobody's concern. */
	if (!rc && !result)
		exposed_map(p->r->exposed, &q->token, q->addr, q->len, q->access, earlier(try_until, patience()));
	return rc;
}

/* Not 0 when the connection is to end. */
static int serve(struct peer *p)
{
	const struct rdma_request q = p->buf->request;
	uint64_t now = ofi_now_ns(), try_until = q.patience_ns < UINT64_MAX - now ? now + q.patience_ns : UINT64_MAX;

	if (p->next_request.len != sizeof(q) || q.magic != RDMA_MAGIC || q.zero || !q.len || q.len > HMM_RDMA_LEN_MAX)
		return -EPROTO;
	p->ep.polls = q.len <= RDMA_POLLS_MOST;
	switch (q.op) {
	case RDMA_OP_READ:
		return serve_read(p, &q, try_until);
	case RDMA_OP_WRITE:
		return serve_write(p, &q, try_until);
	case RDMA_OP_PREFETCH:
		return serve_prefetch(p, &q, try_until);
	default:
		return -EPROTO;
	}
}

/* -------------------------------------------------------------------- peers */

static int peer_open(struct peer *p)
{
	int rc = ofi_accept(&p->r->listener, p->request, &p->net, &p->ep, ofi_now_ns() + ACCEPT_NS);

	if (!rc)
		rc = ofi_buf_get(&p->net, sizeof(*p->buf), &p->mem);
	p->buf = p->mem.p;
	return rc;
}

static void *peer_main(void *arg)
{
	struct peer *p = arg;
	int rc = peer_open(p);

	for (unsigned i = 0; i < RDMA_WINDOW; i++)
		p->chunk[i].done = true;
	if (!rc)
		rc = await_request(p);
	while (!rc && !p->r->stop) {
		rc = ofi_wait(&p->ep, &p->next_request, ofi_now_ns() + SLICE_NS);
		if (!rc)
			rc = serve(p);
		else if (rc == -ETIME && !p->next_request.done)
			rc = 0;
	}
	ofi_ep_close(&p->ep);
	ofi_buf_put(&p->mem);
	ofi_net_close(&p->net);
	p->done = true;
	return NULL;
}

/* A thread that takes no signals: a handler would run with what it holds. */
static int thread_start(pthread_t *thread, void *(*fn)(void *), void *arg)
{
	sigset_t all, old;
	int rc;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	rc = pthread_create(thread, NULL, fn, arg);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	return -rc;
}

static void peer_start(struct hmm_rdma *r, struct fi_info *request)
{
	struct peer *p = r->npeers < PEERS_MOST ? calloc(1, sizeof(*p)) : NULL;

	if (!p) {
		ofi_reject(&r->listener, request);
		return;
	}
	p->r = r;
	p->request = request;
	pthread_mutex_lock(&r->lock);
	if (thread_start(&p->thread, peer_main, p)) {
		ofi_reject(&r->listener, request);
		free(p);
	} else {
		p->next = r->peers;
		r->peers = p;
		r->npeers++;
	}
	pthread_mutex_unlock(&r->lock);
}

/* Those that have ended, or all of them. */
static void peers_join(struct hmm_rdma *r, bool all)
{
	struct peer **at = &r->peers;

	pthread_mutex_lock(&r->lock);
	while (*at) {
		struct peer *p = *at;

		if (!all && !p->done) {
			at = &p->next;
			continue;
		}
		*at = p->next;
		r->npeers--;
		pthread_join(p->thread, NULL);
		free(p);
	}
	pthread_mutex_unlock(&r->lock);
}

static void *listener_main(void *arg)
{
	struct hmm_rdma *r = arg;

	while (!r->stop) {
		struct fi_info *request;

		if (!ofi_listener_next(&r->listener, &request, ofi_now_ns() + SLICE_NS))
			peer_start(r, request);
		peers_join(r, false);
	}
	return NULL;
}

/* ---------------------------------------------------------------- interface */

int hmm_rdma_open(struct umm_space *space, struct hmm_mm *mm, const struct hmm_rdma_params *params,
		  struct hmm_rdma **rp, char *err, size_t errlen)
{
	const struct hmm_rdma_params q = params ? *params : (struct hmm_rdma_params){0};
	struct hmm_rdma *r = calloc(1, sizeof(*r));
	int rc;

	if (!r)
		return drv_fail(-ENOMEM, err, errlen, "rdma: no memory");
	rc = ofi_net_open(&r->net, q.provider ? q.provider : "tcp", q.host ? q.host : "127.0.0.1",
			  q.port ? q.port : "0", OFI_LISTEN, err, errlen);
	if (rc)
		goto fail;
	rc = ofi_listen(&r->net, &r->listener);
	if (rc) {
		drv_fail(rc, err, errlen, "rdma: cannot listen there: %s", strerror(-rc));
		goto fail_net;
	}
	rc = exposed_open(space, mm, &r->exposed);
	if (rc) {
		drv_fail(rc, err, errlen, "rdma: no memory of the space's own left");
		goto fail_listener;
	}
	pthread_mutex_init(&r->lock, NULL);
	rc = thread_start(&r->thread, listener_main, r);
	if (rc) {
		drv_fail(rc, err, errlen, "rdma: no thread: %s", strerror(-rc));
		goto fail_exposed;
	}
	*rp = r;
	return 0;
fail_exposed:
	pthread_mutex_destroy(&r->lock);
	exposed_close(r->exposed);
fail_listener:
	ofi_listener_close(&r->listener);
fail_net:
	ofi_net_close(&r->net);
fail:
	free(r);
	return rc;
}

void hmm_rdma_close(struct hmm_rdma *r)
{
	if (!r)
		return;
	r->stop = true;
	pthread_join(r->thread, NULL);
	peers_join(r, true);
	ofi_listener_close(&r->listener);
	ofi_net_close(&r->net);
	exposed_close(r->exposed);
	pthread_mutex_destroy(&r->lock);
	free(r);
}

_Static_assert(HMM_RDMA_ADDR_MAX >= OFI_ADDR_MAX, "an address has room");

void hmm_rdma_addr(struct hmm_rdma *r, char addr[HMM_RDMA_ADDR_MAX])
{
	ofi_listener_addr(&r->listener, addr);
}

int hmm_rdma_expose(struct hmm_rdma *r, const void *addr, size_t len, unsigned access, struct hmm_rdma_token *token)
{
	return exposed_add(r->exposed, (uintptr_t)addr, len, access, token);
}

int hmm_rdma_unexpose(struct hmm_rdma *r, const struct hmm_rdma_token *token)
{
	return exposed_remove(r->exposed, token);
}

void hmm_rdma_stats(struct hmm_rdma *r, struct hmm_rdma_stats *st)
{
	pthread_mutex_lock(&r->lock);
	*st = (struct hmm_rdma_stats){.peers = r->npeers,
				      .read = r->read,
				      .written = r->written,
				      .mapped = exposed_mapped(r->exposed),
				      .refused = r->refused,
				      .failed = r->failed};
	pthread_mutex_unlock(&r->lock);
}
