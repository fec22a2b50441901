/* SPDX-License-Identifier: MIT */
/*
 * Raw system calls, for code that runs where there is no libc: in the agent,
 * and in hooks that must not touch errno.  Results are the kernel's: a value,
 * or a negative errno.
 */
#ifndef UMM_SYS_H
#define UMM_SYS_H

#include <errno.h>
#include <linux/futex.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>

#if !defined(__x86_64__)
#error "the agent knows the system call convention of x86-64 only"
#endif

static inline long sys_call6(long nr, long a, long b, long c, long d, long e, long f)
{
	long ret;
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	register long r9 __asm__("r9") = f;

	__asm__ volatile("syscall"
			 : "=a"(ret)
			 : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return ret;
}

#define SYS_ARG(x) ((long)(x))
#define sys0(nr) sys_call6(nr, 0, 0, 0, 0, 0, 0)
#define sys1(nr, a) sys_call6(nr, SYS_ARG(a), 0, 0, 0, 0, 0)
#define sys2(nr, a, b) sys_call6(nr, SYS_ARG(a), SYS_ARG(b), 0, 0, 0, 0)
#define sys3(nr, a, b, c) sys_call6(nr, SYS_ARG(a), SYS_ARG(b), SYS_ARG(c), 0, 0, 0)
#define sys4(nr, a, b, c, d) sys_call6(nr, SYS_ARG(a), SYS_ARG(b), SYS_ARG(c), SYS_ARG(d), 0, 0)
#define sys5(nr, a, b, c, d, e) sys_call6(nr, SYS_ARG(a), SYS_ARG(b), SYS_ARG(c), SYS_ARG(d), SYS_ARG(e), 0)
#define sys6(nr, a, b, c, d, e, f) sys_call6(nr, SYS_ARG(a), SYS_ARG(b), SYS_ARG(c), SYS_ARG(d), SYS_ARG(e), SYS_ARG(f))

static inline int sys_ioctl(int fd, unsigned long req, void *arg)
{
	return (int)sys3(SYS_ioctl, fd, req, arg);
}

static inline int sys_close(int fd)
{
	return (int)sys1(SYS_close, fd);
}

/* Futexes here are shared between processes: never FUTEX_PRIVATE_FLAG. */
static inline int sys_futex_wait(_Atomic uint32_t *word, uint32_t seen, const struct timespec *timeout)
{
	return (int)sys6(SYS_futex, word, FUTEX_WAIT, seen, timeout, 0, 0);
}

static inline int sys_futex_wake(_Atomic uint32_t *word, int n)
{
	return (int)sys6(SYS_futex, word, FUTEX_WAKE, n, 0, 0, 0);
}

static inline void sys_relax(void)
{
	__builtin_ia32_pause();
}

#endif
