/* SPDX-License-Identifier: MIT */
/*
 * A mapping that changes between the look at it and its registration.
 *
 * umm_uffd_register() is replaced by the linker: what happens around it is what
 * another thread could do there.  So is umm_vma_next(), to be counted.
 */
#include "world.h"

#define PAGES 4u

int __real_umm_uffd_register(int uffd, uint64_t start, uint64_t len, uint64_t mode);
int __wrap_umm_uffd_register(int uffd, uint64_t start, uint64_t len, uint64_t mode);
int __real_umm_vma_next(struct umm_space *space, uint64_t addr, struct umm_vma *vma);
int __wrap_umm_vma_next(struct umm_space *space, uint64_t addr, struct umm_vma *vma);
bool __real_umm_uffd_is_changing(int uffd);
bool __wrap_umm_uffd_is_changing(int uffd);

static struct {
	char *at; /* PAGES pages, or as many as "pages" says; all else is somebody else's. */
	unsigned pages;
	bool swap; /* one is unmapped before it is registered, and mapped anew after */
	unsigned which;
	unsigned calls, looks;
	bool fork;             /* a child is made before it is registered, and nobody has heard of it yet */
	bool behind;           /* something shared is mapped right behind them, just before they are registered */
	int fail;              /* it is refused */
	unsigned gone;         /* so many times it is not there just when it is to be registered */
	uint64_t beyond;       /* there is a mapping at this address, which no such machine as ours has */
	unsigned beyond_calls; /* it was to be registered */
	_Atomic pid_t child;
} target;

