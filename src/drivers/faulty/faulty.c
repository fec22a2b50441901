/* SPDX-License-Identifier: MIT */
/*
 * faulty: another device that begins to fail, so that what its user does about
 * it can be tested.
 *
 *	faulty:in=N:DEVICE	the Nth copy_in, and each one after, gives -EIO
 *	faulty:out=N:DEVICE	the Nth page read, and each one after, gives -EIO
 *	faulty:sum=N:DEVICE	the same with -EBADMSG
 *
 * Several, with commas between them: faulty:in=100,sum=5:lz4:64M.
 */
#include "drivers/driver.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

struct faulty {
	struct hmm_device dev;
	struct hmm_device_ops ops; /* a table of its own: capabilities are those of the device inside */
	struct hmm_device *inner;
	uint64_t in, out, sum; /* 0: never */
	_Atomic uint64_t nr_in, nr_out, errors;
};

static inline struct faulty *to_faulty(struct hmm_device *dev)
{
	return (struct faulty *)dev;
}

static int faulty_copy_in(struct hmm_device *dev, const void *const src[], hmm_handle_t handle[], unsigned n)
{
	struct faulty *f = to_faulty(dev);

	if (f->in && atomic_fetch_add(&f->nr_in, 1) + 1 >= f->in) {
		for (unsigned i = 0; i < n; i++)
			handle[i] = HMM_HANDLE_NONE;
		atomic_fetch_add(&f->errors, 1);
		return -EIO;
	}
	return f->inner->ops->copy_in(f->inner, src, handle, n);
}

static int faulty_copy_out(struct hmm_device *dev, const hmm_handle_t handle[], void *const dst[], int status[],
			   unsigned n)
{
	struct faulty *f = to_faulty(dev);
	uint64_t before = atomic_fetch_add(&f->nr_out, n);
	int rc;

	rc = f->inner->ops->copy_out(f->inner, handle, dst, status, n);
	for (unsigned i = 0; i < n; i++) {
		uint64_t nth = before + i + 1;

		if (status[i])
			continue;
		if (f->out && nth >= f->out)
			status[i] = -EIO;
		else if (f->sum && nth >= f->sum)
			status[i] = -EBADMSG;
		else
			continue;
		/* Whoever uses it nevertheless shall be seen to. */
		memset(dst[i], 0xdb, HMM_PAGE_SIZE);
		atomic_fetch_add(&f->errors, 1);
	}
	rc = 0;
	for (unsigned i = 0; i < n && !rc; i++)
		rc = status[i];
	return rc;
}

static void faulty_get(struct hmm_device *dev, const hmm_handle_t handle[], unsigned n)
{
	struct hmm_device *inner = to_faulty(dev)->inner;

	inner->ops->get(inner, handle, n);
}

static void faulty_put(struct hmm_device *dev, const hmm_handle_t handle[], unsigned n)
{
	struct hmm_device *inner = to_faulty(dev)->inner;

	inner->ops->put(inner, handle, n);
}

static bool faulty_shared(struct hmm_device *dev, hmm_handle_t handle)
{
	struct hmm_device *inner = to_faulty(dev)->inner;

	return inner->ops->shared && inner->ops->shared(inner, handle);
}

static size_t faulty_trim(struct hmm_device *dev, size_t bytes)
{
	struct hmm_device *inner = to_faulty(dev)->inner;

	return inner->ops->trim ? inner->ops->trim(inner, bytes) : 0;
}

static void faulty_stats(struct hmm_device *dev, struct hmm_device_stats *st)
{
	struct faulty *f = to_faulty(dev);

	f->inner->ops->stats(f->inner, st);
	st->errors += atomic_load(&f->errors);
}

static void faulty_leave(struct hmm_device *dev)
{
	struct hmm_device *inner = to_faulty(dev)->inner;

	if (inner->ops->leave)
		inner->ops->leave(inner);
}

static void faulty_close(struct hmm_device *dev)
{
	struct faulty *f = to_faulty(dev);

	hmm_device_close(f->inner);
	free(f);
}

/* "in=N" and its like, up to the colon that ends them; returns what follows that, or NULL. */
static const char *parse(struct faulty *f, const char *arg)
{
	for (;;) {
		uint64_t *to;
		char *end;

		if (!strncmp(arg, "in=", 3))
			to = &f->in;
		else if (!strncmp(arg, "out=", 4))
			to = &f->out;
		else if (!strncmp(arg, "sum=", 4))
			to = &f->sum;
		else
			return NULL;
		arg = strchr(arg, '=') + 1;
		if (*arg < '1' || *arg > '9')
			return NULL;
		errno = 0;
		*to = strtoull(arg, &end, 10);
		if (errno)
			return NULL;
		if (*end == ':')
			return end + 1;
		if (*end != ',')
			return NULL;
		arg = end + 1;
	}
}

static int faulty_open(const char *arg, struct hmm_device **devp, char *err, size_t errlen)
{
	struct faulty *f = calloc(1, sizeof(*f));
	const char *inner;
	int rc;

	if (!f)
		return drv_fail(-ENOMEM, err, errlen, "faulty: out of memory");
	inner = parse(f, arg);
	if (!inner) {
		rc = drv_fail(-EINVAL, err, errlen, "faulty: cannot read \"%s\"; say for example faulty:in=100:lz4",
			      arg);
		goto fail;
	}
	rc = hmm_device_open(inner, &f->inner, err, errlen);
	if (rc)
		goto fail;
	f->ops = (struct hmm_device_ops){
		.name = "faulty",
		.caps = f->inner->ops->caps,
		.copy_in = faulty_copy_in,
		.copy_out = faulty_copy_out,
		.get = faulty_get,
		.put = faulty_put,
		.shared = faulty_shared,
		.trim = faulty_trim,
		.stats = faulty_stats,
		.close = faulty_close,
		.leave = faulty_leave,
	};
	f->dev.ops = &f->ops;
	*devp = &f->dev;
	return 0;
fail:
	free(f);
	return rc;
}

const struct hmm_driver hmm_driver_faulty = {
	.name = "faulty",
	.usage = "faulty:in=N|out=N|sum=N:DEVICE",
	.open = faulty_open,
};
