#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Has every lock that is declared in src/ its place in doc/locking.md?

locks.py SOURCE

A line there must name both the lock and the file that declares it; those of drivers stand together, as src/drivers/*.
"""

import os
import re
import sys

LOCK = re.compile(r"^\s*(?:static )?(?:pthread_mutex_t|pthread_rwlock_t) (\w+)( = \w+)?;", re.M)


def main(argv):
    root = argv[1]
    lines = open(os.path.join(root, "doc/locking.md"), encoding="utf-8").read().split("\n")
    bad = found = 0
    for folder, _, files in sorted(os.walk(os.path.join(root, "src"))):
        for name in sorted(files):
            path = os.path.relpath(os.path.join(folder, name), root)
            if not name.endswith((".c", ".h")):
                continue
            for lock, _ in LOCK.findall(open(os.path.join(root, path), encoding="utf-8").read()):
                found += 1
                where = (path, "src/drivers/*") if path.startswith("src/drivers/") else (path,)
                if not any(f"`{lock}`" in line and any(f"`{w}`" in line for w in where) for line in text(lines)):
                    bad += 1
                    print(f"{path}: {lock} has no place in doc/locking.md")
    return bool(bad) or not found


def text(lines):
    """Rows of tables, and paragraphs as one line."""
    paragraph = []
    for line in lines + [""]:
        if line.startswith("|") or not line:
            if paragraph:
                yield " ".join(paragraph)
            paragraph = []
            if line:
                yield line
        else:
            paragraph.append(line)


if __name__ == "__main__":
    sys.exit(int(main(sys.argv)))
