/* SPDX-License-Identifier: MIT */
#include "drivers/ofi/ep.h"

#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <netinet/in.h>
#include <sched.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "drivers/area.h"
#include "drivers/driver.h"

#define API FI_VERSION(1, 14)
#define SLICE_MS 100 /* how long a wait goes without a look whether the peer has gone */

uint64_t ofi_now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

/* Milliseconds to @deadline_ns, up, at most @most; 0 when it is over. */
static int left_ms(uint64_t deadline_ns, int most)
{
	uint64_t now = ofi_now_ns(), ms;

	if (now >= deadline_ns)
		return 0;
	ms = (deadline_ns - now + 999999) / 1000000;
	return ms > (uint64_t)most ? most : (int)ms;
}

static uint64_t earlier(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

/* ---------------------------------------------------------------- the library */

int ofi_lib_load(struct ofi_lib *lib, char *err, size_t errlen)
{
	/* Never unloaded: providers leave threads and handlers behind. */
	void *so = dlopen("libfabric.so.1", RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);

	if (!so)
		return drv_fail(-ENOSYS, err, errlen, "ofi: libfabric is not installed (%s)", dlerror());
	lib->getinfo = dlsym(so, "fi_getinfo");
	lib->freeinfo = dlsym(so, "fi_freeinfo");
	lib->dupinfo = dlsym(so, "fi_dupinfo");
	lib->fabric = dlsym(so, "fi_fabric");
	dlclose(so);
	if (!lib->getinfo || !lib->freeinfo || !lib->dupinfo || !lib->fabric)
		return drv_fail(-ENOSYS, err, errlen, "ofi: libfabric.so.1 lacks functions; version 1.14 or newer");
	return 0;
}

/* ------------------------------------------------------------------------ net */

static int net_domain(struct ofi_net *net, char *err, size_t errlen)
{
	int rc = fi_domain(net->fabric, net->info, &net->domain, NULL);

	if (rc)
		return drv_fail(rc, err, errlen, "ofi: no domain of provider %s: %s", net->info->fabric_attr->prov_name,
				strerror(-rc));
	return 0;
}

/* Threads that may poll at once, so that others find a processor. */
static int pollers(void)
{
	cpu_set_t cpus;

	return sched_getaffinity(0, sizeof(cpus), &cpus) ? 0 : CPU_COUNT(&cpus) - 1;
}

int ofi_net_open(struct ofi_net *net, const char *provider, const char *host, const char *port, unsigned flags,
		 char *err, size_t errlen)
{
	struct fi_info *hints;
	int rc;

	*net = (struct ofi_net){.root = net, .may_poll = pollers()};
	rc = ofi_lib_load(&net->lib, err, errlen);
	if (rc)
		return rc;
	hints = net->lib.dupinfo(NULL);
	if (!hints)
		return drv_fail(-ENOMEM, err, errlen, "ofi: out of memory");
	hints->ep_attr->type = FI_EP_MSG;
	hints->caps = FI_MSG | (flags & OFI_RMA ? FI_RMA : 0);
	hints->mode = FI_CONTEXT | FI_CONTEXT2;
	hints->domain_attr->threading = FI_THREAD_SAFE;
	hints->domain_attr->mr_mode = FI_MR_LOCAL | FI_MR_VIRT_ADDR | FI_MR_ALLOCATED | FI_MR_PROV_KEY;
	hints->fabric_attr->prov_name = strdup(provider); /* freed with the hints */
	rc = hints->fabric_attr->prov_name
		     ? net->lib.getinfo(API, host, port, flags & OFI_LISTEN ? FI_SOURCE : 0, hints, &net->info)
		     : -ENOMEM;
	net->lib.freeinfo(hints);
	if (rc) {
		net->info = NULL;
		return drv_fail(rc == -FI_ENOMEM ? -ENOMEM : -EHOSTUNREACH, err, errlen,
				"ofi: provider %s has no way to %s:%s by a connection (FI_EP_MSG in fi_info)", provider,
				host, port);
	}
	rc = net->lib.fabric(net->info->fabric_attr, &net->fabric, NULL);
	if (rc) {
		drv_fail(rc, err, errlen, "ofi: no fabric of provider %s: %s", provider, strerror(-rc));
		goto undo;
	}
	rc = net_domain(net, err, errlen);
	if (rc)
		goto undo;
	return 0;
undo:
	ofi_net_close(net);
	return rc;
}

void ofi_net_close(struct ofi_net *net)
{
	if (net->domain)
		fi_close(&net->domain->fid);
	if (net->fabric && !net->borrowed)
		fi_close(&net->fabric->fid);
	if (net->info)
		net->lib.freeinfo(net->info);
	*net = (struct ofi_net){0};
}

static bool loopback(const struct sockaddr *sa)
{
	const struct sockaddr_in *in = (const struct sockaddr_in *)sa;
	const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)sa;

	if (!sa)
		return false;
	if (sa->sa_family == AF_INET)
		return ntohl(in->sin_addr.s_addr) >> 24 == 127;
	if (sa->sa_family != AF_INET6)
		return false;
	return IN6_IS_ADDR_LOOPBACK(&in6->sin6_addr) ||
	       (IN6_IS_ADDR_V4MAPPED(&in6->sin6_addr) && in6->sin6_addr.s6_addr[12] == 127);
}

