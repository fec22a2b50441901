#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The benchmark runs, and measures what it says: a small one.  Its figures are nobody's business here.

bench.py BUILD [TEST...]

By default nobody swaps: what is set up for that is the whole machine's.  HMM_TEST_LONG=1, as
root: everybody, a graph search and the floors, too.  command*: hmm bench.
"""
import fcntl
import json
import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from hmmtest import Failed, comm, descendants, dump, main_of, skip  # noqa: E402

SOURCE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../../bench/run")
LONG = os.environ.get("HMM_TEST_LONG") == "1" and os.geteuid() == 0
RIVALS = ("zram", "zram, MADV_PAGEOUT ahead", "zswap", "file swap")
OURS = ("hmm run", "all in RAM")
ORDER, RANDOM = ("read", "write", "stride"), ("uniform", "zipf", "chase", "threads")
OPS = 400


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
                {"HMM_SCALE_MIB": "40", "HMM_SCALE_OPS": "400"})
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


# ------------------------------------------------------------------ hmm bench

def hmm_bench(h, *args, prefix=(), exe=None, **popen):
    return subprocess.run([*prefix, exe or os.path.join(h.build, "hmm"), "bench", *args], capture_output=True, text=True,
                          **popen)


def measured(h, *args, **how):
    """What it says as JSON, once it was looked at."""
    p = hmm_bench(h, *args, "--json", "-", **how)
    if p.returncode or p.stderr:
        raise Failed(f"{args}: status {p.returncode}: {p.stderr[-1000:]}")
    return check_json(json.loads(p.stdout))


def near(x, y):
    return abs(x / y - 1) < 1e-5  # seven digits are printed


def check_json(got):
    by_name = {f["name"]: f for f in got["figures"]}
    for f in got["figures"]:
        r = f["rounds"]
        if len(r) != got["rounds"] or not all(math.isfinite(x) and x > 0 for x in r):
            raise Failed(f"{f['name']}: rounds are {r}")
        if not (near(f["least"], min(r)) and near(f["most"], max(r)) and near(f["median"], statistics.median(r))):
            raise Failed(f"{f['name']} does not sum up its rounds: {f}")
        if "gb_per_s" in f and not near(f["gb_per_s"], 4096 / f["median"]):
            raise Failed(f"{f['name']}: another speed than its time says: {f}")
        for p99, mean, median in zip(f.get("p99s", ()), f.get("means", ()), r):
            if not p99 >= median or not mean > 0:
                raise Failed(f"{f['name']}: percentiles out of order: {f}")
        if "floor" in f:
            of, t = by_name[f["floor"]]["rounds"], f["times"]
            ratios = [a / b for a, b in zip(r, of)]
            if not (near(t["least"], min(ratios)) and near(t["most"], max(ratios))
                    and near(t["median"], statistics.median(ratios))):
                raise Failed(f"{f['name']} is not so many times {f['floor']}: {t}, {ratios}")
    if any(not why for why in got["skipped"].values()):
        raise Failed(f"skipped, and nothing says why: {got['skipped']}")
    return got


def names(got):
    return [f["name"] for f in got["figures"]]


def listed(h):
    return [line.split()[0] for line in hmm_bench(h, "--list").stdout.splitlines()]


def command(h):
    """Every figure that is listed is measured, or skipped with a reason, in the table and as JSON."""
    every = listed(h)
    with tempfile.TemporaryDirectory(prefix="hmm-test-") as d:
        out = os.path.join(d, "out.json")
        p = hmm_bench(h, "--mib", "32", "--rounds", "1", "--json", out)
        if p.returncode:
            raise Failed(f"status {p.returncode}: {p.stderr}")
        with open(out) as f:
            got = check_json(json.load(f))
    if sorted([*names(got), *got["skipped"]]) != sorted(every) or len(set(every)) != len(every) or len(every) < 30:
        raise Failed(f"listed are {every}, measured {names(got)}, skipped {list(got['skipped'])}")
    lines = [line.split(None, 1) for line in p.stdout.splitlines() if line.strip()]
    table = {line[0]: line[1] for line in lines if line[0] in every}
    if set(table) != set(every):
        raise Failed(f"not in the table: {set(every) - set(table)}")
    for name, text in table.items():
        if text.startswith("skipped: ") != (name in got["skipped"]) or got["skipped"].get(name, "") not in text:
            raise Failed(f"{name}: the table and the JSON do not agree: {text}")
    # What of it this machine allows must have been measured.
    want = [n for n in every if not n.startswith("zram-")]
    if subprocess.run([os.path.join(h.build, "hmm"), "doctor"], capture_output=True).returncode:
        want = [n for n in want if n in ("syscall", "memcpy", "first-touch", "lz4-in", "lz4-out", "dontneed")]
    if len(os.sched_getaffinity(0)) < 2:
        want = [n for n in want if n not in ("fault-spinning", "fault-asleep")]
    if not set(want) <= set(names(got)):
        raise Failed(f"skipped are {got['skipped']}")
    if "hmm-read" in names(got) and not 0 < got["hmm_peak_bytes"]:
        raise Failed("hmm run had no memory")
    m = got["machine"]
    with open("/proc/cpuinfo") as f:
        info = f.read()
    if (m["kernel"] != os.uname().release or m["used_cpus"] != len(os.sched_getaffinity(0)) or m["cpu"] not in info
            or m["virtual"] != (" hypervisor" in info) or m["kernel"] not in p.stdout or m["cpu"] not in p.stdout):
        raise Failed(f"what machine is it?  {m}")


def command_asked(h):
    """Only what is asked for; and what cannot be asked for is one line and status 125."""
    got = measured(h, "--mib", "32", "--rounds", "2", "--only", "fault-s*,memcpy")
    asked = ["memcpy", "fault-sigbus", "fault-same-cpu", "fault-spinning"]
    if [n for n in listed(h) if n in names(got) or n in got["skipped"]] != asked or got["mib"] != 32 or got["rounds"] != 2:
        raise Failed(f"asked for {asked}: {got}")
    for said, args in (("no-such", ("--only", "memcpy,no-such")), ("31", ("--mib", "31")), ("x", ("--mib", "x")),
                       ("-64", ("--mib", "-64")), ("0", ("--rounds", "0")), ("3", ("--ratio", "3")),
                       ("--no-such", ("--no-such",)), ("--json", ("--json",)), ("more", ("more",)),
                       ("/no/such/place", ("--json", "/no/such/place", "--only", "syscall"))):
        p = hmm_bench(h, *args)
        if p.returncode != 125 or p.stdout or p.stderr.count("\n") != 1 or f"hmm bench: {said}: " not in p.stderr:
            raise Failed(f"{args}: status {p.returncode}, {p.stdout}{p.stderr}")
    with open("/dev/full", "w") as full:
        for where in [], ["--json", "-"], ["--json", "/dev/full"]:
            p = subprocess.run([os.path.join(h.build, "hmm"), "bench", "--only", "syscall", "--mib", "32", *where],
                               stdout=full if "/dev/full" not in where else subprocess.DEVNULL, stderr=subprocess.PIPE)
            if p.returncode != 125:
                raise Failed(f"{where}: a full disk, and status {p.returncode}")


def elsewhere(h, d):
    """The command where anybody can look."""
    os.chmod(d, 0o755)
    for name in "hmm", "libhmm-preload.so":
        shutil.copy(os.path.join(h.build, name), d)
    return os.path.join(d, "hmm")


def command_skips(h):
    """What this user, or this kernel, cannot do is named, with the reason; and the rest is measured."""
    def expect(what, got, skipped, why):
        if set(got["skipped"]) != set(skipped):
            raise Failed(f"{what}: skipped are {got['skipped']}, not {skipped}")
        bad = {n: w for n, w in got["skipped"].items() if why(n) not in w}
        if bad:
            raise Failed(f"{what}: other reasons than {why('')}: {bad}")

    plain = ["syscall", "memcpy", "first-touch", "lz4-in", "lz4-out", "fault-kernel", "dontneed"]
    small = ("--mib", "32", "--rounds", "1")
    every = listed(h)
    runs = [n for n in every if n.startswith("hmm-")]
    served = [n for n in every if n not in plain and n not in ("pagemap-scan",) and not n.startswith(("ram", "zram", "hmm"))]
    only = ",".join([*plain, "pagemap-scan", *served, *runs])

    got = measured(h, *small, "--only", "syscall,fault-*", preexec_fn=lambda: os.sched_setaffinity(0, list(
        os.sched_getaffinity(0))[:1]))
    expect("one CPU", got, ["fault-spinning", "fault-asleep"], lambda n: "second CPU")

    got = measured(h, *small, "--only", only, prefix=[os.path.join(h.build, "test/run/life/life-denied"), "move"])
    expect("no features", got, served + runs, lambda n: "userfaultfd" if n in served else "move pages")

    got = measured(h, *small, "--only", "zram-*")
    expect("not asked for", got, [n for n in every if n.startswith("zram-")], lambda n: "only with --zram")

    with tempfile.TemporaryDirectory(prefix="hmm-test-") as d:
        prefix = nobody(d)
        if not prefix:
            return
        got = measured(h, *small, "--zram", "--only", only + ",zram-read", prefix=prefix, exe=elsewhere(h, d), cwd="/")
        expect("nobody", got, [*runs, "zram-read"],
               lambda n: "root" if n == "zram-read" else "no permission for userfaultfd")


def nobody(d):
    """A command in front of others, which they have no userfaultfd under but that of everybody; or None, and it says why."""
    as_nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
    if os.geteuid() or subprocess.run([*as_nobody, "true"], capture_output=True).returncode:
        print("SKIP: only root can become nobody, by setpriv")
        return None
    with open("/proc/sys/vm/unprivileged_userfaultfd") as f:
        if f.read().strip() != "0":
            print("SKIP: vm.unprivileged_userfaultfd is on here")
            return None
    if subprocess.run([*as_nobody, "test", "-r", "/dev/userfaultfd"]).returncode:
        return as_nobody
    # In a place of its own there is another file there, which is root's.
    closed = os.path.join(d, "closed")
    os.close(os.open(closed, os.O_CREAT | os.O_WRONLY, 0o600))
    cover = ["unshare", "-m", "sh", "-c", 'mount --bind "$0" /dev/userfaultfd && exec "$@"', closed]
    if subprocess.run([*cover, "true"], capture_output=True).returncode:
        print("SKIP: userfaultfd is open to everybody here, and mount namespaces are not allowed")
        return None
    return cover + as_nobody


def until(cond, what, status=None):
    """The clock is a watchdog only.  @status: how those ended that are nobody else's."""
    end = time.monotonic() + 120
    while not cond():
        if time.monotonic() > end:
            dump(descendants())
            raise Failed(what)
        try:
            while status is not None:
                pid, st = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    break
                status[pid] = st
        except ChildProcessError:
            pass
        time.sleep(.01)


