/* SPDX-License-Identifier: MIT */
/*
 * The reference driver: a software device with a page table of its own.
 *
 * DOC: how it stays right
 *
 * What every driver needs is hmm_range_map(): it faults, has our map() enter
 * pages into the table, and has unmap() drop them before they change.  The table
 * is ours, under dm->lock, and so are the copies that run through it.
 *
 * A copy through the table may meet a page that is away, and then waits for
 * threads that serve faults; these run callbacks, too.  So no copy runs under
 * the lock: it is entered in dm->copies first.  settle() waits for those of the
 * range that was unmapped, but not where the change is "late" (umm.h), i.e. told
 * by such a thread: then it marks them stale, and they are done again.
 *
 * Pages in this device's own memory have no entry: hmm_device_read() and _write()
 * find them, and say when they are no longer there.  Exclusive access is memory
 * of another device that nobody can open: what is there, the CPU has not, and
 * a touch brings it back.
 *
 * Memory can go away without anybody being told in time (a raw munmap of a
 * range that is not watched, mprotect).  The device is in software and copies
 * through the kernel (process_vm_readv and _writev on ourselves), which checks
 * every access: such an entry is found out when it is used, is given up, and its
 * page mapped again, which renews the entry or gives the caller the error.
 *
 * Nodes of the table are never taken out, so that who walks it needs no lock.
 *
 * Data go through a buffer of our own: the caller's may itself be part of what
 * is mirrored, and is touched with no lock held.
 */
#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "drivers/dmirror/dmirror.h"
#include "drivers/dmirror/memory.h"

#define PAGE_SHIFT 12
#define PAGE_SIZE ((uint64_t)1 << PAGE_SHIFT)
#define NODE_BITS 9
#define NODE_SLOTS (1u << NODE_BITS)
#define LEVELS 4 /* 9 bits each over the page: 48 bits of address */
#define ADDR_END ((uint64_t)1 << (PAGE_SHIFT + LEVELS * NODE_BITS))
#define FAULT_PAGES 512u               /* in one range */
#define COPY_BYTES ((uint64_t)1 << 20) /* most in one copy: an invalidation waits that long */
#define HUGE_BYTES ((uint64_t)NODE_SLOTS * PAGE_SIZE)
#define PATIENCE_NS 10000000000ull

/* A page table: slots are nodes, at the last level the flags of an entry (UMM_PFN_VALID, UMM_PFN_WRITE). */
struct node {
	union {
		struct node *child[NODE_SLOTS];
		uint64_t entry[NODE_SLOTS];
	};
};

/* A copy that runs. */
struct copy {
	uint64_t start, end;
	bool stale;
	struct copy *next;
};

struct dmirror_host {
	struct umm_space *space;
	struct hmm_mm *mm;
	struct dmirror_memory memory[DMIRROR_DEVICES];
	struct dmirror_memory exclusive;
};

struct dmirror {
	struct umm_space *space;
	struct hmm_range *range;   /* of all there is */
	struct dmirror_host *host; /* NULL: no memory */
	struct hmm_device *own;    /* its memory */
	struct hmm_device bare;    /* one without */
	bool coherent;
	_Atomic uint64_t flags;
	pid_t pid;
	pthread_mutex_t lock; /* the driver's: entries, copies */
	pthread_cond_t copied;
	struct copy *copies;
	pthread_mutex_t grow; /* before lock: who adds nodes */
	struct node *root;
};

/* ------------------------------------------------------------ device's table */

static unsigned slot_of(uint64_t addr, unsigned level)
{
	return (addr >> (PAGE_SHIFT + level * NODE_BITS)) & (NODE_SLOTS - 1);
}

static struct node *node_new(struct umm_space *space)
{
	return umm_alloc(space, sizeof(struct node));
}

static void node_free(struct umm_space *space, struct node *n, unsigned level)
{
	for (unsigned i = 0; level && i < NODE_SLOTS; i++)
		if (n->child[i])
			node_free(space, n->child[i], level - 1);
	umm_free(space, n, sizeof(*n));
}

/* The entry of @addr; NULL when its node is not there. */
static uint64_t *table_entry(struct dmirror *dm, uint64_t addr)
{
	struct node *n = dm->root;

	for (unsigned level = LEVELS - 1; n && level; level--)
		n = __atomic_load_n(&n->child[slot_of(addr, level)], __ATOMIC_ACQUIRE);
	return n ? &n->entry[slot_of(addr, 0)] : NULL;
}

