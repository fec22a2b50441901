/* SPDX-License-Identifier: MIT */
/*
 * Fact: VmFlags of smaps have "dc" for a mapping marked MADV_DONTFORK and "wf" for
 * one marked MADV_WIPEONFORK, not for others, and not any more once unmarked.  Of
 * a thread that has ended smaps has nothing: no space without mappings.
 */
#include "probe.h"

static bool has_flag(const void *addr, const char *flag)
{
	FILE *f = fopen("/proc/self/smaps", "r");
	bool here = false, found = false;
	char line[1024], want[8];

	CHECK(f, "smaps can be opened");
	snprintf(want, sizeof(want), " %s", flag);
	while (fgets(line, sizeof(line), f)) {
		unsigned long a, z;
		char more;

		if (sscanf(line, "%lx-%lx%c", &a, &z, &more) == 3 && more == ' ')
			here = (uintptr_t)addr >= a && (uintptr_t)addr < z;
		else if (here && !strncmp(line, "VmFlags:", 8))
			found = strstr(line, want);
	}
	fclose(f);
	return found;
}

static void *ends(void *fd)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/self/task/%d/smaps", (int)syscall(SYS_gettid));
	*(int *)fd = open(path, O_RDONLY | O_CLOEXEC);
	return NULL;
}

int main(void)
{
	static const struct {
		int on, off;
		const char *flag, *other;
	} mark[] = {{MADV_DONTFORK, MADV_DOFORK, "dc", "wf"}, {MADV_WIPEONFORK, MADV_KEEPONFORK, "wf", "dc"}};
	char *p, text[64];
	pthread_t t;
	int fd;

	probe_start();
	for (unsigned i = 0; i < 2; i++) {
		p = map_filled(2 * PAGE, 'p');
		CHECK(!has_flag(p, "dc") && !has_flag(p, "wf"), "memory is not marked");
		CHECK(!madvise(p, PAGE, mark[i].on), "madvise works");
		CHECK(has_flag(p, mark[i].flag) && !has_flag(p, mark[i].other), "\"%s\" says that it is", mark[i].flag);
		CHECK(!has_flag(p + PAGE, mark[i].flag), "of the page that is, alone");
		CHECK(!madvise(p, PAGE, mark[i].off) && !has_flag(p, mark[i].flag), "and says so no more");
	}
	CHECK(!pthread_create(&t, NULL, ends, &fd), "a thread can be started");
	pthread_join(t, NULL);
	CHECK(fd >= 0, "smaps of a thread can be opened");
	while (task_state(getpid()) && pread(fd, text, sizeof(text), 0) > 0)
		sched_yield(); /* it has been joined a moment before it is gone */
	CHECK(pread(fd, text, sizeof(text), 0) <= 0, "of a thread that has ended there is nothing");
	return 0;
}
