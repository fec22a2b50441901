/* SPDX-License-Identifier: MIT */
/*
 * ofi: pages in the memory of another machine (hmm serve), over libfabric.
 *
 * DOC: what is where
 *
 * A page has a slot here, which is its handle, and its ciphertext is at the server
 * under that number.  What makes it good stays here: reference count, generation
 * and tag (seal.h).  So the server cannot pass off anything else as the page, and
 * whether a page that came back was changed (same()) is told by sealing it again
 * and comparing tags, without asking the server.
 *
 * DOC: lanes
 *
 * A few connections, each used by one call at a time for one request after the
 * other.  Calls that write, and the keeper, leave at least half of them to who
 * reads: somebody waits for that.  Only what the keeper says so that a lane is not
 * silent is said on each that is idle, however few are.  A page is at the server before its handle is
 * given out, and a slot is used again only when the server has answered to its
 * being freed, or by writing over it; so it does not matter which lane is used.
 *
 * DOC: a lost peer
 *
 * Every request has a deadline.  A lane that fails, in whatever way, is the end of
 * the device: the server frees what it holds when a session ends, and a server that
 * says what does not open is none to be trusted with more.  From then on nothing is
 * taken, and everything that is read is -ENOTCONN, at once.
 *
 * DOC: the keeper
 *
 * A thread of the device's own, because put() must not sleep: it tells the server
 * of slots that have become free and are not used again soon, and that we live.
 *
 * Locks: lock (idle lanes) and slot_lock (free slots); neither nests, neither is
 * held across a request.  In use, libfabric calls malloc: this device is for an
 * engine that is not in the process whose faults it serves (hmm run).
 */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "drivers/counts.h"
#include "drivers/driver.h"
#include "drivers/ofi/internal.h"
#include "drivers/same.h"

#define NO_ROOM_CALLS 64u
#define SECOND 1000000000ull
#define KEEPER_NS (SECOND / 4)
#define PING_NS (10 * SECOND)

static inline struct hmm_ofi *to_ofi(struct hmm_device *dev)
{
	return (struct hmm_ofi *)dev;
}

static inline struct tier_slot *slot_of(const struct hmm_ofi *d, uint64_t nr)
{
	return (struct tier_slot *)d->slots.base + nr;
}

/* ----------------------------------------------------------------------- lanes */

/* The peer is lost, and with it what it holds. */
static void lose(struct hmm_ofi *d)
{
	pthread_mutex_lock(&d->lock);
	atomic_store(&d->lost, true);
	pthread_cond_broadcast(&d->idle_again);
	pthread_cond_signal(&d->keeper_cond);
	pthread_mutex_unlock(&d->lock);
}

/* Where an idle lane is listed: @one, or any; NULL: it is in use. */
static struct tier_lane **idle_at(struct hmm_ofi *d, const struct tier_lane *one)
{
	struct tier_lane **at = &d->idle;

	while (one && *at && *at != one)
		at = &(*at)->next;
	return one && !*at ? NULL : at;
}

/* Lock held.  @one, or any (NULL), if it is idle, and more than @leave are. */
static struct tier_lane *lane_take(struct hmm_ofi *d, unsigned leave, const struct tier_lane *one)
{
	struct tier_lane **at = atomic_load(&d->lost) || d->nr_idle <= leave ? NULL : idle_at(d, one), *lane;

	if (!at)
		return NULL;
	lane = *at;
	*at = lane->next;
	d->nr_idle--;
	return lane;
}

/* A lane to use until lane_put().  NULL: the peer is lost. */
static struct tier_lane *lane_get(struct hmm_ofi *d, bool reads)
{
	struct tier_lane *lane;

	/* Who has one has a deadline, and gives it back or loses the peer: this ends. */
	pthread_mutex_lock(&d->lock);
	while (!(lane = lane_take(d, reads ? 0 : TIER_LANES / 2, NULL)) && !atomic_load(&d->lost)) {
		hmm_device_sleeps();
		pthread_cond_wait(&d->idle_again, &d->lock);
	}
	pthread_mutex_unlock(&d->lock);
	return lane;
}

