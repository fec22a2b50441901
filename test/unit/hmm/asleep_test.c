/* SPDX-License-Identifier: MIT */
/*
 * Clocks that tell who watches that somebody has woken up.  A child that sleeps on a
 * pipe, or spins, stands in for the tree; who is asked which processes there are
 * looks at what state the clocks are in meanwhile.
 */
#include "world.h"

#include <dirent.h>
#include <errno.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/resource.h>

#define LONG_NS 60000000000ull
#define MOMENT_NS 300000000ull
#define LOOKS_MEANWHILE 8u
#define PIDS (HMM_ASLEEP_THREADS + 1)
#define SLEEPERS 3u
#define STACK_SIZE 16384u
#define MUCH (64u << 20)

static struct tree {
	struct world *w;
	pid_t child;     /* sleeps until a byte comes, then spins */
	int go;          /* where that byte is written to */
	pid_t pid[PIDS]; /* of those that the engine is told of */
	unsigned n;

	/* Of the last time that it was told: */
	unsigned asked; /* of them, until it wanted no more */
	int state;
	bool meddle; /* as the watcher does */
	bool taken_for_armed;
	bool count_looks;
	_Atomic uint64_t looked; /* while it waited to be told, and then: */
	_Atomic bool over;
} tree;

/* As it does only where it waits for its byte. */
static bool thread_sleeps(pid_t pid, pid_t tid)
{
	char path[64], stat[128] = "", *at;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/task/%d/stat", (int)pid, (int)tid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	assert_true(fd >= 0);
	assert_true(read(fd, stat, sizeof(stat) - 1) > 0);
	close(fd);
	at = strrchr(stat, ')');
	return at && at[1] == ' ' && at[2] == 'S';
}

static bool sleeps(pid_t pid)
{
	return thread_sleeps(pid, pid);
}

static pid_t child_new(int *go)
{
	int fd[2];
	char byte;
	pid_t pid;

	assert_int_equal(pipe(fd), 0);
	pid = raw_fork();
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		close(fd[1]);
		if (read(fd[0], &byte, 1) == 1)
			for (volatile bool spin = true; spin;)
				;
		_exit(0);
	}
	assert_true(pid > 0);
	close(fd[0]);
	*go = fd[1];
	while (!sleeps(pid)) /* what it takes to get there is not to wake anybody */
		sched_yield();
	return pid;
}

static void child_end(pid_t pid, int go)
{
	close(go);
	kill(pid, SIGKILL);
	assert_int_equal(waitpid(pid, NULL, 0), pid);
}

/* Of a process that has ended. */
static pid_t ended(void)
{
	int go;
	pid_t pid = child_new(&go);

	child_end(pid, go);
	return pid;
}

static int told(void *priv, struct hmm_mm *mm, bool (*each)(pid_t pid, void *arg), void *arg)
{
	struct hmm *h = mm->h;

	tree.state = atomic_load(&h->asleep.state);
	if (tree.count_looks) {
		uint64_t before = atomic_load(&h->looks), until = umm_now_ns() + LONG_NS;

		while (atomic_load(&h->looks) < before + LOOKS_MEANWHILE && umm_now_ns() < until)
			sched_yield();
		atomic_store(&tree.looked, atomic_load(&h->looks) - before);
		tree.count_looks = false;
	}
	tree.asked = 0;
	for (bool more = true; more && tree.asked < tree.n;) {
		more = each(tree.pid[tree.asked++], arg);
		if (tree.meddle) {
			tree.taken_for_armed = hmm_asleep_armed(h) || hmm_asleep_armed(h);
			hmm_asleep_disarm(h);
		}
	}
	atomic_store(&tree.over, true);
	return 0;
}

static unsigned descriptors(void)
{
	DIR *dir = opendir("/proc/self/fd");
	unsigned n = 0;

	assert_non_null(dir);
	while (readdir(dir))
		n++;
	closedir(dir);
	return n;
}

/* The test's thread is the watcher, if not said otherwise. */
static struct hmm *begin(void)
{
	const char *why;

