#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""excuses.py DIR: which lines the walk of fault injection (DIR/run.py) takes for the reason of a death."""
import signal
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, sys.argv[1])
from run import says_why  # noqa: E402

P, C, OTHER = 100, 200, 300
BUS, KILL = signal.SIGBUS, signal.SIGKILL
END = "an access gets SIGBUS"

PAGE = "hmm run: page 0x7000 of process {} is lost: device lz4 could not read it; " + END
PAGES = "hmm run: pages of process {} are lost, the first one touched is 0x7000: device ofi has lost its peer; " + END
SERVED = "hmm run: a forked child of process {} cannot be served: Out of memory; what was away is lost to it, " + END
UNMAPPED = ("hmm run: other threads of process {} unmapped memory while it forked: of what was away of it a part is lost "
            "to the child, " + END)
MUST = "hmm run: process {} must be killed: no memory for its records"
HANGS = "hmm run: a forked child of process {} hangs at what was away, and must be killed"
AGENT = "hmm run: the agent of process {} died; the process is killed"
FRONT = "hmm run: the supervisor died; the program is killed"

# what is said, of whom; by which signal the program P, or its child C, died; whether that is a reason
CASES = [
    (PAGE, P, BUS, 0, True), (PAGES, P, BUS, 0, True), (PAGE, C, BUS, C, True), (PAGE, 0, BUS, C, True),
    (PAGE, P, BUS, C, True),  # lost before the fork, it is lost to both
    (SERVED, P, BUS, C, True), (UNMAPPED, P, BUS, C, True),
    (SERVED, P, BUS, 0, False), (UNMAPPED, P, BUS, 0, False), (PAGE, C, BUS, 0, False), (PAGE, 0, BUS, 0, False),
    (PAGE, OTHER, BUS, C, False), (SERVED, OTHER, BUS, C, False), (SERVED, C, BUS, C, False),
    (MUST, P, KILL, 0, True), (AGENT, P, KILL, 0, True), (FRONT, 0, KILL, 0, True), (FRONT, 0, KILL, C, True),
    (MUST, C, KILL, C, True), (HANGS, P, KILL, C, True),
    (HANGS, P, KILL, 0, False), (MUST, C, KILL, 0, False), (AGENT, OTHER, KILL, 0, False),
    (MUST, P, BUS, 0, False), (PAGE, P, KILL, 0, False), ("hmm run: something else about process {}", P, BUS, 0, False),
]

bad = 0
for line, who, sig, child, want in CASES:
    said = "something before\n" + line.format(who) + "\nand after\n"
    if says_why(said, sig, P, child) != want:
        print(f"{signal.Signals(sig).name} of {'a child' if child else 'the program'}: "
              f"{'no' if want else 'a'} reason: {line.format(who)}")
        bad += 1
# Two lines are looked at one by one.
if not says_why(SERVED.format(P) + "\n" + PAGE.format(P), BUS, P, 0):
    print("the second line is not looked at")
    bad += 1
# Before it has said who it is nobody else is there.
if not says_why(PAGE.format(P), BUS, 0, 0) or says_why(SERVED.format(P), BUS, 0, 0):
    print("a program that has not said who it is")
    bad += 1
print(f"{len(CASES)} lines, {bad} wrong")
sys.exit(1 if bad else 0)
