"""Pooling against the interpreter: modes, types, windows, borders, remainders, halos, symbolic batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from anchored_cases import EPSILON, LEVELS, Body, batch_symbol, run_region
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dlc.ir.ops.pool import POOL
from dlc.targets.cpu.isa import Isa
from dlc.targets.cpu.kernels import pool

FORMS = [
    ("float32", "max", "float32"), ("float32", "average", "float32"), ("float32", "sum", "float32"),
    ("uint8", "max", "uint8"), ("uint8", "sum", "int32"), ("uint8", "average", "float32"), ("int8", "max", "int8"),
    ("float16", "max", "float16"),
]  # fmt: skip


def fitted(case: dict[str, Any], rank: int) -> dict[str, Any]:
    """The case's numbers cut to `rank`, the input large enough for one window."""
    kernel, dilations = case["kernel"][:rank], case["dilations"][:rank]
    pads = [*case["begins"][:rank], *case["ends"][:rank]]
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    spatial = [
        max(n, r - pads[i] - pads[rank + i], 1)
        for i, (n, r) in enumerate(zip(case["spatial"][:rank], reach, strict=True))
    ]
    attrs = {"kernel": kernel, "strides": case["strides"][:rank], "pads": pads, "dilations": dilations}
    attrs |= {"ceil_mode": case["ceil_mode"], "count_include_pad": case["count_include_pad"]}
    return {"spatial": spatial, "attrs": {k: tuple(v) if isinstance(v, list) else v for k, v in attrs.items()}}


def data(rng: np.random.Generator, shape: tuple[int, ...], dtype: str, mode: str) -> np.ndarray:
    if not dtype.startswith("float"):
        return rng.integers(np.iinfo(dtype).min, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)
    x = rng.standard_normal(shape).astype(dtype)
    if mode == "max":
        x[rng.random(shape) < 0.01] = np.nan
        x[rng.random(shape) < 0.1] = -np.inf
    return x


def check(case: dict[str, Any], isa: Isa) -> None:
    rng, rank = np.random.default_rng(case["seed"]), case["rank"]
    dtype, mode, out_dtype = case["form"]
    fit = fitted(case, rank)
    shape = (case["batch"], *fit["spatial"], case["channels"])
    attrs = {**fit["attrs"], "mode": mode, "layout": "channels_last", "out_dtype": out_dtype}
    attrs |= {"x_zero_point": 7} if out_dtype == "int32" else {}
    full = (batch_symbol(), *shape[1:]) if case["dynamic"] else shape
    out, _ = POOL.infer([(full, dtype)], attrs)  # type: ignore[misc]
    body = Body()
    y = body.node("dlc.pool", [body.input(full, dtype)], out, out_dtype, **attrs)
    if case["relu"]:
        y = body.node("relax.nn.relu", [y], out, out_dtype)
    halo = [(0, 0), *[(1, 2)] * rank, (0, 0)]
    x = data(rng, shape, dtype, mode)
    got, wanted = run_region(pool, body.graph(), [x], isa, {"i0": halo, y: halo}, 3, wide=mode != "max")
    if mode == "max" or out_dtype == "int32":
        np.testing.assert_array_equal(got, wanted)
        return
    # The interpreter's own average of magnitudes; one rounding an addition, and one of the quotient.
    taps = int(np.prod(fit["attrs"]["kernel"]))
    size = POOL.meaning([np.abs(x.astype("float64"))], {**attrs, "out_dtype": "float64"})
    with np.errstate(invalid="ignore"):
        close = np.abs(got - wanted) <= (taps + 1) * EPSILON / 2 * size
    assert np.all(close | (np.isnan(got) & np.isnan(wanted)))


THREE = {"min_size": 3, "max_size": 3}
CASES = st.fixed_dictionaries(
    {
        "form": st.sampled_from(FORMS),
        "rank": st.sampled_from([2, 2, 1, 3]),
        "spatial": st.lists(st.integers(1, 9), **THREE),
        "kernel": st.lists(st.integers(1, 4), **THREE),
        "strides": st.lists(st.integers(1, 3), **THREE),
        "dilations": st.lists(st.sampled_from([1, 1, 2]), **THREE),
        "begins": st.lists(st.integers(0, 2), **THREE),
        "ends": st.lists(st.integers(0, 2), **THREE),
        "ceil_mode": st.sampled_from([0, 1]),
        "count_include_pad": st.sampled_from([0, 1]),
        "batch": st.integers(1, 2),
        "channels": st.integers(1, 150),
        "relu": st.booleans(),
        "dynamic": st.booleans(),
        "seed": st.integers(0, 1000),
    }
)


@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(level=st.sampled_from(range(len(LEVELS))), case=CASES)
def test_pool(level: int, case: dict[str, Any]) -> None:
    check(case, LEVELS[level])


def _global(shape: tuple[Any, ...], dtype: str, **attrs: Any) -> tuple[Body, str, dict[str, Any]]:
    rank = len(shape) - 2
    attrs = {
        "kernel": tuple(shape[1:-1]), "strides": (1,) * rank, "pads": (0,) * 2 * rank, "dilations": (1,) * rank,
        "ceil_mode": 0, "count_include_pad": 0, "layout": "channels_last", **attrs,
    }  # fmt: skip
    body = Body()
    out = (shape[0], *(1,) * rank, shape[-1])
    return body, body.node("dlc.pool", [body.input(shape, dtype)], out, attrs["out_dtype"], **attrs), attrs


@pytest.mark.parametrize("isa", LEVELS, ids=lambda isa: isa.name)
def test_global_average_in_integers(isa: Isa) -> None:
    shape = (batch_symbol(), 9, 9, 70)
    body, total, _ = _global(shape, "uint8", mode="sum", out_dtype="int32", x_zero_point=11)
    body.node(
        "dlc.requantize", [total, body.constant(0.0123, "float32")], (shape[0], 1, 1, 70), "uint8", terms=1,
        mode="float", term_zero_points=(0,), zero_point=3, lo=0, hi=255, out_dtype="uint8",
    )  # fmt: skip
    q = np.random.default_rng(1).integers(0, 256, (2, 9, 9, 70)).astype("uint8")
    got, wanted = run_region(pool, body.graph(), [q], isa)
    np.testing.assert_array_equal(got, wanted)


def test_symbolic_spatial_extents() -> None:
    side = batch_symbol()
    attrs = {
        "kernel": (3, 2), "strides": (2, 1), "pads": (1, 1, 1, 0), "dilations": (1, 1), "ceil_mode": 0, "mode": "max",
        "count_include_pad": 0, "layout": "channels_last", "out_dtype": "float32",
    }  # fmt: skip
    shape = (side, side, 5, 20)
    out, _ = POOL.infer([(shape, "float32")], attrs)  # type: ignore[misc]
    body = Body()
    body.node("dlc.pool", [body.input(shape, "float32")], out, "float32", **attrs)
    x = np.random.default_rng(0).standard_normal((7, 7, 5, 20)).astype("float32")
    got, wanted = run_region(pool, body.graph(), [x], LEVELS[0])
    np.testing.assert_array_equal(got, wanted)


def test_declines_with_a_reason() -> None:
    body, _, _ = _global((1, 4, 4, 8), "float32", mode="max", out_dtype="float32", layout="channels_first")
    assert "channels_first" in str(pool.declines(body.graph()))
    body, _, _ = _global((1, 4, 4, 8), "int32", mode="average", out_dtype="float32")
    assert "int32" in str(pool.declines(body.graph()))
