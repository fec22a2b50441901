/* SPDX-License-Identifier: MIT */
/*
 * Moving pages out and back with the engine in the same process, through every
 * kind of device, and what happens when one fails.
 */
#include "world.h"

#define N 96u

static struct world *begin(const char *chain, unsigned fakes)
{
	const char *why;
	struct world *w = world_create(chain, fakes, &why);

	assert_non_null(w);
	return w;
}

static void there_and_back(const char *chain)
{
	struct world *w = begin(chain, 0);
	char *p = managed(w, N, 1);

	/* Some that compress to nothing among those that do not compress at all. */
	for (unsigned i = 0; i < N; i += 7)
		memset(p + i * UMM_PAGE, i % 2 ? 0x5a : 0, UMM_PAGE);
	for (unsigned round = 0; round < 3; round++) {
		int went = out(w, p, N);

		assert_true(went > 0);
		assert_int_equal(count_present(w, p, N), N - (unsigned)went);
		for (unsigned i = 0; i < N; i++)
			assert_int_equal(state_of(w, p + i * UMM_PAGE) == HMM_SYSTEM, present(w, p + i * UMM_PAGE));
		for (unsigned k = 0; k < N; k++) {
			unsigned i = round == 1 ? N - 1 - k : k;
			char *page = p + i * UMM_PAGE;

			if (i % 7) {
				assert_true(page_is(page, 1, i));
			} else {
				assert_int_equal(page[0], i % 2 ? 0x5a : 0);
				assert_memory_equal(page, page + 1, UMM_PAGE - 1);
			}
			assert_int_equal(state_of(w, page), HMM_SYSTEM);
		}
		assert_int_equal(count_present(w, p, N), N);
	}
	assert_int_equal(atomic_load(&w->mm->radix.away), 0);
	assert_int_equal(atomic_load(&w->said), 0);
	world_destroy(w);
}

static void by_lz4(void **state)
{
	there_and_back("lz4");
}

static void by_lz4_raw(void **state)
{
	there_and_back("lz4:64M,raw");
}

static void by_file(void **state)
{
	char dir[] = "/tmp/hmm-linked-XXXXXX", chain[64];

	assert_non_null(mkdtemp(dir));
	snprintf(chain, sizeof(chain), "file:%s", dir);
	there_and_back(chain);
	assert_int_equal(rmdir(dir), 0); /* it leaves nothing behind */
}

static void by_a_chain(void **state)
{
	there_and_back("lz4:256K,file:/tmp");
}

static void by_faulty_that_does_not_fail_yet(void **state)
{
	there_and_back("faulty:in=1000000,out=1000000:lz4:64M,raw");
}

/* ------------------------------------------------------------ devices that fail */

static void error_in_copy_in_brings_pages_back(void **state)
{
	struct world *w = begin("lz4", 1);
	char *p = managed(w, N, 1);

	fake_fail_in(w->fake[0], -EIO);
	assert_int_equal(out(w, p, N), 0);
	assert_true(fake_get_count(w->fake[0], &w->fake[0]->in_calls) > 0);
	assert_int_equal(count_present(w, p, N), N);
	assert_int_equal(atomic_load(&w->h->out_failed), N);
	all_are(p, N, 1);
	assert_int_equal(atomic_load(&w->mm->radix.away), 0);
	/* And nothing is the worse for it. */
	fake_fail_in(w->fake[0], 0);
	assert_int_equal(out(w, p, N), N);
	assert_int_equal(count_present(w, p, N), 0);
	all_are(p, N, 1);
	world_destroy(w);
}

static void faulty_in_is_undone(void **state)
{
	struct world *w = begin("faulty:in=1:lz4:64M,raw", 0);
	char *p = managed(w, N, 1);

	assert_int_equal(out(w, p, N), 0);
	assert_int_equal(count_present(w, p, N), N);
	all_are(p, N, 1);
	world_destroy(w);
}

static void a_device_may_take_some(void **state)
{
	struct world *w = begin("lz4", 1);
	char *p = managed(w, N, 1);

	fake_set(w->fake[0], &w->fake[0]->take_every, 3);
	assert_int_equal(out(w, p, N), N / 3);
	assert_int_equal(count_present(w, p, N), N - N / 3);
	for (unsigned i = 0; i < N; i++)
		assert_int_equal(present(w, p + i * UMM_PAGE), i % 3 != 0);
	all_are(p, N, 1);
	world_destroy(w);
}

static void chain_goes_on_where_one_refuses(void **state)
{
	struct world *w = begin("lz4,lz4", 2);
	char *p = managed(w, N, 1);

	fake_set(w->fake[0], &w->fake[0]->take_every, 2);
	assert_int_equal(out(w, p, N), N);
	fake_comes_to_hold(w->fake[0], N / 2);
	fake_comes_to_hold(w->fake[1], N / 2);
	all_are(p, N, 1);
	fake_fail_in(w->fake[0], -EIO);
	assert_int_equal(out(w, p, N), N);
	fake_comes_to_hold(w->fake[1], N);
	all_are(p, N, 1);
	fake_set(w->fake[1], &w->fake[1]->take_every, 0); /* now nobody takes anything */
	assert_int_equal(out(w, p, N), 0);
	assert_int_equal(count_present(w, p, N), N);
	all_are(p, N, 1);
	world_destroy(w);
}

