"""Asking the operating system for the tile registers: Linux gives their state to processes that ask for it only."""

from __future__ import annotations

import ctypes
import functools
import platform
import sys

_ARCH_PRCTL = 158  # the system call on x86-64
_ARCH_REQ_XCOMP_PERM = 0x1023
_XTILEDATA = 18


@functools.cache
def request_amx() -> bool:
    """Ask for the tile registers, for this process and its later threads; True when tile instructions may run.

    Without it the first tile instruction ends the process. Systems other than Linux on x86-64 are left alone: False.
    """
    if not sys.platform.startswith("linux") or platform.machine() != "x86_64":
        return False
    try:
        call = ctypes.CDLL(None, use_errno=True).syscall
    except (OSError, AttributeError):
        return False
    call.restype = ctypes.c_long
    return bool(call(ctypes.c_long(_ARCH_PRCTL), ctypes.c_long(_ARCH_REQ_XCOMP_PERM), ctypes.c_long(_XTILEDATA)) == 0)
