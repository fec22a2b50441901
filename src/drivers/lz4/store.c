/* SPDX-License-Identifier: MIT */
#include "drivers/lz4/store.h"

#include <errno.h>
#include <sched.h>
#include <string.h>

#define LOC_MASK (((uint64_t)1 << 35) - 1)
#define PIN_ONE ((uint64_t)1 << 35)
#define PIN_MASK ((uint64_t)0xff << 35)
#define REF_ONE ((uint64_t)1 << 43)
#define REF_MASK ((uint64_t)0xfffff << 43)
#define LOCKED ((uint64_t)1 << 63)

#define NO_INDEX UINT64_MAX
#define TABLE_PAGE 512u /* entries */
#define MOVE_BATCH 32u  /* objects moved before the class's lock is let go */

static inline _Atomic uint64_t *entry(const struct lz4_store *st, uint64_t index)
{
	return (_Atomic uint64_t *)st->table.base + index;
}

/* What is waited for takes a microsecond or two, unless its thread lost the CPU. */
static void relax(unsigned *spins)
{
	if (++*spins % 64)
#if defined(__x86_64__)
		__builtin_ia32_pause();
#else
		atomic_signal_fence(memory_order_seq_cst);
#endif
	else
		sched_yield();
}

int lz4_store_init(struct lz4_store *st, struct drv_ram *ram, uint64_t bytes)
{
	uint64_t entries;
	int rc;

	rc = lz4_slabs_init(&st->slabs, ram, bytes);
	if (rc)
		return rc;
	/* As many objects as there is room for the smallest; the index must fit the object's head. */
	entries = (uint64_t)st->slabs.limit << LZ4_SLOT_BITS;
	if (entries > UINT32_MAX)
		entries = UINT32_MAX;
	rc = drv_area_reserve(&st->table, entries * 8);
	if (rc) {
		lz4_slabs_exit(&st->slabs);
		return rc;
	}
	st->ram = ram;
	st->free = NO_INDEX;
	pthread_mutex_init(&st->lock, NULL);
	pthread_mutex_init(&st->compact, NULL);
	return 0;
}

void lz4_store_exit(struct lz4_store *st)
{
	pthread_mutex_destroy(&st->compact);
	pthread_mutex_destroy(&st->lock);
	drv_area_release(&st->table);
	lz4_slabs_exit(&st->slabs);
}

/* ----------------------------------------------------------------- entries */

/* The entry comes locked, so that compaction leaves its slot alone while it is filled. */
static bool entry_alloc(struct lz4_store *st, uint64_t *index)
{
	bool ok = false;
	uint64_t i;

	pthread_mutex_lock(&st->lock);
	i = st->free;
	if (i != NO_INDEX) {
		st->free = atomic_load_explicit(entry(st, i), memory_order_relaxed);
		if (st->free == LOC_MASK)
			st->free = NO_INDEX;
		ok = true;
	} else {
		i = atomic_load_explicit(&st->next, memory_order_relaxed);
		if (i < st->table.reserved / 8 && i < UINT32_MAX && !drv_area_extend(&st->table, (i + 1) * 8) &&
		    (i % TABLE_PAGE || drv_ram_charge(st->ram, TABLE_PAGE * 8)))
			ok = true;
	}
	if (ok) {
		atomic_store_explicit(entry(st, i), LOCKED, memory_order_relaxed);
		if (i == atomic_load_explicit(&st->next, memory_order_relaxed))
			atomic_store_explicit(&st->next, i + 1, memory_order_release);
		*index = i;
	}
	pthread_mutex_unlock(&st->lock);
	return ok;
}

static void entry_free(struct lz4_store *st, uint64_t index)
{
	pthread_mutex_lock(&st->lock);
	atomic_store_explicit(entry(st, index), st->free == NO_INDEX ? LOC_MASK : st->free, memory_order_release);
	st->free = index;
	pthread_mutex_unlock(&st->lock);
}

static bool entry_trylock(struct lz4_store *st, uint64_t index, uint64_t loc)
{
	uint64_t old = atomic_load_explicit(entry(st, index), memory_order_relaxed);

	do {
		if ((old & LOC_MASK) != loc || !(old & REF_MASK) || old & (LOCKED | PIN_MASK))
			return false;
	} while (!atomic_compare_exchange_weak_explicit(entry(st, index), &old, old | LOCKED, memory_order_acquire,
							memory_order_relaxed));
	return true;
}

