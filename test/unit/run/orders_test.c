/* SPDX-License-Identifier: MIT */
/* How long an agent is waited for.  The test stands in for the supervisor around orders.c. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>
#include <cmocka.h>

#include "run/supervisor.h"

static unsigned said, killed;

void lines_say(struct lines *l, const char *fmt, ...)
{
	said++;
}

void member_kill(struct member *m)
{
	killed++;
}

/* Program and agent were killed while a batch was with it, and the space has stayed for who else lives there. */
static void who_has_died_is_not_waited_for(void **state)
{
	struct supervisor *sup = calloc(1, sizeof(*sup));
	struct umm_ctl *ctl = calloc(1, sizeof(*ctl));
	struct member *m = calloc(1, sizeof(*m));
	struct umm_space space = {.ctl = ctl};
	struct hmm_mm mm = {.space = &space};
	int fd[2];

	assert_true(sup && ctl && m);
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, fd), 0);
	m->sup = sup;
	m->mm = &mm;
	m->ctl_map = ctl;
	m->sock = fd[0];
	pthread_mutex_init(&m->advise_lock, NULL);
	atomic_store(&mm.doomed, true);
	assert_int_equal(orders_ops.wait(m, 0), -ESRCH);
	assert_int_equal(orders_ops.advise(m, 0, UMM_PAGE, 0), -ESRCH);
	assert_int_equal(said, 0);
	assert_int_equal(killed, 0);
	close(fd[0]);
	close(fd[1]);
	free(m);
	free(ctl);
	free(sup);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(who_has_died_is_not_waited_for),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
