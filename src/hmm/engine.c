/* SPDX-License-Identifier: MIT */
/* The one engine object, and the spaces that it manages. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "hmm/internal.h"

#define MARKS_TRIES 64u
#define LATER_TRIES 200u /* 10 ms and more, for a change whose event is about to come */
#define SMALL_BUDGET (64ull << 20)
#define SMALL_AHEAD (HMM_PLACE_MAX / 4)

void hmm_deadline(struct timespec *ts, uint64_t ns)
{
	clock_gettime(CLOCK_MONOTONIC, ts);
	ts->tv_sec += (time_t)(((uint64_t)ts->tv_nsec + ns) / 1000000000);
	ts->tv_nsec = (long)(((uint64_t)ts->tv_nsec + ns) % 1000000000);
}

void hmm_say(struct hmm *h, const char *fmt, ...)
{
	char line[512];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(line, sizeof(line), fmt, ap);
	va_end(ap);
	if (h->opt.say)
		h->opt.say(h->opt.priv, line);
}

int hmm_create(const struct hmm_options *opt, struct hmm **hp, char *err, size_t errlen)
{
	struct hmm *h = calloc(1, sizeof(*h));
	pthread_mutexattr_t lock_attr;
	pthread_condattr_t attr;
	int rc;

	if (!h)
		return -ENOMEM;
	h->opt = *opt;
	h->start_ns = umm_now_ns();
	/* It lies on the stack of each thread that serves faults. */
	h->cluster_max = opt->budget && opt->budget < SMALL_BUDGET ? SMALL_AHEAD : HMM_PLACE_MAX;
	/* Of those that take them one may not be kept waiting by whoever else wants a CPU (go_at_once() in budget.c).
	 */
	pthread_mutexattr_init(&lock_attr);
	pthread_mutexattr_setprotocol(&lock_attr, PTHREAD_PRIO_INHERIT);
	pthread_mutex_init(&h->lock, &lock_attr);
	pthread_mutex_init(&h->wait_lock, &lock_attr);
	pthread_mutexattr_destroy(&lock_attr);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&h->want, &attr);
	pthread_cond_init(&h->room, &attr);
	pthread_cond_init(&h->ended, &attr);
	pthread_condattr_destroy(&attr);
	h->self_statm_fd = open("/proc/self/statm", O_RDONLY | O_CLOEXEC);
	rc = opt->chain ? hmm_chain_open(opt->chain, opt->budget, &h->chain, err, errlen) : 0;
	if (rc)
		goto fail;
	rc = opt->linked
		     ? 0
		     : umm_monitor_create(opt->threads ? opt->threads : 2 * (unsigned)sysconf(_SC_NPROCESSORS_ONLN) + 2,
					  true, &h->monitor);
	if (rc) {
		snprintf(err, errlen, "cannot start the threads that serve faults: error %d", -rc);
		goto fail;
	}
	hmm_ahead_start(h);
	*hp = h;
	return 0;
fail:
	hmm_destroy(h);
	return rc;
}

void hmm_destroy(struct hmm *h)
{
	if (!h)
		return;
	hmm_budget_stop(h);
	hmm_ahead_stop(h);
	/* Nobody waits any more for what will not come. */
	pthread_mutex_lock(&h->lock);
	for (struct hmm_mm *mm = h->mms; mm; mm = mm->next)
		atomic_store(&mm->dead, true);
	pthread_mutex_unlock(&h->lock);
	/* Before any of them goes: who applies a fork is using the records of a child that is listed, or will be. */
	if (h->monitor)
		umm_monitor_stop(h->monitor);
	while (h->mms)
		hmm_mm_del(h->mms);
	if (h->monitor)
		umm_monitor_destroy(h->monitor);
	hmm_ahead_free(h);
	hmm_chain_close(&h->chain);
	free(h->demote_buf);
	if (h->self_statm_fd >= 0)
		close(h->self_statm_fd);
	pthread_cond_destroy(&h->ended);
	pthread_cond_destroy(&h->room);
	pthread_cond_destroy(&h->want);
	pthread_mutex_destroy(&h->wait_lock);
	pthread_mutex_destroy(&h->lock);
	free(h);
}

