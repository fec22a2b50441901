/* SPDX-License-Identifier: MIT */
/*
 * What the mirror's calls cost, each beside the bare system call or copy that it
 * cannot do without.  The two are measured in turns and the best of each counts:
 * noise only ever adds.  Prints a table and, with an argument, JSON to that file.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "drivers/dmirror/memory.h"
#include "hmm.h"
#include "hmm_uapi.h"
#include "umm/hooks.h"

#define MIB (1ul << 20)
#define PAGE 4096ul
#define ROUNDS 7u
#define SNAP_BYTES (1024 * MIB)
#define NOTIFIERS 1000000u
#define MAPS 200u /* a round */
#define CHUNK (2 * MIB)
#define CHUNKS 32u

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static FILE *json;

/* @ours and @bare in @unit; @goal bounds the ratio from above, or from below when @more is better. */
static void row(const char *what, double ours, double bare, const char *unit, double ratio, double goal, bool more)
{
	printf("%-58s %10.2f %10.2f %-8s %6.2f  (%s %.2f)\n", what, ours, bare, unit, ratio, more ? ">=" : "<=", goal);
	if (json)
		fprintf(json,
			"%s\n  {\"what\": \"%s\", \"ours\": %.3f, \"bare\": %.3f, \"unit\": \"%s\", \"ratio\": %.3f, "
			"\"goal\": %.2f}",
			ftell(json) > 1 ? "," : "", what, ours, bare, unit, ratio, goal);
}

static void die(const char *what, int rc)
{
	fprintf(stderr, "%s: %s\n", what, strerror(rc < 0 ? -rc : rc));
	exit(1);
}

