/* SPDX-License-Identifier: MIT */
/*
 * hmm bench: what a fault costs by who serves it.
 *
 * DOC: how a fault is measured
 *
 * FAULTS pages of a range, each once, far from the one before, are read (from the
 * kernel: written to, so that it has to find one); each access is timed.  Of each 2 MiB the first page is there before:
 * page tables are, so that only a page is missing.  Who serves the fault places the same page of data each time
 * (UFFDIO_COPY), and that it did is looked at in the end.
 *
 *   fault-kernel     nothing is registered: the kernel finds a page, and clears it
 *   fault-sigbus     the thread that faults, in a signal handler (UFFD_FEATURE_SIGBUS)
 *   fault-same-cpu   a thread that waits in read(), bound to the CPU of who faults
 *   fault-spinning   a thread on another CPU that reads without waiting, all the time
 *   fault-asleep     a thread on another CPU that waits in read(); PAUSE_NS before each fault, for it to fall asleep
 *   fault-process    another process, anywhere: poll, read, copy, as a supervisor has to
 *   fault-process-lz4    the same, which decompresses the page first: what a pager cannot do without
 *   fault-beside fault-beside-lz4    these two on the CPU of who faults, where no CPU has to be woken
 *
 * Who faults is bound to the first CPU that we may use but in fault-process, where the kernel is left to place
 * both as it likes.  A handler that fails ends the program: nobody would be left to serve the fault.
 */
#include <errno.h>
#include <fcntl.h>
#include <lz4.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "cli/bench/bench.h"
#include "cli/bench/data.h"
#include "cli/bench/measure.h"
#include "hmm_uapi.h"

#define FAULTS 2000u
#define TABLE 512u /* pages of a page table */
#define PAUSE_NS 100000u
#define STEP 1000003u

struct range {
	char *p;
	size_t bytes, usable;
	int uffd;
};

struct handler {
	int uffd, cpu;
	const char *page;
	bool spins;
	atomic_bool last; /* the next one is the last one */
	pthread_t thread;
};

/* What a signal handler has to know: it is told nothing but an address. */
static int sigbus_uffd;
static const char *sigbus_page;

static int by_value(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

void bench_times(uint64_t *ns, size_t n, struct bench_sample *s)
{
	uint64_t sum = 0;

	*s = (struct bench_sample){0};
	if (!n)
		return;
	qsort(ns, n, sizeof(*ns), by_value);
	for (size_t i = 0; i < n; i++)
		sum += ns[i];
	s->mean = (double)sum / (double)n;
	s->value = (double)ns[n / 2];
	s->p99 = (double)ns[n * 99 / 100];
}

/* Returns whether it could be. */
static bool bind_to(int cpu)
{
	cpu_set_t one;

	CPU_ZERO(&one);
	CPU_SET(cpu, &one);
	return !sched_setaffinity(0, sizeof(one), &one);
}

static void map_range(const struct bench *b, struct range *r)
{
	r->bytes = b->npages * DATA_PAGE;
	r->usable = b->npages / TABLE * (TABLE - 1);
	r->p = map_small(r->bytes);
	r->uffd = -1;
	for (size_t i = 0; i < b->npages; i += TABLE)
		r->p[i * DATA_PAGE] = 1;
}

static int serve_range(struct bench *b, struct range *r, uint64_t features)
{
	struct uffdio_register reg = {.range = {(uintptr_t)r->p, r->bytes}, .mode = UFFDIO_REGISTER_MODE_MISSING};
	int rc = bench_uffd(b, features, &r->uffd);

	if (rc)
		return rc;
	if (ioctl(r->uffd, UFFDIO_REGISTER, &reg))
		return bench_skip(b, "UFFDIO_REGISTER: %s", strerror(errno));
	return 0;
}

static void unmap_range(struct range *r)
{
	if (r->uffd >= 0)
		close(r->uffd);
	munmap(r->p, r->bytes);
}

/* The page of the @i-th fault. */
static char *page_of(const struct range *r, size_t i)
{
	size_t k = i * STEP % r->usable;

	return r->p + (k / (TABLE - 1) * TABLE + k % (TABLE - 1) + 1) * DATA_PAGE;
}

static void touch(const struct range *r, uint64_t *ns, bool write, uint64_t pause)
{
	for (size_t i = 0; i < FAULTS; i++) {
		volatile char *p = page_of(r, i);
		uint64_t t = umm_now_ns();

		while (pause && umm_now_ns() - t < pause)
			;
		t = umm_now_ns();
		if (write)
			*p = 1;
		else
			(void)*p;
		ns[i] = umm_now_ns() - t;
	}
}

/* Only system calls: also called by a signal handler. */
static bool place(int uffd, uint64_t at, const char *page)
{
	struct uffdio_copy c = {.dst = at & ~(uint64_t)(DATA_PAGE - 1), .src = (uintptr_t)page, .len = DATA_PAGE};

	return !ioctl(uffd, UFFDIO_COPY, &c);
}

static void die(const char *what)
{
	fprintf(stderr, "hmm bench: %s: %s\n", what, strerror(errno));
	_exit(125);
}

/* ------------------------------------------------------------------ who serves */

static void on_sigbus(int sig, siginfo_t *si, void *context)
{
	(void)context;
	if (!place(sigbus_uffd, (uint64_t)(uintptr_t)si->si_addr, sigbus_page))
		signal(sig, SIG_DFL); /* it comes again */
}

static void *handler_main(void *arg)
{
	struct handler *h = arg;
	bool last = false;

	if (!bind_to(h->cpu))
		die("binding a thread to a CPU");
	while (!last) {
		struct uffd_msg msg;
		ssize_t n = read(h->uffd, &msg, sizeof(msg));

		if (n < 0 && (errno == EINTR || (errno == EAGAIN && h->spins)))
			continue;
		if (n != sizeof(msg))
			die("reading a userfaultfd");
		last = atomic_load(&h->last);
		if (!place(h->uffd, msg.arg.pagefault.address, h->page))
			die("UFFDIO_COPY");
	}
	return NULL;
}

/* @packed: what is decompressed for each fault; 0 bytes: nothing is. */
static void process_main(int uffd, const char *data, const char *packed, int len, pid_t parent)
{
	static char page[DATA_PAGE] __attribute__((aligned(4096)));

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent) /* it has died before it could kill us */
		_exit(1);
	memcpy(page, data, DATA_PAGE);
	for (;;) {
		struct pollfd pfd = {.fd = uffd, .events = POLLIN};
		struct uffd_msg msg;

		poll(&pfd, 1, -1);
		if (read(uffd, &msg, sizeof(msg)) != sizeof(msg) || msg.event != UFFD_EVENT_PAGEFAULT)
			continue;
		if ((len && LZ4_decompress_safe(packed, page, len, DATA_PAGE) != (int)DATA_PAGE) ||
		    !place(uffd, msg.arg.pagefault.address, page)) {
			/* Nobody else would serve who waits; but it may be that it is gone. */
			if (getppid() == parent)
				kill(parent, SIGKILL);
			_exit(1);
		}
	}
}

