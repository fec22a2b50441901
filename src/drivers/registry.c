/* SPDX-License-Identifier: MIT */
#include "drivers/driver.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

static const struct hmm_driver *const drivers[] = {
	&hmm_driver_lz4,
	&hmm_driver_file,
	&hmm_driver_ofi,
	&hmm_driver_faulty,
};

#define NR_DRIVERS (sizeof(drivers) / sizeof(drivers[0]))

/* The driver that @spec begins with: its name, then ':', the end, or (in a chain) ','. */
static const struct hmm_driver *find(const char *spec, const char *ends)
{
	size_t n = strcspn(spec, ends);

	for (size_t i = 0; i < NR_DRIVERS; i++)
		if (strlen(drivers[i]->name) == n && !memcmp(drivers[i]->name, spec, n))
			return drivers[i];
	return NULL;
}

int hmm_chain_next(const char **chain, char *spec, size_t len)
{
	const char *start = *chain;
	const char *end = start;
	size_t n;

	if (!*start)
		return 0;
	for (;;) {
		end += strcspn(end, ",");
		/* A name alone has no argument that could hold the comma. */
		if (!*end || find(end + 1, ":,") || !memchr(start, ':', (size_t)(end - start)))
			break;
		end++;
	}
	n = (size_t)(end - start);
	if (!n)
		return -EINVAL;
	if (n >= len)
		return -ENAMETOOLONG;
	memcpy(spec, start, n);
	spec[n] = '\0';
	/* Behind a comma there must be one more: the next call finds an empty one. */
	*chain = *end && end[1] ? end + 1 : end;
	return 1;
}

static int unknown(const char *spec, char *err, size_t errlen)
{
	char known[256];
	size_t at = 0;

	for (size_t i = 0; i < NR_DRIVERS && at < sizeof(known); i++)
		at += (size_t)snprintf(known + at, sizeof(known) - at, "%s%s", i ? ", " : "", drivers[i]->usage);
	return drv_fail(-ENODEV, err, errlen, "unknown device \"%.*s\"; known: %s", (int)strcspn(spec, ":"), spec,
			known);
}

int hmm_device_open(const char *spec, struct hmm_device **devp, char *err, size_t errlen)
{
	const struct hmm_driver *driver;
	struct hmm_device *dev;
	const char *arg;
	int rc;

	if (err && errlen)
		err[0] = '\0';
	if (!devp)
		return -EINVAL;
	*devp = NULL;
	if (!spec || !*spec)
		return drv_fail(-EINVAL, err, errlen, "no device named");
	driver = find(spec, ":");
	if (!driver)
		return unknown(spec, err, errlen);
	arg = strchr(spec, ':');
	rc = (driver->open)(arg ? arg + 1 : "", &dev, err, errlen);
	if (rc)
		return rc;
	snprintf(dev->spec, sizeof(dev->spec), "%s", spec);
	*devp = dev;
	return 0;
}

void hmm_device_close(struct hmm_device *dev)
{
	if (dev)
		dev->ops->close(dev);
}
