/* SPDX-License-Identifier: MIT */
/* Memory that a device has for itself, for its atomic operations, until the CPU touches it. */
#include "conform.h"

static void take(int fd, char *p, char *buf, size_t npages)
{
	struct command c;

	CHECK_EQ(dev_cmd(fd, EXCLUSIVE, p, buf, npages, &c), 0);
	CHECK_EQ(c.cpages, npages);
	CHECK_EQ(dev_cmd(fd, CHECK_EXCLUSIVE, p, buf, npages, &c), -EPERM);
}

static void the_cpu_ends_it(const struct variant *v)
{
	int fd = dev_open(v->dev);
	char *p = anon(), *buf = anon();
	unsigned char snap[NPAGES];
	unsigned *word = (unsigned *)p;
	struct command c;

	CHECK_EQ(dev_cmd(fd, CHECK_EXCLUSIVE, p, buf, NPAGES, &c), 0);
	number(p, SIZE, 0);
	take(fd, p, buf, NPAGES);
	CHECK_NUMBERED(buf, SIZE, 0);
	CHECK_EQ(dev_cmd(fd, SNAPSHOT, p, snap, NPAGES, &c), 0);
	for (size_t i = 0; i < NPAGES; i++)
		CHECK_EQ(snap[i], P_NONE);
	for (size_t i = 0; i < SIZE / 4; i++)
		CHECK_EQ(word[i]++, i);
	CHECK_NUMBERED(p, SIZE, 1);
	CHECK_EQ(dev_cmd(fd, CHECK_EXCLUSIVE, p, buf, NPAGES, &c), 0);
	/* One page of many is enough to say that it goes on. */
	take(fd, p, buf, NPAGES);
	for (size_t i = 0; i < NPAGES - 1; i++)
		p[i * PAGE]++;
	CHECK_EQ(dev_cmd(fd, CHECK_EXCLUSIVE, p, buf, NPAGES - 1, &c), 0);
	CHECK_EQ(dev_cmd(fd, CHECK_EXCLUSIVE, p, buf, NPAGES, &c), -EPERM);
}

static void a_device_write_ends_it_and_a_read_does_not(const struct variant *v)
{
	int fd = dev_open(v->dev);
	char *p = anon(), *buf = anon();
	struct command c;

	number(p, SIZE, 0);
	take(fd, p, buf, NPAGES);
	memset(buf, 0, SIZE);
	CHECK_EQ(dev_cmd(fd, READ, p, buf, NPAGES, &c), 0);
	CHECK_NUMBERED(buf, SIZE, 0);
	CHECK_EQ(dev_cmd(fd, CHECK_EXCLUSIVE, p, buf, NPAGES, &c), -EPERM);
	number(buf, SIZE, 5);
	CHECK_EQ(dev_cmd(fd, WRITE, p, buf, NPAGES, &c), 0);
	CHECK_EQ(dev_cmd(fd, CHECK_EXCLUSIVE, p, buf, NPAGES, &c), 0);
	CHECK_NUMBERED(p, SIZE, 5);
}

static void after_mprotect(const struct variant *v)
{
	int fd = dev_open(v->dev);
	char *p = anon(), *buf = anon();
	struct command c;

	number(p, SIZE, 0);
	take(fd, p, buf, NPAGES);
	CHECK_EQ(mprotect(p, SIZE, PROT_READ), 0);
	number(buf, SIZE, 5);
	CHECK_EQ(dev_cmd(fd, WRITE, p, buf, NPAGES, &c), -EPERM);
	CHECK_NUMBERED(p, SIZE, 0);
}

static void after_fork(const struct variant *v)
{
	int fd = dev_open(v->dev), status;
	char *p = anon(), *buf = anon();
	unsigned *word = (unsigned *)p;
	pid_t pid;

	number(p, SIZE, 0);
	take(fd, p, buf, NPAGES);
	pid = fork();
	for (unsigned round = 0; round < (pid ? 2 : 3); round++)
		for (size_t i = 0; i < SIZE / 4; i++)
			CHECK_EQ(word[i]++, i + round);
	CHECK_NUMBERED(p, SIZE, pid ? 2 : 3);
	if (!pid)
		_exit(0);
	CHECK_EQ(waitpid(pid, &status, 0), pid);
	CHECK_EQ(status, 0);
	CHECK_NUMBERED(p, SIZE, 2);
}

