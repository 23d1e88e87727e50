"""A GPT-like decoder that generates, beside onnxruntime with caches and beside recomputation.

    python bench/decoder.py [--tokens 256] [--blocks N] [--layers 6] [--width 384]

Random, seeded weights, learned positions, one prompt of one token, greedy, one thread. Ours is the full-sequence model,
compiled with `stream`; onnxruntime runs (a) the step of the same model with caches as inputs and outputs, which are
joined with the new rows, driven from Python, (b) its dynamically quantised form, (c) the whole sequence for each token.
They take turns in blocks and are timed by the processor's time. All tokens in fp32 are compared; in int8 ours are
compared with ours by recomputation.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import quantize_dynamic

sys.path.insert(0, str(Path(__file__).parents[1]))

import dlc
from dlc.bench import interval, onnxruntime_session

VOCABULARY, LONGEST = 256, 512
TIE = 1e-4  # two best logits that are closer may change places
Run = Callable[[int], np.ndarray]  # how many tokens -> the tokens


@dataclass(frozen=True)
class Shape:
    """The network's size."""

    layers: int
    width: int
    head: int = 64

    @property
    def heads(self) -> int:
        """How many."""
        return self.width // self.head


class _Writer:
    """Writes the nodes of one graph over weights that every graph of a shape shares."""

    def __init__(self, shape: Shape) -> None:
        self.shape, self.nodes, self.weights = shape, [], {}  # type: tuple[Shape, list[Any], dict[str, np.ndarray]]
        self.rng = np.random.default_rng(0)

    def weight(self, *extents: int) -> str:
        """Uniform, so that each layer keeps the variance about as it is."""
        scale = (3 / extents[0]) ** 0.5
        return self.constant(self.rng.uniform(-scale, scale, extents).astype(np.float32))

    def constant(self, array: np.ndarray) -> str:
        """A constant; returns its name."""
        name = f"w{len(self.weights)}"
        self.weights[name] = array
        return name

    def ints(self, *values: int) -> str:
        """A constant of integers."""
        return self.constant(np.array(values, np.int64))

    def op(self, kind: str, *inputs: str, outputs: int = 1, name: str = "", **attrs: Any) -> Any:
        """A node; returns its output, or a list of several."""
        made = [name or f"v{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, inputs, made, f"{kind}{len(self.nodes)}", **attrs))
        return made[0] if outputs == 1 else made

    def norm(self, x: str) -> str:
        """A layer normalisation."""
        width = self.shape.width
        scale, bias = self.constant(np.ones(width, np.float32)), self.constant(np.zeros(width, np.float32))
        return str(self.op("LayerNormalization", x, scale, bias, axis=-1))

    def linear(self, x: str, inputs: int, outputs: int) -> str:
        """A product and a bias."""
        return str(self.op("Add", self.op("MatMul", x, self.weight(inputs, outputs)), self.weight(outputs)))

    def attention(self, x: str, seen: str | None, past: tuple[str, str] | None, layer: int) -> str:
        """Of all steps so far: those of `x` alone, of which `seen` says who sees whom, or those of `past` before."""
        shape = self.shape
        parts = self.op(
            "Split", self.linear(x, shape.width, 3 * shape.width), self.ints(*[shape.width] * 3), outputs=3, axis=-1
        )
        split = self.ints(0, 0, shape.heads, shape.head)
        q, k, v = (self.op("Transpose", self.op("Reshape", part, split), perm=[0, 2, 1, 3]) for part in parts)
        if past is not None:
            k = self.op("Concat", past[0], k, name=f"key{layer}", axis=2)
            v = self.op("Concat", past[1], v, name=f"value{layer}", axis=2)
        scores = self.op("MatMul", q, self.op("Transpose", k, perm=[0, 1, 3, 2]))
        scores = self.op("Mul", scores, self.constant(np.array(shape.head**-0.5, np.float32)))
        if seen is not None:
            scores = self.op("Where", seen, scores, self.constant(np.array(-np.inf, np.float32)))
        mixed = self.op("MatMul", self.op("Softmax", scores, axis=-1), v)
        joined = self.op("Reshape", self.op("Transpose", mixed, perm=[0, 2, 1, 3]), self.ints(0, 0, shape.width))
        return self.linear(joined, shape.width, shape.width)

    def model(self, cached: bool) -> onnx.ModelProto:
        """Tokens (1, steps) to logits (1, steps, vocabulary); with caches one step and what came before."""
        shape, zero, one = self.shape, self.constant(np.array(0)), self.constant(np.array(1))
        x = self.op("Gather", self.weight(VOCABULARY, shape.width), "tokens")
        table = self.weight(LONGEST, shape.width)
        past = [(f"past_key{i}", f"past_value{i}") for i in range(shape.layers)] if cached else []
        if cached:
            seen = None
            place = self.op("Gather", self.op("Shape", past[0][0]), self.ints(2))
        else:
            steps = self.op("Gather", self.op("Shape", "tokens"), one)
            place = self.op("Range", zero, steps, one)
            down, across = (self.op("Unsqueeze", place, self.ints(axis)) for axis in (1, 0))
            seen = self.op("GreaterOrEqual", down, across)
        x = self.op("Add", x, self.op("Gather", table, place))
        for layer in range(shape.layers):
            x = self.op("Add", x, self.attention(self.norm(x), seen, past[layer] if cached else None, layer))
            wide = self.op("Gelu", self.linear(self.norm(x), shape.width, 4 * shape.width))
            x = self.op("Add", x, self.linear(wide, 4 * shape.width, shape.width))
        self.op("MatMul", self.norm(x), self.weight(shape.width, VOCABULARY), name="logits")
        rows = [1, shape.heads, "past", shape.head]
        states = [helper.make_tensor_value_info(n, TensorProto.FLOAT, rows) for pair in past for n in pair]
        new = [
            helper.make_tensor_value_info(f"{kind}{layer}", TensorProto.FLOAT, [1, shape.heads, "all", shape.head])
            for layer in range(len(past))
            for kind in ("key", "value")
        ]
        count = 1 if cached else "time"
        graph = helper.make_graph(
            self.nodes, "decoder",
            [helper.make_tensor_value_info("tokens", TensorProto.INT64, [1, count]), *states],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, count, VOCABULARY]), *new],
            [numpy_helper.from_array(array, name) for name, array in self.weights.items()],
        )  # fmt: skip
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def decoder(shape: Shape, cached: bool = False) -> onnx.ModelProto:
    """The model; the same weights in both forms."""
    writer = _Writer(shape)
    return writer.model(cached)


