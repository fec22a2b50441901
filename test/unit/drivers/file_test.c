/* SPDX-License-Identifier: MIT */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <errno.h>
#include <fcntl.h>
#include <dirent.h>
#include <sched.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "../../skip.h"
#include "drivers/file/file.h"
#include "hammer.h"
#include "pages.h"

static char dir[] = "/var/tmp/hmm-file-test-XXXXXX";

static struct hmm_device *open_dev(const char *fmt, ...)
{
	struct hmm_device *dev;
	char spec[200], err[300];
	va_list ap;
	int rc;

	va_start(ap, fmt);
	vsnprintf(spec, sizeof(spec), fmt, ap);
	va_end(ap);
	rc = hmm_device_open(spec, &dev, err, sizeof(err));
	if (rc)
		print_message("%s\n", err);
	assert_int_equal(rc, 0);
	return dev;
}

static int open_fails(char *err, size_t errlen, const char *fmt, ...)
{
	struct hmm_device *dev;
	char spec[200];
	va_list ap;
	int rc;

	va_start(ap, fmt);
	vsnprintf(spec, sizeof(spec), fmt, ap);
	va_end(ap);
	err[0] = '\0';
	rc = hmm_device_open(spec, &dev, err, errlen);
	assert_null(dev);
	assert_true(*err && !strchr(err, '\n'));
	return rc;
}

static unsigned files_in(const char *path)
{
	struct dirent *e;
	unsigned n = 0;
	DIR *d = opendir(path);

	assert_non_null(d);
	while ((e = readdir(d)))
		n += e->d_name[0] != '.';
	closedir(d);
	return n;
}

static void round_trip(struct hmm_device *dev)
{
	enum { N = 300 };
	char *in = aligned_alloc(4096, (N + 1) * HMM_PAGE_SIZE);
	char *out = aligned_alloc(4096, (N + 1) * HMM_PAGE_SIZE);
	hmm_handle_t handle[N];
	const void *src[N];
	void *dst[N];
	int status[N];

	/* Aligned for direct I/O, and not. */
	for (unsigned shift = 0; shift <= 48; shift += 16) {
		for (unsigned i = 0; i < N; i++) {
			src[i] = in + i * HMM_PAGE_SIZE + shift;
			dst[i] = out + i * HMM_PAGE_SIZE + shift;
			status[i] = 1;
			make_page((void *)src[i], (enum kind)(i % NR_KINDS), i + shift);
		}
		memset(out, 0x77, (N + 1) * HMM_PAGE_SIZE);
		assert_int_equal(dev->ops->copy_in(dev, src, handle, N), N);
		assert_int_equal(stats_of(dev).pages, N);
		assert_int_equal(stats_of(dev).pages_same, N / NR_KINDS * 2);
		assert_int_equal(dev->ops->copy_out(dev, handle, dst, status, N), 0);
		for (unsigned i = 0; i < N; i++) {
			assert_int_equal(status[i], 0);
			assert_true(page_is(dst[i], (enum kind)(i % NR_KINDS), i + shift));
		}
		/* In no order at all. */
		for (unsigned i = 0; i < N; i++)
			assert_true(
				reads_as(dev, handle[i * 7 % N], (enum kind)(i * 7 % N % NR_KINDS), i * 7 % N + shift));
		dev->ops->put(dev, handle, N);
		assert_int_equal(stats_of(dev).pages, 0);
	}
	free(in);
	free(out);
}

static void test_round_trip(void **state)
{
	struct hmm_device *dev = open_dev("file:%s", dir);

	/* The file has no name: nothing is left behind, not even by a crash. */
	assert_int_equal(files_in(dir), 0);
	round_trip(dev);
	hmm_device_close(dev);
}

