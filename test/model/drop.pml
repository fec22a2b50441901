/* SPDX-License-Identifier: MIT */
/*
 * Contents that are dropped by a raw call, and a mirror: src/umm/quarantine.c,
 * umm_range_fault() (range.c), umm_space_populate() (space.c), the events (monitor.c).
 *
 * One thread drops a range of two pages: the kernel tells of it, waits until that
 * has been read, and drops page 0, then page 1.  While it does, it has the lock of
 * the address space (MADV_DONTNEED) or nobody's fault puts a page there
 * (MADV_REMOVE).  Another thread touches pages of it, or unmaps page 1.  A device
 * maps what of the range umm_range_fault() says is there.  Once both calls have
 * returned, and what was read of them has been applied, the device has nothing but
 * what is there.
 *
 * Left out: the grace period, but that it is over when the call has returned; what
 * is done about pages that come in while a sign is chosen (populating), without
 * which nothing is found either, since who drops is waited for; the driver's lock,
 * for which see notifier.pml.
 *
 * BREAK 1 assert   the quarantine is asked for after the look, not before it
 * BREAK 2 assert   there is no quarantine
 * BREAK 3 assert   of shared memory, what is above the sign is not looked at
 * BREAK 4 assert   a sign that is absent is believed while a change is under way
 * BREAK 5 assert   a sign that is absent is believed while what was read is being applied
 * BREAK 6 assert   nobody waits for the end of the call that has dropped the sign
 * BREAK 7 assert   the reader of events takes the event lock after it has read
 * BREAK 8 assert   that the sign was unmapped is not entered
 * BREAK 9 assert   pages are asked for in what is about to be dropped, and looked at no more
 * BREAK 10 assert  the callback does not move the sequence on
 * BREAK 11 assert  where the sign was unmapped and nothing is below it, the quarantine ends
 * BREAK 12 assert  when the sign is touched again the quarantine ends at once
 * BREAK 13 assert  a touch is served outside of the event lock
 */
#include "common.pml"

#define NONE 2
#define WANTS(i) (wants == (i)) /* the mirror is for one of the pages */
#define LACKS(i) (WANTS(i) && !seen[i])

/* The kernel's. */
byte frame[2];       /* which page is there; 0: none */
bool mapped[2];
byte next_frame = 1;
byte changing;       /* the guard: mmap_changing */
bool tells_drop, tells_unmap; /* events that nobody has read */
byte mm_readers;     /* holders of the lock of the address space */
bool punches;        /* it is MADV_REMOVE, of shared memory */
bool punching;       /* faults wait */
/* Ours. */
bool evlock;         /* exclusively */
byte shared;
bool qlock;
bool quarantine;
byte sign = NONE;
bool sign_touched;   /* it was absent: we have filled it */
bool managed;        /* touches of what is absent are served by us */
byte seq;            /* of the notifier; a callback moves it on */
byte device[2];
/* What was called has returned. */
bool dropped, changed;

inline touch(i)
{
	atomic {
		if
		:: mapped[i] && !frame[i] && !punching -> frame[i] = next_frame; next_frame++
		:: !mapped[i] || frame[i]
		fi
	}
}

/* A touch of the program's; where we serve it, umm_quarantine_filled() with the event lock shared */
inline touched(i)
{
	if
	:: managed -> atomic { !evlock || BROKEN(13) -> shared++ }
	:: else
	fi;
	atomic {
		if
		:: mapped[i] && !frame[i] && !punching -> frame[i] = next_frame; next_frame++; filled = managed
		:: !mapped[i] || frame[i]
		fi
	}
	if
	:: filled ->
		atomic {
			!qlock;
			if
			:: quarantine && sign == i -> sign_touched = true; quarantine = !BROKEN(12)
			:: else
			fi;
			filled = false
		}
	:: else
	fi;
	shared = 0
}

proctype dropper()
{
	atomic { changing++; tells_drop = true }
	!tells_drop;
	changing--;
	if
	:: punches -> punching = true
	:: else -> mm_readers++
	fi;
	frame[0] = 0;
	frame[1] = 0;
	d_step { mm_readers = 0; punching = false; dropped = true }
}

proctype other()
{
	byte what;
	bool filled;

	select(what: 1 .. 4);
	if
	:: what == 1 || what == 3 -> touched(0)
	:: else
	fi;
	if
	:: what == 2 || what == 3 -> touched(1)
	:: what == 4 ->
		atomic { mm_readers == 0 -> changing++; mapped[1] = false; frame[1] = 0; tells_unmap = true }
		!tells_unmap;
		changing--
	:: else
	fi;
	changed = true
}

inline find_sign()
{
	if
	:: frame[1] -> sign = 1
	:: !frame[1] && frame[0] -> sign = 0
	:: else -> sign = NONE
	fi
}

