"""Runs GPU packages: tensors stay on the device between kernels. Imports neither TVM nor onnx."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from dlc import explain
from dlc.errors import DlcError
from dlc.ir.interpret import evaluate_dim
from dlc.package import Package
from dlc.targets.gpu.cuda import CudaDevice
from dlc.targets.gpu.device import Device
from dlc.targets.gpu.opencl import OpenCLDevice

_POSITIONS = 2**31
_LEAST = 4  # bytes of a buffer: no device allocates none


@dataclass
class _Launch:
    """One kernel with its arguments; `blocks` None where there is nothing to do."""

    kernel: Any
    blocks: tuple[int, ...] | None
    threads: int
    output: Any


@dataclass
class _Prepared:
    """Buffers and launches for one set of extents."""

    inputs: list[Any]
    outputs: list[Any]
    launches: list[_Launch]


class GpuExecutable:
    """A loaded model. The device runs one call at a time; calls from several threads take turns.

    Attributes:
        device: what it runs on.
    """

    def __init__(self, package: Package, device: Device) -> None:
        self.device = device
        self._package, self._build = package, package.manifest["build"]
        arrays = package.constants("constants.safetensors")
        self._constants = [self._upload(arrays[f"c{i}"]) for i in range(self._build["constants"])]
        device.finish()
        self._outputs = package.manifest["outputs"]
        self._prepared: tuple[Mapping[str, int], _Prepared] | None = None
        self._lock = threading.Lock()

    def _upload(self, array: np.ndarray) -> Any:
        buffer = self._allocate(array.nbytes)
        if array.size:
            self.device.upload(buffer, array)
        return buffer

    def _allocate(self, size: int) -> Any:
        return self.device.allocate(max(size, _LEAST))

    def clone(self) -> GpuExecutable:
        """Itself: calls take turns."""
        return self

    def output_shapes(self, sizes: Mapping[str, int]) -> list[tuple[int, ...]]:
        """The outputs' extents."""
        return [tuple(evaluate_dim(d, sizes) for d in output["shape"]) for output in self._outputs]

    # --- preparing: once for a set of extents ---

    def _prepare(self, sizes: Mapping[str, int]) -> _Prepared:
        self.device.activate()
        if self._prepared is not None and self._prepared[0] == sizes:
            return self._prepared[1]
        self._prepared = None  # the old buffers go first
        slots = [self._allocate(max(evaluate_dim(s, sizes) for s in slot)) for slot in self._build["slots"]]
        found = {
            "workspace": slots,
            "constant": self._constants,
            "input": [self._tensor(info, sizes) for info in self._package.manifest["inputs"]],
            "output": [self._tensor(info, sizes) for info in self._outputs],
        }
        launches = [self._bind(call, found, sizes) for call in self._build["calls"]]
        prepared = _Prepared(found["input"], found["output"], launches)
        self._prepared = dict(sizes), prepared
        return prepared

    def _tensor(self, info: Mapping[str, Any], sizes: Mapping[str, int]) -> Any:
        count = prod(evaluate_dim(d, sizes) for d in info["shape"])
        if count >= _POSITIONS:
            raise DlcError(f"'{info['name']}' has {count} elements, more than the kernels can count")
        return self._allocate(count * np.dtype(info["dtype"]).itemsize)

    def _bind(self, call: Mapping[str, Any], places: Mapping[str, list[Any]], sizes: Mapping[str, int]) -> _Launch:
        if prod(evaluate_dim(d, sizes) for d in call["shape"]) >= _POSITIONS:
            raise DlcError(f"kernel {call['symbol']} makes more elements than it can count")
        output = places[call["output"][0]][call["output"][1]]
        buffers = [places[kind][index] for kind, index in call["operands"]]
        dims = [evaluate_dim(d, sizes) for d in call["dims"]]
        grid = call["grid"]
        blocks = tuple(-(-prod(evaluate_dim(d, sizes) for d in axis["extents"]) // axis["tile"]) for axis in grid)
        for axis, (count, limit) in enumerate(zip(blocks, self.device.grid_limits, strict=False)):
            if count > limit:
                raise DlcError(f"kernel {call['symbol']} needs {count} blocks along axis {axis} of its grid; device "
                               f"'{self.device.name}' has {limit} at most")  # fmt: skip
        kernel = self.device.kernel(call["symbol"], [*buffers, output], dims)
        return _Launch(kernel, blocks if all(blocks) else None, call["threads"], output)

    # --- running ---

    def _feed(self, prepared: _Prepared, inputs: list[np.ndarray]) -> None:
        for buffer, array in zip(prepared.inputs, inputs, strict=True):
            if array.size:
                self.device.upload(buffer, array)

    def _enqueue(self, launch: _Launch) -> None:
        if launch.blocks is not None:
            self.device.launch(launch.kernel, launch.blocks, launch.threads)

    def run(self, inputs: list[np.ndarray], outputs: list[np.ndarray], sizes: Mapping[str, int]) -> None:
        """Compute all outputs; see `dlc.targets.base.Executable`."""
        with self._lock:
            prepared = self._prepare(sizes)
            self._feed(prepared, inputs)
            for launch in prepared.launches:
                self._enqueue(launch)
            for buffer, array in zip(prepared.outputs, outputs, strict=True):
                if array.size:
                    self.device.download(array, buffer)
            self.device.finish()

    def launch(self, sizes: Mapping[str, int]) -> None:
        """Queue every kernel once, on the inputs of the last run, without waiting: for timing the kernels alone."""
        with self._lock:
            for launch in self._prepare(sizes).launches:
                self._enqueue(launch)

    def trace(self, inputs: list[np.ndarray], sizes: Mapping[str, int]) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
        """Run kernel by kernel; yields (explanation row, the kernel's value as the model has it, dequantised)."""
        explanation = explain.read(self._package)
        with self._lock:
            prepared = self._prepare(sizes)
            self._feed(prepared, inputs)
            for launch, call, row in zip(prepared.launches, self._build["calls"], explanation.nodes, strict=True):
                self._enqueue(launch)
                array = np.empty([evaluate_dim(d, sizes) for d in call["shape"]], call["dtype"])
                if array.size:
                    self.device.download(array, launch.output)
                    self.device.finish()
                array = np.moveaxis(array, -1, 1) if row["channels_last"] else array
                yield row, explanation.real(row["value"], array)


def load(package: Package, threads: int) -> GpuExecutable:
    """Load a package on the first device of its language.

    Raises:
        DlcError: a driver or a device is missing or refuses the kernels, or `threads` is not 1.
    """
    if threads != 1:
        raise DlcError(f"target gpu is driven by one thread, not {threads}")
    cuda = package.manifest["build"]["language"] == "cuda"
    return GpuExecutable(package, CudaDevice(package) if cuda else OpenCLDevice(package))
