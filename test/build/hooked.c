/* SPDX-License-Identifier: MIT */
/*
 * A program whose calls are hooked, by libhmm-hooks as it is installed: linked, or
 * preloaded; see outside.sh.  Exit status 3: it has no hooks.
 */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <umm_hooks.h>

#define SIZE 65536ul

#pragma weak umm_hooks_set

#define CHECK(cond)                                                        \
	do {                                                               \
		if (!(cond)) {                                             \
			fprintf(stderr, "line %d: %s\n", __LINE__, #cond); \
			return 1;                                          \
		}                                                          \
	} while (0)

/* Libc's headers say that munmap() calls nothing in here. */
static volatile unsigned told[UMM_EVENT_RELEASE + 1];
static volatile bool there; /* contents were, when it was told last */
static char *mem;

static bool tell(struct umm_notifier *n, const struct umm_change *change, uint64_t seq)
{
	umm_notifier_set_seq(n, seq);
	told[change->event]++;
	there = change->event == UMM_EVENT_RELEASE || mem[SIZE - 1] == 5;
	return true;
}

static const struct umm_notifier_ops ops = {.invalidate = tell};

int main(void)
{
	struct umm_space *space;
	struct umm_notifier n;
	int status;
	pid_t pid;

	if (!umm_hooks_set)
		return 3;
	mem = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(mem != MAP_FAILED);
	CHECK(!umm_space_open_self(&space));
	CHECK(!umm_notifier_insert(&n, space, (uintptr_t)mem, SIZE, &ops));
	memset(mem, 5, SIZE);
	CHECK(!umm_hooks_set(space));
	/* Each is told before it is so. */
	CHECK(!mprotect(mem, 4096, PROT_READ) && told[UMM_EVENT_PROTECT] == 1 && there);
	CHECK(!madvise(mem + SIZE - 4096, 4096, MADV_DONTNEED) && told[UMM_EVENT_CLEAR] == 1 && there);
	CHECK(!mem[SIZE - 1]);
	mem[SIZE - 1] = 5;
	pid = fork();
	if (!pid) /* nobody is told there */
		_exit(munmap(mem, SIZE) || told[UMM_EVENT_UNMAP]);
	CHECK(waitpid(pid, &status, 0) == pid && !status && told[UMM_EVENT_FORK] == 1);
	pid = (pid_t)syscall(SYS_fork);
	if (!pid)
		_exit(munmap(mem, SIZE) || told[UMM_EVENT_UNMAP]);
	CHECK(waitpid(pid, &status, 0) == pid && !status);
	CHECK(mmap(mem, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == mem);
	CHECK(told[UMM_EVENT_UNMAP] == 1 && there);
	mem[SIZE - 1] = 5;
	CHECK(!munmap(mem, SIZE) && told[UMM_EVENT_UNMAP] == 2 && there);
	CHECK(!umm_hooks_set(NULL));
	CHECK(munmap(mem, SIZE) == 0 && told[UMM_EVENT_UNMAP] == 2);
	umm_notifier_remove(&n);
	umm_space_close(space);
	return 0;
}
