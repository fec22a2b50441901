/* SPDX-License-Identifier: MIT */
/*
 * The remote tier: what is said and how it is sealed, the server's memory, and the
 * device against a server in this process, or against somebody who is none.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "../../fuzz/tier.h"
#include "drivers/ofi/internal.h"
#include "drivers/ofi/server.h"
#include "hammer.h"
#include "pages.h"

#define SECOND 1000000000ull
#define MIB ((uint64_t)1 << 20)

/* ------------------------------------------------------------------ addresses */

static void test_addresses(void **state)
{
	static const char *const bad[] = {
		"",
		"host:1",
		"//",
		"//host",
		"//host:",
		"//:1",
		"//host:x",
		"//host:65536",
		"//host:123456",
		"//::1:5",
		"//host:1,",
		"//host:1,key=",
		"//host:1,key",
		"//host:1,timeout=0",
		"//host:1,timeout=x",
		"//host:1,timeout=99999999",
		"//host:1,nosuch=1",
		"//host:1x",
	};
	struct tier_addr a;
	char err[300], longer[300];

	assert_int_equal(tier_addr_parse("//10.0.0.1:4711", &a, NULL, 0), 0);
	assert_string_equal(a.host, "10.0.0.1");
	assert_string_equal(a.port, "4711");
	assert_string_equal(a.key, "");
	assert_string_equal(a.provider, "tcp");
	assert_int_equal(tier_addr_parse("//[fe80::1]:65535,key=/a b/c,timeout=3,provider=verbs", &a, NULL, 0), 0);
	assert_string_equal(a.host, "fe80::1");
	assert_string_equal(a.key, "/a b/c");
	assert_string_equal(a.provider, "verbs");
	assert_int_equal(a.timeout_ns, 3 * SECOND);
	for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		err[0] = '\0';
		if (tier_addr_parse(bad[i], &a, err, sizeof(err)) != -EINVAL || !strstr(err, "ofi://HOST:PORT"))
			fail_msg("\"%s\": %s", bad[i], err);
	}
	memset(longer, 'a', sizeof(longer));
	memcpy(longer, "//", 2);
	strcpy(longer + sizeof(longer) - 4, ":1");
	assert_int_equal(tier_addr_parse(longer, &a, err, sizeof(err)), -EINVAL);
}

/* ----------------------------------------------------------------- key files */

static char dir[] = "/tmp/hmm-ofi-test-XXXXXX";

/* A key file of @len bytes @byte; its path, good until the next call but one. */
static const char *key_file(char byte, size_t len, mode_t mode)
{
	static char path[2][64];
	static unsigned turn;
	char *at = path[turn++ % 2];
	FILE *f;

	snprintf(at, sizeof(path[0]), "%s/key-%d-%zu", dir, byte, len);
	unlink(at);
	f = fopen(at, "w");
	assert_non_null(f);
	for (size_t i = 0; i < len; i++)
		fputc(byte, f);
	assert_int_equal(fclose(f), 0);
	assert_int_equal(chmod(at, mode), 0);
	return at;
}

static struct tier_secret secret_of(char byte)
{
	struct tier_secret s;

	assert_int_equal(tier_secret_load(&s, key_file(byte, 32, 0600), NULL, 0), 0);
	assert_true(s.keyed);
	return s;
}

static void test_key_files(void **state)
{
	struct tier_secret a, b, none;
	char err[300];

	a = secret_of('a');
	b = secret_of('b');
	assert_memory_not_equal(a.key, b.key, TIER_KEY);
	assert_int_equal(tier_secret_load(&none, NULL, NULL, 0), 0);
	assert_false(none.keyed);
	assert_int_equal(tier_secret_load(&a, "/nosuch/key", err, sizeof(err)), -ENOENT);
	assert_int_equal(tier_secret_load(&a, key_file('a', 31, 0600), err, sizeof(err)), -EINVAL);
	assert_non_null(strstr(err, "/dev/urandom"));
	assert_int_equal(tier_secret_load(&a, key_file('a', 4097, 0600), err, sizeof(err)), -EINVAL);
	assert_int_equal(tier_secret_load(&a, key_file('a', 4096, 0400), err, sizeof(err)), 0);
	assert_int_equal(tier_secret_load(&a, key_file('a', 32, 0640), err, sizeof(err)), -EACCES);
	assert_non_null(strstr(err, "chmod 600"));
}

/* ------------------------------------------------------------------ handshake */

struct pair {
	struct tier_keys client, server;
};

static struct pair shake(const struct tier_secret *s)
{
	struct tier_hello hello;
	struct tier_answer answer;
	uint8_t sk[TIER_KEY];
	struct pair p;

	tier_hello_make(s, &hello, sk);
	assert_int_equal(tier_hello_answer(s, &hello, sizeof(hello), &answer, &p.server), 0);
	assert_int_equal(tier_answer_check(s, &hello, sk, &answer, sizeof(answer), &p.client), 0);
	return p;
}

static void test_handshake(void **state)
{
	struct tier_secret a = secret_of('a'), b = secret_of('b'), none = {0};
	struct pair p = shake(&a), q = shake(&a), n = shake(&none);
	struct tier_hello hello;
	struct tier_answer answer;
	struct tier_keys keys;
	uint8_t sk[TIER_KEY];

	assert_memory_equal(p.client.out, p.server.in, TIER_KEY);
	assert_memory_equal(p.client.in, p.server.out, TIER_KEY);
	assert_memory_not_equal(p.client.in, p.client.out, TIER_KEY);
	assert_memory_not_equal(p.client.out, q.client.out, TIER_KEY); /* fresh each time */
	assert_memory_not_equal(p.client.out, n.client.out, TIER_KEY);

	/* The server says what is wrong, and the client hears it. */
	tier_hello_make(&b, &hello, sk);
	assert_int_equal(tier_hello_answer(&a, &hello, sizeof(hello), &answer, &keys), -EKEYREJECTED);
	assert_int_equal(tier_answer_check(&b, &hello, sk, &answer, sizeof(answer), &keys), -EKEYREJECTED);
	assert_int_equal(tier_hello_answer(&none, &hello, sizeof(hello), &answer, &keys), -EOPNOTSUPP);
	assert_int_equal(tier_answer_check(&b, &hello, sk, &answer, sizeof(answer), &keys), -EOPNOTSUPP);
	tier_hello_make(&none, &hello, sk);
	assert_int_equal(tier_hello_answer(&a, &hello, sizeof(hello), &answer, &keys), -ENOKEY);
	assert_int_equal(tier_answer_check(&none, &hello, sk, &answer, sizeof(answer), &keys), -ENOKEY);

	/* A server that has another key, and says yes nevertheless. */
	tier_hello_make(&a, &hello, sk);
	assert_int_equal(tier_hello_answer(&a, &hello, sizeof(hello), &answer, &keys), 0);
	answer.mac[5] ^= 1;
	assert_int_equal(tier_answer_check(&a, &hello, sk, &answer, sizeof(answer), &keys), -EKEYREJECTED);
	answer.mac[5] ^= 1;
	assert_int_equal(tier_answer_check(&a, &hello, sk, &answer, sizeof(answer), &keys), 0);
	/* The answer to another hello. */
	tier_hello_make(&a, &hello, sk);
	assert_int_equal(tier_answer_check(&a, &hello, sk, &answer, sizeof(answer), &keys), -EKEYREJECTED);
}

