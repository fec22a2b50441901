# SPDX-License-Identifier: MIT
"""app_python.py N: Python objects, of 10000 about 65 MiB, made, sorted, rewritten and summed up; prints what must not
depend on hmm."""
import hashlib
import sys

N = int(sys.argv[1])
table = {}
r = 1
for i in range(N):
    r = (r * 6364136223846793005 + 1442695040888963407) & (2**64 - 1)
    table[r >> 20] = ("%x" % r) * (256 + 4 * (r >> 58)) if i % 3 else [i, r, bytes(r >> 51)]
digest = hashlib.sha256()
for key in sorted(table):
    digest.update(repr((key, table[key])).encode())
for key in list(table)[::2]:
    del table[key]
table.update((i, str(i) * 1600) for i in range(N // 3))
for key, value in table.items():
    digest.update(repr(value).encode())
print(len(table), digest.hexdigest())
