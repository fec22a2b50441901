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

struct smaps {
	struct hmm_smap map;
	bool (*each)(void *priv, const struct hmm_smap *map);
	void *priv;
};

static bool on_line(void *priv, const char *line)
{
	struct smaps *s = priv;

	return !take_line(&s->map, line) || s->each(s->priv, &s->map);
}

int hmm_smaps_each(struct umm_space *space, bool (*each)(void *priv, const struct hmm_smap *map), void *priv)
{
	char *buf = umm_alloc(space, UMM_PAGE);
	struct smaps s = {.each = each, .priv = priv};
	int fd, rc;

	if (!buf)
		return -ENOMEM;
	rc = fd = (int)sys3(SYS_open, "/proc/self/smaps", O_RDONLY | O_CLOEXEC, 0);
	if (fd >= 0) {
		rc = umm_lines(fd, buf, on_line, &s);
		sys_close(fd);
	}
	umm_free(space, buf, UMM_PAGE);
	return rc;
}
