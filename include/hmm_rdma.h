/* SPDX-License-Identifier: MIT */
/*
 * hmm_rdma: memory of a program that others read and write over the network, on
 * plain pointers.
 *
 * Nothing is pinned and nothing set aside.  What a peer asks for is brought in
 * then, also from a device, and mapped for it (hmm_range_map()); what changes is
 * taken from it first, and asked for again with its next access.  Between nothing
 * that is there and what is there now a peer sees no third thing: a range that was
 * freed is an error, one that was mapped again is what is mapped there.
 *
 *	who has the memory			who wants it
 *
 *	hmm_rdma_open(space, NULL, NULL, &r)
 *	hmm_rdma_expose(r, mem, len, HMM_RDMA_READ, &token)
 *	hmm_rdma_addr(r, where)
 *		... token, mem and where go to the peer somehow ...
 *						hmm_rdma_connect(NULL, host, port, deadline, &peer)
 *						hmm_rdma_read(peer, &token, mem, buf, len, deadline)
 *						hmm_rdma_disconnect(peer)
 *	hmm_rdma_close(r)
 *
 * They are in a library of their own, libhmm-rdma, which needs libfabric.
 *
 * DOC: who may
 *
 * Whoever has a range's token.  It goes over the network as it is, and so do the
 * data: as with the keys of RDMA, the network is one that is trusted.
 */
#ifndef HMM_RDMA_H
#define HMM_RDMA_H

#include "hmm.h"

