/* SPDX-License-Identifier: MIT */
/*
 * A random program: does to its memory whatever a program can do, and knows of
 * every byte what it must be.
 *
 *	random SEED OPS THREADS [raw|libc|both]
 *
 * Each thread has a world: regions of private anonymous memory, and of each
 * page what stands in it.  A page is a tag, from which follow all words but the
 * first, which is a count; tag 0 is a page of zeros.  A seed gives the same
 * sequence of operations again, though not the same moments.  Operations that
 * the kernel may refuse are let be refused.
 *
 * What is known is kept in locked memory: it must not be what goes wrong.
 *
 * Besides, all threads of a process count in words of their own on pages that
 * they share, so that a write which is lost between two of them shows.
 *
 * Children, three deep, go on with a copy of the world of who forked.  What
 * goes wrong anywhere is said on standard error and counted in shared memory;
 * the first process waits until the last descendant is gone.
 */
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdatomic.h>
#include <stdarg.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include "../run/victim.h"

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

#define REGIONS 24u
#define REGION_PAGES 4096u
#define THREADS_MAX 8u
#define BLOCKS 64u
#define SHARED_PAGES 512u
#define DEPTH_MAX 3u
#define TRACE 128u

struct page {
	uint32_t tag;
	uint32_t count : 31;
	uint32_t lazy : 1; /* MADV_FREE: as it was, or zeros, until it is written as a whole */
};

struct region {
	char *at;
	size_t n; /* pages; 0: none */
	int prot;
	bool wipe, nofork;
	struct page *pg; /* REGION_PAGES */
};

struct block { /* of malloc */
	uint64_t *at;
	size_t words;
	uint32_t tag;
};

struct world {
	uint64_t rnd, seed;
	unsigned id, depth;
	uint32_t next_tag;
	size_t pages, most; /* in regions */
	unsigned ops;
	bool nolibc; /* came by a raw fork out of many threads: libc's locks may be held */
	bool alone;  /* the process has one thread */
	bool raw_child;
	struct region r[REGIONS];
	struct block b[BLOCKS];
	uint64_t bumps[SHARED_PAGES]; /* what our words on the shared pages are */
	struct {
		const char *what;
		uintptr_t a, b, c;
	} trace[TRACE];
	unsigned traced;
	int pipe[2];
	pid_t kid; /* one that runs beside us */
};

/* Of all processes. */
static struct {
	_Atomic unsigned wrong;
	_Atomic unsigned long ops, pages, forks;
} * all;

static char *shared; /* SHARED_PAGES; thread t counts in words t * 8 */
static const char *self;
static int raw_of_4 = 2;

/* ---------------------------------------------------------------- what is known */

static uint64_t rnd(struct world *w)
{
	w->rnd += 0x9e3779b97f4a7c15ull;
	return v_mix(w->rnd);
}

static size_t below(struct world *w, size_t n)
{
	return n ? rnd(w) % n : 0;
}

static bool one_in(struct world *w, unsigned n)
{
	return !below(w, n);
}

static bool raw(struct world *w)
{
	return w->nolibc || (int)below(w, 4) < raw_of_4;
}

static void note(struct world *w, const char *what, uintptr_t a, uintptr_t b, uintptr_t c)
{
	w->trace[w->traced % TRACE].what = what;
	w->trace[w->traced % TRACE].a = a;
	w->trace[w->traced % TRACE].b = b;
	w->trace[w->traced++ % TRACE].c = c;
}

static void __attribute__((format(printf, 2, 3), noreturn)) wrong(struct world *w, const char *fmt, ...)
{
	char text[16384];
	va_list ap;
	int n = snprintf(text, sizeof(text), "WRONG: seed %" PRIu64 " thread %u depth %u op %u pid %d: ", w->seed,
			 w->id, w->depth, w->ops, (int)getpid());

	va_start(ap, fmt);
	n += vsnprintf(text + n, sizeof(text) - (size_t)n, fmt, ap);
	va_end(ap);
	n += snprintf(text + n, sizeof(text) - (size_t)n, "\n");
	for (unsigned i = w->traced > TRACE ? w->traced - TRACE : 0; i < w->traced; i++)
		n += snprintf(text + n, sizeof(text) - (size_t)n, "  %s %#lx %#lx %#lx\n", w->trace[i % TRACE].what,
			      w->trace[i % TRACE].a, w->trace[i % TRACE].b, w->trace[i % TRACE].c);
	if (write(2, text, (size_t)n) < 0)
		_exit(3);
	atomic_fetch_add(&all->wrong, 1);
	syscall(SYS_exit_group, 1);
	__builtin_unreachable();
}

