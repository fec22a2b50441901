/* SPDX-License-Identifier: MIT */
/*
 * The event lock: src/umm/evlock.h, with its futex, and without the time-out that
 * the code has as a belt.
 *
 * Two share it, two want it for themselves, each ROUNDS times.
 * Nobody has it beside somebody who has it exclusively, nobody sleeps for ever,
 * and who wants it exclusively is not passed by for ever (WANT).
 *
 * BREAK 1 assert   who shares does not look whether it is held exclusively
 * BREAK 2 deadlock who lets go of its share wakes nobody
 * BREAK 3 deadlock who lets go of the whole wakes nobody
 * BREAK 4 deadlock a sleeper does not compare the word when it falls asleep
 * BREAK 5 deadlock who ends WANT takes the note that somebody sleeps with it
 */
#include "common.pml"

#ifndef ROUNDS
#define ROUNDS 1
#endif

bool excl, want, note; /* UMM_EVLOCK_EXCL, _WANT, _SLEEP */
byte count;
bool asleep[6]; /* in the futex, by process */
byte in_excl, in_shared;

inline wake_all()
{
	asleep[1] = false; asleep[2] = false; asleep[3] = false; asleep[4] = false
}

/* umm_evlock_sleep(): the word as it was seen has been kept in w_... */
inline sleep_on_word()
{
	atomic {
		if
		:: excl == w_excl && want == w_want && count == w_count && note == w_note ->
			note = true;
			w_note = true
		:: else -> goto awake
		fi
	}
	atomic {
		if
		:: BROKEN(4) || (excl == w_excl && want == w_want && count == w_count && note == w_note) -> asleep[_pid] = true
		:: else -> goto awake
		fi
	}
	!asleep[_pid];
awake:
	skip
}

inline look()
{
	d_step { w_excl = excl; w_want = want; w_count = count; w_note = note }
}

proctype sharer()
{
	byte round, w_count;
	bool w_excl, w_want, w_note, got, last;

	do
	:: round == ROUNDS -> break
	:: else ->
		got = false;
		do
		:: got -> break
		:: else ->
			look();
			if
			:: (!w_excl || BROKEN(1)) && !w_want ->
				d_step {
					if
					:: (excl == w_excl && want == w_want && count == w_count && note == w_note) ->
						count++;
						got = true
					:: else
					fi
				}
			:: else -> sleep_on_word()
			fi
		od;
		in_shared++;
		assert(!in_excl);
		in_shared--;
		d_step { count--; last = count == 0 && note }
		if
		:: last && !BROKEN(2) ->
			note = false;
			d_step { wake_all() }
		:: else
		fi;
		round++
	od
}

proctype owner()
{
	byte round, w_count;
	bool w_excl, w_want, w_note, got;

	do
	:: round == ROUNDS -> break
	:: else ->
		got = false;
		do
		:: got -> break
		:: else ->
			look();
			if
			:: !w_excl && w_count == 0 ->
				d_step {
					if
					:: (excl == w_excl && want == w_want && count == w_count && note == w_note) ->
						excl = true;
						want = false;
						got = true;
						if
						:: BROKEN(5) -> note = false
						:: else
						fi
					:: else
					fi
				}
			:: else ->
				if
				:: !w_want -> want = true
				:: else -> sleep_on_word()
				fi
			fi
		od;
		in_excl++;
		assert(in_excl == 1 && !in_shared);
		in_excl--;
		d_step { w_note = note; excl = false; want = false; note = false }
		if
		:: w_note && !BROKEN(3) -> d_step { wake_all() }
		:: else
		fi;
		round++
	od
}

init
{
	atomic {
		model_begin();
		run sharer();
		run sharer();
		run owner();
		run owner()
	}
}
