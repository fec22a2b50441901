/* SPDX-License-Identifier: MIT */
/* Which pages were written to, as two who ask see it. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <cmocka.h>

#include "fake.h"
#include "hmm.h"
#include "umm/inside.h"
#include "umm/internal.h"

#define PAGE 4096ul
#define NR 1100u /* in more than two leaves of the records */

struct fixture {
	struct umm_space *space;
	struct hmm_mm *mm;
	struct fake *dev;
	char *mem;
	uint64_t addr, end;
	uint64_t stamp[NR];
};

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	int rc = umm_space_open_self(&f->space);

	if (!rc)
		rc = hmm_mm_open(f->space, &f->mm);
	if (rc == -EPERM || rc == -EOPNOTSUPP) {
		print_message("SKIP: no userfaultfd that moves pages: error %d\n", -rc);
		exit(77);
	}
	f->dev = fake_create(true);
	f->dev->ops.caps |= HMM_DEV_KEEPS | HMM_DEV_AHEAD;
	if (rc || hmm_mm_add_device(f->mm, &f->dev->dev))
		return -1;
	/* With nobody's page on either side: a neighbour's would be managed with it. */
	f->mem = mmap(NULL, (NR + 2) * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (f->mem == MAP_FAILED)
		return -1;
	f->mem += PAGE;
	mprotect(f->mem, NR * PAGE, PROT_READ | PROT_WRITE);
	f->addr = (uintptr_t)f->mem;
	f->end = f->addr + NR * PAGE;
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;
	int rc = hmm_mm_close(f->mm);

	umm_space_close(f->space);
	fake_free(f->dev);
	munmap(f->mem - PAGE, (NR + 2) * PAGE);
	free(f);
	return rc;
}

/* The number of this call, after a look at each page's stamp: higher than @since, or not. */
static uint64_t ask(struct fixture *f, uint64_t since, unsigned *first, unsigned *count)
{
	uint64_t now = 0;

	assert_int_equal(hmm_written(f->mm, f->addr, f->end, f->stamp, &now), 0);
	assert_true(now > since);
	*count = 0;
	*first = NR;
	for (unsigned i = NR; i--;) {
		assert_true(f->stamp[i] <= now);
		if (f->stamp[i] <= since)
			continue;
		++*count;
		*first = i;
	}
	return now;
}

static void fill(struct fixture *f)
{
	for (unsigned i = 0; i < NR; i++)
		f->mem[i * PAGE] = (char)(i + 1);
}

static void each_who_asks_learns_of_all_writes(void **state)
{
	struct fixture *f = *state;
	uint64_t a, b;
	unsigned first, count;

	fill(f);
	a = ask(f, 0, &first, &count);
	assert_int_equal(count, NR);
	b = ask(f, 0, &first, &count);
	f->mem[700 * PAGE] = 1;
	a = ask(f, a, &first, &count);
	assert_int_equal(count, 1);
	assert_int_equal(first, 700);
	/* That one has asked does not take it from the other. */
	b = ask(f, b, &first, &count);
	assert_int_equal(count, 1);
	assert_int_equal(first, 700);
	a = ask(f, a, &first, &count);
	assert_int_equal(count, 0);
	/* Reading is not writing; a system call that writes is. */
	assert_int_equal(f->mem[3 * PAGE], 4);
	a = ask(f, a, &first, &count);
	assert_int_equal(count, 0);
	int fd = open("/dev/zero", O_RDONLY);
	assert_int_equal(read(fd, f->mem + 1099 * PAGE, 1), 1);
	close(fd);
	ask(f, a, &first, &count);
	assert_int_equal(count, 1);
	assert_int_equal(first, 1099);
	ask(f, b, &first, &count);
	assert_int_equal(count, 1);
}

