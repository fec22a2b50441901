/* SPDX-License-Identifier: MIT */
/* The kernel says that a page is there, and it is not: it is asked once more, and nothing is let go of. */
#include "world.h"

#include <sched.h>
#include <sys/mman.h>

#define N 96u

int __real_umm_uffd_copy(int uffd, uint64_t dst, const void *src, uint64_t len, uint64_t *copied);
int __wrap_umm_uffd_copy(int uffd, uint64_t dst, const void *src, uint64_t len, uint64_t *copied);

static _Atomic unsigned lies; /* so many of the next */

static struct {
	char *from, *to; /* NULL: nothing moves */
	pthread_t thread;
} moving;

static _Thread_local bool asked; /* what is there, by who was told the lie: it moves after the first question */

int __wrap_umm_uffd_copy(int uffd, uint64_t dst, const void *src, uint64_t len, uint64_t *copied)
{
	unsigned left = atomic_load(&lies);

	while (left && !atomic_compare_exchange_weak(&lies, &left, left - 1))
		;
	if (!left)
		return __real_umm_uffd_copy(uffd, dst, src, len, copied);
	*copied = 0;
	asked = moving.from != NULL;
	return -EEXIST;
}

static void *move_main(void *priv)
{
	return (void *)syscall(SYS_mremap, moving.from, UMM_PAGE, UMM_PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, moving.to);
}

