#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What hmm keeps from the program, and the program from whoever waits for it.

guard.py BUILD [NAME...]
"""
import ctypes
import fcntl
import json
import os
import re
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from hmmtest import SPIN, SPIN_RAM, Failed, comm, descendants, listens, main_of, ppid, skip, state  # noqa: E402

SYS_USERFAULTFD = 323
PR_SET_DUMPABLE = 4
HELD_S = 13  # an agent that only sleeps is waited for for ten


def check(cond, what):
    if not cond:
        raise Failed(what)


def built(h, name):
    return os.path.join(h.build, "test/run/life", name)


def status_of(pid):
    with open(f"/proc/{pid}/status") as f:
        return dict(line.rstrip("\n").split(":\t", 1) for line in f if ":\t" in line)


def faults(pid):
    """Does it wait for who serves it?"""
    try:
        with open(f"/proc/{pid}/wchan") as f:
            return "userfault" in f.read()
    except OSError:
        return False


def spaces(h, r):
    a = subprocess.run([h.exe, "stat", str(r.pid), "--json"], capture_output=True, text=True, check=False)
    return json.loads(a.stdout)["spaces"] if not a.returncode else None


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


def keeps_off(h):
    """The agent leaves the CPU to a program that faults there, and to who serves it: for either it would be in the way."""
    cpus = os.sched_getaffinity(0)
    if len(cpus) < 2:
        skip("there is one CPU")
    if os.geteuid():
        skip("without the right to come back from SCHED_IDLE nobody is followed closely")
    r = h.start([os.path.join(h.build, "test/run/load/rw"), "rand", "1", "128", "4", "1000"], ram="80M", to="lz4")
    r.until(r.agents, "no agent")
    agent = r.agents()[0]
    r.until(lambda: os.sched_getaffinity(agent) < cpus, "the agent goes anywhere")
    os.kill(r.program(), signal.SIGKILL)
    r.wait()


def interrupted(h):
    """Who serves is stopped for a moment, as by a debugger, or when a container is frozen: it goes on with what it did."""
    for mib in "4", SPIN:  # with nothing to do the agent sleeps in poll(2)
        r = h.start([built(h, "life-spin"), mib, "1", "0"], ram=SPIN_RAM)
        r.until(lambda: r.out().count("spinning") == 2, "it does not get going")
        serving = [*r.agents(), r.supervisor(), *[p for p in descendants(r.pid) if comm(p) == "hmm-keeper"]]
        check(len(serving) == 4, f"who serves: {serving}")
        for n in range(40):
            pid = serving[n % 4]
            os.kill(pid, signal.SIGSTOP)
            r.until(lambda: state(pid) in ("T", "Z", ""), "it does not stop")
            os.kill(pid, signal.SIGCONT)
            r.until(lambda: state(pid) != "T", "it does not go on")
        check(all(state(p) not in ("", "Z") for p in serving), f"somebody who served is gone: {r.err()}")
        for pid in [p for p in descendants(r.pid) if comm(p) == "life-spin"]:
            os.kill(pid, signal.SIGTERM)
        r.wait()
        r.expect(rc=-signal.SIGTERM, min_out=mib == SPIN, no_stderr=r"page \d+ .* word|died|killed")


def freezer():
    """A control group of version 2, made for us; None: there is none to be had."""
    for mount in "/sys/fs/cgroup", "/sys/fs/cgroup/unified":
        if os.path.exists(f"{mount}/cgroup.controllers"):
            try:
                return tempfile.mkdtemp(prefix="hmm-test-", dir=mount)
            except OSError:
                return None
    return None


def write(path, text):
    with open(path, "w") as f:
        f.write(text)


def held_up(h):
    """Who serves is stopped, or frozen, for longer than one who does nothing is waited for: nobody is killed."""
    group = freezer()
    if not group:
        print("SKIP: no control group of version 2 can be made here")
    r = h.start([built(h, "life-spin"), SPIN, "0", "0"], ram=SPIN_RAM)
    r.until(lambda: "spinning" in r.out(), "it does not get going")
    agent = r.agents()[0]
    out = lambda: spaces(h, r)[0]["pages_out"]  # noqa: E731

    def hold(begin, end):
        begin()
        try:
            time.sleep(HELD_S)
        finally:
            end()
        check(state(agent) not in ("", "Z"), f"who served is gone: {r.err()}")
        before = out()
        r.until(lambda: state(agent) in ("", "Z") or out() > before, "nothing is moved any more")
        check(state(agent) not in ("", "Z"), f"who served is gone: {r.err()}")

    hold(lambda: os.kill(agent, signal.SIGSTOP), lambda: os.kill(agent, signal.SIGCONT))
    if group:
        os.mkdir(f"{group}/in")
        write(f"{group}/in/cgroup.procs", str(agent))
        hold(lambda: write(f"{group}/cgroup.freeze", "1"), lambda: write(f"{group}/cgroup.freeze", "0"))
    os.kill(r.program(), signal.SIGTERM)
    r.wait()
    r.expect(rc=-signal.SIGTERM, no_stderr=r"page \d+ .* word|died|killed")
    if group:
        os.rmdir(f"{group}/in")
        os.rmdir(group)


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


def denied(h, what):
    """hmm run refuses to run anything."""
    p = subprocess.run([built(h, "life-denied"), what, h.exe, "run", "echo", "it ran"], capture_output=True, text=True,
                       check=False)
    check(p.returncode == 125 and not p.stdout, f"status {p.returncode}, {p.stdout!r}")
    return p


def kcmp_denied(h):
    """Where nobody can tell who lives in which address space, nothing is begun, and hmm doctor says so."""
    p = denied(h, "kcmp")
    check("kcmp" in p.stderr and p.stderr.count("\n") == 1, f"said {p.stderr!r}")
    p = subprocess.run([built(h, "life-denied"), "kcmp", h.exe, "doctor"], capture_output=True, text=True, check=False)
    check(p.returncode == 1 and re.search(r"^PROBLEM  kcmp: .*; mend: .*SYS_PTRACE", p.stdout, re.M), f"doctor: {p}")


def old_kernel(h):
    """Where UFFDIO_MOVE is missing nothing is begun, and a line says which kernel has it."""
    p = denied(h, "move")
    check("Linux 6.8" in p.stderr and p.stderr.count("\n") == 1, f"said {p.stderr!r}")


def static_image(h):
    """What has become a program that cannot be entered is let go, agent, memory and all, though that one runs on."""
    r = h.start([built(h, "life-exec"), "become", built(h, "life-exec-static"), "waits"], ram="24M",
                stdin=subprocess.PIPE)
    r.until(lambda: any(comm(p) == "life-exec-stati" for p in descendants(r.pid)), "it becomes no other", 60)
    r.until(lambda: not r.agents(), "the agent of what it was stays", 20)
    a = subprocess.run([h.exe, "stat", str(r.pid), "--json"], capture_output=True, text=True, check=False)
    s = json.loads(a.stdout) if not a.returncode else {}
    check(s.get("spaces") == [] and s["pages_out"] > 0 and not s["away_pages"], f"something of it is left: {a}")
    r.child.stdin.close()
    r.wait()
    r.expect()


def became_another(h):
    """An agent that ends when its program has become another one, of which nobody knows yet, has nobody killed."""
    for _ in range(20):
        r = h.start([built(h, "life-exec"), "become-when-told", built(h, "life-exec-static"), "waits"],
                    ram="24M", stdin=subprocess.PIPE)
        r.until(lambda: "told" in r.out(), "it does not get so far")
        program, agent, supervisor = r.program(), r.agents()[0], r.supervisor()
        os.kill(supervisor, signal.SIGSTOP)
        r.until(lambda: state(supervisor) == "T", "the supervisor does not stop")
        r.child.stdin.write(b"x")
        r.child.stdin.flush()
        # What it runs may be away, and then it needs who is stopped.
        r.until(lambda: comm(program) == "life-exec-stati" or faults(program), "it becomes no other")
        became = not faults(program)
        if became:
            os.kill(agent, signal.SIGKILL)
            r.until(lambda: state(agent) in ("", "Z"), "the agent does not end")
        os.kill(supervisor, signal.SIGCONT)
        if became:
            r.until(lambda: spaces(h, r) == [] or state(program) in ("", "Z"), "the space of what it was stays")
        r.child.stdin.close()
        r.wait()
        r.expect(no_stderr="killed")
        if became:
            return
    raise Failed("it never became another one without the supervisor")


def forked_while_armed(h):
    """Who was forked when its parent's space had been armed by half is found, and its memory moves."""
    with tempfile.TemporaryDirectory() as d:
        os.chmod(d, 0o777)
        r = h.run([built(h, "life-fork"), "while-armed"], ram="32M",
                  env=dict(os.environ, LD_PRELOAD=built(h, "libheld.so"), HMM_TEST_HELD=os.path.join(d, "held")))
    r.expect(no_stderr="cannot be moved")