/* A block of 2 MiB, whose page table goes with it, one way or the other. */
static void what_goes_as_a_whole_is_written(struct fixture *f, bool replaced)
{
	uint64_t stamp[512], now, before, a, since[2] = {0};
	char *area = mmap(NULL, 6 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), *p;

	assert_true(area != MAP_FAILED);
	madvise(area, 6 << 20, MADV_HUGEPAGE);
	p = (char *)(((uintptr_t)area + (4 << 20) - 1) & ~((2ul << 20) - 1));
	a = (uintptr_t)p;
	/* Never touched: what was not asked about before is asked for, whatever it is. */
	memset(stamp, 0xff, sizeof(stamp));
	assert_int_equal(hmm_written_since(f->mm, a, a + (2 << 20), since, stamp, &now), 0);
	for (unsigned i = 0; i < 512; i++)
		assert_true(stamp[i] <= now);
	memset(p, 1, 2 << 20);
	assert_int_equal(hmm_written(f->mm, a, a + (2 << 20), stamp, &before), 0);
	assert_int_equal(hmm_written(f->mm, a, a + (2 << 20), stamp, &now), 0);
	for (unsigned i = 0; i < 512; i++)
		assert_true(stamp[i] < now);
	before = now;
	if (replaced)
		assert_ptr_equal(
			mmap(area, 6 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0),
			area);
	else
		assert_int_equal(madvise(area, 6 << 20, MADV_DONTNEED), 0);
	assert_int_equal(hmm_written(f->mm, a, a + (2 << 20), stamp, &now), 0);
	for (unsigned i = 0; i < 512; i++)
		assert_true(stamp[i] > before);
	munmap(area, 6 << 20);
}

static void what_is_replaced_as_a_whole_is_written(void **state)
{
	what_goes_as_a_whole_is_written(*state, true);
}

static void what_is_dropped_as_a_whole_is_written(void **state)
{
	what_goes_as_a_whole_is_written(*state, false);
}

static void what_is_dropped_or_replaced_is_written(void **state)
{
	struct fixture *f = *state;
	uint64_t a;
	unsigned first, count;

	fill(f);
	a = ask(f, 0, &first, &count);
	assert_int_equal(madvise(f->mem + 5 * PAGE, PAGE, MADV_DONTNEED), 0);
	a = ask(f, a, &first, &count);
	assert_int_equal(count, 1);
	assert_int_equal(first, 5);
	/* Where nothing was, something is. */
	f->mem[5 * PAGE] = 9;
	a = ask(f, a, &first, &count);
	assert_int_equal(count, 1);
	assert_ptr_equal(
		mmap(f->mem + 8 * PAGE, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0),
		f->mem + 8 * PAGE);
	a = ask(f, a, &first, &count);
	assert_int_equal(count, 1);
	assert_int_equal(first, 8);
	f->mem[8 * PAGE] = 1;
	a = ask(f, a, &first, &count);
	assert_int_equal(count, 1);
	assert_int_equal(first, 8);
	/* Of shared memory nobody can tell. */
	assert_ptr_equal(
		mmap(f->mem + 9 * PAGE, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0),
		f->mem + 9 * PAGE);
	for (unsigned i = 0; i < 3; i++) {
		a = ask(f, a, &first, &count);
		assert_int_equal(count, 1);
		assert_int_equal(first, 9);
	}
	assert_int_equal(munmap(f->mem + 9 * PAGE, PAGE), 0);
	ask(f, a, &first, &count);
	assert_int_equal(count, 1);
}

static void what_mremap_takes_there_is_written(void **state)
{
	struct fixture *f = *state;
	uint64_t a;
	unsigned first, count;

	fill(f);
	a = ask(f, 0, &first, &count);
	assert_ptr_equal(mremap(f->mem + 5 * PAGE, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, f->mem + 9 * PAGE),
			 f->mem + 9 * PAGE);
	ask(f, a, &first, &count);
	assert_true(f->stamp[5] > a && f->stamp[9] > a);
	assert_int_equal(count, 2);
	assert_int_equal(f->mem[9 * PAGE], 6);
}

static void what_a_device_gave_back_is_as_it_gave_it(void **state)
{
	struct fixture *f = *state;
	uint64_t a, moved;
	unsigned first, count;

	fill(f);
	assert_int_equal(hmm_migrate_to_device(f->mm, &f->dev->dev, f->addr, f->addr + 8 * PAGE, NULL, &moved), 0);
	assert_int_equal(moved, 8);
	a = ask(f, 0, &first, &count);
	/* Touched for writing, and for reading. */
	f->mem[6 * PAGE] = 1;
	assert_int_equal(f->mem[2 * PAGE], 3);
	a = ask(f, a, &first, &count);
	assert_int_equal(count, 1);
	assert_int_equal(first, 6);
	f->mem[2 * PAGE] = 1;
	ask(f, a, &first, &count);
	assert_int_equal(count, 1);
	assert_int_equal(first, 2);
}

