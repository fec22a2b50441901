/* SPDX-License-Identifier: MIT */
/*
 * What a process may do to itself, done while most of its memory is cold: give
 * up descriptors, privileges, threads, system calls, namespaces.  Its memory is
 * checked before and after, and that of a child made afterwards, too.
 */
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "../victim.h"
#include "umm/ctl.h"

#define KIND V_QUARTER

static char *mem;
static size_t pages; /* of which somewhat more than half fits */

/* Everything is as generation @gen says; then it is @gen + 1. */
static int turn(uint64_t gen)
{
	if (v_check_all(mem, pages, 1, gen, KIND))
		return 1;
	v_fill_all(mem, pages, 1, gen + 1, KIND);
	return 0;
}

/* A child that reads all and writes a part, and after it the parent. */
static int with_child(uint64_t gen)
{
	int status;
	pid_t pid = fork();

	if (!pid) {
		if (v_check_all(mem, pages, 1, gen, KIND))
			_exit(1);
		v_fill_all(mem, pages / 2, 1, gen + 7, KIND);
		_exit(v_check_all(mem, pages / 2, 1, gen + 7, KIND) ? 2 : 0);
	}
	if (pid < 0 || waitpid(pid, &status, 0) != pid || status) {
		fprintf(stderr, "child %d: status %#x, %s\n", (int)pid, pid < 0 ? 0 : status,
			pid < 0 ? strerror(errno) : "");
		return 1;
	}
	return v_check_all(mem, pages, 1, gen, KIND) != 0;
}

static int after(void)
{
	return turn(0) || with_child(1) || turn(1) || v_check_all(mem, pages, 1, 2, KIND);
}

static int failed(const char *what)
{
	fprintf(stderr, "%s: %s\n", what, strerror(errno));
	return 1;
}

/* ---------------------------------------------------------------- threads */

#define WAVE 16u
#define STACK (64ul << 10)

static __thread uint64_t mine[64];

static void *short_life(void *arg)
{
	size_t n = (uintptr_t)arg;

	for (unsigned i = 0; i < 64; i++)
		mine[i] = v_mix(n + i);
	for (size_t i = n % 61; i < pages; i += 4001)
		if (v_check(mem + i * V_PAGE, i, 1, 0, KIND))
			return (void *)1;
	for (unsigned i = 0; i < 64; i++)
		if (mine[i] != v_mix(n + i))
			return (void *)2;
	return NULL;
}

static int threads(void)
{
	char *stacks = v_map(WAVE * STACK);
	size_t many = v_long() ? 20000 : 2000;

	for (size_t n = 0; n < many; n += WAVE) {
		pthread_t t[WAVE];
		void *ret;

		for (unsigned i = 0; i < WAVE; i++) {
			pthread_attr_t attr;

			pthread_attr_init(&attr);
			if (i & 1) /* a stack of our own, which was cold since the wave before, control block and all */
				pthread_attr_setstack(&attr, stacks + i * STACK, STACK);
			errno = pthread_create(&t[i], &attr, short_life, (void *)(uintptr_t)(n + i));
			if (errno)
				return failed("pthread_create");
			pthread_attr_destroy(&attr);
		}
		for (unsigned i = 0; i < WAVE; i++) {
			if (pthread_join(t[i], &ret) || ret) {
				fprintf(stderr, "thread %zu: %p\n", n + i, ret);
				return 1;
			}
		}
		/* Push the caches of libc and the stacks out between the waves. */
		if (n % (16 * WAVE) == 0)
			for (size_t i = 0; i < pages; i++)
				*(volatile char *)(mem + i * V_PAGE);
	}
	return v_check_all(mem, pages, 1, 0, KIND) != 0;
}

/*
 * More threads than pages can be kept from going, none with its control block
 * where another's was: when all have ended, everything else still goes.
 */
static void *nothing(void *arg)
{
	return arg;
}

