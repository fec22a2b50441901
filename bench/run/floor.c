/* SPDX-License-Identifier: MIT */
/*
 * What paging is made of, each by itself.  Prints one line of JSON.
 *
 * floor speed MIB RATIO   GB/s: memcpy, first touch, LZ4 in and out, page by page
 * floor bare MIB OPS      us for a fault that another process serves, with nothing between but a userfaultfd and a copy
 * floor lz4 MIB OPS       the same, which decompresses the page first
 * floor back MIB OPS      us for a page that is away, whoever has it, while there is room for what comes
 */
#include <fcntl.h>
#include <lz4.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "data.h"
#include "hmm_uapi.h"
#include "measure.h"

#define RATIO 2u
#define MIB (1ul << 20)
#define ROUNDS 5

static int by_value(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

static void print_times(uint64_t *ns, size_t n)
{
	uint64_t sum = 0;

	qsort(ns, n, sizeof(*ns), by_value);
	for (size_t i = 0; i < n; i++)
		sum += ns[i];
	printf("{\"back_mean\": %.2f, \"back_median\": %.2f, \"back_p99\": %.2f, \"n\": %zu}\n",
	       n ? (double)sum / (double)n / 1e3 : 0, n ? (double)ns[n / 2] / 1e3 : 0,
	       n ? (double)ns[n * 99 / 100] / 1e3 : 0, n);
}

static uint64_t next_random(uint64_t *state)
{
	return data_mix(*state += 0x9e3779b97f4a7c15ull);
}

static bool wrong(const char *page, size_t index)
{
	char want[DATA_PAGE];

	data_fill(want, index, RATIO);
	return memcmp(page, want, DATA_PAGE);
}

/* ---------------------------------------------------------------- fault-back */

/* Is page @i at @p there, or away? */
static bool present(int fd, const volatile char *p, size_t i)
{
	uint64_t e;

	if (pread(fd, &e, sizeof(e), (off_t)(((uintptr_t)p / DATA_PAGE + i) * sizeof(e))) != sizeof(e)) {
		perror("pagemap");
		exit(1);
	}
	return e >> 63;
}

/* Up to @ops accesses to pages that are away, each timed.  Returns how many. */
static size_t touch_away(volatile char *p, int fd, size_t npages, size_t ops, uint64_t *ns)
{
	uint64_t state = 1;
	size_t n = 0;

	for (size_t i = 0; i < 20 * ops && n < ops; i++) {
		size_t page = next_random(&state) % npages;
		uint64_t t;

		if (present(fd, p, page))
			continue;
		t = now_ns();
		(void)p[page * DATA_PAGE];
		ns[n++] = now_ns() - t;
	}
	return n;
}

/* There must be room for what comes: else what goes meanwhile is measured, too. */
static int back(size_t mib, size_t ops)
{
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	size_t npages = mib * MIB / DATA_PAGE, n;
	uint64_t *ns = calloc(ops, sizeof(*ns));
	char *p = map_small(npages * DATA_PAGE), *dropped = calloc(npages, 1);

	if (!ns || !dropped)
		return 1;
	for (size_t i = 0; i < npages; i++)
		data_fill(p + i * DATA_PAGE, i, RATIO);
	sleep(1); /* what is on its way arrives */
	for (size_t i = 0; i < npages; i++) {
		dropped[i] = present(fd, p, i);
		if (dropped[i])
			madvise(p + i * DATA_PAGE, DATA_PAGE, MADV_DONTNEED);
	}
	sleep(1);
	/* Dropped pages are absent, too: they must not be taken for some that are away. */
	for (size_t i = 0; i < npages; i++)
		if (dropped[i])
			(void)*(volatile char *)(p + i * DATA_PAGE);
	n = touch_away(p, fd, npages, ops, ns);
	for (size_t i = 0; i < npages; i++) {
		if (!dropped[i] && present(fd, p, i) && wrong(p + i * DATA_PAGE, i)) {
			fprintf(stderr, "page %zu is wrong\n", i);
			return 1;
		}
	}
	print_times(ns, n);
	return 0;
}

/* @packed: what is decompressed for each fault; 0 bytes: nothing is. */
static void serve(int uffd, const char *packed, int len)
{
	static char page[DATA_PAGE] __attribute__((aligned(4096)));

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	data_fill(page, 0, RATIO);
	for (;;) {
		struct pollfd pfd = {.fd = uffd, .events = POLLIN};
		struct uffd_msg msg;

		poll(&pfd, 1, -1);
		if (read(uffd, &msg, sizeof(msg)) != sizeof(msg) || msg.event != UFFD_EVENT_PAGEFAULT)
			continue;
		if (len && LZ4_decompress_safe(packed, page, len, DATA_PAGE) != (int)DATA_PAGE)
			_exit(1);
		struct uffdio_copy c = {.dst = msg.arg.pagefault.address & ~(uint64_t)(DATA_PAGE - 1),
					.src = (uintptr_t)page,
					.len = DATA_PAGE};
		ioctl(uffd, UFFDIO_COPY, &c);
	}
}

static int bare(size_t mib, size_t ops, bool lz4)
{
	size_t npages = mib * MIB / DATA_PAGE;
	struct uffdio_api api = {.api = UFFD_API};
	int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK), len = 0;
	uint64_t *ns = calloc(ops, sizeof(*ns)), state = 1;
	char *p = map_small(npages * DATA_PAGE);
	struct uffdio_register reg = {.range = {(uintptr_t)p, npages * DATA_PAGE},
				      .mode = UFFDIO_REGISTER_MODE_MISSING};
	char page[DATA_PAGE], packed[2 * DATA_PAGE];
	size_t at = 0;
	pid_t pid;

	if (!ns || uffd < 0 || ioctl(uffd, UFFDIO_API, &api) || ioctl(uffd, UFFDIO_REGISTER, &reg)) {
		perror("userfaultfd");
		return 77;
	}
	data_fill(page, 0, RATIO);
	if (lz4)
		len = LZ4_compress_default(page, packed, DATA_PAGE, sizeof(packed));
	pid = fork();
	if (!pid)
		serve(uffd, packed, len);
	for (size_t i = 0; i < ops; i++) {
		at = next_random(&state) % npages;
		if (i % 1024 == 0)
			madvise(p, npages * DATA_PAGE, MADV_DONTNEED);
		uint64_t t = now_ns();
		(void)*(volatile char *)(p + at * DATA_PAGE);
		ns[i] = now_ns() - t;
	}
	bool bad = wrong(p + at * DATA_PAGE, 0);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	if (bad) {
		fprintf(stderr, "the handler placed something else\n");
		return 1;
	}
	print_times(ns, ops);
	return 0;
}

