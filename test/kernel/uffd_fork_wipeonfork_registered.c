/* SPDX-License-Identifier: MIT */
/*
 * Fact: a registered range that the parent marked MADV_WIPEONFORK is empty in
 * the child and registered with the child's descriptor: faults arrive there.
 * One marked MADV_DONTFORK is not in the child at all.
 */
#include "probe.h"

static int program(int sock)
{
	int uffd = uffd_open(UFFD_FEATURE_EVENT_FORK);
	char *wipe = map_filled(2 * PAGE, 'o'), *gone = map_filled(PAGE, 'g');
	pid_t child;

	CHECK(!uffd_register(uffd, wipe, 2 * PAGE, MISSING), "REGISTER works");
	CHECK(!uffd_register(uffd, gone, PAGE, MISSING), "REGISTER works");
	CHECK(!madvise(wipe, 2 * PAGE, MADV_WIPEONFORK), "MADV_WIPEONFORK of a registered range works");
	CHECK(!madvise(gone, PAGE, MADV_DONTFORK), "MADV_DONTFORK of a registered range works");
	send_fd(sock, uffd);
	say(sock, (uintptr_t)wipe);
	say(sock, (uintptr_t)gone);
	child = fork();
	CHECK(child >= 0, "fork works");
	if (!child) {
		unsigned char vec;

		CHECK(!present(wipe) && !present(wipe + PAGE), "the wiped range is empty in the child");
		CHECK(mincore(gone, PAGE, &vec) < 0 && errno == ENOMEM, "the other range is not in the child");
		CHECK(all_bytes(wipe, PAGE, 'w'), "a fault in the wiped range is served");
		CHECK(all_bytes(wipe + PAGE, PAGE, 'x'), "a fault in the wiped range is served");
		_exit(0);
	}
	CHECK(!reap(child), "the child's side of this probe agrees");
	CHECK(all_bytes(wipe, 2 * PAGE, 'o') && all_bytes(gone, PAGE, 'g'), "the parent's pages stay");
	return 0;
}

int main(void)
{
	struct peer prog;
	struct uffd_msg m;
	char *wipe, *gone;
	int uffd, child, rc;

	probe_start();
	close(uffd_open(UFFD_FEATURE_EVENT_FORK)); /* skips here, not in the child */
	prog = peer_start(program);
	uffd = recv_fd(prog.sock);
	wipe = (char *)(uintptr_t)hear(prog.sock);
	gone = (char *)(uintptr_t)hear(prog.sock);
	m = uffd_read(uffd);
	CHECK(m.event == UFFD_EVENT_FORK, "fork is told");
	child = (int)m.arg.fork.ufd;
	uffd_read_fault(child, wipe);
	rc = uffd_fill(child, gone, 'n');
	CHECK(rc == -ENOENT, "COPY where the child has nothing is ENOENT (%d)", rc);
	CHECK(!uffd_fill(child, wipe, 'w'), "COPY into the child works");
	uffd_read_fault(child, wipe + PAGE);
	CHECK(!uffd_fill(child, wipe + PAGE, 'x'), "COPY into the child works");
	CHECK(!reap(prog.pid), "the program's side of this probe agrees");
	return 0;
}
