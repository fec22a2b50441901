/* SPDX-License-Identifier: MIT */
/*
 * lz4: compressed RAM.
 *
 * DOC: what an object is
 *
 * Its length tells: 8 bytes are the word that fills the page, a page's worth is
 * the page itself, anything else is an LZ4 block (which is never 8 bytes for a
 * page).  The checksum is that of the uncompressed page, so that it covers the
 * store, its bookkeeping and the decompressor alike.
 *
 * Compression and decompression run with no lock held: in a work area of the
 * call's own, and straight from a pinned object.
 */
#include "drivers/counts.h"
#include "drivers/driver.h"
#include "drivers/lz4/lz4.h"
#include "drivers/same.h"
#include "hmm/size.h"

#include <errno.h>
#include <lz4.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <xxhash.h>

#define LIMIT (HMM_PAGE_SIZE / 4 * 3) /* what compresses to more is better off in another tier */
#define CAPACITY_MIN ((uint64_t)256 << 10)
#define IDLE_MAX 16
#define COMPACT_BYTES ((uint64_t)256 << 10)

struct lz4_work {
	struct lz4_work *next;
	char *state;
	char out[HMM_PAGE_SIZE];
};

static inline struct hmm_lz4 *to_lz4(struct hmm_device *dev)
{
	return (struct hmm_lz4 *)dev;
}

static inline uint32_t checksum(const void *page)
{
	return (uint32_t)XXH3_64bits(page, HMM_PAGE_SIZE);
}

static inline void count(_Atomic int64_t *counter, int64_t n)
{
	if (n)
		atomic_fetch_add_explicit(counter, n, memory_order_relaxed);
}

static inline void count_ever(_Atomic uint64_t *counter, uint64_t n)
{
	if (n)
		atomic_fetch_add_explicit(counter, n, memory_order_relaxed);
}

/* -------------------------------------------------------------- work areas */

static size_t work_bytes(void)
{
	return (sizeof(struct lz4_work) + 63 + (size_t)LZ4_sizeofState() + 4095) & ~(size_t)4095;
}

static struct lz4_work *work_get(struct hmm_lz4 *d)
{
	struct lz4_work *w;

	pthread_mutex_lock(&d->lock);
	w = d->idle;
	if (w) {
		d->idle = w->next;
		d->nr_idle--;
	}
	pthread_mutex_unlock(&d->lock);
	if (w)
		return w;
	if (!drv_ram_charge(&d->ram, work_bytes()))
		return NULL;
	w = drv_map(work_bytes());
	if (!w) {
		drv_ram_uncharge(&d->ram, work_bytes());
		return NULL;
	}
	w->state = (char *)w + ((sizeof(*w) + 63) & ~(size_t)63);
	return w;
}

static void work_free(struct hmm_lz4 *d, struct lz4_work *w)
{
	munmap(w, work_bytes());
	drv_ram_uncharge(&d->ram, work_bytes());
}

static void work_put(struct hmm_lz4 *d, struct lz4_work *w)
{
	pthread_mutex_lock(&d->lock);
	if (d->nr_idle < IDLE_MAX) {
		w->next = d->idle;
		d->idle = w;
		d->nr_idle++;
		w = NULL;
	}
	pthread_mutex_unlock(&d->lock);
	if (w)
		work_free(d, w);
}

/* --------------------------------------------------------------- operations */

static bool add(struct hmm_lz4 *d, const void *data, int len, const void *page, bool *compacted, uint64_t *index)
{
	uint32_t sum = checksum(page);

	if (lz4_store_add(&d->store, data, (uint16_t)len, sum, index))
		return true;
	/* There may be room in pieces; but a store that is simply full must not be searched for every page. */
	if (*compacted)
		return false;
	*compacted = true;
	return lz4_store_compact(&d->store, COMPACT_BYTES) && lz4_store_add(&d->store, data, (uint16_t)len, sum, index);
}

static int lz4_copy_in(struct hmm_device *dev, const void *const src[], hmm_handle_t handle[], unsigned n)
{
	struct hmm_lz4 *d = to_lz4(dev);
	int64_t same_refs = 0, objects = 0, same = 0, raw = 0, bytes = 0;
	struct lz4_work *w = NULL;
	bool full = false, compacted = false;

	for (unsigned i = 0; i < n; i++) {
		const void *data;
		uint64_t word;
		int len;

		handle[i] = HMM_HANDLE_NONE;
		if (drv_same_page(src[i], &word)) {
			handle[i] = drv_same_encode(word);
			if (handle[i] != HMM_HANDLE_NONE) {
				same_refs++;
				continue;
			}
			data = &word;
			len = sizeof(word);
		} else if (full) {
			continue;
		} else {
			if (!w)
				w = work_get(d);
			if (!w) {
				full = true;
				continue;
			}
			data = w->out;
			len = LZ4_compress_fast_extState(w->state, src[i], w->out, HMM_PAGE_SIZE, (int)LIMIT, 1);
			if (len <= 0) {
				if (!d->raw)
					continue;
				data = src[i];
				len = HMM_PAGE_SIZE;
			}
		}
		if (!add(d, data, len, src[i], &compacted, &handle[i])) {
			handle[i] = HMM_HANDLE_NONE;
			full = true;
			continue;
		}
		objects++;
		same += len == sizeof(word);
		raw += len == HMM_PAGE_SIZE;
		bytes += len;
	}
	if (w) {
		explicit_bzero(w->out, sizeof(w->out));
		work_put(d, w);
	}
	count(&d->same_refs, same_refs);
	count(&d->objects, objects);
	count(&d->objects_same, same);
	count(&d->objects_raw, raw);
	count(&d->bytes_stored, bytes);
	count_ever(&d->copied_in, (uint64_t)(same_refs + objects));
	return (int)(same_refs + objects);
}

