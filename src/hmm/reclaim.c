/* SPDX-License-Identifier: MIT */
/*
 * Choosing what goes: a clock over the managed mappings of each space.
 *
 * The page table's accessed bits are not to be had, so a page is taken to be
 * hot when it faulted back soon after it went (entry_back() in fault.c): it is
 * passed over for as many laps as its heat says.
 */
#include <errno.h>
#include <sys/mman.h>

#include "hmm/internal.h"

#define SCAN_RUNS 128u
#define LEAF_BYTES (1ull << HMM_LEAF_SHIFT)
#define WINDOW_BYTES (UMM_BATCHES * UMM_BATCH_PAGES * UMM_PAGE)
#define MARKS_REST_NS 1000000000ull
#define WINDOWS_PART 16u /* of the budget: more than this windows do not take between two rounds */

#define SCATTERED (UMM_BATCH_PAGES / 4) /* pages in a batch, where nobody walks: windows are RAM */

struct collect {
	struct hmm_victim v[UMM_BATCH_RUNS];
	unsigned n, pages, most;
};

/* Pages of [start, end), in one leaf, that are present.  Returns where to go on. */
static uint64_t collect_present(struct hmm_mm *mm, uint64_t start, uint64_t end, struct collect *c)
{
	struct umm_evlock *evlock = &mm->space->ctl->evlock;
	struct hmm_leaf *leaf;
	uint64_t at = start;

	umm_evlock_shared(evlock); /* who has it to himself reads entries, and forgets them, as they are */
	leaf = hmm_leaf_find(mm, start);
	if (leaf)
		pthread_mutex_lock(&leaf->lock);
	for (; at < end; at += UMM_PAGE) {
		struct hmm_victim *v = c->n ? &c->v[c->n - 1] : NULL;
		hmm_entry_t e = leaf ? leaf->e[hmm_leaf_index(at)] : 0;

		if (!hmm_entry_here(e))
			continue;
		if (hmm_entry_heat(e)) {
			leaf->e[hmm_leaf_index(at)] = hmm_entry_with_heat(e, hmm_entry_heat(e) - 1);
			continue;
		}
		if (c->pages == c->most)
			break;
		if (v && v->addr + v->npages * UMM_PAGE == at && v->npages < UMM_RUN_PAGES &&
		    at % (UMM_RUN_PAGES * UMM_PAGE)) {
			v->npages++;
		} else {
			if (c->n == UMM_BATCH_RUNS)
				break;
			c->v[c->n++] = (struct hmm_victim){at, 1};
		}
		c->pages++;
	}
	if (leaf)
		pthread_mutex_unlock(&leaf->lock);
	umm_evlock_unshared(evlock);
	return at;
}

/* Advance the hand through [start, end), in one leaf and one mapping. */
static uint64_t collect_piece(struct hmm_mm *mm, uint64_t start, uint64_t end, struct collect *c)
{
	struct umm_page_run runs[SCAN_RUNS];
	uint64_t walked;
	int n = umm_page_scan(mm->space, start, end, runs, SCAN_RUNS, &walked);

	if (n < 0)
		return end;
	for (int i = 0; i < n; i++) {
		if ((runs[i].flags & (UMM_PAGE_PRESENT | UMM_PAGE_ZERO | UMM_PAGE_FILE)) != UMM_PAGE_PRESENT)
			continue;
		uint64_t at = collect_present(mm, runs[i].start, runs[i].end, c);
		if (at < runs[i].end)
			return at; /* the batch is full */
	}
	return walked > start ? walked : end;
}

static bool movable(const struct umm_vma *v)
{
	return (v->flags & (UMM_VMA_READ | UMM_VMA_WRITE | UMM_VMA_EXEC | UMM_VMA_SHARED | UMM_VMA_FILE)) ==
	       (UMM_VMA_READ | UMM_VMA_WRITE);
}

/* Fill a batch from where the hand is; out_lock held.  Returns false when as many laps as cool everything found
 * nothing.
 */
