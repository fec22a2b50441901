/* SPDX-License-Identifier: MIT */
/* The userfaultfd calls, with the kernel's way of reporting partial success made uniform. */
#include <errno.h>
#include <sys/ioctl.h>

#include "umm/inside.h"
#include "umm/internal.h"

#define SAID_AGAIN 2u

/*
 * The calls that place something look for the mapping before they ask, once more, whether a change is under way: who
 * waits for the lock that mremap() has gets ENOENT though the event is unread (test/kernel/uffd_enoent_under_mremap.c).
 * Nothing is gone then, it is elsewhere, and the event will tell where.  Who shares the event lock can rely on it: what
 * was unread at the call is unread still.
 *
 * In parentheses: for fault injection each caller counts, not this (test/inject/inject.h).
 */
static int(uffd_ioctl)(int fd, unsigned long req, void *arg)
{
	int rc = (ioctl)(fd, req, arg) ? -errno : 0;

	return rc == -ENOENT && umm_uffd_is_changing(fd) ? -EAGAIN : rc;
}

int umm_uffd_api(int uffd, uint64_t want, uint64_t optional, uint64_t *got)
{
	struct uffdio_api api = {.api = UFFD_API, .features = want | optional};
	int rc = uffd_ioctl(uffd, UFFDIO_API, &api);

	if (rc && optional) {
		api = (struct uffdio_api){.api = UFFD_API, .features = want};
		rc = uffd_ioctl(uffd, UFFDIO_API, &api);
		optional = 0;
	}
	if (!rc)
		*got = want | optional;
	return rc;
}

int umm_uffd_register(int uffd, uint64_t start, uint64_t len, uint64_t mode)
{
	struct uffdio_register reg = {.range = {start, len}, .mode = mode};

	return uffd_ioctl(uffd, UFFDIO_REGISTER, &reg);
}

int umm_uffd_unregister(int uffd, uint64_t start, uint64_t len)
{
	struct uffdio_range r = {start, len};

	return uffd_ioctl(uffd, UFFDIO_UNREGISTER, &r);
}

/*
 * EEXIST is believed when it is said again: where the page table that the kernel has just seen is gone when it looks
 * once more it says so, too (mfill_atomic()), and nothing is there.
 */
static int copy(int uffd, uint64_t dst, const void *src, uint64_t len, uint64_t mode, uint64_t *copied)
{
	unsigned said = 0;

	*copied = 0;
	while (*copied < len) {
		struct uffdio_copy c = {
			.dst = dst + *copied, .src = (uintptr_t)src + *copied, .len = len - *copied, .mode = mode};
		int rc = uffd_ioctl(uffd, UFFDIO_COPY, &c);

		if (c.copy > 0)
			*copied += (uint64_t)c.copy;
		else if (rc && (rc != -EEXIST || said++ == SAID_AGAIN))
			return rc;
	}
	return 0;
}

int umm_uffd_copy(int uffd, uint64_t dst, const void *src, uint64_t len, uint64_t *copied)
{
	return copy(uffd, dst, src, len, 0, copied);
}

int umm_uffd_copy_unwritten(int uffd, uint64_t dst, const void *src, uint64_t len, uint64_t *copied)
{
	return copy(uffd, dst, src, len, UFFDIO_COPY_MODE_WP, copied);
}

int umm_uffd_move(int uffd, uint64_t dst, const void *src, uint64_t len, uint64_t *moved)
{
	struct uffdio_move m = {.dst = dst, .src = (uintptr_t)src, .len = len};
	int rc = uffd_ioctl(uffd, UFFDIO_MOVE, &m);

	*moved = m.move > 0 ? (uint64_t)m.move : 0;
	if (*moved < len) {
		uint64_t unsaid = umm_inside_gone(dst + *moved, m.src + *moved, (unsigned)((len - *moved) / UMM_PAGE),
						  *moved ? 0 : rc) *
				  UMM_PAGE;

		/* The kernel wakes who waits for what it says, and nobody else. */
		if (unsaid)
			umm_uffd_wake(uffd, dst + *moved, unsaid);
		*moved += unsaid;
	}
	return rc;
}

int umm_uffd_zeropage(int uffd, uint64_t dst, uint64_t len, uint64_t *zeroed)
{
	*zeroed = 0;
	while (*zeroed < len) {
		struct uffdio_zeropage z = {.range = {dst + *zeroed, len - *zeroed}, .mode = 0};
		int rc = uffd_ioctl(uffd, UFFDIO_ZEROPAGE, &z);

		if (z.zeropage > 0)
			*zeroed += (uint64_t)z.zeropage;
		else if (rc)
			return rc;
	}
	return 0;
}

int umm_uffd_poison(int uffd, uint64_t dst, uint64_t len)
{
	struct uffdio_poison p = {.range = {dst, len}, .mode = 0};
	int rc = uffd_ioctl(uffd, UFFDIO_POISON, &p);

	/* Refused over a page, which is all right, and over the marker of umm_uffd_writeprotect(), which must go first.
	 */
	if (rc == -EEXIST) {
		int undone = umm_uffd_writeunprotect(uffd, dst, len);

		if (undone)
			return undone == -ENOENT ? rc : undone; /* not registered for it: a page */
		p.updated = 0;
		rc = uffd_ioctl(uffd, UFFDIO_POISON, &p);
	}
	return rc;
}

int umm_uffd_writeprotect(int uffd, uint64_t start, uint64_t len)
{
	struct uffdio_writeprotect wp = {.range = {start, len}, .mode = UFFDIO_WRITEPROTECT_MODE_WP};

	return uffd_ioctl(uffd, UFFDIO_WRITEPROTECT, &wp);
}

int umm_uffd_writeunprotect(int uffd, uint64_t start, uint64_t len)
{
	struct uffdio_writeprotect wp = {.range = {start, len}};

	return uffd_ioctl(uffd, UFFDIO_WRITEPROTECT, &wp);
}

int umm_uffd_wake(int uffd, uint64_t start, uint64_t len)
{
	struct uffdio_range r = {start, len};

	return (uffd_ioctl)(uffd, UFFDIO_WAKE, &r);
}

bool umm_uffd_is_changing(int uffd)
{
	/* The kernel says that before it finds that there is no such page. */
	struct uffdio_zeropage z = {.range = {1, UMM_PAGE}, .mode = 0};

	return uffd_ioctl(uffd, UFFDIO_ZEROPAGE, &z) == -EAGAIN;
}
