/* SPDX-License-Identifier: MIT */
/* Notifiers: the interval tree against a plain list, the sequence protocol, and both under threads. */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "umm/itree.h"
#include "umm/notifier_internal.h"

#define PAGE 4096ull

/* Notifiers need of a space only this much of it. */
struct umm_space {
	struct umm_notifiers nots;
};

struct umm_notifiers *umm_space_notifiers(struct umm_space *space)
{
	return &space->nots;
}

/* What memory is had, and from when on there is none. */
static size_t allocated;
static size_t allocate_most = SIZE_MAX;

void *(umm_alloc)(struct umm_space *space, size_t size)
{
	if (size > allocate_most - allocated)
		return NULL;
	allocated += size;
	return calloc(1, size);
}

void umm_free(struct umm_space *space, void *p, size_t size)
{
	allocated -= size;
	free(p);
}

static uint64_t rnd(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

static int space_setup(void **state)
{
	struct umm_space *space = calloc(1, sizeof(*space));

	if (!space)
		return -1;
	umm_notifiers_init(&space->nots);
	*state = space;
	return 0;
}

static int space_teardown(void **state)
{
	struct umm_space *space = *state;

	umm_notifiers_destroy(space);
	assert_int_equal(allocated, 0);
	free(space);
	return 0;
}

/* -------------------------------------------------------------------- tree */

/* Everything that a search relies on, and what keeps it short: the number of entries of the leaves, or -1. */
static int check_node(const struct umm_itree_node *node, uint32_t level, unsigned *nodes)
{
	int sum = 0;

	if (node->level != level || !node->n || node->n > UMM_ITREE_ROOM)
		return -1;
	++*nodes;
	for (unsigned i = 0; i < node->n; i++) {
		const struct umm_itree_node *kid = level ? node->kid[i] : NULL;
		uint64_t end = 0;
		int n = 1;

		if (i && (node->start[i] < node->start[i - 1] ||
			  (node->start[i] == node->start[i - 1] && node->key[i] <= node->key[i - 1])))
			return -1;
		for (unsigned k = 0; kid && k < kid->n; k++)
			end = kid->end[k] > end ? kid->end[k] : end;
		if (kid ? node->start[i] != kid->start[0] || node->key[i] != kid->key[0] || node->end[i] != end
			: node->start[i] != node->key[i]->start || node->end[i] != node->key[i]->end)
			return -1;
		/* The last of one comes before the first of the next: the entries above are of the first. */
		if (i && level) {
			const struct umm_itree_node *left = node->kid[i - 1];

			if (left->n + kid->n < 8)
				return -1;
			for (uint32_t l = level - 1; l--;)
				left = left->kid[left->n - 1];
			if (left->start[left->n - 1] > node->start[i])
				return -1;
		}
		n = kid ? check_node(kid, level - 1, nodes) : 1;
		if (n < 0)
			return -1;
		sum += n;
	}
	return sum;
}

/* The same of the whole, and that no node has been lost. */
static int check_tree(const struct umm_itree *t)
{
	unsigned nodes = 0;
	uint64_t made = 0;
	int sum = 0;

	if (t->root)
		sum = check_node(t->root, t->levels - 1, &nodes);
	else if (t->levels)
		return -1;
	/* The chunk's head has one's place. */
	for (const struct umm_itree_chunk *c = t->chunks; c; c = c->next)
		made += c->size / sizeof(struct umm_itree_node) - 1;
	return nodes + t->nspare != made ? -1 : sum;
}

/* The naive list: the least in order, after the key, that overlaps. */
static struct umm_notifier *naive_next(struct umm_notifier *n, const bool *in, unsigned nr, uint64_t start,
				       uint64_t end, const struct umm_notifier *key)
{
	struct umm_notifier *best = NULL;

	for (unsigned i = 0; i < nr; i++) {
		if (!in[i] || n[i].start >= end || n[i].end <= start)
			continue;
		if (key && (n[i].start < key->start || (n[i].start == key->start && &n[i] <= key)))
			continue;
		if (!best || n[i].start < best->start)
			best = &n[i];
	}
	return best;
}

static void tree_is_like_a_list(void **state)
{
	enum { NR = 700 };
	static struct umm_notifier n[NR];
	static bool in[NR];
	uint64_t seed = 88172645463325252ull;
	pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
	struct umm_itree tree = {0};
	struct umm_itree_way way;
	uint32_t most = 0;
	int nr = 0;

	for (unsigned round = 0; round < (getenv("HMM_TEST_LONG") ? 40000 : 16000); round++) {
		unsigned i = rnd(&seed) % NR;
		uint64_t start = rnd(&seed) % 500, end = start + 1 + rnd(&seed) % 40;
		struct umm_notifier *a, *b;

		/* Fuller in one half of the rounds, emptier in the other. */
		if (in[i] && rnd(&seed) % 100 < (round % 8000 < 4000 ? 30 : 90)) {
			umm_itree_remove(&tree, &n[i]);
			in[i] = false;
			nr--;
		} else if (!in[i] && rnd(&seed) % 100 < (round % 8000 < 4000 ? 90 : 30)) {
			n[i].start = rnd(&seed) % 500;
			n[i].end = n[i].start + 1 + (rnd(&seed) % 10 ? rnd(&seed) % 10 : rnd(&seed) % 300);
			assert_int_equal(umm_itree_lock_for_one(&tree, NULL, &lock), 0);
			umm_itree_insert(&tree, &n[i]);
			pthread_mutex_unlock(&lock);
			in[i] = true;
			nr++;
		}
		assert_int_equal(check_tree(&tree), nr);
		most = tree.levels > most ? tree.levels : most;

		a = umm_itree_first(&tree, start, end, &way);
		b = naive_next(n, in, NR, start, end, NULL);
		assert_ptr_equal(a, b);
		for (unsigned k = 0; b && k < 20; k++) {
			struct umm_itree_way other;

			a = umm_itree_next(&tree, start, end, b->start, b, &other);
			assert_ptr_equal(umm_itree_after(&tree, start, end, &way), a);
			b = naive_next(n, in, NR, start, end, b);
			assert_ptr_equal(a, b);
		}
		/* A key that is not in the tree, any more or yet; and on from there. */
		i = rnd(&seed) % NR;
		a = umm_itree_next(&tree, start, end, n[i].start, &n[i], &way);
		b = naive_next(n, in, NR, start, end, &n[i]);
		assert_ptr_equal(a, b);
		if (b)
			assert_ptr_equal(umm_itree_after(&tree, start, end, &way),
					 naive_next(n, in, NR, start, end, b));
	}
	assert_true(most >= 3);
	for (unsigned i = 0; i < NR; i++) {
		if (in[i])
			umm_itree_remove(&tree, &n[i]);
		nr -= in[i];
		assert_int_equal(check_tree(&tree), nr);
	}
	umm_itree_free(NULL, umm_itree_unused(&tree, true));
	assert_int_equal(allocated, 0);
}

/* In order they fill their nodes, from either end; and emptied all but for few, the tree is low again. */
static void what_comes_in_order_fills_nodes(void **state)
{
	enum { NR = 15 * 15 * 15 };
	struct umm_notifier *n = calloc(NR, sizeof(*n));
	pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
	struct umm_itree tree = {0};

	assert_non_null(n);
	for (unsigned i = 0; i < NR; i++) {
		n[i].start = i;
		n[i].end = i + 1;
		assert_int_equal(umm_itree_lock_for_one(&tree, NULL, &lock), 0);
		umm_itree_insert(&tree, &n[i]);
		pthread_mutex_unlock(&lock);
	}
	assert_int_equal(check_tree(&tree), NR);
	assert_int_equal(tree.levels, 3);
	for (unsigned i = 0; i < NR; i++)
		if (i % 100)
			umm_itree_remove(&tree, &n[i]);
	assert_int_equal(check_tree(&tree), (NR + 99) / 100);
	assert_in_range(tree.levels, 1, 2);
	/* Much memory is not kept, a little is. */
	assert_null(umm_itree_unused(&tree, true));
	for (unsigned i = 0; i < NR; i += 100)
		umm_itree_remove(&tree, &n[i]);
	assert_true(tree.bytes > 65536);
	umm_itree_free(NULL, umm_itree_unused(&tree, false));
	assert_int_equal(allocated, 0);
	assert_int_equal(umm_itree_lock_for_one(&tree, NULL, &lock), 0);
	pthread_mutex_unlock(&lock);
	assert_null(umm_itree_unused(&tree, false));
	umm_itree_free(NULL, umm_itree_unused(&tree, true));
	assert_int_equal(allocated, 0);
	free(n);
}

static bool count_one(struct umm_notifier *n, const struct umm_change *change, uint64_t seq)
{
	umm_notifier_set_seq(n, seq);
	return true;
}

static const struct umm_notifier_ops plain_ops = {.invalidate = count_one};

static void a_million(void **state)
{
	const uint64_t NR = getenv("HMM_TEST_LONG") ? 1000000 : 100000;
	struct umm_space *space = *state;
	struct umm_notifier *n = calloc(NR, sizeof(*n));
	uint64_t seed = 1234567;

	assert_non_null(n);
	for (uint64_t i = 0; i < NR; i++) {
		uint64_t at = i * 7919 % NR;

		assert_int_equal(umm_notifier_insert(&n[at], space, at * 16 * PAGE, 16 * PAGE, &plain_ops), 0);
	}
	assert_int_equal(check_tree(&space->nots.tree), NR);
	/* What keeps a search short. */
	assert_in_range(space->nots.tree.levels, NR == 1000000 ? 6 : 5, NR == 1000000 ? 8 : 7);
	for (unsigned i = 0; i < 20000; i++) {
		uint64_t page = rnd(&seed) % (NR * 16);
		struct umm_change change = {
			.event = UMM_EVENT_UNMAP, .start = page * PAGE, .end = (page + 1) * PAGE, .blockable = true};
		uint64_t before = n[page / 16].seq;

		assert_int_equal(umm_invalidate_begin(space, &change), 0);
		assert_true(umm_read_retry(&n[page / 16], before));
		umm_invalidate_end(space, &change);
	}
	for (uint64_t i = 0; i < NR; i++)
		umm_notifier_remove(&n[i * 6007 % NR]);
	assert_null(space->nots.tree.root);
	assert_int_equal(allocated, 0);
	free(n);
}

static void without_memory(void **state)
{
	enum { NR = 1000 };
	struct umm_space *space = *state;
	struct umm_notifier *n = calloc(NR, sizeof(*n)), *refused;
	struct umm_change c = {.event = UMM_EVENT_UNMAP, .end = PAGE, .blockable = true};
	unsigned nr = 0;
	int rc;

	assert_non_null(n);
	allocate_most = 16384;
	while (!(rc = umm_notifier_insert(&n[nr], space, 0, PAGE, &plain_ops)) && nr < NR - 1)
		nr++;
	refused = &n[nr];
	assert_int_equal(rc, -ENOMEM);
	assert_true(nr > 15);
	/* It is nowhere: nobody tells it, and there is nothing to remove. */
	refused->seq = 4711;
	assert_int_equal(umm_invalidate_begin(space, &c), 0);
	umm_invalidate_end(space, &c);
	assert_int_equal(refused->seq, 4711);
	umm_notifier_remove(refused);
	assert_int_equal(check_tree(&space->nots.tree), (int)nr);
	for (unsigned i = 0; i < nr; i++)
		assert_true(umm_read_retry(&n[i], 1));
	allocate_most = SIZE_MAX;
	assert_int_equal(umm_notifier_insert(refused, space, 0, PAGE, &plain_ops), 0);
	for (unsigned i = 0; i <= nr; i++)
		umm_notifier_remove(&n[i]);
	free(n);
}

/* ---------------------------------------------------------------- protocol */

struct watcher {
	struct umm_notifier n;
	pthread_mutex_t lock;
	unsigned calls, releases;
	struct umm_change last;
	bool refuse;            /* says that it cannot block */
	bool remove;            /* removes and overwrites itself in its callback */
	atomic_int *hold;       /* 1: in the callback; waits there until 2 */
	struct watcher *insert; /* inserts this one over the same range in its callback */
};

static void wait_for(atomic_int *at, int value)
{
	while (atomic_load(at) != value)
		sched_yield();
}

static const struct umm_notifier_ops watcher_ops;

static bool watcher_invalidate(struct umm_notifier *n, const struct umm_change *change, uint64_t seq)
{
	struct watcher *w = (struct watcher *)n;

	w->calls++;
	w->last = *change;
	if (w->refuse && !change->blockable)
		return false;
	if (w->hold) {
		atomic_store(w->hold, 1);
		wait_for(w->hold, 2);
	}
	pthread_mutex_lock(&w->lock);
	umm_notifier_set_seq(n, seq);
	pthread_mutex_unlock(&w->lock);
	if (w->insert)
		assert_int_equal(
			umm_notifier_insert(&w->insert->n, n->space, n->start, n->end - n->start, &watcher_ops), 0);
	if (w->remove) {
		umm_notifier_remove(n);
		memset(n, 0xa5, sizeof(*n));
	}
	return true;
}

static void watcher_release(struct umm_notifier *n)
{
	((struct watcher *)n)->releases++;
	/* It is ours again: nothing may look at it. */
	memset(n, 0xa5, sizeof(*n));
}

static const struct umm_notifier_ops watcher_ops = {.invalidate = watcher_invalidate, .release = watcher_release};

static void watch(struct watcher *w, struct umm_space *space, uint64_t page, uint64_t npages)
{
	memset(w, 0, sizeof(*w));
	pthread_mutex_init(&w->lock, NULL);
	assert_int_equal(umm_notifier_insert(&w->n, space, page * PAGE, npages * PAGE, &watcher_ops), 0);
}

static struct umm_change pages(uint64_t page, uint64_t npages)
{
	return (struct umm_change){
		.event = UMM_EVENT_UNMAP, .start = page * PAGE, .end = (page + npages) * PAGE, .blockable = true};
}

static void bad_ranges_are_refused(void **state)
{
	struct umm_space *space = *state;
	struct umm_notifier n;

	assert_int_equal(umm_notifier_insert(&n, space, 1, PAGE, &plain_ops), -EINVAL);
	assert_int_equal(umm_notifier_insert(&n, space, PAGE, 1, &plain_ops), -EINVAL);
	assert_int_equal(umm_notifier_insert(&n, space, PAGE, 0, &plain_ops), -EINVAL);
	assert_int_equal(umm_notifier_insert(&n, space, 2 * PAGE, -PAGE, &plain_ops), -EINVAL);
	assert_int_equal(umm_notifier_insert(&n, space, 1ull << 63, PAGE, &plain_ops), -EINVAL);
	assert_int_equal(umm_notifier_insert(&n, space, PAGE, PAGE, NULL), -EINVAL);
	assert_null(space->nots.tree.root);
	/* The whole user half is a range. */
	assert_int_equal(umm_notifier_insert(&n, space, 0, 1ull << 47, &plain_ops), 0);
	umm_notifier_remove(&n);
	umm_notifier_remove(&n);
}

static void only_who_overlaps_is_told(void **state)
{
	struct umm_space *space = *state;
	struct umm_change c = pages(10, 10);
	struct watcher below, first, all, last, above;

	watch(&below, space, 5, 5);
	watch(&first, space, 9, 2);
	watch(&all, space, 0, 100);
	watch(&last, space, 19, 5);
	watch(&above, space, 20, 5);
	c.event = UMM_EVENT_MIGRATE;
	c.owner = &c;
	assert_int_equal(umm_invalidate_begin(space, &c), 0);
	assert_int_equal(below.calls, 0);
	assert_int_equal(first.calls, 1);
	assert_int_equal(all.calls, 1);
	assert_int_equal(last.calls, 1);
	assert_int_equal(above.calls, 0);
	assert_memory_equal(&all.last, &c, sizeof(c));
	umm_invalidate_end(space, &c);
	umm_notifier_remove(&all.n);
	assert_int_equal(umm_invalidate_begin(space, &c), 0);
	umm_invalidate_end(space, &c);
	assert_int_equal(all.calls, 1);
	assert_int_equal(first.calls, 2);
	umm_notifier_remove(&below.n);
	umm_notifier_remove(&first.n);
	umm_notifier_remove(&last.n);
	umm_notifier_remove(&above.n);
}

static void an_invalidation_makes_readers_retry(void **state)
{
	struct umm_space *space = *state;
	struct umm_change c = pages(10, 1);
	struct watcher w, other;
	uint64_t seq, other_seq;

	watch(&w, space, 10, 1);
	watch(&other, space, 11, 1);
	seq = umm_read_begin(&w.n);
	other_seq = umm_read_begin(&other.n);
	assert_false(umm_read_retry(&w.n, seq));
	umm_invalidate_begin(space, &c);
	assert_true(umm_read_retry(&w.n, seq));
	/* One that is not concerned neither sleeps nor retries. */
	assert_int_equal(umm_read_begin(&other.n), other_seq);
	assert_false(umm_read_retry(&other.n, other_seq));
	umm_invalidate_end(space, &c);
	assert_true(umm_read_retry(&w.n, seq));
	seq = umm_read_begin(&w.n);
	assert_false(umm_read_retry(&w.n, seq));
	umm_invalidate_begin(space, &c);
	umm_invalidate_end(space, &c);
	assert_true(umm_read_retry(&w.n, seq));
	umm_notifier_remove(&w.n);
	umm_notifier_remove(&other.n);
}

struct sleeper {
	struct umm_notifier *n;
	atomic_bool *running; /* an invalidation runs */
	atomic_int started;
	bool saw_running;
};

static void *sleeper_main(void *arg)
{
	struct sleeper *s = arg;

	atomic_store(&s->started, 1);
	umm_read_begin(s->n);
	s->saw_running = atomic_load(s->running);
	return NULL;
}

/* Long enough for a reader that does not sleep to be caught; a slow machine only makes the test milder. */
static void give_it_a_chance(void)
{
	for (unsigned i = 0; i < 50; i++) {
		sched_yield();
		usleep(200);
	}
}

static void readers_sleep_while_it_runs(void **state)
{
	struct umm_space *space = *state;
	struct umm_change c = pages(10, 1), c2 = pages(10, 1);
	atomic_bool running = true;
	struct watcher w, fresh;
	struct sleeper s = {.n = &w.n, .running = &running}, s2 = {.n = &fresh.n, .running = &running};
	pthread_t t, t2;

	watch(&w, space, 10, 1);
	umm_invalidate_begin(space, &c);
	umm_invalidate_begin(space, &c2);
	/* Inserted meanwhile: nobody has told it, so it must not read either. */
	watch(&fresh, space, 10, 1);
	assert_int_equal(pthread_create(&t, NULL, sleeper_main, &s), 0);
	assert_int_equal(pthread_create(&t2, NULL, sleeper_main, &s2), 0);
	wait_for(&s.started, 1);
	wait_for(&s2.started, 1);
	give_it_a_chance();
	umm_invalidate_end(space, &c);
	give_it_a_chance();
	atomic_store(&running, false);
	umm_invalidate_end(space, &c2);
	pthread_join(t, NULL);
	pthread_join(t2, NULL);
	assert_false(s.saw_running);
	assert_false(s2.saw_running);
	umm_notifier_remove(&w.n);
	umm_notifier_remove(&fresh.n);
}

static void inserted_under_an_unnoticed_invalidation(void **state)
{
	struct umm_space *space = *state;
	struct umm_change c = pages(10, 1);
	atomic_bool running = true;
	struct watcher w;
	struct sleeper s = {.n = &w.n, .running = &running};
	pthread_t t;

	umm_invalidate_begin(space, &c);
	watch(&w, space, 10, 1);
	assert_int_equal(pthread_create(&t, NULL, sleeper_main, &s), 0);
	wait_for(&s.started, 1);
	give_it_a_chance();
	atomic_store(&running, false);
	umm_invalidate_end(space, &c);
	pthread_join(t, NULL);
	assert_false(s.saw_running);
	umm_notifier_remove(&w.n);
}

static void a_refusal_undoes_what_has_begun(void **state)
{
	struct umm_space *space = *state;
	struct umm_change c = pages(10, 10);
	struct watcher a, b, z;
	uint64_t seq;

	watch(&a, space, 10, 1);
	watch(&b, space, 11, 1);
	watch(&z, space, 12, 1);
	seq = umm_read_begin(&a.n);
	b.refuse = true;
	c.blockable = false;
	assert_int_equal(umm_invalidate_begin(space, &c), -EAGAIN);
	assert_int_equal(a.calls, 1);
	assert_int_equal(z.calls, 0);
	assert_true(umm_read_retry(&a.n, seq));
	/* Nothing runs: this would sleep for ever if it did. */
	seq = umm_read_begin(&a.n);
	assert_false(umm_read_retry(&a.n, seq));
	assert_int_equal(space->nots.active, 0);
	c.blockable = true;
	assert_int_equal(umm_invalidate_begin(space, &c), 0);
	assert_int_equal(z.calls, 1);
	umm_invalidate_end(space, &c);
	umm_notifier_remove(&a.n);
	umm_notifier_remove(&b.n);
	umm_notifier_remove(&z.n);
}

static void removal_and_insertion_in_callbacks(void **state)
{
	struct umm_space *space = *state;
	struct umm_change c = pages(10, 10);
	struct watcher a, b, z, born;

	memset(&born, 0, sizeof(born));
	pthread_mutex_init(&born.lock, NULL);
	watch(&a, space, 10, 1);
	watch(&b, space, 11, 1);
	watch(&z, space, 12, 1);
	a.remove = b.remove = true;
	z.insert = &born;
	assert_int_equal(umm_invalidate_begin(space, &c), 0);
	z.insert = NULL;
	umm_invalidate_end(space, &c);
	assert_int_equal(a.calls + b.calls + z.calls, 3);
	assert_int_equal(umm_invalidate_begin(space, &c), 0);
	umm_invalidate_end(space, &c);
	assert_int_equal(a.calls + b.calls, 2);
	assert_int_equal(z.calls, 2);
	assert_true(born.calls >= 1);
	umm_notifier_remove(&z.n);
	umm_notifier_remove(&born.n);
}

struct changer {
	struct umm_space *space;
	struct umm_change c;
	atomic_int returned;
};

static void *changer_main(void *arg)
{
	struct changer *ch = arg;

	umm_invalidate_begin(ch->space, &ch->c);
	umm_invalidate_end(ch->space, &ch->c);
	atomic_store(&ch->returned, 1);
	return NULL;
}

struct remover {
	struct umm_notifier *n;
	atomic_int started, removed;
};

static void *remover_main(void *arg)
{
	struct remover *r = arg;

	atomic_store(&r->started, 1);
	umm_notifier_remove(r->n);
	atomic_store(&r->removed, 1);
	return NULL;
}

static void removal_waits_for_its_callback_only(void **state)
{
	struct umm_space *space = *state;
	struct changer ch = {.space = space, .c = pages(10, 10)};
	struct watcher w, other;
	struct remover r = {.n = &w.n};
	atomic_int hold = 0;
	pthread_t t, t2;

	watch(&w, space, 10, 1);
	watch(&other, space, 11, 1);
	w.hold = &hold;
	assert_int_equal(pthread_create(&t, NULL, changer_main, &ch), 0);
	wait_for(&hold, 1);
	/* Another one goes at once, though the invalidation covers it. */
	umm_notifier_remove(&other.n);
	assert_int_equal(pthread_create(&t2, NULL, remover_main, &r), 0);
	wait_for(&r.started, 1);
	give_it_a_chance();
	assert_int_equal(atomic_load(&r.removed), 0);
	atomic_store(&hold, 2);
	pthread_join(t2, NULL);
	pthread_join(t, NULL);
	assert_int_equal(other.calls, 0);
	assert_int_equal(w.calls, 1);
}

static void closing_releases(void **state)
{
	void *space = NULL;
	struct watcher a, b;

	assert_int_equal(space_setup(&space), 0);
	watch(&a, space, 10, 1);
	watch(&b, space, 10, 1);
	assert_int_equal(space_teardown(&space), 0);
	assert_int_equal(a.calls, 1);
	assert_int_equal(a.last.event, UMM_EVENT_RELEASE);
	assert_int_equal(a.releases, 1);
	assert_int_equal(b.calls, 1);
	assert_int_equal(b.releases, 1);
}

/* ----------------------------------------------------------------- threads */

/*
 * A device whose table holds a copy of the truth.  The truth changes only inside
 * an invalidation; so whoever holds the device's lock sees, of each page, either
 * nothing or the truth, and while an invalidation covers it, nothing.
 */
enum { PAGES = 64, SPAN = 8, READERS = 2, CHANGERS = 2, ROUNDS = 20000, EMPTY = -1 };

static struct {
	struct umm_space *space;
	pthread_mutex_t lock;
	struct umm_notifier n[PAGES / SPAN];
	int table[PAGES];
	_Atomic int truth[PAGES];
	_Atomic int changing[PAGES];
	atomic_bool stop;
	atomic_ulong stale, installed, retried;
} dev;

static bool dev_invalidate(struct umm_notifier *n, const struct umm_change *change, uint64_t seq)
{
	uint64_t start = change->start > n->start ? change->start : n->start;
	uint64_t end = change->end < n->end ? change->end : n->end;

	pthread_mutex_lock(&dev.lock);
	umm_notifier_set_seq(n, seq);
	for (uint64_t p = start / PAGE; p < end / PAGE; p++)
		dev.table[p] = EMPTY;
	pthread_mutex_unlock(&dev.lock);
	return true;
}

static const struct umm_notifier_ops dev_ops = {.invalidate = dev_invalidate};

static void *reader_main(void *arg)
{
	uint64_t seed = (uintptr_t)arg * 2654435761u + 99;

	while (!atomic_load(&dev.stop)) {
		unsigned p = rnd(&seed) % PAGES;
		struct umm_notifier *n = &dev.n[p / SPAN];
		uint64_t seq = umm_read_begin(n);
		int seen = atomic_load(&dev.truth[p]);

		if (rnd(&seed) % 4 == 0)
			sched_yield();
		pthread_mutex_lock(&dev.lock);
		if (umm_read_retry(n, seq)) {
			atomic_fetch_add(&dev.retried, 1);
		} else {
			dev.table[p] = seen;
			atomic_fetch_add(&dev.installed, 1);
		}
		/* Any page may be looked at under the lock. */
		p = rnd(&seed) % PAGES;
		if (dev.table[p] != EMPTY && (atomic_load(&dev.changing[p]) || dev.table[p] != dev.truth[p]))
			atomic_fetch_add(&dev.stale, 1);
		pthread_mutex_unlock(&dev.lock);
	}
	return NULL;
}

static void *dev_changer_main(void *arg)
{
	uint64_t seed = (uintptr_t)arg * 40503 + 7;

	for (unsigned round = 0; round < ROUNDS; round++) {
		unsigned p = rnd(&seed) % PAGES, len = 1 + rnd(&seed) % 12;
		struct umm_change c = pages(p, len = len < PAGES - p ? len : PAGES - p);

		umm_invalidate_begin(dev.space, &c);
		for (unsigned i = p; i < p + len; i++) {
			atomic_fetch_add(&dev.changing[i], 1);
			atomic_fetch_add(&dev.truth[i], 1);
		}
		if (rnd(&seed) % 4 == 0)
			sched_yield();
		pthread_mutex_lock(&dev.lock);
		for (unsigned i = p; i < p + len; i++)
			if (dev.table[i] != EMPTY)
				atomic_fetch_add(&dev.stale, 1);
		pthread_mutex_unlock(&dev.lock);
		for (unsigned i = p; i < p + len; i++)
			atomic_fetch_sub(&dev.changing[i], 1);
		umm_invalidate_end(dev.space, &c);
	}
	return NULL;
}

/* Comes and goes among the others; once removed, it must be left alone. */
static void *comer_main(void *arg)
{
	uint64_t seed = 4711;

	while (!atomic_load(&dev.stop)) {
		uint64_t page = rnd(&seed) % PAGES;
		struct umm_notifier *n = malloc(sizeof(*n));

		if (umm_notifier_insert(n, dev.space, page * PAGE, (PAGES - page) * PAGE, &plain_ops))
			abort();
		umm_read_begin(n);
		umm_notifier_remove(n);
		memset(n, 0xff, sizeof(*n));
		free(n);
	}
	return NULL;
}

static void threads_never_see_a_stale_entry(void **state)
{
	pthread_t reader[READERS], changer[CHANGERS], comer;

	dev.space = *state;
	pthread_mutex_init(&dev.lock, NULL);
	for (unsigned i = 0; i < PAGES; i++)
		dev.table[i] = EMPTY;
	for (unsigned i = 0; i < PAGES / SPAN; i++)
		assert_int_equal(umm_notifier_insert(&dev.n[i], dev.space, i * SPAN * PAGE, SPAN * PAGE, &dev_ops), 0);
	for (uintptr_t i = 0; i < READERS; i++)
		assert_int_equal(pthread_create(&reader[i], NULL, reader_main, (void *)i), 0);
	assert_int_equal(pthread_create(&comer, NULL, comer_main, NULL), 0);
	for (uintptr_t i = 0; i < CHANGERS; i++)
		assert_int_equal(pthread_create(&changer[i], NULL, dev_changer_main, (void *)i), 0);
	for (unsigned i = 0; i < CHANGERS; i++)
		pthread_join(changer[i], NULL);
	/* On a busy machine it may be that readers never met a moment without a change; now they do. */
	while (!atomic_load(&dev.installed))
		sched_yield();
	atomic_store(&dev.stop, true);
	for (unsigned i = 0; i < READERS; i++)
		pthread_join(reader[i], NULL);
	pthread_join(comer, NULL);
	print_message("installed %lu, begun again %lu\n", atomic_load(&dev.installed), atomic_load(&dev.retried));
	assert_int_equal(atomic_load(&dev.stale), 0);
	assert_true(atomic_load(&dev.installed) > 0);
	for (unsigned i = 0; i < PAGES / SPAN; i++)
		umm_notifier_remove(&dev.n[i]);
}

#define ON_SPACE(f) cmocka_unit_test_setup_teardown(f, space_setup, space_teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(tree_is_like_a_list),
		cmocka_unit_test(what_comes_in_order_fills_nodes),
		ON_SPACE(a_million),
		ON_SPACE(without_memory),
		ON_SPACE(bad_ranges_are_refused),
		ON_SPACE(only_who_overlaps_is_told),
		ON_SPACE(an_invalidation_makes_readers_retry),
		ON_SPACE(readers_sleep_while_it_runs),
		ON_SPACE(inserted_under_an_unnoticed_invalidation),
		ON_SPACE(a_refusal_undoes_what_has_begun),
		ON_SPACE(removal_and_insertion_in_callbacks),
		ON_SPACE(removal_waits_for_its_callback_only),
		cmocka_unit_test(closing_releases),
		ON_SPACE(threads_never_see_a_stale_entry),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