/*
 * DOC: what a child inherits
 *
 * Mappings marked MADV_DONTFORK are not in the child, those marked
 * MADV_WIPEONFORK are empty there.  Only smaps tells which, and at a FORK event
 * it tells too late: the parent goes on as soon as the event has been read, and
 * may have unmapped or moved what was marked.  So the marks are kept besides:
 * read before the first page goes and when the hook of madvise() says that they
 * change, and changed by the events, whose order is the right one.  smaps of
 * now is believed where no change is under way after it was read, because one
 * that came since the fork waits for us; it knows of raw calls, too.
 */
static void marks_forget(struct hmm_mm *mm, uint64_t start, uint64_t end)
{
	pthread_mutex_lock(&mm->lock);
	if (hmm_iset_del(&mm->dontfork, start, end) || hmm_iset_del(&mm->wipeonfork, start, end))
		mm->marks_known = false;
	pthread_mutex_unlock(&mm->lock);
}

/* What was unmapped at the new place has had its event. */
static void marks_follow(struct hmm_mm *mm, struct hmm_iset *set, const struct umm_change *c)
{
	const struct hmm_interval *in;

	/* What is added may touch what it was taken from, and become one with it. */
	for (uint64_t at = c->start; at < c->end && (in = hmm_iset_next(set, at)) && in->start < c->end;) {
		uint64_t start = in->start > at ? in->start : at;
		uint64_t end = in->end < c->end ? in->end : c->end;

		at = end;
		if (hmm_iset_add(set, start - c->start + c->new_start, end - c->start + c->new_start))
			mm->marks_known = false;
	}
}

static void marks_set(struct hmm_mm *mm, const struct hmm_iset *absent, const struct hmm_iset *empty)
{
	int rc = 0;

	pthread_mutex_lock(&mm->lock);
	hmm_iset_clear(&mm->dontfork);
	hmm_iset_clear(&mm->wipeonfork);
	for (unsigned i = 0; i < absent->n && !rc; i++)
		rc = hmm_iset_add(&mm->dontfork, absent->v[i].start, absent->v[i].end);
	for (unsigned i = 0; i < empty->n && !rc; i++)
		rc = hmm_iset_add(&mm->wipeonfork, empty->v[i].start, empty->v[i].end);
	mm->marks_known = !rc;
	atomic_store(&mm->space->ctl->marked, absent->n || empty->n);
	pthread_mutex_unlock(&mm->lock);
}

/* -EAGAIN: what was read has changes in it whose events have not been applied, and would be applied to it again. */
static int marks_read_once(struct hmm_mm *mm)
{
	struct hmm_iset absent = {0}, empty = {0};
	int rc;

	pthread_mutex_lock(&mm->marks_lock);
	umm_evlock_shared(&mm->space->ctl->evlock);
	rc = hmm_find_unforked(mm, &absent, &empty);
	if (!rc && umm_uffd_is_changing(mm->space->uffd))
		rc = -EAGAIN;
	if (!rc)
		marks_set(mm, &absent, &empty);
	umm_evlock_unshared(&mm->space->ctl->evlock);
	pthread_mutex_unlock(&mm->marks_lock);
	hmm_iset_clear(&absent);
	hmm_iset_clear(&empty);
	return rc;
}

static int marks_unknown_if(struct hmm_mm *mm, int rc)
{
	pthread_mutex_lock(&mm->lock);
	if (rc)
		mm->marks_known = false;
	pthread_mutex_unlock(&mm->lock);
	return rc;
}

int hmm_marks_try(struct hmm_mm *mm)
{
	return marks_unknown_if(mm, marks_read_once(mm));
}

int hmm_marks_read(struct hmm_mm *mm)
{
	int rc = -EAGAIN;

	for (unsigned i = 0; i < MARKS_TRIES && (rc = marks_read_once(mm)) == -EAGAIN; i++) {
		umm_space_drain(mm->space);
		/* The changer must run before the kernel says that it is through. */
		nanosleep(&(struct timespec){.tv_nsec = i < 4 ? 0 : 1000000}, NULL);
	}
	return marks_unknown_if(mm, rc);
}

/* What is empty in the child is marked there, too, whether anything was away or not. */
static void marks_inherit(struct hmm_mm *mm, struct hmm_mm *child)
{
	int rc = 0;

	pthread_mutex_lock(&mm->lock);
	for (unsigned i = 0; i < mm->wipeonfork.n && !rc; i++)
		rc = hmm_iset_add(&child->wipeonfork, mm->wipeonfork.v[i].start, mm->wipeonfork.v[i].end);
	child->marks_known = mm->marks_known && !rc;
	pthread_mutex_unlock(&mm->lock);
	atomic_store(&child->space->ctl->marked, child->wipeonfork.n > 0);
}

