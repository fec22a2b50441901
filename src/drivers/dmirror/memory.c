/* SPDX-License-Identifier: MIT */
/*
 * Device memory in software.
 *
 * It is asked for while a thread of the same process waits for a page, so all
 * of it is umm_alloc()'s: neither malloc's nor part of what is mirrored.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "drivers/dmirror/dmirror.h"
#include "drivers/dmirror/memory.h"

#define DMIRROR_NODES 64 /* that are looked at */

/* No memory is to be had for it when somebody waits for a page. */
static __thread bool by_device __attribute__((tls_model("initial-exec")));

void dmirror_memory_by_device(bool yes)
{
	by_device = yes;
}

static struct dmirror_memory *memory_of(struct hmm_device *dev)
{
	return (struct dmirror_memory *)dev;
}

static char *page_of(struct dmirror_memory *m, hmm_handle_t h)
{
	return m->chunk[h / DMIRROR_CHUNK_PAGES]->page + h % DMIRROR_CHUNK_PAGES * HMM_PAGE_SIZE;
}

/* A chunk of which every page is free; its number, or DMIRROR_CHUNKS.  Lock held. */
static unsigned chunk_new(struct dmirror_memory *m)
{
	unsigned nr = m->free_chunk;
	struct dmirror_chunk *c;

	if (nr != DMIRROR_CHUNKS) {
		m->free_chunk = m->chunk[nr]->next_chunk;
		return nr;
	}
	if (m->nchunks == DMIRROR_CHUNKS)
		return DMIRROR_CHUNKS;
	c = umm_alloc(m->space, sizeof(*c));
	if (!c)
		return DMIRROR_CHUNKS;
	c->page = umm_alloc(m->space, DMIRROR_CHUNK_PAGES * HMM_PAGE_SIZE);
	if (!c->page) {
		umm_free(m->space, c, sizeof(*c));
		return DMIRROR_CHUNKS;
	}
	m->chunk[m->nchunks] = c;
	return m->nchunks++;
}

/* Lock held. */
static bool memory_grow(struct dmirror_memory *m)
{
	unsigned nr = chunk_new(m);
	struct dmirror_chunk *c;

	if (nr == DMIRROR_CHUNKS)
		return false;
	c = m->chunk[nr];
	c->large = false;
	for (unsigned i = 0; i < DMIRROR_CHUNK_PAGES; i++) {
		c->next[i] = m->free;
		m->free = (hmm_handle_t)nr * DMIRROR_CHUNK_PAGES + i;
	}
	return true;
}

int dmirror_memory_take_large(struct dmirror_memory *m, const void *const src[], hmm_handle_t handle[],
			      _Atomic uint64_t *flags)
{
	struct dmirror_chunk *c;
	unsigned nr;

	pthread_mutex_lock(&m->lock);
	nr = chunk_new(m);
	c = nr == DMIRROR_CHUNKS ? NULL : m->chunk[nr];
	if (c) {
		c->large = true;
		c->flags = flags;
		c->used = DMIRROR_CHUNK_PAGES;
		m->pages += DMIRROR_CHUNK_PAGES;
		for (unsigned i = 0; i < DMIRROR_CHUNK_PAGES; i++) {
			c->refs[i] = 1;
			handle[i] = (hmm_handle_t)nr * DMIRROR_CHUNK_PAGES + i;
		}
	}
	pthread_mutex_unlock(&m->lock);
	for (unsigned i = 0; c && i < DMIRROR_CHUNK_PAGES; i++)
		memcpy(c->page + i * HMM_PAGE_SIZE, src[i], HMM_PAGE_SIZE);
	return c ? 0 : -ENOMEM;
}

void dmirror_memory_disown(struct dmirror_memory *m, const _Atomic uint64_t *flags)
{
	pthread_mutex_lock(&m->lock);
	for (unsigned i = 0; i < m->nchunks; i++)
		if (m->chunk[i]->flags == flags)
			m->chunk[i]->flags = NULL;
	pthread_mutex_unlock(&m->lock);
}

