/* SPDX-License-Identifier: MIT */
/*
 * A range as a device maps it: hmm.h's hmm_range_...(), for every kind of device.
 *
 * DOC: mapping
 *
 * Per block of 2 MiB, as far as the device does not have it yet:
 *
 *	again:	seq = umm_read_begin_until(deadline)
 *		umm_range_fault() for what is lacking; -EBUSY: again
 *		lock
 *		umm_read_retry(seq): unlock, again
 *		the device maps; its pages are noted as mapped, and as new
 *		unlock
 *
 * The note of what is mapped ("sticky": it outlives the call) is one byte a
 * page, in leaves that appear when they are first needed and stay.  It is not
 * kept in the entries of the range that is faulted: these are written with no
 * lock held, and an invalidation meanwhile would be undone.  What is new when an
 * error ends the call is taken back, in all blocks.
 *
 * DOC: a device that does not fault
 *
 * What a change takes from it is marked LOST, and it stays stopped while anything
 * in the range is: mapping another part does not start it.  A page is lost no
 * more when a call that mapped it has succeeded, or has found it in the device's own
 * memory, or its owner has unmapped it.
 *
 * DOC: a device that pins
 *
 * Pinning may fault, and who serves faults may be about to run our callback: so
 * the device pins with no lock held, and the result counts only if nothing has
 * changed meanwhile; else it is dropped again, and the loop begins anew.  For the
 * same reason nothing is dropped in a late callback: the registration becomes
 * LOST, is used no more, and whoever comes next drops it.  A callback of a call
 * that waits for us (not late) waits for who is pinning, and drops by itself, so
 * that nothing is held of the old pages when that call goes on.  Nobody is told
 * when a write replaces a page (the zero page, or one that a fork has left
 * shared): where that can happen, the page is made ours before it is pinned.
 *
 * DOC: pages that the device has written to
 *
 * The device says so when it is unmapped.  They are marked by asking for them for
 * writing, which sets the dirty bit and clears a write protection that stands for
 * "not written".  That may fault, so no lock is held; of what a change leaves as it
 * is it is done in the callback.  Where that is late a fault would wait for who has
 * called, so it is noted for who asks hmm_written(), and the page table left alone.
 *
 * DOC: locking
 *
 *	turn (one map, unmap at a time) -> lock (notes, seq) -> the driver's
 *
 * "lock" is taken by callbacks, "turn" is not: a fault, a pin or a wait is under
 * "turn" at most.  Signals are blocked under "lock".
 */
#include <errno.h>
#include <string.h>
#include <time.h>

#include "hmm/internal.h"

#define BLOCK_SHIFT 21
#define BLOCK_PAGES HMM_MAP_RUN_MAX
#define BLOCK_BYTES ((uint64_t)1 << BLOCK_SHIFT)
#define MID_LEAVES 4096u
#define HUGE_ORDER 9u
#define NAP_NS 50000l

/* Of a page in a leaf. */
#define PAGE_MAPPED 0x01u
#define PAGE_WRITE 0x02u
#define PAGE_HUGE 0x04u /* by an entry for the whole block */
#define PAGE_NEW 0x08u  /* since the call that is under way began */
#define PAGE_LOST                                                                                                    \
	0x10u          /* a device that does not fault waits for it; with PAGE_NEW it is there, if the call succeeds \
			*/
#define PAGE_HAD 0x20u /* with PAGE_NEW: it was mapped before, too */

struct leaf {
	uint8_t page[BLOCK_PAGES];
};

struct mid {
	struct leaf *leaf[MID_LEAVES]; /* fewer where the range has fewer */
};

enum pin { PIN_NONE, PIN_HELD, PIN_LOST };

struct map {
	struct hmm_range pub;
	struct umm_notifier notifier;
	pthread_mutex_t turn;
	pthread_mutex_t lock;
	pthread_cond_t unpinned;
	/* lock */
	enum pin pin;
	bool pin_write;
	bool pinning;   /* or dropping what was pinned */
	unsigned owed;  /* starts of a device that was stopped and does not fault */
	uint64_t nlost; /* pages that are LOST; while there are any it is not started */
	/* Of a device that pins not: notes. */
	uint64_t base; /* of the first block */
	uint64_t nleaves;
	struct mid **top; /* added to under turn, read under lock */
};

static struct map *map_of(struct hmm_range *r)
{
	return (struct map *)r;
}

static struct map *map_of_notifier(struct umm_notifier *n)
{
	return (struct map *)((char *)n - offsetof(struct map, notifier));
}

static const struct hmm_device_ops *ops_of(const struct map *m)
{
	return m->pub.dev->ops;
}

static bool has(const struct map *m, uint32_t cap)
{
	return ops_of(m)->caps & cap;
}

static void nap(void)
{
	struct timespec ts = {.tv_nsec = NAP_NS};

	nanosleep(&ts, NULL);
}

/* --------------------------------------------------------------------- notes */

static uint64_t mids_of(const struct map *m)
{
	return (m->nleaves + MID_LEAVES - 1) / MID_LEAVES;
}

static size_t mid_size(const struct map *m)
{
	return (m->nleaves < MID_LEAVES ? m->nleaves : MID_LEAVES) * sizeof(struct leaf *);
}

static struct leaf *leaf_at(const struct map *m, uint64_t nr)
{
	struct mid *mid = __atomic_load_n(&m->top[nr / MID_LEAVES], __ATOMIC_ACQUIRE);

	return mid ? __atomic_load_n(&mid->leaf[nr % MID_LEAVES], __ATOMIC_ACQUIRE) : NULL;
}

