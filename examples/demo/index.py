#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""A program that needs memory: a full-text index of this machine, all of it in RAM.

It knows nothing of hmm.  It reads the text files of an ordinary Debian
(documentation, package lists, headers, scripts), as many editions of them as
it takes to fill the memory that it is told to fill, builds an inverted index,
answers queries, and prints results that depend on every byte it holds.

Usage: index.py MEBIBYTES
"""

import array
import gzip
import hashlib
import os
import sys
import zlib

ROOTS = ("/usr/share/doc", "/var/lib/dpkg/info", "/usr/include", "/usr/share/perl", "/usr/share/python3",
         "/usr/lib/python3", "/usr/share", "/usr/lib")
LARGEST = 1 << 20


def texts():
    """Path and text of each text file, always in the same order."""
    seen = set()
    for root in ROOTS:
        for folder, subfolders, names in os.walk(root):
            subfolders.sort()
            for name in sorted(names):
                path = os.path.join(folder, name)
                if path in seen or os.path.islink(path):
                    continue
                seen.add(path)
                try:
                    if not os.path.isfile(path) or not 64 <= os.path.getsize(path) <= LARGEST:
                        continue
                    with (gzip.open if name.endswith(".gz") else open)(path, "rb") as file:
                        text = file.read(LARGEST)
                except (OSError, EOFError, zlib.error):
                    continue
                if b"\0" not in text:
                    yield path, text


def edition(text, number):
    """The same text in another shape, so that no two editions are alike."""
    if number == 0:
        return text
    lines = text.split(b"\n")
    cut = number * 7 % len(lines)
    return b"\n".join(lines[cut:] + lines[:cut] + [b"edition %d" % number])


def load(limit):
    documents, postings, size, number = [], {}, 0, 0
    while size < limit:
        before = size
        for path, text in texts():
            text = edition(text, number)
            # Real indexes keep the words of a document apart from its text; so does this one.
            for word in set(text.lower().split()):
                if 3 <= len(word) <= 16 and word.isalpha():
                    if word not in postings:
                        postings[word] = array.array("I")
                    postings[word].append(len(documents))
            documents.append((path, number, text))
            size += len(text)
            if size >= limit:
                break
        if size == before:
            sys.exit("index.py: this machine has no text files to read")
        number += 1
    return documents, postings, size, number


def query(documents, postings, words):
    """The documents with all the words, best first."""
    found = set(postings[words[0]]).intersection(*(postings[w] for w in words[1:]))
    hits = []
    for i in sorted(found)[:200]:
        text = documents[i][2].lower()
        hits.append((sum(text.count(w) for w in words) * 1000 // len(text), i))
    hits.sort(key=lambda hit: (-hit[0], hit[1]))
    return len(found), hits[:3]


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__.strip())
    documents, postings, size, editions = load(int(sys.argv[1]) << 20)
    print(f"{len(documents)} documents, {size} bytes, {len(postings)} words, editions: {editions}")

    common = sorted(postings, key=lambda word: (-len(postings[word]), word))
    for n in range(24):
        words = [common[200 + 31 * n], common[300 + 17 * n]]
        count, best = query(documents, postings, words)
        print(b" ".join(words).decode() + f": {count} documents")
        for score, i in best:
            print(f"  {score:4} {documents[i][0]} ({documents[i][1]})")

    # Every byte counts: what came back wrong would show here.
    digest = hashlib.sha256()
    for path, number, text in documents:
        digest.update(text)
    print("texts: " + digest.hexdigest())
    digest = hashlib.sha256()
    for word in common:
        digest.update(word)
        digest.update(postings[word].tobytes())
    print("index: " + digest.hexdigest())


if __name__ == "__main__":
    main()