/* A large page is asked for back where only small ones are to be had: so it comes in pieces, as it would anyhow. */
static void touched(struct dmirror_memory *m, hmm_handle_t handle)
{
	struct dmirror_chunk *c;

	pthread_mutex_lock(&m->lock);
	c = m->chunk[handle / DMIRROR_CHUNK_PAGES];
	if (c->large && c->flags)
		*c->flags &= ~(uint64_t)DMIRROR_FLAG_FAIL_ALLOC;
	pthread_mutex_unlock(&m->lock);
}

bool dmirror_memory_is_large(struct dmirror_memory *m, hmm_handle_t handle)
{
	bool large;

	pthread_mutex_lock(&m->lock);
	large = m->chunk[handle / DMIRROR_CHUNK_PAGES]->large;
	pthread_mutex_unlock(&m->lock);
	return large;
}

static int memory_copy_in(struct hmm_device *dev, const void *const src[], hmm_handle_t handle[], unsigned n)
{
	struct dmirror_memory *m = memory_of(dev);
	unsigned taken = 0;

	pthread_mutex_lock(&m->lock);
	for (; taken < n && (m->free != HMM_HANDLE_NONE || memory_grow(m)); taken++) {
		hmm_handle_t h = m->free;
		struct dmirror_chunk *c = m->chunk[h / DMIRROR_CHUNK_PAGES];

		m->free = c->next[h % DMIRROR_CHUNK_PAGES];
		c->refs[h % DMIRROR_CHUNK_PAGES] = 1;
		c->used++;
		m->pages++;
		handle[taken] = h;
	}
	pthread_mutex_unlock(&m->lock);
	for (unsigned i = 0; i < taken; i++)
		memcpy(page_of(m, handle[i]), src[i], HMM_PAGE_SIZE);
	for (unsigned i = taken; i < n; i++)
		handle[i] = HMM_HANDLE_NONE;
	return (int)taken;
}

static int memory_copy_out(struct hmm_device *dev, const hmm_handle_t handle[], void *const dst[], int status[],
			   unsigned n)
{
	if (!by_device)
		touched(memory_of(dev), handle[0]);
	for (unsigned i = 0; i < n; i++) {
		memcpy(dst[i], page_of(memory_of(dev), handle[i]), HMM_PAGE_SIZE);
		status[i] = 0;
	}
	return 0;
}

static void memory_get(struct hmm_device *dev, const hmm_handle_t handle[], unsigned n)
{
	struct dmirror_memory *m = memory_of(dev);

	pthread_mutex_lock(&m->lock);
	for (unsigned i = 0; i < n; i++)
		m->chunk[handle[i] / DMIRROR_CHUNK_PAGES]->refs[handle[i] % DMIRROR_CHUNK_PAGES]++;
	pthread_mutex_unlock(&m->lock);
}

static void memory_put(struct hmm_device *dev, const hmm_handle_t handle[], unsigned n)
{
	struct dmirror_memory *m = memory_of(dev);

	pthread_mutex_lock(&m->lock);
	for (unsigned i = 0; i < n; i++) {
		struct dmirror_chunk *c = m->chunk[handle[i] / DMIRROR_CHUNK_PAGES];
		unsigned k = handle[i] % DMIRROR_CHUNK_PAGES;

		if (--c->refs[k])
			continue;
		m->pages--;
		c->used--;
		if (!c->large) {
			c->next[k] = m->free;
			m->free = handle[i];
		} else if (!c->used) {
			c->next_chunk = m->free_chunk;
			m->free_chunk = (unsigned)(handle[i] / DMIRROR_CHUNK_PAGES);
		}
	}
	pthread_mutex_unlock(&m->lock);
}

static void memory_stats(struct hmm_device *dev, struct hmm_device_stats *st)
{
	struct dmirror_memory *m = memory_of(dev);

	pthread_mutex_lock(&m->lock);
	*st = (struct hmm_device_stats){
		.pages = m->pages,
		.bytes_stored = m->pages * HMM_PAGE_SIZE,
		.bytes_ram = (uint64_t)m->nchunks * DMIRROR_CHUNK_PAGES * HMM_PAGE_SIZE,
		.bytes_capacity = (uint64_t)DMIRROR_CHUNKS * DMIRROR_CHUNK_PAGES * HMM_PAGE_SIZE,
		.pages_raw = m->pages,
	};
	pthread_mutex_unlock(&m->lock);
}

