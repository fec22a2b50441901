/* SPDX-License-Identifier: MIT */
/* Mappings of a space: PROCMAP_QUERY, or the text of /proc/PID/maps on kernels before 6.11. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "umm/internal.h"

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

static int next_by_text(struct umm_space *space, uint64_t addr, struct umm_vma *vma)
{
	int fd = dup(space->maps_fd);
	FILE *f = fd < 0 ? NULL : fdopen(fd, "r");
	char *line = NULL;
	size_t room = 0;
	int rc = -ENOENT;

	if (!f) {
		if (fd >= 0)
			close(fd);
		return -ENOMEM;
	}
	rewind(f);
	while (errno = 0, getline(&line, &room, f) > 0) {
		char perms[5] = "", name[64] = "";
		struct umm_vma v = {.page_size = UMM_PAGE};

		if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %4s %" SCNx64 " %x:%x %" SCNu64 " %63s", &v.start, &v.end,
			   perms, &v.offset, &v.dev_major, &v.dev_minor, &v.inode, name) < 7)
			continue;
		if (v.end <= addr)
			continue;
		v.flags = (perms[0] == 'r' ? UMM_VMA_READ : 0) | (perms[1] == 'w' ? UMM_VMA_WRITE : 0) |
			  (perms[2] == 'x' ? UMM_VMA_EXEC : 0) | (perms[3] == 's' ? UMM_VMA_SHARED : 0) |
			  (v.inode || name[0] == '/' ? UMM_VMA_FILE : 0) | flags_of_name(name);
		if (strstr(name, "/anon_hugepage"))
			v.flags |= UMM_VMA_HUGETLB;
		*vma = v;
		rc = 0;
		break;
	}
	if (rc && errno)
		rc = -errno; /* not the end of the text */
	free(line);
	fclose(f);
	return rc;
}

int umm_vma_next(struct umm_space *space, uint64_t addr, struct umm_vma *vma)
{
	if (!space->maps_text) {
		int rc = next_by_query(space, addr, vma);

		if (rc != -ENOTTY)
			return rc;
		space->maps_text = true;
	}
	/* The file has one position, and others look at mappings, too. */
	pthread_mutex_lock(&space->lock);
	int rc = next_by_text(space, addr, vma);
	pthread_mutex_unlock(&space->lock);
	return rc;
}
