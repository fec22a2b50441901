#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What hmm run costs, against what paging is made of and against the kernel's swap.

bench.py BUILD [OUT]      OUT.json: all that was measured; OUT-*.svg: plots, if gnuplot is there

Measured are: what paging is made of (floors); everybody with half of the memory local;
hmm run, zram and all in RAM with more and less of it (the sweep), and with data that
compress more and not at all; programs of others.  HMM_BENCH_LONG=1: everybody at all
sizes of local memory and with all data.  HMM_BENCH_ROUNDS, _MIB, _OPS, _LOCAL, _WORK,
_RATIOS, _RATIO_WORK, _CLUSTERS, _TIERS, _REAL (of redis, numpy, graph), _FLOORS (0: none),
_SWEEP, _ONLY (names of systems, with commas between) and _CPUS (how many
it all runs on; 0: all) change either.  plot.py draws what several runs have measured.

All systems take turns, round after round, on one machine: the ratios of a round say
something, the figures do not.  "50 % local": swap may keep half of the program's
memory resident.  What it then takes in all, its compressed pool counted, is measured,
and is the budget of hmm run: zram's peak in its first run.  What that takes is measured
likewise, by the cgroup that both its processes and the program are in, and not only told
by itself.
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
IN_ORDER = ("fill", "read", "write", "stride", "burst")
AT_RANDOM = ("uniform", "zipf", "chase", "threads")
REAL = {"redis": 256, "numpy": 128, "graph": 128}  # MiB
OURS = ("hmm run", "all in RAM")
MORE_RAM = 1.1  # of what it may have, and no ratio is of equal RAM
SPEEDS = ("first-touch", "memcpy", "lz4-in", "lz4-out")
FAULTS = {"fault-process": "bare handler", "fault-process-lz4": "bare handler and one LZ4 page", "hmm-back": "hmm run"}
SWEEP_CLUSTERS = (0, 2)  # best at random, best in order
LONG = os.environ.get("HMM_BENCH_LONG") == "1"


def setting(name, short, long):
    v = os.environ.get("HMM_BENCH_" + name)
    return v if v is not None else (long if LONG else short)


