#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What a binary shows to others, and what it asks of them.

exports.py api LIBRARY HEADER...   the library exports just the functions that the headers declare
exports.py hooks LIBRARY           the preload library exports just hooks of libc's functions
exports.py libhooks LIBRARY        the same of libhmm-hooks, and its one call
exports.py alone ARCHIVE           nothing in the archive is left undefined: it needs no libc
exports.py below ARCHIVE PART      what is of PART in the archive needs nothing that only the rest of it has
"""

import re
import subprocess
import sys

# What the preload library stands in for.
HOOKS = {
    "clone", "daemon", "execl", "execle", "execlp", "execv", "execve", "execveat", "execvp", "execvpe", "fexecve",
    "fork", "_Fork", "forkpty", "ioctl", "madvise", "mremap", "popen", "posix_spawn", "posix_spawnp", "process_madvise",
    "pthread_create", "setsockopt", "system", "thrd_create",
}

# What libhmm-hooks does.
LIBHOOKS = {
    "brk", "madvise", "mmap", "mmap64", "mprotect", "mremap", "munmap", "pkey_mprotect", "process_madvise",
    "remap_file_pages", "sbrk", "shmat", "shmdt", "umm_hooks_set",
}


def nm(*args):
    out = subprocess.run(["nm", *args], check=True, capture_output=True, text=True).stdout
    return [line.split() for line in out.splitlines() if line.strip()]


def exported(path):
    return {f[-1].split("@")[0] for f in nm("-D", "--defined-only", path) if len(f) == 3 and f[1] in "TWBDRV"}


def declared(headers):
    names = set()
    for path in headers:
        text = open(path, encoding="utf-8").read()
        text = re.sub(r"/\*.*?\*/", "", text, flags=re.S)
        text = re.sub(r"\{[^{}]*\}", "", text)  # members of structures are not functions
        names.update(re.findall(r"\b((?:umm|hmm)_\w+)\s*\(", text))
    return names


def difference(what, have, want):
    for name in sorted(have - want):
        print(f"{what}: {name} is exported and should not be")
    for name in sorted(want - have):
        print(f"{what}: {name} is not exported and should be")
    return have != want


def needed_of_others(path, part):
    """Objects are named for their folder and file."""
    defined, undefined = {True: set(), False: set()}, set()
    inside = False
    for f in nm(path):
        if f[-1].endswith(":"):
            inside = f[-1].split("/")[-1].startswith(part + "_")
        elif f[0] == "U":
            undefined.update(f[-1:] if inside else [])
        else:
            defined[inside].update(f[-1:] if f[1] in "TBDRVWC" else [])
    if not undefined or not defined[False]:
        print(f"{path}: has nothing of {part}, or nothing else")
        return True
    for name in sorted((undefined - defined[True]) & defined[False]):
        print(f"{path}: {part} needs {name}")
    return bool((undefined - defined[True]) & defined[False])


def main(argv):
    mode, path, rest = argv[1], argv[2], argv[3:]
    if mode == "api":
        want = declared(rest)
        if not want:
            print("no declarations found")
            return 1
        return difference(path, exported(path), want)
    if mode == "hooks":
        return difference(path, exported(path), HOOKS)
    if mode == "libhooks":
        return difference(path, exported(path), LIBHOOKS)
    if mode == "below":
        return needed_of_others(path, rest[0])
    symbols = nm(path)
    defined = {f[-1] for f in symbols if len(f) == 3 and f[1] in "TtBbDdRr"}
    undefined = {f[-1] for f in symbols if len(f) == 2 and f[0] == "U"}
    for name in sorted(undefined - defined):
        print(f"{path}: needs {name}")
    return bool(undefined - defined) or not defined


if __name__ == "__main__":
    sys.exit(int(main(sys.argv)))
