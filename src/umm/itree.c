/* SPDX-License-Identifier: MIT */
/*
 * Intervals in a balanced tree.
 *
 * DOC: shape
 *
 * A B+ tree: what a search reads lies close together, in memory of the tree's own,
 * and it has a cache miss or two a level where there are six levels among a
 * million.  An entry knows the greatest end of all that is below it: the first
 * entry that ends late enough leads to the first of all that do.  That one either
 * overlaps, or starts too late, and with it all that comes after.  So one way
 * down answers, and nothing is tried in vain.
 *
 * A node that is full is split, into halves or, at the right edge, so that what
 * comes in order fills its nodes.  Two nodes side by side become one when they
 * have few entries left.  Nothing points upwards; who changes something
 * remembers the way.
 *
 * DOC: memory
 *
 * A removal needs none.  An insertion may split a node of each level, and so
 * many are kept ready: who is about to insert sees to it (umm_itree_lock_for_one()).
 * Chunks of nodes double in size, from a page on: few notifiers cost little.  They
 * are kept until the tree is empty.
 */
#include "umm/itree.h"

#include <assert.h>
#include <errno.h>
#include <stddef.h>
#include <string.h>

#define ROOM UMM_ITREE_ROOM
#define LINE _Alignof(struct umm_itree_node)
#define MERGED 12u /* not so full that the next insertion splits it again */
#define CHUNK_LEAST 4096u
#define CHUNK_MOST (1u << 20)
#define KEPT (64u << 10)

/* ------------------------------------------------------------------- memory */

static void node_free(struct umm_itree *t, struct umm_itree_node *node)
{
	node->kid[0] = t->spare;
	t->spare = node;
	t->nspare++;
}

static struct umm_itree_node *node_new(struct umm_itree *t, uint32_t level)
{
	struct umm_itree_node *node = t->spare;

	assert(t->nspare);
	t->spare = node->kid[0];
	t->nspare--;
	node->n = 0;
	node->level = level;
	return node;
}

static void give(struct umm_itree *t, void *memory, uint64_t size)
{
	struct umm_itree_chunk *c = memory;
	uintptr_t end = (uintptr_t)memory + size;
	struct umm_itree_node *node = (void *)(((uintptr_t)(c + 1) + LINE - 1) & ~(LINE - 1));

	c->next = t->chunks;
	c->size = size;
	t->chunks = c;
	t->bytes += size;
	for (; (uintptr_t)(node + 1) <= end; node++)
		node_free(t, node);
}

int umm_itree_lock_for_one(struct umm_itree *t, struct umm_space *space, pthread_mutex_t *lock)
{
	pthread_mutex_lock(lock);
	while (t->nspare <= t->levels) {
		uint64_t size = t->bytes < CHUNK_LEAST ? CHUNK_LEAST : t->bytes > CHUNK_MOST ? CHUNK_MOST : t->bytes;
		void *memory;

		pthread_mutex_unlock(lock);
		memory = umm_alloc(space, size);
		if (!memory)
			return -ENOMEM;
		pthread_mutex_lock(lock);
		give(t, memory, size);
	}
	return 0;
}

struct umm_itree_chunk *umm_itree_unused(struct umm_itree *t, bool all)
{
	struct umm_itree_chunk *c = t->chunks;

	if (t->root || (!all && t->bytes <= KEPT))
		return NULL;
	*t = (struct umm_itree){0};
	return c;
}

void umm_itree_free(struct umm_space *space, struct umm_itree_chunk *unused)
{
	while (unused) {
		struct umm_itree_chunk *next = unused->next;

		umm_free(space, unused, unused->size);
		unused = next;
	}
}

/* ------------------------------------------------------------------- entries */

static bool before(uint64_t a_start, const struct umm_notifier *a, uint64_t b_start, const struct umm_notifier *b)
{
	return a_start != b_start ? a_start < b_start : (uintptr_t)a < (uintptr_t)b;
}

/* How many entries are the key, or come before it. */
static unsigned up_to(const struct umm_itree_node *node, uint64_t start, const struct umm_notifier *key)
{
	unsigned i = 0;

	while (i < node->n && !before(start, key, node->start[i], node->key[i]))
		i++;
	return i;
}

/* From @i on they are moved by @by, or those before it lost. */
static void shift(struct umm_itree_node *to, unsigned at, const struct umm_itree_node *from, unsigned i, unsigned n)
{
	memmove(&to->end[at], &from->end[i], n * sizeof(to->end[0]));
	memmove(&to->start[at], &from->start[i], n * sizeof(to->start[0]));
	memmove(&to->key[at], &from->key[i], n * sizeof(to->key[0]));
	if (to->level)
		memmove(&to->kid[at], &from->kid[i], n * sizeof(to->kid[0]));
}

static void open_at(struct umm_itree_node *node, unsigned i)
{
	assert(node->n < ROOM);
	shift(node, i + 1, node, i, node->n - i);
	node->n++;
}

static void close_at(struct umm_itree_node *node, unsigned i)
{
	assert(i < node->n);
	node->n--;
	shift(node, i, node, i + 1, node->n - i);
}

/* Entry @i of @node is @kid. */
static void know(struct umm_itree_node *node, unsigned i, struct umm_itree_node *kid)
{
	uint64_t end = 0;

	for (unsigned k = 0; k < kid->n; k++)
		end = kid->end[k] > end ? kid->end[k] : end;
	node->end[i] = end;
	node->start[i] = kid->start[0];
	node->key[i] = kid->key[0];
	node->kid[i] = kid;
}

