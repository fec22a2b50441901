/* SPDX-License-Identifier: MIT */
/*
 * Two processes: one reads and writes at random what the other exposes, while that
 * one frees, maps, drops, protects, forks and sends away to a device.
 *
 * What is read must have been there at a moment between the beginning and the end
 * of the read.  The owner counts changes of each page, before and after, in memory
 * that both see; and each word of a page is its number and that of the change.
 */
#include <arpa/inet.h>
#include <pthread.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#include "drivers/ofi/ep.h"
#include "drivers/ofi/rdma.h"
#include "rdma.h"
#include "umm/hooks.h"

#define PAGE 4096u
#define WORDS (PAGE / sizeof(uint64_t))
#define NPAGES 256u
#define FORKS_EVERY 40u
#define FUZZES 300u
#define LARGE (512u * (size_t)RDMA_CHUNK)

static unsigned operations(void)
{
	return getenv("HMM_TEST_LONG") ? 1000000 : 10000;
}

/* -------------------------------------------------------------------- owner */

struct owner {
	struct common *c;
	struct umm_space *space;
	struct hmm_mm *mm;
	struct hmm_device *away;
	struct hmm_rdma *rdma;
	char *read, *write;
	unsigned seed;
};

static char *map(char *at, size_t len)
{
	return mmap(at, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | (at ? MAP_FIXED : 0), -1, 0);
}

static void fill(char *page, unsigned nr, uint64_t change)
{
	for (unsigned i = 0; i < WORDS; i++)
		((uint64_t *)page)[i] = (uint64_t)nr << 48 | change;
}

static void fork_one(void)
{
	pid_t pid = fork();

	if (!pid)
		_exit(0);
	CHECK(pid > 0 && waitpid(pid, NULL, 0) == pid);
}

/* Replaces what is in page @nr by the next change, in one of many ways. */
static void change_page(struct owner *o, unsigned nr)
{
	char *page = o->read + (size_t)nr * PAGE;
	uint64_t to = o->c->begun[nr] + 1;

	o->c->begun[nr] = to;
	switch (rand_r(&o->seed) % 8) {
	case 0:
		CHECK(!munmap(page, PAGE));
		CHECK(map(page, PAGE) == page);
		break;
	case 1: /* where nobody but the kernel sees it */
		CHECK(!syscall(SYS_munmap, page, PAGE));
		CHECK(syscall(SYS_mmap, page, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1,
			      0) == (long)page);
		break;
	case 2:
		CHECK(map(page, PAGE) == page);
		break;
	case 3: /* raw now and then: to map it anew may take half a second (doc/devices.md) */
		if (rand_r(&o->seed) % 32)
			CHECK(!madvise(page, PAGE, MADV_DONTNEED));
		else
			CHECK(!syscall(SYS_madvise, page, PAGE, MADV_DONTNEED));
		break;
	case 4:
		CHECK(!mprotect(page, PAGE, PROT_NONE));
		CHECK(!mprotect(page, PAGE, PROT_READ | PROT_WRITE));
		break;
	case 5:
		CHECK(!mprotect(page, PAGE, PROT_READ));
		CHECK(!mprotect(page, PAGE, PROT_READ | PROT_WRITE));
		break;
	case 6: { /* moved away, and back */
		char *to_ = map(NULL, PAGE);

		CHECK(mremap(page, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to_) == to_);
		CHECK(mremap(to_, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, page) == page);
		break;
	}
	default:
		break; /* written, no more */
	}
	fill(page, nr, to);
	o->c->done[nr] = to;
	o->c->changes++;
}

/* Contents stay as they are. */
static void disturb(struct owner *o)
{
	unsigned first = rand_r(&o->seed) % NPAGES, n = 1 + rand_r(&o->seed) % 32;
	char *base = rand_r(&o->seed) % 2 ? o->read : o->write;
	uint64_t start = (uintptr_t)base + (uint64_t)first * PAGE, end, moved = 0;

	end = start + (uint64_t)(first + n > NPAGES ? NPAGES - first : n) * PAGE;
	switch (rand_r(&o->seed) % 3) {
	case 0:
		if (base == o->write) {
			CHECK(!mprotect((void *)(uintptr_t)start, end - start, PROT_READ));
			CHECK(!mprotect((void *)(uintptr_t)start, end - start, PROT_READ | PROT_WRITE));
		}
		break;
	default:
		if (o->mm && !hmm_migrate_to_device(o->mm, o->away, start, end, NULL, &moved))
			o->c->away += moved;
		break;
	}
}

