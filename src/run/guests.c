/* SPDX-License-Identifier: MIT */
/*
 * Whoever connects: until its first words are read it is a guest, of whom there
 * are not many at a time, so that strangers cannot take up the room.
 */
#include "run/supervisor.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define GUESTS_MAX 64u

static void guest_forget(struct supervisor *s, struct guest *g)
{
	struct guest **p = &s->guests;

	while (*p != g)
		p = &(*p)->next;
	*p = g->next;
	s->nguests--;
	free(g);
}

/* First words of a connection. */
void guest_speaks(struct supervisor *s, struct guest *g)
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
	    !agent_lend(s, sock, &in.lend)) {
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

void guest_knocks(struct supervisor *s)
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