/* Every bit of hello and answer counts. */
static void test_handshake_changed(void **state)
{
	struct tier_secret a = secret_of('a');
	struct tier_hello hello;
	struct tier_answer answer;
	struct tier_keys keys;
	uint8_t sk[TIER_KEY];

	tier_hello_make(&a, &hello, sk);
	for (size_t i = 0; i < sizeof(hello) * 8; i++) {
		struct tier_hello bent = hello;

		((uint8_t *)&bent)[i / 8] ^= (uint8_t)(1 << i % 8);
		assert_true(tier_hello_answer(&a, &bent, sizeof(bent), &answer, &keys) < 0);
	}
	for (size_t n = 0; n < sizeof(hello); n++)
		assert_int_equal(tier_hello_answer(&a, &hello, n, &answer, &keys), -EPROTO);
	assert_int_equal(tier_hello_answer(&a, &hello, sizeof(hello), &answer, &keys), 0);
	for (size_t i = 0; i < sizeof(answer) * 8; i++) {
		struct tier_answer bent = answer;

		((uint8_t *)&bent)[i / 8] ^= (uint8_t)(1 << i % 8);
		if (tier_answer_check(&a, &hello, sk, &bent, sizeof(bent), &keys) >= 0)
			fail_msg("bit %zu of the answer does not count", i);
	}
}

/* Who repeats a recorded connection gets an answer, and cannot go on. */
static void test_recorded_connection(void **state)
{
	struct tier_secret a = secret_of('a');
	struct tier_head h = {.op = TIER_ATTACH}, got;
	struct tier_hello hello;
	struct tier_answer answer;
	struct tier_keys client, server;
	uint8_t sk[TIER_KEY], frame[TIER_FRAME_MAX];
	const uint8_t *pages;
	size_t len;

	tier_hello_make(&a, &hello, sk);
	assert_int_equal(tier_hello_answer(&a, &hello, sizeof(hello), &answer, &server), 0);
	assert_int_equal(tier_answer_check(&a, &hello, sk, &answer, sizeof(answer), &client), 0);
	len = tier_frame_seal(&client, &h, frame);
	assert_int_equal(tier_frame_open(&server, frame, len, false, &got, &pages), 0);
	assert_int_equal(tier_hello_answer(&a, &hello, sizeof(hello), &answer, &server), 0);
	assert_int_equal(tier_frame_open(&server, frame, len, false, &got, &pages), -EPROTO);
}

/* --------------------------------------------------------------------- frames */

static void test_frames(void **state)
{
	struct tier_secret a = secret_of('a');
	static uint8_t frame[TIER_FRAME_MAX], bent[TIER_FRAME_MAX];
	struct tier_head h = {.op = TIER_PUT, .n = 2, .slot = {7, 9}}, got;
	struct pair p = shake(&a), before;
	const uint8_t *pages;
	size_t head, len;

	head = tier_frame_seal(&p.client, &h, frame);
	memset(frame + head, 0x11, HMM_PAGE_SIZE);
	memset(frame + head + HMM_PAGE_SIZE, 0x22, HMM_PAGE_SIZE);
	len = head + 2 * HMM_PAGE_SIZE;
	assert_ptr_equal(tier_frame_pages(&h, frame), frame + head);
	before = p;
	for (size_t i = 0; i < head * 8; i++) {
		memcpy(bent, frame, len);
		bent[i / 8] ^= (uint8_t)(1 << i % 8);
		if (tier_frame_open(&p.server, bent, len, false, &got, &pages) != -EPROTO)
			fail_msg("bit %zu does not count", i);
	}
	for (size_t n = 0; n < len; n++) {
		struct pair one = before;

		if (tier_frame_open(&one.server, frame, n, false, &got, &pages) != -EPROTO)
			fail_msg("cut to %zu bytes", n);
	}
	/* As a reply, to who sent it, and by another connection. */
	p = before;
	assert_int_equal(tier_frame_open(&p.server, frame, len, true, &got, &pages), -EPROTO);
	p = before;
	assert_int_equal(tier_frame_open(&p.client, frame, len, false, &got, &pages), -EPROTO);
	p = shake(&a);
	assert_int_equal(tier_frame_open(&p.server, frame, len, false, &got, &pages), -EPROTO);
	p = before;
	assert_int_equal(tier_frame_open(&p.server, frame, len, false, &got, &pages), 0);
	assert_int_equal(got.n, 2);
	assert_int_equal(got.slot[1], 9);
	assert_int_equal(pages[0], 0x11);
	assert_int_equal(pages[HMM_PAGE_SIZE], 0x22);
	/* A second time. */
	assert_int_equal(tier_frame_open(&p.server, frame, len, false, &got, &pages), -EPROTO);
	/* One left out. */
	tier_frame_seal(&p.client, &h, frame);
	tier_frame_seal(&p.client, &h, frame);
	assert_int_equal(tier_frame_open(&p.server, frame, len, false, &got, &pages), -EPROTO);
}

static void test_pages_sealed(void **state)
{
	static uint8_t page[HMM_PAGE_SIZE], in[HMM_PAGE_SIZE], out[HMM_PAGE_SIZE];
	uint8_t tag[TIER_TAG];

	for (int software = 0; software < 2; software++) {
		struct tier_vault v, other;

		tier_vault_init(&v, software);
		tier_vault_init(&other, software);
		make_page(page, TEXT, 1);
		tier_page_seal(&v, 5, 100, page, in, tag);
		assert_null(memmem(in, sizeof(in), "quick", 5));
		assert_int_equal(tier_page_open(&v, 5, 100, in, tag, out), 0);
		assert_memory_equal(page, out, HMM_PAGE_SIZE);
		assert_int_equal(tier_page_open(&v, 6, 100, in, tag, out), -EBADMSG);
		assert_int_equal(tier_page_open(&v, 5, 101, in, tag, out), -EBADMSG);
		assert_int_equal(tier_page_open(&other, 5, 100, in, tag, out), -EBADMSG);
		for (unsigned i = 0; i < HMM_PAGE_SIZE; i += 61) {
			in[i] ^= 1;
			memset(out, 0x55, sizeof(out));
			assert_int_equal(tier_page_open(&v, 5, 100, in, tag, out), -EBADMSG);
			assert_true(page_is(out, ZERO, 0)); /* nothing of it is to be seen */
			in[i] ^= 1;
		}
		tag[3] ^= 1;
		assert_int_equal(tier_page_open(&v, 5, 100, in, tag, out), -EBADMSG);
	}
}

/* The fuzzer's program, with inputs that are made to get through: heads that parse now and then. */
static void test_fuzzed(void **state)
{
	unsigned rounds = getenv("HMM_TEST_LONG") ? 200000 : 4000;
	static uint8_t input[4096];
	uint64_t rnd = 42;

	for (unsigned r = 0; r < rounds; r++) {
		size_t size = (rnd = mix(rnd)) % sizeof(input), at = 1;

		for (size_t i = 0; i < size; i++)
			input[i] = (uint8_t)(rnd = mix(rnd));
		while (r % 2 && at + 2 + sizeof(struct tier_head) < size) {
			struct tier_head h = {.op = (uint8_t)(TIER_PUT + (rnd = mix(rnd)) % 3)};
			size_t len;

			rnd = mix(rnd);
			h.n = (uint16_t)(rnd % (rnd & 1 << 20 ? 8 : TIER_PAGES + 4));
			for (unsigned i = 0; i < h.n; i++)
				h.slot[i] = (rnd = mix(rnd)) % 40;
			len = tier_head_len(&h);
			input[0] = 7;
			input[at] = (uint8_t)((len - TIER_HEAD_MIN) / 8);
			memcpy(input + at + 2, &h, len);
			at += 2 + len;
			if (!((rnd = mix(rnd)) % 64))
				input[at - 1 - rnd % len] ^= 0x40;
		}
		LLVMFuzzerTestOneInput(input, size);
	}
}