/* Does the child get anything of what is away in @set?  Event lock held exclusively. */
static bool is_away(struct hmm_mm *mm, const struct hmm_iset *set)
{
	struct hmm_leaf *leaf;

	for (unsigned i = 0; i < set->n; i++) {
		uint64_t end = set->v[i].end;

		for (uint64_t at = set->v[i].start; (leaf = hmm_leaf_next(mm, at, end));
		     at = leaf->base + (1ull << HMM_LEAF_SHIFT)) {
			uint64_t a = leaf->base > at ? leaf->base : at;
			uint64_t z = leaf->base + (1ull << HMM_LEAF_SHIFT);

			for (; leaf->held && a < z && a < end; a += UMM_PAGE)
				if (!hmm_entry_here(leaf->e[hmm_leaf_index(a)]))
					return true;
		}
	}
	return false;
}

/* Adds to @changed where something has gone, or come to lie, since the fork, as far as there are events of it.  0 or
 * -errno. */
static int find_changed(struct hmm_mm *mm, struct hmm_iset *changed, unsigned *nth)
{
	const struct uffd_msg *msg;
	int rc = 0;

	while (!rc && (msg = umm_space_event_behind(mm->space, nth))) {
		if (msg->event == UFFD_EVENT_UNMAP)
			rc = hmm_iset_add(changed, msg->arg.remove.start, msg->arg.remove.end);
		else if (msg->event == UFFD_EVENT_REMAP)
			rc = hmm_iset_add(changed, msg->arg.remap.to, msg->arg.remap.to + msg->arg.remap.len);
	}
	return rc;
}

/* Of @set what is marked in @now, too, and has changed. */
static int leave_out(struct hmm_iset *set, const struct hmm_iset *changed, const struct hmm_iset *now)
{
	const struct hmm_interval *in;
	int rc = 0;

	for (unsigned i = 0; i < changed->n && !rc; i++) {
		uint64_t end = changed->v[i].end;

		for (uint64_t at = changed->v[i].start; !rc && (in = hmm_iset_next(now, at)) && in->start < end;
		     at = in->end)
			rc = hmm_iset_del(set, in->start > at ? in->start : at, in->end < end ? in->end : end);
	}
	return rc;
}

/*
 * Marks as smaps says that they are now, of whom nothing else is known.  What has
 * changed since the fork, and is still marked when smaps is read again, came there
 * marked; what is not was there before, and is marked no more because it is gone.
 *
 * A change that is under way may be nothing but the fork itself, whose caller has not
 * run on yet, so it is waited for within bounds, and only where it could matter.
 */
int hmm_marks_before(struct hmm_mm *mm, struct hmm_iset *absent, struct hmm_iset *empty, hmm_marks_fn find)
{
	struct hmm_iset changed = {.space = empty->space}, absent_now = changed, empty_now = changed;
	bool matters = is_away(mm, absent) || is_away(mm, empty), changing = true;
	unsigned nth = 0;
	int rc = 0;

	for (unsigned i = 0; matters && changing && !rc && i < LATER_TRIES; i++) {
		if (i)
			nanosleep(&(struct timespec){.tv_nsec = 50000}, NULL);
		changing = umm_uffd_is_changing(mm->space->uffd);
		rc = find_changed(mm, &changed, &nth);
	}
	if (!rc && changed.n)
		rc = find(mm, &absent_now, &empty_now);
	if (!rc)
		rc = leave_out(absent, &changed, &absent_now);
	if (!rc)
		rc = leave_out(empty, &changed, &empty_now);
	hmm_iset_clear(&changed);
	hmm_iset_clear(&absent_now);
	hmm_iset_clear(&empty_now);
	return rc;
}

