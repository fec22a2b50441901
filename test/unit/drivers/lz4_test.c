/* SPDX-License-Identifier: MIT */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <errno.h>
#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "drivers/lz4/lz4.h"
#include "drivers/same.h"
#include "hammer.h"
#include "pages.h"

static struct hmm_device *open_dev(const char *spec)
{
	struct hmm_device *dev;
	char err[200];

	assert_int_equal(hmm_device_open(spec, &dev, err, sizeof(err)), 0);
	return dev;
}

static void test_same_words(void **state)
{
	static const uint64_t said[] = {0,
					1,
					UINT64_MAX,
					0xabababababababab,
					0x8000000080000000,
					0xffffffff,
					0x00000fffffffffff,
					(uint64_t)-5,
					0xfffff00000000001,
					0x3ff0000000000000,
					0x8000000000000000,
					0xfffffffffff80000};
	static const uint64_t unsaid[] = {0x0000100000000001, 0x3ff0000000000001, 0x123456789abcdef0,
					  0xffffe00000000001};
	uint64_t page[HMM_PAGE_SIZE / 8], word;

	for (unsigned i = 0; i < sizeof(said) / sizeof(said[0]); i++) {
		hmm_handle_t h = drv_same_encode(said[i]);

		assert_true(h <= HMM_HANDLE_MAX && drv_same_handle(h));
		assert_true(drv_same_decode(h, page));
		assert_true(drv_same_page(page, &word));
		assert_true(word == said[i]);
	}
	for (unsigned i = 0; i < sizeof(unsaid) / sizeof(unsaid[0]); i++)
		assert_true(drv_same_encode(unsaid[i]) == HMM_HANDLE_NONE);
	for (unsigned i = 0; i < 64; i++) {
		for (unsigned j = 0; j < 64; j++) {
			uint64_t bits = (uint64_t)1 << i | (uint64_t)1 << j;

			for (unsigned not = 0; not < 2; not ++) {
				uint64_t want = not ? ~bits : bits;

				if (drv_same_decode(drv_same_encode(want), page))
					assert_true(page[0] == want);
			}
		}
	}
	assert_false(drv_same_decode(HMM_HANDLE_NONE, page));
	for (unsigned i = 0; i < HMM_PAGE_SIZE; i++) {
		memset(page, 7, sizeof(page));
		((char *)page)[i] = 8;
		assert_false(drv_same_page(page, &word));
	}
}

static void test_round_trip(void **state)
{
	struct hmm_device *dev = open_dev("lz4:16M,raw");
	hmm_handle_t handle[NR_KINDS * 20];
	unsigned n = 0;

	for (unsigned kind = 0; kind < NR_KINDS; kind++)
		for (uint64_t i = 0; i < 20; i++)
			assert_int_equal(put_in(dev, (enum kind)kind, i + 1000, &handle[n++]), 1);
	assert_int_equal(stats_of(dev).pages, n);
	assert_int_equal(stats_of(dev).pages_same, 60);
	assert_int_equal(stats_of(dev).pages_raw, 20);
	assert_int_equal(stats_of(dev).copied_in, n);
	for (unsigned i = 0; i < n; i++)
		assert_true(reads_as(dev, handle[i], (enum kind)(i / 20), i % 20 + 1000));
	dev->ops->put(dev, handle, n);
	assert_int_equal(stats_of(dev).pages, 0);
	assert_int_equal(stats_of(dev).pages_same, 0);
	assert_int_equal(stats_of(dev).pages_raw, 0);
	assert_int_equal(stats_of(dev).bytes_stored, 0);
	hmm_device_close(dev);
}

/* same(): the very bytes, of every kind of page, and no others. */
static void test_same_bytes(void **state)
{
	struct hmm_device *dev = open_dev("lz4:16M,raw");
	char page[HMM_PAGE_SIZE];

	for (unsigned kind = 0; kind < NR_KINDS; kind++) {
		hmm_handle_t handle;

		make_page(page, (enum kind)kind, 5);
		assert_int_equal(put_in(dev, (enum kind)kind, 5, &handle), 1);
		assert_true(dev->ops->same(dev, handle, page));
		for (unsigned i = 0; i < HMM_PAGE_SIZE; i++) {
			page[i] ^= 0x10;
			assert_false(dev->ops->same(dev, handle, page));
			page[i] ^= 0x10;
		}
		for (unsigned other = 0; other < NR_KINDS; other++) {
			make_page(page, (enum kind)other, 6);
			assert_int_equal(dev->ops->same(dev, handle, page), kind == ZERO && other == ZERO);
		}
		dev->ops->put(dev, &handle, 1);
	}
	hmm_device_close(dev);
}

