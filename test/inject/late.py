#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""late.py BUILD MICROSECONDS SITE -- PROGRAM [ARGS]
late.py BUILD --all [--us MICROSECONDS] [--part K/N] [--only PATTERN] [-- TEST ...]

A program that checks itself runs under `hmm run`, and everybody who gets to SITE
(a call that can fail; inject.h) sleeps there first.  What goes wrong when somebody
is late happens each time, instead of once in some hundred runs.  --all: each site
that a test reaches, one after the other (for TEST of test/run/life/life-fork and
its like; each of them).
"""
import argparse
import fnmatch
import os
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "run"))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import hmmtest  # noqa: E402
from run import Plan  # noqa: E402

# Where processes, threads and mappings come and go.
TESTS = ("life/life-fork daemon", "life/life-fork generations", "life/life-fork while-evicted", "life/life-fork raw",
         "life/life-fork while-popen", "life/life-exec storm", "life/life-changes threads")


def once(build, plan, program, site=None, us=0):
    """None: all is right; or what is wrong.  The table of sites, with how often each was reached, is in @plan."""
    plan.clear()
    env = dict(os.environ, HMM_INJECT=plan.file.name)
    if site:
        env["HMM_INJECT_SLOW"] = f"{us} {site}"
    h = hmmtest.Hmm(build)
    h.exe = os.path.join(os.path.abspath(build), "test/inject/hmm")
    try:
        h.run(program, env=env).expect(0)
    except hmmtest.Failed as e:
        return str(e)
    finally:
        hmmtest.kill_all(hmmtest.descendants())
        hmmtest.reap()
    if site and not plan.sites().get(site, (0, 0, 0))[1]:
        return f"{site} is not reached"
    return None


def sweep(o):
    k, n = (int(x) for x in o.part.split("/"))
    bad = done = 0
    for test in o.program or TESTS:
        plan = Plan()
        program = [os.path.join(o.build, "test/run", test.split()[0]), *test.split()[1:]]
        why = once(o.build, plan, program)
        if why:
            print(f"{test}: {why}")
            bad += 1
            continue
        reached = [name for name, s in plan.sites().items() if s[1] and fnmatch.fnmatch(name, o.only)]
        for i, site in enumerate(reached):
            if i % n != k - 1:
                continue
            # Where somebody comes by all the time a short sleep each is as long.
            us = o.us if plan.sites()[site][1] < 200 else o.us // 20
            why = once(o.build, Plan(), program, site, us)
            done += 1
            if why and not why.endswith("is not reached"):
                print(f"{test}, {site} late by {us} us: {why}", flush=True)
                bad += 1
    print(f"{done} runs, {bad} wrong")
    return bad > 0


def main():
    p = argparse.ArgumentParser(usage=__doc__)
    p.add_argument("build")
    p.add_argument("us_site", nargs="*")
    p.add_argument("--all", action="store_true")
    p.add_argument("--us", type=int, default=20000)
    p.add_argument("--part", default="1/1")
    p.add_argument("--only", default="*")
    argv, program = sys.argv[1:], []
    if "--" in argv:
        at = argv.index("--")
        argv, program = argv[:at], argv[at + 1:]
    o = p.parse_args(argv)
    o.program = program
    if o.all:
        return sweep(o)
    us, site = o.us_site
    why = once(o.build, Plan(), program, site, int(us))
    if why:
        print(why)
    return why is not None


if __name__ == "__main__":
    sys.exit(main())
