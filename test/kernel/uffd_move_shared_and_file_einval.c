/* SPDX-License-Identifier: MIT */
/*
 * Fact: UFFDIO_MOVE refuses (EINVAL) shared memory and pages of private file
 * mappings, also when they were written and are therefore private copies.
 */
#include "probe.h"

int main(void)
{
	char *shared, *file, *src, *staging;
	int uffd, fd, rc;

	probe_start();
	uffd = uffd_open(UFFD_FEATURE_MOVE);
	staging = map_registered(uffd, PAGE);
	src = map_filled(PAGE, 's');

	shared = map_shared(PAGE);
	memset(shared, 'm', PAGE);
	rc = uffd_move(uffd, staging, shared, PAGE);
	CHECK(rc == -EINVAL, "MOVE of shared memory is EINVAL (%d)", rc);

	fd = memfd_create("probe", MFD_CLOEXEC);
	CHECK(fd >= 0 && !ftruncate(fd, PAGE), "memfd_create works");
	file = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	CHECK(file != MAP_FAILED, "a file can be mapped");
	memset(file, 'f', PAGE);
	CHECK(!(scan_page(file) & PAGE_IS_FILE), "the written page is a private copy");
	rc = uffd_move(uffd, staging, file, PAGE);
	CHECK(rc == -EINVAL, "MOVE of a private copy of a file's page is EINVAL (%d)", rc);
	CHECK(all_bytes(file, PAGE, 'f') && all_bytes(shared, PAGE, 'm'), "the pages stay");

	CHECK(!uffd_move(uffd, staging, src, PAGE), "MOVE of anonymous private memory works");
	return 0;
}
