/* SPDX-License-Identifier: MIT */
/*
 * What is loaded into a program that knows nothing of us: it starts the agent
 * before main(), and keeps the tree together across fork and exec.
 *
 * DOC: what is hooked, and why
 *
 *   exec*, posix_spawn*, system, popen
 *		the environment that leads to the supervisor is hidden from the
 *		program, and handed on to what it starts, also when it starts it
 *		with an environment of its own making
 *   fork, _Fork, clone without CLONE_VM
 *		the child's agent
 *   pthread_create, thrd_create
 *		the page of a thread's control block is entered in the pin table
 *		before the thread runs (umm/ctl.h)
 *   mremap, madvise, ioctl(UFFDIO_REGISTER, VFIO_IOMMU_MAP_DMA), setsockopt(XDP_UMEM_REG)
 *		in src/run/hooks.c
 *
 * Hooks run in the program's threads, in any state of its: no allocation but
 * what the hooked call does itself, all signals blocked while a lock of ours is
 * held, errno kept.
 */
#include "run/preload.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <gnu/libc-version.h>
#include <pthread.h>
#include <pty.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <threads.h>
#include <unistd.h>
#include <utmp.h>

#define API __attribute__((visibility("default")))

/*
 * DOC: programs of another libc
 *
 * Such a program, started by one of the tree, has this library loaded all the same
 * (musl's loader takes itself for any libc), and would not start if it asked for what
 * only glibc has.  It does nothing there: what it knows of threads is glibc's.  The
 * program runs without a budget and hands its environment on.
 */
#pragma weak __pthread_register_cancel
#pragma weak __pthread_unregister_cancel
#pragma weak gnu_get_libc_version

/* All that this library keeps. */
static struct preload {
	bool on;                                        /* there is an agent, or was one where we come from */
	char env_run[WIRE_NAME_MAX + WIRE_TOKEN + 512]; /* "HMM_RUN=..." */
	char library[400];
	struct agent agent;

	/* popen() under way: environ is @popen_env meanwhile.  Not on a stack: a child that is forked now has it, too.
	 */
	pthread_mutex_t environ_lock;
	char **popen_env, **popen_old;
	size_t popen_room; /* bytes at @popen_env */

	/* system() under way: the first one in takes the signals away, the last one out gives them back. */
	pthread_mutex_t system_lock;
	unsigned system_users;
	struct sigaction system_int, system_quit;
} P = {.environ_lock = PTHREAD_MUTEX_INITIALIZER, .system_lock = PTHREAD_MUTEX_INITIALIZER};

/* Is there somebody to lead to?  Also where no agent could be started, or was welcome: what we start may have one. */
static bool hands_on(void)
{
	return P.env_run[0];
}

struct agent *preload_agent(void)
{
	return &P.agent;
}

/* The agent's thread block is empty in every child, however it was forked (reserve_arena()). */
struct umm_ctl *preload_ctl(void)
{
	struct arena *ar = &P.agent.arena;

	return P.on && atomic_load(&P.agent.state) == AGENT_READY && *(void *volatile *)ar->tls == ar->tls ? ar->ctl
													   : NULL;
}

/* ------------------------------------------------------------------ signals */

void preload_signals_block(sigset_t *old)
{
	sigset_t all;

	memset(&all, 0xff, sizeof(all)); /* also those that libc keeps for itself */
	sys4(SYS_rt_sigprocmask, SIG_SETMASK, &all, old, 8);
}

void preload_signals_restore(const sigset_t *old)
{
	sys4(SYS_rt_sigprocmask, SIG_SETMASK, old, 0, 8);
}

/* --------------------------------------------------------------------- pins */

/* struct pthread of glibc lies at the thread pointer and is smaller than a page. */
#define PIN_TRIES 5u /* of 200 ms */

