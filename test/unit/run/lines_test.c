/* SPDX-License-Identifier: MIT */
/* Who has something to say does not wait for who reads it. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "run/lines.h"

static int stderr_was, from;

static int pipe_for_stderr(void **state)
{
	int fd[2];

	stderr_was = dup(2);
	if (pipe(fd) || fcntl(fd[1], F_SETPIPE_SZ, 4096) < 0 || dup2(fd[1], 2) < 0)
		return -1;
	close(fd[1]);
	from = fd[0];
	return 0;
}

static int stderr_back(void **state)
{
	dup2(stderr_was, 2);
	close(stderr_was);
	close(from);
	return 0;
}

static void many_lines_nobody_reads(void **state)
{
	struct lines *l = calloc(1, sizeof(*l)); /* its thread's, which does not end */
	char text[64], all[65536] = "";
	size_t len = 0, at = 0;

	assert_int_equal(lines_start(l, "hmm run"), 0);
	/* More than the pipe takes. */
	for (unsigned i = 0; i < 500; i++)
		lines_say(l, "line %u of many", i);
	while (!strstr(all, "line 499 of many\n")) {
		ssize_t n = read(from, all + len, sizeof(all) - 1 - len);

		assert_true(n > 0);
		len += (size_t)n;
		all[len] = 0;
	}
	lines_flush(l);
	for (unsigned i = 0; i < 500; i++) {
		int n = snprintf(text, sizeof(text), "hmm run: line %u of many\n", i);

		assert_memory_equal(all + at, text, n);
		at += (size_t)n;
	}
	assert_int_equal(at, len);
}

/* A pipe's other end is the program's, too, and what it sets there holds for us. */
static void nothing_is_lost_where_writing_does_not_wait(void **state)
{
	assert_int_equal(fcntl(2, F_SETFL, O_NONBLOCK), 0);
	many_lines_nobody_reads(state);
}

static void a_long_line_is_cut_and_ends(void **state)
{
	struct lines *l = calloc(1, sizeof(*l)); /* its thread's, which does not end */
	char long_text[2000], got[2000] = "";

	memset(long_text, 'x', sizeof(long_text) - 1);
	long_text[sizeof(long_text) - 1] = 0;
	assert_int_equal(lines_start(l, "hmm run"), 0);
	lines_say(l, "%s", long_text);
	lines_flush(l);
	ssize_t n = read(from, got, sizeof(got) - 1);

	assert_true(n > 100 && n < 1000);
	assert_int_equal(got[n - 1], '\n');
	assert_int_equal(got[n - 2], 'x');
}

/* Of more than are kept it is said how many have gone; and who ends does not wait for a reader. */
static void what_nobody_reads_is_counted(void **state)
{
	struct lines *l = calloc(1, sizeof(*l)); /* its thread's, which does not end */
	static char all[262144];
	size_t len = 0;
	unsigned said = 0, dropped = 0;

	assert_int_equal(lines_start(l, "hmm run"), 0);
	for (unsigned i = 0; i < 3000; i++)
		lines_say(l, "line %u of many", i);
	lines_end(l);
	while (!strstr(all, "nobody read them\n")) {
		ssize_t n = read(from, all + len, sizeof(all) - 1 - len);

		assert_true(n > 0);
		len += (size_t)n;
	}
	for (char *at = all; *at; at = strchr(at, '\n') + 1)
		if (strstr(at, " of many\n") == strchr(at, '\n') - 8)
			said++;
		else
			assert_int_equal(sscanf(at, "hmm run: %u more lines were dropped", &dropped), 1);
	assert_true(dropped > 1000);
	assert_int_equal(said + dropped, 3000);
	lines_end(l);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(many_lines_nobody_reads, pipe_for_stderr, stderr_back),
		cmocka_unit_test_setup_teardown(nothing_is_lost_where_writing_does_not_wait, pipe_for_stderr,
						stderr_back),
		cmocka_unit_test_setup_teardown(a_long_line_is_cut_and_ends, pipe_for_stderr, stderr_back),
		cmocka_unit_test_setup_teardown(what_nobody_reads_is_counted, pipe_for_stderr, stderr_back),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
