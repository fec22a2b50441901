/* SPDX-License-Identifier: MIT */
/* How long an agent is waited for.  The test stands in for the supervisor around orders.c. */
#include <errno.h>
#include <linux/futex.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
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

static struct {
	struct member *m;
	pid_t agent;
	bool goes_on; /* by itself, before it is through */
} holder;

/* Once nobody waits for room any more, the agent goes on, and is through. */
static void *go_on_then(void *unused)
{
	_Atomic uint32_t *done = &holder.m->mm->space->ctl->batch[0].done;

	while (!atomic_load(&holder.m->sup->h->tight))
		usleep(1000);
	if (holder.goes_on) {
		kill(holder.agent, SIGCONT);
		while (atomic_load(&holder.m->sup->h->tight))
			usleep(1000);
	}
	atomic_store(done, 1);
	syscall(SYS_futex, done, FUTEX_WAKE, 1, NULL, NULL, 0);
	return NULL;
}

/* An agent that is stopped with an order is waited for, and the programs go on above the budget meanwhile. */
static void who_is_stopped_keeps_nobody_waiting(void **state)
{
	struct supervisor *sup = calloc(1, sizeof(*sup));
	struct hmm *h = calloc(1, sizeof(*h));
	struct umm_ctl *ctl = calloc(1, sizeof(*ctl));
	struct member *m = calloc(1, sizeof(*m));
	struct umm_space space = {.ctl = ctl};
	struct hmm_mm mm = {.space = &space, .h = h};
	pthread_t thread;

	assert_true(sup && h && ctl && m);
	sup->h = h;
	m->sup = sup;
	m->mm = &mm;
	said = killed = 0;
	holder.m = m;
	for (int i = 0; i < 2; i++) {
		holder.goes_on = i;
		atomic_store(&ctl->batch[0].done, 0);
		holder.agent = fork();
		if (!holder.agent)
			for (;;)
				pause();
		atomic_store(&m->agent, holder.agent);
		assert_int_equal(kill(holder.agent, SIGSTOP), 0);
		assert_int_equal(waitpid(holder.agent, NULL, WUNTRACED), holder.agent);
		assert_int_equal(pthread_create(&thread, NULL, go_on_then, NULL), 0);
		assert_int_equal(orders_ops.wait(m, 0), 0);
		assert_int_equal(pthread_join(thread, NULL), 0);
		assert_false(atomic_load(&h->tight));
		assert_int_equal(said, 1);
		assert_int_equal(killed, 0);
		kill(holder.agent, SIGKILL);
		waitpid(holder.agent, NULL, 0);
	}
	free(m);
	free(ctl);
	free(h);
	free(sup);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(who_has_died_is_not_waited_for),
		cmocka_unit_test(who_is_stopped_keeps_nobody_waiting),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
