"""The options of one compilation, typed, and recorded in the package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from dlc.errors import DlcError

QUANTIZE = ("none", "bf16", "int8", "int8-dynamic", "int4")
ARITHMETIC = ("float", "fixed", "shift")
METHODS = ("minmax", "percentile", "mse")


@dataclass(frozen=True)
class Options:
    """What a user may choose.

    Attributes:
        target: ``cpu``, ``cpu:avx2``, ``reference``, ...
        quantize: ``none``; ``bf16`` with weights rounded to bfloat16; ``int8`` with scales from calibration;
            ``int8-dynamic`` with a scale a row at run time; ``int4`` the same, and weights of 4 bits with a scale for
            each 32 of them.
        arithmetic: how integers are rescaled, see docs/arithmetic.md.
        calibration_method: how ranges are chosen from calibration data.
        shapes: extents (or symbol names) of inputs that override the model's.
        stream: add the form that takes a sequence in parts, see `dlc.runtime.stream`.
        max_length: of that form, how many steps a sequence may have; None for what the model says.
    """

    target: str = "cpu"
    quantize: Literal["none", "bf16", "int8", "int8-dynamic", "int4"] = "none"
    arithmetic: Literal["float", "fixed", "shift"] = "float"
    calibration_method: Literal["minmax", "percentile", "mse"] = "minmax"
    shapes: Mapping[str, Sequence[int | str]] = field(default_factory=dict)
    stream: bool = False
    max_length: int | None = None

    def __post_init__(self) -> None:
        for name, value, known in (
            ("quantize", self.quantize, QUANTIZE),
            ("arithmetic", self.arithmetic, ARITHMETIC),
            ("calibration_method", self.calibration_method, METHODS),
        ):
            if value not in known:
                raise DlcError(f"unknown {name} '{value}'; known: {', '.join(known)}")
        if self.max_length is not None and (not self.stream or self.max_length < 1):
            raise DlcError(f"max_length is {self.max_length}: it must be positive, and is of a model with stream")

    def as_json(self) -> dict[str, Any]:
        """For the manifest."""
        result = asdict(self)
        result["shapes"] = {name: list(shape) for name, shape in self.shapes.items()}
        return result
