/* SPDX-License-Identifier: MIT */
/*
 * One page of a program with two threads: where it is, who moves it, and what
 * the program finds in it.  doc/model.md says which function each part stands for.
 *
 * Wrong is: a thread finds what it should not (a lost page, an old one, zeros),
 * a forked child is given something else than what was there at the fork, or
 * somebody waits for ever (spin's invalid end states).
 *
 * BREAK_... leave one thing out; each must be noticed.
 */
#define THREADS 2
#ifndef STEPS
#define STEPS 2  /* of each thread */
#endif
#ifndef ROUNDS
#define ROUNDS 2 /* of moving out */
#endif

mtype = { SYSTEM, PARKING, PARKED, DEVICE };
mtype = { NOTHING, UNMAP, REMOVE, FORK };
mtype = { PENDING, MOVED, FILLED };

/* What the kernel has */
bool present = true;    /* in the page table */
byte val = 1;
bool armed = true;      /* its mapping is registered with our userfaultfd */
byte changing = 0;      /* mmap_changing: MOVE, COPY and ZEROPAGE get EAGAIN */
mtype event[THREADS] = NOTHING;
bool was_read[THREADS];
bool faulted[THREADS];  /* queued, to be read */
bool asleep[THREADS];

/* What the program may find */
byte ghost = 1;
byte lazy = 0;          /* MADV_DONTNEED under way: what it was, or zero */

/* What the engine knows */
mtype st = SYSTEM;
bool registered = true;
bool slot = false;      /* the page of the batch is wanted */
bool wanted = false;    /* somebody faulted while it was PARKING */
bool committed = false;
bool live = false;
byte quarantine = 0;
byte dev = 0, handle = 0;
byte child_val;

/* The control block, staging and window */
byte epoch = 0, batch_epoch = 0;
mtype moved = PENDING;
bool mask = false, go = false, done = false;
byte staging, window;

/* Locks */
bool excl = false;
byte shared = 0;
bool leaf = false;

bool program_ended = false;
byte ended = 0;

#define SHARED    atomic { !excl -> shared++ }
#define UNSHARED  shared--
#define EXCL      atomic { !excl && shared == 0 -> excl = true }
#define UNEXCL    excl = false
#define LEAF      atomic { !leaf -> leaf = true }
#define UNLEAF    leaf = false
#define WAKE      d_step { asleep[0] = false; asleep[1] = false }

/* A child's page, if it was not in the page table when it was forked, comes from the records. */
inline apply_fork(pte, pte_val, want, loose)
{
#ifndef BREAK_SYNC
	/* hmm_out_sync(): what the inside has done shows in the records first */
	if
	:: live && moved != PENDING ->
		moved == FILLED;
		if
		:: !committed -> commit()
		:: else
		fi
	:: else
	fi;
#endif
	d_step {
		if
		:: pte -> child_val = pte_val
		:: !pte && st == PARKED -> child_val = window
		:: !pte && st == DEVICE -> child_val = dev
		:: else -> child_val = 0
		fi;
		assert(child_val == want || (loose && child_val == 0))
	}
}

inline drop()
{
	LEAF;
	if
	:: st == PARKING ->
#ifndef BREAK_EPOCH
		epoch++;
#endif
		slot = false
	:: st == PARKED -> slot = false
	:: else
	fi;
	st = SYSTEM;
	UNLEAF
}

inline commit()
{
	committed = true;
	LEAF;
	if
	:: slot && st == PARKING ->
		if
		:: mask -> st = PARKED
		:: else -> st = SYSTEM
		fi;
		if
		:: wanted -> WAKE
		:: else
		fi
	:: else
	fi;
	if
	:: !mask -> slot = false
	:: else
	fi;
	UNLEAF
}

/* What a fork saw, for its event */
bool f_pte[THREADS], f_lazy[THREADS];
byte f_val[THREADS], f_ghost[THREADS];

/* Read whatever events there are and act on them; faults are left for later.  The lock is held. */
inline read_events()
{
	byte e = 0;
	do
	:: e < THREADS ->
		mtype what = NOTHING;
		atomic {
			if
			:: event[e] != NOTHING -> what = event[e]; event[e] = NOTHING; was_read[e] = true
			:: else
			fi
		}
		if
		:: what == FORK -> apply_fork(f_pte[e], f_val[e], f_ghost[e], f_lazy[e])
		:: what == UNMAP -> drop(); registered = false; WAKE
		:: what == REMOVE -> drop(); WAKE
		:: else
		fi;
		e++
	:: else -> break
	od;
	e = 0
}

inline drain()
{
	EXCL;
	read_events();
	UNEXCL
}

/* One fault, from the look-up to the wake-up: hmm_fault() */
inline serve()
{
	bool again = true;
	byte h, copy;
	do
	:: again ->
		again = false;
		SHARED;
		LEAF;
		if
		:: st == SYSTEM && changing > 0 -> again = true
		:: st == SYSTEM && changing == 0 ->
			d_step {
				if
				:: armed && !present -> present = true; val = 0
				:: else
				fi
			}
			WAKE
		:: st == PARKING -> wanted = true
		:: st == PARKED && changing > 0 -> again = true
		:: st == PARKED && changing == 0 ->
			d_step {
				if
				:: armed && !present -> present = true; val = window
				:: else
				fi
			}
			slot = false;
			st = SYSTEM;
			WAKE
		:: st == DEVICE ->
			h = handle;
			copy = dev;
			UNLEAF;
			UNSHARED;
			/* the device copies; no lock is held */
			SHARED;
			LEAF;
			if
			:: st != DEVICE || handle != h -> again = true
			:: else ->
				if
				:: changing > 0 -> again = true
				:: else ->
					d_step {
						if
						:: armed && !present -> present = true; val = copy
						:: else
						fi
					}
					st = SYSTEM;
					WAKE
				fi
			fi
		fi;
		UNLEAF;
		UNSHARED;
		if
		:: again -> drain()
		:: else
		fi
	:: else -> break
	od;
	h = 0;
	copy = 0
}

