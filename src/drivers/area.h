/* SPDX-License-Identifier: MIT */
/*
 * Memory of a driver that grows in place, and the account of what it occupies.
 *
 * Drivers do not use malloc after they are opened: linked into a program, they
 * serve page faults, and the faulting thread may hold malloc's locks.
 */
#ifndef HMM_DRV_AREA_H
#define HMM_DRV_AREA_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/** Addresses that were reserved, of which the front part may be used.  It never moves. */
struct drv_area {
	uint8_t *base;
	size_t reserved;
	size_t usable;
};

/** drv_area_reserve() - reserve addresses, no memory.  Returns 0 or -ENOMEM. */
int drv_area_reserve(struct drv_area *area, size_t bytes);

/**
 * drv_area_extend() - make at least the first @bytes usable, zero-filled.
 *
 * Callers serialize.  Returns 0 or -ENOMEM.
 */
int drv_area_extend(struct drv_area *area, size_t bytes);

/** drv_area_release() - give all back.  Fine for one that was never reserved. */
void drv_area_release(struct drv_area *area);

/** drv_map() - zero-filled memory by mmap, or NULL; ended with munmap(). */
void *drv_map(size_t bytes);

/** Bytes that a device occupies; they never exceed the limit, not for a moment. */
struct drv_ram {
	_Atomic uint64_t bytes;
	uint64_t limit;
};

static inline bool drv_ram_charge(struct drv_ram *ram, uint64_t n)
{
	uint64_t old = atomic_load_explicit(&ram->bytes, memory_order_relaxed);

	do {
		if (n > ram->limit || old > ram->limit - n)
			return false;
	} while (!atomic_compare_exchange_weak_explicit(&ram->bytes, &old, old + n, memory_order_relaxed,
							memory_order_relaxed));
	return true;
}

static inline void drv_ram_uncharge(struct drv_ram *ram, uint64_t n)
{
	atomic_fetch_sub_explicit(&ram->bytes, n, memory_order_relaxed);
}

#endif