def session(pid):
    """Of a process that may end at any time: None when it has."""
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None


def ended_by(h, sig, args, begun):
    """It is ended by @sig when @begun is so; what it ran is ended with it, and does not just come to its end."""
    def end():
        p = subprocess.Popen([os.path.join(h.build, "hmm"), "bench", "--mib", "32", "--rounds", "1000", *args],
                             stdout=subprocess.DEVNULL)
        until(begun, f"{args}: it does not begin")
        # Not who takes back what was changed, which has a session of its own.
        runs = [q for q in descendants(p.pid) if comm(q) == "hmm" and session(q) == os.getsid(0)]
        p.send_signal(sig)
        until(lambda: p.poll() is not None, f"{args}: not ended by {sig}")
        if p.returncode != -sig:
            raise Failed(f"{args}: ended by {sig}, status {p.returncode}")
        status = {}
        until(lambda: not descendants(), f"{args}: something stays behind", status)
        return [os.WIFSIGNALED(status[q]) for q in runs if q in status]

    # A run may come to its end just then.  Who serves faults may see that nobody is left to serve before it is killed.
    if "fault-process" in args:
        end()
    elif not any(said and all(said) for said in (end() for _ in range(5))):
        raise Failed(f"{args}: ended by {sig}, and what it runs is not")


