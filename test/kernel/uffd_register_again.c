/* SPDX-License-Identifier: MIT */
/*
 * Fact: UFFDIO_REGISTER takes mappings side by side by one call, whatever their
 * protection, and holes between them; again, by the same descriptor, it changes
 * nothing of what is registered, what waits there goes on waiting, and what has been
 * mapped meanwhile is registered, too.
 */
#include "probe.h"

#define MAPPINGS 32u

static bool is_registered(int uffd, char *addr)
{
	struct uffdio_continue c = {.range = {(uintptr_t)addr, PAGE}, .mode = UFFDIO_CONTINUE_MODE_DONTWAKE};

	return ioctl(uffd, UFFDIO_CONTINUE, &c) && errno == EINVAL;
}

static unsigned count(int uffd, char *p)
{
	unsigned n = 0;

	for (unsigned i = 0; i < MAPPINGS; i++)
		n += is_registered(uffd, p + i * PAGE);
	return n;
}

static void touch(void *p)
{
	touch_write(p);
}

int main(void)
{
	static const int prot[] = {PROT_READ | PROT_WRITE, PROT_READ, PROT_READ | PROT_WRITE, PROT_NONE};
	struct actor a;
	int uffd;
	char *p;

	probe_start();
	uffd = uffd_open(0);
	p = map_anon(MAPPINGS * PAGE);
	memset(p, 'x', PAGE);
	for (unsigned i = 0; i < MAPPINGS; i++)
		CHECK(!mprotect(p + i * PAGE, PAGE, prot[i % 4]), "mprotect works");
	CHECK(!munmap(p + 5 * PAGE, PAGE), "munmap works");
	CHECK(!uffd_register(uffd, p, MAPPINGS * PAGE, MISSING), "REGISTER of all of them works");
	CHECK(count(uffd, p) == MAPPINGS - 1, "all but the hole are registered (%u)", count(uffd, p));
	actor_start(&a, touch, p + 2 * PAGE);
	uffd_read_fault(uffd, p + 2 * PAGE);
	CHECK(mmap(p + 5 * PAGE, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) ==
		      p + 5 * PAGE,
	      "mmap into the hole works");
	CHECK(count(uffd, p) == MAPPINGS - 1, "what is mapped there is not registered");
	CHECK(!uffd_register(uffd, p, MAPPINGS * PAGE, MISSING), "REGISTER works again");
	CHECK(count(uffd, p) == MAPPINGS, "all are registered (%u)", count(uffd, p));
	CHECK(all_bytes(p, PAGE, 'x'), "the contents are what they were");
	CHECK(actor_asleep(&a), "who waits for a page goes on waiting");
	CHECK(uffd_quiet(uffd), "and was not woken to ask for it again");
	CHECK(!uffd_fill(uffd, p + 2 * PAGE, 'y'), "COPY works");
	actor_join(&a);
	CHECK(p[2 * PAGE] == 'w' && p[2 * PAGE + 1] == 'y', "and gets it");
	return 0;
}
