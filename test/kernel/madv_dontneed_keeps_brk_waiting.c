/* SPDX-License-Identifier: MIT */
/*
 * Fact: MADV_DONTNEED of registered memory has the lock of the address space until
 * all is dropped: brk(0), which changes nothing, waits for that.  So once the first
 * page has gone and brk(0) has returned, so has the last.
 */
#include "probe.h"

#define PAGES 8192ul
#define ROUNDS 10

static char *mem;
static _Atomic bool filled, done;

static void *dropper(void *unused)
{
	for (unsigned i = 0; i < ROUNDS; i++) {
		for (unsigned long k = 0; k < PAGES; k++)
			mem[k * PAGE] = 1;
		filled = true;
		CHECK(!madvise(mem, PAGES * PAGE, MADV_DONTNEED), "MADV_DONTNEED works");
		while (filled)
			sched_yield();
	}
	done = true;
	return NULL;
}

static void *reader(void *uffd)
{
	for (;;) {
		struct uffd_msg m = uffd_read(*(int *)uffd);

		/* All at once, as far as it is missing. */
		if (m.event == UFFD_EVENT_PAGEFAULT) {
			char *at = (char *)(uintptr_t)(m.arg.pagefault.address & -PAGE);

			uffd_zeropage(*(int *)uffd, at, (size_t)(mem + PAGES * PAGE - at));
		}
	}
	return NULL;
}

int main(void)
{
	int fd = open("/proc/self/pagemap", O_RDONLY), uffd;
	unsigned amid = 0;
	pthread_t t, r;

	probe_start();
	CHECK(fd >= 0, "pagemap can be opened");
	uffd = uffd_open(UFFD_FEATURE_EVENT_REMOVE);
	mem = map_anon(PAGES * PAGE);
	for (unsigned long k = 0; k < PAGES; k++)
		mem[k * PAGE] = 1;
	CHECK(!uffd_register(uffd, mem, PAGES * PAGE, MISSING), "REGISTER works");
	CHECK(!pthread_create(&r, NULL, reader, &uffd), "a thread can be started");
	CHECK(!pthread_create(&t, NULL, dropper, NULL), "a thread can be started");
	for (unsigned round = 0; !done; round++) {
		if (!filled) {
			sched_yield();
			continue;
		}
		while (scan_page_fd(fd, mem) & PAGE_IS_PRESENT)
			;
		/* Without it there is something left, now and then. */
		amid += !!(scan_page_fd(fd, mem + (PAGES - 1) * PAGE) & PAGE_IS_PRESENT);
		syscall(SYS_brk, 0);
		CHECK(!(scan_page_fd(fd, mem + (PAGES - 1) * PAGE) & PAGE_IS_PRESENT),
		      "the last page is there when the first has gone and brk(0) has returned");
		filled = false;
	}
	pthread_join(t, NULL);
	if (!amid)
		SKIP("no drop was met half-way in %u rounds", ROUNDS);
	return 0;
}