static int ended_threads(void)
{
	enum { MANY = 34000, LITTLE = 16 << 10 };
	char *stacks = mmap(NULL, (size_t)MANY * LITTLE, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	pthread_attr_t attr;

	if (stacks == MAP_FAILED)
		return failed("mmap");
	madvise(stacks, (size_t)MANY * LITTLE, MADV_NOHUGEPAGE);
	pthread_attr_init(&attr);
	for (size_t n = 0; n < MANY; n++) {
		char *stack = stacks + n * LITTLE;
		pthread_t t;

		pthread_attr_setstack(&attr, stack, LITTLE);
		errno = pthread_create(&t, &attr, nothing, NULL);
		if (errno)
			return failed("pthread_create");
		pthread_join(t, NULL);
		if (n % 64 == 63)
			madvise(stack - 63 * LITTLE, 64 * LITTLE, MADV_DONTNEED);
	}
	if (turn(0) || turn(1))
		return 1;
	size_t away = v_absent(mem, pages);
	if (away < pages / 4) {
		fprintf(stderr, "of %zu pages only %zu are away\n", pages, away);
		return 1;
	}
	return 0;
}

/* Threads that sleep in the kernel, their stacks cold, while all else turns; then all end. */
static pthread_barrier_t barrier;

static void *sleeper(void *arg)
{
	char page[V_PAGE];

	v_fill(page, (uintptr_t)arg, 5, 0, KIND);
	pthread_barrier_wait(&barrier);
	pthread_barrier_wait(&barrier);
	return (void *)(intptr_t)v_check(page, (uintptr_t)arg, 5, 0, KIND);
}

static int sleepers(void)
{
	enum { N = 200 };
	static pthread_t t[N];
	int bad = 0;

	pthread_barrier_init(&barrier, NULL, N + 1);
	for (uintptr_t i = 0; i < N; i++) {
		errno = pthread_create(&t[i], NULL, sleeper, (void *)i);
		if (errno)
			return failed("pthread_create");
	}
	pthread_barrier_wait(&barrier);
	bad = turn(0) || turn(1);
	pthread_barrier_wait(&barrier);
	for (unsigned i = 0; i < N; i++) {
		void *ret;

		bad |= pthread_join(t[i], &ret) || ret;
	}
	return bad;
}

/*
 * Threads that end without touching their control blocks once more, as their
 * stacks are deeper: only the kernel writes there then, and who joins waits for it.
 */
static int wake[2];

static __attribute__((noinline)) void end_deep(void)
{
	volatile char deep[4 * V_PAGE];
	char c;

	deep[0] = 1;
	pthread_barrier_wait(&barrier);
	syscall(SYS_read, wake[0], &c, 1);
	syscall(SYS_exit, deep[0] - 1);
}

static void *ends_deep(void *arg)
{
	end_deep();
	return NULL;
}

static unsigned tasks(void)
{
	struct stat st;

	return stat("/proc/self/task", &st) ? 0 : (unsigned)st.st_nlink - 2;
}

static int raw_exit(void)
{
	enum { N = 100 };
	static pthread_t t[N];

	pthread_barrier_init(&barrier, NULL, N + 1);
	if (pipe(wake))
		return failed("pipe");
	for (unsigned i = 0; i < N; i++) {
		errno = pthread_create(&t[i], NULL, ends_deep, NULL);
		if (errno)
			return failed("pthread_create");
	}
	pthread_barrier_wait(&barrier);
	/* Often enough that everything that may go has gone. */
	for (unsigned gen = 0; gen < 4; gen++)
		if (turn(gen))
			return 1;
	close(wake[1]);
	while (tasks() > 1)
		usleep(1000);
	for (unsigned i = 0; i < N; i++)
		if (pthread_join(t[i], NULL))
			return 1;
	return v_check_all(mem, pages, 1, 4, KIND) != 0;
}

static void *goes_on(void *arg)
{
	pthread_join(*(pthread_t *)arg, NULL); /* main has ended */
	exit(after());
}

/*
 * The first thread has ended, and each other one ends as soon as it has made the
 * next: whoever looks at all threads one after the other meets none that lives.
 */
#define LINKS (v_long() ? 20000u : 8000u)

static void *hands_on(void *arg)
{
	uintptr_t left = (uintptr_t)arg;
	pthread_t t;

	pthread_detach(pthread_self());
	if (!left)
		exit(after());
	errno = pthread_create(&t, NULL, hands_on, (void *)(left - 1));
	if (errno)
		exit(failed("pthread_create"));
	return NULL;
}

static int handed_on(void)
{
	pthread_t t;

	errno = pthread_create(&t, NULL, hands_on, (void *)(uintptr_t)LINKS);
	if (errno)
		return failed("pthread_create");
	pthread_exit(NULL);
}

static int main_thread_exits(void)
{
	static pthread_t self;
	pthread_t t;

	self = pthread_self();
	errno = pthread_create(&t, NULL, goes_on, &self);
	if (errno)
		return failed("pthread_create");
	pthread_exit(NULL);
}

/* ------------------------------------------------------------- descriptors */

static int close_all(void)
{
	if (syscall(SYS_close_range, 3, ~0u, 0))
		return failed("close_range");
	for (int fd = 3; fd < 5000; fd++)
		close(fd);
	return after();
}

/* LIFE_DIR: where "go" appears when the driver wants the daemon to work, and "done" is written. */
static int daemonize(void)
{
	const char *dir = getenv("LIFE_DIR");
	char go[300], done[300];
	pid_t pid;

	if (!dir)
		return 2;
	snprintf(go, sizeof(go), "%s/go", dir);
	snprintf(done, sizeof(done), "%s/done", dir);
	pid = fork();
	if (pid)
		return pid < 0;
	if (setsid() < 0)
		_exit(1);
	pid = fork();
	if (pid)
		_exit(pid < 0);
	if (chdir("/") || syscall(SYS_close_range, 0, ~0u, 0))
		_exit(1);
	int null = open("/dev/null", O_RDWR);
	dup(null);
	dup(null);
	while (access(go, F_OK))
		usleep(10000);
	int bad = after();
	int fd = open(done, O_WRONLY | O_CREAT | O_EXCL, 0666);
	dprintf(fd, bad ? "wrong\n" : "right\n");
	close(fd);
	_exit(0);
}

/* -------------------------------------------------------------- privileges */

static int drop_user(void)
{
	if (getuid()) {
		puts("wants to be started as root");
		return V_SKIP;
	}
	if (setresgid(65534, 65534, 65534) || setresuid(65534, 65534, 65534))
		return failed("setresuid");
	return after();
}

static int undumpable(void)
{
	if (prctl(PR_SET_DUMPABLE, 0) || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		return failed("prctl");
	return after();
}

#define LOAD_NR BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr))
#define DENY(name) \
	BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_##name, 0, 1), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM)
#define KILL(name) \
	BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_##name, 0, 1), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS)
#define ALLOW BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)

static int filter(struct sock_filter *f, size_t n)
{
	struct sock_fprog prog = {.len = (unsigned short)n, .filter = f};

	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		return failed("no_new_privs");
	if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &prog))
		return failed("seccomp");
	return 0;
}

