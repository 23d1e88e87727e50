"""What steps of streaming models are made of: windows of one position, unit extents, concatenations, positions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import tirx

from tests.passes.simplify.test_simplify import Build, ops, same_values, simplified


def slice_of(b: Build, x: Any, axis: int, begin: int, end: int, stride: int = 1) -> Any:
    return b.op("relax.strided_slice", x, axes=(axis,), begin=(begin,), end=(end,), strides=(stride,))


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 2), st.booleans())
def test_a_convolution_of_one_position_is_a_product(kernel: int, dilation: int, batch: int, bias: bool) -> None:
    extent = (kernel - 1) * dilation + 1
    b = Build(batch, 3, extent)
    y = b.conv(b.x, b.normal(4, 3, kernel), (0, 0), strides=(1,), dilations=(dilation,))
    y = b.op("relax.add", y, b.normal(4, 1)) if bias else y
    module = b.finish([b.op("relax.nn.relu", y, name="y")])
    result, _ = simplified(module)
    assert "conv" not in ops(result)
    # The reshape stands behind the activation, so that the product keeps its epilogue.
    assert ops(result)[-2:] == ["nn.relu", "reshape"]
    same_values(module, result, batch, 3, extent)


@pytest.mark.parametrize(
    ("attrs", "shape", "weight", "reason"),
    [
        ({"groups": 3}, (1, 3, 2), (3, 1, 2), "its one window is in groups"),
        ({"pads": (1, 0)}, (1, 3, 1), (4, 3, 2), "its one window is padded"),
    ],
)
def test_other_windows_of_one_position_say_why_they_stay(attrs: Any, shape: Any, weight: Any, reason: str) -> None:
    b = Build(*shape)
    pads = attrs.pop("pads", (0, 0))
    module = b.finish([b.conv(b.x, b.normal(*weight), pads, strides=(1,), dilations=(1,), **attrs)])
    result, context = simplified(module)
    assert "conv" in ops(result)
    assert [d.reason for d in context.declined] == [reason]


def test_unit_extents_move_behind_elementwise_operators_and_slices() -> None:
    b = Build(tirx.Var("N", "int64"), 6)
    y = b.op("relax.reshape", b.x, shape=(b.x.ty.shape.values[0], 6, 1))
    y = b.op("relax.multiply", b.op("relax.add", y, b.normal(6, 1)), np.float32(3))
    y = b.op("relax.permute_dims", slice_of(b, y, 1, 2, 5), axes=(0, 2, 1))
    module = b.finish([b.op("relax.tanh", y, name="y")])
    result, _ = simplified(module)
    assert ops(result) == ["add", "multiply", "strided_slice", "tanh", "reshape"]
    same_values(module, result, 2, 6)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(0, 8), st.integers(1, 9), st.booleans())
def test_a_slice_of_a_concatenation_reads_its_pieces(begin: int, count: int, whole: bool) -> None:
    b = Build(2, 3)
    pieces = [b.x, b.op("relax.tanh", b.x), b.op("relax.exp", b.x)]
    joined = b.op("relax.concat", *pieces, axis=1)
    end = min(begin + count, 9)
    cut = slice_of(b, joined, 1, begin, end)
    module = b.finish([cut, b.op("relax.sin", joined)] if whole else [cut])
    result, _ = simplified(module)
    touched = end - 1 >= 3 * (begin // 3 + 1)
    assert whole or ("concat" in ops(result)) == touched
    same_values(module, result, 2, 3)


def test_a_position_that_cannot_be_negative_is_not_counted_from_the_end() -> None:
    def model(divisor: int) -> Any:
        b = Build(5)
        at = b.op("relax.floor_mod", b.op("relax.astype", b.x, dtype="int64"), np.array(divisor))
        below = b.op("relax.less", at, np.array(0))
        at = b.op("relax.where", below, b.op("relax.add", at, np.array(7)), at)
        return b.finish([b.op("relax.multiply", at, np.array([2]))])

    assert ops(simplified(model(4))[0]) == ["astype", "floor_mod", "multiply"]
    assert "where" in ops(simplified(model(-4))[0])


def test_a_reduction_of_single_elements_moves_nothing() -> None:
    b = Build(4, 1, 3)
    module = b.finish(
        [b.op("relax.max", b.x, axes=(1,), keepdims=False), b.op("relax.sum", b.x, axes=(2,), keepdims=0)]
    )
    result, _ = simplified(module)
    assert ops(result) == ["reshape", "sum"]
    same_values(module, result, 4, 1, 3)
