/* SPDX-License-Identifier: MIT */
/*
 * DOC: the supervisor
 *
 * A process of its own, sibling of the program (which can neither wait for it
 * nor close anything of its), in a session of its own.  It holds everything:
 * records, devices, userfaultfds, the threads that serve faults.  One thread,
 * this file's, deals with who comes and goes:
 *
 *   an agent signs on	a new space; or, after fork(), the one that came with the
 *			parent's FORK event, told from others by a mark that is
 *			made through its userfaultfd and looked for in the
 *			agent's page map (lives_there())
 *   a program ends	its space ends, unless others live in it (CLONE_VM); where
 *			that cannot be told, for want of descriptors, the next tick asks
 *   a program execs	the new image signs on with the same pid (or, unable to be
 *			entered, no longer shares memory with its agent): the old
 *			space ends
 *   an agent dies	and its program has not ended: the program is killed, unless
 *			the space has gone: then that ends
 *   the front dies	all programs are killed
 *   all have ended	it ends, too, if nobody is on the way (coming.c)
 *
 * Members are this thread's alone, but for what forked() adds from a monitor
 * thread: the list has a lock.
 */
#include "run/run.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/kcmp.h>
#include <poll.h>
#include <sched.h>
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
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>
#include <dirent.h>

#include "hmm/internal.h"
#include "run/coming.h"
#include "run/keeper.h"
#include "run/lines.h"
#include "run/stats.h"

#define CTL_BYTES (ARENA_CTL + ARENA_WINDOW)
#define TICK_NS 500000000l
#define COMING_NS 5000000000ull
#define LOOKS 16u /* at threads that end while they are looked at */
#define EARLY_NS 500000l
#define EARLY_TRIES 10000u

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008u
#endif

struct member;

/* What epoll calls: the first field of whatever is watched. */
struct watch {
	enum { W_LISTEN, W_FRONT, W_TICK, W_WRITTEN, W_GUEST, W_SOCK, W_PIDFD } kind;
	void *owner;
};

/* A space of the tree. */
struct member {
	struct member *next;
	struct supervisor *sup;
	struct hmm_mm *mm;
	struct watch w_sock, w_pidfd;
	_Atomic int sock;    /* agent; -1: none */
	_Atomic int pidfd;   /* program; -1: unknown (raw fork) */
	_Atomic pid_t pid;   /* program */
	_Atomic pid_t agent; /* as we see it */
	int ctl_fd;
	void *ctl_map;
	unsigned forks; /* that everything rests for; mm->out_lock */
	bool fork_said, arm_said;
	uint64_t tick;
	pthread_mutex_t advise_lock;
	_Atomic bool given_up; /* that its agent does nothing has been said */
};

/* Somebody who has connected and said nothing yet. */
struct guest {
	struct guest *next;
	struct watch w;
	int sock;
	bool strange; /* another user's */
	bool lent;    /* it was lent /dev/userfaultfd, and has yet to say hello */
};

#define GUESTS_MAX 64u
#define LOOK_FDS \
	4u /* with which it can always be seen who lives in a space: /proc, threads, one's memory, and a pidfd */

struct supervisor {
	struct run_options opt;
	struct hmm *h;
	struct lines lines;
	int epfd, listen_fd, front_fd, tick_fd;
	int written_fd; /* eventfd: figures and lines are out, or have been given up */
	struct watch w_listen, w_front, w_tick, w_written;
	uint64_t tick;
	int spare_fd, lend_fd; /* lend_fd: /dev/userfaultfd; -1: none is lent */
	int look_fd[LOOK_FDS];
	bool refused_said;
	bool signed_on; /* somebody ever did */
	pid_t front, keeper;
	char name[WIRE_NAME_MAX];
	char token[WIRE_TOKEN + 1];
	pthread_mutex_t lock; /* members */
	pthread_mutex_t ident_lock;
	struct member *members;
	struct guest *guests; /* the latest first */
	unsigned nguests;
	bool ending;        /* the front's word has come, figures and lines are being written */
	bool program_ended; /* and this is over */
	uint64_t gone_ns;   /* since when nobody is known; 0: somebody is */
	bool killing;
};

/* --------------------------------------------------------------------- help */

static void say(void *priv, const char *line)
{
	struct supervisor *s = priv;

	lines_say(&s->lines, "%s", line);
}

static bool pidfd_ended(int pidfd)
{
	struct pollfd p = {.fd = pidfd, .events = POLLIN};

	return pidfd >= 0 && poll(&p, 1, 0) == 1;
}

/*
 * What a look at /proc that has failed says: 0, there is nobody, or nobody whom we may
 * look at; -errno, we could not look, for want of descriptors or memory.  Who then
 * takes it for nobody lets go of what somebody has away.
 */
static int nobody(void)
{
	return errno == ENOENT || errno == ESRCH || errno == EACCES || errno == EPERM ? 0 : -errno;
}

/*
 * A task that has ended has none, nor has a kernel thread: to KCMP_VM all of these are in
 * the same space.  1, 0, or -errno, as all that look into /proc here.
 */
