/* SPDX-License-Identifier: MIT */
/*
 * Fact: with WP_ASYNC, MODE_WP registration works on mappings of memory files
 * and of ordinary files, shared and private, and raw munmap, MADV_DONTNEED,
 * MADV_REMOVE and mremap there send their events.  Not (EPERM) on a shared
 * mapping of a descriptor that was opened for reading only.
 */
#include "probe.h"

static void do_unmap(void *p)
{
	CHECK(!munmap(p, PAGE), "munmap works");
}

static void do_dontneed(void *p)
{
	CHECK(!madvise(p, PAGE, MADV_DONTNEED), "MADV_DONTNEED works");
}

static void do_remove(void *p)
{
	CHECK(!madvise(p, PAGE, MADV_REMOVE), "MADV_REMOVE works");
}

static void do_remap(void *p)
{
	CHECK(mremap(p, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, map_anon(PAGE)) != MAP_FAILED, "mremap works");
}

/* Runs @fn on a fresh mapping and wants @event first; more may follow (UNMAP after REMAP). */
static void change(int uffd, int fd, int flags, void (*fn)(void *), int event, const char *what)
{
	char *p = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, flags, fd, 0);
	struct uffd_msg m;
	struct actor a;
	int rc;

	CHECK(p != MAP_FAILED, "a file can be mapped");
	rc = uffd_register(uffd, p, PAGE, WP);
	CHECK(!rc, "%s: REGISTER works (%d)", what, rc);
	p[0] = 'x';
	CHECK(uffd_quiet(uffd), "%s: a write is not delivered", what);
	actor_start(&a, fn, p);
	m = uffd_read(uffd);
	CHECK(m.event == event, "%s: event %#x comes (%#x)", what, event, m.event);
	while (!actor_done(&a))
		if (!uffd_quiet(uffd))
			uffd_read(uffd);
	actor_join(&a);
}

int main(void)
{
	char path[] = "/var/tmp/hmm-probe-XXXXXX", *ro;
	int uffd, fd[2], rfd, rc;

	probe_start();
	uffd = uffd_open(UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED | UFFD_FEATURE_EVENT_UNMAP |
			 UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_REMAP);
	fd[0] = memfd_create("probe", MFD_CLOEXEC);
	fd[1] = mkstemp(path);
	CHECK(fd[0] >= 0 && fd[1] >= 0, "files can be made");
	rfd = open(path, O_RDONLY | O_CLOEXEC);
	unlink(path);
	for (int i = 0; i < 2; i++) {
		CHECK(!ftruncate(fd[i], PAGE), "a file can be sized");
		for (int shared = 0; shared < 2; shared++) {
			int flags = shared ? MAP_SHARED : MAP_PRIVATE;
			const char *what = i ? (shared ? "file, shared" : "file, private")
					     : (shared ? "memory file, shared" : "memory file, private");

			change(uffd, fd[i], flags, do_unmap, UFFD_EVENT_UNMAP, what);
			change(uffd, fd[i], flags, do_dontneed, UFFD_EVENT_REMOVE, what);
			change(uffd, fd[i], flags, do_remap, UFFD_EVENT_REMAP, what);
		}
	}
	change(uffd, fd[0], MAP_SHARED, do_remove, UFFD_EVENT_REMOVE, "memory file, MADV_REMOVE");

	ro = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, rfd, 0);
	CHECK(rfd >= 0 && ro != MAP_FAILED, "a file can be mapped for reading");
	rc = uffd_register(uffd, ro, PAGE, WP);
	CHECK(rc == -EPERM, "REGISTER of a shared mapping that can never be written is EPERM (%d)", rc);
	return 0;
}
