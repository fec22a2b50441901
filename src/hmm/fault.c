/* SPDX-License-Identifier: MIT */
/*
 * Bringing pages back: on a fault, or because they are asked for.
 *
 * DOC: one fault
 *
 *	again:	event lock shared, leaf lock: look the page up
 *		SYSTEM	nothing of ours is away: fill with zeros
 *		PARKING	it may be on its way out: note that somebody waits, who
 *			commits the batch wakes it
 *		PARKED	copy it back from the window; the device's result is discarded
 *		DEVICE	take references to a run of pages from here on; unlock all;
 *			have the device copy them out; lock again; if the entries are
 *			no longer the same, drop the references and go to again;
 *			place them; the rest of the run keeps its state
 *
 * Every way out either places the page (the kernel wakes who waits), wakes
 * explicitly, or returns -EAGAIN to be called again: who waits always learns.
 */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>

#include "hmm/internal.h"
#include "umm/inside.h"

#define RESTORE_TRIES 1000u /* of memory that is not to be had */

static const char zeros[HMM_PLACE_MAX * UMM_PAGE] __attribute__((aligned(4096)));

#define STEP_MAX 64     /* pages from one fault to the next that are taken to have to do with each other */
#define STEPS_PASSED 32 /* most that a walk by steps leaves out, because they are there */
#define STEPS_AHEAD 16u

/* The walk by steps that @page is the next of, or one that is near, and may become one; NULL: neither. */
static struct hmm_stream *step_find(struct hmm_mm *mm, uint64_t page, bool *goes_on)
{
	struct hmm_stream *near = NULL;

	*goes_on = false;
	for (unsigned i = 0; i < HMM_STREAMS; i++) {
		struct hmm_stream *c = &mm->stream[i];
		int64_t d = (int64_t)(page - c->last);

		if (!c->size)
			continue;
		if (c->step && d % c->step == 0 && d / c->step > 0 && d / c->step <= STEPS_PASSED) {
			*goes_on = true;
			return c;
		}
		if (d && d <= STEP_MAX && d >= -STEP_MAX && (!near || c->used > near->used))
			near = c;
	}
	return near;
}

/*
 * How many pages to bring in from @page on, each @step from the one before: more
 * while the faults walk on, page by page or by what has been the distance of late.
 * @block: as many as there are in a leaf, if they can be had at once.
 */
static unsigned stream_size(struct hmm_mm *mm, uint64_t page, unsigned *which, int *step, bool *block)
{
	struct hmm_stream *old = &mm->stream[0], *s = NULL;
	bool goes_on, goes;
	unsigned size, left;

	*step = 1;
	pthread_mutex_lock(&mm->stream_lock);
	for (unsigned i = 0; i < HMM_STREAMS; i++) {
		struct hmm_stream *c = &mm->stream[i];

		if (c->size && page >= c->next &&
		    (page - c->next < 4 || page - c->next + 1 == c->ahead || page < c->fetched + 4)) {
			s = c;
			break;
		}
		if (c->used < old->used)
			old = c;
	}
	uint32_t score = atomic_load(&mm->seq_score);
	goes = s;
	if (s) {
		s->size = s->size * 2 < mm->h->cluster_max ? s->size * 2 : mm->h->cluster_max;
		s->walked += page - s->next;
		s->delta = s->step = 0;
		score += (256 - score) / HMM_SEQ_STEP;
	} else if ((s = step_find(mm, page, &goes_on)) && goes_on) {
		s->size = s->size * 2 < STEPS_AHEAD ? s->size * 2 : STEPS_AHEAD;
		score -= score / HMM_SEQ_STEP; /* it comes back to what lies between: not a walk that meets nothing */
		*step = s->step;
	} else {
		int32_t delta = s ? (int32_t)(page - s->last) : 0;

		if (!s)
			s = old;
		s->fetched = 0;
		s->step = delta == s->delta ? delta : 0;
		s->delta = delta;
		score -= score / HMM_SEQ_STEP;
		s->size = score > 128 ? 8 : 1;
		if (s->step) {
			s->size = 2;
			*step = s->step;
		}
	}
	atomic_store(&mm->seq_score, score);
	if (!goes)
		s->walked = 0;
	s->walked++;
	/* Who has walked as far as that is taken to walk on as far. */
	*block = mm->h->opt.block && *step == 1 && s->walked > HMM_LEAF_PAGES && page % HMM_LEAF_PAGES == 0;
	size = s->size;
	left = HMM_LEAF_PAGES - (unsigned)(page % HMM_LEAF_PAGES);
	s->ahead = *step != 1 ? 0 : *block || size > left ? left : size;
	s->next = page + 1;
	s->last = page;
	s->used = ++mm->stream_clock;
	*which = (unsigned)(s - mm->stream);
	pthread_mutex_unlock(&mm->stream_lock);
	return size;
}

