/* SPDX-License-Identifier: MIT */
/*
 * What the hooks in a program ask for.  A call is a touch of a page of the arena, a
 * bell, and ends when that page is there (hooks.c has the other end).
 */
#include "run/supervisor.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#define APPLIED_NS 1000000000ull

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
			  "process %d forks: without CAP_SYS_PTRACE the kernel tells nobody, so all its memory "
			  "comes"
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
		return hmm_bring_back(m->mm, start & ~(UMM_PAGE - 1), end, hmm_restore);
	case UMM_CALL_FORK_BEGIN:
		return call_fork_begin(m);
	case UMM_CALL_MARKS:
		return hmm_marks_read(m->mm);
	case UMM_CALL_APPLIED:
		/* Others may change something without end. */
		return umm_space_sync_until(m->mm->space, umm_now_ns() + APPLIED_NS);
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

/* The bell of a forked child without an agent: it asks for nothing, but shows why, as preload_no_agent() has it. */
static void no_agent(struct member *m, int err)
{
	struct supervisor *s = m->sup;

	if (!atomic_exchange(&s->agentless_said, true))
		lines_say(&s->lines,
			  "a forked child can have no agent (%s): what it has away comes back, and nothing of it goes; "
			  "others are not told of",
			  err ? strerror(err) : "it could not sign on");
}

/*
 * A fault in the arena: a bell, or (raw fork) something that nobody expects.
 * What a bell asks for may wait for locks whose holders wait for faults to be
 * served, so it is done on a thread of its own, not on one that serves faults.
 */
int calls_take(void *priv, struct hmm_mm *mm, uint64_t addr)
{
	struct member *m = member_of(priv, mm);
	uint32_t state = UMM_CALL_ASKED;
	struct umm_call *call;
	struct bell *b;
	struct arena a;
	pthread_t t;

	arena_layout(&a, (char *)(uintptr_t)mm->keep_start);
	if (m && m->sock < 0 && addr >= (uintptr_t)a.bells && addr < (uintptr_t)a.bells + ARENA_BELLS)
		no_agent(m, (int)((addr - (uintptr_t)a.bells) / UMM_PAGE));
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
