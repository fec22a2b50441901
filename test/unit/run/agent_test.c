/* SPDX-License-Identifier: MIT */
/*
 * When an agent leaves, and what it may do.  The test stands in for the supervisor; a child is the
 * program, and asks for an agent as the preloaded library does.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#include "../../skip.h"
#include "run/agent.h"
#include "run/confine.h"
#include "umm/inside.h"
#include "umm/sys.h"

struct tree {
	int listen_fd, sock;
	pid_t program;
	struct umm_ctl *ctl;
	char name[32];
};

static _Atomic pid_t *heir; /* shared; NULL: a program leaves none; -1: it may end now */

static int heir_main(void *arg)
{
	sigset_t none;

	alarm(30);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	for (;;)
		pause();
	return 0;
}

static int program_main(const char *name)
{
	static struct agent a;
	sigset_t all;
	char *p = mmap(NULL, arena_len(), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (p == MAP_FAILED)
		return 1;
	arena_layout(&a.arena, p);
	if (mprotect(a.arena.tls, ARENA_TLS + ARENA_STACK, PROT_READ | PROT_WRITE))
		return 2;
	strcpy(a.name, name);
	a.pid = getpid();
	sigfillset(&all);
	sigprocmask(SIG_BLOCK, &all, NULL);
	if (agent_start(&a))
		return 3;
	if (heir) {
		static char stack[65536] __attribute__((aligned(16)));

		while (!atomic_load(heir))
			usleep(1000);
		atomic_store(heir, clone(heir_main, stack + sizeof(stack), CLONE_VM | SIGCHLD, NULL));
		return 0;
	}
	while (atomic_load(&a.alive))
		usleep(1000);
	return 42;
}

static void welcome(struct tree *t)
{
	struct wire_hello hello;
	char control[CMSG_SPACE(4 * sizeof(int))] = {0};
	struct iovec iov = {&hello, sizeof(hello)};
	struct msghdr msg = {
		.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control)};
	struct wire_welcome w = {.magic = WIRE_MAGIC};
	int fd[4], ctl_fd = memfd_create("control", MFD_CLOEXEC);

	assert_int_equal(recvmsg(t->sock, &msg, MSG_CMSG_CLOEXEC), sizeof(hello));
	memcpy(fd, CMSG_DATA(CMSG_FIRSTHDR(&msg)), sizeof(fd));
	for (unsigned i = 0; i < 4; i++)
		close(fd[i]); /* the userfaultfd, too: the agent has its own */
	assert_int_equal(ftruncate(ctl_fd, ARENA_CTL + ARENA_WINDOW), 0);
	t->ctl = mmap(NULL, ARENA_CTL, PROT_READ | PROT_WRITE, MAP_SHARED, ctl_fd, 0);
	assert_true(t->ctl != MAP_FAILED);
	msg.msg_iov = &(struct iovec){&w, sizeof(w)};
	msg.msg_controllen = CMSG_SPACE(sizeof(int));
	struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(c), &ctl_fd, sizeof(int));
	assert_int_equal(sendmsg(t->sock, &msg, 0), sizeof(w));
	close(ctl_fd);
}

static void tree_listen(struct tree *t)
{
	struct sockaddr_un sa = {.sun_family = AF_UNIX};

	*t = (struct tree){0};
	snprintf(t->name, sizeof(t->name), "hmm-agent-test-%d", (int)getpid());
	strcpy(sa.sun_path + 1, t->name);
	t->listen_fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	assert_int_equal(bind(t->listen_fd, (void *)&sa,
			      (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + strlen(t->name))),
			 0);
	assert_int_equal(listen(t->listen_fd, 4), 0);
}

static void tree_start(struct tree *t)
{
	tree_listen(t);
	t->program = fork();
	assert_true(t->program >= 0);
	if (!t->program)
		_exit(program_main(t->name));
	t->sock = accept4(t->listen_fd, NULL, NULL, SOCK_CLOEXEC);
	assert_true(t->sock >= 0);
	welcome(t);
}

static int tree_end(struct tree *t)
{
	int status;

	assert_int_equal(waitpid(t->program, &status, 0), t->program);
	munmap(t->ctl, ARENA_CTL);
	close(t->sock);
	close(t->listen_fd);
	return status;
}

