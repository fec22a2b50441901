/* SPDX-License-Identifier: MIT */
/*
 * Getting into slots what a kernel is about to use.
 *
 * DOC: two ways
 *
 * What a kernel writes moves: whole pages that the argument has for itself, of
 * memory that can move.  All else is copied: what it only reads (the CPU keeps
 * its page), the first and last bytes of an argument, memory that cannot move
 * (shared, locked, of a file), pages that would not go just now.  Of these what
 * the kernel has written is copied back when it has ended: the bytes of the
 * argument, no others.
 *
 * Of what a kernel overwrites as a whole (HMM_CL_WRITE_ALL) pages move bare: nobody
 * looks at what is in the slot before the kernel has written there.  Where another
 * argument has pages in common with it, it may have use for that; then all come
 * with their contents.
 *
 * A slot may still be in use by a kernel that was launched before; who puts
 * something into it waits for that one.
 */
#include <errno.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "drivers/opencl/opencl.h"

_Static_assert(HUGE_BYTES == HMM_BATCH_MAX * PAGE, "a batch is a huge page");

#define TRIES 4u
#define NAP_NS 20000l

static void wait_for_slots(struct hmm_cl *cl, struct region *r, uint64_t first, uint64_t npages)
{
	sigset_t old;

	cl_lock(cl, &old);
	while (launch_uses(cl, r, first, npages, false))
		pthread_cond_wait(&cl->changed, &cl->lock);
	cl_unlock(cl, &old);
}

/*
 * Lock held.  It has its page, as far as is known.  Where that is not the page of its
 * address any more, who has a reference still drops it; in a stray region it may stay
 * for good, and is_there() refuses it.
 */
static bool is_here(const struct region *r, const struct slot *s)
{
	if (!s->refs || s->flags & SLOT_LENT)
		return false;
	return r->stray || !(s->flags & SLOT_GONE || s->copied);
}

/*
 * Somebody has read slot @i, and the page may have gone home since: or that came to
 * nothing, and it is here still.  If there was but one reference, then the engine
 * says it is here, and no reference was taken meanwhile, that is so.  A change that
 * we were told of has not taken it away either, if none is under way.
 */
static void find_out(struct hmm_cl *cl, struct region *r, uint64_t i)
{
	struct timespec ts = {.tv_nsec = NAP_NS};
	struct slot *s = &r->slot[i];
	uint64_t a = r->addr + i * PAGE;
	struct hmm_device *where;
	hmm_handle_t handle;
	bool alone, here;
	uint32_t gets;
	uint64_t seq;
	sigset_t old;

	seq = umm_read_begin(&cl->notifier);
	cl_lock(cl, &old);
	alone = s->refs == 1;
	gets = s->gets;
	cl_unlock(cl, &old);
	here = !hmm_where(cl->mm, a, a + PAGE, &where, &handle) && where == &cl->dev && handle == handle_of(r, i);
	cl_lock(cl, &old);
	if (alone && here && s->refs == 1 && s->gets == gets) {
		s->copied = 0;
		if (!umm_read_retry(&cl->notifier, seq))
			s->flags &= (uint8_t)~SLOT_GONE;
	}
	here = !s->refs || is_here(r, s);
	cl_unlock(cl, &old);
	if (!here)
		nanosleep(&ts, NULL);
}

/* The first run of slots from @i on, below @end, that are without their page; its end in @z.  False: there is none. */
static bool next_absent(struct hmm_cl *cl, struct region *r, uint64_t *i, uint64_t *z, uint64_t end)
{
	const struct slot *s = r->slot;
	sigset_t old;
	bool open;

	do {
		cl_lock(cl, &old);
		while (*i < end && is_here(r, &s[*i]))
			++*i;
		open = *i < end && s[*i].refs;
		for (*z = *i; *z < end && !s[*z].refs;)
			++*z;
		cl_unlock(cl, &old);
		if (open)
			find_out(cl, r, *i);
	} while (open);
	return *i < end;
}

static const char zeros[PAGE];

/*
 * The page at @src goes into slot @i.  What is the same in there is not copied:
 * pages that nobody has touched yet, and those that were here before, came home
 * and were only looked at; nor does a page of zeros go through the runtime.
 */
