/* SPDX-License-Identifier: MIT */
/*
 * The registration cache: hmm_reg.h.
 *
 * DOC: who may do what
 *
 * Entries that may be served are in a tree, and do not overlap.  A hit:
 *
 *	is somebody applying an event that was read? wait for that (see below)
 *	lock; find an entry that covers it and is not LOST; a reference; unlock
 *
 * A callback of umm only marks an entry LOST, and takes no lock: who holds ours
 * may be interrupted by a handler that waits for the thread that runs the
 * callback.  hmm_range (map.c) does with the device what can be done there.
 * What is LOST is swept by whoever enters the cache next.
 *
 * Leaving the tree is "retiring".  A retired entry ends with its last reference;
 * references and that flag are one word, so that exactly one party sees it end.
 * Entries are never given back before the cache ends but kept for use again:
 * the table of recent finds may point to any of them, and looks under the lock
 * whether what it points to is what is wanted.
 *
 * DOC: raw calls
 *
 * A raw munmap() returns once its event was read, which is before it was
 * applied.  Who reads holds the event lock exclusively over both.  So a look at
 * that lock, before the look at the entry, tells whether there is something that
 * this thread may have caused and the entry does not know of.
 *
 * What has not been read yet that lock does not tell.  An unmap's event comes when
 * the addresses are free already: a thread that is given them may find the entry of
 * what was there.  The kernel knows, but must be asked (umm_space_sync_until()),
 * which takes many times what a hit does: only with HMM_REG_SYNC; or by who looks
 * once, before much is handed over, whether any of it is lost (hmm_reg_lost()).
 *
 * Only of memory that is watched the kernel tells: see watch_and_map().
 *
 * DOC: fork
 *
 * The cache lies in memory that a child finds wiped, so that a child is told
 * -ESTALE rather than served registrations of its parent's pages.
 *
 * DOC: locking
 *
 *	fill (one miss at a time) -> lock (tree, list, counts) -> that of a range
 *
 * The device is called with "fill" at most.
 */
#include <errno.h>
#include <stdatomic.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>

#include "hmm/internal.h"
#include "hmm_reg.h"
#include "umm/itree.h"

#define RETIRED 0x80000000u
#define ASIDE 256u
#define ADDR_MOST ((uint64_t)1 << 56)

struct entry {
	struct hmm_reg pub;
	struct umm_notifier node; /* its place in the tree, and nothing else of a notifier */
	_Atomic uint32_t refs;    /* with RETIRED */
	atomic_bool lost;
	bool system;                 /* nothing of it is left out (HMM_MAP_SYSTEM) */
	bool served;                 /* in tree and list; lock */
	bool swept;                  /* lost, and no longer counted as such; lock */
	struct entry *newer, *older; /* the list by last use; or older: of those that are free, or about to end */
	struct hmm_reg_cache *cache;
};

struct hmm_reg_cache {
	struct umm_space *space; /* NULL: this is a forked child */
	struct hmm_mm *mm;
	struct hmm_device *dev;
	struct hmm_reg_params params;
	pthread_mutex_t fill;
	pthread_mutex_t lock;
	struct umm_itree tree;
	struct entry *newest, *oldest;
	struct entry *free;
	struct hmm_reg_stats stats;
	_Atomic uint64_t nlost; /* marked and not yet swept */
	_Atomic uint64_t invalidated;
	atomic_bool crowded; /* over a limit, by what is in use */
	struct entry *aside[ASIDE];
};

static struct entry *entry_of_node(struct umm_notifier *n)
{
	return (struct entry *)((char *)n - offsetof(struct entry, node));
}

/* ------------------------------------------------------------ tree and list */

static void list_add(struct hmm_reg_cache *c, struct entry *e)
{
	e->newer = NULL;
	e->older = c->newest;
	if (c->newest)
		c->newest->newer = e;
	else
		c->oldest = e;
	c->newest = e;
}

static void list_del(struct hmm_reg_cache *c, struct entry *e)
{
	if (e->newer)
		e->newer->older = e->older;
	else
		c->newest = e->older;
	if (e->older)
		e->older->newer = e->newer;
	else
		c->oldest = e->newer;
}

