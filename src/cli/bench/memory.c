/* SPDX-License-Identifier: MIT */
/*
 * hmm bench: what moving pages is made of, without a fault.
 *
 * DOC: how each is measured
 *
 * Each is done to all of a range of --mib MiB in small pages, one piece after the
 * other, and its time divided by the pages.  Memory that is read holds data of which
 * LZ4 makes a half (or what --ratio says).  What a measurement writes to or takes
 * apart is mapped for it and unmapped behind it; nothing else runs in the process.
 *
 *   syscall         getppid(), SYSCALLS times, one of them
 *   memcpy          to memory that is there
 *   first-touch     a byte written to each page of memory never had
 *   lz4-in lz4-out  page by page, as the lz4 device calls it; to memory that is there
 *   copy-N          UFFDIO_COPY of N bytes at a time to where nothing is: has the pages, too
 *   move-N          UFFDIO_MOVE of N bytes at a time of what was just written; small pages, also at 2 MiB
 *   write-protect   UFFDIO_WRITEPROTECT of the whole range at once, all of it there
 *   pagemap-scan    PAGEMAP_SCAN of the whole range at once, for what is present: all of it
 *   dontneed        MADV_DONTNEED of the whole range at once, all of it there: frees the pages
 *
 * What was copied, moved or decompressed is compared with what it must be.
 */
#include <errno.h>
#include <fcntl.h>
#include <lz4.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>

#include "cli/bench/bench.h"
#include "cli/bench/data.h"
#include "cli/bench/measure.h"
#include "hmm_uapi.h"
#include "umm/inside.h"

#define SYSCALLS 100000u
#define HUGE (2ul << 20)
#define ROOM 64u /* of a page that does not compress */

bool bench_right(const char *p, uint64_t index, unsigned ratio)
{
	char want[DATA_PAGE];

	data_fill(want, index, ratio);
	return !memcmp(p, want, DATA_PAGE);
}

/* @p: a copy of b->data? */
static int compare(const struct bench *b, const char *p)
{
	return memcmp(p, b->data, b->npages * DATA_PAGE) ? -EIO : 0;
}

static int lz4(struct bench *b, int arg, struct bench_sample *s)
{
	size_t bytes = b->npages * DATA_PAGE, most = bytes + b->npages * ROOM;
	char *packed = map_small(most), *back = map_small(bytes), *to = packed;
	int *len = calloc(b->npages, sizeof(*len)), rc = 0;
	void *state = malloc((size_t)LZ4_sizeofState());
	uint64_t t;

	if (!len || !state) {
		rc = bench_skip(b, "out of memory");
		goto out;
	}
	memset(packed, 1, most);
	memset(back, 1, bytes);
	t = umm_now_ns();
	for (size_t i = 0; i < b->npages; i++) {
		len[i] = LZ4_compress_fast_extState(state, b->data + i * DATA_PAGE, to, DATA_PAGE, DATA_PAGE + ROOM, 1);
		to += len[i];
	}
	if (arg == MEM_LZ4_OUT) {
		t = umm_now_ns();
		to = packed;
		for (size_t i = 0; i < b->npages; i++) {
			if (LZ4_decompress_safe(to, back + i * DATA_PAGE, len[i], DATA_PAGE) != (int)DATA_PAGE)
				rc = -EIO;
			to += len[i];
		}
	}
	s->value = (double)(umm_now_ns() - t) / (double)b->npages;
	if (!rc && arg == MEM_LZ4_OUT)
		rc = compare(b, back);
out:
	free(len);
	free(state);
	munmap(packed, most);
	munmap(back, bytes);
	return rc;
}

int bench_uffd(struct bench *b, uint64_t features, int *fd)
{
	struct uffdio_api api = {.api = UFFD_API, .features = features};
	int err;

	*fd = umm_inside_uffd();
	err = *fd < 0 ? -*fd : 0;
	if (*fd < 0) /* nothing here is touched by the kernel on our behalf */
		*fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
	if (*fd < 0)
		return bench_skip(b, "userfaultfd: %s (see hmm doctor)", strerror(err));
	if (!ioctl(*fd, UFFDIO_API, &api))
		return 0;
	close(*fd);
	*fd = -1;
	return bench_skip(b, "this kernel's userfaultfd cannot do it (see hmm doctor)");
}

static int move(int fd, char *to, char *from, size_t bytes, size_t piece)
{
	for (size_t at = 0; at < bytes;) {
		size_t len = bytes - at < piece ? bytes - at : piece;
		struct uffdio_move mv = {.dst = (uintptr_t)to + at, .src = (uintptr_t)from + at, .len = len};

		if (!ioctl(fd, UFFDIO_MOVE, &mv))
			at += len;
		else if (errno == EAGAIN && mv.move > 0)
			at += (size_t)mv.move;
		else
			return -errno;
	}
	return 0;
}

static int copy(int fd, char *to, const char *from, size_t bytes, size_t piece)
{
	for (size_t at = 0; at < bytes; at += piece) {
		struct uffdio_copy c = {.dst = (uintptr_t)to + at, .src = (uintptr_t)from + at, .len = piece};

		if (ioctl(fd, UFFDIO_COPY, &c))
			return -errno;
	}
	return 0;
}

