/* SPDX-License-Identifier: MIT */
#include "drivers/file/slots.h"

#include <errno.h>

#define WORDS (FILE_CHUNK / 64)
#define SEARCH 256u /* chunks to look at for a run that is long enough */

int file_slots_init(struct file_slots *s, struct drv_ram *ram, uint64_t max)
{
	uint64_t chunks = (max + FILE_CHUNK - 1) / FILE_CHUNK;

	if (drv_area_reserve(&s->table, chunks * FILE_CHUNK * sizeof(struct file_slot)))
		return -ENOMEM;
	if (drv_area_reserve(&s->bits, chunks * FILE_CHUNK / 8))
		goto undo_table;
	if (drv_area_reserve(&s->chunk, chunks * sizeof(uint16_t)))
		goto undo_bits;
	s->ram = ram;
	s->max = max;
	pthread_mutex_init(&s->lock, NULL);
	return 0;

undo_bits:
	drv_area_release(&s->bits);
undo_table:
	drv_area_release(&s->table);
	return -ENOMEM;
}

void file_slots_exit(struct file_slots *s)
{
	pthread_mutex_destroy(&s->lock);
	drv_area_release(&s->chunk);
	drv_area_release(&s->bits);
	drv_area_release(&s->table);
}

static inline uint64_t *bits(const struct file_slots *s)
{
	return (uint64_t *)s->bits.base;
}

static inline uint16_t *chunks(const struct file_slots *s)
{
	return (uint16_t *)s->chunk.base;
}

int file_slots_extend(struct file_slots *s, uint64_t nr)
{
	uint64_t old = atomic_load_explicit(&s->nr, memory_order_relaxed);
	uint64_t nr_chunks = (nr + FILE_CHUNK - 1) / FILE_CHUNK;
	uint64_t cost = (nr - old) * sizeof(struct file_slot) + (nr - old) / 8 + (nr - old) / FILE_CHUNK * 2;

	if (drv_area_extend(&s->table, nr * sizeof(struct file_slot)) ||
	    drv_area_extend(&s->bits, nr_chunks * FILE_CHUNK / 8) ||
	    drv_area_extend(&s->chunk, nr_chunks * sizeof(uint16_t)))
		return -ENOMEM;
	if (!drv_ram_charge(s->ram, cost))
		return -ENOMEM;

	pthread_mutex_lock(&s->lock);
	for (uint64_t c = old / FILE_CHUNK; c < nr_chunks; c++) {
		uint64_t from = c * FILE_CHUNK > old ? c * FILE_CHUNK : old;
		uint64_t to = (c + 1) * FILE_CHUNK < nr ? (c + 1) * FILE_CHUNK : nr;

		chunks(s)[c] += (uint16_t)(to - from);
	}
	/* The end of the last chunk does not exist: in use for ever, or until the next extension. */
	for (uint64_t i = old; i < nr_chunks * FILE_CHUNK; i++) {
		if (i < nr)
			bits(s)[i / 64] &= ~((uint64_t)1 << i % 64);
		else
			bits(s)[i / 64] |= (uint64_t)1 << i % 64;
	}
	s->nfree += nr - old;
	atomic_store_explicit(&s->nr, nr, memory_order_release);
	pthread_mutex_unlock(&s->lock);
	return 0;
}

static void take(struct file_slots *s, uint64_t from, unsigned n, uint64_t slot[])
{
	for (unsigned i = 0; i < n; i++) {
		slot[i] = from + i;
		bits(s)[(from + i) / 64] |= (uint64_t)1 << (from + i) % 64;
		chunks(s)[(from + i) / FILE_CHUNK]--;
	}
	s->nfree -= n;
	s->cursor = from + n;
}

/* Goes over runs of free slots of chunk @c; *@run and *@len go on from the chunk before. */
static bool run_in_chunk(const struct file_slots *s, uint64_t c, unsigned want, uint64_t *run, unsigned *len)
{
	for (unsigned w = 0; w < WORDS; w++) {
		uint64_t word = bits(s)[c * WORDS + w];
		unsigned at = 0;

		while (at < 64) {
			uint64_t rest = word >> at;
			unsigned n;

			if (rest & 1) {
				rest = ~rest;
				n = rest ? (unsigned)__builtin_ctzll(rest) : 64;
				*len = 0;
			} else {
				n = rest ? (unsigned)__builtin_ctzll(rest) : 64;
				if (n > 64 - at)
					n = 64 - at;
				if (!*len)
					*run = c * FILE_CHUNK + w * 64 + at;
				*len += n;
				if (*len >= want)
					return true;
			}
			at += n;
		}
	}
	return false;
}

static bool find_run(const struct file_slots *s, uint64_t nr_chunks, unsigned want, uint64_t *run)
{
	uint64_t c = s->cursor / FILE_CHUNK % nr_chunks;
	unsigned len = 0;

	for (uint64_t i = 0; i < nr_chunks + 1 && i < SEARCH; i++) {
		if (!chunks(s)[c])
			len = 0;
		else if (run_in_chunk(s, c, want, run, &len))
			return true;
		if (++c == nr_chunks) {
			c = 0;
			len = 0;
		}
	}
	return false;
}

unsigned file_slots_take(struct file_slots *s, uint64_t slot[], unsigned n)
{
	uint64_t nr_chunks, c, run;
	unsigned got = 0;

	pthread_mutex_lock(&s->lock);
	nr_chunks = (atomic_load_explicit(&s->nr, memory_order_relaxed) + FILE_CHUNK - 1) / FILE_CHUNK;
	if (!nr_chunks || !s->nfree)
		goto out;
	if (n > s->nfree)
		n = (unsigned)s->nfree;
	if (find_run(s, nr_chunks, n, &run)) {
		take(s, run, n, slot);
		got = n;
		goto out;
	}
	c = s->cursor / FILE_CHUNK % nr_chunks;
	for (uint64_t i = 0; i < nr_chunks && got < n; i++, c = (c + 1) % nr_chunks) {
		for (unsigned w = 0; chunks(s)[c] && w < WORDS && got < n; w++) {
			uint64_t word;

			while (got < n && (word = ~bits(s)[c * WORDS + w])) {
				take(s, c * FILE_CHUNK + w * 64 + (unsigned)__builtin_ctzll(word), 1, slot + got);
				got++;
			}
		}
	}
out:
	pthread_mutex_unlock(&s->lock);
	return got;
}

void file_slots_free(struct file_slots *s, const uint64_t slot[], unsigned n)
{
	pthread_mutex_lock(&s->lock);
	for (unsigned i = 0; i < n; i++) {
		bits(s)[slot[i] / 64] &= ~((uint64_t)1 << slot[i] % 64);
		chunks(s)[slot[i] / FILE_CHUNK]++;
	}
	s->nfree += n;
	pthread_mutex_unlock(&s->lock);
}
