/* SPDX-License-Identifier: MIT */
/*
 * Hooks that have to ask the engine something before the call goes on.
 *
 * DOC: the bell
 *
 * A hook must reach the supervisor from any thread, in any state: descriptors
 * closed, sandboxed by seccomp, in a chroot.  What always works is a page
 * fault.  The hook writes its request into a slot of the control block and
 * touches the slot's bell, an absent page that is registered: the supervisor
 * gets the fault, does what the slot says, writes the answer and fills the
 * page, which wakes the thread.  The page is dropped again afterwards.
 *
 * While the space is not armed there is nothing to ask: bells are not even
 * registered, and hooks cost a load and a branch.
 */
#include "run/preload.h"

#include <dlfcn.h>
#include <limits.h>
#include <linux/if_xdp.h>
#include <linux/vfio.h>
#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "hmm_uapi.h"
#include "umm/clock.h"

#define API __attribute__((visibility("default")))

#ifndef SOL_XDP
#define SOL_XDP 283
#endif

#define POPULATE_AT_ONCE (4ul << 20)

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#endif

int64_t preload_call(enum umm_call_op op, uint64_t a, uint64_t b, uint64_t c)
{
	struct umm_ctl *ctl = preload_ctl();
	struct umm_call *call = NULL;
	unsigned slot = 0;
	sigset_t old;
	int64_t ret;

	if (!ctl || !atomic_load(&ctl->armed))
		return -ENOSYS;
	preload_signals_block(&old);
	while (!call) {
		for (slot = 0; slot < UMM_CALL_SLOTS && !call; slot++) {
			uint32_t idle = UMM_CALL_IDLE;

			if (atomic_compare_exchange_strong(&ctl->call[slot].state, &idle, UMM_CALL_BUSY))
				call = &ctl->call[slot];
		}
		if (!call)
			sys0(SYS_sched_yield);
	}
	char *bell = preload_agent()->arena.bells + (slot - 1) * UMM_PAGE;
	call->op = op;
	call->arg[0] = a;
	call->arg[1] = b;
	call->arg[2] = c;
	call->ret = -ENOSYS;
	atomic_store(&call->state, UMM_CALL_ASKED);
	/*
	 * mlockall() fills bells without anybody having rung, and locks them:
	 * one that was there does not ring.
	 */
	for (unsigned tries = 0; atomic_load(&call->state) != UMM_CALL_DONE && tries < 3; tries++) {
		(void)*(volatile char *)bell;
		if (sys3(SYS_madvise, bell, UMM_PAGE, MADV_DONTNEED)) {
			sys2(SYS_munlock, bell, UMM_PAGE);
			sys3(SYS_madvise, bell, UMM_PAGE, MADV_DONTNEED);
		}
	}
	ret = call->ret;
	atomic_store(&call->state, UMM_CALL_IDLE);
	preload_signals_restore(&old);
	return ret;
}

void preload_no_agent(int err)
{
	unsigned which = err < 0 && -err < (int)UMM_CALL_SLOTS ? (unsigned)-err : 0;

	(void)*(volatile char *)(preload_agent()->arena.bells + which * UMM_PAGE);
}

static bool marked(void)
{
	struct umm_ctl *ctl = preload_ctl();

	return ctl && atomic_load(&ctl->marked);
}

/* A mapping that is registered in part only cannot be moved: the kernel says EFAULT, half-way. */
API void *mremap(void *old, size_t old_len, size_t new_len, int flags, ...)
{
	static void *(*real)(void *, size_t, size_t, int, ...);
	void *to = NULL;

	if (flags & (MREMAP_FIXED | MREMAP_DONTUNMAP)) {
		va_list ap;

		va_start(ap, flags);
		to = va_arg(ap, void *);
		va_end(ap);
	}
	if (!real)
		real = dlsym(RTLD_NEXT, "mremap");
	int err = errno;
	preload_call(UMM_CALL_UNIFORM, (uintptr_t)old, old_len, 0);
	errno = err;
	void *p = real(old, old_len, new_len, flags, to);
	/* What it grew by is marked as the rest is, and no event says that it grew. */
	if (p != MAP_FAILED && new_len > old_len && marked()) {
		err = errno;
		preload_call(UMM_CALL_MARKS, 0, 0, 0);
		errno = err;
	}
	return p;
}

/* A bad pointer is the kernel's to refuse, not ours to trip over. */
static bool peek(void *to, const void *from, size_t len)
{
	struct iovec t = {to, len}, f = {(void *)from, len};

	return process_vm_readv(getpid(), &t, 1, &f, 1, 0) == (ssize_t)len;
}

/*
 * The program's own userfaultfd: what it wants to serve itself must be whole, and not ours.  And what a driver pins
 * while it holds the lock of the mappings (VFIO, AF_XDP): there the kernel does not wait for who serves a fault, be
 * it of memory that was never touched.
 */
API int ioctl(int fd, unsigned long req, ...)
{
	static int (*real)(int, unsigned long, ...);
	int err = errno;
	void *arg;
	va_list ap;

	va_start(ap, req);
	arg = va_arg(ap, void *);
	va_end(ap);
	if (!real)
		real = dlsym(RTLD_NEXT, "ioctl");
	if (req == UFFDIO_REGISTER) {
		struct uffdio_register r;

		if (peek(&r, arg, sizeof(r)))
			preload_call(UMM_CALL_HANDS_OFF, r.range.start, r.range.len, 0);
	} else if (req == VFIO_IOMMU_MAP_DMA) {
		struct vfio_iommu_type1_dma_map m;

		if (peek(&m, arg, sizeof(m)))
			preload_call(UMM_CALL_HANDS_OFF, m.vaddr, m.size, 0);
	}
	errno = err;
	return real(fd, req, arg);
}

