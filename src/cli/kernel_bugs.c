/* SPDX-License-Identifier: MIT */
/*
 * DOC: how sure this is
 *
 * The table holds only what the kernel's own CVE records state: the release a
 * bug came with and the releases that fixed it.  A stable series that is not
 * named ended without the fix.  A distribution may have fixed a bug in a
 * kernel whose number says otherwise, so a hit is a warning, never a refusal.
 */
#include "cli/kernel_bugs.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

const struct kernel_bug kernel_bugs[] = {
	{
		.id = "CVE-2024-27007",
		.what = "moving a pinned huge page may corrupt memory",
		.since = {6, 8, 0},
		.mainline = {6, 9, 0},
		.stable = {{6, 8, 8}},
	},
	{
		.id = "CVE-2024-46787",
		.what = "filling a page beside a huge page may crash the kernel",
		.since = {4, 3, 0},
		.mainline = {6, 11, 0},
		.stable = {{6, 6, 51}, {6, 10, 10}},
	},
	{
		.id = "CVE-2025-21984",
		.what = "moving a page that swap is writing out may crash the kernel",
		.since = {6, 8, 0},
		.mainline = {6, 14, 0},
		.stable = {{6, 12, 20}, {6, 13, 8}},
	},
	{
		.id = "CVE-2025-38242",
		.what = "moving a page that swap brings in at the same moment may crash the kernel",
		.since = {6, 8, 0},
		.mainline = {6, 16, 0},
		.stable = {{6, 12, 37}, {6, 15, 5}},
	},
	{
		.id = "CVE-2025-38686",
		.what = "moving a huge page that is being migrated may crash the kernel",
		.since = {6, 8, 0},
		.mainline = {6, 17, 0},
		.stable = {{6, 12, 43}, {6, 15, 11}, {6, 16, 2}},
	},
	{
		.id = "CVE-2026-31397",
		.what = "moving a huge zero page installs a wrong page",
		.since = {6, 16, 0},
		.mainline = {7, 0, 0},
		.stable = {{6, 18, 20}, {6, 19, 10}},
	},
};

const unsigned kernel_bugs_nr = sizeof(kernel_bugs) / sizeof(kernel_bugs[0]);

bool kernel_version_parse(const char *s, struct kernel_version *v)
{
	for (; *s; s++) {
		unsigned a, b, c = 0;
		int n;

		if (!isdigit((unsigned char)*s))
			continue;
		n = sscanf(s, "%5u.%5u.%5u", &a, &b, &c);
		if (n >= 2) {
			*v = (struct kernel_version){a, b, n == 3 ? c : 0};
			return true;
		}
		while (isdigit((unsigned char)s[1]))
			s++;
	}
	return false;
}

bool kernel_version_upstream(const char *release, const char *version, const char *signature, struct kernel_version *v)
{
	const char *p;

	/* Ubuntu: "Ubuntu 6.8.0-45.45-generic 6.8.12", the last word is upstream's. */
	if (signature) {
		char word[3][64];

		if (sscanf(signature, "%63s %63s %63s", word[0], word[1], word[2]) == 3 &&
		    kernel_version_parse(word[2], v))
			return true;
	}
	/* Debian: release "6.1.0-18-amd64", version "#1 SMP ... Debian 6.1.76-1 (2024-02-01)". */
	p = version ? strstr(version, "Debian ") : NULL;
	if (p && kernel_version_parse(p, v))
		return true;
	return kernel_version_parse(release, v);
}

int kernel_version_cmp(const struct kernel_version *a, const struct kernel_version *b)
{
	if (a->major != b->major)
		return a->major < b->major ? -1 : 1;
	if (a->minor != b->minor)
		return a->minor < b->minor ? -1 : 1;
	if (a->patch != b->patch)
		return a->patch < b->patch ? -1 : 1;
	return 0;
}

bool kernel_bug_in(const struct kernel_bug *bug, const struct kernel_version *v)
{
	const struct kernel_version *fix;

	if (kernel_version_cmp(v, &bug->since) < 0 || kernel_version_cmp(v, &bug->mainline) >= 0)
		return false;
	for (fix = bug->stable; fix->major; fix++)
		if (fix->major == v->major && fix->minor == v->minor)
			return v->patch < fix->patch;
	return true;
}
