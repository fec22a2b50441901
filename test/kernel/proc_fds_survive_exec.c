/* SPDX-License-Identifier: MIT */
/*
 * Fact: /proc/self/pagemap and /proc/self/maps opened inside a process and
 * passed to another stay bound to the address space, also when the program has
 * called execve and only a CLONE_VM task keeps the old one; so does the
 * userfaultfd.  They end (no data, or ESRCH) with its last task.  What PAGEMAP_SCAN
 * says then depends on the kernel: ESRCH, or that no page is there.
 */
#include "probe.h"

#define PAGES 4

struct agent {
	int sock, step;
	char *page;
};

static int agent_main(void *p)
{
	struct agent *a = p;

	prctl(PR_SET_PDEATHSIG, 0);
	say(a->sock, (uint64_t)getpid());
	flag_set(&a->step, 1);
	hear(a->sock);
	(void)*(volatile char *)(a->page + PAGE); /* away: a fault in the old address space */
	say(a->sock, (unsigned char)a->page[PAGE]);
	hear(a->sock);
	_exit(0);
}

static int program(int sock)
{
	struct agent a = {.sock = side_channel(sock), .page = map_anon(PAGES * PAGE)};
	int uffd = uffd_open(0);
	int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	int maps = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
	char num[16];

	CHECK(pagemap >= 0 && maps >= 0, "/proc/self can be opened");
	a.page[0] = 'p';
	CHECK(!uffd_register(uffd, a.page, PAGES * PAGE, MISSING), "REGISTER works");
	send_fd(sock, uffd);
	send_fd(sock, pagemap);
	send_fd(sock, maps);
	say(sock, (uintptr_t)a.page);
	agent_clone(agent_main, &a);
	flag_wait(&a.step, 1);
	fcntl(sock, F_SETFD, 0);
	snprintf(num, sizeof(num), "%d", sock);
	execl("/proc/self/exe", "second", num, NULL);
	return 1;
}

static int query(int maps, uint64_t addr, struct procmap_query *q)
{
	*q = (struct procmap_query){.size = sizeof(*q), .query_addr = addr};
	return ioctl(maps, PROCMAP_QUERY, q) ? -errno : 0;
}

int main(int argc, char **argv)
{
	struct pollfd pfd = {.events = POLLIN};
	struct procmap_query q;
	struct peer prog;
	int uffd, pagemap, maps, side, rc, own;
	bool procmap = true;
	char path[64], line[256];
	uint64_t entry;
	char *page;
	pid_t agent;
	FILE *f;
	bool found = false;

	probe_start();
	if (argc == 2) { /* the second image */
		say(atoi(argv[1]), 0x2ed);
		hear(atoi(argv[1]));
		return 0;
	}

	close(uffd_open(0)); /* skips here, not in the child */
	prog = peer_start(program);
	side = recv_fd(prog.sock);
	uffd = recv_fd(prog.sock);
	pagemap = recv_fd(prog.sock);
	maps = recv_fd(prog.sock);
	page = (char *)(uintptr_t)hear(prog.sock);
	agent = (pid_t)hear(side);
	CHECK(hear(prog.sock) == 0x2ed, "the program has called execve");
	pfd.fd = pidfd_open_(agent);

	CHECK(pread(pagemap, &entry, 8, (uintptr_t)page / PAGE * 8) == 8 && entry >> 63, "pread of pagemap works");
	CHECK(scan_page_fd(pagemap, page) & PAGE_IS_PRESENT, "PAGEMAP_SCAN works");
	CHECK(!(scan_page_fd(pagemap, page + PAGE) & PAGE_IS_PRESENT), "PAGEMAP_SCAN works");
	rc = query(maps, (uintptr_t)page, &q);
	if (rc == -ENOTTY) {
		procmap = false;
		printf("SKIP: no PROCMAP_QUERY (Linux 6.11)\n");
	} else
		CHECK(!rc && q.vma_start == (uintptr_t)page && q.vma_end == (uintptr_t)page + PAGES * PAGE,
		      "PROCMAP_QUERY works (%d)", rc);
	f = fdopen(dup(maps), "r");
	while (f && fgets(line, sizeof(line), f))
		found |= strtoull(line, NULL, 16) == (uintptr_t)page;
	CHECK(found, "reading maps shows the old address space");
	fclose(f);

	snprintf(path, sizeof(path), "/proc/%d/pagemap", prog.pid);
	own = open(path, O_RDONLY | O_CLOEXEC);
	CHECK(own >= 0 && !(scan_page_fd(own, page) & PAGE_IS_PRESENT), "opened now, it is that of the new image");
	close(own);

	say(side, 1);
	uffd_read_fault(uffd, page + PAGE);
	CHECK(!uffd_fill(uffd, page + PAGE, 'u'), "COPY into the old address space works");
	CHECK(hear(side) == 'u', "the task in the old address space reads it");
	say(prog.sock, 1);
	CHECK(!reap(prog.pid), "the second image ends");
	CHECK(poll(&pfd, 1, 0) == 0, "the task lives on");
	say(side, 1);
	CHECK(poll(&pfd, 1, -1) == 1, "the task ends");

	CHECK(pread(pagemap, &entry, 8, (uintptr_t)page / PAGE * 8) <= 0, "pagemap of an ended space gives no data");
	if (procmap) {
		rc = query(maps, (uintptr_t)page, &q);
		CHECK(rc == -ESRCH, "PROCMAP_QUERY of an ended space is ESRCH (%d)", rc);
	}
	{
		struct page_region seen;
		struct pm_scan_arg a = {
			.size = sizeof(a),
			.start = (uintptr_t)page,
			.end = (uintptr_t)page + PAGE,
			.vec = (uintptr_t)&seen,
			.vec_len = 1,
			.category_anyof_mask = PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
			.return_mask = PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
		};

		rc = ioctl(pagemap, PAGEMAP_SCAN, &a);
		CHECK(!rc || (rc < 0 && errno == ESRCH), "PAGEMAP_SCAN finds no page in an ended space (%d)", rc);
	}
	CHECK(uffd_fill(uffd, page + 2 * PAGE, 'v') == -ESRCH, "COPY into an ended space is ESRCH");
	return 0;
}