static void bye(struct tree *t)
{
	struct wire_msg msg = {.op = WIRE_BYE};

	assert_int_equal(send(t->sock, &msg, sizeof(msg), MSG_NOSIGNAL), sizeof(msg));
}

/* Nothing is away: the program goes on as if we had never been. */
static void sent_away_before_anything_moved(void **state)
{
	struct tree t;

	tree_start(&t);
	bye(&t);
	int status = tree_end(&t);

	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 42);
}

/* Something may be away, and its program is still there: without us it would find zeros. */
static void sent_away_by_mistake(void **state)
{
	struct tree t;

	tree_start(&t);
	atomic_store(&t.ctl->armed, 1);
	bye(&t);
	int status = tree_end(&t);

	assert_true(WIFSIGNALED(status));
	assert_int_equal(WTERMSIG(status), SIGKILL);
}

/* The program has ended, and somebody whom nobody has told us of lives on in its memory. */
static void sent_away_while_somebody_else_is_here(void **state)
{
	struct tree t;

	prctl(PR_SET_CHILD_SUBREAPER, 1);
	heir = mmap(NULL, sizeof(*heir), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	assert_true(heir != MAP_FAILED);
	tree_start(&t);
	atomic_store(&t.ctl->armed, 1);
	atomic_store(heir, -1);
	siginfo_t si;
	assert_int_equal(waitid(P_PID, (id_t)t.program, &si, WEXITED | WNOWAIT), 0);
	bye(&t);
	int status;
	assert_true(atomic_load(heir) > 0);
	assert_int_equal(waitpid(atomic_load(heir), &status, 0), atomic_load(heir));
	assert_int_equal(tree_end(&t), 0);
	munmap((void *)heir, sizeof(*heir));
	heir = NULL;
	assert_true(WIFSIGNALED(status));
	assert_int_equal(WTERMSIG(status), SIGKILL);
}

#define NUMBERS 30u /* of threads, among them the agent's number */

static void *thread_main(void *arg)
{
	for (;;)
		pause();
	return NULL;
}

/* The first process of a pid namespace of its own.  The agent's number is 4 or a little more. */
static int inner_main(const char *name, int told, int tell)
{
	pid_t bystander = fork(), program;
	int status;
	char c;

	if (!bystander)
		for (;;)
			pause();
	program = fork();
	if (!program)
		_exit(program_main(name));
	if (bystander != 2 || program != 3)
		return 2;
	if (read(told, &c, 1) != 1)
		return 3;
	kill(program, SIGKILL);
	if (waitpid(program, &status, 0) != program || write(tell, &c, 1) != 1 || read(told, &c, 1) != 1)
		return 4;
	kill(bystander, SIGTERM);
	if (waitpid(bystander, &status, 0) != bystander)
		return 5;
	return WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM ? 0 : 1;
}

/* The first process of the namespace whose /proc they have: there 2 is a group, with numbers that are others' inside.
 */
static int outer_main(const char *name, int told, int tell)
{
	int ready[2], status;
	pthread_t t;
	pid_t pid;
	char c;

	if (mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) || mount("proc", "/proc", "proc", 0, NULL) ||
	    pipe(ready))
		return 77;
	pid = fork();
	if (!pid) {
		for (unsigned i = 0; i < NUMBERS; i++)
			if (pthread_create(&t, NULL, thread_main, NULL))
				_exit(1);
		if (write(ready[1], "r", 1) == 1)
			thread_main(NULL);
		_exit(1);
	}
	close(ready[1]);
	if (pid != 2 || read(ready[0], &c, 1) != 1)
		return 6;
	if (unshare(CLONE_NEWPID))
		return 77;
	pid = fork();
	if (!pid)
		_exit(inner_main(name, told, tell));
	return waitpid(pid, &status, 0) == pid && WIFEXITED(status) ? WEXITSTATUS(status) : 7;
}