static void test_named_file(void **state)
{
	char path[100], err[300];
	struct hmm_device *dev;
	struct stat st;
	int fd;

	snprintf(path, sizeof(path), "%s/named", dir);
	dev = open_dev("file:%s,8M", path);
	assert_int_equal(stats_of(dev).bytes_capacity, 8 << 20);
	round_trip(dev);
	hmm_device_close(dev);
	assert_int_equal(access(path, F_OK), -1);

	/* One that is there and empty is used, by one at a time, and left empty. */
	fd = open(path, O_CREAT | O_RDWR, 0600);
	assert_true(fd >= 0);
	dev = open_dev("file:%s,8M", path);
	round_trip(dev);
	assert_int_equal(open_fails(err, sizeof(err), "file:%s", path), -EBUSY);
	hmm_device_close(dev);
	assert_int_equal(fstat(fd, &st), 0);
	assert_int_equal(st.st_size, 0);

	/* It is its user's alone from then on. */
	assert_int_equal(fchmod(fd, 0666), 0);
	dev = open_dev("file:%s,8M", path);
	assert_int_equal(fstat(fd, &st), 0);
	assert_int_equal(st.st_mode & 0777, 0600);
	hmm_device_close(dev);
	/* Another user's it may not be. */
	if (!fchown(fd, 65534, 65534)) {
		assert_int_equal(open_fails(err, sizeof(err), "file:%s", path), -EACCES);
		assert_int_equal(fchown(fd, 0, 0), 0);
	}

	/* One with something in it is not touched. */
	assert_int_equal(write(fd, "thesis", 6), 6);
	assert_int_equal(open_fails(err, sizeof(err), "file:%s", path), -EEXIST);
	assert_non_null(strstr(err, path));
	assert_int_equal(fstat(fd, &st), 0);
	assert_int_equal(st.st_size, 6);
	close(fd);
	unlink(path);
}

static void test_refusals(void **state)
{
	char err[300];

	assert_int_equal(open_fails(err, sizeof(err), "file:"), -EINVAL);
	assert_int_equal(open_fails(err, sizeof(err), "file:%s,100", dir), -EINVAL);
	assert_int_equal(open_fails(err, sizeof(err), "file:/dev/null"), -EINVAL);
	assert_int_equal(open_fails(err, sizeof(err), "file:%s/no/such", dir), -ENOENT);
	assert_non_null(strstr(err, "no/such"));
	assert_non_null(strstr(err, strerror(ENOENT)));
	if (!geteuid()) {
		int status;
		pid_t pid = fork();

		if (!pid) {
			/* As a user who may not write there. */
			if (setgid(65534) || setuid(65534) || open_fails(err, sizeof(err), "file:/root") != -EACCES ||
			    open_fails(err, sizeof(err), "file:/etc/hmm-test") != -EACCES || !strstr(err, "/etc"))
				_exit(1);
			_exit(0);
		}
		assert_int_equal(waitpid(pid, &status, 0), pid);
		assert_int_equal(status, 0);
	}
}

static void test_references(void **state)
{
	struct hmm_device *dev = open_dev("file:%s,4M", dir);
	hmm_handle_t h[2];
	char page[HMM_PAGE_SIZE];

	assert_int_equal(put_in(dev, TEXT, 5, &h[0]), 1);
	assert_int_equal(put_in(dev, ZERO, 5, &h[1]), 1);
	assert_false(dev->ops->shared(dev, h[0]));
	dev->ops->get(dev, h, 2);
	assert_true(dev->ops->shared(dev, h[0]));
	dev->ops->put(dev, h, 2);
	assert_int_equal(stats_of(dev).pages, 2);
	assert_true(reads_as(dev, h[0], TEXT, 5));
	assert_true(reads_as(dev, h[1], ZERO, 5));
	dev->ops->put(dev, h, 2);
	assert_int_equal(stats_of(dev).pages, 0);
	assert_int_equal(get_out(dev, h[0], page), -EIO);
	assert_int_equal(get_out(dev, 1 << 30, page), -EIO);
	assert_int_equal(get_out(dev, HMM_HANDLE_NONE, page), -EIO);
	hmm_device_close(dev);
}

/* Made so that a seeded XXH3 of both is the same for one seed of sixty. */
static void test_hash(void **state)
{
	static uint64_t one[HMM_PAGE_SIZE / 8], other[HMM_PAGE_SIZE / 8];

	if (!file_hash_there())
		skip();
	one[96] = 0x0a0a0410;
	memcpy(other, one, sizeof(one));
	other[0] ^= 1ull << 63;
	other[96] ^= 1ull << 63;
	for (unsigned i = 0; i < 1000; i++) {
		struct file_hash h, again;

		file_hash_init(&h);
		again = h;
		assert_true(file_hash_page(&h, one) == file_hash_page(&again, one));
		assert_true(file_hash_page(&h, one) != file_hash_page(&h, other));
	}
}

