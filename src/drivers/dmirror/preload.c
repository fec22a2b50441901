/* SPDX-License-Identifier: MIT */
/*
 * /dev/hmm_dmirror0 .. 3 for programs that were written for the kernel's.
 *
 * Nothing is started before the first such path is opened: programs fork before
 * they open, and end by _exit().  A descriptor is a memory file that stands for
 * the device; what is mapped from it are that file's pages.
 *
 * A forked child begins with nothing open: what it has inherited is of another
 * address space, and each command on it is refused.  One by a raw clone can open
 * nothing, either, if its parent had.
 *
 * Descriptors go by dup2(), close_range() and the like as well, which this does not
 * see.  So a number counts only while it is that file's, and a device that has none
 * any more is closed when the next one is opened.
 */
/* open and open64 are two names here. */
#undef _FILE_OFFSET_BITS

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <unistd.h>

#include "drivers/dmirror/dmirror.h"
#include "umm/hooks.h"
#include "umm/sys.h"

#define API __attribute__((visibility("default")))
#define OPEN_MAX_HERE 64u
#define DEVICE_PATH "/dev/hmm_dmirror"

struct command {
	uint64_t addr, ptr, npages;
	uint64_t cpages, faults; /* out */
};

enum {
	CMD_READ,
	CMD_WRITE,
	CMD_MIGRATE_TO_DEV,
	CMD_MIGRATE_TO_SYS,
	CMD_SNAPSHOT,
	CMD_EXCLUSIVE,
	CMD_CHECK_EXCLUSIVE,
	CMD_RELEASE,
	CMD_FLAGS,
	CMD_READ_UNLOCKED,
};

#define IS_COMMAND(req) (((req) & ~0xfful) == (_IOWR('H', 0, struct command) & ~0xfful))

struct device {
	int number; /* one more than its descriptor's; 0: nobody's */
	bool open;
	unsigned users; /* commands that run, and the descriptor */
	struct dmirror *dm;
	uint64_t inode;
	uint32_t major, minor;
};

/* All that this library keeps, of the process that it is in. */
static struct {
	pthread_mutex_t lock;
	pid_t pid;
	struct umm_space *space;
	struct dmirror_host *host;
	struct device device[OPEN_MAX_HERE];
} S = {.lock = PTHREAD_MUTEX_INITIALIZER};

static long result(long rc)
{
	if (rc >= -4095 && rc < 0) {
		errno = (int)-rc;
		return -1;
	}
	return rc;
}

static bool copy_user(void *mine, uint64_t theirs, size_t len, bool out)
{
	struct iovec m = {mine, len}, t = {(void *)(uintptr_t)theirs, len};
	pid_t pid = getpid();

	return (out ? process_vm_writev(pid, &m, 1, &t, 1, 0) : process_vm_readv(pid, &m, 1, &t, 1, 0)) == (ssize_t)len;
}

/* --------------------------------------------------------------------- open */

/* Lock held.  An engine without hooks has nothing to do, and is tried again with. */
static int start(void)
{
	int rc;

	if (S.host)
		return umm_hooks_set(S.space);
	rc = umm_space_open_self(&S.space);
	if (rc)
		return rc;
	S.pid = getpid();
	rc = dmirror_host_open(S.space, &S.host);
	if (rc) {
		umm_space_close(S.space);
		S.space = NULL;
		return rc;
	}
	return umm_hooks_set(S.space);
}

/* Not so in a child by a raw clone: what it has of this is its parent's, locks that are held included. */
static bool is_ours(void)
{
	return !__atomic_load_n(&S.host, __ATOMIC_ACQUIRE) || S.pid == getpid();
}

static void atfork_prepare(void)
{
	pthread_mutex_lock(&S.lock);
}

static void atfork_parent(void)
{
	pthread_mutex_unlock(&S.lock);
}

/* Neither the engine's threads nor its memory are here; its descriptors are closed by the hooks. */
static void atfork_child(void)
{
	memset(&S, 0, sizeof(S));
	pthread_mutex_init(&S.lock, NULL);
}

__attribute__((constructor)) static void preload_init(void)
{
	pthread_atfork(atfork_prepare, atfork_parent, atfork_child);
}

