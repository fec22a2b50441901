/* SPDX-License-Identifier: MIT */
/*
 * Ways to get a second process, tried while most of the first one's memory is
 * cold.  Each checks every byte on both sides, before and after both wrote.
 *
 * The parent ends before its children in some: what they found out is then in
 * their last word on standard output, which the driver waits for.
 */
#include <poll.h>
#include <pthread.h>
#include <pty.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdatomic.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <termios.h>

#include "../victim.h"

#define KIND V_QUARTER

extern char **environ;
static const char *self;
static char *mem;
static size_t pages; /* of which somewhat more than half fits */

/* Which generation page @i of a process is in: it changes what its own rule says. */
static uint64_t generation(size_t i, unsigned depth)
{
	uint64_t gen = 0;

	for (unsigned d = 1; d <= depth; d++)
		if (i % (d + 1) == 0)
			gen = d;
	return gen;
}

static int check_depth(unsigned depth)
{
	for (size_t i = 0; i < pages; i++)
		if (v_check(mem + i * V_PAGE, i, 1, generation(i, depth), KIND))
			return -1;
	return 0;
}

static void write_depth(unsigned depth)
{
	for (size_t i = 0; i < pages; i += depth + 1)
		v_fill(mem + i * V_PAGE, i, 1, depth, KIND);
}

static int reap_one(pid_t pid, const char *what)
{
	int status;

	if (waitpid(pid, &status, 0) != pid) {
		perror(what);
		return 1;
	}
	if (!status)
		return 0;
	fprintf(stderr, "%s: the child's status is %#x\n", what, status);
	return 1;
}

/* ------------------------------------------------------------ generations */

static int descend(unsigned depth, unsigned last)
{
	int bad = 0;
	pid_t pid = 0;

	if (depth && check_depth(depth - 1))
		return 1;
	if (depth)
		write_depth(depth);
	if (depth < last) {
		pid = fork();
		if (pid < 0) {
			perror("fork");
			return 1;
		}
		if (!pid)
			_exit(descend(depth + 1, last));
	}
	/* While the child reads what was: pages that it does not change, too. */
	for (size_t i = 0; i < pages; i += 5)
		v_fill(mem + i * V_PAGE, i, 1, 100 + depth, KIND);
	for (size_t i = 0; i < pages; i++)
		bad |= v_check(mem + i * V_PAGE, i, 1, i % 5 ? generation(i, depth) : 100 + depth, KIND);
	if (pid)
		bad |= reap_one(pid, "generation");
	return bad != 0;
}

static int generations(void)
{
	return descend(0, 3);
}

/* ------------------------------------------------------ the parent ends first */

static int parent_first(void)
{
	int gone[2];
	char c;

	if (pipe(gone))
		return 1;
	for (unsigned depth = 1; depth <= 2; depth++) {
		pid_t pid = fork();

		if (pid < 0)
			return 1;
		if (pid)
			return 0;
		/* Only this process and its ancestors hold the write end; drop ours. */
		close(gone[1]);
		if (read(gone[0], &c, 1)) /* until the parent is gone */
			return 1;
		if (pipe(gone))
			return 1;
		if (check_depth(depth - 1))
			return 1;
		write_depth(depth);
		if (check_depth(depth))
			return 1;
		dprintf(1, "heir %u is right\n", depth);
	}
	return 0;
}

/* ------------------------------------------------------------ while it moves */

static _Atomic bool stop;

static void *churn(void *arg)
{
	size_t n = pages * 2 / 5;
	char *p = v_map(n * V_PAGE);

	for (uint64_t gen = 0; !atomic_load(&stop); gen++) {
		for (size_t i = 0; i < n && !atomic_load(&stop); i++) {
			if (gen && v_check(p + i * V_PAGE, i, 9, gen - 1, KIND))
				return (void *)1;
			v_fill(p + i * V_PAGE, i, 9, gen, KIND);
		}
	}
	munmap(p, n * V_PAGE);
	return NULL;
}

static int while_evicted(void)
{
	pthread_t t;
	void *ret;
	int bad = 0;

	pthread_create(&t, NULL, churn, NULL);
	for (unsigned k = 0; k < 6 && !bad; k++) {
		pid_t pid = fork();

		if (!pid) {
			for (size_t i = k; i < pages; i += 7) {
				if (v_check(mem + i * V_PAGE, i, 1, 0, KIND))
					_exit(1);
				v_fill(mem + i * V_PAGE, i, 1, 50 + k, KIND);
			}
			for (size_t i = k; i < pages; i += 7)
				if (v_check(mem + i * V_PAGE, i, 1, 50 + k, KIND))
					_exit(1);
			_exit(0);
		}
		bad |= pid < 0 ? 1 : reap_one(pid, "fork while memory moves");
	}
	atomic_store(&stop, true);
	pthread_join(t, &ret);
	return bad || ret || check_depth(0);
}

/* ------------------------------------------------------------ many at a time */

#define FORKERS 4u

static void *forker(void *arg)
{
	size_t first = (uintptr_t)arg;
	int bad = 0;

	for (unsigned k = 0; k < (v_long() ? 6u : 4u) && !bad; k++) {
		pid_t pid = fork();

		if (!pid) {
			for (size_t i = first; i < pages; i += 16)
				if (v_check(mem + i * V_PAGE, i, 1, 0, KIND))
					_exit(1);
			_exit(0);
		}
		bad |= pid < 0 ? 1 : reap_one(pid, "fork from several threads");
	}
	return (void *)(uintptr_t)bad;
}

