/* SPDX-License-Identifier: MIT */
/*
 * DOC: the supervisor
 *
 * A process of its own, sibling of the program (which can neither wait for it
 * nor close anything of its), in a session of its own.  It holds everything:
 * records, devices, userfaultfds, the threads that serve faults.  One thread, that
 * of loop(), deals with who comes and goes:
 *
 *   an agent signs on	a new space; or, after fork(), the one that came with the
 *			parent's FORK event (signon.c)
 *   a program ends	its space ends, unless others live in it (CLONE_VM, heir.c); where
 *			that cannot be told, for want of descriptors, the next tick asks
 *   a program execs	the new image signs on with the same pid (or, unable to be
 *			entered, no longer shares memory with its agent): the old
 *			space ends
 *   an agent dies	and its program has not ended: the program is killed, unless
 *			the space has gone: then that ends
 *   the front dies	all programs are killed
 *   all have ended	it ends, too, if nobody is on the way (coming.c)
 *
 * Members are this thread's alone, but for what member_forked() adds from a monitor
 * thread: the list has a lock.
 */
#include "run/supervisor.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "run/coming.h"
#include "run/keeper.h"
#include "run/stats.h"

#define TICK_NS 500000000l
#define COMING_NS 5000000000ull
#define KILL_TICKS 10u

static void say(void *priv, const char *line)
{
	struct supervisor *s = priv;

	lines_say(&s->lines, "%s", line);
}

int watch_add(struct supervisor *s, int fd, struct watch *w)
{
	struct epoll_event ev = {.events = EPOLLIN, .data.ptr = w};

	return epoll_ctl(s->epfd, EPOLL_CTL_ADD, fd, &ev) ? -errno : 0;
}

static void fatal(void *priv, struct hmm_mm *mm, const char *why)
{
	struct supervisor *s = priv;
	struct member *m = member_of(s, mm);

	lines_say(&s->lines, "process %d must be killed: %s", (int)mm->space->pid, why);
	if (m)
		member_kill(m);
}

/* -errno: who else lives there cannot be told now; the next tick asks again. */
static int on_program_end(struct member *m)
{
	int rc;

	if (!lives_ended(m->pidfd))
		return 0;
	rc = member_inherit(m);
	if (!rc)
		member_leave(m);
	else if (rc > 0 && m->sup->killing)
		member_kill(m); /* nobody has killed its heirs yet */
	if (rc >= 0)
		return 0;
	epoll_ctl(m->sup->epfd, EPOLL_CTL_DEL, m->pidfd, NULL); /* it would call without end */
	return rc;
}

static void on_agent(struct member *m)
{
	struct wire_msg msg;
	bool ended;
	ssize_t n = recv(m->sock, &msg, sizeof(msg), MSG_DONTWAIT);

	if (n > 0 || (n < 0 && (errno == EAGAIN || errno == EINTR)))
		return;
	epoll_ctl(m->sup->epfd, EPOLL_CTL_DEL, m->sock, NULL);
	/*
	 * The agent is gone.  Nothing was ever moved: no harm.  Otherwise it must
	 * not outlive its work unnoticed: nobody could move pages any more, and
	 * its descriptor was the second guard of what is away.
	 */
	ended = lives_ended(m->pidfd) || !atomic_load(&m->mm->armed) || member_is_empty(m);
	if (!ended && m->pid > 0) {
		lines_say(&m->sup->lines, "the agent of process %d died; the process is killed", (int)m->pid);
		member_kill(m);
		return; /* its pidfd tells when it is dead */
	}
	if (ended)
		member_leave(m);
}

/*
 * All at once first.  Who lives in a program's space besides it is looked for
 * by the ticks that follow: for each space that takes a walk over all processes.
 */
static void kill_tree(struct supervisor *s)
{
	struct itimerspec soon = {.it_interval = {0, TICK_NS / 5}, .it_value = {0, TICK_NS / 50}};

	s->killing = true;
	pthread_mutex_lock(&s->lock);
	for (struct member *m = s->members; m; m = m->next)
		if (m->pidfd >= 0)
			syscall(SYS_pidfd_send_signal, m->pidfd, SIGKILL, NULL, 0);
		else
			hmm_mm_kill(m->mm);
	pthread_mutex_unlock(&s->lock);
	timerfd_settime(s->tick_fd, 0, &soon, NULL);
}

