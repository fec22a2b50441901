/* SPDX-License-Identifier: MIT */
#include "drivers/lz4/slab.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#define PAGE 4096u

_Static_assert(LZ4_SLAB_SIZE / LZ4_SLOT_MIN <= 1u << LZ4_SLOT_BITS, "slot numbers fit");
_Static_assert(LZ4_SLAB_SIZE / PAGE <= UINT8_MAX, "touched fits");

static void make_classes(struct lz4_slabs *s)
{
	uint32_t last = UINT32_MAX;
	unsigned n = 0;

	/* Largest first: for the large ones every divisor, below that steps of 6 %. */
	for (uint32_t slots = LZ4_SLAB_SIZE / LZ4_SLOT_MAX; n < LZ4_CLASSES; slots++) {
		uint32_t size = LZ4_SLAB_SIZE / slots & ~15u;

		if (size < LZ4_SLOT_MIN)
			break;
		if (size >= last || (slots > 20 && size > LZ4_SLOT_MIN && (uint64_t)size * 100 > (uint64_t)last * 94))
			continue;
		s->class[n].size = size;
		s->class[n].slots = LZ4_SLAB_SIZE / size;
		last = size;
		n++;
	}
	s->nr_classes = n;
	for (unsigned i = 0; i < n; i++) {
		pthread_mutex_init(&s->class[i].lock, NULL);
		for (unsigned g = 0; g < LZ4_GROUPS; g++)
			s->class[i].list[g] = LZ4_NO_SLAB;
		/* Smaller ones come later and take the lower part over. */
		for (uint32_t unit = 0; unit <= s->class[i].size / 16; unit++)
			s->class_of[unit] = (uint8_t)i;
	}
}

int lz4_slabs_init(struct lz4_slabs *s, struct drv_ram *ram, uint64_t bytes)
{
	uint64_t slabs = (bytes + LZ4_SLAB_SIZE - 1) / LZ4_SLAB_SIZE;
	int rc = -ENOMEM;

	if (slabs > (uint64_t)1 << 25)
		slabs = (uint64_t)1 << 25;
	/* Addresses may be scarce (RLIMIT_AS): less room is better than none. */
	while (drv_area_reserve(&s->mem, slabs * LZ4_SLAB_SIZE)) {
		slabs /= 2;
		if (slabs < 16)
			return -ENOMEM;
	}
	s->limit = (uint32_t)slabs;
	if (drv_area_reserve(&s->heads, slabs * sizeof(struct lz4_slab)))
		goto undo_mem;
	if (drv_area_reserve(&s->spare, slabs * sizeof(uint32_t)))
		goto undo_heads;
	s->ram = ram;
	pthread_mutex_init(&s->lock, NULL);
	make_classes(s);
	return 0;

undo_heads:
	drv_area_release(&s->heads);
undo_mem:
	drv_area_release(&s->mem);
	return rc;
}

void lz4_slabs_exit(struct lz4_slabs *s)
{
	for (unsigned i = 0; i < s->nr_classes; i++)
		pthread_mutex_destroy(&s->class[i].lock);
	pthread_mutex_destroy(&s->lock);
	drv_area_release(&s->spare);
	drv_area_release(&s->heads);
	drv_area_release(&s->mem);
}

/* ------------------------------------------------------------------- lists */

static void list_add(struct lz4_slabs *s, struct lz4_class *c, uint32_t slab, unsigned group)
{
	struct lz4_slab *head = lz4_slab_head(s, slab);

	head->group = (uint8_t)group;
	if (group >= LZ4_GROUPS)
		return;
	head->prev = LZ4_NO_SLAB;
	head->next = c->list[group];
	if (head->next != LZ4_NO_SLAB)
		lz4_slab_head(s, head->next)->prev = slab;
	c->list[group] = slab;
}

static void list_del(struct lz4_slabs *s, struct lz4_class *c, uint32_t slab)
{
	struct lz4_slab *head = lz4_slab_head(s, slab);

	if (head->group >= LZ4_GROUPS)
		return;
	if (head->next != LZ4_NO_SLAB)
		lz4_slab_head(s, head->next)->prev = head->prev;
	if (head->prev != LZ4_NO_SLAB)
		lz4_slab_head(s, head->prev)->next = head->next;
	else
		c->list[head->group] = head->next;
}

