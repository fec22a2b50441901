/* SPDX-License-Identifier: MIT */
/* Can this program be entered? */
#ifndef RUN_IMAGE_H
#define RUN_IMAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/** The file that @name means, by PATH as execvp() does.  0, -ENOENT, -EACCES. */
int run_image_find(const char *name, char *path, size_t len);

/**
 * run_image_check() - whether the preload library gets into @path.
 * A script is judged by its interpreter.  0, or -ENOEXEC with the reason in @why.
 */
int run_image_check(const char *path, char *why, size_t len);

/** run_image_is_text() - can @path be a script that does not say who reads it?  Also if it cannot be looked at. */
bool run_image_is_text(const char *path);

/** Whether a userfaultfd agrees on @need.  0 or -errno. */
int run_kernel_features(int uffd, uint64_t need, uint64_t *got);

#endif
