/* SPDX-License-Identifier: MIT */
/*
 * The sequence of notifiers: src/umm/notifier.c, and the retry loop of a driver.
 *
 * Two threads make changes that hooks see, each twice, the second one with calls
 * that may not wait for a driver.  A driver inserts its notifier at some time and
 * maps the page twice.  Nothing of the page is on the device when the change
 * happens, nothing else than what is there is ever mapped, and the driver gets on.
 *
 * BREAK 1 assert   the driver does not ask umm_read_retry()
 * BREAK 2 assert   the callback does not take the driver's lock
 * BREAK 3 assert   the sequence moves on while another invalidation runs
 * BREAK 4 assert   umm_read_begin() does not sleep
 * BREAK 5 assert   who is inserted in the middle of an invalidation is not told of it by its number
 * BREAK 6 deadlock the last one to end does not move the sequence on
 * BREAK 7 deadlock a change that was refused counts as running
 */
#include "common.pml"

byte running, seq = 2; /* of the space */
bool inserted;
byte nseq;    /* of the notifier */
bool driver;  /* the driver's lock */
byte page = 1; /* which page is there: each change puts another one */
byte device;   /* which one the device has mapped, 0: none */

inline invalidate_end()
{
	d_step {
		running--;
		if
		:: (running == 0 || BROKEN(3)) && (seq & 1) && !BROKEN(6) -> seq++
		:: else
		fi
	}
}

proctype changer(bool blockable)
{
	byte round, now_seq;
	bool told, refused;

	do
	:: round == 2 -> break
	:: else ->
		refused = false;
		/* umm_invalidate_begin() */
		d_step {
			running++;
			told = inserted;
			if
			:: told -> seq = seq | 1; now_seq = seq
			:: else
			fi
		}
		if
		:: told ->
			if
			:: blockable && !BROKEN(2) -> LOCK(driver)
			:: BROKEN(2)
			:: !blockable && !BROKEN(2) ->
				atomic {
					if
					:: !driver -> driver = true
					:: else -> refused = true
					fi
				}
			fi;
			if
			:: !refused ->
				nseq = now_seq;
				device = 0;
				if
				:: !BROKEN(2) -> UNLOCK(driver)
				:: else
				fi
			:: else
			fi
		:: else
		fi;
		if
		:: refused && BROKEN(7)
		:: else ->
			if
			:: !refused -> d_step { assert(!device); page++ } /* the change */
			:: else
			fi;
			invalidate_end()
		fi;
		round++
	od
}

proctype reader()
{
	byte maps, s, seen;

	/* umm_notifier_insert() */
	d_step {
		inserted = true;
		if
		:: running && !BROKEN(5) -> seq = seq | 1; nseq = seq
		:: else -> nseq = seq - 1
		fi
	}
	do
	:: maps == 2 -> break
	:: else ->
		/* umm_read_begin() */
		s = nseq;
		if
		:: s != seq
		:: BROKEN(4)
		fi;
		seen = page; /* umm_range_fault() */
		LOCK(driver);
		if
		:: nseq != s && !BROKEN(1) -> skip
		:: else ->
			assert(seen == page);
			device = seen;
			maps++
		fi;
		UNLOCK(driver)
	od
}

init
{
	atomic {
		model_begin();
		run changer(true);
		run changer(false);
		run reader()
	}
}
