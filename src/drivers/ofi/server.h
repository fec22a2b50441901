/* SPDX-License-Identifier: MIT */
/* The server of the remote tier: hmm serve. */
#ifndef HMM_OFI_SERVER_H
#define HMM_OFI_SERVER_H

#include <stddef.h>
#include <stdint.h>

struct tier_server;

struct tier_server_options {
	const char *listen;   /* "ofi://HOST:PORT..." */
	uint64_t memory;      /* bytes, for all clients and all that is kept for them */
	const char *key_file; /* NULL: none; then only loopback */
	uint64_t idle_ns;     /* a client that is silent for so long is dropped; 0: 5 minutes */
	uint64_t hello_ns;    /* who connects has so long to prove itself; 0: 5 seconds */

	/* A line for who runs the server; by several threads, which must not wait for its reader.  May be NULL. */
	void (*say)(void *priv, const char *line);
	void *priv;
};

/**
 * tier_server_start() - listen, and serve in threads of its own
 *
 * Returns 0, or -errno with a line in @err; -ENOSYS where it is not built in.
 */
int tier_server_start(const struct tier_server_options *opt, struct tier_server **srvp, char *err, size_t errlen);
void tier_server_stop(struct tier_server *srv);

/** tier_server_addr() - "address:port" where it listens. */
const char *tier_server_addr(const struct tier_server *srv);

#endif
