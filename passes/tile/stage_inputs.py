"""Copy what a convolution cannot read in place, so that every padded input has a producer that can pad it.

A convolution reads its input from memory that already holds the padding (a halo, written by the producer). Graph
inputs, constants and values that others need dense (a reshape, a matmul, a graph output) have none: they are copied
once, by a cast to their own dtype, which becomes a kernel like any other.
"""

from __future__ import annotations

from typing import Any

from dlc.ir.graph import Node
from dlc.ir.ops.host import ITEM
from dlc.ir.rewrite import Rewriter, rewrite
from dlc.pipeline import Context, Pass

_NEEDS_DENSE = frozenset({"relax.reshape", "dlc.matmul"})


def _has_padding(node: Node) -> bool:
    return node.op == "dlc.conv" and any(node.attrs["pads"])


def _is_dense_only(rw: Rewriter, name: str) -> bool:
    producer = rw.producer(name)
    if producer is None or producer.op in ("relax.reshape", ITEM) or name in rw.graph.outputs:
        return True
    return any(reader.op in _NEEDS_DENSE for reader in rw.consumers[name])


def run(module: Any, context: Context) -> Any:
    """See the module's docstring."""
    staged: dict[str, Any] = {}

    def handle(rw: Rewriter, node: Node) -> Any:
        if not _has_padding(node) or not _is_dense_only(rw, node.inputs[0]):
            return None
        name = node.inputs[0]
        if name not in staged:
            staged[name] = rw.emit("relax.astype", [rw.new(name)], {"dtype": rw.value(name).dtype})
        return rw.emit(node.op, [staged[name], *(rw.new(n) for n in node.inputs[1:])], node.attrs, node.origin)

    return rewrite(module, handle)


PASS = Pass("stage-inputs", run)
