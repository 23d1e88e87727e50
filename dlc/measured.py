"""The time of every kernel of a loaded package, beside what the compiler predicted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dlc.errors import DlcError
from dlc.explain import Explanation
from dlc.runtime.session import Session, bind_symbols

SECONDS = 0.05  # for each kernel
CLOSE = 1.5  # a prediction within this factor is a good one


def measure(
    session: Session, explanation: Explanation, inputs: Mapping[str, np.ndarray], seconds: float = SECONDS
) -> Explanation:
    """The explanation with ``measured_us`` in the rows of kernels, and ``predicted_us`` for the sizes of `inputs`.

    A kernel is repeated by itself, for `seconds` or 1,000 runs. Rows inside a loop or a branch have no time of their
    own: it is in that of the loop.

    Raises:
        DlcError: the package's target does not measure its kernels one by one; inputs that do not fit.
    """
    times = getattr(session.executable, "measure", None)
    if times is None:
        target = session.package.manifest.get("target", "?")
        raise DlcError(f"{session.package.name}: target '{target}' does not measure its kernels one by one")
    session.run(inputs)  # wrong inputs are the user's error, and say so
    arrays = [np.array(inputs[info.name], order="C") for info in session.inputs]  # kernels may write over them
    sizes = bind_symbols(session.inputs, [a.shape for a in arrays])
    rows = [{**row, **_scaled(row, sizes)} for row in explanation.nodes]
    for number, microseconds in times(arrays, sizes, seconds):
        rows[number]["measured_us"] = round(max(microseconds, 0.0), 3)
    return Explanation(rows, explanation.declined, explanation.values)


def share_close(rows: Sequence[Mapping[str, Any]]) -> float:
    """The part of the measured time whose kernels were predicted within a factor of `CLOSE`; 1 where none took any."""
    timed = [row for row in rows if row.get("measured_us") is not None]
    close = sum(row["measured_us"] for row in timed if _close(row.get("predicted_us"), row["measured_us"]))
    return close / (sum(row["measured_us"] for row in timed) or 1.0) if timed else 1.0


def _close(predicted: float | None, measured: float) -> bool:
    return predicted is not None and predicted <= CLOSE * measured and measured <= CLOSE * predicted


def _scaled(row: Mapping[str, Any], sizes: Mapping[str, int]) -> dict[str, Any]:
    """A prediction for guessed sizes of symbols (``N=64``), for the real ones: work grows with each of them."""
    if row.get("predicted_us") is None:
        return {}
    factor, given = 1.0, []
    for part in str(row.get("predicted_for") or "").split(", "):
        name, equals, guess = part.partition("=")
        if equals and name in sizes:
            factor *= sizes[name] / int(guess)
            given.append(f"{name}={sizes[name]}")
        elif part:
            given.append(part)
    return {"predicted_us": row["predicted_us"] * factor, "predicted_for": ", ".join(given)}
