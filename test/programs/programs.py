#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Real programs, each alone and then on 100, 50 and 25 % of the private anonymous memory that it used alone.

programs.py BUILD [--table FILE] [--share N]... [--limit SECONDS] [--zram] [PROGRAM...]
programs.py --session PROGRAM DIR	what runs under hmm, where that is more than one command

What they print or leave must be the same.  --share: only so many percent.  The table says what each needed, and
how many times as long it took.  Times decide nothing, but that a run which takes longer than --limit is ended, and
said to be not through; whether its pages went on moving is said, too.  With --table, what the file has of programs
and shares that are not run stays, so that the table can be made piece by piece.  --zram: below 100 %, each also in a
cgroup of that size with the kernel's own swap to zram, after a stroke; what was swapped out is not counted there.
"""
import argparse
import glob
import hashlib
import json
import os
import random
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, *at) for at in (("..", "run"), ("..", "run", "load"), ("..", "..", "bench", "run"))]
import apps  # noqa: E402
import rivals  # noqa: E402
from hmmtest import Failed, Hmm, descendants, kill_all, reap  # noqa: E402
from native import Peak  # noqa: E402

MIB = 1 << 20
LEAST = 20 * MIB  # below it hmm has nothing to live on
SHARES = (100, 50, 25)
LIMIT = 300
ROOT = os.path.realpath(os.path.join(HERE, "..", ".."))


class Absent(Exception):
    """A program that is not here."""


def need(name, package, *more):
    path = shutil.which(name) or next((p for p in more if os.access(p, os.X_OK)), None)
    if not path:
        raise Absent(f"no {name} (package {package})")
    return path


def sha(path):
    h = hashlib.sha256()
    with open(path, "rb") as f:
        for block in iter(lambda: f.read(MIB), b""):
            h.update(block)
    return h.hexdigest()


def words(mib, seed):
    """Text that is somewhat like text."""
    r = random.Random(seed)
    vocabulary = ["".join(r.choices("etaoinshrdlucmfwypvbgkjqxz", k=2 + i % 9)) for i in range(5000)]
    return "\n".join(" ".join(r.choices(vocabulary, k=12)) for _ in range(mib * MIB // 78)) + "\n"


def write(path, text):
    with open(path, "w") as f:
        f.write(text)
    return path


def python_line(name, d):
    return [sys.executable, os.path.abspath(__file__), "--session", name, d]


# ------------------------------------------------------------------- programs
#
# Each: prepare(d) returns (line, result): what to run in directory d, and a
# function of its output that says what must be the same.

def p_python(d):
    exe = "/usr/bin/python3"
    if subprocess.run([exe, "-c", "import test.test_mmap"], capture_output=True).returncode:
        raise Absent("no tests of Python's (package libpython3.11-testsuite, or that of another version)")
    tests = "test_mmap test_gc test_threading test_ctypes test_multiprocessing_main_handling test_dict".split()
    return [exe, "-m", "test", "-q", *tests], lambda out: "SUCCESS" if "Tests result: SUCCESS" in out or \
        "Result: SUCCESS" in out else out[-2000:]


def p_sqlite3(d):
    sql = write(os.path.join(d, "in.sql"), apps.SQL)
    return ["sh", "-c", f"{need('sqlite3', 'sqlite3')} :memory: <{sql}"], str


def p_redis(d):
    os.symlink(os.path.realpath(need("redis-check-rdb", "redis-tools")), os.path.join(d, "redis-server"))
    return python_line("redis", d), str


def s_redis(d):
    rdb = os.path.join(d, "dump.rdb")
    p = subprocess.Popen(apps.redis_line(d), stdout=subprocess.DEVNULL)
    sock = os.path.join(d, "socket")
    apps.redis_connect(sock, lambda: p.poll() is None).s.close()
    print(apps.redis_session(sock))
    p.wait()
    print(apps.redis_rdb(rdb))
    os.unlink(rdb)


def p_memcached(d):
    need("memcached", "memcached")
    return python_line("memcached", d), str


def s_memcached(d):
    path = os.path.join(d, "socket")
    p = subprocess.Popen(["memcached", "-u", "root", "-s", path, "-m", "160"])
    s = socket.socket(socket.AF_UNIX)
    while True:
        try:
            s.connect(path)
            break
        except OSError:
            if p.poll() is not None:
                raise Failed("memcached does not start")
            time.sleep(0.02)
    f = s.makefile("rb")

    def value(i, gen):
        return apps.value(i, gen)[:3000]

    def put(i, gen):
        v = value(i, gen)
        s.sendall(b"set k%d 0 0 %d\r\n%s\r\n" % (i, len(v), v))
        if f.readline() != b"STORED\r\n":
            raise Failed(f"k{i} is not stored")

    n, wrong = 25000, 0
    for i in range(n):
        put(i, 0)
    for i in range(0, n, 3):
        put(i, 1)
    for i in range(n):
        s.sendall(b"get k%d\r\n" % i)
        head = f.readline()
        got = f.read(int(head.split()[3]) + 2)[:-2] if head.startswith(b"VALUE") else None
        wrong += got != value(i, 0 if i % 3 else 1) or f.readline() != b"END\r\n"
    print("wrong", wrong)
    p.terminate()
    p.wait()


PG_BIN = max(glob.glob("/usr/lib/postgresql/*/bin"), default="")  # Debian 12 has 15, Debian 13 has 17


def p_postgresql(d):
    need("initdb", "postgresql-15, or -17", PG_BIN + "/initdb")
    need("setpriv", "util-linux")
    os.chmod(d, 0o777)
    return python_line("postgresql", d), str


def s_postgresql(d):
    """It refuses to be root's."""
    env = dict(os.environ, PATH=PG_BIN + ":" + os.environ["PATH"], LC_ALL="C")
    data, nobody = os.path.join(d, "data"), []
    if not os.geteuid():
        nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]

    def do(*line, out=subprocess.DEVNULL):
        return subprocess.run([*nobody, *line], check=True, env=env, cwd=d, stdout=out, text=True,
                              stderr=subprocess.DEVNULL).stdout

    def start():
        """Its parent is us: one that was killed is gone once we have waited for it."""
        with open(os.path.join(d, "log"), "a") as log:
            p = subprocess.Popen([*nobody, "postgres", "-D", data, "-k", d, "-c", "listen_addresses=", "-c",
                                  "max_wal_size=64MB", "-c", "work_mem=64MB"], env=env, cwd=d, stdout=log, stderr=log)
        while subprocess.run([PG_BIN + "/pg_isready", "-q", "-h", d], env=env).returncode:
            if p.poll() is not None:
                return None
            time.sleep(0.1)
        return p

    def ask(sql):
        return do("psql", "-h", d, "-At", "-c", sql, "postgres", out=subprocess.PIPE).strip()

    shutil.rmtree(data, ignore_errors=True)
    do("initdb", "-D", data, "-N", "-A", "trust")
    p = start()
    if not p:
        with open(os.path.join(d, "log")) as f:
            raise Failed(f"PostgreSQL does not start: {f.read()[-500:]}")
    do("pgbench", "-h", d, "-i", "-q", "-s", "2", "postgres")
    for k in range(2):
        do("pgbench", "-h", d, "-c", "4", "-j", "2", "-t", "150", "-n", "postgres")
        print(ask("select (select sum(abalance) from pgbench_accounts) = (select sum(delta) from pgbench_history), "
                  "(select sum(bbalance) from pgbench_branches) = (select sum(delta) from pgbench_history), "
                  "(select count(*) from pgbench_history)"))
        print(ask("select md5(string_agg(x, ',')) from (select aid || filler as x from pgbench_accounts "
                  "order by md5(aid::text)) t"))
        if k:
            break
        # As if the power had gone: what was committed is there.
        p.kill()
        p.wait()
        p = start()
        while not p:  # its children are not gone yet, and it says so
            time.sleep(0.1)
            p = start()
    p.send_signal(signal.SIGINT)  # a fast shutdown
    if p.wait():
        raise Failed(f"PostgreSQL ended with {p.returncode}")


