"""Steps of one code that become one table: the same codes, and only where a table was among them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlc.ir.convert import view
from dlc.ir.rewrite import live_nodes
from dlc.options import Options
from dlc.passes.quantize import join_tables
from dlc.pipeline import Context
from tests.passes.quantize.helpers import Build, run, run_checked

SHAPE = (2, 3, 128)


def joined(build: Callable[[Build, Any], Any]) -> list[str]:
    """The operators behind a quantised input once steps are joined; all codes stay as they were."""
    b = Build()
    x = b.quantize(b.input("x", SHAPE, "float32"), 0.05, 100)
    module = b.finish([build(b, x)])
    result = run_checked(module, [join_tables.PASS], Context(Options()))
    # 768 values that have every code.
    sample = {"x": np.linspace(-6, 9, np.prod(SHAPE), dtype=np.float32).reshape(SHAPE)}
    np.testing.assert_array_equal(run(module, sample)[0], run(result, sample)[0])
    return [node.op.split(".", 1)[1] for node in live_nodes(view(result))][1:]


def table(b: Build, codes: Any, seed: int = 0) -> Any:
    return b.op("dlc.table", codes, np.random.default_rng(seed).integers(0, 256, 256).astype(np.uint8))


def real(b: Build, codes: Any, scale: float, zero: int) -> Any:
    return b.op("dlc.dequantize", codes, np.float32(scale), np.uint8(zero), axis=0, out_dtype="float32")


def gelu(b: Build, x: Any) -> Any:
    """As a quantiser writes it: every operator between a pair of its own, constants quantised too."""
    half = b.op("dlc.dequantize", np.full((1,), 255, np.uint8), np.float32(0.5 / 255), np.uint8(0), axis=0,
                out_dtype="float32")  # fmt: skip
    inner = b.quantize(b.op("relax.multiply", real(b, x, 0.05, 100), np.float32(0.7071)), 0.04, 110)
    one = b.op("relax.add", real(b, table(b, inner), 0.008, 128), np.ones((1, 1, 1), np.float32))
    product = b.op("relax.multiply", real(b, x, 0.05, 100), real(b, b.quantize(one, 0.009, 0), 0.009, 0))
    return b.quantize(b.op("relax.multiply", real(b, b.quantize(product, 0.07, 90), 0.07, 90), half), 0.04, 20)


def test_a_value_that_is_read_at_both_ends() -> None:
    assert joined(gelu) == ["table"]


def two_tables(b: Build, x: Any) -> Any:
    return table(b, table(b, x), 1)


def without_a_table(b: Build, x: Any) -> Any:
    return b.quantize(b.op("relax.nn.relu", real(b, x, 0.05, 100)), 0.04, 0)


def of_two_codes(b: Build, x: Any) -> Any:
    other = b.quantize(b.op("relax.nn.softmax", real(b, x, 0.05, 100), axis=2), 0.01, 0)
    total = b.op("relax.add", real(b, table(b, x), 0.01, 3), real(b, other, 0.01, 0))
    return b.quantize(total, 0.05, 10)


def by_channel(b: Build, x: Any) -> Any:
    scaled = b.op("relax.multiply", real(b, table(b, x), 0.01, 3), b.normal(128))
    return b.quantize(scaled, 0.05, 10)


def wider(b: Build, x: Any) -> Any:
    grown = b.op("relax.add", real(b, table(b, x), 0.01, 3), np.zeros((5, 1, 1, 1), np.float32))
    return b.quantize(grown, 0.05, 10)


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (two_tables, ["table"]),
        (table, ["table"]),
        (without_a_table, ["dequantize", "nn.relu", "quantize"]),
        (
            of_two_codes,
            ["table", "dequantize", "dequantize", "nn.softmax", "quantize", "dequantize", "add", "quantize"],
        ),
        (by_channel, ["table", "dequantize", "multiply", "quantize"]),
        (wider, ["table", "dequantize", "add", "quantize"]),
    ],
)
def test_what_is_joined(build: Callable[[Build, Any], Any], expected: list[str]) -> None:
    assert sorted(joined(build)) == sorted(expected)


STEPS = ("relax.tanh", "relax.abs", "relax.nn.relu", "relax.exp", "table", "square")


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(STEPS), min_size=1, max_size=6), st.floats(0.001, 0.2), st.integers(0, 255))
def test_random_steps(steps: list[str], scale: float, zero: int) -> None:
    def build(b: Build, codes: Any) -> Any:
        for number, step in enumerate(steps):
            if step == "table":
                codes = table(b, codes, number)
                continue
            x = real(b, codes, scale, zero)
            y = b.op("relax.multiply", x, x) if step == "square" else b.op(step, x)
            codes = b.quantize(y, scale, zero)
        return codes

    assert (joined(build) == ["table"]) == ("table" in steps)
