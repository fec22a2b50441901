#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Programs whose pages are at a server on this machine: every byte verified, and
what happens when the server is full, has another key, is killed or stopped, or
gets rubbish.

tier.py BUILD [TEST...]
"""
import fcntl
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from hmmtest import Failed, main_of, skip  # noqa: E402

LONG = 10 if os.environ.get("HMM_TEST_LONG") else 1


class Server:
    def __init__(self, h, memory="512M", listen="127.0.0.1:0", key=None, ignored=None, stderr=subprocess.PIPE):
        line = [h.exe, "serve", "--listen", f"ofi://{listen}", "--memory", memory]
        self.child = subprocess.Popen(line + (["--key", key] if key else []), stdout=subprocess.PIPE,
                                      stderr=stderr, text=True,
                                      preexec_fn=ignored and (lambda: signal.signal(ignored, signal.SIG_IGN)))
        self.pid = self.child.pid
        h.beside.add(self.pid)
        ready = self.child.stdout.readline()
        at = re.match(r"hmm serve: listening on (ofi://.*:(\d+))\n$", ready)
        if not at:
            err = self.child.communicate()[1]
            if "not installed" in err:
                skip(err.strip())
            raise Failed(f"the server does not start: {ready}{err}")
        self.spec, self.port = at[1], int(at[2])

    def alive(self):
        return self.child.poll() is None

    def end(self):
        """Told to, it ends well; returns what it has said."""
        if not self.alive():
            raise Failed(f"the server has died: {self.child.returncode}, {self.child.stderr.read()}")
        self.child.terminate()
        err = self.child.communicate()[1]
        if self.child.returncode:
            raise Failed(f"the server ends with {self.child.returncode}: {err}")
        return err


def require(cond, what, *more):
    if not cond:
        raise Failed(f"{what}: {more}")


def prog(h, name):
    return os.path.join(h.build, "test/run", name)


def key_file(dirname, name, byte):
    path = os.path.join(dirname, name)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as f:
        f.write(bytes([byte]) * 32)
    return path


def far(r, least):
    """At least so many pages went to the last device, and came back from it."""
    d = r.stats()["devices"][-1]
    require(d["copied_in"] >= least and d["copied_out"] >= least // 4, "little went to the server", d)


def every_byte(h):
    """In front of the server a little lz4: pages move on from there, too."""
    s = Server(h)
    r = h.run([prog(h, "load/rw"), "rand", "4", "64", "2", str(LONG)], ram="24M", to=f"lz4:4M,{s.spec}")
    far(r.expect(min_out=5000), 5000)
    s.end()


def remote_alone(h):
    s = Server(h)
    r = h.run([prog(h, "load/rw"), "seq", "2", "48", "1", str(LONG)], ram="24M", to=s.spec)
    far(r.expect(min_out=5000), 5000)
    s.end()


def processes(h):
    """Forks share what is at the server, and change it."""
    s = Server(h)
    with open(os.path.join(h.build, "test-tier-phase"), "w") as phase:
        r = h.run([prog(h, "load/tree"), "fork", "4", "32", "4", phase.name], ram="24M", to=f"lz4:2M,{s.spec}")
    os.unlink(phase.name)
    far(r.expect(min_out=2000), 2000)
    s.end()


def server_full(h):
    """What does not fit goes to the next device."""
    s = Server(h, memory="12M")
    r = h.run([prog(h, "load/rw"), "rand", "2", "64", "1", str(LONG)], ram="24M",
              to=f"lz4:1M,{s.spec},file:/var/tmp")
    r.expect(min_out=5000)
    remote, disk = r.stats()["devices"][1:3]
    require(remote["copied_in"] > 1000, "little went to the server", remote)
    require(remote["pages"] <= 3072, "more is there than there is room for", remote)
    require(disk["copied_in"] > 1000, "little went to the file", disk)
    s.end()


def keys(h):
    """The right key; a relative path is the caller's."""
    r = h.start(["true"])
    key = key_file(r.dir.name, "key", 65)
    other = key_file(r.dir.name, "other", 66)
    r.wait()
    s = Server(h, key=key)
    w = h.run([prog(h, "load/rw"), "rand", "2", "40", "1", str(LONG)], ram="24M", to=f"lz4:1M,{s.spec},key=key",
              cwd=r.dir.name)
    far(w.expect(min_out=3000), 3000)
    require(s.alive(), "the server is gone")
    for spec, line in (f"{s.spec},key={other}", "the server's key is another one"), (s.spec, "wants a key"):
        w = h.run(["true"], to=spec)
        w.expect(rc=125, min_out=0, stderr=f"^hmm run: ofi://127.0.0.1:{s.port}: .*{line}")
        require(w.err().count("\n") == 1, "more than a line", w.err())
    err = s.end()
    require(re.search(r"127\.0\.0\.1:\d+: refused: its key is not the one in", err), "the server does not say so", err)
    require(err.count("\n") <= 2, "the server says too much", err)