/* Nodes for [start, end).  They appear while others, under the other lock, walk the table. */
static int table_grow(struct dmirror *dm, uint64_t start, uint64_t end)
{
	int rc = 0;

	pthread_mutex_lock(&dm->grow);
	for (uint64_t addr = start; addr < end && !rc; addr = (addr | (NODE_SLOTS * PAGE_SIZE - 1)) + 1) {
		struct node *n = dm->root;

		for (unsigned level = LEVELS - 1; level; level--) {
			struct node **slot = &n->child[slot_of(addr, level)];

			if (!*slot) {
				struct node *fresh = node_new(dm->space);

				if (!fresh) {
					rc = -ENOMEM;
					break;
				}
				__atomic_store_n(slot, fresh, __ATOMIC_RELEASE);
			}
			n = *slot;
		}
	}
	pthread_mutex_unlock(&dm->grow);
	return rc;
}

/* Drop the entries of [start, end), of which @n covers what begins at @base. */
static void table_drop(struct node *n, unsigned level, uint64_t base, uint64_t start, uint64_t end)
{
	uint64_t size = PAGE_SIZE << (level * NODE_BITS);
	unsigned first = start > base ? (start - base) / size : 0;

	for (unsigned i = first; i < NODE_SLOTS && base + i * size < end; i++) {
		if (!level) {
			n->entry[i] = 0;
			continue;
		}
		struct node *child = __atomic_load_n(&n->child[i], __ATOMIC_ACQUIRE);

		if (child)
			table_drop(child, level - 1, base + i * size, start, end);
	}
}

/* -------------------------------------------------------- as the engine sees it */

int dmirror_map(struct hmm_device *dev, struct hmm_range *range, const struct hmm_map_run *run)
{
	struct dmirror *dm = range->priv;
	uint64_t end = run->addr + run->npages * PAGE_SIZE;
	int rc = table_grow(dm, run->addr, end);

	if (rc)
		return rc;
	pthread_mutex_lock(&dm->lock);
	for (uint64_t addr = run->addr; addr < end; addr += PAGE_SIZE)
		*table_entry(dm, addr) = UMM_PFN_VALID | (run->write ? UMM_PFN_WRITE : 0);
	pthread_mutex_unlock(&dm->lock);
	return 0;
}

void dmirror_unmap(struct hmm_device *dev, struct hmm_range *range, const struct hmm_map_run *run,
		   const struct umm_change *why, uint64_t *dirty)
{
	struct dmirror *dm = range->priv;

	/* Nothing is dirty that the CPU does not know of: it is the CPU that copies. */
	pthread_mutex_lock(&dm->lock);
	table_drop(dm->root, LEVELS - 1, 0, run->addr, run->addr + run->npages * PAGE_SIZE);
	pthread_mutex_unlock(&dm->lock);
}

bool dmirror_settle(struct hmm_device *dev, struct hmm_range *range, uint64_t start, uint64_t end,
		    const struct umm_change *why)
{
	struct dmirror *dm = range->priv;
	bool late = why && why->late, sleeps = !why || why->blockable, found;

	pthread_mutex_lock(&dm->lock);
	do {
		found = false;
		for (struct copy *c = dm->copies; c; c = c->next) {
			if (c->start >= end || c->end <= start)
				continue;
			c->stale |= late;
			found = !late;
		}
		if (found && sleeps)
			pthread_cond_wait(&dm->copied, &dm->lock);
	} while (found && sleeps);
	pthread_mutex_unlock(&dm->lock);
	return !found;
}

static const struct hmm_device_ops bare_ops = {
	.name = "dmirror",
	.caps = HMM_DEV_MAP | HMM_DEV_FAULT,
	.map = dmirror_map,
	.unmap = dmirror_unmap,
	.settle = dmirror_settle,
};

/* ----------------------------------------------------------------- faulting */

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static int places(struct dmirror *dm, uint64_t start, uint64_t end, struct hmm_device *where[])
{
	if (dm->host && end <= HMM_ADDR_END)
		return hmm_where(dm->host->mm, start, end, where, NULL);
	memset(where, 0, (end - start) / PAGE_SIZE * sizeof(*where));
	return 0;
}

/* Have [start, end) in the device's table, of which the first page could not be used as it is. */
static int dmirror_fault(struct dmirror *dm, uint64_t start, uint64_t end, bool write, uint64_t deadline_ns)
{
	unsigned flags = write ? HMM_MAP_WRITE : 0;
	int rc;

	/* An entry that is there, and yet of no use: memory has gone without our being told. */
	if (hmm_range_mapped(dm->range, start, start + PAGE_SIZE, write))
		hmm_range_unmap(dm->range, start, end, NULL);
	/* In our own memory, it could not be used there either; the mapping will say why. */
	rc = hmm_range_map(dm->range, start, start + PAGE_SIZE, flags | HMM_MAP_SYSTEM, deadline_ns);
	if (!rc && start + PAGE_SIZE < end)
		rc = hmm_range_map(dm->range, start + PAGE_SIZE, end, flags, deadline_ns);
	return rc == -ETIME ? -EBUSY : rc;
}

