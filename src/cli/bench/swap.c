/* SPDX-License-Identifier: MIT */
/*
 * hmm bench --zram: the kernel's swap to compare with, set up for one run and taken down after it.
 *
 * DOC: nothing of it stays
 *
 * What is changed on the machine (a zram device, the swap on it, vm.page-cluster, a
 * memory cgroup) is noted in memory that a second process shares, each thing before it
 * is done; but a zram device has no number before it is made.  That process, in a session of its own where no signal of
 * the terminal's comes, waits for the end of a pipe that nobody but us has open to write, and takes back what is noted.
 * swap_end() closes the pipe and waits for it; if we die, however, the kernel closes the pipe.  So there is one way
 * back, and it is always the same.  It holds a lock until it has done so: who came meanwhile would note, and put back,
 * what is ours.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/swap.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "cli/bench/bench.h"

#define PAGE 4096u
#define DISK_LEAST (4ull << 30)
#define PRIORITY 32000
#define TRIES 100
#define TRY_NS 50000000l
#define CLUSTER "/proc/sys/vm/page-cluster"
#define CONTROL "/sys/class/zram-control/"
#define V2 "/sys/fs/cgroup/"
#define V1 "/sys/fs/cgroup/memory/"
#define SUBTREE V2 "cgroup.subtree_control"

struct swap {
	/* What is to be taken back; the second process reads it when we are gone, or wait. */
	int zram; /* number of the device, -1: none */
	bool swapping, node, group, subtree;
	char cluster[16];
	bool v2;
	char dir[64], procs[96], usage[96], dev[32], sys[64];
	uint64_t disk; /* bytes */
	pid_t undoer, owner;
	int pipe, lock; /* of each of the two processes */
};

static int put(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC), rc = 0;

	if (fd < 0)
		return -errno;
	if (write(fd, text, strlen(text)) < 0)
		rc = -errno;
	close(fd);
	return rc;
}

static int put_number(const char *dir, const char *name, unsigned long long n)
{
	char path[256], text[32];

	snprintf(path, sizeof(path), "%s%s", dir, name);
	snprintf(text, sizeof(text), "%llu", n);
	return put(path, text);
}

/* All of a small file, without its newline. */
static int get(const char *path, char *buf, size_t len)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, buf, len - 1);
	int rc = n < 0 ? -errno : 0;

	if (fd >= 0)
		close(fd);
	buf[n > 0 ? n : 0] = 0;
	buf[strcspn(buf, "\n")] = 0;
	return rc;
}

/* ------------------------------------------------------------------- the way back */

static void wait_a_little(void)
{
	nanosleep(&(struct timespec){.tv_nsec = TRY_NS}, NULL);
}

/* What is left in the cgroup would have to fit in memory when the swap goes. */
static void empty_group(const struct swap *s)
{
	for (int i = 0; i < TRIES; i++) {
		FILE *f = fopen(s->procs, "re");
		bool any = false;
		int pid;

		while (f && fscanf(f, "%d", &pid) == 1) {
			any = true;
			kill(pid, SIGKILL);
		}
		if (f)
			fclose(f);
		if (!any)
			return;
		wait_a_little();
	}
}

static void undo(const struct swap *s)
{
	if (s->group)
		empty_group(s);
	if (s->swapping && swapoff(s->dev) && errno != EINVAL)
		fprintf(stderr, "hmm bench: %s is still swapped to: %s\n", s->dev, strerror(errno));
	if (s->node)
		unlink(s->dev);
	if (s->zram >= 0) {
		put_number(s->sys, "reset", 1);
		put_number(CONTROL, "hot_remove", (unsigned)s->zram);
	}
	if (s->cluster[0])
		put(CLUSTER, s->cluster);
	for (int i = 0; s->group && rmdir(s->dir) && errno == EBUSY && i < TRIES; i++)
		wait_a_little(); /* who was killed in there takes a moment */
	if (s->subtree)
		put(SUBTREE, "-memory");
}

static int start_undoer(struct swap *s)
{
	int fd[2];
	pid_t pid;
	char byte;

	if (pipe2(fd, O_CLOEXEC))
		return -errno;
	pid = fork();
	if (pid < 0) {
		int rc = -errno;

		close(fd[0]);
		close(fd[1]);
		return rc;
	}
	if (!pid) {
		sigset_t all;

		sigfillset(&all);
		sigprocmask(SIG_BLOCK, &all, NULL);
		setsid();
		close(fd[1]);
		while (read(fd[0], &byte, 1) < 0 && errno == EINTR)
			;
		undo(s);
		_exit(0);
	}
	close(fd[0]);
	s->undoer = pid; /* by us: what is in there is the other one's, too */
	s->pipe = fd[1];
	return 0;
}

void swap_end(struct swap *s)
{
	if (s->undoer > 0) {
		close(s->pipe);
		while (waitpid(s->undoer, NULL, 0) < 0 && errno == EINTR)
			;
	}
	if (s->lock >= 0)
		close(s->lock);
	munmap(s, sizeof(*s));
}

/* ------------------------------------------------------------------- setting it up */

