/* SPDX-License-Identifier: MIT */
/*
 * The engine in the process that it serves: hmm.h's "linked engine".
 *
 * DOC: what is different from hmm run
 *
 * Nothing of the engine itself.  The inside of the space is whoever calls:
 * go() carries a batch out on the spot.  What was moved stays in staging until it
 * is committed, and devices are given that; only what was taken in another way
 * (below) is in the window.  The faulting threads and those that
 * serve them are of one process, therefore
 *
 *  - all that the engine touches while it serves is memory of umm_alloc();
 *  - whoever enters with a call blocks signals: a handler that touched a page
 *    on its way would wait for the thread that it has interrupted;
 *  - fork() has nobody to hand the child's userfaultfd to that lives as long as
 *    the child.  The child is filled before libc's fork() returns in the parent,
 *    and is on its own then.  Where the kernel withholds fork events, what
 *    is managed is not handed on at all: the child gets SIGSEGV, not zeros.
 *
 * DOC: what a child inherits
 *
 * Mappings marked MADV_DONTFORK are not in the child: the kernel says of each
 * place whether the child has something there, and smaps only where it is worth
 * asking.  (A mapping that the child makes larger in these moments, up to such a
 * place, cannot be told from one that it has inherited there.)
 *
 * Mappings marked MADV_WIPEONFORK are there, and empty, of which only smaps of the
 * parent's tells, now, after the fork.  So who has forked by libc waits until that
 * has been read (umm_hook_forked()), and so does who marks what is managed
 * (hooks.c).  What another thread's mremap() has brought there since, marked, is
 * left out, as hmm run does it where it knows nothing else (engine.c).
 *
 * That leaves what waits for nobody: after a raw clone(2), or in another thread, the
 * mark is changed by a raw madvise(), or what is marked is unmapped, or moved away,
 * before smaps has been read.  The child then finds contents that it should have
 * found wiped, or the other way round (doc/coverage.md).
 *
 * DOC: what UFFDIO_MOVE refuses
 *
 * Read-only memory and private copies of a file's pages go other ways, see
 * take.c.  A file's mapping is not managed: of what it has only the copies are,
 * when they are asked for.
 *
 * DOC: markers
 *
 * What is on a device that wants it (HMM_DEV_MARKED) is marked as such in the page
 * table, by write-protecting where nothing is: /proc/self/pagemap then says
 * "swapped", as it says of a page in a device's memory.  A page can be copied onto it, but the zero page cannot be
 * put there; who drops the page between commit and marker leaves such a place.
 *
 * DOC: coherent devices
 *
 * Their pages stay mapped; that a page is such a device's is a record of its
 * own, which events change as they change the others.  A device with a node of
 * its own gets them moved there by the kernel (node.c); the record has those that
 * went, and is not told when the kernel moves one elsewhere later.  A page that fork() left
 * shared is copied by whoever writes it, and the copy is the system's: such pages
 * are write-protected before the fork (asynchronously: nobody waits), and those
 * that were written since then are taken off the record when it is looked at.
 * After a raw fork that is done when its event is read, and who writes at once
 * may go unseen: the page then counts as the device's still.
 */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "hmm/internal.h"
#include "hmm/node.h"
#include "hmm/smaps.h"
#include "hmm/take.h"
#include "umm/sys.h"

#define FORKED_NS 2000000000ull /* since the engine began */
#define STAGING_BYTES (UMM_BATCHES * UMM_BATCH_PAGES * UMM_PAGE)
#define STAGING_ROOM (STAGING_BYTES + UMM_BATCH_PAGES * UMM_PAGE) /* aligned to a batch */
#define STAGING_ALIGN (STAGING_ROOM - STAGING_BYTES)              /* a huge page */
#define WALK_BLOCKS 4u /* who is woken may be at the next one before who has woken it is done */
#define BLOCK_ROOM ((2 + WALK_BLOCKS) * STAGING_ALIGN)
#define COLLECT_TRIES 8u
#define NAP_NS 1000000l
#define SHARE_TRIES 10000u
#define CHILD_DEPTH 32u /* each some hundred bytes of whose stack it is */

struct linked {
	struct hmm *h;
	struct hmm_mm *mm;
	struct umm_inside in;
	const struct umm_space_ops *engine; /* what the space would have but for ours */
	struct umm_space_ops ops;
	struct hmm_iset coherent[HMM_TIERS_MAX]; /* mm->lock */
	struct hmm_take take;
	char *block_room, *block;         /* one huge page, for those that come back as one; out_lock */
	atomic_flag walking[WALK_BLOCKS]; /* the same, right behind, for walks; each is one fault's at a time */
	struct hmm_iset unforked;         /* of what is managed, marked MADV_DONTFORK by the program; mm->lock */
	struct hmm_iset shared;           /* of these, write-protected since a fork; mm->lock */
	_Atomic unsigned serving;         /* faults at this moment: each may hold references to a device's pages */
};

_Static_assert(sizeof(sigset_t) <= sizeof(((struct hmm_migrate *)0)->reserved), "room for the signal mask");

static void nap(void)
{
	struct timespec ts = {.tv_nsec = NAP_NS};

	nanosleep(&ts, NULL);
}

static struct linked *linked_of(struct hmm_mm *mm)
{
	return mm->inside_priv;
}

static bool range_is_good(uint64_t start, uint64_t end)
{
	return start < end && !((start | end) % UMM_PAGE) && end <= HMM_ADDR_END;
}

/* ------------------------------------------------------------------- inside */

static bool is_manageable(const struct umm_vma *v)
{
	return !(v->flags & (UMM_VMA_SHARED | UMM_VMA_FILE | UMM_VMA_SPECIAL | UMM_VMA_STACK | UMM_VMA_HUGETLB));
}

/* The first run of batch @b from @r on that UFFDIO_MOVE refuses, and its mapping; or the number of runs. */
static unsigned next_to_take(struct hmm_mm *mm, unsigned b, unsigned r, struct umm_vma *v)
{
	struct umm_batch *batch = &mm->space->ctl->batch[b];

	for (; r < batch->nr; r++) {
		uint64_t at = batch->run[r].addr;

		if ((at < v->start || at >= v->end) && (umm_vma_next(mm->space, at, v) || v->start > at))
			continue;
		if ((hmm_take_readonly(v) || hmm_take_file(v)) && at + batch->run[r].npages * UMM_PAGE <= v->end)
			break;
	}
	return r;
}

static int linked_go(void *priv, unsigned b)
{
	struct linked *l = priv;
	struct umm_batch *batch = &l->mm->space->ctl->batch[b];
	struct umm_vma v = {0};

	if (next_to_take(l->mm, b, 0, &v) < batch->nr) {
		umm_layout_excl(l->mm->space);
		/* Each looks again: it may have changed, not least by what was taken before. */
		for (unsigned r = 0; v.end = 0, (r = next_to_take(l->mm, b, r, &v)) < batch->nr; r++) {
			l->mm->run[b][r].copied = true;
			hmm_take_run(&l->take, b, r, &v,
				     l->mm->window + ((size_t)b * UMM_BATCH_PAGES + batch->run[r].slot) * UMM_PAGE);
		}
		pthread_rwlock_unlock(&l->mm->space->layout);
	}
	umm_inside_move(&l->in, b);
	return 0;
}

static int linked_wait(void *priv, unsigned b)
{
	return 0;
}

static int linked_arm(void *priv)
{
	return 0;
}

static int linked_advise(void *priv, uint64_t start, uint64_t len, int advice)
{
	return (int)sys3(SYS_madvise, start, len, advice);
}

static const struct hmm_inside_ops linked_inside = {
	.go = linked_go, .wait = linked_wait, .arm = linked_arm, .advise = linked_advise};

/* ------------------------------------------------------------------- events */

/* What [c->start, c->end) had of @set is, or stays, at its new place. */
static int coherent_remap(struct hmm_iset *set, const struct umm_change *c)
{
	const struct hmm_interval *in;
	uint64_t at = c->start;
	int rc = 0;

	while (!rc && (in = hmm_iset_next(set, at)) && in->start < c->end) {
		uint64_t a = in->start > c->start ? in->start : c->start;
		uint64_t z = in->end < c->end ? in->end : c->end;

		at = z;
		rc = hmm_iset_del(set, a, z);
		if (!rc)
			rc = hmm_iset_add(set, a - c->start + c->new_start, z - c->start + c->new_start);
	}
	return rc;
}

/* mm->lock held.  Of what a fork left shared: what was written is no longer the device's. */
static void coherent_settle(struct linked *l, uint64_t start, uint64_t end)
{
	const struct hmm_interval *in;
	uint64_t walked;

	for (uint64_t at = start; (in = hmm_iset_next(&l->shared, at)) && in->start < end; at = walked) {
		uint64_t a = in->start > at ? in->start : at, z = in->end < end ? in->end : end;
		struct umm_page_run runs[64];
		int n = umm_page_scan_written(l->mm->space, a, z, runs, 64, &walked);

		if (n < 0 || walked <= a)
			return;
		for (int i = 0; i < n; i++) {
			hmm_iset_del(&l->shared, runs[i].start, runs[i].end);
			for (unsigned t = 0; t < l->h->chain.n; t++)
				hmm_iset_del(&l->coherent[t], runs[i].start, runs[i].end);
		}
	}
}