static int has_memory(pid_t tid)
{
	char path[64], first = '0';
	int fd, rc = 0;

	snprintf(path, sizeof(path), "/proc/%d/statm", (int)tid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return nobody();
	if (read(fd, &first, 1) < 0)
		rc = nobody();
	close(fd);
	return rc ? rc : first != '0';
}

static int same_memory(pid_t agent, pid_t tid)
{
	return syscall(SYS_kcmp, agent, tid, KCMP_VM, 0, 0) ? 0 : has_memory(tid);
}

/* @ended: one that was met had no memory any more; it may have made another first. */
static int thread_lives_in(pid_t agent, pid_t pid, const char *tasks, bool *ended)
{
	DIR *d = opendir(tasks);
	struct dirent *e;
	int found = 0;

	*ended = false;
	if (!d)
		return nobody();
	while (!found && (errno = 0, e = readdir(d))) {
		pid_t tid = (pid_t)atoi(e->d_name);

		if (tid <= 0 || tid == pid)
			continue;
		found = same_memory(agent, tid);
		*ended |= !found && !has_memory(tid);
	}
	if (!found && errno)
		found = nobody(); /* not all of them were seen */
	closedir(d);
	return found;
}

/*
 * A process lives in the agent's address space if any thread of it does: the
 * first one may have ended (pthread_exit in main), and has no memory any more.
 */
static int lives_in(pid_t agent, pid_t pid)
{
	char path[64];
	struct stat st;
	bool ended = true;
	int rc = same_memory(agent, pid);

	if (rc)
		return rc;
	rc = has_memory(pid);
	if (rc)
		return rc < 0 ? rc : 0; /* all of its threads have the same */
	snprintf(path, sizeof(path), "/proc/%d/task", (int)pid);
	if (stat(path, &st))
		return nobody();
	if (st.st_nlink <= 3) /* a thread is a directory: ".", "..", and one */
		return 0;
	for (unsigned i = 0; i < LOOKS && ended && !rc; i++)
		rc = thread_lives_in(agent, pid, path, &ended);
	return rc;
}

/*
 * Does another image run under the program's pid?  Who calls exec becomes its
 * process's first thread, with a memory of its own.  A first thread that has ended
 * has none, and says nothing of the others, of whom the one that lives may never be
 * met.  An agent that has died, too, is no longer in the program's space; that is
 * on_agent()'s to deal with.
 */
static bool program_left(const struct member *m)
{
	return m->agent > 0 && m->pid > 0 && syscall(SYS_kcmp, m->agent, m->pid, KCMP_VM, 0, 0) > 0 &&
	       has_memory(m->pid) > 0 && has_memory(m->agent) > 0;
}

/*
 * Every process that lives in the agent's address space, but the agent: @each, until it
 * returns false.  Returns how many, or -errno when there may be more of them.
 */
static int sharers(pid_t agent, bool (*each)(pid_t pid, void *arg), void *arg)
{
	DIR *d = opendir("/proc");
	struct dirent *e;
	int n = 0, rc = 0;

	if (!d)
		return nobody();
	while ((errno = 0, e = readdir(d))) {
		pid_t pid = (pid_t)atoi(e->d_name);

		if (pid <= 0 || pid == agent || pid == getpid())
			continue;
		int lives = lives_in(agent, pid);
		if (lives < 0)
			rc = lives;
		if (lives <= 0)
			continue;
		n++;
		if (each && !each(pid, arg))
			break;
	}
	if (!e && errno)
		rc = nobody();
	closedir(d);
	return rc ? rc : n;
}

/* For hmm_options. */
static int each_process(void *priv, struct hmm_mm *mm, bool (*each)(pid_t pid, void *arg), void *arg)
{
	struct member *m = mm->gone_priv;
	pid_t agent = atomic_load(&m->agent), pid = atomic_load(&m->pid);

	/* With an agent to compare with, whoever lives there is found, or somebody may not be looked at. */
	if (agent > 0) {
		int n = sharers(agent, each, arg);

		return n > 0 ? 0 : n ? n : -ESRCH;
	}
	if (pid <= 0)
		pid = atomic_load(&mm->space->pid);
	if (each(pid, arg) && pid > 0)
		sharers(pid, each, arg);
	return 0;
}

static bool kill_one(pid_t pid, void *arg)
{
	kill(pid, SIGKILL);
	return true;
}

static void member_kill(struct member *m)
{
	/* Who shares the space is found while somebody is left to compare with: the agent, or the program. */
	if (m->agent > 0)
		sharers(m->agent, kill_one, NULL);
	if (m->pid > 0)
		sharers(m->pid, kill_one, NULL);
	if (m->pidfd >= 0)
		syscall(SYS_pidfd_send_signal, m->pidfd, SIGKILL, NULL, 0);
	else
		hmm_mm_kill(m->mm);
}

static int watch_add(struct supervisor *s, int fd, struct watch *w)
{
	struct epoll_event ev = {.events = EPOLLIN, .data.ptr = w};

	return epoll_ctl(s->epfd, EPOLL_CTL_ADD, fd, &ev) ? -errno : 0;
}

static struct member *member_of(struct supervisor *s, struct hmm_mm *mm)
{
	struct member *m;

	pthread_mutex_lock(&s->lock);
	for (m = s->members; m && m->mm != mm; m = m->next)
		;
	pthread_mutex_unlock(&s->lock);
	return m;
}

static void fatal(void *priv, struct hmm_mm *mm, const char *why)
{
	struct supervisor *s = priv;
	struct member *m = member_of(s, mm);

	lines_say(&s->lines, "process %d must be killed: %s", (int)mm->space->pid, why);
	if (m)
		member_kill(m);
}

/* ------------------------------------------------------------------- inside */

static int inside_go(void *priv, unsigned b)
{
	struct member *m = priv;
	/* It would keep a program and who serves its faults from going on, as the reclaimer would (budget.c). */
	struct wire_msg msg = {.op = WIRE_GO, .arg = b, .start = (uint64_t)(umm_monitor_cpu(m->sup->h->monitor) + 1)};

	if (send(m->sock, &msg, sizeof(msg), MSG_NOSIGNAL) == sizeof(msg))
		return 0;
	return -ESRCH;
}

/*
 * What says that the agent is through lies in memory that the program can write:
 * whoever waits for it asks the kernel, too, whether the agent is at work.  One
 * that only sleeps, for longer than any lock is held, has nothing to do: it never
 * got the order, was stopped, or its answer was overwritten.  The program is
 * killed, or all others would wait with us.
 */
#define IDLE_NS 50000000l
#define IDLE_MOST 200u

static bool agent_sleeps(const struct member *m)
{
	char path[32], buf[128] = "", *at;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/stat", (int)m->agent);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return true;
	if (read(fd, buf, sizeof(buf) - 1) < 0)
		buf[0] = 0;
	close(fd);
	at = strrchr(buf, ')');
	return !at || (at[2] != 'R' && at[2] != 'D');
}

/* Asked every IDLE_NS: is there still something to wait for?  @idle: 0 at first; how often it has been seen asleep. */
static bool agent_works(struct member *m, unsigned *idle)
{
	if (atomic_load(&m->mm->dead))
		return false;
	*idle = agent_sleeps(m) ? *idle + 1 : 0;
	if (*idle < IDLE_MOST)
		return true;
	if (!atomic_exchange(&m->given_up, true))
		lines_say(&m->sup->lines, "the agent of process %d does not do what it is told; the process is killed",
			  (int)m->pid);
	member_kill(m);
	return false;
}

static int inside_wait(void *priv, unsigned b)
{
	struct member *m = priv;
	struct umm_batch *batch = &m->mm->space->ctl->batch[b];
	struct timespec ts = {.tv_nsec = IDLE_NS};
	unsigned idle = 0;

	while (!atomic_load(&batch->done))
		if (sys_futex_wait(&batch->done, 0, &ts) == -ETIMEDOUT && !agent_works(m, &idle))
			return -ESRCH;
	return 0;
}

static int inside_arm(void *priv)
{
	struct member *m = priv;
	struct arena a;
	int rc;

	arena_layout(&a, (char *)(uintptr_t)m->mm->keep_start);
	/*
	 * First that by which a space is told from others: who is forked in between has
	 * been told of, and must be found (find_orphan()).
	 */
	rc = umm_uffd_register(m->mm->space->uffd, (uintptr_t)a.ident, ARENA_IDENT,
			       UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP);
	if (!rc)
		rc = umm_uffd_register(m->mm->space->uffd, (uintptr_t)a.staging, ARENA_STAGING + ARENA_BELLS,
				       UFFDIO_REGISTER_MODE_MISSING);
	/* Of an address space that has just ended the kernel says ENOMEM here. */
	if (rc && rc != -ESRCH && !m->arm_said && has_memory(m->agent) > 0) {
		m->arm_said = true;
		lines_say(&m->sup->lines, "memory of process %d cannot be moved: userfaultfd refuses its staging: %s",
			  (int)m->pid, strerror(-rc));
	}
	return rc;
}

static int inside_advise(void *priv, uint64_t start, uint64_t len, int advice)
{
	struct member *m = priv;
	struct umm_ctl *ctl = m->ctl_map;
	struct wire_msg msg = {.op = WIRE_ADVISE, .arg = (uint32_t)advice, .start = start, .len = len};
	struct timespec ts = {.tv_nsec = IDLE_NS};
	unsigned idle = 0;
	uint32_t before;
	int rc = 0;

	pthread_mutex_lock(&m->advise_lock);
	before = atomic_load(&ctl->acked);
	if (send(m->sock, &msg, sizeof(msg), MSG_NOSIGNAL) != sizeof(msg))
		rc = -ESRCH;
	/* Whatever it is then: who writes there himself is answered as he says. */
	while (!rc && atomic_load(&ctl->acked) == before)
		if (sys_futex_wait(&ctl->acked, before, &ts) == -ETIMEDOUT && !agent_works(m, &idle))
			rc = -ESRCH;
	if (!rc)
		rc = atomic_load(&ctl->advised);
	pthread_mutex_unlock(&m->advise_lock);
	return rc;
}

/* Where the robust lists of threads lie, which is in their control blocks. */
struct lists {
	uint64_t *at;
	unsigned n, room;
	bool all; /* of whom we were to look at */
};

static void lists_add(struct lists *l, uint64_t at)
{
	if (l->n == l->room) {
		unsigned room = l->room ? 2 * l->room : 64;
		uint64_t *p = realloc(l->at, room * sizeof(*p));

		if (!p) {
			l->all = false;
			return;
		}
		l->at = p;
		l->room = room;
	}
	l->at[l->n++] = at;
}

/* The kernel tells of those whom we may look at. */
static bool lists_of(pid_t pid, void *lists)
{
	struct lists *l = lists;
	char path[64];
	struct dirent *e;

	snprintf(path, sizeof(path), "/proc/%d/task", (int)pid);
	DIR *d = opendir(path);
	if (!d)
		l->all &= errno == ENOENT;
	while (d && (e = readdir(d))) {
		pid_t tid = (pid_t)atoi(e->d_name);
		uint64_t head = 0;
		size_t len;

		if (tid <= 0)
			continue;
		if (syscall(SYS_get_robust_list, tid, &head, &len))
			l->all &= errno == ESRCH;
		else if (head)
			lists_add(l, head);
	}
	if (d)
		closedir(d);
	return true;
}

/*
 * Threads that no hook saw being made (a raw clone, a helper of libc's own).
 * The second net; the hook of pthread_create is the first.  And threads that
 * have ended: where many did, only those that live are pinned from here on, if
 * we can tell which.
 */
static void inside_pins(void *priv)
{
	struct member *m = priv;
	struct umm_ctl *ctl = m->ctl_map;
	struct lists l = {.all = true};

	/*
	 * Whoever holds it for as long as this has been killed: threads do not die
	 * alone in there, but a process that shares the memory can.  What it was
	 * about to enter we find, as all others.
	 */
	if (!umm_pin_lock_soon(ctl) && !umm_pin_lock_soon(ctl))
		atomic_store(&ctl->pin_lock, 1);
	bool crowded = atomic_load(&ctl->pin_used) > UMM_PIN_SLOTS / 2;

	lists_of(m->pid, &l);
	if (crowded && sharers(m->agent, lists_of, &l) < 0)
		l.all = false;
	if (crowded && l.all && l.n)
		umm_pin_clear(ctl);
	for (unsigned i = 0; i < l.n; i++)
		umm_pin_block(ctl, l.at[i]);
	umm_pin_unlock(ctl);
	free(l.at);
}

static const struct hmm_inside_ops inside_ops = {
	.pins = inside_pins, .go = inside_go, .wait = inside_wait, .arm = inside_arm, .advise = inside_advise};

/* ----------------------------------------------------------- calls from hooks */

static int64_t call_fork_begin(struct member *m)
{
	struct hmm_mm *mm = m->mm;
	int rc;

	/* Several threads may fork at a time: the first one calls everything back, the last one lets it go. */
	atomic_fetch_add(&mm->rest, 1);
	pthread_mutex_lock(&mm->out_lock); /* what is on its way out gets there first */
	rc = m->forks ? 0 : hmm_unforked_lift(mm);
	if (!rc)
		m->forks++;
	/* The child would lack what was not reached.  No end follows; but what cannot be marked again stays. */
	else if (!hmm_unforked_back(mm))
		atomic_fetch_sub(&mm->rest, 1);
	pthread_mutex_unlock(&mm->out_lock);
	if (!rc && m->sup->opt.verbose && !m->fork_said) {
		m->fork_said = true;
		lines_say(&m->sup->lines,
			  "process %d forks: without CAP_SYS_PTRACE the kernel tells nobody, so all its memory comes"
			  " back first",
			  (int)m->pid);
	}
	return rc;
}

static int64_t call_fork_end(struct member *m)
{
	atomic_store(&m->mm->forked, true);
	struct hmm_mm *mm = m->mm;
	int rc = 0;

	pthread_mutex_lock(&mm->out_lock);
	if (m->forks && !--m->forks)
		rc = hmm_unforked_back(mm);
	pthread_mutex_unlock(&mm->out_lock);
	if (rc && rc != -ESRCH) {
		/* A child by a raw fork would find zeros in what was away: nothing goes. */
		lines_say(&m->sup->lines, "memory of process %d is not moved any more: MADV_DONTFORK is refused: %s",
			  (int)m->pid, strerror(-rc));
		return 0;
	}
	atomic_fetch_sub(&mm->rest, 1);
	return 0;
}

static int64_t call_do(struct member *m, uint32_t op, uint64_t start, uint64_t len)
{
	uint64_t end = start + len;

	switch (op) {
	case UMM_CALL_UNIFORM:
		return hmm_discover(m->mm, 0, NULL, NULL);
	case UMM_CALL_HANDS_OFF:
		if (start % UMM_PAGE || len % UMM_PAGE || end < start)
			return -EINVAL;
		return hmm_hands_off(m->mm, start, end);
	case UMM_CALL_BRING_BACK:
		if (end < start)
			return -EINVAL;
		pthread_mutex_lock(&m->mm->out_lock);
		umm_quarantine_add(m->mm->space, start, end);
		int rc = hmm_restore(m->mm, start & ~(UMM_PAGE - 1), end);
		pthread_mutex_unlock(&m->mm->out_lock);
		return rc;
	case UMM_CALL_FORK_BEGIN:
		return call_fork_begin(m);
	case UMM_CALL_MARKS:
		return hmm_marks_read(m->mm);
	case UMM_CALL_FORK_END:
		return call_fork_end(m);
	default:
		return -ENOSYS;
	}
}

/* A page of the arena is there again: who touched it goes on. */
static int fill(struct hmm_mm *mm, uint64_t addr)
{
	uint64_t done;
	int rc;

	umm_evlock_shared(&mm->space->ctl->evlock);
	rc = umm_uffd_zeropage(mm->space->uffd, addr, UMM_PAGE, &done);
	if (rc && rc != -EAGAIN)
		umm_uffd_wake(mm->space->uffd, addr, UMM_PAGE);
	umm_evlock_unshared(&mm->space->ctl->evlock);
	return rc == -EAGAIN ? rc : 0;
}

struct bell {
	struct member *m;
	uint64_t addr;
	struct umm_call *call;
};

static void *answer(void *arg)
{
	struct bell *b = arg;
	struct umm_space *space = b->m->mm->space;

	b->call->ret = call_do(b->m, b->call->op, b->call->arg[0], b->call->arg[1]);
	atomic_store(&b->call->state, UMM_CALL_DONE);
	while (fill(b->m->mm, b->addr) == -EAGAIN) {
		umm_space_drain(space);
		sched_yield();
	}
	umm_space_put(space); /* and with it, maybe, the member */
	free(b);
	return NULL;
}

/*
 * A fault in the arena: a bell, or (raw fork) something that nobody expects.
 * What a bell asks for may wait for locks whose holders wait for faults to be
 * served, so it is done on a thread of its own, not on one that serves faults.
 */
static int called(void *priv, struct hmm_mm *mm, uint64_t addr)
{
	struct member *m = member_of(priv, mm);
	uint32_t state = UMM_CALL_ASKED;
	struct umm_call *call;
	struct bell *b;
	struct arena a;
	pthread_t t;

	arena_layout(&a, (char *)(uintptr_t)mm->keep_start);
	if (!m || m->sock < 0 || addr < (uintptr_t)a.bells || addr >= (uintptr_t)a.bells + ARENA_BELLS)
		return fill(mm, addr);
	call = &((struct umm_ctl *)m->ctl_map)->call[(addr - (uintptr_t)a.bells) / UMM_PAGE];
	/* Once: who is stopped (SIGSTOP) and goes on rings again, and two forks would begin where one does. */
	if (!atomic_compare_exchange_strong(&call->state, &state, UMM_CALL_TAKEN))
		return state == UMM_CALL_TAKEN ? 0 : fill(mm, addr);
	b = malloc(sizeof(*b));
	if (!b)
		goto refuse;
	*b = (struct bell){m, addr, call};
	umm_space_get(mm->space);
	umm_monitor_rise();
	if (!pthread_create(&t, NULL, answer, b)) {
		pthread_detach(t);
		return 0;
	}
	umm_space_put(mm->space);
	free(b);
refuse:
	/* Unanswered it would mean that nobody is here, and a fork would go on. */
	call->ret = -ENOMEM;
	atomic_store(&call->state, UMM_CALL_DONE);
	return fill(mm, addr);
}

/* ------------------------------------------------------------------ members */

/* The space's last user is gone. */
static void member_gone(void *priv)
{
	struct member *m = priv;

	munmap(m->ctl_map, CTL_BYTES);
	close(m->ctl_fd);
	if (m->pidfd >= 0)
		close(m->pidfd);
	if (m->sock >= 0)
		close(m->sock);
	free(m);
}

/* @arena: where it lies in the space; who looks for its own there knows it from the first moment. */
static int member_create(struct supervisor *s, uint64_t arena, int uffd, int pagemap, int maps, struct member **mp)
{
	struct member *m = calloc(1, sizeof(*m));
	struct umm_space *space;
	struct umm_ctl *ctl;
	struct arena a;
	int rc;

	if (!m) {
		rc = -ENOMEM;
		goto close_fds;
	}
	m->sup = s;
	m->sock = m->pidfd = -1;
	pthread_mutex_init(&m->advise_lock, NULL);
	m->ctl_fd = memfd_create("hmm-control", MFD_CLOEXEC | MFD_NOEXEC_SEAL);
	/* The program has it, too: cut short by it, it would be our SIGBUS, and with us the end of all others. */
	if (m->ctl_fd < 0 || ftruncate(m->ctl_fd, (off_t)CTL_BYTES) ||
	    fcntl(m->ctl_fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)) {
		rc = -errno;
		goto free_m;
	}
	m->ctl_map = mmap(NULL, CTL_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, m->ctl_fd, 0);
	if (m->ctl_map == MAP_FAILED) {
		rc = -errno;
		goto free_m;
	}
	ctl = m->ctl_map;
	ctl->magic = UMM_CTL_MAGIC;
	rc = umm_space_adopt(0, uffd, pagemap, maps, ctl, &space);
	if (rc) {
		uffd = pagemap = maps = -1;
		goto unmap;
	}
	m->mm = hmm_mm_new(s->h, space, (char *)m->ctl_map + ARENA_CTL, NULL, m);
	if (!m->mm) {
		umm_space_put(space);
		uffd = pagemap = maps = -1;
		rc = -ENOMEM;
		goto unmap;
	}
	m->mm->gone = member_gone;
	m->mm->gone_priv = m;
	m->mm->window_fd = m->ctl_fd;
	arena_layout(&a, (char *)(uintptr_t)arena);
	m->mm->keep_start = (uintptr_t)a.base;
	m->mm->keep_end = (uintptr_t)a.base + a.len;
	hmm_mm_publish(m->mm); /* who goes through the list finds it as it is */
	ctl->space_id = m->mm->id;
	m->w_sock = (struct watch){W_SOCK, m};
	m->w_pidfd = (struct watch){W_PIDFD, m};
	pthread_mutex_lock(&s->lock);
	m->next = s->members;
	s->members = m;
	pthread_mutex_unlock(&s->lock);
	*mp = m;
	return 0;
unmap:
	munmap(m->ctl_map, CTL_BYTES);
free_m:
	if (m->ctl_fd >= 0)
		close(m->ctl_fd);
	free(m);
close_fds:
	if (uffd >= 0)
		close(uffd);
	if (pagemap >= 0)
		close(pagemap);
	if (maps >= 0)
		close(maps);
	return rc;
}

/* The space ends; its agent, if it has one, is sent away. */
static void member_end(struct member *m)
{
	struct supervisor *s = m->sup;
	struct wire_msg bye = {.op = WIRE_BYE};

	pthread_mutex_lock(&s->lock);
	for (struct member **p = &s->members; *p; p = &(*p)->next) {
		if (*p != m)
			continue;
		*p = m->next;
		break;
	}
	pthread_mutex_unlock(&s->lock);
	if (m->sock >= 0) {
		epoll_ctl(s->epfd, EPOLL_CTL_DEL, m->sock, NULL);
		send(m->sock, &bye, sizeof(bye), MSG_NOSIGNAL | MSG_DONTWAIT);
	}
	if (m->pidfd >= 0)
		epoll_ctl(s->epfd, EPOLL_CTL_DEL, m->pidfd, NULL);
	hmm_mm_del(m->mm);
}

/* Called with the event lock of the parent held, from a monitor thread. */
static int forked(void *priv, struct hmm_mm *parent, int uffd, struct hmm_mm **child)
{
	struct supervisor *s = priv;
	struct member *m;
	int own = fcntl(uffd, F_DUPFD_CLOEXEC, 0);
	int rc = own < 0 ? -errno : member_create(s, parent->keep_start, own, -1, -1, &m);

	if (rc) {
		/* Said first: the child may be dead of it before we run on. */
		lines_say(&s->lines,
			  "a forked child of process %d cannot be served: %s; what was away is lost to it, an access"
			  " gets SIGBUS",
			  (int)parent->space->pid, strerror(-rc));
		if (!hmm_lost_to_child(parent, uffd))
			close(uffd);
		else /* the descriptor stays open, or the child would read zeros */
			lines_say(&s->lines, "a forked child of process %d hangs at what was away, and must be killed",
				  (int)parent->space->pid);
		return rc;
	}
	close(uffd);
	m->mm->space->features = parent->space->features;
	m->mm->space->gone = NULL;
	atomic_store(&m->mm->armed, true);
	*child = m->mm;
	return 0;
}

/* --------------------------------------------------------------------- hello */

static bool agent_is_gone(void *priv)
{
	struct hmm_mm *mm = priv;
	struct member *m = mm->gone_priv;
	struct pollfd p = {.fd = m->sock};

	return m->sock >= 0 && poll(&p, 1, 0) == 1 && (p.revents & (POLLHUP | POLLERR));
}

static int proc_fd(pid_t pid, const char *what)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/%s", (int)pid, what);
	return open(path, O_RDONLY | O_CLOEXEC);
}