/* A page that it has not at hand it knows by a hash with a key of its own. */
static void test_same(void **state)
{
	struct hmm_device *dev = open_dev("file:%s,4M", dir), *other = open_dev("file:%s,4M", dir);
	hmm_handle_t h[3], first;
	char page[HMM_PAGE_SIZE];

	if (!file_hash_there())
		assert_null(dev->ops->same);
	if (!dev->ops->same) { /* not built in, or a file in RAM */
		hmm_device_close(other);
		hmm_device_close(dev);
		skip();
	}
	assert_int_equal(put_in(dev, INCOMPRESSIBLE, 5, &h[0]), 1);
	assert_int_equal(put_in(dev, ZERO, 5, &h[1]), 1);
	assert_int_equal(put_in(dev, INCOMPRESSIBLE, 6, &h[2]), 1);
	assert_int_equal(put_in(other, INCOMPRESSIBLE, 5, &first), 1);
	make_page(page, INCOMPRESSIBLE, 5);
	assert_true(dev->ops->same(dev, h[0], page));
	assert_false(dev->ops->same(dev, h[1], page));
	assert_false(dev->ops->same(dev, h[2], page));
	assert_false(dev->ops->same(dev, 1 << 30, page));
	for (unsigned bit = 0; bit < 8 * HMM_PAGE_SIZE; bit += 97) {
		page[bit / 8] ^= (char)(1 << bit % 8);
		assert_false(dev->ops->same(dev, h[0], page));
		page[bit / 8] ^= (char)(1 << bit % 8);
	}
	make_page(page, ZERO, 5);
	assert_true(dev->ops->same(dev, h[1], page));
	assert_false(dev->ops->same(dev, h[0], page));
	assert_true(file_slot(&((struct hmm_file *)dev)->slots, h[0])->hash !=
		    file_slot(&((struct hmm_file *)other)->slots, first)->hash);
	dev->ops->put(dev, h, 3);
	other->ops->put(other, &first, 1);
	hmm_device_close(other);
	hmm_device_close(dev);
}

static void test_capacity(void **state)
{
	/* Not a whole number of anything but pages. */
	enum { N = 1027 };
	struct hmm_device *dev = open_dev("file:%s,%u", dir, N * 4096);
	static hmm_handle_t handle[2 * N];
	char page[16][HMM_PAGE_SIZE] __attribute__((aligned(4096)));
	const void *src[16];
	unsigned n = 0;

	for (;;) {
		int rc;

		for (unsigned i = 0; i < 16; i++) {
			make_page(page[i], MEDIUM, n + i + 1);
			src[i] = page[i];
		}
		rc = dev->ops->copy_in(dev, src, handle + n, 16);
		assert_true(rc >= 0);
		for (unsigned i = 0; i < 16; i++)
			assert_int_equal(handle[n + i] == HMM_HANDLE_NONE, i >= (unsigned)rc);
		n += (unsigned)rc;
		if (rc < 16)
			break;
	}
	assert_int_equal(n, N);
	assert_int_equal(stats_of(dev).pages, N);
	assert_int_equal(stats_of(dev).errors, 0);
	for (unsigned i = 0; i < N; i++)
		assert_true(reads_as(dev, handle[i], MEDIUM, i + 1));
	/* In holes: pieces of what is asked for, all of it used. */
	for (unsigned i = 0; i < N; i += 3)
		dev->ops->put(dev, &handle[i], 1);
	for (unsigned i = 0; i < N; i += 3)
		assert_int_equal(put_in(dev, TEXT, i, &handle[i]), 1);
	assert_int_equal(put_in(dev, TEXT, 1, &handle[N]), 0);
	for (unsigned i = 0; i < N; i++)
		assert_true(reads_as(dev, handle[i], i % 3 ? MEDIUM : TEXT, i % 3 ? i + 1 : i));
	hmm_device_close(dev);
}

static void test_neighbours(void **state)
{
	enum { N = 128 };
	struct hmm_device *dev = open_dev("file:%s,16M", dir);
	struct hmm_file *d = (struct hmm_file *)dev;
	char *pages = aligned_alloc(4096, N * HMM_PAGE_SIZE);
	static hmm_handle_t old[3000];
	hmm_handle_t h[N];
	const void *src[N];
	void *dst[N];
	int status[N];

	for (unsigned i = 0; i < 3000; i++)
		assert_int_equal(put_in(dev, TEXT, i, &old[i]), 1);
	for (unsigned i = 0; i < 3000; i++)
		if (mix(i) % 2 || (i >= 1000 && i < 1130))
			dev->ops->put(dev, &old[i], 1);
	d->slots.cursor = 0;
	for (unsigned i = 0; i < N; i++) {
		src[i] = dst[i] = pages + i * HMM_PAGE_SIZE;
		make_page((void *)src[i], MEDIUM, i + 1);
	}
	assert_int_equal(dev->ops->copy_in(dev, src, h, N), N);
	for (unsigned i = 1; i < N; i++)
		assert_true(h[i] == h[0] + i);
	/* The hole that is large enough, not the end of the file. */
	assert_in_range(h[0], 900, 1130);
	/* One request there and one back. */
	assert_int_equal(d->io.idle->nr_req, 1);
	memset(pages, 0, N * HMM_PAGE_SIZE);
	assert_int_equal(dev->ops->copy_out(dev, h, dst, status, N), 0);
	assert_int_equal(d->io.idle->nr_req, 1);
	assert_int_equal(d->io.idle->nr_iov, 1);
	for (unsigned i = 0; i < N; i++)
		assert_true(page_is(dst[i], MEDIUM, i + 1));
	free(pages);
	hmm_device_close(dev);
}

