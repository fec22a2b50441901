/* SPDX-License-Identifier: MIT */
/*
 * Fact: vmsplice() puts the page itself into the pipe: what is written to it
 * afterwards is what is read from the pipe, also when it has been unmapped since.
 * After a fork a write goes to another page.
 */
#include "probe.h"

int main(void)
{
	char path[] = "/var/tmp/hmm-probe-XXXXXX", got[2 * PAGE], *p;
	int file = mkstemp(path), tube[2], status;
	struct iovec iov;
	pid_t pid;

	probe_start();
	CHECK(file >= 0 && !ftruncate(file, 2 * PAGE) && !pipe(tube), "a file and a pipe can be made");
	unlink(path);
	p = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0);
	CHECK(p != MAP_FAILED, "a file can be mapped");
	memset(p, 'a', 2 * PAGE);
	iov = (struct iovec){p, 2 * PAGE};
	CHECK(vmsplice(tube[1], &iov, 1, SPLICE_F_NONBLOCK) == 2 * PAGE, "vmsplice takes both pages");
	p[0] = 'b';
	CHECK(mmap(p, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == p, "one is replaced");
	pid = fork();
	if (!pid)
		_exit(0);
	p[PAGE] = 'c';
	CHECK(waitpid(pid, &status, 0) == pid, "a child ends");
	CHECK(read(tube[0], got, sizeof(got)) == (ssize_t)sizeof(got), "the pipe gives them back");
	CHECK(got[0] == 'b' && got[1] == 'a', "with what was written last");
	CHECK(got[PAGE] == 'a', "but not after a fork");
	return 0;
}
