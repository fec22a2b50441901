#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The command itself: a program under it looks like the program, and bad input gets one line and a status.

front.py BUILD [NAME...]
"""
import ctypes
import fcntl
import json
import os
import pty
import re
import resource
import select
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from hmmtest import (RAM, SPIN, SPIN_RAM, Failed, comm, descendants, dump, listens, main_of, ppid, sized,  # noqa: E402
                     skip, state)

NOBODY = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]


def built(h, name):
    return os.path.join(h.build, "test/run/life", name)


def check(cond, what):
    if not cond:
        raise Failed(what)


# ------------------------------------------------------------ as if it were the program


def status(h):
    for n in (0, 1, 2, 77, 124, 125, 126, 127, 128, 255):
        r = h.run(["sh", "-c", f"exit {n}"])
        check(r.rc == n, f"exit {n} became {r.rc}: {r.err()}")
        check(not r.err(), f"said: {r.err()}")
    for s in (signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV, signal.SIGINT, signal.SIGPIPE, signal.SIGABRT):
        r = h.run(["sh", "-c", f"kill -{int(s)} $$"])
        check(r.rc == -s, f"{s.name} became {r.rc}: {r.err()}")


def signals(h):
    """What is sent to the front alone reaches the program, once."""
    for s in ("HUP", "INT", "QUIT", "TERM", "USR1", "USR2", "WINCH", "ALRM", "RTMIN+3"):
        r = h.start(["bash", "-c", f"trap 'echo got; exit 5' {s}; echo ready; while :; do sleep 0.02; done"])
        r.until(lambda: "ready" in r.out(), "not ready")
        num = signal.SIGRTMIN + 3 if "RT" in s else getattr(signal, "SIG" + s)
        os.kill(r.pid, num)
        r.wait()
        check(r.rc == 5 and r.out().count("got") == 1, f"{s}: status {r.rc}, {r.out()!r}: {r.err()}")


def hangup(h):
    """The terminal of which hmm run is the session's leader is closed: the program is told, as the leader it would be."""
    with tempfile.TemporaryDirectory(prefix="hmmtest-") as d:
        told = os.path.join(d, "told")
        pid, fd = pty.fork()
        if not pid:
            os.execv(h.exe, [h.exe, "run", "--", "sh", "-c",
                             f"trap 'echo hup >{told}; exit 5' HUP; echo ready; while :; do sleep 0.02; done"])
        text = b""
        while b"ready" not in text:
            text += os.read(fd, 4096)
        os.close(fd)
        end = time.monotonic() + 60
        while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
            if time.monotonic() > end:
                raise Failed("it goes on without a terminal")
            time.sleep(0.01)
        check(os.waitstatus_to_exitcode(ended[1]) == 5 and os.path.exists(told), f"{ended}")


TIMERS = ("ITIMER_REAL", "ITIMER_VIRTUAL", "ITIMER_PROF")


def from_before(h):
    """What an exec leaves to a program is the program's: timers, and signals for what it has open."""
    def timers():
        for n, t in enumerate(TIMERS):
            signal.setitimer(getattr(signal, t), 3600, n + 7)

    r = h.run([sys.executable, "-c", f"import signal\nfor t in {TIMERS}: print(*signal.getitimer(getattr(signal, t)))"],
              preexec_fn=timers)
    left = [[float(x) for x in line.split()] for line in r.out().splitlines()]
    check([t[1] for t in left] == [7, 8, 9] and all(0 < t[0] <= 3600 for t in left), f"{left}: {r.err()}")
    r, w = os.pipe()
    run = h.start(["bash", "-c", "trap 'echo got; exit 5' IO; echo ready; while :; do sleep 0.02; done"], stdin=r,
                  preexec_fn=lambda: (fcntl.fcntl(0, fcntl.F_SETOWN, os.getpid()),
                                      fcntl.fcntl(0, fcntl.F_SETFL, os.O_ASYNC)))
    os.close(r)
    run.until(lambda: "ready" in run.out(), "not ready")
    os.write(w, b"x")
    run.wait(60)
    os.close(w)
    check(run.rc == 5 and run.out().count("got") == 1, f"status {run.rc}, {run.out()!r}: {run.err()}")


def streams(h):
    r, w = os.pipe()
    run = h.start(["sh", "-c", "cat; echo to-err >&2"], stdin=r)
    os.close(r)
    os.write(w, b"through\n" * 1000)
    os.close(w)
    run.wait()
    check(run.out() == "through\n" * 1000 and run.err() == "to-err\n", f"{run.out()[:80]!r} {run.err()!r}")
    # What is closed stays closed, and in nobody's way.
    for closed in ([0], [1], [2], [0, 1, 2]):
        def shut(closed=closed):
            for fd in closed:
                os.close(fd)

        find = "".join(f"test ! -e /proc/self/fd/{fd} && " for fd in closed)
        spin = f"{built(h, 'life-spin')} 96 0 1 && " if len(closed) > 1 else ""
        r = h.run(["sh", "-c", f"{find}{spin}exit 5"], ram="48M", preexec_fn=shut)
        r.expect(rc=5, min_out=bool(spin))


def environment(h):
    """The program, and what it starts, see what they would have seen."""
    libm = subprocess.run(["sh", "-c", "ldconfig -p | awk '/libm.so.6 .*x86-64/ { print $NF; exit }'"],
                          capture_output=True, text=True, check=False).stdout.strip()
    for extra in ({}, {"LD_PRELOAD": libm}, {"HMM_RUN_NOT": "x", "EMPTY": ""}, {"LD_PRELOAD": ""}):
        env = dict(os.environ, **extra)
        for cmd in (["env"], ["sh", "-c", "env"], ["env", "sh", "-c", "env; env -u HOME env"],
                    ["python3", "-c", "import os; print(sorted(os.environ.items()))"]):
            native = subprocess.run(cmd, env=env, capture_output=True, text=True, check=True).stdout
            ours = h.run(cmd, env=env)
            check(ours.rc == 0 and ours.out() == native, f"{cmd} {extra}:\n{native}\nunder us:\n{ours.out()}{ours.err()}")


