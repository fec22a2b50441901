#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What hmm keeps from the program, and the program from whoever waits for it.

guard.py BUILD [NAME...]
"""
import os
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from hmmtest import Failed, main_of, ppid  # noqa: E402


def check(cond, what):
    if not cond:
        raise Failed(what)


def built(h, name):
    return os.path.join(h.build, "test/run/life", name)


def status_of(pid):
    with open(f"/proc/{pid}/status") as f:
        return dict(line.rstrip("\n").split(":\t", 1) for line in f if ":\t" in line)


def confined(h):
    """The agent keeps none of the rights that its program might give up."""
    r = h.start(["sleep", "30"])
    r.until(r.agents, "no agent")
    agent = r.agents()[0]
    r.until(lambda: status_of(agent)["Seccomp"] == "2", "the agent has no filter")
    s = status_of(agent)
    check(s["NoNewPrivs"] == "1", "the agent can gain privileges")
    check(int(s["CapPrm"], 16) & ~(1 << 5 | 1 << 19) == 0, f"the agent has capabilities {s['CapPrm']}")
    check(ppid(agent) != r.program(), "the agent is the program's child")


def exec_quiet(h):
    """An image that was exec'd hears of no child: ps says when it gets a SIGCHLD."""
    for _ in range(20):
        r = h.run(["bash", "-c", "exec ps"])
        check(r.rc == 0, f"status {r.rc}: {r.err()}")


def no_zombies(h):
    """A program that execs itself many times has no children left over."""
    script = 'n=$1; if [ $n -gt 0 ]; then exec "$0" -c "$2" "$0" $((n - 1)) "$2"; fi; ps -o stat= --ppid $$ | grep -c Z'
    r = h.run(["sh", "-c", script, "sh", "20", script])
    check(r.out().strip() == "0", f"zombies: {r.out()} {r.err()}")


def end_of_file(h):
    """What the program closes is closed: who reads from it sees the end, though the program goes on."""
    hold, held = os.pipe()
    out, inp = os.pipe()
    p = subprocess.Popen([h.exe, "run", "--", "sh", "-c", "exec >&- 3>&-; read x"], stdin=subprocess.PIPE, stdout=inp,
                         pass_fds=(held,), preexec_fn=lambda: os.dup2(held, 3))
    os.close(inp)
    os.close(held)
    check(os.read(out, 1) == b"" , "something was written")
    check(p.poll() is None, "the program has ended")
    p.stdin.close()
    p.wait()
    os.close(out)
    os.close(hold)


def kcmp_denied(h):
    """Where nobody can tell who lives in which address space, nothing is begun."""
    p = subprocess.run([built(h, "life-denied"), h.exe, "run", "true"], capture_output=True, text=True)
    check(p.returncode == 125, f"status {p.returncode}")
    check("kcmp" in p.stderr and p.stderr.count("\n") == 1, f"said {p.stderr!r}")


def small_stack(h):
    """Threads of ours have stacks of their own size."""
    r = h.run(["sh", "-c", 'exec "$0" spawn', built(h, "life-fork")], prefix=["sh", "-c", 'ulimit -s 256; exec "$@"', "sh"])
    r.expect()


main_of(confined, exec_quiet, no_zombies, end_of_file, kcmp_denied, small_stack)
