/* SPDX-License-Identifier: MIT */
/*
 * mask WHAT[,WHAT...] PROGRAM [ARGS]: run a program on a kernel that lacks
 * something that hmm can do without.  What it starts lacks it, too.
 */
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "hmm_uapi.h"

static const struct {
	const char *name;
	unsigned nr;      /* of the system call */
	unsigned request; /* an ioctl's; 0: whatever its arguments are */
	unsigned error;
} masks[] = {
	{"procmap-query", SYS_ioctl, (unsigned)PROCMAP_QUERY, ENOTTY},
	{"userfaultfd-call", SYS_userfaultfd, 0, EPERM},
};

static int install(unsigned nr, unsigned request, unsigned error)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 0, 5),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, nr, 0, 3),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[1])),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, request, 0, request ? 1 : 0),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | error),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog prog = {sizeof(code) / sizeof(code[0]), code};

	return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog);
}

int main(int argc, char **argv)
{
	if (argc < 3) {
		fprintf(stderr, "usage: mask WHAT[,WHAT...] PROGRAM [ARGS]\n");
		return 2;
	}
	for (char *what = strtok(argv[1], ","); what; what = strtok(NULL, ",")) {
		unsigned i = 0;

		while (i < sizeof(masks) / sizeof(masks[0]) && strcmp(masks[i].name, what))
			i++;
		if (i == sizeof(masks) / sizeof(masks[0]) || install(masks[i].nr, masks[i].request, masks[i].error)) {
			fprintf(stderr, "mask: %s: %s\n", what,
				i == sizeof(masks) / sizeof(masks[0]) ? "unknown" : strerror(errno));
			return 2;
		}
	}
	execvp(argv[2], argv + 2);
	perror(argv[2]);
	return 127;
}
