"""What a machine is: instruction sets and cache sizes, read from the system, never assumed; how fast, where measured.

`dlc doctor --measure` writes ``machine.json`` into the cache directory (see `dlc.cache`). It holds what identifies the
machine beside the speeds: on another machine, as when home directories are shared, it counts for nothing.
"""

from __future__ import annotations

import functools
import json
import logging
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from dlc.errors import DlcError
from dlc.tile_permission import request_amx

_CPU_DIR = Path("/sys/devices/system/cpu/cpu0/cache")
_DEFAULT_CACHES = {1: 32 << 10, 2: 512 << 10, 3: 8 << 20}
_FORMAT = 1  # of the file of speeds
_log = logging.getLogger("dlc")


@dataclass(frozen=True)
class Speeds:
    """What one core was measured to do.

    Attributes:
        hertz: its clock.
        bandwidth: bytes a second that are read from (L1, L2, L3, memory).
        l3: bytes that really stay in L3, which others use too.
        multiply_adds: float32 multiply-adds a second, by instruction set.
        integer_multiply_adds: those of int8, by instruction set.
    """

    hertz: float
    bandwidth: tuple[float, float, float, float]
    l3: int
    # A machine is a key of caches, and a mapping has no hash: it takes part in the comparison only.
    multiply_adds: Mapping[str, float] = field(hash=False)
    integer_multiply_adds: Mapping[str, float] = field(hash=False)


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
        speeds: what `dlc doctor --measure` found; None where it was not asked.
    """

    arch: str
    model: str
    features: frozenset[str]
    l1: int
    l2: int
    l3: int
    cores: int
    speeds: Speeds | None = None


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


# --- measured speeds -------------------------------------------------------------------------------------------------


def speeds_path() -> Path:
    """The file of measured speeds. It may not exist."""
    from dlc.cache import cache_dir

    return cache_dir() / "machine.json"


def _identity(machine: Machine) -> dict[str, Any]:
    """What speeds belong to."""
    keys = ("arch", "model", "l1", "l2", "l3")
    return {**{key: getattr(machine, key) for key in keys}, "features": sorted(machine.features)}


def save_speeds(machine: Machine, speeds: Speeds) -> Path:
    """Write what was measured, whole or not at all; returns the file.

    Raises:
        DlcError: it cannot be written.
    """
    from dlc.runtime.files import atomic_write

    path = speeds_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DlcError(f"cannot write {path}: {error.strerror or error}") from error
    record = {"format": _FORMAT, "machine": _identity(machine), "speeds": asdict(speeds)}
    with atomic_write(path) as file:
        file.write(json.dumps(record, indent=1).encode())
    return path


def load_speeds(machine: Machine) -> Speeds | None:
    """What was measured on `machine`; None where nothing was, or on another machine.

    Raises:
        DlcError: the file cannot be read, or it is damaged; says which file.
    """
    path = speeds_path()
    try:
        record = json.loads(path.read_bytes())
        if record["format"] != _FORMAT or record["machine"] != _identity(machine):
            return None
        return _speeds(record["speeds"])
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DlcError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DlcError(f"{path} is damaged; `dlc doctor --measure` writes it anew") from error


def _speeds(record: Mapping[str, Any]) -> Speeds:
    l1, l2, l3, memory = (_positive(value) for value in record["bandwidth"])
    rates = [{k: _positive(v) for k, v in record[name].items()} for name in ("multiply_adds", "integer_multiply_adds")]
    if not all(rates):
        raise ValueError("no instruction set")
    return Speeds(_positive(record["hertz"]), (l1, l2, l3, memory), int(_positive(record["l3"])), *rates)


def _positive(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise ValueError(f"{value!r} is not a speed")
    return float(value)


def measured_machine() -> Machine:
    """This machine with its measured speeds and L3, for the cost models.

    A damaged file of them is a warning, no more: what is computed does not depend on it.
    """
    machine = this_machine()
    try:
        speeds = load_speeds(machine)
    except DlcError as error:
        _log.warning("%s; going on without measured speeds", error)
        speeds = None
    return machine if speeds is None else replace(machine, l3=speeds.l3, speeds=speeds)