def _cached(session: Any, shape: Shape) -> Run:
    """Generation by onnxruntime's step with caches."""
    names = [info.name for info in session.get_inputs()[1:]]

    def run(count: int) -> np.ndarray:
        kept = [np.empty((1, shape.heads, 0, shape.head), np.float32)] * len(names)
        token, found = np.zeros((1, 1), np.int64), np.empty(count, np.int64)
        for number in range(count):
            logits, *kept = session.run(None, {"tokens": token, **dict(zip(names, kept, strict=True))})
            found[number] = token[0, 0] = logits[0, 0].argmax()
        return found

    return run


def _recomputed(logits_of: Callable[[np.ndarray], np.ndarray]) -> Run:
    """Generation by the whole sequence for each token."""

    def run(count: int) -> np.ndarray:
        tokens = np.zeros((1, 1), np.int64)
        for _ in range(count):
            tokens = np.append(tokens, [[logits_of(tokens)[0, -1].argmax()]], axis=1)
        return tokens[0, 1:]

    return run


def _int8(model: onnx.ModelProto) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(model, path)
        quantize_dynamic(path, path.with_name("int8.onnx"), op_types_to_quantize=["MatMul"])
        return path.with_name("int8.onnx").read_bytes()


def _same(ours: np.ndarray, theirs: np.ndarray, logits_of: Callable[[np.ndarray], np.ndarray]) -> str:
    """Where tokens first differ, and whether the decision there is a tie."""
    differing = np.flatnonzero(ours != theirs)
    if not differing.size:
        return f"all {len(ours)} tokens are the same"
    first = int(differing[0])
    best = np.sort(logits_of(np.array([[0, *theirs[:first]]]))[0, -1])[-2:]
    return f"WRONG from token {first}" if best[1] - best[0] > TIE else f"the same up to a tie at token {first}"


