"""A package of several parts: what no single target takes whole.

The graph behind the common passes is cut where a node runs on the host (control flow, operators without a kernel) or on
another target. Each part becomes a package of its own, nested in the outer one, and the outer graph calls it as a node
``dlc.part``; `dlc.runtime.composite` interprets that graph. The blocks of control flow are treated in the same way.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from dlc.ir.convert import view
from dlc.ir.graph import TUPLE, Graph, Node, Value, is_tensor
from dlc.ir.interpret import PART
from dlc.ir.ops.host import IF, ITEM, LOOP, ONNX
from dlc.ir.rewrite import graph_module
from dlc.ir.serial import graph_to_json
from dlc.passes.partition.segments import Segment, segment_module, segments
from dlc.runtime.tensors import safetensors_bytes
from dlc.targets.base import Build, Variant, joined

if TYPE_CHECKING:
    from dlc.pipeline import Context
    from dlc.targets.base import Target

RUNTIME = "dlc.runtime.composite"
TargetOf = Callable[[Node], "Target"]


def needs_host(graph: Graph, target: Target) -> bool:
    """Whether a graph has values or nodes that only the host handles."""
    if any(not is_tensor(v.dtype) for v in graph.inputs):
        return True
    return any(target.declines(node) is not None for node in graph.nodes if node.op != ITEM)


def build(module: Any, context: Context, targets_of: Callable[[Graph], TargetOf]) -> Build:
    """Cut `module` and build its parts.

    Args:
        module: the IR behind the common passes.
        targets_of: for ``main``, and for each block that the host runs: the target that is asked for a node of it; what
            that declines runs on the host.
    """
    composer = _Composer(context, targets_of)
    graph = composer.graph(module)
    record, constants = graph_to_json(graph)
    composer.members["graph.json"] = json.dumps(record, sort_keys=True, separators=(",", ":")).encode()
    composer.members["constants.safetensors"] = safetensors_bytes(constants)
    manifest = {"parts": composer.parts}
    return Build(composer.members, manifest, composer.rows, joined(composer.variants), RUNTIME)


@dataclass
class _Composer:
    """The state of one composition; parts are numbered through all blocks."""

    context: Context
    targets_of: Callable[[Graph], TargetOf]
    members: dict[str, bytes | memoryview] = field(default_factory=dict)
    parts: list[str] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    variants: list[tuple[Variant, ...]] = field(default_factory=list)
    targets: dict[str, Target] = field(default_factory=dict)

    def graph(self, module: Any) -> Graph:
        """``main`` of `module` with its native nodes replaced by calls of parts."""
        graph = view(module)
        producers, target_of = graph.producers(), self.targets_of(graph)

        def label(node: Node) -> Hashable:
            if node.op == ITEM:
                return label(producers[node.inputs[0]])
            target = target_of(node)
            if target.declines(node) is not None:
                return ("host", node.output.name)
            self.targets.setdefault(target.spec, target)
            return ("target", target.spec)

        nodes: list[Node] = []
        for segment in segments(graph, label):
            assert isinstance(segment.label, tuple)
            kind, name = segment.label
            if kind == "host":
                nodes += [self.host(module, node, target_of) for node in segment.nodes]
            else:
                nodes += self.part(module, graph, segment, self.targets[name])
        return replace(graph, nodes=tuple(nodes), constants=_read(graph, nodes))

    def part(self, module: Any, graph: Graph, segment: Segment, target: Target) -> list[Node]:
        """Compile a segment, nest its package, and call it."""
        from dlc.compiler import part_package

        name = f"part{len(self.parts)}"
        self.parts.append(name)
        # The target's passes may rewrite a module in place: each part is a module of its own.
        context = replace(self.context, part=f"{self.context.part}/{name}".strip("/"))
        package, built = part_package(segment_module(module, graph, segment), target, context)
        self.members |= package.nested_members(name)
        self.rows += [{**row, "part": f"{name} ({target.spec})"} for row in built.explanation]
        self.variants.append(built.variants)
        called = Value(f"{name}_results", (), TUPLE)
        values = graph.values()
        items = [
            Node(ITEM, (called.name,), (values[output],), {"index": index})
            for index, output in enumerate(segment.outputs)
        ]
        return [Node(PART, segment.inputs, (called,), {"part": name}), *items]

    def host(self, module: Any, node: Node, target_of: TargetOf) -> Node:
        """A host operator, the blocks of control flow composed in turn."""
        if node.op != ITEM:
            self.rows.append(_row(node, target_of(node).declines(node) or ""))
        composed = (self.graph(graph_module(module, block)) for block in node.blocks)
        pairs = zip(composed, node.blocks, strict=True)
        return replace(node, blocks=tuple(replace(graph, name=block.name) for graph, block in pairs))


def _read(graph: Graph, nodes: list[Node]) -> dict[str, Any]:
    """The constants that the outer graph itself still reads."""
    used = {name for node in nodes for name in node.inputs} | set(graph.outputs)
    return {name: array for name, array in graph.constants.items() if name in used}


_KERNELS = {LOOP: "a loop of the host", IF: "a branch of the host", ONNX: "onnx's reference implementation"}


def _row(node: Node, declined: str) -> dict[str, Any]:
    return {
        "node": str(node.origin),
        "value": node.origin.value,
        "op": node.attrs["op_type"] if node.op == ONNX else node.op,
        "precision": ", ".join(dict.fromkeys(node.attrs.get("dtypes", [node.output.dtype]))),
        "kernel": _KERNELS.get(node.op, "numpy"),
        "why_not_better": declined,
        "part": "host",
    }