static unsigned group_of(const struct lz4_class *c, unsigned nused)
{
	return nused == c->slots ? LZ4_GROUP_FULL : nused * LZ4_GROUPS / c->slots;
}

static void relist(struct lz4_slabs *s, struct lz4_class *c, uint32_t slab)
{
	struct lz4_slab *head = lz4_slab_head(s, slab);
	unsigned group = group_of(c, head->nused);

	if (head->group == group || head->group == LZ4_GROUP_ISOLATED)
		return;
	list_del(s, c, slab);
	list_add(s, c, slab, group);
}

/* -------------------------------------------------------------------- pool */

/* Gives @slab's memory back; the caller alone knows of the slab. */
static uint32_t slab_zap(struct lz4_slabs *s, uint32_t slab)
{
	struct lz4_slab *head = lz4_slab_head(s, slab);
	uint32_t bytes = head->touched * PAGE;

	madvise(s->mem.base + ((size_t)slab << LZ4_SLAB_SHIFT), LZ4_SLAB_SIZE, MADV_DONTNEED);
	head->touched = 0;
	drv_ram_uncharge(s->ram, bytes);

	pthread_mutex_lock(&s->lock);
	((uint32_t *)s->spare.base)[s->nr_spare++] = slab;
	pthread_mutex_unlock(&s->lock);
	return bytes;
}

static bool slab_take(struct lz4_slabs *s, uint32_t *slab)
{
	bool ok = false;

	pthread_mutex_lock(&s->lock);
	if (s->nr_warm) {
		*slab = s->warm[--s->nr_warm];
		ok = true;
	} else if (s->nr_spare) {
		*slab = ((uint32_t *)s->spare.base)[--s->nr_spare];
		ok = true;
	} else if (s->next < s->limit) {
		size_t n = s->next + 1;

		/* A head, and a place in the stack of spares for when it is given back. */
		if (!drv_area_extend(&s->mem, n * LZ4_SLAB_SIZE) &&
		    !drv_area_extend(&s->heads, n * sizeof(struct lz4_slab)) &&
		    !drv_area_extend(&s->spare, n * sizeof(uint32_t)) &&
		    drv_ram_charge(s->ram, sizeof(struct lz4_slab) + sizeof(uint32_t))) {
			*slab = s->next++;
			ok = true;
		}
	}
	pthread_mutex_unlock(&s->lock);
	return ok;
}

uint32_t lz4_slab_give(struct lz4_slabs *s, uint32_t slab)
{
	pthread_mutex_lock(&s->lock);
	if (s->nr_warm < LZ4_WARM) {
		s->warm[s->nr_warm++] = slab;
		pthread_mutex_unlock(&s->lock);
		return 0;
	}
	pthread_mutex_unlock(&s->lock);
	return slab_zap(s, slab);
}

uint64_t lz4_slabs_cool(struct lz4_slabs *s)
{
	uint64_t bytes = 0;

	for (;;) {
		uint32_t slab;

		pthread_mutex_lock(&s->lock);
		if (!s->nr_warm) {
			pthread_mutex_unlock(&s->lock);
			return bytes;
		}
		slab = s->warm[--s->nr_warm];
		pthread_mutex_unlock(&s->lock);
		bytes += slab_zap(s, slab);
	}
}

/* ------------------------------------------------------------------- slots */

static unsigned first_free(const struct lz4_slab *head)
{
	unsigned i = 0;

	while (head->used[i] == UINT64_MAX)
		i++;
	return i * 64 + (unsigned)__builtin_ctzll(~head->used[i]);
}

/* The pages of @head up to the end of @slot become occupied. */
static bool touch(struct lz4_slabs *s, const struct lz4_class *c, struct lz4_slab *head, unsigned slot,
		  uint32_t *charged)
{
	uint32_t pages = ((slot + 1) * c->size + PAGE - 1) / PAGE;

	*charged = 0;
	if (pages <= head->touched)
		return true;
	if (!drv_ram_charge(s->ram, (pages - head->touched) * PAGE))
		return false;
	*charged = (pages - head->touched) * PAGE;
	head->touched = (uint8_t)pages;
	return true;
}

