/* SPDX-License-Identifier: MIT */
/*
 * A linked engine, and forked children that change their mappings before they
 * have been given what was away.  The wrapped call waits for such a change
 * before it places anything in the child, so that each is in its way.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#include "hmm.h"
#include "umm/internal.h"
#include "umm_hooks.h"

#define PAGE 4096ul
#define N 64u
#define MANY 1000u /* moves of a child: the list of them has grown more than once */

/* Shared with the child: it is about to change something yet, which is to be in the way of a page. */
static _Atomic bool *busy;
static unsigned met;
static int own_uffd;
static int child_uffd; /* what is filled first; 0: nothing yet */
static bool no_memory_for_grandchildren;
static bool no_descriptors; /* from when a change waits to be read */

static void use_up_descriptors(void)
{
	struct rlimit r;
	int fd = dup(0);

	close(fd);
	assert_int_equal(getrlimit(RLIMIT_NOFILE, &r), 0);
	r.rlim_cur = (rlim_t)fd;
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &r), 0);
}

/* Until the child has changed something that nobody has read, if it is to. */
static void let_it_change(int uffd)
{
	while (atomic_load(busy))
		if (poll(&(struct pollfd){.fd = uffd, .events = POLLIN}, 1, 1) == 1) {
			met++;
			if (no_descriptors && met == 1)
				use_up_descriptors();
			break;
		}
}

static bool silent; /* of what is our own the kernel says nothing */
static unsigned asked;

int __real_umm_inside_registered(int uffd, uint64_t addr);
int __wrap_umm_inside_registered(int uffd, uint64_t addr);
int __wrap_umm_inside_registered(int uffd, uint64_t addr)
{
	if (uffd != own_uffd)
		let_it_change(uffd);
	else if (silent)
		return asked++, -EAGAIN;
	return __real_umm_inside_registered(uffd, addr);
}

int __real_umm_uffd_copy(int uffd, uint64_t dst, const void *src, uint64_t len, uint64_t *copied);
int __wrap_umm_uffd_copy(int uffd, uint64_t dst, const void *src, uint64_t len, uint64_t *copied);
int __wrap_umm_uffd_copy(int uffd, uint64_t dst, const void *src, uint64_t len, uint64_t *copied)
{
	if (uffd == own_uffd)
		return __real_umm_uffd_copy(uffd, dst, src, len, copied);
	if (!child_uffd)
		child_uffd = uffd;
	if (no_memory_for_grandchildren && uffd != child_uffd)
		return -ENOMEM;
	let_it_change(uffd);
	return __real_umm_uffd_copy(uffd, dst, src, len, copied);
}

struct scene {
	struct umm_space *space;
	struct hmm_mm *mm;
	struct hmm_device *dev;
	char *p;         /* N pages that are away */
	char *elsewhere; /* and room for as many */
};

static bool right(const char *p, unsigned from, unsigned to)
{
	for (unsigned i = from; i < to; i++)
		for (unsigned k = 0; k < PAGE / 8; k++)
			if (((const volatile uint64_t *)(p + i * PAGE))[k] != (i + 1) * 0x9e3779b97f4a7c15ull + k)
				return false;
	return true;
}

