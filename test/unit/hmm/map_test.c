/* SPDX-License-Identifier: MIT */
/* hmm_range_map(): what a device has mapped, through errors, invalidations and races, for each kind of device. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>

#include "../../skip.h"
#include "../../zeropage.h"
#include "fake.h"
#include "hmm_uapi.h"
#include "umm/hooks.h"
#include "umm/internal.h"

#define PAGE 4096ul
#define BLOCK (512 * PAGE)
#define NR 1200u /* parts of four blocks */
#define SIZE (NR * PAGE)

/* ------------------------------------------------- a device that keeps a table */

struct entry {
	bool mapped, write, huge;
	uint64_t stamp; /* when it was entered */
};

struct table {
	struct fake *fake; /* its memory */
	struct hmm_device *dev;
	struct hmm_device_ops ops;
	pthread_mutex_t lock;
	pthread_cond_t moved;
	uint64_t base; /* address of entry 0 */
	struct entry e[NR + 1024];
	_Atomic uint64_t stamp;
	unsigned maps, unmaps, pages_mapped, pages_unmapped, bad;
	unsigned fail_at; /* this call to map gives -EIO; 0: none */
	unsigned hold_at; /* this call to map begins to hold; 0: none */
	uint64_t slow_until_ns;
	bool dirty_all;
	unsigned settles, stopped, stops;
	bool sleeps;     /* settle, for who may not */
	bool hold, held; /* map waits while it is set; is somebody waiting? */
	int raises;      /* a signal that map is met by; 0: none */
	bool changed;    /* a call that changes what is being mapped has returned */
	const struct umm_change *last_why;
};

static struct table T;

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static uint64_t in_seconds(unsigned s)
{
	return now_ns() + s * 1000000000ull;
}

static struct entry *entry_of(uint64_t addr)
{
	return &T.e[(addr - T.base) / PAGE];
}

static int table_map(struct hmm_device *dev, struct hmm_range *r, const struct hmm_map_run *run)
{
	int rc = 0;

	pthread_mutex_lock(&T.lock);
	if (++T.maps == T.fail_at)
		rc = -EIO;
	T.bad += run->addr < r->start || run->addr + run->npages * PAGE > r->end || !run->npages;
	if (!(T.ops.caps & HMM_DEV_PINNED))
		T.bad += run->npages > HMM_MAP_RUN_MAX ||
			 run->addr / BLOCK != (run->addr + run->npages * PAGE - 1) / BLOCK;
	if (run->huge)
		T.bad += run->npages != 512 || run->addr % BLOCK || !(T.ops.caps & HMM_DEV_HUGE);
	T.hold |= T.maps == T.hold_at;
	while (T.hold) {
		T.held = true;
		pthread_cond_broadcast(&T.moved);
		pthread_cond_wait(&T.moved, &T.lock);
	}
	T.held = false;
	for (uint64_t i = 0; !rc && i < run->npages; i++)
		*entry_of(run->addr + i * PAGE) =
			(struct entry){true, run->write, run->huge, atomic_fetch_add(&T.stamp, 1)};
	if (!rc)
		T.pages_mapped += (unsigned)run->npages;
	pthread_mutex_unlock(&T.lock);
	while (now_ns() < T.slow_until_ns)
		sched_yield();
	if (T.raises)
		raise(T.raises);
	return rc;
}

static void table_unmap(struct hmm_device *dev, struct hmm_range *r, const struct hmm_map_run *run,
			const struct umm_change *why, uint64_t *dirty)
{
	pthread_mutex_lock(&T.lock);
	T.unmaps++;
	T.pages_unmapped += (unsigned)run->npages;
	T.last_why = why;
	T.bad += T.changed;
	T.bad += (T.ops.caps & HMM_DEV_QUEUE) && !T.stopped;
	T.bad += (T.ops.caps & HMM_DEV_PINNED) && (dirty || (why && why->late));
	for (uint64_t i = 0; i < run->npages; i++) {
		struct entry *e = entry_of(run->addr + i * PAGE);

		T.bad += !e->mapped || e->write != run->write || e->huge != run->huge;
		e->mapped = false;
	}
	for (unsigned i = 0; T.dirty_all && dirty && i < (run->huge ? 1 : run->npages); i++)
		dirty[i / 64] |= 1ull << i % 64;
	pthread_mutex_unlock(&T.lock);
}

static bool table_settle(struct hmm_device *dev, struct hmm_range *r, uint64_t start, uint64_t end,
			 const struct umm_change *why)
{
	pthread_mutex_lock(&T.lock);
	T.settles++;
	pthread_mutex_unlock(&T.lock);
	return !T.sleeps || !why || why->blockable;
}

static void table_stop(struct hmm_device *dev, struct hmm_range *r, const struct umm_change *why)
{
	pthread_mutex_lock(&T.lock);
	T.stopped++;
	T.stops++;
	pthread_mutex_unlock(&T.lock);
}

static void table_start(struct hmm_device *dev, struct hmm_range *r)
{
	pthread_mutex_lock(&T.lock);
	T.bad += !T.stopped;
	T.stopped--;
	pthread_mutex_unlock(&T.lock);
}

static unsigned mapped_in(const void *p, unsigned n)
{
	unsigned count = 0;

	pthread_mutex_lock(&T.lock);
	for (unsigned i = 0; i < n; i++)
		count += entry_of((uintptr_t)p + i * PAGE)->mapped;
	pthread_mutex_unlock(&T.lock);
	return count;
}

/* ------------------------------------------------------------------- fixture */

struct fixture {
	struct umm_space *space;
	struct hmm_range *r;
	char *area; /* four blocks, aligned */
	char *mem;  /* SIZE of it, from the middle of the first on */
	uint64_t start, end;
};

static void lost(struct hmm_range *r, const struct umm_change *why);
static const struct hmm_range_hooks hooks = {.lost = lost};
static _Atomic unsigned nlost;

static void lost(struct hmm_range *r, const struct umm_change *why)
{
	T.bad += !why;
	nlost++;
}

