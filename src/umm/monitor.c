/* SPDX-License-Identifier: MIT */
/*
 * Reads the userfaultfds of many spaces and sees to it that every message is
 * acted on in the one order that is right.
 *
 * DOC: the monitor
 *
 * A few threads take turns: one, the leader, sleeps in epoll; the others wait
 * for the lead.  The leader takes the event lock of the space exclusively,
 * reads, applies all *events* of what it read in their order, drops the lock,
 * and only then serves the *faults* (the kernel delivers faults first, though
 * they may have happened after the events).  It keeps the lead while it serves
 * a single quick fault, because handing over costs a wake-up; it gives it away
 * when there is more to do, or when who serves the fault is about to sleep
 * (umm_monitor_yield).  With two CPUs it keeps the lead for more: who took over
 * would run where the program does, or who moves pages out for it.
 *
 * Where the next fault is likely to be there by the time that one has been served
 * the space is read again at once, a number of times; epoll says when that was
 * in vain, or enough.
 *
 * A fault whose placing meets EAGAIN has a change under way: pending events
 * are read and applied, and the fault is served again *from its look-up*.
 *
 * The kernel makes a change under the lock of the address space, and tells of it
 * without: of two threads that change mappings the later one may be told of
 * first.  It matters where a mapping is moved to, by mremap() of the one, a place
 * that the other has just left: told in the wrong order, the end of the old one
 * would be taken for that of the new one.  By what was told until then something
 * is still there (ops->mapped), so what ended it is on its way, and is waited
 * for, the event lock held, while the kernel says that a change is under way.  It
 * is applied first.
 *
 * Spaces are named by key in epoll, never by pointer: a key that is gone is a
 * message that came too late.
 *
 * Locking: leader, then a space's event lock, then table (a fork adds a space
 * while its parent's events are applied).  The table lock is never held while
 * anything sleeps.
 */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "umm/follow.h"
#include "umm/internal.h"
#include "umm/signals.h"
#include "umm/sys.h"

#define MONITOR_THREADS_MAX 16u
#define READ_MAX 32u          /* messages at a time */
#define READ_ROOM 96u         /* and those that are read because one of them came too early, or for a fork */
#define LATE_NS 1000000000ull /* a change is told of: who made it needs to run for a moment */
#define FEW_CPUS 2
#define KEEP_OF_FEW 16u /* faults, up to which the lead is kept with so many CPUs */
#define TURNS 64u       /* in a row for one space, while others may wait */
#define KEY_STOP 0
#define SPARES 4u /* a child that is being filled may fork, and its child */

struct backlog {
	struct backlog *next;
	struct umm_space *space; /* with a reference */
	struct umm_fault fault;
};

struct umm_monitor {
	int epfd;
	int kick; /* eventfd: stop, or look at the backlog */
	_Atomic bool stop;
	pthread_mutex_t leader;
	pthread_mutex_t table;
	uint64_t next_key;
	unsigned nspaces, room;
	struct umm_space **spaces; /* each with a reference */
	struct backlog *backlog;
	_Atomic unsigned reading[2]; /* who reads and applies, by the turn in which they began */
	_Atomic unsigned turn;
	pthread_mutex_t settling;
	pthread_mutex_t spare_lock;
	int spare[SPARES];       /* given up when there is no other descriptor */
	struct umm_guard *guard; /* NULL: nobody is humble */
	unsigned keep;           /* faults at a time for which the lead is not given away */
	unsigned nthreads;
	pthread_t thread[MONITOR_THREADS_MAX];
};

/* What a monitor thread is doing, for umm_monitor_yield(). */
static __thread struct umm_monitor *leading;
static __thread struct umm_follow *following;

static struct umm_space *space_by_key(struct umm_monitor *m, uint64_t key)
{
	struct umm_space *found = NULL;

	pthread_mutex_lock(&m->table);
	for (unsigned i = 0; i < m->nspaces && !found; i++)
		if (m->spaces[i]->monitor_key == key)
			found = m->spaces[i];
	if (found)
		umm_space_get(found);
	pthread_mutex_unlock(&m->table);
	return found;
}

/* The @i-th of those there are now, with a reference. */
static struct umm_space *space_at(struct umm_monitor *m, unsigned i)
{
	struct umm_space *s = NULL;