/* mm->lock held.  Protects the next piece that is not; false: there is none, or it cannot be. */
static bool coherent_share_next(struct linked *l, unsigned t, uint64_t *at)
{
	const struct hmm_interval *in = hmm_iset_next(&l->coherent[t], *at), *known;
	uint64_t a, z;
	int rc;

	if (!in)
		return false;
	a = in->start > *at ? in->start : *at;
	z = in->end;
	known = hmm_iset_next(&l->shared, a);
	if (known && known->start <= a) {
		*at = known->end;
		return true;
	}
	if (known && known->start < z)
		z = known->start;
	for (unsigned tries = 0; (rc = umm_uffd_writeprotect(l->mm->space->uffd, a, z - a)) == -EAGAIN; tries++) {
		if (tries == SHARE_TRIES)
			break;
		sched_yield(); /* who forked goes on soon */
	}
	if (!rc) {
		hmm_iset_add(&l->shared, a, z);
		/* What was written to since somebody asked is not to be seen any more. */
		hmm_written_moved(l->mm, a, z);
	}
	*at = z;
	return true;
}

void hmm_coherent_settle(struct hmm_mm *mm, uint64_t start, uint64_t end)
{
	coherent_settle(linked_of(mm), start, end);
}

/* Of one mapping.  Another thread may have unmapped what is on record, and something else be there by now. */
static void keep_mapping(struct hmm_mm *mm, uint64_t start, uint64_t end)
{
	int rc;

	for (unsigned tries = 0; (rc = umm_inside_registered(mm->space->uffd, start)) == -EAGAIN; tries++) {
		if (tries == SHARE_TRIES)
			break;
		umm_yield(tries);
	}
	if (rc != -ENOENT)
		sys3(SYS_madvise, start, end - start, MADV_DONTFORK);
}

/*
 * Where the kernel tells of no fork a child has nothing of what is managed: once more, for the program
 * may have unmarked it meanwhile.  No lock: the kernel does not say what is registered before a change under way is
 * read.
 */
static void keep_from_children(struct hmm_mm *mm)
{
	for (uint64_t at = 0, end, z; at < HMM_ADDR_END; at = z) {
		const struct hmm_interval *in;
		struct umm_vma v;
		int rc;

		pthread_mutex_lock(&mm->lock);
		in = hmm_iset_next(&mm->registered, at);
		end = in ? in->end : HMM_ADDR_END;
		at = !in ? end : in->start > at ? in->start : at;
		pthread_mutex_unlock(&mm->lock);
		z = end;
		if (at >= end)
			break;
		rc = umm_vma_next(mm->space, at, &v);
		if (rc == -ENOENT || (!rc && v.start >= end))
			continue;
		if (!rc) {
			at = v.start > at ? v.start : at;
			z = v.end < end ? v.end : end;
		}
		keep_mapping(mm, at, z);
	}
}

/* mm->lock held.  What is managed no more goes to children again, but for what the program itself had kept from them.
 */
static int leave_to_children(struct hmm_mm *mm, uint64_t start, uint64_t end)
{
	struct hmm_iset *unforked = &linked_of(mm)->unforked;
	int rc = 0;

	if (!atomic_load(&mm->space->ctl->no_fork_events))
		return 0;
	for (uint64_t at = start, z; at < end; at = z) {
		const struct hmm_interval *in = hmm_iset_next(unforked, at);
		uint64_t stop = in && in->start < end ? in->start : end;

		z = in && in->end < end ? in->end : end;
		if (stop > at && !rc)
			rc = (int)sys3(SYS_madvise, at, stop - at, MADV_DOFORK);
	}
	hmm_iset_del(unforked, start, end);
	return rc;
}

static void linked_forking(void *priv)
{
	struct hmm_mm *mm = priv;
	struct linked *l = linked_of(mm);

	if (atomic_load(&mm->space->ctl->no_fork_events))
		keep_from_children(mm);
	pthread_mutex_lock(&mm->lock);
	for (unsigned t = 0; t < l->h->chain.n; t++)
		for (uint64_t at = 0; coherent_share_next(l, t, &at);)
			;
	pthread_mutex_unlock(&mm->lock);
}

static void linked_inherited(void *priv, uint64_t start, uint64_t end)
{
	struct hmm_mm *mm = priv;

	pthread_mutex_lock(&mm->lock);
	hmm_iset_del(&linked_of(mm)->unforked, start, end);
	pthread_mutex_unlock(&mm->lock);
}

static void linked_change(void *priv, const struct umm_change *c)
{
	struct hmm_mm *mm = priv;
	struct linked *l = linked_of(mm);
	int rc = 0;

	if (hmm_take_change(&l->take, c))
		return;
	pthread_mutex_lock(&mm->lock);
	for (unsigned t = 0; t < l->h->chain.n; t++) {
		if (c->event == UMM_EVENT_UNMAP || c->event == UMM_EVENT_CLEAR) {
			hmm_iset_del(&l->coherent[t], c->start, c->end);
		} else if (c->event == UMM_EVENT_REMAP) {
			hmm_iset_del(&l->coherent[t], c->new_start, c->new_start + (c->end - c->start));
			rc = coherent_remap(&l->coherent[t], c);
		}
	}
	if (c->event == UMM_EVENT_UNMAP) {
		hmm_iset_del(&l->unforked, c->start, c->end);
	} else if (c->event == UMM_EVENT_REMAP) {
		hmm_iset_del(&l->unforked, c->new_start, c->new_start + (c->end - c->start));
		coherent_remap(&l->unforked, c);
	}
	if (c->event == UMM_EVENT_UNMAP || c->event == UMM_EVENT_CLEAR) {
		hmm_iset_del(&l->shared, c->start, c->end);
		/* Where a page table has gone with it not every kernel tells of a change (PAGEMAP_SCAN, 6.7 and newer).
		 */
		hmm_written_moved(mm, c->start, c->end);
	} else if (c->event == UMM_EVENT_REMAP) {
		hmm_iset_del(&l->shared, c->new_start, c->new_start + (c->end - c->start));
		rc |= coherent_remap(&l->shared, c);
	}
	if (c->event == UMM_EVENT_REMAP)
		hmm_written_moved(mm, c->new_start, c->new_start + (c->end - c->start));
	pthread_mutex_unlock(&mm->lock);
	if (rc)
		hmm_say(l->h, "no memory to follow mremap(): pages of a coherent device count as the system's");
	l->engine->change(priv, c);
}

static int linked_uniform(void *priv, uint64_t start, uint64_t end)
{
	return hmm_mm_uniform(priv, start, end);
}

/* Nobody waits for a block: the pages come in the usual way then. */
static unsigned linked_block(struct hmm_mm *mm, uint64_t addr)
{
	struct linked *l = linked_of(mm);
	unsigned i = 0, came, tiers = 0;

	for (unsigned t = 0; t < l->h->chain.n; t++)
		tiers |= l->h->chain.dev[t]->ops->caps & HMM_DEV_AHEAD ? 1u << t : 0;
	while (i < WALK_BLOCKS && tiers && atomic_flag_test_and_set(&l->walking[i]))
		i++;
	if (i == WALK_BLOCKS || !tiers)
		return 0;
	came = hmm_block_back(mm, addr, tiers, l->block + (1 + i) * STAGING_ALIGN);
	atomic_flag_clear(&l->walking[i]);
	return came;
}

static bool linked_not_zeros(struct hmm_mm *mm, uint64_t start, uint64_t end)
{
	return hmm_take_stands_in(&linked_of(mm)->take, start, end);
}

static int linked_fault(void *priv, const struct umm_fault *f)
{
	struct hmm_mm *mm = priv;
	struct linked *l = linked_of(mm);
	int rc;

	atomic_fetch_add(&l->serving, 1);
	rc = hmm_take_fault(&l->take, f);
	if (rc == -ENOENT)
		rc = l->engine->fault(priv, f);
	atomic_fetch_sub(&l->serving, 1);
	return rc;
}

static bool linked_holds(void *priv, uint64_t start, uint64_t end)
{
	struct hmm_mm *mm = priv;
	bool meets;

	pthread_mutex_lock(&mm->lock);
	meets = hmm_iset_meets(&mm->registered, start, end);
	pthread_mutex_unlock(&mm->lock);
	return meets;
}

static int bring_from_all(struct hmm_mm *mm, uint64_t start, uint64_t end);

/* What cannot come back is poison, or away: nobody is to be refused his call for that. */
static void linked_bring_back(void *priv, uint64_t start, uint64_t end)
{
	hmm_bring_back(priv, start, end, bring_from_all);
}

/* --------------------------------------------------------------------- fork */

static void linked_abandon(void *priv)
{
	struct hmm_mm *mm = priv;
	struct linked *l = linked_of(mm);

	if (mm->statm_fd >= 0)
		sys_close(mm->statm_fd);
	if (l->h->self_statm_fd >= 0)
		sys_close(l->h->self_statm_fd);
	hmm_take_abandon(&l->take);
}

#define GONE UINT64_MAX

/* A move of the child's, or (@to is GONE) what it has unmapped or dropped: nothing of the parent's goes there any more.
 */
struct child_remap {
	uint64_t from, to, len;
};

struct child {
	int uffd;
	unsigned depth;
	unsigned n, room;
	struct child_remap *remap;     /* in the order in which they happened */
	struct hmm_iset absent, empty; /* as the parent sees it */
	bool failed;
	bool strayed; /* a move was not noted: where pages are in it is not known */
	bool lost;    /* contents are not to be had: what is away gets poison */
	bool unread;  /* a device could not give a page, which was said */
	bool asked;   /* what the parent has now, and the kernel did not say */
};

static void child_fill(struct hmm_mm *mm, struct child *c);

/* @n: as many as there are. */
static bool child_remaps_move(struct hmm_mm *mm, struct child *c, unsigned n, unsigned room)
{
	struct child_remap *to = umm_alloc(mm->space, room * sizeof(*to));

	if (!to)
		return false;
	for (unsigned i = 0; i < n; i++)
		to[i] = c->remap[i];
	c->remap = to;
	c->room = room;
	return true;
}

