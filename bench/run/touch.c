/* SPDX-License-Identifier: MIT */
/*
 * touch MIB OPS: what memory costs that is partly away, as the program that
 * uses it sees it.  Prints one line of JSON:
 *
 *   fill, scan  GB/s, all pages written, then read, in order
 *   random      us an access, any page, read or written
 *   back        us an access, only pages that are away (as the page map tells)
 *
 * touch room MIB OPS: back, with room made for what comes before
 * touch bare MIB OPS: back, with nothing between but a userfaultfd and a
 * process that copies pages in.
 */
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>

#include "../../test/run/victim.h"
#include "hmm_uapi.h"

#define SEED 3
#define KIND ((enum v_kind)8) /* compresses five times */

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000ull + (uint64_t)ts.tv_nsec;
}

static int by_value(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

static double median_us(uint64_t *ns, size_t n)
{
	qsort(ns, n, sizeof(*ns), by_value);
	return n ? (double)ns[n / 2] / 1000 : 0;
}

static double mean_us(const uint64_t *ns, size_t n)
{
	uint64_t sum = 0;

	for (size_t i = 0; i < n; i++)
		sum += ns[i];
	return n ? (double)sum / (double)n / 1000 : 0;
}

static uint64_t next_random(uint64_t *state)
{
	*state += 0x9e3779b97f4a7c15ull;
	return v_mix(*state);
}

/* Is page @i at @p there, or away? */
static bool present(int fd, const volatile char *p, size_t i)
{
	uint64_t e;

	if (pread(fd, &e, sizeof(e), (off_t)(((uintptr_t)p / V_PAGE + i) * sizeof(e))) != sizeof(e)) {
		perror("pagemap");
		exit(1);
	}
	return e >> 63;
}

/* Up to @ops accesses to pages that are away, each timed.  Returns how many. */
static size_t back(volatile char *p, size_t npages, size_t ops, uint64_t *ns, uint64_t *state)
{
	int fd = open("/proc/self/pagemap", O_RDONLY);
	size_t n = 0;

	for (size_t i = 0; i < 20 * ops && n < ops; i++) {
		size_t page = next_random(state) % npages;
		uint64_t t;

		if (present(fd, p, page))
			continue;
		t = now_ns();
		(void)p[page * V_PAGE];
		ns[n++] = now_ns() - t;
	}
	close(fd);
	return n;
}

/* The same with room for what comes: nothing has to go meanwhile. */
static void touch_with_room(size_t mib, size_t ops)
{
	int fd = open("/proc/self/pagemap", O_RDONLY);
	size_t npages = mib * V_MIB / V_PAGE, n;
	uint64_t *ns = calloc(ops, sizeof(*ns)), state = 1;
	volatile char *p = v_map(npages * V_PAGE);
	char *dropped = calloc(npages, 1);

	madvise((void *)p, npages * V_PAGE, MADV_NOHUGEPAGE);
	v_fill_all((char *)p, npages, SEED, 1, KIND);
	sleep(1); /* what is on its way arrives */
	for (size_t i = 0; i < npages; i++) {
		dropped[i] = present(fd, p, i);
		if (dropped[i])
			madvise((void *)(p + i * V_PAGE), V_PAGE, MADV_DONTNEED);
	}
	sleep(1);
	/* Dropped pages are absent, too: they must not be taken for some that are away. */
	for (size_t i = 0; i < npages; i++)
		if (dropped[i])
			(void)p[i * V_PAGE];
	n = back(p, npages, ops, ns, &state);
	for (size_t i = 0; i < npages; i++)
		if (!dropped[i] && present(fd, p, i) && v_check((char *)p + i * V_PAGE, i, SEED, 1, KIND))
			exit(1);
	double mean = mean_us(ns, n);
	printf("{\"back_mean\": %.2f, \"back_median\": %.2f, \"n\": %zu}\n", mean, median_us(ns, n), n);
}

static void touch_all(size_t mib, size_t ops)
{
	size_t npages = mib * V_MIB / V_PAGE, n = 0;
	uint64_t *ns = calloc(ops, sizeof(*ns)), state = 1, t, fill, scan, random;
	volatile char *p = v_map(npages * V_PAGE);

	madvise((void *)p, npages * V_PAGE, MADV_NOHUGEPAGE);
	t = now_ns();
	v_fill_all((char *)p, npages, SEED, 1, KIND);
	fill = now_ns() - t;
	/* The first pass also moves out what the fill left: not of interest. */
	for (int pass = 0; pass < 2; pass++) {
		t = now_ns();
		for (size_t i = 0; i < npages; i++)
			(void)p[i * V_PAGE];
		scan = now_ns() - t;
	}
	t = now_ns();
	for (size_t i = 0; i < ops; i++) {
		size_t page = next_random(&state) % npages;

		if (i & 1)
			p[page * V_PAGE + 8] = p[page * V_PAGE + 8];
		else
			(void)p[page * V_PAGE];
	}
	random = now_ns() - t;
	n = back(p, npages, ops, ns, &state);
	if (v_check_all((char *)p, npages, SEED, 1, KIND))
		exit(1);
	double bytes = (double)(npages * V_PAGE), mean = mean_us(ns, n);
	printf("{\"fill\": %.3f, \"scan\": %.3f, \"random\": %.2f, \"back_mean\": %.2f, \"back_median\": %.2f, \"n\": "
	       "%zu}\n",
	       bytes / (double)fill, bytes / (double)scan, (double)random / (double)ops / 1000, mean, median_us(ns, n),
	       n);
}

static void serve(int uffd)
{
	static char page[V_PAGE] __attribute__((aligned(4096)));

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	memset(page, 1, sizeof(page));
	for (;;) {
		struct pollfd pfd = {.fd = uffd, .events = POLLIN};
		struct uffd_msg msg;

		poll(&pfd, 1, -1);
		if (read(uffd, &msg, sizeof(msg)) != sizeof(msg) || msg.event != UFFD_EVENT_PAGEFAULT)
			continue;
		struct uffdio_copy c = {
			.dst = msg.arg.pagefault.address & ~(V_PAGE - 1), .src = (uintptr_t)page, .len = V_PAGE};
		ioctl(uffd, UFFDIO_COPY, &c);
	}
}

static int touch_bare(size_t mib, size_t ops)
{
	size_t npages = mib * V_MIB / V_PAGE;
	struct uffdio_api api = {.api = UFFD_API};
	int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	uint64_t *ns = calloc(ops, sizeof(*ns)), state = 1;
	volatile char *p = v_map(npages * V_PAGE);
	struct uffdio_register reg = {.range = {(uintptr_t)p, npages * V_PAGE}, .mode = UFFDIO_REGISTER_MODE_MISSING};
	pid_t pid;

	if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api) || ioctl(uffd, UFFDIO_REGISTER, &reg)) {
		perror("userfaultfd");
		return 77;
	}
	pid = fork();
	if (!pid)
		serve(uffd);
	for (size_t i = 0; i < ops; i++) {
		size_t page = next_random(&state) % npages;

		if (i % 1024 == 0)
			madvise((void *)p, npages * V_PAGE, MADV_DONTNEED);
		uint64_t t = now_ns();
		(void)p[page * V_PAGE];
		ns[i] = now_ns() - t;
	}
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	double mean = mean_us(ns, ops);
	printf("{\"back_mean\": %.2f, \"back_median\": %.2f, \"n\": %zu}\n", mean, median_us(ns, ops), ops);
	return 0;
}

int main(int argc, char **argv)
{
	if (argc == 4 && !strcmp(argv[1], "bare"))
		return touch_bare((size_t)atol(argv[2]), (size_t)atol(argv[3]));
	if (argc == 4 && !strcmp(argv[1], "room")) {
		touch_with_room((size_t)atol(argv[2]), (size_t)atol(argv[3]));
		return 0;
	}
	if (argc != 3) {
		fprintf(stderr, "usage: touch [room|bare] MIB OPS\n");
		return 2;
	}
	touch_all((size_t)atol(argv[1]), (size_t)atol(argv[2]));
	return 0;
}
