/* SPDX-License-Identifier: MIT */
/*
 * Who is told of what: every call that changes an address space, by libc and
 * raw, on every kind of mapping.  doc/coverage.md has the table.
 *
 * By libc: the callback runs before the change, and what it finds is what was
 * there.  Raw, on a range that is watched: the event has been read when the call
 * returns, and the callback runs.  Where the kernel tells nothing, nobody is told, and that is said, too.
 *
 * The hooks are linked into this program: its own calls go through them.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#include "hmm_uapi.h"
#include "umm.h"
#include "umm/hooks.h"
#include "umm/internal.h"
#include "../../hugetlb.h"

#define PAGE 4096ul
#define HUGE (2ul << 20)

#ifndef MADV_DONTNEED_LOCKED
#define MADV_DONTNEED_LOCKED 24
#endif
#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#endif
#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif

enum kind { ANON, ANON_SHARED, MEMFD_SHARED, MEMFD_PRIVATE, FILE_SHARED, FILE_PRIVATE, HUGETLB, HUGETLB_SHARED, KINDS };

static const char *const kind_name[KINDS] = {"anonymous",   "shared",       "memfd shared", "memfd private",
					     "file shared", "file private", "hugetlb",      "hugetlb shared"};

static bool is_shared(enum kind k)
{
	return k == ANON_SHARED || k == MEMFD_SHARED || k == FILE_SHARED || k == HUGETLB_SHARED;
}

static bool is_hugetlb(enum kind k)
{
	return k == HUGETLB || k == HUGETLB_SHARED;
}

/* What the notifier saw of the change, and what was there then. */
static struct {
	const char *watched; /* a byte of the mapping */
	_Atomic unsigned told[UMM_EVENT_RELEASE + 1];
	_Atomic int found; /* the byte; -1: none */
	_Atomic bool late;
} seen;

static bool invalidate(struct umm_notifier *n, const struct umm_change *c, uint64_t seq)
{
	char byte;
	struct iovec l = {&byte, 1}, r = {(void *)(uintptr_t)seen.watched, 1};

	umm_notifier_set_seq(n, seq);
	if ((uintptr_t)seen.watched < c->start || (uintptr_t)seen.watched >= c->end)
		return true;
	/* Who serves events must not touch what may be served: only hooked calls are looked at. */
	if (!c->late && !atomic_load(&seen.told[c->event]))
		atomic_store(&seen.found, process_vm_readv(getpid(), &l, 1, &r, 1, 0) == 1 ? byte : -1);
	atomic_store(&seen.late, c->late);
	atomic_fetch_add(&seen.told[c->event], 1);
	return true;
}

static const struct umm_notifier_ops ops = {.invalidate = invalidate};

struct call {
	const char *name;
	int event, raw_event; /* -1: nothing is told */
	long (*libc)(char *p, size_t len, char *spare);
	long (*raw)(char *p, size_t len, char *spare);
	bool (*applies)(enum kind k);
};

#define RW (PROT_READ | PROT_WRITE)

static long c_munmap(char *p, size_t len, char *spare)
{
	return munmap(p, len);
}

static long r_munmap(char *p, size_t len, char *spare)
{
	return syscall(SYS_munmap, p, len);
}

