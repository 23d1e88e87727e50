"""Writes the calls that the outputs need as a Relax function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dlc.errors import DlcError
from dlc.frontends.onnx.tensor import Call, Tensor
from dlc.ir.convert import FunctionBuilder, IrTypeError
from dlc.ir.graph import Origin

_NARROW = ("int4", "uint4", "int2", "uint2")


def _needed(calls: Sequence[Call], outputs: Sequence[Tensor]) -> list[Call]:
    """The calls that outputs depend on, in order."""
    wanted = {id(t.call) for t in outputs if t.call is not None}
    kept = []
    for call in reversed(calls):
        if id(call) in wanted:
            kept.append(call)
            wanted |= {id(t.call) for t in call.inputs if t.call is not None}
    return kept[::-1]


class _Writer:
    def __init__(self) -> None:
        self.builder = FunctionBuilder("main")
        self.written: dict[int, Any] = {}  # a tensor's id -> its Relax expression

    def expression(self, tensor: Tensor) -> Any:
        if id(tensor) not in self.written:
            assert tensor.value is not None
            self.written[id(tensor)] = self._constant(tensor.value)
        return self.written[id(tensor)]

    def _constant(self, array: np.ndarray) -> Any:
        if str(array.dtype) not in _NARROW:
            return self.builder.constant(array)
        # numpy holds these one a byte, TVM packs them: written as bytes and narrowed when running.
        wide = self.builder.constant(array.astype(np.uint8 if str(array.dtype).startswith("u") else np.int8))
        return self.builder.emit("relax.astype", [wide], {"dtype": str(array.dtype)})

    def inputs(self, tensors: Sequence[Tensor]) -> None:
        used: set[str] = set()
        for tensor in tensors:
            # Generators and files use these names, so they are plain identifiers; dlc.inputs keeps ONNX's spelling.
            base = "".join(c if c.isascii() and (c.isalnum() or c == "_") else "_" for c in tensor.name)
            base = base if base and not base[0].isdigit() else f"v{base}"
            name, count = base, 0
            while name in used:
                count += 1
                name = f"{base}_{count}"
            used.add(name)
            self.written[id(tensor)] = self.builder.input(name, tensor.shape, tensor.dtype)

    def call(self, call: Call) -> None:
        origin = Origin(call.onnx_op, call.onnx_node, call.value)
        operands = [self.expression(t) for t in call.inputs]
        self.written[id(call.output)] = self.builder.emit(call.op, operands, call.attrs, origin)


def write(
    model: str, inputs: Sequence[Tensor], calls: Sequence[Call], outputs: Sequence[Tensor], names: Sequence[str]
) -> Any:
    """The module with function ``main``; its attributes ``dlc.inputs`` and ``dlc.outputs`` are the ONNX names."""
    writer = _Writer()
    writer.inputs(inputs)
    for call in _needed(calls, outputs):
        try:
            writer.call(call)
        except IrTypeError as error:
            raise DlcError(f"{model}: node '{call.onnx_node or call.value}' ({call.onnx_op}): {error}") from error
    bound = [writer.expression(t) for t in outputs]
    return writer.builder.finish(bound, {"inputs": [t.name for t in inputs], "outputs": list(names)})
