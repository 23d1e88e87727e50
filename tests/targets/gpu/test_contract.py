"""Convolutions and matmuls, float and integer, against the interpreter over random shapes; barriers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tvm import tirx

from dlc.errors import DlcError
from dlc.ir.graph import Graph
from dlc.ir.ops import OPS
from dlc.targets.cpu.kernels.testing_regions import Body, random
from dlc.targets.gpu.kernels.tiles import THREADS, TILES, choose
from dlc.targets.gpu.lower import generate
from tests.targets.gpu.region import check

# Every example is compiled: a failing one is reported as it is, not shrunk.
FEW = settings(
    max_examples=5, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck),
    phases=[Phase.generate],
)  # fmt: skip
RTOL = 2e-6  # of the largest magnitude; sums of up to about 500 terms
INTEGER = {"x_zero_point": 93, "out_dtype": "int32"}
FLOAT = {"out_dtype": "float32"}


def _epilogue(body: Body, y: str, shape: list[Any], channels: int, integer: bool) -> str:
    """Bias, and a requantise or a relu with a residual."""
    if integer:
        y = body.node("add", [y, body.input((channels,), "int32")], shape, "int32")
        attrs = {"terms": 1, "mode": "float", "term_zero_points": (0,), "zero_point": 3, "lo": 0, "hi": 255}
        return body.node(
            "dlc.requantize", [y, body.input((channels,))], shape, "uint8", **attrs, out_dtype="uint8"
        )  # fmt: skip
    y = body.node("add", [y, body.input((channels,))], shape)
    return body.node("nn.relu", [body.node("add", [body.input(tuple(shape)), y], shape)], shape)


def _arrays(body: Body, sizes: dict[str, int]) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = [tuple(d if isinstance(d, int) else sizes[str(d.name)] for d in v.shape) for v in body.inputs]
    arrays = [random(rng, s, v.dtype) for s, v in zip(shapes, body.inputs, strict=True)]
    for i, v in enumerate(body.inputs):
        if v.dtype == "int32":
            arrays[i] = rng.integers(-1000, 1000, shapes[i], dtype=np.int32)
    if body.inputs[0].dtype == "uint8":
        arrays[-1] = rng.random(shapes[-1]).astype(np.float32) * 1e-2  # multipliers
    return arrays


def _conv(shape: tuple[Any, ...], out: int, kernel: list[int], attrs: dict[str, Any], integer: bool) -> Body:
    body = Body()
    x = body.input(shape, "uint8" if integer else "float32")
    w = body.input((out, shape[-1] // attrs["groups"], *kernel), "int8" if integer else "float32")
    full = {**attrs, **(INTEGER if integer else FLOAT), "layout": "channels_last"}
    types = [(v.shape, v.dtype) for v in body.inputs]
    result, dtype = OPS["dlc.conv"].infer(types, full)  # type: ignore[misc]
    y = body.node("dlc.conv", [x, w], list(result), dtype, **full)
    body.outputs = [_epilogue(body, y, list(result), out, integer)]
    return body


@FEW
@given(data=st.data())
@pytest.mark.parametrize("integer", [False, True])
def test_convolutions(integer: bool, data: st.DataObject) -> None:
    rank = data.draw(st.integers(1, 3))
    kernel = [data.draw(st.integers(1, 3)) for _ in range(rank)]
    groups = data.draw(st.sampled_from([1, 1, 2]))
    channels = groups * data.draw(st.sampled_from([1, 3, 4, 8, 20]))
    attrs = {
        "strides": [data.draw(st.integers(1, 2)) for _ in range(rank)],
        "pads": [data.draw(st.integers(0, 2)) for _ in range(2 * rank)],
        "dilations": [data.draw(st.integers(1, 2)) for _ in range(rank)], "groups": groups,
    }  # fmt: skip
    n: Any = tirx.Var("N", "int64") if data.draw(st.booleans()) else 2
    spatial = [data.draw(st.integers(5, 9)) for _ in range(rank)]
    body = _conv((n, *spatial, channels), groups * data.draw(st.sampled_from([8, 17, 40])), kernel, attrs, integer)
    check("contraction", body.graph(*body.outputs), _arrays(body, {"N": 2}), ["i1"], {"N": 2}, RTOL)


@pytest.mark.parametrize("integer", [False, True])
def test_depthwise(integer: bool) -> None:
    attrs = {"strides": [2, 1], "pads": [1, 1, 1, 1], "dilations": [1, 1], "groups": 24}
    body = _conv((2, 9, 8, 24), 24, [3, 3], attrs, integer)
    kernel = check("contraction", body.graph(*body.outputs), _arrays(body, {}), ["i1"], rtol=RTOL)
    assert kernel.note == "1 output channels a group do not fill a tile"


def test_a_weight_that_is_not_constant() -> None:
    attrs = {"strides": [1], "pads": [1, 1], "dilations": [1], "groups": 1}
    body = _conv((2, 9, 5), 9, [3], attrs, False)
    kernel = check("contraction", body.graph(*body.outputs), _arrays(body, {}), rtol=RTOL)
    assert kernel.note == "its weight is not a constant"


SHAPES = [
    ((5, 40), (40, 17), True), ((3, 9, 33), (33, 70), True), ((2, 3, 20, 24), (3, 24, 12), False),
    ((30,), (30, 11), True), ((6, 30), (30,), False), ((2, 1, 7, 9), (5, 9, 6), False),
]  # fmt: skip


def _matmul(a: tuple[Any, ...], b: tuple[Any, ...], dtypes: tuple[str, str], **zeros: int) -> Graph:
    body = Body()
    names = [body.input(a, dtypes[0]), body.input(b, dtypes[1])]
    out = "float32" if dtypes[0] == "float32" else "int32"
    shape, _ = OPS["dlc.matmul"].infer([(a, dtypes[0]), (b, dtypes[1])], {"out_dtype": out})  # type: ignore[misc]
    y = body.node("dlc.matmul", names, list(shape), out, out_dtype=out, **zeros)
    return body.graph(body.node("negative", [y], list(shape), out))


@pytest.mark.parametrize(("a", "b", "constant"), SHAPES)
def test_matmuls(a: tuple[int, ...], b: tuple[int, ...], constant: bool) -> None:
    rng = np.random.default_rng(0)
    known = ["i1"] if constant else []
    arrays = [random(rng, a, "float32"), random(rng, b, "float32")]
    check("contraction", _matmul(a, b, ("float32", "float32")), arrays, known, rtol=RTOL)
    zeros = {"a_zero_point": 120, "b_zero_point": 0 if constant else 5}
    arrays = [random(rng, a, "uint8"), random(rng, b, "int8")]
    kernel = check("contraction", _matmul(a, b, ("uint8", "int8"), **zeros), arrays, known)
    assert ("dp4a" in kernel.kind) == constant


def test_symbolic_rows_and_depth() -> None:
    n, k = tirx.Var("N", "int64"), tirx.Var("K", "int64")
    rng = np.random.default_rng(0)
    arrays = [random(rng, (3, 5, 21), "float32"), random(rng, (3, 21, 6), "float32")]
    graph = _matmul((n, 5, k), (n, k, 6), ("float32", "float32"))
    check("contraction", graph, arrays, sizes={"N": 3, "K": 21}, rtol=RTOL)


@pytest.mark.parametrize("tile", TILES, ids=str)
def test_every_tile(tile: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tile.m // tile.rows * tile.lanes == THREADS
    monkeypatch.setattr("dlc.targets.gpu.kernels.contract.choose", lambda *_: tile)
    rng = np.random.default_rng(0)
    arrays = [random(rng, (150, 50), "float32"), random(rng, (50, 70), "float32")]
    check("contraction", _matmul((150, 50), (50, 70), ("float32", "float32")), arrays, ["i1"], rtol=RTOL)


def test_large_problems_get_large_tiles() -> None:
    assert str(choose(50176, 64, 576, 1)) == "128x64x16, 8x4 a thread"
    assert str(choose(8, 10, 6, 1)) == "64x16x8, 2x2 a thread"


def test_barriers_are_needed() -> None:
    """Without barriers a thread reads what its neighbours have not staged yet: the same test must then fail."""
    rng = np.random.default_rng(0)
    graph = _matmul((70, 64), (64, 40), ("uint8", "int8"), a_zero_point=3, b_zero_point=0)
    arrays = [random(rng, (70, 64), "uint8"), random(rng, (64, 40), "int8")]
    check("contraction", graph, arrays, ["i1"])

    def without(text: str) -> str:
        assert text.count("BARRIER();") == 2
        return text.replace("BARRIER();", "")

    with pytest.raises(AssertionError, match="Mismatched elements"):
        check("contraction", graph, arrays, ["i1"], edit=without)


def test_reasons_for_declining() -> None:
    graph = _matmul((3, 4), (4, 5), ("uint8", "int8"))
    wide = [v if v.name != "i0" else type(v)("i0", v.shape, "int64") for v in graph.inputs]
    with pytest.raises(DlcError, match="no kernel multiplies int64 by int8"):
        generate("contraction", Graph("region", tuple(wide), graph.outputs, graph.nodes, {}), {})
