/* SPDX-License-Identifier: MIT */
/*
 * Fact: COPY, ZEROPAGE, POISON, CONTINUE and MOVE look for the mapping before they ask
 * once more whether a change is under way: who waits for the lock that mremap() has
 * finds no mapping at the old place, and gets ENOENT though the REMAP event is unread
 * (since Linux 6.9).  A ZEROPAGE at an impossible address, after that, tells: EAGAIN.
 * Once the events are read it does not, and ENOENT means what it says.  WRITEPROTECT
 * asks first, and gives EAGAIN.
 */
#include "probe.h"

#define LEN (32ul << 20)
#define ROUNDS 400
#define WANTED 3

struct trip {
	char *from, *to;
	int uffd;
};

static void travel(void *arg)
{
	struct trip *t = arg;

	CHECK(mremap(t->from, LEN, LEN, MREMAP_MAYMOVE | MREMAP_FIXED, t->to) == t->to, "mremap works");
}

static int do_copy(int uffd, char *at, char *src)
{
	return uffd_copy(uffd, at, src, PAGE);
}

static int do_zeropage(int uffd, char *at, char *src)
{
	(void)src;
	return uffd_zeropage(uffd, at, PAGE);
}

static int do_poison(int uffd, char *at, char *src)
{
	(void)src;
	return uffd_poison(uffd, at, PAGE);
}

static int do_continue(int uffd, char *at, char *src)
{
	struct uffdio_continue c = {.range = {(uintptr_t)at, PAGE}};

	(void)src;
	return ioctl(uffd, UFFDIO_CONTINUE, &c) ? -errno : 0;
}

static int do_move(int uffd, char *at, char *src)
{
	return uffd_move(uffd, at, src, PAGE);
}

static int do_wp(int uffd, char *at, char *src)
{
	(void)src;
	return uffd_wp(uffd, at, PAGE, true);
}

static bool changing(int uffd)
{
	return uffd_zeropage(uffd, (void *)1, PAGE) == -EAGAIN;
}

int main(void)
{
	static const struct {
		const char *name;
		int (*fn)(int uffd, char *at, char *src);
		int present; /* what it says of a page that is there */
		bool asks_first;
	} calls[] = {
		{"COPY", do_copy, -EEXIST, false},     {"ZEROPAGE", do_zeropage, -EEXIST, false},
		{"POISON", do_poison, -EEXIST, false}, {"CONTINUE", do_continue, -EINVAL, false},
		{"MOVE", do_move, -EEXIST, false},     {"WRITEPROTECT", do_wp, 0, true},
	};
	int uffd;
	char *src, *place[2];
	bool never = true;

	probe_start();
	uffd = uffd_open(UFFD_FEATURE_MOVE | UFFD_FEATURE_POISON | UFFD_FEATURE_EVENT_UNMAP | UFFD_FEATURE_EVENT_REMAP);
	src = map_filled(PAGE, 's');
	/* The second place lies otherwise in its page tables: the pages go one by one, and it takes a while. */
	place[0] = map_flags(2 * LEN + 2 * HUGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS);
	place[0] = (char *)(((uintptr_t)place[0] + HUGE - 1) & -HUGE);
	place[1] = place[0] + LEN + HUGE / 2;
	CHECK(mmap(place[0], LEN, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == place[0],
	      "mmap works");
	madvise(place[0], LEN, MADV_NOHUGEPAGE);
	for (size_t i = 0; i < LEN; i += PAGE)
		place[0][i] = 'v';
	CHECK(!uffd_register(uffd, place[0], LEN, MISSING | WP), "REGISTER works");
	for (unsigned c = 0, at = 0; c < sizeof(calls) / sizeof(calls[0]); c++) {
		unsigned seen = 0;

		for (unsigned round = 0; round < (calls[c].asks_first ? 20 : ROUNDS) && seen < WANTED; round++) {
			struct trip t = {place[at], place[!at], uffd};
			struct actor a;
			int rc;

			actor_start(&a, travel, &t);
			do
				rc = calls[c].fn(uffd, t.from, src);
			while (rc == calls[c].present);
			if (rc == -ENOENT) {
				CHECK(changing(uffd), "%s: ENOENT, and a change is under way", calls[c].name);
				CHECK(!actor_done(&a), "%s: ENOENT, and mremap has not returned", calls[c].name);
				CHECK(!calls[c].asks_first, "%s asks first", calls[c].name);
				seen++;
			} else {
				CHECK(rc == -EAGAIN, "%s: EAGAIN (%d)", calls[c].name, rc);
			}
			CHECK(uffd_read(uffd).event == UFFD_EVENT_REMAP, "REMAP is sent");
			CHECK(uffd_read(uffd).event == UFFD_EVENT_UNMAP, "UNMAP is sent");
			actor_join(&a);
			CHECK(!changing(uffd), "the events are read: no change is under way");
			rc = calls[c].fn(uffd, t.from, src);
			CHECK(rc == -ENOENT, "%s: ENOENT, for good (%d)", calls[c].name, rc);
			at = !at;
		}
		printf("%s: ENOENT while the event is unread, %u times\n", calls[c].name, seen);
		never &= !seen;
	}
	CHECK(place[1] && src[0] == 's', "MOVE has moved nothing");
	if (never)
		SKIP("not seen: before Linux 6.9 it cannot be");
	return 0;
}
