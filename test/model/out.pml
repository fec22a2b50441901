/* SPDX-License-Identifier: MIT */
/*
 * A page on its way out and back: src/hmm/migrate.c, fault.c, residency.c, src/umm/ctl.h, inside.c, monitor.c.
 *
 * One thread of the program writes and reads a page, another drops its contents
 * (MADV_DONTNEED, told of before) or unmaps and maps it (told of after).  The
 * engine moves the page out, a task inside carries that out, a device keeps it or
 * refuses, one thread reads events and faults, another serves faults.
 *
 * Who reads gets what was written last, or zeros where a drop has come in between;
 * never what was written before a drop that had returned.  Nobody waits for ever.
 * Steps of a page's state are those of hmm_entry_set().
 *
 * An exclusive access is a migration to a device's memory; so this is its model, too.
 *
 * BREAK 1 assert   the inside does not compare the epoch
 * BREAK 2 assert   the reader of events takes the event lock after it has read
 * BREAK 3 assert   there is no quarantine
 * BREAK 4 assert   what a device gave is placed without a second look at the entry
 * BREAK 5 deadlock who commits a batch does not wake who has waited for a page of it
 * BREAK 6 assert   who copies from a device holds no reference
 * BREAK 7 assert   who has stored a page does not look whether it was taken back
 * BREAK 8 assert   a page is filled with zeros without a second look at the entry
 * BREAK 9 assert   the inside moves without the event lock
 * BREAK 10 assert  what is mapped anew counts as registered, and the kernel is not asked
 */
#include "common.pml"

#ifndef OPS
#define OPS 3
#endif

mtype = { SYSTEM, PARKING, PARKED, DEVICE };

/* The kernel's. */
bool present, registered = true;
byte value;     /* of the page; 0: zeros */
byte changing;  /* the guard */
bool tells_drop, tells_unmap, tells_fault;
bool waits;     /* the program's thread, in its fault */
/* What the program may expect. */
byte written;   /* last */
byte floor;     /* as it was when a drop began that has returned */
bool dropping;  /* a drop is or was under way since the last write */
bool t2_busy;
/* The engine's. */
bool evlock;
byte shared;
mtype state = SYSTEM;
bool known = true; /* to be registered, by the records */
bool quarantine;
byte epoch, batch_epoch;
bool slot, slot_wake; /* the slot has the page; somebody waits for it */
byte window, staging;
bool go, done, moved;
byte refs;      /* to what the device has */
byte kept;      /* by the device */
bool fault;     /* to be served */

#define SHARE atomic { !evlock -> shared++ }
#define UNSHARE shared--

inline wake() { waits = false; tells_fault = false }

/* UFFDIO_COPY; also of zeros */
#define REFUSED changing
inline copy(v)
{
	if
	:: registered && !present -> present = true; value = v; wake()
	:: else -> wake()
	fi
}

inline set_state(to)
{
	assert(to == SYSTEM || (state == SYSTEM && to == PARKING) || (state == PARKING && to == PARKED) ||
	       (state == PARKED && to == DEVICE));
	state = to
}

/* read with the lock, applied under it */
inline read_events()
{
	if
	:: !BROKEN(2) -> atomic { !evlock -> evlock = true }; !shared
	:: else
	fi;
	d_step {
		r_drop = tells_drop; tells_drop = false;
		r_unmap = tells_unmap; tells_unmap = false;
		r_fault = tells_fault; tells_fault = false
	}
	if
	:: BROKEN(2) -> atomic { !evlock -> evlock = true }; !shared
	:: else
	fi;
	d_step {
		if
		:: r_drop -> quarantine = present && !BROKEN(3)
		:: else
		fi;
		if
		:: r_drop || r_unmap ->
			if
			:: state == PARKING -> epoch++; slot = false
			:: state == PARKED -> slot = false
			:: state == DEVICE -> refs--
			:: else
			fi;
			state = SYSTEM;
			wake()
		:: else
		fi;
		if
		:: r_unmap -> known = BROKEN(10); quarantine = false
		:: else
		fi;
		fault = fault || r_fault;
		r_drop = false; r_unmap = false; r_fault = false;
		evlock = false
	}
}

proctype program()
{
	byte k;

	do
	:: k == OPS -> break
	:: else ->
		/* The first is a write, the last a read; each is tried until the page is there. */
again:		atomic {
			if
			:: present || !registered ->
				if
				:: !present -> present = true; value = 0
				:: else
				fi;
				if
				:: k != OPS - 1 -> written++; value = written; dropping = t2_busy
				:: k != 0 ->
					assert((value == written && written > floor) || (value == 0 && (dropping || !written)))
				fi
			:: else -> waits = true; tells_fault = true; goto asleep
			fi
		}
		k++;
		goto next;
asleep:		!waits;
		goto again;
next:		skip
	od
}