static pid_t raw_fork(void)
{
	return (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
}

/* Between two that stay: with the stack of a thread that has ended next to it, it would be managed as one with that. */
static char *some_pages(void)
{
	char *room = mmap(NULL, (N + 2) * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), *p = room + PAGE;

	assert_true(room != MAP_FAILED);
	assert_int_equal(mprotect(p, N * PAGE, PROT_READ | PROT_WRITE), 0);
	madvise(p, N * PAGE, MADV_NOHUGEPAGE);
	return p;
}

static void begin(struct scene *s)
{
	char err[160];
	uint64_t moved;

	assert_int_equal(umm_space_open_self(&s->space), 0);
	assert_int_equal(hmm_mm_open(s->space, &s->mm), 0);
	assert_int_equal(hmm_device_open("lz4:4M,raw", &s->dev, err, sizeof(err)), 0);
	assert_int_equal(hmm_mm_add_device(s->mm, s->dev), 0);
	s->elsewhere = mmap(NULL, N * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	s->p = some_pages();
	assert_true(s->elsewhere != MAP_FAILED);
	for (unsigned i = 0; i < N; i++)
		for (unsigned k = 0; k < PAGE / 8; k++)
			((uint64_t *)(s->p + i * PAGE))[k] = (i + 1) * 0x9e3779b97f4a7c15ull + k;
	assert_int_equal(
		hmm_migrate_to_device(s->mm, s->dev, (uintptr_t)s->p, (uintptr_t)s->p + N * PAGE, NULL, &moved), 0);
	assert_int_equal(moved, N);
}

/* Runs @child; its status. */
static int run(struct scene *s, int (*child)(struct scene *s))
{
	int status = -1;

	met = 0;
	own_uffd = s->space->uffd;
	child_uffd = 0;
	atomic_store(busy, true);
	pid_t pid = raw_fork();
	assert_true(pid >= 0);
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		_exit(child(s));
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(met > 0);
	return status;
}

static void end(struct scene *s)
{
	assert_true(right(s->p, 0, N));
	assert_int_equal(hmm_mm_close(s->mm), 0);
	hmm_device_close(s->dev);
	umm_space_close(s->space);
	munmap(s->p, N * PAGE);
	munmap(s->elsewhere, N * PAGE);
}

static void with(int (*child)(struct scene *s))
{
	struct scene s;

	begin(&s);
	assert_int_equal(run(&s, child), 0);
	end(&s);
}

static int move(char *from, char *to, unsigned npages)
{
	return syscall(SYS_mremap, from, npages * PAGE, npages * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to) < 0;
}

static int moves(struct scene *s)
{
	if (move(s->p + N / 4 * PAGE, s->elsewhere, N / 4))
		return 1;
	atomic_store(busy, false);
	if (!right(s->p, 0, N / 4) || !right(s->p, N / 2, N))
		return 2;
	return right(s->elsewhere - N / 4 * PAGE, N / 4, N / 2) ? 0 : 3;
}

static void a_child_that_moves_pages(void **state)
{
	with(moves);
}

static int moves_on(struct scene *s)
{
	if (move(s->p, s->elsewhere, N / 2) || move(s->elsewhere, s->elsewhere + N / 2 * PAGE, N / 2))
		return 1;
	atomic_store(busy, false);
	return right(s->elsewhere + N / 2 * PAGE, 0, N / 2) && right(s->p, N / 2, N) ? 0 : 2;
}

static void a_child_that_moves_pages_twice(void **state)
{
	with(moves_on);
}

static int unmaps(struct scene *s)
{
	if (syscall(SYS_munmap, s->p, N / 2 * PAGE))
		return 1;
	atomic_store(busy, false);
	return right(s->p, N / 2, N) ? 0 : 2;
}

static void a_child_that_unmaps_pages(void **state)
{
	with(unmaps);
}

static int drops(struct scene *s)
{
	if (syscall(SYS_madvise, s->p, N / 2 * PAGE, MADV_DONTNEED))
		return 1;
	atomic_store(busy, false);
	return right(s->p, N / 2, N) ? 0 : 2;
}

static void a_child_that_drops_pages(void **state)
{
	with(drops);
}

/* What is dropped comes back as zeros, also where the child had not been given it yet. */
static int drops_and_looks(struct scene *s)
{
	if (syscall(SYS_madvise, s->p, N / 2 * PAGE, MADV_DONTNEED))
		return 1;
	atomic_store(busy, false);
	for (unsigned i = 0; i < N / 2 * PAGE / 8; i++)
		if (((const volatile uint64_t *)s->p)[i])
			return 2;
	return right(s->p, N / 2, N) ? 0 : 3;
}

static void what_a_child_drops_is_gone(void **state)
{
	with(drops_and_looks);
}

/* Onto what is away, too. */
static int moves_over(struct scene *s)
{
	if (move(s->p + N / 2 * PAGE, s->p, N / 2))
		return 1;
	atomic_store(busy, false);
	return right(s->p - N / 2 * PAGE, N / 2, N) ? 0 : 2;
}

static void a_child_that_moves_pages_over_others(void **state)
{
	with(moves_over);
}

/* It gets SIGBUS: zeros it must not find. */
static int forks_without_memory(struct scene *s)
{
	int status = -1;
	pid_t pid = raw_fork();

	atomic_store(busy, false);
	if (!pid) {
		signal(SIGBUS, SIG_DFL);
		setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0});
		_exit(right(s->p, 0, N) ? 1 : 2);
	}
	if (waitpid(pid, &status, 0) != pid || !WIFSIGNALED(status) || WTERMSIG(status) != SIGBUS)
		return 3;
	return !right(s->p, 0, N);
}

static void a_grandchild_that_cannot_be_filled(void **state)
{
	no_memory_for_grandchildren = true;
	with(forks_without_memory);
	no_memory_for_grandchildren = false;
}

static int forks(struct scene *s)
{
	int status = -1;
	pid_t pid = raw_fork();

	atomic_store(busy, false);
	if (!pid)
		_exit(right(s->p, 0, N) ? 0 : 1);
	if (waitpid(pid, &status, 0) != pid)
		return 2;
	return right(s->p, 0, N) ? status != 0 : 3;
}

static void a_child_that_forks(void **state)
{
	with(forks);
}

static void a_child_that_forks_without_descriptors(void **state)
{
	struct rlimit r;

	assert_int_equal(getrlimit(RLIMIT_NOFILE, &r), 0);
	no_descriptors = true;
	with(forks);
	no_descriptors = false;
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &r), 0);
}

/* The grandchild looks where its parent has moved things. */
static int moves_and_forks(struct scene *s)
{
	int status = -1;

	if (move(s->p, s->elsewhere, N))
		return 1;
	pid_t pid = raw_fork();
	atomic_store(busy, false);
	if (!pid)
		_exit(right(s->elsewhere, 0, N) ? 0 : 1);
	if (waitpid(pid, &status, 0) != pid)
		return 2;
	return right(s->elsewhere, 0, N) ? status != 0 : 3;
}

static void a_child_that_moves_pages_and_forks(void **state)
{
	with(moves_and_forks);
}

static int forks_on(struct scene *s, unsigned depth)
{
	int status = -1;
	pid_t pid;

	if (!depth) {
		atomic_store(busy, false);
		return !right(s->p, 0, N);
	}
	pid = raw_fork();
	if (!pid)
		_exit(forks_on(s, depth - 1));
	return waitpid(pid, &status, 0) != pid || status;
}

static int descends(struct scene *s)
{
	return forks_on(s, 12) || !right(s->p, 0, N);
}

static void a_child_of_generations(void **state)
{
	with(descends);
}