def small_stack(h):
    """Threads of ours have stacks of their own size: those that serve faults, and those that bring all back."""
    r = h.start([built(h, "life-spin"), SPIN, "0", "0"], ram=SPIN_RAM,
                prefix=["sh", "-c", 'ulimit -s 128; exec "$@"', "sh"])
    r.until(lambda: "spinning" in r.out() or r.child.poll() is not None, "it does not get going")
    a = subprocess.run([h.exe, "stat", str(r.pid), "--restore", "--json"], capture_output=True, text=True, check=False)
    check(a.returncode == 0 and json.loads(a.stdout)["away_pages"] == 0, f"{a} {r.err()}")
    check(r.child.poll() is None, f"it has ended: {r.err()}")
    os.kill(r.program(), signal.SIGTERM)
    r.wait()
    r.expect(rc=-signal.SIGTERM, no_stderr="page .* word")


def control_sealed(h):
    """What the program shares with the supervisor cannot be cut short by it, nor be executed."""
    r = h.start(["sleep", "30"])
    r.until(r.agents, "no agent")
    fds = f"/proc/{r.supervisor()}/fd"
    shared = [n for n in os.listdir(fds) if "hmm-control" in os.readlink(f"{fds}/{n}")]
    check(shared, "no control memory")
    for n in shared:
        fd = os.open(f"{fds}/{n}", os.O_RDWR)
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
        want = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL | 0x20
        check(seals & want == want, f"seals {seals:#x}")
        try:
            os.ftruncate(fd, 0)
        except PermissionError:
            pass
        else:
            raise Failed("it was cut short")
        os.close(fd)