static uint64_t word_of(uint32_t tag, size_t i)
{
	if (!tag)
		return 0;
	/* A quarter of the words is random; one tag in eight, the page is one word all over. */
	if (i % 4 && tag % 8)
		return v_mix(tag);
	return tag % 8 ? v_mix(((uint64_t)tag << 12) + i) : v_mix(tag);
}

static void page_fill(char *at, struct page *pg, uint32_t tag, uint32_t count)
{
	uint64_t *p = (uint64_t *)at;

	for (size_t i = 1; i < V_WORDS; i++)
		p[i] = word_of(tag, i);
	p[0] = count;
	*pg = (struct page){.tag = tag, .count = count & 0x7fffffff};
}

static bool page_is(const char *at, uint32_t tag, uint32_t count, size_t *where)
{
	const volatile uint64_t *p = (const volatile uint64_t *)at;

	for (size_t i = 0; i < V_WORDS; i++) {
		*where = i;
		if (p[i] != (i ? word_of(tag, i) : count))
			return false;
	}
	return true;
}

static void page_check(struct world *w, const char *at, const struct page *pg)
{
	size_t i, j;

	atomic_fetch_add_explicit(&all->pages, 1, memory_order_relaxed);
	if (page_is(at, pg->tag, pg->count, &i))
		return;
	/* It may become zeros while it is looked at. */
	if (pg->lazy && (page_is(at, 0, 0, &j) || page_is(at, 0, 0, &j)))
		return;
	const volatile uint64_t *p = (const volatile uint64_t *)at;
	uint64_t got = p[i];
	size_t zeros = 0;
	for (size_t k = 0; k < V_WORDS; k++)
		zeros += !p[k];
	wrong(w,
	      "page %p word %zu is %#" PRIx64 ", not %#" PRIx64 " (tag %u count %u lazy %u; %zu words of it are zero)",
	      (const void *)at, i, got, i ? word_of(pg->tag, i) : (uint64_t)pg->count, pg->tag, (unsigned)pg->count,
	      (unsigned)pg->lazy, zeros);
}

static void region_check(struct world *w, struct region *r)
{
	if (r->n && (r->prot & PROT_READ))
		for (size_t i = 0; i < r->n; i++)
			page_check(w, r->at + i * V_PAGE, &r->pg[i]);
}

static struct region *any(struct world *w, int prot)
{
	for (unsigned k = 0; k < 8; k++) {
		struct region *r = &w->r[below(w, REGIONS)];

		if (r->n && (r->prot & prot) == prot)
			return r;
	}
	return NULL;
}

static struct region *vacant(struct world *w)
{
	for (unsigned i = 0; i < REGIONS; i++)
		if (!w->r[i].n)
			return &w->r[i];
	return NULL;
}

/* A run of pages of a region: mostly short, at times all of it. */
static void piece(struct world *w, const struct region *r, size_t *first, size_t *n)
{
	*first = below(w, r->n);
	size_t left = r->n - *first;
	switch (below(w, 4)) {
	case 0:
		*n = 1;
		break;
	case 1:
		*n = 1 + below(w, left < 16 ? left : 16);
		break;
	case 2:
		*n = 1 + below(w, left);
		break;
	default:
		if (one_in(w, 3))
			*first = 0;
		*n = r->n - *first;
	}
}

/* -------------------------------------------------------------------- the calls */

static void *do_mmap(struct world *w, void *at, size_t len, int prot, int flags)
{
	if (raw(w))
		return (void *)syscall(SYS_mmap, at, len, prot, flags, -1, 0L);
	return mmap(at, len, prot, flags, -1, 0);
}

static void do_munmap(struct world *w, void *at, size_t len)
{
	int rc = raw(w) ? (int)syscall(SYS_munmap, at, len) : munmap(at, len);

	if (rc && errno != ENOMEM)
		wrong(w, "munmap %p %zu: %s", at, len, strerror(errno));
	if (rc) /* too many mappings: it stays as it was, which the model does not know */
		wrong(w, "munmap %p %zu: no room", at, len);
}

static int do_madvise(struct world *w, void *at, size_t len, int what)
{
	return raw(w) ? (int)syscall(SYS_madvise, at, len, what) : madvise(at, len, what);
}

static int do_mprotect(struct world *w, void *at, size_t len, int prot)
{
	return raw(w) ? (int)syscall(SYS_mprotect, at, len, prot) : mprotect(at, len, prot);
}

/* libc's is seen by hmm; a raw one may be refused (EFAULT) where a mapping has just grown, so it asks twice. */
static void *do_mremap(struct world *w, void *old, size_t old_len, size_t new_len, int flags, void *to)
{
	void *p = MAP_FAILED;

	if (raw(w))
		p = (void *)syscall(SYS_mremap, old, old_len, new_len, flags, to);
	if (p == MAP_FAILED && !w->nolibc)
		p = mremap(old, old_len, new_len, flags, to);
	return p;
}

