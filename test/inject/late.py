#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""late.py BUILD MICROSECONDS SITE -- PROGRAM [ARGS]
late.py BUILD --all [--us MICROSECONDS] [--part K/N] [--only PATTERN] [-- TEST ...]

A program that checks itself runs under `hmm run`, and everybody who gets to SITE
(inject.h) sleeps there first.  What goes wrong when somebody is late happens each
time, instead of once in some hundred runs.  --all: each site that a test reaches,
one after the other (for TEST of test/run/life/life-fork and its like, or a driver
and one of its tests, as "life/kill.py early"; each of them).  Where somebody comes
by often the sleep is shorter, so that all of them together add some seconds to a
run, no more.
"""
import argparse
import fnmatch
import os
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "run"))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import hmmtest  # noqa: E402
from run import Plan  # noqa: E402

# Where processes, threads and mappings come and go.
TESTS = ("life/life-fork daemon", "life/life-fork generations", "life/life-fork while-evicted", "life/life-fork raw",
         "life/life-fork while-popen", "life/life-exec storm", "life/life-changes threads")

# What the last process says of those whose first one ends before.
HEIRS = {"parent-first": "^heir 2 is right", "raw-orphan": "^heir 1 is right", "clone-vm-outlives": "^heir 1 is right"}

# Being late is what they are there for, or all that they do.
WAITS = {
    "run/supervisor.c loop epoll_wait": "where it rests; whom it serves is late then, as at each site behind it",
    "umm/monitor.c monitor_thread epoll_wait": "the same",
    "run/front.c stand_in poll": "the same",
    "run/agent.c serve SYS_poll": "the same",
}

ADDS = 4.0  # seconds that all sleeps of a run may take; those of several threads pass at the same time
LEAST = 50  # microseconds: what sleeping takes anyway
HANGS = 100  # seconds, and some times what a run takes by itself; a watchdog


def program_of(build, test):
    """The command, and whether it runs hmm itself."""
    what, *args = test.split()
    if what.endswith(".py"):
        here = os.path.dirname(os.path.abspath(__file__))
        return [sys.executable, os.path.join(here, "../run", what), build, *args], True
    return [os.path.join(build, "test/run", what), *args], False


def once(build, plan, program, driver=False, site=None, us=0, hangs=2 * HANGS):
    """None: all is right; or what is wrong.  The table of sites, with how often each was reached, is in @plan."""
    plan.clear()
    env = dict(os.environ, HMM_INJECT=plan.file.name)
    exe = os.path.join(os.path.abspath(build), "test/inject/hmm")
    if site:
        env["HMM_INJECT_SLOW"] = f"{us} {site}"
    h = hmmtest.Hmm(build)
    h.exe = exe
    try:
        if driver:
            p = subprocess.run(program, env=dict(env, HMM_TEST_HMM=exe), capture_output=True, text=True, timeout=hangs,
                               check=False)
            if p.returncode:
                return p.stdout + p.stderr
        else:
            h.run(program, timeout=hangs, env=env).expect(0, stdout=HEIRS.get(program[-1]))
    except (hmmtest.Failed, subprocess.TimeoutExpired) as e:
        return str(e)
    finally:
        hmmtest.kill_all(hmmtest.descendants())
        hmmtest.reap()
    if site and not plan.sites().get(site, (0, 0, 0))[1]:
        return f"{site} is not reached"
    return None


def sweep(o):
    k, n = (int(x) for x in o.part.split("/"))
    bad = done = short = 0
    for test in o.program or TESTS:
        plan, begin = Plan(), time.monotonic()
        program, driver = program_of(o.build, test)
        why = once(o.build, plan, program, driver)
        if why:
            print(f"{test}: {why}", flush=True)
            bad += 1
            continue
        took, count = time.monotonic() - begin, 0
        reached = [name for name, s in plan.sites().items()
                   if s[1] and any(fnmatch.fnmatchcase(name, p) for p in o.only) and name not in WAITS]
        for i, site in enumerate(reached):
            if i % n != k - 1:
                continue
            us = min(o.us, int(ADDS * 1e6 / plan.sites()[site][1]))
            if us < LEAST:
                short += 1
                continue
            why = once(o.build, Plan(), program, driver, site, us, HANGS + 5 * took)
            done += 1
            count += 1
            if o.verbose:
                print(f"  {test}, {site} ({plan.sites()[site][1]} times) late by {us} us", flush=True)
            if why and not why.endswith("is not reached"):
                print(f"{test}, {site} late by {us} us: {why}", flush=True)
                bad += 1
        print(f"{test} ({took:.1f} s by itself): {count} sites in {time.monotonic() - begin:.0f} s", flush=True)
    print(f"{done} runs, {bad} wrong; {short} sites were left out that are reached too often")
    return bad > 0


def main():
    p = argparse.ArgumentParser(usage=__doc__)
    p.add_argument("build")
    p.add_argument("us_site", nargs="*")
    p.add_argument("--all", action="store_true")
    p.add_argument("--us", type=int, default=20000)
    p.add_argument("--part", default="1/1")
    p.add_argument("--only", action="append", metavar="PATTERN", help="of names of sites; several may be given")
    p.add_argument("-v", "--verbose", action="store_true")
    argv, program = sys.argv[1:], []
    if "--" in argv:
        at = argv.index("--")
        argv, program = argv[:at], argv[at + 1:]
    o = p.parse_args(argv)
    o.build = os.path.abspath(o.build)
    o.program = program
    o.only = o.only or ["*"]
    if o.all:
        return sweep(o)
    us, site = o.us_site
    driver = program[0].endswith(".py")
    if driver:
        program = [sys.executable, program[0], o.build, *program[1:]]
    why = once(o.build, Plan(), program, driver, site, int(us))
    if why:
        print(why)
    return why is not None


if __name__ == "__main__":
    sys.exit(main())
