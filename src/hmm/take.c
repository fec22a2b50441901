/* SPDX-License-Identifier: MIT */
/*
 * Taking pages out of mappings that UFFDIO_MOVE refuses: read-only ones, and the
 * private copies of a file's pages.
 *
 * DOC: no window
 *
 * Nobody may find anything else in the page than what was there, at any moment:
 * not zeros, not the file's contents, not a page that may be written.  What is
 * atomic here is mremap(): page tables change while nobody can look.
 *
 * Read-only memory: mremap(MREMAP_DONTUNMAP) carries the pages away to address
 * space of our own, and what they leave behind is the same mapping, registered
 * and empty: who touches it is served by us.  Protections never change.  What
 * was swapped out has come along, and is fetched; where there is something
 * without contents (a guard region) all of the run goes back.
 *
 * So it does where a device holds one of the pages (pinned, for DMA): what that
 * writes must arrive.  UFFDIO_MOVE is the only call that says so, of memory that
 * may be written; what we have carried away nobody else looks at, so it may be
 * made writable there, and is moved on, to a place where nobody can pin it.  That
 * comes before contents are copied: a pin that has ended by then has done its work.
 *
 * Private copies of a file's pages: a file's mapping cannot be registered for
 * missing pages.  So it is replaced, by mremap() of an empty registered mapping
 * over it, and the pages would go with it, and with them what was written up to
 * that moment, were they not in a pipe: vmsplice() takes references to the pages
 * themselves, not copies.  When the mapping has gone nobody can write any more,
 * and what the pipe gives is what was there last.  (Until fork() makes a page one
 * that is copied when written; hooked forks wait, and what is shared already is
 * made our own first.)  What was anonymous to the program, copies of its own,
 * stays so in what stands in for it; where the program drops such a page
 * (MADV_DONTNEED) it has the file's contents again, which are read from it.  A
 * descriptor of the file must be had for that, else the page is not taken.
 *
 * What else the program has set on the mapping a stand-in would not have: not be
 * inherited (MADV_DONTFORK), not be in a core (MADV_DONTDUMP), a protection key.
 * Nothing but smaps tells of that, which is read where a batch has such pages, and
 * they stay.  What is set after that, in the milliseconds in which the batch is on its
 * way, is not seen, and gone with the mapping.  (MADV_WIPEONFORK is for anonymous memory
 * only; of locked memory see is_locked().)
 *
 *	what differs afterwards: several mappings where there was one; truncating
 *	the file does not take the pages away; a forked child that drops a page
 *	finds zeros.
 *
 * Nothing says of such a page whether it is pinned.  So none is taken while the
 * process has pinned anything for longer (VmPin: registered buffers of RDMA and
 * io_uring); what is being read into such a page just then (O_DIRECT) is lost.
 *
 * DOC: one run
 *
 *	event lock shared: is the epoch still the batch's?  active
 *	mremap(), which sleeps until its event has been read: no lock but the
 *	layout lock, which keeps hooked calls and forks away
 *	contents to the window
 *	event lock shared: not active; mask, state MOVED, FILLED
 *
 * The event of our own mremap() is known by our addresses in it.  A child that
 * came by a raw fork in between may lack the pages: it is given them, but for
 * copies of a file's pages that may be written, where it gets poison.  Raw
 * calls that unmap the range and map something else there between the look at it
 * and mremap() are not seen in time: read-only memory is then given back at once;
 * what is mapped over a file's mapping in those microseconds is lost.
 */
#include "hmm/take.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <unistd.h>

#include "hmm/smaps.h"
#include "hmm_uapi.h"
#include "umm/sys.h"

#define RUN_BYTES (UMM_RUN_PAGES * UMM_PAGE)
#define AWAY_BYTES (RUN_BYTES + UMM_PAGE) /* the last page is never replaced, see fill_away() */
#define FDS_MAX 1024
#define PAGEMAP_EXCLUSIVE ((uint64_t)1 << 56)
#define UNSHARE_TRIES 32u
#define MOVE_TRIES 10000u

#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif

int hmm_take_init(struct hmm_take *t, struct hmm_mm *mm)
{
	*t = (struct hmm_take){.mm = mm, .pipe = {-1, -1}, .plain.space = mm->space};
	t->away = umm_alloc(mm->space, AWAY_BYTES);
	t->held = umm_alloc(mm->space, RUN_BYTES);
	t->empty = umm_alloc(mm->space, RUN_BYTES);
	return t->away && t->held && t->empty ? 0 : -ENOMEM;
}

/* The program may have closed our descriptor, and opened another file under its number. */
static bool is_still(const struct hmm_stand_in *f)
{
	struct stat st;

	return !fstat(f->fd, &st) && st.st_dev == f->dev && st.st_ino == f->inode;
}

/* So with the pipe: both ends are one inode. */
static bool is_our_end(const struct hmm_take *t, int fd)
{
	struct stat st;

	return !fstat(fd, &st) && st.st_dev == t->pipe_dev && st.st_ino == t->pipe_inode;
}

static void pipe_drop(struct hmm_take *t)
{
	for (unsigned i = 0; i < 2; i++) {
		if (is_our_end(t, t->pipe[i]))
			sys_close(t->pipe[i]);
		t->pipe[i] = -1;
	}
}

