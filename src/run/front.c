/* SPDX-License-Identifier: MIT */
/*
 * hmm run, as seen by who started it.
 *
 * DOC: the front
 *
 * It starts the supervisor, then the program, and from then on stands for the
 * program: same process group (so the terminal's signals reach the program by
 * themselves), signals sent to it alone are passed on, it stops when the
 * program stops and goes on when it is told to, and ends as the program ended.
 * It keeps nothing else: the engine is not in here, a stopped front stops
 * nobody's faults.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <limits.h>
#include <linux/kcmp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cli/cli.h"
#include "cli/ends.h"
#include "cli/options.h"
#include "hmm.h"
#include "hmm/size.h"
#include "run/coming.h"
#include "run/image.h"
#include "run/ram.h"
#include "run/run.h"
#include "umm/inside.h"

#define EXIT_OURS 125 /* as env(1) */
#define EXIT_CANNOT 126
#define EXIT_NOT_FOUND 127
#define LOOK_MS 50
#define HURRY_MS 1000
#define RAM_MIN (16ull << 20) /* the engine itself needs a good part of it */

extern char **environ;

static const char usage[] = "usage: hmm run [--ram SIZE|N%] [--to CHAIN] [--stats FILE] [--lend-userfaultfd] [-v] "
			    "[--] PROGRAM [ARGS]\n";

static int fail(int status, const char *what, const char *why)
{
	fprintf(stderr, "hmm run: %s%s%s\n", what, why ? ": " : "", why ? why : "");
	return status;
}

/* --------------------------------------------------------------- what is asked */

static int parse_ram(const char *text, uint64_t *bytes)
{
	size_t n = strlen(text);

	if (n && text[n - 1] == '%') {
		char *end;
		double share = strtod(text, &end);

		if (end != text + n - 1 || !(share > 0) || share > 100)
			return -EINVAL;
		*bytes = (uint64_t)((double)run_ram_total() * share / 100);
	} else {
		int rc = hmm_size_parse(text, bytes);

		if (rc)
			return rc;
	}
	return *bytes < RAM_MIN ? -ERANGE : 0;
}

/* Can the kernel do for us what we need?  Asked of it, not of its version. */
static int check_kernel(char *why, size_t len)
{
	uint64_t need = (1ull << 16) | (1ull << 14) | (1ull << 2) | (1ull << 3) | (1ull << 6) | (1ull << 8), got;
	int fd;

	if (syscall(SYS_kcmp, getpid(), getpid(), KCMP_VM, 0, 0)) {
		/* Who lives in which address space would be a guess. */
		snprintf(why, len, "kcmp(2): %s; a container's seccomp profile must allow it (see hmm doctor)",
			 strerror(errno));
		return -errno;
	}
	fd = umm_inside_uffd();
	if (fd == -EPERM || fd == -EACCES || fd == -ENOENT) {
		snprintf(why, len,
			 "no permission for userfaultfd; as root: chmod a+rw /dev/userfaultfd, or sysctl -w "
			 "vm.unprivileged_userfaultfd=1 (see hmm doctor)");
		return fd;
	}
	if (fd < 0) {
		snprintf(why, len, "userfaultfd: %s (see hmm doctor)", strerror(-fd));
		return fd;
	}
	int rc = run_kernel_features(fd, need, &got);
	close(fd);
	if (rc)
		snprintf(why, len, "this kernel cannot move pages (Linux 6.8 or later can; see hmm doctor)");
	return rc;
}

/* ------------------------------------------------------------------- children */

/* Timers outlast an exec, and are the program's, but no fork. */
static const int timers[] = {ITIMER_REAL, ITIMER_VIRTUAL, ITIMER_PROF};

#define TIMERS (sizeof(timers) / sizeof(timers[0]))

static void timers_take(struct itimerval left[TIMERS])
{
	for (unsigned i = 0; i < TIMERS; i++)
		if (setitimer(timers[i], &(struct itimerval){0}, &left[i]))
			left[i] = (struct itimerval){0};
}

static void timers_give(const struct itimerval left[TIMERS])
{
	for (unsigned i = 0; i < TIMERS; i++)
		setitimer(timers[i], &left[i], NULL);
}

