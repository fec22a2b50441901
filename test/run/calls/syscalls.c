/* SPDX-License-Identifier: MIT */
/*
 * System calls whose arguments are away.  Each case has an area of its own,
 * filled and pushed out beforehand; the kernel must find or leave the right
 * bytes there, also at the edges of what it was given.
 */
#include "calls.h"

#include <dirent.h>
#include <linux/aio_abi.h>
#include <linux/errqueue.h>
#include <linux/futex.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/utsname.h>
#include <sys/wait.h>

#define AREA 128u /* pages of a case */
#define LEN (AREA * V_PAGE)
#define GEN_OLD 1
#define GEN_NEW 2

struct ctx {
	char *a; /* away, holds GEN_OLD of seed */
	char *b; /* resident, holds GEN_NEW of seed */
	unsigned seed;
	int file;
};

static void file_is(struct ctx *c, unsigned gen)
{
	char *p = mmap(NULL, LEN, PROT_READ, MAP_SHARED, c->file, 0);

	CHECK(p != MAP_FAILED, "mmap of the file");
	CHECK_ALL(p, AREA, c->seed, gen, "what the file got");
	munmap(p, LEN);
}

static void file_fill(struct ctx *c)
{
	CHECK(pwrite(c->file, c->b, LEN, 0) == (ssize_t)LEN, "pwrite");
	CHECK(lseek(c->file, 0, SEEK_SET) == 0, "lseek");
}

static void iovs(struct iovec *v, char *p, unsigned n)
{
	size_t at = 0;

	/* Uneven pieces, so that edges lie within pages. */
	for (unsigned i = 0; i < n; i++) {
		size_t len = i == n - 1 ? LEN - at : LEN / n + (i % 2 ? -333 : 333);

		v[i] = (struct iovec){p + at, len};
		at += len;
	}
}

static void do_write(struct ctx *c)
{
	CHECK(write(c->file, c->a, LEN) == (ssize_t)LEN, "write");
	file_is(c, GEN_OLD);
}

static void do_writev(struct ctx *c)
{
	struct iovec v[7];

	iovs(v, c->a, 7);
	CHECK(pwritev(c->file, v, 7, 0) == (ssize_t)LEN, "pwritev");
	file_is(c, GEN_OLD);
}

static void do_read(struct ctx *c)
{
	file_fill(c);
	CHECK(read(c->file, c->a, LEN) == (ssize_t)LEN, "read");
	CHECK_ALL(c->a, AREA, c->seed, GEN_NEW, "read");
}

static void do_readv(struct ctx *c)
{
	struct iovec v[9];

	iovs(v, c->a, 9);
	file_fill(c);
	CHECK(preadv(c->file, v, 9, 0) == (ssize_t)LEN, "preadv");
	CHECK_ALL(c->a, AREA, c->seed, GEN_NEW, "preadv");
}

/* Only the middle is read: what lies around it must stay. */
static void do_read_part(struct ctx *c)
{
	char *want = malloc(LEN);

	memcpy(want, c->b, LEN);
	for (unsigned i = 0; i < AREA; i++)
		v_fill(want + i * V_PAGE, i, c->seed, GEN_OLD, V_QUARTER);
	memcpy(want + 777, c->b + 777, LEN - 5 * 777);
	file_fill(c);
	CHECK(pread(c->file, c->a + 777, LEN - 5 * 777, 777) == (ssize_t)(LEN - 5 * 777), "pread");
	CHECK(!memcmp(want, c->a, LEN), "a read into the middle of what is away");
	free(want);
}

struct pump {
	int fd;
	char *p;
	bool out;
};

static void *pump_main(void *arg)
{
	struct pump *p = arg;

	for (size_t at = 0; at < LEN;) {
		ssize_t n = p->out ? write(p->fd, p->p + at, LEN - at) : read(p->fd, p->p + at, LEN - at);

		CHECK(n > 0, "pump");
		at += (size_t)n;
	}
	return NULL;
}

/* One side of a channel is away, then the other. */
static void through(struct ctx *c, int rfd, int wfd, bool away_reads)
{
	char *got = malloc(LEN);
	struct pump w = {wfd, away_reads ? c->b : c->a, true}, r = {rfd, away_reads ? c->a : got, false};
	pthread_t t;

	CHECK(!pthread_create(&t, NULL, pump_main, &w), "pthread_create");
	pump_main(&r);
	pthread_join(t, NULL);
	CHECK_ALL(r.p, AREA, c->seed, away_reads ? GEN_NEW : GEN_OLD, away_reads ? "read" : "written");
	free(got);
	close(rfd);
	close(wfd);
}

static void do_pipe_out(struct ctx *c)
{
	int fd[2];

	CHECK(!pipe(fd), "pipe");
	through(c, fd[0], fd[1], false);
}

