"""DynamicQuantizeLSTM against onnxruntime: the same codes, so the same floats but for their last places."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import dlc
from dlc.errors import DlcError
from dlc.explain import read

INPUT, HIDDEN = 5, 16
PLACES = ["x", "w", "r", "b", "lengths", "h", "c", "p", "ws", "wz", "rs", "rz"]


def _weights(rng: np.random.Generator, directions: int, dtype: Any, columns: bool, zero: int) -> dict[str, Any]:
    """Codes, scales and zero points; 7 bits, because onnxruntime's products saturate on plain AVX2."""
    made: dict[str, Any] = {}
    rows = {"w": INPUT, "r": HIDDEN}
    for name, depth in rows.items():
        low = 0 if dtype is np.uint8 else -64
        made[name] = rng.integers(low, low + 128, (directions, depth, 4 * HIDDEN)).astype(dtype)
        shape = (directions, 4 * HIDDEN) if columns else (directions,)
        made[f"{name}s"] = rng.uniform(0.004, 0.02, shape).astype(np.float32)
        made[f"{name}z"] = np.full(shape, zero, dtype)
    return made


def _model(feed: dict[str, np.ndarray], constants: dict[str, np.ndarray], **attributes: Any) -> onnx.ModelProto:
    """One node; dimensions of time and batch are symbols."""
    extents = {"x": ["t", "n", INPUT], "lengths": ["n"]}
    kinds = {"x": TensorProto.FLOAT, "lengths": TensorProto.INT32}
    inputs = []
    for name, array in feed.items():
        shape = extents.get(name, [array.shape[0], "n", HIDDEN])
        inputs.append(helper.make_tensor_value_info(name, kinds.get(name, TensorProto.FLOAT), shape))
    known = {*feed, *constants}
    names = [n if n in known else "" for n in PLACES]
    node = helper.make_node(
        "DynamicQuantizeLSTM", names, ["y", "last", "memory"], "cell", domain="com.microsoft", hidden_size=HIDDEN,
        **attributes,
    )  # fmt: skip
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * 4)]
    outputs += [helper.make_tensor_value_info(n, TensorProto.FLOAT, [None] * 3) for n in ("last", "memory")]
    tensors = [numpy_helper.from_array(a, n) for n, a in constants.items()]
    graph = helper.make_graph([node], "g", inputs, outputs, tensors)
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def _peer(model: onnx.ModelProto, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # with more it quantises the rows of each thread apart
    peer = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip((o.name for o in peer.get_outputs()), peer.run(None, feed), strict=True))


def _hold(model: onnx.ModelProto, feed: dict[str, np.ndarray], target: str = "reference") -> dlc.Package:
    package = dlc.compile(model, target=target)
    actual = dlc.load(package).run(feed)
    for name, wanted in _peer(model, feed).items():
        np.testing.assert_allclose(actual[name], wanted, rtol=1e-5, atol=1e-5, err_msg=name)
    return package


def _floats(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize(("dtype", "zero"), [(np.int8, 0), (np.uint8, 128), (np.uint8, 61)])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_directions_and_kinds_of_weights(direction: str, dtype: Any, zero: int, columns: bool) -> None:
    rng = np.random.default_rng(zero + columns)
    directions = 2 if direction == "bidirectional" else 1
    constants = _weights(rng, directions, dtype, columns, zero)
    constants["b"] = 0.1 * _floats(rng, directions, 8 * HIDDEN)
    feed = {"x": _floats(rng, 7, 3, INPUT)}
    feed |= {name: 0.5 * _floats(rng, directions, 3, HIDDEN) for name in ("h", "c")}
    _hold(_model(feed, constants, direction=direction), feed)


@pytest.mark.parametrize("lengths", [[7, 2, 5], [4, 0, 3]])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_sequences_of_different_lengths(direction: str, lengths: list[int]) -> None:
    """What one sequence's end does to the codes of the others is part of the operator's meaning."""
    rng = np.random.default_rng(sum(lengths))
    directions = 2 if direction == "bidirectional" else 1
    constants = _weights(rng, directions, np.int8, False, 0)
    feed = {"x": 3 * _floats(rng, 7, 3, INPUT), "lengths": np.array(lengths, np.int32)}
    _hold(_model(feed, constants, direction=direction), feed)


def test_peepholes_and_functions() -> None:
    rng = np.random.default_rng(3)
    constants = _weights(rng, 1, np.int8, True, 0)
    constants["p"] = _floats(rng, 1, 3 * HIDDEN)
    feed = {"x": _floats(rng, 4, 2, INPUT)}
    _hold(_model(feed, constants, activations=["HardSigmoid", "Tanh", "Relu"], clip=0.9), feed)


def test_any_length_and_batch_in_bytes_from_one_package() -> None:
    rng = np.random.default_rng(4)
    constants = _weights(rng, 2, np.int8, False, 0)
    model = _model({"x": np.zeros((1, 1, INPUT), np.float32)}, constants, direction="bidirectional")
    package = dlc.compile(model)
    session = dlc.load(package)
    for steps, batch in ((1, 1), (9, 2), (30, 4)):
        feed = {"x": _floats(rng, steps, batch, INPUT)}
        actual = session.run(feed)
        for name, wanted in _peer(model, feed).items():
            np.testing.assert_allclose(actual[name], wanted, rtol=1e-5, atol=1e-5, err_msg=name)
    products = [row for row in read(package).nodes if row["kernel"].startswith("GEMM")]
    assert len(products) == 4
    assert all(row["precision"] == "int8" and not row["why_not_better"] for row in products), products


def test_wrong_weights_are_named() -> None:
    rng = np.random.default_rng(5)
    constants = _weights(rng, 1, np.uint8, True, 128)
    constants["wz"][0, 3] = 7
    feed = {"x": _floats(rng, 2, 1, INPUT)}
    with pytest.raises(DlcError, match=r"node 'cell' \(com.microsoft.DynamicQuantizeLSTM\): zero points that differ"):
        dlc.compile(_model(feed, constants))
    constants = _weights(rng, 1, np.int8, False, 0)
    constants["w"] = constants["w"][:, :, 1:]
    with pytest.raises(DlcError, match="weights of 63 columns, expected 4 gates of 16"):
        dlc.compile(_model(feed, constants))
