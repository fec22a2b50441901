/* SPDX-License-Identifier: MIT */
/*
 * inject-linked [-v] [--full] [--only SCENARIO] [--site NAME [--nth N]]: makes every call of the
 * engine fail that can, in a process that has the engine in itself.
 *
 * DOC: the walk
 *
 * A scenario is a few calls of the library on memory with known contents.  It
 * runs once as it is; that says which sites it reaches, and how often.  Then it
 * runs once for each of those and for each plan: the first occurrence fails, or
 * the last one, or all from the first on.  Without --full, once a failure at a site
 * was noticed, all from the first on fail only in the first scenario that comes to it
 * more than once, and one that does what another has done, with some way barred to it
 * (always), is gone through for what only it comes to.  Each run is a process of its
 * own, and must end in one of these ways:
 *
 *	right	  all memory holds what it should, or an error was returned for it
 *	SIGBUS	  for a page that a line on standard error says is lost
 *	ended	  by the engine itself, after a line that says why
 *
 * Anything else is a failure: other contents (zeros above all), another signal,
 * a run that never ends (a watchdog, which is far away).
 *
 * A failure that nobody notices tests nothing: of each site some run must differ
 * from the run without failures in what calls returned, in lines, in figures, or
 * in that the call was made again.  What is rightly passed over in silence, and
 * what no scenario can reach, stands in sites.h with its reason; the walk fails
 * for what is missing there, and for what stands there and should not.
 */
#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#define HMM_INJECT_INSIDE
#include "inject.h"
#undef HMM_INJECT_INSIDE

#include "drivers/dmirror/dmirror.h"
#include "hmm.h"
#include "hmm/internal.h"
#include "hmm_reg.h"
#include "hmm_uring.h"

/* Nothing of this program is a site. */
#undef sys1
#undef sys2
#undef sys3
#undef sys4
#undef sys5
#undef sys6

#include "sites.h"

#define PAGE 4096ul
#define PAGES 24u
#define HUGE_PAGES 512u
#define WATCHDOG_MS 60000 /* HMM_INJECT_WATCHDOG_MS: another */
#define JOBS_MAX 8u
#define NOTES 96u

struct outcome {
	unsigned n;
	struct {
		const char *what;
		int64_t value;
	} note[NOTES];
	char why[160];               /* what was wrong; empty: nothing */
	unsigned buses, child_buses; /* SIGBUS that this process got, and its child */
	char lines[8192];
};

static struct outcome *out; /* of the run that this process is */

static void note(const char *what, int64_t value)
{
	if (out->n == NOTES)
		return;
	out->note[out->n].what = what;
	out->note[out->n++].value = value;
}

static void wrong(const char *fmt, ...) __attribute__((format(printf, 1, 2), noreturn));
static void wrong(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(out->why, sizeof(out->why), fmt, ap);
	va_end(ap);
	_exit(1);
}