/* HMM_MAP_* that it was mapped with. */
static unsigned flags_of(const struct entry *e)
{
	return (e->pub.write ? HMM_MAP_WRITE : 0) | (e->system ? HMM_MAP_SYSTEM : 0);
}

static bool covers(const struct entry *e, uint64_t start, uint64_t end, unsigned flags)
{
	return e->served && e->node.start <= start && e->node.end >= end && !(flags & ~flags_of(e));
}

/* Lock held. */
static struct entry *find(struct hmm_reg_cache *c, uint64_t start, uint64_t end, unsigned flags)
{
	struct entry **aside = &c->aside[(start / UMM_PAGE) % ASIDE];
	struct umm_itree_way way;
	struct umm_notifier *n;

	if (*aside && covers(*aside, start, end, flags))
		return *aside;
	n = umm_itree_first(&c->tree, start, start + 1, &way);
	if (!n || !covers(entry_of_node(n), start, end, flags))
		return NULL;
	*aside = entry_of_node(n);
	return *aside;
}

/* Lock held.  It is served no more; added to @dead when nobody uses it. */
static void retire(struct hmm_reg_cache *c, struct entry *e, struct entry **dead)
{
	umm_itree_remove(&c->tree, &e->node);
	list_del(c, e);
	e->served = false;
	c->stats.entries--;
	c->stats.bytes -= e->pub.end - e->pub.start;
	if (atomic_load(&e->lost)) {
		e->swept = true;
		atomic_fetch_sub(&c->nlost, 1);
	}
	if (atomic_fetch_or(&e->refs, RETIRED))
		return;
	e->older = *dead;
	*dead = e;
}

static void finish(struct hmm_reg_cache *c, struct entry *dead)
{
	while (dead) {
		struct entry *next = dead->older;

		hmm_range_close(dead->pub.range);
		pthread_mutex_lock(&c->lock);
		if (atomic_load(&dead->lost) && !dead->swept)
			atomic_fetch_sub(&c->nlost, 1);
		dead->older = c->free;
		c->free = dead;
		pthread_mutex_unlock(&c->lock);
		dead = next;
	}
}

static void count(struct hmm_reg_cache *c, uint64_t *what)
{
	pthread_mutex_lock(&c->lock);
	++*what;
	pthread_mutex_unlock(&c->lock);
}

/* Lock held. */
static bool is_crowded(const struct hmm_reg_cache *c)
{
	return (c->params.max_bytes && c->stats.bytes > c->params.max_bytes) ||
	       (c->params.max_entries && c->stats.entries > c->params.max_entries);
}

/* Lock held.  What is lost goes, and what nobody uses as far as limits ask for it, or all of it. */
static void sweep(struct hmm_reg_cache *c, bool all, struct entry **dead)
{
	struct entry *newer;

	for (struct entry *e = c->oldest; e; e = newer) {
		bool unused = !atomic_load(&e->refs);

		newer = e->newer;
		if (atomic_load(&e->lost) || (all && unused)) {
			retire(c, e, dead);
		} else if (unused && is_crowded(c)) {
			c->stats.evicted++;
			retire(c, e, dead);
		} else if (!all && !is_crowded(c) && !atomic_load(&c->nlost)) {
			break;
		}
	}
	atomic_store(&c->crowded, is_crowded(c));
}

static void sweep_now(struct hmm_reg_cache *c, bool all)
{
	struct entry *dead = NULL;

	pthread_mutex_lock(&c->lock);
	sweep(c, all, &dead);
	pthread_mutex_unlock(&c->lock);
	finish(c, dead);
}

/* ------------------------------------------------------------------ changes */

static bool mark_lost(struct entry *e)
{
	bool was = atomic_exchange(&e->lost, true);

	if (!was)
		atomic_fetch_add(&e->cache->nlost, 1);
	return !was;
}

static void entry_lost(struct hmm_range *range, const struct umm_change *why)
{
	struct entry *e = range->priv;

	if (mark_lost(e))
		atomic_fetch_add(&e->cache->invalidated, 1);
}

static const struct hmm_range_hooks entry_hooks = {.lost = entry_lost};

/* -------------------------------------------------------------------- misses */

