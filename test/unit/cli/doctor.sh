#!/bin/sh
# SPDX-License-Identifier: MIT
# hmm doctor as different users and without /proc.  Usage: doctor.sh DOCTOR CASE
set -eu

doctor=$1
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
chmod 755 "$tmp"
# The build may lie where other users cannot look.
cp "$doctor" "$tmp/doctor"
doctor=$tmp/doctor

fail() {
	echo "FAIL: $*"
	cat "$tmp/out" 2>/dev/null || :
	exit 1
}

skip() {
	echo "SKIP: $*"
	exit 77
}

# Runs "$@", leaves its output in $tmp/out and its exit status in $rc.
run() {
	rc=0
	"$@" >"$tmp/out" 2>&1 || rc=$?
}

# What must be so whatever the machine is like.
check_form() {
	case $rc in
	0) grep -q '^hmm run can work here\.$' "$tmp/out" || fail "exit status 0 and no verdict" ;;
	1) grep -q '^hmm run cannot work here\.$' "$tmp/out" || fail "exit status 1 and no verdict" ;;
	*) fail "exit status $rc" ;;
	esac
	grep -v '^hmm run ' "$tmp/out" | grep -vE '^(OK|WARNING|PROBLEM) +[a-z_-]+: .' && fail "a line of another form"
	grep -E '^(WARNING|PROBLEM)' "$tmp/out" | grep -v '; mend: .' && fail "a line without a remedy"
	if [ "$rc" -eq 0 ]; then
		grep -q ^PROBLEM "$tmp/out" && fail "a problem and exit status 0"
	else
		grep -q ^PROBLEM "$tmp/out" || fail "no problem and exit status 1"
	fi
	return 0
}

case $2 in
form)
	run "$doctor"
	check_form
	grep -qF "$(uname -r)" "$tmp/out" || fail "the kernel is not named"
	;;
json)
	run "$doctor"
	text=$rc
	lines=$(grep -cE '^(OK|WARNING|PROBLEM) ' "$tmp/out")
	run "$doctor" --json
	[ "$rc" -eq "$text" ] || fail "exit status $text, with --json $rc"
	python3 - "$tmp/out" "$rc" "$lines" <<'PY' || fail "the JSON is not right"
import json, sys
report = json.load(open(sys.argv[1]))
assert report["can_run"] == (sys.argv[2] == "0")
assert len(report["checks"]) == int(sys.argv[3])
for check in report["checks"]:
    assert check["status"] in ("ok", "warning", "problem"), check
    assert check["name"] and check["detail"], check
    assert check["status"] == "ok" or check["mend"], check
PY
	;;
number)
	command -v setarch >/dev/null || skip "setarch is not installed"
	run "$doctor"
	plain=$rc
	run setarch --uname-2.6 "$doctor"
	check_form
	grep -q 'kernel: Linux 2\.6' "$tmp/out" || skip "the kernel's number cannot be made another here"
	grep -q '^WARNING  kernel: Linux 2\.6' "$tmp/out" || fail "an old number is no warning"
	[ "$rc" -eq "$plain" ] || fail "exit status $plain, by another number of the same kernel $rc"
	;;
nobody)
	[ "$(id -u)" -eq 0 ] || skip "only root can become nobody"
	command -v setpriv >/dev/null || skip "setpriv is not installed"
	[ "$(cat /proc/sys/vm/unprivileged_userfaultfd)" = 0 ] || skip "vm.unprivileged_userfaultfd is on here"
	as_nobody="setpriv --reuid 65534 --regid 65534 --clear-groups"
	# shellcheck disable=SC2086
	$as_nobody test -r /dev/userfaultfd && skip "/dev/userfaultfd is open to everybody here"
	# shellcheck disable=SC2086
	run $as_nobody "$doctor"
	check_form
	[ "$rc" -eq 1 ] || fail "nobody was told that hmm run can work"
	grep -q '^PROBLEM  userfaultfd: .*; mend: .*userfaultfd' "$tmp/out" || fail "no remedy for userfaultfd"
	;;
no-proc)
	unshare -m true 2>/dev/null || skip "mount namespaces are not allowed here"
	# shellcheck disable=SC2016
	run unshare -m sh -c 'umount -l /proc && exec "$0"' "$doctor"
	check_form
	[ "$rc" -eq 1 ] || fail "without /proc it was told that hmm run can work"
	grep -q '^PROBLEM  pagemap-scan: .*; mend: .*mount -t proc' "$tmp/out" || fail "no remedy for /proc"
	;;
usage)
	run "$doctor" --no-such-option
	[ "$rc" -eq 125 ] || fail "exit status $rc for a bad option"
	[ "$(wc -l <"$tmp/out")" -eq 1 ] || fail "not one line"
	if [ -c /dev/full ]; then
		rc=0
		"$doctor" >/dev/full 2>"$tmp/out" || rc=$?
		[ "$rc" -eq 125 ] || fail "exit status $rc for a full disk"
	fi
	;;
*)
	fail "no case '$2'"
	;;
esac
