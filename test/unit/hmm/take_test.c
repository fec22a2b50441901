/* SPDX-License-Identifier: MIT */
/* Pages that UFFDIO_MOVE refuses, and what must not be lost of them. */
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <linux/filter.h>
#include <linux/magic.h>
#include <linux/seccomp.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#include "../../skip.h"
#include "fake.h"
#include "hmm/internal.h"
#include "hmm/smaps.h"
#include "hmm/take.h"
#include "umm/internal.h"
#include "umm/sys.h"

#define PAGE 4096ul
#define RUN 64u /* pages that are taken at a time */
#define NR (4 * RUN)
#define SIZE (NR * PAGE)
#define PINNED (RUN + 5)

#ifndef SYS_mseal
#define SYS_mseal 462
#endif
#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#endif

struct fixture {
	struct umm_space *space;
	struct hmm_mm *mm;
	struct fake *dev;
	struct io_uring ring;
	int file, data;
	char *anon, *copies; /* SIZE each, written; the latter private copies of @file's pages */
};

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	int rc = umm_space_open_self(&f->space);
	char *p;

	if (!rc)
		rc = hmm_mm_open(f->space, &f->mm);
	if (rc == -EPERM || rc == -EOPNOTSUPP) {
		printf("SKIP: no userfaultfd that moves pages: error %d\n", -rc);
		exit(77);
	}
	if (rc)
		return -1;
	f->dev = fake_create(true);
	if (hmm_mm_add_device(f->mm, &f->dev->dev))
		return -1;
	f->file = memfd_create("file", 0);
	f->data = memfd_create("data", 0);
	p = mmap(NULL, SIZE + 2 * RUN * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (p == MAP_FAILED || ftruncate(f->file, SIZE))
		return -1;
	/* Runs begin at multiples of their size. */
	p = (char *)(((uintptr_t)p + 2 * RUN * PAGE - 1) & ~(RUN * PAGE - 1));
	f->anon = mmap(p, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	madvise(f->anon, SIZE, MADV_NOHUGEPAGE);
	p = mmap(NULL, SIZE + RUN * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	p = (char *)(((uintptr_t)p + RUN * PAGE - 1) & ~(RUN * PAGE - 1));
	f->copies = mmap(p, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, f->file, 0);
	memset(f->anon, 'a', SIZE);
	memset(f->copies, 'a', SIZE);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;
	int rc = hmm_mm_close(f->mm);

	fake_free(f->dev);
	close(f->file);
	close(f->data);
	munmap(f->anon, SIZE);
	munmap(f->copies, SIZE);
	umm_space_close(f->space);
	free(f);
	return rc;
}

static uint64_t to_device(struct fixture *f, const char *p)
{
	uint64_t moved;

	assert_int_equal(hmm_migrate_to_device(f->mm, &f->dev->dev, (uintptr_t)p, (uintptr_t)p + SIZE, NULL, &moved),
			 0);
	return moved;
}

/* The device of io_uring holds page PINNED of @p from here on; false: it cannot be had. */
static bool pin(struct fixture *f, char *p)
{
	struct iovec iov = {p + PINNED * PAGE, PAGE};
	int rc = io_uring_queue_init(4, &f->ring, 0);

	if (!rc) {
		rc = io_uring_register_buffers(&f->ring, &iov, 1);
		if (!rc)
			return true;
		io_uring_queue_exit(&f->ring);
	}
	return false;
}

/* And writes to it. */
static void arrives(struct fixture *f, char *p, char what)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&f->ring);
	struct io_uring_cqe *cqe;
	char page[PAGE];

	memset(page, what, PAGE);
	assert_int_equal(pwrite(f->data, page, PAGE, 0), PAGE);
	io_uring_prep_read_fixed(sqe, f->data, p + PINNED * PAGE, PAGE, 0, 0);
	assert_int_equal(io_uring_submit(&f->ring), 1);
	assert_int_equal(io_uring_wait_cqe(&f->ring, &cqe), 0);
	assert_int_equal(cqe->res, PAGE);
	io_uring_cqe_seen(&f->ring, cqe);
}

static void assert_is(const char *p, char all, char pinned)
{
	for (size_t i = 0; i < SIZE; i++)
		if (p[i] != (i / PAGE == PINNED ? pinned : all))
			fail_msg("byte %zu is %c", i, p[i]);
}

static void assert_one_mapping(struct fixture *f, const char *p)
{
	struct umm_vma v;

	assert_int_equal(umm_vma_next(f->space, (uintptr_t)p, &v), 0);
	assert_int_equal(v.start, (uintptr_t)p);
	assert_int_equal(v.end, (uintptr_t)p + SIZE);
}

static void a_pinned_readonly_page_stays(void **state)
{
	struct fixture *f = *state;

	if (!pin(f, f->anon))
		skip_because("no page can be pinned with io_uring");
	assert_int_equal(mprotect(f->anon, SIZE, PROT_READ), 0);
	/* Its neighbours with it; and what comes in after that is there. */
	assert_int_equal(to_device(f, f->anon), NR - RUN);
	arrives(f, f->anon, 'b');
	assert_is(f->anon, 'a', 'b');
	assert_one_mapping(f, f->anon);
	/* Again, with all of it there before, and nobody may write it still. */
	assert_int_equal(to_device(f, f->anon), NR - RUN);
	arrives(f, f->anon, 'c');
	assert_is(f->anon, 'a', 'c');
	assert_int_equal(syscall(SYS_read, f->data, f->anon + PINNED * PAGE, 1), -1);
	assert_int_equal(errno, EFAULT);
	/* Once it is let go, it goes. */
	io_uring_queue_exit(&f->ring);
	for (unsigned tries = 0; to_device(f, f->anon) < NR && tries < 10000; tries++)
		usleep(1000); /* the ring ends a little later than the call */
	assert_int_equal(to_device(f, f->anon), NR);
	assert_is(f->anon, 'a', 'c');
}

static void a_pinned_copy_of_a_files_page_stays(void **state)
{
	struct fixture *f = *state;

	if (!pin(f, f->copies))
		skip_because("no page can be pinned with io_uring");
	assert_int_equal(to_device(f, f->copies), 0);
	arrives(f, f->copies, 'b');
	assert_is(f->copies, 'a', 'b');
	/* It is a file's still, and stays one when it may not be written. */
	assert_one_mapping(f, f->copies);
	assert_int_equal(mprotect(f->copies, SIZE, PROT_READ), 0);
	assert_int_equal(to_device(f, f->copies), 0);
	arrives(f, f->copies, 'c');
	assert_is(f->copies, 'a', 'c');
	io_uring_queue_exit(&f->ring);
	for (unsigned tries = 0; to_device(f, f->copies) < NR && tries < 10000; tries++)
		usleep(1000);
	assert_int_equal(to_device(f, f->copies), NR);
	assert_is(f->copies, 'a', 'c');
}

