/* SPDX-License-Identifier: MIT */
/*
 * Ranges whose contents are about to be dropped.
 *
 * DOC: quarantine
 *
 * The event of MADV_DONTNEED, MADV_FREE and MADV_REMOVE is read *before* the
 * caller drops the pages.  Moved out in between, they would come back later
 * with the old contents; mapped for a device, they would be stale a moment
 * after.  So until they have been dropped nothing in the range is parked and a
 * range fault says -EBUSY.  A fault of the program itself is served as ever:
 * what it finds is absent already, or will be.
 *
 * When they have been dropped shows in the last page of the range that was
 * there when the event was read, the sign: the kernel drops from low to high
 * addresses, so once the sign has gone, all has that was there.  It has gone when
 * the page map says so, or when somebody's touch of it was served in the meantime.
 *
 * Above it there may be what was touched since, which goes, too, and a mirror must
 * not have it.  Who has dropped the sign has the lock of the address space until
 * all is dropped, so a moment in which nobody has it is waited for.  MADV_REMOVE,
 * of shared memory, has it not, but keeps faults away from what it drops: there
 * nothing may be left above the sign.  (Of another address space that moment cannot
 * be had.  There nobody mirrors; and a page that is moved out with what was written
 * to it after the event is none of those that were to go.)
 *
 * If
 * nothing was there, nothing is to go, and there is no quarantine at all: but for
 * mirrors, who might have pages that are touched there and are dropped a moment
 * later.
 *
 * A sign that was unmapped or moved by another thread is absent, too, and says
 * nothing of the pages below it.  Its event makes one of those the sign.  Until
 * that has been read the kernel says that a change is under way, and while it is
 * being applied its reader has the event lock; neither of which is a time to
 * believe what the page map says.
 *
 * Pages that we ask for may come in behind the sign just when it is chosen.  While
 * that may be, no sign counts, and afterwards the last of those pages is the sign.
 *
 * A call that went through a hook ends its quarantine when the hook ends; but not
 * that of a range which another call has met.  An event does not say whose it is:
 * it is the hooked call's where it is the only one that met its range since that
 * call began.  (What another has told of may be all that there is by then: the
 * quarantine of ours ends with a touch.)
 *
 * Of what is dropped untold the call that a hook stands around holds one of its own, without an
 * end of its own: it becomes part of no other, and ends with the call, however long that takes.
 *
 * A sign may never go (MADV_FREE leaves pages where they are) or come back
 * unseen (where touches are not told to us): a grace period ends what no sign
 * does.  Who watches only must not wait for long, so that is shorter there.  Who drops
 * may be held up for longer: so who must not miss it can ask for the last ranges of which
 * that is so, as long as the sign of each is there.
 */
#include "umm/clock.h"
#include "umm/internal.h"

#include <string.h>
#include <time.h>
#include <unistd.h>

#define GRACE_NS 2000000000ull
#define GRACE_WATCHED_NS 500000000ull
#define NO_SIGN 0ull
#define LATE_TOLD 8u /* times */

/* The last page of [start, end) that is present or swapped.  0: there is none; -ENOENT: that cannot be told. */
static int last_page(struct umm_space *s, uint64_t start, uint64_t end, uint64_t *page)
{
	uint64_t step = 64 * UMM_PAGE;

	*page = NO_SIGN;
	if (s->pagemap_fd < 0)
		return -ENOENT;
	for (uint64_t z = end; z > start; step *= 8) {
		uint64_t a = z - start > step ? z - step : start, walked = a;
		struct umm_page_run runs[16];

		while (walked < z) {
			int n = umm_page_scan(s, walked, z, runs, 16, &walked);

			if (n < 0)
				return -ENOENT;
			if (n)
				*page = runs[n - 1].end - UMM_PAGE;
			else
				break;
		}
		if (*page)
			return 0;
		z = a;
	}
	return 0;
}

static bool page_is_absent(struct umm_space *s, uint64_t page)
{
	uint64_t e;

	return s->pagemap_fd >= 0 &&
	       pread(s->pagemap_fd, &e, sizeof(e), (off_t)(page / UMM_PAGE * sizeof(e))) == sizeof(e) && !(e >> 62 & 3);
}