/* Number of the device that @path names, or -1.  It may point nowhere: the kernel is who says so. */
static int device_of(const char *path)
{
	size_t n = sizeof(DEVICE_PATH) - 1;
	char start[sizeof(DEVICE_PATH) + 1]; /* and a digit */

	if (!copy_user(start, (uintptr_t)path, sizeof(start), false) || memcmp(start, DEVICE_PATH, n) ||
	    start[n] < '0' || start[n] >= (int)('0' + DMIRROR_DEVICES) || start[n + 1])
		return -1;
	return start[n] - '0';
}

static bool is_of(const struct device *d, const struct stat *st)
{
	return st->st_ino == d->inode && major(st->st_dev) == d->major && minor(st->st_dev) == d->minor;
}

/* Lock held.  An open one whose number has been closed, or given to another file, by a call that is not close(). */
static struct device *forgotten(void)
{
	for (unsigned i = 0; i < OPEN_MAX_HERE; i++) {
		struct device *d = &S.device[i];
		struct stat st;

		if (d->open && (fstat(d->number - 1, &st) || !is_of(d, &st)))
			return d;
	}
	return NULL;
}

static void device_put(struct device *d, bool closed);

static int device_open(int nr, int flags)
{
	struct device *d = NULL;
	struct stat st;
	int rc, fd = -1;

	if (!is_ours()) {
		errno = EOPNOTSUPP;
		return -1;
	}
	pthread_mutex_lock(&S.lock);
	rc = start();
	if (rc)
		goto fail;
	while ((d = forgotten())) {
		d->users++;
		pthread_mutex_unlock(&S.lock);
		device_put(d, true);
		pthread_mutex_lock(&S.lock);
	}
	for (unsigned i = 0; i < OPEN_MAX_HERE && !d; i++)
		if (!S.device[i].users)
			d = &S.device[i];
	rc = -EMFILE;
	if (!d)
		goto fail;
	rc = fd = memfd_create("hmm_dmirror", flags & O_CLOEXEC ? MFD_CLOEXEC : 0);
	if (fd < 0 || fstat(fd, &st)) {
		rc = -errno;
		goto fail;
	}
	*d = (struct device){.inode = st.st_ino, .major = major(st.st_dev), .minor = minor(st.st_dev)};
	rc = dmirror_open_nr(S.host, (unsigned)nr, &d->dm);
	if (rc)
		goto fail;
	d->users = 1;
	d->open = true;
	__atomic_store_n(&d->number, fd + 1, __ATOMIC_RELEASE);
	pthread_mutex_unlock(&S.lock);
	return fd;
fail:
	pthread_mutex_unlock(&S.lock);
	if (fd >= 0)
		sys_close(fd);
	errno = -rc;
	return -1;
}

static struct device *device_at(int fd, const struct stat *st)
{
	for (unsigned i = 0; i < OPEN_MAX_HERE; i++) {
		struct device *d = &S.device[i];

		if (__atomic_load_n(&d->number, __ATOMIC_ACQUIRE) - 1 == fd && is_of(d, st))
			return d;
	}
	return NULL;
}

/* A reference to the device that @fd stands for, or NULL. */
static struct device *device_get(int fd)
{
	struct device *found;
	bool maybe = false;
	struct stat st;

	if (!__atomic_load_n(&S.host, __ATOMIC_ACQUIRE) || fd < 0)
		return NULL;
	/*
	 * The engine's threads close descriptors, too: they must not wait for who forks.  The number may be another
	 * file's, by dup2() and the like.
	 */
	for (unsigned i = 0; i < OPEN_MAX_HERE && !maybe; i++)
		maybe = __atomic_load_n(&S.device[i].number, __ATOMIC_RELAXED) - 1 == fd;
	if (!maybe || !is_ours() || fstat(fd, &st) || !device_at(fd, &st))
		return NULL;
	pthread_mutex_lock(&S.lock);
	found = device_at(fd, &st);
	if (found)
		found->users++;
	pthread_mutex_unlock(&S.lock);
	return found;
}

