"""The thread team of a loaded model, as Python holds it: its memory, its begin and its end. See `team` for its code."""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from typing import Any

import numpy as np

START, STOP = "dlc_start", "dlc_stop"

# The team's memory, in bytes: the job's number, then these; each part has a cache line of its own, against false
# sharing. A worker: whether it sleeps, its thread, its number, the team, its semaphore.
ARRIVED, ROUND, TABLE, COUNT, WORKERS, WORKER = 64, 128, 192, 200, 256, 128
_LINE = 64


class Team:
    """Threads that run calls of one model together, one call at a time. They sleep between calls and end with it.

    Attributes:
        address: of the team's memory, what the native code takes.
        free: a lock that whoever has work for the team holds.
    """

    def __init__(self, module: Any, members: int) -> None:
        self._module, self._members = module, members
        self.free = threading.Lock()
        self._begin()

    def _begin(self) -> None:
        raw = np.zeros(WORKERS + WORKER * (self._members - 1) + _LINE, np.uint8)
        shift = -raw.ctypes.data % _LINE
        raw[shift + COUNT : shift + COUNT + 8].view(np.int64)[0] = self._members
        self._process, self._memory = os.getpid(), raw
        self.address = raw.ctypes.data + shift
        self._module[START](ctypes.c_void_p(self.address))
        weakref.finalize(self, _end, self._module, raw, self.address, self._process)

    def check(self) -> None:
        """Begin anew in a process that was forked: it has the memory, but not the threads."""
        if os.getpid() != self._process:
            self._begin()


def _end(module: Any, memory: np.ndarray, address: int, process: int) -> None:
    """Let the threads finish; `memory` is kept until they have."""
    if os.getpid() == process:
        module[STOP](ctypes.c_void_p(address))
