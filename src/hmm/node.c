/* SPDX-License-Identifier: MIT */
/*
 * Memory that has a node of its own, without CPUs: a coherent device's (CXL, a
 * GPU's behind a coherent link), where the kernel knows of it.
 *
 * Pages go there and back by move_pages(), stay mapped all the time, and the
 * kernel decides: a page that is pinned or busy stays where it is.  Where one does,
 * it says so of no page of that group, and tries none behind it.
 */
#include "hmm/node.h"

#include <errno.h>
#include <stdbool.h>
#include <sys/syscall.h>

#include "umm/internal.h"
#include "umm/sys.h"

#define MPOL_MF_MOVE 2
#define AT_ONCE 256u

static int tell(uint64_t start, unsigned n, const int *status, int node, hmm_node_there there, void *priv)
{
	int rc = 0;

	for (unsigned i = 0, k; i < n && rc >= 0; i = k + 1) {
		for (k = i; k < n && status[k] == node; k++)
			;
		if (k > i)
			rc = there(priv, start + i * UMM_PAGE, start + k * UMM_PAGE);
	}
	return rc;
}

static bool all_there(const int *status, unsigned n, int node)
{
	for (unsigned i = 0; i < n; i++)
		if (status[i] != node)
			return false;
	return true;
}

int hmm_node_move(uint64_t start, uint64_t end, int node, hmm_node_there there, void *priv)
{
	while (start < end) {
		const void *page[AT_ONCE];
		int to[AT_ONCE], status[AT_ONCE];
		unsigned n = 0, done;
		long rc, told;

		for (; n < AT_ONCE && start + n * UMM_PAGE < end; n++) {
			page[n] = (const void *)(uintptr_t)(start + n * UMM_PAGE);
			to[n] = node;
			status[n] = -ENOENT;
		}
		rc = sys6(SYS_move_pages, 0, n, page, to, status, MPOL_MF_MOVE);
		done = n;
		/*
		 * Not all went: which did is asked for.  Nor is that all which went where this is 0: of a huge page the
		 * second small one is refused, being on its way with the first.
		 */
		if (rc || !all_there(status, n, node)) {
			told = sys6(SYS_move_pages, 0, n, page, 0, status, 0);
			if (told < 0)
				return rc < 0 ? (int)rc : (int)told;
		}
		if (rc) {
			for (done = 0; done < n && status[done] == node;)
				done++;
			/* Of those behind the first that stays some may not have been tried. */
			done += done < n;
		}
		told = tell(start, n, status, node, there, priv);
		if (rc < 0 || told < 0)
			return rc < 0 ? (int)rc : (int)told;
		start += done * UMM_PAGE;
	}
	return 0;
}

int hmm_node_here(void)
{
	unsigned cpu, node;

	return sys3(SYS_getcpu, &cpu, &node, 0) ? 0 : (int)node;
}