static void touches_that_walk_bring_neighbours_along(void **state)
{
	struct fixture *f = *state;
	uint64_t moved;

	fill(f);
	assert_int_equal(hmm_migrate_to_device(f->mm, &f->dev->dev, f->addr, f->addr + 512 * PAGE, NULL, &moved), 0);
	assert_int_equal(moved, 512);
	for (unsigned i = 0; i < 512; i++)
		assert_int_equal(f->mem[i * PAGE], (char)(i + 1));
	assert_true(f->dev->out_calls < 512 / 8);
	/* Those that jump do not, once that has been noticed. */
	assert_int_equal(hmm_migrate_to_device(f->mm, &f->dev->dev, f->addr, f->addr + 512 * PAGE, NULL, &moved), 0);
	for (unsigned i = 0; i < 64; i++) {
		unsigned at = (i * 37 + 11) % 512;

		if (i == 32)
			f->dev->copied_out = 0;
		assert_int_equal(f->mem[at * PAGE], (char)(at + 1));
	}
	assert_in_range(f->dev->copied_out, 1, 32);
}

#define BLOCKS (NR * PAGE / HMM_WRITTEN_BLOCK + 2)

static void where_nothing_is_written_no_page_is_looked_at(void **state)
{
	struct fixture *f = *state;
	uint64_t since[BLOCKS] = {0}, before[BLOCKS], now, first;
	unsigned block = (unsigned)((f->addr + 700 * PAGE) / HMM_WRITTEN_BLOCK - f->addr / HMM_WRITTEN_BLOCK);

	fill(f);
	memset(f->stamp, 0xff, sizeof(f->stamp));
	assert_int_equal(hmm_written_since(f->mm, f->addr, f->end, since, f->stamp, &first), 0);
	for (unsigned i = 0; i < NR; i++)
		assert_int_equal(f->stamp[i], first);
	memcpy(before, since, sizeof(since));
	memset(f->stamp, 0xff, sizeof(f->stamp));
	assert_int_equal(hmm_written_since(f->mm, f->addr, f->end, since, f->stamp, &now), 0);
	assert_memory_equal(before, since, sizeof(since));
	for (unsigned i = 0; i < NR; i++)
		assert_int_equal(f->stamp[i], UINT64_MAX);
	f->mem[700 * PAGE] = 1;
	assert_int_equal(hmm_written_since(f->mm, f->addr, f->end, since, f->stamp, &now), 0);
	for (unsigned i = 0; i < NR; i++) {
		unsigned b = (unsigned)((f->addr + i * PAGE) / HMM_WRITTEN_BLOCK - f->addr / HMM_WRITTEN_BLOCK);

		assert_int_equal(f->stamp[i], i == 700 ? now : b == block ? first : UINT64_MAX);
	}
	assert_int_equal(since[block], now);
	/* Another that has older copies is told of it still. */
	memcpy(since, before, sizeof(since));
	assert_int_equal(hmm_written_since(f->mm, f->addr, f->end, since, f->stamp, &now), 0);
	assert_true(since[block] > before[block] && since[block] < now);
	/* What mremap() has taken there is written. */
	memcpy(before, since, sizeof(since));
	assert_ptr_equal(mremap(f->mem, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, f->mem + 701 * PAGE),
			 f->mem + 701 * PAGE);
	assert_int_equal(hmm_written_since(f->mm, f->addr, f->end, since, f->stamp, &now), 0);
	block = (unsigned)((f->addr + 701 * PAGE) / HMM_WRITTEN_BLOCK - f->addr / HMM_WRITTEN_BLOCK);
	assert_true(since[block] > before[block] && f->stamp[701] == since[block]);
}