/* The first leaf that there is from @*nr on, below @end; its number in @*nr. */
static struct leaf *leaf_next(const struct map *m, uint64_t *nr, uint64_t end)
{
	while (*nr < end) {
		struct leaf *leaf;

		if (!__atomic_load_n(&m->top[*nr / MID_LEAVES], __ATOMIC_ACQUIRE)) {
			*nr = (*nr | (MID_LEAVES - 1)) + 1;
			continue;
		}
		leaf = leaf_at(m, *nr);
		if (leaf)
			return leaf;
		++*nr;
	}
	return NULL;
}

/* Under turn: the leaf of block @nr, made if need be. */
static struct leaf *leaf_get(struct map *m, uint64_t nr)
{
	struct mid **mid = &m->top[nr / MID_LEAVES];
	struct leaf **leaf;

	if (!*mid) {
		struct mid *fresh = umm_alloc(m->pub.space, mid_size(m));

		if (!fresh)
			return NULL;
		__atomic_store_n(mid, fresh, __ATOMIC_RELEASE);
	}
	leaf = &(*mid)->leaf[nr % MID_LEAVES];
	if (!*leaf) {
		struct leaf *fresh = umm_alloc(m->pub.space, sizeof(*fresh));

		if (!fresh)
			return NULL;
		__atomic_store_n(leaf, fresh, __ATOMIC_RELEASE);
	}
	return *leaf;
}

static void leaves_free(struct map *m)
{
	struct umm_space *space = m->pub.space;

	for (uint64_t i = 0; i < mids_of(m); i++) {
		struct mid *mid = m->top[i];

		for (uint64_t k = 0; mid && k < mid_size(m) / sizeof(struct leaf *); k++)
			umm_free(space, mid->leaf[k], sizeof(struct leaf));
		umm_free(space, mid, mid_size(m));
	}
	umm_free(space, m->top, mids_of(m) * sizeof(*m->top));
}

static uint64_t block_nr(const struct map *m, uint64_t addr)
{
	return (addr - m->base) >> BLOCK_SHIFT;
}

static unsigned page_nr(uint64_t addr)
{
	return (unsigned)(addr >> 12) & (BLOCK_PAGES - 1);
}

/* Lock held.  Is anything of [start, end) mapped? */
static bool maps_any(const struct map *m, uint64_t start, uint64_t end)
{
	const uint64_t stop = block_nr(m, end - 1) + 1;
	struct leaf *leaf;

	for (uint64_t nr = block_nr(m, start); (leaf = leaf_next(m, &nr, stop)); nr++) {
		uint64_t at = m->base + (nr << BLOCK_SHIFT);
		unsigned i = start > at ? page_nr(start) : 0;
		unsigned z = end - at < BLOCK_BYTES ? page_nr(end) : BLOCK_PAGES;

		for (; i < z; i++)
			if (leaf->page[i] & PAGE_MAPPED)
				return true;
	}
	return false;
}

/* ------------------------------------------------------------ taking entries */

/* For hmm_written(), without a fault. */
static void note_run(struct map *m, uint64_t start, uint64_t end)
{
	struct hmm_mm *mm = m->pub.space->priv;

	if (!mm)
		return;
	pthread_mutex_lock(&mm->lock);
	hmm_written_moved(mm, start, end);
	pthread_mutex_unlock(&mm->lock);
}

/* What cannot be marked (gone, read-only by now, or being dropped at this moment) is noted, and keeps no other from it.
 */
static void mark_run(struct map *m, uint64_t start, uint64_t end)
{
	if (!umm_space_populate(m->pub.space, start, end - start, true))
		return;
	for (; start < end; start += UMM_PAGE)
		if (umm_space_populate(m->pub.space, start, UMM_PAGE, true))
			note_run(m, start, start + UMM_PAGE);
}

static void mark_written(struct map *m, uint64_t block, const uint64_t dirty[BLOCK_PAGES / 64])
{
	for (unsigned i = 0, z; i < BLOCK_PAGES; i = z + 1) {
		for (z = i; z < BLOCK_PAGES && (dirty[z / 64] >> z % 64 & 1);)
			z++;
		if (z > i)
			mark_run(m, block + i * UMM_PAGE, block + z * UMM_PAGE);
	}
}

/* The same without a fault, for hmm_written(). */
static void note_written(struct map *m, uint64_t block, const uint64_t dirty[BLOCK_PAGES / 64])
{
	struct hmm_mm *mm = m->pub.space->priv;

	if (!mm)
		return;
	pthread_mutex_lock(&mm->lock);
	for (unsigned i = 0, z; i < BLOCK_PAGES; i = z + 1) {
		for (z = i; z < BLOCK_PAGES && (dirty[z / 64] >> z % 64 & 1);)
			z++;
		if (z > i)
			hmm_written_moved(mm, block + i * UMM_PAGE, block + z * UMM_PAGE);
	}
	pthread_mutex_unlock(&mm->lock);
}

/* Whoever makes the change waits for us without a lock that a fault needs. */
static bool may_mark(const struct umm_change *why)
{
	return !why || (why->blockable && !why->late);
}

/* Contents stay as they are, and where they are. */
static bool contents_stay(const struct umm_change *why)
{
	return !why ||
	       (why->event != UMM_EVENT_CLEAR && why->event != UMM_EVENT_MIGRATE && why->event != UMM_EVENT_EXCLUSIVE);
}

static bool waits_for_pages(const struct map *m)
{
	return has(m, HMM_DEV_QUEUE) && !has(m, HMM_DEV_FAULT);
}