void hmm_take_abandon(struct hmm_take *t)
{
	pipe_drop(t);
}

void hmm_take_fini(struct hmm_take *t)
{
	while (t->nfiles) {
		int fd = t->file[--t->nfiles].fd;
		bool used = false;

		for (unsigned i = 0; i < t->nfiles; i++)
			used |= t->file[i].fd == fd;
		if (!used && is_still(&t->file[t->nfiles]))
			sys_close(fd);
	}
	pipe_drop(t);
	if (t->room)
		umm_free(t->mm->space, t->file, t->room * sizeof(*t->file));
	t->room = 0;
	hmm_iset_clear(&t->plain);
}

bool hmm_take_readonly(const struct umm_vma *v)
{
	return (v->flags & (UMM_VMA_READ | UMM_VMA_WRITE | UMM_VMA_EXEC)) == UMM_VMA_READ &&
	       !(v->flags & (UMM_VMA_SHARED | UMM_VMA_FILE | UMM_VMA_SPECIAL | UMM_VMA_STACK | UMM_VMA_HUGETLB));
}

bool hmm_take_file(const struct umm_vma *v)
{
	return (v->flags & (UMM_VMA_FILE | UMM_VMA_READ)) == (UMM_VMA_FILE | UMM_VMA_READ) &&
	       !(v->flags & (UMM_VMA_SHARED | UMM_VMA_EXEC | UMM_VMA_SPECIAL | UMM_VMA_HUGETLB));
}

static bool is_private_copy(const struct umm_page_run *run)
{
	return (run->flags & (UMM_PAGE_PRESENT | UMM_PAGE_FILE | UMM_PAGE_ZERO)) == UMM_PAGE_PRESENT;
}

struct look {
	struct hmm_take *t;
	uint64_t start, end;
};

static bool look_at(void *priv, const struct hmm_smap *map)
{
	struct look *l = priv;
	bool marked = map->key || strstr(map->flags, " dc") || strstr(map->flags, " dd");

	/* No memory for it: then it stays. */
	if (!marked && map->start < l->end && map->end > l->start)
		hmm_iset_add(&l->t->plain, map->start, map->end);
	return map->end < l->end;
}

/* t->plain, as far as it meets [@start, @end).  What cannot be read of is not in it. */
static void look_for_marks(struct hmm_take *t, uint64_t start, uint64_t end)
{
	hmm_iset_clear(&t->plain);
	hmm_smaps_each(t->mm->space, look_at, &(struct look){t, start, end});
}

/* By anybody?  As umm_inside_registered(), but waits for changes that are under way. */
static int registered(struct umm_space *space, uint64_t addr)
{
	unsigned tries = 0;
	int rc;

	while ((rc = umm_inside_registered(space->uffd, addr)) == -EAGAIN && tries++ < MOVE_TRIES)
		sched_yield();
	return rc;
}

/* Has another userfaultfd the mapping at @addr?  What stands in for it would not be that one's any more. */
static bool is_theirs(struct umm_space *space, uint64_t addr)
{
	int rc = registered(space, addr);

	/* Where it is ours this changes nothing. */
	return rc != -ENOENT &&
	       (rc || umm_uffd_register(space->uffd, addr, UMM_PAGE, UFFDIO_REGISTER_MODE_WP) == -EBUSY);
}

int hmm_take_offer(struct hmm_take *t, uint64_t start, uint64_t end)
{
	struct umm_space *space = t->mm->space;
	struct umm_vma v;
	bool looked = false;
	int rc = 0;

	for (uint64_t at = start; at < end && !rc && !umm_vma_next(space, at, &v) && v.start < end; at = v.end) {
		uint64_t a = v.start > start ? v.start : start, z = v.end < end ? v.end : end, walked;
		bool asked = false;

		for (; hmm_take_file(&v) && a < z && !rc; a = walked) {
			struct umm_page_run runs[64];
			int n = umm_page_scan(space, a, z, runs, 64, &walked);

			if (n < 0 || walked <= a)
				break;
			for (int i = 0; i < n && !asked; i++) {
				asked = is_private_copy(&runs[i]);
				if (asked && is_theirs(space, v.start))
					rc = -EBUSY;
				if (asked && !looked)
					look_for_marks(t, start, end);
				looked |= asked;
			}
			pthread_mutex_lock(&t->mm->lock);
			for (int i = 0; i < n && !rc; i++)
				if (is_private_copy(&runs[i]) && hmm_iset_covers(&t->plain, runs[i].start, runs[i].end))
					rc = hmm_iset_add(&t->mm->registered, runs[i].start, runs[i].end);
			pthread_mutex_unlock(&t->mm->lock);
		}
	}
	return rc;
}

void hmm_take_withdraw(struct hmm_take *t, uint64_t start, uint64_t end)
{
	struct umm_vma v;

	for (uint64_t at = start; at < end && !umm_vma_next(t->mm->space, at, &v) && v.start < end; at = v.end)
		if (hmm_take_file(&v))
			hmm_forget(t->mm, v.start > start ? v.start : start, v.end < end ? v.end : end);
}

/* -------------------------------------------------------------------- files */

