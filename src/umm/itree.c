/* SPDX-License-Identifier: MIT */
/*
 * Intervals in a balanced tree.
 *
 * DOC: shape
 *
 * An AVL tree: of the balanced trees it is the lowest, and a search among many
 * costs one cache miss a level.  Each node knows the greatest end on either side
 * below it, which lets a search turn away from subtrees that end too early
 * without a look at them.
 */
#include "umm/itree.h"

static bool before(uint64_t a_start, const struct umm_notifier *a, uint64_t b_start, const struct umm_notifier *b)
{
	return a_start != b_start ? a_start < b_start : (uintptr_t)a < (uintptr_t)b;
}

static uint32_t height(const struct umm_notifier *n)
{
	return n ? n->height : 0;
}

/* The greatest end in the subtree. */
static uint64_t reach(const struct umm_notifier *n)
{
	uint64_t end;

	if (!n)
		return 0;
	end = n->left_end > n->right_end ? n->left_end : n->right_end;
	return n->end > end ? n->end : end;
}

/* Recompute what @n knows of its subtree; true when its parent does not know how high it is, or how far it reaches. */
static bool update(struct umm_notifier *n)
{
	uint32_t hl = height(n->left), hr = height(n->right);
	uint32_t h = 1 + (hl > hr ? hl : hr);
	bool changed = h != n->height;

	n->height = h;
	n->left_end = reach(n->left);
	n->right_end = reach(n->right);
	if (n->parent)
		changed |= reach(n) != (n == n->parent->left ? n->parent->left_end : n->parent->right_end);
	return changed;
}

static void replace_child(struct umm_notifier **root, struct umm_notifier *parent, const struct umm_notifier *child,
			  struct umm_notifier *by)
{
	if (!parent)
		*root = by;
	else if (parent->left == child)
		parent->left = by;
	else
		parent->right = by;
	if (by)
		by->parent = parent;
}

static struct umm_notifier *rotate_left(struct umm_notifier **root, struct umm_notifier *n)
{
	struct umm_notifier *top = n->right;

	replace_child(root, n->parent, n, top);
	n->right = top->left;
	if (n->right)
		n->right->parent = n;
	top->left = n;
	n->parent = top;
	update(n);
	update(top);
	return top;
}

static struct umm_notifier *rotate_right(struct umm_notifier **root, struct umm_notifier *n)
{
	struct umm_notifier *top = n->left;

	replace_child(root, n->parent, n, top);
	n->left = top->right;
	if (n->left)
		n->left->parent = n;
	top->right = n;
	n->parent = top;
	update(n);
	update(top);
	return top;
}

/* Mend the tree from @n upwards, until nothing changes any more. */
static void rebalance(struct umm_notifier **root, struct umm_notifier *n)
{
	for (; n; n = n->parent) {
		bool changed = update(n);
		uint32_t hl = height(n->left), hr = height(n->right);

		if (hl > hr + 1) {
			if (height(n->left->right) > height(n->left->left))
				rotate_left(root, n->left);
			n = rotate_right(root, n);
		} else if (hr > hl + 1) {
			if (height(n->right->left) > height(n->right->right))
				rotate_right(root, n->right);
			n = rotate_left(root, n);
		} else if (!changed) {
			return;
		}
	}
}

void umm_itree_insert(struct umm_notifier **root, struct umm_notifier *n)
{
	struct umm_notifier **link = root, *parent = NULL;

	while (*link) {
		parent = *link;
		link = before(n->start, n, parent->start, parent) ? &parent->left : &parent->right;
	}
	n->left = n->right = NULL;
	n->parent = parent;
	n->height = 0;
	*link = n;
	rebalance(root, n);
}

void umm_itree_remove(struct umm_notifier **root, struct umm_notifier *n)
{
	struct umm_notifier *from;

	if (n->left && n->right) {
		struct umm_notifier *s = n->right;

		while (s->left)
			s = s->left;
		from = s->parent == n ? s : s->parent;
		if (s != n->right) {
			replace_child(root, s->parent, s, s->right);
			s->right = n->right;
			s->right->parent = s;
		}
		s->left = n->left;
		s->left->parent = s;
		replace_child(root, n->parent, n, s);
		/* What those above go by so far: mending must not stop before they see the difference. */
		s->height = n->height;
		rebalance(root, from);
		rebalance(root, s);
	} else {
		from = n->parent;
		replace_child(root, n->parent, n, n->left ? n->left : n->right);
		rebalance(root, from);
	}
	n->left = n->right = n->parent = NULL;
	n->height = 0;
}

struct umm_notifier *umm_itree_first(struct umm_notifier *n, uint64_t start, uint64_t end)
{
	while (n) {
		/*
		 * If something on the left ends late enough, then either it overlaps, or it
		 * starts too late, and with it all that comes after.
		 */
		if (n->left_end > start) {
			n = n->left;
			continue;
		}
		if (n->start >= end)
			return NULL;
		if (n->end > start)
			return n;
		n = n->right;
	}
	return NULL;
}

struct umm_notifier *umm_itree_after(struct umm_notifier *n, uint64_t start, uint64_t end)
{
	/* What is right of it comes next, then what is further up. */
	do {
		if (n->right_end > start)
			return umm_itree_first(n->right, start, end);
		while (n->parent && n == n->parent->right)
			n = n->parent;
		n = n->parent;
	} while (n && n->start < end && n->end <= start);
	return n && n->start < end ? n : NULL;
}

struct umm_notifier *umm_itree_next(struct umm_notifier *root, uint64_t start, uint64_t end, uint64_t key_start,
				    const struct umm_notifier *key)
{
	struct umm_notifier *n = NULL;

	for (struct umm_notifier *at = root; at;) {
		if (before(key_start, key, at->start, at)) {
			n = at;
			at = at->left;
		} else {
			at = at->right;
		}
	}
	if (!n || n->start >= end)
		return NULL;
	return n->end > start ? n : umm_itree_after(n, start, end);
}