/* Have fetched what the walk comes to after @from; it is at @page. */
static void stream_ahead(struct hmm_mm *mm, unsigned which, uint64_t page, uint64_t from)
{
	struct hmm_stream *s = &mm->stream[which];
	uint64_t asked;

	if (!mm->h->ahead)
		return;
	pthread_mutex_lock(&mm->stream_lock);
	if (s->fetched > from)
		from = s->fetched;
	pthread_mutex_unlock(&mm->stream_lock);
	asked = hmm_ahead_ask(mm, from, page);
	pthread_mutex_lock(&mm->stream_lock);
	if (asked > from && s->last == page)
		s->fetched = asked;
	pthread_mutex_unlock(&mm->stream_lock);
}

static void stream_advance(struct hmm_mm *mm, unsigned which, uint64_t page, uint64_t placed, int step)
{
	struct hmm_stream *s = &mm->stream[which];

	pthread_mutex_lock(&mm->stream_lock);
	if (s->next == page + 1) {
		s->walked += placed - 1;
		s->last = page + (placed - 1) * (uint64_t)step;
		if (step == 1) {
			s->next = page + placed;
			s->ahead = 0;
		}
	}
	pthread_mutex_unlock(&mm->stream_lock);
}

static void wake(struct hmm_mm *mm, uint64_t addr, uint64_t len)
{
	umm_uffd_wake(mm->space->uffd, addr, len);
}

/*
 * An entry whose page is back; how soon after it went says how hot it is.  Only what
 * comes back in an eighth of a lap is: of pages that are all alike an eighth does.
 */
static hmm_entry_t entry_back(struct hmm_mm *mm, hmm_entry_t e, bool touched)
{
	static const uint8_t heat[HMM_LAP_TICKS / 8] = {HMM_HEAT_MAX, 5, 3, 3, 1, 1, 1, 1};
	unsigned ticks = (atomic_load(&mm->tick) - hmm_entry_tick(e)) & (HMM_TICKS - 1);

	return hmm_entry(HMM_SYSTEM, 0, 0, touched && ticks < HMM_LAP_TICKS / 8 ? heat[ticks] : 0);
}

/* The same, of a page that @kept, a CLEAN entry or 0, is a copy of. */
static hmm_entry_t entry_back_clean(struct hmm_mm *mm, hmm_entry_t e, hmm_entry_t kept, bool touched)
{
	hmm_entry_t back = entry_back(mm, e, touched);

	return kept ? hmm_entry_with_heat(kept, hmm_entry_heat(back)) : back;
}

void hmm_account_in(struct hmm_mm *mm, uint64_t n)
{
	atomic_fetch_add(&mm->pages_in, n);
	atomic_fetch_add(&mm->h->pages_in, n);
	atomic_fetch_add(&mm->h->estimate, n * UMM_PAGE);
}

/* Event lock shared.  What a place that did not succeed means for who waits. */
static int place_failed(struct hmm_mm *mm, uint64_t addr, int rc)
{
	if (rc == -EAGAIN || rc == -ESRCH)
		return rc;
	if (rc == -ENOMEM)
		sched_yield();
	/* EEXIST: somebody was faster.  ENOENT: no mapping any more.  Either way they look again. */
	wake(mm, addr, UMM_PAGE);
	return rc == -ENOMEM ? rc : 0;
}

/* Places what of @n pages lies in the first one's mapping: what was one when it went may be several now. */
static int place(struct hmm_mm *mm, uint64_t addr, const char *src, unsigned n, bool unwritten, uint64_t *bytes)
{
	int rc;

	do {
		rc = unwritten ? umm_uffd_copy_unwritten(mm->space->uffd, addr, src, n * UMM_PAGE, bytes)
			       : umm_uffd_copy(mm->space->uffd, addr, src, n * UMM_PAGE, bytes);
	} while (rc == -ENOENT && !*bytes && (n /= 2));
	return rc;
}

/*
 * How many of @n pages from @addr on have nothing in the page table.  COPY
 * silently replaces markers: a guard region (MADV_GUARD_INSTALL) that lies
 * ahead must not be filled for a fault before it.
 */