bool ofi_net_loopback(const struct ofi_net *net)
{
	return loopback(net->info->dest_addr ? net->info->dest_addr : net->info->src_addr);
}

static void addr_text(const struct sockaddr *sa, char addr[OFI_ADDR_MAX])
{
	const struct sockaddr_in *in = (const struct sockaddr_in *)sa;
	const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)sa;
	char ip[INET6_ADDRSTRLEN];

	if (sa && sa->sa_family == AF_INET && inet_ntop(AF_INET, &in->sin_addr, ip, sizeof(ip)))
		snprintf(addr, OFI_ADDR_MAX, "%s:%u", ip, ntohs(in->sin_port));
	else if (sa && sa->sa_family == AF_INET6 && inet_ntop(AF_INET6, &in6->sin6_addr, ip, sizeof(ip)))
		snprintf(addr, OFI_ADDR_MAX, "[%s]:%u", ip, ntohs(in6->sin6_port));
	else
		snprintf(addr, OFI_ADDR_MAX, "unknown address");
}

/* ------------------------------------------------------------------ endpoints */

static int ep_open(struct ofi_net *net, struct fi_info *info, struct ofi_ep *ep)
{
	struct fi_cq_attr cq = {.format = FI_CQ_FORMAT_MSG, .wait_obj = FI_WAIT_UNSPEC, .size = 128};
	struct fi_eq_attr eq = {.wait_obj = FI_WAIT_UNSPEC};
	int rc;

	*ep = (struct ofi_ep){.net = net};
	rc = fi_eq_open(net->fabric, &eq, &ep->eq, NULL);
	if (!rc)
		rc = fi_cq_open(net->domain, &cq, &ep->cq, NULL);
	if (!rc)
		rc = fi_endpoint(net->domain, info, &ep->ep, NULL);
	if (!rc) {
		rc = fi_ep_bind(ep->ep, &ep->eq->fid, 0);
		if (rc) {
			/* fi_shutdown() would tell of it there, and tcp's does not ask whether there is one. */
			fi_close(&ep->ep->fid);
			ep->ep = NULL;
		}
	}
	if (!rc)
		rc = fi_ep_bind(ep->ep, &ep->cq->fid, FI_TRANSMIT | FI_RECV);
	if (!rc)
		rc = fi_enable(ep->ep);
	if (rc)
		ofi_ep_close(ep);
	return rc;
}

void ofi_ep_close(struct ofi_ep *ep)
{
	if (ep->ep) {
		fi_shutdown(ep->ep, 0);
		fi_close(&ep->ep->fid);
	}
	if (ep->cq)
		fi_close(&ep->cq->fid);
	if (ep->eq)
		fi_close(&ep->eq->fid);
	*ep = (struct ofi_ep){0};
}

/* The next event; -ETIME, or what the provider says is wrong. */
static int eq_next(struct fid_eq *eq, uint32_t *event, struct fi_eq_cm_entry *entry, size_t len, uint64_t deadline_ns)
{
	struct fi_eq_err_entry e = {0};
	ssize_t n;

	for (;;) {
		int ms = left_ms(deadline_ns, SLICE_MS);

		n = ms ? fi_eq_sread(eq, event, entry, len, ms, 0) : fi_eq_read(eq, event, entry, len, 0);
		if (n >= 0)
			return 0;
		if (n == -FI_EAVAIL) {
			if (fi_eq_readerr(eq, &e, 0) < 0 || !e.err)
				return -ECONNRESET;
			/* Of the tcp provider, where the other end closes before it has answered. */
			return e.err == EINPROGRESS ? -ECONNRESET : -e.err;
		}
		if (n != -FI_EAGAIN && n != -FI_EINTR && n != -FI_ETIMEDOUT)
			return (int)n;
		if (!ms)
			return -ETIME;
	}
}