/* ------------------------------------------------------------------- lost pages */

static void lost(const char *chain, unsigned fakes, int why, const char *word)
{
	struct world *w = begin(chain, fakes);
	char *p = managed(w, 8, 1);
	char byte = 0x11;

	if (fakes) {
		fake_set(w->fake[0], &w->fake[0]->fail_from, 2);
		fake_fail_out(w->fake[0], why);
	}
	assert_int_equal(out(w, p, 8), 8);
	for (unsigned i = 0; i < 2; i++)
		assert_true(page_is(p + i * UMM_PAGE, 1, i));
	assert_int_equal(atomic_load(&w->said), 0);

	assert_int_equal(touch(p + 2 * UMM_PAGE, &byte), SIGBUS);
	assert_int_equal(byte, 0x11);
	assert_int_equal(touch(p + 2 * UMM_PAGE + 77, &byte), SIGBUS); /* and again */
	assert_int_equal(state_of(w, p + 2 * UMM_PAGE), HMM_POISONED);
	assert_int_equal(peek(p + 2 * UMM_PAGE), -EFAULT);
	assert_int_equal(atomic_load(&w->h->poisoned), 1);
	assert_int_equal(atomic_load(&w->said), 1); /* one line, however often it is touched */
	assert_true(said_word(w, word));

	/* A child inherits the loss, and what is not lost yet it loses by itself. */
	pid_t pid = raw_fork();
	assert_true(pid >= 0);
	if (!pid) {
		if (touch(p + 2 * UMM_PAGE, &byte) != SIGBUS)
			_exit(1);
		_exit(touch(p + 3 * UMM_PAGE, &byte) == SIGBUS && page_is(p, 1, 0) ? 0 : 2);
	}
	int status;
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
	assert_int_equal(atomic_load(&w->children), 1);

	/* A poisoned page does not go out, nor is it filled by bringing back. */
	assert_int_equal(out(w, p + 2 * UMM_PAGE, 1), 0);
	assert_int_equal(hmm_restore(w->mm, (uintptr_t)p, (uintptr_t)p + 3 * UMM_PAGE), 0);
	assert_int_equal(touch(p + 2 * UMM_PAGE, &byte), SIGBUS);

	/* Who drops it has a page of zeros again, as everywhere. */
	assert_int_equal(madvise(p + 2 * UMM_PAGE, UMM_PAGE, MADV_DONTNEED), 0);
	assert_int_equal(state_of(w, p + 2 * UMM_PAGE), HMM_SYSTEM);
	assert_int_equal(touch(p + 2 * UMM_PAGE, &byte), 0);
	assert_true(page_is(p + 2 * UMM_PAGE, 0, 0));
	page_fill(p + 2 * UMM_PAGE, 9, 2);
	assert_true(page_is(p + 2 * UMM_PAGE, 9, 2));
	world_destroy(w);
}

static void unreadable_page_is_poisoned(void **state)
{
	lost("lz4", 1, -EIO, "could not read");
}

static void wrong_checksum_is_poisoned(void **state)
{
	lost("lz4", 1, -EBADMSG, "checksum");
}

static void faulty_out_is_poisoned(void **state)
{
	lost("faulty:out=3:lz4:64M,raw", 0, -EIO, "could not read");
}

static void faulty_sum_is_poisoned(void **state)
{
	lost("faulty:sum=3:lz4:64M,raw", 0, -EBADMSG, "checksum");
}

/* ----------------------------------------------------------- while a device works */

struct job {
	struct world *w;
	const char *p;
	unsigned npages;
	int rc;
};

static void *out_main(void *arg)
{
	struct job *j = arg;

	j->rc = out(j->w, j->p, j->npages);
	return NULL;
}

static void touched_while_the_device_copies(void **state)
{
	struct world *w = begin("lz4", 1);
	char *p = managed(w, N, 1);
	struct job j = {w, p, N, 0};
	struct fake *f = w->fake[0];
	pthread_t thread;

	fake_tell(f, &f->block_in, true);
	assert_int_equal(pthread_create(&thread, NULL, out_main, &j), 0);
	fake_await(f, &f->in_blocked);
	assert_int_equal(count_present(w, p, N), 0);
	assert_int_equal(state_of(w, p), HMM_PARKED);
	assert_true(page_is(p, 1, 0));       /* read */
	page_fill(p + 50 * UMM_PAGE, 2, 50); /* written */
	assert_int_equal(state_of(w, p), HMM_SYSTEM);
	assert_int_equal(state_of(w, p + UMM_PAGE), HMM_PARKED);
	fake_tell(f, &f->block_in, false);
	pthread_join(thread, NULL);
	assert_int_equal(j.rc, N - 2);
	/* Two for nothing: they were let go. */
	fake_comes_to_hold(f, N - 2);
	assert_true(page_is(p + 50 * UMM_PAGE, 2, 50));
	page_fill(p + 50 * UMM_PAGE, 1, 50);
	all_are(p, N, 1);
	world_destroy(w);
}

/* Two threads touch a page that a device is reading; one of them is faster. */
struct toucher {
	const char *p;
	unsigned i;
	bool right;
};

static void *touch_main(void *arg)
{
	struct toucher *t = arg;

	t->right = page_is(t->p, 1, t->i);
	return NULL;
}

