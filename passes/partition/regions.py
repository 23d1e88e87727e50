"""Decide fusion, once: every node of ``main`` goes into a region, and a region becomes one kernel.

A region is an anchor (a contraction, a window, a reduction) with the elementwise nodes that can ride on its store
and, for reductions, on its load; or a group of elementwise nodes alone; or one data movement. Reshapes stay in
``main``: they are other names for the same memory. Larger constants are passed as arguments.

Where a target has a kernel for it, attention is one region with two anchors: see `attention`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dlc.ir.convert import FunctionBuilder, view
from dlc.ir.graph import Graph, Node, node_symbols
from dlc.ir.ops import OPS
from dlc.ir.rewrite import copy_node, live_nodes, own_attrs, used_functions
from dlc.passes.partition.attention import SOFTMAX, TRANSPOSE, AttentionFinder, keeps_last
from dlc.passes.simplify.match import same_shape
from dlc.pipeline import Context, Pass

VIEW = "relax.reshape"
# Data movement that reads its input in order, and so may sit in the middle of an elementwise region.
_STREAMING = frozenset({"relax.broadcast_to", "relax.strided_slice"})
_GROUPS = {"dlc.grouped_matmul": 2, "dlc.block_matmul": 3}  # which input says the rows' groups
_CASTS = frozenset({"relax.astype", "dlc.dequantize"})
_ANCHORS = frozenset({"contraction", "window", "reduction", "opaque"})
Unfit = Callable[[Graph], str | None]  # attention as a body -> why it is not one kernel


def _itemsize(dtype: str) -> int:
    return int(np.dtype(dtype).itemsize)


class _Grouping:
    """Assigns nodes to groups; a group is known by its index in `groups`."""

    def __init__(self, graph: Graph, nodes: list[Node]) -> None:
        self.graph, self.nodes = graph, nodes
        self.producers = {v.name: n for n in nodes for v in n.outputs}
        self.values = graph.values()
        self.readers: dict[str, list[Node]] = {}
        for node in nodes:
            for name in dict.fromkeys(node.inputs):
                self.readers.setdefault(name, []).append(node)
        self.group_of: dict[str, int] = {}  # output value name -> group
        self.groups: list[list[Node]] = []
        self.attrs: dict[
            str, dict[str, Any]
        ] = {}  # output value name of a group's member -> what the region says of it

    def is_free(self, node: Node) -> bool:
        return node.output.name not in self.group_of and node.op != VIEW and OPS[node.op].kind != "host"

    def single_reader(self, name: str) -> Node | None:
        readers = self.readers.get(name, [])
        return readers[0] if len(readers) == 1 and name not in self.graph.outputs else None

    def open(self, node: Node) -> int:
        self.groups.append([])
        self.join(len(self.groups) - 1, node)
        return len(self.groups) - 1

    def join(self, group: int, node: Node) -> None:
        self.groups[group].append(node)
        self.group_of[node.output.name] = group

    def absorb_producers(self, group: int, node: Node) -> None:
        """Take in the elementwise nodes that only `node` reads, at its own shape."""
        into = node.output.shape if OPS[node.op].kind == "elementwise" else None
        for name in node.inputs:
            producer = self.producers.get(name)
            if producer is None or not self.is_free(producer) or self.single_reader(name) is not node:
                continue
            kind = OPS[producer.op].kind
            fits = into is None or same_shape(producer.output.shape, into)
            streams = producer.op in _STREAMING or self.takes_rows(producer, group) or self.begins(producer, group)
            if fits and (kind == "elementwise" or streams):
                self.join(group, producer)
                self.absorb_producers(group, producer)

    def begins(self, node: Node, group: int) -> bool:
        """Whether an elementwise chain may begin with `node`, a concatenation: each piece then has loops of its own."""
        return node.op == "relax.concat" and all(OPS[n.op].kind == "elementwise" for n in self.groups[group])

    def takes_rows(self, node: Node, group: int) -> bool:
        """Whether `node` gathers whole rows for a reduction along them: each is read in order, where it lies."""
        anchor = self.groups[group][0]
        along = OPS[anchor.op].kind == "reduction" and anchor.attrs.get("axes")
        if not along or node.op != "relax.take" or node.attrs["axis"] != 0:
            return False
        rank = len(self.values[node.inputs[0]].shape)
        return rank == 2 and [axis % len(node.output.shape) for axis in along] == [len(node.output.shape) - 1]

    def absorb_readers(self, group: int, anchor: Node) -> None:
        """Let the chain of elementwise readers ride on the anchor's store."""
        tail = anchor
        while (reader := self.single_reader(tail.output.name)) is not None:
            same_place = same_shape(reader.output.shape, tail.output.shape)
            if not self.is_free(reader) or OPS[reader.op].kind != "elementwise" or not same_place:
                return
            if reader.op == "dlc.table" and reader.inputs[1] == tail.output.name:
                return
            if self._should_leave(reader):
                return
            self.join(group, reader)
            tail = reader
            if anchor.op in _GROUPS and len(anchor.inputs) > _GROUPS[anchor.op]:
                self.absorb_taken(group, anchor, reader)

    def absorb_taken(self, group: int, anchor: Node, node: Node) -> None:
        """Take in the rows that only `node` reads at the groups of a grouped product: they are read where they lie."""
        for name in node.inputs:
            taken = self.producers.get(name)
            if taken is None or taken.op != "relax.take" or taken.inputs[1] != anchor.inputs[_GROUPS[anchor.op]]:
                continue
            of_rows = (
                taken.attrs["axis"] == 0 and len(taken.output.shape) == 2 and taken.inputs[0] in self.graph.constants
            )
            if of_rows and self.is_free(taken) and self.single_reader(name) is node:
                self.join(group, taken)

    def _should_leave(self, node: Node) -> bool:
        """Whether a node only widens what its own reader would widen as well on its load: bytes are what costs."""
        after = self.single_reader(node.output.name)
        if node.op not in _CASTS or after is None or OPS[after.op].kind not in ("elementwise", "reduction"):
            return False
        return _itemsize(node.output.dtype) > _itemsize(self.values[node.inputs[0]].dtype)

    def attention(self, unfit: Unfit, context: Context) -> None:
        """Give each attention that the target has a kernel for a group, with what follows it and the last transpose."""
        finder = AttentionFinder(self.graph, self.nodes, self.is_free)
        for softmax in [n for n in self.nodes if n.op == SOFTMAX]:
            members = finder.members(softmax)
            reason = None if members is None else unfit(finder.body(members))
            if members is None or reason is not None:
                if reason is not None:
                    context.decline("attention", softmax.origin, reason)
                continue
            group = self.open(members[0])
            for node in members[1:]:
                self.join(group, node)
            self.attrs[members[-1].output.name] = {"band": finder.band(members), "steps": finder.steps(members)}
            self.absorb_readers(group, members[-1])
            last = self.single_reader(self.groups[group][-1].output.name)
            if last is not None and last.op == TRANSPOSE and self.is_free(last) and keeps_last(last):
                self.join(group, last)

    def run(self) -> None:
        # Of two anchors that meet in a sum the later one takes it: the other's result is in memory by then.
        for node in reversed(self.nodes):
            if OPS[node.op].kind in ("contraction", "window") and self.is_free(node):
                self.absorb_readers(self.open(node), node)
        for node in self.nodes:
            if OPS[node.op].kind == "reduction" and self.is_free(node):
                group = self.open(node)
                self.absorb_producers(group, node)
                self.absorb_readers(group, node)
        for node in reversed(self.nodes):
            if self.is_free(node):
                group = self.open(node)
                if OPS[node.op].kind == "elementwise":
                    self.absorb_producers(group, node)


