/* SPDX-License-Identifier: MIT */
/*
 * A device that pins, and a registration cache on it: map_pinned() and invalidate_pinned()
 * (src/hmm/map.c), hmm_reg_get() (reg.c).
 *
 * One thread changes the mapping by a hooked call, another by a raw one, after which
 * it asks the cache; one has the device pin the page.  Nothing of the page is held
 * when a hooked change happens; what the cache gives out after a raw one is what is
 * there.  Pinning may fault, and who serves faults may be who runs the callback.
 *
 * BREAK 1 assert   the sequence is not looked at when the page has been pinned
 * BREAK 2 assert   a callback of a hooked call does not wait for who is pinning
 * BREAK 3 assert   the cache does not wait for what was read to be applied
 * BREAK 4 deadlock a late callback waits for who is pinning
 * BREAK 5 assert   a callback of a hooked call leaves what is held to others
 * BREAK 6 assert   a late callback does not mark what is held
 */
#include "common.pml"

mtype = { NONE, HELD, LOST };

byte frame = 1;   /* which page is there */
byte held;        /* which one the device has pinned */
bool tells;       /* a change that nobody has read */
bool evlock;
bool lock;        /* of the range */
byte running;     /* hooked changes: umm_read_begin() sleeps */
byte seq;
mtype pin = NONE;
bool pinning;

/* Lock held, and let go while the device works. */
inline unpin()
{
	pin = NONE;
	pinning = true;
	UNLOCK(lock);
	held = 0;
	LOCK(lock);
	pinning = false
}

inline wait_for_pinning()
{
	do
	:: !pinning -> break
	:: else -> UNLOCK(lock); atomic { !pinning && !lock -> lock = true }
	od
}

proctype mapper()
{
	byte s, maps;

	do
	:: maps == 2 -> break
	:: else ->
		atomic { !running -> s = seq }
		LOCK(lock);
		if
		:: pin == HELD -> maps++
		:: else ->
			wait_for_pinning();
			if
			:: pin != NONE -> unpin()
			:: else
			fi;
			UNLOCK(lock);
			LOCK(lock);
			if
			:: seq != s
			:: else ->
				pinning = true;
				UNLOCK(lock);
				!evlock; /* a fault of the pin's */
				held = frame;
				LOCK(lock);
				pinning = false;
				if
				:: seq != s && !BROKEN(1) -> unpin()
				:: else -> pin = HELD; maps++
				fi
			fi
		fi;
		UNLOCK(lock);
		if
		:: maps == 1 -> pin != HELD || !running && !tells && !evlock /* map again when it is lost, or everything is over */
		:: else
		fi
	od
}

proctype hooked()
{
	atomic { running++; !lock -> lock = true }
	seq++;
	if
	:: !BROKEN(2) -> wait_for_pinning()
	:: else
	fi;
	if
	:: pin == HELD -> pin = LOST
	:: else
	fi;
	if
	:: pin == LOST && !BROKEN(5) -> unpin()
	:: else
	fi;
	UNLOCK(lock);
	atomic { assert(!held); frame++; running-- }
}

proctype raw()
{
	atomic { frame++; tells = true }
	!tells;
	/* hmm_reg_get() */
	if
	:: !BROKEN(3) -> !evlock
	:: else
	fi;
	atomic {
		if
		:: pin == HELD -> assert(held == frame)
		:: else
		fi
	}
}

proctype monitor()
{
end:	do
	:: tells ->
		evlock = true;
		tells = false;
		LOCK(lock);
		seq++;
		if
		:: BROKEN(4) -> wait_for_pinning()
		:: else
		fi;
		if
		:: pin == HELD && !BROKEN(6) -> pin = LOST
		:: else
		fi;
		UNLOCK(lock);
		evlock = false
	od
}

init
{
	atomic {
		model_begin();
		run mapper();
		run hooked();
		run raw();
		run monitor()
	}
}
