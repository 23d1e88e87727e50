"""What a symbolic extent costs: each kernel compiled for any extent beside the same one compiled for a fixed extent.

Both packages take turns in one process; a figure is the fixed package's time over the symbolic one's (1: as fast), the
least of many runs: of the native code alone, and of `Session.run`, which looks sizes up where there are any.
`python bench/symbolic.py [case ...]` runs all cases or those named.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import dlc

BLOCKS, BLOCK_SECONDS, LEAST_RUNS = 15, 0.02, 5
Shape = tuple[int | str, ...]


@dataclass(frozen=True)
class Case:
    """One kernel: its nodes from ``x`` to ``y`` over weights, its symbolic input shape, and the sizes to fix."""

    shape: Shape
    sizes: Sequence[dict[str, int]]
    node: tuple[str, dict[str, object]]
    weights: Sequence[tuple[int, ...]] = ()
    int8: bool = False


def _conv(*shape: int | str, sizes: Sequence[dict[str, int]], int8: bool = False) -> Case:
    channels = shape[1]
    assert isinstance(channels, int)
    return Case(shape, sizes, ("Conv", {"pads": [1, 1, 1, 1]}), [(64, channels, 3, 3)], int8)


BATCHES = [{"N": n} for n in (1, 4)]
IMAGES = [{"H": n, "W": n} for n in (14, 28, 56)]
ROWS = [{"M": m} for m in (1, 7, 64, 200)]
CASES = {
    "matmul": Case(("M", 512), ROWS, ("MatMul", {}), [(512, 512)]),
    "matmul int8": Case(("M", 512), ROWS, ("MatMul", {}), [(512, 512)], True),
    "conv H W": _conv(1, 64, "H", "W", sizes=IMAGES),
    "conv N": _conv("N", 64, 28, 28, sizes=BATCHES),
    "conv int8 H W": _conv(1, 64, "H", "W", sizes=IMAGES, int8=True),
    "conv int8 N": _conv("N", 64, 28, 28, sizes=BATCHES, int8=True),
    "elementwise": Case(("M", 512), ROWS, ("Sigmoid", {})),
    "softmax, rows": Case(("M", 512), ROWS, ("Softmax", {"axis": -1})),
    "softmax, columns": Case((64, "K"), [{"K": k} for k in (30, 128, 500)], ("Softmax", {"axis": -1})),
    "layer norm": Case(("M", 512), ROWS, ("LayerNormalization", {"axis": -1}), [(512,), (512,)]),
}


def model(case: Case) -> onnx.ModelProto:
    """The case as an ONNX model."""
    rng = np.random.default_rng(0)
    arrays = [(0.1 * rng.standard_normal(shape)).astype(np.float32) for shape in case.weights]
    weights = [numpy_helper.from_array(array, f"w{i}") for i, array in enumerate(arrays)]
    op, attributes = case.node
    node = helper.make_node(op, ["x", *(w.name for w in weights)], ["y"], **attributes)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, case.shape)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * len(case.shape))
    graph = helper.make_graph([node], "g", [x], [y], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def compiled(case: Case, sizes: dict[str, int]) -> dlc.Session:
    """A session of the case with some symbols fixed."""
    shape = [sizes.get(d, d) if isinstance(d, str) else d for d in case.shape]
    options = {"quantize": "int8", "calibration": "random"} if case.int8 else {}
    return dlc.load(dlc.compile(model(case), shapes={"x": shape}, **options))


def ratio(fixed: Callable[[], object], symbolic: Callable[[], object]) -> tuple[float, float]:
    """(least time of `fixed` over that of `symbolic`, microseconds of `symbolic`)."""
    started = time.perf_counter()
    symbolic(), fixed()
    count = max(LEAST_RUNS, int(BLOCK_SECONDS / (time.perf_counter() - started)))
    least = [float("inf"), float("inf")]
    for _ in range(BLOCKS):
        for index, run in enumerate((fixed, symbolic)):
            run()  # the other has just filled the caches
            for _ in range(count):
                begun = time.perf_counter()
                run()
                least[index] = min(least[index], time.perf_counter() - begun)
    return least[0] / least[1], least[1] * 1e6


def native(session: dlc.Session, feed: dict[str, np.ndarray], sizes: dict[str, int]) -> Callable[[], object]:
    """The package's native code on `feed`, without the session."""
    outputs = list(session.run(feed).values())
    entry, argument = session.executable.native_call(list(feed.values()), outputs, sizes)
    return lambda: (outputs, entry(argument))  # keeps the arrays


def main() -> None:
    """Print one row a case and size."""
    names = sys.argv[1:] or list(CASES)
    print("| case | size | symbolic, us | native: fixed / symbolic | with the session |\n|---|---|---|---|---|")
    for name in names:
        case = CASES[name]
        anything = compiled(case, {})
        for sizes in case.sizes:
            fixed = compiled(case, sizes)
            shape = [sizes[d] if isinstance(d, str) else d for d in case.shape]
            feed = {"x": np.random.default_rng(1).standard_normal(shape).astype(np.float32)}
            value, microseconds = ratio(native(fixed, feed, {}), native(anything, feed, sizes))
            whole, _ = ratio(lambda: fixed.run(feed), lambda: anything.run(feed))  # noqa: B023
            text = ", ".join(f"{k} {v}" for k, v in sizes.items())
            print(f"| {name} | {text} | {microseconds:.1f} | {value:.2f} | {whole:.2f} |", flush=True)


if __name__ == "__main__":
    main()
