/* SPDX-License-Identifier: MIT */
/*
 * The registration cache.  Its device is a pipe: what vmsplice() puts there are
 * the pages themselves, held whatever becomes of the memory, and can be looked at
 * as often as one likes.  Beside it stands a cache as one gets it from hooking
 * munmap() alone, which is shown to be wrong by the same test.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>

#include "../../skip.h"
#include "fake.h"
#include "hmm_reg.h"
#include "umm/hooks.h"
#include "umm/internal.h"
#include "umm/sys.h"

#define PAGE 4096ul
#define NR 64u
#define SIZE (NR * PAGE)

/* The library that the hooks come from leaves this one to who includes them. */
void *mmap(void *addr, size_t len, int prot, int flags, int fd, off_t offset)
{
	return umm_hooked_mmap(addr, len, prot, flags, fd, offset);
}

/* ------------------------------------------------------------ the pipe device */

#define PIPE_PAGES 16u /* what is held of a range: its first pages */

struct held {
	int fd[2];
	bool used;
};

static struct {
	pthread_mutex_t lock;
	struct held held[64]; /* by cookie */
	unsigned maps, unmaps, now, bad;
	uint64_t pages; /* mapped in all */
	int fail;       /* map gives this */
} P;

static int pipe_map(struct hmm_device *dev, struct hmm_range *r, const struct hmm_map_run *run)
{
	struct iovec v = {(void *)(uintptr_t)run->addr, (run->npages < PIPE_PAGES ? run->npages : PIPE_PAGES) * PAGE};
	int fd[2], rc = P.fail;

	if (rc)
		return rc;
	if (pipe2(fd, O_CLOEXEC))
		return -errno;
	if (vmsplice(fd[1], &v, 1, SPLICE_F_NONBLOCK) != (ssize_t)v.iov_len) {
		sys_close(fd[0]);
		sys_close(fd[1]);
		return -EFAULT;
	}
	pthread_mutex_lock(&P.lock);
	for (r->cookie = 1; P.held[r->cookie].used;)
		r->cookie++;
	P.held[r->cookie] = (struct held){{fd[0], fd[1]}, true};
	P.maps++;
	P.pages += run->npages;
	P.now++;
	pthread_mutex_unlock(&P.lock);
	return 0;
}

static void pipe_unmap(struct hmm_device *dev, struct hmm_range *r, const struct hmm_map_run *run,
		       const struct umm_change *why, uint64_t *dirty)
{
	pthread_mutex_lock(&P.lock);
	P.bad += !P.held[r->cookie].used || (why && why->late);
	sys_close(P.held[r->cookie].fd[0]);
	sys_close(P.held[r->cookie].fd[1]);
	P.held[r->cookie].used = false;
	P.unmaps++;
	P.now--;
	pthread_mutex_unlock(&P.lock);
}

static const struct hmm_device_ops pipe_ops = {
	.name = "pipe", .caps = HMM_DEV_MAP | HMM_DEV_PINNED, .map = pipe_map, .unmap = pipe_unmap};
static struct hmm_device pipe_dev = {.ops = &pipe_ops};

/* What the device sees in the first byte of page @nr of a registration. */
static int device_sees(uint64_t cookie, unsigned nr)
{
	static char buf[PIPE_PAGES * PAGE];
	int fd[2], sees = -1;
	ssize_t n;

	if (pipe2(fd, O_CLOEXEC))
		return -1;
	n = tee(P.held[cookie].fd[0], fd[1], PIPE_PAGES * PAGE, SPLICE_F_NONBLOCK);
	if (n > 0 && read(fd[0], buf, (size_t)n) == n && (size_t)n > nr * PAGE)
		sees = (unsigned char)buf[nr * PAGE];
	close(fd[0]);
	close(fd[1]);
	return sees;
}

/* ------------------------------------------------------------------- fixture */

struct fixture {
	struct umm_space *space;
	struct hmm_reg_cache *c;
	char *mem; /* SIZE, with nobody's page on either side */
};

