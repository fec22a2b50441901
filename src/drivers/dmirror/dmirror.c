/* SPDX-License-Identifier: MIT */
/*
 * The reference driver: a software device with a page table of its own.
 *
 * DOC: how it stays right
 *
 * dm->lock is "the driver's lock" of umm.h.  An entry of the table is put in
 * under it, after umm_read_retry() has said that what the entry stands for
 * still holds; it is dropped under it by the callback; and the device copies
 * through it under it.  So while a copy runs, an invalidation of that page
 * waits for it, and when the invalidation goes on, no entry is left.
 *
 * Memory can go away without anybody being told in time (a raw munmap of a
 * range that is not watched, mprotect).  The device is in software and copies
 * through the kernel (process_vm_readv and _writev on ourselves), which checks
 * every access: such an entry is found out when it is used, and its page is
 * faulted again, which renews the entry or gives the caller the error.
 *
 * Nodes of the table are mapped before the lock is taken and are never taken
 * out, so that neither the callback nor who holds the lock allocates.
 *
 * Data go through a buffer of our own: the caller's may itself be part of what
 * is mirrored, and is touched with no lock held.
 */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "drivers/dmirror/dmirror.h"

#define PAGE_SHIFT 12
#define PAGE_SIZE ((uint64_t)1 << PAGE_SHIFT)
#define NODE_BITS 9
#define NODE_SLOTS (1u << NODE_BITS)
#define LEVELS 4 /* 9 bits each over the page: 48 bits of address */
#define ADDR_END ((uint64_t)1 << (PAGE_SHIFT + LEVELS * NODE_BITS))
#define FAULT_PAGES 512u               /* in one range */
#define COPY_BYTES ((uint64_t)1 << 20) /* most in one copy: an invalidation waits that long */
#define PATIENCE_NS 10000000000ull

/* A page table: slots are nodes, at the last level the flags of an entry (UMM_PFN_VALID, UMM_PFN_WRITE). */
struct node {
	union {
		struct node *child[NODE_SLOTS];
		uint64_t entry[NODE_SLOTS];
	};
};

struct dmirror {
	struct umm_notifier notifier; /* of all there is */
	struct umm_space *space;
	pid_t pid;
	pthread_mutex_t lock; /* the driver's: entries */
	pthread_mutex_t grow; /* before lock: who adds nodes */
	struct node *root;
};

/* ------------------------------------------------------------ device's table */

static unsigned slot_of(uint64_t addr, unsigned level)
{
	return (addr >> (PAGE_SHIFT + level * NODE_BITS)) & (NODE_SLOTS - 1);
}

