/* SPDX-License-Identifier: MIT */
/* The agent's confinement; see confine.h. */
#include "run/confine.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/kcmp.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>

#include "hmm_uapi.h"
#include "umm/ctl.h"
#include "umm/sys.h"

#define LOAD(field) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field))
/* The low half of an argument; x86 is little-endian. */
#define LOAD_ARG(n) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args) + (n)*8)
#define ALLOW BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)
#define REFUSE BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM)
#define IF_NOT(value, skip) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (value), 0, (skip))
#define LET(nr) IF_NOT(nr, 1), ALLOW

#define TRIES 1000u

static const struct sock_filter filter[] = {
	LOAD(arch),
	BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 1, 0),
	REFUSE,
	LOAD(nr),
	LET(SYS_poll),
	/* how the kernel goes on with a poll(2) or sleep that a stop, a freezer or a debugger interrupted */
	LET(SYS_restart_syscall),
	LET(SYS_recvfrom),
	LET(SYS_madvise),
	LET(SYS_mincore),
	LET(SYS_munlock),
	LET(SYS_futex),
	LET(SYS_nanosleep),
	LET(SYS_sched_yield),
	LET(SYS_getpid),
	LET(SYS_gettid),
	LET(SYS_kcmp),
	LET(SYS_getdents64),
	LET(SYS_close),
	LET(SYS_exit),
	LET(SYS_exit_group),
	/* moving pages, and emptying staging */
	IF_NOT(SYS_ioctl, 10),
	LOAD_ARG(1),
	LET((__u32)UFFDIO_MOVE),
	LET((__u32)UFFDIO_CONTINUE),
	LET((__u32)UFFDIO_REGISTER),
	LET((__u32)UFFDIO_UNREGISTER),
	REFUSE,
	/* looking for who lives in here, when all must be killed */
	IF_NOT(SYS_openat, 4),
	LOAD_ARG(2),
	LET(O_RDONLY | O_DIRECTORY | O_CLOEXEC),
	REFUSE,
	IF_NOT(SYS_kill, 4),
	LOAD_ARG(1),
	LET(SIGKILL),
	REFUSE,
	IF_NOT(SYS_pidfd_send_signal, 4),
	LOAD_ARG(1),
	LET(SIGKILL),
	REFUSE,
	/* whether anybody else lives in here: parts nobody from anything */
	IF_NOT(SYS_unshare, 4),
	LOAD_ARG(0),
	LET(CLONE_VM),
	REFUSE,
	/* where it runs itself */
	IF_NOT(SYS_sched_setaffinity, 3),
	LOAD_ARG(0),
	LET(0),
	REFUSE,
};

/* Negative what it should not be: what a filter answers may be any error. */
static int unless(long rc, long right)
{
	return rc == right ? 0 : rc < 0 ? (int)rc : -EPERM;
}

int confine_try(void *page)
{
	struct __user_cap_header_struct head;
	struct __user_cap_data_struct data[2];
	struct timespec none;
	unsigned char there;
	__u32 action = SECCOMP_RET_ERRNO;
	long me = sys0(SYS_getpid), fd;
	int rc;

	head.version = _LINUX_CAPABILITY_VERSION_3;
	head.pid = 0;
	none.tv_sec = none.tv_nsec = 0;
	if ((rc = unless(sys2(SYS_capget, &head, data), 0)) || (rc = unless(sys2(SYS_capset, &head, data), 0)) ||
	    (rc = unless(sys5(SYS_prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0)) ||
	    (rc = unless(sys3(SYS_seccomp, SECCOMP_GET_ACTION_AVAIL, 0, &action), 0)) ||
	    (rc = unless(sys3(SYS_poll, NULL, 0, 0), 0)) || (rc = unless(sys3(SYS_recvmsg, -1, NULL, 0), -EBADF)) ||
	    (rc = unless(sys6(SYS_recvfrom, -1, NULL, 0, 0, NULL, NULL), -EBADF)) ||
	    (rc = unless(sys3(SYS_madvise, page, UMM_PAGE, MADV_NORMAL), 0)) ||
	    (rc = unless(sys2(SYS_munlock, page, UMM_PAGE), 0)) ||
	    (rc = unless(sys3(SYS_ioctl, -1, UFFDIO_MOVE, NULL), -EBADF)) || (rc = unless(sys0(SYS_sched_yield), 0)) ||
	    (rc = unless(sys2(SYS_nanosleep, &none, NULL), 0)) ||
	    (rc = unless(sys5(SYS_kcmp, me, me, KCMP_VM, 0, 0), 0)) || (rc = unless(sys0(SYS_gettid), me)) ||
	    (rc = unless(sys3(SYS_getdents64, -1, NULL, 0), -EBADF)) || (rc = unless(sys2(SYS_kill, me, 0), 0)) ||
	    (rc = unless(sys4(SYS_pidfd_send_signal, -1, SIGKILL, NULL, 0), -EBADF)))
		return rc;
	sys1(SYS_unshare, CLONE_VM); /* refused it may be, but not deadly */
	/* How long the mask must be is the kernel's affair; that it may be asked for is ours. */
	rc = (int)sys3(SYS_sched_setaffinity, 0, 0, NULL);
	if (rc == -EPERM || rc == -EACCES || rc == -ENOSYS)
		return rc;
	/* It may want a page for a moment. */
	for (unsigned i = 0; i < TRIES && (rc = unless(sys3(SYS_mincore, page, UMM_PAGE, &there), 0)) == -EAGAIN; i++)
		sys0(SYS_sched_yield);
	if (rc)
		return rc;
	/* Where there is no /proc (chroot) nobody is found in it: who shares the memory is then waited for, not killed.
	 */
	fd = sys4(SYS_openat, AT_FDCWD, "/proc", O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
	if (fd >= 0)
		sys_close((int)fd);
	return fd < 0 && fd != -ENOENT && fd != -ENOTDIR ? (int)fd : 0;
}

int confine(void)
{
	struct sock_fprog prog;
	struct __user_cap_header_struct head;
	struct __user_cap_data_struct data[2];
	long rc;

	head.version = _LINUX_CAPABILITY_VERSION_3;
	head.pid = 0;
	rc = sys2(SYS_capget, &head, data);
	if (rc < 0)
		return (int)rc;
	data[0].permitted &= 1u << CAP_KILL | 1u << CAP_SYS_PTRACE;
	data[0].effective &= data[0].permitted;
	data[0].inheritable = 0;
	data[1].permitted = data[1].effective = data[1].inheritable = 0;
	rc = sys2(SYS_capset, &head, data);
	if (rc < 0)
		return (int)rc;
	rc = sys5(SYS_prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	if (rc < 0)
		return (int)rc;
	prog.len = sizeof(filter) / sizeof(filter[0]);
	prog.filter = (struct sock_filter *)filter;
	return (int)sys3(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &prog);
}
