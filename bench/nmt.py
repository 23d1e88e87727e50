"""An attention decoder with beam search beside onnxruntime: the whole search as one graph, and its steps from Python.

    python bench/nmt.py [--beam 1,4] [--quantize none,int8] [--blocks N]

The graph is `zoo/nmt`'s, with random, seeded weights: GRUs of 256 (twice) and 512 units, embeddings of 512, 8,000
pieces, a source of 25 pieces and 25 pieces of translation (no hypothesis ever ends). onnxruntime runs the same graph,
and its best form: the encoder once, then the step of the decoder from Python, the history kept outside; each in fp32
and dynamically quantised (which fails for the whole graph: its quantiser turns a weight over that a Loop shares). One
thread each, taking turns in blocks, processor time; ratios of medians with the 95 %
interval over the blocks.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnxruntime.quantization import quantize_dynamic
from turns import measure

sys.path.insert(0, str(Path(__file__).parents[1]))

import dlc
from dlc.bench import interval, onnxruntime_session
from dlc.zoo.nmt import graphs
from dlc.zoo.nmt.data import EOS

LENGTH, VOCABULARY = 25, 8000
EMBEDDING, ENCODER, DECODER, ATTENTION = 512, 256, 512, 256


def weights() -> dict[str, np.ndarray]:
    """Uniform within 1 / sqrt(inputs); the end of the sentence is never chosen."""
    both, given = 2 * ENCODER, EMBEDDING + 2 * ENCODER
    shapes = {
        "embedding.weight": (VOCABULARY, EMBEDDING), "bias": (VOCABULARY,),
        "encoder.input": (2, 3 * ENCODER, EMBEDDING), "encoder.recurrence": (2, 3 * ENCODER, ENCODER),
        "encoder.bias": (2, 6 * ENCODER), "start.weight": (DECODER, both), "start.bias": (DECODER,),
        "cell.weight_ih": (3 * DECODER, given), "cell.bias_ih": (3 * DECODER,),
        "cell.weight_hh": (3 * DECODER, DECODER), "cell.bias_hh": (3 * DECODER,),
        "readout.weight": (EMBEDDING, DECODER + given), "readout.bias": (EMBEDDING,),
        "keys.weight": (ATTENTION, both), "keys.bias": (ATTENTION,), "query.weight": (ATTENTION, DECODER),
        "energy.weight": (1, ATTENTION),
    }  # fmt: skip
    rng = np.random.default_rng(0)
    # Wider than torch draws them: the pieces chosen then differ, as a trained model's do.
    found = {n: (rng.uniform(-3, 3, s) / s[-1] ** 0.5).astype(np.float32) for n, s in shapes.items()}
    found["bias"][EOS] = -1e4
    return found


# --- onnxruntime -----------------------------------------------------------------------------------------------------


def _part(model: onnx.ModelProto, nodes: Sequence[Any], inputs: Sequence[str], outputs: Sequence[str]) -> Any:
    """A model of some nodes; types are left to inference."""
    used = {name for node in nodes for name in node.input}
    tensors = [t for t in model.graph.initializer if t.name in used]
    made = onnx.shape_inference.infer_shapes(model).graph
    types = {v.name: v for v in (*made.value_info, *made.input, *made.output)}
    for attribute in (a for node in made.node if node.op_type == "Loop" for a in node.attribute if a.name == "body"):
        types |= {v.name: v for v in (*attribute.g.value_info, *attribute.g.input, *attribute.g.output)}
    graph = helper.make_graph(list(nodes), "part", [types[n] for n in inputs], [types[n] for n in outputs], tensors)
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)


class Steps:
    """The search with its loop in Python: one session for the encoder, one for a step, the history in lists."""

    def __init__(self, model: onnx.ModelProto, int8: bool) -> None:
        nodes = list(model.graph.node)
        at = next(i for i, node in enumerate(nodes) if node.op_type == "Loop")
        loop = nodes[at]
        body = next(a.g for a in loop.attribute if a.name == "body")
        constants = {t.name for t in model.graph.initializer}
        self.states = [v.name for v in body.input][2:]
        known = {v.name for v in body.input} | {o for node in body.node for o in node.output}
        self.captured = sorted(
            {n for node in body.node for n in node.input if n and n not in known and n not in constants}
        )
        starts = list(loop.input)[2:]
        self.begin = dict(zip(self.states, starts, strict=True))
        computed = [n for n in (*starts, *self.captured) if n not in constants]
        self.fixed = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer if t.name in starts}
        self.encoder_outputs = list(dict.fromkeys(computed))
        encoder = _part(model, nodes[:at], [v.name for v in model.graph.input], self.encoder_outputs)
        carried = ["token", "total", "length", "state"]
        written = {node.output[0]: node.input[2] for node in body.node if node.op_type == "ScatterND"}
        rows = {node.output[0]: node.input[0] for node in body.node if node.op_type == "Unsqueeze"}
        self.parent = rows[written["parents_new"]]
        self.outputs = [*(f"{name}_new" for name in carried), self.parent]
        self.carried = carried
        step = _part(model, list(body.node), [*carried, *self.captured, "i"], self.outputs)
        del step.graph.input[-1]  # nothing that is left reads the number of the step
        step = onnx.utils.Extractor(step).extract_model([*carried, *self.captured], self.outputs)
        _own_weights(step)
        self.sessions = [onnxruntime_session(_serialised(part, int8)) for part in (encoder, step)]

    def run(self, source: np.ndarray) -> np.ndarray:
        """The pieces (1, LENGTH) of the best hypothesis."""
        encoder, step = self.sessions
        made = dict(zip(self.encoder_outputs, encoder.run(self.encoder_outputs, {"source": source}), strict=True))
        values = {**self.fixed, **made}
        feed = {name: values[self.begin[name]] for name in self.carried} | {n: values[n] for n in self.captured}
        tokens, parents = [], []
        for _ in range(LENGTH):
            *states, parent = step.run(self.outputs, feed)
            feed.update(zip(self.carried, states, strict=True))
            tokens.append(feed["token"])
            parents.append(parent)
        ranks = feed["total"] / ((5 + feed["length"]) / 6) ** graphs.ALPHA
        best, found = int(np.argmax(ranks)), []
        for token, parent in zip(reversed(tokens), reversed(parents), strict=True):
            found.append(int(token[best]))
            best = int(parent[best])
        return np.array([found[::-1]])


def _own_weights(model: onnx.ModelProto) -> None:
    """Give each Gemm a weight of its own: the quantiser turns it over, whoever else reads it."""
    tensors = {t.name: t for t in model.graph.initializer}
    for number, node in enumerate(n for n in model.graph.node if n.op_type == "Gemm"):
        copy = model.graph.initializer.add()
        copy.CopyFrom(tensors[node.input[1]])
        copy.name = node.input[1] = f"own{number}"


def _serialised(model: onnx.ModelProto, int8: bool) -> bytes:
    if not int8:
        return bytes(model.SerializeToString())
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("model.onnx", "int8.onnx")]
        onnx.save(model, paths[0])
        quantize_dynamic(*paths)
        return paths[1].read_bytes()


# --- the table -------------------------------------------------------------------------------------------------------


def engines(beam: int, quantize: str) -> tuple[dict[str, Callable[[], np.ndarray]], str]:
    """Ours, whole, and onnxruntime's forms; and how many pieces of each are those of fp32, in words."""
    graphs.LIMIT = LENGTH  # the graph's limit is that of the zoo's sentences
    rng = np.random.default_rng(1)
    sources = [np.append(rng.integers(4, VOCABULARY, LENGTH - 1), EOS)[None] for _ in range(5)]
    feed, model = {"source": sources[0]}, graphs.translator(weights(), beam)
    calibration = [{"source": s} for s in sources[1:]] if quantize == "int8" else None
    session = dlc.load(dlc.compile(model, quantize=quantize, calibration=calibration))
    whole, steps, short = onnxruntime_session(_serialised(model, False)), Steps(model, False), Steps(model, True)
    found: dict[str, Callable[[], np.ndarray]] = {
        "dlc": lambda: session.run(feed)[graphs.TOKENS],
        "onnxruntime, one graph, fp32": lambda: whole.run([graphs.TOKENS], feed)[0],
        "onnxruntime, steps from Python, fp32": lambda: steps.run(feed["source"]),
        "onnxruntime, steps from Python, dynamic int8": lambda: short.run(feed["source"]),
    }
    exact = found["onnxruntime, one graph, fp32"]()
    same = ", ".join(f"{(run() == exact).sum()} of {name}" for name, run in found.items())
    return found, f"pieces as in fp32: {same}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--beam", type=lambda s: [int(n) for n in s.split(",")], default=[1, 4])
    parser.add_argument("--quantize", type=lambda s: s.split(","), default=["none", "int8"])
    parser.add_argument("--blocks", type=int, default=30)
    options = parser.parse_args(arguments)
    for beam in options.beam:
        for quantize in options.quantize:
            found, notes = engines(beam, quantize)
            times = measure(found, options.blocks, 0.05, time.process_time)
            print(f"beam {beam}, dlc with --quantize {quantize}, {LENGTH} pieces; {notes}")
            for name, taken in times.items():
                middle, low, high = interval(times["dlc"], taken)
                ratio = "" if name == "dlc" else f"{middle:6.2f} times ours ({low:.2f}-{high:.2f})"
                print(f"  {np.median(taken):8.2f} ms {ratio:32} {name}", flush=True)


if __name__ == "__main__":
    main()