static int read_page(struct hmm_lz4 *d, hmm_handle_t handle, void *dst)
{
	const struct lz4_object *obj;
	uint64_t word;
	uint32_t sum;
	uint16_t len;
	int rc = 0;

	if (drv_same_handle(handle))
		return drv_same_decode(handle, dst) ? 0 : -EIO;

	obj = lz4_store_pin(&d->store, handle, &len);
	if (!obj)
		return -EIO;
	sum = obj->sum;
	if (len == sizeof(word)) {
		memcpy(&word, obj->data, sizeof(word));
		drv_same_fill(dst, word);
	} else if (len == HMM_PAGE_SIZE) {
		memcpy(dst, obj->data, HMM_PAGE_SIZE);
	} else if (LZ4_decompress_safe((const char *)obj->data, dst, len, HMM_PAGE_SIZE) != HMM_PAGE_SIZE) {
		rc = -EBADMSG;
	}
	lz4_store_unpin(&d->store, handle);
	if (!rc && checksum(dst) != sum)
		rc = -EBADMSG;
	return rc;
}

static bool lz4_same(struct hmm_device *dev, hmm_handle_t handle, const void *page)
{
	struct hmm_lz4 *d = to_lz4(dev);
	uint64_t word, held;
	bool same = false;

	if (drv_same_handle(handle))
		return drv_same_page(page, &word) && drv_same_encode(word) == handle;
	uint16_t len;
	const struct lz4_object *obj = lz4_store_pin(&d->store, handle, &len);
	if (!obj)
		return false;
	if (len == sizeof(held)) {
		memcpy(&held, obj->data, sizeof(held));
		same = drv_same_page(page, &word) && word == held;
	} else if (len == HMM_PAGE_SIZE) {
		same = !memcmp(page, obj->data, HMM_PAGE_SIZE);
	} else {
		char out[HMM_PAGE_SIZE];

		same = LZ4_decompress_safe((const char *)obj->data, out, len, HMM_PAGE_SIZE) == HMM_PAGE_SIZE &&
		       !memcmp(page, out, HMM_PAGE_SIZE);
		explicit_bzero(out, sizeof(out));
	}
	lz4_store_unpin(&d->store, handle);
	return same;
}

static int lz4_copy_out(struct hmm_device *dev, const hmm_handle_t handle[], void *const dst[], int status[],
			unsigned n)
{
	struct hmm_lz4 *d = to_lz4(dev);
	uint64_t errors = 0;
	int rc = 0;

	for (unsigned i = 0; i < n; i++) {
		status[i] = read_page(d, handle[i], dst[i]);
		if (status[i]) {
			errors++;
			if (!rc)
				rc = status[i];
		}
	}
	count_ever(&d->copied_out, n - errors);
	count_ever(&d->errors, errors);
	return rc;
}

static void lz4_get(struct hmm_device *dev, const hmm_handle_t handle[], unsigned n)
{
	struct hmm_lz4 *d = to_lz4(dev);
	int64_t same_refs = 0;

	for (unsigned i = 0; i < n; i++) {
		if (drv_same_handle(handle[i]))
			same_refs++;
		else
			lz4_store_get(&d->store, handle[i]);
	}
	count(&d->same_refs, same_refs);
}

static void lz4_put(struct hmm_device *dev, const hmm_handle_t handle[], unsigned n)
{
	struct hmm_lz4 *d = to_lz4(dev);
	int64_t same_refs = 0, objects = 0, same = 0, raw = 0, bytes = 0;

	for (unsigned i = 0; i < n; i++) {
		uint16_t len;

		if (drv_same_handle(handle[i])) {
			same_refs--;
		} else if (lz4_store_put(&d->store, handle[i], &len)) {
			objects--;
			same -= len == 8;
			raw -= len == HMM_PAGE_SIZE;
			bytes -= len;
		}
	}
	count(&d->same_refs, same_refs);
	count(&d->objects, objects);
	count(&d->objects_same, same);
	count(&d->objects_raw, raw);
	count(&d->bytes_stored, bytes);
}

static bool lz4_shared(struct hmm_device *dev, hmm_handle_t handle)
{
	return !drv_same_handle(handle) && lz4_store_shared(&to_lz4(dev)->store, handle);
}