/* ------------------------------------------------------------------- operations */

static void op_map(struct world *w)
{
	static const size_t sizes[] = {1, 3, 16, 64, 200, 512, 1024, 2048};
	struct region *r = vacant(w);
	size_t n = sizes[below(w, 8)];
	int flags = MAP_PRIVATE | MAP_ANONYMOUS;
	char *hint = NULL;

	if (!r || w->pages + n > w->most)
		return;
	if (one_in(w, 8))
		flags |= MAP_NORESERVE;
	if (one_in(w, 10))
		flags |= MAP_POPULATE;
	if (one_in(w, 12))
		flags |= MAP_STACK;
	if (one_in(w, 3)) { /* right behind, or right before, another: they become one mapping */
		struct region *o = any(w, 0);

		if (o)
			hint = one_in(w, 2) ? o->at + o->n * V_PAGE : o->at - n * V_PAGE;
	}
	char *p = do_mmap(w, hint, n * V_PAGE, PROT_READ | PROT_WRITE, flags);
	if (p == MAP_FAILED)
		return;
	note(w, "map", (uintptr_t)p, n, 0);
	r->at = p;
	r->n = n;
	r->prot = PROT_READ | PROT_WRITE;
	r->wipe = r->nofork = false;
	memset(r->pg, 0, n * sizeof(*r->pg));
	w->pages += n;
}

static void op_write(struct world *w)
{
	struct region *r = any(w, PROT_READ | PROT_WRITE);
	size_t first, n;

	if (!r)
		return;
	piece(w, r, &first, &n);
	note(w, "write", (uintptr_t)r->at + first * V_PAGE, n, 0);
	unsigned step = one_in(w, 4) ? 1 + (unsigned)below(w, 9) : 1;
	for (size_t i = first; i < first + n; i += step)
		page_fill(r->at + i * V_PAGE, &r->pg[i], one_in(w, 20) ? 0 : ++w->next_tag, 0);
}

static void op_count(struct world *w)
{
	struct region *r = any(w, PROT_READ | PROT_WRITE);

	if (!r)
		return;
	note(w, "count", (uintptr_t)r->at, r->n, 0);
	for (unsigned k = 0; k < 200; k++) {
		size_t i = below(w, r->n);
		volatile uint64_t *p = (volatile uint64_t *)(r->at + i * V_PAGE);

		if (r->pg[i].lazy)
			continue;
		if (*p != r->pg[i].count)
			wrong(w, "count of page %p is %" PRIu64 ", not %u (tag %u)", (void *)p, *p,
			      (unsigned)r->pg[i].count, r->pg[i].tag);
		*p = ++r->pg[i].count;
	}
}

static void op_check(struct world *w)
{
	struct region *r = any(w, PROT_READ);
	size_t first, n;

	if (!r)
		return;
	piece(w, r, &first, &n);
	note(w, "check", (uintptr_t)r->at + first * V_PAGE, n, 0);
	for (size_t i = first; i < first + n; i++)
		page_check(w, r->at + i * V_PAGE, &r->pg[i]);
}

/* Each thread has words of its own on pages that all write. */
static void op_bump(struct world *w)
{
	for (unsigned k = 0; k < 300; k++) {
		size_t i = below(w, SHARED_PAGES);
		volatile uint64_t *p = (volatile uint64_t *)(shared + i * V_PAGE) + w->id * 8;

		if (*p != w->bumps[i])
			wrong(w, "our word on shared page %p is %" PRIu64 ", not %" PRIu64, (void *)p, *p, w->bumps[i]);
		*p = ++w->bumps[i];
	}
}

/* What stands at [first, first + n) of @r becomes a region of its own, or (no slot left) nothing happens. */
static struct region *cut(struct world *w, struct region *r, size_t first, size_t n)
{
	struct region *tail = NULL, *mid;

	if (first + n < r->n) {
		tail = vacant(w);
		if (!tail)
			return NULL;
		tail->n = 1; /* taken */
	}
	mid = first ? vacant(w) : r;
	if (!mid) {
		if (tail)
			tail->n = 0;
		return NULL;
	}
	if (tail) {
		tail->at = r->at + (first + n) * V_PAGE;
		tail->n = r->n - first - n;
		tail->prot = r->prot;
		tail->wipe = r->wipe;
		tail->nofork = r->nofork;
		memcpy(tail->pg, r->pg + first + n, tail->n * sizeof(*r->pg));
	}
	if (mid != r) {
		mid->at = r->at + first * V_PAGE;
		mid->prot = r->prot;
		mid->wipe = r->wipe;
		mid->nofork = r->nofork;
		memcpy(mid->pg, r->pg + first, n * sizeof(*r->pg));
		r->n = first;
	}
	mid->n = n;
	return mid;
}

