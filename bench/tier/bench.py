#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What it costs to get a page back from a server on this machine, against what it
is made of: one round trip over libfabric, and one bare fault.  There is room for
what comes back, so nothing goes out at the same time.

bench.py BUILD OUT.json    several rounds of all three in turn; the medians of all
"""
import json
import os
import re
import statistics
import subprocess
import sys

NEED, BUDGET, OPS, ROUNDS = 96, "48M", 4000, 5


def line(cmd):
    p = subprocess.run(cmd, capture_output=True, text=True)
    if p.returncode:
        print("SKIP:", " ".join(cmd), p.stderr)
        sys.exit(77)
    return json.loads(p.stdout.splitlines()[-1])


def main():
    build, out = sys.argv[1:3]
    rtt, hmm = (os.path.join(build, p) for p in ("bench/tier/rtt", "hmm"))
    server = subprocess.Popen([hmm, "serve", "--listen", "ofi://127.0.0.1:0", "--memory", "512M"],
                              stdout=subprocess.PIPE, text=True)
    rows = {"round trip": [], "bare fault": [], "from the server": [], "from lz4": []}
    try:
        spec = re.search(r"ofi://\S+", server.stdout.readline())[0]
        run = [hmm, "run", "--ram", BUDGET, "--to"]
        work = ["--", hmm, "bench", "back", str(NEED), str(OPS)]
        bare = [hmm, "bench", "--json", "-", "--rounds", "1", "--mib", str(NEED), "--only", "fault-process"]
        for _ in range(ROUNDS):
            r = line([rtt, str(OPS)])
            rows["round trip"].append((r["median"], r["mean"]))
            f = line(bare)["figures"][0]
            rows["bare fault"].append((f["median"] / 1e3, f["means"][0] / 1e3))
            for name, cmd in ("from the server", run + [spec] + work), ("from lz4", run + ["lz4"] + work):
                r = line(cmd)
                rows[name].append((r["back_median"], r["back_mean"]))
    finally:
        server.terminate()
        server.wait()
    best = {}
    print(f"{'us':18}{'median':>9}{'of rounds':>20}{'mean':>9}")
    for name, r in rows.items():
        medians = [m for m, _ in r]
        best[name] = {"median": statistics.median(medians), "mean": statistics.median(m for _, m in r),
                      "least": min(medians), "most": max(medians)}
        print(f"{name:18}{best[name]['median']:9.1f}{min(medians):10.1f} -{max(medians):8.1f}{best[name]['mean']:9.1f}")
    ratios = [s[0] / (t[0] + b[0]) for s, t, b in zip(rows["from the server"], rows["round trip"], rows["bare fault"])]
    best["ratio"] = {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}
    print(f"from the server / (round trip + bare fault), by medians: {best['ratio']['median']:.2f}"
          f" ({min(ratios):.2f} - {max(ratios):.2f} in {ROUNDS} rounds)")
    with open(out, "w") as f:
        json.dump(best, f, indent=1)


main()