static void device_put(struct device *d, bool closed)
{
	struct dmirror *dm = NULL;

	pthread_mutex_lock(&S.lock);
	if (closed && d->open) {
		d->open = false;
		d->users--;
		__atomic_store_n(&d->number, 0, __ATOMIC_RELAXED); /* anybody's from now on */
	}
	if (d->users == 1 && !d->open) {
		dm = d->dm;
		d->dm = NULL;
	} else {
		d->users--;
	}
	pthread_mutex_unlock(&S.lock);
	if (!dm)
		return;
	/* Not under the lock: it waits for pages to come back. */
	dmirror_close(dm);
	pthread_mutex_lock(&S.lock);
	d->users = 0;
	pthread_mutex_unlock(&S.lock);
}

static int open_any(int dir, const char *path, int flags, mode_t mode)
{
	int nr = device_of(path);

	return nr < 0 ? (int)result(sys4(SYS_openat, dir, path, flags, mode)) : device_open(nr, flags);
}

#define MODE_OF(flags, mode)                     \
	mode_t mode = 0;                         \
	if ((flags) & (O_CREAT | __O_TMPFILE)) { \
		va_list ap;                      \
		va_start(ap, flags);             \
		mode = va_arg(ap, mode_t);       \
		va_end(ap);                      \
	}

API int open(const char *path, int flags, ...)
{
	MODE_OF(flags, mode)
	return open_any(AT_FDCWD, path, flags, mode);
}

API int open64(const char *path, int flags, ...)
{
	MODE_OF(flags, mode)
	return open_any(AT_FDCWD, path, flags | O_LARGEFILE, mode);
}

API int openat(int dir, const char *path, int flags, ...)
{
	MODE_OF(flags, mode)
	return open_any(dir, path, flags, mode);
}

API int openat64(int dir, const char *path, int flags, ...)
{
	MODE_OF(flags, mode)
	return open_any(dir, path, flags | O_LARGEFILE, mode);
}

/* What a fortified program calls when no mode is given. */
API int __open_2(const char *path, int flags);
API int __open64_2(const char *path, int flags);

API int __open_2(const char *path, int flags)
{
	return open_any(AT_FDCWD, path, flags, 0);
}

API int __open64_2(const char *path, int flags)
{
	return open_any(AT_FDCWD, path, flags | O_LARGEFILE, 0);
}

API int close(int fd)
{
	struct device *d = device_get(fd);

	if (d)
		device_put(d, true);
	return (int)result(sys1(SYS_close, fd));
}

/* --------------------------------------------------------------------- mmap */

static void *map_any(void *addr, size_t len, int prot, int flags, int fd, off_t offset)
{
	struct device *d = flags & MAP_ANONYMOUS ? NULL : device_get(fd);
	void *p;

	if (!d)
		return umm_hooked_mmap(addr, len, prot, flags, fd, offset);
	/* The kernel's device puts pages in at once. */
	struct stat st;
	if (!fstat(fd, &st) && st.st_size < offset + (off_t)len && ftruncate(fd, offset + (off_t)len))
		p = MAP_FAILED;
	else
		p = umm_hooked_mmap(addr, len, prot, flags, fd, offset);
	if (p != MAP_FAILED && (prot & PROT_READ))
		sys3(SYS_madvise, p, len, MADV_POPULATE_READ);
	device_put(d, false);
	return p;
}

API void *mmap(void *addr, size_t len, int prot, int flags, int fd, off_t offset)
{
	return map_any(addr, len, prot, flags, fd, offset);
}

API void *mmap64(void *addr, size_t len, int prot, int flags, int fd, off64_t offset)
{
	return map_any(addr, len, prot, flags, fd, offset);
}

/* -------------------------------------------------------------------- ioctl */

/* Where a mapping of one of our descriptors begins in the range; its end if there is none. */
static uint64_t device_mapping(uint64_t addr, uint64_t end)
{
	struct umm_vma v;

	for (uint64_t at = addr; at < end && !umm_vma_next(S.space, at, &v) && v.start < end; at = v.end) {
		bool ours = false;

		pthread_mutex_lock(&S.lock);
		for (unsigned i = 0; i < OPEN_MAX_HERE; i++)
			ours |= S.device[i].users && (v.flags & UMM_VMA_FILE) && v.inode == S.device[i].inode &&
				v.dev_major == S.device[i].major && v.dev_minor == S.device[i].minor;
		pthread_mutex_unlock(&S.lock);
		if (ours)
			return v.start > addr ? v.start : addr;
	}
	return end;
}