static int memory_node(struct hmm_device *dev)
{
	return memory_of(dev)->node;
}

static void memory_close(struct hmm_device *dev)
{
	dmirror_memory_fini(memory_of(dev));
}

#define PRIVATE_OPS(more)                                                                                       \
	{                                                                                                       \
		.name = "dmirror", .caps = HMM_DEV_MEMORY | HMM_DEV_RAM | HMM_DEV_MAP | HMM_DEV_FAULT | (more), \
		.copy_in = memory_copy_in, .copy_out = memory_copy_out, .get = memory_get, .put = memory_put,   \
		.stats = memory_stats, .close = memory_close, .map = dmirror_map, .unmap = dmirror_unmap,       \
		.settle = dmirror_settle,                                                                       \
	}

static const struct hmm_device_ops private_ops = PRIVATE_OPS(0);

/* The same, and the kernel's page table says that what is there is away. */
static const struct hmm_device_ops marked_ops = PRIVATE_OPS(HMM_DEV_MARKED);

static const struct hmm_device_ops coherent_ops = {
	.name = "dmirror",
	.caps = HMM_DEV_COHERENT | HMM_DEV_MAP | HMM_DEV_FAULT,
	.node = memory_node,
	.stats = memory_stats,
	.close = memory_close,
	.map = dmirror_map,
	.unmap = dmirror_unmap,
	.settle = dmirror_settle,
};

static const struct hmm_device_ops exclusive_ops = {
	.name = "dmirror",
	.caps = HMM_DEV_MEMORY | HMM_DEV_RAM | HMM_DEV_EXCLUSIVE,
	.copy_in = memory_copy_in,
	.copy_out = memory_copy_out,
	.get = memory_get,
	.put = memory_put,
	.stats = memory_stats,
	.close = memory_close,
};

/* Is @nr in a list such as "0-3,8"?  Where that cannot be read: @unknown. */
static bool listed(const char *name, int nr, bool unknown)
{
	FILE *f = fopen(name, "re");
	int first, last;
	bool found = false;

	if (!f)
		return unknown;
	while (!found && fscanf(f, "%d", &first) == 1) {
		last = first;
		if (fscanf(f, "-%d", &last) < 0)
			last = first;
		found = nr >= first && nr <= last;
		if (fgetc(f) != ',')
			break;
	}
	fclose(f);
	return found;
}

int dmirror_memory_node(unsigned nth)
{
	for (int nr = 0; nr < DMIRROR_NODES; nr++)
		if (listed("/sys/devices/system/node/has_memory", nr, false) &&
		    !listed("/sys/devices/system/node/has_cpu", nr, true) && !nth--)
			return nr;
	return -1;
}

int dmirror_memory_init(struct dmirror_memory *m, struct umm_space *space, const char *name, uint32_t caps)
{
	*m = (struct dmirror_memory){.space = space, .free = HMM_HANDLE_NONE, .free_chunk = DMIRROR_CHUNKS, .node = -1};
	m->chunk = umm_alloc(space, DMIRROR_CHUNKS * sizeof(*m->chunk));
	if (!m->chunk)
		return -ENOMEM;
	pthread_mutex_init(&m->lock, NULL);
	m->dev.ops = caps & HMM_DEV_COHERENT    ? &coherent_ops
		     : caps & HMM_DEV_EXCLUSIVE ? &exclusive_ops
		     : caps & HMM_DEV_MARKED    ? &marked_ops
						: &private_ops;
	snprintf(m->dev.spec, sizeof(m->dev.spec), "%s", name);
	return 0;
}

void dmirror_memory_fini(struct dmirror_memory *m)
{
	if (!m->chunk)
		return;
	for (unsigned i = 0; i < m->nchunks; i++) {
		umm_free(m->space, m->chunk[i]->page, DMIRROR_CHUNK_PAGES * HMM_PAGE_SIZE);
		umm_free(m->space, m->chunk[i], sizeof(*m->chunk[i]));
	}
	umm_free(m->space, m->chunk, DMIRROR_CHUNKS * sizeof(*m->chunk));
	m->chunk = NULL;
	pthread_mutex_destroy(&m->lock);
}
