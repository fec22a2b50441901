/* SPDX-License-Identifier: MIT */
/*
 * A program that ends or calls exec leaves its space.  A process that shares it
 * (CLONE_VM) has it from then on: found here, by the agent, which stays there.
 */
#include "run/supervisor.h"

#include <errno.h>
#include <fcntl.h>
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
			member_end(old);
		else if (old->pid == pid)
			return 0; /* it lives there as before */
	}
}
