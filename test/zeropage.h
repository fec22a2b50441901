/* SPDX-License-Identifier: MIT */
/*
 * Whether anonymous memory that is only read is the kernel's one page of zeros.  There are machines on which it is a
 * page of its own from the first: those of s390 that run guests, and kernels that are told to.
 */
#ifndef HMM_TEST_ZEROPAGE_H
#define HMM_TEST_ZEROPAGE_H

#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../uapi/hmm_uapi.h"

static inline bool reads_share_a_page(void)
{
	volatile char *p =
		(volatile char *)mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct page_region region = {0};
	struct pm_scan_arg arg = {
		.size = sizeof(arg),
		.start = (uintptr_t)p,
		.end = (uintptr_t)p + 4096,
		.vec = (uintptr_t)&region,
		.vec_len = 1,
		.category_mask = PAGE_IS_PRESENT,
		.return_mask = PAGE_IS_PFNZERO,
	};
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);

	(void)*p;
	bool shared = fd >= 0 && ioctl(fd, PAGEMAP_SCAN, &arg) == 1 && region.categories & PAGE_IS_PFNZERO;
	close(fd);
	munmap((void *)p, 4096);
	return shared;
}

#endif
