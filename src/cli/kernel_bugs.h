/* SPDX-License-Identifier: MIT */
/* Which kernel this is, and which known bugs of what we use it has. */
#ifndef HMM_CLI_KERNEL_BUGS_H
#define HMM_CLI_KERNEL_BUGS_H

#include <stdbool.h>

struct kernel_version {
	unsigned major, minor, patch;
};

/* A bug of the kernel's that moving pages can meet. */
struct kernel_bug {
	const char *id;
	const char *what;
	struct kernel_version since;     /* first release with it */
	struct kernel_version mainline;  /* first release of mainline without it */
	struct kernel_version stable[6]; /* first stable releases without it; ends with major 0 */
};

extern const struct kernel_bug kernel_bugs[];
extern const unsigned kernel_bugs_nr;

/* The first "A.B" or "A.B.C" in @s is the version.  Returns false when there is none. */
bool kernel_version_parse(const char *s, struct kernel_version *v);

/*
 * The upstream version of the running kernel: distributions name their kernels
 * as they like, and write the upstream version somewhere else.
 * @release, @version: as from uname(2); @signature: /proc/version_signature or NULL.
 */
bool kernel_version_upstream(const char *release, const char *version, const char *signature, struct kernel_version *v);

int kernel_version_cmp(const struct kernel_version *a, const struct kernel_version *b);

/* Is @bug in release @v of the upstream kernel? */
bool kernel_bug_in(const struct kernel_bug *bug, const struct kernel_version *v);

#endif
