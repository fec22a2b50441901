/* SPDX-License-Identifier: MIT */
/*
 * Threads that change mappings in every way, under threads in which devices
 * read, write, migrate and take pages for themselves.
 *
 * A word of page i is 0 or i + 1, whatever happens: pages are mapped fresh, are
 * written with that value by the CPU and by devices, and are moved away and
 * back.  Whoever finds another value has seen what was never there.  Each of the
 * changing threads has its own chunks; devices go everywhere.  Every fourth chunk
 * is a private mapping of a file that has the same in it.
 *
 * Short by default; with HMM_TEST_LONG each goes on for a minute.
 */
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/syscall.h>

#include "conform.h"

/* Far below what the kernel gives to others: in a hole nobody else may come to lie. */
#define AREA ((char *)0x40000000ul)
#define AWAY ((char *)0x50000000ul)
#define CHUNK 8u
#define CHUNKS 48u
#define CHANGERS 4u
#define DEVICES 4u
#define LONG_SECONDS 60

struct world {
	const struct variant *v;
	bool raw; /* calls that no hook sees */
	int fd[2];
	int file;
	unsigned ops; /* 0: until it is over */
	atomic_bool stop;
	atomic_ulong succeeded, refused;
};

struct who {
	struct world *w;
	unsigned nr;
	uint64_t seed;
};

static unsigned dice(struct who *me, unsigned n)
{
	me->seed = me->seed * 6364136223846793005ull + 1442695040888963407ull;
	return (unsigned)(me->seed >> 33) % n;
}

static void stamp(volatile unsigned *word, unsigned page)
{
	for (unsigned i = 0; i < PAGE / sizeof(*word); i += 16)
		word[i] = page + 1;
}

static void verify(const volatile unsigned *word, unsigned page, const char *who)
{
	for (unsigned i = 0; i < PAGE / sizeof(*word); i++) {
		unsigned got = word[i];

		if (got && got != page + 1) {
			printf("    %s finds %u in word %u of page %u\n", who, got, i, page);
			fflush(stdout);
			_exit(1);
		}
	}
}

static bool of_file(unsigned chunk)
{
	return chunk % (CHANGERS * 4) >= CHANGERS * 3;
}

static void map_chunk(struct world *w, unsigned chunk)
{
	char *at = AREA + chunk * CHUNK * PAGE;
	bool file = of_file(chunk);

	CHECK(mmap(at, CHUNK * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED | (file ? 0 : MAP_ANONYMOUS),
		   file ? w->file : -1, file ? chunk * CHUNK * PAGE : 0) == at);
}

/* As large as the area, and stamped all over. */
static int stamped_file(void)
{
	int file = memfd_create("torture", MFD_CLOEXEC);
	unsigned page[PAGE / sizeof(unsigned)] = {0};

	for (unsigned i = 0; i < CHUNKS * CHUNK; i++) {
		stamp(page, i);
		CHECK_EQ(pwrite(file, page, PAGE, (off_t)(i * PAGE)), (long)PAGE);
	}
	return file;
}

static void change(struct who *me, unsigned chunk)
{
	bool raw = me->w->raw;
	char *at = AREA + chunk * CHUNK * PAGE, *away = AWAY + chunk * CHUNK * PAGE;
	size_t len = CHUNK * PAGE;
	unsigned what = dice(me, 40);
	int status;
	pid_t pid;

	if (what < 5) {
		CHECK_EQ(raw ? (int)syscall(SYS_munmap, at, len) : munmap(at, len), 0);
		if (dice(me, 2))
			sched_yield();
		map_chunk(me->w, chunk);
	} else if (what < 9) {
		map_chunk(me->w, chunk);        /* over what is there */
	} else if (what == 9 && !dice(me, 8)) { /* seldom: devices wait a while afterwards */
		int advice = dice(me, 2) || of_file(chunk) ? MADV_DONTNEED : MADV_FREE;

		CHECK_EQ(raw ? (int)syscall(SYS_madvise, at, len, advice) : madvise(at, len, advice), 0);
	} else if (what == 10) {
		CHECK_EQ(raw ? (int)syscall(SYS_madvise, at, len, MADV_PAGEOUT) : madvise(at, len, MADV_PAGEOUT), 0);
	} else if (what < 18) {
		int prot = dice(me, 2) ? PROT_READ : PROT_NONE;

		CHECK_EQ(raw ? (int)syscall(SYS_mprotect, at, len, prot) : mprotect(at, len, prot), 0);
		sched_yield();
		CHECK_EQ(mprotect(at, len, PROT_READ | PROT_WRITE), 0);
	} else if (what < 22 && !of_file(chunk)) {
		/* Not raw: of a mapping that is managed in part the kernel moves nothing, and only a hook makes it
		 * whole. */
		void *to = mremap(at, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, away);

		CHECK(to == away);
		for (unsigned i = 0; i < CHUNK; i++)
			verify((unsigned *)(away + i * PAGE), chunk * CHUNK + i, "who moved it");
		CHECK(mremap(away, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, at) == at);
	} else if (what < 23) {
		fflush(stdout);
		pid = fork();
		if (!pid) {
			for (unsigned i = 0; i < CHUNK; i++)
				verify((unsigned *)(at + i * PAGE), chunk * CHUNK + i, "a child");
			_exit(0);
		}
		CHECK_EQ(waitpid(pid, &status, 0), pid);
		CHECK_EQ(status, 0);
	} else {
		for (unsigned i = 0; i < CHUNK; i++) {
			verify((unsigned *)(at + i * PAGE), chunk * CHUNK + i, "the CPU");
			stamp((unsigned *)(at + i * PAGE), chunk * CHUNK + i);
		}
	}
}

