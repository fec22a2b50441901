/* SPDX-License-Identifier: MIT */
/* What devices that keep pages in numbered slots count. */
#ifndef HMM_DRV_COUNTS_H
#define HMM_DRV_COUNTS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

/** drv_ref_get() - one more reference to a slot; at the maximum they stick. */
static inline void drv_ref_get(_Atomic uint32_t *refs)
{
	uint32_t old = atomic_load_explicit(refs, memory_order_relaxed);

	while (old != UINT32_MAX && !atomic_compare_exchange_weak(refs, &old, old + 1))
		;
}

/** drv_ref_put() - one less; true when it was the last. */
static inline bool drv_ref_put(_Atomic uint32_t *refs)
{
	uint32_t old = atomic_load_explicit(refs, memory_order_relaxed);

	while (old && old != UINT32_MAX && !atomic_compare_exchange_weak(refs, &old, old - 1))
		;
	return old == 1;
}

/** drv_positive() - what goes up and down by several threads, for who looks between two of them. */
static inline uint64_t drv_positive(_Atomic int64_t *counter)
{
	int64_t n = atomic_load_explicit(counter, memory_order_relaxed);

	return n > 0 ? (uint64_t)n : 0;
}

/** drv_count_out() - what became of @n pages that were to be copied out; the first error, or 0. */
static inline int drv_count_out(const int status[], unsigned n, _Atomic uint64_t *good, _Atomic uint64_t *bad)
{
	unsigned errors = 0;
	int rc = 0;

	for (unsigned i = 0; i < n; i++) {
		errors += status[i] != 0;
		rc = rc ? rc : status[i];
	}
	atomic_fetch_add_explicit(good, n - errors, memory_order_relaxed);
	if (errors)
		atomic_fetch_add_explicit(bad, errors, memory_order_relaxed);
	return rc;
}

#endif