static int plain_holes(struct hmm_mm *mm, uint64_t addr, unsigned n)
{
	struct umm_page_run first;
	uint64_t walked;
	int rc = umm_page_scan(mm->space, addr, addr + n * UMM_PAGE, &first, 1, &walked);

	if (!rc && walked >= addr + n * UMM_PAGE)
		return (int)n;
	return rc == 1 ? (int)((first.start - addr) / UMM_PAGE) : rc < 0 ? rc : 1;
}

/*
 * Of @n pages that are away, how many from @addr on can be placed: of the touched
 * one the kernel has just said so.  0: it is a guard region now, and has dropped
 * what was there.  In one's own process there are markers of our own (linked.c);
 * whose page map is not known, who came by a raw fork, is not looked at.
 */
static unsigned placeable(struct hmm_mm *mm, uint64_t addr, unsigned n, bool touched)
{
	int plain;

	if (mm->h->opt.linked || (touched && n == 1))
		return n;
	plain = plain_holes(mm, addr, n);
	return plain < 0 ? n : plain || !touched ? (unsigned)plain : 1;
}

/*
 * What is not placeable(), or COPY says to exist, is there, or a guard region, and
 * newer than what we have; if nothing is under way: who looks before an event was
 * read may find what was mapped after it.  The kernel says that when it is asked to
 * place something.  What we have is not let go of on one word: COPY gives EEXIST as
 * well where it finds the page table gone that it has just seen (mfill_atomic() in
 * the kernel), and who touched the page then would have zeros.
 *
 * The look comes first.  It waits for the lock of the address space, under which
 * every change is counted, and no event is read meanwhile: what it finds of a change,
 * the kernel says afterwards.  Asked the other way round, one may begin in between.
 */
int hmm_taken_or_changing(struct hmm_mm *mm, uint64_t addr)
{
	return plain_holes(mm, addr, 1) == 1 || umm_uffd_is_changing(mm->space->uffd) ? -EAGAIN : -EEXIST;
}

static int fill_zero(struct hmm_mm *mm, uint64_t addr, unsigned n, bool write, uint64_t *placed)
{
	uint64_t bytes = 0;
	int rc, plain = write && n > 1 ? plain_holes(mm, addr, n) : 1;

	if (!write)
		rc = umm_uffd_zeropage(mm->space->uffd, addr, UMM_PAGE, &bytes);
	else
		rc = place(mm, addr, zeros, plain > 1 ? (unsigned)plain : 1, false, &bytes);
	/* Where a page was away there may be a marker (linked.c), which the zero page does not replace. */
	if (rc == -EEXIST && !write && mm->h->opt.linked)
		rc = umm_uffd_copy(mm->space->uffd, addr, zeros, UMM_PAGE, &bytes);
	*placed = bytes / UMM_PAGE;
	if (bytes) {
		umm_quarantine_filled(mm->space, addr, addr + bytes);
		atomic_fetch_add(&mm->zero_filled, *placed);
		atomic_fetch_add(&mm->h->zero_filled, *placed);
		if (write)
			atomic_fetch_add(&mm->h->estimate, bytes);
		return 0;
	}
	return place_failed(mm, addr, rc);
}

static void say_lost(struct hmm_mm *mm, uint64_t addr, unsigned tier, int why)
{
	const char *spec = mm->h->chain.dev[tier]->spec;

	if (why != -ENOTCONN)
		hmm_say(mm->h, "page %#llx of process %d is lost: device %s %s; an access gets SIGBUS",
			(unsigned long long)addr, (int)mm->space->pid, spec,
			why == -EBADMSG ? "returned data with a wrong checksum" : "could not read it");
	else if (!(atomic_fetch_or(&mm->lost_peers, 1u << tier) & 1u << tier))
		/* One line for all of them: there may be very many. */
		hmm_say(mm->h,
			"pages of process %d are lost, the first one touched is %#llx: device %s has lost its peer; an "
			"access gets SIGBUS",
			(int)mm->space->pid, (unsigned long long)addr, spec);
}

/*
 * A page that no device can give back: whoever touches it gets SIGBUS, never
 * something else.  Said first: who touches it next may be dead of it before we
 * run on.  Once, though a change that is under way makes us come again.
 */
static int poison(struct hmm_mm *mm, struct hmm_leaf *leaf, unsigned i, int why)
{
	hmm_entry_t e = leaf->e[i];
	uint64_t addr = leaf->base + i * UMM_PAGE;
	hmm_handle_t handle = hmm_entry_payload(e);
	struct hmm_device *d = mm->h->chain.dev[hmm_entry_tier(e)];
	int rc;

	if (atomic_exchange(&mm->lost_said, addr) != addr) {
		atomic_fetch_add(&mm->h->poisoned, 1);
		say_lost(mm, addr, hmm_entry_tier(e), why);
	}
	rc = umm_uffd_poison(mm->space->uffd, addr, UMM_PAGE);
	if (rc == -EAGAIN || rc == -ESRCH)
		return rc;
	hmm_entry_set(mm, leaf, i, hmm_entry(HMM_POISONED, 0, 0, 0));
	d->ops->put(d, &handle, 1);
	if (rc && rc != -EEXIST)
		mm->h->opt.fatal(mm->h->opt.priv, mm, "a lost page could not be poisoned");
	wake(mm, addr, UMM_PAGE);
	return 0;
}

