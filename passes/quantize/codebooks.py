"""Float tables that are only looked up, in 8 bits: codes, and a book of at most 256 numbers that they stand for.

A look-up reads one number at a place that the data say: an n-gram's probability, a bias of a class. What it costs is
the memory that is touched, and the book stays in the nearest cache. Rows of matrices (embeddings) are left as they are:
they feed products, which have scales of their own.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dlc.ir import arithmetic
from dlc.ir.graph import Node
from dlc.ir.rewrite import Rewriter, rewrite
from dlc.passes.simplify.match import unnamed
from dlc.pipeline import Context, Pass

NAME = "codebooks"
_LEAST = 1 << 12  # numbers; smaller tables stay in the nearest cache


def run(module: Any, context: Context) -> Any:
    """See the module's docstring."""
    books: dict[str, tuple[Any, Any]] = {}

    def handle(rw: Rewriter, node: Node) -> Any:
        if node.op != "relax.take" or node.attrs["axis"] != 0:
            return None
        table = rw.constant(node.inputs[0])
        looked_up = table is not None and table.ndim == 1 and table.dtype == np.float32 and table.size >= _LEAST
        if not looked_up or table is None:
            return None
        if not np.all(np.isfinite(table)):
            context.decline(NAME, node.origin, "stays float: the table holds NaN or infinity")
            return None
        name, origin = node.inputs[0], unnamed(node.origin)
        if name not in books:
            codes, numbers = arithmetic.codebook(table)
            books[name] = rw.const(codes), rw.const(numbers)
        code = rw.emit("relax.take", [books[name][0], rw.new(node.inputs[1])], {"axis": 0}, origin)
        place = rw.emit("relax.astype", [code], {"dtype": "int32"}, origin)
        return rw.emit("relax.take", [books[name][1], place], {"axis": 0}, node.origin)

    return rewrite(module, handle)


PASS = Pass(NAME, run)