/* References may have come and gone meanwhile. */
static void entry_unlock(struct lz4_store *st, uint64_t index, uint64_t loc)
{
	uint64_t old = atomic_load_explicit(entry(st, index), memory_order_relaxed);

	while (!atomic_compare_exchange_weak_explicit(entry(st, index), &old, (old & REF_MASK) | loc,
						      memory_order_release, memory_order_relaxed))
		;
}

/* ----------------------------------------------------------------- objects */

bool lz4_store_add(struct lz4_store *st, const void *data, uint16_t len, uint32_t sum, uint64_t *index)
{
	struct lz4_class *c = lz4_slab_class(&st->slabs, (uint32_t)(LZ4_OBJECT_HEAD + len));
	struct lz4_object *obj = NULL;
	uint32_t charged;
	uint64_t loc, i;

	if (!entry_alloc(st, &i))
		return false;
	pthread_mutex_lock(&c->lock);
	if (lz4_slot_alloc(&st->slabs, c, true, &loc, &charged)) {
		obj = lz4_loc_mem(&st->slabs, loc);
		/* Under the lock: compaction looks at it in every slot that is in use. */
		obj->index = (uint32_t)i;
	}
	pthread_mutex_unlock(&c->lock);
	if (!obj) {
		entry_free(st, i);
		return false;
	}
	obj->sum = sum;
	obj->len = len;
	memcpy(obj->data, data, len);
	atomic_store_explicit(entry(st, i), loc | REF_ONE, memory_order_release);
	*index = i;
	return true;
}

struct lz4_object *lz4_store_pin(struct lz4_store *st, uint64_t index, uint16_t *len)
{
	struct lz4_object *obj;
	unsigned spins = 0;
	uint64_t old, loc;
	uint32_t room;

	if (index >= atomic_load_explicit(&st->next, memory_order_acquire))
		return NULL;
	old = atomic_load_explicit(entry(st, index), memory_order_relaxed);
	for (;;) {
		if (!(old & REF_MASK))
			return NULL;
		if (old & LOCKED || (old & PIN_MASK) == PIN_MASK) {
			relax(&spins);
			old = atomic_load_explicit(entry(st, index), memory_order_relaxed);
			continue;
		}
		if (atomic_compare_exchange_weak_explicit(entry(st, index), &old, old + PIN_ONE, memory_order_acquire,
							  memory_order_relaxed))
			break;
	}
	loc = old & LOC_MASK;
	obj = lz4_loc_mem(&st->slabs, loc);
	room = lz4_loc_class(&st->slabs, loc)->size - (uint32_t)LZ4_OBJECT_HEAD;
	*len = obj->len < room ? obj->len : (uint16_t)room;
	return obj;
}

void lz4_store_unpin(struct lz4_store *st, uint64_t index)
{
	atomic_fetch_sub_explicit(entry(st, index), PIN_ONE, memory_order_release);
}

void lz4_store_get(struct lz4_store *st, uint64_t index)
{
	uint64_t old = atomic_load_explicit(entry(st, index), memory_order_relaxed);

	do {
		if ((old & REF_MASK) == REF_MASK)
			return;
	} while (!atomic_compare_exchange_weak_explicit(entry(st, index), &old, old + REF_ONE, memory_order_relaxed,
							memory_order_relaxed));
}

bool lz4_store_put(struct lz4_store *st, uint64_t index, uint16_t *len)
{
	uint64_t old = atomic_load_explicit(entry(st, index), memory_order_relaxed);
	struct lz4_class *c;
	unsigned spins = 0;
	uint64_t new, loc;
	uint32_t slab;

	for (;;) {
		if ((old & REF_MASK) == REF_MASK || !(old & REF_MASK))
			return false;
		new = old - REF_ONE;
		if (!(new &REF_MASK)) {
			if (old & (LOCKED | PIN_MASK)) {
				relax(&spins);
				old = atomic_load_explicit(entry(st, index), memory_order_relaxed);
				continue;
			}
			new |= LOCKED;
		}
		if (atomic_compare_exchange_weak_explicit(entry(st, index), &old, new, memory_order_acq_rel,
							  memory_order_relaxed))
			break;
	}
	if (new &REF_MASK)
		return false;

	loc = new &LOC_MASK;
	c = lz4_loc_class(&st->slabs, loc);
	*len = ((struct lz4_object *)lz4_loc_mem(&st->slabs, loc))->len;
	pthread_mutex_lock(&c->lock);
	slab = lz4_slot_free(&st->slabs, c, loc);
	pthread_mutex_unlock(&c->lock);
	entry_free(st, index);
	if (slab != LZ4_NO_SLAB)
		lz4_slab_give(&st->slabs, slab);
	return true;
}