#ifdef __cplusplus
extern "C" {
#endif

#pragma GCC visibility push(default)

struct hmm_rdma;
struct hmm_rdma_peer;

/** What names an exposed range to its owner, and proves the right to it.  To be handed on as bytes. */
struct hmm_rdma_token {
	uint64_t id;
	uint8_t secret[24];
};

#define HMM_RDMA_READ (1u << 0)
#define HMM_RDMA_WRITE (1u << 1)

/** Most bytes in one hmm_rdma_read(), hmm_rdma_write() or hmm_rdma_prefetch(). */
#define HMM_RDMA_LEN_MAX ((uint64_t)1 << 30)

/** Room for hmm_rdma_addr(). */
#define HMM_RDMA_ADDR_MAX 64

struct hmm_rdma_params {
	const char *provider; /* of libfabric; NULL: "tcp" */
	const char *host;     /* to listen on; NULL: 127.0.0.1 */
	const char *port;     /* NULL: one that is free */
};

struct hmm_rdma_stats {
	uint64_t peers;         /* connected now */
	uint64_t read, written; /* bytes that peers have */
	uint64_t mapped;        /* times that something had to be mapped for a peer */
	uint64_t refused;       /* requests without a right token, or beyond its range */
	uint64_t failed;        /* others that ended with an error */
};

/**
 * hmm_rdma_open() - a place that peers can connect to
 * @space: the caller's own, open until hmm_rdma_close().
 * @mm: its engine, or NULL where no device has memory.
 * @params: NULL: as if all were NULL.
 * @rp: out; ended with hmm_rdma_close().
 * @err: out, one line without newline that says what is wrong; may be NULL.
 * @errlen: bytes at @err.
 *
 * Each peer is served by a thread.  A forked child has none of it: it must not use
 * @rp, nor close it.  What else the provider has to say comes through as it is.
 *
 * Context: Thread-safe.  Not in callbacks.
 * Return: 0, or
 *	-ENOMEM	no memory
 *	-ENOSYS	libfabric is not installed
 *	-EHOSTUNREACH	the provider has no such address
 *	-EADDRINUSE	the port is taken
 *	-EAGAIN	no thread could be made
 */
int hmm_rdma_open(struct umm_space *space, struct hmm_mm *mm, const struct hmm_rdma_params *params,
		  struct hmm_rdma **rp, char *err, size_t errlen);

/**
 * hmm_rdma_close() - part with all peers, and end
 * @r: NULL is fine.  What is exposed still is not any more.
 *
 * Transfers that are under way are cut short; their peers find the connection ended.
 *
 * Context: No other call on @r may run.  Not in callbacks.  Waits for copies that run.
 */
void hmm_rdma_close(struct hmm_rdma *r);

/**
 * hmm_rdma_addr() - where peers connect to
 * @r: of hmm_rdma_open().
 * @addr: out, "host:port", or "[host]:port".
 *
 * Context: Thread-safe.
 */
void hmm_rdma_addr(struct hmm_rdma *r, char addr[HMM_RDMA_ADDR_MAX]);

/**
 * hmm_rdma_expose() - let peers at memory
 * @r: of hmm_rdma_open().
 * @addr: of any alignment; nothing need be mapped there yet.
 * @len: bytes.
 * @access: HMM_RDMA_*; mappings must allow it, too, at the time of the access.
 * @token: out; for those who may.
 *
 * Holds until hmm_rdma_unexpose(), whatever is unmapped, mapped or protected there
 * meanwhile.
 *
 * Context: Thread-safe.  Not in callbacks.
 * Return: 0, or
 *	-EINVAL	nothing, beyond the address space, or no or unknown access
 *	-ENOMEM	no memory
 *	-EIO	the system has no random numbers
 */
int hmm_rdma_expose(struct hmm_rdma *r, const void *addr, size_t len, unsigned access, struct hmm_rdma_token *token);

/**
 * hmm_rdma_unexpose() - let nobody at it any more
 * @r: of hmm_rdma_open().
 * @token: of hmm_rdma_expose().
 *
 * When it returns no access runs and none will.
 *
 * Context: Thread-safe.  Not in callbacks.  Waits for what is under way.
 * Return: 0, or
 *	-ENOENT	there is no such range
 */
int hmm_rdma_unexpose(struct hmm_rdma *r, const struct hmm_rdma_token *token);

/**
 * hmm_rdma_stats() - what happened since it was opened
 * @r: of hmm_rdma_open().
 * @st: out.
 *
 * Context: Thread-safe.  Not in callbacks.
 */
void hmm_rdma_stats(struct hmm_rdma *r, struct hmm_rdma_stats *st);

/**
 * hmm_rdma_connect() - to one who exposes memory
 * @provider: of libfabric; NULL: "tcp".
 * @host, @port: where it listens.
 * @deadline_ns: of CLOCK_MONOTONIC, in nanoseconds.
 * @peerp: out; ended with hmm_rdma_disconnect().
 * @err: out, one line without newline that says what is wrong; may be NULL.
 * @errlen: bytes at @err.
 *
 * What else the provider has to say comes through as it is.
 *
 * Context: Thread-safe.  Not in callbacks.
 * Return: 0, or
 *	-ENOMEM	no memory
 *	-ENOSYS	libfabric is not installed
 *	-EHOSTUNREACH	no such host, or the provider has no way there
 *	-ECONNREFUSED	nobody listens there
 *	-ETIME	the deadline passed
 */
int hmm_rdma_connect(const char *provider, const char *host, const char *port, uint64_t deadline_ns,
		     struct hmm_rdma_peer **peerp, char *err, size_t errlen);

/**
 * hmm_rdma_disconnect() - end a connection
 * @peer: NULL is fine.  In a forked child it must not be used.
 *
 * Context: No other call on @peer may run.  Not in callbacks.
 */
void hmm_rdma_disconnect(struct hmm_rdma_peer *peer);

/**
 * hmm_rdma_read(), hmm_rdma_write() - copy from, or to, memory that a peer exposes
 * @peer: of hmm_rdma_connect().
 * @token: of the range.
 * @remote: address of the first byte there, as the owner has it.
 * @local: the caller's, during the call; of any alignment, and may be away.
 * @len: bytes, at most HMM_RDMA_LEN_MAX.
 * @deadline_ns: of CLOCK_MONOTONIC, in nanoseconds; 0: none; but the owner tries for 10 s for each
 *	512 KiB.
 *
 * After an error of the owner's part of it may have been copied.  One of the connection
 * ends it: then all that follows is -ENOTCONN, and one connects anew.
 *
 * Context: Thread-safe; calls on one @peer take turns.  Not in callbacks.  Sleeps, and faults.
 * Return: 0, or
 *	-EINVAL	@len out of range, or beyond what is exposed
 *	-EACCES	no such token, or the range is not exposed for that
 *	-EPERM	the mapping there does not allow it
 *	-EFAULT	nothing is mapped there, or it cannot be read, or is lost; or @local is not the caller's
 *	-ETIME	the deadline passed: there, or with no answer; the latter ends the connection
 *	-ENOMEM	the owner has no memory
 *	-ECONNRESET	the owner has gone
 *	-EPROTO	it does not speak as it should
 *	-ENOTCONN	the connection has ended before
 */
int hmm_rdma_read(struct hmm_rdma_peer *peer, const struct hmm_rdma_token *token, uint64_t remote, void *local,
		  size_t len, uint64_t deadline_ns);
int hmm_rdma_write(struct hmm_rdma_peer *peer, const struct hmm_rdma_token *token, uint64_t remote, const void *local,
		   size_t len, uint64_t deadline_ns);

/**
 * hmm_rdma_prefetch() - advice: bring in what will be asked for
 * @peer: of hmm_rdma_connect().
 * @token: of the range.
 * @remote: address of the first byte there, as the owner has it.
 * @len: bytes, at most HMM_RDMA_LEN_MAX.
 * @access: HMM_RDMA_WRITE: for writing, too.
 * @deadline_ns: of CLOCK_MONOTONIC, in nanoseconds; 0: none.
 *
 * Returns once the advice was taken; what follows on @peer waits until it was followed.
 *
 * Context: Thread-safe; calls on one @peer take turns.  Not in callbacks.
 * Return: 0, or
 *	-EINVAL	@len out of range, beyond what is exposed, or unknown access
 *	-EACCES	no such token, or the range is not exposed for that
 *	-ETIME	the deadline passed; the connection has ended
 *	-ECONNRESET	the owner has gone
 *	-EPROTO	it does not speak as it should
 *	-ENOTCONN	the connection has ended before
 */
int hmm_rdma_prefetch(struct hmm_rdma_peer *peer, const struct hmm_rdma_token *token, uint64_t remote, size_t len,
		      unsigned access, uint64_t deadline_ns);

#pragma GCC visibility pop

#ifdef __cplusplus
}
#endif
#endif
