"""The largest of a softmax is the best of what it is taken of: ``ArgMax(Softmax(x))`` needs no softmax.

Softmax and its logarithm keep the order along their axis, up to rounding: two values that differ by less than rounding
shows may change places. So only the single largest is rewritten: among the many values of a long row that all
round to zero, the further places of a TopK would be others than the graph says.
"""

from __future__ import annotations

from typing import Any

from dlc.ir.graph import Node
from dlc.ir.rewrite import Rewriter, rewrite
from dlc.pipeline import Context, Pass

_SOFTMAX = ("relax.nn.softmax", "relax.nn.log_softmax")


def run(module: Any, context: Context) -> Any:
    """See the module's docstring."""

    def handle(rw: Rewriter, node: Node) -> Any:
        single = node.op == "relax.argmax"
        single = single or (node.op == "dlc.top_indices" and node.attrs["k"] == 1 and bool(node.attrs["largest"]))
        made = rw.producer(node.inputs[0]) if single else None
        if made is None or made.op not in _SOFTMAX:
            return None
        rank = len(rw.value(made.inputs[0]).shape)
        if node.attrs["axis"] % rank != made.attrs["axis"] % rank:
            return None
        return rw.emit(node.op, [rw.new(made.inputs[0])], dict(node.attrs), node.origin)

    return rewrite(module, handle)


PASS = Pass("best-of-softmax", run)