	memset(&tree, 0, sizeof(tree));
	tree.w = world_create("lz4", 0, &why);
	assert_non_null(tree.w);
	tree.w->h->opt.processes = told;
	tree.child = child_new(&tree.go);
	tree.pid[0] = tree.child;
	tree.n = 1;
	tree.w->h->watch_thread = pthread_self();
	hmm_asleep_begin(tree.w->h);
	return tree.w->h;
}

static void finish(struct hmm *h)
{
	hmm_asleep_disarm(h);
	hmm_asleep_end(h);
	child_end(tree.child, tree.go);
	world_destroy(tree.w);
}

static void may_have_clocks(struct hmm *h)
{
	if (!atomic_load(&h->asleep.refused))
		return;
	finish(h);
	skip();
}

static void who_wakes_up_is_told_of(void **state)
{
	struct hmm *h = begin();

	assert_false(hmm_asleep_ask(h, 1));
	assert_true(hmm_asleep_ask(h, HMM_ASLEEP_LOOKS));
	assert_int_equal(atomic_load(&h->asleep.state), HMM_ASLEEP_ASKED);
	assert_false(hmm_asleep_armed(h));
	assert_false(hmm_asleep_ask(h, HMM_ASLEEP_LOOKS)); /* once */
	hmm_asleep_arm(h);
	may_have_clocks(h);
	assert_int_equal(tree.state, HMM_ASLEEP_ARMING);
	assert_int_equal(atomic_load(&h->asleep.state), HMM_ASLEEP_ARMED);
	assert_false(hmm_asleep_armed(h)); /* one more look first */
	assert_true(hmm_asleep_armed(h));
	assert_true(hmm_asleep_wait(h, MOMENT_NS)); /* it sleeps */
	assert_int_equal(write(tree.go, "", 1), 1);
	assert_false(hmm_asleep_wait(h, LONG_NS));
	for (sigset_t set; !sigpending(&set) && !sigismember(&set, SIGIO);)
		sched_yield(); /* it goes on running */
	hmm_asleep_disarm(h);
	assert_int_equal(h->asleep.n, 0);
	/* The next time begins anew: with one look more, and without what came before. */
	tree.pid[0] = child_new(&tree.pid[1]);
	assert_true(hmm_asleep_ask(h, HMM_ASLEEP_LOOKS));
	hmm_asleep_arm(h);
	assert_false(hmm_asleep_armed(h));
	assert_true(hmm_asleep_armed(h));
	assert_true(hmm_asleep_wait(h, MOMENT_NS));
	hmm_asleep_disarm(h);
	child_end(tree.pid[0], tree.pid[1]);
	finish(h);
}

static void all_are_armed_or_none(void **state)
{
	struct hmm *h = begin();
	unsigned before = descriptors();

	tree.pid[1] = ended();
	tree.n = 2;
	for (unsigned rest = 1; rest < 3; rest++) {
		assert_true(hmm_asleep_ask(h, HMM_ASLEEP_LOOKS << (rest - 1)));
		hmm_asleep_arm(h);
		may_have_clocks(h);
		assert_int_equal(tree.asked, 2);
		assert_int_equal(atomic_load(&h->asleep.state), HMM_ASLEEP_IDLE);
		assert_false(hmm_asleep_armed(h));
		assert_int_equal(descriptors(), before);
		/* It is asked for less often. */
		assert_int_equal(atomic_load(&h->asleep.rest), rest);
		assert_false(hmm_asleep_ask(h, HMM_ASLEEP_LOOKS << (rest - 1)));
	}
	/* And as often as ever where it succeeds again. */
	tree.n = 1;
	assert_true(hmm_asleep_ask(h, HMM_ASLEEP_LOOKS << 2));
	hmm_asleep_arm(h);
	assert_int_equal(atomic_load(&h->asleep.state), HMM_ASLEEP_ARMED);
	assert_int_equal(atomic_load(&h->asleep.rest), 0);
	finish(h);
}