/* ------------------------------------------------------------------ copying */

/* Between two places of our own address space; either may be bad.  Returns the bytes copied. */
static uint64_t copy_checked(struct dmirror *dm, void *local, uint64_t remote, uint64_t len, bool write)
{
	uint64_t done = 0;

	while (done < len) {
		struct iovec l = {(char *)local + done, len - done};
		struct iovec r = {(void *)(uintptr_t)(remote + done), len - done};
		ssize_t n = write ? process_vm_writev(dm->pid, &l, 1, &r, 1, 0)
				  : process_vm_readv(dm->pid, &l, 1, &r, 1, 0);

		if (n <= 0)
			break;
		done += (uint64_t)n;
	}
	return done;
}

/* The device at work: copy from @pos on, as far as its table goes and the kernel lets it.  Returns where it stopped. */
static uint64_t copy_through_table(struct dmirror *dm, char *buf, uint64_t addr, uint64_t pos, uint64_t end, bool write)
{
	uint64_t need = UMM_PFN_VALID | (write ? UMM_PFN_WRITE : 0);

	while (pos < end) {
		struct copy me = {.start = pos, .end = pos}, **link;
		uint64_t got = 0, *e;

		pthread_mutex_lock(&dm->lock);
		while (me.end < end && me.end - pos < COPY_BYTES && (e = table_entry(dm, me.end)) &&
		       (*e & need) == need)
			me.end += PAGE_SIZE;
		if (me.end > pos) {
			me.next = dm->copies;
			dm->copies = &me;
			pthread_mutex_unlock(&dm->lock);
			got = copy_checked(dm, buf + (pos - addr), pos, me.end - pos, write) & -PAGE_SIZE;
			pthread_mutex_lock(&dm->lock);
			for (link = &dm->copies; *link != &me;)
				link = &(*link)->next;
			*link = me.next;
			pthread_cond_broadcast(&dm->copied);
		}
		pthread_mutex_unlock(&dm->lock);
		if (!got || me.stale)
			break;
		pos += got;
	}
	return pos;
}

/* Do mappings allow [start, end) what @flags ask for?  Returns how far. */
static uint64_t allowed_until(struct dmirror *dm, uint64_t start, uint64_t end, uint32_t flags)
{
	while (start < end) {
		struct umm_vma v;

		if (umm_vma_next(dm->space, start, &v) || v.start > start || (flags & ~v.flags))
			break;
		start = v.end < end ? v.end : end;
	}
	return start;
}

static int device_read(struct hmm_mm *mm, struct hmm_device *dev, uint64_t addr, char *buf, unsigned n)
{
	int got;

	dmirror_memory_by_device(true);
	got = hmm_device_read(mm, dev, addr, buf, n);
	dmirror_memory_by_device(false);
	return got;
}

/* The same, of pages that are in memory that only devices reach. */
static uint64_t copy_own(struct dmirror *dm, char *buf, uint64_t addr, uint64_t pos, uint64_t end, bool write)
{
	struct hmm_mm *mm = dm->host ? dm->host->mm : NULL;

	while (mm && pos < end && end <= HMM_ADDR_END) {
		uint64_t most = end - pos < COPY_BYTES ? end : pos + COPY_BYTES;
		unsigned n;
		int got = 0;

		most = allowed_until(dm, pos, most, UMM_VMA_READ | (write ? UMM_VMA_WRITE : 0));
		n = (unsigned)((most - pos) / PAGE_SIZE);
		if (n && !dm->coherent)
			got = write ? hmm_device_write(mm, dm->own, pos, buf + (pos - addr), n)
				    : device_read(mm, dm->own, pos, buf + (pos - addr), n);
		if (n && got <= 0 && !write) /* a write would end it */
			got = device_read(mm, &dm->host->exclusive.dev, pos, buf + (pos - addr), n);
		if (got <= 0)
			break;
		pos += (unsigned)got * PAGE_SIZE;
	}
	return pos;
}

static uint64_t copy_what_is_there(struct dmirror *dm, char *buf, uint64_t addr, uint64_t pos, uint64_t end, bool write)
{
	uint64_t at;

	do {
		at = pos;
		pos = copy_through_table(dm, buf, addr, pos, end, write);
		pos = copy_own(dm, buf, addr, pos, end, write);
	} while (pos != at && pos < end);
	return pos;
}

