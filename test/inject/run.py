#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""run.py BUILD [-v] [--full] [--scenario NAME] [--site PATTERN] [--part K/N]: the walk of linked.c for `hmm run`.

A program that checks itself (victim.c) runs on half of its memory, once as it
is, and then once for each site that was reached, by the command, the supervisor,
the agent or the library in the program, with the first occurrence failing;
--full: of the engine as well, and other occurrences, and all of them; --scenario: of
one only; --part: the Kth of N parts of these.  Each run must end in one of these
ways: all is right; a call of the program was refused with an errno; hmm run refused,
with a line; SIGBUS or SIGKILL, with a line that says why, of the process that died of it.
Nothing may be left running.  The clock decides nothing but that a run hangs.
"""
import errno
import fnmatch
import json
import mmap
import os
import re
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "run"))
import hmmtest  # noqa: E402

NAME, SITES, ERRORS = 112, 4096, 3
HEAD = 40  # lock nsites target nth count err fired always always_err always_from
ENTRY = 4 + 4 * ERRORS + NAME
WATCHDOG = int(os.environ.get("HMM_INJECT_WATCHDOG_MS", "60000")) / 1000
PASSING = {"EAGAIN", "EINTR", "EBUSY", "EMFILE"}

# Whoever is not hmm run's alone is walked over by inject-linked; here with --full.
OURS = ("run/", "umm/inside.c", "hmm/budget.c", "hmm/reclaim.c", "hmm/demote.c", "hmm/engine.c", "hmm/discover.c",
        "hmm/fault.c", "cli/", "umm/hooks.c", "drivers/ofi/")

# Not reached by the victim, or only where something else fails, and why; fnmatch patterns.
UNREACHED = {
    "run/stat.c ours stat": "open: asked only where another user's socket is called as ours are",
    "cli/doctor.c *": "hmm doctor is another command",
    "cli/kernel_bugs.c *": "hmm doctor is another command",
    "run/supervisor.c kill_tree *": "deaths are test/run/life/kill.py's",
    "run/member.c member_kill *": "deaths are test/run/life/kill.py's",
    "run/heir.c inherit *": "a program that ends before who shares its memory; test/run/life/fork.c",
    "run/supervisor.c on_program_end *": "a supervisor that cannot open /proc; test/run/life/guard.py",
    "run/front.c fill_streams open": "a standard stream that is closed; test/run/life/front.py",
    "run/supervisor.c write_stats fdopen": "figures that go to a pipe; test/run/life/front.py",
    "run/lives.c lives_stopped *": "a program that is stopped; test/run/life/front.py",
    "run/lives.c counts_*": "a supervisor that may not look at an undumpable program; test/run/life/front.py",
    "run/lives.c thread_lives_in *": "a program whose first thread has ended; test/run/life/changes.c",
    "run/keeper.c *": "after the supervisor's death; test/run/life/kill.py",
    "run/agent.c supervisor_died *": "deaths are test/run/life/kill.py's",
    "run/agent.c somebody_is_here *": "an agent that cannot open /proc",
    "run/agent.c kill_if_here *": "deaths are test/run/life/kill.py's",
    "hmm/asleep.c *": "a tree that sleeps, and one that may have no clocks: test/run/load/fits.py",
    "drivers/ofi/absent.c *": "where libfabric is missing when it is built",
    "drivers/ofi/ep.c ofi_mr_reg *": "of a provider that wants its own memory registered; and test/ofi",
    "drivers/ofi/ep.c post_inject *": "memory that peers reach by themselves; test/ofi",
    "run/lines.c write_all poll": "standard error takes no more; test/unit/run/lines_test.c",
    "run/lines.c lines_end *": "the same, at the end; test/run/tier/tier.py",
}


# What is run, by name: arguments of hmm run, and a site that fails throughout: with which error, from when on.
# With {port} in it, pages are kept at a server; SERVED: it is the server, and nobody else, whose calls fail.
SERVED = "server"
SCENARIOS = {
    "victim": (["--ram", "20M", "--to", "lz4:2M,file:/tmp", "--stats", "{stats}", "--", "{dir}/inject-victim"], None),
    "forks untold": (["--ram", "20M", "--to", "lz4:2M,file:/tmp", "--stats", "{stats}", "--", "{dir}/inject-victim",
                      "no-raw"], ("umm/uffd.c umm_uffd_api ioctl UFFDIO_API", 1, 2)),
    "children refused": (["--ram", "20M", "--to", "lz4:2M,file:/tmp", "--stats", "{stats}", "--", "{dir}/inject-victim",
                          "heir"], ("run/signon.c give_fds sendmsg", errno.EAGAIN, 2)),
    "peer": (["--ram", "20M", "--to", "lz4:2M,ofi://127.0.0.1:{port},key={key}", "--stats", "{stats}", "--",
              "{dir}/inject-victim"], None),
    SERVED: (["--ram", "20M", "--to", "lz4:2M,ofi://127.0.0.1:{port},key={key}", "--stats", "{stats}", "--",
              "{dir}/inject-victim"], None),
    "script": (["--ram", "50%", "--stats", "{name}", "-v", "--", "{script}"], None),
}


class Plan:
    """The table that all processes of a run share (struct inject_shared)."""

    def __init__(self):
        self.file = tempfile.NamedTemporaryFile(prefix="hmm-inject-")
        self.file.truncate(HEAD + SITES * ENTRY)
        self.key = tempfile.NamedTemporaryFile(prefix="hmm-inject-")
        self.key.write(os.urandom(32))
        self.key.flush()
        self.script = tempfile.NamedTemporaryFile(prefix="hmm-inject-", mode="w", delete=False)
        self.script.write("echo right\n")
        self.script.close()
        os.chmod(self.script.name, 0o755)
        self.map = mmap.mmap(self.file.fileno(), HEAD + SITES * ENTRY)

    def get(self, i):
        return struct.unpack_from("<I", self.map, 4 * i)[0]

    def put(self, i, value):
        struct.pack_into("<I", self.map, 4 * i, value)

    def sites(self):
        """name: (index plus one, hits, errors)"""
        out = {}
        for i in range(self.get(1)):
            at = HEAD + i * ENTRY
            hits, = struct.unpack_from("<I", self.map, at)
            err = [e for e in struct.unpack_from(f"<{ERRORS}i", self.map, at + 4) if e]
            name = self.map[at + 4 + 4 * ERRORS:at + ENTRY].split(b"\0")[0].decode()
            out[name] = (i + 1, hits, err)
        return out

    def clear(self):
        for i in range(self.get(1)):
            struct.pack_into("<I", self.map, HEAD + i * ENTRY, 0)
        self.put(0, 0)
        self.put(2, 0)
        self.put(6, 0)


def left_over(mark):
    """Processes that have @mark in their environment."""
    out = []
    for e in os.listdir("/proc"):
        try:
            if e.isdigit() and int(e) != os.getpid() and mark in open(f"/proc/{e}/environ", "rb").read():
                out.append(int(e))
        except OSError:
            pass
    return out


class Server:
    """hmm serve, for one run."""

    def __init__(self, hmm, key, env):
        self.said = tempfile.TemporaryFile()
        line = [hmm, "serve", "--listen", "ofi://127.0.0.1:0", "--memory", "64M", "--key", key]
        self.child = subprocess.Popen(line, env=env, stdout=subprocess.PIPE, stderr=self.said, cwd="/tmp")
        hangs = threading.Timer(WATCHDOG, self.child.kill)
        hangs.start()
        line = self.child.stdout.readline().decode()
        hangs.cancel()
        self.port = line.strip().rpartition(":")[2] if line.startswith("hmm serve: listening on ") else None

    def end(self):
        """(whether it ended as it should, what it said); it is told to."""
        self.child.terminate()
        try:
            rc = self.child.wait(WATCHDOG)
        except subprocess.TimeoutExpired:
            hmmtest.dump([self.child.pid])
            self.child.kill()
            self.child.wait()
            rc = "it never ended"
        self.child.stdout.close()
        self.said.seek(0)
        said = self.said.read().decode(errors="replace")
        refused = rc == 125 and not self.port and re.search(r"^hmm serve: .", said, re.M)
        return rc == 0 or refused, f"\nserver: status {rc}: {said}"


def who_died(path):
    """(the program, its child that it died for) as the victim wrote them; 0: not known, or nobody."""
    program = child = 0
    try:
        with open(path) as f:
            for line in f:
                what, pid = line.split()
                program, child = (int(pid), child) if what == "program" else (program, int(pid))
    except (OSError, ValueError):
        pass
    return program, child


def says_why(said, sig, program, child):
    """Does a line say why @sig ended @child of @program; or, where there is no @child, @program itself?

    What is said of a child excuses nobody else.  Of who has not signed on the number is not known: 0.  What a
    process has lost it has lost to children that it makes then, too: so they may die of what is said of it.
    """
    own = {str(program)} if program else set()
    if child:
        own |= {str(child), "0"}
    for line in said.splitlines():
        if not re.search(r"^hmm run: .* (is|are) lost" if sig == signal.SIGBUS else r"^hmm run: .*(kill|died)", line):
            continue
        about = re.search(r"\bprocess (\d+)", line)
        of_child = re.search(r"\bforked child of process|\blost to (the child|it)\b", line)
        if not about:
            return True  # of all of them
        if of_child and child and about[1] == str(program):
            return True
        if not of_child and (about[1] in own or not program):
            return True
    return False


def run(build, plan, scenario, name=None, nth=1, count=1, err=0):
    """(how it ended or None, text, fired, hits of the site)"""
    args, always = SCENARIOS[scenario]
    sites = plan.sites()
    plan.clear()
    for i, value in ((7, sites[always[0]][0] if always else 0), (8, always[1] if always else 0),
                     (9, always[2] if always else 0)):
        plan.put(i, value)
    if name:
        for i, value in ((3, nth), (4, count), (5, err), (2, sites[name][0])):
            plan.put(i, value)
    failing = {"HMM_INJECT": plan.file.name}
    env = dict(os.environ, HMM_INJECT_RUN=plan.file.name, **(failing if scenario != SERVED else {}))
    mark = ("HMM_INJECT_RUN=" + plan.file.name).encode()
    pids = plan.file.name + ".pids"
    if os.path.exists(pids):
        os.unlink(pids)
    at = os.path.join(build, "test/inject")
    server = port = None
    if any("{port}" in a for a in args):
        server = Server(f"{at}/hmm", plan.key.name, dict(os.environ, **failing) if scenario == SERVED else None)
        port = server.port
        if not port:
            ok, said = server.end()
            fired, hits = plan.get(6), plan.sites()[name][1] if name else 0
            plan.put(2, 0)
            return "hmm serve refused" if ok else None, said, fired, hits, {}
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as lines:
        stats_path = plan.file.name + ".stats"
        args = [a.format(dir=at, stats=stats_path, name=os.path.basename(stats_path), script=plan.script.name,
                         port=port, key=plan.key.name) for a in args]
        p = subprocess.Popen([f"{at}/hmm", "run"] + args, env=env, stdout=out, stderr=lines, cwd="/tmp")
        hung = False
        try:
            p.wait(WATCHDOG)
        except subprocess.TimeoutExpired:
            hung = True
        until = time.monotonic() + WATCHDOG / 2
        while not hung and left_over(mark):
            hung = time.monotonic() > until
            time.sleep(0.005)
        if hung:
            rest = left_over(mark)
            hmmtest.dump(rest)
            for pid in rest:
                try:
                    os.kill(pid, signal.SIGKILL)
                except OSError:
                    pass
            p.wait()
        out.seek(0)
        lines.seek(0)
        text, said = out.read().decode(errors="replace"), lines.read().decode(errors="replace")
    served, server_said = server.end() if server else (True, "")
    fired = plan.get(6)
    hits = plan.sites()[name][1] if name else 0
    plan.put(2, 0)
    end, status = None, p.returncode
    try:
        with open(stats_path) as f:
            stats = json.load(f)
    except (OSError, ValueError):
        stats = {}
    if hung:
        text += "\nit never ended"
    elif not served:
        text += "\nthe server did not end as it should"
    elif status == 0 and text == "right\n":
        end = "right"
    elif status == 3 and text.startswith("refused: "):
        end = text.strip()
    elif status in (125, 126, 127) and re.search(r"^hmm run: .", said, re.M):
        end = "hmm run refused"
    elif status in (-signal.SIGBUS, -signal.SIGKILL) and says_why(said, -status, *who_died(pids)):
        end = "SIGBUS" if status == -signal.SIGBUS else "killed"
    return end, f"status {status}: {text.strip()}\n{said}{server_said}", fired, hits, stats


def main():
    build, args = os.path.abspath(sys.argv[1]), sys.argv[2:]
    verbose, full = "-v" in args, "--full" in args
    only = args[args.index("--site") + 1] if "--site" in args else None
    name = args[args.index("--scenario") + 1] if "--scenario" in args else None
    scenarios = {name: SCENARIOS[name]} if name else SCENARIOS
    if os.geteuid():
        hmmtest.skip("not all sites are reached without root")
    part, parts = map(int, args[args.index("--part") + 1].split("/")) if "--part" in args else (1, 1)
    plans = [Plan() for _ in range(min(4, os.cpu_count() or 1) if not only or "*" in only else 1)]
    plain, base = {}, {}
    for scenario, (_, always) in scenarios.items():
        for plan in plans:
            if always and always[0] not in plan.sites():
                run(build, plan, "script")  # by which all of them are known
            end, text, _, _, stats = run(build, plan, scenario)
            if "no permission" in text or "cannot move" in text:
                hmmtest.skip(text.splitlines()[-1])
            if end != "right" or (scenario != "script" and not stats.get("pages_out")):
                sys.exit(f"{scenario}, without any failure: {end}: {text}\n{stats}")
        plain[scenario] = text
        base[scenario] = plan.sites()
    cases, seen = [], set()
    for scenario, (_, always) in scenarios.items():
        for name, (_, hits, errs) in base[scenario].items():
            if only and not fnmatch.fnmatchcase(name, only):
                continue
            if not hits or not errs or not (full or only or name.startswith(OURS)):
                continue
            if (name in seen and not full) or (always and always[0] == name):
                continue
            seen.add(name)
            for err in errs if full else errs[:1]:
                cases.append((scenario, name, 1, 1, err))
                if full and hits > 1:
                    cases.append((scenario, name, hits // 2 + 1, 1, err))
                    cases.append((scenario, name, 1, 50 if errno.errorcode[err] in PASSING else 1000, err))
    if only and not cases:
        sys.exit(f"no call that can fail is made at {only}")
    cases = cases[part - 1::parts]
    lock, state = threading.Lock(), {"next": 0, "bad": 0, "ran": 0}
    fired_at, reached, ends, silent = set(), {n for b in base.values() for n, s in b.items() if s[1]}, {}, set()

    def work(k):
        while True:
            with lock:
                i = state["next"]
                state["next"] += 1
            if i >= len(cases):
                return
            scenario, name, nth, count, err = cases[i]
            end, text, fired, hits, _ = run(build, plans[k], scenario, name, nth, count, err)
            with lock:
                state["ran"] += 1
                reached.update(n for n, s in plans[k].sites().items() if s[1])
                ends[end] = ends.get(end, 0) + 1
                if fired:
                    fired_at.add(name)
                if end == "right" and text == plain[scenario]:
                    silent.add(name)
                if not end:
                    state["bad"] += 1
                if not end or verbose:
                    more = f" and {count - 1} after" if count > 1 else ""
                    print(f"{scenario}: {name}, occurrence {nth}{more}, {os.strerror(err)}: {end or 'WRONG'}"
                          f"{'' if fired else ' (did not come to it)'}", flush=True)
                    if not end or text != plain[scenario]:
                        print("    " + text.strip().replace("\n", "\n    "), flush=True)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(len(plans))]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    bad = state["bad"]
    known = [n for n, s in plans[0].sites().items() if n.startswith(OURS) and s[2]]
    for name in known if not only and parts == 1 and len(scenarios) == len(SCENARIOS) else []:
        why = [w for p, w in UNREACHED.items() if fnmatch.fnmatchcase(name, p)]
        if name not in reached and not why:
            print("never reached:", name)
            bad += 1
    print(f"{state['ran']} runs, {state['bad']} wrong;",
          ", ".join(f"{n} x {e}" for e, n in sorted(ends.items(), key=lambda x: str(x[0]))))
    print(f"{len(known)} sites of hmm run, {len([n for n in known if n in reached])} reached,"
          f" {len(fired_at)} made to fail, {len(silent)} of these without a trace in what was said")
    for plan in plans:
        os.unlink(plan.script.name)
        for path in plan.file.name + ".stats", plan.file.name + ".pids":
            if os.path.exists(path):
                os.unlink(path)
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