def refused(h):
    """Nobody there, no such key file, another machine without a key: a line, and nothing is run."""
    s = Server(h)
    s.end()
    for spec, line in ((s.spec, "nobody listens there"), (f"{s.spec},key=/nosuch", "key file /nosuch"),
                       (f"{s.spec},key=/", "key file /: Is a directory"),
                       ("ofi://0.0.0.1:1", "only with a key"), ("ofi://127.0.0.1", "say ofi://HOST:PORT")):
        h.run(["true"], to=spec).expect(rc=125, min_out=0, stderr=line)
    for more, line in ((["--listen", "ofi://0.0.0.0:0", "--memory", "1M"], "give a key"),
                       (["--listen", "ofi://127.0.0.1:0"], "^usage"),
                       (["--listen", "ofi://127.0.0.1:0", "--memory", "x"], "not a size"),
                       (["--listen", "here", "--memory", "1M"], "say ofi://HOST:PORT")):
        p = subprocess.run([h.exe, "serve", *more], capture_output=True, text=True)
        require(p.returncode == 125 and re.search(line, p.stderr), "not refused rightly", more, p)


def held(h, s, mode, timeout=10, **kw):
    """hold, with most of its memory at the server.  The run and its file."""
    r = h.start([prog(h, "tier/hold"), mode, "64", "go"], ram="32M", to=f"lz4:1M,{s.spec},timeout={timeout}", **kw)
    r.until(lambda: "filled" in r.out(), "it does not get to the end of its memory")
    return r


def go(r):
    with open(os.path.join(r.cwd, "go"), "w"):
        pass


def with_dir(f):
    """Run in a directory of its own, where hold looks for its file."""
    import tempfile

    def test(h):
        with tempfile.TemporaryDirectory(prefix="hmmtest-") as d:
            f(h, d)
    test.__name__ = f.__name__
    test.__doc__ = f.__doc__
    return test


def lost(r, s, line):
    """Every page is right, or was lost with one line."""
    m = re.search(r"^(\d+) right, (\d+) lost$", r.out(), re.M)
    require(m and int(m[2]) > 1000, "little was lost: this tests nothing", r.out(), r.err())
    require(len(re.findall(line, r.err(), re.M)) == 1, "not one line that names the peer", r.err())


@with_dir
def server_killed(h, d):
    s = Server(h)
    r = held(h, s, "all", cwd=d)
    s.child.kill()
    s.child.wait()
    r.cwd = d
    go(r)
    r.wait().expect(min_out=1000)
    lost(r, s, f"^hmm run: pages of process .*: device ofi://127.0.0.1:{s.port}.* has lost its peer")


@with_dir
def server_killed_early(h, d):
    """While pages are on their way out: what has not gone stays, and the program ends as it would by SIGBUS."""
    s = Server(h)
    r = h.start([prog(h, "load/rw"), "rand", "4", "128", "1", "50"], ram="32M", to=f"lz4:1M,{s.spec}", cwd=d)

    def there():
        a = subprocess.run([h.exe, "stat", str(r.pid), "--json"], capture_output=True, text=True, check=False)
        return a.returncode == 0 and json.loads(a.stdout)["devices"][1]["pages"] > 3000

    r.until(there, "nothing comes to the server")
    s.child.kill()
    r.wait().expect(rc=-signal.SIGBUS, stderr=f"device ofi://127.0.0.1:{s.port}.* has lost its peer")
    require("generation" not in r.err(), "wrong bytes", r.err())


@with_dir
def server_stopped(h, d):
    """It does not answer: that is found out at the deadline."""
    s = Server(h)
    r = held(h, s, "die", timeout=1, cwd=d)
    os.kill(s.pid, signal.SIGSTOP)
    r.cwd = d
    go(r)
    r.wait().expect(rc=-signal.SIGBUS, stderr=f"device ofi://127.0.0.1:{s.port}.* has lost its peer")
    s.child.kill()


def server_hangup(h):
    """Ends it, as ^C does; but where both are ignored when it starts (nohup, "&" of a script) it goes on."""
    for sig in (signal.SIGHUP, signal.SIGINT):
        s = Server(h)
        s.child.send_signal(sig)
        require(s.child.wait(timeout=30) == 0, "it does not end well", sig, s.child.returncode)
        s = Server(h, ignored=sig)
        s.child.send_signal(sig)
        try:
            s.child.wait(timeout=1)
            raise Failed(f"{sig!r} was ignored and ends it: {s.child.returncode}")
        except subprocess.TimeoutExpired:
            s.end()


def server_unheard(h):
    """That it cannot say where it listens, it says."""
    with open("/dev/full", "w") as full:
        p = subprocess.Popen([h.exe, "serve", "--listen", "ofi://127.0.0.1:0", "--memory", "64M"], stdout=full,
                             stderr=subprocess.PIPE, text=True)
    h.beside.add(p.pid)
    hangs = threading.Timer(60, p.kill)
    hangs.start()
    said = p.stderr.readline()
    hangs.cancel()
    if "not installed" in said:
        skip(said.strip())
    p.terminate()
    require(re.match(r"hmm serve: writing: .*; listening on ofi://127.0.0.1:\d+\n$", said), "nothing is said", said)
    require(p.wait(timeout=60) == 0, "it does not end well", p.returncode)