static bool collect(struct hmm_mm *mm, struct collect *c)
{
	unsigned laps = 0;

	c->n = c->pages = 0;
	while (c->pages < c->most && c->n < UMM_BATCH_RUNS && !atomic_load(&mm->dead)) {
		const struct hmm_interval *next;
		struct hmm_interval in = {0};
		struct umm_vma vma;
		bool skip;

		pthread_mutex_lock(&mm->lock);
		next = hmm_iset_next(&mm->registered, mm->hand);
		if (next)
			in = *next;
		pthread_mutex_unlock(&mm->lock);
		if (!next) {
			mm->hand = 0;
			if (c->n && laps)
				break;
			if (++laps > HMM_HEAT_MAX + 1)
				break;
			if (!(mm->lap++ % 8)) {
				pthread_mutex_lock(&mm->lock);
				hmm_iset_clear(&mm->stuck);
				pthread_mutex_unlock(&mm->lock);
			}
			continue;
		}
		uint64_t a = in.start > mm->hand ? in.start : mm->hand;
		uint64_t z = (a & ~(LEAF_BYTES - 1)) + LEAF_BYTES;
		if (umm_vma_next(mm->space, a, &vma))
			vma = (struct umm_vma){.start = in.end, .end = in.end};
		if (vma.start > a)
			a = vma.start;
		if (!movable(&vma) || a >= in.end) {
			mm->hand = vma.end < in.end && vma.end > a ? vma.end : in.end;
			continue;
		}
		z = (a & ~(LEAF_BYTES - 1)) + LEAF_BYTES;
		if (z > in.end)
			z = in.end;
		if (z > vma.end)
			z = vma.end;
		pthread_mutex_lock(&mm->lock);
		skip = umm_quarantined(mm->space, a, z) || hmm_iset_covers(&mm->stuck, a, z);
		pthread_mutex_unlock(&mm->lock);
		mm->hand = skip ? z : collect_piece(mm, a, z, c);
	}
	return c->n > 0;
}

/*
 * What has been stored is still in the window.  Left there, it takes as much RAM
 * of each space that ever gave; out_lock held, and all batches settled.
 */
static void window_empty(struct hmm_mm *mm)
{
	if (mm->window_fd >= 0)
		madvise(mm->window, WINDOW_BYTES, MADV_REMOVE);
	mm->window_used = 0;
}

/* Of each batch's part what was last used when batches were larger. */
static void window_cut(struct hmm_mm *mm)
{
	uint64_t part = UMM_BATCH_PAGES * UMM_PAGE, keep = SCATTERED * UMM_PAGE;

	for (unsigned b = 0; b < UMM_BATCHES && mm->window_fd >= 0; b++)
		madvise(mm->window + b * part + keep, part - keep, MADV_REMOVE);
	mm->window_used = SCATTERED;
}

/*
 * Before the first page goes, and not when the space is armed: others are growing
 * then.  Hooks tell from there on; what cannot be read now is read at each fork.  A
 * look takes long where mappings are many, and is in vain where they change all the
 * time, while faults wait for room: so it is one look, and not the next one at once.
 */
static void marks_learn(struct hmm_mm *mm)
{
	uint64_t now = umm_now_ns();
	bool known;

	pthread_mutex_lock(&mm->lock);
	known = mm->marks_known;
	pthread_mutex_unlock(&mm->lock);
	if (known || atomic_load(&mm->space->ctl->no_fork_events) ||
	    (mm->marks_tried_ns && now - mm->marks_tried_ns < MARKS_REST_NS))
		return;
	hmm_marks_try(mm);
	mm->marks_tried_ns = umm_now_ns();
}

/* @n pages went.  out_lock held. */
static void went(struct hmm_mm *mm, uint64_t n)
{
	uint64_t part = mm->anon_pages / HMM_LAP_TICKS + 1;

	atomic_fetch_sub(&mm->h->estimate, n * UMM_PAGE);
	mm->since_tick += n;
	atomic_fetch_add(&mm->tick, (uint32_t)(mm->since_tick / part));
	mm->since_tick %= part;
}

