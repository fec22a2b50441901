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
	char *at;  /* PAGES pages; all else is somebody else's. */
	bool swap; /* the first is unmapped before it is registered, and mapped anew after */
	bool fork; /* a child is made before it is registered, and nobody has heard of it yet */
	_Atomic pid_t child;
} target;

static void *forker(void *unused)
{
	pid_t pid = raw_fork();

	if (!pid) {
		alarm(30); /* should the test fail */
		for (;;)
			pause();
	}
	atomic_store(&target.child, pid);
	return NULL;
}

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
	if (target.fork) {
		pthread_t thread;

		target.fork = false;
		if (pthread_create(&thread, NULL, forker, NULL))
			abort();
		pthread_detach(thread);
		/* The event waits: whoever would read it waits for our caller. */
		poll(&(struct pollfd){.fd = uffd, .events = POLLIN}, 1, -1);
	}
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
	assert_int_equal(hmm_discover(w->mm, 0), 0);
	assert_false(is_registered(w, 0));
	/* Left as it is, the next walk finds what there is. */
	target.swap = false;
	assert_int_equal(hmm_discover(w->mm, 0), 0);
	for (unsigned i = 0; i < PAGES; i++)
		assert_true(is_registered(w, i));
	target.at = NULL;
	munmap(area, 16 * UMM_PAGE);
	world_destroy(w);
}

/* A child that was made before a mapping was registered does not have it registered, whatever its parent has. */
static void what_a_child_was_born_without(void **state)
{
	const char *why;
	struct world *w = world_create("lz4", 0, &why);
	char *area = mmap(NULL, 16 * UMM_PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct hmm_mm *child = NULL;
	pid_t pid;

	assert_non_null(w);
	w->space->maps_fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
	/* There is something registered, or the kernel would tell nobody of the fork. */
	char *p = managed(w, PAGES, 1);
	atomic_store(&w->mm->armed, true);
	target.at = area + 6 * UMM_PAGE;
	assert_int_equal(mprotect(target.at, PAGES * UMM_PAGE, PROT_READ | PROT_WRITE), 0);

	target.fork = true;
	assert_int_equal(hmm_discover(w->mm, 0), 0);
	while (!(pid = atomic_load(&target.child)))
		sched_yield();
	umm_evlock_excl(&w->ctl->evlock);
	umm_evlock_unexcl(&w->ctl->evlock);
	pthread_mutex_lock(&w->h->lock);
	for (struct hmm_mm *mm = w->h->mms; mm; mm = mm->next)
		if (mm != w->mm)
			child = mm;
	pthread_mutex_unlock(&w->h->lock);
	assert_non_null(child);
	assert_true(hmm_iset_covers(&child->registered, (uintptr_t)p, (uintptr_t)p + PAGES * UMM_PAGE));
	assert_false(hmm_iset_meets(&child->registered, (uintptr_t)target.at, (uintptr_t)target.at + PAGES * UMM_PAGE));
	/* The parent's is, when it is looked at again. */
	assert_int_equal(hmm_discover(w->mm, 0), 0);
	assert_true(is_registered(w, 0));
	kill(pid, SIGKILL);
	assert_int_equal(waitpid(pid, NULL, 0), pid);
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
		cmocka_unit_test(what_a_child_was_born_without),
	};

	if (!w)
		return skip_all(why);
	world_destroy(w);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