static void two_touch_what_a_device_reads(void **state)
{
	struct world *w = begin("lz4", 1);
	char *p = managed(w, 8, 1);
	struct fake *f = w->fake[0];
	struct toucher t[2] = {{p, 0, false}, {p, 0, false}};
	pthread_t thread[2];

	assert_int_equal(out(w, p, 8), 8);
	fake_tell(f, &f->block_out, true);
	for (unsigned i = 0; i < 2; i++)
		assert_int_equal(pthread_create(&thread[i], NULL, touch_main, &t[i]), 0);
	fake_await(f, &f->out_blocked);
	fake_tell(f, &f->block_out, false);
	for (unsigned i = 0; i < 2; i++)
		pthread_join(thread[i], NULL);
	assert_true(t[0].right && t[1].right);
	all_are(p, 8, 1);
	world_destroy(w);
}

/* Nobody reads events before the device has said that it sleeps; here it has, and the change goes on. */
static void a_device_that_tells_holds_up_nobody(void **state)
{
	struct world *w = begin("lz4", 1);
	char *p = managed(w, 8, 1), *q = managed(w, 8, 2);
	struct fake *f = w->fake[0];
	struct toucher t = {p, 0, false};
	pthread_t thread;

	f->ops.caps |= HMM_DEV_TELLS;
	assert_int_equal(out(w, p, 8), 8);
	fake_tell(f, &f->block_out, true);
	assert_int_equal(pthread_create(&thread, NULL, touch_main, &t), 0);
	fake_await(f, &f->out_blocked);
	assert_int_equal(madvise(q, 8 * UMM_PAGE, MADV_DONTNEED), 0);
	fake_tell(f, &f->block_out, false);
	pthread_join(thread, NULL);
	assert_true(t.right);
	all_are(p, 8, 1);
	world_destroy(w);
}

/* -------------------------------------------------------- asking everything back */

static void restore_brings_all_back(void **state)
{
	struct world *w = begin("lz4", 1);
	char *p = managed(w, N, 1);

	assert_int_equal(out(w, p, N), N);
	assert_int_equal(hmm_restore(w->mm, (uintptr_t)p + 10 * UMM_PAGE, (uintptr_t)p + 20 * UMM_PAGE), 0);
	assert_int_equal(count_present(w, p, N), 10);
	assert_int_equal(count_present(w, p + 10 * UMM_PAGE, 10), 10);
	assert_int_equal(hmm_restore(w->mm, 0, 1ull << 47), 0);
	assert_int_equal(count_present(w, p, N), N);
	fake_comes_to_hold(w->fake[0], 0);
	all_are(p, N, 1);
	world_destroy(w);
}

/* What was one mapping when it went is several when it is to come back. */
static void restore_across_mappings(void **state)
{
	struct world *w = begin("lz4", 1);
	char *p = managed(w, N, 1);

	assert_int_equal(out(w, p, N), N);
	assert_int_equal(mprotect(p + 20 * UMM_PAGE, 5 * UMM_PAGE, PROT_READ), 0);
	assert_int_equal(mprotect(p + 40 * UMM_PAGE, 5 * UMM_PAGE, PROT_NONE), 0);
	assert_int_equal(hmm_restore(w->mm, (uintptr_t)p, (uintptr_t)p + N * UMM_PAGE), 0);
	assert_int_equal(count_present(w, p, N), N);
	fake_comes_to_hold(w->fake[0], 0);
	assert_int_equal(mprotect(p, N * UMM_PAGE, PROT_READ | PROT_WRITE), 0);
	all_are(p, N, 1);
	world_destroy(w);
}

/* A run of faults that walks up to the end of a mapping asks for no page behind it. */
static void faults_at_the_end_of_a_mapping(void **state)
{
	struct world *w = begin("lz4", 1);
	char *p = managed(w, N, 1);

	assert_int_equal(out(w, p, N), N);
	assert_int_equal(mprotect(p + 37 * UMM_PAGE, 5 * UMM_PAGE, PROT_READ), 0);
	all_are(p, N, 1);
	/* And the same where zeros are filled in. */
	char *z = managed(w, N, 0);
	assert_int_equal(mprotect(z + 37 * UMM_PAGE, UMM_PAGE, PROT_READ), 0);
	for (unsigned i = 0; i < N; i++)
		if (i != 37)
			page_fill(z + i * UMM_PAGE, 3, i);
	assert_true(page_is(z + 37 * UMM_PAGE, 0, 37));
	world_destroy(w);
}

/* Longer than any quarantine lasts that was begun before. */
static int restore_slowly(struct hmm_mm *mm, uint64_t start, uint64_t end)
{
	struct umm_quarantine *q = &mm->space->quarantine;

	pthread_mutex_lock(&q->lock);
	for (unsigned i = 0; i < q->n; i++)
		q->range[i].until_ns = 0;
	pthread_mutex_unlock(&q->lock);
	return hmm_restore(mm, start, end);
}

static void what_came_back_slowly_does_not_leave(void **state)
{
	struct world *w = begin("lz4", 1);
	char *p = managed(w, N, 1);
	uint64_t a = (uintptr_t)p;

	assert_int_equal(out(w, p, N), N);
	assert_int_equal(hmm_bring_back(w->mm, a, a + N * UMM_PAGE, restore_slowly), 0);
	assert_int_equal(count_present(w, p, N), N);
	assert_int_equal(w->space->quarantine.n, 1);
	assert_int_not_equal(w->space->quarantine.range[0].until_ns, 0);
	all_are(p, N, 1);
	world_destroy(w);
}

