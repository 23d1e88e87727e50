"""Simplify what control flow runs: every block of a host operator is a graph of its own, and goes the same road."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from dlc.ir.convert import view
from dlc.ir.rewrite import map_blocks
from dlc.options import Options
from dlc.pipeline import Context, Pass, run_passes

_FLOAT = "inside control flow, where values are not calibrated: it stays float"


def blocks_pass(passes_of: Callable[[Options], Sequence[Pass]]) -> Pass:
    """The pass; `passes_of` gives the common passes for options, this one among them."""

    def run(module: Any, context: Context) -> Any:
        options = replace(context.options, quantize="none")

        def one(name: str, block: Any) -> Any:
            if context.options.quantize != "none":
                for node in view(block).nodes:
                    if node.op in ("dlc.conv", "dlc.matmul"):
                        context.decline("quantize", node.origin, _FLOAT)
            part = f"{context.part}/{name}".strip("/")
            return run_passes(block, passes_of(options), replace(context, options=options, calibration=None, part=part))

        return map_blocks(module, one)

    return Pass("blocks", run)