	pthread_mutex_lock(&m->table);
	if (i < m->nspaces) {
		s = m->spaces[i];
		umm_space_get(s);
	}
	pthread_mutex_unlock(&m->table);
	return s;
}

static void kick(struct umm_monitor *m)
{
	uint64_t one = 1;

	while (write(m->kick, &one, sizeof(one)) < 0 && errno == EINTR)
		;
}

static void change(struct umm_space *s, const struct umm_change *c)
{
	/* The change has happened, or will whatever we say: nobody may refuse. */
	umm_invalidate_begin(s, c);
	if (s->ops && s->ops->change)
		s->ops->change(s->priv, c);
	umm_invalidate_end(s, c);
}

static void apply_event(struct umm_space *s, const struct uffd_msg *msg)
{
	struct umm_change c = {.blockable = true, .late = true};

	switch (msg->event) {
	case UFFD_EVENT_UNMAP:
		c.event = UMM_EVENT_UNMAP;
		c.start = msg->arg.remove.start;
		c.end = msg->arg.remove.end;
		break;
	case UFFD_EVENT_REMOVE:
		c.event = UMM_EVENT_CLEAR;
		c.start = msg->arg.remove.start;
		c.end = msg->arg.remove.end;
		umm_quarantine_dropping(s, c.start, c.end);
		break;
	case UFFD_EVENT_REMAP:
		c.event = UMM_EVENT_REMAP;
		c.start = msg->arg.remap.from;
		c.end = msg->arg.remap.from + msg->arg.remap.len;
		c.new_start = msg->arg.remap.to;
		break;
	case UFFD_EVENT_FORK:
		c.event = UMM_EVENT_FORK;
		c.start = 0;
		c.end = 1ull << 47;
		umm_monitor_rise(); /* it takes a while, with a lock that all faults of the space wait for */
		umm_invalidate_begin(s, &c);
		umm_invalidate_end(s, &c);
		if (s->ops && s->ops->forked)
			s->ops->forked(s->priv, (int)msg->arg.fork.ufd);
		else
			sys_close((int)msg->arg.fork.ufd);
		return;
	default:
		return;
	}
	change(s, &c);
}

static void spares_open(struct umm_monitor *m)
{
	for (unsigned i = 0; i < SPARES; i++)
		if (m->spare[i] < 0)
			m->spare[i] = open("/dev/null", O_RDONLY | O_CLOEXEC);
}

static void spare_give_up(struct umm_monitor *m)
{
	unsigned i = 0;
	int fd;

	while (i < SPARES && m->spare[i] < 0)
		i++;
	if (i == SPARES)
		return;
	/* In this order: a child that is forked in between closes what it finds here. */
	fd = m->spare[i];
	m->spare[i] = -1;
	sys_close(fd);
}

ssize_t umm_monitor_read(struct umm_monitor *m, int uffd, struct uffd_msg *msg, size_t len)
{
	ssize_t got = read(uffd, msg, len);

	if (got >= 0 || (errno != EMFILE && errno != ENFILE) || !m)
		return got;
	pthread_mutex_lock(&m->spare_lock);
	spare_give_up(m);
	got = read(uffd, msg, len);
	int err = errno;
	spares_open(m);
	errno = err;
	pthread_mutex_unlock(&m->spare_lock);
	return got;
}

struct umm_messages {
	struct uffd_msg msg[READ_ROOM];
	unsigned n, at; /* @at: the one that is being applied */
};

/* Returns how many messages came. */
static unsigned batch_read(struct umm_space *s, struct umm_messages *b)
{
	unsigned room = READ_ROOM - b->n < READ_MAX ? READ_ROOM - b->n : READ_MAX, n = 0;
	struct umm_monitor *of = s->monitor ? s->monitor : s->spares;
	ssize_t got = room ? umm_monitor_read(of, s->uffd, &b->msg[b->n], room * sizeof(b->msg[0])) : 0;

	if (got > 0)
		n = (unsigned)((size_t)got / sizeof(b->msg[0]));
	for (unsigned i = b->n; i < b->n + n; i++) {
		const struct uffd_msg *m = &b->msg[i];

		if (m->event == UFFD_EVENT_UNMAP)
			umm_quarantine_unmapping(s, m->arg.remove.start, m->arg.remove.end);
		else if (m->event == UFFD_EVENT_REMAP)
			umm_quarantine_unmapping(s, m->arg.remap.from, m->arg.remap.from + m->arg.remap.len);
	}
	b->n += n;
	return n;
}

