#!/usr/bin/env bash
# What dlc needs from the system, on Debian or Ubuntu: Python with venv, and make. Nothing needs a C compiler.
set -euo pipefail
apt-get update
apt-get install -y --no-install-recommends make python3 python3-venv
