/* SPDX-License-Identifier: MIT */
/* In place of the ofi device and its server where they are not built in. */
#include <errno.h>

#include "drivers/driver.h"
#include "drivers/ofi/server.h"

static const char why[] = "not built in: hmm was built without libfabric-dev or libsodium-dev";

static int absent_open(const char *arg, struct hmm_device **devp, char *err, size_t errlen)
{
	return drv_fail(-ENOSYS, err, errlen, "ofi: %s", why);
}

const struct hmm_driver hmm_driver_ofi = {
	.name = "ofi",
	.usage = "ofi://HOST:PORT[,key=FILE] (not built in)",
	.open = absent_open,
};

int tier_server_start(const struct tier_server_options *opt, struct tier_server **srvp, char *err, size_t errlen)
{
	return drv_fail(-ENOSYS, err, errlen, "%s", why);
}

void tier_server_stop(struct tier_server *srv)
{
}

const char *tier_server_addr(const struct tier_server *srv)
{
	return "";
}