def measure(engines: dict[str, Run], tokens: int, blocks: int) -> dict[str, np.ndarray]:
    """Seconds a token of every block, by engine."""
    found: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(blocks):
        for name, run in engines.items():
            begun = time.process_time()
            run(tokens)
            found[name].append((time.process_time() - begun) / tokens)
    return {name: np.array(times) for name, times in found.items()}


def _print(times: dict[str, np.ndarray], ours: Sequence[str]) -> None:
    for name, found in times.items():
        ratios = [interval(times[own], found) for own in ours if own != name]
        text = ", ".join(f"{middle:.2f} ({low:.2f}-{high:.2f})" for middle, low, high in ratios)
        print(f"{name:32} {1 / np.median(found):8.0f} tokens/s  {np.median(found) * 1e3:7.2f} ms  {text}")


@click.command()
@click.option("--tokens", default=256, show_default=True)
@click.option("--blocks", default=9, show_default=True)
@click.option("--layers", default=6, show_default=True)
@click.option("--width", default=384, show_default=True)
@click.option("--recompute/--no-recompute", default=True, help="Recomputation takes as long as all else together.")
def main(tokens: int, blocks: int, layers: int, width: int, recompute: bool) -> None:
    """Print the table."""
    shape = Shape(layers, width)
    whole, step = decoder(shape), decoder(shape, cached=True)
    peer = onnxruntime_session(whole.SerializeToString())

    def logits_of(given: np.ndarray) -> np.ndarray:
        return np.asarray(peer.run(None, {"tokens": given})[0])

    drawn = np.random.default_rng(1).integers(0, VOCABULARY, (4, 1, 64))
    sessions = {
        name: dlc.load(dlc.compile(whole, quantize=name, calibration=calibration, stream=True, max_length=LONGEST))  # type: ignore[arg-type]
        for name, calibration in (("none", None), ("int8", {"tokens": drawn}), ("int8-dynamic", None))
    }
    prompt = np.zeros((1, 1), np.int64)
    engines: dict[str, Run] = {
        f"dlc, {name}": lambda count, own=own: own.generate(prompt, count)[0]  # type: ignore[misc]
        for name, own in sessions.items()
    }
    ours = list(engines)
    engines["onnxruntime, caches"] = _cached(onnxruntime_session(step.SerializeToString()), shape)
    engines["onnxruntime, caches, int8"] = _cached(onnxruntime_session(_int8(step)), shape)
    print(
        f"fp32 beside onnxruntime: {_same(engines[ours[0]](tokens), engines['onnxruntime, caches'](tokens), logits_of)}"
    )
    for name in ("int8", "int8-dynamic"):
        own = sessions[name]
        again = _recomputed(lambda given, own=own: own.run({"tokens": given})["logits"])  # type: ignore[misc]
        count = min(tokens, 64)
        equal = np.array_equal(engines[f"dlc, {name}"](count), again(count))
        print(f"{name} beside itself, recomputed: {count} tokens are {'the same' if equal else 'WRONG'}")
    _print(measure(engines, tokens, blocks), ours)
    if recompute:
        slow = {ours[0]: engines[ours[0]], "onnxruntime, recomputed": _recomputed(logits_of)}
        _print(measure(slow, tokens, 3), ours[:1])


if __name__ == "__main__":
    main()
