/* SPDX-License-Identifier: MIT */
/* One input for all that reads what a peer of the remote tier has sent. */
#ifndef TEST_FUZZ_TIER_H
#define TEST_FUZZ_TIER_H

#include <stddef.h>
#include <stdint.h>

/* Aborts when something is wrong.  The name is libFuzzer's. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#endif
