/* SPDX-License-Identifier: MIT */
/* The linked engine, by its public interface: a program with devices of its own. */
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <malloc.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
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
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#include "../../skip.h"
#include "drivers/dmirror/memory.h"
#include "fake.h"
#include "hmm/internal.h"
#include "umm/hooks.h"
#include "umm/internal.h"

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#define MADV_GUARD_REMOVE 103
#endif

#define PAGE 4096ul
#define NR 700u /* more than a batch */
#define SIZE (NR * PAGE)

#define HMM_MANY 16u /* more devices than an engine takes */

struct fixture {
	struct umm_space *space;
	struct hmm_mm *mm;
	struct fake *dev[2];
	struct hmm_device coherent;
	struct hmm_device_ops coherent_ops;
	char *mem; /* SIZE, with nobody's page on either side */
	uint64_t addr;
};

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	int rc = umm_space_open_self(&f->space);

	if (!rc)
		rc = hmm_mm_open(f->space, &f->mm);
	if (rc == -EPERM || rc == -EOPNOTSUPP) {
		print_message("no userfaultfd that moves pages: error %d\n", -rc);
		exit(77);
	}
	if (rc)
		return -1;
	f->coherent_ops = (struct hmm_device_ops){.name = "coherent", .caps = HMM_DEV_COHERENT};
	f->coherent.ops = &f->coherent_ops;
	for (unsigned i = 0; i < 2; i++) {
		f->dev[i] = fake_create(true);
		if (hmm_mm_add_device(f->mm, &f->dev[i]->dev))
			return -1;
	}
	if (hmm_mm_add_device(f->mm, &f->coherent))
		return -1;
	f->mem = mmap(NULL, SIZE + 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (f->mem == MAP_FAILED)
		return -1;
	mprotect(f->mem, PAGE, PROT_NONE);
	f->mem += PAGE;
	mprotect(f->mem + SIZE, PAGE, PROT_NONE);
	madvise(f->mem, SIZE, MADV_NOHUGEPAGE);
	f->addr = (uintptr_t)f->mem;
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;
	int rc = hmm_mm_close(f->mm);

	/* Every reference that was taken has been given back. */
	for (unsigned i = 0; i < 2; i++) {
		if (f->dev[i]->refs_total) {
			print_error("device %u: %lu references left\n", i, (unsigned long)f->dev[i]->refs_total);
			rc = -1;
		}
		fake_free(f->dev[i]);
	}
	munmap(f->mem - PAGE, SIZE + 2 * PAGE);
	umm_space_close(f->space);
	free(f);
	return rc;
}

static void fill(struct fixture *f, unsigned seed)
{
	for (size_t i = 0; i < SIZE / sizeof(uint64_t); i++)
		((uint64_t *)f->mem)[i] = i * 2654435761u + seed;
}

static void assert_filled(const char *mem, size_t size, unsigned seed, size_t first)
{
	for (size_t i = 0; i < size / sizeof(uint64_t); i++)
		if (((const uint64_t *)mem)[i] != (i + first) * 2654435761u + seed)
			fail_msg("word %zu is wrong", i);
}

static unsigned on_at(struct fixture *f, const struct hmm_device *dev, uint64_t addr)
{
	struct hmm_device *where[NR];
	unsigned n = 0;

	assert_int_equal(hmm_where(f->mm, addr, addr + SIZE, where, NULL), 0);
	for (unsigned i = 0; i < NR; i++)
		n += where[i] == dev;
	return n;
}

static unsigned on(struct fixture *f, const struct hmm_device *dev)
{
	return on_at(f, dev, f->addr);
}

static bool present(uint64_t addr)
{
	int fd = open("/proc/self/pagemap", O_RDONLY);
	uint64_t e = 0;

	assert_int_equal(pread(fd, &e, sizeof(e), (off_t)(addr / PAGE * sizeof(e))), sizeof(e));
	close(fd);
	return e >> 63;
}

static void there_and_back(void **state)
{
	struct fixture *f = *state;
	uint64_t moved = 99;

	fill(f, 1);
	for (unsigned round = 0; round < 3; round++) {
		struct hmm_device *dev = &f->dev[round % 2]->dev;

		assert_int_equal(hmm_migrate_to_device(f->mm, dev, f->addr, f->addr + SIZE, NULL, &moved), 0);
		assert_int_equal(moved, NR);
		assert_int_equal(on(f, dev), NR);
		for (unsigned i = 0; i < NR; i++)
			assert_false(present(f->addr + i * PAGE));
		if (round < 2) {
			assert_int_equal(hmm_migrate_to_system(f->mm, dev, f->addr, f->addr + SIZE, &moved), 0);
			assert_int_equal(moved, NR);
			assert_int_equal(on(f, NULL), NR);
			for (unsigned i = 0; i < NR; i++)
				assert_true(present(f->addr + i * PAGE));
		}
		assert_filled(f->mem, SIZE, 1, 0);
	}
	assert_int_equal(on(f, NULL), NR);
}

static void never_touched_and_read_only(void **state)
{
	struct fixture *f = *state;
	struct hmm_device *dev = &f->dev[0]->dev;
	uint64_t moved = 0;

	f->mem[PAGE] = 1;
	(void)*(volatile char *)(f->mem + 2 * PAGE);
	f->mem[3 * PAGE] = 3;
	assert_int_equal(mprotect(f->mem + 3 * PAGE, PAGE, PROT_READ), 0);
	assert_int_equal(hmm_migrate_to_device(f->mm, dev, f->addr, f->addr + SIZE, NULL, &moved), 0);
	assert_int_equal(moved, NR);
	assert_int_equal(f->mem[0], 0);
	assert_int_equal(f->mem[PAGE], 1);
	assert_int_equal(f->mem[2 * PAGE], 0);
	assert_int_equal(f->mem[3 * PAGE], 3);
	/* Still read-only, for system calls too. */
	int zero = open("/dev/zero", O_RDONLY);
	assert_int_equal(read(zero, f->mem + 3 * PAGE, 1), -1);
	assert_int_equal(errno, EFAULT);
	assert_int_equal(read(zero, f->mem + 4 * PAGE, 1), 1);
	close(zero);
	for (size_t i = 4 * PAGE; i < SIZE; i++)
		assert_int_equal(f->mem[i], 0);
}

static void from_device_to_device(void **state)
{
	struct fixture *f = *state;
	uint64_t moved = 0, half = f->addr + SIZE / 2 / PAGE * PAGE;

	fill(f, 2);
	assert_int_equal(hmm_migrate_to_device(f->mm, &f->dev[0]->dev, f->addr, f->addr + SIZE, NULL, &moved), 0);
	assert_int_equal(hmm_migrate_to_device(f->mm, &f->dev[1]->dev, half, f->addr + SIZE, NULL, &moved), 0);
	assert_int_equal(moved, NR / 2);
	assert_int_equal(on(f, &f->dev[0]->dev), NR / 2);
	assert_int_equal(on(f, &f->dev[1]->dev), NR / 2);
	/* One device gives up what it holds, and the other keeps its own. */
	assert_int_equal(hmm_migrate_to_system(f->mm, &f->dev[0]->dev, 0, HMM_ADDR_END, &moved), 0);
	assert_int_equal(moved, NR / 2);
	assert_int_equal(on(f, &f->dev[1]->dev), NR / 2);
	assert_filled(f->mem, SIZE, 2, 0);
}

static void partial_success(void **state)
{
	struct fixture *f = *state;
	uint64_t moved = 0;

	fill(f, 3);
	f->dev[0]->take_every = 3;
	assert_int_equal(hmm_migrate_to_device(f->mm, &f->dev[0]->dev, f->addr, f->addr + 9 * PAGE, NULL, &moved), 0);
	assert_true(moved >= 3 && moved <= 9);
	assert_int_equal(on(f, &f->dev[0]->dev), moved);
	f->dev[1]->fail_in = -EIO;
	assert_int_equal(hmm_migrate_to_device(f->mm, &f->dev[1]->dev, f->addr, f->addr + 9 * PAGE, NULL, &moved), 0);
	assert_int_equal(moved, 0);
	assert_int_equal(on(f, NULL), NR);
	assert_filled(f->mem, SIZE, 3, 0);
}

static void in_three_phases(void **state)
{
	struct fixture *f = *state;
	struct hmm_migrate *m = calloc(1, sizeof(*m));

	fill(f, 4);
	*m = (struct hmm_migrate){.mm = f->mm, .to = &f->dev[0]->dev, .start = f->addr, .end = f->addr + 100 * PAGE};
	assert_int_equal(hmm_migrate_collect(m), 0);
	assert_int_equal(m->npages, 100);
	for (unsigned i = 0; i < 100; i++) {
		assert_int_equal(m->addr[i], f->addr + i * PAGE);
		assert_false(present(m->addr[i]));
		assert_filled(m->src[i], PAGE, 4, i * PAGE / sizeof(uint64_t));
	}
	assert_int_equal(hmm_migrate_copy(m), 100);
	/* Touched before it was committed: the device's copy is not wanted any more. */
	((uint64_t *)f->mem)[0] = 77;
	/* And one that the driver changes its mind about. */
	f->dev[0]->ops.put(&f->dev[0]->dev, &m->handle[1], 1);
	m->handle[1] = HMM_HANDLE_NONE;
	assert_int_equal(hmm_migrate_commit(m), 98);
	assert_int_equal(on(f, &f->dev[0]->dev), 98);
	assert_int_equal(((uint64_t *)f->mem)[0], 77);
	((uint64_t *)f->mem)[0] = 4;
	assert_filled(f->mem, SIZE, 4, 0);

	/* The device fails: its error comes through, and all goes back. */
	*m = (struct hmm_migrate){.mm = f->mm, .to = &f->dev[1]->dev, .start = f->addr, .end = f->addr + 100 * PAGE};
	assert_int_equal(hmm_migrate_collect(m), 0);
	assert_int_equal(m->npages, 100);
	fake_fail_in(f->dev[1], -EIO);
	assert_int_equal(hmm_migrate_copy(m), -EIO);
	fake_fail_in(f->dev[1], 0);
	assert_int_equal(hmm_migrate_commit(m), 0);
	assert_filled(f->mem, SIZE, 4, 0);

	*m = (struct hmm_migrate){.mm = f->mm, .to = &f->dev[0]->dev, .start = f->addr};
	m->end = f->addr + (HMM_BATCH_MAX + 1) * PAGE;
	assert_int_equal(hmm_migrate_collect(m), -EINVAL);
	m->end = f->addr + PAGE;
	m->to = &f->coherent;
	assert_int_equal(hmm_migrate_collect(m), -EINVAL);
	free(m);
}

static void bad_arguments(void **state)
{
	struct fixture *f = *state;
	struct hmm_device *dev = &f->dev[0]->dev, other = f->dev[0]->dev;
	struct hmm_mm *again;
	uint64_t moved = 99, end = f->addr + SIZE, walked;
	struct hmm_device *where[1];
	struct umm_page_run run;
	char *shared;

	assert_int_equal(umm_page_scan(f->space, f->addr + 1, end, &run, 1, &walked), -EINVAL);
	assert_int_equal(umm_page_scan(f->space, end, f->addr, &run, 1, &walked), -EINVAL);
	assert_int_equal(umm_page_scan(f->space, 1ull << 63, (1ull << 63) + PAGE, &run, 1, &walked), -EFAULT);
	assert_int_equal(hmm_where(f->mm, f->addr, f->addr, where, NULL), -EINVAL);
	assert_int_equal(hmm_device_read(f->mm, dev, f->addr + 1, f->mem, 1), -EINVAL);
	assert_int_equal(hmm_device_write(f->mm, &other, f->addr, f->mem, 1), -EINVAL);
	assert_int_equal(hmm_device_read(f->mm, &f->coherent, f->addr, f->mem, 1), 0);
	assert_int_equal(hmm_migrate_to_system(f->mm, &other, f->addr, end, NULL), -EINVAL);
	assert_int_equal(hmm_mm_unmanage(f->mm, end, f->addr), -EINVAL);
	assert_int_equal(hmm_mm_uniform(f->mm, end, f->addr), -EINVAL);

	assert_int_equal(hmm_migrate_to_device(f->mm, dev, f->addr + 1, end, NULL, &moved), -EINVAL);
	assert_int_equal(moved, 0);
	assert_int_equal(hmm_migrate_to_device(f->mm, dev, end, f->addr, NULL, NULL), -EINVAL);
	assert_int_equal(hmm_migrate_to_device(f->mm, dev, f->addr, HMM_ADDR_END + PAGE, NULL, NULL), -EINVAL);
	assert_int_equal(hmm_migrate_to_device(f->mm, &other, f->addr, end, NULL, NULL), -EINVAL);
	/* Unreadable, and a hole. */
	assert_int_equal(hmm_migrate_to_device(f->mm, dev, f->addr, end + PAGE, NULL, NULL), -EINVAL);
	assert_int_equal(munmap(f->mem + PAGE, PAGE), 0);
	assert_int_equal(hmm_migrate_to_device(f->mm, dev, f->addr, end, NULL, NULL), -EINVAL);
	assert_int_equal(hmm_mm_manage(f->mm, f->addr, end), -EINVAL);
	assert_int_equal(hmm_mm_add_device(f->mm, dev), -EEXIST);
	assert_int_equal(hmm_mm_add_device(f->mm, NULL), -EINVAL);
	assert_int_equal(hmm_mm_open(f->space, &again), -EBUSY);
	shared = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	assert_int_equal(hmm_mm_manage(f->mm, (uintptr_t)shared, (uintptr_t)shared + PAGE), -EINVAL);
	assert_int_equal(hmm_migrate_to_device(f->mm, dev, (uintptr_t)shared, (uintptr_t)shared + PAGE, NULL, &moved),
			 0);
	assert_int_equal(moved, 0);
	munmap(shared, PAGE);
}

