/* SPDX-License-Identifier: MIT */
/*
 * What the kernel probes share: open, register, serve, check.
 *
 * DOC: how a probe can fail
 *
 * CHECK() states the fact and exits 1 when it is not so.  Nothing is decided by
 * the clock: a call that waits for an event to be read never returns when
 * nobody reads, so "no event is sent" means "it returned", and its opposite
 * ends with the watchdog of probe_start().  "Is still asleep" is the task's state:
 * a waker changes it before its own call returns.
 *
 * Each probe also does the same thing where the fact does not apply, so that a
 * call that fails for another reason is not taken for the fact.
 */
#ifndef PROBE_H
#define PROBE_H

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "hmm_uapi.h"

#define PAGE 4096ul
#define HUGE (2ul << 20)
#define PROBE_SECONDS 100

#define CHECK(cond, ...)                                                        \
	do {                                                                    \
		if (!(cond)) {                                                  \
			int e_ = errno;                                         \
			fprintf(stderr, "%s:%d: NOT SO: ", __FILE__, __LINE__); \
			fprintf(stderr, __VA_ARGS__);                           \
			fprintf(stderr, " [%s; errno %d]\n", #cond, e_);        \
			_exit(1);                                               \
		}                                                               \
	} while (0)

#define SKIP(...)                    \
	do {                         \
		printf("SKIP: ");    \
		printf(__VA_ARGS__); \
		printf("\n");        \
		fflush(stdout);      \
		_exit(77);           \
	} while (0)

/*
 * A thread and no signal handler: who waits for its event to be read wakes up
 * for nothing but the end of the process.
 */
static inline void *probe_watchdog(void *unused)
{
	for (unsigned left = PROBE_SECONDS; left;) /* glibc's setresuid interrupts it */
		left = sleep(left);
	fprintf(stderr, "NOT SO: something waits that should not (or an event came that should not)\n");
	_exit(1);
}

static inline void probe_start(void)
{
	pthread_t t;

	CHECK(!pthread_create(&t, NULL, probe_watchdog, NULL), "a thread can be started");
}

/* ---------------------------------------------------------------- memory */

static inline char *map_flags(size_t len, int prot, int flags)
{
	char *p = mmap(NULL, len, prot, flags, -1, 0);

	CHECK(p != MAP_FAILED, "mmap of %zu bytes works", len);
	return p;
}

/* Anonymous, private, with guard pages, so that the kernel merges it with no neighbour; empty. */
static inline char *map_anon(size_t len)
{
	char *p = map_flags(len + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS) + PAGE;

	CHECK(!mprotect(p, len, PROT_READ | PROT_WRITE), "mprotect works");
	madvise(p, len, MADV_NOHUGEPAGE);
	return p;
}

static inline char *map_filled(size_t len, int byte)
{
	char *p = map_anon(len);

	memset(p, byte, len);
	return p;
}

static inline char *map_shared(size_t len)
{
	return map_flags(len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS);
}

static inline bool all_bytes(const char *p, size_t len, int byte)
{
	for (size_t i = 0; i < len; i++)
		if (p[i] != (char)byte)
			return false;
	return true;
}

/* The categories (PAGE_IS_*) of the page at @addr as the pagemap descriptor @fd has them. */
static inline uint64_t scan_page_fd(int fd, const void *addr)
{
	struct page_region r = {0};
	struct pm_scan_arg a = {
		.size = sizeof(a),
		.start = (uintptr_t)addr,
		.end = (uintptr_t)addr + PAGE,
		.vec = (uintptr_t)&r,
		.vec_len = 1,
		.return_mask = PAGE_IS_WPALLOWED | PAGE_IS_WRITTEN | PAGE_IS_FILE | PAGE_IS_PRESENT | PAGE_IS_SWAPPED |
			       PAGE_IS_PFNZERO | PAGE_IS_HUGE,
	};
	int n = ioctl(fd, PAGEMAP_SCAN, &a);

	if (n < 0 && errno == ENOTTY)
		SKIP("no PAGEMAP_SCAN (Linux 6.7)");
	CHECK(n >= 0, "PAGEMAP_SCAN works");
	return n ? r.categories : 0;
}

static inline uint64_t scan_page(const void *addr)
{
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	uint64_t c;

	CHECK(fd >= 0, "/proc/self/pagemap can be opened");
	c = scan_page_fd(fd, addr);
	close(fd);
	return c;
}

static inline bool present(const void *addr)
{
	return scan_page(addr) & PAGE_IS_PRESENT;
}

/* ----------------------------------------------------------- userfaultfd */

static inline int uffd_open_flags(int flags)
{
	int fd = (int)syscall(SYS_userfaultfd, flags);

	if (fd < 0) {
		int dev = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);

		if (dev >= 0) {
			fd = ioctl(dev, USERFAULTFD_IOC_NEW, flags);
			close(dev);
		}
	}
	if (fd < 0)
		SKIP("no permission for userfaultfd (sysctl vm.unprivileged_userfaultfd=1, or rights on "
		     "/dev/userfaultfd)");
	return fd;
}

