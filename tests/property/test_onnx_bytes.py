"""A model whose bytes were damaged is refused with a DlcError or imported; nothing else may come out."""

from __future__ import annotations

import contextlib
import functools

import numpy as np
import onnx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from dlc.errors import DlcError
from dlc.frontends.onnx import import_model
from tests.frontends.build import model, node
from tests.frontends.test_onnx_graph import with_function


def _convolutional() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    nodes = [
        node("Conv", ["x", "w", "b"], ["c"], "conv", pads=[1, 1, 1, 1]),
        node("Clip", ["c", "low", "high"], ["r"], "clip"),
        node("MaxPool", ["r"], ["p"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        node("Shape", ["p"], ["s"]),
        node("Gather", ["s", "zero"], ["n"]),
        node("Unsqueeze", ["n", "front"], ["n1"]),
        node("Concat", ["n1", "rest"], ["to"], axis=0),
        node("Reshape", ["p", "to"], ["f"], "flatten"),
        node("Gemm", ["f", "g"], ["y"], "head", transB=1),
    ]
    values = {
        "w": rng.standard_normal((2, 1, 3, 3)).astype(np.float32),
        "b": np.zeros(2, np.float32),
        "low": np.float32(0).reshape(()),
        "high": np.float32(6).reshape(()),
        "zero": np.array(0),
        "front": np.array([0]),
        "rest": np.array([-1]),
        "g": rng.standard_normal((3, 8)).astype(np.float32),
    }
    return model(nodes, {"x": ["batch", 1, 4, 4]}, ["y"], values)


def _quantised() -> onnx.ModelProto:
    names = ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz"]
    values = {
        "xs": np.float32(0.1).reshape(()),
        "xz": np.uint8(3).reshape(()),
        "w": np.arange(6, dtype=np.int8).reshape(3, 2),
        "ws": np.array([0.1, 0.2], np.float32),
        "wz": np.zeros(2, np.int8),
        "ys": np.float32(0.3).reshape(()),
        "yz": np.uint8(7).reshape(()),
    }
    nodes = [node("QLinearMatMul", names, ["q"]), node("DequantizeLinear", ["q", "ys", "yz"], ["f"])]
    nodes += [node("ReduceSum", ["f", "axes"], ["r"]), node("Einsum", ["r", "r"], ["y"], equation="ij,kj->ik")]
    return model(nodes, {"x": (TensorProto.UINT8, ["n", 3])}, ["y"], {**values, "axes": np.array([1])})


@functools.cache
def _originals() -> tuple[bytes, ...]:
    return tuple(m.SerializeToString() for m in (_convolutional(), _quantised(), with_function()))


def _survives(data: bytes, path: object) -> None:
    with contextlib.suppress(DlcError):
        import_model(path)  # type: ignore[arg-type]
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except Exception:
        return
    with contextlib.suppress(DlcError):
        import_model(proto)


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    which=st.integers(0, 2),
    edits=st.lists(
        st.tuples(st.sampled_from(["set", "cut", "insert", "swap"]), st.integers(0, 1 << 16), st.integers(0, 255)),
        min_size=1,
        max_size=6,
    ),
)
def test_damaged_bytes(which: int, edits: list[tuple[str, int, int]], tmp_path_factory: object) -> None:
    data = bytearray(_originals()[which])
    for kind, place, value in edits:
        if not data:
            break
        place %= len(data)
        if kind == "set":
            data[place] = value
        elif kind == "cut":
            del data[place : place + 1 + value % 16]
        elif kind == "insert":
            data[place:place] = bytes([value])
        else:
            other = (place * 31 + value) % len(data)
            data[place], data[other] = data[other], data[place]
    path = tmp_path_factory.getbasetemp() / "damaged.onnx"  # type: ignore[attr-defined]
    path.write_bytes(bytes(data))
    _survives(bytes(data), path)


def test_every_truncation(tmp_path: object) -> None:
    path = tmp_path / "cut.onnx"  # type: ignore[operator]
    for original in _originals():
        for length in range(0, len(original), 7):
            path.write_bytes(original[:length])
            with contextlib.suppress(DlcError):
                import_model(path)


def test_the_originals_are_fine() -> None:
    for data in _originals():
        import_model(onnx.load_model_from_string(data))
