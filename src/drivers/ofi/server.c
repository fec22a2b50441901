/* SPDX-License-Identifier: MIT */
/*
 * DOC: threads and bounds
 *
 * One thread listens, each connection has its own, with a domain of its own: what
 * one client does holds up no other.  Nobody is waited for without end: who does
 * not prove itself within hello_ns is sent away, and so is a client that is silent
 * for idle_ns, takes no answer for SEND_NS, or says anything that does not open.
 *
 * Until a connection has proved itself it costs a thread, and no more than
 * STRANGERS_MAX of these may be; whoever comes then is turned away.  Afterwards
 * its buffers are charged to the memory that is lent.
 *
 * What is said about strangers is limited to one line a second: the port may be
 * anybody's.  Who says it holds a stranger's place, or is the listener: opt.say()
 * must not wait for who reads it.
 *
 * Lock: srv->lock (list of connections, lines).  It is not held over calls.
 */
#include "drivers/ofi/server.h"

#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "drivers/driver.h"
#include "drivers/ofi/addr.h"
#include "drivers/ofi/ep.h"
#include "drivers/ofi/internal.h"
#include "drivers/ofi/seal.h"
#include "drivers/ofi/store.h"

#define SECOND 1000000000ull
#define STRANGERS_MAX 64u
#define CONNECTIONS_MAX 4096u
#define STACK ((size_t)256 << 10)
#define SLICE_NS (SECOND / 4) /* how soon a server that is stopped stops */
#define SEND_NS (10 * SECOND)

struct connection {
	struct connection *next, **at; /* of srv->connections */
	struct tier_server *srv;
	struct fi_info *req;
	struct ofi_net net;
	struct ofi_ep ep;
	struct ofi_buf in, out;
	struct tier_keys keys;
	struct tier_session *session;
	struct ofi_op receiving; /* receive()'s: who has given up on it is closed */
	bool known;              /* has proved itself */
	char from[OFI_ADDR_MAX];
};

struct tier_server {
	struct tier_server_options opt;
	struct tier_addr addr;
	struct tier_secret secret;
	struct ofi_net net;
	struct ofi_listener listener;
	struct tier_store store;
	char at[OFI_ADDR_MAX];
	pthread_t thread;
	_Atomic bool stop;

	pthread_mutex_t lock; /* what follows */
	pthread_cond_t gone;
	struct connection *connections;
	unsigned nr_connections, nr_strangers;
	uint64_t said_ns; /* when a line about a stranger was said last */
	unsigned unsaid;
};

struct tier_store *tier_server_store(struct tier_server *srv)
{
	return &srv->store;
}

const char *tier_server_addr(const struct tier_server *srv)
{
	return srv->at;
}

__attribute__((format(printf, 3, 4))) static void say(struct tier_server *srv, bool stranger, const char *fmt, ...)
{
	char line[300];
	size_t n;
	va_list ap;
	unsigned unsaid = 0;

	if (!srv->opt.say)
		return;
	if (stranger) {
		uint64_t now = ofi_now_ns();
		bool quiet;

		pthread_mutex_lock(&srv->lock);
		quiet = srv->said_ns && now - srv->said_ns < SECOND;
		if (quiet) {
			srv->unsaid++;
		} else {
			unsaid = srv->unsaid;
			srv->unsaid = 0;
			srv->said_ns = now;
		}
		pthread_mutex_unlock(&srv->lock);
		if (quiet)
			return;
	}
	va_start(ap, fmt);
	vsnprintf(line, sizeof(line), fmt, ap);
	va_end(ap);
	n = strlen(line);
	if (unsaid)
		snprintf(line + n, sizeof(line) - n, " (and %u more like this)", unsaid);
	srv->opt.say(srv->opt.priv, line);
}

/* ---------------------------------------------------------------- a connection */

/* A client is silent when all of its connections are. */
static uint64_t silence_ends(const struct connection *c)
{
	return atomic_load(&c->session->heard_ns) + c->srv->opt.idle_ns;
}