/* Lock held.  What stays noted of a page that is taken from the device. */
static uint8_t left_of(struct map *m, uint8_t st, const struct umm_change *why)
{
	if (!waits_for_pages(m) || (st & PAGE_LOST))
		return st & PAGE_LOST;
	/* An error takes back what this call had made writable: that is lost as well. */
	if (!why && (st & (PAGE_NEW | PAGE_HAD)) != (PAGE_NEW | PAGE_HAD))
		return 0;
	m->nlost++;
	return PAGE_LOST;
}

/* Lock held. */
static void start_if_whole(struct map *m)
{
	for (; m->owed && !m->nlost; m->owed--)
		ops_of(m)->start(m->pub.dev, &m->pub);
}

/* Lock held.  Take what @leaf has of pages [i, z) with a bit of @which from the device; @dirty: pages written to. */
static void drop_leaf(struct map *m, struct leaf *leaf, uint64_t block, unsigned i, unsigned z, uint8_t which,
		      const struct umm_change *why, uint64_t dirty[BLOCK_PAGES / 64])
{
	/* An entry for the whole block goes as a whole. */
	if (leaf->page[0] & PAGE_HUGE && leaf->page[0] & which) {
		i = 0;
		z = BLOCK_PAGES;
	}
	while (i < z) {
		uint64_t wrote[HMM_MAP_RUN_MAX / 64] = {0};
		uint8_t st = leaf->page[i];
		struct hmm_map_run run = {
			.addr = block + i * UMM_PAGE, .write = st & PAGE_WRITE, .huge = st & PAGE_HUGE};
		unsigned n = 1;

		if (!(st & which)) {
			i++;
			continue;
		}
		while (i + n < z && !((leaf->page[i + n] ^ st) & ~(PAGE_LOST | PAGE_HAD)))
			n++;
		run.npages = n;
		ops_of(m)->unmap(m->pub.dev, &m->pub, &run, why, wrote);
		for (unsigned k = 0; k < n; k++)
			leaf->page[i + k] = left_of(m, leaf->page[i + k], why);
		for (unsigned k = 0; k < n; k++) {
			unsigned bit = run.huge ? 0 : k;

			if (wrote[bit / 64] >> bit % 64 & 1)
				dirty[(i + k) / 64] |= 1ull << (i + k) % 64;
		}
		i += n;
	}
}

/*
 * Lock held; it is let go for moments.  Take [start, end) from the device, or
 * what of it has a bit of @which.  Returns pages that it had written to.
 */
static uint64_t drop(struct map *m, uint64_t start, uint64_t end, uint8_t which, const struct umm_change *why)
{
	const uint64_t stop = block_nr(m, end - 1) + 1;
	uint64_t count = 0;
	struct leaf *leaf;

	for (uint64_t nr = block_nr(m, start); (leaf = leaf_next(m, &nr, stop)); nr++) {
		uint64_t at = m->base + (nr << BLOCK_SHIFT), dirty[BLOCK_PAGES / 64] = {0}, n = 0;
		unsigned i = start > at ? page_nr(start) : 0;
		unsigned z = end - at < BLOCK_BYTES ? page_nr(end) : BLOCK_PAGES;

		drop_leaf(m, leaf, at, i, z, which, why, dirty);
		for (unsigned k = 0; k < BLOCK_PAGES / 64; k++)
			n += (unsigned)__builtin_popcountll(dirty[k]);
		count += n;
		/* But what went with it, for one entry had both, is where it was. */
		for (; !contents_stay(why) && i < z; i++) {
			n -= dirty[i / 64] >> i % 64 & 1;
			dirty[i / 64] &= ~(1ull << i % 64);
		}
		if (n && may_mark(why)) {
			pthread_mutex_unlock(&m->lock);
			mark_written(m, at, dirty);
			pthread_mutex_lock(&m->lock);
		} else if (n) {
			note_written(m, at, dirty);
		}
	}
	return count;
}

static bool settle(struct map *m, uint64_t start, uint64_t end, const struct umm_change *why)
{
	return !ops_of(m)->settle || ops_of(m)->settle(m->pub.dev, &m->pub, start, end, why);
}

/* Lock held at first, not in the end.  The same, with the device stopped meanwhile, and settled. */
static bool take(struct map *m, uint64_t start, uint64_t end, uint8_t which, const struct umm_change *why,
		 uint64_t *dirty)
{
	bool queue = has(m, HMM_DEV_QUEUE), any = maps_any(m, start, end), done;
	uint64_t n = 0;

	if (queue && any) {
		if (why && !why->blockable) {
			pthread_mutex_unlock(&m->lock);
			return false;
		}
		pthread_mutex_unlock(&m->lock);
		ops_of(m)->stop(m->pub.dev, &m->pub, why);
		pthread_mutex_lock(&m->lock);
	}
	/* Before anything is lost, for then it may be mapped again at once. */
	m->owed += any && waits_for_pages(m);
	if (any)
		n = drop(m, start, end, which, why);
	pthread_mutex_unlock(&m->lock);
	/* Also where nothing was mapped any more: who took it before us may not have waited. */
	done = settle(m, start, end, why);
	if (any && waits_for_pages(m)) {
		pthread_mutex_lock(&m->lock);
		start_if_whole(m);
		pthread_mutex_unlock(&m->lock);
	} else if (queue && any) {
		ops_of(m)->start(m->pub.dev, &m->pub);
	}
	if (dirty)
		*dirty = n;
	return done;
}

static void lost(struct map *m, const struct umm_change *why)
{
	if (m->pub.hooks && m->pub.hooks->lost)
		m->pub.hooks->lost(&m->pub, why);
}