static int dmirror_copy(struct dmirror *dm, char *buf, uint64_t addr, uint64_t len, bool write, uint64_t *faults)
{
	uint64_t pos = addr, end = addr + len, seen = addr, rounds = 0;
	uint64_t deadline = now_ns() + PATIENCE_NS;

	for (;;) {
		int rc;

		pos = copy_what_is_there(dm, buf, addr, pos, end, write);
		if (pos == end)
			break;
		if (pos != seen) {
			/* It goes on: only standing still tries our patience. */
			seen = pos;
			deadline = now_ns() + PATIENCE_NS;
		}
		rc = dmirror_fault(dm, pos, end, write, deadline);
		if (rc)
			return rc;
		rounds++;
	}
	if (faults)
		*faults = rounds;
	return 0;
}

static bool range_is_good(uint64_t addr, uint64_t npages)
{
	return !(addr % PAGE_SIZE) && npages && addr < ADDR_END && npages <= (ADDR_END - addr) / PAGE_SIZE;
}

/* Not the caller's: that may be away, or part of what is mirrored. */
static char *buffer_new(struct dmirror *dm, uint64_t len)
{
	return umm_alloc(dm->space, len);
}

static void buffer_free(struct dmirror *dm, void *buf, uint64_t len)
{
	umm_free(dm->space, buf, len);
}

int dmirror_read(struct dmirror *dm, uint64_t addr, void *ptr, uint64_t npages, uint64_t *faults)
{
	uint64_t len = npages * PAGE_SIZE, rounds;
	char *buf;
	int rc;

	if (!range_is_good(addr, npages))
		return -EINVAL;
	buf = buffer_new(dm, len);
	if (!buf)
		return -ENOMEM;
	rc = dmirror_copy(dm, buf, addr, len, false, &rounds);
	if (!rc && copy_checked(dm, buf, (uintptr_t)ptr, len, true) < len)
		rc = -EFAULT;
	if (!rc && faults)
		*faults = rounds;
	buffer_free(dm, buf, len);
	return rc;
}

int dmirror_write(struct dmirror *dm, uint64_t addr, const void *ptr, uint64_t npages, uint64_t *faults)
{
	uint64_t len = npages * PAGE_SIZE;
	char *buf;
	int rc = -EFAULT;

	if (!range_is_good(addr, npages))
		return -EINVAL;
	buf = buffer_new(dm, len);
	if (!buf)
		return -ENOMEM;
	if (copy_checked(dm, buf, (uintptr_t)ptr, len, false) == len)
		rc = dmirror_copy(dm, buf, addr, len, true, faults);
	buffer_free(dm, buf, len);
	return rc;
}

/* ---------------------------------------------------------------- snapshots */

/* Is the block one large page of this device, in one mapping? */
static bool is_large(struct dmirror *dm, uint64_t block)
{
	struct hmm_device *where[NODE_SLOTS];
	hmm_handle_t handle[NODE_SLOTS];
	struct umm_vma v;

	if (umm_vma_next(dm->space, block, &v) || v.start > block || v.end < block + HUGE_BYTES ||
	    hmm_where(dm->host->mm, block, block + HUGE_BYTES, where, handle))
		return false;
	for (unsigned i = 0; i < NODE_SLOTS; i++)
		if (where[i] != dm->own || handle[i] != handle[0] + i)
			return false;
	return !(handle[0] % NODE_SLOTS) && dmirror_memory_is_large((struct dmirror_memory *)dm->own, handle[0]);
}

static uint8_t describe(const struct dmirror *dm, uint64_t e, const struct hmm_device *where, bool writable)
{
	unsigned order = (e & UMM_PFN_ORDER_MASK) >> UMM_PFN_ORDER_SHIFT;
	uint8_t what;

	if (e & UMM_PFN_ERROR)
		return DMIRROR_ERROR;
	if (!(e & UMM_PFN_VALID)) {
		if (!where || where != dm->own)
			return DMIRROR_NONE;
		return DMIRROR_PRIVATE_LOCAL | (writable ? DMIRROR_WRITE : DMIRROR_READ);
	}
	what = e & UMM_PFN_WRITE ? DMIRROR_WRITE : DMIRROR_READ;
	/* Present: only a coherent device can hold it. */
	if (where && (where->ops->caps & HMM_DEV_COHERENT))
		what |= where == dm->own ? DMIRROR_COHERENT_LOCAL : DMIRROR_COHERENT_REMOTE;
	if (order == 2 * NODE_BITS)
		return what | DMIRROR_PUD;
	/* The huge zero page is not "the" zero page. */
	if (order == NODE_BITS)
		return what | DMIRROR_PMD;
	return e & UMM_PFN_ZERO ? what | DMIRROR_ZERO : what;
}

