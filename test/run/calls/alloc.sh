#!/bin/sh
# SPDX-License-Identifier: MIT
# alloc.sh HMMTEST BUILD PROGRAM LIBRARY: the program with another allocator in LD_PRELOAD.
hmmtest=$1 build=$2 program=$3 library=$4

path=
for dir in $(ldconfig -p 2>/dev/null | sed -n "s|.*$library.* => \(.*\)|\1|p") /usr/lib/*/"$library"; do
	[ -e "$dir" ] && path=$dir && break
done
if [ -z "$path" ]; then
	echo "SKIP: $library is not installed"
	exit 77
fi
exec "$hmmtest" "$build" --ram 48M --min-out 1000 --env HMM_TEST_UNDER=1 --env LD_PRELOAD="$path" -- "$program" "${library%%.so*}"
