#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""A program that fits into its budget pays next to nothing for hmm run.

fits.py BUILD [TEST...]
"""
import ctypes
import json
import os
import struct
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from hmmtest import Failed, comm, descendants, main_of, ppid, skip, state  # noqa: E402

SHARE = 100  # a hundredth of a CPU
LOOKS = 8
LOOK_S = 3
LONG = os.environ.get("HMM_TEST_LONG")
SHORT = 1000 if LONG else 250
STILL = 200
SYS_PERF_EVENT_OPEN, PERF_TYPE_SOFTWARE, PERF_COUNT_SW_TASK_CLOCK, PERF_ATTR_SIZE = 298, 1, 1, 112
MAP_DROPPABLE, MAP_ANONYMOUS = 0x08, 0x20
PR_CAPBSET_DROP, CAP_SYS_ADMIN, CAP_PERFMON = 24, 21, 38
libc = ctypes.CDLL(None)


def cpu_ns(pid):
    """CPU time of all threads of a process, from the scheduler's own account."""
    total = 0
    for t in os.listdir(f"/proc/{pid}/task"):
        try:
            with open(f"/proc/{pid}/task/{t}/schedstat") as f:
                total += int(f.read().split()[0])
        except OSError:
            pass
    return total


def nothing_done(s):
    bad = {k: s[k] for k in ("pages_out", "pages_in", "faults", "zero_filled", "registrations") if s[k]}
    if bad:
        raise Failed(f"the engine was to do nothing: {bad}")


def untouched(h):
    r = h.run([os.path.join(h.build, "test/run/load/rw"), "rand", "2", "64", "4", "16"], ram="256M")
    r.expect(min_out=0)
    nothing_done(r.stats())


def engine_cpu(h):
    """Not far below the budget, where the engine looks often, the program idle and at work."""
    fill = ("import sys,time\nb=bytearray(215<<20)\nfor i in range(0,len(b),4096): b[i]=1\nprint('full',flush=True)\n"
            "sys.stdin.readline()\nprint('busy',flush=True)\n"
            "import select\nn=0\n"
            "while not select.select([0],[],[],0)[0]:\n"
            " for i in range(n%7,len(b),409600): b[i]=i&255\n n+=1\n")
    r = h.start([sys.executable, "-c", fill], ram="256M", stdin=subprocess.PIPE, out=subprocess.PIPE)
    for what, said in ("idle", b"full"), ("at work", b"busy"):
        line = r.child.stdout.readline()
        if said not in line:
            r.child.stdin.close()
            r.wait()
            raise Failed(f"the program said {line}, not {said}: {r.err()}")
        sup = r.supervisor()
        if not sup:
            raise Failed("no supervisor")
        # Timers and wake-ups cost a virtual machine that is short of CPUs several times what they cost: that
        # only adds, so the least of a few looks is the engine's own.
        for _ in range(LOOKS):
            wall, cpu = time.monotonic_ns(), cpu_ns(sup)
            time.sleep(LOOK_S)
            cpu, wall = cpu_ns(sup) - cpu, time.monotonic_ns() - wall
            print(f"program {what}: the engine took {100 * cpu / wall:.2f} % of a CPU")
            if cpu * SHARE <= wall:
                break
        r.child.stdin.write(b"\n")
        r.child.stdin.flush()
        if cpu * SHARE > wall:
            raise Failed(f"the engine took {100 * cpu / wall:.2f} % of a CPU, program {what}")
    r.child.stdin.close()
    r.wait()
    r.expect(min_out=0)
    nothing_done(r.stats())


def fds(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))


def stat(h, pid):
    return json.loads(subprocess.run([h.exe, "stat", "--json", str(pid)], capture_output=True, check=True).stdout)


def may_have_clocks():
    """May a thread's CPU time send a signal?  (perf_event_open of PERF_COUNT_SW_TASK_CLOCK, of our own)"""
    attr = struct.pack("=IIQQ", PERF_TYPE_SOFTWARE, PERF_ATTR_SIZE, PERF_COUNT_SW_TASK_CLOCK, 1000000)
    fd = libc.syscall(SYS_PERF_EVENT_OPEN, attr.ljust(PERF_ATTR_SIZE, b"\0"), 0, -1, -1, 0)
    if fd >= 0:
        os.close(fd)
    return fd >= 0


def no_clocks():
    """For a child: what it starts has no right to such."""
    for cap in (CAP_SYS_ADMIN, CAP_PERFMON):
        libc.prctl(PR_CAPBSET_DROP, cap, 0, 0, 0)


