/* SPDX-License-Identifier: MIT */
/*
 * DOC: an agent signs on
 *
 * Who says hello shows the token, its userfaultfd, and what stands for its program.
 * It is believed nothing that the kernel cannot confirm: the peer's pid and user come
 * from the socket, that the program lives in the agent's space from kcmp, and which
 * forked space it is from a mark that is made through the userfaultfd that we hold and
 * looked for in a page map that we have opened (lives_there()).
 */
#include "run/supervisor.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "run/keeper.h"

#define PAGEMAP_UFFD_WP 57
#define LOOKS 16u /* at a space that changes while its guest is looked for there */
#define EARLY_NS 500000l
#define EARLY_TRIES 10000u

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

int agent_lives_in(void *priv, struct hmm_mm *mm, pid_t tid)
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
int agent_lend(struct supervisor *s, int sock, const struct wire_lend *ask)
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
	if (pid <= 0 || lives_ended(pidfd))
		return -1;
	rc = lives_in(agent, pid, false);
	if (rc)
		return rc < 0 ? rc : pid;
	return lives_ended(pidfd) ? -1 : -EACCES;
}

/* Ours to open, lest the guest show us another's; who we may not look at shows us its own, and can fool nobody else. */
static void take_proc_fd(const struct ucred *guest, const char *what, int *fd)
{
	int own = proc_fd(guest->pid, what);
	struct stat st;

	/* What it has where there is no /proc is a directory. */
	if (own < 0 && guest->uid == getuid() && !fstat(*fd, &st) && S_ISREG(st.st_mode))
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

int agent_signs_on(struct supervisor *s, int sock, const struct wire_hello *hello, int fds[4])
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
	rc = pid > 0 && !hello->parent ? member_exec(s, pid) : 0;
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
	m->sock = sock;
	if (hello->parent)
		atomic_store(&m->mm->forked, true); /* what it has it shares */
	if (adopted >= 0) {
		/* Before the program goes on: from its first call its hooks must tell what a child of it inherits. */
		orders_arm(m);
		atomic_store(&m->mm->space->ctl->armed, 1);
		if (!m->mm->marks_known)
			hmm_marks_read(m->mm);
	}
	rc = watch_add(s, m->sock, &m->w_sock);
	if (rc)
		goto refuse;
	rc = welcome(m, adopted);
	if (rc) {
		epoll_ctl(s->epfd, EPOLL_CTL_DEL, m->sock, NULL);
		goto refuse;
	}
	m->pidfd = fds[3];
	fds[3] = -1;
	if (m->pidfd >= 0)
		watch_add(s, m->pidfd, &m->w_pidfd); /* or else a tick sees its end */
	s->signed_on = true;
	m->mm->inside_priv = m;
	m->mm->space->gone = agent_is_gone;
	atomic_store(&m->mm->inside, &orders_ops); /* whoever sees it sees what was set before */
	return 0;
refuse:
	m->sock = -1;
	/* A forked child goes on without an agent.  It is as it was before: what it has away must not end with its
	 * program. */
	if (adopted >= 0)
		member_forget(m);
	else
		member_end(m);
	return rc;
}
