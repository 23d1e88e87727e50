"""`dlc.positions`: the vector 0, 1, ... n - 1 for an extent n that is known when the function runs.

No inputs. Attributes: shape (n alone, an int or a symbolic expression), dtype. ONNX's Range over a symbolic extent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dlc.ir.ops.registry import OpSpec, register


def _infer(types: Sequence[tuple[tuple[Any, ...], str]], attrs: Mapping[str, Any]) -> tuple[Sequence[Any], str]:
    if types or len(attrs["shape"]) != 1:
        raise ValueError(f"positions takes no inputs and one extent, got {len(types)} and {list(attrs['shape'])}")
    return attrs["shape"], attrs["dtype"]


def _meaning(inputs: Sequence[np.ndarray], attrs: Mapping[str, Any]) -> np.ndarray:
    return np.arange(attrs["shape"][0]).astype(attrs["dtype"])


POSITIONS = register(OpSpec("dlc.positions", "opaque", _meaning, _infer))
