/* SPDX-License-Identifier: MIT */
/*
 * A program with SIGSEGV and SIGBUS handlers that it lives by: a write barrier
 * made of mprotect(), as collectors of garbage have it, memory mapped on
 * demand, and files that are shorter than their mapping.  The handlers touch
 * memory that is away; a fault of ours never shows as a signal.
 */
#include "calls.h"

#include <signal.h>
#include <ucontext.h>

#define HEAP 4096u /* pages */

static char *heap, *lazy, *file;
static uint32_t *card; /* one word a page, scattered over pages: away itself */
static _Atomic unsigned long barriers, mapped, buses;

static void on_segv(int sig, siginfo_t *si, void *uc)
{
	char *at = (char *)((uintptr_t)si->si_addr & ~(V_PAGE - 1));

	if (at >= heap && at < heap + HEAP * V_PAGE) {
		CHECK(si->si_code == SEGV_ACCERR, "SIGSEGV in the heap with code %d", si->si_code);
		card[(size_t)(at - heap) / V_PAGE * 64]++;
		atomic_fetch_add(&barriers, 1);
		if (mprotect(at, V_PAGE, PROT_READ | PROT_WRITE))
			_exit(3);
		return;
	}
	if (at >= lazy && at < lazy + HEAP * V_PAGE) {
		atomic_fetch_add(&mapped, 1);
		if (mmap(at, V_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != at)
			_exit(4);
		return;
	}
	DIE("signal %d at %p, code %d", sig, si->si_addr, si->si_code);
}

static void on_bus(int sig, siginfo_t *si, void *uc)
{
	CHECK((char *)si->si_addr >= file && (char *)si->si_addr < file + 4 * V_PAGE, "SIGBUS at %p", si->si_addr);
	CHECK(si->si_code == BUS_ADRERR, "SIGBUS with code %d", si->si_code);
	atomic_fetch_add(&buses, 1);
	if (mmap((char *)((uintptr_t)si->si_addr & ~(V_PAGE - 1)), V_PAGE, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED)
		_exit(5);
}

int main(void)
{
	struct sigaction sa = {.sa_sigaction = on_segv, .sa_flags = SA_SIGINFO | SA_ONSTACK};
	stack_t ss = {.ss_size = 64 * V_PAGE};
	uint64_t s = 1;
	struct hog hog;

	/* The handlers' stack is ordinary memory: it leaves, too. */
	ss.ss_sp = v_map(ss.ss_size);
	CHECK(!sigaltstack(&ss, NULL), "sigaltstack");
	sigaction(SIGSEGV, &sa, NULL);
	sa.sa_sigaction = on_bus;
	sigaction(SIGBUS, &sa, NULL);
	heap = v_map(HEAP * V_PAGE);
	card = v_map(HEAP * 64 * sizeof(*card));
	v_fill_all(heap, HEAP, 1, 0, V_QUARTER);
	hog_start(&hog, hog_mib());
	unsigned long want = 0;
	for (unsigned r = 0; r < (long_run() ? 40 : 4); r++) {
		uint32_t before;

		CHECK(!mprotect(heap, HEAP * V_PAGE, PROT_READ), "mprotect");
		wait_away(card, HEAP * 64 * sizeof(*card) / V_PAGE, 20, "the card table");
		wait_away(ss.ss_sp, 64, 60, "the handlers' stack");
		for (unsigned k = 0; k < 500; k++) {
			size_t i = rnd(&s) % HEAP;
			char *page = heap + i * V_PAGE;

			CHECK(!v_check(page, i, 1, 0, V_QUARTER), "round %u, behind the barrier", r);
			before = card[i * 64];
			/* Writes what stands there: the first one in a round is seen by the handler. */
			*(volatile uint64_t *)page = *(volatile uint64_t *)page;
			want += card[i * 64] - before;
		}
		CHECK(!mprotect(heap, HEAP * V_PAGE, PROT_READ | PROT_WRITE), "mprotect");
		wait_away(heap, HEAP, HEAP / 2, "the heap");
	}
	CHECK(atomic_load(&barriers) == want && want > 1000, "%lu barriers, %lu marked", atomic_load(&barriers), want);
	CHECK_ALL(heap, HEAP, 1, 0, "heap");

	lazy = mmap(NULL, HEAP * V_PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	for (unsigned i = 0; i < HEAP; i += 16)
		v_fill(lazy + i * V_PAGE, i, 2, 0, V_QUARTER);
	CHECK(atomic_load(&mapped) == HEAP / 16, "%lu pages mapped on demand", atomic_load(&mapped));
	sleep_ms(200);
	for (unsigned i = 0; i < HEAP; i += 16)
		CHECK(!v_check(lazy + i * V_PAGE, i, 2, 0, V_QUARTER), "mapped on demand");
	CHECK(atomic_load(&mapped) == HEAP / 16, "mapped again: %lu", atomic_load(&mapped));

	int fd = memfd_create("short", 0);
	CHECK(fd >= 0 && !ftruncate(fd, V_PAGE), "memfd_create");
	file = mmap(NULL, 4 * V_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	wait_away(ss.ss_sp, 64, 60, "the handlers' stack");
	file[0] = 1;
	file[2 * V_PAGE + 5] = 2;
	CHECK(atomic_load(&buses) == 1 && file[2 * V_PAGE + 5] == 2 && file[0] == 1, "beyond the end of a file");
	hog_stop(&hog);
	return 0;
}
