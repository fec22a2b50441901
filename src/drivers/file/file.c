/* SPDX-License-Identifier: MIT */
/*
 * file: pages in a file or on a block device, one slot of 4 KiB each.
 *
 * DOC: room
 *
 * The file is preallocated in steps, so that a full disk is found out before a
 * page is on its way: then the device is full, which is not an error.  Where
 * preallocation is not supported the write itself finds it out, and the page is
 * not taken.  After a step has failed, some calls pass before it is tried again.
 *
 * Locks: grow is held across fallocate(); that of the slots, which put takes,
 * nests inside it and is never held across a system call.
 */
#include "drivers/counts.h"
#include "drivers/driver.h"
#include "drivers/file/file.h"
#include "drivers/same.h"
#include "hmm/size.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#define NO_ROOM_CALLS 64

static inline struct hmm_file *to_file(struct hmm_device *dev)
{
	return (struct hmm_file *)dev;
}

static inline uint32_t checksum(const void *page)
{
	return (uint32_t)XXH3_64bits(page, HMM_PAGE_SIZE);
}

static inline bool aligned(const struct hmm_file *d, const void *p)
{
	return !d->backing.align || !((uintptr_t)p & (d->backing.align - 1));
}

/* -------------------------------------------------------------------- room */

static void grow(struct hmm_file *d, unsigned n, bool wait)
{
	if (!wait && pthread_mutex_trylock(&d->grow))
		return;
	if (wait)
		pthread_mutex_lock(&d->grow);
	if (d->no_room) {
		d->no_room--;
		goto out;
	}
	for (;;) {
		uint64_t nr = d->backing.size / HMM_PAGE_SIZE;
		uint64_t nfree;

		/* Room to choose from keeps the pages of a batch together. */
		pthread_mutex_lock(&d->slots.lock);
		nfree = d->slots.nfree;
		pthread_mutex_unlock(&d->slots.lock);
		if (nfree >= n + nr / 16 && nr == atomic_load_explicit(&d->slots.nr, memory_order_relaxed))
			break;
		if (nr == atomic_load_explicit(&d->slots.nr, memory_order_relaxed) && file_backing_grow(&d->backing)) {
			d->no_room = NO_ROOM_CALLS;
			break;
		}
		if (file_slots_extend(&d->slots, d->backing.size / HMM_PAGE_SIZE)) {
			d->no_room = NO_ROOM_CALLS;
			break;
		}
	}
out:
	pthread_mutex_unlock(&d->grow);
}

static unsigned take(struct hmm_file *d, uint64_t slot[], unsigned n)
{
	uint64_t nfree;

	pthread_mutex_lock(&d->slots.lock);
	nfree = d->slots.nfree;
	pthread_mutex_unlock(&d->slots.lock);
	/* Who has enough does not wait for another thread's fallocate(). */
	if (nfree < n + atomic_load_explicit(&d->slots.nr, memory_order_relaxed) / 16)
		grow(d, n, nfree < n);
	return file_slots_take(&d->slots, slot, n);
}

/* --------------------------------------------------------------- operations */

static void note(struct hmm_file *d, uint64_t slot, const void *page)
{
	struct file_slot *s = file_slot(&d->slots, slot);

	s->sum = checksum(page);
	if (d->dev.ops->same)
		s->hash = file_hash_page(&d->hash, page);
}

