#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Is a page as cheap where there are many?  `make bench-scale`, as root.

scale.py BUILD OUT [WHAT...]     OUT.json, and OUT.svg if gnuplot is there

WHAT: 256, 1024, 4096, 16384, or any other number of MiB; sparse: a TiB of which a part
is used, 2 MiB here and there; mappings: 10,000 of them; threads: 500 of them, all at
work on any page.  HMM_SCALE_MIB: how much the last three have, HMM_SCALE_OPS: how often
threads look.

Half of the memory is local.  It is filled, with data that compress four times, and
read.  Told are the CPU time of everybody, from start to end, for each page that was
moved, either way, less what the program takes by itself; what the engine has beside
what its devices have, windows, records, the supervisor itself; what the device has
beside what it stored: its own records, and holes; and how many mappings the program
has, alone and so.
"""
import json
import os
import subprocess
import sys
import tempfile

import plot
import rivals
from rivals import MIB

SIZES = (256, 1024, 4096, 16384)
SPARSE_GIB, MAPPINGS, THREADS = 1024, 10000, 500
MIB_OF_OTHERS = int(os.environ.get("HMM_SCALE_MIB", 1024))
ACCESSES = int(os.environ.get("HMM_SCALE_OPS", 100000))
# The host of a virtual machine may have to find memory when it is first used: not once in what is measured.
ALONE_RUNS = 2


def engine(s):
    return s["total_bytes"] - s["resident_bytes"] - s["store_ram_bytes"]


def records(s):
    return sum(d["bytes_records"] for d in s["devices"])


def holes(s):
    return s["store_ram_bytes"] - sum(d["bytes_stored"] for d in s["devices"]) - records(s)


class Scale:
    def __init__(self, build):
        self.hmm, self.exe = os.path.join(build, "hmm"), os.path.join(build, "bench/run/work")
        self.u = rivals.Undo()
        self.group = rivals.Group(self.u, f"hmm-scale-{os.getpid()}")

    def work(self, what):
        """(MiB, the program and what it is told)"""
        mib = int(what) if what.isdigit() else MIB_OF_OTHERS
        how = {"sparse": ["-s", str(SPARSE_GIB)], "mappings": ["-m", str(MAPPINGS)],
               "threads": ["-t", str(THREADS)]}.get(what, [])
        return mib, [self.exe, *how, str(mib), "4", str(ACCESSES), "threads" if what == "threads" else "read"]

    def mappings(self, most):
        for pid in rivals.read(self.group.mem + "/cgroup.procs").split():
            if rivals.read(f"/proc/{pid}/comm") == "work":
                most["mappings"] = max(most.get("mappings", 0), rivals.read(f"/proc/{pid}/maps").count("\n") + 1)

    def look(self, most):
        """The engine as it is when most is away."""
        for pid in rivals.read(self.group.mem + "/cgroup.procs").split():
            if rivals.read(f"/proc/{pid}/comm") != "hmm":
                continue
            p = subprocess.run([self.hmm, "stat", "--json", pid], capture_output=True, text=True)
            s = json.loads(p.stdout) if not p.returncode else {"away_bytes": 0}
            if s["away_bytes"] > most.get("away_bytes", 0):
                most.update(s)

    def run(self, cmd, watch):
        """(what it printed, CPU seconds of all that it made)"""
        def look():
            try:
                watch()
            except (OSError, ValueError):
                pass  # it has just ended
        before = self.group.cpu_seconds()
        r = rivals.run(cmd, self.group, look)
        return r, self.group.cpu_seconds() - before

    def under_hmm(self, cmd, mib):
        """(what it printed, CPU seconds, statistics at the end, and when most was away)"""
        most = {"away_bytes": 0, "total_bytes": 0, "resident_bytes": 0, "store_ram_bytes": 0, "devices": [], "mappings": 0}

        def watch():
            self.look(most)
            self.mappings(most)
        with tempfile.NamedTemporaryFile(prefix="hmm-scale-") as f:
            r, cpu = self.run([self.hmm, "run", "--to", "lz4", "--ram", f"{mib * 3 // 4}M", "--stats", f.name, "--",
                               *cmd], watch)
            return r, cpu, json.loads(f.read()), most

    def point(self, what):
        mib, cmd = self.work(what)
        alone = {}
        runs = [self.run(cmd, lambda: self.mappings(alone)) for _ in range(ALONE_RUNS)]
        cpu_alone = min(cpu for _, cpu in runs)
        r, cpu, s, most = self.under_hmm(cmd, mib)
        for count, told in (alone, runs[0][0]), (most, r):  # it may have ended before anybody has looked
            count["mappings"] = max(count.get("mappings", 0), told.pop("mappings", 0))
        moved = s["pages_out"] + s["pages_in"]
        return {"what": what, "mib": mib, "moved": moved, "us_a_page": 1e6 * (cpu - cpu_alone) / max(moved, 1),
                "cpu": cpu, "cpu_alone": cpu_alone, "seconds": sum(w["seconds"] for w in r.values()),
                "p99": r.get("threads", {}).get("p99"), "mappings": most["mappings"],
                "mappings_alone": alone["mappings"], "away_bytes": most["away_bytes"],
                "engine_bytes": engine(most), "record_bytes": records(most), "hole_bytes": holes(most)}


def main():
    build, out = sys.argv[1:3]
    b = Scale(build)
    points = []
    print(f"{rivals.machine_text()}; vm.max_map_count {rivals.read('/proc/sys/vm/max_map_count')}")
    print(f"{'what':>14} {'MiB':>6} {'moved':>9} {'CPU us a page':>14} {'away, MiB':>10} {'engine, MiB':>12} {'records, MiB':>13} "
          f"{'of away, %':>11} {'holes, MiB':>11} {'s':>6} {'mappings':>9} {'alone':>6}")
    try:
        for what in sys.argv[3:] or (*map(str, SIZES), "sparse", "mappings", "threads"):
            p = b.point(what)
            points.append(p)
            kept = p["engine_bytes"] + p["record_bytes"]
            print(f"{p['what']:>14} {p['mib']:6} {p['moved']:9} {p['us_a_page']:14.2f} {p['away_bytes'] / MIB:10.0f} "
                  f"{p['engine_bytes'] / MIB:12.1f} {p['record_bytes'] / MIB:13.1f} "
                  f"{100 * kept / max(p['away_bytes'], 1):11.2f} {p['hole_bytes'] / MIB:11.1f} "
                  f"{p['seconds']:6.1f} {p['mappings']:9} {p['mappings_alone']:6}"
                  + (f"  p99 of an access {p['p99']:.0f} us" if p["p99"] else ""), flush=True)
    finally:
        b.u.close()
    with open(out + ".json", "w") as f:
        json.dump({"machine": rivals.machine(), "points": points}, f, indent=1)
    plot.by_size(points, out + ".svg")


if __name__ == "__main__":
    main()
