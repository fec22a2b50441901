/* SPDX-License-Identifier: MIT */
#include "drivers/file/hash.h"

#include <sodium.h>

#include "hmm.h"

_Static_assert(FILE_HASH_KEY == crypto_shorthash_KEYBYTES, "a key");
_Static_assert(sizeof(uint64_t) == crypto_shorthash_BYTES, "a hash");

bool file_hash_there(void)
{
	return sodium_init() >= 0;
}

void file_hash_init(struct file_hash *h)
{
	crypto_shorthash_keygen(h->key);
}

uint64_t file_hash_page(const struct file_hash *h, const void *page)
{
	uint64_t hash;

	crypto_shorthash((unsigned char *)&hash, page, HMM_PAGE_SIZE, h->key);
	return hash;
}

void file_hash_exit(struct file_hash *h)
{
	sodium_memzero(h, sizeof(*h));
}
