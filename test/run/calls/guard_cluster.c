/* SPDX-License-Identifier: MIT */
/* Memory filled up to a guard region, while faults are served in clusters: the guard must stay. */
#include "calls.h"

#include <setjmp.h>
#include <signal.h>

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#endif

static sigjmp_buf jump;

static void on_segv(int sig)
{
	siglongjmp(jump, sig);
}

int main(void)
{
	struct sigaction sa = {.sa_handler = on_segv, .sa_flags = SA_NODEFER};
	struct hog hog;

	sigaction(SIGSEGV, &sa, NULL);
	hog_start(&hog, hog_mib());
	char *first = v_map(512 * V_PAGE);
	v_fill_all(first, 512, 1, 0, V_QUARTER);
	for (unsigned r = 0; r < (long_run() ? 10 : 6); r++) {
		/* Pages go out in each round, however fast the rounds are. */
		CHECK(!v_check_all(first, 512, 1, 0, V_QUARTER), "round %u: not what was written", r);
		wait_away(first, 512, 256, "anything");
		char *p = v_map(512 * V_PAGE);

		if (madvise(p + 300 * V_PAGE, 100 * V_PAGE, MADV_GUARD_INSTALL))
			return 77;
		for (unsigned i = 0; i < 300; i++) {
			v_fill(p + i * V_PAGE, i, 2, r, V_QUARTER);
			if (i == 32)
				sleep_ms(30); /* registered by now */
		}
		for (volatile unsigned i = 300; i < 400; i++) {
			if (!sigsetjmp(jump, 1)) {
				(void)*(volatile char *)(p + i * V_PAGE);
				DIE("round %u: guard page %u can be read", r, i);
			}
		}
		munmap(p, 512 * V_PAGE);
	}
	hog_stop(&hog);
	return 0;
}
