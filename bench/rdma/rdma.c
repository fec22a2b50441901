/* SPDX-License-Identifier: MIT */
/*
 * Reading what another process exposes, beside fi_read() of a buffer that it has
 * registered beforehand: the same provider, the same memory, resident, in turns.
 *
 * A peer of fi_read() must drive its provider; there a thread waits on the
 * connection all the time, as the one that serves exposed memory does.
 */
#include <pthread.h>

#include "../../test/ofi/rdma.h"
#include "drivers/ofi/ep.h"

#define LARGEST (1u << 20)
#define ROUNDS 7u

struct plain {
	struct common *c;
	char addr[OFI_ADDR_MAX];
};

/* In the common memory: where the plain one listens, and its key. */
struct beside {
	char addr[OFI_ADDR_MAX];
	uint64_t key, at;
};

static struct beside *beside_of(struct common *c)
{
	_Static_assert(sizeof(struct beside) <= sizeof(c->begun), "it has room there");
	return (struct beside *)c->begun;
}

static void *plain_main(void *arg)
{
	struct ofi_listener *l = arg;
	struct fi_info *request;
	struct ofi_ep ep;
	struct ofi_op op;
	char never;

	CHECK(!ofi_listener_next(l, &request, in_s(60)));
	CHECK(!ofi_accept(l, request, NULL, &ep, in_s(10)));
	CHECK(!ofi_post_recv(&ep, &never, 1, NULL, &op, in_s(10)));
	while (ofi_wait(&ep, &op, in_s(60)) == -ETIME)
		;
	return NULL;
}

static int owner_main(int fd)
{
	static struct ofi_net net;
	static struct ofi_listener listener;
	struct common *c = common_of(fd);
	char *mem = mmap(NULL, LARGEST, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), err[200] = "";
	struct umm_space *space;
	struct hmm_rdma *r;
	struct fid_mr *mr;
	pthread_t thread;

	memset(mem, 5, LARGEST);
	CHECK(!umm_space_open_self(&space));
	if (hmm_rdma_open(space, NULL, NULL, &r, err, sizeof(err)) ||
	    ofi_net_open(&net, "tcp", "127.0.0.1", "0", OFI_LISTEN | OFI_RMA, err, sizeof(err))) {
		fprintf(stderr, "%s\n", err);
		c->ready = -1;
		return 1;
	}
	hmm_rdma_addr(r, c->addr);
	CHECK(!hmm_rdma_expose(r, mem, LARGEST, HMM_RDMA_READ, &c->read));
	c->read_at = (uintptr_t)mem;
	CHECK(!ofi_listen(&net, &listener));
	ofi_listener_addr(&listener, beside_of(c)->addr);
	CHECK(!ofi_mr_reg(&net, mem, LARGEST, FI_REMOTE_READ, 1, &mr));
	beside_of(c)->key = fi_mr_key(mr);
	beside_of(c)->at = ofi_mr_addr(&net, mem, mem);
	CHECK(!pthread_create(&thread, NULL, plain_main, &listener));
	c->ready = 1;
	while (!c->stop)
		usleep(10000);
	return 0;
}

static void plain_connect(struct common *c, struct ofi_net *net, struct ofi_ep *ep)
{
	char host[OFI_ADDR_MAX], err[200] = "", *port;

	snprintf(host, sizeof(host), "%s", beside_of(c)->addr);
	port = strrchr(host, ':');
	*port++ = '\0';
	if (ofi_net_open(net, "tcp", host, port, OFI_RMA, err, sizeof(err)))
		fprintf(stderr, "%s\n", err);
	CHECK(net->domain && !ofi_connect(net, ep, in_s(10)));
}

static double us_each(uint64_t ns, unsigned n)
{
	return (double)ns / n / 1000;
}

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return x < y ? -1 : x > y;
}

int main(int argc, char *argv[])
{
	struct hmm_rdma_peer *peer;
	struct ofi_net net;
	struct ofi_ep ep;
	struct common *c;
	char *buf = malloc(LARGEST);
	pid_t pid;

	if (argc == 4 && !strcmp(argv[1], "owner"))
		return owner_main(atoi(argv[2]));
	c = owner_start("/proc/self/exe", "bench", &pid);
	CHECK(c->ready > 0);
	peer = connect_to(c);
	plain_connect(c, &net, &ep);
	memset(buf, 1, LARGEST);
	printf("one read, median of %u rounds in turns, tcp on loopback\n", ROUNDS);
	printf("%8s %14s %14s %7s\n", "bytes", "exposed (us)", "fi_read (us)", "ratio");
	for (unsigned len = 4096; len <= LARGEST; len *= 4) {
		if (argc == 2 && len != (unsigned)atoi(argv[1]))
			continue;
		unsigned n = len < 65536 ? 2000 : 400;
		double exposed[ROUNDS], plain[ROUNDS];

		for (unsigned round = 0; round < ROUNDS; round++) {
			uint64_t t0 = in_s(0), t1, t2;

			for (unsigned i = 0; i < n; i++)
				CHECK(!hmm_rdma_read(peer, &c->read, c->read_at, buf, len, in_s(10)));
			t1 = in_s(0);
			for (unsigned i = 0; i < n; i++) {
				struct ofi_op op;

				CHECK(!ofi_post_read(&ep, buf, len, NULL, beside_of(c)->at, beside_of(c)->key, &op,
						     in_s(10)));
				CHECK(!ofi_wait(&ep, &op, in_s(10)));
			}
			t2 = in_s(0);
			exposed[round] = us_each(t1 - t0, n);
			plain[round] = us_each(t2 - t1, n);
		}
		qsort(exposed, ROUNDS, sizeof(double), compare);
		qsort(plain, ROUNDS, sizeof(double), compare);
		printf("%8u %14.1f %14.1f %6.2fx\n", len, exposed[ROUNDS / 2], plain[ROUNDS / 2],
		       exposed[ROUNDS / 2] / plain[ROUNDS / 2]);
	}
	c->stop = 1;
	waitpid(pid, NULL, 0);
	return 0;
}