/* Of the file behind @v, with what fstat() calls it; or -1. */
static int file_open(const struct umm_vma *v, struct stat *st)
{
	char path[64];
	int fd;

	/* With the right to: it cannot be another one. */
	snprintf(path, sizeof(path), "/proc/self/map_files/%llx-%llx", (unsigned long long)v->start,
		 (unsigned long long)v->end);
	fd = (int)sys3(SYS_open, path, O_RDONLY | O_CLOEXEC, 0);
	if (fd >= 0 && !fstat(fd, st))
		return fd;
	if (fd >= 0)
		sys_close(fd);
	for (fd = 0; fd < FDS_MAX; fd++) {
		int flags = fcntl(fd, F_GETFL);

		if (flags >= 0 && (flags & O_ACCMODE) != O_WRONLY && !fstat(fd, st) && st->st_ino == v->inode &&
		    major(st->st_dev) == v->dev_major && minor(st->st_dev) == v->dev_minor)
			return fcntl(fd, F_DUPFD_CLOEXEC, 0);
	}
	return -1;
}

/* mm->lock held, as in those below. */
static bool files_grow(struct hmm_take *t, unsigned more)
{
	unsigned room = t->room ? 2 * t->room : 64;
	struct hmm_stand_in *p;

	if (t->nfiles + more <= t->room)
		return true;
	p = umm_alloc(t->mm->space, room * sizeof(*p));
	if (!p)
		return false;
	if (t->room) {
		memcpy(p, t->file, t->nfiles * sizeof(*p));
		umm_free(t->mm->space, t->file, t->room * sizeof(*p));
	}
	t->file = p;
	t->room = room;
	return true;
}

static void file_cut(struct hmm_take *t, uint64_t start, uint64_t end)
{
	for (unsigned i = 0; i < t->nfiles; i++) {
		struct hmm_stand_in *f = &t->file[i], rest = *f;

		if (f->start >= end || f->end <= start)
			continue;
		if (f->end > end) {
			rest.offset += end - rest.start;
			rest.start = end;
			if (f->start >= start) {
				*f = rest;
				continue;
			}
			if (files_grow(t, 1)) {
				t->file[t->nfiles++] = rest;
				f = &t->file[i];
			} else {
				hmm_say(t->mm->h,
					"no memory to follow munmap() or mremap(): a dropped page will read as"
					" zeros");
			}
		}
		if (f->start < start) {
			f->end = start;
			continue;
		}
		bool used = false;

		for (unsigned k = 0; k < t->nfiles; k++)
			used |= k != i && t->file[k].fd == f->fd;
		if (!used && is_still(f))
			sys_close(f->fd);
		*f = t->file[--t->nfiles];
		i--;
	}
}

/* Is that of @v's file still mapped there? */
static bool is_mapped(struct umm_space *space, const struct umm_vma *v, uint64_t addr, uint64_t len)
{
	struct umm_vma now;

	return !umm_vma_next(space, addr, &now) && now.start <= addr && now.end >= addr + len && hmm_take_file(&now) &&
	       now.inode == v->inode && now.dev_major == v->dev_major && now.dev_minor == v->dev_minor &&
	       now.offset + (addr - now.start) == v->offset + (addr - v->start);
}

/* 0, or why there can be no stand-in for [start, start + len) of @v. */
static int file_add(struct hmm_take *t, const struct umm_vma *v, uint64_t start, uint64_t len)
{
	struct hmm_stand_in f = {.start = start, .end = start + len, .offset = v->offset + (start - v->start)};
	struct stat st;
	int rc = -ENOMEM;

	pthread_mutex_lock(&t->mm->lock);
	f.fd = -1;
	/* It may be cut out of another one: what is left of that on both sides stays on record. */
	if (!files_grow(t, 2))
		goto out;
	file_cut(t, start, start + len);
	for (unsigned i = 0; i < t->nfiles && f.fd < 0; i++) {
		struct hmm_stand_in *o = &t->file[i];

		if (o->end != start || o->offset + (o->end - o->start) != f.offset || o->inode != v->inode ||
		    major(o->dev) != v->dev_major || minor(o->dev) != v->dev_minor || !is_still(o))
			continue;
		o->end = f.end;
		rc = 0;
		goto out;
	}
	f.fd = file_open(v, &st);
	if (f.fd < 0) {
		rc = -EBADF;
		goto out;
	}
	f.dev = st.st_dev;
	f.inode = st.st_ino;
	for (unsigned i = 0; i < t->nfiles; i++) {
		if (t->file[i].dev != f.dev || t->file[i].inode != f.inode || !is_still(&t->file[i]))
			continue;
		sys_close(f.fd);
		f.fd = t->file[i].fd;
		break;
	}
	if (files_grow(t, 1)) {
		t->file[t->nfiles++] = f;
		rc = 0;
	} else {
		sys_close(f.fd);
	}
out:
	pthread_mutex_unlock(&t->mm->lock);
	return rc;
}

/* What stands in for a file in [@start, @end), or the last of several; fd -1: nothing does. */
static struct hmm_stand_in file_at(struct hmm_take *t, uint64_t start, uint64_t end)
{
	struct hmm_stand_in file = {.fd = -1};

