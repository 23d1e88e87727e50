"""A padding with zeros becomes the padding of the convolution or average pooling that reads it.

A maximum stays behind its padding: `dlc.pool` leaves padding out of a maximum, an explicit zero may win it.
"""

from __future__ import annotations

from typing import Any

from dlc.ir.graph import Node
from dlc.ir.rewrite import Rewriter, rewrite
from dlc.pipeline import Context, Pass


def _spatial_pads(node: Node, layout: str) -> tuple[list[int], list[int]] | None:
    """Begins and ends over the spatial axes; None where another axis is padded, or something is cut off."""
    widths = node.attrs["pad_width"]
    pairs = [(widths[2 * i], widths[2 * i + 1]) for i in range(len(widths) // 2)]
    spatial = pairs[2:] if layout == "channels_first" else pairs[1:-1]
    others = pairs[:2] if layout == "channels_first" else [pairs[0], pairs[-1]]
    if any(width for pair in others for width in pair) or any(width < 0 for pair in spatial for width in pair):
        return None
    return [begin for begin, _ in spatial], [end for _, end in spatial]


def _merged(reader: Node, value: float) -> bool | str:
    """Whether the reader's own padding may take over an explicit one of `value`, or why not."""
    if reader.op == "dlc.conv":
        return value == reader.attrs.get("x_zero_point", 0) or f"it pads with {value}, the convolution with 0"
    if reader.attrs["mode"] == "max":
        return "padding of a maximum is left out, an explicit zero is not"
    if value != 0 or reader.attrs["mode"] != "average":
        return f"it pads with {value}"
    if reader.attrs["ceil_mode"]:
        return "the pooling rounds its extent up"
    return bool(reader.attrs["count_include_pad"] or not any(reader.attrs["pads"])) or "own padding is not counted"


def _fold(state: Rewriter, node: Node, context: Context) -> Any:
    padding = state.producer(node.inputs[0], "relax.nn.pad")
    if padding is None or padding.attrs["mode"] != "constant":
        return None
    pads = _spatial_pads(padding, node.attrs["layout"])
    if pads is None:
        return None
    allowed = _merged(node, padding.attrs["value"])
    if isinstance(allowed, str):
        context.decline("pad_into_conv", padding.origin, allowed)
        return None
    own = node.attrs["pads"]
    total = tuple(a + b for a, b in zip(own, [*pads[0], *pads[1]], strict=True))
    attrs = {**node.attrs, "pads": total}
    if node.op == "dlc.pool":
        attrs["count_include_pad"] = True
    inputs = [state.new(padding.inputs[0]), *(state.new(name) for name in node.inputs[1:])]
    return state.emit(node.op, inputs, attrs, node.origin)


def run(module: Any, context: Context) -> Any:
    """Fold every padding that is read by a convolution or an average pooling."""

    def handler(state: Rewriter, node: Node) -> Any:
        return _fold(state, node, context) if node.op in ("dlc.conv", "dlc.pool") else None

    return rewrite(module, handler)


PASS = Pass("pad_into_conv", run)
