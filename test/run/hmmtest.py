#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Run a program under `hmm run` and judge what came of it.

As a command:  hmmtest.py BUILD [options] -- PROGRAM [ARGS]
As a module:   h = Hmm(build); r = h.run([PROGRAM, ...], ram="64M"); r.expect(...)

A run in which no page left tests nothing: by default it fails.  The clock
decides nothing, but for a watchdog: when it runs out, where every task hangs
is printed, and everything that was started is ended by its pid.
"""
import argparse
import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback

SKIP = 77
LONG = bool(os.environ.get("HMM_TEST_LONG"))  # more memory, and more rounds
PR_SET_CHILD_SUBREAPER = 36

# What is ignored (nohup, a shell's background) stays so in programs, and a shell cannot even trap it.
for _s in signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM:
    if signal.getsignal(_s) == signal.SIG_IGN:
        signal.signal(_s, signal.SIG_DFL)


def sized(usual, long):
    """What is as large, or done as often, as there is time for."""
    return long if LONG else usual


RAM = sized("24M", "64M")  # what life-fork and life-changes do not fit
SPIN, SPIN_RAM = sized(("40", "20M"), ("96", "48M"))  # how many MiB life-spin turns over, on how many


def skip(why):
    print("SKIP:", why)
    sys.exit(SKIP)


def _read(path):
    try:
        with open(path, errors="replace") as f:
            return f.read()
    except OSError:
        return ""


def comm(pid):
    return _read(f"/proc/{pid}/comm").strip()


def ppid(pid):
    stat = _read(f"/proc/{pid}/stat")
    return int(stat[stat.rindex(")") + 1:].split()[1]) if ")" in stat else 0


def state(pid):
    """R, S, T, Z ..., or "" when there is no such process."""
    stat = _read(f"/proc/{pid}/stat")
    return stat[stat.rindex(")") + 1:].split()[0] if ")" in stat else ""


def descendants(root=None):
    """Pids below @root (this process), zombies too, parents first."""
    root = root or os.getpid()
    kids = {}
    for e in os.listdir("/proc"):
        if e.isdigit():
            kids.setdefault(ppid(int(e)), []).append(int(e))
    out, todo = [], [root]
    while todo:
        for k in kids.get(todo.pop(), []):
            out.append(k)
            todo.append(k)
    return out


def dump(pids):
    """Where each task hangs, to stderr."""
    for pid in pids:
        cmd = _read(f"/proc/{pid}/cmdline").replace("\0", " ")
        print(f"--- {pid} {comm(pid)} {state(pid)}: {cmd[:100]}", file=sys.stderr)
        try:
            tasks = os.listdir(f"/proc/{pid}/task")
        except OSError:
            continue
        for t in tasks[:20]:
            base = f"/proc/{pid}/task/{t}"
            print(f"  task {t} {state(t)} wchan {_read(base + '/wchan')} syscall {_read(base + '/syscall').strip()}",
                  file=sys.stderr)
            print("    " + _read(base + "/stack").replace("\n", "\n    "), file=sys.stderr)


def kill_all(pids):
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except OSError:
            pass


def reap():
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


class Failed(Exception):
    pass


# MiB that an engine built with a sanitizer takes for itself: on top of what a test gives.
MORE = int(os.environ.get("HMM_TEST_MORE_RAM") or 0)


def with_more(ram):
    """@ram: as a test gives it, 64M or 65536K."""
    return f"{int(ram[:-1]) * {'K': 1, 'M': 1024, 'G': 1 << 20}[ram[-1]] + MORE * 1024}K" if MORE else ram


class Run:
    """One program under hmm run, started."""

    def __init__(self, hmm, cmd, ram=RAM, to=None, opts=(), env=None, stats=True, prefix=(), stdin=None, out=None,
                 err=None, **popen):
        self.dir = tempfile.TemporaryDirectory(prefix="hmmtest-")
        os.chmod(self.dir.name, 0o777)
        self.stats_path = os.path.join(self.dir.name, "stats")
        self.out_path = os.path.join(self.dir.name, "out")
        self.err_path = os.path.join(self.dir.name, "err")
        line = [*prefix, hmm.exe, "run"]
        if ram:
            line += ["--ram", with_more(ram)]
        if to:
            line += ["--to", to]
        if stats:
            line += ["--stats", self.stats_path]
        line += [*opts, "--", *cmd]
        self.line = line
        self.child = subprocess.Popen(line, stdin=stdin if stdin is not None else subprocess.DEVNULL,
                                      stdout=out if out is not None else open(self.out_path, "wb"),
                                      stderr=err if err is not None else open(self.err_path, "wb"), env=env, **popen)
        self.pid = self.child.pid
        self.beside = hmm.beside
        self.rc = None

    def below(self, name):
        return [p for p in descendants(self.pid) if comm(p) == name]

    def supervisor(self):
        found = self.below("hmm-supervisor")
        return found[0] if found else 0

    def program(self):
        for p in descendants(self.pid):
            if ppid(p) == self.pid and comm(p) not in ("hmm-supervisor", "hmm"):
                return p
        return 0

    def agents(self):
        """Nobody's children: they come to whoever reaps orphans, which is this process."""
        return [p for p in descendants() if comm(p) == "hmm-agent" and state(p) != "Z"]

    def hung(self, what):
        pids = [p for p in [self.pid, *descendants()] if state(p)]
        print(f"HANG: {what}: {' '.join(self.line)}", file=sys.stderr)
        dump(pids)
        kill_all(pids)
        print(self.err(), file=sys.stderr)
        raise Failed(what)

    def until(self, cond, what, timeout=120):
        """Wait until @cond holds; the clock is a watchdog only."""
        end = time.monotonic() + timeout
        pause = 0.005
        while not cond():
            if time.monotonic() > end:
                self.hung(what)
            time.sleep(pause)
            pause = min(pause * 1.2, 0.05)

    def wait(self, timeout=240, orphans=True):
        """Ends when the front has, and everything that was started with it."""
        end = time.monotonic() + timeout
        try:
            self.rc = self.child.wait(max(timeout, 0))
        except subprocess.TimeoutExpired:
            self.hung("the front does not end")
        while orphans:
            reap()
            left = [p for p in descendants() if p not in self.beside]
            if not left:
                break
            if time.monotonic() > end:
                self.hung("something stays behind")
            time.sleep(0.01)
        return self

    def out(self):
        return _read(self.out_path)

    def err(self):
        return _read(self.err_path)

    def stats(self):
        text = _read(self.stats_path)
        return json.loads(text) if text else {}

    def expect(self, rc=0, min_out=1, stdout=None, stderr=None, no_stderr=None):
        s = self.stats()
        if self.rc == SKIP and rc == 0:
            skip((self.out() + self.err()).strip())
        why = None
        if self.rc != rc:
            why = f"status {self.rc}, not {rc}"
        elif min_out and s.get("pages_out", 0) < min_out:
            why = f"only {s.get('pages_out', 0)} pages went out: this tests nothing"
        elif stdout and not re.search(stdout, self.out(), re.M):
            why = f"standard output does not say /{stdout}/"
        elif stderr and not re.search(stderr, self.err(), re.M):
            why = f"standard error does not say /{stderr}/"
        elif no_stderr and re.search(no_stderr, self.err(), re.M):
            why = f"standard error says /{no_stderr}/"
        if why:
            raise Failed(f"{why}: {' '.join(self.line)}\nstdout: {self.out()}\nstderr: {self.err()}\nstats: {s}")
        return self


