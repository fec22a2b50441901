#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Torture: programs that know what their memory must hold, on much less RAM than they need.

torture.py BUILD [--minutes N] [--seed S] [--short] [--all [K/N]] [PART...]

random  random programs over the whole memory API (random.c), tiny budgets, all
        kinds of chains, kernel features masked
forks   ways to get a second process (test/run/life), several trees at a time
held    one random program that needs more than its budget whatever is moved
stress  stress-ng's memory stressors with --verify, on a quarter of their memory

--short is what `make test` runs; --all runs each line of stress once, or the Kth of N parts of them.  What went wrong is told with the command that
does it again, as far as it is the command that matters and not the moment.

What it gave last is in doc/evidence.md.
"""
import argparse
import os
import random
import re
import shutil
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "run"))
from hmmtest import Failed, Hmm, Run, descendants, kill_all, reap, skip  # noqa: E402

CHAINS = [None, None, "lz4", "lz4:2M,file:/var/tmp", "file:/var/tmp", "lz4:4M,file:/var/tmp"]
RAMS = ["20M", "24M", "32M", "40M", "64M"]
MASKS = ["procmap-query", "userfaultfd-call", "procmap-query,userfaultfd-call"]
FORKS = ["spawn", "vfork", "generations", "while-evicted", "threads", "raw", "system-threads", "while-popen",
         "clone-vm"]
HANG = 600  # seconds; a watchdog, not a measure

# What to run, and the RAM that is about a quarter of what it touches.
VM_METHODS = """cache-lines cache-stripe checkerboard flip fwdrev galpat-0 galpat-1 gray grayflip rowhammer incdec
inc-nybble lfsr32 rand-set rand-sum read64 ror swap move-inv modulo-x mscan wrrd128nt prime-0 prime-1 prime-gray-0
prime-gray-1 prime-incdec walk-0d walk-1d walk-0a walk-1a write64 write64nt write1024v zero-one""".split()
STRESS = [(["--vm", "1", "--vm-bytes", "96M", "--vm-method", m, "--vm-ops", "300"], "24M") for m in VM_METHODS] + [
    (["--vm", "3", "--vm-bytes", "128M", "--vm-keep", "--vm-ops", "3000"], "40M"),
    (["--mremap", "2", "--mremap-bytes", "64M", "--mremap-ops", "30"], "32M"),
    (["--madvise", "2", "--madvise-ops", "60"], "32M"),
    (["--mmapfork", "2", "--mmapfork-ops", "8"], "32M"),
    (["--brk", "2", "--brk-ops", "60000"], "48M"),
    (["--bigheap", "1", "--bigheap-growth", "2M", "--bigheap-ops", "200"], "64M"),
    (["--malloc", "2", "--malloc-touch", "--malloc-ops", "20000"], "48M"),
    (["--malloc", "2", "--malloc-pthreads", "4", "--malloc-bytes", "64K", "--malloc-ops", "40000"], "48M"),
    (["--userfaultfd", "2", "--userfaultfd-bytes", "32M", "--userfaultfd-ops", "20000"], "24M"),
    (["--mlock", "2", "--mlock-ops", "4000"], "24M"),
    (["--pagemove", "2", "--pagemove-bytes", "32M", "--pagemove-ops", "6"], "24M"),
    (["--munmap", "2", "--munmap-ops", "10"], "24M"),
    (["--stack", "2", "--stack-fill", "--stack-ops", "20"], "32M"),
    (["--remap", "2", "--remap-ops", "20"], "24M"),
]


class Torture:
    def __init__(self, build, seed, short, every):
        self.hmm = Hmm(build)
        self.build = os.path.abspath(build)
        self.seed = seed
        self.rnd = random.Random(seed)
        self.short = short
        self.all = every
        self.failures = 0
        self.runs = 0
        self.moved = 0
        self.operations = 0

    def program(self, *path):
        return os.path.join(self.build, "test", *path)

    def wrong(self, why):
        print("FAILED", why, flush=True)
        self.failures += 1

    def judge(self, run, keep=False):
        """Ends @run; what it says of itself counts, and that something moved."""
        try:
            run.wait(HANG, orphans=False)
            run.expect(rc=0, min_out=0, no_stderr="WRONG|must be killed|is lost|cannot be served")
        except Failed as e:
            self.wrong(e)
        self.runs += 1
        self.moved += run.stats().get("pages_out", 0)
        found = re.search(r"^(\d+) operations", run.out(), re.M)
        self.operations += int(found.group(1)) if found else 0
        if not keep:
            run.dir.cleanup()

    def random_command(self, ops):
        rnd = self.rnd
        threads = rnd.choice([1, 1, 2, 3, 6])
        cmd = [self.program("torture", "torture-random"), str(rnd.randrange(1 << 30)), str(ops), str(threads),
               rnd.choice(["raw", "libc", "both", "both"])]
        prefix = [self.program("torture", "torture-mask"), rnd.choice(MASKS)] if rnd.random() < 0.25 else []
        return cmd, rnd.choice(RAMS), rnd.choice(CHAINS), prefix

    def part_random(self, until):
        while True:
            cmd, ram, to, prefix = self.random_command(150 if self.short else 800)
            self.judge(Run(self.hmm, cmd, ram=ram, to=to, prefix=prefix))
            if time.monotonic() > until:
                return

    def part_forks(self, until):
        """Several trees at a time: what must not happen happens when each has to wait for a CPU."""
        while True:
            runs = []
            for _ in range(2 if self.short else 4):
                case = self.rnd.choice(FORKS[:5] if self.short else FORKS)
                runs.append(Run(self.hmm, [self.program("run", "life", "life-fork"), case],
                                ram=self.rnd.choice(["24M", "32M", "48M", "64M"]), to=self.rnd.choice(CHAINS)))
            for run in runs:
                self.judge(run)
            if time.monotonic() > until:
                return

    def part_held(self, _):
        """A tree that cannot be kept within its budget: faults are not held up for room that cannot be made."""
        cmd = [self.program("torture", "torture-random"), "519774521", "800", "2", "both"]
        run = Run(self.hmm, cmd, ram="32M", to="file:/var/tmp")
        self.judge(run, keep=True)
        s = run.stats()
        # Where a CPU is slow room comes late, and 0.23 of the faults wait, of which 0.0003 in vain.  Where nobody
        # says that no room can be made (h->full) it is two waits for each fault and 0.017; without h->tight, too,
        # this does not end.
        if not s.get("faults") or s["held"] * 2 > s["faults"] or s["held_in_vain"] * 200 > s["faults"]:
            self.wrong(f"faults waited for nothing: {s}")
        run.dir.cleanup()

    def part_stress(self, until):
        if not shutil.which("stress-ng"):
            self.wrong("stress-ng is not installed (packages.txt)")
            return
        todo = list(STRESS)
        if self.all:
            k, n = map(int, self.all.split("/"))
            todo, until = todo[k - 1::n], float("inf")
        else:
            self.rnd.shuffle(todo)
        for args, ram in todo:
            moved = self.stress(args, ram)
            if self.all and not moved:
                # It was through before it was too large: for as long as it may.
                moved = self.stress([a for k, a in enumerate(args) if not a.endswith("-ops") and
                                     not args[k - 1].endswith("-ops")], ram)
            if self.all:
                print(f"  {' '.join(args)}: {moved} pages out of {ram}", flush=True)
            if time.monotonic() > until:
                return

    def stress(self, args, ram):
        # Its own limit counts where a number of operations takes long here; then all that was done is verified.
        cmd = ["stress-ng", *args, "--verify", "--timeout", "20", "--oomable", "--temp-path", "/tmp", "--metrics-brief"]
        moved = self.moved
        self.judge(Run(self.hmm, cmd, ram=ram))
        return self.moved - moved

    def main(self, parts, minutes):
        each = minutes * 60 / len(parts)
        for part in parts:
            runs, moved, begin = self.runs, self.moved, time.monotonic()
            getattr(self, "part_" + part)(begin + each)
            print(f"{part}: {self.runs - runs} runs, {self.moved - moved} pages moved out,"
                  f" {time.monotonic() - begin:.0f} s", flush=True)
            if self.moved == moved:
                self.wrong(f"{part}: no page went out: this tests nothing")
        print(f"seed {self.seed}: {self.runs} runs, {self.operations} random operations, {self.moved} pages moved out,"
              f" {self.failures} failures")


def main():
    p = argparse.ArgumentParser()
    p.add_argument("build")
    p.add_argument("part", nargs="*", default=[])
    p.add_argument("--minutes", type=float, default=6)
    p.add_argument("--seed", type=int, default=int(time.time()))
    p.add_argument("--short", action="store_true")
    p.add_argument("--all", nargs="?", const="1/1", metavar="K/N")
    a = p.parse_intermixed_args()
    t = Torture(a.build, a.seed, a.short, a.all)
    try:
        t.main(a.part or ["random", "forks", "held", "stress"], a.minutes)
    finally:
        kill_all(descendants())
        reap()
    sys.exit(1 if t.failures else 0)


if __name__ == "__main__":
    main()
