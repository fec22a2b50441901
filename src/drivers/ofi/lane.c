/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <string.h>

#include "drivers/driver.h"
#include "drivers/ofi/internal.h"

/* What to tell the user of an error in the opening, with what to do. */
static int explain(int rc, const struct tier_addr *a, const struct tier_secret *secret, char *err, size_t errlen)
{
	const char *why;

	switch (rc) {
	case -ECONNREFUSED:
		why = "nobody listens there; start: hmm serve --listen ofi://HOST:PORT --memory SIZE";
		break;
	case -ETIME:
		why = "no answer in time";
		break;
	case -EKEYREJECTED:
		why = "the server's key is another one than that of the key file";
		break;
	case -ENOKEY:
		why = "the server wants a key; say ofi://HOST:PORT,key=FILE";
		break;
	case -EOPNOTSUPP:
		why = "the server has no key; start it with --key FILE, or leave out key=";
		break;
	case -ENOSPC:
		why = "the server has no room for one more client";
		break;
	case -EPROTO:
		why = "what is there does not speak this version of hmm's protocol";
		break;
	case -ECONNRESET:
		why = "the server closed the connection";
		break;
	default:
		why = strerror(-rc);
	}
	return drv_fail(rc, err, errlen, "ofi://%s:%s: %s", a->host, a->port, why);
}

static int greet(struct tier_lane *lane, const struct tier_secret *secret, uint64_t deadline)
{
	struct tier_hello *hello = lane->out.p;
	uint8_t sk[TIER_KEY];
	int rc;

	tier_hello_make(secret, hello, sk);
	rc = ofi_post_recv(&lane->ep, lane->in.p, lane->in.len, ofi_mr_desc(lane->in.mr), &lane->receiving, deadline);
	if (!rc)
		rc = ofi_send(&lane->ep, hello, sizeof(*hello), ofi_mr_desc(lane->out.mr), deadline);
	if (!rc)
		rc = ofi_wait(&lane->ep, &lane->receiving, deadline);
	if (!rc)
		rc = tier_answer_check(secret, hello, sk, lane->in.p, lane->receiving.len, &lane->keys);
	sodium_memzero(sk, sizeof(sk));
	return rc;
}

int tier_lane_open(struct tier_lane *lane, const struct tier_addr *addr, const struct tier_secret *secret,
		   struct tier_attach *attach, char *err, size_t errlen)
{
	uint64_t deadline = ofi_now_ns() + addr->timeout_ns;
	struct tier_head h = {.op = TIER_ATTACH, .attach = *attach};
	int rc;

	*lane = (struct tier_lane){0};
	rc = ofi_net_open(&lane->net, addr->provider, addr->host, addr->port, 0, err, errlen);
	if (rc)
		return rc;
	if (!secret->keyed && !ofi_net_loopback(&lane->net)) {
		rc = drv_fail(-EPERM, err, errlen,
			      "ofi://%s:%s is another machine: pages leave only with a key; say "
			      "ofi://HOST:PORT,key=FILE",
			      addr->host, addr->port);
		goto undo;
	}
	rc = ofi_buf_get(&lane->net, TIER_FRAME_MAX, &lane->in);
	if (!rc)
		rc = ofi_buf_get(&lane->net, TIER_FRAME_MAX, &lane->out);
	if (!rc)
		rc = ofi_connect(&lane->net, &lane->ep, deadline);
	lane->ep.polls = true;
	lane->ep.sleeps = hmm_device_sleeps;
	if (!rc)
		rc = greet(lane, secret, deadline);
	if (!rc)
		rc = tier_lane_request(lane, &h, NULL, deadline);
	if (!rc && h.status)
		rc = h.status == TIER_FULL ? -ENOSPC : -EPROTO;
	if (rc) {
		explain(rc, addr, secret, err, errlen);
		goto undo;
	}
	*attach = h.attach;
	return 0;
undo:
	tier_lane_close(lane);
	return rc;
}

void tier_lane_close(struct tier_lane *lane)
{
	ofi_ep_close(&lane->ep);
	ofi_buf_put(&lane->in);
	ofi_buf_put(&lane->out);
	ofi_net_close(&lane->net);
	sodium_memzero(&lane->keys, sizeof(lane->keys));
}

int tier_lane_request(struct tier_lane *lane, struct tier_head *h, const uint8_t **pages, uint64_t deadline_ns)
{
	size_t len = tier_frame_seal(&lane->keys, h, lane->out.p) + (size_t)tier_head_pages(h) * HMM_PAGE_SIZE;
	const struct tier_head asked = *h;
	const uint8_t *at;
	struct ofi_op *in = &lane->receiving, *out = &lane->sending;
	int rc;

	rc = ofi_post_recv(&lane->ep, lane->in.p, lane->in.len, ofi_mr_desc(lane->in.mr), in, deadline_ns);
	if (!rc)
		rc = ofi_post_send(&lane->ep, lane->out.p, len, ofi_mr_desc(lane->out.mr), out, deadline_ns);
	if (!rc)
		rc = ofi_wait(&lane->ep, in, deadline_ns);
	if (!rc) /* it has been received, so it has left */
		rc = ofi_wait(&lane->ep, out, deadline_ns);
	if (!rc)
		rc = tier_frame_open(&lane->keys, lane->in.p, in->len, true, h, &at);
	if (rc)
		return rc;
	/* The answer to this, and not to something else. */
	if (h->op != asked.op || h->n > asked.n)
		return -EPROTO;
	if (h->op == TIER_GET && !h->status &&
	    (h->n != asked.n || memcmp(h->slot, asked.slot, asked.n * sizeof(asked.slot[0]))))
		return -EPROTO;
	if (pages)
		*pages = at;
	return 0;
}