static void *bystander(void *arg)
{
	pthread_barrier_wait(&barrier);
	pthread_barrier_wait(&barrier);
	return (void *)(intptr_t)v_check_all(mem, pages, 1, 2, KIND);
}

/* In effect for all threads at once; sockets are refused, then what a pager would use is deadly. */
static int seccomp_tsync(void)
{
	struct sock_filter refuse[] = {LOAD_NR,           DENY(socket), DENY(connect), DENY(sendmsg),    DENY(recvmsg),
				       DENY(userfaultfd), DENY(openat), DENY(open),    DENY(pidfd_open), ALLOW};
	struct sock_filter kill[] = {LOAD_NR,      KILL(userfaultfd), KILL(ptrace),          KILL(process_vm_readv),
				     KILL(socket), KILL(ioctl),       KILL(process_madvise), ALLOW};
	pthread_t t;
	void *ret;

	pthread_barrier_init(&barrier, NULL, 2);
	errno = pthread_create(&t, NULL, bystander, NULL);
	if (errno)
		return failed("pthread_create");
	pthread_barrier_wait(&barrier);
	if (filter(refuse, sizeof(refuse) / sizeof(refuse[0])) || after() || v_check_all(mem, pages, 1, 2, KIND))
		return 1;
	if (filter(kill, sizeof(kill) / sizeof(kill[0])) || with_child(2))
		return 1;
	pthread_barrier_wait(&barrier);
	return pthread_join(t, &ret) || ret;
}

/* A child that puts such a filter on itself, and has one of its own. */
static int below(struct sock_filter *f, size_t n, const char *what)
{
	int status = 0;
	pid_t pid = fork();

	if (!pid)
		_exit(filter(f, n) || with_child(0));
	if (pid < 0 || waitpid(pid, &status, 0) != pid || status) {
		fprintf(stderr, "who is refused %s ended with status %#x\n", what, status);
		return 1;
	}
	return 0;
}

#define BELOW(action, name) below((struct sock_filter[]){LOAD_NR, action(name), ALLOW}, 4, #name ", by " #action)

/*
 * A filter that a child's agent has from its start, and that lets it say hello: what it needs
 * only then is refused.  The child has no agent, and all of its memory.
 */
static int seccomp_later(void)
{
	return BELOW(DENY, capset) || BELOW(DENY, recvmsg) || BELOW(DENY, prctl) || BELOW(KILL, sched_setaffinity) ||
	       BELOW(KILL, readlink);
}

static int unshare_all(void)
{
	/* Refused by the kernel while the process has a second thread: there is none of ours in it. */
	if (unshare(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWNET)) {
		if (errno == EPERM || errno == ENOSPC) {
			printf("unshare: %s\n", strerror(errno));
			return V_SKIP;
		}
		return failed("unshare");
	}
	return after();
}