static int put_page(struct hmm_cl *cl, struct region *r, uint64_t i, const void *src, uint64_t *copied)
{
	if (r->base) {
		if (!memcmp(r->base + i * PAGE, src, PAGE))
			return 0;
		memcpy(r->base + i * PAGE, src, PAGE);
	} else if (!memcmp(src, zeros, PAGE)) {
		return region_zero(cl, r, i * PAGE, PAGE);
	} else {
		int rc = region_write(cl, r, i * PAGE, src, PAGE);

		if (rc)
			return rc;
	}
	*copied += PAGE;
	return 0;
}

/*
 * Lock held.  What other regions have of a page that goes to @r will be older than what
 * comes from there; also where who took it home has not dropped its references yet.
 */
static void forget_copies(struct hmm_cl *cl, const struct region *r, uint64_t addr)
{
	for (unsigned id = 0; id < cl->nregions; id++) {
		struct region *o = cl->region[id];

		if (o && o != r && addr >= o->addr && addr < o->addr + o->npages * PAGE) {
			slot_has(o, (addr - o->addr) / PAGE, 0);
			if (o->slot[(addr - o->addr) / PAGE].refs)
				o->slot[(addr - o->addr) / PAGE].flags |= SLOT_GONE;
		}
	}
}

/*
 * Where what was collected is a huge page, and the device's memory plain: the page
 * itself becomes the device's, and nothing is copied.  Not what is @bare, if there
 * is memory in its place.  Returns how many pages went, or -ENOMEM.
 */
static int give(struct hmm_cl *cl, struct region *r, struct hmm_migrate *m, bool bare)
{
	uint64_t i = m->npages ? (m->addr[0] - r->addr) / PAGE : 0;
	bool *empty = &r->empty[block_of(r, i)];
	sigset_t old;
	int n = 0;

	if (!r->gives || !m->npages || m->npages < HMM_BATCH_MAX || (bare && !*empty))
		return region_fill(cl, r, i, m->npages);
	n = hmm_migrate_give(m, r->base + i * PAGE);
	cl_lock(cl, &old);
	if (n >= 0)
		*empty = n < (int)HMM_BATCH_MAX;
	if (n > 0 && !bare)
		cl->st.bytes_in += (uint64_t)n * PAGE;
	cl_unlock(cl, &old);
	if (n < (int)HMM_BATCH_MAX && region_fill(cl, r, i, HMM_BATCH_MAX))
		return n > 0 ? n : -ENOMEM;
	return n > 0 ? n : 0;
}

/*
 * What was collected goes into its slots; @bare: the pages alone; @given: those that
 * are there already.  0 or -errno: then no others are.
 */
static int put_into_slots(struct hmm_cl *cl, struct region *r, struct hmm_migrate *m, bool bare, unsigned *given)
{
	uint64_t copied = 0;
	sigset_t old;
	int rc = 0;

	*given = 0;

	cl_lock(cl, &old);
	for (unsigned k = 0; k < m->npages; k++) {
		uint64_t i = (m->addr[k] - r->addr) / PAGE;
		struct slot *s = &r->slot[i];

		if (s->refs)
			continue; /* somebody has just read what was here before */
		s->refs = 1;
		s->copied = 0;
		slot_has(r, i, 0);
		s->flags &= (uint8_t)~SLOT_GONE;
		r->live++;
		cl->moves++;
		cl->st.pages_here++;
		m->handle[k] = handle_of(r, i);
		forget_copies(cl, r, m->addr[k]);
	}
	cl_unlock(cl, &old);
	rc = give(cl, r, m, bare);
	if (rc > 0)
		*given = (unsigned)rc;
	rc = rc < 0 ? rc : 0;
	for (unsigned k = 0; k < m->npages && !rc && !bare; k++)
		if (m->handle[k] != HMM_HANDLE_NONE)
			rc = put_page(cl, r, m->handle[k] & INDEX_MASK, m->src[k], &copied);
	if (!r->base && !bare) {
		int err = cl_errno(clFinish(cl->copies));

		rc = rc ? rc : err;
	}
	for (unsigned k = 0; rc && k < m->npages; k++) {
		if (m->handle[k] != HMM_HANDLE_NONE)
			cl->dev.ops->put(&cl->dev, &m->handle[k], 1);
		m->handle[k] = HMM_HANDLE_NONE;
	}
	cl_lock(cl, &old);
	cl->st.bytes_in += copied;
	cl_unlock(cl, &old);
	return rc;
}

