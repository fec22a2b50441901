/* SPDX-License-Identifier: MIT */
/* For libraries that have the hooks in them. */
#ifndef UMM_HOOKS_INTERNAL_H
#define UMM_HOOKS_INTERNAL_H

#include "umm_hooks.h"

/** mmap() with its hook, for the library that has descriptors of its own and hooks the name itself. */
void *umm_hooked_mmap(void *addr, size_t len, int prot, int flags, int fd, off_t offset);

#endif
