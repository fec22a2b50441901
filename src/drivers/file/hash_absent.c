/* SPDX-License-Identifier: MIT */
/* Built without libsodium-dev: a page that comes back from a file is written anew when it goes. */
#include "drivers/file/hash.h"

bool file_hash_there(void)
{
	return false;
}

void file_hash_init(struct file_hash *h)
{
}

uint64_t file_hash_page(const struct file_hash *h, const void *page)
{
	return 0;
}

void file_hash_exit(struct file_hash *h)
{
}