struct run {
	unsigned n;
	int step; /* pages from one to the next */
	hmm_entry_t e[HMM_PLACE_MAX];
	hmm_handle_t handle[HMM_PLACE_MAX];
	int status[HMM_PLACE_MAX];
};

/* The index in its leaf of a run's page @k, when @i is the first's; HMM_LEAF_PAGES: it is in another leaf. */
static unsigned run_index(const struct run *r, unsigned i, unsigned k)
{
	int at = (int)i + (int)k * r->step;

	return at >= 0 && at < (int)HMM_LEAF_PAGES ? (unsigned)at : HMM_LEAF_PAGES;
}

/* Pages of one tier from @i on, r->step from one to the next.  Leaf lock held. */
static void run_take(struct hmm_mm *mm, struct hmm_leaf *leaf, unsigned i, unsigned max, bool touched, struct run *r)
{
	unsigned at;

	unsigned tier = hmm_entry_tier(leaf->e[i]);
	struct hmm_device *d = mm->h->chain.dev[tier];

	/* A driver's pages leave its device when they are touched, not before, if it does not say otherwise. */
	if (touched && mm->h->opt.linked && !(d->ops->caps & HMM_DEV_AHEAD))
		max = 1;
	r->n = 0;
	while (r->n < max && (at = run_index(r, i, r->n)) < HMM_LEAF_PAGES) {
		hmm_entry_t e = leaf->e[at];

		if (hmm_entry_state(e) != HMM_DEVICE || hmm_entry_tier(e) != tier)
			break;
		r->e[r->n] = e;
		r->handle[r->n++] = hmm_entry_payload(e);
	}
	d->ops->get(d, r->handle, r->n);
}

enum why { NOT_TOUCHED, AHEAD, TOUCHED, TOUCHED_FOR_WRITING };

/*
 * Places @n pages of a run that are not neighbours, the one that was touched last:
 * who waits for it then finds the others.  Returns as place() does of the first,
 * and in @placed, a bit each, which went; what did not keeps its state.
 */
static int place_steps(struct hmm_mm *mm, uint64_t addr, const char *src, const struct run *r, unsigned n,
		       uint64_t *placed)
{
	uint64_t bytes;
	int rc = 0;

	*placed = 0;
	for (unsigned k = n; k-- > 0;) {
		uint64_t at = addr + (uint64_t)((int64_t)k * r->step) * UMM_PAGE;

		bytes = 0;
		if (k && !placeable(mm, at, 1, false))
			continue;
		rc = umm_uffd_copy(mm->space->uffd, at, src + k * UMM_PAGE, UMM_PAGE, &bytes);
		*placed |= (uint64_t)(bytes != 0) << k;
		if (rc == -EAGAIN || rc == -ESRCH)
			break;
	}
	return rc;
}

/*
 * Bring back what is away at @addr and up to @max pages from there, each @step
 * from the one before.
 * Returns pages placed, 0 when nothing was away or who waits was woken,
 * -EAGAIN, -ESRCH, -ENOMEM.  @system: the page was found to be SYSTEM.
 */
