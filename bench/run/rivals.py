# SPDX-License-Identifier: MIT
"""Swap of the kernel's to compare with, set up for a run and taken down after it.

What is changed on the machine (swap, sysctls, cgroups) is undone however the
benchmark ends: a second process, in a session of its own, knows how, and does it
when its pipe to the benchmark is closed.
"""
import json
import os
import signal
import subprocess
import threading
import time

MIB = 1 << 20


def write(path, text):
    with open(path, "w") as f:
        f.write(str(text))


def read(path):
    with open(path) as f:
        return f.read().strip()


def undo(step):
    """One of: write PATH TEXT, run COMMAND..., rmdir PATH, unlink PATH, empty CGROUP."""
    what, args = step[0], step[1:]
    try:
        if what == "write":
            write(*args)
        elif what == "run":
            subprocess.run(args, capture_output=True)
        elif what == "unlink":
            os.unlink(args[0])
        elif what == "rmdir":
            for _ in range(100):  # who was killed in there takes a moment
                try:
                    os.rmdir(args[0])
                    break
                except OSError:
                    time.sleep(0.05)
        elif what == "empty":
            for _ in range(100):
                pids = read(args[0] + "/cgroup.procs").split()
                if not pids:
                    break
                for pid in pids:
                    os.kill(int(pid), signal.SIGKILL)
                time.sleep(0.05)
    except OSError:
        pass


class Undo:
    """A stack of steps.  Each is known to the second process before it can be needed."""

    def __init__(self):
        r, self.w = os.pipe()
        self.steps = []
        self.pid = os.fork()
        if not self.pid:
            os.close(self.w)
            os.setsid()
            for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(s, signal.SIG_IGN)
            steps = []
            with os.fdopen(r) as f:
                for line in f:
                    steps = json.loads(line)
            for step in reversed(steps):
                undo(step)
            os._exit(0)
        os.close(r)
        os.set_inheritable(self.w, False)

    def _tell(self):
        os.write(self.w, (json.dumps(self.steps) + "\n").encode())

    def push(self, *step):
        self.steps.append(list(step))
        self._tell()

    def back_to(self, depth):
        while len(self.steps) > depth:
            undo(self.steps[-1])
            self.steps.pop()
            self._tell()

    def close(self):
        os.close(self.w)
        os.waitpid(self.pid, 0)


class Group:
    """A cgroup that limits memory and tells what CPU time was used in it; v1 or v2."""

    def __init__(self, u, name):
        self.v2 = os.path.exists("/sys/fs/cgroup/cgroup.controllers")
        if self.v2:
            control = "/sys/fs/cgroup/cgroup.subtree_control"
            have = read(control).split()
            for c in ("memory", "cpu"):
                if c not in have:
                    u.push("write", control, "-" + c)
                    write(control, "+" + c)
        self.mem, self.acct = ("/sys/fs/cgroup" + ("" if self.v2 else "/" + c) + "/" + name for c in ("memory", "cpuacct"))
        for path in {self.mem, self.acct}:
            u.push("rmdir", path)
            os.mkdir(path)
            u.push("empty", path)
        if not self.v2:
            write(self.mem + "/memory.swappiness", 100)
        self.cpu = self.acct + ("/cpu.stat" if self.v2 else "/cpuacct.usage")

    def limit(self, nbytes):
        if self.v2:
            write(self.mem + "/memory.max", nbytes or "max")
        else:
            write(self.mem + "/memory.limit_in_bytes", nbytes or -1)

    def cpu_seconds(self):
        word = read(self.cpu).split()  # as cpu_used() in measure.h
        return int(word[1]) / 1e6 if self.v2 else int(word[0]) / 1e9

    def usage(self):
        return int(read(self.mem + ("/memory.current" if self.v2 else "/memory.usage_in_bytes")))

    def join(self):
        for path in {self.mem, self.acct}:
            write(path + "/cgroup.procs", os.getpid())


class Killed(Exception):
    pass


def run(cmd, group, watch=None):
    """Its JSON; @watch is called every now and then meanwhile."""
    p = subprocess.Popen(cmd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                         preexec_fn=group.join if group else None)
    done = threading.Event()

    def look():
        while not done.wait(0.05):
            watch()
    t = threading.Thread(target=look) if watch else None
    if t:
        t.start()
    try:
        out, err = p.communicate()
    except BaseException:
        p.kill()
        p.wait()
        raise
    finally:
        done.set()
        if t:
            t.join()
    if p.returncode == -signal.SIGKILL:
        raise Killed()
    if p.returncode:
        raise RuntimeError(f"{' '.join(cmd)}: status {p.returncode}: {err.strip()[-300:]}")
    return json.loads(out.splitlines()[-1])