def meant_for(h):
    """systemd's sockets and watchdog are for whom it has started, by number: the program finds its own there."""
    theirs = 'test "$LISTEN_PID" = $$ && test "$WATCHDOG_PID" = $$ && test -z "$LISTEN_PIDFDID"'
    start = f"LISTEN_PID=$$ LISTEN_PIDFDID=1 WATCHDOG_PID=$$ exec {h.exe} run -- sh -c '{theirs}'"
    check(not subprocess.run(["sh", "-c", start], check=False).returncode, "they are for somebody else")
    r = h.run(["sh", "-c", "echo $LISTEN_PID $LISTEN_PIDFDID"], env=dict(os.environ, LISTEN_PID="1", LISTEN_PIDFDID="2"))
    check(r.out() == "1 2\n", f"what is for another is {r.out()}")


def valgrind(h):
    """It ends a program at a clone() that it does not know, as one for an agent."""
    if not shutil.which("valgrind"):
        skip("valgrind is not installed")
    r = h.run(["valgrind", "-q", "/bin/true"])
    check(r.rc == 0 and not r.err(), f"status {r.rc}: {r.err()}")


class Terminal:
    """A shell with job control in a terminal of its own."""

    def __init__(self):
        self.text = ""
        self.pid, self.fd = pty.fork()
        if not self.pid:
            os.environ["PS1"] = "$ "
            os.execvp("bash", ["bash", "--norc", "--noprofile", "-i"])

    def send(self, text):
        os.write(self.fd, text.encode())

    def until(self, pattern, timeout=60):
        """Read until @pattern was printed (a watchdog, no more); what came before is gone from then on."""
        end = time.monotonic() + timeout
        while not re.search(pattern, self.text):
            if select.select([self.fd], [], [], 0.1)[0]:
                try:
                    self.text += os.read(self.fd, 4096).decode(errors="replace")
                except OSError:
                    raise Failed(f"the terminal closed; {self.text!r}") from None
            if time.monotonic() > end:
                dump(descendants(self.pid))
                raise Failed(f"never seen /{pattern}/: {self.text!r}")
        m = re.search(pattern, self.text)
        self.text = self.text[m.end():]
        return m

    def program(self, name):
        found = [p for p in descendants(self.pid) if comm(p) == name]
        check(len(found) == 1, f"{name}: {found}")
        return found[0]

    def wait_state(self, pid, states, timeout=60):
        end = time.monotonic() + timeout
        while state(pid) not in states:
            if time.monotonic() > end:
                raise Failed(f"{pid} is {state(pid)}, not {states}")
            time.sleep(0.01)


def job_control(h):
    t = Terminal()
    t.send(f"{h.exe} run --ram {SPIN_RAM} -- {built(h, 'life-spin')} {SPIN} 0 0\n")
    t.until(r"spinning (\d+)")
    pid = t.program("life-spin")
    for how in ("\x1a", f"kill -STOP {pid}", "\x1a"):
        if how == "\x1a":
            t.send(how)
        else:
            os.kill(pid, signal.SIGSTOP)
        t.until("Stopped")
        t.wait_state(pid, "Tt")
        t.send("echo here-$((1+1))\n")
        t.until("here-2")
        t.send("fg\n")
        t.wait_state(pid, "RSD")
    t.send("\x1a")
    t.until("Stopped")
    t.send("bg\n")
    t.wait_state(pid, "RSD")
    t.send("fg\n")
    t.until("hmm run")
    time.sleep(0.1)
    t.send("\x03")
    t.until(r"\$ ")
    t.send("echo status=$?\n")
    m = t.until(r"status=(\d+)")
    check(m.group(1) == "130", f"after ^C the status is {m.group(1)}")
    check(not os.path.exists(f"/proc/{pid}/status"), "the program is still there")
    t.send("exit\n")
    os.waitpid(t.pid, 0)


def by_its_pid(h):
    """Who stops the program by its own pid, and lets it go on, or kills it, finds hmm run going with it."""
    ends = ["python3", "-c", "import ctypes, os, signal, threading\nthreading.Thread(target=lambda: (print('up', flush=True), "
            "os.read(0, 1), os.write(1, b'on\\n'), os._exit(0))).start()\nctypes.CDLL(None).syscall(60, 0)"]
    for cmd in ["sh", "-c", "echo up; read x; echo on"], ends:
        for how in signal.SIGCONT, signal.SIGKILL:
            r = h.start(cmd, stdin=subprocess.PIPE)
            r.until(lambda: "up" in r.out() and (cmd != ends or state(r.program()) == "Z"), "it does not get going")
            pid, sup = r.program(), r.supervisor()

            def looks():
                with open(f"/proc/{sup}/status", encoding="utf-8") as f:
                    return int(re.search(r"^voluntary_ctxt_switches:\s*(\d+)", f.read(), re.M).group(1))

            os.kill(pid, signal.SIGSTOP)
            r.until(lambda: state(r.pid) == "T", "hmm run does not stop")
            r.child.stdin.write(b"\n")
            r.child.stdin.close()
            before = looks()
            r.until(lambda: looks() > before + 4, "the supervisor does not look")
            check(state(r.pid) == "T" and "on" not in r.out(), "it goes on by itself")
            os.kill(pid, how)
            r.wait(60)
            want = (0, "up\non\n") if how == signal.SIGCONT else (-how, "up\n")
            check((r.rc, r.out()) == want, f"{cmd}, {how!r}: status {r.rc}, {r.out()!r}: {r.err()}")