/* Pages of [start, end) that a large page of the device holds say so in @codes. */
static void mark_large(struct dmirror *dm, uint8_t *codes, uint64_t start, uint64_t end)
{
	for (uint64_t at = start, stop; dm->own && !dm->coherent && at < end; at = stop) {
		bool some = false;

		stop = (at | (HUGE_BYTES - 1)) + 1;
		if (stop > end)
			stop = end;
		for (uint64_t a = at; a < stop; a += PAGE_SIZE)
			some |= (codes[(a - start) / PAGE_SIZE] & ~(DMIRROR_READ | DMIRROR_WRITE)) ==
				DMIRROR_PRIVATE_LOCAL;
		if (!some || !is_large(dm, at & ~(HUGE_BYTES - 1)))
			continue;
		for (uint64_t a = at; a < stop; a += PAGE_SIZE)
			codes[(a - start) / PAGE_SIZE] |= DMIRROR_PMD;
	}
}

int dmirror_snapshot(struct dmirror *dm, uint64_t addr, uint8_t *ptr, uint64_t npages)
{
	uint64_t entries[FAULT_PAGES], end = addr + npages * PAGE_SIZE;
	struct hmm_device *where[FAULT_PAGES];
	struct umm_notifier *n = hmm_range_notifier(dm->range);
	struct umm_range range = {.space = dm->space, .notifier = n, .entries = entries};
	uint8_t *buf;
	int rc = 0;

	if (!range_is_good(addr, npages))
		return -EINVAL;
	buf = (uint8_t *)buffer_new(dm, npages);
	if (!buf)
		return -ENOMEM;
	for (uint64_t start = addr; start < end; start = range.end) {
		uint64_t most = FAULT_PAGES * PAGE_SIZE, deadline = now_ns() + PATIENCE_NS;

		range.start = start;
		range.end = end - start < most ? end : start + most;
		do {
			rc = now_ns() < deadline ? umm_read_begin_until(n, deadline, &range.notifier_seq) : -EBUSY;
			/* Before the look: a page that came back in between is seen there. */
			if (!rc)
				rc = places(dm, start, range.end, where);
			if (!rc)
				rc = umm_range_snapshot(&range);
			if (rc)
				goto out;
			for (uint64_t i = 0; i < (range.end - start) / PAGE_SIZE; i++)
				buf[(start - addr) / PAGE_SIZE + i] =
					describe(dm, entries[i], where[i],
						 where[i] && allowed_until(dm, start + i * PAGE_SIZE,
									   start + (i + 1) * PAGE_SIZE,
									   UMM_VMA_WRITE) > start + i * PAGE_SIZE);
		} while (umm_read_retry(n, range.notifier_seq));
		mark_large(dm, (uint8_t *)buf + (start - addr) / PAGE_SIZE, start, range.end);
	}
	if (copy_checked(dm, buf, (uintptr_t)ptr, npages, true) < npages)
		rc = -EFAULT;
out:
	buffer_free(dm, buf, npages);
	return rc == -ETIME ? -EBUSY : rc;
}

/* ------------------------------------------------------------- device memory */

/*
 * The contents of a range that was migrated, or has become exclusive: in
 * @memory, or what the table has.  Nothing is faulted.
 */
static int copy_migrated(struct dmirror *dm, struct hmm_device *memory, char *buf, uint64_t addr, uint64_t end)
{
	struct hmm_device *where[FAULT_PAGES];
	struct hmm_mm *mm = dm->host->mm;

	for (uint64_t pos = addr; pos < end;) {
		uint64_t most = end - pos < FAULT_PAGES * PAGE_SIZE ? end : pos + FAULT_PAGES * PAGE_SIZE, n = 0;
		int got, rc;

		if (!(memory->ops->caps & HMM_DEV_COHERENT)) {
			got = device_read(mm, memory, pos, buf + (pos - addr), (unsigned)((most - pos) / PAGE_SIZE));
			if (got < 0)
				return got;
			pos += (unsigned)got * PAGE_SIZE;
			if (got)
				continue;
		} else {
			rc = hmm_where(mm, pos, most, where, NULL);
			if (rc)
				return rc;
			while (pos + n * PAGE_SIZE < most && where[n] == memory)
				n++;
			if (n) {
				if (copy_checked(dm, buf + (pos - addr), pos, n * PAGE_SIZE, false) < n * PAGE_SIZE)
					return -EBUSY; /* unmapped meanwhile */
				pos += n * PAGE_SIZE;
				continue;
			}
		}
		if (copy_through_table(dm, buf, addr, pos, pos + PAGE_SIZE, false) == pos)
			return -ENOENT;
		pos += PAGE_SIZE;
	}
	return 0;
}

