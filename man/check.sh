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
rc=0
for page; do
	said=$(MANROFFSEQ='' MANWIDTH=80 LC_ALL=C.UTF-8 "$man" --warnings -E UTF-8 -l -Tutf8 -Z "$page" 2>&1 >/dev/null) || rc=1
	if [ -n "$said" ]; then
		echo "$said"
		rc=1
	fi
done
exit $rc