def daemon(h):
    """hmm run returns when the program does; the daemon that it left goes on being served."""
    with tempfile.TemporaryDirectory(prefix="hmmtest-") as d:
        r = h.start([built(h, "life-changes"), "daemonize"], ram=RAM, env=dict(os.environ, LIFE_DIR=d))
        r.wait(orphans=False)
        r.expect()
        check(not os.path.exists(os.path.join(d, "done")), "it was not waited for")
        # No ancestor of it is the front any more; it is told by its space.
        def heirs():
            return [p for p in descendants() if comm(p) == "life-changes" and ppid(p) == os.getpid() and
                    state(p) not in "Z" and os.getsid(p) not in (p, os.getsid(0))]

        r.until(heirs, "where is the daemon?")
        pid = heirs()[0]
        r.until(lambda: ask(h, pid).returncode == 0, "it is not told by its space")
        for back in ((), ("--restore",)):
            a = ask(h, pid, "--json", *back)
            check(a.returncode == 0 and pid in [s["pid"] for s in json.loads(a.stdout)["spaces"]], f"stat: {a}")
        with open(os.path.join(d, "go"), "w"):
            pass
        r.wait()  # for the daemon, its agent and the supervisor
        with open(os.path.join(d, "done")) as f:
            word = f.read()
        check(word == "right\n", f"the daemon says {word!r}")


LEAVE = {
    "fork": ["python3", "-c", "import os, sys\nif os.fork():\n    os._exit(0)\nopen(sys.argv[1]).read()"],
    "spawn": ["python3", "-c", "import os, sys\nos.posix_spawnp('cat', ['cat', sys.argv[1]], os.environ)\nos._exit(0)"],
    "shell": ["sh", "-c", 'cat "$0" & exit 0'],
}


def left_at_once(h):
    """Whoever ends right after it has started somebody has had nothing moved: its child is served all the same."""
    for how, cmd in LEAVE.items():
        with tempfile.TemporaryDirectory(prefix="hmmtest-") as d:
            gate = os.path.join(d, "gate")
            os.mkfifo(gate)
            r = h.start([*cmd, gate], ram="48M")
            r.wait(orphans=False)
            check(r.rc == 0, f"{how}: status {r.rc}: {r.err()}")
            r.until(lambda: any(ask(h, p).returncode == 0 for p in descendants() if comm(p).startswith(("python3", "cat"))),
                    f"{how}: the child is not served")
            with open(gate, "w"):
                pass
            r.wait()


# ------------------------------------------------------------------- figures

STATS = {"budget_bytes", "total_bytes", "resident_bytes", "peak_bytes", "away_pages", "away_bytes", "store_ram_bytes",
         "pages_out", "pages_in", "clean_drops", "zero_filled", "faults", "held", "held_in_vain", "registrations", "unregistered", "moved_unsaid", "poisoned", "ratio", "seconds", "devices",
         "spaces"}


def ask(h, *args, prefix=()):
    return subprocess.run([*prefix, h.exe, "stat", *map(str, args)], capture_output=True, text=True, check=False,
                          timeout=120)


def stat_running(h):
    """Of one that runs, and of one that is stopped; and everything back on request."""
    r = h.start([built(h, "life-spin"), SPIN, "0", "0"], ram=SPIN_RAM)
    r.until(lambda: "spinning" in r.out(), "it does not get going")
    prog = r.program()
    for stopped in (False, True):
        if stopped:
            os.kill(prog, signal.SIGSTOP)
            r.until(lambda: state(prog) == "T" or state(r.pid) == "T", "it does not stop")
        for pid in (r.pid, prog):
            a = ask(h, pid, "--json")
            check(a.returncode == 0, f"stat {pid}: {a.stderr}")
            s = json.loads(a.stdout)
            check(STATS <= set(s), f"missing: {STATS - set(s)}")
            check(s["away_pages"] > 0 and s["budget_bytes"] == int(SPIN_RAM[:-1]) << 20, f"{s}")
            a = ask(h, pid)
            check(a.returncode == 0 and re.search(r"^away .*MiB", a.stdout, re.M), f"{a}")
    for how in ((), ("--json",)):
        a = ask(h, prog, *how, prefix=("sh", "-c", 'exec "$@" >/dev/full', "-"))
        check(a.returncode == 125 and a.stderr.startswith("hmm stat: writing: "), f"a full disk: {a}")
    a = ask(h, r.pid, "--restore", "--json")
    check(a.returncode == 0 and json.loads(a.stdout)["away_pages"] == 0, f"not all came back: {a}")
    os.kill(prog, signal.SIGCONT)
    os.kill(r.pid, signal.SIGCONT)
    r.until(lambda: state(prog) in "RSD", "it does not go on")
    os.kill(prog, signal.SIGTERM)
    r.wait()
    check(r.rc == -signal.SIGTERM, f"status {r.rc}: {r.err()}")
    check(not re.search("page .* word", r.err()), r.err())
    for args, want in ((["1"], 1), (["0"], 125), (["x"], 125), ([], 125), ([str(r.pid)], 1), (["--bogus", "1"], 125)):
        a = ask(h, *args)
        check(a.returncode == want and a.stderr.count("\n") == 1, f"stat {args}: {a}")