def compiler(d, cc):
    need("meson", "meson")
    src, build, products = os.path.join(d, "src"), os.path.join(d, "build"), ("libhmm-preload.so", "hmm")
    shutil.copytree(ROOT, src, symlinks=True, ignore=lambda at, names: [
        n for n in names if n.startswith(".") or (at == ROOT and n.startswith("build"))])
    subprocess.run(["meson", "setup", "-Dwerror=false", build, src], check=True, capture_output=True,
                   env=dict(os.environ, CC=cc))

    def result(out):
        left = [sha(os.path.join(build, name)) for name in products]
        subprocess.run(["ninja", "-C", build, "-t", "clean"], check=True, capture_output=True)
        return left

    return ["ninja", "-C", build, "-j2", *products], result


def p_gcc(d):
    return compiler(d, need("gcc", "gcc"))


def p_clang(d):
    return compiler(d, need("clang", "clang"))


JAVA = """
import java.util.*;
public class Work {
	public static void main(String[] a) throws Exception {
		Map<Integer, byte[]> kept = new HashMap<>();
		List<Thread> t = new ArrayList<>();
		long[] sum = new long[4];
		for (int k = 0; k < 4; k++) {
			final int me = k;
			t.add(new Thread(() -> {
				Random r = new Random(me);
				TreeMap<Long, String> m = new TreeMap<>();
				for (int i = 0; i < 40000; i++) {
					m.put((long) r.nextInt(20000), "value" + i * 31L);
					if (i % 10000 == 0)
						sum[me] = sum[me] * 31 + m.toString().hashCode();
				}
				for (Map.Entry<Long, String> e : m.entrySet())
					sum[me] = sum[me] * 31 + e.getKey() + e.getValue().hashCode();
			}));
		}
		for (Thread x : t) x.start();
		Random r = new Random(9);
		for (int i = 0; i < 60000; i++) {
			byte[] b = new byte[200 + r.nextInt(1200)];
			r.nextBytes(b);
			kept.put(r.nextInt(30000), b);
		}
		for (Thread x : t) x.join();
		long s = 0;
		for (int i = 0; i < 30000; i++)
			if (kept.containsKey(i)) s = s * 31 + Arrays.hashCode(kept.get(i));
		try { ((Object) null).hashCode(); } catch (NullPointerException e) { s++; }
		System.out.println(s + " " + Arrays.toString(sum));
	}
}
"""


