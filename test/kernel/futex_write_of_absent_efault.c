/* SPDX-License-Identifier: MIT */
/*
 * Fact: where the kernel writes a futex word itself (FUTEX_WAKE_OP, FUTEX_LOCK_PI)
 * and the page is missing in registered memory, it asks nobody
 * and says EFAULT, with nothing done; FUTEX_WAIT, which only reads, asks.
 */
#include "probe.h"

#include <linux/futex.h>

static long futex(void *w, int op, uint32_t val, void *t, void *w2, uint32_t val3)
{
	return syscall(SYS_futex, w, op | FUTEX_PRIVATE_FLAG, val, t, w2, val3);
}

static void wait_on(void *p)
{
	CHECK(futex(p, FUTEX_WAIT, 0, NULL, NULL, 0) < 0 && errno == EAGAIN, "FUTEX_WAIT finds another value");
}

int main(void)
{
	static const int ops[] = {FUTEX_WAKE_OP, FUTEX_LOCK_PI, FUTEX_TRYLOCK_PI};
	uint32_t mine[2] = {0};
	struct actor a;
	int uffd;
	char *p;

	probe_start();
	uffd = uffd_open(0);
	p = map_registered(uffd, 2 * PAGE);
	for (unsigned i = 0; i < sizeof(ops) / sizeof(ops[0]); i++) {
		void *w = ops[i] == FUTEX_WAKE_OP ? (void *)mine : (void *)p;
		long rc = futex(w, ops[i], ops[i] == FUTEX_WAKE_OP, NULL, p,
				FUTEX_OP(FUTEX_OP_ADD, 1, FUTEX_OP_CMP_EQ, 0));

		CHECK(rc < 0 && errno == EFAULT, "operation %d on a word that is away is EFAULT (%ld)", ops[i], rc);
		CHECK(uffd_quiet(uffd) && !present(p), "and asks nobody");
	}
	actor_start(&a, wait_on, p);
	uffd_read_fault(uffd, p);
	CHECK(!uffd_fill(uffd, p, 1), "COPY works");
	actor_join(&a);
	CHECK(futex(mine, FUTEX_WAKE_OP, 1, NULL, p, FUTEX_OP(FUTEX_OP_SET, 0, FUTEX_OP_CMP_EQ, 0)) == 0 &&
		      *(uint32_t *)p == 0,
	      "FUTEX_WAKE_OP works once the page is there");
	CHECK(!futex(p, FUTEX_LOCK_PI, 0, NULL, NULL, 0) && !futex(p, FUTEX_UNLOCK_PI, 0, NULL, NULL, 0),
	      "so does a lock with priority inheritance");
	return 0;
}