/* Notes what @call returned; true: 0. */
#define OK(call)                      \
	({                            \
		int64_t rc_ = (call); \
		note(#call, rc_);     \
		rc_ == 0;             \
	})

/* ---------------------------------------------------------------- contents */

static uint64_t word(unsigned seed, unsigned page, unsigned i)
{
	uint64_t x = ((uint64_t)seed << 40 | (uint64_t)page << 16 | i) * 0x9e3779b97f4a7c15ull;

	/* A third does not compress, a third is of one word, the rest is in between. */
	switch (page % 3) {
	case 0:
		return x ^ x >> 29;
	case 1:
		return 0x1111111111111111ull * (1 + (seed + page) % 15);
	default:
		return i % 8 ? seed : x;
	}
}

static void fill(char *p, unsigned npages, unsigned seed)
{
	for (unsigned k = 0; k < npages; k++)
		for (unsigned i = 0; i < PAGE / 8; i++)
			((uint64_t *)(p + k * PAGE))[i] = word(seed, k, i);
}

static sigjmp_buf bus_jump;
static volatile sig_atomic_t bus_armed;

static void on_bus(int sig)
{
	if (!bus_armed) {
		signal(sig, SIG_DFL);
		return;
	}
	siglongjmp(bus_jump, 1);
}

static bool page_lost(const char *p)
{
	bool lost = sigsetjmp(bus_jump, 1);

	bus_armed = 1;
	if (!lost)
		(void)*(const volatile char *)p;
	bus_armed = 0;
	return lost;
}

/* Each page is what it was made, or is lost, which must have been said.  @seed 0: zeros. */
static void right(const char *p, unsigned npages, unsigned seed)
{
	for (unsigned k = 0; k < npages; k++) {
		const uint64_t *w = (const uint64_t *)(p + k * PAGE);

		if (page_lost(p + k * PAGE)) {
			out->buses++;
			continue;
		}
		for (unsigned i = 0; i < PAGE / 8; i++)
			if (w[i] != (seed ? word(seed, k, i) : 0))
				wrong("page %u, word %u is %#llx, not %#llx", k, i, (unsigned long long)w[i],
				      (unsigned long long)(seed ? word(seed, k, i) : 0));
	}
}

static char *map(unsigned npages, unsigned seed)
{
	char *p = mmap(NULL, (npages + 2) * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		wrong("no memory for the test");
	madvise(p, (npages + 2) * PAGE, MADV_NOHUGEPAGE);
	mprotect(p, PAGE, PROT_NONE);
	mprotect(p + (npages + 1) * PAGE, PAGE, PROT_NONE);
	if (seed)
		fill(p + PAGE, npages, seed);
	return p + PAGE;
}

/* --------------------------------------------------------------- scenarios */

struct world {
	struct umm_space *space;
	struct hmm_mm *mm;
	struct hmm_device *dev;
};

static bool begin(struct world *w, const char *spec)
{
	char err[160];

	*w = (struct world){0};
	if (!OK(umm_space_open_self(&w->space)))
		return false;
	if (!OK(hmm_mm_open(w->space, &w->mm)))
		return false;
	if (!OK(hmm_device_open(spec, &w->dev, err, sizeof(err)))) {
		if (!*err)
			wrong("a device could not be opened, and why is not said");
		return false;
	}
	return OK(hmm_mm_add_device(w->mm, w->dev));
}

static void end(struct world *w)
{
	struct hmm_device_stats st = {0};
	bool closed = OK(hmm_mm_close(w->mm));

	if (w->dev && w->dev->ops->stats) {
		w->dev->ops->stats(w->dev, &st);
		note("pages left", closed ? (int64_t)st.pages : 0);
		note("copied in", (int64_t)st.copied_in);
		note("copied out", (int64_t)st.copied_out);
		if (closed && st.pages)
			wrong("%llu pages are left in the device", (unsigned long long)st.pages);
	}
	if (!closed && !OK(hmm_mm_close(w->mm)))
		return; /* what is away must stay so */
	if (w->dev)
		hmm_device_close(w->dev);
	umm_space_close(w->space);
}

static uint64_t addr(const void *p)
{
	return (uintptr_t)p;
}

static void out_of(struct world *w, char *p, unsigned npages)
{
	uint64_t moved = 0;

	OK(hmm_migrate_to_device(w->mm, w->dev, addr(p), addr(p) + npages * PAGE, NULL, &moved));
	note("out", (int64_t)moved);
}

static void back_to(struct world *w, char *p, unsigned npages)
{
	uint64_t moved = 0;

	OK(hmm_migrate_to_system(w->mm, w->dev, addr(p), addr(p) + npages * PAGE, &moved));
	note("back", (int64_t)moved);
}

static void move_with(const char *spec)
{
	char *p = map(PAGES, 1), *q = map(PAGES, 0);
	unsigned last = 1;
	struct world w;

	if (begin(&w, spec)) {
		out_of(&w, p, PAGES);
		right(p, PAGES, 1);
		fill(p, PAGES, last = 2);
		out_of(&w, p, PAGES);
		back_to(&w, p, PAGES / 2);
		right(p, PAGES, 2);
		out_of(&w, q, PAGES); /* never touched: zeros, and the zero page */
		right(q, PAGES, 0);
		fill(q, PAGES, 3);
		out_of(&w, q, PAGES);
		OK(hmm_mm_unmanage(w.mm, addr(q), addr(q) + PAGES * PAGE));
		right(q, PAGES, 3);
		out_of(&w, p, PAGES);
	}
	end(&w);
	right(p, PAGES, last);
}

static void s_lz4(void)
{
	move_with("lz4:4M,raw");
}

static void s_file(void)
{
	move_with("file:/tmp,1M");
}

/* A file with a name. */
static void one_file(bool there)
{
	char name[] = "/tmp/hmm-inject-XXXXXX", spec[64];
	int fd = mkstemp(name);

	close(fd);
	if (!there)
		unlink(name);
	snprintf(spec, sizeof(spec), "file:%s,1M", name);
	move_with(spec);
	unlink(name);
}

static void s_one_file(void)
{
	one_file(false);
}

static void s_old_file(void)
{
	one_file(true);
}

/* A device that reads badly, and one that does not take everything. */
static const struct hmm_device_ops *t_inner;

static int t_copy_in(struct hmm_device *dev, const void *const src[], hmm_handle_t handle[], unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		handle[i] = HMM_HANDLE_NONE;
	return INJECT_AT("device copy_in") ? -EIO : t_inner->copy_in(dev, src, handle, n);
}

static int t_copy_out(struct hmm_device *dev, const hmm_handle_t handle[], void *const dst[], int status[], unsigned n)
{
	int rc = t_inner->copy_out(dev, handle, dst, status, n);

	for (unsigned i = 0; i < n; i++) {
		if (!INJECT_AT("device copy_out"))
			continue;
		memset(dst[i], 0xdb, PAGE);
		rc = status[i] = i % 2 ? -EIO : -EBADMSG;
	}
	return rc;
}

static bool begin_lossy(struct world *w)
{
	static struct hmm_device_ops ops;

	if (!begin(w, "faulty:in=1000000:lz4:4M,raw"))
		return false;
	t_inner = w->dev->ops;
	ops = *t_inner;
	ops.copy_in = t_copy_in;
	ops.copy_out = t_copy_out;
	ops.caps |= HMM_DEV_MARKED; /* poison meets markers */
	w->dev->ops = &ops;
	return true;
}

static void s_lost(void)
{
	char *p = map(PAGES, 1), buf[4 * PAGE];
	struct world w;

	if (begin_lossy(&w)) {
		out_of(&w, p, PAGES);
		int n = hmm_device_read(w.mm, w.dev, addr(p), buf, 4);
		note("read", n);
		if (n > 0 && memcmp(buf, p, (size_t)n * PAGE))
			wrong("what the device reads is something else");
		right(p, PAGES / 2, 1);
		out_of(&w, p, PAGES);
		back_to(&w, p, PAGES);
		right(p, PAGES, 1);
	}
	end(&w);
	right(p, PAGES, 1);
}

/* All memory is locked, the engine's as well. */
static void s_locked(void)
{
	char *p = map(PAGES, 1);
	struct world w;

	if (begin(&w, "lz4:4M,raw")) {
		out_of(&w, p, PAGES);
		note("mlock2", (int64_t)syscall(SYS_mlockall, MCL_CURRENT | MCL_ONFAULT));
		right(p, PAGES, 1);
		out_of(&w, p, PAGES);
		munlockall();
		out_of(&w, p, PAGES);
	}
	end(&w);
	right(p, PAGES, 1);
}

/* What UFFDIO_MOVE refuses: read-only memory, and private copies of a file's pages. */
static void s_take(void)
{
	char name[] = "/tmp/hmm-inject-XXXXXX", *p = map(PAGES, 1), *f;
	int fd = mkstemp(name);
	struct world w;

	unlink(name);
	if (fd < 0 || ftruncate(fd, PAGES * PAGE))
		wrong("no file for the test");
	f = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	fill(f, PAGES, 4);
	munmap(f, PAGES * PAGE);
	f = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	for (unsigned k = 0; k < PAGES; k++)
		((volatile char *)f)[k * PAGE] = f[k * PAGE]; /* each is a copy now */
	mprotect(p, PAGES * PAGE, PROT_READ);
	if (begin(&w, "lz4:4M,raw")) {
		out_of(&w, p, PAGES);
		right(p, PAGES, 1);
		out_of(&w, f, PAGES);
		right(f, PAGES, 4);
		out_of(&w, f, PAGES);
		if (OK(madvise(f, PAGE, MADV_DONTNEED)))
			right(f, 1, 4); /* the file's again */
		f = mremap(f, PAGES * PAGE, 2 * PAGES * PAGE, MREMAP_MAYMOVE);
		if (f == MAP_FAILED)
			wrong("mremap: %s", strerror(errno));
		right(f, PAGES, 4);
		out_of(&w, p, PAGES);
	}
	end(&w);
	right(p, PAGES, 1);
	right(f, PAGES, 4);
}

/*
 * A child has what the parent has, wherever that is; it may refuse to live, but not
 * with other data.  @touched: the parent has brought pages back before.
 */
static void fork_with(bool lossy, bool touched)
{
	char *p = map(PAGES, 1), *gone = map(PAGES, 2), *empty = map(PAGES, 3);
	struct world w;
	int status = 0;

	madvise(gone, PAGES * PAGE, MADV_DONTFORK);
	madvise(empty, PAGES * PAGE, MADV_WIPEONFORK);
	if (lossy ? begin_lossy(&w) : begin(&w, "lz4:4M,raw")) {
		out_of(&w, p, PAGES);
		out_of(&w, gone, PAGES);
		out_of(&w, empty, PAGES);
		if (touched)
			right(p, 2, 1);
		unsigned buses = out->buses;
		pid_t pid = (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
		if (!pid) {
			right(p, PAGES, 1);
			right(empty, PAGES, 0);
			_exit(0);
		}
		if (pid < 0 || waitpid(pid, &status, 0) != pid)
			wrong("no child");
		out->child_buses = out->buses - buses;
		out->buses = buses;
		note("child", status);
		note("child's SIGBUS", out->child_buses);
		if (WIFEXITED(status) && WEXITSTATUS(status) && !*out->why)
			wrong("the child's status is %d", WEXITSTATUS(status));
		if (*out->why)
			_exit(1);
		if (WIFSIGNALED(status) && WTERMSIG(status) != SIGBUS &&
		    !(WTERMSIG(status) == SIGSEGV && atomic_load(&w.space->ctl->no_fork_events)))
			wrong("the child died of signal %d", WTERMSIG(status));
		right(p, PAGES, 1);
		out_of(&w, p, PAGES); /* shared: made its own first */
		out_of(&w, gone, PAGES);
	}
	end(&w);
	right(p, PAGES, 1);
	right(gone, PAGES, 2);
	right(empty, PAGES, 3);
}

static void s_fork(void)
{
	fork_with(false, true);
}

static void s_fork_lost(void)
{
	fork_with(true, true);
}

/* The first that is lost is lost to the child. */
static void s_fork_lost_to_child(void)
{
	fork_with(true, false);
}

/* The program changes what is away. */
static void s_change(void)
{
	char *p = map(PAGES, 1), *q = map(PAGES, 2), *r = map(PAGES, 3), *to;
	struct world w;

	if (begin(&w, "lz4:4M,raw")) {
		out_of(&w, p, PAGES);
		out_of(&w, q, PAGES);
		out_of(&w, r, PAGES);
		if (!OK(munmap(p, 4 * PAGE)))
			wrong("munmap");
		right(q, 2, 2);
		to = map(PAGES, 9);
		if (OK(hmm_mm_uniform(w.mm, addr(q), addr(q) + PAGES * PAGE))) {
			char *moved = mremap(q, PAGES * PAGE, PAGES * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to);

			note("mremap", moved == MAP_FAILED ? errno : 0);
			q = moved == MAP_FAILED ? q : moved;
		}
		right(q, PAGES, 2);
		if (!OK(madvise(r, 8 * PAGE, MADV_DONTNEED)))
			wrong("MADV_DONTNEED: %s", strerror(errno));
		right(r, 8, 0);
		if (!OK(mprotect(r + 8 * PAGE, 8 * PAGE, PROT_READ)))
			wrong("mprotect: %s", strerror(errno));
		for (unsigned k = 8; k < 16; k++)
			out_of(&w, r + k * PAGE, 1);
	}
	end(&w);
	to = map(PAGES, 3);
	for (unsigned k = 8; k < PAGES; k++)
		if (!page_lost(r + k * PAGE) && memcmp(r + k * PAGE, to + k * PAGE, PAGE))
			wrong("page %u of what was protected is another one", k);
	right(q, PAGES, 2);
}

static uint64_t soon(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)(ts.tv_sec + 20) * 1000000000u;
}

/* The reference driver: mirrors, migrates, takes pages for itself, in both kinds of memory. */
static void s_dmirror(void)
{
	char *p = map(PAGES, 1), *buf = map(PAGES, 7), *sums = map(1, 0);
	struct umm_space *space = NULL;
	struct dmirror_host *host = NULL;
	struct dmirror *dm[2] = {NULL, NULL};
	unsigned last = 1;
	uint64_t n = 0;

	if (!OK(umm_space_open_self(&space)) || !OK(dmirror_host_open(space, &host)))
		goto done;
	for (unsigned i = 0; i < 2; i++) {
		if (!OK(dmirror_open_nr(host, 2 * i, &dm[i])))
			continue;
		if (OK(dmirror_read(dm[i], addr(p), buf, PAGES, &n)))
			right(buf, PAGES, last);
		if (OK(dmirror_migrate_to_dev(dm[i], addr(p), buf, PAGES, &n)))
			right(buf, PAGES, last);
		OK(dmirror_snapshot(dm[i], addr(p), (uint8_t *)sums, PAGES));
		if (OK(dmirror_migrate_to_sys(dm[i], addr(p), PAGES, &n)))
			right(p, PAGES, last);
		if (OK(dmirror_exclusive(dm[i], addr(p), buf, PAGES / 2, &n)))
			right(buf, PAGES / 2, last);
		right(p, PAGES, last);
		fill(buf, PAGES, last + 1);
		/* On error a part may have been written; again, until it is all or an error that stays. */
		for (unsigned tries = 0; tries < 3; tries++)
			if (OK(dmirror_write(dm[i], addr(p), buf, PAGES, &n))) {
				last++;
				break;
			}
		if (last < i + 2)
			fill(p, PAGES, ++last);
		OK(dmirror_release(dm[i]));
	}
done:
	for (unsigned i = 0; i < 2; i++)
		dmirror_close(dm[i]);
	if (!OK(dmirror_host_close(host)) && !OK(dmirror_host_close(host)))
		return;
	umm_space_close(space);
	right(p, PAGES, last);
}

static char *map_huge(unsigned seed)
{
	char *area = mmap(NULL, 2 * HUGE_PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *p = (char *)((addr(area) + HUGE_PAGES * PAGE - 1) & ~(HUGE_PAGES * PAGE - 1));

	if (area == MAP_FAILED)
		wrong("no memory for the test");
	madvise(p, HUGE_PAGES * PAGE, MADV_HUGEPAGE);
	fill(p, HUGE_PAGES, seed);
	return p;
}

/* A huge page goes to one large page of the device, where the kernel gives any. */
static void s_huge(void)
{
	char *p = map_huge(1), *buf = map(HUGE_PAGES, 0);
	struct umm_space *space = NULL;
	struct dmirror_host *host = NULL;
	struct dmirror *dm = NULL;
	uint64_t n = 0;

	if (!OK(umm_space_open_self(&space)) || !OK(dmirror_host_open(space, &host)))
		goto done;
	if (OK(dmirror_open_nr(host, 0, &dm))) {
		if (OK(dmirror_migrate_to_dev(dm, addr(p), buf, HUGE_PAGES, &n)))
			right(buf, HUGE_PAGES, 1);
		if (OK(dmirror_migrate_to_sys(dm, addr(p), HUGE_PAGES, &n)))
			right(p, HUGE_PAGES, 1);
	}
done:
	dmirror_close(dm);
	if (!OK(dmirror_host_close(host)) && !OK(dmirror_host_close(host)))
		return;
	umm_space_close(space);
	right(p, HUGE_PAGES, 1);
}

/* And comes back as one, from a device that keeps nothing of it. */
static void s_huge_back(void)
{
	static struct hmm_device_ops ops;
	char *p = map_huge(1);
	struct world w;

	if (begin(&w, "lz4:8M,raw")) {
		ops = *w.dev->ops;
		ops.caps &= ~(uint32_t)HMM_DEV_KEEPS;
		w.dev->ops = &ops;
		out_of(&w, p, HUGE_PAGES);
		back_to(&w, p, HUGE_PAGES);
		right(p, HUGE_PAGES, 1);
	}
	end(&w);
	right(p, HUGE_PAGES, 1);
}

/* Memory for devices that map: a mirror, and one that pins. */
static int t_map(struct hmm_device *dev, struct hmm_range *range, const struct hmm_map_run *run)
{
	return INJECT_AT("device map") ? -ENOMEM : 0;
}

static void t_unmap(struct hmm_device *dev, struct hmm_range *range, const struct hmm_map_run *run,
		    const struct umm_change *why, uint64_t *dirty)
{
}

static const struct hmm_device_ops mirror_ops = {
	.name = "mirror", .caps = HMM_DEV_MAP | HMM_DEV_FAULT | HMM_DEV_HUGE, .map = t_map, .unmap = t_unmap};
static const struct hmm_device_ops pinned_ops = {
	.name = "pinned", .caps = HMM_DEV_MAP | HMM_DEV_PINNED, .map = t_map, .unmap = t_unmap};

static void s_map(void)
{
	char *p = map(PAGES, 1);
	struct hmm_device mirror = {.ops = &mirror_ops}, pinned = {.ops = &pinned_ops};
	const struct hmm_reg_params params = {.max_bytes = 8 * PAGE, .max_entries = 2};
	struct hmm_reg_cache *cache = NULL;
	struct hmm_range *range = NULL;
	struct hmm_reg *reg;
	struct world w;

	if (!begin(&w, "lz4:4M,raw"))
		goto done;
	out_of(&w, p, PAGES);
	if (OK(hmm_range_open(w.space, w.mm, &mirror, addr(p), addr(p) + PAGES * PAGE, NULL, &range))) {
		OK(umm_space_watch(w.space, addr(p), PAGES * PAGE));
		if (OK(hmm_range_map(range, addr(p), addr(p) + PAGES * PAGE, HMM_MAP_WRITE, soon())) &&
		    !hmm_range_mapped(range, addr(p), addr(p) + PAGES * PAGE, true))
			wrong("a range was mapped and is not");
		out_of(&w, p, 2);
		OK(hmm_range_map(range, addr(p), addr(p) + PAGES * PAGE, 0, soon()));
		OK(hmm_range_unmap(range, addr(p), addr(p) + 2 * PAGE, NULL));
		hmm_range_close(range);
	}
	if (OK(hmm_reg_cache_open(w.space, w.mm, &pinned, &params, &cache))) {
		for (unsigned k = 0; k < 6; k++)
			if (OK(hmm_reg_get(cache, p + k * 3 * PAGE, 3 * PAGE, HMM_MAP_WRITE, soon(), &reg))) {
				if (reg->start > addr(p + k * 3 * PAGE) || reg->end < addr(p + (k + 1) * 3 * PAGE))
					wrong("a registration is short");
				hmm_reg_put(cache, reg);
			}
		OK(munmap(p + 12 * PAGE, PAGE));
		note("refused", hmm_reg_get(cache, p + 10 * PAGE, 4 * PAGE, 0, soon(), &reg));
		hmm_reg_cache_close(cache);
	}
done:
	end(&w);
	right(p, 12, 1);
}

static void s_uring(void)
{
	char name[] = "/tmp/hmm-inject-XXXXXX", *p = map(PAGES, 5), *q = map(PAGES, 6);
	const struct hmm_uring_params params = {.depth = 4, .buffers = 8};
	struct umm_space *space = NULL;
	struct hmm_uring_done done;
	struct hmm_uring *u = NULL;
	int fd = mkstemp(name);
	unsigned asked = 0;
	bool written = true, have = true;

	unlink(name);
	if (!OK(umm_space_open_self(&space)) || !OK(hmm_uring_open(space, &params, &u)))
		goto done;
	for (unsigned way = 0; way < 2; way++) {
		bool *all = way ? &have : &written;

		asked = 0;
		for (unsigned k = 0; k < PAGES / 4; k++) {
			int rc = way ? hmm_uring_read(u, fd, q + k * 4 * PAGE, 4 * PAGE, k * 4 * PAGE, NULL)
				     : hmm_uring_write(u, fd, p + k * 4 * PAGE, 4 * PAGE, k * 4 * PAGE, NULL);

			note(way ? "read" : "write", rc);
			*all &= !rc;
			asked += !rc;
		}
		for (unsigned failed = 0; asked && failed < 200;) {
			int rc = hmm_uring_wait(u, &done);

			note("wait", rc);
			if (rc) {
				failed++;
				continue;
			}
			asked--;
			*all &= done.res == 4 * PAGE;
			note("res", done.res);
		}
		if (asked)
			wrong("%u transfers are never heard of again", asked);
	}
	if (written && have)
		right(q, PAGES, 5);
	for (unsigned k = 0; written && k < PAGES; k++) {
		uint64_t page[PAGE / 8];

		if (pread(fd, page, PAGE, k * PAGE) != PAGE || memcmp(page, p + k * PAGE, PAGE))
			wrong("page %u was not written", k);
	}
done:
	hmm_uring_close(u);
	umm_space_close(space);
	right(p, PAGES, 5);
}

static bool n_invalidate(struct umm_notifier *n, const struct umm_change *change, uint64_t seq)
{
	umm_notifier_set_seq(n, seq);
	return true;
}

/* Looking, at oneself and at another process. */
static void s_look(void)
{
	char *p = map(PAGES, 1);
	uint64_t entries[PAGES] = {0};
	struct umm_space *space[2] = {NULL, NULL};
	struct umm_notifier n = {0};
	static const struct umm_notifier_ops ops = {.invalidate = n_invalidate};
	unsigned last = 1;

	for (unsigned i = 0; i < 2; i++) {
		struct umm_range r = {.start = addr(p), .end = addr(p) + PAGES * PAGE, .entries = entries};
		struct umm_vma v;

		if (!OK(i ? umm_space_open_pid(getppid(), &space[i]) : umm_space_open_self(&space[i])))
			continue;
		r.space = space[i];
		if (OK(umm_vma_next(space[i], addr(p), &v)) && !i && (v.start > addr(p) || v.end <= addr(p)))
			wrong("a mapping is another one");
		if (OK(umm_range_snapshot(&r)) && !i)
			for (unsigned k = 0; k < PAGES; k++)
				if (!(entries[k] & UMM_PFN_VALID) || !(entries[k] & UMM_PFN_WRITE))
					wrong("page %u is said not to be there", k);
		if (i || !OK(umm_notifier_insert(&n, space[i], addr(p), PAGES * PAGE, &ops)))
			continue;
		madvise(p, PAGES * PAGE, MADV_DONTNEED);
		last = 0;
		r.notifier = &n;
		r.notifier_seq = umm_read_begin(&n);
		r.default_flags = UMM_PFN_REQ_FAULT | UMM_PFN_REQ_WRITE;
		r.deadline_ns = soon();
		if (OK(umm_range_fault(&r)))
			for (unsigned k = 0; k < PAGES; k++)
				if (!(entries[k] & UMM_PFN_WRITE))
					wrong("page %u was faulted in and is not there", k);
		umm_notifier_remove(&n);
		OK(umm_space_watch(space[i], addr(p), PAGES * PAGE));
		OK(umm_space_unwatch(space[i], addr(p), PAGES * PAGE));
	}
	umm_space_close(space[0]);
	umm_space_close(space[1]);
	right(p, PAGES, last);
}

static const struct scenario {
	const char *name;
	void (*run)(void);
	const char *always; /* a site that fails throughout */
	int err;
} scenarios[] = {
	{"look", s_look},
	{"look by text", s_look, "umm/maps.c next_by_query ioctl PROCMAP_QUERY", ENOTTY},
	{"look by short names", s_look, "umm/maps.c next_by_query ioctl PROCMAP_QUERY", ENAMETOOLONG},
	{"lz4", s_lz4},
	{"lz4 by /dev", s_lz4, "umm/inside.c umm_inside_uffd SYS_userfaultfd", EPERM},
	{"lz4 untold", s_lz4, "umm/uffd.c umm_uffd_api ioctl UFFDIO_API", EPERM},
	{"lost", s_lost},
	{"lost for sure", s_lost, "test/inject/linked.c t_copy_out device copy_out", EIO},
	{"take untold", s_take, "umm/uffd.c umm_uffd_api ioctl UFFDIO_API", EPERM},
	{"locked", s_locked},
	{"file", s_file},
	{"file by name", s_file, "drivers/file/backing.c open_in_directory open", EOPNOTSUPP},
	{"file that grows otherwise", s_file, "drivers/file/backing.c file_backing_grow fallocate", EOPNOTSUPP},
	{"file without ring", s_file, "drivers/file/io.c xfer_new io_uring_queue_init", EPERM},
	{"one file", s_one_file},
	{"one file that is there", s_old_file},
	{"take", s_take},
	{"take by descriptor", s_take, "hmm/take.c file_open SYS_open", EPERM},
	{"fork", s_fork},
	{"fork untold", s_fork, "umm/uffd.c umm_uffd_api ioctl UFFDIO_API", EPERM},
	{"fork while lost", s_fork_lost},
	{"fork, lost to the child", s_fork_lost_to_child},
	{"change", s_change},
	{"dmirror", s_dmirror},
	{"huge", s_huge},
	{"huge, and back", s_huge_back},
	{"map", s_map},
	{"uring", s_uring},
};
#define SCENARIOS (sizeof(scenarios) / sizeof(scenarios[0]))

/* ------------------------------------------------------------------ the walk */

static const char *reason_of(const struct inject_known *list, const char *name)
{
	for (; list->site; list++) {
		size_t n = strlen(list->site);

		if (list->site[n - 1] == '*' ? !strncmp(list->site, name, n - 1) : !strcmp(list->site, name))
			return list->why;
	}
	return NULL;
}

struct walk {
	bool full, verbose, stop;
	const char *only, *site;
	unsigned nth;
	unsigned job, jobs;
};

/* What all jobs found, by site. */
struct found {
	_Atomic uint32_t ran, failed;
	struct {
		_Atomic uint32_t reached, fired, noticed;
	} site[INJECT_SITES];
};

static struct inject_shared *plan; /* this job's */
static struct found *found;

enum end { RIGHT, LOST, GAVE_UP, BAD };

static const char *const end_name[] = {"right", "SIGBUS", "ended by the engine", "WRONG"};

static void stuck(pid_t pid)
{
	char path[320], text[256];
	struct dirent *e;

	snprintf(path, sizeof(path), "/proc/%d/task", (int)pid);
	DIR *d = opendir(path);
	while (d && (e = readdir(d))) {
		static const char *const what[] = {"wchan", "syscall", "stack"};

		if (atoi(e->d_name) <= 0)
			continue;
		for (unsigned i = 0; i < 3; i++) {
			snprintf(path, sizeof(path), "/proc/%d/task/%s/%s", (int)pid, e->d_name, what[i]);
			int fd = open(path, O_RDONLY);
			ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);

			if (n > 0)
				printf("    %s %s: %.*s\n", e->d_name, what[i], (int)n, text);
			close(fd);
		}
	}
	if (d)
		closedir(d);
}

static int watchdog_ms(void)
{
	const char *ms = getenv("HMM_INJECT_WATCHDOG_MS");

	return ms ? atoi(ms) : WATCHDOG_MS;
}

static uint32_t site_of(const char *name)
{
	for (uint32_t i = 0; i < atomic_load(&plan->nsites); i++)
		if (!strcmp(plan->site[i].name, name))
			return i;
	printf("no such site: %s\n", name);
	exit(2);
}

/* One run of @sc in a process of its own; @o: what it did.  The plan is made. */
static enum end run(const struct scenario *sc, struct outcome *o)
{
	int lines = memfd_create("lines", 0), status = 0, pidfd;
	bool hung;
	pid_t pid;

	memset(o, 0, sizeof(*o));
	for (uint32_t i = 0; i < atomic_load(&plan->nsites); i++)
		atomic_store(&plan->site[i].hits, 0);
	atomic_store(&plan->fired, 0);
	atomic_store(&plan->always, sc->always ? site_of(sc->always) + 1 : 0);
	atomic_store(&plan->always_err, sc->err);
	fflush(stdout);
	pid = fork();
	if (!pid) {
		out = o;
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		dup2(lines, 2);
		signal(SIGBUS, on_bus);
		setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0});
		sc->run();
		_exit(0);
	}
	pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	hung = poll(&(struct pollfd){.fd = pidfd, .events = POLLIN}, 1, watchdog_ms()) != 1;
	if (hung) {
		stuck(pid);
		kill(pid, SIGKILL);
	}
	waitpid(pid, &status, 0);
	close(pidfd);
	ssize_t n = pread(lines, o->lines, sizeof(o->lines) - 1, 0);
	o->lines[n > 0 ? n : 0] = 0;
	close(lines);
	if (hung) {
		snprintf(o->why, sizeof(o->why), "it never ended");
		return BAD;
	}
	bool said_lost = strstr(o->lines, " is lost"), said_end = strstr(o->lines, "ending the process");
	bool said_child = strstr(o->lines, " lost to it");
	/* What the parent has lost before it forks is lost to both. */
	if (o->child_buses ? !said_child && !said_lost : said_child) {
		snprintf(o->why, sizeof(o->why), "%u pages are lost to the child, and a line says %s", o->child_buses,
			 said_child ? "that some are" : "nothing of it");
		return BAD;
	}
	if ((o->buses || (WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS)) && !said_lost) {
		snprintf(o->why, sizeof(o->why), "SIGBUS, and no line says why");
		return BAD;
	}
	if (*o->why)
		return BAD;
	if (WIFEXITED(status) && !WEXITSTATUS(status))
		return o->buses ? LOST : RIGHT;
	if (WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS)
		return LOST;
	if (WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT && said_end)
		return GAVE_UP;
	snprintf(o->why, sizeof(o->why), "it ended with status %#x", status);
	return BAD;
}