static void test_every_length(void **state)
{
	struct hmm_device *dev = open_dev("lz4:64M,raw");
	static hmm_handle_t handle[4096];
	char page[HMM_PAGE_SIZE], got[HMM_PAGE_SIZE];
	const void *src[1] = {page};

	/* From nothing to all of it random: every size class, also those at the limit. */
	for (unsigned n = 0; n < 4096; n++) {
		memset(page, 1, sizeof(page));
		page[4095] = 2;
		for (unsigned i = 0; i < n; i++)
			page[i] = (char)mix(i);
		assert_int_equal(dev->ops->copy_in(dev, src, &handle[n], 1), 1);
	}
	for (unsigned n = 0; n < 4096; n++) {
		memset(page, 1, sizeof(page));
		page[4095] = 2;
		for (unsigned i = 0; i < n; i++)
			page[i] = (char)mix(i);
		assert_int_equal(get_out(dev, handle[n], got), 0);
		assert_memory_equal(page, got, HMM_PAGE_SIZE);
	}
	hmm_device_close(dev);
}

static void test_incompressible_refused(void **state)
{
	struct hmm_device *dev = open_dev("lz4");
	char page[3][HMM_PAGE_SIZE];
	const void *src[3] = {page[0], page[1], page[2]};
	hmm_handle_t handle[3] = {1, 2, 3};

	make_page(page[0], TEXT, 1);
	make_page(page[1], INCOMPRESSIBLE, 2);
	make_page(page[2], TEXT, 3);
	assert_int_equal(dev->ops->copy_in(dev, src, handle, 3), 2);
	assert_true(handle[1] == HMM_HANDLE_NONE);
	assert_true(reads_as(dev, handle[0], TEXT, 1));
	assert_true(reads_as(dev, handle[2], TEXT, 3));
	assert_true(stats_of(dev).bytes_capacity == UINT64_MAX);
	hmm_device_close(dev);
}

static void test_same_is_free(void **state)
{
	struct hmm_device *dev = open_dev("lz4");
	uint64_t before = stats_of(dev).bytes_ram;
	static hmm_handle_t handle[5000];

	for (unsigned i = 0; i < 5000; i++)
		assert_int_equal(put_in(dev, i % 2 ? ZERO : SAME, i, &handle[i]), 1);
	assert_int_equal(stats_of(dev).bytes_ram, before);
	assert_int_equal(stats_of(dev).bytes_stored, 0);
	dev->ops->put(dev, handle, 5000);
	for (unsigned i = 0; i < 5000; i++)
		assert_int_equal(put_in(dev, SAME_ODD, i, &handle[i]), 1);
	/* A slot of the smallest size and an entry each. */
	assert_in_range(stats_of(dev).bytes_ram - before, 5000 * 8, 5000 * 80);
	hmm_device_close(dev);
}

static void test_references(void **state)
{
	struct hmm_device *dev = open_dev("lz4");
	hmm_handle_t handle, zero;

	assert_int_equal(put_in(dev, TEXT, 5, &handle), 1);
	assert_int_equal(put_in(dev, ZERO, 5, &zero), 1);
	assert_false(dev->ops->shared(dev, handle));
	dev->ops->get(dev, &handle, 1);
	dev->ops->get(dev, &zero, 1);
	assert_true(dev->ops->shared(dev, handle));
	assert_false(dev->ops->shared(dev, zero));
	dev->ops->put(dev, &handle, 1);
	dev->ops->put(dev, &zero, 1);
	assert_false(dev->ops->shared(dev, handle));
	assert_true(reads_as(dev, handle, TEXT, 5));
	assert_true(reads_as(dev, zero, ZERO, 0));
	assert_int_equal(stats_of(dev).pages, 2);
	dev->ops->put(dev, &handle, 1);
	dev->ops->put(dev, &zero, 1);
	assert_int_equal(stats_of(dev).pages, 0);
	/* What is gone is gone: an error, never some page. */
	char page[HMM_PAGE_SIZE];

	assert_int_equal(get_out(dev, handle, page), -EIO);
	assert_int_equal(get_out(dev, HMM_HANDLE_NONE, page), -EIO);
	assert_int_equal(get_out(dev, (hmm_handle_t)1 << 40, page), -EIO);
	assert_int_equal(stats_of(dev).errors, 3);
	hmm_device_close(dev);
}