static int watch(struct hmm_reg_cache *c, uint64_t start, uint64_t end, bool *watched)
{
	int rc = umm_space_watch_around(c->space, start, end);

	*watched = !rc;
	/* Emptied by raw calls, of which nobody is told. */
	if (umm_arena_meets(c->space->arena, start, end))
		return -EINVAL;
	return rc != -ENOMEM && rc != -EFAULT && (c->params.flags & HMM_REG_HOOKED) ? 0 : rc;
}

/*
 * What is mapped must be what is watched: a mapping that took the place of one
 * that was watched, after it was, is not.  So both are done again until nothing
 * has changed from before the one to after the other.
 */
static int watch_and_map(struct hmm_reg_cache *c, struct entry *e, unsigned flags, uint64_t deadline_ns, bool *watched)
{
	struct umm_notifier *n = hmm_range_notifier(e->pub.range);
	uint64_t seq;
	int rc;

	do {
		rc = umm_read_begin_until(n, deadline_ns, &seq);
		if (rc)
			return rc;
		rc = watch(c, e->pub.start, e->pub.end, watched);
		if (!rc)
			rc = hmm_range_map(e->pub.range, e->pub.start, e->pub.end, flags, deadline_ns);
		if (rc == -ETIME)
			return rc;
	} while (umm_read_retry(n, seq));
	return rc;
}

static struct entry *entry_new(struct hmm_reg_cache *c)
{
	struct entry *e;

	pthread_mutex_lock(&c->lock);
	e = c->free;
	if (e)
		c->free = e->older;
	pthread_mutex_unlock(&c->lock);
	return e ? e : umm_alloc(c->space, sizeof(*e));
}

/* Not served yet.  On success it has one reference. */
static int entry_open(struct hmm_reg_cache *c, uint64_t start, uint64_t end, unsigned flags, uint64_t deadline_ns,
		      struct entry **ep)
{
	struct entry *e = entry_new(c);
	bool watched = false;
	int rc;

	if (!e)
		return -ENOMEM;
	*e = (struct entry){.cache = c,
			    .pub = {.start = start, .end = end, .write = flags & HMM_MAP_WRITE},
			    .system = flags & HMM_MAP_SYSTEM};
	e->node.start = start;
	e->node.end = end;
	atomic_init(&e->refs, 1);
	rc = hmm_range_open(c->space, c->mm, c->dev, start, end, e, &e->pub.range);
	if (rc)
		goto fail;
	e->pub.range->hooks = &entry_hooks;
	rc = watch_and_map(c, e, flags, deadline_ns, &watched);
	if (rc)
		goto fail;
	if (!watched)
		count(c, &c->stats.unwatched);
	*ep = e;
	return 0;
fail:
	finish(c, e);
	return rc;
}

/* Lock held.  What [*start, *end) becomes together with what overlaps it, or adjoins and is not larger. */
static void widen(struct hmm_reg_cache *c, uint64_t *start, uint64_t *end, unsigned *flags)
{
	for (bool wider = true; wider;) {
		uint64_t a = *start ? *start - 1 : 0, z = *end + 1;
		struct umm_itree_way way;

		wider = false;
		for (struct umm_notifier *n = umm_itree_first(&c->tree, a, z, &way); n;
		     n = umm_itree_after(&c->tree, a, z, &way)) {
			struct entry *e = entry_of_node(n);
			uint64_t s = n->start < *start ? n->start : *start, t = n->end > *end ? n->end : *end;

			if (atomic_load(&e->lost))
				continue;
			/* Else who asks for the one and the other by turns registers it each time. */
			if (n->start == *start && n->end == *end)
				*flags |= flags_of(e);
			if (s == *start && t == *end)
				continue;
			if (c->params.max_bytes && t - s > c->params.max_bytes)
				continue;
			/* Else who goes through a large buffer registers all before it again with each step. */
			if ((n->end == *start || n->start == *end) && n->end - n->start > *end - *start)
				continue;
			*start = s;
			*end = t;
			*flags |= flags_of(e);
			wider = true;
		}
	}
}