static inline int uffd_api(int fd, uint64_t features)
{
	struct uffdio_api a = {.api = UFFD_API, .features = features};

	return ioctl(fd, UFFDIO_API, &a) ? -errno : 0;
}

/* A descriptor with @features; SKIP where the kernel or our rights do not allow them. */
static inline int uffd_open(uint64_t features)
{
	int fd = uffd_open_flags(O_CLOEXEC | O_NONBLOCK);
	int rc = uffd_api(fd, features);

	if (rc == -EPERM)
		SKIP("fork events want CAP_SYS_PTRACE");
	if (rc == -EINVAL)
		SKIP("the kernel lacks one of the userfaultfd features %#llx", (unsigned long long)features);
	CHECK(!rc, "UFFDIO_API works");
	return fd;
}

static inline int uffd_register(int fd, const void *p, size_t len, uint64_t mode)
{
	struct uffdio_register r = {.range = {(uintptr_t)p, len}, .mode = mode};

	return ioctl(fd, UFFDIO_REGISTER, &r) ? -errno : 0;
}

#define MISSING UFFDIO_REGISTER_MODE_MISSING
#define WP UFFDIO_REGISTER_MODE_WP

/* Empty memory registered for missing pages. */
static inline char *map_registered(int fd, size_t len)
{
	char *p = map_anon(len);

	CHECK(!uffd_register(fd, p, len, MISSING), "UFFDIO_REGISTER of anonymous memory works");
	return p;
}

static inline int uffd_unregister(int fd, const void *p, size_t len)
{
	struct uffdio_range r = {(uintptr_t)p, len};

	return ioctl(fd, UFFDIO_UNREGISTER, &r) ? -errno : 0;
}

static inline int uffd_wake(int fd, const void *p, size_t len)
{
	struct uffdio_range r = {(uintptr_t)p, len};

	return ioctl(fd, UFFDIO_WAKE, &r) ? -errno : 0;
}

/* The calls below return 0 or -errno; *@field is what the kernel left in the result field. */

static inline int uffd_copy_mode(int fd, const void *dst, const void *src, size_t len, uint64_t mode, int64_t *field)
{
	struct uffdio_copy c = {.dst = (uintptr_t)dst, .src = (uintptr_t)src, .len = len, .mode = mode};
	int rc = ioctl(fd, UFFDIO_COPY, &c) ? -errno : 0;

	if (field)
		*field = c.copy;
	return rc;
}

static inline int uffd_copy(int fd, const void *dst, const void *src, size_t len)
{
	return uffd_copy_mode(fd, dst, src, len, 0, NULL);
}

/* One page of @byte at @dst. */
static inline int uffd_fill(int fd, const void *dst, int byte)
{
	char page[PAGE];

	memset(page, byte, PAGE);
	return uffd_copy(fd, dst, page, PAGE);
}

static inline int uffd_zeropage(int fd, const void *p, size_t len)
{
	struct uffdio_zeropage z = {.range = {(uintptr_t)p, len}};

	return ioctl(fd, UFFDIO_ZEROPAGE, &z) ? -errno : 0;
}

static inline int uffd_poison(int fd, const void *p, size_t len)
{
	struct uffdio_poison a = {.range = {(uintptr_t)p, len}};

	return ioctl(fd, UFFDIO_POISON, &a) ? -errno : 0;
}

