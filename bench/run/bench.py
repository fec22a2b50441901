#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What hmm run costs, against a bare userfaultfd handler and against zram swap.

bench.py BUILD [JSON]

All figures of a table are of one run on one machine: their ratios say
something, the figures do not.  Swap gets the same RAM as hmm run in all: its
compressed pool is counted.  Everything that is set up for it is taken down.
"""
import json
import os
import subprocess
import sys
import tempfile

MIB = 1 << 20
NEED, BUDGET, OPS = 256, 128, 20000
CGROUP = "/sys/fs/cgroup/memory"


def write(path, text):
    with open(path, "w") as f:
        f.write(str(text))


def read(path):
    with open(path) as f:
        return f.read().strip()


def touch(cmd, **kw):
    out = subprocess.run(cmd, check=True, capture_output=True, text=True, **kw).stdout
    return json.loads(out)


class Zram:
    """A swap device in compressed memory, and a memory cgroup that makes use of it."""

    def __init__(self):
        self.id = self.group = None
        self.on = self.node = False
        try:
            self.id = read("/sys/class/zram-control/hot_add")
            self.dev, self.sys = f"/dev/zram{self.id}", f"/sys/block/zram{self.id}"
            write(self.sys + "/comp_algorithm", "lz4")
            write(self.sys + "/disksize", 1 << 30)
            if not os.path.exists(self.dev):
                major, minor = map(int, read(self.sys + "/dev").split(":"))
                os.mknod(self.dev, 0o60600, os.makedev(major, minor))
                self.node = True
            subprocess.run(["mkswap", self.dev], check=True, capture_output=True)
            subprocess.run(["swapon", "-p", "32000", self.dev], check=True, capture_output=True)
            self.on = True
            self.group = f"{CGROUP}/hmmbench-{os.getpid()}"
            os.mkdir(self.group)
            write(self.group + "/memory.swappiness", 100)
        except BaseException:
            self.close()
            raise

    def used(self):
        """Bytes swapped out, RAM they take."""
        v = read(self.sys + "/mm_stat").split()
        return int(v[0]), int(v[2])

    def run(self, cmd, limit):
        write(self.group + "/memory.limit_in_bytes", limit)
        return touch(cmd, preexec_fn=lambda: write(self.group + "/cgroup.procs", os.getpid()))

    def close(self):
        if self.group and os.path.isdir(self.group):
            os.rmdir(self.group)
        if self.on:
            subprocess.run(["swapoff", self.dev])
        if self.node:
            os.unlink(self.dev)
        if self.id is not None:
            write(self.sys + "/reset", 1)
            write("/sys/class/zram-control/hot_remove", self.id)


def zram(exe, notes):
    """None where it cannot be set up."""
    try:
        z = Zram()
    except (OSError, subprocess.CalledProcessError) as e:
        notes.append(f"no zram swap to compare with: {e}")
        return None
    try:
        # How far it compresses this is learnt from a first, short run.
        cmd = [exe, str(NEED), "100"]
        p = subprocess.Popen(["sh", "-c", f"{' '.join(cmd)} >/dev/null; :"],
                             preexec_fn=lambda: (write(z.group + "/memory.limit_in_bytes", BUDGET * MIB),
                                                 write(z.group + "/cgroup.procs", os.getpid())))
        ratio, most = 0.2, 0
        while p.poll() is None:
            orig, ram = z.used()
            if orig > most:
                most, ratio = orig, ram / orig
        limit = int((BUDGET * MIB - NEED * MIB * ratio) / (1 - ratio)) & ~4095
        if limit < 16 * MIB:
            notes.append("no comparison with zram: the pool alone takes the budget")
            return None
        r = z.run([exe, str(NEED), str(OPS)], limit)
        notes.append(f"zram: {limit / MIB:.0f} MiB resident, the rest compressed {1 / ratio:.1f} times")
        return r
    finally:
        z.close()


def main():
    build, notes = os.path.abspath(sys.argv[1]), []
    exe = os.path.join(build, "bench/run/touch")
    line = [os.path.join(build, "hmm"), "run", "--to", "lz4", "--ram", f"{BUDGET}M"]
    rows = {}
    rows["all in RAM"] = touch([exe, str(NEED), str(OPS)])
    with tempfile.NamedTemporaryFile(prefix="hmmbench-") as f:
        rows["hmm run"] = touch(line + ["--stats", f.name, "--", exe, str(NEED), str(OPS)])
        stats = json.loads(f.read())
    if not stats["pages_in"]:
        print("nothing was moved: this measures nothing")
        sys.exit(1)
    one = ["taskset", "-c", "0"]
    rows["hmm run, one CPU"] = touch(one + line + ["--", exe, str(NEED), str(OPS)])
    for name, prefix in ("bare handler", []), ("bare handler, one CPU", one):
        try:
            rows[name] = touch(prefix + [exe, "bare", str(NEED), str(OPS)])
        except subprocess.CalledProcessError as e:
            notes.append(f"{name}: {e.stderr.strip()}")
    z = zram(exe, notes)
    if z:
        rows["zram swap"] = z
    print(f"{NEED} MiB touched, {BUDGET} MiB of RAM in all")
    print(f"{'':24}{'fill':>10}{'scan':>10}{'random':>12}{'fault-back':>12}{'(median)':>10}")
    print(f"{'':24}{'GB/s':>10}{'GB/s':>10}{'us/access':>12}{'us':>12}{'us':>10}")
    for name, r in rows.items():
        v = [r.get(k) if r.get("n") or k in ("fill", "scan", "random") else None
             for k in ("fill", "scan", "random", "back_mean", "back_median")]
        print(f"{name:24}" + "".join(f"{'-' if x is None else x:>{w}}" for x, w in zip(v, (10, 10, 12, 12, 10))))
    h, ratios = rows["hmm run"], {}
    for a, b in ("hmm run", "bare handler"), ("hmm run, one CPU", "bare handler, one CPU"):
        if b in rows:
            ratios[f"fault-back: {a} / {b}"] = rows[a]["back_mean"] / rows[b]["back_mean"]
    if z:
        ratios["scan: hmm run / zram swap (more is better)"] = h["scan"] / z["scan"]
        ratios["random: zram swap / hmm run (more is better)"] = z["random"] / h["random"]
    for name, x in ratios.items():
        print(f"{name:56}{x:8.2f}")
    for n in notes:
        print(n)
    if len(sys.argv) > 2:
        with open(sys.argv[2], "w") as f:
            json.dump({"need_mib": NEED, "budget_mib": BUDGET, "rows": rows, "ratios": ratios, "notes": notes}, f, indent=1)


main()
