/* SPDX-License-Identifier: MIT */
/*
 * Fact: without privilege a descriptor from /dev/userfaultfd has MOVE, POISON,
 * WP_ASYNC and the UNMAP, REMAP and REMOVE events, and is refused EVENT_FORK
 * (EPERM); the system call is refused but for UFFD_USER_MODE_ONLY.  A process
 * that has changed its user cannot open its own pagemap.
 */
#include "probe.h"

#define NOBODY 65534

static bool sysctl_allows(void)
{
	FILE *f = fopen("/proc/sys/vm/unprivileged_userfaultfd", "r");
	int v = 0;

	if (f) {
		if (fscanf(f, "%d", &v) != 1)
			v = 0;
		fclose(f);
	}
	return v;
}

int main(void)
{
	int dev, fd, pm;

	probe_start();
	dev = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC); /* the right is that of the open, not of the user */
	if (dev < 0)
		SKIP("/dev/userfaultfd cannot be opened (%s)", strerror(errno));
	if (geteuid() == 0) {
		CHECK(!setresgid(NOBODY, NOBODY, NOBODY) && !setresuid(NOBODY, NOBODY, NOBODY), "root may drop rights");
		pm = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
		CHECK(pm < 0 && errno == EACCES, "after a change of user /proc/self/pagemap is closed");
		CHECK(!prctl(PR_SET_DUMPABLE, 1), "a process may make itself dumpable");
		pm = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
		CHECK(pm >= 0, "then it is open again");
	}
	fd = ioctl(dev, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
	CHECK(fd >= 0, "/dev/userfaultfd gives a descriptor");
	CHECK(uffd_api(fd, UFFD_FEATURE_EVENT_FORK) == -EPERM, "EVENT_FORK is refused");
	close(fd);
	fd = ioctl(dev, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
	CHECK(!uffd_api(fd, UFFD_FEATURE_EVENT_UNMAP | UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_EVENT_REMOVE |
				    UFFD_FEATURE_MOVE | UFFD_FEATURE_POISON | UFFD_FEATURE_WP_ASYNC |
				    UFFD_FEATURE_WP_UNPOPULATED),
	      "all else is granted");
	if (!sysctl_allows()) {
		fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
		CHECK(fd < 0 && errno == EPERM, "the system call is refused");
	}
	fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);
	CHECK(fd >= 0, "but for UFFD_USER_MODE_ONLY");
	return 0;
}
