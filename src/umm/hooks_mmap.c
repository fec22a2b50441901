/* SPDX-License-Identifier: MIT */
/* mmap(), where nobody else in the library stands in for it. */
/* mmap and mmap64 are two names here. */
#undef _FILE_OFFSET_BITS

#include <sys/mman.h>

#include "umm/hooks.h"

#define API __attribute__((visibility("default")))

API void *mmap(void *addr, size_t len, int prot, int flags, int fd, off_t offset)
{
	return umm_hooked_mmap(addr, len, prot, flags, fd, offset);
}

API void *mmap64(void *addr, size_t len, int prot, int flags, int fd, off64_t offset)
{
	return umm_hooked_mmap(addr, len, prot, flags, fd, offset);
}