class Bench:
    def __init__(self, build):
        self.build, self.notes, self.rows = build, [], []
        self.exe = {n: os.path.join(build, "bench/run", n) for n in ("work", "pager", "graph", "bulk")}
        self.hmm_exe = os.path.join(build, "hmm")
        self.rounds = int(setting("ROUNDS", 3, 5))
        self.mib = int(setting("MIB", 256, 512))
        self.ops = int(setting("OPS", 20000, 50000))
        self.only = [n for n in setting("ONLY", "", "").split(",") if n]
        self.workloads = setting("WORK", "", "").split() or [*IN_ORDER[1:], *AT_RANDOM]
        self.bursts = "burst" in self.workloads
        self.workloads = [w for w in self.workloads if w != "burst"]
        self.tiers = setting("TIERS", "lz4 file", "lz4 file").split()
        self.ratios = setting("RATIOS", "2 1 4", "2 1 4").split()
        self.real = setting("REAL", " ".join(REAL), " ".join(REAL)).split()
        self.clusters = [int(c) for c in setting("CLUSTERS", "0 1 2 3", "0 1 2 3 4 5").split()]
        self.sweep = [int(x) for x in setting("SWEEP", "100 75 50 37 25 12", "").split()]
        self.ratio_work = setting("RATIO_WORK", "read write uniform", " ".join(self.workloads)).split()
        self.locals = [int(x) for x in setting("LOCAL", "50", "100 75 50 37 25 12").split()]
        self.cpus = sorted(os.sched_getaffinity(0))
        if int(setting("CPUS", 2, 2)):  # of more than two, that which has eight threads would say less
            self.cpus = self.cpus[:int(setting("CPUS", 2, 2))]
            os.sched_setaffinity(0, self.cpus)
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

    def cpu(self):
        return ["-c", self.group.cpu] if self.group else []

    def work(self, mib, ratio, workloads=None):
        return [self.exe["work"], *self.cpu(), str(mib), str(ratio), str(self.ops), *(workloads or self.workloads)]

    def watched(self, cmd):
        """What it printed, and the RAM that it and who pages for it had at most."""
        most = 0

        def look():
            nonlocal most
            most = max(most, self.group.usage())
        return rivals.run(cmd, self.group, look if self.group else None), most

    def hmm(self, work, budget, chain):
        with tempfile.NamedTemporaryFile(prefix="hmm-bench-") as f:
            r, most = self.watched([self.hmm_exe, "run", "--to", chain, "--ram", str(budget), "--stats", f.name, "--",
                                    *work])
            told = json.loads(f.read())["peak_bytes"]
        return {"work": r, "peak": max(most, told), "told": told}

    def command(self, names, *args, pre=()):
        """What hmm bench measures of @names, one round of each: {name: figure}."""
        r = rivals.run([*pre, self.hmm_exe, "bench", "--json", "-", "--rounds", "1", "--only", names, *args], self.group)
        for name, why in r["skipped"].items():
            raise RuntimeError(f"hmm bench: {name}: {why}")
        return {f["name"]: f for f in r["figures"]}

    def floors(self):
        out, rows = {}, {}
        for _ in range(self.rounds):
            for ratio in 1, 2, 4:
                out.setdefault(f"speed, {ratio}x data", []).append(
                    {n: f["gb_per_s"] for n, f in self.command(",".join(SPEEDS), "--ratio", str(ratio)).items()})
            for where, pre in ("", []), (", one CPU", ["taskset", "-c", str(self.cpus[0])]):
                for name, f in self.command(",".join(FAULTS), "--mib", "128", pre=pre).items():
                    rows.setdefault(FAULTS[name] + where, []).append(
                        {"back_median": f["median"] / 1e3, "back_p99": f["p99s"][0] / 1e3})
        out["fault-back"] = rows
        out["bulk"] = [rivals.run([self.exe["bulk"], "64", "2"], self.group) for _ in range(self.rounds)]
        if self.group:
            out["idle"] = [self.hmm(self.work(64, 2, ["idle"]), 48 * MIB, "lz4")["work"]["idle"]
                           for _ in range(self.rounds)]
        return out

    def systems(self, tier, few):
        """(name, vm.page-cluster, a rival that is set up, or None for what needs none).  @few: of rivals only zram."""
        clusters = self.clusters if LONG else self.clusters[:1]
        kinds = [("zram", rivals.Zram, None, SWEEP_CLUSTERS if few else self.clusters)]
        if not few:
            kinds += [("zram, MADV_PAGEOUT ahead", rivals.Zram, "pager", clusters), ("zswap", rivals.Zswap, None, clusters)]
        if tier == "file":
            kinds = [("file swap", rivals.FileSwap, None, (0, 5))]
        for name, kind, pager, clusters in kinds:
            why = rivals.why_not(kind) if self.group else "needs root and cgroups"
            if not why and self.only and name not in self.only:
                why = "not asked for"
            if why:
                self.note(f"{name} is left out: {why}")
                continue
            for c in clusters:
                yield name, c, kind(self.u, self.group, c, self.exe[pager] if pager else None)
        for name in OURS:
            if self.only and name not in self.only:
                self.note(f"{name} is left out: not asked for")
            else:
                yield name, None, None

    def measure(self, name, rival, work, limit, budget):
        """A run of a rival's, as watched() has it, or None."""
        for _ in range(OOM_TRIES):
            try:
                return {"work": rival.measure(work, limit, budget), "peak": rival.peak}
            except rivals.Killed:
                self.note(f"{name} with {limit / MIB:.0f} MiB: the kernel's out-of-memory killer ended the program; again")
            except (OSError, RuntimeError, rivals.subprocess.CalledProcessError) as e:
                self.note(f"{name} with {limit / MIB:.0f} MiB: {e}")
                return None
        self.note(f"{name} with {limit / MIB:.0f} MiB: given up")
        return None

    def point(self, tier, ratio, local, workloads=None, few=False):
        """All systems at one size of local memory."""
        mib = self.mib
        limit = mib * MIB * local // 100 + SLACK
        chain = "lz4" if tier == "lz4" else "file:/var/tmp"
        budget, cells = self.turns(tier, self.work(mib, ratio, workloads), limit, chain,
                                   # Nobody to be equal to: what LZ4 makes of it, and a tenth more.
                                   limit + mib * MIB * (100 - local) / 100 / ratio * 1.1, few)
        return {"tier": tier, "mib": mib, "ratio": ratio, "local": local, "limit": limit, "budget": budget,
                "cells": cells, "title": f"{mib} MiB of {ratio}x data, {local} % local"}

    def real_point(self, name):
        """The same of a program of others, half of whose memory is local."""
        mib = REAL[name] * (2 if LONG else 1)
        cmd = [self.exe[name]] if name == "graph" else [sys.executable, os.path.join(HERE, "real.py")]
        cmd += [*self.cpu(), *([] if name == "graph" else [name]), str(mib)]
        if not self.group:
            self.note(f"{name} is left out: needs root and cgroups")
            return None
        try:
            most = self.watched(cmd)[1]
        except RuntimeError as e:
            self.note(f"{name} is left out: {e}")
            return None
        budget, cells = self.turns("lz4", cmd, most // 2, "lz4", most * .8)
        results = {json.dumps({w: v.get("result") for w, v in r["work"].items()}) for c in cells for r in c["runs"]}
        if len(results) > 1:
            raise RuntimeError(f"{name} does not always come to the same: {results}")
        return {"mib": mib, "limit": most // 2, "budget": budget, "tier": "lz4", "cells": cells,
                "title": f"{name}, {most / MIB:.0f} MiB, 50 % local"}

    def turns(self, tier, work, limit, chain, else_budget, few=False):
        """Everybody in turn, there and back.  Returns hmm run's budget, and what was measured."""
        budget = limit if tier == "file" else 0
        cells = {}
        for rnd in range(self.rounds):
            order = list(self.systems(tier, few))
            for name, cluster, rival in reversed(order) if rnd % 2 else order:
                if rival:
                    # Who counts its pool is limited to what hmm run will have, also before zram has told.
                    r = self.measure(name, rival, work, limit, budget or int(else_budget))
                    if not budget and r and name == "zram":
                        budget = max(limit, r["peak"])  # it may have no need of all that it was given
                elif name == "hmm run":
                    budget = budget or int(else_budget)
                    r = self.hmm(work, budget, chain)
                else:
                    r = dict(zip(("work", "peak"), self.watched(work)))
                if r:
                    cells.setdefault((name, cluster), []).append({**r, "round": rnd})
            print(f"  {os.path.basename(work[0])}, {tier}, {limit / MIB:.0f} MiB: round {rnd + 1} of {self.rounds}",
                  file=sys.stderr)
        return budget, [{"system": n, "cluster": c, "runs": v} for (n, c), v in cells.items()]

    def all(self):
        """Everybody; what else there is of other data, in the short form, has few rivals and few workloads."""
        if not self.workloads:
            return []
        points = []
        for tier in self.tiers:
            for ratio in map(int, self.ratios):
                few = ratio != 2 and not LONG
                if tier == "lz4" or not few and ratio != 4:
                    points += [self.point(tier, ratio, local, self.ratio_work if few else None, few)
                               for local in self.locals]
        return points

    def all_sizes(self):
        return [self.point("lz4", 2, local, None, True) for local in self.sweep if self.workloads]

    def others(self):
        """Bursts take RAM that would count for all else; and programs of others."""
        points = [self.point("lz4", 2, 50, ["burst"])] if self.bursts and "lz4" in self.tiers else []
        return points + [p for p in map(self.real_point, self.real) if p]


def median(v):
    return statistics.median(v)


def best(point, system, workload):
    """The runs of a system at the vm.page-cluster that is best for a workload: (cluster, [result])."""
    rows = [(c["cluster"], [{**r["work"][workload], "round": r["round"]} for r in c["runs"]])
            for c in point["cells"] if c["system"] == system]
    return min(rows, key=lambda x: median(r["seconds"] for r in x[1])) if rows else None


def ratios(runs, mine):
    """How much longer it took than what is @mine, in each round that has both."""
    by_round = {r["round"]: r["seconds"] for r in mine}
    return [r["seconds"] / by_round[r["round"]] for r in runs if r["round"] in by_round]


def names(point):
    return list(dict.fromkeys(c["system"] for c in point["cells"]))


def spread(v, form="{:.2f}"):
    v = sorted(v)
    return f"{form} ({form}-{form})".format(median(v), v[0], v[-1])


def figure(workload, r):
    """GB/s of pages touched in order, seconds of what is one thing, us an access else."""
    each = r["seconds"] / r["ops"]
    return each if r["ops"] == 1 else 4096 / each / 1e9 if workload in IN_ORDER else each * 1e6


def cpu_seconds(p, name):
    """Medians of each workload at its best vm.page-cluster, added.  Of what is measured: no first passes, which warm up."""
    used = [[r["cpu"] for r in best(p, name, w)[1] if "cpu" in r] for w in p["cells"][0]["runs"][0]["work"]]
    return sum(median(v) for v in used if v)


def most_ram(p, name):
    return max((r["peak"] for c in p["cells"] if c["system"] == name for r in c["runs"]), default=0)


def print_if_unequal(p):
    if most_ram(p, "hmm run") > MORE_RAM * p["budget"]:
        print(f"{p['title']}: hmm run had so much more RAM than it may have that its ratios are not of equal RAM")


def print_point(p):
    print(f"\n{p['title']}: {p['limit'] / MIB:.0f} MiB resident for swap,"
          f" {p['budget'] / MIB:.0f} MiB in all for hmm run, which moves to {p['tier']}")
    print(f"{'':10}{'':26}{'median (spread)':>24}{'page-':>8}{'hits':>7}{'us a':>8}{'CPU':>8}"
          f"   {'hmm run is faster by':24}{'p50':>9}{'p99':>9}")
    print(f"{'':10}{'':26}{'':>24}{'cluster':>8}{'%':>7}{'miss':>8}{'s':>8}{'':27}{'us':>9}{'us':>9}")
    cpu = {name: cpu_seconds(p, name) for name in names(p)}
    for w in p["cells"][0]["runs"][0]["work"]:
        mine, ram = best(p, "hmm run", w), best(p, "all in RAM", w)
        for name in names(p):
            cluster, runs = best(p, name, w)
            used = [r["cpu"] for r in runs if "cpu" in r]
            whole = runs[0]["ops"] == 1
            unit = "s" if whole else "GB/s" if w in IN_ORDER else "us"
            hits = "" if whole else f"{100 * (1 - min(1, median(r['faults'] / r['ops'] for r in runs))):.1f}"
            faults = median(r["faults"] for r in runs)
            miss = (median(r["seconds"] for r in runs) - median(r["seconds"] for r in ram[1])) / faults * 1e6 \
                if ram and faults > 50 and name != "all in RAM" else None
            ratio = ratios(runs, mine[1]) if mine and name != "hmm run" else None
            print(f"{w if name == names(p)[0] else '':10}{name:26}"
                  f"{spread([figure(w, r) for r in runs]) + ' ' + unit:>24}"
                  f"{'' if cluster is None else cluster:>8}{hits:>7}{'' if miss is None else f'{miss:.1f}':>8}"
                  f"{f'{median(used):.2f}' if used else '':>8}   {spread(ratio) if ratio else '':24}"
                  + (f"{median(r['p50'] for r in runs):9.2f}{median(r['p99'] for r in runs):9.1f}" if 'p50' in runs[0]
                     else ""))
    for name in names(p):
        runs = [r for c in p["cells"] if c["system"] == name for r in c["runs"] if r["peak"]]
        told = [r["told"] for r in runs if "told" in r]
        print(f"{name}: " + ", ".join(
            ([f"{most_ram(p, name) / MIB:.0f} MiB of RAM at most"] if runs else [])
            + ([f"{max(told) / MIB:.0f} by its own account",
                f"{most_ram(p, name) / p['budget']:.2f} times what it may have"] if told else [])
            + ([f"{cpu[name]:.2f} s of CPU in what is measured"] if cpu[name] else [])
            + ([f"hmm run: {cpu['hmm run'] / cpu[name]:.2f} times as much"]
               if name not in OURS and cpu[name] and cpu.get("hmm run") else [])))
    print_if_unequal(p)


def print_sweep(points):
    """By how much of the memory is local: hmm run's figure, zram's at its best, what the one is faster by."""
    print(f"\n{points[0]['mib']} MiB of {points[0]['ratio']}x data by local memory: hmm run, zram at its best page-cluster,"
          " hmm run is faster by, misses of 100 of either, p99 in us of either")
    for w in points[0]["cells"][0]["runs"][0]["work"]:
        for p in points:
            mine, zram = best(p, "hmm run", w), best(p, "zram", w)
            if not mine:
                continue
            unit = "GB/s" if w in IN_ORDER else "us"
            text = f"{w if p is points[0] else '':10}{p['local']:4} %{spread([figure(w, r) for r in mine[1]]):>20} {unit:5}"
            both = [mine] + ([zram] if zram else [])
            if zram:
                text += (f"{spread([figure(w, r) for r in zram[1]]):>20} {unit:5}"
                         f"{spread(ratios(zram[1], mine[1])):>20}   ")
            text += "".join(f"{100 * median(r['faults'] / r['ops'] for r in b[1]):7.1f}" for b in both)
            text += "".join(f"{median(r['p99'] for r in b[1]):9.1f}" for b in both if "p99" in b[1][0])
            print(text)
    for p in points:
        cpu = {name: cpu_seconds(p, name) for name in names(p)}
        print(f"{p['local']} %: hmm run had {most_ram(p, 'hmm run') / MIB:.0f} MiB of RAM at most,"
              f" may have {p['budget'] / MIB:.0f}"
              + (f"; {cpu['hmm run']:.2f} s of CPU in what is measured" if cpu.get("hmm run") else "")
              + (f", {cpu['hmm run'] / cpu['zram']:.2f} times zram's" if cpu.get("hmm run") and cpu.get("zram") else ""))
        print_if_unequal(p)


def print_floors(f):
    for name, r in f.items():
        if name.startswith("speed"):
            print(f"{name}, GB/s: " + ", ".join(f"{n} {spread([x[n] for x in r])}" for n in SPEEDS))
    print(f"{'fault-back, us':42}{'median (spread)':>24}{'p99':>8}")
    rows = f["fault-back"]
    for name, r in rows.items():
        print(f"{name:42}{spread([x['back_median'] for x in r], '{:.1f}'):>24}{median(x['back_p99'] for x in r):8.1f}")
    for where in "", ", one CPU":
        mine, bare = rows["hmm run" + where], rows["bare handler and one LZ4 page" + where]
        print(f"hmm run / (bare handler and one LZ4 page){where}: "
              + spread([a["back_median"] / b["back_median"] for a, b in zip(mine, bare)]))
    ratio = [x["back_p99"] / x["back_median"] for x in rows["hmm run"]]
    print(f"hmm run, p99 / median: {spread(ratio)}")
    bulk = f["bulk"]
    for way, bare in ("out", "lz4_in"), ("in", "lz4_out"):
        print(f"bulk {way}: {spread([x[way] for x in bulk])} GB/s, {spread([x[way] / x[bare] for x in bulk])} of LZ4 alone")
    for way, bare in ("out", "lz4_in_fresh"), ("in", "lz4_out_fresh"):
        print(f"bulk {way}: {spread([x[way] / x[bare] for x in bulk])} of LZ4 alone into memory that is had for it")
    both = [(1 / x["lz4_in"] + 1 / x["lz4_out"]) / (1 / x["out"] + 1 / x["in"]) for x in bulk]
    print(f"bulk out and in: {spread(both)} of LZ4 alone")
    if "idle" in f:
        print(f"idle, near the budget: {spread([100 * x['cpu'] / x['seconds'] for x in f['idle']])} % of a CPU")


def main():
    for s in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(s, lambda n, f: sys.exit(128 + n))
    build = os.path.abspath(sys.argv[1])
    b = Bench(build)
    try:
        out = {"machine": rivals.machine(), "mib": b.mib, "ops": b.ops, "rounds": b.rounds}
        if setting("FLOORS", "1", "1") != "0":
            out["floors"] = b.floors()
        out["points"], out["sweep"], out["others"] = b.all(), b.all_sizes(), b.others()
        out["notes"] = b.notes
    finally:
        b.u.back_to(0)
        b.u.close()
    print(f"{rivals.machine_text(out['machine'])}; {b.mib} MiB, {b.ops} accesses at random, {b.rounds} rounds")
    if "floors" in out:
        print_floors(out["floors"])
    for p in out["points"] + out["others"]:
        print_point(p)
    if out["sweep"]:
        print_sweep(out["sweep"])
    print()
    for n in out["notes"]:
        print(n)
    if len(sys.argv) > 2:
        with open(sys.argv[2] + ".json", "w") as f:
            json.dump(out, f, indent=1)
        import plot
        plot.all(out, sys.argv[2])


main()