/* What is on a device, but not in our slots, comes by way of the system. */
static int fetch_home(struct hmm_cl *cl, uint64_t start, uint64_t end)
{
	struct hmm_device *where[HMM_BATCH_MAX];
	int rc = hmm_where(cl->mm, start, end, where, NULL);

	for (uint64_t i = 0; !rc && i < (end - start) / PAGE; i++)
		if (where[i])
			return hmm_migrate_to_system(cl->mm, NULL, start, end, NULL);
	return rc;
}

int bring_shared(struct hmm_cl *cl, uint64_t start, uint64_t end)
{
	int rc = 0;

	for (uint64_t at = page_down(start), z; at < end && !rc; at = z) {
		z = page_up(end);
		if (advice_at(cl, at, &z) == HMM_CL_READ_MOSTLY)
			rc = hmm_migrate_to_system(cl->mm, &cl->dev, at, z, NULL);
	}
	return rc;
}

static int move(struct hmm_cl *cl, struct region *r, uint64_t start, uint64_t end, bool bare)
{
	uint64_t i = (start - r->addr) / PAGE, stop = (end - r->addr) / PAGE, z;

	for (unsigned tries = 0; start < end && next_absent(cl, r, &i, &z, stop);) {
		uint64_t a = r->addr + i * PAGE, batch = ((a / HUGE_BYTES + 1) * HUGE_BYTES - r->addr) / PAGE;
		unsigned moved;
		int rc;

		/* As they lie in huge pages, which go as a whole. */
		z = z < batch ? z : batch;
		wait_for_slots(cl, r, i, z - i);
		rc = fetch_home(cl, a, r->addr + z * PAGE);
		if (rc)
			return rc;
		*cl->m = (struct hmm_migrate){
			.mm = cl->mm, .to = &cl->dev, .start = a, .end = r->addr + z * PAGE, .owner = cl};
		rc = hmm_migrate_collect(cl->m);
		if (rc == -EBUSY) { /* another userfaultfd's */
			i = z;
			continue;
		}
		if (rc)
			return rc == -EINVAL ? -EFAULT : rc;
		rc = put_into_slots(cl, r, cl->m, bare, &moved);
		z = (cl->m->end - r->addr) / PAGE;
		moved += (unsigned)hmm_migrate_commit(cl->m);
		if (rc)
			return cl_fail(cl, rc, "the device does not take pages (error %d)", -rc);
		/* Pages that did not go are tried again, a few times: somebody may just be touching them. */
		if (moved == z - i || !moved || ++tries == TRIES) {
			i = z;
			tries = 0;
		}
	}
	return 0;
}

/*
 * Bytes of the program's, whatever is away of them; a bad address is an error, not a
 * signal.  The kernel looks up page by page what is the other process's, here @dst,
 * huge pages at once, and reads the rest as it comes.
 */
static int fetch(uint64_t addr, char *dst, size_t n)
{
	for (size_t done = 0; done < n;) {
		struct iovec from = {(void *)(uintptr_t)(addr + done), n - done}, to = {dst + done, n - done};
		/* Not libc's name: a program's sanitizer would take what lies beside an allocation for an overflow. */
		ssize_t got = syscall(SYS_process_vm_writev, getpid(), &from, 1, &to, 1, 0);

		/* Memory of a runtime's that the kernel cannot look up (VM_PFNMAP). */
		if (got < 0 && errno == EFAULT)
			got = process_vm_readv(getpid(), &to, 1, &from, 1, 0);
		if (got <= 0)
			return got < 0 && errno == ENOMEM ? -ENOMEM : -EFAULT;
		done += (size_t)got;
	}
	return 0;
}

