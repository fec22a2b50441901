/* SPDX-License-Identifier: MIT */
/* The file or block device that pages are in: opening it, growing it. */
#ifndef HMM_FILE_BACKING_H
#define HMM_FILE_BACKING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct file_backing {
	int fd;
	bool block;     /* a block device: as large as it is */
	bool ram;       /* on tmpfs or ramfs: what is in it is in RAM */
	bool truncate;  /* it was there before us: leave it as empty as it was */
	uint32_t align; /* of buffers; 0: O_DIRECT is not in use */
	uint64_t size;  /* preallocated bytes */
	uint64_t max;   /* it may grow to */
	uint64_t step;
};

/**
 * file_backing_open() - @path is a directory, a file or a block device.
 * @limit: most bytes to use; 0: what is free, less a reserve.
 *
 * Returns 0 or -errno with a line in @err.
 */
int file_backing_open(struct file_backing *b, const char *path, uint64_t limit, char *err, size_t errlen);
/** What is in it goes, if it is a file that was there before: it was empty then. */
void file_backing_empty(struct file_backing *b);
void file_backing_close(struct file_backing *b);

/** file_backing_grow() - one step more, or what still fits.  Returns 0; -ENOSPC: no more; or another error. */
int file_backing_grow(struct file_backing *b);

#endif