static void owner_open(struct owner *o, int fd)
{
	const struct hmm_rdma_params params = {.provider = provider()};
	char err[200] = "";
	int rc;

	o->c = common_of(fd);
	o->read = map(NULL, NPAGES * PAGE);
	o->write = map(NULL, NPAGES * PAGE);
	CHECK(!umm_space_open_self(&o->space));
	rc = hmm_mm_open(o->space, &o->mm);
	if (rc) {
		printf("pages cannot go to a device here: error %d\n", -rc);
		o->mm = NULL;
	} else {
		CHECK(!hmm_device_open("lz4", &o->away, err, sizeof(err)));
		CHECK(!hmm_mm_add_device(o->mm, o->away));
	}
	umm_hooks_set(o->space);
	rc = hmm_rdma_open(o->space, o->mm, &params, &o->rdma, err, sizeof(err));
	if (rc) {
		printf("SKIP: %s\n", err);
		o->c->ready = -1;
		exit(77);
	}
	hmm_rdma_addr(o->rdma, o->c->addr);
	CHECK(!hmm_rdma_expose(o->rdma, o->read, NPAGES * PAGE, HMM_RDMA_READ, &o->c->read));
	CHECK(!hmm_rdma_expose(o->rdma, o->write, NPAGES * PAGE, HMM_RDMA_READ | HMM_RDMA_WRITE, &o->c->write));
	/* Part of a page, in the middle of one; two pages behind it are not mapped. */
	CHECK(!hmm_rdma_expose(o->rdma, o->read + 100, 1000, HMM_RDMA_READ, &o->c->other));
	o->c->read_at = (uintptr_t)o->read;
	o->c->write_at = (uintptr_t)o->write;
	o->c->other_at = (uintptr_t)o->read + 100;
	o->c->len = NPAGES * PAGE;
	for (unsigned i = 0; i < NPAGES; i++)
		fill(o->read + (size_t)i * PAGE, i, 0);
}

static void owner_close(struct owner *o)
{
	hmm_rdma_stats(o->rdma, &o->c->stats);
	CHECK(!hmm_rdma_unexpose(o->rdma, &o->c->read));
	CHECK(hmm_rdma_unexpose(o->rdma, &o->c->read) == -ENOENT);
	hmm_rdma_close(o->rdma);
	umm_hooks_set(NULL);
	CHECK(!hmm_mm_close(o->mm));
	hmm_device_close(o->away);
	umm_space_close(o->space);
}

/* Each page in a state of its own, for who looks at edges(). */
enum { GONE, NONE_, READONLY, AWAY, DROPPED, PLAIN, LAST };

static void owner_edges(struct owner *o)
{
	char *page[LAST];
	uint64_t moved = 0;

	for (unsigned i = 0; i < LAST; i++) {
		page[i] = o->write + (size_t)i * PAGE;
		fill(page[i], i, 1);
	}
	CHECK(!syscall(SYS_munmap, page[GONE], PAGE));
	CHECK(!syscall(SYS_mprotect, page[NONE_], PAGE, PROT_NONE));
	CHECK(!mprotect(page[READONLY], PAGE, PROT_READ));
	if (o->mm)
		CHECK(!hmm_migrate_to_device(o->mm, o->away, (uintptr_t)page[AWAY], (uintptr_t)page[AWAY] + PAGE, NULL,
					     &moved));
	o->c->away = moved;
	CHECK(!madvise(page[DROPPED], PAGE, MADV_DONTNEED));
}

/* The one that was gone is there again, and so on. */
static void owner_mends(struct owner *o)
{
	char *page = o->write;

	CHECK(map(page + GONE * PAGE, PAGE) == page + GONE * PAGE);
	fill(page + GONE * PAGE, GONE, 2);
	CHECK(!syscall(SYS_mprotect, page + NONE_ * PAGE, PAGE, PROT_READ | PROT_WRITE));
	CHECK(!mprotect(page + READONLY * PAGE, PAGE, PROT_READ | PROT_WRITE));
	/* And what was mapped goes, seen by nobody: it is in the notes still. */
	CHECK(!syscall(SYS_munmap, page + PLAIN * PAGE, PAGE));
	o->c->ready = 3;
}