static int moves_often(struct scene *s, unsigned times)
{
	for (unsigned i = 0; i < times; i++)
		if (move(i % 2 ? s->elsewhere : s->p, i % 2 ? s->p : s->elsewhere, 1))
			return 1;
	return 0;
}

static int moves_for_ever(struct scene *s)
{
	if (moves_often(s, MANY))
		return 1;
	atomic_store(busy, false);
	return !right(s->p, 0, N);
}

static void a_child_that_moves_on_and_on(void **state)
{
	with(moves_for_ever);
}

/* The list of moves is the grandchild's, too, and each goes on with its own. */
static int moves_forks_moves(struct scene *s)
{
	int status = -1;

	if (moves_often(s, MANY / 4))
		return 1;
	pid_t pid = raw_fork();
	char *to = s->elsewhere + (pid ? PAGE : 2 * PAGE);
	int failed = (!pid && moves_often(s, MANY)) || move(s->p + PAGE, to, 1);
	atomic_store(busy, false);
	failed |= !right(s->p, 0, 1) || !right(to - PAGE, 1, 2) || !right(s->p, 2, N);
	if (!pid)
		_exit(failed);
	return failed || waitpid(pid, &status, 0) != pid || status;
}

static void a_child_that_moves_on_and_on_and_forks(void **state)
{
	with(moves_forks_moves);
}

/* ------------------------------------------------------------ overtaken forks */

/*
 * Another thread changes what the child has inherited, and that is told of first; here by the test, as in
 * events_test.c.
 */
struct overtaken {
	struct scene s;
	char *to; /* NULL: it is unmapped */
	int flags;
	int (*child)(struct scene *s);
};

static void *change_mapping(void *arg)
{
	struct overtaken *o = arg;

	if (o->to)
		syscall(SYS_mremap, o->s.p, N * PAGE, N * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED | o->flags, o->to);
	else
		syscall(SYS_munmap, o->s.p, N * PAGE);
	return NULL;
}

static void *fork_and_look(void *arg)
{
	struct overtaken *o = arg;
	int status = -1;
	pid_t pid = raw_fork();

	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		_exit(o->child(&o->s));
	}
	waitpid(pid, &status, 0);
	return (void *)(intptr_t)status;
}

static void tell(struct scene *s, enum umm_event event, char *to)
{
	struct umm_change c = {.event = event,
			       .start = (uintptr_t)s->p,
			       .end = (uintptr_t)s->p + N * PAGE,
			       .new_start = (uintptr_t)to};

	umm_evlock_excl(&s->space->ctl->evlock);
	s->space->ops->change(s->space->priv, &c);
	umm_evlock_unexcl(&s->space->ctl->evlock);
}

/* By what is seen of the mappings, as nobody hears of it yet. */
static bool has_changed(struct overtaken *o)
{
	struct umm_vma v;
	unsigned char in;

	if (!o->flags)
		return mincore(o->s.p, PAGE, &in);
	/* What it leaves looks as before; what it was moved over could not be read. */
	assert_int_equal(umm_vma_next(o->s.space, (uintptr_t)o->to, &v), 0);
	return v.start <= (uintptr_t)o->to && v.flags & UMM_VMA_READ;
}

static void overtaken_run(struct overtaken *o)
{
	pthread_t forker, changer;
	void *status;

	own_uffd = o->s.space->uffd;
	atomic_store(busy, false);
	umm_monitor_del(o->s.space);
	assert_int_equal(pthread_create(&forker, NULL, fork_and_look, o), 0);
	poll(&(struct pollfd){.fd = own_uffd, .events = POLLIN}, 1, -1);
	assert_int_equal(pthread_create(&changer, NULL, change_mapping, o), 0);
	while (!has_changed(o))
		sched_yield();
	if (o->to)
		tell(&o->s, UMM_EVENT_REMAP, o->to);
	if (!o->flags)
		tell(&o->s, UMM_EVENT_UNMAP, NULL);
	/* Their stacks may have become one mapping with what is managed: then they send events as they end. */
	while (pthread_tryjoin_np(changer, NULL))
		umm_space_drain(o->s.space);
	while (pthread_tryjoin_np(forker, &status))
		umm_space_drain(o->s.space);
	assert_int_equal(hmm_mm_close(o->s.mm), 0);
	hmm_device_close(o->s.dev);
	umm_space_close(o->s.space);
	munmap(o->s.p, N * PAGE);
	munmap(o->to ? o->to : o->s.elsewhere, N * PAGE);
	assert_null(status);
}

static int looks(struct scene *s)
{
	return !right(s->p, 0, N);
}

static void a_fork_that_mremap_has_overtaken(void **state)
{
	struct overtaken o = {.child = looks};

	begin(&o.s);
	o.to = o.s.elsewhere;
	overtaken_run(&o);
}

/* What it is moved over the child has yet: the half that was never touched must stay so. */
static int looks_at_both(struct scene *s)
{
	for (unsigned i = 0; i < N / 2 * PAGE / 8; i++)
		if (((const volatile uint64_t *)s->elsewhere)[i])
			return 2;
	return !right(s->p, 0, N);
}

