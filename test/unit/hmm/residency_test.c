/* SPDX-License-Identifier: MIT */
/*
 * The residency records against a naive model, with a device that counts its
 * references; and the state table of hmm/internal.h, step by step.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#include "../../skip.h"
#include "fake.h"
#include "hmm/internal.h"
#include "rng.h"

#define TOP (1ull << 47)
#define PAGES 64u /* a region of the model */
#define REGIONS 10u

/* First pages of regions: both ends of the address space, and boundaries of leaves and of upper levels. */
static const uint64_t region[REGIONS] = {
	0,
	(1ull << 21) - 32 * UMM_PAGE,
	(1ull << 30) - 16 * UMM_PAGE,
	(1ull << 39) - 40 * UMM_PAGE,
	(5ull << 39) + (3ull << 30) + (7ull << 21) - 32 * UMM_PAGE,
	0x555555554000,
	0x7f0000000000,
	0x7ffff7a00000 - 20 * UMM_PAGE,
	(1ull << 46) - 5 * UMM_PAGE,
	TOP - PAGES *UMM_PAGE,
};

struct fixture {
	struct hmm h;
	struct fake *tier[2];
	struct umm_ctl *ctl;
};

static struct hmm_mm *mm_create(struct fixture *f)
{
	struct hmm_mm *mm = calloc(1, sizeof(*mm));
	struct umm_space *space = calloc(1, sizeof(*space));

	assert_non_null(mm);
	assert_non_null(space);
	space->ctl = f->ctl;
	mm->h = &f->h;
	mm->space = space;
	assert_int_equal(hmm_radix_init(&mm->radix), 0);
	return mm;
}

static void mm_free(struct hmm_mm *mm)
{
	hmm_radix_destroy(mm);
	assert_int_equal(atomic_load(&mm->radix.away), 0);
	free(mm->space);
	free(mm);
}

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	f->ctl = calloc(1, sizeof(*f->ctl));
	for (unsigned t = 0; t < 2; t++) {
		f->tier[t] = fake_create(false);
		f->h.chain.dev[t] = &f->tier[t]->dev;
	}
	f->h.chain.n = 2;
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	for (unsigned t = 0; t < 2; t++)
		fake_free(f->tier[t]);
	free(f->ctl);
	free(f);
	return 0;
}

static hmm_handle_t take(struct fake *d)
{
	pthread_mutex_lock(&d->lock);
	hmm_handle_t h = fake_new(d);
	pthread_mutex_unlock(&d->lock);
	assert_true(h != HMM_HANDLE_NONE);
	return h;
}

static void set(struct hmm_mm *mm, uint64_t addr, hmm_entry_t e)
{
	struct hmm_leaf *leaf = hmm_leaf_get(mm, addr);

	assert_non_null(leaf);
	pthread_mutex_lock(&leaf->lock);
	hmm_entry_set(mm, leaf, hmm_leaf_index(addr), e);
	pthread_mutex_unlock(&leaf->lock);
}

static hmm_entry_t get(struct hmm_mm *mm, uint64_t addr)
{
	struct hmm_leaf *leaf = hmm_leaf_find(mm, addr);

	return leaf ? leaf->e[hmm_leaf_index(addr)] : 0;
}

static void entries_keep_their_fields_apart(void **state)
{
	for (unsigned st = 0; st <= HMM_POISONED; st++) {
		for (unsigned tier = 0; tier < 16; tier += 5) {
			hmm_entry_t e = hmm_entry((enum hmm_page_state)st, tier, HMM_HANDLE_MAX, HMM_HEAT_MAX);

			assert_int_equal(hmm_entry_heat(e), HMM_HEAT_MAX);
			for (unsigned tick = 0; tick < 2 * HMM_TICKS; tick += 3) {
				e = hmm_entry_with_tick(e, tick);
				assert_int_equal(hmm_entry_state(e), st);
				assert_int_equal(hmm_entry_tier(e), tier);
				assert_int_equal(hmm_entry_payload(e), HMM_HANDLE_MAX);
				assert_int_equal(hmm_entry_tick(e), tick % HMM_TICKS);
			}
		}
	}
	assert_int_equal(hmm_entry(HMM_SYSTEM, 0, 0, 0), 0);
}

