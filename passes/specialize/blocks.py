"""Passes over what control flow runs: every block of a host operator is a graph of its own, and goes the same road."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from dlc.ir.rewrite import map_blocks
from dlc.pipeline import Context, Pass


def everywhere(step: Pass) -> Pass:
    """`step` on ``main`` and then on every block, those inside blocks too; a block has notes of its own."""

    def run(module: Any, context: Context) -> Any:
        def one(name: str, block: Any) -> Any:
            return run(block, replace(context, block=name, notes=context.blocks.setdefault(name, {})))

        return map_blocks(step.run(module, context), one)

    return Pass(step.name, run)
