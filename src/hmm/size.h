/* SPDX-License-Identifier: MIT */
/* Sizes as people write them. */
#ifndef HMM_SIZE_H
#define HMM_SIZE_H

#include <stdint.h>

/**
 * hmm_size_parse() - bytes from "4096", "64K", "256M", "1G", "2T".
 * @text: digits and at most one suffix K M G T (powers of 1024, either case),
 *        which "iB" or "B" may follow.
 * @bytes: out; untouched on error.
 *
 * Returns 0, or -EINVAL for anything else, a sign, blanks and overflow included.
 */
int hmm_size_parse(const char *text, uint64_t *bytes);

#endif