static bool is_being_applied(const struct umm_space *s)
{
	return s->ctl && atomic_load(&s->ctl->evlock.word) & UMM_EVLOCK_EXCL;
}

/* The sign has gone.  Who has dropped it, of pages of our own address space, is through with the rest. */
static bool dropper_is_through(struct umm_space *s, const struct umm_quarantine_range *r)
{
	uint64_t above, from = r->sign + UMM_PAGE;
	struct umm_vma v;

	if (!s->self)
		return true;
	sys1(SYS_brk, 0); /* changes nothing, and waits for who reads the address space */
	if (from >= r->end || umm_vma_next(s, r->sign, &v) || v.start > r->sign || !(v.flags & UMM_VMA_SHARED))
		return true;
	return !last_page(s, from, r->end, &above) && above == NO_SIGN;
}

/* @reader: the caller reads events, and has made known what it has read. */
static bool has_gone(struct umm_space *s, const struct umm_quarantine_range *r, bool reader)
{
	/* In this order. */
	return r->sign != NO_SIGN && !atomic_load(&s->quarantine.populating) &&
	       (r->touched || page_is_absent(s, r->sign)) && !umm_uffd_is_changing(s->uffd) &&
	       (reader || !is_being_applied(s)) && dropper_is_through(s, r);
}

static bool is_over(struct umm_space *s, const struct umm_quarantine_range *r, uint64_t now, bool reader)
{
	return r->until_ns <= now || has_gone(s, r, reader);
}

/*
 * Lock held.  Of one that is over.  If nobody has asked while it was not, it is likely to have gone as others do, and
 * to have been touched again unseen.  Where nothing was there nothing was to go.  The oldest makes room.
 */
static void note_late(struct umm_space *s, const struct umm_quarantine_range *r, uint64_t now)
{
	struct umm_quarantine *q = &s->quarantine;
	unsigned n = q->nlate;

	if (!s->self || r->until_ns > now || !r->seen || r->touched || (r->sign == NO_SIGN && !r->mixed))
		return;
	if (n == UMM_QUARANTINES_LATE)
		memmove(q->late, q->late + 1, --n * sizeof(q->late[0]));
	q->late[n] = (struct umm_quarantine_late){r->start, r->end, r->sign, 0};
	atomic_store(&q->nlate, n + 1);
}

static void add(struct umm_space *s, struct umm_quarantine_range new, bool reader)
{
	struct umm_quarantine *q = &s->quarantine;
	uint64_t now = umm_now_ns();
	unsigned n = 0;

	new.until_ns = new.held ? UINT64_MAX : now + (s->self ? GRACE_WATCHED_NS : GRACE_NS);
	pthread_mutex_lock(&q->lock);
	for (unsigned i = 0; i < q->n; i++) {
		struct umm_quarantine_range *r = &q->range[i];

		if (is_over(s, r, now, reader)) {
			note_late(s, r, now);
			continue;
		}
		if (!r->held && !new.held &&new.start <= r->end &&new.end >= r->start) {
			/* One that touches the new one becomes part of it; two that drop have no sign in common. */
			new.start = r->start < new.start ? r->start : new.start;
			new.end = r->end > new.end ? r->end : new.end;
			new.sign = NO_SIGN;
			new.mixed = true;
			new.seen |= r->seen;
			continue;
		}
		q->range[n++] = *r;
	}
	if (n == UMM_QUARANTINES) {
		unsigned i = n - 1;

		while (i && q->range[i].held)
			i--;
		struct umm_quarantine_range one = q->range[i], *r = &one;

		/* Too many to tell apart: one that spans the last.  What is held for longer than that no call ends any
		 * more. */
		q->range[i] = q->range[--n];
		new.until_ns = now + (s->self ? GRACE_WATCHED_NS : GRACE_NS);
		new.held = false;
		new.start = r->start < new.start ? r->start : new.start;
		new.end = r->end > new.end ? r->end : new.end;
		new.sign = NO_SIGN;
		new.mixed = true;
		new.seen |= r->seen;
	}
	q->range[n] = new;
	atomic_store(&q->n, n + 1);
	pthread_mutex_unlock(&q->lock);
}