static void what_a_device_can_read_it_does(void **state)
{
	struct fixture *f = *state;
	struct fake *d = f->dev[0];
	uint64_t *buf = umm_alloc(f->space, SIZE), moved;

	fill(f, 5);
	assert_int_equal(hmm_migrate_to_device(f->mm, &d->dev, f->addr, f->addr + SIZE, NULL, &moved), 0);
	/* Its third page it cannot. */
	d->fail_from = (unsigned)d->copied_out + 2;
	fake_fail_out(d, -EIO);
	assert_int_equal(hmm_device_read(f->mm, &d->dev, f->addr, buf, 10), 2);
	assert_filled((char *)buf, 2 * PAGE, 5, 0);
	assert_int_equal(hmm_device_read(f->mm, &d->dev, f->addr + 2 * PAGE, buf, 10), -EIO);
	fake_fail_out(d, 0);
	assert_int_equal(hmm_device_read(f->mm, &d->dev, f->addr, buf, NR), NR);
	assert_filled((char *)buf, SIZE, 5, 0);
	umm_free(f->space, buf, SIZE);
}

static void a_device_at_its_own_pages(void **state)
{
	struct fixture *f = *state;
	struct hmm_device *dev = &f->dev[0]->dev;
	uint64_t *buf = umm_alloc(f->space, SIZE);
	uint64_t moved;

	fill(f, 5);
	assert_int_equal(hmm_device_read(f->mm, dev, f->addr, buf, NR), 0);
	assert_int_equal(hmm_device_write(f->mm, dev, f->addr, buf, NR), 0);
	assert_int_equal(hmm_migrate_to_device(f->mm, dev, f->addr, f->addr + SIZE, NULL, &moved), 0);
	assert_int_equal(hmm_device_read(f->mm, dev, f->addr, buf, NR), NR);
	assert_filled((char *)buf, SIZE, 5, 0);
	assert_int_equal(on(f, dev), NR);
	/* Of an address that no page can have the lower bits are another's. */
	assert_int_equal(hmm_device_read(f->mm, dev, f->addr + HMM_ADDR_END, buf, 1), -EINVAL);
	assert_int_equal(hmm_device_write(f->mm, dev, f->addr + HMM_ADDR_END, buf, 1), -EINVAL);
	assert_int_equal(hmm_device_read(f->mm, dev, HMM_ADDR_END - PAGE, buf, 2), -EINVAL);
	assert_int_equal(hmm_device_read(f->mm, dev, HMM_ADDR_END - PAGE, buf, 1), 0);
	(void)*(volatile char *)(f->mem + 10 * PAGE); /* page 10 comes back */
	assert_int_equal(hmm_device_read(f->mm, dev, f->addr, buf, NR), 10);
	for (size_t i = 0; i < SIZE / 8; i++)
		buf[i] = i * 2654435761u + 6;
	assert_int_equal(hmm_device_write(f->mm, dev, f->addr, buf, NR), 10);
	assert_int_equal(hmm_device_write(f->mm, dev, f->addr + 11 * PAGE, buf + 11 * PAGE / 8, NR - 11), NR - 11);
	assert_int_equal(on(f, dev), NR - 1);
	assert_filled(f->mem, 10 * PAGE, 6, 0);
	assert_filled(f->mem + 10 * PAGE, PAGE, 5, 10 * PAGE / 8);
	assert_filled(f->mem + 11 * PAGE, SIZE - 11 * PAGE, 6, 11 * PAGE / 8);
	umm_free(f->space, buf, SIZE);
}

struct writer {
	struct fixture *f;
	char *buf;
	int got;
};

static void *write_four(void *arg)
{
	struct writer *w = arg;

	w->got = hmm_device_write(w->f->mm, &w->f->dev[0]->dev, w->f->addr, w->buf, 4);
	return NULL;
}

/* They come home while the device takes what is to be written, and not all of it: no want of memory. */
static void what_left_while_it_was_written_is_elsewhere(void **state)
{
	struct fixture *f = *state;
	struct fake *dev = f->dev[0];
	struct writer w = {.f = f, .buf = umm_alloc(f->space, 4 * PAGE)};
	pthread_t t;

	fill(f, 15);
	assert_int_equal(hmm_migrate_to_device(f->mm, &dev->dev, f->addr, f->addr + SIZE, NULL, NULL), 0);
	memset(w.buf, 1, 4 * PAGE);
	pthread_mutex_lock(&dev->lock);
	dev->take_every = 2;
	dev->block_in = true;
	pthread_mutex_unlock(&dev->lock);
	assert_int_equal(pthread_create(&t, NULL, write_four, &w), 0);
	fake_await(dev, &dev->in_blocked);
	assert_filled(f->mem, 4 * PAGE, 15, 0);
	pthread_mutex_lock(&dev->lock);
	dev->block_in = false;
	pthread_cond_broadcast(&dev->moved);
	pthread_mutex_unlock(&dev->lock);
	pthread_join(t, NULL);
	assert_int_equal(w.got, 0);
	/* Where it takes nothing it is. */
	dev->take_every = 1;
	assert_int_equal(hmm_migrate_to_device(f->mm, &dev->dev, f->addr, f->addr + SIZE, NULL, NULL), 0);
	assert_int_equal(on(f, &dev->dev), NR);
	dev->take_every = 0;
	assert_int_equal(hmm_device_write(f->mm, &dev->dev, f->addr, w.buf, 4), -ENOMEM);
	assert_filled(f->mem, SIZE, 15, 0);
	umm_free(f->space, w.buf, 4 * PAGE);
}

