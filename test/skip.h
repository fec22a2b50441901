/* SPDX-License-Identifier: MIT */
/*
 * One test of a group that cannot run here says why: the group passes without
 * it, and "make test" counts the line (scripts/testsum).
 */
#ifndef HMM_TEST_SKIP_H
#define HMM_TEST_SKIP_H

#define skip_because(...)                              \
	do {                                           \
		print_message("SKIP: %s: ", __func__); \
		print_message(__VA_ARGS__);            \
		print_message("\n");                   \
		skip();                                \
	} while (0)

#endif
