/* SPDX-License-Identifier: MIT */
/*
 * The memory that a server lends: pages of ciphertext, by session and slot.
 *
 * DOC: bounds and locks
 *
 * All that clients can make it use is charged to one account (pages, tables of
 * slots, buffers of connections), so the limit holds whatever they do.
 * Addresses for everything are reserved at the start; memory is touched as it is
 * needed, and given back page by page as pages are freed.
 *
 * The session's lock is taken page by page, never across a batch: a read that
 * somebody waits for does not wait for a whole write.  The store's lock (free
 * pages, list of sessions) nests inside it.
 */
#ifndef HMM_OFI_STORE_H
#define HMM_OFI_STORE_H

#include <pthread.h>

#include "drivers/area.h"
#include "drivers/ofi/wire.h"

#define TIER_SESSIONS_MAX 1024u
#define TIER_CONNECTIONS_MAX 16u /* of one session */

struct tier_session {
	struct tier_session *next;
	uint8_t id[16];
	unsigned connections;      /* under the store's lock */
	_Atomic uint64_t heard_ns; /* when one of them was heard last */
	pthread_mutex_t lock;      /* what follows */
	struct drv_area slot;      /* uint32_t: number of the page + 1, or 0 */
	uint64_t nr_slots;         /* of which memory is charged */
	uint64_t pages;
};

struct tier_store {
	struct drv_ram ram;
	struct drv_area data; /* pages */
	struct drv_area next; /* uint32_t; of a free page: the next free one + 1 */
	uint64_t max;         /* pages, and slots of a session */

	pthread_mutex_t lock; /* what follows */
	uint64_t nr;          /* pages that were ever used */
	uint32_t free;        /* the first free one + 1, or 0 */
	struct tier_session *sessions;
	unsigned nr_sessions;
};

/** tier_store_init() - at most @bytes in all.  Returns 0, -EINVAL (too little) or -ENOMEM (addresses). */
int tier_store_init(struct tier_store *s, uint64_t bytes);
/** tier_store_exit() - no session is left. */
void tier_store_exit(struct tier_store *s);

/**
 * tier_session_attach() - a connection begins a session (@id all zeros), or joins one
 * @id: of a new session: 16 random bytes, made by the caller, in @fresh.
 *
 * Returns the session, or NULL with @status.
 */
struct tier_session *tier_session_attach(struct tier_store *s, const uint8_t id[16], const uint8_t fresh[16],
					 enum tier_status *status);
/** tier_session_detach() - a connection ends; with the last one go the session and its pages. */
void tier_session_detach(struct tier_store *s, struct tier_session *session);

/**
 * tier_store_execute() - do what a request says
 * @h: in: a request that tier_head_parse() has passed, not ATTACH; out: its reply.
 * @in: pages that came with it.
 * @out: room for TIER_PAGES pages; those of the reply.  Where they go depends on the
 *	 reply's length, which a GET that fails shortens: then none go.
 */
void tier_store_execute(struct tier_store *s, struct tier_session *session, struct tier_head *h, const uint8_t *in,
			uint8_t *out);

/** tier_store_pages() - pages held now. */
uint64_t tier_store_pages(struct tier_store *s);

#endif