static int open_with(void **state, const struct hmm_reg_params *params)
{
	struct fixture *f = calloc(1, sizeof(*f));
	char *p;

	memset(&P, 0, sizeof(P));
	pthread_mutex_init(&P.lock, NULL);
	if (umm_space_open_self(&f->space))
		return -1;
	umm_hooks_set(f->space);
	if (hmm_reg_cache_open(f->space, NULL, &pipe_dev, params, &f->c))
		return -1;
	p = mmap(NULL, SIZE + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	f->mem = p + PAGE;
	if (mmap(f->mem, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED)
		return -1;
	madvise(f->mem, SIZE, MADV_NOHUGEPAGE);
	*state = f;
	return 0;
}

static int setup(void **state)
{
	const struct hmm_reg_params params = {.flags = geteuid() ? HMM_REG_HOOKED : 0};

	return open_with(state, &params);
}

static int setup_with_limits(void **state)
{
	const struct hmm_reg_params params = {
		.max_bytes = 8 * PAGE, .max_entries = 3, .flags = geteuid() ? HMM_REG_HOOKED : 0};

	return open_with(state, &params);
}

static int setup_in_sync(void **state)
{
	const struct hmm_reg_params params = {.flags = HMM_REG_SYNC | (geteuid() ? HMM_REG_HOOKED : 0)};

	return open_with(state, &params);
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	hmm_reg_cache_close(f->c);
	if (P.now || P.bad || P.maps != P.unmaps) {
		print_error("%u registrations left, %u calls with nonsense\n", P.now, P.bad);
		return -1;
	}
	umm_hooks_set(NULL);
	umm_space_close(f->space);
	munmap(f->mem - PAGE, SIZE + 2 * PAGE);
	free(f);
	return 0;
}

static struct hmm_reg_stats stats(struct fixture *f)
{
	struct hmm_reg_stats st;

	hmm_reg_stats(f->c, &st);
	return st;
}

static struct hmm_reg *get(struct fixture *f, unsigned first, unsigned n, unsigned flags)
{
	struct hmm_reg *reg = NULL;

	assert_int_equal(hmm_reg_get(f->c, f->mem + first * PAGE, n * PAGE, flags, 0, &reg), 0);
	assert_true(reg->start <= (uintptr_t)f->mem + first * PAGE);
	assert_true(reg->end >= (uintptr_t)f->mem + (first + n) * PAGE);
	return reg;
}

static void get_put(struct fixture *f, unsigned first, unsigned n)
{
	hmm_reg_put(f->c, get(f, first, n, 0));
}

/* ------------------------------------------------------------ what a cache does */

static void a_hit_is_the_same(void **state)
{
	struct fixture *f = *state;
	struct hmm_reg *a = get(f, 2, 4, 0), *b;

	hmm_reg_put(f->c, a);
	assert_int_equal(P.now, 1); /* released when there is need */
	assert_int_equal(hmm_reg_get(f->c, f->mem + 3 * PAGE + 5, 7, 0, 0, &b), 0);
	assert_ptr_equal(a, b);
	hmm_reg_put(f->c, b);
	assert_int_equal(stats(f).hits, 1);
	assert_int_equal(stats(f).misses, 1);
	assert_int_equal(stats(f).entries, 1);
	assert_int_equal(stats(f).bytes, 4 * PAGE);
	/* To write needs another one, which serves readers, too. */
	b = get(f, 2, 4, HMM_MAP_WRITE);
	assert_ptr_not_equal(a, b);
	assert_true(b->write);
	hmm_reg_put(f->c, b);
	assert_ptr_equal(get(f, 2, 4, 0), b);
	hmm_reg_put(f->c, b);
	assert_int_equal(P.now, 1);
}

static void neighbours_become_one(void **state)
{
	struct fixture *f = *state;
	struct hmm_reg *a = get(f, 0, 2, 0), *b;

	get_put(f, 4, 2);
	assert_int_equal(stats(f).entries, 2);
	/* It closes the gap; what is in use goes on. */
	b = get(f, 2, 2, 0);
	assert_int_equal(b->start, (uintptr_t)f->mem);
	assert_int_equal(b->end, (uintptr_t)f->mem + 6 * PAGE);
	assert_int_equal(stats(f).entries, 1);
	assert_int_equal(stats(f).merged, 2);
	assert_int_equal(P.now, 2);
	hmm_reg_put(f->c, a);
	assert_int_equal(P.now, 1);
	hmm_reg_put(f->c, b);
	/* Overlapping ones; not one with a page between. */
	get_put(f, 5, 3);
	assert_int_equal(stats(f).entries, 1);
	assert_int_equal(stats(f).bytes, 8 * PAGE);
	get_put(f, 9, 1);
	assert_int_equal(stats(f).entries, 2);
	/* A neighbour that cannot be had as asked is left alone. */
	assert_int_equal(mprotect(f->mem + 9 * PAGE, PAGE, PROT_READ), 0);
	get_put(f, 9, 1);
	b = get(f, 10, 1, HMM_MAP_WRITE);
	assert_int_equal(b->start, (uintptr_t)f->mem + 10 * PAGE);
	hmm_reg_put(f->c, b);
}

/* Who goes through a buffer for the first time does not register with each step all that lies behind. */
static void a_walk_costs_little_more_than_its_length(void **state)
{
	struct fixture *f = *state;

	for (unsigned i = 0; i < NR; i++)
		get_put(f, i, 1);
	assert_int_equal(stats(f).entries, 1);
	/* Each page once for each doubling of what it is part of. */
	assert_true(P.pages <= NR * 7);
}

static void the_least_recently_used_goes(void **state)
{
	struct fixture *f = *state; /* three entries, eight pages */
	struct hmm_reg *a;

	get_put(f, 0, 1);
	get_put(f, 2, 1);
	get_put(f, 4, 1);
	get_put(f, 0, 1);
	get_put(f, 6, 1); /* for which 2 goes */
	assert_int_equal(stats(f).evicted, 1);
	assert_int_equal(stats(f).misses, 4);
	get_put(f, 0, 1);
	get_put(f, 4, 1);
	assert_int_equal(stats(f).misses, 4);
	get_put(f, 2, 1);
	assert_int_equal(stats(f).misses, 5);
	/* By bytes; what is in use stays, and goes when it is put. */
	a = get(f, 10, 7, 0);
	assert_int_equal(stats(f).entries, 2);
	get_put(f, 20, 7);
	assert_true(stats(f).bytes <= 14 * PAGE);
	get_put(f, 30, 8);
	hmm_reg_put(f->c, a);
	assert_true(stats(f).bytes <= 8 * PAGE);
	/* More than the limit at once is had, and not kept. */
	a = get(f, 40, 20, 0);
	hmm_reg_put(f->c, a);
	assert_int_equal(P.now, 0);
}

static void errors(void **state)
{
	struct fixture *f = *state;
	struct hmm_reg *reg;

	assert_int_equal(hmm_reg_get(f->c, f->mem, 0, 0, 0, &reg), -EINVAL);
	assert_int_equal(hmm_reg_get(f->c, (void *)-PAGE, 2 * PAGE, 0, 0, &reg), -EINVAL);
	assert_int_equal(hmm_reg_get(f->c, f->mem, 1, 128, 0, &reg), -EINVAL);
	assert_int_equal(hmm_reg_get(f->c, f->mem - PAGE, 1, 0, 0, &reg), -EFAULT);
	assert_int_equal(munmap(f->mem + 5 * PAGE, PAGE), 0);
	assert_int_equal(hmm_reg_get(f->c, f->mem, SIZE, 0, 0, &reg), -EFAULT);
	assert_int_equal(mprotect(f->mem, PAGE, PROT_READ), 0);
	assert_int_equal(hmm_reg_get(f->c, f->mem, PAGE, HMM_MAP_WRITE, 0, &reg), -EPERM);
	P.fail = -EIO;
	assert_int_equal(hmm_reg_get(f->c, f->mem, PAGE, 0, 0, &reg), -EIO);
	P.fail = 0;
	assert_int_equal(stats(f).failed, 4);
	assert_int_equal(stats(f).entries, 0);
}

/* -------------------------------------------------------- what others get wrong */

/* A cache that knows of munmap() through libc, and of nothing else. */
struct plain {
	struct hmm_range *r;
};

static bool plain_knows(struct umm_notifier *n, const struct umm_change *why, uint64_t seq)
{
	umm_notifier_set_seq(n, seq);
	return true;
}

static const struct umm_notifier_ops plain_ops = {.invalidate = plain_knows};

struct scene {
	void (*change)(struct fixture *f);
	int now;          /* what is in the first byte after it */
	bool plain_wrong; /* the plain one does not see that */
	int error;        /* instead: a get afterwards gives it */
	bool raw;         /* the kernel must tell of it */
};

static void play(struct fixture *f, const struct scene *s)
{
	static struct umm_notifier blind; /* a test that fails leaves it where it is */
	struct hmm_range plain = {.start = (uintptr_t)f->mem, .end = (uintptr_t)f->mem + 4 * PAGE};
	const struct hmm_map_run run = {.addr = plain.start, .npages = 4};
	struct hmm_reg *reg;
	unsigned held;
	int rc;

	if (s->raw && geteuid())
		skip_because("an ordinary user is not told of raw calls");
	memset(f->mem, 1, SIZE);
	assert_int_equal(umm_notifier_insert(&blind, f->space, plain.start, 4 * PAGE, &plain_ops), 0);
	assert_int_equal(pipe_map(&pipe_dev, &plain, &run), 0);
	reg = get(f, 0, 4, 0);
	hmm_reg_put(f->c, reg);
	assert_int_equal(device_sees(reg->range->cookie, 0), 1);
	held = P.now;
	s->change(f);
	/* A call that waits for us goes on when nothing is held any more. */
	if (!s->raw)
		assert_int_equal(P.now, held - 1);
	rc = hmm_reg_get(f->c, f->mem, 4 * PAGE, 0, 0, &reg);
	assert_int_equal(rc, s->error);
	if (!rc) {
		assert_int_equal(device_sees(reg->range->cookie, 0), s->now);
		hmm_reg_put(f->c, reg);
	}
	assert_true(stats(f).invalidated >= 1);
	/* The other one still has the pages of before. */
	if (s->plain_wrong)
		assert_int_equal(device_sees(plain.cookie, 0), 1);
	pipe_unmap(&pipe_dev, &plain, &run, NULL, NULL);
	umm_notifier_remove(&blind);
}

static void map_again(struct fixture *f)
{
	assert_ptr_equal(mmap(f->mem, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0),
			 f->mem);
	memset(f->mem, 2, 4 * PAGE);
}

static void do_raw_munmap(struct fixture *f)
{
	assert_int_equal(sys2(SYS_munmap, f->mem, 4 * PAGE), 0);
	assert_int_equal(sys6(SYS_mmap, f->mem, 4 * PAGE, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0),
			 (long)f->mem);
	memset(f->mem, 2, 4 * PAGE);
}

static void raw_munmap(void **state)
{
	play(*state, &(struct scene){do_raw_munmap, .now = 2, .plain_wrong = true, .raw = true});
}

static void do_munmap(struct fixture *f)
{
	assert_int_equal(munmap(f->mem, 4 * PAGE), 0);
	map_again(f);
}

static void munmap_by_libc(void **state)
{
	play(*state, &(struct scene){do_munmap, .now = 2});
}

static void do_map_fixed(struct fixture *f)
{
	map_again(f);
}

static void map_fixed_over(void **state)
{
	play(*state, &(struct scene){do_map_fixed, .now = 2, .plain_wrong = true});
}

static void do_raw_map_fixed(struct fixture *f)
{
	assert_int_equal(sys6(SYS_mmap, f->mem, 4 * PAGE, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0),
			 (long)f->mem);
	memset(f->mem, 2, 4 * PAGE);
}

static void raw_map_fixed_over(void **state)
{
	play(*state, &(struct scene){do_raw_map_fixed, .now = 2, .plain_wrong = true, .raw = true});
}

static void do_protect(struct fixture *f)
{
	assert_int_equal(mprotect(f->mem, 4 * PAGE, PROT_READ), 0);
	get_put(f, 0, 4);
	assert_int_equal(mprotect(f->mem, 4 * PAGE, PROT_NONE), 0);
}

static void mprotect_read_then_none(void **state)
{
	play(*state, &(struct scene){do_protect, .error = -EFAULT, .plain_wrong = true});
}

static void do_dontneed(struct fixture *f)
{
	assert_int_equal(madvise(f->mem, 4 * PAGE, MADV_DONTNEED), 0);
}

static void dontneed(void **state)
{
	play(*state, &(struct scene){do_dontneed, .now = 0, .plain_wrong = true});
}

static void do_raw_dontneed(struct fixture *f)
{
	assert_int_equal(sys3(SYS_madvise, f->mem, 4 * PAGE, MADV_DONTNEED), 0);
}

static void raw_dontneed(void **state)
{
	play(*state, &(struct scene){do_raw_dontneed, .now = 0, .plain_wrong = true, .raw = true});
}

static void do_pageout(struct fixture *f)
{
	assert_int_equal(madvise(f->mem, 4 * PAGE, MADV_PAGEOUT), 0);
	f->mem[0] = 3;
}

/* Without swap a plain cache has nothing to get wrong; here it is let go of all the same, so that the page can go. */
static void pageout(void **state)
{
	play(*state, &(struct scene){do_pageout, .now = 3});
}

static pid_t child;
static int wait_here[2];

static void do_fork(struct fixture *f)
{
	assert_int_equal(pipe(wait_here), 0);
	child = fork();
	if (!child) {
		char c;

		close(wait_here[1]);
		_exit(read(wait_here[0], &c, 1) != 0);
	}
	close(wait_here[0]);
	memset(f->mem, 4, 4 * PAGE); /* other pages than the child's, and than those of before */
}

static void fork_then_the_parent_writes(void **state)
{
	int status;

	play(*state, &(struct scene){do_fork, .now = 4, .plain_wrong = true});
	close(wait_here[1]);
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_int_equal(status, 0);
}

static void a_child_is_served_nothing(void **state)
{
	struct fixture *f = *state;
	struct hmm_reg *reg, *held;
	int status;
	pid_t pid;

	get_put(f, 0, 4);
	held = get(f, 8, 4, 0);
	pid = fork();
	if (!pid) {
		int rc = hmm_reg_get(f->c, f->mem, PAGE, 0, 0, &reg);

		hmm_reg_put(f->c, held); /* as code that cleans up behind itself does */
		hmm_reg_flush(f->c, true);
		hmm_reg_cache_close(f->c);
		_exit(rc != -ESTALE);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	hmm_reg_put(f->c, held);
	get_put(f, 0, 4);
}

/* What was lost is had again without beginning anew; and told late, it is dropped by who comes next. */
static void lost_and_had_again(void **state)
{
	struct fixture *f = *state;
	struct hmm_reg *a = get(f, 0, 4, 0);
	struct umm_change c = {
		.event = UMM_EVENT_UNMAP, .start = a->start, .end = a->start + PAGE, .blockable = true, .late = true};

	hmm_reg_put(f->c, a);
	assert_int_equal(umm_invalidate_begin(f->space, &c), 0);
	umm_invalidate_end(f->space, &c);
	assert_int_equal(P.now, 1);
	assert_ptr_equal(get(f, 1, 1, 0), a);
	hmm_reg_put(f->c, a);
	assert_int_equal(stats(f).renewed, 1);
	assert_int_equal(P.now, 1);
	assert_int_equal(P.unmaps, 1);
	assert_int_equal(umm_invalidate_begin(f->space, &c), 0);
	umm_invalidate_end(f->space, &c);
	hmm_reg_flush(f->c, false);
	assert_int_equal(P.now, 0);
	assert_int_equal(stats(f).entries, 0);
	assert_int_equal(stats(f).invalidated, 2);
}

bool __real_hmm_range_mapped(struct hmm_range *range, uint64_t start, uint64_t end, bool write);
bool __wrap_hmm_range_mapped(struct hmm_range *range, uint64_t start, uint64_t end, bool write);
static struct umm_space *changes;

/* A thread that asks whether what it has is lost. */
static struct asker {
	struct hmm_reg *reg; /* NULL: nobody asks */
	pthread_t thread;
	_Atomic pid_t tid; /* it asks now */
	atomic_bool answered, lost;
} asker;

static void *ask_main(void *arg)
{
	struct asker *a = arg;

	atomic_store(&a->tid, (pid_t)sys0(SYS_gettid));
	atomic_store(&a->lost, hmm_reg_lost(a->reg));
	atomic_store(&a->answered, true);
	return NULL;
}

/* Returns when it has its answer, or sleeps before it. */
static void somebody_asks(struct asker *a)
{
	char path[64], state[64];

	assert_int_equal(pthread_create(&a->thread, NULL, ask_main, a), 0);
	while (!atomic_load(&a->tid))
		sched_yield();
	snprintf(path, sizeof(path), "/proc/self/task/%d/stat", (int)atomic_load(&a->tid));
	do {
		int fd = open(path, O_RDONLY | O_CLOEXEC);
		ssize_t n = fd < 0 ? 0 : read(fd, state, sizeof(state) - 1);

		if (fd >= 0)
			close(fd);
		state[n > 0 ? n : 0] = 0;
	} while (!atomic_load(&a->answered) && !strstr(state, ") S "));
}

/* Once, where it is said: a change before somebody looks whether it is mapped. */
bool __wrap_hmm_range_mapped(struct hmm_range *range, uint64_t start, uint64_t end, bool write)
{
	struct umm_change c = {.event = UMM_EVENT_CLEAR, .start = start, .end = end, .blockable = true};
	struct umm_space *space = changes;

	changes = NULL;
	if (space && asker.reg)
		somebody_asks(&asker);
	if (space) {
		umm_invalidate_begin(space, &c);
		umm_invalidate_end(space, &c);
	}
	return __real_hmm_range_mapped(range, start, end, write);
}

/* What is lost is counted once, however often that happens: else everybody looks for it for ever. */
static void lost_while_had_again(void **state)
{
	struct fixture *f = *state;
	struct umm_change c = {.event = UMM_EVENT_CLEAR,
			       .start = (uintptr_t)f->mem,
			       .end = (uintptr_t)f->mem + PAGE,
			       .blockable = true};

	get_put(f, 0, 4);
	assert_int_equal(stats(f).lost, 0);
	assert_int_equal(umm_invalidate_begin(f->space, &c), 0);
	umm_invalidate_end(f->space, &c);
	assert_int_equal(stats(f).lost, 1);
	changes = f->space;
	get_put(f, 0, 4);
	assert_null(changes);
	assert_int_equal(stats(f).lost, 0);
	get_put(f, 0, 4);
	assert_int_equal(stats(f).lost, 0);
}

/* Who has it, and asks while it is looked at whether it can be had again, is not told that it is good before it is. */
static void lost_is_not_good_in_between(void **state)
{
	struct fixture *f = *state;
	struct hmm_reg *reg = get(f, 0, 4, 0);
	struct umm_change c = {.event = UMM_EVENT_CLEAR,
			       .start = (uintptr_t)f->mem,
			       .end = (uintptr_t)f->mem + PAGE,
			       .blockable = true};

	assert_int_equal(umm_invalidate_begin(f->space, &c), 0);
	umm_invalidate_end(f->space, &c);
	assert_true(hmm_reg_lost(reg));
	asker.reg = reg;
	changes = f->space;
	get_put(f, 0, 4);
	assert_null(changes);
	pthread_join(asker.thread, NULL);
	asker.reg = NULL;
	assert_true(atomic_load(&asker.lost));
	assert_true(hmm_reg_lost(reg));
	hmm_reg_put(f->c, reg);
}

/* Registered for reading, and written to by the program: there must be no other page then. */
static void what_is_read_only_by_chance(void **state)
{
	struct fixture *f = *state;
	struct hmm_reg *reg = get(f, 0, 4, 0); /* never touched: the zero page, if one does not look out */

	f->mem[0] = 5;
	assert_int_equal(device_sees(reg->range->cookie, 0), 5);
	hmm_reg_put(f->c, reg);
}

int __real_hmm_range_map(struct hmm_range *r, uint64_t start, uint64_t end, unsigned flags, uint64_t deadline_ns);
int __wrap_hmm_range_map(struct hmm_range *r, uint64_t start, uint64_t end, unsigned flags, uint64_t deadline_ns);
static char *replace;

/* Once, when it is told so: what has been watched is replaced before it is mapped. */
int __wrap_hmm_range_map(struct hmm_range *r, uint64_t start, uint64_t end, unsigned flags, uint64_t deadline_ns)
{
	char *p = replace;

	replace = NULL;
	if (p)
		mmap(p, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	return __real_hmm_range_map(r, start, end, flags, deadline_ns);
}

static void what_is_mapped_is_watched(void **state)
{
	struct fixture *f = *state;
	struct hmm_reg *reg;

	if (geteuid())
		skip_because("an ordinary user is not told of raw calls");
	replace = f->mem;
	get_put(f, 0, 4);
	assert_null(replace);
	do_raw_munmap(f);
	reg = get(f, 0, 4, 0);
	assert_int_equal(device_sees(reg->range->cookie, 0), 2);
	hmm_reg_put(f->c, reg);
}

void __real_umm_invalidate_end(struct umm_space *space, const struct umm_change *change);
void __wrap_umm_invalidate_end(struct umm_space *space, const struct umm_change *change);
static char *let_go; /* by an engine: who mirrors it watches it anew as soon as it may */

void __wrap_umm_invalidate_end(struct umm_space *space, const struct umm_change *change)
{
	__real_umm_invalidate_end(space, change);
	if (let_go && change->start <= (uintptr_t)let_go && change->end > (uintptr_t)let_go) {
		let_go = NULL;
		assert_int_equal(umm_space_watch(space, change->start, change->end - change->start), 0);
	}
}

/* Is it told who touches a missing page of the mapping at @p? */
static bool told_of_missing(const char *p)
{
	FILE *f = fopen("/proc/self/smaps", "r");
	unsigned long a, z;
	char line[512];
	bool here = false, told = false;

	assert_non_null(f);
	while (fgets(line, sizeof(line), f)) {
		if (sscanf(line, "%lx-%lx ", &a, &z) == 2)
			here = a <= (uintptr_t)p && (uintptr_t)p < z;
		else if (here && !strncmp(line, "VmFlags:", 8))
			told = strstr(line, " um");
	}
	fclose(f);
	return told;
}

/* Then nobody has to serve it: what is missing there nobody is told of any more. */
static void what_is_let_go_is_watched_as_any_other(void **state)
{
	struct fixture *f = *state;
	uint64_t a = (uintptr_t)f->mem;
	struct hmm_mm *mm;

	assert_int_equal(hmm_mm_open(f->space, &mm), 0);
	assert_int_equal(hmm_mm_manage(mm, a, a + SIZE), 0);
	assert_true(told_of_missing(f->mem));
	let_go = f->mem;
	assert_int_equal(hmm_mm_close(mm), 0);
	assert_null(let_go);
	assert_false(told_of_missing(f->mem));
}

/* What an engine has let go of nobody is told of: it is found that it is watched no more. */
static void let_go_by_an_engine(void **state, bool closed)
{
	struct fixture *f = *state;
	uint64_t a = (uintptr_t)f->mem;
	struct hmm_reg *reg;
	struct hmm_mm *mm;

	if (geteuid())
		skip_because("an ordinary user is not told of raw calls");
	assert_int_equal(hmm_mm_open(f->space, &mm), 0);
	assert_int_equal(hmm_mm_manage(mm, a, a + SIZE), 0);
	memset(f->mem, 1, 4 * PAGE);
	get_put(f, 0, 4);
	if (!closed)
		assert_int_equal(hmm_mm_unmanage(mm, a, a + SIZE), 0);
	assert_int_equal(hmm_mm_close(mm), 0);
	do_raw_munmap(f);
	reg = get(f, 0, 4, 0);
	assert_int_equal(device_sees(reg->range->cookie, 0), 2);
	hmm_reg_put(f->c, reg);
}

static int nowhere_map(struct hmm_device *dev, struct hmm_range *r, const struct hmm_map_run *run)
{
	return 0;
}

static void nowhere_unmap(struct hmm_device *dev, struct hmm_range *r, const struct hmm_map_run *run,
			  const struct umm_change *why, uint64_t *dirty)
{
}

/* A device that reaches its own pages itself leaves them out; who wants all of them mapped is not given that. */
static void what_leaves_own_pages_out_is_not_all(void **state)
{
	struct fixture *f = *state;
	const uint64_t start = (uintptr_t)f->mem, end = start + SIZE;
	struct fake *dev = fake_create(true);
	struct hmm_device *where[NR];
	struct hmm_reg_cache *c;
	struct hmm_reg *reg;
	struct hmm_mm *mm;
	uint64_t moved, misses;
	struct hmm_reg_stats st;
	unsigned left = 0;
	bool mapped[2];
	int rc = hmm_mm_open(f->space, &mm);

	if (rc == -EPERM || rc == -EOPNOTSUPP)
		skip_because("no userfaultfd that moves pages: error %d", -rc);
	assert_int_equal(rc, 0);
	dev->ops.caps |= HMM_DEV_MAP | HMM_DEV_FAULT;
	dev->ops.map = nowhere_map;
	dev->ops.unmap = nowhere_unmap;
	assert_int_equal(hmm_mm_add_device(mm, &dev->dev), 0);
	assert_int_equal(hmm_reg_cache_open(f->space, mm, &dev->dev, NULL, &c), 0);
	memset(f->mem, 5, SIZE);
	assert_int_equal(hmm_migrate_to_device(mm, &dev->dev, start, end, NULL, &moved), 0);
	assert_int_equal(moved, NR);
	assert_int_equal(hmm_reg_get(c, f->mem, SIZE, HMM_MAP_WRITE, 0, &reg), 0);
	mapped[0] = hmm_range_mapped(reg->range, start, end, false);
	hmm_reg_put(c, reg);
	assert_int_equal(hmm_reg_get(c, f->mem, SIZE, HMM_MAP_SYSTEM, 0, &reg), 0);
	mapped[1] = hmm_range_mapped(reg->range, start, end, false);
	assert_int_equal(hmm_where(mm, start, end, where, NULL), 0);
	for (unsigned i = 0; i < NR; i++)
		left += !!where[i];
	hmm_reg_put(c, reg);
	/* It is as good for who does not ask so; also to be written to, as what was there before. */
	hmm_reg_stats(c, &st);
	misses = st.misses;
	for (unsigned i = 0; i < 4; i++) {
		assert_int_equal(hmm_reg_get(c, f->mem, SIZE, i % 2 ? HMM_MAP_WRITE : HMM_MAP_SYSTEM, 0, &reg), 0);
		hmm_reg_put(c, reg);
	}
	hmm_reg_stats(c, &st);
	hmm_reg_cache_close(c);
	assert_int_equal(hmm_mm_close(mm), 0);
	assert_int_equal(dev->refs_total, 0);
	fake_free(dev);
	assert_false(mapped[0]);
	assert_true(mapped[1]);
	assert_int_equal(left, 0);
	assert_int_equal(st.misses, misses);
}

static void an_engine_that_closes(void **state)
{
	let_go_by_an_engine(state, true);
}

static void an_engine_that_lets_go(void **state)
{
	let_go_by_an_engine(state, false);
}

static void *raw_munmap_main(void *arg)
{
	sys2(SYS_munmap, arg, 4 * PAGE);
	return NULL;
}

/* Nobody reads events: another thread's munmap() has freed the addresses, but its event is not read yet. */
static void before_the_event_was_read(void **state)
{
	struct fixture *f = *state;
	struct umm_monitor *m;
	struct hmm_reg *reg;
	pthread_t thread;

	if (geteuid())
		skip_because("an ordinary user is not told of raw calls");
	memset(f->mem, 1, 4 * PAGE);
	get_put(f, 0, 4);
	m = f->space->monitor;
	umm_monitor_del(f->space);
	assert_int_equal(pthread_create(&thread, NULL, raw_munmap_main, f->mem), 0);
	while (sys6(SYS_mmap, f->mem, 4 * PAGE, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) != (long)f->mem)
		sched_yield();
	memset(f->mem, 2, 4 * PAGE);
	reg = get(f, 0, 4, 0);
	assert_int_equal(device_sees(reg->range->cookie, 0), 2);
	hmm_reg_put(f->c, reg);
	assert_int_equal(stats(f).hits, 0);
	pthread_join(thread, NULL);
	assert_int_equal(umm_monitor_add(m, f->space), 0);
}

/* --------------------------------------------------------------------- torture */

static atomic_bool stop;
static _Atomic unsigned wrong, gets;

/* Each thread has pages of its own, which it changes by itself: so what it registers must be as it is then. */
static void *change_and_get(void *arg)
{
	char **job = arg;
	struct fixture *f = (struct fixture *)job[0];
	char *mem = job[1];
	unsigned seed = (unsigned)((uintptr_t)mem / PAGE), value = 0;

	while (!stop) {
		struct hmm_reg *reg;
		int rc;

		switch (rand_r(&seed) % 5) {
		case 0:
			munmap(mem, 8 * PAGE);
			mmap(mem, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
			break;
		case 1:
			madvise(mem, 8 * PAGE, MADV_DONTNEED);
			break;
		case 2:
			if (!geteuid())
				sys6(SYS_mmap, mem, 8 * PAGE, PROT_READ | PROT_WRITE,
				     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
			break;
		case 3:
			mprotect(mem, 8 * PAGE, PROT_READ);
			mprotect(mem, 8 * PAGE, PROT_READ | PROT_WRITE);
			break;
		default:
			break;
		}
		for (unsigned i = 0; i < 8; i++)
			mem[i * PAGE] = (char)(value + 1);
		value = (value + 1) % 100;
		rc = hmm_reg_get(f->c, mem, 8 * PAGE, 0, 0, &reg);
		if (rc) {
			print_error("get: error %d\n", -rc);
			wrong++;
			continue;
		}
		gets++;
		/* Merged with a neighbour's it may begin elsewhere, and be lost as soon as that one changes its own. */
		pthread_mutex_lock(&P.lock);
		if (reg->start == (uintptr_t)mem && P.held[reg->range->cookie].used &&
		    hmm_range_mapped(reg->range, reg->start, reg->end, false)) {
			int sees = device_sees(reg->range->cookie, 0);

			wrong += sees != mem[0] && hmm_range_mapped(reg->range, reg->start, reg->end, false);
		}
		pthread_mutex_unlock(&P.lock);
		hmm_reg_put(f->c, reg);
	}
	return NULL;
}

static void right_while_memory_changes(void **state)
{
	struct fixture *f = *state;
	pthread_t t[3];
	char *job[3][2];

	stop = false;
	wrong = gets = 0;
	for (unsigned i = 0; i < 3; i++) {
		/* The first two adjoin. */
		job[i][0] = (char *)f;
		job[i][1] = f->mem + (i < 2 ? i * 8 : 40) * PAGE;
		assert_int_equal(pthread_create(&t[i], NULL, change_and_get, job[i]), 0);
	}
	while (gets < (getenv("HMM_TEST_LONG") ? 10000 : 4000) && !wrong)
		usleep(1000);
	stop = true;
	for (unsigned i = 0; i < 3; i++)
		pthread_join(t[i], NULL);
	assert_int_equal(wrong, 0);
}

static void *get_and_put(void *arg)
{
	struct fixture *f = arg;
	struct hmm_reg *reg;

	while (!stop)
		if (!hmm_reg_get(f->c, f->mem, 8 * PAGE, 0, 0, &reg))
			hmm_reg_put(f->c, reg);
	return NULL;
}

/* The kernel tells before it drops.  Pages that are still there must not be registered by somebody else in between. */
static void registered_while_being_dropped(void **state)
{
	struct fixture *f = *state;
	pthread_t t;

	if (geteuid())
		skip_because("an ordinary user is not told of raw calls");
	stop = false;
	wrong = 0;
	get_put(f, 0, 8);
	assert_int_equal(pthread_create(&t, NULL, get_and_put, f), 0);
	for (unsigned i = 0; i < 100 && !wrong; i++) {
		struct hmm_reg *reg;

		sys3(SYS_madvise, f->mem, 8 * PAGE, MADV_DONTNEED);
		f->mem[0] = (char)(1 + i % 100);
		if (hmm_reg_get(f->c, f->mem, 8 * PAGE, 0, 0, &reg)) {
			wrong++;
			continue;
		}
		wrong += device_sees(reg->range->cookie, 0) != f->mem[0];
		hmm_reg_put(f->c, reg);
	}
	stop = true;
	pthread_join(t, NULL);
	assert_int_equal(wrong, 0);
}

/* What reads events frees it by raw calls: neither watched, nor held for its hooks. */
static void memory_of_the_library_is_refused(void **state)
{
	struct fixture *f = *state;
	struct hmm_reg_params params = {0};
	struct hmm_reg_cache *c;
	struct hmm_reg *reg;
	void *p = umm_alloc(f->space, PAGE);

	assert_non_null(p);
	for (unsigned i = 0; i < 2; i++) {
		params.flags = i ? HMM_REG_HOOKED : 0;
		assert_int_equal(hmm_reg_cache_open(f->space, NULL, &pipe_dev, &params, &c), 0);
		assert_int_equal(hmm_reg_get(c, p, PAGE, HMM_MAP_WRITE, 0, &reg), geteuid() && !i ? -EPERM : -EINVAL);
		hmm_reg_cache_close(c);
	}
	umm_free(f->space, p, PAGE);
}

#define T_(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		T_(a_hit_is_the_same),
		T_(neighbours_become_one),
		T_(a_walk_costs_little_more_than_its_length),
		cmocka_unit_test_setup_teardown(the_least_recently_used_goes, setup_with_limits, teardown),
		T_(errors),
		T_(memory_of_the_library_is_refused),
		T_(munmap_by_libc),
		T_(raw_munmap),
		T_(map_fixed_over),
		T_(raw_map_fixed_over),
		T_(mprotect_read_then_none),
		T_(dontneed),
		T_(raw_dontneed),
		T_(pageout),
		T_(fork_then_the_parent_writes),
		T_(a_child_is_served_nothing),
		T_(lost_and_had_again),
		T_(lost_while_had_again),
		T_(lost_is_not_good_in_between),
		T_(what_is_read_only_by_chance),
		T_(what_is_mapped_is_watched),
		T_(an_engine_that_closes),
		T_(what_leaves_own_pages_out_is_not_all),
		T_(an_engine_that_lets_go),
		T_(what_is_let_go_is_watched_as_any_other),
		T_(registered_while_being_dropped),
		cmocka_unit_test_setup_teardown(before_the_event_was_read, setup_in_sync, teardown),
		T_(right_while_memory_changes),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
