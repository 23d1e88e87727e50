"""Compile kernels alone, run them on numpy arrays in guarded memory: for tests and experiments."""

from __future__ import annotations

import ctypes
import os
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
from dlc.targets.cpu.kernels.testing_memory import PLACEMENTS, Room, hold

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

    #: Whether a fault is an error that says where; else it ends the process, of which pytest-xdist names the test.
    alone = bool(os.environ.get("DLC_GUARD"))

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
        """Run on guarded copies of `arrays` (see `testing_memory`) and return the copies.

        Raises:
            AssertionError: an access outside an operand, or a result that depends on what is around the operands.
        """
        first, second = (self._guarded(arrays, dims, *placement) for placement in PLACEMENTS)
        for position, (one, other) in enumerate(zip(first, second, strict=True)):
            assert one.tobytes() == other.tobytes(), f"operand {position} depends on what nobody has written"
        return first

    def _guarded(self, arrays: Sequence[np.ndarray], dims: Sequence[int], at_end: bool, fill: int) -> list[np.ndarray]:
        rooms = {f"operand {i}": Room(a.nbytes, at_end, fill, a) for i, a in enumerate(arrays)}
        argument, table = self.raw([room.address for room in rooms.values()], dims)
        hold(lambda: self._function(argument), rooms, self.alone)
        del table
        return [
            room.bytes.copy().view(array.dtype).reshape(array.shape)
            for room, array in zip(rooms.values(), arrays, strict=True)
        ]