	if (!t->nfiles)
		return file;
	pthread_mutex_lock(&t->mm->lock);
	for (unsigned i = 0; i < t->nfiles; i++)
		if (t->file[i].start < end && start < t->file[i].end)
			file = t->file[i];
	pthread_mutex_unlock(&t->mm->lock);
	return file;
}

bool hmm_take_stands_in(struct hmm_take *t, uint64_t start, uint64_t end)
{
	return file_at(t, start, end).fd >= 0;
}

/* The page that the inside asks for before it moves it, and that was dropped, is waited for by nobody but itself. */
static bool is_to_be_placed(struct hmm_mm *mm, const struct umm_fault *f, hmm_entry_t e)
{
	return hmm_entry_state(e) == HMM_SYSTEM ||
	       (hmm_entry_state(e) == HMM_PARKING && f->tid && f->tid == atomic_load(&mm->space->ctl->populating));
}

int hmm_take_fault(struct hmm_take *t, const struct umm_fault *f)
{
	char buf[UMM_PAGE] __attribute__((aligned(4096)));
	struct hmm_mm *mm = t->mm;
	struct hmm_stand_in file = file_at(t, f->addr, f->addr + UMM_PAGE), now;
	struct hmm_leaf *leaf;
	uint64_t done = 0;
	long got = -EBADF; /* the program has closed our descriptor */
	int rc = -ENOENT;

	leaf = file.fd >= 0 ? hmm_leaf_get(mm, f->addr) : NULL;
	if (!leaf)
		return rc;
	if (is_still(&file))
		got = sys4(SYS_pread64, file.fd, buf, UMM_PAGE, file.offset + (f->addr - file.start));
	if (got > 0)
		memset(buf + got, 0, UMM_PAGE - (size_t)got);
	umm_evlock_shared(&mm->space->ctl->evlock);
	now = file_at(t, f->addr, f->addr + UMM_PAGE);
	leaf = hmm_leaf_find(mm, f->addr);
	if (leaf)
		pthread_mutex_lock(&leaf->lock);
	if (now.fd != file.fd || now.offset - now.start != file.offset - file.start) {
		rc = -EAGAIN; /* something else was put there while the file was read */
	} else if (leaf && is_to_be_placed(mm, f, leaf->e[hmm_leaf_index(f->addr)])) {
		/* Behind the end of the file it is SIGBUS, as it was; any other is one that we have made. */
		if (got < 0 && atomic_exchange(&mm->lost_said, f->addr) != f->addr)
			hmm_say(mm->h,
				"page %#llx of process %d is lost: its file cannot be read (%s); an access gets SIGBUS",
				(unsigned long long)f->addr, (int)mm->space->pid, strerrorname_np((int)-got));
		rc = got > 0 ? umm_uffd_copy(mm->space->uffd, f->addr, buf, UMM_PAGE, &done)
			     : umm_uffd_poison(mm->space->uffd, f->addr, UMM_PAGE);
		if (rc != -EAGAIN) {
			umm_uffd_wake(mm->space->uffd, f->addr, UMM_PAGE);
			rc = 0;
		}
	}
	if (leaf)
		pthread_mutex_unlock(&leaf->lock);
	umm_evlock_unshared(&mm->space->ctl->evlock);
	return rc;
}

/* ------------------------------------------------------------------- events */

static bool is_ours(const char *piece, uint64_t addr)
{
	return piece && addr >= (uintptr_t)piece && addr < (uintptr_t)piece + RUN_BYTES;
}

bool hmm_take_change(struct hmm_take *t, const struct umm_change *c)
{
	struct hmm_mm *mm = t->mm;
	uint64_t len = c->end - c->start;

	if (c->event == UMM_EVENT_REMAP && is_ours(t->empty, c->start)) {
		/* It stands in for a file's: registered it is, as was said; what it replaces was not. */
		umm_uffd_wake(mm->space->uffd, c->new_start, len);
		return true;
	}
	if (c->event == UMM_EVENT_REMAP && is_ours(t->away, c->new_start)) {
		umm_uffd_wake(mm->space->uffd, c->start, len);
		return true;
	}
	/* What was moved whole (take_place()). */
	if (c->event == UMM_EVENT_UNMAP && (is_ours(t->empty, c->start) || is_ours(t->away, c->start)))
		return true;
	/* Read-only memory that was taken by mistake, on its way back, and what it replaces. */
	if (c->event == UMM_EVENT_REMAP && is_ours(t->away, c->start))
		return true;
	if (c->event == UMM_EVENT_UNMAP && t->active && t->returns && c->start == t->start && c->end == t->end)
		return true;
	if (!t->nfiles)
		return false;
	pthread_mutex_lock(&mm->lock);
	if (c->event == UMM_EVENT_UNMAP)
		file_cut(t, c->start, c->end);
	if (c->event == UMM_EVENT_REMAP) {
		/* Also where the old range stays (MREMAP_DONTUNMAP): that is empty then, and the file's. */
		file_cut(t, c->new_start, c->new_start + len);
		for (unsigned i = 0, n = t->nfiles; i < n; i++) {
			struct hmm_stand_in f = t->file[i];

			if (f.start >= c->end || f.end <= c->start)
				continue;
			if (f.start < c->start) {
				f.offset += c->start - f.start;
				f.start = c->start;
			}
			if (f.end > c->end)
				f.end = c->end;
			f.start += c->new_start - c->start;
			f.end += c->new_start - c->start;
			if (files_grow(t, 1))
				t->file[t->nfiles++] = f;
			else
				hmm_say(mm->h, "no memory to follow mremap(): a dropped page will read as zeros");
		}
	}
	pthread_mutex_unlock(&mm->lock);
	return false;
}

