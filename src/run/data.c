/* SPDX-License-Identifier: MIT */
/*
 * Large data segments become ordinary memory before the program runs.
 *
 * What a program writes to in its data segment is a copy of its own, which no
 * other process shares, but lies in a mapping of a file: such a mapping cannot be
 * registered for missing pages, and so nothing of it is ever moved.  Where it is
 * large and there are many processes, that is most of what a budget is spent on:
 * the 1.2 MiB of each Python interpreter, written to from the first moment on.
 *
 * Here, in the constructor, with one thread and no signals, nothing can write
 * there between the copy and the moment at which it takes the other's place.
 * Only what is mapped then: libraries that are opened later keep theirs.  What
 * the dynamic linker has made read-only stays as it is; it could not be moved
 * either.
 */
#include <fcntl.h>
#include <link.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/single_threaded.h>

#include "hmm_uapi.h"
#include "run/preload.h"

#define LEAST (256ul << 10) /* less is not worth two system calls of each program */

#define DOWN(x) ((x) & ~(UMM_PAGE - 1))
#define UP(x) DOWN((x) + UMM_PAGE - 1)

/* Is [start, end) one private mapping of a file, to read and write? */
static bool is_plain(uintptr_t start, uintptr_t end)
{
	struct procmap_query q = {.size = sizeof(q), .query_addr = start};
	int fd = (int)sys3(SYS_open, "/proc/self/maps", O_RDONLY | O_CLOEXEC, 0), rc;

	if (fd < 0)
		return false;
	rc = sys_ioctl(fd, PROCMAP_QUERY, &q); /* a kernel that has it not: it stays a file's */
	sys_close(fd);
	return !rc && q.vma_start <= start && q.vma_end >= end && q.inode &&
	       q.vma_flags == (PROCMAP_QUERY_VMA_READABLE | PROCMAP_QUERY_VMA_WRITABLE);
}

static void take_over(uintptr_t start, uintptr_t end)
{
	size_t len = end - start;
	long p;

	if (!is_plain(start, end))
		return;
	p = sys6(SYS_mmap, 0, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (p < 0 && p > -4096)
		return;
	memcpy((void *)p, (void *)start, len);
	if (sys5(SYS_mremap, p, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, start) != (long)start)
		sys2(SYS_munmap, p, len);
}

static int each_object(struct dl_phdr_info *info, size_t size, void *arg)
{
	uintptr_t sealed = 0; /* what is read-only by now ends there */

	for (unsigned i = 0; i < info->dlpi_phnum; i++) {
		const ElfW(Phdr) *p = &info->dlpi_phdr[i];

		if (p->p_type == PT_GNU_RELRO)
			sealed = DOWN(info->dlpi_addr + p->p_vaddr + p->p_memsz);
	}
	for (unsigned i = 0; i < info->dlpi_phnum; i++) {
		const ElfW(Phdr) *p = &info->dlpi_phdr[i];
		uintptr_t start = DOWN(info->dlpi_addr + p->p_vaddr);
		uintptr_t end = UP(info->dlpi_addr + p->p_vaddr + p->p_filesz);

		if (p->p_type != PT_LOAD || !(p->p_flags & PF_W))
			continue;
		if (start < sealed && sealed < end)
			start = sealed;
		if (start < end && end - start >= LEAST)
			take_over(start, end);
	}
	return 0;
}

void preload_data(void)
{
	sigset_t old;

	if (!__libc_single_threaded)
		return;
	preload_signals_block(&old);
	dl_iterate_phdr(each_object, NULL);
	preload_signals_restore(&old);
}