/* Lock held.  @e takes the place of all that it overlaps. */
static void serve(struct hmm_reg_cache *c, struct entry *e, struct entry **dead)
{
	struct umm_itree_way way;
	struct umm_notifier *n;

	while ((n = umm_itree_first(&c->tree, e->node.start, e->node.end, &way))) {
		c->stats.merged += !atomic_load(&entry_of_node(n)->lost);
		retire(c, entry_of_node(n), dead);
	}
	umm_itree_insert(&c->tree, &e->node);
	list_add(c, e);
	e->served = true;
	c->stats.entries++;
	c->stats.bytes += e->pub.end - e->pub.start;
	sweep(c, false, dead);
}

/*
 * It has been mapped again.  LOST until here, so that nobody was served it; and
 * what was lost again meanwhile stays so, whichever of us came first.
 */
static bool unlose(struct hmm_reg_cache *c, struct entry *e)
{
	bool mapped;

	pthread_mutex_lock(&c->lock);
	atomic_store(&e->lost, false);
	mapped = hmm_range_mapped(e->pub.range, e->pub.start, e->pub.end, e->pub.write);
	if (mapped) {
		atomic_fetch_sub(&c->nlost, !e->swept);
		e->swept = false;
		c->stats.renewed++;
	} else if (atomic_exchange(&e->lost, true)) {
		atomic_fetch_sub(&c->nlost, 1); /* counted a second time, meanwhile */
	}
	pthread_mutex_unlock(&c->lock);
	return mapped;
}

/* Under fill: what is there already but was lost is mapped again.  True when that has done it. */
static bool renew(struct hmm_reg_cache *c, uint64_t start, uint64_t end, unsigned flags, uint64_t deadline_ns,
		  struct entry **ep)
{
	struct entry *e;
	bool watched;
	int rc;

	pthread_mutex_lock(&c->lock);
	e = find(c, start, end, flags);
	if (e)
		atomic_fetch_add(&e->refs, 1);
	pthread_mutex_unlock(&c->lock);
	if (!e)
		return false;
	if (atomic_load(&e->lost)) {
		rc = watch_and_map(c, e, flags | flags_of(e), deadline_ns, &watched);
		if (rc || !unlose(c, e)) {
			hmm_reg_put(c, &e->pub);
			sweep_now(c, false);
			return false;
		}
	}
	*ep = e;
	return true;
}

static int register_new(struct hmm_reg_cache *c, uint64_t start, uint64_t end, unsigned flags, uint64_t deadline_ns,
			struct entry **ep)
{
	uint64_t a = start, z = end;
	unsigned f = flags;
	struct entry *dead = NULL;
	/* Under fill nobody else inserts. */
	int rc = umm_itree_lock_for_one(&c->tree, c->space, &c->lock);

	if (rc)
		return rc;
	widen(c, &a, &z, &f);
	pthread_mutex_unlock(&c->lock);
	rc = entry_open(c, a, z, f, deadline_ns, ep);
	/* A neighbour that cannot be had any more, or not so, is no reason to fail. */
	if (rc && (a != start || z != end || f != flags))
		rc = entry_open(c, start, end, flags, deadline_ns, ep);
	if (rc)
		return rc;
	pthread_mutex_lock(&c->lock);
	serve(c, *ep, &dead);
	pthread_mutex_unlock(&c->lock);
	finish(c, dead);
	return 0;
}

static int miss(struct hmm_reg_cache *c, uint64_t start, uint64_t end, unsigned flags, uint64_t deadline_ns,
		struct entry **ep)
{
	int rc = 0;

	start &= ~(UMM_PAGE - 1);
	end = (end + UMM_PAGE - 1) & ~(UMM_PAGE - 1);
	pthread_mutex_lock(&c->fill);
	count(c, &c->stats.misses);
	if (!renew(c, start, end, flags, deadline_ns, ep)) {
		sweep_now(c, false);
		rc = register_new(c, start, end, flags, deadline_ns, ep);
	}
	if (rc)
		count(c, &c->stats.failed);
	pthread_mutex_unlock(&c->fill);
	return rc;
}

/* ---------------------------------------------------------------- interface */

