/* SPDX-License-Identifier: MIT */
/*
 * What a hit of the registration cache costs, beside UCX's cache in the same run
 * where its header was there to build with.  Devices register nothing: what is
 * measured is the cache.  Of a number of rounds, taken in turns, the best of each
 * counts: noise only ever adds.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "hmm_reg.h"
#ifdef HAVE_UCS
#include <ucs/memory/rcache.h>
#include <ucm/api/ucm.h>
#endif

#define BUFFERS 64u
#define STRIDE (1ul << 20)
#define LEN 65536ul
#define PAIRS 20000u
#define ROUNDS 25u

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static int no_map(struct hmm_device *dev, struct hmm_range *r, const struct hmm_map_run *run)
{
	return 0;
}

static void no_unmap(struct hmm_device *dev, struct hmm_range *r, const struct hmm_map_run *run,
		     const struct umm_change *why, uint64_t *dirty)
{
}

struct result {
	double get, put;
};

static void keep_best(struct result *best, uint64_t get_ns, uint64_t put_ns)
{
	double get = (double)get_ns / PAIRS, put = (double)put_ns / PAIRS;

	if (!best->get || get < best->get)
		best->get = get;
	if (!best->put || put < best->put)
		best->put = put;
}

static void *held[PAIRS];

static void round_hmm(struct hmm_reg_cache *c, char *mem, struct result *best)
{
	uint64_t t0 = now_ns(), t1;
	struct hmm_reg *reg;

	for (unsigned i = 0; i < PAIRS; i++) {
		if (hmm_reg_get(c, mem + i % BUFFERS * STRIDE + 100, LEN - 200, 0, 0, &reg))
			exit(1);
		held[i] = reg;
	}
	t1 = now_ns();
	for (unsigned i = 0; i < PAIRS; i++)
		hmm_reg_put(c, held[i]);
	keep_best(best, t1 - t0, now_ns() - t1);
}

#ifdef HAVE_UCS
static ucs_status_t ucs_reg(void *context, ucs_rcache_t *rcache, void *arg, ucs_rcache_region_t *region, uint16_t flags)
{
	return UCS_OK;
}

static void ucs_dereg(void *context, ucs_rcache_t *rcache, ucs_rcache_region_t *region)
{
}

static void ucs_dump(void *context, ucs_rcache_t *rcache, ucs_rcache_region_t *region, char *buf, size_t max)
{
	buf[0] = 0;
}

static void round_ucs(ucs_rcache_t *c, char *mem, struct result *best)
{
	uint64_t t0 = now_ns(), t1;
	ucs_rcache_region_t *reg;

	for (unsigned i = 0; i < PAIRS; i++) {
		if (ucs_rcache_get(c, mem + i % BUFFERS * STRIDE + 100, LEN - 200, PROT_READ, NULL, &reg))
			exit(1);
		held[i] = reg;
	}
	t1 = now_ns();
	for (unsigned i = 0; i < PAIRS; i++)
		ucs_rcache_region_put(c, held[i]);
	keep_best(best, t1 - t0, now_ns() - t1);
}

static ucs_rcache_t *ucs_open(void)
{
	static const ucs_rcache_ops_t ops = {.mem_reg = ucs_reg, .mem_dereg = ucs_dereg, .dump_region = ucs_dump};
	const ucs_rcache_params_t params = {
		.region_struct_size = sizeof(ucs_rcache_region_t),
		.alignment = 4096,
		.max_alignment = 4096,
		.ucm_events = UCM_EVENT_VM_UNMAPPED,
		.ucm_event_priority = 1000,
		.ops = &ops,
		.max_regions = ~0ul,
		.max_size = ~0ul,
		.max_unreleased = ~0ul,
	};
	ucs_rcache_t *c = NULL;

	return ucs_rcache_create(&params, "bench", NULL, &c) == UCS_OK ? c : NULL;
}
#endif

int main(void)
{
	static const struct hmm_device_ops ops = {
		.name = "none", .caps = HMM_DEV_MAP | HMM_DEV_PINNED, .map = no_map, .unmap = no_unmap};
	const struct hmm_reg_params params = {.flags = HMM_REG_HOOKED};
	struct hmm_device dev = {.ops = &ops};
	const struct hmm_reg_params asking = {.flags = HMM_REG_HOOKED | HMM_REG_SYNC};
	struct hmm_reg_cache *c, *asks;
	struct umm_space *space;
	struct result ours = {0}, sync = {0}, ucs = {0};
	char *mem = mmap(NULL, BUFFERS * STRIDE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (mem == MAP_FAILED || umm_space_open_self(&space) || hmm_reg_cache_open(space, NULL, &dev, &params, &c) ||
	    hmm_reg_cache_open(space, NULL, &dev, &asking, &asks))
		return 1;
#ifdef HAVE_UCS
	ucs_rcache_t *u = ucs_open();
#endif
	for (unsigned i = 0; i < ROUNDS; i++) {
		round_hmm(c, mem, &ours);
		round_hmm(asks, mem, &sync);
#ifdef HAVE_UCS
		if (u)
			round_ucs(u, mem, &ucs);
#endif
	}
	printf("registration cache, hit among %u buffers: get %.1f ns, put %.1f ns\n", BUFFERS, ours.get, ours.put);
	printf("with HMM_REG_SYNC, which asks the kernel:      get %.1f ns, put %.1f ns\n", sync.get, sync.put);
	if (ucs.get)
		printf("UCX's ucs_rcache in the same run:         get %.1f ns, put %.1f ns; ratio of both together "
		       "%.2f\n",
		       ucs.get, ucs.put, (ours.get + ours.put) / (ucs.get + ucs.put));
	else
		printf("UCX's ucs_rcache was not there to be measured beside it\n");
	hmm_reg_cache_close(asks);
	hmm_reg_cache_close(c);
	umm_space_close(space);
	return 0;
}