static bool slot_in(struct lz4_slabs *s, struct lz4_class *c, uint32_t slab, uint64_t *loc, uint32_t *charged)
{
	struct lz4_slab *head = lz4_slab_head(s, slab);
	unsigned slot = first_free(head);

	if (!touch(s, c, head, slot, charged))
		return false;
	head->used[slot / 64] |= (uint64_t)1 << slot % 64;
	head->nused++;
	c->nfree--;
	relist(s, c, slab);
	*loc = (uint64_t)slab << LZ4_SLOT_BITS | slot;
	return true;
}

static void class_add(struct lz4_slabs *s, struct lz4_class *c, uint32_t slab)
{
	struct lz4_slab *head = lz4_slab_head(s, slab);

	for (unsigned i = 0; i < sizeof(head->used) / sizeof(head->used[0]); i++)
		head->used[i] = 0;
	head->nused = 0;
	head->class = (uint8_t)(c - s->class);
	c->nfree += c->slots;
	list_add(s, c, slab, 0);
}

bool lz4_slot_alloc(struct lz4_slabs *s, struct lz4_class *c, bool grow, uint64_t *loc, uint32_t *charged)
{
	uint32_t slab;

	for (unsigned g = LZ4_GROUPS; g-- > 0;) {
		unsigned tries = 8;

		/* When the account is full, one whose free slot needs no further page may still serve. */
		for (slab = c->list[g]; slab != LZ4_NO_SLAB && tries--; slab = lz4_slab_head(s, slab)->next)
			if (slot_in(s, c, slab, loc, charged))
				return true;
	}
	if (!grow || !slab_take(s, &slab))
		return false;
	class_add(s, c, slab);
	if (slot_in(s, c, slab, loc, charged))
		return true;

	list_del(s, c, slab);
	c->nfree -= c->slots;
	slab_zap(s, slab);
	return false;
}

static uint32_t drop_if_empty(struct lz4_slabs *s, struct lz4_class *c, uint32_t slab)
{
	if (lz4_slab_head(s, slab)->nused)
		return LZ4_NO_SLAB;
	list_del(s, c, slab);
	c->nfree -= c->slots;
	return slab;
}

uint32_t lz4_slot_free(struct lz4_slabs *s, struct lz4_class *c, uint64_t loc)
{
	uint32_t slab = (uint32_t)(loc >> LZ4_SLOT_BITS);
	unsigned slot = (unsigned)(loc & ((1u << LZ4_SLOT_BITS) - 1));
	struct lz4_slab *head = lz4_slab_head(s, slab);

	explicit_bzero(lz4_loc_mem(s, loc), c->size); /* what was in there has not been given to us for longer */
	head->used[slot / 64] &= ~((uint64_t)1 << slot % 64);
	head->nused--;
	c->nfree++;
	if (head->group == LZ4_GROUP_ISOLATED)
		return LZ4_NO_SLAB;
	relist(s, c, slab);
	return drop_if_empty(s, c, slab);
}

uint32_t lz4_slab_isolate(struct lz4_slabs *s, struct lz4_class *c)
{
	if (c->nfree < c->slots)
		return LZ4_NO_SLAB;
	for (unsigned g = 0; g < LZ4_GROUPS; g++) {
		uint32_t slab = c->list[g];

		if (slab == LZ4_NO_SLAB)
			continue;
		list_del(s, c, slab);
		lz4_slab_head(s, slab)->group = LZ4_GROUP_ISOLATED;
		return slab;
	}
	return LZ4_NO_SLAB;
}

uint32_t lz4_slab_restore(struct lz4_slabs *s, struct lz4_class *c, uint32_t slab)
{
	list_add(s, c, slab, group_of(c, lz4_slab_head(s, slab)->nused));
	return drop_if_empty(s, c, slab);
}