@with_dir
def needs_none(h, d):
    s = Server(h)
    r = held(h, s, "none", cwd=d)
    s.child.kill()
    s.child.wait()
    r.cwd = d
    go(r)
    r.wait().expect(min_out=1000)
    require("lost" not in r.err(), "something was lost that nobody wanted", r.err())


class Recorder:
    """Stands between a client and a server and keeps what the client sends, by connection."""

    def __init__(self, port):
        self.to = port
        self.sent = []
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        threading.Thread(target=self.listen, daemon=True).start()

    def listen(self):
        while True:
            a = self.socket.accept()[0]
            b = socket.create_connection(("127.0.0.1", self.to))
            self.sent.append([])
            threading.Thread(target=self.pump, args=(a, b, self.sent[-1]), daemon=True).start()
            threading.Thread(target=self.pump, args=(b, a, None), daemon=True).start()

    @staticmethod
    def pump(a, b, keep):
        try:
            while True:
                data = a.recv(65536)
                if not data:
                    break
                if keep is not None:
                    keep.append(data)
                b.sendall(data)
        except OSError:
            pass
        try:
            b.shutdown(socket.SHUT_WR)
        except OSError:
            pass


def garbage(h):
    """Rubbish, and what a client has once sent: as it was, changed, cut.  The server lives, and serves."""
    s = Server(h)
    rec = Recorder(s.port)
    work = [prog(h, "load/rw"), "seq", "1", "40", "1", "8" if LONG > 1 else "4"]  # long enough for more than the burst that it may have
    h.run(work, ram="24M", to=f"lz4:1M,ofi://127.0.0.1:{rec.port}").expect(min_out=1000)
    seed = int(os.environ.get("HMM_TEST_SEED", "1"))
    print("seed", seed)
    rnd = random.Random(seed)
    require(len(rec.sent) == 4, "not the connections that were expected", len(rec.sent))
    # One that is in use all the while.
    r = h.start([prog(h, "load/rw"), "rand", "2", "40", "1", "2"], ram="24M", to=f"lz4:1M,{s.spec}")
    for i in range(500 if LONG > 1 else 32):
        require(s.alive(), "the server has died", s.child.poll())
        sent = rnd.choice(rec.sent)
        hello = len(sent[0])
        data = bytearray(b"".join(sent)[:rnd.choice((20, 40, 200, 1000, 5000, 200000))])
        kind = i % 4
        if kind == 0:
            data = bytearray(rnd.randbytes(rnd.choice((0, 1, 8, 32, 80, 4096, 100000))))
        if kind == 1 and data:
            for _ in range(rnd.choice((1, 3, 20))):
                data[rnd.randrange(len(data))] = rnd.randrange(256)
        if kind == 2:
            data = data[:rnd.randrange(len(data) + 1)]
        with socket.create_connection(("127.0.0.1", s.port)) as c:
            c.settimeout(0.05)
            try:
                # The library's own greeting first, and its answer awaited, so that the rest gets through.
                c.sendall(data[:hello])
                try:
                    c.recv(4096)
                except TimeoutError:
                    pass
                c.sendall(data[hello:])
                c.recv(4096)
            except OSError:
                pass
    r.wait().expect(min_out=1000)
    h.run(work, ram="24M", to=f"lz4:1M,{s.spec}").expect(min_out=1000)
    err = s.end()
    require("refused" in err, "nothing was refused", err)


def server_unread(h):
    """Nobody reads its standard error: strangers keep it neither from serving nor from ending."""
    unread, full = os.pipe()
    fcntl.fcntl(full, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(full, False)
    try:
        while True:
            os.write(full, b".")
    except BlockingIOError:
        os.set_blocking(full, True)
    s = Server(h, stderr=full)
    os.close(full)
    rec = Recorder(s.port)
    h.run(["true"], to=f"ofi://127.0.0.1:{rec.port}").expect(min_out=0)
    strangers = []
    for i in range(70):
        c = socket.create_connection(("127.0.0.1", s.port))
        c.settimeout(120)
        strangers.append(c)
        c.sendall(rec.sent[0][0])  # libfabric's greeting, and then nothing any more
        try:
            c.recv(4096)
        except TimeoutError:
            raise Failed(f"stranger {i} is neither let in nor turned away") from None
        except ConnectionResetError:
            pass
    for c in strangers:
        c.close()
    while h.run(["true"], to=s.spec).rc:  # until those places are free
        require(s.alive(), "the server has died", s.child.poll())
    s.child.terminate()
    try:
        require(s.child.wait(timeout=120) == 0, "it does not end well", s.child.returncode)
    except subprocess.TimeoutExpired:
        s.child.kill()
        raise Failed("it does not end") from None
    os.close(unread)


main_of(every_byte, remote_alone, processes, server_full, keys, refused, server_killed, server_killed_early,
        server_stopped, server_hangup, server_unheard, needs_none, garbage, server_unread)