static void test_references_stick(void **state)
{
	struct hmm_device *dev = open_dev("lz4");
	hmm_handle_t handle;

	/* More references than are counted: never freed, rather than freed too early. */
	assert_int_equal(put_in(dev, TEXT, 5, &handle), 1);
	for (unsigned i = 0; i < 1 << 20; i++)
		dev->ops->get(dev, &handle, 1);
	for (unsigned i = 0; i < (1 << 20) + 1; i++)
		dev->ops->put(dev, &handle, 1);
	assert_true(reads_as(dev, handle, TEXT, 5));
	hmm_device_close(dev);
}

static void test_capacity(void **state)
{
	struct hmm_device *dev = open_dev("lz4:2M");
	static hmm_handle_t handle[20000];
	hmm_handle_t h;
	unsigned n = 0, again = 0;

	assert_int_equal(stats_of(dev).bytes_capacity, 2 << 20);
	while (put_in(dev, MEDIUM, n + 1, &handle[n]) == 1) {
		assert_true(stats_of(dev).bytes_ram <= 2 << 20);
		n++;
		assert_true(n < 20000);
	}
	/* About half of each page, and nearly all the room used for them. */
	assert_true(stats_of(dev).bytes_stored > (2 << 20) * 85 / 100);
	assert_int_equal(put_in(dev, TEXT, 1, &h) < 0, 0);
	assert_int_equal(put_in(dev, ZERO, 1, &h), 1);
	for (unsigned i = 0; i < n; i++)
		assert_true(reads_as(dev, handle[i], MEDIUM, i + 1));
	dev->ops->put(dev, handle, n / 2);
	while (put_in(dev, MEDIUM, again + 1, &handle[again]) == 1)
		again++;
	assert_true(again >= n / 2 - 1);
	assert_true(stats_of(dev).bytes_ram <= 2 << 20);
	hmm_device_close(dev);
}

static void test_overhead(void **state)
{
	struct hmm_device *dev = open_dev("lz4");
	hmm_handle_t h;
	struct hmm_device_stats st;

	/* Of all sizes: what the slabs lose is little. */
	for (unsigned n = 0; n < 40000; n++) {
		char page[HMM_PAGE_SIZE];
		const void *src[1] = {page};
		unsigned random = (unsigned)(mix(n) % 3000);

		memset(page, 0, sizeof(page));
		for (unsigned i = 0; i < random; i++)
			page[i] = (char)mix(n * 5000ull + i);
		page[4095] = 1;
		assert_int_equal(dev->ops->copy_in(dev, src, &h, 1), 1);
	}
	st = stats_of(dev);
	print_message("        40000 pages: %.1f MiB stored in %.1f MiB\n", (double)st.bytes_stored / (1 << 20),
		      (double)st.bytes_ram / (1 << 20));
	assert_true(st.bytes_ram < st.bytes_stored + st.bytes_stored * 8 / 100);
	hmm_device_close(dev);
}

/* What is known of a page beside its contents: an entry, the head of its object, and its part of a slab's head. */
static void test_records(void **state)
{
	struct hmm_device *dev = open_dev("lz4");
	struct hmm_device_stats st;
	const unsigned n = 20000;
	hmm_handle_t h;

	for (unsigned k = 0; k < n; k++) {
		uint64_t page[HMM_PAGE_SIZE / 8] = {0};
		const void *src[1] = {page};

		for (unsigned i = 0; i < 115; i++)
			page[i] = mix(k * 512ull + i);
		assert_int_equal(dev->ops->copy_in(dev, src, &h, 1), 1);
	}
	st = stats_of(dev);
	print_message("        %.2f bytes of records a page of %.0f\n", (double)st.bytes_records / n,
		      (double)st.bytes_stored / n);
	assert_int_equal(st.pages, n);
	assert_in_range(st.bytes_stored / n, 900, 1000); /* a quarter of a page, or it says something else */
	assert_in_range(st.bytes_records, 18 * n, 21 * n);
	hmm_device_close(dev);
}

