"""Run the graph on the calibration samples and note the range of every float value.

Needs ``context.calibration``, unless the model came quantised. Leaves the module as it is; the ranges go to
``context.notes["calibration"]`` as ``ranges``: value name -> (lo, hi), with the method and the number of samples. Those
of values inside control flow go to the notes of its block.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sized
from typing import Any

import numpy as np

from dlc.errors import DlcError
from dlc.ir.convert import view
from dlc.ir.graph import Graph
from dlc.ir.interpret import interpret
from dlc.passes.quantize.histogram import Histogram, choose
from dlc.pipeline import Context, Pass


def is_float(dtype: str) -> bool:
    """Whether values of this dtype have a range worth knowing."""
    return dtype in ("float32", "float16", "bfloat16", "float64")


def is_quantized(graph: Graph) -> bool:
    """Whether the model came with scales of its own: it is not calibrated."""
    return any(node.op in ("dlc.quantize", "dlc.dequantize", "dlc.requantize", "dlc.table") for node in graph.nodes)


class _Observation:
    """Histograms of every float value of a graph and of the blocks that it runs: by graph, then by value."""

    def __init__(self, graph: Graph, keep_bins: bool) -> None:
        self.found: dict[str, dict[str, Histogram]] = {}
        for inner in (graph, *(block for node in graph.walk() for block in node.blocks)):
            values = (v for v in inner.values().values() if is_float(v.dtype) and v.name not in inner.constants)
            self.found[inner.name] = {v.name: Histogram(keep_bins) for v in values}

    def add(self, graph: str, name: str, result: Any) -> None:
        """Note one result."""
        if name in self.found[graph]:
            self.found[graph][name].add(np.asarray(result))


def observe(
    graph: Graph, samples: Iterable[Mapping[str, np.ndarray]], keep_bins: bool, context: Context
) -> tuple[dict[str, dict[str, Histogram]], int]:
    """Histograms of every float value (inputs included) over all samples, by graph, and how many samples there were."""
    seen = _Observation(graph, keep_bins)
    total = len(samples) if isinstance(samples, Sized) else 0
    count = 0
    for sample in samples:
        context.progress("calibrate", count, total)
        count += 1
        for value in graph.inputs:
            if value.name not in sample:
                raise DlcError(f"calibration: sample {count} has no array for input '{value.name}'")
            seen.add(graph.name, value.name, sample[value.name])
        inputs = {v.name: sample[v.name] for v in graph.inputs}
        with np.errstate(all="ignore"):
            interpret(
                graph,
                inputs,
                lambda node, result: seen.add(graph.name, node.output.name, result),
                observe_inside=seen.add,
            )
    return seen.found, count


def run(module: Any, context: Context) -> Any:
    """Gather the ranges by the method and for the arithmetic of the options."""
    options, graph = context.options, view(module)
    if is_quantized(graph):
        return module
    samples = context.calibration
    if samples is None and not graph.inputs:
        samples = [{}]  # it always computes the same
    if samples is None:
        raise DlcError("int8 quantisation of this model needs calibration data: a .npz file, a folder, or random")
    shift = options.arithmetic == "shift"
    found, count = observe(graph, samples, shift or options.calibration_method != "minmax", context)
    if count == 0:
        raise DlcError("the calibration data holds no samples")
    for name, histograms in found.items():
        seen = {value: h for value, h in histograms.items() if h.lo <= h.hi}
        notes = context.notes if name == graph.name else context.blocks.setdefault(name, {})
        notes["calibration"] = {
            "method": options.calibration_method,
            "samples": count,
            "ranges": {value: choose(h, options.calibration_method, shift) for value, h in seen.items() if h.finite},
            "not_finite": [value for value, h in histograms.items() if not h.finite],
        }
    return module


PASS = Pass("calibrate", run)
