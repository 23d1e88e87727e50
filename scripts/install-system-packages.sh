#!/usr/bin/env bash
# What dlc needs from the system, on Debian or Ubuntu: Python with venv, make, and for target gpu:opencl an OpenCL loader
# with PoCL, which runs kernels on the CPU where there is no GPU. Nothing that dlc does needs a C compiler; the tests of code
# for AArch64 link it and run it in an emulator.
set -euo pipefail
apt-get update
apt-get install -y --no-install-recommends make python3 python3-venv ocl-icd-libopencl1 pocl-opencl-icd \
  qemu-user gcc-aarch64-linux-gnu libc6-dev-arm64-cross
