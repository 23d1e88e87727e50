"""How attention packs the keys and values that do not lie as its products read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from tvm.script.ir_builder import tirx as T

from dlc.ir.graph import Node
from dlc.passes.partition.attention import TRANSPOSE, keeps_last
from dlc.targets.cpu.kernels.builder import Expr, Operand, let, positions, splat, tail_mask
from dlc.targets.cpu.kernels.contract_loops import Segment, cut_channels, each, loop, whole_index
from dlc.targets.cpu.kernels.evaluate import Evaluator, is_one
from dlc.targets.cpu.kernels.transpose import interleave
from dlc.targets.layout import simplify

if TYPE_CHECKING:
    from dlc.targets.cpu.attention_region import AttentionRegion


def _none(count: Expr) -> bool:
    return isinstance(count, int) and count == 0


class Packing:
    """Packs the right operands of both products as `contract.pack` does with weights: (k, channels), by tiles of nr."""

    def __init__(self, region: AttentionRegion, named: Mapping[str, Operand]) -> None:
        self.region, self.named, self.isa, self.lanes = region, named, region.isa, region.lanes
        self.body, self.sizes = region.body, region.sizes

    def evaluator(self) -> Evaluator:
        """A fresh one over the region's body."""
        return Evaluator(self.body, self.named, self.isa)

    def index(self, name: str, place: Sequence[Expr], inner: Sequence[Expr]) -> tuple[Expr, ...]:
        """The index of an operand: the batch dimensions that it has, broadcast, then `inner`."""
        shape = self.region.values[name].shape[: -len(inner)]
        used = place[len(place) - len(shape) :]
        outer = (0 if is_one(n) else i for n, i in zip(shape, used, strict=True))
        return tuple(whole_index(i) for i in (*outer, *inner))

    def keys(
        self, panel: Operand, start: Expr, nr: int, place: Sequence[Expr], keys: tuple[Expr, Expr]
    ) -> None:  # fmt: skip
        """Pack some (first, count) keys into `panel` from `start` on."""
        (first, count), node, depth = keys, self._turned(), self.sizes.depth
        if node is None:
            self._rows(panel, start, nr, self.region.k, place, (0, first), (depth, count))
            return
        for part in cut_channels(count, nr, self.lanes):
            with each(part) as vector:
                base = let(whole_index(simplify(start + vector * (depth * self.lanes))))
                for j in range(part.size):
                    at = partial(self._packed_at, base, part, j)
                    key = simplify(first + (vector + j) * self.lanes)
                    self._turn(panel, node, place, key, part.ragged if j == part.size - 1 else 0, at)

    def values(self, panel: Operand, nr: int, place: Sequence[Expr], keys: tuple[Expr, Expr]) -> None:
        """Pack the values of some (first, count) keys."""
        first, count = keys
        self._rows(panel, 0, nr, self.region.v, place, (first, 0), (count, self.sizes.width))

    def _rows(
        self, panel: Operand, start: Expr, nr: int, name: str, place: Sequence[Expr],
        first: tuple[Expr, Expr], sizes: tuple[Expr, Expr],
    ) -> None:  # fmt: skip
        """Pack the part of a right operand that is of some size (k, channels) and begins at `first`, row by row."""
        depth, n = sizes
        for part in cut_channels(n, nr, self.lanes):
            mask = None if _none(part.ragged) else let(tail_mask(part.ragged, self.lanes))
            with each(part) as vector:
                base = let(whole_index(simplify(start + vector * (depth * self.lanes))))
                with loop(depth) as k:
                    for j in range(part.size):
                        channel = simplify(first[1] + (vector + j) * self.lanes)
                        index = self.index(name, place, (simplify(first[0] + k), channel))
                        last = mask if j == part.size - 1 else None
                        value = self.evaluator().value(name, index, self.lanes, last)
                        T.buffer_store(panel.buffer, value, [positions(self._packed_at(base, part, j, k), self.lanes)])

    def _packed_at(self, base: Expr, part: Segment, j: int, k: Expr) -> Expr:
        """Where vector `j` of a tile that begins at `base` lies for one k."""
        return simplify(base + (k * part.size + j) * self.lanes)

    def _turned(self) -> Node | None:
        """The transpose in the region that makes k from rows of keys."""
        name = self.region.k
        while (node := self.region.producers.get(name)) is not None:
            if node.op == TRANSPOSE:
                return None if keeps_last(node) else node
            name = next(n for n in node.inputs if n not in self.body.constants and n not in self.region.constants)
        return None

    def _turn(self, panel: Operand, node: Node, place: Sequence[Expr], key: Expr, ragged: Any, at: Any) -> None:
        """A vector of keys: squares of rows are turned in registers."""
        full, rest = divmod(self.sizes.depth, self.lanes)
        if full:
            with loop(full) as i:
                self._square(panel, node, place, key, ragged, simplify(i * self.lanes), self.lanes, at)
        if rest:
            self._square(panel, node, place, key, ragged, full * self.lanes, rest, at)

    def _square(
        self, panel: Operand, node: Node, place: Sequence[Expr], key: Expr, ragged: Any, k: Expr, depth: int, at: Any
    ) -> None:  # fmt: skip
        lanes, evaluator, source = self.lanes, self.evaluator(), node.inputs[0]
        mask = let(tail_mask(T.int32(depth), lanes)) if depth < lanes else None
        rows = []
        known = isinstance(ragged, int)
        for i in range(ragged or lanes if known else lanes):
            # Behind the last key its row is read once more.
            row = key + i if known else T.min(key + i, key + (ragged - 1))
            turned = self.index(node.output.name, place, (k, simplify(row)))
            straight: list[Expr] = [0] * len(turned)
            for position, axis in enumerate(node.attrs["axes"]):
                straight[axis % len(turned)] = turned[position]
            rows.append(evaluator.value(source, straight, lanes, mask))
        rows += [splat(T.float32(0), lanes)] * (lanes - len(rows))
        keys = None if _none(ragged) else let(tail_mask(ragged, lanes))
        for i, vector in enumerate(interleave(rows)[:depth]):
            evaluator.bind(node.output.name, vector)
            index = self.index(self.region.k, place, (simplify(k + i), key))
            value = evaluator.value(self.region.k, index, lanes, keys)
            T.buffer_store(panel.buffer, value, [positions(at(simplify(k + i)), lanes)])