static uint64_t present(struct umm_space *space, uint64_t addr, unsigned npages)
{
	uint64_t mask = 0, end = addr + npages * UMM_PAGE, walked;
	struct umm_page_run runs[UMM_RUN_PAGES];
	int n = umm_page_scan(space, addr, end, runs, UMM_RUN_PAGES, &walked);

	for (int i = 0; i < n; i++)
		for (uint64_t at = runs[i].start; at < runs[i].end && (runs[i].flags & UMM_PAGE_PRESENT);
		     at += UMM_PAGE)
			mask |= 1ull << (at - addr) / UMM_PAGE;
	return mask;
}

/* Is anything at @addr, be it swapped out? */
static bool is_there(struct umm_space *space, uint64_t addr)
{
	struct umm_page_run run;
	uint64_t walked;

	return umm_page_scan(space, addr, addr + UMM_PAGE, &run, 1, &walked) > 0;
}

bool hmm_take_child(const struct hmm_take *t, uint64_t addr, const void **page)
{
	if (!t->active || addr < t->start || addr >= t->end)
		return false;
	*page = t->contents ? t->contents + (addr - t->start) : NULL;
	if (t->contents != t->away)
		return true;
	if (is_there(t->mm->space, (uintptr_t)t->held + (addr - t->start))) {
		*page = t->held + (addr - t->start);
		return true;
	}
	if (is_there(t->mm->space, (uintptr_t)*page))
		return true;
	/* If it has not gone yet, the child has it, too; but it may have come back since the fork. */
	*page = (const char *)(uintptr_t)addr;
	return t->returns && is_there(t->mm->space, addr);
}

/* ---------------------------------------------------------------------- runs */

/* False: what was asked for is stale. */
static bool take_begin(struct hmm_take *t, unsigned b, uint64_t start, uint64_t end, const char *contents)
{
	struct umm_ctl *c = t->mm->space->ctl;
	bool fresh;

	umm_evlock_shared(&c->evlock);
	fresh = atomic_load(&c->epoch) == c->batch[b].epoch;
	if (fresh) {
		t->start = start;
		t->end = end;
		t->contents = contents;
		t->active = true;
	}
	umm_evlock_unshared(&c->evlock);
	return fresh;
}

/*
 * From here on, until it is false again, the run goes back where it was.  A fork
 * that came before it did may be told of later: that is waited for.
 */
static void take_returns(struct hmm_take *t, bool returns)
{
	while (!returns && umm_uffd_is_changing(t->mm->space->uffd))
		sched_yield();
	umm_evlock_shared(&t->mm->space->ctl->evlock);
	t->returns = returns;
	umm_evlock_unshared(&t->mm->space->ctl->evlock);
}

static void take_end(struct hmm_take *t, struct umm_move_run *run, uint64_t mask, int err)
{
	umm_evlock_shared(&t->mm->space->ctl->evlock);
	t->active = false;
	run->mask = mask;
	run->err = err;
	atomic_store_explicit(&run->state, UMM_RUN_FILLED, memory_order_release);
	umm_evlock_unshared(&t->mm->space->ctl->evlock);
}

/* mremap() would take the lock off memory that stays where it is. */
static bool is_locked(uint64_t addr)
{
	return sys3(SYS_madvise, addr, UMM_PAGE, MADV_COLD) == -EINVAL;
}

/*
 * All that there is of @npages at @addr, in *@mask, with what is swapped out or
 * just being moved by the kernel.  False: something is there that has no
 * contents (a guard region).
 */
static bool fetch(struct umm_space *space, uint64_t addr, unsigned npages, uint64_t *mask)
{
	uint64_t end = addr + npages * UMM_PAGE, walked;
	struct umm_page_run runs[UMM_RUN_PAGES];
	int n = umm_page_scan(space, addr, end, runs, UMM_RUN_PAGES, &walked);

	*mask = 0;
	if (n < 0 || walked < end)
		return false;
	for (int i = 0; i < n; i++) {
		if (!(runs[i].flags & UMM_PAGE_PRESENT) &&
		    sys3(SYS_madvise, runs[i].start, runs[i].end - runs[i].start, MADV_POPULATE_READ))
			return false;
		for (uint64_t at = runs[i].start; at < runs[i].end; at += UMM_PAGE)
			*mask |= 1ull << (at - addr) / UMM_PAGE;
	}
	return true;
}

/* Of @n pages, as far as they go: *@moved of them have.  The event lock is held for the call, see hmm_take_child(). */
static int move(struct umm_space *space, char *dst, const char *src, unsigned n, unsigned *moved)
{
	uint64_t bytes;
	int rc;

	umm_evlock_shared(&space->ctl->evlock);
	rc = umm_uffd_move(space->uffd, (uintptr_t)dst, src, n * UMM_PAGE, &bytes);
	umm_evlock_unshared(&space->ctl->evlock);
	*moved = (unsigned)(bytes / UMM_PAGE);
	return *moved ? 0 : rc;
}