/* Batch @b, and what follows from it.  Returns pages that went.  out_lock held. */
static uint64_t store(struct hmm_mm *mm, unsigned b)
{
	uint64_t failed = atomic_load(&mm->h->out_failed);
	int n = hmm_out_store(mm, b);

	if (n > 0)
		went(mm, (uint64_t)n);
	/* What no device took may have met copies that nobody needs. */
	hmm_clean_shed(mm, atomic_load(&mm->h->out_failed) != failed);
	hmm_demote(mm);
	return n > 0 ? (uint64_t)n : 0;
}

/* @tidy: the window is not to be kept for the next time. */
static uint64_t reclaim_mm(struct hmm_mm *mm, uint64_t pages, bool tidy)
{
	struct collect c = {.most = atomic_load(&mm->h->walks) ? UMM_BATCH_PAGES : SCATTERED};
	uint64_t stored = 0, asked = 0;
	int prev = -1;
	unsigned b = 0, barren = 0;

	pthread_mutex_lock(&mm->out_lock);
	/* Whom a debugger or a freezer holds would keep all others waiting. */
	if (mm->inside->able && !mm->inside->able(mm->inside_priv)) {
		pthread_mutex_unlock(&mm->out_lock);
		return 0;
	}
	marks_learn(mm);
	if (mm->inside->pins)
		mm->inside->pins(mm->inside_priv);
	while (asked < pages && !atomic_load(&mm->dead) && !atomic_load(&mm->rest)) {
		bool some = collect(mm, &c);
		int rc = some ? hmm_out_begin(mm, b, c.v, c.n) : 0;

		if (prev >= 0) {
			uint64_t n = store(mm, (unsigned)prev);

			prev = -1;
			stored += n;
			barren = n ? 0 : barren + 1;
			hmm_budget_measure(mm->h);
		}
		if (!some || rc)
			break;
		rc = hmm_out_finish(mm, b);
		if (rc < 0)
			break;
		asked += c.pages;
		mm->window_used = c.pages > mm->window_used ? c.pages : mm->window_used;
		prev = (int)b;
		b ^= 1;
		if (barren > 4)
			break;
	}
	if (prev >= 0)
		stored += store(mm, (unsigned)prev);
	if (tidy)
		window_empty(mm);
	else if (c.most == SCATTERED && mm->window_used > SCATTERED && !atomic_load(&mm->dead))
		window_cut(mm);
	pthread_mutex_unlock(&mm->out_lock);
	return stored;
}

static bool gives(const struct hmm_mm *mm)
{
	return mm->inside && atomic_load(&mm->armed) && !atomic_load(&mm->looking) && !atomic_load(&mm->dead) &&
	       !atomic_load(&mm->rest);
}

/*
 * Each gives by what it has; a share too small for a batch is a whole batch, so
 * of many spaces only some have to give, and the next time others.  Those that
 * are small beside the largest are asked when the others gave nothing.
 */
uint64_t hmm_reclaim(struct hmm *h, uint64_t pages)
{
	struct hmm_mm **list;
	uint64_t all = 0, largest = 0, stored = 0;
	unsigned first = h->reclaim_turn;
	int n = hmm_mms_get(h, &list);
	bool tidy = n > 0 && (uint64_t)n * WINDOW_BYTES > h->opt.budget / WINDOWS_PART;

	if (n < 0)
		return 0;
	for (int i = 0; i < n; i++) {
		if (!gives(list[i]))
			continue;
		all += list[i]->anon_pages;
		if (list[i]->anon_pages > largest)
			largest = list[i]->anon_pages;
	}
	for (unsigned pass = 0; pass < 2 && !stored; pass++) {
		for (unsigned i = 0; i < (unsigned)n && stored < pages; i++) {
			unsigned at = (first + i) % (unsigned)n;
			struct hmm_mm *mm = list[at];
			bool small = mm->anon_pages * 64 < largest;

			if (!gives(mm) || small != (pass == 1))
				continue;
			uint64_t share = all ? pages * mm->anon_pages / all : pages;

			stored += reclaim_mm(mm, share ? share : 1, tidy);
			h->reclaim_turn = at + 1;
		}
	}
	hmm_mms_put(list, (unsigned)n);
	return stored;
}
