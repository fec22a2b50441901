/* SPDX-License-Identifier: MIT */
/* The remote tier from inside: what its files and its tests share. */
#ifndef HMM_OFI_INTERNAL_H
#define HMM_OFI_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>

#include "drivers/area.h"
#include "drivers/ofi/addr.h"
#include "drivers/ofi/ep.h"
#include "drivers/ofi/seal.h"
#include "drivers/ofi/store.h"
#include "drivers/ofi/wire.h"
#include "hmm.h"

#define TIER_STRANGER_MAX 256u /* bytes of a message before a connection has proved itself */

struct tier_server;
/** tier_server_store() - for tests. */
struct tier_store *tier_server_store(struct tier_server *srv);

/** One connection of a client. */
struct tier_lane {
	struct tier_lane *next; /* of the idle ones */
	struct ofi_net net;
	struct ofi_ep ep;
	struct ofi_buf in, out;
	struct ofi_op receiving, sending; /* who gives up on them leaves them under way */
	struct tier_keys keys;
};

/**
 * tier_lane_open() - connect, prove, attach
 * @attach: in: the session, all zeros for a new one; out: what the server says of it.
 *
 * Returns 0, or -errno with a line in @err.
 */
int tier_lane_open(struct tier_lane *lane, const struct tier_addr *addr, const struct tier_secret *secret,
		   struct tier_attach *attach, char *err, size_t errlen);
void tier_lane_close(struct tier_lane *lane);

/**
 * tier_lane_request() - a request and its reply
 * @h: in: the request, whose pages are in @lane->out already (tier_frame_pages()); out: the reply.
 * @pages: out; those of the reply, in @lane->in; may be NULL.
 *
 * Returns 0, or -errno, after which the lane can only be closed.
 */
int tier_lane_request(struct tier_lane *lane, struct tier_head *h, const uint8_t **pages, uint64_t deadline_ns);

#define TIER_LANES 4u

struct tier_slot {
	_Atomic uint32_t refs; /* at the maximum they stick */
	uint32_t next;         /* of a free one: the next + 1 */
	uint64_t gen;
	uint8_t tag[TIER_TAG];
};

/** The device. */
struct hmm_ofi {
	struct hmm_device dev;
	struct tier_addr addr;
	struct tier_secret secret;
	struct tier_attach session;
	struct tier_vault vault;
	struct drv_ram ram;
	_Atomic uint64_t gen; /* the next one */
	_Atomic bool lost;
	_Atomic int no_room;      /* calls that need not try */
	_Atomic uint64_t ping_ns; /* a lane is not silent for longer; tests shorten it */

	struct tier_lane lane[TIER_LANES];
	pthread_mutex_t lock; /* what follows */
	pthread_cond_t idle_again;
	struct tier_lane *idle;
	unsigned nr_idle;

	pthread_mutex_t slot_lock; /* what follows; nothing nests in it */
	struct drv_area slots;     /* struct tier_slot */
	uint64_t nr_slots;         /* that were ever used */
	uint32_t stale;            /* free, but the server still has a page in it: the first + 1 */
	uint32_t empty;            /* free there, too */
	uint64_t nr_stale;

	pthread_t keeper;
	pthread_cond_t keeper_cond; /* with lock */
	bool keeper_ends;

	_Atomic int64_t same_refs; /* references to pages that are nothing but a handle */
	_Atomic int64_t pages;     /* at the server */
	_Atomic uint64_t copied_in, copied_out, errors;
};

#endif
