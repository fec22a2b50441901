#!/bin/sh
# SPDX-License-Identifier: MIT
# Do the man pages format without a warning?  Usage: check.sh MAN|- PAGE...
set -u

man=$1
shift
if [ "$man" = - ]; then
	echo "SKIP: man is not installed"
	exit 77
fi
said() {
	MANROFFSEQ='' MANWIDTH=80 LC_ALL=C.UTF-8 "$man" --warnings -E UTF-8 -l -Tutf8 -Z "$@" 2>&1 >/dev/null || echo "man fails"
}
# A reference to another page is followed where pages are installed.
for page; do
	shift
	grep -q '^\.so ' "$page" || set -- "$@" "$page"
done
# All at once is quicker, but does not tell which.
[ -z "$(said "$@")" ] && exit 0
for page; do
	what=$(said "$page")
	[ -z "$what" ] || printf '%s: %s\n' "$page" "$what"
done
exit 1