static void test_many_requests(void **state)
{
	enum { N = HMM_BATCH_MAX };
	struct hmm_device *dev = open_dev("file:%s,%u", dir, 2 * N * 4096);
	struct hmm_file *d = (struct hmm_file *)dev;
	char *pages = aligned_alloc(4096, N * HMM_PAGE_SIZE);
	hmm_handle_t h[N], all[2 * N];
	const void *src[N];
	void *dst[N];
	int status[N];

	/* Only every second slot is free: more requests than a ring has room for, there and back. */
	for (unsigned i = 0; i < 2 * N; i++)
		assert_int_equal(put_in(dev, TEXT, i, &all[i]), 1);
	for (unsigned i = 0; i < 2 * N; i += 2)
		dev->ops->put(dev, &all[i], 1);
	for (unsigned i = 0; i < N; i++) {
		src[i] = dst[i] = pages + i * HMM_PAGE_SIZE;
		make_page(dst[i], MEDIUM, i + 1);
	}
	assert_int_equal(dev->ops->copy_in(dev, src, h, N), N);
	assert_int_equal(d->io.idle->nr_req, N);
	memset(pages, 0, N * HMM_PAGE_SIZE);
	assert_int_equal(dev->ops->copy_out(dev, h, dst, status, N), 0);
	assert_int_equal(d->io.idle->nr_req, N);
	for (unsigned i = 0; i < N; i++)
		assert_true(page_is(dst[i], MEDIUM, i + 1));
	for (unsigned i = 1; i < 2 * N; i += 2)
		assert_true(reads_as(dev, all[i], TEXT, i));
	free(pages);
	hmm_device_close(dev);
}

static void test_damage(void **state)
{
	struct hmm_device *dev = open_dev("file:%s,4M", dir);
	struct hmm_file *d = (struct hmm_file *)dev;
	char *page = aligned_alloc(4096, 4 * HMM_PAGE_SIZE);
	const void *src[3] = {page, page + 4096, page + 8192};
	void *dst[3] = {page, page + 4096, page + 8192};
	char *raw = page + 3 * 4096;
	hmm_handle_t h[3];
	int status[3];

	for (unsigned i = 0; i < 3; i++)
		make_page(dst[i], MEDIUM, i);
	assert_int_equal(dev->ops->copy_in(dev, src, h, 3), 3);
	assert_int_equal(pread(d->backing.fd, raw, 4096, (off_t)h[1] * 4096), 4096);
	raw[1234] ^= 1;
	assert_int_equal(pwrite(d->backing.fd, raw, 4096, (off_t)h[1] * 4096), 4096);
	assert_int_equal(dev->ops->copy_out(dev, h, dst, status, 3), -EBADMSG);
	assert_int_equal(status[0], 0);
	assert_int_equal(status[1], -EBADMSG);
	assert_int_equal(status[2], 0);
	assert_true(page_is(page, MEDIUM, 0) && page_is(page + 8192, MEDIUM, 2));

	/* Cut off in the middle of one run: what is still there is read, the rest is an error. */
	assert_int_equal(ftruncate(d->backing.fd, (off_t)(h[0] + 1) * 4096 + 512), 0);
	assert_int_equal(dev->ops->copy_out(dev, h, dst, status, 3), -EIO);
	assert_int_equal(status[0], 0);
	assert_int_equal(status[1], -EIO);
	assert_int_equal(status[2], -EIO);
	assert_true(page_is(page, MEDIUM, 0));
	assert_int_equal(stats_of(dev).errors, 3);
	free(page);
	hmm_device_close(dev);
}