/* For umm_monitor_settle(): returns what reading_end() is given. */
static unsigned reading_begin(struct umm_monitor *m)
{
	unsigned turn;

	if (!m)
		return 0;
	turn = atomic_load(&m->turn) & 1;
	atomic_fetch_add(&m->reading[turn], 1);
	return turn;
}

static void reading_end(struct umm_monitor *m, unsigned turn)
{
	if (m)
		atomic_fetch_sub(&m->reading[turn], 1);
}

void umm_monitor_settle(struct umm_monitor *m)
{
	pthread_mutex_lock(&m->settling);
	/* Twice: who saw a turn may be counted in it only when it is over. */
	for (unsigned i = 0; i < 2; i++) {
		unsigned old = atomic_fetch_add(&m->turn, 1) & 1;

		while (atomic_load(&m->reading[old]))
			nanosleep(&(struct timespec){.tv_nsec = 50000}, NULL);
	}
	pthread_mutex_unlock(&m->settling);
}

static bool ends_or_moves(const struct uffd_msg *m, uint64_t start, uint64_t end)
{
	switch (m->event) {
	case UFFD_EVENT_UNMAP:
		return m->arg.remove.start < end && m->arg.remove.end > start;
	case UFFD_EVENT_REMAP:
		return m->arg.remap.from < end && m->arg.remap.from + m->arg.remap.len > start;
	default:
		return false;
	}
}

static bool is_early(struct umm_space *s, const struct uffd_msg *m)
{
	return m->event == UFFD_EVENT_REMAP && s->ops && s->ops->mapped &&
	       s->ops->mapped(s->priv, m->arg.remap.to, m->arg.remap.to + m->arg.remap.len);
}

/* Message @i moves something to where something is: what comes before it is put there.  Returns whether there is such.
 */
static bool batch_overtaken(struct umm_space *s, struct umm_messages *b, unsigned i)
{
	uint64_t start = b->msg[i].arg.remap.to, end = start + b->msg[i].arg.remap.len;
	unsigned k = i + 1;

	for (unsigned tries = 0; tries < LATE_NS / 50000; tries++) {
		for (; k < b->n; k++) {
			struct uffd_msg m = b->msg[k];

			if (!ends_or_moves(&m, start, end))
				continue;
			memmove(&b->msg[i + 1], &b->msg[i], (k - i) * sizeof(m));
			b->msg[i] = m;
			return true;
		}
		/* In this order: what was under way before can be read now. */
		bool changing = umm_uffd_is_changing(s->uffd);
		if (batch_read(s, b))
			continue;
		if (!changing || b->n == READ_ROOM)
			break;
		nanosleep(&(struct timespec){.tv_nsec = 50000}, NULL);
	}
	return false;
}

/* Read once.  Events are applied; faults go to @faults.  Returns how many, and whether there may be more. */
static unsigned space_read(struct umm_space *s, struct umm_fault *faults, bool *more)
{
	struct umm_monitor *m = s->monitor;
	struct umm_messages b = {.n = 0};
	unsigned nfaults = 0, turns = 0, turn;

	*more = false;
	if (!umm_evlock_excl_unless(&s->ctl->evlock, s->gone, s->priv)) {
		/* Its agent died inside the lock.  Who killed it, or will, is the supervisor; others want to be served.
		 */
		umm_monitor_del(s);
		return 0;
	}
	turn = reading_begin(m);
	s->reading = &b;
	*more = batch_read(s, &b) == READ_MAX;
	for (unsigned i = 0; i < b.n; i++) {
		b.at = i;
		/* Each may have been overtaken in turn, but by no more than there are. */
		while (is_early(s, &b.msg[i]) && turns++ < READ_ROOM && batch_overtaken(s, &b, i))
			;
		const struct uffd_msg *msg = &b.msg[i];
		if (msg->event != UFFD_EVENT_PAGEFAULT) {
			apply_event(s, msg);
			continue;
		}
		faults[nfaults++] = (struct umm_fault){
			.addr = msg->arg.pagefault.address & ~(UMM_PAGE - 1),
			.flags = (uint32_t)msg->arg.pagefault.flags,
			.tid = msg->arg.pagefault.feat.ptid,
		};
	}
	s->reading = NULL;
	reading_end(m, turn);
	umm_evlock_unexcl(&s->ctl->evlock);
	return nfaults;
}

