/* SPDX-License-Identifier: MIT */
/*
 * Fact: a process that was handed a userfaultfd does all but MOVE on its
 * owner's memory: REGISTER, COPY, ZEROPAGE, POISON, WAKE, WRITEPROTECT,
 * UNREGISTER.  The range stays served when the owner has closed its own
 * descriptor, and ESRCH tells that the owner's memory is gone.
 */
#include "probe.h"

#define PAGES 5

static int program(int sock)
{
	int uffd = uffd_open(UFFD_FEATURE_POISON | UFFD_FEATURE_PAGEFAULT_FLAG_WP);
	char *p = map_anon(PAGES * PAGE);
	char *quiet = map_anon(PAGE);
	struct actor a;
	int fds[2];

	CHECK(!pipe(fds), "pipe works");
	send_fd(sock, uffd);
	close(uffd);
	say(sock, (uintptr_t)p);
	say(sock, (uintptr_t)quiet);
	hear(sock); /* registered */

	CHECK(all_bytes(p, PAGE, 'c'), "what the other process copied is read");
	CHECK(all_bytes(p + PAGE, PAGE, 0), "the other process's zero page is read");
	CHECK(write(fds[1], p + 2 * PAGE, 1) < 0 && errno == EFAULT, "the other process's poison is met");

	/* Woken, not filled: it faults a second time. */
	actor_start(&a, touch_read, p + 3 * PAGE);
	actor_join(&a);
	CHECK(p[3 * PAGE] == 'k', "the page of the second fault is read");

	p[4 * PAGE] = 'x';
	say(sock, 1);
	hear(sock); /* write-protected */
	actor_start(&a, touch_write, p + 4 * PAGE);
	actor_join(&a);

	say(sock, 2);
	hear(sock); /* unregistered */
	CHECK(quiet[0] == 0, "after UNREGISTER a missing page is zeros");
	return 0;
}

int main(void)
{
	struct peer prog;
	struct uffd_msg m;
	char *p, *quiet;
	int uffd;

	probe_start();
	close(uffd_open(UFFD_FEATURE_POISON | UFFD_FEATURE_PAGEFAULT_FLAG_WP)); /* skips here, not in the child */
	prog = peer_start(program);
	uffd = recv_fd(prog.sock);
	p = (char *)(uintptr_t)hear(prog.sock);
	quiet = (char *)(uintptr_t)hear(prog.sock);

	CHECK(!uffd_register(uffd, p, PAGES * PAGE, MISSING | WP), "REGISTER from another process works");
	CHECK(!uffd_register(uffd, quiet, PAGE, MISSING), "REGISTER from another process works");
	CHECK(!uffd_poison(uffd, p + 2 * PAGE, PAGE), "POISON from another process works");
	say(prog.sock, 1);

	uffd_read_fault(uffd, p);
	CHECK(!uffd_fill(uffd, p, 'c'), "COPY from another process serves a fault");
	uffd_read_fault(uffd, p + PAGE);
	CHECK(!uffd_zeropage(uffd, p + PAGE, PAGE), "ZEROPAGE from another process serves a fault");

	uffd_read_fault(uffd, p + 3 * PAGE);
	CHECK(!uffd_wake(uffd, p + 3 * PAGE, PAGE), "WAKE from another process works");
	uffd_read_fault(uffd, p + 3 * PAGE);
	CHECK(!uffd_fill(uffd, p + 3 * PAGE, 'k'), "COPY from another process works");

	uffd_read_fault(uffd, p + 4 * PAGE);
	CHECK(!uffd_fill(uffd, p + 4 * PAGE, 0), "COPY from another process works");
	hear(prog.sock);
	CHECK(!uffd_wp(uffd, p + 4 * PAGE, PAGE, true), "WRITEPROTECT from another process works");
	say(prog.sock, 1);
	m = uffd_read(uffd);
	CHECK(m.event == UFFD_EVENT_PAGEFAULT && (m.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP),
	      "a write to what the other process protected is delivered to it");
	CHECK(!uffd_wp(uffd, p + 4 * PAGE, PAGE, false), "WRITEPROTECT from another process is undone");

	hear(prog.sock);
	CHECK(!uffd_unregister(uffd, quiet, PAGE), "UNREGISTER from another process works");
	say(prog.sock, 1);
	CHECK(!reap(prog.pid), "the program's side of this probe agrees");
	CHECK(uffd_fill(uffd, p, 'd') == -ESRCH, "COPY into memory that has ended is ESRCH");
	CHECK(uffd_quiet(uffd), "poll says nothing when the owner's memory ends");
	return 0;
}