/* At a fork, the event lock held exclusively: what the child has not, and what is empty there.  0 or -errno. */
static int marks_at_fork(struct hmm_mm *mm, struct hmm_iset *absent, struct hmm_iset *empty)
{
	bool known;
	int rc;

	/*
	 * Who came by a raw fork and has not been seen to fault has no smaps that
	 * we know of.  What it inherited was sorted out at its own fork; what it
	 * marked itself since then is not known (doc/differences.md).
	 */
	if (mm->smaps_fd < 0)
		return 0;
	rc = hmm_find_unforked(mm, absent, empty);
	/* Nor has one of whom another process was known, which lived there, too, and has ended. */
	if (rc == -ESRCH && atomic_load(&mm->pid_learned)) {
		hmm_mm_pid_ended(mm);
		return 0;
	}
	pthread_mutex_lock(&mm->lock);
	/* Whoever has no agent has inherited what was known, and marks what it likes: its hooks reach nobody. */
	known = mm->marks_known && atomic_load(&mm->space->ctl->armed);
	pthread_mutex_unlock(&mm->lock);
	if (!known)
		return rc ? rc : hmm_marks_before(mm, absent, empty, hmm_find_unforked);
	if (!rc && !umm_uffd_is_changing(mm->space->uffd)) {
		marks_set(mm, absent, empty);
		return 0;
	}
	rc = 0;
	hmm_iset_clear(absent);
	hmm_iset_clear(empty);
	pthread_mutex_lock(&mm->lock);
	for (unsigned i = 0; i < mm->dontfork.n && !rc; i++)
		rc = hmm_iset_add(absent, mm->dontfork.v[i].start, mm->dontfork.v[i].end);
	for (unsigned i = 0; i < mm->wipeonfork.n && !rc; i++)
		rc = hmm_iset_add(empty, mm->wipeonfork.v[i].start, mm->wipeonfork.v[i].end);
	pthread_mutex_unlock(&mm->lock);
	return rc;
}

static void mm_change(void *priv, const struct umm_change *c)
{
	struct hmm_mm *mm = priv;
	uint64_t len = c->end - c->start;
	bool managed;

	if (mm->own)
		hmm_overtaken_own(mm, c);
	switch (c->event) {
	case UMM_EVENT_UNMAP:
		hmm_overtaken_unmapped(mm, c->start, c->end);
		hmm_residency_drop(mm, c->start, c->end);
		hmm_forget(mm, c->start, c->end);
		marks_forget(mm, c->start, c->end);
		break;
	case UMM_EVENT_CLEAR:
		hmm_residency_drop(mm, c->start, c->end);
		break;
	case UMM_EVENT_REMAP:
		hmm_overtaken_moved(mm, c);
		hmm_unforked_follow(mm, c);
		if (hmm_residency_remap(mm, c->start, c->new_start, len))
			mm->h->opt.fatal(mm->h->opt.priv, mm, "no memory to follow mremap()");
		/* The old range: unmapped by an event of its own, or left registered by MREMAP_DONTUNMAP. */
		pthread_mutex_lock(&mm->lock);
		/* In one's own process a mapping may be watched only, of which no missing page is reported. */
		managed = !mm->h->opt.linked || hmm_iset_meets(&mm->registered, c->start, c->end);
		pthread_mutex_unlock(&mm->lock);
		hmm_forget(mm, c->new_start, c->new_start + len);
		pthread_mutex_lock(&mm->lock);
		/* Of what is beyond there are no records. */
		if (managed && c->new_start < HMM_ADDR_END)
			hmm_iset_add(&mm->registered, c->new_start,
				     len < HMM_ADDR_END - c->new_start ? c->new_start + len : HMM_ADDR_END);
		marks_follow(mm, &mm->dontfork, c);
		marks_follow(mm, &mm->wipeonfork, c);
		pthread_mutex_unlock(&mm->lock);
		umm_uffd_wake(mm->space->uffd, c->new_start, len);
		break;
	default:
		break;
	}
	/* Who waits for a page that is no longer what it was must look again. */
	umm_uffd_wake(mm->space->uffd, c->start, len);
}

/*
 * Mappings marked MADV_DONTFORK are not in the child, those marked
 * MADV_WIPEONFORK are empty there: nothing of the parent's may live on.
 * Only smaps tells which.
 */