static void write_stats(struct supervisor *s)
{
	char line[256];

	if (s->opt.verbose) {
		stats_line(s->h, line, sizeof(line));
		lines_say(&s->lines, "%s", line);
	}
	if (s->opt.stats_path) {
		char *text = NULL;
		size_t len = 0;
		/* Complete before anything is written: no lock may be held for a file. */
		FILE *m = open_memstream(&text, &len), *f = NULL;

		if (m) {
			stats_json(s->h, m);
			if (!fclose(m))
				f = s->opt.stats_fd < 0 ? fopen(s->opt.stats_path, "w") : fdopen(s->opt.stats_fd, "a");
		}
		if (f)
			fwrite(text, 1, len, f); /* fclose() tells */
		if (!f || fclose(f))
			lines_say(&s->lines, "cannot write %s: %s", s->opt.stats_path, strerror(errno));
		free(text);
	}
}

/* On a thread of its own: a file may be slow, a pipe full, and descendants are to be served meanwhile. */
static void *write_last(void *arg)
{
	struct supervisor *s = arg;
	uint64_t one = 1;

	write_stats(s);
	lines_flush(&s->lines);
	while (write(s->written_fd, &one, sizeof(one)) < 0 && errno == EINTR)
		;
	return NULL;
}

/*
 * Nobody is known, and nobody is on the way.  Who was not entered (a static program,
 * say) is seen there, too, and never comes: so not for ever.
 */
static bool all_gone(struct supervisor *s)
{
	uint64_t now = umm_now_ns();

	pthread_mutex_lock(&s->lock);
	bool none = !s->members;
	pthread_mutex_unlock(&s->lock);
	if (!none) {
		s->gone_ns = 0;
		return false;
	}
	if (!s->gone_ns)
		s->gone_ns = now;
	return now - s->gone_ns > COMING_NS || !coming_any(s->name, s->token);
}

/* Programs that have ended and whose end has not been seen yet. */
static void reap_ended(struct supervisor *s)
{
	struct member *m;

	do {
		pthread_mutex_lock(&s->lock);
		for (m = s->members; m && (m->pid <= 0 || !lives_ended(m->pidfd)); m = m->next)
			;
		pthread_mutex_unlock(&s->lock);
	} while (m && !on_program_end(m));
}

static void on_front(struct supervisor *s)
{
	pthread_t t;
	struct run_word word;
	ssize_t n = recv(s->front_fd, &word, sizeof(word), 0);

	if (n == sizeof(word) && (word.what == RUN_PROGRAM_STOPPED || word.what == RUN_PROGRAM_GOES_ON)) {
		s->stopped = word.what == RUN_PROGRAM_STOPPED ? word.program : 0;
		return;
	}
	if (n == sizeof(word) && !s->ending) {
		s->ending = true;
		if (word.what == RUN_PROGRAM_ENDED && !s->signed_on)
			lines_say(&s->lines, "the preload library did not get into the program: it ran without hmm");
		if (pthread_create(&t, NULL, write_last, s))
			write_last(s);
		else
			pthread_detach(t);
		return;
	}
	epoll_ctl(s->epfd, EPOLL_CTL_DEL, s->front_fd, NULL);
	close(s->front_fd);
	s->front_fd = -1;
	if (!s->ending)
		kill_tree(s);
	s->program_ended = true; /* whatever is still being written: nobody waits for it any more */
}

/*
 * Nobody lives any more.  We end by _exit(): somebody may be asking for figures.  What would be found on a disk goes
 * nevertheless, before who waits for us goes on and uses it anew.
 */
static void leave_devices(struct supervisor *s)
{
	struct hmm_chain *c = &s->h->chain;
	bool any = false;

	for (unsigned t = 0; t < c->n; t++)
		any |= c->dev[t]->ops->leave != NULL;
	if (!any)
		return;
	/* Who stores something there at this moment; no more begins. */
	hmm_budget_stop(s->h);
	hmm_ahead_stop(s->h);
	for (unsigned t = 0; t < c->n; t++)
		if (c->dev[t]->ops->leave)
			c->dev[t]->ops->leave(c->dev[t]);
}

