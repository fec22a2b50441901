/* SPDX-License-Identifier: MIT */
/*
 * Memory for what serves a space from inside itself.
 *
 * DOC: why not malloc
 *
 * A thread that serves faults of its own address space must not wait for a lock
 * that a faulting thread holds.  malloc's is such a lock: fork() and free() wait
 * for events to be read while they hold it.  And a mapping that the engine makes
 * late may land where the program believes nothing to be: in the hole that it is
 * about to map, or to test.  So all that is needed later lies in one piece of
 * address space, reserved when the space is opened and never part of what is
 * managed.
 *
 * Calls are raw: threads that serve faults come here, and must meet no hook.
 *
 * A freed piece goes to the list of its size, a power of two, and stays there.
 */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "umm/internal.h"
#include "umm/signals.h"
#include "umm/sys.h"

#define CLASS_MIN 6u /* 64 bytes */
#define CLASSES 48u
#define ARENA_MOST (1ull << 36)
#define ARENA_LEAST (1ull << 27)

struct umm_arena {
	pthread_mutex_t lock;
	uint64_t size, used; /* of the reserved piece, whose head this is */
	void *freed[CLASSES];
	bool torn;
};

/* A forked child has no threads that would use it; cores need it as little. */
static void mark(void *p, uint64_t size)
{
	sys3(SYS_madvise, p, size, MADV_DONTFORK);
	sys3(SYS_madvise, p, size, MADV_DONTDUMP);
	sys3(SYS_madvise, p, size, MADV_NOHUGEPAGE);
}

struct umm_arena *umm_arena_new(void)
{
	for (uint64_t size = ARENA_MOST; size >= ARENA_LEAST; size /= 4) {
		struct umm_arena *a =
			mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

		if (a == MAP_FAILED)
			continue;
		mark(a, size);
		pthread_mutex_init(&a->lock, NULL);
		a->size = size;
		a->used = UMM_PAGE;
		return a;
	}
	return NULL;
}

void umm_arena_reset(void *p, uint64_t size)
{
	sys6(SYS_mmap, p, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
	mark(p, size);
}

void umm_arena_torn(struct umm_arena *a)
{
	a->torn = true;
}

void umm_arena_free(struct umm_arena *a)
{
	if (!a)
		return;
	pthread_mutex_destroy(&a->lock);
	if (!a->torn)
		munmap(a, a->size);
}

bool umm_arena_meets(const struct umm_arena *a, uint64_t start, uint64_t end)
{
	return a && start < (uintptr_t)a + a->size && end > (uintptr_t)a;
}

static unsigned class_of(size_t size)
{
	unsigned c = CLASS_MIN;

	while (c < CLASSES - 1 && (size_t)1 << c < size)
		c++;
	return c;
}

/* Signals are blocked: threads that read events come here, too, and callbacks; a handler may wait for both. */
static void *arena_alloc(struct umm_arena *a, size_t size)
{
	sigset_t old;
	unsigned c = class_of(size);
	uint64_t bytes = 1ull << c;
	char *p = NULL;
	bool fresh = true; /* and untouched: absent, as staging must be */

	if (bytes < size)
		return NULL;
	signals_block(&old);
	pthread_mutex_lock(&a->lock);
	if (a->freed[c]) {
		p = a->freed[c];
		a->freed[c] = *(void **)p;
		fresh = false;
	} else {
		/* Aligned to itself, or to a page: more than a page is laid out in whole pages. */
		uint64_t align = bytes < UMM_PAGE ? bytes : UMM_PAGE;
		uint64_t at = (a->used + align - 1) & ~(align - 1);

		if (at + bytes <= a->size) {
			p = (char *)a + at;
			a->used = at + bytes;
		}
	}
	pthread_mutex_unlock(&a->lock);
	signals_restore(&old);
	if (p && !fresh)
		memset(p, 0, bytes < UMM_PAGE ? bytes : sizeof(void *));
	return p;
}

static void arena_release(struct umm_arena *a, void *p, size_t size)
{
	unsigned c = class_of(size);
	sigset_t old;

	/* It is given out as zeros.  Locked memory (mlockall) cannot be dropped. */
	if (1ull << c >= UMM_PAGE && sys3(SYS_madvise, p, 1ull << c, MADV_DONTNEED))
		memset(p, 0, 1ull << c);
	signals_block(&old);
	pthread_mutex_lock(&a->lock);
	*(void **)p = a->freed[c];
	a->freed[c] = p;
	pthread_mutex_unlock(&a->lock);
	signals_restore(&old);
}

void *(umm_alloc)(struct umm_space *space, size_t size)
{
	return space->arena ? arena_alloc(space->arena, size) : calloc(1, size);
}

void umm_free(struct umm_space *space, void *p, size_t size)
{
	if (!p)
		return;
	if (space->arena)
		arena_release(space->arena, p, size);
	else
		free(p);
}