static int wait_connected(struct ofi_ep *ep, uint64_t deadline_ns)
{
	struct fi_eq_cm_entry entry;
	uint32_t event;
	int rc = eq_next(ep->eq, &event, &entry, sizeof(entry), deadline_ns);

	if (rc)
		return rc;
	return event == FI_CONNECTED ? 0 : -ECONNRESET;
}

int ofi_connect(struct ofi_net *net, struct ofi_ep *ep, uint64_t deadline_ns)
{
	int rc = ep_open(net, net->info, ep);

	if (rc)
		return rc;
	rc = fi_connect(ep->ep, net->info->dest_addr, NULL, 0);
	if (!rc)
		rc = wait_connected(ep, deadline_ns);
	if (rc)
		ofi_ep_close(ep);
	return rc;
}

/* ----------------------------------------------------------------- operations */

static void finish(struct ofi_op *op, int rc, size_t len)
{
	op->rc = rc;
	op->len = len;
	op->done = true;
}

/* Takes what has ended off the queue, sleeping up to @ms for the first.  False: there was nothing. */
static bool reap(struct ofi_ep *ep, int ms)
{
	struct fi_cq_msg_entry entry[4];
	struct fi_cq_err_entry e = {0};
	ssize_t n;

	if (ms && ep->sleeps)
		ep->sleeps();
	n = ms ? fi_cq_sread(ep->cq, entry, 4, NULL, ms) : fi_cq_read(ep->cq, entry, 4);
	if (n == -FI_EAVAIL) {
		if (fi_cq_readerr(ep->cq, &e, 0) != 1)
			return false;
		if (e.op_context)
			finish(e.op_context, e.err ? -e.err : -EIO, 0);
		return true;
	}
	for (ssize_t i = 0; i < n; i++)
		if (entry[i].op_context)
			finish(entry[i].op_context, 0, entry[i].len);
	if (n < 0 && n != -FI_EAGAIN && n != -FI_EINTR && n != -FI_ETIMEDOUT)
		ep->down = true;
	return n > 0;
}

/* Has the peer gone?  It tells by an event, not by the queue of operations. */
static void look_for_end(struct ofi_ep *ep)
{
	struct fi_eq_cm_entry entry;
	uint32_t event;
	int rc = eq_next(ep->eq, &event, &entry, sizeof(entry), 0);

	if (rc != -ETIME && (rc || event == FI_SHUTDOWN))
		ep->down = true;
}

void ofi_progress(struct ofi_ep *ep)
{
	while (reap(ep, 0))
		;
}

/* Looks for @op's end, for OFI_POLL_NS at most.  Who has the processor that the answer needs gives it away. */
static void poll_for(struct ofi_ep *ep, const struct ofi_op *op, uint64_t deadline_ns)
{
	_Atomic int *may = &ep->net->root->may_poll;

	if (atomic_fetch_sub(may, 1) > 0) {
		uint64_t until = earlier(ofi_now_ns() + OFI_POLL_NS, deadline_ns);

		while (!op->done && !ep->down && ofi_now_ns() < until)
			if (!reap(ep, 0))
				sched_yield();
	}
	atomic_fetch_add(may, 1);
}

/* Sleeps, but not for long enough that anybody need be told. */
static void nap(struct ofi_ep *ep, const struct ofi_op *op, uint64_t deadline_ns)
{
	uint64_t until = earlier(ofi_now_ns() + OFI_NAP_NS, deadline_ns);
	void (*sleeps)(void) = ep->sleeps;

	ep->sleeps = NULL;
	for (int ms = 1; ms && !op->done && !ep->down;) {
		ms = left_ms(until, 1);
		if (ms && !reap(ep, ms))
			break;
	}
	ep->sleeps = sleeps;
}

typedef void begin_fn(struct ofi_ep *ep, const struct ofi_op *op, uint64_t deadline_ns);

/* What has been in vain is left out the next times. */
static void begin_wait(struct ofi_ep *ep, const struct ofi_op *op, uint64_t deadline_ns, begin_fn *fn,
		       struct ofi_luck *luck)
{
	if (op->done)
		return;
	if (luck->left_out) {
		luck->left_out--;
		return;
	}
	fn(ep, op, deadline_ns);
	if (op->done)
		luck->in_vain = 0;
	else if (luck->in_vain < OFI_LEFT_OUT_MAX)
		luck->in_vain = 2 * luck->in_vain + 1;
	luck->left_out = luck->in_vain;
}