static void test_write_error(void **state)
{
	struct hmm_device *dev = open_dev("file:%s,4M", dir);
	struct hmm_file *d = (struct hmm_file *)dev;
	hmm_handle_t h;
	uint64_t nfree = d->slots.nfree;
	int good = d->io.fd, bad = open("/dev/full", O_RDONLY);

	/* A descriptor that cannot be written: -EIO, and all is as before. */
	assert_true(bad >= 0);
	d->io.fd = bad;
	assert_int_equal(put_in(dev, TEXT, 1, &h), -EIO);
	assert_true(h == HMM_HANDLE_NONE);
	assert_int_equal(stats_of(dev).pages, 0);
	assert_int_equal(stats_of(dev).errors, 1);
	assert_int_equal(d->slots.nfree, nfree);
	d->io.idle->fd = d->io.fd = good;
	close(bad);

	/* No room after all: not taken, not an error. */
	bad = open("/dev/full", O_RDWR);
	d->io.idle->fd = bad;
	assert_int_equal(put_in(dev, TEXT, 1, &h), 0);
	assert_true(h == HMM_HANDLE_NONE);
	assert_int_equal(stats_of(dev).errors, 1);
	assert_int_equal(d->slots.nfree, nfree);
	d->io.idle->fd = good;
	assert_int_equal(put_in(dev, TEXT, 1, &h), 1);
	assert_true(reads_as(dev, h, TEXT, 1));
	close(bad);
	hmm_device_close(dev);
}

static void test_growth(void **state)
{
	struct hmm_device *dev = open_dev("file:%s,6M", dir);
	struct hmm_file *d = (struct hmm_file *)dev;
	static hmm_handle_t handle[1536];

	assert_int_equal(d->backing.size, 6 << 20);
	hmm_device_close(dev);

	dev = open_dev("file:%s,200M", dir);
	d = (struct hmm_file *)dev;
	assert_int_equal(d->backing.size, 64 << 20);
	d->backing.step = 1 << 20;
	assert_true(stats_of(dev).bytes_ram < 1 << 20);
	char page[64][HMM_PAGE_SIZE] __attribute__((aligned(4096)));
	const void *src[64];

	for (unsigned n = 0; n < 70 << 8; n += 64) {
		for (unsigned i = 0; i < 64; i++) {
			memset(page[i], 0, 4096);
			memcpy(page[i], &n, sizeof(n));
			src[i] = page[i];
		}
		assert_int_equal(dev->ops->copy_in(dev, src, handle, 64), 64);
	}
	assert_true(d->backing.size > 70 << 20);
	assert_true(d->backing.size < 80 << 20);
	hmm_device_close(dev);
}

/* Runs @body in a process of its own, which may do to itself what it likes; its status. */
static int in_child(int (*body)(void))
{
	int status;
	pid_t pid = fork();

	if (!pid)
		_exit(body());
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	return WEXITSTATUS(status);
}

static int on_small_tmpfs(void)
{
	static hmm_handle_t handle[4096];
	struct hmm_device *dev;
	char path[100];
	unsigned n = 0;

	snprintf(path, sizeof(path), "%s/small", dir);
	if (mkdir(path, 0700) && errno != EEXIST)
		return 1;
	if (unshare(CLONE_NEWNS) || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) ||
	    mount("none", path, "tmpfs", 0, "size=4m"))
		return 77;

	char spec[120];

	/* Told to use more than there is: full when it is full. */
	snprintf(spec, sizeof(spec), "file:%s,100M", path);
	if (hmm_device_open(spec, &dev, NULL, 0))
		return 2;
	if (!(dev->ops->caps & HMM_DEV_RAM))
		return 3;
	while (n < 4096 && put_in(dev, MEDIUM, n + 1, &handle[n]) == 1)
		n++;
	if (n < 900 || n > 1024 || stats_of(dev).errors)
		return 4;
	if (stats_of(dev).bytes_ram < 3 << 20)
		return 5;
	for (unsigned i = 0; i < n; i++)
		if (!reads_as(dev, handle[i], MEDIUM, i + 1))
			return 6;
	dev->ops->put(dev, handle, 10);
	for (unsigned i = 0; i < 10; i++)
		if (put_in(dev, MEDIUM, i, &handle[i]) != 1)
			return 7;
	hmm_device_close(dev);

	/* Told nothing: a reserve is left. */
	snprintf(spec, sizeof(spec), "file:%s", path);
	if (hmm_device_open(spec, &dev, NULL, 0))
		return 8;
	if (stats_of(dev).bytes_capacity > 4 << 20 || stats_of(dev).bytes_capacity < 3 << 20)
		return 9;
	hmm_device_close(dev);
	return 0;
}

static void test_full_filesystem(void **state)
{
	int rc = in_child(on_small_tmpfs);

	if (rc == 77)
		skip_because("mounting a tmpfs needs root");
	assert_int_equal(rc, 0);
}

