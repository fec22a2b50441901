#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Programs that use a multiple of their budget, every byte verified.

load.py BUILD [TEST...]

HMM_TEST_LONG: more memory, and four times as many rounds.
"""
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from hmmtest import Failed, main_of  # noqa: E402

MIB = 1 << 20
LONG = 4 if os.environ.get("HMM_TEST_LONG") else 1


LEAST_MIB = 16  # of --ram


def size(short, long):
    return long if LONG > 1 else short


def rw(h, pattern, threads, kind, rounds, to=None, mib=None, min_out=None, **expect):
    mib = mib or size(64, 256)
    ram = max(mib // 4, LEAST_MIB)
    r = h.run([os.path.join(h.build, "test/run/load/rw"), pattern, str(threads), str(mib), str(kind),
               str(rounds * LONG)], ram=f"{ram}M", to=to)
    # What does not fit has to go at least once.
    r.expect(min_out=(mib - ram) * 256 if min_out is None else min_out, **expect)
    return r.stats()


def expect(cond, what, s):
    if not cond:
        raise Failed(f"{what}: {s}")


def sequential(h):
    rw(h, "seq", 1, 4, size(1, 2))


def sequential_8_threads(h):
    rw(h, "seq", 8, 4, size(1, 2), mib=size(64, 128))


def steps(h):
    """What lies ahead by the same step comes with the page that is touched."""
    s = rw(h, "step", 1, 4, size(1, 2), mib=size(48, 96))
    expect(s["pages_in"] > 4 * s["faults"], "a fault for nearly each page", s)


def random(h):
    rw(h, "rand", 1, 4, 1, mib=size(64, 128))


def random_8_threads(h):
    rw(h, "rand", 8, 4, 1, mib=size(64, 128))


def incompressible(h):
    """Does not fit compressed either: the second device of the default chain takes it."""
    mib = size(64, 192)
    s = rw(h, "rand", 8, 1, 1, mib=mib)
    expect(s["devices"][1]["copied_in"] > mib * 150, "little was stored in the file", s)
    expect(s["devices"][1]["copied_out"] > mib * 5, "little came back from the file", s)


def file_alone(h):
    s = rw(h, "rand", 8, 2, 1, to="file:/var/tmp", mib=size(48, 192))
    expect(len(s["devices"]) == 1, "more devices than were asked for", s)


def read_again(h):
    """What came back from a file and was not written to goes without being written again."""
    mib, rounds = size(64, 96), size(3, 4)
    s = rw(h, "scan", 1, 1, rounds, to="file:/var/tmp", mib=mib)
    pages, written = mib * 256, s["devices"][0]["copied_in"]
    print(f"{pages} pages filled, {s['pages_out']} went, {written} were written, {s['clean_drops']} dropped")
    expect(s["pages_out"] > rounds * pages * 3 // 4, "little went out again", s)
    # Each once, when it goes for the first time; by the second pass all have.
    expect(written < pages * 5 // 4, "what was only read was written again", s)


def lz4_full(h):
    """Nothing takes what does not fit: a line says so, once, and the program goes on."""
    mib = size(96, 192)
    r = h.run([os.path.join(h.build, "test/run/load/rw"), "rand", "2", str(mib), "1", str(LONG)], ram=f"{mib // 4}M",
              to="lz4")
    r.expect(stderr="^hmm run: all devices are full")
    n = r.err().count("all devices are full")
    expect(n == 1, f"said {n} times", r.err())


def full_of_copies(h):
    """Nothing more goes, and pages come back: what the device has of those makes room then, or both would be in RAM."""
    mib = size(96, 256)
    r = h.run([os.path.join(h.build, "test/run/load/rw"), "seq", "1", str(mib), "1", str(2 * LONG)], ram=f"{mib + 1}M",
              to="lz4")
    r.expect(min_out=mib * 64, stderr="^hmm run: all devices are full")
    s = r.stats()
    expect(s["peak_bytes"] < (mib + 1) * MIB * 5 // 4, "a quarter more than the budget", s)


main_of(sequential, sequential_8_threads, steps, random, random_8_threads, incompressible, file_alone,
        read_again, lz4_full, full_of_copies)