def connect(h, name):
    s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    s.connect("\0" + name)
    return s


def strangers(h):
    """Who takes up room for guests, and says nothing, pushes out none but other strangers."""
    if os.getuid():
        skip("wants root, to be somebody else")
    r = h.start(["sleep", "30"])
    r.until(r.agents, "no agent")
    name = listens(r.pid)
    mine = connect(h, name)
    gate, done = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        os.setuid(65534)
        held = [connect(h, name) for _ in range(300)]
        os.write(done[1], b"x")
        os.close(gate[1])
        os.read(gate[0], 1)
        os._exit(len(held) != 300)
    os.read(done[0], 1)
    # They have been accepted when a later one has.
    check(subprocess.run([h.exe, "stat", str(r.pid)], capture_output=True, check=False).returncode == 0, "no answer")
    mine.setblocking(False)
    try:
        check(mine.recv(1) is None, "our own connection was closed")
    except BlockingIOError:
        pass
    os.close(gate[1])
    os.waitpid(child, 0)


def wrong_words(h):
    """Who brings something else than a userfaultfd, or does not know the token, is sent away."""
    r = h.start(["sh", "-c", "sleep 30; :"])
    r.until(r.agents, "no agent")
    with open(f"/proc/{r.program()}/environ", "rb") as f:
        run = dict(e.split(b"=", 1) for e in f.read().split(b"\0") if b"=" in e)[b"HMM_RUN"]
    token = run.split()[1]
    for what in (os.open("/dev/null", os.O_RDWR), os.pipe()[0], os.open("/dev/userfaultfd", os.O_RDWR)):
        s = connect(h, listens(r.pid))
        pidfd = os.pidfd_open(os.getpid())
        maps = os.open("/proc/self/maps", os.O_RDONLY)
        hello = struct.pack("<IIQ32s", 0x31686d68, 0, 0x100000000, token)
        socket.send_fds(s, [hello], [what, maps, maps, pidfd])
        check(s.recv(100) == b"", "it was let in")
        s.close()
    check(r.child.poll() is None, "it did harm")
    # All as it should be, but for the token.
    s = connect(h, listens(r.pid))
    uffd = ctypes.CDLL(None, use_errno=True).syscall(SYS_USERFAULTFD, os.O_CLOEXEC | os.O_NONBLOCK)
    if uffd < 0:
        skip("wants a userfaultfd")
    socket.send_fds(s, [hello[:16] + b"0" * 32], [uffd, maps, maps, pidfd])
    check(s.recv(100) == b"", "it was let in without the token")


