/* SPDX-License-Identifier: MIT */
/*
 * A raw fork while a page moves: mm_forked() (src/hmm/engine.c), hmm_out_sync() (migrate.c),
 * register_piece() (discover.c), umm_inside_registered() (src/umm/inside.c).
 *
 * The kernel copies mappings and pages first, tells of it then, and lets neither
 * parent nor child run before that has been read.  The engine registers the mapping
 * at some time, and moves the page out, of the parent and of the child.  Both find
 * what was there.
 *
 * BREAK 1 assert   what has left for staging is not entered before the child's records are made
 * BREAK 2 assert   the child does not get what is parked
 * BREAK 3 deadlock the child is not served when its records are made
 * BREAK 4 assert   a mapping counts as registered though a fork is under way, and the kernel is not asked
 * BREAK 5 assert   the reader of events takes the event lock after it has read
 * BREAK 6 assert   the child's records take no reference to what the device has
 */
#include "common.pml"

#define PARENT 0
#define CHILD 1

mtype = { SYSTEM, PARKING, PARKED, DEVICE };

/* The kernel's. */
bool registered[2], present[2];
bool waits[2], tells_fault[2];
byte changing;
bool tells_fork, forked;
/* The engine's. */
bool evlock;
byte shared;
bool known[2];
mtype state[2] = SYSTEM;
bool moved;    /* to staging, and from there to the window */
bool filled;
bool committed;
bool ready;    /* the child is served */
byte refs;     /* to what the device has */
bool stored;

#define SHARE atomic { !evlock -> shared++ }
#define UNSHARE shared--

inline commit()
{
	if
	:: state[PARENT] == PARKING ->
		committed = true;
		if
		:: moved -> state[PARENT] = PARKED
		:: else -> state[PARENT] = SYSTEM
		fi;
		waits[PARENT] = false
	:: else
	fi
}

proctype reader_of_page(byte who)
{
	who == PARENT || forked && !tells_fork;
again:	atomic {
		if
		:: present[who] -> goto found
		:: !present[who] && !registered[who] -> assert(false) /* zeros */
		:: else -> waits[who] = true; tells_fault[who] = true
		fi
	}
	!waits[who];
	goto again;
found:	skip
}

proctype forker()
{
	d_step {
		changing++;
		registered[CHILD] = registered[PARENT];
		present[CHILD] = present[PARENT];
		forked = true;
		tells_fork = true
	}
	!tells_fork;
	changing--
}

proctype monitor()
{
end:	do
	:: tells_fork ->
		if
		:: !BROKEN(5) -> atomic { !evlock -> evlock = true }; !shared
		:: else
		fi;
		tells_fork = false;
		if
		:: BROKEN(5) -> atomic { !evlock -> evlock = true }; !shared
		:: else
		fi;
		/* hmm_out_sync() */
		if
		:: moved && !committed && !BROKEN(1) ->
			filled;
			d_step { commit() }
		:: else
		fi;
		/* The records; where nothing is registered there is no event for us, and none of this. */
		atomic {
			known[CHILD] = known[PARENT];
			if
			:: state[PARENT] == DEVICE -> state[CHILD] = DEVICE; refs = refs + !BROKEN(6)
			:: state[PARENT] == PARKED && !BROKEN(2) && !present[CHILD] -> present[CHILD] = registered[CHILD]
			:: else
			fi;
			ready = !BROKEN(3)
		}
		evlock = false
	od
}

/* Faults of both; what of the engine serves them */
proctype server(byte who)
{
	bool device;

end:	do
	:: tells_fault[who] && (who == PARENT || ready) ->
		tells_fault[who] = false;
		SHARE;
		atomic {
			device = false;
			if
			:: who == PARENT && changing -> tells_fault[who] = waits[who] /* EAGAIN */
			:: else ->
				if
				:: present[who] -> waits[who] = false
				:: !present[who] && state[who] == PARKED -> present[who] = true; state[who] = SYSTEM; waits[who] = false
				:: !present[who] && state[who] == DEVICE ->
					assert(refs);
					refs--;
					present[who] = true;
					state[who] = SYSTEM;
					waits[who] = false
				:: !present[who] && state[who] == SYSTEM -> assert(false) /* zeros */
				:: !present[who] && state[who] == PARKING -> skip /* commit() wakes it */
				fi
			fi;
			UNSHARE
		}
	od
}

proctype engine()
{
	bool rc, out;

	/* register_piece() */
	SHARE;
	registered[PARENT] = true;
	rc = changing && !BROKEN(4);
	atomic { known[PARENT] = !rc; UNSHARE }
	/* A batch */
	SHARE;
	atomic { out = known[PARENT] && state[PARENT] == SYSTEM; UNSHARE
		if
		:: out -> state[PARENT] = PARKING
		:: else
		fi
	}
	if
	:: out ->
		SHARE;
		atomic {
			moved = !changing && present[PARENT];
			if
			:: moved -> present[PARENT] = false
			:: else
			fi;
			UNSHARE
		}
		filled = true;
		SHARE;
		atomic {
			if
			:: !committed -> commit()
			:: else
			fi;
			UNSHARE
		}
		stored = true;
		SHARE;
		atomic {
			if
			:: state[PARENT] == PARKED -> state[PARENT] = DEVICE; refs++
			:: else
			fi;
			UNSHARE
		}
	:: else
	fi;
	/* The child's, which is another space, with an inside of its own. */
	if
	:: ready -> atomic {
		if
		:: known[CHILD] && state[CHILD] == SYSTEM && present[CHILD] && (registered[CHILD] || BROKEN(4)) ->
			present[CHILD] = false;
			state[CHILD] = DEVICE;
			refs++
		:: else
		fi
	}
	:: skip
	fi
}

init
{
	atomic {
		model_begin();
		present[PARENT] = true;
		run reader_of_page(PARENT);
		run reader_of_page(CHILD);
		run forker();
		run monitor();
		run server(PARENT);
		run server(CHILD);
		run engine()
	}
}
