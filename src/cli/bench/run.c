/* SPDX-License-Identifier: MIT */
/*
 * hmm bench: hmm run itself, on workloads that are this command, too.
 *
 * DOC: equal RAM
 *
 * The workloads (work.c) have --mib MiB, all of it in small pages, and are run in turn
 *
 *   ram     as they are
 *   hmm     under hmm run --to lz4, with half of it local
 *   zram    where --zram asks for it, in a memory cgroup with half of it resident, and
 *           swap to zram (lz4, vm.page-cluster 0)
 *
 * Half of it: half of MiB and SLACK for the program itself; hmm run counts what its
 * device takes, so it may have that besides.  With zram it may have what zram took at
 * most in its first run, cgroup and pool; else what LZ4 makes of the other half, and a
 * tenth more.
 *
 * Told is the time by pages touched, and the CPU time of the whole run, start, warming
 * up and end with it, of all that belonged to it: a process in between adopts and waits
 * for whatever the program leaves behind, and its account is that of all.
 *
 * hmm-back is how long a touch takes of a page that is away, by itself (back.c).
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "cli/bench/bench.h"
#include "cli/bench/data.h"

#define MIB (1ull << 20)
#define SLACK (4 * MIB)
#define LEAST_RAM (16 * MIB) /* hmm run takes no less */
#define ARGS 24
#define OPS "2000" /* of hmm-back */
#define LOOK_MS 20

static const char *const workloads[RUN_CPU] = {"fill", "read", "write", "uniform"};

struct command {
	const char *argv[ARGS];
	unsigned n;
	char exe[1024], number[4][24], stats[40];
	int out, err, stats_fd;
	struct swap *swap;
};

/* ------------------------------------------------------------------- one command */

static void add(struct command *c, const char *arg)
{
	if (c->n < ARGS - 1)
		c->argv[c->n++] = arg;
}

static int command_begin(struct bench *b, struct command *c)
{
	ssize_t n = readlink("/proc/self/exe", c->exe, sizeof(c->exe) - 1);

	if (n <= 0)
		return bench_skip(b, "/proc/self/exe: %s", strerror(errno));
	c->exe[n] = 0;
	c->out = memfd_create("hmm-bench-out", MFD_CLOEXEC);
	c->err = memfd_create("hmm-bench-err", MFD_CLOEXEC);
	c->stats_fd = memfd_create("hmm-bench-stats", MFD_CLOEXEC);
	if (c->out < 0 || c->err < 0 || c->stats_fd < 0)
		return bench_skip(b, "memfd_create: %s", strerror(errno));
	snprintf(c->stats, sizeof(c->stats), "/proc/%d/fd/%d", (int)getpid(), c->stats_fd);
	return 0;
}

static void command_end(struct command *c)
{
	const int fds[] = {c->out, c->err, c->stats_fd};

	for (unsigned i = 0; i < sizeof(fds) / sizeof(fds[0]); i++)
		if (fds[i] >= 0)
			close(fds[i]);
}

static void add_hmm_run(struct command *c, uint64_t budget)
{
	snprintf(c->number[0], sizeof(c->number[0]), "%llu", (unsigned long long)budget);
	const char *const args[] = {"run", "--to", "lz4", "--ram", c->number[0], "--stats", c->stats, "--", c->exe};

	for (unsigned i = 0; i < sizeof(args) / sizeof(args[0]); i++)
		add(c, args[i]);
}

/* What was written there, from the start. */
static void slurp(int fd, char *buf, size_t len)
{
	ssize_t n = pread(fd, buf, len - 1, 0);

	buf[n > 0 ? n : 0] = 0;
}

/* The number @name of @object, NULL: of the outermost; -1 where there is none. */
static double number_in(const char *json, const char *object, const char *name)
{
	char key[64];
	const char *p = json;

	if (object) {
		snprintf(key, sizeof(key), "\"%s\": {", object);
		p = strstr(p, key);
	}
	snprintf(key, sizeof(key), "\"%s\":", name);
	p = p ? strstr(p, key) : NULL;
	return p ? strtod(p + strlen(key), NULL) : -1;
}