static void pin_self(void)
{
	uint64_t tp = (uintptr_t)__builtin_thread_pointer();
	struct umm_ctl *c = preload_ctl();
	bool locked = false;
	sigset_t old;

	if (!c)
		return; /* nothing is moved of this space */
	preload_signals_block(&old);
	/*
	 * The agent has it while it moves pages, which takes long where others change mappings.  If it is
	 * not to be had for a second its holder was killed, and nothing moves before the engine has taken
	 * it, and has found us.
	 */
	for (unsigned tries = 0; !locked && tries < PIN_TRIES; tries++)
		locked = umm_pin_lock_soon(c);
	if (locked) {
		umm_pin_add(c, tp >> UMM_PAGE_SHIFT);
		umm_pin_add(c, (tp + UMM_PAGE - 1) >> UMM_PAGE_SHIFT);
		umm_pin_unlock(c);
	}
	preload_signals_restore(&old);
	/* It may be away from before: a cached stack.  From here on it stays. */
	(void)*(volatile char *)tp;
	(void)*(volatile char *)(tp + 0x900);
}

struct start {
	void *(*fn)(void *);
	void *arg;
};

static void *start_thread(void *p)
{
	struct start s = *(struct start *)p;

	free(p);
	pin_self();
	return s.fn(s.arg);
}

API int pthread_create(pthread_t *t, const pthread_attr_t *attr, void *(*fn)(void *), void *arg)
{
	static int (*real)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
	struct start *s;
	int rc;

	if (!real)
		real = dlsym(RTLD_NEXT, "pthread_create");
	if (!P.on)
		return real(t, attr, fn, arg);
	s = malloc(sizeof(*s));
	if (!s)
		return EAGAIN;
	*s = (struct start){fn, arg};
	rc = real(t, attr, start_thread, s);
	if (rc)
		free(s);
	return rc;
}

struct start_c11 {
	thrd_start_t fn;
	void *arg;
};

static int start_thrd(void *p)
{
	struct start_c11 s = *(struct start_c11 *)p;

	free(p);
	pin_self();
	return s.fn(s.arg);
}

API int thrd_create(thrd_t *t, thrd_start_t fn, void *arg)
{
	static int (*real)(thrd_t *, thrd_start_t, void *);
	struct start_c11 *s;
	int rc;

	if (!real)
		real = dlsym(RTLD_NEXT, "thrd_create");
	if (!P.on)
		return real(t, fn, arg);
	s = malloc(sizeof(*s));
	if (!s)
		return thrd_nomem;
	*s = (struct start_c11){fn, arg};
	rc = real(t, start_thrd, s);
	if (rc != thrd_success)
		free(s);
	return rc;
}

/* --------------------------------------------------------------- environment */

static bool is_var(const char *e, const char *name)
{
	size_t n = strlen(name);

	return !strncmp(e, name, n) && e[n] == '=';
}

/* Take our two variables out of the program's environment, as if it had been started without us. */
static void environ_hide(void)
{
	char **to = environ;

	for (char **from = environ; *from; from++) {
		if (is_var(*from, WIRE_ENV))
			continue;
		if (is_var(*from, "LD_PRELOAD")) {
			char *val = *from + sizeof("LD_PRELOAD=") - 1;
			size_t n = strlen(P.library);

			if (!strncmp(val, P.library, n)) {
				if (!val[n])
					continue;
				if (val[n] == ':')
					memmove(val, val + n + 1, strlen(val + n + 1) + 1);
			}
		}
		*to++ = *from;
	}
	*to = NULL;
}

static size_t env_count(char *const env[])
{
	size_t n = 0;

	while (env && env[n])
		n++;
	return n;
}

/* Of several the last one counts, to the dynamic linker and in env_with(). */
static size_t env_preload_len(char *const env[])
{
	size_t len = 0;

	for (size_t i = 0; env && env[i]; i++)
		if (is_var(env[i], "LD_PRELOAD"))
			len = strlen(env[i]);
	return len;
}

/* @env with ours added, into @out (env_count() + 3 pointers) and @preload (room for both). */
static char *const *env_with(char *const env[], char **out, char *preload)
{
	size_t n = 0;
	const char *theirs = NULL;

	for (size_t i = 0; env && env[i]; i++) {
		if (is_var(env[i], WIRE_ENV))
			continue;
		if (is_var(env[i], "LD_PRELOAD")) {
			/* In its place: the order is the program's, too. */
			if (!theirs)
				out[n++] = preload;
			theirs = env[i] + sizeof("LD_PRELOAD=") - 1;
			continue;
		}
		out[n++] = env[i];
	}
	strcpy(preload, "LD_PRELOAD=");
	strcat(preload, P.library);
	if (theirs) { /* also when empty: it is there */
		strcat(preload, ":");
		strcat(preload, theirs);
	} else {
		out[n++] = preload;
	}
	out[n++] = P.env_run;
	out[n] = NULL;
	return out;
}

