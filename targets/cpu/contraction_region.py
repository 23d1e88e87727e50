"""A region whose anchor is a convolution or a matmul: what is computed, what is packed, how the epilogue is addressed.

`ContractionRegion` reads the region once; the schedule pass asks it for a choice, the lowering for a kernel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np

from dlc.hardware import Machine
from dlc.ir.dims import symbols
from dlc.ir.graph import Graph, Node, Value
from dlc.passes.partition.attention import SOFTMAX
from dlc.targets.cpu import attention_region, block_region, grouped_region, region_cost
from dlc.targets.cpu.isa import Isa
from dlc.targets.cpu.kernels import contract, depthwise
from dlc.targets.cpu.kernels.builder import Expr, kernel
from dlc.targets.cpu.kernels.contract import Contraction
from dlc.targets.cpu.kernels.contract_cost import GUESS
from dlc.targets.cpu.kernels.depthwise import Depthwise
from dlc.targets.cpu.kernels.evaluate import Evaluator
from dlc.targets.cpu.kernels.halo import fill_halo
from dlc.targets.layout import Layout, simplify

Constants = Mapping[str, np.ndarray]

#: Products of rows that have regions of their own: (their class, what has something against it).
_OF_ROWS: dict[str, tuple[Any, Any]] = {
    grouped_region.ANCHOR: (grouped_region.GroupedRegion, grouped_region.declines),
    block_region.ANCHOR: (block_region.BlockRegion, block_region.declines),
}
_SHARED_MICROSECONDS = 10.0  # predicted time from which on a kernel is shared out


def anchor_of(body: Graph) -> Node:
    """The contraction of a region."""
    return next(n for n in body.nodes if n.op in ("dlc.conv", "dlc.matmul", *_OF_ROWS))


def packed_region(body: Graph, layouts: Mapping[str, Layout], constants: Constants, isa: Isa) -> Any:
    """The region as the packed kernels see it; only where `declines` has nothing against it."""
    if any(n.op == SOFTMAX for n in body.nodes):
        return attention_region.AttentionRegion(body, layouts, constants, isa)
    kind = _OF_ROWS.get(anchor_of(body).op, (ContractionRegion, None))[0]
    return kind(body, layouts, constants, isa)


def unfit_for_pairs(node: Node, weight: np.ndarray | None) -> str | None:
    """Why a product cannot multiply pairs of bfloat16; None when it can. `weight` is None where it is no constant."""
    if weight is None:
        return "both operands are activations"
    if node.op == "dlc.conv" and node.attrs["groups"] == weight.shape[0] and weight.shape[1] == 1:
        return "a depthwise convolution has no channels to make pairs of"
    if node.op == "dlc.matmul" and weight.ndim > 2:
        return "the weight is a batch of matrices, which are not packed"
    return None


def declines(body: Graph, constants: Constants, isa: Isa) -> str | None:
    """Why the packed kernels do not take the region (plain loops do, see `kernels/contract_plain.py`); else None."""
    node = anchor_of(body)
    if node.op in _OF_ROWS:
        reason: str | None = _OF_ROWS[node.op][1](body, constants)
        return reason
    values = body.values()
    if node.inputs[1] in constants and not isinstance(values[node.inputs[0]].shape[-1], int):
        return f"a constant weight, and an inner extent {values[node.inputs[0]].shape[-1]} known only when running"
    a, w = (values[name].dtype for name in node.inputs)
    if (a, w) == ("uint8", "int8"):
        if node.inputs[1] not in constants:
            return "integer contraction of two activations"
        return "a zero point of the weight" if node.attrs.get("b_zero_point", 0) else None
    if (a, w) == ("bfloat16", "bfloat16"):
        reason = None if isa.bfloat16 else f"{isa.name} does not multiply bfloat16 by bfloat16"
        return reason or unfit_for_pairs(node, constants.get(node.inputs[1]))
    if (a, w) not in (("float32", "float32"), ("float32", "bfloat16")):
        return f"no packed kernel multiplies {a} by {w}"
    if node.op == "dlc.conv" and node.inputs[1] not in constants:
        return "the weight of a convolution is not a constant"
    return None


class ContractionRegion:
    """One convolution or matmul with its epilogue.

    Args:
        body: the region.
        layouts: layouts of the body's inputs and output, by the body's names.
        constants: the body's inputs that are constants.
    """

    def __init__(self, body: Graph, layouts: Mapping[str, Layout], constants: Constants, isa: Isa) -> None:
        self.body, self.layouts, self.constants, self.isa = body, dict(layouts), constants, isa
        self.anchor = anchor_of(body)
        self.values = body.values()
        self.a, self.w = self.anchor.inputs
        self.acc = self.anchor.output
        self.start, self.init = self._start_value()
        depthwise = self._is_depthwise()
        self.flat = not depthwise and self._flatten()
        self.problem: Contraction | Depthwise = self._depthwise() if depthwise else self._contraction()

    # --- start value of the accumulators ---

    def _zero_point(self) -> int:
        key = "x_zero_point" if self.anchor.op == "dlc.conv" else "a_zero_point"
        return int(self.anchor.attrs.get(key, 0))

    def _channels(self) -> int:
        return int(self.acc.shape[-1])

    def _per_channel(self, name: str) -> np.ndarray | None:
        """A constant that adds one number a channel, as a vector of all channels."""
        array = self.constants.get(name, self.body.constants.get(name))
        if array is None or array.ndim > len(self.acc.shape):
            return None
        if array.size != (array.shape[-1] if array.ndim else 1) or array.size not in (1, self._channels()):
            return None
        return np.broadcast_to(array.reshape(-1), (self._channels(),))

    def _start_value(self) -> tuple[str, np.ndarray | None]:
        """(value that the accumulators hold in the end, their start value): a bias is where the sum begins."""
        name, bias = self.acc.name, None
        readers = [n for n in self.body.nodes if name in n.inputs]
        if len(readers) == 1 and readers[0].op == "relax.add" and isinstance(self.acc.shape[-1], int):
            other = [i for i in readers[0].inputs if i != name]
            bias = self._per_channel(other[0]) if len(other) == 1 else None
            name = readers[0].output.name if bias is not None else name
        zero = self._zero_point()
        if zero:
            weight = self.constants[self.w].astype(np.int64)
            axes = tuple(range(1, weight.ndim)) if self.anchor.op == "dlc.conv" else (-2,)
            sums = weight.sum(axis=axes).reshape(-1)
            bias = (0 if bias is None else bias.astype(np.int64)) - zero * sums
            bias = bias.astype(np.int32)
        return name, None if bias is None else np.ascontiguousarray(bias, dtype=self.acc.dtype)

    # --- addressing ---

    def _epilogue_operands(self) -> list[str]:
        """Region inputs that the epilogue reads, in the region's order."""
        used = {n for node in self._epilogue() for n in node.inputs}
        return [v.name for v in self.body.inputs if v.name in used]

    def _epilogue(self) -> list[Node]:
        """The nodes behind the accumulators' final value."""
        order = [n.output.name for n in self.body.nodes]
        return list(self.body.nodes[order.index(self.start) + 1 :])

    def _flatten(self) -> bool:
        """Whether the output can be addressed as (rows, channels): all operands dense, or one number a channel."""
        full = self.acc.shape
        if len(full) < 2:
            return False
        for name in [*self._epilogue_operands(), self.body.outputs[0]]:
            value = self.values[name]
            if not self.layouts[name].is_dense or not (self._is_whole(value) or all(d == 1 for d in value.shape[:-1])):
                return False
        return True

    def _is_whole(self, value: Value) -> bool:
        """Whether a value has an element for each of the accumulators."""
        full = self.acc.shape
        return len(value.shape) == len(full) and all(
            simplify(a - b) == 0 for a, b in zip(value.shape, full, strict=True)
        )

    def _flat_view(self) -> tuple[Graph, dict[str, Layout]]:
        """The body and its layouts with all leading dimensions joined into rows."""
        rows = simplify(prod(self.acc.shape[:-1], start=1))

        def shape(value: Value) -> tuple[Expr, ...]:
            if self._is_whole(value):
                return (rows, value.shape[-1])
            return (value.shape[-1],) if value.shape else ()

        def flatten(value: Value) -> Value:
            return replace(value, shape=shape(value))

        nodes = tuple(replace(n, outputs=tuple(flatten(v) for v in n.outputs)) for n in self._epilogue())
        acc = flatten(replace(self.acc, name=self.start))
        inputs = tuple(flatten(self.values[name]) for name in self._epilogue_operands())
        scalars = {n: a.reshape(()) for n, a in self.body.constants.items()}
        body = Graph(self.body.name, (acc, *inputs), self.body.outputs, nodes, scalars)
        names = [*self._epilogue_operands(), self.body.outputs[0]]
        flat_values = {v.name: v for v in (*inputs, *(n.output for n in nodes), acc)}
        return body, {name: Layout.dense(flat_values[name].shape) for name in names}

    def _is_depthwise(self) -> bool:
        if self.anchor.op != "dlc.conv":
            return False
        groups, weight = self.anchor.attrs["groups"], self.constants[self.w]
        return bool(groups > 1 and weight.shape[0] == groups and weight.shape[1] == 1)

    def _depthwise(self) -> Depthwise:
        spatial, attrs = len(self.acc.shape) - 2, self.anchor.attrs
        return depthwise.depthwise_problem(
            self.layouts[self.a], self.constants[self.w].shape[2:], self.acc.shape[1:-1], strides=attrs["strides"],
            pads_begin=attrs["pads"][:spatial], dilations=attrs["dilations"],
            dtypes=(self.values[self.a].dtype, self.values[self.w].dtype),
        )  # fmt: skip

    def _contraction(self) -> Contraction:
        dtypes = (self.values[self.a].dtype, self.values[self.w].dtype)
        attrs = self.anchor.attrs
        if self.anchor.op == "dlc.conv":
            spatial = len(self.acc.shape) - 2
            return contract.conv_contraction(
                self.layouts[self.a], self.constants[self.w].shape, self.acc.shape[1:-1], strides=attrs["strides"],
                pads_begin=attrs["pads"][:spatial], dilations=attrs["dilations"], groups=attrs["groups"],
                dtypes=dtypes, flat_rows=self.flat,
            )  # fmt: skip
        a, w = self._matmul_layouts()
        constant = self.w in self.constants and len(self.values[self.w].shape) <= 2
        return contract.matmul_contraction(
            a, w.shape[-1], w=None if constant else w, dtypes=dtypes, flat_rows=self.flat
        )

    def _matmul_layouts(self) -> tuple[Layout, Layout]:
        """Both operands with at least two dimensions, A with all batch dimensions (of stride zero where broadcast)."""
        a, w = self.layouts[self.a], self.layouts[self.w]
        if len(a.shape) == 1:
            a = replace(a, shape=(1, *a.shape), strides=(0, *a.strides), halo=((0, 0), *a.halo))
        if len(w.shape) == 1:
            w = replace(w, shape=(*w.shape, 1), strides=(*w.strides, 1), halo=(*w.halo, (0, 0)))
        batch = self._batch(a, w)
        missing = len(batch) - (len(a.shape) - 2)
        shape = (*batch, *a.shape[-2:])
        own = (*([0] * missing), *(0 if d == 1 else s for d, s in zip(a.shape[:-2], a.strides[:-2], strict=True)))
        strides = (*own, *a.strides[-2:])
        return replace(a, shape=shape, strides=strides, halo=((0, 0),) * len(shape)), w

    @staticmethod
    def _batch(a: Layout, w: Layout) -> list[Expr]:
        rank = max(len(a.shape), len(w.shape)) - 2
        left = [1] * (rank - len(a.shape) + 2) + list(a.shape[:-2])
        right = [1] * (rank - len(w.shape) + 2) + list(w.shape[:-2])
        return [r if isinstance(x, int) and x == 1 else x for x, r in zip(left, right, strict=True)]

    # --- choices and code ---

    def choose(self, machine: Machine) -> dict[str, Any]:
        """The schedule that the cost model ranks first, as JSON, with the predicted time."""
        if isinstance(self.problem, Depthwise):
            best = depthwise.choose_depthwise(self.problem, self.isa, machine)
            seconds = depthwise.predicted_seconds(self.problem, best, self.isa, machine)
        else:
            best = contract.choose(self.problem, self.isa, machine)
            seconds = contract.predicted_seconds(self.problem, best, self.isa, machine)
        begin = (self.acc.name, self.start)
        seconds += region_cost.epilogue_seconds(self.body, self.layouts, begin, (self.a, self.w), self.isa, machine)
        symbolic = ", ".join(f"{var.name}={GUESS}" for var in symbols(self.layouts[self.a].shape))
        return {**best.to_json(), "predicted_us": round(seconds * 1e6, 3), "predicted_for": symbolic}

    def packed_weight(self, schedule: Mapping[str, Any]) -> np.ndarray:
        """The constant weight as the kernel reads it."""
        weight = self.constants[self.w]
        if isinstance(self.problem, Depthwise):
            return depthwise.pack_depthwise(self.problem, self.isa, weight)
        if self.problem.w_k_stride is not None:
            return weight
        if self.anchor.op == "dlc.conv":
            arranged = contract.conv_weight(weight, self.anchor.attrs["groups"])
        else:
            arranged = weight.reshape(1, weight.shape[0], -1)
        return contract.pack(self.problem, _schedule(schedule), self.isa, arranged)

    def operands(self, schedule: Mapping[str, Any]) -> list[tuple[str, np.ndarray | None]]:
        """The kernel's inputs in order: (body input name or '', constant or None)."""
        weight = self.packed_weight(schedule) if self.w in self.constants else None
        found: list[tuple[str, np.ndarray | None]] = [(self.a, self.constants.get(self.a)), (self.w, weight)]
        if self.init is not None:
            found.append(("", self.init))
        return found + [(name, self.constants.get(name)) for name in self._epilogue_operands()]

    def emit(
        self,
        name: str,
        schedule: Mapping[str, Any],
        operands: Sequence[tuple[str, np.ndarray | None]],
        dims: Sequence[Any],
        halo_fill: float | None,
        turns: bool = False,
    ) -> Any:
        """Generate the kernel over `operands` (what `operands` gave) and, last, the output; see `turns`."""
        body, layouts = self._flat_view() if self.flat else (self.body, self.layouts)
        epilogue = self._epilogue_operands()
        out = self.body.outputs[0]
        params = []
        for position, (label, array) in enumerate(operands):
            if label in epilogue and position >= len(operands) - len(epilogue):
                layout, dtype = layouts[label], self.values[label].dtype
            elif array is not None:
                layout, dtype = Layout.dense(array.shape), str(array.dtype)
                layout = Layout.dense((array.size,)) if label != self.a else layout
            else:
                layout, dtype = self.layouts[label], self.values[label].dtype
            params.append((f"x{position}", dtype, layout))
        params.append(("y", self.values[out].dtype, layouts[out]))
        with kernel(name, params, dims, shared=self._is_shared(schedule), turns=turns) as k:
            self._fill(k, body, epilogue, schedule, halo_fill)
        return k.func

    def turns(self, schedule: Mapping[str, Any]) -> bool:
        """Whether a loop should go through the weights forwards and backwards in turn.

        What was read last is still in the cache then. Always forwards, weights that are a little more than the cache
        holds would push out what is needed next, over and over.
        """
        if not isinstance(self.problem, Contraction) or schedule.get("unit") != "vector":
            return False
        if self.w not in self.constants or not isinstance(self.problem.n, int):
            return False
        return self.problem.n > schedule["nr"] * self.isa.lanes()

    @staticmethod
    def _is_shared(schedule: Mapping[str, Any]) -> bool:
        return schedule.get("unit") != "amx" and schedule.get("predicted_us", 0.0) >= _SHARED_MICROSECONDS

    def _fill(
        self, k: Any, body: Graph, epilogue: Sequence[str], schedule: Mapping[str, Any], halo_fill: float | None
    ) -> None:
        y = k.operands[-1]
        init = k.operands[2] if self.init is not None else None
        first = len(k.operands) - 1 - len(epilogue)
        named = dict(zip(epilogue, k.operands[first:-1], strict=True))
        if halo_fill is not None:
            fill_halo(y, halo_fill)

        def store(outer: Sequence[Expr], row: Expr, channel: Expr, acc: Expr, lanes: int, mask: Expr) -> None:
            index = self._index(outer, row, channel)
            evaluator = Evaluator(body, named, self.isa)
            evaluator.bind(self.start, acc)
            y.store(index, evaluator.value(self.body.outputs[0], index, lanes, mask), lanes, mask)

        chosen, a, w = _schedule(schedule), k.operands[0], k.operands[1]
        if isinstance(self.problem, Depthwise):
            depthwise.emit_depthwise(self.problem, chosen, self.isa, a, w, init, store, k.share)
        else:
            contract.emit(self.problem, chosen, self.isa, a, w, init, store, k.share, k.turn)

    def _index(self, outer: Sequence[Expr], row: Expr, channel: Expr) -> tuple[Expr, ...]:
        """The output's logical index from the contraction's loops."""
        if not self.flat:
            index = (*outer, row, channel)
            # numpy drops the dimension that a one-dimensional operand did not have.
            return index[-len(self.acc.shape) :] if len(self.values[self.a].shape) > 1 else (*outer, channel)
        assert isinstance(self.problem, Contraction)
        flat: Expr = 0
        for axis, position in zip((*self.problem.outer, self.problem.rows), (*outer, row), strict=True):
            flat = simplify(flat * axis.extent + position)
        return (flat, channel)


def _schedule(values: Mapping[str, Any]) -> contract.Schedule:
    return contract.Schedule.from_json({k: v for k, v in values.items() if not k.startswith("predicted")})