static int bring_back(struct hmm_mm *mm, uint64_t addr, unsigned max, int step, enum why why, bool *system)
{
	char buf[HMM_PLACE_MAX * UMM_PAGE] __attribute__((aligned(4096)));
	struct umm_evlock *evlock = &mm->space->ctl->evlock;
	unsigned i = hmm_leaf_index(addr);
	struct hmm_leaf *leaf;
	bool touched = why >= TOUCHED;
	struct run r = {.step = step};
	int rc = 0;

	*system = false;
again:
	umm_evlock_shared(evlock);
	leaf = hmm_leaf_find(mm, addr);
	if (!leaf) {
		*system = true;
		umm_evlock_unshared(evlock);
		return 0;
	}
	pthread_mutex_lock(&leaf->lock);
	hmm_entry_t e = leaf->e[i];
	switch (hmm_entry_state(e)) {
	case HMM_SYSTEM:
	case HMM_CLEAN:
		*system = true;
		break;
	case HMM_PARKING:
		mm->slot[hmm_entry_payload(e) >> 16 & (UMM_BATCHES - 1)][hmm_entry_payload(e) & 0xffff].wake = true;
		break;
	case HMM_PARKED: {
		unsigned b = hmm_entry_payload(e) >> 16 & (UMM_BATCHES - 1), s = hmm_entry_payload(e) & 0xffff;
		uint64_t bytes = 0;

		rc = placeable(mm, addr, 1, touched)
			     ? umm_uffd_copy(mm->space->uffd, addr, hmm_slot_page(mm, b, s), UMM_PAGE, &bytes)
			     : -EEXIST;
		if (rc == -EEXIST && !bytes)
			rc = hmm_taken_or_changing(mm, addr);
		if (bytes || rc == -EEXIST) {
			hmm_entry_set(mm, leaf, i, entry_back_clean(mm, e, mm->slot[b][s].clean, touched));
			mm->slot[b][s].clean = 0;
			mm->slot[b][s].addr = 0;
			hmm_account_in(mm, 1);
		}
		rc = bytes ? 1 : place_failed(mm, addr, rc);
		break;
	}
	case HMM_POISONED:
		/* A forked child whose records were led back (overtaken.c) has no marker yet. */
		rc = umm_uffd_poison(mm->space->uffd, addr, UMM_PAGE);
		if (rc == -EAGAIN || rc == -ESRCH)
			break;
		rc = 0;
		wake(mm, addr, UMM_PAGE);
		break;
	case HMM_DEVICE:
		run_take(mm, leaf, i, max, touched, &r);
		pthread_mutex_unlock(&leaf->lock);
		umm_evlock_unshared(evlock);
		goto device;
	}
	pthread_mutex_unlock(&leaf->lock);
	umm_evlock_unshared(evlock);
	return rc;

device:;
	struct hmm_device *d = mm->h->chain.dev[hmm_entry_tier(r.e[0])];
	void *dst[HMM_PLACE_MAX];
	unsigned good, same;
	uint64_t bytes = 0;

	/* By way of a buffer, also where the device's memory could be read: what is in the cache is placed sooner. */
	for (unsigned k = 0; k < r.n; k++)
		dst[k] = buf + k * UMM_PAGE;
	if ((d->ops->caps & (HMM_DEV_MAYBLOCK | HMM_DEV_TELLS)) == HMM_DEV_MAYBLOCK)
		umm_monitor_yield();
	d->ops->copy_out(d, r.handle, dst, r.status, r.n);
	for (good = 0; good < r.n && !r.status[good];)
		good++;

	umm_evlock_shared(evlock);
	leaf = hmm_leaf_find(mm, addr); /* an event may have freed or moved what was there */
	if (leaf)
		pthread_mutex_lock(&leaf->lock);
	for (same = 0; leaf && same < r.n && leaf->e[run_index(&r, i, same)] == r.e[same];)
		same++;
	if (same && r.status[0]) {
		rc = why == AHEAD ? r.status[0] : poison(mm, leaf, i, r.status[0]);
	} else if (same) {
		unsigned n = good < same ? good : same, came = 0;
		bool keep = hmm_clean_keeps(mm, hmm_entry_tier(r.e[0]), step == 1 ? max : 1);
		hmm_handle_t gone[HMM_PLACE_MAX];
		uint64_t placed;

		if (step == 1) {
			n = placeable(mm, addr, n, touched);
			rc = n ? place(mm, addr, buf, n,
				       (d->ops->caps & HMM_DEV_KEEPS) && why != TOUCHED_FOR_WRITING &&
					       mm->h->opt.linked,
				       &bytes)
			       : -EEXIST;
			n = (unsigned)(bytes / UMM_PAGE);
			placed = n == HMM_PLACE_MAX ? ~0ull : (1ull << n) - 1;
		} else {
			rc = place_steps(mm, addr, buf, &r, n, &placed);
		}
		for (unsigned k = 0; k < n; k++) {
			hmm_entry_t kept = hmm_entry(HMM_CLEAN, hmm_entry_tier(r.e[k]), r.handle[k], 0);

			if (!(placed >> k & 1))
				continue;
			hmm_entry_set(mm, leaf, run_index(&r, i, k),
				      entry_back_clean(mm, r.e[k], keep ? kept : 0, touched && !k));
			gone[came++] = r.handle[k];
		}
		if (came) {
			if (!keep)
				d->ops->put(d, gone, came);
			hmm_account_in(mm, came);
		}
		if (rc == -EEXIST && !(placed & 1))
			rc = hmm_taken_or_changing(mm, addr);
		if (placed & 1) {
			rc = (int)came;
		} else if (rc == -EEXIST) {
			/* Present, against our record, or a guard region: what is there is newer. */
			hmm_entry_set(mm, leaf, i, 0);
			d->ops->put(d, r.handle, 1);
			wake(mm, addr, UMM_PAGE);
			rc = 0;
		} else {
			rc = place_failed(mm, addr, rc);
		}
	}
	if (leaf)
		pthread_mutex_unlock(&leaf->lock);
	umm_evlock_unshared(evlock);
	explicit_bzero(buf, r.n * UMM_PAGE); /* on a stack of ours it would outlive the program */
	d->ops->put(d, r.handle, r.n);       /* the references taken for the copy */
	if (!same)
		goto again;
	return rc;
}

