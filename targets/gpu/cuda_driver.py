"""NVIDIA's driver API (libcuda.so.1) through ctypes: what running a package needs, one method a function.

Handles (contexts, modules, functions, streams, events) are ints, and so are addresses on the device. All calls but
those of `Driver` that take a device's ordinal need a context that is current in the calling thread.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, c_char, c_char_p, c_float, c_int, c_size_t, c_uint, c_uint64, c_void_p
from typing import Any

from dlc.errors import DlcError

LIBRARY = "libcuda.so.1"
NO_DRIVER = f"no CUDA driver ({LIBRARY})"
NO_DEVICE = "no CUDA device"
_NO_DEVICE_CODE = 100
_OUT_OF_MEMORY = 2
_NON_BLOCKING = 1  # a stream that does not wait for the legacy default stream
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76
_NAME_BYTES = 256

# CUdevice and CUresult are ints, CUdeviceptr is 64 bits wide, all other handles are pointers.
_HANDLE, _ADDRESS = c_void_p, c_uint64
_PROTOTYPES: dict[str, tuple[Any, ...]] = {
    "cuInit": (c_uint,),
    "cuGetErrorName": (c_int, POINTER(c_char_p)),
    "cuDriverGetVersion": (POINTER(c_int),),
    "cuDeviceGetCount": (POINTER(c_int),),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDeviceGetName": (POINTER(c_char), c_int, c_int),
    "cuDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cuDevicePrimaryCtxRetain": (POINTER(_HANDLE), c_int),
    "cuDevicePrimaryCtxRelease_v2": (c_int,),
    "cuCtxSetCurrent": (_HANDLE,),
    "cuModuleLoadData": (POINTER(_HANDLE), c_char_p),
    "cuModuleUnload": (_HANDLE,),
    "cuModuleGetFunction": (POINTER(_HANDLE), _HANDLE, c_char_p),
    "cuMemAlloc_v2": (POINTER(_ADDRESS), c_size_t),
    "cuMemFree_v2": (_ADDRESS,),
    "cuMemcpyHtoDAsync_v2": (_ADDRESS, c_void_p, c_size_t, _HANDLE),
    "cuMemcpyDtoHAsync_v2": (c_void_p, _ADDRESS, c_size_t, _HANDLE),
    "cuLaunchKernel": (_HANDLE, *[c_uint] * 7, _HANDLE, POINTER(c_void_p), POINTER(c_void_p)),
    "cuStreamCreate": (POINTER(_HANDLE), c_uint),
    "cuStreamSynchronize": (_HANDLE,),
    "cuStreamDestroy_v2": (_HANDLE,),
    "cuEventCreate": (POINTER(_HANDLE), c_uint),
    "cuEventRecord": (_HANDLE, _HANDLE),
    "cuEventSynchronize": (_HANDLE,),
    "cuEventElapsedTime": (POINTER(c_float), _HANDLE, _HANDLE),
    "cuEventDestroy_v2": (_HANDLE,),
}


class CudaError(DlcError):
    """A call of the driver failed.

    Attributes:
        code: the CUresult.
        error: its name, such as ``CUDA_ERROR_INVALID_VALUE``.
    """

    def __init__(self, function: str, code: int, error: str) -> None:
        super().__init__(f"CUDA's {function} failed: {error}")
        self.code, self.error = code, error


class Driver:
    """The driver, initialised."""

    def __init__(self) -> None:
        """Load and initialise the driver.

        Raises:
            DlcError: there is no driver (`NO_DRIVER`) or no device (`NO_DEVICE`); or it is too old, or broken.
        """
        try:
            library = ctypes.CDLL(LIBRARY)
        except OSError:
            raise DlcError(NO_DRIVER) from None
        self._functions: dict[str, Any] = {}
        for name, arguments in _PROTOTYPES.items():
            try:
                function = getattr(library, name)
            except AttributeError:
                raise DlcError(f"the CUDA driver has no {name}: update it") from None
            function.argtypes, function.restype = arguments, c_int
            self._functions[name] = function
        try:
            self._call("cuInit", 0)
            count = self._int("cuDeviceGetCount")
        except CudaError as error:
            if error.code == _NO_DEVICE_CODE:
                raise DlcError(NO_DEVICE) from error
            raise
        if not count:
            raise DlcError(NO_DEVICE)
        self.device_count = count

    def _call(self, name: str, *arguments: Any) -> None:
        code = self._functions[name](*arguments)
        if code:
            raise CudaError(name, code, self._error_name(code))

    def _error_name(self, code: int) -> str:
        name = c_char_p()
        known = self._functions["cuGetErrorName"](code, ctypes.byref(name)) == 0 and name.value
        return name.value.decode() if known and name.value else f"error {code}"

    def _int(self, name: str, *arguments: Any) -> int:
        found = c_int()
        self._call(name, ctypes.byref(found), *arguments)
        return found.value

    def _handle(self, name: str, *arguments: Any) -> int:
        found = _HANDLE()
        self._call(name, ctypes.byref(found), *arguments)
        return found.value or 0

    # --- devices and contexts ---

    def version(self) -> str:
        """The newest CUDA that the driver knows, such as ``12.4``."""
        number = self._int("cuDriverGetVersion")
        return f"{number // 1000}.{number % 1000 // 10}"

    def device(self, ordinal: int) -> int:
        """The device of an ordinal."""
        return self._int("cuDeviceGet", ordinal)

    def device_name(self, device: int) -> str:
        """What the device is called."""
        name = (c_char * _NAME_BYTES)()
        self._call("cuDeviceGetName", name, _NAME_BYTES, device)
        return name.value.decode()

    def architecture(self, device: int) -> str:
        """The device's architecture, as nvcc calls it: ``sm_90``."""
        major, minor = (
            self._int("cuDeviceGetAttribute", attribute, device) for attribute in (_CAPABILITY_MAJOR, _CAPABILITY_MINOR)
        )
        return f"sm_{major}{minor}"

    def retain_context(self, device: int) -> int:
        """The device's primary context; `release_context` as often."""
        return self._handle("cuDevicePrimaryCtxRetain", device)

    def release_context(self, device: int) -> None:
        """Undo one `retain_context`; the last one destroys the context and what lives in it."""
        self._call("cuDevicePrimaryCtxRelease_v2", device)

    def set_current(self, context: int) -> None:
        """Make a context current in this thread."""
        self._call("cuCtxSetCurrent", context)

    # --- code ---

    def load_module(self, image: bytes) -> int:
        """Load a cubin, or PTX text, which the driver compiles."""
        return self._handle("cuModuleLoadData", image)  # ctypes ends bytes with a zero, as PTX must

    def unload_module(self, module: int) -> None:
        """Unload it."""
        self._call("cuModuleUnload", module)

    def function(self, module: int, name: str) -> int:
        """A kernel of a module."""
        return self._handle("cuModuleGetFunction", module, name.encode())

    def launch(self, function: int, blocks: Sequence[int], threads: int, stream: int, parameters: Any) -> None:
        """Queue a kernel on three axes of blocks of `threads` threads, without dynamic shared memory.

        Args:
            parameters: an array of c_void_p that point to the arguments; they are read before this returns.
        """
        self._call("cuLaunchKernel", function, *blocks, threads, 1, 1, 0, stream, parameters, None)

    # --- memory ---

    def allocate(self, size: int) -> int:
        """`size` bytes on the device, at a multiple of 256; MemoryError where there are not so many."""
        found = _ADDRESS()
        try:
            self._call("cuMemAlloc_v2", ctypes.byref(found), size)
        except CudaError as error:
            if error.code == _OUT_OF_MEMORY:
                raise MemoryError(size) from error
            raise
        return found.value

    def free(self, address: int) -> None:
        """Free what `allocate` gave, behind the work that uses it."""
        self._call("cuMemFree_v2", address)

    def to_device(self, address: int, host: int, size: int, stream: int) -> None:
        """Queue a copy of `size` bytes from the host's address `host`."""
        self._call("cuMemcpyHtoDAsync_v2", address, host, size, stream)

    def to_host(self, host: int, address: int, size: int, stream: int) -> None:
        """Queue a copy of `size` bytes to the host's address `host`."""
        self._call("cuMemcpyDtoHAsync_v2", host, address, size, stream)

    # --- streams and events ---

    def create_stream(self) -> int:
        """A stream that waits for no other."""
        return self._handle("cuStreamCreate", _NON_BLOCKING)

    def synchronize(self, stream: int) -> None:
        """Wait for what a stream was given; errors of its kernels come here."""
        self._call("cuStreamSynchronize", stream)

    def destroy_stream(self, stream: int) -> None:
        """Destroy it."""
        self._call("cuStreamDestroy_v2", stream)

    def record_event(self, stream: int) -> int:
        """A new event that happens when the stream has come here."""
        event = self._handle("cuEventCreate", 0)
        self._call("cuEventRecord", event, stream)
        return event

    def elapsed(self, begin: int, end: int) -> float:
        """Seconds between two events, to about half a microsecond; waits for the second. Destroys both."""
        found = c_float()
        self._call("cuEventSynchronize", end)
        self._call("cuEventElapsedTime", ctypes.byref(found), begin, end)
        for event in (begin, end):
            self._call("cuEventDestroy_v2", event)
        return found.value * 1e-3