#define LOAD(field) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field))
#define REFUSE(e) BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (e))

static int install(struct sock_filter *filter, unsigned n)
{
	struct sock_fprog prog = {.len = (unsigned short)n, .filter = filter};

	return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog);
}

/* As containers do. */
static int refuse_io_uring(void)
{
	struct sock_filter filter[] = {
		LOAD(nr),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_setup, 0, 1),
		REFUSE(EPERM),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};

	return install(filter, sizeof(filter) / sizeof(filter[0]));
}

/* As file systems do that cannot. */
static int refuse_direct(void)
{
	struct sock_filter filter[] = {
		LOAD(nr),       BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_fcntl, 0, 5),
		LOAD(args[1]),  BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, F_SETFL, 0, 3),
		LOAD(args[2]),  BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, O_DIRECT, 0, 1),
		REFUSE(EINVAL), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};

	return install(filter, sizeof(filter) / sizeof(filter[0]));
}

/* As file systems do that know neither. */
static int refuse_fallocate(void)
{
	struct sock_filter filter[] = {
		LOAD(nr),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_fallocate, 0, 1),
		REFUSE(EOPNOTSUPP),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};

	return install(filter, sizeof(filter) / sizeof(filter[0]));
}

static int (*refuse)(void);

static int refused_body(void)
{
	struct hmm_device *dev;
	struct hmm_file *d;

	if (refuse())
		return 77;
	dev = open_dev("file:%s,64M", dir);
	d = (struct hmm_file *)dev;
	round_trip(dev);
	if (refuse == refuse_io_uring ? d->io.idle->have_ring : !d->io.idle->have_ring)
		return 1;
	if (refuse == refuse_direct && d->backing.align)
		return 2;
	if (hammer(dev, 4, 500, NR_KINDS))
		return 3;
	hmm_device_close(dev);
	return 0;
}

static void without(int (*what)(void))
{
	int rc;

	refuse = what;
	rc = in_child(refused_body);
	if (rc == 77)
		skip_because("seccomp filters are not to be had here");
	assert_int_equal(rc, 0);
}

static void test_without_io_uring(void **state)
{
	without(refuse_io_uring);
}

static void test_without_direct(void **state)
{
	without(refuse_direct);
}

static void test_without_fallocate(void **state)
{
	without(refuse_fallocate);
}

/* The write itself finds out that there is no room, half-way. */
static int full_without_fallocate(void)
{
	enum { N = 64 };
	static char page[N][HMM_PAGE_SIZE] __attribute__((aligned(4096)));
	static hmm_handle_t handle[2048];
	struct hmm_device *dev;
	char path[100], spec[120];
	const void *src[N];
	unsigned n = 0;
	int rc = N;

	snprintf(path, sizeof(path), "%s/small", dir);
	if (mkdir(path, 0700) && errno != EEXIST)
		return 1;
	/* Not a multiple of what is written at a time. */
	if (unshare(CLONE_NEWNS) || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) ||
	    mount("none", path, "tmpfs", 0, "size=4120k") || refuse_fallocate())
		return 77;
	snprintf(spec, sizeof(spec), "file:%s,100M", path);
	if (hmm_device_open(spec, &dev, NULL, 0))
		return 2;
	for (; rc == N && n + N <= 2048; n += N) {
		for (unsigned i = 0; i < N; i++) {
			make_page(page[i], MEDIUM, n + i + 1);
			src[i] = page[i];
		}
		rc = dev->ops->copy_in(dev, src, handle + n, N);
	}
	if (rc < 0 || n > 1024 + N || stats_of(dev).errors)
		return 3;
	for (unsigned i = 0; i < n; i++)
		if (handle[i] != HMM_HANDLE_NONE && !reads_as(dev, handle[i], MEDIUM, i + 1))
			return 4;
	hmm_device_close(dev);
	return n < 900 ? 5 : 0;
}

static void test_full_without_fallocate(void **state)
{
	int rc = in_child(full_without_fallocate);

	if (rc == 77)
		skip_because("mounting a tmpfs needs root, and seccomp filters");
	assert_int_equal(rc, 0);
}

static int file_limit_body(void)
{
	struct rlimit rl = {.rlim_cur = 3 << 20, .rlim_max = 3 << 20};
	struct hmm_device *dev;
	hmm_handle_t h;
	unsigned n = 0;

	/* SIGXFSZ would end us here. */
	if (setrlimit(RLIMIT_FSIZE, &rl))
		return 1;
	dev = open_dev("file:%s,100M", dir);
	while (put_in(dev, MEDIUM, n + 1, &h) == 1)
		n++;
	return n != 3 << 8;
}

