"""From a lowered program to object files: the entry functions, the compilation, the constants blob.

Two entries, both called through tvm-ffi with one pointer to a table of 64-bit words:

- ``dlc_main``: pointers of the inputs, pointers of the outputs, base of the constants, base of the workspace, the first
  call to run, the one to stop before, the symbols' sizes. Running a range of calls is what tracing and profiling use.
- ``dlc_sizes``: (in) the symbols' sizes, (out) bytes of workspace, the outputs' extents, the offset of every call's
  output in the workspace (or -1).
"""

from __future__ import annotations

import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from dlc.hardware import this_machine
from dlc.ir.dims import substitute
from dlc.targets.cpu.codegen import compile_functions
from dlc.targets.cpu.isa import Isa
from dlc.targets.plan import ALIGNMENT, Plan
from dlc.targets.program import Program, Ref

MAIN, SIZES = "dlc_main", "dlc_sizes"
_KERNELS = 8  # in one object file, at least: a file more costs a millisecond when loading
_MOST_OBJECTS = 4


def constant_offsets(constants: list[np.ndarray]) -> tuple[list[int], int]:
    """Offset of each constant in the blob, and the blob's size; every constant starts at a multiple of 64 bytes."""
    offsets, end = [], 0
    for array in constants:
        offsets.append(end)
        end += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
    return offsets, end


def size_expressions(program: Program, plan: Plan) -> list[Any]:
    """What ``dlc_sizes`` writes, in order."""
    found = [plan.total]
    found += [d for value in program.outputs for d in value.shape]
    found += [plan.offset_of.get(call.output.name, -1) for call in program.calls]
    return found


class _Entry:
    """Emits ``dlc_main``."""

    def __init__(self, program: Program, plan: Plan, offsets: list[int]) -> None:
        self.program, self.plan, self.offsets = program, plan, offsets
        self.fixed = len(program.inputs) + len(program.outputs)

    def emit(self) -> Any:
        program = self.program
        with IRBuilder() as builder:
            with T.prim_func():
                T.func_name(MAIN)
                T.func_attr({"global_symbol": MAIN, "tirx.noalias": True})
                words = self.fixed + 4 + len(program.symbols)
                table = T.decl_buffer((words,), "uint64", data=T.arg("args", T.handle("uint64")))
                self.words = [T.bind(table[i]) for i in range(words)]
                begin = T.bind(T.cast(self.words[self.fixed + 2], "int64"))
                end = T.bind(T.cast(self.words[self.fixed + 3], "int64"))
                sizes = [T.bind(T.cast(w, "int64")) for w in self.words[self.fixed + 4 :]]
                self.sizes = {str(v.name): s for v, s in zip(program.symbols, sizes, strict=True)}
                for number, call in enumerate(program.calls):
                    wanted = T.And(begin <= T.int64(number), T.int64(number) < end)
                    with T.If(wanted), T.Then():
                        arguments = [self._pointer(ref) for ref in (*call.inputs, call.output)]
                        arguments += [self.sizes[str(d.name)] for d in call.dims]
                        T.evaluate(T.call_extern("void", call.symbol, *arguments))
            return builder.get()

    def _pointer(self, ref: Ref) -> Any:
        if ref.kind == "input":
            address = self.words[ref.index]
        elif ref.kind == "output":
            address = self.words[len(self.program.inputs) + ref.index]
        elif ref.kind == "constant":
            address = self.words[self.fixed] + T.uint64(self.offsets[ref.index])
        else:
            offset = substitute(self.plan.offset_of[ref.name], self.sizes)
            offset = T.int64(offset) if isinstance(offset, int) else offset
            address = self.words[self.fixed + 1] + T.cast(offset, "uint64")
        return T.reinterpret("handle", address)


def _sizes_entry(program: Program, plan: Plan) -> Any:
    expressions = size_expressions(program, plan)
    with IRBuilder() as builder:
        with T.prim_func():
            T.func_name(SIZES)
            T.func_attr({"global_symbol": SIZES, "tirx.noalias": True})
            count = len(program.symbols)
            table = T.decl_buffer((count + len(expressions),), "int64", data=T.arg("args", T.handle("int64")))
            sizes = {str(v.name): T.bind(table[i]) for i, v in enumerate(program.symbols)}
            for i, expression in enumerate(expressions):
                value = substitute(expression, sizes)
                T.buffer_store(table, T.int64(value) if isinstance(value, int) else value, [count + i])
        return builder.get()


def compile_program(program: Program, plan: Plan, isa: Isa) -> list[bytes]:
    """Compile to object files: the first has the entries, and all of them share the kernels out in turn.

    LLVM works on as many of them at once as there are cores. How many they are depends on the program alone, so that
    the same program gives the same bytes on any machine.
    """
    offsets, _ = constant_offsets(program.constants)
    count = min(_MOST_OBJECTS, 1 + len(program.kernels) // _KERNELS)
    modules = [tvm.IRModule({}) for _ in range(count)]
    modules[0][MAIN], modules[0][SIZES] = _Entry(program, plan, offsets).emit(), _sizes_entry(program, plan)
    for number, (symbol, func) in enumerate(program.kernels.items()):
        modules[number % count][symbol] = func
    with ThreadPoolExecutor(min(count, this_machine().cores)) as pool:
        return list(pool.map(lambda module: _object(module, isa), modules))


def _object(module: Any, isa: Isa) -> bytes:
    library = compile_functions(module, isa)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "code.o"
        library.write_to_file(str(path))
        return path.read_bytes()
