"""Depthwise convolution against plain numpy: random shapes, every instruction set, guard zones."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dlc.errors import DlcError
from dlc.hardware import this_machine
from dlc.targets.cpu.isa import GENERIC, Isa, levels_of
from dlc.targets.cpu.kernels.builder import kernel, symbolic
from dlc.targets.cpu.kernels.contract import Schedule
from dlc.targets.cpu.kernels.depthwise import choose_depthwise, depthwise_problem, emit_depthwise, pack_depthwise
from dlc.targets.cpu.kernels.testing import Compiled
from dlc.targets.layout import Layout

FLOAT, SHORT, INTEGER = ("float32", "float32"), ("float32", "bfloat16"), ("uint8", "int8")
# GENERIC, with portable vectors only, runs on every machine.
LEVELS = [*(isa for isa in levels_of(this_machine()) if isa.dot != "amx"), GENERIC]
EPSILON = float(np.finfo("float32").eps)


def reference(x: np.ndarray, w: np.ndarray, strides: Any, dilations: Any, out: Any) -> np.ndarray:
    result = np.zeros((x.shape[0], *out, x.shape[-1]), x.dtype)
    for tap in product(*[range(k) for k in w.shape[2:]]):
        window = tuple(
            slice(t * d, t * d + (o - 1) * s + 1, s) for t, d, s, o in zip(tap, dilations, strides, out, strict=True)
        )
        result += x[(slice(None), *window)] * w[(slice(None), 0, *tap)]
    return result


def run_depthwise(rng: np.random.Generator, isa: Isa, case: dict[str, Any]) -> None:
    taps, dtypes, channels = case["kernel"], case["dtypes"], case["channels"]
    rank, integer = len(taps), case["dtypes"] == INTEGER
    strides, dilations, pads = case["strides"][:rank], case["dilations"][:rank], case["pads"][:rank]
    reach = [(k - 1) * d + 1 for k, d in zip(taps, dilations, strict=True)]
    spatial = [max(s, r - 2 * p) for s, r, p in zip(case["spatial"][:rank], reach, pads, strict=True)]
    out = [(s + 2 * p - r) // t + 1 for s, p, r, t in zip(spatial, pads, reach, strides, strict=True)]
    halo = [(0, 0), *((p, p) for p in pads), (0, 0)]
    padded = (case["batch"], *(s + 2 * p for s, p in zip(spatial, pads, strict=True)), channels)
    a = rng.integers(0, 256, padded).astype("uint8") if integer else rng.standard_normal(padded).astype("float32")
    w_shape = (channels, 1, *taps)
    w = rng.integers(-128, 128, w_shape).astype("int8") if integer else rng.standard_normal(w_shape).astype(dtypes[1])
    acc = "int32" if integer else "float32"
    init = rng.integers(-1000, 1000, channels).astype(acc)
    dims = [symbolic("batch")] if case["dynamic"] else []
    layout = Layout.padded((*(dims or [case["batch"]]), *spatial, channels), halo)
    problem = depthwise_problem(layout, taps, out, strides=strides, pads_begin=pads, dilations=dilations, dtypes=dtypes)
    schedule = choose_depthwise(problem, isa, this_machine()) if case["mr"] == 0 else Schedule(case["mr"], 1)
    packed = pack_depthwise(problem, isa, w)
    operands = [
        ("a", dtypes[0], layout),
        ("w", dtypes[1], Layout.dense(packed.shape)),
        ("b", acc, Layout.dense((channels,))),
        ("o", acc, Layout.dense((layout.shape[0], *out, channels))),
    ]
    with kernel("depthwise", operands, dims) as built:
        x, y, b, o = built.operands
        emit_depthwise(
            problem, schedule, isa, x, y, b,
            lambda outer, row, c, value, lanes, mask: o.store((*outer, row, c), value, lanes, mask),
        )  # fmt: skip
    compiled = Compiled(built.func, isa, 4, len(dims))
    zeros = np.full((case["batch"], *out, channels), -77, acc)
    got = compiled.run([a, packed, init, zeros], [case["batch"]] * len(dims))[3]
    wide = "int64" if integer else "float64"
    wanted = reference(a.astype(wide), w.astype(wide), strides, dilations, out) + init
    if integer:
        np.testing.assert_array_equal(got, wanted)
    else:
        scale = reference(abs(a).astype(wide), abs(w).astype(wide), strides, dilations, out) + abs(init)
        assert np.all(abs(got - wanted) <= (np.prod(taps) + 1) * EPSILON * scale)


CASES = st.fixed_dictionaries(
    {
        "kernel": st.sampled_from([(3,), (9,), (3, 3), (5, 5), (1, 3), (4, 1), (2, 3, 3), (1, 1)]),
        "spatial": st.lists(st.integers(1, 12), min_size=3, max_size=3),
        "strides": st.lists(st.integers(1, 2), min_size=3, max_size=3),
        "dilations": st.lists(st.sampled_from([1, 1, 2]), min_size=3, max_size=3),
        "pads": st.lists(st.integers(0, 2), min_size=3, max_size=3),
        "batch": st.integers(1, 2),
        "channels": st.integers(1, 70),
        "dtypes": st.sampled_from([FLOAT, SHORT, INTEGER]),
        "mr": st.integers(0, 6),
        "dynamic": st.booleans(),
        "seed": st.integers(0, 1000),
    }
)


@settings(max_examples=50, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(level=st.sampled_from(range(len(LEVELS))), case=CASES)
def test_depthwise(level: int, case: dict[str, Any]) -> None:
    run_depthwise(np.random.default_rng(case["seed"]), LEVELS[level], case)


def test_refuses_a_missing_halo() -> None:
    with pytest.raises(DlcError, match="halo"):
        depthwise_problem(
            Layout.dense((1, 8, 8, 4)), (3, 3), (8, 8), strides=(1, 1), pads_begin=(1, 1), dilations=(1, 1)
        )
