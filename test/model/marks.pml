/* SPDX-License-Identifier: MIT */
/*
 * What a child will find empty (MADV_WIPEONFORK): marks in src/hmm/engine.c, agent_signs_on()
 * (src/run/signon.c), the hook of madvise() (src/run/hooks.c).
 *
 * A forked program gets its agent and is let go on.  It marks a page that is away,
 * forks, and unmaps the page.  When the event of the fork is applied the page may
 * have lost its mark already, and who forked may not be running yet.  The child
 * finds the page empty.
 *
 * BREAK 1 assert   the space is armed after the program was let go on
 * BREAK 2 assert   kept marks are not believed while a change is under way
 * BREAK 3 assert   kept marks of a process without an agent are believed
 * BREAK 4 assert   the hook tells of the mark before it is made
 */
#include "common.pml"

bool welcome, armed, agent;
bool marked;          /* as smaps says */
bool kept, kept_known = true; /* inherited, of a parent that had none */
byte changing;
bool tells_fork, tells_unmap;
bool evlock, is_empty, applied;
bool asked, ends;

proctype supervisor()
{
	if
	:: agent ->
		if
		:: !BROKEN(1) -> armed = true
		:: else
		fi;
		welcome = true;
		armed = true
	:: else -> welcome = true /* a raw clone: nobody knows it */
	fi;
	/* hmm_marks_read(), on behalf of a hook */
end:	do
	:: asked -> atomic { !evlock -> kept = marked; kept_known = true; asked = false }
	od
}

proctype program()
{
	welcome;
	if
	:: BROKEN(4) ->
		if
		:: armed -> asked = true; !asked
		:: else
		fi;
		marked = true
	:: else ->
		marked = true;
		if
		:: armed -> asked = true; !asked
		:: else
		fi
	fi;
	atomic { changing++; tells_fork = true }
	!tells_fork;
	changing--;
	/* Without an agent that is one of the differences: doc/differences.md. */
	if
	:: agent ->
		atomic { changing++; marked = false; tells_unmap = true }
		!tells_unmap;
		changing--
	:: else
	fi;
	ends = true
}

proctype monitor()
{
	bool now_marked;

end:	do
	:: tells_fork ->
		atomic { !evlock -> evlock = true };
		tells_fork = false;
		/* marks_at_fork() */
		now_marked = marked;
		if
		:: !(kept_known && (armed || BROKEN(3))) || !changing || BROKEN(2) -> is_empty = now_marked
		:: else -> is_empty = kept
		fi;
		evlock = false;
		applied = true
	:: tells_unmap ->
		atomic { !evlock -> evlock = true };
		tells_unmap = false;
		kept = false;
		evlock = false
	od
}

proctype child()
{
	applied;
	assert(is_empty)
}

init
{
	atomic {
		model_begin();
		if
		:: agent = true
		:: skip
		fi;
		run supervisor();
		run program();
		run monitor();
		run child()
	}
}