def clocks_can_be_refused():
    probe = f"import sys; sys.path[:0]={sys.path!r}; import fits; sys.exit(fits.may_have_clocks())"
    return not subprocess.run([sys.executable, "-c", probe], preexec_fn=no_clocks).returncode


def asleep(h, **how):
    """A program, a part of which is away, and that sleeps until its input ends."""
    fill = ("import ctypes,sys\n"
            f"ctypes.CDLL(None).mmap(None,65536,3,{MAP_ANONYMOUS | MAP_DROPPABLE},-1,0)\n"  # which nobody may watch
            "b=bytearray(96<<20)\nfor i in range(0,len(b),4096): b[i]=i>>12&255\n"
            "print('full',flush=True)\nsys.stdin.readline()\n")
    r = h.start([sys.executable, "-c", fill], ram="64M", stdin=subprocess.PIPE, out=subprocess.PIPE, **how)
    line = r.child.stdout.readline()
    if b"full" not in line:
        r.child.stdin.close()
        r.wait()
        raise Failed(f"the program said {line}: {r.err()}")
    return r


def still(h):
    """Who watches a program that sleeps sleeps as long, where the kernel tells when it has run."""
    if not may_have_clocks():
        skip("the kernel does not tell us here when a thread has run")
    r = asleep(h)

    def looks():
        before = stat(h, r.pid)["looks"]
        time.sleep(LOOK_S)
        return stat(h, r.pid)["looks"] - before

    try:
        r.until(lambda: looks() <= 2 * LOOK_S, "it is looked at all the time")
        n = looks()
    finally:
        r.child.stdin.close()
        r.wait()
    r.expect()
    print(f"{n} looks in {LOOK_S} s")
    if n > 2 * LOOK_S:
        raise Failed(f"{n} looks in {LOOK_S} s at a program that sleeps")


def still_by_the_clock(h):
    """Where it does not, mappings are not walked through at each look."""
    if not clocks_can_be_refused():
        skip("everybody may be told here that a thread has run (kernel.perf_event_paranoid)")
    r = asleep(h, preexec_fn=no_clocks)

    def looked():
        s = stat(h, r.pid)
        return s["looks"] - before["looks"] >= STILL

    try:
        before = stat(h, r.pid)
        r.until(looked, "nobody looks any more")  # what was under way comes to its end
        before = stat(h, r.pid)
        r.until(looked, "nobody looks any more")
        after = stat(h, r.pid)
    finally:
        r.child.stdin.close()
        r.wait()
    r.expect()
    looks, walks = after["looks"] - before["looks"], after["walks"] - before["walks"]
    print(f"{looks} looks, {walks} walks")
    # One a second, and a look is ten milliseconds after the last one, or later on a busy machine.
    if walks > looks // 4:
        raise Failed(f"{walks} walks in {looks} looks at a program that sleeps")