/* Pages @i and after of @mask, as many as there are in a row. */
static unsigned row(uint64_t mask, unsigned i)
{
	unsigned n = 0;

	while (i + n < UMM_RUN_PAGES && mask >> (i + n) & 1)
		n++;
	return n;
}

/* All of @mask from one place of ours to the other.  *@done: those that have gone.  -EBUSY: the next is pinned. */
static int move_all(struct umm_space *space, char *dst, char *src, uint64_t mask, uint64_t *done)
{
	unsigned tries = 0, n, moved;

	*done = 0;
	for (unsigned i = 0; i < UMM_RUN_PAGES; i += moved) {
		int rc;

		moved = 1;
		n = row(mask, i);
		if (!n)
			continue;
		rc = move(space, dst + i * UMM_PAGE, src + i * UMM_PAGE, n, &moved);
		for (unsigned k = 0; k < moved; k++)
			*done |= 1ull << (i + k);
		if (!rc) {
			tries = 0;
			continue;
		}
		/* Somebody changes the space, or the kernel has the page in hand; or it is shared since a fork. */
		if ((rc != -EAGAIN && rc != -EBUSY) || ++tries > (rc == -EBUSY ? UNSHARE_TRIES : MOVE_TRIES))
			return rc == -EAGAIN ? -EBUSY : rc;
		if (rc == -EBUSY)
			sys3(SYS_madvise, src + i * UMM_PAGE, UMM_PAGE, MADV_POPULATE_WRITE);
		else
			sched_yield();
	}
	return 0;
}

/* What was carried away is nobody's but ours from here on; or an error, and it is as it was. */
static int hold(struct hmm_take *t, uint64_t len, uint64_t mask)
{
	struct umm_space *space = t->mm->space;
	uint64_t done, back;
	int rc;

	rc = umm_uffd_register(space->uffd, (uintptr_t)t->held, RUN_BYTES, UFFDIO_REGISTER_MODE_MISSING);
	if (rc)
		return -EBUSY;
	rc = (int)sys3(SYS_mprotect, t->away, len, PROT_READ | PROT_WRITE);
	if (rc)
		return -EBUSY;
	rc = move_all(space, t->held, t->away, mask, &done);
	if (!rc)
		return 0;
	while (done) {
		move_all(space, t->away, t->held, done, &back);
		done &= ~back;
	}
	sys3(SYS_mprotect, t->away, len, PROT_READ);
	return -EBUSY;
}

static void hold_end(struct hmm_take *t)
{
	umm_uffd_unregister(t->mm->space->uffd, (uintptr_t)t->held, RUN_BYTES);
	umm_arena_reset(t->held, RUN_BYTES);
}

/*
 * May the process map @n more pages?  mremap() asks when it has unmapped already
 * what it is to replace.
 */
static bool has_room(struct hmm_take *t, unsigned n)
{
	struct rlimit limit;
	char buf[32];
	long got;

	if (getrlimit(RLIMIT_AS, &limit) || limit.rlim_cur == RLIM_INFINITY)
		return true;
	got = sys4(SYS_pread64, t->mm->statm_fd, buf, sizeof(buf) - 1, 0);
	if (got <= 0)
		return false;
	buf[got] = 0;
	return strtoull(buf, NULL, 10) + n <= limit.rlim_cur / UMM_PAGE;
}

/*
 * A hole in the arena would be given to the program by the next mmap(), and the next run put over what it has there.
 * False: it was given already, or cannot be filled, or is none.
 */
static bool fill(char *piece, uint64_t len)
{
	if (sys6(SYS_mmap, piece, len, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0) != (long)(uintptr_t)piece)
		return false;
	umm_arena_reset(piece, len);
	return true;
}

/* What lies in *@piece, or comes to lie there, stays, also when the arena goes. */
static void leave(struct hmm_take *t, char **piece, uint64_t size)
{
	struct umm_space *space = t->mm->space;
	char *fresh = umm_alloc(space, size);

	umm_arena_torn(space->arena);
	/* Events of what was there have been applied then. */
	umm_evlock_shared(&space->ctl->evlock);
	*piece = fresh;
	umm_evlock_unshared(&space->ctl->evlock);
}

/*
 * The pages at @from, and their mapping, take the place of what is at @to.  What
 * they leave is an empty mapping: nobody else's may come to lie among what is ours.
 * *@torn: somebody's may have, and @from is to be left.
 */
static long take_place(struct hmm_take *t, char *from, uint64_t to, uint64_t len, bool *torn)
{
	long got = sys5(SYS_mremap, from, len, len, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, to);

	*torn = false;
	/* Somebody was faster to take the room; and @to may have gone. */
	if (got == -ENOMEM) {
		got = sys5(SYS_mremap, from, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, to);
		*torn = got == (long)to && !fill(from, len);
		if (from == t->empty)
			t->prot = 0;
	}
	return got;
}

/*
 * mremap() unmaps what it is to replace, and may find only then that it cannot go on.  False: what was there is not
 * all ours any more.
 */
