/* SPDX-License-Identifier: MIT */
/*
 * Preloaded, it stops the supervisor's thread that arms a space between its two calls: it makes the
 * file $HMM_TEST_HELD, and goes on when somebody has removed that.  Once.
 */
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "run/wire.h"

/* Staging, or the page by which a space is told from others. */
static bool is_of_arming(const struct uffdio_register *reg)
{
	return reg->range.len == ARENA_IDENT || reg->range.len == ARENA_STAGING + ARENA_BELLS;
}

static void hold(const char *path)
{
	close(open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0666));
	while (!access(path, F_OK))
		usleep(1000);
}

__attribute__((visibility("default"))) int ioctl(int fd, unsigned long req, ...)
{
	static _Atomic int first; /* descriptor and one of whoever has made the first call; -1: it was stopped */
	const char *path = getenv("HMM_TEST_HELD");
	char name[16] = "";
	va_list ap;
	void *arg;

	va_start(ap, req);
	arg = va_arg(ap, void *);
	va_end(ap);
	if (req == UFFDIO_REGISTER && path && is_of_arming(arg) && !prctl(PR_GET_NAME, name) &&
	    !strncmp(name, "hmm-", 4)) {
		int none = 0, mine = fd + 1;

		if (!atomic_compare_exchange_strong(&first, &none, mine) &&
		    atomic_compare_exchange_strong(&first, &mine, -1))
			hold(path);
	}
	return (int)syscall(SYS_ioctl, fd, req, arg);
}
