"""CUDA devices through the driver API: a package's cubin, or its PTX where the device is of another architecture."""

from __future__ import annotations

import contextlib
import ctypes
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dlc.errors import DlcError
from dlc.package import Package
from dlc.targets.gpu import cuda_driver
from dlc.targets.gpu.cuda_driver import CudaError, Driver

_IMAGES = {"cubin": "kernels.cubin", "PTX": "kernels.ptx"}


def cuda_devices() -> tuple[list[str], str]:
    """(the CUDA devices of this machine with their architectures; why there are none)."""
    try:
        driver = Driver()
        devices = [driver.device(i) for i in range(driver.device_count)]
        return [f"{driver.device_name(d)} ({driver.architecture(d)})" for d in devices], ""
    except DlcError as error:
        return [], str(error)


class _Buffer:
    """Memory on the device; freed with the object, and keeps its device alive until then."""

    def __init__(self, device: CudaDevice, address: int) -> None:
        self.address = address
        weakref.finalize(self, device.free, address)


@dataclass
class _Kernel:
    """A function and its arguments: `parameters` points to `values`, which refer to `buffers`."""

    function: int
    parameters: Any
    values: list[Any]
    buffers: Sequence[_Buffer]


class CudaDevice:
    """The first CUDA device; see `dlc.targets.gpu.device.Device`.

    Attributes:
        name: with the architecture, as ``NVIDIA H100 (sm_90)``.
        driver_version: the newest CUDA that the driver knows.
        image: which form of the kernels runs, ``cubin`` or ``PTX``.
    """

    grid_limits = (2**31 - 1, 2**16 - 1, 2**16 - 1)

    def __init__(self, package: Package) -> None:
        try:
            self._driver = driver = Driver()
        except DlcError as error:
            if str(error) not in (cuda_driver.NO_DRIVER, cuda_driver.NO_DEVICE):
                raise
            message = f"its kernels are for CUDA, and this machine has {error}: compile for gpu:opencl"
            raise DlcError(f"{package.name}: {message}") from error
        device = driver.device(0)
        self._architecture = driver.architecture(device)
        self.name = f"{driver.device_name(device)} ({self._architecture})"
        self.driver_version = driver.version()
        self._context = driver.retain_context(device)
        weakref.finalize(self, _quietly, driver, self._context, driver.release_context, device)
        self.activate()
        self._stream = driver.create_stream()
        weakref.finalize(self, _quietly, driver, self._context, driver.destroy_stream, self._stream)
        self.image, self._module = self._load(package)
        weakref.finalize(self, _quietly, driver, self._context, driver.unload_module, self._module)

    def _load(self, package: Package) -> tuple[str, int]:
        refusals = []
        for image, member in _IMAGES.items():
            try:
                return image, self._driver.load_module(bytes(package.member(member)))
            except CudaError as error:
                refusals.append(f"{error.error} for the {image}")
        wanted = package.manifest["target"].partition(",")[2]
        advice = f"compile for gpu:cuda,{self._architecture}" if wanted != self._architecture else "update the driver"
        raise DlcError(f"{package.name}: device '{self.name}', driver of CUDA {self.driver_version}, refuses the "
                       f"kernels for {wanted}: {', '.join(refusals)}; {advice}")  # fmt: skip

    def activate(self) -> None:
        """See `Device`."""
        self._driver.set_current(self._context)

    def allocate(self, size: int) -> _Buffer:
        """See `Device`."""
        try:
            return _Buffer(self, self._driver.allocate(size))
        except MemoryError:
            raise DlcError(f"device '{self.name}' is out of memory: no room for {size} bytes more") from None

    def free(self, address: int) -> None:
        """Free a buffer's memory; called when it is collected, in any thread."""
        _quietly(self._driver, self._context, self._driver.free, address)

    def upload(self, buffer: _Buffer, array: np.ndarray) -> None:
        """See `Device`."""
        self._driver.to_device(buffer.address, array.ctypes.data, array.nbytes, self._stream)

    def download(self, array: np.ndarray, buffer: _Buffer) -> None:
        """See `Device`."""
        self._driver.to_host(array.ctypes.data, buffer.address, array.nbytes, self._stream)

    def kernel(self, symbol: str, buffers: Sequence[_Buffer], dims: Sequence[int]) -> _Kernel:
        """See `Device`."""
        values = [*(ctypes.c_uint64(b.address) for b in buffers), *(ctypes.c_int32(d) for d in dims)]
        parameters = (ctypes.c_void_p * len(values))(*(ctypes.addressof(v) for v in values))
        return _Kernel(self._driver.function(self._module, symbol), parameters, values, buffers)

    def launch(self, kernel: _Kernel, blocks: Sequence[int], threads: int) -> None:
        """See `Device`."""
        grid = (*blocks, *(1 for _ in range(3 - len(blocks))))
        self._driver.launch(kernel.function, grid, threads, self._stream, kernel.parameters)

    def finish(self) -> None:
        """See `Device`."""
        self._driver.synchronize(self._stream)

    def record(self) -> int:
        """An event behind what was queued so far; for `elapsed`."""
        return self._driver.record_event(self._stream)

    def elapsed(self, begin: int, end: int) -> float:
        """Seconds on the device between two events, each good for one call; waits for the second."""
        return self._driver.elapsed(begin, end)


def _quietly(driver: Driver, context: int, give_back: Callable[[int], None], handle: int) -> None:
    """Give something back in whatever thread collects it; a device that failed has taken it already."""
    with contextlib.suppress(CudaError):
        driver.set_current(context)
        give_back(handle)