void umm_quarantine_add(struct umm_space *s, uint64_t start, uint64_t end)
{
	add(s, (struct umm_quarantine_range){.start = start, .end = end, .sign = NO_SIGN}, false);
}

void umm_quarantine_hold(struct umm_space *s, uint64_t start, uint64_t end)
{
	add(s, (struct umm_quarantine_range){.start = start, .end = end, .sign = NO_SIGN, .held = true}, false);
}

void umm_quarantine_let_go(struct umm_space *s, uint64_t start, uint64_t end)
{
	struct umm_quarantine *q = &s->quarantine;
	unsigned i = 0;

	pthread_mutex_lock(&q->lock);
	while (i < q->n && !(q->range[i].held && q->range[i].start == start && q->range[i].end == end))
		i++;
	if (i < q->n) {
		q->range[i] = q->range[q->n - 1];
		atomic_store(&q->n, q->n - 1);
	}
	pthread_mutex_unlock(&q->lock);
}

void umm_quarantine_dropping(struct umm_space *s, uint64_t start, uint64_t end)
{
	struct umm_quarantine_range new = {.start = start, .end = end};
	struct umm_quarantine *q = &s->quarantine;

	pthread_mutex_lock(&q->lock);
	q->drop[q->ndrops % UMM_DROPS].start = start;
	q->drop[q->ndrops % UMM_DROPS].end = end;
	q->ndrops++;
	pthread_mutex_unlock(&q->lock);
	if (last_page(s, start, end, &new.sign) || new.sign != NO_SIGN || s->self)
		add(s, new, true);
}

void umm_quarantine_unmapping(struct umm_space *s, uint64_t start, uint64_t end)
{
	struct umm_quarantine *q = &s->quarantine;
	unsigned n = 0;

	if (!atomic_load(&q->n) && !atomic_load(&q->nlate))
		return;
	pthread_mutex_lock(&q->lock);
	for (unsigned i = 0; i < q->nlate; i++)
		if (q->late[i].sign >= start && q->late[i].sign < end)
			q->late[i].sign = NO_SIGN;
	for (unsigned i = 0; i < q->n; i++) {
		struct umm_quarantine_range r = q->range[i];

		if (r.sign != NO_SIGN && !r.touched && r.sign >= start && r.sign < end) {
			/* All above it was gone before. */
			r.end = start;
			if (r.start >= r.end ||
			    (!last_page(s, r.start, r.end, &r.sign) && r.sign == NO_SIGN && !s->self))
				continue;
		}
		q->range[n++] = r;
	}
	atomic_store(&q->n, n);
	pthread_mutex_unlock(&q->lock);
}

void umm_quarantine_filled(struct umm_space *s, uint64_t start, uint64_t end)
{
	struct umm_quarantine *q = &s->quarantine;

	if (!atomic_load(&q->n))
		return;
	pthread_mutex_lock(&q->lock);
	for (unsigned i = 0; i < q->n; i++)
		q->range[i].touched |= q->range[i].sign >= start && q->range[i].sign < end;
	pthread_mutex_unlock(&q->lock);
}

void umm_quarantine_populate_begin(struct umm_space *s)
{
	atomic_fetch_add(&s->quarantine.populating, 1);
}

void umm_quarantine_populate_end(struct umm_space *s, uint64_t start, uint64_t end)
{
	struct umm_quarantine *q = &s->quarantine;
	sigset_t old;

	if (atomic_load(&q->n)) {
		signals_block(&old);
		pthread_mutex_lock(&q->lock);
		for (unsigned i = 0; i < q->n; i++) {
			struct umm_quarantine_range *r = &q->range[i];
			uint64_t last = (end < r->end ? end : r->end) - UMM_PAGE;

			if (start < r->end && end > r->start && r->sign != NO_SIGN && r->sign < last)
				r->sign = last;
		}
		pthread_mutex_unlock(&q->lock);
		signals_restore(&old);
	}
	atomic_fetch_sub(&q->populating, 1);
}

