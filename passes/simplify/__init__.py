"""Graph simplification: constants, identities, positions, views, batch normalisation, padding, single windows, common
subexpressions.

`SIMPLIFY` is the list to run. Its steps come once by name, so that each can be dumped and stopped at, and its last pass
repeats them until none changes anything, in ``main`` and in what control flow runs.
"""

from __future__ import annotations

from typing import Any

from dlc.passes.simplify import (
    best_of_softmax,
    common_subexpressions,
    fold_constants,
    fold_scale,
    identities,
    indices,
    one_window,
    pad_into_conv,
    views,
)
from dlc.passes.specialize.blocks import everywhere
from dlc.pipeline import Context, Pass

STEPS: tuple[Pass, ...] = (
    fold_constants.PASS,
    identities.PASS,
    indices.PASS,
    fold_scale.PASS,
    pad_into_conv.PASS,
    best_of_softmax.PASS,
    one_window.PASS,
    views.PASS,
    common_subexpressions.PASS,
)

#: Every round shortens the graph or brings it closer to normal form; real models settle in two or three.
ROUNDS = 10


def run(module: Any, context: Context) -> Any:
    """Repeat the steps until a round changes nothing, at most `ROUNDS` times."""
    for _ in range(ROUNDS):
        before = module
        for step in STEPS:
            module = step.run(module, context)
        if module is before:
            break
    # A rewrite that declines does so in every round; once is enough to read.
    context.declined[:] = dict.fromkeys(context.declined)
    return module


SIMPLIFY: list[Pass] = [*STEPS, everywhere(Pass("simplify", run))]
