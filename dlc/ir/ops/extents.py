"""`dlc.extents`: an int64 vector of extents, known when the function runs.

No inputs. Attribute shape: the extents, ints or symbolic expressions. It is what ONNX's Shape becomes where its result
is data, not just the shape of something else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dlc.ir.ops.registry import OpSpec, register


def _infer(types: Sequence[tuple[tuple[Any, ...], str]], attrs: Mapping[str, Any]) -> tuple[Sequence[Any], str]:
    if types:
        raise ValueError(f"extents takes no inputs, got {len(types)}")
    return (len(attrs["shape"]),), "int64"


def _meaning(inputs: Sequence[np.ndarray], attrs: Mapping[str, Any]) -> np.ndarray:
    return np.array(attrs["shape"], np.int64)


EXTENTS = register(OpSpec("dlc.extents", "opaque", _meaning, _infer))
