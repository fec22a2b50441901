#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The RAM of a tree, measured from outside, stays within its budget.

budget.py BUILD [TEST...]

A memory cgroup counts anonymous and shared memory of all that hmm run
starts, its own processes included.  What is compared is bytes; of the clock
only this depends on: how close together the samples are.
"""
import os
import sys
import tempfile
import threading

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from hmmtest import Failed, main_of, skip  # noqa: E402

CGROUP, CGROUP2 = "/sys/fs/cgroup/memory", "/sys/fs/cgroup"
MIB = 1 << 20
SAMPLE_S = 0.005
LONG = os.environ.get("HMM_TEST_LONG")


class Group:
    """A memory cgroup of our own."""

    def __init__(self):
        v2 = not os.path.exists(CGROUP + "/cgroup.procs")
        self.fields = ("anon", "shmem") if v2 else ("rss", "shmem")
        self.path = f"{CGROUP2 if v2 else CGROUP}/hmmtest-{os.getpid()}"
        try:
            os.mkdir(self.path)
        except OSError as e:
            skip(f"no memory cgroup can be made: {e.strerror}")
        try:
            self.stat = open(self.path + "/memory.stat")
            self.sample()
        except (OSError, KeyError) as e:
            os.rmdir(self.path)
            skip(f"no memory is counted in {self.path}: {e}")

    def enter(self):
        with open(self.path + "/cgroup.procs", "w") as f:
            f.write(str(os.getpid()))

    def sample(self):
        self.stat.seek(0)
        v = dict(line.split() for line in self.stat.read().splitlines())
        return sum(int(v[name]) for name in self.fields)

    def remove(self):
        self.stat.close()
        os.rmdir(self.path)


def watch(h, mode, nproc, mib, budget, quarters=4):
    """@quarters of it are gone through when all have what they want."""
    g = Group()
    worst, samples = {}, {}
    stop = threading.Event()
    with tempfile.NamedTemporaryFile(prefix="hmmtest-") as f:
        f.write(b"b")
        f.flush()

        def look():
            with open(f.name, "rb", buffering=0) as p:
                while not stop.wait(SAMPLE_S):
                    phase = os.pread(p.fileno(), 1, 0)
                    used = g.sample()
                    if os.pread(p.fileno(), 1, 0) == phase:
                        worst[phase] = max(worst.get(phase, 0), used)
                        samples[phase] = samples.get(phase, 0) + 1

        t = threading.Thread(target=look)
        try:
            r = h.start([os.path.join(h.build, "test/run/load/tree"), mode, str(nproc), str(mib),
                         str(quarters * 8 if LONG else quarters), f.name], ram=f"{budget}M", preexec_fn=g.enter)
            t.start()
            r.wait()
        finally:
            stop.set()
            if t.ident:
                t.join()
            g.remove()
    b = budget * MIB
    burst = b + max(b // 4, 64 * MIB)
    settled = b + b // 20 + 16 * MIB
    top = max(worst.values())
    print(f"{mode}, {nproc} processes, budget {budget} MiB: at most {top / MIB:.1f} MiB (allowed {burst / MIB:.1f}), "
          f"settled {worst.get(b's', 0) / MIB:.1f} MiB (allowed {settled / MIB:.1f}), {samples.get(b's', 0)} samples")
    r.expect(min_out=(mib - budget) * 256 // 2)
    if samples.get(b"s", 0) < 20:
        raise Failed("looked too seldom to say anything")
    if worst[b"s"] < b // 2:
        raise Failed("half of the budget is not even used: this measures nothing")
    if top > burst:
        raise Failed(f"a burst took {top / MIB:.1f} MiB")
    if worst[b"s"] > settled:
        raise Failed(f"settled at {worst[b's'] / MIB:.1f} MiB")


def single(h):
    watch(h, "own", 1, *((384, 128) if LONG else (160, 48)))


def processes(h):
    watch(h, "own", 4, *((384, 128) if LONG else (192, 48)))


def many(h):
    """They are there, and grow, before the first has been armed."""
    if os.geteuid():
        skip("who watches has no real-time priority, and comes too late among many")
    watch(h, "own", 12, 288, 40)


def forked(h):
    watch(h, "fork", 4, 256, 128, quarters=4 if LONG else 2)


WAKE = (512, 192) if LONG else (256, 64)


def woken(h):
    """Nothing has run for a while, and then there is a lot at once."""
    watch(h, "wake", 1, *WAKE)


def populated(h):
    """The same, by a call that makes all pages of a new mapping without a fault."""
    watch(h, "populate", 1, *WAKE)


def woken_by_another(h):
    """Who wakes up shares the memory, and is no thread of the program."""
    watch(h, "shared", 1, *WAKE)


main_of(single, processes, many, forked, woken, woken_by_another, populated)
