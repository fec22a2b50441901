/* SPDX-License-Identifier: MIT */
/* Interval sets against a bitmap: whatever is added and removed, both tell the same. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "hmm/iset.h"
#include "rng.h"

#define UNITS 256u
#define UNIT 4096ull

static void same(const struct hmm_iset *s, const bool *bit)
{
	unsigned at = 0;

	for (unsigned i = 0; i < s->n; i++) {
		unsigned a = (unsigned)(s->v[i].start / UNIT), z = (unsigned)(s->v[i].end / UNIT);

		assert_true(a < z);
		/* Sorted, and with a gap between: what touches must have been merged. */
		assert_true(!i || s->v[i - 1].end < s->v[i].start);
		for (; at < a; at++)
			assert_false(bit[at]);
		for (; at < z; at++)
			assert_true(bit[at]);
	}
	for (; at < UNITS; at++)
		assert_false(bit[at]);
}

static void ask(const struct hmm_iset *s, const bool *bit, unsigned a, unsigned z)
{
	bool all = true, any = false;
	unsigned first;

	for (unsigned i = a; i < z; i++) {
		all &= bit[i];
		any |= bit[i];
	}
	assert_int_equal(hmm_iset_covers(s, a * UNIT, z * UNIT), all);
	assert_int_equal(hmm_iset_meets(s, a * UNIT, z * UNIT), any);

	for (first = a; first < UNITS && !bit[first];)
		first++;
	const struct hmm_interval *next = hmm_iset_next(s, a * UNIT);
	if (first == UNITS) {
		assert_null(next);
		return;
	}
	assert_non_null(next);
	assert_true(next->start <= first * UNIT && next->end > first * UNIT);
}

static void against_a_bitmap(void **state)
{
	for (uint64_t seed = 1; seed <= 20; seed++) {
		struct rng rng = {seed};
		struct hmm_iset s = {0};
		bool bit[UNITS] = {false};

		for (unsigned step = 0; step < 1500; step++) {
			/* Short ones make many intervals, long ones swallow many. */
			unsigned most = rng_below(&rng, 8) ? 6 : UNITS;
			unsigned a = rng_below(&rng, UNITS), n = rng_below(&rng, most);
			unsigned z = a + n < UNITS ? a + n : UNITS;
			bool add = rng_below(&rng, 2);

			if (add)
				assert_int_equal(hmm_iset_add(&s, a * UNIT, z * UNIT), 0);
			else
				assert_int_equal(hmm_iset_del(&s, a * UNIT, z * UNIT), 0);
			for (unsigned i = a; i < z; i++)
				bit[i] = add;
			same(&s, bit);
			a = rng_below(&rng, UNITS);
			z = a + 1 + rng_below(&rng, UNITS - a);
			ask(&s, bit, a, z);
		}
		hmm_iset_clear(&s);
		assert_int_equal(s.n, 0);
		assert_null(hmm_iset_next(&s, 0));
	}
}

static void ends_of_the_address_space(void **state)
{
	struct hmm_iset s = {0};

	assert_int_equal(hmm_iset_add(&s, 0, UNIT), 0);
	assert_int_equal(hmm_iset_add(&s, (1ull << 47) - UNIT, 1ull << 47), 0);
	assert_true(hmm_iset_covers(&s, 0, UNIT));
	assert_true(hmm_iset_covers(&s, (1ull << 47) - UNIT, 1ull << 47));
	assert_false(hmm_iset_meets(&s, UNIT, (1ull << 47) - UNIT));
	assert_int_equal(hmm_iset_del(&s, 0, 1ull << 47), 0);
	assert_int_equal(s.n, 0);
	hmm_iset_clear(&s);
}

static void empty_and_backward_ranges_change_nothing(void **state)
{
	struct hmm_iset s = {0};

	assert_int_equal(hmm_iset_add(&s, 5 * UNIT, 5 * UNIT), 0);
	assert_int_equal(hmm_iset_add(&s, 6 * UNIT, 5 * UNIT), 0);
	assert_int_equal(s.n, 0);
	assert_int_equal(hmm_iset_add(&s, 2 * UNIT, 9 * UNIT), 0);
	assert_int_equal(hmm_iset_del(&s, 5 * UNIT, 5 * UNIT), 0);
	assert_int_equal(hmm_iset_del(&s, 6 * UNIT, 4 * UNIT), 0);
	assert_int_equal(s.n, 1);
	assert_true(hmm_iset_covers(&s, 2 * UNIT, 9 * UNIT));
	hmm_iset_clear(&s);
}

void *__wrap_umm_alloc(struct umm_space *space, size_t len);
void __wrap_umm_free(struct umm_space *space, void *p, size_t len);

static bool no_memory;

void *__wrap_umm_alloc(struct umm_space *space, size_t len)
{
	return no_memory ? NULL : calloc(1, len);
}

void __wrap_umm_free(struct umm_space *space, void *p, size_t len)
{
	free(p);
}

/* What cannot be changed for want of memory is as it was. */
static void without_memory(void **state)
{
	static char space;
	struct hmm_iset s = {.space = (struct umm_space *)&space};
	bool bit[UNITS] = {false};

	for (unsigned i = 0; i < 16; i++) {
		assert_int_equal(hmm_iset_add(&s, 10 * i * UNIT, (10 * i + 8) * UNIT), 0);
		memset(bit + 10 * i, 1, 8);
	}
	no_memory = true;
	assert_int_equal(hmm_iset_del(&s, 33 * UNIT, 35 * UNIT), -ENOMEM);
	same(&s, bit);
	assert_int_equal(hmm_iset_add(&s, 200 * UNIT, 201 * UNIT), -ENOMEM);
	same(&s, bit);
	no_memory = false;
	hmm_iset_clear(&s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(against_a_bitmap),
		cmocka_unit_test(without_memory),
		cmocka_unit_test(ends_of_the_address_space),
		cmocka_unit_test(empty_and_backward_ranges_change_nothing),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