/* What the kernel says that a range of ours takes, against what we say. */
static uint64_t resident(const struct drv_area *area)
{
	static unsigned char vec[1 << 20];
	uint64_t pages = 0;
	size_t len = area->usable;

	assert_true(len / 4096 <= sizeof(vec));
	if (!len)
		return 0;
	assert_int_equal(mincore(area->base, len, vec), 0);
	for (size_t i = 0; i < len / 4096; i++)
		pages += vec[i] & 1;
	return pages * 4096;
}

static uint64_t resident_all(struct hmm_device *dev)
{
	struct hmm_lz4 *d = (struct hmm_lz4 *)dev;

	return resident(&d->store.slabs.mem) + resident(&d->store.slabs.heads) + resident(&d->store.slabs.spare) +
	       resident(&d->store.table);
}

static void test_trim(void **state)
{
	enum { N = 20000 };
	struct hmm_device *dev = open_dev("lz4");
	hmm_handle_t *handle = calloc(N, sizeof(*handle));
	uint64_t full, holes, given, after, slack = 512 << 10;

	for (unsigned i = 0; i < N; i++)
		assert_int_equal(put_in(dev, i % 2 ? TEXT : MEDIUM, i, &handle[i]), 1);
	full = stats_of(dev).bytes_ram;
	assert_in_range(full, resident_all(dev), resident_all(dev) + slack);

	for (unsigned i = 0; i < N; i++)
		if (mix(i) % 10 < 7)
			dev->ops->put(dev, &handle[i], 1);
	holes = stats_of(dev).bytes_ram;
	given = dev->ops->trim(dev, SIZE_MAX);
	after = stats_of(dev).bytes_ram;
	assert_int_equal(holes - given, after);
	assert_true(after < full * 35 / 100 + slack);
	assert_in_range(after, resident_all(dev), resident_all(dev) + slack);
	for (unsigned i = 0; i < N; i++)
		if (mix(i) % 10 >= 7)
			assert_true(reads_as(dev, handle[i], i % 2 ? TEXT : MEDIUM, i));
	/* In steps it comes to the same, and a step is about as large as asked for. */
	for (unsigned i = 0; i < N; i++)
		if (mix(i) % 10 >= 7 && mix(i) % 3)
			dev->ops->put(dev, &handle[i], 1);
	dev->ops->trim(dev, 0);
	given = dev->ops->trim(dev, 200000);
	assert_in_range(given, 1, 200000 + 8 * 65536);
	while (dev->ops->trim(dev, 200000))
		;
	assert_true(stats_of(dev).bytes_ram < full * 15 / 100 + slack);
	for (unsigned i = 0; i < N; i++) {
		if (mix(i) % 10 < 7 || mix(i) % 3)
			continue;
		assert_true(reads_as(dev, handle[i], i % 2 ? TEXT : MEDIUM, i));
		dev->ops->put(dev, &handle[i], 1);
	}
	dev->ops->trim(dev, SIZE_MAX);
	assert_true(stats_of(dev).bytes_ram < slack);
	free(handle);
	hmm_device_close(dev);
}

static void test_bit_flips(void **state)
{
	static const enum kind kinds[] = {SAME_ODD, TEXT, MEDIUM, INCOMPRESSIBLE};
	struct hmm_device *dev = open_dev("lz4:16M,raw");
	struct hmm_lz4 *d = (struct hmm_lz4 *)dev;
	char page[HMM_PAGE_SIZE];

	for (unsigned k = 0; k < 4; k++) {
		struct lz4_object *obj;
		hmm_handle_t h;
		uint16_t len;

		assert_int_equal(put_in(dev, kinds[k], 3, &h), 1);
		obj = lz4_store_pin(&d->store, h, &len);
		lz4_store_unpin(&d->store, h);
		for (unsigned i = 0; i < len; i += 1 + len / 97) {
			int rc;

			obj->data[i] ^= 0x10;
			rc = get_out(dev, h, page);
			/* A flip may fall on a bit without meaning, but never is a wrong page right. */
			if (rc)
				assert_int_equal(rc, -EBADMSG);
			else
				assert_true(page_is(page, kinds[k], 3));
			obj->data[i] ^= 0x10;
		}
		obj->data[len / 2] ^= 1;
		assert_int_equal(get_out(dev, h, page), -EBADMSG);
		obj->data[len / 2] ^= 1;
		obj->sum ^= 4;
		assert_int_equal(get_out(dev, h, page), -EBADMSG);
		obj->sum ^= 4;
		for (unsigned bit = 0; bit < 16; bit++) {
			obj->len ^= (uint16_t)(1 << bit);
			assert_int_equal(get_out(dev, h, page), -EBADMSG);
			obj->len ^= (uint16_t)(1 << bit);
		}
		assert_true(reads_as(dev, h, kinds[k], 3));
	}
	assert_true(stats_of(dev).errors > 0);
	hmm_device_close(dev);
}