def says_hello(sock, token, pid):
    """What the supervisor says to who brings its own userfaultfd, and says to be process @pid's agent."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    # For the kernel's own accesses everybody may not have one; nor is there an agent here.
    uffd = libc.syscall(SYS_USERFAULTFD, os.O_CLOEXEC | os.O_NONBLOCK | 1)
    arena = libc.mmap(None, ctypes.c_size_t(64 << 20), 0, 0x22, -1, 0)
    maps = os.open("/proc/self/maps", os.O_RDONLY)
    pagemap = os.open("/proc/self/pagemap", os.O_RDONLY)
    socket.send_fds(sock, [struct.pack("<IIQ32s", 0x31686d68, 0, arena, token)],
                    [uffd, pagemap, maps, os.pidfd_open(pid)])
    return sock.recv(100)


def set_user_id(h):
    """Who has connected, and has become a program with other rights, is not believed to be who says hello there."""
    if os.getuid():
        skip("wants root, to be somebody else")
    r = h.start(["sh", "-c", "sleep 30; :"])
    r.until(r.agents, "no agent")
    with open(f"/proc/{r.program()}/environ", "rb") as f:
        run = dict(e.split(b"=", 1) for e in f.read().split(b"\0") if b"=" in e)[b"HMM_RUN"]
    token, name, heard = run.split()[1], listens(r.pid), os.pipe()
    with tempfile.TemporaryDirectory(prefix="hmmtest-") as d:
        if os.statvfs(d).f_flag & os.ST_NOSUID:
            skip("no set-user-id programs in the folder of temporary files")
        os.chmod(d, 0o755)
        program = os.path.join(d, "hmm-is-root")
        shutil.copy(shutil.which("sleep"), program)
        os.chmod(program, 0o4755)
        child = os.fork()
        if not child:
            try:
                os.setgroups([])
                os.setresgid(65534, 65534, 65534)
                os.setresuid(65534, 65534, 65534)
                ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)
                with connect(h, name) as own:
                    os.write(heard[1], b"welcome " if says_hello(own, token, os.getpid()) else b"refused ")
                s, parent = connect(h, name), os.getpid()
                if os.fork():
                    os.execv(program, [program, "60"])
                while comm(parent) != "hmm-is-root":
                    time.sleep(0.01)
                os.write(heard[1], b"welcome" if says_hello(s, token, parent) else b"refused")
            finally:
                os._exit(0)
        os.close(heard[1])
        said = b""
        while len(said) < 15 and (more := os.read(heard[0], 100)):
            said += more
        check(said == b"welcome refused", f"it was told {said!r}")
        check(comm(child) == "hmm-is-root" and state(child) in "RSD", f"it is {comm(child)} {state(child)}")
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def other_users_supervisor(h):
    """A program does not give its memory to another user, whatever its environment says."""
    if os.getuid():
        skip("wants root, to be somebody else")
    name = f"hmm/{os.getpid()}/guard"
    ready, heard = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        os.setuid(65534)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener.bind("\0" + name)
        listener.listen(8)
        os.write(ready[1], b"x")
        os.write(heard[1], listener.accept()[0].recv(1000) or b"nothing")
        os._exit(0)
    os.read(ready[0], 1)
    library = os.path.realpath(os.path.join(h.build, "libhmm-preload.so"))
    env = dict(os.environ, LD_PRELOAD=library, HMM_RUN=f"{name} {'0' * 32} {library}")
    p = subprocess.run(["echo", "it runs"], env=env, capture_output=True, text=True, check=False)
    said = os.read(heard[0], 1000)
    os.waitpid(child, 0)
    check(said == b"nothing", f"it was told {said!r}")
    check(p.stdout == "it runs\n", f"{p}")


def small_files(h):
    """RLIMIT_FSIZE is the program's, not that of what we keep of it; where it must be ours, it is said before."""
    r = h.run([built(h, "life-fork"), "spawn"], prefix=["sh", "-c", 'ulimit -S -f 64; exec "$@"', "sh"])
    r.expect()
    r = h.run(["true"], stats=False,
              prefix=["setpriv", "--bounding-set=-sys_resource", "sh", "-c", 'ulimit -f 64; exec "$@"', "sh"])
    r.expect(rc=125, min_out=0, stderr="ulimit -f")


