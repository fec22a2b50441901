#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Real programs print the same on a half of the memory they use; HMM_TEST_LONG: more of it, and on a quarter, too.

apps.py BUILD [TEST...]

What they use is measured first, without hmm: the most private anonymous memory
that all processes of the run had at one time.
"""
import hashlib
import os
import socket
import subprocess
import sys
import tempfile
import threading

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from hmmtest import Failed, main_of  # noqa: E402
from native import Peak, need  # noqa: E402

HERE = os.path.dirname(os.path.abspath(__file__))
MIB = 1 << 20
LONG = os.environ.get("HMM_TEST_LONG")
LEAST_MIB = 60 if LONG else 36


def budgets(peak):
    if peak < LEAST_MIB * MIB:
        raise Failed(f"it used {peak / MIB:.1f} MiB: too little to say anything")
    return [f"{peak // 1024 // part}K" for part in ((2, 4) if LONG else (2,))]


def same(h, cmd, stdin=None, digest=None):
    """Run @cmd alone, then on its budgets; @digest() is of what it left besides its output."""
    with tempfile.TemporaryFile() as out:
        p = subprocess.Popen(cmd, stdin=open(stdin, "rb") if stdin else subprocess.DEVNULL, stdout=out)
        peak = Peak(p.pid)
        rc = p.wait()
        most = peak.end()
        out.seek(0)
        want = out.read().decode(errors="replace"), digest() if digest else None
    if rc:
        raise Failed(f"{cmd[0]} ended with {rc} without hmm")
    if not want[0] and not want[1]:
        raise Failed("no output to compare")
    for ram in budgets(most):
        r = h.run(cmd, ram=ram, stdin=open(stdin, "rb") if stdin else None)
        r.expect(min_out=most // 4096 // 4)
        got = r.out(), digest() if digest else None
        s = r.stats()
        print(f"{os.path.basename(cmd[0])}, {most / MIB:.0f} MiB, on {int(ram[:-1]) / 1024:.0f} MiB: "
              f"{s['pages_out']} pages out, {s['pages_in']} in, {s['faults']} faults")
        if got != want:
            raise Failed(f"output differs at --ram {ram}:\n{got[1] or got[0][-1000:]}\nnot\n{want[1] or want[0][-1000:]}")


def python(h):
    same(h, [os.path.realpath(sys.executable), os.path.join(HERE, "app_python.py"), "10000" if LONG else "6000"])


SQL = f"""
PRAGMA cache_size=-400000;
PRAGMA temp_store=MEMORY;
CREATE TABLE t(id INTEGER PRIMARY KEY, k INTEGER, s TEXT);
WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM c WHERE i<{400000 if LONG else 240000})
 INSERT INTO t SELECT i, i+(i*37)%1009, hex(i*2654435761)||'-'||i||'-abcdefghijklmnopqrstuvwxyz-0123456789' FROM c;
