/* SPDX-License-Identifier: MIT */
/* The hooks tell of changes of one space: the process's own. */
#ifndef UMM_HOOKS_H
#define UMM_HOOKS_H

#include "umm.h"

/** From here on the hooks tell @space's notifiers; NULL: nobody.  Not while a hooked call of another thread runs. */
void umm_hooks_set(struct umm_space *space);

/** mmap() with its hook, for the library that has descriptors of its own and hooks the name itself. */
void *umm_hooked_mmap(void *addr, size_t len, int prot, int flags, int fd, off_t offset);

#endif
