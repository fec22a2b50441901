/* SPDX-License-Identifier: MIT */
/* The endpoint layer: two ends in two threads, on loopback. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "drivers/ofi/ep.h"

#define SECOND 1000000000ull
#define BIG (3u << 20)

static struct ofi_net net;
static struct ofi_listener listener;
static char port[8];

static uint64_t in(uint64_t ns)
{
	return ofi_now_ns() + ns;
}

static int setup(void **state)
{
	char err[200], addr[OFI_ADDR_MAX];

	if (ofi_net_open(&net, "tcp", "127.0.0.1", "0", OFI_LISTEN | OFI_RMA, err, sizeof(err))) {
		printf("SKIP: %s\n", err);
		exit(77);
	}
	assert_int_equal(ofi_listen(&net, &listener), 0);
	ofi_listener_addr(&listener, addr);
	assert_memory_equal(addr, "127.0.0.1:", 10);
	snprintf(port, sizeof(port), "%s", strrchr(addr, ':') + 1);
	return 0;
}

static int teardown(void **state)
{
	ofi_listener_close(&listener);
	ofi_net_close(&net);
	return 0;
}

struct server {
	pthread_t thread;
	bool own; /* a domain of its own */
	void (*serve)(struct ofi_net *net, struct ofi_ep *ep);
};

static void *server_main(void *arg)
{
	struct server *s = arg;
	struct fi_info *req;
	struct ofi_net own;
	struct ofi_ep ep;
	char addr[OFI_ADDR_MAX];

	assert_int_equal(ofi_listener_next(&listener, &req, in(10 * SECOND)), 0);
	ofi_req_addr(req, addr);
	assert_memory_equal(addr, "127.0.0.1:", 10);
	assert_int_equal(ofi_accept(&listener, req, s->own ? &own : NULL, &ep, in(10 * SECOND)), 0);
	s->serve(ep.net, &ep);
	ofi_ep_close(&ep);
	if (s->own)
		ofi_net_close(&own);
	return NULL;
}

static void begin(struct server *s, struct ofi_net *mine, struct ofi_ep *ep)
{
	assert_int_equal(pthread_create(&s->thread, NULL, server_main, s), 0);
	assert_int_equal(ofi_net_open(mine, "tcp", "127.0.0.1", port, OFI_RMA, NULL, 0), 0);
	assert_true(ofi_net_loopback(mine));
	assert_int_equal(ofi_connect(mine, ep, in(10 * SECOND)), 0);
}

static void end(struct server *s, struct ofi_net *mine, struct ofi_ep *ep)
{
	ofi_ep_close(ep);
	ofi_net_close(mine);
	pthread_join(s->thread, NULL);
}

static void echo(struct ofi_net *on, struct ofi_ep *ep)
{
	char *buf = malloc(BIG);
	size_t len;

	while (!ofi_recv(ep, buf, BIG, NULL, &len, in(10 * SECOND))) {
		for (size_t i = 0; i < len; i++)
			buf[i] ^= 0x5a;
		if (ofi_send(ep, buf, len, NULL, in(10 * SECOND)))
			break;
	}
	free(buf);
}

static void messages(bool own)
{
	static const size_t lengths[] = {1, 8, 4096, 4097, 300000, BIG};
	struct server s = {.own = own, .serve = echo};
	char *out = malloc(BIG), *back = malloc(BIG);
	struct ofi_net mine;
	struct ofi_ep ep;

	begin(&s, &mine, &ep);
	for (unsigned round = 0; round < 20; round++) {
		for (unsigned l = 0; l < sizeof(lengths) / sizeof(lengths[0]); l++) {
			size_t len = lengths[l], got = 0;

			for (size_t i = 0; i < len; i++)
				out[i] = (char)(i * 7 + round + l);
			assert_int_equal(ofi_send(&ep, out, len, NULL, in(10 * SECOND)), 0);
			assert_int_equal(ofi_recv(&ep, back, BIG, NULL, &got, in(10 * SECOND)), 0);
			assert_int_equal(got, len);
			for (size_t i = 0; i < len; i++)
				if (back[i] != (out[i] ^ 0x5a))
					fail_msg("byte %zu of %zu", i, len);
		}
	}
	end(&s, &mine, &ep);
	free(out);
	free(back);
}