/* The library that is loaded into the program: beside this command, or where it was installed. */
static int find_preload(char *path, size_t len)
{
	char exe[1024];
	static const char *const places[] = {"", "../lib/", "../" HMM_LIBDIR "/", "run/", "../run/"};
	ssize_t n = readlink("/proc/self/exe", exe, sizeof(exe) - 1);

	if (n <= 0)
		return -ENOENT;
	exe[n] = 0;
	*strrchr(exe, '/') = 0;
	for (unsigned i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
		char at[1200], *real;

		snprintf(at, sizeof(at), "%s/%slibhmm-preload.so", exe, places[i]);
		real = realpath(at, NULL);
		if (!real)
			continue;
		int fits = strlen(real) < len && !strpbrk(real, " :\n");
		if (fits)
			strcpy(path, real);
		free(real);
		return fits ? 0 : -EINVAL;
	}
	return -ENOENT;
}

/* 0, or -1: why has been said. */
static int start_supervisor(const struct run_options *opt, int *fd, pid_t *pid, struct run_ready *ready)
{
	int sv[2];
	pid_t front = getpid();

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sv)) {
		fail(0, "socketpair", strerror(errno));
		return -1;
	}
	*pid = fork();
	if (*pid < 0) {
		fail(0, "fork", strerror(errno));
		close(sv[0]);
		close(sv[1]);
		return -1;
	}
	if (!*pid) {
		close(sv[0]);
		supervisor_main(opt, sv[1], front);
	}
	close(sv[1]);
	*fd = sv[0];
	if (recv(*fd, ready, sizeof(*ready), 0) == sizeof(*ready))
		return ready->rc ? -1 : 0;
	fail(0, "the supervisor died before the program was started", NULL);
	close(*fd);
	return -1;
}

/*
 * Where the figures go; opened now, not when all is over.  A file of its own is opened again then, by its true name:
 * the supervisor leaves the caller's directory, and nothing is held.  The rest is held: a pipe, what has no name but
 * one that is something else there (/dev/stdout, /dev/fd/N), and what the program writes to, which must not be emptied.
 */