static int owner_main(int fd, const char *what)
{
	struct owner o = {.seed = 1};
	bool quiet = !strcmp(what, "quiet");

	owner_open(&o, fd);
	if (quiet)
		owner_edges(&o);
	if (!strcmp(what, "large")) {
		quiet = true;
		o.c->write_at = (uintptr_t)map(NULL, LARGE);
		CHECK(!hmm_rdma_expose(o.rdma, (void *)(uintptr_t)o.c->write_at, LARGE, HMM_RDMA_READ, &o.c->write));
	}
	o.c->ready = 1;
	for (unsigned i = 1; !o.c->stop; i++) {
		if (quiet) {
			usleep(1000);
			if (o.c->ready == 2)
				owner_mends(&o);
			continue;
		}
		change_page(&o, rand_r(&o.seed) % NPAGES);
		if (i % 4 == 0)
			disturb(&o);
		if (i % FORKS_EVERY == 0)
			fork_one();
		/* A peer on few CPUs has to get its turn. */
		if (i % 16 == 0)
			usleep(200);
	}
	/* What a peer has written is here, for whoever looks without it. */
	if (!strcmp(what, "storm")) {
		int64_t sum = 0;

		for (unsigned i = 0; i < NPAGES * PAGE / 8; i++)
			sum += ((int64_t *)o.write)[i];
		o.c->len = (uint64_t)sum;
	}
	owner_close(&o);
	return 0;
}

/* --------------------------------------------------------------------- peer */

static void owner_ends(struct common *c, pid_t pid)
{
	int status;

	c->stop = 1;
	CHECK(waitpid(pid, &status, 0) == pid);
	CHECK(WIFEXITED(status) && !WEXITSTATUS(status));
}

static unsigned long nread, nwritten, nrefused, nzero;

static void read_some(struct common *c, struct hmm_rdma_peer *peer, unsigned *seed, char *buf)
{
	static uint64_t before[NPAGES];
	unsigned first = rand_r(seed) % NPAGES, n = rand_r(seed) % 8 ? 1 + rand_r(seed) % 3 : 1 + rand_r(seed) % 40;
	int rc;

	n = first + n > NPAGES ? NPAGES - first : n;
	for (unsigned i = 0; i < n; i++)
		before[i] = c->done[first + i];
	rc = hmm_rdma_read(peer, &c->read, c->read_at + (uint64_t)first * PAGE, buf, (size_t)n * PAGE, in_s(30));
	if (rc) {
		bool changed = false;

		CHECK(rc == -EFAULT || rc == -EPERM);
		for (unsigned i = 0; i < n; i++)
			changed |= c->begun[first + i] != before[i];
		CHECK(changed);
		nrefused++;
		return;
	}
	for (unsigned i = 0; i < n; i++) {
		uint64_t most = c->begun[first + i];

		for (unsigned k = 0; k < WORDS; k++) {
			uint64_t w = ((uint64_t *)(buf + (size_t)i * PAGE))[k], change = w & ((1ull << 48) - 1);

			if (!w && most > before[i]) {
				nzero++;
				continue; /* of a page that was new at that moment */
			}
			if (w >> 48 != first + i || change < before[i] || change > most)
				fprintf(stderr, "page %u word %u: %lx, changes %lu to %lu\n", first + i, k,
					(unsigned long)w, (unsigned long)before[i], (unsigned long)most);
			CHECK(w >> 48 == first + i && change >= before[i] && change <= most);
		}
	}
	nread++;
}

/* Words that we alone write.  A write that ends with an error may have been done or not: it is done again. */
static void write_some(struct common *c, struct hmm_rdma_peer *peer, unsigned *seed, int64_t *mine, int64_t *buf)
{
	unsigned words = NPAGES * PAGE / 8, first = rand_r(seed) % words;
	unsigned n = rand_r(seed) % 8 ? 1 + rand_r(seed) % 600 : 1 + rand_r(seed) % 20000;
	uint64_t at = c->write_at + (uint64_t)first * 8;
	int rc;

	n = first + n > words ? words - first : n;
	for (unsigned i = 0; i < n; i++)
		mine[first + i] = rand_r(seed);
	while ((rc = hmm_rdma_write(peer, &c->write, at, &mine[first], (size_t)n * 8, in_s(30)))) {
		CHECK(rc == -EFAULT || rc == -EPERM);
		nrefused++;
	}
	rc = hmm_rdma_read(peer, &c->write, at, buf, (size_t)n * 8, in_s(30));
	CHECK(!rc && !memcmp(buf, &mine[first], (size_t)n * 8));
	nwritten++;
}

