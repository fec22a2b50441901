/* SPDX-License-Identifier: MIT */
#include "drivers/ofi/seal.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "drivers/driver.h"

#define KEY_FILE_MIN 32u
#define KEY_FILE_MAX 4096u

_Static_assert(sizeof(struct tier_hello) == 80 && sizeof(struct tier_answer) == 80, "no padding on the wire");

/* ------------------------------------------------------------------ the secret */

int tier_secret_load(struct tier_secret *secret, const char *path, char *err, size_t errlen)
{
	uint8_t buf[KEY_FILE_MAX + 1];
	struct stat st;
	ssize_t n = 0, got = 0;
	int fd, rc = 0;

	if (sodium_init() < 0)
		return drv_fail(-ENOSYS, err, errlen, "ofi: libsodium cannot start: no source of random numbers");
	*secret = (struct tier_secret){0};
	if (!path)
		return 0;
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return drv_fail(-errno, err, errlen, "ofi: key file %s: %s", path, strerror(errno));
	if (fstat(fd, &st)) {
		rc = drv_fail(-errno, err, errlen, "ofi: key file %s: %s", path, strerror(errno));
	} else if (S_ISREG(st.st_mode) && (st.st_mode & 077)) {
		rc = drv_fail(-EACCES, err, errlen, "ofi: key file %s can be used by others; chmod 600 it", path);
	} else {
		while ((size_t)n < sizeof(buf) && (got = read(fd, buf + n, sizeof(buf) - (size_t)n)) > 0)
			n += got;
		if (got < 0)
			rc = drv_fail(-errno, err, errlen, "ofi: key file %s: %s", path, strerror(errno));
		else if ((size_t)n < KEY_FILE_MIN || (size_t)n > KEY_FILE_MAX)
			rc = drv_fail(-EINVAL, err, errlen,
				      "ofi: key file %s: a key has %u to %u bytes; make one with: "
				      "(umask 077; head -c 32 /dev/urandom >FILE)",
				      path, KEY_FILE_MIN, KEY_FILE_MAX);
	}
	close(fd);
	if (!rc) {
		secret->keyed = true;
		crypto_generichash(secret->key, sizeof(secret->key), buf, (size_t)n, NULL, 0);
	}
	sodium_memzero(buf, sizeof(buf));
	return rc;
}

/* --------------------------------------------------------------- the handshake */

static void mac(uint8_t out[32], const uint8_t key[TIER_KEY], const char *what, const void *a, size_t alen,
		const void *b, size_t blen)
{
	crypto_generichash_state st;

	crypto_generichash_init(&st, key, TIER_KEY, 32);
	crypto_generichash_update(&st, (const uint8_t *)what, strlen(what) + 1);
	crypto_generichash_update(&st, a, alen);
	if (b)
		crypto_generichash_update(&st, b, blen);
	crypto_generichash_final(&st, out, 32);
	sodium_memzero(&st, sizeof(st)); /* it is as good as the key */
}

/* What both ends have in common once each has the other's public key.  False: that is no key. */
static bool agree(const struct tier_secret *secret, const uint8_t sk[TIER_KEY], const uint8_t *their_pk,
		  const struct tier_hello *hello, const struct tier_answer *answer, uint8_t common[TIER_KEY])
{
	uint8_t dh[crypto_scalarmult_BYTES];

	if (crypto_scalarmult(dh, sk, their_pk))
		return false;
	mac(common, secret->key, "common", dh, sizeof(dh), NULL, 0);
	/* The whole hello, and the answer but for its MAC, which is made of this. */
	mac(common, common, "said", hello, sizeof(*hello), answer, offsetof(struct tier_answer, mac));
	sodium_memzero(dh, sizeof(dh));
	return true;
}

static void derive(const uint8_t common[TIER_KEY], struct tier_keys *keys, bool client)
{
	*keys = (struct tier_keys){0};
	mac(client ? keys->out : keys->in, common, "to the server", "", 0, NULL, 0);
	mac(client ? keys->in : keys->out, common, "to the client", "", 0, NULL, 0);
}