#define PAGEMAP_UFFD_WP 57

static bool page_is_marked(int pagemap, uint64_t addr)
{
	uint64_t e;

	return pread(pagemap, &e, sizeof(e), (off_t)(addr / UMM_PAGE * sizeof(e))) == sizeof(e) &&
	       e >> PAGEMAP_UFFD_WP & 1;
}

/*
 * Does who has this page map live in @mm?  A page of the arena is marked by the
 * space's descriptor, and unmarked: whose page map shows both lives there (a mark
 * alone may have come from a parent).  One question at a time, or it might be
 * another's answer.  1, 0, or -errno; -EAGAIN: a change of the space is under way.
 */
static int lives_there(struct supervisor *s, struct hmm_mm *mm, int pagemap)
{
	static const char page[UMM_PAGE] __attribute__((aligned(4096)));
	int uffd = mm->space->uffd, rc, lives;
	struct arena a;
	uint64_t at, done;

	arena_layout(&a, (char *)(uintptr_t)mm->keep_start);
	at = (uintptr_t)a.ident;
	pthread_mutex_lock(&s->ident_lock);
	rc = umm_uffd_copy(uffd, at, page, UMM_PAGE, &done);
	if (!rc || rc == -EEXIST)
		rc = umm_uffd_writeprotect(uffd, at, UMM_PAGE);
	if (!rc) {
		lives = page_is_marked(pagemap, at);
		rc = umm_uffd_writeunprotect(uffd, at, UMM_PAGE);
		if (!rc)
			rc = lives && !page_is_marked(pagemap, at);
	}
	pthread_mutex_unlock(&s->ident_lock);
	return rc;
}

