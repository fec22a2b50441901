/* SPDX-License-Identifier: MIT */
/* Who serves faults runs where they happen, humbly, and is raised where it would not run. */
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <unistd.h>

#include <cmocka.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>

#include "umm/follow.h"

#define FAULTS 64u /* in a row, and it is followed */
#define LOOKS 2000
#define TRIES 200

/* Stands for a thread that faults: on one CPU, and there all the time while it spins. */
struct program {
	pthread_t thread;
	_Atomic uint32_t tid;
	_Atomic bool spins, ends;
	_Atomic int on; /* the CPU that it ran on last */
	int cpu;
};

static cpu_set_t all;

static void *program_main(void *arg)
{
	struct program *p = arg;
	cpu_set_t one;

	CPU_ZERO(&one);
	CPU_SET((unsigned)p->cpu, &one);
	sched_setaffinity(0, sizeof(one), &one);
	atomic_store(&p->tid, (uint32_t)syscall(SYS_gettid));
	while (!atomic_load(&p->ends)) {
		atomic_store(&p->on, sched_getcpu());
		if (!atomic_load(&p->spins))
			usleep(500);
	}
	return NULL;
}

/* The last of the CPUs that we have. */
static int last_cpu(void)
{
	int cpu = CPU_SETSIZE - 1;

	while (!CPU_ISSET((unsigned)cpu, &all))
		cpu--;
	return cpu;
}

static void program_start(struct program *p, bool spins)
{
	*p = (struct program){.cpu = last_cpu(), .spins = spins};
	assert_int_equal(pthread_create(&p->thread, NULL, program_main, p), 0);
	while (!atomic_load(&p->tid))
		usleep(100);
}

static void program_goes_to(struct program *p, int cpu)
{
	cpu_set_t one;

	CPU_ZERO(&one);
	CPU_SET((unsigned)cpu, &one);
	sched_setaffinity((pid_t)atomic_load(&p->tid), sizeof(one), &one);
}

static void program_end(struct program *p)
{
	atomic_store(&p->ends, true);
	pthread_join(p->thread, NULL);
}

static void serve(struct umm_follow *f, const struct program *p, unsigned faults)
{
	for (unsigned i = 0; i < faults; i++) {
		umm_follow_woken(f);
		umm_follow(f, p->tid);
		umm_follow_sleeps(f);
	}
}

static bool bound_to(int cpu)
{
	cpu_set_t now;

	sched_getaffinity(0, sizeof(now), &now);
	return CPU_ISSET((unsigned)cpu, &now) && CPU_COUNT(&now) == 1;
}

static bool is_free(void)
{
	cpu_set_t now;

	sched_getaffinity(0, sizeof(now), &now);
	return CPU_EQUAL(&now, &all) && sched_getscheduler(0) == SCHED_OTHER;
}

/* Until it is not humble any more. */
static void await_raised(void)
{
	for (unsigned i = 0; i < LOOKS && sched_getscheduler(0) != SCHED_OTHER; i++)
		usleep(1000);
	assert_int_equal(sched_getscheduler(0), SCHED_OTHER);
}

struct scene {
	int fd;
	struct umm_guard *g;
	struct umm_follow f;
	struct program p;
};

static void scene_begin(struct scene *s, bool spins)
{
	s->fd = eventfd(0, EFD_CLOEXEC);
	s->g = umm_guard_start(s->fd);
	assert_non_null(s->g);
	umm_follow_init(&s->f, s->g);
	program_start(&s->p, spins);
}

static void scene_end(struct scene *s)
{
	umm_follow_leave(&s->f);
	assert_true(is_free());
	umm_follow_end(&s->f);
	umm_guard_stop(s->g);
	program_end(&s->p);
	close(s->fd);
}

/* On a busy machine who is humble may not run, and is raised, at any moment: what was to be seen is tried again then.
 */
static bool was_raised(const struct scene *s)
{
	return !s->f.humble || umm_guard_cpu(s->g) < 0 || sched_getscheduler(0) != SCHED_IDLE;
}

static void goes_where_the_program_is(void **state)
{
	struct scene s;
	bool raised = true;

	for (unsigned i = 0; raised && i < TRIES; i++) {
		scene_begin(&s, false);
		serve(&s.f, &s.p, FAULTS);
		assert_true(is_free()); /* one is not a fault in a row */
		assert_int_equal(umm_guard_cpu(s.g), -1);
		umm_follow(&s.f, s.p.tid);
		assert_true(bound_to(s.p.cpu));
		int off = umm_guard_cpu(s.g);
		raised = was_raised(&s);
		if (!raised)
			assert_int_equal(off, s.p.cpu);
		/* Faults of several: anywhere, and as good as anybody. */
		umm_follow(&s.f, 0);
		assert_true(is_free());
		assert_int_equal(umm_guard_cpu(s.g), -1);
		scene_end(&s);
	}
	assert_false(raised);
}