int __wrap_umm_vma_next(struct umm_space *space, uint64_t addr, struct umm_vma *vma)
{
	int rc;

	target.looks++;
	rc = __real_umm_vma_next(space, addr, vma);
	if (rc != -ENOENT || addr >= target.beyond + UMM_PAGE)
		return rc;
	*vma = (struct umm_vma){.start = target.beyond,
				.end = target.beyond + UMM_PAGE,
				.flags = UMM_VMA_READ | UMM_VMA_WRITE,
				.page_size = UMM_PAGE};
	return 0;
}

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

	target.beyond_calls += start >= HMM_ADDR_END;
	if (!target.at)
		return __real_umm_uffd_register(uffd, start, len, mode);
	if (start < first || start >= first + (target.pages ? target.pages : PAGES) * UMM_PAGE)
		return -EBUSY;
	target.calls++;
	if (target.fail)
		return target.fail;
	if (target.gone) {
		target.gone--;
		return -EINVAL;
	}
	if (target.swap)
		munmap(target.at + target.which * UMM_PAGE, UMM_PAGE);
	if (target.behind && mmap(target.at + PAGES * UMM_PAGE, UMM_PAGE, PROT_READ | PROT_WRITE,
				  MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED)
		abort();
	target.behind = false;
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
		mmap(target.at + target.which * UMM_PAGE, UMM_PAGE, PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
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
	assert_int_equal(hmm_discover(w->mm, 0, NULL, NULL), 0);
	assert_false(is_registered(w, 0));
	/* Left as it is, the next walk finds what there is. */
	target.swap = false;
	assert_int_equal(hmm_discover(w->mm, 0, NULL, NULL), 0);
	for (unsigned i = 0; i < PAGES; i++)
		assert_true(is_registered(w, i));
	target.at = NULL;
	munmap(area, 16 * UMM_PAGE);
	world_destroy(w);
}

/*
 * Three mappings side by side, of 1, 1 and 2 pages: registered by one call.  What is around them is shared, so
 * nobody registers it, and no allocator's next mapping can come to lie there (a sanitizer's did).
 */
static struct world *three(void)
{
	const char *why;
	struct world *w = world_create("lz4", 0, &why);
	char *area = mmap(NULL, 16 * UMM_PAGE, PROT_NONE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	assert_non_null(w);
	w->space->maps_fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
	atomic_store(&w->mm->armed, true);
	target.at = area + 6 * UMM_PAGE;
	assert_ptr_equal(mmap(target.at, PAGES * UMM_PAGE, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0),
			 target.at);
	assert_int_equal(mprotect(target.at + UMM_PAGE, UMM_PAGE, PROT_READ), 0);
	return w;
}

static void three_end(struct world *w)
{
	munmap(target.at - 6 * UMM_PAGE, 16 * UMM_PAGE);
	target.at = NULL;
	world_destroy(w);
}

static void one_of_several_is_mapped_anew(void **state)
{
	struct world *w = three();

	target.swap = true;
	target.which = 1;
	target.calls = 0;
	assert_int_equal(hmm_discover(w->mm, 0, NULL, NULL), 0);
	assert_int_equal(target.calls, 1);
	assert_true(is_registered(w, 0));
	assert_false(is_registered(w, 1));
	target.swap = false;
	target.which = 0;
	assert_int_equal(hmm_discover(w->mm, 0, NULL, NULL), 0);
	for (unsigned i = 0; i < PAGES; i++)
		assert_true(is_registered(w, i));
	three_end(w);
}

static void one_of_several_is_somebody_elses(void **state)
{
	struct world *w = three();
	int other = umm_inside_uffd();
	uint64_t got;

	assert_true(other >= 0);
	assert_int_equal(umm_uffd_api(other, 0, 0, &got), 0);
	assert_int_equal(__real_umm_uffd_register(other, (uintptr_t)target.at + UMM_PAGE, UMM_PAGE,
						  UFFDIO_REGISTER_MODE_MISSING),
			 0);
	assert_int_equal(hmm_discover(w->mm, 0, NULL, NULL), 0);
	assert_true(is_registered(w, 0));
	assert_false(is_registered(w, 1));
	assert_true(is_registered(w, 2));
	assert_true(is_registered(w, 3));
	close(other);
	three_end(w);
}

/* With five levels of page tables there may be mappings of which there are no records. */
static void what_is_beyond_the_records_is_left_alone(void **state)
{
	struct world *w = three();
	bool left = true;

	target.beyond = HMM_ADDR_END + 5 * UMM_PAGE;
	target.beyond_calls = 0;
	assert_int_equal(hmm_discover(w->mm, 0, NULL, &left), 0);
	assert_int_equal(target.beyond_calls, 0);
	assert_true(is_registered(w, 0));
	target.beyond = 0;
	/* Nor does it come to be managed by mremap(), or only what of it is below. */
	struct umm_change c = {.event = UMM_EVENT_REMAP,
			       .start = (uintptr_t)target.at,
			       .end = (uintptr_t)target.at + UMM_PAGE,
			       .new_start = HMM_ADDR_END + 5 * UMM_PAGE};
	umm_evlock_excl(&w->ctl->evlock);
	w->space->ops->change(w->space->priv, &c);
	c.end += UMM_PAGE;
	c.new_start = HMM_ADDR_END - UMM_PAGE;
	w->space->ops->change(w->space->priv, &c);
	umm_evlock_unexcl(&w->ctl->evlock);
	assert_false(hmm_iset_meets(&w->mm->registered, HMM_ADDR_END, UINT64_MAX));
	assert_true(hmm_iset_covers(&w->mm->registered, HMM_ADDR_END - UMM_PAGE, HMM_ADDR_END));
	three_end(w);
}

/* What is refused to everybody (MAP_DROPPABLE) is not asked for at each walk, and nothing is left for the next one. */
static void what_nobody_may_watch_is_remembered(void **state)
{
	const char *why;
	struct world *w = world_create("lz4", 0, &why);
	char *area = mmap(NULL, 16 * UMM_PAGE, PROT_NONE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	bool left;

	assert_non_null(w);
	w->space->maps_fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
	atomic_store(&w->mm->armed, true);
	target.at = area + 6 * UMM_PAGE;
	assert_ptr_equal(mmap(target.at, PAGES * UMM_PAGE, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0),
			 target.at);
	target.fail = -EINVAL;
	assert_int_equal(hmm_discover(w->mm, 0, NULL, &left), 0);
	assert_false(is_registered(w, 0));
	assert_false(left);
	target.calls = 0;
	assert_int_equal(hmm_discover(w->mm, 0, NULL, &left), 0);
	assert_int_equal(target.calls, 0);
	assert_false(left);
	/* Nobody is told when it goes: it is asked for again some time. */
	target.fail = 0;
	w->mm->foreign_aged_ns = 1;
	assert_int_equal(hmm_discover(w->mm, 0, NULL, NULL), 0);
	w->mm->foreign_aged_ns = 1;
	assert_int_equal(hmm_discover(w->mm, 0, NULL, NULL), 0);
	assert_true(is_registered(w, 0));
	three_end(w);
}

/* What was gone when it was to be registered is refused with the same error, and is nobody's when it is there again. */
static void what_was_gone_for_a_moment_is_not_remembered(void **state)
{
	struct world *w = three();

	assert_int_equal(mprotect(target.at + UMM_PAGE, UMM_PAGE, PROT_READ | PROT_WRITE), 0);
	target.gone = 2; /* it is asked for twice */
	assert_int_equal(hmm_discover(w->mm, 0, NULL, NULL), 0);
	assert_int_equal(target.gone, 0);
	assert_int_equal(hmm_discover(w->mm, 0, NULL, NULL), 0);
	assert_true(is_registered(w, 0));
	three_end(w);
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
	/* What was found to be somebody else's a while ago. */
	w->mm->foreign_aged_ns = umm_now_ns();
	assert_int_equal(hmm_iset_add(&w->mm->foreign_old, (uintptr_t)area, (uintptr_t)area + UMM_PAGE), 0);

	target.fork = true;
	assert_int_equal(hmm_discover(w->mm, 0, NULL, NULL), 0);
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
	assert_true(hmm_iset_covers(&child->foreign_old, (uintptr_t)area, (uintptr_t)area + UMM_PAGE));
	assert_false(hmm_iset_meets(&child->registered, (uintptr_t)target.at, (uintptr_t)target.at + PAGES * UMM_PAGE));
	/* The parent's is, when it is looked at again. */
	assert_int_equal(hmm_discover(w->mm, 0, NULL, NULL), 0);
	assert_true(is_registered(w, 0));
	kill(pid, SIGKILL);
	assert_int_equal(waitpid(pid, NULL, 0), pid);
	target.at = NULL;
	munmap(area, 16 * UMM_PAGE);
	world_destroy(w);
}

/* ------------------------------------------------- where forks are not told of */

/* Is the mapping at @at one that a child does not get? */
static bool is_marked(const char *at)
{
	FILE *f = fopen("/proc/self/smaps", "r");
	unsigned long a, z;
	bool here = false, found = false, yes = false;
	char line[512];

	assert_non_null(f);
	while (fgets(line, sizeof(line), f)) {
		if (sscanf(line, "%lx-%lx ", &a, &z) == 2)
			here = a <= (uintptr_t)at && z > (uintptr_t)at;
		found |= here;
		if (here && !strncmp(line, "VmFlags:", 8))
			yes = strstr(line, " dc") != NULL;
	}
	fclose(f);
	assert_true(found);
	return yes;
}

static unsigned marked_pages(const char *p, unsigned n)
{
	unsigned marked = 0;

	for (unsigned i = 0; i < n; i++)
		marked += is_marked(p + i * UMM_PAGE);
	return marked;
}

/* A mapping of PAGES pages with room for as many behind it, found and managed; where nobody tells of forks. */
static struct world *untold(void)
{
	const char *why;
	struct world *w = world_create("lz4", 0, &why);
	char *area = mmap(NULL, 16 * UMM_PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	assert_non_null(w);
	w->space->maps_fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
	atomic_store(&w->mm->armed, true);
	atomic_store(&w->ctl->no_fork_events, 1);
	target.at = area + 6 * UMM_PAGE;
	assert_int_equal(mprotect(target.at, PAGES * UMM_PAGE, PROT_READ | PROT_WRITE), 0);
	assert_int_equal(munmap(target.at + PAGES * UMM_PAGE, PAGES * UMM_PAGE), 0);
	for (unsigned i = 0; i < PAGES; i++)
		page_fill(target.at + i * UMM_PAGE, 1, i);
	return w;
}

static void untold_end(struct world *w)
{
	char *area = target.at - 6 * UMM_PAGE;

	/* Of what is the test's own nothing stays marked, or those that follow would have no children. */
	pthread_mutex_lock(&w->mm->out_lock);
	assert_int_equal(hmm_unforked_lift(w->mm), 0);
	pthread_mutex_unlock(&w->mm->out_lock);
	target.at = NULL;
	munmap(area, 16 * UMM_PAGE);
	world_destroy(w);
}

static int lift(struct world *w)
{
	pthread_mutex_lock(&w->mm->out_lock);
	int rc = hmm_unforked_lift(w->mm);
	pthread_mutex_unlock(&w->mm->out_lock);
	return rc;
}

static int back(struct world *w)
{
	pthread_mutex_lock(&w->mm->out_lock);
	int rc = hmm_unforked_back(w->mm);
	pthread_mutex_unlock(&w->mm->out_lock);
	return rc;
}

/* Nothing is behind the mapping when the walk looks. */
static void what_comes_to_be_behind_is_let_go_of(void **state)
{
	struct world *w = untold();
	uint64_t behind = (uintptr_t)target.at + PAGES * UMM_PAGE;

	atomic_store(&w->ctl->no_fork_events, 0);
	target.behind = true;
	assert_int_equal(hmm_discover(w->mm, 0, NULL, NULL), 0);
	assert_false(target.behind);
	assert_true(is_registered(w, 0));
	assert_int_equal(umm_inside_registered(w->space->uffd, (uintptr_t)target.at), 0);
	assert_int_equal(umm_inside_registered(w->space->uffd, behind), -ENOENT);
	untold_end(w);
}

static void a_child_gets_what_could_not_be_registered(void **state)
{
	static const int why[] = {-EAGAIN, -EBUSY, -ENOMEM};

	for (unsigned i = 0; i < 3; i++) {
		struct world *w = untold();

		target.fail = why[i];
		assert_int_equal(hmm_discover(w->mm, 0, NULL, NULL), 0);
		assert_int_equal(marked_pages(target.at, PAGES), PAGES);
		assert_false(is_registered(w, 0));
		target.fail = 0;
		assert_int_equal(lift(w), 0);
		assert_int_equal(marked_pages(target.at, PAGES), 0);
		untold_end(w);
	}
}

static void a_child_gets_what_a_mapping_grew_by(void **state)
{
	for (unsigned moved = 0; moved < 2; moved++) {
		struct world *w = untold();
		char *p = target.at, *q;

		assert_int_equal(hmm_discover(w->mm, 0, NULL, NULL), 0);
		assert_true(is_registered(w, 0));
		if (moved) /* the place behind it is taken */
			assert_true(mmap(p + PAGES * UMM_PAGE, UMM_PAGE, PROT_NONE,
					 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED);
		q = mremap(p, PAGES * UMM_PAGE, 2 * PAGES * UMM_PAGE, MREMAP_MAYMOVE);
		assert_true(q != MAP_FAILED);
		assert_int_equal(q == p, !moved);
		assert_int_equal(marked_pages(q, 2 * PAGES), 2 * PAGES);
		assert_int_equal(lift(w), 0);
		assert_int_equal(marked_pages(q, 2 * PAGES), 0);
		/* Put on again it is on all of it: in two mappings mremap() would find no one. */
		assert_int_equal(back(w), 0);
		assert_int_equal(marked_pages(q, 2 * PAGES), 2 * PAGES);
		assert_int_equal(lift(w), 0);
		munmap(q, 2 * PAGES * UMM_PAGE);
		untold_end(w);
	}
}

static void a_child_gets_what_was_handed_over(void **state)
{
	struct world *w = untold();

	assert_int_equal(hmm_discover(w->mm, 0, NULL, NULL), 0);
	assert_true(is_registered(w, 0));
	assert_int_equal(hmm_hands_off(w->mm, (uintptr_t)target.at, (uintptr_t)target.at + 2 * UMM_PAGE), 0);
	assert_int_equal(marked_pages(target.at, 2), 0);
	assert_int_equal(marked_pages(target.at + 2 * UMM_PAGE, PAGES - 2), PAGES - 2);
	untold_end(w);
}

/* The kernel registers no ordinary file's mapping, and lets go of none. */
static void a_child_does_not_get_what_could_not_be_handed_over(void **state)
{
	struct world *w = untold();
	int fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);

	assert_int_equal(hmm_discover(w->mm, 0, NULL, NULL), 0);
	assert_true(is_registered(w, 0));
	assert_ptr_equal(mmap(target.at + PAGES * UMM_PAGE, UMM_PAGE, PROT_READ, MAP_PRIVATE | MAP_FIXED, fd, 0),
			 target.at + PAGES * UMM_PAGE);
	close(fd);
	assert_int_equal(hmm_hands_off(w->mm, (uintptr_t)target.at, (uintptr_t)target.at + (PAGES + 1) * UMM_PAGE),
			 -EINVAL);
	assert_true(is_registered(w, 0));
	assert_int_equal(marked_pages(target.at, PAGES), PAGES);
	assert_false(is_marked(target.at + PAGES * UMM_PAGE));
	untold_end(w);
}

static struct {
	struct world *w;
	char *to;
	pthread_t thread;
	bool moved;
} mover;

static void *move_away(void *unused)
{
	return mremap(target.at, PAGES * UMM_PAGE, PAGES * UMM_PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, mover.to);
}

/* Between the look at it and the advice it is moved; and nobody has heard of that yet. */
static int advise_too_late(void *priv, uint64_t start, uint64_t len, int advice)
{
	if (start <= (uintptr_t)target.at && start + len > (uintptr_t)target.at && !mover.moved) {
		mover.moved = true;
		assert_int_equal(pthread_create(&mover.thread, NULL, move_away, NULL), 0);
		poll(&(struct pollfd){.fd = mover.w->space->uffd, .events = POLLIN}, 1, -1);
	}
	return world_advise(priv, start, len, advice);
}

static void a_child_gets_what_is_moved_just_then(void **state)
{
	struct hmm_inside_ops ops = world_inside;
	struct world *w = untold();
	char *to = mmap(NULL, PAGES * UMM_PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	void *ret;

	assert_int_equal(hmm_discover(w->mm, 0, NULL, NULL), 0);
	assert_true(is_registered(w, 0));
	ops.advise = advise_too_late;
	w->mm->inside = &ops;
	umm_space_get(w->space);
	umm_monitor_del(w->space); /* events are read when somebody asks for them */
	mover.w = w;
	mover.to = to;
	assert_int_equal(lift(w), 0);
	umm_space_drain(w->space); /* should nobody have */
	pthread_join(mover.thread, &ret);
	assert_ptr_equal(ret, to);
	assert_int_equal(marked_pages(to, PAGES), 0);
	for (unsigned i = 0; i < PAGES; i++)
		assert_true(page_is(to + i * UMM_PAGE, 1, i));
	w->mm->inside = &world_inside;
	assert_int_equal(umm_monitor_add(w->h->monitor, w->space), 0);
	umm_space_put(w->space);
	munmap(to, PAGES * UMM_PAGE);
	untold_end(w);
}

/* ------------------------------------------------ walks that come to very many */

ssize_t __real_read(int fd, void *buf, size_t len);
ssize_t __wrap_read(int fd, void *buf, size_t len);

static volatile bool swap_reads;

/* Of two events the later one comes first, as it may where who unmaps is preempted before the event is queued. */
ssize_t __wrap_read(int fd, void *buf, size_t len)
{
	struct uffd_msg msg[2];
	ssize_t got;

	if (!swap_reads || len < sizeof(msg))
		return __real_read(fd, buf, len);
	swap_reads = false;
	/* Each waits until its own has been read: one at a time would let the first one go on. */
	while ((got = __real_read(fd, msg, sizeof(msg))) < 0 && errno == EAGAIN)
		sched_yield();
	assert_int_equal(got, sizeof(msg));
	assert_int_equal(msg[0].event, UFFD_EVENT_UNMAP);
	assert_int_equal(msg[1].event, UFFD_EVENT_REMAP);
	memcpy(buf, &msg[1], sizeof(msg[0]));
	memcpy((char *)buf + sizeof(msg[0]), &msg[0], sizeof(msg[0]));
	return sizeof(msg);
}

#define MANY 512u
#define CHANGED 300u /* one of those that are registered early */
#define RUN 128u     /* mappings at a time */

static struct {
	struct world *w;
	unsigned calls, ours, kernels; /* of "looked"; pages in the records, and registered, at the last one */
	bool unsure;
	void (*then)(char *page);
	int other; /* somebody else's userfaultfd */
} half;

static bool kernel_has(unsigned page)
{
	return umm_inside_registered(half.w->space->uffd, (uintptr_t)target.at + page * UMM_PAGE) == 0;
}

static void looked(struct hmm_mm *mm, bool unsure)
{
	half.calls++;
	half.unsure = unsure;
	half.ours = half.kernels = 0;
	for (unsigned i = 0; i < MANY; i++) {
		half.ours += is_registered(half.w, i);
		half.kernels += kernel_has(i);
	}
	if (half.then)
		half.then(target.at + CHANGED * UMM_PAGE);
	half.then = NULL;
}

static void map_anew(char *page)
{
	assert_int_equal(munmap(page, UMM_PAGE), 0);
	assert_ptr_equal(mmap(page, UMM_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0),
			 page);
}

static void map_anew_for_another(char *page)
{
	map_anew(page);
	assert_int_equal(__real_umm_uffd_register(half.other, (uintptr_t)page, UMM_PAGE, UFFDIO_REGISTER_MODE_MISSING),
			 0);
}

static void hand_over(char *page)
{
	assert_int_equal(hmm_hands_off(half.w->mm, (uintptr_t)page, (uintptr_t)page + UMM_PAGE), 0);
}

/* So many pages side by side, a mapping each.  What is around them is shared, as above. */
static struct world *very_many(void)
{
	char *area = mmap(NULL, (MANY + 2) * UMM_PAGE, PROT_NONE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	const char *why;
	struct world *w = world_create("lz4", 0, &why);
	uint64_t got;

	assert_non_null(w);
	w->space->maps_fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
	atomic_store(&w->mm->armed, true);
	target.at = area + UMM_PAGE;
	target.pages = MANY;
	for (unsigned i = 0; i < MANY; i++)
		assert_true(mmap(target.at + i * UMM_PAGE, UMM_PAGE, i % 2 ? PROT_READ : PROT_READ | PROT_WRITE,
				 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED);
	memset(&half, 0, sizeof(half));
	half.w = w;
	half.other = umm_inside_uffd();
	assert_true(half.other >= 0);
	assert_int_equal(umm_uffd_api(half.other, 0, 0, &got), 0);
	return w;
}

static void very_many_end(struct world *w)
{
	close(half.other);
	munmap(target.at - UMM_PAGE, (MANY + 2) * UMM_PAGE);
	target.at = NULL;
	target.pages = 0;
	world_destroy(w);
}

static unsigned all_registered(struct world *w)
{
	unsigned n = 0;

	for (unsigned i = 0; i < MANY; i++)
		n += is_registered(w, i) && kernel_has(i);
	return n;
}

static void very_many_are_registered_before_they_are_made_sure_of(void **state)
{
	struct world *w = very_many();

	assert_int_equal(hmm_discover(w->mm, 0, looked, NULL), 0);
	assert_int_equal(half.calls, 1);
	assert_true(half.unsure);
	assert_int_equal(half.kernels, MANY);
	assert_true(half.ours < MANY / 2); /* the first ones are made sure of at once */
	assert_int_equal(all_registered(w), MANY);
	/* What is in the records is neither looked at any more, nor registered. */
	target.calls = target.looks = 0;
	assert_int_equal(hmm_discover(w->mm, 0, looked, NULL), 0);
	assert_int_equal(half.calls, 2);
	assert_false(half.unsure);
	assert_int_equal(target.calls, 0);
	assert_true(target.looks < MANY / 2);
	very_many_end(w);
}

static void one_of_very_many_changes_in_between(void **state)
{
	for (unsigned what = 0; what < 3; what++) {
		struct world *w = very_many();

		half.then = what == 0 ? map_anew : what == 1 ? map_anew_for_another : hand_over;
		assert_int_equal(hmm_discover(w->mm, 0, looked, NULL), 0);
		assert_true(half.unsure);
		assert_int_equal(half.kernels, MANY);
		assert_int_equal(all_registered(w), MANY - (what != 0));
		assert_int_equal(is_registered(w, CHANGED), what == 0);
		very_many_end(w);
	}
}

/* A larger one, that begins before it, in the place of what has a hole before it. */
static void map_larger(char *page)
{
	for (int i = 0; i < 2; i++)
		assert_int_equal(munmap(page - i * UMM_PAGE, UMM_PAGE), 0);
	assert_ptr_equal(mmap(page - UMM_PAGE, 2 * UMM_PAGE, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0),
			 page - UMM_PAGE);
}

static void a_larger_one_is_there_in_between(void **state)
{
	struct world *w = very_many();
	char *page = target.at + CHANGED * UMM_PAGE, *to;

	for (unsigned i = 1; i < MANY; i += 2)
		assert_true(mmap(target.at + i * UMM_PAGE, UMM_PAGE, PROT_NONE, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED,
				 -1, 0) != MAP_FAILED);
	half.then = map_larger;
	assert_int_equal(hmm_discover(w->mm, 0, looked, NULL), 0);
	/* Registered in part it could not be moved. */
	assert_int_equal(kernel_has(CHANGED - 1), kernel_has(CHANGED));
	to = mremap(page - UMM_PAGE, 2 * UMM_PAGE, 3 * UMM_PAGE, MREMAP_MAYMOVE);
	assert_true(to != MAP_FAILED);
	munmap(to, 3 * UMM_PAGE);
	very_many_end(w);
}

static void map_shared(char *page)
{
	assert_int_equal(munmap(page, UMM_PAGE), 0);
	assert_ptr_equal(mmap(page, UMM_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0),
			 page);
}

static void unmap_some(char *page)
{
	for (unsigned i = 0; i < MANY; i += RUN)
		assert_int_equal(munmap(target.at + i * UMM_PAGE, UMM_PAGE), 0);
}

static void what_is_none_of_ours_in_between_is_let_go_of(void **state)
{
	struct world *w = very_many();

	half.then = map_shared;
	assert_int_equal(hmm_discover(w->mm, 0, looked, NULL), 0);
	assert_false(kernel_has(CHANGED));
	assert_false(is_registered(w, CHANGED));
	assert_int_equal(all_registered(w), MANY - 1);
	very_many_end(w);

	/* And holes are not in the way of what is beside them. */
	w = very_many();
	half.then = unmap_some;
	assert_int_equal(hmm_discover(w->mm, 0, looked, NULL), 0);
	assert_int_equal(all_registered(w), MANY - MANY / RUN);
	very_many_end(w);
}

/* Together with what is another's already. */
static void hand_over_with_a_foreign_one(char *page)
{
	assert_int_equal(hmm_hands_off(half.w->mm, (uintptr_t)page - UMM_PAGE, (uintptr_t)page + UMM_PAGE), 0);
	assert_int_equal(__real_umm_uffd_register(half.other, (uintptr_t)page - UMM_PAGE, 2 * UMM_PAGE,
						  UFFDIO_REGISTER_MODE_MISSING),
			 0);
}

static void handed_over_with_a_foreign_one(void **state)
{
	struct world *w = very_many();
	uint64_t before = (uintptr_t)target.at + (CHANGED - 1) * UMM_PAGE;

	assert_int_equal(hmm_hands_off(w->mm, before, before + UMM_PAGE), 0);
	assert_int_equal(__real_umm_uffd_register(half.other, before, UMM_PAGE, UFFDIO_REGISTER_MODE_MISSING), 0);
	half.then = hand_over_with_a_foreign_one;
	assert_int_equal(hmm_discover(w->mm, 0, looked, NULL), 0);
	assert_false(is_registered(w, CHANGED));
	assert_int_equal(all_registered(w), MANY - 2);
	very_many_end(w);
}

/* What is another's already, and what is ours, by one call. */
static void managed_and_handed_over_with_a_foreign_one(void **state)
{
	struct world *w = very_many();
	uint64_t before = (uintptr_t)target.at + (CHANGED - 1) * UMM_PAGE;

	assert_int_equal(hmm_hands_off(w->mm, before, before + UMM_PAGE), 0);
	assert_int_equal(__real_umm_uffd_register(half.other, before, UMM_PAGE, UFFDIO_REGISTER_MODE_MISSING), 0);
	assert_int_equal(hmm_discover(w->mm, 0, NULL, NULL), 0);
	assert_true(is_registered(w, CHANGED));
	assert_int_equal(hmm_hands_off(w->mm, before, before + 2 * UMM_PAGE), 0);
	assert_false(is_registered(w, CHANGED));
	assert_true(kernel_has(CHANGED - 1)); /* by the other */
	assert_false(kernel_has(CHANGED));
	assert_int_equal(__real_umm_uffd_register(half.other, before, 2 * UMM_PAGE, UFFDIO_REGISTER_MODE_MISSING), 0);
	very_many_end(w);
}

/* And where that cannot be, because of what lies behind it, nothing has changed. */
static void not_handed_over_with_a_foreign_one(void **state)
{
	struct world *w = very_many();
	uint64_t at = (uintptr_t)target.at + CHANGED * UMM_PAGE;
	int fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);

	assert_int_equal(hmm_hands_off(w->mm, at, at + UMM_PAGE), 0);
	assert_int_equal(__real_umm_uffd_register(half.other, at, UMM_PAGE, UFFDIO_REGISTER_MODE_MISSING), 0);
	assert_true(mmap((void *)(uintptr_t)(at + UMM_PAGE), UMM_PAGE, PROT_READ, MAP_PRIVATE | MAP_FIXED, fd, 0) !=
		    MAP_FAILED);
	close(fd);
	assert_int_equal(hmm_discover(w->mm, 0, NULL, NULL), 0);
	assert_int_equal(hmm_hands_off(w->mm, at - UMM_PAGE, at + 2 * UMM_PAGE), -EINVAL);
	assert_true(is_registered(w, CHANGED - 1));
	assert_true(kernel_has(CHANGED - 1));
	assert_int_equal(__real_umm_uffd_register(half.other, at - UMM_PAGE, UMM_PAGE, UFFDIO_REGISTER_MODE_MISSING),
			 -EBUSY);
	very_many_end(w);
}

static char *leaves; /* watched, and unmapped by another thread when it is asked whether something changes */
static pthread_t leaver;

static void *unmap_it(void *page)
{
	munmap(page, UMM_PAGE);
	return NULL;
}

bool __wrap_umm_uffd_is_changing(int uffd)
{
	char *page = leaves;

	leaves = NULL;
	if (page) {
		if (pthread_create(&leaver, NULL, unmap_it, page))
			abort();
		while (!__real_umm_uffd_is_changing(uffd))
			sched_yield();
	}
	return __real_umm_uffd_is_changing(uffd);
}

/* Given up by its owner, and about to be registered by it anew. */
static void what_is_anothers_is_not_taken_back(void **state)
{
	struct world *w = very_many();
	uint64_t at = (uintptr_t)target.at + CHANGED * UMM_PAGE;
	char *page;

	assert_int_equal(hmm_hands_off(w->mm, at, at + UMM_PAGE), 0);
	assert_int_equal(hmm_discover(w->mm, 0, NULL, NULL), 0);
	assert_false(kernel_has(CHANGED));
	page = target.at; /* one that is managed */
	umm_space_get(w->space);
	umm_monitor_del(w->space); /* its event is read when somebody asks for it */
	leaves = page;
	assert_int_equal(hmm_hands_off(w->mm, at, at + UMM_PAGE), 0);
	assert_null(leaves);
	umm_space_drain(w->space);
	pthread_join(leaver, NULL);
	assert_int_equal(__real_umm_uffd_register(half.other, at, UMM_PAGE, UFFDIO_REGISTER_MODE_MISSING), 0);
	assert_int_equal(umm_monitor_add(w->h->monitor, w->space), 0);
	umm_space_put(w->space);
	very_many_end(w);
}

static char *moving; /* with its page away */

static void *unmap_main(void *page)
{
	munmap(page, UMM_PAGE);
	return NULL;
}

static void *move_main(void *to)
{
	if (mremap(moving, UMM_PAGE, UMM_PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to) != to)
		abort();
	return NULL;
}

/* What is there is unmapped, and what is away moved there, by two threads; the later one is told of first. */
static void move_there(char *page)
{
	pthread_t a, b;
	unsigned char in;

	umm_space_get(half.w->space);
	umm_monitor_del(half.w->space);
	assert_int_equal(pthread_create(&a, NULL, unmap_main, page), 0);
	poll(&(struct pollfd){.fd = half.w->space->uffd, .events = POLLIN}, 1, -1);
	assert_int_equal(pthread_create(&b, NULL, move_main, page), 0);
	while (mincore(page, UMM_PAGE, &in))
		sched_yield();
	swap_reads = true;
	while (swap_reads) {
		umm_space_drain(half.w->space);
		sched_yield();
	}
	assert_int_equal(umm_monitor_add(half.w->h->monitor, half.w->space), 0);
	umm_space_put(half.w->space);
	pthread_join(a, NULL);
	pthread_join(b, NULL);
}

static void a_move_to_where_one_was_is_told_of_first(void **state)
{
	struct world *w = very_many();
	char *at = target.at;

	target.at = NULL; /* all is to be registered */
	moving = managed(w, 1, 0);
	target.at = at;
	memset(moving, 'z', UMM_PAGE);
	assert_int_equal(out(w, moving, 1), 1);
	half.then = move_there;
	assert_int_equal(hmm_discover(w->mm, 0, looked, NULL), 0);
	assert_int_equal(at[CHANGED * UMM_PAGE + 9], 'z');
	very_many_end(w);
}

static void small_ones_side_by_side_are_large(void **state)
{
	struct world *w = very_many();
	char *lone = target.at + MANY / 2 * UMM_PAGE;

	/* Between two that are shared. */
	for (int i = -1; i <= 1; i += 2)
		assert_true(mmap(lone + i * (long)UMM_PAGE, UMM_PAGE, PROT_NONE, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED,
				 -1, 0) != MAP_FAILED);
	assert_int_equal(hmm_discover(w->mm, MANY / 4 * UMM_PAGE, looked, NULL), 0);
	assert_true(is_registered(w, 0));
	assert_true(is_registered(w, MANY / 2 - 2));
	assert_false(kernel_has(MANY / 2));
	assert_true(is_registered(w, MANY - 1));
	assert_int_equal(hmm_discover(w->mm, 0, looked, NULL), 0);
	assert_true(is_registered(w, MANY / 2));
	very_many_end(w);
}

static void very_many_small_ones_are_not_left_for_later(void **state)
{
	struct world *w = very_many();

	for (unsigned i = 1; i < MANY; i += 2)
		assert_true(mmap(target.at + i * UMM_PAGE, UMM_PAGE, PROT_NONE, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED,
				 -1, 0) != MAP_FAILED);
	assert_int_equal(hmm_discover(w->mm, MANY * UMM_PAGE, looked, NULL), 0);
	assert_false(kernel_has(0));
	assert_true(is_registered(w, MANY - 2));
	assert_int_equal(hmm_discover(w->mm, 0, looked, NULL), 0);
	assert_int_equal(all_registered(w), MANY / 2);
	very_many_end(w);
}

int main(void)
{
	const char *why;
	struct world *w = world_create("lz4", 0, &why);
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(only_what_is_registered_is_taken_to_be),
		cmocka_unit_test(one_of_several_is_mapped_anew),
		cmocka_unit_test(one_of_several_is_somebody_elses),
		cmocka_unit_test(what_is_beyond_the_records_is_left_alone),
		cmocka_unit_test(what_nobody_may_watch_is_remembered),
		cmocka_unit_test(what_was_gone_for_a_moment_is_not_remembered),
		cmocka_unit_test(very_many_are_registered_before_they_are_made_sure_of),
		cmocka_unit_test(one_of_very_many_changes_in_between),
		cmocka_unit_test(a_larger_one_is_there_in_between),
		cmocka_unit_test(what_is_none_of_ours_in_between_is_let_go_of),
		cmocka_unit_test(handed_over_with_a_foreign_one),
		cmocka_unit_test(managed_and_handed_over_with_a_foreign_one),
		cmocka_unit_test(not_handed_over_with_a_foreign_one),
		cmocka_unit_test(what_is_anothers_is_not_taken_back),
		cmocka_unit_test(a_move_to_where_one_was_is_told_of_first),
		cmocka_unit_test(small_ones_side_by_side_are_large),
		cmocka_unit_test(very_many_small_ones_are_not_left_for_later),
		cmocka_unit_test(what_a_child_was_born_without),
		cmocka_unit_test(a_child_gets_what_could_not_be_registered),
		cmocka_unit_test(a_child_gets_what_a_mapping_grew_by),
		cmocka_unit_test(a_child_gets_what_was_handed_over),
		cmocka_unit_test(a_child_does_not_get_what_could_not_be_handed_over),
		cmocka_unit_test(what_comes_to_be_behind_is_let_go_of),
		cmocka_unit_test(a_child_gets_what_is_moved_just_then),
	};

	if (!w)
		return skip_all(why);
	world_destroy(w);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