/* The program has ended; descendants may live on, and must not be held up by what we hold open. */
static void on_written(struct supervisor *s)
{
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);
	bool all;
	char c;

	epoll_ctl(s->epfd, EPOLL_CTL_DEL, s->written_fd, NULL);
	if (s->front_fd >= 0) {
		reap_ended(s);
		all = all_gone(s);
		if (all)
			leave_devices(s);
		s->over = all;
		c = all ? RUN_ALL_GONE : RUN_OTHERS_LIVE;
		send(s->front_fd, &c, 1, MSG_NOSIGNAL);
		epoll_ctl(s->epfd, EPOLL_CTL_DEL, s->front_fd, NULL);
		close(s->front_fd);
		s->front_fd = -1;
	}
	if (null >= 0) {
		dup2(null, 2);
		close(null);
	}
	s->program_ended = true;
}

static bool space_is_dead(struct member *m)
{
	if (m->agent > 0) {
		if (!lives_ended(m->pidfd))
			return false;
		return m->pid > 0 || !lives_sharers(m->agent, NULL, NULL);
	}
	/* A child that ends while its records are being made is looked at when they are: who makes them uses it. */
	if (!atomic_load(&m->mm->ready))
		return false;
	return member_is_empty(m); /* no agent, no pid */
}

/* The next member that this tick has to look at; each once.  What is done to one may end others. */
static struct member *tick_next(struct supervisor *s)
{
	struct member *m;

	pthread_mutex_lock(&s->lock);
	for (m = s->members; m; m = m->next) {
		if (m->tick == s->tick)
			continue;
		m->tick = s->tick;
		if (m->pid <= 0 || m->sock < 0 || lives_ended(m->pidfd) || member_left(m))
			break;
	}
	pthread_mutex_unlock(&s->lock);
	return m;
}

/* Of programs that do nothing: where anything moves it is done sooner. */
static void age(struct hmm *h)
{
	struct hmm_mm **list;
	int n = atomic_load(&h->kept) ? hmm_mms_get(h, &list) : 0;

	for (int i = 0; i < n; i++)
		hmm_overtaken_age(list[i]);
	if (n > 0)
		hmm_mms_put(list, (unsigned)n);
}

/* Another one cannot be had: it would have to come before our threads, and their locks. */
static void look_at_keeper(struct supervisor *s)
{
	if (s->keeper <= 0 || waitpid(s->keeper, NULL, WNOHANG) != s->keeper)
		return;
	s->keeper = 0;
	lines_say(&s->lines, "hmm-keeper was killed: if the supervisor is killed as well, a program may find zeros for "
			     "memory that is away");
}

/*
 * Who lets the program alone go on, by its own pid, or kills it, does not know of the front, which sees nothing while
 * it is stopped.  A shell stops and continues both.
 */
static void look_at_stopped(struct supervisor *s)
{
	if (s->stopped && getppid() == s->front && !lives_stopped(s->stopped))
		kill(s->front, SIGCONT);
}

/*
 * Who has neither an agent nor a pid that is known is found by its environment alone.  Who has none of
 * ours stays, and is not looked for all the time.
 */
static void kill_unknown(struct supervisor *s)
{
	struct member *m;

	pthread_mutex_lock(&s->lock);
	for (m = s->members; m && (m->agent > 0 || m->pid > 0); m = m->next)
		;
	pthread_mutex_unlock(&s->lock);
	if (m && s->kills++ % KILL_TICKS == 0)
		coming_kill(s->name, s->token);
}

static void on_tick(struct supervisor *s)
{
	struct member *m;
	uint64_t count;

	if (read(s->tick_fd, &count, sizeof(count)) < 0)
		return;
	s->tick++;
	look_at_keeper(s);
	look_at_stopped(s);
	/* Whoever knocked when there was none took it, or another thread did. */
	if (s->spare_fd < 0)
		s->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
	heir_fds_open(s);
	while ((m = tick_next(s))) {
		if (s->killing)
			member_kill(m);
		if (m->agent > 0 && m->pid > 0 && !lives_ended(m->pidfd))
			member_exec(s, m->pid); /* another image, which could not be entered, runs under its pid */
		else if (m->sock >= 0 && lives_ended(m->pidfd))
			on_program_end(m);
		else if (space_is_dead(m))
			member_end(m);
	}
	if (s->killing)
		kill_unknown(s);
	age(s->h);
}