/* --------------------------------------------------------------- measurements */

static int by_signal(struct bench *b, struct range *r, uint64_t *ns)
{
	struct sigaction sa = {.sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO}, old;
	int rc = serve_range(b, r, UFFD_FEATURE_SIGBUS);

	if (rc)
		return rc;
	sigbus_uffd = r->uffd;
	sigbus_page = b->data;
	sigaction(SIGBUS, &sa, &old);
	touch(r, ns, false, 0);
	sigaction(SIGBUS, &old, NULL);
	return 0;
}

static int by_thread(struct bench *b, int arg, struct range *r, uint64_t *ns)
{
	struct handler h = {
		.cpu = arg == FAULT_SAME_CPU ? b->cpu : b->other, .page = b->data, .spins = arg == FAULT_SPINNING};
	int rc;

	if (h.cpu < 0)
		return bench_skip(b, "needs a second CPU");
	rc = serve_range(b, r, 0);
	if (rc)
		return rc;
	h.uffd = r->uffd;
	if (!h.spins)
		fcntl(r->uffd, F_SETFL, 0); /* it waits in read() */
	rc = pthread_create(&h.thread, NULL, handler_main, &h);
	if (rc)
		return bench_skip(b, "a thread: %s", strerror(rc));
	touch(r, ns, false, arg == FAULT_ASLEEP ? PAUSE_NS : 0);
	atomic_store(&h.last, true);
	(void)*(volatile char *)page_of(r, FAULTS);
	pthread_join(h.thread, NULL);
	return 0;
}

static int by_process(struct bench *b, int arg, struct range *r, uint64_t *ns)
{
	char packed[2 * DATA_PAGE];
	pid_t parent = getpid(), pid;
	int len = 0, rc = serve_range(b, r, 0);

	if (rc)
		return rc;
	if (arg == FAULT_PROCESS_LZ4 || arg == FAULT_BESIDE_LZ4)
		len = LZ4_compress_default(b->data, packed, DATA_PAGE, sizeof(packed));
	fflush(stdout);
	pid = fork();
	if (!pid)
		process_main(r->uffd, b->data, packed, len, parent);
	if (pid < 0)
		return bench_skip(b, "fork: %s", strerror(errno));
	touch(r, ns, false, 0);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	return 0;
}

int bench_fault(struct bench *b, int arg, struct bench_sample *s)
{
	bool bound = arg != FAULT_PROCESS && arg != FAULT_PROCESS_LZ4;
	uint64_t *ns = calloc(FAULTS, sizeof(*ns));
	struct range r;
	int rc;

	if (!ns)
		return bench_skip(b, "out of memory");
	map_range(b, &r);
	if (bound && !bind_to(b->cpu)) {
		rc = bench_skip(b, "binding to a CPU: %s", strerror(errno));
		goto out;
	}
	switch (arg) {
	case FAULT_KERNEL:
		touch(&r, ns, true, 0);
		rc = 0;
		break;
	case FAULT_SIGBUS:
		rc = by_signal(b, &r, ns);
		break;
	case FAULT_PROCESS:
	case FAULT_PROCESS_LZ4:
	case FAULT_BESIDE: /* it inherits what we are bound to */
	case FAULT_BESIDE_LZ4:
		rc = by_process(b, arg, &r, ns);
		break;
	default:
		rc = by_thread(b, arg, &r, ns);
	}
	for (size_t i = 0; !rc && arg != FAULT_KERNEL && i < FAULTS; i++)
		if (memcmp(page_of(&r, i), b->data, DATA_PAGE))
			rc = -EIO;
	if (!rc)
		bench_times(ns, FAULTS, s);
	if (bound)
		sched_setaffinity(0, sizeof(b->cpus), &b->cpus);
out:
	unmap_range(&r);
	free(ns);
	return rc;
}