/* ------------------------------------------------- the device and its server */

static char lines[8][300];
static _Atomic unsigned nr_lines;

static void note(void *priv, const char *line)
{
	unsigned n = atomic_fetch_add(&nr_lines, 1);

	if (n < 8)
		snprintf(lines[n], sizeof(lines[n]), "%s", line);
}

static bool was_said(const char *what)
{
	for (unsigned i = 0; i < 8 && i < atomic_load(&nr_lines); i++)
		if (strstr(lines[i], what))
			return true;
	return false;
}

/* @hello_ns: how long who connects may take to prove itself. */
static struct tier_server *serve_long(uint64_t memory, const char *key, uint64_t idle_ns, uint64_t hello_ns)
{
	struct tier_server_options opt = {.listen = "ofi://127.0.0.1:0",
					  .memory = memory,
					  .key_file = key,
					  .idle_ns = idle_ns,
					  .hello_ns = hello_ns,
					  .say = note};
	struct tier_server *srv;
	char err[400];

	memset(lines, 0, sizeof(lines));
	atomic_store(&nr_lines, 0);
	if (tier_server_start(&opt, &srv, err, sizeof(err)))
		fail_msg("%s", err);
	return srv;
}

static struct tier_server *serve(uint64_t memory, const char *key, uint64_t idle_ns)
{
	return serve_long(memory, key, idle_ns, 3600 * SECOND);
}

static int try_open(struct tier_server *srv, const char *more, struct hmm_device **dev, char *err, size_t errlen)
{
	char spec[200];

	snprintf(spec, sizeof(spec), "ofi://%s%s", tier_server_addr(srv), more);
	return hmm_device_open(spec, dev, err, errlen);
}

static struct hmm_device *open_dev(struct tier_server *srv, const char *more)
{
	struct hmm_device *dev;
	char err[400];

	if (try_open(srv, more, &dev, err, sizeof(err)))
		fail_msg("%s", err);
	return dev;
}

static _Atomic unsigned posted, on_stacks; /* operations of lane and server; of them those on a thread's stack */

/* At its deadline a call returns with them under way; the provider writes to them when they end. */
static void posts(const struct ofi_op *op)
{
	pthread_attr_t attr;
	size_t size;
	void *stack;

	assert_int_equal(pthread_getattr_np(pthread_self(), &attr), 0);
	assert_int_equal(pthread_attr_getstack(&attr, &stack, &size), 0);
	pthread_attr_destroy(&attr);
	atomic_fetch_add(&posted, 1);
	atomic_fetch_add(&on_stacks, (uintptr_t)op >= (uintptr_t)stack && (uintptr_t)op < (uintptr_t)stack + size);
}

int __real_ofi_post_recv(struct ofi_ep *ep, void *buf, size_t room, void *desc, struct ofi_op *op,
			 uint64_t deadline_ns);
int __wrap_ofi_post_recv(struct ofi_ep *ep, void *buf, size_t room, void *desc, struct ofi_op *op,
			 uint64_t deadline_ns);
int __real_ofi_post_send(struct ofi_ep *ep, const void *buf, size_t len, void *desc, struct ofi_op *op,
			 uint64_t deadline_ns);
int __wrap_ofi_post_send(struct ofi_ep *ep, const void *buf, size_t len, void *desc, struct ofi_op *op,
			 uint64_t deadline_ns);

int __wrap_ofi_post_recv(struct ofi_ep *ep, void *buf, size_t room, void *desc, struct ofi_op *op, uint64_t deadline_ns)
{
	posts(op);
	return __real_ofi_post_recv(ep, buf, room, desc, op, deadline_ns);
}

int __wrap_ofi_post_send(struct ofi_ep *ep, const void *buf, size_t len, void *desc, struct ofi_op *op,
			 uint64_t deadline_ns)
{
	posts(op);
	return __real_ofi_post_send(ep, buf, len, desc, op, deadline_ns);
}

/* Waits for what another thread is about to do; the harness's limit is the only clock. */
#define until(cond)                   \
	do {                          \
		while (!(cond))       \
			usleep(2000); \
	} while (0)

static void test_kinds_and_references(void **state)
{
	struct tier_server *srv = serve(64 * MIB, NULL, 0);
	struct hmm_device *dev = open_dev(srv, "");
	char page[HMM_PAGE_SIZE];

	for (enum kind k = 0; k < NR_KINDS; k++) {
		hmm_handle_t h;

		assert_int_equal(put_in(dev, k, 77, &h), 1);
		assert_true(reads_as(dev, h, k, 77));
		make_page(page, k, 77);
		assert_true(dev->ops->same(dev, h, page));
		page[4000] ^= 1;
		assert_false(dev->ops->same(dev, h, page));
		assert_false(dev->ops->shared(dev, h));
		dev->ops->get(dev, &h, 1);
		dev->ops->put(dev, &h, 1);
		assert_true(reads_as(dev, h, k, 77));
		dev->ops->put(dev, &h, 1);
	}
	assert_int_equal(stats_of(dev).pages, 0);
	assert_int_equal(stats_of(dev).errors, 0);
	/* The server is told, though nothing is written any more. */
	until(!tier_store_pages(tier_server_store(srv)));
	hmm_device_close(dev);
	tier_server_stop(srv);
}

static void test_batches(void **state)
{
	struct tier_server *srv = serve(64 * MIB, NULL, 0);
	struct hmm_device *dev = open_dev(srv, "");
	char *buf = malloc((size_t)HMM_BATCH_MAX * HMM_PAGE_SIZE);
	hmm_handle_t h[HMM_BATCH_MAX];
	int status[HMM_BATCH_MAX];
	void *at[HMM_BATCH_MAX];

	for (unsigned n = 1; n <= HMM_BATCH_MAX; n += 73) {
		for (unsigned i = 0; i < n; i++) {
			at[i] = buf + (size_t)i * HMM_PAGE_SIZE;
			make_page(at[i], i % NR_KINDS, n * 1000 + i);
		}
		assert_int_equal(dev->ops->copy_in(dev, (const void *const *)at, h, n), n);
		memset(buf, 0, (size_t)n * HMM_PAGE_SIZE);
		assert_int_equal(dev->ops->copy_out(dev, h, at, status, n), 0);
		for (unsigned i = 0; i < n; i++) {
			assert_int_equal(status[i], 0);
			assert_true(page_is(at[i], i % NR_KINDS, n * 1000 + i));
		}
		/* One of them is none of ours: the others come nevertheless. */
		if (n > 40) {
			hmm_handle_t was = h[37];

			h[37] = 12345678;
			assert_int_equal(dev->ops->copy_out(dev, h, at, status, n), -EIO);
			h[37] = was;
			for (unsigned i = 0; i < n; i++)
				assert_int_equal(status[i], i == 37 ? -EIO : 0);
		}
		dev->ops->put(dev, h, n);
	}
	free(buf);
	hmm_device_close(dev);
	tier_server_stop(srv);
}