int hmm_find_unforked(struct hmm_mm *mm, struct hmm_iset *absent, struct hmm_iset *empty)
{
	int fd = mm->smaps_fd >= 0 ? dup(mm->smaps_fd) : -1, rc = 0;
	FILE *f = fd >= 0 ? fdopen(fd, "r") : NULL;
	uint64_t start = 0, end = 0;
	char *line = NULL;
	size_t room = 0;
	bool any = false;

	if (!f) {
		if (fd >= 0)
			close(fd);
		return -ENOENT;
	}
	rewind(f);
	while (!rc && (errno = 0, getline(&line, &room, f)) > 0) {
		uint64_t a, z;
		char more;

		if (sscanf(line, "%" SCNx64 "-%" SCNx64 "%c", &a, &z, &more) == 3 && more == ' ') {
			start = a;
			end = z;
			any = true;
		} else if (!strncmp(line, "VmFlags:", 8)) {
			if (strstr(line, " dc"))
				rc = hmm_iset_add(absent, start, end);
			else if (strstr(line, " wf"))
				rc = hmm_iset_add(empty, start, end);
		}
	}
	if (!rc)
		rc = -errno; /* half of them would be taken for all; 0 at the end of the text */
	free(line);
	fclose(f);
	/* No space is without mappings: the task by which it was opened has ended. */
	return rc || any ? rc : -ESRCH;
}

static void child_without(struct hmm_mm *child, const struct hmm_iset *set, bool forget)
{
	for (unsigned i = 0; i < set->n; i++) {
		hmm_residency_drop(child, set->v[i].start, set->v[i].end);
		if (forget)
			hmm_forget(child, set->v[i].start, set->v[i].end);
	}
}

/* The page in slot @s becomes one that is parked for the child, too. */
static int child_park(struct hmm_mm *child, unsigned b, unsigned s, uint64_t addr, const char *page, hmm_entry_t e)
{
	struct hmm_leaf *leaf = hmm_leaf_get(child, addr);

	if (!leaf)
		return -ENOMEM;
	memcpy(child->window + ((size_t)b * UMM_BATCH_PAGES + s) * UMM_PAGE, page, UMM_PAGE);
	pthread_mutex_lock(&leaf->lock);
	child->slot[b][s].addr = addr;
	hmm_entry_set(child, leaf, hmm_leaf_index(addr), e);
	pthread_mutex_unlock(&leaf->lock);
	return 0;
}

/* The child's records are not what they should be, and nobody may know its pid yet: whatever it finds, it must not use.
 */
static void child_doom(struct hmm_mm *mm, struct hmm_mm *child, const char *why)
{
	atomic_store(&child->doomed, true);
	mm->h->opt.fatal(mm->h->opt.priv, child, why);
}

/*
 * What is parked for the parent, the child gets as its own.  It runs already:
 * when it changes its mappings at this moment the kernel wants its events read
 * first, and they may move the page.
 */
static int child_park_all(struct hmm_mm *mm, struct hmm_mm *child, const struct hmm_iset *absent,
			  const struct hmm_iset *empty)
{
	int rc;

	for (unsigned b = 0; b < UMM_BATCHES; b++) {
		child->batch_pages[b] = mm->batch_pages[b];
		for (unsigned s = 0; s < mm->batch_pages[b]; s++) {
			uint64_t addr = mm->slot[b][s].addr, bytes;
			struct hmm_leaf *leaf = addr ? hmm_leaf_find(mm, addr) : NULL;
			const char *page = hmm_slot_page(mm, b, s);
			hmm_entry_t e = leaf ? leaf->e[hmm_leaf_index(addr)] : 0;

			if (hmm_entry_state(e) != HMM_PARKED || hmm_iset_meets(absent, addr, addr + UMM_PAGE) ||
			    hmm_iset_meets(empty, addr, addr + UMM_PAGE))
				continue;
			addr = hmm_overtaken_where(mm, child, addr);
			leaf = hmm_leaf_find(child, addr);
			if (leaf && leaf->e[hmm_leaf_index(addr)])
				continue; /* entered already, at each place where it may have it */
			rc = umm_uffd_copy(child->space->uffd, addr, page, UMM_PAGE, &bytes);
			if (rc == -EAGAIN)
				rc = child_park(child, b, s, addr, page, e);
			if (rc)
				return rc;
		}
	}
	return 0;
}

/* Nobody stores what the child has parked: it gets that back at once. */
static int child_unpark_all(struct hmm_mm *child)
{
	int rc;

	for (unsigned b = 0; b < UMM_BATCHES; b++) {
		for (unsigned s = 0; s < child->batch_pages[b]; s++) {
			uint64_t addr;

			while ((addr = child->slot[b][s].addr)) {
				rc = hmm_restore(child, addr, addr + UMM_PAGE);
				if (rc)
					return rc;
				if (child->slot[b][s].addr == addr)
					return -ENOENT;
			}
		}
	}
	return 0;
}

