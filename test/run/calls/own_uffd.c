/* SPDX-License-Identifier: MIT */
/*
 * A program that serves page faults of its own: ranges registered before
 * anything of it is away, ranges registered later, of memory that was in use
 * (and away) before, ranges it gives up again, and ranges that are mapped and
 * registered while hmm looks for what has been mapped.  And ranges that a driver
 * pins where the kernel waits for nobody's answer to a fault.
 */
#include "calls.h"

#include <fcntl.h>
#include <linux/if_xdp.h>
#include <linux/userfaultfd.h>
#include <linux/vfio.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#define RANGE 512u /* pages */

static _Atomic unsigned long served;
static int uffd, stop[2];
static struct {
	char *p;
	uint64_t seed;
} range[4];

static void *serve(void *arg)
{
	char *page = aligned_alloc(V_PAGE, V_PAGE);
	struct pollfd p[2] = {{.fd = uffd, .events = POLLIN}, {.fd = stop[0], .events = POLLIN}};

	for (;;) {
		struct uffd_msg msg;

		CHECK(poll(p, 2, -1) > 0 || errno == EINTR, "poll");
		if (p[1].revents)
			break;
		if (read(uffd, &msg, sizeof(msg)) != sizeof(msg))
			continue;
		CHECK(msg.event == UFFD_EVENT_PAGEFAULT, "event %u", msg.event);
		char *at = (char *)(uintptr_t)(msg.arg.pagefault.address & ~(V_PAGE - 1));
		unsigned i = 0;
		while (i < 4 && !(range[i].p && at >= range[i].p && at < range[i].p + RANGE * V_PAGE))
			i++;
		CHECK(i < 4, "a fault at %p, which is not ours", (void *)at);
		v_fill(page, (size_t)(at - range[i].p) / V_PAGE, range[i].seed, 0, V_QUARTER);
		struct uffdio_copy c = {.dst = (uintptr_t)at, .src = (uintptr_t)page, .len = V_PAGE};
		/* Counted before who waits for it can go on. */
		atomic_fetch_add(&served, 1);
		CHECK(!ioctl(uffd, UFFDIO_COPY, &c) || errno == EEXIST || errno == EAGAIN, "UFFDIO_COPY");
	}
	free(page);
	return NULL;
}

static void take(unsigned i, char *p)
{
	struct uffdio_register r = {.range = {(uintptr_t)p, RANGE * V_PAGE}, .mode = UFFDIO_REGISTER_MODE_MISSING};

	range[i].seed = 100 + i;
	range[i].p = p;
	CHECK(!ioctl(uffd, UFFDIO_REGISTER, &r), "UFFDIO_REGISTER of range %u", i);
}

static void look(unsigned i)
{
	unsigned long before = atomic_load(&served);

	CHECK_ALL(range[i].p, RANGE, range[i].seed, 0, "a range we serve ourselves");
	CHECK(atomic_load(&served) - before == RANGE, "range %u: %lu of %u faults were ours", i,
	      atomic_load(&served) - before, RANGE);
}

static void drop(unsigned i)
{
	CHECK(!madvise(range[i].p, RANGE * V_PAGE, MADV_DONTNEED), "MADV_DONTNEED");
}

/* Each mremap() has hmm look for mappings that it does not know. */
static void *looked_for(void *arg)
{
	char *p = v_map(2 * V_PAGE);

	while (!atomic_load((_Atomic int *)arg)) {
		p = mremap(p, 2 * V_PAGE, V_PAGE, 0);
		CHECK(p != MAP_FAILED, "mremap");
		p = mremap(p, V_PAGE, 2 * V_PAGE, MREMAP_MAYMOVE);
		CHECK(p != MAP_FAILED, "mremap");
	}
	munmap(p, 2 * V_PAGE);
	return NULL;
}

static void fresh(void)
{
	_Atomic int stopped = 0;
	pthread_t t;

	CHECK(!pthread_create(&t, NULL, looked_for, &stopped), "pthread_create");
	for (unsigned i = 0; i < (long_run() ? 20000 : 1000); i++) {
		/* Where nothing of ours was: what has been handed over once is left alone for a while. */
		take(1, v_map(RANGE * V_PAGE));
	}
	range[1].p = NULL;
	atomic_store(&stopped, 1);
	pthread_join(t, NULL);
}

/* Read where the kernel does not wait either: of what is away that is an error. */
static bool seen_from_outside(const char *p)
{
	int mem = open("/proc/self/mem", O_RDONLY | O_CLOEXEC);
	char page[V_PAGE];
	unsigned i = 0;

	CHECK(mem >= 0, "/proc/self/mem");
	while (i < RANGE && pread(mem, page, V_PAGE, (off_t)(uintptr_t)(p + i * V_PAGE)) == (ssize_t)V_PAGE)
		i++;
	close(mem);
	return i == RANGE;
}

static void map_dma(char *p)
{
	struct vfio_iommu_type1_dma_map m = {.argsz = sizeof(m), .vaddr = (uintptr_t)p, .size = RANGE * V_PAGE};

	CHECK(ioctl(-1, VFIO_IOMMU_MAP_DMA, &m) && errno == EBADF, "VFIO_IOMMU_MAP_DMA");
	CHECK(ioctl(-1, VFIO_IOMMU_MAP_DMA, NULL) && errno == EBADF, "VFIO_IOMMU_MAP_DMA of nothing");
}