void tier_hello_make(const struct tier_secret *secret, struct tier_hello *hello, uint8_t sk[TIER_KEY])
{
	*hello = (struct tier_hello){.keyed = secret->keyed};
	memcpy(hello->magic, TIER_MAGIC, sizeof(hello->magic));
	randombytes_buf(sk, TIER_KEY);
	crypto_scalarmult_base(hello->pk, sk);
	mac(hello->mac, secret->key, "hello", hello, offsetof(struct tier_hello, mac), NULL, 0);
}

static int status_errno(uint8_t status)
{
	switch (status) {
	case TIER_OK:
		return 0;
	case TIER_WRONG_KEY:
		return -EKEYREJECTED;
	case TIER_NEED_KEY:
		return -ENOKEY;
	case TIER_NO_KEY:
		return -EOPNOTSUPP;
	case TIER_FULL:
		return -ENOSPC;
	default:
		return -EPROTO;
	}
}

int tier_hello_answer(const struct tier_secret *secret, const void *bytes, size_t len, struct tier_answer *answer,
		      struct tier_keys *keys)
{
	static const uint8_t zero[7];
	uint8_t sk[TIER_KEY], common[TIER_KEY], want[32];
	struct tier_hello hello;
	bool agreed;

	if (len != sizeof(hello))
		return -EPROTO;
	memcpy(&hello, bytes, sizeof(hello));
	if (memcmp(hello.magic, TIER_MAGIC, sizeof(hello.magic)) || hello.keyed > 1 ||
	    memcmp(hello.zero, zero, sizeof(zero)))
		return -EPROTO;
	*answer = (struct tier_answer){0};
	memcpy(answer->magic, TIER_MAGIC, sizeof(answer->magic));
	mac(want, secret->key, "hello", &hello, offsetof(struct tier_hello, mac), NULL, 0);
	if (hello.keyed != secret->keyed)
		answer->status = secret->keyed ? TIER_NEED_KEY : TIER_NO_KEY;
	else if (sodium_memcmp(want, hello.mac, sizeof(want)))
		answer->status = TIER_WRONG_KEY;
	if (answer->status)
		return status_errno(answer->status);
	randombytes_buf(sk, sizeof(sk));
	crypto_scalarmult_base(answer->pk, sk);
	agreed = agree(secret, sk, hello.pk, &hello, answer, common);
	if (agreed) {
		mac(answer->mac, common, "answer", answer, offsetof(struct tier_answer, mac), NULL, 0);
		derive(common, keys, false);
	}
	sodium_memzero(sk, sizeof(sk));
	sodium_memzero(common, sizeof(common));
	return agreed ? 0 : -EPROTO;
}

int tier_answer_check(const struct tier_secret *secret, const struct tier_hello *hello, const uint8_t sk[TIER_KEY],
		      const void *bytes, size_t len, struct tier_keys *keys)
{
	uint8_t common[TIER_KEY], want[32];
	struct tier_answer answer;
	int rc;

	if (len != sizeof(answer))
		return -EPROTO;
	memcpy(&answer, bytes, sizeof(answer));
	if (memcmp(answer.magic, TIER_MAGIC, sizeof(answer.magic)))
		return -EPROTO;
	rc = status_errno(answer.status);
	if (rc)
		return rc;
	if (!agree(secret, sk, answer.pk, hello, &answer, common))
		return -EPROTO;
	mac(want, common, "answer", &answer, offsetof(struct tier_answer, mac), NULL, 0);
	rc = sodium_memcmp(want, answer.mac, sizeof(want)) ? -EKEYREJECTED : 0;
	sodium_memzero(want, sizeof(want)); /* what the true server would have said */
	if (!rc)
		derive(common, keys, true);
	sodium_memzero(common, sizeof(common));
	return rc;
}

/* ---------------------------------------------------------------------- frames */

#define NONCE crypto_aead_chacha20poly1305_ietf_NPUBBYTES