def listens(pid):
    """The name on which the supervisor of front @pid listens."""
    with open("/proc/net/unix") as f:
        for line in f:
            at = line.split()[-1]
            if at.startswith(f"@hmm/{pid}/"):
                return at[1:]
    return None


class Hmm:
    def __init__(self, build):
        # Another engine in front of the same programs: one built with a sanitizer.
        self.exe = os.path.abspath(os.environ.get("HMM_TEST_HMM") or os.path.join(build, "hmm"))
        self.build = os.path.abspath(build)
        self.beside = set()  # pids that are none of a run's
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    def start(self, cmd, **kw):
        return Run(self, cmd, **kw)

    def run(self, cmd, timeout=240, **kw):
        return self.start(cmd, **kw).wait(timeout)


def main_of(*tests):
    """Run functions of a driver, `driver BUILD [NAME...]`; one argument each: Hmm."""
    h = Hmm(sys.argv[1])
    names = sys.argv[2:]
    bad = 0
    for t in tests:
        if names and t.__name__ not in names:
            continue
        try:
            t(h)
            print("ok", t.__name__, flush=True)
        except Failed as e:
            print("FAILED", t.__name__, e, flush=True)
            bad += 1
        except Exception:  # the driver's own fault, which is to be told of where the rest is, and ends no other test
            print("FAILED", t.__name__, traceback.format_exc(), flush=True)
            bad += 1
        finally:
            kill_all(descendants())
            reap()
    sys.exit(1 if bad else 0)


def _command():
    p = argparse.ArgumentParser()
    p.add_argument("build")
    p.add_argument("--ram", default=RAM)
    p.add_argument("--long-ram", help="what a long run (HMM_TEST_LONG) has")
    p.add_argument("--to")
    p.add_argument("--min-out", type=int, default=1)
    p.add_argument("--status", type=int, default=0)
    p.add_argument("--stderr", help="regular expression that must be found")
    p.add_argument("--no-stderr", help="one that must not")
    p.add_argument("--timeout", type=float, default=240)
    p.add_argument("--env", action="append", default=[], metavar="NAME=VALUE")
    p.add_argument("--stdout", help="regular expression that must be found")
    at = sys.argv.index("--")
    a, cmd = p.parse_args(sys.argv[1:at]), sys.argv[at + 1:]
    env = dict(os.environ, **dict(e.split("=", 1) for e in a.env))
    try:
        r = Hmm(a.build).run(cmd, timeout=a.timeout, ram=sized(a.ram, a.long_ram or a.ram), to=a.to, env=env)
        r.expect(rc=a.status, min_out=a.min_out, stdout=a.stdout, stderr=a.stderr, no_stderr=a.no_stderr)
    except Failed as e:
        print("FAILED", e)
        sys.exit(1)
    s = r.stats()
    print(r.out(), end="")
    print(f"pages out {s.get('pages_out', 0)}, in {s.get('pages_in', 0)}, faults {s.get('faults', 0)}")


if __name__ == "__main__":
    _command()