/* The augmented environment on the caller's stack: exec must work in a vfork child. */
#define ENV_WITH(env)                                                  \
	env_with((env), alloca((env_count(env) + 3) * sizeof(char *)), \
		 alloca(sizeof("LD_PRELOAD=") + sizeof(P.library) + 2 + env_preload_len(env)))

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

/* Looked up by the constructor: dlsym() is not for a vfork child. */
static struct {
	int (*execve)(const char *, char *const[], char *const[]);
	int (*execvpe)(const char *, char *const[], char *const[]);
	int (*fexecve)(int, char *const[], char *const[]);
	int (*execveat)(int, const char *, char *const[], char *const[], int);
	__typeof__(&posix_spawn) posix_spawn;
	__typeof__(&posix_spawnp) posix_spawnp;
	__typeof__(&fork) fork;
	pid_t (*fork_bare)(void);
	int (*clone)(int (*)(void *), void *, int, void *, ...);
	int (*system)(const char *);
	FILE *(*popen)(const char *, const char *);
} R;

static void real_init(void)
{
	if (R.execve)
		return;
	R.execvpe = REAL(execvpe);
	R.fexecve = REAL(fexecve);
	R.execveat = dlsym(RTLD_NEXT, "execveat");
	R.posix_spawn = REAL(posix_spawn);
	R.posix_spawnp = REAL(posix_spawnp);
	R.fork = REAL(fork);
	R.fork_bare = dlsym(RTLD_NEXT, "_Fork");
	R.clone = dlsym(RTLD_NEXT, "clone");
	R.system = REAL(system);
	R.popen = REAL(popen);
	R.execve = REAL(execve);
}

API int execve(const char *path, char *const argv[], char *const env[])
{
	real_init();
	return R.execve(path, argv, hands_on() ? ENV_WITH(env) : env);
}

API int execv(const char *path, char *const argv[])
{
	return execve(path, argv, environ);
}

API int execvpe(const char *file, char *const argv[], char *const env[])
{
	real_init();
	return R.execvpe(file, argv, hands_on() ? ENV_WITH(env) : env);
}

API int execvp(const char *file, char *const argv[])
{
	return execvpe(file, argv, environ);
}

API int fexecve(int fd, char *const argv[], char *const env[])
{
	real_init();
	return R.fexecve(fd, argv, hands_on() ? ENV_WITH(env) : env);
}

API int execveat(int dirfd, const char *path, char *const argv[], char *const env[], int flags)
{
	real_init();
	return R.execveat(dirfd, path, argv, hands_on() ? ENV_WITH(env) : env, flags);
}

/* The variable arguments of an execl-like call as a vector on the caller's stack; @ap is left behind their NULL. */
#define ARGV_FROM(argv, ap, arg0)                          \
	va_list ap;                                        \
	size_t argc = 1;                                   \
	va_start(ap, arg0);                                \
	while (va_arg(ap, char *))                         \
		argc++;                                    \
	va_end(ap);                                        \
	char **argv = alloca((argc + 1) * sizeof(char *)); \
	argv[0] = (char *)arg0;                            \
	va_start(ap, arg0);                                \
	for (size_t n = 1; n <= argc; n++)                 \
	argv[n] = va_arg(ap, char *)

API int execl(const char *path, const char *arg0, ...)
{
	ARGV_FROM(argv, ap, arg0);
	va_end(ap);
	return execve(path, argv, environ);
}

API int execlp(const char *file, const char *arg0, ...)
{
	ARGV_FROM(argv, ap, arg0);
	va_end(ap);
	return execvpe(file, argv, environ);
}

API int execle(const char *path, const char *arg0, ...)
{
	ARGV_FROM(argv, ap, arg0);
	char *const *env = va_arg(ap, char *const *);
	va_end(ap);
	return execve(path, argv, env);
}

API int posix_spawn(pid_t *pid, const char *path, const posix_spawn_file_actions_t *fa, const posix_spawnattr_t *attr,
		    char *const argv[], char *const env[])
{
	real_init();
	return R.posix_spawn(pid, path, fa, attr, argv, hands_on() ? ENV_WITH(env) : env);
}

