/* SPDX-License-Identifier: MIT */
/*
 * Fact: what the kernel writes while a thread ends is lost when the page is away:
 * clear_child_tid stays as it was, nobody is asked for the page.
 */
#include "probe.h"

struct thread {
	char *page;
	int up, leave;
};

static int thread_main(void *p)
{
	struct thread *t = p;

	flag_set(&t->up, 1);
	flag_wait(&t->leave, 1);
	syscall(SYS_exit, 0); /* the thread alone */
	return 0;
}

int main(void)
{
	int uffd;

	probe_start();
	uffd = uffd_open(UFFD_FEATURE_MOVE);
	for (int away = 0; away < 2; away++) {
		struct thread t = {.page = map_anon(PAGE)};
		char *stack = map_anon(16 * PAGE), *staging = map_registered(uffd, PAGE);
		int *ctid = (int *)t.page;
		int tid;

		*ctid = 4711;
		CHECK(!uffd_register(uffd, t.page, PAGE, MISSING), "REGISTER works");
		tid = clone(thread_main, stack + 16 * PAGE,
			    CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_CHILD_CLEARTID, &t,
			    NULL, NULL, ctid);
		CHECK(tid > 0, "a thread can be made");
		flag_wait(&t.up, 1);
		if (away)
			CHECK(!uffd_move(uffd, staging, t.page, PAGE), "MOVE works");
		flag_set(&t.leave, 1);
		while (task_state(tid))
			sched_yield();
		CHECK(uffd_quiet(uffd), "nobody is asked for the page");
		if (!away) {
			CHECK(*ctid == 0, "clear_child_tid is written when the page is there");
			continue;
		}
		CHECK(!present(t.page), "the page is still away");
		CHECK(*(int *)staging == 4711, "the write is lost");
		CHECK(!uffd_move(uffd, t.page, staging, PAGE), "MOVE back works");
		CHECK(*ctid == 4711, "the write is lost");
	}
	return 0;
}
