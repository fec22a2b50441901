/* SPDX-License-Identifier: MIT */
/*
 * A file copier on plain malloc memory, through hmm_uring.
 *
 *	copy [-b BYTES] [-q DEPTH] [-n TIMES] [-d] [-p] FROM TO
 *	copy --ratio [same options] FROM TO
 *	copy --torture SECONDS [same options] FROM TO
 *
 * Buffers are malloc's, and are freed and had anew as in any program that thinks
 * of them as of memory: each has come and gone many times before the end.  -d
 * opens files with O_DIRECT; -p registers nothing.  --ratio copies with and
 * without registered buffers in turns, in one run, and says by how much the one
 * is faster.  --torture copies again and again, beside a thread that frees and
 * maps at random, buffers of the copy among the rest, and compares each copy.
 */
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "hmm_uring.h"

#define TURNS 9u

static struct {
	size_t block;
	unsigned depth, times, torture;
	bool direct, plain, ratio;
	const char *from, *to;
} opt = {.block = 65536, .depth = 16, .times = 1};

/* A block on its way: read, then written. */
struct piece {
	char *buf;
	int64_t offset;
	size_t len;
	bool written;
};

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static uint64_t cpu_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static void fail(const char *what, int rc)
{
	fprintf(stderr, "copy: %s: %s\n", what, strerror(-rc));
	exit(1);
}

static char *buffer(void)
{
	char *p = opt.direct ? aligned_alloc(4096, opt.block) : malloc(opt.block);

	if (!p)
		fail("memory", -ENOMEM);
	return p;
}

/* To be freed by another thread, who must not be waited for: where there is no room they are freed here. */
static _Atomic(char *) freed_there[8];
static bool beside; /* of who copies */

static void give_back(char *buf)
{
	for (unsigned i = 0; beside && buf && i < sizeof(freed_there) / sizeof(freed_there[0]); i++)
		buf = atomic_exchange(&freed_there[i], buf);
	free(buf);
}

static void free_what_was_given(void)
{
	for (unsigned i = 0; i < sizeof(freed_there) / sizeof(freed_there[0]); i++)
		free(atomic_exchange(&freed_there[i], NULL));
}

static int open_file(const char *path, int flags)
{
	int fd = open(path, flags | O_CLOEXEC | (opt.direct ? O_DIRECT : 0), 0666);

	if (fd < 0)
		fail(path, -errno);
	return fd;
}

static bool piece_begin(struct hmm_uring *u, struct piece *p, int from, int64_t *next, int64_t size)
{
	int rc;

	if (*next >= size)
		return false;
	p->offset = *next;
	p->len = (uint64_t)(size - *next) < opt.block ? (size_t)(size - *next) : opt.block;
	p->written = false;
	*next += (int64_t)p->len;
	/* O_DIRECT knows whole sectors; what is behind the end does not come. */
	rc = hmm_uring_read(u, from, p->buf, opt.direct ? opt.block : p->len, p->offset, p);
	if (rc)
		fail("read", rc);
	return true;
}

/* Nanoseconds that it took. */
static uint64_t copy_once(struct hmm_uring *u, int from, int to, int64_t size)
{
	struct piece piece[256];
	unsigned under_way = 0, done_with = 0;
	int64_t next = 0;
	uint64_t t0 = now_ns();

	for (unsigned i = 0; i < opt.depth; i++) {
		piece[i].buf = buffer();
		under_way += piece_begin(u, &piece[i], from, &next, size);
	}
	while (under_way) {
		struct hmm_uring_done done;
		struct piece *p;
		int rc = hmm_uring_wait(u, &done);

		if (rc)
			fail("wait", rc);
		p = done.user;
		if (done.res < (int)p->len)
			fail(p->written ? opt.to : opt.from, done.res < 0 ? done.res : -EIO);
		if (!p->written) {
			p->written = true;
			rc = hmm_uring_write(u, to, p->buf, opt.direct ? opt.block : p->len, p->offset, p);
			if (rc)
				fail("write", rc);
			continue;
		}
		/* Now and then a buffer is given back, and another one had. */
		if (++done_with % 64 == 0) {
			give_back(p->buf);
			p->buf = buffer();
		}
		under_way -= !piece_begin(u, p, from, &next, size);
	}
	for (unsigned i = 0; i < opt.depth; i++)
		give_back(piece[i].buf);
	if (opt.direct && size % (int64_t)opt.block && ftruncate(to, size))
		fail(opt.to, -errno);
	return now_ns() - t0;
}

