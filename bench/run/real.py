#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Programs that people have, as workloads: one line of JSON, as that of work.c.

real.py [-c FILE] redis|numpy MIB

redis	a server with MIB of values.  set: all keys, in turn.  mixed: GET, each fourth a SET, of Zipf 0.99 keys,
	32 at a time
numpy	MIB of numbers.  sort: integers, in place.  group: sums of other numbers by them

"result" is the same for the same numbers, however memory is had.
"""
import bisect
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import zlib

sys.path[:0] = [os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "test", "run", *at)
                for at in ((), ("load",))]
import apps  # noqa: E402

MIB = 1 << 20
VALUE = 1024
AT_A_TIME = 32
MIXED = 60000
ZIPF = 0.99
GROUPS = 50000


class Meter:
    def __init__(self, cpu_file, pid):
        self.cpu_file, self.pid, self.out = cpu_file, pid, {}

    def cpu(self):
        with open(self.cpu_file) as f:
            word = f.readline().split()  # as cpu_used() in measure.h
        return int(word[-1]) / (1e6 if len(word) > 1 else 1e9)

    def faults(self):
        with open(f"/proc/{self.pid}/stat") as f:
            field = f.read().rsplit(")", 1)[1].split()
        return int(field[7]) + int(field[9])

    def measure(self, name, run, ops=1):
        cpu = self.cpu() if self.cpu_file else 0
        f, t = self.faults(), time.monotonic()
        result = run()
        r = self.out[name] = {"ops": ops, "seconds": time.monotonic() - t, "faults": self.faults() - f,
                              "result": result}
        if self.cpu_file:
            r["cpu"] = self.cpu() - cpu


def value(key, body):
    return b"%010d" % key + body[10:]


def bodies():
    """As data_fill(): LZ4 makes half of them."""
    r = random.Random(1)
    return [b"".join(r.randbytes(27) + bytes(37) for _ in range(VALUE // 64)) for _ in range(256)]


def zipf(r, n, count):
    sums = list(itertools.accumulate(1 / i ** ZIPF for i in range(1, n + 1)))
    keys = list(range(n))
    r.shuffle(keys)
    return [keys[bisect.bisect_left(sums, r.random() * sums[-1])] for _ in range(count)]


def talk(c, commands, sizes):
    """Sent AT_A_TIME, made before any is sent; returns a checksum of all replies, whose sizes are known."""
    sums, buf = 0, bytearray(AT_A_TIME * 2 * VALUE)
    batches = [(b"".join(map(c.pack, commands[i:i + AT_A_TIME])), sum(sizes[i:i + AT_A_TIME]))
               for i in range(0, len(commands), AT_A_TIME)]

    def run():
        nonlocal sums
        for out, want in batches:
            c.s.sendall(out)
            got = 0
            while got < want:
                n = c.s.recv_into(memoryview(buf)[got:want])
                if not n:
                    raise RuntimeError("the server has gone")
                got += n
            sums = zlib.crc32(memoryview(buf)[:want], sums)
        return sums
    return run


OK = len(b"+OK\r\n")
GOT = len(b"$%d\r\n" % VALUE) + VALUE + len(b"\r\n")


def redis(meter, mib):
    n, r, body = mib * MIB // (VALUE + 100), random.Random(2), bodies()
    exe = shutil.which("redis-check-rdb")
    if not exe:
        sys.exit("no redis-check-rdb (package redis-tools)")
    with tempfile.TemporaryDirectory(prefix="hmm-bench-") as d:
        os.symlink(os.path.realpath(exe), os.path.join(d, "redis-server"))  # the same program by another name
        p = subprocess.Popen(apps.redis_line(d), stdout=subprocess.DEVNULL)
        try:
            c = apps.redis_connect(os.path.join(d, "socket"), lambda: p.poll() is None)
            meter.pid = p.pid

            def fill():
                sums = 0
                for k in range(0, n, 4096):  # so that what is sent is not all in memory
                    keys = range(k, min(n, k + 4096))
                    run = talk(c, [("SET", f"key{i}", value(i, body[i % 256])) for i in keys], [OK] * len(keys))
                    sums = zlib.crc32(b"%d" % run(), sums)
                return sums

            def mixed(seed):
                keys = zipf(random.Random(seed), n, MIXED)
                return talk(c, [("GET", f"key{k}") if i % 4 else ("SET", f"key{k}", value(k, body[(k + seed) % 256]))
                                for i, k in enumerate(keys)], [GOT if i % 4 else OK for i in range(MIXED)])
            meter.measure("set", fill, n)
            mixed(3)()
            meter.measure("mixed", mixed(4), MIXED)
        finally:
            p.kill()
            p.wait()


def numpy(meter, mib):
    try:
        import numpy as np
    except ImportError:  # this python3 may not be the system's, which has it
        if os.path.realpath(sys.executable) == os.path.realpath("/usr/bin/python3"):
            sys.exit("no numpy (package python3-numpy)")
        os.execv("/usr/bin/python3", ["/usr/bin/python3", *sys.argv])
    r = np.random.default_rng(1)
    n, keys, values = mib * MIB // 16, None, None

    def make():
        nonlocal keys, values
        keys = np.empty(n, np.int64)
        values = np.empty(n, np.float64)
        for i in range(0, n, 1 << 16):
            m = min(n - i, 1 << 16)
            keys[i:i + m] = r.integers(0, GROUPS, m)
            values[i:i + m] = r.integers(0, 1000, m)

    def group():
        return float(np.bincount(keys, weights=values, minlength=GROUPS) @ np.arange(GROUPS))

    def sort():
        keys.sort()
        return int(keys[n // 2])
    meter.measure("make", make)
    group()
    meter.measure("group", group)
    meter.measure("sort", sort)


def main():
    args = sys.argv[1:]
    cpu_file = args[1] if args[0] == "-c" else None
    what, mib = args[2:] if cpu_file else args
    meter = Meter(cpu_file, os.getpid())
    {"redis": redis, "numpy": numpy}[what](meter, int(mib))
    print(json.dumps(meter.out))


main()