static void child_remaps_free(struct hmm_mm *mm, struct child *c)
{
	umm_free(mm->space, c->remap, c->room * sizeof(*c->remap));
}

static void child_remap_add(struct hmm_mm *mm, struct child *c, struct child_remap what)
{
	struct child old = *c;

	if (c->n == c->room) {
		if (!child_remaps_move(mm, c, c->n, c->room ? 2 * c->room : UMM_PAGE / sizeof(*c->remap))) {
			c->failed = c->strayed = true;
			return;
		}
		child_remaps_free(mm, &old);
	}
	c->remap[c->n++] = what;
}

/* What the child had moved when it forked is moved there, too; what is after that is each one's own. */
static void grandchild_fill(struct hmm_mm *mm, struct child *c, int uffd)
{
	struct child grand = *c;

	grand.uffd = uffd;
	if (++grand.depth > CHILD_DEPTH || (c->room && !child_remaps_move(mm, &grand, c->n, c->room))) {
		c->failed = c->strayed = true;
		return;
	}
	child_fill(mm, &grand);
	if (grand.failed && !grand.strayed && !grand.lost) {
		/* As linked_forked() does with a child; the sets are the child's, and stay. */
		c->failed = true;
		grand.failed = false;
		grand.lost = true;
		grand.absent = grand.empty = (struct hmm_iset){.space = mm->space};
		child_fill(mm, &grand);
	}
	c->failed |= grand.failed;
	c->strayed |= grand.strayed;
	c->asked |= grand.asked;
	child_remaps_free(mm, &grand);
}

/* The child runs already, and what it changes must be read before it can be filled. */
static void child_events(struct hmm_mm *mm, struct child *c)
{
	struct uffd_msg msg;
	ssize_t got;

	while ((got = umm_monitor_read(mm->space->monitor, c->uffd, &msg, sizeof(msg))) == sizeof(msg)) {
		if (msg.event == UFFD_EVENT_REMAP) {
			child_remap_add(mm, c,
					(struct child_remap){msg.arg.remap.from, msg.arg.remap.to, msg.arg.remap.len});
		} else if (msg.event == UFFD_EVENT_UNMAP || msg.event == UFFD_EVENT_REMOVE) {
			child_remap_add(mm, c,
					(struct child_remap){msg.arg.remove.start, GONE,
							     msg.arg.remove.end - msg.arg.remove.start});
		} else if (msg.event == UFFD_EVENT_FORK) {
			grandchild_fill(mm, c, (int)msg.arg.fork.ufd);
			sys_close((int)msg.arg.fork.ufd);
		}
	}
	/* Out of descriptors: what it tells of cannot be followed, and it waits for us. */
	if (got < 0 && errno != EAGAIN && errno != EINTR)
		c->failed = c->strayed = true;
}

/* 0: @page, or poison (NULL), is there now. */
static int child_place(struct hmm_mm *mm, struct child *c, uint64_t addr, const void *page)
{
	uint64_t done;
	int rc;

	do {
		uint64_t at = addr;

		for (unsigned i = 0; i < c->n; i++) {
			if (at < c->remap[i].from || at - c->remap[i].from >= c->remap[i].len)
				continue;
			if (c->remap[i].to == GONE)
				return -ENOENT;
			at = at - c->remap[i].from + c->remap[i].to;
		}
		if (page) {
			rc = umm_uffd_copy(c->uffd, at, page, UMM_PAGE, &done);
		} else {
			rc = umm_uffd_poison(c->uffd, at, UMM_PAGE);
		}
		if (rc == -EAGAIN)
			child_events(mm, c);
	} while (rc == -EAGAIN && !c->strayed);
	/* There already (a nested fork), unmapped by the child, or the child has ended: all is well. */
	if (rc && rc != -EEXIST && rc != -ENOENT && rc != -ESRCH)
		c->failed = true;
	return rc;
}

struct child_of {
	struct hmm_mm *mm;
	struct child *c;
};

static bool is_in(uint64_t addr, uint64_t start, uint64_t len)
{
	return addr >= start && addr - start < len;
}

/* Did the child have anything of ours there when it was forked? */
static bool child_had(void *arg, uint64_t addr)
{
	const struct child_of *of = arg;
	struct child *c = of->c;
	int rc;

	while ((rc = umm_inside_registered(c->uffd, addr)) == -EAGAIN && !c->strayed)
		child_events(of->mm, c);
	/* What it has moved there since was told of without that anything had been there before. */
	for (unsigned i = 0; i < c->n; i++) {
		if (is_in(addr, c->remap[i].from, c->remap[i].len))
			return true;
		if (c->remap[i].to != GONE && is_in(addr, c->remap[i].to, c->remap[i].len))
			return false;
	}
	return !rc;
}

/* Not what the fork has left out, or emptied. */
static bool child_has(struct child_of *of, uint64_t addr)
{
	return !hmm_iset_meets(&of->c->empty, addr, addr + 1) &&
	       (!hmm_iset_meets(&of->c->absent, addr, addr + 1) || child_had(of, addr));
}

/* Another thread has unmapped it, and that was told of first: what was away there is not to be had any more. */
static int child_lost(struct hmm_mm *mm, void *arg, uint64_t addr, unsigned nr)
{
	struct child_of *of = arg;
	uint64_t at = hmm_overtaken_place(mm, addr, nr, child_had, of, &of->c->asked);

	/* What the parent has there now is the child's, unless that was moved there after the fork. */
	if (!child_had(of, at) || (hmm_overtaken_again(mm, at, &of->c->asked) &&
				   hmm_overtaken_place(mm, at, mm->novertaken, child_had, of, &of->c->asked) == at))
		return 0;
	if (!child_place(mm, of->c, at, NULL))
		hmm_overtaken_lost(mm);
	return 0;
}

static void child_fill(struct hmm_mm *mm, struct child *c)
{
	char *buf = c->lost ? NULL : umm_alloc(mm->space, UMM_PAGE);
	struct child_of of = {mm, c};
	struct hmm_leaf *leaf;

	if (!buf && !c->lost)
		c->failed = true;
	for (uint64_t at = 0; (buf || c->lost) && (leaf = hmm_leaf_next(mm, at, HMM_ADDR_END));
	     at = leaf->base + (1ull << HMM_LEAF_SHIFT)) {
		for (unsigned i = 0; leaf->held && i < HMM_LEAF_PAGES; i++) {
			hmm_entry_t e = leaf->e[i];
			uint64_t payload = hmm_entry_payload(e), addr = leaf->base + i * UMM_PAGE, at_fork;
			struct hmm_device *d;
			const void *page;
			void *dst = buf;
			int status = 0;

			if (hmm_entry_here(e) || !child_has(&of, addr))
				continue;
			at_fork = hmm_overtaken_place(mm, addr, mm->novertaken, child_had, &of, &c->asked);
			if (c->lost) {
				/* Refused where there is something, be it PARKING: that is the page itself. */
				child_place(mm, c, at_fork, NULL);
				continue;
			}
			switch (hmm_entry_state(e)) {
			case HMM_PARKING:
				if (hmm_take_child(&linked_of(mm)->take, addr, &page))
					child_place(mm, c, at_fork, page);
				break;
			case HMM_PARKED:
				child_place(mm, c, at_fork,
					    hmm_slot_page(mm, payload >> 16 & (UMM_BATCHES - 1), payload & 0xffff));
				break;
			case HMM_DEVICE:
				d = mm->h->chain.dev[hmm_entry_tier(e)];
				d->ops->copy_out(d, &payload, &dst, &status, 1);
				if (status && !c->unread)
					hmm_say(mm->h,
						"pages of a forked child of process %d are lost to it, the first one is"
						" %#llx: device %s could not read them; an access gets SIGBUS",
						(int)mm->space->pid, (unsigned long long)addr, d->spec);
				c->unread |= status != 0;
				child_place(mm, c, at_fork, status ? NULL : buf);
				break;
			case HMM_POISONED:
				child_place(mm, c, at_fork, NULL);
				break;
			default:
				break; /* in place, shared with the child as ever */
			}
		}
	}
	umm_free(mm->space, buf, UMM_PAGE);
	hmm_overtaken_each(mm, &of, child_lost);
	child_events(mm, c);
}

struct marks {
	struct hmm_iset *absent, *empty;
	int rc;
};

/* Both, if it is both: the one may have come after the fork. */
static bool note_mark(void *priv, const struct hmm_smap *map)
{
	struct marks *m = priv;

	if (strstr(map->flags, " dc"))
		m->rc = hmm_iset_add(m->absent, map->start, map->end);
	if (!m->rc && strstr(map->flags, " wf"))
		m->rc = hmm_iset_add(m->empty, map->start, map->end);
	return !m->rc;
}

/*
 * What hmm_find_unforked() does, without malloc: another thread may be in fork(),
 * holding malloc's lock until its event, too, is read by this very thread.
 */
static int find_unforked(struct hmm_mm *mm, struct hmm_iset *absent, struct hmm_iset *empty)
{
	struct marks m = {.absent = absent, .empty = empty};
	int rc = hmm_smaps_each(mm->space, note_mark, &m);

	return rc ? rc : m.rc;
}

static int child_marks(struct hmm_mm *mm, struct child *c)
{
	struct hmm_iset none = {.space = mm->space};
	int rc = find_unforked(mm, &c->absent, &c->empty);

	return rc ? rc : hmm_marks_before(mm, &none, &c->empty, find_unforked);
}