_Static_assert(crypto_aead_chacha20poly1305_ietf_ABYTES == TIER_TAG && crypto_aead_aes256gcm_ABYTES == TIER_TAG,
	       "one length of tags");
_Static_assert(crypto_aead_aes256gcm_NPUBBYTES == NONCE, "one length of nonces");

static void nonce(uint8_t out[NONCE], uint64_t nr)
{
	memset(out, 0, NONCE);
	memcpy(out, &nr, sizeof(nr));
}

size_t tier_frame_seal(struct tier_keys *keys, const struct tier_head *h, void *frame)
{
	uint64_t len = tier_head_len(h);
	uint8_t n[NONCE], *at = frame;

	nonce(n, keys->nr_out++);
	memcpy(at, &len, TIER_FRAME_HEAD);
	crypto_aead_chacha20poly1305_ietf_encrypt(at + TIER_FRAME_HEAD, NULL, (const uint8_t *)h, len, at,
						  TIER_FRAME_HEAD, NULL, n, keys->out);
	return TIER_FRAME_HEAD + len + TIER_TAG;
}

int tier_frame_open(struct tier_keys *keys, const void *frame, size_t len, bool reply, struct tier_head *h,
		    const uint8_t **pages)
{
	size_t head, payload;
	const uint8_t *at = frame;
	uint8_t n[NONCE];

	if (tier_frame_split(frame, len, &head, &payload))
		return -EPROTO;
	nonce(n, keys->nr_in);
	if (crypto_aead_chacha20poly1305_ietf_decrypt((uint8_t *)h, NULL, NULL, at + TIER_FRAME_HEAD, head + TIER_TAG,
						      at, TIER_FRAME_HEAD, n, keys->in))
		return -EPROTO;
	keys->nr_in++;
	*pages = at + TIER_FRAME_HEAD + head + TIER_TAG;
	return tier_head_parse(h, head, payload, reply);
}

/* ----------------------------------------------------------------------- pages */

void tier_vault_init(struct tier_vault *v, bool software)
{
	randombytes_buf(v->key, sizeof(v->key));
	v->has_gcm = !software && crypto_aead_aes256gcm_is_available();
	if (v->has_gcm)
		crypto_aead_aes256gcm_beforenm(&v->gcm, v->key);
}

void tier_page_seal(const struct tier_vault *v, uint64_t slot, uint64_t gen, const void *page, void *out,
		    uint8_t tag[TIER_TAG])
{
	const uint64_t bound[2] = {slot, gen};
	uint8_t n[NONCE];

	nonce(n, gen);
	if (v->has_gcm)
		crypto_aead_aes256gcm_encrypt_detached_afternm(out, tag, NULL, page, HMM_PAGE_SIZE,
							       (const uint8_t *)bound, sizeof(bound), NULL, n, &v->gcm);
	else
		crypto_aead_chacha20poly1305_ietf_encrypt_detached(
			out, tag, NULL, page, HMM_PAGE_SIZE, (const uint8_t *)bound, sizeof(bound), NULL, n, v->key);
}

int tier_page_open(const struct tier_vault *v, uint64_t slot, uint64_t gen, const void *in, const uint8_t tag[TIER_TAG],
		   void *page)
{
	const uint64_t bound[2] = {slot, gen};
	uint8_t n[NONCE];
	int rc;

	nonce(n, gen);
	if (v->has_gcm)
		rc = crypto_aead_aes256gcm_decrypt_detached_afternm(page, NULL, in, HMM_PAGE_SIZE, tag,
								    (const uint8_t *)bound, sizeof(bound), n, &v->gcm);
	else
		rc = crypto_aead_chacha20poly1305_ietf_decrypt_detached(
			page, NULL, in, HMM_PAGE_SIZE, tag, (const uint8_t *)bound, sizeof(bound), n, v->key);
	if (!rc)
		return 0;
	memset(page, 0, HMM_PAGE_SIZE);
	return -EBADMSG;
}