/* The same for the keeper, which waits for nobody: others may use the half of them without end. */
static struct tier_lane *lane_try(struct hmm_ofi *d, unsigned leave, const struct tier_lane *one)
{
	struct tier_lane *lane;

	pthread_mutex_lock(&d->lock);
	lane = lane_take(d, leave, one);
	pthread_mutex_unlock(&d->lock);
	return lane;
}

static void lane_put(struct hmm_ofi *d, struct tier_lane *lane)
{
	bool lost;

	pthread_mutex_lock(&d->lock);
	lost = atomic_load(&d->lost);
	if (!lost) {
		lane->next = d->idle;
		d->idle = lane;
		d->nr_idle++;
		/* Whoever is woken alone might be one that must leave it to others. */
		pthread_cond_broadcast(&d->idle_again);
	}
	pthread_mutex_unlock(&d->lock);
	/* The keeper may have closed all that were idle, and ended. */
	if (lost)
		tier_lane_close(lane);
}

/* 0, or -errno: the peer is lost, and the lane closed. */
static int request(struct hmm_ofi *d, struct tier_lane *lane, struct tier_head *h, const uint8_t **pages)
{
	int rc = tier_lane_request(lane, h, pages, ofi_now_ns() + d->addr.timeout_ns);

	if (rc) {
		lose(d);
		tier_lane_close(lane);
	}
	return rc;
}

/* ----------------------------------------------------------------------- slots */

/* @stale: only those in which the server has a page, which costs it nothing to write over. */
static unsigned slots_take(struct hmm_ofi *d, uint64_t slot[], unsigned n, bool stale)
{
	unsigned got = 0;

	pthread_mutex_lock(&d->slot_lock);
	while (got < n) {
		uint32_t *list = d->stale || stale ? &d->stale : &d->empty;

		if (*list) {
			slot[got] = *list - 1;
			if (list == &d->stale)
				d->nr_stale--;
			*list = slot_of(d, slot[got])->next;
		} else if (!stale && d->nr_slots < d->session.max_slots &&
			   !drv_area_extend(&d->slots, (d->nr_slots + 1) * sizeof(struct tier_slot)) &&
			   drv_ram_charge(&d->ram, sizeof(struct tier_slot))) {
			slot[got] = d->nr_slots++;
		} else {
			break;
		}
		got++;
	}
	pthread_mutex_unlock(&d->slot_lock);
	return got;
}

static uint64_t nr_stale(struct hmm_ofi *d)
{
	uint64_t n;

	pthread_mutex_lock(&d->slot_lock);
	n = d->nr_stale;
	pthread_mutex_unlock(&d->slot_lock);
	return n;
}

static void slots_free(struct hmm_ofi *d, const uint64_t slot[], unsigned n, bool stale)
{
	pthread_mutex_lock(&d->slot_lock);
	for (unsigned i = 0; i < n; i++) {
		uint32_t *list = stale ? &d->stale : &d->empty;

		slot_of(d, slot[i])->next = *list;
		*list = (uint32_t)slot[i] + 1;
	}
	if (stale)
		d->nr_stale += n;
	pthread_mutex_unlock(&d->slot_lock);
}

/* ------------------------------------------------------------------ operations */

static inline void count(_Atomic int64_t *counter, int64_t n)
{
	if (n)
		atomic_fetch_add_explicit(counter, n, memory_order_relaxed);
}