/* Is this block, all in one mapping, one huge page, or would a touch make it one? */
static bool is_huge(struct dmirror *dm, uint64_t block)
{
	struct hmm_device *where[NODE_SLOTS];
	struct umm_page_run run;
	uint64_t walked;

	/* To look at what is away would bring it back. */
	if (hmm_where(dm->host->mm, block, block + HUGE_BYTES, where, NULL))
		return false;
	for (unsigned i = 0; i < NODE_SLOTS; i++)
		if (where[i])
			return false;
	for (unsigned looks = 0; looks < 2; looks++) {
		int n = umm_page_scan(dm->space, block, block + HUGE_BYTES, &run, 1, &walked);

		if (n < 0)
			return false;
		if (n)
			return run.start == block && run.end == block + HUGE_BYTES &&
			       (run.flags & (UMM_PAGE_PRESENT | UMM_PAGE_HUGE)) == (UMM_PAGE_PRESENT | UMM_PAGE_HUGE);
		madvise((void *)(uintptr_t)block, HUGE_BYTES, MADV_POPULATE_READ);
	}
	return false;
}

/*
 * A huge page goes to one large page of the device: what a driver does that
 * copies by itself, in the three phases of hmm.h.
 */
static int huge_to_device(struct dmirror *dm, uint64_t block)
{
	struct dmirror_memory *memory = (struct dmirror_memory *)dm->own;
	struct hmm_migrate *m = umm_alloc(dm->space, sizeof(*m));
	int rc;

	if (!m)
		return -ENOMEM;
	*m = (struct hmm_migrate){
		.mm = dm->host->mm, .to = dm->own, .start = block, .end = block + HUGE_BYTES, .owner = dm};
	rc = hmm_migrate_collect(m);
	if (!rc) {
		if (m->npages < DMIRROR_CHUNK_PAGES || dmirror_memory_take_large(memory, m->src, m->handle, &dm->flags))
			hmm_migrate_copy(m);
		hmm_migrate_commit(m);
	}
	umm_free(dm->space, m, sizeof(*m));
	return rc;
}

/* Of the pages of [start, end), all in one mapping: those that are the system's go; what another device has stays
 * there. */
static int pieces_to_device(struct dmirror *dm, uint64_t start, uint64_t end)
{
	struct hmm_device *where[FAULT_PAGES];

	for (uint64_t at = start, stop; !dm->coherent && at < end; at = stop) {
		stop = (at | (HUGE_BYTES - 1)) + 1;
		if (at % HUGE_BYTES || stop > end || !is_huge(dm, at))
			continue;
		/* A large allocation that fails is made up for with small ones, below. */
		if (dm->flags & DMIRROR_FLAG_FAIL_ALLOC) {
			dm->flags &= ~(uint64_t)DMIRROR_FLAG_FAIL_ALLOC;
			continue;
		}
		int rc = huge_to_device(dm, at);

		if (rc)
			return rc;
	}
	for (uint64_t at = start, stop; at < end; at = stop) {
		unsigned n = 0, most;
		bool stays;
		int rc;

		stop = end - at < FAULT_PAGES * PAGE_SIZE ? end : at + FAULT_PAGES * PAGE_SIZE;
		most = (unsigned)((stop - at) / PAGE_SIZE);
		rc = hmm_where(dm->host->mm, at, stop, where, NULL);
		if (rc)
			return rc;
		stays = where[0] && where[0] != &dm->host->exclusive.dev; /* also where it is here already */
		while (n < most && (where[n] && where[n] != &dm->host->exclusive.dev) == stays)
			n++;
		stop = at + n * PAGE_SIZE;
		rc = stays ? 0 : hmm_migrate_to_device(dm->host->mm, dm->own, at, stop, dm, NULL);
		if (rc)
			return rc;
	}
	return 0;
}

static int to_device(struct dmirror *dm, uint64_t addr, uint64_t end)
{
	for (uint64_t at = addr; at < end;) {
		struct umm_vma v;
		uint64_t stop;
		int rc = umm_vma_next(dm->space, at, &v);

		if (rc == -ENOENT || (!rc && (v.start > at || !(v.flags & UMM_VMA_READ) ||
					      (v.flags & (UMM_VMA_HUGETLB | UMM_VMA_SPECIAL)))))
			return -EINVAL;
		if (rc)
			return rc;
		stop = v.end < end ? v.end : end;
		/* What will not go keeps its entries: of a file's pages all but private copies. */
		if (!(v.flags & UMM_VMA_SHARED))
			rc = pieces_to_device(dm, at, stop);
		if (rc)
			return rc;
		at = stop;
	}
	return 0;
}