int ofi_wait(struct ofi_ep *ep, struct ofi_op *op, uint64_t deadline_ns)
{
	if (ep->polls)
		begin_wait(ep, op, deadline_ns, poll_for, &ep->poll_luck);
	if (ep->sleeps)
		begin_wait(ep, op, deadline_ns, nap, &ep->nap_luck);
	while (!op->done) {
		int ms = left_ms(deadline_ns, SLICE_MS);

		if (reap(ep, ms))
			continue;
		if (ep->down)
			return -ECONNRESET;
		look_for_end(ep);
		/* What had come before the end counts. */
		if (ep->down) {
			ofi_progress(ep);
			if (!op->done)
				return -ECONNRESET;
		} else if (!ms) {
			return -ETIME;
		}
	}
	return op->rc;
}

/* A queue that is full gets room when something of what is in it ends. */
#define POST(call)                                          \
	do {                                                \
		ssize_t _rc;                                \
                                                            \
		*op = (struct ofi_op){0};                   \
		while ((_rc = (call)) == -FI_EAGAIN) {      \
			int ms = left_ms(deadline_ns, 1);   \
                                                            \
			if (!reap(ep, ms)) {                \
				look_for_end(ep);           \
				if (ep->down)               \
					return -ECONNRESET; \
				if (!ms)                    \
					return -ETIME;      \
			}                                   \
		}                                           \
		return (int)_rc;                            \
	} while (0)

int ofi_post_send(struct ofi_ep *ep, const void *buf, size_t len, void *desc, struct ofi_op *op, uint64_t deadline_ns)
{
	POST(fi_send(ep->ep, buf, len, desc, 0, op));
}

int ofi_post_recv(struct ofi_ep *ep, void *buf, size_t len, void *desc, struct ofi_op *op, uint64_t deadline_ns)
{
	POST(fi_recv(ep->ep, buf, len, desc, 0, op));
}

int ofi_post_read(struct ofi_ep *ep, void *buf, size_t len, void *desc, uint64_t addr, uint64_t key, struct ofi_op *op,
		  uint64_t deadline_ns)
{
	POST(fi_read(ep->ep, buf, len, desc, 0, addr, key, op));
}

int ofi_post_write(struct ofi_ep *ep, const void *buf, size_t len, void *desc, uint64_t addr, uint64_t key,
		   struct ofi_op *op, uint64_t deadline_ns)
{
	POST(fi_write(ep->ep, buf, len, desc, 0, addr, key, op));
}

static int post_inject(struct ofi_ep *ep, const void *buf, size_t len, struct ofi_op *op, uint64_t deadline_ns)
{
	POST(fi_inject(ep->ep, buf, len, 0));
}

int ofi_inject(struct ofi_ep *ep, const void *buf, size_t len, void *desc, uint64_t deadline_ns)
{
	struct ofi_op none;

	return len <= ep->net->info->tx_attr->inject_size ? post_inject(ep, buf, len, &none, deadline_ns)
							  : ofi_send(ep, buf, len, desc, deadline_ns);
}

/* Of one that was left under way. */
static bool has_ended(struct ofi_ep *ep, const struct ofi_op *op)
{
	if (!op->done)
		ofi_progress(ep);
	return op->done;
}

int ofi_send(struct ofi_ep *ep, const void *buf, size_t len, void *desc, uint64_t deadline_ns)
{
	struct ofi_op *op = &ep->sending;
	int rc;

	if (ep->send_left && !has_ended(ep, op))
		return -EBUSY;
	ep->send_left = false;
	rc = ofi_post_send(ep, buf, len, desc, op, deadline_ns);
	if (rc)
		return rc;
	rc = ofi_wait(ep, op, deadline_ns);
	ep->send_left = !op->done;
	return rc;
}

int ofi_recv(struct ofi_ep *ep, void *buf, size_t room, void *desc, size_t *len, uint64_t deadline_ns)
{
	struct ofi_op *op = &ep->receiving;
	int rc;

	if (ep->recv_left && !has_ended(ep, op))
		return -EBUSY;
	ep->recv_left = false;
	rc = ofi_post_recv(ep, buf, room, desc, op, deadline_ns);
	if (rc)
		return rc;
	rc = ofi_wait(ep, op, deadline_ns);
	ep->recv_left = !op->done;
	if (!rc)
		*len = op->len;
	return rc;
}

