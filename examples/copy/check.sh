#!/bin/sh
# SPDX-License-Identifier: MIT
# The copier copies, with and without registered buffers, and beside who frees and maps at random.
set -eu
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
head -c 5000001 /dev/urandom >"$tmp/from"
"$1" -p "$tmp/from" "$tmp/to" || { echo "SKIP: no io_uring here"; exit 77; }
cmp "$tmp/from" "$tmp/to"
if ! "$1" "$tmp/from" "$tmp/again" 2>"$tmp/why"; then
	cat "$tmp/why"
	exit 77
fi
cmp "$tmp/from" "$tmp/again"
"$1" --torture 3 -b 16384 "$tmp/from" "$tmp/to"
