/* SPDX-License-Identifier: MIT */
/*
 * Fact: a descriptor of /dev/userfaultfd that somebody else opened and passed on
 * gives a userfaultfd of the caller's own memory, whatever the caller may open
 * itself; and the events that only a privileged handshake grants (FORK) are
 * granted if who shakes hands is privileged, not who made it.
 */
#include <sys/stat.h>

#include "probe.h"

#define NOBODY 65534

static int make_as_nobody(int dev, int at)
{
	int fd;

	/* Not libc's, which would wait for the parent's threads. */
	if (syscall(SYS_setgroups, 0, NULL) || syscall(SYS_setresgid, NOBODY, NOBODY, NOBODY) ||
	    syscall(SYS_setresuid, NOBODY, NOBODY, NOBODY))
		return 3;
	fd = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	if (fd >= 0)
		return 4; /* then nothing would be shown */
	fd = ioctl(dev, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
	return fd < 0 ? 5 : dup2(fd, at) == at ? 0 : 6;
}

int main(void)
{
	int dev, status, fd;
	struct stat st;
	pid_t pid;

	probe_start();
	dev = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	if (geteuid() || dev < 0 || fstat(dev, &st) || st.st_mode & 0006)
		SKIP("not root, or /dev/userfaultfd cannot be opened or is everybody's");
	fd = dup(dev);
	/* It shares our descriptors, so that we have what it makes. */
	pid = (pid_t)syscall(SYS_clone, CLONE_FILES | SIGCHLD, 0, NULL, NULL, 0);
	if (!pid)
		_exit(make_as_nobody(dev, fd));
	CHECK(pid > 0 && waitpid(pid, &status, 0) == pid && WIFEXITED(status), "a child can be waited for");
	CHECK(WEXITSTATUS(status) != 3 && WEXITSTATUS(status) != 4, "who has no rights opens no device");
	CHECK(!WEXITSTATUS(status), "a device that somebody else has opened makes a userfaultfd");
	CHECK(!uffd_api(fd, UFFD_FEATURE_EVENT_FORK), "and FORK is granted to a privileged handshake");
	return 0;
}
