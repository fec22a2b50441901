/* SPDX-License-Identifier: MIT */
/* What all models have: a lock, and the rule that is broken in this run (model.py sets it; 0: none). */
byte broken;

#define BROKEN(n) (broken == (n))

#define LOCK(l) atomic { !l -> l = true }
#define UNLOCK(l) l = false

inline model_begin()
{
	c_code {
		const char *b = getenv("MODEL_BREAK");

		now.broken = b ? (unsigned char)atoi(b) : 0;
	};
}