const struct uffd_msg *umm_space_event_behind(struct umm_space *s, unsigned *nth)
{
	struct umm_messages *b = s->reading;

	if (!b)
		return NULL;
	if (b->at + 1 + *nth >= b->n && (b->n > READ_ROOM - 2 * READ_MAX || !batch_read(s, b)))
		return NULL; /* also where there would be no room left for what comes too early */
	return &b->msg[b->at + 1 + (*nth)++];
}

static int space_fault(struct umm_space *s, const struct umm_fault *f)
{
	if (s->ops && s->ops->fault)
		return s->ops->fault(s->priv, f);
	/* Nobody keeps pages away: an absent page is a page of zeros. */
	uint64_t done;
	/* A drop is told of before both, or after both. */
	umm_evlock_shared(&s->ctl->evlock);
	int rc = umm_uffd_zeropage(s->uffd, f->addr, UMM_PAGE, &done);
	if (!rc)
		umm_quarantine_filled(s, f->addr, f->addr + UMM_PAGE);
	umm_evlock_unshared(&s->ctl->evlock);
	if (rc == -EAGAIN)
		return rc;
	if (rc)
		umm_uffd_wake(s->uffd, f->addr, UMM_PAGE);
	return 0;
}

static void backlog_push(struct umm_space *s, const struct umm_fault *f)
{
	struct umm_monitor *m = s->monitor;
	struct backlog *b = m ? umm_alloc(s, sizeof(*b)) : NULL;

	if (!b) {
		/* Whoever faulted comes again and is read again. */
		umm_uffd_wake(s->uffd, f->addr, UMM_PAGE);
		return;
	}
	b->space = s;
	b->fault = *f;
	umm_space_get(s);
	pthread_mutex_lock(&m->table);
	b->next = m->backlog;
	m->backlog = b;
	pthread_mutex_unlock(&m->table);
	kick(m);
}

void umm_space_drain(struct umm_space *s)
{
	struct umm_fault faults[READ_ROOM];
	int cancel;
	bool more;

	/* Any thread of a program may come here, and read(2) is where it can be cancelled: with the event lock. */
	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel);
	do {
		unsigned n = space_read(s, faults, &more);

		for (unsigned i = 0; i < n; i++)
			backlog_push(s, &faults[i]);
	} while (more);
	pthread_setcancelstate(cancel, NULL);
}

static void lead_drop(void)
{
	struct umm_monitor *m = leading;

	if (!m)
		return;
	leading = NULL;
	/* What takes longer is nothing for who runs where nobody else does. */
	if (following)
		umm_follow_leave(following);
	pthread_mutex_unlock(&m->leader);
}

void umm_monitor_yield(void)
{
	lead_drop();
}

void umm_monitor_rise(void)
{
	if (following)
		umm_follow_leave(following);
}

/* Serve until nothing is left; a change under way is drained in between. */
static void serve(struct umm_space *s, struct umm_fault *faults, unsigned n)
{
	struct umm_fault again[READ_ROOM];
	unsigned nagain = 0;

	for (;;) {
		for (unsigned i = 0; i < n; i++)
			if (space_fault(s, &faults[i]) == -EAGAIN)
				again[nagain++] = faults[i];
		if (!nagain)
			return;
		lead_drop(); /* it may take a while, and others want to be served */
		umm_space_drain(s);
		/* The changer must run before the kernel lets us: it may want this CPU. */
		sched_yield();
		for (unsigned i = 0; i < nagain; i++) {
			faults[i] = again[i];
			faults[i].again = true;
		}
		n = nagain;
		nagain = 0;
	}
}