uint64_t umm_quarantine_mark(struct umm_space *s)
{
	return atomic_load(&s->quarantine.ndrops);
}

/* Lock held.  Has one drop met the range since @mark, and no other? */
static bool is_the_only_drop(const struct umm_quarantine *q, uint64_t start, uint64_t end, uint64_t mark)
{
	unsigned met = 0;

	if (q->ndrops - mark > UMM_DROPS)
		return false;
	for (uint64_t i = mark; i < q->ndrops; i++)
		met += q->drop[i % UMM_DROPS].start < end && q->drop[i % UMM_DROPS].end > start;
	return met == 1;
}

/* Lock held. */
static void take_out(struct umm_quarantine *q, uint64_t start, uint64_t end)
{
	unsigned n = 0;

	for (unsigned i = 0; i < q->n; i++)
		if (q->range[i].mixed || q->range[i].held || q->range[i].start != start || q->range[i].end != end)
			q->range[n++] = q->range[i];
	atomic_store(&q->n, n);
	n = 0;
	for (unsigned i = 0; i < q->nlate; i++)
		if (q->late[i].start != start || q->late[i].end != end)
			q->late[n++] = q->late[i];
	atomic_store(&q->nlate, n);
}

void umm_quarantine_end(struct umm_space *s, uint64_t start, uint64_t end)
{
	pthread_mutex_lock(&s->quarantine.lock);
	take_out(&s->quarantine, start, end);
	pthread_mutex_unlock(&s->quarantine.lock);
}

void umm_quarantine_lift(struct umm_space *s, uint64_t start, uint64_t end, uint64_t mark)
{
	struct umm_quarantine *q = &s->quarantine;

	if (!s->ctl)
		return;
	/* The event of this very call may have been read and not yet been entered. */
	umm_evlock_shared(&s->ctl->evlock);
	pthread_mutex_lock(&q->lock);
	if (is_the_only_drop(q, start, end, mark))
		take_out(q, start, end);
	pthread_mutex_unlock(&q->lock);
	umm_evlock_unshared(&s->ctl->evlock);
}

bool umm_quarantined(struct umm_space *s, uint64_t start, uint64_t end)
{
	struct umm_quarantine *q = &s->quarantine;
	bool found = false;
	sigset_t old;

	if (!atomic_load(&q->n))
		return false;
	signals_block(&old);
	pthread_mutex_lock(&q->lock);
	uint64_t now = umm_now_ns();
	unsigned n = 0;
	for (unsigned i = 0; i < q->n; i++) {
		bool meets = start < q->range[i].end && end > q->range[i].start;

		if (q->range[i].until_ns <= now || (meets && is_over(s, &q->range[i], now, false))) {
			note_late(s, &q->range[i], now);
			continue;
		}
		found |= meets;
		q->range[i].seen |= meets;
		q->range[n++] = q->range[i];
	}
	atomic_store(&q->n, n);
	pthread_mutex_unlock(&q->lock);
	signals_restore(&old);
	return found;
}

bool umm_quarantined_before(struct umm_space *s, uint64_t start, uint64_t end)
{
	struct umm_quarantine *q = &s->quarantine;
	bool found = false;
	unsigned n = 0;
	sigset_t old;

	if (!atomic_load(&q->nlate))
		return false;
	signals_block(&old);
	pthread_mutex_lock(&q->lock);
	for (unsigned i = 0; i < q->nlate; i++) {
		struct umm_quarantine_late *l = &q->late[i];
		struct umm_quarantine_range r = {.start = l->start, .end = l->end, .sign = l->sign};

		if (start < l->end && end > l->start) {
			if (l->told == LATE_TOLD || has_gone(s, &r, false))
				continue;
			l->told++;
			found = true;
		}
		q->late[n++] = *l;
	}
	atomic_store(&q->nlate, n);
	pthread_mutex_unlock(&q->lock);
	signals_restore(&old);
	return found;
}
