/* SPDX-License-Identifier: MIT */
#include "hmm/smaps.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "hmm/internal.h"
#include "umm/sys.h"

/* True: @line is the last of a mapping, which is in @map as a whole. */
static bool take_line(struct hmm_smap *map, const char *line)
{
	static const char key[] = "ProtectionKey:", flags[] = "VmFlags:";
	char *at;
	uint64_t start = strtoull(line, &at, 16);

	if (at != line && *at == '-') {
		*map = (struct hmm_smap){.start = start, .end = strtoull(at + 1, NULL, 16)};
	} else if (!strncmp(line, key, sizeof(key) - 1)) {
		map->key = strtoull(line + sizeof(key) - 1, NULL, 10);
	} else if (!strncmp(line, flags, sizeof(flags) - 1)) {
		map->flags = line + sizeof(flags) - 1;
		return true;
	}
	return false;
}

int hmm_smaps_each(struct umm_space *space, bool (*each)(void *priv, const struct hmm_smap *map), void *priv)
{
	char *buf = umm_alloc(space, UMM_PAGE), line[256];
	struct hmm_smap map = {0};
	bool more = true;
	unsigned n = 0;
	long got = 0;
	int fd;

	if (!buf)
		return -ENOMEM;
	fd = (int)sys3(SYS_open, "/proc/self/smaps", O_RDONLY | O_CLOEXEC, 0);
	while (fd >= 0 && more && (got = sys3(SYS_read, fd, buf, UMM_PAGE)) > 0) {
		for (long i = 0; i < got && more; i++) {
			if (buf[i] != '\n') {
				if (n < sizeof(line) - 1)
					line[n++] = buf[i];
				continue;
			}
			line[n] = 0;
			n = 0;
			if (take_line(&map, line))
				more = each(priv, &map);
		}
	}
	if (fd >= 0)
		sys_close(fd);
	umm_free(space, buf, UMM_PAGE);
	return fd < 0 ? fd : got < 0 ? (int)got : 0;
}
