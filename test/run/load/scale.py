#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Much of everything but bytes: mappings, threads, address space.

scale.py BUILD [TEST...]
"""
import os
import re
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from hmmtest import Failed, main_of  # noqa: E402

LONG = os.environ.get("HMM_TEST_LONG")


def wide(h, what, n, mib):
    """On a quarter, or what --ram is at least; the rest has to go.  (mappings before, mappings at the end, statistics)"""
    ram = max(mib // 4, 16)
    r = h.run([os.path.join(h.build, "test/run/load/wide"), what, str(n), str(mib)], ram=f"{ram}M")
    r.expect(min_out=(mib - ram) * 256)
    return [int(k) for k in re.findall(r"\d+", r.out())] + [r.stats()]


def mappings(h):
    """Ten thousand that cannot merge, and what is between them: each is watched, and none is split."""
    before, after, s = wide(h, "mappings", 10000, 160 if LONG else 120)
    if before < 20000:
        raise Failed(f"{before} mappings: this tests nothing")
    # A stack that grows, malloc's: but no more than that.
    if after > before + 100:
        raise Failed(f"{before} mappings have become {after}")
    if s["registrations"] < 9000:
        raise Failed(f"only {s['registrations']} were registered")
    # What a burst may have (README.md): they are registered as fast as they are filled.
    if s["peak_bytes"] > s["budget_bytes"] + (64 << 20):
        raise Failed(f"{s['peak_bytes'] >> 20} MiB at most, of {s['budget_bytes'] >> 20}")


def threads(h):
    """Five hundred, all of them waiting for pages at a time."""
    wide(h, "threads", 500, 128 if LONG else 48)


def sparse(h):
    """1 TiB of which 48 MiB are used, a piece each 42 GiB."""
    wide(h, "sparse", 1024, 128 if LONG else 48)


if __name__ == "__main__":
    main_of(mappings, threads, sparse)
