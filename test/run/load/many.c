/* SPDX-License-Identifier: MIT */
/*
 * many PROCESSES MIB: processes of MIB each.
 * When they have what they want, and have gone through it, a line says so; at the
 * end of standard input they look at all of it again.
 */
#include <pthread.h>
#include <sys/wait.h>

#include "../victim.h"

#define SEED 17

static pthread_barrier_t *barrier;

static int run(unsigned me, size_t npages)
{
	char *mem = v_map(npages * V_PAGE), c;
	int bad;

	v_fill_all(mem, npages, SEED + me, 1, V_QUARTER);
	bad = v_check_all(mem, npages, SEED + me, 1, V_QUARTER);
	if (pthread_barrier_wait(barrier) == PTHREAD_BARRIER_SERIAL_THREAD) {
		puts("ready");
		fflush(stdout);
	}
	while (read(0, &c, 1) > 0)
		;
	return bad || v_check_all(mem, npages, SEED + me, 1, V_QUARTER);
}

int main(int argc, char **argv)
{
	unsigned nproc = argc == 3 ? (unsigned)atoi(argv[1]) : 0;
	pthread_barrierattr_t attr;
	size_t npages;
	int bad = 0;

	if (!nproc) {
		fprintf(stderr, "usage: many PROCESSES MIB\n");
		return 2;
	}
	npages = (size_t)atoi(argv[2]) * V_MIB / V_PAGE;
	barrier = mmap(NULL, V_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	pthread_barrierattr_init(&attr);
	pthread_barrierattr_setpshared(&attr, PTHREAD_PROCESS_SHARED);
	pthread_barrier_init(barrier, &attr, nproc);
	for (unsigned i = 0; i < nproc; i++) {
		pid_t pid = fork();

		if (pid < 0) {
			perror("fork");
			return 1;
		}
		if (!pid)
			_exit(run(i, npages));
	}
	for (unsigned i = 0; i < nproc; i++) {
		int status;

		if (wait(&status) < 0 || status)
			bad = 1;
	}
	return bad;
}