def stat_busy(h):
    """Who cannot be asked at this moment is not somebody else's."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(f"\0hmm/{os.getpid()}/00")
        listener.listen(8)

        def hang_up():
            listener.accept()[0].close()  # it looks whose it is
            with listener.accept()[0] as asked:
                asked.recv(64)

        ends = threading.Thread(target=hang_up)
        ends.start()
        a = ask(h, os.getpid())
        check(a.returncode == 1 and "has not answered" in a.stderr, f"who hangs up: {a}")
        ends.join()
        listener.listen(0)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as first:
            first.connect(f"\0hmm/{os.getpid()}/00")
            a = ask(h, os.getpid())
            check(a.returncode == 1 and "try again" in a.stderr, f"who accepts nobody: {a}")


def keeper_ends(h):
    """Who has seen the end of hmm run finds nothing open any more that its chain of devices had: a disk can be unmounted."""
    for _ in range(10):
        r = h.start(["true"], stats=False)
        r.child.wait()
        left = [p for p in descendants() if comm(p) == "hmm-keeper"]
        check(not left, f"the keeper is left: {left}")
        r.wait()


def restore_litter(h):
    """All that is away comes back, also to children that were forked while it did."""
    for _ in range(4):
        r = h.start([built(h, "life-fork"), "litter"], ram="32M")
        r.until(lambda: "ready" in r.out(), "it does not get going")
        prog = r.program()
        os.kill(prog, signal.SIGUSR1)
        a = ask(h, r.pid, "--restore", "--json")
        check(a.returncode == 0, f"{a}")
        s = json.loads(a.stdout)
        check(s["pages_out"] > 1000 and s["away_pages"] == 0, f"not all came back: {a}")
        os.kill(prog, signal.SIGKILL)
        r.wait()


def stat_many(h):
    """More processes than fit one packet of an answer, or a list of fixed length."""
    n = 650
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 16 * n:
        skip(f"no right to {16 * n} open files")
    # One that is between its fork and the end of its exec is on no list for a moment: each says that it is past that.
    r = h.start(["bash", "-c", f"exec 3<&0; for ((i = 0; i < {n}; i++)); do sh -c 'echo up; read x <&3' & done; wait"],
                ram="1G", stdin=subprocess.PIPE)
    r.until(lambda: r.out().count("up\n") == n, "it does not get going")

    def spaces(*args):
        a = ask(h, r.pid, "--json", *args)
        check(a.returncode == 0, f"stat: {a.stderr}")
        return json.loads(a.stdout)["spaces"]

    for args in ((), ("--restore",)):
        listed = spaces(*args)
        check(len(listed) == n + 1, f"{len(listed)} of {n + 1} are listed")
    # A client that does not read keeps nobody else waiting.
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as silent:
        silent.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        silent.connect("\0" + listens(r.pid))
        silent.send(struct.pack("II", 0x74617473, 0))
        check(silent.recv(1, socket.MSG_PEEK) == b"{", "no answer has begun")
        check(len(spaces()) == n + 1, "another one is not answered")
    r.child.stdin.close()
    r.wait()


def elsewhere(h):
    """The supervisor does not hold the directory that it was started in, and files named from there are right."""
    with tempfile.TemporaryDirectory(prefix="hmmtest-") as d:
        os.mkdir(os.path.join(d, "tier"))
        r = h.start([built(h, "life-spin"), SPIN, "0", "0"], ram=SPIN_RAM, to="lz4,file:tier", stats=False,
                    opts=["--stats", "figures"], cwd=d)
        r.until(lambda: "spinning" in r.out(), "it does not get going")
        check(os.readlink(f"/proc/{r.supervisor()}/cwd") == "/", "the supervisor keeps the directory busy")
        os.kill(r.program(), signal.SIGTERM)
        r.wait()
        with open(os.path.join(d, "figures"), encoding="utf-8") as f:
            check(json.load(f)["pages_out"] > 0, "nothing moved")


def emptied_file(h):
    """What was in a file of the user's own does not outlive the tree, and the next one can have it."""
    with tempfile.TemporaryDirectory(prefix="hmmtest-") as d:
        path = os.path.join(d, "pages")
        open(path, "w", encoding="utf-8").close()
        os.chmod(path, 0o600)
        for to in (f"file:{path}", f"lz4:1M,file:{path}", f"faulty:in=1000000:file:{path}"):
            r = h.run([built(h, "life-spin"), SPIN, "0", "1"], ram=SPIN_RAM, to=to)
            r.expect()
            check(r.stats()["pages_out"] > 0, "nothing went there")
            check(os.stat(path).st_size == 0, f"{to}: {os.stat(path).st_size} bytes are left")
        # A descendant outlives the program that was asked for.
        left = f"{built(h, 'life-spin')} {SPIN} 0 1 >/dev/null 2>&1 &"
        r = h.run(["sh", "-c", left + f" until [ -s {path} ]; do sleep 0.1; done"], ram=SPIN_RAM, to=f"file:{path}", stats=False)
        check(r.rc == 0, r.err())
        r.until(lambda: os.stat(path).st_size == 0, "what a descendant had there is left")


def figures(h):
    r = h.run([built(h, "life-spin"), SPIN, "0", "1"], ram=SPIN_RAM, opts=["-v"])
    r.expect(stderr=rf"^hmm run: peak [\d.]+ MiB of {SPIN_RAM[:-1]}.0 MiB, .* pages out, \d+ pages in")
    check(STATS <= set(r.stats()), f"missing: {STATS - set(r.stats())}")
    check(len([x for x in r.err().splitlines()]) == 1, r.err())
    every = r.stats()
    names = {*every, *every["devices"][0], *(every["spaces"] or [{}])[0]}
    top = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../..")
    for doc in ("doc/stats.md", "man/hmm-stat.1"):
        with open(os.path.join(top, doc)) as f:
            missing = names - set(re.findall(r"\w+", f.read()))
        check(not missing, f"{doc} does not have {sorted(missing)}")
    r = h.run(["true"], opts=["-v"])
    check(r.rc == 0 and r.err().count("\n") == 1, r.err())


def full_fifo(d):
    """Its name, and a descriptor of each end."""
    fifo = os.path.join(d, "fifo")
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
    try:
        while True:
            os.write(writer, b" " * 4096)
    except BlockingIOError:
        pass
    return fifo, reader, writer


def writes(r):
    pid = r.supervisor()
    tasks = os.listdir(f"/proc/{pid}/task") if pid else []
    return any("pipe_write" in _wchan(f"/proc/{pid}/task/{t}") for t in tasks)


def unread_figures(h):
    """Figures that nobody reads keep nobody who wants hmm run to end; it ends as the program did."""
    for sig in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
        with tempfile.TemporaryDirectory(prefix="hmmtest-") as d:
            fifo, reader, writer = full_fifo(d)
            r = h.start(["sh", "-c", "exit 3"], stats=False, opts=["--stats", fifo])
            r.until(lambda: writes(r), "the figures are not being written")
            check(r.child.poll() is None, "the front did not wait for the figures")
            os.kill(r.pid, sig)
            r.wait(60)
            check(r.rc == 3 and not r.err(), f"{sig!r}: status {r.rc}: {r.err()}")
            os.close(reader)
            os.close(writer)