bool lz4_store_shared(struct lz4_store *st, uint64_t index)
{
	return (atomic_load_explicit(entry(st, index), memory_order_relaxed) & REF_MASK) > REF_ONE;
}

uint64_t lz4_store_records(struct lz4_store *st)
{
	uint64_t slabs;

	pthread_mutex_lock(&st->slabs.lock);
	slabs = st->slabs.next;
	pthread_mutex_unlock(&st->slabs.lock);
	return atomic_load_explicit(&st->next, memory_order_relaxed) * 8 + slabs * sizeof(struct lz4_slab);
}

/* -------------------------------------------------------------- compaction */

/* Moves the object in slot @from elsewhere.  The class's lock is held. */
static bool move(struct lz4_store *st, struct lz4_class *c, uint64_t from, uint64_t *charged)
{
	struct lz4_object *obj = lz4_loc_mem(&st->slabs, from);
	uint64_t index = obj->index;
	uint32_t extra;
	uint64_t to;

	/* A damaged index must not lead astray; the object stays and its reader will notice. */
	if (index >= atomic_load_explicit(&st->next, memory_order_acquire) || !entry_trylock(st, index, from))
		return false;
	if (!lz4_slot_alloc(&st->slabs, c, false, &to, &extra)) {
		entry_unlock(st, index, from);
		return false;
	}
	memcpy(lz4_loc_mem(&st->slabs, to), obj, c->size);
	entry_unlock(st, index, to);
	lz4_slot_free(&st->slabs, c, from);
	*charged += extra;
	return true;
}

/* Empties one slab of class @c.  Returns false when there is none that can be. */
static bool compact_one(struct lz4_store *st, struct lz4_class *c, uint64_t *work, uint64_t *given)
{
	uint32_t slab, empty;
	struct lz4_slab *head;
	uint64_t bytes, charged = 0;
	unsigned moved = 0;

	pthread_mutex_lock(&c->lock);
	slab = lz4_slab_isolate(&st->slabs, c);
	if (slab == LZ4_NO_SLAB) {
		pthread_mutex_unlock(&c->lock);
		return false;
	}
	head = lz4_slab_head(&st->slabs, slab);
	for (unsigned slot = 0; slot < c->slots && head->nused; slot++) {
		if (!(head->used[slot / 64] >> slot % 64 & 1))
			continue;
		if (!move(st, c, (uint64_t)slab << LZ4_SLOT_BITS | slot, &charged))
			break;
		if (!(++moved % MOVE_BATCH)) {
			pthread_mutex_unlock(&c->lock);
			sched_yield();
			pthread_mutex_lock(&c->lock);
		}
	}
	empty = lz4_slab_restore(&st->slabs, c, slab);
	pthread_mutex_unlock(&c->lock);

	*work += (uint64_t)moved * c->size;
	if (empty == LZ4_NO_SLAB)
		return false;
	/* What is kept warm would not be given back. */
	bytes = lz4_slab_give(&st->slabs, empty) + lz4_slabs_cool(&st->slabs);
	*given += bytes > charged ? bytes - charged : 0;
	return true;
}

uint64_t lz4_store_compact(struct lz4_store *st, uint64_t bytes)
{
	uint64_t given, work = 0;

	if (pthread_mutex_trylock(&st->compact))
		return 0;
	given = lz4_slabs_cool(&st->slabs);
	for (unsigned i = 0; i < st->slabs.nr_classes && given < bytes && work < bytes; i++) {
		struct lz4_class *c = &st->slabs.class[st->cursor];

		while (given < bytes && work < bytes && compact_one(st, c, &work, &given))
			;
		if (given < bytes && work < bytes)
			st->cursor = (st->cursor + 1) % st->slabs.nr_classes;
	}
	pthread_mutex_unlock(&st->compact);
	return given;
}
