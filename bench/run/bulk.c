/* SPDX-License-Identifier: MIT */
/*
 * bulk MIB RATIO: all of a range to the lz4 device and back, by a linked engine,
 * beside LZ4 alone on the same pages, in turns.  One line of JSON, GB/s of wall
 * time and of CPU time, the best of each.
 *
 * lz4_in and lz4_out write to memory that is there, lz4_in_fresh and lz4_out_fresh
 * to memory that is had for it, as whoever stores pages, and brings them back, must
 * have it.  What does not compress (RATIO 1) the device takes only when it is told
 * to, as it is here.
 */
#include <errno.h>
#include <lz4.h>
#include <stdio.h>
#include <sys/mman.h>

#include "cli/bench/data.h"
#include "hmm.h"
#include "cli/bench/measure.h"

#define ROUNDS 5

enum { OUT, IN, LZ4_IN, LZ4_OUT, LZ4_IN_FRESH, LZ4_OUT_FRESH, KINDS };

static uint64_t cpu_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &ts);
	return (uint64_t)ts.tv_sec * 1000000000ull + (uint64_t)ts.tv_nsec;
}

static double wall[KINDS], cpu[KINDS];

static void best(int kind, size_t bytes, uint64_t t, uint64_t c)
{
	double w = (double)bytes / (double)(umm_now_ns() - t), u = (double)bytes / (double)(cpu_ns() - c);

	wall[kind] = w > wall[kind] ? w : wall[kind];
	cpu[kind] = u > cpu[kind] ? u : cpu[kind];
}

static void check(const char *what, int rc)
{
	if (!rc)
		return;
	fprintf(stderr, "%s: %s\n", what, strerror(-rc));
	exit(rc == -EPERM || rc == -EOPNOTSUPP ? 77 : 1);
}

static void unpack(int kind, const char *packed, const int *len, char *page, size_t npages)
{
	uint64_t c = cpu_ns(), t = umm_now_ns();

	for (size_t i = 0; i < npages; i++) {
		if (LZ4_decompress_safe(packed, page + i * DATA_PAGE, len[i], DATA_PAGE) != (int)DATA_PAGE)
			exit(1);
		packed += len[i];
	}
	best(kind, npages * DATA_PAGE, t, c);
}

static void pack(int kind, const char *p, size_t npages, char *to, int *len, void *state)
{
	uint64_t c = cpu_ns(), t = umm_now_ns();

	for (size_t i = 0; i < npages; i++) {
		len[i] = LZ4_compress_fast_extState(state, p + i * DATA_PAGE, to, DATA_PAGE, DATA_PAGE + 64, 1);
		to += len[i];
	}
	best(kind, npages * DATA_PAGE, t, c);
}

/* LZ4 as the device calls it, and nothing else. */
static void alone(const char *p, size_t npages, char *packed, int *len, char *page, void *state)
{
	size_t bytes = npages * DATA_PAGE, most = bytes + npages * 64;
	char *fresh = map_small(most);

	pack(LZ4_IN, p, npages, packed, len, state);
	unpack(LZ4_OUT, packed, len, page, npages);
	pack(LZ4_IN_FRESH, p, npages, fresh, len, state);
	munmap(fresh, most);
	fresh = map_small(bytes);
	unpack(LZ4_OUT_FRESH, packed, len, fresh, npages);
	munmap(fresh, bytes);
}

int main(int argc, char **argv)
{
	size_t npages = argc == 3 ? ((size_t)atol(argv[1]) << 20) / DATA_PAGE : 0, bytes = npages * DATA_PAGE;
	unsigned ratio = argc == 3 ? (unsigned)atoi(argv[2]) : 0;
	struct umm_space *space;
	struct hmm_device *dev;
	struct hmm_mm *mm;
	char err[256];

	if (!npages || !ratio) {
		fprintf(stderr, "usage: bulk MIB RATIO\n");
		return 2;
	}
	char *p = map_small(bytes), *packed = map_small(bytes + npages * 64), *page = map_small(bytes), want[DATA_PAGE];
	uintptr_t start = (uintptr_t)p;
	int *len = map_small(npages * sizeof(*len));
	void *state = map_small((size_t)LZ4_sizeofState());
	for (size_t i = 0; i < npages; i++)
		data_fill(p + i * DATA_PAGE, i, ratio);
	memset(packed, 1, bytes + npages * 64);
	memset(page, 1, bytes);
	check("umm_space_open_self", umm_space_open_self(&space));
	check("hmm_mm_open", hmm_mm_open(space, &mm));
	if (hmm_device_open(ratio > 1 ? "lz4" : "lz4:raw", &dev, err, sizeof(err))) {
		fprintf(stderr, "%s\n", err);
		return 1;
	}
	check("hmm_mm_add_device", hmm_mm_add_device(mm, dev));
	check("hmm_mm_manage", hmm_mm_manage(mm, start, start + bytes));
	for (int round = 0; round < ROUNDS; round++) {
		uint64_t moved, c, t;

		alone(p, npages, packed, len, page, state);
		c = cpu_ns();
		t = umm_now_ns();
		check("hmm_migrate_to_device", hmm_migrate_to_device(mm, dev, start, start + bytes, NULL, &moved));
		best(OUT, moved * DATA_PAGE, t, c);
		if (moved != npages)
			fprintf(stderr, "%zu pages of %zu went\n", (size_t)moved, npages);
		c = cpu_ns();
		t = umm_now_ns();
		check("hmm_migrate_to_system", hmm_migrate_to_system(mm, dev, start, start + bytes, &moved));
		best(IN, moved * DATA_PAGE, t, c);
	}
	for (size_t i = 0; i < npages; i++) {
		data_fill(want, i, ratio);
		if (memcmp(want, p + i * DATA_PAGE, DATA_PAGE)) {
			fprintf(stderr, "page %zu is wrong\n", i);
			return 1;
		}
	}
	check("hmm_mm_close", hmm_mm_close(mm));
	hmm_device_close(dev);
	umm_space_close(space);
	static const char *const name[KINDS] = {"out", "in", "lz4_in", "lz4_out", "lz4_in_fresh", "lz4_out_fresh"};
	for (int k = 0; k < KINDS; k++)
		printf("%s\"%s\": %.3f, \"%s_cpu\": %.3f", k ? ", " : "{", name[k], wall[k], name[k], cpu[k]);
	printf("}\n");
	return 0;
}