/* Under the event lock, exclusively: records hold still.  Closing the descriptor leaves the child to itself. */
static int linked_forked(void *priv, struct hmm_mm *mm, int uffd, struct hmm_mm **childp)
{
	struct child c = {.uffd = uffd, .absent.space = mm->space, .empty.space = mm->space};

	linked_forking(mm); /* for a raw one */
	hmm_overtaken_expire(mm);
	if (hmm_overtaken_blind(mm))
		hmm_say(mm->h,
			"other threads of process %d unmapped memory while it forked, and there was no memory to note"
			" what was away of it: the child may find zeros there",
			(int)mm->space->pid);
	if (atomic_load(&mm->radix.away) || mm->kept) {
		c.failed = child_marks(mm, &c) != 0;
		if (!c.failed)
			child_fill(mm, &c);
		if (c.failed) {
			/* Left alone it would find zeros.  It is not to be found, but its page table is at hand. */
			hmm_say(mm->h,
				"a forked child of process %d could not be given its pages: what was away is lost"
				" to it; an access gets SIGBUS",
				(int)mm->space->pid);
			hmm_iset_clear(&c.absent);
			hmm_iset_clear(&c.empty);
			c.failed = c.strayed;
			c.lost = true;
			child_fill(mm, &c);
		}
		if (c.failed)
			mm->h->opt.fatal(mm->h->opt.priv, mm, "a forked child could not be given its pages");
		child_remaps_free(mm, &c);
		hmm_iset_clear(&c.absent);
		hmm_iset_clear(&c.empty);
	}
	sys_close(uffd); /* not by a hook: with its number nobody may be waited for who waits for us */
	return -ECHILD;  /* nothing to manage */
}

/* --------------------------------------------------------------------- life */

/* Not by dprintf(): it takes a lock of stdio's, which who forks has while it waits for us. */
static void say_line(const char *what, const char *end)
{
	char line[600];
	int n = snprintf(line, sizeof(line), "hmm: %s%s\n", what, end);
	size_t len = (size_t)n < sizeof(line) ? (size_t)n : sizeof(line) - 1;

	/* Fault injection goes by what is said: no site of its own.  Where it cannot be said nobody is left to tell. */
	for (size_t done = 0; done < len;) {
		ssize_t wrote = (write)(STDERR_FILENO, line + done, len - done);

		if (!wrote || (wrote < 0 && errno != EINTR))
			break;
		done += wrote > 0 ? (size_t)wrote : 0;
	}
}

static void linked_say(void *priv, const char *line)
{
	say_line(line, "");
}

static void linked_fatal(void *priv, struct hmm_mm *mm, const char *why)
{
	/* Whatever went on would go on with wrong data. */
	say_line(why, "; ending the process");
	abort();
}

static void linked_gone(void *priv)
{
	struct linked *l = priv;

	for (unsigned t = 0; t < HMM_TIERS_MAX; t++)
		hmm_iset_clear(&l->coherent[t]);
	hmm_iset_clear(&l->shared);
	hmm_iset_clear(&l->unforked);
	hmm_take_fini(&l->take);
	l->h->mms = NULL;
	l->h->chain.n = 0; /* devices are the caller's */
	hmm_destroy(l->h);
	free(l);
}

int hmm_mm_open(struct umm_space *space, struct hmm_mm **mmp)
{
	const struct hmm_options opt = {.linked = true,
					.say = linked_say,
					.fatal = linked_fatal,
					.forked = linked_forked,
					.block = linked_block,
					.not_zeros = linked_not_zeros};
	struct linked *l;
	char err[8], *window = NULL, *staging = NULL;
	int rc;

	if (!space->self)
		return -EOPNOTSUPP;
	if (space->ops)
		return -EBUSY;
	rc = umm_space_serve(space);
	if (rc)
		return rc == -EINVAL ? -EOPNOTSUPP : rc;
	l = calloc(1, sizeof(*l));
	if (!l)
		return -ENOMEM;
	rc = hmm_create(&opt, &l->h, err, sizeof(err));
	if (rc)
		goto fail;
	l->in = (struct umm_inside){.uffd = space->uffd, .ctl = space->ctl};
	staging = umm_alloc(space, STAGING_ROOM);
	window = umm_alloc(space, STAGING_BYTES);
	l->block_room = umm_alloc(space, BLOCK_ROOM);
	rc = -ENOMEM;
	if (!staging || !window || !l->block_room)
		goto fail_h;
	l->block = (char *)(((uintptr_t)l->block_room + STAGING_ALIGN - 1) & ~(uint64_t)(STAGING_ALIGN - 1));
	sys3(SYS_madvise, l->block, (1 + WALK_BLOCKS) * STAGING_ALIGN, MADV_HUGEPAGE);
	/* So that huge pages go there as a whole. */
	l->in.staging = (char *)(((uintptr_t)staging + STAGING_ROOM - STAGING_BYTES - 1) &
				 ~(uint64_t)(STAGING_ROOM - STAGING_BYTES - 1));
	rc = umm_uffd_register(space->uffd, (uintptr_t)l->in.staging, STAGING_BYTES, UFFDIO_REGISTER_MODE_MISSING);
	if (rc)
		goto fail_h;
	rc = -ENOMEM;
	l->mm = hmm_mm_new(l->h, space, window, &linked_inside, l);
	if (!l->mm)
		goto fail_staging;
	rc = hmm_take_init(&l->take, l->mm);
	if (rc)
		goto fail_mm;
	l->mm->registered.space = l->mm->foreign.space = l->mm->stuck.space = space;
	for (unsigned t = 0; t < HMM_TIERS_MAX; t++)
		l->coherent[t].space = space;
	l->shared.space = l->unforked.space = space;
	l->mm->staging = l->in.staging;
	l->mm->gone = linked_gone;
	l->mm->gone_priv = l;
	/* Not the supervisor's business: no fault tells us of a process. */
	l->mm->statm_fd = open("/proc/self/statm", O_RDONLY | O_CLOEXEC);
	/* The monitor may be at work on the space: it sees all of this, or nothing. */
	umm_evlock_excl(&space->ctl->evlock);
	umm_space_get(space);
	hmm_mm_publish(l->mm);
	l->engine = space->ops;
	l->ops = *space->ops;
	l->ops.fault = linked_fault;
	l->ops.change = linked_change;
	l->ops.forking = linked_forking;
	l->ops.inherited = linked_inherited;
	l->ops.holds = linked_holds;
	l->ops.uniform = linked_uniform;
	l->ops.bring_back = linked_bring_back;
	l->ops.abandon = linked_abandon;
	space->ops = &l->ops;
	umm_evlock_unexcl(&space->ctl->evlock);
	/* Forks tell us only of what is managed: any page may have been shared before it was. */
	atomic_store(&l->mm->forked, true);
	atomic_store(&l->mm->armed, true);
	*mmp = l->mm;
	return 0;
fail_mm:
	free(l->mm);
fail_staging:
	umm_uffd_unregister(space->uffd, (uintptr_t)l->in.staging, STAGING_BYTES);
fail_h:
	umm_free(space, l->block_room, BLOCK_ROOM);
	umm_free(space, window, STAGING_BYTES);
	umm_free(space, staging, STAGING_ROOM);
	hmm_destroy(l->h);
fail:
	free(l);
	return rc;
}

/*
 * All that is registered.  Who mirrors something there relies on it as well, having found it watched
 * (umm_space_watch()): it is told, and watches it anew where it still needs it.
 */
static void let_go(struct hmm_mm *mm)
{
	struct umm_space *space = mm->space;
	const struct hmm_interval *in;
	struct umm_change c = {.event = UMM_EVENT_MIGRATE, .blockable = true};

	for (;;) {
		pthread_mutex_lock(&mm->lock);
		in = hmm_iset_next(&mm->registered, c.end);
		if (in) {
			c.start = in->start;
			c.end = in->end;
		}
		pthread_mutex_unlock(&mm->lock);
		if (!in)
			return;
		umm_invalidate_begin(space, &c);
		umm_evlock_shared(&space->ctl->evlock);
		pthread_mutex_lock(&mm->lock);
		for (uint64_t at = c.start; (in = hmm_iset_next(&mm->registered, at)) && in->start < c.end;
		     at = in->end) {
			umm_uffd_unregister(space->uffd, in->start, in->end - in->start);
			leave_to_children(mm, in->start, in->end);
		}
		hmm_iset_del(&mm->registered, c.start, c.end); /* before who is told comes back */
		pthread_mutex_unlock(&mm->lock);
		umm_evlock_unshared(&space->ctl->evlock);
		umm_invalidate_end(space, &c);
	}
}

static int bring_from(struct hmm_mm *mm, uint64_t start, uint64_t end, unsigned tiers, uint64_t *moved);

int hmm_mm_close(struct hmm_mm *mm)
{
	struct umm_space *space;
	sigset_t old;
	int rc;

	if (!mm)
		return 0;
	space = mm->space;
	signals_block(&old);
	pthread_mutex_lock(&mm->out_lock);
	rc = hmm_restore_all(mm);
	if (!rc) {
		/* From a device's node, too; what cannot is memory like any other, and no reason to go on. */
		bring_from(mm, 0, HMM_ADDR_END, (1u << HMM_TIERS_MAX) - 1, NULL);
		atomic_store(&mm->rest, 1);
		let_go(mm);
		umm_evlock_shared(&space->ctl->evlock);
		pthread_mutex_lock(&mm->lock);
		hmm_iset_clear(&mm->registered);
		mm->h->chain.n = 0;
		pthread_mutex_unlock(&mm->lock);
		umm_evlock_unshared(&space->ctl->evlock);
	}
	pthread_mutex_unlock(&mm->out_lock);
	/* Who was woken may be here before who has woken it has let go of the device. */
	while (!rc && atomic_load(&linked_of(mm)->serving))
		nap();
	signals_restore(&old);
	if (!rc)
		umm_space_put(space); /* with its last reference, which is its opener's, the mm goes */
	return rc;
}