static void test_threads(void **state)
{
	struct tier_server *srv = serve(64 * MIB, NULL, 0);
	struct hmm_device *dev = open_dev(srv, "");

	assert_int_equal(hammer(dev, 6, 60, NR_KINDS), 0);
	hmm_device_close(dev);
	tier_server_stop(srv);
}

static void test_clients(void **state)
{
	struct tier_server *srv = serve(64 * MIB, NULL, 0);
	struct hmm_device *dev[12];
	hmm_handle_t h[12][20];

	for (unsigned c = 0; c < 12; c++) {
		dev[c] = open_dev(srv, "");
		for (unsigned i = 0; i < 20; i++)
			assert_int_equal(put_in(dev[c], INCOMPRESSIBLE, c * 100 + i, &h[c][i]), 1);
	}
	assert_int_equal(tier_store_pages(tier_server_store(srv)), 12 * 20);
	for (unsigned c = 0; c < 12; c++) {
		for (unsigned i = 0; i < 20; i++)
			assert_true(reads_as(dev[c], h[c][i], INCOMPRESSIBLE, c * 100 + i));
		hmm_device_close(dev[c]);
	}
	/* Nothing stays of who has gone. */
	until(!atomic_load(&tier_server_store(srv)->ram.bytes));
	tier_server_stop(srv);
}

/* A full server takes no more, keeps what it has, and takes again when there is room. */
static void test_full(void **state)
{
	struct tier_server *srv = serve(4 * MIB, NULL, 0);
	struct hmm_device *dev = open_dev(srv, "");
	hmm_handle_t h[2000], more;
	unsigned n = 0;

	while (n < 2000 && put_in(dev, INCOMPRESSIBLE, n, &h[n]) == 1)
		n++;
	assert_in_range(n, 500, 1024);
	assert_int_equal(h[n], HMM_HANDLE_NONE);
	assert_true(atomic_load(&tier_server_store(srv)->ram.bytes) <= 4 * MIB);
	assert_int_equal(put_in(dev, SAME, 5, &more), 1); /* that costs nothing there */
	assert_int_equal(put_in(dev, INCOMPRESSIBLE, 5, &more), 0);
	for (unsigned i = 0; i < n; i++)
		assert_true(reads_as(dev, h[i], INCOMPRESSIBLE, i));
	dev->ops->put(dev, h, 100);
	until(put_in(dev, INCOMPRESSIBLE, 4711, &more) == 1);
	assert_true(reads_as(dev, more, INCOMPRESSIBLE, 4711));
	for (unsigned i = 100; i < n; i++)
		assert_true(reads_as(dev, h[i], INCOMPRESSIBLE, i));
	hmm_device_close(dev);
	tier_server_stop(srv);
}

/* Of a full server: what has been freed here, and it still has, can be written over at once. */
static void test_full_with_slots_left(void **state)
{
	struct tier_server *srv = serve(4 * MIB, NULL, 0);
	struct hmm_device *dev = open_dev(srv, "");
	struct hmm_ofi *d = (struct hmm_ofi *)dev;
	static char page[8][HMM_PAGE_SIZE];
	const void *src[8];
	hmm_handle_t h[2000], more;
	unsigned n = 0;

	/* The keeper, which tells the server what is free, has no part in it. */
	pthread_mutex_lock(&d->lock);
	d->keeper_ends = true;
	pthread_cond_signal(&d->keeper_cond);
	pthread_mutex_unlock(&d->lock);

	while (n < 2000 && put_in(dev, INCOMPRESSIBLE, n, &h[n]) == 1)
		n++;
	assert_in_range(n, 500, 1024);
	/* What was refused is not there, and the server is not asked each time. */
	assert_int_equal(d->nr_stale, 0);
	dev->ops->put(dev, h, 8);
	for (unsigned i = 0; i < 8; i++) {
		src[i] = page[i];
		make_page(page[i], INCOMPRESSIBLE, 5000 + i);
	}
	assert_int_equal(dev->ops->copy_in(dev, src, h, 8), 8);
	assert_int_equal(put_in(dev, INCOMPRESSIBLE, 5, &more), 0);
	/* And no more than that. */
	dev->ops->put(dev, h, 3);
	assert_int_equal(dev->ops->copy_in(dev, src, h, 8), 3);
	for (unsigned i = 0; i < n; i++)
		if (i < 3 || i >= 8)
			assert_true(reads_as(dev, h[i], INCOMPRESSIBLE, i < 8 ? 5000 + i : i));
	hmm_device_close(dev);
	tier_server_stop(srv);
}

/* Where the server's memory has the page of @handle. */
static uint8_t *held_at(struct tier_server *srv, hmm_handle_t handle)
{
	struct tier_store *s = tier_server_store(srv);
	uint32_t nr = ((uint32_t *)s->sessions->slot.base)[handle];

	assert_true(nr);
	return s->data.base + (size_t)(nr - 1) * HMM_PAGE_SIZE;
}

/* A server that is not honest: it changes pages, exchanges them, keeps old ones. */
static void test_dishonest(void **state)
{
	struct tier_server *srv = serve(64 * MIB, NULL, 0);
	struct hmm_device *dev = open_dev(srv, "");
	uint8_t a[HMM_PAGE_SIZE], b[HMM_PAGE_SIZE], page[HMM_PAGE_SIZE];
	hmm_handle_t h[2], again;

	assert_int_equal(put_in(dev, TEXT, 1, &h[0]), 1);
	assert_int_equal(put_in(dev, TEXT, 2, &h[1]), 1);
	memcpy(a, held_at(srv, h[0]), HMM_PAGE_SIZE);
	memcpy(b, held_at(srv, h[1]), HMM_PAGE_SIZE);
	assert_null(memmem(a, sizeof(a), "quick", 5));

	memcpy(held_at(srv, h[0]), b, HMM_PAGE_SIZE);
	memcpy(held_at(srv, h[1]), a, HMM_PAGE_SIZE);
	assert_int_equal(get_out(dev, h[0], page), -EBADMSG);
	assert_int_equal(get_out(dev, h[1], page), -EBADMSG);
	memcpy(held_at(srv, h[0]), a, HMM_PAGE_SIZE);
	memcpy(held_at(srv, h[1]), b, HMM_PAGE_SIZE);
	assert_true(reads_as(dev, h[0], TEXT, 1));
	held_at(srv, h[0])[100] ^= 4;
	assert_int_equal(get_out(dev, h[0], page), -EBADMSG);
	assert_true(reads_as(dev, h[1], TEXT, 2));

	/* The same slot has other contents now, even the same ones: the old ciphertext is replayed. */
	dev->ops->put(dev, &h[1], 1);
	assert_int_equal(put_in(dev, TEXT, 2, &again), 1);
	assert_int_equal(again, h[1]);
	assert_true(reads_as(dev, again, TEXT, 2));
	memcpy(held_at(srv, again), b, HMM_PAGE_SIZE);
	assert_int_equal(get_out(dev, again, page), -EBADMSG);
	hmm_device_close(dev);
	tier_server_stop(srv);
}

static void test_server_gone(void **state)
{
	struct tier_server *srv = serve(64 * MIB, NULL, 0);
	struct hmm_device *dev = open_dev(srv, "");
	hmm_handle_t h[40], same, more;
	char page[HMM_PAGE_SIZE];

	for (unsigned i = 0; i < 40; i++)
		assert_int_equal(put_in(dev, TEXT, i, &h[i]), 1);
	assert_int_equal(put_in(dev, SAME, 3, &same), 1);
	tier_server_stop(srv);
	make_page(page, TEXT, 0);
	assert_int_equal(get_out(dev, h[0], page), -ENOTCONN);
	assert_int_equal(get_out(dev, h[39], page), -ENOTCONN);
	assert_true(reads_as(dev, same, SAME, 3)); /* that never left */
	assert_int_equal(put_in(dev, TEXT, 1, &more), -EIO);
	assert_int_equal(more, HMM_HANDLE_NONE);
	make_page(page, TEXT, 5);
	assert_false(dev->ops->same(dev, h[5], page));
	dev->ops->put(dev, h, 40);
	hmm_device_close(dev);
}