static bool noticed(const struct outcome *o, const struct outcome *plain)
{
	bool same = o->n == plain->n && !strcmp(o->lines, plain->lines) && o->buses == plain->buses;

	for (unsigned i = 0; same && i < o->n; i++)
		same = o->note[i].value == plain->note[i].value && !strcmp(o->note[i].what, plain->note[i].what);
	return !same;
}

static void one_case(const struct walk *w, const struct scenario *sc, uint32_t site, uint32_t nth, uint32_t count,
		     int err, uint32_t plain_hits, const struct outcome *plain, struct outcome *o)
{
	struct inject_entry *e = &plan->site[site];

	atomic_store(&plan->nth, nth);
	atomic_store(&plan->count, count);
	atomic_store(&plan->err, err);
	atomic_store(&plan->target, site + 1);
	enum end end = run(sc, o);
	atomic_store(&plan->target, 0);
	atomic_fetch_add(&found->ran, 1);
	uint32_t fired = atomic_load(&plan->fired);

	for (uint32_t i = 0; i < atomic_load(&plan->nsites); i++)
		if (atomic_load(&plan->site[i].hits))
			atomic_store(&found->site[i].reached, 1);
	bool seen = noticed(o, plain), again = atomic_load(&e->hits) > plain_hits;

	if (fired) {
		atomic_fetch_add(&found->site[site].fired, 1);
		if (seen || again || end != RIGHT)
			atomic_fetch_add(&found->site[site].noticed, 1);
	}
	if (end == BAD)
		atomic_fetch_add(&found->failed, 1);
	if (end != BAD && !w->verbose)
		return;
	printf("%s: %s, occurrence %u%s of %u, %s: %s%s%s%s\n", sc->name, e->name, nth, count > 1 ? " and after" : "",
	       plain_hits, strerrorname_np(err), end_name[end], *o->why ? ": " : "", o->why,
	       !fired  ? " (did not come to it)"
	       : seen  ? ""
	       : again ? " (again)"
		       : " (in silence)");
	if (*o->lines)
		printf("    said: %s", o->lines);
	for (unsigned i = 0; i < o->n && (end == BAD || w->site); i++)
		printf("    %s = %lld\n", o->note[i].what, (long long)o->note[i].value);
	fflush(stdout);
}