int dmirror_migrate_to_dev(struct dmirror *dm, uint64_t addr, void *ptr, uint64_t npages, uint64_t *cpages)
{
	uint64_t len = npages * PAGE_SIZE;
	char *buf;
	int rc;

	if (!range_is_good(addr, npages))
		return -EINVAL;
	if (!dm->own)
		return -EOPNOTSUPP;
	buf = buffer_new(dm, len);
	if (!buf)
		return -ENOMEM;
	rc = to_device(dm, addr, addr + len);
	if (!rc)
		rc = copy_migrated(dm, dm->own, buf, addr, addr + len);
	if (!rc && copy_checked(dm, buf, (uintptr_t)ptr, len, true) < len)
		rc = -EFAULT;
	if (!rc && cpages)
		*cpages = npages;
	buffer_free(dm, buf, len);
	return rc;
}

int dmirror_migrate_to_sys(struct dmirror *dm, uint64_t addr, uint64_t npages, uint64_t *cpages)
{
	uint64_t end = addr + npages * PAGE_SIZE, came;
	struct umm_vma v;
	int rc;

	if (!range_is_good(addr, npages) || end > HMM_ADDR_END)
		return -EINVAL;
	if (!dm->own)
		return -EOPNOTSUPP;
	for (uint64_t at = addr; at < end; at = v.end) {
		rc = umm_vma_next(dm->space, at, &v);
		if (rc == -ENOENT || (!rc && (v.start > at || !(v.flags & UMM_VMA_READ))))
			return -EINVAL;
		if (rc)
			return rc;
	}
	dm->flags &= ~(uint64_t)DMIRROR_FLAG_FAIL_ALLOC;
	rc = hmm_migrate_to_system(dm->host->mm, dm->own, addr, end, &came);
	if (!rc && cpages)
		*cpages = came;
	return rc;
}

int dmirror_release(struct dmirror *dm)
{
	int rc;

	if (!dm->own)
		return 0;
	dmirror_memory_by_device(true);
	rc = hmm_migrate_to_system(dm->host->mm, dm->own, 0, HMM_ADDR_END, NULL);
	dmirror_memory_by_device(false);
	return rc;
}

int dmirror_flags(struct dmirror *dm, uint64_t flags)
{
	dm->flags = flags;
	return 0;
}

int dmirror_exclusive(struct dmirror *dm, uint64_t addr, void *ptr, uint64_t npages, uint64_t *cpages)
{
	uint64_t len = npages * PAGE_SIZE, end = addr + len;
	struct umm_vma v;
	char *buf;
	int rc = 0;

	if (!range_is_good(addr, npages))
		return -EINVAL;
	if (!dm->host)
		return -EOPNOTSUPP;
	for (uint64_t at = addr; at < end; at = v.end) {
		rc = umm_vma_next(dm->space, at, &v);
		if (rc == -ENOENT || (!rc && (v.start > at || (~v.flags & (UMM_VMA_READ | UMM_VMA_WRITE)))))
			return -EFAULT;
		if (rc)
			return rc;
		if (v.flags & (UMM_VMA_SHARED | UMM_VMA_FILE | UMM_VMA_HUGETLB | UMM_VMA_SPECIAL))
			return -EOPNOTSUPP;
	}
	buf = buffer_new(dm, len);
	if (!buf)
		return -ENOMEM;
	rc = hmm_migrate_to_device(dm->host->mm, &dm->host->exclusive.dev, addr, end, dm, NULL);
	if (!rc)
		rc = copy_migrated(dm, &dm->host->exclusive.dev, buf, addr, end);
	if (rc == -ENOENT)
		rc = -EBUSY;
	if (!rc && copy_checked(dm, buf, (uintptr_t)ptr, len, true) < len)
		rc = -EFAULT;
	if (!rc && cpages)
		*cpages = npages;
	buffer_free(dm, buf, len);
	return rc;
}

int dmirror_check_exclusive(struct dmirror *dm, uint64_t addr, uint64_t npages)
{
	struct hmm_device *where[FAULT_PAGES];
	uint64_t end = addr + npages * PAGE_SIZE;

	if (!range_is_good(addr, npages) || end > HMM_ADDR_END)
		return -EINVAL;
	for (uint64_t at = addr, z; dm->host && at < end; at = z) {
		int rc;

		z = end - at < FAULT_PAGES * PAGE_SIZE ? end : at + FAULT_PAGES * PAGE_SIZE;
		rc = hmm_where(dm->host->mm, at, z, where, NULL);
		if (rc)
			return rc;
		for (uint64_t i = 0; i < (z - at) / PAGE_SIZE; i++)
			if (where[i] == &dm->host->exclusive.dev)
				return -EPERM;
	}
	return 0;
}

