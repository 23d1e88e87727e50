"""A convolution over one spatial dimension that makes one output position is a matrix product of its taps.

The taps are slices of the input, so that nothing asks for the whole window: what only the taps need of a concatenation
or of a carried state is all that is read. Taps that are next to each other and are the whole input are no slices but
the input itself.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dlc.ir.graph import Node
from dlc.ir.ops.shapes import same
from dlc.ir.ops.windows import CHANNELS_FIRST
from dlc.ir.rewrite import Rewriter, rewrite
from dlc.passes.simplify.match import unnamed
from dlc.pipeline import Context, Pass

VIEW = "relax.reshape"


def _why_not(rw: Rewriter, node: Node, weight: np.ndarray | None) -> str | None:
    """Why a convolution of one position stays one; None where it becomes a product, '' where it is none."""
    if node.attrs["layout"] != CHANNELS_FIRST or len(node.output.shape) != 3 or not same(node.output.shape[2], 1):
        return ""
    if node.attrs["groups"] != 1:
        return "its one window is in groups"
    if any(node.attrs["pads"]):
        return "its one window is padded"
    if weight is None or weight.dtype.kind != "f" or not isinstance(rw.value(node.inputs[0]).shape[2], int):
        return "its weight or its extent is not a known one of floats"
    return None


def _product(rw: Rewriter, node: Node, weight: np.ndarray) -> Any:
    x, origin = rw.value(node.inputs[0]), unnamed(node.origin)
    batch, channels, extent = x.shape
    outputs, _, kernel = weight.shape
    step = node.attrs["dilations"][0] if kernel > 1 else 1
    flat = {"shape": (batch, channels * kernel)}
    if kernel == extent and step == 1:
        rows, matrix = rw.emit(VIEW, [rw.new(x.name)], flat, origin), weight.reshape(outputs, -1).T
    else:
        taps = []
        for tap in range(kernel):
            bounds = {"axes": (2,), "begin": (tap * step,), "end": (tap * step + 1,), "strides": (1,)}
            taps.append(rw.emit("relax.strided_slice", [rw.new(x.name)], bounds, origin))
        taps = [rw.emit(VIEW, [tap], {"shape": (batch, channels)}, origin) for tap in taps]
        rows = rw.emit("relax.concat", taps, {"axis": 1}, origin) if kernel > 1 else taps[0]
        matrix = weight.transpose(2, 1, 0).reshape(kernel * channels, outputs)
    matrix = np.ascontiguousarray(matrix)
    product = rw.emit("dlc.matmul", [rows, rw.const(matrix)], {"out_dtype": node.attrs["out_dtype"]}, origin)
    return rw.emit(VIEW, [product], {"shape": node.output.shape}, node.origin)


def run(module: Any, context: Context) -> Any:
    """See the module's docstring."""

    def handle(rw: Rewriter, node: Node) -> Any:
        if node.op != "dlc.conv":
            return None
        weight = rw.constant(node.inputs[1])
        reason = _why_not(rw, node, weight)
        if reason:
            context.decline("one_window", node.origin, reason)
        return _product(rw, node, weight) if reason is None and weight is not None else None

    return rewrite(module, handle)


PASS = Pass("one_window", run)