/* ------------------------------------------------------------------ pinning */

static struct hmm_map_run whole(const struct map *m, bool write)
{
	return (struct hmm_map_run){
		.addr = m->pub.start, .npages = (m->pub.end - m->pub.start) / UMM_PAGE, .write = write};
}

/* Lock held, and let go while the device works. */
static void unpin(struct map *m, const struct umm_change *why)
{
	struct hmm_map_run run = whole(m, m->pin_write);

	m->pin = PIN_NONE;
	m->pinning = true;
	pthread_mutex_unlock(&m->lock);
	ops_of(m)->unmap(m->pub.dev, &m->pub, &run, why, NULL);
	pthread_mutex_lock(&m->lock);
	m->pinning = false;
	pthread_cond_broadcast(&m->unpinned);
}

/* Lock held at first, not in the end. */
static bool invalidate_pinned(struct map *m, const struct umm_change *why)
{
	bool held, later = why->late;

	if (why->event == UMM_EVENT_FORK && has(m, HMM_DEV_FORK_KEEPS)) {
		pthread_mutex_unlock(&m->lock);
		return true;
	}
	if (!later && !why->blockable && (m->pinning || m->pin != PIN_NONE)) {
		pthread_mutex_unlock(&m->lock);
		return false;
	}
	while (!later && m->pinning)
		pthread_cond_wait(&m->unpinned, &m->lock);
	held = m->pin == PIN_HELD;
	if (held) {
		m->pin = PIN_LOST;
		pthread_mutex_unlock(&m->lock);
		lost(m, why);
		pthread_mutex_lock(&m->lock);
	}
	while (!later && m->pinning) /* somebody else drops it */
		pthread_cond_wait(&m->unpinned, &m->lock);
	if (!later && m->pin == PIN_LOST)
		unpin(m, why);
	pthread_mutex_unlock(&m->lock);
	return true;
}

/* ----------------------------------------------------------------- notifier */

static bool map_invalidate(struct umm_notifier *n, const struct umm_change *why, uint64_t seq)
{
	struct map *m = map_of_notifier(n);
	uint64_t start = why->start > m->pub.start ? why->start : m->pub.start;
	uint64_t end = why->end < m->pub.end ? why->end : m->pub.end;
	bool any, done;

	if (why->blockable)
		pthread_mutex_lock(&m->lock);
	else if (pthread_mutex_trylock(&m->lock))
		return false;
	umm_notifier_set_seq(n, seq);
	if (has(m, HMM_DEV_PINNED))
		return invalidate_pinned(m, why);
	any = maps_any(m, start, end);
	done = take(m, start, end, PAGE_MAPPED, why, NULL);
	/* Who may not sleep has taken it all the same, and comes again: then there is nothing to be told of any more.
	 */
	if (any && (done || (!why->blockable && !has(m, HMM_DEV_QUEUE))))
		lost(m, why);
	return done;
}

static const struct umm_notifier_ops map_notifier_ops = {.invalidate = map_invalidate};

/* ------------------------------------------------------------------ mapping */

/* The pages of one block that are to be mapped, and what is known of them. */
struct wanted {
	struct map *m;
	struct leaf *leaf;
	uint64_t block, start, end; /* within the block */
	unsigned flags;             /* HMM_MAP_* */
	uint64_t deadline_ns;
	uint64_t seq;
	uint64_t entries[BLOCK_PAGES]; /* by number in the block; 0 of a page that needs nothing */
	struct hmm_device *where[BLOCK_PAGES];
	bool own; /* that says something */
};

static bool is_lacking(uint8_t st, unsigned flags)
{
	return !(st & PAGE_MAPPED) || ((flags & HMM_MAP_WRITE) && !(st & PAGE_WRITE));
}

/* What mappings say to pages that stay where they are, in the device's memory. */
static int permitted(struct umm_space *space, uint64_t start, uint64_t end, bool write)
{
	while (start < end) {
		struct umm_vma v;
		int rc = umm_vma_next(space, start, &v);

		if (rc == -ENOENT || (!rc && (v.start > start || !(v.flags & UMM_VMA_READ))))
			return -EFAULT;
		if (rc)
			return rc;
		if (write && !(v.flags & UMM_VMA_WRITE))
			return -EPERM;
		start = v.end;
	}
	return 0;
}

static int skip_own(struct wanted *w)
{
	struct hmm_range *r = &w->m->pub;
	int rc = 0;

	w->own = false;
	if (!r->mm || (r->dev->ops->caps & (HMM_DEV_MEMORY | HMM_DEV_COHERENT)) != HMM_DEV_MEMORY ||
	    (w->flags & HMM_MAP_SYSTEM) || w->end > HMM_ADDR_END)
		return 0;
	rc = hmm_where(r->mm, w->start, w->end, w->where, NULL);
	w->own = !rc;
	for (uint64_t at = w->start; !rc && at < w->end; at += UMM_PAGE) {
		if (w->where[(at - w->start) / UMM_PAGE] != r->dev)
			continue;
		if (w->entries[page_nr(at)])
			rc = permitted(r->space, at, at + UMM_PAGE, w->flags & HMM_MAP_WRITE);
		w->entries[page_nr(at)] = 0;
	}
	return rc;
}

