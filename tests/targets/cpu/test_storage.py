"""Types that lie in memory as another: every code read, and rounding to them, bit for bit as numpy and ml_dtypes."""

from __future__ import annotations

import ml_dtypes  # noqa: F401  (registers the short types with numpy)
import numpy as np
import pytest

from dlc.targets.cpu.kernels import pointwise
from dlc.targets.cpu.kernels.storage import SHORT_FLOATS
from dlc.targets.cpu.kernels.testing_regions import LEVELS, Body, run_region

FLOATS = sorted(SHORT_FLOATS)
INTEGERS = ("int4", "uint4", "int2", "uint2")


def cast(array: np.ndarray, dtype: str) -> np.ndarray:
    body = Body()
    result = body.node("astype", [body.input(array.shape, str(array.dtype))], array.shape, dtype)
    return run_region(pointwise.emit, body.graph(result), [array], LEVELS[-1])[0]


def every_code(dtype: str) -> np.ndarray:
    kind = np.dtype(dtype)
    bits = 4 if dtype == "float4_e2m1fn" else 8 * kind.itemsize
    return np.arange(2**bits, dtype=f"u{kind.itemsize}").view(kind)


@pytest.mark.parametrize("dtype", FLOATS)
def test_every_float_is_read(dtype: str) -> None:
    codes = every_code(dtype)
    got, wanted = cast(codes, "float32"), codes.astype("float32")
    np.testing.assert_array_equal(got, wanted)
    numbers = ~np.isnan(wanted)
    np.testing.assert_array_equal(np.signbit(got[numbers]), np.signbit(wanted[numbers]))


@pytest.mark.parametrize("source", ["float32", "float64"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_floats_are_rounded_half_to_even(dtype: str, source: str) -> None:
    rng = np.random.default_rng(1)
    codes = rng.permutation(every_code(dtype))[:1024].astype(source)
    finite = np.unique(codes[np.isfinite(codes)])
    ties = (finite[1:] + finite[:-1]) / 2
    wild = np.exp2(rng.uniform(-40, 30, 2000)) * rng.choice([-1, 1], 2000)
    near = [np.nextafter(ties, np.inf), np.nextafter(ties, -np.inf)]
    special = [np.inf, -np.inf, np.nan, 0.0, -0.0, 1e38, -1e-38]
    x = np.concatenate([codes, ties, *near, wild, special]).astype(source)
    with np.errstate(all="ignore"):
        wanted = x.astype(dtype)
    got = cast(x, dtype)
    bits = f"u{wanted.dtype.itemsize}"
    numbers = ~np.isnan(wanted.astype("float32"))
    np.testing.assert_array_equal(got.view(bits)[numbers], wanted.view(bits)[numbers])
    assert np.all(np.isnan(got.astype("float32")[~numbers]))


@pytest.mark.parametrize("source", ["float32", "int32", "int8"])
@pytest.mark.parametrize("dtype", INTEGERS)
def test_short_integers_wrap_around(dtype: str, source: str) -> None:
    x = np.arange(-60, 60).astype(source)
    wanted = x.astype(dtype)
    got = cast(x, dtype)
    np.testing.assert_array_equal(got.view("uint8"), wanted.view("uint8"))
    np.testing.assert_array_equal(cast(wanted, "float32"), wanted.astype("float32"))


def test_short_floats_are_rounded_after_every_operator() -> None:
    """As their meaning is: a fused chain gives what single operators give."""
    rng = np.random.default_rng(2)
    a, b, c = (rng.standard_normal(200).astype("float16") for _ in range(3))
    body = Body()
    names = [body.input((200,), "float16") for _ in range(3)]
    product = body.node("multiply", names[:2], (200,), "float16")
    total = body.node("add", [product, names[2]], (200,), "float16")
    (got,) = run_region(pointwise.emit, body.graph(total), [a, b, c], LEVELS[-1])
    np.testing.assert_array_equal(got, a * b + c)
