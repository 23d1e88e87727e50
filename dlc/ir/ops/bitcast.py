"""`dlc.bitcast`: the same bits read as another element type of the same width. Attribute: dtype."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes  # noqa: F401  (registers the small floats with numpy)
import numpy as np

from dlc.ir.ops.registry import OpSpec, register


def _infer(types: Sequence[tuple[tuple[Any, ...], str]], attrs: Mapping[str, Any]) -> tuple[Sequence[Any], str]:
    ((shape, dtype),) = types
    if np.dtype(dtype).itemsize != np.dtype(attrs["dtype"]).itemsize:
        raise ValueError(f"the bits of {dtype} as {attrs['dtype']}, which has another width")
    return shape, attrs["dtype"]


def _meaning(inputs: Sequence[np.ndarray], attrs: Mapping[str, Any]) -> np.ndarray:
    return np.asarray(inputs[0]).view(attrs["dtype"])


BITCAST = register(OpSpec("dlc.bitcast", "elementwise", _meaning, _infer))
