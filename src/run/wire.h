/* SPDX-License-Identifier: MIT */
/* What an agent and the supervisor say to each other, and where things lie in the arena.  No libc. */
#ifndef RUN_WIRE_H
#define RUN_WIRE_H

#include "umm/ctl.h"

#define WIRE_MAGIC 0x31686d68u
#define WIRE_TOKEN 32 /* hexadecimal digits */
#define WIRE_NAME_MAX 80

/* The environment variable that leads a new program to its supervisor: "NAME TOKEN LIBRARY". */
#define WIRE_ENV "HMM_RUN"

#define ALIGN_UP(x, a) (((x) + (a)-1) & ~((a)-1))
#define ARENA_GUARD 4096ul /* never accessible: what the program maps below does not merge with ours */
#define ARENA_TLS 4096ul   /* the agent's own thread block */
#define ARENA_STACK (64ul << 10)
#define ARENA_CTL ALIGN_UP(sizeof(struct umm_ctl), 4096ul)
#define ARENA_WINDOW ((unsigned long)UMM_BATCHES * UMM_BATCH_PAGES * UMM_PAGE)
#define ARENA_STAGING ARENA_WINDOW
#define ARENA_BELLS (UMM_CALL_SLOTS * UMM_PAGE)
#define ARENA_IDENT UMM_PAGE

/*
 * One mapping, reserved before the program runs: the engine maps nothing
 * anywhere else later, a program may count on an address being free.
 */
struct arena {
	char *base;
	unsigned long len;
	char *tls, *stack;
	struct umm_ctl *ctl; /* control block and window: one shared memory object */
	char *window;
	char *staging;
	char *bells; /* absent pages; touching one calls the engine (umm_call) */
	char *ident; /* by which a forked child is told from others (lives_there()) */
};

static inline unsigned long arena_len(void)
{
	return ARENA_GUARD + ARENA_TLS + ARENA_STACK + ARENA_CTL + ARENA_WINDOW + ARENA_STAGING + ARENA_BELLS +
	       ARENA_IDENT;
}

static inline void arena_layout(struct arena *a, char *base)
{
	a->base = base;
	a->len = arena_len();
	a->tls = base + ARENA_GUARD;
	a->stack = a->tls + ARENA_TLS;
	a->ctl = (struct umm_ctl *)(a->stack + ARENA_STACK);
	a->window = (char *)a->ctl + ARENA_CTL;
	a->staging = a->window + ARENA_WINDOW;
	a->bells = a->staging + ARENA_STAGING;
	a->ident = a->bells + ARENA_BELLS;
}

/* Agent to supervisor; with it four descriptors: userfaultfd, pagemap, maps, pidfd of the program. */
struct wire_hello {
	uint32_t magic;
	uint32_t parent; /* space of which this is a fork, 0: none */
	uint64_t arena;
	char token[WIRE_TOKEN];
};

/*
 * Before a hello, from who may not make a userfaultfd: with the answer, a wire_welcome, comes the device to make one
 * by, if it is lent (hmm run --lend-userfaultfd).  Else the connection ends.
 */
#define WIRE_LEND_MAGIC 0x32686d68u
struct wire_lend {
	uint32_t magic;
	uint32_t parent; /* as in a hello */
	char token[WIRE_TOKEN];
};

/* The answer; with it the control memory, and, for a forked space, the userfaultfd that came with the fork. */
struct wire_welcome {
	uint32_t magic;
};

/* Supervisor to agent, one byte of operation and an argument. */
enum wire_op {
	WIRE_GO = 1, /* carry out batch arg; start: on any CPU but start - 1, if there is another; 0: on any */
	WIRE_BYE,    /* the program is gone, or has left this address space: so do you */
	WIRE_ADVISE, /* madvise(start, len, arg) */
};

struct wire_msg {
	uint32_t op;
	uint32_t arg;
	uint64_t start, len;
};

#define WIRE_STAT_MAGIC 0x74617473u /* a client that asks: struct wire_stat, the answer is text */
struct wire_stat {
	uint32_t magic;
	uint32_t what;
};
#define WIRE_STAT_JSON 0u
#define WIRE_STAT_RESTORE 1u
#define WIRE_STAT_FAILED '!' /* begins an answer that is no figures but one line: why not */

#endif