API int posix_spawnp(pid_t *pid, const char *file, const posix_spawn_file_actions_t *fa, const posix_spawnattr_t *attr,
		     char *const argv[], char *const env[])
{
	real_init();
	return R.posix_spawnp(pid, file, fa, attr, argv, hands_on() ? ENV_WITH(env) : env);
}

/*
 * system(): libc's starts the shell from inside, with environ as it is then,
 * and waits inside.  So what POSIX says it does, with a spawn of our own.
 */
static void system_enter(void)
{
	struct sigaction ign = {.sa_handler = SIG_IGN};
	sigset_t old;

	preload_signals_block(&old);
	pthread_mutex_lock(&P.system_lock);
	if (!P.system_users++) {
		sigaction(SIGINT, &ign, &P.system_int);
		sigaction(SIGQUIT, &ign, &P.system_quit);
	}
	pthread_mutex_unlock(&P.system_lock);
	preload_signals_restore(&old);
}

static void system_leave(const sigset_t *mask)
{
	sigset_t old;

	preload_signals_block(&old);
	pthread_mutex_lock(&P.system_lock);
	if (!--P.system_users) {
		sigaction(SIGINT, &P.system_int, NULL);
		sigaction(SIGQUIT, &P.system_quit, NULL);
	}
	pthread_mutex_unlock(&P.system_lock);
	pthread_sigmask(SIG_SETMASK, mask, NULL);
}

struct system_child {
	pid_t pid;
	sigset_t mask; /* the caller's */
};

static int system_wait(pid_t pid)
{
	int status;

	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			return -1;
	return status;
}

/* The thread was cancelled while it waited: the shell goes with it. */
static void system_cancelled(void *p)
{
	struct system_child *c = p;

	kill(c->pid, SIGKILL);
	system_wait(c->pid);
	system_leave(&c->mask);
}

API int system(const char *command)
{
	posix_spawnattr_t attr;
	struct system_child c;
	sigset_t block, reset;
	char *argv[] = {"sh", "-c", (char *)command, NULL};
	int status, rc;

	real_init();
	if (!hands_on() || !command)
		return R.system(command);
	system_enter();
	sigemptyset(&block);
	sigaddset(&block, SIGCHLD);
	pthread_sigmask(SIG_BLOCK, &block, &c.mask);
	sigemptyset(&reset);
	if (P.system_int.sa_handler != SIG_IGN)
		sigaddset(&reset, SIGINT);
	if (P.system_quit.sa_handler != SIG_IGN)
		sigaddset(&reset, SIGQUIT);
	posix_spawnattr_init(&attr);
	posix_spawnattr_setsigmask(&attr, &c.mask);
	posix_spawnattr_setsigdefault(&attr, &reset);
	posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK);
	rc = posix_spawn(&c.pid, "/bin/sh", NULL, &attr, argv, environ);
	posix_spawnattr_destroy(&attr);
	if (rc) {
		system_leave(&c.mask);
		errno = rc;
		return W_EXITCODE(127, 0);
	}
	pthread_cleanup_push(system_cancelled, &c);
	status = system_wait(c.pid);
	pthread_cleanup_pop(0);
	rc = errno;
	system_leave(&c.mask);
	errno = rc;
	return status;
}

/* Room for @bytes that outlives a fork of another thread: kept, and grown by doubling, so that little is ever lost. */
static bool popen_reserve(size_t bytes)
{
	void *p;

	if (bytes <= P.popen_room)
		return true;
	p = malloc(2 * bytes);
	if (!p)
		return false;
	/* The old one is not freed: a thread may have seen it as its environ, and be on its way through it. */
	P.popen_env = p;
	P.popen_room = 2 * bytes;
	return true;
}

/*
 * popen(): only libc can make a FILE that pclose() knows, so environ is ours
 * for the time of the spawn; a setenv() of another thread in that moment would
 * be lost.
 */
API FILE *popen(const char *command, const char *type)
{
	FILE *f = NULL;

	real_init();
	if (!hands_on())
		return R.popen(command, type);
	pthread_mutex_lock(&P.environ_lock);
	char **mine = environ;
	size_t pointers = (env_count(mine) + 3) * sizeof(char *);
	if (popen_reserve(pointers + sizeof("LD_PRELOAD=") + sizeof(P.library) + 2 + env_preload_len(mine))) {
		env_with(mine, P.popen_env, (char *)P.popen_env + pointers);
		P.popen_old = mine;
		environ = P.popen_env;
		f = R.popen(command, type);
		environ = mine;
	}
	int err = errno;
	pthread_mutex_unlock(&P.environ_lock);
	errno = err;
	return f;
}

