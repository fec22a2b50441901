/* SPDX-License-Identifier: MIT */
/*
 * hold MODE MIB FILE: fills MIB with pages of its own, says "filled", and goes on
 * with a small part of them until FILE is there.  Then
 *
 * none: ends well, without a look at the others
 * all: looks at each page: it is right, or gives SIGBUS; says how many of both
 * die: the same, without a handler
 */
#include <setjmp.h>
#include <signal.h>

#include "../victim.h"

#define SEED 23
#define WARM 64u /* pages that are used all the time */

static sigjmp_buf lost;

static void on_bus(int sig)
{
	siglongjmp(lost, 1);
}

static void say(const char *text, size_t n)
{
	if (write(1, text, n) != (ssize_t)n)
		_exit(1);
}

int main(int argc, char **argv)
{
	size_t npages;
	volatile size_t nlost = 0;
	char *mem, line[80];

	if (argc != 4)
		return 2;
	npages = (size_t)atol(argv[2]) * 256;
	mem = v_map(npages * V_PAGE);
	v_fill_all(mem, npages, SEED, 1, V_RANDOM);
	say("filled\n", 7);
	while (access(argv[3], F_OK)) {
		for (size_t i = npages - WARM; i < npages; i++)
			if (v_check(mem + i * V_PAGE, i, SEED, 1, V_RANDOM))
				_exit(1);
		usleep(1000);
	}
	if (!strcmp(argv[1], "none"))
		_exit(0);
	if (!strcmp(argv[1], "all"))
		signal(SIGBUS, on_bus);
	for (volatile size_t i = 0; i < npages; i++) {
		if (sigsetjmp(lost, 1)) {
			nlost++;
			continue;
		}
		if (v_check(mem + i * V_PAGE, i, SEED, 1, V_RANDOM))
			_exit(1);
	}
	say(line, (size_t)snprintf(line, sizeof(line), "%zu right, %zu lost\n", npages - nlost, nlost));
	_exit(0);
}