/* Pages src[index[0..n)] to the server, up to TIER_PAGES; @stale: see slots_take().  How many it took, or -errno. */
static int put_some(struct hmm_ofi *d, struct tier_lane *lane, const void *const src[], const uint16_t index[],
		    unsigned n, bool stale, hmm_handle_t handle[])
{
	struct tier_head h = {.op = TIER_PUT};
	uint64_t slot[TIER_PAGES];
	unsigned got = slots_take(d, slot, n, stale);
	uint8_t *at;
	int rc;

	if (!got)
		return 0;
	h.n = (uint16_t)got;
	memcpy(h.slot, slot, got * sizeof(slot[0]));
	at = tier_frame_pages(&h, lane->out.p);
	for (unsigned i = 0; i < got; i++) {
		struct tier_slot *s = slot_of(d, slot[i]);

		s->gen = atomic_fetch_add(&d->gen, 1);
		tier_page_seal(&d->vault, slot[i], s->gen, src[index[i]], at + (size_t)i * HMM_PAGE_SIZE, s->tag);
	}
	rc = request(d, lane, &h, NULL);
	if (!rc && h.status)
		h.n = 0;
	for (unsigned i = 0; !rc && i < h.n; i++) {
		atomic_store_explicit(&slot_of(d, slot[i])->refs, 1, memory_order_release);
		handle[index[i]] = slot[i];
	}
	/* What it has refused is not there: those in which it has a page came first, and it does not refuse them. */
	if (rc || h.n < got)
		slots_free(d, slot + (rc ? 0 : h.n), got - (rc ? 0 : h.n), rc != 0);
	return rc ? rc : h.n;
}

static int ofi_copy_in(struct hmm_device *dev, const void *const src[], hmm_handle_t handle[], unsigned n)
{
	struct hmm_ofi *d = to_ofi(dev);
	uint16_t index[HMM_BATCH_MAX];
	struct tier_lane *lane = NULL;
	unsigned m = 0, got = 0, same = 0;
	bool full;

	if (atomic_load(&d->lost))
		goto fail;
	m = drv_same_split(src, handle, index, n);
	same = n - m;
	if (!m)
		goto done;
	full = atomic_load(&d->no_room) > 0;
	if (full) {
		atomic_fetch_sub(&d->no_room, 1);
		if (!nr_stale(d))
			goto done;
	}
	lane = lane_get(d, false);
	if (!lane)
		goto fail;
	while (got < m) {
		unsigned want = m - got < TIER_PAGES ? m - got : TIER_PAGES;
		int rc = put_some(d, lane, src, index + got, want, full, handle);

		if (rc < 0)
			goto fail; /* the lane is not used again */
		got += (unsigned)rc;
		if ((unsigned)rc < want) {
			if (!full)
				atomic_store(&d->no_room, NO_ROOM_CALLS);
			break;
		}
	}
	lane_put(d, lane);
done:
	count(&d->same_refs, same);
	count(&d->pages, got);
	atomic_fetch_add_explicit(&d->copied_in, same + got, memory_order_relaxed);
	return (int)(same + got);
fail:
	/* All or nothing: the caller has its pages still. */
	for (unsigned i = 0; i < n; i++)
		handle[i] = HMM_HANDLE_NONE;
	atomic_fetch_add_explicit(&d->errors, 1, memory_order_relaxed);
	return -EIO;
}

/* Pages of handle[index[0..n)].  0, or -errno when none could be read. */
static int get_some(struct hmm_ofi *d, struct tier_lane *lane, const hmm_handle_t handle[], const uint16_t index[],
		    unsigned n, void *const dst[], int status[])
{
	struct tier_head h = {.op = TIER_GET, .n = (uint16_t)n};
	const uint8_t *pages;
	int rc;

	for (unsigned i = 0; i < n; i++)
		h.slot[i] = handle[index[i]];
	rc = request(d, lane, &h, &pages);
	if (rc)
		return -ENOTCONN;
	if (h.status)
		return -EIO;
	for (unsigned i = 0; i < n; i++) {
		const struct tier_slot *s = slot_of(d, handle[index[i]]);

		status[index[i]] = tier_page_open(&d->vault, handle[index[i]], s->gen,
						  pages + (size_t)i * HMM_PAGE_SIZE, s->tag, dst[index[i]]);
	}
	return 0;
}

static bool valid(struct hmm_ofi *d, hmm_handle_t handle)
{
	bool there;

	pthread_mutex_lock(&d->slot_lock);
	there = handle < d->nr_slots;
	pthread_mutex_unlock(&d->slot_lock);
	return there && atomic_load_explicit(&slot_of(d, handle)->refs, memory_order_acquire);
}

