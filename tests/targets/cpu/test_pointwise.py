"""Pointwise kernels over shapes, remainders, halos, types, broadcasts, symbolic extents; data movement; halos alone."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlc.ir.ops.shapes import broadcast
from dlc.targets.cpu.isa import Isa
from dlc.targets.cpu.kernels import pointwise
from dlc.targets.cpu.kernels.builder import kernel, symbolic
from dlc.targets.cpu.kernels.halo import fill_halo
from dlc.targets.cpu.kernels.testing import Compiled
from dlc.targets.cpu.kernels.testing_regions import LEVELS, Body, check, random
from dlc.targets.layout import Layout

every_level = pytest.mark.parametrize("isa", LEVELS, ids=lambda isa: isa.name)
levels = st.sampled_from(LEVELS)
extents = st.integers(1, 7) | st.integers(1, 40)


def _rng(data: st.DataObject) -> np.random.Generator:
    return np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))


def _halo(data: st.DataObject, rank: int) -> list[tuple[int, int]]:
    """Around the middle dimensions, as activations have it."""
    if rank < 3 or not data.draw(st.booleans()):
        return [(0, 0)] * rank
    pair = st.tuples(st.integers(0, 2), st.integers(0, 2))
    return [(0, 0), *(data.draw(pair) for _ in range(rank - 2)), (0, 0)]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_broadcasts_and_halos(data: st.DataObject) -> None:
    """max(a + b, 0) * c where each operand has the full shape or extents of one, or lacks dimensions, or has a halo."""
    rng, isa = _rng(data), data.draw(levels)
    full = data.draw(st.lists(extents, min_size=0, max_size=4).filter(lambda s: int(np.prod(s)) < 20000))
    shapes = []
    for _ in range(3):
        own = [n if data.draw(st.integers(0, 3)) else 1 for n in full]
        shapes.append(own[data.draw(st.integers(0, len(own))) :] if data.draw(st.booleans()) else own)
    body = Body()
    a, b, c = (body.input(s) for s in shapes)
    total = tuple(broadcast(shapes[0], shapes[1]))
    added = body.node("nn.relu", [body.node("add", [a, b], total)], total)
    out_shape = tuple(broadcast(total, shapes[2]))
    out = body.node("multiply", [added, c], out_shape)
    halos = {n: _halo(data, len(s)) for n, s in [(a, shapes[0]), (b, shapes[1]), (c, shapes[2]), (out, out_shape)]}
    arrays = [random(rng, s, "float32") for s in shapes]
    fill = {out: 0.0} if any(p != (0, 0) for p in halos[out]) and data.draw(st.booleans()) else {}
    check(pointwise.emit, body.graph(out), arrays, isa, halos=halos, fill=fill)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_symbolic_extents(data: st.DataObject) -> None:
    """One kernel for several sizes of a symbolic batch, anywhere in the shape."""
    rng, isa = _rng(data), data.draw(levels)
    shape: list[object] = data.draw(st.lists(st.integers(1, 20), min_size=1, max_size=3))
    shape.insert(data.draw(st.integers(0, len(shape))), symbolic("n"))
    body = Body()
    x, y = body.input(shape), body.input([shape[-1]] if isinstance(shape[-1], int) else [])
    out = body.node("subtract", [body.node("sigmoid", [x], shape), y], shape)
    halos = {n: _halo(data, len(shape)) for n in (x, out)}
    for size in data.draw(st.lists(st.integers(1, 70), min_size=2, max_size=2)):
        arrays = [random(rng, [n if isinstance(n, int) else size for n in s.shape], "float32") for s in body.inputs]
        check(pointwise.emit, body.graph(out), arrays, isa, halos=halos, rtol=1e-6, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_residual_of_quantised_activations(data: st.DataObject) -> None:
    """Two uint8 activations, each with its own halo, into one with a halo of zero points."""
    rng, isa = _rng(data), data.draw(levels)
    n, h, w, c = (data.draw(st.integers(1, k)) for k in (2, 5, 5, 40))
    body = Body()
    a, b = body.input((n, h, w, c), "uint8"), body.input((n, h, w, c), "uint8")
    per_channel = data.draw(st.booleans())
    m = body.input((c,)) if per_channel else body.constant(0.43)
    out = body.node(
        "dlc.requantize", [a, b, m, body.constant(0.61)], (n, h, w, c), "uint8", terms=2, mode="float",
        term_zero_points=[128, 3], zero_point=9, lo=9, hi=255, out_dtype="uint8",
    )  # fmt: skip
    halos = {name: _halo(data, 4) for name in (a, b, out)}
    arrays = [random(rng, (n, h, w, c), "uint8") for _ in range(2)]
    arrays += [rng.uniform(0, 1, c).astype("float32")] if per_channel else []
    fill = {out: 9} if any(p != (0, 0) for p in halos[out]) else {}
    check(pointwise.emit, body.graph(out), arrays, isa, halos=halos, fill=fill)


@every_level
def test_several_outputs_of_several_shapes(isa: Isa) -> None:
    rng = np.random.default_rng(1)
    body = Body()
    x, y = body.input((3, 19)), body.input((19,))
    one = body.node("exp", [y], (19,))
    two = body.node("add", [x, one], (3, 19))
    three = body.node("less", [x, one], (3, 19), "bool")
    arrays = [random(rng, (3, 19), "float32"), random(rng, (19,), "float32")]
    check(pointwise.emit, body.graph(one, two, three), arrays, isa, rtol=1e-6)


@every_level
@pytest.mark.parametrize(
    "source, target", [("int32", "uint8"), ("int32", "int16"), ("int16", "int8"), ("int64", "int8")]
)
@pytest.mark.parametrize("rest", [1, 2])
def test_narrowing_in_the_last_lanes(isa: Isa, source: str, target: str, rest: int) -> None:
    """LLVM widens the masked store of one narrowed lane unless it is kept from it: the guard zone would be hit."""
    body = Body()
    x = body.input((64 + rest,), source)
    out = body.node("astype", [x], (64 + rest,), target)
    check(pointwise.emit, body.graph(out), [np.arange(64 + rest).astype(source) % 100], isa)


@every_level
def test_scalars(isa: Isa) -> None:
    body = Body()
    x = body.input(())
    out = body.node("tanh", [body.node("add", [x, body.constant(1)], ())], ())
    check(pointwise.emit, body.graph(out), [np.float32(0.3).reshape(())], isa, rtol=1e-6)


@every_level
def test_a_number_of_more_dimensions_than_are_left(isa: Isa) -> None:
    """All four dimensions are joined into one; the number still has its three."""
    body, shape = Body(), (2, 3, 4, 5)
    x = body.input(shape)
    out = body.node("multiply", [x, body.constant(0.25, shape=(1, 1, 1))], shape)
    check(pointwise.emit, body.graph(out), [np.arange(120, dtype=np.float32).reshape(shape)], isa)


@pytest.mark.parametrize("size", [0, 1])
def test_empty(size: int) -> None:
    body = Body()
    x = body.input((symbolic("n"), 5))
    out = body.node("nn.relu", [x], body.inputs[0].shape)
    check(pointwise.emit, body.graph(out), [np.full((size, 5), -1, "float32")], LEVELS[0])


# --- Data movement ----------------------------------------------------------------------------------------------------


def _wrapped(body: Body, x: str, y_of: object, shape: Sequence[int], out: Sequence[int], dtype: str) -> str:
    """Something computed before and after a movement: x + x, moved, then negated (floats and integers alike)."""
    before = body.node("add", [x, x], shape, dtype)
    moved = y_of(before)  # type: ignore[operator]
    return body.node("bitwise_not" if dtype != "float32" else "negative", [moved], out, dtype)


def _moving(data: st.DataObject, shape: Sequence[int], out: Sequence[int], op: str, /, **attrs: object) -> None:
    dtype = data.draw(st.sampled_from(["float32", "uint8", "int64"]))
    isa, plain = data.draw(levels), data.draw(st.booleans())
    body = Body()
    x = body.input(shape, dtype)

    def move(name: str) -> str:
        return body.node(op, [name], out, dtype, **attrs)

    result = move(x) if plain else _wrapped(body, x, move, shape, out, dtype)
    halos = {x: _halo(data, len(shape)), result: _halo(data, len(out))}
    check(pointwise.emit, body.graph(result), [random(_rng(data), shape, dtype)], isa, halos=halos)


shapes = st.lists(extents, min_size=1, max_size=4).filter(lambda s: int(np.prod(s)) < 5000)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_transpose(data: st.DataObject) -> None:
    shape = data.draw(shapes)
    axes = data.draw(st.permutations(range(len(shape))))
    _moving(data, shape, [shape[a] for a in axes], "permute_dims", axes=list(axes))


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_transpose_among_operators(data: st.DataObject) -> None:
    """Channels first in, quantised channels last with a halo out; a bias a channel, a table, a symbolic extent."""
    rng, isa = _rng(data), data.draw(levels)
    n, c, h, w = (data.draw(st.integers(1, k)) for k in (2, 36, 6, 20))
    batch, wide = (symbolic("n"), symbolic("w")) if data.draw(st.booleans()) else (n, w)
    body = Body()
    x, bias, table = body.input((batch, c, h, wide)), body.input((c,)), body.input((256,), "uint8")
    scale, zero = body.constant(0.125), body.constant(100, "uint8")
    before = body.node("nn.relu", [x], (batch, c, h, wide))
    out = (batch, h, wide, c)
    turned = body.node("permute_dims", [before], out, axes=[0, 2, 3, 1])
    added = body.node("add", [turned, bias], out)
    q = body.node("dlc.quantize", [added, scale, zero], out, "uint8", axis=0, out_dtype="uint8")
    result = body.node("dlc.table", [q, table], out, "uint8")
    outputs = [result, body.node("less", [turned, bias], out, "bool")] if data.draw(st.booleans()) else [result]
    arrays = [random(rng, (n, c, h, w), "float32"), random(rng, (c,), "float32"), random(rng, (256,), "uint8")]
    check(pointwise.emit, body.graph(*outputs), arrays, isa, halos={result: _halo(data, 4)})


@pytest.mark.parametrize("dtype", ["bool", "float16", "int16", "float64"])
@every_level
def test_transposed_types(isa: Isa, dtype: str) -> None:
    body = Body()
    out = body.node("permute_dims", [body.input((37, 3, 18), dtype)], (18, 37, 3), dtype, axes=[2, 0, 1])
    other = body.node("permute_dims", [body.inputs[0].name], (18, 3, 37), dtype, axes=[2, 1, 0])
    arrays = [random(np.random.default_rng(0), (37, 3, 18), dtype)]
    for result in (out, other):
        graph = body.graph(result)
        graph = replace(graph, nodes=tuple(n for n in graph.nodes if n.output.name == result))
        check(pointwise.emit, graph, arrays, isa)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "uint8", "bool", "float64"])
@pytest.mark.parametrize("known", [True, False])
@every_level
def test_pictures_of_few_colours(isa: Isa, known: bool, dtype: str) -> None:
    """Columns of up to four colours are stored as one piece, whatever halo the lines have."""
    for colours, width in ((1, 40), (2, 16), (3, 37), (4, 64), (5, 33)):
        wide, body = width if known else symbolic("w"), Body()
        x = body.input((2, colours, 3, wide), dtype)
        result = body.node("permute_dims", [x], (2, 3, wide, colours), dtype, axes=[0, 2, 3, 1])
        arrays = [random(np.random.default_rng(width), (2, colours, 3, width), dtype)]
        halos = {x: [(0, 0), (0, 0), (1, 0), (2, 1)], result: [(0, 0), (1, 2), (3, 1), (0, 0)]}
        check(pointwise.emit, body.graph(result), arrays, isa, halos=halos)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_reshape(data: st.DataObject) -> None:
    factors = data.draw(st.lists(st.sampled_from([1, 2, 3, 4, 5, 7, 16]), min_size=1, max_size=5))

    def split() -> list[int]:
        cut = sorted(data.draw(st.lists(st.integers(0, len(factors)), max_size=3)))
        bounds = [0, *cut, len(factors)]
        return [int(np.prod(factors[a:b], dtype=int)) for a, b in pairwise(bounds)]

    out = split()
    _moving(data, split(), out, "reshape", shape=out)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_slice(data: st.DataObject) -> None:
    shape = data.draw(shapes)
    axes, begin, end, strides, out = [], [], [], [], list(shape)
    for axis, extent in enumerate(shape):
        if not data.draw(st.booleans()):
            continue
        stride = data.draw(st.sampled_from([1, 1, 2, 3, -1, -2]))
        first = data.draw(st.integers(0, extent - 1))
        last = data.draw(st.integers(first, extent - 1)) if stride > 0 else data.draw(st.integers(0, first))
        axes.append(axis)
        begin.append(first)
        end.append(last + 1 if stride > 0 else last - 1)
        strides.append(stride)
        out[axis] = abs(last - first) // abs(stride) + 1
    _moving(data, shape, out, "strided_slice", axes=axes, begin=begin, end=end, strides=strides)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_pad(data: st.DataObject) -> None:
    shape = data.draw(shapes)
    mode = data.draw(st.sampled_from(["constant", "constant", "edge", "reflect", "symmetric", "wrap"]))
    widths = []
    for extent in shape:
        most = 3 if mode in ("constant", "edge") else extent - 1 if mode == "reflect" else extent
        widths += [data.draw(st.integers(0, min(3, most))) for _ in range(2)]
    out = [n + widths[2 * i] + widths[2 * i + 1] for i, n in enumerate(shape)]
    _moving(data, shape, out, "nn.pad", pad_width=widths, mode=mode, value=2.0)


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_broadcast_to(data: st.DataObject) -> None:
    out = data.draw(shapes)
    own = [n if data.draw(st.booleans()) else 1 for n in out][data.draw(st.integers(0, len(out))) :]
    _moving(data, own, out, "broadcast_to", shape=out)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_concat(data: st.DataObject) -> None:
    rng, isa, shape = _rng(data), data.draw(levels), data.draw(shapes)
    dtype = data.draw(st.sampled_from(["float32", "uint8", "bool"]))
    axis = data.draw(st.integers(0, len(shape) - 1))
    parts = data.draw(st.lists(st.integers(1, 25), min_size=1, max_size=4))
    body = Body()
    pieces = [body.input([*shape[:axis], n, *shape[axis + 1 :]], dtype) for n in parts]
    out_shape = [*shape[:axis], sum(parts), *shape[axis + 1 :]]
    inner = pieces
    if data.draw(st.booleans()) and dtype == "float32":
        inner = [body.node("nn.relu", [p], v.shape) for p, v in zip(pieces, body.inputs, strict=True)]
    out = body.node("concat", inner, out_shape, dtype, axis=axis - len(shape) * data.draw(st.booleans()))
    if data.draw(st.booleans()):
        out = body.node("astype", [out], out_shape, "float64")
    elif dtype == "float32" and data.draw(st.booleans()):
        other = body.input([n if data.draw(st.booleans()) else 1 for n in out_shape])
        out = body.node("add", [body.node("multiply", [out, out], out_shape), other], out_shape)
    halos = {n: _halo(data, len(shape)) for n in (*pieces, out)}
    arrays = [random(rng, v.shape, dtype) for v in body.inputs]
    check(pointwise.emit, body.graph(out), arrays, isa, halos=halos)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_take(data: st.DataObject) -> None:
    rng, isa, shape = _rng(data), data.draw(levels), data.draw(shapes)
    axis = data.draw(st.integers(0, len(shape) - 1))
    where = data.draw(st.lists(st.integers(1, 9), min_size=0, max_size=2))
    kind = data.draw(st.sampled_from(["int32", "int64"]))
    body = Body()
    x, i = body.input(shape), body.input(where, kind)
    out_shape = [*shape[:axis], *where, *shape[axis + 1 :]]
    out = body.node("take", [x, i], out_shape, axis=axis)
    if out_shape and data.draw(st.booleans()):
        out = body.node("negative", [out], out_shape)
    index = rng.integers(-shape[axis], shape[axis], where).astype(kind)
    halos = {x: _halo(data, len(shape))}
    check(pointwise.emit, body.graph(out), [random(rng, shape, "float32"), np.asarray(index)], isa, halos=halos)


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_gather_elements(data: st.DataObject) -> None:
    rng, isa, shape = _rng(data), data.draw(levels), data.draw(shapes)
    axis = data.draw(st.integers(0, len(shape) - 1))
    out_shape = [*shape[:axis], data.draw(st.integers(1, 20)), *shape[axis + 1 :]]
    body = Body()
    x, i = body.input(shape), body.input(out_shape, "int64")
    out = body.node("gather_elements", [x, i], out_shape, axis=axis)
    index = rng.integers(-shape[axis], shape[axis], out_shape)
    check(pointwise.emit, body.graph(out), [random(rng, shape, "float32"), index], isa)


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_movements_in_a_row(data: st.DataObject) -> None:
    """Two or three movements of a computed value: the evaluator follows one index through all."""
    rng, isa = _rng(data), data.draw(levels)
    shape = data.draw(st.lists(st.integers(1, 12), min_size=2, max_size=3))
    body = Body()
    given_shape = tuple(shape)
    value = body.node("exp", [body.input(shape)], shape)
    for _ in range(data.draw(st.integers(2, 3))):
        kind = data.draw(st.sampled_from(["permute", "pad", "flip", "reshape"]))
        if kind == "permute":
            axes = data.draw(st.permutations(range(len(shape))))
            shape = [shape[a] for a in axes]
            value = body.node("permute_dims", [value], shape, axes=list(axes))
        elif kind == "pad":
            shape = [n + 2 for n in shape]
            value = body.node("nn.pad", [value], shape, pad_width=[1, 1] * len(shape), mode="constant", value=7.0)
        elif kind == "flip":
            begin, end = [shape[0] - 1], [-1]
            value = body.node("strided_slice", [value], shape, axes=[0], begin=begin, end=end, strides=[-1])
        else:
            shape = [shape[0] * shape[1], *shape[2:], 1]
            value = body.node("reshape", [value], shape, shape=list(shape))
    check(pointwise.emit, body.graph(value), [random(rng, given_shape, "float32")], isa, rtol=1e-6)


@every_level
def test_reversed_rows_of_another_shape(isa: Isa) -> None:
    """TVM divides what falls with the loop's variable wrongly; one element a row, so that no level uses vectors."""
    body = Body()
    value = body.node("exp", [body.input((2, 2))], (2, 2))
    value = body.node("reshape", [value], (4, 1), shape=[4, 1])
    value = body.node("strided_slice", [value], (4, 1), axes=[0], begin=[3], end=[-1], strides=[-1])
    given = np.random.default_rng(0).standard_normal((2, 2), "float32")
    check(pointwise.emit, body.graph(value), [given], isa, rtol=1e-6)


