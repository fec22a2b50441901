/* SPDX-License-Identifier: MIT */
/*
 * Fact: without UFFD_FEATURE_EVENT_FORK a child's memory is not registered: it
 * reads zeros where the parent's pages were away.
 */
#include "probe.h"

int main(void)
{
	int uffd, own;
	char *p;
	pid_t child;

	probe_start();
	uffd = uffd_open(0);
	p = map_registered(uffd, PAGE);
	child = fork();
	CHECK(child >= 0, "fork works and waits for nobody");
	if (!child) {
		own = uffd_open(0);
		CHECK(all_bytes(p, PAGE, 0), "the child reads zeros");
		CHECK(!uffd_register(own, p, PAGE, MISSING), "the child may register it anew");
		_exit(0);
	}
	CHECK(!reap(child), "the child's side of this probe agrees");
	CHECK(uffd_quiet(uffd), "nobody is told");
	return 0;
}
