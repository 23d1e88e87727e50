"""A model bound to arrays: what a call needs is looked at once, not in each call."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np


class Binding:
    """A model with its inputs and outputs in fixed places; made by `Session.bind`.

    Not for two threads at once, which would write the same outputs; a session makes as many bindings as one likes.

    Attributes:
        inputs, outputs: the arrays by name. Write to the first, call `run`, read the others.
    """

    __slots__ = ("_arrays", "_execute", "inputs", "outputs")

    def __init__(
        self, execute: Callable[[], object], inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]
    ) -> None:
        self._execute, self.inputs, self.outputs = execute, dict(inputs), dict(outputs)
        # `execute` may hold their addresses alone, and the dictionaries are the user's to change.
        self._arrays = (*inputs.values(), *outputs.values())

    def run(self) -> None:
        """Compute the outputs from what the inputs hold now."""
        self._execute()
