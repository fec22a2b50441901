/* SPDX-License-Identifier: MIT */
/*
 * Connections over libfabric: the part that every user of it needs.
 *
 * DOC: who may do what
 *
 * A net is a fabric and a domain on it; several endpoints may stand on one (they
 * then share its memory registrations and its locks), or each on its own.  An
 * endpoint and its operations are used by one thread at a time; different
 * endpoints by different threads at once.
 *
 * Nothing here waits longer than its deadline (CLOCK_MONOTONIC, ns).  What has
 * not ended by then is still in flight: its buffers are the provider's until
 * ofi_ep_close() has returned.
 *
 * The library is loaded when the first net is opened, and not before: it and what
 * it needs is a dozen of shared objects that who never speaks to a peer does not
 * pay for, and that no preloaded library of ours brings into a program.  It uses
 * malloc wherever it likes, so nothing here may run where a page fault of the
 * same process is served.
 */
#ifndef HMM_OFI_EP_H
#define HMM_OFI_EP_H

#include <rdma/fabric.h>
#include <rdma/fi_cm.h>
#include <rdma/fi_domain.h>
#include <rdma/fi_endpoint.h>
#include <rdma/fi_eq.h>
#include <rdma/fi_rma.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define OFI_ADDR_MAX 64 /* "[address]:port" */

/* The functions of libfabric that are not reached through its objects. */
struct ofi_lib {
	int (*getinfo)(uint32_t version, const char *node, const char *service, uint64_t flags,
		       const struct fi_info *hints, struct fi_info **info);
	void (*freeinfo)(struct fi_info *info);
	struct fi_info *(*dupinfo)(const struct fi_info *info);
	int (*fabric)(struct fi_fabric_attr *attr, struct fid_fabric **fabric, void *context);
};

/** ofi_lib_load() - @lib gets its functions, or -ENOSYS with a line in @err. */
int ofi_lib_load(struct ofi_lib *lib, char *err, size_t errlen);

struct ofi_net {
	struct ofi_lib lib;
	struct fi_info *info;
	struct fid_fabric *fabric;
	struct fid_domain *domain;
	bool borrowed;        /* the fabric is another net's */
	struct ofi_net *root; /* that one, or itself: it stays where it is */
	_Atomic int may_poll; /* of the root: how many more threads may poll at the same time */
};

#define OFI_LISTEN (1u << 0) /* host and port are where to listen */
#define OFI_RMA (1u << 1)    /* fi_read and fi_write, and to be their target */

/**
 * ofi_net_open() - a fabric and a domain that reach, or listen on, @host:@port
 * @provider: "tcp", "verbs" ...
 * @flags: OFI_*
 * @err: out, one line; may be NULL.
 *
 * Returns 0, -ENOSYS (no library), -EHOSTUNREACH (no such host, or the provider
 * has no way there), or another -errno of the provider's.
 */
int ofi_net_open(struct ofi_net *net, const char *provider, const char *host, const char *port, unsigned flags,
		 char *err, size_t errlen);
void ofi_net_close(struct ofi_net *net);

/** ofi_net_loopback() - is the address that @net reaches or listens on this machine's loopback? */
bool ofi_net_loopback(const struct ofi_net *net);

/* ---------------------------------------------------------------- endpoints */

/*
 * DOC: how a wait begins
 *
 * To be put to sleep and woken costs several times what a peer nearby needs for
 * its answer.  So where the endpoint says so ("polls") a wait begins with
 * OFI_POLL_NS of looking.  There is always a processor left for others: one thread
 * less may look than there are processors.
 *
 * To have another thread take over what this one must not keep up while it sleeps
 * ("sleeps") costs as much again.  So the first OFI_NAP_NS are slept without it,
 * and whoever is kept up by that waits no longer.
 *
 * Either is left out for the next waits when it was in vain, 1, 3, 7, then 15 of
 * them: a peer that is slow keeps nobody up for long.
 */
#define OFI_POLL_NS 50000u
#define OFI_NAP_NS 1000000u
#define OFI_LEFT_OUT_MAX 15u

struct ofi_luck {
	unsigned in_vain;  /* how many waits it is left out of */
	unsigned left_out; /* how many of them are to come */
};

/** An operation under way; where it is until it has ended, or the endpoint is closed. */
struct ofi_op {
	struct fi_context2 ctx;
	bool done;
	int rc;     /* once done: 0 or -errno */
	size_t len; /* of a receive: bytes that came */
};

struct ofi_ep {
	struct ofi_net *net;
	struct fid_ep *ep;
	struct fid_cq *cq;
	struct fid_eq *eq;
	bool down;            /* the peer has gone, or the connection is broken */
	bool polls;           /* set once it is connected, as all below */
	void (*sleeps)(void); /* called before one sleeps for longer, if not NULL */
	struct ofi_luck poll_luck, nap_luck;
	struct ofi_op sending, receiving; /* ofi_send()'s and ofi_recv()'s */
	bool send_left, recv_left;        /* it had not ended when its time was up */
};

/** ofi_connect() - to where @net reaches.  Returns 0, -ECONNREFUSED, -ETIME or another -errno. */
int ofi_connect(struct ofi_net *net, struct ofi_ep *ep, uint64_t deadline_ns);

/** ofi_ep_close() - end it, also with operations under way.  Fine for one that was never opened (all zeros). */
void ofi_ep_close(struct ofi_ep *ep);

