/* SPDX-License-Identifier: MIT */
/*
 * What an agent is told to do, and how long it is waited for: the engine's hands
 * in an address space that is not ours (struct hmm_inside_ops).
 */
#include "run/supervisor.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

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
 * got the order, or its answer was overwritten.  The program is killed, or all
 * others would wait with us.
 *
 * Not so of one that cannot run: it is traced or stopped, it is in a control group
 * that is frozen, or it waits for the event lock while a child is given what was
 * away, which takes as long as there is much of it.  It goes on some time, and is
 * waited for; and as long as it is held up so it is not told to do anything.
 * Whom it is held up by may take as long as they like: after a while the programs
 * go on above the budget meanwhile, without waiting for room that nobody makes.
 */
#define IDLE_NS 50000000l
#define IDLE_MOST 200u

/* Its state as ps(1) has it; 0: it is gone; '?': we cannot look, for want of descriptors or memory. */
static char agent_state(const struct member *m)
{
	char path[32], buf[128] = "", *at;
	ssize_t n;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/stat", (int)m->agent);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return lives_nobody() ? '?' : 0;
	n = read(fd, buf, sizeof(buf) - 1);
	if (n < 0)
		buf[0] = 0;
	close(fd);
	at = strrchr(buf, ')');
	return at ? at[2] : 0;
}

static bool is_held(const struct member *m, char state)
{
	return state == 'T' || state == 't' || (state && lives_frozen(m->agent) > 0);
}

static bool agent_sleeps(const struct member *m, char state)
{
	return state != 'R' && state != 'D' && state != '?' && !atomic_load(&m->mm->giving);
}

static bool inside_able(void *priv)
{
	struct member *m = priv;

	return !is_held(m, agent_state(m));
}

/* How often it has been seen asleep, and held up, one time after the other. */
struct looks {
	unsigned idle, held;
};

static void goes_on(struct member *m, struct looks *l)
{
	/* The reclaimer says itself how it is, from the next round on. */
	if (l->held >= IDLE_MOST)
		atomic_store(&m->sup->h->tight, false);
	l->held = 0;
}

static void is_still_held(struct member *m, struct looks *l)
{
	l->idle = 0;
	if (++l->held < IDLE_MOST)
		return;
	l->held = IDLE_MOST;
	/* Each time: it may not be the reclaimer who waits, or not yet. */
	atomic_store(&m->sup->h->tight, true);
	if (!atomic_exchange(&m->held_said, true))
		lines_say(&m->sup->lines,
			  "the agent of process %d is stopped or frozen, with pages in its hands: until it goes on, "
			  "nothing is moved out, and the programs go on above the budget",
			  (int)m->pid);
}

/* Asked every IDLE_NS: is there still something to wait for? */
static bool agent_works(struct member *m, struct looks *l)
{
	char state;

	/* It is nobody's agent any more where the space has stayed without it (member_leave()). */
	if (atomic_load(&m->mm->dead) || atomic_load(&m->mm->doomed))
		return false;
	state = agent_state(m);
	if (is_held(m, state)) {
		is_still_held(m, l);
		return true;
	}
	goes_on(m, l);
	l->idle = agent_sleeps(m, state) ? l->idle + 1 : 0;
	if (l->idle < IDLE_MOST)
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
	struct looks l = {0};
	int rc = 0;

	while (!rc && !atomic_load(&batch->done))
		if (sys_futex_wait(&batch->done, 0, &ts) == -ETIMEDOUT && !agent_works(m, &l))
			rc = -ESRCH;
	goes_on(m, &l);
	return rc;
}

int orders_arm(void *priv)
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
	if (rc && rc != -ESRCH && !m->arm_said && lives_memory(m->agent) > 0) {
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
	struct looks l = {0};
	uint32_t before;
	int rc = 0;

	pthread_mutex_lock(&m->advise_lock);
	before = atomic_load(&ctl->acked);
	if (send(m->sock, &msg, sizeof(msg), MSG_NOSIGNAL) != sizeof(msg))
		rc = -ESRCH;
	/* Whatever it is then: who writes there himself is answered as he says. */
	while (!rc && atomic_load(&ctl->acked) == before)
		if (sys_futex_wait(&ctl->acked, before, &ts) == -ETIMEDOUT && !agent_works(m, &l))
			rc = -ESRCH;
	goes_on(m, &l);
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
	if (crowded && lives_sharers(m->agent, lists_of, &l) < 0)
		l.all = false;
	if (crowded && l.all && l.n)
		umm_pin_clear(ctl);
	for (unsigned i = 0; i < l.n; i++)
		umm_pin_block(ctl, l.at[i]);
	umm_pin_unlock(ctl);
	free(l.at);
}

const struct hmm_inside_ops orders_ops = {.able = inside_able,
					  .pins = inside_pins,
					  .go = inside_go,
					  .wait = inside_wait,
					  .arm = orders_arm,
					  .advise = inside_advise};
