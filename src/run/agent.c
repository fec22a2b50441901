/* SPDX-License-Identifier: MIT */
/*
 * DOC: the agent
 *
 * A task of its own that shares nothing with the program but memory: not in
 * its thread group (so exit_group, seccomp TSYNC, setuid and unshare of the
 * program leave it alone), own descriptors, own session (signals to the
 * program's group do not reach it), nobody's child but init's (neither the
 * program nor an image that it execs ever hears of it), own stack and own
 * thread block.  It uses no libc, allocates
 * nothing, and touches nothing that is the program's, except by UFFDIO_MOVE.
 *
 * It holds a second reference to the userfaultfd: if the supervisor dies, what
 * touches an absent page hangs, instead of reading zeros, until the agent has
 * killed the program.  The other way round the supervisor does.  Therefore the
 * agent must not exit while anybody else lives in the address space, unless
 * the supervisor says so.
 */
#include "run/agent.h"

#include <fcntl.h>
#include <linux/close_range.h>
#include <linux/kcmp.h>
#include <linux/sched.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "run/confine.h"
#include "umm/inside.h"

#define LOOKS 100u /* at threads that end while they are looked at */

struct agent_fds {
	int sock, pidfd, pagemap, maps, ctl;
	int pid; /* of the program that it came with */
};

static void zero(void *p, unsigned long n)
{
	__asm__ volatile("rep stosb" : "+D"(p), "+c"(n) : "a"(0) : "memory");
}

static void copy(void *to, const void *from, unsigned long n)
{
	__asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(n) : : "memory");
}

/*
 * Who listens there is handed the key to all of the program's memory: that may
 * be root, or the program's own user, whoever has set the environment.
 */
static int may_be_trusted(int sock)
{
	struct ucred cred;
	unsigned len = sizeof(cred);
	int rc = (int)sys5(SYS_getsockopt, sock, SOL_SOCKET, SO_PEERCRED, &cred, &len);

	if (rc < 0)
		return rc;
	return !cred.uid || cred.uid == (uid_t)sys0(SYS_geteuid) ? 0 : -EPERM;
}