static int storm(const char *self)
{
	unsigned seed = 7, words = NPAGES * PAGE / 8;
	int64_t *mine = calloc(words, 8), *buf = malloc(NPAGES * PAGE), sum = 0;
	struct hmm_rdma_peer *peer;
	struct common *c;
	pid_t pid;

	c = owner_start(self, "storm", &pid);
	if (c->ready < 0) {
		waitpid(pid, NULL, 0);
		printf("SKIP: the owner has no network\n");
		return 77;
	}
	peer = connect_to(c);
	for (unsigned i = 0; i < operations(); i++) {
		unsigned what = rand_r(&seed) % 16;

		if (what < 9)
			read_some(c, peer, &seed, (char *)buf);
		else if (what < 15)
			write_some(c, peer, &seed, mine, buf);
		else
			CHECK(!hmm_rdma_prefetch(peer, &c->read, c->read_at + rand_r(&seed) % NPAGES * PAGE, PAGE,
						 HMM_RDMA_READ, in_s(30)));
	}
	hmm_rdma_disconnect(peer);
	owner_ends(c, pid);
	for (unsigned i = 0; i < words; i++)
		sum += mine[i];
	CHECK(c->len == (uint64_t)sum);
	printf("%lu reads, %lu writes, %lu refused, %lu words of new pages; the owner: %lu changes, %lu pages away, "
	       "%lu times mapped\n",
	       nread, nwritten, nrefused, nzero, (unsigned long)c->changes, (unsigned long)c->away,
	       (unsigned long)c->stats.mapped);
	CHECK(nread > operations() / 4 && nwritten > operations() / 8 && c->changes);
	free(mine);
	free(buf);
	return 0;
}

/* Who may not, does not. */
static int rights(const char *self)
{
	char buf[8192];
	struct hmm_rdma_token bad;
	struct hmm_rdma_peer *peer;
	struct common *c;
	pid_t pid;
	char *hole;

	c = owner_start(self, "quiet", &pid);
	if (c->ready < 0) {
		waitpid(pid, NULL, 0);
		printf("SKIP: the owner has no network\n");
		return 77;
	}
	peer = connect_to(c);
	bad = c->read;
	bad.secret[5] ^= 1;
	CHECK(hmm_rdma_read(peer, &bad, c->read_at, buf, 8, in_s(20)) == -EACCES);
	CHECK(hmm_rdma_write(peer, &bad, c->read_at, buf, 8, in_s(20)) == -EACCES);
	CHECK(hmm_rdma_prefetch(peer, &bad, c->read_at, 8, HMM_RDMA_READ, in_s(20)) == -EACCES);
	bad = c->read;
	bad.id = c->write.id;
	CHECK(hmm_rdma_read(peer, &bad, c->read_at, buf, 8, in_s(20)) == -EACCES);
	CHECK(hmm_rdma_write(peer, &c->read, c->read_at, buf, 8, in_s(20)) == -EACCES);
	CHECK(hmm_rdma_prefetch(peer, &c->read, c->read_at, 8, HMM_RDMA_WRITE, in_s(20)) == -EACCES);
	/* Beyond it, at either side, and around. */
	CHECK(!hmm_rdma_read(peer, &c->other, c->other_at, buf, 1000, in_s(20)));
	CHECK(hmm_rdma_read(peer, &c->other, c->other_at, buf, 1001, in_s(20)) == -EINVAL);
	CHECK(hmm_rdma_read(peer, &c->other, c->other_at - 1, buf, 8, in_s(20)) == -EINVAL);
	CHECK(hmm_rdma_read(peer, &c->other, c->other_at + 999, buf, 2, in_s(20)) == -EINVAL);
	CHECK(hmm_rdma_read(peer, &c->other, UINT64_MAX - 3, buf, 8, in_s(20)) == -EINVAL);
	CHECK(hmm_rdma_read(peer, &c->other, c->other_at, buf, 0, in_s(20)) == -EINVAL);
	/* A pointer that is not ours, and one of which we have the first half. */
	hole = map(NULL, 2 * PAGE);
	munmap(hole + PAGE, PAGE);
	CHECK(hmm_rdma_read(peer, &c->read, c->read_at, hole, 2 * PAGE, in_s(20)) == -EFAULT);
	CHECK(hmm_rdma_write(peer, &c->write, c->write_at, hole + PAGE, 8, in_s(20)) == -EFAULT);
	CHECK(!hmm_rdma_read(peer, &c->read, c->read_at, hole, PAGE, in_s(20)));
	/* One that is ours, and may not be used so. */
	CHECK(!mprotect(hole, PAGE, PROT_READ));
	CHECK(hmm_rdma_read(peer, &c->read, c->read_at, hole, PAGE, in_s(20)) == -EFAULT);
	CHECK(!hmm_rdma_write(peer, &c->write, c->write_at + PLAIN * PAGE, hole, 8, in_s(20)));
	CHECK(!mprotect(hole, PAGE, PROT_NONE));
	CHECK(hmm_rdma_write(peer, &c->write, c->write_at + PLAIN * PAGE, hole, 8, in_s(20)) == -EFAULT);
	CHECK(hmm_rdma_read(peer, &c->read, c->read_at, hole, PAGE, in_s(20)) == -EFAULT);
	hmm_rdma_disconnect(peer);
	owner_ends(c, pid);
	CHECK(c->stats.refused == 10);
	return 0;
}