static void test_keys(void **state)
{
	const char *key = key_file('a', 32, 0600);
	char mine[100], err[400], with[120];
	struct tier_server *srv, *open;
	struct hmm_device *dev;
	hmm_handle_t h;

	snprintf(mine, sizeof(mine), "%s", key);
	srv = serve(64 * MIB, mine, 0);
	snprintf(with, sizeof(with), ",key=%s", mine);
	dev = open_dev(srv, with);
	assert_int_equal(put_in(dev, TEXT, 1, &h), 1);
	assert_true(reads_as(dev, h, TEXT, 1));

	assert_int_equal(try_open(srv, "", &dev, err, sizeof(err)), -ENOKEY);
	assert_non_null(strstr(err, "wants a key"));
	until(was_said("gives no key"));
	assert_null(dev);
	usleep(1100000); /* one line a second */
	snprintf(with, sizeof(with), ",key=%s", key_file('b', 32, 0600));
	assert_int_equal(try_open(srv, with, &dev, err, sizeof(err)), -EKEYREJECTED);
	assert_non_null(strstr(err, "another one"));
	until(was_said("its key is not the one in"));

	open = serve(64 * MIB, NULL, 0);
	assert_int_equal(try_open(open, with, &dev, err, sizeof(err)), -EOPNOTSUPP);
	assert_non_null(strstr(err, "has no key"));
	tier_server_stop(open);
	tier_server_stop(srv);
}

/* Without a key nothing leaves the machine, and nobody outside is listened to. */
static void test_loopback_only(void **state)
{
	struct tier_server_options opt = {.listen = "ofi://0.0.0.0:0", .memory = MIB};
	struct tier_server *srv;
	struct hmm_device *dev;
	char err[400];

	assert_int_equal(tier_server_start(&opt, &srv, err, sizeof(err)), -EPERM);
	assert_non_null(strstr(err, "--key"));
	opt.key_file = key_file('a', 32, 0600);
	assert_int_equal(tier_server_start(&opt, &srv, err, sizeof(err)), 0);
	tier_server_stop(srv);
	assert_int_equal(hmm_device_open("ofi://0.0.0.1:9", &dev, err, sizeof(err)), -EPERM);
	assert_non_null(strstr(err, "key=FILE"));
}

static void test_nobody_there(void **state)
{
	struct tier_server *srv = serve(MIB, NULL, 0);
	struct tier_server_options opt = {.listen = "file:/tmp", .memory = MIB};
	struct hmm_device *dev;
	char at[OFI_ADDR_MAX + 10], err[400];

	snprintf(at, sizeof(at), "ofi://%s", tier_server_addr(srv));
	opt.listen = at;
	assert_int_equal(tier_server_start(&opt, &srv, err, sizeof(err)), -EADDRINUSE);
	tier_server_stop(srv);
	assert_int_equal(hmm_device_open(at, &dev, err, sizeof(err)), -ECONNREFUSED);
	assert_non_null(strstr(err, "hmm serve"));
	opt.listen = "file:/tmp";
	assert_int_equal(tier_server_start(&opt, &srv, err, sizeof(err)), -EINVAL);
}

/* ------------------------------------------------------------------- strangers */

static struct ofi_net net_to(struct tier_server *srv)
{
	struct ofi_net net;
	const char *port = strrchr(tier_server_addr(srv), ':') + 1;

	assert_int_equal(ofi_net_open(&net, "tcp", "127.0.0.1", port, 0, NULL, 0), 0);
	return net;
}

/* Whoever says nothing, or rubbish of any length, or a part of the right thing, is sent away; the server lives. */
static void test_strangers(void **state)
{
	struct tier_server *srv = serve_long(64 * MIB, NULL, 0, SECOND / 5);
	struct tier_secret none = {0};
	struct hmm_device *dev;
	uint64_t rnd = 7;
	char err[400];
	hmm_handle_t h;

	until(!try_open(srv, "", &dev, err, sizeof(err))); /* who is slow is sent away, too */
	assert_int_equal(put_in(dev, TEXT, 1, &h), 1);
	for (unsigned r = 0; r < 40; r++) {
		struct ofi_net net = net_to(srv);
		struct ofi_ep ep;
		struct tier_hello hello;
		uint8_t buf[5000], sk[TIER_KEY];
		uint64_t deadline = ofi_now_ns() + 60 * SECOND;
		size_t len = (rnd = mix(rnd)) % sizeof(buf), got;

		assert_int_equal(ofi_connect(&net, &ep, deadline), 0);
		for (size_t i = 0; i < len; i++)
			buf[i] = (uint8_t)(rnd = mix(rnd));
		if (r % 4 == 1) {
			tier_hello_make(&none, &hello, sk);
			memcpy(buf, &hello, sizeof(hello));
			len = r % 8 == 1 ? sizeof(hello) : sizeof(hello) - 1 - r / 8;
		}
		if (r % 4 && len)
			ofi_send(&ep, buf, len, NULL, deadline);
		/* The answer to a hello, then rubbish where the proof should be. */
		if (r % 8 == 1) {
			assert_int_equal(ofi_recv(&ep, buf, sizeof(buf), NULL, &got, deadline), 0);
			assert_int_equal(got, sizeof(struct tier_answer));
			ofi_send(&ep, buf, got, NULL, deadline);
		}
		got = 0;
		assert_true(ofi_recv(&ep, buf, sizeof(buf), NULL, &got, deadline) < 0);
		ofi_ep_close(&ep);
		ofi_net_close(&net);
	}
	assert_true(was_said("refused"));
	assert_true(reads_as(dev, h, TEXT, 1));
	hmm_device_close(dev);
	until(!atomic_load(&tier_server_store(srv)->ram.bytes));
	tier_server_stop(srv);
}