/* In place of a device that was removed, so that the numbers of the others stay. */
static const struct hmm_device_ops removed_ops = {.name = "removed"};
static struct hmm_device removed = {.ops = &removed_ops};

int hmm_mm_add_device(struct hmm_mm *mm, struct hmm_device *dev)
{
	const struct hmm_device_ops *o = dev ? dev->ops : NULL;
	struct hmm_chain *c = &mm->h->chain;
	unsigned at;
	sigset_t old;
	int rc = 0;

	if (!o || (!(o->caps & HMM_DEV_COHERENT) && !(o->copy_in && o->copy_out && o->get && o->put)))
		return -EINVAL;
	signals_block(&old);
	pthread_mutex_lock(&mm->out_lock);
	at = c->n;
	for (unsigned t = 0; t < c->n; t++) {
		if (c->dev[t] == dev)
			rc = -EEXIST;
		if (c->dev[t] == &removed && at == c->n)
			at = t;
	}
	if (!rc && at == HMM_TIERS_MAX)
		rc = -ENOSPC;
	if (!rc) {
		c->dev[at] = dev;
		pthread_mutex_lock(&mm->lock);
		if (at == c->n)
			c->n++;
		pthread_mutex_unlock(&mm->lock);
	}
	pthread_mutex_unlock(&mm->out_lock);
	signals_restore(&old);
	return rc;
}

static int tier_of(struct hmm_mm *mm, const struct hmm_device *dev)
{
	for (unsigned t = 0; t < mm->h->chain.n; t++)
		if (mm->h->chain.dev[t] == dev)
			return (int)t;
	return -EINVAL;
}

/* --------------------------------------------------------------- management */

struct unforked {
	struct hmm_mm *mm;
	uint64_t start, end;
	int rc;
};

/* What the program has marked is noted.  Of what is managed the mark is ours, also where it has grown. */
static bool note_unforked(void *priv, const struct hmm_smap *map)
{
	struct unforked *u = priv;
	struct hmm_mm *mm = u->mm;
	struct hmm_iset *set = &linked_of(mm)->unforked;
	bool theirs;

	if (map->end <= u->start || map->start >= u->end)
		return map->start < u->end;
	pthread_mutex_lock(&mm->lock);
	theirs = hmm_iset_meets(&mm->registered, map->start, map->end) ? hmm_iset_meets(set, map->start, map->end)
								       : strstr(map->flags, " dc") != NULL;
	u->rc = theirs ? hmm_iset_add(set, map->start, map->end) : hmm_iset_del(set, map->start, map->end);
	pthread_mutex_unlock(&mm->lock);
	return !u->rc;
}

/* That smaps cannot be read is no reason to manage nothing: the program may have changed its user. */
static int find_marked(struct hmm_mm *mm, uint64_t start, uint64_t end)
{
	struct unforked u = {.mm = mm, .start = start, .end = end};

	hmm_smaps_each(mm->space, note_unforked, &u);
	return u.rc;
}

/* @looked: what there is to @end has been asked for marks. */
static int manage_mapping(struct hmm_mm *mm, const struct umm_vma *v, uint64_t end, bool *looked)
{
	bool known;
	int rc;

	pthread_mutex_lock(&mm->lock);
	known = hmm_iset_covers(&mm->registered, v->start, v->end);
	pthread_mutex_unlock(&mm->lock);
	if (known)
		return 0;
	/* Before anything can be away: what a child inherited nobody would serve there. */
	if (atomic_load(&mm->space->ctl->no_fork_events)) {
		rc = *looked ? 0 : find_marked(mm, v->start, end);
		*looked = true;
		if (!rc)
			rc = (int)sys3(SYS_madvise, v->start, v->end - v->start, MADV_DONTFORK);
		if (rc)
			return rc;
	}
	for (;;) {
		umm_evlock_shared(&mm->space->ctl->evlock);
		rc = umm_uffd_register(mm->space->uffd, v->start, v->end - v->start,
				       UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP);
		/*
		 * In a process that was forked a moment ago what its parent managed is
		 * its parent's engine's yet, which fills it and lets go.
		 */
		if (rc != -EBUSY || umm_now_ns() - mm->h->start_ns > FORKED_NS)
			break;
		umm_evlock_unshared(&mm->space->ctl->evlock);
		nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
	}
	if (!rc) {
		pthread_mutex_lock(&mm->lock);
		rc = hmm_iset_add(&mm->registered, v->start, v->end);
		pthread_mutex_unlock(&mm->lock);
		if (rc)
			umm_uffd_unregister(mm->space->uffd, v->start, v->end - v->start);
	}
	umm_evlock_unshared(&mm->space->ctl->evlock);
	if (rc) {
		pthread_mutex_lock(&mm->lock);
		if (!hmm_iset_meets(&mm->registered, v->start, v->end))
			leave_to_children(mm, v->start, v->end);
		pthread_mutex_unlock(&mm->lock);
	}
	return rc;
}

/*
 * Every mapping of [start, end); what cannot be managed gives -EINVAL, unless @lax.
 * No hooked call changes a mapping between the look and the registration: a part
 * of one would be left out.
 */
static int manage_range(struct hmm_mm *mm, uint64_t start, uint64_t end, bool lax)
{
	bool looked = false;
	int rc = 0;

	umm_layout_excl(mm->space);
	for (uint64_t at = start; at < end && !rc;) {
		struct umm_vma v;

		rc = umm_vma_next(mm->space, at, &v);
		if (rc == -ENOENT || (!rc && v.start > at))
			rc = -EINVAL;
		if (rc)
			break;
		if (is_manageable(&v) && !umm_arena_meets(mm->space->arena, v.start, v.end))
			rc = manage_mapping(mm, &v, end, &looked);
		else if (!lax)
			rc = -EINVAL;
		at = v.end;
	}
	pthread_rwlock_unlock(&mm->space->layout);
	return rc;
}

int hmm_mm_manage(struct hmm_mm *mm, uint64_t start, uint64_t end)
{
	sigset_t old;
	int rc;

	if (!range_is_good(start, end))
		return -EINVAL;
	signals_block(&old);
	rc = manage_range(mm, start, end, false);
	signals_restore(&old);
	return rc;
}

int hmm_mm_uniform(struct hmm_mm *mm, uint64_t start, uint64_t end)
{
	sigset_t old;
	int rc = 0;

	start &= ~(UMM_PAGE - 1);
	end = (end + UMM_PAGE - 1) & ~(UMM_PAGE - 1);
	if (!range_is_good(start, end))
		return -EINVAL;
	signals_block(&old);
	if (linked_holds(mm, start, end))
		rc = manage_range(mm, start, end, true);
	signals_restore(&old);
	return rc;
}

/* ---------------------------------------------------------------- migration */

/* Holes and unreadable memory are refused; before that, all is managed that can be. */
static int check_range(struct hmm_mm *mm, uint64_t start, uint64_t end)
{
	for (uint64_t at = start; at < end;) {
		struct umm_vma v;
		int rc = umm_vma_next(mm->space, at, &v);

		if (rc == -ENOENT || (!rc && (v.start > at || !(v.flags & UMM_VMA_READ))))
			return -EINVAL;
		if (rc)
			return rc;
		at = v.end;
	}
	return manage_range(mm, start, end, true);
}

/* When a wait of this thread last came to nothing: what one call waits for piece by piece it does not wait for anew. */
static _Thread_local uint64_t gave_up_ns;

static uint64_t patience(void)
{
	return gave_up_ns && umm_now_ns() - gave_up_ns < HMM_DROP_MAX_NS ? 0 : HMM_DROP_MAX_NS;
}

/*
 * Contents that are being dropped at this moment must not be moved before they are gone.  False: somebody drops without
 * end; what is not gone by then is left where it is (take_victim()).  @left: how long its caller waits yet.
 */
static bool wait_out_quarantine(struct hmm_mm *mm, uint64_t start, uint64_t end, uint64_t *left)
{
	struct umm_evlock *evlock = &mm->space->ctl->evlock;
	uint64_t from = 0, now;
	bool busy;

	for (;;) {
		/* Before the look: what lasts no longer than we wait is seen to be over, however late we are. */
		now = umm_now_ns();
		/* With the lock: who dropped them goes on once the event was read, before it was applied. */
		umm_evlock_shared(evlock);
		busy = umm_quarantined(mm->space, start, end);
		umm_evlock_unshared(evlock);
		/* It lasts from when it was applied, which the first look has waited for. */
		if (!from)
			from = now = umm_now_ns();
		if (!busy || now - from >= *left)
			break;
		nap();
	}
	if (busy && *left)
		gave_up_ns = now;
	*left -= busy || now - from > *left ? *left : now - from;
	return !busy;
}

/*
 * Never-touched pages get the zero page, so that there is something to move.
 * Not those that are away: asking for them would bring them back.
 */
