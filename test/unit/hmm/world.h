/* SPDX-License-Identifier: MIT */
/*
 * An engine that manages memory of the test's own process.
 *
 * The test's thread stands in for the program and, between calls of the
 * engine, for the inside.  Only what managed() maps is registered: the engine's
 * own memory is not, so its threads may use malloc.  fork() is the raw call:
 * glibc's holds locks of malloc across it, for which the engine would wait.
 */
#ifndef HMM_TEST_WORLD_H
#define HMM_TEST_WORLD_H

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#include "fake.h"
#include "hmm/internal.h"
#include "rng.h"

#define LEAF (1ull << HMM_LEAF_SHIFT)
#define STAGING (UMM_BATCHES * UMM_BATCH_PAGES * UMM_PAGE)

struct world {
	struct hmm *h;
	struct hmm_mm *mm;
	struct umm_space *space;
	struct umm_ctl *ctl;
	struct umm_inside in;
	struct fake *fake[2];
	char *window;
	int pagemap;

	bool defer;       /* the inside moves when it is waited for, not before */
	int refuse;       /* go() gives this */
	unsigned went;    /* times that the inside was told to go */
	bool await_child; /* a forked child is looked after when an event of its own waits, not before */

	bool fork_fails; /* there are no records of a forked child */

	bool slow_fatal; /* who gives a space up takes a while to say so */
	_Atomic unsigned said, fatals, children;
	pthread_mutex_t line_lock;
	char line[512];
};

/* ---------------------------------------------------------------- contents */

static inline void page_fill(void *page, unsigned seed, unsigned i)
{
	struct rng rng = {(uint64_t)seed << 32 | i};
	uint64_t *word = page;

	for (unsigned k = 0; k < UMM_PAGE / sizeof(*word); k++)
		word[k] = rng_next(&rng);
}

/* Seed 0: a page of zeros. */
static inline bool page_is(const void *page, unsigned seed, unsigned i)
{
	struct rng rng = {(uint64_t)seed << 32 | i};
	const volatile uint64_t *word = page;

	for (unsigned k = 0; k < UMM_PAGE / sizeof(*word); k++)
		if (word[k] != (seed ? rng_next(&rng) : 0))
			return false;
	return true;
}

/* One byte read by a system call, as no signal comes then: 0 or -EFAULT. */
static inline int peek(const void *addr)
{
	int fd[2];
	int rc = 0;

	if (pipe(fd))
		return -errno;
	if (write(fd[1], addr, 1) != 1)
		rc = -errno;
	close(fd[0]);
	close(fd[1]);
	return rc;
}