def slow_figures(h):
    """Nobody who lives on waits for the file that the figures go to."""
    with tempfile.TemporaryDirectory(prefix="hmmtest-") as d:
        fifo, reader, writer = full_fifo(d)
        r = h.start(["sh", "-c", "sleep 3600 >/dev/null 2>&1 & echo $!"], stats=False, opts=["--stats", fifo])

        r.until(lambda: writes(r), "the figures are not being written")
        left = int(r.out())
        a = subprocess.run([h.exe, "stat", str(left), "--json"], capture_output=True, text=True, check=False, timeout=60)
        check(a.returncode == 0 and json.loads(a.stdout)["spaces"], f"{a}")
        check(r.child.poll() is None, "the front did not wait for the figures")
        os.close(writer)
        text = b""
        while r.child.poll() is None or not text.strip():
            try:
                text += os.read(reader, 65536)
            except BlockingIOError:
                time.sleep(0.01)
        os.close(reader)
        check(STATS <= set(json.loads(text)), f"figures: {text[-200:]}")
        os.kill(left, signal.SIGKILL)
        r.wait()


def open_figures(h):
    """Figures go to what is open already: a pipe, the program's own output, a file that has only a number."""
    run = f"{h.exe} run --stats"
    with tempfile.TemporaryDirectory(prefix="hmmtest-") as d:
        named, both = os.path.join(d, "named"), os.path.join(d, "both")
        for cmd in (f"{run} /dev/stdout -- echo of-its-own | cat", f"{run} >(cat) -- echo of-its-own | cat",
                    f"{run} /dev/stdout -- echo of-its-own >{both}; cat {both}",
                    f"{run} /dev/fd/7 -- echo of-its-own 7>{named}; cat {named}",
                    f"exec 7>{named} 8<{named}; rm {named}; {run} /dev/fd/7 -- echo of-its-own; cat <&8"):
            p = subprocess.run(["bash", "-c", cmd], capture_output=True, text=True, check=False, timeout=120)
            said = p.stdout.replace("of-its-own\n", "", 1)
            check(not p.returncode and not p.stderr and said != p.stdout, f"{cmd}: {p}")
            check(said and STATS <= set(json.loads(said)), f"{cmd}: {p}")


def _wchan(task):
    try:
        with open(f"{task}/wchan", encoding="utf-8") as f:
            return f.read()
    except OSError:
        return ""


def restore_lost(h):
    """What cannot come back is told of."""
    # More than 4096 pages are away then; some come back before, more of them where everything is slow.
    r = h.start([built(h, "life-fork"), "litter"], ram="32M", to="faulty:out=2000:lz4")
    r.until(lambda: "ready" in r.out(), "it does not get going")
    a = ask(h, r.pid, "--restore")
    check(a.returncode == 1 and not a.stdout and re.fullmatch(r"hmm stat: \d+: \d+ pages are lost: .*\n", a.stderr), f"{a}")
    os.kill(r.program(), signal.SIGKILL)
    r.wait()


# ------------------------------------------------------- starting the program


def nested(h):
    """One hmm run inside another: the inner tree is the inner one's, with the inner budget."""
    with tempfile.TemporaryDirectory(prefix="hmmtest-") as d:
        inner = os.path.join(d, "inner")
        r = h.run([h.exe, "run", "--ram", SPIN_RAM, "--stats", inner, "--", built(h, "life-spin"), SPIN, "0", "1"],
                  ram="1G")
        check(r.rc == 0, f"status {r.rc}: {r.err()}")
        with open(inner, encoding="utf-8") as f:
            s = json.load(f)
        check(s["budget_bytes"] == int(SPIN_RAM[:-1]) << 20 and s["pages_out"] > 0, f"the inner one did nothing: {s}")


def shell_script(h):
    """A script without a first line for the kernel is the shell's, as env(1) has it."""
    with tempfile.TemporaryDirectory(prefix="hmmtest-") as d:
        script, empty = os.path.join(d, "script"), os.path.join(d, "empty")
        for path, text in ((script, 'echo "$0 $# $2"; exit 3\n'), (empty, "")):
            with open(path, "w", encoding="utf-8") as f:
                f.write(text)
            os.chmod(path, 0o755)
        for args in ([script, "a", "b c"], [script], [empty]):
            native = subprocess.run(["env", *args], capture_output=True, text=True, check=False)
            r = h.run(args)
            check((r.rc, r.out(), r.err()) == (native.returncode, native.stdout, native.stderr),
                  f"{args}: {r.rc} {r.out()!r} {r.err()!r}, not {native}")


def other_loader(h):
    """A program of another libc is refused; where one of the tree starts it, it runs, and what it starts is served.
    One of ours whose loader has another name is none."""
    with tempfile.TemporaryDirectory(prefix="hmm-") as d:
        with open("/bin/cat", "rb") as f:
            image = f.read()
        loader = re.search(rb"/[\w/.-]*/ld-[\w.-]+", image)
        link, program = os.path.join(d, "ld"), os.path.join(d, "cat")
        if loader and len(link) <= len(loader[0]):
            os.symlink(loader[0].decode(), link)
            with open(program, "wb") as f:
                f.write(image.replace(loader[0], link.encode().ljust(len(loader[0]), b"\0"), 1))
            os.chmod(program, 0o755)
            r = h.run([program, "/proc/self/maps"])
            check(not r.rc and "libhmm-preload.so" in r.out() and not r.err(), f"{r.rc} {r.out()!r} {r.err()!r}")
    if not shutil.which("musl-gcc"):
        skip("there is no musl-gcc")
    with tempfile.TemporaryDirectory(prefix="hmmtest-") as d:
        source, program = os.path.join(d, "a.c"), os.path.join(d, "a")
        with open(source, "w", encoding="utf-8") as f:
            f.write("""#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
int main(void)
{
	puts("here");
	fflush(stdout);
	if (system("exit 3") != 3 << 8)
		return 1;
	execlp("cat", "cat", "/proc/self/maps", (char *)0);
	return 2;
}
""")
        subprocess.run(["musl-gcc", "-o", program, source], check=True, timeout=60)
        refused(h, [program], 126, "another libc, by its loader .*musl")
        r = h.run(["sh", "-c", f"{program} && exit 4"])
        check(r.rc == 4 and r.out().startswith("here\n") and "libhmm-preload.so" in r.out() and not r.err(),
              f"{r.rc} {r.out()!r} {r.err()!r}")


