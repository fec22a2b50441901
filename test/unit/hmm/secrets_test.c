/* SPDX-License-Identifier: MIT */
/*
 * What is left of a page's contents once nobody has it any more: all memory of
 * this process, which is program and engine, is searched for a word of it.
 *
 * The word is looked for by what it is exclusive-or something, so as not to be
 * found where it is looked for.
 */
#include "world.h"

#define PAGES 64u
#define LARGEST (256ul << 20) /* what a sanitizer has besides is larger */
#define CHUNK (1ul << 20)
#define MASK 0x5aa5c33c0ff0a55aull

static uint64_t hidden; /* the word, masked */

/* Random enough to be kept as it is by who compresses; the rest is not. */
static void secret_fill(char *page, unsigned i)
{
	volatile uint64_t *word = (volatile uint64_t *)page;

	for (unsigned k = 0; k < UMM_PAGE / sizeof(*word); k++)
		word[k] = i;
	word[64] = hidden ^ MASK;
}

static bool within(unsigned long at, const void *p, size_t len)
{
	return at >= (uintptr_t)p && at < (uintptr_t)p + len;
}

struct found {
	unsigned copies, in_dump;
};

/* Places where the word is; but for what is the test's: its pages, its stack, and the window. */
static struct found search(struct world *w, const char *p)
{
	char line[512], *chunk = malloc(CHUNK);
	FILE *f = fopen("/proc/self/smaps", "r");
	int mem = open("/proc/self/mem", O_RDONLY | O_CLOEXEC);
	struct found all = {0};
	unsigned copies = 0;
	unsigned long a, z;
	char perms[5];

	assert_non_null(f);
	assert_non_null(chunk);
	assert_true(mem >= 0);
	while (fgets(line, sizeof(line), f)) {
		if (sscanf(line, "%lx-%lx %4s", &a, &z, perms) == 3) {
			copies = 0;
			for (unsigned long at = a;
			     perms[1] == 'w' && !strstr(line, "[stack]") && z - a < LARGEST && at < z; at += CHUNK) {
				size_t n = z - at < CHUNK ? z - at : CHUNK;

				if (pread(mem, chunk, n, (off_t)at) != (ssize_t)n)
					continue;
				for (size_t k = 0; k + 8 <= n; k++) {
					uint64_t word;

					memcpy(&word, chunk + k, sizeof(word));
					copies += (word ^ MASK) == hidden && !within(at + k, p, PAGES * UMM_PAGE) &&
						  !within(at + k, w->window, STAGING) && !within(at + k, chunk, CHUNK);
				}
			}
			memset(chunk, 0, CHUNK);
			all.copies += copies;
		} else if (!strncmp(line, "VmFlags:", 8) && copies && !strstr(line, " dd")) {
			all.in_dump += copies;
		}
	}
	free(chunk);
	fclose(f);
	close(mem);
	return all;
}

static char *secrets_away(struct world *w)
{
	struct rng rng = {(uint64_t)getpid()};
	char *p;

	hidden = (rng_next(&rng) | 0x8080808080808080ull) ^ MASK; /* no byte of it is one of what is around it */
	p = managed(w, PAGES, 0);
	for (unsigned i = 0; i < PAGES; i++)
		secret_fill(p + i * UMM_PAGE, i);
	assert_int_equal(out(w, p, PAGES), PAGES);
	umm_inside_release(&w->in, 0);
	umm_inside_release(&w->in, 1);
	return p;
}

/* One copy of each, in memory that no core file has. */
static void stored_once(void **state)
{
	const char *why;
	struct world *w = world_create("lz4", 0, &why);
	char *p = secrets_away(w);
	struct found f = search(w, p);

	assert_int_equal(f.copies, PAGES);
	assert_int_equal(f.in_dump, 0);
	munmap(p, PAGES * UMM_PAGE);
	memset(w->window, 0, STAGING); /* a sanitizer keeps what is freed */
	world_destroy(w);
}

static void nothing_is_left(void **state)
{
	const char *why;
	struct world *w = world_create("lz4", 0, &why);
	char *p = secrets_away(w);

	/* Half is touched, and then all is dropped, wherever it is. */
	for (unsigned i = 0; i < PAGES / 2; i++)
		assert_int_equal(*(volatile uint64_t *)(p + i * UMM_PAGE), i);
	assert_int_equal(madvise(p, PAGES * UMM_PAGE, MADV_DONTNEED), 0);
	settled(w);
	assert_int_equal(search(w, p).copies, 0);
	munmap(p, PAGES * UMM_PAGE);
	memset(w->window, 0, STAGING); /* a sanitizer keeps what is freed */
	world_destroy(w);
}

int main(void)
{
	const char *why;
	struct world *w = world_create("lz4", 0, &why);
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(stored_once),
		cmocka_unit_test(nothing_is_left),
	};

	if (!w)
		return skip_all(why);
	world_destroy(w);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