/* In this order: to settle reads the child's events, and a fork among them wants its records to be complete. */
static int child_complete(struct hmm_mm *mm, struct hmm_mm *child, const struct hmm_iset *absent,
			  const struct hmm_iset *empty)
{
	bool whole;
	int rc;

	child->absent = absent;
	child->empty = empty;
	whole = !hmm_overtaken_mend(mm, child);
	rc = child_park_all(mm, child, absent, empty);
	whole = whole && !rc && !hmm_overtaken_settle(mm, child);
	child->absent = child->empty = NULL;
	if (rc)
		return rc;
	if (!whole)
		child_doom(mm, child, "what its parent unmapped while it was forked is lost");
	return child_unpark_all(child);
}

/* It runs already, and changes its mappings: that must be read before the kernel lets anybody place anything. */
static int lost_child_events(struct hmm_mm *mm, int uffd)
{
	struct uffd_msg msg;
	ssize_t got;
	int rc = 0;

	while ((got = umm_monitor_read(mm->h->monitor, uffd, &msg, sizeof(msg))) == sizeof(msg)) {
		if (msg.event == UFFD_EVENT_REMAP)
			rc = -EXDEV; /* what we mean may be elsewhere by now */
		if (msg.event == UFFD_EVENT_FORK) {
			int grandchild = (int)msg.arg.fork.ufd;
			int lost = hmm_lost_to_child(mm, grandchild);

			if (lost)
				rc = lost;
			else
				close(grandchild);
		}
	}
	/* Without a descriptor for its own child: it would wait for ever, and we with it. */
	return got < 0 && errno != EAGAIN && errno != EINTR ? -errno : rc;
}

static int lost_at(struct hmm_mm *mm, int uffd, uint64_t addr)
{
	int rc;

	while ((rc = umm_uffd_poison(uffd, addr, UMM_PAGE)) == -EAGAIN) {
		rc = lost_child_events(mm, uffd);
		if (rc)
			return rc;
		sched_yield();
	}
	return rc == -EEXIST || rc == -ENOENT || rc == -ESRCH ? 0 : rc;
}

/*
 * And where the child may have it: what was moved since, as far as we know, may have been moved
 * after the fork of which we hear only now (overtaken.c): up to change @nr, when it was dropped.
 * Where the child has nothing nothing is done.
 */
static int lost_before_moves(struct hmm_mm *mm, int uffd, uint64_t addr, unsigned nr)
{
	uint64_t now = umm_now_ns();
	int rc = lost_at(mm, uffd, addr);

	for (unsigned n = mm->novertaken, k = 0; n && k < HMM_OVERTAKEN && !rc; n--, k++) {
		const struct hmm_overtaken *o = &mm->overtaken[(n - 1) % HMM_OVERTAKEN];

		if (now - o->at_ns > HMM_LATE_NS)
			break;
		if (n > nr || addr < o->to || addr - o->to >= o->end - o->start)
			continue;
		addr = addr - o->to + o->start;
		rc = lost_at(mm, uffd, addr);
	}
	return rc;
}

static int lost_kept(struct hmm_mm *mm, void *uffd, uint64_t addr, unsigned nr)
{
	return lost_before_moves(mm, *(int *)uffd, addr, nr);
}

int hmm_lost_to_child(struct hmm_mm *mm, int uffd)
{
	struct hmm_leaf *leaf;

	for (uint64_t at = 0; (leaf = hmm_leaf_next(mm, at, 1ull << 47)); at = leaf->base + (1ull << HMM_LEAF_SHIFT)) {
		for (unsigned i = 0; leaf->held && i < HMM_LEAF_PAGES; i++) {
			uint64_t addr = leaf->base + i * UMM_PAGE;
			int rc = hmm_entry_here(leaf->e[i]) ? 0 : lost_before_moves(mm, uffd, addr, mm->novertaken);

			if (rc)
				return rc;
		}
	}
	return hmm_overtaken_each(mm, &uffd, lost_kept);
}