static int listen_on(struct supervisor *s)
{
	unsigned char raw[WIRE_TOKEN / 2 + 8];
	struct sockaddr_un sa = {.sun_family = AF_UNIX};
	size_t len;

	if (getrandom(raw, sizeof(raw), 0) != sizeof(raw))
		return -errno;
	for (unsigned i = 0; i < WIRE_TOKEN / 2; i++)
		sprintf(&s->token[2 * i], "%02x", raw[i]);
	len = (size_t)snprintf(s->name, sizeof(s->name), "hmm/%d/%02x%02x%02x%02x%02x%02x", (int)s->front,
			       raw[WIRE_TOKEN / 2], raw[WIRE_TOKEN / 2 + 1], raw[WIRE_TOKEN / 2 + 2],
			       raw[WIRE_TOKEN / 2 + 3], raw[WIRE_TOKEN / 2 + 4], raw[WIRE_TOKEN / 2 + 5]);
	memcpy(sa.sun_path + 1, s->name, len);
	s->listen_fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (s->listen_fd < 0 ||
	    bind(s->listen_fd, (struct sockaddr *)&sa, (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + len)) ||
	    listen(s->listen_fd, 512))
		return -errno;
	return 0;
}

/* What is shared with each agent is a file to the kernel, and ends where RLIMIT_FSIZE says. */
static int check_file_size(char *err, size_t errlen)
{
	int fd = memfd_create("hmm-control", MFD_CLOEXEC), rc;

	rc = fd < 0 || ftruncate(fd, (off_t)CTL_BYTES) ? -errno : 0;
	if (fd >= 0)
		close(fd);
	if (rc == -EFBIG)
		snprintf(err, errlen, "files of %lu KiB must be allowed: raise the limit with ulimit -f (RLIMIT_FSIZE)",
			 CTL_BYTES >> 10);
	else if (rc)
		snprintf(err, errlen, "memfd_create: %s", strerror(-rc));
	return rc;
}

static int start(struct supervisor *s, char *err, size_t errlen)
{
	struct hmm_options o = {
		.budget = s->opt.budget,
		.chain = s->opt.chain,
		.say = say,
		.fatal = fatal,
		.forked = member_forked,
		.called = calls_take,
		.lives_in = agent_lives_in,
		.processes = member_processes,
		.priv = s,
	};
	struct itimerspec it = {.it_interval = {0, TICK_NS}, .it_value = {0, TICK_NS}};
	int rc;

	pthread_mutex_init(&s->lock, NULL);
	pthread_mutex_init(&s->ident_lock, NULL);
	rc = check_file_size(err, errlen);
	if (rc)
		return rc;
	s->lend_fd = s->opt.lend ? open("/dev/userfaultfd", O_RDWR | O_CLOEXEC) : -1;
	if (s->opt.lend && s->lend_fd < 0) {
		snprintf(err, errlen, "--lend-userfaultfd: /dev/userfaultfd: %s", strerror(errno));
		return -errno;
	}
	rc = listen_on(s);
	if (rc) {
		snprintf(err, errlen, "cannot listen for the program: %s", strerror(-rc));
		return rc;
	}
	/* It must know the name, and come before all threads. */
	s->keeper = keeper_start(s->name, s->token);
	if (s->keeper < 0) {
		snprintf(err, errlen, "cannot start a process: %s", strerror(-s->keeper));
		return s->keeper;
	}
	rc = lines_start(&s->lines, "hmm run");
	if (rc) {
		snprintf(err, errlen, "cannot start a thread: %s", strerror(-rc));
		return rc;
	}
	rc = hmm_create(&o, &s->h, err, errlen);
	if (rc)
		return rc;
	/* Devices are open: the caller's directory need not be kept busy. */
	if (chdir("/")) {
		snprintf(err, errlen, "cannot go to /: %s", strerror(errno));
		return -errno;
	}
	s->epfd = epoll_create1(EPOLL_CLOEXEC);
	s->tick_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	s->written_fd = eventfd(0, EFD_CLOEXEC);
	if (s->epfd < 0 || s->tick_fd < 0 || s->written_fd < 0 || timerfd_settime(s->tick_fd, 0, &it, NULL)) {
		snprintf(err, errlen, "cannot start: %s", strerror(errno));
		return -errno;
	}
	s->w_listen.kind = W_LISTEN;
	s->w_front.kind = W_FRONT;
	s->w_tick.kind = W_TICK;
	s->w_written.kind = W_WRITTEN;
	rc = watch_add(s, s->listen_fd, &s->w_listen);
	if (!rc)
		rc = watch_add(s, s->front_fd, &s->w_front);
	if (!rc)
		rc = watch_add(s, s->tick_fd, &s->w_tick);
	if (!rc)
		rc = watch_add(s, s->written_fd, &s->w_written);
	if (rc) {
		snprintf(err, errlen, "cannot start: %s", strerror(-rc));
		return rc;
	}
	rc = hmm_budget_start(s->h);
	if (rc)
		snprintf(err, errlen, "cannot start a thread: %s", strerror(-rc));
	return rc;
}

