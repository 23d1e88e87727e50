"""Compile kernels alone, run them on numpy arrays with guard zones around every buffer: for tests and experiments."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from dlc.targets.cpu.codegen import compile_functions, llvm_target  # noqa: F401  (tests ask for it here)
from dlc.targets.cpu.isa import Isa
from dlc.targets.cpu.kernels.builder import SHARED

_GUARD = 256  # bytes before and after every array
_PATTERN = 0xA5
_keep_alive: list[Any] = []


_PARTS = 3  # in which a kernel that is shared out is computed, one after the other


def _entry(name: str, pointers: int, dims: int, shared: bool) -> Any:
    with IRBuilder() as builder, T.prim_func():
        T.func_name("entry")
        T.func_attr({"global_symbol": "entry"})
        table = T.decl_buffer((pointers + dims,), "uint64", data=T.arg("args", T.handle("uint64")))
        args = [T.reinterpret("handle", table[i]) for i in range(pointers)]
        args += [T.cast(table[pointers + i], "int64") for i in range(dims)]
        for part in range(_PARTS if shared else 1):
            mine = (T.int64(part), T.int64(_PARTS)) if shared else ()
            T.evaluate(T.call_extern("void", name, *args, *mine))
    return builder.get()


class Compiled:
    """One or more C-ABI kernels, compiled and loaded; `run` calls one of them."""

    def __init__(self, func: Any, isa: Isa, pointers: int, dims: int = 0, helpers: Sequence[Any] = ()) -> None:
        import tvm_ffi_orcjit

        name = func.attrs["global_symbol"]
        module = tvm.IRModule({name: func, "entry": _entry(name, pointers, dims, SHARED in func.attrs)})
        for helper in helpers:
            module[helper.attrs["global_symbol"]] = helper
        library = compile_functions(module, isa)
        self.assembly: str = library.inspect_source("s")
        import tempfile
        from pathlib import Path

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "kernel.o"
            library.write_to_file(str(path))
            self._module = tvm_ffi_orcjit.ExecutionSession(None).load_module(path.read_bytes(), cxx="/nonexistent")
        _keep_alive.append(self._module)
        self._function = self._module["entry"]

    def raw(self, pointers: Sequence[int], dims: Sequence[int] = ()) -> tuple[Any, np.ndarray]:
        """The call's argument (keep the array alive): for timing loops, `compiled.function(argument)`."""
        table = np.array([*pointers, *dims], dtype="uint64")
        return ctypes.c_void_p(table.ctypes.data), table

    @property
    def function(self) -> tvm_ffi.Function:
        """The native entry; takes what `raw` made."""
        return self._function

    def run(self, arrays: Sequence[np.ndarray], dims: Sequence[int] = ()) -> list[np.ndarray]:
        """Run on copies of `arrays` between guard zones; returns the copies; raises AssertionError on a stray write."""
        guarded = []
        for array in arrays:
            flat = np.full(array.nbytes + 2 * _GUARD, _PATTERN, dtype="uint8")
            shift = -(flat.ctypes.data + _GUARD) % 64
            whole = np.full(array.nbytes + 2 * _GUARD + 64, _PATTERN, dtype="uint8")
            shift = -(whole.ctypes.data + _GUARD) % 64
            begin = _GUARD + shift
            whole[begin : begin + array.nbytes] = np.frombuffer(np.ascontiguousarray(array).tobytes(), dtype="uint8")
            guarded.append((whole, begin, array))
        argument, table = self.raw([w.ctypes.data + begin for w, begin, _ in guarded], dims)
        self._function(argument)
        del table
        results = []
        for position, (whole, begin, array) in enumerate(guarded):
            end = begin + array.nbytes
            stray = np.flatnonzero(np.concatenate([whole[:begin], whole[end:]]) != _PATTERN)
            assert not len(stray), f"operand {position}: {len(stray)} bytes written outside its {array.nbytes} bytes"
            results.append(whole[begin:end].view(array.dtype).reshape(array.shape))
        return results