static int task_lives_in(void *priv, struct hmm_mm *mm, pid_t tid)
{
	int fd = mm->keep_start ? proc_fd(tid, "pagemap") : -1, rc;

	if (fd < 0)
		return 0;
	rc = lives_there(priv, mm, fd);
	close(fd);
	return rc;
}

/*
 * The forked space in which who has this page map lives; NULL: none.
 *
 * One whose records are not complete may be it: who it is can be asked when they are.
 */
static struct member *find_orphan(struct supervisor *s, const struct wire_hello *hello, int pagemap)
{
	struct member *found = NULL;
	struct umm_space *busy;
	unsigned waits = 0;
	bool early;

	/*
	 * Fork has returned, so its event has been read, and when what was read has
	 * been applied there is the member.  Of whichever space, also of one that has
	 * ended since: who forks in a process that came by a raw clone, and has no
	 * agent, takes that one's parent for its own.
	 */
	umm_monitor_settle(s->h->monitor);
	do {
		busy = NULL;
		early = false;
		pthread_mutex_lock(&s->lock);
		for (struct member *m = s->members; m && !found && !busy; m = m->next) {
			int rc;

			if (m->sock >= 0 || m->mm->keep_start != hello->arena || atomic_load(&m->mm->doomed))
				continue;
			if (!atomic_load(&m->mm->ready)) {
				early = true;
				continue;
			}
			rc = lives_there(s, m->mm, pagemap);
			if (rc > 0) {
				found = m;
			} else if (rc == -EAGAIN) {
				busy = m->mm->space;
				umm_space_get(busy);
			}
		}
		pthread_mutex_unlock(&s->lock);
		if (busy) {
			/* Without the lock: it may be a fork of its own, which adds a member. */
			umm_space_drain(busy);
			umm_space_put(busy);
		}
		early &= !found && !busy && ++waits < EARLY_TRIES;
		if (early)
			nanosleep(&(struct timespec){.tv_nsec = EARLY_NS}, NULL);
	} while (busy || early);
	return found;
}

