/* SPDX-License-Identifier: MIT */
/* Judging a program before it is started. */
#include "run/image.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "umm/internal.h"

static int executable(const char *path)
{
	struct stat st;

	if (stat(path, &st))
		return -errno;
	if (!S_ISREG(st.st_mode) || access(path, X_OK))
		return -EACCES;
	return 0;
}

int run_image_find(const char *name, char *path, size_t len)
{
	const char *dirs = getenv("PATH");
	int rc = -ENOENT;

	if (strchr(name, '/')) {
		if ((size_t)snprintf(path, len, "%s", name) >= len)
			return -ENAMETOOLONG;
		return executable(path);
	}
	if (!dirs)
		dirs = "/usr/local/bin:/usr/bin:/bin";
	for (;;) {
		size_t n = strcspn(dirs, ":");

		if ((size_t)snprintf(path, len, "%.*s%s%s", (int)n, dirs, n ? "/" : "./", name) < len) {
			int one = executable(path);

			if (!one)
				return 0;
			if (one == -EACCES)
				rc = one;
		}
		if (!dirs[n])
			return rc;
		dirs += n + 1;
	}
}

/* Who loads the program of @fd, by its own word.  1; 0: nobody does. */
static int loader_of(int fd, const Elf64_Ehdr *eh, char *loader, size_t len)
{
	for (unsigned i = 0; i < eh->e_phnum; i++) {
		Elf64_Phdr ph;

		if (pread(fd, &ph, sizeof(ph), (off_t)(eh->e_phoff + (uint64_t)i * eh->e_phentsize)) != sizeof(ph))
			break;
		if (ph.p_type != PT_INTERP)
			continue;
		memset(loader, 0, len);
		if (pread(fd, loader, ph.p_filesz < len ? ph.p_filesz : len - 1, (off_t)ph.p_offset) < 0)
			loader[0] = 0;
		loader[len - 1] = 0;
		return 1;
	}
	return 0;
}

/* Ours: that of the libc which the preload library was built for. */
static int our_loader(char *loader, size_t len)
{
	int fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
	Elf64_Ehdr eh;
	int rc = 0;

	if (fd < 0)
		return 0;
	if (read(fd, &eh, sizeof(eh)) == sizeof(eh))
		rc = loader_of(fd, &eh, loader, len);
	close(fd);
	return rc;
}

/* What is not known is run: a loader of glibc may have any name (LSB's, one of a version, one of a store of packages).
 */
static bool is_of_another(const char *loader)
{
	static const char *const known[] = {"ld-musl-", "ld-uClibc", "ld64-uClibc", "linker64"};
	const char *slash = strrchr(loader, '/'), *name = slash ? slash + 1 : loader;

	for (unsigned i = 0; i < sizeof(known) / sizeof(known[0]); i++)
		if (!strncmp(name, known[i], strlen(known[i])))
			return true;
	return false;
}

static int check_elf(int fd, const Elf64_Ehdr *eh, char *why, size_t len)
{
	char theirs[512], ours[512];
	struct stat st, is;

	if (eh->e_ident[EI_CLASS] != ELFCLASS64 || eh->e_machine != EM_X86_64) {
		snprintf(why, len, "not a 64-bit x86 program; the preload library cannot enter it");
		return -ENOEXEC;
	}
	/* Whose user or group it takes on is ours already: then nothing is kept out.  Without its x the bit of a group
	 * says something else. */
	if (!fstat(fd, &st) && (((st.st_mode & S_ISUID) && st.st_uid != getuid()) ||
				((st.st_mode & S_ISGID) && (st.st_mode & S_IXGRP) && st.st_gid != getgid()))) {
		snprintf(why, len,
			 "a set-user-id or set-group-id program; the dynamic loader keeps preload libraries out of it");
		return -ENOEXEC;
	}
	if (loader_of(fd, eh, theirs, sizeof(theirs))) {
		if (!is_of_another(theirs))
			return 0;
		snprintf(why, len,
			 "a program of another libc, by its loader %.100s; the preload library cannot enter it",
			 theirs);
		return -ENOEXEC;
	}
	/* The loader itself, as a command: it loads the program that it is given, and the library with it. */
	if (our_loader(ours, sizeof(ours)) && !fstat(fd, &st) && !stat(ours, &is) && st.st_dev == is.st_dev &&
	    st.st_ino == is.st_ino)
		return 0;
	snprintf(why, len, "statically linked; the preload library cannot enter it");
	return -ENOEXEC;
}

bool run_image_is_text(const char *path)
{
	char head[256];
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, head, sizeof(head));

	if (fd >= 0)
		close(fd);
	return n < 0 || !memchr(head, 0, (size_t)n);
}

int run_image_check(const char *path, char *why, size_t len)
{
	char file[4096];

	snprintf(file, sizeof(file), "%s", path);
	for (unsigned depth = 0; depth < 5; depth++) {
		union {
			Elf64_Ehdr eh;
			char text[256];
		} head = {0};
		int fd = open(file, O_RDONLY | O_CLOEXEC);
		ssize_t n;

		if (fd < 0)
			return 0; /* executable but not readable: the kernel will judge */
		n = read(fd, &head, sizeof(head) - 1);
		if (n >= (ssize_t)sizeof(head.eh) && !memcmp(head.eh.e_ident, ELFMAG, SELFMAG)) {
			int rc = check_elf(fd, &head.eh, why, len);

			close(fd);
			return rc;
		}
		close(fd);
		if (n < 2 || memcmp(head.text, "#!", 2))
			return 0; /* the kernel's to judge, which may have been told of a reader (binfmt_misc) */
		char *at = head.text + 2 + strspn(head.text + 2, " \t");
		at[strcspn(at, " \t\n")] = 0;
		snprintf(file, sizeof(file), "%s", at);
	}
	return 0;
}

int run_kernel_features(int uffd, uint64_t need, uint64_t *got)
{
	return umm_uffd_api(uffd, need, 0, got);
}
