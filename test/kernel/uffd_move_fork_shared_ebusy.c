/* SPDX-License-Identifier: MIT */
/*
 * Fact: a page that fork() has shared cannot be moved (EBUSY), also when the
 * child has ended, until it is written or MADV_POPULATE_WRITE made it ours.
 * What fork() did not share (MADV_DONTFORK) moves.
 */
#include "probe.h"

int main(void)
{
	char *src, *kept, *staging;
	int uffd, rc, go[2];
	pid_t child;
	char c;

	probe_start();
	uffd = uffd_open(UFFD_FEATURE_MOVE);
	src = map_filled(3 * PAGE, 's');
	kept = map_filled(PAGE, 'k');
	CHECK(!madvise(kept, PAGE, MADV_DONTFORK), "MADV_DONTFORK works");
	staging = map_registered(uffd, 4 * PAGE);
	CHECK(!pipe(go), "pipe works");
	child = fork();
	CHECK(child >= 0, "fork works");
	if (!child) {
		close(go[1]);
		_exit(read(go[0], &c, 1) != 0);
	}
	rc = uffd_move(uffd, staging, src, PAGE);
	CHECK(rc == -EBUSY, "MOVE of a page shared by fork is EBUSY (%d)", rc);
	CHECK(!uffd_move(uffd, staging + 3 * PAGE, kept, PAGE), "MOVE of a page that was not shared works");

	CHECK(!madvise(src, PAGE, MADV_POPULATE_WRITE), "MADV_POPULATE_WRITE works");
	CHECK(!uffd_move(uffd, staging, src, PAGE), "MOVE works after MADV_POPULATE_WRITE");

	close(go[1]);
	CHECK(!reap(child), "the child ends");
	rc = uffd_move(uffd, staging + PAGE, src + PAGE, PAGE);
	CHECK(rc == -EBUSY, "still EBUSY when the child has ended (%d)", rc);
	src[PAGE] = 's';
	CHECK(!uffd_move(uffd, staging + PAGE, src + PAGE, PAGE), "MOVE works after a write");
	CHECK(!madvise(src + 2 * PAGE, PAGE, MADV_POPULATE_WRITE), "MADV_POPULATE_WRITE works");
	CHECK(!uffd_move(uffd, staging + 2 * PAGE, src + 2 * PAGE, PAGE), "MOVE works after MADV_POPULATE_WRITE");
	CHECK(all_bytes(staging, 3 * PAGE, 's'), "the bytes have moved");
	return 0;
}