static void look_ups_across_47_bits(void **state)
{
	struct fixture *f = *state;
	struct hmm_mm *mm = mm_create(f);
	unsigned leaves = 0;

	/* One address for each bit, each in a leaf of its own from bit 21 on. */
	for (unsigned bit = HMM_LEAF_SHIFT; bit < 47; bit++) {
		uint64_t addr = 1ull << bit;

		assert_null(hmm_leaf_find(mm, addr));
		struct hmm_leaf *leaf = hmm_leaf_get(mm, addr);
		assert_non_null(leaf);
		leaves++;
		assert_int_equal(leaf->base, addr);
		assert_ptr_equal(hmm_leaf_get(mm, addr + HMM_LEAF_PAGES * UMM_PAGE - 1), leaf);
		assert_ptr_equal(hmm_leaf_find(mm, addr), leaf);
		set(mm, addr, hmm_entry(HMM_DEVICE, 0, take(f->tier[0]), 0));
	}
	assert_int_equal(atomic_load(&mm->radix.leaves), leaves);
	assert_int_equal(atomic_load(&mm->radix.away), leaves);
	for (unsigned bit = HMM_LEAF_SHIFT; bit < 47; bit++)
		assert_int_equal(hmm_entry_state(get(mm, 1ull << bit)), HMM_DEVICE);

	/* In order of address, none left out, none twice. */
	uint64_t at = 0;
	for (unsigned bit = HMM_LEAF_SHIFT; bit < 47; bit++) {
		struct hmm_leaf *leaf = hmm_leaf_next(mm, at, TOP);

		assert_non_null(leaf);
		assert_int_equal(leaf->base, 1ull << bit);
		/* From inside a leaf it is found again, up to its last byte. */
		assert_ptr_equal(hmm_leaf_next(mm, leaf->base + (1ull << HMM_LEAF_SHIFT) - 1, TOP), leaf);
		assert_null(hmm_leaf_next(mm, at, leaf->base));
		at = leaf->base + (1ull << HMM_LEAF_SHIFT);
	}
	assert_null(hmm_leaf_next(mm, at, TOP));
	mm_free(mm);
	assert_int_equal(f->tier[0]->refs_total, 0);
}

/* With five levels of page tables a program may have memory there, which is not what lies 47 bits below. */
static void nothing_is_beyond_47_bits(void **state)
{
	struct fixture *f = *state;
	struct hmm_mm *mm = mm_create(f);
	uint64_t addr = region[5];

	set(mm, addr, hmm_entry(HMM_DEVICE, 0, take(f->tier[0]), 0));
	for (unsigned bit = 47; bit < 56; bit++) {
		assert_null(hmm_leaf_find(mm, 1ull << bit | addr));
		assert_null(hmm_leaf_get(mm, 1ull << bit | addr));
		assert_null(hmm_leaf_get(mm, 1ull << bit));
		assert_null(hmm_leaf_next(mm, 1ull << bit, UINT64_MAX));
	}
	assert_int_equal(atomic_load(&mm->radix.leaves), 1);
	/* Nor does mremap() lead there what is away. */
	assert_int_equal(hmm_residency_remap(mm, addr, TOP | addr, UMM_PAGE), -ENOMEM);
	assert_int_equal(hmm_entry_state(get(mm, addr)), HMM_DEVICE);
	mm_free(mm);
	assert_int_equal(f->tier[0]->refs_total, 0);
}

/* The model: for each page which handle it holds, 0 none, POISON. */
#define POISON UINT32_MAX
struct model {
	uint32_t held[REGIONS][PAGES]; /* tier << 31 | handle + 1 */
};