class Rival:
    """@cluster: vm.page-cluster; @pager: a program that pages out ahead of need, given a pid and what may stay."""

    def __init__(self, u, group, cluster, pager=None):
        self.u, self.group, self.cluster, self.pager, self.peak = u, group, cluster, pager, 0

    def pool(self):
        """RAM that it takes for what is swapped out, where the cgroup does not count it."""
        return 0

    def charged(self):
        """Is the pool part of what the cgroup counts, and limits?"""
        return False

    def set_up(self):
        pass

    def measure(self, cmd, limit, total, run=run):
        """
        What @run makes of it, given the command, the cgroup to be in, and what to call meanwhile.  It may have
        @limit bytes resident, and takes about @total in all, its pool counted, where that is known.
        """
        depth = len(self.u.steps)
        self.peak = 0
        try:
            self.u.push("write", "/proc/sys/vm/page-cluster", read("/proc/sys/vm/page-cluster"))
            write("/proc/sys/vm/page-cluster", self.cluster)
            self.set_up()
            self.u.push("empty", self.group.mem)  # what it has in the swap would not fit in its memory
            # Who pages out ahead keeps below by itself, and may be late.
            self.group.limit(limit + limit // 4 if self.pager else total if self.charged() and total else limit)
            return run(self.command(cmd, limit), self.group, self.look)
        finally:
            self.u.back_to(depth)
            self.group.limit(0)

    def command(self, cmd, limit):
        return [self.pager, str(limit)] + cmd if self.pager else cmd

    def look(self):
        self.peak = max(self.peak, self.group.usage() + self.pool())

    def swap_on(self, path):
        subprocess.run(["mkswap", path], check=True, capture_output=True)
        self.u.push("run", "swapoff", path)
        subprocess.run(["swapon", "-p", "32000", path], check=True, capture_output=True)


class Zram(Rival):
    def set_up(self):
        n = read("/sys/class/zram-control/hot_add")
        self.dev, self.sys = f"/dev/zram{n}", f"/sys/block/zram{n}"
        self.u.push("write", "/sys/class/zram-control/hot_remove", n)
        self.u.push("write", self.sys + "/reset", 1)
        write(self.sys + "/comp_algorithm", "lz4")
        write(self.sys + "/disksize", 4 << 30)
        if not os.path.exists(self.dev):
            major, minor = map(int, read(self.sys + "/dev").split(":"))
            self.u.push("unlink", self.dev)
            os.mknod(self.dev, 0o60600, os.makedev(major, minor))
        self.swap_on(self.dev)

    def pool(self):
        return int(read(self.sys + "/mm_stat").split()[2])


class FileSwap(Rival):
    def set_up(self):
        path = f"/var/tmp/hmm-bench-swap.{os.getpid()}"
        self.u.push("unlink", path)
        with open(os.open(path, os.O_CREAT | os.O_RDWR | os.O_EXCL, 0o600), "wb") as f:
            os.posix_fallocate(f.fileno(), 0, 4 << 30)
        self.swap_on(path)


ZSWAP = "/sys/module/zswap/parameters/"


class Zswap(FileSwap):
    """In front of a swap file.  Its pool is of the whole machine; nobody else swaps, or it is not offered."""

    def set_up(self):
        for name, value in ("compressor", "lz4"), ("max_pool_percent", 50), ("enabled", "Y"):
            self.u.push("write", ZSWAP + name, read(ZSWAP + name))
            try:
                write(ZSWAP + name, value)
            except OSError:
                if name != "compressor":  # else what the kernel has will do
                    raise
        super().set_up()

    def charged(self):
        return self.group.v2

    def pool(self):
        for line in [] if self.charged() else read("/proc/meminfo").splitlines():
            if line.startswith("Zswap:"):
                return int(line.split()[1]) << 10
        return 0


def why_not(kind):
    """None, or why it cannot be compared with."""
    if os.geteuid():
        return "needs root"
    if kind is Zram and not os.path.exists("/sys/class/zram-control/hot_add"):
        return "this kernel has no zram"
    if kind is Zswap:
        if not os.path.exists(ZSWAP + "enabled"):
            return "this kernel has no zswap"
        if len(read("/proc/swaps").splitlines()) > 1:
            return "others swap on this machine, too"
    return None


def machine():
    """What figures are from."""
    info = read("/proc/cpuinfo")
    cpu = next((line.split(":")[1].strip() for line in info.splitlines() if line.startswith("model name")), "?")
    return {"kernel": os.uname().release, "cpu": cpu, "cpus": os.cpu_count(), "used_cpus": len(os.sched_getaffinity(0)),
            "mem_mib": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGESIZE") // MIB,
            "virtual": "virtual machine" if " hypervisor" in info else "no hypervisor", "load": os.getloadavg()[0]}


def machine_text(m=None):
    m = m or machine()
    return (f"{m['cpus']} x {m['cpu']}, of which {m['used_cpus']} are used, {m['mem_mib'] / 1024:.0f} GiB, {m['virtual']},"
            f" Linux {m['kernel']}, load {m['load']:.1f} at the start")
