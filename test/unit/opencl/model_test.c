/* SPDX-License-Identifier: MIT */
/*
 * Random sequences of what a program and its kernels do to memory, against a model
 * that is an array.
 *
 * model_test [SEED [STEPS]]: the seed of a failure is printed, and given again
 * repeats its steps (the threads' timing is their own).
 */
#include "world.h"

#define ARRAYS 4u
#define SMALL 48u   /* pages each */
#define LARGE 9216u /* the same where the device's memory is in huge pages, which go and come as such */
#define GROUP 256u
#define N (nr * (uint32_t)PAGE / 4)

static uint64_t rng;
static uint32_t nr;

static uint32_t rnd(uint32_t below)
{
	rng = rng * 6364136223846793005u + 1442695040888963407u;
	return (uint32_t)(rng >> 33) % below;
}

struct model {
	struct world w;
	struct hmm_cl_kernel *inc, *add, *fill;
	uint32_t *mem[ARRAYS], *want[ARRAYS];
	bool pending; /* something may not be where the CPU sees it before hmm_cl_wait() */
};

static uint64_t seed;
static unsigned step;

#define MUST(cond)                                                                                                     \
	do {                                                                                                           \
		if (!(cond)) {                                                                                         \
			fprintf(stderr, "seed %llu, step %u, line %d: %s\n", (unsigned long long)seed, step, __LINE__, \
				#cond);                                                                                \
			abort();                                                                                       \
		}                                                                                                      \
	} while (0)

/* Where @p differs from @want, which is what stands there in the child, too. */
static bool same(struct model *m, uint32_t a, uint32_t from, uint32_t n)
{
	for (uint32_t i = from; i < from + n; i++) {
		if (m->mem[a][i] == m->want[a][i])
			continue;
		fprintf(stderr, "array %u, word %u (page %lu): %u, not %u\n", a, i, i * 4 / PAGE, m->mem[a][i],
			m->want[a][i]);
		return false;
	}
	return true;
}

static void settle(struct model *m)
{
	if (m->pending)
		MUST(!hmm_cl_wait(m->w.cl));
	m->pending = false;
}

/* What has not moved is the CPU's when the kernel has ended, and not before: who touches it waits for that. */
static void launched(struct model *m, unsigned a, uint32_t from, uint32_t n)
{
	uint32_t first = from * 4 / PAGE, last = ((from + n) * 4 + PAGE - 1) / PAGE;

	m->pending |= from * 4 % PAGE || n * 4 % PAGE ||
		      on_device(&m->w, (char *)m->mem[a] + first * PAGE, last - first) != last - first;
}

/* In groups of one, or of many where there is much: the runtime compiles a kernel anew for every other size. */
static int launch_plain(struct hmm_cl_kernel *k, size_t n)
{
	const size_t group = nr == LARGE && n % GROUP == 0 ? GROUP : 1;

	return hmm_cl_launch(k, 1, NULL, &n, &group, 0, NULL, NULL);
}

static void a_range(uint32_t *from, uint32_t *n)
{
	if (rnd(2)) {
		*from = rnd(nr) * PAGE / 4;
		*n = (1 + rnd(nr - *from * 4 / PAGE)) * PAGE / 4;
	} else {
		*from = rnd(N);
		*n = 1 + rnd(N - *from);
		if (nr == LARGE && *n > GROUP)
			*n -= *n % GROUP;
	}
}

static void run_inc(struct model *m)
{
	uint32_t a = rnd(ARRAYS), from, n, by = rnd(1000);

	a_range(&from, &n);
	MUST(!hmm_cl_arg(m->inc, 0, m->mem[a] + from, n * 4, HMM_CL_READ_WRITE));
	MUST(!hmm_cl_value(m->inc, 1, &by, sizeof(by)));
	MUST(!launch_plain(m->inc, n));
	for (uint32_t i = 0; i < n; i++)
		m->want[a][from + i] += by;
	launched(m, a, from, n);
}

/* Writes less than it was given: the rest stays as it was. */
static void run_fill(struct model *m)
{
	uint32_t a = rnd(ARRAYS), from, n, by = rnd(1000), some;

	a_range(&from, &n);
	some = rnd(2) ? n : 1 + rnd(n);
	if (nr == LARGE && some > GROUP)
		some -= some % GROUP;
	MUST(!hmm_cl_arg(m->fill, 0, m->mem[a] + from, n * 4, some == n ? HMM_CL_WRITE_ALL : HMM_CL_WRITE));
	MUST(!hmm_cl_value(m->fill, 1, &by, sizeof(by)));
	MUST(!launch_plain(m->fill, some));
	for (uint32_t i = 0; i < some; i++)
		m->want[a][from + i] = by + i;
	launched(m, a, from, n);
}

static void run_add(struct model *m)
{
	uint32_t a = rnd(ARRAYS), b = (a + 1 + rnd(ARRAYS - 1)) % ARRAYS, from, n, to, by = rnd(1000);

	a_range(&from, &n);
	to = rnd(N - n + 1);
	MUST(!hmm_cl_arg(m->add, 0, m->mem[a] + from, n * 4, HMM_CL_READ));
	MUST(!hmm_cl_arg(m->add, 1, m->mem[b] + to, n * 4, HMM_CL_WRITE));
	MUST(!hmm_cl_value(m->add, 2, &by, sizeof(by)));
	MUST(!launch_plain(m->add, n));
	for (uint32_t i = 0; i < n; i++)
		m->want[b][to + i] = m->want[a][from + i] + by;
	launched(m, b, to, n);
}

static void cpu_write(struct model *m)
{
	uint32_t a = rnd(ARRAYS), at = rnd(N), n = 1 + rnd(N - at < 3000 ? N - at : 3000);

	settle(m);
	for (uint32_t i = 0; i < n; i++)
		m->mem[a][at + i] = m->want[a][at + i] = rnd(1u << 30);
}

static void cpu_read(struct model *m)
{
	uint32_t a = rnd(ARRAYS), at = rnd(N), n = 1 + rnd(N - at);

	settle(m);
	MUST(same(m, a, at, n));
}

static void drop(struct model *m)
{
	uint32_t a = rnd(ARRAYS), from = rnd(nr), n = 1 + rnd(nr - from);
	char *p = (char *)m->mem[a] + from * PAGE;

	if (rnd(2)) {
		MUST(!madvise(p, n * PAGE, MADV_DONTNEED));
	} else {
		settle(m); /* what a kernel writes just then may come before or after */
		MUST(!sys3(SYS_madvise, p, n * PAGE, MADV_DONTNEED));
	}
	memset((char *)m->want[a] + from * PAGE, 0, n * PAGE);
}

static void unmap(struct model *m)
{
	uint32_t a = rnd(ARRAYS), from = rnd(nr), n = 1 + rnd(nr - from);
	char *p = (char *)m->mem[a] + from * PAGE;

	/* What a raw call takes away under a kernel may be put to use before the device hears of it. */
	settle(m);
	if (rnd(2))
		MUST(!munmap(p, n * PAGE));
	else
		MUST(!sys2(SYS_munmap, p, n * PAGE));
	MUST(mmap(p, n * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == p);
	madvise(p, n * PAGE, MADV_HUGEPAGE);
	memset((char *)m->want[a] + from * PAGE, 0, n * PAGE);
}

/* To another place, and new memory where it was: then the two change roles. */
static void move(struct model *m)
{
	uint32_t a = rnd(ARRAYS), b = (a + 1 + rnd(ARRAYS - 1)) % ARRAYS;
	uint32_t from = rnd(nr), to = rnd(nr), most = nr - (from > to ? from : to),
		 n = 1 + rnd(most < SMALL ? most : SMALL);
	char *p = (char *)m->mem[a] + from * PAGE, *q = (char *)m->mem[b] + to * PAGE;
	bool raw = rnd(2);

	settle(m);
	/* A piece at a time: mremap() takes one mapping, and there may be several. */
	for (uint32_t i = 0; i < n; i++) {
		char *x = p + i * PAGE, *y = q + i * PAGE;

		if (raw)
			MUST(sys5(SYS_mremap, x, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, y) == (long)y);
		else
			MUST(mremap(x, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, y) == y);
	}
	MUST(mmap(p, n * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == p);
	memcpy((char *)m->want[b] + to * PAGE, (char *)m->want[a] + from * PAGE, n * PAGE);
	memset((char *)m->want[a] + from * PAGE, 0, n * PAGE);
}

static void protect(struct model *m)
{
	uint32_t a = rnd(ARRAYS), from, n, by = 1;

	MUST(!mprotect(m->mem[a], nr * PAGE, PROT_READ));
	a_range(&from, &n);
	MUST(!hmm_cl_arg(m->inc, 0, m->mem[a] + from, n * 4, HMM_CL_READ_WRITE));
	MUST(!hmm_cl_value(m->inc, 1, &by, sizeof(by)));
	MUST(launch_plain(m->inc, n) == -EPERM);
	settle(m);
	MUST(same(m, a, from, n));
	MUST(!mprotect(m->mem[a], nr * PAGE, PROT_READ | PROT_WRITE));
}

static void a_fork(struct model *m)
{
	bool raw = rnd(4) == 0;
	int status;
	pid_t pid;

	settle(m);
	if (raw)
		MUST(!hmm_cl_wait(m->w.cl));
	pid = raw ? (pid_t)sys5(SYS_clone, SIGCHLD, 0, 0, 0, 0) : fork();
	if (!pid) {
		for (unsigned a = 0; a < ARRAYS; a++)
			if (!same(m, a, 0, N))
				_exit(1);
		_exit(0);
	}
	if (rnd(2))
		cpu_write(m);
	if (rnd(2))
		run_inc(m);
	MUST(waitpid(pid, &status, 0) == pid);
	MUST(!status);
}

static void prefetch(struct model *m)
{
	uint32_t a = rnd(ARRAYS), from, n;

	a_range(&from, &n);
	MUST(!hmm_cl_prefetch(m->w.cl, m->mem[a] + from, n * 4, rnd(4)));
}

static void advise(struct model *m)
{
	uint32_t a = rnd(ARRAYS), from, n;

	a_range(&from, &n);
	MUST(!hmm_cl_advise(m->w.cl, m->mem[a] + from, n * 4, rnd(8) < 5 ? 0 : rnd(5)));
}

static void release(struct model *m)
{
	uint32_t a = rnd(ARRAYS), from, n;

	a_range(&from, &n);
	MUST(!hmm_cl_release(m->w.cl, m->mem[a] + from, n * 4));
}

static void run(unsigned flags, uint32_t npages, unsigned steps)
{
	static void (*const op[])(struct model * m) = {
		run_inc,   run_inc,   run_inc, run_add, run_add, run_add, run_fill, cpu_read, cpu_read, cpu_write,
		cpu_write, cpu_write, drop,    unmap,   move,    protect, a_fork,   prefetch, advise,   release};
	/* Three and a half of the arrays. */
	struct hmm_cl_params p = {.memory = 7ul * npages * PAGE / 2, .flags = flags};
	struct model m = {0};
	struct hmm_cl_stats st;
	void *q;

	nr = npages;
	MUST(!world_open(&m.w, &p));
	m.inc = kernel(&m.w, "inc");
	m.add = kernel(&m.w, "add");
	m.fill = kernel(&m.w, "fill");
	for (unsigned a = 0; a < ARRAYS; a++) {
		MUST(!hmm_cl_alloc(m.w.cl, nr * PAGE, &q));
		m.mem[a] = q;
		m.want[a] = calloc(N, 4);
	}
	for (step = 0; step < steps; step++)
		op[rnd(sizeof(op) / sizeof(op[0]))](&m);
	m.pending = true;
	settle(&m);
	st = stats(&m.w);
	for (unsigned a = 0; a < ARRAYS; a++) {
		MUST(!memcmp(m.mem[a], m.want[a], nr * PAGE));
		free(m.want[a]);
	}
	/* It did what it is meant to. */
	MUST(steps < 500 || (st.evictions && st.bytes_in && st.bytes_out && st.launches > steps / 4));
	hmm_cl_kernel_close(m.inc);
	hmm_cl_kernel_close(m.add);
	hmm_cl_kernel_close(m.fill);
	for (unsigned a = 0; a < ARRAYS; a++)
		hmm_cl_free(m.w.cl, m.mem[a], nr * PAGE);
	MUST(!world_close(&m.w));
}

int main(int argc, char **argv)
{
	unsigned steps = argc > 2 ? (unsigned)atoi(argv[2]) : 500;
	unsigned rounds = argc > 1 ? 1 : getenv("HMM_TEST_LONG") ? 40 : 2;

	seed = argc > 1 ? strtoull(argv[1], NULL, 0) : (uint64_t)getpid() * 2654435761u;
	for (unsigned i = 0; i < rounds; i++, seed++) {
		printf("seed %llu\n", (unsigned long long)seed);
		fflush(stdout);
		rng = seed;
		run(seed & 1 ? HMM_CL_COPIES : 0, SMALL, steps);
		if (!i || argc > 1)
			run(0, LARGE, steps / 20);
	}
	return 0;
}