static int file_copy_in(struct hmm_device *dev, const void *const src[], hmm_handle_t handle[], unsigned n)
{
	struct hmm_file *d = to_file(dev);
	uint16_t index[HMM_BATCH_MAX];
	uint64_t slot[HMM_BATCH_MAX], failed[HMM_BATCH_MAX];
	unsigned m = drv_same_split(src, handle, index, n), got, nr_failed = 0, same = n - m;
	struct file_xfer *x;
	int rc = 0;

	got = m ? take(d, slot, m) : 0;
	if (!got)
		goto done;

	x = file_io_get(&d->io);
	if (!x) {
		file_slots_free(&d->slots, slot, got);
		got = 0;
		goto done;
	}
	file_xfer_begin(x, true);
	for (unsigned i = 0; i < got; i++) {
		void *buffer = (void *)src[index[i]];

		if (!aligned(d, buffer)) {
			buffer = file_xfer_bounce(&d->io, x, i);
			memcpy(buffer, src[index[i]], HMM_PAGE_SIZE);
		}
		file_xfer_page(x, slot[i], buffer);
	}
	file_xfer_submit(x);
	for (unsigned i = 0; i < got; i++)
		note(d, slot[i], src[index[i]]);
	file_xfer_wait(x);

	for (unsigned r = 0; r < x->nr_req; r++) {
		const struct file_req *req = &x->req[r];
		bool ok = req->res == (int)(req->pages * HMM_PAGE_SIZE);

		/* A part of it: what stopped it says so itself, to whoever writes next; mostly there is no room. */
		if (req->res < 0 && req->res != -ENOSPC && req->res != -EDQUOT && req->res != -EFBIG)
			rc = -EIO;
		for (unsigned i = req->page; i < req->page + req->pages; i++) {
			if (ok) {
				atomic_store_explicit(&file_slot(&d->slots, slot[i])->refs, 1, memory_order_release);
				handle[index[i]] = slot[i];
			} else {
				failed[nr_failed++] = slot[i];
			}
		}
	}
	file_io_put(&d->io, x);

	if (rc) {
		/* All or nothing: the caller has its pages still. */
		for (unsigned i = 0; i < got; i++)
			atomic_store_explicit(&file_slot(&d->slots, slot[i])->refs, 0, memory_order_relaxed);
		file_slots_free(&d->slots, slot, got);
		for (unsigned i = 0; i < n; i++)
			handle[i] = HMM_HANDLE_NONE;
		atomic_fetch_add_explicit(&d->errors, 1, memory_order_relaxed);
		return rc;
	}
	if (nr_failed) {
		file_slots_free(&d->slots, failed, nr_failed);
		got -= nr_failed;
	}
done:
	if (same)
		atomic_fetch_add_explicit(&d->same_refs, same, memory_order_relaxed);
	if (got)
		atomic_fetch_add_explicit(&d->pages, got, memory_order_relaxed);
	atomic_fetch_add_explicit(&d->copied_in, same + got, memory_order_relaxed);
	return (int)(same + got);
}

/* A request that failed as a whole may be good in part. */
static void read_one_by_one(struct file_xfer *x, const struct file_req *req, void *const buffer[], int status[])
{
	for (unsigned i = 0; i < req->pages; i++)
		if (file_xfer_sync(x, req, buffer[req->page + i], i) != (int)HMM_PAGE_SIZE)
			status[req->page + i] = -EIO;
}

static int file_copy_out(struct hmm_device *dev, const hmm_handle_t handle[], void *const dst[], int status[],
			 unsigned n)
{
	struct hmm_file *d = to_file(dev);
	uint64_t nr = atomic_load_explicit(&d->slots.nr, memory_order_acquire);
	uint16_t index[HMM_BATCH_MAX];
	void *buffer[HMM_BATCH_MAX];
	int result[HMM_BATCH_MAX];
	struct file_xfer *x;
	unsigned m = 0;

	for (unsigned i = 0; i < n; i++) {
		status[i] = 0;
		if (drv_same_handle(handle[i]))
			status[i] = drv_same_decode(handle[i], dst[i]) ? 0 : -EIO;
		else if (handle[i] >= nr ||
			 !atomic_load_explicit(&file_slot(&d->slots, handle[i])->refs, memory_order_acquire))
			status[i] = -EIO;
		else
			index[m++] = (uint16_t)i;
	}
	if (!m)
		goto done;
	x = file_io_get(&d->io);
	if (!x) {
		for (unsigned i = 0; i < m; i++)
			status[index[i]] = -EIO;
		goto done;
	}
	file_xfer_begin(x, false);
	for (unsigned i = 0; i < m; i++) {
		buffer[i] = aligned(d, dst[index[i]]) ? dst[index[i]] : file_xfer_bounce(&d->io, x, i);
		result[i] = 0;
		file_xfer_page(x, handle[index[i]], buffer[i]);
	}
	file_xfer_submit(x);
	file_xfer_wait(x);
	for (unsigned r = 0; r < x->nr_req; r++)
		if (x->req[r].res != (int)(x->req[r].pages * HMM_PAGE_SIZE))
			read_one_by_one(x, &x->req[r], buffer, result);
	for (unsigned i = 0; i < m; i++) {
		void *page = dst[index[i]];

		if (!result[i] && buffer[i] != page)
			memcpy(page, buffer[i], HMM_PAGE_SIZE);
		if (!result[i] && checksum(page) != file_slot(&d->slots, handle[index[i]])->sum)
			result[i] = -EBADMSG;
		status[index[i]] = result[i];
	}
	file_io_put(&d->io, x);
done:
	return drv_count_out(status, n, &d->copied_out, &d->errors);
}

