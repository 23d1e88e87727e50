"""Plain-loop contractions against the interpreter: pairs of types, shapes, zero points, groups, halos, epilogues."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from anchored_cases import LEVELS, Body, run_region
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dlc.ir.ops import OPS
from dlc.targets.cpu.kernels import contract_plain

TYPES = (
    ("uint8", "uint8", "int32"), ("int8", "int8", "int32"), ("int8", "uint8", "int32"), ("int16", "int8", "int32"),
    ("int32", "int32", "int32"), ("int64", "int64", "int64"), ("uint32", "uint32", "uint32"),
    ("uint64", "uint64", "uint64"), ("float32", "float32", "float32"), ("float64", "float64", "float64"),
    ("float16", "float16", "float16"), ("bfloat16", "bfloat16", "bfloat16"), ("float32", "bfloat16", "float32"),
)  # fmt: skip
BOUND = {"float32": 2.0**-24, "float64": 2.0**-53, "float16": 2.0**-11, "bfloat16": 2.0**-8}


def data(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    if "float" in dtype:
        return rng.standard_normal(shape).astype(dtype)
    info = np.iinfo(dtype)
    return rng.integers(max(info.min, -3000), min(info.max, 3000), shape, endpoint=True).astype(dtype)


def check(
    op: str, types: tuple[str, str, str], arrays: list[np.ndarray], attrs: dict[str, Any], **options: Any
) -> None:
    attrs = {**attrs, "out_dtype": types[2]}
    with np.errstate(all="ignore"):
        shape = np.asarray(OPS[op].meaning(arrays, attrs)).shape
    body = Body()
    names = [body.input(a.shape, str(a.dtype)) for a in arrays]
    result = body.node(op, names, shape, types[2], **attrs)
    if types[2] in ("int32", "float32"):
        body.node("relax.maximum", [result, body.constant(-5, types[2])], shape, types[2])
    got, wanted = run_region(contract_plain, body.graph(), arrays, LEVELS[0], **options)
    if types[2] not in BOUND:
        np.testing.assert_array_equal(got, wanted)
        return
    sizes = [np.abs(a.astype("float64")) for a in arrays]
    magnitude = OPS[op].meaning(sizes, {**attrs, "out_dtype": "float64"})
    depth = arrays[1].size // arrays[1].shape[0] if op == "dlc.conv" else arrays[0].shape[-1]
    working = BOUND[types[2]] if types[2] == "float64" else BOUND["float32"]
    bound = (2 * depth * working + 2 * BOUND[types[2]]) * magnitude
    assert np.all(np.abs(got.astype("float64") - wanted.astype("float64")) <= bound + 1e-300)


@pytest.mark.parametrize("types", TYPES, ids="-".join)
@pytest.mark.parametrize(
    ("a", "w"),
    [((3, 5, 7), (3, 7, 19)), ((7,), (7, 3)), ((2, 3, 7), (7,)), ((2, 1, 6, 7), (3, 7, 9)), ((7,), (7,))],
    ids=str,
)
def test_matmul(types: tuple[str, str, str], a: tuple[int, ...], w: tuple[int, ...]) -> None:
    rng = np.random.default_rng(len(a) * 7 + len(w))
    zeros = {} if "float" in types[0] or types[0] not in ("uint8", "int8") else {"a_zero_point": 3, "b_zero_point": -7}
    check("dlc.matmul", types, [data(rng, a, types[0]), data(rng, w, types[1])], zeros)


CONVOLUTIONS = st.fixed_dictionaries(
    {
        "types": st.sampled_from(TYPES), "seed": st.integers(0, 2**16), "groups": st.sampled_from([1, 2, 3]),
        "depth": st.integers(1, 3), "outputs": st.sampled_from([1, 3, 9]), "kernel": st.lists(st.integers(1, 3),
        min_size=1, max_size=3), "stride": st.integers(1, 2), "dilation": st.integers(1, 2),
        "pad": st.integers(0, 1), "room": st.integers(0, 4),
    }
)  # fmt: skip


@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(CONVOLUTIONS)
def test_conv(case: dict[str, Any]) -> None:
    rng, types, groups, kernel = np.random.default_rng(case["seed"]), case["types"], case["groups"], case["kernel"]
    rank = len(kernel)
    spatial = [case["dilation"] * (k - 1) + 1 + case["room"] for k in kernel]
    x = data(rng, (2, *spatial, groups * case["depth"]), types[0])
    w = data(rng, (groups * case["outputs"], case["depth"], *kernel), types[1])
    zero = 5 if types[0] in ("uint8", "int8") else 0
    attrs = {
        "strides": (case["stride"],) * rank, "dilations": (case["dilation"],) * rank, "groups": groups,
        "pads": (case["pad"],) * (2 * rank), "layout": "channels_last", **({"x_zero_point": zero} if zero else {}),
    }  # fmt: skip
    padded = [(0, 0), *[(case["pad"], case["pad"])] * rank, (0, 0)]
    memory = np.pad(x, padded, constant_values=np.asarray(zero, x.dtype)) if case["pad"] else None
    if memory is None:
        check("dlc.conv", types, [x, w], attrs)
    else:  # the kernel reads the padding from memory: here, as elements of a larger input
        check("dlc.conv", types, [memory, w], {**attrs, "pads": (0,) * (2 * rank)})