/* To the leaf that has the key, or should; i of the leaf: how many entries are the key, or come before it. */
static void go_down(const struct umm_itree *t, uint64_t start, const struct umm_notifier *key,
		    struct umm_itree_way *way)
{
	for (struct umm_itree_node *node = t->root;; node = node->kid[way->i[node->level]]) {
		unsigned i = up_to(node, start, key);

		way->node[node->level] = node;
		way->i[node->level] = node->level && i ? i - 1 : i;
		if (!node->level)
			return;
	}
}

/* ------------------------------------------------------------------- changes */

/* What is right of @i goes to a new node; at the right edge of the tree that is nothing. */
static struct umm_itree_node *split(struct umm_itree *t, struct umm_itree_node *node, unsigned i, bool at_edge)
{
	struct umm_itree_node *right = node_new(t, node->level);
	unsigned keep = at_edge && i == node->n ? node->n : node->n / 2;

	right->n = node->n - keep;
	shift(right, 0, node, keep, right->n);
	node->n = keep;
	return right;
}

void umm_itree_insert(struct umm_itree *t, struct umm_notifier *n)
{
	struct umm_itree_node *right = NULL;
	struct umm_itree_way way;
	bool at_edge = true;

	if (!t->root) {
		t->root = node_new(t, 0);
		t->levels = 1;
	}
	go_down(t, n->start, n, &way);
	for (unsigned l = t->levels; --l;)
		at_edge &= way.i[l] == way.node[l]->n - 1;
	for (unsigned l = 0; l < t->levels; l++) {
		struct umm_itree_node *node = way.node[l], *at = node, *other = right;
		unsigned i = way.i[l];

		if (l) {
			know(node, i, way.node[l - 1]);
			if (!other)
				continue;
			i++;
		}
		right = NULL;
		if (node->n == ROOM) {
			right = split(t, node, i, at_edge);
			if (i > node->n || !right->n) {
				at = right;
				i -= node->n;
			}
		}
		open_at(at, i);
		if (l) {
			know(at, i, other);
		} else {
			at->end[i] = n->end;
			at->start[i] = n->start;
			at->key[i] = n;
		}
	}
	if (right) {
		struct umm_itree_node *root = node_new(t, t->levels);

		assert(t->levels < UMM_ITREE_LEVELS);
		know(root, 0, t->root);
		know(root, 1, right);
		root->n = 2;
		t->root = root;
		t->levels++;
	}
}

/* Kids @i and the next of @node become one, if it is not too full. */
static bool merge(struct umm_itree *t, struct umm_itree_node *node, unsigned i)
{
	struct umm_itree_node *left = node->kid[i], *right = node->kid[i + 1];

	if (left->n + right->n > MERGED)
		return false;
	shift(left, left->n, right, 0, right->n);
	left->n += right->n;
	node_free(t, right);
	close_at(node, i + 1);
	know(node, i, left);
	return true;
}

void umm_itree_remove(struct umm_itree *t, struct umm_notifier *n)
{
	struct umm_itree_way way;

	go_down(t, n->start, n, &way);
	assert(way.i[0] && way.node[0]->key[way.i[0] - 1] == n);
	close_at(way.node[0], way.i[0] - 1);
	for (unsigned l = 1; l < t->levels; l++) {
		struct umm_itree_node *node = way.node[l], *kid = way.node[l - 1];
		unsigned i = way.i[l];

		if (!kid->n) {
			node_free(t, kid);
			close_at(node, i);
			continue;
		}
		know(node, i, kid);
		if (!(i && merge(t, node, i - 1)) && i + 1 < node->n)
			merge(t, node, i);
	}
	while (t->root && (t->root->level ? t->root->n == 1 : !t->root->n)) {
		struct umm_itree_node *root = t->root;

		t->root = root->level ? root->kid[0] : NULL;
		t->levels--;
		node_free(t, root);
	}
}

/* -------------------------------------------------------------------- looking */

/* The first from entry way->i[l] on, of that level's node. */
static struct umm_notifier *first_from(struct umm_itree_way *way, unsigned l, uint64_t start, uint64_t end)
{
	for (;;) {
		const struct umm_itree_node *node = way->node[l];
		unsigned i = way->i[l];

		while (i < node->n && node->end[i] <= start)
			i++;
		way->i[l] = i;
		if (i == node->n || node->start[i] >= end)
			return NULL;
		if (!l--)
			return node->key[i];
		way->node[l] = node->kid[i];
		way->i[l] = 0;
	}
}

/* The first from entry way->i[0] of the leaf on: what is right of it comes next, then what is right of its parent. */
static struct umm_notifier *go_on(const struct umm_itree *t, struct umm_itree_way *way, uint64_t start, uint64_t end)
{
	struct umm_notifier *n = first_from(way, 0, start, end);

	for (unsigned l = 1; l < t->levels && !n; l++) {
		way->i[l]++;
		n = first_from(way, l, start, end);
	}
	return n;
}

struct umm_notifier *umm_itree_first(const struct umm_itree *t, uint64_t start, uint64_t end, struct umm_itree_way *way)
{
	if (!t->root)
		return NULL;
	way->node[t->root->level] = t->root;
	way->i[t->root->level] = 0;
	return first_from(way, t->root->level, start, end);
}

struct umm_notifier *umm_itree_after(const struct umm_itree *t, uint64_t start, uint64_t end, struct umm_itree_way *way)
{
	way->i[0]++;
	return go_on(t, way, start, end);
}

struct umm_notifier *umm_itree_next(const struct umm_itree *t, uint64_t start, uint64_t end, uint64_t key_start,
				    const struct umm_notifier *key, struct umm_itree_way *way)
{
	if (!t->root)
		return NULL;
	go_down(t, key_start, key, way);
	return go_on(t, way, start, end);
}
