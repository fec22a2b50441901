/* SPDX-License-Identifier: MIT */
/*
 * rtt OPS: one round trip over libfabric between two processes of this machine, as
 * long as that of a page: some 40 bytes there, 4 KiB and as much back.  Nothing is
 * sealed or looked at.  Prints one line of JSON: us, mean and median.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "drivers/ofi/ep.h"

#define ASK 40u
#define ANSWER (ASK + 4096u)

static const uint64_t ever = UINT64_MAX;

static int by_value(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

static void serve(struct ofi_net *net, int to)
{
	struct ofi_listener l;
	struct fi_info *req;
	struct ofi_ep ep;
	char addr[OFI_ADDR_MAX] = "", buf[ANSWER] = "";
	size_t len;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (ofi_listen(net, &l))
		exit(1);
	ofi_listener_addr(&l, addr);
	if (write(to, addr, sizeof(addr)) != sizeof(addr) || ofi_listener_next(&l, &req, ever) ||
	    ofi_accept(&l, req, NULL, &ep, ever))
		exit(1);
	while (!ofi_recv(&ep, buf, sizeof(buf), NULL, &len, ever) && !ofi_send(&ep, buf, ANSWER, NULL, ever))
		;
	exit(0);
}

int main(int argc, char **argv)
{
	size_t ops = argc > 1 ? (size_t)atol(argv[1]) : 0;
	char addr[OFI_ADDR_MAX], buf[ANSWER] = "", err[200];
	uint64_t *ns = calloc(ops + 1, sizeof(*ns)), sum = 0;
	struct ofi_net net;
	struct ofi_ep ep;
	int to[2];
	pid_t pid;

	if (!ops || !ns || pipe(to))
		return 2;
	pid = fork();
	if (!pid) {
		if (ofi_net_open(&net, "tcp", "127.0.0.1", "0", OFI_LISTEN, err, sizeof(err)))
			exit(77);
		serve(&net, to[1]);
	}
	close(to[1]);
	if (read(to[0], addr, sizeof(addr)) != sizeof(addr))
		return 77;
	if (ofi_net_open(&net, "tcp", "127.0.0.1", strrchr(addr, ':') + 1, 0, err, sizeof(err)) ||
	    ofi_connect(&net, &ep, ever))
		return 1;
	for (size_t i = 0; i < ops; i++) {
		struct ofi_op in, out;
		uint64_t t = ofi_now_ns();

		if (ofi_post_recv(&ep, buf, sizeof(buf), NULL, &in, ever) ||
		    ofi_post_send(&ep, buf, ASK, NULL, &out, ever) || ofi_wait(&ep, &in, ever) ||
		    ofi_wait(&ep, &out, ever))
			return 1;
		ns[i] = ofi_now_ns() - t;
		sum += ns[i];
	}
	qsort(ns, ops, sizeof(*ns), by_value);
	printf("{\"mean\": %.2f, \"median\": %.2f, \"n\": %zu}\n", (double)sum / (double)ops / 1000,
	       (double)ns[ops / 2] / 1000, ops);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	return 0;
}
