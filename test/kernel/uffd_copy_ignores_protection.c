/* SPDX-License-Identifier: MIT */
/*
 * Fact: UFFDIO_COPY and ZEROPAGE succeed into memory that is read-only or not
 * accessible at all; the protection stays.
 */
#include "probe.h"

int main(void)
{
	static const int prots[] = {PROT_READ, PROT_NONE};
	int uffd, fds[2];
	char *p;

	probe_start();
	uffd = uffd_open(0);
	CHECK(!pipe(fds), "pipe works");
	for (int i = 0; i < 2; i++) {
		p = map_registered(uffd, 2 * PAGE);
		CHECK(!mprotect(p, 2 * PAGE, prots[i]), "mprotect works");
		CHECK(!uffd_fill(uffd, p, 'c'), "COPY into protection %d works", prots[i]);
		CHECK(!uffd_zeropage(uffd, p + PAGE, PAGE), "ZEROPAGE into protection %d works", prots[i]);
		CHECK(write(fds[1], "x", 1) == 1 && read(fds[0], p, 1) < 0 && errno == EFAULT,
		      "a write is still refused");
		CHECK(!mprotect(p, 2 * PAGE, PROT_READ | PROT_WRITE), "mprotect works");
		CHECK(all_bytes(p, PAGE, 'c') && all_bytes(p + PAGE, PAGE, 0), "the bytes are there");
	}
	return 0;
}
