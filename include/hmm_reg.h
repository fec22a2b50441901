/* SPDX-License-Identifier: MIT */
/*
 * hmm_reg: a registration cache.
 *
 * Memory that a device has mapped stays mapped after use, in case it is used
 * again, and is given up when it changes.
 *
 * DOC: how to use it
 *
 *	hmm_reg_cache_open(space, NULL, dev, NULL, &cache);
 *	rc = hmm_reg_get(cache, buf, len, HMM_MAP_WRITE, deadline, &reg);
 *	... the device works on it: reg->range->cookie is what it put there ...
 *	hmm_reg_put(cache, reg);
 *	hmm_reg_cache_close(cache);
 *
 * A hit costs tens of nanoseconds.  Requests that overlap what is there, or adjoin
 * what is not larger, become one registration with it.  What nobody uses goes when there is too much
 * of it, the least recently used first.
 *
 * What changes is not served again: calls that the hooks see (and wait for us)
 * find the registration dropped when they go on; raw ones that the kernel tells
 * of make it invalid before they return (until then another thread that is given
 * the same addresses may be served what was there; see HMM_REG_SYNC, hmm_reg_lost()),
 * and a device that pins drops it with the next call made to the cache.  A raw
 * mprotect() tells nobody.  Memory that is registered is watched (umm_space_watch()),
 * whole mappings of it.
 *
 * A change while a registration is in use is a race that the program has with
 * itself, as it is without us: the device may have seen the old pages.
 */
#ifndef HMM_REG_H
#define HMM_REG_H

#include "hmm.h"

