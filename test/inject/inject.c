/* SPDX-License-Identifier: MIT */
/* The table of sites, and whether one is to fail; see inject.h. */
#define HMM_INJECT_INSIDE
#define HMM_INJECT_TABLE /* none of ours is a site */
#include <fcntl.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "inject.h"

extern struct inject_site __start_hmm_sites[] __attribute__((visibility("hidden")));
extern struct inject_site __stop_hmm_sites[] __attribute__((visibility("hidden")));

/* Not among what is zero: that is anonymous memory, which may be away when the agent comes by. */
static struct inject_shared *shared __attribute__((section(".data")));
static uint32_t slow_us __attribute__((section(".data")));

/*
 * What a call fails with; the first is what the walk begins with.  By the site's name where it says FILE FUNCTION CALL,
 * else by the beginning of the call.  No error: it cannot fail as it is used.
 */
static const struct {
	const char *call;
	int err[INJECT_ERRORS];
} errors[] = {
	{"umm/monitor.c umm_monitor_read read", {EMFILE, EAGAIN}}, /* a fork's event needs a descriptor */
	{"umm/monitor.c kick write", {EINTR}},               /* of an eventfd */
	{"run/supervisor.c write_last write", {EINTR}},      /* of one as well */
	{"ioctl UFFDIO_COPY", {ENOMEM, EAGAIN}},
	{"ioctl UFFDIO_ZEROPAGE", {ENOMEM, EAGAIN}},
	{"ioctl UFFDIO_MOVE", {ENOMEM, EBUSY, EAGAIN}},
	{"ioctl UFFDIO_REGISTER", {ENOMEM, EBUSY}},
	{"ioctl UFFDIO_POISON", {ENOMEM, EAGAIN}},
	{"ioctl UFFDIO_WRITEPROTECT", {ENOMEM, EAGAIN}},
	{"ioctl UFFDIO_CONTINUE", {ENOENT, EAGAIN}},
	{"ioctl UFFDIO_API", {EINVAL}},
	{"ioctl PROCMAP_QUERY", {ENOTTY, EINTR, ENOMEM}},
	{"ioctl USERFAULTFD_IOC_NEW", {EMFILE, ENOMEM}},
	{"ioctl", {ENOMEM}},
	{"atomic_", {0}}, /* late only, as these */
	{"umm_evlock_", {0}},
	{"pthread_mutex_", {0}},
	{"pthread_rwlock_", {0}},
	{"SYS_userfaultfd", {EPERM, EMFILE}},
	{"SYS_madvise", {ENOMEM, EAGAIN}},
	{"SYS_mmap", {ENOMEM}},
	{"SYS_mremap", {ENOMEM}},
	{"SYS_clone", {EAGAIN}},
	{"SYS_kcmp", {EPERM}},
	{"SYS_rt_sigprocmask", {0}},
	{"SYS_connect", {ECONNREFUSED}},
	{"SYS_sendmsg", {EPIPE, ENOBUFS}},
	{"SYS_recvmsg", {ECONNRESET, EINTR}},
	{"SYS_recvfrom", {EINTR}},
	{"SYS_poll", {EINTR, ENOMEM}},
	{"SYS_read", {EIO, EINTR}},
	{"SYS_pread", {EIO}},
	{"SYS_vmsplice", {EAGAIN, ENOMEM}},
	{"SYS_", {ENOMEM}},
	{"open_memstream", {ENOMEM}},
	{"open", {EMFILE, ENOENT, EACCES}},
	{"fopen", {EMFILE, ENOENT}},
	{"fdopen", {ENOMEM}},
	{"mkostemp", {EMFILE, ENOSPC}},
	{"dup", {EMFILE}},
	{"pipe2", {EMFILE}},
	{"socket", {EMFILE}},
	{"accept4", {EMFILE, ECONNABORTED}},
	{"connect", {ECONNREFUSED}},
	{"bind", {EADDRINUSE}},
	{"listen", {EADDRINUSE}},
	{"send", {EPIPE, ENOBUFS}},
	{"recv", {ECONNRESET, EINTR}},
	{"epoll_create1", {EMFILE}},
	{"epoll_ctl EPOLL_CTL_DEL", {0}}, /* of what was added */
	{"epoll_ctl", {ENOMEM, ENOSPC}},
	{"epoll_wait", {EINTR}},
	{"poll", {EINTR, ENOMEM}},
	{"eventfd", {EMFILE}},
	{"timerfd_create", {EMFILE}},
	{"signalfd", {EMFILE}},
	{"memfd_create", {EMFILE}},
	{"pthread_create", {EAGAIN}},
	{"fork", {EAGAIN}},
	{"read", {EIO, EINTR}},
	{"write", {EIO, ENOSPC, EINTR}},
	{"pread", {EIO, EINTR}},
	{"pwrite", {EIO, ENOSPC, EINTR}},
	{"ftruncate", {ENOSPC}},
	{"fallocate", {ENOSPC, EOPNOTSUPP}},
	{"flock", {EWOULDBLOCK}},
	{"fcntl", {EBADF, EMFILE}},
	{"process_vm", {EFAULT, ESRCH}},
	{"getline", {EIO}},
	{"fgets", {EIO}},
	{"stat", {ENOENT}},
	{"fstat", {EIO}},
	{"readlink", {ENOENT}},
	{"realpath", {ENOENT}},
	{"opendir", {EMFILE, ENOENT}},
	{"chdir", {EACCES}},
	{"getcwd", {ENOENT}},
	{"unlink", {EACCES}},
	{"getrandom", {EINTR}},
	{"sched_", {EINVAL}},
	{"io_uring_submit", {EAGAIN, EINTR, EBUSY}},
	{"fi_eq_sread", {EAGAIN, EIO}},
	{"fi_cq_sread", {EAGAIN, EIO}},
	{"fi_send", {EIO, EAGAIN}},
	{"fi_recv", {EIO, EAGAIN}},
	{"fi_inject", {EIO, EAGAIN}},
	{"fi_listen", {EADDRINUSE}},
	{"fi_connect", {ECONNREFUSED}},
	{"", {ENOMEM}},
};

