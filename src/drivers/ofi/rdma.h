/* SPDX-License-Identifier: MIT */
/*
 * What hmm_rdma's two sides have in common.
 *
 * DOC: the wire
 *
 * One request at a time on a connection; numbers in the byte order of x86-64.
 *
 *	READ		request ->	<- one message of data per chunk
 *					   after a fault: an empty one for it and for each that
 *					   follows, and a reply
 *	WRITE		request, one message per chunk ->	<- reply
 *	PREFETCH	request ->	<- reply
 *
 * A chunk is RDMA_CHUNK bytes, or the rest.  What a reader gets for a small READ is
 * one message, and so it has one message each way, as in fi_read().  Each chunk costs a
 * system call or more at either end, and where they share a processor a switch from one
 * to the other: two large ones take less time than four small ones (doc/performance.md).
 * Both ends have to agree on its size: who changes that changes RDMA_MAGIC.
 */
#ifndef HMM_OFI_RDMA_H
#define HMM_OFI_RDMA_H

#include "hmm_rdma.h"

#define RDMA_MAGIC 0x326d6472u
#define RDMA_CHUNK 524288u              /* hmm_rdma.h says so */
#define RDMA_WINDOW 2u                  /* chunks under way, on either side */
#define RDMA_POLLS_MOST 1048576u        /* bytes: what is longer is not waited for by looking */
#define RDMA_PATIENCE_NS 10000000000ull /* the owner's, for one chunk */

enum rdma_op { RDMA_OP_READ, RDMA_OP_WRITE, RDMA_OP_PREFETCH };

struct rdma_request {
	uint32_t magic;
	uint32_t op;
	struct hmm_rdma_token token;
	uint64_t addr, len;
	uint64_t patience_ns; /* how long the owner may try */
	uint32_t access;      /* PREFETCH */
	uint32_t zero;
};

struct rdma_reply {
	uint32_t magic;
	int32_t rc;
};

static inline size_t rdma_chunk(uint64_t left)
{
	return left < RDMA_CHUNK ? left : RDMA_CHUNK;
}

#endif