/* In as much time whatever it is: how long a wrong one takes to be found wrong says nothing of the right one. */
static bool is_token(const struct supervisor *s, const char *said)
{
	unsigned differ = 0;

	for (unsigned i = 0; i < WIRE_TOKEN; i++)
		differ |= (unsigned)(s->token[i] ^ said[i]);
	return !differ;
}

static int give_fds(int sock, const int fds[], int n)
{
	struct wire_welcome w = {.magic = WIRE_MAGIC};
	char control[CMSG_SPACE(2 * sizeof(int))] = {0};
	struct iovec iov = {&w, sizeof(w)};
	struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control};

	msg.msg_controllen = CMSG_SPACE((size_t)n * sizeof(int));
	struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN((size_t)n * sizeof(int));
	memcpy(CMSG_DATA(c), fds, (size_t)n * sizeof(int));
	/* Whoever does not read keeps nobody else waiting. */
	return sendmsg(sock, &msg, MSG_NOSIGNAL | MSG_DONTWAIT) < 0 ? -errno : 0;
}

static int welcome(struct member *m, int uffd)
{
	return give_fds(m->sock, (int[]){m->ctl_fd, uffd}, uffd >= 0 ? 2 : 1);
}

/* Its program may make no userfaultfd.  0: it may now, and will say hello. */
static int lend(struct supervisor *s, int sock, const struct wire_lend *ask)
{
	struct ucred cred;
	socklen_t len = sizeof(cred);

	if (!is_token(s, ask->token))
		return -EACCES;
	if (s->lend_fd >= 0)
		return give_fds(sock, &s->lend_fd, 1);
	/* A child of who has changed its user is in the tree, and served, by its parent's. */
	if (!ask->parent && !s->refused_said && !getsockopt(sock, SOL_SOCKET, SO_PEERCRED, &cred, &len)) {
		s->refused_said = true;
		lines_say(&s->lines,
			  "a program of user %u may use no userfaultfd and runs without a budget: "
			  "--lend-userfaultfd lends it one, see hmm-run(1); others are not told of",
			  (unsigned)cred.uid);
	}
	return -EPERM;
}

static bool note_pid(pid_t pid, void *arg)
{
	*(pid_t *)arg = pid;
	return true;
}

/* What is kept for a look: what it was taken by in the meantime it is had back from when there is something. */
static void look_fds_open(struct supervisor *s)
{
	for (unsigned i = 0; i < LOOK_FDS; i++)
		if (s->look_fd[i] < 0)
			s->look_fd[i] = open("/dev/null", O_RDONLY | O_CLOEXEC);
}

static void look_fds_close(struct supervisor *s)
{
	for (unsigned i = 0; i < LOOK_FDS; i++) {
		if (s->look_fd[i] >= 0)
			close(s->look_fd[i]);
		s->look_fd[i] = -1;
	}
}

