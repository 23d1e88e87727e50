"""One operator for all iterations of a loop at once: a new axis in front of what differs between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

from dlc.ir.graph import Node, Value
from dlc.ir.ops import OPS

Emit = Callable[[str, Sequence[Any], Mapping[str, Any]], Any]


def _shifted(axes: Sequence[int], rank: int) -> tuple[int, ...]:
    return tuple(a % rank + 1 for a in axes)


def _attrs(node: Node, inputs: Sequence[Value], batched: Set[int]) -> dict[str, Any] | None:
    """The attributes of the batched operator; None where there is no rule."""
    attrs, rank = dict(node.attrs), len(inputs[0].shape)
    if node.op in ("relax.reshape", "relax.broadcast_to"):
        return {}
    if node.op == "relax.permute_dims":
        return {"axes": (0, *_shifted(attrs["axes"], rank))}
    if node.op == "relax.strided_slice" or (OPS[node.op].kind == "reduction" and "axes" in attrs):
        return {**attrs, "axes": _shifted(attrs["axes"], rank)}
    if node.op in ("relax.nn.softmax", "relax.nn.log_softmax", "relax.concat"):
        same = all(i in batched and len(v.shape) == rank for i, v in enumerate(inputs))
        return {**attrs, "axis": attrs["axis"] % rank + 1} if same else None
    if node.op == "relax.nn.pad":
        return {**attrs, "pad_width": (0, 0, *attrs["pad_width"])}
    if node.op == "dlc.matmul":
        # The weight is one for all iterations; a vector on the left would become a matrix, and is left alone.
        return attrs if batched == {0} and rank > 1 and len(inputs[1].shape) == 2 else None
    if node.op in ("dlc.quantize", "dlc.dequantize"):
        if batched != {0}:
            return None
        vector = any(len(v.shape) == 1 and v.shape[0] != 1 for v in inputs[1:])
        return {**attrs, "axis": attrs["axis"] % rank + 1} if vector else {**attrs, "axis": 0}
    if OPS[node.op].kind == "elementwise" and node.op.startswith("relax."):
        return attrs
    return None


def batch(
    node: Node, inputs: Sequence[Value], batched: Set[int], count: Any
) -> Callable[[Emit, Sequence[Any]], Any] | None:
    """How to write `node` for all iterations; None where there is no rule.

    Args:
        node: an operator of a loop's block.
        inputs: the types of its operands inside.
        batched: the positions of the operands that differ between iterations.
        count: the extent of the new axis.

    Returns:
        A function of (emit, operands outside, with the new axis in front where `batched`) that gives the result.
    """
    if not inputs or node.op not in OPS or OPS[node.op].kind == "host" or len(node.outputs) != 1:
        return None
    attrs = _attrs(node, inputs, batched)
    if attrs is None:
        return None
    shape = (count, *node.output.shape)
    if node.op in ("relax.reshape", "relax.broadcast_to"):
        attrs = {"shape": shape}
    lift = OPS[node.op].kind == "elementwise" or node.op == "relax.broadcast_to"

    def write(emit: Emit, operands: Sequence[Any]) -> Any:
        lifted = list(operands)
        for i in batched if lift else ():
            missing = len(node.output.shape) - len(inputs[i].shape)
            if missing:
                full = (count, *(1,) * missing, *inputs[i].shape)
                lifted[i] = emit("relax.reshape", [lifted[i]], {"shape": full})
        return emit(node.op, lifted, attrs)

    return write