static void op_unmap(struct world *w)
{
	struct region *r = any(w, 0), *mid;
	size_t first, n;

	if (!r)
		return;
	piece(w, r, &first, &n);
	mid = cut(w, r, first, n);
	if (!mid)
		return;
	note(w, "munmap", (uintptr_t)mid->at, n, 0);
	if (one_in(w, 3))
		region_check(w, mid);
	do_munmap(w, mid->at, n * V_PAGE);
	mid->n = 0;
	w->pages -= n;
}

/* Fresh memory over a part of what there is. */
static void op_fixed(struct world *w)
{
	struct region *r = any(w, 0), *mid;
	size_t first, n;

	if (!r)
		return;
	piece(w, r, &first, &n);
	mid = cut(w, r, first, n);
	if (!mid)
		return;
	note(w, "map over", (uintptr_t)mid->at, n, 0);
	if (do_mmap(w, mid->at, n * V_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED) != mid->at)
		wrong(w, "MAP_FIXED at %p: %s", (void *)mid->at, strerror(errno));
	memset(mid->pg, 0, n * sizeof(*mid->pg));
	mid->prot = PROT_READ | PROT_WRITE;
	mid->wipe = mid->nofork = false;
}

static void op_remap(struct world *w)
{
	struct region *r = any(w, PROT_READ | PROT_WRITE), *to;
	size_t first, n, new_n;
	char *p;

	if (!r)
		return;
	switch (below(w, 6)) {
	case 0: /* in place, or not at all */
		new_n = one_in(w, 2) ? 1 + below(w, r->n) : r->n + 1 + below(w, 64);
		if (new_n > REGION_PAGES || w->pages + new_n - r->n > w->most)
			return;
		note(w, "mremap in place", (uintptr_t)r->at, r->n, new_n);
		p = do_mremap(w, r->at, r->n * V_PAGE, new_n * V_PAGE, 0, NULL);
		break;
	case 1: /* anywhere */
	case 2:
		new_n = one_in(w, 2) ? r->n + 1 + below(w, 200) : 1 + below(w, r->n + 30);
		if (new_n > REGION_PAGES || w->pages + new_n - r->n > w->most)
			return;
		note(w, "mremap anywhere", (uintptr_t)r->at, r->n, new_n);
		p = do_mremap(w, r->at, r->n * V_PAGE, new_n * V_PAGE, MREMAP_MAYMOVE, NULL);
		break;
	case 3: /* a part of it, to a place of our choice */
		piece(w, r, &first, &n);
		r = cut(w, r, first, n);
		if (!r)
			return;
		new_n = n;
		p = do_mmap(w, NULL, n * V_PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE);
		if (p == MAP_FAILED)
			return;
		note(w, "mremap to", (uintptr_t)r->at, n, (uintptr_t)p);
		to = (struct region *)p;
		p = do_mremap(w, r->at, n * V_PAGE, n * V_PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to);
		if (p == MAP_FAILED)
			do_munmap(w, to, n * V_PAGE);
		break;
	case 4: /* over another one */
		to = any(w, 0);
		if (!to || to == r || to->n < r->n)
			return;
		to = cut(w, to, 0, r->n);
		if (!to)
			return;
		new_n = r->n;
		note(w, "mremap over", (uintptr_t)r->at, r->n, (uintptr_t)to->at);
		p = do_mremap(w, r->at, r->n * V_PAGE, new_n * V_PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to->at);
		if (p == MAP_FAILED)
			wrong(w, "mremap %p over %p: %s", (void *)r->at, (void *)to->at, strerror(errno));
		to->n = 0;
		w->pages -= new_n;
		break;
	default: /* and leave an empty one behind */
		to = vacant(w);
		if (!to || w->pages + r->n > w->most)
			return;
		new_n = r->n;
		note(w, "mremap and leave", (uintptr_t)r->at, r->n, 0);
		p = do_mremap(w, r->at, r->n * V_PAGE, new_n * V_PAGE, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, NULL);
		if (p == MAP_FAILED)
			return;
		to->at = r->at;
		to->n = r->n;
		to->prot = r->prot;
		to->wipe = r->wipe;
		to->nofork = r->nofork;
		memset(to->pg, 0, to->n * sizeof(*to->pg));
		w->pages += to->n;
		r->at = p;
		if (one_in(w, 2))
			region_check(w, to);
		return;
	}
	if (p == MAP_FAILED) {
		if (errno != ENOMEM && errno != EFAULT)
			wrong(w, "mremap %p: %s", (void *)r->at, strerror(errno));
		return;
	}
	if (new_n > r->n)
		memset(r->pg + r->n, 0, (new_n - r->n) * sizeof(*r->pg));
	w->pages += new_n - r->n;
	r->at = p;
	r->n = new_n;
	if (one_in(w, 2))
		region_check(w, r);
}