int ofi_mr_reg(struct ofi_net *net, const void *buf, size_t len, uint64_t access, uint64_t key, struct fid_mr **mr)
{
	return fi_mr_reg(net->domain, buf, len, access, 0, key, 0, mr, NULL);
}

int ofi_buf_get(struct ofi_net *net, size_t len, struct ofi_buf *buf)
{
	int rc = 0;

	*buf = (struct ofi_buf){.p = drv_map(len), .len = len};
	if (!buf->p)
		return -ENOMEM;
	if (ofi_mr_local(net))
		rc = ofi_mr_reg(net, buf->p, len, FI_SEND | FI_RECV, 0, &buf->mr);
	if (rc) {
		buf->mr = NULL;
		ofi_buf_put(buf);
	}
	return rc;
}

void ofi_buf_put(struct ofi_buf *buf)
{
	if (buf->mr)
		fi_close(&buf->mr->fid);
	if (buf->p)
		munmap(buf->p, buf->len);
	*buf = (struct ofi_buf){0};
}

/* ------------------------------------------------------------------ listening */

int ofi_listen(struct ofi_net *net, struct ofi_listener *l)
{
	struct fi_eq_attr eq = {.wait_obj = FI_WAIT_UNSPEC};
	int rc;

	*l = (struct ofi_listener){.net = net};
	rc = fi_eq_open(net->fabric, &eq, &l->eq, NULL);
	if (!rc)
		rc = fi_passive_ep(net->fabric, net->info, &l->pep, NULL);
	if (!rc)
		rc = fi_pep_bind(l->pep, &l->eq->fid, 0);
	if (!rc)
		rc = fi_listen(l->pep);
	if (rc)
		ofi_listener_close(l);
	return rc;
}

void ofi_listener_close(struct ofi_listener *l)
{
	if (l->pep)
		fi_close(&l->pep->fid);
	if (l->eq)
		fi_close(&l->eq->fid);
	*l = (struct ofi_listener){0};
}

void ofi_listener_addr(struct ofi_listener *l, char addr[OFI_ADDR_MAX])
{
	struct sockaddr_storage ss = {0};
	size_t len = sizeof(ss);

	if (fi_getname(&l->pep->fid, &ss, &len))
		ss.ss_family = AF_UNSPEC;
	addr_text((const struct sockaddr *)&ss, addr);
}

int ofi_listener_next(struct ofi_listener *l, struct fi_info **req, uint64_t deadline_ns)
{
	struct fi_eq_cm_entry entry;
	uint32_t event;
	int rc;

	for (;;) {
		rc = eq_next(l->eq, &event, &entry, sizeof(entry), deadline_ns);
		if (!rc && event == FI_CONNREQ && entry.info) {
			*req = entry.info;
			return 0;
		}
		/* Somebody who could not even ask: not the listener's end. */
		if (rc == -ETIME || ofi_now_ns() >= deadline_ns)
			return -ETIME;
	}
}

int ofi_accept(struct ofi_listener *l, struct fi_info *req, struct ofi_net *own, struct ofi_ep *ep,
	       uint64_t deadline_ns)
{
	struct ofi_net *net = l->net;
	int rc = 0;

	*ep = (struct ofi_ep){0};
	if (own) {
		*own = (struct ofi_net){.lib = net->lib, .fabric = net->fabric, .borrowed = true, .root = net->root};
		own->info = net->lib.dupinfo(net->info);
		rc = own->info ? net_domain(own, NULL, 0) : -ENOMEM;
		net = own;
	}
	if (!rc)
		rc = ep_open(net, req, ep);
	if (rc) {
		ofi_reject(l, req);
		goto fail;
	}
	net->lib.freeinfo(req);
	rc = fi_accept(ep->ep, NULL, 0);
	if (!rc)
		rc = wait_connected(ep, deadline_ns);
	if (!rc)
		return 0;
	ofi_ep_close(ep);
fail:
	if (own)
		ofi_net_close(own);
	return rc;
}

void ofi_reject(struct ofi_listener *l, struct fi_info *req)
{
	fi_reject(l->pep, req->handle, NULL, 0);
	l->net->lib.freeinfo(req);
}

void ofi_req_addr(const struct fi_info *req, char addr[OFI_ADDR_MAX])
{
	addr_text(req->dest_addr, addr);
}