/* Whom it follows is elsewhere now: it looks again and finds nothing, and asks sooner than it would. */
static void asks_again_when_it_finds_nothing(void **state)
{
	bool raised = true, goes = false;
	struct scene s;
	int cpu;

	if (CPU_COUNT(&all) < 2)
		skip(); /* there is nowhere to go */
	for (unsigned i = 0; raised && i < TRIES; i++) {
		scene_begin(&s, false);
		serve(&s.f, &s.p, FAULTS + 1);
		for (cpu = 0; !CPU_ISSET((unsigned)cpu, &all) || cpu == s.p.cpu;)
			cpu++;
		program_goes_to(&s.p, cpu);
		while (atomic_load(&s.p.on) != cpu) {
			umm_follow_turn(&s.f); /* else it is raised, and asks for that */
			usleep(200);
		}
		raised = was_raised(&s);
		for (unsigned k = 0; k < FAULTS / 8; k++) {
			umm_follow_turn(&s.f);
			umm_follow_found(&s.f, 0);
			umm_follow(&s.f, s.p.tid);
		}
		goes = bound_to(cpu);
		raised |= was_raised(&s);
		scene_end(&s);
	}
	assert_false(raised);
	assert_true(goes);
}

/* Its CPU is another's: it has the lead, and maybe locks. */
static void is_raised_where_it_starves(void **state)
{
	struct scene s;

	scene_begin(&s, true);
	serve(&s.f, &s.p, FAULTS + 1);
	umm_follow_woken(&s.f); /* and now it has something to do */
	await_raised();
	umm_follow_woken(&s.f);
	assert_false(s.f.humble);
	assert_true(bound_to(s.p.cpu));
	assert_int_equal(umm_guard_cpu(s.g), -1);
	scene_end(&s);
}

/* Who sleeps is raised, too, before the CPU is another's; and is humble again soon. */
static void is_raised_while_nobody_faults(void **state)
{
	struct scene s;
	int off = -1;

	for (unsigned i = 0; off < 0 && i < TRIES; i++) {
		scene_begin(&s, false);
		serve(&s.f, &s.p, FAULTS + 1);
		await_raised();
		assert_int_equal(umm_guard_cpu(s.g), -1);
		serve(&s.f, &s.p, FAULTS / 4);
		off = umm_guard_cpu(s.g);
		scene_end(&s);
	}
	assert_int_equal(off, last_cpu());
}

/* The lead goes on to another thread: it need not learn all anew. */
static void another_goes_on(void **state)
{
	struct umm_follow other;
	struct scene s;
	bool humble = false;

	for (unsigned i = 0; !humble && i < TRIES; i++) {
		scene_begin(&s, false);
		serve(&s.f, &s.p, FAULTS + 1);
		umm_follow_leave(&s.f);
		umm_follow_init(&other, s.g);
		serve(&other, &s.p, FAULTS / 4);
		humble = other.humble;
		umm_follow_leave(&other);
		umm_follow_end(&other);
		scene_end(&s);
	}
	assert_true(humble);
}

static void nobody_is_humble_without_a_guard(void **state)
{
	struct umm_follow f;
	struct program p;

	program_start(&p, false);
	umm_follow_init(&f, NULL);
	serve(&f, &p, 4 * FAULTS);
	assert_true(bound_to(p.cpu));
	assert_int_equal(sched_getscheduler(0), SCHED_OTHER);
	umm_follow_leave(&f);
	assert_true(is_free());
	umm_follow_end(&f);
	program_end(&p);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(goes_where_the_program_is),        cmocka_unit_test(is_raised_where_it_starves),
		cmocka_unit_test(is_raised_while_nobody_faults),    cmocka_unit_test(another_goes_on),
		cmocka_unit_test(nobody_is_humble_without_a_guard), cmocka_unit_test(asks_again_when_it_finds_nothing),
	};
	struct umm_guard *g;

	sched_getaffinity(0, sizeof(all), &all);
	g = umm_guard_start(-1);
	if (!g) {
		printf("SKIP: no right to come back from SCHED_IDLE\n");
		return 77;
	}
	umm_guard_stop(g);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
