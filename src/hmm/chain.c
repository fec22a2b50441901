/* SPDX-License-Identifier: MIT */
/* A chain of devices: a page goes to the first that takes it. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "hmm/internal.h"

#define ENGINE_BYTES (16ull << 20) /* windows, records, threads; and something to live in */
#define LZ4_MIN (1ull << 20)

/*
 * Compressed memory is part of the budget: left alone it would crowd out what
 * it is there to serve.  What is needed in any case comes off first; of the
 * rest half, if there is a tier behind it for what is coldest.  If there is none
 * it takes three quarters: that is room for all that compresses twice and for
 * copies of what has come back (clean.c).
 */
static uint64_t lz4_share(uint64_t budget, bool last)
{
	uint64_t rest = budget > ENGINE_BYTES ? budget - ENGINE_BYTES : 0;

	if (last)
		return budget / 4 * 3;
	return rest / 2 > LZ4_MIN ? rest / 2 : LZ4_MIN;
}

int hmm_chain_open(const char *spec, uint64_t budget, struct hmm_chain *c, char *err, size_t errlen)
{
	int rc = -EINVAL;

	*c = (struct hmm_chain){0};
	for (;;) {
		const char *at = spec;
		char one[160];

		rc = hmm_chain_next(&spec, one, sizeof(one) - 32);
		if (!rc)
			break;
		if (rc == -ENAMETOOLONG) {
			snprintf(err, errlen, "\"%.40s...\": too long: a device is named in up to %zu bytes", at,
				 sizeof(one) - 33);
			goto fail;
		}
		if (rc < 0 || c->n == HMM_TIERS_MAX) {
			snprintf(err, errlen, "\"%s\": a chain is 1 to %u devices, separated by commas", at,
				 HMM_TIERS_MAX);
			rc = -EINVAL;
			goto fail;
		}
		if (!strcmp(one, "lz4") && budget)
			snprintf(one, sizeof(one), "lz4:%llu%s", (unsigned long long)lz4_share(budget, !*spec),
				 *spec ? "" : ",raw");
		rc = hmm_device_open(one, &c->dev[c->n], err, errlen);
		if (rc)
			goto fail;
		c->n++;
	}
	if (c->n)
		return 0;
	snprintf(err, errlen, "no device given");
	rc = -EINVAL;
fail:
	hmm_chain_close(c);
	return rc;
}

void hmm_chain_close(struct hmm_chain *c)
{
	for (unsigned i = 0; i < c->n; i++)
		hmm_device_close(c->dev[i]);
	c->n = 0;
}

unsigned hmm_chain_in(struct hmm *h, unsigned from, const void *const src[], hmm_handle_t handle[], uint8_t tier[],
		      unsigned n)
{
	struct hmm_chain *c = &h->chain;
	const void *left[UMM_BATCH_PAGES];
	hmm_handle_t got[UMM_BATCH_PAGES];
	uint16_t index[UMM_BATCH_PAGES];
	unsigned taken = 0;

	for (unsigned i = 0; i < n; i++)
		handle[i] = HMM_HANDLE_NONE;
	for (unsigned t = from; t < c->n && taken < n; t++) {
		unsigned m = 0;

		for (unsigned i = 0; i < n; i++) {
			if (handle[i] != HMM_HANDLE_NONE)
				continue;
			left[m] = src[i];
			got[m] = HMM_HANDLE_NONE;
			index[m++] = (uint16_t)i;
		}
		int rc = c->dev[t]->ops->copy_in(c->dev[t], left, got, m);
		if (rc <= 0)
			continue; /* full, or failing: the next one, and in the end nobody */
		for (unsigned i = 0; i < m; i++) {
			if (got[i] == HMM_HANDLE_NONE)
				continue;
			handle[index[i]] = got[i];
			tier[index[i]] = (uint8_t)t;
			taken++;
		}
	}
	return taken;
}