int hmm_reg_get(struct hmm_reg_cache *c, const void *addr, size_t len, unsigned flags, uint64_t deadline_ns,
		struct hmm_reg **regp)
{
	uint64_t start = (uintptr_t)addr, end = start + len;
	struct entry *e;
	int rc;

	if (!c->space)
		return -ESTALE;
	if (end <= start || end > ADDR_MOST || (flags & ~(HMM_MAP_WRITE | HMM_MAP_SYSTEM)))
		return -EINVAL;
	if ((c->params.flags & HMM_REG_SYNC) || !umm_space_in_sync(c->space)) {
		rc = umm_space_sync_until(c->space, deadline_ns);
		if (rc)
			return rc;
	}
	pthread_mutex_lock(&c->lock);
	e = find(c, start, end, flags);
	if (e && !atomic_load(&e->lost)) {
		atomic_fetch_add_explicit(&e->refs, 1, memory_order_relaxed);
		if (c->newest != e) {
			list_del(c, e);
			list_add(c, e);
		}
		c->stats.hits++;
		pthread_mutex_unlock(&c->lock);
		*regp = &e->pub;
		return 0;
	}
	pthread_mutex_unlock(&c->lock);
	rc = miss(c, start, end, flags, deadline_ns, &e);
	if (!rc)
		*regp = &e->pub;
	return rc;
}

bool hmm_reg_lost(const struct hmm_reg *reg)
{
	const struct entry *e = (const struct entry *)reg;
	bool lost;

	/* Not in the middle of being found mapped again, or not (unlose()). */
	pthread_mutex_lock(&e->cache->lock);
	lost = atomic_load(&e->lost);
	pthread_mutex_unlock(&e->cache->lock);
	return lost;
}

void hmm_reg_put(struct hmm_reg_cache *c, struct hmm_reg *reg)
{
	struct entry *e = (struct entry *)reg;

	if (!c->space) /* a forked child does not even have the entry */
		return;
	if (atomic_fetch_sub(&e->refs, 1) == (RETIRED | 1)) {
		e->older = NULL;
		finish(c, e);
	}
	if (atomic_load_explicit(&c->nlost, memory_order_relaxed) ||
	    atomic_load_explicit(&c->crowded, memory_order_relaxed))
		sweep_now(c, false);
}

void hmm_reg_flush(struct hmm_reg_cache *c, bool all)
{
	if (c->space)
		sweep_now(c, all);
}

void hmm_reg_stats(struct hmm_reg_cache *c, struct hmm_reg_stats *st)
{
	pthread_mutex_lock(&c->lock);
	*st = c->stats;
	st->invalidated = atomic_load(&c->invalidated);
	st->lost = atomic_load(&c->nlost);
	pthread_mutex_unlock(&c->lock);
}

int hmm_reg_cache_open(struct umm_space *space, struct hmm_mm *mm, struct hmm_device *dev,
		       const struct hmm_reg_params *params, struct hmm_reg_cache **cachep)
{
	struct hmm_reg_cache *c;

	if (!(dev->ops->caps & HMM_DEV_MAP) || (params && (params->flags & ~(HMM_REG_HOOKED | HMM_REG_SYNC))))
		return -EINVAL;
	c = mmap(NULL, sizeof(*c), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (c == MAP_FAILED)
		return -ENOMEM;
	if (madvise(c, sizeof(*c), MADV_WIPEONFORK)) {
		munmap(c, sizeof(*c));
		return -EINVAL;
	}
	c->space = space;
	c->mm = mm;
	c->dev = dev;
	if (params)
		c->params = *params;
	pthread_mutex_init(&c->fill, NULL);
	pthread_mutex_init(&c->lock, NULL);
	*cachep = c;
	return 0;
}

void hmm_reg_cache_close(struct hmm_reg_cache *c)
{
	if (!c)
		return;
	if (c->space) {
		sweep_now(c, true);
		while (c->free) {
			struct entry *e = c->free;

			c->free = e->older;
			umm_free(c->space, e, sizeof(*e));
		}
		umm_itree_free(c->space, umm_itree_unused(&c->tree, true));
		pthread_mutex_destroy(&c->lock);
		pthread_mutex_destroy(&c->fill);
	}
	munmap(c, sizeof(*c));
}
