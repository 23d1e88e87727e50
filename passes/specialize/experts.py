"""Hard mixture of experts: compute the chosen experts of each row alone.

A model computes all experts for every row and adds them up with gates of which all but the chosen ones are zero:

- ``sum over experts of gates * y``, as ReduceSum of a product or as a matrix product, where y has an axis of experts;
- ``gates[:, 0] * y_0 + gates[:, 1] * y_1 + ...``, where each y is a branch of the graph of its own.

What `gates.py` finds to be such gates, and `chosen_rows.py` (`branches.py` for the second form) to be computed row by
row, becomes: the pairs of a row and a chosen expert, sorted by expert; each pair's row; products with the matrix of the
pair's expert (`dlc.grouped_matmul`); and the weighted sum of each row's pairs. The gates stay what the graph says. One
thing is different: an expert that is not chosen contributes nothing, where the graph adds zero times its result, which
is NaN where that result is not finite.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dlc.ir.graph import Node
from dlc.ir.ops import OPS
from dlc.ir.rewrite import Rewriter, rewrite
from dlc.passes.simplify import run as simplify_run
from dlc.passes.specialize.blocks import everywhere
from dlc.passes.specialize.branches import Branches, column_of, terms_of
from dlc.passes.specialize.chosen_rows import ChosenRows, UnfitError
from dlc.passes.specialize.gates import GateFinder, Gates
from dlc.pipeline import Context, Pass

NAME = "experts"
_SOFT = "their gates are not known to be zero but for the experts that TopK or ArgMax chose"


def run(module: Any, context: Context) -> Any:
    """See the module's docstring."""

    def handle(rw: Rewriter, node: Node) -> Any:
        try:
            return _sum(rw, node, context) if node.op != "relax.add" else _branches(rw, node, context)
        except UnfitError as error:
            context.decline(NAME, node.origin, f"all experts are computed for each row: {error}")
            return None

    changed = rewrite(module, handle)
    return module if changed is module else simplify_run(changed, context)


def _sum(rw: Rewriter, node: Node, context: Context) -> Any:
    """The first form."""
    for gates_name, gates_axis, name, axis in _weighted(rw, node):
        rank, experts = len(rw.value(name).shape), rw.value(name).shape[axis]
        if not isinstance(experts, int) or experts < 2 or not _has_product(rw, name):
            continue
        gates = GateFinder(rw).find(gates_name, gates_axis)
        if gates is None and not _has_product(rw, name, experts):
            continue  # such as attention, which weights rows
        pairs = _pairs(rw, gates, experts, node, context)
        return pairs.combined(pairs.value(name, axis, rank), node.output.shape, node.origin)
    return None


def _pairs(rw: Rewriter, gates: Gates | None, experts: int, node: Node, context: Context) -> ChosenRows:
    """The pairs that the gates choose; UnfitError where they choose none, or where the target cannot make use of it."""
    if gates is None:
        raise UnfitError(_SOFT)
    if context.target is not None and not context.target.groups_rows:
        raise UnfitError(f"target {context.target.name} has no products of rows with matrices of their own choice")
    return ChosenRows(rw, gates, experts, node.origin)


def _weighted(rw: Rewriter, node: Node) -> list[tuple[str, int, str, int]]:
    """(gates, their axis of experts, what they weight, its axis of experts) of a weighted sum, as shapes tell."""
    if node.op == "dlc.matmul":
        left, right = (rw.value(name).shape for name in node.inputs)
        fits = len(left) == len(right) > 2 and left[-2] == 1 and rw.constant(node.inputs[1]) is None
        return [(node.inputs[0], len(left) - 1, node.inputs[1], len(right) - 2)] if fits else []
    product = rw.producer(node.inputs[0], "relax.multiply") if node.op == "relax.sum" else None
    if product is None or len(node.attrs["axes"]) != 1:
        return []
    (axis,), found = node.attrs["axes"], []
    for gates, values in (product.inputs, product.inputs[::-1]):
        shapes = [rw.value(name).shape for name in (gates, values)]
        if len(shapes[0]) == len(shapes[1]) and axis != len(shapes[1]) - 1 and shapes[0][-1] == 1:
            found.append((gates, axis, values, axis))
    return found


def _has_product(rw: Rewriter, name: str, experts: int = 0) -> bool:
    """Whether a value comes from a product with a constant; with one matrix for each expert where these are given."""
    todo, seen = [name], set()
    while todo:
        node = rw.producer(todo.pop())
        if node is None or node.output.name in seen:
            continue
        seen.add(node.output.name)
        if node.op == "dlc.matmul":
            weight = rw.constant(node.inputs[1])
            if weight is not None and (not experts or experts in weight.shape[:-2]):
                return True
        elif OPS[node.op].kind not in ("elementwise", "injective"):
            continue
        todo += node.inputs
    return False


def _branches(rw: Rewriter, node: Node, context: Context) -> Any:
    """The second form."""
    reader = rw.only_consumer(node.output.name)
    if reader is not None and reader.op == "relax.add":
        return None  # a part of a longer sum
    terms = terms_of(rw, node)
    columns = [column_of(rw, term) for term in terms]
    first = columns[0]
    if len(terms) < 2 or first is None or any(c is None or c.gates != first.gates for c in columns):
        return None
    found = {c.expert: c.value for c in columns if c is not None}
    experts = rw.value(first.gates).shape[-1]
    if len(found) != len(terms) or sorted(found) != list(range(experts if isinstance(experts, int) else 0)):
        return None
    values: Sequence[str] = [found[e] for e in range(experts)]
    if not all(_has_product(rw, name) for name in values):
        return None
    gates = GateFinder(rw).find(first.gates, len(rw.value(first.gates).shape) - 1)
    pairs = _pairs(rw, gates, experts, node, context)
    return pairs.combined(Branches(pairs).value(values), node.output.shape, node.origin)


PASS = everywhere(Pass(NAME, run))