static void do_pipe_in(struct ctx *c)
{
	int fd[2];

	CHECK(!pipe(fd), "pipe");
	through(c, fd[0], fd[1], true);
}

static void do_sock_out(struct ctx *c)
{
	int fd[2];

	CHECK(!socketpair(AF_UNIX, SOCK_STREAM, 0, fd), "socketpair");
	through(c, fd[0], fd[1], false);
}

static void do_sock_in(struct ctx *c)
{
	int fd[2];

	CHECK(!socketpair(AF_UNIX, SOCK_STREAM, 0, fd), "socketpair");
	through(c, fd[0], fd[1], true);
}

/* recvmsg(): header, vector, control and name buffers are away as well. */
static void do_recvmsg(struct ctx *c)
{
	struct msghdr *m = (void *)c->a;
	struct iovec *v = (void *)(c->a + V_PAGE);
	char *data = c->a + 3 * V_PAGE;
	int fd[2];

	CHECK(!socketpair(AF_UNIX, SOCK_SEQPACKET, 0, fd), "socketpair");
	CHECK(send(fd[1], c->b + 3 * V_PAGE, 16 * V_PAGE, 0) == 16 * (ssize_t)V_PAGE, "send");
	*m = (struct msghdr){.msg_iov = v, .msg_iovlen = 2, .msg_control = c->a + 2 * V_PAGE, .msg_controllen = 256};
	v[0] = (struct iovec){data, 5000};
	v[1] = (struct iovec){data + 5000, 100000};
	CHECK(recvmsg(fd[0], m, 0) == 16 * (ssize_t)V_PAGE, "recvmsg");
	CHECK(!memcmp(data, c->b + 3 * V_PAGE, 16 * V_PAGE), "recvmsg: data");
	for (unsigned i = 19; i < AREA; i++)
		CHECK(!v_check(c->a + i * V_PAGE, i, c->seed, GEN_OLD, V_QUARTER), "recvmsg: beyond the data");
	close(fd[0]);
	close(fd[1]);
}

static void do_vm_readv(struct ctx *c)
{
	char *got = malloc(LEN);
	struct iovec l = {got, LEN}, r = {c->a, LEN};

	CHECK(process_vm_readv(getpid(), &l, 1, &r, 1, 0) == (ssize_t)LEN, "process_vm_readv");
	CHECK_ALL(got, AREA, c->seed, GEN_OLD, "process_vm_readv");
	free(got);
}

static void do_vm_writev(struct ctx *c)
{
	struct iovec l = {c->b, LEN}, r = {c->a, LEN};

	CHECK(process_vm_writev(getpid(), &l, 1, &r, 1, 0) == (ssize_t)LEN, "process_vm_writev");
	CHECK_ALL(c->a, AREA, c->seed, GEN_NEW, "process_vm_writev");
}

static void do_vm_readv_into(struct ctx *c)
{
	struct iovec l = {c->a, LEN}, r = {c->b, LEN};

	CHECK(process_vm_readv(getpid(), &l, 1, &r, 1, 0) == (ssize_t)LEN, "process_vm_readv");
	CHECK_ALL(c->a, AREA, c->seed, GEN_NEW, "process_vm_readv into what is away");
}

static long futex(void *w, int op, uint32_t val, void *t, void *w2, uint32_t val3)
{
	return syscall(SYS_futex, w, op | FUTEX_PRIVATE_FLAG, val, t, w2, val3);
}

struct sleeper {
	uint32_t *word, seen;
};

static void *futex_sleeper(void *arg)
{
	struct sleeper *s = arg;
	long rc;

	do
		rc = futex(s->word, FUTEX_WAIT, s->seen, NULL, NULL, 0);
	while (rc < 0 && errno == EINTR);
	/* Changed already: EAGAIN. */
	CHECK(!rc || errno == EAGAIN, "FUTEX_WAIT");
	return NULL;
}

