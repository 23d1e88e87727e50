"""The explanation in a package: one row a kernel, and the rewrites that were declined."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dlc.errors import DlcError
from dlc.package import Package

# key of a row -> heading; a column that no row has is left out
_COLUMNS = {
    "stage": "stage",
    "part": "part",
    "inside": "inside",
    "node": "node",
    "op": "operator",
    "precision": "precision",
    "kernel": "kernel",
    "tile": "tile",
    "registers": "registers",
    "shared_bytes": "shared bytes",
    "spill_bytes": "spill bytes",
    "threads": "threads",
    "measured_us": "measured us",
    "predicted_us": "predicted us",
    "predicted_for": "for",
    "predicted_stage_us": "stage us",
    "cycles": "cycles",
    "utilisation": "array used",
    "sources": "nodes in it",
    "why_not_better": "why not better",
}


@dataclass(frozen=True)
class Explanation:
    """What ``explain.json`` holds.

    Attributes:
        nodes: one row a kernel, see `dlc.targets.base.Build`.
        declined: rewrites that were not done: ``pass``, ``node``, ``value``, ``reason``.
        values: scale and zero point of each quantised value, by ONNX name.
    """

    nodes: list[dict[str, Any]]
    declined: list[dict[str, Any]]
    values: dict[str, dict[str, Any]] = field(default_factory=dict)

    def real(self, name: str, array: np.ndarray) -> np.ndarray:
        """A value as the model's author knows it: codes of a quantised value become float32, all else stays."""
        marked = self.values.get(name)
        if marked is None or str(array.dtype) != marked["dtype"]:
            return array
        return (array.astype(np.float32) - np.float32(marked["zero_point"])) * np.float32(marked["scale"])

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Headings and cells, for people."""
        keys = [key for key in _COLUMNS if any(row.get(key) not in (None, "") for row in self.nodes)]
        return [_COLUMNS[key] for key in keys], [[_cell(row.get(key)) for key in keys] for row in self.nodes]


def read(package: Package | str | os.PathLike[str]) -> Explanation:
    """The explanation of a package, or of a file; loads no code.

    Raises:
        DlcError: it is not a package, or it is damaged.
    """
    opened = package if isinstance(package, Package) else Package.open(package)
    record = opened.json("explain.json")
    if not isinstance(record, dict) or not {"nodes", "declined"} <= set(record):
        raise DlcError(f"{opened.name}: member 'explain.json' is not an explanation")
    return Explanation(record["nodes"], record["declined"], record.get("values", {}))


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    if isinstance(value, Mapping):
        return " ".join(f"{key}={_cell(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return "x".join(_cell(item) for item in value)
    return str(value)
