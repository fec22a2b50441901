/* SPDX-License-Identifier: MIT */
/* How much RAM there is for us: the machine's, or less where a memory cgroup says so. */
#include "run/ram.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static uint64_t read_limit(const char *dir, const char *path, const char *file)
{
	char name[512], text[64] = "";
	uint64_t limit = UINT64_MAX;

	if (snprintf(name, sizeof(name), "%s%s/%s", dir, path, file) >= (int)sizeof(name))
		return UINT64_MAX;
	FILE *f = fopen(name, "r");
	if (!f)
		return UINT64_MAX;
	/* "max" stays what it is: no limit. */
	if (fgets(text, sizeof(text), f) && sscanf(text, "%" SCNu64, &limit) != 1)
		limit = UINT64_MAX;
	fclose(f);
	return limit;
}

/* The limits of a cgroup and of those above it. */
static uint64_t walk_up(const char *dir, char *path, const char *file)
{
	uint64_t least = UINT64_MAX;

	for (;;) {
		uint64_t one = read_limit(dir, path, file);
		char *slash = strrchr(path, '/');

		if (one < least)
			least = one;
		if (!slash)
			return least;
		*slash = 0;
	}
}

uint64_t run_ram_total(void)
{
	uint64_t all = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE), one = UINT64_MAX;
	FILE *f = fopen("/proc/self/cgroup", "r");
	char line[512];

	/* "0::/PATH" is version 2; "N:...,memory,...:/PATH" version 1. */
	while (f && fgets(line, sizeof(line), f)) {
		char *names = strchr(line, ':'), *path = names ? strchr(names + 1, ':') : NULL;

		if (!path)
			continue;
		*path++ = 0;
		path[strcspn(path, "\n")] = 0;
		if (!strcmp(path, "/"))
			*path = 0;
		if (!strcmp(line, "0:"))
			one = walk_up("/sys/fs/cgroup", path, "memory.max");
		else if (strstr(names + 1, "memory"))
			one = walk_up("/sys/fs/cgroup/memory", path, "memory.limit_in_bytes");
		if (one < all)
			all = one;
	}
	if (f)
		fclose(f);
	return all;
}
