"""Decide which tensors lie in memory with padding around them.

A tensor that padded convolutions read gets a halo as wide as the widest of them wants. The region that makes the tensor
writes the halo as well (with zeros, or with the zero point of a quantised tensor). The decision is an attribute of that
region: ``dlc.halo`` = [[before, after] a dimension] and ``dlc.halo_fill``.
"""

from __future__ import annotations

import json
from typing import Any

from dlc.ir.convert import view
from dlc.ir.graph import Node
from dlc.pipeline import Context, Pass


def _conv_of(node: Node) -> Node | None:
    if node.body is None:
        return None
    return next((n for n in node.body.nodes if n.op == "dlc.conv"), None)


def _wanted(conv: Node, rank: int) -> list[list[int]]:
    pads = conv.attrs["pads"]
    spatial = rank - 2
    return [[0, 0], *([pads[i], pads[spatial + i]] for i in range(spatial)), [0, 0]]


def run(module: Any, context: Context) -> Any:
    """See the module's docstring."""
    graph = view(module)
    producers = graph.producers()
    halos: dict[str, tuple[list[list[int]], int]] = {}
    for node in graph.nodes:
        conv = _conv_of(node)
        if conv is None or not any(conv.attrs["pads"]):
            continue
        assert node.body is not None
        position = [v.name for v in node.body.inputs].index(conv.inputs[0])
        name = node.inputs[position]
        wanted = _wanted(conv, len(node.body.inputs[position].shape))
        old, _ = halos.get(name, (wanted, 0))
        merged = [[max(a, c), max(b, d)] for (a, b), (c, d) in zip(old, wanted, strict=True)]
        halos[name] = (merged, int(conv.attrs.get("x_zero_point", 0)))
    for name, (halo, fill) in halos.items():
        body = producers[name].body
        assert body is not None, f"{name} needs a halo but no region makes it"
        function = module[body.name].with_attr("dlc.halo", json.dumps(halo))
        module[body.name] = function.with_attr("dlc.halo_fill", json.dumps(fill))
    return module


PASS = Pass("halo", run)