static int open_stats(struct run_options *opt, char name[PATH_MAX])
{
	struct stat st, is;

	opt->stats_fd = open(opt->stats_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
	if (opt->stats_fd < 0 || fstat(opt->stats_fd, &st))
		return -errno;
	for (int fd = 0; fd <= 2; fd++)
		if (!fstat(fd, &is) && is.st_dev == st.st_dev && is.st_ino == st.st_ino)
			return 0;
	if (!S_ISREG(st.st_mode) || !realpath(opt->stats_path, name) || stat(name, &is) || is.st_dev != st.st_dev ||
	    is.st_ino != st.st_ino)
		return 0;
	close(opt->stats_fd);
	opt->stats_fd = -1;
	opt->stats_path = name;
	return 0;
}

/* A script that does not say by what: the shell's, as execvp() has it.  Returns errno. */
static int exec_by_shell(char **argv, const char *path)
{
	size_t n = 1;

	while (argv[n - 1])
		n++;
	char **by_shell = malloc((n + 1) * sizeof(*by_shell));
	if (!by_shell)
		return ENOMEM;
	by_shell[0] = "/bin/sh";
	by_shell[1] = (char *)path;
	memcpy(by_shell + 2, argv + 1, (n - 1) * sizeof(*argv));
	syscall(SYS_execve, by_shell[0], by_shell, environ);
	return errno;
}

/*
 * Who started us may have closed them: what is opened next would be one of them, and what is said to it go wrong.  The
 * program finds them closed: this goes with the exec.
 */
static int fill_streams(void)
{
	for (int fd = 0; fd <= 2; fd++)
		if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", O_RDWR | O_CLOEXEC) != fd)
			return -errno;
	return 0;
}

static void exec_program(char **argv, const char *path, const struct run_ready *ready, const char *preload,
			 const sigset_t *mask, sighandler_t chld, int failed_fd)
{
	/* Whom systemd's sockets and watchdog are for, by number: the program looks whether that is its own. */
	static const char *const meant[] = {"LISTEN_PID", "WATCHDOG_PID"};
	const char *theirs = getenv("LD_PRELOAD");
	char own[16];
	size_t len = strlen(preload) + (theirs ? strlen(theirs) : 0) + 2;
	char run[1024], *both = malloc(len);
	int err = ENOMEM;

	for (unsigned i = 0; i < sizeof(meant) / sizeof(meant[0]); i++) {
		const char *pid = getenv(meant[i]);

		if (pid && strtol(pid, NULL, 10) == getppid()) {
			snprintf(own, sizeof(own), "%d", (int)getpid());
			setenv(meant[i], own, 1);
			/* The same by the inode of a pidfd; without it the number is enough. */
			if (!i)
				unsetenv("LISTEN_PIDFDID");
		}
	}
	snprintf(run, sizeof(run), "%s %s %s", ready->name, ready->token, preload);
	if (both)
		snprintf(both, len, theirs ? "%s:%s" : "%s", preload, theirs);
	if (both && !setenv(WIRE_ENV, run, 1) && !setenv("LD_PRELOAD", both, 1)) {
		signal(SIGCHLD, chld);
		sigprocmask(SIG_SETMASK, mask, NULL);
		/* Not libc's: under another hmm run that is hooked, and leads to the other one's supervisor. */
		syscall(SYS_execve, path, argv, environ);
		err = errno;
		/* Nobody else's, a text is for the shell. */
		if (err == ENOEXEC && run_image_is_text(path))
			err = exec_by_shell(argv, path);
	}
	while (write(failed_fd, "f", 1) < 0 && errno == EINTR)
		;
	fail(0, argv[0], strerror(err));
	_exit(err == ENOENT ? EXIT_NOT_FOUND : EXIT_CANNOT);
}

/* ------------------------------------------------------------------- standing in */

static void die_as(int status)
{
	struct rlimit none = {0, 0};
	sigset_t set;
	int sig = WTERMSIG(status);

	/* The program has left a core where it should; ours would be of no use. */
	setrlimit(RLIMIT_CORE, &none);
	prctl(PR_SET_DUMPABLE, 0);
	signal(sig, SIG_DFL);
	sigemptyset(&set);
	sigaddset(&set, sig);
	sigprocmask(SIG_UNBLOCK, &set, NULL);
	raise(sig);
}

/*
 * Is the program where it was stopped last, as we have seen?  Whoever lets us go on has
 * mostly let it go on, too, and it may have been stopped again since, or be about to
 * be: we come late, and our SIGCONT would undo that.  Of the stop that we saw nothing
 * is left to be waited for; that it was continued, or stopped anew, is.
 */
static bool is_still_stopped(pid_t program)
{
	siginfo_t si = {0};

	return waitid(P_PID, (id_t)program, &si, WSTOPPED | WCONTINUED | WNOHANG | WNOWAIT) || !si.si_pid;
}

/*
 * Of what the kernel sends us: a terminal's go to the whole group, so the program has them already, but that the
 * terminal hangs up is told to the leader of its session alone.  Of a limit of CPU time each has its own.
 */
static bool not_for_program(int sig)
{
	static const int twice[] = {SIGINT, SIGQUIT, SIGTSTP, SIGTTIN, SIGTTOU, SIGWINCH, SIGXCPU};

	for (unsigned i = 0; i < sizeof(twice) / sizeof(twice[0]); i++)
		if (sig == twice[i])
			return true;
	return sig == SIGHUP && getsid(0) != getpid();
}

static void pass_on(pid_t program, const siginfo_t *si)
{
	int sig = si->si_signo;

	if (sig == SIGCHLD || sig == SIGCONT || (si->si_code == SI_KERNEL && not_for_program(sig)))
		return;
	if (si->si_code == SI_QUEUE)
		sigqueue(program, sig, si->si_value);
	else
		kill(program, sig);
}

static bool send_word(int sup_fd, char what, pid_t program)
{
	struct run_word word = {.what = what, .program = program};

	return send(sup_fd, &word, sizeof(word), MSG_NOSIGNAL) == sizeof(word);
}

/* Wait for the program, being it meanwhile.  Returns its wait status. */
static int stand_in(pid_t program, pid_t supervisor, int sup_fd, const sigset_t *watched)
{
	int sigfd = signalfd(-1, watched, SFD_CLOEXEC | SFD_NONBLOCK);
	int wait = sigfd < 0 ? LOOK_MS : -1; /* nobody tells us then */
	struct pollfd p[2] = {{.fd = sigfd, .events = POLLIN}, {.fd = sup_fd, .events = POLLIN}};
	int status;

	for (;;) {
		struct timespec more = {0};
		siginfo_t si;

		if (poll(p, 2, wait) < 0) {
			p[1].revents = 0;
			more.tv_nsec = LOOK_MS * 1000000l; /* for want of memory */
		}
		if (p[1].revents & (POLLHUP | POLLERR)) {
			/* The engine is gone: what is away is gone with it. */
			fprintf(stderr, "hmm run: the supervisor died; the program is killed\n");
			kill(program, SIGKILL);
			p[1].fd = -1;
		}
		while (sigtimedwait(watched, &si, &more) > 0)
			pass_on(program, &si);
		pid_t pid;
		while ((pid = waitpid(-1, &status, WNOHANG | WUNTRACED)) > 0) {
			if (pid == supervisor)
				continue;
			if (pid != program)
				continue;
			if (WIFSTOPPED(status)) {
				/* As the program, so we: whoever watches us sees it stopped. */
				send_word(sup_fd, RUN_PROGRAM_STOPPED, program);
				kill(getpid(), SIGSTOP);
				send_word(sup_fd, RUN_PROGRAM_GOES_ON, program);
				if (is_still_stopped(program))
					kill(program, SIGCONT);
				continue;
			}
			if (sigfd >= 0)
				close(sigfd);
			return status;
		}
	}
}

void run_keep_fds(int a, int b)
{
	int low = a < b ? a : b, high = a < b ? b : a;

	if (low < 0)
		low = high;
	if (low > 3)
		close_range(3, (unsigned)low - 1, 0);
	if (high > low + 1)
		close_range((unsigned)low + 1, (unsigned)high - 1, 0);
	close_range((unsigned)high + 1, ~0u, 0);
}

/* What the program closes must be closed: we keep its standard error, to speak, and nothing else of the caller's. */
static void give_up_streams(int sup_fd, int started_fd)
{
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);

	if (null < 0)
		return;
	dup2(null, 0);
	dup2(null, 1);
	run_keep_fds(sup_fd, started_fd);
}

