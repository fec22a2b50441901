/* SPDX-License-Identifier: MIT */
/* What a test asks of the card in software. */
#ifndef TEST_OFI_CARD_H
#define TEST_OFI_CARD_H

#include <stddef.h>
#include <stdint.h>

/** Regions registered since the start. */
__attribute__((visibility("default"))) unsigned card_registrations(void);

/** What a peer gets that reads @len bytes at @addr through the key of a region: 0, or -errno. */
__attribute__((visibility("default"))) int card_peer_reads(uint64_t key, const void *addr, size_t len, void *out);

#endif
