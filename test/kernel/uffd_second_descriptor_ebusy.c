/* SPDX-License-Identifier: MIT */
/*
 * Fact: a range that one userfaultfd has registered is EBUSY for another, which
 * may still register what lies beside it.
 */
#include "probe.h"

int main(void)
{
	int one, two, rc;
	char *p;

	probe_start();
	one = uffd_open(0);
	two = uffd_open(0);
	p = map_anon(4 * PAGE);
	CHECK(!uffd_register(one, p + PAGE, PAGE, MISSING), "REGISTER works");
	rc = uffd_register(two, p, 4 * PAGE, MISSING);
	CHECK(rc == -EBUSY, "REGISTER of another's range is EBUSY (%d)", rc);
	CHECK(p[3 * PAGE] == 0, "and has registered nothing");
	CHECK(!uffd_register(two, p + 2 * PAGE, 2 * PAGE, MISSING), "REGISTER beside it works");
	CHECK(!uffd_unregister(one, p + PAGE, PAGE), "UNREGISTER works");
	CHECK(!uffd_register(two, p, 4 * PAGE, MISSING), "once it is given up, REGISTER works");
	return 0;
}