static int connect_to(const char *name)
{
	struct sockaddr_un sa;
	unsigned len = 0;
	int fd = (int)sys3(SYS_socket, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return fd;
	zero(&sa, sizeof(sa));
	sa.sun_family = AF_UNIX;
	while (name[len] && len < sizeof(sa.sun_path) - 2) {
		sa.sun_path[1 + len] = name[len];
		len++;
	}
	int rc = (int)sys3(SYS_connect, fd, &sa, offsetof(struct sockaddr_un, sun_path) + 1 + len);
	if (!rc)
		rc = may_be_trusted(fd);
	if (!rc)
		return fd;
	sys_close(fd);
	return rc;
}

/* CMSG_* without their header's surprises: one SCM_RIGHTS block. */
struct rights {
	struct cmsghdr head;
	int fd[4];
};

static int say_hello(struct agent *a, struct agent_fds *f, int uffd)
{
	struct wire_hello hello;
	struct rights r;
	struct iovec iov = {&hello, sizeof(hello)};
	struct msghdr msg;

	zero(&hello, sizeof(hello));
	zero(&r, sizeof(r));
	zero(&msg, sizeof(msg));
	hello.magic = WIRE_MAGIC;
	hello.parent = a->parent;
	hello.arena = (uintptr_t)a->arena.base;
	copy(hello.token, a->token, WIRE_TOKEN);
	r.head.cmsg_len = CMSG_LEN(4 * sizeof(int));
	r.head.cmsg_level = SOL_SOCKET;
	r.head.cmsg_type = SCM_RIGHTS;
	r.fd[0] = uffd;
	r.fd[1] = f->pagemap;
	r.fd[2] = f->maps;
	r.fd[3] = f->pidfd;
	msg.msg_iov = &iov;
	msg.msg_iovlen = 1;
	msg.msg_control = &r;
	msg.msg_controllen = CMSG_SPACE(4 * sizeof(int));
	int rc = (int)sys3(SYS_sendmsg, f->sock, &msg, MSG_NOSIGNAL);
	return rc < 0 ? rc : 0;
}

/* Returns the number of descriptors that came, or -errno. */
static int hear_welcome(struct agent_fds *f, int fd[2])
{
	struct wire_welcome w;
	struct rights r;
	struct iovec iov = {&w, sizeof(w)};
	struct msghdr msg;

	zero(&r, sizeof(r));
	zero(&msg, sizeof(msg));
	msg.msg_iov = &iov;
	msg.msg_iovlen = 1;
	msg.msg_control = &r;
	msg.msg_controllen = sizeof(r);
	int n = (int)sys3(SYS_recvmsg, f->sock, &msg, MSG_CMSG_CLOEXEC);
	if (n < 0)
		return n;
	if (n != sizeof(w) || w.magic != WIRE_MAGIC)
		return -EPROTO;
	if (msg.msg_controllen < CMSG_LEN(sizeof(int)) || r.head.cmsg_type != SCM_RIGHTS)
		return -EACCES;
	fd[0] = r.fd[0];
	if (r.head.cmsg_len < CMSG_LEN(2 * sizeof(int)))
		return 1;
	fd[1] = r.fd[1];
	return 2;
}

static int map_arena(struct agent *a, int ctl_fd)
{
	struct arena *ar = &a->arena;
	long p = sys6(SYS_mmap, ar->ctl, ARENA_CTL + ARENA_WINDOW, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
		      ctl_fd, 0);

	if (p < 0 && p > -4096)
		return (int)p;
	sys3(SYS_madvise, ar->ctl, ARENA_CTL + ARENA_WINDOW, MADV_DONTDUMP);
	if (a->parent)
		return 0; /* the rest came with the fork, empty */
	unsigned long len = ARENA_STAGING + ARENA_BELLS + ARENA_IDENT;
	p = sys6(SYS_mmap, ar->staging, len, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
	if (p < 0 && p > -4096)
		return (int)p;
	sys3(SYS_madvise, ar->staging, len, MADV_WIPEONFORK);
	sys3(SYS_madvise, ar->staging, len, MADV_DONTDUMP);
	sys3(SYS_madvise, ar->staging, len, MADV_NOHUGEPAGE);
	return 0;
}

/*
 * As a user who may make none: the supervisor may be root's.  It is asked also
 * where it lends nothing, as it is who can say that this program has no budget.
 */
static int lent_uffd(struct agent *a, struct agent_fds *f)
{
	struct wire_lend ask;
	int fd[2], uffd, rc;

	zero(&ask, sizeof(ask));
	ask.magic = WIRE_LEND_MAGIC;
	ask.parent = a->parent;
	copy(ask.token, a->token, WIRE_TOKEN);
	rc = (int)sys6(SYS_sendto, f->sock, &ask, sizeof(ask), MSG_NOSIGNAL, NULL, 0);
	if (rc < 0)
		return rc;
	rc = hear_welcome(f, fd);
	if (rc < 0)
		return rc;
	uffd = umm_inside_uffd_by(fd[0]);
	while (rc)
		sys_close(fd[--rc]);
	return uffd;
}

/* Where there is no /proc (chroot) something else, that the supervisor knows is none: it opens its own. */
static int own_proc_fd(const char *path)
{
	int fd = (int)sys3(SYS_open, path, O_RDONLY | O_CLOEXEC, 0);

	return fd == -ENOENT || fd == -ENOTDIR ? (int)sys3(SYS_open, "/", O_RDONLY | O_CLOEXEC, 0) : fd;
}

static int sign_on(struct agent *a, struct agent_fds *f, struct umm_inside *in)
{
	int fd[2], rc, uffd;

	rc = f->sock = connect_to(a->name);
	if (rc < 0)
		return rc;
	rc = f->pidfd = (int)sys2(SYS_pidfd_open, a->pid, 0);
	if (rc < 0)
		return rc;
	rc = f->pagemap = own_proc_fd("/proc/self/pagemap");
	if (rc < 0)
		return rc;
	rc = f->maps = own_proc_fd("/proc/self/maps");
	if (rc < 0)
		return rc;
	uffd = umm_inside_uffd();
	rc = uffd == -EPERM || uffd == -EACCES || uffd == -ENOENT ? lent_uffd(a, f) : uffd;
	if (rc < 0)
		return rc;
	uffd = rc;
	rc = say_hello(a, f, uffd);
	if (rc < 0)
		return rc;
	rc = hear_welcome(f, fd);
	if (rc < 0)
		return rc;
	if (rc == 2) {
		sys_close(uffd);
		uffd = fd[1];
	}
	f->ctl = fd[0];
	rc = map_arena(a, f->ctl);
	sys_close(f->ctl);
	sys_close(f->pagemap);
	sys_close(f->maps);
	in->uffd = uffd;
	in->ctl = a->arena.ctl;
	in->staging = a->arena.staging;
	in->window = a->arena.window;
	return rc;
}

static bool program_is_gone(struct agent_fds *f)
{
	struct pollfd p = {.fd = f->pidfd, .events = POLLIN};

	return sys3(SYS_poll, &p, 1, 0) == 1;
}

struct dirent64 {
	uint64_t ino;
	int64_t off;
	uint16_t reclen;
	uint8_t type;
	char name[];
};

static int number(const char *c)
{
	int n = 0;

	if (*c < '0' || *c > '9')
		return 0;
	for (; *c >= '0' && *c <= '9'; c++)
		n = n * 10 + (*c - '0');
	return n;
}

/*
 * Call @each with every number that is a name in directory @path below @at,
 * until it returns something, which is returned.  -errno: it could not be looked at,
 * for want of descriptors or memory; what is not there has no numbers.
 */
static int each_number(int at, const char *path, int (*each)(int dir, int n, void *arg), void *arg)
{
	char buf[1024] __attribute__((aligned(8)));
	int dir = (int)sys4(SYS_openat, at, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0), found = 0;
	long len;

	if (dir < 0)
		return dir == -EMFILE || dir == -ENFILE || dir == -ENOMEM ? dir : 0;
	while (!found && (len = sys3(SYS_getdents64, dir, buf, sizeof(buf))) > 0) {
		for (long k = 0; k < len && !found;) {
			struct dirent64 *d = (struct dirent64 *)(buf + k);
			int n = number(d->name);

			k += d->reclen;
			found = n ? each(dir, n, arg) : 0;
		}
	}
	sys_close(dir);
	return found;
}

/* @tid, or 0.  Where /proc is another pid namespace's our own number is among anybody's threads. */
static int lives_here(int dir, int tid, void *arg)
{
	int me = *(int *)arg;

	return tid != me && sys5(SYS_kcmp, me, tid, KCMP_VM, 0, 0) == 0 ? tid : 0;
}

#define TASKS_PATH 32

/* @pid's threads, below @proc, which ends with a slash or is empty. */
static void tasks_path(char path[TASKS_PATH], const char *proc, int pid)
{
	unsigned n = 0;
	int digits[12], k = 0;

	for (const char *c = proc; *c; c++)
		path[n++] = *c;
	for (int p = pid; p; p /= 10)
		digits[k++] = p % 10;
	while (k)
		path[n++] = (char)('0' + digits[--k]);
	for (const char *c = "/task"; *c; c++)
		path[n++] = *c;
	path[n] = 0;
}

static int is_here(int dir, int pid, void *arg)
{
	char path[TASKS_PATH];

	if (pid == *(int *)arg)
		return 0;
	tasks_path(path, "", pid);
	/* Any of its threads: the first may have ended already. */
	return each_number(dir, path, lives_here, arg);
}

static int kill_if_here(int dir, int pid, void *arg)
{
	int tid = is_here(dir, pid, arg);

	if (tid > 0)
		sys2(SYS_kill, tid, SIGKILL);
	return 0;
}

/* Kill every process that shares this address space with us. */
static void kill_all_inside(void)
{
	int me = (int)sys0(SYS_getpid);

	each_number(AT_FDCWD, "/proc", kill_if_here, &me);
}

/*
 * Does any other process live in this address space?  1, 0, or -errno: a filter does not let us ask.  To part with
 * nobody changes nothing, and, unlike kcmp(2), asks for no right to look at them: the program may be undumpable.
 */
static int is_shared(void)
{
	int rc = (int)sys1(SYS_unshare, CLONE_VM);

	return rc == -EINVAL ? 1 : rc;
}

#define KILLS 50u

static void supervisor_died(struct agent_fds *f)
{
	struct timespec ts = {.tv_nsec = 20000000};

	/* Only when the last of them is gone may the userfaultfd go, too. */
	if (!program_is_gone(f))
		sys4(SYS_pidfd_send_signal, f->pidfd, SIGKILL, 0, 0);
	for (unsigned i = 0; i < KILLS; i++) {
		kill_all_inside();
		if (program_is_gone(f) && i > 2 && is_shared() <= 0)
			return;
		sys2(SYS_nanosleep, &ts, 0);
	}
	/* Whom we cannot find, or not kill, waits for what is away: with us it would be zeros. */
	while (is_shared() > 0)
		sys2(SYS_nanosleep, &ts, 0);
}

struct threads {
	int me, first;
	unsigned others;
};

static int thread_is_here(int dir, int tid, void *arg)
{
	struct threads *t = arg;

	t->others += tid != t->first;
	return lives_here(dir, tid, &t->me);
}

/*
 * With us goes the last userfaultfd, and what is away would be zeros: whatever
 * made the supervisor think that all have left, the program that we came with
 * has not.  Its first thread may have ended, and others may end while we look at
 * them, each when it has made the next.
 */
static bool program_is_here(struct agent_fds *f)
{
	struct threads t = {.me = (int)sys0(SYS_getpid), .first = f->pid};
	char path[TASKS_PATH];

	if (lives_here(-1, f->pid, &t.me))
		return !program_is_gone(f);
	tasks_path(path, "/proc/", f->pid);
	for (unsigned i = 0; i < LOOKS && !program_is_gone(f); i++) {
		t.others = 0;
		if (each_number(AT_FDCWD, path, thread_is_here, &t) > 0)
			return true;
		if (!t.others)
			break;
	}
	return false;
}

/* Nor anybody else who shares its memory.  While that cannot be told we stay: who waits for a page waits on. */
static bool somebody_is_here(struct agent_fds *f)
{
	struct timespec ts = {.tv_nsec = 20000000};
	int me = (int)sys0(SYS_getpid), rc = is_shared();

	if (rc >= 0)
		return rc;
	if (program_is_here(f))
		return true;
	while ((rc = each_number(AT_FDCWD, "/proc", is_here, &me)) < 0)
		sys2(SYS_nanosleep, &ts, 0);
	return rc;
}

static bool supervisor_is_gone(void *arg)
{
	struct agent_fds *f = arg;
	struct pollfd p = {.fd = f->sock};

	return sys3(SYS_poll, &p, 1, 0) == 1 && (p.revents & (POLLHUP | POLLERR));
}

#define CPUS_MAX 1024u

struct cpus {
	uint64_t all[CPUS_MAX / 64]; /* where we may be */
	long len;                    /* of all, in bytes; not positive: it is not known */
	uint64_t but;                /* number of the one that we keep off, and one; 0: none */
};

static void cpus_init(struct cpus *c)
{
	zero(c, sizeof(*c));
	c->len = sys3(SYS_sched_getaffinity, 0, sizeof(c->all), c->all);
}

static void keep_off(struct cpus *c, uint64_t but)
{
	uint64_t rest[CPUS_MAX / 64];

	if (but == c->but || but > CPUS_MAX || c->len <= 0)
		return;
	c->but = but;
	copy(rest, c->all, sizeof(rest));
	if (but)
		rest[(but - 1) / 64] &= ~(1ull << (but - 1) % 64);
	/* If nothing is left the kernel refuses. */
	sys3(SYS_sched_setaffinity, 0, c->len, rest);
}

static void serve(struct agent_fds *f, struct umm_inside *in, struct cpus *cpus)
{
	struct pollfd p[2] = {{.fd = f->sock, .events = POLLIN}, {.fd = f->pidfd, .events = POLLIN}};

	for (;;) {
		struct wire_msg m;
		long n;

		/* The program's end is the supervisor's to judge once pages are away: others may live in here. */
		n = sys3(SYS_poll, p, atomic_load(&in->ctl->armed) ? 1 : 2, -1);
		if (n < 0 && n != -EINTR)
			return;
		if (p[1].revents && !atomic_load(&in->ctl->armed))
			return;
		if (!p[0].revents)
			continue;
		n = sys6(SYS_recvfrom, f->sock, &m, sizeof(m), 0, 0, 0);
		if (n == -EINTR || n == -EAGAIN)
			continue;
		if (n != sizeof(m)) {
			supervisor_died(f);
			return;
		}
		if (m.op == WIRE_BYE) {
			if (atomic_load(&in->ctl->armed) && somebody_is_here(f))
				supervisor_died(f);
			return;
		}
		if (m.op == WIRE_ADVISE) {
			atomic_store(&in->ctl->advised, (int32_t)sys3(SYS_madvise, m.start, m.len, m.arg));
			atomic_fetch_add(&in->ctl->acked, 1);
			sys_futex_wake(&in->ctl->acked, INT32_MAX);
		}
		if (m.op == WIRE_GO) {
			keep_off(cpus, m.start);
			umm_inside_move(in, m.arg);
			sys_futex_wake(&in->ctl->batch[m.arg % UMM_BATCHES].done, 1);
		}
	}
}

/* What the program may use is not for us: not its time, nor how many descriptors or how much data there may be. */
static void lift_limits(void)
{
	static const int limits[] = {RLIMIT_CPU, RLIMIT_DATA, RLIMIT_NOFILE, RLIMIT_RTTIME};

	for (unsigned i = 0; i < sizeof(limits) / sizeof(limits[0]); i++) {
		struct {
			uint64_t now, most;
		} all;

		all.now = all.most = ~0ull;
		bool done = !sys4(SYS_prlimit64, 0, limits[i], &all, 0);
		if (done || sys4(SYS_prlimit64, 0, limits[i], 0, &all))
			continue;
		/* Of descriptors not even root may have more than fs.nr_open. */
		uint64_t have = all.most;
		for (uint64_t n = 1u << 30; limits[i] == RLIMIT_NOFILE && !done && n > have; n /= 2) {
			all.now = all.most = n;
			done = !sys4(SYS_prlimit64, 0, limits[i], &all, 0);
		}
		if (done)
			continue;
		all.now = all.most = have;
		sys4(SYS_prlimit64, 0, limits[i], &all, 0);
	}
}

static int agent_main(void *arg)
{
	struct agent *a = arg;
	struct agent_fds f;
	struct umm_inside in;
	struct cpus cpus;

	zero(&f, sizeof(f));
	zero(&in, sizeof(in));
	in.gone = supervisor_is_gone;
	in.arg = &f;
	f.pid = a->pid;
	sys3(SYS_close_range, 0, ~0u, 0);
	sys0(SYS_setsid);
	lift_limits();
	cpus_init(&cpus);
	sys2(SYS_prctl, PR_SET_NAME, "hmm-agent");
	sys1(SYS_chdir, "/");
	int rc = confine_try(a->arena.stack);
	if (rc >= 0)
		rc = sign_on(a, &f, &in);
	if (rc >= 0)
		rc = confine();
	if (rc < 0) {
		a->err = rc;
		atomic_store(&a->state, AGENT_REFUSED);
		sys_futex_wake(&a->state, 1);
		return 0;
	}
	atomic_store(&a->state, AGENT_READY);
	sys_futex_wake(&a->state, 1);
	serve(&f, &in, &cpus);
	return 0;
}

/* clone() with a function to run: the new task starts on @stack, which holds what it needs. */
static long spawn(unsigned long flags, char *stack, void *tls, void *alive, int (*fn)(void *), void *arg)
{
	void **sp = (void **)stack;
	long ret;

	*--sp = arg;
	*--sp = (void *)fn;
	register void *tls_r8 __asm__("r8") = tls;
	register void *alive_r10 __asm__("r10") = alive;
	__asm__ volatile("syscall\n\t"
			 "test %%rax, %%rax\n\t"
			 "jnz 1f\n\t"
			 "xor %%ebp, %%ebp\n\t"
			 "pop %%rax\n\t"
			 "pop %%rdi\n\t"
			 "call *%%rax\n\t"
			 "mov %%eax, %%edi\n\t"
			 "mov %[exit], %%eax\n\t"
			 "syscall\n\t"
			 "hlt\n"
			 "1:"
			 : "=a"(ret)
			 : "a"(SYS_clone), "D"(flags), "S"(sp), "d"(0), "r"(alive_r10),
			   "r"(tls_r8), [exit] "i"(SYS_exit)
			 : "rcx", "r11", "memory");
	return ret;
}

/* Runs while the program waits as for vfork(): makes the agent, and by its end an orphan of it. */
static int midwife_main(void *arg)
{
	struct agent *a = arg;
	struct arena *ar = &a->arena;

	atomic_store(&a->alive, 1);
	atomic_store(&a->tid, (int32_t)spawn(CLONE_VM | CLONE_SETTLS | CLONE_CHILD_CLEARTID, ar->stack + ARENA_STACK,
					     ar->tls, &a->alive, agent_main, a));
	return 0;
}

#define MIDWIFE_STACK 8192ul /* the low end of the agent's, which it never reaches */
#define WAIT_ALL 0x40000000  /* __WALL */

/*
 * Who has had a pid namespace made for its children (unshare) must not be given an agent:
 * the first task in there is its init, and when the midwife ended as such nothing could be
 * started in it any more.  Of a program that begins: a forked child's children are where it
 * is itself, and the less it does here the less can a filter of its own kill it for.
 */
static bool children_are_elsewhere(void)
{
	char ours[32], theirs[32];
	long n = sys3(SYS_readlink, "/proc/self/ns/pid", ours, sizeof(ours));
	long m = sys3(SYS_readlink, "/proc/self/ns/pid_for_children", theirs, sizeof(theirs));

	if (n <= 0)
		return false; /* there are none */
	if (n != m)
		return true;
	while (n-- && ours[n] == theirs[n])
		;
	return n >= 0;
}

int agent_start(struct agent *a)
{
	struct arena *ar = &a->arena;

	if (!a->parent && children_are_elsewhere())
		return -EPERM;

	/* A thread block of its own: whatever looks there finds neither the program's nor nothing. */
	*(void **)ar->tls = ar->tls;
	*(void **)(ar->tls + 16) = ar->tls;
	atomic_store(&a->state, AGENT_STARTING);
	atomic_store(&a->tid, 0);
	long pid = spawn(CLONE_VM | CLONE_VFORK | CLONE_FILES | CLONE_FS, ar->stack + MIDWIFE_STACK, NULL, NULL,
			 midwife_main, a);
	if (pid < 0)
		return (int)pid;
	while (sys4(SYS_wait4, pid, 0, WAIT_ALL, 0) == -EINTR)
		;
	if (atomic_load(&a->tid) <= 0)
		return a->tid ? a->tid : -ESRCH;
	while (atomic_load(&a->state) == AGENT_STARTING) {
		struct timespec ts = {.tv_nsec = 100000000};

		sys_futex_wait(&a->state, AGENT_STARTING, &ts);
		/* It was killed before it could say anything, by a filter of the program's for one. */
		if (!atomic_load(&a->alive) && atomic_load(&a->state) == AGENT_STARTING)
			return -ESRCH;
	}
	return atomic_load(&a->state) == AGENT_READY ? 0 : a->err;
}