static void do_futex(struct ctx *c)
{
	uint32_t *w = (void *)(c->a + 8), *w2 = (void *)(c->a + 20 * V_PAGE), want;
	struct timespec *ts = (void *)(c->a + 40 * V_PAGE);
	struct sleeper s = {.word = w};
	pthread_t t;

	want = (uint32_t)(v_word(0, c->seed, GEN_OLD, 1, V_QUARTER));
	CHECK(futex(w, FUTEX_WAIT, want + 1, NULL, NULL, 0) < 0 && errno == EAGAIN, "the futex word is %#x, not %#x",
	      *w, want);
	CHECK(futex(w2, FUTEX_WAKE, 1, NULL, NULL, 0) == 0, "FUTEX_WAKE of nobody");
	*ts = (struct timespec){0, 1000000};
	CHECK(futex(w, FUTEX_WAIT, want, ts, NULL, 0) < 0 && errno == ETIMEDOUT, "FUTEX_WAIT with a time-out");
	s.seen = want;
	/* While somebody sleeps on the word, its page leaves. */
	CHECK(!pthread_create(&t, NULL, futex_sleeper, &s), "pthread_create");
	wait_away(c->a, 1, 1, "the page of a futex somebody sleeps on");
	CHECK(*w == want, "the futex word changed");
	*w = want + 1;
	futex(w, FUTEX_WAKE, 1, NULL, NULL, 0);
	pthread_join(t, NULL);
	/* Requeue from one word to another, both away. */
	w = (void *)(c->a + 60 * V_PAGE);
	CHECK(futex(w, FUTEX_CMP_REQUEUE, 0, (void *)1ul, c->a + 80 * V_PAGE, *(uint32_t *)(c->b + 60 * V_PAGE)) < 0 &&
		      errno == EAGAIN,
	      "FUTEX_CMP_REQUEUE: another value is there");
}

/*
 * Where the kernel itself writes a futex word it does not wait for who serves
 * page faults: EFAULT, with nothing done, when the word is away at that moment
 * (doc/differences.md).  Who has just touched it is not in that way for long.
 */
static long futex_touched(uint32_t *touch, void *w, int op, uint32_t val, void *t, void *w2, uint32_t val3)
{
	long rc;

	for (unsigned tries = 0; tries < 1000; tries++) {
		atomic_fetch_add((_Atomic uint32_t *)touch, 0);
		rc = futex(w, op, val, t, w2, val3);
		if (rc >= 0 || errno != EFAULT)
			return rc;
	}
	return rc;
}

/* FUTEX_WAKE_OP: the kernel changes the second word itself. */
static void do_futex_op(struct ctx *c)
{
	uint32_t *w = (void *)(c->a + 8), *w2 = (void *)(c->a + 20 * V_PAGE + 4), want = *w, old;
	struct sleeper s = {.word = w, .seen = want};
	long woken;
	pthread_t t;

	CHECK(!pthread_create(&t, NULL, futex_sleeper, &s), "pthread_create");
	old = *w2;
	wait_away(w2, 1, 1, "the word of FUTEX_WAKE_OP");
	for (unsigned i = 1; i <= 20; i++) {
		/* Add one to the second word, wake who waits at it if it was less than none: nobody. */
		CHECK(futex_touched(w2, w2 + 1, FUTEX_WAKE_OP, 1, (void *)1ul, w2,
				    FUTEX_OP(FUTEX_OP_ADD, 1, FUTEX_OP_CMP_EQ, 0)) == 0,
		      "FUTEX_WAKE_OP");
		CHECK(*w2 == old + i, "FUTEX_WAKE_OP left %#x, not %#x", *w2, old + i);
	}
	/* Somebody sleeps on the first, which is away: it is woken, and the operation done. */
	wait_away(w, 1, 1, "the page of a futex somebody sleeps on");
	do {
		sleep_ms(1); /* until it sleeps */
		woken = futex_touched(w2, w, FUTEX_WAKE_OP, 1, NULL, w2,
				      FUTEX_OP(FUTEX_OP_SET, 77, FUTEX_OP_CMP_EQ, 77));
		CHECK(woken == 0 || woken == 1, "FUTEX_WAKE_OP");
	} while (!woken);
	pthread_join(t, NULL);
	CHECK(*w2 == 77, "FUTEX_WAKE_OP left %#x", *w2);
	CHECK(*w == want && w2[-1] == (uint32_t)v_word(20, c->seed, GEN_OLD, 0, V_QUARTER), "beside the words");
}

struct pi {
	uint32_t *word;
};

static void *pi_waiter(void *arg)
{
	struct pi *p = arg;
	uint32_t me = (uint32_t)syscall(SYS_gettid);

	CHECK(!futex_touched(p->word, p->word, FUTEX_LOCK_PI, 0, NULL, NULL, 0), "FUTEX_LOCK_PI behind an owner");
	CHECK((*p->word & FUTEX_TID_MASK) == me, "its word is %#x, not %#x", *p->word, me);
	CHECK(!futex_touched(p->word, p->word, FUTEX_UNLOCK_PI, 0, NULL, NULL, 0), "FUTEX_UNLOCK_PI");
	return NULL;
}