static int migrate_to_dev(struct dmirror *dm, struct command *c)
{
	uint64_t end, stop;
	int rc;

	if (c->addr % 4096 || !c->npages || c->npages > (1ull << 35) || c->addr >= 1ull << 47)
		return -EINVAL;
	end = c->addr + c->npages * 4096;
	stop = device_mapping(c->addr, end);
	if (stop == end)
		return dmirror_migrate_to_dev(dm, c->addr, (void *)(uintptr_t)c->ptr, c->npages, &c->cpages);
	/* What comes before it is migrated all the same. */
	if (stop > c->addr) {
		rc = dmirror_migrate_to_dev(dm, c->addr, (void *)(uintptr_t)c->ptr, (stop - c->addr) / 4096, NULL);
		if (rc)
			return rc;
	}
	return -EINVAL;
}

static int command_do(struct dmirror *dm, unsigned nr, struct command *c)
{
	void *ptr = (void *)(uintptr_t)c->ptr;

	/* Of every command, also of the two that have no range. */
	if (c->addr % 4096 || !c->npages || c->npages > UINT64_MAX / 4096 || c->addr + c->npages * 4096 < c->addr)
		return -EINVAL;
	c->faults = 0;
	/* Of who reads, writes or looks: all, or there is an error. */
	c->cpages = nr == CMD_READ || nr == CMD_READ_UNLOCKED || nr == CMD_WRITE || nr == CMD_SNAPSHOT ? c->npages : 0;
	switch (nr) {
	case CMD_READ:
	case CMD_READ_UNLOCKED:
		return dmirror_read(dm, c->addr, ptr, c->npages, &c->faults);
	case CMD_WRITE:
		return dmirror_write(dm, c->addr, ptr, c->npages, &c->faults);
	case CMD_MIGRATE_TO_DEV:
		return migrate_to_dev(dm, c);
	case CMD_MIGRATE_TO_SYS:
		return dmirror_migrate_to_sys(dm, c->addr, c->npages, &c->cpages);
	case CMD_SNAPSHOT:
		return dmirror_snapshot(dm, c->addr, ptr, c->npages);
	case CMD_EXCLUSIVE:
		return dmirror_exclusive(dm, c->addr, ptr, c->npages, &c->cpages);
	case CMD_CHECK_EXCLUSIVE:
		return dmirror_check_exclusive(dm, c->addr, c->npages);
	case CMD_RELEASE:
		return dmirror_release(dm);
	case CMD_FLAGS:
		return dmirror_flags(dm, c->npages);
	default:
		return -EINVAL;
	}
}

/* What we manage and the program wants to serve itself is the system's again: a mapping has one userfaultfd. */
static bool let_go(const void *arg)
{
	struct dmirror_host *host = __atomic_load_n(&S.host, __ATOMIC_ACQUIRE);
	struct uffdio_register r;

	return host && is_ours() && copy_user(&r, (uintptr_t)arg, sizeof(r), false) &&
	       !hmm_mm_unmanage(dmirror_host_mm(host), r.range.start, r.range.start + r.range.len);
}

API int ioctl(int fd, unsigned long req, ...)
{
	struct device *d = IS_COMMAND(req) ? device_get(fd) : NULL;
	struct command c;
	void *arg;
	va_list ap;
	int rc;

	va_start(ap, req);
	arg = va_arg(ap, void *);
	va_end(ap);
	if (!d) {
		long ret = sys3(SYS_ioctl, fd, req, arg);

		if (ret == -EBUSY && req == UFFDIO_REGISTER && let_go(arg))
			ret = sys3(SYS_ioctl, fd, req, arg);
		return (int)result(ret);
	}
	rc = -EFAULT;
	if (copy_user(&c, (uintptr_t)arg, sizeof(c), false)) {
		rc = command_do(d->dm, _IOC_NR(req), &c);
		if (!rc && !copy_user(&c, (uintptr_t)arg, sizeof(c), true))
			rc = -EFAULT;
	}
	device_put(d, false);
	return (int)result(rc);
}