def java(d, collector):
    need("javac", "default-jdk-headless")
    write(os.path.join(d, "Work.java"), JAVA)
    subprocess.run(["javac", "-d", d, os.path.join(d, "Work.java")], check=True)
    return [need("java", "default-jdk-headless"), f"-XX:+Use{collector}GC", "-Xmx160m", "-cp", d, "Work"], str


NODE = """
const crypto = require('crypto');
let seed = 7;
const rnd = () => (seed = (seed * 1103515245 + 12345) % 2147483648);
const kept = new Map();
for (let i = 0; i < 300000; i++) {
	kept.set(rnd() % 60000, {i, text: 'x'.repeat(i % 200) + i, list: [i, i * 2, String(i)]});
	if (i % 20000 === 0) JSON.parse(JSON.stringify([...kept.values()].slice(0, 20000)));
}
const h = crypto.createHash('sha256');
for (const k of [...kept.keys()].sort((a, b) => a - b)) h.update(JSON.stringify(kept.get(k)));
const big = Buffer.alloc(40 << 20);
for (let i = 0; i < big.length; i += 64) big.writeUInt32LE(rnd(), i);
h.update(big);
console.log(h.digest('hex'));
"""


def p_node(d):
    return [need("node", "nodejs"), write(os.path.join(d, "work.js"), NODE)], str


def p_git(d):
    git, repo, r = need("git", "git"), os.path.join(d, "repo"), random.Random(5)
    lines = words(5, 5).split("\n")
    stream = []
    for c in range(36):
        for _ in range(50):
            lines[r.randrange(len(lines))] = f"change {c}"
        at = c % 12 * 3000
        text = "\n".join(lines[at:at + 26000]) + "\n"
        stream.append(f"commit refs/heads/main\ncommitter A <a@b> {1600000000 + c * 60} +0000\ndata 1\nc\n"
                      f"M 644 inline file{c % 12}\ndata {len(text)}\n{text}\n")
    subprocess.run([git, "init", "-q", "--bare", "-b", "main", repo + ".orig"], check=True)
    subprocess.run([git, "-C", repo + ".orig", "fast-import", "--quiet"], input="".join(stream), text=True, check=True)
    # One thread: the search for deltas by more than one gives other packs each time.
    script = (f"rm -rf {repo}; cp -r {repo}.orig {repo}; cd {repo}; git -c pack.threads=1 repack -adfq --depth=20 "
              "--window=10; git gc -q --prune=now; git fsck --full --strict; "
              "git rev-list --objects --all | sort | sha256sum; git cat-file --batch-all-objects --batch | sha256sum")
    return ["sh", "-ec", script], str


def p_xz(d):
    f = write(os.path.join(d, "in"), words(8, 1) * 4)
    return ["sh", "-ec", f"{need('xz', 'xz-utils')} -1 -T4 --block-size=8MiB -k -c {f} >{f}.xz; sha256sum <{f}.xz; "
            f"xz -dc {f}.xz | cmp - {f}"], str