@every_level
def test_a_vector_that_begins_before_its_row(isa: Isa) -> None:
    """The first lane of a padded row is padding: it must not decide which row the others are read from."""
    body = Body()
    value = body.node("exp", [body.input((3, 20))], (3, 20))
    value = body.node("strided_slice", [value], (3, 20), axes=[0], begin=[2], end=[-1], strides=[-1])
    value = body.node("reshape", [value], (60, 1), shape=[60, 1])
    value = body.node("nn.pad", [value], (62, 3), pad_width=[1, 1, 1, 1], mode="constant", value=7.0)
    given = np.random.default_rng(0).standard_normal((3, 20), "float32")
    check(pointwise.emit, body.graph(value), [given], isa, rtol=1e-6)


@every_level
def test_symbolic_movement(isa: Isa) -> None:
    rng, n = np.random.default_rng(3), symbolic("n")
    body = Body()
    x, y = body.input((n, 5, 7)), body.input((n, 2, 7))
    joined = body.node("concat", [x, y], (n, 7, 7), axis=1)
    turned = body.node("permute_dims", [joined], (7, n, 7), axes=[1, 0, 2])
    padded = body.node("nn.pad", [turned], (7, n + 3, 7), pad_width=[0, 0, 1, 2, 0, 0], mode="constant", value=1.0)
    flipped = body.node("permute_dims", [x], (5, 7, n), axes=[1, 2, 0])
    for size in (1, 4, 37):
        arrays = [random(rng, (size, 5, 7), "float32"), random(rng, (size, 2, 7), "float32")]
        check(pointwise.emit, body.graph(padded, flipped), arrays, isa)


