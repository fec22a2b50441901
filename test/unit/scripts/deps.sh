#!/bin/sh
# SPDX-License-Identifier: MIT
# What scripts/deps installs where apt does not know all that is asked for.  Usage: deps.sh DEPS
set -eu

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
mkdir "$tmp/scripts" "$tmp/bin"
cp "$1" "$tmp/scripts/deps"

fail() {
	echo "FAIL: $*"
	cat "$tmp/out" "$tmp/asked"
	exit 1
}

# An apt-get that knows the packages of $tmp/apt, each a file to be made or nothing, and refuses all where one is unknown.
cat >"$tmp/bin/apt-get" <<'END'
#!/bin/sh
tmp=$(cd "$(dirname "$0")/.." && pwd)
what= simulate= names=
for a; do
	case $a in
	-s) simulate=yes ;;
	-*) ;;
	*) if [ -n "$what" ]; then names="$names $a"; else what=$a; fi ;;
	esac
done
[ -n "$simulate" ] || echo "$what$names" >>"$tmp/asked"
for n in $names; do
	grep -q "^$n " "$tmp/apt" || exit 100
done
for n in $names; do
	made=$(sed -n "s/^$n //p" "$tmp/apt")
	[ -n "$simulate" ] || [ -z "$made" ] || : >"$tmp/$made"
done
END
printf '#!/bin/sh\necho 0\n' >"$tmp/bin/id"
chmod +x "$tmp/bin/apt-get" "$tmp/bin/id"

# expect STATUS ASKED: the calls of apt-get that change something, one a line
expect() {
	rc=0
	: >"$tmp/asked"
	PATH="$tmp/bin:$PATH" "$tmp/scripts/deps" >"$tmp/out" 2>&1 || rc=$?
	[ "$rc" -eq "$1" ] || fail "exit status $rc, not $1"
	[ "$(cat "$tmp/asked")" = "$2" ] || fail "apt-get was not asked for '$2'"
}

says() {
	grep -q "$1" "$tmp/out" || fail "it does not say '$1'"
}

cat >"$tmp/packages.txt" <<END
# a comment
there      file:$tmp/scripts         is here
needed     file:$tmp/needed          nothing goes without it
old|new    opt:file:$tmp/lib.so.[23] has two names
gone       opt:file:$tmp/gone        no release has it any more
END

# What it goes without and nobody knows does not keep what is needed from being installed.
printf '%s\n' "needed needed" "new lib.so.3" >"$tmp/apt"
expect 0 "update
install needed new"
says "does not know gone: left out"

# Of two names the first that is known; and when all is there that can be, nothing is installed.
rm "$tmp/needed" "$tmp/lib.so.3"
printf '%s\n' "needed needed" "old lib.so.2" "new lib.so.3" >"$tmp/apt"
expect 0 "update
install needed old"
expect 0 "update"
says "built without them"

# What is needed and nobody knows is an error that says so.
rm "$tmp/needed"
: >"$tmp/apt"
expect 1 "update"
says "does not know needed"
says "apt-get install needed gone\$"
