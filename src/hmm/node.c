/* SPDX-License-Identifier: MIT */
/*
 * Memory that has a node of its own, without CPUs: a coherent device's (CXL, a
 * GPU's behind a coherent link), where the kernel knows of it.
 *
 * Pages go there and back by move_pages(), stay mapped all the time, and the
 * kernel decides: a page that is pinned or busy stays where it is.
 */
#include "hmm/node.h"

#include <errno.h>
#include <sys/syscall.h>

#include "umm/internal.h"
#include "umm/sys.h"

#define MPOL_MF_MOVE 2
#define AT_ONCE 256u

int hmm_node_move(uint64_t start, uint64_t end, int node, hmm_node_there there, void *priv)
{
	while (start < end) {
		const void *page[AT_ONCE];
		int to[AT_ONCE], status[AT_ONCE];
		unsigned n = 0;
		long rc;

		for (; n < AT_ONCE && start + n * UMM_PAGE < end; n++) {
			page[n] = (const void *)(uintptr_t)(start + n * UMM_PAGE);
			to[n] = node;
			status[n] = -ENOENT;
		}
		/* More than 0: so many did not go; which ones, the status says. */
		rc = sys6(SYS_move_pages, 0, n, page, to, status, MPOL_MF_MOVE);
		if (rc < 0)
			return (int)rc;
		for (unsigned i = 0, k; i < n; i = k) {
			for (k = i; k < n && status[k] == node; k++)
				;
			if (k > i)
				rc = there(priv, start + i * UMM_PAGE, start + k * UMM_PAGE);
			if (rc < 0)
				return (int)rc;
			if (k == i)
				k++;
		}
		start += n * UMM_PAGE;
	}
	return 0;
}

int hmm_node_here(void)
{
	unsigned cpu, node;

	return sys3(SYS_getcpu, &cpu, &node, 0) ? 0 : (int)node;
}