static void serve_backlog(struct umm_monitor *m)
{
	for (;;) {
		struct backlog *b;

		pthread_mutex_lock(&m->table);
		b = m->backlog;
		if (b)
			m->backlog = b->next;
		pthread_mutex_unlock(&m->table);
		if (!b)
			return;
		struct umm_space *s = b->space;
		struct umm_fault fault = b->fault;

		umm_free(s, b, sizeof(*b));
		serve(s, &fault, 1);
		umm_space_put(s);
	}
}

static void *monitor_thread(void *arg)
{
	struct umm_monitor *m = arg;
	struct umm_fault faults[READ_ROOM];
	struct umm_space *next = NULL; /* to be read without being told to, with a reference */
	struct umm_follow where;
	struct epoll_event ev;
	unsigned turns = 0;
	sigset_t all;

	umm_follow_init(&where, m->guard);
	following = &where;
	sigfillset(&all);
	pthread_sigmask(SIG_BLOCK, &all, NULL);
	for (;;) {
		if (!leading) {
			pthread_mutex_lock(&m->leader);
			leading = m;
		}
		struct umm_space *s = next;
		bool at_once = s;

		next = NULL;
		if (at_once) {
			umm_follow_turn(&where);
		} else {
			umm_follow_sleeps(&where);
			int n = epoll_wait(m->epfd, &ev, 1, -1);
			umm_follow_woken(&where);

			if (atomic_load(&m->stop))
				break;
			if (n <= 0)
				continue;
			if (ev.data.u64 == KEY_STOP) {
				uint64_t count;

				if (read(m->kick, &count, sizeof(count)) < 0 && errno != EAGAIN)
					continue;
				lead_drop();
				serve_backlog(m);
				continue;
			}
			s = space_by_key(m, ev.data.u64);
			if (!s)
				continue;
			turns = 0;
		}
		bool more;
		unsigned nf = space_read(s, faults, &more);
		if (at_once)
			umm_follow_found(&where, nf);
		if (nf > 1)
			umm_follow(&where, 0);
		if (nf > m->keep || more)
			lead_drop();
		uint32_t tid = nf == 1 ? faults[0].tid : 0;
		serve(s, faults, nf);
		if (nf)
			umm_follow(&where, leading ? tid : 0);
		/* Who was woken runs before a humble thread does, and may have faulted by now; so may others of many.
		 */
		if (leading && nf && (nf > 1 || where.humble) && ++turns < TURNS)
			next = s;
		else
			umm_space_put(s);
	}
	lead_drop();
	following = NULL;
	umm_follow_end(&where);
	return NULL;
}

int umm_monitor_create(unsigned nthreads, bool alone, struct umm_monitor **mp)
{
	struct umm_monitor *m = calloc(1, sizeof(*m));
	struct epoll_event ev = {.events = EPOLLIN, .data.u64 = KEY_STOP};
	pthread_attr_t attr;
	cpu_set_t cpus;
	int rc;

	if (!m)
		return -ENOMEM;
	if (nthreads < 1)
		nthreads = 1;
	if (nthreads > MONITOR_THREADS_MAX)
		nthreads = MONITOR_THREADS_MAX;
	pthread_mutex_init(&m->leader, NULL);
	pthread_mutex_init(&m->table, NULL);
	pthread_mutex_init(&m->spare_lock, NULL);
	pthread_mutex_init(&m->settling, NULL);
	memset(m->spare, -1, sizeof(m->spare));
	spares_open(m);
	m->next_key = 1;
	m->kick = -1;
	m->epfd = epoll_create1(EPOLL_CLOEXEC);
	if (m->epfd >= 0)
		m->kick = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (m->kick < 0 || epoll_ctl(m->epfd, EPOLL_CTL_ADD, m->kick, &ev)) {
		rc = -errno;
		goto fail;
	}
	m->keep = !sched_getaffinity(0, sizeof(cpus), &cpus) && CPU_COUNT(&cpus) <= FEW_CPUS ? KEEP_OF_FEW : 1;
	if (alone)
		m->guard = umm_guard_start(m->epfd);
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, UMM_THREAD_STACK);
	for (rc = 0; !rc && m->nthreads < nthreads; m->nthreads += !rc)
		rc = -pthread_create(&m->thread[m->nthreads], &attr, monitor_thread, m);
	pthread_attr_destroy(&attr);
	if (rc)
		goto fail;
	*mp = m;
	return 0;
fail:
	umm_monitor_destroy(m);
	return rc;
}