inline callback()
{
	d_step {
		if
		:: !BROKEN(10) -> seq++
		:: else
		fi;
		if
		:: drop -> device[0] = 0
		:: else
		fi;
		device[1] = 0
	}
}

proctype monitor()
{
	bool drop, unmap;

end:	do
	:: tells_drop || tells_unmap ->
		if
		:: !BROKEN(7) -> atomic { !shared || BROKEN(13) -> evlock = true }
		:: else
		fi;
		d_step { drop = tells_drop; unmap = tells_unmap; tells_drop = false; tells_unmap = false }
		if
		:: BROKEN(7) -> evlock = true
		:: else
		fi;
		if
		:: unmap && !BROKEN(8) -> /* umm_quarantine_unmapping() */
			atomic {
				!qlock;
				if
				:: quarantine && sign == 1 && !sign_touched ->
					if
					:: frame[0] -> sign = 0
					:: else -> sign = NONE; quarantine = !BROKEN(11)
					fi
				:: else
				fi
			}
		:: else
		fi;
		if
		:: drop && !BROKEN(2) -> /* umm_quarantine_dropping() */
			atomic { !qlock; find_sign(); quarantine = true; sign_touched = false }
		:: else
		fi;
		callback();
		d_step { drop = false; unmap = false; evlock = false }
	od
}

/* umm_quarantined(), is_over() */
inline ask_quarantine()
{
	LOCK(qlock);
	busy = quarantine;
	if
	:: busy ->
		if
		:: dropped -> busy = false /* the grace period */
		:: !dropped && sign != NONE ->
			if
			:: !frame[sign] || sign_touched ->
				if
				:: changing == 0 || BROKEN(4) ->
					if
					:: !evlock || BROKEN(5) ->
						if
						:: mm_readers == 0 || BROKEN(6)
						fi;
						busy = punches && sign == 0 && frame[1] && !BROKEN(3)
					:: else
					fi
				:: else
				fi
			:: else
			fi
		:: else
		fi;
		quarantine = busy
	:: else
	fi;
	UNLOCK(qlock)
}

/* umm_space_populate() of what is lacking */
inline populate()
{
	ask_quarantine();
	if
	:: !busy ->
		if
		:: WANTS(0) -> touch(0)
		:: else
		fi;
		if
		:: WANTS(1) -> touch(1)
		:: else
		fi
	:: else
	fi
}

proctype mirror()
{
	byte s, seen[2], wants;
	bool busy, ready;

	select(wants: 0 .. 1);
	do
	:: ready -> break
	:: else ->
		s = seq; /* a late callback is over at once, or comes */
		if
		:: BROKEN(1)
		:: else -> ask_quarantine()
		fi;
		if
		:: !busy && seq == s ->
			if
			:: WANTS(0) -> seen[0] = frame[0]
			:: else
			fi;
			if
			:: WANTS(1) -> seen[1] = frame[1]
			:: else
			fi;
			if
			:: BROKEN(1) -> ask_quarantine()
			:: else
			fi;
			if
			:: busy -> skip
			:: !busy && WANTS(1) && !mapped[1] -> ready = seq == s /* -EFAULT */
			:: !busy && (!WANTS(1) || mapped[1]) && (LACKS(0) || LACKS(1)) ->
				populate();
				if
				:: BROKEN(9) && seq == s ->
					d_step {
						if
						:: WANTS(0) -> device[0] = frame[0]
						:: else
						fi;
						if
						:: WANTS(1) -> device[1] = frame[1]
						:: else
						fi;
						ready = true
					}
				:: else
				fi
			:: !busy && (!WANTS(1) || mapped[1]) && !LACKS(0) && !LACKS(1) ->
				d_step {
					if
					:: seq == s -> device[0] = seen[0]; device[1] = seen[1]; ready = true
					:: else
					fi
				}
			fi
		:: else
		fi;
		d_step { seen[0] = 0; seen[1] = 0; busy = false }
	od
}

#define RIGHT(i) (device[i] == 0 || device[i] == frame[i])

proctype watcher()
{
	atomic {
		dropped && changed && !tells_drop && !tells_unmap && !evlock ->
		assert(RIGHT(0) && RIGHT(1))
	}
}

init
{
	atomic {
		model_begin();
		mapped[0] = true;
		if
		:: punches = true
		:: managed = true
		:: skip
		fi;
		mapped[1] = true;
		if
		:: frame[0] = next_frame; next_frame++
		:: skip
		fi;
		if
		:: frame[1] = next_frame; next_frame++
		:: skip
		fi;
		run dropper();
		run other();
		run monitor();
		run mirror();
		run watcher()
	}
}