static inline int uffd_wp(int fd, const void *p, size_t len, bool on)
{
	struct uffdio_writeprotect w = {{(uintptr_t)p, len}, on ? UFFDIO_WRITEPROTECT_MODE_WP : 0};

	return ioctl(fd, UFFDIO_WRITEPROTECT, &w) ? -errno : 0;
}

static inline int uffd_move_mode(int fd, const void *dst, const void *src, size_t len, uint64_t mode, int64_t *field)
{
	struct uffdio_move m = {.dst = (uintptr_t)dst, .src = (uintptr_t)src, .len = len, .mode = mode};
	int rc = ioctl(fd, UFFDIO_MOVE, &m) ? -errno : 0;

	if (field)
		*field = m.move;
	return rc;
}

static inline int uffd_move(int fd, const void *dst, const void *src, size_t len)
{
	return uffd_move_mode(fd, dst, src, len, 0, NULL);
}

/* Sleeps until there is something to read, reads nothing. */
static inline void uffd_wait(int fd)
{
	struct pollfd p = {.fd = fd, .events = POLLIN};

	CHECK(poll(&p, 1, -1) == 1 && (p.revents & POLLIN), "the userfaultfd becomes readable");
}

static inline bool uffd_quiet(int fd)
{
	struct pollfd p = {.fd = fd, .events = POLLIN};

	return poll(&p, 1, 0) == 0;
}

static inline struct uffd_msg uffd_read(int fd)
{
	struct uffd_msg m;
	ssize_t n;

	do {
		uffd_wait(fd);
		n = read(fd, &m, sizeof(m));
	} while (n < 0 && (errno == EAGAIN || errno == EINTR));
	CHECK(n == sizeof(m), "a message can be read");
	return m;
}

/* Reads one message and wants it to be a fault on @addr's page. */
static inline void uffd_read_fault(int fd, const void *addr)
{
	struct uffd_msg m = uffd_read(fd);

	CHECK(m.event == UFFD_EVENT_PAGEFAULT, "a fault is delivered (got event %#x)", m.event);
	CHECK((m.arg.pagefault.address & -PAGE) == (uintptr_t)addr, "the fault has the address that was touched");
}

/* ----------------------------------------------------- threads of a probe */

/*
 * A thread that runs one function.  When that has returned it spins until
 * joined: asleep therefore means "inside the function".
 */
struct actor {
	void (*fn)(void *arg);
	void *arg;
	pthread_t thread;
	pid_t tid;
	int started, done, leave;
};

static inline void *actor_main(void *p)
{
	struct actor *a = p;

	a->tid = (pid_t)syscall(SYS_gettid);
	__atomic_store_n(&a->started, 1, __ATOMIC_RELEASE);
	a->fn(a->arg);
	__atomic_store_n(&a->done, 1, __ATOMIC_RELEASE);
	while (!__atomic_load_n(&a->leave, __ATOMIC_ACQUIRE))
		sched_yield();
	return NULL;
}

static inline void actor_start(struct actor *a, void (*fn)(void *), void *arg)
{
	memset(a, 0, sizeof(*a));
	a->fn = fn;
	a->arg = arg;
	CHECK(!pthread_create(&a->thread, NULL, actor_main, a), "a thread can be started");
	while (!__atomic_load_n(&a->started, __ATOMIC_ACQUIRE))
		sched_yield();
}

static inline bool actor_done(struct actor *a)
{
	return __atomic_load_n(&a->done, __ATOMIC_ACQUIRE);
}

