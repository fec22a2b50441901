/* SPDX-License-Identifier: MIT */
/*
 * Fact: MADV_DONTNEED drops pages from low to high addresses: once the last one
 * that was there is gone, so are all before it.
 */
#include "probe.h"

#define PAGES 16384ul
#define ROUNDS 40

static char *mem;
static _Atomic bool filled, done;

static void *dropper(void *unused)
{
	for (unsigned i = 0; i < ROUNDS; i++) {
		/* Every other round with huge pages; a hole here and there. */
		madvise(mem, PAGES * PAGE, i % 2 ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
		for (unsigned long k = 0; k < PAGES; k += 1 + (k % 7 == 3))
			mem[k * PAGE] = 1;
		mem[(PAGES - 1) * PAGE] = 1;
		filled = true;
		CHECK(!madvise(mem, PAGES * PAGE, MADV_DONTNEED), "MADV_DONTNEED works");
		while (filled)
			sched_yield();
	}
	done = true;
	return NULL;
}

int main(void)
{
	static uint64_t entry[PAGES];
	pthread_t t;
	int fd = open("/proc/self/pagemap", O_RDONLY);

	probe_start();
	CHECK(fd >= 0, "pagemap can be opened");
	mem = map_flags(PAGES * PAGE + HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
	mem = (char *)(((uintptr_t)mem + HUGE - 1) & ~(HUGE - 1));
	CHECK(!pthread_create(&t, NULL, dropper, NULL), "a thread can be started");
	while (!done) {
		if (!filled) {
			sched_yield();
			continue;
		}
		while (scan_page_fd(fd, mem + (PAGES - 1) * PAGE) & PAGE_IS_PRESENT)
			;
		CHECK(pread(fd, entry, sizeof(entry), (off_t)((uintptr_t)mem / PAGE * 8)) == (ssize_t)sizeof(entry),
		      "pagemap can be read");
		for (unsigned long k = 0; k < PAGES; k++)
			CHECK(!(entry[k] >> 63), "page %lu is there when the last one has gone", k);
		filled = false;
	}
	pthread_join(t, NULL);
	return 0;
}
