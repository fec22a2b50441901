/* SPDX-License-Identifier: MIT */
#include "drivers/ofi/store.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define SLOT_STEP 1024u /* slots that are charged at a time: a page of the table */
#define PAGE_COST (HMM_PAGE_SIZE + sizeof(uint32_t))

static uint8_t *page_at(const struct tier_store *s, uint64_t nr)
{
	return s->data.base + nr * HMM_PAGE_SIZE;
}

static uint32_t *next_of(const struct tier_store *s, uint64_t nr)
{
	return (uint32_t *)s->next.base + nr;
}

int tier_store_init(struct tier_store *s, uint64_t bytes)
{
	*s = (struct tier_store){.ram.limit = bytes};
	s->max = bytes / PAGE_COST;
	if (!s->max || s->max >= UINT32_MAX)
		return -EINVAL;
	if (drv_area_reserve(&s->data, s->max * HMM_PAGE_SIZE))
		return -ENOMEM;
	if (drv_area_reserve(&s->next, s->max * sizeof(uint32_t))) {
		drv_area_release(&s->data);
		return -ENOMEM;
	}
	pthread_mutex_init(&s->lock, NULL);
	return 0;
}

void tier_store_exit(struct tier_store *s)
{
	pthread_mutex_destroy(&s->lock);
	drv_area_release(&s->next);
	drv_area_release(&s->data);
}

/* ----------------------------------------------------------------- free pages */

static bool page_take(struct tier_store *s, uint64_t *nr)
{
	bool ok = false;

	if (!drv_ram_charge(&s->ram, PAGE_COST))
		return false;
	pthread_mutex_lock(&s->lock);
	if (s->free) {
		*nr = s->free - 1;
		s->free = *next_of(s, *nr);
		ok = true;
	} else if (s->nr < s->max && !drv_area_extend(&s->data, (s->nr + 1) * HMM_PAGE_SIZE) &&
		   !drv_area_extend(&s->next, (s->nr + 1) * sizeof(uint32_t))) {
		*nr = s->nr++;
		ok = true;
	}
	pthread_mutex_unlock(&s->lock);
	if (!ok)
		drv_ram_uncharge(&s->ram, PAGE_COST);
	return ok;
}

static void page_give(struct tier_store *s, uint64_t nr)
{
	madvise(page_at(s, nr), HMM_PAGE_SIZE, MADV_DONTNEED);
	pthread_mutex_lock(&s->lock);
	*next_of(s, nr) = s->free;
	s->free = (uint32_t)nr + 1;
	pthread_mutex_unlock(&s->lock);
	drv_ram_uncharge(&s->ram, PAGE_COST);
}

uint64_t tier_store_pages(struct tier_store *s)
{
	uint64_t pages = 0;

	pthread_mutex_lock(&s->lock);
	for (struct tier_session *t = s->sessions; t; t = t->next)
		pages += __atomic_load_n(&t->pages, __ATOMIC_RELAXED);
	pthread_mutex_unlock(&s->lock);
	return pages;
}

/* ------------------------------------------------------------------- sessions */

static struct tier_session *session_new(struct tier_store *s, const uint8_t id[16])
{
	struct tier_session *t = calloc(1, sizeof(*t));

	if (!t)
		return NULL;
	if (!drv_ram_charge(&s->ram, sizeof(*t)))
		goto undo_alloc;
	if (drv_area_reserve(&t->slot, s->max * sizeof(uint32_t)))
		goto undo_charge;
	pthread_mutex_init(&t->lock, NULL);
	memcpy(t->id, id, sizeof(t->id));
	return t;
undo_charge:
	drv_ram_uncharge(&s->ram, sizeof(*t));
undo_alloc:
	free(t);
	return NULL;
}

struct tier_session *tier_session_attach(struct tier_store *s, const uint8_t id[16], const uint8_t fresh[16],
					 enum tier_status *status)
{
	static const uint8_t none[16];
	bool begin = !memcmp(id, none, sizeof(none));
	struct tier_session *t;

	pthread_mutex_lock(&s->lock);
	if (begin) {
		t = s->nr_sessions < TIER_SESSIONS_MAX ? session_new(s, fresh) : NULL;
		*status = t ? TIER_OK : TIER_FULL;
		if (t) {
			t->next = s->sessions;
			s->sessions = t;
			s->nr_sessions++;
		}
	} else {
		for (t = s->sessions; t && memcmp(t->id, id, sizeof(t->id)); t = t->next)
			;
		*status = t ? TIER_OK : TIER_NO_SESSION;
		if (t && t->connections == TIER_CONNECTIONS_MAX) {
			*status = TIER_FULL;
			t = NULL;
		}
	}
	if (t)
		t->connections++;
	pthread_mutex_unlock(&s->lock);
	return t;
}

