#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The benchmark runs, and measures what it says: a small one.  Its figures are nobody's business here.

bench.py BUILD [TEST...]

By default nobody swaps: what is set up for that is the whole machine's.  HMM_TEST_LONG=1, as
root: everybody, a graph search and the floors, too.
"""
import json
import os
import shutil
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from hmmtest import Failed, main_of, skip  # noqa: E402

SOURCE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../../bench/run")
LONG = os.environ.get("HMM_TEST_LONG") == "1" and os.geteuid() == 0
RIVALS = ("zram", "zram, MADV_PAGEOUT ahead", "zswap", "file swap")
OURS = ("hmm run", "all in RAM")
ORDER, RANDOM = ("read", "write", "stride"), ("uniform", "zipf", "chase", "threads")
OPS = 800


def run(cmd, env=()):
    p = subprocess.run([sys.executable, *cmd], env={**os.environ, **dict(env)}, capture_output=True, text=True)
    if p.returncode:
        raise Failed(f"{cmd}: status {p.returncode}: {p.stdout[-500:]}{p.stderr[-2000:]}")
    return p.stdout


def machine():
    """What swap changes on it."""
    def read(path):
        with open(path) as f:
            return f.read()
    groups = [g for c in ("", "memory", "cpuacct") if os.path.isdir(os.path.join("/sys/fs/cgroup", c))
              for g in os.listdir(os.path.join("/sys/fs/cgroup", c)) if g.startswith("hmm-bench")]
    return read("/proc/sys/vm/page-cluster"), read("/proc/swaps") if LONG else "", groups if LONG else []


def check_run(name, workload, r, ram):
    if r["ops"] <= 0 or r["seconds"] <= 0 or r["faults"] < 0:
        raise Failed(f"{name}, {workload}: {r}")
    if workload in RANDOM:
        if r["ops"] != OPS or sum(n for us, n in r["hist"]) != OPS:
            raise Failed(f"{name}, {workload}: {r['ops']} accesses, not {OPS}, or not all are timed")
        if not 0 < r["p50"] <= r["p99"] <= r["p999"]:
            raise Failed(f"{name}, {workload}: percentiles out of order: {r}")
    if ram and workload == "uniform" and r["faults"] <= ram["faults"] + OPS // 20:
        raise Failed(f"{name}: {r['faults']} faults of {OPS} accesses to memory a part of which is away")


def check_point(p, workloads, want):
    have = {c["system"] for c in p["cells"]}
    if not set(want) <= have:
        raise Failed(f"{p['title']}: only {have}")
    ram = next(c for c in p["cells"] if c["system"] == "all in RAM")["runs"]
    for c in p["cells"]:
        for i, r in enumerate(c["runs"]):
            if set(r["work"]) != set(workloads):
                raise Failed(f"{p['title']}, {c['system']}: {list(r['work'])} in place of {workloads}")
            for w, figures in r["work"].items():
                # What does not compress stays; a rival may be given all it needs, too.
                away = c["system"] == "hmm run" and p["ratio"] > 1 and p["local"] <= 50
                check_run(c["system"], w, figures, ram[0]["work"][w] if away else None)
        if c["system"] == "hmm run" and any(r["peak"] < r["told"] for r in c["runs"]):
            raise Failed(f"{p['title']}: less RAM than it says itself")


def bench(h):
    env = {"HMM_BENCH_MIB": "32", "HMM_BENCH_SWEEP": "50 25", "HMM_BENCH_ROUNDS": "1",
           "HMM_BENCH_OPS": str(OPS), "HMM_BENCH_LONG": "0"}
    if LONG:
        env.update(HMM_BENCH_CLUSTERS="0 2", HMM_BENCH_REAL="graph")
    else:
        env.update(HMM_BENCH_ONLY=",".join(OURS), HMM_BENCH_FLOORS="0", HMM_BENCH_REAL="", HMM_BENCH_RATIOS="2 4")
    before = machine()
    with tempfile.TemporaryDirectory(prefix="hmm-test-") as d:
        out = os.path.join(d, "out")
        text = run([os.path.join(SOURCE, "bench.py"), h.build, out], env)
        with open(out + ".json") as f:
            got = json.load(f)
        if machine() != before:
            raise Failed(f"it was {before} before, and is {machine()}")
        if not got["machine"]["cpu"] or got["machine"]["used_cpus"] not in (1, 2):
            raise Failed(f"what machine is it?  {got['machine']}")
        points = {(p["tier"], p["ratio"], p["local"]): p for p in got["points"]}
        want = {("lz4", 2, 50), ("lz4", 4, 50), ("file", 2, 50)} | ({("lz4", 1, 50), ("file", 2, 50)} if LONG else set())
        if set(points) != want:
            raise Failed(f"points are {list(points)}, not {want}")
        for (tier, ratio, _), p in points.items():
            check_point(p, ("fill", *ORDER, *RANDOM) if ratio == 2 else ("fill", "read", "write", "uniform"), OURS)
        if [p["local"] for p in got["sweep"]] != [50, 25]:
            raise Failed(f"swept over {[p['local'] for p in got['sweep']]}")
        for p in got["sweep"]:
            check_point(p, ("fill", *ORDER, *RANDOM), OURS)
        all_points = got["points"] + got["sweep"] + got["others"]
        if text.count("not of equal RAM") != sum(
                any(c["system"] == "hmm run" and r["peak"] > 1.1 * p["budget"] for c in p["cells"] for r in c["runs"])
                for p in all_points):
            raise Failed(f"said to be of equal RAM or not, and is not so: {text}")
        if not any("burst" in p["cells"][0]["runs"][0]["work"] for p in got["others"]):
            raise Failed("no burst")
        # Whoever is not there is named.
        measured = {c["system"] for p in got["points"] for c in p["cells"]}
        for name in RIVALS:
            if name not in measured and not any(n.startswith(name + " ") for n in text.splitlines()):
                raise Failed(f"nothing says why {name} is not there: {text[-1000:]}")
        if shutil.which("gnuplot"):
            # Together with another run, of fewer workloads and other sizes.
            for p in got["sweep"]:
                p["local"] += 5
                for r in (r for c in p["cells"] for r in c["runs"]):
                    r["work"] = {w: r["work"][w] for w in ("fill", "uniform")}
            with open(out + "-less.json", "w") as f:
                json.dump({**got, "points": []}, f)
            run([os.path.join(SOURCE, "plot.py"), os.path.join(d, "again"), out + ".json", out + "-less.json"])
            for start in "out", "again":
                for end in "-lz4-2x-32M-sweep.svg", "-lz4-2x-32M-sweep-percentiles.svg", "-file-2x-32M-latency-50.svg":
                    with open(os.path.join(d, start + end)) as f:
                        if "hmm run" not in f.read():
                            raise Failed(f"{start + end}: hmm run is not on it")


def scale(h):
    if os.geteuid():
        skip("needs root, for a cgroup")
    with tempfile.TemporaryDirectory(prefix="hmm-test-") as d:
        out = os.path.join(d, "out")
        try:
            run([os.path.join(SOURCE, "scale.py"), h.build, out, "24", "sparse", "mappings", "threads"],
                {"HMM_SCALE_MIB": "48", "HMM_SCALE_OPS": "4000"})
        except Failed as e:
            if "Read-only file system" in str(e) or "Permission denied: '/sys/fs/cgroup" in str(e):
                skip("no cgroup can be made here")
            raise
        with open(out + ".json") as f:
            points = {p["what"]: p for p in json.load(f)["points"]}
        for what, p in points.items():
            # A quarter does not fit, is filled and read three times, the last one a word of each page.
            # Of so many mappings none may have gone when it ends, with so little in them: see "load mappings".
            if what != "mappings" and (p["moved"] < p["mib"] * 256 // 4 or p["away_bytes"] <= 0):
                raise Failed(f"{what}: {p}")
        # Counted by the program itself at its end: none is split, or gone.
        alone, under = (points["mappings"][k] for k in ("mappings_alone", "mappings"))
        if not 10000 <= under <= alone + 100:
            raise Failed(f"{alone} mappings are {under} under hmm")
        if alone < 10000 or points["threads"]["mappings_alone"] < 500:
            raise Failed(f"{alone} mappings, of threads"
                         f" {points['threads']['mappings_alone']}: this tests nothing")


if __name__ == "__main__":
    main_of(bench, scale)
