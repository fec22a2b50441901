/* SPDX-License-Identifier: MIT */
/*
 * What must be done from inside an address space: UFFDIO_MOVE and letting
 * staging go.  See ctl.h for the protocol; no libc here, and no stack of more
 * than a page.
 */
#include "umm/inside.h"

#include <fcntl.h>
#include <sys/mman.h>

#include "hmm_uapi.h"

static void copy_page(void *to, const void *from)
{
	unsigned long n = UMM_PAGE / 8;

	__asm__ volatile("rep movsq" : "+D"(to), "+S"(from), "+c"(n) : : "memory");
}

int umm_inside_uffd_by(int dev)
{
	return sys_ioctl(dev, USERFAULTFD_IOC_NEW, (void *)(O_CLOEXEC | O_NONBLOCK));
}

int umm_inside_uffd(void)
{
	int fd = (int)sys1(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	if (fd >= 0)
		return fd;
	int dev = (int)sys3(SYS_open, "/dev/userfaultfd", O_RDWR | O_CLOEXEC, 0);
	/* Which right there is not is told by the first; what else is lacking by the second. */
	if (dev < 0)
		return dev == -ENOENT || dev == -EACCES || dev == -EPERM || dev == -ENODEV || dev == -ENXIO ? fd : dev;
	fd = umm_inside_uffd_by(dev);
	sys_close(dev);
	return fd;
}

#define ASK_TRIES 1000u

/* Is page @k of @n from @at on there?  Asked of the kernel: a touch would be a fault.  What is not mapped is not. */
static void are_there(uint64_t at, unsigned n, unsigned char there[])
{
	long rc = -EAGAIN;

	/* It wants a page for a moment. */
	for (unsigned i = 0; rc == -EAGAIN && i < ASK_TRIES; i++) {
		rc = sys3(SYS_mincore, at, n * UMM_PAGE, there);
		if (rc == -EAGAIN)
			sys0(SYS_sched_yield);
	}
	for (unsigned k = 0; rc && k < n; k++)
		there[k] = 0;
}

/*
 * The kernel may move pages and say nothing of it.  Where an attempt meets a change
 * of a page's entry, for which the accessed bit will do, Linux 6.18 tries again, but
 * keeps the error: it does not count what it moves then, and stops at what it finds
 * where it has just put it, with EEXIST or less than has gone
 * (test/kernel/uffd_move_goes_unsaid.c).  Who believed that would leave the pages in
 * staging, to be dropped, and zeros behind.
 *
 * So it is looked, at once and by a call that is not refused while a change is under
 * way.  That staging was empty before is the caller's to see to.  What mlockall() has
 * put there does not count: the page is still where it was.
 *
 * A page in swap looks as if nothing were there.  At the destination EEXIST says that
 * something is, and whoever goes on behind what went is told so of the next page.  At
 * the source it is taken to be gone, and is nevertheless what is found when it is
 * touched.
 */
unsigned umm_inside_gone(uint64_t dst, uint64_t src, unsigned npages, int rc)
{
	unsigned char arrived[UMM_RUN_PAGES], stays;
	unsigned gone = 0;

	while (gone < npages) {
		unsigned n = npages - gone < UMM_RUN_PAGES ? npages - gone : UMM_RUN_PAGES;

		are_there(dst + gone * UMM_PAGE, n, arrived);
		if (!gone && rc == -EEXIST)
			arrived[0] = 1;
		for (unsigned k = 0; k < n; k++, gone++) {
			if (!(arrived[k] & 1))
				return gone;
			are_there(src + gone * UMM_PAGE, 1, &stays);
			if (stays & 1)
				return gone;
		}
	}
	return gone;
}

static int move(int uffd, char *dst, uint64_t src, unsigned npages, unsigned *moved, uint32_t *unsaid)
{
	struct uffdio_move mv = {.dst = (uintptr_t)dst, .src = src, .len = npages * UMM_PAGE};
	int rc = sys_ioctl(uffd, UFFDIO_MOVE, &mv);

	*moved = mv.move > 0 ? (unsigned)(mv.move / (long)UMM_PAGE) : 0;
	if (*moved < npages) {
		unsigned more = umm_inside_gone(mv.dst + *moved * UMM_PAGE, src + *moved * UMM_PAGE, npages - *moved,
						*moved ? 0 : rc);

		*moved += more;
		*unsaid += more;
	}
	if (*moved)
		return 0; /* go on behind what went; what stopped it shows again, by itself */
	if (rc == -EAGAIN && mv.move == 0)
		return -EBUSY; /* the page is locked by somebody: not now */
	return rc;
}

int umm_inside_registered(int uffd, uint64_t addr)
{
	struct uffdio_continue c = {.range = {addr, UMM_PAGE}, .mode = UFFDIO_CONTINUE_MODE_DONTWAKE};
	int rc = sys_ioctl(uffd, UFFDIO_CONTINUE, &c);

	/* Waited for mremap()'s lock, perhaps (uffd.c): at an impossible address only the change is told. */
	if (rc == -ENOENT) {
		c.range.start = 1;
		rc = sys_ioctl(uffd, UFFDIO_CONTINUE, &c) == -EAGAIN ? -EAGAIN : rc;
	}
	return rc == -EAGAIN || rc == -ENOENT ? rc : 0;
}

/*
 * Under event and pin lock.  Returns -EAGAIN when a change of the space is
 * under way, -EINVAL when the mapping cannot be moved from at all, -ENXIO when
 * it is not registered, else 0.
 */
static int move_run(struct umm_inside *in, struct umm_move_run *run, char *staging, unsigned *from)
{
	unsigned i = *from, n, moved;

	while (i < run->npages) {
		uint64_t pfn = (run->addr >> UMM_PAGE_SHIFT) + i;

		if (umm_pin_has(in->ctl, pfn)) {
			i++;
			continue;
		}
		for (n = 1; i + n < run->npages && !umm_pin_has(in->ctl, pfn + n);)
			n++;
		/*
		 * UFFDIO_MOVE asks for it of staging only: what left a mapping that is
		 * not registered would be zeros for whoever touches it next.  The
		 * records say that it is; this is the kernel's word.
		 */
		int rc = umm_inside_registered(in->uffd, run->addr + i * UMM_PAGE);
		if (rc) { /* no, or a change that is under way does not let the kernel say */
			run->err = rc == -ENOENT ? -ENXIO : rc;
			return run->err;
		}
		rc = move(in->uffd, staging + i * UMM_PAGE, run->addr + i * UMM_PAGE, n, &moved, &run->unsaid);
		for (unsigned k = 0; k < moved; k++)
			run->mask |= 1ull << (i + k);
		i += moved;
		*from = i;
		if (!rc)
			continue;
		run->err = rc;
		if (rc == -EAGAIN || rc == -EINVAL || rc == -ESRCH)
			return rc;
		if (rc == -EBUSY)
			return rc;
		i++; /* a hole, or something that stays */
		*from = i;
	}
	return 0;
}

static void run_one(struct umm_inside *in, struct umm_batch *batch, struct umm_move_run *run, char *staging,
		    char *window)
{
	struct umm_ctl *c = in->ctl;
	unsigned from = 0;
	bool unshared = false;
	int rc;

	run->mask = 0;
	run->err = 0;
	run->unsaid = 0;
again:
	if (!umm_evlock_shared_unless(&c->evlock, in->gone, in->arg))
		return;
	if (atomic_load(&c->epoch) != batch->epoch) {
		run->err = -ESTALE;
		rc = 0;
	} else if (in->no_pins || !umm_pin_lock_soon(c)) {
		in->no_pins = true; /* whoever had the lock was killed: another time */
		run->err = -EBUSY;
		rc = 0;
	} else {
		while ((rc = move_run(in, run, staging, &from)) == -EBUSY &&
		       (unshared || !(batch->flags & UMM_BATCH_UNSHARE)))
			from++; /* pinned for I/O, locked, or shared and to stay so */
		umm_pin_unlock(c);
	}
	if (rc == -EBUSY && (batch->flags & UMM_BATCH_UNSHARE) && !unshared && !run->mask) {
		/*
		 * Shared since a fork: make it ours, then it can go.  Not under
		 * the lock: should the page have gone meanwhile, this faults, and
		 * who serves the fault needs the lock.
		 */
		umm_evlock_unshared(&c->evlock);
		unsigned left = run->npages - from;
		atomic_store(&c->populating, (uint32_t)sys0(SYS_gettid));
		sys3(SYS_madvise, run->addr + from * UMM_PAGE, left * UMM_PAGE, MADV_POPULATE_WRITE);
		atomic_store(&c->populating, 0);
		unshared = true;
		goto again;
	}
	/*
	 * When some of the run has gone, a page that is shared ends it: to give
	 * the lock up now would hide from a fork what is in staging only.
	 */
	/* Under the lock still: who takes it exclusively sees what happened. */
	atomic_store_explicit(&run->state, UMM_RUN_MOVED, memory_order_release);
	umm_evlock_unshared(&c->evlock);

	for (unsigned i = 0; window && i < run->npages; i++)
		if (run->mask & (1ull << i))
			copy_page(window + i * UMM_PAGE, staging + i * UMM_PAGE);
	atomic_store_explicit(&run->state, UMM_RUN_FILLED, memory_order_release);
}

static int register_staging(struct umm_inside *in, char *staging, size_t len)
{
	struct uffdio_register reg = {.range = {(uintptr_t)staging, len}, .mode = UFFDIO_REGISTER_MODE_MISSING};

	return sys_ioctl(in->uffd, UFFDIO_REGISTER, &reg);
}

/*
 * Staging is registered, as a destination of MOVE must be; dropping its pages
 * as they are would send an event that somebody must read while we sleep.
 */
static bool release_staging(struct umm_inside *in, char *staging, size_t len)
{
	struct uffdio_range r = {.start = (uintptr_t)staging, .len = len};
	bool empty;

	/* Left full: the next batch comes here again, and nothing moves before it is empty. */
	if (sys_ioctl(in->uffd, UFFDIO_UNREGISTER, &r))
		return false;
	/* mlockall() of the program locks staging too: then nothing can be dropped before it is unlocked. */
	empty = !sys3(SYS_madvise, staging, len, MADV_DONTNEED);
	if (!empty) {
		sys2(SYS_munlock, staging, len);
		empty = !sys3(SYS_madvise, staging, len, MADV_DONTNEED);
	}
	register_staging(in, staging, len); /* or else before the next batch */
	return empty;
}

void umm_inside_release(struct umm_inside *in, unsigned b)
{
	size_t base = (size_t)(b % UMM_BATCHES) * UMM_BATCH_PAGES * UMM_PAGE;

	if (in->kept[b % UMM_BATCHES] && release_staging(in, in->staging + base, UMM_BATCH_PAGES * UMM_PAGE))
		in->kept[b % UMM_BATCHES] = false;
}

/* Is the batch one block of memory that may be one huge page, and goes to where it can stay one? */
static bool is_block(struct umm_inside *in, struct umm_batch *batch, const char *staging)
{
	const uint64_t size = UMM_BATCH_PAGES * UMM_PAGE;

	if (in->window || atomic_load(&in->ctl->pin_used) || batch->nr != UMM_BATCH_PAGES / UMM_RUN_PAGES ||
	    batch->run[0].addr % size || (uintptr_t)staging % size)
		return false;
	for (unsigned i = 0; i < batch->nr; i++) {
		struct umm_move_run *run = &batch->run[i];

		if (run->addr != batch->run[0].addr + run->slot * UMM_PAGE || run->slot != i * UMM_RUN_PAGES ||
		    run->npages != UMM_RUN_PAGES ||
		    atomic_load_explicit(&run->state, memory_order_relaxed) != UMM_RUN_PENDING)
			return false;
	}
	return true;
}

/* All at once, as far as it goes: the runs that it has not reached go one by one. */
static bool move_block(struct umm_inside *in, struct umm_batch *batch, char *staging)
{
	struct umm_ctl *c = in->ctl;
	unsigned moved = 0;
	uint32_t unsaid = 0;

	if (!umm_evlock_shared_unless(&c->evlock, in->gone, in->arg))
		return false;
	if (atomic_load(&c->epoch) == batch->epoch && umm_inside_registered(in->uffd, batch->run[0].addr) == 0)
		for (unsigned n = 1; n && moved < UMM_BATCH_PAGES; moved += n)
			move(in->uffd, staging + moved * UMM_PAGE, batch->run[0].addr + moved * UMM_PAGE,
			     UMM_BATCH_PAGES - moved, &n, &unsaid);
	for (unsigned i = 0; i * UMM_RUN_PAGES < moved; i++) {
		struct umm_move_run *run = &batch->run[i];
		unsigned n = moved - i * UMM_RUN_PAGES;

		run->err = 0;
		run->unsaid = i ? 0 : unsaid;
		run->mask = n >= UMM_RUN_PAGES ? ~0ull : (1ull << n) - 1;
		atomic_store_explicit(&run->state, UMM_RUN_FILLED, memory_order_release);
	}
	umm_evlock_unshared(&c->evlock);
	return moved;
}

void umm_inside_move(struct umm_inside *in, unsigned b)
{
	struct umm_batch *batch = &in->ctl->batch[b % UMM_BATCHES];
	size_t base = (size_t)(b % UMM_BATCHES) * UMM_BATCH_PAGES * UMM_PAGE;
	unsigned nr = batch->nr < UMM_BATCH_RUNS ? batch->nr : UMM_BATCH_RUNS;
	bool used = false;
	int rc = 0;

	in->no_pins = false;
	umm_inside_release(in, b);
	/* It may have been left unregistered: there was no memory at the time. */
	if (in->kept[b % UMM_BATCHES])
		rc = -ENOMEM;
	else if (umm_inside_registered(in->uffd, (uintptr_t)in->staging + base))
		rc = register_staging(in, in->staging + base, UMM_BATCH_PAGES * UMM_PAGE);
	if (!rc && is_block(in, batch, in->staging + base))
		used = move_block(in, batch, in->staging + base);
	for (unsigned i = 0; i < nr; i++) {
		struct umm_move_run *run = &batch->run[i];

		if (atomic_load_explicit(&run->state, memory_order_relaxed) == UMM_RUN_FILLED)
			continue; /* it went another way (linked.c) */
		if (rc) {
			run->err = rc == -EINVAL ? -EAGAIN : rc;
			run->mask = 0;
			atomic_store_explicit(&run->state, UMM_RUN_FILLED, memory_order_release);
			continue;
		}
		if (!run->npages || run->npages > UMM_RUN_PAGES || run->slot + run->npages > UMM_BATCH_PAGES) {
			run->err = -EINVAL;
			run->mask = 0;
			atomic_store_explicit(&run->state, UMM_RUN_FILLED, memory_order_release);
			continue;
		}
		run_one(in, batch, run, in->staging + base + run->slot * UMM_PAGE,
			in->window ? in->window + base + run->slot * UMM_PAGE : 0);
		/* Staging may also have pages that nobody moved there; mlockall() populates it. */
		if (run->mask || run->err == -EEXIST)
			used = true;
	}
	in->kept[b % UMM_BATCHES] |= used;
	if (in->window)
		umm_inside_release(in, b);
	atomic_store_explicit(&batch->done, 1, memory_order_release);
}
