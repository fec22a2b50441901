/* SPDX-License-Identifier: MIT */
/*
 * Fault injection: every call of the engine that can fail is a site, and each
 * site can be told to fail.
 *
 * DOC: how a call becomes a site
 *
 * This header is included before each source file (-include) where the engine is
 * built for test/inject, and nowhere else: what is installed knows nothing of it.
 * It includes what declares the calls, and then makes each of them a macro, which
 * enters a record of its own into the section hmm_sites.  So the table of sites
 * is complete by itself: a call that is added to the engine is in it, and the
 * walk (walk.h) fails until something reaches it.
 *
 * Not sites that fail, because no caller can do anything about them, or because they
 * cannot fail where they are used: locks, clocks, close(), UFFDIO_WAKE, futexes (every
 * wait for one may end early as it is), the end of a task, numbers of tasks and of
 * users.
 *
 * DOC: what comes late
 *
 * HMM_INJECT_SLOW="MICROSECONDS FILE FUNCTION CALL[#N]" makes everybody sleep who
 * gets to that site: a race that needs somebody to be late there happens each time.
 * For this alone there are sites that cannot fail: where others are shut out, let in
 * (who lets them in sleeps after), or told something.
 *
 * HMM_INJECT_INSIDE is for what knows no libc (the agent); HMM_INJECT_HOOKS for
 * what takes the place of calls that would be sites.
 *
 * A call that is written (name)(...) is none; so are wrappers marked whose
 * callers are sites.
 */
#ifndef HMM_INJECT_H
#define HMM_INJECT_H

#include <errno.h>
#include <stdatomic.h>
#include <stdint.h>

#ifndef HMM_INJECT_INSIDE
#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>
#include <liburing.h>
#if __has_include(<rdma/fabric.h>) /* its inline functions call members of these names */
#include <rdma/fabric.h>
#include <rdma/fi_atomic.h>
#include <rdma/fi_cm.h>
#include <rdma/fi_collective.h>
#include <rdma/fi_domain.h>
#include <rdma/fi_endpoint.h>
#include <rdma/fi_eq.h>
#include <rdma/fi_errno.h>
#include <rdma/fi_ext.h>
#include <rdma/fi_rma.h>
#include <rdma/fi_tagged.h>
#endif
#include "drivers/area.h"
#include "umm.h"
#endif
#include "hmm_uapi.h"
#include "umm/ctl.h"
#include "umm/evlock.h"
#include "umm/sys.h"

/* No larger than 32 bytes, or the compiler would place them with gaps in the section. */
struct inject_site {
	const char *file, *func, *call;
	uint16_t line;
	uint16_t slow;  /* whoever gets here sleeps first */
	uint32_t index; /* in the table that processes share, plus one; 0: not entered */
};

#define INJECT_NAME 112u
#define INJECT_SITES 4096u
#define INJECT_ERRORS 3u

/* What the processes of a run and who walks over the sites share. */
struct inject_shared {
	_Atomic uint32_t lock;
	_Atomic uint32_t nsites;
	/* The plan: occurrences @nth to @nth + @count - 1 of site @target fail with @err. */
	_Atomic uint32_t target; /* index plus one; 0: none fails */
	_Atomic uint32_t nth, count;
	_Atomic int32_t err;
	_Atomic uint32_t fired;
	/* And all of this one from an occurrence on, so that what is done instead is reached, too. */
	_Atomic uint32_t always; /* index plus one; 0: none */
	_Atomic int32_t always_err;
	_Atomic uint32_t always_from;
	struct inject_entry {
		_Atomic uint32_t hits;
		int32_t err[INJECT_ERRORS]; /* what it can fail with; 0 ends the list */
		char name[INJECT_NAME];     /* FILE FUNCTION CALL, and #N of several */
	} site[INJECT_SITES];
};

/** inject_hit() - a site is reached.  Returns the errno that it is to fail with, or 0.  No libc. */
int inject_hit(struct inject_site *site) __attribute__((visibility("hidden")));
/** inject_use() - this process's sites are entered in @shared from now on; NULL: none fails. */
void inject_use(struct inject_shared *shared) __attribute__((visibility("hidden")));

#define INJECT_AT(label)                                                                        \
	({                                                                                      \
		static struct inject_site site_ __attribute__((section("hmm_sites"), used)) = { \
			.file = __FILE__, .func = __func__, .call = label, .line = __LINE__};   \
		inject_hit(&site_);                                                             \
	})
/* The call, or what it gives when it fails. */
#define INJECT_RET(label, failed, ...)            \
	({                                        \
		int inject_ = INJECT_AT(label);   \
		inject_ ? (failed) : __VA_ARGS__; \
	})