API int setsockopt(int fd, int level, int name, const void *val, socklen_t len)
{
	static int (*real)(int, int, int, const void *, socklen_t);
	int err = errno;

	if (!real)
		real = dlsym(RTLD_NEXT, "setsockopt");
	if (level == SOL_XDP && name == XDP_UMEM_REG) {
		uint64_t r[2]; /* struct xdp_umem_reg begins so, and has grown since */

		if (len >= sizeof(r) && peek(r, val, sizeof(r)))
			preload_call(UMM_CALL_HANDS_OFF, r[0], (r[1] + UMM_PAGE - 1) & ~(UMM_PAGE - 1), 0);
	}
	errno = err;
	return real(fd, level, name, val, len);
}

/*
 * What a child has inherited is read off its parent's mappings, after the fork:
 * fork() has returned when its event has been read, and what the parent marks
 * now must not be taken to have been marked then.  Nor by a fork whose event nobody
 * has read yet, which the supervisor waits for.
 */
static void forks_applied(void)
{
	struct umm_ctl *ctl = preload_ctl();

	preload_call(UMM_CALL_APPLIED, 0, 0, 0);
	if (ctl && atomic_load(&ctl->armed))
		umm_evlock_applied(&ctl->evlock);
}

static size_t round_up(size_t len)
{
	return (len + UMM_PAGE - 1) & ~(size_t)(UMM_PAGE - 1);
}

/*
 * Pages of a mapping that nobody has found yet are made without a fault, and by one call without a moment at which it
 * could be registered, which is when what goes above the budget begins to wait.  So there are such moments.
 */
static int populate(int (*real)(void *, size_t, int), char *addr, size_t len, int advice)
{
	size_t at = 0;
	int rc = 0;

	for (; !rc && len - at > POPULATE_AT_ONCE; at += POPULATE_AT_ONCE)
		rc = real(addr + at, POPULATE_AT_ONCE, advice);
	return rc ? rc : real(addr + at, len - at, advice);
}

static bool marks(int advice)
{
	return advice == MADV_DONTFORK || advice == MADV_DOFORK || advice == MADV_WIPEONFORK ||
	       advice == MADV_KEEPONFORK;
}

/* Guard regions drop pages without an event: what is away must be there to be dropped. */
static void advice_begins(const void *addr, size_t len, int advice)
{
	int err = errno;

	if (advice == MADV_GUARD_INSTALL)
		preload_call(UMM_CALL_BRING_BACK, (uintptr_t)addr, len, 0);
	if (marks(advice))
		forks_applied();
	errno = err;
}

static void advice_ends(int advice)
{
	int err = errno;

	if (marks(advice))
		preload_call(UMM_CALL_MARKS, 0, 0, 0);
	errno = err;
}

API int madvise(void *addr, size_t len, int advice)
{
	static int (*real)(void *, size_t, int);
	int rc;

	if (!real)
		real = dlsym(RTLD_NEXT, "madvise");
	/* By whole pages, as the kernel goes: what wraps around is refused as a whole. */
	if ((advice == MADV_POPULATE_READ || advice == MADV_POPULATE_WRITE) && len <= SIZE_MAX - UMM_PAGE &&
	    (uintptr_t)addr + round_up(len) >= (uintptr_t)addr)
		return populate(real, addr, len, advice);
	advice_begins(addr, len, advice);
	rc = real(addr, len, advice);
	advice_ends(advice);
	return rc;
}

#define BROUGHT_NS 1000000000ull /* half of the time that what was brought back stays for sure */
#define BROUGHT_TRIES 4u

static void guards_begin(const struct iovec *iov, size_t n)
{
	for (size_t i = 0; i < n && i < IOV_MAX; i++) {
		struct iovec one, to = {&one, sizeof(one)}, from = {(void *)&iov[i], sizeof(one)};
		int err = errno;
		ssize_t got = process_vm_readv(getpid(), &to, 1, &from, 1, 0);
		bool refused = got != sizeof(one) && (got >= 0 || errno == EFAULT);

		/* A filter may keep the call from us, and knows nothing of what is there. */
		if (got < 0 && !refused)
			one = iov[i];
		errno = err;
		if (refused)
			return; /* by the kernel, too */
		advice_begins(one.iov_base, one.iov_len, MADV_GUARD_INSTALL);
	}
}

/* Of this process, on newer kernels, any advice; of others none that matters, and what is there is only looked at. */
API ssize_t process_madvise(int pidfd, const struct iovec *iov, size_t n, int advice, unsigned flags)
{
	static ssize_t (*real)(int, const struct iovec *, size_t, int, unsigned);
	ssize_t rc;

	if (!real)
		real = dlsym(RTLD_NEXT, "process_madvise");
	/* Where all of it takes long, what came first may be away again. */
	for (unsigned tries = 0; advice == MADV_GUARD_INSTALL && tries < BROUGHT_TRIES; tries++) {
		uint64_t since = umm_now_ns();

		guards_begin(iov, n);
		if (umm_now_ns() - since < BROUGHT_NS)
			break;
	}
	if (marks(advice))
		advice_begins(NULL, 0, advice);
	if (real)
		rc = real(pidfd, iov, n, advice, flags);
	else
		rc = syscall(SYS_process_madvise, pidfd, iov, n, advice, flags);
	advice_ends(advice);
	return rc;
}