/* What is lacking becomes requests in the entries.  Returns how much there is. */
static unsigned want(struct wanted *w)
{
	sigset_t old;
	unsigned n = 0;

	signals_block(&old);
	pthread_mutex_lock(&w->m->lock);
	for (uint64_t at = w->start; at < w->end; at += UMM_PAGE) {
		unsigned i = page_nr(at);
		bool lacking = is_lacking(w->leaf->page[i], w->flags);

		w->entries[i] = lacking ? UMM_PFN_REQ_FAULT | (w->flags & HMM_MAP_WRITE ? UMM_PFN_REQ_WRITE : 0) : 0;
		n += lacking;
	}
	pthread_mutex_unlock(&w->m->lock);
	signals_restore(&old);
	return n;
}

/* Bring in what is wanted, from the first such page to the last. */
static int fault_wanted(struct wanted *w)
{
	uint64_t start = w->start, end = w->end;
	uint64_t asked[BLOCK_PAGES / 64] = {0};
	struct umm_range range;
	int rc;

	while (start < end && !w->entries[page_nr(start)])
		start += UMM_PAGE;
	while (start < end && !w->entries[page_nr(end - UMM_PAGE)])
		end -= UMM_PAGE;
	if (start == end)
		return 0;
	for (uint64_t at = start; at < end; at += UMM_PAGE)
		if (w->entries[page_nr(at)])
			asked[page_nr(at) / 64] |= 1ull << page_nr(at) % 64;
	range = (struct umm_range){
		.space = w->m->pub.space,
		.notifier = &w->m->notifier,
		.notifier_seq = w->seq,
		.start = start,
		.end = end,
		.entries = &w->entries[page_nr(start)],
		.flags_mask = UMM_PFN_REQ_FAULT | UMM_PFN_REQ_WRITE,
		.deadline_ns = w->deadline_ns,
	};
	rc = umm_range_fault(&range);
	for (uint64_t at = start; at < end; at += UMM_PAGE)
		if (!(asked[page_nr(at) / 64] >> page_nr(at) % 64 & 1))
			w->entries[page_nr(at)] = 0;
	return rc;
}

static bool is_one_huge_page(const struct wanted *w)
{
	uint64_t same = UMM_PFN_VALID | UMM_PFN_WRITE | UMM_PFN_ORDER_MASK;

	if (!has(w->m, HMM_DEV_HUGE) || w->end - w->start < BLOCK_BYTES ||
	    (w->entries[0] & UMM_PFN_ORDER_MASK) >> UMM_PFN_ORDER_SHIFT < HUGE_ORDER)
		return false;
	for (unsigned i = 0; i < BLOCK_PAGES; i++)
		if ((w->entries[i] & same) != (w->entries[0] & same))
			return false;
	return true;
}

/* Lock held, and nothing has changed.  What the device has in its own memory by now it waits for no more. */
static void found_own(struct wanted *w)
{
	struct map *m = w->m;

	for (uint64_t at = w->start; w->own && m->nlost && at < w->end; at += UMM_PAGE) {
		uint8_t *st = &w->leaf->page[page_nr(at)];

		if ((*st & (PAGE_LOST | PAGE_MAPPED)) != PAGE_LOST ||
		    w->where[(at - w->start) / UMM_PAGE] != m->pub.dev)
			continue;
		*st &= (uint8_t)~PAGE_LOST;
		m->nlost--;
	}
}

/* Lock held.  @n pages of the block from @i on. */
static int enter(struct wanted *w, unsigned i, unsigned n, bool write, bool huge)
{
	struct map *m = w->m;
	struct hmm_map_run run = {.addr = w->block + i * UMM_PAGE, .npages = n, .write = write, .huge = huge};
	int rc = ops_of(m)->map(m->pub.dev, &m->pub, &run);

	for (unsigned k = i; !rc && k < i + n; k++) {
		uint8_t *st = &w->leaf->page[k], had = *st & (PAGE_NEW | PAGE_MAPPED);

		had = had == PAGE_MAPPED ? PAGE_HAD : *st & PAGE_HAD;
		*st = PAGE_MAPPED | PAGE_NEW | (*st & PAGE_LOST) | had | (write ? PAGE_WRITE : 0) |
		      (huge ? PAGE_HUGE : 0);
	}
	return rc;
}

/*
 * Lock held.  One entry maps the block, and @n pages from @i on are to become
 * writable: all get entries of their own, the others as they were.  A device
 * that must be stopped for it is.
 */
static int split(struct wanted *w, unsigned i, unsigned n)
{
	struct map *m = w->m;
	bool write = w->leaf->page[0] & PAGE_WRITE;
	struct hmm_map_run one = {.addr = w->block, .npages = BLOCK_PAGES, .write = write, .huge = true};
	uint64_t dirty[BLOCK_PAGES / 64] = {0}; /* it could not be written through */
	uint8_t was[BLOCK_PAGES];
	int rc = 0;

	memcpy(was, w->leaf->page, sizeof(was));
	ops_of(m)->unmap(m->pub.dev, &m->pub, &one, NULL, dirty);
	if (i)
		rc = enter(w, 0, i, write, false);
	if (!rc)
		rc = enter(w, i, n, true, false);
	if (!rc && i + n < BLOCK_PAGES)
		rc = enter(w, i + n, BLOCK_PAGES - i - n, write, false);
	/* What was there is as it was, and stays when the rest of the call fails. */
	for (unsigned k = 0; k < BLOCK_PAGES; k++) {
		uint8_t *st = &w->leaf->page[k];

		if (*st & PAGE_HUGE)
			*st = left_of(m, was[k] & PAGE_NEW ? was[k] : was[k] | PAGE_NEW | PAGE_HAD, NULL);
		else if ((k < i || k >= i + n) && !(was[k] & PAGE_NEW))
			*st &= (uint8_t) ~(PAGE_NEW | PAGE_HAD);
	}
	return rc;
}