def short_processes(h):
    """Many of them leave nothing behind: no space, no descriptor, no agent."""
    loop = "i=0; while [ $i -lt %d ]; do /bin/true || exit 1; i=$((i+1)); done; echo done; read x"
    r = h.start(["/bin/sh", "-c", loop % 10 + "; " + loop % SHORT], ram="64M", stdin=subprocess.PIPE,
                out=subprocess.PIPE)
    seen = []
    for n in 10, SHORT:
        line = r.child.stdout.readline()
        if b"done" not in line:
            r.child.stdin.close()
            r.wait()
            raise Failed(f"the loop did not get to its end: {r.err()}")
        sup = r.supervisor()
        # What is ended is taken down at the engine's own pace.
        r.until(lambda: len(stat(h, r.pid)["spaces"]) == 1 and len(r.agents()) == 1, "spaces stay behind")
        # There are threads that live for a moment: the fewest of some looks.
        looks = []
        for _ in range(20):
            looks.append((fds(sup), len(os.listdir(f"/proc/{sup}/task"))))
            time.sleep(0.01)
        seen.append((min(k[0] for k in looks), min(k[1] for k in looks)))
        dead = [p for p in descendants() if state(p) == "Z" and ppid(p) not in (r.pid, os.getpid())]
        if dead:
            raise Failed(f"zombies: {[(p, comm(p)) for p in dead]}")
        r.child.stdin.write(b"\n")
        r.child.stdin.flush()
    r.child.stdin.close()
    r.wait()
    r.expect(min_out=0)
    if seen[0] != seen[1]:
        raise Failed(f"descriptors, threads of the supervisor after 10 and after {SHORT} more: {seen}")
    nothing_done(r.stats())

    took = []
    for prefix in ([], [h.exe, "run", "--ram", "64M", "--"]) if LONG else ():
        t = time.monotonic()
        subprocess.run(prefix + ["/bin/sh", "-c", loop % SHORT], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        took.append(time.monotonic() - t)
    if took:
        print(f"{SHORT} processes: {took[0]:.2f} s without, {took[1]:.2f} s with hmm run, "
              f"{(took[1] - took[0]) * 1000 / SHORT:.2f} ms more each")


CPUACCT, CGROUP2 = "/sys/fs/cgroup/cpuacct", "/sys/fs/cgroup"
MORE_NS = 2000000  # of CPU time, all that hmm run does for a process included; or what a process takes anyway


class Account:
    """CPU time of whatever is started, and of what that starts, whoever its parent is."""

    def __init__(self):
        self.v2 = not os.path.isdir(CPUACCT)
        self.path = f"{CGROUP2 if self.v2 else CPUACCT}/hmmtest-{os.getpid()}"
        os.mkdir(self.path)
        try:
            self.ns()
        except OSError:
            os.rmdir(self.path)
            raise

    def run(self, cmd):
        def enter():
            with open(self.path + "/cgroup.procs", "w") as f:
                f.write(str(os.getpid()))

        before = self.ns()
        out = subprocess.run(cmd, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True,
                             preexec_fn=enter).stdout
        while self.members():  # agents end after their programs
            time.sleep(0.01)
        return out, self.ns() - before

    def members(self):
        with open(self.path + "/cgroup.procs") as f:
            return f.read().split()

    def ns(self):
        if not self.v2:
            with open(self.path + "/cpuacct.usage") as f:
                return int(f.read())
        with open(self.path + "/cpu.stat") as f:
            return int(f.read().split("usage_usec ")[1].split()[0]) * 1000

    def close(self):
        os.rmdir(self.path)


def account():
    """None where there is none to be had."""
    try:
        return Account()
    except OSError as e:
        print(f"CPU time is not looked at: {e}")
        return None


def short_processes_of_make(h):
    """make starts them with a jobserver and posix_spawn or vfork."""
    with open(os.path.join("/tmp", f"hmmtest-{os.getpid()}.mk"), "w") as f:
        f.write("all:" + "".join(f" t{i}" for i in range(SHORT)) + "\n")
        for i in range(SHORT):
            f.write(f"t{i}:\n\t@/bin/echo {i}\n")
    make = ["make", "-s", "-j2", "-f", f.name]
    took, more, own, may, acc = [], [], [], MORE_NS, account()
    try:
        # What else runs here makes everything dearer at times: the least of a few looks is what it costs.
        while len(more) < LOOKS and (not more or min(more) >= may):
            spent = []
            for prefix in [], [h.exe, "run", "--ram", "64M", "--"]:
                t = time.monotonic()
                if acc:
                    out, ns = acc.run(prefix + make)
                else:
                    out, ns = subprocess.run(prefix + make, capture_output=True, text=True, check=True).stdout, 0
                took.append(time.monotonic() - t)
                spent.append(ns)
                if sorted(int(x) for x in out.split()) != list(range(SHORT)):
                    raise Failed("not every one of the processes was seen to work")
            more.append((spent[1] - spent[0]) / SHORT)
            # Where a page table is dear, to fork and to exec is, too: there a process costs a multiple of this.
            own.append(spent[0] / SHORT)
            may = max(MORE_NS, min(own))
    finally:
        os.unlink(f.name)
        if acc:
            acc.close()
    print(f"{SHORT} processes of make -j2: {took[-2]:.2f} s without, {took[-1]:.2f} s with hmm run, "
          f"{(took[-1] - took[-2]) * 1000 / SHORT:.2f} ms more each; "
          f"{', '.join(f'{x / 1e6:.2f}' for x in more)} ms of CPU more each, {may / 1e6:.2f} allowed")
    if not acc:
        skip("they work; what they cost was not looked at")
    if min(more) >= may:
        raise Failed(f"a process costs {min(more) / 1e6:.2f} ms of CPU more, {may / 1e6:.2f} are allowed")


if __name__ == "__main__":
    main_of(untouched, engine_cpu, still, still_by_the_clock, short_processes, short_processes_of_make)