static void model_check(struct fixture *f, struct hmm_mm *mm[2], struct model m[2])
{
	unsigned want[2][FAKE_PAGES] = {{0}};
	uint64_t away, total[2] = {0, 0};

	for (unsigned s = 0; s < 2; s++) {
		away = 0;
		for (unsigned r = 0; r < REGIONS; r++) {
			for (unsigned i = 0; i < PAGES; i++) {
				hmm_entry_t e = get(mm[s], region[r] + i * UMM_PAGE);
				uint32_t held = m[s].held[r][i];

				away += !!held;
				if (!held) {
					assert_int_equal(hmm_entry_state(e), HMM_SYSTEM);
				} else if (held == POISON) {
					assert_int_equal(hmm_entry_state(e), HMM_POISONED);
				} else {
					assert_int_equal(hmm_entry_state(e), HMM_DEVICE);
					assert_int_equal(hmm_entry_tier(e), held >> 31);
					assert_int_equal(hmm_entry_payload(e), (held & 0x7fffffff) - 1);
					want[held >> 31][(held & 0x7fffffff) - 1]++;
					total[held >> 31]++;
				}
			}
		}
		assert_int_equal(atomic_load(&mm[s]->radix.away), away);
		uint64_t by_leaf = 0;
		for (struct hmm_leaf *leaf, *last = NULL;
		     (leaf = hmm_leaf_next(mm[s], last ? last->base + (1ull << HMM_LEAF_SHIFT) : 0, TOP)); last = leaf)
			by_leaf += leaf->held;
		assert_int_equal(by_leaf, away);
	}
	for (unsigned t = 0; t < 2; t++) {
		assert_int_equal(f->tier[t]->refs_total, total[t]);
		assert_memory_equal(f->tier[t]->refs, want[t], sizeof(want[t]));
	}
}

static void against_a_model(void **state)
{
	struct fixture *f = *state;

	for (uint64_t seed = 1; seed <= 4; seed++) {
		struct rng rng = {seed};
		struct hmm_mm *mm[2] = {mm_create(f), mm_create(f)};
		struct model *m = calloc(2, sizeof(*m));

		for (unsigned step = 0; step < 400; step++) {
			unsigned s = rng_below(&rng, 2), r = rng_below(&rng, REGIONS), a = rng_below(&rng, PAGES);
			unsigned n = 1 + rng_below(&rng, PAGES - a);
			uint64_t addr = region[r] + a * UMM_PAGE;
			uint32_t *held = m[s].held[r];

			switch (rng_below(&rng, 8)) {
			default:
				for (unsigned i = a; i < a + n; i++) {
					unsigned t = rng_below(&rng, 2);

					if (held[i])
						continue;
					hmm_handle_t h = take(f->tier[t]);
					set(mm[s], region[r] + i * UMM_PAGE, hmm_entry(HMM_DEVICE, t, h, 0));
					held[i] = t << 31 | ((uint32_t)h + 1);
				}
				break;
			case 0:
				hmm_residency_drop(mm[s], addr, addr + n * UMM_PAGE);
				memset(held + a, 0, n * sizeof(*held));
				break;
			case 1: { /* to another region: what was there goes */
				unsigned to = rng_below(&rng, REGIONS), b = rng_below(&rng, PAGES - n + 1);
				uint32_t *there = m[s].held[to];

				if (to == r)
					break;
				assert_int_equal(
					hmm_residency_remap(mm[s], addr, region[to] + b * UMM_PAGE, n * UMM_PAGE), 0);
				memcpy(there + b, held + a, n * sizeof(*held));
				memset(held + a, 0, n * sizeof(*held));
				break;
			}
			case 2: /* the page cannot be read any more */
				if (!held[a] || held[a] == POISON)
					break;
				hmm_handle_t h = (held[a] & 0x7fffffff) - 1;
				set(mm[s], addr, hmm_entry(HMM_POISONED, 0, 0, 0));
				fake_put(&f->tier[held[a] >> 31]->dev, &h, 1);
				held[a] = POISON;
				break;
			case 3: /* one space ends, and is born again as a child of the other */
				if (rng_below(&rng, 4))
					break;
				mm_free(mm[!s]);
				mm[!s] = mm_create(f);
				assert_int_equal(hmm_residency_clone(mm[s], mm[!s]), 0);
				m[!s] = m[s];
				break;
			}
			if (!(step % 8))
				model_check(f, mm, m);
		}
		model_check(f, mm, m);
		mm_free(mm[0]);
		mm_free(mm[1]);
		free(m);
		assert_int_equal(f->tier[0]->refs_total, 0);
		assert_int_equal(f->tier[1]->refs_total, 0);
		assert_int_equal(f->tier[0]->pages + f->tier[1]->pages, 0);
	}
}