static void test_batch_status(void **state)
{
	struct hmm_device *dev = open_dev("lz4");
	struct hmm_lz4 *d = (struct hmm_lz4 *)dev;
	static char page[3][HMM_PAGE_SIZE];
	void *dst[3] = {page[0], page[1], page[2]};
	hmm_handle_t h[3];
	int status[3] = {1, 1, 1};
	uint16_t len;

	for (unsigned i = 0; i < 3; i++)
		assert_int_equal(put_in(dev, TEXT, i, &h[i]), 1);
	lz4_store_pin(&d->store, h[1], &len)->sum ^= 1;
	lz4_store_unpin(&d->store, h[1]);
	assert_int_equal(dev->ops->copy_out(dev, h, dst, status, 3), -EBADMSG);
	assert_int_equal(status[0], 0);
	assert_int_equal(status[1], -EBADMSG);
	assert_int_equal(status[2], 0);
	assert_true(page_is(page[0], TEXT, 0) && page_is(page[2], TEXT, 2));
	hmm_device_close(dev);
}

static void test_pinned_stays(void **state)
{
	enum { N = 2000 };
	struct hmm_device *dev = open_dev("lz4");
	struct hmm_lz4 *d = (struct hmm_lz4 *)dev;
	static hmm_handle_t handle[N];
	const struct lz4_object *obj[N];
	uint16_t len;

	for (unsigned i = 0; i < N; i++)
		assert_int_equal(put_in(dev, MEDIUM, i, &handle[i]), 1);
	for (unsigned i = 0; i < N; i++) {
		if (i % 4)
			dev->ops->put(dev, &handle[i], 1);
		else
			obj[i] = lz4_store_pin(&d->store, handle[i], &len);
	}
	dev->ops->trim(dev, SIZE_MAX);
	for (unsigned i = 0; i < N; i += 4) {
		assert_ptr_equal(obj[i], lz4_store_pin(&d->store, handle[i], &len));
		lz4_store_unpin(&d->store, handle[i]);
		lz4_store_unpin(&d->store, handle[i]);
	}
	assert_true(dev->ops->trim(dev, SIZE_MAX) > 1 << 20);
	for (unsigned i = 0; i < N; i += 4)
		assert_true(reads_as(dev, handle[i], MEDIUM, i));
	hmm_device_close(dev);
}

struct reader {
	struct hmm_device *dev;
	hmm_handle_t handle;
	_Atomic int started;
	bool right;
};

static void *read_one(void *arg)
{
	struct reader *r = arg;

	atomic_store(&r->started, 1);
	r->right = reads_as(r->dev, r->handle, MEDIUM, 9);
	return NULL;
}

static void test_locked_waits(void **state)
{
	struct hmm_device *dev = open_dev("lz4");
	struct hmm_lz4 *d = (struct hmm_lz4 *)dev;
	struct reader r = {.dev = dev};
	_Atomic uint64_t *entry;
	struct lz4_object *obj;
	pthread_t id;
	uint16_t len;

	assert_int_equal(put_in(dev, MEDIUM, 9, &r.handle), 1);
	obj = lz4_store_pin(&d->store, r.handle, &len);
	lz4_store_unpin(&d->store, r.handle);

	/* As while compaction moves it: a reader waits, however long that takes, and then finds it whole. */
	entry = (_Atomic uint64_t *)d->store.table.base + r.handle;
	atomic_fetch_or(entry, (uint64_t)1 << 63);
	obj->sum ^= 1;
	pthread_create(&id, NULL, read_one, &r);
	while (!atomic_load(&r.started))
		sched_yield();
	usleep(20000);
	obj->sum ^= 1;
	atomic_fetch_and(entry, ~((uint64_t)1 << 63));
	pthread_join(id, NULL);
	assert_true(r.right);
	hmm_device_close(dev);
}