static int copy_slots(struct hmm_cl *cl, struct region *r, uint64_t i, uint64_t z)
{
	for (uint64_t n; i < z; i += n) {
		uint64_t a = r->addr + i * PAGE;
		sigset_t old;
		int rc;

		n = z - i < STAGE_PAGES ? z - i : STAGE_PAGES;
		rc = region_fill(cl, r, i, n);
		if (rc)
			return rc;
		rc = fetch(a, r->base ? r->base + i * PAGE : cl->stage, n * PAGE);
		if (rc)
			return cl_fail(cl, rc, "memory at %#llx cannot be read", (unsigned long long)a);
		if (!r->base) {
			rc = region_write(cl, r, i * PAGE, cl->stage, n * PAGE);
			if (!rc)
				rc = cl_errno(clFinish(cl->copies));
			if (rc)
				return cl_fail(cl, rc, "the device takes no data (error %d)", -rc);
		}
		cl_lock(cl, &old);
		cl->st.bytes_in += n * PAGE;
		cl_unlock(cl, &old);
	}
	return 0;
}

static int add_piece(struct hmm_cl *cl, struct launch *l, struct region *r, uint64_t start, uint64_t end)
{
	struct piece *last = l->npieces ? &l->piece[l->npieces - 1] : NULL;

	if (last && last->region == r && last->addr + last->len == start) {
		last->len += end - start;
		return 0;
	}
	if (l->npieces == l->room) {
		unsigned room = l->room ? 2 * l->room : 16;
		struct piece *p = umm_alloc(cl->space, room * sizeof(*p));

		if (!p)
			return -ENOMEM;
		if (l->npieces)
			memcpy(p, l->piece, l->npieces * sizeof(*p));
		umm_free(cl->space, l->piece, l->room * sizeof(*p));
		l->piece = p;
		l->room = room;
	}
	l->piece[l->npieces++] = (struct piece){.addr = start, .len = end - start, .region = r};
	return 0;
}

/* Of slots [i, z), which are without their pages: the first run that has no good copy, [*from, *to). */
static void next_stale(struct hmm_cl *cl, struct region *r, uint64_t i, uint64_t z, const uint64_t *stamp,
		       uint64_t *from, uint64_t *to)
{
	sigset_t old;

	cl_lock(cl, &old);
	for (*from = i; *from < z; ++*from)
		if (!r->slot[*from].copy || stamp[*from - i] > r->slot[*from].copy)
			break;
	for (*to = *from; *to < z && (!r->slot[*to].copy || stamp[*to - i] > r->slot[*to].copy);)
		++*to;
	cl_unlock(cl, &old);
}

/* In one piece for all of a range: most of the time there is nothing else to do than to ask. */
static int stamps_for(struct hmm_cl *cl, uint64_t n)
{
	if (n <= cl->nstamps)
		return 0;
	umm_free(cl->space, cl->stamp, cl->nstamps * sizeof(*cl->stamp));
	cl->stamp = umm_alloc(cl->space, n * sizeof(*cl->stamp));
	cl->nstamps = cl->stamp ? n : 0;
	return cl->stamp ? 0 : -ENOMEM;
}

/*
 * Slots [a, b) are about to get what their pages had at stamp @now.  Said first: who
 * tells us meanwhile that they are good no more has the last word.  Who has told us
 * already, and whose pages are still where they were, is waited for.
 */
static void mark_copies(struct hmm_cl *cl, struct region *r, uint64_t a, uint64_t b, uint64_t now)
{
	sigset_t old;
	bool told;

	do {
		uint64_t seq = umm_read_begin(&cl->notifier);

		cl_lock(cl, &old);
		told = umm_read_retry(&cl->notifier, seq);
		for (uint64_t k = a; k < b && !told; k++)
			r->slot[k].copy = now;
		cl_unlock(cl, &old);
	} while (told);
}

/* Slots [i, z) of one block, with the stamps of their pages. */
static int refresh_block(struct hmm_cl *cl, struct region *r, uint64_t i, uint64_t z, const uint64_t *stamp,
			 uint64_t now)
{
	uint64_t a, b, lowest = UINT64_MAX;
	unsigned block = block_of(r, i);
	sigset_t old;

	for (uint64_t at = i; next_stale(cl, r, at, z, stamp + (at - i), &a, &b), a < z; at = b) {
		int rc;

		wait_for_slots(cl, r, a, b - a);
		mark_copies(cl, r, a, b, now);
		rc = copy_slots(cl, r, a, b);
		if (!rc)
			continue;
		cl_lock(cl, &old);
		for (uint64_t k = a; k < b; k++)
			slot_has(r, k, 0);
		cl_unlock(cl, &old);
		return rc;
	}
	cl_lock(cl, &old);
	while (i && block_of(r, i - 1) == block)
		i--;
	for (; i < r->npages && block_of(r, i) == block; i++)
		lowest = r->slot[i].copy < lowest ? r->slot[i].copy : lowest;
	r->since[block] = lowest;
	cl_unlock(cl, &old);
	return 0;
}