/* Receives into @buf until @deadline_ns (0: as long as the client speaks), or until the server stops.  0 or -errno. */
static int receive(struct connection *c, void *buf, size_t room, void *desc, size_t *len, uint64_t deadline_ns)
{
	struct ofi_op *op = &c->receiving;
	int rc = ofi_post_recv(&c->ep, buf, room, desc, op, deadline_ns);

	while (!rc && !op->done) {
		uint64_t until = deadline_ns ? deadline_ns : silence_ends(c), slice = ofi_now_ns() + SLICE_NS;

		rc = ofi_wait(&c->ep, op, slice < until ? slice : until);
		if (rc == -ETIME && !atomic_load(&c->srv->stop) &&
		    ofi_now_ns() < (deadline_ns ? deadline_ns : silence_ends(c)))
			rc = 0;
	}
	if (!rc)
		rc = op->rc;
	*len = rc ? 0 : op->len;
	return rc;
}

static int reply(struct connection *c, const struct tier_head *h)
{
	size_t len = tier_frame_seal(&c->keys, h, c->out.p) + (size_t)tier_head_pages(h) * HMM_PAGE_SIZE;

	return ofi_send(&c->ep, c->out.p, len, ofi_mr_desc(c->out.mr), ofi_now_ns() + SEND_NS);
}

/* Who is it?  0: one of ours, with keys. */
static int greet(struct connection *c, uint64_t deadline_ns)
{
	struct tier_server *srv = c->srv;
	struct tier_answer *answer;
	size_t len;
	int rc, sent;

	rc = receive(c, c->in.p, c->in.len, ofi_mr_desc(c->in.mr), &len, deadline_ns);
	if (rc == -ETIME) {
		say(srv, true, "%s: refused: it connects and says nothing", c->from);
		return rc;
	}
	answer = c->out.p;
	if (!rc)
		rc = tier_hello_answer(&srv->secret, c->in.p, len, answer, &c->keys);
	switch (rc) {
	case 0:
	case -EKEYREJECTED:
	case -ENOKEY:
	case -EOPNOTSUPP:
		break;
	default:
		say(srv, true, "%s: refused: it does not speak hmm's protocol", c->from);
		return rc;
	}
	sent = ofi_send(&c->ep, answer, sizeof(*answer), ofi_mr_desc(c->out.mr), deadline_ns);
	if (rc == -EKEYREJECTED)
		say(srv, true, "%s: refused: its key is not the one in %s", c->from, srv->opt.key_file);
	else if (rc == -ENOKEY)
		say(srv, true, "%s: refused: it gives no key", c->from);
	else if (rc == -EOPNOTSUPP)
		say(srv, true, "%s: refused: it gives a key, and this server has none (--key FILE)", c->from);
	if (rc) {
		/* It shall read why before the connection ends: it ends it. */
		receive(c, c->in.p, c->in.len, ofi_mr_desc(c->in.mr), &len, deadline_ns);
		return rc;
	}
	return sent;
}

/* The first frame proves the client, and says which session it is of. */
static int attach(struct connection *c, uint64_t deadline_ns)
{
	struct tier_server *srv = c->srv;
	enum tier_status status;
	const uint8_t *pages;
	struct tier_head h;
	uint8_t fresh[16];
	size_t len;
	int rc;

	rc = receive(c, c->in.p, c->in.len, ofi_mr_desc(c->in.mr), &len, deadline_ns);
	if (!rc)
		rc = tier_frame_open(&c->keys, c->in.p, len, false, &h, &pages);
	if (!rc && h.op != TIER_ATTACH)
		rc = -EPROTO;
	if (rc) {
		say(srv, true, "%s: refused: it does not prove that it has the key", c->from);
		return rc;
	}
	randombytes_buf(fresh, sizeof(fresh));
	c->session = tier_session_attach(&srv->store, h.attach.session, fresh, &status);
	if (c->session && !drv_ram_charge(&srv->store.ram, 2 * TIER_FRAME_MAX)) {
		tier_session_detach(&srv->store, c->session);
		c->session = NULL;
		status = TIER_FULL;
	}
	if (c->session) {
		struct ofi_buf in, out;

		c->known = true;
		rc = ofi_buf_get(&c->net, TIER_FRAME_MAX, &in);
		if (rc)
			return rc;
		rc = ofi_buf_get(&c->net, TIER_FRAME_MAX, &out);
		if (rc) {
			ofi_buf_put(&in);
			return rc;
		}
		ofi_buf_put(&c->in);
		ofi_buf_put(&c->out);
		c->in = in;
		c->out = out;
		memcpy(h.attach.session, c->session->id, sizeof(h.attach.session));
	}
	h.attach.max_slots = srv->store.max;
	h.attach.idle_ns = srv->opt.idle_ns;
	h.reply = 1;
	h.status = (uint8_t)status;
	rc = reply(c, &h);
	if (status) {
		say(srv, true, "%s: refused: %s", c->from,
		    status == TIER_FULL ? "no room for one more" : "its session has ended");
		receive(c, c->in.p, c->in.len, ofi_mr_desc(c->in.mr), &len, deadline_ns);
		return -ENOSPC;
	}
	return rc;
}