static inline pid_t raw_fork(void)
{
	return (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
}

/* ------------------------------------------------------------------ inside */

static inline int world_go(void *priv, unsigned b)
{
	struct world *w = priv;

	w->went++;
	if (w->refuse)
		return w->refuse;
	if (!w->defer)
		umm_inside_move(&w->in, b);
	return 0;
}

static inline int world_wait(void *priv, unsigned b)
{
	struct world *w = priv;

	if (!atomic_load(&w->ctl->batch[b].done))
		umm_inside_move(&w->in, b);
	return 0;
}

static inline int world_arm(void *priv)
{
	return 0;
}

static inline int world_advise(void *priv, uint64_t start, uint64_t len, int advice)
{
	return madvise((void *)(uintptr_t)start, len, advice) ? -errno : 0;
}

static const struct hmm_inside_ops world_inside = {
	.go = world_go, .wait = world_wait, .arm = world_arm, .advise = world_advise};

/* ------------------------------------------------------------------ engine */

static inline void world_say(void *priv, const char *line)
{
	struct world *w = priv;

	pthread_mutex_lock(&w->line_lock);
	snprintf(w->line, sizeof(w->line), "%s", line);
	pthread_mutex_unlock(&w->line_lock);
	atomic_fetch_add(&w->said, 1);
}

static inline void world_fatal(void *priv, struct hmm_mm *mm, const char *why)
{
	struct world *w = priv;

	fprintf(stderr, "the engine gives a space up: %s\n", why);
	atomic_fetch_add(&w->fatals, 1);
	if (w->slow_fatal)
		usleep(50000);
}

/* One reference to @space becomes the mm's, also on error. */
static inline int world_manage(struct hmm *h, struct umm_space *space, char *window,
			       const struct hmm_inside_ops *inside, void *priv, struct hmm_mm **mmp)
{
	struct hmm_mm *mm = hmm_mm_new(h, space, window, inside, priv);

	if (!mm) {
		umm_space_put(space);
		return -ENOMEM;
	}
	hmm_mm_publish(mm);
	*mmp = mm;
	return 0;
}

struct child {
	struct umm_ctl *ctl;
	char *window;
};

static inline void child_gone(void *priv)
{
	struct child *c = priv;

	free(c->ctl);
	free(c->window);
	free(c);
}

static inline int world_forked(void *priv, struct hmm_mm *parent, int uffd, struct hmm_mm **child)
{
	struct world *w = priv;
	struct child *c;
	struct umm_space *space;

	if (w->fork_fails) {
		world_say(w, "what was away is lost to the child");
		assert_int_equal(hmm_lost_to_child(parent, uffd), 0);
		close(uffd);
		return -EMFILE;
	}
	c = calloc(1, sizeof(*c));
	c->ctl = calloc(1, sizeof(*c->ctl));
	c->window = malloc(STAGING);
	if (w->await_child)
		poll(&(struct pollfd){.fd = uffd, .events = POLLIN}, 1, -1);
	if (umm_space_adopt(0, uffd, -1, -1, c->ctl, &space) || world_manage(w->h, space, c->window, NULL, NULL, child))
		abort();
	(*child)->gone = child_gone;
	(*child)->gone_priv = c;
	(*child)->statm_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
	atomic_fetch_add(&w->children, 1);
	return 0;
}

static inline bool said_word(struct world *w, const char *word)
{
	pthread_mutex_lock(&w->line_lock);
	bool found = strstr(w->line, word);
	pthread_mutex_unlock(&w->line_lock);
	return found;
}

/* NULL: what a test needs is not to be had here; @why says what. */
static inline struct world *world_create(const char *chain, unsigned fakes, const char **why)
{
	struct world *w = calloc(1, sizeof(*w));
	struct hmm_options opt = {.chain = chain,
				  .say = world_say,
				  .fatal = world_fatal,
				  .forked = world_forked,
				  .priv = w,
				  /*
				   * A fault that a change interrupts comes again, and each takes a thread
				   * while the device is blocked: one must be left that reads events.
				   */
				  .threads = 8};
	char err[256] = "";
	uint64_t got;
	int uffd = umm_inside_uffd();

	*why = "no right to a userfaultfd";
	if (uffd < 0) {
		free(w);
		return NULL;
	}
	*why = "userfaultfd lacks MOVE, POISON or FORK events";
	if (umm_uffd_api(uffd, UMM_UFFD_BASE | UFFD_FEATURE_EVENT_FORK, 0, &got)) {
		close(uffd);
		free(w);
		return NULL;
	}
	pthread_mutex_init(&w->line_lock, NULL);
	w->ctl = calloc(1, sizeof(*w->ctl));
	w->window = malloc(STAGING);
	w->pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	assert_int_equal(umm_space_adopt(getpid(), uffd, dup(w->pagemap), -1, w->ctl, &w->space), 0);
	w->space->features = got;
	if (hmm_create(&opt, &w->h, err, sizeof(err)))
		fail_msg("%s", err);
	for (unsigned i = 0; fakes && i < w->h->chain.n; i++)
		hmm_device_close(w->h->chain.dev[i]);
	for (unsigned i = 0; i < fakes; i++) {
		w->fake[i] = fake_create(true);
		w->h->chain.dev[i] = &w->fake[i]->dev;
		w->h->chain.n = i + 1;
	}
	assert_int_equal(world_manage(w->h, w->space, w->window, &world_inside, w, &w->mm), 0);
	w->mm->smaps_fd = open("/proc/self/smaps", O_RDONLY | O_CLOEXEC);
	w->mm->statm_fd = open("/proc/self/statm", O_RDONLY | O_CLOEXEC);
	w->in = (struct umm_inside){.uffd = uffd, .ctl = w->ctl, .window = w->window};
	w->in.staging = mmap(NULL, STAGING, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_true(w->in.staging != MAP_FAILED);
	assert_int_equal(madvise(w->in.staging, STAGING, MADV_DONTFORK), 0);
	assert_int_equal(umm_uffd_register(uffd, (uintptr_t)w->in.staging, STAGING, UFFDIO_REGISTER_MODE_MISSING), 0);
	w->mm->keep_start = (uintptr_t)w->in.staging;
	w->mm->keep_end = w->mm->keep_start + STAGING;
	assert_int_equal(umm_monitor_add(w->h->monitor, w->space), 0);
	return w;
}

static inline void world_destroy(struct world *w)
{
	hmm_destroy(w->h);
	munmap(w->in.staging, STAGING);
	close(w->pagemap);
	free(w->ctl);
	free(w->window);
	pthread_mutex_destroy(&w->line_lock);
	assert_int_equal(atomic_load(&w->fatals), 0);
	for (unsigned i = 0; i < 2 && w->fake[i]; i++) {
		/* Whatever happened: every reference that was taken has been let go. */
		assert_int_equal(w->fake[i]->refs_total, 0);
		fake_free(w->fake[i]);
	}
	free(w);
}

/* ------------------------------------------------------------------ memory */

/*
 * @npages that the engine manages, filled from @seed (0: untouched).  They lie
 * across a boundary of two leaves, alone in an area of 16 MiB.
 */
static inline char *managed(struct world *w, unsigned npages, unsigned seed)
{
	char *area = mmap(NULL, 16 << 20, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	assert_true(area != MAP_FAILED);
	char *p = (char *)(((uintptr_t)area + 4 * LEAF) & ~(LEAF - 1)) - npages / 2 * UMM_PAGE;
	assert_ptr_equal(
		mmap(p, npages * UMM_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0), p);
	assert_int_equal(madvise(p, npages * UMM_PAGE, MADV_NOHUGEPAGE), 0);
	for (unsigned i = 0; seed && i < npages; i++)
		page_fill(p + i * UMM_PAGE, seed, i);
	assert_int_equal(
		umm_uffd_register(w->space->uffd, (uintptr_t)p, npages * UMM_PAGE, UFFDIO_REGISTER_MODE_MISSING), 0);
	pthread_mutex_lock(&w->mm->lock);
	assert_int_equal(hmm_iset_add(&w->mm->registered, (uintptr_t)p, (uintptr_t)p + npages * UMM_PAGE), 0);
	pthread_mutex_unlock(&w->mm->lock);
	return p;
}

static inline bool present(struct world *w, const void *addr)
{
	uint64_t e = 0;

	assert_int_equal(pread(w->pagemap, &e, 8, (off_t)((uintptr_t)addr / UMM_PAGE * 8)), 8);
	return e >> 63;
}

static inline unsigned count_present(struct world *w, const char *p, unsigned npages)
{
	unsigned n = 0;

	for (unsigned i = 0; i < npages; i++)
		n += present(w, p + i * UMM_PAGE);
	return n;
}

/* Events that were read have been applied. */
static inline void settled(struct world *w)
{
	umm_evlock_shared(&w->ctl->evlock);
	umm_evlock_unshared(&w->ctl->evlock);
}

/* As if the time of all quarantines had passed. */
static inline void quarantine_over(struct world *w)
{
	settled(w);
	pthread_mutex_lock(&w->space->quarantine.lock);
	w->space->quarantine.n = 0;
	pthread_mutex_unlock(&w->space->quarantine.lock);
}

static inline enum hmm_page_state state_of(struct world *w, const void *addr)
{
	struct hmm_leaf *leaf;
	enum hmm_page_state st = HMM_SYSTEM;

	settled(w);
	leaf = hmm_leaf_find(w->mm, (uintptr_t)addr);
	if (leaf) {
		pthread_mutex_lock(&leaf->lock);
		st = hmm_entry_state(leaf->e[hmm_leaf_index((uintptr_t)addr)]);
		pthread_mutex_unlock(&leaf->lock);
	}
	return st;
}

static inline unsigned victims(const char *p, unsigned npages, struct hmm_victim *v)
{
	unsigned n = 0;

	for (unsigned i = 0; i < npages;) {
		uint64_t addr = (uintptr_t)p + i * UMM_PAGE;
		unsigned left = (unsigned)((LEAF - addr % LEAF) / UMM_PAGE), m = npages - i;

		m = m < UMM_RUN_PAGES ? m : UMM_RUN_PAGES;
		m = m < left ? m : left;
		v[n++] = (struct hmm_victim){addr, m};
		i += m;
	}
	return n;
}

static inline int out(struct world *w, const char *p, unsigned npages)
{
	struct hmm_victim v[UMM_BATCH_RUNS];

	return hmm_migrate_out(w->mm, v, victims(p, npages, v));
}

static inline void all_are(const char *p, unsigned npages, unsigned seed)
{
	for (unsigned i = 0; i < npages; i++)
		if (!page_is(p + i * UMM_PAGE, seed, i))
			fail_msg("page %u does not hold what it should", i);
}

/* ------------------------------------------------------------------ SIGBUS */

static __thread sigjmp_buf touch_jump;
static __thread volatile sig_atomic_t touch_armed;

static inline void touch_signal(int sig)
{
	if (!touch_armed)
		abort();
	siglongjmp(touch_jump, sig);
}

/* Reads a byte.  Returns 0, or the signal that it got. */
static inline int touch(const char *p, char *byte)
{
	struct sigaction sa = {.sa_handler = touch_signal, .sa_flags = SA_NODEFER};
	int sig;

	sigaction(SIGBUS, &sa, NULL);
	sigaction(SIGSEGV, &sa, NULL);
	sig = sigsetjmp(touch_jump, 1);
	if (!sig) {
		touch_armed = 1;
		*byte = *(const volatile char *)p;
	}
	touch_armed = 0;
	return sig;
}

static inline int skip_all(const char *why)
{
	printf("SKIP: %s\n", why);
	return 77;
}

#endif