/* Who has the key, and sends frames that are changed, cut, repeated, or say nonsense. */
static void test_bad_members(void **state)
{
	struct tier_server *srv = serve(64 * MIB, NULL, 0);
	struct tier_secret none = {0};
	struct tier_addr addr;
	struct hmm_device *dev = open_dev(srv, "");
	uint64_t rnd = 11;
	char arg[100];
	hmm_handle_t h;

	assert_int_equal(put_in(dev, TEXT, 1, &h), 1);
	snprintf(arg, sizeof(arg), "//%s", tier_server_addr(srv));
	assert_int_equal(tier_addr_parse(arg, &addr, NULL, 0), 0);
	for (unsigned r = 0; r < 60; r++) {
		uint64_t deadline = ofi_now_ns() + 60 * SECOND;
		struct tier_attach attach = {0};
		struct tier_head head = {.op = (uint8_t)(TIER_PUT + r / 6 % 3), .n = 3, .slot = {1, 2, 3}};
		struct tier_lane lane;
		char err[300];
		size_t len, got;
		uint8_t *frame;

		if (tier_lane_open(&lane, &addr, &none, &attach, err, sizeof(err)))
			fail_msg("%s", err);
		frame = lane.out.p;
		if (r % 6 == 5)
			head.slot[r % 3] = mix(rnd + r); /* a slot beyond all */
		if (r % 6 == 4)
			head = (struct tier_head){.op = TIER_ATTACH};
		len = tier_frame_seal(&lane.keys, &head, frame) + tier_head_pages(&head) * (size_t)HMM_PAGE_SIZE;
		rnd = mix(rnd);
		if (r % 6 == 0)
			frame[rnd % (TIER_FRAME_HEAD + tier_head_len(&head) + TIER_TAG)] ^= 0x10;
		if (r % 6 == 1)
			len = rnd % len;
		if (r % 6 == 2)
			len += 1 + rnd % 5000;
		if (len)
			ofi_send(&lane.ep, frame, len, NULL, deadline);
		got = 0;
		if (r % 6 == 3 || r % 6 == 5) { /* those are answered */
			assert_int_equal(ofi_recv(&lane.ep, lane.in.p, lane.in.len, NULL, &got, deadline), 0);
			assert_true(got > 0);
			/* ... and the same once more is not */
			ofi_send(&lane.ep, frame, len, NULL, deadline);
		}
		if (len)
			assert_true(ofi_recv(&lane.ep, lane.in.p, lane.in.len, NULL, &got, deadline) < 0);
		tier_lane_close(&lane);
	}
	assert_true(was_said("does not belong to its session"));
	assert_true(reads_as(dev, h, TEXT, 1));
	hmm_device_close(dev);
	until(!atomic_load(&tier_server_store(srv)->ram.bytes));
	tier_server_stop(srv);
}

/* A session that another has not begun cannot be joined, nor another's by a number of one's own. */
static void test_foreign_session(void **state)
{
	struct tier_server *srv = serve(64 * MIB, NULL, 0);
	struct hmm_device *theirs = open_dev(srv, "");
	struct tier_attach attach = {.session = {1, 2, 3}};
	struct tier_secret none = {0};
	struct tier_addr addr;
	struct tier_lane lane;
	char arg[100];

	snprintf(arg, sizeof(arg), "//%s", tier_server_addr(srv));
	assert_int_equal(tier_addr_parse(arg, &addr, NULL, 0), 0);
	assert_int_equal(tier_lane_open(&lane, &addr, &none, &attach, NULL, 0), -EPROTO);
	hmm_device_close(theirs);
	tier_server_stop(srv);
}

/*
 * Those who connect and prove nothing are so many and no more; when they have gone there is room again.  None is sent
 * away before all are there.
 */
static void test_many_strangers(void **state)
{
	struct tier_server *srv = serve_long(64 * MIB, NULL, 0, 3600 * SECOND);
	static struct ofi_net net[70];
	static struct ofi_ep ep[70];
	struct hmm_device *dev;
	char spec[100];

	for (unsigned i = 0; i < 70; i++) {
		const char *port = strrchr(tier_server_addr(srv), ':') + 1;

		assert_int_equal(ofi_net_open(&net[i], "tcp", "127.0.0.1", port, 0, NULL, 0), 0);
		if (ofi_connect(&net[i], &ep[i], ofi_now_ns() + 20 * SECOND))
			ep[i] = (struct ofi_ep){0};
	}
	until(was_said("too many connections"));
	for (unsigned i = 0; i < 70; i++) {
		ofi_ep_close(&ep[i]);
		ofi_net_close(&net[i]);
	}
	snprintf(spec, sizeof(spec), "ofi://%s", tier_server_addr(srv));
	until(!hmm_device_open(spec, &dev, NULL, 0));
	hmm_device_close(dev);
	tier_server_stop(srv);
}

/* A client that is there and says nothing does not hold its memory for ever; who asks now and then does. */
static void test_silent_client(void **state)
{
	struct tier_server *srv = serve(64 * MIB, NULL, SECOND / 2);
	struct hmm_device *dev = open_dev(srv, "");
	hmm_handle_t h;
	char page[HMM_PAGE_SIZE];

	assert_int_equal(put_in(dev, TEXT, 1, &h), 1);
	/* The keeper asks every ten seconds only: too seldom for this server. */
	until(!atomic_load(&tier_server_store(srv)->ram.bytes));
	assert_true(was_said("silent for too long"));
	assert_int_equal(get_out(dev, h, page), -ENOTCONN);
	hmm_device_close(dev);
	tier_server_stop(srv);
}

/* ------------------------------------------------------------- false servers */

static void *hears_and_closes(void *listener)
{
	int fd = accept(*(int *)listener, NULL, NULL);
	char byte;

	assert_true(fd >= 0);
	assert_int_equal(read(fd, &byte, 1), 1);
	while (recv(fd, &byte, 1, MSG_DONTWAIT) == 1)
		;
	close(fd);
	return NULL;
}

/* Who does not know even libfabric's greeting, or has died over it: it is said what has happened. */
static void test_server_hangs_up(void **state)
{
	struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	socklen_t len = sizeof(at);
	struct hmm_device *dev;
	char spec[100], err[400];
	pthread_t t;

	assert_int_equal(bind(listener, (struct sockaddr *)&at, len), 0);
	assert_int_equal(listen(listener, 1), 0);
	assert_int_equal(getsockname(listener, (struct sockaddr *)&at, &len), 0);
	assert_int_equal(pthread_create(&t, NULL, hears_and_closes, &listener), 0);
	snprintf(spec, sizeof(spec), "ofi://127.0.0.1:%u", ntohs(at.sin_port));
	assert_int_equal(hmm_device_open(spec, &dev, err, sizeof(err)), -ECONNRESET);
	assert_non_null(strstr(err, "the server closed the connection"));
	pthread_join(t, NULL);
	close(listener);
}

enum lie {
	SILENT,    /* connected to, it says nothing */
	STOPS,     /* it serves, and then says nothing any more */
	REPEATS,   /* its second answer is its first one, once more */
	OLD_REPLY, /* it answers with what was right before */
	TOOK_MORE, /* than it was given */
	FREED,     /* where pages were put */
	HONEST,
	LATE,    /* to a read of slot 0, when all other connections have ended; to others as REPEATS */
	MISSING, /* says that it has not all of several; of single ones it gives two, then as REPEATS */
};

struct liar {
	enum lie lie;
	struct ofi_net net;
	struct ofi_listener listener;
	char at[OFI_ADDR_MAX];
	pthread_t thread[TIER_LANES];
	_Atomic unsigned turn, nr, ended; /* nr: connections; ended: by the other end */
	_Atomic bool asked;               /* for what is answered late */
	_Atomic unsigned pings, ping[TIER_LANES];
	_Atomic bool stop;
};

