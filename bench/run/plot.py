# SPDX-License-Identifier: MIT
"""Plots of what bench.py measured, by gnuplot.

plot.py OUT JSON...     of the points of several of its runs together
"""
import json
import shutil
import statistics
import subprocess
import sys


def gnuplot(script):
    subprocess.run(["gnuplot"], input=script, text=True, check=True)


def block(name, rows):
    return f"${name} << EOD\n" + "\n".join(" ".join(map(str, r)) for r in rows) + "\nEOD\n"


def series(points, tier, ratio):
    return sorted((p for p in points if p["tier"] == tier and p["ratio"] == ratio), key=lambda p: p["local"])


def cell_runs(point, system):
    return [c for c in point["cells"] if c["system"] == system]


def of_best(point, system, workload, figure):
    """What @figure makes of a run, at the best vm.page-cluster: median, least, most."""
    rows = [[r["work"][workload] for r in c["runs"]] for c in cell_runs(point, system)]
    v = [figure(r) for r in min(rows, key=lambda v: statistics.median(r["seconds"] for r in v))]
    return statistics.median(v), min(v), max(v)


def pages_a_second(r):
    return r["ops"] / r["seconds"]


def p99(r):
    return r["p99"]


def by_local(points, title, path, figure, label):
    systems = list(dict.fromkeys(c["system"] for p in points for c in p["cells"]))
    workloads = [w for w, r in points[0]["cells"][0]["runs"][0]["work"].items() if figure is not p99 or "p99" in r]
    data, plots = "", []
    for wi, w in enumerate(workloads):
        lines = []
        for si, s in enumerate(systems):
            rows = [(p["local"], *of_best(p, s, w, figure)) for p in points if cell_runs(p, s)]
            data += block(f"d{wi}_{si}", rows)
            lines.append(f"$d{wi}_{si} using 1:2:3:4 with yerrorlines lc {si + 1} title '{s}'")
        plots.append(f"set title '{w}'\nset key {'bottom right' if not wi else 'off'}\nplot " + ", ".join(lines))
    rows = (len(workloads) + 3) // 4
    gnuplot(f"{data}set terminal svg size 1600,{450 * rows}\nset output '{path}'\n"
            f"set multiplot layout {rows},4 title '{title}'\n"
            f"set xlabel 'local memory, %'\nset ylabel '{label}'\nset logscale y\nset xrange [100:0]\n"
            + "\n".join(plots) + "\nunset multiplot\n")


def latencies(point, title, path):
    data, plots = "", []
    for wi, w in enumerate(w for w, r in point["cells"][0]["runs"][0]["work"].items() if "hist" in r):
        lines = []
        for si, s in enumerate(dict.fromkeys(c["system"] for c in point["cells"])):
            c = min(cell_runs(point, s), key=lambda c: statistics.median(r["work"][w]["seconds"] for r in c["runs"]))
            sums = {}
            for r in c["runs"]:
                for us, n in r["work"][w]["hist"]:
                    sums[us] = sums.get(us, 0) + n
            total, left, rows = sum(sums.values()), sum(sums.values()), []
            for us in sorted(sums):
                rows.append((us, left / total))
                left -= sums[us]
            data += block(f"l{wi}_{si}", rows)
            lines.append(f"$l{wi}_{si} using 1:2 with steps lc {si + 1} title '{s}'")
        plots.append(f"set title '{w}'\nset key {'top right' if not wi else 'off'}\nplot " + ", ".join(lines))
    gnuplot(f"{data}set terminal svg size 1200,900\nset output '{path}'\nset multiplot layout 2,2 title '{title}'\n"
            "set xlabel 'an access takes longer than, us'\nset ylabel 'part of all accesses'\nset logscale xy\n"
            "set yrange [1e-4:1]\n" + "\n".join(plots) + "\nunset multiplot\n")


def by_size(points, path):
    rows = [(p["mib"], p["us_a_page"], 100 * (p["engine_bytes"] + p["record_bytes"]) / p["away_bytes"]) for p in points]
    gnuplot(block("d", rows) + f"set terminal svg size 800,500\nset output '{path}'\nset xlabel 'MiB, half of them local'\n"
            "set logscale x 2\nset yrange [0:*]\nset ylabel 'CPU us a page moved'\nset ytics nomirror\n"
            "set y2label 'kept beside what is stored, % of what is away'\nset y2tics\nset y2range [0:*]\n"
            "plot $d using 1:2 with linespoints title 'CPU', $d using 1:3 axes x1y2 with linespoints title 'kept'\n")


def all(out, path):
    if not shutil.which("gnuplot"):
        print("no plots: gnuplot (Debian package gnuplot-nox) is not there")
        return
    for tier, ratio in dict.fromkeys((p["tier"], p["ratio"]) for p in out["points"]):
        s = series(out["points"], tier, ratio)
        if len(s) > 1:
            by_local(s, f"{tier}, {ratio}x data", f"{path}-{tier}-{ratio}x.svg", pages_a_second, "pages a second")
            by_local(s, f"{tier}, {ratio}x data", f"{path}-{tier}-{ratio}x-p99.svg", p99, "p99 of an access, us")
        half = min(s, key=lambda p: abs(p["local"] - 50))
        latencies(half, f"{tier}, {ratio}x data, {half['local']} % local", f"{path}-{tier}-{ratio}x-latency.svg")
    print(f"plots: {path}-*.svg")


if __name__ == "__main__":
    points = []
    for name in sys.argv[2:]:
        with open(name) as f:
            points += json.load(f)["points"]
    all({"points": points}, sys.argv[1])