static int map_run(struct wanted *w, unsigned i, unsigned n, bool write, bool huge)
{
	return !huge && (w->leaf->page[0] & PAGE_HUGE) ? split(w, i, n) : enter(w, i, n, write, huge);
}

/* Lock held, and what the entries say holds. */
static int map_wanted(struct wanted *w)
{
	int rc = 0;

	if (is_one_huge_page(w))
		return map_run(w, 0, BLOCK_PAGES, w->entries[0] & UMM_PFN_WRITE, true);
	for (uint64_t at = w->start; at < w->end && !rc;) {
		unsigned i = page_nr(at), n = 1, last = page_nr(w->end - UMM_PAGE);
		uint64_t e = w->entries[i];

		if (!(e & UMM_PFN_VALID)) {
			at += UMM_PAGE;
			continue;
		}
		while (i + n <= last && (w->entries[i + n] & UMM_PFN_VALID) &&
		       !((w->entries[i + n] ^ e) & UMM_PFN_WRITE))
			n++;
		rc = map_run(w, i, n, e & UMM_PFN_WRITE, false);
		at += n * UMM_PAGE;
	}
	return rc;
}

/* -EBUSY without an invalidation: contents are being dropped at this moment.  Let that go on. */
static void wait_a_little(struct map *m, uint64_t seq)
{
	if (!umm_read_retry(&m->notifier, seq))
		nap();
}

/* Before the lock: a huge entry of a device that has to be stopped is about to be split. */
static bool stop_to_split(struct wanted *w)
{
	struct map *m = w->m;

	/* Only who has the turn makes it huge. */
	if (!has(m, HMM_DEV_QUEUE) || !(__atomic_load_n(&w->leaf->page[0], __ATOMIC_RELAXED) & PAGE_HUGE))
		return false;
	ops_of(m)->stop(m->pub.dev, &m->pub, NULL);
	return true;
}

static int map_block(struct wanted *w)
{
	struct map *m = w->m;

	for (;;) {
		bool stopped;
		sigset_t old;
		int rc;

		rc = umm_read_begin_until(&m->notifier, w->deadline_ns, &w->seq);
		if (rc || !want(w))
			return rc;
		/* Before the fault: a page that came back in between is found there. */
		rc = skip_own(w);
		if (!rc)
			rc = fault_wanted(w);
		if (rc == -EBUSY) {
			wait_a_little(m, w->seq);
			continue;
		}
		if (rc)
			return rc;
		signals_block(&old);
		stopped = stop_to_split(w);
		pthread_mutex_lock(&m->lock);
		rc = umm_read_retry(&m->notifier, w->seq);
		if (!rc) {
			found_own(w);
			rc = map_wanted(w);
		}
		m->owed += stopped && waits_for_pages(m);
		if (stopped && !waits_for_pages(m))
			ops_of(m)->start(m->pub.dev, &m->pub);
		start_if_whole(m);
		pthread_mutex_unlock(&m->lock);
		signals_restore(&old);
		if (rc <= 0)
			return rc;
	}
}

/* Lock held.  Nothing of [start, end) is lost and not mapped again. */
static bool is_whole(const struct map *m, uint64_t start, uint64_t end)
{
	const uint64_t stop = block_nr(m, end - 1) + 1;
	struct leaf *leaf;

	for (uint64_t nr = block_nr(m, start); m->nlost && (leaf = leaf_next(m, &nr, stop)); nr++) {
		uint64_t at = m->base + (nr << BLOCK_SHIFT);
		unsigned i = start > at ? page_nr(start) : 0;
		unsigned z = end - at < BLOCK_BYTES ? page_nr(end) : BLOCK_PAGES;

		for (; i < z; i++)
			if ((leaf->page[i] & (PAGE_LOST | PAGE_MAPPED)) == PAGE_LOST)
				return false;
	}
	return true;
}

/* Lock held.  Pages of [start, end), or those of them that have a bit of @which, are lost no more. */
static void found(struct map *m, uint64_t start, uint64_t end, uint8_t which)
{
	const uint64_t stop = block_nr(m, end - 1) + 1;
	struct leaf *leaf;

	for (uint64_t nr = block_nr(m, start); (leaf = leaf_next(m, &nr, stop)); nr++) {
		uint64_t at = m->base + (nr << BLOCK_SHIFT);
		unsigned i = start > at ? page_nr(start) : 0;
		unsigned z = end - at < BLOCK_BYTES ? page_nr(end) : BLOCK_PAGES;

		for (; i < z; i++) {
			if ((leaf->page[i] & PAGE_LOST) && (leaf->page[i] & which)) {
				leaf->page[i] &= (uint8_t)~PAGE_LOST;
				m->nlost--;
			}
		}
	}
}

/*
 * What is new in [start, end) is as anything mapped now, or it goes.  False: not
 * yet, a page was lost meanwhile without which the device must not start.
 */
static bool conclude(struct map *m, uint64_t start, uint64_t end, bool success)
{
	/* A huge entry that was split, or has taken the place of others, reaches beyond. */
	const uint64_t first = block_nr(m, start), stop = block_nr(m, end - 1) + 1;
	struct leaf *leaf;
	bool done = true;
	sigset_t old;

	signals_block(&old);
	pthread_mutex_lock(&m->lock);
	if (!success) {
		take(m, start, end, PAGE_NEW, NULL, NULL);
	} else {
		done = is_whole(m, start, end);
		if (done && m->nlost)
			found(m, start, end, PAGE_NEW);
		for (uint64_t nr = first; done && (leaf = leaf_next(m, &nr, stop)); nr++)
			for (unsigned i = 0; i < BLOCK_PAGES; i++)
				leaf->page[i] &= (uint8_t) ~(PAGE_NEW | PAGE_HAD);
		start_if_whole(m);
		pthread_mutex_unlock(&m->lock);
	}
	signals_restore(&old);
	return done;
}