/* In a forked child: what other threads of the parent held is held by nobody, and nobody ends what they were at. */
static void calls_abandon(void)
{
	if (P.popen_env && environ == P.popen_env)
		environ = P.popen_old;
	P.environ_lock = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
	P.system_lock = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
}

/* --------------------------------------------------------------------- agent */

static int reserve_arena(void)
{
	unsigned long len = arena_len();
	void *p = mmap(NULL, len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (p == MAP_FAILED)
		return -errno;
	arena_layout(&P.agent.arena, p);
	if (mprotect(P.agent.arena.tls, ARENA_TLS + ARENA_STACK, PROT_READ | PROT_WRITE) ||
	    madvise(P.agent.arena.tls, ARENA_TLS, MADV_WIPEONFORK)) {
		int rc = -errno;

		munmap(p, len);
		return rc;
	}
	return 0;
}

static int agent_up(uint32_t parent)
{
	int err = errno, rc;
	sigset_t old;

	P.agent.parent = parent;
	P.agent.pid = getpid();
	preload_signals_block(&old);
	rc = agent_start(&P.agent);
	P.on = !rc;
	preload_signals_restore(&old);
	if (P.on)
		pin_self();
	errno = err;
	return rc;
}

/* In the new process: what was the parent's is still there, shared; ours comes with our agent. */
static void after_fork(void)
{
	calls_abandon();
	if (!P.on)
		return; /* its parent has none either */

	int rc = agent_up(P.agent.arena.ctl->space_id);

	if (rc)
		preload_no_agent(rc);
	else
		atomic_store(&preload_ctl()->has_forked, 1);
	/* Without an agent we are served all the same, and never moved from; what we start still belongs to the tree.
	 */
	P.on = true;
}

enum fork_way {
	FORK_PLAIN,   /* nobody need know */
	FORK_COUNTED, /* the engine does not begin before it is over */
	FORK_ASKED,   /* everything is back, and rests */
	FORK_REFUSED, /* it cannot come back: a child would lack it */
};

/*
 * Where the kernel tells nobody of forks, nothing may be away while one happens.
 *
 * DOC: forks and the moment of arming
 *
 * A fork that finds the space unarmed asks nobody, and may last: libc runs the
 * program's atfork handlers first.  So it counts itself before it looks; the
 * engine announces that it is armed, then looks at the count, and neither
 * registers nor moves before it has seen it at zero.  One of both sees the
 * other.  Forks that find the space armed ask, and are not counted.
 */
static enum fork_way before_fork(void)
{
	struct umm_ctl *c = preload_ctl();
	int64_t rc;

	if (!c)
		return FORK_PLAIN;
	atomic_store(&c->has_forked, 1);
	if (!atomic_load(&c->no_fork_events))
		return FORK_PLAIN;
	atomic_fetch_add(&c->forking, 1);
	if (!atomic_load(&c->armed))
		return FORK_COUNTED;
	atomic_fetch_sub(&c->forking, 1);
	rc = preload_call(UMM_CALL_FORK_BEGIN, 0, 0, 0);
	/* -ENOSYS: nobody answers bells, so nobody manages anything either. */
	return !rc ? FORK_ASKED : rc == -ENOSYS ? FORK_PLAIN : FORK_REFUSED;
}

static void after_fork_in_parent(enum fork_way way)
{
	int err = errno;

	if (way == FORK_COUNTED)
		atomic_fetch_sub(&P.agent.arena.ctl->forking, 1);
	if (way == FORK_ASKED)
		preload_call(UMM_CALL_FORK_END, 0, 0, 0);
	errno = err;
}

static pid_t fork_with(pid_t (*real)(void))
{
	enum fork_way way = before_fork();
	pid_t pid;

	if (way == FORK_REFUSED) {
		errno = ENOMEM;
		return -1;
	}
	pid = real();
	if (pid)
		after_fork_in_parent(way);
	else if (hands_on())
		after_fork();
	return pid;
}

API pid_t fork(void)
{
	real_init();
	return fork_with(R.fork);
}

API pid_t _Fork(void)
{
	real_init();
	return fork_with(R.fork_bare);
}

static int start_clone(void *p)
{
	struct start_c11 s = *(struct start_c11 *)p;

	after_fork();
	return s.fn(s.arg);
}

API int clone(int (*fn)(void *), void *stack, int flags, void *arg, ...)
{
	struct start_c11 s = {fn, arg}; /* the child has a copy of this stack, if not the stack it runs on */
	enum fork_way way;
	va_list ap;
	int pid;

	va_start(ap, arg);
	void *parent_tid = va_arg(ap, void *), *tls = va_arg(ap, void *), *child_tid = va_arg(ap, void *);
	va_end(ap);
	real_init();
	if (!hands_on() || (flags & CLONE_VM) || !fn)
		return R.clone(fn, stack, flags, arg, parent_tid, tls, child_tid);
	way = before_fork();
	if (way == FORK_REFUSED) {
		errno = ENOMEM;
		return -1;
	}
	pid = R.clone(start_clone, stack, flags, &s, parent_tid, tls, child_tid);
	after_fork_in_parent(way);
	return pid;
}

static int open_null(void)
{
	struct stat st;
	int fd = open("/dev/null", O_RDWR);

	if (fd < 0)
		return -1;
	if (!fstat(fd, &st)) {
		if (S_ISCHR(st.st_mode) && st.st_rdev == makedev(1, 3))
			return fd;
		errno = ENODEV; /* what lies there would keep what is written */
	}
	int err = errno;
	close(fd);
	errno = err;
	return -1;
}

API int daemon(int nochdir, int noclose)
{
	pid_t pid = fork();

	if (pid < 0)
		return -1;
	if (pid)
		_exit(0);
	if (setsid() < 0)
		return -1;
	if (!nochdir && chdir("/")) {
		/* libc does not look either */
	}
	if (noclose)
		return 0;
	int fd = open_null();
	if (fd < 0)
		return -1;
	for (int to = 0; to <= 2; to++)
		dup2(fd, to);
	if (fd > 2)
		close(fd);
	return 0;
}

API int forkpty(int *master, char *name, const struct termios *mode, const struct winsize *size)
{
	int ours, theirs, err;
	pid_t pid;

	if (openpty(&ours, &theirs, name, mode, size))
		return -1;
	pid = fork();
	if (!pid) {
		close(ours);
		if (login_tty(theirs))
			_exit(1);
		return 0;
	}
	err = errno;
	close(theirs);
	if (pid < 0)
		close(ours);
	else
		*master = ours;
	errno = err;
	return pid;
}

/* Valgrind knows some kinds of clone(), and ends the program at the one that makes an agent. */
static bool is_emulated(void)
{
	const char *preload = getenv("LD_PRELOAD");

	return preload && strstr(preload, "/vgpreload_");
}

/* The word at *@from, up to @end, into @to, which has room for @len bytes.  Not sscanf(): it has other names, too. */
static bool word(const char **from, char end, char *to, size_t len)
{
	const char *at = strchrnul(*from, end);
	size_t n = (size_t)(at - *from);

	if (!n || n >= len)
		return false;
	memcpy(to, *from, n);
	to[n] = 0;
	*from = *at ? at + 1 : at;
	return true;
}

__attribute__((constructor)) static void preload_init(void)
{
	const char *run = getenv(WIRE_ENV), *at = run;
	int err = errno;
	char name[WIRE_NAME_MAX] = "", token[WIRE_TOKEN + 1] = "";

	if (!gnu_get_libc_version)
		return;
	/* "NAME TOKEN LIBRARY" */
	if (!run || strlen(run) >= sizeof(P.env_run) - sizeof(WIRE_ENV "=") || !word(&at, ' ', name, sizeof(name)) ||
	    !word(&at, ' ', token, sizeof(token)) || !word(&at, '\n', P.library, sizeof(P.library)))
		return;
	snprintf(P.env_run, sizeof(P.env_run), "%s=%s", WIRE_ENV, run);
	memcpy(P.agent.name, name, sizeof(name));
	memcpy(P.agent.token, token, WIRE_TOKEN);
	bool emulated = is_emulated();
	environ_hide();
	real_init();
	if (!emulated && !reserve_arena())
		agent_up(0);
	errno = err;
}