/*
 * There are no records of the child, or nobody would hear of it: it goes on by itself, without what was away.  Its
 * descriptor is let go of as a whole: what is registered there is for the kernel to know, our records may lack what a
 * walk was just registering when the parent forked.
 */
static void child_cast_off(struct hmm_mm *mm, struct hmm_mm *child, int why)
{
	int rc;

	/* Said first: the child may be dead of it before we run on. */
	hmm_say(mm->h,
		"a forked child of process %d cannot be served: %s; what was away is lost to it, an access gets SIGBUS",
		(int)mm->space->pid, strerror(-why));
	atomic_store(&child->doomed, true);
	rc = hmm_lost_to_child(mm, child->space->uffd);
	/* And at what it has moved already, where that was read and is in its records. */
	if (!rc)
		rc = hmm_lost_to_child(child, child->space->uffd);
	if (!rc)
		rc = umm_space_let_go(child->space);
	if (rc)
		child_doom(mm, child, "a forked child hangs at what was away");
	else
		hmm_residency_drop(child, 0, 1ull << 47);
}

static void mm_forked(void *priv, int uffd)
{
	struct hmm_mm *mm = priv, *child = NULL;
	struct hmm_iset absent = {0}, empty = {0};
	bool whole = hmm_out_sync(mm) && !atomic_load(&mm->doomed);
	int rc = 0;

	atomic_store(&mm->forked, true);
	atomic_store(&mm->giving, true);
	if (mm->h->opt.forked(mm->h->opt.priv, mm, uffd, &child))
		goto out;
	atomic_store(&child->forked, true);
	child->space->spares = mm->h->monitor; /* it may fork while its records are made, which must be read */
	if (!whole)
		child_doom(mm, child, "what its parent had away when it was forked is lost");
	pthread_mutex_lock(&mm->lock);
	for (unsigned i = 0; i < mm->registered.n && !rc; i++)
		rc = hmm_iset_add(&child->registered, mm->registered.v[i].start, mm->registered.v[i].end);
	for (unsigned i = 0; i < mm->foreign.n && !rc; i++)
		rc = hmm_iset_add(&child->foreign, mm->foreign.v[i].start, mm->foreign.v[i].end);
	for (unsigned i = 0; i < mm->foreign_old.n && !rc; i++)
		rc = hmm_iset_add(&child->foreign_old, mm->foreign_old.v[i].start, mm->foreign_old.v[i].end);
	pthread_mutex_unlock(&mm->lock);
	if (!rc)
		rc = hmm_residency_clone(mm, child);
	if (!rc && (atomic_load(&mm->radix.away) || hmm_overtaken_lately(mm))) {
		rc = marks_at_fork(mm, &absent, &empty);
		if (!rc) {
			child_without(child, &absent, true);
			child_without(child, &empty, false);
			rc = child_complete(mm, child, &absent, &empty);
			if (rc == -ESRCH)
				rc = 0; /* it has ended */
		}
		hmm_iset_clear(&absent);
		hmm_iset_clear(&empty);
	}
	marks_inherit(mm, child);
	if (!rc)
		rc = umm_monitor_add(mm->h->monitor, child->space);
	if (rc)
		child_cast_off(mm, child, rc);
	atomic_store(&child->ready, true);
out:
	atomic_store(&mm->giving, false);
}

static int mm_fault(void *priv, const struct umm_fault *f)
{
	return hmm_fault(priv, f);
}

static bool mm_mapped(void *priv, uint64_t start, uint64_t end)
{
	struct hmm_mm *mm = priv;
	bool is;

	pthread_mutex_lock(&mm->lock);
	/* What was registered early sends events as well; that it did not come to be only costs a wait. */
	is = hmm_iset_meets(&mm->registered, start, end) || hmm_iset_meets(&mm->early, start, end);
	pthread_mutex_unlock(&mm->lock);
	return is;
}

static void mm_lost(void *priv, const char *why)
{
	struct hmm_mm *mm = priv;

	mm->h->opt.fatal(mm->h->opt.priv, mm, why);
}

static const struct umm_space_ops mm_ops = {
	.fault = mm_fault, .change = mm_change, .mapped = mm_mapped, .forked = mm_forked, .lost = mm_lost};