/* Pages of the first block that is wholly in the memory, and those of all others, that the next call finds. */
static uint64_t ask_block(struct fixture *f, uint64_t since, unsigned *in, unsigned *others)
{
	unsigned at = (unsigned)((HMM_WRITTEN_BLOCK - f->addr % HMM_WRITTEN_BLOCK) % HMM_WRITTEN_BLOCK / PAGE);
	uint64_t now;

	assert_int_equal(hmm_written(f->mm, f->addr, f->end, f->stamp, &now), 0);
	*in = *others = 0;
	for (unsigned i = 0; i < NR; i++)
		if (f->stamp[i] > since)
			++*(i >= at && i < at + 512 ? in : others);
	return now;
}

static void what_is_written_all_the_time_is_not_watched(void **state)
{
	struct fixture *f = *state;
	unsigned at = (unsigned)((HMM_WRITTEN_BLOCK - f->addr % HMM_WRITTEN_BLOCK) % HMM_WRITTEN_BLOCK / PAGE);
	unsigned in, others, spell = 0;
	uint64_t a = 0;

	/* Once is not all the time. */
	fill(f);
	a = ask_block(f, a, &in, &others);
	fill(f);
	a = ask_block(f, a, &in, &others);
	assert_int_equal(in, 512);
	a = ask_block(f, a, &in, &others);
	assert_int_equal(in, 0);
	/* Nor is all but one page. */
	for (unsigned k = 0; k < 3; k++) {
		memset(f->mem + (at + 1) * PAGE, 1, 511 * PAGE);
		a = ask_block(f, a, &in, &others);
		assert_int_equal(in, 511);
	}
	fill(f);
	a = ask_block(f, a, &in, &others);
	fill(f);
	a = ask_block(f, a, &in, &others);
	assert_int_equal(in, 512);
	/* For some calls it is taken for granted, then it is watched again; nothing of the rest is concerned. */
	while (a = ask_block(f, a, &in, &others), in) {
		assert_int_equal(in, 512);
		assert_true(++spell < 20);
	}
	assert_in_range(spell, 3, 19);
	f->mem[(at + 7) * PAGE]++;
	a = ask_block(f, a, &in, &others);
	assert_int_equal(in, 1);
	assert_true(f->stamp[at + 7] == a);
	ask_block(f, a, &in, &others);
	assert_int_equal(in + others, 0);
}

#define BIG 4u /* huge pages */

