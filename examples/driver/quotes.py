#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Is every piece of C in a document a piece of one of the files?

quotes.py DOCUMENT FILE...

So what the document shows is what is built and run.  Lines are compared without the indentation that a piece has in
common; a line "..." stands for lines left out.
"""

import re
import sys
import textwrap


def lines_of(text):
    return [line.rstrip() for line in text.expandtabs(8).split("\n")]


def matches(piece, lines, at):
    """Does @piece stand in @lines from @at on?  Parts between "..." follow one another."""
    part = []
    for line in piece + ["..."]:
        if line.strip() != "...":
            part.append(line)
            continue
        if part:
            found = next((i for i in range(at, len(lines) - len(part) + 1)
                          if textwrap.dedent("\n".join(lines[i:i + len(part)])) == textwrap.dedent("\n".join(part))), None)
            if found is None:
                return False
            at = found + len(part)
        part = []
    return True


def main(argv):
    document = open(argv[1], encoding="utf-8").read()
    sources = [lines_of(open(path, encoding="utf-8").read()) for path in argv[2:]]
    pieces = re.findall(r"^```c\n(.*?)^```$", document, re.S | re.M)
    bad = 0
    for piece in pieces:
        if not any(matches(lines_of(piece.rstrip("\n")), s, 0) for s in sources):
            bad += 1
            print(f"{argv[1]}: in none of the examples:\n{piece}")
    if not pieces:
        print(f"{argv[1]}: no piece of C in it")
    return bool(bad) or not pieces


if __name__ == "__main__":
    sys.exit(int(main(sys.argv)))