/* Once more for what went while the rest was mapped: a device that does not fault is not started without it. */
static int map_blocks(struct map *m, uint64_t start, uint64_t end, unsigned flags, uint64_t deadline_ns)
{
	struct wanted w = {.m = m, .flags = flags, .deadline_ns = deadline_ns};
	bool done;
	int rc = 0;

	do {
		for (uint64_t at = start; at < end && !rc; at = w.end) {
			w.block = at & ~(BLOCK_BYTES - 1);
			w.start = at;
			w.end = end - w.block < BLOCK_BYTES ? end : w.block + BLOCK_BYTES;
			w.leaf = leaf_get(m, block_nr(m, at));
			rc = w.leaf ? map_block(&w) : -ENOMEM;
		}
		done = conclude(m, start, end, !rc);
		if (!done && deadline_ns && umm_now_ns() >= deadline_ns) {
			rc = -ETIME;
			done = conclude(m, start, end, false);
		}
	} while (!done);
	return rc;
}

/* Pages of a block that a write would replace by copies: the device would be left with what was there before. */
static int want_own_pages(struct wanted *w)
{
	for (uint64_t at = w->start; at < w->end;) {
		struct umm_vma v;
		uint64_t stop;
		int rc = umm_vma_next(w->m->pub.space, at, &v);

		if (rc == -ENOENT || (!rc && v.start > at))
			return -EFAULT;
		if (rc)
			return rc;
		stop = v.end < w->end ? v.end : w->end;
		for (; at < stop; at += UMM_PAGE)
			if ((v.flags & (UMM_VMA_WRITE | UMM_VMA_SHARED)) == UMM_VMA_WRITE)
				w->entries[page_nr(at)] |= UMM_PFN_REQ_WRITE;
	}
	return 0;
}

/* Fault in all that is about to be pinned: the errors that a caller can tell apart come from here. */
static int fault_whole(struct map *m, unsigned flags, uint64_t deadline_ns, uint64_t seq)
{
	struct wanted w = {.m = m, .flags = flags, .deadline_ns = deadline_ns, .seq = seq};
	int rc = 0;

	for (uint64_t at = m->pub.start; at < m->pub.end && !rc; at = w.end) {
		w.block = at & ~(BLOCK_BYTES - 1);
		w.start = at;
		w.end = m->pub.end - w.block < BLOCK_BYTES ? m->pub.end : w.block + BLOCK_BYTES;
		for (uint64_t p = at; p < w.end; p += UMM_PAGE)
			w.entries[page_nr(p)] = UMM_PFN_REQ_FAULT | (flags & HMM_MAP_WRITE ? UMM_PFN_REQ_WRITE : 0);
		rc = want_own_pages(&w);
		if (!rc)
			rc = fault_wanted(&w);
	}
	return rc;
}

static int map_pinned(struct map *m, unsigned flags, uint64_t deadline_ns)
{
	struct hmm_map_run run = whole(m, flags & HMM_MAP_WRITE);
	bool again = true;
	sigset_t old;
	int rc = 0;

	while (again && !rc) {
		uint64_t seq;

		rc = umm_read_begin_until(&m->notifier, deadline_ns, &seq);
		if (rc)
			break;
		signals_block(&old);
		pthread_mutex_lock(&m->lock);
		again = m->pin != PIN_HELD || (run.write && !m->pin_write);
		while (again && m->pinning)
			pthread_cond_wait(&m->unpinned, &m->lock);
		if (again && m->pin != PIN_NONE)
			unpin(m, NULL);
		pthread_mutex_unlock(&m->lock);
		signals_restore(&old);
		if (!again)
			break;
		rc = fault_whole(m, flags, deadline_ns, seq);
		if (rc == -EBUSY) {
			wait_a_little(m, seq);
			rc = 0;
			continue;
		}
		if (rc)
			break;
		signals_block(&old);
		pthread_mutex_lock(&m->lock);
		if (umm_read_retry(&m->notifier, seq))
			goto unlock;
		/* From here on a change that the hooks see waits for us: one of a handler's would wait for itself. */
		m->pinning = true;
		pthread_mutex_unlock(&m->lock);
		rc = ops_of(m)->map(m->pub.dev, &m->pub, &run);
		pthread_mutex_lock(&m->lock);
		m->pinning = false;
		m->pin_write = run.write;
		if (rc && umm_read_retry(&m->notifier, seq)) {
			rc = 0; /* it may have failed for the change */
		} else if (!rc && umm_read_retry(&m->notifier, seq)) {
			unpin(m, NULL);
		} else if (!rc) {
			m->pin = PIN_HELD;
			again = false;
		}
		pthread_cond_broadcast(&m->unpinned);
	unlock:
		pthread_mutex_unlock(&m->lock);
		signals_restore(&old);
	}
	return rc;
}

static bool part_is_good(const struct map *m, uint64_t start, uint64_t end)
{
	return start < end && !((start | end) % UMM_PAGE) && start >= m->pub.start && end <= m->pub.end;
}

static int take_turn(struct map *m, uint64_t deadline_ns)
{
	const struct timespec until = {(time_t)(deadline_ns / 1000000000u), (long)(deadline_ns % 1000000000u)};

	if (!deadline_ns)
		return -pthread_mutex_lock(&m->turn);
	return pthread_mutex_clocklock(&m->turn, CLOCK_MONOTONIC, &until) ? -ETIME : 0;
}