def other_reader(h):
    """Who reads a file that is no program may have been told to the kernel: of a namespace of our own, here."""
    with tempfile.TemporaryDirectory(prefix="hmmtest-") as d:
        thing, at = os.path.join(d, "thing"), "/proc/sys/fs/binfmt_misc"
        with open(thing, "wb") as f:
            f.write(b"HMMT\0 is read by cat\n")
        os.chmod(thing, 0o755)
        told = (f"mount -t binfmt_misc none {at} && echo ':hmmtest:M::HMMT::{shutil.which('cat')}:' > {at}/register && "
                f"{{ {thing} || exit 77; \"$@\"; rc=$?; echo -1 > {at}/hmmtest; exit $rc; }} || exit 77")
        r = subprocess.run(["unshare", "-Um", "--map-root-user", "sh", "-c", told, "sh", h.exe, "run", "--", thing],
                           capture_output=True, check=False, timeout=120)
        if r.returncode == 125 or r.returncode == 77 or b"unshare" in r.stderr:
            skip(f"no binfmt_misc of our own: {r.stderr.decode()}")
        check(not r.returncode and r.stdout == 2 * b"HMMT\0 is read by cat\n", f"{r}")


def loader_itself(h):
    """The dynamic linker as a command loads what it is given, and the library with it."""
    with open("/bin/cat", "rb") as f:
        loader = re.search(rb"/[\w/.-]*/ld-[\w.-]+", f.read())
    if not loader:
        skip("no dynamic linker is named in /bin/cat")
    r = h.run([loader[0].decode(), "/bin/cat", "/proc/self/maps"])
    check(not r.rc and "libhmm-preload.so" in r.out() and not r.err(), f"{r.rc} {r.out()!r} {r.err()!r}")


def sigchld_ignored(h):
    """Started by who ignores SIGCHLD, of whose children the kernel tells nothing: it ends, and the program finds that so."""
    for how in (signal.SIG_IGN, signal.SIG_DFL):
        r = h.run(["grep", "SigIgn", "/proc/self/status"], timeout=60,
                  preexec_fn=lambda how=how: signal.signal(signal.SIGCHLD, how))
        check(r.rc == 0 and not r.err(), f"status {r.rc}: {r.err()}")
        ignored = int(r.out().split()[1], 16) >> (signal.SIGCHLD - 1) & 1
        check(ignored == (how == signal.SIG_IGN), f"{how!r} became {r.out()!r}")


TWO_PRELOADS = """
import ctypes, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.popen.restype = ctypes.c_void_p
libc.pclose.argtypes = [ctypes.c_void_p]
libc.malloc.restype = ctypes.c_void_p
env = (ctypes.c_char_p * 4)(b"PATH=/bin:/usr/bin", b"LD_PRELOAD=", b"LD_PRELOAD=" + b":" * 100000)
if sys.argv[1] == "execve":
    libc.execve(b"/bin/sh", (ctypes.c_char_p * 4)(b"sh", b"-c", b"echo ran"), env)
    sys.exit(f"execve: {ctypes.get_errno()}")
where = ctypes.c_void_p.in_dll(libc, "environ")
old, where.value = where.value, ctypes.addressof(env)
f = libc.popen(b"echo ran", b"w")
status = libc.pclose(f)
where.value = old
for size in range(1000, 100000, 1000):
    libc.malloc(size)
sys.exit(status)
"""


def two_preloads(h):
    """An environment with LD_PRELOAD in it twice, the longer one last, which is the one that the linker takes."""
    for how in ("execve", "popen"):
        r = h.run([sys.executable, "-c", TWO_PRELOADS, how])
        check(r.rc == 0 and r.out() == "ran\n", f"{how}: {r.rc} {r.out()!r} {r.err()!r}")


def long_preload(h):
    """However long the program's own LD_PRELOAD is: all of it is there."""
    with tempfile.TemporaryDirectory(prefix="hmmtest-") as d:
        libm = subprocess.run(["sh", "-c", "ldconfig -p | awk '/libm.so.6 .*x86-64/ { print $NF; exit }'"],
                              capture_output=True, text=True, check=False).stdout.strip()
        long = os.path.join(d, "x" * 200, "y" * 200)
        os.makedirs(long)
        os.symlink(libm, os.path.join(long, "libm.so"))
        env = dict(os.environ, LD_PRELOAD=":".join([os.path.join(long, "libm.so")] * 20))
        check(len(env["LD_PRELOAD"]) > 8192, "not long")
        r = h.run(["sh", "-c", 'echo "$LD_PRELOAD"'], env=env)
        check(r.rc == 0 and r.out() == env["LD_PRELOAD"] + "\n" and not r.err(), f"{r.rc} {r.out()!r} {r.err()!r}")


# ----------------------------------------------------------------- bad input


def refused(h, args, want, says, prefix=()):
    r = subprocess.run([*prefix, h.exe, "run", *args], capture_output=True, text=True, check=False, timeout=120)
    check(r.returncode == want, f"{args}: status {r.returncode}, not {want}: {r.stderr!r}")
    check(len(r.stderr.splitlines()) == 1, f"{args}: not one line: {r.stderr!r}")
    check(re.search(says, r.stderr), f"{args}: does not say /{says}/: {r.stderr!r}")
    check(not r.stdout, f"{args}: {r.stdout!r}")