def p_zstd(d):
    f = write(os.path.join(d, "in"), words(8, 2) * 5)
    return ["sh", "-ec", f"{need('zstd', 'zstd')} -q -6 --long=27 -T1 -c {f} >{f}.zst; sha256sum <{f}.zst; "
            f"zstd -q --long=27 -dc {f}.zst | cmp - {f}"], str


def p_sort(d):
    f = write(os.path.join(d, "in"), words(16, 3))
    return ["sh", "-ec", f"LC_ALL=C sort -S 100M --parallel=2 {f} | sha256sum; LC_ALL=C sort -u -S 100M {f} | wc"], str


GO = """package main
%s
import "fmt"

func main() {
	m := map[int][]byte{}
	s := uint64(1)
	for i := 0; i < 120000; i++ {
		s = s*6364136223846793005 + 1442695040888963407
		m[int(s>>40)%%40000] = make([]byte, 500+int(s>>50)%%2000)
		m[int(s>>40)%%40000][0] = byte(i)
	}
	t := 0
	for k, v := range m {
		t += k * (len(v) + int(v[0]))
	}
	fmt.Println(t)
}
"""


def go(d, cgo):
    exe = os.path.join(d, "work")
    src = write(os.path.join(d, "work.go"), GO % ('import "C"\n' if cgo else ""))
    subprocess.run([need("go", "golang-go"), "build", "-o", exe, src], check=True,
                   env=dict(os.environ, CGO_ENABLED=str(int(cgo)), GOCACHE=os.path.join(d, "cache"), GO111MODULE="off"))
    return [exe], str


PROGRAMS = {
    "redis-server": p_redis,
    "PostgreSQL": p_postgresql,
    "sqlite3": p_sqlite3,
    "Python's tests": p_python,
    "gcc, this project": p_gcc,
    "clang, this project": p_clang,
    "OpenJDK, Serial": lambda d: java(d, "Serial"),
    "OpenJDK, Parallel": lambda d: java(d, "Parallel"),
    "OpenJDK, G1": lambda d: java(d, "G1"),
    "OpenJDK, Z": lambda d: java(d, "Z"),
    "Node.js": p_node,
    "git": p_git,
    "xz": p_xz,
    "zstd": p_zstd,
    "sort": p_sort,
    "memcached": p_memcached,
    "Go, with cgo": lambda d: go(d, True),
    "Go, static": lambda d: go(d, False),
}
SESSIONS = {"redis": s_redis, "memcached": s_memcached, "postgresql": s_postgresql}
# Many children, one after the other and at a time, that share most of what each of them has: the sum says nothing.
TAKEN = {"Python's tests": 80 * MIB}
REFUSED = {"Go, static"}  # cannot be entered, and is told so


def alone(line, result):
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        start = time.monotonic()
        p = subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
        peak = Peak(p.pid)
        rc = p.wait()
        seconds, most = time.monotonic() - start, peak.end()
        for f in out, err:
            f.seek(0)
        if rc:
            raise Failed(f"ended with {rc} without hmm: {err.read()[-500:].decode(errors='replace')}")
        return result(out.read().decode(errors="replace")), most, seconds


def refused(h, line):
    r = h.run(line)
    if r.rc != 126 or "static" not in r.err():
        raise Failed(f"ended with {r.rc}, saying {r.err()!r}, where it should have been refused")
    return {"verdict": "refused: statically linked", "times": {}}


def pages_in(h, pid):
    r = subprocess.run([h.exe, "stat", str(pid), "--json"], capture_output=True, text=True, timeout=60)
    return json.loads(r.stdout)["pages_in"] if not r.returncode else 0


def through(h, line, ram, limit):
    """What came of it, and None; or None, and how many pages a second still came back when it took too long."""
    r, end = h.start(line, ram=f"{ram >> 10}K"), time.monotonic() + limit
    while r.child.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    if r.child.poll() is not None:
        return r.wait(), None
    before = pages_in(h, r.pid)
    time.sleep(2)
    rate = (pages_in(h, r.pid) - before) // 2
    kill_all([r.pid, *descendants()])
    reap()
    return None, rate


def swapped(line, result, want, ram, limit):
    """How long it takes where the kernel swaps to zram; None: longer than @limit; 0: the kernel killed it."""
    def run(cmd, group, watch):
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            start = time.monotonic()
            p = subprocess.Popen(cmd, stdin=subprocess.DEVNULL, stdout=out, stderr=err, preexec_fn=group.join)
            try:
                p.wait(limit)
            except subprocess.TimeoutExpired:
                return None
            took = time.monotonic() - start
            out.seek(0)
            if p.returncode == -signal.SIGKILL:
                return 0
            if p.returncode or result(out.read().decode(errors="replace")) != want:
                raise Failed(f"with zram it ended with {p.returncode}, or differs")
            return took

    u = rivals.Undo()
    try:
        return rivals.Zram(u, rivals.Group(u, "hmm-programs"), 3).measure(line, ram, 0, run)
    finally:
        u.back_to(0)
        u.close()
        reap()


