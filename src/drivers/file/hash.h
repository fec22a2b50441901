/* SPDX-License-Identifier: MIT */
/*
 * Is a page the one that was written?
 *
 * A checksum says whether a page was damaged.  This is for whoever could have an
 * interest in two pages that are taken for the same: a program that is fed data by
 * others.  So it is a keyed hash (SipHash-2-4), and each device has a key of its own.
 * A seeded checksum is none: pages can be made that have the same one for one seed
 * of sixty.
 */
#ifndef HMM_FILE_HASH_H
#define HMM_FILE_HASH_H

#include <stdbool.h>
#include <stdint.h>

#define FILE_HASH_KEY 16u

struct file_hash {
	uint8_t key[FILE_HASH_KEY];
};

/** file_hash_there() - false: built without the library; the rest is not to be called then. */
bool file_hash_there(void);
void file_hash_init(struct file_hash *h);
/** file_hash_page() - 64 bits of @page, as nobody can foresee who has not the key. */
uint64_t file_hash_page(const struct file_hash *h, const void *page);
void file_hash_exit(struct file_hash *h);

#endif