static int from_threads(void)
{
	pthread_t t[FORKERS];
	void *ret;
	int bad = 0;

	for (unsigned i = 0; i < FORKERS; i++)
		pthread_create(&t[i], NULL, forker, (void *)(uintptr_t)i);
	for (unsigned i = 0; i < FORKERS; i++) {
		pthread_join(t[i], &ret);
		bad |= ret != NULL;
	}
	return bad || check_depth(0);
}

/* ----------------------------------------------------------------- no libc */

struct clone3_args {
	uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, set_tid_size,
		cgroup;
};

static pid_t raw_fork(unsigned how)
{
	struct clone3_args a = {.exit_signal = SIGCHLD};

	switch (how) {
	case 0:
		return (pid_t)syscall(SYS_fork);
	case 1:
		return (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
	default:
		return (pid_t)syscall(SYS_clone3, &a, sizeof(a));
	}
}

static int raw(void)
{
	int bad = 0;

	for (unsigned how = 0; how < 3 && !bad; how++) {
		pid_t pid = raw_fork(how);

		if (!pid) {
			if (check_depth(0))
				_exit(1);
			write_depth(1);
			/* A raw one's raw one, and a raw one's ordinary one. */
			pid_t next = how ? raw_fork(how) : fork();
			if (!next) {
				if (check_depth(1))
					_exit(2);
				write_depth(2);
				_exit(check_depth(2) ? 3 : 0);
			}
			bad = next < 0 || check_depth(1) || reap_one(next, "a raw child's child");
			_exit(bad ? 4 : 0);
		}
		bad |= pid < 0 ? 1 : check_depth(0) != 0;
		bad |= reap_one(pid, "raw fork");
	}
	return bad;
}

/* A raw child that lives on alone, unmoved: what it allocates itself is its own. */
static int raw_orphan(void)
{
	int gone[2];
	char c;
	pid_t pid;

	if (pipe(gone))
		return 1;
	pid = raw_fork(1);
	if (pid)
		return pid < 0;
	close(gone[1]);
	if (read(gone[0], &c, 1))
		_exit(1);
	if (check_depth(0))
		_exit(1);
	write_depth(1);
	if (check_depth(1))
		_exit(1);
	dprintf(1, "heir 1 is right\n");
	_exit(0);
}

/* Who touches a raw child's memory first is a child of vfork(), and is gone when the next one is forked. */
static int raw_vfork(void)
{
	int bad = 0;

	for (volatile unsigned how = 0; how < 3 && !bad; how++) {
		pid_t pid = raw_fork(how), next;

		if (!pid) {
			volatile bool wrong = false;

			next = vfork();
			if (!next) {
				for (size_t i = 0; i < pages / 2; i++)
					wrong |= v_check(mem + i * V_PAGE, i, 1, 0, KIND) != 0;
				_exit(0);
			}
			if (next < 0 || wrong || reap_one(next, "vfork in a raw child"))
				_exit(1);
			next = raw_fork(how);
			if (!next)
				_exit(check_depth(0) ? 2 : 0);
			_exit(next < 0 || reap_one(next, "a raw child's child") || check_depth(0) ? 3 : 0);
		}
		bad = pid < 0 || reap_one(pid, "raw fork");
	}
	return bad;
}

/* Of what is marked a raw child has nothing; the rest it has. */
static int marked_child(unsigned how)
{
	pid_t pid = raw_fork(how);

	if (pid)
		return pid < 0 ? 1 : reap_one(pid, "a raw child of a raw child's child");
	for (size_t i = 0; i < pages; i++) {
		const char *page = mem + i * V_PAGE;

		if (i >= 512 ? v_check(page, i, 1, generation(i, 1), KIND) : v_is_zero(page) ? 0 : -1) {
			fprintf(stderr, "page %zu of what was marked is not empty\n", i);
			_exit(1);
		}
	}
	_exit(0);
}

/*
 * A raw child has no agent; what it makes by libc's fork has, and is as any
 * other: its memory goes, and what it marks is known.
 */
static int raw_then_libc(void)
{
	int bad = 0;

	for (unsigned k = 0; k < 3 && !bad; k++) {
		pid_t pid = raw_fork(k % 3), next;

		if (!pid) {
			next = fork();
			if (!next) {
				if (check_depth(0))
					_exit(1);
				write_depth(1);
				if (check_depth(1))
					_exit(2);
				/* For a while: what moves it may be behind. */
				for (unsigned t = 0; v_absent(mem, pages) < pages / 8 && t < 3000; t++)
					usleep(10000);
				if (v_absent(mem, pages) < pages / 8) {
					fprintf(stderr, "nothing of a raw child's child goes\n");
					_exit(3);
				}
				if (madvise(mem, 512 * V_PAGE, MADV_WIPEONFORK) || marked_child(k % 3))
					_exit(4);
				_exit(check_depth(1) ? 5 : 0);
			}
			_exit(next < 0 || reap_one(next, "a raw child's child"));
		}
		bad = pid < 0 || reap_one(pid, "raw fork");
	}
	return bad || check_depth(0);
}

/* ------------------------------------------- what is marked right after a fork */

/* Many mappings, below: to look at all of them takes a while. */
static void splinter(size_t n)
{
	char *low = v_map(2 * n * V_PAGE);

	for (size_t i = 0; i < n; i++)
		if (low > mem || mprotect(low + 2 * i * V_PAGE, V_PAGE, PROT_READ))
			_exit(1);
}

/* What is marked, and unmapped or moved right after the fork, is what it was to the child. */
static int gone_after(void)
{
	splinter(4000);
	for (unsigned k = 0; k < 12; k++) {
		char *p = mem + k * 2 * V_MIB, *to = v_map(2 * V_MIB);
		pid_t pid;

		if (madvise(p, 2 * V_MIB, MADV_WIPEONFORK))
			return 1;
		pid = k & 1 ? fork() : (pid_t)syscall(SYS_fork);
		if (!pid) {
			for (size_t i = 0; i < 2 * V_MIB; i += V_PAGE)
				for (size_t w = 0; w < V_PAGE; w += 8)
					if (*(volatile uint64_t *)(p + i + w)) {
						fprintf(stderr, "%p, which was to be empty, has %#" PRIx64 "\n",
							(void *)(p + i + w), *(volatile uint64_t *)(p + i + w));
						_exit(1);
					}
			for (size_t i = 32 * V_MIB / V_PAGE; i < pages; i += 61)
				if (v_check(mem + i * V_PAGE, i, 1, 0, KIND))
					_exit(1);
			_exit(0);
		}
		if (k & 2 ? mremap(p, 2 * V_MIB, 2 * V_MIB, MREMAP_MAYMOVE | MREMAP_FIXED, to) != to
			  : munmap(p, 2 * V_MIB))
			return 1;
		if (pid < 0 || reap_one(pid, "gone after the fork"))
			return 1;
		for (size_t i = 0; k & 2 && i < 2 * V_MIB / V_PAGE; i++)
			if (v_check(to + i * V_PAGE, k * 512 + i, 1, 0, KIND))
				return 1;
	}
	/* Right beside itself: its mark's old and new place are one. */
	char *p = mem + 28 * V_MIB, *to = p + 2 * V_MIB;
	if (madvise(p, 2 * V_MIB, MADV_WIPEONFORK) ||
	    mremap(p, 2 * V_MIB, 2 * V_MIB, MREMAP_MAYMOVE | MREMAP_FIXED, to) != to)
		return 1;
	for (size_t i = 0; i < 2 * V_MIB / V_PAGE; i++)
		if (v_check(to + i * V_PAGE, 28 * V_MIB / V_PAGE + i, 1, 0, KIND))
			return 1;
	return 0;
}

/* It is for the next child. */
static int mark_after(void)
{
	static const int mark[2][2] = {{MADV_WIPEONFORK, MADV_KEEPONFORK}, {MADV_DONTFORK, MADV_DOFORK}};
	int bad = 0;

	splinter(4000);
	for (unsigned k = 0; k < (v_long() ? 20u : 12u) && !bad; k++) {
		pid_t pid = fork();

		if (!pid) {
			for (size_t i = k; i < pages; i += 61)
				if (v_check(mem + i * V_PAGE, i, 1, 0, KIND))
					_exit(1);
			_exit(0);
		}
		bad |= madvise(mem, pages * V_PAGE, mark[k & 1][0]);
		bad |= pid < 0 ? 1 : reap_one(pid, "marked after the fork");
		bad |= madvise(mem, pages * V_PAGE, mark[k & 1][1]);
	}
	return bad || check_depth(0);
}

static int all_zero(size_t npages)
{
	for (size_t i = 0; i < npages; i++) {
		if (v_is_zero(mem + i * V_PAGE))
			continue;
		fprintf(stderr, "page %zu of what was marked is not empty\n", i);
		return 1;
	}
	return 0;
}

/* What a child of fork() marks before anything else, and forks by itself: also while it changes other mappings. */
static int mark_at_once(void)
{
	const size_t marked = 2 * V_MIB / V_PAGE, other = pages * 5 / 6;
	int bad = 0;

	splinter(4000);
	for (unsigned k = 0; k < (v_long() ? 12u : 6u) && !bad; k++) {
		pid_t pid = fork(), next;

		if (!pid) {
			if (madvise(mem, marked * V_PAGE, MADV_WIPEONFORK))
				_exit(1);
			next = raw_fork(k % 3);
			if (!next) {
				if (all_zero(marked))
					_exit(2);
				for (size_t i = marked; i < pages; i += 61)
					if (v_check(mem + i * V_PAGE, i, 1, 0, KIND))
						_exit(3);
				_exit(0);
			}
			if (munmap(mem + other * V_PAGE, marked * V_PAGE))
				_exit(4);
			_exit(next < 0 || reap_one(next, "a child's child"));
		}
		bad = pid < 0 || reap_one(pid, "a child that marks");
	}
	return bad || check_depth(0);
}

static void *touch_all(void *arg)
{
	for (size_t i = 512; i < pages; i += 97)
		(void)*(volatile char *)(mem + i * V_PAGE);
	return NULL;
}

/* Whoever of a raw child is seen first to fault may have ended when it forks: what is marked is known all the same. */
static int thread_then_libc(void)
{
	const size_t other = pages * 5 / 6;
	int bad = 0;

	splinter(v_long() ? 4000 : 1000);
	if (madvise(mem, 512 * V_PAGE, MADV_WIPEONFORK))
		return 1;
	for (unsigned k = 0; k < 3 && !bad; k++) {
		pid_t pid = raw_fork(k % 3), next, last;
		pthread_t t;

		if (!pid) {
			if (pthread_create(&t, NULL, touch_all, NULL) || pthread_join(t, NULL))
				_exit(1);
			next = fork();
			if (!next) {
				v_fill_all(mem, 512, 7, 0, KIND);
				for (unsigned n = 0; v_absent(mem, 512) < 256 && n < 100; n++)
					for (size_t i = 512; i < pages; i++)
						if (v_check(mem + i * V_PAGE, i, 1, 0, KIND))
							_exit(2);
				last = raw_fork(k % 3);
				if (!last)
					_exit(all_zero(512));
				if (munmap(mem + other * V_PAGE, 512 * V_PAGE))
					_exit(4);
				_exit(last < 0 || reap_one(last, "a raw child of a raw child's child"));
			}
			_exit(next < 0 || reap_one(next, "a raw child's child"));
		}
		bad = pid < 0 || reap_one(pid, "raw fork");
	}
	return bad;
}

/* Runs only when nobody else wants to, on the CPU of somebody who always does: woken, it is not running yet. */
static void stand_back(bool back)
{
	const struct sched_param none = {0};
	cpu_set_t cpus;

	CPU_ZERO(&cpus);
	for (int i = 0; i < (back ? 1 : CPU_SETSIZE); i++)
		CPU_SET(i, &cpus);
	sched_setaffinity(0, sizeof(cpus), &cpus);
	sched_setscheduler(0, back ? SCHED_IDLE : SCHED_OTHER, &none);
}

static void hog(void)
{
	cpu_set_t first;

	CPU_ZERO(&first);
	CPU_SET(0, &first);
	sched_setaffinity(0, sizeof(first), &first);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (;;)
		;
}

static int forks_of_libc(void)
{
	for (unsigned k = 0; k < 12; k++) {
		pid_t pid = fork();

		if (!pid)
			_exit(0);
		if (pid < 0 || reap_one(pid, "one that is looked for"))
			return 1;
	}
	return 0;
}

/* What a raw child marks is heard of by nobody, and seen all the same when it forks, be it not running on yet. */
static int raw_mark(void)
{
	int bad = 0;

	for (unsigned k = 0; k < 9 && !bad; k++) {
		int go[2];

		if (pipe(go))
			return 1;
		/* Others are looked for among those that have no agent, before this one is: it must be found yet. */
		pid_t beside = k >= 3 ? fork() : 0;
		if (k >= 3 && !beside)
			_exit(forks_of_libc());
		pid_t pid = raw_fork(k % 3), hogging, next;

		if (pid) {
			bad = k >= 3 && (beside < 0 || reap_one(beside, "one that forks"));
			bad |= write(go[1], "", 1) != 1;
			bad |= pid < 0 || reap_one(pid, "one that marks");
			close(go[0]);
			close(go[1]);
			continue;
		}
		if (read(go[0], &(char){0}, 1) != 1)
			_exit(5);
		if (madvise(mem, 512 * V_PAGE, MADV_WIPEONFORK))
			_exit(1);
		/* Who has not been seen to fault nobody knows. */
		for (size_t i = 1024; i < pages; i += 61)
			if (v_check(mem + i * V_PAGE, i, 1, 0, KIND))
				_exit(2);
		if (!v_absent(mem, 512))
			_exit(3);
		hogging = fork();
		if (!hogging)
			hog();
		stand_back(true);
		next = raw_fork(k % 3);
		stand_back(false);
		if (!next) {
			for (size_t i = 0; i < 512; i++) {
				if (v_is_zero(mem + i * V_PAGE))
					continue;
				fprintf(stderr, "page %zu of what was marked is not empty\n", i);
				_exit(1);
			}
			_exit(0);
		}
		kill(hogging, SIGKILL);
		waitpid(hogging, NULL, 0);
		_exit(hogging < 0 || next < 0 || reap_one(next, "a child of one that marks") ? 4 : 0);
	}
	return bad;
}

/* ------------------------------------------------------ children that exec */

static int run_vfork(void)
{
	volatile int bad = 0;

	for (volatile unsigned k = 0; k < 20 && !bad; k++) {
		volatile int wrong = 0;
		pid_t pid = vfork();

		if (!pid) {
			/* Our memory is its memory: what it brings back, it brings back for us. */
			for (size_t i = k; i < pages; i += 500)
				if (*(volatile uint64_t *)(mem + i * V_PAGE) != v_word(i, 1, 0, 0, KIND))
					wrong = 1;
			if (k & 1)
				_exit(0);
			execl(self, self, "small", (char *)NULL);
			_exit(127);
		}
		bad |= pid < 0 || wrong ? 1 : reap_one(pid, "vfork");
	}
	return bad || check_depth(0);
}

static int run_spawn(void)
{
	char *argv[] = {(char *)self, "small", NULL}, *none[] = {NULL};
	int bad = 0;

	for (unsigned k = 0; k < 10 && !bad; k++) {
		pid_t pid;

		bad |= posix_spawn(&pid, self, NULL, NULL, argv, k & 1 ? none : environ) ? 1
											 : reap_one(pid, "posix_spawn");
		bad |= !bad && posix_spawnp(&pid, self, NULL, NULL, argv, environ) ? 1 : reap_one(pid, "posix_spawnp");
	}
	return bad || check_depth(0);
}

static int run_system(void)
{
	char cmd[600], word[16] = "";
	int bad = 0, rc;

	snprintf(cmd, sizeof(cmd), "%s small", self);
	for (unsigned k = 0; k < 5 && !bad; k++)
		bad |= system(cmd) != 0;
	rc = system("exit 3");
	if (!WIFEXITED(rc) || WEXITSTATUS(rc) != 3) {
		fprintf(stderr, "system: status %#x\n", rc);
		bad = 1;
	}
	if (!system(NULL))
		bad = 1;
	snprintf(cmd, sizeof(cmd), "%s small && echo fine", self);
	for (unsigned k = 0; k < 5 && !bad; k++) {
		FILE *f = popen(cmd, "r");

		bad |= !f || fscanf(f, "%15s", word) != 1 || strcmp(word, "fine") || pclose(f);
	}
	FILE *f = popen("read x; test \"$x\" = word", "w");
	bad |= !f || fputs("word\n", f) < 0 || pclose(f);
	if (bad)
		fprintf(stderr, "system or popen went wrong (\"%s\")\n", word);
	return bad || check_depth(0);
}

/* What the ones that are started run: a program of its own, small. */
static int small(void)
{
	size_t n = 64;
	char *p = v_map(n * V_PAGE);

	v_fill_all(p, n, 3, 0, KIND);
	return v_check_all(p, n, 3, 0, KIND) || !v_is_entered();
}

/* ------------------------------------------- processes that share the memory */

static int sharer(void *arg)
{
	for (size_t i = 0; i < pages; i++) {
		if (v_check(mem + i * V_PAGE, i, 1, 0, KIND))
			return 1;
		v_fill(mem + i * V_PAGE, i, 1, 1, KIND);
	}
	return 0;
}

static int clone_vm(void)
{
	char *stack = v_map(V_MIB);
	pid_t pid = clone(sharer, stack + V_MIB, CLONE_VM | CLONE_FS | SIGCHLD, NULL);

	if (pid < 0 || reap_one(pid, "CLONE_VM"))
		return 1;
	return v_check_all(mem, pages, 1, 1, KIND) != 0;
}

static int gone[2];

static int sharer_outlives(void *arg)
{
	char c;

	/* A descriptor table of our own: the other end closes with the parent. */
	close(gone[1]);
	if (read(gone[0], &c, 1))
		syscall(SYS_exit_group, 1);
	for (unsigned round = 0; round < 2; round++) {
		for (size_t i = 0; i < pages; i++) {
			if (v_check(mem + i * V_PAGE, i, 1, round, KIND))
				syscall(SYS_exit_group, 1);
			v_fill(mem + i * V_PAGE, i, 1, round + 1, KIND);
		}
	}
	static const char word[] = "heir 1 is right\n";
	syscall(SYS_exit_group, syscall(SYS_write, 1, word, sizeof(word) - 1) < 0);
	return 1;
}

static int clone_vm_outlives(void)
{
	char *stack = v_map(V_MIB), c;

	if (pipe(gone) || clone(sharer_outlives, stack + V_MIB, CLONE_VM | SIGCHLD, NULL) < 0)
		return 1;
	_exit(read(0, &c, 1) != 0); /* who started it may want to say when */
}

static int sharer_waits(void *arg)
{
	for (;;)
		syscall(SYS_pause);
	return 1;
}

/* Until it is killed. */
static int clone_vm_waits(void)
{
	char *stack = v_map(V_MIB), c;

	return clone(sharer_waits, stack + V_MIB, CLONE_VM | SIGCHLD, NULL) < 0 || read(0, &c, 1) != 0;
}

/* Of whom the kernel tells an ordinary user nothing. */
static int clone_vm_outlives_undumpable(void)
{
	return prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) ? 1 : clone_vm_outlives();
}

