"""Operators that move or reshape data, and those that compute with shapes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dlc.frontends.onnx.context import Context
from dlc.frontends.onnx.registry import converter
from dlc.frontends.onnx.tensor import ConversionError, Dim, HostError, Tensor
from dlc.ir.ops.shapes import broadcast


@converter("Shape")
def shape(c: Context, x: Tensor) -> Tensor:
    """The extents, or a range of them (from opset 15)."""
    start, end = c.attr("start", 0), c.attr("end", x.rank)
    return c.extents(x.shape[slice(start, end)])


@converter("Size")
def size(c: Context, x: Tensor) -> Tensor:
    """The number of elements."""
    return c.reshape(c.extents([c.symbols.product(x.shape)]), ())


def target_shape(c: Context, x: Tensor, wanted: Sequence[Dim], allow_zero: bool) -> list[Dim]:
    """Reshape's 0 (the input's extent) and -1 (what is left) resolved."""
    dims = list(wanted)
    for index, dim in enumerate(dims):
        if isinstance(dim, int) and dim == 0 and not allow_zero:
            if index >= x.rank:
                raise ConversionError(f"shape {_text(wanted)}: a 0 at position {index}, beyond the input {x}")
            dims[index] = x.shape[index]
    unknown = [i for i, d in enumerate(dims) if isinstance(d, int) and d == -1]
    if len(unknown) > 1 or any(isinstance(d, int) and d < -1 for d in dims):
        raise ConversionError(f"shape {_text(wanted)} is not one to reshape to")
    if unknown:
        rest = [d for i, d in enumerate(dims) if i != unknown[0]]
        quotient = c.symbols.quotient(x.shape, rest)
        if quotient is None:
            if all(isinstance(d, int) for d in (*x.shape, *rest)):
                raise ConversionError(f"cannot reshape {x} to {_text(wanted)}")
            quotient = _demanded_quotient(c, x, rest, wanted)
        dims[unknown[0]] = quotient
    else:
        _same_elements(c, x, dims)
    return dims


def _demanded_quotient(c: Context, x: Tensor, rest: Sequence[Dim], wanted: Sequence[Dim]) -> Dim:
    """What is left for a -1, where a session sees to it that the division has no remainder."""
    up, down = (c.symbols.product(dims) for dims in c.symbols.cancelled(x.shape, rest))
    if c.symbols.decide("greater", down, 0) is not True:
        raise HostError(f"whether {x} can be reshaped to {_text(wanted)} depends on the sizes")
    quotient = c.symbols.simplify(up // down)
    c.equal(c.symbols.product((quotient, down)), up, f"in reshaping {x} to {_text(wanted)}, the extents")
    return quotient


def _same_elements(c: Context, x: Tensor, dims: Sequence[Dim]) -> None:
    """Hold extents to x's number of elements for every size of the symbols: kernels take that on trust."""
    if c.symbols.decide("equal", c.symbols.product(x.shape), c.symbols.product(dims)) is not None:
        return  # a difference that is known is found by `Context.reshape`
    above, below = c.symbols.cancelled(x.shape, dims)
    for side, other in ((above, below), (below, above)):
        for index, dim in enumerate(side):
            size = None if isinstance(dim, int) else c.symbols.quotient(other, (*side[:index], *side[index + 1 :]))
            if size is not None:
                c.find_size(dim, size)
    c.equal(c.symbols.product(above), c.symbols.product(below), f"in reshaping {x} to {_text(dims)}, the extents")


def _text(dims: Sequence[Dim]) -> str:
    return f"[{', '.join(str(d) for d in dims)}]"


@converter("Reshape")
def reshape_attribute(c: Context, x: Tensor) -> Tensor:
    """The shape as an attribute (up to opset 4)."""
    return c.reshape(x, target_shape(c, x, c.require("shape"), allow_zero=False))


@converter("Reshape", since=5)
def reshape(c: Context, x: Tensor, wanted: Tensor) -> Tensor:
    """Other extents, the same elements."""
    dims = c.dims(wanted, "the shape to reshape to")
    return c.reshape(x, target_shape(c, x, dims, bool(c.attr("allowzero", 0))))


@converter("Flatten")
def flatten(c: Context, x: Tensor) -> Tensor:
    """A matrix: the dimensions before `axis`, and the rest."""
    axis = c.attr("axis", 1)
    axis = axis + x.rank if axis < 0 else axis
    if not 0 <= axis <= x.rank:
        raise ConversionError(f"axis {axis} of a tensor with {x.rank} dimensions")
    return c.reshape(x, (c.symbols.product(x.shape[:axis]), c.symbols.product(x.shape[axis:])))


