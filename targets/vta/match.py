"""From the graph to layers: what the accelerator can take, and why it cannot take the rest.

Works on the IR behind the quantise passes: uint8 activations, channels first, int32 sums, `dlc.requantize`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import numpy as np

from dlc.ir.graph import Graph, Node
from dlc.ir.ops import OPS
from dlc.ir.ops.shapes import same
from dlc.targets.vta.layers import Layer, Requantise, Shape

ANCHORS = ("dlc.conv", "dlc.matmul", "dlc.pool", "relax.sum")


class DeclinedError(Exception):
    """Why the accelerator does not take a node."""


@dataclass
class Match:
    """A layer and the nodes (by output name) that it computes; `anchor` is the one that reports name."""

    layer: Layer
    nodes: set[str]
    anchor: Node


@dataclass
class _Sum:
    """An int32 sum on its way to a requantisation, as a convolution without its epilogue."""

    layer: Layer
    nodes: set[str] = field(default_factory=set)


def extents(shape: Sequence[Any]) -> Shape:
    """Channels, height and width of one image; a matrix has height and width 1."""
    inner = tuple(shape[1:])
    if len(inner) not in (1, 3):
        raise DeclinedError(f"a tensor of {len(shape)} dimensions; (N, C) and (N, C, H, W) are taken")
    if not all(isinstance(d, int) for d in inner):
        raise DeclinedError(f"the extents {[str(d) for d in inner]} are not known when compiling")
    if not all(inner):
        raise DeclinedError("an empty tensor")
    return inner if len(inner) == 3 else (inner[0], 1, 1)


class Matcher:
    """Reads layers out of one graph."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.producers, self.values = graph.producers(), graph.values()

    def node(self, name: str, op: str) -> Node | None:
        """The node of that operator that makes `name`."""
        node = self.producers.get(name)
        return node if node is not None and node.op == op else None

    def constant(self, name: str) -> np.ndarray | None:
        """A constant's array."""
        return self.graph.constants.get(name)

    # --- sums ---

    def sum(self, name: str) -> _Sum | None:
        """The int32 sum that `name` is; None where it is none; raises `DeclinedError` where it has no form here."""
        node = self.producers.get(name)
        if node is None or node.output.dtype != "int32":
            return None
        if node.op == "relax.add":
            return self._biased(node)
        make = {
            "dlc.conv": self._conv, "dlc.matmul": self._dense, "dlc.pool": self._window_sum, "relax.sum": self._mean,
        }.get(node.op)  # fmt: skip
        return make(node) if make is not None else None

    def _biased(self, node: Node) -> _Sum | None:
        for name, other in (node.inputs, node.inputs[::-1]):
            constant = self.constant(other)
            if constant is None:
                continue
            below = self.sum(name)
            if below is None:
                return None
            bias = below.layer.bias + self.channel_vector(constant, node)
            below.layer = replace(below.layer, bias=bias.astype(np.int32), output=node.output.name)
            below.nodes.add(node.output.name)
            return below
        return None

    def channel_vector(self, constant: np.ndarray, node: Node) -> np.ndarray:
        """A constant that varies along the channels alone, as a vector."""
        channels, rank = extents(node.output.shape)[0], len(node.output.shape)
        shape = (1,) * (rank - constant.ndim) + constant.shape
        if any(d != 1 for axis, d in enumerate(shape) if axis != 1):
            raise DeclinedError(f"a constant of shape {list(constant.shape)} varies along more than the channels")
        return np.broadcast_to(constant.reshape(-1), (channels,))

    def _conv(self, node: Node) -> _Sum:
        weight, attrs = self.constant(node.inputs[1]), node.attrs
        if weight is None or weight.dtype != np.int8:
            raise DeclinedError("its weight is not a constant of int8")
        if weight.ndim != 4:
            raise DeclinedError(f"a convolution over {weight.ndim - 2} dimensions; 2 are taken")
        return self._sum(
            node, node.inputs[0], self.values[node.inputs[0]].shape, weight, attrs.get("x_zero_point", 0),
            strides=tuple(attrs["strides"]), pads=tuple(attrs["pads"]), dilations=tuple(attrs["dilations"]),
            groups=attrs["groups"],
        )  # fmt: skip

    def _sum(self, node: Node, x: str, x_shape: Sequence[Any], weight: np.ndarray, zero: int, **attrs: Any) -> _Sum:
        if self.values[x].dtype != "uint8":
            raise DeclinedError(f"its input is {self.values[x].dtype}, not uint8")
        shape, zeros = extents(node.output.shape), np.zeros(weight.shape[0], np.int32)
        macs = weight.size * prod(shape[1:])
        layer = Layer(
            "conv", x, node.output.name, extents(x_shape), shape, node.origin, weight.shape[2:], weight=weight,
            bias=zeros, x_zero=zero, macs=macs, **attrs,
        )  # fmt: skip
        return _Sum(layer, {node.output.name})

    def _dense(self, node: Node) -> _Sum:
        weight = self.constant(node.inputs[1])
        if weight is None or weight.dtype != np.int8 or weight.ndim != 2:
            raise DeclinedError("its weight is not a constant matrix of int8")
        x = node.inputs[0]
        if node.attrs.get("b_zero_point", 0):
            raise DeclinedError("its weight has a zero point that is not 0")
        if len(self.values[x].shape) != 2:
            raise DeclinedError(f"a matrix product over {len(self.values[x].shape)} dimensions; 2 are taken")
        source, shape = x, self.values[x].shape
        flat = self.node(x, "relax.reshape")
        below = self.values[flat.inputs[0]].shape if flat is not None else ()
        taken = {x} if len(below) == 4 and same(below[0], shape[0]) else set()
        if flat is not None and taken:
            source, shape = flat.inputs[0], below
        channels, height, width = extents(shape)
        kernel = np.ascontiguousarray(weight.T).reshape(-1, channels, height, width)
        found = self._sum(node, source, shape, kernel, node.attrs.get("a_zero_point", 0))
        found.nodes |= taken
        return found

    def _window_sum(self, node: Node) -> _Sum | None:
        attrs = node.attrs
        if attrs["mode"] != "sum":
            return None
        if len(attrs["kernel"]) != 2:
            raise DeclinedError(f"windows over {len(attrs['kernel'])} dimensions; 2 are taken")
        channels = extents(node.output.shape)[0]
        ones = np.ones((channels, 1, *attrs["kernel"]), np.int8)
        found = self._sum(
            node, node.inputs[0], self.values[node.inputs[0]].shape, ones, attrs.get("x_zero_point", 0),
            strides=tuple(attrs["strides"]), pads=tuple(attrs["pads"]), dilations=tuple(attrs["dilations"]),
            groups=channels,
        )  # fmt: skip
        found.layer = replace(found.layer, macs=0)
        return found

    def _mean(self, node: Node) -> _Sum | None:
        """A sum over height and width of centred codes; the model asks for no multiplications."""
        name, zero, nodes = node.inputs[0], 0, set[str]()
        centred = self.node(name, "relax.subtract")
        if centred is not None:
            constant = self.constant(centred.inputs[1])
            if constant is None or constant.size != 1:
                return None
            nodes.add(name)
            name, zero = centred.inputs[0], int(constant.reshape(()))
        wide = self.node(name, "relax.astype")
        if wide is None or self.values[wide.inputs[0]].dtype != "uint8":
            return None
        if tuple(axis % len(wide.output.shape) for axis in node.attrs["axes"]) != (2, 3) or not node.attrs["keepdims"]:
            raise DeclinedError("a sum over other axes than height and width, or one that drops them")
        channels, height, width = extents(wide.output.shape)
        ones = np.ones((channels, 1, height, width), np.int8)
        found = self._sum(node, wide.inputs[0], wide.output.shape, ones, zero, groups=channels)
        found.layer = replace(found.layer, macs=0)
        found.nodes |= {*nodes, name}
        return found

    # --- layers ---

    def layer(self, node: Node) -> Match | None:
        """The layer whose output `node` makes; None where it makes none; raises `DeclinedError`."""
        if node.op == "dlc.requantize":
            return self._requantized(node)
        if node.op == "dlc.pool" and node.attrs["mode"] == "max":
            return self._maximum(node)
        found = self.sum(node.output.name)
        return Match(found.layer, found.nodes, self._anchor(found.nodes, node)) if found is not None else None

    def _anchor(self, nodes: set[str], last: Node) -> Node:
        return next((self.producers[n] for n in sorted(nodes) if self.producers[n].op in ANCHORS), last)

    def _maximum(self, node: Node) -> Match:
        attrs, x = node.attrs, self.values[node.inputs[0]]
        if x.dtype != "uint8":
            raise DeclinedError(f"its input is {x.dtype}, not uint8")
        if len(attrs["kernel"]) != 2:
            raise DeclinedError(f"windows over {len(attrs['kernel'])} dimensions; 2 are taken")
        layer = Layer(
            "max", x.name, node.output.name, extents(x.shape), extents(node.output.shape), node.origin,
            tuple(attrs["kernel"]), tuple(attrs["strides"]), tuple(attrs["pads"]), tuple(attrs["dilations"]),
        )  # fmt: skip
        return Match(layer, {node.output.name}, node)

    def _requantized(self, node: Node) -> Match:
        attrs, count = node.attrs, node.attrs["terms"]
        if attrs["mode"] != "fixed":
            raise DeclinedError("the accelerator has no float arithmetic: compile with --arithmetic fixed or shift")
        if node.output.dtype != "uint8":
            raise DeclinedError(f"it is requantised to {node.output.dtype}, not uint8")
        if count > 2:
            raise DeclinedError(f"it adds {count} terms; the requantiser takes 2")
        sums = [self.sum(name) for name in node.inputs[:count]]
        zeros = attrs["term_zero_points"]
        # The sum first, whatever the order of the terms.
        order = [1, 0] if count == 2 and sums[0] is None and sums[1] is not None else list(range(count))
        first, second = order[0], order[1] if count == 2 else None
        taken = sums[first] or self._codes(node, node.inputs[first], zeros[first])
        if sums[first] is not None and zeros[first]:
            raise DeclinedError("a zero point is subtracted from a sum")
        nodes = {*taken.nodes, node.output.name}
        residual = node.inputs[second] if second is not None else ""
        if second is not None:
            self._check_residual(node, residual, sums[second])
        vectors = [self.channel_vector(self._operand(node, count + i), node) for i in order]
        requantise = Requantise(
            tuple(v.astype(np.int32) for v in vectors),
            self.channel_vector(self._operand(node, 2 * count), node).astype(np.int32),
            attrs["zero_point"], attrs["lo"], attrs["hi"], zeros[second] if second is not None else 0,
        )  # fmt: skip
        layer = replace(
            taken.layer, requantise=requantise, residual=residual, output=node.output.name, origin=node.origin
        )
        return Match(layer, nodes, self._anchor(nodes, node))

    def _operand(self, node: Node, position: int) -> np.ndarray:
        array = self.constant(node.inputs[position])
        if array is None:
            raise DeclinedError("a multiplier is not constant")
        return array

    def _check_residual(self, node: Node, name: str, found: _Sum | None) -> None:
        value = self.values[name]
        if found is not None:
            raise DeclinedError("it adds two sums that were not requantised before")
        if value.dtype != "uint8":
            raise DeclinedError(f"it adds a value of {value.dtype}")
        if self.constant(name) is not None or extents(value.shape) != extents(node.output.shape):
            raise DeclinedError("it adds a constant, or a value that is broadcast")

    def _codes(self, node: Node, name: str, zero: int) -> _Sum:
        """Codes as a sum of one: the identity of each channel."""
        value = self.values[name]
        if value.dtype != "uint8" or self.constant(name) is not None:
            raise DeclinedError(f"its term of {value.dtype} is not a sum that the array makes")
        if extents(value.shape) != extents(node.output.shape):
            raise DeclinedError("a term is broadcast")
        channels = extents(value.shape)[0]
        found = self._sum(node, name, value.shape, np.ones((channels, 1, 1, 1), np.int8), zero, groups=channels)
        found.layer = replace(found.layer, macs=0)
        return found


def is_work(node: Node) -> bool:
    """Whether a node is one whose place is worth a reason: what an accelerator might be expected to run."""
    return node.op in ANCHORS or OPS[node.op].kind in ("contraction", "window") or node.op == "dlc.requantize"
