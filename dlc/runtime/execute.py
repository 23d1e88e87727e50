"""One call of an executable, whichever of the two forms of `dlc.targets.base.Executable` it has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from dlc.errors import DlcError

if TYPE_CHECKING:
    from dlc.targets.base import Executable


def execute(
    executable: Executable,
    inputs: list[Any],
    sizes: Mapping[str, int],
    allocated: Callable[[Mapping[str, int]], list[np.ndarray]],
) -> list[Any]:
    """The outputs for dense `inputs`; `allocated` makes those that the executable does not make itself."""
    compute = getattr(executable, "compute", None)
    if compute is not None:
        results: list[Any] = compute(inputs, sizes)
        return results
    outputs = allocated(sizes)
    executable.run(inputs, outputs, sizes)
    return outputs


def empty(name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An array of any content for the output `name`.

    Raises:
        DlcError: there is no memory for it.
    """
    try:
        return np.empty(shape, dtype)
    except (MemoryError, ValueError) as error:  # ValueError: more bytes than there are addresses
        raise DlcError(f"output '{name}': no memory for {dtype}{list(shape)}") from error
