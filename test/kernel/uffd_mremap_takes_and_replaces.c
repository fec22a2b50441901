/* SPDX-License-Identifier: MIT */
/*
 * Fact: mremap(MREMAP_DONTUNMAP | MREMAP_FIXED) of a read-only registered mapping
 * takes its pages away and leaves it read-only, registered and empty; that of an
 * empty registered mapping over one of a file sends REMAP alone, and what is
 * there then is registered for missing pages.  MADV_COLD tells locked memory.
 */
#include "probe.h"

#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif

struct job {
	char *from, *to;
	bool ok;
};

static void remap(void *p)
{
	struct job *j = p;

	j->ok = mremap(j->from, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, j->to) == j->to;
}

static void remapped(int uffd, char *from, char *to)
{
	struct job j = {from, to, false};
	struct uffd_msg m;
	struct actor a;

	actor_start(&a, remap, &j);
	m = uffd_read(uffd);
	CHECK(m.event == UFFD_EVENT_REMAP && m.arg.remap.from == (uintptr_t)from && m.arg.remap.to == (uintptr_t)to,
	      "it sends REMAP (%#x)", m.event);
	actor_join(&a);
	CHECK(j.ok && uffd_quiet(uffd), "it works, and sends no more than that");
}

int main(void)
{
	char path[] = "/var/tmp/hmm-probe-XXXXXX", *p, *away, *empty, *mapped;
	int uffd, file = mkstemp(path);
	struct actor a;

	probe_start();
	CHECK(file >= 0 && !ftruncate(file, PAGE), "a file can be made");
	unlink(path);
	uffd = uffd_open(UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_EVENT_UNMAP | UFFD_FEATURE_EVENT_REMOVE);
	p = map_registered(uffd, PAGE);
	CHECK(!uffd_fill(uffd, p, 'r') && !mprotect(p, PAGE, PROT_READ), "a read-only page can be made");
	away = map_anon(PAGE);
	remapped(uffd, p, away);
	CHECK(away[0] == 'r' && !present(p), "the page has gone");
	actor_start(&a, touch_read, p);
	uffd_read_fault(uffd, p);
	CHECK(!uffd_fill(uffd, p, 'r'), "COPY works");
	actor_join(&a);
	CHECK(read(file, p, 1) < 0 && errno == EFAULT, "it is read-only");

	mapped = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0);
	CHECK(mapped != MAP_FAILED, "a file can be mapped");
	mapped[0] = 'f';
	empty = map_registered(uffd, PAGE);
	remapped(uffd, empty, mapped);
	actor_start(&a, touch_read, mapped);
	uffd_read_fault(uffd, mapped);
	CHECK(!uffd_fill(uffd, mapped, 'm'), "COPY works");
	actor_join(&a);
	CHECK(mapped[0] == 'm' && !present(empty), "what stands there is ours");

	p = map_filled(PAGE, 'l');
	CHECK(!madvise(p, PAGE, MADV_COLD), "MADV_COLD works");
	CHECK(!mlock(p, PAGE) && madvise(p, PAGE, MADV_COLD) && errno == EINVAL, "not on locked memory");
	return 0;
}
