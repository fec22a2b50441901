#!/bin/sh
# SPDX-License-Identifier: MIT
# Where there is no OpenCL device a program is told so, and that is all.
set -u
said=$(OCL_ICD_VENDORS=/nonexistent "$1" 2>&1)
rc=$?
echo "$said"
[ $rc = 77 ] || { echo "exit status $rc"; exit 1; }
case $said in
*"SKIP: no OpenCL device"*) ;;
*SKIP:*) echo "SKIP: nothing of it can be tried here"; exit 77 ;;
*) exit 1 ;;
esac