/* Locks with priority inheritance: the kernel reads, compares and writes their word. */
static void do_futex_pi(struct ctx *c)
{
	enum { LOCKS = 4 };
	uint32_t me = (uint32_t)syscall(SYS_gettid);
	struct pi p[LOCKS];
	pthread_t t[LOCKS];

	for (unsigned i = 0; i < LOCKS; i++) {
		p[i].word = (void *)(c->a + (50 + i) * V_PAGE + 16);
		*p[i].word = 0;
	}
	wait_away(c->a + 50 * V_PAGE, LOCKS, LOCKS, "the words of free locks");
	for (unsigned i = 0; i < LOCKS; i++) {
		uint32_t *w = p[i].word;

		CHECK(!futex_touched(w, w, i & 1 ? FUTEX_TRYLOCK_PI : FUTEX_LOCK_PI, 0, NULL, NULL, 0),
		      "FUTEX_LOCK_PI");
		CHECK((*w & FUTEX_TID_MASK) == me, "the word is %#x, not %#x", *w, me);
		CHECK(futex_touched(w, w, FUTEX_LOCK_PI, 0, NULL, NULL, 0) < 0 && errno == EDEADLK, "locked twice");
		CHECK(!pthread_create(&t[i], NULL, pi_waiter, &p[i]), "pthread_create");
		while (!(*w & FUTEX_WAITERS))
			sleep_ms(1);
	}
	wait_away(c->a + 50 * V_PAGE, LOCKS, LOCKS, "the words of locks that somebody waits for");
	for (unsigned i = 0; i < LOCKS; i++) {
		uint32_t *w = p[i].word;

		CHECK(!futex_touched(w, w, FUTEX_UNLOCK_PI, 0, NULL, NULL, 0), "FUTEX_UNLOCK_PI");
		pthread_join(t[i], NULL);
		CHECK(*w == 0, "the word of a free lock is %#x", *w);
	}
}

static void *ends_with_it(void *arg)
{
	CHECK(!pthread_mutex_lock(arg), "pthread_mutex_lock");
	return NULL;
}

/* Mutexes of libc's, robust, and half of them with inherited priority: also taken over from an owner that has ended. */
static void do_mutexes(struct ctx *c)
{
	enum { MUTEXES = 4 };
	pthread_mutex_t *m[MUTEXES];
	pthread_t t;

	for (unsigned i = 0; i < MUTEXES; i++) {
		pthread_mutexattr_t attr;

		m[i] = (void *)(c->a + (10 + i) * V_PAGE + 64);
		pthread_mutexattr_init(&attr);
		pthread_mutexattr_setrobust(&attr, PTHREAD_MUTEX_ROBUST);
		if (i & 1)
			pthread_mutexattr_setprotocol(&attr, PTHREAD_PRIO_INHERIT);
		memset(m[i], 0, sizeof(*m[i]));
		CHECK(!pthread_mutex_init(m[i], &attr), "pthread_mutex_init");
	}
	wait_away(c->a + 10 * V_PAGE, MUTEXES, MUTEXES, "mutexes");
	for (unsigned i = 0; i < MUTEXES; i++)
		CHECK(!pthread_mutex_lock(m[i]), "pthread_mutex_lock");
	wait_away(c->a + 10 * V_PAGE, MUTEXES, MUTEXES, "mutexes that are held");
	for (unsigned i = 0; i < MUTEXES; i++)
		CHECK(!pthread_mutex_unlock(m[i]), "pthread_mutex_unlock");
	/* The kernel marks a mutex when its owner ends; it must be there then (doc/differences.md). */
	for (unsigned i = 0; i < MUTEXES; i++) {
		if (mlock(m[i], sizeof(*m[i]))) {
			puts("SKIP: no right to lock memory: mutexes of owners that end");
			return;
		}
		CHECK(!pthread_create(&t, NULL, ends_with_it, m[i]) && !pthread_join(t, NULL), "pthread_create");
		CHECK(!munlock(m[i], sizeof(*m[i])), "munlock");
	}
	wait_away(c->a + 10 * V_PAGE, MUTEXES, MUTEXES, "mutexes whose owners have ended");
	for (unsigned i = 0; i < MUTEXES; i++) {
		CHECK(pthread_mutex_lock(m[i]) == EOWNERDEAD, "its owner has ended, and nobody says so");
		CHECK(!pthread_mutex_consistent(m[i]) && !pthread_mutex_unlock(m[i]), "pthread_mutex_consistent");
	}
}

