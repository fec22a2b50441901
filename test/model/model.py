#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Check the models of the protocols: model.py [MODEL ...]

Each model is searched to the end, as it is and with one rule after the other
broken.  As it is nothing may be found; a break must be, and in the way that
the model's head says: "BREAK n assert|deadlock what is broken".
"""
import glob
import os
import re
import shutil
import subprocess
import sys
import tempfile

SKIP = 77
HERE = os.path.dirname(os.path.abspath(__file__))
FOUND = {"assert": "assertion violated", "deadlock": "invalid end state"}


def search(pan, broken):
    env = dict(os.environ, MODEL_BREAK=str(broken))
    # A stop at the first error is enough; the depth is more than any of them has.
    out = subprocess.run([pan, "-m200000", "-w20", "-n"], cwd=os.path.dirname(pan), env=env, text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT).stdout
    errors = re.search(r"errors: (\d+)", out)
    states = re.search(r"(\S+) states, stored", out)
    # What was not searched to the end has shown nothing; a search that has found something may stop.
    whole = "Search not completed" not in out and "max search depth" not in out and "out of memory" not in out
    return out, int(errors.group(1)) if errors else -1, int(float(states.group(1))) if states else 0, whole


def check(name):
    with open(os.path.join(HERE, name + ".pml")) as f:
        breaks = re.findall(r"^ \* BREAK (\d+) (\w+)\s+(.*)$", f.read(), re.M)
    good = bool(breaks)
    with tempfile.TemporaryDirectory() as tmp:
        # It includes another one, by its place.
        for pml in glob.glob(os.path.join(HERE, "*.pml")):
            shutil.copy(pml, tmp)
        subprocess.run(["spin", "-a", name + ".pml"], cwd=tmp, check=True)
        subprocess.run(["gcc", "-O2", "-w", "-DSAFETY", "-o", "pan", "pan.c"], cwd=tmp, check=True)
        pan = os.path.join(tmp, "pan")
        out, errors, states, whole = search(pan, 0)
        right = errors == 0 and whole
        print(f"{name}: {states} states, {'nothing found' if right else 'WRONG'}")
        if not right:
            print(out)
            steps = subprocess.run(["spin", "-t", "-p", name + ".pml"], cwd=tmp, text=True, stdout=subprocess.PIPE)
            print(steps.stdout)
        good &= right
        for n, how, what in breaks:
            out, errors, states, _ = search(pan, n)
            right = errors > 0 and FOUND[how] in out
            print(f"{name}: break {n}, {what}: {'found' if right else 'NOT FOUND'} ({how}, {states} states)")
            if not right:
                print(out)
            good &= right
    return good


def main():
    missing = [tool for tool in ("spin", "gcc") if not shutil.which(tool)]
    if missing:
        print("SKIP: no", " and no ".join(missing))
        return SKIP
    all_of_them = sorted(os.path.splitext(os.path.basename(p))[0] for p in glob.glob(os.path.join(HERE, "*.pml")))
    results = [check(name) for name in sys.argv[1:] or all_of_them if name != "common"]
    return 0 if results and all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
