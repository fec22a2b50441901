/* SPDX-License-Identifier: MIT */
/* libhmm-libfabric.so: preloaded, it makes umm the memory monitor of a program's libfabric. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "drivers/ofi/memmon.h"
#include "umm/hooks.h"

/* This library needs libfabric, which is therefore there and ready before us. */
__attribute__((constructor)) static void preload_init(void)
{
	const char *other = getenv("FI_MR_CACHE_MONITOR");
	int rc = memmon_import(umm_hooks_set);

	/* It would take our place, unsaid.  Who wants no cache at all has it so. */
	if (!rc && other && strcmp(other, "disabled")) {
		fprintf(stderr, "hmm: FI_MR_CACHE_MONITOR=%s is ignored: libfabric asks hmm what changes\n", other);
		unsetenv("FI_MR_CACHE_MONITOR");
	}
	if (rc)
		fprintf(stderr, "hmm: libfabric takes no memory monitor (%s): its own stays\n", strerror(-rc));
}