/* The state letter of a task of this process. */
static inline char task_state(pid_t tid)
{
	char path[64], buf[256], *p;
	ssize_t n;
	int fd;

	snprintf(path, sizeof(path), "/proc/self/task/%d/stat", tid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return 0;
	n = read(fd, buf, sizeof(buf) - 1);
	close(fd);
	if (n <= 0)
		return 0;
	buf[n] = 0;
	p = strrchr(buf, ')');
	return p ? p[2] : 0;
}

static inline bool actor_asleep(struct actor *a)
{
	return !actor_done(a) && task_state(a->tid) == 'S' && !actor_done(a);
}

static inline void actor_wait_asleep(struct actor *a)
{
	while (!actor_asleep(a)) {
		CHECK(!actor_done(a), "the thread has to wait");
		sched_yield();
	}
}

static inline void actor_join(struct actor *a)
{
	while (!actor_done(a))
		sched_yield();
	__atomic_store_n(&a->leave, 1, __ATOMIC_RELEASE);
	CHECK(!pthread_join(a->thread, NULL), "the thread ends");
}

static inline void touch_read(void *p)
{
	(void)*(volatile char *)p;
}

static inline void touch_write(void *p)
{
	*(volatile char *)p = 'w';
}

/* -------------------------------------------------- processes of a probe */

struct peer {
	pid_t pid;
	int sock;
};

/* Runs @fn in a child that ends with us; what @fn returns is its exit status. */
static inline struct peer peer_start(int (*fn)(int sock))
{
	struct peer peer;
	int sv[2];

	CHECK(!socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv), "socketpair works");
	fflush(NULL);
	peer.pid = fork();
	CHECK(peer.pid >= 0, "fork works");
	if (!peer.pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		close(sv[0]);
		_exit(fn(sv[1]));
	}
	close(sv[1]);
	peer.sock = sv[0];
	return peer;
}

static inline void say(int sock, uint64_t v)
{
	CHECK(send(sock, &v, sizeof(v), MSG_NOSIGNAL) == sizeof(v), "the other process of this probe is there");
}

static inline uint64_t hear(int sock)
{
	uint64_t v;

	CHECK(recv(sock, &v, sizeof(v), MSG_WAITALL) == sizeof(v), "the other process of this probe is there");
	return v;
}

static inline void send_fd(int sock, int fd)
{
	char c = 'f';
	union {
		struct cmsghdr h;
		char buf[CMSG_SPACE(sizeof(int))];
	} u = {0};
	struct iovec iov = {&c, 1};
	struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = u.buf, .msg_controllen = sizeof(u.buf)};

	u.h.cmsg_level = SOL_SOCKET;
	u.h.cmsg_type = SCM_RIGHTS;
	u.h.cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(&u.h), &fd, sizeof(int));
	CHECK(sendmsg(sock, &m, MSG_NOSIGNAL) == 1, "a descriptor can be passed");
}

static inline int recv_fd(int sock)
{
	char c;
	int fd = -1;
	union {
		struct cmsghdr h;
		char buf[CMSG_SPACE(sizeof(int))];
	} u = {0};
	struct iovec iov = {&c, 1};
	struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = u.buf, .msg_controllen = sizeof(u.buf)};

	CHECK(recvmsg(sock, &m, MSG_CMSG_CLOEXEC) == 1 && CMSG_FIRSTHDR(&m), "a descriptor is received");
	memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof(int));
	return fd;
}

/* A second socket to the process at the other end of @sock, which gets its end by recv_fd(). */
static inline int side_channel(int sock)
{
	int sv[2];

	CHECK(!socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv), "socketpair works");
	send_fd(sock, sv[0]);
	close(sv[0]);
	return sv[1];
}

/* The exit status of @pid; 128 + signal when it was killed. */
static inline int reap(pid_t pid)
{
	int st;

	while (waitpid(pid, &st, 0) < 0)
		CHECK(errno == EINTR, "the child can be waited for");
	return WIFEXITED(st) ? WEXITSTATUS(st) : 128 + WTERMSIG(st);
}

static inline int pidfd_open_(pid_t pid)
{
	int fd = (int)syscall(SYS_pidfd_open, pid, 0);

	CHECK(fd >= 0, "pidfd_open works");
	return fd;
}

/*
 * A task that shares our memory but neither our thread group nor our
 * descriptors and sends no signal when it ends: what an agent is.
 * It shares the caller's thread pointer, hence errno: meanwhile the caller
 * does nothing that uses errno (agent_wait() does not).
 */
static inline pid_t agent_clone(int (*fn)(void *), void *arg)
{
	char *stack = map_anon(16 * PAGE);
	pid_t pid = clone(fn, stack + 16 * PAGE, CLONE_VM, arg);

	CHECK(pid > 0, "clone(CLONE_VM) works");
	return pid;
}

static inline void flag_set(int *flag, int v)
{
	__atomic_store_n(flag, v, __ATOMIC_RELEASE);
}

static inline void flag_wait(int *flag, int v)
{
	while (__atomic_load_n(flag, __ATOMIC_ACQUIRE) != v)
		sched_yield();
}

#endif
