/* SPDX-License-Identifier: MIT */
/* A program with a driver of its own, built against what is installed: see outside.sh. */
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "drivers/dmirror/dmirror.h"

#define NR 600u
#define SIZE (NR * 4096ul)

#define CHECK(cond)                                                        \
	do {                                                               \
		if (!(cond)) {                                             \
			fprintf(stderr, "line %d: %s\n", __LINE__, #cond); \
			return 1;                                          \
		}                                                          \
	} while (0)

static char *map(void)
{
	return mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

int main(void)
{
	struct umm_space *space;
	struct dmirror_host *host;
	struct dmirror *dm;
	char *mem = map(), *buf = map();
	uint64_t n;
	int rc;

	CHECK(mem != MAP_FAILED && buf != MAP_FAILED);
	CHECK(!umm_space_open_self(&space));
	CHECK(!dmirror_open(space, &dm));
	memset(buf, 7, SIZE);
	CHECK(!dmirror_write(dm, (uintptr_t)mem, buf, NR, &n));
	CHECK(!memcmp(mem, buf, SIZE));
	memset(mem, 9, SIZE);
	CHECK(!dmirror_read(dm, (uintptr_t)mem, buf, NR, &n));
	CHECK(!memcmp(mem, buf, SIZE));
	dmirror_close(dm);

	/* With device memory, where this kernel and this user have what that takes. */
	rc = dmirror_host_open(space, &host);
	if (rc == -EPERM || rc == -EOPNOTSUPP) {
		printf("SKIP: no userfaultfd that moves pages: error %d\n", -rc);
		return 77;
	}
	CHECK(!rc);
	CHECK(!dmirror_open_nr(host, 0, &dm));
	CHECK(!dmirror_migrate_to_dev(dm, (uintptr_t)mem, buf, NR, &n));
	CHECK(n == NR && buf[SIZE - 1] == 9);
	CHECK(!dmirror_read(dm, (uintptr_t)mem, buf, NR, &n));
	CHECK(mem[0] == 9);
	dmirror_close(dm);
	CHECK(!dmirror_host_close(host));
	umm_space_close(space);
	return 0;
}