/* --------------------------------------------------------------------- life */

int dmirror_host_open(struct umm_space *space, struct dmirror_host **hostp)
{
	struct dmirror_host *h = umm_alloc(space, sizeof(*h));
	int rc;

	if (!h)
		return -ENOMEM;
	h->space = space;
	rc = hmm_mm_open(space, &h->mm);
	if (rc)
		goto fail;
	for (unsigned i = 0; i < DMIRROR_DEVICES && !rc; i++) {
		static const char *const name[DMIRROR_DEVICES] = {"dmirror0", "dmirror1", "dmirror2", "dmirror3"};

		rc = dmirror_memory_init(&h->memory[i], space, name[i],
					 i < DMIRROR_PRIVATE ? HMM_DEV_MARKED : HMM_DEV_COHERENT);
		if (i >= DMIRROR_PRIVATE)
			h->memory[i].node = dmirror_memory_node(i - DMIRROR_PRIVATE);
		if (!rc)
			rc = hmm_mm_add_device(h->mm, &h->memory[i].dev);
	}
	if (!rc)
		rc = dmirror_memory_init(&h->exclusive, space, "dmirror exclusive", HMM_DEV_EXCLUSIVE);
	if (!rc)
		rc = hmm_mm_add_device(h->mm, &h->exclusive.dev);
	if (rc) {
		dmirror_host_close(h);
		return rc;
	}
	*hostp = h;
	return 0;
fail:
	umm_free(space, h, sizeof(*h));
	return rc;
}

int dmirror_host_close(struct dmirror_host *h)
{
	int rc;

	if (!h)
		return 0;
	rc = hmm_mm_close(h->mm);
	if (rc)
		return rc;
	for (unsigned i = 0; i < DMIRROR_DEVICES; i++)
		dmirror_memory_fini(&h->memory[i]);
	dmirror_memory_fini(&h->exclusive);
	umm_free(h->space, h, sizeof(*h));
	return 0;
}

struct hmm_mm *dmirror_host_mm(struct dmirror_host *h)
{
	return h->mm;
}

static int open_any(struct umm_space *space, struct dmirror_host *h, unsigned nr, struct dmirror **dmp)
{
	struct dmirror *dm = umm_alloc(space, sizeof(*dm));
	int rc = -ENOMEM;

	if (!dm)
		return -ENOMEM;
	dm->space = space;
	dm->pid = getpid();
	dm->host = h;
	dm->own = h ? &h->memory[nr].dev : NULL;
	dm->coherent = nr >= DMIRROR_PRIVATE;
	dm->bare.ops = &bare_ops;
	dm->root = node_new(space);
	if (!dm->root)
		goto fail;
	pthread_mutex_init(&dm->lock, NULL);
	pthread_cond_init(&dm->copied, NULL);
	pthread_mutex_init(&dm->grow, NULL);
	rc = hmm_range_open(space, h ? h->mm : NULL, h ? dm->own : &dm->bare, 0, ADDR_END, dm, &dm->range);
	if (rc)
		goto fail_root;
	*dmp = dm;
	return 0;
fail_root:
	pthread_mutex_destroy(&dm->grow);
	pthread_cond_destroy(&dm->copied);
	pthread_mutex_destroy(&dm->lock);
	node_free(dm->space, dm->root, LEVELS - 1);
fail:
	umm_free(space, dm, sizeof(*dm));
	return rc;
}

int dmirror_open_nr(struct dmirror_host *h, unsigned nr, struct dmirror **dmp)
{
	return nr < DMIRROR_DEVICES ? open_any(h->space, h, nr, dmp) : -ENODEV;
}

int dmirror_open(struct umm_space *space, struct dmirror **dmp)
{
	return open_any(space, NULL, 0, dmp);
}

void dmirror_close(struct dmirror *dm)
{
	if (!dm)
		return;
	dmirror_release(dm);
	if (dm->own)
		dmirror_memory_disown((struct dmirror_memory *)dm->own, &dm->flags);
	hmm_range_close(dm->range);
	pthread_mutex_destroy(&dm->grow);
	pthread_cond_destroy(&dm->copied);
	pthread_mutex_destroy(&dm->lock);
	node_free(dm->space, dm->root, LEVELS - 1);
	umm_free(dm->space, dm, sizeof(*dm));
}
