/* SPDX-License-Identifier: MIT */
/*
 * The event lock, between threads and between processes.
 *
 * Its sleep has a time-out, so that a lost wake-up costs time and not a hang;
 * here that would hide what is to be seen.  So the test's own futex call waits
 * without end: whoever is not woken stays asleep and the test does not end.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define sys_futex_wait futex_wait_for_a_time
#include "umm/sys.h"
#undef sys_futex_wait

static _Atomic uint64_t sleeps, timeouts;
static _Atomic bool timeouts_wanted;

static int sys_futex_wait(_Atomic uint32_t *word, uint32_t seen, const struct timespec *timeout)
{
	int rc = futex_wait_for_a_time(word, seen, atomic_load(&timeouts_wanted) ? timeout : NULL);

	if (!rc)
		atomic_fetch_add(&sleeps, 1);
	if (rc == -ETIMEDOUT)
		atomic_fetch_add(&timeouts, 1);
	return rc;
}

#include "umm/evlock.h"

#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#define WORKERS 4u
#define WORDS 16u
#define ROUNDS 4000u

/* What the lock guards; in shared memory, so that processes can use it like threads. */
struct shared {
	struct umm_evlock lock;
	_Atomic unsigned readers, writers;
	_Atomic uint64_t wrong, slept, most_readers;
	uint64_t word[WORDS]; /* all the same, but while it is held exclusively */
};

static void read_side(struct shared *s)
{
	unsigned now = atomic_fetch_add(&s->readers, 1) + 1;

	if (atomic_load(&s->writers))
		atomic_fetch_add(&s->wrong, 1);
	if (now > atomic_load(&s->most_readers))
		atomic_store(&s->most_readers, now);
	for (unsigned i = 1; i < WORDS; i++)
		if (s->word[i] != s->word[0])
			atomic_fetch_add(&s->wrong, 1);
	atomic_fetch_sub(&s->readers, 1);
}

static void write_side(struct shared *s, bool linger)
{
	if (atomic_fetch_add(&s->writers, 1) || atomic_load(&s->readers))
		atomic_fetch_add(&s->wrong, 1);
	for (unsigned i = 0; i < WORDS; i++) {
		s->word[i]++;
		if (linger && i == WORDS / 2)
			sched_yield();
	}
	atomic_fetch_sub(&s->writers, 1);
}

/* A holder that is descheduled makes the others spin out and sleep: what is to be tested are the wake-ups. */
static void work(struct shared *s, unsigned who)
{
	for (unsigned i = 0; i < ROUNDS; i++) {
		bool linger = !((i + who) % 4);

		if ((i + who) % 5) {
			umm_evlock_shared(&s->lock);
			read_side(s);
			if (linger)
				sched_yield();
			umm_evlock_unshared(&s->lock);
		} else {
			umm_evlock_excl(&s->lock);
			write_side(s, linger);
			umm_evlock_unexcl(&s->lock);
		}
		if (!(i % 16) && umm_evlock_try_shared(&s->lock)) {
			read_side(s);
			umm_evlock_unshared(&s->lock);
		}
	}
}

static uint64_t writes_of(unsigned who)
{
	uint64_t n = 0;

	for (unsigned i = 0; i < ROUNDS; i++)
		n += !((i + who) % 5);
	return n;
}

