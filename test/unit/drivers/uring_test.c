/* SPDX-License-Identifier: MIT */
/* Transfers on plain pointers, registered behind the program's back, while memory comes and goes. */
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
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#include "../../skip.h"
#include "hmm_uring.h"
#include "umm/hooks.h"
#include "umm/internal.h"
#include "umm/sys.h"

#define PAGE 4096ul
#define LEN (8 * PAGE)

/* The library that the hooks come from leaves this one to who includes them. */
void *mmap(void *addr, size_t len, int prot, int flags, int fd, off_t offset)
{
	return umm_hooked_mmap(addr, len, prot, flags, fd, offset);
}

struct fixture {
	struct umm_space *space;
	struct hmm_uring *u;
	int fd;            /* LEN bytes */
	char *mem, *other; /* LEN each */
};

static struct hmm_uring_params params(void)
{
	return (struct hmm_uring_params){.depth = 8, .flags = geteuid() ? HMM_URING_HOOKED : 0};
}

static char *map(void)
{
	char *p = mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

static int setup_with(void **state, const struct hmm_uring_params *p)
{
	struct fixture *f = calloc(1, sizeof(*f));
	int rc;

	if (umm_space_open_self(&f->space))
		return -1;
	umm_hooks_set(f->space);
	rc = hmm_uring_open(f->space, p, &f->u);
	if (rc == -EPERM || rc == -ENOSYS || rc == -EOPNOTSUPP) {
		print_message("SKIP: no io_uring with a sparse table of buffers: error %d\n", -rc);
		exit(77);
	}
	f->fd = memfd_create("uring", MFD_CLOEXEC);
	f->mem = map();
	f->other = map();
	if (rc || f->fd < 0 || ftruncate(f->fd, LEN) || !f->mem || !f->other)
		return -1;
	*state = f;
	return 0;
}

static int setup(void **state)
{
	struct hmm_uring_params p = params();

	return setup_with(state, &p);
}

static int setup_small(void **state)
{
	struct hmm_uring_params p = params();

	p.buffers = 4;
	return setup_with(state, &p);
}

static int setup_plain(void **state)
{
	struct hmm_uring_params p = params();

	p.flags |= HMM_URING_PLAIN;
	return setup_with(state, &p);
}

bool __real_hmm_reg_lost(const struct hmm_reg *reg);
bool __wrap_hmm_reg_lost(const struct hmm_reg *reg);
static bool lost_later;

bool __wrap_hmm_reg_lost(const struct hmm_reg *reg)
{
	return !lost_later && __real_hmm_reg_lost(reg);
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	lost_later = false;
	hmm_uring_close(f->u);
	umm_hooks_set(NULL);
	umm_space_close(f->space);
	munmap(f->mem, LEN);
	munmap(f->other, LEN);
	close(f->fd);
	free(f);
	return 0;
}

static struct hmm_uring_stats stats(struct fixture *f)
{
	struct hmm_uring_stats st;

	hmm_uring_stats(f->u, &st);
	return st;
}

static int finish(struct fixture *f, void *user)
{
	struct hmm_uring_done done;

	assert_int_equal(hmm_uring_wait(f->u, &done), 0);
	assert_ptr_equal(done.user, user);
	return done.res;
}

static int send_all(struct fixture *f, const char *p)
{
	assert_int_equal(hmm_uring_write(f->u, f->fd, p, LEN, 0, f), 0);
	return finish(f, f);
}

static int receive(struct fixture *f, char *p)
{
	assert_int_equal(hmm_uring_read(f->u, f->fd, p, LEN, 0, f), 0);
	return finish(f, f);
}

static void assert_file(struct fixture *f, char value)
{
	char buf[LEN];

	assert_int_equal(pread(f->fd, buf, LEN, 0), LEN);
	for (size_t i = 0; i < LEN; i++)
		assert_int_equal(buf[i], value);
}

static void there_and_back(void **state)
{
	struct fixture *f = *state;
	struct hmm_uring_done done;

	assert_int_equal(hmm_uring_wait(f->u, &done), -ENOENT);
	memset(f->mem, 3, LEN);
	assert_int_equal(send_all(f, f->mem), LEN);
	assert_file(f, 3);
	for (unsigned i = 0; i < 20; i++)
		assert_int_equal(receive(f, f->other), LEN);
	assert_memory_equal(f->mem, f->other, LEN);
	assert_int_equal(stats(f).fixed, 21);
	assert_int_equal(stats(f).plain, 0);
	assert_true(stats(f).reg.hits >= 19);
	/* Somewhere within it, and not aligned. */
	assert_int_equal(hmm_uring_read(f->u, f->fd, f->other + 77, 100, 5, NULL), 0);
	assert_int_equal(finish(f, NULL), 100);
	/* As many as there is room for. */
	for (unsigned i = 0; i < 8; i++)
		assert_int_equal(hmm_uring_read(f->u, f->fd, f->other, LEN, 0, f), 0);
	assert_int_equal(hmm_uring_read(f->u, f->fd, f->other, LEN, 0, f), -EAGAIN);
	for (unsigned i = 0; i < 8; i++)
		assert_int_equal(finish(f, f), LEN);
	assert_int_equal(hmm_uring_read(f->u, f->fd, f->other, 0, 0, f), -EINVAL);
}

static void on_signal(int sig)
{
}

struct pesterer {
	pthread_t whom;
	_Atomic bool enough;
};

static void *pester(void *priv)
{
	struct pesterer *p = priv;

	while (!p->enough) {
		pthread_kill(p->whom, SIGUSR1);
		usleep(1000);
	}
	return NULL;
}

static void a_signal_ends_a_wait(void **state)
{
	struct fixture *f = *state;
	struct sigaction sa = {.sa_handler = on_signal}, was;
	struct pesterer p = {.whom = pthread_self()};
	struct hmm_uring_done done;
	pthread_t thread;
	int fd[2], rc[2];

	assert_int_equal(pipe(fd), 0);
	assert_int_equal(sigaction(SIGUSR1, &sa, &was), 0);
	/* Handed over by the call that is interrupted; and before it. */
	assert_int_equal(hmm_uring_read(f->u, fd[0], f->mem, LEN, -1, f), 0);
	for (unsigned i = 0; i < 2; i++) {
		p.enough = false;
		assert_int_equal(pthread_create(&thread, NULL, pester, &p), 0);
		rc[i] = hmm_uring_wait(f->u, &done);
		p.enough = true;
		pthread_join(thread, NULL);
	}
	assert_int_equal(sigaction(SIGUSR1, &was, NULL), 0);
	assert_int_equal(write(fd[1], "abc", 3), 3);
	assert_int_equal(finish(f, f), 3);
	assert_memory_equal(f->mem, "abc", 3);
	assert_int_equal(rc[0], -EINTR);
	assert_int_equal(rc[1], -EINTR);
	close(fd[0]);
	close(fd[1]);
}

struct io_uring;
int __real_io_uring_submit_and_wait(struct io_uring *ring, unsigned wait);
int __wrap_io_uring_submit_and_wait(struct io_uring *ring, unsigned wait);
static unsigned refused; /* so many times there is no memory */

int __wrap_io_uring_submit_and_wait(struct io_uring *ring, unsigned wait)
{
	if (!refused)
		return __real_io_uring_submit_and_wait(ring, wait);
	refused--;
	return -EAGAIN;
}

/* And is not asked again and again. */
static void without_memory_the_kernel_says_so(void **state)
{
	struct fixture *f = *state;
	struct hmm_uring_done done;

	memset(f->mem, 5, LEN);
	assert_int_equal(hmm_uring_write(f->u, f->fd, f->mem, LEN, 0, f), 0);
	refused = 2;
	for (unsigned i = 0; i < 2; i++)
		assert_int_equal(hmm_uring_wait(f->u, &done), -EAGAIN);
	assert_int_equal(finish(f, f), LEN);
	assert_file(f, 5);
}

static void without_registering(void **state)
{
	struct fixture *f = *state;

	memset(f->mem, 4, LEN);
	assert_int_equal(send_all(f, f->mem), LEN);
	assert_int_equal(receive(f, f->other), LEN);
	assert_memory_equal(f->mem, f->other, LEN);
	assert_int_equal(stats(f).fixed, 0);
}

static void what_is_wrong_the_kernel_says(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(mprotect(f->mem + PAGE, PAGE, PROT_NONE), 0);
	assert_true(send_all(f, f->mem) < (int)LEN); /* short, or EFAULT, as of a plain write */
	assert_int_equal(mprotect(f->mem, LEN, PROT_READ), 0);
	assert_int_equal(send_all(f, f->mem), LEN);
	assert_true(receive(f, f->mem) <= 0);
	assert_int_equal(hmm_uring_read(f->u, -1, f->other, LEN, 0, f), 0);
	assert_int_equal(finish(f, f), -EBADF);
}

static void memory_comes_and_goes(void **state)
{
	struct fixture *f = *state;

	for (int i = 1; i < 40; i++) {
		memset(f->mem, i, LEN);
		assert_int_equal(send_all(f, f->mem), LEN);
		assert_file(f, (char)i);
		switch (i % 4) {
		case 0:
			munmap(f->mem, LEN);
			/* fall through */
		case 1:
			mmap(f->mem, LEN, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
			break;
		case 2:
			if (!geteuid())
				sys6(SYS_mmap, f->mem, LEN, PROT_READ | PROT_WRITE,
				     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
			break;
		default:
			madvise(f->mem, LEN, MADV_DONTNEED);
			break;
		}
		/* A read must reach the memory that is there now. */
		memset(f->mem, 77, LEN);
		assert_int_equal(receive(f, f->mem), LEN);
		for (size_t k = 0; k < LEN; k += 512)
			assert_int_equal(f->mem[k], i);
	}
	assert_true(stats(f).fixed > 40);
	assert_true(stats(f).reg.invalidated >= 29);
}

/* Its slot is emptied, the memory is good. */
static void lost_under_way(struct fixture *f, char value)
{
	uint64_t again = stats(f).again, fixed = stats(f).fixed;

	assert_int_equal(mprotect(f->mem, LEN, PROT_READ | PROT_WRITE), 0);
	memset(f->mem, value, LEN);
	assert_int_equal(hmm_uring_write(f->u, f->fd, f->mem, LEN, 0, f), 0);
	assert_int_equal(mprotect(f->mem, LEN, PROT_READ), 0);
	assert_int_equal(finish(f, f), LEN);
	assert_file(f, value);
	assert_int_equal(stats(f).again, again + 1);
	assert_int_equal(stats(f).fixed, fixed + lost_later);
}

static void lost_before_it_was_handed_over(void **state)
{
	lost_under_way(*state, 1);
}

static void lost_before_the_kernel_came_to_it(void **state)
{
	lost_later = true;
	lost_under_way(*state, 2);
	lost_later = false;
}

/* Each of several that are handed over at once is looked at. */
static void several_lost_before_they_were_handed_over(void **state)
{
	struct fixture *f = *state;
	struct hmm_uring_stats before = stats(f);
	/* Apart, or they would be one registration. */
	char *p = mmap(NULL, 4 * LEN, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), *q = p + 2 * LEN;

	assert_true(p != MAP_FAILED);
	memset(p, 3, 4 * LEN);
	assert_int_equal(hmm_uring_write(f->u, f->fd, p, LEN, 0, f), 0);
	assert_int_equal(hmm_uring_write(f->u, f->fd, q, LEN, 0, f), 0);
	assert_int_equal(stats(f).reg.entries, before.reg.entries + 2);
	assert_int_equal(mprotect(p, LEN, PROT_READ), 0); /* the first one only */
	assert_int_equal(finish(f, f), LEN);
	assert_int_equal(finish(f, f), LEN);
	assert_file(f, 3);
	assert_int_equal(stats(f).again, before.again + 1);
	assert_int_equal(stats(f).fixed, before.fixed + 1);
	munmap(p, 4 * LEN);
}

bool __real_umm_uffd_is_changing(int uffd);
bool __wrap_umm_uffd_is_changing(int uffd);
static _Atomic bool changes_without_end;

bool __wrap_umm_uffd_is_changing(int uffd)
{
	return atomic_load(&changes_without_end) || __real_umm_uffd_is_changing(uffd);
}

/*
 * What a registration is given to be had, and changes to end, is more than a machine takes that has nothing else to
 * do.  Here it is as much as any takes; where something does not end it is as it is.
 */
#define PATIENCE_NS (atomic_load(&changes_without_end) ? 0 : 60000000000ull)

int __real_hmm_reg_get(struct hmm_reg_cache *c, const void *addr, size_t len, unsigned flags, uint64_t deadline_ns,
		       struct hmm_reg **regp);
int __wrap_hmm_reg_get(struct hmm_reg_cache *c, const void *addr, size_t len, unsigned flags, uint64_t deadline_ns,
		       struct hmm_reg **regp);
int __real_umm_space_sync_until(struct umm_space *space, uint64_t deadline_ns);
int __wrap_umm_space_sync_until(struct umm_space *space, uint64_t deadline_ns);

int __wrap_hmm_reg_get(struct hmm_reg_cache *c, const void *addr, size_t len, unsigned flags, uint64_t deadline_ns,
		       struct hmm_reg **regp)
{
	return __real_hmm_reg_get(c, addr, len, flags, deadline_ns + PATIENCE_NS, regp);
}

int __wrap_umm_space_sync_until(struct umm_space *space, uint64_t deadline_ns)
{
	return __real_umm_space_sync_until(space, deadline_ns ? deadline_ns + PATIENCE_NS : 0);
}

/* Nobody waits for that to end, and what may be another's by now is not used. */
static void handed_over_while_something_changes_without_end(void **state)
{
	struct fixture *f = *state;
	uint64_t fixed;

	memset(f->mem, 4, LEN);
	assert_int_equal(send_all(f, f->mem), LEN);
	fixed = stats(f).fixed;
	atomic_store(&changes_without_end, true);
	assert_int_equal(send_all(f, f->mem), LEN);
	atomic_store(&changes_without_end, false);
	assert_file(f, 4);
	assert_int_equal(stats(f).fixed, fixed);
	assert_int_equal(send_all(f, f->mem), LEN);
	assert_int_equal(stats(f).fixed, fixed + 1);
}

static void few_slots(void **state)
{
	struct fixture *f = *state; /* four */
	char *more = mmap(NULL, 64 * LEN, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	for (unsigned round = 0; round < 3; round++)
		for (unsigned i = 0; i < 32; i++) {
			memset(more + 2 * i * LEN, (int)i, LEN);
			assert_int_equal(send_all(f, more + 2 * i * LEN), LEN);
			assert_file(f, (char)i);
		}
	/* Each a registration of its own, all under way at once: those for which there is no slot go without. */
	for (unsigned i = 0; i < 8; i++)
		assert_int_equal(hmm_uring_write(f->u, f->fd, more + 2 * i * LEN, LEN, 0, f), 0);
	for (unsigned i = 0; i < 8; i++)
		assert_int_equal(finish(f, f), LEN);
	assert_true(stats(f).plain >= 4);
	assert_true(stats(f).reg.evicted > 10);
	munmap(more, 64 * LEN);
}

static void registered_over_a_fork(void **state)
{
	struct fixture *f = *state;
	int gate[2], status;
	pid_t pid;

	memset(f->mem, 1, LEN);
	assert_int_equal(send_all(f, f->mem), LEN);
	assert_int_equal(pipe(gate), 0);
	pid = fork();
	if (!pid) {
		char c;

		close(gate[1]);
		_exit(read(gate[0], &c, 1) || f->mem[0] != 1);
	}
	close(gate[0]);
	memset(f->mem, 2, LEN);
	assert_int_equal(send_all(f, f->mem), LEN);
	assert_file(f, 2);
	memset(f->mem, 0, LEN);
	assert_int_equal(receive(f, f->mem), LEN);
	assert_int_equal(f->mem[LEN - 1], 2);
	/* And it was not had anew for that: one to send, one to receive. */
	assert_int_equal(stats(f).reg.misses, 2);
	close(gate[1]);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
}

/* ------------------------------------------------------------------- torture */

static atomic_bool stop;

/* Other memory, in and out of the same mappings. */
static void *map_at_random(void *arg)
{
	unsigned seed = 5;
	char *mine[16] = {0};

	while (!stop) {
		unsigned i = (unsigned)rand_r(&seed) % 16;

		if (mine[i])
			munmap(mine[i], LEN);
		mine[i] = map();
		if (mine[i])
			mine[i][0] = 1;
	}
	for (unsigned i = 0; i < 16; i++)
		if (mine[i])
			munmap(mine[i], LEN);
	return NULL;
}

static void right_beside_who_maps(void **state)
{
	struct fixture *f = *state;
	pthread_t t;

	assert_int_equal(pthread_create(&t, NULL, map_at_random, NULL), 0);
	for (unsigned i = 0; i < 1500; i++) {
		char *p = map();

		memset(p, (int)(i % 100), LEN);
		assert_int_equal(send_all(f, p), LEN);
		memset(p, 111, LEN);
		assert_int_equal(receive(f, p), LEN);
		assert_int_equal(p[0], i % 100);
		assert_int_equal(p[LEN - 1], i % 100);
		munmap(p, LEN);
	}
	stop = true;
	pthread_join(t, NULL);
}

static void *raw_munmap_main(void *arg)
{
	sys2(SYS_munmap, arg, LEN);
	return NULL;
}

static char *had_anew(char *p)
{
	long rc;

	do
		rc = sys6(SYS_mmap, p, LEN, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE,
			  -1, 0);
	while (rc != (long)p && !sched_yield());
	return p;
}

/* Another thread has freed @p, as free() does, and nobody has read of it by the time it is had anew and read into. */
static void unmapped_and_had_anew(struct fixture *f, char *p)
{
	struct umm_monitor *m = f->space->monitor;
	pthread_t t;

	umm_monitor_del(f->space);
	assert_int_equal(pthread_create(&t, NULL, raw_munmap_main, p), 0);
	had_anew(p);
	assert_int_equal(receive(f, p), LEN);
	/* Whoever reads it now, what was read into it is there, and not in pages of before. */
	umm_space_sync(f->space);
	pthread_join(t, NULL);
	assert_int_equal(umm_monitor_add(m, f->space), 0);
	for (size_t i = 0; i < LEN; i++)
		assert_int_equal(p[i], 9);
	memset(p, 10, LEN);
	assert_int_equal(send_all(f, p), LEN);
	assert_file(f, 10);
}

static void freed_by_another_thread(void **state)
{
	struct fixture *f = *state;

	if (geteuid())
		skip_because("an ordinary user is not told of raw calls");
	memset(f->mem, 9, LEN);
	assert_int_equal(send_all(f, f->mem), LEN);
	assert_int_equal(receive(f, f->mem), LEN);
	assert_int_equal(stats(f).fixed, 2);
	unmapped_and_had_anew(f, f->mem);
}

/* A registration that is had again may span what has become another thread's memory meanwhile. */
static void what_was_ours_and_anothers_since(void **state)
{
	struct fixture *f = *state;
	char *p = mmap(NULL, 2 * LEN, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (geteuid())
		skip_because("an ordinary user is not told of raw calls");
	memset(p, 9, 2 * LEN);
	assert_int_equal(send_all(f, p), LEN);
	assert_int_equal(receive(f, p), LEN);
	assert_int_equal(receive(f, p + LEN), LEN);
	assert_int_equal(stats(f).reg.entries, 1);
	sys2(SYS_munmap, p, LEN);
	memset(had_anew(p), 7, LEN); /* it is another's now, who has to do with no transfers */
	assert_int_equal(send_all(f, p + LEN), LEN);
	assert_int_equal(stats(f).reg.renewed, 1);
	unmapped_and_had_anew(f, p);
	munmap(p, 2 * LEN);
}

/* Closes what the kernel calls a ring, as close_range() would.  How many there were. */
static unsigned close_rings(void)
{
	unsigned n = 0;

	for (int fd = 3; fd < 256; fd++) {
		char path[32], what[64] = "";

		snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
		if (readlink(path, what, sizeof(what) - 1) > 0 && strstr(what, "[io_uring]")) {
			close(fd);
			n++;
		}
	}
	return n;
}

/* A program may close what it does not know: nothing of a transfer that never ends is left behind. */
static void its_descriptor_closed(void **state)
{
	struct fixture *f = *state;
	struct hmm_uring_done done;
	int fd[2];

	assert_int_equal(pipe(fd), 0);
	assert_int_equal(hmm_uring_read(f->u, fd[0], f->mem, LEN, -1, f), 0);
	assert_int_equal(close_rings(), 1);
	assert_true(hmm_uring_wait(f->u, &done) < 0);
	hmm_uring_close(f->u);
	f->u = NULL;
	/* Of this a registration that is left would be told. */
	assert_int_equal(mprotect(f->mem, LEN, PROT_NONE), 0);
	assert_int_equal(mprotect(f->mem, LEN, PROT_READ | PROT_WRITE), 0);
	close(fd[0]);
	close(fd[1]);
}

#define T_(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		T_(there_and_back),
		T_(a_signal_ends_a_wait),
		T_(without_memory_the_kernel_says_so),
		cmocka_unit_test_setup_teardown(without_registering, setup_plain, teardown),
		T_(what_is_wrong_the_kernel_says),
		T_(memory_comes_and_goes),
		T_(lost_before_it_was_handed_over),
		T_(several_lost_before_they_were_handed_over),
		T_(handed_over_while_something_changes_without_end),
		T_(lost_before_the_kernel_came_to_it),
		cmocka_unit_test_setup_teardown(few_slots, setup_small, teardown),
		T_(registered_over_a_fork),
		T_(its_descriptor_closed),
		T_(freed_by_another_thread),
		T_(what_was_ours_and_anothers_since),
		T_(right_beside_who_maps),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