proctype changer()
{
	byte before;

	if
	:: atomic { before = written; dropping = true; t2_busy = true; changing++; tells_drop = true };
		!tells_drop;
		changing--;
		atomic { present = false; quarantine = false; t2_busy = false; floor = before }
	:: atomic { before = written; dropping = true; t2_busy = true; changing++; present = false; registered = false;
		tells_unmap = true; wake() };
		!tells_unmap;
		changing--;
		atomic { t2_busy = false; floor = before }
	fi
}

proctype monitor()
{
	bool r_drop, r_unmap, r_fault;

end:	do
	:: tells_drop || tells_unmap || tells_fault -> read_events()
	od
}

proctype server()
{
	bool r_drop, r_unmap, r_fault, system, again;
	byte got, had;

end:	do
	:: fault ->
		fault = false;
		again = true;
		do
		:: !again -> break
		:: else ->
			again = false;
			system = false;
			had = 0;
			SHARE;
			atomic {
				if
				:: state == SYSTEM -> system = true
				:: state == PARKING -> slot_wake = true
				:: state == PARKED ->
					if
					:: REFUSED -> again = true
					:: else -> copy(window); set_state(SYSTEM); slot = false
					fi
				:: state == DEVICE -> had = kept; refs = refs + !BROKEN(6)
				fi;
				UNSHARE
			}
			if
			:: had ->
				atomic { assert(refs); got = kept }
				SHARE;
				atomic {
					if
					:: (state == DEVICE && had == kept) || BROKEN(4) ->
						if
						:: REFUSED -> again = true
						:: else -> copy(got); refs = refs - (state == DEVICE); set_state(SYSTEM)
						fi
					:: else -> again = true
					fi;
					refs = refs - !BROKEN(6);
					UNSHARE
				}
				got = 0; had = 0
			:: else
			fi;
			if
			:: system ->
				SHARE;
				atomic {
					if
					:: (state == SYSTEM || BROKEN(8)) && !REFUSED -> copy(0)
					:: else -> again = true
					fi;
					UNSHARE
				}
			:: else
			fi;
			if
			:: again -> read_events()
			:: else
			fi
		od
	od
}

proctype inside()
{
end:	do
	:: go ->
		if
		:: !BROKEN(9) -> SHARE
		:: else
		fi;
		if
		:: epoch == batch_epoch || BROKEN(1) ->
			atomic {
				moved = !changing && (registered || BROKEN(10)) && present;
				if
				:: moved -> staging = value; present = false
				:: else
				fi
			}
		:: else -> moved = false
		fi;
		if
		:: !BROKEN(9) -> UNSHARE
		:: else
		fi;
		d_step { window = staging; staging = 0; go = false; done = true }
	od
}

proctype engine()
{
	bool r_drop, r_unmap, r_fault, out, again;
	byte round, stored;

	do
	:: round == 2 -> break
	:: else ->
		/* begin */
		SHARE;
		atomic {
			out = known && !quarantine && state == SYSTEM;
			if
			:: out -> set_state(PARKING); slot = true; slot_wake = false; batch_epoch = epoch
			:: else
			fi;
			UNSHARE
		}
		if
		:: out ->
			go = true;
			atomic { done -> done = false }
			/* finish */
			SHARE;
			atomic {
				if
				:: slot && state == PARKING ->
					if
					:: moved -> set_state(PARKED)
					:: else -> set_state(SYSTEM); slot = false
					fi;
					if
					:: slot_wake && !BROKEN(5) -> wake()
					:: else
					fi
				:: else
				fi;
				moved = false;
				slot_wake = false;
				UNSHARE
			}
			/* store */
			if
			:: slot ->
				if
				:: refs == 0 -> stored = window
				:: stored = 0 /* no device takes it */
				fi;
				again = true;
				do
				:: !again -> break
				:: else ->
					again = false;
					SHARE;
					atomic {
						if
						:: slot || (BROKEN(7) && stored) ->
							if
							:: stored -> set_state(DEVICE); kept = stored; refs++; slot = false
							:: !stored && REFUSED -> again = true
							:: else -> copy(window); set_state(SYSTEM); slot = false
							fi
						:: else
						fi;
						UNSHARE
					}
					if
					:: again -> read_events()
					:: else
					fi
				od;
				stored = 0
			:: else
			fi
		:: else
		fi;
		round++
	od
}

init
{
	atomic {
		model_begin();
		run program();
		run changer();
		run monitor();
		run server();
		run inside();
		run engine()
	}
}