void tier_session_detach(struct tier_store *s, struct tier_session *session)
{
	const uint32_t *slot = (const uint32_t *)session->slot.base;
	struct tier_session **at;

	pthread_mutex_lock(&s->lock);
	if (--session->connections) {
		pthread_mutex_unlock(&s->lock);
		return;
	}
	for (at = &s->sessions; *at != session; at = &(*at)->next)
		;
	*at = session->next;
	s->nr_sessions--;
	pthread_mutex_unlock(&s->lock);

	for (uint64_t i = 0; session->pages && i < session->nr_slots; i++) {
		if (slot[i]) {
			page_give(s, slot[i] - 1);
			session->pages--;
		}
	}
	drv_ram_uncharge(&s->ram, sizeof(*session) + session->nr_slots * sizeof(uint32_t));
	drv_area_release(&session->slot);
	pthread_mutex_destroy(&session->lock);
	free(session);
}

/* Under the session's lock: where the page of @slot is noted, or NULL. */
static uint32_t *slot_at(struct tier_session *t, uint64_t slot)
{
	return slot < t->nr_slots ? (uint32_t *)t->slot.base + slot : NULL;
}

static uint32_t *slot_make(struct tier_store *s, struct tier_session *t, uint64_t slot)
{
	uint64_t want = (slot / SLOT_STEP + 1) * SLOT_STEP;
	uint32_t *at = slot_at(t, slot);

	if (at || slot >= s->max)
		return at;
	if (want > s->max)
		want = s->max;
	if (!drv_ram_charge(&s->ram, (want - t->nr_slots) * sizeof(uint32_t)))
		return NULL;
	if (drv_area_extend(&t->slot, want * sizeof(uint32_t))) {
		drv_ram_uncharge(&s->ram, (want - t->nr_slots) * sizeof(uint32_t));
		return NULL;
	}
	t->nr_slots = want;
	return slot_at(t, slot);
}

/* ------------------------------------------------------------------- requests */

static bool put_one(struct tier_store *s, struct tier_session *t, uint64_t slot, const uint8_t *page)
{
	bool ok = false;
	uint32_t *at;
	uint64_t nr;

	pthread_mutex_lock(&t->lock);
	at = slot_make(s, t, slot);
	if (!at)
		goto out;
	if (!*at) {
		if (!page_take(s, &nr))
			goto out;
		*at = (uint32_t)nr + 1;
		t->pages++;
	}
	memcpy(page_at(s, *at - 1), page, HMM_PAGE_SIZE);
	ok = true;
out:
	pthread_mutex_unlock(&t->lock);
	return ok;
}

static bool get_one(struct tier_store *s, struct tier_session *t, uint64_t slot, uint8_t *page)
{
	uint32_t *at;
	bool there;

	pthread_mutex_lock(&t->lock);
	at = slot_at(t, slot);
	there = at && *at;
	if (there)
		memcpy(page, page_at(s, *at - 1), HMM_PAGE_SIZE);
	pthread_mutex_unlock(&t->lock);
	return there;
}

static void free_one(struct tier_store *s, struct tier_session *t, uint64_t slot)
{
	uint32_t *at;
	uint32_t nr = 0;

	pthread_mutex_lock(&t->lock);
	at = slot_at(t, slot);
	if (at && *at) {
		nr = *at;
		*at = 0;
		t->pages--;
	}
	pthread_mutex_unlock(&t->lock);
	if (nr)
		page_give(s, nr - 1);
}

void tier_store_execute(struct tier_store *s, struct tier_session *session, struct tier_head *h, const uint8_t *in,
			uint8_t *out)
{
	unsigned n = h->n, i = 0;

	h->reply = 1;
	switch (h->op) {
	case TIER_PUT:
		while (i < n && put_one(s, session, h->slot[i], in + (size_t)i * HMM_PAGE_SIZE))
			i++;
		h->n = (uint16_t)i;
		break;
	case TIER_GET:
		while (i < n && get_one(s, session, h->slot[i], out + (size_t)i * HMM_PAGE_SIZE))
			i++;
		if (i < n)
			h->status = TIER_NO_PAGE;
		h->n = (uint16_t)i;
		break;
	case TIER_FREE:
		for (; i < n; i++)
			free_one(s, session, h->slot[i]);
		break;
	case TIER_PING:
		break;
	default:
		h->status = TIER_BAD;
		h->n = 0;
	}
}