static int ofi_copy_out(struct hmm_device *dev, const hmm_handle_t handle[], void *const dst[], int status[],
			unsigned n)
{
	struct hmm_ofi *d = to_ofi(dev);
	uint16_t index[HMM_BATCH_MAX];
	struct tier_lane *lane;
	unsigned m = 0;
	int rc = 0;

	for (unsigned i = 0; i < n; i++) {
		status[i] = 0;
		if (drv_same_handle(handle[i]))
			status[i] = drv_same_decode(handle[i], dst[i]) ? 0 : -EIO;
		else if (!valid(d, handle[i]))
			status[i] = -EIO;
		else
			index[m++] = (uint16_t)i;
	}
	lane = m ? lane_get(d, true) : NULL;
	for (unsigned i = 0; i < m;) {
		unsigned want = m - i < TIER_PAGES ? m - i : TIER_PAGES;

		if (i) /* one request is what others may wait for */
			hmm_device_sleeps();
		rc = lane ? get_some(d, lane, handle, index + i, want, dst, status) : -ENOTCONN;
		if (rc == -EIO && want > 1) {
			/* One of them is not there: which? */
			hmm_device_sleeps();
			for (; want; want--, i++) {
				rc = get_some(d, lane, handle, index + i, 1, dst, status);
				if (rc == -ENOTCONN) /* those before are read */
					break;
				if (rc)
					status[index[i]] = rc;
			}
			if (rc != -ENOTCONN)
				continue;
		}
		for (unsigned k = 0; rc == -ENOTCONN && k < m - i; k++)
			status[index[i + k]] = rc;
		if (rc == -ENOTCONN)
			break;
		if (rc && want == 1)
			status[index[i]] = rc;
		i += want;
	}
	if (lane && rc != -ENOTCONN)
		lane_put(d, lane);
	return drv_count_out(status, n, &d->copied_out, &d->errors);
}

static void ofi_get(struct hmm_device *dev, const hmm_handle_t handle[], unsigned n)
{
	struct hmm_ofi *d = to_ofi(dev);
	int64_t same = 0;

	for (unsigned i = 0; i < n; i++) {
		if (drv_same_handle(handle[i]))
			same++;
		else
			drv_ref_get(&slot_of(d, handle[i])->refs);
	}
	count(&d->same_refs, same);
}

static void ofi_put(struct hmm_device *dev, const hmm_handle_t handle[], unsigned n)
{
	struct hmm_ofi *d = to_ofi(dev);
	int64_t same = 0, pages = 0;

	for (unsigned i = 0; i < n; i++) {
		uint64_t slot = handle[i];

		if (drv_same_handle(slot)) {
			same++;
		} else if (drv_ref_put(&slot_of(d, slot)->refs)) {
			slots_free(d, &slot, 1, true);
			pages++;
		}
	}
	count(&d->same_refs, -same);
	count(&d->pages, -pages);
}

static bool ofi_same(struct hmm_device *dev, hmm_handle_t handle, const void *page)
{
	struct hmm_ofi *d = to_ofi(dev);
	const struct tier_slot *s;
	uint8_t out[HMM_PAGE_SIZE], tag[TIER_TAG];
	uint64_t word;

	if (drv_same_handle(handle))
		return drv_same_page(page, &word) && drv_same_encode(word) == handle;
	/* What is lost at the peer must not be relied on. */
	if (atomic_load(&d->lost) || !valid(d, handle))
		return false;
	s = slot_of(d, handle);
	tier_page_seal(&d->vault, handle, s->gen, page, out, tag);
	return !memcmp(tag, s->tag, sizeof(tag));
}

static bool ofi_shared(struct hmm_device *dev, hmm_handle_t handle)
{
	return !drv_same_handle(handle) &&
	       atomic_load_explicit(&slot_of(to_ofi(dev), handle)->refs, memory_order_relaxed) > 1;
}

static void ofi_stats(struct hmm_device *dev, struct hmm_device_stats *st)
{
	struct hmm_ofi *d = to_ofi(dev);
	uint64_t pages = drv_positive(&d->pages), same = drv_positive(&d->same_refs);

	*st = (struct hmm_device_stats){
		.pages = pages + same,
		.bytes_stored = pages * HMM_PAGE_SIZE,
		.bytes_ram = atomic_load_explicit(&d->ram.bytes, memory_order_relaxed),
		.bytes_capacity = d->session.max_slots * HMM_PAGE_SIZE,
		.pages_same = same,
		.pages_raw = pages,
		.copied_in = atomic_load_explicit(&d->copied_in, memory_order_relaxed),
		.copied_out = atomic_load_explicit(&d->copied_out, memory_order_relaxed),
		.errors = atomic_load_explicit(&d->errors, memory_order_relaxed),
	};
}

