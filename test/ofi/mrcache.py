#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""libfabric's own registration cache, with umm as its memory monitor, and with what it has itself.

mrcache.py PROGRAM CARD MONITOR

With ours each case of PROGRAM must be right.  What libfabric's own monitors make of
the same cases is printed beside it, and not judged.
"""

import os
import subprocess
import sys

RIGHT = {
    "raw munmap and mmap": "new",
    "munmap and mmap": "new",
    "raw MAP_FIXED over it": "new",
    "raw mremap, and mmap in its place": "new",
    "raw MADV_DONTNEED": "new",
    "MADV_PAGEOUT": "new",
    "mprotect READ, then NONE": "refused 14",
    "fork, and the parent writes": "new",
    "fork, and the child has ended": "new",
    "free and malloc": "new",
    "threads": "new",
}


def run(seconds, program, preload, *args, **env):
    env = {**os.environ, "LD_PRELOAD": ":".join(preload), "FI_PROVIDER": "verbs",
           "FI_VERBS_DGRAM_USE_NAME_SERVER": "0", **env}
    p = subprocess.Popen([program, *args], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        out, err = p.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        p.kill()
        out, err = p.communicate()
        out += "hangs: yes\n"
    lines = dict(line.split(": ", 1) for line in out.splitlines() if ": " in line)
    return p.returncode, err, lines


def main(argv):
    program, card, monitor = argv[1:4]
    # What the environment asks for would take our place.
    status, err, got = run(300, program, [card, monitor], "threads", FI_MR_CACHE_MONITOR="memhooks")
    if "cannot be watched" in err:
        print("SKIP: " + err.strip())
        return 77
    if "getinfo" in got.get("FAIL", "") or "sends" in got.get("FAIL", ""):
        print(f"SKIP: libfabric has no verbs provider here, or io_uring is closed: {got['FAIL']}")
        return 77
    own = {m: run(5, program, [card], "threads", FI_MR_CACHE_MONITOR=m)[2] for m in ("userfaultfd", "memhooks")}
    print(f"{'':36}{'umm':14}" + "".join(f"{m:14}" for m in own))
    for case in RIGHT:
        print(f"{case:36}{got.get(case, '-'):14}" + "".join(f"{own[m].get(case, '-'):14}" for m in own))
    for m, lines in own.items():
        if "hangs" in lines:
            print(f"{m}: hangs")
    print(err, end="")
    # "unchanged": the cache was of no use.
    wrong = {k: v for k, v in got.items() if RIGHT.get(k) != v} | {k: "nothing" for k in RIGHT.keys() - got.keys()}
    for case, what in sorted(wrong.items()):
        print(f"wrong: {case}: {what}")
    return bool(wrong) or status != 0


if __name__ == "__main__":
    sys.exit(int(main(sys.argv)))