static bool fill_away(struct hmm_take *t, uint64_t len)
{
	uint64_t at = (uintptr_t)t->away;
	struct umm_vma v;

	if (fill(t->away, len)) {
		umm_arena_reset(t->away, AWAY_BYTES);
		return true;
	}
	/* Or nothing was unmapped: it is one mapping with what is behind it, as nobody's is without our marks. */
	return !umm_vma_next(t->mm->space, at, &v) && v.start <= at && v.end >= at + AWAY_BYTES;
}

static void take_readonly(struct hmm_take *t, unsigned b, struct umm_move_run *run, char *window)
{
	struct umm_space *space = t->mm->space;
	uint64_t len = run->npages * UMM_PAGE, mask = 0;
	long got = is_locked(run->addr) ? -EINVAL : -ESTALE;
	bool torn = false;
	int err;

	if (got != -EINVAL && (!t->away || !has_room(t, 2 * run->npages))) {
		got = -EBUSY;
	} else if (got != -EINVAL && take_begin(t, b, run->addr, run->addr + len, t->away)) {
		got = sys5(SYS_mremap, run->addr, len, len, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, t->away);
		torn = got != (long)(uintptr_t)t->away && !fill_away(t, len);
	}
	err = got == (long)(uintptr_t)t->away ? 0 : (int)got;
	if (err)
		goto out;
	err = registered(space, (uintptr_t)t->away);
	if (err)
		err = err == -ENOENT ? -ENXIO : err; /* something else had been mapped there, or that cannot be told */
	else if (!fetch(space, (uintptr_t)t->away, run->npages, &mask))
		err = -EBUSY;
	else
		err = hold(t, len, mask);
	if (err) {
		mask = 0;
		take_returns(t, true);
		/* They are nowhere else: what was left behind would be zeros. */
		if (take_place(t, t->away, run->addr, len, &torn) != (long)run->addr)
			t->mm->h->opt.fatal(t->mm->h->opt.priv, t->mm, "read-only pages cannot be put back");
		take_returns(t, false);
		if (!torn)
			umm_arena_reset(t->away, AWAY_BYTES);
		goto out;
	}
	for (unsigned i = 0; i < run->npages; i++)
		if (mask >> i & 1)
			memcpy(window + i * UMM_PAGE, t->held + i * UMM_PAGE, UMM_PAGE);
out:
	take_end(t, run, mask, err);
	if (!err) {
		hold_end(t);
		/* Not registered any more, it goes without an event. */
		umm_uffd_unregister(space->uffd, (uintptr_t)t->away, len);
		umm_arena_reset(t->away, AWAY_BYTES);
	}
	if (torn)
		leave(t, &t->away, AWAY_BYTES);
}

/* Are these pages copies of our own that a write would not replace? */
static bool is_exclusive(struct umm_space *space, uint64_t addr, unsigned npages)
{
	uint64_t pm[UMM_RUN_PAGES];

	if (sys4(SYS_pread64, umm_space_pagemap_fd(space), pm, npages * sizeof(pm[0]),
		 addr / UMM_PAGE * sizeof(pm[0])) != (long)(npages * sizeof(pm[0])))
		return false;
	for (unsigned i = 0; i < npages; i++)
		if (!(pm[i] & PAGEMAP_EXCLUSIVE))
			return false;
	return true;
}

/* Has the process pinned memory for longer?  So it is said where nobody can tell. */
static bool may_be_pinned(void)
{
	static const char what[] = "\nVmPin:";
	char buf[UMM_PAGE];
	int fd = (int)sys3(SYS_open, "/proc/self/status", O_RDONLY | O_CLOEXEC, 0);
	long got = fd >= 0 ? sys3(SYS_read, fd, buf, sizeof(buf) - 1) : -1;
	const char *at;

	if (fd >= 0)
		sys_close(fd);
	if (got <= 0)
		return true;
	buf[got] = 0;
	at = strstr(buf, what);
	return !at || strspn(at + sizeof(what) - 1, " \t0") != strcspn(at + sizeof(what) - 1, "k");
}

static int pipe_ready(struct hmm_take *t)
{
	struct stat st;
	int fd[2];

	if (is_our_end(t, t->pipe[0]) && is_our_end(t, t->pipe[1]))
		return 0;
	pipe_drop(t);
	if (sys2(SYS_pipe2, fd, O_CLOEXEC | O_NONBLOCK))
		return -EMFILE;
	if (fstat(fd[0], &st)) {
		sys_close(fd[0]);
		sys_close(fd[1]);
		return -EMFILE;
	}
	t->pipe[0] = fd[0];
	t->pipe[1] = fd[1];
	t->pipe_dev = st.st_dev;
	t->pipe_inode = st.st_ino;
	fcntl(fd[1], F_SETPIPE_SZ, (int)RUN_BYTES); /* else it takes fewer at a time */
	return 0;
}