static void do_strings(struct ctx *c)
{
	char dir[] = "/tmp/hmm-calls-XXXXXX", path[64];
	char *away = c->a + 10 * V_PAGE - 20; /* across two pages */
	struct stat *st = (void *)(c->a + 30 * V_PAGE);
	int fd;

	CHECK(mkdtemp(dir), "mkdtemp");
	snprintf(path, sizeof(path), "%s/a-name-that-spans", dir);
	memcpy(away, path, strlen(path) + 1);
	wait_away(c->a + 9 * V_PAGE, 2, 2, "a path");
	fd = open(away, O_CREAT | O_RDWR, 0600);
	CHECK(fd >= 0, "open by a name that is away");
	wait_away(st, 1, 1, "a struct stat");
	CHECK(!fstat(fd, st) && S_ISREG(st->st_mode), "fstat");
	close(fd);
	char *link = c->a + 50 * V_PAGE;
	char self[64];
	snprintf(self, sizeof(self), "%s/link", dir);
	CHECK(!symlink(path, self), "symlink");
	ssize_t n = readlink(self, link, V_PAGE);
	CHECK(n == (ssize_t)strlen(path) && !memcmp(link, path, (size_t)n), "readlink");
	fd = open(dir, O_RDONLY | O_DIRECTORY);
	char *ents = c->a + 70 * V_PAGE;
	n = syscall(SYS_getdents64, fd, ents, 2 * V_PAGE);
	unsigned found = 0;
	for (ssize_t at = 0; at < n;) {
		struct dirent64 *d = (void *)(ents + at);

		found += !strcmp(d->d_name, "link") || !strcmp(d->d_name, "a-name-that-spans");
		at += d->d_reclen;
	}
	CHECK(found == 2, "getdents64 found %u of 2 names", found);
	close(fd);
	unlink(path);
	unlink(self);
	CHECK(syscall(SYS_getcwd, c->a + 90 * V_PAGE, V_PAGE) > 0 && c->a[90 * V_PAGE] == '/', "getcwd");
	rmdir(dir);
}

static void do_small(struct ctx *c)
{
	struct utsname *u = (void *)(c->a + 3 * V_PAGE - 100), here;
	struct timespec *ts = (void *)(c->a + 7 * V_PAGE), *rem = (void *)(c->a + 8 * V_PAGE);
	struct rusage *ru = (void *)(c->a + 12 * V_PAGE);
	struct pollfd *p = (void *)(c->a + 15 * V_PAGE);
	struct epoll_event *ev = (void *)(c->a + 20 * V_PAGE);
	int *len = (void *)(c->a + 25 * V_PAGE), *val = (void *)(c->a + 26 * V_PAGE), fd[2], ep;
	fd_set *set = (void *)(c->a + 30 * V_PAGE);

	CHECK(!uname(&here) && !uname(u) && !strcmp(here.release, u->release), "uname");
	CHECK(!syscall(SYS_clock_gettime, CLOCK_REALTIME, ts) && ts->tv_sec > 1000000, "clock_gettime");
	*ts = (struct timespec){0, 1000};
	CHECK(!syscall(SYS_nanosleep, ts, rem), "nanosleep");
	CHECK(!syscall(SYS_getrusage, RUSAGE_SELF, ru) && ru->ru_minflt > 0, "getrusage");
	CHECK(!socketpair(AF_UNIX, SOCK_STREAM, 0, fd) && write(fd[1], "x", 1) == 1, "socketpair");
	*p = (struct pollfd){.fd = fd[0], .events = POLLIN};
	wait_away(p, 1, 1, "pollfd");
	CHECK(poll(p, 1, -1) == 1 && p->revents == POLLIN, "poll");
	ep = epoll_create1(0);
	*ev = (struct epoll_event){.events = EPOLLIN, .data.u64 = 0x1122334455667788};
	CHECK(!epoll_ctl(ep, EPOLL_CTL_ADD, fd[0], ev), "epoll_ctl");
	ev->data.u64 = 0;
	wait_away(ev, 1, 1, "epoll_event");
	CHECK(epoll_wait(ep, ev, 4, -1) == 1 && ev->data.u64 == 0x1122334455667788, "epoll_wait");
	FD_ZERO(set);
	FD_SET(fd[0], set);
	wait_away(set, 1, 1, "fd_set");
	CHECK(select(fd[0] + 1, set, NULL, NULL, NULL) == 1 && FD_ISSET(fd[0], set), "select");
	*len = sizeof(*val);
	wait_away(len, 2, 2, "socket option");
	CHECK(!getsockopt(fd[0], SOL_SOCKET, SO_TYPE, val, (socklen_t *)len) && *val == SOCK_STREAM, "getsockopt");
	close(fd[0]);
	close(fd[1]);
	close(ep);
	CHECK(syscall(SYS_getrandom, c->a + 40 * V_PAGE, 20 * V_PAGE, 0) == 20 * (long)V_PAGE, "getrandom");
	CHECK(v_check(c->b, 0, c->seed, GEN_NEW, V_QUARTER) == 0, "getrandom wrote elsewhere");
	cpu_set_t *cpus = (void *)(c->a + 70 * V_PAGE);
	CHECK(syscall(SYS_sched_getaffinity, 0, sizeof(*cpus), cpus) > 0, "sched_getaffinity");
	CHECK(!syscall(SYS_getresuid, c->a + 75 * V_PAGE, c->a + 76 * V_PAGE, c->a + 77 * V_PAGE) &&
		      *(uid_t *)(c->a + 75 * V_PAGE) == getuid(),
	      "getresuid");
	unsigned char *vec = (void *)(c->a + 80 * V_PAGE);
	/* What was touched may have left again before it is asked for. */
	bool here_once = false;
	for (unsigned tries = 0; !here_once && tries < 10000; tries++) {
		CHECK(v_check(c->b, 0, c->seed, GEN_NEW, V_QUARTER) == 0, "what mincore is asked about");
		CHECK(!syscall(SYS_mincore, c->b, LEN, vec), "mincore");
		here_once = vec[0] & 1;
	}
	CHECK(here_once, "mincore says of nothing that it is here");
}