static int sharer_forks(void *arg)
{
	char c;
	int status = 1;
	pid_t pid;

	close(gone[1]);
	if (read(gone[0], &c, 1))
		syscall(SYS_exit_group, 1);
	pid = raw_fork(1);
	if (!pid)
		syscall(SYS_exit_group, check_depth(0) ? 2 : 0);
	if (waitpid(pid, &status, 0) != pid || status || check_depth(0)) {
		dprintf(2, "the heir's child: %#x\n", status);
		syscall(SYS_exit_group, 1);
	}
	dprintf(1, "heir 1 is right\n");
	syscall(SYS_exit_group, 0);
	return 1;
}

/* The same of a raw child, of which the supervisor knew who has gone. */
static int raw_clone_vm_outlives(void)
{
	char *stack = v_map(V_MIB);
	pid_t pid = raw_fork(1);

	if (pid)
		return pid < 0 || reap_one(pid, "raw fork");
	if (v_check(mem, 0, 1, 0, KIND) || pipe(gone) ||
	    clone(sharer_forks, stack + V_MIB, CLONE_VM | SIGCHLD, NULL) < 0)
		_exit(1);
	_exit(0);
}

/* -------------------------------------------------------- forks inside libc */

/* A child that has what every other has: its parent's pages, and pages of its own that move. */
static int belongs(void)
{
	char *own = v_map(pages * V_PAGE);

	v_fill_all(own, pages, 4, 0, KIND);
	for (unsigned k = 0; k < 1000 && !v_absent(own, pages); k++)
		usleep(10000);
	if (!v_absent(own, pages)) {
		fprintf(stderr, "the child's own pages never move\n");
		return 1;
	}
	return check_depth(0) || v_check_all(own, pages, 4, 0, KIND);
}