static void test_file_size_limit(void **state)
{
	assert_int_equal(in_child(file_limit_body), 0);
}

static char loop[64];

static int block_body(void)
{
	struct hmm_device *dev = open_dev("file:%s", loop);
	char err[300];

	/* Two would overwrite each other, as would we a mounted one. */
	if (open_fails(err, sizeof(err), "file:%s", loop) != -EBUSY)
		return 1;
	if (stats_of(dev).bytes_capacity != 6 << 20)
		return 2;
	round_trip(dev);
	hmm_device_close(dev);
	return 0;
}

static void test_block_device(void **state)
{
	char image[100], command[300];
	FILE *p;
	int rc;

	if (geteuid())
		skip_because("setting up a loop device needs root and losetup");
	snprintf(image, sizeof(image), "%s/image", dir);
	snprintf(command, sizeof(command), "truncate -s 6M %s && losetup -f --show %s 2>/dev/null", image, image);
	p = popen(command, "r");
	if (!p || !fgets(loop, sizeof(loop), p)) {
		if (p)
			pclose(p);
		unlink(image);
		skip_because("setting up a loop device needs root and losetup");
	}
	pclose(p);
	loop[strcspn(loop, "\n")] = '\0';

	/* In a child, so that the loop device is freed also when it fails. */
	rc = in_child(block_body);
	snprintf(command, sizeof(command), "losetup -d %s", loop);
	assert_int_equal(system(command), 0);
	unlink(image);
	assert_int_equal(rc, 0);
}

static void test_bounce_memory(void **state)
{
	struct hmm_device *dev = open_dev("file:%s,4M", dir);
	struct hmm_file *d = (struct hmm_file *)dev;
	hmm_handle_t h;
	uint64_t before;

	if (!d->backing.align) {
		hmm_device_close(dev);
		skip_because("no O_DIRECT in /var/tmp");
	}
	assert_int_equal(put_in(dev, TEXT, 1, &h), 1);
	before = stats_of(dev).bytes_ram;
	if (d->io.idle->bounced) {
		assert_int_equal(dev->ops->trim(dev, SIZE_MAX), 4096);
		assert_int_equal(stats_of(dev).bytes_ram, before - 4096);
	}
	assert_true(reads_as(dev, h, TEXT, 1));
	hmm_device_close(dev);
}

static void test_threads(void **state)
{
	struct hmm_device *dev = open_dev("file:%s,64M", dir);

	assert_int_equal(hammer(dev, 12, 400, NR_KINDS), 0);
	assert_int_equal(stats_of(dev).errors, 0);
	hmm_device_close(dev);
}

static void test_threads_when_full(void **state)
{
	struct hmm_device *dev = open_dev("file:%s,1M", dir);

	assert_int_equal(hammer(dev, 6, 400, NR_KINDS), 0);
	assert_int_equal(stats_of(dev).errors, 0);
	hmm_device_close(dev);
}

static void test_figures(void **state)
{
	enum { N = 8192, BATCH = 256 };
	struct hmm_device *dev = open_dev("file:%s,64M", dir);
	char *pages = aligned_alloc(4096, (size_t)BATCH * HMM_PAGE_SIZE);
	hmm_handle_t *handle = calloc(N, sizeof(*handle));
	const void *src[BATCH];
	void *dst[BATCH];
	int status[BATCH];
	double t0, t1, t2, t3;

	for (unsigned i = 0; i < BATCH; i++) {
		src[i] = dst[i] = pages + (size_t)i * HMM_PAGE_SIZE;
		make_page(dst[i], INCOMPRESSIBLE, i);
	}
	t0 = now_ns();
	for (unsigned i = 0; i < N; i += BATCH)
		assert_int_equal(dev->ops->copy_in(dev, src, handle + i, BATCH), BATCH);
	t1 = now_ns();
	for (unsigned i = 0; i < N; i += BATCH)
		assert_int_equal(dev->ops->copy_out(dev, handle + i, dst, status, BATCH), 0);
	t2 = now_ns();
	for (unsigned i = 0; i < 1000; i++)
		assert_int_equal(dev->ops->copy_out(dev, &handle[mix(i) % N], dst, status, 1), 0);
	t3 = now_ns();
	print_message("        in %.0f ns/page, out %.0f ns/page, one at a time %.0f ns\n", (t1 - t0) / N,
		      (t2 - t1) / N, (t3 - t2) / 1000);
	free(handle);
	free(pages);
	hmm_device_close(dev);
}