/* Registered, and not in the records yet: let go of as well.  Somebody else's: left alone. */
static void hands_off_what_is_not_in_the_records(void **state)
{
	struct world *w = begin("lz4", 1);
	char *p = managed(w, N, 1);
	int other = umm_inside_uffd(), third = umm_inside_uffd();
	uint64_t start = (uintptr_t)p, end = start + 32 * UMM_PAGE, got;

	assert_int_equal(umm_uffd_api(other, 0, 0, &got), 0);
	assert_int_equal(umm_uffd_api(third, 0, 0, &got), 0);
	hmm_forget(w->mm, start, end);
	assert_int_equal(hmm_hands_off(w->mm, start, end), 0);
	assert_int_equal(umm_uffd_register(other, start, end - start, UFFDIO_REGISTER_MODE_MISSING), 0);
	assert_int_equal(hmm_hands_off(w->mm, start, end), 0);
	assert_int_equal(umm_uffd_register(third, start, end - start, UFFDIO_REGISTER_MODE_MISSING), -EBUSY);
	close(other);
	close(third);
	world_destroy(w);
}

static void hands_off_is_for_good(void **state)
{
	struct world *w = begin("lz4", 1);
	char *p = managed(w, N, 1);
	int other = umm_inside_uffd();
	uint64_t got;

	assert_true(other >= 0);
	assert_int_equal(umm_uffd_api(other, 0, 0, &got), 0);
	assert_int_equal(out(w, p, N), N);
	assert_int_equal(umm_uffd_register(other, (uintptr_t)p, 32 * UMM_PAGE, UFFDIO_REGISTER_MODE_MISSING), -EBUSY);
	assert_int_equal(mprotect(p + 20 * UMM_PAGE, 5 * UMM_PAGE, PROT_READ), 0);
	assert_int_equal(hmm_hands_off(w->mm, (uintptr_t)p, (uintptr_t)p + 32 * UMM_PAGE), 0);
	assert_int_equal(count_present(w, p, 32), 32);
	assert_int_equal(count_present(w, p + 32 * UMM_PAGE, N - 32), 0);
	assert_int_equal(mprotect(p + 20 * UMM_PAGE, 5 * UMM_PAGE, PROT_READ | PROT_WRITE), 0);
	all_are(p, 32, 1);
	/* It is free for somebody else, and nothing of it goes out. */
	assert_int_equal(umm_uffd_register(other, (uintptr_t)p, 32 * UMM_PAGE, UFFDIO_REGISTER_MODE_MISSING), 0);
	assert_int_equal(out(w, p, 32), 0);
	assert_int_equal(count_present(w, p, 32), 32);
	all_are(p, N, 1);
	close(other);
	world_destroy(w);
}

static bool always(void *priv)
{
	return true;
}

/* Whoever asks, and with him who waits for out_lock, is not held up by an agent that died inside the event lock. */
static void hands_off_with_a_dead_agent(void **state)
{
	struct world *w = begin("lz4", 1);
	char *p = managed(w, N, 1);

	umm_evlock_shared(&w->ctl->evlock); /* the agent's */
	w->space->gone = always;
	assert_int_equal(hmm_hands_off(w->mm, (uintptr_t)p, (uintptr_t)p + 32 * UMM_PAGE), -ESRCH);
	assert_int_equal(pthread_mutex_trylock(&w->mm->out_lock), 0);
	pthread_mutex_unlock(&w->mm->out_lock);
	w->space->gone = NULL;
	umm_evlock_unshared(&w->ctl->evlock);
	world_destroy(w);
}

/* --------------------------------------------------------------- what does not go */

/* As a caller of madvise() whose event has been read, and who has not dropped anything yet. */
static void about_to_drop(struct world *w, char *p, unsigned from, unsigned to)
{
	umm_evlock_excl(&w->ctl->evlock);
	umm_quarantine_dropping(w->space, (uintptr_t)p + from * UMM_PAGE, (uintptr_t)p + to * UMM_PAGE);
	umm_evlock_unexcl(&w->ctl->evlock);
}

/* What that caller does next. */
static void drop(struct world *w, char *p, unsigned from, unsigned to)
{
	uint64_t start = (uintptr_t)p + from * UMM_PAGE, len = (to - from) * UMM_PAGE;

	assert_int_equal(umm_uffd_unregister(w->space->uffd, start, len), 0);
	assert_int_equal(madvise(p + from * UMM_PAGE, len, MADV_DONTNEED), 0);
	assert_int_equal(umm_uffd_register(w->space->uffd, start, len, UFFDIO_REGISTER_MODE_MISSING), 0);
}

static bool quarantined(struct world *w, char *p, unsigned from, unsigned to)
{
	return umm_quarantined(w->space, (uintptr_t)p + from * UMM_PAGE, (uintptr_t)p + to * UMM_PAGE);
}

