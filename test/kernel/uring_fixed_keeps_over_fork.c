/* SPDX-License-Identifier: MIT */
/*
 * Fact: a fixed buffer of io_uring is the parent's pages after fork(), too, with
 * a child alive and whoever writes first: the kernel gives the child copies.
 */
#include "probe.h"

#include <liburing.h>
#include <sys/wait.h>

static void transfer(struct io_uring *ring, int fd, char *buf, bool write)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(ring);
	struct io_uring_cqe *cqe;

	if (write)
		io_uring_prep_write_fixed(sqe, fd, buf, PAGE, 0, 0);
	else
		io_uring_prep_read_fixed(sqe, fd, buf, PAGE, 0, 0);
	io_uring_submit(ring);
	CHECK(!io_uring_wait_cqe(ring, &cqe) && cqe->res == PAGE, "a transfer with the fixed buffer works");
	io_uring_cqe_seen(ring, cqe);
}

int main(void)
{
	struct io_uring ring;
	struct iovec iov;
	char *buf, seen[PAGE];
	int fd, rc, gate[2];
	pid_t pid;

	probe_start();
	rc = io_uring_queue_init(4, &ring, 0);
	if (rc)
		SKIP("io_uring is not to be had here (%s)", strerror(-rc));
	buf = map_filled(PAGE, 'a');
	iov = (struct iovec){buf, PAGE};
	rc = io_uring_register_buffers(&ring, &iov, 1);
	if (rc)
		SKIP("a page cannot be locked for io_uring (%s): ulimit -l", strerror(-rc));
	fd = memfd_create("fixed", 0);
	CHECK(!pipe(gate), "pipe");
	pid = fork();
	if (!pid) {
		char c;

		close(gate[1]);
		_exit(read(gate[0], &c, 1) || !all_bytes(buf, PAGE, 'a'));
	}
	close(gate[0]);
	memset(buf, 'b', PAGE);
	transfer(&ring, fd, buf, true);
	CHECK(pread(fd, seen, PAGE, 0) == PAGE && all_bytes(seen, PAGE, 'b'),
	      "what the parent wrote after fork is sent");
	memset(seen, 'c', PAGE);
	CHECK(pwrite(fd, seen, PAGE, 0) == PAGE, "pwrite");
	transfer(&ring, fd, buf, false);
	CHECK(all_bytes(buf, PAGE, 'c'), "what is received is what the parent sees");
	close(gate[1]);
	CHECK(waitpid(pid, &rc, 0) == pid && !rc, "the child has what there was at fork");
	io_uring_queue_exit(&ring);
	return 0;
}