def command_ended(h):
    """Whoever is ended takes all that it runs along."""
    for sig in signal.SIGTERM, signal.SIGINT, signal.SIGKILL:
        ended_by(h, sig, ["--only", "hmm-read"], lambda: any(comm(p) == "hmm-supervisor" for p in descendants()))
        ended_by(h, sig, ["--only", "fault-process"], lambda: len(descendants()) > 1)


def command_locked(h):
    """Who comes while another one has changed the machine for itself leaves it as it is, and says so."""
    if os.geteuid() or not os.access("/sys/class/zram-control/hot_add", os.F_OK):
        skip("needs root, and zram")
    before, had = machine(), os.listdir("/sys/block")
    with open("/proc/sys/vm/page-cluster") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            skip("somebody swaps to zram here")
        got = measured(h, "--mib", "32", "--rounds", "1", "--zram", "--only", "zram-read,syscall")
        if machine() != before or os.listdir("/sys/block") != had:
            raise Failed(f"it was {before} before, and is {machine()}")
    if "somebody else is at it" not in got["skipped"].get("zram-read", "") or names(got) != ["syscall"]:
        raise Failed(f"skipped are {got['skipped']}")


def swapped_to():
    """KiB of each swap device."""
    with open("/proc/swaps") as f:
        return {line.split()[0]: int(line.split()[2]) for line in f.readlines()[1:]}


def command_zram(h):
    """The machine is as it was, however it ends."""
    if not LONG:
        skip("it swaps: HMM_TEST_LONG=1, as root")
    before = machine()
    got = measured(h, "--mib", "32", "--rounds", "2", "--zram", "--only", "zram-*,hmm-read")
    if machine() != before:
        raise Failed(f"it was {before} before, and is {machine()}")
    if got["skipped"] or not got["zram_peak_bytes"] or got["budget_bytes"] < 16 << 20:
        raise Failed(f"{got}")
    had, sizes = swapped_to(), set()

    def begun():
        new = [kib for dev, kib in swapped_to().items() if dev not in had]
        sizes.update(new)
        return machine() != before and new

    for sig in signal.SIGTERM, signal.SIGINT, signal.SIGKILL:
        ended_by(h, sig, ["--zram", "--only", "zram-read"], begun)
        until(lambda: machine() == before, f"ended by {sig}: it was {before} before, and is {machine()}")
    # Room for all, however little is kept here; of its pages the first one is the header.
    if sizes != {(4 << 20) - 4}:
        raise Failed(f"swapped to {sizes} KiB, not to 4 GiB")


if __name__ == "__main__":
    main_of(bench, scale, command, command_asked, command_skips, command_ended, command_locked, command_zram)
