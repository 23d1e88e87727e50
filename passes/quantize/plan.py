"""Which values get an integer form: the decisions of the mark pass, without touching the IR.

Each value has a *kind*:

- ``accumulator``: a convolution or matrix product with a constant weight, or a multiplication by one constant a channel
  (a batch normalisation that no weight could take), with or without its bias;
- ``sum``: a sum of two activations (one may be an accumulator), a product of two, an average;
- ``clipped``: one of those under relu, maximum or minimum with scalars;
- ``codes``: data movement and maximum pooling, which work on the codes and keep the parameters; concatenation;
- ``unary``: an elementwise expression of one single value, its *leaf*: a table of 256 entries;
- ``float``: everything else.

A value is *wanted* where a chain of integer operators leads from it to a contraction, *available* where one leads to
it, and integer where both hold (a contraction always is). Of the integer values those are *marked* that some reader
needs as codes. An accumulator that is read by its bias, its clip or one residual addition alone needs none: one
requantisation of the sum is more accurate and faster than two.

Inside control flow only contractions are integer. A loop works on few elements at a time, so sums and functions cost
little in float, and what they round would be rounded again in every iteration and every layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Set

import numpy as np

from dlc.ir.graph import Graph, Node
from dlc.ir.ops import OPS
from dlc.ir.ops.shapes import same
from dlc.ir.rewrite import Rewriter
from dlc.passes.simplify.match import along_channels, constant_operand, same_shape

CONTRACTIONS = ("dlc.conv", "dlc.matmul")
MOVEMENTS = ("relax.reshape", "relax.permute_dims", "relax.strided_slice", "relax.broadcast_to", "relax.nn.pad")
CLIPS = ("relax.maximum", "relax.minimum")
#: Operators worth a line in the explanation where they stay float; plain elementwise neighbours of theirs are not.
REPORTED = ("relax.nn.softmax", "relax.nn.log_softmax", "relax.nn.layer_norm")


def reason_against(state: Rewriter, node: Node) -> str | None:
    """Why a contraction cannot be an integer one, or None where it can."""
    weight = state.constant(node.inputs[1])
    if weight is None:
        left = state.constant(node.inputs[0]) is not None
        return "the constant is the left operand" if left else "both operands are activations"
    if state.constant(node.inputs[0]) is not None:
        return "both operands are constant"
    if weight.dtype != np.float32 or node.output.dtype != "float32":
        return f"the weight is {weight.dtype}, the result {node.output.dtype}: only float32 is quantised"
    if not np.all(np.isfinite(weight)):
        return "the weight holds NaN or infinity"
    if node.op == "dlc.matmul" and (weight.ndim != 2 or len(node.output.shape) < 2):
        return f"a matrix product with a weight of {weight.ndim} dimensions has no integer kernel"
    return None


def channel_scale(state: Rewriter, node: Node) -> tuple[str, str, int] | None:
    """A multiplication by a constant along one axis: the activation, the constant, and that axis of the constant."""
    found = constant_operand(state, node) if node.op == "relax.multiply" else None
    if found is None or found[1].dtype != np.float32 or not np.all(np.isfinite(found[1])):
        return None
    axes = [axis for axis, extent in enumerate(found[1].shape) if extent != 1]
    if len(axes) != 1 or not same_shape(state.value(found[0]).shape, node.output.shape):
        return None
    constant = node.inputs[1] if node.inputs[0] == found[0] else node.inputs[0]
    return found[0], constant, axes[0]


def is_clip(state: Rewriter, node: Node) -> bool:
    """Whether the node is relu, or maximum or minimum with a scalar."""
    if node.op == "relax.nn.relu":
        return True
    found = constant_operand(state, node) if node.op in CLIPS else None
    return found is not None and found[1].size == 1


def is_spatial_mean(state: Rewriter, node: Node) -> bool:
    """Whether the node is a mean over some or all axes behind batch and channels, of known extents."""
    if node.op != "relax.mean":
        return False
    shape = state.value(node.inputs[0]).shape
    return len(shape) > 2 and all(axis >= 2 and isinstance(shape[axis], int) for axis in node.attrs["axes"])


def is_movement(node: Node) -> bool:
    """Whether the node only moves elements, or takes the maximum of a window: parameters stay the same."""
    if node.op == "relax.nn.pad":
        return node.attrs["mode"] != "constant" or node.attrs["value"] == 0
    return node.op in MOVEMENTS or (node.op == "dlc.pool" and node.attrs["mode"] == "max")


class Plan:
    """The decisions for one function.

    Attributes:
        kind, leaf: of every value, see the module.
        integer: the values with an integer form.
        marks: the values that are quantised and dequantised.
        accumulator: for each sum of two values, the operand that stays an accumulator.
    """

    def __init__(self, state: Rewriter, ranged: Set[str], contractions_only: bool = False) -> None:
        self.state, self.graph, self.ranged = state, state.graph, ranged
        self.contractions_only = contractions_only
        self.order = {node.output.name: i for i, node in enumerate(self.graph.nodes)}
        self.refused: dict[str, str] = {}
        for node in self.graph.nodes:
            reason = reason_against(state, node) if node.op in CONTRACTIONS else None
            if reason is None and node.op in CONTRACTIONS and node.inputs[0] not in ranged:
                reason = "calibration saw no finite range of its input"
            if reason is not None:
                self.refused[node.output.name] = reason
        boundaries: set[str] = set()
        while True:
            self._classify(boundaries)
            self._decide()
            if self.marks <= boundaries:
                break
            boundaries |= self.marks

    # --- kinds -------------------------------------------------------------------------------------------------------

    def operands(self, node: Node) -> list[str]:
        """The inputs that are not constant, each once."""
        return [name for name in dict.fromkeys(node.inputs) if name not in self.graph.constants]

    def anchor(self, node: Node) -> bool:
        """Whether the node is a contraction that becomes an integer one."""
        return node.op in CONTRACTIONS and node.output.name not in self.refused

    def _open(self, name: str, boundaries: Set[str]) -> bool:
        return name not in boundaries and self.state.only_consumer(name) is not None

    def _classify(self, boundaries: Set[str]) -> None:
        self.kind = {value.name: "float" for value in self.graph.inputs}
        self.leaf = {value.name: value.name for value in self.graph.inputs}
        self.accumulator: dict[str, str] = {}
        for node in self.graph.nodes:
            name = node.output.name
            self.kind[name] = self._kind(node, boundaries)
            leaves = [self.leaf[o] for o in self.operands(node)]
            interior = self.kind[name] == "unary" and name not in boundaries
            self.leaf[name] = leaves[0] if interior else name

    def _kind(self, node: Node, boundaries: Set[str]) -> str:
        operands = self.operands(node)
        if self.anchor(node):
            return "accumulator"
        if node.op in CONTRACTIONS or not operands or len(node.outputs) != 1:
            return "float"
        first = operands[0]
        if len(operands) == 1 and self._open(first, boundaries):
            if node.op == "relax.add" and self.kind[first] == "accumulator" and self._is_bias(node, first):
                return "accumulator"
            if (
                not self.contractions_only
                and is_clip(self.state, node)
                and self.kind[first] in ("accumulator", "sum", "clipped")
            ):
                return "clipped"
        if node.op == "relax.astype" or node.op == "call" or (self.contractions_only and not is_movement(node)):
            return "float"
        if OPS[node.op].kind == "elementwise" and self._is_unary(node, operands):
            return "unary"
        if node.output.dtype != "float32" or node.output.name not in self.ranged:
            return "float"
        return self._several(node, operands, boundaries)

    def _is_bias(self, node: Node, name: str) -> bool:
        return same_shape(self.state.value(name).shape, node.output.shape)

    def _is_unary(self, node: Node, operands: list[str]) -> bool:
        constants = [self.graph.constants[name] for name in node.inputs if name in self.graph.constants]
        shape = self.state.value(operands[0]).shape
        return (
            all(array.size == 1 for array in constants)
            and len({self.leaf[name] for name in operands}) == 1
            and same_shape(shape, node.output.shape)
            and node.op.startswith("relax.")
        )

    def _several(self, node: Node, operands: list[str], boundaries: Set[str]) -> str:
        """The kind of a node of several activations, a movement or an average."""
        if is_movement(node):
            return "codes"
        if node.op == "relax.concat":
            return "codes" if len(operands) == len(set(node.inputs)) else "float"
        if node.op == "dlc.pool" or is_spatial_mean(self.state, node):
            return "sum"
        if channel_scale(self.state, node) is not None:
            return "accumulator"
        if len(operands) != 2 or len(node.inputs) != 2:
            return "float"
        shapes = [self.state.value(name).shape for name in operands]
        if node.op in ("relax.add", "relax.subtract") and same_shape(*shapes):
            ready = [o for o in operands if self.kind[o] == "accumulator" and self._open(o, boundaries)]
            if ready:
                # The later one: its kernel can add the earlier one's codes as it stores.
                self.accumulator[node.output.name] = max(ready, key=lambda o: self.order[o])
            return "sum"
        return "sum" if node.op == "relax.multiply" else "float"

    # --- decisions ---------------------------------------------------------------------------------------------------

    def _decide(self) -> None:
        readers = self.state.consumers
        activations = {node.inputs[0] for node in self.graph.nodes if self.anchor(node)}
        available = {value.name: value.name in activations for value in self.graph.inputs}
        for node in self.graph.nodes:
            name = node.output.name
            if self.kind[name] == "accumulator" and self.anchor(node):
                available[name] = True
            elif self.kind[name] == "float":
                available[name] = name in activations
            elif self.kind[name] == "unary":
                available[name] = available[self.leaf[self.operands(node)[0]]]
            else:
                available[name] = all(available[o] for o in self.operands(node))
        wanted: dict[str, bool] = {}
        for node in reversed(self.graph.nodes):
            name = node.output.name
            wanted[name] = name in activations or any(
                not self.anchor(c) and self.kind[c.output.name] != "float" and available[c.output.name]
                and wanted[c.output.name] for c in readers[name]
            )  # fmt: skip
        self.available, self.wanted = available, wanted
        self.integer = {
            node.output.name
            for node in self.graph.nodes
            if self.kind[node.output.name] != "float"
            and available[node.output.name]
            and (wanted[node.output.name] or self.anchor(node))
        }
        self.marks = {
            name
            for name in [*(v.name for v in self.graph.inputs), *self.order]
            if name in self.ranged and any(self.requires(reader, name) for reader in readers[name])
        }

    def requires(self, reader: Node, name: str) -> bool:
        """Whether the node needs the value as codes."""
        result = reader.output.name
        if result not in self.integer or (not self.anchor(reader) and not self.wanted[result]):
            return False
        if self.anchor(reader):
            return reader.inputs[0] == name
        if self.kind[result] in ("accumulator", "clipped"):
            return reader.op == "relax.multiply"
        if self.kind[result] == "unary":
            return self.leaf[name] == name
        return self.accumulator.get(result) != name


def shared_parameters(plan: Plan, graph: Graph) -> dict[str, str]:
    """For each marked value whose parameters are another's: that other value.

    Movements take their input's. An input of a concatenation that nothing else reads takes the concatenation's, so that
    joining is a copy; the others are requantised there.
    """
    found: dict[str, str] = {}
    for node in reversed(graph.nodes):
        if node.op != "relax.concat" or node.output.name not in plan.marks:
            continue
        for name in dict.fromkeys(node.inputs):
            moved = name in plan.marks and plan.kind[name] == "codes" and graph.producers()[name].op != "relax.concat"
            if name in plan.marks and name in plan.integer and not moved and len(plan.state.consumers[name]) == 1:
                found[name] = found.get(node.output.name, node.output.name)
    for node in graph.nodes:
        name = node.output.name
        if name in plan.marks and plan.kind[name] == "codes" and node.op != "relax.concat":
            source = node.inputs[0]
            if source in plan.marks and name in plan.integer:
                found[name] = found.get(source, source)
    return found


def bias_of(plan: Plan, anchor: Node, axis: int) -> np.ndarray | None:
    """The magnitude of the bias that follows a node, one number for each index of `axis`; None without one."""
    reader = plan.state.only_consumer(anchor.output.name)
    found = constant_operand(plan.state, reader) if reader is not None and reader.op == "relax.add" else None
    if found is None:
        return None
    vector = along_channels(found[1], len(anchor.output.shape), axis)
    if vector is None:
        return None
    channels = anchor.output.shape[axis]
    if not same(channels, vector.size) and vector.size != 1:
        return None
    return np.abs(np.broadcast_to(vector, (channels,)))


def origins(graph: Graph) -> Mapping[str, str]:
    """The ONNX name of every value that has one."""
    given = graph.attrs.get("dlc.inputs") or [value.name for value in graph.inputs]
    names = {value.name: name for value, name in zip(graph.inputs, given, strict=True)}
    return names | {node.output.name: node.origin.value for node in graph.nodes if node.origin.value}
