/* SPDX-License-Identifier: MIT */
/* Which kernels hmm doctor warns of: version strings as distributions write them, and the edges of each series. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "cli/kernel_bugs.h"

static void parses_as_upstream(const char *release, const char *version, const char *signature, unsigned major,
			       unsigned minor, unsigned patch)
{
	struct kernel_version v, want = {major, minor, patch};

	assert_true(kernel_version_upstream(release, version, signature, &v));
	assert_int_equal(kernel_version_cmp(&v, &want), 0);
}

static void test_versions(void **state)
{
	parses_as_upstream("6.18.44", "#1 SMP PREEMPT_DYNAMIC", NULL, 6, 18, 44);
	parses_as_upstream("6.12", "#1", NULL, 6, 12, 0);
	parses_as_upstream("6.17.0-rc2", "#1", NULL, 6, 17, 0);
	/* Debian numbers its kernels by their interface; the version is in uname -v. */
	parses_as_upstream("6.1.0-18-amd64", "#1 SMP PREEMPT_DYNAMIC Debian 6.1.76-1 (2024-02-01)", NULL, 6, 1, 76);
	parses_as_upstream("6.12.38+deb13-amd64", "#1 SMP PREEMPT_DYNAMIC Debian 6.12.38-1 (2025-07-16)", NULL, 6, 12,
			   38);
	/* Ubuntu has 6.8.0 in all of its names. */
	parses_as_upstream("6.8.0-45-generic", "#45-Ubuntu SMP", "Ubuntu 6.8.0-45.45-generic 6.8.12", 6, 8, 12);
	/* A signature of another form is not believed. */
	parses_as_upstream("6.8.4", "#1", "something else", 6, 8, 4);
}

static void test_no_version(void **state)
{
	struct kernel_version v;

	assert_false(kernel_version_parse("", &v));
	assert_false(kernel_version_parse("custom", &v));
	assert_false(kernel_version_parse("build 17", &v));
	assert_true(kernel_version_parse("build 17 of 6.9.1", &v));
	assert_int_equal(v.minor, 9);
}

static bool has(const char *id, unsigned major, unsigned minor, unsigned patch)
{
	struct kernel_version v = {major, minor, patch};
	unsigned i;

	for (i = 0; i < kernel_bugs_nr; i++)
		if (strcmp(kernel_bugs[i].id, id) == 0)
			return kernel_bug_in(&kernel_bugs[i], &v);
	fail_msg("%s is not in the table", id);
	return false;
}

static void test_edges(void **state)
{
	const char *id = "CVE-2025-38686"; /* since 6.8; fixed in 6.12.43, 6.15.11, 6.16.2, 6.17 */

	assert_false(has(id, 6, 7, 12));
	assert_true(has(id, 6, 8, 0));
	assert_true(has(id, 6, 12, 42));
	assert_false(has(id, 6, 12, 43));
	assert_true(has(id, 6, 14, 11)); /* ended without the fix */
	assert_true(has(id, 6, 15, 10));
	assert_false(has(id, 6, 15, 11));
	assert_true(has(id, 6, 16, 1));
	assert_false(has(id, 6, 16, 2));
	assert_false(has(id, 6, 17, 0));
	assert_false(has(id, 7, 0, 0));

	id = "CVE-2026-31397"; /* came with 6.16 */
	assert_false(has(id, 6, 15, 99));
	assert_true(has(id, 6, 17, 13));
	assert_true(has(id, 6, 18, 19));
	assert_false(has(id, 6, 18, 20));
	assert_false(has(id, 7, 0, 0));
}

static void test_table_is_sane(void **state)
{
	unsigned i;

	for (i = 0; i < kernel_bugs_nr; i++) {
		const struct kernel_bug *b = &kernel_bugs[i];
		const struct kernel_version *s;

		assert_true(kernel_version_cmp(&b->since, &b->mainline) < 0);
		for (s = b->stable; s->major; s++) {
			assert_true(s < b->stable + sizeof(b->stable) / sizeof(b->stable[0]) - 1);
			assert_true(kernel_version_cmp(&b->since, s) < 0);
			assert_true(kernel_version_cmp(s, &b->mainline) < 0);
		}
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_versions),
		cmocka_unit_test(test_no_version),
		cmocka_unit_test(test_edges),
		cmocka_unit_test(test_table_is_sane),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
