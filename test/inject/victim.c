/* SPDX-License-Identifier: MIT */
/*
 * inject-victim: what a program does to memory that is away, on a budget of half
 * of it.  Every page is checked.  Exits with 0 after a line "right"; with 3 after
 * "refused: WHAT: ERRNO" where a call failed; with 1 where something is wrong.
 */
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <threads.h>
#include <time.h>

#include "../run/victim.h"

#define PAGES (36 * V_MIB / V_PAGE)
#define PIECE 1024ul
#define TICK_US 500000 /* of the supervisor */
#define MANY 320ul     /* mappings that cannot merge: a walk registers some of them before it makes sure of any */

static void refused(const char *what)
{
	printf("refused: %s: %s\n", what, strerrorname_np(errno));
	fflush(stdout);
	_exit(3);
}

static void check(const char *p, size_t from, size_t n, uint64_t gen)
{
	for (size_t i = 0; i < n; i++)
		if (v_check(p + i * V_PAGE, from + i, 1, gen, V_HALF)) {
			fflush(stdout);
			_exit(1);
		}
}

static char *many_new(void)
{
	char *p = mmap(NULL, MANY * V_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		refused("mmap");
	for (size_t i = 0; i < MANY; i++)
		v_fill(p + i * V_PAGE, PAGES + i, 1, 0, V_HALF);
	for (size_t i = 1; i < MANY; i += 2)
		if (mprotect(p + i * V_PAGE, V_PAGE, PROT_READ))
			refused("mprotect");
	return p;
}

static void *thread_main(void *arg)
{
	check(arg, 0, PIECE, 0);
	return NULL;
}

/* For who judges: of whom a line must be. */
static void note(const char *what, pid_t pid)
{
	const char *run = getenv("HMM_INJECT_RUN");
	char path[256], text[64];
	int fd;

	if (!run)
		return;
	snprintf(path, sizeof(path), "%s.pids", run);
	fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
	if (fd < 0)
		return;
	(void)!write(fd, text, (size_t)snprintf(text, sizeof(text), "%s %d\n", what, (int)pid));
	close(fd);
}

static int reap(pid_t pid)
{
	int status;

	if (pid < 0)
		refused("fork");
	if (waitpid(pid, &status, 0) != pid)
		refused("waitpid");
	if (WIFSIGNALED(status)) {
		/* As it died so do we: of SIGBUS there must be a line, of SIGKILL too, and it must be of that child. */
		note("child", pid);
		signal(WTERMSIG(status), SIG_DFL);
		kill(getpid(), WTERMSIG(status));
	}
	return WEXITSTATUS(status);
}

static int thrd_main(void *arg)
{
	return 0;
}

/* A userfaultfd of the program's: its memory comes back before it has it. */
static void ioctl_of_its_own(void)
{
	struct uffdio_api api = {.api = UFFD_API};
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	char *p = mmap(NULL, V_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct uffdio_register reg = {.range = {(uintptr_t)p, V_PAGE}, .mode = UFFDIO_REGISTER_MODE_MISSING};

	if (fd < 0)
		return;
	if (ioctl(fd, UFFDIO_API, &api) || ioctl(fd, UFFDIO_REGISTER, &reg))
		refused("userfaultfd");
	munmap(p, V_PAGE);
	close(fd);
}

/* hmm stat, of hmm run itself. */
static int stat_of(const char *argv0)
{
	char command[512];

	snprintf(command, sizeof(command), "%.*s/hmm stat %d --json >/dev/null", (int)(strrchr(argv0, '/') - argv0),
		 argv0, (int)getppid());
	return system(command);
}

static char *inherited;
static int left[2]; /* its other end closes with who has left */

static int heir_main(void *arg)
{
	char c;

	close(left[1]);
	if (read(left[0], &c, 1))
		_exit(1);
	usleep(3 * TICK_US); /* what is wrong shows when the supervisor has looked */
	check(inherited, 0, PAGES, 0);
	syscall(SYS_exit_group, 7);
	return 1;
}

/* A forked child leaves its memory to who shares it; that one is waited for. */
static void leave_to_heir(char *p)
{
	int status = 0;
	pid_t pid;

	prctl(PR_SET_CHILD_SUBREAPER, 1);
	inherited = p;
	if (pipe(left))
		refused("pipe");
	pid = fork();
	if (!pid) {
		char *stack = mmap(NULL, V_MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		check(p, 0, 1, 0);
		if (stack == MAP_FAILED || clone(heir_main, stack + V_MIB, CLONE_VM | SIGCHLD, NULL) < 0)
			refused("clone");
		_exit(0);
	}
	close(left[1]);
	if (reap(pid))
		_exit(3);
	/* An agent may come to us as well. */
	while (wait(&status) > 0)
		if (WIFEXITED(status) && WEXITSTATUS(status) == 7)
			return;
	puts("the heir is not right");
	fflush(stdout);
	_exit(1);
}

int main(int argc, char **argv)
{
	char *p, *q, *many;
	pthread_t t;
	pid_t pid;
	int rc;

	bool raw = true;

	if (argc > 1 && !strcmp(argv[1], "exec")) /* by ourselves */
		return 0;
	if (argc > 1 && !strcmp(argv[1], "no-raw")) /* a raw fork has nothing of what is managed then */
		raw = false;
	note("program", getpid());
	many = many_new();
	p = mmap(NULL, PAGES * V_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (p == MAP_FAILED)
		refused("mmap");
	for (size_t i = 0; i < PAGES; i++)
		v_fill(p + i * V_PAGE, i, 1, 0, V_HALF);
	check(p, 0, PAGES, 0);
	if (argc > 1 && !strcmp(argv[1], "heir")) {
		leave_to_heir(p);
		puts("right");
		return 0;
	}
	if (madvise(p + 8 * PIECE * V_PAGE, 64 * V_PAGE, MADV_WIPEONFORK))
		refused("madvise");
	pid = fork();
	if (!pid) {
		check(p, 0, 8 * PIECE, 0);
		for (size_t i = 0; i < 64 * V_PAGE; i++)
			if (p[8 * PIECE * V_PAGE + i]) {
				puts("not wiped");
				fflush(stdout);
				_exit(1);
			}
		_exit(0);
	}
	rc = reap(pid);
	if (rc)
		return rc;
	rc = pthread_create(&t, NULL, thread_main, p);
	if (rc) {
		errno = rc;
		refused("pthread_create");
	}
	pthread_join(t, NULL);
	q = mremap(p + PIECE * V_PAGE, PIECE * V_PAGE, 2 * PIECE * V_PAGE, MREMAP_MAYMOVE);
	if (q == MAP_FAILED)
		refused("mremap");
	check(q, PIECE, PIECE, 0);
	for (size_t i = 0; i < PIECE * V_PAGE; i += V_PAGE)
		if (q[PIECE * V_PAGE + i]) {
			puts("what mremap() added is not empty");
			return 1;
		}
	if (munmap(p, PIECE * V_PAGE))
		refused("munmap");
	if (madvise(p + 2 * PIECE * V_PAGE, PIECE * V_PAGE, MADV_DONTNEED))
		refused("madvise");
	for (size_t i = 0; i < PIECE * V_PAGE; i += 512)
		if (p[2 * PIECE * V_PAGE + i]) {
			puts("what was dropped is not empty");
			return 1;
		}
	pid = raw ? (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0) : fork();
	if (!pid) {
		check(p + 3 * PIECE * V_PAGE, 3 * PIECE, PIECE, 0);
		_exit(0);
	}
	rc = reap(pid);
	if (rc)
		return rc;
	pid = vfork();
	if (!pid) {
		execl("/proc/self/exe", "inject-victim", "exec", NULL);
		_exit(4);
	}
	rc = reap(pid);
	if (rc == 4)
		refused("exec");
	/* What the library in the program has in its own hands. */
	FILE *f = popen("exit 0", "r");
	if (!f)
		refused("popen");
	if (pclose(f) < 0)
		refused("pclose");
	thrd_t thrd;
	if (thrd_create(&thrd, thrd_main, NULL) != thrd_success) {
		errno = EAGAIN;
		refused("thrd_create");
	}
	thrd_join(thrd, NULL);
	pid = fork();
	if (!pid) {
		if (daemon(0, 0))
			_exit(5);
		check(p + 3 * PIECE * V_PAGE, 3 * PIECE, PIECE, 0);
		_exit(0);
	}
	rc = reap(pid);
	if (rc == 5)
		refused("daemon");
	ioctl_of_its_own();
	rc = stat_of(argv[0]);
	if (rc < 0)
		refused("system");
	if (!WIFEXITED(rc) || WEXITSTATUS(rc) > 2) {
		printf("hmm stat says %#x\n", rc);
		return 1;
	}
	rc = system("exit 7");
	if (rc < 0)
		refused("system");
	if (!WIFEXITED(rc) || (WEXITSTATUS(rc) != 7 && WEXITSTATUS(rc) != 127)) {
		printf("system() says %#x\n", rc);
		return 1;
	}
	check(p + 3 * PIECE * V_PAGE, 3 * PIECE, PAGES - 3 * PIECE, 0);
	check(many, PAGES, MANY, 0);
	puts("right");
	return 0;
}