static void serve(struct connection *c)
{
	struct tier_server *srv = c->srv;
	const uint8_t *pages;
	struct tier_head h;
	size_t len;

	c->ep.polls = true;
	for (;;) {
		int rc;

		atomic_store(&c->session->heard_ns, ofi_now_ns());
		rc = receive(c, c->in.p, c->in.len, ofi_mr_desc(c->in.mr), &len, 0);

		if (rc == -ETIME && !atomic_load(&srv->stop))
			say(srv, false, "%s: dropped: silent for too long", c->from);
		if (rc)
			return;
		rc = tier_frame_open(&c->keys, c->in.p, len, false, &h, &pages);
		if (rc || h.op == TIER_ATTACH) {
			say(srv, false, "%s: dropped: it sent what does not belong to its session", c->from);
			return;
		}
		struct tier_head will = h;

		will.reply = 1;
		tier_store_execute(&srv->store, c->session, &h, pages, tier_frame_pages(&will, c->out.p));
		if (reply(c, &h))
			return;
	}
}

static void connection_end(struct connection *c)
{
	struct tier_server *srv = c->srv;

	ofi_ep_close(&c->ep);
	ofi_buf_put(&c->in);
	ofi_buf_put(&c->out);
	ofi_net_close(&c->net);
	if (c->session)
		tier_session_detach(&srv->store, c->session);
	if (c->known)
		drv_ram_uncharge(&srv->store.ram, 2 * TIER_FRAME_MAX);
	sodium_memzero(&c->keys, sizeof(c->keys));
	pthread_mutex_lock(&srv->lock);
	*c->at = c->next;
	if (c->next)
		c->next->at = c->at;
	srv->nr_connections--;
	if (!c->known)
		srv->nr_strangers--;
	pthread_cond_broadcast(&srv->gone);
	pthread_mutex_unlock(&srv->lock);
	free(c);
}

static void *connection_main(void *arg)
{
	struct connection *c = arg;
	struct tier_server *srv = c->srv;
	uint64_t deadline = ofi_now_ns() + srv->opt.hello_ns;
	int rc = ofi_accept(&srv->listener, c->req, &c->net, &c->ep, deadline);

	if (!rc)
		rc = ofi_buf_get(&c->net, TIER_STRANGER_MAX, &c->in);
	if (!rc)
		rc = ofi_buf_get(&c->net, TIER_STRANGER_MAX, &c->out);
	if (!rc)
		rc = greet(c, deadline);
	if (!rc)
		rc = attach(c, deadline);
	if (c->known) {
		pthread_mutex_lock(&srv->lock);
		srv->nr_strangers--;
		pthread_mutex_unlock(&srv->lock);
	}
	if (!rc)
		serve(c);
	connection_end(c);
	return NULL;
}

/* ------------------------------------------------------------------- listening */

static void welcome(struct tier_server *srv, struct fi_info *req, const pthread_attr_t *attr)
{
	struct connection *c = calloc(1, sizeof(*c));
	pthread_t t;

	if (!c) {
		ofi_reject(&srv->listener, req);
		return;
	}
	c->srv = srv;
	c->req = req;
	ofi_req_addr(req, c->from);
	pthread_mutex_lock(&srv->lock);
	if (srv->nr_strangers >= STRANGERS_MAX || srv->nr_connections >= CONNECTIONS_MAX) {
		pthread_mutex_unlock(&srv->lock);
		say(srv, true, "%s: refused: too many connections", c->from);
		ofi_reject(&srv->listener, req);
		free(c);
		return;
	}
	srv->nr_strangers++;
	srv->nr_connections++;
	c->next = srv->connections;
	c->at = &srv->connections;
	if (c->next)
		c->next->at = &c->next;
	srv->connections = c;
	pthread_mutex_unlock(&srv->lock);
	if (pthread_create(&t, attr, connection_main, c)) {
		ofi_reject(&srv->listener, req);
		connection_end(c);
	}
}