static int reads(struct common *c, struct hmm_rdma_peer *peer, unsigned first, unsigned n, uint64_t *buf)
{
	memset(buf, 9, (size_t)n * PAGE);
	return hmm_rdma_read(peer, &c->write, c->write_at + (uint64_t)first * PAGE, buf, (size_t)n * PAGE, in_s(20));
}

static int writes(struct common *c, struct hmm_rdma_peer *peer, unsigned nr, const uint64_t *buf)
{
	return hmm_rdma_write(peer, &c->write, c->write_at + (uint64_t)nr * PAGE, buf, PAGE, in_s(20));
}

/* What a page is like decides, at the time of the access. */
static int edges(const char *self)
{
	static uint64_t buf[LAST * WORDS];
	struct hmm_rdma_peer *peer;
	struct common *c;
	pid_t pid;

	c = owner_start(self, "quiet", &pid);
	if (c->ready < 0) {
		waitpid(pid, NULL, 0);
		printf("SKIP: the owner has no network\n");
		return 77;
	}
	peer = connect_to(c);
	CHECK(reads(c, peer, GONE, 1, buf) == -EFAULT && writes(c, peer, GONE, buf) == -EFAULT);
	CHECK(reads(c, peer, NONE_, 1, buf) == -EFAULT && writes(c, peer, NONE_, buf) != 0);
	CHECK(!reads(c, peer, READONLY, 1, buf) && buf[7] == ((uint64_t)READONLY << 48 | 1));
	CHECK(writes(c, peer, READONLY, buf) == -EPERM);
	CHECK(!reads(c, peer, AWAY, 1, buf) && buf[WORDS - 1] == ((uint64_t)AWAY << 48 | 1));
	CHECK(!reads(c, peer, DROPPED, 1, buf) && !buf[0] && !buf[WORDS - 1]);
	CHECK(!reads(c, peer, PLAIN, 1, buf) && buf[0] == ((uint64_t)PLAIN << 48 | 1));
	CHECK(!hmm_rdma_prefetch(peer, &c->write, c->write_at, c->len, HMM_RDMA_WRITE, in_s(20)));
	CHECK(reads(c, peer, READONLY, LAST - READONLY, buf) == 0);
	/* The hole is in the middle. */
	CHECK(reads(c, peer, 0, LAST, buf) == -EFAULT);
	c->ready = 2;
	while (c->ready != 3)
		usleep(1000);
	CHECK(!reads(c, peer, GONE, 1, buf) && buf[3] == ((uint64_t)GONE << 48 | 2));
	CHECK(!reads(c, peer, NONE_, 1, buf) && buf[3] == ((uint64_t)NONE_ << 48 | 1));
	CHECK(!writes(c, peer, READONLY, buf));
	CHECK(reads(c, peer, PLAIN, 1, buf) == -EFAULT && writes(c, peer, PLAIN, buf) == -EFAULT);
	hmm_rdma_disconnect(peer);
	owner_ends(c, pid);
	printf("%lu page was away\n", (unsigned long)c->away);
	return 0;
}