int inject_hit(struct inject_site *site)
{
	struct inject_shared *s = shared;
	uint32_t n;

	if (site->slow) {
		struct timespec ts = {slow_us / 1000000, slow_us % 1000000 * 1000};

		sys2(SYS_nanosleep, &ts, 0);
	}
	if (!s || !site->index)
		return 0;
	n = atomic_fetch_add(&s->site[site->index - 1].hits, 1) + 1;
	if (atomic_load(&s->always) == site->index && n >= atomic_load(&s->always_from))
		return atomic_load(&s->always_err);
	if (atomic_load(&s->target) != site->index || n < atomic_load(&s->nth) ||
	    n - atomic_load(&s->nth) >= atomic_load(&s->count))
		return 0;
	atomic_fetch_add(&s->fired, 1);
	return atomic_load(&s->err);
}

/* Paths begin with the way there from wherever this was built. */
static const char *file_of(const struct inject_site *site)
{
	const char *in_src = strstr(site->file, "src/"), *in_test = strstr(site->file, "test/");

	return in_src ? in_src + 4 : in_test ? in_test : site->file;
}

static void enter(struct inject_shared *s, struct inject_site *site, const char *name)
{
	struct inject_entry *e;
	uint32_t i, n = atomic_load(&s->nsites);

	for (i = 0; i < n && strcmp(s->site[i].name, name); i++)
		;
	if (i == n) {
		if (n == INJECT_SITES)
			abort();
		e = &s->site[n];
		strcpy(e->name, name);
		for (unsigned k = 0;; k++) {
			bool whole = strchr(errors[k].call, '/');

			if (strncmp(whole ? name : site->call, errors[k].call, strlen(errors[k].call)))
				continue;
			memcpy(e->err, errors[k].err, sizeof(e->err));
			break;
		}
		atomic_store(&s->nsites, n + 1);
	}
	site->index = i + 1;
}

/* The same call in the same function: numbered by line, and on a line by place. */
static unsigned number_of(const struct inject_site *site)
{
	unsigned n = 0;

	for (struct inject_site *o = __start_hmm_sites; o < __stop_hmm_sites; o++)
		n += (o->line < site->line || (o->line == site->line && o < site)) && !strcmp(o->func, site->func) &&
		     !strcmp(o->call, site->call) && !strcmp(o->file, site->file);
	return n;
}

static void name_of(const struct inject_site *site, char name[INJECT_NAME])
{
	unsigned nth = number_of(site);

	snprintf(name, INJECT_NAME, nth ? "%s %s %s#%u" : "%s %s %s", file_of(site), site->func, site->call, nth + 1);
}

void inject_use(struct inject_shared *s)
{
	uint32_t zero = 0;

	shared = NULL;
	if (!s)
		return;
	for (; !atomic_compare_exchange_weak(&s->lock, &zero, 1); zero = 0)
		sched_yield();
	for (struct inject_site *site = __start_hmm_sites; site < __stop_hmm_sites; site++) {
		char name[INJECT_NAME];

		name_of(site, name);
		enter(s, site, name);
	}
	atomic_store(&s->lock, 0);
	shared = s;
}

/* "MICROSECONDS NAME" */
static void slow_down(const char *what)
{
	char name[INJECT_NAME], *end;

	slow_us = (uint32_t)strtoul(what, &end, 10);
	for (struct inject_site *site = __start_hmm_sites; site < __stop_hmm_sites; site++) {
		name_of(site, name);
		site->slow = *end == ' ' && !strcmp(name, end + 1);
	}
}

/* Before any other constructor: what the preload library does when it is loaded is among the sites. */
__attribute__((constructor(101))) static void inject_init(void)
{
	const char *path = getenv("HMM_INJECT"), *slow = getenv("HMM_INJECT_SLOW");
	int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
	void *p;

	if (slow)
		slow_down(slow);
	if (fd < 0)
		return;
	p = mmap(NULL, sizeof(struct inject_shared), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	if (p != MAP_FAILED)
		inject_use(p);
}