/* A server in a few lines, for pages that all have the same contents. */
static void *lie_main(void *arg)
{
	struct liar *l = arg;
	uint64_t deadline = ofi_now_ns() + 60 * SECOND;
	static uint8_t stored[64][HMM_PAGE_SIZE];
	uint8_t *in = malloc(TIER_FRAME_MAX), *out = malloc(TIER_FRAME_MAX);
	struct tier_secret none = {0};
	struct tier_answer answer;
	struct tier_keys keys;
	struct fi_info *req;
	struct ofi_net own;
	struct ofi_ep ep;
	size_t len, sent = 0;
	unsigned self, turn;

	assert_int_equal(ofi_listener_next(&l->listener, &req, deadline), 0);
	self = atomic_fetch_add(&l->nr, 1);
	assert_int_equal(ofi_accept(&l->listener, req, &own, &ep, deadline), 0);
	assert_int_equal(ofi_recv(&ep, in, TIER_FRAME_MAX, NULL, &len, deadline), 0);
	if (l->lie == SILENT)
		goto wait;
	assert_int_equal(tier_hello_answer(&none, in, len, &answer, &keys), 0);
	assert_int_equal(ofi_send(&ep, &answer, sizeof(answer), NULL, deadline), 0);
	while (!ofi_recv(&ep, in, TIER_FRAME_MAX, NULL, &len, deadline)) {
		const uint8_t *pages;
		struct tier_head h, asked;

		assert_int_equal(tier_frame_open(&keys, in, len, false, &h, &pages), 0);
		asked = h;
		if (h.op == TIER_PING) {
			atomic_fetch_add(&l->ping[self], 1);
			atomic_fetch_add(&l->pings, 1);
		}
		h.reply = 1;
		h.attach = h.op == TIER_ATTACH ? (struct tier_attach){.session = {1}, .max_slots = 64} : h.attach;
		for (unsigned i = 0; i < h.n && h.op == TIER_PUT; i++)
			memcpy(stored[asked.slot[i]], pages + (size_t)i * HMM_PAGE_SIZE, HMM_PAGE_SIZE);
		if (h.op != TIER_ATTACH && l->lie == STOPS && asked.op == TIER_GET)
			goto wait;
		if (asked.op == TIER_GET && l->lie == LATE && asked.slot[0] == 0) {
			atomic_store(&l->asked, true);
			until(atomic_load(&l->ended) == TIER_LANES - 1);
		}
		turn = asked.op == TIER_GET && asked.n == 1 ? atomic_fetch_add(&l->turn, 1) : 0;
		if (asked.op == TIER_GET && ((l->lie == REPEATS && turn) || (l->lie == MISSING && turn == 2) ||
					     (l->lie == LATE && asked.slot[0]))) {
			ofi_send(&ep, out, sent, NULL, deadline);
			continue;
		}
		if (asked.op == TIER_GET && l->lie == OLD_REPLY && turn)
			h.slot[0] ^= 1; /* the right seal on the answer to another question */
		if (asked.op == TIER_PUT && l->lie == TOOK_MORE)
			h.n = TIER_PAGES;
		if (asked.op == TIER_PUT && l->lie == FREED)
			h.op = TIER_FREE;
		if (asked.op == TIER_GET && l->lie == MISSING && asked.n > 1) {
			h.status = TIER_NO_PAGE;
			h.n = 0;
		}
		sent = tier_frame_seal(&keys, &h, out);
		for (unsigned i = 0; i < h.n && asked.op == TIER_GET; i++, sent += HMM_PAGE_SIZE)
			memcpy(out + sent, stored[asked.slot[i]], HMM_PAGE_SIZE);
		ofi_send(&ep, out, sent, NULL, deadline);
	}
	if (ofi_now_ns() < deadline)
		atomic_fetch_add(&l->ended, 1);
	goto end;
wait:
	until(atomic_load(&l->stop));
end:
	ofi_ep_close(&ep);
	ofi_net_close(&own);
	free(in);
	free(out);
	return NULL;
}

static void liar_start(struct liar *l, enum lie lie, unsigned lanes)
{
	*l = (struct liar){.lie = lie};
	assert_int_equal(ofi_net_open(&l->net, "tcp", "127.0.0.1", "0", OFI_LISTEN, NULL, 0), 0);
	assert_int_equal(ofi_listen(&l->net, &l->listener), 0);
	ofi_listener_addr(&l->listener, l->at);
	for (unsigned i = 0; i < lanes; i++)
		pthread_create(&l->thread[i], NULL, lie_main, l);
}

static void liar_stop(struct liar *l, unsigned lanes)
{
	atomic_store(&l->stop, true);
	for (unsigned i = 0; i < lanes; i++)
		pthread_join(l->thread[i], NULL);
	ofi_listener_close(&l->listener);
	ofi_net_close(&l->net);
}

static void test_silent_server(void **state)
{
	struct hmm_device *dev;
	struct liar l;
	char spec[120], err[400];

	liar_start(&l, SILENT, 1);
	snprintf(spec, sizeof(spec), "ofi://%s,timeout=1", l.at);
	assert_int_equal(hmm_device_open(spec, &dev, err, sizeof(err)), -ETIME);
	assert_non_null(strstr(err, "no answer in time"));
	liar_stop(&l, 1);
}

static void lies(enum lie lie)
{
	struct hmm_device *dev;
	struct liar l;
	char spec[120], err[400], page[HMM_PAGE_SIZE];
	hmm_handle_t h, more;

	liar_start(&l, lie, TIER_LANES);
	snprintf(spec, sizeof(spec), "ofi://%s,timeout=1", l.at);
	if (hmm_device_open(spec, &dev, err, sizeof(err)))
		fail_msg("%s", err);
	assert_int_equal(put_in(dev, TEXT, 1, &h), 1);
	if (lie != STOPS)
		assert_true(reads_as(dev, h, TEXT, 1));
	assert_int_equal(get_out(dev, h, page), -ENOTCONN);
	/* From then on it is not asked any more. */
	assert_int_equal(get_out(dev, h, page), -ENOTCONN);
	assert_int_equal(put_in(dev, TEXT, 2, &more), -EIO);
	hmm_device_close(dev);
	liar_stop(&l, TIER_LANES);
}

static void test_server_stops(void **state)
{
	lies(STOPS);
}

static void test_server_repeats(void **state)
{
	lies(REPEATS);
}

static void test_answer_to_something_else(void **state)
{
	lies(OLD_REPLY);
}

/* What goes with an answer to another question is lost, and nothing is noted beyond what was sent. */
static void test_answer_to_what_was_put(void **state)
{
	for (enum lie lie = TOOK_MORE; lie <= FREED; lie++) {
		struct hmm_device *dev;
		struct liar l;
		char spec[120], err[400];
		hmm_handle_t h;

		liar_start(&l, lie, TIER_LANES);
		snprintf(spec, sizeof(spec), "ofi://%s,timeout=20", l.at);
		if (hmm_device_open(spec, &dev, err, sizeof(err)))
			fail_msg("%s", err);
		assert_int_equal(put_in(dev, TEXT, 1, &h), -EIO);
		assert_int_equal(put_in(dev, TEXT, 2, &h), -EIO);
		hmm_device_close(dev);
		liar_stop(&l, TIER_LANES);
	}
}

/* Where the peer is lost while those of a batch are read one by one, what has been read is not. */
static void test_what_was_read_before_the_peer_was_lost(void **state)
{
	static char page[4][HMM_PAGE_SIZE];
	void *dst[4];
	int status[4];
	struct hmm_device *dev;
	struct liar l;
	char spec[120], err[400];
	hmm_handle_t h[4];

	liar_start(&l, MISSING, TIER_LANES);
	snprintf(spec, sizeof(spec), "ofi://%s,timeout=20", l.at);
	if (hmm_device_open(spec, &dev, err, sizeof(err)))
		fail_msg("%s", err);
	for (unsigned i = 0; i < 4; i++) {
		assert_int_equal(put_in(dev, TEXT, i, &h[i]), 1);
		dst[i] = page[i];
	}
	assert_true(dev->ops->copy_out(dev, h, dst, status, 4) < 0);
	for (unsigned i = 0; i < 4; i++)
		assert_int_equal(status[i], i < 2 ? 0 : -ENOTCONN);
	for (unsigned i = 0; i < 2; i++)
		assert_true(page_is(page[i], TEXT, i));
	hmm_device_close(dev);
	liar_stop(&l, TIER_LANES);
}

