/* SPDX-License-Identifier: MIT */
/*
 * hmm doctor: what of this machine hmm run needs, and how to mend what is not so.
 *
 * DOC: looking without touching
 *
 * Each check tries the thing itself, on memory and descriptors of its own, in
 * preference to reading a version or a setting: a distribution may have added
 * a feature or a container may have taken one away.  Settings are read only to
 * say what to change.  Nothing outside this process is changed.
 *
 * A PROBLEM keeps hmm run from working; a WARNING makes it less good or less
 * safe, and the line says in what.  Each carries the command that mends it.
 */
#include "cli/cli.h"
#include "cli/json.h"
#include "cli/kernel_bugs.h"
#include "hmm_uapi.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <linux/kcmp.h>
#include <linux/magic.h>
#include <pwd.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

enum status { OK, WARNING, PROBLEM };

struct check {
	const char *name;
	enum status status;
	char detail[256];
	char mend[256]; /* empty: nothing to mend */
};

struct report {
	struct check check[48];
	unsigned nr;
	bool contained; /* in a container: settings are the host's to change */
	bool filtered;  /* a seccomp filter is on us */
};

__attribute__((format(printf, 5, 6))) static void say(struct report *r, const char *name, enum status status,
						      const char *mend, const char *fmt, ...)
{
	struct check *c;
	va_list ap;

	if (r->nr == sizeof(r->check) / sizeof(r->check[0]))
		return;
	c = &r->check[r->nr++];
	c->name = name;
	c->status = status;
	snprintf(c->mend, sizeof(c->mend), "%s", mend ? mend : "");
	va_start(ap, fmt);
	vsnprintf(c->detail, sizeof(c->detail), fmt, ap);
	va_end(ap);
}

/* The first line of a file.  Returns 0 or -errno. */
static int read_line(const char *path, char *buf, size_t len)
{
	ssize_t n;
	int fd, rc = 0;

	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	n = read(fd, buf, len - 1);
	if (n < 0) {
		rc = -errno;
		n = 0;
	}
	buf[n] = '\0';
	buf[strcspn(buf, "\n")] = '\0';
	close(fd);
	return rc;
}

static long long read_number(const char *path)
{
	char buf[64];

	return read_line(path, buf, sizeof(buf)) == 0 && buf[0] ? strtoll(buf, NULL, 10) : -1;
}

static void check_kernel(struct report *r)
{
	static const struct kernel_version floor = {6, 8, 0};
	static const char *const none = "nothing, if no line below tells of a problem";
	struct kernel_version v;
	struct utsname u;
	char sig[256];
	bool has_sig;
	unsigned i;

	if (uname(&u)) {
		say(r, "kernel", WARNING, none, "uname failed: %s", strerror(errno));
		return;
	}
	has_sig = read_line("/proc/version_signature", sig, sizeof(sig)) == 0;
	if (!kernel_version_upstream(u.release, u.version, has_sig ? sig : NULL, &v)) {
		say(r, "kernel", WARNING, none, "cannot tell the version of '%s'", u.release);
		return;
	}
	if (kernel_version_cmp(&v, &floor) < 0) {
		/* By its number alone; what it can do, or was given by who has built it, is tried below. */
		say(r, "kernel", WARNING,
		    "apt-get install -t bookworm-backports linux-image-amd64 (Debian 12; then reboot)",
		    "Linux %u.%u.%u: 6.8 is the first that can move pages, and bugs of this one are not known here",
		    v.major, v.minor, v.patch);
		return;
	}
	say(r, "kernel", OK, NULL, "Linux %u.%u.%u (%s)", v.major, v.minor, v.patch, u.release);
	for (i = 0; i < kernel_bugs_nr; i++) {
		const struct kernel_bug *b = &kernel_bugs[i];
		const struct kernel_version *fix = &b->mainline, *s;

		if (!kernel_bug_in(b, &v))
			continue;
		for (s = b->stable; s->major; s++)
			if (s->major == v.major && s->minor == v.minor)
				fix = s;
		say(r, "kernel-bug", WARNING, "apt-get update && apt-get dist-upgrade (then reboot)",
		    "%s: %s; fixed in Linux %u.%u.%u, unless your distribution did it earlier", b->id, b->what,
		    fix->major, fix->minor, fix->patch);
	}
}

