"""A sequence in parts: a session that keeps what the model carries from one part to the next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from dlc.errors import DlcError

if TYPE_CHECKING:
    from dlc.runtime.session import Session

FIRST, PAST, STATE = "stream.first", "stream.past", "stream."


class Stream:
    """One sequence under way. Streams of one session are independent; one stream serves one thread at a time.

    Args:
        session: of the streaming form.
        axes: the time axis of the model's inputs and outputs.
        longest: how many steps a sequence may have; None for any number.

    Attributes:
        steps: how many there were so far.
    """

    def __init__(self, session: Session, axes: Mapping[str, int], longest: int | None) -> None:
        self._session, self._axes, self._longest, self.steps = session, axes, longest, 0
        self._looks_back = any(info.name == PAST for info in session.inputs)
        self._states = [
            info for info in session.inputs if info.name.startswith(STATE) and info.name not in (FIRST, PAST)
        ]
        self.inputs = tuple(info for info in session.inputs if not info.name.startswith(STATE))
        self.outputs = tuple(info for info in session.outputs if not info.name.startswith(STATE))
        self._kept: dict[str, np.ndarray] | None = None

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Compute the outputs of the next part, by name.

        Args:
            inputs: arrays by input name, with the next steps along the time axis; a part has at least one step, as many
                as you like where the model's time axis is symbolic, else as many as the model says.

        Raises:
            DlcError: an input does not fit, its other extents are not those of the parts before, or the sequence would
                become longer than the model was compiled for. The stream is as it was before.
        """
        unknown = [name for name in inputs if name.startswith(STATE)]
        if unknown:
            raise DlcError(f"'{unknown[0]}' is a state, which the stream keeps by itself")
        steps = self._count(inputs)
        kept = self._kept if self._kept is not None else self._blank(inputs)
        own: dict[str, Any] = {FIRST: np.asarray(self._kept is None)}
        if self._looks_back:
            own[PAST] = np.empty(self.steps, np.bool_)  # only its extent is read
        results = self._session.run({**inputs, **own, **kept})
        self._kept = {info.name: results.pop(info.name) for info in self._states}
        self.steps += steps
        return results

    def reset(self) -> None:
        """Begin a new sequence."""
        self._kept, self.steps = None, 0

    def _count(self, inputs: Mapping[str, Any]) -> int:
        """How many steps a part has, by its first input that runs over time."""
        name = next((name for name in self._axes if name in inputs), None)
        shape: tuple[int, ...] = () if name is None else np.shape(inputs[name])
        if name is None or len(shape) <= self._axes[name]:
            return 0  # the session says what is wrong with it
        steps = shape[self._axes[name]]
        if self._longest is not None and self.steps + steps > self._longest:
            text = f"the sequence would have {self.steps + steps} steps, and the model was compiled for {self._longest}"
            raise DlcError(f"input '{name}': {text} at most (max_length)")
        return steps

    def _blank(self, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """States of the right extents; the first part does not read them."""
        from dlc.ir.interpret import evaluate_dim
        from dlc.runtime.session import bind_symbols

        known = [info for info in self.inputs if info.name in inputs]
        sizes = bind_symbols(known, [np.shape(inputs[info.name]) for info in known])
        return {info.name: np.zeros([evaluate_dim(d, sizes) for d in info.shape], info.dtype) for info in self._states}
