"""Run the graph on the calibration samples and note the range of every float value.

Needs ``context.calibration``, unless the model came quantised. Leaves the module as it is; the ranges go to
``context.notes["calibration"]`` as ``ranges``: value name -> (lo, hi), with the method and the number of samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sized
from typing import Any

import numpy as np

from dlc.errors import DlcError
from dlc.ir.convert import view
from dlc.ir.graph import Graph, Node
from dlc.ir.interpret import interpret
from dlc.passes.quantize.histogram import Histogram, choose
from dlc.pipeline import Context, Pass


def is_float(dtype: str) -> bool:
    """Whether values of this dtype have a range worth knowing."""
    return dtype in ("float32", "float16", "bfloat16", "float64")


def is_quantized(graph: Graph) -> bool:
    """Whether the model came with scales of its own: it is not calibrated."""
    return any(node.op in ("dlc.quantize", "dlc.dequantize", "dlc.requantize", "dlc.table") for node in graph.nodes)


def observe(
    graph: Graph, samples: Iterable[Mapping[str, np.ndarray]], keep_bins: bool, context: Context
) -> tuple[dict[str, Histogram], int]:
    """Histograms of every float value (inputs included) over all samples, and how many samples there were."""
    found = {v.name: Histogram(keep_bins) for v in graph.values().values() if is_float(v.dtype)}
    for name in graph.constants:
        found.pop(name, None)

    def see(node: Node, result: np.ndarray) -> None:
        if node.output.name in found:
            found[node.output.name].add(result)

    total = len(samples) if isinstance(samples, Sized) else 0
    count = 0
    for sample in samples:
        context.progress("calibrate", count, total)
        count += 1
        for value in graph.inputs:
            if value.name not in sample:
                raise DlcError(f"calibration: sample {count} has no array for input '{value.name}'")
            if value.name in found:
                found[value.name].add(sample[value.name])
        with np.errstate(all="ignore"):
            interpret(graph, {v.name: sample[v.name] for v in graph.inputs}, see)
    return found, count


def run(module: Any, context: Context) -> Any:
    """Gather the ranges by the method and for the arithmetic of the options."""
    options, graph = context.options, view(module)
    if is_quantized(graph):
        return module
    if context.calibration is None:
        raise DlcError("int8 quantisation of this model needs calibration data: a .npz file, a folder, or random")
    shift = options.arithmetic == "shift"
    histograms, count = observe(graph, context.calibration, shift or options.calibration_method != "minmax", context)
    if count == 0:
        raise DlcError("the calibration data holds no samples")
    seen = {name: h for name, h in histograms.items() if h.lo <= h.hi}
    context.notes["calibration"] = {
        "method": options.calibration_method,
        "samples": count,
        "ranges": {name: choose(h, options.calibration_method, shift) for name, h in seen.items() if h.finite},
        "not_finite": [name for name, h in histograms.items() if not h.finite],
    }
    return module


PASS = Pass("calibrate", run)
