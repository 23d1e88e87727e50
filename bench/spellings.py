"""One model, several spellings: does a loop written differently run as fast?

    python bench/spellings.py [--quantize none,int8] [--blocks N]

A GRU as the operator, as a Scan over a cell of matrix products, and as a Loop that gathers its input by the iteration's
number; a bidirectional LSTM as the operator and as a pair of Loops, the second over the reversed sequence; WaveNet with
rows written by ScatterND and with shifted delay lines. Results are compared first, then all spellings take turns: one
thread, processor time, the first spelling's time over the others' (1: as fast) with the 95 % interval.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import wavenet
from onnx import TensorProto, helper
from turns import measure

sys.path.insert(0, str(Path(__file__).parents[1]))

import dlc
from dlc.bench import interval
from dlc.explain import read
from dlc.zoo.graphs import Graph, info

STEPS, INPUTS, GRU, LSTM = 200, 256, 512, 320
_FLOAT = TensorProto.FLOAT


def _uniform(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return (rng.uniform(-1, 1, shape) / shape[-1] ** 0.5).astype(np.float32)


def _weights(gates: int, hidden: int, ways: int = 1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    found = {}
    for way in range(ways):
        shapes = {
            "w": (gates * hidden, INPUTS),
            "r": (gates * hidden, hidden),
            "b": (gates * hidden,),
            "c": (gates * hidden,),
        }
        found |= {f"{name}{way}": _uniform(rng, *shape) for name, shape in shapes.items()}
    return found


def _stacked(weights: dict[str, np.ndarray], ways: int) -> dict[str, np.ndarray]:
    both = {name: np.stack([weights[f"{name}{way}"] for way in range(ways)]) for name in "wr"}
    bias = np.stack([np.concatenate([weights[f"b{way}"], weights[f"c{way}"]]) for way in range(ways)])
    return {"W": both["w"], "R": both["r"], "B": bias}


def _operator(kind: str, hidden: int, weights: dict[str, np.ndarray], ways: int = 1, **attributes: Any) -> Any:
    main = Graph(_stacked(weights, ways))
    names = [main.weight(name) for name in "WRB"]
    states = main.op(kind, ["x", *names], hidden_size=hidden, **attributes)  # (T, ways, 1, H)
    turned = main.op("Transpose", [states], perm=[0, 2, 1, 3])
    main.op("Reshape", [turned, main.integers(STEPS, ways * hidden)], ["y"])
    return main.model("operator", [_given()], [info("y", _FLOAT, [STEPS, ways * hidden])])


def _given() -> Any:
    return info("x", _FLOAT, [STEPS, 1, INPUTS])


def _products(body: Graph, x: str, state: str, way: int, gates: int, hidden: int) -> tuple[list[str], list[str]]:
    given = body.op("Gemm", [x, body.weight(f"w{way}"), body.weight(f"b{way}")], transB=1)
    kept = body.op("Gemm", [state, body.weight(f"r{way}"), body.weight(f"c{way}")], transB=1)
    return body.split(given, gates, hidden), body.split(kept, gates, hidden)


def _gru_cell(body: Graph, x: str, state: str, output: str) -> None:
    """ONNX's GRU with linear_before_reset, its gates in the order z, r, h."""
    given, kept = _products(body, x, state, 0, 3, GRU)
    update, reset = (body.op("Sigmoid", [body.op("Add", [given[i], kept[i]])]) for i in (0, 1))
    fresh = body.op("Tanh", [body.op("Add", [given[2], body.op("Mul", [reset, kept[2]])])])
    body.op("Add", [fresh, body.op("Mul", [update, body.op("Sub", [state, fresh])])], [output])


def _lstm_cell(body: Graph, x: str, states: Sequence[str], way: int, outputs: Sequence[str]) -> None:
    """ONNX's LSTM, its gates in the order i, o, f, c."""
    given, kept = _products(body, x, states[0], way, 4, LSTM)
    enter, leave, keep = (body.op("Sigmoid", [body.op("Add", [given[i], kept[i]])]) for i in range(3))
    fresh = body.op("Tanh", [body.op("Add", [given[3], kept[3]])])
    body.op("Add", [body.op("Mul", [keep, states[1]]), body.op("Mul", [enter, fresh])], [outputs[1]])
    body.op("Mul", [leave, body.op("Tanh", [outputs[1]])], [outputs[0]])


def _gru_scan(weights: dict[str, np.ndarray]) -> Any:
    main, body = Graph(weights), Graph(weights, "cell_")
    _gru_cell(body, "x_t", "h", "h_new")
    body.op("Identity", ["h_new"], ["y_t"])
    row, state = info("x_t", _FLOAT, [1, INPUTS]), [1, GRU]
    block = helper.make_graph(
        body.nodes, "cell", [info("h", _FLOAT, state), row], [info("h_new", _FLOAT, state), info("y_t", _FLOAT, state)]
    )
    start = main.constant("start", np.zeros((1, GRU), np.float32))
    main.op("Scan", [start, "x"], ["last", "rows"], body=block, num_scan_inputs=1)
    main.op("Reshape", ["rows", main.integers(STEPS, GRU)], ["y"])
    return main.model("scan", [_given()], [info("y", _FLOAT, [STEPS, GRU])], body.constants)


