/* SPDX-License-Identifier: MIT */
/*
 * Fact: a page that a device may write (an io_uring fixed buffer here) cannot be
 * moved: EBUSY until the buffer is unregistered.
 */
#include "probe.h"

#include <liburing.h>

int main(void)
{
	struct io_uring ring;
	struct iovec iov;
	char *src, *staging;
	int uffd, rc;

	probe_start();
	uffd = uffd_open(UFFD_FEATURE_MOVE);
	src = map_filled(2 * PAGE, 's');
	staging = map_registered(uffd, 2 * PAGE);
	rc = io_uring_queue_init(4, &ring, 0);
	if (rc)
		SKIP("io_uring is not to be had here (%s)", strerror(-rc));
	iov = (struct iovec){src, PAGE};
	rc = io_uring_register_buffers(&ring, &iov, 1);
	if (rc)
		SKIP("a page cannot be locked for io_uring (%s): ulimit -l", strerror(-rc));
	rc = uffd_move(uffd, staging, src, PAGE);
	CHECK(rc == -EBUSY, "MOVE of a fixed buffer is EBUSY (%d)", rc);
	CHECK(!uffd_move(uffd, staging + PAGE, src + PAGE, PAGE), "MOVE of the page beside it works");
	CHECK(!io_uring_unregister_buffers(&ring), "the buffer can be unregistered");
	while ((rc = uffd_move(uffd, staging, src, PAGE)) == -EBUSY)
		sched_yield(); /* the kernel lets go of the pages a little later */
	CHECK(!rc, "MOVE works when the buffer is unregistered (%d)", rc);
	CHECK(all_bytes(staging, 2 * PAGE, 's'), "the bytes have moved");
	io_uring_queue_exit(&ring);
	return 0;
}
