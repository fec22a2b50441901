/* SPDX-License-Identifier: MIT */
/*
 * A mapping that changes between the look at it and its registration.
 *
 * umm_uffd_register() is replaced by the linker: what happens around it is what
 * another thread could do there.
 */
#include "world.h"

#define PAGES 4u

int __real_umm_uffd_register(int uffd, uint64_t start, uint64_t len, uint64_t mode);
int __wrap_umm_uffd_register(int uffd, uint64_t start, uint64_t len, uint64_t mode);

static struct {
	char *at; /* PAGES pages; all else is somebody else's. */
	bool swap; /* the first is unmapped before it is registered, and mapped anew after */
} target;

int __wrap_umm_uffd_register(int uffd, uint64_t start, uint64_t len, uint64_t mode)
{
	uint64_t first = (uintptr_t)target.at;
	int rc;

	if (!target.at)
		return __real_umm_uffd_register(uffd, start, len, mode);
	if (start < first || start >= first + PAGES * UMM_PAGE)
		return -EBUSY;
	if (target.swap)
		munmap(target.at, UMM_PAGE);
	rc = __real_umm_uffd_register(uffd, start, len, mode);
	if (target.swap)
		mmap(target.at, UMM_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	return rc;
}

static bool is_registered(struct world *w, unsigned page)
{
	uint64_t at = (uintptr_t)target.at + page * UMM_PAGE;
	bool yes;

	pthread_mutex_lock(&w->mm->lock);
	yes = hmm_iset_covers(&w->mm->registered, at, at + UMM_PAGE);
	pthread_mutex_unlock(&w->mm->lock);
	return yes;
}

static void only_what_is_registered_is_taken_to_be(void **state)
{
	const char *why;
	struct world *w = world_create("lz4", 0, &why);
	char *area = mmap(NULL, 16 * UMM_PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	assert_non_null(w);
	w->space->maps_fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
	atomic_store(&w->mm->armed, true);
	target.at = area + 6 * UMM_PAGE;
	assert_int_equal(mprotect(target.at, PAGES * UMM_PAGE, PROT_READ | PROT_WRITE), 0);

	target.swap = true;
	assert_int_equal(hmm_discover(w->mm), 0);
	assert_false(is_registered(w, 0));
	/* Left as it is, the next walk finds what there is. */
	target.swap = false;
	assert_int_equal(hmm_discover(w->mm), 0);
	for (unsigned i = 0; i < PAGES; i++)
		assert_true(is_registered(w, i));
	target.at = NULL;
	munmap(area, 16 * UMM_PAGE);
	world_destroy(w);
}

int main(void)
{
	const char *why;
	struct world *w = world_create("lz4", 0, &why);
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(only_what_is_registered_is_taken_to_be),
	};

	if (!w)
		return skip_all(why);
	world_destroy(w);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