static void do_aio(struct ctx *c)
{
	aio_context_t aio = 0;
	struct io_event *ev = (void *)(c->a + (AREA - 1) * V_PAGE);
	struct iocb cb = {.aio_lio_opcode = IOCB_CMD_PREAD,
			  .aio_fildes = (uint32_t)c->file,
			  .aio_buf = (uintptr_t)c->a,
			  .aio_nbytes = LEN - V_PAGE},
		    *list[1] = {&cb};

	file_fill(c);
	if (syscall(SYS_io_setup, 4, &aio)) {
		puts("SKIP: no io_setup() here");
		return;
	}
	CHECK(syscall(SYS_io_submit, aio, 1, list) == 1, "io_submit");
	CHECK(syscall(SYS_io_getevents, aio, 1, 1, ev, NULL) == 1, "io_getevents");
	CHECK(ev->res == (long)(LEN - V_PAGE), "aio read %ld", (long)ev->res);
	CHECK_ALL(c->a, AREA - 1, c->seed, GEN_NEW, "aio");
	syscall(SYS_io_destroy, aio);
}

static _Atomic int signalled;

static void on_usr1(int sig, siginfo_t *info, void *uc)
{
	char local[3 * V_PAGE];

	(void)sig;
	(void)uc;
	memset(local, 0x5a, sizeof(local));
	CHECK(info->si_signo == SIGUSR1 && local[V_PAGE] == 0x5a, "signal frame");
	atomic_fetch_add(&signalled, 1);
}

/* The kernel builds signal frames on a stack that is away. */
static void do_altstack(struct ctx *c)
{
	struct sigaction sa = {.sa_sigaction = on_usr1, .sa_flags = SA_SIGINFO | SA_ONSTACK};
	stack_t ss = {.ss_sp = c->a, .ss_size = LEN}, old;

	atomic_store(&signalled, 0);
	CHECK(!sigaltstack(&ss, &old), "sigaltstack");
	CHECK(!sigaction(SIGUSR1, &sa, NULL), "sigaction");
	raise(SIGUSR1);
	CHECK(atomic_load(&signalled) == 1, "no signal");
	wait_away(c->a + (AREA - 2) * V_PAGE, 1, 1, "the signal stack");
	raise(SIGUSR1);
	CHECK(atomic_load(&signalled) == 2, "no second signal");
	CHECK(!v_check(c->a, 0, c->seed, GEN_OLD, V_QUARTER), "bottom of the signal stack");
	ss.ss_flags = SS_DISABLE;
	sigaltstack(&ss, NULL);
}

static void do_populate(struct ctx *c)
{
	CHECK(!madvise(c->a, LEN / 2, MADV_POPULATE_READ), "MADV_POPULATE_READ");
	CHECK(!madvise(c->a + LEN / 2, LEN / 2, MADV_POPULATE_WRITE), "MADV_POPULATE_WRITE");
	/* Lengths that wrap around when they are rounded up are refused before anything is done. */
	CHECK(madvise(c->a, -(size_t)c->a - 1, MADV_POPULATE_READ) && errno == EINVAL, "wraps around");
	CHECK(madvise(NULL, SIZE_MAX, MADV_POPULATE_WRITE) && errno == EINVAL, "wraps around by itself");
	CHECK_ALL(c->a, AREA, c->seed, GEN_OLD, "populated");
}

static void do_mlock(struct ctx *c)
{
	if (mlock(c->a, LEN)) {
		puts("SKIP: no right to lock memory: mlock()");
		return;
	}
	CHECK(!under_hmm() || !v_absent(c->a, AREA), "mlock() left pages away");
	CHECK_ALL(c->a, AREA, c->seed, GEN_OLD, "locked");
	sleep_ms(200);
	CHECK(!v_absent(c->a, AREA), "a locked page left");
	CHECK(!munlock(c->a, LEN), "munlock");
	wait_away(c->a, AREA, AREA / 2, "once locked memory");
	CHECK_ALL(c->a, AREA, c->seed, GEN_OLD, "unlocked");
}