static char *anon(size_t len, int advice)
{
	char *p = mmap(NULL, len + CHUNK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (p == MAP_FAILED)
		die("mmap", errno);
	p = (char *)(((uintptr_t)p + CHUNK - 1) & ~(CHUNK - 1));
	madvise(p, len, advice);
	return p;
}

/* --------------------------------------------------------------------- ranges */

static bool forget(struct umm_notifier *n, const struct umm_change *change, uint64_t seq)
{
	umm_notifier_set_seq(n, seq);
	return true;
}

static const struct umm_notifier_ops quiet = {.invalidate = forget};

static void bare_scan(int fd, char *p, size_t len)
{
	struct page_region vec[64];
	uint64_t at = (uintptr_t)p, end = at + len;

	while (at < end) {
		struct pm_scan_arg a = {.size = sizeof(a),
					.start = at,
					.end = end,
					.vec = (uintptr_t)vec,
					.vec_len = 64,
					.category_anyof_mask = PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
					.return_mask = PAGE_IS_PRESENT | PAGE_IS_PFNZERO | PAGE_IS_HUGE | PAGE_IS_FILE};

		if (ioctl(fd, PAGEMAP_SCAN, &a) < 0)
			die("PAGEMAP_SCAN", errno);
		at = a.walk_end;
	}
}

static void bench_ranges(struct umm_space *space, int advice, const char *pages)
{
	char *p = anon(SNAP_BYTES, advice), what[96];
	uint64_t *entries = malloc(SNAP_BYTES / PAGE * sizeof(*entries));
	int fd = open("/proc/self/pagemap", O_RDONLY);
	uint64_t best[6] = {UINT64_MAX, UINT64_MAX, UINT64_MAX, UINT64_MAX, UINT64_MAX, UINT64_MAX};
	struct umm_notifier n = {0};
	int rc;

	memset(p, 1, SNAP_BYTES);
	rc = umm_notifier_insert(&n, space, (uintptr_t)p, SNAP_BYTES, &quiet);
	if (rc || !entries || fd < 0)
		die("setting ranges up", rc ? rc : ENOMEM);
	memset(entries, 0, SNAP_BYTES / PAGE * sizeof(*entries));
	for (unsigned i = 0; i < ROUNDS; i++) {
		struct umm_range r = {.space = space,
				      .notifier = &n,
				      .start = (uintptr_t)p,
				      .end = (uintptr_t)p + SNAP_BYTES,
				      .entries = entries,
				      .flags_mask = 0};
		uint64_t t[7];

		t[0] = now_ns();
		bare_scan(fd, p, SNAP_BYTES);
		t[1] = now_ns();
		rc = umm_range_snapshot(&r);
		t[2] = now_ns();
		if (rc || !(entries[0] & UMM_PFN_WRITE) || !(entries[SNAP_BYTES / PAGE - 1] & UMM_PFN_VALID))
			die("snapshot", rc ? rc : EIO);
		madvise(p, SNAP_BYTES, MADV_POPULATE_WRITE);
		t[3] = now_ns();
		r.default_flags = UMM_PFN_REQ_FAULT | UMM_PFN_REQ_WRITE;
		r.notifier_seq = umm_read_begin(&n);
		rc = umm_range_fault(&r);
		t[4] = now_ns();
		if (rc)
			die("fault", rc);
		for (unsigned k = 0; k < 4; k++)
			best[k] = t[k + 1] - t[k] < best[k] ? t[k + 1] - t[k] : best[k];
	}
	umm_notifier_remove(&n);
	munmap(p, SNAP_BYTES);
	free(entries);
	close(fd);
	snprintf(what, sizeof(what), "snapshot of 1 GiB of %s / PAGEMAP_SCAN", pages);
	row(what, (double)best[1] / 1e6, (double)best[0] / 1e6, "ms", (double)best[1] / (double)best[0], 1.2, false);
	snprintf(what, sizeof(what), "fault of 1 GiB of resident %s / MADV_POPULATE_WRITE", pages);
	row(what, (double)best[3] / 1e6, (double)best[2] / 1e6, "ms", (double)best[3] / (double)best[2], 1.5, false);
}

/* ------------------------------------------------------------------ notifiers */

static void bench_notifiers(struct umm_space *space)
{
	struct umm_notifier *n = calloc(NOTIFIERS, sizeof(*n));
	uint64_t best = UINT64_MAX, base = 1ull << 40, state = 1;

	for (unsigned i = 0; i < NOTIFIERS; i++) {
		int rc = umm_notifier_insert(&n[i], space, base + i * 4 * PAGE, 2 * PAGE, &quiet);

		if (rc)
			die("umm_notifier_insert", rc);
	}
	for (unsigned round = 0; round < ROUNDS; round++) {
		uint64_t t = now_ns();

		for (unsigned i = 0; i < NOTIFIERS / 4; i++) {
			state = state * 6364136223846793005ull + 1442695040888963407ull;
			uint64_t at = base + (state >> 33) % NOTIFIERS * 4 * PAGE;
			struct umm_change c = {
				.event = UMM_EVENT_UNMAP, .start = at, .end = at + PAGE, .blockable = true};

			if (umm_invalidate_begin(space, &c))
				die("umm_invalidate_begin", EIO);
			umm_invalidate_end(space, &c);
		}
		t = (now_ns() - t) / (NOTIFIERS / 4);
		best = t < best ? t : best;
	}
	for (unsigned i = 0; i < NOTIFIERS; i++)
		umm_notifier_remove(&n[i]);
	free(n);
	row("stab among 1,000,000 notifiers, callback included / 1 us", (double)best, 1000, "ns", (double)best / 1000,
	    1, false);
}

/* ---------------------------------------------------------------------- hooks */

/* Through the hook, which tells nobody because nobody has asked, and past it. */
static void bench_munmap(size_t len)
{
	uint64_t best[2] = {UINT64_MAX, UINT64_MAX};
	char what[96];

	for (unsigned round = 0; round < 3 * ROUNDS; round++) {
		uint64_t sum[2] = {0, 0};

		for (unsigned i = 0; i < MAPS; i++) {
			char *p = (char *)syscall(SYS_mmap, NULL, len, PROT_READ | PROT_WRITE,
						  MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
			uint64_t t = now_ns();

			if (i % 2)
				munmap(p, len);
			else
				syscall(SYS_munmap, p, len);
			sum[i % 2] += now_ns() - t;
		}
		for (unsigned k = 0; k < 2; k++)
			best[k] = sum[k] < best[k] ? sum[k] : best[k];
	}
	snprintf(what, sizeof(what), "munmap of %zu KiB, hooked / not hooked", len / 1024);
	row(what, (double)best[1] * 2 / MAPS, (double)best[0] * 2 / MAPS, "ns", (double)best[1] / (double)best[0], 1.05,
	    false);
}

/* ------------------------------------------------------------------ migration */

static void bench_migration(struct umm_space *space, struct hmm_mm *mm, bool huge)
{
	static struct dmirror_memory memory[2]; /* the engine's until it is closed */
	struct dmirror_memory *m = &memory[huge];
	char *p = anon(CHUNK * CHUNKS, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
	uint64_t best[3] = {UINT64_MAX, UINT64_MAX, UINT64_MAX};
	int rc = dmirror_memory_init(m, space, "bench", 0);

	if (!rc)
		rc = hmm_mm_add_device(mm, &m->dev);
	if (rc)
		die("device", rc);
	for (unsigned round = 0; round < ROUNDS; round++) {
		uint64_t moved, t[4], out = 0, in = 0, copy = 0;

		memset(p, (int)round + 1, CHUNK * CHUNKS);
		for (unsigned i = 0; i < CHUNKS; i++) {
			uint64_t at = (uintptr_t)p + i * CHUNK;
			char *fresh = anon(CHUNK, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);

			t[0] = now_ns();
			memcpy(fresh, p + i * CHUNK, CHUNK);
			t[1] = now_ns();
			rc = hmm_migrate_to_device(mm, &m->dev, at, at + CHUNK, NULL, &moved);
			if (rc || moved != CHUNK / PAGE)
				die("to the device", rc ? rc : EIO);
			t[2] = now_ns();
			rc = hmm_migrate_to_system(mm, &m->dev, at, at + CHUNK, &moved);
			if (rc || moved != CHUNK / PAGE)
				die("back", rc ? rc : EIO);
			t[3] = now_ns();
			copy += t[1] - t[0];
			out += t[2] - t[1];
			in += t[3] - t[2];
			munmap(fresh, CHUNK);
		}
		best[0] = copy < best[0] ? copy : best[0];
		best[1] = out < best[1] ? out : best[1];
		best[2] = in < best[2] ? in : best[2];
	}
	double gb = (double)CHUNK * CHUNKS, copy = gb / (double)best[0];
	double goal = huge ? 0.9 : 0.7;
	char what[96];
	snprintf(what, sizeof(what), "2 MiB of %s to the device / memcpy into fresh memory",
		 huge ? "a huge page" : "4 KiB pages");
	row(what, gb / (double)best[1], copy, "GB/s", gb / (double)best[1] / copy, goal, true);
	snprintf(what, sizeof(what), "2 MiB of %s and back / memcpy into fresh memory",
		 huge ? "a huge page" : "4 KiB pages");
	row(what, gb / (double)best[2], copy, "GB/s", gb / (double)best[2] / copy, goal, true);
}

int main(int argc, char **argv)
{
	struct umm_space *space;
	struct hmm_mm *mm;
	int rc = umm_space_open_self(&space);

	if (rc)
		die("umm_space_open_self", rc);
	if (argc > 1 && (json = fopen(argv[1], "w")))
		fputc('[', json);
	printf("%-58s %10s %10s %-8s %6s\n", "", "ours", "bare", "", "ratio");
	bench_ranges(space, MADV_NOHUGEPAGE, "4 KiB pages");
	bench_ranges(space, MADV_HUGEPAGE, "huge pages");
	umm_hooks_set(space);
	bench_munmap(64 << 10);
	bench_munmap(1 << 20);
	bench_notifiers(space);
	rc = hmm_mm_open(space, &mm);
	if (rc) {
		printf("no migration here: %s\n", strerror(-rc));
	} else {
		bench_migration(space, mm, false);
		bench_migration(space, mm, true);
	}
	if (json) {
		fputs("\n]\n", json);
		fclose(json);
	}
	return 0;
}
