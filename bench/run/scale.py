#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Is a page as cheap where there are many?  `make bench-scale`, as root.

scale.py BUILD OUT [MIB...]     OUT.json, and OUT.svg if gnuplot is there; 256 to 16384 MiB

Half of the memory is local.  It is filled, with data that compress four times, and
read.  Told are the CPU time of everybody for each page that was moved, either way,
less what the program takes by itself; what the engine has beside what its devices
have, windows, records, the supervisor itself; and what the device has beside what it
stored, its own records and room between pages.  Both for what is away.
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
WORK = ("read",)


def engine(s):
    return s["total_bytes"] - s["resident_bytes"] - s["store_ram_bytes"]


def device(s):
    return s["store_ram_bytes"] - sum(d["bytes_stored"] for d in s["devices"])


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

    def point(self, mib):
        def watch():
            try:
                self.look(most)
            except (OSError, ValueError):
                pass  # it has just ended
        most = {}
        alone = rivals.run(self.work(mib), self.group)
        with tempfile.NamedTemporaryFile(prefix="hmm-scale-") as f:
            with_hmm = rivals.run([self.hmm, "run", "--to", "lz4", "--ram", f"{mib * 3 // 4}M", "--stats", f.name, "--",
                                   *self.work(mib)], self.group, watch)
            s = json.loads(f.read())
        moved = s["pages_out"] + s["pages_in"]
        cpu = sum(with_hmm[w]["cpu"] - alone[w]["cpu"] for w in ("fill", *WORK))
        return {"mib": mib, "moved": moved, "us_a_page": 1e6 * cpu / moved, "away_bytes": most["away_bytes"],
                "engine_bytes": engine(most), "device_bytes": device(most), "seconds": sum(with_hmm[w]["seconds"] for w in ("fill", *WORK))}


def main():
    build, out = sys.argv[1:3]
    b = Scale(build)
    points = []
    print(f"{'MiB':>6} {'moved':>9} {'CPU us a page':>14} {'away, MiB':>10} {'engine, MiB':>12} {'device, MiB':>12} {'s':>6}")
    try:
        for mib in [int(a) for a in sys.argv[3:]] or SIZES:
            p = b.point(mib)
            points.append(p)
            print(f"{mib:6} {p['moved']:9} {p['us_a_page']:14.2f} {p['away_bytes'] / MIB:10.0f} "
                  f"{p['engine_bytes'] / MIB:12.1f} {p['device_bytes'] / MIB:12.1f} {p['seconds']:6.1f}",
                  flush=True)
    finally:
        b.u.close()
    with open(out + ".json", "w") as f:
        json.dump(points, f, indent=1)
    if shutil.which("gnuplot"):
        plot.by_size(points, out + ".svg")
        print(f"plot: {out}.svg")


if __name__ == "__main__":
    main()
