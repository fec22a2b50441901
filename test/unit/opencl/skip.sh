#!/bin/sh
# SPDX-License-Identifier: MIT
echo "SKIP: built without OpenCL (opencl-headers, ocl-icd-opencl-dev)"
exit 77