static struct node *node_new(void)
{
	struct node *n =
		mmap(NULL, sizeof(*n), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

	return n == MAP_FAILED ? NULL : n;
}

static void node_free(struct node *n, unsigned level)
{
	for (unsigned i = 0; level && i < NODE_SLOTS; i++)
		if (n->child[i])
			node_free(n->child[i], level - 1);
	munmap(n, sizeof(*n));
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
				struct node *fresh = node_new();

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

/* ----------------------------------------------------------------- notifier */

static bool dmirror_invalidate(struct umm_notifier *n, const struct umm_change *change, uint64_t seq)
{
	struct dmirror *dm = (struct dmirror *)n;

	if (change->blockable)
		pthread_mutex_lock(&dm->lock);
	else if (pthread_mutex_trylock(&dm->lock))
		return false;
	umm_notifier_set_seq(n, seq);
	table_drop(dm->root, LEVELS - 1, 0, change->start, change->end < ADDR_END ? change->end : ADDR_END);
	pthread_mutex_unlock(&dm->lock);
	return true;
}

static const struct umm_notifier_ops dmirror_notifier_ops = {.invalidate = dmirror_invalidate};

/* ----------------------------------------------------------------- faulting */

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

/*
 * The loop that every driver has: see umm.h.  On success the lock is held, and
 * until it is dropped the range is as its entries say.
 */
static int range_lock(struct dmirror *dm, struct umm_range *range, bool fault)
{
	for (;;) {
		int rc = 0;

		if (now_ns() >= range->deadline_ns)
			return -EBUSY;
		range->notifier_seq = umm_read_begin(&dm->notifier);
		rc = fault ? umm_range_fault(range) : umm_range_snapshot(range);
		if (rc == -EBUSY)
			continue;
		if (rc)
			return rc == -ETIME ? -EBUSY : rc;
		pthread_mutex_lock(&dm->lock);
		if (!umm_read_retry(&dm->notifier, range->notifier_seq))
			return 0;
		pthread_mutex_unlock(&dm->lock);
	}
}

/* Bring [start, end) into the device's table. */
static int dmirror_fault(struct dmirror *dm, uint64_t start, uint64_t end, bool write, uint64_t deadline_ns)
{
	uint64_t entries[FAULT_PAGES];
	struct umm_range range = {
		.space = dm->space,
		.notifier = &dm->notifier,
		.entries = entries,
		.default_flags = UMM_PFN_REQ_FAULT | (write ? UMM_PFN_REQ_WRITE : 0),
		.deadline_ns = deadline_ns,
	};
	int rc = table_grow(dm, start, end);

	for (; !rc && start < end; start = range.end) {
		uint64_t most = FAULT_PAGES * PAGE_SIZE;

		range.start = start;
		range.end = end - start < most ? end : start + most;
		rc = range_lock(dm, &range, true);
		if (rc)
			break;
		for (uint64_t addr = start; addr < range.end; addr += PAGE_SIZE)
			*table_entry(dm, addr) = entries[(addr - start) / PAGE_SIZE] & (UMM_PFN_VALID | UMM_PFN_WRITE);
		pthread_mutex_unlock(&dm->lock);
	}
	return rc;
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
		uint64_t stop = pos, got, *e;

		pthread_mutex_lock(&dm->lock);
		while (stop < end && stop - pos < COPY_BYTES && (e = table_entry(dm, stop)) && (*e & need) == need)
			stop += PAGE_SIZE;
		got = copy_checked(dm, buf + (pos - addr), pos, stop - pos, write) & -PAGE_SIZE;
		pthread_mutex_unlock(&dm->lock);
		if (!got)
			break;
		pos += got;
	}
	return pos;
}

static int dmirror_copy(struct dmirror *dm, char *buf, uint64_t addr, uint64_t len, bool write, uint64_t *faults)
{
	uint64_t pos = addr, end = addr + len, seen = addr, rounds = 0;
	uint64_t deadline = now_ns() + PATIENCE_NS;

	for (;;) {
		int rc;

		pos = copy_through_table(dm, buf, addr, pos, end, write);
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

static char *buffer_new(uint64_t len)
{
	/* Populated: the kernel writes it while the lock is held. */
	char *buf = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

	return buf == MAP_FAILED ? NULL : buf;
}

int dmirror_read(struct dmirror *dm, uint64_t addr, void *ptr, uint64_t npages, uint64_t *faults)
{
	uint64_t len = npages * PAGE_SIZE, rounds;
	char *buf;
	int rc;

	if (!range_is_good(addr, npages))
		return -EINVAL;
	buf = buffer_new(len);
	if (!buf)
		return -ENOMEM;
	rc = dmirror_copy(dm, buf, addr, len, false, &rounds);
	if (!rc && copy_checked(dm, buf, (uintptr_t)ptr, len, true) < len)
		rc = -EFAULT;
	if (!rc && faults)
		*faults = rounds;
	munmap(buf, len);
	return rc;
}

int dmirror_write(struct dmirror *dm, uint64_t addr, const void *ptr, uint64_t npages, uint64_t *faults)
{
	uint64_t len = npages * PAGE_SIZE;
	char *buf;
	int rc = -EFAULT;

	if (!range_is_good(addr, npages))
		return -EINVAL;
	buf = buffer_new(len);
	if (!buf)
		return -ENOMEM;
	if (copy_checked(dm, buf, (uintptr_t)ptr, len, false) == len)
		rc = dmirror_copy(dm, buf, addr, len, true, faults);
	munmap(buf, len);
	return rc;
}

/* ---------------------------------------------------------------- snapshots */

static uint8_t describe(uint64_t e)
{
	unsigned order = (e & UMM_PFN_ORDER_MASK) >> UMM_PFN_ORDER_SHIFT;
	uint8_t what;

	if (e & UMM_PFN_ERROR)
		return DMIRROR_ERROR;
	if (!(e & UMM_PFN_VALID))
		return DMIRROR_NONE;
	what = e & UMM_PFN_WRITE ? DMIRROR_WRITE : DMIRROR_READ;
	if (order == 2 * NODE_BITS)
		return what | DMIRROR_PUD;
	/* The huge zero page is not "the" zero page. */
	if (order == NODE_BITS)
		return what | DMIRROR_PMD;
	return e & UMM_PFN_ZERO ? what | DMIRROR_ZERO : what;
}

int dmirror_snapshot(struct dmirror *dm, uint64_t addr, uint8_t *ptr, uint64_t npages)
{
	uint64_t entries[FAULT_PAGES], end = addr + npages * PAGE_SIZE;
	struct umm_range range = {.space = dm->space, .notifier = &dm->notifier, .entries = entries};
	uint8_t *buf;
	int rc = 0;

	if (!range_is_good(addr, npages))
		return -EINVAL;
	buf = (uint8_t *)buffer_new(npages);
	if (!buf)
		return -ENOMEM;
	for (uint64_t start = addr; start < end; start = range.end) {
		uint64_t most = FAULT_PAGES * PAGE_SIZE;

		range.start = start;
		range.end = end - start < most ? end : start + most;
		range.deadline_ns = now_ns() + PATIENCE_NS;
		rc = range_lock(dm, &range, false);
		if (rc)
			goto out;
		for (uint64_t i = 0; i < (range.end - start) / PAGE_SIZE; i++)
			buf[(start - addr) / PAGE_SIZE + i] = describe(entries[i]);
		pthread_mutex_unlock(&dm->lock);
	}
	if (copy_checked(dm, buf, (uintptr_t)ptr, npages, true) < npages)
		rc = -EFAULT;
out:
	munmap(buf, npages);
	return rc;
}

/* --------------------------------------------------------------------- life */

int dmirror_open(struct umm_space *space, struct dmirror **dmp)
{
	struct dmirror *dm = calloc(1, sizeof(*dm));
	int rc = -ENOMEM;

	if (!dm)
		return -ENOMEM;
	dm->space = space;
	dm->pid = getpid();
	dm->root = node_new();
	if (!dm->root)
		goto fail;
	pthread_mutex_init(&dm->lock, NULL);
	pthread_mutex_init(&dm->grow, NULL);
	rc = umm_notifier_insert(&dm->notifier, space, 0, ADDR_END, &dmirror_notifier_ops);
	if (rc)
		goto fail_root;
	*dmp = dm;
	return 0;
fail_root:
	pthread_mutex_destroy(&dm->grow);
	pthread_mutex_destroy(&dm->lock);
	node_free(dm->root, LEVELS - 1);
fail:
	free(dm);
	return rc;
}

void dmirror_close(struct dmirror *dm)
{
	if (!dm)
		return;
	umm_notifier_remove(&dm->notifier);
	pthread_mutex_destroy(&dm->grow);
	pthread_mutex_destroy(&dm->lock);
	node_free(dm->root, LEVELS - 1);
	free(dm);
}