static void file_get(struct hmm_device *dev, const hmm_handle_t handle[], unsigned n)
{
	struct hmm_file *d = to_file(dev);
	int64_t same = 0;

	for (unsigned i = 0; i < n; i++) {
		if (drv_same_handle(handle[i]))
			same++;
		else
			drv_ref_get(&file_slot(&d->slots, handle[i])->refs);
	}
	if (same)
		atomic_fetch_add_explicit(&d->same_refs, same, memory_order_relaxed);
}

static void file_put(struct hmm_device *dev, const hmm_handle_t handle[], unsigned n)
{
	struct hmm_file *d = to_file(dev);
	uint64_t gone[HMM_BATCH_MAX];
	unsigned nr_gone = 0;
	int64_t same = 0;

	for (unsigned i = 0; i < n; i++) {
		if (drv_same_handle(handle[i])) {
			same++;
			continue;
		}
		if (!drv_ref_put(&file_slot(&d->slots, handle[i])->refs))
			continue;
		gone[nr_gone++] = handle[i];
		if (nr_gone == HMM_BATCH_MAX) {
			file_slots_free(&d->slots, gone, nr_gone);
			atomic_fetch_sub_explicit(&d->pages, nr_gone, memory_order_relaxed);
			nr_gone = 0;
		}
	}
	if (nr_gone) {
		file_slots_free(&d->slots, gone, nr_gone);
		atomic_fetch_sub_explicit(&d->pages, nr_gone, memory_order_relaxed);
	}
	if (same)
		atomic_fetch_sub_explicit(&d->same_refs, same, memory_order_relaxed);
}

/* Reading it back to compare would take as long as writing it. */
static bool file_same(struct hmm_device *dev, hmm_handle_t handle, const void *page)
{
	struct hmm_file *d = to_file(dev);
	uint64_t word;

	if (drv_same_handle(handle))
		return drv_same_page(page, &word) && drv_same_encode(word) == handle;
	return handle < atomic_load_explicit(&d->slots.nr, memory_order_acquire) &&
	       checksum(page) == file_slot(&d->slots, handle)->sum &&
	       file_hash_page(&d->hash, page) == file_slot(&d->slots, handle)->hash;
}

static bool file_shared(struct hmm_device *dev, hmm_handle_t handle)
{
	struct hmm_file *d = to_file(dev);

	return !drv_same_handle(handle) &&
	       atomic_load_explicit(&file_slot(&d->slots, handle)->refs, memory_order_relaxed) > 1;
}

static size_t file_trim(struct hmm_device *dev, size_t bytes)
{
	return file_io_trim(&to_file(dev)->io);
}

static void file_stats(struct hmm_device *dev, struct hmm_device_stats *st)
{
	struct hmm_file *d = to_file(dev);
	uint64_t pages = drv_positive(&d->pages);
	uint64_t same = drv_positive(&d->same_refs);
	uint64_t ram = atomic_load_explicit(&d->ram.bytes, memory_order_relaxed);

	if (d->backing.ram)
		ram += atomic_load_explicit(&d->slots.nr, memory_order_relaxed) * HMM_PAGE_SIZE;
	*st = (struct hmm_device_stats){
		.pages = pages + same,
		.bytes_stored = pages * HMM_PAGE_SIZE,
		.bytes_ram = ram,
		.bytes_capacity = d->slots.max * HMM_PAGE_SIZE,
		.pages_same = same,
		.pages_raw = pages,
		.copied_in = atomic_load_explicit(&d->copied_in, memory_order_relaxed),
		.copied_out = atomic_load_explicit(&d->copied_out, memory_order_relaxed),
		.errors = atomic_load_explicit(&d->errors, memory_order_relaxed),
	};
}

