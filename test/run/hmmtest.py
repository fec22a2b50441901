#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Run a self-verifying program under hmm and see that it was really tested.

    hmmtest.py --build DIR [--ram 64M] [--to CHAIN] [--min-out PAGES] [--env NAME=VALUE]...
               [--timeout SECONDS] [--no-native] -- PROGRAM [ARGS]

The program is run alone first (it must be right without us), then under
`hmm run`.  A run in which fewer than --min-out pages went out has tested
nothing and fails.  The time-out is a watchdog, never a measure: what it ends
is ended by pid, after a dump of where its tasks are.

Drivers that need more import this file.
"""
import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile

SKIP = 77


class Failed(Exception):
    pass


def skip(why):
    print("SKIP:", why)
    sys.exit(SKIP)


def read(path):
    try:
        with open(path, "rb") as f:
            return f.read().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError as e:
        return "(%s)" % e.strerror


def processes():
    """pid -> parent of every process there is."""
    found = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open("/proc/%s/stat" % pid) as f:
                found[int(pid)] = int(f.read().rpartition(")")[2].split()[1])
        except (OSError, IndexError, ValueError):
            pass
    return found


def marked(token):
    """Processes whose environment has our token: also those that left the tree."""
    found = []
    for pid in processes():
        try:
            with open("/proc/%d/environ" % pid, "rb") as f:
                if token.encode() in f.read():
                    found.append(pid)
        except OSError:
            pass
    return [p for p in found if p != os.getpid()]


def dump(pids):
    for pid in pids:
        print("---- process %d: %s" % (pid, read("/proc/%d/cmdline" % pid)), file=sys.stderr)
        try:
            tasks = sorted(os.listdir("/proc/%d/task" % pid), key=int)
        except OSError:
            continue
        for t in tasks:
            at = "/proc/%d/task/%s/" % (pid, t)
            state = [l for l in read(at + "status").splitlines() if l.startswith("State")]
            print("  task %s %s %s wchan %s syscall %s" % (t, read(at + "comm"), " ".join(state), read(at + "wchan"),
                                                          read(at + "syscall")), file=sys.stderr)
            for line in read(at + "stack").splitlines():
                print("      " + line, file=sys.stderr)


class Run:
    """A program started under a watchdog, with its output kept."""

    def __init__(self, argv, env=None, timeout=300, cwd=None):
        self.token = "HMM_TEST_TOKEN=%d.%s" % (os.getpid(), os.urandom(6).hex())
        e = dict(os.environ)
        e.update(env or {})
        name, _, value = self.token.partition("=")
        e[name] = value
        self.argv, self.timeout = argv, timeout
        self.out = tempfile.TemporaryFile()
        self.err = tempfile.TemporaryFile()
        self.p = subprocess.Popen(argv, env=e, stdin=subprocess.DEVNULL, stdout=self.out, stderr=self.err, cwd=cwd)

    @staticmethod
    def text(f):
        f.seek(0)
        return f.read().decode(errors="replace")

    def finish(self):
        try:
            status = self.p.wait(self.timeout)
        except subprocess.TimeoutExpired:
            pids = marked(self.token)
            print("watchdog: %s has not ended after %d s" % (" ".join(self.argv), self.timeout), file=sys.stderr)
            dump(pids)
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except OSError:
                    pass
            self.p.kill()
            self.p.wait()
            self.report()
            raise Failed("hangs")
        return status

    def report(self):
        for name, f in (("stdout", self.out), ("stderr", self.err)):
            text = self.text(f)
            if text:
                print("---- %s of %s\n%s" % (name, self.argv[0], text[-8000:]), file=sys.stderr)


def run_native(argv, env=None, timeout=300):
    r = Run(argv, env, timeout)
    status = r.finish()
    if status == SKIP:
        skip(r.text(r.out).strip().replace("SKIP: ", "") or "the program cannot run here")
    if status:
        r.report()
        raise Failed("without hmm: status %d" % status)
    return r


def run_hmm(build, argv, ram="64M", to=None, env=None, min_out=1, timeout=300, status=0):
    """Returns (run, stats).  Raises Failed when the status is another or too little moved."""
    fd, path = tempfile.mkstemp(prefix="hmmtest.")
    os.close(fd)
    try:
        cmd = [os.path.join(build, "hmm"), "run", "--ram", ram, "--stats", path, "-v"]
        if to:
            cmd += ["--to", to]
        e = {"HMM_TEST_UNDER": "1"}
        e.update(env or {})
        r = Run(cmd + ["--"] + argv, e, timeout)
        got = r.finish()
        if got == SKIP:
            skip(r.text(r.out).strip().replace("SKIP: ", ""))
        if got == 125 and "permission" in r.text(r.err):
            skip("userfaultfd is not permitted here")
        if got != status:
            r.report()
            raise Failed("under hmm: status %d, expected %d" % (got, status))
        try:
            with open(path) as f:
                stats = json.load(f)
        except ValueError as err:
            r.report()
            raise Failed("no figures in --stats: %s" % err)
    finally:
        os.unlink(path)
    if stats["pages_out"] < min_out:
        r.report()
        raise Failed("only %d pages went out, %d must for this to test anything" % (stats["pages_out"], min_out))
    return r, stats


def summary(stats):
    names = ("pages_out", "pages_in", "faults", "zero_filled", "registrations", "peak_bytes", "seconds")
    return ", ".join("%s %s" % (n, stats[n]) for n in names)


def main():
    a = argparse.ArgumentParser()
    a.add_argument("--build", required=True)
    a.add_argument("--ram", default="64M")
    a.add_argument("--to")
    a.add_argument("--min-out", type=int, default=1000)
    a.add_argument("--env", action="append", default=[])
    a.add_argument("--timeout", type=int, default=200)
    a.add_argument("--no-native", action="store_true")
    a.add_argument("argv", nargs=argparse.REMAINDER)
    o = a.parse_args()
    argv = o.argv[1:] if o.argv[:1] == ["--"] else o.argv
    env = dict(e.partition("=")[::2] for e in o.env)
    if not o.no_native:
        run_native(argv, env, o.timeout)
    r, stats = run_hmm(o.build, argv, o.ram, o.to, env, o.min_out, o.timeout)
    print("%s: %s" % (os.path.basename(argv[0]), summary(stats)))
    print(r.text(r.out), end="")


if __name__ == "__main__":
    try:
        main()
    except Failed as failure:
        print("FAILED:", failure, file=sys.stderr)
        sys.exit(1)
