#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Whoever holds what is away dies: the program must die too, soon, and must not have seen a wrong byte.

kill.py BUILD [supervisor|supervisor_raw|supervisor_agents|supervisor_front|supervisor_hidden|keeper|agent|front|front_asleep|front_sharer|agent_and_program|front_forking|early|devices]
"""
import os
import random
import re
import signal
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from hmmtest import LONG, SPIN, SPIN_RAM, Failed, comm, descendants, main_of, ppid, sized, state  # noqa: E402

ROUNDS = 50 if LONG else 5
SOON = 2.0  # seconds: what is promised, and the one clock of these tests
WRONG = r"page \d+ .* word"


def spin(h):
    return os.path.join(h.build, "test/run/life/life-spin")


def programs(root):
    return [p for p in descendants(root) if comm(p) == "life-spin"]


def forks(h):
    return os.path.join(h.build, "test/run/life/life-fork")


def ends_with_front(r):
    os.kill(r.pid, signal.SIGKILL)
    r.wait(timeout=30)
    r.expect(rc=-signal.SIGKILL, min_out=0, no_stderr=WRONG)


def alive(pid):
    return state(pid) not in ("", "Z", "X")


def kill_one(h, rng, whom, children, *more):
    r = h.start([spin(h), SPIN, str(children), "0", *more], ram=SPIN_RAM)
    # A child without an agent has all of its memory when it has been through once.
    going = "begins" if "raw" in more else "spinning"
    r.until(lambda: r.out().count(going) > children, "it does not get going")
    pids = programs(r.pid)
    if len(pids) != children + 1:
        raise Failed(f"{len(pids)} programs: {pids}: {r.err()}")
    victims = {
        "supervisor": lambda: [r.supervisor()],
        "agent": lambda: r.agents()[:1],
        "front": lambda: [r.pid],
        "supervisor_agents": lambda: [r.supervisor(), *r.agents()],
        "supervisor_front": lambda: [r.supervisor(), r.pid],
    }[whom]()
    time.sleep(rng.random() * (0.05 if "raw" in more else 0.3))
    for p in pids:
        if not alive(p):
            raise Failed(f"program {p} was dead before anybody was killed: {r.err()}")
    for victim in victims:
        os.kill(victim, signal.SIGKILL)
    start = time.monotonic()
    while any(alive(p) for p in pids):
        if time.monotonic() - start > SOON:
            r.hung(f"the programs live on {SOON} s after the {whom} was killed")
        time.sleep(0.002)
    took = time.monotonic() - start
    r.wait()
    if r.rc != -signal.SIGKILL:
        raise Failed(f"{whom} killed: the front's status is {r.rc}: {r.err()}")
    r.expect(rc=r.rc, min_out=0, no_stderr=WRONG)
    return took


def several(h, whom, children, *more):
    seed = random.randrange(1 << 30)
    rng = random.Random(seed)
    took = [kill_one(h, rng, whom, children, *more) for _ in range(ROUNDS)]
    print(f"{whom}: {ROUNDS} times, seed {seed}, dead after {max(took) * 1000:.0f} ms at most")


def supervisor(h):
    several(h, "supervisor", 1)


def supervisor_raw(h):
    """A child by a raw clone has no agent."""
    several(h, "supervisor", 1, "raw")


def supervisor_agents(h):
    """Nobody of those who serve is left."""
    several(h, "supervisor_agents", 1)


def hidden_one(h, *how):
    """The exit code of a child that nobody finds; None: it had all of its memory back."""
    r = h.start([spin(h), SPIN, "1", "0", "raw", "hidden", *how], ram=SPIN_RAM)
    if how:
        r.until(lambda: [state(p) for p in programs(r.pid)].count("T") == 1, "it does not get going")
    else:
        r.until(lambda: r.out().count("begins") == 2, "it does not get going")
    prog = r.program()
    child = [p for p in programs(r.pid) if p != prog][0]
    os.kill(r.supervisor(), signal.SIGKILL)
    r.until(lambda: not alive(prog), "the program lives on")
    os.kill(child, signal.SIGCONT)
    r.until(lambda: not alive(child) or f"spinning {child}" in r.out(), "the child hangs", 20)
    if alive(child):
        os.kill(child, signal.SIGKILL)
        status = None
    else:
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    r.wait()
    r.expect(rc=-signal.SIGKILL, min_out=0, no_stderr=WRONG)
    return status


def keeper(h):
    """It is told, and nothing else comes of it."""
    r = h.start([spin(h), SPIN, "0", "0"], ram=SPIN_RAM)
    r.until(lambda: "spinning" in r.out(), "it does not get going")
    os.kill([p for p in descendants(r.pid) if comm(p) == "hmm-keeper"][0], signal.SIGKILL)
    r.until(lambda: "hmm-keeper was killed" in r.err(), "nothing is said")
    os.kill(r.program(), signal.SIGTERM)
    r.wait()
    r.expect(rc=-signal.SIGTERM, no_stderr=WRONG)


def supervisor_hidden(h):
    """Nobody finds this child: what it touches and has no page for is answered by SIGBUS."""
    status = hidden_one(h, "stops")
    if status != -signal.SIGBUS:
        raise Failed(f"the child's status is {status}")
    # In the middle of its faults, some of which the supervisor has taken and will not answer.
    found = [hidden_one(h) for _ in range(max(ROUNDS, 8))]  # or none may be met
    if set(found) - {None, -signal.SIGBUS} or -signal.SIGBUS not in found:
        raise Failed(f"the children's statuses are {found}")


def supervisor_front(h):
    """Nor anybody who would look for a child without an agent."""
    several(h, "supervisor_front", 1, "raw")


def front(h):
    several(h, "front", 1)


def front_asleep(h):
    """Nor does who has no agent, and does nothing that tells its number, live on."""
    for _ in range(ROUNDS):
        r = h.start([spin(h), SPIN, "1", "0", "raw", "shown", "stops"], ram=SPIN_RAM)
        r.until(lambda: "spinning" in r.out() and [state(p) for p in programs(r.pid)].count("T") == 1,
                "it does not get going")
        ends_with_front(r)


def front_sharer(h):
    """Nor who shares the memory of who has ended first."""
    for _ in range(ROUNDS):
        r = h.start([forks(h), "clone-vm-waits"], stdin=subprocess.PIPE)
        r.until(lambda: len([p for p in descendants(r.pid) if comm(p) == "life-fork"]) == 2, "it does not get going")
        ends_with_front(r)
        r.child.stdin.close()


def agent_and_program(h):
    """Who has the memory of a program that has ended reads no zeros where its agent is killed with it, whichever goes first."""
    for agent_first in (True, False):
        r = h.start(["sh", "-c", '"$0" clone-vm-outlives; read x', forks(h)], stdin=subprocess.PIPE)
        mine = lambda: [p for p in descendants() if comm(p) == "life-fork" and alive(p)]  # noqa: E731
        r.until(lambda: len(mine()) == 2, "it does not get going")
        program = next(p for p in mine() if comm(ppid(p)) == "sh")
        agents = [p for p in r.agents() if os.readlink(f"/proc/{p}/exe") == os.readlink(f"/proc/{program}/exe")]
        supervisor = r.supervisor()
        os.kill(supervisor, signal.SIGSTOP)
        r.until(lambda: state(supervisor) == "T", "the supervisor does not stop")
        for victim in agents + [program] if agent_first else [program] + agents:
            os.kill(victim, signal.SIGKILL)
            r.until(lambda: not alive(victim), f"{comm(victim)} does not die")  # noqa: B023
        os.kill(supervisor, signal.SIGCONT)
        r.until(lambda: not mine(), "who shares the memory lives on", 30)
        r.child.stdin.close()
        r.wait()
        r.expect(rc=1, min_out=0, no_stderr=WRONG)
        if "heir 1" in r.out() or not re.search(r"^hmm run: program and agent of process \d+ have gone", r.err(), re.M):
            raise Failed(f"{'agent' if agent_first else 'program'} first: {r.out()}{r.err()}")


def front_forking(h):
    """Whoever has just been forked or started goes with the others, also when nobody has heard of it yet."""
    for how in ("os.fork()", "os.posix_spawn(sys.executable, ['python3', '-c', 'import time; time.sleep(60)'], os.environ)"):
        r = h.start([sys.executable, "-c", f"import os, sys, time\n{how}\ntime.sleep(60)"], ram="48M")
        mine = lambda: [p for p in descendants() if comm(p).startswith("python3") and alive(p)]  # noqa: E731
        r.until(lambda: len(mine()) == 2, "it does not get going")
        os.kill(r.pid, signal.SIGKILL)
        r.until(lambda: not mine(), f"{how}: somebody lives on after the front was killed", 30)
        r.wait()


def agent(h):
    several(h, "agent", 0)


def early(h):
    """At any moment from the start on, where less has happened: dead, or right to the end."""
    rng = random.Random(random.randrange(1 << 30))
    for n in range(2 * ROUNDS):
        r = h.start([spin(h), sized("30", "64"), "0", sized("1", "2")], ram=sized("22M", "48M"))
        name = ("hmm-supervisor", "hmm-agent")[n % 2]
        r.until(lambda: r.below(name) or r.child.poll() is not None, "nobody starts")
        time.sleep(rng.random() * 0.1)
        for victim in r.below(name):
            try:
                os.kill(victim, signal.SIGKILL)
            except ProcessLookupError:
                pass
        r.wait()
        if r.rc not in (0, 125, -signal.SIGKILL):
            raise Failed(f"{name} killed early: status {r.rc}: {r.err()}")
        r.expect(rc=r.rc, min_out=0, no_stderr=WRONG)


def devices(h):
    """A device that fails: SIGBUS and a line that names it; what it does not take stays."""
    for spec in ("faulty:out=50:lz4", "faulty:sum=30:lz4", "faulty:out=2000:file:/var/tmp", "faulty:sum=1:lz4"):
        r = h.run([spin(h), SPIN, "0", "2"], ram=SPIN_RAM, to=spec)
        r.expect(rc=-signal.SIGBUS, stderr="^hmm run: .*lost: device " + spec[:6] + ".*SIGBUS", no_stderr=WRONG)
    # The child of a failing one fails by itself.
    r = h.run([spin(h), SPIN, "1", "2"], ram=SPIN_RAM, to="faulty:out=5000:lz4")
    r.expect(rc=-signal.SIGBUS, stderr="^hmm run: .*lost: device faulty", no_stderr=WRONG)
    # What the first tier refuses from some time on, the second takes; without a second, it stays.
    r = h.run([spin(h), SPIN, "0", "3"], ram=SPIN_RAM, to="faulty:in=20:lz4,file:/var/tmp")
    r.expect(no_stderr=WRONG)
    if r.stats()["devices"][1]["copied_in"] == 0:
        raise Failed(f"the second tier took nothing: {r.stats()}")
    r = h.run([spin(h), SPIN, "0", "2"], ram=SPIN_RAM, to="faulty:in=20:lz4")
    r.expect(stderr="^hmm run: all devices are full", no_stderr=WRONG)


if __name__ == "__main__":
    main_of(supervisor, supervisor_raw, supervisor_agents, supervisor_front, supervisor_hidden, keeper, agent, front, front_asleep, front_sharer, agent_and_program, front_forking, early, devices)
