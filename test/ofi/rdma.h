/* SPDX-License-Identifier: MIT */
/*
 * An owner of exposed memory in a process of its own, for tests and measurements.
 *
 * The test is both: run with an argument "owner" it is the owner, begun by exec so
 * that nothing of the peer's is in it.  Both see one page of memory (struct
 * common), through a descriptor that the owner inherits.
 */
#ifndef TEST_OFI_RDMA_H
#define TEST_OFI_RDMA_H

#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "hmm_rdma.h"

#define CHECK(cond)                                                                                            \
	do {                                                                                                   \
		if (!(cond)) {                                                                                 \
			fprintf(stderr, "FAIL: %s:%d: %s (%s)\n", __FILE__, __LINE__, #cond, strerror(errno)); \
			exit(1);                                                                               \
		}                                                                                              \
	} while (0)

#define COMMON_PAGES 512u

/* What both processes see. */
struct common {
	_Atomic int ready; /* 1: the rest is filled in; -1: skip */
	_Atomic int stop;  /* the owner is to end */
	char addr[HMM_RDMA_ADDR_MAX];
	struct hmm_rdma_token read, write, other;
	uint64_t read_at, write_at, other_at, len;
	/* Of page i of the range that is read: number of the change that was begun last, and of the one that is done.
	 */
	_Atomic uint64_t begun[COMMON_PAGES], done[COMMON_PAGES];
	_Atomic uint64_t changes, away;
	struct hmm_rdma_stats stats;
};

static inline uint64_t in_s(unsigned s)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ((uint64_t)ts.tv_sec + s) * 1000000000u + (uint64_t)ts.tv_nsec;
}

static inline struct common *common_of(int fd)
{
	struct common *c = mmap(NULL, sizeof(*c), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	CHECK(c != MAP_FAILED);
	return c;
}

/* Of libfabric. */
static inline const char *provider(void)
{
	const char *p = getenv("HMM_TEST_PROVIDER");

	return p ? p : "tcp";
}

/* The owner, with common memory; returns when it is ready. */
static inline struct common *owner_start(const char *self, const char *what, pid_t *pid)
{
	int fd = memfd_create("common", 0);
	struct common *c;
	char number[16];

	CHECK(fd >= 0 && !ftruncate(fd, sizeof(*c)));
	c = common_of(fd);
	snprintf(number, sizeof(number), "%d", fd);
	*pid = fork();
	CHECK(*pid >= 0);
	if (!*pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL); /* a test that fails leaves nobody behind */
		execl(self, self, "owner", number, what, (char *)NULL);
		_exit(127);
	}
	close(fd);
	while (!c->ready) {
		CHECK(waitpid(*pid, NULL, WNOHANG) == 0);
		usleep(1000);
	}
	return c;
}

static inline struct hmm_rdma_peer *connect_to(const struct common *c)
{
	struct hmm_rdma_peer *peer = NULL;
	char host[HMM_RDMA_ADDR_MAX], err[200] = "", *port;
	int rc;

	snprintf(host, sizeof(host), "%s", c->addr);
	port = strrchr(host, ':');
	CHECK(port);
	*port++ = '\0';
	/* libfabric 1.17's "net" loses about one in 500 connections by itself, with this error; "tcp" loses none. */
	for (unsigned tries = strcmp(provider(), "tcp") ? 5 : 1; tries; tries--) {
		rc = hmm_rdma_connect(provider(), host, port, in_s(20), &peer, err, sizeof(err));
		if (rc != -ENOENT)
			break;
	}
	if (rc)
		fprintf(stderr, "%d: %s\n", rc, err);
	CHECK(!rc);
	return peer;
}

#endif