static void populate_absent(struct hmm_mm *mm, uint64_t start, uint64_t end)
{
	struct umm_page_run runs[64];

	while (start < end) {
		uint64_t walked, at = start;
		int n = umm_page_scan(mm->space, start, end, runs, sizeof(runs) / sizeof(runs[0]), &walked);

		if (n < 0 || walked <= start)
			return;
		for (int i = 0; i <= n; i++) {
			uint64_t stop = i < n ? runs[i].start : walked;

			if (i < n && !(runs[i].flags & UMM_PAGE_PRESENT))
				continue; /* swapped, or marked */

			while (at < stop) {
				struct hmm_leaf *leaf = hmm_leaf_find(mm, at);
				uint64_t first = at;

				/* A look without lock: at worst a page comes back, or is not moved this time. */
				for (; at < stop; at += UMM_PAGE) {
					if (at % (1ull << HMM_LEAF_SHIFT) == 0)
						leaf = hmm_leaf_find(mm, at);
					if (leaf && hmm_entry_state(leaf->e[hmm_leaf_index(at)]) != HMM_SYSTEM)
						break;
				}
				if (at - first == STAGING_ALIGN && !(first % STAGING_ALIGN)) {
					pthread_mutex_lock(&mm->out_lock);
					hmm_block_zero(mm, first, linked_of(mm)->block);
					pthread_mutex_unlock(&mm->out_lock);
				}
				if (at > first)
					sys3(SYS_madvise, first, at - first, MADV_POPULATE_READ);
				else
					at += UMM_PAGE;
			}
			if (i < n)
				at = runs[i].end;
		}
		start = walked;
	}
}

static void coherent_forget(struct hmm_mm *mm, uint64_t start, uint64_t end)
{
	struct linked *l = linked_of(mm);

	pthread_mutex_lock(&mm->lock);
	for (unsigned t = 0; t < mm->h->chain.n; t++)
		hmm_iset_del(&l->coherent[t], start, end);
	hmm_iset_del(&l->shared, start, end);
	pthread_mutex_unlock(&mm->lock);
}

static uint64_t next_registered(struct hmm_mm *mm, uint64_t at)
{
	const struct hmm_interval *in;

	pthread_mutex_lock(&mm->lock);
	in = hmm_iset_next(&mm->registered, at);
	if (!in)
		at = HMM_ADDR_END;
	else if (in->start > at)
		at = in->start;
	pthread_mutex_unlock(&mm->lock);
	return at;
}

/* Where that ends, if before @end. */
static uint64_t registered_until(struct hmm_mm *mm, uint64_t at, uint64_t end)
{
	const struct hmm_interval *in;

	pthread_mutex_lock(&mm->lock);
	in = hmm_iset_next(&mm->registered, at);
	if (in && in->start <= at && in->end < end)
		end = in->end;
	pthread_mutex_unlock(&mm->lock);
	return end;
}

/* Under out_lock, signals blocked. */
static int collect_locked(struct hmm_migrate *m)
{
	struct hmm_mm *mm = m->mm;
	struct hmm_victim v[UMM_BATCH_RUNS];
	const uint64_t end = m->end;
	unsigned n = 0;
	int rc = hmm_take_offer(&linked_of(mm)->take, m->start, end);

	m->npages = 0;
	if (rc)
		goto out;
	for (uint64_t at = m->start; (at = next_registered(mm, at)) < m->end; n++) {
		uint64_t z = (at | (UMM_RUN_PAGES * UMM_PAGE - 1)) + 1;
		struct umm_vma vma;

		if (z > m->end)
			z = m->end;
		/* A move crosses no border of mappings. */
		if (!umm_vma_next(mm->space, at, &vma) && vma.start <= at && vma.end < z)
			z = vma.end;
		z = registered_until(mm, at, z);
		if (n == UMM_BATCH_RUNS) {
			m->end = at;
			break;
		}
		v[n] = (struct hmm_victim){at, (uint32_t)((z - at) / UMM_PAGE)};
		at = z;
	}
	mm->out_owner = m->owner;
	mm->out_exclusive = m->to->ops->caps & HMM_DEV_EXCLUSIVE;
	rc = hmm_out_begin(mm, 0, v, n);
	if (!rc)
		rc = hmm_out_finish(mm, 0);
	mm->out_owner = NULL;
	mm->out_exclusive = false;
out:
	hmm_take_withdraw(&linked_of(mm)->take, m->start, end);
	if (rc < 0)
		return rc;
	m->npages = hmm_out_gather(mm, 0, m->src, m->slot);
	for (unsigned i = 0; i < m->npages; i++) {
		m->addr[i] = mm->slot[0][m->slot[i]].addr;
		m->handle[i] = HMM_HANDLE_NONE;
	}
	return 0;
}

/* No error counts: a marker is for who looks.  Of a page that has come back meanwhile it hides whether it was written
 * to. */
static void mark_away(struct hmm_migrate *m)
{
	for (unsigned i = 0, n; i < m->npages; i += n) {
		for (n = 1; i + n < m->npages && m->addr[i + n] == m->addr[i] + n * UMM_PAGE;)
			n++;
		pthread_mutex_lock(&m->mm->lock);
		umm_uffd_writeprotect(m->mm->space->uffd, m->addr[i], n * UMM_PAGE);
		hmm_written_moved(m->mm, m->addr[i], m->addr[i] + n * UMM_PAGE);
		pthread_mutex_unlock(&m->mm->lock);
	}
}

static int commit_locked(struct hmm_migrate *m)
{
	uint8_t tier[HMM_BATCH_MAX];
	int moved;

	memset(tier, tier_of(m->mm, m->to), sizeof(tier));
	moved = (int)hmm_out_commit(m->mm, 0, m->src, m->slot, m->handle, tier, m->npages);
	if (moved == (int)HMM_LEAF_PAGES && !m->slot[0] && !(m->addr[0] % STAGING_ALIGN))
		hmm_block_went(m->mm, m->addr[0], tier[0], m->src[0]);
	umm_inside_release(&linked_of(m->mm)->in, 0);
	if (m->to->ops->caps & HMM_DEV_MARKED)
		mark_away(m);
	m->npages = 0;
	return moved;
}

/* @left: see wait_out_quarantine(). */
static int collect(struct hmm_migrate *m, uint64_t *left)
{
	sigset_t old;
	int rc;

	if (!range_is_good(m->start, m->end) || (m->end - m->start) / UMM_PAGE > HMM_BATCH_MAX ||
	    tier_of(m->mm, m->to) < 0 || (m->to->ops->caps & HMM_DEV_COHERENT))
		return -EINVAL;
	signals_block(&old);
	rc = check_range(m->mm, m->start, m->end);
	if (rc)
		goto out;
	if (wait_out_quarantine(m->mm, m->start, m->end, left))
		populate_absent(m->mm, m->start, m->end);
	coherent_forget(m->mm, m->start, m->end);
	pthread_mutex_lock(&m->mm->out_lock);
	rc = collect_locked(m);
	if (!rc) {
		memcpy(m->reserved, &old, sizeof(old));
		return 0; /* lock and mask until commit */
	}
	pthread_mutex_unlock(&m->mm->out_lock);
out:
	signals_restore(&old);
	return rc;
}

int hmm_migrate_collect(struct hmm_migrate *m)
{
	uint64_t left = patience();

	return collect(m, &left);
}

int hmm_migrate_copy(struct hmm_migrate *m)
{
	int rc = m->npages ? m->to->ops->copy_in(m->to, m->src, m->handle, m->npages) : 0;

	if (rc < 0)
		for (unsigned i = 0; i < m->npages; i++)
			m->handle[i] = HMM_HANDLE_NONE;
	return rc;
}

/* Under the layout lock, so that nobody registers its mapping meanwhile; registered itself, as who is moved to must be.
 */
static int give_locked(struct hmm_migrate *m, void *to)
{
	struct hmm_mm *mm = m->mm;
	uint64_t at = (uintptr_t)to;
	unsigned tier = (unsigned)tier_of(mm, m->to), n;
	struct umm_vma v;

	/* In one piece: of what has a hole, or is locked in part, the kernel would drop some before it says so. */
	if (umm_vma_next(mm->space, at, &v) || v.start > at || v.end < at + STAGING_ALIGN)
		return -EINVAL;
	if (linked_holds(mm, at, at + STAGING_ALIGN) || umm_inside_registered(mm->space->uffd, at) != -ENOENT ||
	    umm_inside_registered(mm->space->uffd, at + STAGING_ALIGN - UMM_PAGE) != -ENOENT)
		return -EBUSY;
	if (sys3(SYS_madvise, at, STAGING_ALIGN, MADV_DONTNEED))
		return -EINVAL;
	if (umm_uffd_register(mm->space->uffd, at, STAGING_ALIGN, UFFDIO_REGISTER_MODE_MISSING))
		return 0;
	n = hmm_block_give(mm, m->addr[0], m->src[0], m->handle, tier, to);
	umm_uffd_unregister(mm->space->uffd, at, STAGING_ALIGN);
	if (n == HMM_LEAF_PAGES)
		hmm_block_went(mm, m->addr[0], tier, to);
	return (int)n;
}

int hmm_migrate_give(struct hmm_migrate *m, void *to)
{
	const unsigned last = HMM_BATCH_MAX - 1;
	unsigned rest;
	int n;

	/* What has gone is no part of @m any more, and is not marked by commit. */
	if (m->to->ops->caps & HMM_DEV_MARKED)
		return -EINVAL;
	if (m->npages != HMM_BATCH_MAX || m->addr[0] % STAGING_ALIGN || m->addr[last] != m->addr[0] + last * UMM_PAGE ||
	    m->slot[0] || (uintptr_t)m->src[0] % STAGING_ALIGN || (uintptr_t)to % STAGING_ALIGN)
		return -EINVAL;
	for (unsigned i = 0; i < m->npages; i++)
		if (m->handle[i] == HMM_HANDLE_NONE)
			return -EINVAL;
	umm_layout_excl(m->mm->space);
	n = give_locked(m, to);
	pthread_rwlock_unlock(&m->mm->space->layout);
	if (n <= 0)
		return n;
	rest = m->npages - (unsigned)n;
	memmove(m->addr, m->addr + n, rest * sizeof(m->addr[0]));
	memmove(m->src, m->src + n, rest * sizeof(m->src[0]));
	memmove(m->handle, m->handle + n, rest * sizeof(m->handle[0]));
	memmove(m->slot, m->slot + n, rest * sizeof(m->slot[0]));
	m->npages = rest;
	return n;
}

