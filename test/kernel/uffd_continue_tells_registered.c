/* SPDX-License-Identifier: MIT */
/*
 * Fact: UFFDIO_CONTINUE on private anonymous memory is EINVAL where that is
 * registered, whether a page is there or not, and ENOENT where it is not; it
 * changes nothing.  So it tells which.  While an event is unread it is EAGAIN,
 * whatever was registered meanwhile.
 */
#include "probe.h"

static int ask(int uffd, void *addr)
{
	struct uffdio_continue c = {.range = {(uintptr_t)addr, PAGE}, .mode = UFFDIO_CONTINUE_MODE_DONTWAKE};

	return ioctl(uffd, UFFDIO_CONTINUE, &c) ? -errno : 0;
}

static bool absent(const char *p)
{
	unsigned char in = 0;

	CHECK(!mincore((void *)p, PAGE, &in), "mincore works");
	return !(in & 1);
}

static void *forker(void *unused)
{
	pid_t pid = (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);

	if (!pid)
		_exit(0);
	waitpid(pid, NULL, 0);
	return NULL;
}

int main(void)
{
	pthread_t t;
	int uffd;
	char *in, *out, *huge;

	probe_start();
	uffd = uffd_open(UFFD_FEATURE_MOVE | UFFD_FEATURE_EVENT_FORK);
	in = map_registered(uffd, 2 * PAGE);
	out = map_filled(2 * PAGE, 'o');
	CHECK(!uffd_zeropage(uffd, in, PAGE), "a page can be placed");

	CHECK(ask(uffd, in) == -EINVAL, "EINVAL where a page is");
	CHECK(ask(uffd, in + PAGE) == -EINVAL, "EINVAL where none is");
	CHECK(absent(in + PAGE), "none has come of it");
	CHECK(ask(uffd, out) == -ENOENT, "ENOENT where nothing is registered");
	CHECK(all_bytes(out, 2 * PAGE, 'o'), "the contents are what they were");

	/* The same of a huge page, and of a mapping that has been split off. */
	huge = map_flags(2 * HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
	huge = (char *)(((uintptr_t)huge + HUGE - 1) & ~(HUGE - 1));
	madvise(huge, HUGE, MADV_HUGEPAGE);
	memset(huge, 'h', HUGE);
	CHECK(ask(uffd, huge) == -ENOENT, "ENOENT of a huge page");
	CHECK(!uffd_register(uffd, huge, HUGE, UFFDIO_REGISTER_MODE_MISSING), "it can be registered");
	CHECK(ask(uffd, huge) == -EINVAL, "EINVAL of a registered one");
	CHECK(!uffd_unregister(uffd, huge + HUGE / 2, HUGE / 2), "half of it can be let go");
	CHECK(ask(uffd, huge + HUGE / 2) == -ENOENT && ask(uffd, huge + HUGE / 2 - PAGE) == -EINVAL,
	      "each half says its own");
	CHECK(all_bytes(huge, HUGE, 'h'), "the contents are what they were");

	/* Somebody forks, and what is registered after that says so until the event has been read. */
	CHECK(!pthread_create(&t, NULL, forker, NULL), "a thread can be started");
	uffd_wait(uffd);
	CHECK(!uffd_register(uffd, out, 2 * PAGE, UFFDIO_REGISTER_MODE_MISSING), "it can be registered");
	CHECK(ask(uffd, out) == -EAGAIN, "EAGAIN while the event is unread");
	close((int)uffd_read(uffd).arg.fork.ufd);
	pthread_join(t, NULL);
	CHECK(ask(uffd, out) == -EINVAL, "EINVAL after");
	return 0;
}