/* ------------------------------------------------------------------ the keeper */

/* Tells the server of up to TIER_FREES slots that are free.  False: there were none, it is lost, or not to
 * be had now. */
static bool free_some(struct hmm_ofi *d)
{
	struct tier_head h = {.op = TIER_FREE};
	uint64_t slot[TIER_FREES];
	struct tier_lane *lane = lane_try(d, TIER_LANES / 2, NULL);

	if (!lane)
		return false;
	pthread_mutex_lock(&d->slot_lock);
	for (; d->stale && h.n < TIER_FREES; h.n++) {
		slot[h.n] = h.slot[h.n] = d->stale - 1;
		d->stale = slot_of(d, slot[h.n])->next;
		d->nr_stale--;
	}
	pthread_mutex_unlock(&d->slot_lock);
	unsigned n = h.n;
	if (n && request(d, lane, &h, NULL))
		return false;
	slots_free(d, slot, n, false);
	lane_put(d, lane);
	if (n) /* there may be room again */
		atomic_store(&d->no_room, 0);
	return n > 0;
}

/*
 * Each lane, though the server needs to hear of one only: whoever is on the way (NAT, a firewall) may forget a
 * connection that is silent, and then the first request on it loses the peer.  Who uses one now says something on it;
 * under a steady load it may always be the same few that are used.
 */
static void ping(struct hmm_ofi *d)
{
	for (unsigned i = 0; i < TIER_LANES; i++) {
		struct tier_head h = {.op = TIER_PING};
		struct tier_lane *lane = lane_try(d, 0, &d->lane[i]);

		if (lane && !request(d, lane, &h, NULL))
			lane_put(d, lane);
	}
}

/* Of a lost peer: the next idle lane. */
static struct tier_lane *lane_last(struct hmm_ofi *d)
{
	struct tier_lane *lane;

	pthread_mutex_lock(&d->lock);
	lane = d->idle;
	if (lane) {
		d->idle = lane->next;
		d->nr_idle--;
	}
	pthread_mutex_unlock(&d->lock);
	return lane;
}

static void *keeper_main(void *arg)
{
	struct hmm_ofi *d = arg;
	uint64_t pinged = ofi_now_ns(), before = 0;
	bool ends = false;

	while (!ends && !atomic_load(&d->lost)) {
		struct timespec until;
		uint64_t at = ofi_now_ns() + KEEPER_NS, stale;

		until = (struct timespec){.tv_sec = (time_t)(at / SECOND), .tv_nsec = (long)(at % SECOND)};
		pthread_mutex_lock(&d->lock);
		if (!d->keeper_ends)
			pthread_cond_timedwait(&d->keeper_cond, &d->lock, &until);
		ends = d->keeper_ends;
		pthread_mutex_unlock(&d->lock);
		if (ends)
			break;
		stale = nr_stale(d);
		/* What has been free since the last look, more or less: the rest is likely to be used again. */
		for (uint64_t n = stale < before ? stale : before; n; n -= n < TIER_FREES ? n : TIER_FREES)
			if (!free_some(d))
				break;
		before = stale;
		atomic_store(&d->no_room, 0); /* others may have left */
		if (ofi_now_ns() - pinged >= atomic_load(&d->ping_ns)) {
			ping(d);
			pinged = ofi_now_ns();
		}
	}
	/* The server need not wait for us to end before it frees what we cannot have any more. */
	for (struct tier_lane *lane; !ends && (lane = lane_last(d));)
		tier_lane_close(lane);
	return NULL;
}

/* ------------------------------------------------------------------------ open */