active proctype monitor()
{
	bool mine[THREADS];
	byte i;
end:
	do
	:: event[0] != NOTHING || event[1] != NOTHING || faulted[0] || faulted[1] ->
		EXCL;
		atomic {
			mine[0] = faulted[0];
			mine[1] = faulted[1];
			faulted[0] = false;
			faulted[1] = false
		}
		read_events();
		UNEXCL;
		i = 0;
		do
		:: i < THREADS ->
			if
			:: mine[i] -> serve(); mine[i] = false
			:: else
			fi;
			i++
		:: else -> break
		od
	od
}

/* Touch the page, as the processor does: again, as long as it is not there. */
inline touch(me, write)
{
	do
	:: atomic { present ->
		assert(val == ghost || (lazy > 0 && val == 0));
		if
		:: write -> val = (val == 1 -> 2 : 1); ghost = val
		:: else
		fi;
		break }
	:: atomic { !present && !armed -> present = true; val = 0 }
	:: atomic { !present && armed -> asleep[me] = true; faulted[me] = true };
		!asleep[me]
	od
}

proctype thread(byte me)
{
	byte steps = 0;
	do
	:: steps < STEPS ->
		steps++;
		if
		:: touch(me, false)
		:: touch(me, true)
		:: /* MADV_DONTNEED: told first, carried out after it has been read */
			if
			:: atomic { armed -> changing++; lazy++; was_read[me] = false; event[me] = REMOVE;
				quarantine++ };
				was_read[me];
				changing--;
				d_step { present = false; ghost = 0; lazy--; quarantine-- }
			:: atomic { !armed -> present = false; ghost = 0 }
			fi
		:: /* mmap(MAP_FIXED): carried out, then told; unless the old one was not ours */
			if
			:: atomic { armed -> present = false; ghost = 0; armed = false; changing++;
				was_read[me] = false; event[me] = UNMAP };
				was_read[me];
				changing--
			:: atomic { !armed -> present = false; ghost = 0 }
			fi
		:: /* fork() */
			atomic { armed -> f_pte[me] = present; f_val[me] = val; f_ghost[me] = ghost;
				f_lazy[me] = lazy > 0; changing++; was_read[me] = false; event[me] = FORK };
			was_read[me];
			changing--
		fi
	:: else -> break
	od;
	touch(me, false);
	ended++
}

/* What is new is registered: hmm_discover() */
active proctype discover()
{
end:
	do
	:: atomic { !armed && !registered && !excl -> shared++ };
		armed = true;
		registered = true;
		UNSHARED
	od
}

active proctype reclaimer()
{
	byte rounds = 0, copy = 0;
	bool dropped = false, again;
	do
	:: rounds < ROUNDS ->
		rounds++;
		/* hmm_out_begin() */
		SHARED;
		done = false;
		batch_epoch = epoch;
		mask = false;
		moved = PENDING;
		committed = false;
		LEAF;
		if
#ifdef BREAK_QUARANTINE
		:: registered && st == SYSTEM -> st = PARKING; slot = true; wanted = false
#else
		:: registered && quarantine == 0 && st == SYSTEM -> st = PARKING; slot = true; wanted = false
#endif
		:: else -> slot = false
		fi;
		UNLEAF;
		live = slot;
		UNSHARED;
		if
		:: live -> go = true; done
		:: else
		fi;
		/* hmm_out_finish() */
		SHARED;
		if
		:: live && !committed -> commit()
		:: else
		fi;
		live = false;
		UNSHARED;
		/* hmm_out_store(): the device may not take it */
		if
		:: slot ->
			copy = window;
			again = true;
			do
			:: again ->
				again = false;
				SHARED;
				LEAF;
				if
				:: !slot
				:: slot -> st = DEVICE; dev = copy; handle++; slot = false
				:: slot && changing > 0 -> again = true
				:: slot && changing == 0 ->
					d_step {
						if
						:: armed && !present -> present = true; val = window
						:: else
						fi
					}
					st = SYSTEM;
					slot = false;
					WAKE
				fi;
				UNLEAF;
				UNSHARED;
				if
				:: again -> drain()
				:: else
				fi
			:: else -> break
			od
		:: else
		fi
	:: else -> break
	od
}

/* umm_inside_move() */
active proctype inside()
{
end:
	do
	:: go ->
		go = false;
		SHARED;
		if
		:: epoch == batch_epoch ->
			d_step {
				if
				:: present && changing == 0 -> staging = val; present = false; mask = true
				:: else
				fi
			}
		:: else
		fi;
		moved = MOVED;
		UNSHARED;
		if
		:: mask -> window = staging
		:: else
		fi;
		moved = FILLED;
		done = true
	od
}

init
{
	atomic {
		run thread(0);
		run thread(1)
	}
}
