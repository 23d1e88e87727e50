"""A CUDA driver without a GPU: a library that is called like NVIDIA's, whose kernels run through OpenCL."""

from __future__ import annotations

import ctypes
import functools
import re
import shutil
import subprocess
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyopencl as cl

from dlc.targets.gpu.nvcc import Resources
from dlc.targets.gpu.opencl import EXACT_DIVISION, OPTIONS, opencl_devices
from dlc.targets.gpu.source import CUDA_PRELUDE, OPENCL_PRELUDE

_LAUNCH = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.POINTER(ctypes.c_uint), ctypes.POINTER(ctypes.c_void_p))
CUBIN, PTX = b"\x7fELF of the fake", b".target of the fake"


@functools.cache
def build() -> Path:
    """The library, compiled once a process."""
    compiler = shutil.which("cc")
    assert compiler is not None
    path = Path(tempfile.mkdtemp(prefix="dlc-fake-cuda-")) / "libcuda.so.1"
    source = Path(__file__).with_name("fake_libcuda.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", str(source), "-o", str(path)], check=True)
    return path


def compile_cuda(text: str, arch: str) -> tuple[bytes, bytes, dict[str, Resources]]:
    """In place of nvcc: images that the fake loads; it runs the text itself."""
    return CUBIN, PTX, defaultdict(lambda: Resources(1, 0, 0))


class FakeCuda:
    """Controls the library.

    Attributes:
        text: the CUDA C that launches run; set before the first run.
    """

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))
        self._library.fake_log.restype = ctypes.c_char_p
        self._library.fake_size.restype, self._library.fake_size.argtypes = ctypes.c_size_t, [ctypes.c_void_p]
        self._launch = _LAUNCH(self._run)
        self._problems: list[Exception] = []
        self._programs: dict[str, Any] = {}
        self.text = ""
        self._context = cl.Context([opencl_devices()[0][0]])
        self._queue = cl.CommandQueue(self._context)
        self._library.fake_reset(self._launch)

    def fail(self, function: str, code: int) -> None:
        """Let every call of `function` fail from now on; an empty name: none."""
        self._library.fake_fail(function.encode(), code)

    def set_devices(self, count: int) -> None:
        """How many devices the machine has; one unless said."""
        self._library.fake_devices(count)

    def log(self) -> list[str]:
        """Calls so far, with sizes."""
        return list(self._library.fake_log().decode().splitlines())

    def live(self) -> int:
        """Buffers, modules, streams, events and contexts that were not given back."""
        return int(self._library.fake_live())

    def check(self) -> None:
        """Raise what went wrong in a launch."""
        if self._problems:
            raise self._problems[0]

    def _run(self, name: bytes, sizes: Any, parameters: Any) -> None:
        try:
            self._execute(name.decode(), sizes[:6], parameters)
        except Exception as error:  # a callback cannot raise
            self._problems.append(error)

    def _execute(self, name: str, sizes: list[int], parameters: Any) -> None:
        """Read the arguments as the kernel's signature has them, and run it."""
        text = self.text.replace(CUDA_PRELUDE, OPENCL_PRELUDE)
        if text not in self._programs:
            self._programs[text] = cl.Program(self._context, text).build([*OPTIONS, EXACT_DIVISION])
        found = re.search(rf"KERNEL\((\d+)\) {name}\((.*?)\) \{{", text)
        assert found is not None and int(found.group(1)) == sizes[3] and sizes[4:] == [1, 1]
        arguments: list[Any] = []
        for index, parameter in enumerate(found.group(2).split(", ")):
            if parameter.startswith("GLOBAL"):
                address = ctypes.c_uint64.from_address(parameters[index]).value
                size = self._library.fake_size(address)
                assert size, f"{parameter} points to nothing"
                host = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
                flags = cl.mem_flags.READ_WRITE | cl.mem_flags.COPY_HOST_PTR
                arguments.append(cl.Buffer(self._context, flags, hostbuf=host))
                if parameter.endswith(" out"):
                    output = host, arguments[-1]
            else:
                arguments.append(np.int32(ctypes.c_int32.from_address(parameters[index]).value))
        kernel = cl.Kernel(self._programs[text], name)
        kernel.set_args(*arguments)
        size = tuple(b * t for b, t in zip(sizes[:3], sizes[3:], strict=True))
        cl.enqueue_nd_range_kernel(self._queue, kernel, size, tuple(sizes[3:]))
        cl.enqueue_copy(self._queue, *output)
        self._queue.finish()
