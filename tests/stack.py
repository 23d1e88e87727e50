"""Kernels that look at every access to memory on the stack whether it is inside: for tests.

What a kernel keeps on the stack (accumulators, strips of scores, tables) has no pages of its own to guard. Not looked
at are masked accesses, and vectors of positions that are no sequence.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import tvm
import tvm_ffi
from tvm import tirx
from tvm.ir.expr import TensorLoad
from tvm.script.ir_builder import tirx as T
from tvm.tirx.stmt import Bind, BufferStore, DeclBuffer

from dlc.targets.cpu import link
from dlc.targets.cpu.codegen import compile_functions

OUTSIDE = "abort"  # what is called at an access outside


def _allocates(value: Any) -> bool:
    return isinstance(value, tvm.ir.Call) and getattr(value.op, "name", "") == "tirx.tvm_stack_alloca"


def held_to_the_stack(func: Any) -> Any:
    """A kernel that ends the process where it would access a stack buffer outside its elements.

    Raises:
        AssertionError: an index that is known when compiling is outside.
    """
    allocated: list[Any] = []
    sizes: list[tuple[Any, int]] = []

    def bind(node: Any) -> None:
        if _allocates(node.value):
            allocated.append(node.var)

    def declare(node: Any) -> None:
        if any(var.same_as(node.data) for var in allocated):
            sizes.append((node.buffer, int(node.buffer.ty.shape[0])))

    def index(buffer: Any, indices: Any) -> Any:
        size = next((size for var, size in sizes if var.same_as(buffer)), None)
        return None if size is None else _inside(indices[0], size)

    def load(node: Any) -> Any:
        found = index(node.source, node.indices)
        return node if found is None else tirx.BufferLoad(node.source, [found])

    def store(node: Any) -> Any:
        found = index(node.buffer, node.indices)
        return node if found is None else BufferStore(node.buffer, node.value, [found])

    tvm_ffi.structural_walk(func, (Bind, bind))
    tvm_ffi.structural_walk(func, (DeclBuffer, declare))
    return tvm_ffi.structural_map(func, [(TensorLoad, load), (BufferStore, store)])


def _inside(position: Any, size: int) -> Any:
    """A position, or consecutive ones, that nothing passes which is not in [0, size)."""
    base, lanes, step = position, 1, 1
    if isinstance(position, tirx.Ramp):
        base, lanes, step = position.base, int(position.lanes), int(position.stride)
    last = base + (lanes - 1) * step
    if isinstance(base, int | tirx.IntImm):
        assert min(int(base), int(last)) >= 0 and max(int(base), int(last)) < size, (
            f"{position} of {size} elements on the stack"
        )
        return position
    if "x" in str(base.ty.dtype):  # any positions: taken from tables
        return position
    stray = T.cast(T.call_extern("int32", OUTSIDE), str(base.ty.dtype))
    known = T.if_then_else(T.And(base >= 0, last < size), base, stray)
    return known if lanes == 1 else T.ramp(known, step, lanes)


def _compile(module: Any, isa: Any) -> Any:
    functions = {var.name_hint: held_to_the_stack(func) for var, func in module.functions.items()}
    return compile_functions(tvm.IRModule(functions), isa)


@contextmanager
def stack_held() -> Iterator[None]:
    """What is compiled for the CPU here is held to its stack."""
    with mock.patch.object(link, "compile_functions", _compile):
        yield
