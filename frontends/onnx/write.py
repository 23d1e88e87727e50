"""Writes the calls that the outputs need as a Relax function."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tvm.sym import Analyzer

from dlc.errors import DlcError
from dlc.frontends.onnx.tensor import Call, Tensor
from dlc.ir.convert import PACKED, FunctionBuilder, IrTypeError, shape_of
from dlc.ir.graph import Origin, symbol_names
from dlc.ir.ops import OPS
from dlc.ir.ops.host import ITEM
from dlc.runtime.demands import Demands


def _needed(calls: Sequence[Call], outputs: Sequence[Tensor]) -> list[Call]:
    """The calls that outputs depend on, in order: for their elements, or for an extent that only data tell."""
    wanted = {id(t.call) for t in outputs if t.call is not None}
    symbols: set[str] = set()
    kept = []
    for call in reversed(calls):
        if id(call) in wanted or (call.op == ITEM and symbols & symbol_names(call.output.shape)):
            kept.append(call)
            wanted |= {id(t.call) for t in call.inputs if t.call is not None}
            symbols |= _symbols(call)
    return kept[::-1]


def _symbols(call: Call) -> set[str]:
    """The symbols that running a call needs."""
    found = symbol_names([call.output.shape, [v for v in call.attrs.values() if not isinstance(v, str)]])
    for block in call.blocks:
        found |= {name for inner in block.calls for name in _symbols(inner)}
    return found


def _blocks(calls: Sequence[Call], model: str, functions: dict[str, Any], names: dict[int, str], bounds: bool) -> None:
    """Write the blocks of control flow among `calls` as functions, inner ones first; `names` by a block's id."""
    for block in (b for call in calls for b in call.blocks):
        needed = _needed(block.calls, block.outputs)
        _blocks(needed, model, functions, names, bounds)
        name = f"block{len(functions)}"
        writer = _Writer(name, functions, names, bounds)
        writer.parameters(block.params, [f"p{i}" for i in range(len(block.params))])
        writer.calls(needed, model)
        # The name among the attributes keeps equal blocks apart, which Relax would make one.
        module = writer.builder.finish([writer.expression(t) for t in block.outputs], {"block": name})
        functions[name], names[id(block)] = module[name], name


class _Writer:
    """Writes one function; `bounds` says whether sizes of symbols are bounded."""

    def __init__(self, name: str, functions: Mapping[str, Any], names: Mapping[int, str], bounds: bool) -> None:
        self.builder, self.bounds = FunctionBuilder(name), bounds
        self.names = names
        for inner, function in functions.items():
            self.builder.add_region(inner, function)
        self.written: dict[int, Any] = {}  # a tensor's id -> its Relax expression

    def expression(self, tensor: Tensor) -> Any:
        if id(tensor) not in self.written:
            assert tensor.value is not None
            self.written[id(tensor)] = self._constant(tensor.value)
        return self.written[id(tensor)]

    def _constant(self, array: np.ndarray) -> Any:
        if str(array.dtype) not in PACKED:
            return self.builder.constant(array)
        # Written as bytes and narrowed when running.
        wide = self.builder.constant(array.astype(np.uint8 if str(array.dtype).startswith("u") else np.int8))
        return self.builder.emit("relax.astype", [wide], {"dtype": str(array.dtype)})

    def inputs(self, tensors: Sequence[Tensor]) -> None:
        used: set[str] = set()
        names: list[str] = []
        for tensor in tensors:
            # Generators and files use these names, so they are plain identifiers; dlc.inputs keeps ONNX's spelling.
            base = "".join(c if c.isascii() and (c.isalnum() or c == "_") else "_" for c in tensor.name)
            base = base if base and not base[0].isdigit() else f"v{base}"
            name, count = base, 0
            while name in used:
                count += 1
                name = f"{base}_{count}"
            used.add(name)
            names.append(name)
        self.parameters(tensors, names)

    def parameters(self, tensors: Sequence[Tensor], names: Sequence[str]) -> None:
        for tensor, name in zip(tensors, names, strict=True):
            self.written[id(tensor)] = self.builder.input(name, tensor.shape, tensor.dtype)

    def calls(self, calls: Sequence[Call], model: str) -> None:
        for call in calls:
            try:
                self.written[id(call.output)] = self.call(call)
            except IrTypeError as error:
                raise DlcError(f"{model}: node '{call.onnx_node or call.value}' ({call.onnx_op}): {error}") from error

    def call(self, call: Call) -> Any:
        origin = Origin(call.onnx_op, call.onnx_node, call.value)
        operands = [self.expression(t) for t in call.inputs]
        name = call.value or call.op.rsplit(".", 1)[-1]
        if call.op == ITEM:
            return self.builder.item(operands[0], call.attrs["index"], origin, name)
        if OPS[call.op].kind == "host":
            blocks = [self.names[id(block)] for block in call.blocks]
            return self.builder.host(call.op, blocks, operands, call.attrs, origin, name)
        return self._bounded(self.builder.emit(call.op, operands, call.attrs, origin), call.output.shape, origin)

    def _bounded(self, made: Any, wanted: Sequence[Any], origin: Origin) -> Any:
        """A result with the extents that it has within the bounds of the symbols, of which Relax knows nothing."""
        if not self.bounds:
            return made
        analyzer = Analyzer()
        apart = [(a, b) for a, b in zip(shape_of(made), wanted, strict=True) if not (isinstance(a, int) and a == b)]
        if all(analyzer.can_prove_equal(a, b) for a, b in apart):
            return made
        return self.builder.emit("relax.reshape", [made], {"shape": tuple(wanted)}, origin)


def write(
    model: str, inputs: Sequence[Tensor], calls: Sequence[Call], outputs: Sequence[Tensor], names: Sequence[str],
    demands: Demands, cuts: Mapping[str, Sequence[int]],
) -> Any:  # fmt: skip
    """The module with function ``main``.

    Its attributes ``dlc.inputs`` and ``dlc.outputs`` are the ONNX names, ``dlc.limits``,
    ``dlc.least`` and ``dlc.equal`` what has to hold of the symbols' sizes, ``dlc.cuts`` by symbol from which sizes on a
    comparison that was not decided has another answer.
    """
    needed = _needed(calls, outputs)
    functions: dict[str, Any] = {}
    block_names: dict[int, str] = {}
    bounds = bool(demands.limits or demands.least)
    _blocks(needed, model, functions, block_names, bounds)
    writer = _Writer("main", functions, block_names, bounds)
    writer.inputs(inputs)
    writer.calls(needed, model)
    bound = [writer.expression(t) for t in outputs]
    attrs: dict[str, Any] = {"inputs": [t.name for t in inputs], "outputs": list(names)}
    more = {**demands.as_json(), "cuts": cuts}
    return writer.builder.finish(bound, attrs | {key: found for key, found in more.items() if found})