static void open_range(struct fixture *f, uint32_t caps)
{
	T.ops.caps = HMM_DEV_MAP | caps;
	assert_int_equal(hmm_range_open(f->space, NULL, T.dev, f->start, f->end, f, &f->r), 0);
	assert_ptr_equal(f->r->priv, f);
	f->r->hooks = &hooks;
	nlost = 0;
}

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	char *p;

	if (umm_space_open_self(&f->space))
		return -1;
	umm_hooks_set(f->space);
	p = mmap(NULL, 5 * BLOCK, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	f->area = (char *)(((uintptr_t)p + BLOCK - 1) & ~(BLOCK - 1));
	f->mem = f->area + BLOCK / 2;
	if (mmap(f->mem, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED)
		return -1;
	madvise(f->mem, SIZE, MADV_NOHUGEPAGE);
	f->start = (uintptr_t)f->mem;
	f->end = f->start + SIZE;
	memset(&T, 0, sizeof(T));
	pthread_mutex_init(&T.lock, NULL);
	pthread_cond_init(&T.moved, NULL);
	T.base = (uintptr_t)f->area;
	T.stamp = 1;
	T.fake = fake_create(true);
	T.ops = T.fake->ops;
	T.ops.map = table_map;
	T.ops.unmap = table_unmap;
	T.ops.settle = table_settle;
	T.ops.stop = table_stop;
	T.ops.start = table_start;
	T.dev = &T.fake->dev;
	T.dev->ops = &T.ops;
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;
	int rc = 0;

	hmm_range_close(f->r);
	if (T.bad || T.stopped || mapped_in(f->area, NR + 256)) {
		print_error("%u calls with nonsense, %u stops too many, %u pages left mapped\n", T.bad, T.stopped,
			    mapped_in(f->area, NR + 256));
		rc = -1;
	}
	umm_hooks_set(NULL);
	umm_space_close(f->space);
	munmap(f->area, 4 * BLOCK);
	fake_free(T.fake);
	free(f);
	return rc;
}

/* Without a change behind it: what the device does is all that is looked at. */
static struct umm_change change_of(enum umm_event event, uint64_t start, uint64_t end)
{
	return (struct umm_change){.event = event, .start = start, .end = end, .blockable = true};
}

static void invalidate(struct fixture *f, enum umm_event event, uint64_t start, uint64_t end)
{
	struct umm_change c = change_of(event, start, end);

	assert_int_equal(umm_invalidate_begin(f->space, &c), 0);
	umm_invalidate_end(f->space, &c);
}

/* --------------------------------------------------------- a page table device */

static void map_and_unmap(void **state)
{
	struct fixture *f = *state;
	uint64_t dirty = 99;

	open_range(f, HMM_DEV_FAULT);
	assert_false(hmm_range_mapped(f->r, f->start, f->end, false));
	assert_int_equal(hmm_range_map(f->r, f->start, f->end, HMM_MAP_WRITE, in_seconds(60)), 0);
	assert_int_equal(mapped_in(f->mem, NR), NR);
	assert_int_equal(T.maps, 3); /* a run in each block */
	assert_true(entry_of(f->start)->write);
	assert_true(hmm_range_mapped(f->r, f->start, f->end, true));
	assert_int_equal(hmm_range_unmap(f->r, f->start + PAGE, f->end, &dirty), 0);
	assert_int_equal(dirty, 0);
	assert_int_equal(mapped_in(f->mem, NR), 1);
	assert_int_equal(hmm_range_unmap(f->r, f->start, f->end, &dirty), 0);
	assert_int_equal(mapped_in(f->mem, NR), 0);
	assert_int_equal(T.pages_unmapped, NR);
}

static void reading_maps_what_may_be_written_so(void **state)
{
	struct fixture *f = *state;

	f->mem[PAGE] = 1;
	open_range(f, HMM_DEV_FAULT);
	/* One page is ours, the others are the zero page, where the kernel has one. */
	bool zero = reads_share_a_page();
	assert_int_equal(hmm_range_map(f->r, f->start, f->start + 3 * PAGE, 0, 0), 0);
	assert_int_equal(T.maps, zero ? 3 : 1);
	assert_true(entry_of(f->start + PAGE)->write);
	assert_int_equal(entry_of(f->start)->write, !zero);
	/* To write means the two others. */
	assert_int_equal(hmm_range_map(f->r, f->start, f->start + 3 * PAGE, HMM_MAP_WRITE, 0), 0);
	assert_int_equal(T.maps, zero ? 5 : 1);
	assert_int_equal(T.pages_mapped, zero ? 5 : 3);
	assert_true(hmm_range_mapped(f->r, f->start, f->start + 3 * PAGE, true));
	assert_false(hmm_range_mapped(f->r, f->start, f->start + 4 * PAGE, false));
}

static void mapped_stays_mapped(void **state)
{
	struct fixture *f = *state;

	open_range(f, HMM_DEV_FAULT);
	assert_int_equal(hmm_range_map(f->r, f->start, f->end, HMM_MAP_WRITE, 0), 0);
	invalidate(f, UMM_EVENT_CLEAR, f->start + 300 * PAGE, f->start + 310 * PAGE);
	assert_int_equal(mapped_in(f->mem, NR), NR - 10);
	assert_int_equal(T.pages_unmapped, 10);
	T.maps = T.pages_mapped = 0;
	assert_int_equal(hmm_range_map(f->r, f->start, f->end, HMM_MAP_WRITE, 0), 0);
	/* What was lost, and nothing else. */
	assert_int_equal(T.pages_mapped, 10);
	assert_int_equal(T.maps, 1);
	assert_int_equal(hmm_range_map(f->r, f->start, f->end, 0, 0), 0);
	assert_int_equal(T.maps, 1);
	/* Elsewhere is not here. */
	invalidate(f, UMM_EVENT_UNMAP, f->end, f->end + PAGE);
	assert_int_equal(mapped_in(f->mem, NR), NR);
}

/* Pages that are mapped already, so that there are many runs; those of others. */
static void map_every_third(struct fixture *f, unsigned n)
{
	for (unsigned i = 0; i < n; i += 3)
		assert_int_equal(hmm_range_map(f->r, f->start + i * PAGE, f->start + (i + 1) * PAGE, 0, 0), 0);
}

static void each_failing_call_is_undone(void **state)
{
	struct fixture *f = *state;
	const unsigned first = 250, n = 20; /* over a border of blocks */
	unsigned failed = 0;
	int rc;

	open_range(f, HMM_DEV_FAULT);
	f->mem[(first + 4) * PAGE] = 1; /* writable from the start: runs differ in this, too */
	for (unsigned at = 1;; at++) {
		struct entry before[40];
		uint64_t start = f->start + first * PAGE, end = start + n * PAGE;

		assert_int_equal(hmm_range_unmap(f->r, f->start, f->end, NULL), 0);
		for (unsigned i = 0; i < n; i += 3)
			assert_int_equal(hmm_range_map(f->r, start + i * PAGE, start + (i + 1) * PAGE, 0, 0), 0);
		memcpy(before, entry_of(start), n * sizeof(*before));
		T.maps = 0;
		T.fail_at = at;
		rc = hmm_range_map(f->r, start, end, 0, 0);
		T.fail_at = 0;
		if (!rc)
			break;
		assert_int_equal(rc, -EIO);
		failed++;
		for (unsigned i = 0; i < n; i++) {
			assert_int_equal(entry_of(start)[i].mapped, before[i].mapped);
			if (before[i].mapped)
				assert_int_equal(entry_of(start)[i].stamp, before[i].stamp);
			assert_int_equal(hmm_range_mapped(f->r, start + i * PAGE, start + (i + 1) * PAGE, false),
					 before[i].mapped);
		}
	}
	assert_true(failed > 5);
	assert_int_equal(mapped_in(f->mem + first * PAGE, n), n);
	map_every_third(f, 9);
}

static void an_error_on_the_way_undoes_all(void **state)
{
	struct fixture *f = *state;

	open_range(f, HMM_DEV_FAULT);
	map_every_third(f, 9);
	T.settles = 0;
	/* A hole in the last block. */
	assert_int_equal(munmap(f->mem + (NR - 2) * PAGE, PAGE), 0);
	assert_int_equal(hmm_range_map(f->r, f->start, f->end, HMM_MAP_WRITE, 0), -EFAULT);
	/* The three that had been mapped for reading had become writable, if they were not so before. */
	assert_int_equal(mapped_in(f->mem, NR), reads_share_a_page() ? 0 : 3);
	assert_true(T.settles > 0);
	map_every_third(f, 9);
	assert_int_equal(hmm_range_map(f->r, f->start, f->end, 0, 0), -EFAULT);
	assert_int_equal(mapped_in(f->mem, NR), 3);
	assert_int_equal(hmm_range_map(f->r, f->start, f->end - 2 * PAGE, 0, 0), 0);
	/* Readable but not writable, and not even that. */
	assert_int_equal(mprotect(f->mem + 600 * PAGE, PAGE, PROT_READ), 0);
	assert_int_equal(mapped_in(f->mem, NR), NR - 3);
	assert_int_equal(hmm_range_map(f->r, f->start + 600 * PAGE, f->start + 700 * PAGE, HMM_MAP_WRITE, 0), -EPERM);
	assert_int_equal(hmm_range_map(f->r, f->start + 600 * PAGE, f->start + 700 * PAGE, 0, 0), 0);
	assert_false(entry_of(f->start + 600 * PAGE)->write);
	assert_int_equal(mprotect(f->mem + 600 * PAGE, PAGE, PROT_NONE), 0);
	assert_int_equal(hmm_range_map(f->r, f->start + 600 * PAGE, f->start + 700 * PAGE, 0, 0), -EFAULT);
}

static void bad_arguments(void **state)
{
	struct fixture *f = *state;
	struct hmm_range *r = NULL;

	open_range(f, HMM_DEV_FAULT);
	assert_int_equal(hmm_range_map(f->r, f->start, f->start, 0, 0), -EINVAL);
	assert_int_equal(hmm_range_map(f->r, f->start - PAGE, f->end, 0, 0), -EINVAL);
	assert_int_equal(hmm_range_map(f->r, f->start, f->end + PAGE, 0, 0), -EINVAL);
	assert_int_equal(hmm_range_map(f->r, f->start + 1, f->end, 0, 0), -EINVAL);
	assert_int_equal(hmm_range_map(f->r, f->end, f->start, 0, 0), -EINVAL);
	assert_int_equal(hmm_range_map(f->r, f->start, f->end, 64, 0), -EINVAL);
	assert_int_equal(hmm_range_unmap(f->r, f->start, f->end + PAGE, NULL), -EINVAL);
	assert_int_equal(hmm_range_open(f->space, NULL, T.dev, 0, 0, NULL, &r), -EINVAL);
	assert_int_equal(hmm_range_open(f->space, NULL, T.dev, PAGE, 1ull << 57, NULL, &r), -EINVAL);
	assert_int_equal(hmm_range_open(f->space, NULL, T.dev, 8, PAGE, NULL, &r), -EINVAL);
	T.ops.caps = HMM_DEV_FAULT;
	assert_int_equal(hmm_range_open(f->space, NULL, T.dev, 0, PAGE, NULL, &r), -EINVAL);
	T.ops.caps = HMM_DEV_MAP | HMM_DEV_PINNED | HMM_DEV_HUGE;
	assert_int_equal(hmm_range_open(f->space, NULL, T.dev, 0, PAGE, NULL, &r), -EINVAL);
	T.ops.caps = HMM_DEV_MAP | HMM_DEV_QUEUE;
	T.ops.stop = NULL;
	assert_int_equal(hmm_range_open(f->space, NULL, T.dev, 0, PAGE, NULL, &r), -EINVAL);
	T.ops.caps = HMM_DEV_MAP;
	assert_null(r);
}

static void a_deadline_ends_it(void **state)
{
	struct fixture *f = *state;
	struct umm_change c = change_of(UMM_EVENT_CLEAR, f->start, f->start + PAGE);

	open_range(f, HMM_DEV_FAULT);
	/* A change that is under way for ever. */
	assert_int_equal(umm_invalidate_begin(f->space, &c), 0);
	assert_int_equal(hmm_range_map(f->r, f->start, f->end, 0, now_ns() + 1000000), -ETIME);
	umm_invalidate_end(f->space, &c);
	assert_int_equal(mapped_in(f->mem, NR), 0);
	/* It passes between the first block and the second. */
	map_every_third(f, 9);
	T.slow_until_ns = now_ns() + 50000000;
	assert_int_equal(hmm_range_map(f->r, f->start, f->end, 0, T.slow_until_ns), -ETIME);
	T.slow_until_ns = 0;
	assert_int_equal(mapped_in(f->mem, NR), 3);
	/* What is there already takes no time. */
	assert_int_equal(hmm_range_map(f->r, f->start, f->start + PAGE, 0, 1), 0);
}

static bool written(const void *p)
{
	struct page_region region;
	struct pm_scan_arg a = {
		.size = sizeof(a),
		.start = (uintptr_t)p,
		.end = (uintptr_t)p + PAGE,
		.vec = (uintptr_t)&region,
		.vec_len = 1,
		.category_mask = PAGE_IS_WRITTEN | PAGE_IS_PRESENT,
		.return_mask = PAGE_IS_WRITTEN,
	};
	int fd = open("/proc/self/pagemap", O_RDONLY), n = ioctl(fd, PAGEMAP_SCAN, &a);

	close(fd);
	assert_true(n >= 0);
	return n == 1;
}

static void forget_written(uint64_t start, uint64_t end)
{
	struct page_region region;
	struct pm_scan_arg a = {
		.size = sizeof(a),
		.flags = PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC,
		.start = start,
		.end = end,
		.vec = (uintptr_t)&region,
		.vec_len = 1,
		.category_mask = PAGE_IS_WRITTEN,
	};
	int fd = open("/proc/self/pagemap", O_RDONLY), n = ioctl(fd, PAGEMAP_SCAN, &a);

	close(fd);
	assert_true(n >= 0);
}

static void what_the_device_wrote_is_marked(void **state)
{
	struct fixture *f = *state;
	uint64_t dirty;
	int rc = umm_space_watch(f->space, f->start, SIZE);

	if (rc == -EPERM)
		skip_because("no right to a userfaultfd");
	assert_int_equal(rc, 0);
	memset(f->mem, 1, SIZE);
	open_range(f, HMM_DEV_FAULT);
	assert_int_equal(hmm_range_map(f->r, f->start, f->end, HMM_MAP_WRITE, 0), 0);
	forget_written(f->start, f->end);
	assert_false(written(f->mem));
	T.dirty_all = true;
	assert_int_equal(hmm_range_unmap(f->r, f->start, f->start + 3 * PAGE, &dirty), 0);
	assert_int_equal(dirty, 3);
	assert_true(written(f->mem));
	assert_true(written(f->mem + 2 * PAGE));
	assert_false(written(f->mem + 3 * PAGE));
	/* Before a change, too. */
	invalidate(f, UMM_EVENT_PROTECT, f->start + 5 * PAGE, f->start + 6 * PAGE);
	assert_true(written(f->mem + 5 * PAGE));
	assert_false(written(f->mem + 6 * PAGE));
	/* Contents that are dropped were written for nothing. */
	invalidate(f, UMM_EVENT_CLEAR, f->start + 7 * PAGE, f->start + 8 * PAGE);
	assert_false(written(f->mem + 7 * PAGE));
}

static void a_huge_page_is_one_entry(void **state)
{
	struct fixture *f = *state;
	char *mem = f->area + BLOCK;
	struct umm_page_run run;
	uint64_t walked, start = (uintptr_t)mem;

	assert_int_equal(madvise(mem, BLOCK, MADV_HUGEPAGE), 0);
	memset(mem, 1, BLOCK);
	if (umm_page_scan(f->space, start, start + BLOCK, &run, 1, &walked) != 1 || !(run.flags & UMM_PAGE_HUGE))
		skip_because("no huge page to be had");
	open_range(f, HMM_DEV_FAULT | HMM_DEV_HUGE);
	assert_int_equal(hmm_range_map(f->r, start - PAGE, start + BLOCK + PAGE, HMM_MAP_WRITE, 0), 0);
	assert_int_equal(T.maps, 3);
	assert_true(entry_of(start)->huge && entry_of(start + BLOCK - PAGE)->huge);
	assert_false(entry_of(start - PAGE)->huge);
	/* It goes as a whole, also when written to. */
	T.unmaps = T.pages_unmapped = 0;
	T.dirty_all = true;
	invalidate(f, UMM_EVENT_CLEAR, start + 7 * PAGE, start + 8 * PAGE);
	assert_int_equal(T.unmaps, 1);
	assert_int_equal(T.pages_unmapped, 512);
	assert_false(hmm_range_mapped(f->r, start, start + PAGE, false));
	/* Part of it is asked for: entries of their own, and no huge one over them. */
	T.maps = 0;
	assert_int_equal(hmm_range_map(f->r, start, start + 4 * PAGE, 0, 0), 0);
	assert_false(entry_of(start)->huge);
	assert_int_equal(hmm_range_map(f->r, start, start + BLOCK, 0, 0), 0);
	assert_int_equal(T.maps, 2);
	assert_false(entry_of(start + BLOCK - PAGE)->huge);
	/* A device that cannot has pages. */
	hmm_range_close(f->r);
	open_range(f, HMM_DEV_FAULT);
	assert_int_equal(hmm_range_map(f->r, start, start + BLOCK, 0, 0), 0);
	assert_false(entry_of(start)->huge);
}

/* What one page of a block is to lose or to leave takes the entry of all: what else was written to is still there. */
static void what_goes_with_a_huge_entry_is_marked(void **state)
{
	const enum umm_event events[] = {UMM_EVENT_CLEAR, UMM_EVENT_MIGRATE, UMM_EVENT_EXCLUSIVE};
	struct fixture *f = *state;
	char *mem = f->area + BLOCK;
	uint64_t start = (uintptr_t)mem, walked;
	struct umm_page_run run;

	for (unsigned i = 0; i < 3; i++) {
		/* Anew: what is marked is one huge page no more. */
		assert_ptr_equal(
			mmap(mem, BLOCK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0), mem);
		assert_int_equal(madvise(mem, BLOCK, MADV_HUGEPAGE), 0);
		memset(mem, 1, BLOCK);
		if (umm_page_scan(f->space, start, start + BLOCK, &run, 1, &walked) != 1 ||
		    !(run.flags & UMM_PAGE_HUGE))
			skip_because("no huge page to be had");
		int rc = umm_space_watch(f->space, start, BLOCK);
		if (rc == -EPERM)
			skip_because("no right to a userfaultfd");
		assert_int_equal(rc, 0);
		open_range(f, HMM_DEV_FAULT | HMM_DEV_HUGE);
		assert_int_equal(hmm_range_map(f->r, start, start + BLOCK, HMM_MAP_WRITE, 0), 0);
		assert_true(entry_of(start)->huge);
		forget_written(start, start + BLOCK);
		assert_false(written(mem));
		T.dirty_all = true;
		invalidate(f, events[i], start + 7 * PAGE, start + 9 * PAGE);
		for (unsigned k = 0; k < 512; k++)
			assert_int_equal(written(mem + k * PAGE), k != 7 && k != 8);
		T.dirty_all = false;
		hmm_range_close(f->r);
		f->r = NULL;
	}
}

/* One that is being dropped at this moment, or may not be written any more, hides no other. */
static void what_cannot_be_marked_hides_no_other(void **state)
{
	struct fixture *f = *state;
	int rc = umm_space_watch(f->space, f->start, SIZE);

	if (rc == -EPERM)
		skip_because("no right to a userfaultfd");
	assert_int_equal(rc, 0);
	memset(f->mem, 1, SIZE);
	open_range(f, HMM_DEV_FAULT);
	assert_int_equal(hmm_range_map(f->r, f->start, f->end, HMM_MAP_WRITE, 0), 0);
	forget_written(f->start, f->end);
	T.dirty_all = true;
	umm_quarantine_add(f->space, f->start + 5 * PAGE, f->start + 6 * PAGE);
	assert_int_equal(hmm_range_unmap(f->r, f->start, f->start + 10 * PAGE, NULL), 0);
	for (unsigned i = 0; i < 10; i++)
		assert_int_equal(written(f->mem + i * PAGE), i != 5);
	/* Nobody is told of that. */
	assert_int_equal(sys3(SYS_mprotect, f->mem + 15 * PAGE, PAGE, PROT_READ), 0);
	assert_int_equal(hmm_range_unmap(f->r, f->start + 10 * PAGE, f->start + 20 * PAGE, NULL), 0);
	for (unsigned i = 10; i < 20; i++)
		assert_int_equal(written(f->mem + i * PAGE), i != 15);
}

/* A page of a block that one entry maps becomes writable: the others stay mapped. */
static void a_huge_page_is_split(void **state)
{
	struct fixture *f = *state;
	char *mem = f->area + BLOCK;
	uint64_t start = (uintptr_t)mem;
	struct umm_page_run run;
	uint64_t walked;

	assert_int_equal(madvise(mem, BLOCK, MADV_HUGEPAGE), 0);
	memset(mem, 1, BLOCK);
	if (umm_page_scan(f->space, start, start + BLOCK, &run, 1, &walked) != 1 || !(run.flags & UMM_PAGE_HUGE))
		skip_because("no huge page to be had");
	for (unsigned fails = 0; fails < 4; fails++) {
		unsigned caps = HMM_DEV_HUGE | HMM_DEV_QUEUE | (fails % 2 ? HMM_DEV_FAULT : 0);
		bool waits = !(caps & HMM_DEV_FAULT);

		open_range(f, caps);
		assert_int_equal(sys3(SYS_mprotect, mem, BLOCK, PROT_READ), 0);
		assert_int_equal(hmm_range_map(f->r, start, start + BLOCK, 0, 0), 0);
		assert_true(entry_of(start)->huge && !entry_of(start)->write);
		/* Nobody is told of that. */
		assert_int_equal(sys3(SYS_mprotect, mem, BLOCK, PROT_READ | PROT_WRITE), 0);
		T.maps = T.stops = 0;
		T.fail_at = fails;
		assert_int_equal(
			hmm_range_map(f->r, start + 9 * PAGE, start + 11 * PAGE, HMM_MAP_WRITE, in_seconds(60)),
			fails ? -EIO : 0);
		T.fail_at = 0;
		/* Stopped while the entry was replaced. */
		assert_true(T.stops > 0);
		if (!fails) {
			assert_int_equal(T.maps, 3);
			assert_int_equal(mapped_in(mem, 512), 512);
			for (unsigned i = 0; i < 512; i++) {
				assert_false(entry_of(start + i * PAGE)->huge);
				assert_int_equal(entry_of(start + i * PAGE)->write, i == 9 || i == 10);
			}
			assert_true(hmm_range_mapped(f->r, start, start + BLOCK, false));
		}
		/* What an error has cost it waits for, if it cannot ask for it. */
		assert_int_equal(T.stopped != 0, fails && waits);
		assert_int_equal(hmm_range_map(f->r, start, start + BLOCK, 0, 0), 0);
		assert_int_equal(mapped_in(mem, 512), 512);
		assert_int_equal(T.stopped, 0);
		hmm_range_close(f->r);
		f->r = NULL;
	}
}

static void a_range_may_be_all_there_is(void **state)
{
	struct fixture *f = *state;
	struct hmm_range *r;

	T.ops.caps = HMM_DEV_MAP | HMM_DEV_FAULT;
	assert_int_equal(hmm_range_open(f->space, NULL, T.dev, 0, 1ull << 47, NULL, &r), 0);
	assert_int_equal(hmm_range_map(r, f->start, f->end, 0, 0), 0);
	assert_int_equal(mapped_in(f->mem, NR), NR);
	invalidate(f, UMM_EVENT_FORK, 0, 1ull << 47);
	assert_int_equal(mapped_in(f->mem, NR), 0);
	assert_int_equal(hmm_range_map(r, f->start, f->end, 0, 0), 0);
	hmm_range_close(r);
	assert_int_equal(mapped_in(f->mem, NR), 0);
}

static void a_queue_is_stopped_first(void **state)
{
	struct fixture *f = *state;
	struct umm_change c = change_of(UMM_EVENT_CLEAR, f->start, f->start + PAGE);

	open_range(f, HMM_DEV_FAULT | HMM_DEV_QUEUE);
	assert_int_equal(hmm_range_map(f->r, f->start, f->end, 0, 0), 0);
	invalidate(f, UMM_EVENT_CLEAR, f->start, f->start + PAGE);
	assert_int_equal(T.stops, 1);
	assert_int_equal(T.stopped, 0);
	/* For nothing that it has mapped, it goes on. */
	invalidate(f, UMM_EVENT_CLEAR, f->start, f->start + PAGE);
	assert_int_equal(T.stops, 1);
	hmm_range_close(f->r);
	/* One that does not fault waits until all is there again. */
	open_range(f, HMM_DEV_QUEUE);
	assert_int_equal(hmm_range_map(f->r, f->start, f->end, 0, 0), 0);
	invalidate(f, UMM_EVENT_CLEAR, f->start, f->start + PAGE);
	invalidate(f, UMM_EVENT_CLEAR, f->start + PAGE, f->start + 2 * PAGE);
	assert_int_equal(T.stopped, 2);
	assert_int_equal(hmm_range_map(f->r, f->start, f->end, 0, 0), 0);
	assert_int_equal(T.stopped, 0);
	/* Who may not sleep cannot stop it. */
	c.blockable = false;
	assert_int_equal(umm_invalidate_begin(f->space, &c), -EAGAIN);
	assert_int_equal(T.stopped, 0);
}

/* What was taken before the device said that it would have to sleep is told of; the call comes again, and finds none.
 */
static void what_is_taken_without_sleeping_is_told(void **state)
{
	struct fixture *f = *state;
	struct umm_change c = change_of(UMM_EVENT_CLEAR, f->start, f->start + PAGE);

	open_range(f, HMM_DEV_FAULT);
	assert_int_equal(hmm_range_map(f->r, f->start, f->end, 0, 0), 0);
	T.sleeps = true;
	c.blockable = false;
	assert_int_equal(umm_invalidate_begin(f->space, &c), -EAGAIN);
	invalidate(f, UMM_EVENT_CLEAR, f->start, f->start + PAGE);
	T.sleeps = false;
	assert_int_equal(mapped_in(f->mem, 1), 0);
	assert_int_equal(nlost, 1);
	hmm_range_close(f->r);
	/* One that cannot be stopped by then has lost nothing yet. */
	open_range(f, HMM_DEV_FAULT | HMM_DEV_QUEUE);
	assert_int_equal(hmm_range_map(f->r, f->start, f->end, 0, 0), 0);
	assert_int_equal(umm_invalidate_begin(f->space, &c), -EAGAIN);
	assert_int_equal(nlost, 0);
	invalidate(f, UMM_EVENT_CLEAR, f->start, f->start + PAGE);
	assert_int_equal(nlost, 1);
}

/* Other parts are mapped, or fail to be: it waits for what it has lost. */
static void a_queue_waits_for_all_that_it_lost(void **state)
{
	struct fixture *f = *state;

	open_range(f, HMM_DEV_QUEUE);
	assert_int_equal(hmm_range_map(f->r, f->start, f->end, 0, 0), 0);
	invalidate(f, UMM_EVENT_CLEAR, f->start, f->start + PAGE);
	invalidate(f, UMM_EVENT_CLEAR, f->start + 600 * PAGE, f->start + 602 * PAGE);
	assert_int_equal(T.stopped, 2);
	assert_int_equal(hmm_range_map(f->r, f->start, f->start + 300 * PAGE, 0, 0), 0);
	assert_int_equal(T.stopped, 2);
	assert_int_equal(hmm_range_map(f->r, f->start + 601 * PAGE, f->end, 0, 0), 0);
	assert_int_equal(T.stopped, 2);
	assert_int_equal(hmm_range_map(f->r, f->start + 600 * PAGE, f->start + 601 * PAGE, 0, 0), 0);
	assert_int_equal(T.stopped, 0);
	/* Or its owner says that it is not needed any more. */
	invalidate(f, UMM_EVENT_CLEAR, f->start, f->start + 2 * PAGE);
	assert_int_equal(hmm_range_unmap(f->r, f->start + PAGE, f->start + 5 * PAGE, NULL), 0);
	assert_true(T.stopped > 0);
	assert_int_equal(hmm_range_unmap(f->r, f->start, f->start + PAGE, NULL), 0);
	assert_int_equal(T.stopped, 0);
	/* What a call that fails has taken: nothing, but for what it had made writable. */
	assert_int_equal(hmm_range_map(f->r, f->start, f->end, 0, 0), 0);
	invalidate(f, UMM_EVENT_CLEAR, f->end - PAGE, f->end);
	assert_int_equal(munmap(f->mem + (NR - 2) * PAGE, PAGE), 0);
	assert_int_equal(hmm_range_map(f->r, f->end - 2 * PAGE, f->end, 0, 0), -EFAULT);
	assert_true(T.stopped > 0);
	assert_int_equal(hmm_range_unmap(f->r, f->end - 2 * PAGE, f->end - PAGE, NULL), 0);
	assert_int_equal(hmm_range_map(f->r, f->end - PAGE, f->end, 0, 0), 0);
	assert_int_equal(T.stopped, 0);
	assert_int_equal(hmm_range_map(f->r, f->start, f->end, HMM_MAP_WRITE, 0), -EFAULT);
	assert_int_equal(T.stopped > 0, reads_share_a_page());
	assert_int_equal(hmm_range_map(f->r, f->start, f->end - 2 * PAGE, 0, 0), 0);
	assert_int_equal(T.stopped, 0);
}

static void *map_whole(void *arg);

static void *clear_first(void *arg)
{
	struct fixture *f = arg;

	invalidate(f, UMM_EVENT_CLEAR, f->start, f->start + PAGE);
	return NULL;
}

/* What goes while the rest is being mapped is mapped again before the device runs. */
static void a_queue_does_not_start_without_a_page(void **state)
{
	struct fixture *f = *state;
	pthread_t t;

	open_range(f, HMM_DEV_QUEUE);
	T.hold_at = 2;
	pthread_t mapper;
	assert_int_equal(pthread_create(&mapper, NULL, map_whole, f), 0);
	pthread_mutex_lock(&T.lock);
	while (!T.held)
		pthread_cond_wait(&T.moved, &T.lock);
	pthread_mutex_unlock(&T.lock);
	/* The first block is mapped, the second is about to be, the third is not. */
	assert_int_equal(pthread_create(&t, NULL, clear_first, f), 0);
	while (!(__atomic_load_n(&f->space->notifiers.active, __ATOMIC_RELAXED)))
		sched_yield();
	usleep(20000); /* until it waits for the lock; else the change comes when all is done */
	pthread_mutex_lock(&T.lock);
	T.hold = false;
	T.hold_at = 0;
	pthread_cond_broadcast(&T.moved);
	pthread_mutex_unlock(&T.lock);
	pthread_join(t, NULL);
	pthread_join(mapper, NULL);
	/* It either came in time and has been made good, or late, and is waited for. */
	assert_true(T.stops > 0);
	assert_true(T.stopped || mapped_in(f->mem, NR) == NR);
}

/* ------------------------------------------------------------ one that pins */

static void pinned_as_a_whole(void **state)
{
	struct fixture *f = *state;

	open_range(f, HMM_DEV_PINNED);
	assert_int_equal(hmm_range_map(f->r, f->start, f->end - PAGE, 0, 0), -EINVAL);
	assert_int_equal(hmm_range_map(f->r, f->start, f->end, 0, 0), 0);
	assert_int_equal(T.maps, 1);
	assert_int_equal(mapped_in(f->mem, NR), NR);
	assert_int_equal(hmm_range_map(f->r, f->start, f->end, 0, 0), 0);
	assert_int_equal(T.maps, 1);
	/* To write as well, it is done anew. */
	assert_int_equal(hmm_range_map(f->r, f->start, f->end, HMM_MAP_WRITE, 0), 0);
	assert_int_equal(T.maps, 2);
	assert_int_equal(T.unmaps, 1);
	/* A change of one page: gone before the call goes on, as a whole. */
	invalidate(f, UMM_EVENT_PROTECT, f->start + 5 * PAGE, f->start + 6 * PAGE);
	assert_int_equal(mapped_in(f->mem, NR), 0);
	assert_int_equal(nlost, 1);
	assert_false(hmm_range_mapped(f->r, f->start, f->end, false));
	T.fail_at = T.maps + 1;
	assert_int_equal(hmm_range_map(f->r, f->start, f->end, 0, 0), -EIO);
	assert_false(hmm_range_mapped(f->r, f->start, f->end, false));
	assert_int_equal(mprotect(f->mem, PAGE, PROT_READ), 0);
	assert_int_equal(hmm_range_map(f->r, f->start, f->end, HMM_MAP_WRITE, 0), -EPERM);
	assert_int_equal(munmap(f->mem + SIZE / 2, PAGE), 0);
	assert_int_equal(hmm_range_map(f->r, f->start, f->end, 0, 0), -EFAULT);
	assert_int_equal(mapped_in(f->mem, NR), 0);
}

static void pinned_and_told_late(void **state)
{
	struct fixture *f = *state;
	struct umm_change c = change_of(UMM_EVENT_UNMAP, f->start, f->start + PAGE);

	open_range(f, HMM_DEV_PINNED);
	assert_int_equal(hmm_range_map(f->r, f->start, f->end, 0, 0), 0);
	c.late = true;
	assert_int_equal(umm_invalidate_begin(f->space, &c), 0);
	umm_invalidate_end(f->space, &c);
	/* Of no more use, but not dropped in there. */
	assert_int_equal(nlost, 1);
	assert_int_equal(T.unmaps, 0);
	assert_false(hmm_range_mapped(f->r, f->start, f->end, false));
	assert_int_equal(hmm_range_map(f->r, f->start, f->end, 0, 0), 0);
	assert_int_equal(T.unmaps, 1);
	assert_int_equal(T.maps, 2);
	/* A change that is not late finds what a late one has left. */
	assert_int_equal(umm_invalidate_begin(f->space, &c), 0);
	umm_invalidate_end(f->space, &c);
	invalidate(f, UMM_EVENT_UNMAP, f->start, f->start + PAGE);
	assert_int_equal(T.unmaps, 2);
	assert_int_equal(nlost, 2);
	/* Who may not sleep cannot have it dropped. */
	assert_int_equal(hmm_range_map(f->r, f->start, f->end, 0, 0), 0);
	c.late = c.blockable = false;
	assert_int_equal(umm_invalidate_begin(f->space, &c), -EAGAIN);
	assert_true(hmm_range_mapped(f->r, f->start, f->end, false));
}

static void pinned_over_a_fork(void **state)
{
	struct fixture *f = *state;

	open_range(f, HMM_DEV_PINNED);
	assert_int_equal(hmm_range_map(f->r, f->start, f->end, 0, 0), 0);
	invalidate(f, UMM_EVENT_FORK, 0, 1ull << 47);
	assert_int_equal(mapped_in(f->mem, NR), 0);
	hmm_range_close(f->r);
	open_range(f, HMM_DEV_PINNED | HMM_DEV_FORK_KEEPS);
	assert_int_equal(hmm_range_map(f->r, f->start, f->end, 0, 0), 0);
	invalidate(f, UMM_EVENT_FORK, 0, 1ull << 47);
	assert_true(hmm_range_mapped(f->r, f->start, f->end, false));
}

static void *map_whole(void *arg)
{
	struct fixture *f = arg;

	return (void *)(intptr_t)hmm_range_map(f->r, f->start, f->end, 0, 0);
}

static void *unmap_middle(void *arg)
{
	struct fixture *f = arg;

	munmap(f->mem + SIZE / 2, PAGE);
	/* None of it is held any more when that has returned. */
	pthread_mutex_lock(&T.lock);
	T.changed = true;
	pthread_mutex_unlock(&T.lock);
	return NULL;
}

static void a_change_waits_for_who_is_pinning(void **state)
{
	struct fixture *f = *state;
	pthread_t mapper, changer;
	void *result;

	open_range(f, HMM_DEV_PINNED);
	T.hold = true;
	assert_int_equal(pthread_create(&mapper, NULL, map_whole, f), 0);
	pthread_mutex_lock(&T.lock);
	while (!T.held)
		pthread_cond_wait(&T.moved, &T.lock);
	pthread_mutex_unlock(&T.lock);
	assert_int_equal(pthread_create(&changer, NULL, unmap_middle, f), 0);
	/* Once it has told the notifier, it waits for us. */
	while (!umm_read_retry(hmm_range_notifier(f->r), 1))
		sched_yield();
	for (unsigned i = 0; i < 1000; i++)
		sched_yield();
	pthread_mutex_lock(&T.lock);
	T.hold = false;
	pthread_cond_broadcast(&T.moved);
	pthread_mutex_unlock(&T.lock);
	pthread_join(changer, NULL);
	pthread_join(mapper, &result);
	assert_int_equal(T.bad, 0);
	T.changed = false;
	/* It began again, and found the hole. */
	assert_int_equal((intptr_t)result, -EFAULT);
	assert_int_equal(T.maps, 1);
	assert_int_equal(T.unmaps, 1);
}

static struct fixture *handled;

/* Of its last page, by the hooks, which wait for who is pinning. */
static void unmap_last(int sig)
{
	munmap(handled->mem + SIZE - PAGE, PAGE);
}

static void a_signal_while_it_pins_changes_what_is_pinned(void **state)
{
	struct fixture *f = *state;
	struct sigaction sa = {.sa_handler = unmap_last}, was;

	open_range(f, HMM_DEV_PINNED);
	handled = f;
	sigaction(SIGUSR1, &sa, &was);
	T.raises = SIGUSR1;
	assert_int_equal(hmm_range_map(f->r, f->start, f->end, 0, in_seconds(30)), 0);
	T.raises = 0;
	sigaction(SIGUSR1, &was, NULL);
	/* The handler came afterwards, and nothing of it is held. */
	assert_int_equal(T.maps, 1);
	assert_int_equal(mapped_in(f->mem, NR), 0);
	assert_int_equal(nlost, 1);
}

/* -------------------------------------------------------------------- races */

int __real_umm_space_populate(struct umm_space *space, uint64_t start, uint64_t len, bool write);
int __wrap_umm_space_populate(struct umm_space *space, uint64_t start, uint64_t len, bool write);
static _Atomic unsigned no_memory;

/* As long as it is told so: a hole that is there for a moment, which the kernel calls want of memory. */
int __wrap_umm_space_populate(struct umm_space *space, uint64_t start, uint64_t len, bool write)
{
	struct umm_change c = change_of(UMM_EVENT_UNMAP, start, start + len);

	if (!no_memory)
		return __real_umm_space_populate(space, start, len, write);
	no_memory--;
	umm_invalidate_begin(space, &c);
	umm_invalidate_end(space, &c);
	return -ENOMEM;
}

int __real_umm_range_fault(struct umm_range *range);
int __wrap_umm_range_fault(struct umm_range *range);
static _Atomic unsigned change_behind;

/* As often as it is told so: a change between the look at the range and the device's lock. */
int __wrap_umm_range_fault(struct umm_range *range)
{
	struct umm_change c = change_of(UMM_EVENT_CLEAR, range->start, range->end);
	int rc = __real_umm_range_fault(range);

	if (change_behind) {
		change_behind--;
		umm_invalidate_begin(range->space, &c);
		umm_invalidate_end(range->space, &c);
	}
	return rc;
}

static void a_change_before_the_lock_is_seen(void **state)
{
	struct fixture *f = *state;

	open_range(f, HMM_DEV_FAULT);
	change_behind = 3;
	assert_int_equal(hmm_range_map(f->r, f->start, f->start + PAGE, 0, in_seconds(60)), 0);
	assert_int_equal(change_behind, 0);
	assert_int_equal(T.maps, 1);
	hmm_range_close(f->r);
	open_range(f, HMM_DEV_PINNED);
	T.maps = 0;
	change_behind = 3;
	assert_int_equal(hmm_range_map(f->r, f->start, f->end, 0, in_seconds(60)), 0);
	assert_int_equal(T.maps, 1);
}

static void a_hole_for_a_moment_is_no_error(void **state)
{
	struct fixture *f = *state;

	open_range(f, HMM_DEV_FAULT);
	no_memory = 5;
	assert_int_equal(hmm_range_map(f->r, f->start, f->end, 0, in_seconds(60)), 0);
	assert_int_equal(no_memory, 0);
}

static atomic_bool stop;
static _Atomic uint64_t mapped_ok;
static _Atomic int unexpected;

static void *map_at_random(void *arg)
{
	struct fixture *f = arg;
	unsigned seed = 7;

	while (!stop) {
		uint64_t at = f->start + (uint64_t)(rand_r(&seed) % 64) * PAGE;
		uint64_t end = at + (1 + (uint64_t)(rand_r(&seed) % 16)) * PAGE;
		int rc = hmm_range_map(f->r, at, end, rand_r(&seed) & 1 ? HMM_MAP_WRITE : 0, in_seconds(60));

		if (!rc)
			mapped_ok++;
		else if (rc != -EFAULT && rc != -EPERM)
			unexpected = rc; /* no assertion in a thread that is not the test's */
	}
	return NULL;
}

/* What the device has of [@p, @p + @n pages) from before @stamp is what nobody has told it of. */
static unsigned stale_in(const void *p, unsigned n, uint64_t stamp)
{
	unsigned count = 0;

	pthread_mutex_lock(&T.lock);
	for (unsigned i = 0; i < n; i++) {
		struct entry *e = entry_of((uintptr_t)p + i * PAGE);

		count += e->mapped && e->stamp < stamp;
	}
	pthread_mutex_unlock(&T.lock);
	return count;
}

/* A raw call is told of once its event was read; who takes the lock then comes after it was acted on. */
static void event_applied(struct fixture *f)
{
	umm_evlock_shared(&f->space->ctl->evlock);
	umm_evlock_unshared(&f->space->ctl->evlock);
}

static void change_at_random(struct fixture *f, bool raw, unsigned rounds)
{
	unsigned seed = 11;
	pthread_t mapper[2];

	stop = false;
	mapped_ok = 0;
	unexpected = 0;
	for (unsigned i = 0; i < 2; i++)
		assert_int_equal(pthread_create(&mapper[i], NULL, map_at_random, f), 0);
	while (!mapped_ok)
		sched_yield();
	for (unsigned i = 0; i < rounds; i++) {
		unsigned first = (unsigned)rand_r(&seed) % 64, n = 1 + (unsigned)rand_r(&seed) % 16;
		char *p = f->mem + first * PAGE;
		uint64_t stamp = atomic_fetch_add(&T.stamp, 1);

		switch (rand_r(&seed) % (raw ? 2 : 3)) {
		case 0:
			if (raw) {
				assert_int_equal(sys2(SYS_munmap, p, n * PAGE), 0);
				event_applied(f);
			} else {
				assert_int_equal(munmap(p, n * PAGE), 0);
				/* Nobody can map a hole. */
				assert_int_equal(mapped_in(p, n), 0);
			}
			assert_int_equal(stale_in(p, n, stamp), 0);
			assert_ptr_equal(mmap(p, n * PAGE, PROT_READ | PROT_WRITE,
					      MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0),
					 p);
			if (raw)
				assert_int_equal(umm_space_watch(f->space, (uintptr_t)p, n * PAGE), 0);
			break;
		case 1:
			if (raw) {
				assert_int_equal(sys3(SYS_madvise, p, n * PAGE, MADV_DONTNEED), 0);
				event_applied(f);
			} else {
				assert_int_equal(madvise(p, n * PAGE, MADV_DONTNEED), 0);
			}
			assert_int_equal(stale_in(p, n, stamp), 0);
			break;
		default:
			assert_int_equal(mprotect(p, n * PAGE, PROT_NONE), 0);
			assert_int_equal(mapped_in(p, n), 0);
			assert_int_equal(mprotect(p, n * PAGE, PROT_READ | PROT_WRITE), 0);
		}
	}
	stop = true;
	for (unsigned i = 0; i < 2; i++)
		pthread_join(mapper[i], NULL);
	assert_int_equal(T.bad, 0);
	assert_int_equal(unexpected, 0);
}

static void nothing_stale_after_a_change(void **state)
{
	struct fixture *f = *state;

	open_range(f, HMM_DEV_FAULT);
	change_at_random(f, false, 3000);
}

static void nothing_stale_after_a_raw_change(void **state)
{
	struct fixture *f = *state;
	int rc = umm_space_watch(f->space, f->start, SIZE);

	if (rc == -EPERM)
		skip_because("no right to a userfaultfd");
	assert_int_equal(rc, 0);
	open_range(f, HMM_DEV_FAULT);
	change_at_random(f, true, 60);
}

/* Also where whoever changes something by a raw call waits for nobody: then who asks the engine is told. */
static void what_a_late_change_takes_counts_as_written(void **state)
{
	static uint64_t stamp[512];
	struct fixture *f = *state;
	char *mem = f->area + BLOCK;
	uint64_t start = (uintptr_t)mem, walked, asked, now;
	struct umm_page_run run;
	struct hmm_mm *mm;
	int rc = hmm_mm_open(f->space, &mm);

	if (rc == -EPERM || rc == -EOPNOTSUPP)
		skip_because("no userfaultfd that moves pages: error %d", -rc);
	assert_int_equal(rc, 0);
	assert_int_equal(madvise(mem, BLOCK, MADV_HUGEPAGE), 0);
	memset(mem, 1, BLOCK);
	if (umm_page_scan(f->space, start, start + BLOCK, &run, 1, &walked) != 1 || !(run.flags & UMM_PAGE_HUGE))
		skip_because("no huge page to be had");
	open_range(f, HMM_DEV_FAULT | HMM_DEV_HUGE);
	assert_int_equal(hmm_range_map(f->r, start, start + BLOCK, HMM_MAP_WRITE, 0), 0);
	assert_true(entry_of(start)->huge);
	assert_int_equal(hmm_written(mm, start, start + BLOCK, stamp, &asked), 0);
	assert_int_equal(hmm_written(mm, start, start + BLOCK, stamp, &now), 0);
	for (unsigned i = 0; i < 512; i++)
		assert_true(stamp[i] <= asked);
	T.dirty_all = true;
	asked = now;
	assert_int_equal(sys3(SYS_madvise, mem + 7 * PAGE, PAGE, MADV_DONTNEED), 0);
	event_applied(f);
	assert_int_equal(mapped_in(mem, 512), 0);
	assert_int_equal(hmm_written(mm, start, start + BLOCK, stamp, &now), 0);
	for (unsigned i = 0; i < 512; i++)
		assert_true(stamp[i] > asked);
	/* What the change leaves as it is, too. */
	assert_int_equal(hmm_range_map(f->r, start, start + 4 * PAGE, HMM_MAP_WRITE, 0), 0);
	assert_int_equal(hmm_written(mm, start, start + BLOCK, stamp, &asked), 0);
	struct umm_change c = change_of(UMM_EVENT_FORK, 0, 1ull << 47);
	c.late = true;
	assert_int_equal(umm_invalidate_begin(f->space, &c), 0);
	umm_invalidate_end(f->space, &c);
	assert_int_equal(hmm_written(mm, start, start + BLOCK, stamp, &now), 0);
	for (unsigned i = 0; i < 512; i++)
		assert_int_equal(stamp[i] > asked, i < 4);
	T.dirty_all = false;
	hmm_range_close(f->r);
	f->r = NULL;
	assert_int_equal(hmm_mm_close(mm), 0);
}

/* And where it is being dropped at this moment, so that it cannot be marked: it may stay. */
static void what_cannot_be_marked_counts_as_written(void **state)
{
	static uint64_t stamp[10];
	struct fixture *f = *state;
	uint64_t end = f->start + 10 * PAGE, asked, now;
	struct hmm_mm *mm;
	int rc = hmm_mm_open(f->space, &mm);

	if (rc == -EPERM || rc == -EOPNOTSUPP)
		skip_because("no userfaultfd that moves pages: error %d", -rc);
	assert_int_equal(rc, 0);
	memset(f->mem, 1, SIZE);
	open_range(f, HMM_DEV_FAULT);
	assert_int_equal(hmm_written(mm, f->start, end, stamp, &asked), 0);
	assert_int_equal(hmm_range_map(f->r, f->start, end, HMM_MAP_WRITE, 0), 0);
	assert_int_equal(hmm_written(mm, f->start, end, stamp, &asked), 0);
	assert_int_equal(hmm_written(mm, f->start, end, stamp, &now), 0);
	for (unsigned i = 0; i < 10; i++)
		assert_true(stamp[i] <= asked);
	T.dirty_all = true;
	umm_quarantine_add(f->space, f->start + 5 * PAGE, f->start + 6 * PAGE);
	assert_int_equal(hmm_range_unmap(f->r, f->start, end, NULL), 0);
	umm_quarantine_end(f->space, f->start + 5 * PAGE, f->start + 6 * PAGE);
	asked = now;
	assert_int_equal(hmm_written(mm, f->start, end, stamp, &now), 0);
	for (unsigned i = 0; i < 10; i++)
		assert_true(stamp[i] > asked);
	T.dirty_all = false;
	hmm_range_close(f->r);
	f->r = NULL;
	assert_int_equal(hmm_mm_close(mm), 0);
}

/* -------------------------------------------------------------- device memory */

static void pages_in_device_memory(void **state)
{
	struct fixture *f = *state;
	struct hmm_mm *mm;
	struct fake *other;
	struct hmm_device *where[NR];
	uint64_t moved;
	int rc = hmm_mm_open(f->space, &mm);

	if (rc == -EPERM || rc == -EOPNOTSUPP)
		skip_because("no userfaultfd that moves pages: error %d", -rc);
	assert_int_equal(rc, 0);
	other = fake_create(true);
	T.ops.caps |= HMM_DEV_MAP | HMM_DEV_FAULT;
	assert_int_equal(hmm_mm_add_device(mm, T.dev), 0);
	assert_int_equal(hmm_mm_add_device(mm, &other->dev), 0);
	memset(f->mem, 5, SIZE);
	assert_int_equal(hmm_range_open(f->space, mm, T.dev, f->start, f->end, f, &f->r), 0);
	assert_int_equal(hmm_range_map(f->r, f->start, f->end, 0, 0), 0);
	/* Going there takes entries away. */
	assert_int_equal(hmm_migrate_to_device(mm, T.dev, f->start, f->start + 10 * PAGE, NULL, &moved), 0);
	assert_int_equal(moved, 10);
	assert_int_equal(
		hmm_migrate_to_device(mm, &other->dev, f->start + 20 * PAGE, f->start + 30 * PAGE, NULL, &moved), 0);
	assert_int_equal(moved, 10);
	assert_int_equal(mapped_in(f->mem, NR), NR - 20);
	/* What is the device's own stays, what another one has comes. */
	assert_int_equal(hmm_range_map(f->r, f->start, f->end, 0, 0), 0);
	assert_int_equal(mapped_in(f->mem, NR), NR - 10);
	assert_int_equal(mapped_in(f->mem, 10), 0);
	assert_int_equal(hmm_where(mm, f->start, f->end, where, NULL), 0);
	assert_ptr_equal(where[0], T.dev);
	assert_null(where[20]);
	/* But not where it may not be. */
	assert_int_equal(mprotect(f->mem, PAGE, PROT_READ), 0);
	assert_int_equal(hmm_range_map(f->r, f->start, f->start + 2 * PAGE, HMM_MAP_WRITE, 0), -EPERM);
	assert_int_equal(mprotect(f->mem, PAGE, PROT_NONE), 0);
	assert_int_equal(hmm_range_map(f->r, f->start, f->start + 2 * PAGE, 0, 0), -EFAULT);
	assert_int_equal(mprotect(f->mem, PAGE, PROT_READ | PROT_WRITE), 0);
	assert_int_equal(hmm_range_map(f->r, f->start, f->end, HMM_MAP_SYSTEM, 0), 0);
	assert_int_equal(mapped_in(f->mem, NR), NR);
	for (size_t i = 0; i < SIZE; i += 512)
		assert_int_equal(f->mem[i], 5);
	hmm_range_close(f->r);
	f->r = NULL;
	assert_int_equal(hmm_mm_close(mm), 0);
	assert_int_equal(other->refs_total, 0);
	fake_free(other);
}

/* What went to the device's own memory it does not wait for: it would wait for ever. */
static void a_queue_does_not_wait_for_its_own(void **state)
{
	struct fixture *f = *state;
	struct hmm_mm *mm;
	uint64_t moved;
	int rc = hmm_mm_open(f->space, &mm);

	if (rc == -EPERM || rc == -EOPNOTSUPP)
		skip_because("no userfaultfd that moves pages: error %d", -rc);
	assert_int_equal(rc, 0);
	T.ops.caps |= HMM_DEV_MAP | HMM_DEV_QUEUE;
	assert_int_equal(hmm_mm_add_device(mm, T.dev), 0);
	memset(f->mem, 5, SIZE);
	assert_int_equal(hmm_range_open(f->space, mm, T.dev, f->start, f->end, f, &f->r), 0);
	assert_int_equal(hmm_range_map(f->r, f->start, f->end, 0, 0), 0);
	assert_int_equal(hmm_migrate_to_device(mm, T.dev, f->start, f->start + 10 * PAGE, NULL, &moved), 0);
	assert_int_equal(moved, 10);
	assert_int_equal(T.stopped, 1);
	alarm(60); /* it asked and asked */
	/* A part that has nothing of it does not start it; the whole does. */
	assert_int_equal(hmm_range_map(f->r, f->start + 5 * PAGE, f->end, 0, in_seconds(30)), 0);
	assert_int_equal(T.stopped, 1);
	assert_int_equal(hmm_range_map(f->r, f->start, f->end, 0, in_seconds(30)), 0);
	alarm(0);
	assert_int_equal(T.stopped, 0);
	assert_int_equal(mapped_in(f->mem, 10), 0);
	assert_int_equal(mapped_in(f->mem, NR), NR - 10);
	/* One that has come back is mapped as any other. */
	assert_int_equal(f->mem[0], 5);
	assert_int_equal(hmm_range_map(f->r, f->start, f->end, 0, in_seconds(30)), 0);
	assert_int_equal(mapped_in(f->mem, 10), 1);
	assert_int_equal(T.stopped, 0);
	hmm_range_close(f->r);
	f->r = NULL;
	assert_int_equal(hmm_mm_close(mm), 0);
}

#define T_(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		T_(map_and_unmap),
		T_(reading_maps_what_may_be_written_so),
		T_(mapped_stays_mapped),
		T_(each_failing_call_is_undone),
		T_(an_error_on_the_way_undoes_all),
		T_(bad_arguments),
		T_(a_deadline_ends_it),
		T_(what_the_device_wrote_is_marked),
		T_(a_huge_page_is_one_entry),
		T_(what_goes_with_a_huge_entry_is_marked),
		T_(what_cannot_be_marked_hides_no_other),
		T_(a_huge_page_is_split),
		T_(a_range_may_be_all_there_is),
		T_(a_queue_is_stopped_first),
		T_(what_is_taken_without_sleeping_is_told),
		T_(a_queue_waits_for_all_that_it_lost),
		T_(a_queue_does_not_start_without_a_page),
		T_(pinned_as_a_whole),
		T_(pinned_and_told_late),
		T_(pinned_over_a_fork),
		T_(a_change_waits_for_who_is_pinning),
		T_(a_signal_while_it_pins_changes_what_is_pinned),
		T_(a_change_before_the_lock_is_seen),
		T_(a_hole_for_a_moment_is_no_error),
		T_(nothing_stale_after_a_change),
		T_(nothing_stale_after_a_raw_change),
		T_(what_a_late_change_takes_counts_as_written),
		T_(what_cannot_be_marked_counts_as_written),
		T_(pages_in_device_memory),
		T_(a_queue_does_not_wait_for_its_own),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