# --- Halos and refusals -----------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_fill_halo(data: st.DataObject) -> None:
    rank = data.draw(st.integers(1, 5))
    shape = [data.draw(st.integers(1, 6)) for _ in range(rank - 1)] + [data.draw(st.integers(1, 70))]
    halo = [data.draw(st.tuples(st.integers(0, 3), st.integers(0, 3))) for _ in range(rank)]
    dtype, value = data.draw(st.sampled_from([("float32", 0.0), ("uint8", 128), ("float16", 1.5), ("int8", -3)]))
    variable = symbolic("n")
    isa = data.draw(levels)
    layout = Layout.padded([variable, *shape[1:]] if data.draw(st.booleans()) else shape, halo)
    dims = [] if isinstance(layout.shape[0], int) else [variable]
    with kernel("halo", [("y", dtype, layout)], dims) as k:
        fill_halo(k.operands[0], value)
    full = [n + b + a for n, (b, a) in zip(shape, halo, strict=True)]
    before = random(np.random.default_rng(0), full, dtype)
    (after,) = Compiled(k.func, isa, 1, len(dims)).run([before], [shape[0]] * len(dims))
    inside = tuple(slice(b, b + n) for (b, _), n in zip(halo, shape, strict=True))
    expected = np.full(full, value, dtype)
    expected[inside] = before[inside]
    np.testing.assert_array_equal(after, expected)


def test_declines() -> None:
    body = Body()
    x = body.input((4, 4))
    good = body.node("add", [x, body.constant(1)], (4, 4))
    assert pointwise.declines(body.graph(good)) is None
    bad = body.node("sum", [good], (4,), axes=[1], keepdims=False)
    assert "relax.sum" in str(pointwise.declines(body.graph(bad)))
    other = Body()
    y = other.input((4, 4))
    out = other.node("add", [y, other.constant(1, shape=(4,))], (4, 4))
    assert "more than one element" in str(pointwise.declines(other.graph(out)))
