"""What a machine is: instruction sets and cache sizes, read from the system, never assumed."""

from __future__ import annotations

import functools
import platform
from dataclasses import dataclass
from pathlib import Path

from dlc.tile_permission import request_amx

_CPU_DIR = Path("/sys/devices/system/cpu/cpu0/cache")
_DEFAULT_CACHES = {1: 32 << 10, 2: 512 << 10, 3: 8 << 20}


@dataclass(frozen=True)
class Machine:
    """One CPU core and its caches.

    Attributes:
        arch: ``x86_64``, ``aarch64``, ... as ``platform.machine()`` says it.
        model: the processor's name, for reports only.
        features: CPU flags as Linux names them (``avx512_vnni``, ``amx_int8``, ...), without those that the operating
            system withholds from this process.
        l1, l2, l3: data-cache sizes in bytes, per core for l1 and l2.
        cores: logical cores available to this process.
    """

    arch: str
    model: str
    features: frozenset[str]
    l1: int
    l2: int
    l3: int
    cores: int


def _read_caches() -> dict[int, int]:
    sizes = dict(_DEFAULT_CACHES)
    for index in sorted(_CPU_DIR.glob("index*")) if _CPU_DIR.is_dir() else []:
        try:
            if (index / "type").read_text().strip() == "Instruction":
                continue
            level = int((index / "level").read_text())
            text = (index / "size").read_text().strip()
        except (OSError, ValueError):
            continue
        scale = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1], 1)
        sizes[level] = int(text.rstrip("KMG")) * scale
    return sizes


def _granted(features: frozenset[str]) -> frozenset[str]:
    """The features that a process may use: Linux gives the state of AMX's tiles to those that ask for it only."""
    if "amx_tile" not in features or request_amx():
        return features
    return frozenset(f for f in features if not f.startswith("amx_"))


def _read_cpuinfo() -> tuple[str, frozenset[str]]:
    model, features = platform.processor() or platform.machine(), frozenset[str]()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return model, features
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            features = frozenset(value.split())
        elif key.strip() == "model name":
            model = value.strip()
    return model, features


def memory_bytes() -> int:
    """The machine's physical memory."""
    import os

    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@functools.cache
def this_machine() -> Machine:
    """Describe the machine that this process runs on."""
    import os

    model, features = _read_cpuinfo()
    caches = _read_caches()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    return Machine(platform.machine(), model, _granted(features), caches[1], caches[2], caches[3], cores)