int hmm_bring_ahead(struct hmm_mm *mm, uint64_t addr, unsigned max)
{
	bool system;

	return bring_back(mm, addr, max, 1, AHEAD, &system);
}

/* What /proc/TID/status says of @tid by @form; 0: nothing. */
static pid_t status_of(pid_t tid, const char *form)
{
	char path[64], line[128];
	int pid = 0;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/status", (int)tid);
	f = fopen(path, "re");
	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, form, &pid) == 1)
			break;
	if (f)
		fclose(f);
	return pid;
}

#define ASK_MAX 4u

/*
 * The process of @tid, which lives in @mm: the thread may end long before it does.
 * But whoever came by vfork(), or by CLONE_VM, lives in its parent's memory, which
 * mostly stays for longer.  -EAGAIN: a change of the space is under way.
 */
static pid_t process_of(struct hmm_mm *mm, pid_t tid)
{
	pid_t pid = status_of(tid, "Tgid: %d"), up;

	while (pid > 0 && (up = status_of(pid, "PPid: %d")) > 1) {
		int rc = mm->h->opt.lives_in(mm->h->opt.priv, mm, up);

		if (rc == -EAGAIN)
			return rc;
		if (rc <= 0)
			break;
		pid = up;
	}
	return pid;
}

/*
 * A space that came by a raw fork has no agent: who faults in it may say which
 * process it is.  May, because the number is one of the faulting task's own pid
 * namespace, and because others than those who live in it can fault in a space.
 * When that process has ended and others live on there the next fault tells which.
 */
static void learn_pid(struct hmm_mm *mm, uint32_t tid)
{
	static const char *const what[] = {"stat", "statm", "smaps_rollup", "smaps"};
	_Atomic int *fd[] = {&mm->stat_fd, &mm->statm_fd, &mm->rollup_fd, &mm->smaps_fd};
	char path[64];
	pid_t pid;
	int rc;

	unsigned asked = atomic_load(&mm->asked);

	do {
		if (!mm->h->opt.lives_in || asked >= ASK_MAX)
			return;
	} while (!atomic_compare_exchange_weak(&mm->asked, &asked, asked + 1));
	rc = mm->h->opt.lives_in(mm->h->opt.priv, mm, (pid_t)tid);
	if (rc > 0)
		rc = pid = process_of(mm, (pid_t)tid);
	if (rc == -EAGAIN)
		atomic_fetch_sub(&mm->asked, 1);
	if (rc <= 0)
		return;
	pthread_mutex_lock(&mm->lock);
	if (mm->statm_fd < 0 || (atomic_load(&mm->pid_ended) && atomic_load(&mm->pid_learned))) {
		mm->space->pid = pid;
		for (unsigned i = 0; i < sizeof(fd) / sizeof(fd[0]); i++) {
			snprintf(path, sizeof(path), "/proc/%d/%s", (int)pid, what[i]);
			umm_fd_replace(fd[i], open(path, O_RDONLY | O_CLOEXEC));
		}
		atomic_store(&mm->pid_learned, true);
		atomic_store(&mm->pid_ended, false);
	}
	pthread_mutex_unlock(&mm->lock);
}

/*
 * The inside asks for a page that it is about to move, and it is not there: a
 * hole then, since nobody else moves pages.  Others that find a page PARKING
 * wait until the inside is through; it cannot wait for itself.
 */
static bool fault_of_inside(struct hmm_mm *mm, const struct umm_fault *f, int *rc)
{
	struct umm_evlock *evlock = &mm->space->ctl->evlock;
	struct hmm_leaf *leaf;
	bool mine = false;
	uint64_t placed;

	if (!f->tid || f->tid != atomic_load(&mm->space->ctl->populating))
		return false;
	umm_evlock_shared(evlock);
	leaf = hmm_leaf_find(mm, f->addr);
	if (leaf) {
		pthread_mutex_lock(&leaf->lock);
		mine = hmm_entry_state(leaf->e[hmm_leaf_index(f->addr)]) == HMM_PARKING;
		if (mine)
			*rc = fill_zero(mm, f->addr, 1, true, &placed);
		pthread_mutex_unlock(&leaf->lock);
	}
	umm_evlock_unshared(evlock);
	return mine;
}