static void test_messages(void **state)
{
	messages(false);
}

static void test_messages_own_domain(void **state)
{
	messages(true);
}

struct offer {
	uint64_t addr, key;
};

static char exposed[1 << 20];

static void expose(struct ofi_net *on, struct ofi_ep *ep)
{
	struct offer o;
	struct fid_mr *mr;
	char bye;
	size_t len;

	for (size_t i = 0; i < sizeof(exposed); i++)
		exposed[i] = (char)(i * 13);
	assert_int_equal(ofi_mr_reg(on, exposed, sizeof(exposed), FI_REMOTE_READ | FI_REMOTE_WRITE, 42, &mr), 0);
	o = (struct offer){.addr = ofi_mr_addr(on, exposed, exposed), .key = fi_mr_key(mr)};
	assert_int_equal(ofi_send(ep, &o, sizeof(o), NULL, in(10 * SECOND)), 0);
	/* What the peer reads and writes is done while this waits. */
	assert_int_equal(ofi_recv(ep, &bye, 1, NULL, &len, in(10 * SECOND)), 0);
	fi_close(&mr->fid);
}

static void test_rma(void **state)
{
	struct server s = {.serve = expose};
	struct ofi_net mine;
	struct ofi_ep ep;
	struct offer o;
	struct ofi_op op;
	char *buf = malloc(sizeof(exposed));
	size_t len;

	begin(&s, &mine, &ep);
	assert_int_equal(ofi_recv(&ep, &o, sizeof(o), NULL, &len, in(10 * SECOND)), 0);
	assert_int_equal(ofi_post_read(&ep, buf, sizeof(exposed), NULL, o.addr, o.key, &op, in(10 * SECOND)), 0);
	assert_int_equal(ofi_wait(&ep, &op, in(10 * SECOND)), 0);
	for (size_t i = 0; i < sizeof(exposed); i++)
		if (buf[i] != (char)(i * 13))
			fail_msg("byte %zu", i);
	memset(buf, 0x77, 5000);
	assert_int_equal(ofi_post_write(&ep, buf, 5000, NULL, o.addr + 100, o.key, &op, in(10 * SECOND)), 0);
	assert_int_equal(ofi_wait(&ep, &op, in(10 * SECOND)), 0);
	assert_int_equal(ofi_send(&ep, "x", 1, NULL, in(10 * SECOND)), 0);
	end(&s, &mine, &ep);
	assert_int_equal(exposed[99], (char)(99 * 13));
	assert_int_equal(exposed[100], 0x77);
	assert_int_equal(exposed[5099], 0x77);
	assert_int_equal(exposed[5100], (char)(5100 * 13));
	free(buf);
}

static void leave(struct ofi_net *on, struct ofi_ep *ep)
{
	char c;
	size_t len;

	assert_int_equal(ofi_recv(ep, &c, 1, NULL, &len, in(10 * SECOND)), 0);
}

/* Whoever waits for a peer that goes away learns of it, long before the deadline. */
static void test_peer_leaves(void **state)
{
	struct server s = {.serve = leave};
	struct ofi_net mine;
	struct ofi_ep ep;
	struct ofi_op op;
	char buf[16];
	int rc;

	begin(&s, &mine, &ep);
	assert_int_equal(ofi_post_recv(&ep, buf, sizeof(buf), NULL, &op, in(60 * SECOND)), 0);
	assert_int_equal(ofi_send(&ep, "x", 1, NULL, in(60 * SECOND)), 0);
	rc = ofi_wait(&ep, &op, in(3600 * SECOND));
	assert_true(rc < 0 && rc != -ETIME);
	end(&s, &mine, &ep);
}

/* A peer that says nothing: the deadline, and the endpoint can be closed with the receive still posted. */
static void test_deadline(void **state)
{
	struct server s = {.serve = leave};
	struct ofi_net mine;
	struct ofi_ep ep;
	char buf[16];
	size_t len;

	begin(&s, &mine, &ep);
	assert_int_equal(ofi_recv(&ep, buf, sizeof(buf), NULL, &len, in(SECOND / 10)), -ETIME);
	assert_int_equal(ofi_send(&ep, "x", 1, NULL, in(10 * SECOND)), 0);
	end(&s, &mine, &ep);
}