/* A child has the same pages: that is no pin. */
static void a_page_shared_since_a_fork_goes(void **state)
{
	struct fixture *f = *state;
	int gate[2], status;
	pid_t pid;

	assert_int_equal(mprotect(f->anon, SIZE, PROT_READ), 0);
	assert_int_equal(pipe(gate), 0);
	pid = (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
	if (!pid) {
		char c;

		close(gate[1]);
		_exit(read(gate[0], &c, 1) || f->anon[PINNED * PAGE] != 'a');
	}
	close(gate[0]);
	assert_int_equal(to_device(f, f->anon), NR);
	assert_is(f->anon, 'a', 'a');
	close(gate[1]);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
}

static _Atomic unsigned told;

static bool count(struct umm_notifier *n, const struct umm_change *change, uint64_t seq)
{
	umm_notifier_set_seq(n, seq);
	told += change->event == UMM_EVENT_CLEAR;
	return true;
}

static const struct umm_notifier_ops counting = {.invalidate = count};

int __real_umm_uffd_unregister(int uffd, uint64_t start, uint64_t len);
int __wrap_umm_uffd_unregister(int uffd, uint64_t start, uint64_t len);
static struct umm_space *changes;

/* As often as it is asked: something changes in the space, and a batch is stale. */
int __wrap_umm_uffd_unregister(int uffd, uint64_t start, uint64_t len)
{
	if (changes)
		atomic_fetch_add(&changes->ctl->epoch, 1);
	return __real_umm_uffd_unregister(uffd, start, len);
}

/* Where pages were not to be had after all, what happens to them is told as before. */
static void a_file_that_was_watched_stays_so(void **state)
{
	struct fixture *f = *state;
	struct umm_notifier n;

	assert_int_equal(umm_space_watch(f->space, (uintptr_t)f->copies, SIZE), 0);
	assert_int_equal(umm_notifier_insert(&n, f->space, (uintptr_t)f->copies, SIZE, &counting), 0);
	changes = f->space;
	assert_int_equal(to_device(f, f->copies), 0);
	changes = NULL;
	assert_one_mapping(f, f->copies);
	for (unsigned run = 0; run < NR; run += RUN) {
		told = 0;
		assert_int_equal(syscall(SYS_madvise, f->copies + run * PAGE, PAGE, MADV_DONTNEED), 0);
		for (unsigned tries = 0; !told && tries < 10000; tries++)
			usleep(1000);
		assert_int_equal(told, 1);
	}
	umm_notifier_remove(&n);
	assert_int_equal(to_device(f, f->copies), NR - NR / RUN);
	for (size_t i = 0; i < SIZE; i++)
		assert_int_equal(f->copies[i], i / PAGE % RUN ? 'a' : 0);
}

/* What takes the place of a mapping needs room for a moment; where there is none all stays as it is. */
static void without_room_nothing_goes(void **state)
{
	struct fixture *f = *state;
	struct rlimit was, none;
	uint64_t moved[2];

	assert_int_equal(mprotect(f->anon, SIZE, PROT_READ), 0);
	/* The first time, more is needed. */
	for (unsigned i = 0; i < 2; i++) {
		uint64_t at = (uintptr_t)(i ? f->copies : f->anon);

		assert_int_equal(hmm_migrate_to_device(f->mm, &f->dev->dev, at, at + PAGE, NULL, &moved[i]), 0);
		assert_int_equal(moved[i], 1);
	}
	assert_int_equal(getrlimit(RLIMIT_AS, &was), 0);
	none = (struct rlimit){PAGE, was.rlim_max};
	assert_int_equal(setrlimit(RLIMIT_AS, &none), 0);
	moved[0] = to_device(f, f->anon);
	moved[1] = to_device(f, f->copies);
	assert_int_equal(setrlimit(RLIMIT_AS, &was), 0);
	assert_int_equal(moved[0], 1);
	assert_int_equal(moved[1], 1);
	assert_is(f->anon, 'a', 'a');
	assert_is(f->copies, 'a', 'a');
	assert_int_equal(to_device(f, f->anon), NR);
	assert_int_equal(to_device(f, f->copies), NR);
	assert_is(f->anon, 'a', 'a');
	assert_is(f->copies, 'a', 'a');
}

/* All of a page of the file, which its number is written all over. */
static void assert_files(const char *page, unsigned nr)
{
	for (unsigned i = 0; i < PAGE; i++)
		if ((unsigned char)page[i] != 1 + nr % 250)
			fail_msg("page %u of the file, byte %u is %d", nr, i, page[i]);
}

/* What stands in for a file's mapping is unmapped and moved in parts: a page that is dropped is the right one's. */
static void a_dropped_page_is_the_files_wherever_it_is(void **state)
{
	struct fixture *f = *state;
	const unsigned moved = NR / 2 + 10, n = 20;
	char page[PAGE], *to = mmap(NULL, n * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	for (unsigned i = 0; i < NR; i++) {
		memset(page, (int)(1 + i % 250), PAGE);
		assert_int_equal(pwrite(f->file, page, PAGE, i * PAGE), PAGE);
	}
	assert_is(f->copies, 'a', 'a');
	assert_int_equal(to_device(f, f->copies), NR);
	assert_is(f->copies, 'a', 'a');
	assert_int_equal(syscall(SYS_munmap, f->copies + NR / 4 * PAGE, NR / 4 * PAGE), 0);
	assert_int_equal(syscall(SYS_munmap, f->copies, PAGE), 0);
	assert_ptr_equal((char *)syscall(SYS_mremap, f->copies + moved * PAGE, n * PAGE, n * PAGE,
					 MREMAP_MAYMOVE | MREMAP_FIXED, to),
			 to);
	for (unsigned i = 0; i < NR; i++) {
		char *at = f->copies + i * PAGE;

		if (!i || (i >= NR / 4 && i < NR / 2))
			continue;
		if (i >= moved && i < moved + n)
			at = to + (i - moved) * PAGE;
		assert_int_equal(at[i], 'a');
		assert_int_equal(syscall(SYS_madvise, at, PAGE, MADV_DONTNEED), 0);
		assert_files(at, i);
	}
	munmap(to, n * PAGE);
}

static void *touch_main(void *p)
{
	return (void *)(uintptr_t) * (volatile unsigned char *)p;
}

/* Dropped twice while a device reads it: the second time nobody waits for it, and whoever had read it comes too late.
 */
static void a_page_dropped_while_it_comes_is_the_files(void **state)
{
	struct fixture *f = *state;
	struct fake *dev = f->dev;
	char page[PAGE], *at = f->copies + 5 * PAGE;
	pthread_t t;
	void *saw;

	memset(page, 6, PAGE);
	assert_int_equal(pwrite(f->file, page, PAGE, 5 * PAGE), PAGE);
	assert_int_equal(to_device(f, f->copies), NR);
	dev->ops.caps |= HMM_DEV_TELLS;
	pthread_mutex_lock(&dev->lock);
	dev->block_out = true;
	pthread_mutex_unlock(&dev->lock);
	assert_int_equal(pthread_create(&t, NULL, touch_main, at), 0);
	pthread_mutex_lock(&dev->lock);
	while (!dev->out_blocked)
		pthread_cond_wait(&dev->moved, &dev->lock);
	pthread_mutex_unlock(&dev->lock);
	assert_int_equal(syscall(SYS_madvise, at, PAGE, MADV_DONTNEED), 0);
	assert_int_equal(pthread_join(t, &saw), 0);
	assert_int_equal((uintptr_t)saw, 6);
	assert_int_equal(syscall(SYS_madvise, at, PAGE, MADV_DONTNEED), 0);
	pthread_mutex_lock(&dev->lock);
	dev->block_out = false;
	pthread_cond_broadcast(&dev->moved);
	pthread_mutex_unlock(&dev->lock);
	/* This waits for whoever serves a fault. */
	assert_int_equal(hmm_mm_remove_device(f->mm, &dev->dev), 0);
	for (unsigned i = 0; i < PAGE; i++)
		assert_int_equal(at[i], 6);
}

/* A child that has it as it was would read what it was not to have. */
static void what_a_child_is_not_to_have_stays(void **state)
{
	struct fixture *f = *state;
	int status;
	pid_t pid;

	assert_int_equal(syscall(SYS_madvise, f->copies + RUN * PAGE, 2 * RUN * PAGE, MADV_DONTFORK), 0);
	assert_int_equal(to_device(f, f->copies), NR - 2 * RUN);
	assert_is(f->copies, 'a', 'a');
	pid = fork();
	if (!pid) {
		signal(SIGSEGV, SIG_DFL);
		_exit(((volatile char *)f->copies)[(RUN + 1) * PAGE]);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFSIGNALED(status));
	assert_int_equal(WTERMSIG(status), SIGSEGV);
	/* The mark is off: it goes. */
	assert_int_equal(syscall(SYS_madvise, f->copies + RUN * PAGE, 2 * RUN * PAGE, MADV_DOFORK), 0);
	assert_int_equal(to_device(f, f->copies), NR);
	assert_is(f->copies, 'a', 'a');
}

static void what_is_to_be_in_no_core_stays(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(syscall(SYS_madvise, f->copies, SIZE, MADV_DONTDUMP), 0);
	assert_int_equal(to_device(f, f->copies), 0);
	assert_one_mapping(f, f->copies);
	assert_int_equal(syscall(SYS_madvise, f->copies, SIZE, MADV_DODUMP), 0);
	assert_int_equal(to_device(f, f->copies), NR);
	assert_is(f->copies, 'a', 'a');
}

static void what_has_a_key_stays(void **state)
{
	struct fixture *f = *state;
	int key = pkey_alloc(0, 0);

	if (key < 0)
		skip_because("no protection keys: %s", strerror(errno));
	assert_int_equal(pkey_mprotect(f->copies, SIZE, PROT_READ | PROT_WRITE, key), 0);
	assert_int_equal(to_device(f, f->copies), 0);
	assert_one_mapping(f, f->copies);
	assert_int_equal(pkey_mprotect(f->copies, SIZE, PROT_READ | PROT_WRITE, 0), 0);
	pkey_free(key);
	assert_int_equal(to_device(f, f->copies), NR);
	assert_is(f->copies, 'a', 'a');
}

/* What may not be unmapped cannot be replaced: it stays, and nothing of it is lost. */
static void a_sealed_mapping_stays(void **state)
{
	struct fixture *f = *state;

	if (syscall(SYS_mseal, f->copies, SIZE, 0))
		skip_because("mappings cannot be sealed: %s", strerror(errno));
	assert_int_equal(to_device(f, f->copies), 0);
	assert_is(f->copies, 'a', 'a');
	assert_one_mapping(f, f->copies);
	memset(f->copies, 'b', SIZE);
	assert_is(f->copies, 'b', 'b');
}

#define LOAD(field) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, (unsigned)(field))
#define ONLY(what, skip) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)(what), 0, skip)

/* From here on nothing can be moved to @to: it fails as where there are too many mappings. */
static bool refuse_mremap(const char *to)
{
	struct sock_filter filter[] = {
		LOAD(offsetof(struct seccomp_data, nr)),
		ONLY(SYS_mremap, 5),
		LOAD(offsetof(struct seccomp_data, args[4])),
		ONLY((uintptr_t)to, 3),
		LOAD(offsetof(struct seccomp_data, args[4]) + 4),
		ONLY((uintptr_t)to >> 32, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOMEM),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog prog = {.len = sizeof(filter) / sizeof(filter[0]), .filter = filter};

	return !prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) && !prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog);
}

/* How a process ends that runs @body, with an engine of its own. */
static int in_child(int (*body)(struct fixture *f))
{
	const struct rlimit no_core = {0, 0};
	int status;
	pid_t pid = fork();

	if (!pid) {
		void *state;

		setrlimit(RLIMIT_CORE, &no_core);
		_exit(setup(&state) ? 1 : body(state));
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	return status;
}

static bool is_all(const char *p, char what)
{
	for (size_t i = 0; i < SIZE; i++)
		if (p[i] != what)
			return false;
	return true;
}

static int no_room_for_a_stand_in(struct fixture *f)
{
	uint64_t at = (uintptr_t)f->copies, moved;

	if (!refuse_mremap(f->copies + RUN * PAGE))
		return 77;
	if (hmm_migrate_to_device(f->mm, &f->dev->dev, at, at + SIZE, NULL, &moved))
		return 2;
	if (moved != NR - RUN)
		return 3;
	if (!is_all(f->copies, 'a'))
		return 4;
	memset(f->copies, 'b', SIZE);
	return is_all(f->copies, 'b') ? 0 : 5;
}

/* Too many mappings is said before anything is unmapped: the process lives, and has its pages. */
static void where_a_stand_in_cannot_go_the_file_stays(void **state)
{
	int status = in_child(no_room_for_a_stand_in);

	if (WIFEXITED(status) && WEXITSTATUS(status) == 77)
		skip_because("seccomp filters are not to be had here");
	assert_int_equal(status, 0);
}

static int no_way_back(struct fixture *f)
{
	uint64_t at = (uintptr_t)f->anon, moved;

	/* A guard: the run that it is in goes back, and there it cannot go. */
	if (madvise(f->anon + PINNED * PAGE, PAGE, MADV_GUARD_INSTALL))
		return 78;
	if (mprotect(f->anon, SIZE, PROT_READ) || !refuse_mremap(f->anon + RUN * PAGE))
		return 77;
	hmm_migrate_to_device(f->mm, &f->dev->dev, at, at + SIZE, NULL, &moved);
	return f->anon[RUN * PAGE] == 'a' ? 2 : 3; /* 3: another byte, which nobody told of */
}

static void what_cannot_go_back_ends_the_process(void **state)
{
	int status = in_child(no_way_back);

	if (WIFEXITED(status) && WEXITSTATUS(status) == 77)
		skip_because("seccomp filters are not to be had here");
	if (WIFEXITED(status) && WEXITSTATUS(status) == 78)
		skip_because("no guard regions on this kernel");
	assert_true(WIFSIGNALED(status));
	assert_int_equal(WTERMSIG(status), SIGABRT);
}

/* A block of 2 MiB of such pages, dropped as a whole and asked for again before anybody has touched it. */
static void a_dropped_block_is_the_files(void **state)
{
	struct fixture *f = *state;
	const size_t size = 4 << 20;
	char *raw = mmap(NULL, 2 * size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), page[PAGE], *p;
	int fd = memfd_create("blocks", 0);
	uint64_t moved;

	for (size_t at = 0; at < size; at += PAGE) {
		memset(page, (int)(1 + at / PAGE % 250), PAGE);
		assert_int_equal(pwrite(fd, page, PAGE, (off_t)at), PAGE);
	}
	p = (char *)(((uintptr_t)raw + (2 << 20) - 1) & ~((2ul << 20) - 1));
	assert_ptr_equal(mmap(p, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, fd, 0), p);
	memset(p, 'a', size);
	assert_int_equal(hmm_migrate_to_device(f->mm, &f->dev->dev, (uintptr_t)p, (uintptr_t)p + size, NULL, &moved),
			 0);
	assert_int_equal(moved, size / PAGE);
	assert_int_equal(syscall(SYS_madvise, p, size, MADV_DONTNEED), 0);
	assert_int_equal(hmm_migrate_to_device(f->mm, &f->dev->dev, (uintptr_t)p, (uintptr_t)p + size, NULL, &moved),
			 0);
	for (unsigned i = 0; i < size / PAGE; i++)
		assert_files(p + i * PAGE, i);
	munmap(raw, 2 * size);
	close(fd);
}

/* ----------------------------------------------- a move that fails half-way */

struct tearing {
	_Atomic int listener;
	char *theirs; /* a page that the program puts into the hole at once; NULL: none */
	bool occupies;
	_Atomic uint64_t away;
};

/* The first move is refused after what it is to replace has been unmapped, as some kernels do; later ones go on. */
static void *tear(void *priv)
{
	struct tearing *t = priv;
	struct seccomp_notif n;
	struct seccomp_notif_resp r;
	struct pollfd p = {.events = POLLIN};

	while (!t->listener)
		usleep(100);
	p.fd = t->listener;
	while (poll(&p, 1, -1) == 1 && (p.revents & POLLIN)) {
		memset(&n, 0, sizeof(n));
		if (ioctl(p.fd, SECCOMP_IOCTL_NOTIF_RECV, &n))
			continue;
		r = (struct seccomp_notif_resp){.id = n.id, .flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE};
		if (!t->away) {
			r.flags = 0;
			r.error = -ENOMEM;
			munmap((void *)n.data.args[4], n.data.args[2]);
			if (t->occupies) {
				t->theirs = mmap((char *)n.data.args[4] + PAGE, PAGE, PROT_READ | PROT_WRITE,
						 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
				*t->theirs = 'p';
			}
			t->away = n.data.args[4];
		}
		ioctl(p.fd, SECCOMP_IOCTL_NOTIF_SEND, &r);
	}
	return NULL;
}

static int torn(struct fixture *f, bool occupies)
{
	struct sock_filter filter[] = {
		LOAD(offsetof(struct seccomp_data, nr)),           ONLY(SYS_mremap, 3),
		LOAD(offsetof(struct seccomp_data, args[0])),      ONLY((uintptr_t)f->anon, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog prog = {.len = sizeof(filter) / sizeof(filter[0]), .filter = filter};
	static struct tearing t;
	uint64_t at = (uintptr_t)f->anon, moved = 99;
	pthread_t thread;

	t.occupies = occupies;
	if (mprotect(f->anon, SIZE, PROT_READ) || pthread_create(&thread, NULL, tear, &t))
		return 2;
	if (!prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		t.listener =
			(int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &prog);
	if (t.listener <= 0)
		return 77;
	hmm_migrate_to_device(f->mm, &f->dev->dev, at, at + RUN * PAGE, NULL, &moved);
	if (moved || !t.away)
		return 3;
	if (!is_all(f->anon, 'a'))
		return 4;
	/* What is one's own is nobody else's to have. */
	if (!occupies && mmap((void *)t.away, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1,
			      0) != MAP_FAILED)
		return 5;
	for (unsigned i = 0; i < 3; i++)
		if (hmm_migrate_to_device(f->mm, &f->dev->dev, at, at + SIZE, NULL, &moved) || moved != NR ||
		    !is_all(f->anon, 'a'))
			return 6;
	if (occupies && *t.theirs != 'p')
		return 7;
	if (hmm_mm_close(f->mm))
		return 8;
	umm_space_close(f->space);
	return occupies && *t.theirs != 'p' ? 9 : 0;
}

static int a_hole(struct fixture *f)
{
	return torn(f, false);
}

static int a_hole_that_is_taken(struct fixture *f)
{
	return torn(f, true);
}

static void a_move_that_fails_leaves_no_hole(void **state)
{
	int (*const body[])(struct fixture *) = {a_hole, a_hole_that_is_taken};

	for (unsigned i = 0; i < 2; i++) {
		int status = in_child(body[i]);

		if (WIFEXITED(status) && WEXITSTATUS(status) == 77)
			skip_because("seccomp tells nobody of system calls here");
		assert_int_equal(status, 0);
	}
}

int __real_hmm_smaps_each(struct umm_space *space, bool (*each)(void *priv, const struct hmm_smap *map), void *priv);
int __wrap_hmm_smaps_each(struct umm_space *space, bool (*each)(void *priv, const struct hmm_smap *map), void *priv);
void __real_umm_arena_torn(struct umm_arena *arena);
void __wrap_umm_arena_torn(struct umm_arena *arena);
static bool no_smaps;
static unsigned pieces_left;

int __wrap_hmm_smaps_each(struct umm_space *space, bool (*each)(void *priv, const struct hmm_smap *map), void *priv)
{
	return no_smaps ? -EACCES : __real_hmm_smaps_each(space, each, priv);
}

void __wrap_umm_arena_torn(struct umm_arena *arena)
{
	pieces_left++;
	__real_umm_arena_torn(arena);
}

/* What is refused before anything was unmapped leaves no piece of the arena behind, whatever smaps says, or does not.
 */
static void a_move_that_is_refused_costs_nothing(void **state)
{
	struct fixture *f = *state;

	pieces_left = 0;
	assert_int_equal(mprotect(f->anon, SIZE, PROT_READ), 0);
	assert_int_equal(to_device(f, f->anon), NR);
	assert_is(f->anon, 'a', 'a');
	if (syscall(SYS_mseal, f->anon, SIZE, 0))
		skip_because("mappings cannot be sealed: %s", strerror(errno));
	for (unsigned i = 0; i < 3; i++) {
		no_smaps = i;
		assert_int_equal(to_device(f, f->anon), 0);
		no_smaps = false;
	}
	assert_int_equal(pieces_left, 0);
	assert_is(f->anon, 'a', 'a');
	assert_one_mapping(f, f->anon);
}

struct taking {
	_Atomic int listener;
	uint64_t to;            /* where the move goes that is refused at first, for want of room */
	_Atomic uint64_t piece; /* from where; 0: not yet */
	char *theirs;           /* a page that the program has put there when all of it had gone */
};

static void *take_the_hole(void *priv)
{
	struct taking *t = priv;
	struct seccomp_notif n;
	struct seccomp_notif_resp r;
	struct pollfd p = {.events = POLLIN};

	while (!t->listener)
		usleep(100);
	p.fd = t->listener;
	while (poll(&p, 1, -1) == 1 && (p.revents & POLLIN)) {
		memset(&n, 0, sizeof(n));
		if (ioctl(p.fd, SECCOMP_IOCTL_NOTIF_RECV, &n))
			continue;
		r = (struct seccomp_notif_resp){.id = n.id, .flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE};
		if (n.data.nr == SYS_mremap && !t->piece) {
			r.flags = 0;
			r.error = -ENOMEM;
			t->piece = n.data.args[0];
		} else if (n.data.nr == SYS_mmap && !t->theirs && n.data.args[0] == t->piece) {
			/* Not where nothing has gone yet. */
			char *page = mmap((char *)t->piece + PAGE, PAGE, PROT_READ | PROT_WRITE,
					  MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);

			if (page != MAP_FAILED) {
				*page = 'p';
				t->theirs = page;
			}
		}
		ioctl(p.fd, SECCOMP_IOCTL_NOTIF_SEND, &r);
	}
	return NULL;
}

/* Pages of @mem that go; the first move to @to is refused, as where others have taken all room for what it leaves. */
static int taken(struct fixture *f, char *mem, char *to, unsigned npages)
{
	struct sock_filter filter[] = {
		LOAD(offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_mmap, 3, 0),
		ONLY(SYS_mremap, 3),
		LOAD(offsetof(struct seccomp_data, args[4])),
		ONLY((uintptr_t)to, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog prog = {.len = sizeof(filter) / sizeof(filter[0]), .filter = filter};
	static struct taking t;
	uint64_t at = (uintptr_t)mem, moved = 99;
	pthread_t thread;

	if (pthread_create(&thread, NULL, take_the_hole, &t))
		return 2;
	if (!prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		t.listener =
			(int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &prog);
	if (t.listener <= 0)
		return 77;
	if (hmm_migrate_to_device(f->mm, &f->dev->dev, at, at + SIZE, NULL, &moved))
		return 3;
	if (moved != npages || !t.piece || !t.theirs)
		return 4;
	/* Nothing of what is ours by then goes there any more. */
	for (unsigned i = 0; i < 3; i++)
		if (*t.theirs != 'p' || !is_all(mem, 'a') ||
		    hmm_migrate_to_device(f->mm, &f->dev->dev, at, at + SIZE, NULL, &moved) || moved != npages)
			return 5 + (int)i;
	if (hmm_mm_close(f->mm))
		return 8;
	umm_space_close(f->space);
	return is_all(mem, 'a') && *t.theirs == 'p' ? 0 : 9;
}

static int a_stand_in_without_room(struct fixture *f)
{
	return taken(f, f->copies, f->copies, NR);
}

static int a_way_back_without_room(struct fixture *f)
{
	/* Pinned: the run that it is in goes back. */
	if (!pin(f, f->anon))
		return 78;
	return mprotect(f->anon, SIZE, PROT_READ) ? 2 : taken(f, f->anon, f->anon + RUN * PAGE, NR - RUN);
}

/* Where a piece of the arena was moved as a whole, it is filled again, unless somebody else has it by then. */
static void a_piece_that_has_gone_is_left(void **state)
{
	int (*const body[])(struct fixture *) = {a_stand_in_without_room, a_way_back_without_room};

	for (unsigned i = 0; i < 2; i++) {
		int status = in_child(body[i]);

		if (WIFEXITED(status) && WEXITSTATUS(status) == 77)
			skip_because("seccomp tells nobody of system calls here");
		if (WIFEXITED(status) && WEXITSTATUS(status) == 78)
			skip_because("no page can be pinned with io_uring");
		assert_int_equal(status, 0);
	}
}

/* ------------------------------------------------------------- what is theirs */

static void *write_one(void *page)
{
	*(volatile char *)page = 'b';
	return NULL;
}

/* A mapping of a file that the program watches by a userfaultfd of its own stays, and that one is told still. */
static void what_another_userfaultfd_has_stays(void **state)
{
	struct fixture *f = *state;
	uint64_t at = (uintptr_t)f->copies, moved, got;
	int fd = umm_inside_uffd();
	struct uffd_msg msg;
	struct pollfd p = {.fd = fd, .events = POLLIN};
	pthread_t thread;

	assert_true(fd >= 0);
	if (umm_uffd_api(fd, UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM, 0, &got))
		skip_because("no write protection of shared memory");
	assert_int_equal(umm_uffd_register(fd, at, SIZE, UFFDIO_REGISTER_MODE_WP), 0);
	assert_int_equal(hmm_migrate_to_device(f->mm, &f->dev->dev, at, at + SIZE, NULL, &moved), -EBUSY);
	assert_int_equal(moved, 0);
	assert_one_mapping(f, f->copies);
	assert_int_equal(umm_uffd_writeprotect(fd, at, PAGE), 0);
	assert_int_equal(pthread_create(&thread, NULL, write_one, f->copies), 0);
	assert_int_equal(poll(&p, 1, -1), 1);
	assert_int_equal(read(fd, &msg, sizeof(msg)), sizeof(msg));
	assert_int_equal(msg.event, UFFD_EVENT_PAGEFAULT);
	assert_int_equal(msg.arg.pagefault.address, at);
	close(fd);
	pthread_join(thread, NULL);
	/* Nobody's any more, it goes; and one that we watch ourselves does. */
	assert_int_equal(umm_space_watch(f->space, at + SIZE / 2, SIZE / 2), 0);
	assert_int_equal(hmm_migrate_to_device(f->mm, &f->dev->dev, at, at + SIZE, NULL, &moved), 0);
	assert_int_equal(moved, NR);
	assert_int_equal(*f->copies, 'b');
	*f->copies = 'a';
	assert_is(f->copies, 'a', 'a');
}

int __real_umm_inside_registered(int uffd, uint64_t addr);
int __wrap_umm_inside_registered(int uffd, uint64_t addr);
static unsigned unsure; /* so often it is asked while a change is under way */

int __wrap_umm_inside_registered(int uffd, uint64_t addr)
{
	return unsure && unsure-- ? -EAGAIN : __real_umm_inside_registered(uffd, addr);
}

/* While something changes nobody can tell whose a mapping is: that does not make it another's. */
static void what_changes_is_nobodys_yet(void **state)
{
	struct fixture *f = *state;
	uint64_t at = (uintptr_t)f->copies, moved;

	unsure = 3;
	assert_int_equal(hmm_migrate_to_device(f->mm, &f->dev->dev, at, at + SIZE, NULL, &moved), 0);
	assert_int_equal(unsure, 0);
	assert_int_equal(moved, NR);
	assert_is(f->copies, 'a', 'a');
}

/* Under our numbers: something of the program's.  A byte is in the pipe. */
static unsigned replace_ours(struct fixture *f, int fd[16], struct stat file, int pipes[2])
{
	unsigned n = 0;

	for (int i = 3; i < 200 && n < 16; i++) {
		struct stat st;

		if (i == f->file || i == f->data || fstat(i, &st))
			continue;
		if (S_ISFIFO(st.st_mode) && i != pipes[0] && i != pipes[1])
			dup2(pipes[(fcntl(i, F_GETFL) & O_ACCMODE) == O_WRONLY], i);
		else if (st.st_ino == file.st_ino && st.st_dev == file.st_dev)
			dup2(f->data, i);
		else
			continue;
		fd[n++] = i;
	}
	return n;
}

static int numbers_of_ours(struct fixture *f)
{
	uint64_t at = (uintptr_t)f->copies, moved;
	int pipes[2], fd[16], waiting;
	struct stat file;
	unsigned n;

	if (hmm_migrate_to_device(f->mm, &f->dev->dev, at, at + SIZE / 2, NULL, &moved) || moved != NR / 2)
		return 2;
	if (pipe(pipes) || write(pipes[1], "x", 1) != 1 || fstat(f->file, &file))
		return 3;
	n = replace_ours(f, fd, file, pipes);
	if (n != 3)
		return 4;
	if (hmm_migrate_to_device(f->mm, &f->dev->dev, at, at + SIZE, NULL, &moved) || moved != NR)
		return 5;
	if (!is_all(f->copies, 'a'))
		return 6;
	if (ioctl(pipes[0], FIONREAD, &waiting) || waiting != 1)
		return 7;
	if (hmm_mm_close(f->mm))
		return 8;
	umm_space_close(f->space);
	for (unsigned i = 0; i < n; i++)
		if (fcntl(fd[i], F_GETFD) < 0)
			return 9;
	return 0;
}

/* Who closes all descriptors, and opens others, has the numbers that ours had. */
static void numbers_that_are_the_programs_are_left_alone(void **state)
{
	assert_int_equal(in_child(numbers_of_ours), 0);
}

/* A batch that ends early, for it has too many runs: what it did not reach is no part of it. */
static void what_was_offered_and_not_reached_is_withdrawn(void **state)
{
	struct fixture *f = *state;
	const uint64_t size = HMM_BATCH_MAX * PAGE;
	char *raw = mmap(NULL, 2 * size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *p = (char *)(((uintptr_t)raw + size - 1) & ~(size - 1)), *last = p + size - PAGE;
	struct hmm_migrate m = {.mm = f->mm, .to = &f->dev->dev, .start = (uintptr_t)p, .end = (uintptr_t)p + size};
	int fd = memfd_create("blocks", 0);

	assert_int_equal(ftruncate(fd, (off_t)size), 0);
	assert_ptr_equal(mmap(p, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, fd, 0), p);
	for (uint64_t i = PAGE; i < size; i += 2 * PAGE)
		p[i] = 'a';
	assert_int_equal(hmm_migrate_collect(&m), 0);
	hmm_migrate_copy(&m);
	assert_true(hmm_migrate_commit(&m) > 0);
	assert_true(m.end < (uintptr_t)p + size);
	/* What comes to lie there is managed when it is asked for. */
	assert_ptr_equal(mmap(last, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0),
			 last);
	assert_int_equal(hmm_mm_manage(f->mm, (uintptr_t)last, (uintptr_t)last + PAGE), 0);
	assert_true(umm_inside_registered(f->space->uffd, (uintptr_t)last) != -ENOENT);
	munmap(raw, 2 * size);
	close(fd);
}

int __real_hmm_take_offer(struct hmm_take *t, uint64_t start, uint64_t end);
int __wrap_hmm_take_offer(struct hmm_take *t, uint64_t start, uint64_t end);
static char *dropped; /* before the batch begins, and long enough for what is dropped to go again */

int __wrap_hmm_take_offer(struct hmm_take *t, uint64_t start, uint64_t end)
{
	struct umm_space *space = t->mm->space;
	uint64_t at = (uintptr_t)dropped;
	bool busy = at;

	if (busy)
		assert_int_equal(syscall(SYS_madvise, dropped, PAGE, MADV_DONTNEED), 0);
	dropped = NULL;
	while (busy) {
		usleep(1000);
		umm_evlock_shared(&space->ctl->evlock);
		busy = umm_quarantined(space, at, at + PAGE);
		umm_evlock_unshared(&space->ctl->evlock);
	}
	return __real_hmm_take_offer(t, start, end);
}

/* A page of such memory is dropped when all that is missing was asked for: the inside, for whom a child shares the
 * pages, asks for it as well. */
static void what_the_inside_asks_for_is_the_files(void **state)
{
	struct fixture *f = *state;
	char page[PAGE], *at = f->copies + 5 * PAGE;
	int gate[2], status;
	pid_t pid;

	memset(page, 6, PAGE);
	assert_int_equal(pwrite(f->file, page, PAGE, 5 * PAGE), PAGE);
	assert_int_equal(to_device(f, f->copies), NR);
	assert_is(f->copies, 'a', 'a');
	assert_int_equal(pipe(gate), 0);
	pid = (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
	if (!pid) {
		char c;

		close(gate[1]);
		_exit(read(gate[0], &c, 1) != 0);
	}
	close(gate[0]);
	dropped = at;
	assert_int_equal(to_device(f, f->copies), NR);
	assert_null(dropped);
	close(gate[1]);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	for (unsigned i = 0; i < PAGE; i++)
		assert_int_equal(at[i], 6);
}

struct hmm_leaf *__real_hmm_leaf_get(struct hmm_mm *mm, uint64_t addr);
struct hmm_leaf *__wrap_hmm_leaf_get(struct hmm_mm *mm, uint64_t addr);
static _Atomic uint64_t served; /* the page whose fault is stopped while it is served; 0: none is */
static sem_t stopped, go_on;

/* It has been looked at whether a file stands in there; the file is read next. */
struct hmm_leaf *__wrap_hmm_leaf_get(struct hmm_mm *mm, uint64_t addr)
{
	uint64_t want = addr;

	if (addr && atomic_compare_exchange_strong(&served, &want, 0)) {
		hmm_device_sleeps(); /* another thread reads events meanwhile */
		sem_post(&stopped);
		while (sem_wait(&go_on))
			;
	}
	return __real_hmm_leaf_get(mm, addr);
}

/* Something else was moved there before the file was read: it gets none of the file. */
static void what_was_moved_over_a_stand_in_is_itself(void **state)
{
	struct fixture *f = *state;
	char page[PAGE], *at = f->copies + 5 * PAGE, *other = f->anon + 9 * PAGE;
	pthread_t t;
	void *saw;

	memset(page, 6, PAGE);
	assert_int_equal(pwrite(f->file, page, PAGE, 5 * PAGE), PAGE);
	assert_int_equal(to_device(f, f->copies), NR);
	assert_int_equal(to_device(f, f->anon), NR);
	assert_is(f->copies, 'a', 'a');
	assert_is(f->anon, 'a', 'a');
	assert_int_equal(syscall(SYS_madvise, at, PAGE, MADV_DONTNEED), 0);
	assert_int_equal(syscall(SYS_madvise, other, PAGE, MADV_DONTNEED), 0);
	sem_init(&stopped, 0, 0);
	sem_init(&go_on, 0, 0);
	atomic_store(&served, (uintptr_t)at);
	assert_int_equal(pthread_create(&t, NULL, touch_main, at), 0);
	while (sem_wait(&stopped))
		;
	assert_ptr_equal((char *)syscall(SYS_mremap, other, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, at), at);
	sem_post(&go_on);
	assert_int_equal(pthread_join(t, &saw), 0);
	assert_int_equal((uintptr_t)saw, 0);
	for (unsigned i = 0; i < PAGE; i++)
		assert_int_equal(at[i], 0);
}

bool __real_hmm_take_stands_in(struct hmm_take *t, uint64_t start, uint64_t end);
bool __wrap_hmm_take_stands_in(struct hmm_take *t, uint64_t start, uint64_t end);
static char *block_at, *block_from; /* a file's stand-in is moved to that block from there once it was asked about */
static bool block_asked;

/* Where the event lock is held nothing can change before what was said is made use of. */
bool __wrap_hmm_take_stands_in(struct hmm_take *t, uint64_t start, uint64_t end)
{
	bool is = __real_hmm_take_stands_in(t, start, end);

	if (block_at && start == (uintptr_t)block_at && end == start + (2 << 20)) {
		block_asked = true;
		if (!(atomic_load(&t->mm->space->ctl->evlock.word) & UMM_EVLOCK_COUNT) &&
		    syscall(SYS_mremap, block_from, 2 << 20, 2 << 20, MREMAP_MAYMOVE | MREMAP_FIXED, block_at) ==
			    (long)block_at)
			block_from = NULL;
		block_at = NULL;
	}
	return is;
}

/* A block that nobody has touched goes as one of zeros; not where a stand-in is by then. */
static void what_was_moved_to_a_block_is_the_files(void **state)
{
	struct fixture *f = *state;
	const size_t size = 2 << 20;
	char *raw = mmap(NULL, 4 * size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), page[PAGE], *p, *to;
	int fd = memfd_create("block", 0);
	uint64_t moved;

	for (size_t at = 0; at < size; at += PAGE) {
		memset(page, (int)(1 + at / PAGE % 250), PAGE);
		assert_int_equal(pwrite(fd, page, PAGE, (off_t)at), PAGE);
	}
	p = (char *)(((uintptr_t)raw + size - 1) & ~(size - 1));
	to = p + 2 * size - (p + 3 * size > raw + 4 * size ? size : 0);
	assert_ptr_equal(mmap(p, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, fd, 0), p);
	memset(p, 'a', size);
	assert_int_equal(hmm_migrate_to_device(f->mm, &f->dev->dev, (uintptr_t)p, (uintptr_t)p + size, NULL, &moved),
			 0);
	assert_int_equal(moved, size / PAGE);
	assert_int_equal(syscall(SYS_madvise, p, size, MADV_DONTNEED), 0);
	assert_ptr_equal(mmap(to, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0), to);
	block_from = p;
	block_asked = false;
	block_at = to;
	hmm_migrate_to_device(f->mm, &f->dev->dev, (uintptr_t)to, (uintptr_t)to + size, NULL, &moved);
	assert_true(block_asked);
	for (unsigned i = 0; i < size / PAGE; i++) {
		if (!block_from)
			assert_files(to + i * PAGE, i);
		else
			assert_int_equal(to[i * PAGE], 0);
	}
	munmap(raw, 4 * size);
	close(fd);
}

int __real_umm_uffd_register(int uffd, uint64_t start, uint64_t len, uint64_t mode);
int __wrap_umm_uffd_register(int uffd, uint64_t start, uint64_t len, uint64_t mode);
static uint64_t forked_at; /* once it is watched again a child is forked; 0: none is */
static pid_t forked;
static int fork_gate[2]; /* the child is there until it is closed */

int __wrap_umm_uffd_register(int uffd, uint64_t start, uint64_t len, uint64_t mode)
{
	int rc = __real_umm_uffd_register(uffd, start, len, mode);

	if (forked_at && start == forked_at) {
		forked_at = 0;
		forked = (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
		if (!forked) {
			char c;

			sys_close(fork_gate[1]);
			_exit(read(fork_gate[0], &c, 1) || *(volatile char *)start != 'a');
		}
	}
	return rc;
}

/* A file whose pages the kernel poisons nowhere: none of tmpfs. */
static int fork_beside_what_stays(struct fixture *f)
{
	int fd = open("/var/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600), status;
	struct statfs fs;
	uint64_t moved, at;
	char *p;

	if (fd < 0 || fstatfs(fd, &fs) || fs.f_type == TMPFS_MAGIC || ftruncate(fd, SIZE))
		return 79;
	p = mmap(NULL, SIZE + RUN * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	p = (char *)(((uintptr_t)p + RUN * PAGE - 1) & ~(RUN * PAGE - 1));
	if (mmap(p, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, fd, 0) != p)
		return 2;
	memset(p, 'a', SIZE);
	at = (uintptr_t)p;
	/* The first run goes, the second one is refused. */
	if (umm_space_watch(f->space, at, SIZE) || !refuse_mremap(p + RUN * PAGE))
		return 77;
	if (pipe(fork_gate))
		return 2;
	forked_at = at + RUN * PAGE;
	if (hmm_migrate_to_device(f->mm, &f->dev->dev, at, at + SIZE, NULL, &moved))
		return 3;
	if (moved != NR - RUN || forked <= 0)
		return 4;
	close(fork_gate[1]);
	return waitpid(forked, &status, 0) != forked || status ? 5 : is_all(p, 'a') ? 0 : 6;
}

/* Of what mremap() refuses a child lacks nothing, and is given nothing. */
static void a_child_beside_what_stays_has_it(void **state)
{
	int status = in_child(fork_beside_what_stays);

	if (WIFEXITED(status) && WEXITSTATUS(status) == 77)
		skip_because("seccomp filters are not to be had here");
	if (WIFEXITED(status) && WEXITSTATUS(status) == 79)
		skip_because("/var/tmp is no directory on a disk");
	assert_int_equal(status, 0);
}

void *__real_umm_alloc(struct umm_space *space, size_t size);
void *__wrap_umm_alloc(struct umm_space *space, size_t size);
static bool no_memory;
static unsigned none_in; /* this allocation fails; 0: none */

void *__wrap_umm_alloc(struct umm_space *space, size_t size)
{
	if (none_in && !--none_in)
		return NULL;
	return no_memory ? NULL : __real_umm_alloc(space, size);
}

static bool says(int fd, const char *what)
{
	char buf[4096];
	ssize_t got = pread(fd, buf, sizeof(buf) - 1, 0);

	buf[got > 0 ? got : 0] = 0;
	return strstr(buf, what);
}

/* Stand-ins that fall into more parts than there is room to note. */
static int parts_without_memory(struct fixture *f)
{
	int said = memfd_create("said", 0);
	uint64_t at = (uintptr_t)f->copies, moved;

	if (hmm_migrate_to_device(f->mm, &f->dev->dev, at, at + SIZE, NULL, &moved) || moved != NR)
		return 2;
	dup2(said, 2);
	no_memory = true;
	for (unsigned i = 1; i < NR - 1 && !says(said, "no memory"); i += 2)
		if (syscall(SYS_munmap, f->copies + i * PAGE, PAGE))
			return 3;
	no_memory = false;
	umm_space_sync(f->space);
	return says(said, "a dropped page will read as zeros") ? 0 : 4;
}

static void what_cannot_be_noted_is_said(void **state)
{
	assert_int_equal(in_child(parts_without_memory), 0);
}

#define T_(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)

static bool registered_missing(void *priv, const struct hmm_smap *map)
{
	*(unsigned *)priv += strstr(map->flags, " um") != NULL;
	return true;
}

/* What an engine that did not come to be gives back is memory as any other. */
static void an_engine_without_memory_leaves_nothing_registered(void **state)
{
	struct umm_space *space;
	struct hmm_mm *mm;
	unsigned failed = 0;
	int rc;

	assert_int_equal(umm_space_open_self(&space), 0);
	for (unsigned at = 1;; at++) {
		unsigned missing = 0;

		none_in = at;
		rc = hmm_mm_open(space, &mm);
		if (none_in || (rc && rc != -ENOMEM))
			break;
		failed += rc == -ENOMEM;
		if (!rc)
			break;
		assert_int_equal(hmm_smaps_each(space, registered_missing, &missing), 0);
		assert_int_equal(missing, 0);
	}
	none_in = 0;
	if (rc == -EPERM || rc == -EOPNOTSUPP)
		skip_because("no userfaultfd that moves pages: error %d", -rc);
	assert_int_equal(rc, 0);
	assert_true(failed >= 4);
	assert_int_equal(hmm_mm_close(mm), 0);
	umm_space_close(space);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		T_(a_pinned_readonly_page_stays),
		T_(a_pinned_copy_of_a_files_page_stays),
		T_(a_page_shared_since_a_fork_goes),
		T_(a_file_that_was_watched_stays_so),
		T_(without_room_nothing_goes),
		T_(a_dropped_page_is_the_files_wherever_it_is),
		T_(a_page_dropped_while_it_comes_is_the_files),
		T_(a_dropped_block_is_the_files),
		T_(what_the_inside_asks_for_is_the_files),
		T_(what_was_moved_over_a_stand_in_is_itself),
		T_(what_was_moved_to_a_block_is_the_files),
		T_(what_a_child_is_not_to_have_stays),
		T_(what_is_to_be_in_no_core_stays),
		T_(what_has_a_key_stays),
		T_(a_sealed_mapping_stays),
		cmocka_unit_test(where_a_stand_in_cannot_go_the_file_stays),
		cmocka_unit_test(what_cannot_go_back_ends_the_process),
		cmocka_unit_test(a_move_that_fails_leaves_no_hole),
		T_(a_move_that_is_refused_costs_nothing),
		cmocka_unit_test(a_piece_that_has_gone_is_left),
		T_(what_another_userfaultfd_has_stays),
		T_(what_changes_is_nobodys_yet),
		cmocka_unit_test(numbers_that_are_the_programs_are_left_alone),
		T_(what_was_offered_and_not_reached_is_withdrawn),
		cmocka_unit_test(an_engine_without_memory_leaves_nothing_registered),
		cmocka_unit_test(what_cannot_be_noted_is_said),
		cmocka_unit_test(a_child_beside_what_stays_has_it),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
