"""Stacks of LSTM layers beside onnxruntime: fp32, bf16 and int8, a whole sequence and a step at a time, threads.

    python bench/lstm.py [--row "LSTM 5x512"] [--blocks N] [--threads N]

onnxruntime's int8 is its dynamic quantisation (DynamicQuantizeLSTM), ours is calibrated, or has 4-bit weights
(`int4`, beside onnxruntime's int8). `bf16` is beside both of onnxruntime's. Both take turns in blocks; a
ratio is theirs over ours, of medians, with the 95 % interval over the blocks. One thread is timed by the processor's
time, several by the clock. The decibels are of the quantised results against onnxruntime's in fp32.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import quantize_dynamic
from turns import measure, ratios

sys.path.insert(0, str(Path(__file__).parents[1]))

import dlc
from dlc.bench import interval, onnxruntime_session

Run = Callable[[], Any]


@dataclass(frozen=True)
class Row:
    """A stack of layers and what is fed to it."""

    layers: int
    hidden: int
    steps: int
    directions: int = 1
    inputs: int = 80

    def model(self) -> onnx.ModelProto:
        """Random, seeded weights, uniform within 1 / sqrt(hidden)."""
        rng, nodes, weights, x, width = np.random.default_rng(0), [], {}, "x", self.inputs
        scale, directions = self.hidden**-0.5, self.directions
        for layer in range(self.layers):
            shapes = {
                f"w{layer}": (directions, 4 * self.hidden, width),
                f"r{layer}": (directions, 4 * self.hidden, self.hidden),
                f"b{layer}": (directions, 8 * self.hidden),
            }
            weights |= {name: rng.uniform(-scale, scale, shape).astype(np.float32) for name, shape in shapes.items()}
            direction = "bidirectional" if directions == 2 else "forward"
            nodes.append(
                helper.make_node(
                    "LSTM", [x, *shapes], [f"y{layer}"], f"lstm{layer}", hidden_size=self.hidden, direction=direction
                )
            )
            turned, x, width = f"t{layer}", f"x{layer}", directions * self.hidden
            nodes.append(helper.make_node("Transpose", [f"y{layer}"], [turned], f"turn{layer}", perm=[0, 2, 1, 3]))
            nodes.append(helper.make_node("Reshape", [turned, "flat"], [x], f"flatten{layer}"))
        weights["flat"] = np.array([0, 0, -1], np.int64)
        graph = helper.make_graph(
            nodes, "stack",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [self.steps, 1, self.inputs])],
            [helper.make_tensor_value_info(x, TensorProto.FLOAT, [self.steps, 1, width])],
            [numpy_helper.from_array(array, name) for name, array in weights.items()],
        )  # fmt: skip
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


ROWS = {
    "LSTM 5x512": Row(5, 512, 500),
    "BiLSTM 4x320": Row(4, 320, 500, 2),
    "LSTM 5x512, one step": Row(5, 512, 1),
}


def _peer(model: onnx.ModelProto, int8: bool, threads: int) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(model, path)
        if int8:
            quantize_dynamic(path, path.with_name("int8.onnx"), op_types_to_quantize=["LSTM"])
            path = path.with_name("int8.onnx")
        return onnxruntime_session(path.read_bytes(), threads)


def _decibels(got: np.ndarray, wanted: np.ndarray) -> float:
    return float(10 * np.log10((wanted**2).sum() / max(((got - wanted) ** 2).sum(), 1e-30)))


def engines(name: str, precision: str, int8: bool, threads: int = 1) -> tuple[dict[str, Run], str]:
    """Ours in `precision` and onnxruntime, in dynamic int8 or in fp32; and the noise of both, in words."""
    row = ROWS[name]
    model, rng = row.model(), np.random.default_rng(1)
    samples = rng.standard_normal((3, row.steps, 1, row.inputs)).astype(np.float32)
    feed = {"x": samples[0]}
    calibration = [{"x": x} for x in samples[1:]] if precision == "int8" else None
    session = dlc.load(dlc.compile(model, target="cpu", quantize=precision, calibration=calibration), threads=threads)
    peer = _peer(model, int8, threads)
    wanted = _peer(model, False, 1).run(None, feed)[0]
    ours, theirs = next(iter(session.run(feed).values())), peer.run(None, feed)[0]
    notes = f"{_decibels(ours, wanted):.1f} dB against {_decibels(theirs, wanted):.1f}"
    return {
        "dlc": partial(session.run, feed),
        f"onnxruntime, {'dynamic int8' if int8 else 'fp32'}": partial(peer.run, None, feed),
    }, notes


@click.command()
@click.option("--row", "chosen", type=click.Choice(list(ROWS)), help="Only this row.")
@click.option("--blocks", default=31, show_default=True)
@click.option("--threads", default=2, show_default=True, help="For the last line of each row.")
def main(chosen: str | None, blocks: int, threads: int) -> None:
    """Print the table."""
    for name in (name for name in ROWS if chosen in (None, name)):
        for precision, int8 in (("none", False), ("bf16", False), ("bf16", True), ("int8", True), ("int4", True)):
            for count, clock in ((1, time.process_time), (threads, time.perf_counter)):
                both, notes = engines(name, precision, int8, count)
                times = measure(both, blocks, 0.05, clock, pause=0.03)
                peer, ratio = ratios(times)
                middle, low, high = interval(np.ones_like(ratio), ratio)
                print(
                    f"{name}, {'fp32' if precision == 'none' else precision}, {count} thread{'s'[: count > 1]}: "
                    f"{np.median(times['dlc']):.2f} ms, {peer} {np.median(times[peer]):.2f} ms: "
                    f"{middle:.2f} times ({low:.2f}-{high:.2f}), {notes}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