static void check_page_size(struct report *r)
{
	long size = sysconf(_SC_PAGESIZE);

	if (size == 4096)
		say(r, "page-size", OK, NULL, "4096 bytes");
	else
		say(r, "page-size", PROBLEM, "boot a kernel with 4 KiB pages", "%ld bytes; hmm moves pages of 4096",
		    size);
}

static void check_container(struct report *r)
{
	char buf[4096], *p;
	const char *kind = NULL;
	ssize_t n;
	int fd;

	if (access("/.dockerenv", F_OK) == 0)
		kind = "docker";
	else if (access("/run/.containerenv", F_OK) == 0)
		kind = "podman";
	else if (access("/run/systemd/container", F_OK) == 0)
		kind = "container";
	r->contained = kind != NULL;

	fd = open("/proc/self/status", O_RDONLY | O_CLOEXEC);
	if (fd >= 0) {
		n = read(fd, buf, sizeof(buf) - 1);
		close(fd);
		buf[n > 0 ? n : 0] = '\0';
		p = strstr(buf, "\nSeccomp:");
		r->filtered = p && atoi(p + strlen("\nSeccomp:")) == 2;
	}
	say(r, "container", OK, NULL, "%s%s", kind ? kind : "none", r->filtered ? ", with a seccomp filter" : "");
}