/* One who speaks libfabric, and nonsense: parted with, and the next one is served. */
static int fuzz(const char *self)
{
	struct hmm_rdma_peer *peer;
	unsigned seed = 11, ended = 0;
	struct common *c;
	char buf[64];
	pid_t pid;

	c = owner_start(self, "quiet", &pid);
	if (c->ready < 0) {
		waitpid(pid, NULL, 0);
		printf("SKIP: the owner has no network\n");
		return 77;
	}
	for (unsigned i = 0; i < FUZZES; i++) {
		struct ofi_net net;
		struct ofi_ep ep;
		char host[HMM_RDMA_ADDR_MAX], junk[2 * sizeof(struct rdma_request)], answer[4096];
		struct rdma_request q = {.magic = RDMA_MAGIC,
					 .op = rand_r(&seed) % 5,
					 .token = rand_r(&seed) % 2 ? c->read : c->write,
					 .addr = c->write_at + rand_r(&seed) % 100000,
					 .len = rand_r(&seed) % 3 ? (uint64_t)rand_r(&seed) % 4096
								  : (uint64_t)rand_r(&seed) << 30,
					 .patience_ns = rand_r(&seed),
					 .access = rand_r(&seed) % 8,
					 .zero = rand_r(&seed) % 4 == 0};
		size_t len = rand_r(&seed) % 2 ? sizeof(q) : rand_r(&seed) % sizeof(junk);
		struct ofi_op op;

		for (size_t k = 0; k < sizeof(junk); k++)
			junk[k] = (char)rand_r(&seed);
		if (rand_r(&seed) % 4)
			memcpy(junk, &q, sizeof(q));
		snprintf(host, sizeof(host), "%s", c->addr);
		*strrchr(host, ':') = '\0';
		CHECK(!ofi_net_open(&net, provider(), host, strrchr(c->addr, ':') + 1, 0, NULL, 0));
		CHECK(!ofi_connect(&net, &ep, in_s(20)));
		CHECK(!ofi_post_recv(&ep, answer, sizeof(answer), NULL, &op, in_s(5)));
		if (!ofi_send(&ep, junk, len, NULL, in_s(5)) && rand_r(&seed) % 2)
			ended += ofi_wait(&ep, &op, in_s(0) + 20000000) != 0;
		ofi_ep_close(&ep);
		ofi_net_close(&net);
	}
	peer = connect_to(c);
	CHECK(!hmm_rdma_read(peer, &c->read, c->read_at, buf, sizeof(buf), in_s(20)));
	hmm_rdma_disconnect(peer);
	owner_ends(c, pid);
	printf("%u of %u got no answer\n", ended, FUZZES);
	return 0;
}

/* A socket that speaks something else does not keep the owner from its peers. */
static void garbage(const struct common *c, unsigned *seed)
{
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	int fd = socket(AF_INET, SOCK_STREAM, 0);
	char junk[512];

	to.sin_port = htons((uint16_t)atoi(strrchr(c->addr, ':') + 1));
	CHECK(fd >= 0 && !connect(fd, (struct sockaddr *)&to, sizeof(to)));
	for (size_t i = 0; i < sizeof(junk); i++)
		junk[i] = (char)rand_r(seed);
	CHECK(send(fd, junk, 1 + rand_r(seed) % sizeof(junk), MSG_NOSIGNAL) > 0);
	close(fd);
}

/* The owner dies in the middle of a transfer: an error, before the deadline. */
static void *kill_soon(void *arg)
{
	usleep(50000);
	kill(*(pid_t *)arg, SIGKILL);
	return NULL;
}

