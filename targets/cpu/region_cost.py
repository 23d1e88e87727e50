"""The predicted time of what is not a multiply-add: elementwise operators, windows, reductions, movement of data.

Instructions are counted an operator, bytes a value; what is slower counts, and a part of the other. No tables of sizes,
no measuring.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import prod

import tvm

from dlc.hardware import Machine
from dlc.ir.graph import Graph, Node, Value
from dlc.ir.ops import OPS
from dlc.targets.cpu.isa import Isa
from dlc.targets.cpu.kernels import contract_cost
from dlc.targets.cpu.kernels.contract_cost import GUESS, Core, core_of, level_of, seconds, together
from dlc.targets.layout import Expr, Layout

# Vector instructions of an operator; one where nothing is said. A division occupies the multipliers as ten others do.
_DIVIDE = 20.0
_SATURATE = 6.0  # two bounds, a conversion, a zero point, a narrowing of two
_INSTRUCTIONS = {
    "relax.divide": _DIVIDE,
    "relax.sqrt": _DIVIDE,
    "relax.rsqrt": 1.5 * _DIVIDE,
    "relax.power": 60.0,
    "relax.exp": 16.0,
    "relax.log": 24.0,
    "relax.erf": 80.0,
    "relax.tanh": 40.0,
    "relax.sigmoid": 16.0 + _DIVIDE,
    "relax.nn.softmax": 30.0,
    "relax.nn.layer_norm": 24.0,
    "dlc.quantize": _DIVIDE + _SATURATE,
    "dlc.dequantize": 3.0,
}
_LOOKUP = 4.0  # cycles an element that leaves its vector, is looked up in a table and comes back
_REGISTER_LOOKUP = 0.25  # of one that does not leave it (`kernels/lookup.py`)
_MOVED = 1.5  # cycles an element that is moved by itself: one store a cycle, and its address
_OPERAND = 2.0  # instructions to load and widen a vector of an operand, or to narrow and store one of the result
_CALL = 150.0  # cycles to enter a kernel and to find its operands


def _extent(extent: Expr) -> int:
    return extent if isinstance(extent, int) else GUESS


def _count(shape: Iterable[Expr]) -> int:
    return prod(_extent(d) for d in shape)


def _bits(dtype: str) -> int:
    return max(8, tvm.DataType(dtype).bits)


def _instructions(node: Node) -> float:
    if node.op == "dlc.requantize":  # widened or converted, multiplied and added
        return 3.0 * node.attrs["terms"] - 1.0 + _SATURATE
    return _INSTRUCTIONS.get(node.op, 1.0)


def pointwise_cycles(
    nodes: Iterable[Node], values: Mapping[str, Value], isa: Isa, core: Core, by_rows: bool = False
) -> float:
    """Cycles of elementwise operators whose operands are in registers; `by_rows` where each row ends with a vector."""
    total, lookup = 0.0, _REGISTER_LOOKUP if isa.vector_bits == 512 else _LOOKUP
    for node in nodes:
        lanes = isa.lanes(max(_bits(values[name].dtype) for name in (*node.inputs, node.output.name)))
        *rows, last = (_extent(d) for d in node.output.shape or (1,))
        vectors = prod(rows) * -(-last // lanes) if by_rows else prod(rows) * last / lanes
        total += vectors * (lanes * lookup if node.op == "dlc.table" else _instructions(node) / core.vectors)
    return total


def bytes_of(value: Value, layout: Layout | None = None) -> int:
    """What a value takes in memory, with the halo of its layout."""
    extents = value.shape if layout is None else [
        _extent(d) + sum(_extent(h) for h in halo) for d, halo in zip(layout.shape, layout.halo, strict=True)
    ]  # fmt: skip
    return _count(extents) * _bits(value.dtype) // 8


def written_cycles(size: float, resident: float, core: Core, machine: Machine) -> float:
    """Cycles to write `size` bytes where `resident` bytes are in use.

    Lines are read before they are written, and written back: caches do both at a time, memory one after the other.
    """
    level = level_of(resident, machine)
    return 0.0 if level == 0 else (2 if level == 3 else 1) * size / core.bandwidth[level]


def _last_moves(node: Node, values: Mapping[str, Value]) -> bool:
    """Whether neighbours in the output are no neighbours in the input."""
    rank = len(node.output.shape)
    axes = [int(a) % rank for a in node.attrs["axes"]] if node.attrs.get("axes") else list(range(rank))[::-1]
    moved = [a for a in axes if _extent(values[node.inputs[0]].shape[a]) != 1]
    return bool(moved) and moved != sorted(moved) and moved[-1] != max(moved)


def _node_cycles(body: Graph, values: Mapping[str, Value], isa: Isa, core: Core) -> float:
    """Cycles of all operators of a region without multiply-adds."""
    total = 0.0
    for node in body.nodes:
        spec = OPS.get(node.op)
        if node.op == "relax.permute_dims" and _last_moves(node, values):
            total += _MOVED * _count(node.output.shape)
        elif node.op == "dlc.pool":
            lanes = isa.lanes(_bits(node.output.dtype))
            vectors = _count(node.output.shape[:-1]) * -(-_extent(node.output.shape[-1]) // lanes)
            taps = vectors * prod(node.attrs["kernel"])
            total += taps / min(core.loads, core.vectors) + contract_cost.STORE_COST * vectors
        elif spec is not None and spec.kind == "reduction" and node.op not in _INSTRUCTIONS:
            source = values[node.inputs[0]]
            total += _count(source.shape) / isa.lanes(max(32, _bits(source.dtype))) / core.vectors
        else:
            total += pointwise_cycles([node], values, isa, core)
    if all(OPS[node.op].kind == "elementwise" for node in body.nodes):
        total += _operand_cycles(body, values, isa, core)
    return total


def _operand_cycles(body: Graph, values: Mapping[str, Value], isa: Isa, core: Core) -> float:
    """Cycles to bring the operands of an elementwise chain into vectors, and its results out of them."""
    shapes = [v.shape for v in body.inputs] + [values[name].shape for name in body.outputs]
    return _OPERAND * sum(_count(shape) for shape in shapes) / isa.lanes() / core.vectors


def predicted_seconds(body: Graph, layouts: Mapping[str, Layout], isa: Isa, machine: Machine) -> float:
    """The time of a region without multiply-adds, symbolic extents guessed."""
    core, values = core_of(isa, machine), body.values()
    read = sum(bytes_of(v, layouts.get(v.name)) for v in body.inputs)
    written = sum(bytes_of(values[name], layouts.get(name)) for name in body.outputs)
    level = level_of(read + written, machine)
    traffic = written_cycles(written, read + written, core, machine)
    traffic += 0.0 if level == 0 else read / core.bandwidth[level]
    return seconds(_CALL + together(_node_cycles(body, values, isa, core), traffic), machine)


def epilogue_seconds(
    body: Graph, layouts: Mapping[str, Layout], begin: Iterable[str], operands: Iterable[str], isa: Isa,
    machine: Machine,
) -> float:  # fmt: skip
    """The time of what follows a contraction, beside the store of its sums that its schedule counts.

    Args:
        begin: values that the contraction makes, or that are computed elsewhere.
        operands: the body's inputs that the contraction itself reads.
    """
    core, values, done, own = core_of(isa, machine), body.values(), set(begin), set(operands)
    nodes = [node for node in body.nodes if node.output.name not in done]
    out = values[body.outputs[0]]
    written = bytes_of(out, layouts.get(out.name))
    read = sum(bytes_of(v) for v in body.inputs if v.name not in own)
    resident = written + sum(bytes_of(v, layouts.get(v.name)) for v in body.inputs)
    level = level_of(resident, machine)
    traffic = written_cycles(written, resident, core, machine) + (0.0 if level == 0 else read / core.bandwidth[level])
    return seconds(_CALL + together(pointwise_cycles(nodes, values, isa, core, by_rows=True), traffic), machine)
