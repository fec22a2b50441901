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
 *   mremap, ioctl(UFFDIO_REGISTER)
 *		in src/run/hooks.c
 *
 * Hooks run in the program's threads, in any state of its: no allocation but
 * what the hooked call does itself, all signals blocked while a lock of ours is
 * held, errno kept.
 */
#include "run/preload.h"

#include <dlfcn.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <threads.h>
#include <unistd.h>

#define API __attribute__((visibility("default")))

/* All that this library keeps. */
static struct preload {
	bool on;
	char env_run[WIRE_NAME_MAX + WIRE_TOKEN + 512]; /* "HMM_RUN=..." */
	char library[400];
	struct agent agent;
	pthread_mutex_t environ_lock;
} P = {.environ_lock = PTHREAD_MUTEX_INITIALIZER};

struct agent *preload_agent(void)
{
	return P.on ? &P.agent : NULL;
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
static void pin_self(void)
{
	uint64_t tp = (uintptr_t)__builtin_thread_pointer();
	struct umm_ctl *c = P.agent.arena.ctl;
	sigset_t old;

	preload_signals_block(&old);
	umm_pin_lock(c);
	umm_pin_add(c, tp >> UMM_PAGE_SHIFT);
	umm_pin_add(c, (tp + UMM_PAGE - 1) >> UMM_PAGE_SHIFT);
	umm_pin_unlock(c);
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

static size_t env_preload_len(char *const env[])
{
	for (size_t i = 0; env && env[i]; i++)
		if (is_var(env[i], "LD_PRELOAD"))
			return strlen(env[i]);
	return 0;
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
#define ENV_WITH(env)                                                                                                  \
	env_with((env), alloca((env_count(env) + 3) * sizeof(char *)),                                                 \
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
	return R.execve(path, argv, P.on ? ENV_WITH(env) : env);
}

API int execv(const char *path, char *const argv[])
{
	return execve(path, argv, environ);
}

API int execvpe(const char *file, char *const argv[], char *const env[])
{
	real_init();
	return R.execvpe(file, argv, P.on ? ENV_WITH(env) : env);
}

API int execvp(const char *file, char *const argv[])
{
	return execvpe(file, argv, environ);
}

API int fexecve(int fd, char *const argv[], char *const env[])
{
	real_init();
	return R.fexecve(fd, argv, P.on ? ENV_WITH(env) : env);
}

API int execveat(int dirfd, const char *path, char *const argv[], char *const env[], int flags)
{
	real_init();
	return R.execveat(dirfd, path, argv, P.on ? ENV_WITH(env) : env, flags);
}

/* The variable arguments of an execl-like call as a vector on the caller's stack; @ap is left behind their NULL. */
#define ARGV_FROM(argv, ap, arg0)                                                                                      \
	va_list ap;                                                                                                    \
	size_t argc = 1;                                                                                               \
	va_start(ap, arg0);                                                                                            \
	while (va_arg(ap, char *))                                                                                     \
		argc++;                                                                                                \
	va_end(ap);                                                                                                    \
	char **argv = alloca((argc + 1) * sizeof(char *));                                                             \
	argv[0] = (char *)arg0;                                                                                        \
	va_start(ap, arg0);                                                                                            \
	for (size_t n = 1; n <= argc; n++)                                                                             \
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
	return R.posix_spawn(pid, path, fa, attr, argv, P.on ? ENV_WITH(env) : env);
}

API int posix_spawnp(pid_t *pid, const char *file, const posix_spawn_file_actions_t *fa, const posix_spawnattr_t *attr,
		     char *const argv[], char *const env[])
{
	real_init();
	return R.posix_spawnp(pid, file, fa, attr, argv, P.on ? ENV_WITH(env) : env);
}

/*
 * system() and popen() start the shell from inside libc, with environ as it is
 * then.  It is ours for the time of the spawn; a setenv() of another thread in
 * that moment would be lost.
 */
API int system(const char *command)
{
	real_init();
	if (!P.on || !command)
		return R.system(command);
	/* libc waits inside, so the swap would last; do what POSIX says it does, with a spawn of our own. */
	posix_spawnattr_t attr;
	struct sigaction ign = {.sa_handler = SIG_IGN}, intr, quit;
	sigset_t mask, old, reset;
	char *argv[] = {"sh", "-c", (char *)command, NULL};
	int status = -1;
	pid_t pid;

	sigaction(SIGINT, &ign, &intr);
	sigaction(SIGQUIT, &ign, &quit);
	sigemptyset(&mask);
	sigaddset(&mask, SIGCHLD);
	pthread_sigmask(SIG_BLOCK, &mask, &old);
	sigemptyset(&reset);
	if (intr.sa_handler != SIG_IGN)
		sigaddset(&reset, SIGINT);
	if (quit.sa_handler != SIG_IGN)
		sigaddset(&reset, SIGQUIT);
	posix_spawnattr_init(&attr);
	posix_spawnattr_setsigmask(&attr, &old);
	posix_spawnattr_setsigdefault(&attr, &reset);
	posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK);
	int rc = posix_spawn(&pid, "/bin/sh", NULL, &attr, argv, environ);
	posix_spawnattr_destroy(&attr);
	if (!rc) {
		while (waitpid(pid, &status, 0) < 0) {
			if (errno != EINTR) {
				status = -1;
				break;
			}
		}
	} else {
		status = W_EXITCODE(127, 0);
	}
	sigaction(SIGINT, &intr, NULL);
	sigaction(SIGQUIT, &quit, NULL);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (rc)
		errno = rc;
	return status;
}

API FILE *popen(const char *command, const char *type)
{
	real_init();
	if (!P.on)
		return R.popen(command, type);
	pthread_mutex_lock(&P.environ_lock);
	char **mine = environ;
	environ = (char **)ENV_WITH(mine);
	FILE *f = R.popen(command, type);
	int err = errno;
	environ = mine;
	pthread_mutex_unlock(&P.environ_lock);
	errno = err;
	return f;
}

/* --------------------------------------------------------------------- agent */

static int reserve_arena(void)
{
	unsigned long len = arena_len();
	void *p = mmap(NULL, len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (p == MAP_FAILED)
		return -errno;
	arena_layout(&P.agent.arena, p);
	if (mprotect(P.agent.arena.tls, ARENA_TLS + ARENA_STACK, PROT_READ | PROT_WRITE)) {
		int rc = -errno;

		munmap(p, len);
		return rc;
	}
	return 0;
}

static void agent_up(uint32_t parent)
{
	int err = errno;
	sigset_t old;

	P.agent.parent = parent;
	P.agent.pid = getpid();
	preload_signals_block(&old);
	P.on = !agent_start(&P.agent);
	preload_signals_restore(&old);
	if (P.on)
		pin_self();
	errno = err;
}

/* In the new process: what was the parent's is still there, shared; ours comes with our agent. */
static void after_fork(void)
{
	agent_up(P.agent.arena.ctl->space_id);
	/* Without an agent we are served all the same, and never moved from; what we start still belongs to the tree. */
	P.on = true;
}

/* Where the kernel tells nobody of forks, nothing may be away while one happens. */
static bool before_fork(void)
{
	return P.on && atomic_load(&P.agent.arena.ctl->no_fork_events) && !preload_call(UMM_CALL_FORK_BEGIN, 0, 0, 0);
}

static void after_fork_in_parent(bool restored)
{
	int err = errno;

	if (restored)
		preload_call(UMM_CALL_FORK_END, 0, 0, 0);
	errno = err;
}

static pid_t fork_with(pid_t (*real)(void))
{
	bool restored = before_fork();
	pid_t pid = real();

	if (pid)
		after_fork_in_parent(restored);
	else if (P.on)
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
	va_list ap;
	bool restored;
	int pid;

	va_start(ap, arg);
	void *parent_tid = va_arg(ap, void *), *tls = va_arg(ap, void *), *child_tid = va_arg(ap, void *);
	va_end(ap);
	real_init();
	if (!P.on || (flags & CLONE_VM) || !fn)
		return R.clone(fn, stack, flags, arg, parent_tid, tls, child_tid);
	restored = before_fork();
	pid = R.clone(start_clone, stack, flags, &s, parent_tid, tls, child_tid);
	after_fork_in_parent(restored);
	return pid;
}

__attribute__((constructor)) static void preload_init(void)
{
	const char *run = getenv(WIRE_ENV);
	int err = errno;
	char name[WIRE_NAME_MAX], token[WIRE_TOKEN + 1];

	/* "NAME TOKEN LIBRARY"; widths as the buffers'. */
	if (!run || strlen(run) >= sizeof(P.env_run) - sizeof(WIRE_ENV "=") ||
	    sscanf(run, "%79s %32s %399[^\n]", name, token, P.library) != 3)
		return;
	snprintf(P.env_run, sizeof(P.env_run), "%s=%s", WIRE_ENV, run);
	memcpy(P.agent.name, name, sizeof(name));
	memcpy(P.agent.token, token, WIRE_TOKEN);
	environ_hide();
	real_init();
	if (!reserve_arena())
		agent_up(0);
	errno = err;
}