#ifdef __cplusplus
extern "C" {
#endif

#pragma GCC visibility push(default)

struct hmm_reg_cache;

/** A registration that somebody uses. */
struct hmm_reg {
	uint64_t start, end; /* bytes: at least what was asked for */
	struct hmm_range *range;
	bool write;
};

#define HMM_REG_HOOKED \
	(1u << 0) /* memory that cannot be watched, too: the program has hooks, and makes no raw calls there; not that \
		   * of umm_alloc(), which umm_free() empties by one */

#define HMM_REG_SYNC \
	(1u << 1) /* each hit asks the kernel whether a change is under way, and waits for it: a system call */

struct hmm_reg_params {
	uint64_t max_bytes;   /* registered, in use or not; 0: no limit */
	uint64_t max_entries; /* 0: no limit */
	unsigned flags;       /* HMM_REG_* */
};

struct hmm_reg_stats {
	uint64_t hits, misses;
	uint64_t renewed;     /* of misses: what was there had been lost, and was mapped again */
	uint64_t merged;      /* registrations that became part of another one */
	uint64_t evicted;     /* for the limits */
	uint64_t invalidated; /* because memory changed */
	uint64_t failed;      /* of misses: got an error */
	uint64_t unwatched;   /* registrations of memory that cannot be watched */
	uint64_t lost;        /* of those that are there: for changes, and not yet dropped or mapped again */
	uint64_t entries, bytes;
};

/**
 * hmm_reg_cache_open() - a cache of what a device has mapped of a space
 * @space, @mm, @dev: as for hmm_range_open(); open until hmm_reg_cache_close().
 * @params: NULL: no limits, no flags.
 * @cachep: out; ended with hmm_reg_cache_close().
 *
 * Context: Thread-safe.  Not in callbacks.
 * Return: 0, or
 *	-EINVAL	the device has no HMM_DEV_MAP, or flags are unknown
 *	-ENOMEM	no memory
 */
int hmm_reg_cache_open(struct umm_space *space, struct hmm_mm *mm, struct hmm_device *dev,
		       const struct hmm_reg_params *params, struct hmm_reg_cache **cachep);

/**
 * hmm_reg_cache_close() - end a cache
 * @cache: nobody uses it or any of its registrations; NULL is fine.  In a forked child, too.
 *
 * Context: No other call on @cache may run.  Not in callbacks.
 */
void hmm_reg_cache_close(struct hmm_reg_cache *cache);

/**
 * hmm_reg_get() - have memory registered
 * @cache: of hmm_reg_cache_open().
 * @addr: of any alignment.
 * @len: bytes.
 * @flags: HMM_MAP_*.
 * @deadline_ns: of CLOCK_MONOTONIC, in nanoseconds, for what is not there yet; 0: none.
 * @regp: out; to be given back with hmm_reg_put().
 *
 * What else the device's map has to say comes through as it is.
 *
 * Context: Thread-safe; not for signal handlers, nor in callbacks.  May sleep, and fault.
 * Return: 0, or
 *	-EINVAL	nothing, or beyond the address space; unknown flags; memory of umm_alloc(); or
 *		memory that cannot be watched (see HMM_REG_HOOKED)
 *	-ESTALE	in a forked child
 *	-EPERM	HMM_MAP_WRITE where the mapping does not allow it; or it cannot be watched, as there
 *		is no right to a userfaultfd (see HMM_REG_HOOKED)
 *	-EBUSY	it cannot be watched: another userfaultfd has part of it (see HMM_REG_HOOKED)
 *	-EFAULT	a hole, an unreadable page, or one that is lost
 *	-ETIME	the deadline passed before the range held still
 *	-EINTR	a signal ends the process
 *	-ENOMEM	no memory, or too many registrations with userfaultfd
 *	-EOPNOTSUPP	another process's space
 *	-ENOSYS	the kernel is built without userfaultfd (see HMM_REG_HOOKED)
 *	-EMFILE	no descriptor left (see HMM_REG_HOOKED)
 *	-EAGAIN	no thread could be made for the monitor (see HMM_REG_HOOKED)
 *	-ENOTTY	the kernel has no PAGEMAP_SCAN (before Linux 6.7)
 */
int hmm_reg_get(struct hmm_reg_cache *cache, const void *addr, size_t len, unsigned flags, uint64_t deadline_ns,
		struct hmm_reg **regp);

/**
 * hmm_reg_lost() - has what is registered changed since?
 * @reg: of hmm_reg_get(), not given back yet.
 *
 * After umm_space_sync() that includes what nobody has been told of yet.  So who
 * hands much to a device at once asks the kernel once for all of it, where
 * HMM_REG_SYNC asks it with each hit.  Of memory that is not watched
 * (HMM_REG_HOOKED) nobody is told but by hooks.
 *
 * Context: Thread-safe.  Not in callbacks, nor in a forked child.
 * Return: true: give it back, and get it again or do without.  What is registered
 * again already, for another caller, is not lost.
 */
bool hmm_reg_lost(const struct hmm_reg *reg);

/**
 * hmm_reg_put() - the device is done with it
 * @cache: where it is from; in a forked child nothing happens.
 * @reg: of hmm_reg_get(); not to be looked at any more.
 *
 * It stays registered while there is room.
 *
 * Context: Thread-safe; not for signal handlers, nor in callbacks.
 */
void hmm_reg_put(struct hmm_reg_cache *cache, struct hmm_reg *reg);

/**
 * hmm_reg_flush() - give up what is invalid
 * @cache: of hmm_reg_cache_open(); in a forked child nothing happens.
 * @all: what nobody uses, too.
 *
 * Context: Thread-safe; not for signal handlers, nor in callbacks.
 */
void hmm_reg_flush(struct hmm_reg_cache *cache, bool all);

/**
 * hmm_reg_stats() - what happened since a cache was opened, and what there is
 * @cache: of hmm_reg_cache_open(); not in a forked child.
 * @st: out.
 *
 * Context: Thread-safe; not for signal handlers, nor in callbacks.
 */
void hmm_reg_stats(struct hmm_reg_cache *cache, struct hmm_reg_stats *st);

#pragma GCC visibility pop

#ifdef __cplusplus
}
#endif
#endif
