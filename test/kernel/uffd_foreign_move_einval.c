/* SPDX-License-Identifier: MIT */
/*
 * Fact: UFFDIO_MOVE works on one's own memory only: EINVAL for a process that
 * was handed the descriptor.  So is process_madvise(MADV_DONTNEED) refused.
 */
#include "probe.h"

#ifndef SYS_process_madvise
#define SYS_process_madvise 440
#endif

static int program(int sock)
{
	int uffd = uffd_open(UFFD_FEATURE_MOVE);
	char *staging = map_registered(uffd, 2 * PAGE);
	char *src = map_filled(2 * PAGE, 's');

	CHECK(!uffd_move(uffd, staging, src, PAGE), "MOVE from inside works");
	send_fd(sock, uffd);
	say(sock, (uintptr_t)staging);
	say(sock, (uintptr_t)src);
	hear(sock);
	CHECK(all_bytes(src + PAGE, PAGE, 's'), "the page is where it was");
	return 0;
}

int main(void)
{
	struct peer prog;
	struct iovec iov;
	char *staging, *src;
	int uffd, pidfd;
	long n;

	probe_start();
	close(uffd_open(UFFD_FEATURE_MOVE)); /* skips here, not in the child */
	prog = peer_start(program);
	uffd = recv_fd(prog.sock);
	staging = (char *)(uintptr_t)hear(prog.sock);
	src = (char *)(uintptr_t)hear(prog.sock);

	CHECK(uffd_move(uffd, staging + PAGE, src + PAGE, PAGE) == -EINVAL, "MOVE from another process is EINVAL");

	pidfd = pidfd_open_(prog.pid);
	iov = (struct iovec){src + PAGE, PAGE};
	n = syscall(SYS_process_madvise, pidfd, &iov, 1ul, MADV_DONTNEED, 0u);
	CHECK(n < 0 && errno == EINVAL, "process_madvise(MADV_DONTNEED) on another process is EINVAL");
	say(prog.sock, 1);
	CHECK(!reap(prog.pid), "the program's side of this probe agrees");
	return 0;
}