def one(h, name, shares, limit, zram):
    with tempfile.TemporaryDirectory(prefix="hmmtest-") as d:
        line, result = PROGRAMS[name](d)
        if name in REFUSED:
            return refused(h, line)
        want, most, seconds = alone(line, result)
        most = TAKEN.get(name, most)
        row = {"verdict": "equal", "mib": most / MIB, "seconds": seconds, "times": {}}
        print(f"  alone: {most / MIB:.0f} MiB, {seconds:.1f} s", flush=True)
        for share in shares:
            ram = most * share // 100
            if ram < LEAST:
                row["times"][share] = "too small"
                continue
            beside = ""
            if zram and share < 100:
                other = swapped(line, result, want, ram, limit)
                beside = " / killed" if other == 0 else f" / {other / seconds:.2f}" if other else " / > limit"
            start = time.monotonic()
            r, rate = through(h, line, ram, limit)
            took = time.monotonic() - start
            if not r:
                row["times"][share] = f"> {limit / seconds:.0f}{beside}"
                print(f"  {share} %: not through after {limit} s, {rate} pages/s come back{beside}", flush=True)
                continue
            s = r.stats()
            if r.rc:
                raise Failed(f"ended with {r.rc} at {share} %: {r.err()[-1000:]}\n{r.out()[-1000:]}")
            got = result(r.out())
            if got != want:
                raise Failed(f"at {share} % it gives\n{str(got)[-1000:]}\nnot\n{str(want)[-1000:]}")
            row["times"][share] = f"{took / seconds:.2f}{beside}"
            row["out"] = s["pages_out"]
            print(f"  {share} %: {row['times'][share]} times, {s['pages_out']} out, {s['pages_in']} in", flush=True)
        return row


def table(rows, path):
    """The lines of it; what @path has already, and was not tried now, stays."""
    cells = {}
    if path and os.path.exists(path):
        with open(path) as f:
            cells = {c[0]: c[1:] for c in ([x.strip() for x in line.strip("| \n").split("|")] for line in f)}
    for name, r in rows.items():
        new = [f"{r['mib']:.0f}", f"{r['seconds']:.1f}"] if "mib" in r else ["-", "-"]
        new += [r.get("times", {}).get(share, "-") for share in SHARES] + [str(r.get("out", "-")), r["verdict"]]
        cells[name] = [n if n != "-" else o for n, o in zip(new, cells.get(name, new))]
    yield "| program | MiB | alone, s | 100 % | 50 % | 25 % | pages out at the last | |"
    yield "|---|---|---|---|---|---|---|---|"
    for name in PROGRAMS:
        if name in cells:
            yield f"| {name} | {' | '.join(cells[name])} |"


def main():
    if sys.argv[1:2] == ["--session"]:
        SESSIONS[sys.argv[2]](sys.argv[3])
        return
    p = argparse.ArgumentParser()
    p.add_argument("build")
    p.add_argument("--table", help="a file for the table")
    p.add_argument("--share", type=int, action="append")
    p.add_argument("--limit", type=int, default=LIMIT, help="seconds for a run under hmm")
    p.add_argument("--zram", action="store_true", help="beside the kernel's swap")
    p.add_argument("program", nargs="*")
    a = p.parse_intermixed_args()
    h, rows, bad = Hmm(a.build), {}, 0
    for name in PROGRAMS:
        if a.program and name not in a.program:
            continue
        print(name, flush=True)
        try:
            rows[name] = one(h, name, a.share or SHARES, a.limit, a.zram)
        except Absent as e:
            rows[name] = {"verdict": f"not tried: {e}"}
        except Failed as e:
            bad += 1
            rows[name] = {"verdict": "FAILED"}
            print(f"FAILED {name}: {e}")
        finally:
            kill_all(descendants())
            reap()
        if rows[name]["verdict"] != "equal":
            print(" ", rows[name]["verdict"])
    lines = list(table(rows, a.table))
    print("\n".join(lines))
    if a.table:
        write(a.table, "\n".join(lines) + "\n")
    sys.exit(1 if bad or not rows else 0)


if __name__ == "__main__":
    main()
