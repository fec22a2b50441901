#!/bin/sh
# SPDX-License-Identifier: MIT
#
# A driver outside the tree: the reference driver's files and a program that uses
# it, the drivers that doc/drivers.md shows, and a program with hooks, with nothing
# but what "make install" has installed.
#
#   outside.sh BUILD SOURCE MESON
set -eu

build=$1 source=$2 meson=$3
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

DESTDIR=$tmp/root "$meson" install -C "$build" --no-rebuild --quiet >"$tmp/log" 2>&1 || { cat "$tmp/log"; exit 1; }
pc=$(find "$tmp/root" -name libhmm.pc)
[ -n "$pc" ] || { echo "libhmm.pc is not installed"; exit 1; }
export PKG_CONFIG_SYSROOT_DIR="$tmp/root" PKG_CONFIG_PATH="$(dirname "$pc")"

mkdir -p "$tmp/drivers"
cp -r "$source/src/drivers/dmirror" "$tmp/drivers/dmirror"
# For the interface of the kernel's device it needs the hooks, which are the library's.
rm "$tmp/drivers/dmirror/preload.c"
cp "$source/test/build/outside.c" "$tmp/main.c"
# shellcheck disable=SC2046
cc -std=gnu11 -D_GNU_SOURCE -Wall -Wextra -Wno-unused-parameter -Wno-missing-field-initializers -Werror -O1 \
	-I"$tmp" $(pkg-config --cflags libhmm) -o "$tmp/main" "$tmp"/main.c "$tmp"/drivers/dmirror/*.c \
	$(pkg-config --libs libhmm) -pthread
LD_LIBRARY_PATH=$(dirname "$(find "$tmp/root" -name libhmm.so)")
export LD_LIBRARY_PATH

# A program with hooks: linked, preloaded, and without.
for how in linked preloaded; do
	libs=libhmm
	[ $how = preloaded ] || libs="libhmm-hooks libhmm"
	# shellcheck disable=SC2046,SC2086
	cc -std=gnu11 -D_GNU_SOURCE -Wall -Wextra -Wno-unused-parameter -Werror -O1 -o "$tmp/$how" \
		"$source/test/build/hooked.c" $(pkg-config --cflags --libs $libs)
done
"$tmp/linked"
LD_PRELOAD=libhmm-hooks.so "$tmp/preloaded"
rc=0
"$tmp/preloaded" || rc=$?
[ $rc = 3 ] || { echo "without hooks it says $rc"; exit 1; }

"$tmp/main"

# As the document says.
cp -r "$source/examples/driver" "$tmp/examples"
for name in mirror map memory; do
	# shellcheck disable=SC2046
	cc -std=gnu11 -D_GNU_SOURCE -Wall -Wextra -Wno-unused-parameter -Wno-missing-field-initializers -Werror -O1 \
		-o "$tmp/$name" "$tmp/examples/$name.c" $(pkg-config --cflags --libs libhmm)
	rc=0
	"$tmp/$name" || rc=$?
	[ $rc = 0 ] || [ $rc = 77 ] || { echo "$name says $rc"; exit 1; }
done

# An example of OpenCL, where it is built.
if [ -n "$(find "$tmp/root" -name libhmm-opencl.pc)" ]; then
	# shellcheck disable=SC2046
	cc -std=gnu11 -D_GNU_SOURCE -Wall -Wextra -Werror -O1 -o "$tmp/pipeline" "$source/examples/pipeline/pipeline.c" \
		$(pkg-config --cflags --libs libhmm-opencl)
fi
