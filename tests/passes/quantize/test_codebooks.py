"""Tables that are looked up, in 8 bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import dlc
from dlc.explain import read
from dlc.ir import arithmetic


def _lookup(table: np.ndarray) -> Any:
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "x"], ["found"], "look"), helper.make_node("Neg", ["found"], ["y"])], "g",
        [helper.make_tensor_value_info("x", TensorProto.INT64, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])],
        [numpy_helper.from_array(table, "table")],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("quantize", ["int8-dynamic", "int4"])
def test_targets_agree_and_the_error_is_that_of_eight_bits(quantize: str) -> None:
    rng = np.random.default_rng(0)
    table = np.append(-rng.gamma(2, 1.5, 20_000), -99).astype(np.float32)
    x = np.append(rng.integers(-20_001, 20_001, 500), 20_000)
    results = []
    for target in ("reference", "cpu"):
        package = dlc.compile(_lookup(table), target=target, quantize=quantize)
        results.append(dlc.load(package).run({"x": x})["y"])
    np.testing.assert_array_equal(*results)
    assert results[0][-1] == 99  # a number far from all others has one of its own
    assert np.abs(results[0] + table[x]).max() < 0.8
    assert np.sqrt(np.square(results[0] + table[x]).mean()) < 0.02
    rows = read(package).nodes
    assert [op for row in rows for op in row["fused"]] == ["take", "astype", "take", "negative"]
    assert rows[0]["precision"] == "int8"


def test_small_tables_stay_float() -> None:
    table = np.arange(100, dtype=np.float32)
    rows = read(dlc.compile(_lookup(table), quantize="int8-dynamic")).nodes
    assert [op for row in rows for op in row["fused"]] == ["take", "negative"]


def test_tables_that_are_not_finite_stay_float_and_say_so() -> None:
    table = np.full(5000, np.inf, np.float32)
    (declined,) = read(dlc.compile(_lookup(table), quantize="int8-dynamic")).declined
    assert declined["node"] == "Gather 'look'"
    assert declined["reason"] == "stays float: the table holds NaN or infinity"


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 2**16), st.sampled_from([1, 200, 256, 257, 3000]), st.sampled_from([1e-30, 1.0, 1e30]))
def test_each_value_has_the_nearest_number_of_the_book(seed: int, size: int, unit: float) -> None:
    values = (np.random.default_rng(seed).standard_t(2, size) * unit).astype(np.float32)
    codes, numbers = arithmetic.codebook(values)
    assert 1 <= numbers.size <= 256 and np.all(np.diff(numbers) > 0) and codes.shape == values.shape
    wide = numbers.astype(np.float64)
    nearest = np.abs(values[:, None].astype(np.float64) - wide).min(1)
    assert np.all(np.abs(wide[codes] - values) <= nearest * (1 + 1e-6))
    if np.unique(values).size <= 256:
        np.testing.assert_array_equal(numbers[codes], values)


@pytest.mark.parametrize("values", [np.zeros(0), np.array([1.0, np.nan])])
def test_bad_tables_are_refused(values: np.ndarray) -> None:
    with pytest.raises(ValueError, match="a table must have values, all finite"):
        arithmetic.codebook(values)