static int dies(const char *self)
{
	char *buf = malloc(NPAGES * PAGE);
	struct hmm_rdma_peer *peer;
	struct common *c;
	unsigned seed = 3;
	uint64_t deadline;
	pthread_t thread;
	pid_t pid;
	int rc;

	c = owner_start(self, "quiet", &pid);
	if (c->ready < 0) {
		waitpid(pid, NULL, 0);
		printf("SKIP: the owner has no network\n");
		return 77;
	}
	for (unsigned i = 0; i < 20; i++)
		garbage(c, &seed);
	peer = connect_to(c);
	CHECK(!hmm_rdma_read(peer, &c->read, c->read_at, buf, NPAGES * PAGE, in_s(20)));
	CHECK(!pthread_create(&thread, NULL, kill_soon, &pid));
	deadline = in_s(60);
	do
		rc = hmm_rdma_read(peer, &c->read, c->read_at, buf, NPAGES * PAGE, deadline);
	while (!rc);
	CHECK(rc != -ETIME);
	CHECK(hmm_rdma_read(peer, &c->read, c->read_at, buf, 8, deadline) == -ENOTCONN);
	pthread_join(thread, NULL);
	hmm_rdma_disconnect(peer);
	CHECK(waitpid(pid, NULL, 0) == pid);
	/* One that stands still. */
	c = owner_start(self, "quiet", &pid);
	peer = connect_to(c);
	kill(pid, SIGSTOP);
	CHECK(waitpid(pid, NULL, WUNTRACED) == pid);
	CHECK(hmm_rdma_read(peer, &c->read, c->read_at, buf, 8, in_s(1)) == -ETIME);
	CHECK(hmm_rdma_read(peer, &c->read, c->read_at, buf, 8, in_s(1)) == -ENOTCONN);
	kill(pid, SIGCONT);
	hmm_rdma_disconnect(peer);
	peer = connect_to(c);
	CHECK(!hmm_rdma_read(peer, &c->read, c->read_at, buf, 8, in_s(20)));
	hmm_rdma_disconnect(peer);
	owner_ends(c, pid);
	free(buf);
	return 0;
}

/* Who takes what it has asked for very slowly does not keep up who closes. */
static int slow(const char *self)
{
	struct rdma_request q = {.magic = RDMA_MAGIC, .op = RDMA_OP_READ, .len = LARGE, .patience_ns = UINT64_MAX};
	char host[HMM_RDMA_ADDR_MAX], *buf = malloc(RDMA_CHUNK);
	unsigned taken = 0, all = LARGE / RDMA_CHUNK;
	struct ofi_net net;
	struct ofi_ep ep;
	struct common *c;
	size_t len;
	pid_t pid;

	c = owner_start(self, "large", &pid);
	if (c->ready < 0) {
		waitpid(pid, NULL, 0);
		printf("SKIP: the owner has no network\n");
		return 77;
	}
	q.token = c->write;
	q.addr = c->write_at;
	snprintf(host, sizeof(host), "%s", c->addr);
	*strrchr(host, ':') = '\0';
	CHECK(!ofi_net_open(&net, provider(), host, strrchr(c->addr, ':') + 1, 0, NULL, 0));
	CHECK(!ofi_connect(&net, &ep, in_s(20)));
	CHECK(!ofi_send(&ep, &q, sizeof(q), NULL, in_s(20)));
	while (taken < all && !ofi_recv(&ep, buf, RDMA_CHUNK, NULL, &len, in_s(20))) {
		CHECK(len == RDMA_CHUNK);
		if (++taken == 8)
			c->stop = 1;
		if (taken > 8)
			usleep(20000);
	}
	CHECK(taken >= 8 && taken < all / 2);
	owner_ends(c, pid);
	ofi_ep_close(&ep);
	ofi_net_close(&net);
	free(buf);
	printf("%u of %u chunks were taken\n", taken, all);
	return 0;
}

int main(int argc, char *argv[])
{
	if (argc == 4 && !strcmp(argv[1], "owner"))
		return owner_main(atoi(argv[2]), argv[3]);
	CHECK(argc == 2);
	if (!strcmp(argv[1], "storm"))
		return storm("/proc/self/exe");
	if (!strcmp(argv[1], "edges"))
		return edges("/proc/self/exe");
	if (!strcmp(argv[1], "fuzz"))
		return fuzz("/proc/self/exe");
	if (!strcmp(argv[1], "rights"))
		return rights("/proc/self/exe");
	if (!strcmp(argv[1], "slow"))
		return slow("/proc/self/exe");
	CHECK(!strcmp(argv[1], "dies"));
	return dies("/proc/self/exe");
}