static void mm_free(void *priv)
{
	struct hmm_mm *mm = priv;

	hmm_overtaken_free(mm);
	hmm_iset_clear(&mm->unsure);
	hmm_radix_destroy(mm);
	hmm_iset_clear(&mm->registered);
	hmm_iset_clear(&mm->foreign);
	hmm_iset_clear(&mm->foreign_old);
	hmm_iset_clear(&mm->early);
	hmm_iset_clear(&mm->stuck);
	hmm_iset_clear(&mm->unforked);
	hmm_iset_clear(&mm->unforked_todo);
	hmm_iset_clear(&mm->dontfork);
	hmm_iset_clear(&mm->wipeonfork);
	if (mm->stat_fd >= 0)
		close(mm->stat_fd);
	if (mm->statm_fd >= 0)
		close(mm->statm_fd);
	if (mm->rollup_fd >= 0)
		close(mm->rollup_fd);
	if (mm->smaps_fd >= 0)
		close(mm->smaps_fd);
	if (mm->gone)
		mm->gone(mm->gone_priv);
	pthread_mutex_destroy(&mm->out_lock);
	pthread_mutex_destroy(&mm->lock);
	pthread_mutex_destroy(&mm->marks_lock);
	pthread_mutex_destroy(&mm->stream_lock);
	free(mm);
}

struct hmm_mm *hmm_mm_new(struct hmm *h, struct umm_space *space, char *window, const struct hmm_inside_ops *inside,
			  void *priv)
{
	struct hmm_mm *mm = calloc(1, sizeof(*mm));

	if (!mm)
		return NULL;
	mm->h = h;
	mm->space = space;
	mm->window = window;
	mm->inside = inside;
	mm->inside_priv = priv;
	mm->stat_fd = mm->statm_fd = mm->rollup_fd = mm->smaps_fd = mm->window_fd = -1;
	atomic_store(&mm->clean_score, 128);
	hmm_radix_init(&mm->radix);
	pthread_mutex_init(&mm->out_lock, NULL);
	pthread_mutex_init(&mm->lock, NULL);
	pthread_mutex_init(&mm->marks_lock, NULL);
	pthread_mutex_init(&mm->stream_lock, NULL);
	return mm;
}

void hmm_mm_pid_ended(struct hmm_mm *mm)
{
	if (atomic_exchange(&mm->pid_ended, true))
		return;
	mm->space->pid = 0; /* it may become another's */
	atomic_store(&mm->asked, 0);
}

void hmm_mm_kill(struct hmm_mm *mm)
{
	/* Read once: hmm_mm_pid_ended() may be at it, and kill(0) would be our own group. */
	pid_t pid = atomic_load(&mm->space->pid);

	if (pid > 0)
		kill(pid, SIGKILL);
}

void hmm_mm_publish(struct hmm_mm *mm)
{
	struct hmm *h = mm->h;

	mm->space->ops = &mm_ops;
	mm->space->priv = mm;
	mm->space->destroy = mm_free;
	pthread_mutex_lock(&h->lock);
	mm->id = ++h->next_id;
	mm->next = h->mms;
	h->mms = mm;
	pthread_mutex_unlock(&h->lock);
	hmm_asleep_wake(h);
}

void hmm_mm_del(struct hmm_mm *mm)
{
	struct hmm *h = mm->h;
	bool listed = false;

	atomic_store(&mm->dead, true);
	pthread_mutex_lock(&h->lock);
	for (struct hmm_mm **p = &h->mms; *p; p = &(*p)->next) {
		if (*p != mm)
			continue;
		*p = mm->next;
		listed = true;
		break;
	}
	pthread_mutex_unlock(&h->lock);
	if (!listed)
		return;
	umm_monitor_del(mm->space);
	umm_space_put(mm->space);
}

int hmm_mms_get(struct hmm *h, struct hmm_mm ***listp)
{
	struct hmm_mm **list;
	unsigned n = 0;

	pthread_mutex_lock(&h->lock);
	for (struct hmm_mm *mm = h->mms; mm; mm = mm->next)
		n++;
	list = malloc((n + 1) * sizeof(*list));
	n = 0;
	for (struct hmm_mm *mm = h->mms; list && mm; mm = mm->next) {
		umm_space_get(mm->space);
		list[n++] = mm;
	}
	pthread_mutex_unlock(&h->lock);
	*listp = list;
	return list ? (int)n : -ENOMEM;
}

void hmm_mms_put(struct hmm_mm **list, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		umm_space_put(list[i]->space);
	free(list);
}