static int inherit(struct member *m)
{
	pid_t heir = 0;
	int pidfd, rc;

	while ((rc = sharers(m->agent, note_pid, &heir)) > 0) {
		pidfd = (int)syscall(SYS_pidfd_open, heir, 0);
		/* Opened first, compared then: the pid may have become another's in between. */
		rc = pidfd < 0 ? nobody() : lives_in(m->agent, heir);
		if (rc <= 0) {
			if (pidfd >= 0)
				close(pidfd);
			if (rc)
				return rc;
			continue;
		}
		if (m->pidfd >= 0)
			epoll_ctl(m->sup->epfd, EPOLL_CTL_DEL, m->pidfd, NULL);
		rc = umm_fd_replace(&m->pidfd, pidfd);
		if (rc)
			return rc;
		m->pid = m->mm->space->pid = heir;
		watch_add(m->sup, m->pidfd, &m->w_pidfd); /* or else a tick sees its end */
		return 1;
	}
	return rc;
}

/*
 * The program has left the space.  Does another process live in it (CLONE_VM)?  Then the space
 * is that one's now, and 1 is returned; 0: nobody does; -errno: that cannot be told now.
 *
 * That there is no descriptor left must not keep it from being told: mostly it is the spaces of
 * who has ended that have them.
 */
static int member_inherit(struct member *m)
{
	int rc;

	if (!atomic_load(&m->mm->armed) || m->agent <= 0)
		return 0;
	rc = inherit(m);
	if (rc != -EMFILE && rc != -ENFILE)
		return rc;
	look_fds_close(m->sup);
	rc = inherit(m);
	look_fds_open(m->sup);
	return rc;
}

/* -errno: who else lives where @pid did cannot be told now; the next tick asks again. */
static int exec_happened(struct supervisor *s, pid_t pid)
{
	struct member *old;

	/* A pid names one program: whoever had it before has become this one. */
	for (;;) {
		pthread_mutex_lock(&s->lock);
		for (old = s->members; old && (old->pid != pid || old->sock < 0); old = old->next)
			;
		pthread_mutex_unlock(&s->lock);
		if (!old)
			return 0;
		int rc = member_inherit(old);
		if (rc < 0)
			return rc;
		if (!rc)
			member_end(old);
		else if (old->pid == pid)
			return 0; /* it lives there as before */
	}
}

/*
 * The process that @pidfd, which the guest sent, stands for: only one that
 * lives in the guest's own address space, as the kernel says, will do.  -1: it
 * has ended already; -EACCES: it is another's.
 */
static pid_t program_of(pid_t agent, int pidfd)
{
	char path[64], line[128];
	int pid = -1, rc;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", pidfd);
	FILE *f = fopen(path, "r");
	bool is_pidfd = false;
	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "Pid: %d", &pid) == 1)
			is_pidfd = true;
	if (f)
		fclose(f);
	if (!is_pidfd)
		return -EACCES;
	if (pid <= 0 || pidfd_ended(pidfd))
		return -1;
	rc = lives_in(agent, pid);
	if (rc)
		return rc < 0 ? rc : pid;
	return pidfd_ended(pidfd) ? -1 : -EACCES;
}

/* Ours to open, lest the guest show us another's; who we may not look at shows us its own, and can fool nobody else. */
static void take_proc_fd(const struct ucred *guest, const char *what, int *fd)
{
	int own = proc_fd(guest->pid, what);

	if (own < 0 && guest->uid == getuid())
		return;
	if (*fd >= 0)
		close(*fd);
	*fd = own;
}

/*
 * Another user's userfaultfd is that of the address space whose page map we have opened, as the
 * number says that its connection was made by: that process may be somebody else by now, who has
 * come by its number or become a set-user-id program, and is nobody that the guest may have looked
 * at or killed.  0, or -errno.
 */
static int guest_is_itself(struct supervisor *s, struct hmm_mm *mm)
{
	struct arena a;
	int rc;

	arena_layout(&a, (char *)(uintptr_t)mm->keep_start);
	rc = umm_uffd_register(mm->space->uffd, (uintptr_t)a.ident, ARENA_IDENT,
			       UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP);
	if (rc)
		return rc;
	for (unsigned i = 0; (rc = lives_there(s, mm, mm->space->pagemap_fd)) == -EAGAIN && i < LOOKS; i++) {
		umm_space_drain(mm->space);
		sched_yield();
	}
	/* Something else is mapped there soon, which nobody need be told of. */
	umm_uffd_unregister(mm->space->uffd, (uintptr_t)a.ident, ARENA_IDENT);
	return rc > 0 ? 0 : rc ? rc : -EACCES;
}

static int agent_signs_on(struct supervisor *s, int sock, const struct wire_hello *hello, int fds[4])
{
	struct ucred cred;
	socklen_t len = sizeof(cred);
	struct member *m = NULL;
	int rc, adopted = -1;
	pid_t pid;

	if (!is_token(s, hello->token) || !keeper_is_userfaultfd(fds[0]))
		return -EACCES;
	if (getsockopt(sock, SOL_SOCKET, SO_PEERCRED, &cred, &len))
		return -errno;
	pid = program_of(cred.pid, fds[3]);
	if (pid < -1)
		return pid;
	if (s->killing) {
		/* It was on its way when all others were killed. */
		syscall(SYS_pidfd_send_signal, fds[3], SIGKILL, NULL, 0);
		return -EACCES;
	}
	/* In this order: whose page map is looked at lived there already when the other was opened. */
	take_proc_fd(&cred, "maps", &fds[2]);
	take_proc_fd(&cred, "pagemap", &fds[1]);
	/* What ran under this pid before has become the program that says hello. */
	rc = pid > 0 && !hello->parent ? exec_happened(s, pid) : 0;
	if (rc)
		return rc;
	if (hello->parent)
		m = find_orphan(s, hello, fds[1]);
	if (m) {
		close(fds[0]);
		umm_fd_replace(&m->mm->space->pagemap_fd, fds[1]);
		umm_fd_replace(&m->mm->space->maps_fd, fds[2]);
		adopted = m->mm->space->uffd;
	} else {
		uint64_t got;

		/* Who reads it must not be kept waiting there. */
		if (fcntl(fds[0], F_SETFL, O_NONBLOCK))
			return -errno;
		rc = umm_uffd_api(fds[0], UMM_UFFD_BASE, UFFD_FEATURE_EVENT_FORK, &got);
		if (rc)
			return rc;
		rc = member_create(s, hello->arena, fds[0], fds[1], fds[2], &m);
		fds[0] = fds[1] = fds[2] = -1;
		if (rc)
			return rc;
		m->mm->space->features = got;
		if (!(got & UFFD_FEATURE_EVENT_FORK))
			atomic_store(&((struct umm_ctl *)m->ctl_map)->no_fork_events, 1);
		rc = umm_monitor_add(s->h->monitor, m->mm->space);
		if (!rc && cred.uid != getuid())
			rc = guest_is_itself(s, m->mm);
		if (rc) {
			member_end(m);
			return rc;
		}
	}
	fds[0] = fds[1] = fds[2] = -1;
	m->pid = m->mm->space->pid = pid;
	m->agent = cred.pid;
	pthread_mutex_lock(&m->mm->lock); /* learn_pid() */
	atomic_store(&m->mm->pid_learned, false);
	atomic_store(&m->mm->pid_ended, false);
	umm_fd_replace(&m->mm->stat_fd, proc_fd(pid, "stat"));
	umm_fd_replace(&m->mm->statm_fd, proc_fd(cred.pid, "statm"));
	umm_fd_replace(&m->mm->rollup_fd, proc_fd(cred.pid, "smaps_rollup"));
	umm_fd_replace(&m->mm->smaps_fd, proc_fd(cred.pid, "smaps"));
	pthread_mutex_unlock(&m->mm->lock);
	m->pidfd = fds[3];
	fds[3] = -1;
	m->sock = sock;
	if (hello->parent)
		atomic_store(&m->mm->forked, true); /* what it has it shares */
	if (adopted >= 0) {
		/* Before the program goes on: from its first call its hooks must tell what a child of it inherits. */
		inside_arm(m);
		atomic_store(&m->mm->space->ctl->armed, 1);
		if (!m->mm->marks_known)
			hmm_marks_read(m->mm);
	}
	rc = watch_add(s, m->sock, &m->w_sock);
	if (rc) {
		m->sock = -1;
		return rc;
	}
	rc = welcome(m, adopted);
	if (rc) {
		epoll_ctl(s->epfd, EPOLL_CTL_DEL, m->sock, NULL);
		m->sock = -1;
		return rc;
	}
	if (m->pidfd >= 0)
		watch_add(s, m->pidfd, &m->w_pidfd); /* or else a tick sees its end */
	s->signed_on = true;
	m->mm->inside_priv = m;
	m->mm->space->gone = agent_is_gone;
	atomic_store(&m->mm->inside, &inside_ops); /* whoever sees it sees what was set before */
	return 0;
}