static void what_happens_to_the_mapping_happens_to_the_pages(void **state)
{
	struct fixture *f = *state;
	struct hmm_device *dev = &f->dev[0]->dev;
	uint64_t moved;
	char *to;

	fill(f, 7);
	assert_int_equal(hmm_migrate_to_device(f->mm, dev, f->addr, f->addr + SIZE, NULL, &moved), 0);
	/* Dropped, unmapped, moved away. */
	assert_int_equal(madvise(f->mem, 10 * PAGE, MADV_DONTNEED), 0);
	for (size_t i = 0; i < 10 * PAGE; i++)
		assert_int_equal(f->mem[i], 0);
	assert_int_equal(munmap(f->mem + 10 * PAGE, 10 * PAGE), 0);
	to = mmap(NULL, 100 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_ptr_equal(mremap(f->mem + 20 * PAGE, 100 * PAGE, 100 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to), to);
	assert_filled(to, 100 * PAGE, 7, 20 * PAGE / 8);
	/* In place again: what was dropped does not come back. */
	assert_ptr_equal(mmap(f->mem + 10 * PAGE, 110 * PAGE, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0),
			 f->mem + 10 * PAGE);
	for (size_t i = 10 * PAGE; i < 120 * PAGE; i++)
		assert_int_equal(f->mem[i], 0);
	assert_filled(f->mem + 120 * PAGE, SIZE - 120 * PAGE, 7, 120 * PAGE / 8);
	munmap(to, 100 * PAGE);
}

static void contents_dropped_a_moment_ago_can_move(void **state)
{
	struct fixture *f = *state;
	uint64_t moved;

	fill(f, 8);
	assert_int_equal(hmm_mm_manage(f->mm, f->addr, f->addr + SIZE), 0);
	assert_int_equal(madvise(f->mem, SIZE, MADV_DONTNEED), 0);
	assert_int_equal(hmm_migrate_to_device(f->mm, &f->dev[0]->dev, f->addr, f->addr + SIZE, NULL, &moved), 0);
	assert_int_equal(moved, NR);
	for (size_t i = 0; i < SIZE; i += 64)
		assert_int_equal(f->mem[i], 0);
}

/* Set: what is being dropped is found only by the first look, some time after the call has begun. */
static uint64_t applied_late[2];
static unsigned looks_for_drops;

bool __real_umm_quarantined(struct umm_space *space, uint64_t start, uint64_t end);
bool __wrap_umm_quarantined(struct umm_space *space, uint64_t start, uint64_t end);

bool __wrap_umm_quarantined(struct umm_space *space, uint64_t start, uint64_t end)
{
	looks_for_drops++;
	if (applied_late[1]) {
		usleep(20000);
		umm_quarantine_add(space, applied_late[0], applied_late[1]);
		applied_late[1] = 0;
	}
	return __real_umm_quarantined(space, start, end);
}

static void contents_whose_drop_is_applied_late_can_move(void **state)
{
	struct fixture *f = *state;
	uint64_t moved;

	fill(f, 8);
	assert_int_equal(hmm_mm_manage(f->mm, f->addr, f->addr + SIZE), 0);
	looks_for_drops = 0;
	applied_late[0] = f->addr;
	applied_late[1] = f->addr + SIZE;
	assert_int_equal(hmm_migrate_to_device(f->mm, &f->dev[0]->dev, f->addr, f->addr + SIZE, NULL, &moved), 0);
	assert_int_equal(applied_late[1], 0);
	assert_in_range(looks_for_drops, 2, 1000000);
	assert_int_equal(moved, NR);
	assert_filled(f->mem, SIZE, 8, 0);
}

static bool is_guard(const char *p)
{
	char byte;
	struct iovec l = {&byte, 1}, r = {(void *)p, 1};

	return process_vm_readv(getpid(), &l, 1, &r, 1, 0) < 0 && errno == EFAULT;
}

/* Hooked: no event says that what is away has been dropped.  With markers of ours, and without. */
static void guards_drop_what_is_away(void **state)
{
	const size_t first = 100 * PAGE, second = 300 * PAGE, len = 50 * PAGE;
	struct fixture *f = *state;
	int pidfd = (int)syscall(SYS_pidfd_open, getpid(), 0);
	bool none = false;

	for (unsigned marked = 0; marked < 2 && !none; marked++) {
		struct hmm_device *dev = &f->dev[marked]->dev;
		struct iovec iov = {f->mem + second, len};
		uint64_t moved;

		f->dev[marked]->ops.caps |= marked ? HMM_DEV_MARKED : 0;
		fill(f, 10 + marked);
		assert_int_equal(hmm_migrate_to_device(f->mm, dev, f->addr, f->addr + SIZE, NULL, &moved), 0);
		assert_int_equal(moved, NR);
		assert_int_equal(umm_hooks_set(f->space), 0);
		none = madvise(f->mem + first, len, MADV_GUARD_INSTALL);
		assert_false(umm_quarantined(f->space, f->addr, f->addr + SIZE));
		/* The other way in, where the kernel has it. */
		if (!none && process_madvise(pidfd, &iov, 1, MADV_GUARD_INSTALL, 0) != (ssize_t)len)
			assert_int_equal(madvise(f->mem + second, len, MADV_GUARD_INSTALL), 0);
		umm_hooks_set(NULL);
		if (none)
			break;
		/* All around comes home, first by touch, then by command. */
		assert_filled(f->mem, first, 10 + marked, 0);
		assert_int_equal(hmm_migrate_to_system(f->mm, NULL, f->addr, f->addr + second, NULL), 0);
		for (size_t i = 0; i < len; i += PAGE) {
			assert_true(is_guard(f->mem + first + i));
			assert_true(is_guard(f->mem + second + i));
		}
		assert_int_equal(madvise(f->mem + first, len, MADV_GUARD_REMOVE), 0);
		assert_int_equal(madvise(f->mem + second, len, MADV_GUARD_REMOVE), 0);
		for (size_t i = 0; i < len; i++) {
			assert_int_equal(f->mem[first + i], 0);
			assert_int_equal(f->mem[second + i], 0);
		}
		assert_filled(f->mem + first + len, second - first - len, 10 + marked, (first + len) / 8);
		assert_filled(f->mem + second + len, SIZE - second - len, 10 + marked, (second + len) / 8);
	}
	close(pidfd);
	if (none)
		skip_because("no guard pages before Linux 6.13");
}

static const struct umm_space_ops *ops_as_they_are;
static struct fixture *taking_long;

/* The lock that it needs is another's for longer than a quarantine lasts. */
static void brings_back_late(void *priv, uint64_t start, uint64_t end)
{
	struct hmm_mm *mm = priv;
	struct umm_quarantine *q = &mm->space->quarantine;

	pthread_mutex_lock(&q->lock);
	for (unsigned i = 0; i < q->n; i++)
		q->range[i].until_ns = 0;
	pthread_mutex_unlock(&q->lock);
	ops_as_they_are->bring_back(priv, start, end);
}

static void what_came_back_late_does_not_leave(void **state)
{
	struct fixture *f = *state;
	struct umm_hook h = {.space = f->space, .untold = true, .n = 1};
	struct umm_space_ops late;
	uint64_t moved, until;
	unsigned n;

	h.change[0] = (struct umm_change){
		.event = UMM_EVENT_CLEAR, .start = f->addr, .end = f->addr + SIZE, .blockable = true};
	fill(f, 12);
	assert_int_equal(hmm_migrate_to_device(f->mm, &f->dev[0]->dev, f->addr, f->addr + SIZE, NULL, &moved), 0);
	assert_int_equal(moved, NR);
	ops_as_they_are = f->space->ops;
	late = *ops_as_they_are;
	late.bring_back = brings_back_late;
	f->space->ops = &late;
	umm_hook_begin(&h);
	n = f->space->quarantine.n;
	until = f->space->quarantine.range[0].until_ns;
	umm_hook_end(&h);
	f->space->ops = ops_as_they_are;
	assert_int_equal(n, 1);
	assert_int_not_equal(until, 0);
	assert_int_equal(on(f, &f->dev[0]->dev), 0);
	assert_filled(f->mem, SIZE, 12, 0);
}

/* So much time goes by that every quarantine with an end is over: a device is stopped. */
static bool takes_long(struct umm_notifier *n, const struct umm_change *c, uint64_t seq)
{
	struct fixture *f = taking_long;
	struct umm_quarantine *q = &f->space->quarantine;

	umm_notifier_set_seq(n, seq);
	if (c->event != UMM_EVENT_CLEAR)
		return true;
	pthread_mutex_lock(&q->lock);
	for (unsigned i = 0; i < q->n; i++)
		if (q->range[i].until_ns != UINT64_MAX)
			q->range[i].until_ns = 0;
	pthread_mutex_unlock(&q->lock);
	return true;
}

static const struct umm_notifier_ops takes_long_ops = {.invalidate = takes_long};

static void what_callbacks_hold_up_does_not_leave(void **state)
{
	struct fixture *f = *state;
	struct umm_hook h = {.space = f->space, .untold = true, .n = 1};
	struct umm_notifier n;
	bool quarantined;

	h.change[0] = (struct umm_change){
		.event = UMM_EVENT_CLEAR, .start = f->addr, .end = f->addr + SIZE, .blockable = true};
	fill(f, 12);
	assert_int_equal(hmm_migrate_to_device(f->mm, &f->dev[0]->dev, f->addr, f->addr + SIZE, NULL, NULL), 0);
	taking_long = f;
	assert_int_equal(umm_notifier_insert(&n, f->space, f->addr, SIZE, &takes_long_ops), 0);
	umm_hook_begin(&h);
	quarantined = umm_quarantined(f->space, f->addr + PAGE, f->addr + 2 * PAGE);
	umm_hook_end(&h);
	umm_notifier_remove(&n);
	assert_true(quarantined);
	/* With the call it is over, also what had met it. */
	assert_false(umm_quarantined(f->space, f->addr, f->addr + SIZE));
	assert_filled(f->mem, SIZE, 12, 0);
	umm_hook_begin(&h);
	umm_quarantine_dropping(f->space, f->addr + PAGE, f->addr + 2 * PAGE);
	umm_hook_end(&h);
	for (unsigned i = 0; i < f->space->quarantine.n; i++)
		assert_false(f->space->quarantine.range[i].held);
}

/* By libc and by a raw call, which nothing but the kernel tells us of. */
static void a_child_has_its_own(struct fixture *f, bool raw)
{
	uint64_t moved;
	int status;
	pid_t pid;

	fill(f, 9);
	assert_int_equal(madvise(f->mem + 600 * PAGE, PAGE, MADV_WIPEONFORK), 0);
	assert_int_equal(hmm_migrate_to_device(f->mm, &f->dev[0]->dev, f->addr, f->addr + SIZE, NULL, &moved), 0);
	assert_int_equal(moved, NR);
	pid = raw ? (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0) : fork();
	if (!pid) {
		for (size_t i = 0; i < 600 * PAGE / 8; i++)
			if (((uint64_t *)f->mem)[i] != i * 2654435761u + 9)
				_exit(1);
		for (size_t i = 600 * PAGE; i < 601 * PAGE; i++)
			if (f->mem[i])
				_exit(2);
		memset(f->mem, 1, SIZE);
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	/* The parent's are where they were, and what they were. */
	assert_int_equal(on(f, &f->dev[0]->dev), NR);
	assert_filled(f->mem, SIZE, 9, 0);
	/* And shared pages can move again. */
	assert_int_equal(hmm_migrate_to_device(f->mm, &f->dev[1]->dev, f->addr, f->addr + SIZE, NULL, &moved), 0);
	assert_int_equal(moved, NR);
	assert_filled(f->mem, SIZE, 9, 0);
}

static void fork_by_libc(void **state)
{
	a_child_has_its_own(*state, false);
}

static void fork_raw(void **state)
{
	a_child_has_its_own(*state, true);
}

static sigjmp_buf bus_jump;

static void on_bus(int sig)
{
	siglongjmp(bus_jump, sig);
}

/* All before page @first is right, and what comes then gets SIGBUS.  0, or 1 and a bit for what is not so. */
static int lost_from(const char *mem, unsigned first, unsigned seed)
{
	struct sigaction sa = {.sa_handler = on_bus, .sa_flags = SA_NODEFER};
	volatile int wrong = 0;

	sigaction(SIGBUS, &sa, NULL);
	for (volatile unsigned i = 0; i < NR; i++) {
		if (sigsetjmp(bus_jump, 1)) {
			wrong |= i < first ? 3 : 0;
			continue;
		}
		if (((const volatile uint64_t *)mem)[i * (PAGE / 8)] != i * (PAGE / 8) * 2654435761u + seed)
			wrong |= 5;
		wrong |= i >= first ? 9 : 0;
	}
	return wrong;
}

/* glibc's, which who calls fork() holds until its event has been read. */
void _IO_list_lock(void) __attribute__((weak));
void _IO_list_unlock(void) __attribute__((weak));

/*
 * What the device cannot give to a child is lost to the child, and to nobody else, and one line says so.  That takes no
 * lock of stdio's: some other thread may be in fork(), and be waiting for who says it.
 */
static void what_a_child_cannot_be_given(void **state)
{
	struct fixture *f = *state;
	unsigned first = NR - 10;
	char want[256], said[512] = "";
	int lines = memfd_create("lines", MFD_CLOEXEC), was = dup(STDERR_FILENO), status;
	uint64_t moved;
	pid_t pid, rc;

	fill(f, 11);
	assert_int_equal(hmm_migrate_to_device(f->mm, &f->dev[0]->dev, f->addr, f->addr + SIZE, NULL, &moved), 0);
	assert_int_equal(moved, NR);
	f->dev[0]->fail_from = first;
	f->dev[0]->fail_out = -EIO;
	assert_int_equal(dup2(lines, STDERR_FILENO), STDERR_FILENO);
	flockfile(stderr);
	if (_IO_list_lock)
		_IO_list_lock();
	pid = (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
	if (!pid)
		_exit(lost_from(f->mem, first, 11));
	rc = waitpid(pid, &status, 0);
	if (_IO_list_unlock)
		_IO_list_unlock();
	funlockfile(stderr);
	dup2(was, STDERR_FILENO);
	close(was);
	f->dev[0]->fail_out = 0;
	assert_int_equal(rc, pid);
	assert_int_equal(status, 0);
	assert_true(pread(lines, said, sizeof(said) - 1, 0) > 0);
	close(lines);
	snprintf(want, sizeof(want),
		 "hmm: pages of a forked child of process %d are lost to it, the first one is %#lx: device fake could"
		 " not read them; an access gets SIGBUS\n",
		 (int)getpid(), (unsigned long)(f->addr + first * PAGE));
	assert_string_equal(said, want);
	assert_filled(f->mem, SIZE, 11, 0);
}

static void a_shared_page_moves_without_the_other(void **state)
{
	struct fixture *f = *state;
	uint64_t moved;
	int go[2], status;
	char byte = 0;
	pid_t pid;

	fill(f, 10);
	assert_int_equal(pipe(go), 0);
	pid = fork();
	if (!pid) {
		close(go[1]);
		if (read(go[0], &byte, 1) != 0)
			_exit(1);
		for (size_t i = 0; i < SIZE / 8; i++)
			if (((uint64_t *)f->mem)[i] != i * 2654435761u + 10)
				_exit(2);
		_exit(0);
	}
	close(go[0]);
	assert_int_equal(hmm_mm_manage(f->mm, f->addr, f->addr + SIZE), 0);
	assert_int_equal(hmm_migrate_to_device(f->mm, &f->dev[0]->dev, f->addr, f->addr + SIZE, NULL, &moved), 0);
	assert_int_equal(on(f, &f->dev[0]->dev), moved);
	memset(f->mem, 5, SIZE);
	close(go[1]);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
}

static void coherent_pages_stay_mapped(void **state)
{
	struct fixture *f = *state;
	uint64_t moved;
	char *to;

	assert_int_equal(hmm_migrate_to_device(f->mm, &f->coherent, f->addr, f->addr + SIZE, NULL, &moved), 0);
	assert_int_equal(moved, NR);
	fill(f, 11);
	assert_int_equal(on(f, &f->coherent), NR);
	for (unsigned i = 0; i < NR; i++)
		assert_true(present(f->addr + i * PAGE));
	assert_int_equal(madvise(f->mem, PAGE, MADV_DONTNEED), 0);
	assert_int_equal(on(f, &f->coherent), NR - 1);
	to = mremap(f->mem + PAGE, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, f->mem);
	assert_ptr_equal(to, f->mem);
	assert_int_equal(on(f, &f->coherent), NR - 1);
	assert_filled(to, PAGE, 11, PAGE / 8);
	assert_int_equal(
		hmm_migrate_to_device(f->mm, &f->dev[0]->dev, f->addr + 2 * PAGE, f->addr + SIZE, NULL, &moved), 0);
	assert_int_equal(moved, NR - 2);
	assert_int_equal(on(f, &f->coherent), 1);
	assert_int_equal(hmm_migrate_to_system(f->mm, &f->coherent, 0, HMM_ADDR_END, &moved), 0);
	assert_int_equal(moved, 1);
	assert_int_equal(on(f, &f->coherent), 0);
	assert_filled(f->mem + 2 * PAGE, SIZE - 2 * PAGE, 11, 2 * PAGE / 8);
}

static int node_nr = -1;

static int its_node(struct hmm_device *dev)
{
	return node_nr;
}

/* How many of the pages are on @node. */
static unsigned pages_on(const struct fixture *f, int node)
{
	static void *page[NR];
	static int status[NR];
	unsigned n = 0;

	for (unsigned i = 0; i < NR; i++)
		page[i] = f->mem + i * PAGE;
	assert_int_equal(syscall(SYS_move_pages, 0, NR, page, NULL, status, 0), 0);
	for (unsigned i = 0; i < NR; i++)
		n += status[i] == node;
	return n;
}

static void there_and_back_by_node(struct fixture *f)
{
	uint64_t moved, there;

	fill(f, 12);
	assert_int_equal(hmm_migrate_to_device(f->mm, &f->coherent, f->addr, f->addr + SIZE, NULL, &moved), 0);
	/* Each is there, or is not the device's: the kernel may leave one that is in use. */
	assert_true(moved > 0 && moved <= NR);
	assert_int_equal(on(f, &f->coherent), moved);
	assert_true(pages_on(f, node_nr) >= moved);
	assert_filled(f->mem, SIZE, 12, 0);
	fill(f, 13);
	assert_int_equal(on(f, &f->coherent), moved);
	there = moved;
	assert_int_equal(hmm_migrate_to_system(f->mm, &f->coherent, 0, HMM_ADDR_END, &moved), 0);
	assert_true(moved > 0);
	assert_int_equal(on(f, &f->coherent) + moved, there);
	assert_filled(f->mem, SIZE, 13, 0);
}

/* The machine's first node, which has CPUs, and stands for one that has none. */
static void a_coherent_device_with_a_node(void **state)
{
	struct fixture *f = *state;
	uint64_t moved;

	f->coherent_ops.node = its_node;
	node_nr = 0;
	there_and_back_by_node(f);
	assert_int_equal(on(f, &f->coherent), 0);
	/* One that is not there. */
	node_nr = 1000;
	assert_int_equal(hmm_migrate_to_device(f->mm, &f->coherent, f->addr, f->addr + SIZE, NULL, &moved), -ENODEV);
	assert_int_equal(moved, 0);
	assert_int_equal(on(f, &f->coherent), 0);
	assert_filled(f->mem, SIZE, 13, 0);
	/* None any more: the record alone says it. */
	node_nr = -1;
	assert_int_equal(hmm_migrate_to_device(f->mm, &f->coherent, f->addr, f->addr + SIZE, NULL, &moved), 0);
	assert_int_equal(moved, NR);
}

static void a_node_without_cpus(void **state)
{
	struct fixture *f = *state;

	f->coherent_ops.node = its_node;
	node_nr = dmirror_memory_node(0);
	if (node_nr < 0)
		skip_because("this machine has no node with memory and without CPUs");
	there_and_back_by_node(f);
	assert_int_equal(pages_on(f, node_nr), on(f, &f->coherent));
}

/* ------------------------------------- a node of which the kernel says little */

#define THE_NODE 7
#define STUCK_GO 100u /* a page that cannot go there */
#define STUCK_BACK 300u

static struct {
	struct fixture *f;
	_Atomic int listener;
	int node[NR];
	int stuck;        /* this page does not move */
	bool huge;        /* pages are parts of huge ones */
	int without_home; /* what it says of any other node; 0: nothing */
} K;

/* Page 0 of each 512 takes the others along, so that it is no more there to be moved when page 1 is. */
static long kernels_move_huge(uint64_t n, void **page, const int *to, int *status)
{
	for (uint64_t i = 0; i < n; i++) {
		uint64_t nr = ((uintptr_t)page[i] - K.f->addr) / PAGE;
		bool goes = K.node[nr] != to[i];

		for (uint64_t k = nr; goes && k < NR && k / 512 == nr / 512; k++)
			K.node[k] = to[i];
		status[i] = to[i];
		if (goes && i + 1 < n)
			status[++i] = -EBUSY;
	}
	return 0;
}

/* As do_pages_move() does: one that stays ends it, and no page of its group has a status then. */
static long kernels_move(uint64_t n, void **page, const int *to, int *status)
{
	unsigned left = 0;

	if (to && to[0] != THE_NODE && K.without_home)
		return K.without_home;
	if (to && K.huge)
		return kernels_move_huge(n, page, to, status);
	for (uint64_t i = 0; i < n; i++) {
		uint64_t nr = ((uintptr_t)page[i] - K.f->addr) / PAGE;

		if (to && K.node[nr] != to[i] && (int)nr == K.stuck) {
			left = (unsigned)(n - i);
			break;
		}
		if (to)
			K.node[nr] = to[i];
	}
	for (uint64_t i = 0; i < n && !left; i++)
		status[i] = K.node[((uintptr_t)page[i] - K.f->addr) / PAGE];
	return left;
}

static void *the_kernel(void *priv)
{
	struct pollfd p = {.events = POLLIN};

	while (!K.listener)
		usleep(100);
	p.fd = K.listener;
	while (poll(&p, 1, -1) == 1 && (p.revents & POLLIN)) {
		struct seccomp_notif n = {0};
		struct seccomp_notif_resp r = {0};

		if (ioctl(p.fd, SECCOMP_IOCTL_NOTIF_RECV, &n))
			continue;
		r.id = n.id;
		r.val = kernels_move(n.data.args[1], (void **)n.data.args[2], (const int *)n.data.args[3],
				     (int *)n.data.args[4]);
		r.error = r.val < 0 ? (int)r.val : 0;
		r.val = r.error ? 0 : r.val;
		ioctl(p.fd, SECCOMP_IOCTL_NOTIF_SEND, &r);
	}
	return NULL;
}

static bool kernel_replaced(struct fixture *f)
{
	struct sock_filter filter[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_move_pages, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog prog = {.len = sizeof(filter) / sizeof(filter[0]), .filter = filter};
	pthread_t thread;

	K.f = f;
	if (pthread_create(&thread, NULL, the_kernel, NULL) || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		return false;
	K.listener = (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &prog);
	return K.listener > 0;
}

static unsigned there(void)
{
	unsigned n = 0;

	for (unsigned i = 0; i < NR; i++)
		n += K.node[i] == THE_NODE;
	return n;
}

/* Returns what was not right; 77: it cannot be shown here. */
static int one_page_stays(struct fixture *f)
{
	struct hmm_device *where[NR];
	struct hmm_device next = {.ops = &f->coherent_ops};
	uint64_t moved;

	if (!kernel_replaced(f))
		return 77;
	f->coherent_ops.node = its_node;
	node_nr = THE_NODE;
	fill(f, 12);
	/* All others go, and are known to be there. */
	K.stuck = STUCK_GO;
	if (hmm_migrate_to_device(f->mm, &f->coherent, f->addr, f->addr + SIZE, NULL, &moved))
		return 1;
	if (there() != NR - 1)
		return 2;
	if (moved != NR - 1 || on(f, &f->coherent) != NR - 1)
		return 3;
	/* And so back. */
	K.stuck = STUCK_BACK;
	if (hmm_migrate_to_system(f->mm, &f->coherent, 0, HMM_ADDR_END, &moved))
		return 4;
	if (there() != 1)
		return 5;
	if (moved != NR - 2 || on(f, &f->coherent) != 1)
		return 6;
	/* A device that is removed has nothing any more, and who comes in its place inherits nothing. */
	if (hmm_mm_remove_device(f->mm, &f->coherent) || hmm_mm_add_device(f->mm, &next))
		return 7;
	if (hmm_where(f->mm, f->addr, f->addr + SIZE, where, NULL))
		return 8;
	for (unsigned i = 0; i < NR; i++)
		if (where[i])
			return 9;
	/* What a device has when all ends comes back. */
	K.stuck = -1;
	if (hmm_migrate_to_device(f->mm, &next, f->addr, f->addr + SIZE, NULL, &moved) || there() != NR)
		return 10;
	if (hmm_mm_close(f->mm))
		return 11;
	return there() ? 12 : 0;
}

static int huge_pages_go(struct fixture *f)
{
	uint64_t moved;

	if (!kernel_replaced(f))
		return 77;
	f->coherent_ops.node = its_node;
	node_nr = THE_NODE;
	K.stuck = -1;
	K.huge = true;
	fill(f, 12);
	if (hmm_migrate_to_device(f->mm, &f->coherent, f->addr, f->addr + SIZE, NULL, &moved) || there() != NR)
		return 1;
	if (moved != NR || on(f, &f->coherent) != NR)
		return 2;
	if (hmm_migrate_to_system(f->mm, &f->coherent, 0, HMM_ADDR_END, &moved) || there())
		return 3;
	return moved != NR || on(f, &f->coherent) ? 4 : 0;
}

/* The CPU's node has no memory, or none that this process may use. */
static int nobody_has_a_home(struct fixture *f)
{
	static const int refused[] = {-ENODEV, -EACCES};
	uint64_t moved;

	if (!kernel_replaced(f))
		return 77;
	f->coherent_ops.node = its_node;
	node_nr = THE_NODE;
	K.stuck = -1;
	fill(f, 12);
	for (unsigned i = 0; i < 2; i++) {
		K.without_home = refused[i];
		if (hmm_migrate_to_device(f->mm, &f->coherent, f->addr, f->addr + SIZE, NULL, &moved) || moved != NR)
			return 1;
		if (hmm_migrate_to_system(f->mm, &f->coherent, 0, HMM_ADDR_END, &moved))
			return 2;
		if (there() != NR || moved != NR || on(f, &f->coherent))
			return 3;
		if (hmm_migrate_to_device(f->mm, &f->coherent, f->addr, f->addr + SIZE, NULL, &moved) || moved != NR)
			return 4;
		if (hmm_mm_remove_device(f->mm, &f->coherent) || hmm_mm_add_device(f->mm, &f->coherent))
			return 5;
	}
	return 0;
}

static void with_the_kernel_replaced(int (*what)(struct fixture *f))
{
	int status;
	pid_t pid = fork();

	if (!pid) {
		void *own;

		_exit(setup(&own) ? 76 : what(own));
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	if (WIFEXITED(status) && WEXITSTATUS(status) == 77)
		skip_because("seccomp tells nobody of system calls here");
	assert_int_equal(status, 0);
}

static void a_page_that_stays_hides_no_other(void **state)
{
	with_the_kernel_replaced(one_page_stays);
}

static void a_huge_page_goes_as_a_whole(void **state)
{
	with_the_kernel_replaced(huge_pages_go);
}

static void a_node_without_memory_keeps_nothing_away(void **state)
{
	with_the_kernel_replaced(nobody_has_a_home);
}

static bool told_invalidate(struct umm_notifier *n, const struct umm_change *change, uint64_t seq);

struct told {
	struct umm_notifier n;
	unsigned migrate, exclusive, others;
	const void *owner;
};

static const struct umm_notifier_ops told_ops = {.invalidate = told_invalidate};

static bool told_invalidate(struct umm_notifier *n, const struct umm_change *change, uint64_t seq)
{
	struct told *t = (struct told *)n;

	umm_notifier_set_seq(n, seq);
	if (change->event == UMM_EVENT_MIGRATE || change->event == UMM_EVENT_EXCLUSIVE) {
		t->migrate += change->event == UMM_EVENT_MIGRATE;
		t->exclusive += change->event == UMM_EVENT_EXCLUSIVE;
		t->owner = change->owner;
	} else {
		t->others++;
	}
	return true;
}

static void notifiers_are_told_whose_migration_it_is(void **state)
{
	struct fixture *f = *state;
	struct told t = {0};
	uint64_t moved;

	fill(f, 12);
	assert_int_equal(umm_notifier_insert(&t.n, f->space, f->addr, SIZE, &told_ops), 0);
	assert_int_equal(hmm_migrate_to_device(f->mm, &f->dev[0]->dev, f->addr, f->addr + SIZE, &t, &moved), 0);
	assert_true(t.migrate > 0);
	assert_ptr_equal(t.owner, &t);
	assert_int_equal(t.others, 0);
	t.migrate = 0;
	assert_int_equal(hmm_migrate_to_device(f->mm, &f->coherent, f->addr, f->addr + SIZE, f, &moved), 0);
	assert_true(t.migrate > 0);
	assert_ptr_equal(t.owner, f);
	assert_int_equal(t.exclusive, 0);
	/* One that wants them alone; and what it gives back contents and mappings do not change by. */
	t.migrate = 0;
	f->dev[1]->ops.caps |= HMM_DEV_EXCLUSIVE;
	assert_int_equal(hmm_migrate_to_device(f->mm, &f->dev[1]->dev, f->addr, f->addr + SIZE, &t, &moved), 0);
	assert_int_equal(moved, NR);
	assert_true(t.exclusive > 0);
	assert_int_equal(t.migrate, 0);
	assert_ptr_equal(t.owner, &t);
	t.exclusive = 0;
	assert_filled(f->mem, SIZE, 12, 0);
	assert_int_equal(hmm_migrate_to_device(f->mm, &f->dev[0]->dev, f->addr, f->addr + SIZE, &t, &moved), 0);
	assert_true(t.migrate > 0);
	assert_int_equal(t.exclusive, 0);
	umm_notifier_remove(&t.n);
}

static struct {
	atomic_bool stop;
	atomic_uint wrong;
	struct fixture *f;
} race;

/* A huge page goes to the device by one move, and what the device is given is the page itself. */
static void a_huge_page_goes_as_one(void **state)
{
	struct fixture *f = *state;
	const size_t size = 2ul << 20;
	struct hmm_migrate *m = malloc(sizeof(*m));
	char *raw = mmap(NULL, 2 * size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *p = (char *)(((uintptr_t)raw + size - 1) & ~(size - 1));
	struct umm_page_run run;
	uint64_t walked, start = (uintptr_t)p;

	assert_ptr_not_equal(raw, MAP_FAILED);
	assert_int_equal(madvise(p, size, MADV_HUGEPAGE), 0);
	for (size_t i = 0; i < size / sizeof(uint64_t); i++)
		((uint64_t *)p)[i] = i * 2654435761u + 3;
	if (umm_page_scan(f->space, start, start + size, &run, 1, &walked) != 1 || !(run.flags & UMM_PAGE_HUGE)) {
		munmap(raw, 2 * size);
		free(m);
		skip_because("no huge page to be had");
	}
	for (unsigned round = 0; round < 2; round++) {
		bool in_a_row = true, right = true;
		int n, moved;

		*m = (struct hmm_migrate){.mm = f->mm, .to = &f->dev[0]->dev, .start = start, .end = start + size};
		assert_int_equal(hmm_migrate_collect(m), 0);
		/* Nothing that could end the test until commit: teardown would wait for it. */
		for (unsigned i = 0; i < m->npages; i++) {
			in_a_row &= m->src[i] == (const char *)m->src[0] + i * PAGE;
			right &= *(const uint64_t *)m->src[i] == (uint64_t)i * 512 * 2654435761u + 3;
		}
		/* Still one. */
		n = umm_page_scan(f->space, (uintptr_t)m->src[0], (uintptr_t)m->src[0] + size, &run, 1, &walked);
		/* A touch meanwhile is served from there. */
		right &= *(volatile uint64_t *)(p + PAGE) == 512 * 2654435761ull + 3;
		moved = hmm_migrate_copy(m);
		assert_int_equal(hmm_migrate_commit(m), 511);
		assert_int_equal(moved, 512);
		assert_true(in_a_row && right);
		assert_int_equal(n, 1);
		assert_int_equal(run.end - run.start, size);
		assert_int_equal(!!(run.flags & UMM_PAGE_HUGE), !round);
		assert_filled(p, size, 3, 0);
	}
	munmap(raw, 2 * size);
	free(m);
}

#define HUGE (2ul << 20)

struct back {
	struct fixture *f;
	uint64_t start, moved;
	int rc;
};

static void *brings_back(void *arg)
{
	struct back *b = arg;

	b->rc = hmm_migrate_to_system(b->f->mm, &b->f->dev[0]->dev, b->start, b->start + HUGE, &b->moved);
	return NULL;
}

/* It comes back as one, unless something has happened to it: then page by page, and each is what it is to be. */
static void a_huge_page_comes_back_as_one(void **state)
{
	enum { NOTHING, SMALL, TOUCHED, DROPPED, READONLY, DROPPED_MEANWHILE, MARKED, LOST, LOST_MARKED, ALL };
	struct fixture *f = *state;
	struct fake *dev = f->dev[0];

	for (unsigned what = NOTHING; what < ALL; what++) {
		char *raw = mmap(NULL, 2 * HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		char *p = (char *)(((uintptr_t)raw + HUGE - 1) & ~(HUGE - 1));
		struct back b = {.f = f, .start = (uintptr_t)p};
		struct umm_page_run run;
		uint64_t walked;
		pthread_t t;
		bool huge;

		assert_ptr_not_equal(raw, MAP_FAILED);
		assert_int_equal(madvise(p, HUGE, what == SMALL ? MADV_NOHUGEPAGE : MADV_HUGEPAGE), 0);
		for (size_t i = 0; i < HUGE / sizeof(uint64_t); i++)
			((uint64_t *)p)[i] = i * 2654435761u + what;
		assert_int_equal(umm_page_scan(f->space, b.start, b.start + HUGE, &run, 1, &walked), 1);
		if (what != SMALL && !(run.flags & UMM_PAGE_HUGE))
			skip_because("no huge page to be had");
		dev->ops.caps = HMM_DEV_MEMORY | (what == MARKED || what == LOST_MARKED ? HMM_DEV_MARKED : 0);
		assert_int_equal(hmm_migrate_to_device(f->mm, &dev->dev, b.start, b.start + HUGE, NULL, &b.moved), 0);
		assert_int_equal(b.moved, HUGE / PAGE);
		if (what == TOUCHED)
			assert_int_equal(*(uint64_t *)(p + 7 * PAGE), 7 * PAGE / 8 * 2654435761u + what);
		if (what == DROPPED)
			assert_int_equal(madvise(p + 5 * PAGE, PAGE, MADV_DONTNEED), 0);
		if (what == READONLY)
			assert_int_equal(mprotect(p, HUGE, PROT_READ), 0);
		dev->fail_out = what == LOST || what == LOST_MARKED ? -ENOTCONN : 0; /* said once */
		dev->fail_from = 0;
		dev->block_out = what == DROPPED_MEANWHILE;
		dev->out_calls = 0;
		assert_int_equal(pthread_create(&t, NULL, brings_back, &b), 0);
		if (what == DROPPED_MEANWHILE) {
			pthread_mutex_lock(&dev->lock);
			while (!dev->out_blocked)
				pthread_cond_wait(&dev->moved, &dev->lock);
			pthread_mutex_unlock(&dev->lock);
			assert_int_equal(madvise(p + 5 * PAGE, PAGE, MADV_DONTNEED), 0);
			umm_space_sync(f->space);
			pthread_mutex_lock(&dev->lock);
			dev->block_out = false;
			pthread_cond_broadcast(&dev->moved);
			pthread_mutex_unlock(&dev->lock);
		}
		pthread_join(t, NULL);
		dev->fail_out = 0;
		assert_int_equal(b.rc, 0);
		huge = umm_page_scan(f->space, b.start, b.start + HUGE, &run, 1, &walked) == 1 &&
		       (run.flags & UMM_PAGE_HUGE) && run.end - run.start == HUGE;
		assert_int_equal(huge, what == NOTHING);
		if (what == NOTHING || what == SMALL || what == MARKED)
			assert_int_equal(dev->out_calls == 1, what == NOTHING);
		if (what == LOST || what == LOST_MARKED) {
			int tube[2];

			assert_int_equal(pipe(tube), 0);
			assert_int_equal(write(tube[1], p + 9 * PAGE, 8), -1);
			close(tube[0]);
			close(tube[1]);
		} else if (what == DROPPED || what == DROPPED_MEANWHILE) {
			static const char zeros[PAGE];

			assert_int_equal(b.moved, HUGE / PAGE - 1);
			assert_memory_equal(p + 5 * PAGE, zeros, PAGE);
			assert_filled(p, 5 * PAGE, what, 0);
			assert_filled(p + 6 * PAGE, HUGE - 6 * PAGE, what, 6 * PAGE / 8);
		} else {
			assert_int_equal(b.moved, HUGE / PAGE - (what == TOUCHED));
			assert_filled(p, HUGE, what, 0);
		}
		munmap(raw, 2 * HUGE);
	}
	dev->ops.caps = HMM_DEV_MEMORY;
}

/* A block that cannot be emptied, because all is locked, is not taken for zeros. */
static void what_a_locked_block_has_left(void **state)
{
	struct fixture *f = *state;
	struct fake *dev = f->dev[0];
	char *raw = mmap(NULL, 3 * HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *p = (char *)(((uintptr_t)raw + HUGE - 1) & ~(HUGE - 1)), *q = p + HUGE;
	uint64_t moved, walked;
	struct umm_page_run run;

	assert_ptr_not_equal(raw, MAP_FAILED);
	assert_int_equal(madvise(p, 2 * HUGE, MADV_HUGEPAGE), 0);
	for (size_t i = 0; i < HUGE / sizeof(uint64_t); i++)
		((uint64_t *)p)[i] = i * 2654435761u + 3;
	assert_int_equal(umm_page_scan(f->space, (uintptr_t)p, (uintptr_t)q, &run, 1, &walked), 1);
	if (!(run.flags & UMM_PAGE_HUGE))
		skip_because("no huge page to be had");
	dev->ops.caps = HMM_DEV_MEMORY;
	assert_int_equal(hmm_migrate_to_device(f->mm, &dev->dev, (uintptr_t)p, (uintptr_t)q, NULL, &moved), 0);
	assert_int_equal(moved, HUGE / PAGE);
	if (mlockall(MCL_CURRENT | MCL_ONFAULT))
		skip_because("no right to lock memory");
	assert_int_equal(munlock(p, HUGE), 0);
	assert_int_equal(hmm_migrate_to_system(f->mm, NULL, (uintptr_t)p, (uintptr_t)q, &moved), 0);
	assert_int_equal(moved, HUGE / PAGE);
	assert_filled(p, HUGE, 3, 0);
	assert_int_equal(hmm_migrate_to_device(f->mm, &dev->dev, (uintptr_t)q, (uintptr_t)q + HUGE, NULL, &moved), 0);
	munlockall();
	for (size_t i = 0; i < HUGE; i += 8)
		if (*(uint64_t *)(q + i))
			fail_msg("byte %zu of what was never touched is not zero", i);
	munmap(raw, 3 * HUGE);
}

static struct {
	char *mem;
	atomic_bool stop;
	atomic_uint wrong;
} huge_race;

static void *huge_adder(void *arg)
{
	unsigned which = (unsigned)(uintptr_t)arg;

	for (unsigned round = 0; !atomic_load(&huge_race.stop); round++) {
		for (size_t at = 0; at < HUGE; at += 37 * PAGE) {
			uint64_t *p = (uint64_t *)(huge_race.mem + at) + which;

			if (*p != round)
				atomic_fetch_add(&huge_race.wrong, 1);
			*p = round + 1;
		}
		if (round % 8 == 7)
			usleep(1000); /* so that it sometimes goes, and comes, as one */
	}
	return NULL;
}

static void threads_write_while_a_huge_page_moves(void **state)
{
	struct fixture *f = *state;
	char *raw = mmap(NULL, 2 * HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uint64_t start = ((uintptr_t)raw + HUGE - 1) & ~(HUGE - 1), moved;
	pthread_t t[2];

	assert_ptr_not_equal(raw, MAP_FAILED);
	huge_race.mem = (char *)start;
	assert_int_equal(madvise(huge_race.mem, HUGE, MADV_HUGEPAGE), 0);
	for (unsigned i = 0; i < 2; i++)
		assert_int_equal(pthread_create(&t[i], NULL, huge_adder, (void *)(uintptr_t)i), 0);
	for (unsigned round = 0; round < 150; round++) {
		assert_int_equal(hmm_migrate_to_device(f->mm, &f->dev[0]->dev, start, start + HUGE, NULL, &moved), 0);
		assert_int_equal(hmm_migrate_to_system(f->mm, &f->dev[0]->dev, start, start + HUGE, &moved), 0);
		if (round % 16 == 15) /* a huge page again, with what the threads have in it */
			madvise(huge_race.mem, HUGE, 25 /* MADV_COLLAPSE */);
	}
	atomic_store(&huge_race.stop, true);
	for (unsigned i = 0; i < 2; i++)
		pthread_join(t[i], NULL);
	assert_int_equal(atomic_load(&huge_race.wrong), 0);
	munmap(raw, 2 * HUGE);
}

static void *adder(void *arg)
{
	unsigned which = (unsigned)(uintptr_t)arg;

	for (unsigned round = 0; !atomic_load(&race.stop); round++)
		for (unsigned i = 0; i < NR; i++) {
			uint64_t *p = (uint64_t *)(race.f->mem + i * PAGE) + which;

			if (*p != round)
				atomic_fetch_add(&race.wrong, 1);
			*p = round + 1;
		}
	return NULL;
}

/* Every word is counted up by one thread while its page comes and goes. */
static void threads_write_while_pages_move(void **state)
{
	struct fixture *f = *state;
	pthread_t t[3];
	uint64_t moved, all = 0;

	memset(f->mem, 0, SIZE);
	atomic_store(&race.stop, false);
	atomic_store(&race.wrong, 0);
	race.f = f;
	for (uintptr_t i = 0; i < 3; i++)
		assert_int_equal(pthread_create(&t[i], NULL, adder, (void *)i), 0);
	for (unsigned round = 0; round < 60; round++) {
		unsigned a = round * 37 % NR, n = 1 + round * 53 % (NR - a);
		uint64_t at = f->addr + a * PAGE;

		assert_int_equal(hmm_migrate_to_device(f->mm, &f->dev[round % 2]->dev, at, at + n * PAGE, NULL, &moved),
				 0);
		all += moved;
		if (!(round % 5))
			assert_int_equal(hmm_migrate_to_system(f->mm, NULL, at, at + n * PAGE, NULL), 0);
	}
	atomic_store(&race.stop, true);
	for (unsigned i = 0; i < 3; i++)
		pthread_join(t[i], NULL);
	assert_int_equal(atomic_load(&race.wrong), 0);
	assert_true(all + f->dev[0]->copied_in + f->dev[1]->copied_in > 0);
}

static void letting_go(void **state)
{
	struct fixture *f = *state;
	uint64_t moved;

	/* Where there is an engine, too, a range that is none is refused. */
	assert_int_equal(umm_space_watch(f->space, f->addr, 0), -EINVAL);
	assert_int_equal(umm_space_watch(f->space, f->addr, (uint64_t)-PAGE), -EINVAL);
	assert_int_equal(umm_space_watch(f->space, f->addr + 1, PAGE), -EINVAL);
	assert_int_equal(umm_space_unwatch(f->space, f->addr, (uint64_t)-PAGE), -EINVAL);

	fill(f, 13);
	assert_int_equal(hmm_migrate_to_device(f->mm, &f->dev[0]->dev, f->addr, f->addr + SIZE, NULL, &moved), 0);
	/* Watched and unwatched, it stays the engine's. */
	assert_int_equal(umm_space_watch(f->space, f->addr, SIZE), 0);
	assert_int_equal(umm_space_unwatch(f->space, f->addr, SIZE), 0);
	assert_filled(f->mem, 100 * PAGE, 13, 0);
	assert_int_equal(hmm_mm_unmanage(f->mm, f->addr, f->addr + SIZE), 0);
	assert_int_equal(on(f, NULL), NR);
	assert_filled(f->mem, SIZE, 13, 0);
	assert_int_equal(hmm_migrate_to_device(f->mm, &f->dev[0]->dev, f->addr, f->addr + SIZE, NULL, &moved), 0);
	assert_int_equal(moved, NR);
	/* Nor is it on record as a coherent device's: nobody would tell of what happens to it. */
	assert_int_equal(hmm_migrate_to_device(f->mm, &f->coherent, f->addr, f->addr + SIZE, NULL, &moved), 0);
	assert_int_equal(on(f, &f->coherent), NR);
	assert_int_equal(hmm_mm_unmanage(f->mm, f->addr, f->addr + SIZE / 2), 0);
	assert_int_equal(on(f, &f->coherent), NR / 2);
	assert_int_equal(hmm_migrate_to_device(f->mm, &f->dev[0]->dev, f->addr, f->addr + SIZE, NULL, &moved), 0);
	assert_int_equal(moved, NR);
	/* teardown closes with pages away */
}

/* A range is just about to be let go of when mremap() brings something there that is away. */
static struct between {
	struct fixture *f;
	char *from, *to;
	bool due, came;
	pthread_t t;
} between;

static void *gets_between(void *arg)
{
	return (void *)syscall(SYS_mremap, between.from, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, between.to);
}

static void comes_between(int uffd, uint64_t start, uint64_t len)
{
	uint64_t to = (uintptr_t)between.to;

	if (!between.due || to < start || to >= start + len)
		return;
	between.due = false;
	between.came = true;
	assert_int_equal(pthread_create(&between.t, NULL, gets_between, NULL), 0);
	while (!umm_uffd_is_changing(uffd))
		sched_yield();
}

int __real_umm_uffd_unregister(int uffd, uint64_t start, uint64_t len);
int __wrap_umm_uffd_unregister(int uffd, uint64_t start, uint64_t len);
static uint64_t half_way;          /* the next one lets go of so much, and has no memory for the rest */
static struct fixture *moves_then; /* its memory goes to the device just before it is watched no more */
static pthread_t moves;

static void *move_all(void *arg)
{
	struct fixture *f = arg;

	return (void *)(intptr_t)hmm_migrate_to_device(f->mm, &f->dev[0]->dev, f->addr, f->addr + SIZE, NULL, NULL);
}

int __wrap_umm_uffd_unregister(int uffd, uint64_t start, uint64_t len)
{
	struct fixture *f = moves_then;

	comes_between(uffd, start, len);
	if (f && start == f->addr) {
		moves_then = NULL;
		assert_int_equal(pthread_create(&moves, NULL, move_all, f), 0);
		/* With the event lock held none begins before that is over; without, it is waited for. */
		if (umm_evlock_try_shared(&f->space->ctl->evlock)) {
			umm_evlock_unshared(&f->space->ctl->evlock);
			while (on(f, &f->dev[0]->dev) < NR)
				sched_yield();
		}
	}
	int rc = __real_umm_uffd_unregister(uffd, start, half_way ? half_way : len);

	if (half_way)
		rc = -ENOMEM;
	half_way = 0;
	return rc;
}

int __real_umm_uffd_register(int uffd, uint64_t start, uint64_t len, uint64_t mode);
int __wrap_umm_uffd_register(int uffd, uint64_t start, uint64_t len, uint64_t mode);
static unsigned full_for; /* so many calls find no room for another mapping */
static unsigned maps_at[2];

static unsigned maps_now(void)
{
	char buf[4096];
	unsigned n = 0;
	int fd = open("/proc/self/maps", O_RDONLY);
	ssize_t got;

	assert_true(fd >= 0);
	while ((got = read(fd, buf, sizeof(buf))) > 0)
		for (ssize_t i = 0; i < got; i++)
			n += buf[i] == '\n';
	close(fd);
	return n;
}

int __wrap_umm_uffd_register(int uffd, uint64_t start, uint64_t len, uint64_t mode)
{
	if (between.came && start == (uintptr_t)between.to - PAGE && full_for) {
		maps_at[full_for == 1] = maps_now();
		full_for--;
		return -ENOMEM;
	}
	if (between.came && start == (uintptr_t)between.to - PAGE && maps_at[1])
		maps_at[0] = maps_now();
	return __real_umm_uffd_register(uffd, start, len, mode);
}

int __real_hmm_iset_del(struct hmm_iset *set, uint64_t start, uint64_t end);
int __wrap_hmm_iset_del(struct hmm_iset *set, uint64_t start, uint64_t end);
static struct hmm_iset *no_memory_for;

int __wrap_hmm_iset_del(struct hmm_iset *set, uint64_t start, uint64_t end)
{
	if (set != no_memory_for)
		return __real_hmm_iset_del(set, start, end);
	no_memory_for = NULL;
	return -ENOMEM;
}

/* Watched, and managed by nobody when it is asked whether it may be let go of. */
static void what_moves_while_it_is_let_go_of(void **state)
{
	struct fixture *f = *state;
	void *failed;

	fill(f, 14);
	assert_int_equal(umm_space_watch(f->space, f->addr, SIZE), 0);
	moves_then = f;
	assert_int_equal(umm_space_unwatch(f->space, f->addr, SIZE), 0);
	assert_null(moves_then);
	assert_int_equal(pthread_join(moves, &failed), 0);
	assert_null(failed);
	assert_filled(f->mem, SIZE, 14, 0);
}

/* With an engine and without. */
static void what_has_a_hole_is_not_watched(void **state)
{
	struct fixture *f = *state;
	struct umm_space *space[2] = {f->space};

	assert_int_equal(umm_space_open_self(&space[1]), 0);
	assert_int_equal(munmap(f->mem + 5 * PAGE, PAGE), 0);
	for (unsigned i = 0; i < 2; i++) {
		assert_int_equal(umm_space_watch(space[i], f->addr, 10 * PAGE), -EINVAL);
		assert_int_equal(umm_space_watch(space[i], f->addr, 6 * PAGE), -EINVAL);
		assert_int_equal(umm_space_watch(space[i], f->addr + 5 * PAGE, 5 * PAGE), -EINVAL);
		assert_int_equal(umm_space_watch(space[i], f->addr + 5 * PAGE, PAGE), -EINVAL);
		/* Nothing of it is. */
		assert_int_equal(umm_inside_registered(f->space->uffd, f->addr), -ENOENT);
		assert_int_equal(umm_inside_registered(f->space->uffd, f->addr + 6 * PAGE), -ENOENT);
		assert_int_equal(umm_space_watch(space[i], f->addr, 5 * PAGE), 0);
		assert_int_equal(umm_space_unwatch(space[i], f->addr, 5 * PAGE), 0);
		/* What can be is, where that is asked for. */
		assert_int_equal(umm_space_watch_around(space[i], f->addr, f->addr + 10 * PAGE), -EFAULT);
		assert_true(umm_inside_registered(f->space->uffd, f->addr) != -ENOENT);
		assert_int_equal(umm_space_unwatch(space[i], f->addr, 5 * PAGE), 0);
	}
	umm_space_close(space[1]);
}

/* What another descriptor has, and what is watched only, stays so. */
static void only_what_is_managed_is_let_go(void **state)
{
	struct fixture *f = *state;
	int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
	struct uffdio_api api = {.api = UFFD_API};
	char *p = mmap(NULL, 3 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uint64_t a = (uintptr_t)p;
	struct uffdio_register reg = {.range = {a + PAGE, PAGE}, .mode = UFFDIO_REGISTER_MODE_MISSING};

	assert_true(uffd >= 0 && !ioctl(uffd, UFFDIO_API, &api));
	/* Three mappings. */
	assert_int_equal(mprotect(p, PAGE, PROT_READ), 0);
	assert_int_equal(mprotect(p + 2 * PAGE, PAGE, PROT_READ), 0);
	assert_int_equal(ioctl(uffd, UFFDIO_REGISTER, &reg), 0);
	assert_int_equal(hmm_mm_manage(f->mm, a, a + PAGE), 0);
	assert_int_equal(hmm_mm_manage(f->mm, a + 2 * PAGE, a + 3 * PAGE), 0);
	assert_int_equal(hmm_mm_manage(f->mm, a, a + 3 * PAGE), -EBUSY);
	assert_int_equal(hmm_mm_unmanage(f->mm, a, a + 3 * PAGE), 0);
	/* The kernel says whose they are. */
	assert_int_equal(hmm_mm_manage(f->mm, a + PAGE, a + 2 * PAGE), -EBUSY);
	reg.range.start = a;
	assert_int_equal(ioctl(uffd, UFFDIO_REGISTER, &reg), 0);
	reg.range.start = a + 2 * PAGE;
	assert_int_equal(ioctl(uffd, UFFDIO_REGISTER, &reg), 0);
	assert_int_equal(hmm_mm_unmanage(f->mm, a, a + 3 * PAGE), 0);
	assert_int_equal(hmm_mm_manage(f->mm, a, a + PAGE), -EBUSY);
	close(uffd);
	munmap(p, 3 * PAGE);
}

#define BLOCKS 500u
#define HOLES 16u
#define BLOCK 60000u /* below what malloc maps by itself */

static struct {
	char *block[BLOCKS];
	atomic_bool go;
} heap;

static void *frees_from_the_top(void *arg)
{
	while (!atomic_load(&heap.go))
		sched_yield();
	for (unsigned i = BLOCKS; i--;)
		free(heap.block[i]);
	return NULL;
}

/* Who frees memory that is watched waits for its event to be read, holding malloc's lock. */
static void opened_while_malloc_waits(void **state)
{
	mallopt(M_ARENA_MAX, 1);
	mallopt(M_TRIM_THRESHOLD, 0);
	mallopt(M_TOP_PAD, 0);
	for (unsigned round = 0; round < 20; round++) {
		struct umm_space *space;
		struct umm_vma v;
		struct hmm_mm *mm;
		char *hole[HOLES];
		pthread_t t;

		/* What others allocate meanwhile comes from a hole below, so that the top is free to go. */
		for (unsigned i = 0; i < HOLES; i++)
			assert_non_null(hole[i] = malloc(BLOCK));
		for (unsigned i = 0; i < BLOCKS; i++)
			assert_non_null(heap.block[i] = malloc(BLOCK));
		for (unsigned i = 0; i < HOLES; i++)
			free(hole[i]);
		atomic_store(&heap.go, false);
		assert_int_equal(pthread_create(&t, NULL, frees_from_the_top, NULL), 0);
		assert_int_equal(umm_space_open_self(&space), 0);
		assert_int_equal(umm_vma_next(space, (uintptr_t)heap.block[BLOCKS - 1], &v), 0);
		assert_int_equal(umm_space_watch(space, v.start, v.end - v.start), 0);
		atomic_store(&heap.go, true);
		assert_int_equal(hmm_mm_open(space, &mm), 0);
		pthread_join(t, NULL);
		assert_int_equal(hmm_mm_close(mm), 0);
		umm_space_close(space);
	}
}

static void a_watched_mapping_that_moves_is_not_managed(void **state)
{
	struct fixture *f = *state;
	uint64_t moved;
	char *p = mmap(NULL, 6 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	assert_int_equal(mprotect(p + PAGE, 4 * PAGE, PROT_READ | PROT_WRITE), 0);
	for (unsigned i = 0; i < 4; i++)
		p[(i + 1) * PAGE] = (char)(i + 1);
	assert_int_equal(hmm_mm_manage(f->mm, f->addr, f->addr + SIZE), 0);
	assert_int_equal(umm_space_watch(f->space, (uintptr_t)p + PAGE, 4 * PAGE), 0);
	assert_ptr_equal(mremap(p + PAGE, 4 * PAGE, 4 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, f->mem + 8 * PAGE),
			 f->mem + 8 * PAGE);
	assert_int_equal(hmm_migrate_to_device(f->mm, &f->dev[0]->dev, f->addr, f->addr + SIZE, NULL, &moved), 0);
	assert_int_equal(moved, SIZE / PAGE);
	for (unsigned i = 0; i < 4; i++)
		assert_int_equal(f->mem[(i + 8) * PAGE], i + 1);
	munmap(p, 6 * PAGE);
}

static void a_device_that_is_removed_holds_nothing(void **state)
{
	struct fixture *f = *state;
	struct hmm_device *dev = &f->dev[0]->dev, *other = &f->dev[1]->dev, *where[SIZE / PAGE];
	struct fake *more[HMM_MANY];
	unsigned n = 0;
	uint64_t moved;

	for (unsigned i = 0; i < SIZE / PAGE; i++)
		f->mem[i * PAGE] = (char)(i + 1);
	assert_int_equal(hmm_migrate_to_device(f->mm, dev, f->addr, f->addr + SIZE / 2, NULL, &moved), 0);
	assert_int_equal(moved, SIZE / PAGE / 2);
	assert_int_equal(hmm_migrate_to_device(f->mm, other, f->addr + SIZE / 2, f->addr + SIZE, NULL, &moved), 0);
	assert_int_equal(hmm_mm_remove_device(f->mm, dev), 0);
	assert_int_equal(f->dev[0]->pages, 0);
	assert_int_equal(hmm_where(f->mm, f->addr, f->addr + SIZE, where, NULL), 0);
	for (unsigned i = 0; i < SIZE / PAGE; i++)
		assert_ptr_equal(where[i], i < SIZE / PAGE / 2 ? NULL : other);
	assert_int_equal(hmm_mm_remove_device(f->mm, dev), -EINVAL);
	assert_int_equal(hmm_migrate_to_device(f->mm, dev, f->addr, f->addr + PAGE, NULL, NULL), -EINVAL);
	/* Its place is free, and the others keep theirs. */
	while (n < HMM_MANY) {
		more[n] = fake_create(true);
		if (hmm_mm_add_device(f->mm, &more[n]->dev))
			break;
		n++;
	}
	assert_int_equal(n, 6);
	assert_int_equal(hmm_migrate_to_device(f->mm, &more[0]->dev, f->addr, f->addr + PAGE, NULL, &moved), 0);
	assert_int_equal(moved, 1);
	for (unsigned i = 0; i < SIZE / PAGE; i++)
		assert_int_equal(f->mem[i * PAGE], (char)(i + 1));
	fake_free(more[n]); /* there was no room for it */
	while (n--) {
		assert_int_equal(hmm_mm_remove_device(f->mm, &more[n]->dev), 0);
		fake_free(more[n]);
	}
	assert_int_equal(hmm_mm_remove_device(f->mm, &f->coherent), 0);
}

#define LONG_LEN (32ul << 20)
#define LONG_AWAY 64u
#define LONG_ROUNDS 8u

/* A mapping so large, and a place that lies so in its page tables, that mremap() takes a while. */
struct journey {
	char *room, *at, *to;
	atomic_bool begun;
	void *came_to;
};

static void *travels(void *arg)
{
	struct journey *j = arg;

	atomic_store(&j->begun, true);
	/* By a raw call: the kernel alone tells of it. */
	j->came_to = (void *)syscall(SYS_mremap, j->at, LONG_LEN, LONG_LEN, MREMAP_MAYMOVE | MREMAP_FIXED, j->to);
	return NULL;
}

static void journey_prepare(struct fixture *f, struct journey *j)
{
	size_t huge = 2ul << 20;

	j->room = mmap(NULL, 2 * LONG_LEN + 2 * huge, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_ptr_not_equal(j->room, MAP_FAILED);
	j->at = (char *)(((uintptr_t)j->room + huge - 1) & -huge);
	j->to = j->at + LONG_LEN + huge / 2;
	assert_int_equal(mprotect(j->at, LONG_LEN, PROT_READ | PROT_WRITE), 0);
	madvise(j->at, LONG_LEN, MADV_NOHUGEPAGE);
	for (size_t i = 0; i < LONG_LEN; i += PAGE)
		*(uint64_t *)(j->at + i) = i + 1;
	assert_int_equal(hmm_mm_manage(f->mm, (uintptr_t)j->at, (uintptr_t)j->at + LONG_LEN), 0);
}

static void journey_start(struct journey *j, pthread_t *t)
{
	atomic_store(&j->begun, false);
	assert_int_equal(pthread_create(t, NULL, travels, j), 0);
	while (!atomic_load(&j->begun))
		sched_yield();
}

static void journey_finish(struct journey *j, pthread_t t)
{
	char *was = j->at;

	pthread_join(t, NULL);
	assert_ptr_equal(j->came_to, j->to);
	j->at = j->to;
	j->to = was;
}

/* What no device takes goes back, and finds that its mapping is on its way. */
static void a_page_goes_back_while_its_mapping_moves(void **state)
{
	struct fixture *f = *state;
	struct hmm_migrate *m = calloc(1, sizeof(*m));
	struct journey j;
	pthread_t t;

	journey_prepare(f, &j);
	fake_set(f->dev[0], &f->dev[0]->take_every, 0);
	for (unsigned round = 0; round < LONG_ROUNDS; round++) {
		*m = (struct hmm_migrate){.mm = f->mm,
					  .to = &f->dev[0]->dev,
					  .start = (uintptr_t)j.at,
					  .end = (uintptr_t)j.at + LONG_AWAY * PAGE};
		assert_int_equal(hmm_migrate_collect(m), 0);
		assert_int_equal(m->npages, LONG_AWAY);
		assert_int_equal(hmm_migrate_copy(m), 0);
		journey_start(&j, &t);
		assert_int_equal(hmm_migrate_commit(m), 0);
		journey_finish(&j, t);
		for (size_t i = 0; i < LONG_AWAY * PAGE; i += PAGE)
			assert_int_equal(*(uint64_t *)(j.at + i), i + 1);
	}
	munmap(j.room, 2 * LONG_LEN + (4ul << 20));
	free(m);
}

/*
 * Areas side by side.  Something is away of three: while it comes back to the lowest one, the two above move below it.
 * And where it is looked at twice, while it comes back to the first of those the second one moves below that.
 */
enum { AREA_LAST, AREA_FIRST_TO, AREA_SECOND_TO, AREA_LOWEST, AREA_FIRST, AREA_SECOND, AREAS };

struct behind {
	struct fixture *f;
	char *p;
	bool twice;
};

#define AREA (2ul << 20) /* has a leaf of the records to itself */

static char *area_of(struct behind *b, unsigned i)
{
	return b->p + i * AREA;
}

static void area_away(struct behind *b, unsigned i, struct fake *dev)
{
	uint64_t moved, a = (uintptr_t)area_of(b, i);

	for (unsigned k = 0; k < 8; k++)
		*(uint64_t *)(area_of(b, i) + k * PAGE) = i * 100 + k;
	assert_int_equal(hmm_migrate_to_device(b->f->mm, &dev->dev, a, a + 8 * PAGE, NULL, &moved), 0);
	assert_int_equal(moved, 8);
}

static bool area_is(struct behind *b, unsigned at, unsigned i)
{
	for (unsigned k = 0; k < 8; k++)
		if (*(uint64_t *)(area_of(b, at) + k * PAGE) != i * 100 + k)
			return false;
	return true;
}

static void behind_prepare(struct fixture *f, struct behind *b, bool twice)
{
	char *p = mmap(NULL, (AREAS + 1) * AREA, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	assert_ptr_not_equal(p, MAP_FAILED);
	*b = (struct behind){.f = f, .p = (char *)(((uintptr_t)p + AREA - 1) & -AREA), .twice = twice};
	assert_int_equal(mprotect(area_of(b, AREA_LOWEST), 3 * AREA, PROT_READ | PROT_WRITE), 0);
	area_away(b, AREA_LOWEST, f->dev[0]);
	area_away(b, AREA_FIRST, f->dev[1]);
	area_away(b, AREA_SECOND, f->dev[0]);
	fake_tell(f->dev[0], &f->dev[0]->block_out, true);
	fake_tell(f->dev[1], &f->dev[1]->block_out, twice);
}

/* By a raw call, when somebody is stopped in @dev, who goes on then. */
static bool area_moves(struct behind *b, struct fake *dev, unsigned from, unsigned to, size_t len)
{
	char *came_to;

	fake_await(dev, &dev->out_blocked);
	came_to =
		(char *)syscall(SYS_mremap, area_of(b, from), len, len, MREMAP_MAYMOVE | MREMAP_FIXED, area_of(b, to));
	fake_tell(dev, &dev->block_out, false);
	return came_to == area_of(b, to);
}

static void *gets_behind(void *arg)
{
	struct behind *b = arg;
	bool moved = area_moves(b, b->f->dev[0], AREA_FIRST, AREA_FIRST_TO, 2 * AREA);

	if (moved && b->twice)
		moved = area_moves(b, b->f->dev[1], AREA_SECOND_TO, AREA_LAST, AREA);
	return moved ? b : NULL;
}

static void behind_check(struct behind *b, pthread_t t)
{
	void *moved;

	pthread_join(t, &moved);
	assert_non_null(moved);
	assert_true(area_is(b, AREA_LOWEST, AREA_LOWEST));
	assert_true(area_is(b, AREA_FIRST_TO, AREA_FIRST));
	assert_true(area_is(b, b->twice ? AREA_LAST : AREA_SECOND_TO, AREA_SECOND));
	munmap(b->p, AREAS * AREA);
}

static void an_engine_ends_while_something_moves_behind_it(void **state)
{
	struct fixture *f = *state;
	struct behind b;
	pthread_t t;

	behind_prepare(f, &b, true);
	assert_int_equal(pthread_create(&t, NULL, gets_behind, &b), 0);
	assert_int_equal(hmm_mm_close(f->mm), 0);
	f->mm = NULL;
	assert_int_equal(f->dev[0]->refs_total, 0);
	behind_check(&b, t);
}

static void a_device_goes_while_something_moves_behind_it(void **state)
{
	struct fixture *f = *state;
	struct behind b;
	pthread_t t;

	behind_prepare(f, &b, false);
	assert_int_equal(pthread_create(&t, NULL, gets_behind, &b), 0);
	assert_int_equal(hmm_mm_remove_device(f->mm, &f->dev[0]->dev), 0);
	assert_int_equal(f->dev[0]->refs_total, 0);
	behind_check(&b, t);
}

/* Up to the lowest one that is away: what comes there from above is not left away. */
static void a_range_is_let_go_of_while_something_moves_behind_it(void **state)
{
	struct fixture *f = *state;
	uint64_t start, end;
	struct behind b;
	pthread_t t;

	behind_prepare(f, &b, false);
	start = (uintptr_t)area_of(&b, AREA_FIRST_TO);
	end = (uintptr_t)area_of(&b, AREA_FIRST);
	assert_int_equal(mprotect(area_of(&b, AREA_FIRST_TO), 2 * AREA, PROT_READ | PROT_WRITE), 0);
	assert_int_equal(hmm_mm_manage(f->mm, start, end), 0);
	assert_int_equal(pthread_create(&t, NULL, gets_behind, &b), 0);
	assert_int_equal(hmm_hands_off(f->mm, start, end), 0);
	behind_check(&b, t);
}

static void between_prepare(struct fixture *f)
{
	char *p = mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uint64_t a = (uintptr_t)p, moved;

	assert_ptr_not_equal(p, MAP_FAILED);
	/* Nobody's neighbours. */
	assert_int_equal(mprotect(p, PAGE, PROT_NONE), 0);
	assert_int_equal(mprotect(p + 2 * PAGE, PAGE, PROT_NONE), 0);
	assert_int_equal(mprotect(p + 7 * PAGE, PAGE, PROT_NONE), 0);
	p[PAGE] = 'x';
	assert_int_equal(hmm_migrate_to_device(f->mm, &f->dev[0]->dev, a + PAGE, a + 2 * PAGE, NULL, &moved), 0);
	assert_int_equal(moved, 1);
	between = (struct between){.f = f, .from = p + PAGE, .to = p + 4 * PAGE};
}

static void between_check(struct fixture *f)
{
	void *to;

	assert_false(between.due);
	pthread_join(between.t, &to);
	assert_ptr_equal(to, between.to);
	assert_int_equal(between.to[0], 'x');
	fake_comes_to_hold(f->dev[0], 0);
	munmap(between.from - PAGE, 8 * PAGE);
}

static void what_comes_into_a_range_just_let_go_of_is_not_lost(void **state)
{
	struct fixture *f = *state;
	uint64_t a;

	between_prepare(f);
	a = (uintptr_t)between.to;
	assert_int_equal(hmm_mm_manage(f->mm, a, a + PAGE), 0);
	between.due = true;
	assert_int_equal(hmm_hands_off(f->mm, a - PAGE, a + 3 * PAGE), 0);
	between_check(f);
}

static void watched_no_more(struct fixture *f, bool hole, int rc)
{
	uint64_t a;

	between_prepare(f);
	a = (uintptr_t)between.to;
	assert_int_equal(umm_space_watch(f->space, a - PAGE, 3 * PAGE), 0);
	if (hole)
		assert_int_equal(munmap(between.to + PAGE, PAGE), 0);
	between.due = true;
	assert_int_equal(umm_space_unwatch(f->space, a - PAGE, 3 * PAGE), rc);
	between_check(f);
}

static void what_comes_where_nothing_is_watched_any_more_is_not_lost(void **state)
{
	watched_no_more(*state, false, 0);
}

/* The end of it is not mapped. */
static void a_range_with_a_hole_at_its_end_is_let_go_of(void **state)
{
	watched_no_more(*state, true, 0);
}

/* What it takes to watch it again is there, whoever has taken the last mapping that the kernel allows. */
static void what_is_watched_no_more_has_room_to_be_watched_again(void **state)
{
	full_for = 1;
	maps_at[0] = maps_at[1] = 0;
	watched_no_more(*state, false, 0);
	assert_int_equal(full_for, 0);
	assert_true(maps_at[1] >= maps_at[0] + 3);
	/* The same where it was let go of in part, for want of memory. */
	half_way = 2 * PAGE;
	watched_no_more(*state, false, -ENOMEM);
	assert_int_equal(half_way, 0);
}

static unsigned said_lost;

static void note_lost(void *priv, const char *why)
{
	said_lost++;
}

/* And if it is not all the same, nobody goes on with zeros. */
static void what_cannot_be_watched_again_ends_the_process(void **state)
{
	struct fixture *f = *state;
	const struct umm_space_ops *was = f->space->ops;
	struct umm_space_ops ops = *was;
	uint64_t a;

	ops.lost = note_lost;
	said_lost = 0;
	between_prepare(f);
	a = (uintptr_t)between.to;
	assert_int_equal(umm_space_watch(f->space, a - PAGE, 3 * PAGE), 0);
	full_for = 2;
	f->space->ops = &ops;
	between.due = true;
	assert_int_equal(umm_space_unwatch(f->space, a - PAGE, 3 * PAGE), -ENOMEM);
	f->space->ops = was;
	assert_int_equal(full_for, 0);
	assert_int_equal(said_lost, 1);
	pthread_join(between.t, NULL);
	munmap(between.from - PAGE, 8 * PAGE);
	fake_comes_to_hold(f->dev[0], 0);
}

/* What could not be taken off the record is watched as before: it may go, and comes back. */
static void what_stays_on_record_is_watched(void **state)
{
	struct fixture *f = *state;

	fill(f, 15);
	assert_int_equal(hmm_mm_manage(f->mm, f->addr, f->addr + SIZE), 0);
	no_memory_for = &f->mm->registered;
	assert_int_equal(hmm_mm_unmanage(f->mm, f->addr, f->addr + SIZE), -ENOMEM);
	assert_null(no_memory_for);
	assert_int_equal(hmm_migrate_to_device(f->mm, &f->dev[0]->dev, f->addr, f->addr + SIZE, NULL, NULL), 0);
	assert_int_equal(on(f, &f->dev[0]->dev), NR);
	assert_filled(f->mem, SIZE, 15, 0);
}

struct toucher {
	const char *at;
	_Atomic int sig;
};

static _Thread_local sigjmp_buf touch_jump;

static void on_touch(int sig)
{
	siglongjmp(touch_jump, sig);
}

static void *touches(void *arg)
{
	struct toucher *t = arg;
	int sig = sigsetjmp(touch_jump, 1);

	if (!sig)
		*(const volatile uint64_t *)t->at;
	atomic_store(&t->sig, sig);
	return NULL;
}

/* Nor is the program ended for a page that cannot be read, and cannot be marked as lost either where it was. */
static void a_page_is_lost_while_its_mapping_moves(void **state)
{
	struct fixture *f = *state;
	struct sigaction sa = {.sa_handler = on_touch}, was[2];
	struct journey j;

	journey_prepare(f, &j);
	sigaction(SIGSEGV, &sa, &was[0]);
	sigaction(SIGBUS, &sa, &was[1]);
	for (unsigned round = 0; round < LONG_ROUNDS; round++) {
		struct toucher touch = {.at = j.at + round * PAGE};
		pthread_t t, toucher;
		uint64_t moved, a = (uintptr_t)touch.at;

		assert_int_equal(hmm_migrate_to_device(f->mm, &f->dev[0]->dev, a, a + PAGE, NULL, &moved), 0);
		assert_int_equal(moved, 1);
		fake_fail_out(f->dev[0], -EIO);
		fake_tell(f->dev[0], &f->dev[0]->block_out, true);
		assert_int_equal(pthread_create(&toucher, NULL, touches, &touch), 0);
		fake_await(f->dev[0], &f->dev[0]->out_blocked);
		journey_start(&j, &t);
		fake_tell(f->dev[0], &f->dev[0]->block_out, false);
		journey_finish(&j, t);
		pthread_join(toucher, NULL);
		assert_true(touch.sig == SIGBUS || touch.sig == SIGSEGV);
		/* Lost before it moved, or not touched there yet. */
		touch.at = j.at + round * PAGE;
		touches(&touch);
		assert_int_equal(touch.sig, SIGBUS);
		fake_fail_out(f->dev[0], 0);
	}
	sigaction(SIGSEGV, &was[0], NULL);
	sigaction(SIGBUS, &was[1], NULL);
	munmap(j.room, 2 * LONG_LEN + (4ul << 20));
}

/* A child's that runs already, by a raw fork: what it moves is still being filled. */
static void a_child_moves_what_it_is_being_given(void **state)
{
	struct fixture *f = *state;
	struct journey j;
	uint64_t moved;

	journey_prepare(f, &j);
	for (unsigned round = 0; round < LONG_ROUNDS; round++) {
		uint64_t a = (uintptr_t)j.at;
		int status;

		assert_int_equal(hmm_migrate_to_device(f->mm, &f->dev[0]->dev, a, a + NR * PAGE, NULL, &moved), 0);
		assert_int_equal(on_at(f, &f->dev[0]->dev, a), NR);
		pid_t pid = (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
		if (!pid) {
			travels(&j);
			if (j.came_to != j.to)
				_exit(1);
			for (size_t i = 0; i < NR * PAGE; i += PAGE)
				if (*(uint64_t *)(j.to + i) != i + 1)
					_exit(2);
			_exit(0);
		}
		assert_int_equal(waitpid(pid, &status, 0), pid);
		assert_int_equal(status, 0);
	}
	munmap(j.room, 2 * LONG_LEN + (4ul << 20));
}

static void *lets_go_later(void *arg)
{
	usleep(100000);
	close((int)(intptr_t)arg);
	return NULL;
}

/* As in a child whose parent's engine still gives it what was away. */
static void what_another_engine_is_about_to_let_go_of(void **state)
{
	struct fixture *f = *state;
	int uffd = umm_inside_uffd();
	pthread_t t;
	uint64_t got;

	assert_true(uffd >= 0);
	assert_int_equal(umm_uffd_api(uffd, UMM_UFFD_BASE, 0, &got), 0);
	assert_int_equal(umm_uffd_register(uffd, f->addr, SIZE, UFFDIO_REGISTER_MODE_MISSING), 0);
	assert_int_equal(pthread_create(&t, NULL, lets_go_later, (void *)(intptr_t)uffd), 0);
	assert_int_equal(hmm_mm_manage(f->mm, f->addr, f->addr + SIZE), 0);
	pthread_join(t, NULL);
}

struct adder {
	struct hmm_mm *mm;
	struct fake *dev;
	_Atomic int tid;
	int rc;
};

static void *adds(void *arg)
{
	struct adder *a = arg;

	atomic_store(&a->tid, (int)syscall(SYS_gettid));
	a->rc = hmm_mm_add_device(a->mm, &a->dev->dev);
	return NULL;
}

static void until_it_sleeps(_Atomic int *tid)
{
	char path[64], line[64];

	while (!atomic_load(tid))
		sched_yield();
	snprintf(path, sizeof(path), "/proc/self/task/%d/stat", atomic_load(tid));
	do {
		int fd = open(path, O_RDONLY | O_CLOEXEC);
		ssize_t n = fd < 0 ? 0 : read(fd, line, sizeof(line) - 1);

		if (fd >= 0)
			close(fd);
		line[n > 0 ? n : 0] = 0;
	} while (!strstr(line, ") S "));
}

/* Both wait for a migration to end: each has a place of its own then. */
static void two_devices_come_at_once(void **state)
{
	struct fixture *f = *state;
	struct hmm_migrate *m = calloc(1, sizeof(*m));
	struct adder a[2];
	pthread_t t[2];
	uint64_t moved;

	fill(f, 21);
	*m = (struct hmm_migrate){.mm = f->mm, .to = &f->dev[0]->dev, .start = f->addr, .end = f->addr + PAGE};
	assert_int_equal(hmm_migrate_collect(m), 0);
	for (unsigned i = 0; i < 2; i++) {
		a[i] = (struct adder){.mm = f->mm, .dev = fake_create(true)};
		assert_int_equal(pthread_create(&t[i], NULL, adds, &a[i]), 0);
		until_it_sleeps(&a[i].tid);
	}
	hmm_migrate_commit(m);
	for (unsigned i = 0; i < 2; i++) {
		pthread_join(t[i], NULL);
		assert_int_equal(a[i].rc, 0);
	}
	for (unsigned i = 0; i < 2; i++) {
		uint64_t at = f->addr + i * PAGE;
		struct hmm_device *where;

		assert_int_equal(hmm_migrate_to_device(f->mm, &a[i].dev->dev, at, at + PAGE, NULL, &moved), 0);
		assert_int_equal(moved, 1);
		assert_int_equal(hmm_where(f->mm, at, at + PAGE, &where, NULL), 0);
		assert_ptr_equal(where, &a[i].dev->dev);
	}
	assert_filled(f->mem, SIZE, 21, 0);
	for (unsigned i = 0; i < 2; i++) {
		assert_int_equal(hmm_mm_remove_device(f->mm, &a[i].dev->dev), 0);
		assert_int_equal(a[i].dev->refs_total, 0);
		fake_free(a[i].dev);
	}
	free(m);
}

static sigjmp_buf lost_jump;

static void on_lost(int sig)
{
	siglongjmp(lost_jump, 1);
}

static void touch_what_is_lost(uint64_t at)
{
	if (!sigsetjmp(lost_jump, 1))
		(void)*(volatile char *)(uintptr_t)at;
}

/* A page that @dev has cannot be had: how often that is said, on standard error. */
static unsigned said_of_a_lost_peer(struct fixture *f, struct fake *dev, unsigned page)
{
	int fd = memfd_create("said", MFD_CLOEXEC), was = dup(STDERR_FILENO);
	uint64_t at = f->addr + page * PAGE, moved;
	char said[4096], *line = said;
	unsigned n = 0;
	ssize_t got;

	assert_int_equal(hmm_migrate_to_device(f->mm, &dev->dev, at, at + PAGE, NULL, &moved), 0);
	assert_int_equal(moved, 1);
	fake_fail_out(dev, -ENOTCONN);
	assert_int_equal(dup2(fd, STDERR_FILENO), STDERR_FILENO);
	touch_what_is_lost(at);
	assert_int_equal(dup2(was, STDERR_FILENO), STDERR_FILENO);
	close(was);
	got = pread(fd, said, sizeof(said) - 1, 0);
	close(fd);
	assert_true(got >= 0);
	said[got] = 0;
	for (; (line = strstr(line, "has lost its peer")); line++)
		n++;
	fake_fail_out(dev, 0);
	return n;
}

/* Once for each device, not for each place that devices have. */
static void a_device_in_anothers_place_is_lost_with_a_line(void **state)
{
	struct fixture *f = *state;
	struct sigaction sa = {.sa_handler = on_lost}, was;
	struct fake *more = fake_create(true);

	fill(f, 22);
	sigaction(SIGBUS, &sa, &was);
	assert_int_equal(said_of_a_lost_peer(f, f->dev[0], 0), 1);
	assert_int_equal(said_of_a_lost_peer(f, f->dev[0], 1), 0);
	assert_int_equal(said_of_a_lost_peer(f, f->dev[1], 2), 1);
	assert_int_equal(hmm_mm_remove_device(f->mm, &f->dev[0]->dev), 0);
	assert_int_equal(hmm_mm_add_device(f->mm, &more->dev), 0);
	assert_int_equal(said_of_a_lost_peer(f, more, 3), 1);
	assert_int_equal(said_of_a_lost_peer(f, f->dev[1], 4), 0);
	sigaction(SIGBUS, &was, NULL);
	assert_int_equal(hmm_mm_remove_device(f->mm, &more->dev), 0);
	fake_free(more);
}

#define GIVEN (2ul << 20)

/* A block that goes to a device by being given to it, and the place has a hole, or is locked in part. */
static void a_place_with_a_hole_loses_nothing(void **state)
{
	struct fixture *f = *state;
	struct hmm_migrate *m = calloc(1, sizeof(*m));
	char *room = mmap(NULL, 6 * GIVEN, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *from = (char *)(((uintptr_t)room + GIVEN - 1) & ~(GIVEN - 1)), *hole = from + 2 * GIVEN;
	char *locked = from + 4 * GIVEN;

	assert_true(room != MAP_FAILED);
	madvise(room, 6 * GIVEN, MADV_NOHUGEPAGE);
	munmap(from + GIVEN, GIVEN);
	munmap(from + 3 * GIVEN, GIVEN);
	memset(from, 7, GIVEN);
	memset(hole, 8, GIVEN);
	memset(locked, 9, GIVEN);
	assert_int_equal(munmap(hole + GIVEN / 2, GIVEN / 2), 0);
	assert_int_equal(mlock(locked + GIVEN / 2, GIVEN / 2), 0);
	*m = (struct hmm_migrate){
		.mm = f->mm, .to = &f->dev[0]->dev, .start = (uintptr_t)from, .end = (uintptr_t)from + GIVEN};
	assert_int_equal(hmm_migrate_collect(m), 0);
	assert_int_equal(m->npages, GIVEN / PAGE);
	assert_int_equal(hmm_migrate_copy(m), GIVEN / PAGE);
	assert_int_equal(hmm_migrate_give(m, hole), -EINVAL);
	assert_int_equal(hmm_migrate_give(m, locked), -EINVAL);
	assert_int_equal(hmm_migrate_commit(m), GIVEN / PAGE);
	for (size_t i = 0; i < GIVEN / 2; i++)
		assert_int_equal(hole[i], 8);
	for (size_t i = 0; i < GIVEN; i++)
		assert_int_equal(locked[i], 9);
	for (size_t i = 0; i < GIVEN; i++)
		assert_int_equal(from[i], 7);
	munmap(room, 6 * GIVEN);
	free(m);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
		T(there_and_back),
		T(never_touched_and_read_only),
		T(from_device_to_device),
		T(partial_success),
		T(in_three_phases),
		T(bad_arguments),
		T(a_device_at_its_own_pages),
		T(what_left_while_it_was_written_is_elsewhere),
		T(what_a_device_can_read_it_does),
		T(what_happens_to_the_mapping_happens_to_the_pages),
		T(contents_dropped_a_moment_ago_can_move),
		T(contents_whose_drop_is_applied_late_can_move),
		T(guards_drop_what_is_away),
		T(what_came_back_late_does_not_leave),
		T(what_callbacks_hold_up_does_not_leave),
		T(fork_by_libc),
		T(fork_raw),
		T(what_a_child_cannot_be_given),
		T(a_shared_page_moves_without_the_other),
		T(coherent_pages_stay_mapped),
		T(a_coherent_device_with_a_node),
		T(a_node_without_cpus),
		cmocka_unit_test(a_page_that_stays_hides_no_other),
		cmocka_unit_test(a_huge_page_goes_as_a_whole),
		cmocka_unit_test(a_node_without_memory_keeps_nothing_away),
		T(notifiers_are_told_whose_migration_it_is),
		T(a_huge_page_goes_as_one),
		T(a_huge_page_comes_back_as_one),
		T(what_a_locked_block_has_left),
		T(threads_write_while_a_huge_page_moves),
		T(threads_write_while_pages_move),
		T(letting_go),
		T(what_moves_while_it_is_let_go_of),
		T(what_has_a_hole_is_not_watched),
		T(only_what_is_managed_is_let_go),
		T(what_another_engine_is_about_to_let_go_of),
		T(an_engine_ends_while_something_moves_behind_it),
		T(a_device_goes_while_something_moves_behind_it),
		T(a_range_is_let_go_of_while_something_moves_behind_it),
		T(what_comes_into_a_range_just_let_go_of_is_not_lost),
		T(what_comes_where_nothing_is_watched_any_more_is_not_lost),
		T(a_range_with_a_hole_at_its_end_is_let_go_of),
		T(what_is_watched_no_more_has_room_to_be_watched_again),
		T(what_cannot_be_watched_again_ends_the_process),
		T(what_stays_on_record_is_watched),
		T(a_page_goes_back_while_its_mapping_moves),
		T(a_page_is_lost_while_its_mapping_moves),
		T(a_child_moves_what_it_is_being_given),
		T(a_watched_mapping_that_moves_is_not_managed),
		T(a_device_that_is_removed_holds_nothing),
		T(two_devices_come_at_once),
		T(a_place_with_a_hole_loses_nothing),
		T(a_device_in_anothers_place_is_lost_with_a_line),
		cmocka_unit_test(opened_while_malloc_waits),
	};

	if (argc > 1)
		cmocka_set_test_filter(argv[1]);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