def bad_input(h):
    with tempfile.TemporaryDirectory(prefix="hmmtest-") as d:
        plain, garbage = os.path.join(d, "plain"), os.path.join(d, "garbage")
        for path in (plain, garbage):
            with open(path, "w") as f:
                f.write("\x01\x00 this is no program\n")
        os.chmod(plain, 0o644)
        os.chmod(garbage, 0o755)
        for ram in ("xyz", "", "-5M", "12Q", "5M5", "0%", "101%", "%", "nan%", "64M "):
            refused(h, ["--ram", ram, "true"], 125, "not a size")
        for ram in ("0", "1", "1M", "7M"):
            refused(h, ["--ram", ram, "true"], 125, "at least \\d+M")
        refused(h, ["--to", "lz4,", "true"], 125, "a chain is")
        # Even the first step can fail.
        refused(h, ["true"], 125, "socketpair: Too many open files", ["prlimit", "--nofile=4:4"])
        for to in ("nosuch", "lz4,nosuch", "", "lz4,,lz4", "lz4:x", "faulty:lz4", "file:"):
            refused(h, ["--to", to, "true"], 125, "^hmm run: ")
        refused(h, ["--to", "lz4,file:/" + "x" * 122, "true"], 125, "too long: .* up to 127 bytes")
        refused(h, ["--to", "lz4,file:/no/such/" + "x" * 113, "true"], 125, "xx: No such file")
        refused(h, ["--to", "file:/no/such/folder", "true"], 125, "/no/such/folder.*No such file")
        refused(h, ["--stats", "/no/such/folder/x", "true"], 125, "/no/such/folder/x.*No such file")
        refused(h, ["no-such-program-here"], 127, "no-such-program-here.*No such file")
        refused(h, ["./no/such/program"], 127, "No such file")
        refused(h, [plain], 126, "Permission denied")
        refused(h, [d], 126, "Permission denied|Is a directory")
        refused(h, [garbage], 126, "Exec format error")
        refused(h, [built(h, "life-exec-static"), "small"], 126, "statically linked")
        if not os.geteuid():
            taker = os.path.join(d, "true")
            for uid, gid, mode, what in ((1, 0, 0o4755, 126), (0, 1, 0o2755, 126), (1, 0, 0o2755, 0), (0, 1, 0o4755, 0),
                                         (1, 1, 0o2745, 0)):
                shutil.copy(shutil.which("true"), taker)
                os.chown(taker, uid, gid)
                os.chmod(taker, mode)
                if what:
                    refused(h, [taker], what, "set-user-id or set-group-id")
                else:
                    h.run([taker]).expect(min_out=0)
        refused(h, [], 125, "^usage: hmm run")
        # The option itself, be it one of several in an argument.
        for args, names in ((["--no-such-option", "true"], "--no-such-option"), (["-q", "true"], "-q"), (["-vq", "true"], "-q"),
                            (["-xv", "true"], "-x"), (["--verbose", "-xq", "true"], "-x"), (["--ram"], "--ram"),
                            (["-v", "--to"], "--to"), (["--verbose=1", "true"], "--verbose=1")):
            refused(h, args, 125, f"^hmm run: {names}: no such option")
        a = ask(h, "1", "-jq")
        check(a.returncode == 125 and a.stderr.startswith("hmm stat: -j: no such option"), f"stat -jq: {a}")


# ---------------------------------------------------------- as an ordinary user

UFFD = "/dev/userfaultfd"
SYSCTL = "/proc/sys/vm/unprivileged_userfaultfd"


own = []


def own_device():
    """A device of our own over the machine's, for us and what we start: what is given or taken there is nobody else's."""
    libc = ctypes.CDLL(None, use_errno=True)
    d = tempfile.mkdtemp(prefix="hmmtest-")

    def must(rc):
        if rc:
            skip(f"no mounts of our own: {os.strerror(ctypes.get_errno())}")

    must(libc.unshare(0x20000))  # CLONE_NEWNS
    must(libc.mount(None, b"/", None, 0x44000, None))  # MS_REC | MS_PRIVATE
    must(libc.mount(b"none", d.encode(), b"tmpfs", 0, None))
    node = os.path.join(d, "userfaultfd")
    must(libc.mknod(node.encode(), stat.S_IFCHR, ctypes.c_ulong(os.stat(UFFD).st_rdev)))
    must(libc.mount(node.encode(), UFFD.encode(), None, 0x1000, None))  # MS_BIND
    must(libc.umount2(d.encode(), 0x2))  # MNT_DETACH
    os.rmdir(d)


class Rights:
    """What everybody may do with userfaultfd, for a while; @sysctl: None is as it is."""

    def __init__(self, mode, sysctl):
        self.mode, self.sysctl = mode, sysctl

    def __enter__(self):
        with open(SYSCTL) as f:
            self.old_sysctl = f.read().strip()
        self.set(self.mode, self.sysctl)

    def set(self, mode, sysctl):
        os.chmod(UFFD, mode)
        if sysctl not in (None, self.old_sysctl):
            with open(SYSCTL, "w") as f:
                f.write(sysctl)

    def __exit__(self, *_):
        os.chmod(UFFD, 0)
        if self.sysctl not in (None, self.old_sysctl):
            with open(SYSCTL, "w") as f:
                f.write(self.old_sysctl)


def as_nobody(h):
    if os.getuid():
        skip("wants root, to give and take rights on /dev/userfaultfd")
    if not os.path.exists(UFFD):
        skip("no /dev/userfaultfd")
    if subprocess.run([*NOBODY, "test", "-x", h.exe], check=False).returncode:
        skip("an ordinary user cannot reach the build folder")
    if not own:
        own_device()
        own.append(UFFD)


def user_refused(h):
    as_nobody(h)
    with Rights(0o600, "0"):
        refused(h, ["true"], 125, "chmod a\\+rw /dev/userfaultfd", NOBODY)
    with Rights(0o666, "0"):
        refused(h, ["--to", "file:/root", "true"], 125, "/root.*Permission denied", NOBODY)
        with tempfile.TemporaryDirectory(prefix="hmmtest-") as d:
            os.chmod(d, 0o755)
            setuid = os.path.join(d, "setuid")
            shutil.copy("/bin/true", setuid)
            os.chmod(setuid, 0o4755)
            refused(h, [setuid], 126, "set-user-id", NOBODY)


def user_served(h):
    """With rights on the device alone, or by the sysctl: pages move, and every byte is right."""
    as_nobody(h)
    for rights in (Rights(0o666, "0"), Rights(0o600, "1")):
        with rights:
            r = h.run([built(h, "life-spin"), SPIN, "0", sized("1", "2")], ram=SPIN_RAM, prefix=NOBODY)
            r.expect(no_stderr="page .* word")