static void walk(const struct walk *w)
{
	struct outcome *o = mmap(NULL, 2 * sizeof(*o), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct outcome *plain = o + 1;
	static uint32_t hits[INJECT_SITES];
	static void (*by[INJECT_SITES][SCENARIOS])(void); /* which functions have come to a site so far */
	static bool all_failed[INJECT_SITES];

	for (unsigned s = 0; s < SCENARIOS; s++) {
		const struct scenario *sc = &scenarios[s];

		if (w->only && strcmp(w->only, sc->name))
			continue;
		enum end end = run(sc, plain);

		if (end != RIGHT && !(end == LOST && sc->always)) {
			printf("%s: without any failure: %s\n%s", sc->name, plain->why, plain->lines);
			for (unsigned i = 0; i < plain->n; i++)
				printf("    %s = %lld\n", plain->note[i].what, (long long)plain->note[i].value);
			atomic_fetch_add(&found->failed, 1);
			return;
		}
		for (uint32_t i = 0; i < atomic_load(&plan->nsites); i++) {
			hits[i] = atomic_load(&plan->site[i].hits);
			if (hits[i])
				atomic_fetch_add(&found->site[i].reached, 1);
		}
		for (uint32_t i = 0; i < atomic_load(&plan->nsites); i++) {
			bool again = false, noticed_once = atomic_load(&found->site[i].noticed), more;

			if (!hits[i] || i + 1 == atomic_load(&plan->always) ||
			    (w->site && strcmp(w->site, plan->site[i].name)))
				continue;
			/* The same for all jobs, whosever it is. */
			for (unsigned k = 0; k < s && !again; k++)
				again = by[i][k] == sc->run;
			by[i][s] = sc->run;
			if (again && sc->always && noticed_once && !w->full && !w->only && !w->site)
				continue;
			more = hits[i] > 1 && (!all_failed[i] || !noticed_once || w->full);
			all_failed[i] |= more;
			if ((i + s) % w->jobs != w->job)
				continue;
			for (unsigned k = 0; k < INJECT_ERRORS && plan->site[i].err[k] && (!k || w->full); k++) {
				int err = plan->site[i].err[k];
				bool passes = err == EAGAIN || err == EINTR || err == EBUSY || err == EMFILE;
				/* What says "later" for ever may be waited for, for ever. */
				uint32_t all =
					passes || reason_of(inject_patient, plan->site[i].name) ? 50 : UINT32_MAX;

				if (w->nth) {
					one_case(w, sc, i, w->nth, 1, err, hits[i], plain, o);
					continue;
				}
				one_case(w, sc, i, 1, 1, err, hits[i], plain, o);
				if (hits[i] > 1)
					one_case(w, sc, i, hits[i], 1, err, hits[i], plain, o);
				if (more)
					one_case(w, sc, i, 1, all, err, hits[i], plain, o);
				for (uint32_t nth = 2; w->full && nth < hits[i] && nth < 12; nth++)
					one_case(w, sc, i, nth, 1, err, hits[i], plain, o);
			}
		}
	}
}

static void *shared_of(size_t size)
{
	void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		exit(2);
	return p;
}

static unsigned judge(bool verbose)
{
	unsigned reached = 0, bad = 0, silent = 0, n = 0;

	for (unsigned i = 0; i < atomic_load(&plan->nsites); i++) {
		const char *name = plan->site[i].name;
		bool was = atomic_load(&found->site[i].reached), noticed_once = atomic_load(&found->site[i].noticed);
		if (!plan->site[i].err[0]) /* it cannot fail */
			continue;
		const char *why = reason_of(was ? inject_silent : inject_unreached, name);

		n++;
		reached += was;
		if (reason_of(inject_chance, name))
			continue;
		silent += was && !noticed_once;
		if (!was && !why)
			printf("never reached: %s\n", name);
		else if (was && !noticed_once && !why)
			printf("nobody notices: %s\n", name);
		else if (was && reason_of(inject_unreached, name))
			printf("reached, though said not to be: %s\n", name);
		else {
			if (verbose && why && (!was || !noticed_once))
				printf("%s: %s: %s\n", was ? "in silence" : "not reached", name, why);
			continue;
		}
		bad++;
	}
	printf("%u sites, %u reached, of these %u passed over in silence for a reason\n", n, reached, silent);
	return bad;
}

int main(int argc, char **argv)
{
	struct walk w = {.jobs = (unsigned)sysconf(_SC_NPROCESSORS_ONLN)};
	pid_t pid[JOBS_MAX];
	unsigned bad = 0;

	for (int i = 1; i < argc; i++) {
		if (!strcmp(argv[i], "-v"))
			w.verbose = true;
		else if (!strcmp(argv[i], "--full"))
			w.full = true;
		else if (i + 1 < argc && !strcmp(argv[i], "--only"))
			w.only = argv[++i];
		else if (i + 1 < argc && !strcmp(argv[i], "--site"))
			w.site = argv[++i];
		else if (i + 1 < argc && !strcmp(argv[i], "--nth"))
			w.nth = (unsigned)atoi(argv[++i]);
		else
			return fprintf(stderr, "usage: inject-linked [-v] [--full] [--only SCENARIO] [--site NAME "
					       "[--nth N]]\n"),
			       2;
	}
	int uffd = umm_inside_uffd();
	if (uffd < 0) {
		printf("SKIP: no right to a userfaultfd\n");
		return 77;
	}
	close(uffd);
	if (!w.jobs || w.site)
		w.jobs = 1;
	if (w.jobs > JOBS_MAX)
		w.jobs = JOBS_MAX;
	found = shared_of(sizeof(*found));
	for (w.job = 0; w.job < w.jobs; w.job++) {
		pid[w.job] = fork();
		if (pid[w.job])
			continue;
		plan = shared_of(sizeof(*plan));
		inject_use(plan);
		walk(&w);
		exit(0);
	}
	for (unsigned i = 0; i < w.jobs; i++) {
		int status;

		waitpid(pid[i], &status, 0);
		if (status)
			printf("a part of the walk ended with status %#x\n", status);
		bad += status != 0;
	}
	plan = shared_of(sizeof(*plan));
	inject_use(plan);
	bad += atomic_load(&found->failed);
	printf("%u runs, %u wrong\n", atomic_load(&found->ran), atomic_load(&found->failed));
	if (!w.only && !w.site)
		bad += judge(w.verbose);
	return bad ? 1 : 0;
}