def children_elsewhere(h):
    """Who has a pid namespace made for its children can have some: the first task in there is not ours."""
    if os.geteuid():
        skip("only root makes pid namespaces here")
    r = h.run(["unshare", "-p", "sh", "-c", "/bin/true && echo fine; :"])
    r.expect(min_out=0, stdout="^fine$")
    # What it starts is of the tree, by exec, system() or popen(), though it has no agent itself.
    mapped = "grep -c -m1 libhmm-preload /proc/self/maps"
    libc_does = "import ctypes as c; l = c.CDLL(None); l.popen.restype = c.c_void_p; "
    for start in (["sh", "-c", f"{mapped}; :"], [sys.executable, "-c", f"{libc_does}l.system(b'{mapped}')"],
                  [sys.executable, "-c", f"{libc_does}l.pclose(c.c_void_p(l.popen(b'{mapped}', b'w')))"]):
        r = h.run(["unshare", "-p", *start])
        r.expect(min_out=0, stdout="^1$")


def new_root(h):
    """A child of who has gone to where there is no /proc has an agent."""
    if os.geteuid():
        skip("only root may change its root")
    with tempfile.TemporaryDirectory(prefix="hmmtest-") as d:
        r = h.start([sys.executable, "-c", "import os, sys, time; os.chroot(sys.argv[1]); os.fork(); time.sleep(1000)", d])
        r.until(lambda: len(r.agents()) > 1, "no agent of the child")
        r.until(lambda: all(status_of(a)["Seccomp"] == "2" for a in r.agents()), "an agent has no filter")
        name = comm(r.program())
        for p in [p for p in descendants(r.pid) if comm(p) == name]:
            os.kill(p, signal.SIGKILL)
        r.wait()


def no_descriptors(h):
    """When a program ends, and the supervisor cannot open /proc, who lives on in its memory has all of it."""
    r = h.start([built(h, "life-fork"), "clone-vm-outlives"], stats=False, stdin=subprocess.PIPE)
    r.until(lambda: "absent" in r.out(), "it does not get going")
    supervisor = r.supervisor()
    most = resource.prlimit(supervisor, resource.RLIMIT_NOFILE)
    resource.prlimit(supervisor, resource.RLIMIT_NOFILE, (3, most[1]))
    r.child.stdin.close()
    r.until(lambda: "heir" in r.out() or r.err(), "nothing comes of it")
    resource.prlimit(supervisor, resource.RLIMIT_NOFILE, most)
    r.wait()
    r.expect(min_out=0, stdout="^heir 1 is right", no_stderr="page .* word")
    check(int(r.out().split()[0]) > 0, f"nothing was away: {r.out()}")