static void op_protect(struct world *w)
{
	struct region *r = any(w, 0);
	size_t first, n;

	if (!r)
		return;
	if (r->prot != (PROT_READ | PROT_WRITE)) {
		note(w, "mprotect rw", (uintptr_t)r->at, r->n, 0);
		if (do_mprotect(w, r->at, r->n * V_PAGE, PROT_READ | PROT_WRITE))
			wrong(w, "mprotect %p rw: %s", (void *)r->at, strerror(errno));
		r->prot = PROT_READ | PROT_WRITE;
		return;
	}
	if (one_in(w, 3)) { /* for some time */
		int prot = one_in(w, 2) ? PROT_NONE : PROT_READ;

		note(w, "mprotect", (uintptr_t)r->at, r->n, (uintptr_t)prot);
		if (!do_mprotect(w, r->at, r->n * V_PAGE, prot))
			r->prot = prot;
		return;
	}
	piece(w, r, &first, &n);
	note(w, "mprotect for a moment", (uintptr_t)r->at + first * V_PAGE, n, 0);
	if (do_mprotect(w, r->at + first * V_PAGE, n * V_PAGE, PROT_READ))
		return;
	for (size_t i = first; i < first + n; i++)
		page_check(w, r->at + i * V_PAGE, &r->pg[i]);
	if (do_mprotect(w, r->at + first * V_PAGE, n * V_PAGE, PROT_READ | PROT_WRITE))
		wrong(w, "mprotect %p back: %s", (void *)(r->at + first * V_PAGE), strerror(errno));
}

static void op_drop(struct world *w)
{
	struct region *r = any(w, PROT_READ | PROT_WRITE);
	size_t first, n;

	if (!r)
		return;
	piece(w, r, &first, &n);
	note(w, "MADV_DONTNEED", (uintptr_t)r->at + first * V_PAGE, n, 0);
	if (do_madvise(w, r->at + first * V_PAGE, n * V_PAGE, MADV_DONTNEED))
		return;
	bool look = one_in(w, 2);
	for (size_t i = first; i < first + n; i++) {
		r->pg[i] = (struct page){0};
		if (look)
			page_check(w, r->at + i * V_PAGE, &r->pg[i]);
		else if (one_in(w, 2)) /* at once: a write that must not be lost */
			page_fill(r->at + i * V_PAGE, &r->pg[i], ++w->next_tag, 0);
	}
}

static void op_free(struct world *w)
{
	struct region *r = any(w, PROT_READ | PROT_WRITE);
	size_t first, n;

	if (!r)
		return;
	piece(w, r, &first, &n);
	note(w, "MADV_FREE", (uintptr_t)r->at + first * V_PAGE, n, 0);
	if (do_madvise(w, r->at + first * V_PAGE, n * V_PAGE, MADV_FREE))
		return;
	for (size_t i = first; i < first + n; i++)
		r->pg[i].lazy = 1;
	if (one_in(w, 2))
		for (size_t i = first; i < first + n; i++)
			page_fill(r->at + i * V_PAGE, &r->pg[i], ++w->next_tag, 0);
}

static void op_advise(struct world *w)
{
	static const int what[] = {MADV_WILLNEED,      MADV_COLD,           MADV_PAGEOUT,  MADV_RANDOM,
				   MADV_SEQUENTIAL,    MADV_NORMAL,         MADV_HUGEPAGE, MADV_NOHUGEPAGE,
				   MADV_POPULATE_READ, MADV_POPULATE_WRITE, MADV_COLLAPSE, MADV_DONTDUMP};
	struct region *r = any(w, PROT_READ | PROT_WRITE);

	if (!r)
		return;
	int advice = what[below(w, 12)];
	note(w, "madvise", (uintptr_t)r->at, r->n, (uintptr_t)advice);
	do_madvise(w, r->at, r->n * V_PAGE, advice);
	if (one_in(w, 3))
		region_check(w, r);
}

static void op_inherit(struct world *w)
{
	struct region *r = any(w, PROT_READ | PROT_WRITE);

	/* Raw ones right after a fork, and of who came by a raw fork, hmm cannot tell in time (doc/differences.md). */
	if (!r || w->nolibc || w->raw_child)
		return;
	note(w, "inherit", (uintptr_t)r->at, r->n, r->nofork * 2u + r->wipe);
	if (one_in(w, 2)) {
		if (!madvise(r->at, r->n * V_PAGE, r->nofork ? MADV_DOFORK : MADV_DONTFORK))
			r->nofork = !r->nofork;
	} else {
		if (!madvise(r->at, r->n * V_PAGE, r->wipe ? MADV_KEEPONFORK : MADV_WIPEONFORK))
			r->wipe = !r->wipe;
	}
}