def user_lent(h):
    """Root's tree with programs of a user who may use no userfaultfd: told of once, or lent one."""
    as_nobody(h)
    with Rights(0o600, "0"):
        spin = [*NOBODY, built(h, "life-spin"), SPIN, "0", sized("1", "2")]
        r = h.run(["sh", "-c", " ".join(spin) + " && exec " + " ".join(spin)], ram=SPIN_RAM)
        r.expect(min_out=0, no_stderr="page .* word")
        check(r.err().count("user 65534 may use no userfaultfd and runs without a budget") == 1, r.err())
        for cmd in (spin, [*NOBODY, built(h, "life-fork"), "raw"]):
            r = h.run(cmd, ram=sized(RAM, SPIN_RAM), opts=["--lend-userfaultfd"])
            r.expect(min_out=10000, no_stderr="page .* word|without a budget")
        # A word of who does not know the token is nothing to lend for, nor to tell of.
        r = h.start(["sleep", "60"], opts=["--lend-userfaultfd"])
        r.until(lambda: ask(h, r.pid).returncode == 0, "it does not answer")
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stranger:
            stranger.connect("\0" + listens(r.pid))
            stranger.send(struct.pack("<II32s", 0x32686d68, 0, b"0" * 32))
            check(stranger.recvmsg(4, 256)[:2] == (b"", []), "lent to a stranger")
        os.kill(r.program(), signal.SIGTERM)
        r.wait()
    with Rights(0, "0"):
        refused(h, ["--lend-userfaultfd", "true"], 125, "lend-userfaultfd: /dev/userfaultfd: Permission denied",
                ["setpriv", "--bounding-set", "-dac_override,-dac_read_search", "--inh-caps", "-all"])


def user_secrets(h):
    """What a program has in memory is open to no other process of its user by way of us; strangers are not served."""
    as_nobody(h)
    with Rights(0o666, None):
        r = h.start(["sleep", "60"], prefix=NOBODY)
        r.until(r.supervisor, "no supervisor")
        r.until(lambda: ask(h, r.pid).returncode == 0, "it does not answer")
        sup = r.supervisor()
        ours = [sup, *descendants(sup)]
        check([comm(p) for p in ours] == ["hmm-supervisor", "hmm-keeper"], f"{ours}")
        for pid in ours:
            for what in ("mem", "environ", "fd/0", "maps"):
                p = subprocess.run([*NOBODY, "head", "-c", "1", f"/proc/{pid}/{what}"], capture_output=True, text=True,
                                   check=False)
                check("Permission denied" in p.stderr, f"another process of the user has our {what}: {p}")
        p = subprocess.run([*NOBODY, h.exe, "stat", str(r.pid)], capture_output=True, text=True, check=False)
        check(p.returncode == 0, f"its user may not ask: {p}")
        os.kill(r.program(), signal.SIGTERM)
        r.wait()
        r = h.start(["sleep", "60"])
        r.until(lambda: ask(h, r.pid).returncode == 0, "it does not answer")
        p = subprocess.run([*NOBODY, h.exe, "stat", str(r.pid)], capture_output=True, text=True, check=False)
        check(p.returncode == 1 and "not yours" in p.stderr, f"a stranger was answered: {p}")
        # Who calls a socket as ours are called is not believed, and does not keep anybody waiting.
        ready, gate = os.pipe(), os.pipe()
        child = os.fork()
        if not child:
            os.setuid(65534)
            fakes = [socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(200)]
            for n, fake in enumerate(fakes):
                fake.bind(f"\0hmm/{r.pid}/{n:012x}")
                fake.listen(0)
            os.write(ready[1], b"x")
            os.close(gate[1])
            os.read(gate[0], 1)
            os._exit(0)
        os.read(ready[0], 1)
        for _ in range(5):
            a = ask(h, r.pid, "--json")
            check(a.returncode == 0 and "budget_bytes" in a.stdout, f"another one was believed: {a}")
        os.close(gate[1])
        os.waitpid(child, 0)
        os.kill(r.program(), signal.SIGTERM)
        r.wait()


def user_forks(h):
    """The kernel tells nobody of forks then: all comes back before libc's, a raw one fails closed, nobody reads zeros."""
    as_nobody(h)
    with Rights(0o666, None):
        for name in ("generations", "parent-first", "threads", "while-evicted", "spawn", "system", "vfork", "clone-vm",
                     "daemon", "forkpty", "slow", "grown", "stopped"):
            r = h.run([built(h, "life-fork"), name], opts=["-v"] if name == "generations" else (), prefix=NOBODY)
            r.expect(no_stderr="page .* word", stderr="CAP_SYS_PTRACE" if name == "generations" else None)
            if name == "parent-first":
                check("heir 2 is right" in r.out(), f"{r.out()}: {r.err()}")
        # A child of a raw call may die of it; it must not read what is not there.
        for name in ("raw", "raw-orphan"):
            r = h.run([built(h, "life-fork"), name], prefix=NOBODY)
            check(not re.search("page .* word", r.err()), f"{name}: {r.err()}")
            check(r.stats()["pages_out"] > 0, "nothing moved")


def user_outlives(h):
    """Who shares the memory of a program that has ended is found, though the kernel tells nothing of an undumpable one."""
    as_nobody(h)
    with Rights(0o666, None):
        r = h.run([built(h, "life-fork"), "clone-vm-outlives-undumpable"], prefix=NOBODY)
        r.expect(no_stderr="page .* word")
        check("heir 1 is right" in r.out(), f"{r.out()}: {r.err()}")
        check(r.stats()["pages_out"] > 0, "nothing moved")


if __name__ == "__main__":
    main_of(status, signals, hangup, from_before, streams, environment, meant_for, valgrind, job_control, by_its_pid, daemon, left_at_once, stat_running, restore_litter, keeper_ends, stat_many, stat_busy,
            elsewhere, figures, emptied_file, slow_figures, unread_figures, open_figures, restore_lost, nested, shell_script, other_loader, loader_itself, other_reader, sigchld_ignored, two_preloads, long_preload, bad_input, user_refused, user_served, user_lent,
            user_forks, user_outlives, user_secrets)
