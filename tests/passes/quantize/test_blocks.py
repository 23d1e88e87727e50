"""``--quantize int4``: 4-bit weights with a scale for each 32 of them, the same bits on every target."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import dlc
from dlc.explain import read
from dlc.ir import arithmetic


def _product(weight: np.ndarray, shape: list[int | str]) -> Any:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "product"), helper.make_node("Relu", ["y"], ["z"], "last")], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, [*shape[:-1], weight.shape[1]])],
        [numpy_helper.from_array(weight, "w")],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _both(model: Any, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    sessions = [dlc.load(dlc.compile(model, target=target, quantize="int4")) for target in ("reference", "cpu")]
    return [next(iter(session.run(inputs).values())) for session in sessions]


@pytest.mark.parametrize("shape", [[5, 96], [2, 3, 96], ["n", 3, 96], [1, 96]])
def test_targets_agree_to_the_bit_and_the_error_is_that_of_four_bits(shape: list[int | str]) -> None:
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((96, 200)).astype(np.float32)
    weight[:32] *= 100  # one scale for all 96 would leave nothing of the others
    x = rng.standard_normal([2 if d == "n" else d for d in shape]).astype(np.float32)
    x[..., :32] = 0
    first, second = _both(_product(weight, shape), {"x": x})
    np.testing.assert_array_equal(first, second)
    exact = np.maximum(x.astype(np.float64) @ weight, 0)
    assert np.linalg.norm(second - exact) / np.linalg.norm(exact) < 0.12


def test_explain_says_four_bits_and_why_not() -> None:
    rng = np.random.default_rng(2)
    package = dlc.compile(_product(rng.standard_normal((64, 256)).astype(np.float32), [2, 64]), quantize="int4")
    (row,) = [row for row in read(package).nodes if "block_matmul" in row["fused"]]
    assert row["precision"] == "int4" and row["kernel"].startswith("4-bit GEMM") and not read(package).declined


@pytest.mark.parametrize(
    ("shape", "reason"),
    [((48, 400), "K = 48 is no multiple of 32"),
     ((64, 8), "64 x 8 bytes stay in the nearest cache, half of them would be read no faster")],
)  # fmt: skip
def test_other_products_keep_eight_bits_and_say_why(shape: tuple[int, int], reason: str) -> None:
    weight = np.random.default_rng(2).standard_normal(shape).astype(np.float32)
    package = dlc.compile(_product(weight, [2, shape[0]]), quantize="int4")
    (declined,) = read(package).declined
    assert declined["node"] == "MatMul 'product'" and declined["reason"] == f"8-bit weights: {reason}"
    assert {row["precision"] for row in read(package).nodes if "matmul" in row["fused"]} == {"int8"}


def test_the_package_holds_half_a_byte_a_weight(tmp_path: Path) -> None:
    weight = np.random.default_rng(3).standard_normal((1024, 1024)).astype(np.float32)
    sizes = {}
    for scheme in ("int8-dynamic", "int4"):
        package = dlc.compile(_product(weight, [1, 1024]), target="reference", quantize=scheme)
        package.save(tmp_path / "p.dlc")
        sizes[scheme] = (tmp_path / "p.dlc").stat().st_size
    assert sizes["int4"] < 0.57 * sizes["int8-dynamic"]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 2**16), st.sampled_from([1e-30, 1e-3, 1.0, 1e30]), st.integers(1, 3))
def test_block_scales_are_the_best_of_those_tried(seed: int, size: float, blocks: int) -> None:
    rng = np.random.default_rng(seed)
    weight = (rng.standard_t(3, (blocks * 32, 4)) * size).astype(np.float32)
    weight[:32, 0] = 0
    codes, scales = arithmetic.quantize_blocks(weight, 32)
    assert codes.min() >= -8 and codes.max() <= 7 and scales[0, 0] == 1
    np.testing.assert_array_equal(scales, scales.astype(ml_dtypes.bfloat16).astype(np.float32))
    wide = codes.reshape(blocks, 32, 4).astype(np.float64) * scales[:, None]
    error = np.square(wide - weight.reshape(blocks, 32, 4)).sum(1)
    plain = np.abs(weight).reshape(blocks, 32, 4).max(1, keepdims=True).astype(np.float64) / 7
    plain = plain.astype(ml_dtypes.bfloat16).astype(np.float64)
    plain[plain == 0] = 1
    rounded = np.clip(np.rint(weight.reshape(blocks, 32, 4) / plain), -8, 7) * plain
    assert np.all(error <= np.square(rounded - weight.reshape(blocks, 32, 4)).sum(1) * (1 + 1e-4) + 1e-60)


@pytest.mark.parametrize(
    ("weight", "reason"),
    [(np.full((32, 2), np.inf), "weight must be finite as float32"),
     (np.ones((33, 2)), "K = 33 is no multiple of the block of 32")],
)  # fmt: skip
def test_bad_weights_are_refused(weight: np.ndarray, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        arithmetic.quantize_blocks(weight, 32)