static struct hmm_uring *ring(struct umm_space *space, bool plain)
{
	struct hmm_uring_params params = {.depth = opt.depth, .flags = plain ? HMM_URING_PLAIN : 0};
	struct hmm_uring *u;
	int rc;

	rc = hmm_uring_open(space, &params, &u);
	if (rc)
		fail("io_uring", rc);
	return u;
}

static int by_size(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

/* Each turn one after the other, and first the one, then the other: what else the machine does meets both. */
static void ratio(struct umm_space *space, int from, int to, int64_t size)
{
	struct hmm_uring *u[2] = {ring(space, false), ring(space, true)};
	double speed[2][TURNS], each[TURNS], cpu[TURNS], bytes = (double)size * opt.times;
	struct hmm_uring_stats st;

	for (unsigned turn = 0; turn < TURNS; turn++) {
		uint64_t ns[2] = {0, 0}, busy[2] = {0, 0};

		for (unsigned i = 0; i < opt.times; i++)
			for (unsigned k = 0; k < 2; k++) {
				unsigned w = (k + turn) % 2;
				uint64_t before = cpu_ns();

				ns[w] += copy_once(u[w], from, to, size);
				busy[w] += cpu_ns() - before;
			}
		for (unsigned k = 0; k < 2; k++)
			speed[k][turn] = bytes / (double)ns[k];
		each[turn] = (double)ns[1] / (double)ns[0];
		cpu[turn] = (double)busy[1] / (double)busy[0];
	}
	for (unsigned k = 0; k < 2; k++)
		qsort(speed[k], TURNS, sizeof(double), by_size);
	qsort(each, TURNS, sizeof(double), by_size);
	qsort(cpu, TURNS, sizeof(double), by_size);
	hmm_uring_stats(u[0], &st);
	printf("registered %.2f GB/s, plain %.2f GB/s, registered is %.2f times as fast (%.2f to %.2f in %u turns)\n",
	       speed[0][TURNS / 2], speed[1][TURNS / 2], each[TURNS / 2], each[0], each[TURNS - 1], TURNS);
	printf("CPU time of plain copies by that of registered ones: %.2f (%.2f to %.2f)\n", cpu[TURNS / 2], cpu[0],
	       cpu[TURNS - 1]);
	printf("of %lu transfers %lu with a registered buffer; cache: %lu hits, %lu misses, %lu invalidated\n",
	       (unsigned long)(st.fixed + st.plain), (unsigned long)st.fixed, (unsigned long)st.reg.hits,
	       (unsigned long)st.reg.misses, (unsigned long)st.reg.invalidated);
	hmm_uring_close(u[0]);
	hmm_uring_close(u[1]);
}

/* ------------------------------------------------------------------- torture */

static atomic_bool stop;

static void *map_at_random(void *arg)
{
	unsigned seed = 3;
	char *mine[32] = {0};
	size_t len[32];

	while (!stop) {
		unsigned i = (unsigned)rand_r(&seed) % 32;

		free_what_was_given();
		if (i & 1)
			free(mine[i]);
		else if (mine[i])
			munmap(mine[i], len[i]);
		len[i] = 4096u << rand_r(&seed) % 8;
		mine[i] = i & 1 ? malloc(len[i])
				: mmap(NULL, len[i], PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (!mine[i] || mine[i] == MAP_FAILED)
			fail("memory", -ENOMEM);
		memset(mine[i], (int)i, len[i]);
	}
	for (unsigned i = 0; i < 32; i++) {
		if (i & 1)
			free(mine[i]);
		else if (mine[i])
			munmap(mine[i], len[i]);
	}
	free_what_was_given();
	return NULL;
}

/* Where, and what is there instead: pages of before, or of zeros, say more than that it is wrong. */
static void say_difference(const char *x, const char *y, size_t n, int64_t offset)
{
	size_t first = 0, wrong = 0, zero = 0;

	while (first < n && x[first] == y[first])
		first++;
	for (size_t i = first; i < n; i++) {
		wrong += x[i] != y[i];
		zero += x[i] != y[i] && !y[i];
	}
	fprintf(stderr, "copy: %s is not what %s is: from byte %lld on %zu of %zu bytes, %zu of them zero\n", opt.to,
		opt.from, (long long)(offset + (int64_t)first), wrong, n - first, zero);
}

static void compare(int64_t size)
{
	int a = open(opt.from, O_RDONLY | O_CLOEXEC), b = open(opt.to, O_RDONLY | O_CLOEXEC);
	static char x[1 << 16], y[1 << 16];
	int64_t offset = 0;
	struct stat st;

	if (a < 0 || b < 0 || fstat(b, &st) || st.st_size != size)
		fail(opt.to, -EIO);
	for (ssize_t n; (n = read(a, x, sizeof(x))) > 0; offset += n)
		if (read(b, y, sizeof(y)) != n || memcmp(x, y, (size_t)n)) {
			say_difference(x, y, (size_t)n, offset);
			exit(1);
		}
	close(a);
	close(b);
}

static void torture(struct umm_space *space, int from, int to, int64_t size)
{
	struct hmm_uring *u = ring(space, false);
	uint64_t until = now_ns() + opt.torture * 1000000000ull;
	struct hmm_uring_stats st;
	unsigned copies = 0;
	pthread_t t;

	/* Each buffer is a mapping, which free() unmaps from inside libc, where no hook sees it. */
	mallopt(M_MMAP_THRESHOLD, 4096);
	if (pthread_create(&t, NULL, map_at_random, NULL))
		fail("thread", -EAGAIN);
	beside = true;
	do {
		if (ftruncate(to, 0))
			fail(opt.to, -errno);
		copy_once(u, from, to, size);
		compare(size);
		copies++;
	} while (now_ns() < until);
	beside = false;
	stop = true;
	pthread_join(t, NULL);
	hmm_uring_stats(u, &st);
	printf("%u copies, each as it should be; of %lu transfers %lu registered, %lu begun again; %lu invalidated\n",
	       copies, (unsigned long)(st.fixed + st.plain), (unsigned long)st.fixed, (unsigned long)st.again,
	       (unsigned long)st.reg.invalidated);
	if (!st.fixed || !st.reg.invalidated)
		fail("nothing was registered, or nothing of it was freed", -ENODATA);
	hmm_uring_close(u);
}

static void options(int argc, char **argv)
{
	int i;

	for (i = 1; i < argc && argv[i][0] == '-'; i++) {
		const char *o = argv[i];

		if (!strcmp(o, "-d"))
			opt.direct = true;
		else if (!strcmp(o, "-p"))
			opt.plain = true;
		else if (!strcmp(o, "--ratio"))
			opt.ratio = true;
		else if (!strcmp(o, "-b") && i + 1 < argc)
			opt.block = strtoull(argv[++i], NULL, 0);
		else if (!strcmp(o, "-q") && i + 1 < argc)
			opt.depth = (unsigned)atoi(argv[++i]);
		else if (!strcmp(o, "-n") && i + 1 < argc)
			opt.times = (unsigned)atoi(argv[++i]);
		else if (!strcmp(o, "--torture") && i + 1 < argc)
			opt.torture = (unsigned)atoi(argv[++i]);
		else
			i = argc;
	}
	if (i + 2 != argc || opt.block < 4096 || opt.block % 4096 || opt.block > 1 << 28 || !opt.depth ||
	    opt.depth > 256 || !opt.times) {
		fprintf(stderr, "usage: copy [--ratio | --torture SECONDS] [-b BYTES] [-q DEPTH] [-n TIMES] [-d] [-p] "
				"FROM TO\n");
		exit(2);
	}
	opt.from = argv[i];
	opt.to = argv[i + 1];
}

int main(int argc, char **argv)
{
	struct umm_space *space;
	int from, to, rc;
	int64_t size;

	options(argc, argv);
	from = open_file(opt.from, O_RDONLY);
	to = open_file(opt.to, O_WRONLY | O_CREAT | O_TRUNC);
	size = lseek(from, 0, SEEK_END); /* also of a block device */
	if (size < 0)
		fail(opt.from, -errno);
	rc = umm_space_open_self(&space);
	if (rc)
		fail("address space", rc);
	if (opt.ratio) {
		ratio(space, from, to, size);
	} else if (opt.torture) {
		torture(space, from, to, size);
	} else {
		struct hmm_uring *u = ring(space, opt.plain);

		for (unsigned i = 0; i < opt.times; i++)
			copy_once(u, from, to, size);
		hmm_uring_close(u);
	}
	umm_space_close(space);
	return 0;
}