/* The same where the kernel refuses one of the clocks. */
static void without_descriptors_none_is_armed(void **state)
{
	struct rlimit was, none;
	struct hmm *h = begin();
	unsigned before = descriptors();

	for (unsigned i = 0; i < 3; i++)
		tree.pid[i] = tree.child;
	tree.n = 3;
	assert_int_equal(getrlimit(RLIMIT_NOFILE, &was), 0);
	none = was;
	/* A clock for the first, and what it takes to look at the second, but no more. */
	int first = dup(0), second = dup(0);
	close(first);
	close(second);
	none.rlim_cur = (rlim_t)second + 1;
	assert_true(hmm_asleep_ask(h, HMM_ASLEEP_LOOKS));
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
	hmm_asleep_arm(h);
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &was), 0);
	may_have_clocks(h);
	assert_true(tree.asked > 1);
	assert_int_equal(atomic_load(&h->asleep.state), HMM_ASLEEP_IDLE);
	assert_int_equal(atomic_load(&h->asleep.rest), 1);
	assert_int_equal(descriptors(), before);
	finish(h);
}

/* ------------------------------------------------------------- a process of threads */

/* What a process of several threads and the test share. */
struct sleepers {
	pid_t tid[SLEEPERS], made;
	int go[SLEEPERS][2]; /* where each waits for a byte */
	bool makes;          /* who gets one makes somebody who runs, and waits again */
	bool a_thread;       /* of its own process */
};

/* Each such process has its own. */
static char sleepers_stack[SLEEPERS + 1][STACK_SIZE] __attribute__((aligned(64)));

struct sleeper {
	struct sleepers *s;
	unsigned i;
};

static int run_on(void *arg)
{
	(void)arg;
	for (volatile bool spin = true; spin;)
		;
	return 0;
}

static int sleep_on(void *arg)
{
	const struct sleeper *self = arg;
	struct sleepers *s = self->s;
	char byte;

	while (read(s->go[self->i][0], &byte, 1) == 1) {
		if (!s->makes)
			return run_on(NULL);
		if (clone(run_on, sleepers_stack[SLEEPERS] + STACK_SIZE,
			  CLONE_VM | CLONE_PARENT_SETTID |
				  (s->a_thread ? CLONE_SIGHAND | CLONE_THREAD : CLONE_PARENT | SIGCHLD),
			  NULL, &s->made) < 0)
			break;
	}
	_exit(1);
}

/* Without libc's threads: what they would take from malloc may be somebody's where this is forked. */
static pid_t sleepers_new(struct sleepers *s, unsigned n)
{
	pid_t pid;

	for (unsigned i = 0; i < n; i++) {
		assert_int_equal(pipe(s->go[i]), 0);
		s->tid[i] = 0;
	}
	s->made = 0;
	pid = raw_fork();
	if (!pid) {
		struct sleeper self[SLEEPERS];

		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (unsigned i = 0; i < n; i++)
			self[i] = (struct sleeper){s, i};
		for (unsigned i = 1; i < n; i++)
			if (clone(sleep_on, sleepers_stack[i] + STACK_SIZE,
				  CLONE_VM | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_PARENT_SETTID, &self[i],
				  &s->tid[i]) < 0)
				_exit(1);
		sleep_on(&self[0]);
	}
	assert_true(pid > 0);
	s->tid[0] = pid;
	for (unsigned i = 0; i < n; i++)
		while (!*(volatile pid_t *)&s->tid[i] || !thread_sleeps(pid, s->tid[i]))
			sched_yield();
	return pid;
}

static void sleepers_end(struct sleepers *s, unsigned n, pid_t pid)
{
	if (s->made && !s->a_thread) { /* a child of the test's */
		kill(s->made, SIGKILL);
		assert_int_equal(waitpid(s->made, NULL, 0), s->made);
	}
	kill(pid, SIGKILL);
	assert_int_equal(waitpid(pid, NULL, 0), pid);
	for (unsigned i = 0; i < n; i++) {
		close(s->go[i][0]);
		close(s->go[i][1]);
	}
}