/* A pipe that holds the pages themselves: what was there it keeps, also when they have been moved away. */
static void do_vmsplice(struct ctx *c)
{
	enum { PIECE = 16 }; /* what a pipe takes */
	char *got = v_map(3 * PIECE * V_PAGE);
	int fd[3][2];

	for (unsigned i = 0; i < 3; i++) {
		struct iovec v = {c->a + i * PIECE * V_PAGE, PIECE * V_PAGE};

		CHECK(!pipe(fd[i]), "pipe");
		CHECK(i == 2 ? write(fd[i][1], c->b, v.iov_len) == (ssize_t)v.iov_len
			     : vmsplice(fd[i][1], &v, 1, 0) == (ssize_t)v.iov_len,
		      "vmsplice");
	}
	wait_away(c->a, 3 * PIECE, 2 * PIECE + PIECE / 2, "what is in a pipe");
	for (unsigned i = 0; i < 3; i++) {
		/* Out of it by read(), by vmsplice() into other memory, and into what is away. */
		struct iovec w = {i == 2 ? c->a + 2 * PIECE * V_PAGE : got + i * PIECE * V_PAGE, PIECE * V_PAGE};

		CHECK((i ? vmsplice(fd[i][0], &w, 1, 0) : read(fd[i][0], w.iov_base, w.iov_len)) == (ssize_t)w.iov_len,
		      "out of the pipe");
		close(fd[i][0]);
		close(fd[i][1]);
	}
	CHECK_ALL(got, 2 * PIECE, c->seed, GEN_OLD, "what went through the pipe");
	CHECK_ALL(c->a, 2 * PIECE, c->seed, GEN_OLD, "what was put into the pipe");
	CHECK(!memcmp(c->a + 2 * PIECE * V_PAGE, c->b, PIECE * V_PAGE), "vmsplice into what is away");
	for (unsigned i = 3 * PIECE; i < AREA; i++)
		CHECK(!v_check(c->a + i * V_PAGE, i, c->seed, GEN_OLD, V_QUARTER), "beyond what came out of the pipe");
	munmap(got, 3 * PIECE * V_PAGE);
}

/* Connected by TCP to itself, fd[0] with a small buffer; false: not to be had here. */
static bool tcp_pair(int fd[2])
{
	struct sockaddr_in in = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	int listener = socket(AF_INET, SOCK_STREAM, 0), small = 16384;
	socklen_t len = sizeof(in);

	if (listener < 0 || setsockopt(listener, SOL_SOCKET, SO_RCVBUF, &small, sizeof(small)) ||
	    bind(listener, (struct sockaddr *)&in, sizeof(in)) || listen(listener, 1) ||
	    getsockname(listener, (struct sockaddr *)&in, &len))
		return false;
	fd[1] = socket(AF_INET, SOCK_STREAM, 0);
	if (fd[1] < 0 || connect(fd[1], (struct sockaddr *)&in, sizeof(in)))
		return false;
	fd[0] = accept(listener, NULL, NULL);
	close(listener);
	return fd[0] >= 0;
}

/* How many sends the kernel has let go of. */
static unsigned completions(int fd)
{
	char control[256];
	struct msghdr m = {.msg_control = control, .msg_controllen = sizeof(control)};
	struct sock_extended_err *e;

	if (recvmsg(fd, &m, MSG_ERRQUEUE | MSG_DONTWAIT) < 0) {
		CHECK(errno == EAGAIN, "MSG_ERRQUEUE");
		return 0;
	}
	CHECK(CMSG_FIRSTHDR(&m), "MSG_ERRQUEUE without a message");
	e = (void *)CMSG_DATA(CMSG_FIRSTHDR(&m));
	CHECK(e->ee_origin == SO_EE_ORIGIN_ZEROCOPY && !e->ee_errno, "origin %u, error %u", e->ee_origin, e->ee_errno);
	return e->ee_data - e->ee_info + 1;
}

