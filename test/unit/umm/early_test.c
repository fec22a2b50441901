/* SPDX-License-Identifier: MIT */
/*
 * Changes of mappings that are told of in another order than they were made.
 *
 * A pipe stands for the userfaultfd.  Places hold a letter, the contents of a
 * mapping; what is told moves and drops letters as the engine's records follow.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "umm/internal.h"

#define PLACES 40u
#define LEN (4 * UMM_PAGE)
#define READ_MAX 32u  /* as monitor.c reads at a time */
#define READ_ROOM 96u /* and keeps */

static struct {
	struct umm_space *space;
	struct umm_ctl *ctl;
	int tell;
	char at[PLACES + 1]; /* ' ': nothing is mapped there */
	struct uffd_msg late;
	bool looks_behind;
	unsigned behind;  /* how many it found there */
	int asked, after; /* the kernel is asked whether a change is under way: @late comes after so many times; 0:
			     never */
} W;

static uint64_t addr_of(unsigned place)
{
	return (place + 1) * 16 * LEN;
}

static unsigned place_of(uint64_t addr)
{
	return (unsigned)(addr / LEN / 16) - 1;
}

static struct uffd_msg unmap(unsigned place)
{
	return (struct uffd_msg){.event = UFFD_EVENT_UNMAP,
				 .arg.remove = {.start = addr_of(place), .end = addr_of(place) + LEN}};
}

static struct uffd_msg remap(unsigned from, unsigned to)
{
	return (struct uffd_msg){.event = UFFD_EVENT_REMAP,
				 .arg.remap = {.from = addr_of(from), .to = addr_of(to), .len = LEN}};
}

static void send(const struct uffd_msg *m, unsigned n)
{
	assert_int_equal(write(W.tell, m, n * sizeof(*m)), n * sizeof(*m));
}

bool __wrap_umm_uffd_is_changing(int uffd);
bool __wrap_umm_uffd_is_changing(int uffd)
{
	if (!W.after)
		return false;
	if (++W.asked == W.after)
		send(&W.late, 1);
	return W.asked <= W.after;
}

static bool mapped(void *priv, uint64_t start, uint64_t end)
{
	return W.at[place_of(start)] != ' ';
}

static void change(void *priv, const struct umm_change *c)
{
	if (W.looks_behind) { /* as who applies a fork does, to the end */
		W.looks_behind = false;
		while (umm_space_event_behind(W.space, &W.behind))
			;
	}
	if (c->event == UMM_EVENT_REMAP)
		W.at[place_of(c->new_start)] = W.at[place_of(c->start)];
	W.at[place_of(c->start)] = ' ';
}

static const struct umm_space_ops ops = {.change = change, .mapped = mapped};

static int setup(void **state)
{
	int fd[2];

	memset(&W, 0, sizeof(W));
	memset(W.at, ' ', PLACES);
	W.ctl = calloc(1, sizeof(*W.ctl));
	if (!W.ctl || pipe2(fd, O_CLOEXEC | O_NONBLOCK) || umm_space_adopt(getpid(), fd[0], -1, -1, W.ctl, &W.space))
		return -1;
	W.tell = fd[1];
	W.space->ops = &ops;
	memcpy(W.at, "abc", 3);
	return 0;
}

static int teardown(void **state)
{
	umm_space_close(W.space);
	close(W.tell);
	free(W.ctl);
	return 0;
}

static void told(const struct uffd_msg *m, unsigned n, const char *want)
{
	send(m, n);
	umm_space_drain(W.space);
	assert_memory_equal(W.at, want, strlen(want));
}

/* a is unmapped, then b moves there. */
static void an_unmapping_told_of_late(void **state)
{
	told((struct uffd_msg[]){remap(1, 0), unmap(0)}, 2, "b c");
}

/* a moves away, then b moves there. */
static void a_move_told_of_late(void **state)
{
	told((struct uffd_msg[]){remap(1, 0), remap(0, 4)}, 2, "b c a");
}

/* a is unmapped, b moves there, c moves to where b was. */
static void a_chain_told_of_backwards(void **state)
{
	told((struct uffd_msg[]){remap(2, 1), remap(1, 0), unmap(0)}, 3, "bc ");
}

static void one_that_has_not_been_told_of_yet(void **state)
{
	W.late = unmap(0);
	W.after = 5;
	told((struct uffd_msg[]){remap(1, 0)}, 1, "b c");
	assert_int_equal(W.asked, 5);
}

/* In their order: the second one ends what the first has moved there. */
static void in_their_order(void **state)
{
	told((struct uffd_msg[]){remap(1, 3), unmap(3)}, 2, "a c ");
	told((struct uffd_msg[]){unmap(0), remap(2, 0), unmap(0)}, 3, "    ");
	assert_int_equal(W.asked, 0);
}

/* Nothing is under way that could end it: as it is told, and for ever nobody waits. */
static void nothing_on_its_way(void **state)
{
	told((struct uffd_msg[]){remap(1, 0)}, 1, "b c");
}

/* No order is right: some order, and an end. */
static void a_circle(void **state)
{
	send((struct uffd_msg[]){remap(0, 1), remap(1, 0)}, 2);
	umm_space_drain(W.space);
}

/* More than can be held back. */
static void far_too_many(void **state)
{
	struct uffd_msg m[100];

	m[0] = remap(1, 0);
	for (unsigned i = 1; i < 100; i++)
		m[i] = unmap(5 + i % 30);
	W.at[5] = 'x';
	send(m, 100);
	umm_space_drain(W.space);
	assert_memory_equal(W.at, "b c   ", 6);
}

/*
 * Who looks at what comes behind reads it, but not until there is no room left for what was made before: else the last
 * one that it has read would be applied too early.
 */
static void room_is_left_for_what_is_read_behind(void **state)
{
	struct uffd_msg m[READ_ROOM + 1];

	for (unsigned i = 0; i < READ_ROOM - 1; i++)
		m[i] = unmap(5 + i % 30);
	m[READ_ROOM - 1] = remap(1, 0);
	m[READ_ROOM] = unmap(0);
	W.looks_behind = true;
	told(m, READ_ROOM + 1, "b c   ");
	assert_true(W.behind >= READ_MAX); /* more than what had been read */
}

static void *cancelled(void *back)
{
	pthread_cancel(pthread_self());
	umm_space_drain(W.space);
	*(bool *)back = true;
	pthread_testcancel();
	return NULL;
}

/* read(2) is where a thread can be cancelled, and events are read with a lock that everybody needs. */
static void who_is_cancelled_has_applied_what_it_read(void **state)
{
	struct uffd_msg m = unmap(1);
	bool back = false;
	pthread_t t;
	void *ended;

	send(&m, 1);
	assert_int_equal(pthread_create(&t, NULL, cancelled, &back), 0);
	assert_int_equal(pthread_join(t, &ended), 0);
	assert_true(back);
	assert_ptr_equal(ended, PTHREAD_CANCELED); /* right after */
	assert_int_equal(atomic_load(&W.ctl->evlock.word), 0);
	assert_int_equal(W.at[1], ' ');
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		TEST(an_unmapping_told_of_late),
		TEST(a_move_told_of_late),
		TEST(a_chain_told_of_backwards),
		TEST(one_that_has_not_been_told_of_yet),
		TEST(in_their_order),
		TEST(nothing_on_its_way),
		TEST(a_circle),
		TEST(far_too_many),
		TEST(room_is_left_for_what_is_read_behind),
		TEST(who_is_cancelled_has_applied_what_it_read),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