static void exec_command(struct command *c, pid_t parent)
{
	/* Told to end when we are; who is in a cgroup is killed there, too. */
	prctl(PR_SET_PDEATHSIG, SIGTERM);
	if (getppid() != parent)
		_exit(125);
	if (c->swap) {
		int fd = open(swap_procs(c->swap), O_WRONLY | O_CLOEXEC);

		if (fd < 0 || write(fd, "0", 1) != 1)
			_exit(125);
	}
	dup2(c->out, 1);
	dup2(c->err, 2);
	execv(c->exe, (char **)c->argv);
	_exit(127);
}

/* Its child, and all that is left behind by anybody below, are waited for.  Exits as the command did. */
static void stand_between(struct command *c, pid_t parent)
{
	pid_t pid, self = getpid();
	int st, status = 125 << 8;

	prctl(PR_SET_PDEATHSIG, SIGTERM);
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	if (getppid() != parent)
		_exit(125);
	/* Not the pipe whose end is our end (swap.c). */
	for (int fd = 3; fd < 1024; fd++)
		if (fd != c->out && fd != c->err && fd != c->stats_fd)
			close(fd);
	pid_t command = fork();
	if (!command)
		exec_command(c, self);
	while (command > 0 && ((pid = waitpid(-1, &st, __WALL)) > 0 || errno == EINTR))
		if (pid == command)
			status = st;
	_exit(WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
}

/* Returns 0 and the CPU time that all of it took, in ns; or BENCH_SKIP. */
static int command_run(struct bench *b, struct command *c, double *cpu, uint64_t *peak)
{
	pid_t parent = getpid(), pid;
	struct rusage u;
	char said[160];
	int status;

	fflush(NULL);
	pid = fork();
	if (!pid)
		stand_between(c, parent);
	if (pid < 0)
		return bench_skip(b, "fork: %s", strerror(errno));
	for (;;) {
		pid_t done = wait4(pid, &status, c->swap ? WNOHANG : 0, &u);

		if (done == pid)
			break;
		if (done < 0 && errno != EINTR)
			return bench_skip(b, "wait: %s", strerror(errno));
		if (c->swap) {
			uint64_t now = swap_usage(c->swap);

			*peak = now > *peak ? now : *peak;
			nanosleep(&(struct timespec){.tv_nsec = LOOK_MS * 1000000l}, NULL);
		}
	}
	*cpu = ((double)u.ru_utime.tv_sec + (double)u.ru_stime.tv_sec) * 1e9 +
	       ((double)u.ru_utime.tv_usec + (double)u.ru_stime.tv_usec) * 1e3;
	if (WIFEXITED(status) && !WEXITSTATUS(status))
		return 0;
	slurp(c->err, said, sizeof(said));
	said[strcspn(said, "\n")] = 0;
	if (said[0])
		return bench_skip(b, "%s", said);
	if (c->swap && WIFEXITED(status) && WEXITSTATUS(status) == 128 + SIGKILL)
		return bench_skip(b, "the kernel's out-of-memory killer ended the program");
	return bench_skip(b, "it ended with status %d",
			  WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
}

/* ------------------------------------------------------------------- measurements */

/* What hmm run says of itself: it must have moved something. */
static int look_at_stats(struct bench *b, struct command *c)
{
	char stats[4096];
	double peak, out;

	slurp(c->stats_fd, stats, sizeof(stats));
	peak = number_in(stats, NULL, "peak_bytes");
	out = number_in(stats, NULL, "pages_out");
	if (peak <= 0 || out <= 0)
		return bench_skip(b, "hmm run moved nothing: there is nothing to measure");
	if ((uint64_t)peak > b->peak[RUN_HMM])
		b->peak[RUN_HMM] = (uint64_t)peak;
	return 0;
}

static void add_work(struct bench *b, struct command *c)
{
	add(c, "bench");
	add(c, "work");
	snprintf(c->number[1], sizeof(c->number[1]), "%zu", b->npages * DATA_PAGE >> 20);
	snprintf(c->number[2], sizeof(c->number[2]), "%u", b->ratio);
	snprintf(c->number[3], sizeof(c->number[3]), "%zu", b->npages);
	for (unsigned i = 1; i <= 3; i++)
		add(c, c->number[i]);
	for (unsigned i = RUN_READ; i < RUN_CPU; i++)
		if (b->work[i])
			add(c, workloads[i]);
}

static int run(struct bench *b, int who, struct bench_run *r)
{
	struct command c = {.out = -1, .err = -1, .stats_fd = -1};
	uint64_t bytes = b->npages * DATA_PAGE, local = bytes / 2 + SLACK;
	char text[32768];
	int rc = command_begin(b, &c);

	if (rc)
		goto out;
	add(&c, c.exe);
	if (who == RUN_HMM) {
		if (!b->budget)
			b->budget = local + bytes / 2 / b->ratio * 11 / 10;
		if (b->budget < LEAST_RAM)
			b->budget = LEAST_RAM;
		add_hmm_run(&c, b->budget);
	}
	add_work(b, &c);
	if (who == RUN_ZRAM)
		rc = swap_begin(b, local, &c.swap);
	if (!rc)
		rc = command_run(b, &c, &r->ns[RUN_CPU], &b->peak[who]);
	if (c.swap)
		swap_end(c.swap);
	if (!rc && who == RUN_HMM)
		rc = look_at_stats(b, &c);
	if (rc)
		goto out;
	if (who == RUN_ZRAM && !b->budget)
		b->budget = b->peak[who] > local ? b->peak[who] : local;
	slurp(c.out, text, sizeof(text));
	for (unsigned i = 0; i < RUN_CPU; i++)
		r->ns[i] = b->work[i] ? number_in(text, workloads[i], "seconds") /
						number_in(text, workloads[i], "ops") * 1e9
				      : 0;
out:
	command_end(&c);
	return rc;
}

int bench_run(struct bench *b, int arg, struct bench_sample *s)
{
	int who = arg / RUN_FIGURES;
	struct bench_run *r = &b->run[who];

	/* One run gives all of its figures. */
	if (r->round != b->round) {
		r->round = b->round;
		r->rc = run(b, who, r);
		memcpy(r->why, b->why, sizeof(r->why));
	}
	memcpy(b->why, r->why, sizeof(r->why));
	s->value = r->ns[arg % RUN_FIGURES];
	return r->rc;
}

int bench_run_back(struct bench *b, int arg, struct bench_sample *s)
{
	struct command c = {.out = -1, .err = -1, .stats_fd = -1};
	uint64_t bytes = b->npages * DATA_PAGE, budget = bytes / 4 * 3;
	char text[4096];
	uint64_t peak = 0;
	double cpu;
	int rc = command_begin(b, &c);

	if (rc)
		goto out;
	add(&c, c.exe);
	add_hmm_run(&c, budget < LEAST_RAM ? LEAST_RAM : budget);
	add(&c, "bench");
	add(&c, "back");
	snprintf(c.number[1], sizeof(c.number[1]), "%zu", b->npages * DATA_PAGE >> 20);
	add(&c, c.number[1]);
	add(&c, OPS);
	rc = command_run(b, &c, &cpu, &peak);
	if (rc)
		goto out;
	slurp(c.out, text, sizeof(text));
	if (number_in(text, NULL, "n") < 1) {
		rc = bench_skip(b, "nothing was away: more --mib");
		goto out;
	}
	s->value = number_in(text, NULL, "back_median") * 1e3;
	s->mean = number_in(text, NULL, "back_mean") * 1e3;
	s->p99 = number_in(text, NULL, "back_p99") * 1e3;
out:
	command_end(&c);
	return rc;
}