struct reader {
	struct hmm_device *dev;
	hmm_handle_t handle;
	int rc;
};

static void *reads(void *arg)
{
	struct reader *r = arg;
	char page[HMM_PAGE_SIZE];

	r->rc = get_out(r->dev, r->handle, page);
	return NULL;
}

/* A request that succeeds when the peer has been lost by another one: its connection does not outlive the others. */
static void test_a_late_answer_of_a_lost_peer(void **state)
{
	struct reader r = {.rc = -1};
	struct liar l;
	char spec[120], err[400], page[HMM_PAGE_SIZE];
	hmm_handle_t h[2];
	pthread_t t;

	liar_start(&l, LATE, TIER_LANES);
	snprintf(spec, sizeof(spec), "ofi://%s,timeout=40", l.at);
	if (hmm_device_open(spec, &r.dev, err, sizeof(err)))
		fail_msg("%s", err);
	for (unsigned i = 0; i < 2; i++)
		assert_int_equal(put_in(r.dev, TEXT, i, &h[i]), 1);
	r.handle = h[0];
	assert_int_equal(h[0], 0);
	assert_int_equal(pthread_create(&t, NULL, reads, &r), 0);
	until(atomic_load(&l.asked));
	assert_int_equal(get_out(r.dev, h[1], page), -ENOTCONN);
	pthread_join(t, NULL);
	assert_int_equal(r.rc, 0);
	assert_int_equal(((struct hmm_ofi *)r.dev)->nr_idle, 0);
	until(atomic_load(&l.ended) == TIER_LANES);
	hmm_device_close(r.dev);
	liar_stop(&l, TIER_LANES);
}

/* Who is on the way may forget a connection that is silent: something is said on each. */
static void test_no_lane_is_silent(void **state)
{
	struct hmm_device *dev;
	struct liar l;
	char spec[120], err[400];

	liar_start(&l, HONEST, TIER_LANES);
	snprintf(spec, sizeof(spec), "ofi://%s,timeout=20", l.at);
	if (hmm_device_open(spec, &dev, err, sizeof(err)))
		fail_msg("%s", err);
	atomic_store(&((struct hmm_ofi *)dev)->ping_ns, 1);
	until(atomic_load(&l.pings) >= 2 * TIER_LANES);
	for (unsigned i = 0; i < TIER_LANES; i++)
		assert_true(atomic_load(&l.ping[i]) > 0);
	hmm_device_close(dev);
	liar_stop(&l, TIER_LANES);
}

/* Nor where two are used all the time, and there is something to be freed. */
static void test_no_lane_is_silent_under_load(void **state)
{
	struct tier_lane *used[TIER_LANES / 2];
	struct hmm_device *dev;
	struct hmm_ofi *d;
	struct liar l;
	char spec[120], err[400];
	hmm_handle_t h;

	liar_start(&l, HONEST, TIER_LANES);
	snprintf(spec, sizeof(spec), "ofi://%s,timeout=20", l.at);
	if (hmm_device_open(spec, &dev, err, sizeof(err)))
		fail_msg("%s", err);
	d = (struct hmm_ofi *)dev;
	assert_int_equal(put_in(dev, TEXT, 1, &h), 1);
	pthread_mutex_lock(&d->lock);
	for (unsigned i = 0; i < TIER_LANES / 2; i++) {
		used[i] = d->idle;
		d->idle = used[i]->next;
		d->nr_idle--;
	}
	pthread_mutex_unlock(&d->lock);
	dev->ops->put(dev, &h, 1);
	atomic_store(&d->ping_ns, 1);
	until(atomic_load(&l.pings) >=
	      3 * (TIER_LANES - TIER_LANES / 2)); /* the keeper has been round more than once */
	unsigned spoken = 0;
	for (unsigned i = 0; i < TIER_LANES; i++)
		spoken += atomic_load(&l.ping[i]) > 0;
	pthread_mutex_lock(&d->lock);
	for (unsigned i = 0; i < TIER_LANES / 2; i++) {
		used[i]->next = d->idle;
		d->idle = used[i];
		d->nr_idle++;
	}
	pthread_cond_broadcast(&d->idle_again);
	pthread_mutex_unlock(&d->lock);
	assert_true(spoken >= TIER_LANES - TIER_LANES / 2);
	hmm_device_close(dev);
	liar_stop(&l, TIER_LANES);
}

/* Who gives up, on either end, leaves nothing under way on a stack that is somebody else's from then on. */
static void test_nothing_is_left_on_a_stack(void **state)
{
	struct tier_server *srv;
	struct hmm_device *dev;
	hmm_handle_t h;

	posted = on_stacks = 0;
	srv = serve(64 * MIB, NULL, 0);
	dev = open_dev(srv, "");
	assert_int_equal(put_in(dev, TEXT, 1, &h), 1);
	assert_true(reads_as(dev, h, TEXT, 1));
	hmm_device_close(dev);
	tier_server_stop(srv);
	assert_true(atomic_load(&posted) > 0);
	assert_int_equal(atomic_load(&on_stacks), 0);
}

static int setup(void **state)
{
	struct ofi_lib lib;
	char err[300];

	if (ofi_lib_load(&lib, err, sizeof(err))) {
		printf("SKIP: %s\n", err);
		exit(77);
	}
	return mkdtemp(dir) ? 0 : -1;
}

static int teardown(void **state)
{
	char cmd[100];

	snprintf(cmd, sizeof(cmd), "rm -rf %s", dir);
	return system(cmd);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_addresses),
		cmocka_unit_test(test_key_files),
		cmocka_unit_test(test_handshake),
		cmocka_unit_test(test_handshake_changed),
		cmocka_unit_test(test_recorded_connection),
		cmocka_unit_test(test_frames),
		cmocka_unit_test(test_pages_sealed),
		cmocka_unit_test(test_fuzzed),
		cmocka_unit_test(test_kinds_and_references),
		cmocka_unit_test(test_batches),
		cmocka_unit_test(test_threads),
		cmocka_unit_test(test_clients),
		cmocka_unit_test(test_full),
		cmocka_unit_test(test_full_with_slots_left),
		cmocka_unit_test(test_dishonest),
		cmocka_unit_test(test_server_gone),
		cmocka_unit_test(test_keys),
		cmocka_unit_test(test_loopback_only),
		cmocka_unit_test(test_nobody_there),
		cmocka_unit_test(test_strangers),
		cmocka_unit_test(test_bad_members),
		cmocka_unit_test(test_foreign_session),
		cmocka_unit_test(test_many_strangers),
		cmocka_unit_test(test_silent_client),
		cmocka_unit_test(test_server_hangs_up),
		cmocka_unit_test(test_nothing_is_left_on_a_stack),
		cmocka_unit_test(test_silent_server),
		cmocka_unit_test(test_server_stops),
		cmocka_unit_test(test_server_repeats),
		cmocka_unit_test(test_answer_to_something_else),
		cmocka_unit_test(test_answer_to_what_was_put),
		cmocka_unit_test(test_what_was_read_before_the_peer_was_lost),
		cmocka_unit_test(test_no_lane_is_silent),
		cmocka_unit_test(test_no_lane_is_silent_under_load),
		cmocka_unit_test(test_a_late_answer_of_a_lost_peer),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
