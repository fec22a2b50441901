/* SPDX-License-Identifier: MIT */
#ifndef RUN_RAM_H
#define RUN_RAM_H

#include <stdint.h>

/** Bytes of RAM that we may use at most: the machine's, or the least limit of our memory cgroups. */
uint64_t run_ram_total(void);

#endif