static void a_fork_that_mremap_onto_a_mapping_has_overtaken(void **state)
{
	struct overtaken o = {.child = looks_at_both};

	begin(&o.s);
	munmap(o.s.elsewhere, N * PAGE);
	o.to = mmap(o.s.elsewhere, N * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE,
		    -1, 0);
	assert_ptr_equal(o.to, o.s.elsewhere);
	assert_int_equal(hmm_migrate_to_device(o.s.mm, o.s.dev, (uintptr_t)o.to + N / 2 * PAGE,
					       (uintptr_t)o.to + N * PAGE, NULL, NULL),
			 0);
	assert_int_equal(hmm_mm_manage(o.s.mm, (uintptr_t)o.to, (uintptr_t)o.to + N * PAGE), 0);
	overtaken_run(&o);
}

/* The parent still has something there. */
static void a_fork_that_mremap_has_overtaken_which_leaves_a_mapping(void **state)
{
	struct overtaken o = {.child = looks, .flags = MREMAP_DONTUNMAP};

	begin(&o.s);
	o.to = o.s.elsewhere;
	overtaken_run(&o);
}

/* Poison for what was away, and zeros for what was never there. */
static int finds_poison(struct scene *s)
{
	for (unsigned i = 0; i < N; i++) {
		int status = -1;
		pid_t pid = i < N / 2 ? raw_fork() : 0;

		if (!pid) {
			signal(SIGBUS, SIG_DFL);
			setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0});
			if (*(volatile uint64_t *)(s->p + i * PAGE))
				_exit(2);
			if (i < N / 2)
				_exit(3);
			continue;
		}
		if (waitpid(pid, &status, 0) != pid || !WIFSIGNALED(status) || WTERMSIG(status) != SIGBUS)
			return 4;
	}
	return 0;
}

static void a_fork_that_munmap_has_overtaken(void **state)
{
	struct overtaken o = {.child = finds_poison};

	begin(&o.s);
	assert_int_equal(madvise(o.s.p + N / 2 * PAGE, N / 2 * PAGE, MADV_DONTNEED), 0);
	overtaken_run(&o);
}

/* @look in a child by a raw fork, which is asked for nothing else. */
static void child_of(struct scene *s, int (*look)(struct scene *s))
{
	int status = -1;
	pid_t pid;

	own_uffd = s->space->uffd;
	atomic_store(busy, false);
	pid = raw_fork();
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		_exit(look(s));
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
}

/* @n: pages of it that are still its own. */
static void end_with(struct scene *s, unsigned n)
{
	assert_int_equal(hmm_mm_close(s->mm), 0);
	hmm_device_close(s->dev);
	umm_space_close(s->space);
	munmap(s->p, n * PAGE);
	munmap(s->elsewhere, N * PAGE);
}

static void end_of(struct scene *s)
{
	end_with(s, N);
}

static int looks_elsewhere(struct scene *s)
{
	return !right(s->elsewhere, 0, N);
}

#define FDS 256

static bool was_open[FDS];
static int the_file; /* of which the engine has private pages: it stays open */

static bool is_the_file(int fd)
{
	struct stat a, b;

	return !fstat(fd, &a) && !fstat(the_file, &b) && a.st_ino == b.st_ino && a.st_dev == b.st_dev;
}

static bool is_open_anew(int fd)
{
	return fcntl(fd, F_GETFD) >= 0 && !was_open[fd] && !is_the_file(fd);
}

static int has_none_of_the_engines(void)
{
	for (int fd = 0; fd < FDS; fd++)
		if (is_open_anew(fd))
			return 2;
	return 0;
}

/* What the engine keeps open, of a pipe, too, by which it takes a file's private pages. */
static void a_child_has_none_of_the_engines_descriptors(void **state)
{
	struct umm_hook h = {0};
	struct scene s;
	struct stat st;
	uint64_t moved;
	bool pipes = false;
	unsigned n = 0;
	int status = -1;
	char *of_file;
	pid_t pid;

	the_file = memfd_create("file", MFD_CLOEXEC);
	assert_int_equal(ftruncate(the_file, N * PAGE), 0);
	for (int fd = 0; fd < FDS; fd++)
		was_open[fd] = fcntl(fd, F_GETFD) >= 0;
	begin(&s);
	of_file = mmap(NULL, N * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, the_file, 0);
	assert_true(of_file != MAP_FAILED);
	memset(of_file, 1, N * PAGE);
	assert_int_equal(
		hmm_migrate_to_device(s.mm, s.dev, (uintptr_t)of_file, (uintptr_t)of_file + N * PAGE, NULL, &moved), 0);
	assert_int_equal(moved, N);
	for (int fd = 0; fd < FDS; fd++) {
		n += is_open_anew(fd);
		pipes |= is_open_anew(fd) && !fstat(fd, &st) && S_ISFIFO(st.st_mode);
	}
	assert_true(n > 5 && pipes);
	own_uffd = s.space->uffd;
	atomic_store(busy, false);
	h.space = s.space;
	umm_hook_fork(&h);
	pid = raw_fork();
	umm_hook_forked(&h, !pid);
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		_exit(!right(s.p, 0, N) || of_file[0] != 1 ? 1 : has_none_of_the_engines());
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	munmap(of_file, N * PAGE);
	end(&s);
	close(the_file);
}

static void a_fork_that_comes_after_mremap(void **state)
{
	struct scene s;

	begin(&s);
	assert_int_equal(move(s.p, s.elsewhere, N), 0);
	child_of(&s, looks_elsewhere);
	assert_true(right(s.elsewhere, 0, N));
	end_of(&s);
}

static int finds_zeros(struct scene *s)
{
	for (unsigned i = 0; i < N * PAGE / 8; i++)
		if (((const volatile uint64_t *)s->p)[i])
			return 2;
	return 0;
}