/*
 * Everything comes back and stays.  A child that was forked meanwhile has what had
 * not yet come back to its parent: as long as any had something, there may be one
 * that was not on the list.
 */
static int restore_all(struct hmm *h, uint64_t *lost)
{
	uint64_t poisoned = atomic_load(&h->poisoned);
	uint32_t done = 0, latest = 0;
	bool again = true;
	int failed = 0;

	atomic_store(&h->resting, true);
	while (again) {
		struct hmm_mm **list;
		int n = hmm_mms_get(h, &list);

		if (n < 0)
			return n;
		umm_monitor_settle(h->monitor); /* the records of those on the list are complete */
		again = false;
		for (int i = 0; i < n; i++) {
			struct hmm_mm *mm = list[i];

			if (mm->id <= done)
				continue;
			latest = mm->id > latest ? mm->id : latest;
			again |= atomic_load(&mm->radix.away) > 0;
			atomic_fetch_add(&mm->rest, 1);
			pthread_mutex_lock(&mm->out_lock); /* what is on its way out gets there first */
			int rc = hmm_restore(mm, 0, 1ull << 47);
			pthread_mutex_unlock(&mm->out_lock);
			if (rc && rc != -ESRCH) /* what has ended has nothing away */
				failed = rc;
		}
		done = latest;
		hmm_mms_put(list, (unsigned)n);
	}
	*lost = atomic_load(&h->poisoned) - poisoned;
	return failed;
}

#define STAT_CHUNK 16384u
#define STAT_SECONDS 10

struct stat_job {
	struct supervisor *s;
	int sock;
	uint32_t what;
};

/*
 * On a thread of its own: the tree must be served meanwhile, however long it
 * takes or the client does not read.  The text is complete before any of it is
 * sent, no lock may be held for a client; and a packet takes no more than fits
 * a socket's buffer.
 */
static void *stat_main(void *arg)
{
	struct stat_job *job = arg;
	struct hmm *h = job->s->h;
	char *text = NULL;
	size_t len = 0, at = 0;
	uint64_t lost = 0;
	int rc = job->what == WIRE_STAT_RESTORE ? restore_all(h, &lost) : 0;
	FILE *f = open_memstream(&text, &len);

	if (f) {
		if (rc)
			fprintf(f, "%cnot all has come back: %s\n", WIRE_STAT_FAILED, strerror(-rc));
		else if (lost)
			fprintf(f, "%c%" PRIu64 " pages are lost: no device can give them back\n", WIRE_STAT_FAILED,
				lost);
		else
			stats_json(h, f);
		if (fclose(f))
			len = 0;
	}
	while (at < len) {
		ssize_t n = send(job->sock, text + at, len - at < STAT_CHUNK ? len - at : STAT_CHUNK, MSG_NOSIGNAL);

		if (n <= 0)
			break;
		at += (size_t)n;
	}
	free(text);
	close(job->sock);
	free(job);
	return NULL;
}

static void stat_client(struct supervisor *s, int sock, const struct wire_stat *q)
{
	struct ucred cred;
	socklen_t len = sizeof(cred);
	struct stat_job *job = NULL;
	pthread_t t;

	if (getsockopt(sock, SOL_SOCKET, SO_PEERCRED, &cred, &len) || (cred.uid && cred.uid != getuid()))
		goto refuse;
	job = malloc(sizeof(*job));
	if (!job)
		goto refuse;
	*job = (struct stat_job){s, sock, q->what};
	/* Who does not read what it asked for is not waited for. */
	setsockopt(sock, SOL_SOCKET, SO_SNDTIMEO, &(struct timeval){.tv_sec = STAT_SECONDS}, sizeof(struct timeval));
	if (pthread_create(&t, NULL, stat_main, job))
		goto refuse;
	pthread_detach(t);
	return;
refuse:
	free(job);
	close(sock);
}

static void guest_forget(struct supervisor *s, struct guest *g);

/* First words of a connection. */
static void guest_speaks(struct supervisor *s, struct guest *g)
{
	union {
		uint32_t magic;
		struct wire_hello hello;
		struct wire_stat stat;
		struct wire_lend lend;
	} in = {0};
	char control[CMSG_SPACE(4 * sizeof(int))] = {0};
	struct iovec iov = {&in, sizeof(in)};
	struct msghdr msg = {
		.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control)};
	int fds[4] = {-1, -1, -1, -1}, sock = g->sock, nfds = 0;
	ssize_t n = recvmsg(sock, &msg, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);

	if (n == sizeof(in.lend) && in.magic == WIRE_LEND_MAGIC && !msg.msg_controllen && !g->lent &&
	    !lend(s, sock, &in.lend)) {
		g->lent = true; /* once */
		return;
	}
	epoll_ctl(s->epfd, EPOLL_CTL_DEL, sock, NULL);
	for (struct cmsghdr *c = n > 0 ? CMSG_FIRSTHDR(&msg) : NULL; c; c = CMSG_NXTHDR(&msg, c)) {
		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		nfds = (int)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
		memcpy(fds, CMSG_DATA(c), (size_t)nfds * sizeof(int));
	}
	if (n == sizeof(in.stat) && in.magic == WIRE_STAT_MAGIC) {
		stat_client(s, sock, &in.stat);
	} else if (n == sizeof(in.hello) && in.magic == WIRE_MAGIC && nfds == 4) {
		if (agent_signs_on(s, sock, &in.hello, fds))
			close(sock);
	} else {
		close(sock);
	}
	for (int i = 0; i < 4; i++)
		if (fds[i] >= 0)
			close(fds[i]);
	guest_forget(s, g);
}

