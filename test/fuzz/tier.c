/* SPDX-License-Identifier: MIT */
/*
 * The first byte says who reads the rest: the server a hello, the client an answer,
 * either of them a frame that does not open, or the server a sequence of heads as if
 * they had been sealed rightly, which it carries out for two sessions.  There a
 * model says what must be where, and that no more memory is used than is lent.
 *
 * Built with libFuzzer by "make fuzz"; the unit tests give it seeded inputs.
 */
#include "tier.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "drivers/ofi/internal.h"

#define REQUIRE(cond)            \
	do {                     \
		if (!(cond))     \
			abort(); \
	} while (0)

#define MEMORY ((uint64_t)64 << 10)
#define MODEL 64u /* slots that the model follows: all that there can be */

static void read_hello(const uint8_t *data, size_t size)
{
	static const struct tier_secret secret = {.keyed = true, .key = "a key that no input can know ..."};
	struct tier_answer answer;
	struct tier_keys keys;

	REQUIRE(tier_hello_answer(&secret, data, size, &answer, &keys) < 0);
}

static void read_answer(const uint8_t *data, size_t size)
{
	static const struct tier_secret secret = {.keyed = true, .key = "a key that no input can know ..."};
	static const uint8_t sk[TIER_KEY] = "neither can it know this one....";
	struct tier_hello hello = {0};
	struct tier_keys keys;

	REQUIRE(tier_answer_check(&secret, &hello, sk, data, size, &keys) < 0);
}

static void read_frame(const uint8_t *data, size_t size)
{
	struct tier_keys keys = {.in = "a key that no input can know ..."};
	const uint8_t *pages;
	struct tier_head h;
	size_t head, payload;

	REQUIRE(tier_frame_open(&keys, data, size, size & 1, &h, &pages) == -EPROTO);
	REQUIRE(!keys.nr_in);
	if (!tier_frame_split(data, size, &head, &payload))
		REQUIRE(TIER_FRAME_HEAD + head + TIER_TAG + payload == size && head <= TIER_HEAD_MAX);
}

/* What the server must hold: of each session and slot, the byte that fills its page + 1, or 0. */
struct model {
	uint16_t fill[2][MODEL];
};

static void execute(struct tier_store *s, struct tier_session *t, uint16_t fill[MODEL], struct tier_head *h,
		    uint8_t byte)
{
	static uint8_t in[TIER_PAGES * HMM_PAGE_SIZE], out[TIER_PAGES * HMM_PAGE_SIZE];
	const struct tier_head asked = *h;

	REQUIRE(asked.n <= (h->op == TIER_FREE ? TIER_FREES : TIER_PAGES));
	memset(in, byte, sizeof(in));
	tier_store_execute(s, t, h, in, out);
	REQUIRE(h->reply == 1 && h->op == asked.op && h->n <= asked.n);
	REQUIRE(!tier_head_parse(h, tier_head_len(h), (size_t)tier_head_pages(h) * HMM_PAGE_SIZE, true));
	REQUIRE(atomic_load(&s->ram.bytes) <= MEMORY);
	switch (h->op) {
	case TIER_PUT:
		for (unsigned i = 0; i < h->n; i++) {
			REQUIRE(asked.slot[i] < MODEL);
			fill[asked.slot[i]] = (uint16_t)(byte + 1);
		}
		break;
	case TIER_FREE:
		for (unsigned i = 0; i < asked.n; i++)
			if (asked.slot[i] < MODEL)
				fill[asked.slot[i]] = 0;
		break;
	case TIER_GET:
		for (unsigned i = 0; i < h->n; i++) {
			REQUIRE(asked.slot[i] < MODEL && fill[asked.slot[i]]);
			for (unsigned k = 0; k < HMM_PAGE_SIZE; k++)
				REQUIRE(out[i * HMM_PAGE_SIZE + k] == fill[asked.slot[i]] - 1);
		}
		if (h->status)
			REQUIRE(asked.slot[h->n] >= MODEL || !fill[asked.slot[h->n]]);
		break;
	}
}

static void read_heads(const uint8_t *data, size_t size)
{
	static const uint8_t none[16], one[16] = {1}, two[16] = {2};
	struct tier_session *t[2];
	enum tier_status status;
	struct tier_store s;
	struct model m = {0};
	uint64_t held = 0;

	REQUIRE(!tier_store_init(&s, MEMORY) && s.max <= MODEL);
	t[0] = tier_session_attach(&s, none, one, &status);
	t[1] = tier_session_attach(&s, none, two, &status);
	REQUIRE(t[0] && t[1]);
	/* Byte: length of a head (in words); byte: what fills the pages, and whose it is; the head. */
	while (size >= 2) {
		size_t len = TIER_HEAD_MIN + (size_t)data[0] % (TIER_FREES + 1) * 8;
		uint8_t byte = data[1];
		struct tier_head h;

		data += 2;
		size -= 2;
		if (len > size)
			len = size;
		memcpy(&h, data, len);
		data += len;
		size -= len;
		if (len > 4 && h.op == TIER_PUT)
			h.n %= TIER_PAGES + 2;
		if (tier_head_parse(&h, len, h.op == TIER_PUT && len >= TIER_HEAD_MIN ? (size_t)h.n * HMM_PAGE_SIZE : 0,
				    false))
			continue;
		if (h.op != TIER_ATTACH)
			execute(&s, t[byte & 1], m.fill[byte & 1], &h, byte);
	}
	for (unsigned i = 0; i < 2 * MODEL; i++)
		held += m.fill[i / MODEL][i % MODEL] != 0;
	REQUIRE(tier_store_pages(&s) == held);
	tier_session_detach(&s, t[0]);
	tier_session_detach(&s, t[1]);
	REQUIRE(!atomic_load(&s.ram.bytes));
	tier_store_exit(&s);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (!size || sodium_init() < 0)
		return 0;
	switch (data[0] & 7) {
	case 0:
		read_hello(data + 1, size - 1);
		break;
	case 1:
		read_answer(data + 1, size - 1);
		break;
	case 2:
		read_frame(data + 1, size - 1);
		break;
	default:
		read_heads(data + 1, size - 1);
	}
	return 0;
}
