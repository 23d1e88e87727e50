"""Runs packages for AArch64 under an emulator: their objects, linked with a small driver, on arrays."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dlc.package import Package
from dlc.runtime.session import TensorInfo, bind_symbols
from dlc.targets.cpu.members import COUNT, WORKER, WORKERS

LINKER, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64"
INSTALLED = all(shutil.which(tool) for tool in (LINKER, EMULATOR))
_DRIVER = Path(__file__).with_name("aarch64_driver.c")


def run_emulated(
    package: Package, inputs: Mapping[str, np.ndarray], like: Sequence[np.ndarray], folder: Path, threads: int = 1
) -> list[np.ndarray]:
    """The outputs of a package that is one program of the CPU target.

    Args:
        like: arrays of the outputs' shapes and dtypes.
        folder: where to link.
    """
    build, program = package.manifest["build"], folder / "program"
    objects = [folder / name for name in build["objects"]]
    for path in objects:
        path.write_bytes(package.member(path.name))
    command = [LINKER, "-O1", "-static", "-o", program, _DRIVER, *objects, "-pthread", "-lm"]
    subprocess.run(command, check=True, capture_output=True, text=True)
    words = _words(package, inputs, like, threads)
    result = subprocess.run([EMULATOR, "-cpu", "max", program], input=words, capture_output=True, check=False)
    assert result.returncode == 0, result.stderr.decode()
    found, position = [], 0
    for array in like:
        found.append(np.frombuffer(result.stdout, array.dtype, array.size, position).reshape(array.shape))
        position += array.nbytes
    assert position == len(result.stdout)
    return found


def _words(package: Package, inputs: Mapping[str, np.ndarray], like: Sequence[np.ndarray], threads: int) -> bytes:
    """What the driver reads."""
    manifest, build = package.manifest, package.manifest["build"]
    infos = [TensorInfo(i["name"], tuple(i["shape"]), i["dtype"]) for i in manifest["inputs"]]
    given = [np.ascontiguousarray(inputs[info.name]) for info in infos]
    sizes = bind_symbols(infos, [array.shape for array in given])
    chunks = [package.constants(name)["constants"] for name in build["constants"]]
    team = np.zeros(WORKERS + WORKER * (threads - 1) if threads > 1 else 0, np.uint8)
    team[COUNT : COUNT + 8].view(np.int64)[:] = threads
    written = 1 + sum(array.ndim for array in like) + len(build["calls"])
    head = [len(build["symbols"]), written, len(given), len(like), len(chunks), team.nbytes]
    head += [sizes[name] for name in build["symbols"]]
    head += [array.nbytes for array in (*given, *like, *chunks)]
    return b"".join([np.array(head, np.int64).tobytes(), *(array.tobytes() for array in (*given, *chunks, team))])
