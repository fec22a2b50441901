/* SPDX-License-Identifier: MIT */
/*
 * hmm_uring: io_uring with registered ("fixed") buffers, on plain pointers.
 *
 * The kernel pins and maps a fixed buffer once, not for each transfer.  It asks
 * programs to set such buffers aside; here any memory will do: what a transfer
 * names is registered when it is first used, stays registered for the next time,
 * and is let go when the program frees, unmaps or protects it (hmm_reg.h).  What
 * cannot be registered is read and written as ever, so that a program need not
 * know.
 *
 *	hmm_uring_open(space, NULL, &u);
 *	hmm_uring_read(u, fd, buf, len, offset, me);
 *	hmm_uring_wait(u, &done);		done.user == me
 *	hmm_uring_close(u);
 */
#ifndef HMM_URING_H
#define HMM_URING_H

#include "hmm_reg.h"

#ifdef __cplusplus
extern "C" {
#endif

#pragma GCC visibility push(default)

struct hmm_uring;

#define HMM_URING_PLAIN (1u << 0)  /* register nothing: to compare with */
#define HMM_URING_HOOKED (1u << 1) /* as HMM_REG_HOOKED */

struct hmm_uring_params {
	unsigned depth;     /* transfers under way at a time, 1..4096; 0: 64 */
	unsigned buffers;   /* slots of the kernel's table, 4..16384; 0: 1024 */
	uint64_t max_bytes; /* registered at most, in use or not; 0: no limit but the system's (RLIMIT_MEMLOCK) */
	unsigned flags;     /* HMM_URING_* */
};

struct hmm_uring_done {
	void *user; /* as it was given */
	int res;    /* bytes, or -errno */
};

struct hmm_uring_stats {
	uint64_t fixed; /* transfers with a registered buffer */
	uint64_t plain; /* without */
	uint64_t again; /* of plain: the registration had gone before the kernel came to it */
	struct hmm_reg_stats reg;
};

/**
 * hmm_uring_open() - a ring for transfers to and from memory of a space
 * @space: the caller's own, open until hmm_uring_close().
 * @params: NULL: as if all were 0.
 * @up: out; ended with hmm_uring_close().
 *
 * Context: Thread-safe.  Not in callbacks.
 * Return: 0, or
 *	-EINVAL	a number out of its range, or unknown flags
 *	-ENOMEM	no memory, or more than the system lets a user lock
 *	-EOPNOTSUPP	the kernel has no sparse table of buffers (before 5.19)
 *	-EPERM	io_uring is closed to this user
 *	-ENOSYS	the kernel is built without io_uring
 *	-EMFILE	no descriptor left
 */
int hmm_uring_open(struct umm_space *space, const struct hmm_uring_params *params, struct hmm_uring **up);

/**
 * hmm_uring_close() - wait for what is under way, and end it
 * @u: NULL is fine.  In a forked child it must not be used.
 *
 * Context: No other call on @u may run.  Not in callbacks.
 */
void hmm_uring_close(struct hmm_uring *u);

/**
 * hmm_uring_read(), hmm_uring_write() - begin a transfer between memory and a file
 * @u: of hmm_uring_open().
 * @fd: the file; open until the transfer is done.
 * @buf: the caller's until it is done; of any alignment.
 * @len: bytes, at most 1 GiB.
 * @offset: bytes, in the file; -1: where @fd stands.
 * @user: comes back in hmm_uring_done.
 *
 * Handed to the kernel by hmm_uring_wait().  A bad @buf
 * is told by the transfer, -EFAULT.  What else io_uring_enter() has to say comes
 * through as it is.
 *
 * Context: One thread at a time.  Not in callbacks.
 * Return: 0, or
 *	-EINVAL	@len or @offset out of range
 *	-EAGAIN	as many as the ring has room for are under way: wait for one
 */
int hmm_uring_read(struct hmm_uring *u, int fd, void *buf, size_t len, int64_t offset, void *user);
int hmm_uring_write(struct hmm_uring *u, int fd, const void *buf, size_t len, int64_t offset, void *user);

/**
 * hmm_uring_wait() - the next transfer that is done
 * @u: of hmm_uring_open().
 * @done: out.
 *
 * What else io_uring_enter() has to say comes through as it is.
 *
 * It waits until notifiers of @buf's space know of what has changed, a millisecond at
 * most: where that does not end, transfers go without registered buffers.
 *
 * Context: One thread at a time.  Not in callbacks, nor under a lock that they take.  Sleeps.
 * Return: 0, or
 *	-ENOENT	none is under way
 *	-EINTR	a signal came
 *	-EAGAIN	the kernel has no memory for what is to be handed over; the next call hands it over
 */
int hmm_uring_wait(struct hmm_uring *u, struct hmm_uring_done *done);

/**
 * hmm_uring_stats() - what happened since a ring was opened
 * @u: of hmm_uring_open().
 * @st: out.
 *
 * Context: One thread at a time.
 */
void hmm_uring_stats(struct hmm_uring *u, struct hmm_uring_stats *st);

#pragma GCC visibility pop

#ifdef __cplusplus
}
#endif
#endif
