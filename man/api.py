#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Has every function that the library exports a man page, with all that its header says of it?

api.py LIBRARY PAGES HEADER...

What a header says is found in another way than scripts/manpages does: this is to notice what that one loses.
"""

import os
import re
import subprocess
import sys


def exported(library):
    out = subprocess.run(["nm", "-D", "--defined-only", library], check=True, capture_output=True, text=True).stdout
    return {line.split()[-1].split("@")[0] for line in out.splitlines() if " T " in line}


def page_of(pages, name):
    """The text of the page, through the reference to another one, without roff's marks."""
    for _ in range(2):
        path = os.path.join(pages, f"{name}.3")
        if not os.path.exists(path):
            return None
        text = open(path, encoding="utf-8").read()
        other = re.match(r"\.so man3/(\w+)\.3\n\Z", text)
        if not other:
            return re.sub(r"\\f[BIPR]", "", text).replace("\\-", "-").replace("\\(aq", "'")
        name = other.group(1)
    return None


def main(argv):
    library, pages, headers = argv[1], argv[2], argv[3:]
    text = "".join(open(h, encoding="utf-8").read() for h in headers)
    overview = "".join(open(os.path.join(pages, f), encoding="utf-8").read() for f in os.listdir(pages) if f.endswith(".7"))
    bad = []
    names = sorted(exported(library))
    for name in names:
        page = page_of(pages, name)
        if page is None:
            bad.append(f"{name}: no page")
            continue
        at = [m.start() for m in re.finditer(rf"^\w[\w \*]*\b{name}\(", text, re.M)]
        if len(at) != 1:
            bad.append(f"{name}: declared {len(at)} times")
            continue
        comment = text[text.rindex("/**", 0, at[0]):text.rindex("*/", 0, at[0])]
        for errno in sorted(set(re.findall(r"^ \*\t(-E[A-Z0-9]+)\t", comment, re.M))):
            if not re.search(rf"^\.B {errno}$", page, re.M):
                bad.append(f"{name}: {errno} is in the header and not in the page")
        for param in sorted(set(re.findall(r"@(\w+)", comment))):
            if not re.search(rf"\b{param}\b", page):
                bad.append(f"{name}: {param} is in the header and not in the page")
        said = set(re.findall(r"[A-Za-z]{4,}", comment))
        lost = sorted(w for w in said if w not in page and w not in ("Context", "Return"))
        if lost:
            bad.append(f"{name}: not in the page: {' '.join(lost)}")
        if f"\\fB{name}\\fP(3)" not in overview:
            bad.append(f"{name}: in no page of section 7")
    for line in bad:
        print(line)
    return bool(bad) or not names


if __name__ == "__main__":
    sys.exit(int(main(sys.argv)))
