"""Small questions that the simplify and quantise passes ask about a node."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from dlc.ir.graph import Node, Origin
from dlc.ir.ops.shapes import same
from dlc.ir.rewrite import Rewriter


def same_shape(a: Sequence[Any], b: Sequence[Any]) -> bool:
    """Whether two shapes are known to be equal."""
    return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))


def keeps_type(state: Rewriter, node: Node, name: str) -> bool:
    """Whether the operand `name` already has the shape and dtype of the node's output."""
    value = state.value(name)
    return value.dtype == node.output.dtype and same_shape(value.shape, node.output.shape)


def constant_operand(state: Rewriter, node: Node) -> tuple[str, np.ndarray] | None:
    """The operands of a binary node as (the other one's name, the constant); None without exactly one constant."""
    left, right = node.inputs
    a, b = state.constant(left), state.constant(right)
    if a is None and b is not None:
        return left, b
    if a is not None and b is None:
        return right, a
    return None


def filled_with(array: np.ndarray | None, number: float) -> bool:
    """Whether a constant holds `number` everywhere (and has elements)."""
    return array is not None and array.size > 0 and bool(np.all(array == number))


def along_channels(constant: np.ndarray, rank: int, axis: int) -> np.ndarray | None:
    """A constant that varies along `axis` of a tensor of `rank` alone, as a vector (of 1 where it is a scalar).

    None where it varies along another axis, or has a higher rank than the tensor and would enlarge it.
    """
    if constant.ndim > rank:
        return None
    shape = (1,) * (rank - constant.ndim) + constant.shape
    if any(extent != 1 for i, extent in enumerate(shape) if i != axis % rank):
        return None
    return constant.reshape(-1)


def unnamed(origin: Origin) -> Origin:
    """The origin of an intermediate result that no ONNX value equals any more; the node's label stays readable."""
    return replace(origin, node=origin.node or origin.value, value="")


def inner(state: Rewriter, name: str, op: str) -> Node | None:
    """The node of operator `op` that makes `name`, where nothing else reads `name`."""
    node = state.producer(name, op)
    return node if node is not None and state.only_consumer(name) is not None else None
