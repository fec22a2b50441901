/* SPDX-License-Identifier: MIT */
#include "drivers/area.h"

#include <errno.h>
#include <sys/mman.h>

/* Usable in steps, so that mprotect() stays rare; what is not touched costs no memory. */
#define STEP ((size_t)16 << 20)
#define GRAIN ((size_t)64 << 10)

int(drv_area_reserve)(struct drv_area *area, size_t bytes)
{
	void *base;

	if (bytes > SIZE_MAX - GRAIN)
		return -ENOMEM;
	bytes = (bytes + GRAIN - 1) & ~(GRAIN - 1);
	base = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (base == MAP_FAILED)
		return -ENOMEM;
	/* A huge page where a small one was touched would be memory that no account knows of. */
	madvise(base, bytes, MADV_NOHUGEPAGE);
	/* Pages of programs: not for whoever reads a core file of who has them. */
	madvise(base, bytes, MADV_DONTDUMP);
	area->base = base;
	area->reserved = bytes;
	area->usable = 0;
	return 0;
}

int(drv_area_extend)(struct drv_area *area, size_t bytes)
{
	size_t to;

	if (bytes <= area->usable)
		return 0;
	if (bytes > area->reserved)
		return -ENOMEM;
	to = (bytes + STEP - 1) & ~(STEP - 1);
	if (to > area->reserved)
		to = area->reserved;
	if (mprotect(area->base + area->usable, to - area->usable, PROT_READ | PROT_WRITE))
		return -ENOMEM;
	area->usable = to;
	return 0;
}

void drv_area_release(struct drv_area *area)
{
	if (area->base)
		munmap(area->base, area->reserved);
	area->base = NULL;
	area->reserved = area->usable = 0;
}

void *(drv_map)(size_t bytes)
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		return NULL;
	madvise(p, bytes, MADV_NOHUGEPAGE);
	madvise(p, bytes, MADV_DONTDUMP);
	return p;
}
