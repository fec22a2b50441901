/* SPDX-License-Identifier: MIT */
/*
 * What the files of the supervisor share; nobody else includes it.  The state is
 * one struct supervisor; who may touch what is said in supervisor.c.
 */
#ifndef RUN_SUPERVISOR_H
#define RUN_SUPERVISOR_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "hmm/internal.h"
#include "run/lines.h"
#include "run/run.h"

/* Of each space, shared with its agent. */
#define CTL_BYTES (ARENA_CTL + ARENA_WINDOW)

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
	_Atomic bool given_up;  /* that its agent does nothing has been said */
	_Atomic bool held_said; /* that its agent is stopped or frozen */
	int left_fd;            /* pidfd of who has left it when its agent was dead: another thread may be using it */
};

/* Somebody who has connected and said nothing yet. */
struct guest {
	struct guest *next;
	struct watch w;
	int sock;
	bool strange; /* another user's */
	bool lent;    /* it was lent /dev/userfaultfd, and has yet to say hello */
};

/* With which it can always be seen who lives in a space: /proc, threads, one's memory, and a pidfd. */
#define LOOK_FDS 4u

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
	_Atomic bool agentless_said;
	bool signed_on; /* somebody ever did */
	pid_t front, keeper;
	pid_t stopped; /* the program that the front is stopped for; 0: it is not */
	char name[WIRE_NAME_MAX];
	char token[WIRE_TOKEN + 1];
	pthread_mutex_t lock; /* members */
	pthread_mutex_t ident_lock;
	struct member *members;
	struct guest *guests; /* the latest first */
	unsigned nguests;
	bool ending;        /* the front's word has come, figures and lines are being written */
	bool program_ended; /* and this is over */
	bool over;          /* nobody lives any more, and whoever waits for us has been told so */
	uint64_t gone_ns;   /* since when nobody is known; 0: somebody is */
	bool killing;
	unsigned kills; /* ticks since, with somebody who is not known */
};

/* supervisor.c */

/** watch_add() - have the loop call for @fd.  0 or -errno. */
int watch_add(struct supervisor *s, int fd, struct watch *w);

/* lives.c: who lives in an address space, from /proc */

/** lives_ended() - has the process of @pidfd ended?  -1: it is not known, so no. */
bool lives_ended(int pidfd);
/**
 * lives_nobody() - what a look at /proc that has just failed says (errno)
 *
 * 0: there is nobody, or nobody whom we may look at; -errno: we could not look, for want of descriptors or memory.
 */
int lives_nobody(void);
/** lives_stopped() - is process @pid stopped?  1, 0 (it goes on, or has ended), or -errno. */
int lives_stopped(pid_t pid);
/** lives_frozen() - is the control group of @tid frozen?  1, 0 (also where that cannot be known), or -errno. */
int lives_frozen(pid_t tid);
/** lives_memory() - has this task an address space?  1, 0, or -errno. */
int lives_memory(pid_t tid);
/**
 * lives_in() - does any thread of process @pid live in @agent's address space?
 * @guess: where the kernel does not compare them for us, it does if all that may be seen is the same
 *
 * 1, 0, or -errno.
 */
int lives_in(pid_t agent, pid_t pid, bool guess);
/**
 * lives_sharers() - every process that lives in @agent's address space, but @agent
 * @each: called for each until it returns false; NULL: they are counted only
 *
 * Returns how many, or -errno when there may be more of them.
 */
int lives_sharers(pid_t agent, bool (*each)(pid_t pid, void *arg), void *arg);

/* member.c: spaces of the tree */

/** member_of() - the member of a space; NULL: it is none any more. */
struct member *member_of(struct supervisor *s, struct hmm_mm *mm);
/**
 * member_create() - a space joins
 * @arena:  where its arena lies in it; who looks for its own there knows it from the first moment
 * @uffd:   and the other descriptors: the callee's, also when it fails; -1: there is none
 *
 * 0 or -errno.
 */
int member_create(struct supervisor *s, uint64_t arena, int uffd, int pagemap, int maps, struct member **mp);
/** member_end() - the space ends; its agent, if it has one, is sent away. */
void member_end(struct member *m);
/** member_kill() - kill all that live in the space. */
void member_kill(struct member *m);
/** member_left() - does another image run under the program's pid? */
bool member_left(const struct member *m);
/** member_forked() - hmm_options.forked */
int member_forked(void *priv, struct hmm_mm *parent, int uffd, struct hmm_mm **child);
/** member_processes() - hmm_options.processes */
int member_processes(void *priv, struct hmm_mm *mm, bool (*each)(pid_t pid, void *arg), void *arg);

/* heir.c: what becomes of a space that its program has left */

/** heir_fds_open() - have again what was taken of look_fd. */
void heir_fds_open(struct supervisor *s);
/**
 * member_inherit() - the program has left the space: has it an heir?
 *
 * 1: another process lives in it (CLONE_VM), whose the space is now; 0: nobody does; -errno: that cannot be told now.
 */
int member_inherit(struct member *m);
/** member_is_empty() - does nobody live in the space any more? */
bool member_is_empty(struct member *m);
/** member_leave() - nobody is known to live in the space any more: it ends, unless it can be that somebody does. */
void member_leave(struct member *m);
/** member_forget() - neither agent nor program of it is known any more; who faults there tells who lives there. */
void member_forget(struct member *m);
/** member_exec() - another image runs as @pid: what had that pid ends, or has an heir.  -errno: ask again later. */
int member_exec(struct supervisor *s, pid_t pid);

/* orders.c: what an agent is told to do */

extern const struct hmm_inside_ops orders_ops;
/** orders_arm() - of hmm_inside_ops; @priv: the member */
int orders_arm(void *priv);

/* calls.c: what a program's hooks ask for */

/** calls_take() - hmm_options.called */
int calls_take(void *priv, struct hmm_mm *mm, uint64_t addr);

/* signon.c: how an agent becomes a member's */

/**
 * agent_signs_on() - first words of an agent
 * @sock: its connection; the callee's if it succeeds
 * @fds:  what it sent; those that are used up are -1 afterwards
 *
 * 0 or -errno.
 */
int agent_signs_on(struct supervisor *s, int sock, const struct wire_hello *hello, int fds[4]);
/** agent_lend() - its program may make no userfaultfd.  0: it may now, and will say hello; or -errno. */
int agent_lend(struct supervisor *s, int sock, const struct wire_lend *ask);
/** agent_lives_in() - hmm_options.lives_in */
int agent_lives_in(void *priv, struct hmm_mm *mm, pid_t tid);

/* asked.c: hmm stat */

/** stat_client() - answer @q, on a thread of its own; @sock is the callee's. */
void stat_client(struct supervisor *s, int sock, const struct wire_stat *q);

/* guests.c: who has connected and said nothing yet */

/** guest_knocks() - somebody connects. */
void guest_knocks(struct supervisor *s);
/** guest_speaks() - its first words. */
void guest_speaks(struct supervisor *s, struct guest *g);

#endif