/* Where there is no such socket the call fails, but what comes first is done. */
static void take_umem(char *p)
{
	struct xdp_umem_reg r = {.addr = (uintptr_t)p, .len = RANGE * V_PAGE, .chunk_size = V_PAGE};
	int s = socket(AF_XDP, SOCK_RAW, 0), rc = setsockopt(s, SOL_XDP, XDP_UMEM_REG, &r, sizeof(r));

	CHECK(s < 0 ? rc && errno == EBADF : !rc || errno == EPERM || errno == ENOBUFS, "XDP_UMEM_REG");
	CHECK(setsockopt(-1, SOL_XDP, XDP_UMEM_REG, NULL, sizeof(r)) && errno == EBADF, "XDP_UMEM_REG of nothing");
	if (s >= 0)
		close(s);
}

/* What nobody pins after all is left alone for a while only: so again, where we are slow. */
static void pinned_by(void (*driver)(char *), char *p, const char *what)
{
	bool seen = false;

	for (unsigned i = 0; !seen && i < 20; i++) {
		driver(p);
		seen = seen_from_outside(p);
	}
	CHECK(seen, "to be pinned, %s, and still ours to serve", what);
}

static void pinned(void (*driver)(char *), uint64_t seed)
{
	char *used = v_map(RANGE * V_PAGE), *fresh = v_map(RANGE * V_PAGE);

	v_fill_all(used, RANGE, seed, 0, V_QUARTER);
	wait_away(used, RANGE, RANGE / 2, "to be pinned");
	pinned_by(driver, used, "in use");
	CHECK_ALL(used, RANGE, seed, 0, "pinned");
	/* Found at the latest now. */
	CHECK(mremap(fresh, RANGE * V_PAGE, RANGE * V_PAGE, 0) == fresh, "mremap");
	pinned_by(driver, fresh, "never touched");
	munmap(used, RANGE * V_PAGE);
	munmap(fresh, RANGE * V_PAGE);
}

int main(void)
{
	struct uffdio_api api = {.api = UFFD_API};
	struct hog hog;
	pthread_t t;

	uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	if (uffd < 0) {
		puts("userfaultfd is not permitted here");
		return 77;
	}
	CHECK(!ioctl(uffd, UFFDIO_API, &api) && !pipe(stop), "UFFDIO_API");
	CHECK(!pthread_create(&t, NULL, serve, NULL), "pthread_create");

	/* Before anything is away. */
	take(0, v_map(RANGE * V_PAGE));
	look(0);
	hog_start(&hog, hog_mib());
	for (unsigned r = 0; r < (long_run() ? 20 : 2); r++) {
		char *used = v_map(RANGE * V_PAGE), *part = v_map(3 * RANGE * V_PAGE);

		/* What is there stays right beside our own ranges, which are nobody else's. */
		sleep_ms(100);
		CHECK(!v_absent(range[0].p, RANGE), "a page that the program serves left");
		drop(0);
		look(0);
		/* New memory, while moving is on. */
		take(1, v_map(RANGE * V_PAGE));
		look(1);
		/* Memory that was in use, and away: what was there is there. */
		v_fill_all(used, RANGE, 102, 0, V_QUARTER);
		wait_away(used, RANGE, RANGE / 2, "to be served by us later");
		take(2, used);
		CHECK_ALL(used, RANGE, 102, 0, "there before we served it");
		sleep_ms(50);
		CHECK(!v_absent(used, RANGE), "a page that the program serves left");
		drop(2);
		look(2);
		/* The middle of a mapping that was in use. */
		v_fill_all(part, 3 * RANGE, 7, 0, V_QUARTER);
		wait_away(part, 3 * RANGE, RANGE, "to be served by us in part");
		take(3, part + RANGE * V_PAGE);
		for (unsigned i = 0; i < 3 * RANGE; i++)
			CHECK(!v_check(part + i * V_PAGE, i, 7, 0, V_QUARTER), "before we served a part of it");
		drop(3);
		look(3);
		CHECK_ALL(part, RANGE, 7, 0, "before the part");
		/* Given up again: from now on an absent page is zero. */
		struct uffdio_range u = {(uintptr_t)range[1].p, RANGE * V_PAGE};
		CHECK(!ioctl(uffd, UFFDIO_UNREGISTER, &u), "UFFDIO_UNREGISTER");
		v_fill_all(range[1].p, RANGE, 8, 0, V_QUARTER);
		sleep_ms(50);
		CHECK_ALL(range[1].p, RANGE, 8, 0, "given up");
		munmap(range[1].p, RANGE * V_PAGE);
		range[1].p = range[2].p = range[3].p = NULL;
		munmap(used, RANGE * V_PAGE);
		munmap(part, 3 * RANGE * V_PAGE);
	}
	fresh();
	pinned(map_dma, 11);
	pinned(take_umem, 12);
	hog_stop(&hog);
	CHECK(write(stop[1], "x", 1) == 1, "write");
	pthread_join(t, NULL);
	return 0;
}