/* --------------------------------------------------------------------- speed */

static double gbs(size_t bytes, uint64_t ns)
{
	return (double)bytes / (double)ns;
}

static int speed(size_t mib, unsigned ratio)
{
	size_t npages = mib * MIB / DATA_PAGE, bytes = npages * DATA_PAGE, packed_bytes = 0;
	char *p = map_small(bytes), *q = map_small(bytes), *packed = map_small(bytes + npages * 64);
	int *len = calloc(npages, sizeof(*len));
	void *state = malloc((size_t)LZ4_sizeofState());
	double best[4] = {0};

	if (!len || !state)
		return 1;
	for (size_t i = 0; i < npages; i++)
		data_fill(p + i * DATA_PAGE, i, ratio);
	memset(packed, 1, bytes + npages * 64);
	for (int round = 0; round < ROUNDS; round++) {
		uint64_t t[5];
		char *to = packed;

		madvise(q, bytes, MADV_DONTNEED);
		t[0] = now_ns();
		for (size_t i = 0; i < npages; i++)
			*(volatile char *)(q + i * DATA_PAGE) = 1;
		t[1] = now_ns();
		memcpy(q, p, bytes);
		t[2] = now_ns();
		for (size_t i = 0; i < npages; i++) {
			len[i] = LZ4_compress_fast_extState(state, p + i * DATA_PAGE, to, DATA_PAGE, DATA_PAGE + 64, 1);
			to += len[i];
		}
		t[3] = now_ns();
		packed_bytes = (size_t)(to - packed);
		to = packed;
		for (size_t i = 0; i < npages; i++) {
			if (LZ4_decompress_safe(to, q + i * DATA_PAGE, len[i], DATA_PAGE) != (int)DATA_PAGE)
				return 1;
			to += len[i];
		}
		t[4] = now_ns();
		for (int k = 0; k < 4; k++)
			if (gbs(bytes, t[k + 1] - t[k]) > best[k])
				best[k] = gbs(bytes, t[k + 1] - t[k]);
	}
	printf("{\"first_touch\": %.2f, \"memcpy\": %.2f, \"lz4_in\": %.2f, \"lz4_out\": %.2f, \"lz4_ratio\": %.2f}\n",
	       best[0], best[1], best[2], best[3], (double)bytes / (double)packed_bytes);
	return 0;
}

int main(int argc, char **argv)
{
	size_t a = argc == 4 ? (size_t)atol(argv[2]) : 0, b = argc == 4 ? (size_t)atol(argv[3]) : 0;

	if (a && b && !strcmp(argv[1], "speed"))
		return speed(a, (unsigned)b);
	if (a && b && !strcmp(argv[1], "bare"))
		return bare(a, b, false);
	if (a && b && !strcmp(argv[1], "lz4"))
		return bare(a, b, true);
	if (a && b && !strcmp(argv[1], "back"))
		return back(a, b);
	fprintf(stderr, "usage: floor speed MIB RATIO | bare MIB OPS | lz4 MIB OPS | back MIB OPS\n");
	return 2;
}
