"""Give every graph output memory of its own, because a kernel writes straight into the caller's array.

An output that is a graph input, a constant, another name of either, or the same memory as an earlier output is copied.
"""

from __future__ import annotations

from typing import Any

from dlc.ir.rewrite import Rewriter
from dlc.pipeline import Context, Pass


def _root(rw: Rewriter, name: str) -> str:
    while (node := rw.producer(name, "relax.reshape")) is not None:
        name = node.inputs[0]
    return name


def run(module: Any, context: Context) -> Any:
    """See the module's docstring."""
    rw = Rewriter(module)
    for node in rw.graph.nodes:
        rw.env[node.output.name] = rw.copy(node)
    taken: set[str] = set()
    outputs = []
    for name in rw.graph.outputs:
        root, expr = _root(rw, name), rw.new(name)
        if root in taken or rw.producer(root) is None:
            expr = rw.emit("relax.astype", [expr], {"dtype": rw.value(name).dtype})
        taken.add(root)
        outputs.append(expr)
    return rw.finish(outputs)


PASS = Pass("stage-outputs", run)