/* System calls that read and write memory which may be away. */
static void op_syscall(struct world *w)
{
	struct region *from = any(w, PROT_READ), *to = any(w, PROT_READ | PROT_WRITE);

	if (!from || !to)
		return;
	size_t n = 1 + below(w, 8), a, b;
	n = n > from->n ? from->n : n;
	n = n > to->n ? to->n : n;
	a = below(w, from->n - n + 1);
	b = below(w, to->n - n + 1);
	if (from == to && a < b + n && b < a + n)
		return;
	for (size_t i = 0; i < n; i++)
		if (from->pg[a + i].lazy)
			return;
	char *src = from->at + a * V_PAGE, *dst = to->at + b * V_PAGE;
	struct iovec in[8], out[8];
	for (size_t i = 0; i < n; i++) {
		in[i] = (struct iovec){src + i * V_PAGE, V_PAGE};
		out[i] = (struct iovec){dst + i * V_PAGE, V_PAGE};
	}
	ssize_t got = 0, len = (ssize_t)(n * V_PAGE);
	unsigned how = (unsigned)below(w, 4);
	note(w, "system call", (uintptr_t)src, (uintptr_t)dst, n * 16 + how);
	switch (how) {
	case 0:
		got = write(w->pipe[1], src, (size_t)len);
		if (got == len)
			got = read(w->pipe[0], dst, (size_t)len);
		break;
	case 1:
		got = writev(w->pipe[1], in, (int)n);
		if (got == len)
			got = readv(w->pipe[0], out, (int)n);
		break;
	case 2:
		got = process_vm_readv(getpid(), out, n, in, n, 0);
		break;
	default:
		got = process_vm_writev(getpid(), in, n, out, n, 0);
	}
	if (got != len)
		wrong(w, "system call %u from %p to %p: %zd of %zd: %s", how, (void *)src, (void *)dst, got, len,
		      strerror(errno));
	for (size_t i = 0; i < n; i++) {
		to->pg[b + i] = from->pg[a + i];
		if (one_in(w, 2))
			page_check(w, dst + i * V_PAGE, &to->pg[b + i]);
	}
}

/* malloc: libc's own calls, which no hook sees. */
static void op_malloc(struct world *w)
{
	struct block *b = &w->b[below(w, BLOCKS)];
	size_t words = one_in(w, 6) ? 1 + below(w, 200000) : 1 + below(w, 3000);

	if (w->nolibc)
		return;
	note(w, "malloc", (uintptr_t)b->at, b->words, words);
	for (size_t i = 0; b->at && i < b->words; i++)
		if (((volatile uint64_t *)b->at)[i] != word_of(b->tag, i))
			wrong(w, "malloc'ed word %p is %#" PRIx64 ", not %#" PRIx64, (void *)(b->at + i), b->at[i],
			      word_of(b->tag, i));
	if (b->at && one_in(w, 3)) {
		uint64_t *p = realloc(b->at, words * 8);

		if (!p)
			return;
		size_t keep = words < b->words ? words : b->words;
		for (size_t i = 0; i < keep; i++)
			if (((volatile uint64_t *)p)[i] != word_of(b->tag, i))
				wrong(w, "realloc'ed word %p is %#" PRIx64 ", not %#" PRIx64, (void *)(p + i), p[i],
				      word_of(b->tag, i));
		b->at = p;
	} else {
		free(b->at);
		b->at = malloc(words * 8);
		if (!b->at)
			return;
	}
	b->words = words;
	b->tag = ++w->next_tag;
	for (size_t i = 0; i < words; i++)
		b->at[i] = word_of(b->tag, i);
}

/* The break, while nobody else uses it. */
static void op_brk(struct world *w)
{
	if (!w->alone || w->nolibc)
		return;
	size_t n = 1 + below(w, 300);
	char *p = sbrk((intptr_t)(n * V_PAGE));
	struct page pg;

	if (p == (void *)-1)
		return;
	note(w, "brk", (uintptr_t)p, n, 0);
	for (size_t i = 0; i < n; i++)
		page_check(w, p + i * V_PAGE, &(struct page){0});
	for (size_t i = 0; i < n; i++)
		page_fill(p + i * V_PAGE, &pg, 77 + (uint32_t)i, 0);
	for (size_t i = 0; i < n; i++)
		page_check(w, p + i * V_PAGE, &(struct page){.tag = 77 + (uint32_t)i});
	if (sbrk(0) == p + n * V_PAGE)
		sbrk(-(intptr_t)(n * V_PAGE));
}

