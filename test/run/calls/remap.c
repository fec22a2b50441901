/* SPDX-License-Identifier: MIT */
/* mremap() of memory a part of which is away: grow, shrink, move, fixed, MREMAP_DONTUNMAP; through libc, and raw. */
#include "calls.h"

#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif

static bool raw;

static void *remap(void *p, size_t old, size_t new, int flags, void *to)
{
	void *q = raw ? (void *)syscall(SYS_mremap, p, old, new, flags, to) : mremap(p, old, new, flags, to);

	CHECK(q != MAP_FAILED, "%s mremap(%p, %zu, %zu, %d, %p)", raw ? "raw" : "libc", p, old, new, flags, to);
	return q;
}

static char *filled(size_t npages, unsigned seed)
{
	char *p = v_map(npages * V_PAGE);

	v_fill_all(p, npages, seed, 0, V_QUARTER);
	wait_away(p, npages, npages / 2, "a mapping to be moved");
	return p;
}

static void is_zero(const char *p, size_t npages, const char *what)
{
	for (size_t i = 0; i < npages * V_WORDS; i++)
		CHECK(!((const volatile uint64_t *)p)[i], "%s: page %zu word %zu is %#lx", what, i / V_WORDS,
		      i % V_WORDS, (unsigned long)((const volatile uint64_t *)p)[i]);
}

static void *place(size_t npages)
{
	void *p = v_map(npages * V_PAGE);

	munmap(p, npages * V_PAGE);
	return p;
}

static void grow_in_place(void)
{
	char *room = v_map(1024 * V_PAGE);
	char *p = mmap(room, 512 * V_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);

	munmap(room + 512 * V_PAGE, 512 * V_PAGE);
	v_fill_all(p, 512, 1, 0, V_QUARTER);
	wait_away(p, 512, 256, "a mapping to be grown");
	CHECK(remap(p, 512 * V_PAGE, 1024 * V_PAGE, 0, NULL) == p, "moved");
	is_zero(p + 512 * V_PAGE, 512, "grown");
	CHECK_ALL(p, 512, 1, 0, "before what was grown");
	v_fill_all(p, 1024, 1, 1, V_QUARTER);
	wait_away(p, 1024, 900, "a grown mapping");
	CHECK_ALL(p, 1024, 1, 1, "grown, pushed out");
	munmap(p, 1024 * V_PAGE);
}

static void shrink_and_grow(void)
{
	char *p = filled(1024, 2);

	CHECK(remap(p, 1024 * V_PAGE, 300 * V_PAGE, 0, NULL) == p, "moved");
	CHECK_ALL(p, 300, 2, 0, "shrunk");
	char *q = remap(p, 300 * V_PAGE, 1024 * V_PAGE, MREMAP_MAYMOVE, NULL);
	CHECK_ALL(q, 300, 2, 0, "shrunk and grown");
	is_zero(q + 300 * V_PAGE, 724, "cut off and grown again");
	munmap(q, 1024 * V_PAGE);
}

