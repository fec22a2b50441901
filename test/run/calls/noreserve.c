/* SPDX-License-Identifier: MIT */
/*
 * Memory without reservation lands right below what hmm keeps in the address
 * space, with the same flags: it must be found all the same.
 */
#include <stdint.h>
#include <stdio.h>
#include <sys/mman.h>

#define PAGES 20000ul

int main(void)
{
	char *p = mmap(NULL, PAGES * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (p == MAP_FAILED)
		return 1;
	for (uint64_t i = 0; i < PAGES; i++)
		*(uint64_t *)(p + i * 4096) = i * 0x9e3779b97f4a7c15ull + 1;
	for (uint64_t i = 0; i < PAGES; i++) {
		if (*(uint64_t *)(p + i * 4096) != i * 0x9e3779b97f4a7c15ull + 1) {
			printf("page %lu is wrong\n", (unsigned long)i);
			return 1;
		}
	}
	return 0;
}