def no_descriptors_left(h):
    """It is the programs themselves that have all descriptors of the supervisor: when one ends it is seen all the same."""
    r = h.start([built(h, "life-spin"), SPIN, "0", "0"], ram=SPIN_RAM, stats=False)
    r.until(lambda: "spinning" in r.out(), "it does not get going")
    supervisor = r.supervisor()
    most = resource.prlimit(supervisor, resource.RLIMIT_NOFILE)
    used = {int(n) for n in os.listdir(f"/proc/{supervisor}/fd")}
    resource.prlimit(supervisor, resource.RLIMIT_NOFILE, (next(n for n in range(len(used) + 1) if n not in used), most[1]))
    os.kill(r.program(), signal.SIGTERM)
    r.wait(timeout=60)
    r.expect(rc=-signal.SIGTERM, min_out=0, no_stderr="page .* word")


def spare_descriptor(h):
    """The descriptor that is kept to turn away who knocks when there is no other is had again when there is one."""
    r = h.start(["sleep", "60"])
    r.until(r.agents, "no agent")
    supervisor = r.supervisor()
    most = resource.prlimit(supervisor, resource.RLIMIT_NOFILE)
    r.until(lambda: status_of(r.agents()[0])["Seccomp"] == "2", "the agent is not ready")
    count = lambda: len(os.listdir(f"/proc/{supervisor}/fd"))  # noqa: E731
    before = count()
    resource.prlimit(supervisor, resource.RLIMIT_NOFILE, (3, most[1]))
    with connect(h, listens(r.pid)):
        r.until(lambda: count() == before - 1, "the spare one is not given up")
        resource.prlimit(supervisor, resource.RLIMIT_NOFILE, most)
        r.until(lambda: count() == before + 1, "there is no spare one any more", 30)
    r.until(lambda: count() == before, "who went away is kept")
    os.kill(r.program(), signal.SIGTERM)
    r.wait()


def soft(pid, what):
    with open(f"/proc/{pid}/limits") as f:
        for line in f:
            if line.startswith(what):
                return line[26:].split()[0]
    raise Failed(f"no limit {what}")


def limits_lifted(h):
    """What the program may use is the program's: neither supervisor nor agent is held to it."""
    names = {"t": "Max cpu time", "v": "Max address space", "d": "Max data size", "f": "Max file size",
             "u": "Max processes", "n": "Max open files"}
    set_all = "".join(f"ulimit -S -{k} {v}; " for k, v in
                      {"t": 1000, "v": 8000000, "d": 8000000, "f": 100000, "u": 5000, "n": 64}.items())
    if int(status_of("self")["CapEff"], 16) >> 24 & 1:
        set_all += "ulimit -n 64; "  # for good, but for CAP_SYS_RESOURCE
    r = h.start(["sleep", "30"], prefix=["bash", "-c", set_all + 'exec "$@"', "bash"])
    r.until(r.agents, "no agent")
    r.until(lambda: status_of(r.agents()[0])["Seccomp"] == "2", "the agent is not ready")
    for key, name in names.items():
        check(soft(r.program(), name) not in ("unlimited", soft(r.supervisor(), name)),
              f"{name}: {soft(r.program(), name)} for the program, {soft(r.supervisor(), name)} for the supervisor")
        if key in "tdn":
            check(soft(r.program(), name) != soft(r.agents()[0], name), f"{name} is the agent's")


main_of(control_sealed, other_users_supervisor, strangers, wrong_words, set_user_id, confined, keeps_off, interrupted, held_up,
        exec_quiet, no_zombies, end_of_file, kcmp_denied, old_kernel, static_image, became_another, forked_while_armed,
        small_stack, small_files, limits_lifted, children_elsewhere, new_root, no_descriptors,
        no_descriptors_left, spare_descriptor)