/* Slots [i, z), which are without their pages, get what is in these. */
static int refresh(struct hmm_cl *cl, struct region *r, uint64_t i, uint64_t z)
{
	unsigned first = block_of(r, i), n = block_of(r, z - 1) - first + 1;
	int rc = stamps_for(cl, z - i + 2 * n);
	uint64_t *latest = cl->stamp + (z - i), *since = latest + n, now;
	sigset_t old;

again:
	if (rc)
		return rc;
	cl_lock(cl, &old);
	memcpy(since, r->since + first, n * sizeof(*since));
	cl_unlock(cl, &old);
	memcpy(latest, since, n * sizeof(*latest));
	rc = hmm_written_since(cl->mm, r->addr + i * PAGE, r->addr + z * PAGE, latest, cl->stamp, &now);
	if (rc)
		return rc;
	atomic_store(&cl->now, now);
	for (uint64_t at = i, to; at < z; at = to) {
		uint64_t end = ((r->addr + at * PAGE) / HMM_WRITTEN_BLOCK + 1) * HMM_WRITTEN_BLOCK;
		unsigned block = block_of(r, at);
		bool dropped;

		to = (end - r->addr) / PAGE < z ? (end - r->addr) / PAGE : z;
		cl_lock(cl, &old);
		dropped = r->since[block] < since[block - first];
		cl_unlock(cl, &old);
		if (dropped) /* a copy that was good when we asked */
			goto again;
		if (!since[block - first] || latest[block - first] > since[block - first])
			rc = refresh_block(cl, r, at, to, cl->stamp + (at - i), now);
		if (rc)
			return rc;
	}
	return 0;
}

/* They are about to be written to by the device: copies no longer. */
static int make_piece(struct hmm_cl *cl, struct launch *l, struct region *r, uint64_t i, uint64_t z, uint64_t start,
		      uint64_t end)
{
	uint64_t a = r->addr + i * PAGE, b = r->addr + z * PAGE;
	sigset_t old;

	wait_for_slots(cl, r, i, z - i);
	cl_lock(cl, &old);
	for (uint64_t k = i; k < z; k++) {
		r->slot[k].flags = (uint8_t)((r->slot[k].flags & ~SLOT_LOST) | SLOT_PIECE);
		slot_has(r, k, 0);
	}
	cl_unlock(cl, &old);
	return add_piece(cl, l, r, a > start ? a : start, b < end ? b : end);
}

int bring_copy(struct hmm_cl *cl, struct region *r, uint64_t start, uint64_t end, struct launch *l)
{
	uint64_t i = (page_down(start) - r->addr) / PAGE, stop = (page_up(end) - r->addr) / PAGE, z;
	int rc = 0;

	launch_wait_back(cl, page_down(start), page_up(end));
	for (; !rc && next_absent(cl, r, &i, &z, stop); i = z) {
		rc = refresh(cl, r, i, z);
		if (!rc && l)
			rc = make_piece(cl, l, r, i, z, start, end);
	}
	return rc;
}

int bring_again(struct hmm_cl *cl, struct region *r, uint64_t start, uint64_t end)
{
	launch_wait_back(cl, page_down(start), page_up(end));
	return refresh(cl, r, (page_down(start) - r->addr) / PAGE, (page_up(end) - r->addr) / PAGE);
}

int bring_move(struct hmm_cl *cl, struct region *r, uint64_t start, uint64_t end, bool bare)
{
	int rc = 0;

	launch_wait_back(cl, start, end);
	for (uint64_t at = start, z; at < end && !rc; at = z) {
		z = end;
		if (advice_at(cl, at, &z) != HMM_CL_STAY)
			rc = move(cl, r, at, z, bare);
	}
	return rc;
}
