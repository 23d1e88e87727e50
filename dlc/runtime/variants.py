"""Runs a package that has code for several shapes: that of the inputs that come, else the general code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dlc.errors import DlcError
from dlc.package import Package
from dlc.runtime.session import Session

GENERAL = "general"

Shapes = tuple[tuple[int, ...], ...]


class VariantsExecutable:
    """Sessions by the shapes of the inputs, and the one that takes any others."""

    def __init__(self, sessions: Mapping[Shapes, Session], general: Session | None) -> None:
        self.sessions, self.general = dict(sessions), general

    def compute(self, inputs: list[np.ndarray], sizes: Mapping[str, int]) -> list[Any]:
        """See `dlc.targets.base.Executable`; DlcError for shapes that there is no code for."""
        shapes = tuple(a.shape for a in inputs)
        session = self.sessions.get(shapes, self.general)
        if session is None:
            known = "; ".join(str([list(s) for s in each]) for each in self.sessions)
            raise DlcError(f"the package has no code for inputs of {[list(s) for s in shapes]}, only for {known}")
        return list(session.run(dict(zip((i.name for i in session.inputs), inputs, strict=True))).values())

    def clone(self) -> VariantsExecutable:
        """Another one, of clones of the sessions."""
        general = None if self.general is None else self.general.clone()
        return VariantsExecutable({shapes: s.clone() for shapes, s in self.sessions.items()}, general)


def load(package: Package, threads: int) -> VariantsExecutable:
    """Load every variant; DlcError where one cannot be loaded on this machine."""
    build = package.manifest["build"]
    found: dict[Shapes, Session] = {}
    for name, shapes in build["variants"].items():
        found[tuple(tuple(s) for s in shapes)] = Session(package.nested(name), threads)
    general = Session(package.nested(GENERAL), threads) if build["general"] else None
    return VariantsExecutable(found, general)
