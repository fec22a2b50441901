#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""wire.py BUILD [N [SEED]]: strangers at the supervisor's socket.

While a program that checks itself runs under `hmm run`, N connections are made
that say anything: nothing, pieces of messages, messages with wrong fields, right
ones without their descriptors or with others in their place.  The program must
end as it would, and the last question of a client be answered.
"""
import array
import os
import random
import re
import socket
import struct
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "run"))
import hmmtest  # noqa: E402

build, n = os.path.abspath(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 400
rng = random.Random(int(sys.argv[3]) if len(sys.argv) > 3 else 1)
wire = open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../src/run/wire.h")).read()
magic = int(re.search(r"#define WIRE_MAGIC (0x[0-9a-f]+)", wire).group(1), 16)
stat = int(re.search(r"#define WIRE_STAT_MAGIC (0x[0-9a-f]+)", wire).group(1), 16)

p = subprocess.Popen([f"{build}/hmm", "run", "--ram", "24M", "--", f"{build}/test/run/life/life-spin", "48", "0", "0"],
                     stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
name = None
for _ in range(500):
    m = re.search(rf"@(hmm/{p.pid}/\S+)", open("/proc/net/unix").read())
    if m:
        name = "\0" + m.group(1)
        break
    if p.poll() is not None:
        text = p.stderr.read()
        hmmtest.skip(text) if "permission" in text or "cannot move" in text else sys.exit(text)
    time.sleep(0.01)
if not name:
    sys.exit("no socket")
held = []
for i in range(n):
    s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    s.connect(name)
    kind = rng.randrange(6)
    if kind == 0:
        data = rng.randbytes(rng.randrange(1, 300))
    elif kind == 1:
        data = struct.pack("<II", stat, rng.choice([0, 0, 2, 0xffffffff]))
    else:
        data = bytearray(struct.pack("<IIQ", magic, rng.choice([0, 1, 2, 0xffffffff]), rng.getrandbits(64)) +
                         rng.randbytes(32))
        if kind == 2:
            data = data[:rng.randrange(1, len(data))]
        if kind == 3:
            data += b"x" * rng.randrange(1, 50)
    fds = array.array("i", [os.open("/dev/null", os.O_RDONLY) for _ in range(rng.choice([0, 1, 3, 4, 4, 4, 5, 20]))])
    try:
        if rng.randrange(10):
            s.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)] if fds else [])
    except OSError:
        pass
    for fd in fds:
        os.close(fd)
    if rng.randrange(3):
        s.close()
    else:
        held.append(s)
    if len(held) > 100:
        held.pop(rng.randrange(100)).close()
if p.poll() is not None:
    sys.exit(f"the program has ended: {p.returncode} {p.stderr.read()}")
for s in held:
    s.close()
r = subprocess.run([f"{build}/hmm", "stat", str(p.pid), "--json"], capture_output=True, text=True, timeout=60)
if r.returncode or '"spaces"' not in r.stdout:
    sys.exit(f"hmm stat: {r.returncode} {r.stdout} {r.stderr}")
sup = [q for q in hmmtest.descendants() if hmmtest.comm(q) == "hmm-supervisor"]
open_fds = max((len(os.listdir(f"/proc/{q}/fd")) for q in sup), default=0)
p.terminate()
p.wait(60)
print(f"{n} connections, then {open_fds} descriptors in the supervisor")
if p.returncode not in (-15, 143) or not sup or open_fds > 60:
    sys.exit(f"status {p.returncode}, {open_fds} descriptors are left")
