/* SPDX-License-Identifier: MIT */
#include "drivers/ofi/wire.h"

#include <errno.h>
#include <string.h>

_Static_assert(sizeof(struct tier_head) == 8 + TIER_FREES * sizeof(uint64_t), "no padding on the wire");
_Static_assert(sizeof(struct tier_attach) == 32, "no padding on the wire");

/* A reply that says an error has nothing behind its first words. */
static bool bare(const struct tier_head *h)
{
	return h->op == TIER_PING || (h->reply && (h->status || h->op == TIER_FREE || h->op == TIER_PUT));
}

size_t tier_head_len(const struct tier_head *h)
{
	if (bare(h))
		return TIER_HEAD_MIN;
	if (h->op == TIER_ATTACH)
		return TIER_HEAD_MIN + sizeof(h->attach);
	return TIER_HEAD_MIN + h->n * sizeof(h->slot[0]);
}

unsigned tier_head_pages(const struct tier_head *h)
{
	if (h->op == TIER_PUT && !h->reply)
		return h->n;
	if (h->op == TIER_GET && h->reply && !h->status)
		return h->n;
	return 0;
}

int tier_head_parse(struct tier_head *h, size_t len, size_t payload, bool reply)
{
	unsigned most;

	if (len < TIER_HEAD_MIN || len > TIER_HEAD_MAX)
		return -EPROTO;
	memset((char *)h + len, 0, sizeof(*h) - len);
	if (h->reply != reply || h->zero || h->zero2 || (!reply && h->status))
		return -EPROTO;
	switch (h->op) {
	case TIER_ATTACH:
	case TIER_PING:
		most = 0;
		break;
	case TIER_PUT:
	case TIER_GET:
		most = TIER_PAGES;
		break;
	case TIER_FREE:
		most = TIER_FREES;
		break;
	default:
		return -EPROTO;
	}
	if (h->n > most || len != tier_head_len(h) || payload != (size_t)tier_head_pages(h) * HMM_PAGE_SIZE)
		return -EPROTO;
	return 0;
}

int tier_frame_split(const void *frame, size_t len, size_t *head, size_t *payload)
{
	uint64_t first;

	if (len < TIER_FRAME_MIN || len > TIER_FRAME_MAX)
		return -EPROTO;
	memcpy(&first, frame, sizeof(first));
	if (first < TIER_HEAD_MIN || first > TIER_HEAD_MAX || len < TIER_FRAME_HEAD + first + TIER_TAG)
		return -EPROTO;
	*head = (size_t)first;
	*payload = len - (TIER_FRAME_HEAD + (size_t)first + TIER_TAG);
	return 0;
}
