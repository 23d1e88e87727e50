"""Einsum: reduced pair by pair to transposes, matrix products and sums."""

from __future__ import annotations

from collections.abc import Sequence

from dlc.frontends.onnx.context import Context
from dlc.frontends.onnx.indexing import count_up
from dlc.frontends.onnx.linear import product
from dlc.frontends.onnx.registry import converter
from dlc.frontends.onnx.tensor import ConversionError, Dim, Tensor

Labelled = tuple[Tensor, str]
_ELLIPSIS = "0123456789"  # the dimensions that "..." stands for, rightmost last


def _parse(equation: str, operands: Sequence[Tensor]) -> tuple[list[str], str]:
    """Labels of each operand and of the result, ellipses spelt out."""
    text = equation.replace(" ", "")
    left, arrow, right = text.partition("->")
    terms = left.split(",")
    if len(terms) != len(operands):
        raise ConversionError(f"equation '{equation}' has {len(terms)} terms for {len(operands)} inputs")
    widest, labels = 0, []
    for term, operand in zip(terms, operands, strict=True):
        hidden = operand.rank - len(term.replace("...", "")) if "..." in term else 0
        if not 0 <= hidden <= len(_ELLIPSIS) or len(term.replace("...", "")) + hidden != operand.rank:
            raise ConversionError(f"term '{term}' of equation '{equation}' does not fit {operand}")
        widest = max(widest, hidden)
        labels.append(term.replace("...", _ELLIPSIS[len(_ELLIPSIS) - hidden :]))
    whole = _ELLIPSIS[len(_ELLIPSIS) - widest :]
    if arrow:
        return labels, right.replace("...", whole)
    once = sorted(c for c in set("".join(labels)) - set(_ELLIPSIS) if "".join(labels).count(c) == 1)
    return labels, whole + "".join(once)


def _diagonal(c: Context, x: Tensor, labels: str) -> Labelled:
    """Merge a label that names two dimensions."""
    for label in labels:
        if labels.count(label) < 2:
            continue
        first, second = labels.index(label), labels.rindex(label)
        order = [i for i in range(x.rank) if i not in (first, second)]
        moved = c.transpose(x, (first, second, *order))
        extent = moved.shape[0]
        if not c.symbols.same(extent, moved.shape[1]):
            raise ConversionError(f"label '{label}' names dimensions of different extents in {x}")
        flat = c.reshape(moved, (c.symbols.product((extent, extent)), *moved.shape[2:]))
        step = c.reshape(c.extents([c.symbols.simplify(extent + 1)]), ())
        picked = c.emit("take", flat, c.emit("multiply", count_up(c, extent), step), axis=0)
        return _diagonal(c, picked, label + "".join(labels[i] for i in order))
    return x, labels


def _sum_out(c: Context, x: Tensor, labels: str, keep: set[str]) -> Labelled:
    axes = [i for i, label in enumerate(labels) if label not in keep]
    if not axes:
        return x, labels
    return c.reduce("sum", x, axes, keepdims=False), "".join(label for label in labels if label in keep)


def _arranged(c: Context, x: Tensor, labels: str, wanted: str) -> Tensor:
    """x with a dimension for every wanted label, in their order; 1 where it has none."""
    moved = c.transpose(x, [labels.index(label) for label in wanted if label in labels])
    extents = iter(moved.shape)
    return c.reshape(moved, [next(extents) if label in labels else 1 for label in wanted])


def _pair(c: Context, a: Labelled, b: Labelled, keep: set[str]) -> Labelled:
    """The product of two operands, with the labels that nothing else needs summed over."""
    a = _sum_out(c, *a, keep | set(b[1]))
    b = _sum_out(c, *b, keep | set(a[1]))
    (x, left), (y, right) = a, b
    inner = "".join(label for label in left if label in right and label not in keep)
    shared = "".join(label for label in left if label in right and label in keep)
    rows = "".join(label for label in left if label not in right)
    columns = "".join(label for label in right if label not in left)
    if not inner:
        labels = shared + rows + columns
        return c.emit("multiply", _arranged(c, x, left, labels), _arranged(c, y, right, labels)), labels
    x, y = _arranged(c, x, left, shared + rows + inner), _arranged(c, y, right, shared + inner + columns)
    batch = len(shared)
    x_rows, depth = x.shape[batch : batch + len(rows)], x.shape[batch + len(rows) :]
    y_columns = y.shape[batch + len(inner) :]
    total = c.symbols.product
    x = c.reshape(x, (*x.shape[:batch], total(x_rows), total(depth)))
    y = c.reshape(y, (*y.shape[:batch], total(depth), total(y_columns)))
    result = product(c, x, y)
    return c.reshape(result, (*result.shape[:batch], *x_rows, *y_columns)), shared + rows + columns


@converter("Einsum", since=12)
def einsum(c: Context, *inputs: Tensor) -> Tensor:
    """Any equation over any number of inputs."""
    terms, result = _parse(c.require("equation"), inputs)
    if len(set(result)) != len(result) or not set(result) <= set("".join(terms)):
        raise ConversionError(f"the result '{result}' of the equation names a label twice, or an unknown one")
    extents: dict[str, Dim] = {}
    for x, labels in zip(inputs, terms, strict=True):
        for label, extent in zip(labels, x.shape, strict=True):
            known = extents.setdefault(label, extent)
            if label not in _ELLIPSIS and not (isinstance(known, int) and isinstance(extent, int)):
                c.equal(known, extent, f"the extents of label '{label}'")
    operands = [_diagonal(c, x, labels) for x, labels in zip(inputs, terms, strict=True)]
    current = operands[0]
    for index, following in enumerate(operands[1:], 1):
        later = set(result).union(*(labels for _, labels in operands[index + 1 :]))
        current = _pair(c, current, following, later)
    x, labels = _sum_out(c, *current, set(result))
    return c.transpose(x, [labels.index(label) for label in result])
