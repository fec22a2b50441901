/* SPDX-License-Identifier: MIT */
/*
 * pager BYTES PROGRAM ARGS: runs it, and has the kernel page its memory out
 * (MADV_PAGEOUT) ahead of need, in the order of addresses, whenever it has more
 * than BYTES less an eighth resident.  What a pager in user space comes to who
 * leaves everything else to the kernel.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define CHUNK (2ul << 20)

static unsigned long resident(pid_t pid)
{
	unsigned long size, pages = 0;
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/statm", (int)pid);
	FILE *f = fopen(path, "re");
	if (f && fscanf(f, "%lu %lu", &size, &pages) != 2)
		pages = 0;
	if (f)
		fclose(f);
	return pages * 4096;
}

/* The largest mapping, which is what is paged. */
static void largest(pid_t pid, unsigned long *start, unsigned long *end)
{
	char path[64], line[512];
	unsigned long a, z;

	*start = *end = 0;
	snprintf(path, sizeof(path), "/proc/%d/maps", (int)pid);
	FILE *f = fopen(path, "re");
	while (f && fgets(line, sizeof(line), f)) {
		if (sscanf(line, "%lx-%lx rw-p", &a, &z) == 2 && z - a > *end - *start) {
			*start = a;
			*end = z;
		}
	}
	if (f)
		fclose(f);
}

int main(int argc, char **argv)
{
	unsigned long most = argc > 2 ? strtoul(argv[1], NULL, 10) / 8 * 7 : 0, start, end, hand = 0;
	int status, pidfd;
	pid_t pid;

	if (!most)
		return 2;
	pid = fork();
	if (!pid) {
		execv(argv[2], argv + 2);
		_exit(127);
	}
	pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	while (waitpid(pid, &status, WNOHANG) == 0) {
		if (resident(pid) < most) {
			nanosleep(&(struct timespec){.tv_nsec = 2000000}, NULL);
			continue;
		}
		largest(pid, &start, &end);
		if (hand < start || hand >= end)
			hand = start;
		struct iovec v = {(void *)hand, end - hand < CHUNK ? end - hand : CHUNK};
		if (syscall(SYS_process_madvise, pidfd, &v, 1, MADV_PAGEOUT, 0) < 0)
			nanosleep(&(struct timespec){.tv_nsec = 2000000}, NULL);
		hand += CHUNK;
	}
	if (WIFSIGNALED(status))
		kill(getpid(), WTERMSIG(status)); /* the out-of-memory killer: who started us is to know */
	return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}