/* Memory that the kernel is asked to have in huge pages; NULL: it has none. */
static char *big(struct fixture *f, bool touched)
{
	char *p = mmap(NULL, (BIG + 2) * HMM_WRITTEN_BLOCK, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct umm_page_run run;
	uint64_t walked;

	assert_ptr_not_equal(p, MAP_FAILED);
	p += HMM_WRITTEN_BLOCK - (uintptr_t)p % HMM_WRITTEN_BLOCK;
	assert_int_equal(mprotect(p, BIG * HMM_WRITTEN_BLOCK, PROT_READ | PROT_WRITE), 0);
	madvise(p, BIG * HMM_WRITTEN_BLOCK, MADV_HUGEPAGE);
	if (touched)
		for (unsigned i = 0; i < BIG * 512; i++)
			p[i * PAGE] = (char)(i * 7 + 1);
	if (!touched ||
	    (umm_page_scan(f->space, (uintptr_t)p, (uintptr_t)p + BIG * HMM_WRITTEN_BLOCK, &run, 1, &walked) == 1 &&
	     (run.flags & UMM_PAGE_HUGE) && run.end - run.start == BIG * HMM_WRITTEN_BLOCK))
		return p;
	print_message("SKIP: no huge pages\n");
	return NULL;
}

static bool is_huge(struct fixture *f, const char *p)
{
	struct umm_page_run run;
	uint64_t walked;

	return umm_page_scan(f->space, (uintptr_t)p, (uintptr_t)p + HMM_WRITTEN_BLOCK, &run, 1, &walked) == 1 &&
	       (run.flags & UMM_PAGE_HUGE);
}

static void who_walks_far_is_given_huge_pages(void **state)
{
	struct fixture *f = *state;
	char *p = big(f, true);
	uint64_t moved, a, b, stamp[512];

	if (!p)
		return;
	a = (uintptr_t)p;
	assert_int_equal(hmm_migrate_to_device(f->mm, &f->dev->dev, a, a + BIG * HMM_WRITTEN_BLOCK, NULL, &moved), 0);
	assert_int_equal(moved, BIG * 512);
	/* Not who has come but a little way when he comes to one. */
	for (unsigned i = 512 + 300; i < 512 + 300 + 256; i++)
		assert_int_equal(p[i * PAGE], (char)(i * 7 + 1));
	assert_in_range(f->dev->copied_out, 256, 256 + 64);
	assert_int_equal(munmap(p, BIG * HMM_WRITTEN_BLOCK), 0);
	p = big(f, true);
	a = (uintptr_t)p;
	assert_int_equal(hmm_migrate_to_device(f->mm, &f->dev->dev, a, a + BIG * HMM_WRITTEN_BLOCK, NULL, &moved), 0);
	assert_int_equal(moved, BIG * 512);
	f->dev->out_calls = 0;
	for (unsigned i = 0; i < BIG * 512; i++)
		assert_int_equal(p[i * PAGE], (char)(i * 7 + 1));
	assert_true(is_huge(f, p + 2 * HMM_WRITTEN_BLOCK) && is_huge(f, p + 3 * HMM_WRITTEN_BLOCK));
	assert_in_range(f->dev->out_calls, 1, 24);
	/* What came as one nobody has watched. */
	a += 2 * HMM_WRITTEN_BLOCK;
	assert_int_equal(hmm_written(f->mm, a, a + HMM_WRITTEN_BLOCK, stamp, &b), 0);
	for (unsigned i = 0; i < 512; i++)
		assert_int_equal(stamp[i], b);
	munmap(p, BIG * HMM_WRITTEN_BLOCK);
}

static void what_nobody_touched_goes_as_huge_pages(void **state)
{
	struct fixture *f = *state;
	char *p = big(f, true);
	uint64_t moved, a;

	if (!p)
		return;
	munmap(p, BIG * HMM_WRITTEN_BLOCK);
	p = big(f, false);
	a = (uintptr_t)p;
	p[HMM_WRITTEN_BLOCK + 5 * PAGE] = 1; /* this one is there already */
	assert_int_equal(hmm_migrate_to_device(f->mm, &f->dev->dev, a, a + BIG * HMM_WRITTEN_BLOCK, NULL, &moved), 0);
	assert_int_equal(moved, BIG * 512);
	for (unsigned i = 0; i < BIG * 512; i++)
		assert_int_equal(p[i * PAGE], i == 512 + 5);
	assert_true(is_huge(f, p + 2 * HMM_WRITTEN_BLOCK) && is_huge(f, p + 3 * HMM_WRITTEN_BLOCK));
	munmap(p, BIG * HMM_WRITTEN_BLOCK);
}

static void bad_arguments(void **state)
{
	struct fixture *f = *state;
	uint64_t now;

	assert_int_equal(hmm_written(f->mm, f->addr + 1, f->end, f->stamp, &now), -EINVAL);
	assert_int_equal(hmm_written(f->mm, f->end, f->addr, f->stamp, &now), -EINVAL);
	assert_int_equal(hmm_written(f->mm, HMM_ADDR_END, HMM_ADDR_END + PAGE, f->stamp, &now), -EINVAL);
}

/* A fork protects what a coherent device has, by the same bit: who asks afterwards learns of what was written before.
 */
static void a_fork_hides_no_write(void **state)
{
	static const struct hmm_device_ops ops = {.name = "coherent", .caps = HMM_DEV_COHERENT};
	static struct hmm_device coherent = {.ops = &ops};
	struct fixture *f = *state;
	struct umm_hook h = {.space = f->space};
	unsigned first, count;
	uint64_t moved, a;

	assert_int_equal(hmm_mm_add_device(f->mm, &coherent), 0);
	fill(f);
	assert_int_equal(hmm_migrate_to_device(f->mm, &coherent, f->addr, f->end, NULL, &moved), 0);
	assert_int_equal(moved, NR);
	a = ask(f, 0, &first, &count);
	f->mem[700 * PAGE] = 1;
	umm_hook_fork(&h);
	umm_hook_forked(&h, false);
	ask(f, a, &first, &count);
	assert_true(f->stamp[700] > a);
}

void __real_umm_inside_release(struct umm_inside *in, unsigned b);
void __wrap_umm_inside_release(struct umm_inside *in, unsigned b);
static volatile char *touched; /* while a batch is on its way; NULL: nothing is */

/* What has just been stored can come back already; a marked device's pages are marked after that. */
void __wrap_umm_inside_release(struct umm_inside *in, unsigned b)
{
	if (touched)
		*touched = 1;
	touched = NULL;
	__real_umm_inside_release(in, b);
}

/* So does the mark of what a device has, where a page has come back, and was written to, before it was marked. */
static void a_mark_hides_no_write(void **state)
{
	struct fixture *f = *state;
	unsigned first, count;
	uint64_t moved, a;

	f->dev->ops.caps |= HMM_DEV_MARKED;
	fill(f);
	a = ask(f, 0, &first, &count);
	touched = f->mem + 7 * PAGE;
	assert_int_equal(hmm_migrate_to_device(f->mm, &f->dev->dev, f->addr, f->addr + 16 * PAGE, NULL, &moved), 0);
	assert_null(touched);
	assert_int_equal(f->mem[7 * PAGE], 1);
	ask(f, a, &first, &count);
	assert_true(f->stamp[7] > a);
}

static _Atomic unsigned looks;          /* for what is being dropped, of who asks below */
static _Thread_local bool asks, lapses; /* lapses: the first one is over by grace when it has been seen */
static _Atomic bool dropped_for_ever;
static uint64_t batch[4]; /* where each of three begins, and the last ends */
static _Atomic unsigned looks_at[3];

bool __real_umm_quarantined(struct umm_space *space, uint64_t start, uint64_t end);
bool __wrap_umm_quarantined(struct umm_space *space, uint64_t start, uint64_t end);

bool __wrap_umm_quarantined(struct umm_space *space, uint64_t start, uint64_t end)
{
	bool is = __real_umm_quarantined(space, start, end);

	looks += asks;
	for (unsigned i = 0; i < 3; i++)
		looks_at[i] += start == batch[i] && end == batch[i + 1];
	if (is && lapses) {
		lapses = false;
		pthread_mutex_lock(&space->quarantine.lock);
		space->quarantine.range[0].until_ns = 0;
		pthread_mutex_unlock(&space->quarantine.lock);
	}
	return is || dropped_for_ever;
}

struct asker {
	struct fixture *f;
	uint64_t now;
	int rc;
	_Atomic bool done;
};

static void *ask_in_a_thread(void *priv)
{
	struct asker *a = priv;

	asks = true;
	a->rc = hmm_written(a->f->mm, a->f->addr, a->f->end, a->f->stamp, &a->now);
	a->done = true;
	return NULL;
}

/* The event of a drop comes first: who got a number between the two would copy what is about to go. */
static void what_is_about_to_be_dropped_is_waited_for(void **state)
{
	struct fixture *f = *state;
	struct umm_quarantine *q = &f->space->quarantine;
	struct asker a = {.f = f};
	unsigned first, count;
	pthread_t thread;
	uint64_t before;

	fill(f);
	before = ask(f, 0, &first, &count);
	umm_quarantine_add(f->space, f->addr, f->addr + 100 * PAGE);
	pthread_mutex_lock(&q->lock);
	q->range[0].until_ns = UINT64_MAX; /* however long it takes here */
	pthread_mutex_unlock(&q->lock);
	looks = 0;
	assert_int_equal(pthread_create(&thread, NULL, ask_in_a_thread, &a), 0);
	while (looks < 2 && !a.done)
		sched_yield();
	assert_false(a.done);
	/* Who waits holds nothing that other changes need, and tells of them. */
	assert_int_equal(syscall(SYS_madvise, f->mem + 700 * PAGE, PAGE, MADV_DONTNEED), 0);
	assert_false(a.done);
	umm_quarantine_end(f->space, f->addr, f->addr + 100 * PAGE);
	pthread_join(thread, NULL);
	assert_int_equal(a.rc, 0);
	for (unsigned i = 0; i < NR; i++)
		assert_int_equal(f->stamp[i] > before, i == 700);
}

/* But not for ever, and then it is told of once more. */
static void who_drops_without_end_is_not_waited_for(void **state)
{
	struct fixture *f = *state;
	struct umm_quarantine *q = &f->space->quarantine;
	unsigned first, count;
	uint64_t now;

	fill(f);
	ask(f, 0, &first, &count);
	umm_quarantine_add(f->space, f->addr, f->addr + 100 * PAGE);
	pthread_mutex_lock(&q->lock);
	q->range[0].until_ns = UINT64_MAX;
	pthread_mutex_unlock(&q->lock);
	now = ask(f, 0, &first, &count);
	umm_quarantine_end(f->space, f->addr, f->addr + 100 * PAGE);
	ask(f, now, &first, &count);
	assert_int_equal(first, 0);
	assert_int_equal(count, NR);
	now = ask(f, 0, &first, &count);
	ask(f, now, &first, &count);
	assert_int_equal(count, 0);
}

/* Its event has been read, and its grace ends before it has gone: seen by who asks then, or asked before. */
static void is_held_up(struct fixture *f, bool before, bool beside)
{
	struct umm_quarantine *q = &f->space->quarantine;

	umm_quarantine_dropping(f->space, f->addr, f->addr + 100 * PAGE);
	assert_int_equal(q->n, 1);
	pthread_mutex_lock(&q->lock);
	q->range[0].until_ns = UINT64_MAX;
	pthread_mutex_unlock(&q->lock);
	lapses = true;
	if (beside) {
		/* Asked for, and then one with what is dropped next to it. */
		lapses = false;
		assert_true(umm_quarantined(f->space, f->addr, f->end));
		umm_quarantine_dropping(f->space, f->addr + 100 * PAGE, f->addr + 101 * PAGE);
		assert_int_equal(q->n, 1);
		pthread_mutex_lock(&q->lock);
		q->range[0].until_ns = 0;
		pthread_mutex_unlock(&q->lock);
		assert_false(umm_quarantined(f->space, f->addr, f->end));
	} else if (before) {
		assert_true(umm_quarantined(f->space, f->addr, f->end));
		assert_false(umm_quarantined(f->space, f->addr, f->end));
	}
}

/* Whoever drops is held up for longer than anybody waits, and by then no quarantine tells of it. */
static void who_drops_late_is_told_of(void **state)
{
	struct fixture *f = *state;
	unsigned first, count;
	uint64_t now;

	for (unsigned before = 0; before < 2; before++) {
		fill(f);
		ask(f, 0, &first, &count);
		is_held_up(f, before, false);
		now = ask(f, 0, &first, &count);
		assert_false(lapses);
		/* Whatever is seen when it has gone. */
		ask(f, now, &first, &count);
		assert_int_equal(first, 0);
		assert_int_equal(count, NR);
		umm_quarantine_end(f->space, f->addr, f->addr + 100 * PAGE);
		assert_int_equal(f->space->quarantine.nlate, 0);
	}
}

/* Also where another has dropped what lies beside it meanwhile. */
static void who_drops_late_beside_another_is_told_of(void **state)
{
	struct fixture *f = *state;
	unsigned first, count;
	uint64_t now;

	fill(f);
	ask(f, 0, &first, &count);
	is_held_up(f, true, true);
	now = ask(f, 0, &first, &count);
	ask(f, now, &first, &count);
	assert_int_equal(first, 0);
	assert_int_equal(count, NR);
	umm_quarantine_end(f->space, f->addr, f->addr + 101 * PAGE);
	assert_int_equal(f->space->quarantine.nlate, 0);
}

/* That it has gone is seen, and then it is told of no more. */
static void who_drops_late_has_dropped(void **state)
{
	struct fixture *f = *state;
	unsigned first, count;

	fill(f);
	ask(f, 0, &first, &count);
	is_held_up(f, true, false);
	assert_int_equal(f->space->quarantine.nlate, 1);
	assert_int_equal(syscall(SYS_madvise, f->mem, 100 * PAGE, MADV_DONTNEED), 0);
	ask(f, 0, &first, &count);
	assert_int_equal(f->space->quarantine.nlate, 0);
}

/* What is never dropped is told of a few times only. */
static void what_is_never_dropped_is_not_told_of_for_ever(void **state)
{
	struct fixture *f = *state;
	unsigned first, count, calls = 0;
	uint64_t now;

	fill(f);
	ask(f, 0, &first, &count);
	is_held_up(f, true, false);
	now = ask(f, 0, &first, &count);
	do {
		now = ask(f, now, &first, &count);
		calls++;
	} while (count && calls < 100);
	assert_in_range(calls, 2, 20);
	assert_int_equal(f->space->quarantine.nlate, 0);
}

/* Nor by who moves something: it stays where it is, and all goes when that is over. */
static void who_drops_without_end_keeps_nobody_from_going_on(void **state)
{
	struct fixture *f = *state;
	uint64_t moved = 1;

	fill(f);
	dropped_for_ever = true;
	assert_int_equal(hmm_migrate_to_device(f->mm, &f->dev->dev, f->addr, f->addr + 64 * PAGE, NULL, &moved), 0);
	dropped_for_ever = false;
	assert_int_equal(moved, 0);
	assert_int_equal(hmm_migrate_to_device(f->mm, &f->dev->dev, f->addr, f->addr + 64 * PAGE, NULL, &moved), 0);
	assert_int_equal(moved, 64);
	for (unsigned i = 0; i < 64; i++)
		assert_int_equal(f->mem[i * PAGE], (char)(i + 1));
}

/* And is waited for once, not in each piece of what is to move. */
static void who_drops_without_end_is_waited_for_once(void **state)
{
	struct fixture *f = *state;
	uint64_t moved = 1, huge = HMM_BATCH_MAX * PAGE;
	char *room = mmap(NULL, 4 * huge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	assert_true(room != MAP_FAILED);
	batch[0] = ((uintptr_t)room + huge - 1) / huge * huge;
	for (unsigned i = 0; i < 3; i++) {
		batch[i + 1] = batch[i] + huge;
		looks_at[i] = 0;
		*(char *)(uintptr_t)batch[i] = 1;
	}
	dropped_for_ever = true;
	assert_int_equal(hmm_migrate_to_device(f->mm, &f->dev->dev, batch[0], batch[3], NULL, &moved), 0);
	dropped_for_ever = false;
	assert_int_equal(moved, 0);
	for (unsigned i = 0; i < 3; i++)
		assert_int_equal(looks_at[i], 1);
	memset(batch, 0, sizeof(batch));
	assert_int_equal(hmm_mm_unmanage(f->mm, (uintptr_t)room, (uintptr_t)room + 4 * huge), 0);
	munmap(room, 4 * huge);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
		T(a_fork_hides_no_write),
		T(a_mark_hides_no_write),
		T(each_who_asks_learns_of_all_writes),
		T(what_is_dropped_or_replaced_is_written),
		T(what_is_replaced_as_a_whole_is_written),
		T(what_is_dropped_as_a_whole_is_written),
		T(what_is_about_to_be_dropped_is_waited_for),
		T(who_drops_without_end_is_not_waited_for),
		T(who_drops_late_is_told_of),
		T(who_drops_late_beside_another_is_told_of),
		T(who_drops_late_has_dropped),
		T(what_is_never_dropped_is_not_told_of_for_ever),
		T(who_drops_without_end_keeps_nobody_from_going_on),
		T(who_drops_without_end_is_waited_for_once),
		T(what_mremap_takes_there_is_written),
		T(what_a_device_gave_back_is_as_it_gave_it),
		T(touches_that_walk_bring_neighbours_along),
		T(bad_arguments),
		T(where_nothing_is_written_no_page_is_looked_at),
		T(what_is_written_all_the_time_is_not_watched),
		T(who_walks_far_is_given_huge_pages),
		T(what_nobody_touched_goes_as_huge_pages),
	};

	if (argc > 1)
		cmocka_set_test_filter(argv[1]);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