static void ofi_close(struct hmm_device *dev)
{
	struct hmm_ofi *d = to_ofi(dev);

	pthread_mutex_lock(&d->lock);
	d->keeper_ends = true;
	pthread_cond_signal(&d->keeper_cond);
	pthread_mutex_unlock(&d->lock);
	pthread_join(d->keeper, NULL);
	for (unsigned i = 0; i < TIER_LANES; i++)
		tier_lane_close(&d->lane[i]);
	pthread_cond_destroy(&d->keeper_cond);
	pthread_cond_destroy(&d->idle_again);
	pthread_mutex_destroy(&d->slot_lock);
	pthread_mutex_destroy(&d->lock);
	drv_area_release(&d->slots);
	sodium_memzero(d, sizeof(*d));
	free(d);
}

static const struct hmm_device_ops ofi_ops = {
	.name = "ofi",
	.caps = HMM_DEV_MEMORY | HMM_DEV_MAYBLOCK | HMM_DEV_TELLS,
	.copy_in = ofi_copy_in,
	.copy_out = ofi_copy_out,
	.get = ofi_get,
	.put = ofi_put,
	.same = ofi_same,
	.shared = ofi_shared,
	.stats = ofi_stats,
	.close = ofi_close,
};

static int keeper_start(struct hmm_ofi *d)
{
	pthread_condattr_t attr;
	sigset_t all, old;
	int rc;

	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&d->keeper_cond, &attr);
	pthread_condattr_destroy(&attr);
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	rc = pthread_create(&d->keeper, NULL, keeper_main, d);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	return -rc;
}

static int ofi_open(const char *arg, struct hmm_device **devp, char *err, size_t errlen)
{
	struct hmm_ofi *d;
	unsigned lanes;
	int rc;

	d = aligned_alloc(64, (sizeof(*d) + 63) & ~(size_t)63);
	if (!d)
		return drv_fail(-ENOMEM, err, errlen, "ofi: out of memory");
	memset(d, 0, sizeof(*d));
	rc = tier_addr_parse(arg, &d->addr, err, errlen);
	if (!rc)
		rc = tier_secret_load(&d->secret, d->addr.key[0] ? d->addr.key : NULL, err, errlen);
	if (rc)
		goto undo_alloc;
	for (lanes = 0; lanes < TIER_LANES; lanes++) {
		rc = tier_lane_open(&d->lane[lanes], &d->addr, &d->secret, &d->session, err, errlen);
		if (rc)
			goto undo_lanes;
	}
	if (d->session.max_slots >= UINT32_MAX)
		d->session.max_slots = UINT32_MAX - 1;
	rc = drv_area_reserve(&d->slots, d->session.max_slots * sizeof(struct tier_slot));
	if (rc) {
		drv_fail(rc, err, errlen, "ofi: cannot reserve addresses; see ulimit -v");
		goto undo_lanes;
	}
	d->dev.ops = &ofi_ops;
	d->ram.limit = UINT64_MAX;
	drv_ram_charge(&d->ram, sizeof(*d) + TIER_LANES * 2 * TIER_FRAME_MAX);
	atomic_init(&d->ping_ns, PING_NS);
	tier_vault_init(&d->vault, false);
	pthread_mutex_init(&d->lock, NULL);
	pthread_mutex_init(&d->slot_lock, NULL);
	pthread_cond_init(&d->idle_again, NULL);
	for (unsigned i = 0; i < TIER_LANES; i++)
		lane_put(d, &d->lane[i]);
	rc = keeper_start(d);
	if (rc) {
		drv_fail(rc, err, errlen, "ofi: cannot start a thread: %s", strerror(-rc));
		goto undo_all;
	}
	*devp = &d->dev;
	return 0;

undo_all:
	pthread_cond_destroy(&d->keeper_cond);
	pthread_cond_destroy(&d->idle_again);
	pthread_mutex_destroy(&d->slot_lock);
	pthread_mutex_destroy(&d->lock);
	drv_area_release(&d->slots);
undo_lanes:
	while (lanes--)
		tier_lane_close(&d->lane[lanes]);
undo_alloc:
	sodium_memzero(d, sizeof(*d));
	free(d);
	return rc;
}

const struct hmm_driver hmm_driver_ofi = {
	.name = "ofi",
	.usage = "ofi://HOST:PORT[,key=FILE]",
	.open = ofi_open,
};