/* Empty, as @v is protected, and registered. */
static int empty_ready(struct hmm_take *t, const struct umm_vma *v)
{
	int prot = PROT_READ | (v->flags & UMM_VMA_WRITE ? PROT_WRITE : 0), uffd = t->mm->space->uffd;
	long rc;

	if (!t->empty)
		return -ENOMEM;
	if (t->prot == prot)
		return 0; /* mremap() has left it as it was */
	umm_uffd_unregister(uffd, (uintptr_t)t->empty, RUN_BYTES);
	t->prot = 0;
	rc = sys6(SYS_mmap, t->empty, RUN_BYTES, prot, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	if (rc != (long)(uintptr_t)t->empty)
		return (int)rc;
	/* What stands in a file's place keeps it. */
	rc = atomic_load(&t->mm->space->ctl->no_fork_events) ? sys3(SYS_madvise, t->empty, RUN_BYTES, MADV_DONTFORK)
							     : 0;
	if (!rc)
		rc = umm_uffd_register(uffd, (uintptr_t)t->empty, RUN_BYTES,
				       UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP);
	if (!rc)
		t->prot = prot;
	return (int)rc;
}

/* @n pages from @addr on, of a run that begins at @start, as far as one pipe goes.  Returns how many were taken, or
 * -errno. */
static int take_copies(struct hmm_take *t, unsigned b, const struct umm_vma *v, uint64_t start, uint64_t addr,
		       unsigned n, char *window)
{
	struct umm_space *space = t->mm->space;
	struct iovec iov = {(void *)(uintptr_t)addr, n * UMM_PAGE};
	bool writable = v->flags & UMM_VMA_WRITE, watched, torn;
	uint64_t len;
	long got;
	int rc;

	rc = pipe_ready(t);
	if (rc)
		return rc;
	if (writable)
		sys3(SYS_madvise, addr, n * UMM_PAGE, MADV_POPULATE_WRITE);
	got = sys4(SYS_vmsplice, t->pipe[1], &iov, 1, SPLICE_F_NONBLOCK);
	if (got <= 0)
		return got ? (int)got : -EAGAIN;
	len = (uint64_t)got & -UMM_PAGE;
	n = (unsigned)(len / UMM_PAGE);
	rc = -EBUSY;
	if (!n || present(space, addr, n) != (n == 64 ? ~0ull : (1ull << n) - 1) ||
	    (writable && !is_exclusive(space, addr, n)))
		goto fail;
	rc = empty_ready(t, v);
	if (!rc)
		rc = file_add(t, v, addr, len);
	if (rc)
		goto fail;
	/* Were it watched, its end would be an event, and not one of ours. */
	watched = umm_inside_registered(space->uffd, addr) != -ENOENT;
	umm_uffd_unregister(space->uffd, addr, len);
	/* Where nobody may write a copy is as good as the page, and can be given to a child. */
	if (!writable)
		memcpy(window, (const void *)(uintptr_t)addr, len);
	rc = may_be_pinned() || !has_room(t, n) ? -EBUSY : -ESTALE;
	if (rc == -EBUSY || !take_begin(t, b, start, addr + len, writable ? NULL : window - (addr - start)))
		goto fail_file;
	got = take_place(t, t->empty, addr, len, &torn);
	if (torn)
		leave(t, &t->empty, RUN_BYTES);
	if (got != (long)addr) {
		/* A sealed mapping, or too many of them: mremap() says so before it unmaps, all of it or nothing. */
		rc = -EBUSY;
		if (is_mapped(space, v, addr, len))
			goto fail_file;
		t->mm->h->opt.fatal(t->mm->h->opt.priv, t->mm, "pages of a file's mapping were lost");
	}
	for (uint64_t at = 0; at < len; at += (uint64_t)got) {
		got = sys3(SYS_read, t->pipe[0], window + at, len - at);
		if (got <= 0)
			t->mm->h->opt.fatal(t->mm->h->opt.priv, t->mm, "pages of a file's mapping were lost");
	}
	return (int)n;
fail_file:
	/* It stays: a child that is forked now has it, too. */
	umm_evlock_shared(&space->ctl->evlock);
	if (t->active && t->end > addr)
		t->end = addr;
	umm_evlock_unshared(&space->ctl->evlock);
	/* Whoever mirrors it waits for the end of this migration: what happened meanwhile is not missed. */
	if (watched)
		umm_uffd_register(space->uffd, addr, len, UFFDIO_REGISTER_MODE_WP);
	pthread_mutex_lock(&t->mm->lock);
	file_cut(t, addr, addr + len);
	pthread_mutex_unlock(&t->mm->lock);
fail:
	pipe_drop(t);
	return rc;
}

static void take_file(struct hmm_take *t, unsigned b, struct umm_move_run *run, const struct umm_vma *v, char *window)
{
	uint64_t mask = 0;
	unsigned done = 0;
	int rc = -EINVAL;

	if (is_locked(run->addr))
		goto out;
	while (done < run->npages) {
		rc = take_copies(t, b, v, run->addr, run->addr + done * UMM_PAGE, run->npages - done,
				 window + done * UMM_PAGE);
		if (rc <= 0)
			break;
		for (int i = 0; i < rc; i++)
			mask |= 1ull << done++;
		rc = 0;
	}
out:
	take_end(t, run, mask, rc == -EINVAL ? -EBUSY : rc);
}

void hmm_take_run(struct hmm_take *t, unsigned b, unsigned r, const struct umm_vma *v, char *window)
{
	struct umm_move_run *run = &t->mm->space->ctl->batch[b].run[r];

	if (hmm_take_file(v))
		take_file(t, b, run, v, window);
	else
		take_readonly(t, b, run, window);
}