static void answer_twice(struct ofi_net *on, struct ofi_ep *ep)
{
	char c;
	size_t len;

	assert_int_equal(ofi_recv(ep, &c, 1, NULL, &len, in(10 * SECOND)), 0);
	assert_int_equal(ofi_send(ep, "1", 1, NULL, in(10 * SECOND)), 0);
	assert_int_equal(ofi_send(ep, "2", 1, NULL, in(10 * SECOND)), 0);
	assert_int_equal(ofi_recv(ep, &c, 1, NULL, &len, in(10 * SECOND)), 0);
}

static char late[1], next[1];

static __attribute__((noinline)) void gives_up(struct ofi_ep *ep)
{
	size_t len;

	assert_int_equal(ofi_recv(ep, late, 1, NULL, &len, 1), -ETIME);
}

/* Where the stack of gives_up() was is ours while both answers come. */
static __attribute__((noinline)) void goes_on(struct ofi_ep *ep, struct ofi_op *op)
{
	volatile char mine[16384];

	for (size_t i = 0; i < sizeof(mine); i++)
		mine[i] = 0x5a;
	assert_int_equal(ofi_wait(ep, op, in(10 * SECOND)), 0);
	for (size_t i = 0; i < sizeof(mine); i++)
		if (mine[i] != 0x5a)
			fail_msg("byte %zu was written to", i);
}

/* What comes after the deadline goes where it was to go, and to nobody's stack. */
static void test_too_late(void **state)
{
	struct server s = {.serve = answer_twice};
	struct ofi_net mine;
	struct ofi_ep ep;
	struct ofi_op op;
	size_t len;

	begin(&s, &mine, &ep);
	gives_up(&ep);
	/* One at a time: it is still under way. */
	assert_int_equal(ofi_recv(&ep, next, 1, NULL, &len, in(10 * SECOND)), -EBUSY);
	assert_int_equal(ofi_post_recv(&ep, next, 1, NULL, &op, in(10 * SECOND)), 0);
	assert_int_equal(ofi_send(&ep, "x", 1, NULL, in(10 * SECOND)), 0);
	goes_on(&ep, &op);
	assert_int_equal(late[0], '1');
	assert_int_equal(next[0], '2');
	assert_int_equal(ofi_send(&ep, "x", 1, NULL, in(10 * SECOND)), 0);
	end(&s, &mine, &ep);
}

static void test_nobody_asks(void **state)
{
	struct fi_info *req;

	assert_int_equal(ofi_listener_next(&listener, &req, in(SECOND / 20)), -ETIME);
}

static void test_refused(void **state)
{
	struct ofi_net mine;
	struct ofi_ep ep;
	int rc;

	assert_int_equal(ofi_net_open(&mine, "tcp", "127.0.0.1", "1", 0, NULL, 0), 0);
	rc = ofi_connect(&mine, &ep, in(10 * SECOND));
	assert_int_equal(rc, -ECONNREFUSED);
	ofi_net_close(&mine);
}

static void test_no_way(void **state)
{
	const char *const unfit[] = {"shm", "udp", "udp;ofi_rxd", "tcp;ofi_rxm"};
	char err[200] = "";
	struct ofi_net mine;

	assert_int_equal(ofi_net_open(&mine, "nosuch", "127.0.0.1", "1", 0, err, sizeof(err)), -EHOSTUNREACH);
	assert_non_null(strstr(err, "provider nosuch"));
	/* Those that have no connections are refused, and not tried. */
	for (unsigned i = 0; i < sizeof(unfit) / sizeof(unfit[0]); i++) {
		assert_int_equal(ofi_net_open(&mine, unfit[i], "127.0.0.1", "1", 0, err, sizeof(err)), -EHOSTUNREACH);
		assert_non_null(strstr(err, unfit[i]));
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_messages),    cmocka_unit_test(test_messages_own_domain),
		cmocka_unit_test(test_rma),         cmocka_unit_test(test_peer_leaves),
		cmocka_unit_test(test_deadline),    cmocka_unit_test(test_too_late),
		cmocka_unit_test(test_nobody_asks), cmocka_unit_test(test_refused),
		cmocka_unit_test(test_no_way),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