int hmm_migrate_commit(struct hmm_migrate *m)
{
	sigset_t old;
	int moved = commit_locked(m);

	pthread_mutex_unlock(&m->mm->out_lock);
	memcpy(&old, m->reserved, sizeof(old));
	signals_restore(&old);
	return moved;
}

/* With the leaf's lock: record and page table agree under it. */
static hmm_entry_t entry_at(struct hmm_mm *mm, uint64_t addr)
{
	struct hmm_leaf *leaf = hmm_leaf_find(mm, addr);
	hmm_entry_t e = 0;

	if (!leaf)
		return 0;
	pthread_mutex_lock(&leaf->lock);
	e = leaf->e[hmm_leaf_index(addr)];
	pthread_mutex_unlock(&leaf->lock);
	return e;
}

/* mm->lock held. */
static uint64_t coherent_pages(struct linked *l, unsigned tier, uint64_t start, uint64_t end)
{
	const struct hmm_interval *in;
	uint64_t n = 0;

	for (uint64_t at = start; (in = hmm_iset_next(&l->coherent[tier], at)) && in->start < end; at = in->end)
		n += ((in->end < end ? in->end : end) - (in->start > start ? in->start : start)) / UMM_PAGE;
	return n;
}

static uint64_t count_on(struct hmm_mm *mm, unsigned tier, uint64_t start, uint64_t end)
{
	struct linked *l = linked_of(mm);
	uint64_t n = 0;

	for (uint64_t at = start; at < end; at += UMM_PAGE) {
		hmm_entry_t e = entry_at(mm, at);

		n += hmm_entry_state(e) == HMM_DEVICE && hmm_entry_tier(e) == tier;
	}
	if (mm->h->chain.dev[tier]->ops->caps & HMM_DEV_COHERENT) {
		pthread_mutex_lock(&mm->lock);
		coherent_settle(l, start, end);
		n += coherent_pages(l, tier, start, end);
		pthread_mutex_unlock(&mm->lock);
	}
	return n;
}

/* Private pages that are there, or the zero page in place of one that nobody may write. */
static bool may_be_coherent(struct hmm_mm *mm, const struct umm_page_run *run)
{
	struct umm_vma v;

	if ((run->flags & (UMM_PAGE_PRESENT | UMM_PAGE_FILE)) != UMM_PAGE_PRESENT ||
	    umm_vma_next(mm->space, run->start, &v) || v.start > run->start)
		return false;
	if ((run->flags & UMM_PAGE_ZERO) && !hmm_take_readonly(&v))
		return false;
	return hmm_take_file(&v) || hmm_iset_covers(&mm->registered, run->start, run->end);
}

static int node_of(struct hmm_device *dev)
{
	return dev->ops->node ? dev->ops->node(dev) : -1;
}

struct coherent_to {
	struct linked *l;
	unsigned tier;
};

/* The record says whose they are now. */
static int coherent_record(void *priv, uint64_t start, uint64_t end)
{
	struct coherent_to *to = priv;
	struct linked *l = to->l;
	int rc;

	pthread_mutex_lock(&l->mm->lock);
	for (unsigned t = 0; t < l->h->chain.n; t++)
		if (t != to->tier)
			hmm_iset_del(&l->coherent[t], start, end);
	rc = hmm_iset_del(&l->shared, start, end);
	if (!rc)
		rc = hmm_iset_add(&l->coherent[to->tier], start, end);
	pthread_mutex_unlock(&l->mm->lock);
	return rc;
}

/* Pages that are there, and of this process's own.  What cannot go to the device's node stays the system's. */
static int to_coherent(struct hmm_mm *mm, unsigned tier, uint64_t start, uint64_t end, const void *owner)
{
	struct coherent_to to = {.l = linked_of(mm), .tier = tier};
	int node = node_of(mm->h->chain.dev[tier]), rc = 0;
	struct umm_change c = {.event = UMM_EVENT_MIGRATE,
			       .start = start,
			       .end = end,
			       .owner = owner ? owner : mm->h,
			       .blockable = true};

	umm_invalidate_begin(mm->space, &c);
	umm_evlock_shared(&mm->space->ctl->evlock);
	for (uint64_t at = start; at < end && !rc;) {
		struct umm_page_run runs[64];
		uint64_t walked;
		int n = umm_page_scan(mm->space, at, end, runs, 64, &walked);

		if (n < 0 || walked <= at)
			break;
		for (int i = 0; i < n && !rc; i++) {
			bool may;

			pthread_mutex_lock(&mm->lock);
			may = may_be_coherent(mm, &runs[i]);
			pthread_mutex_unlock(&mm->lock);
			if (!may)
				continue;
			rc = node < 0 ? coherent_record(&to, runs[i].start, runs[i].end)
				      : hmm_node_move(runs[i].start, runs[i].end, node, coherent_record, &to);
		}
		at = walked;
	}
	umm_evlock_unshared(&mm->space->ctl->evlock);
	umm_invalidate_end(mm->space, &c);
	return rc;
}

/* Off the record, as the system's. */
static int coherent_unrecord(void *priv, uint64_t start, uint64_t end)
{
	struct coherent_to *to = priv;
	int rc;

	pthread_mutex_lock(&to->l->mm->lock);
	rc = hmm_iset_del(&to->l->coherent[to->tier], start, end);
	pthread_mutex_unlock(&to->l->mm->lock);
	return rc;
}

/* What a device with a node has goes to that of the caller; what cannot stays the device's. */
static int leave_node(struct linked *l, unsigned tier, uint64_t start, uint64_t end, int node)
{
	struct umm_change c = {
		.event = UMM_EVENT_MIGRATE, .start = start, .end = end, .owner = l->mm->h, .blockable = true};
	struct coherent_to to = {.l = l, .tier = tier};
	int home = hmm_node_here(), rc = 0;

	umm_invalidate_begin(l->mm->space, &c);
	for (uint64_t at = start, z; at < end && !rc; at = z) {
		const struct hmm_interval *in;

		pthread_mutex_lock(&l->mm->lock);
		in = hmm_iset_next(&l->coherent[tier], at);
		z = in && in->end < end ? in->end : end;
		if (in && in->start > at)
			at = in->start;
		pthread_mutex_unlock(&l->mm->lock);
		if (!in || at >= end)
			break;
		rc = home == node ? -ENODEV : hmm_node_move(at, z, home, coherent_unrecord, &to);
		/* No memory there that this process may have: where it is it is memory like any other. */
		if (rc == -ENODEV || rc == -EACCES)
			rc = coherent_unrecord(&to, at, z);
	}
	umm_invalidate_end(l->mm->space, &c);
	return rc;
}

/* What is to stay mapped on the device gets pages, of its own where it may be written. */
static int own_pages(struct hmm_mm *mm, uint64_t start, uint64_t end)
{
	for (uint64_t at = start; at < end;) {
		struct umm_vma v;
		uint64_t z;
		int rc = umm_vma_next(mm->space, at, &v);

		if (rc || v.start > at)
			return rc && rc != -ENOENT ? rc : -EINVAL;
		z = v.end < end ? v.end : end;
		if (hmm_take_file(&v)) /* only copies go; events tell when they do */
			rc = umm_space_watch(mm->space, at, z - at);
		else if (is_manageable(&v))
			sys3(SYS_madvise, at, z - at, hmm_take_readonly(&v) ? MADV_POPULATE_READ : MADV_POPULATE_WRITE);
		if (rc)
			return rc;
		at = z;
	}
	return 0;
}

int hmm_migrate_to_device(struct hmm_mm *mm, struct hmm_device *dev, uint64_t start, uint64_t end, const void *owner,
			  uint64_t *moved)
{
	int tier = tier_of(mm, dev), rc;
	struct hmm_migrate *m = NULL;
	uint64_t left = patience();
	sigset_t old;
	bool gone;

	if (moved)
		*moved = 0;
	if (tier < 0 || !range_is_good(start, end))
		return -EINVAL;
	m = umm_alloc(mm->space, sizeof(*m));
	if (!m)
		return -ENOMEM;
	signals_block(&old);
	rc = check_range(mm, start, end);
	if (rc)
		goto out;
	gone = wait_out_quarantine(mm, start, end, &left);
	/* What another device holds comes by way of the system. */
	pthread_mutex_lock(&mm->out_lock);
	rc = hmm_restore_from(mm, start, end, ~0u & ~(1u << tier) & ((1u << HMM_TIERS_MAX) - 1), NULL);
	pthread_mutex_unlock(&mm->out_lock);
	if (rc)
		goto out;
	if (dev->ops->caps & HMM_DEV_COHERENT) {
		if (!gone)
			goto count;
		rc = own_pages(mm, start, end);
		if (!rc)
			rc = to_coherent(mm, (unsigned)tier, start, end, owner);
		goto count;
	}
	for (uint64_t at = start; at < end && !rc; at = m->end) {
		*m = (struct hmm_migrate){.mm = mm, .to = dev, .start = at, .owner = owner};
		m->end = (at | (HMM_BATCH_MAX * UMM_PAGE - 1)) + 1;
		if (m->end > end)
			m->end = end;
		for (unsigned tries = 0; tries < COLLECT_TRIES && !rc; tries++) {
			int done;

			/* A run that meets a page shared since fork() ends there: once more from behind. */
			rc = collect(m, &left);
			if (rc)
				break;
			hmm_migrate_copy(m);
			done = hmm_migrate_commit(m);
			if (!done || count_on(mm, (unsigned)tier, m->start, m->end) == (m->end - m->start) / UMM_PAGE)
				break;
		}
	}
count:
	if (moved)
		*moved = count_on(mm, (unsigned)tier, start, end);
out:
	signals_restore(&old);
	umm_free(mm->space, m, sizeof(*m));
	return rc;
}

