/* SPDX-License-Identifier: MIT */
/* When the keeper ends.  A child stands in for the supervisor. */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#include "run/keeper.h"
#include "umm/inside.h"

static int supervisor_main(int tell)
{
	static const char token[] = "no process has this in its environment";
	pid_t keeper;

	/* A guest's, of which the kernel has not been asked yet what it can do: nothing can be registered with it. */
	if (umm_inside_uffd() < 0)
		return 1;
	keeper = keeper_start("hmm/keeper/test", token);
	if (keeper < 0 || write(tell, &keeper, sizeof(keeper)) != sizeof(keeper))
		return 2;
	return 0;
}

static void a_userfaultfd_of_which_nothing_was_asked_keeps_nobody(void **state)
{
	int fd[2], status;
	pid_t supervisor, keeper;

	assert_int_equal(pipe(fd), 0);
	assert_int_equal(prctl(PR_SET_CHILD_SUBREAPER, 1), 0);
	supervisor = fork();
	if (!supervisor)
		_exit(supervisor_main(fd[1]));
	assert_int_equal(waitpid(supervisor, &status, 0), supervisor);
	assert_int_equal(status, 0);
	assert_int_equal(read(fd[0], &keeper, sizeof(keeper)), sizeof(keeper));
	/* Should it stay it is this test that ends, and the keeper with it. */
	for (unsigned i = 0; !waitpid(keeper, &status, WNOHANG); i++) {
		usleep(10000);
		if (i == 3000) {
			kill(keeper, SIGKILL);
			fail_msg("the keeper stays");
		}
	}
	assert_int_equal(status, 0);
	close(fd[0]);
	close(fd[1]);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_userfaultfd_of_which_nothing_was_asked_keeps_nobody),
	};
	int fd = umm_inside_uffd();

	if (fd < 0) {
		printf("SKIP: no right to a userfaultfd\n");
		return 77;
	}
	close(fd);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