/*
 * A thread that ends drops its stack, and sleeps until that event has been read, should the stack lie in a mapping that
 * is watched: the kernel merges it with a neighbour.  Nobody but us is left to read it.
 */
static void join(struct umm_monitor *m, pthread_t thread)
{
	while (pthread_tryjoin_np(thread, NULL)) {
		struct umm_space *s;

		/* It may still be applying a fork, which adds a space, or give one up. */
		for (unsigned i = 0; (s = space_at(m, i)); i++) {
			umm_space_drain(s);
			umm_space_put(s);
		}
		nanosleep(&(struct timespec){.tv_nsec = 50000}, NULL);
	}
}

void umm_monitor_stop(struct umm_monitor *m)
{
	sigset_t old;

	atomic_store(&m->stop, true);
	if (m->kick >= 0)
		kick(m);
	signals_block(&old); /* a handler may touch what waits for the locks that are taken here */
	for (unsigned i = 0; i < m->nthreads; i++)
		join(m, m->thread[i]);
	m->nthreads = 0;
	signals_restore(&old);
}

void umm_monitor_destroy(struct umm_monitor *m)
{
	umm_monitor_stop(m);
	if (m->guard)
		umm_guard_stop(m->guard);
	for (unsigned i = 0; i < m->nspaces; i++)
		umm_space_put(m->spaces[i]);
	while (m->backlog) {
		struct backlog *b = m->backlog;

		struct umm_space *s = b->space;

		m->backlog = b->next;
		umm_free(s, b, sizeof(*b));
		umm_space_put(s);
	}
	free(m->spaces);
	if (m->kick >= 0)
		close(m->kick);
	if (m->epfd >= 0)
		close(m->epfd);
	for (unsigned i = 0; i < SPARES; i++)
		if (m->spare[i] >= 0)
			close(m->spare[i]);
	pthread_mutex_destroy(&m->settling);
	pthread_mutex_destroy(&m->spare_lock);
	pthread_mutex_destroy(&m->table);
	pthread_mutex_destroy(&m->leader);
	free(m);
}

int umm_monitor_cpu(struct umm_monitor *m)
{
	return m->guard ? umm_guard_cpu(m->guard) : -1;
}

void umm_monitor_abandon(struct umm_monitor *m)
{
	sys_close(m->epfd);
	sys_close(m->kick);
	for (unsigned i = 0; i < SPARES; i++)
		if (m->spare[i] >= 0)
			sys_close(m->spare[i]);
}

int umm_monitor_add(struct umm_monitor *m, struct umm_space *s)
{
	sigset_t old;
	int rc = 0;

	signals_block(&old); /* a handler may wait for an event, and its reader for the table */
	pthread_mutex_lock(&m->table);
	if (m->nspaces == m->room) {
		unsigned room = m->room ? 2 * m->room : 8;
		struct umm_space **p = realloc(m->spaces, room * sizeof(*p));

		if (!p) {
			rc = -ENOMEM;
			goto out;
		}
		m->spaces = p;
		m->room = room;
	}
	s->monitor_key = m->next_key++;
	struct epoll_event ev = {.events = EPOLLIN, .data.u64 = s->monitor_key};
	if (epoll_ctl(m->epfd, EPOLL_CTL_ADD, s->uffd, &ev)) {
		rc = -errno;
		goto out;
	}
	s->monitor = m;
	umm_space_get(s);
	m->spaces[m->nspaces++] = s;
out:
	pthread_mutex_unlock(&m->table);
	signals_restore(&old);
	return rc;
}

void umm_monitor_del(struct umm_space *s)
{
	struct umm_monitor *m = s->monitor;
	bool found = false;
	sigset_t old;

	if (!m)
		return;
	signals_block(&old);
	pthread_mutex_lock(&m->table);
	for (unsigned i = 0; i < m->nspaces; i++) {
		if (m->spaces[i] != s)
			continue;
		m->spaces[i] = m->spaces[--m->nspaces];
		found = true;
		break;
	}
	if (found)
		epoll_ctl(m->epfd, EPOLL_CTL_DEL, s->uffd, NULL);
	pthread_mutex_unlock(&m->table);
	signals_restore(&old);
	if (found)
		umm_space_put(s);
}