def _loop(main: Graph, x: str, way: int, sizes: dict[str, int], cell: Callable[[Graph, str], None]) -> Any:
    """A Loop over the rows of `x`; returns (its stacked outputs' name, constants of the body)."""
    body = Graph(main.weights, f"cell{way}_")
    row = body.op("Gather", [x, f"i{way}"], axis=0)
    cell(body, row)
    first = next(iter(sizes))
    body.op("Identity", [f"{first}_new"], [f"row{way}"])
    body.op("Identity", [f"going{way}"], [f"goes{way}"])
    states = [info(name, _FLOAT, [1, size]) for name, size in sizes.items()]
    new = [info(f"{name}_new", _FLOAT, [1, size]) for name, size in sizes.items()]
    block = helper.make_graph(
        body.nodes, f"cell{way}",
        [info(f"i{way}", TensorProto.INT64, []), info(f"going{way}", TensorProto.BOOL, []), *states],
        [info(f"goes{way}", TensorProto.BOOL, []), *new, info(f"row{way}", _FLOAT, [1, sizes[first]])],
    )  # fmt: skip
    starts = [main.constant(f"zeros{n}", np.zeros((1, n), np.float32)) for n in sizes.values()]
    inputs = [main.constant("steps", np.array(STEPS, np.int64)), "", *starts]
    main.op("Loop", inputs, [*(f"{name}_end" for name in sizes), f"rows{way}"], body=block)
    return f"rows{way}", body.constants


def _gru_loop(weights: dict[str, np.ndarray]) -> Any:
    main = Graph(weights)
    rows, constants = _loop(main, "x", 0, {"h": GRU}, lambda body, row: _gru_cell(body, row, "h", "h_new"))
    main.op("Reshape", [rows, main.integers(STEPS, GRU)], ["y"])
    return main.model("loop", [_given()], [info("y", _FLOAT, [STEPS, GRU])], constants)


def _lstm_loops(weights: dict[str, np.ndarray]) -> Any:
    """As TensorFlow exports a bidirectional layer."""
    main, constants, parts = Graph(weights), {}, []
    last, first, axis, step = (main.integers(n) for n in (-1, -STEPS - 1, 0, -1))
    for way in range(2):
        x = "x" if way == 0 else main.op("Slice", ["x", last, first, axis, step])
        names = [f"h{way}", f"s{way}"]

        def cell(body: Graph, row: str, way: int = way, names: Sequence[str] = tuple(names)) -> None:
            _lstm_cell(body, row, names, way, [f"{name}_new" for name in names])

        rows, found = _loop(main, x, way, dict.fromkeys(names, LSTM), cell)
        constants |= found
        parts.append(rows if way == 0 else main.op("Slice", [rows, last, first, axis, step]))
    both = main.op("Concat", parts, axis=2)
    main.op("Reshape", [both, main.integers(STEPS, 2 * LSTM)], ["y"])
    return main.model("loops", [_given()], [info("y", _FLOAT, [STEPS, 2 * LSTM])], constants)


def families() -> dict[str, dict[str, onnx.ModelProto]]:
    """The models by family and spelling; the first spelling of each is what the others are compared with."""
    gru, lstm = _weights(3, GRU), _weights(4, LSTM, 2)
    made = {spelling: wavenet.generator("greedy", spelling, STEPS, wavenet.Shape()) for spelling in wavenet.SPELLINGS}
    return {
        f"GRU {GRU}": {
            "operator": _operator("GRU", GRU, gru, linear_before_reset=1),
            "Scan": _gru_scan(gru), "Loop": _gru_loop(gru),
        },
        f"BiLSTM {LSTM}": {
            "operator": _operator("LSTM", LSTM, lstm, 2, direction="bidirectional"), "pair of Loops": _lstm_loops(lstm)
        },
        "WaveNet": made,
    }  # fmt: skip


def engines(
    spellings: Mapping[str, onnx.ModelProto], quantize: str
) -> tuple[dict[str, Callable[[], object]], dict[str, str]]:
    """The spellings of one family; and of each how many kernels are inside its loop, and how far its result is off."""
    samples = np.random.default_rng(1).standard_normal((4, STEPS, 1, INPUTS)).astype(np.float32)
    takes = [v.name for v in next(iter(spellings.values())).graph.input]
    feed = {name: samples[0] for name in takes}
    calibration = [{"x": x} for x in samples[1:]] if quantize == "int8" and takes else None
    found: dict[str, Callable[[], object]] = {}
    notes, first = {}, None
    for spelling, model in spellings.items():
        package = dlc.compile(model, quantize=quantize, calibration=calibration)
        session, rows = dlc.load(package), read(package).nodes
        found[spelling] = partial(session.run, feed)
        result = next(iter(session.run(feed).values())).astype(np.float64)
        first = result if first is None else first
        outside = [row for row in rows if "inside" not in row and "native loop" not in row["kernel"]]
        kernels = f"{sum('inside' in row for row in rows)} kernels inside, {len(outside)} outside"
        notes[spelling] = f"{kernels}; largest difference {np.abs(result - first).max():.1e}"
    return found, notes


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quantize", type=lambda s: s.split(","), default=["none", "int8"])
    parser.add_argument("--blocks", type=int, default=30)
    options = parser.parse_args(arguments)
    for family, spellings in families().items():
        for quantize in options.quantize:
            found, notes = engines(spellings, quantize)
            times = measure(found, options.blocks, 0.05, time.process_time)
            print(f"{family}, {quantize}")
            first = next(iter(times.values()))
            for spelling, taken in times.items():
                middle, low, high = interval(taken, first)
                print(
                    f"  {np.median(taken):8.2f} ms  {middle:5.2f} ({low:.2f}-{high:.2f})  {spelling}: {notes[spelling]}"
                )


if __name__ == "__main__":
    main()
