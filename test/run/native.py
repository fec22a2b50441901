# SPDX-License-Identifier: MIT
"""What a program needs when hmm is not there."""
import os
import shutil
import sys
import threading

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from hmmtest import descendants, skip  # noqa: E402


def rss_anon(pid):
    try:
        with open(f"/proc/{pid}/status") as f:
            for line in f:
                if line.startswith("RssAnon:"):
                    return int(line.split()[1]) << 10
    except OSError:
        pass
    return 0


class Peak:
    """The most anonymous memory that a process, and those below it, had."""

    def __init__(self, pid, below=True):
        self.pid, self.below, self.most = pid, below, 0
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self):
        while not self.stop.wait(0.02):
            below = descendants(self.pid) if self.below else []
            self.most = max(self.most, sum(rss_anon(p) for p in [self.pid, *below]))

    def end(self):
        self.stop.set()
        self.thread.join()
        return self.most


def need(program, package):
    path = shutil.which(program)
    if not path:
        skip(f"no {program} (package {package})")
    return path
