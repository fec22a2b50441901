/* SPDX-License-Identifier: MIT */
/* How spaces join the tree, are found in it, and end. */
#include "run/supervisor.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kcmp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008u
#endif

struct member *member_of(struct supervisor *s, struct hmm_mm *mm)
{
	struct member *m;

	pthread_mutex_lock(&s->lock);
	for (m = s->members; m && m->mm != mm; m = m->next)
		;
	pthread_mutex_unlock(&s->lock);
	return m;
}

/*
 * Does another image run under the program's pid?  Who calls exec becomes its
 * process's first thread, with a memory of its own.  A first thread that has ended
 * has none, and says nothing of the others, of whom the one that lives may never be
 * met.  An agent that has died, too, is no longer in the program's space; that is
 * on_agent()'s to deal with.
 */
bool member_left(const struct member *m)
{
	return m->agent > 0 && m->pid > 0 && syscall(SYS_kcmp, m->agent, m->pid, KCMP_VM, 0, 0) > 0 &&
	       lives_memory(m->pid) > 0 && lives_memory(m->agent) > 0;
}

/* For hmm_options. */
int member_processes(void *priv, struct hmm_mm *mm, bool (*each)(pid_t pid, void *arg), void *arg)
{
	struct member *m = mm->gone_priv;
	pid_t agent = atomic_load(&m->agent), pid = atomic_load(&m->pid);

	/* With an agent to compare with, whoever lives there is found, or somebody may not be looked at. */
	if (agent > 0) {
		int n = lives_sharers(agent, each, arg);

		return n > 0 ? 0 : n ? n : -ESRCH;
	}
	if (pid <= 0)
		pid = atomic_load(&mm->space->pid);
	if (each(pid, arg) && pid > 0)
		lives_sharers(pid, each, arg);
	return 0;
}

static bool kill_one(pid_t pid, void *arg)
{
	kill(pid, SIGKILL);
	return true;
}

void member_kill(struct member *m)
{
	/* Who shares the space is found while somebody is left to compare with: the agent, or the program. */
	if (m->agent > 0)
		lives_sharers(m->agent, kill_one, NULL);
	if (m->pid > 0)
		lives_sharers(m->pid, kill_one, NULL);
	if (m->pidfd >= 0)
		syscall(SYS_pidfd_send_signal, m->pidfd, SIGKILL, NULL, 0);
	else
		hmm_mm_kill(m->mm);
}

/* The space's last user is gone. */
static void member_gone(void *priv)
{
	struct member *m = priv;

	munmap(m->ctl_map, CTL_BYTES);
	close(m->ctl_fd);
	if (m->pidfd >= 0)
		close(m->pidfd);
	if (m->left_fd >= 0)
		close(m->left_fd);
	if (m->sock >= 0)
		close(m->sock);
	free(m);
}

/* @arena: where it lies in the space; who looks for its own there knows it from the first moment. */
int member_create(struct supervisor *s, uint64_t arena, int uffd, int pagemap, int maps, struct member **mp)
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
	m->sock = m->pidfd = m->left_fd = -1;
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
void member_end(struct member *m)
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
int member_forked(void *priv, struct hmm_mm *parent, int uffd, struct hmm_mm **child)
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