static void file_close(struct hmm_device *dev)
{
	struct hmm_file *d = to_file(dev);

	file_io_exit(&d->io);
	file_slots_exit(&d->slots);
	file_backing_close(&d->backing);
	pthread_mutex_destroy(&d->grow);
	file_hash_exit(&d->hash);
	free(d);
}

static void file_leave(struct hmm_device *dev)
{
	file_backing_empty(&to_file(dev)->backing);
}

#define FILE_OPS(more, has_same)                                                                                      \
	{                                                                                                             \
		.name = "file", .caps = HMM_DEV_MEMORY | HMM_DEV_MAYBLOCK | (more), .copy_in = file_copy_in,          \
		.copy_out = file_copy_out, .get = file_get, .put = file_put, .same = has_same, .shared = file_shared, \
		.trim = file_trim, .stats = file_stats, .close = file_close, .leave = file_leave,                     \
	}

static const struct hmm_device_ops file_ops = FILE_OPS(0, file_same);
static const struct hmm_device_ops file_without_hash_ops = FILE_OPS(0, NULL);
/* A copy there takes RAM, of which more is wanted than there is. */
static const struct hmm_device_ops file_ram_ops = FILE_OPS(HMM_DEV_RAM, NULL);

/* -------------------------------------------------------------------- open */

/* PATH[,SIZE]: a path may hold commas, so only what reads as a size behind the last one is a size. */
static int parse(const char *arg, char *path, size_t len, uint64_t *limit, char *err, size_t errlen)
{
	const char *comma = strrchr(arg, ',');
	size_t n = strlen(arg);

	*limit = 0;
	if (comma && !hmm_size_parse(comma + 1, limit)) {
		n = (size_t)(comma - arg);
		if (*limit < HMM_PAGE_SIZE)
			return drv_fail(-EINVAL, err, errlen, "file: a size of %s is less than a page", comma + 1);
	}
	if (!n)
		return drv_fail(-EINVAL, err, errlen,
				"file: no path; say file:/var/tmp or file:/dev/DISK, and ,SIZE to limit it");
	if (n >= len)
		return drv_fail(-ENAMETOOLONG, err, errlen, "file: the path is too long");
	memcpy(path, arg, n);
	path[n] = '\0';
	return 0;
}

static int file_open(const char *arg, struct hmm_device **devp, char *err, size_t errlen)
{
	struct hmm_file *d;
	char path[4096];
	uint64_t limit;
	int rc;

	rc = parse(arg, path, sizeof(path), &limit, err, errlen);
	if (rc)
		return rc;
	d = calloc(1, sizeof(*d));
	if (!d)
		return drv_fail(-ENOMEM, err, errlen, "file: out of memory");
	rc = file_backing_open(&d->backing, path, limit, err, errlen);
	if (rc)
		goto undo_alloc;
	d->ram.limit = UINT64_MAX;
	rc = file_slots_init(&d->slots, &d->ram, d->backing.max / HMM_PAGE_SIZE);
	if (rc) {
		drv_fail(rc, err, errlen, "file: cannot reserve addresses; see ulimit -v");
		goto undo_backing;
	}
	rc = file_slots_extend(&d->slots, d->backing.size / HMM_PAGE_SIZE);
	if (rc) {
		drv_fail(rc, err, errlen, "file: out of memory");
		goto undo_slots;
	}
	file_io_init(&d->io, &d->ram, d->backing.fd);
	pthread_mutex_init(&d->grow, NULL);
	drv_ram_charge(&d->ram, sizeof(*d));
	if (d->backing.ram)
		d->dev.ops = &file_ram_ops;
	else
		d->dev.ops = file_hash_there() ? &file_ops : &file_without_hash_ops;
	if (d->dev.ops->same)
		file_hash_init(&d->hash);
	*devp = &d->dev;
	return 0;

undo_slots:
	file_slots_exit(&d->slots);
undo_backing:
	file_backing_close(&d->backing);
undo_alloc:
	free(d);
	return rc;
}

const struct hmm_driver hmm_driver_file = {
	.name = "file",
	.usage = "file:PATH[,SIZE]",
	.open = file_open,
};