static int make_group(struct bench *b, struct swap *s, uint64_t limit)
{
	char have[256], path[128];
	int rc = 0;

	s->v2 = !access(V2 "cgroup.controllers", F_OK);
	if (s->v2 && get(SUBTREE, have, sizeof(have)) == 0 && !strstr(have, "memory")) {
		s->subtree = true;
		rc = put(SUBTREE, "+memory");
	}
	snprintf(s->dir, sizeof(s->dir), "%shmm-bench-%d", s->v2 ? V2 : V1, (int)s->owner);
	snprintf(s->procs, sizeof(s->procs), "%s/cgroup.procs", s->dir);
	snprintf(s->usage, sizeof(s->usage), "%s/%s", s->dir, s->v2 ? "memory.current" : "memory.usage_in_bytes");
	if (!rc) {
		s->group = true;
		rc = mkdir(s->dir, 0755) ? -errno : 0;
	}
	if (rc)
		return bench_skip(b, "no memory cgroup: %s: %s", s->dir, strerror(-rc));
	snprintf(path, sizeof(path), "%s/", s->dir);
	rc = put_number(path, s->v2 ? "memory.max" : "memory.limit_in_bytes", limit);
	if (!rc && !s->v2)
		rc = put_number(path, "memory.swappiness", 100);
	return rc ? bench_skip(b, "the limit of the memory cgroup: %s", strerror(-rc)) : 0;
}

/* What mkswap(8) writes. */
static int write_header(const char *dev, uint64_t bytes)
{
	struct {
		char boot[1024];
		uint32_t version, last_page, bad;
		char rest[PAGE - 1024 - 12 - 10], magic[10];
	} h = {.version = 1,
	       .last_page = (uint32_t)(bytes / PAGE - 1),
	       .magic = {'S', 'W', 'A', 'P', 'S', 'P', 'A', 'C', 'E', '2'}};
	int fd = open(dev, O_WRONLY | O_CLOEXEC), rc = 0;

	_Static_assert(sizeof(h) == PAGE, "one page");
	if (fd < 0)
		return -errno;
	if (write(fd, &h, sizeof(h)) != (ssize_t)sizeof(h))
		rc = -EIO;
	close(fd);
	return rc;
}

static int make_zram(struct bench *b, struct swap *s)
{
	char text[64], path[128];
	unsigned major_nr, minor_nr;
	int rc;

	if (get(CLUSTER, text, sizeof(text)) || strlen(text) >= sizeof(s->cluster))
		return bench_skip(b, "no " CLUSTER);
	memcpy(s->cluster, text, strlen(text) + 1);
	rc = put(CLUSTER, "0");
	/* To read it makes a device: nobody knows of that one before. */
	if (!rc)
		rc = get(CONTROL "hot_add", text, sizeof(text));
	if (rc)
		return bench_skip(b, "a new zram device: %s", strerror(-rc));
	s->zram = atoi(text);
	snprintf(s->dev, sizeof(s->dev), "/dev/zram%d", s->zram);
	snprintf(s->sys, sizeof(s->sys), "/sys/block/zram%d/", s->zram);
	snprintf(path, sizeof(path), "%scomp_algorithm", s->sys);
	rc = put(path, "lz4");
	if (rc)
		return bench_skip(b, "zram without lz4: %s", strerror(-rc));
	rc = put_number(s->sys, "disksize", s->disk);
	if (!rc && access(s->dev, F_OK)) {
		snprintf(path, sizeof(path), "%sdev", s->sys);
		if (get(path, text, sizeof(text)) || sscanf(text, "%u:%u", &major_nr, &minor_nr) != 2)
			return bench_skip(b, "no %s", s->dev);
		s->node = true;
		rc = mknod(s->dev, S_IFBLK | 0600, makedev(major_nr, minor_nr)) ? -errno : 0;
	}
	if (!rc)
		rc = write_header(s->dev, s->disk);
	if (!rc) {
		s->swapping = true;
		if (swapon(s->dev, SWAP_FLAG_PREFER | PRIORITY))
			rc = -errno;
	}
	return rc ? bench_skip(b, "swap on %s: %s", s->dev, strerror(-rc)) : 0;
}

int swap_begin(struct bench *b, uint64_t limit, struct swap **sp)
{
	struct swap *s;
	int rc;

	if (geteuid())
		return bench_skip(b, "needs root");
	if (access(CONTROL "hot_add", F_OK))
		return bench_skip(b, "this kernel has no zram (or: modprobe zram)");
	s = mmap(NULL, sizeof(*s), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (s == MAP_FAILED)
		return bench_skip(b, "out of memory");
	s->zram = -1;
	s->owner = getpid();
	s->disk = 2 * (uint64_t)b->npages * PAGE;
	s->disk = s->disk > DISK_LEAST ? s->disk : DISK_LEAST;
	s->lock = open(CLUSTER, O_RDONLY | O_CLOEXEC);
	if (s->lock < 0 || flock(s->lock, LOCK_EX | LOCK_NB))
		rc = bench_skip(b, "somebody else is at it: %s: %s", CLUSTER, strerror(errno));
	else if ((rc = start_undoer(s)))
		rc = bench_skip(b, "a process to take it back: %s", strerror(-rc));
	else
		rc = make_group(b, s, limit);
	if (!rc)
		rc = make_zram(b, s);
	if (rc) {
		swap_end(s);
		return rc;
	}
	*sp = s;
	return 0;
}

const char *swap_procs(const struct swap *s)
{
	return s->procs;
}

uint64_t swap_usage(const struct swap *s)
{
	char text[256], path[128];
	unsigned long long group = 0, pool = 0;

	if (!get(s->usage, text, sizeof(text)))
		group = strtoull(text, NULL, 10);
	snprintf(path, sizeof(path), "%smm_stat", s->sys);
	if (!get(path, text, sizeof(text)) && sscanf(text, "%*u %*u %llu", &pool) != 1)
		pool = 0;
	return group + pool;
}