void hmm_device_sleeps(void)
{
	umm_monitor_yield();
}

int hmm_fault(void *priv, const struct umm_fault *f)
{
	struct hmm_mm *mm = priv;
	bool write = f->flags & UFFD_PAGEFAULT_FLAG_WRITE, system, block;
	unsigned which = 0, n;
	uint64_t placed = 0;
	int rc, step;

	if (f->addr >= mm->keep_start && f->addr < mm->keep_end && mm->h->opt.called)
		return mm->h->opt.called(mm->h->opt.priv, mm, f->addr);
	if ((mm->statm_fd < 0 || atomic_load(&mm->pid_ended)) && f->tid)
		learn_pid(mm, f->tid);
	if (atomic_load(&mm->doomed)) {
		hmm_mm_kill(mm);
		return 0; /* it waits until it is dead: it must not go on with what it would find */
	}
	if (fault_of_inside(mm, f, &rc))
		return rc == -EAGAIN ? rc : 0;
	hmm_overtaken_age(mm);
	n = stream_size(mm, f->addr >> UMM_PAGE_SHIFT, &which, &step, &block);
	if (mm->h->opt.linked && step != 1) { /* a driver is asked for what was touched, or what follows it */
		step = 1;
		n = 1;
	}

	atomic_fetch_add(&mm->faults, !f->again);
	atomic_fetch_add(&mm->h->faults, !f->again);
	bool comes = hmm_ahead_comes(mm, f->addr);
	if (step == 1 && n == mm->h->cluster_max) {
		unsigned left = HMM_LEAF_PAGES - hmm_leaf_index(f->addr);

		stream_ahead(mm, which, f->addr >> UMM_PAGE_SHIFT,
			     (f->addr >> UMM_PAGE_SHIFT) + (comes      ? 1
							    : left < n ? left
								       : n));
	}
	if (comes)
		return 0;
	hmm_budget_charge(mm, n);
	if (block) {
		placed = mm->h->opt.block(mm, f->addr);
		if (placed) {
			stream_advance(mm, which, f->addr >> UMM_PAGE_SHIFT, placed, step);
			return 0;
		}
	}
	rc = bring_back(mm, f->addr, n, step, write ? TOUCHED_FOR_WRITING : TOUCHED, &system);
	if (rc > 0)
		placed = (uint64_t)rc;
	if (rc < 0)
		return rc == -EAGAIN ? rc : 0;
	if (system) {
		struct umm_evlock *evlock = &mm->space->ctl->evlock;
		struct hmm_leaf *leaf;
		unsigned i = hmm_leaf_index(f->addr), k = 0;

		/* Under the lock, look again: only pages that are not away may be filled with zeros. */
		umm_evlock_shared(evlock);
		leaf = hmm_leaf_get(mm, f->addr);
		if (!leaf) {
			/* Of what mremap() has taken beyond all records nothing is away: that is refused it. */
			rc = f->addr < HMM_ADDR_END ? 0 : fill_zero(mm, f->addr, 1, write, &placed);
			umm_evlock_unshared(evlock);
			if (f->addr < HMM_ADDR_END)
				wake(mm, f->addr, UMM_PAGE);
			return rc == -EAGAIN ? rc : 0;
		}
		/* It was away when it was asked for, and was dropped since. */
		if (mm->h->opt.not_zeros && mm->h->opt.not_zeros(mm, f->addr, f->addr + UMM_PAGE)) {
			umm_evlock_unshared(evlock);
			return -EAGAIN;
		}
		pthread_mutex_lock(&leaf->lock);
		if (mm->h->opt.linked || step != 1)
			n = 1;
		while (k < n && i + k < HMM_LEAF_PAGES && hmm_entry_here(leaf->e[i + k]))
			k++;
		if (k)
			rc = fill_zero(mm, f->addr, k, write, &placed);
		for (unsigned j = 0; j < placed; j++) {
			/* It was not there any more: what the device has is of no use. */
			if (hmm_entry_state(leaf->e[i + j]) == HMM_CLEAN)
				hmm_clean_forget(mm, leaf, i + j);
		}
		pthread_mutex_unlock(&leaf->lock);
		umm_evlock_unshared(evlock);
		if (!k || rc == -EAGAIN)
			return -EAGAIN; /* it went away in between: from the look-up */
	}
	if (placed > 1)
		stream_advance(mm, which, f->addr >> UMM_PAGE_SHIFT, placed, step);
	return 0;
}

