/* SPDX-License-Identifier: MIT */
/* Ranges that peers may reach, and how they are reached. */
#ifndef HMM_OFI_EXPOSE_H
#define HMM_OFI_EXPOSE_H

#include "hmm_rdma.h"

struct exposed;

int exposed_open(struct umm_space *space, struct hmm_mm *mm, struct exposed **xp);
/** Ends what is still exposed; nobody uses any of it. */
void exposed_close(struct exposed *x);

int exposed_add(struct exposed *x, uint64_t addr, uint64_t len, unsigned access, struct hmm_rdma_token *token);
int exposed_remove(struct exposed *x, const struct hmm_rdma_token *token);

/**
 * Copy between @buf and [@addr, @addr + @len) of the range that @token names, as
 * far as its mappings allow at this time.  @buf cannot be away.
 *
 * Returns 0, -EACCES, -EINVAL (beyond the range), or what hmm_range_map() gives.
 */
int exposed_copy(struct exposed *x, const struct hmm_rdma_token *token, uint64_t addr, void *buf, size_t len,
		 bool write, uint64_t deadline_ns);

/** May the one with @token have this?  0, -EACCES or -EINVAL. */
int exposed_check(struct exposed *x, const struct hmm_rdma_token *token, uint64_t addr, uint64_t len, unsigned access);

/** Bring it in, and map it. */
int exposed_map(struct exposed *x, const struct hmm_rdma_token *token, uint64_t addr, uint64_t len, unsigned access,
		uint64_t deadline_ns);

/** Times that something was mapped. */
uint64_t exposed_mapped(struct exposed *x);

#endif
