"""What the accelerator with its host and the accelerator alone have in common: the name and the configuration."""

from __future__ import annotations

from typing import Any, ClassVar, Self

from dlc.options import Options
from dlc.pipeline import Pass
from dlc.targets.base import Target
from dlc.targets.vta.config import Config, config_by_name

_DEFAULT = "q31"


class Configured(Target):
    """A target of one configuration."""

    name: ClassVar[str] = "vta"

    def __init__(self, config: Config) -> None:
        self.config = config

    @classmethod
    def parse(cls, spec: str) -> Self:
        """``vta`` or ``vta:<configuration>``; DlcError for an unknown one."""
        return cls(config_by_name(spec.partition(":")[2] or _DEFAULT))

    @property
    def spec(self) -> str:
        """The full name, as recorded in the package."""
        return f"{self.name}:{self.config.name}"

    def passes(self, options: Options) -> list[Pass]:
        """None of its own: it reads the IR behind the common passes."""
        return []

    def describe(self) -> dict[str, Any]:
        """The accelerator is simulated, so it is everywhere."""
        return {
            "available": True,
            "description": "a simulated VTA: 256 int8 multiplications a cycle; q31 (exact) or original (shifts)",
        }