/* Nothing of what was unmapped is for a child that is forked after, whatever is there then. */
static void a_fork_that_comes_after_munmap_and_mmap(void **state)
{
	struct scene s;
	char *at;

	begin(&s);
	assert_int_equal(syscall(SYS_munmap, s.p, N * PAGE), 0);
	at = mmap(s.p, N * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	assert_ptr_equal(at, s.p);
	assert_int_equal(hmm_mm_manage(s.mm, (uintptr_t)at, (uintptr_t)at + N * PAGE), 0);
	child_of(&s, finds_zeros);
	end_of(&s);
}

static char *other;

static int looks_at_other_all(struct scene *s)
{
	return !right(other, 0, N);
}

static int looks_exchanged(struct scene *s)
{
	return !right(s->p - N / 2 * PAGE, N / 2, N) || !right(s->p + N / 2 * PAGE, 0, N / 2);
}

/* Both halves are away and change places, by way of a third: in between each place was empty once. */
static void a_fork_that_comes_after_halves_were_exchanged(void **state)
{
	struct scene s;

	begin(&s);
	assert_int_equal(move(s.p, s.elsewhere, N / 2), 0);
	assert_int_equal(move(s.p + N / 2 * PAGE, s.p, N / 2), 0);
	assert_int_equal(move(s.elsewhere, s.p + N / 2 * PAGE, N / 2), 0);
	child_of(&s, looks_exchanged);
	end_of(&s);
}

/* It was moved off where the parent still has something, and moved on. */
static void a_fork_that_comes_after_two_mremaps(void **state)
{
	struct scene s;

	begin(&s);
	assert_ptr_equal(mremap(s.p, N * PAGE, N * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, s.elsewhere),
			 s.elsewhere);
	other = mmap(NULL, N * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_int_equal(move(s.elsewhere, other, N), 0);
	child_of(&s, looks_at_other_all);
	munmap(other, N * PAGE);
	end_of(&s);
}

static int looks_at_tail(struct scene *s)
{
	for (unsigned i = N / 2 * PAGE / 8; i < N * PAGE / 8; i++)
		if (((const volatile uint64_t *)s->p)[i])
			return 2;
	return !right(s->p, 0, N / 2);
}

/* A mapping that becomes less and then more again has zeros there, and no poison, in a child as well. */
static void a_fork_that_comes_after_less_and_more(void **state)
{
	struct scene s;
	unsigned tries = 0;

	begin(&s);
	assert_ptr_equal(mremap(s.p, N * PAGE, N / 2 * PAGE, 0), s.p);
	/* Another thread may have mapped something there (a sanitizer's allocator does). */
	while (mremap(s.p, N / 2 * PAGE, N * PAGE, 0) == MAP_FAILED) {
		assert_true(errno == ENOMEM && ++tries < 20);
		end_with(&s, N / 2);
		begin(&s);
		assert_ptr_equal(mremap(s.p, N * PAGE, N / 2 * PAGE, 0), s.p);
	}
	child_of(&s, looks_at_tail);
	end_of(&s);
}

/* What is asked in vain, since a change stays unread all the time, is not asked for each page. */
static void a_fork_that_munmap_and_mmap_have_overtaken(void **state)
{
	struct overtaken o = {.child = finds_poison};
	pthread_t forker, changer;
	void *status;

	begin(&o.s);
	assert_int_equal(madvise(o.s.p + N / 2 * PAGE, N / 2 * PAGE, MADV_DONTNEED), 0);
	own_uffd = o.s.space->uffd;
	atomic_store(busy, false);
	umm_monitor_del(o.s.space);
	assert_int_equal(pthread_create(&forker, NULL, fork_and_look, &o), 0);
	poll(&(struct pollfd){.fd = own_uffd, .events = POLLIN}, 1, -1);
	assert_int_equal(pthread_create(&changer, NULL, change_mapping, &o), 0);
	while (!has_changed(&o))
		sched_yield();
	tell(&o.s, UMM_EVENT_UNMAP, NULL);
	assert_ptr_equal(mmap(o.s.p, N * PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0),
			 o.s.p);
	asked = 0;
	silent = true;
	while (pthread_tryjoin_np(changer, NULL))
		umm_space_drain(o.s.space);
	while (pthread_tryjoin_np(forker, &status))
		umm_space_drain(o.s.space);
	silent = false;
	end_of(&o.s);
	assert_null(status);
	assert_true(asked >= 500 && asked < 1000);
}

/* ------------------------------------------------------ marks, since the fork */

/*
 * What the parent does when its fork has been read, before that is applied: who applies it waits for it here.  If it
 * is held up until it has been applied it sleeps for the event lock, and is waited for no more.
 */
struct since {
	struct umm_notifier n;
	struct scene s;
	pid_t (*fork)(void);
	int before, after; /* advice; UNMAPS; 0: none.  Of all that is away */
	int (*child)(struct scene *s);
	void *(*other)(void *since); /* by another thread, instead of @after */
	char *marked;                /* what that moves there */
	_Atomic bool applying, done;
};

#define UNMAPS (-1)
#define SINCE_TRIES 1000u

static bool since_is_gone(const char *p)
{
	unsigned char in;

	return mincore((void *)(uintptr_t)p, PAGE, &in) && errno == ENOMEM;
}

static bool since_apply(struct umm_notifier *n, const struct umm_change *c, uint64_t seq)
{
	struct since *t = (struct since *)n;

	umm_notifier_set_seq(n, seq);
	if (c->event != UMM_EVENT_FORK || !c->late)
		return true;
	atomic_store(&t->applying, true);
	for (unsigned i = 0; i < SINCE_TRIES && !atomic_load(&t->done); i++) {
		if (atomic_load(&t->s.space->ctl->evlock.word) & UMM_EVLOCK_SLEEP)
			break;
		/* Its event is read later: by then its mapping has gone. */
		if ((t->after == UNMAPS && since_is_gone(t->s.p)) || (t->marked && since_is_gone(t->marked)))
			break;
		nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
	}
	return true;
}

static void since_fork(struct since *t)
{
	const struct umm_notifier_ops ops = {.invalidate = since_apply};
	int status = -1;
	pthread_t thread;
	pid_t pid;

	begin(&t->s);
	umm_hooks_set(t->s.space);
	own_uffd = t->s.space->uffd;
	atomic_store(busy, false);
	if (t->before)
		assert_int_equal(madvise(t->s.p, N * PAGE, t->before), 0);
	if (t->other)
		assert_int_equal(pthread_create(&thread, NULL, t->other, t), 0);
	assert_int_equal(umm_notifier_insert(&t->n, t->s.space, (uintptr_t)t->s.p, N * PAGE, &ops), 0);
	pid = t->fork();
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		_exit(t->child(&t->s));
	}
	if (t->after == UNMAPS)
		munmap(t->s.p, N * PAGE);
	else if (t->after)
		madvise(t->s.p, N * PAGE, t->after);
	atomic_store(&t->done, !t->other);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	if (t->other)
		pthread_join(thread, NULL);
	assert_true(atomic_load(&t->applying));
	umm_notifier_remove(&t->n);
	umm_hooks_set(NULL);
	end_of(&t->s);
	assert_int_equal(status, 0);
}

/* Whom nobody can hold up. */
static void marked_dontfork_since_the_fork(void **state)
{
	struct since raw = {.fork = raw_fork, .after = MADV_DONTFORK, .child = looks};
	struct since by_libc = {.fork = fork, .after = MADV_DONTFORK, .child = looks};

	since_fork(&raw);
	since_fork(&by_libc);
}

static void both_marked_since_the_fork(void **state)
{
	struct since t = {.fork = raw_fork, .before = MADV_WIPEONFORK, .after = MADV_DONTFORK, .child = finds_zeros};

	since_fork(&t);
}

static void marked_wipeonfork_since_the_fork(void **state)
{
	struct since t = {.fork = fork, .after = MADV_WIPEONFORK, .child = looks};

	since_fork(&t);
}

static void marked_no_more_since_the_fork(void **state)
{
	struct since t = {.fork = fork, .before = MADV_WIPEONFORK, .after = MADV_KEEPONFORK, .child = finds_zeros};

	since_fork(&t);
}

static void unmapped_since_the_fork(void **state)
{
	struct since t = {.fork = fork, .before = MADV_WIPEONFORK, .after = UNMAPS, .child = finds_zeros};

	since_fork(&t);
}

static void *keep_by_libc(void *arg)
{
	struct since *t = arg;

	while (!atomic_load(&t->applying))
		sched_yield();
	madvise(t->s.p, N * PAGE, MADV_KEEPONFORK);
	atomic_store(&t->done, true);
	return NULL;
}

static void marked_no_more_by_another_thread(void **state)
{
	struct since t = {.fork = raw_fork, .before = MADV_WIPEONFORK, .other = keep_by_libc, .child = finds_zeros};

	since_fork(&t);
}

static void *move_marked(void *arg)
{
	struct since *t = arg;

	while (!atomic_load(&t->applying))
		sched_yield();
	if (move(t->marked, t->s.p, N))
		atomic_store(&t->done, true);
	return NULL;
}

static void what_is_marked_moved_there_since_the_fork(void **state)
{
	for (unsigned i = 0; i < 2; i++) {
		struct since t = {.fork = raw_fork, .other = move_marked, .child = looks};

		t.marked = mmap(NULL, N * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		assert_true(t.marked != MAP_FAILED);
		assert_int_equal(madvise(t.marked, N * PAGE, i ? MADV_DONTFORK : MADV_WIPEONFORK), 0);
		since_fork(&t);
		assert_true(since_is_gone(t.marked));
	}
}

/* Where it has inherited nothing. */
static void a_child_that_moves_pages_where_the_parent_has_others(void **state)
{
	struct scene s;

	begin(&s);
	assert_int_equal(madvise(s.p, N / 2 * PAGE, MADV_DONTFORK), 0);
	assert_int_equal(run(&s, moves_over), 0);
	end(&s);
}

/* ------------------------------------------- where the kernel tells of no fork */

/* This thread's right to hear of forks, and of those that it makes. */
static bool may_hear_of_forks(bool may)
{
	struct __user_cap_header_struct h = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct d[2];

	if (syscall(SYS_capget, &h, d))
		return false;
	d[0].effective &= ~(1u << CAP_SYS_PTRACE);
	d[0].effective |= may ? d[0].permitted & 1u << CAP_SYS_PTRACE : 0;
	return !syscall(SYS_capset, &h, d);
}

static bool without_forks(struct umm_space **space, struct hmm_mm **mm)
{
	assert_true(may_hear_of_forks(false));
	assert_int_equal(umm_space_open_self(space), 0);
	if (!hmm_mm_open(*space, mm)) {
		own_uffd = (*space)->uffd;
		assert_true(atomic_load(&(*space)->ctl->no_fork_events));
		return true;
	}
	umm_space_close(*space);
	may_hear_of_forks(true);
	return false;
}

/* A child of libc's has nothing there. */
static bool child_lacks(const char *p)
{
	int status = -1;
	pid_t pid = fork();

	assert_true(pid >= 0);
	if (!pid)
		_exit(!since_is_gone(p));
	assert_int_equal(waitpid(pid, &status, 0), pid);
	return !status;
}

/* As the library of an RDMA device does when it lets go of memory: a child would find zeros. */
static void what_the_program_lets_be_inherited_is_not(void **state)
{
	struct scene s = {0};
	struct umm_space *space;
	struct hmm_mm *mm;

	if (!without_forks(&space, &mm))
		skip();
	hmm_mm_close(mm);
	umm_space_close(space);
	begin(&s);
	assert_true(atomic_load(&s.space->ctl->no_fork_events));
	umm_hooks_set(s.space);
	assert_int_equal(madvise(s.p, N * PAGE, MADV_DOFORK), 0);
	assert_true(child_lacks(s.p));
	umm_hooks_set(NULL);
	end_of(&s);
	may_hear_of_forks(true);
}

struct reading {
	struct umm_notifier n;
	char *p;
	_Atomic bool applying, goes_on;
	bool lacks;
};

static bool reading_apply(struct umm_notifier *n, const struct umm_change *c, uint64_t seq)
{
	struct reading *r = (struct reading *)n;

	umm_notifier_set_seq(n, seq);
	if (c->event != UMM_EVENT_UNMAP)
		return true;
	atomic_store(&r->applying, true);
	while (!atomic_load(&r->goes_on))
		nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
	return true;
}

static const struct umm_notifier_ops reading_ops = {.invalidate = reading_apply};

static void *unmaps_raw(void *arg)
{
	struct reading *r = arg;

	return (void *)syscall(SYS_munmap, r->p, N * PAGE);
}

static void *forks_by_libc(void *arg)
{
	struct reading *r = arg;

	r->lacks = child_lacks(r->p);
	return NULL;
}

/* Unmapped, which has been read and not yet been applied, and something else is there. */
static void what_has_come_in_the_place_of_what_is_managed_is_inherited(void **state)
{
	struct reading r = {.applying = false};
	_Atomic uint32_t *word;
	struct scene s = {0};
	struct umm_space *space;
	struct hmm_mm *mm;
	pthread_t t;
	void *rc;

	if (!without_forks(&space, &mm))
		skip();
	hmm_mm_close(mm);
	umm_space_close(space);
	begin(&s);
	word = &s.space->ctl->evlock.word;
	umm_hooks_set(s.space);
	r.p = s.p;
	assert_int_equal(umm_notifier_insert(&r.n, s.space, (uintptr_t)s.p, N * PAGE, &reading_ops), 0);
	assert_int_equal(pthread_create(&t, NULL, unmaps_raw, &r), 0);
	pthread_join(t, &rc);
	assert_null(rc);
	while (!atomic_load(&r.applying))
		nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
	assert_int_equal(syscall(SYS_mmap, s.p, N * PAGE, PROT_READ | PROT_WRITE,
				 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0),
			 (long)s.p);
	assert_int_equal(pthread_create(&t, NULL, forks_by_libc, &r), 0);
	/* Until it waits for what has been read, before its fork or after it. */
	while (!(atomic_load(word) & UMM_EVLOCK_SLEEP))
		nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
	atomic_store(&r.goes_on, true);
	pthread_join(t, NULL);
	assert_false(r.lacks);
	umm_notifier_remove(&r.n);
	umm_hooks_set(NULL);
	assert_false(child_lacks(s.p));
	assert_int_equal(hmm_mm_close(s.mm), 0);
	hmm_device_close(s.dev);
	umm_space_close(s.space);
	munmap(s.p, N * PAGE);
	munmap(s.elsewhere, N * PAGE);
	may_hear_of_forks(true);
}

/* Also where managing it fails: somebody else has a part of it. */
static void what_the_program_keeps_from_children_stays_so(void **state)
{
	struct umm_space *space;
	struct hmm_mm *mm;
	char *kept = some_pages(), *shared, *moved = some_pages();
	uint64_t at = (uintptr_t)kept, got;
	int theirs;

	shared = some_pages();
	if (!without_forks(&space, &mm))
		skip();
	theirs = umm_inside_uffd();
	assert_true(theirs >= 0);
	assert_int_equal(umm_uffd_api(theirs, UMM_UFFD_BASE, 0, &got), 0);
	assert_int_equal(madvise(kept, N * PAGE, MADV_DONTFORK), 0);
	assert_int_equal(hmm_mm_manage(mm, at, at + N * PAGE), 0);
	assert_int_equal(hmm_mm_unmanage(mm, at, at + N * PAGE), 0);
	assert_true(child_lacks(kept));
	/* What it has not marked is as it was. */
	assert_int_equal(hmm_mm_manage(mm, (uintptr_t)shared, (uintptr_t)shared + N * PAGE), 0);
	assert_true(child_lacks(shared));
	assert_int_equal(hmm_mm_unmanage(mm, (uintptr_t)shared, (uintptr_t)shared + N * PAGE), 0);
	assert_false(child_lacks(shared));
	assert_int_equal(umm_uffd_register(theirs, at, N * PAGE, UFFDIO_REGISTER_MODE_MISSING), 0);
	assert_int_equal(hmm_mm_manage(mm, at, at + N * PAGE), -EBUSY);
	assert_true(child_lacks(kept));
	close(theirs);
	/* And where it goes by mremap(). */
	assert_int_equal(hmm_mm_manage(mm, at, at + N * PAGE), 0);
	assert_int_equal(move(kept, moved, N), 0);
	assert_int_equal(hmm_mm_manage(mm, (uintptr_t)shared, (uintptr_t)shared + N * PAGE), 0);
	assert_int_equal(hmm_mm_close(mm), 0);
	assert_true(child_lacks(moved));
	assert_false(child_lacks(shared));
	umm_space_close(space);
	munmap(moved, N * PAGE);
	munmap(shared, N * PAGE);
	may_hear_of_forks(true);
}

/* By MADV_DOFORK: nothing keeps it from them when it is managed no more. */
static void a_mark_that_the_program_takes_back_is_gone(void **state)
{
	struct umm_space *space;
	struct hmm_mm *mm;
	char *p = some_pages();
	uint64_t at = (uintptr_t)p;

	if (!without_forks(&space, &mm))
		skip();
	umm_hooks_set(space);
	assert_int_equal(madvise(p, N * PAGE, MADV_DONTFORK), 0);
	assert_int_equal(hmm_mm_manage(mm, at, at + N * PAGE), 0);
	assert_int_equal(madvise(p, N * PAGE, MADV_DOFORK), 0);
	assert_true(child_lacks(p));
	assert_int_equal(hmm_mm_unmanage(mm, at, at + N * PAGE), 0);
	assert_false(child_lacks(p));
	umm_hooks_set(NULL);
	assert_int_equal(hmm_mm_close(mm), 0);
	umm_space_close(space);
	munmap(p, N * PAGE);
	may_hear_of_forks(true);
}

/* It is no right that is lacking then. */
static void a_userfaultfd_without_descriptors(void **state)
{
	int status = -1;
	pid_t pid;

	assert_true(may_hear_of_forks(false));
	pid = fork();
	assert_true(pid >= 0);
	if (!pid) {
		use_up_descriptors();
		_exit(-umm_inside_uffd());
	}
	may_hear_of_forks(true);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), EMFILE);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_child_that_moves_pages),
		cmocka_unit_test(a_child_that_moves_pages_twice),
		cmocka_unit_test(a_child_that_unmaps_pages),
		cmocka_unit_test(a_child_that_drops_pages),
		cmocka_unit_test(what_a_child_drops_is_gone),
		cmocka_unit_test(a_child_that_moves_pages_over_others),
		cmocka_unit_test(a_grandchild_that_cannot_be_filled),
		cmocka_unit_test(a_child_that_forks_without_descriptors),
		cmocka_unit_test(a_child_that_forks),
		cmocka_unit_test(a_child_that_moves_pages_and_forks),
		cmocka_unit_test(a_child_of_generations),
		cmocka_unit_test(a_child_that_moves_on_and_on),
		cmocka_unit_test(a_child_that_moves_on_and_on_and_forks),
		cmocka_unit_test(a_fork_that_mremap_has_overtaken),
		cmocka_unit_test(a_fork_that_mremap_onto_a_mapping_has_overtaken),
		cmocka_unit_test(a_fork_that_mremap_has_overtaken_which_leaves_a_mapping),
		cmocka_unit_test(a_fork_that_munmap_has_overtaken),
		cmocka_unit_test(a_child_has_none_of_the_engines_descriptors),
		cmocka_unit_test(a_fork_that_comes_after_mremap),
		cmocka_unit_test(a_fork_that_comes_after_munmap_and_mmap),
		cmocka_unit_test(a_fork_that_comes_after_halves_were_exchanged),
		cmocka_unit_test(a_fork_that_comes_after_two_mremaps),
		cmocka_unit_test(a_fork_that_comes_after_less_and_more),
		cmocka_unit_test(a_fork_that_munmap_and_mmap_have_overtaken),
		cmocka_unit_test(marked_dontfork_since_the_fork),
		cmocka_unit_test(both_marked_since_the_fork),
		cmocka_unit_test(marked_wipeonfork_since_the_fork),
		cmocka_unit_test(marked_no_more_since_the_fork),
		cmocka_unit_test(unmapped_since_the_fork),
		cmocka_unit_test(marked_no_more_by_another_thread),
		cmocka_unit_test(what_is_marked_moved_there_since_the_fork),
		cmocka_unit_test(a_child_that_moves_pages_where_the_parent_has_others),
		cmocka_unit_test(what_the_program_lets_be_inherited_is_not),
		cmocka_unit_test(what_has_come_in_the_place_of_what_is_managed_is_inherited),
		cmocka_unit_test(what_the_program_keeps_from_children_stays_so),
		cmocka_unit_test(a_mark_that_the_program_takes_back_is_gone),
		cmocka_unit_test(a_userfaultfd_without_descriptors),
	};
	int uffd = umm_inside_uffd();

	if (uffd < 0) {
		printf("SKIP: no right to a userfaultfd\n");
		return 77;
	}
	close(uffd);
	busy = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	alarm(100); /* who hangs fails */
	if (argc > 1)
		cmocka_set_test_filter(argv[1]);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
