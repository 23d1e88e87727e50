"""OpenCL devices through pyopencl."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dlc.errors import DlcError
from dlc.package import Package

# Division and square root as IEEE has them: integer results depend on single float roundings.
OPTIONS = ("-cl-std=CL1.2",)
EXACT_DIVISION = "-cl-fp32-correctly-rounded-divide-sqrt"
NO_PYOPENCL = "pyopencl is not installed: pip install 'dlc[gpu]'"
NO_DEVICE = "no OpenCL device: install a driver, or PoCL with scripts/install-system-packages.sh"


def _import_opencl() -> Any:
    try:
        import pyopencl
    except ImportError:
        raise DlcError(NO_PYOPENCL) from None
    return pyopencl


def opencl_devices() -> tuple[list[Any], str]:
    """(the OpenCL devices of this machine, GPUs first; why there are none)."""
    try:
        cl = _import_opencl()
    except DlcError as error:
        return [], str(error)
    try:
        found = [device for platform in cl.get_platforms() for device in platform.get_devices()]
    except cl.Error:  # no platform at all is an error of the loader
        found = []
    return sorted(found, key=lambda d: not d.type & cl.device_type.GPU), "" if found else NO_DEVICE


class OpenCLDevice:
    """The first OpenCL device, GPUs first; see `dlc.targets.gpu.device.Device`."""

    grid_limits = (2**31 - 1,) * 3  # what block indices count

    def __init__(self, package: Package) -> None:
        self._cl = cl = _import_opencl()
        devices, reason = opencl_devices()
        if not devices:
            raise DlcError(reason)
        self.name = devices[0].name.strip()
        self._context = cl.Context([devices[0]])
        self._queue = cl.CommandQueue(self._context)
        self._program = self._compile(package, devices[0])

    def _compile(self, package: Package, device: Any) -> Any:
        cl = self._cl
        exact = device.single_fp_config & cl.device_fp_config.CORRECTLY_ROUNDED_DIVIDE_SQRT
        if not exact and package.manifest["options"]["quantize"] != "none":
            raise DlcError(f"device '{self.name}' does not round divisions as IEEE does: integer results would differ")
        options = [*OPTIONS, EXACT_DIVISION] if exact else list(OPTIONS)
        try:
            return cl.Program(self._context, bytes(package.member("kernels.cl")).decode()).build(options)
        except cl.RuntimeError as error:
            first = next((line for line in str(error).splitlines() if "error" in line.lower()), str(error)[:200])
            raise DlcError(f"{package.name}: device '{self.name}' refuses the kernels: {first}") from error

    def activate(self) -> None:
        """Nothing: OpenCL's objects know their context."""

    def allocate(self, size: int) -> Any:
        """See `Device`."""
        return self._cl.Buffer(self._context, self._cl.mem_flags.READ_WRITE, size)

    def upload(self, buffer: Any, array: np.ndarray) -> None:
        """See `Device`."""
        self._cl.enqueue_copy(self._queue, buffer, array, is_blocking=False)

    def download(self, array: np.ndarray, buffer: Any) -> None:
        """See `Device`."""
        self._cl.enqueue_copy(self._queue, array, buffer, is_blocking=False)

    def kernel(self, symbol: str, buffers: Sequence[Any], dims: Sequence[int]) -> Any:
        """See `Device`."""
        kernel = self._cl.Kernel(self._program, symbol)
        kernel.set_args(*buffers, *(np.int32(d) for d in dims))
        return kernel

    def launch(self, kernel: Any, blocks: Sequence[int], threads: int) -> None:
        """See `Device`."""
        local = (threads, *(1 for _ in blocks[1:]))
        size = tuple(b * t for b, t in zip(blocks, local, strict=True))
        self._cl.enqueue_nd_range_kernel(self._queue, kernel, size, local)

    def finish(self) -> None:
        """See `Device`."""
        self._queue.finish()
