/* SPDX-License-Identifier: MIT */
/*
 * Fact: MOVE takes a page that a pipe holds (vmsplice): that is no pin.  The pipe
 * keeps what was there, also when the page has been moved on and dropped; what is
 * written later does not reach it any more.
 */
#include "probe.h"

int main(void)
{
	char got[2 * PAGE], *src, *staging;
	struct iovec iov;
	int uffd, rc, tube[2];

	probe_start();
	uffd = uffd_open(UFFD_FEATURE_MOVE);
	CHECK(!pipe(tube), "a pipe can be made");
	src = map_filled(2 * PAGE, 's');
	staging = map_registered(uffd, PAGE);
	iov = (struct iovec){src, 2 * PAGE};
	CHECK(vmsplice(tube[1], &iov, 1, 0) == 2 * PAGE, "vmsplice takes both pages");
	rc = uffd_move(uffd, staging, src, PAGE);
	CHECK(!rc, "MOVE of a page in a pipe works (%d)", rc);
	CHECK(all_bytes(staging, PAGE, 's'), "it has moved");
	CHECK(!uffd_unregister(uffd, staging, PAGE) && !madvise(staging, PAGE, MADV_DONTNEED), "it can be dropped");
	memset(src, 't', 2 * PAGE); /* the first one is another page now */
	CHECK(read(tube[0], got, sizeof(got)) == (ssize_t)sizeof(got), "the pipe gives them back");
	CHECK(all_bytes(got, PAGE, 's'), "what has moved as it was");
	CHECK(all_bytes(got + PAGE, PAGE, 't'), "what has not, with what was written since");
	return 0;
}