/* An agent that finds the /proc of an outer pid namespace ends, by a message or because nobody is there any more. */
static void foreign_proc(bool told_to)
{
	struct tree t;
	int told[2], tell[2], status;
	char c = 'x';
	pid_t pid;

	assert_int_equal(pipe(told), 0);
	assert_int_equal(pipe(tell), 0);
	tree_listen(&t);
	t.program = fork();
	assert_true(t.program >= 0);
	if (!t.program) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (unshare(CLONE_NEWPID | CLONE_NEWNS))
			_exit(77);
		pid = fork();
		if (!pid) {
			prctl(PR_SET_PDEATHSIG, SIGKILL); /* with it goes all of the namespace */
			_exit(outer_main(t.name, told[0], tell[1]));
		}
		waitpid(pid, &status, 0);
		_exit(WIFEXITED(status) ? WEXITSTATUS(status) : 8);
	}
	close(told[0]);
	close(tell[1]);
	/* Ended already: no namespaces are to be had here. */
	assert_int_equal(fcntl(t.listen_fd, F_SETFL, O_NONBLOCK), 0);
	while ((t.sock = accept4(t.listen_fd, NULL, NULL, SOCK_CLOEXEC)) < 0 &&
	       waitpid(t.program, &status, WNOHANG) == 0)
		usleep(1000);
	if (t.sock < 0) {
		assert_int_equal(WEXITSTATUS(status), 77);
		skip_because("no pid namespaces, or no /proc of their own");
	}
	welcome(&t);
	atomic_store(&t.ctl->armed, 1);
	if (told_to) {
		assert_int_equal(write(told[1], &c, 1), 1);
		assert_int_equal(read(tell[0], &c, 1), 1); /* the program has ended */
		bye(&t);
	} else {
		shutdown(t.sock, SHUT_WR);
	}
	assert_int_equal(recv(t.sock, &c, 1, 0), 0); /* so has the agent */
	if (!told_to) {
		assert_int_equal(write(told[1], &c, 1), 1);
		assert_int_equal(read(tell[0], &c, 1), 1);
	}
	assert_int_equal(write(told[1], &c, 1), 1);
	assert_int_equal(tree_end(&t), 0);
	close(told[1]);
	close(tell[0]);
}

/* What is a number there of the agent's own: it is nobody else, and 2 is somebody else here. */
static void a_foreign_proc_and_nobody_is_left(void **state)
{
	foreign_proc(true);
}

static void a_foreign_proc_and_the_supervisor_dies(void **state)
{
	foreign_proc(false);
}

static void supervisor_dies(void **state)
{
	struct tree t;

	tree_start(&t);
	atomic_store(&t.ctl->armed, 1);
	shutdown(t.sock, SHUT_RDWR);
	int status = tree_end(&t);

	assert_true(WIFSIGNALED(status));
	assert_int_equal(WTERMSIG(status), SIGKILL);
}

static int confined_main(void)
{
	int flags = O_RDONLY | O_DIRECTORY | O_CLOEXEC, self;

	if (confine())
		return 1;
	/* A process's directory is as good as a pidfd, and that the agent may open. */
	self = (int)sys4(SYS_openat, AT_FDCWD, "/proc/self", flags, 0);
	if (self < 0)
		return 2;
	for (int sig = 0; sig < SIGRTMAX; sig++)
		if (sig != SIGKILL && sys4(SYS_pidfd_send_signal, self, sig, 0, 0) != -EPERM)
			return 3;
	sys4(SYS_pidfd_send_signal, self, SIGKILL, 0, 0);
	return 4;
}

/* By a process's number it may kill, and send nothing else; the same goes for descriptors that stand for processes. */
static void confined_it_kills_and_sends_nothing_else(void **state)
{
	int status;
	pid_t pid = fork();

	if (!pid)
		_exit(confined_main());
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFSIGNALED(status));
	assert_int_equal(WTERMSIG(status), SIGKILL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(sent_away_before_anything_moved),
		cmocka_unit_test(sent_away_by_mistake),
		cmocka_unit_test(sent_away_while_somebody_else_is_here),
		cmocka_unit_test(supervisor_dies),
		cmocka_unit_test(confined_it_kills_and_sends_nothing_else),
		cmocka_unit_test(a_foreign_proc_and_nobody_is_left),
		cmocka_unit_test(a_foreign_proc_and_the_supervisor_dies),
	};
	int fd = umm_inside_uffd();

	if (fd < 0) {
		printf("SKIP: no right to a userfaultfd\n");
		return 77;
	}
	close(fd);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
