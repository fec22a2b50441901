/* SPDX-License-Identifier: MIT */
/* Mappings of a space: PROCMAP_QUERY, or the text of /proc/PID/maps on kernels before 6.11. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "umm/internal.h"
#include "umm/signals.h"
#include "umm/sys.h"

/* Names in brackets that are not memory of the program's; a named anonymous mapping is "[anon:...]". */
static uint32_t flags_of_name(const char *name)
{
	if (!strcmp(name, "[stack]"))
		return UMM_VMA_STACK;
	if (name[0] == '[' && name[1] == 'v')
		return UMM_VMA_SPECIAL;
	if (!strcmp(name, "[uprobes]") || !strcmp(name, "[sigpage]"))
		return UMM_VMA_SPECIAL;
	return 0;
}

static int next_by_query(struct umm_space *space, uint64_t addr, struct umm_vma *vma)
{
	char name[256] = "";
	struct procmap_query q = {
		.size = sizeof(q),
		.query_flags = PROCMAP_QUERY_COVERING_OR_NEXT_VMA,
		.query_addr = addr,
		.vma_name_size = sizeof(name),
		.vma_name_addr = (uintptr_t)name,
	};

	if (ioctl(space->maps_fd, PROCMAP_QUERY, &q)) {
		if (errno != ENAMETOOLONG)
			return -errno;
		/* A path that long is no bracketed name. */
		q.vma_name_size = 0;
		q.vma_name_addr = 0;
		if (ioctl(space->maps_fd, PROCMAP_QUERY, &q))
			return -errno;
	}
	*vma = (struct umm_vma){
		.start = q.vma_start,
		.end = q.vma_end,
		.offset = q.vma_offset,
		.inode = q.inode,
		.page_size = q.vma_page_size,
		.dev_major = q.dev_major,
		.dev_minor = q.dev_minor,
	};
	if (q.vma_flags & PROCMAP_QUERY_VMA_READABLE)
		vma->flags |= UMM_VMA_READ;
	if (q.vma_flags & PROCMAP_QUERY_VMA_WRITABLE)
		vma->flags |= UMM_VMA_WRITE;
	if (q.vma_flags & PROCMAP_QUERY_VMA_EXECUTABLE)
		vma->flags |= UMM_VMA_EXEC;
	if (q.vma_flags & PROCMAP_QUERY_VMA_SHARED)
		vma->flags |= UMM_VMA_SHARED;
	if (q.inode || (name[0] == '/'))
		vma->flags |= UMM_VMA_FILE;
	if (q.vma_page_size > UMM_PAGE)
		vma->flags |= UMM_VMA_HUGETLB;
	vma->flags |= flags_of_name(name);
	return 0;
}

int umm_lines(int fd, char *buf, bool (*each)(void *priv, const char *line), void *priv)
{
	char line[256]; /* of a longer one the rest is a name's */
	size_t n = 0;
	long got;

	while ((got = sys3(SYS_read, fd, buf, UMM_PAGE)) > 0) {
		for (long i = 0; i < got; i++) {
			if (buf[i] != '\n') {
				if (n < sizeof(line) - 1)
					line[n++] = buf[i];
				continue;
			}
			line[n] = 0;
			n = 0;
			if (!each(priv, line))
				return 0;
		}
	}
	return (int)got;
}

struct wanted {
	uint64_t addr;
	struct umm_vma *vma;
	bool found;
};

/* "start-end perms offset major:minor inode name". */
static bool ends_before(void *priv, const char *line)
{
	struct wanted *w = priv;
	struct umm_vma v = {.page_size = UMM_PAGE};
	const char *perms, *name;
	char *at;

	v.start = strtoull(line, &at, 16);
	if (at == line || *at != '-')
		return true;
	v.end = strtoull(at + 1, &at, 16);
	if (v.end <= w->addr || strlen(at) < 6)
		return true;
	perms = at + 1;
	v.offset = strtoull(perms + 4, &at, 16);
	v.dev_major = (uint32_t)strtoul(at, &at, 16);
	if (*at != ':')
		return true;
	v.dev_minor = (uint32_t)strtoul(at + 1, &at, 16);
	v.inode = strtoull(at, &at, 10);
	name = at + strspn(at, " ");
	v.flags = (perms[0] == 'r' ? UMM_VMA_READ : 0) | (perms[1] == 'w' ? UMM_VMA_WRITE : 0) |
		  (perms[2] == 'x' ? UMM_VMA_EXEC : 0) | (perms[3] == 's' ? UMM_VMA_SHARED : 0) |
		  (v.inode || name[0] == '/' ? UMM_VMA_FILE : 0) | flags_of_name(name);
	if (strstr(name, "/anon_hugepage"))
		v.flags |= UMM_VMA_HUGETLB;
	*w->vma = v;
	w->found = true;
	return false;
}

/* Without stdio: who holds its locks, or malloc's, in fork(), may be waiting for the monitor, which comes here. */
static int next_by_text(struct umm_space *space, uint64_t addr, struct umm_vma *vma)
{
	struct wanted w = {.addr = addr, .vma = vma};
	long rc = sys3(SYS_lseek, space->maps_fd, 0, SEEK_SET);
	char buf[UMM_PAGE];

	if (rc >= 0)
		rc = umm_lines(space->maps_fd, buf, ends_before, &w);
	return rc < 0 ? (int)rc : w.found ? 0 : -ENOENT;
}

int umm_vma_next(struct umm_space *space, uint64_t addr, struct umm_vma *vma)
{
	if (!space->maps_text) {
		int rc = next_by_query(space, addr, vma);

		if (rc != -ENOTTY)
			return rc;
		space->maps_text = true;
	}
	/* The file has one position, and others look at mappings, too; a hook in a handler does. */
	sigset_t old;

	signals_block(&old);
	pthread_mutex_lock(&space->lock);
	int rc = next_by_text(space, addr, vma);
	pthread_mutex_unlock(&space->lock);
	signals_restore(&old);
	return rc;
}