static size_t lz4_trim(struct hmm_device *dev, size_t bytes)
{
	struct hmm_lz4 *d = to_lz4(dev);
	struct lz4_work *w, *next;
	size_t given = 0;

	pthread_mutex_lock(&d->lock);
	w = d->idle;
	d->idle = NULL;
	d->nr_idle = 0;
	pthread_mutex_unlock(&d->lock);
	for (; w; w = next) {
		next = w->next;
		work_free(d, w);
		given += work_bytes();
	}
	return given + lz4_store_compact(&d->store, bytes);
}

static void lz4_stats(struct hmm_device *dev, struct hmm_device_stats *st)
{
	struct hmm_lz4 *d = to_lz4(dev);
	uint64_t same_refs = drv_positive(&d->same_refs);

	*st = (struct hmm_device_stats){
		/* Pages that are nothing but a handle count once per reference: nothing tells them apart. */
		.pages = same_refs + drv_positive(&d->objects),
		.bytes_stored = drv_positive(&d->bytes_stored),
		.bytes_ram = atomic_load_explicit(&d->ram.bytes, memory_order_relaxed),
		.bytes_capacity = d->capacity,
		.pages_same = same_refs + drv_positive(&d->objects_same),
		.pages_raw = drv_positive(&d->objects_raw),
		.copied_in = atomic_load_explicit(&d->copied_in, memory_order_relaxed),
		.copied_out = atomic_load_explicit(&d->copied_out, memory_order_relaxed),
		.errors = atomic_load_explicit(&d->errors, memory_order_relaxed),
		.bytes_records = lz4_store_records(&d->store) + drv_positive(&d->objects) * LZ4_OBJECT_HEAD,
	};
}

static void lz4_close(struct hmm_device *dev)
{
	struct hmm_lz4 *d = to_lz4(dev);

	while (d->idle) {
		struct lz4_work *w = d->idle;

		d->idle = w->next;
		work_free(d, w);
	}
	lz4_store_exit(&d->store);
	pthread_mutex_destroy(&d->lock);
	free(d);
}

static const struct hmm_device_ops lz4_ops = {
	.name = "lz4",
	.caps = HMM_DEV_MEMORY | HMM_DEV_RAM,
	.copy_in = lz4_copy_in,
	.copy_out = lz4_copy_out,
	.get = lz4_get,
	.put = lz4_put,
	.same = lz4_same,
	.shared = lz4_shared,
	.trim = lz4_trim,
	.stats = lz4_stats,
	.close = lz4_close,
};

/* -------------------------------------------------------------------- open */

static int parse(const char *arg, uint64_t *capacity, bool *raw, char *err, size_t errlen)
{
	while (*arg) {
		size_t n = strcspn(arg, ",");
		char word[32];

		if (n >= sizeof(word))
			goto bad;
		memcpy(word, arg, n);
		word[n] = '\0';
		if (!strcmp(word, "raw"))
			*raw = true;
		else if (hmm_size_parse(word, capacity))
			goto bad;
		arg += n;
		if (*arg == ',' && !*++arg)
			goto bad;
	}
	if (*capacity < CAPACITY_MIN)
		return drv_fail(-EINVAL, err, errlen, "lz4: less than %llu KiB is no use",
				(unsigned long long)(CAPACITY_MIN >> 10));
	return 0;
bad:
	return drv_fail(-EINVAL, err, errlen, "lz4: cannot read \"%s\"; say lz4, lz4:SIZE (like 512M), lz4:SIZE,raw",
			arg);
}

static int lz4_open(const char *arg, struct hmm_device **devp, char *err, size_t errlen)
{
	uint64_t capacity = UINT64_MAX, room;
	struct hmm_lz4 *d;
	bool raw = false;
	int rc;

	rc = parse(arg, &capacity, &raw, err, errlen);
	if (rc)
		return rc;

	/* More than the machine has is never used; a little more, as slabs are only partly touched. */
	room = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
	if (capacity < room)
		room = capacity;
	room = room * 2 + LZ4_CLASSES * (uint64_t)LZ4_SLAB_SIZE;

	d = aligned_alloc(64, (sizeof(*d) + 63) & ~(size_t)63);
	if (!d)
		return drv_fail(-ENOMEM, err, errlen, "lz4: out of memory");
	memset(d, 0, sizeof(*d));
	d->dev.ops = &lz4_ops;
	d->capacity = capacity;
	d->raw = raw;
	d->ram.limit = capacity;
	rc = lz4_store_init(&d->store, &d->ram, room);
	if (rc) {
		free(d);
		return drv_fail(rc, err, errlen, "lz4: cannot reserve addresses; see ulimit -v");
	}
	pthread_mutex_init(&d->lock, NULL);
	drv_ram_charge(&d->ram, (sizeof(*d) + 4095) & ~(size_t)4095);
	*devp = &d->dev;
	return 0;
}

const struct hmm_driver hmm_driver_lz4 = {
	.name = "lz4",
	.usage = "lz4[:SIZE][,raw]",
	.open = lz4_open,
};
