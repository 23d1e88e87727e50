#!/usr/bin/env bash
# What dlc needs from the system, on Debian or Ubuntu: Python with venv, make, and for target gpu:opencl an OpenCL loader
# with PoCL, which runs kernels on the CPU where there is no GPU. Nothing needs a C compiler.
set -euo pipefail
apt-get update
apt-get install -y --no-install-recommends make python3 python3-venv ocl-icd-libopencl1 pocl-opencl-icd
