/* SPDX-License-Identifier: MIT */
/*
 * Calls that change an address space, told before they do.
 *
 * DOC: a hook
 *
 * A library that has this file in it interposes libc's names by being preloaded
 * or linked first; no code is patched.  Around the call stand umm_hook_begin() and
 * umm_hook_end() (hook.c).
 *
 * The calls themselves are made raw, so that nothing has to be looked up and
 * the engine's own calls of the same names come through here unharmed.  What
 * libc does inside (malloc's munmap, say) is not seen here; where the range is
 * watched, the kernel tells of it.
 *
 * The space is process-wide state of this library, as the hooks are.  It lies in
 * memory that every child finds wiped, however it was forked: a call there tells
 * nobody, and need not ask in which process it is.
 */
#include "umm/hooks.h"

#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <sys/uio.h>
#include <unistd.h>

#include "umm/internal.h"
#include "umm/sys.h"

#define API __attribute__((visibility("default")))

#ifndef MADV_DONTNEED_LOCKED
#define MADV_DONTNEED_LOCKED 24
#endif
#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#endif

#define FORK_NAPS 20000u /* a second, more or less */

/* A page that children find wiped; NULL: nobody was ever told of anything. */
static _Atomic(struct umm_space *) *hooked;

int umm_hooks_set(struct umm_space *space)
{
	if (!hooked) {
		long p = sys6(SYS_mmap, 0, UMM_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		if (p < 0 && p >= -4095)
			return -ENOMEM;
		if (sys3(SYS_madvise, p, UMM_PAGE, MADV_WIPEONFORK)) {
			sys2(SYS_munmap, p, UMM_PAGE);
			return -ENOMEM;
		}
		hooked = (void *)p;
	}
	atomic_store(hooked, space);
	return 0;
}

static struct umm_space *space_get(void)
{
	return hooked ? atomic_load_explicit(hooked, memory_order_acquire) : NULL;
}

static void add(struct umm_hook *h, enum umm_event event, uint64_t start, uint64_t len, uint64_t new_start)
{
	uint64_t end = (start + len + UMM_PAGE - 1) & ~(UMM_PAGE - 1);

	/* What the kernel will refuse changes nothing. */
	if (!h->space || start % UMM_PAGE || end <= start || end > 1ull << 56)
		return;
	h->change[h->n++] = (struct umm_change){
		.event = event, .start = start, .end = end, .new_start = new_start, .blockable = true};
}

static long result(long rc)
{
	if (rc >= -4095 && rc < 0) {
		errno = (int)-rc;
		return -1;
	}
	return rc;
}

API int munmap(void *addr, size_t len)
{
	struct umm_hook h = {.space = space_get()};
	long rc;

	add(&h, UMM_EVENT_UNMAP, (uintptr_t)addr, len, 0);
	umm_hook_begin(&h);
	rc = sys2(SYS_munmap, addr, len);
	umm_hook_end(&h);
	return (int)result(rc);
}

void *umm_hooked_mmap(void *addr, size_t len, int prot, int flags, int fd, off_t offset)
{
	struct umm_hook h = {.space = flags & MAP_FIXED ? space_get() : NULL};
	long rc;

	add(&h, UMM_EVENT_UNMAP, (uintptr_t)addr, len, 0);
	umm_hook_begin(&h);
	rc = sys6(SYS_mmap, addr, len, prot, flags, fd, offset);
	umm_hook_end(&h);
	return (void *)result(rc);
}

/* Maps the same file there anew; of which the kernel tells nobody. */
API int remap_file_pages(void *addr, size_t len, int prot, size_t pgoff, int flags)
{
	struct umm_hook h = {.space = space_get()};
	long rc;

	add(&h, UMM_EVENT_UNMAP, (uintptr_t)addr & ~(UMM_PAGE - 1), len & ~(UMM_PAGE - 1), 0);
	umm_hook_begin(&h);
	rc = sys5(SYS_remap_file_pages, addr, len, prot, pgoff, flags);
	umm_hook_end(&h);
	return (int)result(rc);
}

API void *mremap(void *old, size_t old_len, size_t new_len, int flags, ...)
{
	struct umm_hook h = {.space = space_get()};
	void *to = NULL;
	long rc;

	if (flags & (MREMAP_FIXED | MREMAP_DONTUNMAP)) {
		va_list ap;

		va_start(ap, flags);
		to = va_arg(ap, void *);
		va_end(ap);
	}
	/* Else it is the kernel's to say where: with MREMAP_DONTUNMAP the address is a hint. */
	add(&h, UMM_EVENT_REMAP, (uintptr_t)old, old_len, flags & MREMAP_FIXED ? (uintptr_t)to : 0);
	if (flags & MREMAP_FIXED)
		add(&h, UMM_EVENT_UNMAP, (uintptr_t)to, new_len, 0);
	umm_hook_begin(&h);
	rc = sys5(SYS_mremap, old, old_len, new_len, flags, to);
	umm_hook_end(&h);
	return (void *)result(rc);
}

API int mprotect(void *addr, size_t len, int prot)
{
	struct umm_hook h = {.space = space_get()};
	long rc;

	add(&h, UMM_EVENT_PROTECT, (uintptr_t)addr, len, 0);
	umm_hook_begin(&h);
	rc = sys3(SYS_mprotect, addr, len, prot);
	umm_hook_end(&h);
	return (int)result(rc);
}

API int pkey_mprotect(void *addr, size_t len, int prot, int key)
{
	struct umm_hook h = {.space = space_get()};
	long rc;

	add(&h, UMM_EVENT_PROTECT, (uintptr_t)addr, len, 0);
	umm_hook_begin(&h);
	rc = sys4(SYS_pkey_mprotect, addr, len, prot, key);
	umm_hook_end(&h);
	return (int)result(rc);
}

static bool drops_contents(int advice)
{
	switch (advice) {
	case MADV_DONTNEED:
	case MADV_DONTNEED_LOCKED:
	case MADV_FREE:
	case MADV_REMOVE:
	case MADV_PAGEOUT:
	case MADV_GUARD_INSTALL:
		return true;
	default:
		return false;
	}
}

/* Of the others no event comes: what is in quarantine then is not theirs. */
static bool is_told(int advice)
{
	return advice == MADV_DONTNEED || advice == MADV_DONTNEED_LOCKED || advice == MADV_FREE ||
	       advice == MADV_REMOVE;
}

/* As umm_uffd_is_changing(), which is not for other libraries. */
static bool is_changing(int uffd)
{
	struct uffdio_zeropage z = {.range = {1, UMM_PAGE}};

	return sys_ioctl(uffd, UFFDIO_ZEROPAGE, &z) == -EAGAIN;
}

/*
 * What is empty in a child is read off its parent's mappings, after the fork (hmm/linked.c): what another thread marks
 * must not be taken to have been marked then.  Of MADV_DONTFORK the child says itself what it has.  Who marks what is
 * not managed waits for nobody: that may be a callback, under whose lock others wait.
 */
static void forks_applied(struct umm_space *space, uint64_t start, uint64_t end, int advice)
{
	struct umm_ctl *ctl = space ? __atomic_load_n(&space->ctl, __ATOMIC_ACQUIRE) : NULL;
	const struct umm_space_ops *ops = space ? space->ops : NULL;
	sigset_t old;
	bool holds;

	if ((advice != MADV_WIPEONFORK && advice != MADV_KEEPONFORK) || !ctl || !ops || !ops->holds)
		return;
	signals_block(&old);
	holds = ops->holds(space->priv, start, end);
	signals_restore(&old);
	if (!holds)
		return;
	/* One that waits for its event to be read, and one that has been.  Others may change something without end. */
	for (unsigned i = 0; i < FORK_NAPS && is_changing(space->uffd); i++)
		sys2(SYS_nanosleep, &(struct timespec){.tv_nsec = 50000}, NULL);
	umm_evlock_applied(&ctl->evlock);
}

/* Its mark of its own is gone: who manages the range goes by its own again. */
static void is_inherited(struct umm_space *space, uint64_t start, uint64_t len)
{
	const struct umm_space_ops *ops = space ? space->ops : NULL;
	sigset_t old;

	if (!ops || !ops->inherited)
		return;
	signals_block(&old);
	ops->inherited(space->priv, start, start + ((len + UMM_PAGE - 1) & ~(UMM_PAGE - 1)));
	signals_restore(&old);
}

API int madvise(void *addr, size_t len, int advice)
{
	struct umm_hook h = {.space = drops_contents(advice) ? space_get() : NULL,
			     .untold = advice == MADV_GUARD_INSTALL};
	long rc;

	add(&h, UMM_EVENT_CLEAR, (uintptr_t)addr, len, 0);
	forks_applied(space_get(), (uintptr_t)addr, (uintptr_t)addr + len, advice);
	umm_hook_begin(&h);
	rc = sys3(SYS_madvise, addr, len, advice);
	h.dropped = !rc && is_told(advice);
	umm_hook_end(&h);
	if (!rc && advice == MADV_DOFORK)
		is_inherited(space_get(), (uintptr_t)addr, len);
	return (int)result(rc);
}

/*
 * Also of another process, of which we say too much then: who mirrors looks
 * again.  One change from the first to the last of the ranges is enough.
 */
API ssize_t process_madvise(int pidfd, const struct iovec *iov, size_t n, int advice, unsigned flags)
{
	struct umm_hook h = {.space = drops_contents(advice) ? space_get() : NULL,
			     .untold = advice == MADV_GUARD_INSTALL};
	uint64_t start = UINT64_MAX, end_ = 0;
	long rc;

	for (size_t i = 0; h.space && i < n && i < IOV_MAX; i++) {
		struct iovec one, l = {&one, sizeof(one)}, r = {(void *)&iov[i], sizeof(one)};

		/* The kernel will refuse what cannot be read. */
		if (sys6(SYS_process_vm_readv, getpid(), &l, 1, &r, 1, 0) != (long)sizeof(one))
			break;
		if ((uintptr_t)one.iov_base < start)
			start = (uintptr_t)one.iov_base;
		if ((uintptr_t)one.iov_base + one.iov_len > end_)
			end_ = (uintptr_t)one.iov_base + one.iov_len;
	}
	if (start < end_)
		add(&h, UMM_EVENT_CLEAR, start, end_ - start, 0);
	forks_applied(space_get(), 0, UINT64_MAX, advice);
	umm_hook_begin(&h);
	rc = sys5(SYS_process_madvise, pidfd, iov, n, advice, flags);
	h.dropped = rc > 0 && is_told(advice);
	umm_hook_end(&h);
	return result(rc);
}

/* ---------------------------------------------------- the break, System V */

/* libc's record of the break: its own malloc goes by it. */
extern void *__curbrk;

static uint64_t page_up(uint64_t addr)
{
	return (addr + UMM_PAGE - 1) & ~(UMM_PAGE - 1);
}

API int brk(void *to)
{
	struct umm_hook h = {.space = space_get()};
	uint64_t was = (uint64_t)sys1(SYS_brk, 0), want = (uintptr_t)to, now;

	if (want < was)
		add(&h, UMM_EVENT_UNMAP, page_up(want), page_up(was) - page_up(want), 0);
	umm_hook_begin(&h);
	now = (uint64_t)sys1(SYS_brk, to);
	umm_hook_end(&h);
	__curbrk = (void *)(uintptr_t)now;
	return (int)result(now < want ? -ENOMEM : 0);
}

API void *sbrk(intptr_t more)
{
	uintptr_t was = (uintptr_t)__curbrk;

	if (!was)
		was = (uintptr_t)sys1(SYS_brk, 0);
	if (more > 0 ? was + (uintptr_t)more < was : was < -(uintptr_t)more)
		return (void *)result(-ENOMEM);
	return more && brk((void *)(was + (uintptr_t)more)) ? (void *)-1 : (void *)was;
}

/* Where a piece of a segment lies as far from @addr as it does in the segment. */
static bool is_piece(const struct umm_vma *v, uint64_t addr)
{
	return (v->flags & UMM_VMA_SHARED) && v->start >= addr && v->offset == v->start - addr;
}

/* Where the segment of piece @v, were it attached at @addr, would end; the inode is its id, but in another namespace.
 */
static uint64_t segment_end(const struct umm_vma *v, uint64_t addr)
{
	struct shmid_ds ds;

	if (v->inode > INT_MAX || sys3(SYS_shmctl, (int)v->inode, IPC_STAT, &ds) ||
	    page_up(ds.shm_segsz) < v->end - addr)
		return UINT64_MAX;
	return addr + page_up(ds.shm_segsz);
}

/*
 * All that shmdt(@addr) takes: pieces of the segment, also behind what the program has unmapped of it, or mapped in its
 * place.  Of more than two the gap behind the second, too.
 */
static void add_attached(struct umm_hook *h, uint64_t addr)
{
	uint64_t stop = UINT64_MAX, start[2], end[2];
	struct umm_vma v;
	unsigned n = 0;

	for (uint64_t at = addr; at < stop && !umm_vma_next(h->space, at, &v) && v.start < stop; at = v.end) {
		if (!is_piece(&v, addr))
			continue;
		if (stop == UINT64_MAX)
			stop = segment_end(&v, addr);
		if (!n || (n == 1 && v.start != end[0]))
			start[n++] = v.start;
		end[n - 1] = v.end;
	}
	for (unsigned i = 0; i < n; i++)
		add(h, UMM_EVENT_UNMAP, start[i], end[i] - start[i], 0);
}

API int shmdt(const void *addr)
{
	struct umm_hook h = {.space = space_get()};
	long rc;

	if (h.space)
		add_attached(&h, (uintptr_t)addr);
	umm_hook_begin(&h);
	rc = sys1(SYS_shmdt, addr);
	umm_hook_end(&h);
	return (int)result(rc);
}

API void *shmat(int id, const void *addr, int flags)
{
	struct umm_hook h = {.space = flags & SHM_REMAP ? space_get() : NULL};
	struct shmid_ds ds;
	long rc;

	if (h.space && !sys3(SYS_shmctl, id, IPC_STAT, &ds)) {
		uint64_t at = (uintptr_t)addr;

		add(&h, UMM_EVENT_UNMAP, flags & SHM_RND ? at & ~(UMM_PAGE - 1) : at, ds.shm_segsz, 0);
	}
	umm_hook_begin(&h);
	rc = sys3(SYS_shmat, id, addr, flags);
	umm_hook_end(&h);
	return (void *)result(rc);
}

/* -------------------------------------------------------------------- fork */

/* The space as it was told, and the mask; several threads may fork at once. */
static __thread struct umm_hook forking;

static void fork_prepare(void)
{
	forking.space = space_get();
	umm_hook_fork(&forking);
}

static void fork_parent(void)
{
	umm_hook_forked(&forking, false);
}

static void fork_child(void)
{
	umm_hook_forked(&forking, true);
}

__attribute__((constructor)) static void hooks_init(void)
{
	pthread_atfork(fork_prepare, fork_parent, fork_child);
}