/* -------------------------------------------------------------------- events */

static void guest_forget(struct supervisor *s, struct guest *g)
{
	struct guest **p = &s->guests;

	while (*p != g)
		p = &(*p)->next;
	*p = g->next;
	s->nguests--;
	free(g);
}

static void on_listen(struct supervisor *s)
{
	int sock = accept4(s->listen_fd, NULL, NULL, SOCK_CLOEXEC);

	if (sock < 0 && (errno == EMFILE || errno == ENFILE) && s->spare_fd >= 0) {
		/* Out of descriptors: whoever knocks is turned away, or its program would wait for ever. */
		close(s->spare_fd);
		sock = accept4(s->listen_fd, NULL, NULL, SOCK_CLOEXEC);
		if (sock >= 0)
			close(sock);
		s->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
		return;
	}
	struct guest *g = sock >= 0 ? calloc(1, sizeof(*g)) : NULL;

	if (!g) {
		if (sock >= 0)
			close(sock);
		return;
	}
	struct ucred cred = {.uid = (uid_t)-1};
	getsockopt(sock, SOL_SOCKET, SO_PEERCRED, &cred, &(socklen_t){sizeof(cred)});
	g->sock = sock;
	g->strange = cred.uid && cred.uid != getuid();
	g->w = (struct watch){W_GUEST, g};
	g->next = s->guests;
	s->guests = g;
	s->nguests++;
	if (watch_add(s, sock, &g->w)) {
		/* Not heard, its program would wait for ever. */
		close(sock);
		guest_forget(s, g);
		return;
	}
	if (s->nguests > GUESTS_MAX) {
		/*
		 * Who has been silent for longest must be somebody who only takes up
		 * room; another user first, be it that what has given up its rights has an agent.
		 */
		struct guest *last = NULL;

		for (g = s->guests; g; g = g->next)
			if (!last || g->strange >= last->strange)
				last = g;
		close(last->sock);
		guest_forget(s, last);
	}
}

/* -errno: who else lives there cannot be told now; the next tick asks again. */
static int on_program_end(struct member *m)
{
	int rc;

	if (!pidfd_ended(m->pidfd))
		return 0;
	rc = member_inherit(m);
	if (!rc)
		member_end(m);
	if (rc >= 0)
		return 0;
	epoll_ctl(m->sup->epfd, EPOLL_CTL_DEL, m->pidfd, NULL); /* it would call without end */
	return rc;
}

/* Asks the userfaultfd: any call that needs the address space will say. */
static bool memory_is_gone(struct member *m)
{
	static const char page[UMM_PAGE] __attribute__((aligned(4096)));
	struct arena a;
	uint64_t done;
	int rc;

	arena_layout(&a, (char *)(uintptr_t)m->mm->keep_start);
	rc = umm_uffd_copy(m->mm->space->uffd, (uintptr_t)a.ident, page, UMM_PAGE, &done);
	return rc == -ESRCH || rc == -ENOTTY; /* there is none any more, or it was let go of */
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
	ended = pidfd_ended(m->pidfd) || !atomic_load(&m->mm->armed) || memory_is_gone(m);
	if (!ended && m->pid > 0) {
		lines_say(&m->sup->lines, "the agent of process %d died; the process is killed", (int)m->pid);
		member_kill(m);
		return; /* its pidfd tells when it is dead */
	}
	if (ended)
		member_end(m);
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
				f = fopen(s->opt.stats_path, "w");
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
		for (m = s->members; m && (m->pid <= 0 || !pidfd_ended(m->pidfd)); m = m->next)
			;
		pthread_mutex_unlock(&s->lock);
	} while (m && !on_program_end(m));
}

static void on_front(struct supervisor *s)
{
	pthread_t t;
	char c;
	ssize_t n = recv(s->front_fd, &c, 1, 0);

	if (n == 1 && !s->ending) {
		s->ending = true;
		if (c == RUN_PROGRAM_ENDED && !s->signed_on)
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

/* The program has ended; descendants may live on, and must not be held up by what we hold open. */
static void on_written(struct supervisor *s)
{
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);
	char c;

	epoll_ctl(s->epfd, EPOLL_CTL_DEL, s->written_fd, NULL);
	if (s->front_fd >= 0) {
		reap_ended(s);
		c = all_gone(s) ? RUN_ALL_GONE : RUN_OTHERS_LIVE;
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
		if (!pidfd_ended(m->pidfd))
			return false;
		return m->pid > 0 || !sharers(m->agent, NULL, NULL);
	}
	/* A child that ends while its records are being made is looked at when they are: who makes them uses it. */
	if (!atomic_load(&m->mm->ready))
		return false;
	return memory_is_gone(m); /* no agent, no pid */
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
		if (m->pid <= 0 || m->sock < 0 || pidfd_ended(m->pidfd) || program_left(m))
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

static void on_tick(struct supervisor *s)
{
	struct member *m;
	uint64_t count;

	if (read(s->tick_fd, &count, sizeof(count)) < 0)
		return;
	s->tick++;
	look_at_keeper(s);
	/* Whoever knocked when there was none took it, or another thread did. */
	if (s->spare_fd < 0)
		s->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
	look_fds_open(s);
	while ((m = tick_next(s))) {
		if (s->killing)
			member_kill(m);
		if (m->agent > 0 && m->pid > 0 && !pidfd_ended(m->pidfd))
			exec_happened(s, m->pid); /* another image, which could not be entered, runs under its pid */
		else if (m->sock >= 0 && pidfd_ended(m->pidfd))
			on_program_end(m);
		else if (space_is_dead(m))
			member_end(m);
	}
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
		.forked = forked,
		.called = called,
		.lives_in = task_lives_in,
		.processes = each_process,
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
	rc = lines_start(&s->lines);
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

	while (!s->program_ended || !all_gone(s)) {
		if (epoll_wait(s->epfd, &ev, 1, -1) != 1)
			continue;
		struct watch *w = ev.data.ptr;
		switch (w->kind) {
		case W_LISTEN:
			on_listen(s);
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
	/* Nothing of the caller's may be held open by us: somebody may wait for its end. */
	if (dup2(front_fd, 3) == 3) {
		front_fd = 3;
		syscall(SYS_close_range, 4, ~0u, 0);
	}
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
		look_fds_open(s);
		ready.rc = start(s, err, sizeof(err));
		memcpy(ready.name, s->name, sizeof(ready.name));
		memcpy(ready.token, s->token, sizeof(ready.token));
	}
	if (ready.rc)
		fprintf(stderr, "hmm: %s\n", err);
	if (send(front_fd, &ready, sizeof(ready), MSG_NOSIGNAL) == sizeof(ready) && !ready.rc) {
		loop(s);
		if (s->killing)
			coming_kill(s->name, s->token); /* who was not entered */
		lines_flush(&s->lines);
	}
	if (s && s->keeper > 0)
		keeper_end(s->keeper);
	_exit(ready.rc ? 1 : 0);
}
