"""Attention alone: one kernel beside our own three, onnxruntime and torch's scaled_dot_product_attention.

    python bench/attention.py [--steps 128,512,2048] [--heads 8] [--depth 64] [--causal] [--blocks 15] [--threads 1]

Queries, keys and values are (1, steps, heads * depth), so that each engine also parts the heads and joins them again.
onnxruntime has the same nodes and, as a second engine, its own operator (com.microsoft.MultiHeadAttention). Engines
take turns in short blocks, by processor time on one thread and by the clock on more; a ratio is an engine's time over
ours with its 95 % interval.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

sys.path.insert(0, str(Path(__file__).parents[1]))

import dlc
from dlc.bench import interval, onnxruntime_session
from dlc.targets.cpu import attention_region
from dlc.zoo.graphs import Graph, info

Run = Callable[[], Any]
_SECONDS = 0.02  # of a block


def plain(steps: int, heads: int, depth: int, causal: bool) -> onnx.ModelProto:
    """Attention from its parts."""
    net = Graph({})

    def split(name: str, perm: Sequence[int]) -> str:
        shape = net.constant("parts", np.array([1, steps, heads, depth]))
        return net.op("Transpose", [net.op("Reshape", [name, shape])], perm=list(perm))

    q, k, v = split("q", (0, 2, 1, 3)), split("k", (0, 2, 3, 1)), split("v", (0, 2, 1, 3))
    scale = net.constant("scale", np.array(depth**-0.5, np.float32))
    scores = net.op("Mul", [net.op("MatMul", [q, k]), scale])
    if causal:
        later = np.triu(np.full((steps, steps), -np.inf, np.float32), 1)
        scores = net.op("Add", [scores, net.constant("later", later)])
    mixed = net.op("MatMul", [net.op("Softmax", [scores], axis=-1), v])
    whole = net.constant("whole", np.array([1, steps, heads * depth]))
    net.op("Reshape", [net.op("Transpose", [mixed], perm=[0, 2, 1, 3]), whole], ["y"])
    infos = [info(name, TensorProto.FLOAT, [1, steps, heads * depth]) for name in "qkvy"]
    return net.model("attention", infos[:3], infos[3:])


def own_operator(steps: int, heads: int, depth: int, causal: bool) -> onnx.ModelProto:
    """The same as onnxruntime's operator."""
    node = onnx.helper.make_node(
        "MultiHeadAttention", ["q", "k", "v"], ["y"], domain="com.microsoft", num_heads=heads, unidirectional=causal
    )
    infos = [info(name, TensorProto.FLOAT, [1, steps, heads * depth]) for name in "qkvy"]
    graph = onnx.helper.make_graph([node], "attention", infos[:3], infos[3:])
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("com.microsoft", 1)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)


def three_kernels(model: onnx.ModelProto) -> dlc.Package:
    """Our own package without attention as one kernel."""
    kept = attention_region.unfit
    attention_region.unfit = lambda _: "the bench wants three kernels"
    try:
        return dlc.compile(model, cache=False)
    finally:
        attention_region.unfit = kept


def _torch(feed: dict[str, np.ndarray], heads: int, causal: bool, threads: int) -> Run:
    import torch

    torch.set_num_threads(threads)
    q, k, v = (torch.from_numpy(feed[name]) for name in "qkv")

    def split(x: torch.Tensor) -> torch.Tensor:
        return x.view(1, x.shape[1], heads, -1).transpose(1, 2)

    def run() -> np.ndarray:
        with torch.inference_mode():
            mixed = torch.nn.functional.scaled_dot_product_attention(split(q), split(k), split(v), is_causal=causal)
            return np.asarray(mixed.transpose(1, 2).reshape(q.shape))

    return run


def _engines(steps: int, options: argparse.Namespace) -> dict[str, Run]:
    """What runs attention, ours first; all are held to ours."""
    size = steps, options.heads, options.depth, options.causal
    model, rng = plain(*size), np.random.default_rng(0)
    feed = {name: rng.standard_normal((1, steps, options.heads * options.depth), np.float32) for name in "qkv"}
    sessions = [dlc.load(p, threads=options.threads) for p in (dlc.compile(model, cache=False), three_kernels(model))]
    peers = [onnxruntime_session(m.SerializeToString(), options.threads) for m in (model, own_operator(*size))]
    engines: dict[str, Run] = {
        "dlc": lambda: sessions[0].run(feed)["y"],
        "three kernels": lambda: sessions[1].run(feed)["y"],
        "onnxruntime": lambda: peers[0].run(None, feed)[0],
        "onnxruntime's operator": lambda: peers[1].run(None, feed)[0],
        "torch": _torch(feed, options.heads, options.causal, options.threads),
    }
    wanted = engines["dlc"]()
    for name, run in engines.items():
        np.testing.assert_allclose(run(), wanted, rtol=1e-3, atol=1e-4, err_msg=name)
    workspaces = ", ".join(f"{s.package.manifest['build']['sizes'][0] / 1e6:.1f}" for s in sessions)
    print(f"{steps} steps: workspaces {workspaces} MB", flush=True)
    return engines


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=lambda s: [int(n) for n in s.split(",")], default=[128, 512, 2048])
    for name, value in (("heads", 8), ("depth", 64), ("blocks", 15), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--causal", action="store_true")
    options = parser.parse_args(arguments)
    clock = time.process_time if options.threads == 1 else time.perf_counter
    for steps in options.steps:
        engines, times, counts = _engines(steps, options), dict[str, list[float]](), dict[str, int]()
        for name, run in engines.items():
            started = clock()
            run()
            counts[name], times[name] = max(1, int(_SECONDS / max(clock() - started, 1e-6))), []
        for _ in range(options.blocks):
            for name, run in engines.items():
                run()  # another engine has just filled the caches
                started = clock()
                for _ in range(counts[name]):
                    run()
                times[name].append((clock() - started) / counts[name] * 1e3)
        ours = np.array(times["dlc"])
        for name, found in times.items():
            middle, low, high = interval(ours, np.array(found))
            print(f"  {name}: {np.median(found):.3f} ms, {middle:.2f} ({low:.2f}-{high:.2f}) times ours", flush=True)


if __name__ == "__main__":
    main()
