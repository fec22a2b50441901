# SPDX-License-Identifier: MIT
"""Plots of what bench.py measured, by gnuplot.

plot.py OUT JSON...     of several of its runs together, or of several of scale.py's
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


# Each has its colour on all plots.
SYSTEMS = ("hmm run", "zram", "all in RAM", "zram, MADV_PAGEOUT ahead", "zswap", "file swap")


def colour(system):
    return SYSTEMS.index(system) + 1


def head(path, title, down, across, width, height, lines):
    """So many plots on a page, and below all of them what their lines are."""
    keys = 20 * lines
    w, h = width * across, height * down + keys
    return (f"set terminal svg size {w},{h} noenhanced\nset output '{path}'\n"
            f"set multiplot layout {down},{across} title '{title}'"
            f" margins screen {80 / w},{1 - 20 / w},{(keys + 60) / h},{1 - 60 / h}"
            f" spacing screen {110 / w},{100 / h}\n"
            "set key at screen .5,screen 0 bottom center\n")


def kind(point):
    return point["tier"], point["ratio"], point["mib"]


def series(points, which):
    return sorted((p for p in points if kind(p) == which), key=lambda p: p["local"])


def cell_runs(point, system):
    return [c for c in point["cells"] if c["system"] == system]


def of_best(point, system, workload, figure):
    """What @figure makes of a run, at the best vm.page-cluster: median, least, most."""
    rows = [[r["work"][workload] for r in c["runs"]] for c in cell_runs(point, system)]
    v = [figure(r) for r in min(rows, key=lambda v: statistics.median(r["seconds"] for r in v))]
    return statistics.median(v), min(v), max(v)


def pages_a_second(r):
    return r["ops"] / r["seconds"]


def workloads(points):
    """{name: what a run has of it}; points of several runs of the benchmark need not have the same."""
    return {w: r for p in points for w, r in p["cells"][0]["runs"][0]["work"].items()}


def throughput(points, title, path):
    rows = [(w, pages_a_second, "pages a second") for w in workloads(points)]
    by_local(points, title, path, rows, 3)


def distribution(points, title, path):
    """A column for each workload whose accesses are timed, a row for each of the percentiles."""
    timed = [w for w, r in workloads(points).items() if "p99" in r]
    if timed:
        by_local(points, title, path,
                 [(w, lambda r, p=p: r[p], f"{name} of an access, us")
                  for p, name in (("p50", "median"), ("p99", "99 %"), ("p999", "99.9 %")) for w in timed], len(timed))


def by_local(points, title, path, plots, across):
    """@plots: (workload, what to make of a run, its name)"""
    systems = list(dict.fromkeys(c["system"] for p in points for c in p["cells"]))
    data, text = "", []
    for i, (w, figure, label) in enumerate(plots):
        lines = []
        for si, s in enumerate(systems):
            rows = [(p["local"], *of_best(p, s, w, figure)) for p in points if cell_runs(p, s) and w in workloads([p])]
            # It has its line below all plots, also where it is not on this one.
            data += block(f"d{i}_{si}", rows or [["NaN"] * 4])
            lines.append(f"$d{i}_{si} using 1:2:3:4 with yerrorlines lc {colour(s)} title '{s}'")
        text.append(f"set title '{w}'\nset ylabel '{label}'\n{'set key off' if i else ''}\nplot " + ", ".join(lines))
    down = (len(plots) + across - 1) // across
    gnuplot(data + head(path, title, down, across, 340, 270, len(systems)) + "set xlabel 'local memory, %'\nset logscale y\nset xrange [105:5]\n"
            + "\n".join(text) + "\nunset multiplot\n")


def latencies(point, title, path):
    systems = list(dict.fromkeys(c["system"] for c in point["cells"]))
    data, plots = "", []
    for wi, w in enumerate(w for w, r in point["cells"][0]["runs"][0]["work"].items() if "hist" in r):
        lines = []
        for si, s in enumerate(systems):
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
            lines.append(f"$l{wi}_{si} using 1:2 with steps lc {colour(s)} title '{s}'")
        plots.append(f"set title '{w}'\n{'set key off' if wi else ''}\nplot " + ", ".join(lines))
    if not plots:
        return
    gnuplot(data + head(path, title, 2, 2, 500, 350, len(systems)) + "set xlabel 'an access takes longer than, us'\nset ylabel 'part of all accesses'\nset logscale xy\n"
            "set yrange [1e-4:1]\nset xtics .1,100\n" + "\n".join(plots) + "\nunset multiplot\n")


def by_size(points, path):
    """Of scale.py's points those that differ by size alone."""
    points = sorted((p for p in points if p["what"].isdigit()), key=lambda p: p["mib"])
    if len(points) < 2 or not shutil.which("gnuplot"):
        return
    rows = [(p["mib"], p["us_a_page"], 100 * (p["engine_bytes"] + p["record_bytes"]) / p["away_bytes"]) for p in points]
    gnuplot(block("d", rows) + f"set terminal svg size 800,500\nset output '{path}'\nset xlabel 'MiB, half of them local'\n"
            "set logscale x 2\nset yrange [0:*]\nset ylabel 'CPU us a page moved'\nset ytics nomirror\n"
            "set y2label 'kept beside what is stored, % of what is away'\nset y2tics\nset y2range [0:*]\n"
            "plot $d using 1:2 with linespoints title 'CPU', $d using 1:3 axes x1y2 with linespoints title 'kept'\n")
    print(f"plot: {path}")


def all(out, path):
    if not shutil.which("gnuplot"):
        print("no plots: gnuplot (Debian package gnuplot-nox) is not there")
        return
    for part, which in dict.fromkeys((part, kind(p)) for part in ("points", "sweep") for p in out[part]):
        tier, ratio, mib = which
        s, title = series(out[part], which), f"{tier}, {mib} MiB of {ratio}x data"
        name = f"{path}-{tier}-{ratio}x-{mib}M" + ("-sweep" if part == "sweep" else "")
        if len(s) > 1:
            throughput(s, title, name + ".svg")
            distribution(s, title, name + "-percentiles.svg")
        for p in s:
            latencies(p, f"{title}, {p['local']} % local", f"{name}-latency-{p['local']}.svg")
    print(f"plots: {path}-*.svg")


if __name__ == "__main__":
    got = {"points": [], "sweep": [], "sizes": []}
    for path in sys.argv[2:]:
        with open(path) as f:
            one = json.load(f)
        if "sweep" in one:
            got["points"] += one["points"]
            got["sweep"] += one["sweep"]
        else:
            got["sizes"] += one["points"]
    if got["points"] + got["sweep"]:
        all(got, sys.argv[1])
    by_size(got["sizes"], sys.argv[1] + "-sizes.svg")
