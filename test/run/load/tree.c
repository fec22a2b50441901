/* SPDX-License-Identifier: MIT */
/*
 * tree MODE PROCESSES MIB QUARTERS PHASE: processes that together use MIB.  In
 * the file PHASE stands what they are at, so that who watches their memory
 * knows what to expect: 'b' they grow, 's' they have what they want, and have
 * gone through it once since, and go through QUARTERS of it, 'e' the end.
 *
 * own: each its part.  wake: the same, but half of it is mapped, and read into by
 * one call, when nothing has run for a while.  populate: the same, but by MADV_POPULATE_WRITE.
 * shared: the same, but by another process that shares the memory.  fork: one fills all of
 * it, the others are its forks, and each rewrites a part that all have, then checks the rest.
 */
#include <pthread.h>
#include <sched.h>
#include <sys/wait.h>

#include "../victim.h"

#define SEED 11
#define ASLEEP_S 2 /* until who watches looks as seldom as it ever does */

static struct {
	unsigned nproc, quarters;
	size_t npages; /* a process */
	bool fork, wake, populate, shared;
	int phase;
	pthread_barrier_t *barrier;
	char *mem;
} T;

static void phase(char c)
{
	if (pwrite(T.phase, &c, 1, 0) != 1)
		_exit(1);
}

/* One call, which does not return to the program before all is there. */
static void grow_at_once(char *at, size_t len)
{
	int zero = open("/dev/zero", O_RDONLY);

	nanosleep(&(struct timespec){.tv_sec = ASLEEP_S}, NULL);
	if (mmap(at, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) != at)
		_exit(1);
	if (T.populate ? madvise(at, len, MADV_POPULATE_WRITE) : zero < 0 || read(zero, at, len) != (ssize_t)len)
		_exit(1);
	close(zero);
}

static struct {
	char *at;
	size_t len;
} G;

static int grow_for_all(void *arg)
{
	grow_at_once(G.at, G.len);
	return 0;
}

/* Who does it has been there, asleep, for as long as everybody. */
static void grow_by_another(char *at, size_t len)
{
	static char stack[64 << 10] __attribute__((aligned(16)));
	int status = 1;

	G.at = at;
	G.len = len;
	pid_t pid = clone(grow_for_all, stack + sizeof(stack), CLONE_VM | SIGCHLD, NULL);
	if (pid < 0 || waitpid(pid, &status, 0) != pid || status)
		_exit(1);
}

static void fill_own(uint64_t seed)
{
	size_t first = T.wake ? T.npages / 2 : T.npages;
	char *rest;

	T.mem = v_map(T.npages * V_PAGE);
	rest = T.mem + first * V_PAGE;
	if (T.wake)
		munmap(rest, (T.npages - first) * V_PAGE);
	v_fill_all(T.mem, first, seed, 1, V_QUARTER);
	if (T.shared)
		grow_by_another(rest, (T.npages - first) * V_PAGE);
	else if (T.wake)
		grow_at_once(rest, (T.npages - first) * V_PAGE);
	for (size_t i = first; i < T.npages; i++)
		v_fill(T.mem + i * V_PAGE, i, seed, 1, V_QUARTER);
}

static int run(unsigned me)
{
	size_t from = T.fork ? T.npages / T.nproc * me : 0, to = T.fork ? T.npages / T.nproc * (me + 1) : T.npages;
	uint64_t seed = T.fork ? SEED : SEED + me;

	if (!T.fork)
		fill_own(seed);
	for (size_t n = 0, all = T.npages + T.npages * T.quarters / 4; n < all; n++) {
		size_t p = n / T.npages, i = n % T.npages;
		bool mine = i >= from && i < to;

		if (n == T.npages && pthread_barrier_wait(T.barrier) == PTHREAD_BARRIER_SERIAL_THREAD)
			phase('s');
		if (v_check(T.mem + i * V_PAGE, i, seed, mine ? p + 1 : 1, V_QUARTER))
			return 1;
		if (mine)
			v_fill(T.mem + i * V_PAGE, i, seed, p + 2, V_QUARTER);
	}
	/* Nobody leaves before all have done: what one gives up would hide what others take. */
	if (pthread_barrier_wait(T.barrier) == PTHREAD_BARRIER_SERIAL_THREAD)
		phase('e');
	return 0;
}

int main(int argc, char **argv)
{
	pthread_barrierattr_t attr;
	int bad = 0;

	if (argc != 6) {
		fprintf(stderr, "usage: tree own|wake|populate|shared|fork PROCESSES MIB QUARTERS PHASE\n");
		return 2;
	}
	T.fork = !strcmp(argv[1], "fork");
	T.populate = !strcmp(argv[1], "populate");
	T.shared = !strcmp(argv[1], "shared");
	T.wake = T.populate || T.shared || !strcmp(argv[1], "wake");
	T.nproc = (unsigned)atoi(argv[2]);
	T.npages = (size_t)atoi(argv[3]) * V_MIB / V_PAGE;
	if (!T.fork)
		T.npages /= T.nproc;
	T.quarters = (unsigned)atoi(argv[4]);
	T.phase = open(argv[5], O_RDWR);
	if (T.phase < 0) {
		perror(argv[5]);
		return 1;
	}
	phase('b');
	T.barrier = mmap(NULL, V_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	pthread_barrierattr_init(&attr);
	pthread_barrierattr_setpshared(&attr, PTHREAD_PROCESS_SHARED);
	pthread_barrier_init(T.barrier, &attr, T.nproc);
	if (T.fork) {
		T.mem = v_map(T.npages * V_PAGE);
		v_fill_all(T.mem, T.npages, SEED, 1, V_QUARTER);
	}
	for (unsigned i = 1; i < T.nproc; i++) {
		pid_t pid = fork();

		if (pid < 0) {
			perror("fork");
			return 1;
		}
		if (!pid)
			_exit(run(i));
	}
	bad = run(0);
	for (unsigned i = 1; i < T.nproc; i++) {
		int status;

		if (wait(&status) < 0 || status)
			bad = 1;
	}
	return bad;
}