static size_t deep(struct world *w, unsigned n, uint32_t tag)
{
	volatile uint64_t here[V_WORDS];
	size_t sum = 0;

	for (size_t i = 0; i < V_WORDS; i++)
		here[i] = word_of(tag, i);
	if (n)
		sum = deep(w, n - 1, tag + 1);
	for (size_t i = 0; i < V_WORDS; i++)
		if (here[i] != word_of(tag, i))
			wrong(w, "word %p of a stack is %#" PRIx64 ", not %#" PRIx64, (void *)&here[i], here[i],
			      word_of(tag, i));
	return sum + n;
}

static void *thread_of_op(void *arg)
{
	struct world *w = arg;

	deep(w, 60, w->next_tag | 1);
	return (void *)v_mix(w->next_tag);
}

static void op_thread(struct world *w)
{
	pthread_t t;
	void *ret;

	if (w->nolibc)
		return;
	note(w, "thread", 0, 0, 0);
	if (pthread_create(&t, NULL, thread_of_op, w))
		return;
	pthread_join(t, &ret);
	if (ret != (void *)v_mix(w->next_tag))
		wrong(w, "a thread returned %p", ret);
}

/* -------------------------------------------------------------------- processes */

static void run(struct world *w, unsigned ops);

static void check_all(struct world *w)
{
	for (unsigned i = 0; i < REGIONS; i++)
		region_check(w, &w->r[i]);
	for (size_t i = 0; i < SHARED_PAGES; i++) {
		volatile uint64_t *p = (volatile uint64_t *)(shared + i * V_PAGE) + w->id * 8;

		if (*p != w->bumps[i])
			wrong(w, "our word on shared page %p is %" PRIu64 ", not %" PRIu64, (void *)p, *p, w->bumps[i]);
	}
	for (unsigned i = 0; i < BLOCKS; i++)
		for (size_t k = 0; w->b[i].at && k < w->b[i].words; k++)
			if (((volatile uint64_t *)w->b[i].at)[k] != word_of(w->b[i].tag, k))
				wrong(w, "malloc'ed word %p is %#" PRIx64 ", not %#" PRIx64, (void *)(w->b[i].at + k),
				      w->b[i].at[k], word_of(w->b[i].tag, k));
}

static void reap(struct world *w, pid_t pid, const char *what)
{
	int status;

	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			wrong(w, "%s %d: waitpid: %s", what, (int)pid, strerror(errno));
	if (status)
		wrong(w, "%s %d ends with status %#x", what, (int)pid, status);
}

static void kid_reap(struct world *w)
{
	if (w->kid > 0)
		reap(w, w->kid, "a child");
	w->kid = 0;
}

/* What a child finds: all that its parent's thread had, but what it was not to have. */
static void child(struct world *w, bool by_libc, unsigned ops)
{
	w->depth++;
	w->kid = 0;
	if (!by_libc && !w->alone)
		w->nolibc = true;
	w->alone = true;
	w->raw_child = !by_libc;
	w->rnd ^= v_mix(w->depth * 1000 + w->ops);
	close(w->pipe[0]);
	close(w->pipe[1]);
	if (pipe(w->pipe))
		_exit(9);
	for (unsigned i = 0; i < REGIONS; i++) {
		struct region *r = &w->r[i];

		mlock(r->pg, REGION_PAGES * sizeof(*r->pg));
		if (r->n && r->nofork) {
			w->pages -= r->n;
			r->n = 0;
		} else if (r->n && r->wipe) {
			memset(r->pg, 0, r->n * sizeof(*r->pg));
		}
	}
	if (ops & 1)
		check_all(w);
	run(w, ops);
	check_all(w);
	kid_reap(w);
	syscall(SYS_exit_group, 0);
}

