/* SPDX-License-Identifier: MIT */
/*
 * A program that ends or calls exec leaves its space.  A process that shares it
 * (CLONE_VM) has it from then on: found here, by the agent, which stays there.
 *
 * Where the agent is dead as well nobody can be found.  The space stays then, as one
 * that came by a raw fork and has neither, or whoever lives there would read zeros.
 * As the agent may have died half-way nobody is served there any more: who faults
 * shows who it is, and is killed, as the program would have been.
 */
#include "run/supervisor.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <unistd.h>

static bool note_pid(pid_t pid, void *arg)
{
	*(pid_t *)arg = pid;
	return true;
}

/* What is kept for a look: what it was taken by in the meantime it is had back from when there is something. */
void heir_fds_open(struct supervisor *s)
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

	while ((rc = lives_sharers(m->agent, note_pid, &heir)) > 0) {
		pidfd = (int)syscall(SYS_pidfd_open, heir, 0);
		/* Opened first, compared then: the pid may have become another's in between. */
		rc = pidfd < 0 ? lives_nobody() : lives_in(m->agent, heir, true);
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
int member_inherit(struct member *m)
{
	int rc;

	if (!atomic_load(&m->mm->armed) || m->agent <= 0)
		return 0;
	rc = inherit(m);
	if (rc != -EMFILE && rc != -ENFILE)
		return rc;
	look_fds_close(m->sup);
	rc = inherit(m);
	heir_fds_open(m->sup);
	return rc;
}

/* Asks the userfaultfd: any call that needs the address space will say. */
bool member_is_empty(struct member *m)
{
	static const char page[UMM_PAGE] __attribute__((aligned(4096)));
	struct arena a;
	uint64_t done;
	int rc;

	arena_layout(&a, (char *)(uintptr_t)m->mm->keep_start);
	rc = umm_uffd_copy(m->mm->space->uffd, (uintptr_t)a.ident, page, UMM_PAGE, &done);
	return rc == -ESRCH || rc == -ENOTTY; /* there is none any more, or it was let go of */
}

void member_forget(struct member *m)
{
	m->agent = 0;
	m->pid = 0;
	atomic_store(&m->mm->space->ctl->armed, 0); /* nobody tells what is marked any more */
	pthread_mutex_lock(&m->mm->lock);           /* learn_pid() */
	atomic_store(&m->mm->pid_learned, true);
	hmm_mm_pid_ended(m->mm);
	pthread_mutex_unlock(&m->mm->lock);
}

/* Asked when nobody was found: an agent that is there now was there to compare with. */
static bool agent_died(struct member *m)
{
	struct pollfd p = {.fd = m->sock};

	return (poll(&p, 1, 0) == 1 && (p.revents & (POLLHUP | POLLERR))) || !lives_memory(m->agent);
}

void member_leave(struct member *m)
{
	if (!atomic_load(&m->mm->armed) || !agent_died(m) || member_is_empty(m)) {
		member_end(m);
		return;
	}
	/* It stays open: who asks it hears that nobody is there. */
	epoll_ctl(m->sup->epfd, EPOLL_CTL_DEL, m->sock, NULL);
	epoll_ctl(m->sup->epfd, EPOLL_CTL_DEL, m->pidfd, NULL);
	lines_say(
		&m->sup->lines,
		"program and agent of process %d have gone: whoever else has its memory is killed when it needs a page",
		(int)m->pid);
	m->left_fd = atomic_exchange(&m->pidfd, -1);
	atomic_fetch_add(&m->mm->rest, 1); /* for ever */
	atomic_store(&m->mm->doomed, true);
	member_forget(m);
	atomic_store(&m->mm->ready, true);
}

/* -errno: who else lives where @pid did cannot be told now; the next tick asks again. */
int member_exec(struct supervisor *s, pid_t pid)
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
			member_leave(old);
		else if (old->pid == pid)
			return 0; /* it lives there as before */
	}
}