static struct shared *shared_create(void)
{
	struct shared *s = mmap(NULL, sizeof(*s), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	assert_true(s != MAP_FAILED);
	return s;
}

static void shared_done(struct shared *s, uint64_t writes, const char *what)
{
	print_message("           %s: %lu sleeps ended by a wake-up, %lu readers at once\n", what,
		      (unsigned long)atomic_load(&s->slept), (unsigned long)atomic_load(&s->most_readers));
	assert_int_equal(atomic_load(&s->wrong), 0);
	assert_int_equal(atomic_load(&s->lock.word) & (UMM_EVLOCK_EXCL | UMM_EVLOCK_WANT | UMM_EVLOCK_COUNT), 0);
	for (unsigned i = 0; i < WORDS; i++)
		assert_int_equal(s->word[i], writes);
	munmap(s, sizeof(*s));
}

struct worker {
	struct shared *s;
	unsigned who;
};

static void *worker_main(void *arg)
{
	struct worker *w = arg;

	work(w->s, w->who);
	return NULL;
}

static void between_threads(void **state)
{
	struct shared *s = shared_create();
	struct worker w[WORKERS];
	pthread_t thread[WORKERS];
	uint64_t writes = 0, before = atomic_load(&sleeps);

	for (unsigned i = 0; i < WORKERS; i++) {
		w[i] = (struct worker){s, i};
		writes += writes_of(i);
		assert_int_equal(pthread_create(&thread[i], NULL, worker_main, &w[i]), 0);
	}
	for (unsigned i = 0; i < WORKERS; i++)
		pthread_join(thread[i], NULL);
	atomic_store(&s->slept, atomic_load(&sleeps) - before);
	shared_done(s, writes, "threads");
}

static void between_processes(void **state)
{
	struct shared *s = shared_create();
	pid_t child[WORKERS];
	uint64_t writes = 0;

	for (unsigned i = 0; i < WORKERS; i++) {
		writes += writes_of(i);
		child[i] = fork();
		assert_true(child[i] >= 0);
		if (!child[i]) {
			atomic_store(&sleeps, 0);
			work(s, i);
			atomic_fetch_add(&s->slept, atomic_load(&sleeps));
			_exit(0);
		}
	}
	for (unsigned i = 0; i < WORKERS; i++) {
		int status;

		assert_int_equal(waitpid(child[i], &status, 0), child[i]);
		assert_true(WIFEXITED(status) && !WEXITSTATUS(status));
	}
	shared_done(s, writes, "processes");
}

/* One sleeper and one waker in turn: every round needs its wake-up. */
struct pair {
	struct umm_evlock lock;
	_Atomic unsigned turn, rounds;
};

#define PAIR_ROUNDS 2000u

static void *pair_main(void *arg)
{
	struct pair *p = arg;

	for (unsigned i = 0; i < PAIR_ROUNDS; i++) {
		while (atomic_load(&p->turn) != 1)
			sched_yield();
		umm_evlock_shared(&p->lock); /* held exclusively by the other */
		umm_evlock_unshared(&p->lock);
		atomic_store(&p->turn, 0);
	}
	return NULL;
}

static bool sleeper_is_there(struct umm_evlock *l)
{
	return atomic_load(&l->word) & UMM_EVLOCK_SLEEP;
}

static void every_sleeper_is_woken(void **state)
{
	struct pair p = {0};
	pthread_t thread;
	uint64_t before = atomic_load(&sleeps);

	assert_int_equal(pthread_create(&thread, NULL, pair_main, &p), 0);
	for (unsigned i = 0; i < PAIR_ROUNDS; i++) {
		umm_evlock_excl(&p.lock);
		atomic_store(&p.turn, 1);
		while (!sleeper_is_there(&p.lock))
			sched_yield();
		/* It has said that it will sleep: in most rounds let it, in some be faster. */
		for (unsigned k = 0; k < i % 32; k++)
			sched_yield();
		umm_evlock_unexcl(&p.lock);
		while (atomic_load(&p.turn))
			sched_yield();
	}
	pthread_join(thread, NULL);
	print_message("           %u hand-overs, %lu slept through\n", PAIR_ROUNDS,
		      (unsigned long)(atomic_load(&sleeps) - before));
	assert_int_equal(atomic_load(&p.lock.word), 0);
}

struct race {
	struct umm_evlock lock;
	_Atomic unsigned order;
	unsigned writer_was, reader_was;
};

static void *race_writer(void *arg)
{
	struct race *r = arg;

	umm_evlock_excl(&r->lock);
	r->writer_was = atomic_fetch_add(&r->order, 1);
	umm_evlock_unexcl(&r->lock);
	return NULL;
}

static void *race_reader(void *arg)
{
	struct race *r = arg;

	umm_evlock_shared(&r->lock);
	r->reader_was = atomic_fetch_add(&r->order, 1);
	umm_evlock_unshared(&r->lock);
	return NULL;
}

static void who_wants_it_exclusively_goes_first(void **state)
{
	for (unsigned i = 0; i < 100; i++) {
		struct race r = {0};
		pthread_t writer, reader;

		umm_evlock_shared(&r.lock);
		assert_int_equal(pthread_create(&writer, NULL, race_writer, &r), 0);
		while (!(atomic_load(&r.lock.word) & UMM_EVLOCK_WANT))
			sched_yield();
		assert_false(umm_evlock_try_shared(&r.lock));
		assert_int_equal(pthread_create(&reader, NULL, race_reader, &r), 0);
		if (i % 2) /* both asleep */
			while (!sleeper_is_there(&r.lock))
				sched_yield();
		umm_evlock_unshared(&r.lock);
		pthread_join(writer, NULL);
		pthread_join(reader, NULL);
		assert_int_equal(r.writer_was, 0);
		assert_int_equal(r.reader_was, 1);
		assert_int_equal(atomic_load(&r.lock.word), 0);
	}
}

static bool after_three_times(void *arg)
{
	unsigned *asked = arg;

	return ++*asked == 3;
}

static void who_waits_may_give_up(void **state)
{
	struct umm_evlock lock = {0};
	unsigned asked = 0;

	atomic_store(&timeouts_wanted, true);
	umm_evlock_excl(&lock);
	assert_false(umm_evlock_shared_unless(&lock, after_three_times, &asked));
	assert_int_equal(asked, 3);
	atomic_store(&timeouts_wanted, false);
	print_message("           %lu time-outs\n", (unsigned long)atomic_load(&timeouts));
	assert_true(atomic_load(&timeouts) > 0);
	umm_evlock_unexcl(&lock);

	/* It left nothing behind: neither a holder nor a claim. */
	assert_true(umm_evlock_shared_unless(&lock, after_three_times, &asked));
	assert_int_equal(asked, 3);
	assert_true(umm_evlock_try_shared(&lock));
	assert_int_equal(atomic_load(&lock.word) & UMM_EVLOCK_COUNT, 2);
	umm_evlock_unshared(&lock);
	umm_evlock_unshared(&lock);
	umm_evlock_excl(&lock);
	assert_false(umm_evlock_try_shared(&lock));
	umm_evlock_unexcl(&lock);
	assert_int_equal(atomic_load(&lock.word), 0);
}

/* Who shared the lock died with it: who wants it alone gives up, and others that share it are not kept out. */
static void who_wants_it_exclusively_may_give_up(void **state)
{
	struct umm_evlock lock = {0};
	unsigned asked = 0;

	atomic_store(&timeouts_wanted, true);
	umm_evlock_shared(&lock);
	assert_false(umm_evlock_excl_unless(&lock, after_three_times, &asked));
	assert_int_equal(asked, 3);
	atomic_store(&timeouts_wanted, false);
	assert_int_equal(atomic_load(&lock.word), 1);
	assert_true(umm_evlock_try_shared(&lock));
	umm_evlock_unshared(&lock);
	umm_evlock_unshared(&lock);
	assert_true(umm_evlock_excl_unless(&lock, after_three_times, &asked));
	umm_evlock_unexcl(&lock);
	assert_int_equal(atomic_load(&lock.word), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(between_threads),        cmocka_unit_test(between_processes),
		cmocka_unit_test(every_sleeper_is_woken), cmocka_unit_test(who_wants_it_exclusively_goes_first),
		cmocka_unit_test(who_waits_may_give_up),  cmocka_unit_test(who_wants_it_exclusively_may_give_up),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