/* Its event is not read before we are through; meanwhile something else is mapped there. */
static void move_now(void)
{
	char *p;

	asked = false;
	assert_int_equal(pthread_create(&moving.thread, NULL, move_main, NULL), 0);
	do
		p = mmap(moving.from, UMM_PAGE, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	while (p == MAP_FAILED && errno == EEXIST && !sched_yield());
	assert_ptr_equal(p, moving.from);
	*p = 9;
	moving.from = NULL;
}

int __real_umm_page_scan(struct umm_space *s, uint64_t start, uint64_t end, struct umm_page_run *runs, unsigned n,
			 uint64_t *walked);
int __wrap_umm_page_scan(struct umm_space *s, uint64_t start, uint64_t end, struct umm_page_run *runs, unsigned n,
			 uint64_t *walked);

int __wrap_umm_page_scan(struct umm_space *s, uint64_t start, uint64_t end, struct umm_page_run *runs, unsigned n,
			 uint64_t *walked)
{
	int rc = __real_umm_page_scan(s, start, end, runs, n, walked);

	if (asked)
		move_now();
	return rc;
}

bool __real_umm_uffd_is_changing(int uffd);
bool __wrap_umm_uffd_is_changing(int uffd);

bool __wrap_umm_uffd_is_changing(int uffd)
{
	bool is = __real_umm_uffd_is_changing(uffd);

	if (asked)
		move_now();
	return is;
}

int __real_ioctl(int fd, unsigned long req, ...);
int __wrap_ioctl(int fd, unsigned long req, ...);

static unsigned kernel_lies; /* so many of the next UFFDIO_COPY */
static bool moves_unsaid;    /* UFFDIO_MOVE does so, and wakes nobody */

int __wrap_ioctl(int fd, unsigned long req, ...)
{
	va_list ap;
	void *arg;

	va_start(ap, req);
	arg = va_arg(ap, void *);
	va_end(ap);
	if (req == UFFDIO_MOVE && moves_unsaid) {
		struct uffdio_move *m = arg;

		m->mode = UFFDIO_MOVE_MODE_DONTWAKE;
		if (!__real_ioctl(fd, req, m)) {
			m->move = -EEXIST;
			errno = EEXIST;
		}
		return -1;
	}
	if (req != UFFDIO_COPY || !kernel_lies)
		return __real_ioctl(fd, req, arg);
	kernel_lies--;
	((struct uffdio_copy *)arg)->copy = -EEXIST;
	errno = EEXIST;
	return -1;
}

static struct world *begin(void)
{
	const char *why;
	struct world *w = world_create("lz4", 1, &why);

	assert_non_null(w);
	return w;
}

static void a_page_that_is_touched(void **state)
{
	struct world *w = begin();
	char *p = managed(w, N, 1);

	for (unsigned i = 0; i < N; i += 7) {
		assert_true(out(w, p, N) > 0);
		atomic_store(&lies, 3);
		assert_true(page_is(p + i * UMM_PAGE, 1, i));
		assert_int_equal(atomic_load(&lies), 0);
		all_are(p, N, 1);
	}
	world_destroy(w);
}

static void pages_that_are_asked_back(void **state)
{
	struct world *w = begin();
	char *p = managed(w, N, 1);

	assert_true(out(w, p, N) > 0);
	atomic_store(&lies, 3);
	assert_int_equal(hmm_restore(w->mm, (uintptr_t)p, (uintptr_t)p + N * UMM_PAGE), 0);
	assert_int_equal(atomic_load(&lies), 0);
	all_are(p, N, 1);
	world_destroy(w);
}

static void what_no_device_takes(void **state)
{
	struct world *w = begin();
	char *p = managed(w, N, 1);

	fake_set(w->fake[0], &w->fake[0]->take_every, 0);
	atomic_store(&lies, 3);
	assert_int_equal(out(w, p, N), 0);
	assert_int_equal(atomic_load(&lies), 0);
	assert_int_equal(count_present(w, p, N), N);
	all_are(p, N, 1);
	world_destroy(w);
}

/* Of two questions the first may be answered before something changes, and the second after it. */
static void a_page_that_moves_between_two_questions(void **state)
{
	struct world *w = begin();
	char *p = managed(w, N, 1), *to = mmap(NULL, UMM_PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), *from;
	void *went;

	assert_true(to != MAP_FAILED && out(w, p, N) > 0);
	from = p + 5 * UMM_PAGE;
	moving.to = to;
	moving.from = from;
	atomic_store(&lies, 1);
	assert_int_equal(hmm_restore(w->mm, (uintptr_t)from, (uintptr_t)from + UMM_PAGE), 0);
	assert_null(moving.from);
	assert_int_equal(pthread_join(moving.thread, &went), 0);
	assert_ptr_equal(went, to);
	assert_int_equal(*from, 9);
	assert_true(page_is(to, 1, 5));
	munmap(to, UMM_PAGE);
	world_destroy(w);
}

/* Of the children that are filled nobody has a page map. */
static void it_is_asked_again(void **state)
{
	static const char other[UMM_PAGE] __attribute__((aligned(4096)));
	struct world *w = begin();
	char *p = managed(w, 2, 1);
	uint64_t done;

	assert_int_equal(out(w, p, 2), 2);
	assert_int_equal(hmm_restore(w->mm, (uintptr_t)p, (uintptr_t)p + UMM_PAGE), 0);
	/* What is there stays so. */
	assert_int_equal(__real_umm_uffd_copy(w->space->uffd, (uintptr_t)p, other, UMM_PAGE, &done), -EEXIST);
	kernel_lies = 2;
	assert_int_equal(__real_umm_uffd_copy(w->space->uffd, (uintptr_t)p + UMM_PAGE, other, UMM_PAGE, &done), 0);
	assert_int_equal(kernel_lies, 0);
	world_destroy(w);
}

static void *touch_main(void *p)
{
	return (void *)(uintptr_t) * (volatile unsigned char *)p;
}

/* Who waits for a page that is moved, which the kernel does not say, goes on. */
static void who_waits_for_what_went_unsaid(void **state)
{
	int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
	struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_MOVE};
	char *p = mmap(NULL, 4 * UMM_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct uffd_msg msg;
	uint64_t moved;
	pthread_t t;
	void *saw;

	assert_true(uffd >= 0 && !__real_ioctl(uffd, UFFDIO_API, &api) && p != MAP_FAILED);
	assert_int_equal(umm_uffd_register(uffd, (uintptr_t)p, 2 * UMM_PAGE, UFFDIO_REGISTER_MODE_MISSING), 0);
	memset(p + 2 * UMM_PAGE, 7, 2 * UMM_PAGE);
	assert_int_equal(pthread_create(&t, NULL, touch_main, p + UMM_PAGE), 0);
	assert_int_equal(read(uffd, &msg, sizeof(msg)), sizeof(msg));
	assert_int_equal(msg.event, UFFD_EVENT_PAGEFAULT);
	moves_unsaid = true;
	umm_uffd_move(uffd, (uintptr_t)p, p + 2 * UMM_PAGE, 2 * UMM_PAGE, &moved);
	moves_unsaid = false;
	assert_int_equal(moved, 2 * UMM_PAGE);
	assert_int_equal(pthread_join(t, &saw), 0);
	assert_int_equal((uintptr_t)saw, 7);
	close(uffd);
	munmap(p, 4 * UMM_PAGE);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(it_is_asked_again),      cmocka_unit_test(who_waits_for_what_went_unsaid),
		cmocka_unit_test(a_page_that_is_touched), cmocka_unit_test(pages_that_are_asked_back),
		cmocka_unit_test(what_no_device_takes),   cmocka_unit_test(a_page_that_moves_between_two_questions),
	};
	const char *why;
	struct world *w = world_create("lz4", 0, &why);

	if (!w) {
		printf("SKIP: %s\n", why);
		return 77;
	}
	world_destroy(w);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