static bool is_null(int fd)
{
	struct stat st;

	return !fstat(fd, &st) && S_ISCHR(st.st_mode) && st.st_rdev == makedev(1, 3);
}

static int daemon_is_right(int nochdir, int noclose, const char *cwd)
{
	char now[512];

	if (getsid(0) != getpid() || !getcwd(now, sizeof(now)) || strcmp(now, nochdir ? cwd : "/"))
		return 2;
	for (int fd = 1; fd < 3; fd++)
		if (is_null(fd) == !!noclose)
			return 3;
	if (!noclose && (!is_null(0) || open("/dev/null", O_RDONLY | O_CLOEXEC) != 3))
		return 4;
	return belongs() ? 5 : 0;
}

/* The daemon tells by a pipe; who called it ends with status 0 at once. */
static int run_daemon(void)
{
	char cwd[512];
	int bad = 0;

	if (!getcwd(cwd, sizeof(cwd)))
		return 1;
	for (int how = 0; how < 4 && !bad; how++) {
		int fd[2];
		char word = 'x';
		pid_t pid;

		if (pipe(fd) || dup2(fd[0], 20) < 0 || dup2(fd[1], 21) < 0 || close(fd[0]) || close(fd[1]))
			return 1;
		pid = fork();
		if (!pid) {
			close(20);
			word = daemon(how & 1, how >> 1) ? '1' : (char)('0' + daemon_is_right(how & 1, how >> 1, cwd));
			_exit(write(21, &word, 1) != 1);
		}
		close(21);
		bad |= pid < 0 || reap_one(pid, "daemon");
		if (read(20, &word, 1) != 1 || word != '0') {
			fprintf(stderr, "daemon(%d, %d): '%c'\n", how & 1, how >> 1, word);
			bad = 1;
		}
		close(20);
	}
	return bad || check_depth(0);
}