/* From here on who wants us to end means us: a descriptor that tells, or -1. */
static int watch_for_end(void)
{
	struct timespec none = {0};
	sigset_t set;

	ends_not_ignored(&set, (const int[]){SIGHUP, SIGINT, SIGQUIT, SIGTERM, 0});
	while (sigtimedwait(&set, NULL, &none) > 0) /* what was for the program */
		;
	return signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

/*
 * The supervisor's answer.  1; 0, it has died; -1, somebody will not wait for it: figures or lines may go to a pipe
 * that nobody reads.  Not at once, as what ended the program may come a second time (timeout(1) sends it twice).
 */
static int last_word(int sup_fd, int end_fd, char *left)
{
	struct pollfd p[2] = {{.fd = sup_fd, .events = POLLIN}, {.fd = end_fd, .events = POLLIN}};
	int wait = -1, n;

	for (;;) {
		n = poll(p, 2, wait);
		if (!n)
			return -1;
		if (p[0].revents || (n < 0 && errno != EINTR))
			return recv(sup_fd, left, 1, 0) == 1;
		if (n > 0) {
			p[1].fd = -1;
			wait = HURRY_MS;
		}
	}
}

int hmm_run_main(int argc, char **argv)
{
	static const struct option longs[] = {
		{"ram", required_argument, NULL, 'r'},
		{"to", required_argument, NULL, 't'},
		{"stats", required_argument, NULL, 's'},
		{"verbose", no_argument, NULL, 'v'},
		{"lend-userfaultfd", no_argument, NULL, 'l'},
		{"help", no_argument, NULL, 'h'},
		{0},
	};
	struct run_options opt = {.chain = "lz4,file:/var/tmp", .stats_fd = -1};
	struct run_ready ready;
	char preload[400], path[4096], stats[PATH_MAX], why[256];
	const char *ram = "50%";
	sigset_t watched, mask;
	struct itimerval theirs[TIMERS];
	pid_t supervisor = 0, program;
	int c, rc, sup_fd = -1, status, started[2];
	char name[3];

	optind = 0;
	opterr = 0;
	while ((c = getopt_long(argc, argv, "+vh", longs, NULL)) != -1) {
		switch (c) {
		case 'r':
			ram = optarg;
			break;
		case 't':
			opt.chain = optarg;
			break;
		case 's':
			opt.stats_path = optarg;
			break;
		case 'v':
			opt.verbose = true;
			break;
		case 'l':
			opt.lend = true;
			break;
		case 'h':
			fputs(usage, stdout);
			return 0;
		default:
			return fail(EXIT_OURS, options_refused(argv, name),
				    "no such option, or its value is missing (see hmm run --help)");
		}
	}
	if (optind >= argc) {
		fputs(usage, stderr);
		return EXIT_OURS;
	}
	argv += optind;
	rc = parse_ram(ram, &opt.budget);
	if (rc == -ERANGE)
		return fail(EXIT_OURS, ram, "--ram must be at least 16M");
	if (rc)
		return fail(EXIT_OURS, ram,
			    "not a size; --ram takes bytes, K, M, G or T, or a share of the machine's RAM as N%");
	rc = fill_streams();
	if (rc)
		return fail(EXIT_OURS, "/dev/null", strerror(-rc));
	rc = run_image_find(argv[0], path, sizeof(path));
	if (rc)
		return fail(rc == -ENOENT ? EXIT_NOT_FOUND : EXIT_CANNOT, argv[0], strerror(-rc));
	rc = run_image_check(path, why, sizeof(why));
	if (rc)
		return fail(EXIT_CANNOT, argv[0], why);
	if (check_kernel(why, sizeof(why)))
		return fail(EXIT_OURS, why, NULL);
	rc = find_preload(preload, sizeof(preload));
	if (rc)
		return fail(EXIT_OURS, "libhmm-preload.so",
			    rc == -EINVAL ? "its path must not hold spaces or colons, and be shorter than 400 bytes"
					  : "not found beside this command, nor where it was installed");
	if (opt.stats_path) {
		rc = open_stats(&opt, stats);
		if (rc)
			return fail(EXIT_OURS, opt.stats_path, strerror(-rc));
	}
	sigfillset(&watched);
	sigdelset(&watched, SIGKILL);
	sigdelset(&watched, SIGSTOP);
	/* Faults of our own are ours; a stop from the terminal stops the program, and we follow. */
	for (const int *s = (const int[]){SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGTRAP, SIGSYS, 0}; *s; s++)
		sigdelset(&watched, *s);
	sigprocmask(SIG_BLOCK, &watched, &mask);
	/* Ignored, as who started us may have it, nobody could be waited for: the kernel would not tell. */
	sighandler_t chld = signal(SIGCHLD, SIG_DFL);
	if (start_supervisor(&opt, &sup_fd, &supervisor, &ready))
		return EXIT_OURS;
	if (pipe2(started, O_CLOEXEC))
		return fail(EXIT_OURS, "pipe", strerror(errno));
	timers_take(theirs);
	program = fork();
	if (program < 0)
		return fail(EXIT_OURS, "fork", strerror(errno));
	if (!program) {
		close(sup_fd);
		timers_give(theirs);
		exec_program(argv, path, &ready, preload, &mask, chld, started[1]);
	}
	close(started[1]);
	give_up_streams(sup_fd, started[0]);
	char byte = RUN_PROGRAM_ENDED;
	while ((rc = (int)read(started[0], &byte, 1)) < 0 && errno == EINTR)
		;
	close(started[0]);
	if (rc == 1)
		byte = RUN_PROGRAM_FAILED;
	status = stand_in(program, supervisor, sup_fd, &watched);
	char left = 0;
	int end_fd = watch_for_end();
	if (send_word(sup_fd, byte, program)) {
		rc = last_word(sup_fd, end_fd, &left);
		if (!rc)
			coming_kill(ready.name, ready.token);
		else if (rc > 0 && left == RUN_ALL_GONE)
			waitpid(supervisor, NULL, 0);
	} else if (errno == EPIPE) {
		coming_kill(ready.name, ready.token);
	} else {
		/* It sees that we are gone, and takes it for the worst. */
		fail(0, "the supervisor cannot be told that the program has ended; what it left running is killed",
		     strerror(errno));
	}
	if (WIFSIGNALED(status))
		die_as(status);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
