"""CUDA C to a cubin and PTX by nvcc, and what ptxas says of each kernel."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from dlc.errors import DlcError

# No contraction and no flushing: integer results depend on single float roundings. Sums that may be fused say fma.
FLAGS = ("-O3", "-fmad=false", "-ftz=false", "-prec-div=true", "-prec-sqrt=true")
_ENTRY = re.compile(r"Compiling entry function '(\w+)'")
_USED = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")
_SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")


@dataclass(frozen=True)
class Resources:
    """What a kernel needs of a multiprocessor, as ptxas reports it.

    Attributes:
        registers: of a thread.
        shared: bytes of shared memory of a block.
        spills: bytes that a thread spills to local memory, stores and loads.
    """

    registers: int
    shared: int
    spills: int


def find_nvcc() -> str | None:
    """The path of nvcc, or None."""
    return shutil.which("nvcc")


def nvcc_version() -> str | None:
    """What nvcc calls itself (``13.0``); None where there is none."""
    path = find_nvcc()
    if path is None:
        return None
    text = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"release ([\d.]+)", text)
    return found.group(1) if found else "unknown"


def parse_resources(report: str) -> dict[str, Resources]:
    """Resources by kernel, from what ``-Xptxas -v`` prints."""
    found: dict[str, Resources] = {}
    name, spills = "", 0
    for line in report.splitlines():
        if match := _ENTRY.search(line):
            name, spills = match.group(1), 0
        elif match := _SPILLS.search(line):
            spills = int(match.group(1)) + int(match.group(2))
        elif (match := _USED.search(line)) and name:
            shared = _SHARED.search(line)
            found[name] = Resources(int(match.group(1)), int(shared.group(1)) if shared else 0, spills)
            name = ""
    return found


def _run(arguments: list[str]) -> str:
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        error = next((line for line in lines if "error" in line or "fatal" in line.lower()), (lines or ["?"])[0])
        raise DlcError(f"nvcc failed: {error.strip()}")
    return done.stderr + done.stdout


def compile_cuda(text: str, arch: str) -> tuple[bytes, bytes, dict[str, Resources]]:
    """Compile CUDA C for `arch` (``sm_80``): (cubin, PTX, resources by kernel).

    Raises:
        DlcError: there is no nvcc, or it refuses the text or the architecture.
    """
    nvcc = find_nvcc()
    if nvcc is None:
        raise DlcError("no nvcc on PATH: install NVIDIA's CUDA toolkit, or compile for gpu:opencl")
    with tempfile.TemporaryDirectory() as folder:
        source, cubin, ptx = (str(Path(folder) / name) for name in ("kernels.cu", "kernels.cubin", "kernels.ptx"))
        Path(source).write_text(text)
        _run([nvcc, *FLAGS, f"-arch={arch}", "-ptx", source, "-o", ptx])
        report = _run([nvcc, *FLAGS, f"-arch={arch}", "-Xptxas", "-v", "-cubin", ptx, "-o", cubin])
        return Path(cubin).read_bytes(), Path(ptx).read_bytes(), parse_resources(report)
