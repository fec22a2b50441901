/* SPDX-License-Identifier: MIT */
/*
 * DOC: what may be overwritten
 *
 * In a directory the store is a file without a name, so that nothing is left
 * behind, whatever happens to us.  A file that is named is made if it is not
 * there (and unlinked at once, for the same reason); one that is there must be
 * empty, because it may as well be somebody's thesis, and the user's own, who alone
 * may read it from then on.  A block device must not
 * be in use by the kernel (O_EXCL sees to that); its contents are lost.
 */
#include "drivers/driver.h"
#include "drivers/file/backing.h"
#include "hmm.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#define STEP ((uint64_t)64 << 20)
#define STEP_RAM ((uint64_t)1 << 20) /* preallocation takes RAM here: no more than soon needed */
#define STEP_MIN ((uint64_t)64 << 10)

static int fail(const char *path, const char *what, int rc, char *err, size_t errlen)
{
	return drv_fail(rc, err, errlen, "file: %s: %s%s%s", path, strerror(-rc), *what ? "; " : "", what);
}

static int open_in_directory(const char *path, char *err, size_t errlen)
{
	char name[4096];
	int fd;

	fd = open(path, O_TMPFILE | O_RDWR | O_EXCL | O_CLOEXEC, 0600);
	if (fd >= 0)
		return fd;
	if (errno == EOPNOTSUPP || errno == EISDIR || errno == EINVAL) {
		if (snprintf(name, sizeof(name), "%s/hmm-XXXXXX", path) >= (int)sizeof(name))
			return fail(path, "", -ENAMETOOLONG, err, errlen);
		fd = mkostemp(name, O_CLOEXEC);
		if (fd >= 0) {
			unlink(name);
			return fd;
		}
	}
	return fail(path, "name a directory where you may make files", -errno, err, errlen);
}

static int open_file(struct file_backing *b, const char *path, char *err, size_t errlen)
{
	struct stat st;
	int fd;

	fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOCTTY, 0600);
	if (fd >= 0) {
		unlink(path);
		return fd;
	}
	if (errno != EEXIST)
		return fail(path, "name a directory, a file or a block device that you may write", -errno, err, errlen);

	fd = open(path, O_RDWR | O_CLOEXEC | O_NOCTTY);
	if (fd < 0)
		return fail(path, "name a directory, a file or a block device that you may write", -errno, err, errlen);
	if (flock(fd, LOCK_EX | LOCK_NB)) {
		close(fd);
		return drv_fail(-EBUSY, err, errlen, "file: %s: in use by another device; name another file", path);
	}
	/* Only now: who held the lock before us may just have filled it. */
	if (fstat(fd, &st) || !S_ISREG(st.st_mode) || st.st_size) {
		close(fd);
		return drv_fail(-EEXIST, err, errlen,
				"file: %s: not empty and would be overwritten; name another one, or empty it first",
				path);
	}
	/* What a program has in memory is for its user alone. */
	if (st.st_uid != geteuid() || (st.st_mode & 077 && fchmod(fd, st.st_mode & 0700))) {
		close(fd);
		return drv_fail(-EACCES, err, errlen,
				"file: %s: others may read it; name a file of your own that only you may read, or one "
				"that does not exist",
				path);
	}
	b->truncate = true;
	return fd;
}

static int open_block(struct file_backing *b, const char *path, char *err, size_t errlen)
{
	uint64_t bytes;
	int fd, rc;

	fd = open(path, O_RDWR | O_EXCL | O_CLOEXEC);
	if (fd < 0)
		return fail(path,
			    errno == EBUSY ? "it is mounted or otherwise in use"
					   : "name a block device that you may write",
			    -errno, err, errlen);
	if (ioctl(fd, BLKGETSIZE64, &bytes)) {
		rc = -errno;
		close(fd);
		return fail(path, "cannot tell its size", rc, err, errlen);
	}
	b->block = true;
	b->max = bytes;
	return fd;
}

/* What may be used of the file system, once it is open. */
static void measure(struct file_backing *b)
{
	struct statfs fs;

	b->max = UINT64_MAX;
	if (!fstatfs(b->fd, &fs)) {
		b->ram = fs.f_type == TMPFS_MAGIC || fs.f_type == RAMFS_MAGIC;
		/* A tmpfs without a limit has no blocks at all. */
		if (fs.f_blocks)
			b->max = (uint64_t)fs.f_bavail * (uint64_t)fs.f_bsize;
		else
			b->max = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE) / 2;
		b->max -= b->max / 20;
	}
}