static void op_fork(struct world *w)
{
	unsigned how = (unsigned)below(w, 4), ops = (unsigned)below(w, w->alone ? 60 : 30);
	pid_t pid;

	if (w->depth >= DEPTH_MAX)
		return;
	kid_reap(w);
	if (!w->alone && how && !one_in(w, 3))
		how = 0;
	if (w->nolibc && !how)
		how = 1;
	note(w, "fork", how, ops, 0);
	atomic_fetch_add(&all->forks, 1);
	switch (how) {
	case 0:
		pid = fork();
		break;
	case 1:
		pid = (pid_t)syscall(SYS_fork);
		break;
	case 2:
		pid = (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
		break;
	default: {
		uint64_t args[11] = {0, 0, 0, 0, SIGCHLD};

		pid = (pid_t)syscall(SYS_clone3, args, sizeof(args));
	}
	}
	if (!pid)
		child(w, !how, ops);
	if (pid < 0)
		return;
	if (one_in(w, 2))
		reap(w, pid, "a child");
	else
		w->kid = pid;
}

extern char **environ;

static void op_spawn(struct world *w)
{
	char *argv[] = {(char *)self, "small", NULL};
	struct region *volatile r = any(w, PROT_READ);
	pid_t pid;

	if (w->nolibc)
		return;
	note(w, "spawn", 0, 0, 0);
	if (one_in(w, 2)) {
		if (posix_spawn(&pid, self, NULL, NULL, argv, environ))
			return;
	} else {
		pid = vfork();
		if (!pid) {
			/* Its memory is ours: what it touches comes back for us. */
			for (size_t i = 0; r && i < r->n; i += 7)
				if (*(volatile uint64_t *)(r->at + i * V_PAGE) != r->pg[i].count && !r->pg[i].lazy)
					_exit(1);
			if (w->traced & 1)
				_exit(0);
			execve(self, argv, environ);
			_exit(127);
		}
		if (pid < 0)
			return;
	}
	reap(w, pid, "a spawned child");
}

/* --------------------------------------------------------------------- the whole */

static void run(struct world *w, unsigned ops)
{
	static void (*const table[])(struct world *) = {
		op_map,     op_map,    op_map,     op_map,   op_write,  op_write,  op_write,   op_write,   op_write,
		op_write,   op_check,  op_check,   op_check, op_check,  op_check,  op_count,   op_count,   op_count,
		op_bump,    op_bump,   op_unmap,   op_unmap, op_fixed,  op_remap,  op_remap,   op_remap,   op_protect,
		op_protect, op_drop,   op_drop,    op_free,  op_advise, op_advise, op_syscall, op_syscall, op_syscall,
		op_malloc,  op_malloc, op_inherit, op_brk,   op_thread,
	};

	for (unsigned k = 0; k < ops; k++) {
		w->ops++;
		atomic_fetch_add_explicit(&all->ops, 1, memory_order_relaxed);
		if (one_in(w, 60))
			op_fork(w);
		else if (one_in(w, 150))
			op_spawn(w);
		else
			table[below(w, sizeof(table) / sizeof(table[0]))](w);
	}
}

static void *thread_main(void *arg)
{
	struct world *w = arg;
	unsigned ops = w->ops;

	w->ops = 0;
	run(w, ops);
	check_all(w);
	kid_reap(w);
	return NULL;
}

static struct world *world_new(uint64_t seed, unsigned id, unsigned ops, size_t most)
{
	size_t len = (sizeof(struct world) + V_PAGE - 1) & ~(V_PAGE - 1);
	struct world *w = v_map(len);
	struct page *pg = v_map(REGIONS * REGION_PAGES * sizeof(*pg));

	if (mlock(w, len) || mlock(pg, REGIONS * REGION_PAGES * sizeof(*pg)))
		fprintf(stderr, "random: what it knows cannot be locked: %s\n", strerror(errno));
	w->seed = seed;
	w->rnd = v_mix(seed * 64 + id);
	w->id = id;
	w->ops = ops;
	w->most = most;
	w->next_tag = id << 24;
	for (unsigned i = 0; i < REGIONS; i++)
		w->r[i].pg = pg + i * REGION_PAGES;
	if (pipe(w->pipe))
		exit(2);
	return w;
}

static int small(void)
{
	char *p = v_map(32 * V_PAGE);

	v_fill_all(p, 32, 3, 0, V_HALF);
	return v_check_all(p, 32, 3, 0, V_HALF) != 0;
}

int main(int argc, char **argv)
{
	static char path[512];
	pthread_t t[THREADS_MAX];
	ssize_t len = readlink("/proc/self/exe", path, sizeof(path) - 1);

	if (argc == 2 && !strcmp(argv[1], "small"))
		return small();
	if (argc < 4 || len <= 0) {
		fprintf(stderr, "usage: random SEED OPS THREADS [raw|libc|both]\n");
		return 2;
	}
	path[len] = 0;
	self = path;
	uint64_t seed = strtoull(argv[1], NULL, 0);
	unsigned ops = (unsigned)atoi(argv[2]), threads = (unsigned)atoi(argv[3]);
	if (threads < 1 || threads > THREADS_MAX)
		return 2;
	if (argc > 4)
		raw_of_4 = !strcmp(argv[4], "raw") ? 4 : !strcmp(argv[4], "libc") ? 0 : 2;
	all = mmap(NULL, V_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	shared = v_map(SHARED_PAGES * V_PAGE);
	if (all == MAP_FAILED)
		return 2;
	for (unsigned i = 0; i < threads; i++) {
		struct world *w = world_new(seed, i, ops, 16384 / threads);

		w->alone = threads == 1;
		if (threads == 1)
			thread_main(w);
		else if (pthread_create(&t[i], NULL, thread_main, w))
			return 2;
	}
	for (unsigned i = 0; i < threads && threads > 1; i++)
		pthread_join(t[i], NULL);
	printf("%lu operations, %lu forks, %lu pages looked at, %u wrong\n", all->ops, all->forks, all->pages,
	       all->wrong);
	return all->wrong != 0;
}