/* The socket holds the pages themselves until they have been sent, while they move away and come back. */
static void do_zerocopy(struct ctx *c)
{
	char *got = malloc(LEN);
	unsigned sends = 0, done = 0;
	size_t sent = 0, come = 0;
	int fd[2], one = 1;

	if (!tcp_pair(fd) || setsockopt(fd[1], SOL_SOCKET, SO_ZEROCOPY, &one, sizeof(one))) {
		puts("SKIP: no TCP with MSG_ZEROCOPY here");
		free(got);
		return;
	}
	for (unsigned turn = 0; come < LEN; turn++) {
		while (sent < LEN) {
			size_t len = LEN - sent < 9000 ? LEN - sent : 9000;
			ssize_t n = send(fd[1], c->a + sent, len, MSG_ZEROCOPY | MSG_DONTWAIT);

			if (n < 0 && (errno == EAGAIN || errno == ENOBUFS) && come < sent)
				break; /* it is full, or has as much pinned as it may */
			CHECK(n > 0, "MSG_ZEROCOPY");
			sent += (size_t)n;
			sends++;
		}
		/* What is on its way goes away, and some of it is looked at. */
		if (turn < 2)
			wait_away(c->a, AREA, AREA * 3 / 4, "what is being sent");
		CHECK(!v_check(c->a + (sent - 1) / V_PAGE * V_PAGE, (sent - 1) / V_PAGE, c->seed, GEN_OLD, V_QUARTER),
		      "what is being sent");
		for (size_t most = come + 65536; come < most && come < sent;) {
			ssize_t n = recv(fd[0], got + come, sent - come < 8192 ? sent - come : 8192, 0);

			CHECK(n > 0, "recv");
			come += (size_t)n;
		}
		done += completions(fd[1]);
	}
	while (done < sends) {
		unsigned n = completions(fd[1]);

		done += n;
		if (!n)
			sleep_ms(1);
	}
	CHECK_ALL(got, AREA, c->seed, GEN_OLD, "what was sent");
	CHECK_ALL(c->a, AREA, c->seed, GEN_OLD, "after it was sent");
	free(got);
	close(fd[0]);
	close(fd[1]);
}

static void do_sendfile_splice(struct ctx *c)
{
	/* tcp-less: a file from away memory by write, to a pipe by splice, into away memory by read. */
	int fd[2];
	loff_t off = 0;

	CHECK(pwrite(c->file, c->a, LEN, 0) == (ssize_t)LEN, "pwrite");
	CHECK(!pipe(fd), "pipe");
	memset(c->a, 0, LEN);
	wait_away(c->a, AREA, AREA / 2, "target of a splice");
	for (size_t at = 0; at < LEN;) {
		ssize_t n = splice(c->file, &off, fd[1], NULL, LEN - at < 65536 ? LEN - at : 65536, 0);

		CHECK(n > 0, "splice");
		for (ssize_t got = 0; got < n;) {
			ssize_t r = read(fd[0], c->a + at + got, (size_t)(n - got));

			CHECK(r > 0, "read");
			got += r;
		}
		at += (size_t)n;
	}
	CHECK_ALL(c->a, AREA, c->seed, GEN_OLD, "splice");
	close(fd[0]);
	close(fd[1]);
}

static const struct {
	const char *name;
	void (*fn)(struct ctx *c);
} cases[] = {
	{"write", do_write},
	{"writev", do_writev},
	{"read", do_read},
	{"readv", do_readv},
	{"read into a part", do_read_part},
	{"pipe from", do_pipe_out},
	{"pipe to", do_pipe_in},
	{"socket from", do_sock_out},
	{"socket to", do_sock_in},
	{"recvmsg", do_recvmsg},
	{"process_vm_readv", do_vm_readv},
	{"process_vm_writev", do_vm_writev},
	{"process_vm_readv into", do_vm_readv_into},
	{"futex", do_futex},
	{"FUTEX_WAKE_OP", do_futex_op},
	{"FUTEX_LOCK_PI", do_futex_pi},
	{"robust mutexes", do_mutexes},
	{"names", do_strings},
	{"small structures", do_small},
	{"aio", do_aio},
	{"sigaltstack", do_altstack},
	{"populate", do_populate},
	{"mlock", do_mlock},
	{"splice", do_sendfile_splice},
	{"vmsplice", do_vmsplice},
	{"MSG_ZEROCOPY", do_zerocopy},
};

#define NCASES (sizeof(cases) / sizeof(cases[0]))

int main(void)
{
	unsigned rounds = long_run() ? 8 : 1;
	struct hog hog;
	char *all;

	for (unsigned r = 0; r < rounds; r++) {
		all = v_map(NCASES * LEN);
		for (unsigned i = 0; i < NCASES; i++)
			v_fill_all(all + i * LEN, AREA, i + 1, GEN_OLD, V_QUARTER);
		hog_start(&hog, hog_mib());
		wait_away(all, NCASES * AREA, NCASES * AREA * 9 / 10, "all areas");
		for (unsigned i = 0; i < NCASES; i++) {
			struct ctx c = {.a = all + i * LEN, .b = v_map(LEN), .seed = i + 1};

			v_fill_all(c.b, AREA, c.seed, GEN_NEW, V_QUARTER);
			c.file = memfd_create("calls", 0);
			CHECK(c.file >= 0 && !ftruncate(c.file, LEN), "memfd_create");
			wait_away(c.a, AREA, AREA / 2, cases[i].name);
			cases[i].fn(&c);
			printf("ok %s\n", cases[i].name);
			fflush(stdout);
			close(c.file);
			munmap(c.b, LEN);
		}
		hog_stop(&hog);
		munmap(all, NCASES * LEN);
	}
	return 0;
}
