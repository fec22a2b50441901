#!/bin/sh
# SPDX-License-Identifier: MIT
# alloc.sh PYTHON HMMTEST BUILD PROGRAM LIBRARY: the program with another allocator, named by a pattern, in LD_PRELOAD.
python=$1 hmmtest=$2 build=$3 program=$4 library=$5

path=
for dir in $(ldconfig -p 2>/dev/null | sed -n "s|.*$library.* => \(.*\)|\1|p") /usr/lib/*/$library; do
	[ -e "$dir" ] && path=$dir && break
done
if [ -z "$path" ]; then
	echo "SKIP: $library is not installed"
	exit 77
fi
exec "$python" "$hmmtest" "$build" --ram 24M --long-ram 48M --min-out 1000 --env HMM_TEST_UNDER=1 --env LD_PRELOAD="$path" -- "$program" "${library%%.so*}"
