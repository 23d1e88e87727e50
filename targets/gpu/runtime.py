"""Runs GPU packages through OpenCL: tensors stay on the device between kernels. Imports neither TVM nor onnx."""

from __future__ import annotations

import ctypes
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

# Division and square root as IEEE has them: integer results depend on single float roundings.
OPTIONS = ("-cl-std=CL1.2",)
EXACT_DIVISION = "-cl-fp32-correctly-rounded-divide-sqrt"
_POSITIONS = 2**31
NO_PYOPENCL = "pyopencl is not installed: pip install 'dlc[gpu]'"
NO_DEVICE = "no OpenCL device: install a driver, or PoCL with scripts/install-system-packages.sh"
NO_DRIVER = "its kernels are for CUDA, and this machine has no CUDA driver (libcuda.so.1): compile for gpu:opencl"
NO_LAUNCH = "its kernels are for CUDA, which this version compiles and does not launch: compile for gpu:opencl"


def _import_opencl() -> Any:
    try:
        import pyopencl
    except ImportError:
        raise DlcError(NO_PYOPENCL) from None
    return pyopencl


def has_cuda_driver() -> bool:
    """Whether the CUDA driver is installed."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


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


@dataclass
class _Launch:
    """One kernel with its arguments set; `size` None where there is nothing to do."""

    kernel: Any
    size: tuple[int, ...] | None
    threads: tuple[int, ...]
    output: Any


@dataclass
class _Prepared:
    """Buffers and launches for one set of extents."""

    inputs: list[Any]
    outputs: list[Any]
    launches: list[_Launch]


class OpenCLExecutable:
    """A loaded model. The device runs one call at a time; calls from several threads take turns."""

    def __init__(self, package: Package) -> None:
        self._cl = cl = _import_opencl()
        devices, reason = opencl_devices()
        if not devices:
            raise DlcError(reason)
        self._package, self._build = package, package.manifest["build"]
        self._context = cl.Context([devices[0]])
        self._queue = cl.CommandQueue(self._context)
        self._program = self._compile(bytes(package.member("kernels.cl")).decode(), devices[0])
        arrays = package.constants("constants.safetensors")
        self._constants = [self._upload(arrays[f"c{i}"]) for i in range(self._build["constants"])]
        self._outputs = package.manifest["outputs"]
        self._prepared: tuple[Mapping[str, int], _Prepared] | None = None
        self._lock = threading.Lock()

    def _compile(self, text: str, device: Any) -> Any:
        cl = self._cl
        exact = device.single_fp_config & cl.device_fp_config.CORRECTLY_ROUNDED_DIVIDE_SQRT
        if not exact and self._package.manifest["options"]["quantize"] != "none":
            raise DlcError(f"device '{device.name.strip()}' does not round divisions as IEEE does: integer results "
                           f"would differ")  # fmt: skip
        options = [*OPTIONS, EXACT_DIVISION] if exact else list(OPTIONS)
        try:
            return cl.Program(self._context, text).build(options)
        except cl.RuntimeError as error:
            first = next((line for line in str(error).splitlines() if "error" in line.lower()), str(error)[:200])
            raise DlcError(
                f"{self._package.name}: device '{device.name.strip()}' refuses the kernels: {first}"
            ) from error

    def _upload(self, array: np.ndarray) -> Any:
        flags = self._cl.mem_flags
        data = np.ascontiguousarray(array).reshape(-1)
        if not data.size:
            return self._allocate(0)
        return self._cl.Buffer(self._context, flags.READ_ONLY | flags.COPY_HOST_PTR, hostbuf=data)

    def _allocate(self, size: int) -> Any:
        return self._cl.Buffer(self._context, self._cl.mem_flags.READ_WRITE, max(size, 4))

    def clone(self) -> OpenCLExecutable:
        """Itself: calls take turns."""
        return self

    def output_shapes(self, sizes: Mapping[str, int]) -> list[tuple[int, ...]]:
        """The outputs' extents."""
        return [tuple(evaluate_dim(d, sizes) for d in output["shape"]) for output in self._outputs]

    # --- preparing: once for a set of extents ---

    def _prepare(self, sizes: Mapping[str, int]) -> _Prepared:
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
        launches = [self._launch(call, found, sizes) for call in self._build["calls"]]
        prepared = _Prepared(found["input"], found["output"], launches)
        self._prepared = dict(sizes), prepared
        return prepared

    def _tensor(self, info: Mapping[str, Any], sizes: Mapping[str, int]) -> Any:
        count = prod(evaluate_dim(d, sizes) for d in info["shape"])
        if count >= _POSITIONS:
            raise DlcError(f"'{info['name']}' has {count} elements, more than the kernels can count")
        return self._allocate(count * np.dtype(info["dtype"]).itemsize)

    def _launch(self, call: Mapping[str, Any], places: Mapping[str, list[Any]], sizes: Mapping[str, int]) -> _Launch:
        if prod(evaluate_dim(d, sizes) for d in call["shape"]) >= _POSITIONS:
            raise DlcError(f"kernel {call['symbol']} makes more elements than it can count")
        kernel = self._cl.Kernel(self._program, call["symbol"])
        output = places[call["output"][0]][call["output"][1]]
        buffers = [places[kind][index] for kind, index in call["operands"]]
        kernel.set_args(*buffers, output, *(np.int32(evaluate_dim(d, sizes)) for d in call["dims"]))
        blocks = [-(-prod(evaluate_dim(d, sizes) for d in axis["extents"]) // axis["tile"]) for axis in call["grid"]]
        threads = (call["threads"], *(1 for _ in blocks[1:]))
        size = tuple(b * t for b, t in zip(blocks, threads, strict=True)) if all(blocks) else None
        return _Launch(kernel, size, threads, output)

    # --- running ---

    def _feed(self, prepared: _Prepared, inputs: list[np.ndarray]) -> None:
        for buffer, array in zip(prepared.inputs, inputs, strict=True):
            if array.size:
                self._cl.enqueue_copy(self._queue, buffer, array, is_blocking=False)

    def _enqueue(self, launch: _Launch) -> None:
        if launch.size is not None:
            self._cl.enqueue_nd_range_kernel(self._queue, launch.kernel, launch.size, launch.threads)

    def run(self, inputs: list[np.ndarray], outputs: list[np.ndarray], sizes: Mapping[str, int]) -> None:
        """Compute all outputs; see `dlc.targets.base.Executable`."""
        with self._lock:
            prepared = self._prepare(sizes)
            self._feed(prepared, inputs)
            for launch in prepared.launches:
                self._enqueue(launch)
            for buffer, array in zip(prepared.outputs, outputs, strict=True):
                if array.size:
                    self._cl.enqueue_copy(self._queue, array, buffer, is_blocking=False)
            self._queue.finish()

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
                    self._cl.enqueue_copy(self._queue, array, launch.output, is_blocking=True)
                array = np.moveaxis(array, -1, 1) if row["channels_last"] else array
                yield row, explanation.real(row["value"], array)


def load(package: Package, threads: int) -> OpenCLExecutable:
    """Load a package on the first OpenCL device, GPUs first.

    Raises:
        DlcError: pyopencl or a device is missing, the package holds CUDA code, or `threads` is not 1.
    """
    if threads != 1:
        raise DlcError(f"target gpu is driven by one thread, not {threads}")
    if package.manifest["build"]["language"] == "cuda":
        raise DlcError(f"{package.name}: {NO_LAUNCH if has_cuda_driver() else NO_DRIVER}")
    return OpenCLExecutable(package)