def _region_kind(nodes: Sequence[Node]) -> tuple[str, str]:
    """The kind of a region, and what its function is called after."""
    anchors = [node for node in nodes if OPS[node.op].kind in _ANCHORS]
    if len(anchors) > 1:
        return "attention", "attention"
    node = anchors[0] if anchors else nodes[-1]
    return (OPS[node.op].kind if anchors else "pointwise"), node.op.rsplit(".", 1)[-1]


class _Writer:
    """Writes the regions as functions and ``main`` as calls of them."""

    def __init__(self, module: Any, graph: Graph, nodes: list[Node], grouping: _Grouping) -> None:
        self.module, self.graph, self.nodes, self.grouping = module, graph, nodes, grouping
        self.values = graph.values()
        self.functions: dict[str, Any] = {}
        order = {n.output.name: i for i, n in enumerate(nodes)}
        self.members = [sorted(g, key=lambda n: order[n.output.name]) for g in grouping.groups]

    def is_inline(self, name: str, members: Sequence[Node]) -> bool:
        """Whether a constant is a number in the region's code: one element, and not a (tiny) weight to be packed."""
        array = self.graph.constants.get(name)
        if array is None or array.size != 1:
            return False
        return not any(name in m.inputs and OPS[m.op].kind == "contraction" for m in members)

    def carriers(self, members: Sequence[Node], outer: Sequence[str]) -> list[str]:
        """Graph inputs that a region must take only for their extents: those with symbols that nothing else brings."""
        wanted = {name for node in members for name in node_symbols(node)}
        known = {str(d) for name in outer for d in self.values[name].shape}
        found = []
        for value in self.graph.inputs:
            brings = {str(d) for d in value.shape} & (wanted - known)
            if brings:
                found.append(value.name)
                known |= brings
        return found

    def region(self, number: int, members: list[Node]) -> tuple[str, list[str]]:
        """Write one region function; returns its name and the values it takes."""
        inside = {n.output.name for n in members}
        outer = [n for m in members for n in m.inputs if n not in inside and not self.is_inline(n, members)]
        outer = list(dict.fromkeys(outer))
        outer += self.carriers(members, outer)
        kind, label = _region_kind(members)
        # The number comes first: TVM renames what ends in a number that it may want itself.
        name = f"k{number}_{label}"
        builder = FunctionBuilder(name)
        env: dict[str, Any] = {}
        for i, value in enumerate(outer):
            env[value] = builder.input(f"i{i}", self.values[value].shape, self.values[value].dtype)
        for node in members:
            for value in node.inputs:
                if value not in env:
                    env[value] = builder.constant(self.graph.constants[value])
            inputs = [env[v] for v in node.inputs]
            env[node.output.name] = builder.emit(node.op, inputs, node.attrs, node.origin, node.output.name)
        said = {k: v for m in members for k, v in self.grouping.attrs.get(m.output.name, {}).items()}
        if "steps" in said:
            said["steps"] = {f"i{outer.index(name)}": step for name, step in said["steps"].items()}
        built = builder.finish([env[members[-1].output.name]], {"kind": kind, **said})
        self.functions[name] = built[name]
        return name, outer

    def run(self) -> Any:
        regions: dict[str, tuple[str, list[str], Node]] = {}
        ordered = sorted(self.members, key=lambda m: self.nodes.index(m[-1]))
        for number, members in enumerate(ordered):
            name, outer = self.region(number, members)
            regions[members[-1].output.name] = (name, outer, members[-1])
        main = FunctionBuilder("main")
        for name, _, _ in regions.values():
            main.add_region(name, self.functions[name])
        for block in used_functions(Graph("main", (), (), tuple(self.nodes), {})):
            main.add_region(block.name, self.module[block.name])
        env: dict[str, Any] = {v.name: main.input(v.name, v.shape, v.dtype) for v in self.graph.inputs}

        def get(name: str) -> Any:
            if name not in env:
                env[name] = main.constant(self.graph.constants[name])
            return env[name]

        for node in self.nodes:
            out = node.output.name
            if node.op == VIEW:
                env[out] = main.emit(node.op, [get(n) for n in node.inputs], node.attrs, node.origin, out)
            elif out in regions:
                name, outer, last = regions[out]
                env[out] = main.call(name, [get(n) for n in outer], last.origin, out)
            elif OPS[node.op].kind == "host":
                env[out] = copy_node(main, node, [get(n) for n in node.inputs])
        return main.finish([get(n) for n in self.graph.outputs], own_attrs(self.graph))


def _run(module: Any, context: Context, unfit: Unfit | None) -> Any:
    graph = view(module)
    nodes = live_nodes(graph)
    grouping = _Grouping(graph, nodes)
    if unfit is not None:
        grouping.attention(unfit, context)
    grouping.run()
    return _Writer(module, graph, nodes, grouping).run()


def regions_pass(unfit: Unfit | None = None) -> Pass:
    """The pass; `unfit` says why attention is not one kernel of the target, None where it is. Without, it never is."""
    return Pass("regions", lambda module, context: _run(module, context, unfit))


PASS = regions_pass()