static void *changer(void *arg)
{
	struct who *me = arg;

	for (unsigned i = 0; me->w->ops ? i < me->w->ops : !atomic_load(&me->w->stop); i++)
		change(me, dice(me, CHUNKS / CHANGERS) * CHANGERS + me->nr);
	return NULL;
}

static void *device(void *arg)
{
	struct who *me = arg;
	struct world *w = me->w;
	unsigned *buf = (unsigned *)anon();

	while (!atomic_load(&w->stop)) {
		static const unsigned command[] = {READ,           READ,     WRITE,    MIGRATE_TO_DEV,
						   MIGRATE_TO_SYS, SNAPSHOT, EXCLUSIVE};
		unsigned page = dice(me, CHUNKS * CHUNK), n = 1 + dice(me, 3 * CHUNK), cmd = command[dice(me, 7)];
		int fd = w->fd[dice(me, 2)], rc;
		struct command c;

		if (n > CHUNKS * CHUNK - page)
			n = CHUNKS * CHUNK - page;
		for (unsigned i = 0; cmd == WRITE && i < n; i++) {
			memset(buf + i * PAGE / sizeof(*buf), 0, PAGE);
			stamp(buf + i * PAGE / sizeof(*buf), page + i);
		}
		rc = dev_cmd(fd, cmd, AREA + page * PAGE, buf, n, &c);
		/* What the table of commands has, and nothing else. */
		if (rc && rc != -EFAULT && rc != -EPERM && rc != -EINVAL && rc != -EBUSY && rc != -ENOENT &&
		    !(cmd == EXCLUSIVE && rc == -EOPNOTSUPP)) {
			printf("    command %u: error %d\n", cmd, -rc);
			fflush(stdout);
			_exit(1);
		}
		atomic_fetch_add(rc ? &w->refused : &w->succeeded, 1);
		if (rc || (cmd != READ && cmd != MIGRATE_TO_DEV && cmd != EXCLUSIVE))
			continue;
		for (unsigned i = 0; i < n; i++)
			verify(buf + i * PAGE / sizeof(*buf), page + i, "the device");
	}
	return NULL;
}

static void torture(const struct variant *v, bool raw)
{
	struct world w = {.v = v, .raw = raw, .ops = getenv("HMM_TEST_LONG") ? 0 : 400, .file = stamped_file()};
	struct who who[CHANGERS + DEVICES];
	pthread_t t[CHANGERS + DEVICES];

	w.fd[0] = dev_open(v->dev);
	w.fd[1] = dev_open(v->other);
	for (unsigned i = 0; i < CHUNKS; i++)
		map_chunk(&w, i);
	for (unsigned i = 0; i < CHANGERS + DEVICES; i++) {
		who[i] = (struct who){.w = &w, .nr = i, .seed = 88172645463325252ull * (i + 1)};
		CHECK_EQ(pthread_create(&t[i], NULL, i < CHANGERS ? changer : device, &who[i]), 0);
	}
	if (!w.ops)
		sleep(LONG_SECONDS);
	for (unsigned i = 0; i < CHANGERS && w.ops; i++)
		pthread_join(t[i], NULL);
	atomic_store(&w.stop, true);
	for (unsigned i = 0; i < CHANGERS && !w.ops; i++)
		pthread_join(t[i], NULL);
	for (unsigned i = CHANGERS; i < CHANGERS + DEVICES; i++)
		pthread_join(t[i], NULL);
	for (unsigned i = 0; i < CHUNKS * CHUNK; i++)
		verify((unsigned *)(AREA + i * PAGE), i, "who comes last");
	CHECK(atomic_load(&w.succeeded) > 0);
	printf("    %lu commands done, %lu refused\n", atomic_load(&w.succeeded), atomic_load(&w.refused));
}

static void by_libc(const struct variant *v)
{
	torture(v, false);
}

static void raw(const struct variant *v)
{
	torture(v, true);
}

static const struct test tests[] = {
	{"by_libc", by_libc},
	{"raw", raw},
	{0},
};

int main(int argc, char **argv)
{
	return run_all(tests, variants, argc, argv);
}