static int run_forkpty(void)
{
	struct winsize size = {.ws_row = 17, .ws_col = 71}, got;
	struct termios mode;
	char name[256] = "", text[4096];
	size_t n = 0;
	ssize_t k;
	int master, bad;
	pid_t pid;

	memset(&mode, 0, sizeof(mode));
	mode.c_cflag = CS8 | CREAD; /* raw: what is written is what is read */
	mode.c_cc[VMIN] = 1;
	cfsetspeed(&mode, B38400);
	pid = forkpty(&master, name, &mode, &size);
	if (!pid) {
		bad = getsid(0) != getpid() || tcgetpgrp(0) != getpid() || !isatty(0) || !isatty(1) || !isatty(2) ||
		      strcmp(ttyname(1), name) || ioctl(0, TIOCGWINSZ, &got) || got.ws_row != 17 || got.ws_col != 71 ||
		      open("/dev/null", O_RDONLY | O_CLOEXEC) != 3;
		bad |= belongs();
		dprintf(1, bad ? "wrong\n" : "right\n");
		_exit(0);
	}
	if (pid < 0) {
		perror("forkpty");
		return 1;
	}
	while (n < sizeof(text) - 1 && (k = read(master, text + n, sizeof(text) - 1 - n)) > 0)
		n += (size_t)k;
	text[n] = 0;
	bad = reap_one(pid, "forkpty");
	if (strcmp(text, "right\n")) {
		fprintf(stderr, "forkpty: the child says \"%s\"\n", text);
		bad = 1;
	}
	close(master);
	return bad || check_depth(0);
}

