#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Is a page as cheap where there are many?  `make bench-scale`, as root.

scale.py BUILD OUT [MIB|sparse...]     OUT.json, and OUT.svg if gnuplot is there; 256 to 16384 MiB, and sparse

Half of the memory is local.  It is filled, with data that compress four times, and
read.  Told are the CPU time of everybody for each page that was moved, either way,
less what the program takes by itself; what the engine has beside what its devices
have, windows, records, the supervisor itself; and what the device has beside what it
stored: its own records, and holes.

"sparse": a TiB of which a part is used, 2 MiB here and there.
"""
import json
import os
import shutil
import subprocess
import sys
import tempfile

import plot
import rivals
from rivals import MIB

SIZES = (256, 1024, 4096, 16384)
SPARSE_GIB, SPARSE_MIB = 1024, 1024
WORK = ("read",)


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

    def work(self, mib):
        return [self.exe, "-c", self.group.cpu, str(mib), "4", "1", *WORK]

    def look(self, most):
        """The engine as it is when most is away."""
        for pid in rivals.read(self.group.mem + "/cgroup.procs").split():
            if rivals.read(f"/proc/{pid}/comm") != "hmm":
                continue
            p = subprocess.run([self.hmm, "stat", "--json", pid], capture_output=True, text=True)
            s = json.loads(p.stdout) if not p.returncode else {"away_bytes": 0}
            if s["away_bytes"] > most.get("away_bytes", 0):
                most.update(s)

    def under_hmm(self, cmd, mib):
        """(what it printed, at the end, when most was away)"""
        def watch():
            try:
                self.look(most)
            except (OSError, ValueError):
                pass  # it has just ended
        most = {}
        with tempfile.NamedTemporaryFile(prefix="hmm-scale-") as f:
            r = rivals.run([self.hmm, "run", "--to", "lz4", "--ram", f"{mib * 3 // 4}M", "--stats", f.name, "--", *cmd],
                           self.group, watch)
            return r, json.loads(f.read()), most

    @staticmethod
    def bookkeeping(most):
        return {"away_bytes": most["away_bytes"], "engine_bytes": engine(most), "record_bytes": records(most),
                "hole_bytes": holes(most)}

    def point(self, mib):
        alone = rivals.run(self.work(mib), self.group)
        with_hmm, s, most = self.under_hmm(self.work(mib), mib)
        moved = s["pages_out"] + s["pages_in"]
        cpu = sum(with_hmm[w]["cpu"] - alone[w]["cpu"] for w in ("fill", *WORK))
        return {"mib": mib, "moved": moved, "us_a_page": 1e6 * cpu / moved,
                "seconds": sum(with_hmm[w]["seconds"] for w in ("fill", *WORK)), **self.bookkeeping(most)}

    def sparse(self):
        cmd = [self.exe, "-s", str(SPARSE_GIB), "-c", self.group.cpu, str(SPARSE_MIB), "4", "1", *WORK]
        r, s, most = self.under_hmm(cmd, SPARSE_MIB)
        return {"mib": f"{SPARSE_GIB} GiB, {SPARSE_MIB}", "moved": s["pages_out"] + s["pages_in"],
                "seconds": sum(r[w]["seconds"] for w in ("fill", *WORK)), **self.bookkeeping(most)}


def main():
    build, out = sys.argv[1:3]
    b = Scale(build)
    points = []
    print(f"{'MiB':>14} {'moved':>9} {'CPU us a page':>14} {'away, MiB':>10} {'engine, MiB':>12} {'records, MiB':>13} "
          f"{'of away, %':>11} {'holes, MiB':>11} {'s':>6}")
    try:
        for size in sys.argv[3:] or (*SIZES, "sparse"):
            p = b.sparse() if size == "sparse" else b.point(int(size))
            points.append(p)
            cpu = f"{p['us_a_page']:.2f}" if "us_a_page" in p else ""
            kept = p["engine_bytes"] + p["record_bytes"]
            print(f"{p['mib']:>14} {p['moved']:9} {cpu:>14} {p['away_bytes'] / MIB:10.0f} "
                  f"{p['engine_bytes'] / MIB:12.1f} {p['record_bytes'] / MIB:13.1f} "
                  f"{100 * kept / p['away_bytes']:11.2f} {p['hole_bytes'] / MIB:11.1f} "
                  f"{p['seconds']:6.1f}", flush=True)
    finally:
        b.u.close()
    with open(out + ".json", "w") as f:
        json.dump(points, f, indent=1)
    if shutil.which("gnuplot"):
        plot.by_size([p for p in points if "us_a_page" in p], out + ".svg")
        print(f"plot: {out}.svg")


if __name__ == "__main__":
    main()
