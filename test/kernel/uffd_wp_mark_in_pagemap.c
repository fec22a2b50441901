/* SPDX-License-Identifier: MIT */
/*
 * Fact: a page that is write-protected through a userfaultfd has bit 57 in the
 * page map of whoever lives in that space, and has it no more when that is undone;
 * a child by fork has the range registered with its own descriptor, and marks that
 * one space gets from then on do not show in the other.  A range that the parent marked
 * MADV_WIPEONFORK is empty in the child, and can be filled and marked there.
 */
#include "probe.h"

static int marked(int pagemap, const char *p)
{
	uint64_t e;

	CHECK(pread(pagemap, &e, sizeof(e), (off_t)((uintptr_t)p / PAGE * sizeof(e))) == sizeof(e),
	      "a page map can be read");
	return e >> 57 & 1;
}

static int protect(int uffd, char *p, uint64_t mode)
{
	struct uffdio_writeprotect wp = {.range = {(uintptr_t)p, PAGE}, .mode = mode};

	return ioctl(uffd, UFFDIO_WRITEPROTECT, &wp) ? -errno : 0;
}

static int pagemap_of(pid_t pid)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/pagemap", (int)pid);
	return open(path, O_RDONLY | O_CLOEXEC);
}

static int program(int sock)
{
	int uffd = uffd_open(UFFD_FEATURE_EVENT_FORK);
	char *p = map_filled(PAGE, 'p');
	pid_t child;

	CHECK(!uffd_register(uffd, p, PAGE, MISSING | UFFDIO_REGISTER_MODE_WP), "REGISTER works");
	CHECK(!madvise(p, PAGE, MADV_WIPEONFORK), "MADV_WIPEONFORK works");
	send_fd(sock, uffd);
	say(sock, (uintptr_t)p);
	child = fork();
	CHECK(child >= 0, "fork works");
	if (!child) {
		pause();
		_exit(0);
	}
	say(sock, (uint64_t)child);
	hear(sock);
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
	return 0;
}

int main(void)
{
	struct peer prog;
	struct uffd_msg m;
	int uffd, child_uffd, theirs, childs;
	char *p;
	pid_t child;

	probe_start();
	close(uffd_open(UFFD_FEATURE_EVENT_FORK)); /* skips here, not in the child */
	prog = peer_start(program);
	uffd = recv_fd(prog.sock);
	p = (char *)(uintptr_t)hear(prog.sock);
	m = uffd_read(uffd);
	CHECK(m.event == UFFD_EVENT_FORK, "fork is told");
	child_uffd = (int)m.arg.fork.ufd;
	child = (pid_t)hear(prog.sock);
	theirs = pagemap_of(prog.pid);
	childs = pagemap_of(child);
	CHECK(theirs >= 0 && childs >= 0, "page maps can be opened");

	CHECK(!marked(theirs, p) && !marked(childs, p), "nothing is marked yet");
	CHECK(!protect(uffd, p, UFFDIO_WRITEPROTECT_MODE_WP), "WRITEPROTECT works");
	CHECK(marked(theirs, p) && !marked(childs, p), "the mark shows in that space, and in no other");
	CHECK(!uffd_fill(child_uffd, p, 'c'), "COPY into the child works");
	CHECK(!protect(child_uffd, p, UFFDIO_WRITEPROTECT_MODE_WP), "WRITEPROTECT works in the child");
	CHECK(!protect(uffd, p, 0), "WRITEPROTECT can be undone");
	CHECK(!marked(theirs, p) && marked(childs, p), "the one mark is gone, the other one is there");
	CHECK(!protect(child_uffd, p, 0), "WRITEPROTECT can be undone in the child");
	CHECK(!marked(theirs, p) && !marked(childs, p), "no mark is left");
	say(prog.sock, 1);
	CHECK(!reap(prog.pid), "the program's side of this probe agrees");
	return 0;
}
