/* SPDX-License-Identifier: MIT */
/*
 * What is exposed is reached byte by byte as asked for, also where pages are
 * mapped for somebody else while one looks: hmm_range_mapped() says "not all of
 * them" once, and then what is true.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <cmocka.h>

#include "drivers/ofi/expose.h"

#define PAGE 4096ul
#define NR 4u

bool __real_hmm_range_mapped(struct hmm_range *range, uint64_t start, uint64_t end, bool write);
bool __wrap_hmm_range_mapped(struct hmm_range *range, uint64_t start, uint64_t end, bool write);

static bool not_yet; /* of the next look at more than a page */

bool __wrap_hmm_range_mapped(struct hmm_range *range, uint64_t start, uint64_t end, bool write)
{
	if (not_yet && end - start > PAGE) {
		not_yet = false;
		return false;
	}
	return __real_hmm_range_mapped(range, start, end, write);
}

/* From within a page to within another, and no byte more, on either side. */
static void mapped_while_one_looks(void **state)
{
	char *mem = mmap(NULL, NR * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	const size_t from = 100, len = 2 * PAGE;
	static char buf[NR * PAGE];
	struct hmm_rdma_token token;
	struct umm_space *space;
	struct exposed *x;

	assert_true(mem != MAP_FAILED);
	assert_int_equal(umm_space_open_self(&space), 0);
	assert_int_equal(exposed_open(space, NULL, &x), 0);
	assert_int_equal(exposed_add(x, (uintptr_t)mem + from, len, HMM_RDMA_READ | HMM_RDMA_WRITE, &token), 0);
	memset(mem, 1, NR * PAGE);
	memset(buf, 2, sizeof(buf));
	/* So that all is mapped, and nothing is at the next turn. */
	assert_int_equal(exposed_copy(x, &token, (uintptr_t)mem + from, buf, len, true, UINT64_MAX), 0);
	for (unsigned write = 0; write < 2; write++) {
		const char theirs = 3, mine = 4;

		memset(mem, theirs, NR * PAGE);
		memset(buf, mine, sizeof(buf));
		not_yet = true;
		assert_int_equal(exposed_copy(x, &token, (uintptr_t)mem + from, buf, len, write, UINT64_MAX), 0);
		assert_false(not_yet);
		for (size_t i = 0; i < NR * PAGE; i++) {
			assert_int_equal(buf[i], !write && i < len ? theirs : mine);
			assert_int_equal(mem[i], write && i >= from && i < from + len ? mine : theirs);
		}
	}
	exposed_close(x);
	umm_space_close(space);
	munmap(mem, NR * PAGE);
}

/* That something had to be mapped is counted: not that it was, nor that it could not be. */
static void what_had_to_be_mapped_is_counted(void **state)
{
	char *mem = mmap(NULL, NR * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	const uint64_t at = (uintptr_t)mem;
	struct hmm_rdma_token token;
	struct umm_space *space;
	struct exposed *x;

	assert_true(mem != MAP_FAILED);
	assert_int_equal(umm_space_open_self(&space), 0);
	assert_int_equal(exposed_open(space, NULL, &x), 0);
	assert_int_equal(exposed_add(x, at, NR * PAGE, HMM_RDMA_READ, &token), 0);
	memset(mem, 1, NR * PAGE);
	assert_int_equal(munmap(mem + (NR - 1) * PAGE, PAGE), 0);
	for (unsigned i = 0; i < 3; i++)
		assert_int_equal(exposed_map(x, &token, at, 2 * PAGE, HMM_RDMA_READ, UINT64_MAX), 0);
	assert_int_equal(exposed_mapped(x), 1);
	assert_int_equal(exposed_map(x, &token, at, NR * PAGE, HMM_RDMA_READ, UINT64_MAX), -EFAULT);
	assert_int_equal(exposed_mapped(x), 1);
	exposed_close(x);
	umm_space_close(space);
	munmap(mem, (NR - 1) * PAGE);
}

int main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(mapped_while_one_looks),
					   cmocka_unit_test(what_had_to_be_mapped_is_counted)};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
