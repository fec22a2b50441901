#!/bin/sh
# SPDX-License-Identifier: MIT
# The pipeline on four times the memory that the device may use: the results are the same, and we move no more bytes.
set -eu
rc=0
# shellcheck disable=SC2086
said=$("$1" -r 2048 -m 4 -b 64 $2) || rc=$?
echo "$said"
[ "$rc" = 0 ] || exit "$rc"
echo "$said" | awk '
	/^by hand/ { in_hand = $3; out_hand = $8 }
	/^hmm/ { in_ours = $2; out_ours = $7 }
	END {
		if (!in_hand || !out_hand || !in_ours || !out_ours) { print "no figures"; exit 1 }
		if (in_ours > in_hand || out_ours > out_hand) { print "we move more than by hand"; exit 1 }
	}'