/* ------------------------------------------ forks while others start programs */

static void *popener(void *arg)
{
	while (!atomic_load(&stop)) {
		FILE *f = popen("exit 0", "r");

		if (!f || pclose(f))
			return (void *)1;
	}
	return NULL;
}

/*
 * A child that is forked in the middle of a popen() has the environment that it
 * should have.  (It cannot popen() itself: libc's own lock may be held in it.)
 */
static int while_popen(void)
{
	size_t vars = 0;
	pthread_t t;
	void *ret;
	int bad = 0;

	while (environ[vars])
		vars++;
	pthread_create(&t, NULL, popener, NULL);
	for (unsigned k = 0; k < (v_long() ? 150u : 100u) && !bad; k++) {
		pid_t pid = fork();

		if (!pid) {
			size_t n = 0;

			while (environ[n])
				n++;
			_exit(n != vars || getenv("HMM_RUN"));
		}
		bad |= pid < 0 ? 1 : reap_one(pid, "fork beside popen");
	}
	atomic_store(&stop, true);
	pthread_join(t, &ret);
	return bad || ret || check_depth(0);
}

static void on_int(int sig)
{
}

static void *systems(void *arg)
{
	for (unsigned k = 0; k < (v_long() ? 60u : 30u); k++)
		if (system("exit 0"))
			return (void *)1;
	return NULL;
}

static void *system_for_ever(void *arg)
{
	system("echo $$ >&$LIFE_FD; kill -STOP $$");
	return NULL;
}