int hmm_range_map(struct hmm_range *r, uint64_t start, uint64_t end, unsigned flags, uint64_t deadline_ns)
{
	struct map *m = map_of(r);
	int rc;

	if (!part_is_good(m, start, end) || (flags & ~(HMM_MAP_WRITE | HMM_MAP_SYSTEM)))
		return -EINVAL;
	if (has(m, HMM_DEV_PINNED) && (start != r->start || end != r->end))
		return -EINVAL;
	rc = take_turn(m, deadline_ns);
	if (rc)
		return rc;
	rc = has(m, HMM_DEV_PINNED) ? map_pinned(m, flags, deadline_ns) : map_blocks(m, start, end, flags, deadline_ns);
	pthread_mutex_unlock(&m->turn);
	return rc;
}

int hmm_range_unmap(struct hmm_range *r, uint64_t start, uint64_t end, uint64_t *dirty)
{
	struct map *m = map_of(r);
	sigset_t old;

	if (dirty)
		*dirty = 0;
	if (!part_is_good(m, start, end))
		return -EINVAL;
	take_turn(m, 0);
	signals_block(&old);
	pthread_mutex_lock(&m->lock);
	if (!has(m, HMM_DEV_PINNED)) {
		found(m, start, end, PAGE_LOST);
		start_if_whole(m);
		take(m, start, end, PAGE_MAPPED, NULL, dirty);
	} else {
		while (m->pinning)
			pthread_cond_wait(&m->unpinned, &m->lock);
		if (m->pin != PIN_NONE)
			unpin(m, NULL);
		pthread_mutex_unlock(&m->lock);
	}
	signals_restore(&old);
	pthread_mutex_unlock(&m->turn);
	return 0;
}

bool hmm_range_mapped(struct hmm_range *r, uint64_t start, uint64_t end, bool write)
{
	struct map *m = map_of(r);
	bool all;
	sigset_t old;

	if (!part_is_good(m, start, end))
		return false;
	signals_block(&old);
	pthread_mutex_lock(&m->lock);
	all = !has(m, HMM_DEV_PINNED) || (m->pin == PIN_HELD && (!write || m->pin_write));
	for (uint64_t at = start; !has(m, HMM_DEV_PINNED) && all && at < end; at += UMM_PAGE) {
		struct leaf *leaf = leaf_at(m, block_nr(m, at));

		all = leaf && !is_lacking(leaf->page[page_nr(at)], write ? HMM_MAP_WRITE : 0);
	}
	pthread_mutex_unlock(&m->lock);
	signals_restore(&old);
	return all;
}

struct umm_notifier *hmm_range_notifier(struct hmm_range *r)
{
	return &map_of(r)->notifier;
}

/* --------------------------------------------------------------------- life */

static bool device_is_good(const struct hmm_device *dev)
{
	const struct hmm_device_ops *ops = dev->ops;

	return (ops->caps & HMM_DEV_MAP) && ops->map && ops->unmap &&
	       (!(ops->caps & HMM_DEV_QUEUE) || (ops->stop && ops->start)) &&
	       (!(ops->caps & HMM_DEV_PINNED) || !(ops->caps & (HMM_DEV_HUGE | HMM_DEV_QUEUE)));
}

int hmm_range_open(struct umm_space *space, struct hmm_mm *mm, struct hmm_device *dev, uint64_t start, uint64_t end,
		   void *priv, struct hmm_range **rangep)
{
	struct map *m;
	int rc = -ENOMEM;

	if (start >= end || ((start | end) % UMM_PAGE) || end > 1ull << 56 || !device_is_good(dev))
		return -EINVAL;
	m = umm_alloc(space, sizeof(*m));
	if (!m)
		return -ENOMEM;
	m->pub = (struct hmm_range){.space = space, .mm = mm, .dev = dev, .start = start, .end = end, .priv = priv};
	if (!has(m, HMM_DEV_PINNED)) {
		m->base = start & ~(BLOCK_BYTES - 1);
		m->nleaves = block_nr(m, end - 1) + 1;
		m->top = umm_alloc(space, mids_of(m) * sizeof(*m->top));
		if (!m->top)
			goto fail;
	}
	pthread_mutex_init(&m->turn, NULL);
	pthread_mutex_init(&m->lock, NULL);
	pthread_cond_init(&m->unpinned, NULL);
	rc = umm_notifier_insert(&m->notifier, space, start, end - start, &map_notifier_ops);
	if (rc)
		goto fail_locks;
	*rangep = &m->pub;
	return 0;
fail_locks:
	pthread_cond_destroy(&m->unpinned);
	pthread_mutex_destroy(&m->lock);
	pthread_mutex_destroy(&m->turn);
	umm_free(space, m->top, mids_of(m) * sizeof(*m->top));
fail:
	umm_free(space, m, sizeof(*m));
	return rc;
}

void hmm_range_close(struct hmm_range *r)
{
	struct map *m;

	if (!r)
		return;
	m = map_of(r);
	hmm_range_unmap(r, r->start, r->end, NULL);
	umm_notifier_remove(&m->notifier);
	if (ops_of(m)->forget)
		ops_of(m)->forget(r->dev, r);
	pthread_cond_destroy(&m->unpinned);
	pthread_mutex_destroy(&m->lock);
	pthread_mutex_destroy(&m->turn);
	if (m->top)
		leaves_free(m);
	umm_free(r->space, m, sizeof(*m));
}
