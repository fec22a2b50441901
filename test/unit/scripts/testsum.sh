#!/bin/sh
# SPDX-License-Identifier: MIT
# What scripts/testsum makes of a test log.  Usage: testsum.sh TESTSUM
set -eu

testsum=$1
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

fail() {
	echo "FAIL: $*"
	cat "$tmp/out"
	exit 1
}

# expect STATUS LAST-LINE [TESTS], on $tmp/log
expect() {
	rc=0
	"$testsum" "$tmp/log" "$tmp/sum" ${3+"$3"} >"$tmp/out" 2>&1 || rc=$?
	[ "$rc" -eq "$1" ] || fail "exit status $rc, not $1"
	[ "$(tail -n 1 "$tmp/out")" = "$2" ] || fail "the last line is not '$2'"
	[ "$(cat "$tmp/sum")" = "$2" ] || fail "the summary file is not '$2'"
}

: >"$tmp/out"
ok='{"name": "a", "result": "OK", "returncode": 0, "stdout": "fine"}'
skip='{"name": "b", "result": "SKIP", "returncode": 77, "stdout": "SKIP: needs root\n"}'
bad='{"name": "c", "result": "FAIL", "returncode": 1, "stdout": "it broke\n", "stderr": "badly\n"}'
slow='{"name": "d", "result": "TIMEOUT", "returncode": -15}'
err='{"name": "e", "result": "ERROR", "returncode": 99}'

echo "$ok" >"$tmp/log"
expect 0 "1 passed, 0 failed, 0 skipped"

printf '%s\n' "$ok" "$skip" "$ok" >"$tmp/log"
expect 0 "2 passed, 0 failed, 1 skipped"
grep -q '^skipped: b: SKIP: needs root$' "$tmp/out" || fail "not said why b was skipped"

# What a passed test has left out counts, too.
printf '%s\n' "$ok" '{"name": "g", "result": "OK", "stdout": "SKIP: one: no swap\n[ OK ] two\nSKIP: three: old\n"}' >"$tmp/log"
expect 0 "2 passed, 0 failed, 2 skipped"
grep -q '^skipped in g: one: no swap$' "$tmp/out" || fail "not said what g has left out"

printf '%s\n' "$ok" "$bad" "$slow" "$err" >"$tmp/log"
expect 1 "1 passed, 3 failed, 0 skipped"
grep -q '^it broke$' "$tmp/out" || fail "what c said is not shown"
grep -q '^badly$' "$tmp/out" || fail "what c said to stderr is not shown"
grep -q '^---- failed: c, d, e$' "$tmp/out" || fail "the failed ones are not named"

# Whatever Meson knows of must have been run, and as often.
printf '%s\n' '{"name": "hmm:unit / a", "result": "OK"}' "$skip" >"$tmp/log"
echo '[{"name": "a", "suite": ["hmm:unit"]}, {"name": "b"}]' >"$tmp/tests"
expect 0 "1 passed, 0 failed, 1 skipped" "$tmp/tests"
echo '[{"name": "a"}, {"name": "b"}, {"name": "lost"}, {"name": "a"}]' >"$tmp/tests"
expect 1 "1 passed, 2 failed, 1 skipped" "$tmp/tests"
grep -q '^---- failed: lost, a$' "$tmp/out" || fail "those that were not run are not named"
expect 1 "1 passed, 1 failed, 1 skipped" "$tmp/no such list"

# Those of the suite "long" only where they are asked for.
echo '[{"name": "a"}, {"name": "b"}, {"name": "more", "suite": ["hmm:run", "hmm:long"]}]' >"$tmp/tests"
unset HMM_TEST_LONG
expect 0 "1 passed, 0 failed, 1 skipped" "$tmp/tests"
export HMM_TEST_LONG=1
expect 1 "1 passed, 1 failed, 1 skipped" "$tmp/tests"
unset HMM_TEST_LONG

# No test at all, no log, and half a log: none of them is a success.
: >"$tmp/log"
expect 1 "0 passed, 0 failed, 0 skipped"
rm "$tmp/log"
expect 1 "0 passed, 0 failed, 0 skipped"
printf '%s\n{"name": "x", "res' "$ok" >"$tmp/log"
expect 1 "0 passed, 0 failed, 0 skipped"
