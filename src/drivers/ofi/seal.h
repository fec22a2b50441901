/* SPDX-License-Identifier: MIT */
/*
 * Who may talk to whom, and what keeps others from reading or changing it.
 *
 * DOC: keys
 *
 * Both ends have the same key file; its contents, hashed, are the shared key.
 * Each connection begins with two messages that carry a fresh X25519 public key
 * each.  What the private ones agree on is mixed with the shared key and with all
 * that was said, and gives the connection's two keys, one for each direction:
 *
 *	client: hello   public key, MAC by the shared key
 *	server: answer  public key, MAC by what both now have in common
 *	client: ATTACH  sealed by the connection's key
 *
 * The hello's MAC tells a wrong key before anything else is done; a recorded hello
 * passes it, but whoever replays it cannot make the ATTACH that belongs to the
 * server's new public key.  The answer's MAC proves the server to the client, the
 * ATTACH the client to the server.  Who learns the key file later cannot read what
 * was said before.
 *
 * Without a key file the shared key is one that everybody knows: then only
 * loopback is spoken to (ofi.c, server.c).
 *
 * Frames are sealed by ChaCha20-Poly1305 with a counter for nonce.  Pages by a key
 * that never leaves the client: AES-256-GCM where the processor has it, else
 * ChaCha20-Poly1305.  Their nonce is the generation, a number that no other page
 * sealed by this key has had; slot and generation are authenticated with the
 * contents.  The client remembers the generation of each slot, so an older page of
 * the slot, or a page of another one, does not open.
 */
#ifndef HMM_OFI_SEAL_H
#define HMM_OFI_SEAL_H

#include <sodium.h>

#include "drivers/ofi/wire.h"

#define TIER_KEY 32u

/** The key that both ends share. */
struct tier_secret {
	bool keyed; /* false: there is none but what everybody knows */
	uint8_t key[TIER_KEY];
};

/**
 * tier_secret_load() - from a key file, or none (@path NULL)
 *
 * Returns 0, or -errno with a line in @err: -EACCES also where others may read
 * the file, -EINVAL where it is too short to be a secret, or too long.
 */
int tier_secret_load(struct tier_secret *secret, const char *path, char *err, size_t errlen);

struct tier_hello {
	char magic[8];
	uint8_t keyed;
	uint8_t zero[7];
	uint8_t pk[crypto_scalarmult_BYTES];
	uint8_t mac[32];
};

struct tier_answer {
	char magic[8];
	uint8_t status; /* enum tier_status; what follows is zeros unless it is TIER_OK */
	uint8_t zero[7];
	uint8_t pk[crypto_scalarmult_BYTES];
	uint8_t mac[32];
};

/** One end of a connection. */
struct tier_keys {
	uint8_t out[TIER_KEY], in[TIER_KEY];
	uint64_t nr_out, nr_in;
};

/** tier_hello_make() - the client's first message; @sk is for tier_answer_check(). */
void tier_hello_make(const struct tier_secret *secret, struct tier_hello *hello, uint8_t sk[TIER_KEY]);

/**
 * tier_hello_answer() - the server's answer to what came
 * @hello: as received, @len bytes.
 *
 * Returns 0: send @answer and go on with @keys; -EPROTO: not a hello, say nothing;
 * or -EKEYREJECTED, -ENOKEY (the client has none), -EOPNOTSUPP (we have none): send
 * @answer, which says so, and end it.
 */
int tier_hello_answer(const struct tier_secret *secret, const void *hello, size_t len, struct tier_answer *answer,
		      struct tier_keys *keys);

/**
 * tier_answer_check() - is it the server that has our key?
 *
 * Returns 0, -EPROTO, or as tier_hello_answer() what the server says (which anybody could have said).
 */
int tier_answer_check(const struct tier_secret *secret, const struct tier_hello *hello, const uint8_t sk[TIER_KEY],
		      const void *answer, size_t len, struct tier_keys *keys);

/**
 * tier_frame_seal() - make a frame of @h
 * @frame: room for TIER_FRAME_MAX; the pages are put behind what this returns the length of.
 */
size_t tier_frame_seal(struct tier_keys *keys, const struct tier_head *h, void *frame);

/** tier_frame_pages() - where in @frame the pages go that belong to @h. */
static inline void *tier_frame_pages(const struct tier_head *h, void *frame)
{
	return (char *)frame + TIER_FRAME_HEAD + tier_head_len(h) + TIER_TAG;
}

/**
 * tier_frame_open() - open and check what came
 * @h: out.
 * @pages: out; tier_head_pages(h) of them, in @frame.
 *
 * Returns 0, or -EPROTO: the connection is of no use any more.
 */
int tier_frame_open(struct tier_keys *keys, const void *frame, size_t len, bool reply, struct tier_head *h,
		    const uint8_t **pages);

/** The client's own key, for pages. */
struct tier_vault {
	crypto_aead_aes256gcm_state gcm;
	bool has_gcm;
	uint8_t key[TIER_KEY];
};

/** tier_vault_init() - with a fresh key; @software: as on a processor without AES. */
void tier_vault_init(struct tier_vault *v, bool software);
void tier_page_seal(const struct tier_vault *v, uint64_t slot, uint64_t gen, const void *page, void *out,
		    uint8_t tag[TIER_TAG]);
/** tier_page_open() - 0, or -EBADMSG: it is not the page of this slot and generation; @page is then zeros. */
int tier_page_open(const struct tier_vault *v, uint64_t slot, uint64_t gen, const void *in, const uint8_t tag[TIER_TAG],
		   void *page);

#endif