static struct sleepers *sleepers_map(void)
{
	struct sleepers *s = mmap(NULL, sizeof(*s), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	assert_true(s != MAP_FAILED);
	memset(s, 0, sizeof(*s));
	return s;
}

static void fall_asleep(struct hmm *h)
{
	assert_int_equal(atomic_load(&h->asleep.state), HMM_ASLEEP_ARMED);
	assert_false(hmm_asleep_armed(h));
	assert_true(hmm_asleep_armed(h));
	assert_true(hmm_asleep_wait(h, MOMENT_NS));
}

/* Whichever it is: the watcher sleeps on none of them. */
static void each_thread_has_a_clock(void **state)
{
	struct hmm *h = begin();
	struct sleepers *s = sleepers_map();

	for (unsigned i = 0; i < SLEEPERS; i++) {
		tree.pid[0] = sleepers_new(s, SLEEPERS);
		assert_true(hmm_asleep_ask(h, HMM_ASLEEP_LOOKS));
		hmm_asleep_arm(h);
		may_have_clocks(h);
		assert_int_equal(h->asleep.n, SLEEPERS);
		fall_asleep(h);
		assert_int_equal(write(s->go[i][1], "", 1), 1);
		assert_false(hmm_asleep_wait(h, LONG_NS));
		hmm_asleep_disarm(h);
		sleepers_end(s, SLEEPERS, tree.pid[0]);
	}
	munmap(s, sizeof(*s));
	finish(h);
}

/* What has no clock of its own, as it was not there yet, has that of who made it. */
static void who_is_made_meanwhile_has_a_clock(void **state)
{
	struct hmm *h = begin();
	struct sleepers *s = sleepers_map();

	s->makes = true;
	for (unsigned i = 0; i < 2; i++) {
		s->a_thread = i;
		tree.pid[0] = sleepers_new(s, 1);
		assert_true(hmm_asleep_ask(h, HMM_ASLEEP_LOOKS));
		hmm_asleep_arm(h);
		may_have_clocks(h);
		fall_asleep(h);
		assert_int_equal(write(s->go[0][1], "", 1), 1);
		while (!*(volatile pid_t *)&s->made || !thread_sleeps(tree.pid[0], tree.pid[0]))
			sched_yield();
		/* What its own clock told, it told before it slept again. */
		hmm_asleep_wait(h, 0);
		assert_false(hmm_asleep_wait(h, LONG_NS));
		hmm_asleep_disarm(h);
		sleepers_end(s, 1, tree.pid[0]);
	}
	munmap(s, sizeof(*s));
	finish(h);
}

/* A tree of more threads than there are clocks is looked at by the clock: no part of it has some. */
static void very_many_threads_are_not_armed(void **state)
{
	struct hmm *h = begin();
	unsigned before = descriptors();

	for (unsigned i = 0; i < PIDS; i++)
		tree.pid[i] = tree.child;
	tree.n = HMM_ASLEEP_THREADS + 1;
	assert_true(hmm_asleep_ask(h, HMM_ASLEEP_LOOKS));
	hmm_asleep_arm(h);
	may_have_clocks(h);
	assert_int_equal(tree.asked, HMM_ASLEEP_THREADS + 1);
	assert_int_equal(atomic_load(&h->asleep.state), HMM_ASLEEP_IDLE);
	assert_int_equal(atomic_load(&h->asleep.rest), 1);
	assert_int_equal(h->asleep.n, 0);
	assert_int_equal(descriptors(), before);
	/* One less is armed. */
	tree.n = HMM_ASLEEP_THREADS;
	assert_true(hmm_asleep_ask(h, HMM_ASLEEP_LOOKS << 1));
	hmm_asleep_arm(h);
	assert_int_equal(atomic_load(&h->asleep.state), HMM_ASLEEP_ARMED);
	assert_int_equal(h->asleep.n, HMM_ASLEEP_THREADS);
	finish(h);
}

static void nobody_found_is_not_all_armed(void **state)
{
	struct hmm *h = begin();

	tree.n = 0;
	assert_true(hmm_asleep_ask(h, HMM_ASLEEP_LOOKS));
	hmm_asleep_arm(h);
	assert_int_equal(atomic_load(&h->asleep.state), HMM_ASLEEP_IDLE);
	finish(h);
}

static void work_ends_the_arming(void **state)
{
	struct hmm *h = begin();
	unsigned before = descriptors();

	tree.pid[1] = tree.child;
	tree.n = 2;
	assert_true(hmm_asleep_ask(h, HMM_ASLEEP_LOOKS));
	atomic_store(&h->want_set, true);
	hmm_asleep_arm(h);
	assert_int_equal(tree.asked, 1);
	assert_int_equal(atomic_load(&h->asleep.state), HMM_ASLEEP_IDLE);
	assert_int_equal(atomic_load(&h->asleep.rest), 0); /* nothing is wrong with the clocks */
	assert_int_equal(descriptors(), before);
	atomic_store(&h->want_set, false);
	finish(h);
}

/* What who arms has begun is not the watcher's to take apart, or to sleep on. */
static void while_it_is_armed_the_watcher_keeps_off(void **state)
{
	struct hmm *h = begin();

	tree.meddle = tree.taken_for_armed = true;
	assert_true(hmm_asleep_ask(h, HMM_ASLEEP_LOOKS));
	hmm_asleep_arm(h);
	may_have_clocks(h);
	assert_int_equal(tree.state, HMM_ASLEEP_ARMING);
	assert_false(tree.taken_for_armed);
	assert_int_equal(h->asleep.n, 1);
	assert_int_equal(atomic_load(&h->asleep.state), HMM_ASLEEP_ARMED);
	finish(h);
}

static void who_joins_wakes_the_watcher(void **state)
{
	struct hmm *h = begin();

	hmm_asleep_wake(h); /* it is awake: nothing is left pending */
	assert_true(hmm_asleep_wait(h, 1000000));
	assert_true(hmm_asleep_ask(h, HMM_ASLEEP_LOOKS));
	hmm_asleep_wake(h); /* while it is armed, and before it sleeps */
	hmm_asleep_arm(h);
	may_have_clocks(h);
	assert_false(hmm_asleep_armed(h));
	assert_true(hmm_asleep_armed(h));
	assert_false(hmm_asleep_wait(h, LONG_NS));
	assert_true(hmm_asleep_wait(h, MOMENT_NS));
	finish(h);
}

/* With the watcher and the reclaimer themselves: as long as it takes to arm, the watcher looks. */
static void the_watcher_is_not_blind_meanwhile(void **state)
{
	struct hmm *h = begin();
	char path[64], *much;

	hmm_asleep_end(h);
	snprintf(path, sizeof(path), "/proc/%d/statm", (int)tree.child);
	umm_fd_replace(&tree.w->mm->statm_fd, open(path, O_RDONLY | O_CLOEXEC));
	atomic_store(&tree.w->space->pid, tree.child); /* whose CPU time is looked at */
	tree.w->space->maps_fd = memfd_create("maps", MFD_CLOEXEC);
	assert_int_equal(write(tree.w->space->maps_fd, "\n", 1), 1);
	tree.count_looks = true;
	/* Enough to be looked at, and too little to be moved out; much beside what the engine itself takes. */
	much = malloc(MUCH);
	assert_non_null(much);
	memset(much, 1, MUCH);
	h->opt.budget = hmm_budget_measure(h) / 31 * 32;
	assert_int_equal(hmm_budget_start(h), 0);
	for (uint64_t until = umm_now_ns() + LONG_NS; !atomic_load(&tree.over) && umm_now_ns() < until;)
		usleep(1000);
	hmm_budget_stop(h);
	assert_true(atomic_load(&tree.over));
	assert_true(atomic_load(&tree.looked) >= LOOKS_MEANWHILE);
	atomic_store(&tree.w->space->pid, getpid());
	free(much);
	child_end(tree.child, tree.go);
	world_destroy(tree.w);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(who_wakes_up_is_told_of),
		cmocka_unit_test(all_are_armed_or_none),
		cmocka_unit_test(without_descriptors_none_is_armed),
		cmocka_unit_test(each_thread_has_a_clock),
		cmocka_unit_test(who_is_made_meanwhile_has_a_clock),
		cmocka_unit_test(very_many_threads_are_not_armed),
		cmocka_unit_test(nobody_found_is_not_all_armed),
		cmocka_unit_test(work_ends_the_arming),
		cmocka_unit_test(while_it_is_armed_the_watcher_keeps_off),
		cmocka_unit_test(who_joins_wakes_the_watcher),
		cmocka_unit_test(the_watcher_is_not_blind_meanwhile),
	};
	const char *why;
	struct world *w = world_create("lz4", 0, &why);

	if (!w)
		return skip_all(why);
	world_destroy(w);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
