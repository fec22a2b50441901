/* SPDX-License-Identifier: MIT */
/* libhmm-libfabric.so: preloaded, it makes umm the memory monitor of a program's libfabric. */
#include <stdio.h>
#include <string.h>

#include "drivers/ofi/memmon.h"
#include "umm/hooks.h"

/* This library needs libfabric, which is therefore there and ready before us. */
__attribute__((constructor)) static void preload_init(void)
{
	int rc = memmon_import(umm_hooks_set);

	if (rc)
		fprintf(stderr, "hmm: libfabric takes no memory monitor (%s): its own stays\n", strerror(-rc));
}