/* Pages on their way out: who drops or moves one makes what the inside has not done yet stale. */
static void events_meet_pages_on_their_way(void **state)
{
	struct fixture *f = *state;
	struct hmm_mm *mm = mm_create(f);
	uint64_t addr = region[5], to = region[6];
	uint32_t epoch = atomic_load(&f->ctl->epoch);

	mm->slot[1][7].addr = addr;
	set(mm, addr, hmm_entry(HMM_PARKING, 0, 1 << 16 | 7, 0));
	assert_int_equal(hmm_residency_remap(mm, addr, to, UMM_PAGE), 0);
	assert_int_equal(mm->slot[1][7].addr, to);
	assert_int_equal(hmm_entry_state(get(mm, addr)), HMM_SYSTEM);
	assert_int_equal(hmm_entry_state(get(mm, to)), HMM_PARKING);
	assert_true(atomic_load(&f->ctl->epoch) != epoch);

	epoch = atomic_load(&f->ctl->epoch);
	set(mm, to, hmm_entry(HMM_PARKED, 0, 1 << 16 | 7, 0));
	assert_int_equal(hmm_residency_remap(mm, to, addr, UMM_PAGE), 0);
	assert_int_equal(mm->slot[1][7].addr, addr);
	assert_int_equal(atomic_load(&f->ctl->epoch), epoch);
	hmm_residency_drop(mm, addr, addr + UMM_PAGE);
	assert_int_equal(mm->slot[1][7].addr, 0);
	assert_int_equal(hmm_entry_state(get(mm, addr)), HMM_SYSTEM);

	mm->slot[0][3].addr = addr;
	set(mm, addr, hmm_entry(HMM_PARKING, 0, 3, 0));
	hmm_residency_drop(mm, addr, addr + UMM_PAGE);
	assert_int_equal(mm->slot[0][3].addr, 0);
	assert_true(atomic_load(&f->ctl->epoch) != epoch);
	mm_free(mm);
}

#ifndef NDEBUG
static bool step_aborts(struct hmm_mm *mm, enum hmm_page_state from, enum hmm_page_state to)
{
	int status;
	pid_t pid = fork();

	assert_true(pid >= 0);
	if (!pid) {
		struct rlimit none = {0, 0};
		struct hmm_leaf *leaf = hmm_leaf_get(mm, region[5]);

		setrlimit(RLIMIT_CORE, &none);
		if (!freopen("/dev/null", "w", stderr))
			_exit(2);
		signal(SIGABRT, SIG_DFL);
		leaf->e[0] = hmm_entry(from, 0, 1, 0);
		hmm_entry_set(mm, leaf, 0, hmm_entry(to, 0, 2, 0));
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	if (WIFSIGNALED(status)) {
		assert_int_equal(WTERMSIG(status), SIGABRT);
		return true;
	}
	assert_int_equal(WEXITSTATUS(status), 0);
	return false;
}
#endif

static void only_the_steps_of_the_table_are_legal(void **state)
{
#ifdef NDEBUG
	skip_because("built without assertions");
#else
	/* From the table at the head of hmm/internal.h; the last three: a child after fork. */
	static const struct {
		enum hmm_page_state from, to;
	} legal[] = {
		{HMM_SYSTEM, HMM_PARKING},  {HMM_PARKING, HMM_PARKED}, {HMM_PARKED, HMM_DEVICE},
		{HMM_DEVICE, HMM_POISONED}, {HMM_SYSTEM, HMM_PARKED},  {HMM_SYSTEM, HMM_DEVICE},
		{HMM_SYSTEM, HMM_POISONED},
	};
	struct fixture *f = *state;
	struct hmm_mm *mm = mm_create(f);

	assert_non_null(hmm_leaf_get(mm, region[5]));
	for (unsigned from = 0; from <= HMM_POISONED; from++) {
		for (unsigned to = 0; to <= HMM_POISONED; to++) {
			bool ok = to == HMM_SYSTEM || from == to;

			for (unsigned i = 0; i < sizeof(legal) / sizeof(legal[0]); i++)
				ok |= legal[i].from == from && legal[i].to == to;
			if (step_aborts(mm, (enum hmm_page_state)from, (enum hmm_page_state)to) == ok)
				fail_msg("step %u -> %u %s", from, to, ok ? "is refused" : "is let through");
		}
	}
	mm_free(mm);
#endif
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(entries_keep_their_fields_apart),
		cmocka_unit_test_setup_teardown(look_ups_across_47_bits, setup, teardown),
		cmocka_unit_test_setup_teardown(nothing_is_beyond_47_bits, setup, teardown),
		cmocka_unit_test_setup_teardown(against_a_model, setup, teardown),
		cmocka_unit_test_setup_teardown(events_meet_pages_on_their_way, setup, teardown),
		cmocka_unit_test_setup_teardown(only_the_steps_of_the_table_are_legal, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