/* A look without lock at a leaf that is whole: as one its pages count as written to. */
static bool keeps(struct hmm_mm *mm, const struct hmm_leaf *leaf)
{
	return mm->h->chain.dev[hmm_entry_tier(leaf->e[0])]->ops->caps & HMM_DEV_KEEPS;
}

/* Under out_lock, signals blocked.  @moved: pages that came; may be NULL. */
static int bring_from(struct hmm_mm *mm, uint64_t start, uint64_t end, unsigned tiers, uint64_t *moved)
{
	struct linked *l = linked_of(mm);
	uint64_t came = 0;
	struct hmm_leaf *leaf;
	int rc;

	for (uint64_t at = start; (leaf = hmm_leaf_next(mm, at, end)); at = leaf->base + STAGING_ALIGN)
		if (leaf->whole && leaf->base >= start && leaf->base + STAGING_ALIGN <= end && !keeps(mm, leaf))
			came += hmm_block_back(mm, leaf->base, tiers, l->block);
	rc = hmm_restore_from(mm, start, end, tiers, &came);

	for (unsigned t = 0; t < mm->h->chain.n && !rc; t++) {
		int node = node_of(mm->h->chain.dev[t]);
		uint64_t had, has;

		if (!(tiers & 1u << t))
			continue;
		pthread_mutex_lock(&mm->lock);
		coherent_settle(l, start, end);
		had = coherent_pages(l, t, start, end);
		if (node < 0)
			rc = hmm_iset_del(&l->coherent[t], start, end);
		pthread_mutex_unlock(&mm->lock);
		if (node >= 0 && had) {
			rc = leave_node(l, t, start, end, node);
			pthread_mutex_lock(&mm->lock);
			has = coherent_pages(l, t, start, end);
			pthread_mutex_unlock(&mm->lock);
			had -= has < had ? has : had;
		}
		came += had;
	}
	if (moved)
		*moved = came;
	return rc;
}

int hmm_migrate_to_system(struct hmm_mm *mm, struct hmm_device *dev, uint64_t start, uint64_t end, uint64_t *moved)
{
	unsigned tiers = (1u << HMM_TIERS_MAX) - 1;
	sigset_t old;
	int rc;

	if (moved)
		*moved = 0;
	if (!range_is_good(start, end))
		return -EINVAL;
	if (dev) {
		rc = tier_of(mm, dev);
		if (rc < 0)
			return rc;
		tiers = 1u << rc;
	}
	signals_block(&old);
	pthread_mutex_lock(&mm->out_lock);
	rc = bring_from(mm, start, end, tiers, moved);
	pthread_mutex_unlock(&mm->out_lock);
	signals_restore(&old);
	return rc;
}

static int bring_from_all(struct hmm_mm *mm, uint64_t start, uint64_t end)
{
	return bring_from(mm, start, end, (1u << HMM_TIERS_MAX) - 1, NULL);
}

static int bring_all(struct hmm_mm *mm, uint64_t start, uint64_t end)
{
	int rc;

	pthread_mutex_lock(&mm->out_lock);
	rc = bring_from_all(mm, start, end);
	pthread_mutex_unlock(&mm->out_lock);
	return rc;
}

static int unmanage_piece(struct hmm_mm *mm, uint64_t start, uint64_t end)
{
	int rc = hmm_hands_off(mm, start, end);

	pthread_mutex_lock(&mm->lock);
	if (!rc)
		rc = leave_to_children(mm, start, end);
	if (!hmm_iset_meets(&mm->registered, start, end))
		hmm_iset_del(&mm->foreign, start, end); /* it may be taken again */
	pthread_mutex_unlock(&mm->lock);
	return rc;
}

/*
 * The kernel lets go of whatever is registered, by whomever (before Linux 6.17), or refuses all: only what is ours is
 * given to it.  What is on devices comes back first, also where an earlier call
 * failed half-way; and once more afterwards, for nothing tells of what a record
 * says is a coherent device's, and another thread may have moved something there.
 */
int hmm_mm_unmanage(struct hmm_mm *mm, uint64_t start, uint64_t end)
{
	sigset_t old;
	int rc = 0;

	if (!range_is_good(start, end))
		return -EINVAL;
	signals_block(&old);
	rc = bring_all(mm, start, end);
	for (uint64_t a = start, z; a < end && !rc; a = z) {
		const struct hmm_interval *in;

		pthread_mutex_lock(&mm->lock);
		in = hmm_iset_next(&mm->registered, a);
		z = in && in->end < end ? in->end : end;
		a = !in ? end : in->start > a ? in->start : a;
		pthread_mutex_unlock(&mm->lock);
		if (a < end)
			rc = unmanage_piece(mm, a, z);
	}
	if (!rc)
		rc = bring_all(mm, start, end);
	signals_restore(&old);
	return rc;
}

/* Also of what mremap() takes behind the hand meanwhile.  Under out_lock, signals blocked. */
static int empty_device(struct hmm_mm *mm, unsigned tier)
{
	for (unsigned tries = 0; tries < HMM_MOVES_MAX; tries++) {
		uint64_t moves = hmm_moves_now(mm);
		int rc = bring_from(mm, 0, HMM_ADDR_END, 1u << tier, NULL);

		if (rc || hmm_moves_now(mm) == moves)
			return rc;
	}
	return -EAGAIN;
}

int hmm_mm_remove_device(struct hmm_mm *mm, struct hmm_device *dev)
{
	sigset_t old;
	int tier, rc;

	signals_block(&old);
	pthread_mutex_lock(&mm->out_lock);
	tier = tier_of(mm, dev);
	rc = tier < 0 ? tier : empty_device(mm, (unsigned)tier);
	/* Under the lock still: nothing goes to it any more.  What cannot leave its node is the system's all the same.
	 */
	if (!rc) {
		pthread_mutex_lock(&mm->lock);
		hmm_iset_clear(&linked_of(mm)->coherent[tier]);
		mm->h->chain.dev[tier] = &removed;
		atomic_fetch_and(&mm->lost_peers,
				 ~(1u << tier)); /* of whose place another may take nothing is said yet */
		pthread_mutex_unlock(&mm->lock);
	}
	pthread_mutex_unlock(&mm->out_lock);
	/* Who was woken may be here before who has woken it has let go of the device. */
	while (!rc && atomic_load(&linked_of(mm)->serving))
		nap();
	signals_restore(&old);
	return rc;
}

int hmm_where(struct hmm_mm *mm, uint64_t start, uint64_t end, struct hmm_device *where[], hmm_handle_t handle[])
{
	struct linked *l = linked_of(mm);
	struct hmm_chain *c = &mm->h->chain;
	sigset_t old;

	if (!range_is_good(start, end))
		return -EINVAL;
	signals_block(&old);
	umm_evlock_shared(&mm->space->ctl->evlock);
	pthread_mutex_lock(&mm->lock);
	coherent_settle(l, start, end);
	for (uint64_t at = start; at < end; at += UMM_PAGE) {
		hmm_entry_t e = entry_at(mm, at);
		struct hmm_device **w = &where[(at - start) / UMM_PAGE];

		*w = hmm_entry_state(e) == HMM_DEVICE ? c->dev[hmm_entry_tier(e)] : NULL;
		if (handle)
			handle[(at - start) / UMM_PAGE] = *w ? hmm_entry_payload(e) : HMM_HANDLE_NONE;
		for (unsigned t = 0; t < c->n && !*w; t++)
			if (l->coherent[t].n && hmm_iset_meets(&l->coherent[t], at, at + UMM_PAGE))
				*w = c->dev[t];
	}
	pthread_mutex_unlock(&mm->lock);
	umm_evlock_unshared(&mm->space->ctl->evlock);
	signals_restore(&old);
	return 0;
}

static int device_access(struct hmm_mm *mm, struct hmm_device *dev, uint64_t addr, char *buf, unsigned npages,
			 bool write)
{
	int tier = tier_of(mm, dev), rc = 0;
	unsigned done = 0;
	sigset_t old;

	/* Records go by the bits of an address that can be one. */
	if (tier < 0 || addr % UMM_PAGE || addr >= HMM_ADDR_END || npages > (HMM_ADDR_END - addr) / UMM_PAGE)
		return -EINVAL;
	signals_block(&old);
	while (done < npages) {
		uint64_t at = addr + done * UMM_PAGE;
		char *b = buf + done * UMM_PAGE;

		rc = write ? hmm_poke(mm, (unsigned)tier, at, b, npages - done)
			   : hmm_peek(mm, (unsigned)tier, at, b, npages - done);
		if (rc <= 0)
			break;
		done += (unsigned)rc;
	}
	signals_restore(&old);
	return done ? (int)done : rc;
}

int hmm_device_read(struct hmm_mm *mm, struct hmm_device *dev, uint64_t addr, void *buf, unsigned npages)
{
	return device_access(mm, dev, addr, buf, npages, false);
}

int hmm_device_write(struct hmm_mm *mm, struct hmm_device *dev, uint64_t addr, const void *buf, unsigned npages)
{
	return device_access(mm, dev, addr, (char *)buf, npages, true);
}