static void quarantined_pages_stay(void **state)
{
	struct world *w = begin("lz4", 1);
	char *p = managed(w, N, 1);

	about_to_drop(w, p, 10, 11);
	/* A run with a quarantined page in it stays as a whole; the other leaf's goes. */
	assert_int_equal(out(w, p, N), N / 2);
	assert_int_equal(count_present(w, p, N / 2), N / 2);
	assert_int_equal(count_present(w, p + N / 2 * UMM_PAGE, N / 2), 0);
	assert_true(quarantined(w, p, 10, 11));
	assert_false(quarantined(w, p, 0, 10));
	assert_false(quarantined(w, p, 11, N));
	drop(w, p, 10, 11);
	assert_false(quarantined(w, p, 0, N));
	assert_int_equal(out(w, p, N / 2), N / 2 - 1);
	assert_true(page_is(p + 10 * UMM_PAGE, 0, 10));
	page_fill(p + 10 * UMM_PAGE, 1, 10);
	all_are(p, N, 1);
	world_destroy(w);
}

/* It is the last page that was there of which the end is told: the others go before it. */
static void a_quarantine_ends_with_the_last_page(void **state)
{
	struct world *w = begin("lz4", 1);
	char *p = managed(w, N, 1);

	drop(w, p, 14, 20);
	about_to_drop(w, p, 10, 20);
	drop(w, p, 10, 13);
	assert_true(quarantined(w, p, 19, 20));
	drop(w, p, 13, 14);
	assert_false(quarantined(w, p, 10, 20));
	/* Far from the end of a long range it is found as well. */
	drop(w, p, 1, N);
	about_to_drop(w, p, 0, N);
	assert_true(quarantined(w, p, N - 1, N));
	drop(w, p, 0, 1);
	assert_false(quarantined(w, p, 0, N));
	world_destroy(w);
}

/* Touched right after it was dropped, a page is there again: that it was not is known from the fault. */
static void a_quarantine_ends_with_a_touch(void **state)
{
	struct world *w = begin("lz4", 1);
	char *p = managed(w, N, 1);

	about_to_drop(w, p, 0, 10);
	drop(w, p, 0, 10);
	page_fill(p + 9 * UMM_PAGE, 2, 9);
	assert_true(present(w, p + 9 * UMM_PAGE));
	/* Who served it is through with it, too. */
	umm_evlock_excl(&w->ctl->evlock);
	umm_evlock_unexcl(&w->ctl->evlock);
	assert_false(quarantined(w, p, 0, 10));
	/* Touched and there, it has not been dropped; nor does another page's fault say so. */
	about_to_drop(w, p, 0, 10);
	page_fill(p + 9 * UMM_PAGE, 3, 9);
	page_fill(p + 5 * UMM_PAGE, 3, 5);
	assert_true(quarantined(w, p, 0, 10));
	world_destroy(w);
}

struct unmapper {
	char *p;
	size_t len;
};

static void *unmaps(void *arg)
{
	struct unmapper *u = arg;

	assert_int_equal(syscall(SYS_munmap, u->p, u->len), 0);
	return NULL;
}

