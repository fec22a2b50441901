#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What hmm run costs, against what paging is made of and against the kernel's swap.

bench.py BUILD [OUT]      OUT.json: all that was measured; OUT-*.svg: plots, if gnuplot is there

A few minutes; HMM_BENCH_LONG=1: all sizes of local memory, and data that compress
more and not at all.  HMM_BENCH_ROUNDS, _MIB, _OPS, _LOCAL, _WORK, _CLUSTERS, _TIERS and
_ONLY (names of systems, with commas between) change either.

All systems take turns, round after round, on one machine: the ratios of a round say
something, the figures do not.  "50 % local": swap may keep half of the program's
memory resident.  What it then takes in all, its compressed pool counted, is measured,
and is the budget of hmm run.
"""
import json
import os
import signal
import statistics
import sys
import tempfile

import rivals
from rivals import MIB

HERE = os.path.dirname(os.path.abspath(__file__))
SLACK = 4 * MIB  # the program itself: its code's data, page tables
OOM_TRIES = 3
IN_ORDER = ("fill", "read", "write", "stride")
AT_RANDOM = ("uniform", "zipf", "chase", "threads")
LONG = os.environ.get("HMM_BENCH_LONG") == "1"


def setting(name, short, long):
    v = os.environ.get("HMM_BENCH_" + name)
    return v if v is not None else (long if LONG else short)


class Bench:
    def __init__(self, build):
        self.build, self.notes, self.rows = build, [], []
        self.exe = {n: os.path.join(build, "bench/run", n) for n in ("work", "floor", "pager")}
        self.hmm_exe = os.path.join(build, "hmm")
        self.rounds = int(setting("ROUNDS", 3, 5))
        self.mib = int(setting("MIB", 256, 512))
        self.ops = int(setting("OPS", 20000, 50000))
        self.only = [n for n in setting("ONLY", "", "").split(",") if n]
        self.workloads = setting("WORK", "", "").split() or [*IN_ORDER[1:], *AT_RANDOM]
        self.clusters = [int(c) for c in setting("CLUSTERS", "0 1 2 3", "0 1 2 3 4 5").split()]
        self.u = rivals.Undo()
        self.group = None
        if not os.geteuid():
            try:
                self.group = rivals.Group(self.u, f"hmm-bench-{os.getpid()}")
            except OSError as e:
                self.notes.append(f"no cgroup, so no swap to compare with, and no CPU time: {e}")

    def note(self, text):
        if text not in self.notes:
            self.notes.append(text)

    def work(self, mib, ratio):
        cpu = ["-c", self.group.cpu] if self.group else []
        return [self.exe["work"], *cpu, str(mib), str(ratio), str(self.ops), *self.workloads]

    def hmm(self, work, budget, chain):
        with tempfile.NamedTemporaryFile(prefix="hmm-bench-") as f:
            r = rivals.run([self.hmm_exe, "run", "--to", chain, "--ram", str(budget), "--stats", f.name, "--",
                            *work], self.group)
            st = json.loads(f.read())
        return r, st["peak_bytes"]

    def floors(self):
        out = {}
        for ratio in (1, 2, 4) if LONG else (2,):
            out[f"speed, {ratio}x data"] = rivals.run([self.exe["floor"], "speed", "64", str(ratio)], self.group)
        rows = {}
        back = [self.hmm_exe, "run", "--to", "lz4", "--ram", "96M", "--", self.exe["floor"], "back", "128", "5000"]
        for _ in range(self.rounds):
            for where, pre in ("", []), (", one CPU", ["taskset", "-c", "0"]):
                for name, cmd in (("bare handler", [self.exe["floor"], "bare", "64", "5000"]),
                                  ("bare handler and one LZ4 page", [self.exe["floor"], "lz4", "64", "5000"]),
                                  ("hmm run", back)):
                    rows.setdefault(name + where, []).append(rivals.run(pre + cmd, self.group))
        out["fault-back"] = rows
        return out

    def systems(self, tier):
        """Name, and how to get a rival that is set up."""
        few = self.clusters if LONG else self.clusters[:1]
        kinds = [("zram", rivals.Zram, None, self.clusters), ("zram, MADV_PAGEOUT ahead", rivals.Zram, "pager", few),
                 ("zswap", rivals.Zswap, None, few)] if tier == "lz4" else [("file swap", rivals.FileSwap, None, (0, 5))]
        for name, kind, pager, clusters in kinds:
            why = rivals.why_not(kind) if self.group else "needs root and cgroups"
            if why:
                self.note(f"{name} is left out: {why}")
                continue
            if self.only and name not in self.only:
                continue
            for c in clusters:
                yield name, c, kind(self.u, self.group, c, self.exe[pager] if pager else None)

    def measure(self, name, rival, work, limit):
        for _ in range(OOM_TRIES):
            try:
                return rival.measure(work, limit)
            except rivals.Killed:
                self.note(f"{name} with {limit / MIB:.0f} MiB: the kernel's out-of-memory killer ended the program; again")
            except (OSError, RuntimeError, rivals.subprocess.CalledProcessError) as e:
                self.note(f"{name} with {limit / MIB:.0f} MiB: {e}")
                return None
        return None

    def point(self, tier, ratio, local):
        """All systems at one size of local memory, in turn."""
        mib = self.mib if tier == "lz4" or LONG else self.mib // 4  # a disk is slow
        limit = mib * MIB * local // 100 + SLACK
        work = self.work(mib, ratio)
        chain = "lz4" if tier == "lz4" else "file:/var/tmp"
        budget = 0
        if tier != "lz4":
            budget = limit
        cells = {}
        for rnd in range(self.rounds):
            todo = list(self.systems(tier))
            for name, cluster, rival in todo:
                r = self.measure(name, rival, work, limit)
                if not r:
                    continue
                cells.setdefault((name, cluster), []).append((r, rival.peak))
                if not budget and name == "zram":
                    budget = rival.peak
            if not budget:  # nobody to be equal to: what LZ4 makes of it, and a tenth more
                budget = int(limit + mib * MIB * (100 - local) / 100 / ratio * 1.1)
            for name in "hmm run", "all in RAM":
                if self.only and name not in self.only:
                    continue
                got = self.hmm(work, budget, chain) if name == "hmm run" else (rivals.run(work, self.group), 0)
                cells.setdefault((name, None), []).append(got)
            print(f"  {tier}, {ratio}x data, {local} % local: round {rnd + 1} of {self.rounds}", file=sys.stderr)
        return {"tier": tier, "mib": mib, "ratio": ratio, "local": local, "limit": limit, "budget": budget,
                "cells": [{"system": n, "cluster": c, "runs": [{"work": r, "peak": p} for r, p in v]}
                          for (n, c), v in cells.items()]}

    def all(self):
        locals_ = [int(x) for x in str(setting("LOCAL", "50", "100 75 50 37 25 12")).split()]
        tiers = setting("TIERS", "lz4 file", "lz4 file").split()
        points = [(t, r) for t in tiers for r in ((2, 4) if LONG and t == "lz4" else (1, 2) if LONG else (2,))]
        return [self.point(t, r, loc) for t, r in points for loc in locals_]


def median(v):
    return statistics.median(v)


def best(point, system, workload):
    """The runs of a system at the vm.page-cluster that is best for a workload: (cluster, [result])."""
    rows = [(c["cluster"], [r["work"][workload] for r in c["runs"]]) for c in point["cells"] if c["system"] == system]
    return min(rows, key=lambda x: median(r["seconds"] for r in x[1])) if rows else None


def names(point):
    return list(dict.fromkeys(c["system"] for c in point["cells"]))


def spread(v, form="{:.2f}"):
    v = sorted(v)
    return f"{form} ({form}-{form})".format(median(v), v[0], v[-1])


def figure(workload, r):
    """GB/s of pages touched in order, us an access else."""
    each = r["seconds"] / r["ops"]
    return 4096 / each / 1e9 if workload in IN_ORDER else each * 1e6


def print_point(p):
    print(f"\n{p['mib']} MiB of {p['ratio']}x data, {p['local']} % local: {p['limit'] / MIB:.0f} MiB resident for swap,"
          f" {p['budget'] / MIB:.0f} MiB in all for hmm run, which moves to {p['tier']}")
    print(f"{'':10}{'':26}{'median (spread)':>24}{'page-':>8}{'hits':>7}{'us a':>8}{'CPU':>8}"
          f"   {'hmm run is faster by':24}{'p50':>9}{'p99':>9}")
    print(f"{'':10}{'':26}{'':>24}{'cluster':>8}{'%':>7}{'miss':>8}{'s':>8}{'':27}{'us':>9}{'us':>9}")
    cpu = {}
    for w in p["cells"][0]["runs"][0]["work"]:
        mine, ram = best(p, "hmm run", w), best(p, "all in RAM", w)
        for name in names(p):
            cluster, runs = best(p, name, w)
            used = [r["cpu"] for r in runs if "cpu" in r]
            if used:
                cpu[name] = cpu.get(name, 0) + median(used)
            unit = "GB/s" if w in IN_ORDER else "us"
            hits = 100 * (1 - min(1, median(r["faults"] / r["ops"] for r in runs)))
            faults = median(r["faults"] for r in runs)
            miss = (median(r["seconds"] for r in runs) - median(r["seconds"] for r in ram[1])) / faults * 1e6 \
                if ram and faults > 50 and name != "all in RAM" else None
            ratio = [a["seconds"] / b["seconds"] for a, b in zip(runs, mine[1])] if mine and name not in (
                "hmm run", "all in RAM") else None
            print(f"{w if name == names(p)[0] else '':10}{name:26}"
                  f"{spread([figure(w, r) for r in runs]) + ' ' + unit:>24}"
                  f"{'' if cluster is None else cluster:>8}{hits:7.1f}{'' if miss is None else f'{miss:.1f}':>8}"
                  f"{f'{median(used):.2f}' if used else '':>8}   {spread(ratio) if ratio else '':24}"
                  + (f"{median(r['p50'] for r in runs):9.2f}{median(r['p99'] for r in runs):9.1f}" if 'p50' in runs[0]
                     else ""))
    for name in names(p):
        peaks = [r["peak"] for c in p["cells"] if c["system"] == name for r in c["runs"] if r["peak"]]
        print(f"{name}: " + ", ".join(([f"{max(peaks) / MIB:.0f} MiB of RAM at most"] if peaks else [])
                                      + ([f"{cpu[name]:.2f} s of CPU in all"] if name in cpu else [])))


def print_floors(f):
    for name, r in f.items():
        if name.startswith("speed"):
            print(f"{name}: first touch {r['first_touch']} GB/s, memcpy {r['memcpy']}, LZ4 in {r['lz4_in']},"
                  f" LZ4 out {r['lz4_out']}; {r['lz4_ratio']} times smaller")
    print(f"{'fault-back, us':42}{'median (spread)':>24}{'p99':>8}")
    rows = f["fault-back"]
    for name, r in rows.items():
        print(f"{name:42}{spread([x['back_median'] for x in r], '{:.1f}'):>24}{median(x['back_p99'] for x in r):8.1f}")
    for where in "", ", one CPU":
        mine, bare = rows["hmm run" + where], rows["bare handler and one LZ4 page" + where]
        print(f"hmm run / (bare handler and one LZ4 page){where}: "
              + spread([a["back_median"] / b["back_median"] for a, b in zip(mine, bare)]))


def machine():
    cpu = next((line.split(":")[1].strip() for line in rivals.read("/proc/cpuinfo").splitlines()
                if line.startswith("model name")), "?")
    virtual = "virtual machine" if " hypervisor" in rivals.read("/proc/cpuinfo") else "no hypervisor"
    return {"kernel": os.uname().release, "cpu": cpu, "cpus": os.cpu_count(), "virtual": virtual,
            "load": os.getloadavg()[0]}


def main():
    for s in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(s, lambda n, f: sys.exit(128 + n))
    build = os.path.abspath(sys.argv[1])
    b = Bench(build)
    try:
        out = {"machine": machine(), "mib": b.mib, "ops": b.ops, "rounds": b.rounds}
        out["floors"], out["points"], out["notes"] = b.floors(), b.all(), b.notes
    finally:
        b.u.back_to(0)
        b.u.close()
    m = out["machine"]
    print(f"{m['cpus']} x {m['cpu']}, {m['virtual']}, Linux {m['kernel']}, load {m['load']:.1f} at the start;"
          f" {b.mib} MiB, {b.ops} accesses at random, {b.rounds} rounds")
    print_floors(out["floors"])
    for p in out["points"]:
        print_point(p)
    for n in out["notes"]:
        print(n)
    if len(sys.argv) > 2:
        with open(sys.argv[2] + ".json", "w") as f:
            json.dump(out, f, indent=1)
        import plot
        plot.all(out, sys.argv[2])


main()