/* Begin an operation.  @desc is ofi_mr_desc() of the buffer's registration, or NULL where the net needs none. */
int ofi_post_send(struct ofi_ep *ep, const void *buf, size_t len, void *desc, struct ofi_op *op, uint64_t deadline_ns);
int ofi_post_recv(struct ofi_ep *ep, void *buf, size_t len, void *desc, struct ofi_op *op, uint64_t deadline_ns);
int ofi_post_read(struct ofi_ep *ep, void *buf, size_t len, void *desc, uint64_t addr, uint64_t key, struct ofi_op *op,
		  uint64_t deadline_ns);
int ofi_post_write(struct ofi_ep *ep, const void *buf, size_t len, void *desc, uint64_t addr, uint64_t key,
		   struct ofi_op *op, uint64_t deadline_ns);

/**
 * ofi_wait() - until @op has ended
 *
 * Also moves on what else is under way on @ep, and what peers do to its memory.
 * Returns @op's outcome; -ETIME; or -ECONNRESET when the connection is gone.
 */
int ofi_wait(struct ofi_ep *ep, struct ofi_op *op, uint64_t deadline_ns);

/** ofi_progress() - move on what is under way, without waiting. */
void ofi_progress(struct ofi_ep *ep);

/**
 * ofi_inject() - send something small, which the caller has back at once
 *
 * Nothing ends later, and so nothing is waited for.  What is larger than the
 * provider takes so is sent as by ofi_send().
 */
int ofi_inject(struct ofi_ep *ep, const void *buf, size_t len, void *desc, uint64_t deadline_ns);

/*
 * ofi_post_...() and ofi_wait() in one.  ofi_recv() sets *@len.  -EBUSY: the last of its kind has not ended in time,
 * and not since.
 */
int ofi_send(struct ofi_ep *ep, const void *buf, size_t len, void *desc, uint64_t deadline_ns);
int ofi_recv(struct ofi_ep *ep, void *buf, size_t room, void *desc, size_t *len, uint64_t deadline_ns);

/* ------------------------------------------------------------ registrations */

/** ofi_mr_local() - must buffers of operations on @net be registered? */
static inline bool ofi_mr_local(const struct ofi_net *net)
{
	return net->info->domain_attr->mr_mode & FI_MR_LOCAL;
}

/**
 * ofi_mr_reg() - register memory
 * @access: FI_SEND, FI_RECV, FI_READ, FI_WRITE, FI_REMOTE_READ, FI_REMOTE_WRITE.
 * @key: of a target, where the provider lets us choose it.
 *
 * A peer names it by fi_mr_key() and ofi_mr_addr().  Ended with fi_close(&mr->fid).
 */
int ofi_mr_reg(struct ofi_net *net, const void *buf, size_t len, uint64_t access, uint64_t key, struct fid_mr **mr);

/** ofi_mr_addr() - what a peer gives as the remote address of @p, which lies in the memory at @base. */
static inline uint64_t ofi_mr_addr(const struct ofi_net *net, const void *base, const void *p)
{
	if (net->info->domain_attr->mr_mode & FI_MR_VIRT_ADDR)
		return (uintptr_t)p;
	return (uintptr_t)p - (uintptr_t)base;
}

static inline void *ofi_mr_desc(struct fid_mr *mr)
{
	return mr ? fi_mr_desc(mr) : NULL;
}

/** Memory for messages: page-aligned, registered where the net wants that. */
struct ofi_buf {
	void *p;
	size_t len;
	struct fid_mr *mr; /* NULL: none is needed */
};

/** ofi_buf_get() - zero-filled, for sending and receiving.  Returns 0, -ENOMEM or another -errno. */
int ofi_buf_get(struct ofi_net *net, size_t len, struct ofi_buf *buf);
/** ofi_buf_put() - before the net ends, after the endpoint.  Fine for one that was never got (all zeros). */
void ofi_buf_put(struct ofi_buf *buf);

/* ---------------------------------------------------------------- listening */

struct ofi_listener {
	struct ofi_net *net;
	struct fid_pep *pep;
	struct fid_eq *eq;
};

/** ofi_listen() - on what @net was opened for (OFI_LISTEN).  Returns 0, -EADDRINUSE or another -errno. */
int ofi_listen(struct ofi_net *net, struct ofi_listener *l);
void ofi_listener_close(struct ofi_listener *l);

/** ofi_listener_addr() - where it listens, the port that the system chose for 0 included. */
void ofi_listener_addr(struct ofi_listener *l, char addr[OFI_ADDR_MAX]);

/**
 * ofi_listener_next() - wait for somebody who wants to connect
 * @req: out; goes to ofi_accept() or ofi_reject(), of which each ends it.
 *
 * Returns 0, or -ETIME.
 */
int ofi_listener_next(struct ofi_listener *l, struct fi_info **req, uint64_t deadline_ns);

/**
 * ofi_accept() - let it
 * @own: NULL: the endpoint stands on the listener's net.  Else out: on this new
 *       one (of the listener's fabric), which ends with ofi_net_close() after the endpoint.
 *
 * May be called by another thread than that which waits for the next one.
 * On error nothing is left to close.
 */
int ofi_accept(struct ofi_listener *l, struct fi_info *req, struct ofi_net *own, struct ofi_ep *ep,
	       uint64_t deadline_ns);
void ofi_reject(struct ofi_listener *l, struct fi_info *req);

/** ofi_peer_addr() - who wants to connect, or is connected. */
void ofi_req_addr(const struct fi_info *req, char addr[OFI_ADDR_MAX]);

/** ofi_now_ns() - the clock of deadlines. */
uint64_t ofi_now_ns(void);

#endif