#define INJECT_FAIL(name, ...) INJECT_RET(#name, (errno = inject_, -1), (name)(__VA_ARGS__))
#define INJECT_NULL(name, ...) INJECT_RET(#name, (errno = inject_, NULL), (name)(__VA_ARGS__))
#define INJECT_ERRNO(name, ...) INJECT_RET(#name, inject_, (name)(__VA_ARGS__))
#define INJECT_MINUS(name, ...) INJECT_RET(#name, -inject_, (name)(__VA_ARGS__))

#ifndef HMM_INJECT_TABLE /* which has no sites of its own */

/* What cannot fail, and can only come late: before it, or after it. */
#define INJECT_LATE(label, ...)         \
	({                              \
		(void)INJECT_AT(label); \
		__VA_ARGS__;            \
	})
#define INJECT_LATE_AFTER(label, ...)                       \
	({                                                  \
		__typeof__(__VA_ARGS__) ret_ = __VA_ARGS__; \
		(void)INJECT_AT(label);                     \
		ret_;                                       \
	})
#define INJECT_LATE_AFTER_VOID(label, ...) \
	({                                 \
		__VA_ARGS__;               \
		(void)INJECT_AT(label);    \
	})

#undef atomic_store
#define atomic_store(at, ...) INJECT_LATE("atomic_store " #at, atomic_store_explicit(at, __VA_ARGS__, __ATOMIC_SEQ_CST))
#undef atomic_exchange
#define atomic_exchange(at, ...) \
	INJECT_LATE("atomic_exchange " #at, atomic_exchange_explicit(at, __VA_ARGS__, __ATOMIC_SEQ_CST))
#define umm_evlock_shared(l) INJECT_LATE("umm_evlock_shared", (umm_evlock_shared)(l))
#define umm_evlock_shared_unless(...) INJECT_LATE("umm_evlock_shared_unless", (umm_evlock_shared_unless)(__VA_ARGS__))
#define umm_evlock_unshared(l) INJECT_LATE_AFTER_VOID("umm_evlock_unshared", (umm_evlock_unshared)(l))
#define umm_evlock_excl(l) INJECT_LATE("umm_evlock_excl", (umm_evlock_excl)(l))
#define umm_evlock_excl_unless(...) INJECT_LATE("umm_evlock_excl_unless", (umm_evlock_excl_unless)(__VA_ARGS__))
#define umm_evlock_unexcl(l) INJECT_LATE_AFTER_VOID("umm_evlock_unexcl", (umm_evlock_unexcl)(l))
#ifndef HMM_INJECT_INSIDE
#define pthread_mutex_lock(l) INJECT_LATE("pthread_mutex_lock " #l, (pthread_mutex_lock)(l))
#define pthread_mutex_unlock(l) INJECT_LATE_AFTER("pthread_mutex_unlock " #l, (pthread_mutex_unlock)(l))
#define pthread_rwlock_rdlock(l) INJECT_LATE("pthread_rwlock_rdlock " #l, (pthread_rwlock_rdlock)(l))
#define pthread_rwlock_wrlock(l) INJECT_LATE("pthread_rwlock_wrlock " #l, (pthread_rwlock_wrlock)(l))
#define pthread_rwlock_unlock(l) INJECT_LATE_AFTER("pthread_rwlock_unlock " #l, (pthread_rwlock_unlock)(l))
#endif

/* Raw system calls: sys0() is for what cannot fail. */
#undef sys1
#undef sys2
#undef sys3
#undef sys4
#undef sys5
#undef sys6
#define INJECT_SYS(label, nr, a, b, c, d, e, f) \
	INJECT_RET(label, (long)-inject_,       \
		   sys_call6(nr, SYS_ARG(a), SYS_ARG(b), SYS_ARG(c), SYS_ARG(d), SYS_ARG(e), SYS_ARG(f)))
#define sys1(nr, a) INJECT_SYS(#nr, nr, a, 0, 0, 0, 0, 0)
#define sys2(nr, a, b) INJECT_SYS(#nr, nr, a, b, 0, 0, 0, 0)
#define sys3(nr, a, b, c) INJECT_SYS(#nr, nr, a, b, c, 0, 0, 0)
#define sys4(nr, a, b, c, d) INJECT_SYS(#nr, nr, a, b, c, d, 0, 0)
#define sys5(nr, a, b, c, d, e) INJECT_SYS(#nr, nr, a, b, c, d, e, 0)
#define sys6(nr, a, b, c, d, e, f) INJECT_SYS(#nr, nr, a, b, c, d, e, f)
#define sys_ioctl(fd, req, arg) INJECT_RET("ioctl " #req, -inject_, (sys_ioctl)(fd, req, arg))

#ifndef HMM_INJECT_INSIDE
#define uffd_ioctl(fd, req, arg) INJECT_RET("ioctl " #req, -inject_, (uffd_ioctl)(fd, req, arg))
#define syscall(nr, ...) INJECT_RET(#nr, (errno = inject_, -1l), (syscall)(nr, ##__VA_ARGS__))

#define malloc(...) INJECT_NULL(malloc, __VA_ARGS__)
#define calloc(...) INJECT_NULL(calloc, __VA_ARGS__)
#define realloc(...) INJECT_NULL(realloc, __VA_ARGS__)
#define aligned_alloc(...) INJECT_NULL(aligned_alloc, __VA_ARGS__)
#define posix_memalign(...) INJECT_ERRNO(posix_memalign, __VA_ARGS__)
#define umm_alloc(...) INJECT_NULL(umm_alloc, __VA_ARGS__)
#define drv_map(...) INJECT_NULL(drv_map, __VA_ARGS__)
#define drv_area_reserve(...) INJECT_MINUS(drv_area_reserve, __VA_ARGS__)
#define drv_area_extend(...) INJECT_MINUS(drv_area_extend, __VA_ARGS__)

#define open(...) INJECT_FAIL(open, __VA_ARGS__)
#define fopen(...) INJECT_NULL(fopen, __VA_ARGS__)
#define fdopen(...) INJECT_NULL(fdopen, __VA_ARGS__)
#define open_memstream(...) INJECT_NULL(open_memstream, __VA_ARGS__)
#define opendir(...) INJECT_NULL(opendir, __VA_ARGS__)
#define mkostemp(...) INJECT_FAIL(mkostemp, __VA_ARGS__)
#define unlink(...) INJECT_FAIL(unlink, __VA_ARGS__)
#define read(...) INJECT_FAIL(read, __VA_ARGS__)
#define write(...) INJECT_FAIL(write, __VA_ARGS__)
#define pread(...) INJECT_FAIL(pread, __VA_ARGS__)
#define pwrite(...) INJECT_FAIL(pwrite, __VA_ARGS__)
#define preadv(...) INJECT_FAIL(preadv, __VA_ARGS__)
#define pwritev(...) INJECT_FAIL(pwritev, __VA_ARGS__)
#define process_vm_readv(...) INJECT_FAIL(process_vm_readv, __VA_ARGS__)
#define process_vm_writev(...) INJECT_FAIL(process_vm_writev, __VA_ARGS__)
#define ftruncate(...) INJECT_FAIL(ftruncate, __VA_ARGS__)
#define fallocate(...) INJECT_FAIL(fallocate, __VA_ARGS__)
#define flock(...) INJECT_FAIL(flock, __VA_ARGS__)
#define fcntl(...) INJECT_FAIL(fcntl, __VA_ARGS__)
#define dup(...) INJECT_FAIL(dup, __VA_ARGS__)
#define dup2(...) INJECT_FAIL(dup2, __VA_ARGS__)
#define pipe2(...) INJECT_FAIL(pipe2, __VA_ARGS__)
#define stat(...) INJECT_FAIL(stat, __VA_ARGS__)
#define fstat(...) INJECT_FAIL(fstat, __VA_ARGS__)
#define statx(...) INJECT_FAIL(statx, __VA_ARGS__)
#define fstatfs(...) INJECT_FAIL(fstatfs, __VA_ARGS__)
#define readlink(...) INJECT_FAIL(readlink, __VA_ARGS__)
#define realpath(...) INJECT_NULL(realpath, __VA_ARGS__)
#define getcwd(...) INJECT_NULL(getcwd, __VA_ARGS__)
#define chdir(...) INJECT_FAIL(chdir, __VA_ARGS__)
#define getline(...) INJECT_FAIL(getline, __VA_ARGS__)
#define fgets(...) INJECT_NULL(fgets, __VA_ARGS__)

#define mmap(...) INJECT_RET("mmap", (errno = inject_, MAP_FAILED), (mmap)(__VA_ARGS__))
#ifndef HMM_INJECT_HOOKS
#define ioctl(fd, req, ...) INJECT_RET("ioctl " #req, (errno = inject_, -1), (ioctl)(fd, req, __VA_ARGS__))
#define munmap(...) INJECT_FAIL(munmap, __VA_ARGS__)
#define mprotect(...) INJECT_FAIL(mprotect, __VA_ARGS__)
#define madvise(...) INJECT_FAIL(madvise, __VA_ARGS__)
#define fork(...) INJECT_FAIL(fork, __VA_ARGS__)
#define pthread_create(...) INJECT_ERRNO(pthread_create, __VA_ARGS__)
#define setsockopt(...) INJECT_FAIL(setsockopt, __VA_ARGS__)
#endif

#define socket(...) INJECT_FAIL(socket, __VA_ARGS__)
#define socketpair(...) INJECT_FAIL(socketpair, __VA_ARGS__)
#define bind(...) INJECT_FAIL(bind, __VA_ARGS__)
#define listen(...) INJECT_FAIL(listen, __VA_ARGS__)
#define connect(...) INJECT_FAIL(connect, __VA_ARGS__)
#define accept4(...) INJECT_FAIL(accept4, __VA_ARGS__)
#define send(...) INJECT_FAIL(send, __VA_ARGS__)
#define sendmsg(...) INJECT_FAIL(sendmsg, __VA_ARGS__)
#define recv(...) INJECT_FAIL(recv, __VA_ARGS__)
#define recvmsg(...) INJECT_FAIL(recvmsg, __VA_ARGS__)
#define getsockopt(...) INJECT_FAIL(getsockopt, __VA_ARGS__)
#define poll(...) INJECT_FAIL(poll, __VA_ARGS__)
#define epoll_create1(...) INJECT_FAIL(epoll_create1, __VA_ARGS__)
#define epoll_ctl(epfd, op, ...) INJECT_RET("epoll_ctl " #op, (errno = inject_, -1), (epoll_ctl)(epfd, op, __VA_ARGS__))
#define epoll_wait(...) INJECT_FAIL(epoll_wait, __VA_ARGS__)
#define eventfd(...) INJECT_FAIL(eventfd, __VA_ARGS__)
#define timerfd_create(...) INJECT_FAIL(timerfd_create, __VA_ARGS__)
#define timerfd_settime(...) INJECT_FAIL(timerfd_settime, __VA_ARGS__)
#define signalfd(...) INJECT_FAIL(signalfd, __VA_ARGS__)
#define memfd_create(...) INJECT_FAIL(memfd_create, __VA_ARGS__)
#define getrandom(...) INJECT_FAIL(getrandom, __VA_ARGS__)
#define getrlimit(...) INJECT_FAIL(getrlimit, __VA_ARGS__)
#define setrlimit(...) INJECT_FAIL(setrlimit, __VA_ARGS__)
#define sched_setaffinity(...) INJECT_FAIL(sched_setaffinity, __VA_ARGS__)
#define sched_getaffinity(...) INJECT_FAIL(sched_getaffinity, __VA_ARGS__)

#define io_uring_queue_init(...) INJECT_MINUS(io_uring_queue_init, __VA_ARGS__)
#define io_uring_submit(...) INJECT_MINUS(io_uring_submit, __VA_ARGS__)
#define io_uring_submit_and_wait(...) INJECT_MINUS(io_uring_submit_and_wait, __VA_ARGS__)
#define io_uring_register_buffers_sparse(...) INJECT_MINUS(io_uring_register_buffers_sparse, __VA_ARGS__)
#define io_uring_register_buffers_update_tag(...) INJECT_MINUS(io_uring_register_buffers_update_tag, __VA_ARGS__)

/* What is asked with nothing to wait for, fi_eq_read() and fi_cq_read(), is asked again whatever it says. */
#define fi_domain(...) INJECT_MINUS(fi_domain, __VA_ARGS__)
#define fi_endpoint(...) INJECT_MINUS(fi_endpoint, __VA_ARGS__)
#define fi_passive_ep(...) INJECT_MINUS(fi_passive_ep, __VA_ARGS__)
#define fi_eq_open(...) INJECT_MINUS(fi_eq_open, __VA_ARGS__)
#define fi_cq_open(...) INJECT_MINUS(fi_cq_open, __VA_ARGS__)
#define fi_ep_bind(...) INJECT_MINUS(fi_ep_bind, __VA_ARGS__)
#define fi_pep_bind(...) INJECT_MINUS(fi_pep_bind, __VA_ARGS__)
#define fi_enable(...) INJECT_MINUS(fi_enable, __VA_ARGS__)
#define fi_getname(...) INJECT_MINUS(fi_getname, __VA_ARGS__)
#define fi_listen(...) INJECT_MINUS(fi_listen, __VA_ARGS__)
#define fi_connect(...) INJECT_MINUS(fi_connect, __VA_ARGS__)
#define fi_accept(...) INJECT_MINUS(fi_accept, __VA_ARGS__)
#define fi_mr_reg(...) INJECT_MINUS(fi_mr_reg, __VA_ARGS__)
#define fi_send(...) INJECT_MINUS(fi_send, __VA_ARGS__)
#define fi_recv(...) INJECT_MINUS(fi_recv, __VA_ARGS__)
#define fi_inject(...) INJECT_MINUS(fi_inject, __VA_ARGS__)
#define fi_eq_sread(...) INJECT_MINUS(fi_eq_sread, __VA_ARGS__)
#define fi_cq_sread(...) INJECT_MINUS(fi_cq_sread, __VA_ARGS__)
#endif
#endif

#endif