static void move_to(void)
{
	char *p = filled(1024, 3), *to = v_map(1024 * V_PAGE);

	/* Over a mapping of which a part is away as well: none of that may show. */
	v_fill_all(to, 1024, 4, 0, V_QUARTER);
	wait_away(to, 1024, 512, "the target");
	CHECK(remap(p, 1024 * V_PAGE, 1024 * V_PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to, "elsewhere");
	char *q = mmap(p, 1024 * V_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1,
		       0);
	if (q == p)
		is_zero(q, 1024, "where it was");
	CHECK_ALL(to, 1024, 3, 0, "moved");
	if (q != MAP_FAILED)
		munmap(q, 1024 * V_PAGE);
	munmap(to, 1024 * V_PAGE);
}

/* A part out of the middle of a mapping, and back. */
static void move_part(void)
{
	char *p = filled(1024, 5), *to = place(256);

	CHECK(remap(p + 100 * V_PAGE, 256 * V_PAGE, 256 * V_PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to,
	      "elsewhere");
	for (unsigned i = 0; i < 256; i++)
		CHECK(!v_check(to + i * V_PAGE, 100 + i, 5, 0, V_QUARTER), "moved part");
	v_fill_all(to, 256, 6, 1, V_QUARTER);
	wait_away(to, 256, 128, "the moved part");
	CHECK(remap(to, 256 * V_PAGE, 256 * V_PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, p + 100 * V_PAGE) ==
		      p + 100 * V_PAGE,
	      "not back");
	CHECK_ALL(p + 100 * V_PAGE, 256, 6, 1, "back again");
	CHECK_ALL(p, 100, 5, 0, "before the part");
	for (unsigned i = 356; i < 1024; i++)
		CHECK(!v_check(p + i * V_PAGE, i, 5, 0, V_QUARTER), "behind the part");
	munmap(p, 1024 * V_PAGE);
}

static void dontunmap(void)
{
	char *p = filled(1024, 7), *q;

	q = remap(p, 1024 * V_PAGE, 1024 * V_PAGE, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, NULL);
	CHECK(q != p, "not moved");
	is_zero(p, 1024, "left behind by MREMAP_DONTUNMAP");
	CHECK_ALL(q, 1024, 7, 0, "moved by MREMAP_DONTUNMAP");
	v_fill_all(p, 1024, 8, 0, V_QUARTER);
	wait_away(p, 1024, 900, "left behind, filled anew");
	wait_away(q, 1024, 900, "moved by MREMAP_DONTUNMAP");
	CHECK_ALL(p, 1024, 8, 0, "left behind, filled anew");
	CHECK_ALL(q, 1024, 7, 0, "moved, pushed out again");
	munmap(p, 1024 * V_PAGE);
	munmap(q, 1024 * V_PAGE);
}

/* A big one, half of it away, moved back and forth while it is pushed out and used. */
struct big {
	char *p;
	size_t npages;
	uint64_t seed;
};

static void ping_pong(unsigned rounds)
{
	size_t npages = (long_run() ? 64 : 24) * V_MIB / V_PAGE;
	char *p = v_map(npages * V_PAGE);

	v_fill_all(p, npages, 9, 0, V_QUARTER);
	wait_away(p, npages, npages / 2, "the big one");
	for (unsigned r = 0; r < rounds; r++) {
		uint64_t s = r;

		p = remap(p, npages * V_PAGE, npages * V_PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, place(npages));
		for (unsigned k = 0; k < 500; k++) {
			size_t i = rnd(&s) % npages;

			CHECK(!v_check(p + i * V_PAGE, i, 9, 0, V_QUARTER), "the big one, move %u", r);
		}
	}
	CHECK_ALL(p, npages, 9, 0, "the big one");
	munmap(p, npages * V_PAGE);
}

/* Grows step by step, as realloc() of a big block does, each time filling what is new. */
static void realloc_like(void)
{
	size_t n = 64;
	char *p = v_map(n * V_PAGE);

	v_fill_all(p, n, 10, 0, V_QUARTER);
	for (unsigned k = 0; k < (long_run() ? 60u : 32u); k++) {
		size_t m = n + 64;

		p = remap(p, n * V_PAGE, m * V_PAGE, MREMAP_MAYMOVE, NULL);
		for (size_t i = n; i < m; i++)
			v_fill(p + i * V_PAGE, i, 10, 0, V_QUARTER);
		n = m;
		if (k % 16 == 15)
			CHECK_ALL(p, n, 10, 0, "grown step by step");
	}
	CHECK_ALL(p, n, 10, 0, "grown step by step");
	munmap(p, n * V_PAGE);
}

/*
 * New ones again and again, each growing in place while it is found: what is registered in part does not grow.  As long
 * as nobody looks for any nothing is found: until the hog has had all of its memory.
 */
static void grow_while_found(struct hog *hog)
{
	size_t most = 8192;

	for (unsigned r = 0; r < 4 || !atomic_load(&hog->laps); r++) {
		char *p = place(most);

		CHECK(mmap(p, V_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1,
			   0) == p,
		      "no place");
		for (size_t n = 1; n < most; n++) {
			v_fill(p + (n - 1) * V_PAGE, n - 1, 11, r, V_QUARTER);
			CHECK(remap(p, n * V_PAGE, (n + 1) * V_PAGE, 0, NULL) == p, "moved");
		}
		CHECK_ALL(p, most - 1, 11, r, "grown page by page");
		munmap(p, most * V_PAGE);
	}
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		void (*fn)(void);
	} cases[] = {
		{"grow in place", grow_in_place}, {"shrink and grow", shrink_and_grow}, {"move onto another", move_to},
		{"move a part", move_part},       {"MREMAP_DONTUNMAP", dontunmap},      {"step by step", realloc_like},
	};
	struct hog hog;

	raw = argc > 1 && !strcmp(argv[1], "raw");
	hog_start(&hog, hog_mib());
	if (argc > 2 && !strcmp(argv[2], "growing")) {
		grow_while_found(&hog);
		hog_stop(&hog);
		return 0;
	}
	for (unsigned r = 0; r < (long_run() ? 20 : 1); r++)
		for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
			cases[i].fn();
			printf("ok %s\n", cases[i].name);
			fflush(stdout);
		}
	ping_pong(long_run() ? 500 : 6);
	puts("ok ping-pong");
	hog_stop(&hog);
	return 0;
}
