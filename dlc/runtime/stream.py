"""A sequence in parts: a session that keeps what the model carries from one part to the next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from dlc.errors import DlcError

if TYPE_CHECKING:
    from dlc.runtime.session import Session

FIRST, STATE = "stream.first", "stream."


class Stream:
    """One sequence under way. Streams of one session are independent; one stream serves one thread at a time."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._states = [info for info in session.inputs if info.name.startswith(STATE) and info.name != FIRST]
        self.inputs = tuple(info for info in session.inputs if not info.name.startswith(STATE))
        self.outputs = tuple(info for info in session.outputs if not info.name.startswith(STATE))
        self._kept: dict[str, np.ndarray] | None = None

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Compute the outputs of the next part, by name.

        Args:
            inputs: arrays by input name, with the next steps along the time axis; a part has at least one step, as many
                as you like where the model's time axis is symbolic, else as many as the model says.

        Raises:
            DlcError: an input does not fit, or its other extents are not those of the parts before.
        """
        unknown = [name for name in inputs if name.startswith(STATE)]
        if unknown:
            raise DlcError(f"'{unknown[0]}' is a state, which the stream keeps by itself")
        kept = self._kept if self._kept is not None else self._blank(inputs)
        first = np.asarray(self._kept is None)
        results = self._session.run({**inputs, FIRST: first, **kept})
        self._kept = {info.name: results.pop(info.name) for info in self._states}
        return results

    def reset(self) -> None:
        """Begin a new sequence."""
        self._kept = None

    def _blank(self, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """States of the right extents; the first part does not read them."""
        from dlc.ir.interpret import evaluate_dim
        from dlc.runtime.session import bind_symbols

        known = [info for info in self.inputs if info.name in inputs]
        sizes = bind_symbols(known, [np.shape(inputs[info.name]) for info in known])
        return {info.name: np.zeros([evaluate_dim(d, sizes) for d in info.shape], info.dtype) for info in self._states}