/* From what was written to what is empty. */
static int place(struct bench *b, int arg, struct bench_sample *s)
{
	bool moves = arg >= MEM_MOVE_4K;
	size_t bytes = b->npages * DATA_PAGE;
	size_t piece = arg == MEM_MOVE_2M ? HUGE : arg == MEM_COPY_64K || arg == MEM_MOVE_64K ? 64u << 10 : DATA_PAGE;
	char *from = b->data, *map = map_small(bytes + HUGE);
	/* Huge pages' worth of both lies alike, so that one piece is one. */
	char *to = (char *)(((uintptr_t)map + HUGE - 1) & ~(HUGE - 1)), *src = NULL;
	struct uffdio_register reg = {.range = {(uintptr_t)to, bytes}, .mode = UFFDIO_REGISTER_MODE_MISSING};
	uint64_t t;
	int fd, rc;

	if (moves) {
		src = map_small(bytes + HUGE);
		from = (char *)(((uintptr_t)src + HUGE - 1) & ~(HUGE - 1));
		memcpy(from, b->data, bytes);
	}
	rc = bench_uffd(b, moves ? UFFD_FEATURE_MOVE : 0, &fd);
	if (rc)
		goto out;
	rc = ioctl(fd, UFFDIO_REGISTER, &reg) ? -errno : 0;
	t = umm_now_ns();
	if (!rc)
		rc = moves ? move(fd, to, from, bytes, piece) : copy(fd, to, from, bytes, piece);
	s->value = (double)(umm_now_ns() - t) / (double)b->npages;
	rc = rc ? bench_skip(b, "%s: %s", moves ? "UFFDIO_MOVE" : "UFFDIO_COPY", strerror(-rc)) : compare(b, to);
	close(fd);
out:
	munmap(map, bytes + HUGE);
	if (src)
		munmap(src, bytes + HUGE);
	return rc;
}

static int protect(struct bench *b, char *p, uint64_t *t)
{
	struct uffdio_range range = {(uintptr_t)p, b->npages * DATA_PAGE};
	struct uffdio_register reg = {.range = range, .mode = UFFDIO_REGISTER_MODE_WP};
	struct uffdio_writeprotect wp = {.range = range, .mode = UFFDIO_WRITEPROTECT_MODE_WP};
	int fd, rc = bench_uffd(b, UFFD_FEATURE_PAGEFAULT_FLAG_WP, &fd);

	if (rc)
		return rc;
	if (ioctl(fd, UFFDIO_REGISTER, &reg))
		rc = bench_skip(b, "registering for write protection: %s", strerror(errno));
	*t = umm_now_ns();
	if (!rc && ioctl(fd, UFFDIO_WRITEPROTECT, &wp))
		rc = bench_skip(b, "UFFDIO_WRITEPROTECT: %s", strerror(errno));
	*t = umm_now_ns() - *t;
	close(fd);
	return rc;
}

static int scan(struct bench *b, char *p, uint64_t *t)
{
	struct page_region region[64];
	struct pm_scan_arg arg = {.size = sizeof(arg),
				  .start = (uintptr_t)p,
				  .end = (uintptr_t)p + b->npages * DATA_PAGE,
				  .vec = (uintptr_t)region,
				  .vec_len = sizeof(region) / sizeof(region[0]),
				  .category_mask = PAGE_IS_PRESENT,
				  .return_mask = PAGE_IS_PRESENT};
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC), n, rc = 0;

	if (fd < 0)
		return bench_skip(b, "/proc/self/pagemap: %s", strerror(errno));
	*t = umm_now_ns();
	n = ioctl(fd, PAGEMAP_SCAN, &arg);
	*t = umm_now_ns() - *t;
	if (n < 0)
		rc = bench_skip(b, "PAGEMAP_SCAN: %s (Linux 6.7)", strerror(errno));
	else if (arg.walk_end != arg.end)
		rc = bench_skip(b, "memory that must be there is not");
	close(fd);
	return rc;
}

/* What is done to a range at once. */
static int whole(struct bench *b, int arg, struct bench_sample *s)
{
	size_t bytes = b->npages * DATA_PAGE;
	char *p = map_small(bytes);
	uint64_t t;
	int rc = 0;

	if (arg != MEM_TOUCH)
		memset(p, 1, bytes);
	t = umm_now_ns();
	if (arg == MEM_PROTECT) {
		rc = protect(b, p, &t);
	} else if (arg == MEM_SCAN) {
		rc = scan(b, p, &t);
	} else {
		if (arg == MEM_MEMCPY)
			memcpy(p, b->data, bytes);
		else if (arg == MEM_DONTNEED)
			madvise(p, bytes, MADV_DONTNEED);
		else
			for (size_t i = 0; i < b->npages; i++)
				*(volatile char *)(p + i * DATA_PAGE) = 1;
		t = umm_now_ns() - t;
	}
	s->value = (double)t / (double)b->npages;
	if (arg == MEM_MEMCPY)
		rc = compare(b, p);
	munmap(p, bytes);
	return rc;
}

int bench_memory(struct bench *b, int arg, struct bench_sample *s)
{
	uint64_t t;

	switch (arg) {
	case MEM_SYSCALL:
		t = umm_now_ns();
		for (unsigned i = 0; i < SYSCALLS; i++)
			syscall(SYS_getppid);
		s->value = (double)(umm_now_ns() - t) / SYSCALLS;
		return 0;
	case MEM_LZ4_IN:
	case MEM_LZ4_OUT:
		return lz4(b, arg, s);
	case MEM_COPY_4K:
	case MEM_COPY_64K:
	case MEM_MOVE_4K:
	case MEM_MOVE_64K:
	case MEM_MOVE_2M:
		return place(b, arg, s);
	default:
		return whole(b, arg, s);
	}
}
