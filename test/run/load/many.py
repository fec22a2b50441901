#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Many small processes: what each of them costs on a small budget.

many.py BUILD [TEST...]

Bytes as `hmm stat --json` gives them, when nothing is under way any more: the least of some looks.
"""
import json
import os
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from hmmtest import Failed, main_of  # noqa: E402

KIB, MIB = 1 << 10, 1 << 20
LOOKS = 20


def stat(h, pid):
    r = subprocess.run([h.exe, "stat", str(pid), "--json"], capture_output=True, text=True)
    if r.returncode:
        raise Failed(f"hmm stat: {r.stderr}")
    return json.loads(r.stdout)


def many(h, processes, mib, ram):
    """Looks at the engine when all have what they want."""
    fd, go = os.pipe()
    r = h.start([os.path.join(h.build, "test/run/load/many"), str(processes), str(mib)], ram=ram,
                stdin=fd)
    os.close(fd)
    r.until(lambda: "ready" in r.out() or r.child.poll() is not None, "nobody says that all are there")
    looks = []
    while len(looks) < LOOKS and r.child.poll() is None:
        looks.append(stat(h, r.pid))
        time.sleep(0.02)
    os.close(go)
    r.wait()
    r.expect()
    return looks


def engine(h, processes, mib, ram):
    """What the engine has for itself: all but what programs have, and devices."""
    looks = many(h, processes, mib, ram)
    return min(s["total_bytes"] - s["resident_bytes"] - s["store_ram_bytes"] for s in looks)


def records(h):
    few, more = engine(h, 6, 3, "16M"), engine(h, 18, 3, "28M")
    each = (more - few) // 12
    print(f"for itself: {few / MIB:.1f} MiB of 6 processes, {more / MIB:.1f} of 18, {each >> 10} KiB for each more")
    if each > 256 * KIB or few > 5 * MIB:
        raise Failed("the engine keeps too much for itself")


def walks(h):
    """What is brought back ahead lies on the stacks of who serves faults."""
    own = engine(h, 4, 12, "24M")
    print(f"for itself: {own / MIB:.1f} MiB")
    if own > 2 * MIB:
        raise Failed("the engine keeps too much for itself")


main_of(records, walks)