static int new_root(void)
{
	char dir[] = "/tmp/life-root-XXXXXX";

	if (getuid()) {
		puts("wants to be started as root");
		return V_SKIP;
	}
	int back = open("/", O_PATH | O_CLOEXEC);
	if (!mkdtemp(dir) || chroot(dir) || chdir("/"))
		return failed("chroot");
	int bad = after();
	/* Out again, to leave nothing behind. */
	if (fchdir(back) || chroot(".") || rmdir(dir))
		return failed("leaving the new root");
	return bad;
}

static int limits(void)
{
	struct rlimit none = {3, 3}, zero = {0, 0};

	if (setrlimit(RLIMIT_NOFILE, &none) || setrlimit(RLIMIT_MEMLOCK, &zero) || setrlimit(RLIMIT_CORE, &zero) ||
	    setrlimit(RLIMIT_FSIZE, &zero))
		return failed("setrlimit");
	return after();
}

/* ------------------------------------------- what the program shares with us */

static struct umm_ctl *control(void)
{
	FILE *f = fopen("/proc/self/maps", "r");
	unsigned long at = 0;
	char line[600];

	while (f && !at && fgets(line, sizeof(line), f))
		if (strstr(line, "hmm-control"))
			at = strtoul(line, NULL, 16);
	if (f)
		fclose(f);
	if (!at || ((struct umm_ctl *)at)->magic != UMM_CTL_MAGIC)
		_exit(9);
	return (struct umm_ctl *)at;
}

static int a_thread(void)
{
	pthread_t t;

	return pthread_create(&t, NULL, nothing, NULL) || pthread_join(t, NULL);
}

/* Something is cold, though all was used a moment ago. */
static int still_moves(void)
{
	for (unsigned i = 0; v_absent(mem, pages) < pages / 8 && i < 3000; i++)
		usleep(10000);
	if (v_absent(mem, pages) >= pages / 8)
		return 0;
	fprintf(stderr, "nothing goes any more\n");
	return 1;
}

/* Who is killed while it enters pages leaves the lock of the table.  A raw child does not get that far. */
static int pin_left(void)
{
	struct umm_ctl *ctl = control();
	int status;
	pid_t pid;

	if (a_thread())
		return failed("pthread_create");
	pid = (pid_t)syscall(SYS_fork);
	if (!pid) {
		uint32_t used = atomic_load(&ctl->pin_used);

		_exit(a_thread() || atomic_load(&ctl->pin_used) != used);
	}
	if (pid < 0 || waitpid(pid, &status, 0) != pid || status) {
		fprintf(stderr, "a raw child entered pages for its parent: %#x\n", status);
		return 1;
	}
	atomic_store(&ctl->pin_lock, 1);
	if (a_thread())
		return failed("pthread_create");
	return turn(0) || still_moves() || turn(1) || a_thread();
}

static void *deny(void *arg)
{
	struct umm_ctl *ctl = arg;

	for (;;)
		for (unsigned b = 0; b < UMM_BATCHES; b++)
			atomic_store(&ctl->batch[b].done, 0);
	return NULL;
}

/* Who says that his agent is never through is not waited for for ever: another of the tree is served on. */
static int denial(void)
{
	int status;
	pthread_t t;
	pid_t pid = fork();

	if (!pid) {
		if (pthread_create(&t, NULL, deny, control()))
			_exit(1);
		for (uint64_t gen = 0;; gen++)
			if (turn(gen))
				_exit(2);
	}
	if (pid < 0 || waitpid(pid, &status, 0) != pid)
		return failed("fork");
	if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL) {
		fprintf(stderr, "who denied ended with status %#x\n", status);
		return 1;
	}
	return turn(0) || still_moves() || turn(1);
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		int (*run)(void);
	} tests[] = {
		{"threads", threads},
		{"ended-threads", ended_threads},
		{"sleepers", sleepers},
		{"raw-exit", raw_exit},
		{"main-thread-exits", main_thread_exits},
		{"handed-on", handed_on},
		{"close-all", close_all},
		{"daemonize", daemonize},
		{"drop-user", drop_user},
		{"undumpable", undumpable},
		{"seccomp", seccomp_tsync},
		{"seccomp-later", seccomp_later},
		{"unshare", unshare_all},
		{"chroot", new_root},
		{"limits", limits},
		{"pin-left", pin_left},
		{"denial", denial},
	};

	pages = (v_long() ? 100 : 40) * V_MIB / V_PAGE;
	for (unsigned i = 0; i < sizeof(tests) / sizeof(tests[0]) && argc == 2; i++) {
		if (strcmp(argv[1], tests[i].name))
			continue;
		mem = v_map(pages * V_PAGE);
		v_fill_all(mem, pages, 1, 0, KIND);
		fprintf(stderr, "%zu of %zu pages absent\n", v_absent(mem, pages), pages);
		return tests[i].run();
	}
	return 2;
}
