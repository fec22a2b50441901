/* SPDX-License-Identifier: MIT */
#include "drivers/ofi/addr.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "drivers/driver.h"

#define TIMEOUT_S 10
#define TIMEOUT_MAX_S 86400

/* @n bytes at @from into @to of @len bytes; false: too long, or none. */
static bool take(const char *from, size_t n, char *to, size_t len)
{
	if (!n || n >= len)
		return false;
	memcpy(to, from, n);
	to[n] = '\0';
	return true;
}

static bool parse_host(const char *at, size_t n, struct tier_addr *addr)
{
	const char *colon = memrchr(at, ':', n);
	size_t host = colon ? (size_t)(colon - at) : 0, port;
	unsigned long nr;
	char *end;

	if (!colon)
		return false;
	port = n - host - 1;
	if (host > 2 && at[0] == '[' && at[host - 1] == ']') {
		at++;
		host -= 2;
	} else if (memchr(at, ':', host)) {
		return false; /* an address of IPv6 wants its brackets */
	}
	if (!take(at, host, addr->host, sizeof(addr->host)) || !take(colon + 1, port, addr->port, sizeof(addr->port)) ||
	    strspn(addr->port, "0123456789") != port)
		return false;
	nr = strtoul(addr->port, &end, 10);
	return nr <= 65535;
}

static bool parse_option(const char *at, size_t n, struct tier_addr *addr)
{
	char seconds[8], *end;
	unsigned long s;

	if (n > 4 && !memcmp(at, "key=", 4))
		return take(at + 4, n - 4, addr->key, sizeof(addr->key));
	if (n > 9 && !memcmp(at, "provider=", 9))
		return take(at + 9, n - 9, addr->provider, sizeof(addr->provider));
	if (n > 8 && !memcmp(at, "timeout=", 8) && take(at + 8, n - 8, seconds, sizeof(seconds)) &&
	    strspn(seconds, "0123456789") == n - 8) {
		s = strtoul(seconds, &end, 10);
		addr->timeout_ns = s * 1000000000u;
		return s && s <= TIMEOUT_MAX_S;
	}
	return false;
}

int tier_addr_parse(const char *arg, struct tier_addr *addr, char *err, size_t errlen)
{
	const char *at = arg;
	size_t n;

	*addr = (struct tier_addr){.provider = "tcp", .timeout_ns = TIMEOUT_S * 1000000000ull};
	if (strncmp(at, "//", 2))
		goto bad;
	at += 2;
	n = strcspn(at, ",");
	if (!parse_host(at, n, addr))
		goto bad;
	for (at += n; *at == ','; at += n) {
		at++;
		n = strcspn(at, ",");
		if (!parse_option(at, n, addr))
			goto bad;
	}
	return 0;
bad:
	return drv_fail(-EINVAL, err, errlen,
			"ofi: cannot read \"ofi:%s\"; say ofi://HOST:PORT, and after commas key=FILE, "
			"timeout=SECONDS, provider=NAME",
			arg);
}