def _squeeze(c: Context, x: Tensor, axes: Sequence[int] | None) -> Tensor:
    if axes is None:
        if not x.static:
            raise HostError(f"which dimensions of {x} are 1 must be known when compiling")
        picked = [i for i, d in enumerate(x.shape) if d == 1]
    else:
        picked = [c.axis(a, x.rank) for a in axes]
    wrong = [i for i in picked if isinstance(x.shape[i], int) and x.shape[i] != 1]
    if wrong:
        raise ConversionError(f"dimension {wrong[0]} of {x} is not 1")
    return c.reshape(x, [d for i, d in enumerate(x.shape) if i not in picked])


@converter("Squeeze")
def squeeze_attribute(c: Context, x: Tensor) -> Tensor:
    """Axes as an attribute (up to opset 12)."""
    return _squeeze(c, x, c.attr("axes"))


@converter("Squeeze", since=13)
def squeeze(c: Context, x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Drop dimensions of extent 1."""
    return _squeeze(c, x, None if axes is None else c.ints(axes, "the input 'axes'"))


def _unsqueeze(c: Context, x: Tensor, axes: Sequence[int]) -> Tensor:
    rank = x.rank + len(axes)
    places = sorted(c.axis(a, rank) for a in axes)
    if len(set(places)) != len(places):
        raise ConversionError(f"axes {list(axes)} name one dimension twice")
    rest = list(x.shape)
    return c.reshape(x, [1 if i in places else rest.pop(0) for i in range(rank)])


@converter("Unsqueeze")
def unsqueeze_attribute(c: Context, x: Tensor) -> Tensor:
    """Axes as an attribute (up to opset 12)."""
    return _unsqueeze(c, x, c.require("axes"))


@converter("Unsqueeze", since=13)
def unsqueeze(c: Context, x: Tensor, axes: Tensor) -> Tensor:
    """Insert dimensions of extent 1."""
    return _unsqueeze(c, x, c.ints(axes, "the input 'axes'"))


@converter("Transpose")
def transpose(c: Context, x: Tensor) -> Tensor:
    """Permute the dimensions; reversed by default."""
    axes = c.attr("perm") or list(range(x.rank))[::-1]
    if sorted(axes) != list(range(x.rank)):
        raise ConversionError(f"attribute 'perm' {axes} does not permute {x.rank} dimensions")
    return c.transpose(x, axes)


@converter("Concat")
def concat(c: Context, *inputs: Tensor) -> Tensor:
    """Join along an axis."""
    axis = c.axis(c.attr("axis", 1), inputs[0].rank)
    for other in inputs[1:]:
        if other.rank != inputs[0].rank:
            raise ConversionError(f"cannot join {inputs[0]} and {other}: their ranks differ")
        for i, (a, b) in enumerate(zip(inputs[0].shape, other.shape, strict=True)):
            if i != axis and not (isinstance(a, int) and isinstance(b, int)):
                c.equal(a, b, f"the extents of dimension {i}")
    # What a session holds to be equal may be written in two ways; an operator's type rule wants one.
    first = inputs[0].shape
    inputs = tuple(c.reshape(x, [*first[:axis], x.shape[axis], *first[axis + 1 :]]) for x in inputs)
    empty = [x for x in inputs if isinstance(x.shape[axis], int) and x.shape[axis] == 0]
    kept = [x for x in inputs if not any(x is e for e in empty)] or [inputs[0]]
    return c.emit("concat", *kept, axis=axis) if len(kept) > 1 else kept[0]


def _split(c: Context, x: Tensor, sizes: Sequence[int] | None) -> tuple[Tensor, ...]:
    axis = c.axis(c.attr("axis", 0), x.rank)
    extent, count = x.shape[axis], c.attr("num_outputs", len(c.node.outputs))
    if count != len(c.node.outputs):
        raise ConversionError(f"attribute 'num_outputs' is {count}, but the node has {len(c.node.outputs)} outputs")
    if sizes is None:
        if not isinstance(extent, int):
            raise HostError(f"the extent {extent} to split must be known when compiling")
        # From opset 18 the last part may be smaller.
        part = -(-extent // count)
        sizes = [min(part, max(extent - i * part, 0)) for i in range(count)]
    if any(part < 0 for part in sizes) or (isinstance(extent, int) and sum(sizes) != extent):
        raise ConversionError(f"parts {list(sizes)} do not add up to the extent {extent}")
    c.equal(extent, sum(sizes), "the extent and the sum of its parts")
    parts, begin = [], 0
    for part in sizes:
        parts.append(c.slice(x, axis, begin, begin + part))
        begin += part
    return tuple(parts)


@converter("Split", since=2)
def split_attribute(c: Context, x: Tensor) -> tuple[Tensor, ...]:
    """Sizes as an attribute (up to opset 12)."""
    return _split(c, x, c.attr("split"))


@converter("Split", since=13)
def split(c: Context, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
    """Parts along an axis, each a slice."""
    return _split(c, x, None if sizes is None else c.ints(sizes, "the input 'split'"))


@converter("Expand", since=8)
def expand(c: Context, x: Tensor, wanted: Tensor) -> Tensor:
    """Broadcast in both directions."""
    dims = c.dims(wanted, "the shape to expand to")
    for have, want in zip(reversed(x.shape), reversed(dims), strict=False):
        if not c.symbols.same(have, want) and not any(isinstance(d, int) and d == 1 for d in (have, want)):
            if isinstance(have, int) and isinstance(want, int):
                break
            # An extent of 1 would be repeated, any other kept.
            raise HostError(f"whether {x} is repeated to extents {_text(dims)} is known only when running")
    try:
        return c.broadcast(x, broadcast(x.shape, dims))
    except ValueError as error:
        raise ConversionError(str(error)) from error


@converter("Tile", since=6)
def tile(c: Context, x: Tensor, repeats: Tensor) -> Tensor:
    """Repeat along each dimension: broadcast over a new dimension before it, then merge the two."""
    counts = c.dims(repeats, "the input 'repeats'")
    if len(counts) != x.rank:
        raise ConversionError(f"{len(counts)} repeats for {x.rank} dimensions")
    if all(isinstance(n, int) and n == 1 for n in counts):
        return x
    pairs = list(zip(counts, x.shape, strict=True))
    apart = c.reshape(x, [v for _, d in pairs for v in (1, d)])
    wide = c.broadcast(apart, [v for n, d in pairs for v in (n, d)])
    return c.reshape(wide, [c.symbols.product((n, d)) for n, d in pairs])


@converter("ConstantOfShape", since=9)
def constant_of_shape(c: Context, wanted: Tensor) -> Tensor:
    """One value repeated; a float32 zero by default."""
    dims = c.dims(wanted, "the shape of the constant")
    if any(isinstance(d, int) and d < 0 for d in dims):
        raise ConversionError(f"a constant of shape {_text(dims)}")
    value = c.attr("value")
    scalar = np.zeros((), np.float32) if value is None else np.asarray(value).reshape(-1)[0]
    return c.broadcast(c.constant(scalar), dims)


@converter("DepthToSpace")
def depth_to_space(c: Context, x: Tensor) -> Tensor:
    """Blocks of channels become squares of pixels."""
    n, channels, height, width = _image(x)
    block = c.require("blocksize")
    depth = c.symbols.quotient((channels,), (block, block))
    if depth is None:
        if not isinstance(channels, int):
            raise HostError(f"the channels of {x} must be known when compiling")
        raise ConversionError(f"{channels} channels are not a multiple of {block} x {block}")
    if c.attr("mode", "DCR") == "DCR":
        apart = c.transpose(c.reshape(x, (n, block, block, depth, height, width)), (0, 3, 4, 1, 5, 2))
    else:
        apart = c.transpose(c.reshape(x, (n, depth, block, block, height, width)), (0, 1, 4, 2, 5, 3))
    return c.reshape(apart, (n, depth, height * block, width * block))


@converter("SpaceToDepth")
def space_to_depth(c: Context, x: Tensor) -> Tensor:
    """Squares of pixels become blocks of channels."""
    n, channels, height, width = _image(x)
    block = c.require("blocksize")
    rows, columns = c.symbols.quotient((height,), (block,)), c.symbols.quotient((width,), (block,))
    if rows is None or columns is None:
        if not isinstance(height, int) or not isinstance(width, int):
            raise HostError(f"the extents of {x} must be known when compiling")
        raise ConversionError(f"extents {height} x {width} are not multiples of {block}")
    order = (0, 3, 5, 1, 2, 4) if c.attr("mode", "DCR") == "DCR" else (0, 1, 3, 5, 2, 4)
    apart = c.transpose(c.reshape(x, (n, channels, rows, block, columns, block)), order)
    return c.reshape(apart, (n, channels * block * block, rows, columns))


def _image(x: Tensor) -> tuple[Dim, ...]:
    if x.rank != 4:
        raise ConversionError(f"needs 4 dimensions, got {x}")
    return x.shape
