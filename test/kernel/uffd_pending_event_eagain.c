/* SPDX-License-Identifier: MIT */
/*
 * Fact: while an UNMAP, REMOVE, REMAP or FORK event is unread, COPY and MOVE
 * with the same descriptor, anywhere, give EAGAIN with -EAGAIN in the result
 * field; so does ZEROPAGE at an impossible address, which is EINVAL else.  Once it
 * was read and the changer has gone on they work.  The changer
 * waits until then.  Of the changes only REMOVE has not happened before the
 * event is read.  A REMAP is followed by an UNMAP of the old range, and mremap
 * waits for both to be read.
 */
#include "probe.h"

static void do_unmap(void *p)
{
	CHECK(!munmap(p, PAGE), "munmap works");
}

static void do_dontneed(void *p)
{
	CHECK(!madvise(p, PAGE, MADV_DONTNEED), "MADV_DONTNEED works");
}

static void do_remap(void *p)
{
	CHECK(mremap(p, PAGE, 2 * PAGE, MREMAP_MAYMOVE) != MAP_FAILED, "mremap works");
}

static void do_fork(void *p)
{
	pid_t pid = fork();

	CHECK(pid >= 0, "fork works");
	if (!pid)
		_exit(0);
	reap(pid);
}

static bool mapped(const void *p)
{
	unsigned char vec;

	return !mincore((void *)(uintptr_t)p, PAGE, &vec);
}

int main(void)
{
	static const struct {
		const char *name;
		void (*fn)(void *);
		int event;
		bool gone; /* unmapped while the event is unread */
	} cases[] = {
		{"munmap", do_unmap, UFFD_EVENT_UNMAP, true},
		{"MADV_DONTNEED", do_dontneed, UFFD_EVENT_REMOVE, false},
		{"mremap", do_remap, UFFD_EVENT_REMAP, true},
		{"fork", do_fork, UFFD_EVENT_FORK, false},
	};
	int uffd;

	probe_start();
	uffd = uffd_open(UFFD_FEATURE_MOVE | UFFD_FEATURE_EVENT_UNMAP | UFFD_FEATURE_EVENT_REMOVE |
			 UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_EVENT_FORK);
	for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		char *victim = map_filled(PAGE, 'v'), *src = map_filled(2 * PAGE, 's');
		char *dst = map_registered(uffd, 2 * PAGE);
		struct uffd_msg m;
		struct actor a;
		int64_t field;
		char page[PAGE];
		int rc;

		memset(page, 'y', PAGE);
		madvise(src, 2 * PAGE, MADV_DONTFORK); /* what a fork has shared is EBUSY for another reason */
		CHECK(!uffd_register(uffd, victim, PAGE, MISSING), "REGISTER works");
		actor_start(&a, cases[i].fn, victim);
		uffd_wait(uffd);
		CHECK(uffd_zeropage(uffd, (void *)1, PAGE) == -EAGAIN, "%s unread: ZEROPAGE is EAGAIN", cases[i].name);
		rc = uffd_copy_mode(uffd, dst, page, PAGE, 0, &field);
		CHECK(rc == -EAGAIN && field == -EAGAIN, "%s unread: COPY is EAGAIN (%d)", cases[i].name, rc);
		rc = uffd_move_mode(uffd, dst, src, PAGE, 0, &field);
		CHECK(rc == -EAGAIN && field == -EAGAIN, "%s unread: MOVE is EAGAIN (%d)", cases[i].name, rc);
		CHECK(!present(dst) && present(src), "%s unread: nothing was copied or moved", cases[i].name);
		CHECK(!actor_done(&a), "%s waits until its event is read", cases[i].name);
		CHECK(mapped(victim) == !cases[i].gone, "%s unread: the change has%s happened", cases[i].name,
		      cases[i].gone ? "" : " not");
		if (!cases[i].gone)
			CHECK(present(victim) && victim[0] == 'v', "%s unread: the page is there", cases[i].name);
		m = uffd_read(uffd);
		CHECK(m.event == cases[i].event, "%s sends event %#x", cases[i].name, m.event);
		if (m.event == UFFD_EVENT_REMAP) {
			CHECK(m.arg.remap.from == (uintptr_t)victim, "REMAP has the old address");
			uffd_wait(uffd);
			CHECK(uffd_copy(uffd, dst, page, PAGE) == -EAGAIN, "between REMAP and UNMAP COPY is EAGAIN");
			m = uffd_read(uffd);
			CHECK(m.event == UFFD_EVENT_UNMAP && m.arg.remove.start == (uintptr_t)victim &&
				      m.arg.remove.end == (uintptr_t)victim + PAGE,
			      "mremap sends UNMAP of the old range after REMAP (%#x)", m.event);
		}
		actor_join(&a);
		if (m.event == UFFD_EVENT_FORK)
			close((int)m.arg.fork.ufd);
		if (m.event == UFFD_EVENT_REMOVE)
			CHECK(m.arg.remove.start == (uintptr_t)victim && !present(victim), "the page is gone at last");
		CHECK(uffd_zeropage(uffd, (void *)1, PAGE) == -EINVAL, "%s read: ZEROPAGE at address 1 is EINVAL",
		      cases[i].name);
		CHECK(!uffd_copy_mode(uffd, dst, page, PAGE, 0, &field) && field == (int64_t)PAGE,
		      "%s read: COPY works", cases[i].name);
		CHECK(!uffd_move_mode(uffd, dst + PAGE, src, PAGE, 0, &field) && field == (int64_t)PAGE,
		      "%s read: MOVE works", cases[i].name);
	}
	return 0;
}