/* Where another thread unmaps or moves the sign, what lies below it may be there to be dropped still. */
static void a_sign_that_is_unmapped_ends_nothing(void **state)
{
	struct world *w = begin("lz4", 1);
	char *p = managed(w, N, 1), *to;
	struct unmapper u = {p + 16 * UMM_PAGE, 4 * UMM_PAGE};
	pthread_t t;

	about_to_drop(w, p, 4, 20);
	/* Its event cannot be read yet. */
	umm_evlock_shared(&w->ctl->evlock);
	assert_int_equal(pthread_create(&t, NULL, unmaps, &u), 0);
	while (present(w, p + 19 * UMM_PAGE))
		sched_yield();
	assert_true(quarantined(w, p, 4, 16));
	umm_evlock_unshared(&w->ctl->evlock);
	pthread_join(t, NULL);
	settled(w);
	assert_true(quarantined(w, p, 4, 16));
	to = mmap(NULL, 4 * UMM_PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_true(to != MAP_FAILED);
	assert_int_equal(
		syscall(SYS_mremap, p + 12 * UMM_PAGE, 4 * UMM_PAGE, 4 * UMM_PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to),
		(uintptr_t)to);
	settled(w);
	assert_true(quarantined(w, p, 4, 12));
	assert_int_equal(out(w, p, 12), 0);
	drop(w, p, 4, 12);
	assert_false(quarantined(w, p, 4, 12));
	assert_int_equal(out(w, p, 12), 4);
	/* All of it: nothing is left that could be dropped. */
	assert_int_equal(syscall(SYS_munmap, p, 4 * UMM_PAGE), 0);
	settled(w);
	assert_false(quarantined(w, p, 0, 4));
	world_destroy(w);
}

static void nothing_there_is_no_quarantine(void **state)
{
	struct world *w = begin("lz4", 1);
	char *p = managed(w, N, 1);

	drop(w, p, 4, 8);
	about_to_drop(w, p, 4, 8);
	assert_false(quarantined(w, p, 4, 8));
	/* Two callers in one place: what ends one says nothing of the other. */
	about_to_drop(w, p, 10, 12);
	about_to_drop(w, p, 11, 13);
	drop(w, p, 12, 13);
	assert_true(quarantined(w, p, 10, 11));
	world_destroy(w);
}

/* A hooked call that has returned says that it has dropped what it told of, and nothing of what others have. */
static void a_hook_ends_its_own_quarantine(void **state)
{
	struct world *w = begin("lz4", 1);
	char *p = managed(w, N, 1);
	uint64_t start = (uintptr_t)p, end = start + 4 * UMM_PAGE, mark = umm_quarantine_mark(w->space);

	about_to_drop(w, p, 0, 4);
	assert_true(quarantined(w, p, 0, 4));
	umm_quarantine_lift(w->space, start, end, mark);
	assert_false(quarantined(w, p, 0, 4));
	/* All of it was touched again in the meantime, and somebody else is about to drop it. */
	mark = umm_quarantine_mark(w->space);
	about_to_drop(w, p, 0, 4);
	drop(w, p, 0, 4);
	for (unsigned i = 0; i < 4; i++)
		page_fill(p + i * UMM_PAGE, 2, i);
	umm_evlock_excl(&w->ctl->evlock);
	umm_evlock_unexcl(&w->ctl->evlock);
	assert_false(quarantined(w, p, 0, 4));
	about_to_drop(w, p, 0, 4);
	umm_quarantine_lift(w->space, start, end, mark);
	assert_true(quarantined(w, p, 0, 4));
	assert_int_equal(out(w, p, 4), 0);
	/* Nor where more was told of than anybody remembers. */
	drop(w, p, 0, 4);
	for (unsigned i = 0; i < 4; i++)
		page_fill(p + i * UMM_PAGE, 2, i);
	mark = umm_quarantine_mark(w->space);
	about_to_drop(w, p, 0, 4);
	for (unsigned i = 0; i < UMM_DROPS; i++)
		about_to_drop(w, p, N - 1, N);
	umm_quarantine_lift(w->space, start, end, mark);
	assert_true(quarantined(w, p, 0, 4));
	world_destroy(w);
}

/* More quarantines than there is room for: none is forgotten. */
static void many_quarantines(void **state)
{
	struct world *w = begin("lz4", 1);
	uint64_t base = 1ull << 40;

	for (unsigned i = 0; i < 3 * UMM_QUARANTINES; i++)
		umm_quarantine_add(w->space, base + i * 3 * UMM_PAGE, base + (i * 3 + 1) * UMM_PAGE);
	for (unsigned i = 0; i < 3 * UMM_QUARANTINES; i++)
		assert_true(umm_quarantined(w->space, base + i * 3 * UMM_PAGE, base + (i * 3 + 1) * UMM_PAGE));
	assert_false(umm_quarantined(w->space, base - UMM_PAGE, base));
	world_destroy(w);
}

static void what_cannot_move_is_remembered(void **state)
{
	struct world *w = begin("lz4", 1);
	char *p = managed(w, N, 1);
	uint64_t a = (uintptr_t)p, z = a + N / 2 * UMM_PAGE;

	assert_int_equal(mprotect(p, N / 2 * UMM_PAGE, PROT_READ), 0);
	assert_int_equal(out(w, p, N), N / 2);
	assert_int_equal(count_present(w, p, N / 2), N / 2);
	pthread_mutex_lock(&w->mm->lock);
	assert_true(hmm_iset_covers(&w->mm->stuck, a, z));
	assert_false(hmm_iset_meets(&w->mm->stuck, z, z + N / 2 * UMM_PAGE));
	pthread_mutex_unlock(&w->mm->lock);
	all_are(p, N, 1);
	/* With the mapping goes what was known of it. */
	assert_int_equal(munmap(p, UMM_PAGE), 0);
	settled(w);
	pthread_mutex_lock(&w->mm->lock);
	assert_false(hmm_iset_meets(&w->mm->stuck, a, a + UMM_PAGE));
	assert_true(hmm_iset_covers(&w->mm->stuck, a + UMM_PAGE, z));
	pthread_mutex_unlock(&w->mm->lock);
	world_destroy(w);
}

static void unregistered_memory_stays(void **state)
{
	struct world *w = begin("lz4", 1);
	char *p = managed(w, N, 1);

	hmm_forget(w->mm, (uintptr_t)p + 20 * UMM_PAGE, (uintptr_t)p + 21 * UMM_PAGE);
	assert_int_equal(out(w, p, N), N / 2);
	assert_int_equal(count_present(w, p, N / 2), N / 2);
	all_are(p, N, 1);
	world_destroy(w);
}

/* Wherever it lies, all of a control block is pinned by its robust list: glibc's is 0x900 bytes, with that at 0x2e0. */
static void a_control_block_is_pinned(void **state)
{
	struct umm_ctl *ctl = calloc(1, sizeof(*ctl));

	assert_non_null(ctl);
	for (uint64_t tp = 1 << 20; tp < (1 << 20) + UMM_PAGE; tp += 64) {
		umm_pin_clear(ctl);
		umm_pin_block(ctl, tp + 0x2e0);
		assert_true(umm_pin_has(ctl, tp >> UMM_PAGE_SHIFT));
		assert_true(umm_pin_has(ctl, (tp + 0x2e0) >> UMM_PAGE_SHIFT));
		assert_true(umm_pin_has(ctl, (tp + 0x900 - 1) >> UMM_PAGE_SHIFT));
	}
	free(ctl);
}

static unsigned touched(void *p, size_t len)
{
	unsigned char *vec = calloc(1, len / UMM_PAGE + 1);
	unsigned n = 0;

	assert_non_null(vec);
	assert_int_equal(mincore(p, len, vec), 0);
	for (size_t i = 0; i < len / UMM_PAGE; i++)
		n += vec[i] & 1;
	free(vec);
	return n;
}

/* Of few threads, though every page that goes is looked up there. */
static void a_table_of_pins_is_small(void **state)
{
	size_t len = (sizeof(struct umm_ctl) + UMM_PAGE - 1) & ~(UMM_PAGE - 1);
	struct umm_ctl *ctl = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	assert_true(ctl != MAP_FAILED);
	madvise(ctl, len, MADV_NOHUGEPAGE);
	for (uint64_t pfn = 1; pfn < 20000; pfn++)
		assert_false(umm_pin_has(ctl, pfn * 7));
	for (uint64_t pfn = 1; pfn < 100; pfn++)
		umm_pin_add(ctl, pfn);
	assert_in_range(touched(ctl, len), 1, 3);
	munmap(ctl, len);
}

/* What is left behind when it grows is less than what is in use, and is used again when all begins anew. */
static void tables_of_pins_left_behind_are_few(void **state)
{
	size_t len = (sizeof(struct umm_ctl) + UMM_PAGE - 1) & ~(UMM_PAGE - 1);
	struct umm_ctl *ctl = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	unsigned most = 0;

	assert_true(ctl != MAP_FAILED);
	madvise(ctl, len, MADV_NOHUGEPAGE);
	for (unsigned round = 0; round < 3; round++) {
		for (uint64_t pfn = 1; pfn <= UMM_PIN_SLOTS / 2; pfn++) {
			umm_pin_add(ctl, pfn * 3 + round);
			if (pfn & (pfn - 1) || round)
				continue;
			/* Head, and a page at each end that is another table's as well. */
			assert_in_range(touched(ctl, len), 1, 2 * ((8u << umm_pin_bits(ctl)) / UMM_PAGE) + 3);
		}
		assert_int_equal(umm_pin_bits(ctl), UMM_PIN_BITS_MAX);
		most = round ? most : touched(ctl, len);
		assert_int_equal(touched(ctl, len), most);
		umm_pin_clear(ctl);
	}
	assert_in_range(most, 1, (1 << 20) / UMM_PAGE + 2);
	munmap(ctl, len);
}

/* It grows, and has what it had, and not more; until it is full, and begins anew. */
static void a_table_of_pins_grows(void **state)
{
	struct umm_ctl *ctl = calloc(1, sizeof(*ctl));

	assert_non_null(ctl);
	for (unsigned round = 0; round < 2; round++) {
		for (uint64_t pfn = 1; pfn <= UMM_PIN_SLOTS / 2; pfn++) {
			umm_pin_add(ctl, pfn * 3);
			umm_pin_add(ctl, pfn * 3);
			if (pfn & (pfn - 1) && (pfn + 1) & pfn)
				continue;
			assert_int_equal(atomic_load(&ctl->pin_used), pfn);
			for (uint64_t k = 1; k <= pfn; k++) {
				assert_true(umm_pin_has(ctl, k * 3));
				assert_false(umm_pin_has(ctl, k * 3 + 1));
			}
		}
		assert_int_equal(umm_pin_bits(ctl), UMM_PIN_BITS_MAX);
		umm_pin_clear(ctl);
		for (uint64_t k = 1; k <= UMM_PIN_SLOTS; k++)
			assert_false(umm_pin_has(ctl, k));
	}
	/* Whatever a program writes there. */
	atomic_store(&ctl->pin_bits, ~0u);
	atomic_store(&ctl->pin_used, ~0u);
	umm_pin_add(ctl, 5);
	assert_true(umm_pin_has(ctl, 5));
	free(ctl);
}

static void pinned_pages_stay(void **state)
{
	struct world *w = begin("lz4", 1);
	char *p = managed(w, N, 1);

	assert_true(umm_pin_lock_soon(w->ctl));
	for (unsigned i = 0; i < N; i += 5)
		umm_pin_add(w->ctl, ((uintptr_t)p >> UMM_PAGE_SHIFT) + i);
	umm_pin_unlock(w->ctl);
	out(w, p, N);
	for (unsigned i = 0; i < N; i++)
		assert_int_equal(present(w, p + i * UMM_PAGE), i % 5 == 0);
	all_are(p, N, 1);
	world_destroy(w);
}

static void holes_stay_holes(void **state)
{
	struct world *w = begin("lz4", 1);
	char *p = managed(w, N, 0);

	for (unsigned i = 0; i < N; i += 3)
		page_fill(p + i * UMM_PAGE, 1, i);
	/* Filling goes by clusters: drop what came too much, and forget the quarantine of it. */
	for (unsigned i = 0; i < N; i++)
		if (i % 3)
			madvise(p + i * UMM_PAGE, UMM_PAGE, MADV_DONTNEED);
	settled(w);
	quarantine_over(w);
	assert_int_equal(out(w, p, N), N / 3);
	fake_comes_to_hold(w->fake[0], N / 3);
	for (unsigned i = 0; i < N; i++) {
		assert_int_equal(state_of(w, p + i * UMM_PAGE), i % 3 ? HMM_SYSTEM : HMM_DEVICE);
		assert_false(present(w, p + i * UMM_PAGE));
	}
	for (unsigned i = 0; i < N; i++)
		assert_true(page_is(p + i * UMM_PAGE, i % 3 ? 0 : 1, i));
	world_destroy(w);
}

static void staging_is_empty_after(void **state)
{
	struct world *w = begin("lz4", 1);
	char *p = managed(w, N, 1);

	for (unsigned round = 0; round < 3; round++) {
		assert_int_equal(out(w, p, N), N);
		assert_int_equal(count_present(w, w->in.staging, STAGING / UMM_PAGE), 0);
		all_are(p, N, 1);
	}
	world_destroy(w);
}

/* The inside refuses to go: nothing has happened, and nothing hangs. */
static void who_does_not_go_changes_nothing(void **state)
{
	struct world *w = begin("lz4", 1);
	char *p = managed(w, N, 1);

	w->refuse = -ENOMEM;
	assert_int_equal(out(w, p, N), -ENOMEM);
	assert_int_equal(count_present(w, p, N), N);
	for (unsigned i = 0; i < N; i++)
		assert_int_equal(state_of(w, p + i * UMM_PAGE), HMM_SYSTEM);
	w->refuse = 0;
	assert_int_equal(out(w, p, N), N);
	all_are(p, N, 1);
	world_destroy(w);
}

/* What the control block says is not believed: it lies in memory that others can write. */
static void nonsense_in_a_batch_is_refused(void **state)
{
	struct world *w = begin("lz4", 1);
	char *p = managed(w, N, 1);
	struct umm_batch *b = &w->ctl->batch[1];
	static const struct umm_move_run bad[] = {
		{.npages = 0, .slot = 0},
		{.npages = UMM_RUN_PAGES + 1, .slot = 0},
		{.npages = 2, .slot = UMM_BATCH_PAGES - 1},
		{.npages = 1, .slot = UMM_BATCH_PAGES},
	};

	b->nr = 0;
	b->epoch = atomic_load(&w->ctl->epoch);
	for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		b->run[b->nr] = bad[i];
		b->run[b->nr++].addr = (uintptr_t)p;
	}
	umm_inside_move(&w->in, 1);
	assert_int_equal(atomic_load(&b->done), 1);
	for (unsigned i = 0; i < b->nr; i++) {
		assert_int_equal(b->run[i].err, -EINVAL);
		assert_int_equal(b->run[i].mask, 0);
		assert_int_equal(atomic_load(&b->run[i].state), UMM_RUN_FILLED);
	}
	assert_int_equal(count_present(w, p, N), N);
	all_are(p, N, 1);
	world_destroy(w);
}

