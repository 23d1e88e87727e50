"""Passes, and how a list of them is run: checked, dumped, stopped and resumed.

A pass is a function ``(module, context) -> module`` in a file of its own. A pipeline is a list of `Pass`.
Environment: ``DLC_DEBUG=1`` verifies the IR after every pass; ``DLC_DUMP=DIR`` writes every stage, numbered, to DIR.
"""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dlc.ir.graph import Origin
from dlc.options import Options


@dataclass(frozen=True)
class Declined:
    """A rewrite that was not done: which pass, for which node, and why. `dlc explain` shows them."""

    pass_name: str
    origin: Origin
    reason: str


@dataclass
class Context:
    """What passes share: the options, the calibration data, and what they have to say.

    Attributes:
        options: what the user chose.
        calibration: samples, one dict of input name -> array each; None when none was given.
        target: the target object, for passes that depend on the hardware.
        block: the function of the block of control flow that the passes are at; empty for ``main``.
        part: the part of a composite package that is compiled, see `dlc.composite`; stages are dumped below its name.
        declined: rewrites that were not done, with reasons.
        notes: facts for the manifest and the report, by key.
        blocks: the notes of each block of control flow, by the name of its function.
        progress: called with (stage, done, total) during long work.
    """

    options: Options
    calibration: Any = None
    target: Any = None
    block: str = ""
    part: str = ""
    declined: list[Declined] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)
    blocks: dict[str, dict[str, Any]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None

    def decline(self, pass_name: str, origin: Origin, reason: str) -> None:
        """Record that a rewrite was not done."""
        self.declined.append(Declined(pass_name, origin, reason))

    def branched(self, target: Any, part: str) -> Context:
        """A context of its own for one of several compilations that go on from here."""
        return replace(
            self,
            target=target,
            part=part,
            declined=[*self.declined],
            notes=copy.deepcopy(self.notes),
            blocks=copy.deepcopy(self.blocks),
        )


@dataclass(frozen=True)
class Pass:
    """One step of a pipeline."""

    name: str
    run: Callable[[Any, Context], Any]


def _dump(module: Any, folder: Path, number: int, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{number:02d}-{name}.py").write_text(module.script(show_meta=False))


def run_passes(module: Any, passes: Sequence[Pass], context: Context, stop_after: str | None = None) -> Any:
    """Run `passes` in order; with `stop_after`, stop behind the pass of that name."""
    from dlc.ir.verify import verify

    debug, folder = os.environ.get("DLC_DEBUG") == "1", os.environ.get("DLC_DUMP")
    for number, step in enumerate(passes):
        started = time.perf_counter()
        context.progress(step.name, number, len(passes))
        module = step.run(module, context)
        context.seconds[step.name] = context.seconds.get(step.name, 0.0) + time.perf_counter() - started
        if debug:
            verify(module, after=step.name)
        if folder:
            _dump(module, Path(folder) / context.part, number, step.name)
        if step.name == stop_after:
            break
    return module