static int signals_are_back(const char *when)
{
	struct sigaction i, q;

	sigaction(SIGINT, NULL, &i);
	sigaction(SIGQUIT, NULL, &q);
	if (i.sa_handler == on_int && q.sa_handler == SIG_DFL)
		return 0;
	fprintf(stderr, "%s: SIGINT or SIGQUIT is not what it was\n", when);
	return 1;
}

/* system() from many threads, and one that is cancelled in it: afterwards signals are as before, and the shell is gone.
 */
static int system_threads(void)
{
	pthread_t t[FORKERS];
	void *ret;
	int fd[2], bad = 0;
	char text[32] = "";

	signal(SIGINT, on_int);
	for (unsigned i = 0; i < FORKERS; i++)
		pthread_create(&t[i], NULL, systems, NULL);
	for (unsigned i = 0; i < FORKERS; i++) {
		pthread_join(t[i], &ret);
		bad |= ret != NULL;
	}
	bad |= signals_are_back("after many");
	if (bad || pipe(fd))
		return 1;
	snprintf(text, sizeof(text), "%d", fd[1]);
	setenv("LIFE_FD", text, 1);
	pthread_create(&t[0], NULL, system_for_ever, NULL);
	ssize_t n = read(fd[0], text, sizeof(text) - 1);
	pthread_cancel(t[0]);
	pthread_join(t[0], &ret);
	if (n <= 0 || ret != PTHREAD_CANCELED || !kill(atoi(text), 0)) {
		fprintf(stderr, "the cancelled one's shell lives on\n");
		bad = 1;
	}
	return bad || signals_are_back("after the cancelled one") || check_depth(0);
}

/* ------------------------------------ a fork that began before anything moved */

static void slow_prepare(void)
{
	if (mem)
		return;
	mem = v_map(pages * V_PAGE);
	v_fill_all(mem, pages, 1, 0, KIND);
	/* What must not happen has time to happen. */
	for (unsigned k = 0; k < 60 && !v_absent(mem, pages); k++)
		usleep(10000);
	char *p = v_map(V_PAGE), *q;
	if (p == MAP_FAILED || (q = mremap(p, V_PAGE, 9 * V_PAGE, MREMAP_MAYMOVE)) == MAP_FAILED)
		_exit(9);
	munmap(q, 9 * V_PAGE);
}

static int slow_fork(void)
{
	int bad = 0;

	pthread_atfork(slow_prepare, NULL, NULL);
	for (unsigned k = 0; k < 3 && !bad; k++) {
		pid_t pid = fork();

		if (!pid)
			_exit(check_depth(0) ? 1 : 0);
		bad |= pid < 0 ? 1 : reap_one(pid, "a fork that takes its time");
		/* It is over: from now on things move. */
		for (unsigned i = 0; i < 1000 && !v_absent(mem, pages); i++)
			usleep(10000);
		bad |= check_depth(0) != 0;
	}
	return bad;
}

/* ------------------------------------------------------- what is larger than it was */

#define GROWN 12u
#define GROWN_PAGES 64u

/* No event says that a mapping has grown, and libc's own mremap() passes no hook. */
static int grown(void)
{
	char *p[GROWN], *room = v_map(3 * GROWN * GROWN_PAGES * V_PAGE);

	for (unsigned k = 0; k < GROWN; k++) {
		p[k] = room + 3 * k * GROWN_PAGES * V_PAGE;
		v_fill_all(p[k], GROWN_PAGES, 100 + k, 0, KIND);
		/* Every second one stays where it is. */
		if (munmap(p[k] + GROWN_PAGES * V_PAGE, (k % 2 ? 2 : 1) * GROWN_PAGES * V_PAGE))
			return 1;
	}
	for (unsigned i = 0; i < 1000 && !v_absent(mem, pages); i++)
		usleep(10000);
	usleep(100000); /* they have been found by now, too */
	for (unsigned k = 0; k < GROWN; k++) {
		char *q = (char *)syscall(SYS_mremap, p[k], GROWN_PAGES * V_PAGE, 2 * GROWN_PAGES * V_PAGE,
					  MREMAP_MAYMOVE);

		if (q == MAP_FAILED)
			return 1;
		v_fill_all(q, 2 * GROWN_PAGES, 100 + k, 1, KIND);
		pid_t pid = fork();
		if (!pid)
			_exit(v_check_all(q, 2 * GROWN_PAGES, 100 + k, 1, KIND) ? 1 : 0);
		if (pid < 0 || reap_one(pid, "fork of what has grown"))
			return 1;
	}
	return 0;
}

/* ------------------------------------------------------------ stopped in a fork */

/* Whoever runs us stops when we do; so it is a child that is stopped. */
static int stopped_child(int done)
{
	for (unsigned k = 0; k < (v_long() ? 40u : 20u); k++) {
		pid_t pid = fork();

		if (!pid)
			_exit(0);
		if (pid < 0 || reap_one(pid, "fork of who is stopped now and then"))
			return 1;
	}
	close(done);
	/* Each of them is over, and pages leave again.  The bound is a watchdog. */
	if (check_depth(0))
		return 1;
	for (unsigned i = 0; i < 3000 && v_absent(mem, pages) < pages / 8; i++)
		usleep(10000);
	if (v_absent(mem, pages) < pages / 8) {
		fprintf(stderr, "nothing leaves after the last fork\n");
		return 1;
	}
	return 0;
}