enum { CALLERS = 4 };

void *__real_drv_map(size_t bytes);
void *__wrap_drv_map(size_t bytes);
static _Atomic bool no_memory, let_one, together;
static _Atomic unsigned denied;

void *__wrap_drv_map(size_t bytes)
{
	if (!no_memory || atomic_exchange(&let_one, false))
		return __real_drv_map(bytes);
	denied++;
	while (together && denied < CALLERS)
		sched_yield();
	return NULL;
}

struct caller {
	pthread_t thread;
	struct hmm_device *dev;
	hmm_handle_t handle;
	int got;
	char page[HMM_PAGE_SIZE] __attribute__((aligned(4096)));
};

static void *read_one(void *arg)
{
	struct caller *c = arg;
	void *dst = c->page;

	c->dev->ops->copy_out(c->dev, &c->handle, &dst, &c->got, 1);
	return NULL;
}

static void *write_one(void *arg)
{
	struct caller *c = arg;

	c->got = put_in(c->dev, TEXT, 1, &c->handle);
	return NULL;
}

static void call(struct caller *c, struct hmm_device *dev, hmm_handle_t h, void *(*what)(void *))
{
	denied = 0;
	no_memory = true;
	for (unsigned i = 0; i < CALLERS; i++) {
		c[i] = (struct caller){.dev = dev, .handle = h, .got = 1};
		assert_int_equal(pthread_create(&c[i].thread, NULL, what, &c[i]), 0);
	}
	while (denied < CALLERS)
		sched_yield();
}

static void all_got(struct caller *c, int what)
{
	for (unsigned i = 0; i < CALLERS; i++) {
		pthread_join(c[i].thread, NULL);
		assert_int_equal(c[i].got, what);
	}
	no_memory = false;
}

/* No memory for one more transfer: what is in the file is not lost, it comes when another is through. */
static void test_no_memory_to_read(void **state)
{
	struct hmm_device *dev = open_dev("file:%s,4M", dir);
	struct hmm_file *d = (struct hmm_file *)dev;
	static struct caller c[CALLERS];
	struct file_xfer *busy;
	hmm_handle_t h;

	/* There has never been one: nothing can be written, nothing is lost by that, and nobody waits for another. */
	together = true;
	call(c, dev, HMM_HANDLE_NONE, write_one);
	all_got(c, 0);
	together = false;
	assert_int_equal(put_in(dev, TEXT, 1, &h), 1);
	/* None of it, and a part. */
	for (unsigned part = 0; part < 2; part++) {
		busy = file_io_get(&d->io);
		let_one = part;
		call(c, dev, h, read_one);
		file_io_put(&d->io, busy);
		all_got(c, 0);
		for (unsigned i = 0; i < CALLERS; i++)
			assert_true(page_is(c[i].page, TEXT, 1));
	}
	assert_int_equal(d->io.nr, 1);
	assert_int_equal(stats_of(dev).errors, 0);
	dev->ops->put(dev, &h, 1);
	hmm_device_close(dev);
}

static int make_dir(void **state)
{
	return mkdtemp(dir) ? 0 : -1;
}

static int remove_dir(void **state)
{
	char path[100];

	snprintf(path, sizeof(path), "%s/small", dir);
	rmdir(path);
	snprintf(path, sizeof(path), "%s/named", dir);
	unlink(path);
	snprintf(path, sizeof(path), "%s/image", dir);
	unlink(path);
	return rmdir(dir);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_round_trip),
		cmocka_unit_test(test_named_file),
		cmocka_unit_test(test_refusals),
		cmocka_unit_test(test_references),
		cmocka_unit_test(test_capacity),
		cmocka_unit_test(test_neighbours),
		cmocka_unit_test(test_many_requests),
		cmocka_unit_test(test_damage),
		cmocka_unit_test(test_write_error),
		cmocka_unit_test(test_growth),
		cmocka_unit_test(test_full_filesystem),
		cmocka_unit_test(test_without_io_uring),
		cmocka_unit_test(test_without_direct),
		cmocka_unit_test(test_without_fallocate),
		cmocka_unit_test(test_full_without_fallocate),
		cmocka_unit_test(test_file_size_limit),
		cmocka_unit_test(test_block_device),
		cmocka_unit_test(test_bounce_memory),
		cmocka_unit_test(test_threads),
		cmocka_unit_test(test_threads_when_full),
		cmocka_unit_test(test_figures),
		cmocka_unit_test(test_same),
		cmocka_unit_test(test_hash),
		cmocka_unit_test(test_no_memory_to_read),
	};

	return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