static void test_threads(void **state)
{
	struct hmm_device *dev = open_dev("lz4:64M,raw");

	assert_int_equal(hammer(dev, 6, 3000, NR_KINDS), 0);
	assert_int_equal(stats_of(dev).errors, 0);
	hmm_device_close(dev);
}

static void test_threads_when_full(void **state)
{
	struct hmm_device *dev = open_dev("lz4:1M");

	assert_int_equal(hammer(dev, 6, 2000, NR_KINDS), 0);
	assert_int_equal(stats_of(dev).errors, 0);
	hmm_device_close(dev);
}

static void test_arguments(void **state)
{
	static const char *const bad[] = {"lz4:x", "lz4:1M,rawx", "lz4:,", "lz4:1k", "lz4:0", "lz4:-1M", "lz4:1M,raw,"};
	struct hmm_device *dev;
	char err[200];

	for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		err[0] = '\0';
		assert_int_equal(hmm_device_open(bad[i], &dev, err, sizeof(err)), -EINVAL);
		assert_null(dev);
		assert_true(strstr(err, "lz4") && !strchr(err, '\n'));
	}
	hmm_device_close(open_dev("lz4:raw"));
	hmm_device_close(open_dev("lz4:300K"));
}

static void figures(const char *name, enum kind kind)
{
	enum { N = 4096, BATCH = 64 };
	struct hmm_device *dev = open_dev("lz4:64M,raw");
	char *pages = aligned_alloc(4096, (size_t)N * HMM_PAGE_SIZE);
	hmm_handle_t *handle = calloc(N, sizeof(*handle));
	const void *src[BATCH];
	void *dst[BATCH];
	int status[BATCH];
	double t0, t1, t2;

	for (unsigned i = 0; i < N; i++)
		make_page(pages + (size_t)i * HMM_PAGE_SIZE, kind, i);
	t0 = now_ns();
	for (unsigned i = 0; i < N; i += BATCH) {
		for (unsigned j = 0; j < BATCH; j++)
			src[j] = pages + (size_t)(i + j) * HMM_PAGE_SIZE;
		assert_int_equal(dev->ops->copy_in(dev, src, handle + i, BATCH), BATCH);
	}
	t1 = now_ns();
	for (unsigned i = 0; i < N; i += BATCH) {
		for (unsigned j = 0; j < BATCH; j++)
			dst[j] = pages + (size_t)(i + j) * HMM_PAGE_SIZE;
		assert_int_equal(dev->ops->copy_out(dev, handle + i, dst, status, BATCH), 0);
	}
	t2 = now_ns();
	print_message("        %-14s in %6.0f ns/page, out %6.0f ns/page\n", name, (t1 - t0) / N, (t2 - t1) / N);
	free(handle);
	free(pages);
	hmm_device_close(dev);
}

static void test_figures(void **state)
{
	figures("zero", ZERO);
	figures("text", TEXT);
	figures("medium", MEDIUM);
	figures("incompressible", INCOMPRESSIBLE);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_same_words),
		cmocka_unit_test(test_round_trip),
		cmocka_unit_test(test_same_bytes),
		cmocka_unit_test(test_every_length),
		cmocka_unit_test(test_incompressible_refused),
		cmocka_unit_test(test_same_is_free),
		cmocka_unit_test(test_references),
		cmocka_unit_test(test_references_stick),
		cmocka_unit_test(test_capacity),
		cmocka_unit_test(test_overhead),
		cmocka_unit_test(test_records),
		cmocka_unit_test(test_trim),
		cmocka_unit_test(test_bit_flips),
		cmocka_unit_test(test_batch_status),
		cmocka_unit_test(test_pinned_stays),
		cmocka_unit_test(test_locked_waits),
		cmocka_unit_test(test_threads),
		cmocka_unit_test(test_threads_when_full),
		cmocka_unit_test(test_arguments),
		cmocka_unit_test(test_figures),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