static void *listen_main(void *arg)
{
	struct tier_server *srv = arg;
	pthread_attr_t attr;
	struct fi_info *req;

	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, STACK);
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	while (!atomic_load(&srv->stop))
		if (!ofi_listener_next(&srv->listener, &req, ofi_now_ns() + SLICE_NS))
			welcome(srv, req, &attr);
	pthread_attr_destroy(&attr);
	return NULL;
}

int tier_server_start(const struct tier_server_options *opt, struct tier_server **srvp, char *err, size_t errlen)
{
	const char *arg = strncmp(opt->listen, "ofi:", 4) ? NULL : opt->listen + 4;
	struct tier_server *srv;
	int rc;

	if (!arg)
		return drv_fail(-EINVAL, err, errlen, "cannot listen on \"%s\"; say ofi://HOST:PORT", opt->listen);
	srv = calloc(1, sizeof(*srv));
	if (!srv)
		return drv_fail(-ENOMEM, err, errlen, "out of memory");
	srv->opt = *opt;
	if (!srv->opt.idle_ns)
		srv->opt.idle_ns = 300 * SECOND;
	if (!srv->opt.hello_ns)
		srv->opt.hello_ns = 5 * SECOND;
	rc = tier_addr_parse(arg, &srv->addr, err, errlen);
	if (rc)
		goto undo_alloc;
	if (!srv->opt.key_file && srv->addr.key[0])
		srv->opt.key_file = srv->addr.key;
	rc = tier_secret_load(&srv->secret, srv->opt.key_file, err, errlen);
	if (rc)
		goto undo_alloc;
	rc = ofi_net_open(&srv->net, srv->addr.provider, srv->addr.host, srv->addr.port, OFI_LISTEN, err, errlen);
	if (rc)
		goto undo_alloc;
	if (!srv->secret.keyed && !ofi_net_loopback(&srv->net)) {
		rc = drv_fail(-EPERM, err, errlen,
			      "%s can be reached from other machines: give a key (--key FILE), or listen on 127.0.0.1",
			      srv->addr.host);
		goto undo_net;
	}
	rc = tier_store_init(&srv->store, opt->memory);
	if (rc) {
		drv_fail(rc, err, errlen,
			 rc == -EINVAL ? "%llu bytes of memory are no use"
				       : "cannot reserve addresses for %llu bytes; see ulimit -v",
			 (unsigned long long)opt->memory);
		goto undo_net;
	}
	rc = ofi_listen(&srv->net, &srv->listener);
	if (rc) {
		drv_fail(rc, err, errlen, "cannot listen on %s:%s: %s", srv->addr.host, srv->addr.port, strerror(-rc));
		goto undo_store;
	}
	ofi_listener_addr(&srv->listener, srv->at);
	pthread_mutex_init(&srv->lock, NULL);
	pthread_cond_init(&srv->gone, NULL);
	rc = -pthread_create(&srv->thread, NULL, listen_main, srv);
	if (rc) {
		drv_fail(rc, err, errlen, "cannot start a thread: %s", strerror(-rc));
		goto undo_listen;
	}
	*srvp = srv;
	return 0;

undo_listen:
	pthread_cond_destroy(&srv->gone);
	pthread_mutex_destroy(&srv->lock);
	ofi_listener_close(&srv->listener);
undo_store:
	tier_store_exit(&srv->store);
undo_net:
	ofi_net_close(&srv->net);
undo_alloc:
	sodium_memzero(&srv->secret, sizeof(srv->secret));
	free(srv);
	return rc;
}

void tier_server_stop(struct tier_server *srv)
{
	atomic_store(&srv->stop, true);
	pthread_join(srv->thread, NULL);
	pthread_mutex_lock(&srv->lock);
	while (srv->connections)
		pthread_cond_wait(&srv->gone, &srv->lock);
	pthread_mutex_unlock(&srv->lock);
	pthread_cond_destroy(&srv->gone);
	pthread_mutex_destroy(&srv->lock);
	ofi_listener_close(&srv->listener);
	tier_store_exit(&srv->store);
	ofi_net_close(&srv->net);
	sodium_memzero(&srv->secret, sizeof(srv->secret));
	free(srv);
}