/* It could not be placed, though something is mapped there: not where we may place anything. */
static bool unreachable(struct hmm_mm *mm, uint64_t addr, enum hmm_page_state st)
{
	struct umm_vma v;

	return (st == HMM_DEVICE || st == HMM_PARKED) && !umm_vma_next(mm->space, addr, &v) && v.start <= addr;
}

/* What the record of @addr is just now.  False: the leaf has none any more. */
static bool look(struct hmm_leaf *leaf, uint64_t addr, hmm_entry_t *e)
{
	bool any;

	pthread_mutex_lock(&leaf->lock);
	*e = leaf->e[hmm_leaf_index(addr)];
	any = leaf->held;
	pthread_mutex_unlock(&leaf->lock);
	return any;
}

int hmm_restore(struct hmm_mm *mm, uint64_t start, uint64_t end)
{
	return hmm_restore_from(mm, start, end, ~0u, NULL);
}

int hmm_bring_back(struct hmm_mm *mm, uint64_t start, uint64_t end,
		   int (*restore)(struct hmm_mm *mm, uint64_t start, uint64_t end))
{
	int rc;

	pthread_mutex_lock(&mm->out_lock);
	rc = restore(mm, start, end);
	/* From now on: that may have taken longer than a quarantine lasts. */
	umm_quarantine_end(mm->space, start, end);
	umm_quarantine_add(mm->space, start, end);
	pthread_mutex_unlock(&mm->out_lock);
	return rc;
}

int hmm_restore_from(struct hmm_mm *mm, uint64_t start, uint64_t end, unsigned tiers, uint64_t *placed)
{
	struct hmm_leaf *leaf;
	unsigned starved = 0;

	for (uint64_t at = start; (leaf = hmm_leaf_next(mm, at, end)) && !atomic_load(&mm->dead);) {
		uint64_t a = leaf->base > start ? leaf->base : start;
		uint64_t z = leaf->base + (1ull << HMM_LEAF_SHIFT);

		at = z;
		if (z > end)
			z = end;
		for (hmm_entry_t e, now; a < z && look(leaf, a, &e);) {
			enum hmm_page_state st = hmm_entry_state(e);
			uint64_t left = (z - a) / UMM_PAGE;
			bool system;

			if (hmm_entry_here(e) ||
			    (tiers != ~0u && (st != HMM_DEVICE || !(tiers & 1u << hmm_entry_tier(e))))) {
				a += UMM_PAGE;
				continue;
			}
			int rc = bring_back(mm, a, left < HMM_PLACE_MAX ? (unsigned)left : HMM_PLACE_MAX, 1,
					    NOT_TOUCHED, &system);
			if (rc == -EAGAIN) {
				umm_space_drain(mm->space);
				sched_yield();
				continue;
			}
			if (rc == -ENOMEM && ++starved < RESTORE_TRIES)
				continue;
			if (!rc && look(leaf, a, &now) && now == e && unreachable(mm, a, st)) {
				if (++starved == RESTORE_TRIES)
					return -EFAULT;
				umm_space_drain(mm->space);
				continue;
			}
			if (rc < 0)
				return rc; /* who asked must not go on as if all were back */
			if (placed)
				*placed += (uint64_t)rc;
			a += rc > 0 ? (uint64_t)rc * UMM_PAGE : UMM_PAGE;
		}
	}
	return 0;
}

uint64_t hmm_moves_now(struct hmm_mm *mm)
{
	uint64_t moves;

	umm_evlock_shared(&mm->space->ctl->evlock);
	moves = mm->moves;
	umm_evlock_unshared(&mm->space->ctl->evlock);
	return moves;
}

bool hmm_moves_settled(struct hmm_mm *mm, uint64_t moves)
{
	return mm->moves == moves && umm_inside_registered(mm->space->uffd, mm->keep_start) != -EAGAIN;
}

int hmm_restore_all(struct hmm_mm *mm)
{
	for (unsigned tries = 0; tries < HMM_MOVES_MAX; tries++) {
		uint64_t moves = hmm_moves_now(mm);
		int rc = hmm_restore(mm, 0, HMM_ADDR_END);

		/* One that is not heard of yet has moved no record: nothing could be placed for those it concerns. */
		if (rc || hmm_moves_now(mm) == moves)
			return rc;
	}
	return -EAGAIN;
}