static void what_is_refused(const struct variant *v)
{
	int fd = dev_open(v->dev);
	char *p = anon(), *buf = anon(), *shared = map(PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS);
	struct command c;

	number(p, SIZE, 0);
	shared[0] = 1;
	CHECK_EQ(dev_cmd(fd, EXCLUSIVE, shared, buf, 1, &c), -EOPNOTSUPP);
	CHECK_EQ(munmap(p + PAGE, PAGE), 0);
	CHECK_EQ(dev_cmd(fd, EXCLUSIVE, p, buf, 2, &c), -EFAULT);
	CHECK_EQ(mprotect(p + 2 * PAGE, PAGE, PROT_READ), 0);
	CHECK_EQ(dev_cmd(fd, EXCLUSIVE, p + 2 * PAGE, buf, 2, &c), -EFAULT);
	CHECK_EQ(dev_cmd(fd, EXCLUSIVE, p, NULL, 1, &c), -EFAULT);
	CHECK_NUMBERED(p, PAGE, 0);
}

/* From the memory of a device, and there again. */
static void with_migration(const struct variant *v)
{
	int fd = dev_open(v->dev);
	char *p = anon(), *buf = anon();
	struct command c;

	number(p, SIZE, 0);
	CHECK_EQ(dev_cmd(fd, MIGRATE_TO_DEV, p, buf, NPAGES, &c), 0);
	take(fd, p, buf, NPAGES);
	CHECK_NUMBERED(buf, SIZE, 0);
	CHECK_EQ(dev_cmd(fd, MIGRATE_TO_DEV, p, buf, NPAGES, &c), 0);
	CHECK_EQ(dev_cmd(fd, CHECK_EXCLUSIVE, p, buf, NPAGES, &c), 0);
	CHECK_NUMBERED(p, SIZE, 0);
}

/* It is exclusive towards the CPU: of two devices either may read it, have it, and end it by a write. */
static void two_devices(const struct variant *v)
{
	int one = dev_open(v->dev), two = dev_open(v->other);
	char *p = anon(), *buf = anon();
	unsigned *word = (unsigned *)p;
	struct command c;

	number(p, SIZE, 0);
	take(one, p, buf, NPAGES);
	memset(buf, 0, SIZE);
	CHECK_EQ(dev_cmd(two, READ, p, buf, NPAGES, &c), 0);
	CHECK_NUMBERED(buf, SIZE, 0);
	CHECK_EQ(dev_cmd(one, CHECK_EXCLUSIVE, p, buf, NPAGES, &c), -EPERM);
	memset(buf, 0, SIZE);
	take(two, p, buf, NPAGES);
	CHECK_NUMBERED(buf, SIZE, 0);
	for (size_t i = 0; i < SIZE / 4; i++)
		CHECK_EQ(word[i]++, i);
	CHECK_EQ(dev_cmd(one, CHECK_EXCLUSIVE, p, buf, NPAGES, &c), 0);
	CHECK_EQ(dev_cmd(two, CHECK_EXCLUSIVE, p, buf, NPAGES, &c), 0);
	take(one, p, buf, NPAGES);
	number(buf, SIZE, 5);
	CHECK_EQ(dev_cmd(two, WRITE, p, buf, NPAGES, &c), 0);
	CHECK_EQ(dev_cmd(one, CHECK_EXCLUSIVE, p, buf, NPAGES, &c), 0);
	memset(buf, 0, SIZE);
	CHECK_EQ(dev_cmd(one, READ, p, buf, NPAGES, &c), 0);
	CHECK_NUMBERED(buf, SIZE, 5);
	CHECK_NUMBERED(p, SIZE, 5);
}

static const struct test tests[] = {
#define T(name)             \
	{                   \
#name, name \
	}
	T(the_cpu_ends_it), T(a_device_write_ends_it_and_a_read_does_not),
	T(after_mprotect),  T(after_fork),
	T(what_is_refused), T(with_migration),
	T(two_devices),     {0},
};

int main(int argc, char **argv)
{
	return run_all(tests, variants, argc, argv);
}