/* A new userfaultfd, not yet shaken hands with, or -errno of the system call. */
static int uffd_new(const char **way)
{
	int fd, dev, rc;

	fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	if (fd >= 0) {
		*way = "system call";
		return fd;
	}
	rc = -errno;
	dev = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	if (dev >= 0) {
		fd = ioctl(dev, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
		close(dev);
		if (fd >= 0) {
			*way = "/dev/userfaultfd";
			return fd;
		}
	}
	return rc;
}

/* The handshake.  Returns 0 and what the kernel has, or -errno. */
static int uffd_api(int fd, uint64_t features, uint64_t *has)
{
	struct uffdio_api api = {.api = UFFD_API, .features = features};

	if (ioctl(fd, UFFDIO_API, &api))
		return -errno;
	if (has)
		*has = api.features;
	return 0;
}

/* Why there is no userfaultfd for us, and what to do. */
static void say_uffd_refused(struct report *r, int err)
{
	struct passwd *pw = getpwuid(geteuid());
	char mend[256];
	int fd;

	if (err == -ENOSYS && !r->filtered) {
		say(r, "userfaultfd", PROBLEM, "boot a kernel built with CONFIG_USERFAULTFD=y",
		    "this kernel has no userfaultfd");
		return;
	}
	/* Without kernel-mode faults it is open to everybody: if not even that, a filter is in the way. */
	fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
	if (fd < 0) {
		say(r, "userfaultfd", PROBLEM,
		    "docker run --device /dev/userfaultfd ... (or --security-opt seccomp=unconfined; podman: the same)",
		    "a seccomp filter blocks it");
		return;
	}
	close(fd);
	if (r->contained && access("/dev/userfaultfd", F_OK)) {
		say(r, "userfaultfd", PROBLEM, "docker run --device /dev/userfaultfd ... (podman: the same)",
		    "this container may not use it");
		return;
	}
	snprintf(mend, sizeof(mend),
		 "sudo setfacl -m u:%s:rw /dev/userfaultfd (or for everybody: sudo sysctl -w "
		 "vm.unprivileged_userfaultfd=1)",
		 pw ? pw->pw_name : "USER");
	say(r, "userfaultfd", PROBLEM, mend, "this user may not use it: %s", strerror(-err));
}

static const struct feature {
	uint64_t bit;
	const char *name;
	enum status without;
	const char *need;
} features[] = {
	{UFFD_FEATURE_MOVE, "feature-move", PROBLEM, "pages cannot leave without it"},
	{UFFD_FEATURE_POISON, "feature-poison", PROBLEM, "pages that are lost could not be told from zeros"},
	{UFFD_FEATURE_EVENT_UNMAP, "feature-unmap", PROBLEM, "unmapped memory would go unnoticed"},
	{UFFD_FEATURE_EVENT_REMAP, "feature-remap", PROBLEM, "moved memory would go unnoticed"},
	{UFFD_FEATURE_EVENT_REMOVE, "feature-remove", PROBLEM, "dropped memory would go unnoticed"},
	{UFFD_FEATURE_THREAD_ID, "feature-thread-id", PROBLEM, "who has faulted could not be told"},
	{UFFD_FEATURE_WP_ASYNC, "feature-wp-async", WARNING, "unchanged pages are stored again each time they leave"},
};

/* Move a page for real: a filter on ioctl() or a crippled kernel shows only here. */
static int try_move(int fd)
{
	const size_t size = (size_t)sysconf(_SC_PAGESIZE);
	struct uffdio_register reg = {.mode = UFFDIO_REGISTER_MODE_MISSING};
	struct uffdio_move mv = {0};
	char *src, *dst;
	int rc = 0;

	src = mmap(NULL, 2 * size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (src == MAP_FAILED)
		return -errno;
	dst = src + size;
	src[1] = 42;
	reg.range.start = (uintptr_t)dst;
	reg.range.len = size;
	if (ioctl(fd, UFFDIO_REGISTER, &reg)) {
		rc = -errno;
		goto out;
	}
	mv.dst = (uintptr_t)dst;
	mv.src = (uintptr_t)src;
	mv.len = size;
	if (ioctl(fd, UFFDIO_MOVE, &mv))
		rc = -errno;
	else if (dst[1] != 42)
		rc = -EIO;
out:
	munmap(src, 2 * size);
	return rc;
}

static void check_userfaultfd(struct report *r)
{
	const char *way = NULL;
	uint64_t has = 0;
	unsigned i;
	int fd, rc;

	fd = uffd_new(&way);
	if (fd < 0) {
		say_uffd_refused(r, fd);
		return;
	}
	rc = uffd_api(fd, 0, &has);
	close(fd);
	if (rc) {
		say(r, "userfaultfd", PROBLEM, "boot Linux 6.8 or newer", "the kernel refuses the handshake: %s",
		    strerror(-rc));
		return;
	}
	say(r, "userfaultfd", OK, NULL, "allowed, by %s (vm.unprivileged_userfaultfd=%lld)", way,
	    read_number("/proc/sys/vm/unprivileged_userfaultfd"));

	for (i = 0; i < sizeof(features) / sizeof(features[0]); i++) {
		const struct feature *f = &features[i];

		if (has & f->bit)
			say(r, f->name, OK, NULL, "available");
		else
			say(r, f->name, f->without, "boot Linux 6.8 or newer", "missing: %s", f->need);
	}

	if (has & UFFD_FEATURE_MOVE) {
		fd = uffd_new(&way);
		rc = fd < 0 ? fd : uffd_api(fd, UFFD_FEATURE_MOVE, NULL);
		if (rc == 0)
			rc = try_move(fd);
		if (fd >= 0)
			close(fd);
		if (rc)
			say(r, "move", PROBLEM, "boot Linux 6.8 or newer, without a filter on ioctl",
			    "moving a page failed: %s", strerror(-rc));
		else
			say(r, "move", OK, NULL, "a page was moved");
	}

	fd = uffd_new(&way);
	rc = fd < 0 ? fd : uffd_api(fd, UFFD_FEATURE_EVENT_FORK, NULL);
	if (fd >= 0)
		close(fd);
	if (rc == 0)
		say(r, "fork", OK, NULL, "children are followed");
	else
		say(r, "fork", WARNING, "sudo hmm run ... (or give the user CAP_SYS_PTRACE)",
		    "fork is not reported to this user (%s): everything comes back before a fork", strerror(-rc));
}

/* Who lives in which address space is asked of it. */
static void check_kcmp(struct report *r)
{
	const char *mend =
		"docker run --cap-add SYS_PTRACE ... (or --security-opt seccomp=PROFILE, one that allows kcmp; "
		"podman: the same)";

	if (!syscall(SYS_kcmp, getpid(), getpid(), KCMP_VM, 0, 0)) {
		say(r, "kcmp", OK, NULL, "allowed");
		return;
	}
	if (errno == ENOSYS && !r->filtered)
		mend = "boot a kernel built with CONFIG_KCMP=y";
	say(r, "kcmp", PROBLEM, mend, "not allowed: %s", strerror(errno));
}

static void check_pagemap(struct report *r)
{
	struct page_region region[4];
	struct pm_scan_arg arg = {.size = sizeof(arg)};
	uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
	int fd, n;

	fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	if (fd < 0) {
		int err = errno;

		say(r, "pagemap-scan", PROBLEM,
		    err == ENOENT ? "sudo mount -t proc proc /proc" : "run as the user who started the session",
		    "/proc/self/pagemap: %s", strerror(err));
		return;
	}
	arg.start = (uintptr_t)&arg & ~(page - 1);
	arg.end = arg.start + page;
	arg.vec = (uintptr_t)region;
	arg.vec_len = 4;
	arg.category_anyof_mask = PAGE_IS_PRESENT | PAGE_IS_SWAPPED;
	arg.return_mask = PAGE_IS_PRESENT | PAGE_IS_SWAPPED;
	n = ioctl(fd, PAGEMAP_SCAN, &arg);
	if (n < 0)
		say(r, "pagemap-scan", PROBLEM, "boot Linux 6.8 or newer", "not available: %s", strerror(errno));
	else
		say(r, "pagemap-scan", OK, NULL, "available");
	close(fd);
}

static void check_procmap(struct report *r)
{
	struct procmap_query q = {.size = sizeof(q)};
	int fd;

	q.query_addr = (uintptr_t)&q;
	fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
	if (fd < 0) {
		say(r, "procmap-query", PROBLEM, "sudo mount -t proc proc /proc", "/proc/self/maps: %s",
		    strerror(errno));
		return;
	}
	if (ioctl(fd, PROCMAP_QUERY, &q) == 0)
		say(r, "procmap-query", OK, NULL, "available");
	else
		say(r, "procmap-query", OK, NULL, "not available (Linux 6.11): /proc/PID/maps is read instead");
	close(fd);
}

static void check_limits(struct report *r)
{
	static const long long want_maps = 65530;
	static const rlim_t want_lock = 8 << 20;
	struct rlimit rl;
	long long maps = read_number("/proc/sys/vm/max_map_count");

	if (maps < 0)
		say(r, "max-map-count", WARNING, "sudo mount -t proc proc /proc", "vm.max_map_count cannot be read");
	else if (maps < want_maps)
		say(r, "max-map-count", WARNING, "sudo sysctl -w vm.max_map_count=262144",
		    "%lld mappings a process: one with many runs out when pages leave", maps);
	else
		say(r, "max-map-count", OK, NULL, "%lld mappings a process", maps);

	if (getrlimit(RLIMIT_MEMLOCK, &rl) == 0) {
		if (rl.rlim_cur == RLIM_INFINITY)
			say(r, "memlock", OK, NULL, "unlimited");
		else if (rl.rlim_cur < want_lock)
			say(r, "memlock", WARNING, "sudo prlimit --pid $$ --memlock=67108864",
			    "%llu KiB may be locked: devices that pin memory may fail",
			    (unsigned long long)rl.rlim_cur >> 10);
		else
			say(r, "memlock", OK, NULL, "%llu KiB", (unsigned long long)rl.rlim_cur >> 10);
	}
	if (getrlimit(RLIMIT_AS, &rl) == 0) {
		if (rl.rlim_cur == RLIM_INFINITY)
			say(r, "address-space", OK, NULL, "unlimited");
		else
			say(r, "address-space", WARNING, "ulimit -S -v unlimited",
			    "limited to %llu MiB, and what hmm reserves in a program counts",
			    (unsigned long long)rl.rlim_cur >> 20);
	}
}

static void check_io_uring(struct report *r)
{
	struct io_uring_params p = {0};
	const char *mend = "sudo sysctl -w kernel.io_uring_disabled=0";
	int fd = (int)syscall(SYS_io_uring_setup, 1, &p), err = errno;

	if (fd >= 0) {
		close(fd);
		say(r, "io_uring", OK, NULL, "allowed");
		return;
	}
	if (err == ENOSYS && !r->filtered)
		mend = "boot a kernel built with CONFIG_IO_URING=y";
	else if (read_number("/proc/sys/kernel/io_uring_disabled") <= 0)
		mend = "docker run --security-opt seccomp=unconfined ...";
	say(r, "io_uring", WARNING, mend, "not allowed (%s): file devices do not work, --to lz4 does", strerror(err));
}

static void check_store(struct report *r)
{
	struct statfs st;

	if (access("/var/tmp", W_OK) || statfs("/var/tmp", &st)) {
		say(r, "store", WARNING, "sudo chmod 1777 /var/tmp (or: hmm run --to lz4,file:DIRECTORY)",
		    "/var/tmp, where the default chain spills to: %s", strerror(errno));
		return;
	}
	if (st.f_type == TMPFS_MAGIC || st.f_type == RAMFS_MAGIC)
		say(r, "store", WARNING, "hmm run --to lz4,file:DIRECTORY (one that is on a disk)",
		    "/var/tmp is RAM: what spills to it saves none");
	else
		say(r, "store", OK, NULL, "/var/tmp has %llu MiB free",
		    (unsigned long long)st.f_bavail * (unsigned long long)st.f_bsize >> 20);
}

static void check_thp(struct report *r)
{
	char buf[64];

	if (read_line("/sys/kernel/mm/transparent_hugepage/enabled", buf, sizeof(buf)))
		snprintf(buf, sizeof(buf), "not built in");
	say(r, "huge-pages", OK, NULL, "transparent huge pages: %s", buf);
}

static bool can_run(const struct report *r)
{
	unsigned i;

	for (i = 0; i < r->nr; i++)
		if (r->check[i].status == PROBLEM)
			return false;
	return true;
}

static void print_text(const struct report *r, FILE *out)
{
	static const char *const word[] = {"OK", "WARNING", "PROBLEM"};
	unsigned i;

	for (i = 0; i < r->nr; i++) {
		const struct check *c = &r->check[i];

		fprintf(out, "%-8s %s: %s", word[c->status], c->name, c->detail);
		if (c->mend[0])
			fprintf(out, "; mend: %s", c->mend);
		fputc('\n', out);
	}
	fputs(can_run(r) ? "hmm run can work here.\n" : "hmm run cannot work here.\n", out);
}

static void print_json(const struct report *r, FILE *out)
{
	static const char *const word[] = {"ok", "warning", "problem"};
	unsigned i;

	fprintf(out, "{\"can_run\":%s,\"checks\":[", can_run(r) ? "true" : "false");
	for (i = 0; i < r->nr; i++) {
		const struct check *c = &r->check[i];

		fprintf(out, "%s\n{\"name\":\"%s\",\"status\":\"%s\",\"detail\":", i ? "," : "", c->name,
			word[c->status]);
		cli_json_string(out, c->detail);
		fputs(",\"mend\":", out);
		cli_json_string(out, c->mend);
		fputc('}', out);
	}
	fputs("\n]}\n", out);
}

int hmm_doctor_main(int argc, char **argv)
{
	struct report *r;
	bool json = false;
	int i, rc;

	for (i = 1; i < argc; i++) {
		if (strcmp(argv[i], "--json") == 0) {
			json = true;
		} else if (strcmp(argv[i], "--help") == 0) {
			puts("usage: hmm doctor [--json]");
			return 0;
		} else {
			fprintf(stderr, "hmm doctor: unknown argument '%s'; usage: hmm doctor [--json]\n", argv[i]);
			return 125;
		}
	}
	r = calloc(1, sizeof(*r));
	if (!r) {
		fprintf(stderr, "hmm doctor: out of memory\n");
		return 125;
	}
	check_kernel(r);
	check_page_size(r);
	check_container(r);
	check_userfaultfd(r);
	check_kcmp(r);
	check_pagemap(r);
	check_procmap(r);
	check_limits(r);
	check_io_uring(r);
	check_store(r);
	check_thp(r);

	if (json)
		print_json(r, stdout);
	else
		print_text(r, stdout);
	rc = can_run(r) ? 0 : 1;
	free(r);
	if (fflush(stdout) || ferror(stdout)) {
		fprintf(stderr, "hmm doctor: writing: %s\n", strerror(errno));
		return 125;
	}
	return rc;
}