CREATE INDEX ti ON t(k);
SELECT count(*), sum(k), max(s) FROM t;
UPDATE t SET s=s||k WHERE id%3=0;
SELECT k%1000 AS g, count(*), sum(length(s)), min(s) FROM t WHERE id%20=0 GROUP BY g ORDER BY g;
SELECT sum(length(a.s)+length(b.s)) FROM t a JOIN t b ON b.k=a.id WHERE a.id%50=0;
SELECT hex(s) FROM t WHERE id%997=0 ORDER BY s;
PRAGMA integrity_check;
"""


def sqlite(h):
    exe = need("sqlite3", "sqlite3")
    with tempfile.NamedTemporaryFile("w", prefix="hmmtest-", suffix=".sql") as f:
        f.write(SQL)
        f.flush()
        same(h, [exe, ":memory:"], stdin=f.name)


def c_source(functions, rows):
    """A program text that takes a compiler much memory."""
    out, r = ["typedef unsigned long u64;"], 1
    for i in range(functions):
        r = (r * 6364136223846793005 + 1442695040888963407) & (2**64 - 1)
        a, b, c = r >> 40 & 63, r >> 30 & 0xffff, r >> 20 & 15
        out.append(f"""u64 f{i}(u64 x, u64 *v, int n) {{
	u64 s = {b};
	for (int i = 0; i < n; i++) {{
		switch (v[i] % 7) {{
		case 0: s += x << {c}; break;
		case 1: s ^= v[i] * {b | 1}; break;
		case {2 + c % 3}: s = s / (x | 1) + {a}; break;
		case 5: v[i] = s % 11; break;
		default: s -= v[(s >> 3) % (u64)n] {'+-^'[c % 3]} x;
		}}
		if (s & {1 << a % 20})
			x = x * {b} + s;
	}}
	return s + x;
}}""")
    out.append("static const struct { u64 a; const char *b; double c; } table[] = {")
    out += ["{%dul, \"row %d\", %d.5}," % (i * 2654435761 % 2**40, i % 5000, i) for i in range(rows)]
    out.append("};\nu64 look(u64 i) { return table[i % (sizeof table / sizeof *table)].a + table[i / 3].b[1]; }")
    return "\n".join(out) + "\n"


def gcc(h):
    exe = need("gcc", "gcc")
    with tempfile.TemporaryDirectory(prefix="hmmtest-") as d:
        src, obj = os.path.join(d, "big.c"), os.path.join(d, "big.s")
        with open(src, "w") as f:
            f.write(c_source(25, 110000) if LONG else c_source(12, 50000))

        def digest():
            with open(obj, "rb") as o:
                text = o.read()
            os.unlink(obj)
            return hashlib.sha256(text).hexdigest()

        same(h, [exe, "-O2", "-S", "-o", obj, src], digest=digest)


class Redis:
    """A client of a server on a socket in a directory of its own."""

    def __init__(self, path):
        self.s = socket.socket(socket.AF_UNIX)
        self.s.settimeout(240)
        self.s.connect(path)
        self.f = self.s.makefile("rb")

    @staticmethod
    def pack(args):
        args = [a if isinstance(a, bytes) else str(a).encode() for a in args]
        return b"*%d\r\n" % len(args) + b"".join(b"$%d\r\n%s\r\n" % (len(a), a) for a in args)

    def reply(self):
        line = self.f.readline()
        kind, rest = line[:1], line[1:-2]
        if kind == b"-":
            raise Failed("redis: " + rest.decode())
        if kind == b":":
            return int(rest)
        if kind == b"$":
            return None if rest == b"-1" else self.f.read(int(rest) + 2)[:-2]
        if kind == b"*":
            return [self.reply() for _ in range(int(rest))]
        if kind == b"+":
            return rest.decode()
        raise Failed(f"redis said {line}")

    def many(self, commands):
        """Pipelined, a few at a time."""
        out = []
        for i in range(0, len(commands), 100):
            part = commands[i:i + 100]
            self.s.sendall(b"".join(self.pack(c) for c in part))
            out += [self.reply() for _ in part]
        return out

    def do(self, *command):
        return self.many([command])[0]


KEYS = 9000 if LONG else 5000


def value(i, generation):
    seed = hashlib.sha256(b"%d %d" % (i, generation)).digest()
    return (seed + seed.hex().encode()) * (60 + i % 50)


def redis_session(path):
    """Returns what must be the same with hmm and without."""
    c = Redis(path)
    for k in range(0, KEYS, 1000):
        c.many([("SET", f"key{i}", value(i, 0)) for i in range(k, k + 1000)])
        c.many([("RPUSH", f"list{i % 40}", value(i, 1)[:90]) for i in range(k, k + 1000)])
    if c.do("LASTSAVE") is None or "started" not in c.do("BGSAVE"):
        raise Failed("redis does not save")
    # Written while the child saves what was: at least once through all even keys.
    begin = True
    while True:
        if begin or LONG:
            for k in range(0, KEYS, 1000):
                c.many([("SET", f"key{i}", value(i, 2)) for i in range(k, k + 1000, 2)])
        else:
            c.many([("SET", f"key{i}", value(i, 2)) for i in range(0, KEYS, 200)])
            threading.Event().wait(0.05)
        begin = False
        info = c.do("INFO", "persistence").decode()
        if "rdb_bgsave_in_progress:0" in info:
            break
    if "rdb_last_bgsave_status:ok" not in info:
        raise Failed("BGSAVE failed: " + info)
    for i in range(KEYS):
        got = c.do("GET", f"key{i}")
        if got != value(i, 0 if i % 2 else 2):
            raise Failed(f"key{i} is wrong after BGSAVE under writes")
    digest = c.do("DEBUG", "DIGEST")
    try:
        c.s.sendall(c.pack(["SHUTDOWN", "NOSAVE"]))
        c.s.recv(1)
    except OSError:
        pass
    return digest


def redis_rdb(path):
    """What the child saved must be the keys as they were when it was forked: the server, without hmm, says which."""
    d = os.path.dirname(path)
    p = subprocess.Popen(redis_line(d), stdout=subprocess.DEVNULL)
    try:
        c = redis_connect(os.path.join(d, "socket"), lambda: p.poll() is None)
        for i in range(KEYS):
            if c.do("GET", f"key{i}") != value(i, 0):
                raise Failed(f"key{i} is wrong in what BGSAVE wrote")
        digest = c.do("DEBUG", "DIGEST")
    finally:
        p.kill()
        p.wait()
    return digest


def redis_line(d):
    return [os.path.join(d, "redis-server"), "--port", "0", "--unixsocket", os.path.join(d, "socket"), "--dir", d,
            "--save", "", "--rdbcompression", "no", "--enable-debug-command", "yes", "--daemonize", "no",
            "--loglevel", "warning"]


def redis_connect(path, alive):
    while True:
        try:
            c = Redis(path)
            if c.many([("EXISTS", "key0")]) is not None:
                return c
        except (OSError, Failed):
            if not alive():
                raise Failed("redis-server does not start")
            threading.Event().wait(0.05)


def redis(h):
    exe = need("redis-check-rdb", "redis-tools")
    with tempfile.TemporaryDirectory(prefix="hmmtest-") as d:
        # The same program does either, by its name.
        os.symlink(os.path.realpath(exe), os.path.join(d, "redis-server"))
        sock, rdb = os.path.join(d, "socket"), os.path.join(d, "dump.rdb")

        def session(alive):
            redis_connect(sock, alive).s.close()
            return redis_session(sock)

        p = subprocess.Popen(redis_line(d), stdout=subprocess.DEVNULL)
        peak = Peak(p.pid, below=False)  # the child that saves shares it
        try:
            live = session(lambda: p.poll() is None)
        finally:
            p.kill()
            p.wait()
            most = peak.end()
        want = live, redis_rdb(rdb)
        os.unlink(rdb)
        for ram in budgets(most):
            r = h.start(redis_line(d), ram=ram)
            live = session(lambda: r.child.poll() is None)
            r.wait()
            r.expect(min_out=most // 4096 // 4)
            s = r.stats()
            print(f"redis-server, {most / MIB:.0f} MiB, on {int(ram[:-1]) / 1024:.0f} MiB: {s['pages_out']} pages out, "
                  f"{s['pages_in']} in, {s['faults']} faults")
            got = live, redis_rdb(rdb)
            os.unlink(rdb)
            if got != want:
                raise Failed(f"digests {got}, not {want}, at --ram {ram}")


if __name__ == "__main__":
    main_of(python, sqlite, gcc, redis)