static long c_mmap(char *p, size_t len, char *spare)
{
	return umm_hooked_mmap(p, len, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == p ? 0 : -1;
}

static long r_mmap(char *p, size_t len, char *spare)
{
	return syscall(SYS_mmap, p, len, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == (long)p ? 0 : -1;
}

static long c_mremap(char *p, size_t len, char *spare)
{
	return mremap(p, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, spare) == spare ? 0 : -1;
}

static long r_mremap(char *p, size_t len, char *spare)
{
	return syscall(SYS_mremap, p, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, spare) == (long)spare ? 0 : -1;
}

static long c_stay(char *p, size_t len, char *spare)
{
	return mremap(p, len, len, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, spare) == spare ? 0 : -1;
}

static long r_stay(char *p, size_t len, char *spare)
{
	return syscall(SYS_mremap, p, len, len, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, spare) == (long)spare
		       ? 0
		       : -1;
}

/* Onto the mapping that is watched. */
static long c_onto(char *p, size_t len, char *spare)
{
	return mremap(spare, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, p) == p ? 0 : -1;
}

static long r_onto(char *p, size_t len, char *spare)
{
	return syscall(SYS_mremap, spare, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, p) == (long)p ? 0 : -1;
}

static long c_remap(char *p, size_t len, char *spare)
{
	return remap_file_pages(p, len, 0, 0, 0);
}

static long r_remap(char *p, size_t len, char *spare)
{
	return syscall(SYS_remap_file_pages, p, len, 0, 0, 0);
}

static long c_shrink(char *p, size_t len, char *spare)
{
	return mremap(p, len, len / 2, 0) == p ? 0 : -1;
}

static long r_shrink(char *p, size_t len, char *spare)
{
	return syscall(SYS_mremap, p, len, len / 2, 0, 0) == (long)p ? 0 : -1;
}

#define ADVICE(fn, advice)                                   \
	static long c_##fn(char *p, size_t len, char *spare) \
	{                                                    \
		return madvise(p, len, advice);              \
	}                                                    \
	static long r_##fn(char *p, size_t len, char *spare) \
	{                                                    \
		return syscall(SYS_madvise, p, len, advice); \
	}

ADVICE(dontneed, MADV_DONTNEED)
ADVICE(dontneed_locked, MADV_DONTNEED_LOCKED)
ADVICE(guard, MADV_GUARD_INSTALL)
ADVICE(free, MADV_FREE)
ADVICE(remove, MADV_REMOVE)
ADVICE(pageout, MADV_PAGEOUT)
ADVICE(dontfork, MADV_DONTFORK)
ADVICE(cold, MADV_COLD)

/* Two ranges; the one that is watched is the second. */
static long advise_self(bool raw, char *p, size_t len, char *spare)
{
	struct iovec iov[] = {{spare, len}, {p, len}};
	int self = (int)syscall(SYS_pidfd_open, getpid(), 0);
	long rc = raw ? syscall(SYS_process_madvise, self, iov, 2, MADV_DONTNEED, 0)
		      : process_madvise(self, iov, 2, MADV_DONTNEED, 0);

	close(self);
	return rc == (long)(2 * len) ? 0 : -1;
}

static long c_process(char *p, size_t len, char *spare)
{
	return advise_self(false, p, len, spare);
}

static long r_process(char *p, size_t len, char *spare)
{
	return advise_self(true, p, len, spare);
}

static long c_mprotect(char *p, size_t len, char *spare)
{
	return mprotect(p, len, PROT_NONE);
}

static long r_mprotect(char *p, size_t len, char *spare)
{
	return syscall(SYS_mprotect, p, len, PROT_NONE);
}

static long c_pkey(char *p, size_t len, char *spare)
{
	return pkey_mprotect(p, len, PROT_NONE, -1);
}

static long r_pkey(char *p, size_t len, char *spare)
{
	return syscall(SYS_pkey_mprotect, p, len, PROT_NONE, -1);
}

static long child(pid_t pid)
{
	if (!pid)
		_exit(0);
	return waitpid(pid, NULL, 0) == pid ? 0 : -1;
}

static long c_fork(char *p, size_t len, char *spare)
{
	return child(fork());
}

static long r_fork(char *p, size_t len, char *spare)
{
	return child((pid_t)syscall(SYS_fork));
}

static bool all(enum kind k)
{
	return true;
}

static bool not_hugetlb(enum kind k)
{
	return !is_hugetlb(k);
}

static bool anon(enum kind k)
{
	return k == ANON;
}

static bool shared(enum kind k)
{
	return is_shared(k) && k != HUGETLB_SHARED;
}

/* A fork concerns copies: what is shared stays as it is, but is told all the same. */
static const struct call calls[] = {
	{"munmap", UMM_EVENT_UNMAP, UMM_EVENT_UNMAP, c_munmap, r_munmap, all},
	{"mmap MAP_FIXED over it", UMM_EVENT_UNMAP, UMM_EVENT_UNMAP, c_mmap, r_mmap, all},
	{"mremap away", UMM_EVENT_REMAP, UMM_EVENT_REMAP, c_mremap, r_mremap, all},
	{"mremap MREMAP_DONTUNMAP", UMM_EVENT_REMAP, UMM_EVENT_REMAP, c_stay, r_stay, anon},
	{"mremap onto it", UMM_EVENT_UNMAP, UMM_EVENT_UNMAP, c_onto, r_onto, not_hugetlb},
	{"remap_file_pages", UMM_EVENT_UNMAP, -1, c_remap, r_remap, shared},
	{"mremap smaller", UMM_EVENT_REMAP, UMM_EVENT_UNMAP, c_shrink, r_shrink, not_hugetlb},
	{"madvise MADV_DONTNEED", UMM_EVENT_CLEAR, UMM_EVENT_CLEAR, c_dontneed, r_dontneed, all},
	{"madvise MADV_DONTNEED_LOCKED", UMM_EVENT_CLEAR, UMM_EVENT_CLEAR, c_dontneed_locked, r_dontneed_locked, all},
	{"madvise MADV_GUARD_INSTALL", UMM_EVENT_CLEAR, -1, c_guard, r_guard, not_hugetlb},
	{"process_madvise MADV_DONTNEED", UMM_EVENT_CLEAR, UMM_EVENT_CLEAR, c_process, r_process, all},
	{"madvise MADV_FREE", UMM_EVENT_CLEAR, UMM_EVENT_CLEAR, c_free, r_free, anon},
	{"madvise MADV_REMOVE", UMM_EVENT_CLEAR, UMM_EVENT_CLEAR, c_remove, r_remove, shared},
	{"madvise MADV_PAGEOUT", UMM_EVENT_CLEAR, -1, c_pageout, r_pageout, not_hugetlb},
	{"madvise MADV_COLD", -1, -1, c_cold, r_cold, not_hugetlb},
	{"madvise MADV_DONTFORK", -1, -1, c_dontfork, r_dontfork, all},
	{"mprotect", UMM_EVENT_PROTECT, -1, c_mprotect, r_mprotect, all},
	{"pkey_mprotect", UMM_EVENT_PROTECT, -1, c_pkey, r_pkey, all},
	{"fork", UMM_EVENT_FORK, UMM_EVENT_FORK, c_fork, r_fork, all},
};

static struct umm_space *space;
static struct umm_notifier notifier;

static size_t len_of(enum kind k)
{
	return is_hugetlb(k) ? HUGE : 8 * PAGE;
}

/* With neighbours that nobody merges it with; 'x' in every byte.  NULL: there are none of that kind. */
static char *map_kind(enum kind k)
{
	size_t len = len_of(k), room = len + 2 * HUGE;
	char *around = mmap(NULL, room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), *p;
	int fd = -1, flags = MAP_FIXED | (is_shared(k) ? MAP_SHARED : MAP_PRIVATE);

	p = (char *)(((uintptr_t)around + HUGE) & ~(HUGE - 1));
	if (k == MEMFD_SHARED || k == MEMFD_PRIVATE) {
		fd = memfd_create("coverage", MFD_CLOEXEC);
	} else if (k == FILE_SHARED || k == FILE_PRIVATE) {
		char path[] = "/var/tmp/hmm-coverage-XXXXXX";

		fd = mkstemp(path);
		unlink(path);
	} else {
		flags |= MAP_ANONYMOUS | (is_hugetlb(k) ? MAP_HUGETLB : 0);
	}
	if (fd >= 0)
		assert_int_equal(ftruncate(fd, (off_t)len), 0);
	p = mmap(p, len, RW, flags, fd, 0);
	if (fd >= 0)
		close(fd);
	if (p == MAP_FAILED && is_hugetlb(k))
		return NULL;
	assert_true(p != MAP_FAILED);
	memset(p, 'x', len);
	return p;
}

static void try(const struct call *c, enum kind k, bool raw)
{
	size_t len = len_of(k);
	char *p = map_kind(k), *spare;
	int event = raw ? c->raw_event : c->event;
	long rc;

	if (!p)
		return;
	spare = map_kind(k);
	if (!spare) {
		munmap(p, len);
		return;
	}
	assert_int_equal(umm_space_watch(space, (uintptr_t)p, len), 0);
	seen.watched = p + len - 1;
	for (unsigned i = 0; i <= UMM_EVENT_RELEASE; i++)
		atomic_store(&seen.told[i], 0);
	atomic_store(&seen.found, -2);
	rc = raw ? c->raw(p, len, spare) : c->libc(p, len, spare);
	if (rc && (errno == EINVAL || errno == EOPNOTSUPP))
		print_message("  %s, %s: not to be had here\n", c->name, kind_name[k]);
	else if (rc)
		fail_msg("%s, %s: %s", c->name, kind_name[k], strerror(errno));
	for (int e = 0; !rc && e <= UMM_EVENT_RELEASE; e++) {
		bool told = atomic_load(&seen.told[e]) > 0;

		if (e == event && !told && !raw)
			fail_msg("%s, %s: nobody was told", c->name, kind_name[k]);
		while (e == event && !atomic_load(&seen.told[e]))
			sched_yield(); /* or for ever */
		/* The kernel may say more than once, or otherwise, what a hook has said. */
		if (event < 0 && told)
			fail_msg("%s %s, %s: told of %d", raw ? "raw" : "libc's", c->name, kind_name[k], e);
	}
	if (!rc && !raw && event >= 0 && atomic_load(&seen.found) != 'x')
		fail_msg("%s, %s: the callback found %d", c->name, kind_name[k], atomic_load(&seen.found));
	if (!rc && raw && event >= 0)
		assert_true(atomic_load(&seen.late));
	seen.watched = NULL;
	syscall(SYS_munmap, p, len);
	syscall(SYS_munmap, spare, len);
}

static int setup(void **state)
{
	int rc = umm_space_open_self(&space);

	if (!rc)
		rc = umm_notifier_insert(&notifier, space, 0, 1ull << 47, &ops);
	if (rc)
		return rc;
	umm_hooks_set(space);
	return 0;
}

static int teardown(void **state)
{
	umm_hooks_set(NULL);
	umm_notifier_remove(&notifier);
	umm_space_close(space);
	return 0;
}

/* Another library's, which was there first: it is called once ours has been. */
static struct {
	bool on;
	char *page;
	pthread_t thread;
	atomic_bool goes;
} handler;

static void *take_layout(void *unused)
{
	sigset_t old;

	signals_block(&old);
	atomic_store(&handler.goes, true);
	umm_layout_excl(space);
	pthread_rwlock_unlock(&space->layout);
	signals_restore(&old);
	return NULL;
}

static void before_fork(void)
{
	if (!handler.on)
		return;
	handler.on = false;
	if (pthread_create(&handler.thread, NULL, take_layout, NULL))
		abort();
	while (!atomic_load(&handler.goes))
		sched_yield();
	usleep(100000); /* were it less, nothing would be tested, but it would be right */
	madvise(handler.page, PAGE, MADV_DONTNEED);
}

__attribute__((constructor(101))) static void before_ours(void)
{
	pthread_atfork(before_fork, NULL, NULL);
}

static void handlers_of_fork_change_memory(void **state)
{
	int status;

	handler.page = map_kind(ANON);
	handler.on = true;
	alarm(20);
	pid_t pid = fork();
	if (!pid)
		_exit(0);
	alarm(0);
	assert_true(pid > 0);
	assert_false(handler.on);
	assert_int_equal(pthread_join(handler.thread, NULL), 0);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	syscall(SYS_munmap, handler.page, PAGE);
}

static void by_libc(void **state)
{
	for (unsigned i = 0; i < sizeof(calls) / sizeof(calls[0]); i++)
		for (enum kind k = 0; k < KINDS; k++)
			if (calls[i].applies(k))
				try(&calls[i], k, false);
}

static void raw(void **state)
{
	for (unsigned i = 0; i < sizeof(calls) / sizeof(calls[0]); i++)
		for (enum kind k = 0; k < KINDS; k++)
			if (calls[i].applies(k))
				try(&calls[i], k, true);
}

/* The page at the end of the heap goes. */
static void heap(void **state)
{
	for (unsigned how = 0; how < 3; how++) {
		char *was = sbrk(0), *p = (char *)(((uintptr_t)was + PAGE - 1) & -PAGE);

		assert_int_equal(brk(p + 4 * PAGE), 0);
		assert_ptr_equal(sbrk(0), p + 4 * PAGE);
		memset(p, 'x', 4 * PAGE);
		if (how == 2)
			assert_int_equal(umm_space_watch(space, (uintptr_t)p, 4 * PAGE), 0);
		seen.watched = p + 4 * PAGE - 1;
		atomic_store(&seen.told[UMM_EVENT_UNMAP], 0);
		atomic_store(&seen.found, -2);
		if (how == 0)
			assert_int_equal(brk(p + PAGE), 0);
		else if (how == 1)
			assert_ptr_equal(sbrk(-3 * (long)PAGE), p + 4 * PAGE);
		else
			assert_int_equal(syscall(SYS_brk, p + PAGE), (long)p + PAGE);
		while (how == 2 && !atomic_load(&seen.told[UMM_EVENT_UNMAP]))
			sched_yield();
		assert_int_equal(atomic_load(&seen.told[UMM_EVENT_UNMAP]), 1);
		if (how < 2)
			assert_int_equal(atomic_load(&seen.found), 'x');
		seen.watched = NULL;
		assert_int_equal(brk(was), 0);
		assert_ptr_equal(sbrk(0), was);
	}
	/* Growing tells nobody. */
	atomic_store(&seen.told[UMM_EVENT_UNMAP], 0);
	seen.watched = sbrk(0);
	assert_ptr_equal(sbrk(2 * PAGE), seen.watched);
	assert_int_equal(atomic_load(&seen.told[UMM_EVENT_UNMAP]), 0);
	seen.watched = NULL;
	sbrk(-2 * (long)PAGE);
	assert_ptr_equal(sbrk(INTPTR_MAX), (void *)-1);
	assert_int_equal(errno, ENOMEM);
	free(malloc(1 << 16)); /* it goes by the same record */
}

static char *attach(int *id, size_t len)
{
	char *p;

	*id = shmget(IPC_PRIVATE, len, IPC_CREAT | 0600);
	assert_true(*id >= 0);
	p = shmat(*id, NULL, 0);
	assert_true(p != (char *)-1);
	memset(p, 'x', len);
	return p;
}

static void system_v(void **state)
{
	size_t len = 4 * PAGE;
	int id, other;
	char *p = attach(&id, len), *q = attach(&other, len);

	/* In several mappings; and detached as a whole. */
	assert_int_equal(mprotect(p + PAGE, PAGE, PROT_READ), 0);
	seen.watched = p + len - 1;
	atomic_store(&seen.told[UMM_EVENT_UNMAP], 0);
	atomic_store(&seen.found, -2);
	assert_int_equal(shmdt(p), 0);
	assert_int_equal(atomic_load(&seen.told[UMM_EVENT_UNMAP]), 1);
	assert_int_equal(atomic_load(&seen.found), 'x');
	/* One over the other. */
	seen.watched = q + len - 1;
	atomic_store(&seen.told[UMM_EVENT_UNMAP], 0);
	atomic_store(&seen.found, -2);
	assert_ptr_equal(shmat(id, q, SHM_REMAP), q);
	assert_int_equal(atomic_load(&seen.told[UMM_EVENT_UNMAP]), 1);
	assert_int_equal(atomic_load(&seen.found), 'x');
	/* Raw the kernel tells nothing of it, watched or not. */
	assert_int_equal(umm_space_watch(space, (uintptr_t)q, len), 0);
	atomic_store(&seen.told[UMM_EVENT_UNMAP], 0);
	assert_int_equal(syscall(SYS_shmat, other, q, SHM_REMAP), (long)q);
	assert_int_equal(atomic_load(&seen.told[UMM_EVENT_UNMAP]), 0);
	assert_int_equal(umm_space_watch(space, (uintptr_t)q, len), 0);
	assert_int_equal(syscall(SYS_shmdt, q), 0);
	assert_int_equal(atomic_load(&seen.told[UMM_EVENT_UNMAP]), 0);
	/* Nothing attached there. */
	assert_int_equal(shmdt(q), -1);
	assert_int_equal(errno, EINVAL);
	seen.watched = NULL;
	shmctl(id, IPC_RMID, NULL);
	shmctl(other, IPC_RMID, NULL);
}

static unsigned told_of(const char *byte, char *segment)
{
	seen.watched = byte;
	atomic_store(&seen.told[UMM_EVENT_UNMAP], 0);
	atomic_store(&seen.found, -2);
	assert_int_equal(shmdt(segment), 0);
	seen.watched = NULL;
	return atomic_load(&seen.told[UMM_EVENT_UNMAP]);
}

/* What is left of it goes, wherever it begins; and what has been mapped in its place stays. */
static void system_v_with_holes(void **state)
{
	enum { ONE, FIRST, OTHERS, STAYS, TWO, ELSEWHERES, ALL };

	for (unsigned how = 0; how < ALL; how++) {
		char *p, *last;
		int id;

		p = attach(&id, 8 * PAGE);
		last = p + 8 * PAGE - 1;
		assert_int_equal(munmap(p + (how == FIRST ? 0 : 1) * PAGE, PAGE), 0);
		if (how == TWO)
			assert_int_equal(munmap(p + 4 * PAGE, PAGE), 0);
		if (how == OTHERS || how == STAYS) {
			char *q = mmap(p + PAGE, PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);

			assert_ptr_equal(q, p + PAGE);
			*q = 'y';
		}
		shmctl(id, IPC_RMID, NULL);
		/* Its id is nobody's, from here on. */
		if (how == ELSEWHERES && unshare(CLONE_NEWIPC))
			print_message("  a segment of another namespace: not to be had here\n");
		if (how == STAYS) {
			assert_int_equal(told_of(p + PAGE, p), 0);
			assert_int_equal(p[PAGE], 'y');
		} else {
			assert_int_equal(told_of(last, p), 1);
			assert_int_equal(atomic_load(&seen.found), 'x');
		}
		if (how == OTHERS || how == STAYS)
			munmap(p + PAGE, PAGE);
	}
}

static _Atomic uint64_t told_to; /* where the last mremap() was said to go */

static bool note_where(struct umm_notifier *n, const struct umm_change *c, uint64_t seq)
{
	umm_notifier_set_seq(n, seq);
	if (c->event == UMM_EVENT_REMAP)
		atomic_store(&told_to, c->new_start);
	return true;
}

/* Only where the kernel has no choice is it known before the call. */
static void where_a_mapping_goes(void **state)
{
	static const struct umm_notifier_ops where_ops = {.invalidate = note_where};
	char *p = mmap(NULL, 8 * PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), *spare, *taken, *q;
	struct umm_notifier n = {0};

	spare = mmap(NULL, 8 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	taken = mmap(NULL, 8 * PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_true(p != MAP_FAILED && spare != MAP_FAILED && taken != MAP_FAILED);
	assert_int_equal(umm_notifier_insert(&n, space, 0, 1ull << 47, &where_ops), 0);
	atomic_store(&told_to, 1);
	assert_ptr_equal(mremap(p, 8 * PAGE, 4 * PAGE, 0), p);
	assert_int_equal(atomic_load(&told_to), 0);
	atomic_store(&told_to, 1);
	p = mremap(p, 4 * PAGE, 6 * PAGE, MREMAP_MAYMOVE);
	assert_int_equal(atomic_load(&told_to), 0);
	assert_ptr_equal(mremap(p, 6 * PAGE, 6 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, spare), spare);
	assert_int_equal(atomic_load(&told_to), (uintptr_t)spare);
	/* There it is a hint, and not taken: something is there. */
	q = mremap(spare, 6 * PAGE, 6 * PAGE, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, taken);
	assert_true(q != MAP_FAILED && q != taken);
	assert_int_equal(atomic_load(&told_to), 0);
	umm_notifier_remove(&n);
	munmap(q, 6 * PAGE);
	munmap(spare, 8 * PAGE);
	munmap(taken, 8 * PAGE);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(by_libc),
		cmocka_unit_test(raw),
		cmocka_unit_test(where_a_mapping_goes),
		cmocka_unit_test(heap),
		cmocka_unit_test(system_v),
		cmocka_unit_test(system_v_with_holes),
		cmocka_unit_test(handlers_of_fork_change_memory),
	};
	int had = hugetlb_pages(-1), fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC), rc;

	if (fd < 0) {
		printf("SKIP: no right to a userfaultfd\n");
		return 77;
	}
	close(fd);
	if (had == 0)
		hugetlb_pages(4);
	rc = cmocka_run_group_tests(tests, setup, teardown);
	if (had == 0)
		hugetlb_pages(0);
	return rc;
}
