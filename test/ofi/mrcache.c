/* SPDX-License-Identifier: MIT */
/*
 * A libfabric program that changes memory between two sends of it, and looks what
 * the peer gets.  It knows nothing of us; mrcache.py preloads the card that it
 * uses, and a memory monitor or none.
 *
 * One line a case: what changed, and what the second send gave:
 *
 *	new	what is in memory now
 *	stale	what was there before
 *	refused	the registration fails, with a number
 *	served	it does not, though the program has no right to that memory
 */
#include <errno.h>
#include <malloc.h>
#include <pthread.h>
#include <rdma/fabric.h>
#include <rdma/fi_domain.h>
#include <rdma/fi_endpoint.h>
#include <rdma/fi_errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "card.h"

#define SIZE 65536ul
#define LARGE (4ul << 20) /* malloc gives it back to the system when it is freed */
#define THREADS 3u
#define CHURN 500u
#define PROT (PROT_READ | PROT_WRITE)
#define FLAGS (MAP_PRIVATE | MAP_ANONYMOUS)

#define CHECK(cond)                                                                           \
	do {                                                                                  \
		if (!(cond)) {                                                                \
			printf("FAIL: line %d: %s (%s)\n", __LINE__, #cond, strerror(errno)); \
			exit(1);                                                              \
		}                                                                             \
	} while (0)

static struct fid_domain *domain;

static void domain_open(void)
{
	struct fi_info *hints = fi_allocinfo(), *info;
	struct fid_fabric *fabric;

	CHECK(hints);
	hints->fabric_attr->prov_name = strdup("verbs");
	hints->mode = ~0ull;
	hints->domain_attr->mr_mode = FI_MR_LOCAL | FI_MR_ALLOCATED | FI_MR_VIRT_ADDR | FI_MR_PROV_KEY;
	hints->ep_attr->type = FI_EP_DGRAM;
	CHECK(!fi_getinfo(FI_VERSION(1, 13), NULL, NULL, 0, hints, &info));
	CHECK(!fi_fabric(info->fabric_attr, &fabric, NULL));
	CHECK(!fi_domain(fabric, info, &domain, NULL));
	fi_freeinfo(info);
	fi_freeinfo(hints);
}

/* As a send does: register, let the peer have it, let go.  Returns 0 and what the peer got, or -errno. */
static int sends(const char *mem, size_t len, char *got)
{
	struct fid_mr *mr;
	int rc = fi_mr_reg(domain, mem, len, FI_SEND | FI_RECV, 0, 0, 0, &mr, NULL);

	if (rc)
		return rc;
	rc = card_peer_reads(fi_mr_key(mr), mem, 1, got);
	fi_close(&mr->fid);
	return rc;
}

static char *map(void *at)
{
	return mmap(at, SIZE, PROT, FLAGS | (at ? MAP_FIXED : 0), -1, 0);
}

/* Memory with 'a' in it that has been sent, and again, for which nothing was registered anew. */
static char *sent(void)
{
	char *mem = map(NULL), got = 0;
	unsigned before, tries;

	CHECK(mem != MAP_FAILED);
	memset(mem, 'a', SIZE);
	CHECK(!sends(mem, SIZE, &got) && got == 'a');
	/* Of what was there before somebody may still have to be told: that costs a registration, not more. */
	for (tries = 0; tries < 100; tries++) {
		before = card_registrations();
		CHECK(!sends(mem, SIZE, &got) && got == 'a');
		if (card_registrations() == before)
			return mem;
		usleep(1000);
	}
	printf("unchanged: registered again\n");
	return mem;
}

static void again(const char *what, const char *mem, size_t len)
{
	char got = 0;
	int rc = sends(mem, len, &got);

	if (rc)
		printf("%s: refused %d\n", what, -rc);
	else
		printf("%s: %s\n", what, got == mem[0] ? "new" : "stale");
}

static void unmap_raw(void)
{
	char *mem = sent();

	CHECK(!syscall(SYS_munmap, mem, SIZE));
	CHECK(syscall(SYS_mmap, mem, SIZE, PROT, FLAGS | MAP_FIXED_NOREPLACE, -1, 0) == (long)mem);
	memset(mem, 'b', SIZE);
	again("raw munmap and mmap", mem, SIZE);
}

static void unmap_libc(void)
{
	char *mem = sent();

	CHECK(!munmap(mem, SIZE));
	CHECK(map(mem) == mem);
	memset(mem, 'b', SIZE);
	again("munmap and mmap", mem, SIZE);
}

static void map_fixed_raw(void)
{
	char *mem = sent();

	CHECK(syscall(SYS_mmap, mem, SIZE, PROT, FLAGS | MAP_FIXED, -1, 0) == (long)mem);
	memset(mem, 'b', SIZE);
	again("raw MAP_FIXED over it", mem, SIZE);
}

static void remap_raw(void)
{
	char *mem = sent(), *to = map(NULL);

	CHECK(syscall(SYS_mremap, mem, SIZE, SIZE, MREMAP_MAYMOVE | MREMAP_FIXED, to) == (long)to);
	CHECK(syscall(SYS_mmap, mem, SIZE, PROT, FLAGS | MAP_FIXED_NOREPLACE, -1, 0) == (long)mem);
	memset(mem, 'b', SIZE);
	again("raw mremap, and mmap in its place", mem, SIZE);
}

static void dontneed_raw(void)
{
	char *mem = sent();

	CHECK(!syscall(SYS_madvise, mem, SIZE, MADV_DONTNEED));
	memset(mem, 'b', SIZE);
	again("raw MADV_DONTNEED", mem, SIZE);
}

static void pageout(void)
{
	char *mem = sent();

	CHECK(!madvise(mem, SIZE, MADV_PAGEOUT));
	memset(mem, 'b', SIZE);
	again("MADV_PAGEOUT", mem, SIZE);
}

static void protect(void)
{
	char *mem = sent(), got = 0;
	int rc;

	CHECK(!mprotect(mem, SIZE, PROT_READ));
	CHECK(!mprotect(mem, SIZE, PROT_NONE));
	rc = sends(mem, SIZE, &got);
	if (rc)
		printf("mprotect READ, then NONE: refused %d\n", -rc);
	else
		printf("mprotect READ, then NONE: served\n");
}

static void forks(void)
{
	char *mem = sent();
	int status;
	pid_t pid = fork();

	if (!pid) {
		/* Nor may the child be told that its parent's registrations are good for it. */
		mem[0] = 'c';
		_exit(mem[0] != 'c');
	}
	CHECK(pid > 0);
	memset(mem, 'b', SIZE);
	again("fork, and the parent writes", mem, SIZE);
	CHECK(waitpid(pid, &status, 0) == pid && !status);
	again("fork, and the child has ended", mem, SIZE);
}

static void mallocs(void)
{
	char *mem, *first, got = 0;

	mallopt(M_MMAP_THRESHOLD, LARGE / 2); /* a mapping of its own, which ends with it */
	mem = first = malloc(LARGE);
	memset(mem, 'a', LARGE);
	CHECK(!sends(mem, LARGE, &got) && got == 'a');
	free(mem);
	mem = malloc(LARGE);
	memset(mem, 'b', LARGE);
	if (mem == first)
		again("free and malloc", mem, LARGE);
	else
		printf("free and malloc: elsewhere\n");
	free(mem);
}

/* Threads that map, send, change and unmap in ways that tell nobody but the kernel, and one that forks. */
static _Atomic unsigned churned, wrong;

static void *churn(void *arg)
{
	unsigned seed = (unsigned)(uintptr_t)arg;

	for (unsigned i = 0; i < CHURN; i++) {
		size_t len = 4096ul << rand_r(&seed) % 4;
		char *mem = mmap(NULL, len, PROT, FLAGS, -1, 0), got = 0;

		for (unsigned k = 0; k < 4; k++) {
			char c = (char)(i + k);

			memset(mem, c, len);
			if (sends(mem, len, &got) || got != c)
				wrong++;
			churned++;
			if (k == 0)
				syscall(SYS_madvise, mem, len, MADV_DONTNEED);
			else if (k == 1)
				syscall(SYS_mmap, mem, len, PROT, FLAGS | MAP_FIXED, -1, 0);
			else if (k == 2)
				mprotect(mem, len, PROT);
		}
		syscall(SYS_munmap, mem, len);
	}
	return NULL;
}

static void churns(void)
{
	pthread_t t[THREADS];

	for (uintptr_t i = 0; i < THREADS; i++)
		CHECK(!pthread_create(&t[i], NULL, churn, (void *)(i + 1)));
	while (churned < 4 * CHURN * THREADS) {
		pid_t pid = fork();

		if (!pid)
			_exit(0);
		CHECK(pid > 0 && waitpid(pid, NULL, 0) == pid);
	}
	for (unsigned i = 0; i < THREADS; i++)
		pthread_join(t[i], NULL);
	printf("threads: %s\n", wrong ? "stale" : "new");
}

int main(int argc, char *argv[])
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	domain_open();
	unmap_raw();
	unmap_libc();
	map_fixed_raw();
	remap_raw();
	dontneed_raw();
	pageout();
	protect();
	forks();
	mallocs();
	if (argc > 1)
		churns();
	return 0;
}
