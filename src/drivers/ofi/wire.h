/* SPDX-License-Identifier: MIT */
/*
 * What a client of the remote tier and its server say to each other.
 *
 * DOC: the conversation
 *
 * A client has several connections, each of them in lockstep: a request, its
 * reply.  The first two messages of a connection (hello, answer) agree on keys
 * (seal.h); every later one is a frame:
 *
 *	u64 length of the head | head, sealed | 16 bytes of seal | pages
 *
 * The head is sealed under the connection's key with the number of the frame, so
 * one that is changed, left out, repeated or from another connection does not
 * open, and ends the connection.  The pages behind it are ciphertext that only
 * the client can open, and whose tags the client keeps: neither the server nor
 * anybody on the way can read one, change it or give another in its place.
 *
 * A page's place is its slot, a number that the client chooses: below max_slots of
 * the server's welcome, and of its session alone.  Nothing is ever repeated: a
 * client that misses a reply has lost its peer.
 *
 *	ATTACH	begin a session (session all zeros), or join another connection to it
 *	PUT	n slots and as many pages; the reply's n says how many, from the
 *		first on, were taken.  What was in a slot is replaced.
 *	GET	n slots; the reply has the same, and the pages.  A slot with nothing
 *		in it makes it an error, with n the first such one.
 *	FREE	n slots
 *	PING	is the server there?
 *
 * All of this parses bytes that anybody may have sent: lengths are checked against
 * what has come, nothing is trusted.  Little endian, as the machines that it runs on.
 */
#ifndef HMM_OFI_WIRE_H
#define HMM_OFI_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "hmm.h"

#define TIER_MAGIC "hmmtier1" /* and its version */
#define TIER_TAG 16u          /* bytes of a seal */
#define TIER_PAGES 32u        /* most pages in a frame */
#define TIER_FREES 96u        /* most slots in a FREE */

enum tier_op {
	TIER_ATTACH = 1,
	TIER_PUT,
	TIER_GET,
	TIER_FREE,
	TIER_PING,
};

enum tier_status {
	TIER_OK,
	TIER_FULL,    /* no room for another client, or another connection */
	TIER_NO_PAGE, /* nothing is in that slot */
	TIER_NO_SESSION,
	TIER_BAD,       /* not a request */
	TIER_WRONG_KEY, /* in the answer to a hello: the client's key is another one */
	TIER_NEED_KEY,  /* ... the client has none */
	TIER_NO_KEY,    /* ... the server has none */
};

struct tier_attach {
	uint8_t session[16];
	uint64_t max_slots; /* of the reply */
	uint64_t idle_ns;   /* of the reply: a client that is silent for so long is dropped */
};

struct tier_head {
	uint8_t op;     /* enum tier_op */
	uint8_t reply;  /* 0 or 1 */
	uint8_t status; /* enum tier_status; 0 in requests */
	uint8_t zero;
	uint16_t n; /* slots */
	uint16_t zero2;
	union {
		uint64_t slot[TIER_FREES];
		struct tier_attach attach;
	};
};

#define TIER_HEAD_MIN offsetof(struct tier_head, slot)
#define TIER_HEAD_MAX sizeof(struct tier_head)
#define TIER_FRAME_HEAD 8u
#define TIER_FRAME_MIN (TIER_FRAME_HEAD + TIER_HEAD_MIN + TIER_TAG)
#define TIER_FRAME_MAX (TIER_FRAME_HEAD + TIER_HEAD_MAX + TIER_TAG + (size_t)TIER_PAGES * HMM_PAGE_SIZE)

/** tier_head_len() - bytes of a head as it is sent. */
size_t tier_head_len(const struct tier_head *h);

/** tier_head_pages() - how many pages follow it. */
unsigned tier_head_pages(const struct tier_head *h);

/**
 * tier_head_parse() - is what was opened a head, with what has to follow it?
 * @h: the bytes, in memory of a whole head; those behind @len are cleared.
 * @payload: bytes behind the seal.
 *
 * Returns 0 or -EPROTO.
 */
int tier_head_parse(struct tier_head *h, size_t len, size_t payload, bool reply);

/**
 * tier_frame_split() - where is what in a frame?
 * @head: out; bytes of the head without its seal.
 * @payload: out; bytes of pages.
 *
 * Returns 0 or -EPROTO.
 */
int tier_frame_split(const void *frame, size_t len, size_t *head, size_t *payload);

#endif