static void loop(struct supervisor *s)
{
	struct epoll_event ev;

	while (!s->over && (!s->program_ended || !all_gone(s))) {
		if (epoll_wait(s->epfd, &ev, 1, -1) != 1)
			continue;
		struct watch *w = ev.data.ptr;
		switch (w->kind) {
		case W_LISTEN:
			guest_knocks(s);
			break;
		case W_FRONT:
			on_front(s);
			break;
		case W_TICK:
			on_tick(s);
			break;
		case W_WRITTEN:
			on_written(s);
			break;
		case W_GUEST:
			guest_speaks(s, w->owner);
			break;
		case W_SOCK:
			on_agent(w->owner);
			break;
		case W_PIDFD:
			on_program_end(w->owner);
			break;
		}
	}
}

/*
 * What the program may use says nothing of what we need for it: time for all
 * programs of the tree, memory for what they have away, a file for it, threads,
 * and about ten descriptors a program.  As much as we may have.
 */
static void lift_limits(void)
{
	static const int limits[] = {RLIMIT_CPU,    RLIMIT_FSIZE,   RLIMIT_DATA, RLIMIT_NPROC,
				     RLIMIT_NOFILE, RLIMIT_MEMLOCK, RLIMIT_AS,   RLIMIT_RTTIME};

	for (unsigned i = 0; i < sizeof(limits) / sizeof(limits[0]); i++) {
		struct rlimit all = {RLIM_INFINITY, RLIM_INFINITY};
		bool done = !setrlimit(limits[i], &all);

		if (done || getrlimit(limits[i], &all))
			continue;
		/* Of descriptors not even root may have more than fs.nr_open. */
		for (rlim_t n = 1u << 30; limits[i] == RLIMIT_NOFILE && !done && n > all.rlim_max; n /= 2)
			done = !setrlimit(limits[i], &(struct rlimit){n, n});
		if (done)
			continue;
		all.rlim_cur = all.rlim_max;
		setrlimit(limits[i], &all);
	}
}

void supervisor_main(const struct run_options *opt, int front_fd, pid_t front)
{
	struct supervisor *s = calloc(1, sizeof(*s));
	struct run_ready ready = {0};
	char err[256] = "out of memory";
	sigset_t all;

	sigfillset(&all);
	sigprocmask(SIG_BLOCK, &all, NULL);
	setsid();
	prctl(PR_SET_NAME, "hmm-supervisor");
	/* What programs keep from others of their user, by not being dumpable, is in here, too; nor may a core have it.
	 */
	prctl(PR_SET_DUMPABLE, 0);
	/* Nothing of the caller's may be held open by us, unless figures go there: somebody may wait for its end. */
	run_keep_fds(front_fd, opt->stats_fd);
	lift_limits();
	/* The program's standard input and output are the program's. */
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);
	if (null >= 0) {
		dup2(null, 0);
		dup2(null, 1);
		close(null);
	}
	pthread_attr_t attr;
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, UMM_THREAD_STACK);
	pthread_setattr_default_np(&attr);
	ready.rc = -ENOMEM;
	if (s) {
		s->opt = *opt;
		s->front_fd = front_fd;
		s->front = front;
		s->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
		memset(s->look_fd, -1, sizeof(s->look_fd));
		heir_fds_open(s);
		ready.rc = start(s, err, sizeof(err));
		memcpy(ready.name, s->name, sizeof(ready.name));
		memcpy(ready.token, s->token, sizeof(ready.token));
	}
	if (ready.rc)
		fprintf(stderr, "hmm run: %s\n", err);
	if (send(front_fd, &ready, sizeof(ready), MSG_NOSIGNAL) == sizeof(ready) && !ready.rc) {
		loop(s);
		if (s->killing)
			coming_kill(s->name, s->token); /* who was not entered */
		if (!s->over)
			leave_devices(s);
		lines_flush(&s->lines);
	}
	if (s && s->keeper > 0)
		keeper_end(s->keeper);
	_exit(ready.rc ? 1 : 0);
}
