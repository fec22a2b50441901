#!/bin/sh
# SPDX-License-Identifier: MIT
# Does the demo notice when hmm does wrong?  A stand-in for hmm runs the program
# as it is, or spoils what it prints, or moves nothing, or fails.
# Usage: demo.sh DEMO
set -eu

demo=$1
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

cat >"$tmp/hmm" <<'SH'
#!/bin/bash
stats() {
	echo '{"resident_bytes":1048576,"away_bytes":2097152,"store_ram_bytes":1048576,"pages_out":'"${PAGES:-512}"',
	"pages_in":7,"faults":3,"devices":[{"spec":"lz4","pages":512,"bytes_stored":1048576,"bytes_ram":1048576,
	"copied_in":512,"copied_out":7,"errors":0}]}'
}
case $1 in
doctor) [ "${DOCTOR:-0}" -eq 0 ] || echo "PROBLEM  userfaultfd: no; mend: this"; exit "${DOCTOR:-0}" ;;
stat) stats ;;
run)
	while shift && [ "$1" != -- ]; do
		if [ "$1" = --stats ]; then stats >"$2"; fi
	done
	shift
	if [ -n "${SPOIL-}" ]; then "$@" | tr 0 1; else exec "$@"; fi
	exit "${STATUS:-0}"
	;;
esac
SH
chmod +x "$tmp/hmm"

fail() {
	echo "FAIL: $*"
	cat "$tmp/out"
	exit 1
}

run() {
	rc=0
	env "$@" "$demo" --hmm "$tmp/hmm" --out "$tmp/demo" --mib 4 >"$tmp/out" 2>&1 || rc=$?
}

run PAGES=512
[ "$rc" -eq 0 ] || fail "exit status $rc when all was well"
tail -n 1 "$tmp/out" | grep -q '^Results: *identical' || fail "not said that the results are identical"
grep -q '^Pages moved: *512 out' "$tmp/out" || fail "not said how many pages were moved"

run SPOIL=1
[ "$rc" -ne 0 ] || fail "wrong results went unnoticed"
grep -q 'RESULTS DIFFER' "$tmp/out" || fail "not said that the results differ"

run PAGES=0
[ "$rc" -ne 0 ] || fail "a demo that moved nothing passed"

run SPOIL=1 STATUS=3
[ "$rc" -ne 0 ] || fail "a failed run passed"
grep -q 'exit status 3' "$tmp/out" || fail "not said that the run failed"

run DOCTOR=1
[ "$rc" -ne 0 ] || fail "ran on a machine that cannot"
grep -q 'PROBLEM  userfaultfd' "$tmp/out" || fail "not said what the machine lacks"
