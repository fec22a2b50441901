/* SPDX-License-Identifier: MIT */
/*
 * Fact: mremap of a mapping of which a part is registered fails with EFAULT; of
 * one that is registered wholly it works, and what it moved stays registered.
 */
#include "probe.h"

static void grow(void *p)
{
	char **pp = p;

	*pp = mremap(*pp, 4 * PAGE, 8 * PAGE, MREMAP_MAYMOVE);
}

int main(void)
{
	struct actor a;
	char *p;
	int uffd;

	probe_start();
	uffd = uffd_open(UFFD_FEATURE_EVENT_REMAP);
	p = map_filled(4 * PAGE, 'p');
	CHECK(!uffd_register(uffd, p, 2 * PAGE, MISSING), "REGISTER works");
	CHECK(mremap(p, 4 * PAGE, 8 * PAGE, MREMAP_MAYMOVE) == MAP_FAILED && errno == EFAULT,
	      "mremap of a partly registered mapping is EFAULT");
	CHECK(all_bytes(p, 4 * PAGE, 'p'), "and changes nothing");
	CHECK(!uffd_register(uffd, p, 4 * PAGE, MISSING), "REGISTER of the whole works");
	actor_start(&a, grow, &p);
	CHECK(uffd_read(uffd).event == UFFD_EVENT_REMAP, "mremap sends REMAP");
	actor_join(&a);
	CHECK(p != MAP_FAILED && all_bytes(p, 4 * PAGE, 'p'), "mremap of a wholly registered mapping works");
	actor_start(&a, touch_read, p + 7 * PAGE);
	uffd_read_fault(uffd, p + 7 * PAGE);
	CHECK(!uffd_fill(uffd, p + 7 * PAGE, 'n'), "COPY works");
	actor_join(&a);
	return 0;
}