/* Some file systems take the flag and then refuse the I/O: try it.  Also tells early that nothing can be written. */
static int try_direct(struct file_backing *b)
{
	int flags = fcntl(b->fd, F_GETFL);
	uint32_t align = HMM_PAGE_SIZE;
	void *buf;
	int rc = 0;

	if (flags < 0)
		return -errno;
	if (b->ram)
		flags &= ~O_DIRECT;
	else
		flags |= O_DIRECT;
#ifdef STATX_DIOALIGN
	struct statx stx;

	if (!statx(b->fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &stx) && stx.stx_mask & STATX_DIOALIGN) {
		if (!stx.stx_dio_offset_align || stx.stx_dio_offset_align > HMM_PAGE_SIZE ||
		    stx.stx_dio_mem_align > HMM_PAGE_SIZE)
			flags &= ~O_DIRECT;
		else
			align = stx.stx_dio_mem_align;
	}
#endif
	buf = aligned_alloc(HMM_PAGE_SIZE, HMM_PAGE_SIZE);
	if (!buf)
		return -ENOMEM;
	memset(buf, 0, HMM_PAGE_SIZE);
	if (flags & O_DIRECT && !fcntl(b->fd, F_SETFL, flags) &&
	    pwrite(b->fd, buf, HMM_PAGE_SIZE, 0) == (ssize_t)HMM_PAGE_SIZE &&
	    pread(b->fd, buf, HMM_PAGE_SIZE, 0) == (ssize_t)HMM_PAGE_SIZE) {
		b->align = align;
	} else {
		b->align = 0;
		fcntl(b->fd, F_SETFL, flags & ~O_DIRECT);
		errno = EIO;
		if (pwrite(b->fd, buf, HMM_PAGE_SIZE, 0) != (ssize_t)HMM_PAGE_SIZE)
			rc = -errno;
	}
	free(buf);
	return rc;
}

int file_backing_open(struct file_backing *b, const char *path, uint64_t limit, char *err, size_t errlen)
{
	struct rlimit rl;
	struct stat st;
	int rc;

	*b = (struct file_backing){.fd = -1, .step = STEP};
	if (stat(path, &st)) {
		if (errno != ENOENT)
			return fail(path, "", -errno, err, errlen);
		st.st_mode = S_IFREG;
	}
	if (S_ISDIR(st.st_mode))
		b->fd = open_in_directory(path, err, errlen);
	else if (S_ISBLK(st.st_mode))
		b->fd = open_block(b, path, err, errlen);
	else if (S_ISREG(st.st_mode))
		b->fd = open_file(b, path, err, errlen);
	else
		return drv_fail(-EINVAL, err, errlen, "file: %s: not a directory, a file or a block device", path);
	if (b->fd < 0)
		return b->fd;

	if (!b->block)
		measure(b);
	if (b->ram)
		b->step = STEP_RAM;
	if (b->block ? limit && limit < b->max : limit)
		b->max = limit;
	/* Beyond this limit there is a signal, not an error. */
	if (!b->block && !getrlimit(RLIMIT_FSIZE, &rl) && rl.rlim_cur != RLIM_INFINITY && rl.rlim_cur < b->max)
		b->max = rl.rlim_cur;
	b->max &= ~(uint64_t)(HMM_PAGE_SIZE - 1);
	rc = b->max ? file_backing_grow(b) : -ENOSPC;
	if (!rc)
		rc = try_direct(b);
	if (rc) {
		file_backing_close(b);
		return fail(path, rc == -ENOSPC ? "make room there or name another place" : "", rc, err, errlen);
	}
	return 0;
}

void file_backing_empty(struct file_backing *b)
{
	if (b->truncate && ftruncate(b->fd, 0)) {
		/* Nothing can be done about it; the next one who wants it is told that it is not empty. */
	}
}

void file_backing_close(struct file_backing *b)
{
	if (b->fd < 0)
		return;
	file_backing_empty(b);
	close(b->fd);
	b->fd = -1;
}

int file_backing_grow(struct file_backing *b)
{
	uint64_t step = b->max - b->size < b->step ? b->max - b->size : b->step;
	int rc;

	if (!step)
		return -ENOSPC;
	if (b->block) {
		b->size += step;
		return 0;
	}
	for (;;) {
		if (!fallocate(b->fd, 0, (off_t)b->size, (off_t)step)) {
			b->size += step;
			return 0;
		}
		rc = -errno;
		if (rc == -EINTR)
			continue;
		if (rc == -EOPNOTSUPP) {
			/* Then room is only found missing when a page is written; that is not an error either. */
			if (ftruncate(b->fd, (off_t)(b->size + step)))
				return -errno;
			b->size += step;
			return 0;
		}
		if (rc != -ENOSPC && rc != -EDQUOT && rc != -EFBIG)
			return rc;
		if (step <= STEP_MIN)
			return -ENOSPC;
		step = step / 2 & ~(uint64_t)(HMM_PAGE_SIZE - 1);
	}
}
