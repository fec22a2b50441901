/* SPDX-License-Identifier: MIT */
/*
 * spin MIB CHILDREN ROUNDS [raw [hidden|shown [stops]]]: turns its memory over and over, checking all of
 * it, alone or with children that do the same; ROUNDS 0: for ever.  Says "begins", "spinning"
 * when it has been through once, and each wrong byte.  raw: children that no hook
 * sees being made; hidden: nor does their environment say whose they
 * are; stops: they stop before they look at anything.
 */
#include <fcntl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "../victim.h"

static int spin(char *p, size_t n, unsigned rounds, unsigned gen)
{
	dprintf(1, "begins %d\n", (int)getpid());
	for (unsigned r = 0; !rounds || r < rounds; r++, gen++) {
		for (size_t i = 0; i < n; i++) {
			if (v_check(p + i * V_PAGE, i, 1, gen, V_QUARTER))
				return 1;
			v_fill(p + i * V_PAGE, i, 1, gen + 1, V_QUARTER);
		}
		if (!r)
			dprintf(1, "spinning %d\n", (int)getpid());
	}
	return v_check_all(p, n, 1, gen, V_QUARTER) != 0;
}

static void hide(void)
{
	unsigned long start = 0, end = 0;
	char buf[2048] = "", *at = buf;
	int fd = open("/proc/self/stat", O_RDONLY);

	if (fd < 0 || read(fd, buf, sizeof(buf) - 1) <= 0)
		_exit(2);
	close(fd);
	for (int i = 1; i < 50 && at; i++) /* env_start, and env_end after it */
		at = strchr(at + 1, ' ');
	if (!at || sscanf(at, "%lu %lu", &start, &end) != 2 || !start)
		_exit(2);
	memset((void *)start, 0, end - start);
}

int main(int argc, char **argv)
{
	if (argc < 4)
		return 2;
	size_t n = strtoul(argv[1], NULL, 10) * V_MIB / V_PAGE;
	unsigned children = (unsigned)atoi(argv[2]), rounds = (unsigned)atoi(argv[3]);
	char *p = v_map(n * V_PAGE);
	int bad, status;

	v_fill_all(p, n, 1, 0, V_QUARTER);
	if (argc > 5 && !strcmp(argv[5], "hidden"))
		hide();
	for (unsigned c = 0; c < children; c++) {
		pid_t pid = argc > 4 ? (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0) : fork();

		if (!pid && argc > 6)
			raise(SIGSTOP);
		if (!pid)
			_exit(spin(p, n, rounds, 0));
		if (pid < 0)
			return 1;
	}
	bad = spin(p, n, rounds, 0);
	while (wait(&status) > 0)
		bad |= status != 0;
	return bad;
}