int main(void)
{
	const char *why;
	struct world *w = world_create("lz4", 0, &why);
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(by_lz4),
		cmocka_unit_test(by_lz4_raw),
		cmocka_unit_test(by_file),
		cmocka_unit_test(by_a_chain),
		cmocka_unit_test(by_faulty_that_does_not_fail_yet),
		cmocka_unit_test(error_in_copy_in_brings_pages_back),
		cmocka_unit_test(faulty_in_is_undone),
		cmocka_unit_test(a_device_may_take_some),
		cmocka_unit_test(chain_goes_on_where_one_refuses),
		cmocka_unit_test(unreadable_page_is_poisoned),
		cmocka_unit_test(wrong_checksum_is_poisoned),
		cmocka_unit_test(faulty_out_is_poisoned),
		cmocka_unit_test(faulty_sum_is_poisoned),
		cmocka_unit_test(touched_while_the_device_copies),
		cmocka_unit_test(two_touch_what_a_device_reads),
		cmocka_unit_test(a_device_that_tells_holds_up_nobody),
		cmocka_unit_test(restore_brings_all_back),
		cmocka_unit_test(restore_across_mappings),
		cmocka_unit_test(faults_at_the_end_of_a_mapping),
		cmocka_unit_test(what_came_back_slowly_does_not_leave),
		cmocka_unit_test(hands_off_is_for_good),
		cmocka_unit_test(hands_off_what_is_not_in_the_records),
		cmocka_unit_test(hands_off_with_a_dead_agent),
		cmocka_unit_test(quarantined_pages_stay),
		cmocka_unit_test(a_quarantine_ends_with_the_last_page),
		cmocka_unit_test(a_quarantine_ends_with_a_touch),
		cmocka_unit_test(a_sign_that_is_unmapped_ends_nothing),
		cmocka_unit_test(nothing_there_is_no_quarantine),
		cmocka_unit_test(a_hook_ends_its_own_quarantine),
		cmocka_unit_test(many_quarantines),
		cmocka_unit_test(a_control_block_is_pinned),
		cmocka_unit_test(a_table_of_pins_is_small),
		cmocka_unit_test(a_table_of_pins_grows),
		cmocka_unit_test(tables_of_pins_left_behind_are_few),
		cmocka_unit_test(what_cannot_move_is_remembered),
		cmocka_unit_test(unregistered_memory_stays),
		cmocka_unit_test(pinned_pages_stay),
		cmocka_unit_test(holes_stay_holes),
		cmocka_unit_test(staging_is_empty_after),
		cmocka_unit_test(who_does_not_go_changes_nothing),
		cmocka_unit_test(nonsense_in_a_batch_is_refused),
	};

	if (!w)
		return skip_all(why);
	world_destroy(w);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