static int stopped(void)
{
	int done[2];

	if (pipe(done))
		return 1;
	pid_t pid = fork();
	if (!pid) {
		close(done[0]);
		_exit(stopped_child(done[1]));
	}
	close(done[1]);
	/* Children of its own have the other end, too, and end soon. */
	while (pid > 0 && !poll(&(struct pollfd){.fd = done[0], .events = POLLIN}, 1, 0)) {
		kill(pid, SIGSTOP);
		kill(pid, SIGCONT);
		usleep(200);
	}
	return pid < 0 || reap_one(pid, "who is stopped now and then");
}

/* Once told by a signal: children, one after the other, that do nothing; while the driver asks for all to come back. */
static int litter(void)
{
	size_t n = 48 * V_MIB / V_PAGE;
	sigset_t go;
	int sig;

	sigemptyset(&go);
	sigaddset(&go, SIGUSR1);
	sigprocmask(SIG_BLOCK, &go, NULL);
	mem = v_map(n * V_PAGE);
	v_fill_all(mem, n, 1, 0, KIND);
	dprintf(1, "ready\n");
	sigwait(&go, &sig);
	for (unsigned k = 0; k < 16; k++) {
		pid_t pid = (pid_t)syscall(SYS_fork);

		if (pid < 0)
			return 1;
		if (!pid) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			for (;;)
				pause();
		}
		usleep(5000);
	}
	for (;;)
		pause();
}

/* ------------------------------------------------------------ while it is armed */

#define ARMED_PAGES (40 * V_MIB / V_PAGE)
#define CHILD_PAGES (24 * V_MIB / V_PAGE)

/* What it has of its own moves, too. */
static int armed_child(const char *held, size_t npages)
{
	char *p = v_map(CHILD_PAGES * V_PAGE);
	int bad = 0;

	if (unlink(held))
		return 1;
	v_fill_all(p, CHILD_PAGES, 2, 0, KIND);
	/* Where its memory cannot be moved that is said, and none ever is. */
	for (unsigned tries = 0; tries < 1000 && !v_absent(p, CHILD_PAGES); tries++)
		usleep(10000);
	for (size_t i = 0; i < npages; i++)
		bad |= v_check(mem + i * V_PAGE, i, 1, 0, KIND);
	return bad || v_check_all(p, CHILD_PAGES, 2, 0, KIND);
}

/* Who arms it waits half-way (held.c) until there is a child. */
static int while_armed(void)
{
	const char *held = getenv("HMM_TEST_HELD");
	pid_t pid = 0;

	if (!held)
		return 2;
	mem = v_map(ARMED_PAGES * V_PAGE);
	for (size_t i = 0; i < ARMED_PAGES || !pid; i += i < ARMED_PAGES) {
		if (i < ARMED_PAGES)
			v_fill(mem + i * V_PAGE, i, 1, 0, KIND);
		else
			usleep(1000);
		if (!pid && (i == ARMED_PAGES || i % 16 == 0) && !access(held, F_OK)) {
			pid = fork();
			if (!pid)
				_exit(armed_child(held, i < ARMED_PAGES ? i + 1 : ARMED_PAGES));
		}
	}
	return v_check_all(mem, ARMED_PAGES, 1, 0, KIND) || reap_one(pid, "forked while it was armed");
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		int (*run)(void);
	} tests[] = {
		{"generations", generations},
		{"parent-first", parent_first},
		{"while-evicted", while_evicted},
		{"threads", from_threads},
		{"raw", raw},
		{"raw-orphan", raw_orphan},
		{"raw-vfork", raw_vfork},
		{"raw-clone-vm-outlives", raw_clone_vm_outlives},
		{"raw-then-libc", raw_then_libc},
		{"mark-after", mark_after},
		{"mark-at-once", mark_at_once},
		{"thread-then-libc", thread_then_libc},
		{"gone-after", gone_after},
		{"raw-mark", raw_mark},
		{"vfork", run_vfork},
		{"spawn", run_spawn},
		{"system", run_system},
		{"clone-vm", clone_vm},
		{"clone-vm-outlives", clone_vm_outlives},
		{"clone-vm-waits", clone_vm_waits},
		{"clone-vm-outlives-undumpable", clone_vm_outlives_undumpable},
		{"daemon", run_daemon},
		{"forkpty", run_forkpty},
		{"while-popen", while_popen},
		{"system-threads", system_threads},
		{"grown", grown},
		{"stopped", stopped},
	};
	static char path[512];
	ssize_t n = readlink("/proc/self/exe", path, sizeof(path) - 1);

	if (argc != 2 || n <= 0)
		return 2;
	path[n] = 0;
	self = path;
	pages = (v_long() ? 120 : 48) * V_MIB / V_PAGE;
	if (!strcmp(argv[1], "small"))
		return small();
	if (!strcmp(argv[1], "slow"))
		return slow_fork();
	if (!strcmp(argv[1], "while-armed"))
		return while_armed();
	if (!strcmp(argv[1], "litter"))
		return litter();
	for (unsigned i = 0; i < sizeof(tests) / sizeof(tests[0]); i++) {
		if (strcmp(argv[1], tests[i].name))
			continue;
		mem = v_map(pages * V_PAGE);
		v_fill_all(mem, pages, 1, 0, KIND);
		dprintf(1, "%zu of %zu pages absent\n", v_absent(mem, pages), pages);
		return tests[i].run();
	}
	return 2;
}
